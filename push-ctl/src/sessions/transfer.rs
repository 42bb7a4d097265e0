//! Terminals with their sessions, taken up from another gateway or from a copy: as at a start, but among others.

use super::records::{
    AppName, Availability, EndpointName, InstanceName, OperativeState, RegistrationId, Session,
    SessionState, Terminal, UnixTime,
};
use super::{Sessions, remaining};
use push_common::wire::SessionId;
use std::net::IpAddr;

/// Slots that are used for the first time at once, for one that is beyond them.
const FRESH_SLOTS: u32 = 1024;

/// A terminal and its sessions that aren't over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moved {
    /// In the first operative state, or suspended.
    pub terminal: Terminal,
    /// Requested or authorised; none if it is suspended.
    pub sessions: Vec<Session>,
}

/// What becomes of a terminal, or of many, and of their sessions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fit {
    /// Terminals that come to be known.
    pub terminals: usize,
    /// Sessions that go on here.
    pub sessions: usize,
    /// Terminals that are known already.
    pub terminals_known: usize,
    /// Sessions that are known already, exactly as they are.
    pub sessions_known: usize,
    /// Sessions whose time is over, as is that of their terminal or of their token.
    pub sessions_expired: usize,
}

impl std::ops::AddAssign for Fit {
    fn add_assign(&mut self, other: Self) {
        self.terminals += other.terminals;
        self.sessions += other.sessions;
        self.terminals_known += other.terminals_known;
        self.sessions_known += other.sessions_known;
        self.sessions_expired += other.sessions_expired;
    }
}

/// Why a terminal with its sessions can't be taken up.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Misfit {
    /// A session is of an application that isn't known.
    #[error("there is no application {0}: `push-ctl app add {0}`, or export with --app")]
    UnknownApp(AppName),
    /// The server of the application is out of service, which ends its sessions.
    #[error(
        "the server of application {0} is out of service: import when it is back, `push-ctl app show {0}` tells"
    )]
    AppFails(AppName),
    /// A session is beyond the end of the table.
    #[error("session {id} takes {} slots, of which there are {slots}: raise sessions.slots and start anew", u64::from(id.slot()) + 1)]
    BeyondTable {
        /// The session.
        id: SessionId,
        /// Slots that there are.
        slots: u32,
    },
    /// There are as many terminals as there may be.
    #[error(
        "there is no room for more than {slots} terminals: raise sessions.slots and start anew"
    )]
    TerminalsFull {
        /// The most there can be.
        slots: u32,
    },
    /// Another session is in the slot.
    #[error(
        "the slot of session {id} is that of session {by}: `push-ctl session revoke {by}`, or import where that one is not"
    )]
    SlotTaken {
        /// The session.
        id: SessionId,
        /// The other one.
        by: SessionId,
    },
    /// The session is known, but with another token, port or tunnel, or of another terminal.
    #[error(
        "session {0} is here already and has changed since: `push-ctl session revoke {0}` first, if the one of the file is to be had"
    )]
    SessionChanged(SessionId),
    /// The terminal has got another session for the same instance of the application.
    #[error(
        "session {by} has taken the place of session {id}: `push-ctl session revoke {by}` first, if the one of the file is to be had"
    )]
    InstanceTaken {
        /// The session.
        id: SessionId,
        /// The other one.
        by: SessionId,
        /// Of which instance.
        instance: InstanceName,
    },
    /// The endpoint name is another terminal's.
    #[error(
        "endpoint {endpoint} has registered here, as terminal {by}: `push-ctl terminal remove {by}` first, if the one of the file is to be had"
    )]
    EndpointTaken {
        /// The endpoint name.
        endpoint: EndpointName,
        /// The other terminal.
        by: RegistrationId,
    },
    /// The address is another terminal's.
    #[error(
        "{address} is the address of terminal {by}: `push-ctl terminal remove {by}` first, if the one of the file is to be had"
    )]
    AddressTaken {
        /// The address.
        address: IpAddr,
        /// The other terminal.
        by: RegistrationId,
    },
    /// The registration id is that of another endpoint.
    #[error("terminal {0} is another endpoint's here: `push-ctl terminal remove {0}` first")]
    OtherEndpoint(RegistrationId),
    /// The operator has suspended the terminal.
    #[error("terminal {0} is suspended here: `push-ctl terminal resume {0}` first")]
    Suspended(RegistrationId),
}

/// What is to be done about a terminal and some of its sessions.
struct Plan {
    fit: Fit,
    /// Indices of the sessions that are to be added.
    add: Vec<usize>,
}

impl Sessions {
    /// What would become of a terminal and its sessions, were they taken up now.
    ///
    /// # Errors
    ///
    /// All that is in the way.
    pub fn fit(&self, now: UnixTime, moved: &Moved) -> Result<Fit, Vec<Misfit>> {
        self.plan(now, moved).map(|plan| plan.fit)
    }

    /// Uses some of the slots for the first time that it takes to have this session, where devices would get
    /// to them only later; whether it is all of them, or there is no such slot.
    pub fn make_room(&mut self, id: SessionId) -> bool {
        id.slot() >= self.limits.slots || self.slots.use_up_to(id.slot(), FRESH_SLOTS)
    }

    /// Takes up a terminal and its sessions, which go on as if they had always been here. There is room for
    /// them, see [`Sessions::make_room`].
    ///
    /// # Errors
    ///
    /// All that is in the way; nothing is changed then.
    pub fn take_up(&mut self, now: UnixTime, moved: Moved) -> Result<Fit, Vec<Misfit>> {
        let Plan { fit, add } = self.plan(now, &moved)?;
        let Moved { terminal, sessions } = moved;
        if fit.terminals > 0 {
            self.take_up_terminal(now, terminal);
        }
        let mut add = add.into_iter().peekable();
        for (index, mut session) in sessions.into_iter().enumerate() {
            if add.next_if_eq(&index).is_none() {
                continue;
            }
            drop_old_token(&mut session, now);
            let id = session.id;
            let is_authorised = matches!(session.state, SessionState::Authorised(_));
            self.slots.put(session);
            // What it refers to was looked at.
            let _entered = self.enter_session(id);
            self.changes.slots.insert(id.slot());
            if is_authorised {
                self.changes.kernel.insert(id);
            }
        }
        Ok(fit)
    }

    fn take_up_terminal(&mut self, now: UnixTime, terminal: Terminal) {
        let id = terminal.id;
        self.forget(now, id);
        if let Some(&other) = self.endpoints.get(&terminal.endpoint) {
            self.forget(now, other);
        }
        if let OperativeState::First { .. } = terminal.state {
            self.claim(now, id, &terminal.path);
        }
        self.enter_terminal(terminal);
        self.changes.terminals.insert(id);
    }

    fn plan(&self, now: UnixTime, moved: &Moved) -> Result<Plan, Vec<Misfit>> {
        let Moved { terminal, sessions } = moved;
        let mut fit = Fit::default();
        let mut add = Vec::new();
        let has_expired = match terminal.state {
            OperativeState::First { expires } => expires <= now,
            OperativeState::Second { .. } => true,
            // Until the operator says otherwise.
            OperativeState::Suspended { .. } => false,
        };
        if has_expired {
            fit.sessions_expired = sessions.len();
            return Ok(Plan { fit, add });
        }
        let mut misfits = Vec::new();
        let is_known = match self.is_known(now, terminal) {
            Ok(is_known) => is_known,
            Err(misfit) => {
                misfits.push(misfit);
                false
            }
        };
        if is_known {
            fit.terminals_known = 1;
        } else {
            fit.terminals = 1;
            self.has_place(now, terminal, &mut misfits);
        }
        for (index, session) in sessions.iter().enumerate() {
            match self.judge(now, session) {
                Ok(Standing::Known) => fit.sessions_known += 1,
                Ok(Standing::Expired) => fit.sessions_expired += 1,
                Ok(Standing::New) => {
                    fit.sessions += 1;
                    add.push(index);
                }
                Err(misfit) => misfits.push(misfit),
            }
        }
        let here = self.terminals.get(&terminal.id).filter(|_| is_known);
        if let Some(here) = here
            && let OperativeState::Suspended { .. } = here.record.state
            && fit.sessions > 0
        {
            misfits.push(Misfit::Suspended(terminal.id));
        }
        if misfits.is_empty() {
            Ok(Plan { fit, add })
        } else {
            Err(misfits)
        }
    }

    /// Whether the terminal is known here, and hasn't left.
    fn is_known(&self, now: UnixTime, terminal: &Terminal) -> Result<bool, Misfit> {
        match self.terminals.get(&terminal.id) {
            Some(here) if !is_there(&here.record, now) => Ok(false),
            Some(here) if here.record.endpoint == terminal.endpoint => Ok(true),
            Some(_) => Err(Misfit::OtherEndpoint(terminal.id)),
            None => Ok(false),
        }
    }

    /// That endpoint name and address of a terminal are free, and there is room for it.
    fn has_place(&self, now: UnixTime, terminal: &Terminal, misfits: &mut Vec<Misfit>) {
        let other = |id: Option<&RegistrationId>| {
            let by = *id.filter(|&&id| id != terminal.id)?;
            let here = self.terminals.get(&by)?;
            is_there(&here.record, now).then_some(by)
        };
        if let Some(by) = other(self.endpoints.get(&terminal.endpoint)) {
            misfits.push(Misfit::EndpointTaken {
                endpoint: terminal.endpoint.clone(),
                by,
            });
        }
        let place = (terminal.path.realm.clone(), terminal.path.device);
        if let OperativeState::First { .. } = terminal.state
            && let Some(by) = other(self.addresses.get(&place))
        {
            misfits.push(Misfit::AddressTaken {
                address: terminal.path.device,
                by,
            });
        }
        let slots = self.limits.slots;
        if self.terminals.len() >= slots as usize {
            misfits.push(Misfit::TerminalsFull { slots });
        }
    }

    fn judge(&self, now: UnixTime, session: &Session) -> Result<Standing, Misfit> {
        let id = session.id;
        if let SessionState::Authorised(tokens) = &session.state
            && tokens.rotate_by.is_some_and(|by| by <= now)
        {
            return Ok(Standing::Expired);
        }
        let app = self.apps.get(&session.app);
        let Some(app) = app.filter(|entry| !entry.record.removed) else {
            return Err(Misfit::UnknownApp(session.app.clone()));
        };
        let has_failed = match app.record.availability {
            Availability::Available => self.endings.contains(&session.app),
            Availability::Failed { .. } => true,
        };
        if has_failed {
            return Err(Misfit::AppFails(session.app.clone()));
        }
        let slots = self.limits.slots;
        if id.slot() >= slots {
            return Err(Misfit::BeyondTable { id, slots });
        }
        if !self.slots.is_free(id.slot()) {
            let Some(here) = self.slots.in_slot(id.slot()) else {
                return Ok(Standing::New);
            };
            return if here.id != id {
                Err(Misfit::SlotTaken { id, by: here.id })
            } else if is_same(here, session, now) {
                Ok(Standing::Known)
            } else {
                Err(Misfit::SessionChanged(id))
            };
        }
        let instance = (session.app.clone(), session.instance.clone());
        let here = self.terminals.get(&session.terminal);
        match here.and_then(|terminal| terminal.sessions.get(&instance)) {
            Some(by) => Err(Misfit::InstanceTaken {
                id,
                by,
                instance: instance.1,
            }),
            None => Ok(Standing::New),
        }
    }
}

enum Standing {
    New,
    Known,
    Expired,
}

/// Whether a terminal keeps its name and address to itself: it is in the first operative state, or suspended.
fn is_there(terminal: &Terminal, now: UnixTime) -> bool {
    match terminal.state {
        OperativeState::First { .. } => !remaining(terminal, now).is_zero(),
        OperativeState::Suspended { .. } => true,
        OperativeState::Second { .. } => false,
    }
}

/// Whether both are the same session, and equally far. Where it began doesn't matter.
fn is_same(here: &Session, session: &Session, now: UnixTime) -> bool {
    let bare = |session: &Session| {
        let mut session = session.clone();
        drop_old_token(&mut session, now);
        session.window = None;
        session
    };
    bare(here) == bare(session)
}

/// Forgets the token before the current one if it isn't valid any more.
fn drop_old_token(session: &mut Session, now: UnixTime) {
    if let SessionState::Authorised(tokens) = &mut session.state {
        tokens.previous.take_if(|previous| previous.until <= now);
    }
}
