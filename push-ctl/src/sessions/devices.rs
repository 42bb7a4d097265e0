//! What devices do: they register, and ask for sessions.

use super::records::{
    Availability, EndCause, EndpointName, IssuedToken, Left, OperativeState, Path, RegistrationId,
    Session, SessionState, Terminal, UnixTime,
};
use super::{DeviceRefusal, Grant, News, Registration, SessionRequest, Sessions, remaining};
use push_common::token::Token;
use push_common::wire::SessionId;
use std::num::NonZeroU32;
use std::time::Duration;

/// When somebody who has all they may have is to ask again.
const QUOTA_RETRY: Duration = Duration::from_mins(1);

impl Sessions {
    /// A device registers, or registers again. Its address has been proved. Another terminal that was
    /// registered from there is there no more.
    ///
    /// `port` is that of its push client; `fresh` is random, and names the registration if that is a new one.
    ///
    /// # Errors
    ///
    /// [`DeviceRefusal::EndpointTaken`], [`DeviceRefusal::TerminalsFull`], [`DeviceRefusal::Suspended`].
    pub fn register(
        &mut self,
        now: UnixTime,
        endpoint: EndpointName,
        path: Path,
        port: u16,
        lifetime: Option<Duration>,
        fresh: RegistrationId,
    ) -> Result<Registration, DeviceRefusal> {
        let lifetime = lifetime
            .unwrap_or(self.limits.default_lifetime)
            .min(self.limits.max_lifetime);
        if let Some(&id) = self.endpoints.get(&endpoint) {
            match self
                .provisioned(now, id)
                .map(|terminal| terminal.record.path.is_from_same_address(&path))
            {
                Ok(true) => return Ok(self.prolong(now, id, path, port, lifetime)),
                Ok(false) => return Err(DeviceRefusal::EndpointTaken),
                Err(DeviceRefusal::Suspended) => {
                    self.comes_although_suspended(id, path, port);
                    return Err(DeviceRefusal::Suspended);
                }
                Err(_) => self.forget(now, id),
            }
        }
        if self.terminals.len() >= self.limits.slots as usize {
            return Err(DeviceRefusal::TerminalsFull);
        }
        let id = self.unused(fresh);
        self.claim(now, id, &path);
        let expires = now.saturating_add(lifetime);
        self.enter_terminal(Terminal {
            id,
            endpoint: endpoint.clone(),
            path,
            port,
            lifetime,
            state: OperativeState::First { expires },
        });
        self.changes.terminals.insert(id);
        self.changes
            .news
            .push(News::TerminalRegistered { id, endpoint });
        Ok(Registration { id, lifetime })
    }

    /// What names a registration, from a random number.
    pub(super) fn unused(&self, fresh: RegistrationId) -> RegistrationId {
        let mut id = fresh;
        while self.terminals.contains_key(&id) {
            id = RegistrationId::from_u64(id.to_u64().wrapping_add(1));
        }
        id
    }

    /// Where a device is that was suspended before it was heard of: the operator sees it, and it can be told when
    /// that is over.
    fn comes_although_suspended(&mut self, id: RegistrationId, path: Path, port: u16) {
        let Some(entry) = self.terminals.get_mut(&id) else {
            return;
        };
        if !entry.record.path.is_known() {
            let realm = path.realm.clone();
            entry.record.path = path;
            entry.record.port = port;
            self.changes.terminals.insert(id);
            self.depopulate(None, 1, 0);
            self.populate(realm, 1, 0);
        }
    }

    /// A device refreshes its registration, or moves it to another address, which its sessions follow.
    /// `proven` says whether it has shown that it receives at that address.
    ///
    /// # Errors
    ///
    /// [`DeviceRefusal::AddressUnproven`], [`DeviceRefusal::UnknownRegistration`],
    /// [`DeviceRefusal::SecondState`], [`DeviceRefusal::Suspended`].
    pub fn refresh(
        &mut self,
        now: UnixTime,
        id: RegistrationId,
        path: Path,
        port: u16,
        proven: bool,
        lifetime: Option<Duration>,
    ) -> Result<Registration, DeviceRefusal> {
        let terminal = self.provisioned(now, id)?;
        if !terminal.record.path.is_from_same_address(&path) && !proven {
            return Err(DeviceRefusal::AddressUnproven);
        }
        let lifetime = lifetime
            .unwrap_or(terminal.record.lifetime)
            .min(self.limits.max_lifetime);
        Ok(self.prolong(now, id, path, port, lifetime))
    }

    /// A device leaves; its sessions end.
    ///
    /// # Errors
    ///
    /// [`DeviceRefusal::OtherAddress`], [`DeviceRefusal::UnknownRegistration`], [`DeviceRefusal::SecondState`].
    pub fn deregister(
        &mut self,
        now: UnixTime,
        id: RegistrationId,
        from: &Path,
    ) -> Result<(), DeviceRefusal> {
        self.provisioned_at(now, id, from)?;
        self.leave(now, id, Left::Deregistered);
        Ok(())
    }

    /// A device asks for a session. One of the same instance is replaced by it.
    ///
    /// `token` and `generation` are random.
    ///
    /// # Errors
    ///
    /// All of [`DeviceRefusal`] but those of registering.
    pub fn request_session(
        &mut self,
        now: UnixTime,
        terminal: RegistrationId,
        from: &Path,
        request: SessionRequest,
        token: &Token,
        generation: NonZeroU32,
    ) -> Result<Grant, DeviceRefusal> {
        let SessionRequest {
            app,
            instance,
            port,
        } = request;
        let entry = self.provisioned_at(now, terminal, from)?;
        let lifetime = remaining(&entry.record, now);
        let replaced = entry.sessions.get(&(app.clone(), instance.clone()));
        let live_on_terminal = entry.sessions.len();
        let of_app_on_terminal = entry
            .sessions
            .purposes()
            .filter(|(other, _)| *other == app)
            .count();
        let of = self.apps.get(&app).ok_or(DeviceRefusal::UnknownApp)?;
        if of.record.removed {
            return Err(DeviceRefusal::UnknownApp);
        }
        let has_failed = match of.record.availability {
            Availability::Available => false,
            Availability::Failed { .. } => true,
        };
        if has_failed || self.endings.contains(&app) {
            return Err(DeviceRefusal::AppUnavailable);
        }
        let quotas = of.record.quotas;
        let is_full = |live: usize, quota: Option<u32>| {
            // The one that is replaced makes room.
            let live = live - usize::from(replaced.is_some());
            quota.is_some_and(|quota| live >= quota as usize)
        };
        let exceeded = [
            (
                "sessions_of_terminal",
                is_full(live_on_terminal, Some(self.limits.sessions_per_terminal)),
            ),
            (
                "sessions_of_app",
                is_full(of.sessions.len(), quotas.sessions),
            ),
            (
                "sessions_of_app_on_terminal",
                is_full(of_app_on_terminal, quotas.sessions_per_terminal),
            ),
        ];
        if let Some((what, _)) = exceeded.into_iter().find(|&(_, is_full)| is_full) {
            self.changes.news.push(News::QuotaExceeded { app, what });
            return Err(DeviceRefusal::QuotaExceeded {
                what,
                retry_after: QUOTA_RETRY,
            });
        }
        if let Some(replaced) = replaced {
            self.end(now, replaced, EndCause::Replaced);
        }
        let issued = IssuedToken::new(token, 0);
        let token_generation = issued.generation;
        let id = self
            .slots
            .insert(generation, |id| Session {
                id,
                terminal,
                app: app.clone(),
                instance,
                port,
                tunnel: None,
                window: None,
                state: SessionState::Requested(issued),
            })
            .ok_or(DeviceRefusal::SlotsFull)?;
        // Terminal and application were looked at above.
        let _entered = self.enter_session(id);
        self.changes.slots.insert(id.slot());
        self.changes
            .news
            .push(News::SessionRequested { id, app, terminal });
        Ok(Grant {
            id,
            token_generation,
            lifetime,
        })
    }

    /// A device ends a session of its own.
    ///
    /// # Errors
    ///
    /// [`DeviceRefusal::UnknownSession`] and those of [`Sessions::deregister`].
    pub fn release(
        &mut self,
        now: UnixTime,
        terminal: RegistrationId,
        from: &Path,
        id: SessionId,
    ) -> Result<(), DeviceRefusal> {
        self.provisioned_at(now, terminal, from)?;
        self.own_session(terminal, id)?;
        self.end(now, id, EndCause::Released);
        Ok(())
    }

    /// A device asks for another token of a session. The one before stays valid until this one was
    /// validated, and for [`Limits::rotation_overlap`] more. One that was never validated is replaced.
    ///
    /// `token` is random.
    ///
    /// # Errors
    ///
    /// As of [`Sessions::release`].
    pub fn new_token(
        &mut self,
        now: UnixTime,
        terminal: RegistrationId,
        from: &Path,
        id: SessionId,
        token: &Token,
    ) -> Result<Grant, DeviceRefusal> {
        let entry = self.provisioned_at(now, terminal, from)?;
        let lifetime = remaining(&entry.record, now);
        self.own_session(terminal, id)?;
        let session = self
            .slots
            .get_mut(id)
            .ok_or(DeviceRefusal::UnknownSession)?;
        let token_generation = match &mut session.state {
            SessionState::Requested(issued) => {
                *issued = IssuedToken::new(token, issued.next_generation());
                issued.generation
            }
            SessionState::Authorised(tokens) => {
                let generation = tokens.current.next_generation();
                tokens.next = Some(IssuedToken::new(token, generation));
                generation
            }
            SessionState::Ended { .. } => return Err(DeviceRefusal::UnknownSession),
        };
        let app = session.app.clone();
        self.changes.slots.insert(id.slot());
        self.changes.news.push(News::TokenIssued {
            id,
            app,
            token_generation,
        });
        Ok(Grant {
            id,
            token_generation,
            lifetime,
        })
    }
}
