//! What others get to see.

use super::records::{
    App, AppName, Credential, CredentialId, EndpointName, OperativeState, RealmName,
    RegistrationId, Session, SessionState, Terminal, Tokens, UnixTime,
};
use super::{Counts, Population, Sessions};
use push_common::wire::SessionId;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::ops::{Bound, RangeInclusive};
use std::time::Duration;

/// A session that the data plane is to deliver for, and what belongs to it.
#[derive(Clone, Copy, Debug)]
pub struct Authorised<'a> {
    /// The session.
    pub session: &'a Session,
    /// Its tokens.
    pub tokens: &'a Tokens,
    /// Its terminal.
    pub terminal: &'a Terminal,
    /// Its application.
    pub app: &'a App,
}

impl Sessions {
    /// A session that the data plane is to deliver for, and what belongs to it; `None` if it is not to.
    #[must_use]
    pub fn authorised(&self, id: SessionId) -> Option<Authorised<'_>> {
        let session = self.slots.get(id)?;
        match &session.state {
            SessionState::Authorised(tokens) => Some(Authorised {
                session,
                tokens,
                terminal: self.terminal_of(session)?,
                app: self.app(&session.app)?,
            }),
            SessionState::Requested(_) | SessionState::Ended { .. } => None,
        }
    }

    /// Whether the data plane is to deliver for a session. To find out what belongs to it takes longer.
    #[must_use]
    pub fn is_authorised(&self, id: SessionId) -> bool {
        let state = self.slots.get(id).map(|session| &session.state);
        matches!(state, Some(SessionState::Authorised(_)))
    }

    /// The terminal of this registration.
    #[must_use]
    pub fn terminal(&self, id: RegistrationId) -> Option<&Terminal> {
        self.terminals.get(&id).map(|entry| &entry.record)
    }

    /// The terminal of this registration id, or else the one that calls itself like this.
    #[must_use]
    pub fn terminal_called(&self, name: &str) -> Option<RegistrationId> {
        let by_id = name.parse().ok();
        by_id
            .filter(|id| self.terminals.contains_key(id))
            .or_else(|| self.endpoints.get(&name.parse().ok()?).copied())
    }

    /// How many sessions of a registration aren't over.
    #[must_use]
    pub fn sessions_of_terminal(&self, id: RegistrationId) -> usize {
        self.terminals
            .get(&id)
            .map_or(0, |entry| entry.sessions.len())
    }

    /// All terminals, in order. There may be a million: nobody who is to be answered soon goes through them.
    pub fn terminals(&self) -> impl ExactSizeIterator<Item = &Terminal> {
        self.terminals.values().map(|entry| &entry.record)
    }

    /// Terminals in order: all, or those after one, which need not be known any more.
    pub fn terminals_after(
        &self,
        after: Option<RegistrationId>,
    ) -> impl Iterator<Item = &Terminal> {
        self.terminals.after(after).map(|entry| &entry.record)
    }

    /// The terminal of a session, also if that is over, if it is still known. It takes no search.
    #[must_use]
    pub fn terminal_of(&self, session: &Session) -> Option<&Terminal> {
        let place = self.slots.terminal_place(session.id.slot());
        let there = place.and_then(|place| self.terminals.at(place));
        there
            .map(|entry| &entry.record)
            .filter(|terminal| terminal.id == session.terminal)
            // One that has gone may have come back, elsewhere.
            .or_else(|| self.terminal(session.terminal))
    }

    /// Places of terminals that were ever used: those below this one.
    #[must_use]
    pub fn terminal_places_used(&self) -> u32 {
        self.terminals.places_used()
    }

    /// The terminal at a place, where it stays for as long as it is known, and how many sessions of it aren't over.
    #[must_use]
    pub fn terminal_at(&self, place: u32) -> Option<(&Terminal, usize)> {
        let entry = self.terminals.at(place)?;
        Some((&entry.record, entry.sessions.len()))
    }

    /// The terminal that calls itself so.
    #[must_use]
    pub fn terminal_of_endpoint(&self, endpoint: &EndpointName) -> Option<RegistrationId> {
        self.endpoints.get(endpoint).copied()
    }

    /// The terminals in the first operative state with addresses of this range, in one realm, or anywhere.
    pub fn terminals_at(
        &self,
        realm: Option<&RealmName>,
        addresses: RangeInclusive<IpAddr>,
    ) -> impl Iterator<Item = RegistrationId> {
        let (first, last) = addresses.into_inner();
        let realms = self.populations.keys();
        let realms = realms.filter(move |here| realm.is_none() || here.as_ref() == realm);
        realms.flat_map(move |realm| {
            let range = (realm.clone(), first)..=(realm.clone(), last);
            self.addresses.range(range).map(|(_, &id)| id)
        })
    }

    /// The sessions of a terminal that aren't over.
    pub fn sessions_on_terminal(&self, id: RegistrationId) -> impl Iterator<Item = &Session> {
        let entry = self.terminals.get(&id);
        entry
            .into_iter()
            .flat_map(|entry| entry.sessions.ids())
            .filter_map(|id| self.slots.get(id))
    }

    /// The realms that terminals are in, and how many; not those outside of all realms.
    pub fn realms(&self) -> impl Iterator<Item = (&RealmName, Population)> {
        let populations = self.populations.iter();
        populations.filter_map(|(realm, &population)| Some((realm.as_ref()?, population)))
    }

    /// The session with this identifier, also if it is over.
    #[must_use]
    pub fn session(&self, id: SessionId) -> Option<&Session> {
        self.slots.get(id)
    }

    /// What is, or was last, in this slot.
    #[must_use]
    pub fn session_in_slot(&self, slot: u32) -> Option<&Session> {
        self.slots.in_slot(slot)
    }

    /// All sessions by slot, also those that are over. There may be a million, as of terminals.
    pub fn sessions(&self) -> impl Iterator<Item = &Session> {
        self.slots.iter()
    }

    /// How many sessions are known, also those that are over.
    #[must_use]
    pub const fn session_count(&self) -> usize {
        self.slots.held()
    }

    /// The application of this name, also if it is removed but has sessions yet.
    #[must_use]
    pub fn app(&self, name: &AppName) -> Option<&App> {
        self.apps.get(name).map(|entry| &entry.record)
    }

    /// The application of this name, and how many of its sessions aren't over; `None` if it is removed.
    #[must_use]
    pub fn app_with_sessions(&self, name: &AppName) -> Option<(&App, usize)> {
        let entry = self.apps.get(name)?;
        (!entry.record.removed).then_some((&entry.record, entry.sessions.len()))
    }

    /// The application that this credential is of, and the credential, if it is accepted.
    #[must_use]
    pub fn credential(&self, now: UnixTime, id: CredentialId) -> Option<(&App, &Credential)> {
        let app = self.app(self.credentials.get(&id)?)?;
        let of_app = app.credentials.iter().find(|other| other.id == id);
        of_app
            .filter(|credential| credential.is_valid(now))
            .map(|credential| (app, credential))
    }

    /// The sessions of an application that aren't over.
    pub fn sessions_of_app(&self, name: &AppName) -> impl Iterator<Item = SessionId> {
        let entry = self.apps.get(name);
        entry
            .into_iter()
            .flat_map(|entry| entry.sessions.iter().copied())
    }

    /// The sessions of an application that aren't over, in order: all, or those after one, which need not be
    /// its own any more.
    pub fn sessions_of_app_after(
        &self,
        name: &AppName,
        after: Option<SessionId>,
    ) -> impl Iterator<Item = SessionId> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let entry = self.apps.get(name);
        entry.into_iter().flat_map(move |entry| {
            let sessions = entry.sessions.range((from, Bound::Unbounded));
            sessions.copied()
        })
    }

    /// The application whose policy is in this slot of the data plane.
    #[must_use]
    pub fn app_of_policy_slot(&self, slot: NonZeroU16) -> Option<&App> {
        self.app(self.policies.get(&slot)?)
    }

    /// All applications by name, each with how many of its sessions aren't over; not those that are removed.
    pub fn apps(&self) -> impl Iterator<Item = (&App, usize)> {
        self.apps
            .values()
            .filter(|entry| !entry.record.removed)
            .map(|entry| (&entry.record, entry.sessions.len()))
    }

    /// How many sessions aren't over.
    #[must_use]
    pub const fn counts(&self) -> Counts {
        self.counts
    }

    /// Slots of the session table.
    #[must_use]
    pub const fn slots(&self) -> u32 {
        self.limits.slots
    }

    /// Slots that were ever used: those below this one.
    #[must_use]
    pub fn slots_used(&self) -> u32 {
        self.slots.used()
    }

    /// Address and port at which a session's device receives triggers, if the device is still known.
    #[must_use]
    pub fn device_of(&self, session: &Session) -> Option<SocketAddr> {
        self.terminal_of(session)
            .map(|terminal| SocketAddr::new(terminal.path.device, session.port.get()))
    }

    /// When a session expires, unless the registration is refreshed; `None` if it is over.
    #[must_use]
    pub fn expires(&self, session: &Session) -> Option<UnixTime> {
        match session.state {
            SessionState::Requested(_) | SessionState::Authorised(_) => {
                match self.terminal_of(session)?.state {
                    OperativeState::First { expires } => Some(expires),
                    OperativeState::Second { .. } | OperativeState::Suspended { .. } => None,
                }
            }
            SessionState::Ended { .. } => None,
        }
    }

    /// From `now` until a session expires, unless the registration is refreshed; zero if it is over.
    #[must_use]
    pub fn expires_in(&self, session: &Session, now: UnixTime) -> Duration {
        self.expires(session)
            .map_or(Duration::ZERO, |expires| expires.saturating_since(now))
    }
}
