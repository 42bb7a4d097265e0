//! How long the controller was busy before it looked again who waits.

use std::time::Duration;

/// Upper bounds of the classes of times, in milliseconds.
const BOUNDS_MS: [u16; 12] = [1, 2, 3, 5, 8, 10, 15, 20, 50, 100, 200, 500];

/// Times that the controller was busy, by class: those up to each bound, and those that were longer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Turns {
    by_class: [u64; BOUNDS_MS.len() + 1],
    sum: Duration,
}

impl Turns {
    pub(super) fn add(&mut self, busy: Duration) {
        let class = BOUNDS_MS
            .iter()
            .position(|&bound_ms| busy <= Duration::from_millis(bound_ms.into()))
            .unwrap_or(BOUNDS_MS.len());
        self.by_class[class] += 1;
        self.sum += busy;
    }

    /// The upper bound of each class in seconds, and how many times are in it.
    #[must_use]
    pub fn classes(&self) -> Vec<(f64, u64)> {
        let bounds = BOUNDS_MS.iter().map(|&bound_ms| f64::from(bound_ms) / 1e3);
        let bounds = bounds.chain([f64::INFINITY]);
        bounds.zip(self.by_class).collect()
    }

    /// All times together.
    #[must_use]
    pub const fn sum(&self) -> Duration {
        self.sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_in_one_class() {
        let mut turns = Turns::default();
        for busy_ms in [0, 1, 10, 11, 10_000] {
            turns.add(Duration::from_millis(busy_ms));
        }
        let classes = turns.classes();
        let some: Vec<_> = classes
            .into_iter()
            .filter(|(_, count)| *count > 0)
            .collect();
        assert_eq!(
            some,
            [(0.001, 2), (0.01, 1), (0.015, 1), (f64::INFINITY, 1)]
        );
        assert_eq!(turns.sum(), Duration::from_millis(10_022));
    }
}
