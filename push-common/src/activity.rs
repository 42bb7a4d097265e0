//! When a session was last paged, and which collapse keys its open coalescing window has seen.
//!
//! A trigger with a collapse key opens a window if none is open. Within the window, each key is
//! delivered once; what comes after it with the same key is absorbed, as the device has been woken
//! for it already. Everything is in one word, so that one compare-and-swap decides:
//!
//! | bits | hold |
//! | --- | --- |
//! | 63–32 | tick of the last delivery |
//! | 31–16 | low half of the tick at which the window was opened |
//! | 15–0 | keys delivered in it, a bit each; 0 if no window is open |
//!
//! Half a tick counter is enough for the opening, as no window is longer than [`MAX_WINDOW_TICKS`]
//! and the time of the last delivery, which is whole, tells when it has turned over.

/// Longest window, in ticks of [`crate::maps::TICK_NS`]: 36 minutes.
pub const MAX_WINDOW_TICKS: u32 = 1 << 15;

/// The answer to an offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offer {
    /// To be delivered, once the word has been swapped for this one.
    Deliver(u64),
    /// The same was delivered just before.
    Absorb,
}

/// Offers a trigger with `collapse_key` (0 is none, below 16) at `now_tick` to a session whose windows
/// are `window_ticks` long, at most [`MAX_WINDOW_TICKS`]; 0 if nothing is ever absorbed.
#[inline(always)]
#[must_use]
pub const fn offer(word: u64, now_tick: u32, window_ticks: u32, collapse_key: u8) -> Offer {
    // A CPU that read the clock a moment ago must not undo what another one has done since.
    let now = (now_tick as u64) << 32;
    let now = if now < word { word >> 32 << 32 } else { now };
    let keys = word as u16;
    if keys == 0 && collapse_key == 0 {
        return Offer::Deliver(now);
    }
    let opened = (word >> 16) as u16;
    let now_tick = (now >> 32) as u32;
    let age_ticks = (now_tick as u16).wrapping_sub(opened) as u32;
    let is_open = keys != 0
        && now_tick.wrapping_sub(last_tick(word)) < MAX_WINDOW_TICKS
        && age_ticks < window_ticks;
    let key = if collapse_key == 0 {
        0
    } else {
        1 << (collapse_key & 15)
    };
    if is_open && keys & key != 0 {
        return Offer::Absorb;
    }
    let (opened, keys) = if is_open {
        (opened, keys | key)
    } else {
        (now_tick as u16, key)
    };
    Offer::Deliver(now | (opened as u64) << 16 | keys as u64)
}

/// The tick of the last delivery.
#[inline(always)]
#[must_use]
pub const fn last_tick(word: u64) -> u32 {
    (word >> 32) as u32
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;
    use std::vec::Vec;

    proptest! {
        /// Against a model that remembers when its window was opened, and all keys in it.
        #[test]
        fn each_key_is_delivered_once_a_window(
            start in any::<u32>(), window in 1..=MAX_WINDOW_TICKS,
            steps in proptest::collection::vec((prop_oneof![0_u32..10, 0_u32..40_000, 60_000_u32..70_000, Just(65_536), Just(65_535)], 0_u8..16), 1..100),
        ) {
            let start = start / 2; // So that ticks don't turn over: that takes nine years.
            let (mut word, mut now) = (u64::from(start) << 32, start);
            let mut model: Option<(u32, BTreeSet<u8>)> = None;
            for (step, key) in steps {
                now += step;
                if model.as_ref().is_some_and(|(opened, _)| now - opened >= window) {
                    model = None;
                }
                let absorbed = model.as_ref().is_some_and(|(_, keys)| keys.contains(&key));
                match offer(word, now, window, key) {
                    Offer::Absorb => prop_assert!(absorbed, "absorbed at {now}, model {model:?}"),
                    Offer::Deliver(new) => {
                        prop_assert!(!absorbed, "delivered at {now}, model {model:?}");
                        prop_assert_eq!(last_tick(new), now);
                        word = new;
                        if key != 0 {
                            model.get_or_insert_with(|| (now, BTreeSet::new())).1.insert(key);
                        }
                    }
                }
            }
        }

        #[test]
        fn without_a_window_everything_is_delivered(word in any::<u64>(), now in any::<u32>(), key in 0_u8..16) {
            prop_assert!(matches!(offer(word, now, 0, key), Offer::Deliver(_)));
        }
    }

    #[test]
    fn who_comes_with_the_time_of_just_before_finds_the_window_that_is_open_now() {
        let Offer::Deliver(word) = offer(0, 1001, 2, 3) else {
            panic!("absorbed");
        };
        assert_eq!(offer(word, 1000, 2, 3), Offer::Absorb);
        let Offer::Deliver(word) = offer(word, 1000, 2, 4) else {
            panic!("absorbed");
        };
        assert_eq!(last_tick(word), 1001);
        assert_eq!(offer(word, 1001, 2, 3), Offer::Absorb);
    }

    #[test]
    fn a_window_does_not_come_back_when_the_half_counter_turns_over() {
        let Offer::Deliver(word) = offer(0, 1_000_000, 100, 3) else {
            panic!("absorbed");
        };
        let answers: Vec<_> = [50, 65_536, 65_536 + 50, 131_072]
            .map(|later| offer(word, 1_000_000 + later, 100, 3) == Offer::Absorb)
            .into();
        assert_eq!(answers, [true, false, false, false]);
    }
}
