//! The trigger rates that sessions have been granted, and how much of them there may be together.
//!
//! The data plane holds each session to the rate of its application's policy, so that their sum holds as well:
//! it is looked at where it grows by a session, which is when that is authorised. What exists stays when a quota is
//! lowered or a policy's rate is raised; there are no further sessions until there is room for them.

use super::records::{AppName, SessionState};
use super::{Sessions, ValidationRefusal};
use crate::dataplane::Policy;
use push_common::wire::SessionId;
use std::iter::Sum;
use std::time::Duration;

/// When an application's server that found no room for the rate of a session is to ask again.
const RATE_RETRY: Duration = Duration::from_mins(1);

/// Triggers per second in the long run, to the millionth. A burst comes on top of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct TriggerRate {
    per_million_seconds: u64,
}

impl TriggerRate {
    /// So many triggers per second.
    #[must_use]
    pub const fn per_second(triggers: u32) -> Self {
        Self {
            per_million_seconds: triggers as u64 * 1_000_000,
        }
    }

    /// What each session with this policy may have; `None` if that isn't limited.
    #[must_use]
    pub fn of(policy: &Policy) -> Option<Self> {
        let interval_ns = policy.rate.as_ref()?.interval.as_nanos();
        let in_million_seconds = Duration::from_secs(1_000_000).as_nanos() + interval_ns / 2;
        let triggers = in_million_seconds.checked_div(interval_ns);
        let triggers = triggers.and_then(|triggers| triggers.try_into().ok());
        Some(Self {
            per_million_seconds: triggers.unwrap_or(u64::MAX),
        })
    }

    /// So many sessions with this rate.
    #[must_use]
    pub fn times(self, sessions: usize) -> Self {
        let sessions = u64::try_from(sessions).unwrap_or(u64::MAX);
        Self {
            per_million_seconds: self.per_million_seconds.saturating_mul(sessions),
        }
    }

    /// Triggers per second.
    #[must_use]
    pub fn as_per_second(self) -> f64 {
        self.per_million_seconds as f64 / 1e6
    }
}

impl Sum for TriggerRate {
    fn sum<I: Iterator<Item = Self>>(rates: I) -> Self {
        let rates = rates.map(|rate| rate.per_million_seconds);
        Self {
            per_million_seconds: rates.fold(0, u64::saturating_add),
        }
    }
}

/// Whose sessions have a rate together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RateShare {
    /// The application, all of its sessions.
    App,
    /// The terminal, all of its sessions, of whatever application.
    Terminal,
}

impl RateShare {
    /// Stable name, in `snake_case`.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::App => "triggers_per_second_of_app",
            Self::Terminal => "triggers_per_second_of_terminal",
        }
    }

    /// Who it is, in a sentence.
    pub(super) const fn whose(self) -> &'static str {
        match self {
            Self::App => "this application",
            Self::Terminal => "the device of this session",
        }
    }
}

impl Sessions {
    /// What the authorised sessions of an application may have together; `None` if that isn't limited.
    #[must_use]
    pub fn granted_rate(&self, app: &AppName) -> Option<TriggerRate> {
        let Some(entry) = self.apps.get(app) else {
            return Some(TriggerRate::default());
        };
        match (entry.authorised, TriggerRate::of(&entry.record.policy)) {
            (0, _) => Some(TriggerRate::default()),
            (authorised, rate) => rate.map(|rate| rate.times(authorised)),
        }
    }

    /// Whether there is room for the rate of this session, which is to be authorised.
    pub(super) fn has_room_for_rate(&self, id: SessionId) -> Result<(), ValidationRefusal> {
        let Some(session) = self.slots.get(id) else {
            return Ok(());
        };
        let Some(app) = self.apps.get(&session.app) else {
            return Ok(());
        };
        let rate = TriggerRate::of(&app.record.policy);
        let shares = [
            (RateShare::App, app.record.quotas.triggers_per_second),
            (
                RateShare::Terminal,
                self.limits.triggers_per_second_per_terminal,
            ),
        ];
        let retry_after = RATE_RETRY;
        for (of, quota) in shares {
            let Some(quota) = quota.map(TriggerRate::per_second) else {
                continue;
            };
            let rate = rate.ok_or(ValidationRefusal::RateNotLimited { of, retry_after })?;
            let granted = match of {
                RateShare::App => self.granted_rate(&session.app),
                RateShare::Terminal => self
                    .sessions_on_terminal(session.terminal)
                    .filter(|other| matches!(other.state, SessionState::Authorised(_)))
                    .map(|other| TriggerRate::of(&self.app(&other.app)?.policy))
                    .sum(),
            };
            // One whose rate isn't limited leaves no room.
            let with_it: Option<TriggerRate> = [granted, Some(rate)].into_iter().sum();
            if with_it.is_none_or(|sum| sum > quota) {
                return Err(ValidationRefusal::RateExceeded { of, retry_after });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::Rate;

    #[test]
    fn a_rate_is_what_its_interval_makes_of_it() {
        let rate = |interval_ns| {
            let policy = Policy {
                rate: Some(Rate {
                    interval: Duration::from_nanos(interval_ns),
                    burst: 9,
                }),
                ..Policy::default()
            };
            TriggerRate::of(&policy).unwrap()
        };
        assert_eq!(TriggerRate::of(&Policy::default()), None);
        // What an operator writes as 3/s and 7/s: three of the one, and seven of the other, are as many.
        assert_eq!(rate(333_333_334).times(3), TriggerRate::per_second(9));
        assert_eq!(rate(142_857_143).times(7), TriggerRate::per_second(49));
        assert_eq!(rate(10_000_000_000).as_per_second(), 0.1);
        assert_eq!(rate(1), TriggerRate::per_second(1_000_000_000));
        let all = [rate(1).times(usize::MAX), rate(1)].into_iter().sum();
        assert_eq!(rate(1).times(usize::MAX), all);
    }
}
