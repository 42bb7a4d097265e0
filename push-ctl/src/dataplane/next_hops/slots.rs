//! Which indices of a table are free.

use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, Instant};

/// How long an index isn't used after the last one to refer to it was told to refer to another: packets
/// that have read it are long gone by then.
pub(super) const REST: Duration = Duration::from_secs(1);

/// The indices of a table.
pub(super) struct Slots {
    free: BTreeSet<u16>,
    /// Given back at some time, the longest ago first.
    resting: VecDeque<(Instant, u16)>,
    /// In use by someone who isn't known yet.
    held: BTreeSet<u16>,
}

impl Slots {
    /// As many indices, all free.
    pub(super) fn new(count: u16) -> Self {
        Self {
            free: (0..count).collect(),
            resting: VecDeque::new(),
            held: BTreeSet::new(),
        }
    }

    /// A free index, if there is one.
    pub(super) fn take(&mut self, now: Instant) -> Option<u16> {
        while let Some(&(since, index)) = self.resting.front()
            && now.saturating_duration_since(since) >= REST
        {
            self.resting.pop_front();
            self.free.insert(index);
        }
        self.free.pop_first()
    }

    /// Takes an index back.
    pub(super) fn give_back(&mut self, index: u16, now: Instant) {
        self.resting.push_back((now, index));
    }

    /// Keeps a free index from being given out.
    pub(super) fn hold(&mut self, index: u16) {
        if self.free.remove(&index) {
            self.held.insert(index);
        }
    }

    /// Takes an index that is held; whether it was.
    pub(super) fn claim(&mut self, index: u16) -> bool {
        self.held.remove(&index)
    }

    /// Takes back all indices that are still held.
    pub(super) fn release_held(&mut self, now: Instant) -> Vec<u16> {
        let held: Vec<_> = std::mem::take(&mut self.held).into_iter().collect();
        for &index in &held {
            self.give_back(index, now);
        }
        held
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_rests_before_it_is_given_out_again() {
        let now = Instant::now();
        let mut slots = Slots::new(2);
        assert_eq!(
            (slots.take(now), slots.take(now), slots.take(now)),
            (Some(0), Some(1), None)
        );
        slots.give_back(1, now);
        assert_eq!(slots.take(now + REST - Duration::from_nanos(1)), None);
        assert_eq!(slots.take(now + REST), Some(1));
    }

    #[test]
    fn a_held_index_is_given_out_after_its_release_only() {
        let now = Instant::now();
        let mut slots = Slots::new(3);
        slots.hold(0);
        slots.hold(1);
        slots.hold(7);
        assert!(slots.claim(1) && !slots.claim(1) && !slots.claim(7));
        assert_eq!((slots.take(now), slots.take(now)), (Some(2), None));
        assert_eq!(slots.release_held(now), [0]);
        assert_eq!((slots.take(now), slots.take(now + REST)), (None, Some(0)));
    }
}
