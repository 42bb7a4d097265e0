//! What only the data plane knows of sessions, looked at some at a time.

use super::writer::Writer;
use super::{Kernel, Owner};
use crate::store::StoreError;
use push_common::replay::SEQUENCE_BITS;
use push_common::wire::SessionId;
use std::time::Duration;

/// How often some sessions are looked at for what only the data plane knows.
pub(super) const ROUND: Duration = Duration::from_secs(1);

/// How many slots are looked at in such a round.
const ROUND_SLOTS: u32 = 8192;

/// How many replay windows are written to the store in such a round, at most: so many rows are a few milliseconds.
const ROUND_WINDOWS: usize = 512;

/// A session whose sequence numbers have come this far is to be renewed: 15/16 of those there are.
pub(super) const RENEW_AT: u64 = (1 << SEQUENCE_BITS) / 16 * 15;

impl<K: Kernel> Owner<K> {
    /// Looks at some sessions, the next ones each time: those whose sequence numbers are nearly used up
    /// are to be requested anew, and replay windows that have moved go to the store.
    pub(super) fn look_round(&mut self) {
        let slots = self.sessions.slots_used();
        if self.next_slot >= slots {
            self.next_slot = 0;
            let sessions = &self.sessions;
            self.renewals_asked
                .retain(|&id| sessions.authorised(id).is_some());
        }
        let end = self.next_slot.saturating_add(ROUND_SLOTS).min(slots);
        let mut windows = 0;
        while self.next_slot < end && windows < ROUND_WINDOWS {
            let session = self.sessions.session_in_slot(self.next_slot);
            self.next_slot += 1;
            let Some(id) = session.map(|session| session.id) else {
                continue;
            };
            windows += usize::from(self.note_window(id));
            let newest = self.kernel.newest_sequence(id);
            if newest.is_some_and(|newest| newest >= RENEW_AT) && self.renewals_asked.insert(id) {
                self.sessions.ask_for_renewal(id);
            }
        }
    }

    /// Has the store learn the replay window of a session with the next commit; whether it didn't know it.
    pub(super) fn note_window(&mut self, id: SessionId) -> bool {
        let window = self.kernel.window(id);
        window.is_some_and(|window| self.sessions.note_window(id, &window))
    }

    /// Has the store know all replay windows as they are now, so that a data plane that begins anew accepts no
    /// trigger again. Nobody needs that if somebody takes over who finds the data plane there. It goes on for as long as
    /// there are sessions, but holds little at a time.
    pub(super) async fn write_windows(&mut self, writer: &mut Writer) -> Result<(), StoreError> {
        let slots = self.sessions.slots_used();
        for begin in (0..slots).step_by(ROUND_SLOTS as usize) {
            for slot in begin..begin.saturating_add(ROUND_SLOTS).min(slots) {
                if let Some(id) = self
                    .sessions
                    .session_in_slot(slot)
                    .map(|session| session.id)
                {
                    self.note_window(id);
                }
            }
            let changes = self.sessions.take_changes();
            if !changes.leave_store_alone() {
                writer.write(self.batch(&changes));
                writer.written().await?;
            }
        }
        Ok(())
    }
}
