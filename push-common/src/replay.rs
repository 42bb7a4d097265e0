//! The replay window of a session: each sequence number is accepted at most once, whatever number
//! of CPUs it is offered to at the same time.
//!
//! The sequence space is cut into blocks of 32. Four words hold the bitmaps of four blocks, each
//! with the number of the block it stands for; a block number picks its word by its low two bits.
//! An offer therefore reads and writes one word, with one compare-and-swap. A word only ever moves
//! on to a later block, which is why a sequence number is never accepted twice, and a new block
//! never pushes out one that is less than four blocks behind it, which is why up to
//! [`PERMITTED_LAG`] steps of reordering are harmless. All words zero is the empty window.

/// Words a window has.
pub const WORDS: usize = 4;

/// A sequence number that trails the newest one by no more than this is never refused as too old.
pub const PERMITTED_LAG: u64 = 96;

/// Sequence numbers are below `2^SEQUENCE_BITS`: in steps of 10 ms since 1970, enough until 2144.
pub const SEQUENCE_BITS: u32 = 5 + 2 + 32;

/// The answer to an offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offer {
    /// New; it counts as accepted once the word has been swapped for this one.
    Accept(u64),
    /// Accepted before.
    Replayed,
    /// Its block has left the window, so that nobody knows any more whether it was accepted.
    TooOld,
}

/// Index of the word that is in charge of `sequence`; below [`WORDS`].
#[inline(always)]
#[must_use]
pub const fn word_index(sequence: u64) -> usize {
    ((sequence >> 5) & 3) as usize
}

/// Whether `sequence` is in the space that a window can tell apart.
#[inline(always)]
#[must_use]
pub const fn in_range(sequence: u64) -> bool {
    sequence >> SEQUENCE_BITS == 0
}

/// A sequence number of the block that `word` stands for: its lowest, whose neighbours are less than 128 away.
#[inline(always)]
#[must_use]
pub const fn newest(word: u64) -> u64 {
    word >> 32 << 7
}

/// Offers `sequence`, which must be [`in_range`], to the `word` in charge of it.
#[inline(always)]
#[must_use]
pub const fn offer(word: u64, sequence: u64) -> Offer {
    let block = sequence >> 7;
    let bit = 1 << (sequence & 31);
    let current = word >> 32;
    if block == current {
        if word & bit == 0 {
            Offer::Accept(word | bit)
        } else {
            Offer::Replayed
        }
    } else if block > current {
        Offer::Accept((block << 32) | bit)
    } else {
        Offer::TooOld
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    #[derive(Default)]
    struct Window([u64; WORDS]);

    impl Window {
        fn offer(&mut self, sequence: u64) -> Offer {
            let word = &mut self.0[word_index(sequence)];
            let answer = offer(*word, sequence);
            if let Offer::Accept(new) = answer {
                *word = new;
            }
            answer
        }

        fn accepts(&mut self, sequence: u64) -> bool {
            matches!(self.offer(sequence), Offer::Accept(_))
        }
    }

    #[test]
    fn zero_and_the_last_sequence_are_accepted_once() {
        let last = (1 << SEQUENCE_BITS) - 1;
        assert!(in_range(last) && !in_range(last + 1));
        for sequence in [0, last] {
            let mut window = Window::default();
            assert!(window.accepts(sequence));
            assert_eq!(window.offer(sequence), Offer::Replayed);
        }
    }

    #[test]
    fn utc_in_steps_of_10_ms_fits_for_a_century() {
        let year_2140 = 170_u64 * 365 * 86_400 * 100;
        assert!(in_range(year_2140));
    }

    #[test]
    fn four_blocks_behind_is_too_old() {
        let mut window = Window::default();
        assert!(window.accepts(1000 * 32 + 31));
        assert!(window.accepts(1000 * 32 + 31 - PERMITTED_LAG));
        assert!(window.accepts(996 * 32 + 1 + 32)); // three blocks behind
        assert_eq!(window.offer(996 * 32 + 31), Offer::TooOld);
    }

    proptest! {
        /// Against the plainest model: a set of everything that was accepted.
        #[test]
        fn accepted_at_most_once_and_never_refused_within_the_lag(
            start in 0_u64..(1 << SEQUENCE_BITS) - 20_000,
            steps in proptest::collection::vec((0_u64..200, 0_u64..300), 1..400),
        ) {
            let mut window = Window::default();
            let mut accepted = HashSet::new();
            let mut newest = start;
            for (forward, behind) in steps {
                let sequence = (newest + forward).saturating_sub(behind);
                if window.accepts(sequence) {
                    prop_assert!(accepted.insert(sequence), "{sequence} was accepted twice");
                } else if sequence + PERMITTED_LAG >= newest {
                    prop_assert!(accepted.contains(&sequence), "{sequence} refused, newest is {newest}");
                }
                if accepted.contains(&sequence) {
                    newest = newest.max(sequence);
                }
            }
        }
    }
}
