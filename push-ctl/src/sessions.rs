//! The lifecycle of terminals and their sessions, as a state machine.
//!
//! It knows no socket, no clock, no map and no file: what time it is and what is random comes in
//! with each operation. An operation answers or refuses with a cause, and notes what it has changed;
//! [`Sessions::take_changes`] says what is to be brought to the store and to the data plane, what devices
//! are to be told, and what has happened.
//!
//! ```text
//! terminal   register ──> first operative state ──> second operative state ──> forgotten
//!                           │ refresh, move   ▲       deregistered, expired, address taken
//!                           │          resume │ suspend
//!                           │                 └──>  suspended, until the operator says otherwise
//! session                   └─ request ──> requested ── validate ──> authorised ──> ended
//!                                                          rotating ◄──┘ another token
//! ```
//!
//! A session lives as long as its terminal is in the first operative state, unless it is ended before.
//! While its token is rotated, two generations of it are valid for a while.

mod answers;
mod apps;
mod attempts;
mod devices;
mod limits;
mod news;
mod notices;
mod operator;
mod pieces;
mod queries;
mod rates;
pub mod records;
mod restore;
mod slots;
#[cfg(test)]
mod tests;
mod transfer;

pub use answers::{
    Authorisation, Counts, DeviceRefusal, Grant, OperatorRefusal, Population, Registration,
    SessionRequest, ValidationRefusal,
};
pub use news::News;
pub use notices::{Notice, NoticeKind};
pub use queries::Authorised;
pub use rates::{RateShare, TriggerRate};
pub use restore::RestoreError;
pub use transfer::{Fit, Misfit, Moved};

use attempts::Attempts;
use pieces::{LiveSessions, Terminals};
use push_common::replay::WORDS;
use push_common::wire::SessionId;
use records::{
    App, AppName, CredentialId, EndCause, EndpointName, Left, OperativeState, Path, RealmName,
    RegistrationId, Session, SessionState, Terminal, UnixTime,
};
use slots::Slots;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
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
    /// Sessions that aren't over that a terminal may have.
    pub sessions_per_terminal: u32,
    /// What the authorised sessions of a terminal may have together, if that is limited.
    pub triggers_per_second_per_terminal: Option<u32>,
    /// How long a token is valid after the next one was validated.
    pub rotation_overlap: Duration,
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
    /// What devices are to be told once all that is done.
    pub notices: Vec<Notice>,
    /// What has happened.
    pub news: Vec<News>,
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
    sessions: LiveSessions,
}

struct AppEntry {
    record: App,
    /// The sessions that aren't over.
    sessions: BTreeSet<SessionId>,
    /// How many of them are authorised.
    authorised: usize,
}

/// Whose time has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    Terminal(RegistrationId),
    Session(SessionId),
}

/// All terminals, sessions and applications.
pub struct Sessions {
    limits: Limits,
    // Trees, for all that there may be a million of: a table that has to grow does so at once.
    terminals: Terminals,
    endpoints: BTreeMap<EndpointName, RegistrationId>,
    apps: BTreeMap<AppName, AppEntry>,
    /// Whose policy is in which slot.
    policies: BTreeMap<NonZeroU16, AppName>,
    /// Whose each credential is.
    credentials: HashMap<CredentialId, AppName>,
    /// Who is where: terminals in the first operative state.
    addresses: BTreeMap<(Option<RealmName>, IpAddr), RegistrationId>,
    /// How many are in each realm, and outside of all; none where there is nobody.
    populations: BTreeMap<Option<RealmName>, Population>,
    slots: Slots,
    /// Applications all of whose sessions are to end.
    endings: BTreeSet<AppName>,
    /// When each terminal leaves its state, and each session its own, unless something happens before.
    deadlines: BTreeSet<(UnixTime, Due)>,
    attempts: Attempts,
    counts: Counts,
    changes: Changes,
}

impl Sessions {
    /// Lets time pass: goes on ending the sessions of applications, expires registrations and tokens, and forgets what has been over for a while; at
    /// most `limit` of that, so that one call doesn't take for ever. [`Sessions::next_deadline`] says
    /// whether there is more.
    pub fn expire(&mut self, now: UnixTime, limit: usize) {
        for _ in self.end_some(now, limit)..limit {
            let Some(&(at, due)) = self.deadlines.first() else {
                return;
            };
            if at > now {
                return;
            }
            match due {
                Due::Session(id) => self.session_is_due(now, id),
                Due::Terminal(id) => {
                    match self.terminals.get(&id).map(|entry| entry.record.state) {
                        Some(OperativeState::First { .. }) => self.leave(now, id, Left::Expired),
                        Some(OperativeState::Second { .. } | OperativeState::Suspended { .. })
                        | None => {
                            self.forget(now, id);
                        }
                    }
                }
            }
        }
    }

    /// When [`Sessions::expire`] has something to do next.
    #[must_use]
    pub fn next_deadline(&self) -> Option<UnixTime> {
        if self.endings.is_empty() {
            self.deadlines.first().map(|&(at, _)| at)
        } else {
            Some(UnixTime::from_millis(0))
        }
    }

    /// How many records have changed since changes were last taken, and how much has happened, together.
    #[must_use]
    pub fn changes_waiting(&self) -> usize {
        let changes = &self.changes;
        changes.terminals.len() + changes.slots.len() + changes.news.len()
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
            OperativeState::Suspended { .. } => Err(DeviceRefusal::Suspended),
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

    /// That a session which isn't over is of this terminal.
    fn own_session(&self, terminal: RegistrationId, id: SessionId) -> Result<(), DeviceRefusal> {
        match self.slots.get(id) {
            Some(session) if session.terminal == terminal => match session.state {
                SessionState::Requested(_) | SessionState::Authorised(_) => Ok(()),
                SessionState::Ended { .. } => Err(DeviceRefusal::UnknownSession),
            },
            Some(_) | None => Err(DeviceRefusal::UnknownSession),
        }
    }

    /// The address is that of terminal `id` from now on. Another one that had it can't be reached there any more.
    fn claim(&mut self, now: UnixTime, id: RegistrationId, path: &Path) {
        let place = (path.realm.clone(), path.device);
        if let Some(before) = self.addresses.insert(place, id)
            && before != id
        {
            self.leave(now, before, Left::AddressTaken);
        }
    }

    /// The address is nobody's, if it was that of terminal `id`.
    fn vacate(&mut self, id: RegistrationId, path: &Path) {
        let place = (path.realm.clone(), path.device);
        if self.addresses.get(&place) == Some(&id) {
            self.addresses.remove(&place);
        }
    }

    fn prolong(
        &mut self,
        now: UnixTime,
        id: RegistrationId,
        path: Path,
        port: u16,
        lifetime: Duration,
    ) -> Registration {
        let expires = now.saturating_add(lifetime);
        let registration = Registration { id, lifetime };
        let Some(entry) = self.terminals.get(&id) else {
            return registration;
        };
        let before = entry.record.path.clone();
        let has_moved = !before.is_from_same_address(&path);
        self.vacate(id, &before);
        self.claim(now, id, &path);
        let Some(entry) = self.terminals.get_mut(&id) else {
            return registration;
        };
        let deadline_before = deadline(entry.record.state);
        if has_moved {
            self.changes.news.push(News::TerminalMoved {
                id,
                endpoint: entry.record.endpoint.clone(),
                address: path.device,
            });
        }
        let realm = path.realm.clone();
        entry.record.path = path;
        entry.record.port = port;
        entry.record.lifetime = lifetime;
        entry.record.state = OperativeState::First { expires };
        self.changes.terminals.insert(id);
        for session in entry.sessions.ids() {
            if self
                .slots
                .get(session)
                .is_some_and(|session| matches!(session.state, SessionState::Authorised(_)))
            {
                self.changes.kernel.insert(session);
            }
        }
        let sessions = entry.sessions.len();
        if before.realm != realm {
            self.depopulate(before.realm, 1, sessions);
            self.populate(realm, 1, sessions);
        }
        self.set_deadline(Due::Terminal(id), deadline_before, Some(expires));
        registration
    }

    fn leave(&mut self, now: UnixTime, id: RegistrationId, cause: Left) {
        if let Some(endpoint) = self.stop(
            now,
            id,
            OperativeState::Second { since: now, cause },
            cause.into(),
        ) {
            self.changes.news.push(News::TerminalLeft {
                id,
                endpoint,
                cause,
            });
        }
    }

    /// Takes a terminal out of the first operative state, for `cause` as far as its sessions are concerned.
    fn stop(
        &mut self,
        now: UnixTime,
        id: RegistrationId,
        state: OperativeState,
        cause: EndCause,
    ) -> Option<EndpointName> {
        let entry = self.terminals.get(&id)?;
        let path = entry.record.path.clone();
        for session in entry.sessions.ids().collect::<Vec<_>>() {
            self.end(now, session, cause);
        }
        self.vacate(id, &path);
        let entry = self.terminals.get_mut(&id)?;
        let before = deadline(entry.record.state);
        entry.record.state = state;
        self.set_deadline(Due::Terminal(id), before, deadline(state));
        self.changes.terminals.insert(id);
        self.terminals
            .get(&id)
            .map(|entry| entry.record.endpoint.clone())
    }

    fn forget(&mut self, now: UnixTime, id: RegistrationId) {
        let state = self.terminals.get(&id).map(|entry| entry.record.state);
        if let Some(OperativeState::First { .. }) = state {
            self.leave(now, id, Left::Expired);
        }
        if let Some(entry) = self.terminals.remove(&id) {
            self.set_deadline(Due::Terminal(id), deadline(entry.record.state), None);
            self.endpoints.remove(&entry.record.endpoint);
            self.depopulate(entry.record.path.realm, 1, entry.sessions.len());
            self.attempts.forget_terminal(id);
            self.changes.terminals.insert(id);
        }
    }

    /// What changes about a session by itself: a token before the current one stops being valid, or it
    /// is too late for another one.
    fn session_is_due(&mut self, now: UnixTime, id: SessionId) {
        let Some(SessionState::Authorised(tokens)) =
            self.slots.get_mut(id).map(|session| &mut session.state)
        else {
            return;
        };
        if tokens.rotate_by.is_some_and(|by| by <= now) {
            self.end(now, id, EndCause::NotRotated);
            return;
        }
        let before = tokens.deadline();
        tokens.previous.take_if(|previous| previous.until <= now);
        let after = tokens.deadline();
        self.set_deadline(Due::Session(id), before, after);
        self.changes.slots.insert(id.slot());
        self.changes.kernel.insert(id);
    }

    fn populate(&mut self, realm: Option<RealmName>, terminals: usize, sessions: usize) {
        let population = self.populations.entry(realm).or_default();
        population.terminals += terminals;
        population.sessions += sessions;
    }

    fn depopulate(&mut self, realm: Option<RealmName>, terminals: usize, sessions: usize) {
        if let Entry::Occupied(mut entry) = self.populations.entry(realm) {
            let population = entry.get_mut();
            population.terminals -= terminals;
            population.sessions -= sessions;
            if *population == Population::default() {
                entry.remove();
            }
        }
    }

    fn set_deadline(&mut self, due: Due, before: Option<UnixTime>, after: Option<UnixTime>) {
        if let Some(before) = before {
            self.deadlines.remove(&(before, due));
        }
        if let Some(after) = after {
            self.deadlines.insert((after, due));
        }
    }

    /// Tells the app of a session which isn't over, or just was not.
    fn notify_app(&mut self, session: &Session, kind: NoticeKind) {
        if let Some(entry) = self.terminals.get(&session.terminal) {
            let path = entry.record.path.clone();
            self.changes.notices.push(Notice {
                to: SocketAddr::new(path.device, session.port.get()),
                path,
                kind,
            });
        }
    }

    /// Notes the replay window that the data plane has for a session; whether that is another one than is known.
    pub fn note_window(&mut self, id: SessionId, window: &[u64; WORDS]) -> bool {
        let Some(session) = self.slots.get_mut(id) else {
            return false;
        };
        let known = session.window.as_deref().unwrap_or(&[0; WORDS]);
        if known == window {
            return false;
        }
        **session.window.get_or_insert_default() = *window;
        self.changes.slots.insert(id.slot());
        true
    }

    /// Tells the push client of a terminal.
    fn notify_terminal(&mut self, terminal: &Terminal, kind: NoticeKind) {
        self.changes.notices.push(Notice {
            to: SocketAddr::new(terminal.path.device, terminal.port),
            path: terminal.path.clone(),
            kind,
        });
    }

    /// Ends a session that isn't over.
    fn end(&mut self, now: UnixTime, id: SessionId, cause: EndCause) {
        let Some(session) = self.slots.get_mut(id) else {
            return;
        };
        let (before, was_authorised) = match &session.state {
            SessionState::Requested(_) => {
                self.counts.requested -= 1;
                (None, false)
            }
            SessionState::Authorised(tokens) => {
                self.counts.authorised -= 1;
                self.changes.kernel.insert(id);
                (tokens.deadline(), true)
            }
            SessionState::Ended { .. } => return,
        };
        session.state = SessionState::Ended { at: now, cause };
        let session = session.clone();
        self.set_deadline(Due::Session(id), before, None);
        if cause.is_news_to_app() {
            self.notify_app(&session, NoticeKind::Teardown { session: id, cause });
        }
        self.attempts.forget_session(id);
        if let Some(app) = self.apps.get_mut(&session.app) {
            app.sessions.remove(&id);
            app.authorised -= usize::from(was_authorised);
        }
        if let Some(terminal) = self.terminals.get_mut(&session.terminal) {
            terminal
                .sessions
                .remove(&(session.app.clone(), session.instance));
            let realm = terminal.record.path.realm.clone();
            self.depopulate(realm, 0, 1);
        }
        self.slots.free(id.slot());
        self.changes.slots.insert(id.slot());
        self.changes.news.push(News::SessionEnded {
            id,
            app: session.app,
            terminal: session.terminal,
            cause,
        });
    }
}

/// When a terminal leaves its state by itself.
fn deadline(state: OperativeState) -> Option<UnixTime> {
    match state {
        OperativeState::First { expires } => Some(expires),
        OperativeState::Second { since, .. } => Some(since.saturating_add(SECOND_STATE_KEPT)),
        OperativeState::Suspended { .. } => None,
    }
}

/// From `now` until a terminal leaves the first operative state; zero if it has left it.
pub(crate) fn remaining(terminal: &Terminal, now: UnixTime) -> Duration {
    match terminal.state {
        OperativeState::First { expires } => expires.saturating_since(now),
        OperativeState::Second { .. } | OperativeState::Suspended { .. } => Duration::ZERO,
    }
}
