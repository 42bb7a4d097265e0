//! How often triggers are let through: a token bucket kept as one number, the *theoretical arrival
//! time* of the generic cell rate algorithm (ITU-T I.371, Annex A).
//!
//! The number is the time at which the bucket will be full again. A trigger takes it one interval
//! further, and is refused if it would have to wait for longer than the burst allows. With one
//! compare-and-swap per trigger, and a clock that all CPUs share, no more than `burst + rate × time`
//! are let through, on any number of CPUs.

/// Offers a trigger at `now_ns` to a bucket that is full again at `full_at_ns`. Returns the number to
/// store in its place, or `None` if the trigger is one too many.
///
/// A trigger costs `interval_ns`; up to `tolerance_ns` may be owed before it, see [`tolerance_ns`].
#[inline(always)]
#[must_use]
pub const fn offer(
    full_at_ns: u64,
    now_ns: u64,
    interval_ns: u64,
    tolerance_ns: u64,
) -> Option<u64> {
    let from_ns = if full_at_ns > now_ns {
        full_at_ns
    } else {
        now_ns
    };
    if from_ns - now_ns > tolerance_ns {
        return None;
    }
    Some(from_ns.wrapping_add(interval_ns))
}

/// What may be owed so that `burst` (at least 1) triggers can come at once.
#[must_use]
pub const fn tolerance_ns(interval_ns: u64, burst: u32) -> u64 {
    interval_ns.saturating_mul(burst.saturating_sub(1) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_burst_is_let_through_at_once_and_not_one_more() {
        let (interval, tolerance) = (1_000, tolerance_ns(1_000, 3));
        let mut bucket = 0;
        for _ in 0..3 {
            bucket = offer(bucket, 50_000, interval, tolerance).unwrap();
        }
        assert_eq!(offer(bucket, 50_000, interval, tolerance), None);
        assert_eq!(offer(bucket, 50_999, interval, tolerance), None);
        bucket = offer(bucket, 51_000, interval, tolerance).unwrap();
        assert_eq!(offer(bucket, 51_000, interval, tolerance), None);
    }

    proptest! {
        #[test]
        fn never_more_than_the_burst_and_the_rate_allow(
            interval in 1_u64..1_000_000, burst in 1_u32..50,
            steps in proptest::collection::vec(0_u64..2_000_000, 1..300),
        ) {
            let tolerance = tolerance_ns(interval, burst);
            let (mut bucket, mut now) = (0, 1 << 40);
            let start = now;
            let mut accepted = 0_u64;
            for step in steps {
                now += step;
                if let Some(next) = offer(bucket, now, interval, tolerance) {
                    bucket = next;
                    accepted += 1;
                }
                prop_assert!(accepted <= u64::from(burst) + (now - start) / interval);
            }
            // And not less either: whoever waits for an interval is let through.
            now = bucket.max(now) + interval;
            prop_assert!(offer(bucket, now, interval, tolerance).is_some());
        }
    }
}
