//! What is to be delivered for, worked out from nothing but what was granted.
//!
//! It knows no slots, tokens, deadlines or records. Each answer is first checked to be one that may be
//! given, then taken for a fact.

use super::*;
use crate::sessions::records::{AppFailure, InstanceName};

#[derive(Debug)]
struct NaiveTerminal {
    endpoint: EndpointName,
    path: Path,
    /// When it expires; `None` while it is suspended.
    expires: Option<UnixTime>,
    /// When it would have expired, had it not been suspended.
    would_expire: UnixTime,
}

#[derive(Debug)]
struct NaiveSession {
    terminal: RegistrationId,
    app: AppName,
    instance: InstanceName,
    authorised: bool,
    /// The latest token that was validated, by its generation.
    generation: u8,
    rotate_by: Option<UnixTime>,
}

#[derive(Debug, Default)]
struct NaiveApp {
    is_failed: bool,
    quota: Option<u32>,
    /// Triggers per second of each session; none if that isn't limited.
    rate: Option<u32>,
    rate_quota: Option<u32>,
}

/// Terminals that may have sessions or are suspended, sessions that aren't over, applications.
#[derive(Debug, Default)]
pub(super) struct Naive {
    terminals: BTreeMap<RegistrationId, NaiveTerminal>,
    sessions: BTreeMap<SessionId, NaiveSession>,
    apps: BTreeMap<AppName, NaiveApp>,
    rate_quota_of_terminal: Option<u32>,
}

impl Naive {
    pub(super) fn new(limits: &Limits) -> Self {
        Self {
            rate_quota_of_terminal: limits.triggers_per_second_per_terminal,
            ..Self::default()
        }
    }

    /// Which of the quotas of triggers per second there would be no room in for this session, if any.
    pub(super) fn rate_that_is_exceeded(&self, id: SessionId) -> Option<RateShare> {
        let session = &self.sessions[&id];
        let app = &self.apps[&session.app];
        let sum = |is_one: &dyn Fn(&NaiveSession) -> bool| {
            let with_it = self.sessions.iter();
            let with_it =
                with_it.filter(|&(&other, of)| (of.authorised || other == id) && is_one(of));
            let mut rates = with_it.map(|(_, of)| self.apps[&of.app].rate);
            rates.try_fold(0, |sum, rate| Some(sum + rate?))
        };
        let of_app = sum(&|other| other.app == session.app);
        let of_terminal = sum(&|other| other.terminal == session.terminal);
        let is_beyond = |quota: Option<u32>, sum: Option<u32>| {
            quota.is_some_and(|quota| sum.is_none_or(|sum| sum > quota))
        };
        if is_beyond(app.rate_quota, of_app) {
            return Some(RateShare::App);
        }
        is_beyond(self.rate_quota_of_terminal, of_terminal).then_some(RateShare::Terminal)
    }
    /// The sessions to deliver for.
    pub(super) fn delivered_for(&self) -> BTreeSet<SessionId> {
        let authorised = self
            .sessions
            .iter()
            .filter(|(_, session)| session.authorised);
        authorised.map(|(&id, _)| id).collect()
    }

    fn leave(&mut self, id: RegistrationId) {
        self.terminals.remove(&id);
        self.sessions.retain(|_, session| session.terminal != id);
    }

    /// Nobody else is at this address who could have sessions.
    fn claim(&mut self, id: RegistrationId, path: &Path) {
        let others = self.terminals.iter().filter(|&(&other, terminal)| {
            other != id && terminal.expires.is_some() && terminal.path.is_from_same_address(path)
        });
        for other in others.map(|(&other, _)| other).collect::<Vec<_>>() {
            self.leave(other);
        }
    }

    fn is_at(&self, id: RegistrationId, path: &Path) -> bool {
        self.terminals.get(&id).is_some_and(|terminal| {
            terminal.expires.is_some() && terminal.path.is_from_same_address(path)
        })
    }

    pub(super) fn registered(
        &mut self,
        now: UnixTime,
        endpoint: &EndpointName,
        path: &Path,
        granted: Registration,
    ) {
        let same = |terminal: &NaiveTerminal| terminal.endpoint == *endpoint;
        if let Some((&id, terminal)) = self.terminals.iter().find(|(_, other)| same(other)) {
            assert!(terminal.expires.is_some(), "{endpoint} is suspended");
            assert!(
                terminal.path.is_from_same_address(path),
                "{endpoint} is elsewhere"
            );
            assert_eq!(id, granted.id);
        }
        self.claim(granted.id, path);
        let expires = now.saturating_add(granted.lifetime);
        let terminal = NaiveTerminal {
            endpoint: endpoint.clone(),
            path: path.clone(),
            expires: Some(expires),
            would_expire: expires,
        };
        self.terminals.insert(granted.id, terminal);
    }

    pub(super) fn refreshed(
        &mut self,
        now: UnixTime,
        path: &Path,
        proven: bool,
        granted: Registration,
    ) {
        assert!(proven || self.is_at(granted.id, path), "moved unproven");
        self.claim(granted.id, path);
        let terminal = self
            .terminals
            .get_mut(&granted.id)
            .expect("nobody has left");
        assert!(terminal.expires.is_some(), "refreshed although suspended");
        terminal.path = path.clone();
        terminal.would_expire = now.saturating_add(granted.lifetime);
        terminal.expires = Some(terminal.would_expire);
    }

    pub(super) fn deregistered(&mut self, id: RegistrationId, path: &Path) {
        assert!(self.is_at(id, path), "deregistered by somebody else");
        self.leave(id);
    }

    pub(super) fn requested(
        &mut self,
        terminal: RegistrationId,
        path: &Path,
        request: &SessionRequest,
        granted: Grant,
    ) {
        assert!(self.is_at(terminal, path), "granted to somebody else");
        let app = &self.apps[&request.app];
        assert!(!app.is_failed, "granted for an application out of service");
        self.sessions.retain(|_, session| {
            (session.terminal, &session.app, &session.instance)
                != (terminal, &request.app, &request.instance)
        });
        let of_app = self
            .sessions
            .values()
            .filter(|session| session.app == request.app);
        let live = u32::try_from(of_app.count()).unwrap();
        assert!(app.quota.is_none_or(|quota| live < quota), "beyond quota");
        let session = NaiveSession {
            terminal,
            app: request.app.clone(),
            instance: request.instance.clone(),
            authorised: false,
            generation: granted.token_generation,
            rotate_by: None,
        };
        let before = self.sessions.insert(granted.id, session);
        assert!(before.is_none(), "{} was granted twice", granted.id);
    }

    pub(super) fn has_new_token(&self, terminal: RegistrationId, path: &Path, id: SessionId) {
        assert!(self.is_at(terminal, path), "granted to somebody else");
        assert_eq!(self.sessions[&id].terminal, terminal);
    }

    pub(super) fn released(&mut self, terminal: RegistrationId, path: &Path, id: SessionId) {
        assert!(self.is_at(terminal, path), "released by somebody else");
        let session = self.sessions.remove(&id);
        assert_eq!(session.expect("it was live").terminal, terminal);
    }

    pub(super) fn validated(&mut self, app: &str, granted: Authorisation) {
        if !self.sessions[&granted.id].authorised {
            assert_eq!(self.rate_that_is_exceeded(granted.id), None);
        }
        let session = self.sessions.get_mut(&granted.id).expect("it is live");
        assert_eq!(session.app.as_str(), app);
        // Whichever token is newer than all before ends what the operator waits for.
        let is_newer = granted.token_generation.wrapping_sub(session.generation) == 1;
        if session.authorised && is_newer {
            session.rotate_by = None;
        }
        if !session.authorised || is_newer {
            session.generation = granted.token_generation;
        }
        session.authorised = true;
    }

    pub(super) fn is_to_rotate(&mut self, id: SessionId, by: Option<UnixTime>) {
        let session = self.sessions.get_mut(&id).expect("it is live");
        assert!(session.authorised);
        session.rotate_by = by.or(session.rotate_by);
    }

    pub(super) fn ended(&mut self, id: SessionId) {
        assert!(self.sessions.remove(&id).is_some(), "{id} has ended before");
    }

    /// It may have left, or never have come.
    pub(super) fn suspended(&mut self, now: UnixTime, terminal: &Terminal) {
        self.sessions
            .retain(|_, session| session.terminal != terminal.id);
        let same = self
            .terminals
            .values()
            .filter(|other| other.endpoint == terminal.endpoint);
        let is_known = self.terminals.contains_key(&terminal.id);
        assert_eq!(same.count(), usize::from(is_known), "two of one name");
        let entry = self.terminals.entry(terminal.id).or_insert(NaiveTerminal {
            endpoint: terminal.endpoint.clone(),
            path: terminal.path.clone(),
            expires: Some(now),
            would_expire: now,
        });
        assert!(entry.expires.take().is_some(), "suspended twice");
    }

    pub(super) fn resumed(&mut self, now: UnixTime, id: RegistrationId, is_first: bool) {
        let terminal = &self.terminals[&id];
        assert!(terminal.expires.is_none(), "was not suspended");
        let path = terminal.path.clone();
        let is_taken = self
            .terminals
            .values()
            .any(|other| other.expires.is_some() && other.path.is_from_same_address(&path));
        let may = terminal.would_expire > now && !is_taken;
        assert_eq!(is_first, may);
        if is_first {
            let terminal = self.terminals.get_mut(&id).expect("it is there");
            terminal.expires = Some(terminal.would_expire);
        } else {
            self.leave(id);
        }
    }

    pub(super) fn removed(&mut self, id: RegistrationId) {
        self.leave(id);
    }

    pub(super) fn app_added(&mut self, name: &AppName, rate: Option<u32>) {
        let app = NaiveApp {
            rate,
            ..NaiveApp::default()
        };
        assert!(self.apps.insert(name.clone(), app).is_none());
    }

    pub(super) fn has_policy(&mut self, name: &AppName, rate: Option<u32>) {
        self.apps.get_mut(name).expect("it is there").rate = rate;
    }

    pub(super) fn app_removed(&mut self, name: &AppName) {
        assert!(self.apps.remove(name).is_some());
        self.sessions.retain(|_, session| session.app != *name);
    }

    pub(super) fn app_failed(&mut self, name: &AppName, cause: AppFailure) {
        self.apps.get_mut(name).expect("it is there").is_failed |= cause != AppFailure::Inactive;
        self.sessions.retain(|_, session| session.app != *name);
    }

    pub(super) fn app_recovered(&mut self, name: &AppName) {
        self.apps.get_mut(name).expect("it is there").is_failed = false;
    }

    pub(super) fn has_quotas(&mut self, name: &AppName, quotas: Quotas) {
        let app = self.apps.get_mut(name).expect("it is there");
        (app.quota, app.rate_quota) = (quotas.sessions, quotas.triggers_per_second);
    }

    pub(super) fn time_has_passed(&mut self, now: UnixTime) {
        let over = self
            .terminals
            .iter()
            .filter(|(_, terminal)| terminal.expires.is_some_and(|expires| expires <= now));
        for id in over.map(|(&id, _)| id).collect::<Vec<_>>() {
            self.leave(id);
        }
        self.sessions
            .retain(|_, session| session.rotate_by.is_none_or(|by| by > now));
    }
}
