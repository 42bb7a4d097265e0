//! The lifecycle of terminals and their sessions, as a state machine.
//!
//! It knows no socket, no clock, no map and no file: what time it is and what is random comes in
//! with each operation. An operation answers or refuses with a cause, and notes what it has changed;
//! [`Sessions::take_changes`] says what is to be brought to the store and to the data plane.
//!
//! ```text
//! terminal   register ──> first operative state ──> second operative state ──> forgotten
//!                           │ refresh, move           deregistered, expired
//! session                   └─ request ──> requested ── validate ──> authorised ──> ended
//! ```
//!
//! A session lives as long as its terminal is in the first operative state, unless it is ended before.

mod answers;
mod operator;
mod queries;
pub mod records;
mod restore;
mod slots;
#[cfg(test)]
mod tests;

pub use answers::{
    Authorisation, Counts, DeviceRefusal, Grant, OperatorRefusal, Registration, SessionRequest,
    ValidationRefusal,
};
pub use queries::Authorised;
pub use restore::RestoreError;

use crate::app_key::AppKeyHash;
use push_common::token::{Token, TokenHash};
use push_common::wire::SessionId;
use records::{
    App, AppName, EndCause, EndpointName, InstanceName, IssuedToken, Left, OperativeState, Path,
    RegistrationId, Session, SessionState, Terminal, UnixTime,
};
use slots::Slots;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::num::{NonZeroU16, NonZeroU32};
use std::time::Duration;

/// How long a terminal in the second operative state is remembered.
const SECOND_STATE_KEPT: Duration = Duration::from_hours(1);

/// What the configuration says about sessions.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Slots of the session table; there are at most as many terminals, too.
    pub slots: u32,
    /// Lifetime of a registration that doesn't ask for one.
    pub default_lifetime: Duration,
    /// Longest lifetime that a registration gets.
    pub max_lifetime: Duration,
}

/// Everything that the store keeps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Image {
    /// Terminals, in any order.
    pub terminals: Vec<Terminal>,
    /// Sessions, one per slot, in any order.
    pub sessions: Vec<Session>,
    /// Applications, in any order.
    pub apps: Vec<App>,
}

/// Which records have changed since changes were last taken.
#[derive(Debug, Default)]
pub struct Changes {
    /// Terminals added, changed or forgotten.
    pub terminals: BTreeSet<RegistrationId>,
    /// Slots of sessions added or changed.
    pub slots: BTreeSet<u32>,
    /// Applications added, changed or removed.
    pub apps: BTreeSet<AppName>,
    /// Slots of policies that the data plane has to learn about, or to forget.
    pub policies: BTreeSet<NonZeroU16>,
    /// Sessions that the data plane has to learn about, or to forget.
    pub kernel: BTreeSet<SessionId>,
}

impl Changes {
    /// Whether the store has nothing to learn.
    #[must_use]
    pub fn leave_store_alone(&self) -> bool {
        self.terminals.is_empty() && self.slots.is_empty() && self.apps.is_empty()
    }
}

struct TerminalEntry {
    record: Terminal,
    /// The sessions that aren't over.
    sessions: BTreeMap<(AppName, InstanceName), SessionId>,
}

struct AppEntry {
    record: App,
    /// The sessions that aren't over.
    sessions: BTreeSet<SessionId>,
}

/// All terminals, sessions and applications.
pub struct Sessions {
    limits: Limits,
    terminals: HashMap<RegistrationId, TerminalEntry>,
    endpoints: HashMap<EndpointName, RegistrationId>,
    apps: BTreeMap<AppName, AppEntry>,
    /// Whose policy is in which slot.
    policies: BTreeMap<NonZeroU16, AppName>,
    app_keys: HashMap<AppKeyHash, AppName>,
    slots: Slots,
    /// When each terminal leaves its state, unless something happens before.
    deadlines: BTreeSet<(UnixTime, RegistrationId)>,
    counts: Counts,
    changes: Changes,
}

impl Sessions {
    /// A device registers, or registers again. Its address has been proved.
    ///
    /// `fresh` is random; it names the registration if that is a new one.
    ///
    /// # Errors
    ///
    /// [`DeviceRefusal::EndpointTaken`], [`DeviceRefusal::TerminalsFull`].
    pub fn register(
        &mut self,
        now: UnixTime,
        endpoint: EndpointName,
        path: Path,
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
                Ok(true) => return Ok(self.prolong(now, id, path, lifetime)),
                Ok(false) => return Err(DeviceRefusal::EndpointTaken),
                Err(_) => self.forget(now, id),
            }
        }
        if self.terminals.len() >= self.limits.slots as usize {
            return Err(DeviceRefusal::TerminalsFull);
        }
        let mut id = fresh;
        while self.terminals.contains_key(&id) {
            id = RegistrationId::from_u64(id.to_u64().wrapping_add(1));
        }
        let expires = now.saturating_add(lifetime);
        let record = Terminal {
            id,
            endpoint: endpoint.clone(),
            path,
            lifetime,
            state: OperativeState::First { expires },
        };
        self.endpoints.insert(endpoint, id);
        self.terminals.insert(
            id,
            TerminalEntry {
                record,
                sessions: BTreeMap::new(),
            },
        );
        self.deadlines.insert((expires, id));
        self.changes.terminals.insert(id);
        Ok(Registration { id, lifetime })
    }

    /// A device refreshes its registration, or moves it to another address, which its sessions follow.
    /// `proven` says whether it has shown that it receives at that address.
    ///
    /// # Errors
    ///
    /// [`DeviceRefusal::AddressUnproven`], [`DeviceRefusal::UnknownRegistration`], [`DeviceRefusal::SecondState`].
    pub fn refresh(
        &mut self,
        now: UnixTime,
        id: RegistrationId,
        path: Path,
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
        Ok(self.prolong(now, id, path, lifetime))
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
        let replaced = entry
            .sessions
            .get(&(app.clone(), instance.clone()))
            .copied();
        if !self.apps.contains_key(&app) {
            return Err(DeviceRefusal::UnknownApp);
        }
        if let Some(replaced) = replaced {
            self.end(now, replaced, EndCause::Replaced);
        }
        let issued = IssuedToken::first(token);
        let token_generation = issued.generation;
        let id = self
            .slots
            .insert(generation, |id| Session {
                id,
                terminal,
                app: app.clone(),
                instance: instance.clone(),
                port,
                tunnel: None,
                state: SessionState::Requested(issued),
            })
            .ok_or(DeviceRefusal::SlotsFull)?;
        self.counts.requested += 1;
        if let Some(entry) = self.apps.get_mut(&app) {
            entry.sessions.insert(id);
        }
        if let Some(entry) = self.terminals.get_mut(&terminal) {
            entry.sessions.insert((app, instance), id);
        }
        self.changes.slots.insert(id.slot());
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
        match self.slots.get(id) {
            Some(session) if session.terminal == terminal => match session.state {
                SessionState::Requested(_) | SessionState::Authorised(_) => {
                    self.end(now, id, EndCause::Released);
                }
                SessionState::Ended { .. } => return Err(DeviceRefusal::UnknownSession),
            },
            Some(_) | None => return Err(DeviceRefusal::UnknownSession),
        }
        Ok(())
    }

    /// An application's server proves to hold the token of a session, which is authorised from then on.
    ///
    /// # Errors
    ///
    /// [`ValidationRefusal`].
    pub fn validate(
        &mut self,
        now: UnixTime,
        app_key: &AppKeyHash,
        id: SessionId,
        token: &TokenHash,
    ) -> Result<Authorisation, ValidationRefusal> {
        let app = self
            .app_keys
            .get(app_key)
            .ok_or(ValidationRefusal::InvalidAppKey)?;
        let session = self.slots.get_mut(id).filter(|session| session.app == *app);
        let session = session.ok_or(ValidationRefusal::UnknownSession)?;
        let issued = match &session.state {
            SessionState::Requested(issued) | SessionState::Authorised(issued) => issued.clone(),
            SessionState::Ended { cause, .. } => {
                return Err(ValidationRefusal::SessionEnded(*cause));
            }
        };
        let terminal = self
            .terminals
            .get(&session.terminal)
            .map(|entry| &entry.record);
        let terminal = terminal.filter(|terminal| !remaining(terminal, now).is_zero());
        let terminal = terminal.ok_or(ValidationRefusal::SessionEnded(EndCause::Expired))?;
        if issued.hash != *token {
            return Err(ValidationRefusal::TokenMismatch);
        }
        let token_generation = issued.generation;
        if matches!(session.state, SessionState::Requested(_)) {
            session.state = SessionState::Authorised(issued);
            self.counts.requested -= 1;
            self.counts.authorised += 1;
            self.changes.slots.insert(id.slot());
            self.changes.kernel.insert(id);
        }
        Ok(Authorisation {
            id,
            token_generation,
            device: terminal.path.device,
            expires_in: remaining(terminal, now),
        })
    }

    /// Lets time pass: expires registrations, and forgets those that have been over for a while; at
    /// most `limit` of them, so that one call doesn't take for ever. [`Sessions::next_deadline`] says
    /// whether there is more.
    pub fn expire(&mut self, now: UnixTime, limit: usize) {
        for _ in 0..limit {
            let Some(&(at, id)) = self.deadlines.first() else {
                return;
            };
            if at > now {
                return;
            }
            match self.terminals.get(&id).map(|entry| entry.record.state) {
                Some(OperativeState::First { .. }) => self.leave(now, id, Left::Expired),
                Some(OperativeState::Second { .. }) | None => self.forget(now, id),
            }
        }
    }

    /// When [`Sessions::expire`] has something to do next.
    #[must_use]
    pub fn next_deadline(&self) -> Option<UnixTime> {
        self.deadlines.first().map(|&(at, _)| at)
    }

    /// What has changed since this was last called.
    pub fn take_changes(&mut self) -> Changes {
        std::mem::take(&mut self.changes)
    }

    /// The terminal, if it is in the first operative state. One whose time is over isn't, whether or
    /// not that has been noticed yet.
    fn provisioned(
        &self,
        now: UnixTime,
        id: RegistrationId,
    ) -> Result<&TerminalEntry, DeviceRefusal> {
        let entry = self
            .terminals
            .get(&id)
            .ok_or(DeviceRefusal::UnknownRegistration)?;
        match entry.record.state {
            OperativeState::First { expires } if expires > now => Ok(entry),
            OperativeState::First { .. } => Err(DeviceRefusal::SecondState(Left::Expired)),
            OperativeState::Second { cause, .. } => Err(DeviceRefusal::SecondState(cause)),
        }
    }

    fn provisioned_at(
        &self,
        now: UnixTime,
        id: RegistrationId,
        from: &Path,
    ) -> Result<&TerminalEntry, DeviceRefusal> {
        let entry = self.provisioned(now, id)?;
        if entry.record.path.is_from_same_address(from) {
            Ok(entry)
        } else {
            Err(DeviceRefusal::OtherAddress)
        }
    }

    fn prolong(
        &mut self,
        now: UnixTime,
        id: RegistrationId,
        path: Path,
        lifetime: Duration,
    ) -> Registration {
        let expires = now.saturating_add(lifetime);
        if let Some(entry) = self.terminals.get_mut(&id) {
            self.deadlines.remove(&(deadline(entry.record.state), id));
            self.deadlines.insert((expires, id));
            entry.record.path = path;
            entry.record.lifetime = lifetime;
            entry.record.state = OperativeState::First { expires };
            self.changes.terminals.insert(id);
            for &session in entry.sessions.values() {
                if self
                    .slots
                    .get(session)
                    .is_some_and(|session| matches!(session.state, SessionState::Authorised(_)))
                {
                    self.changes.kernel.insert(session);
                }
            }
        }
        Registration { id, lifetime }
    }

    fn leave(&mut self, now: UnixTime, id: RegistrationId, cause: Left) {
        let Some(entry) = self.terminals.get_mut(&id) else {
            return;
        };
        self.deadlines.remove(&(deadline(entry.record.state), id));
        entry.record.state = OperativeState::Second { since: now, cause };
        self.deadlines.insert((deadline(entry.record.state), id));
        self.changes.terminals.insert(id);
        for session in entry.sessions.values().copied().collect::<Vec<_>>() {
            self.end(now, session, cause.into());
        }
    }

    fn forget(&mut self, now: UnixTime, id: RegistrationId) {
        self.leave(now, id, Left::Expired);
        if let Some(entry) = self.terminals.remove(&id) {
            self.deadlines.remove(&(deadline(entry.record.state), id));
            self.endpoints.remove(&entry.record.endpoint);
            self.changes.terminals.insert(id);
        }
    }

    /// Ends a session that isn't over.
    fn end(&mut self, now: UnixTime, id: SessionId, cause: EndCause) {
        let Some(session) = self.slots.get_mut(id) else {
            return;
        };
        match session.state {
            SessionState::Requested(_) => self.counts.requested -= 1,
            SessionState::Authorised(_) => {
                self.counts.authorised -= 1;
                self.changes.kernel.insert(id);
            }
            SessionState::Ended { .. } => return,
        }
        session.state = SessionState::Ended { at: now, cause };
        if let Some(app) = self.apps.get_mut(&session.app) {
            app.sessions.remove(&id);
        }
        if let Some(terminal) = self.terminals.get_mut(&session.terminal) {
            terminal
                .sessions
                .remove(&(session.app.clone(), session.instance.clone()));
        }
        self.slots.free(id.slot());
        self.changes.slots.insert(id.slot());
    }
}

/// When a terminal leaves its state.
fn deadline(state: OperativeState) -> UnixTime {
    match state {
        OperativeState::First { expires } => expires,
        OperativeState::Second { since, .. } => since.saturating_add(SECOND_STATE_KEPT),
    }
}

/// From `now` until a terminal leaves the first operative state; zero if it has left it.
pub(crate) fn remaining(terminal: &Terminal, now: UnixTime) -> Duration {
    match terminal.state {
        OperativeState::First { expires } => expires.saturating_since(now),
        OperativeState::Second { .. } => Duration::ZERO,
    }
}
