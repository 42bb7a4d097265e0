//! A look into a store that isn't this process's own, and may be in use.

use super::{FILE_NAME, Image, StoreError, rehearse};
use crate::config::Config;
use crate::limits;
use crate::sessions::Sessions;
use crate::sessions::records::{OperativeState, SessionState};
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

/// How often a file that is written to meanwhile is copied again.
const ATTEMPTS: usize = 20;

/// What a store had in it when it was looked at.
#[derive(Debug)]
pub struct Inspected {
    /// The file.
    pub path: PathBuf,
    /// Its version.
    pub version: u32,
    /// How long it is.
    pub len_bytes: u64,
    /// Whether a daemon has it open: then this is how it was a moment ago.
    pub is_in_use: bool,
    /// All records.
    pub image: Image,
}

/// Reads and checks all of a copy, in memory, of the store in this directory; the store itself is left alone.
/// `None` if there is none.
///
/// # Errors
///
/// [`StoreError`]: it can't be read, or is damaged.
pub fn inspect(state_dir: &Path) -> Result<Option<Inspected>, StoreError> {
    let path = state_dir.join(FILE_NAME);
    let io = |doing, cause| StoreError::Io {
        doing,
        path: path.clone(),
        cause,
    };
    let mut original = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io("open", error)),
    };
    let is_in_use = is_in_use(state_dir);
    let mut attempts = 0..ATTEMPTS;
    loop {
        let (copy, is_whole) = copy(&mut original).map_err(|cause| io("copy", cause))?;
        let is_last = attempts.next().is_none();
        let len_bytes = copy.metadata().map_err(|cause| io("copy", cause))?.len();
        match rehearse(copy, &path) {
            // Of a file that was written to meanwhile, the copy may be of no moment at all.
            Err(_) if !is_whole && !is_last => {}
            Err(error) => return Err(error),
            Ok((version, image)) => {
                return Ok(Some(Inspected {
                    path,
                    version,
                    len_bytes,
                    is_in_use,
                    image,
                }));
            }
        }
    }
}

/// Whether a daemon holds the lock. It isn't kept from taking it for longer than a moment.
fn is_in_use(state_dir: &Path) -> bool {
    File::open(state_dir)
        .is_ok_and(|directory| matches!(directory.try_lock_shared(), Err(TryLockError::WouldBlock)))
}

/// A copy in memory, where nobody else can read the keys in it, and whether the file stayed as it was meanwhile.
fn copy(original: &mut File) -> io::Result<(File, bool)> {
    let mut copy: File = memfd_create("push.redb", MFdFlags::MFD_CLOEXEC)?.into();
    let before = original.metadata()?;
    io::Seek::rewind(original)?;
    io::copy(original, &mut copy)?;
    let after = original.metadata()?;
    let is_whole = before.modified()? == after.modified()? && before.len() == after.len();
    Ok((copy, is_whole))
}

impl Inspected {
    /// What is wrong with what the records say of each other, or of the configuration.
    #[must_use]
    pub fn contradiction(&self, config: &Config) -> Option<String> {
        let restored = Sessions::restore(limits(config), self.image.clone());
        restored.err().map(|error| error.to_string())
    }

    /// Realms of terminals that the configuration doesn't have; nothing is delivered to their devices.
    #[must_use]
    pub fn unknown_realms(&self, config: &Config) -> Vec<String> {
        let terminals = self.image.terminals.iter();
        let mut unknown: Vec<_> = terminals
            .filter_map(|terminal| terminal.path.realm.as_ref())
            .filter(|realm| !config.realm.iter().any(|known| known.name == **realm))
            .map(ToString::to_string)
            .collect();
        unknown.sort();
        unknown.dedup();
        unknown
    }

    /// What is in it, in one line.
    #[must_use]
    pub fn summary(&self) -> String {
        let Image {
            terminals,
            sessions,
            apps,
        } = &self.image;
        format!(
            "{}, version {}, {} KiB{}: {} terminals, {} sessions, {} applications",
            self.path.display(),
            self.version,
            self.len_bytes >> 10,
            if self.is_in_use { ", in use" } else { "" },
            terminals.len(),
            sessions.len(),
            apps.len(),
        )
    }

    /// All records, as JSON, without anything that lets its reader sign or validate.
    pub fn rows(&self) -> impl Iterator<Item = serde_json::Value> {
        let terminals = self.image.terminals.iter().map(rows::terminal);
        let sessions = self.image.sessions.iter().map(rows::session);
        let apps = self.image.apps.iter().map(rows::app);
        apps.chain(terminals).chain(sessions)
    }
}

/// Records as [`Inspected::rows`] has them.
mod rows {
    use super::{OperativeState, SessionState};
    use crate::sessions::records::{
        App, Availability, Credential, Proof, Session, Terminal, Tokens, UnixTime,
    };
    use serde_json::{Value, json};

    pub(super) fn terminal(terminal: &Terminal) -> Value {
        let Terminal {
            id,
            endpoint,
            path,
            port,
            lifetime,
            state,
        } = terminal;
        let state = match *state {
            OperativeState::First { expires } => {
                json!({ "name": "first_operative", "expires_at": time(expires) })
            }
            OperativeState::Second { since, cause } => {
                json!({ "name": "second_operative", "since": time(since), "cause": cause.label() })
            }
            OperativeState::Suspended { since, expires } => {
                json!({ "name": "suspended", "since": time(since), "expires_at": time(expires) })
            }
        };
        json!({
            "record": "terminal",
            "id": id.to_string(),
            "endpoint": endpoint.as_str(),
            "realm": path.realm.as_ref().map(ToString::to_string),
            "address": path.device,
            "gateway": path.gateway,
            "port": port,
            "lifetime_s": lifetime.as_secs(),
            "state": state,
        })
    }

    pub(super) fn session(session: &Session) -> Value {
        let Session {
            id,
            terminal,
            app,
            instance,
            port,
            tunnel,
            state,
        } = session;
        let state = match state {
            SessionState::Requested(token) => {
                json!({ "name": "requested", "token_generation": token.generation })
            }
            SessionState::Authorised(Tokens {
                current,
                previous,
                next,
                rotate_by,
            }) => json!({
                "name": "authorised",
                "token_generation": current.generation,
                "previous_valid_until": previous.as_ref().map(|previous| time(previous.until)),
                "next_token_generation": next.as_ref().map(|next| next.generation),
                "rotate_by": rotate_by.map(time),
            }),
            SessionState::Ended { at, cause } => {
                json!({ "name": "ended", "at": time(*at), "cause": cause.label() })
            }
        };
        json!({
            "record": "session",
            "id": id.to_string(),
            "slot": id.slot(),
            "terminal": terminal.to_string(),
            "app": app.as_str(),
            "instance": instance.as_str(),
            "port": port,
            "tunnel": tunnel.map(|tunnel| json!({ "peer": tunnel.peer, "teid": tunnel.teid })),
            "state": state,
        })
    }

    pub(super) fn app(app: &App) -> Value {
        let App {
            name,
            created,
            policy_slot,
            policy,
            credentials,
            quotas,
            monitor,
            availability,
        } = app;
        let credential = |credential: &Credential| {
            json!({
                "id": credential.id.to_string(),
                "kind": match credential.proof {
                    Proof::ApiKey(_) | Proof::ApiKeySha256(_) => "api_key",
                    Proof::Certificate(_) => "certificate",
                },
                "created_at": time(credential.created),
                "expires_at": credential.expires.map(time),
            })
        };
        json!({
            "record": "app",
            "name": name.as_str(),
            "created_at": time(*created),
            "policy_slot": policy_slot,
            "policy": {
                "rate": policy.rate.map(|rate| json!({ "interval_ns": rate.interval.as_nanos() as u64, "burst": rate.burst })),
                "sources": policy.sources.iter().map(ToString::to_string).collect::<Vec<_>>(),
                "max_payload_bytes": policy.max_payload,
                "dscp": policy.dscp,
                "coalescing_window_ms": policy.coalescing_window.map(|window| window.as_millis() as u64),
                "return_acks": policy.return_acks,
            },
            "credentials": credentials.iter().map(credential).collect::<Vec<_>>(),
            "quotas": {
                "sessions": quotas.sessions,
                "sessions_per_terminal": quotas.sessions_per_terminal,
                "validations_per_minute": quotas.validations_per_minute,
            },
            "monitor": monitor.as_ref().map(|monitor| json!({
                "url": monitor.url,
                "interval_ms": monitor.interval.as_millis() as u64,
                "unreachable_after_ms": monitor.unreachable_after.as_millis() as u64,
                "inactive_after_ms": monitor.inactive_after.map(|time| time.as_millis() as u64),
            })),
            "failed": match *availability {
                Availability::Available => None,
                Availability::Failed { since, cause } => {
                    Some(json!({ "since": time(since), "cause": cause.label() }))
                }
            },
        })
    }

    /// RFC 3339.
    fn time(time: UnixTime) -> String {
        let millis = i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
        jiff::Timestamp::from_millisecond(millis)
            .map_or_else(|_| "never".to_owned(), |time| time.to_string())
    }
}
