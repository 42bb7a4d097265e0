//! From what a store had in it to what there is.

use super::attempts::Attempts;
use super::pieces::{LiveSessions, Terminals};
use super::records::{Availability, OperativeState, RegistrationId, SessionState, Terminal};
use super::slots::{BeyondTable, Slots};
use super::{AppEntry, Changes, Counts, Due, Image, Limits, Sessions, TerminalEntry, deadline};
use push_common::wire::SessionId;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// What a store had in it can't be taken up.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    /// Sessions that aren't over are in slots beyond the end of the table.
    #[error(
        "the store holds sessions in {needed} slots, the configuration has {slots}: set sessions.slots to {needed} or more"
    )]
    TooFewSlots {
        /// Slots that are needed.
        needed: u64,
        /// Slots that there are.
        slots: u32,
    },
    /// Records refer to others that aren't there.
    #[error("the store contradicts itself: {0}; put a copy from a backup in its place")]
    Contradiction(String),
}

impl Sessions {
    /// Takes up what a store had in it. Nothing of it counts as changed.
    ///
    /// # Errors
    ///
    /// [`RestoreError`].
    pub fn restore(limits: Limits, image: Image) -> Result<Self, RestoreError> {
        let contradiction = |what: String| RestoreError::Contradiction(what);
        let (slots, dropped) = Slots::restore(limits.slots, image.sessions).map_err(
            |BeyondTable { slots_needed }| RestoreError::TooFewSlots {
                needed: slots_needed,
                slots: limits.slots,
            },
        )?;
        let mut sessions = Self {
            limits,
            terminals: Terminals::new(),
            endpoints: BTreeMap::new(),
            apps: BTreeMap::new(),
            policies: BTreeMap::new(),
            credentials: HashMap::new(),
            addresses: BTreeMap::new(),
            populations: BTreeMap::new(),
            slots,
            endings: BTreeSet::new(),
            deadlines: BTreeSet::new(),
            attempts: Attempts::default(),
            counts: Counts::default(),
            changes: Changes {
                slots: dropped.into_iter().collect(),
                ..Changes::default()
            },
        };
        for record in image.apps {
            if sessions.apps.contains_key(&record.name) {
                let name = record.name;
                return Err(contradiction(format!("two applications are {name}")));
            }
            if let Some(other) = sessions
                .policies
                .insert(record.policy_slot, record.name.clone())
            {
                return Err(contradiction(format!(
                    "applications {other} and {} have the same policy slot",
                    record.name
                )));
            }
            // It may not have come to an end.
            let is_ending = match record.availability {
                Availability::Available => record.removed,
                Availability::Failed { .. } => true,
            };
            if is_ending {
                sessions.endings.insert(record.name.clone());
            }
            for credential in &record.credentials {
                let name = record.name.clone();
                if let Some(other) = sessions.credentials.insert(credential.id, name) {
                    return Err(contradiction(format!(
                        "applications {other} and {} have the same credential",
                        record.name
                    )));
                }
            }
            sessions.apps.insert(
                record.name.clone(),
                AppEntry {
                    record,
                    sessions: BTreeSet::new(),
                    authorised: 0,
                },
            );
        }
        sessions.enter_terminals(image.terminals)?;
        for slot in 0..sessions.slots.used() {
            if let Some(id) = sessions.slots.in_slot(slot).map(|session| session.id) {
                sessions.enter_session(id).map_err(contradiction)?;
            }
        }
        let apps = &sessions.apps;
        sessions.endings.retain(|name| {
            let app = apps.get(name);
            app.is_some_and(|app| app.record.removed || !app.sessions.is_empty())
        });
        Ok(sessions)
    }

    /// Has all terminals in all lists: with each list made at once, which takes a fraction of one by one.
    fn enter_terminals(&mut self, records: Vec<Terminal>) -> Result<(), RestoreError> {
        let (mut addresses, mut endpoints) = (Vec::new(), Vec::with_capacity(records.len()));
        let mut deadlines = Vec::with_capacity(records.len());
        for record in records {
            let id = record.id;
            if self.terminals.contains_key(&id) {
                let what = format!("two terminals are {id}");
                return Err(RestoreError::Contradiction(what));
            }
            if let OperativeState::First { .. } = record.state {
                // A store of version 2 may have several at one address; they stay until they leave or move.
                let place = (record.path.realm.clone(), record.path.device);
                addresses.push((place, id));
            }
            deadlines.extend(deadline(record.state).map(|at| (at, Due::Terminal(id))));
            endpoints.push((record.endpoint.clone(), id));
            self.add_terminal(record);
        }
        endpoints.sort_unstable();
        if let Some([(_, one), (_, other)]) = endpoints
            .array_windows()
            .find(|[(one, _), (other, _)]| one == other)
        {
            let what = format!("terminals {one} and {other} have the same endpoint name");
            return Err(RestoreError::Contradiction(what));
        }
        self.addresses = addresses.into_iter().collect();
        self.endpoints = endpoints.into_iter().collect();
        self.deadlines = deadlines.into_iter().collect();
        Ok(())
    }

    /// Has a terminal in all lists but that of addresses. Returns another one of the same endpoint name,
    /// which it has taken the place of.
    pub(super) fn enter_terminal(&mut self, record: Terminal) -> Option<RegistrationId> {
        let id = record.id;
        self.set_deadline(Due::Terminal(id), None, deadline(record.state));
        let other = self.endpoints.insert(record.endpoint.clone(), id);
        self.add_terminal(record);
        other
    }

    /// Has a terminal among the others, and in the population of its realm.
    fn add_terminal(&mut self, mut record: Terminal) {
        let id = record.id;
        self.populate(record.path.realm.clone(), 1, 0);
        // As of an application, below.
        let known = self.populations.get_key_value(&record.path.realm);
        record.path.realm = known.and_then(|(realm, _)| realm.clone());
        let sessions = LiveSessions::default();
        self.terminals
            .insert(id, TerminalEntry { record, sessions });
    }

    /// Has a session, which is in its slot, in all lists, unless it is over.
    ///
    /// # Errors
    ///
    /// What is missing that it refers to.
    pub(super) fn enter_session(&mut self, id: SessionId) -> Result<(), String> {
        let session = self.slots.get(id);
        let place = session.and_then(|session| self.terminals.place(session.terminal));
        self.slots.set_terminal_place(id.slot(), place);
        let Some(session) = self.slots.get_mut(id) else {
            return Ok(());
        };
        let (count, authorised, at) = match &session.state {
            SessionState::Requested(_) => (&mut self.counts.requested, 0, None),
            SessionState::Authorised(tokens) => (&mut self.counts.authorised, 1, tokens.deadline()),
            SessionState::Ended { .. } => return Ok(()),
        };
        let terminal = place.and_then(|place| self.terminals.at_mut(place));
        let terminal = terminal
            .filter(|terminal| matches!(terminal.record.state, OperativeState::First { .. }))
            .ok_or_else(|| format!("session {id} has no terminal in the first operative state"))?;
        let app = self
            .apps
            .get_mut(&session.app)
            .ok_or_else(|| format!("session {id} has no application"))?;
        // The name is in memory once, not a million times.
        session.app = app.record.name.clone();
        *count += 1;
        self.deadlines.extend(at.map(|at| (at, Due::Session(id))));
        app.sessions.insert(id);
        app.authorised += authorised;
        let key = (session.app.clone(), session.instance.clone());
        terminal.sessions.insert(key, id);
        let realm = terminal.record.path.realm.clone();
        self.populate(realm, 0, 1);
        Ok(())
    }
}
