//! From what a store had in it to what there is.

use super::attempts::Attempts;
use super::records::{OperativeState, SessionState};
use super::slots::{BeyondTable, Slots};
use super::{AppEntry, Changes, Counts, Due, Image, Limits, Sessions, TerminalEntry, deadline};
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
            terminals: HashMap::new(),
            endpoints: HashMap::new(),
            apps: BTreeMap::new(),
            policies: BTreeMap::new(),
            credentials: HashMap::new(),
            addresses: HashMap::new(),
            slots,
            deadlines: BTreeSet::new(),
            attempts: Attempts::default(),
            counts: Counts::default(),
            changes: Changes {
                slots: dropped.into_iter().collect(),
                ..Changes::default()
            },
        };
        for record in image.apps {
            if let Some(other) = sessions
                .policies
                .insert(record.policy_slot, record.name.clone())
            {
                return Err(contradiction(format!(
                    "applications {other} and {} have the same policy slot",
                    record.name
                )));
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
                },
            );
        }
        for record in image.terminals {
            sessions.set_deadline(Due::Terminal(record.id), None, deadline(record.state));
            if let OperativeState::First { .. } = record.state {
                // A store of version 2 may have several at one address; they stay until they leave or move.
                let place = (record.path.realm.clone(), record.path.device);
                sessions.addresses.insert(place, record.id);
            }
            if let Some(other) = sessions
                .endpoints
                .insert(record.endpoint.clone(), record.id)
            {
                return Err(contradiction(format!(
                    "terminals {other} and {} have the same endpoint name",
                    record.id
                )));
            }
            sessions.terminals.insert(
                record.id,
                TerminalEntry {
                    record,
                    sessions: BTreeMap::new(),
                },
            );
        }
        for session in sessions.slots.iter() {
            let count = match &session.state {
                SessionState::Requested(_) => &mut sessions.counts.requested,
                SessionState::Authorised(tokens) => {
                    let at = tokens.deadline();
                    let due = at.map(|at| (at, Due::Session(session.id)));
                    sessions.deadlines.extend(due);
                    &mut sessions.counts.authorised
                }
                SessionState::Ended { .. } => continue,
            };
            *count += 1;
            let terminal = sessions.terminals.get_mut(&session.terminal);
            let Some(terminal) = terminal
                .filter(|terminal| matches!(terminal.record.state, OperativeState::First { .. }))
            else {
                return Err(contradiction(format!(
                    "session {} has no terminal in the first operative state",
                    session.id
                )));
            };
            let Some(app) = sessions.apps.get_mut(&session.app) else {
                return Err(contradiction(format!(
                    "session {} has no application",
                    session.id
                )));
            };
            app.sessions.insert(session.id);
            terminal
                .sessions
                .insert((session.app.clone(), session.instance.clone()), session.id);
        }
        Ok(sessions)
    }
}
