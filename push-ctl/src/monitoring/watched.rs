//! When an application is asked how it is, and what follows from its answers. Knows no clock and no socket.

use super::enquiry::{Answer, StatusUrl};
use crate::sessions::records::Monitor;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::time::Instant;

/// Tells the watches apart, also those of one application.
static NEXT_NUMBER: AtomicU64 = AtomicU64::new(0);

/// How an application's servers are, by what they have answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// They haven't been asked.
    Unknown,
    /// The last answer was good.
    Good,
    /// The last answer was that they don't do their work.
    Unavailable,
    /// The last enquiries had no good answer.
    Failing,
    /// For so long that it is called a failure.
    Unreachable,
}

/// An application that is monitored.
pub(super) struct Watched {
    monitor: Monitor,
    url: Option<StatusUrl>,
    number: u64,
    standing: Standing,
    /// Since when there was no good answer.
    failing_since: Option<Instant>,
    /// When to enquire next; none while an enquiry is under way, or if there is nobody to ask.
    enquire_at: Option<Instant>,
    /// When to look next whether it is in use.
    look_at: Option<Instant>,
}

impl Watched {
    pub(super) fn new(now: Instant, monitor: Monitor) -> Self {
        let url = monitor.url.as_ref().and_then(|url| url.parse().ok());
        Self {
            number: NEXT_NUMBER.fetch_add(1, Ordering::Relaxed),
            standing: Standing::Unknown,
            failing_since: None,
            enquire_at: url.is_some().then_some(now),
            look_at: monitor.inactive_after.map(|limit| now + limit),
            url,
            monitor,
        }
    }

    pub(super) const fn monitor(&self) -> &Monitor {
        &self.monitor
    }

    pub(super) const fn number(&self) -> u64 {
        self.number
    }

    pub(super) const fn standing(&self) -> Standing {
        self.standing
    }

    /// When there is something to do next.
    pub(super) fn due(&self) -> Option<Instant> {
        [self.enquire_at, self.look_at].into_iter().flatten().min()
    }

    /// Whom to ask now, if it is time; the answer has to be told.
    pub(super) fn enquire(&mut self, now: Instant) -> Option<StatusUrl> {
        self.enquire_at.take_if(|at| *at <= now)?;
        self.url.clone()
    }

    /// What they have answered. Gives how they are, and whether that is another thing than before.
    ///
    /// The next enquiry is `factor` times the interval away: about 1, so that enquiries spread.
    pub(super) fn answered(
        &mut self,
        now: Instant,
        answer: &Answer,
        factor: f64,
    ) -> (Standing, bool) {
        let mut next = self.monitor.interval.mul_f64(factor);
        let standing = match answer {
            Answer::Good { .. } => Standing::Good,
            Answer::Unavailable => Standing::Unavailable,
            Answer::None(_) => {
                let since = *self.failing_since.get_or_insert(now);
                let left = (since + self.monitor.unreachable_after).saturating_duration_since(now);
                if left.is_zero() {
                    Standing::Unreachable
                } else {
                    // Not later than necessary.
                    next = next.min(left);
                    Standing::Failing
                }
            }
        };
        match standing {
            Standing::Good | Standing::Unavailable | Standing::Unknown => self.failing_since = None,
            Standing::Failing | Standing::Unreachable => {}
        }
        self.enquire_at = Some(now + next);
        let before = std::mem::replace(&mut self.standing, standing);
        (standing, before != standing)
    }

    /// Without what use it counts as inactive, if it is time to look; what was found has to be told.
    pub(super) fn look(&mut self, now: Instant) -> Option<Duration> {
        self.look_at.take_if(|at| *at <= now)?;
        self.monitor.inactive_after
    }

    /// It was last in use this long ago.
    pub(super) fn looked(&mut self, now: Instant, quiet_for: Duration) {
        self.look_at = self
            .monitor
            .inactive_after
            .map(|limit| now + limit.saturating_sub(quiet_for));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    fn watched(start: Instant) -> Watched {
        let monitor = Monitor {
            url: Some("https://app.example.com/status".to_owned()),
            interval: 30 * S,
            unreachable_after: 120 * S,
            inactive_after: Some(3600 * S),
        };
        Watched::new(start, monitor)
    }

    fn none() -> Answer {
        Answer::None("connection refused".to_owned())
    }

    #[test]
    fn it_is_unreachable_after_its_time_and_not_a_moment_later() {
        let start = Instant::now();
        let mut watched = watched(start);
        let mut seen = Vec::new();
        let mut now = start;
        while seen.last() != Some(&(120, Standing::Unreachable)) && seen.len() < 10 {
            assert_eq!(watched.due(), Some(now));
            assert!(watched.enquire(now).is_some());
            assert!(watched.enquire(now).is_none(), "one at a time");
            let (standing, _) = watched.answered(now, &none(), 1.1);
            seen.push(((now - start).as_secs(), standing));
            now = watched.due().unwrap();
        }
        assert_eq!(
            seen,
            [
                (0, Standing::Failing),
                (33, Standing::Failing),
                (66, Standing::Failing),
                (99, Standing::Failing),
                (120, Standing::Unreachable),
            ]
        );
        assert_eq!(now - start, 153 * S);
        assert_eq!(
            watched.answered(now, &none(), 1.0),
            (Standing::Unreachable, false)
        );
        let good = Answer::Good { said: false };
        assert_eq!(watched.answered(now, &good, 1.0), (Standing::Good, true));
        assert_eq!(
            watched.answered(now, &none(), 1.0),
            (Standing::Failing, true),
            "its time begins anew"
        );
    }

    #[test]
    fn its_own_word_counts_at_once() {
        let now = Instant::now();
        let mut watched = watched(now);
        let answer = watched.answered(now, &Answer::Unavailable, 0.9);
        assert_eq!(answer, (Standing::Unavailable, true));
        assert_eq!(watched.due(), Some(now + 27 * S));
        let answer = watched.answered(now, &Answer::Unavailable, 0.9);
        assert_eq!(answer, (Standing::Unavailable, false));
    }

    #[test]
    fn it_is_looked_at_again_when_the_use_that_was_seen_is_too_long_ago() {
        let start = Instant::now();
        let mut watched = watched(start);
        assert_eq!(watched.look(start + 3599 * S), None);
        let now = start + 3600 * S;
        assert_eq!(watched.look(now), Some(3600 * S));
        assert_eq!(watched.look(now), None);
        watched.looked(now, 600 * S);
        assert_eq!(watched.look(now + 2999 * S), None);
        assert_eq!(watched.look(now + 3000 * S), Some(3600 * S));
    }

    #[test]
    fn without_an_address_or_a_limit_nothing_is_due() {
        let monitor = Monitor {
            url: None,
            interval: S,
            unreachable_after: S,
            inactive_after: None,
        };
        assert_eq!(Watched::new(Instant::now(), monitor).due(), None);
    }
}
