//! The slots of the session table, and which of them is given out next.

use super::pieces::Pieces;
use super::records::{Session, SessionState};
use push_common::wire::SessionId;
use std::collections::VecDeque;
use std::num::NonZeroU32;

/// Sessions by slot. Slots that were never used are given out first, in order, then those that have
/// been free for longest: what is known of an ended session is known for as long as possible.
pub(super) struct Slots {
    limit: u32,
    /// Index is the slot.
    records: Pieces<Slot>,
    /// How many of them there are.
    held: usize,
    /// May also have slots in it that were taken since, see [`Slots::put`].
    free: VecDeque<u32>,
}

#[derive(Default)]
struct Slot {
    /// `None` only where a store had no record.
    session: Option<Session>,
    /// The place of its terminal, as of when it was last said. The terminal may have gone since, and another one
    /// have come there.
    terminal: Option<u32>,
}

/// Sessions that aren't over are in slots that the table doesn't have.
pub(super) struct BeyondTable {
    /// The slots it takes to hold them.
    pub(super) slots_needed: u64,
}

impl Slots {
    /// A table of `limit` slots with what was in it. Returns with it the slots whose records it has
    /// no room for; what was in them has ended.
    pub(super) fn restore(
        limit: u32,
        sessions: Vec<Session>,
    ) -> Result<(Self, Vec<u32>), BeyondTable> {
        let mut dropped = Vec::new();
        let mut records: Pieces<Slot> = Pieces::new();
        let mut slots_needed = 0;
        let mut ended = Vec::new();
        for session in sessions {
            let slot = session.id.slot();
            if let SessionState::Ended { at, .. } = session.state {
                if slot >= limit {
                    dropped.push(slot);
                    continue;
                }
                ended.push((at, slot));
            } else if slot >= limit {
                slots_needed = slots_needed.max(u64::from(slot) + 1);
                continue;
            }
            let index = slot as usize;
            while records.len() <= index {
                records.push(Slot::default());
            }
            if let Some(record) = records.get_mut(index) {
                record.session = Some(session);
            }
        }
        if slots_needed > 0 {
            return Err(BeyondTable { slots_needed });
        }
        let held = records
            .iter()
            .filter(|record| record.session.is_some())
            .count();
        ended.sort_unstable();
        let holes = (0..)
            .zip(records.iter())
            .filter(|(_, record)| record.session.is_none())
            .map(|(slot, _)| slot);
        let free = holes
            .chain(ended.into_iter().map(|(_, slot)| slot))
            .collect();
        Ok((
            Self {
                limit,
                records,
                held,
                free,
            },
            dropped,
        ))
    }

    pub(super) fn get(&self, id: SessionId) -> Option<&Session> {
        self.in_slot(id.slot()).filter(|session| session.id == id)
    }

    pub(super) fn get_mut(&mut self, id: SessionId) -> Option<&mut Session> {
        self.records
            .get_mut(id.slot() as usize)?
            .session
            .as_mut()
            .filter(|session| session.id == id)
    }

    pub(super) fn in_slot(&self, slot: u32) -> Option<&Session> {
        self.records.get(slot as usize)?.session.as_ref()
    }

    /// Where the terminal of the session in a slot is, or was.
    pub(super) fn terminal_place(&self, slot: u32) -> Option<u32> {
        self.records.get(slot as usize)?.terminal
    }

    /// Remembers where that is.
    pub(super) fn set_terminal_place(&mut self, slot: u32, place: Option<u32>) {
        if let Some(record) = self.records.get_mut(slot as usize) {
            record.terminal = place;
        }
    }

    /// Slots that were ever used: those below this one.
    pub(super) fn used(&self) -> u32 {
        u32::try_from(self.records.len()).unwrap_or(self.limit)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Session> {
        self.records
            .iter()
            .filter_map(|record| record.session.as_ref())
    }

    /// Slots that have a session in them, be it one that is over.
    pub(super) const fn held(&self) -> usize {
        self.held
    }

    /// Whether there is such a slot, and no session in it that isn't over.
    pub(super) fn is_free(&self, slot: u32) -> bool {
        slot < self.limit
            && self
                .in_slot(slot)
                .is_none_or(|session| match session.state {
                    SessionState::Requested(_) | SessionState::Authorised(_) => false,
                    SessionState::Ended { .. } => true,
                })
    }

    /// Uses slots up to this one, at most `limit` of them at once; whether it was one of them, or before.
    pub(super) fn use_up_to(&mut self, slot: u32, limit: u32) -> bool {
        let used = self.used();
        let end = slot.saturating_add(1).min(used.saturating_add(limit));
        for fresh in used..end.min(self.limit) {
            self.records.push(Slot::default());
            self.free.push_back(fresh);
        }
        slot < self.used()
    }

    /// Puts a session where its identifier says, which is free and in use.
    pub(super) fn put(&mut self, session: Session) {
        let slot = session.id.slot() as usize;
        if let Some(record) = self.records.get_mut(slot) {
            self.held += usize::from(record.session.is_none());
            record.session = Some(session);
        }
    }

    /// Takes a slot for the session that `make` makes of its identifier, and returns that; `None`
    /// if the table is full.
    pub(super) fn insert(
        &mut self,
        generation: NonZeroU32,
        make: impl FnOnce(SessionId) -> Session,
    ) -> Option<SessionId> {
        let fresh = u32::try_from(self.records.len())
            .ok()
            .filter(|&slot| slot < self.limit);
        let slot = if let Some(slot) = fresh {
            self.records.push(Slot::default());
            slot
        } else {
            loop {
                let slot = self.free.pop_front()?;
                if self.is_free(slot) {
                    break slot;
                }
            }
        };
        let record = &mut self.records.get_mut(slot as usize)?.session;
        let mut id = SessionId::new(slot, generation.get());
        if record.as_ref().is_some_and(|previous| previous.id == id) {
            let other = generation.checked_add(1).unwrap_or(NonZeroU32::MIN);
            id = SessionId::new(slot, other.get());
        }
        self.held += usize::from(record.is_none());
        *record = Some(make(id));
        Some(id)
    }

    /// Lets the slot be used anew.
    pub(super) fn free(&mut self, slot: u32) {
        self.free.push_back(slot);
    }
}
