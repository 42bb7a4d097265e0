//! From an authorised session to what the data plane is to know of it.

use crate::dataplane::SessionImage;
use crate::sessions::records::{Path, RealmName, UnixTime};
use crate::sessions::{Authorised, Sessions};
use std::collections::HashSet;
use std::net::SocketAddr;

/// Where devices can register, as the configuration has it.
#[derive(Clone, Debug, Default)]
pub struct Places {
    /// In the order in which the data plane has them.
    realms: Vec<RealmName>,
    listen: HashSet<(Option<RealmName>, SocketAddr)>,
}

/// Why a session can't be in the data plane, for as long as the configuration is what it is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Displaced {
    #[error("its device registered in the realm {0}, which is no longer in the configuration")]
    Realm(RealmName),
    #[error("its device registered at {address}, which is no longer in {key}")]
    Listen { address: SocketAddr, key: String },
}

impl Places {
    /// Outside of all realms, at these addresses.
    #[must_use]
    pub fn new(internal: &[SocketAddr]) -> Self {
        Self {
            realms: Vec::new(),
            listen: internal.iter().map(|&address| (None, address)).collect(),
        }
    }

    /// And in this realm, at these addresses. Realms have to come in the order of
    /// [`crate::dataplane::Settings::realms`].
    #[must_use]
    pub fn and_realm(mut self, name: &RealmName, listen: &[SocketAddr]) -> Self {
        self.realms.push(name.clone());
        let listen = listen.iter().map(|&address| (Some(name.clone()), address));
        self.listen.extend(listen);
        self
    }

    /// The index of the realm of a device that is reached by this path.
    pub(crate) fn realm(&self, path: &Path) -> Result<Option<usize>, Displaced> {
        let index = match &path.realm {
            None => None,
            Some(name) => {
                let index = self.realms.iter().position(|realm| realm == name);
                Some(index.ok_or_else(|| Displaced::Realm(name.clone()))?)
            }
        };
        if self.listen.contains(&(path.realm.clone(), path.gateway)) {
            return Ok(index);
        }
        Err(Displaced::Listen {
            address: path.gateway,
            key: path.realm.as_ref().map_or_else(
                || "internal.listen".to_owned(),
                |name| format!("realm.{name}.listen"),
            ),
        })
    }
}

/// What the data plane is to know of a session.
pub(super) fn image(
    authorised: &Authorised<'_>,
    sessions: &Sessions,
    places: &Places,
    now: UnixTime,
) -> Result<SessionImage, Displaced> {
    let Authorised {
        session,
        tokens,
        terminal,
        app,
    } = *authorised;
    let path = &terminal.path;
    Ok(SessionImage {
        id: session.id,
        device: SocketAddr::new(path.device, session.port.get()),
        source: path.gateway,
        realm: places.realm(path)?,
        tunnel: session.tunnel,
        window: session.window.as_deref().copied().unwrap_or_default(),
        policy: app.policy_slot.get(),
        token_generation: tokens.current.generation,
        key: (*tokens.current.key).clone(),
        previous_key: tokens
            .previous
            .as_ref()
            .map(|previous| (*previous.token.key).clone()),
        expires_in: sessions.expires_in(session, now),
    })
}
