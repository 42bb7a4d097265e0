//! From what is durable to what is in effect: the data plane learns of it, then those who have asked, then others.

use super::image::image;
use super::{Answer, CHANGES_LEN, Kernel, Owner, RETRY};
use crate::dataplane::{Found, Policy};
use crate::events::What;
use crate::sessions::records::{AppName, UnixTime};
use crate::sessions::{Changes, News, Notice};
use push_common::wire::SessionId;
use std::collections::BTreeSet;
use std::num::NonZeroU16;
use std::ops::Bound;
use tokio::time::Instant;
use tracing::{debug, warn};

/// Sessions that the data plane has refused and that are tried again at once.
const RETRIED_AT_ONCE: usize = CHANGES_LEN / 4;

/// Slots whose sessions are told the time anew at once.
const TIMED_AT_ONCE: u32 = 512;

/// What is to be done about changes once they are durable.
pub(super) struct Outcome {
    /// As they are to be, or none where there is none any more. They go by slot, which may be another
    /// application's by then.
    policies: Vec<(NonZeroU16, Option<(AppName, Policy)>)>,
    sessions: BTreeSet<SessionId>,
    answers: Vec<Answer>,
    notices: Vec<Notice>,
    news: Vec<News>,
}

impl<K: Kernel> Owner<K> {
    /// What is to come of these changes, and of all that was asked.
    pub(super) fn outcome(&mut self, changes: Changes) -> Outcome {
        let policy = |slot| {
            let app = self.sessions.app_of_policy_slot(slot);
            (slot, app.map(|app| (app.name.clone(), app.policy.clone())))
        };
        Outcome {
            policies: changes.policies.into_iter().map(policy).collect(),
            sessions: changes.kernel,
            answers: std::mem::take(&mut self.answers),
            notices: changes.notices,
            news: changes.news,
        }
    }

    /// Does it. Returns how many sessions the data plane had, but otherwise.
    pub(super) fn bring_about(&mut self, outcome: Outcome) -> usize {
        let different = self.update_kernel(outcome.policies, outcome.sessions);
        for answer in outcome.answers {
            answer();
        }
        for notice in outcome.notices {
            if self.outlets.notices.try_send(notice).is_err() {
                self.notices_lost += 1;
            }
        }
        for news in outcome.news {
            self.publish(What::Lifecycle(news));
        }
        different
    }

    pub(super) fn publish(&self, what: What) {
        self.outlets.events.publish_now(what);
    }

    /// If it is time, has the data plane try again what it has refused: as much as it can do at once, the next ones
    /// each time.
    pub(super) fn retry_some(&mut self, changes: &mut Changes) {
        if self.retry_at.take_if(|at| *at <= Instant::now()).is_none() {
            return;
        }
        changes.policies.extend(self.policies_not_in_kernel.keys());
        let from = self.retried.map_or(Bound::Unbounded, Bound::Excluded);
        let refused = self.not_in_kernel.range((from, Bound::Unbounded));
        let some: Vec<_> = refused.take(RETRIED_AT_ONCE).map(|(&id, _)| id).collect();
        let is_last = some.len() < RETRIED_AT_ONCE;
        self.retried = some.last().copied().filter(|_| !is_last);
        changes.kernel.extend(some);
        self.retry_at = (!is_last).then(Instant::now);
    }

    /// If the machine has slept, and with it the clock by which the data plane ends sessions, tells it anew when they
    /// end: of some at a time.
    pub(super) fn time_some_anew(&mut self, changes: &mut Changes) {
        if self.clock.has_slept(self.kernel.suspended()) {
            self.timed_anew = Some(0);
        }
        let Some(begin) = self.timed_anew else {
            return;
        };
        let end = begin.saturating_add(TIMED_AT_ONCE);
        let sessions = (begin..end).filter_map(|slot| self.sessions.session_in_slot(slot));
        let ids = sessions.map(|session| session.id);
        let authorised = ids.filter(|&id| self.sessions.is_authorised(id));
        changes.kernel.extend(authorised);
        self.timed_anew = Some(end).filter(|&end| end < self.sessions.slots_used());
    }

    /// Brings these policies and sessions to the data plane, or takes them from it. Returns how many were there, but
    /// otherwise.
    fn update_kernel(
        &mut self,
        policies: Vec<(NonZeroU16, Option<(AppName, Policy)>)>,
        changed: BTreeSet<SessionId>,
    ) -> usize {
        let mut different = 0;
        let (mut install, remove): (Vec<_>, Vec<_>) = changed
            .into_iter()
            .partition(|&id| self.sessions.is_authorised(id));
        // As they are in memory, here and in the table.
        install.sort_unstable_by_key(|id| id.slot());
        // First, as a slot may have passed from one session to another, and one of a policy from one
        // application to another.
        for id in remove {
            self.kernel.remove(id);
            self.not_in_kernel.remove(&id);
            debug!(session = %id, "removed from the data plane");
        }
        // Then policies, as sessions refer to them.
        for (slot, policy) in policies {
            self.update_policy(slot, policy);
        }
        let now = self.now();
        for id in install {
            match self.install(id, now) {
                Ok(found) => {
                    self.not_in_kernel.remove(&id);
                    different += usize::from(found == Found::Different);
                }
                Err(why) => {
                    // Once for each reason, not each time that it is tried again.
                    if self.not_in_kernel.get(&id) != Some(&why) {
                        warn!(session = %id, why, "not in the data plane; it is tried again");
                        self.not_in_kernel.insert(id, why);
                    }
                }
            }
        }
        if self.not_in_kernel.is_empty() && self.policies_not_in_kernel.is_empty() {
            self.retry_at = None;
        } else {
            self.retry_at.get_or_insert_with(|| Instant::now() + RETRY);
        }
        different
    }

    fn update_policy(&mut self, slot: NonZeroU16, policy: Option<(AppName, Policy)>) {
        let Some((name, policy)) = policy else {
            self.kernel.remove_policy(slot.get());
            self.policies_not_in_kernel.remove(&slot);
            debug!(slot, "removed a policy from the data plane");
            return;
        };
        let Err(error) = self.kernel.set_policy(slot.get(), &policy) else {
            self.policies_not_in_kernel.remove(&slot);
            return;
        };
        let why = format!("the policy of application {name} is not in the data plane: {error:#}");
        if self.policies_not_in_kernel.get(&slot) != Some(&why) {
            warn!("{why}; it is tried again");
            self.policies_not_in_kernel.insert(slot, why);
        }
    }

    /// Puts an authorised session into the data plane, or says why not.
    fn install(&mut self, id: SessionId, now: UnixTime) -> Result<Found, String> {
        let Some(authorised) = self.sessions.authorised(id) else {
            return Ok(Found::Nothing);
        };
        // Rather not delivered for at all than by other rules than the operator's.
        if let Some(why) = self.policies_not_in_kernel.get(&authorised.app.policy_slot) {
            return Err(why.clone());
        }
        match image(&authorised, &self.sessions, &self.places, now) {
            Ok(image) => {
                let found = self.kernel.install(&image);
                let found = found.map_err(|error| format!("{error:#}"))?;
                debug!(session = %id, device = %image.device, ?found, "in the data plane");
                Ok(found)
            }
            Err(displaced) => {
                // An earlier run, with another configuration, may have left it there.
                self.note_window(id);
                self.kernel.remove(id);
                Err(displaced.to_string())
            }
        }
    }
}
