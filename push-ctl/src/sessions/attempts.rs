//! How often something may be tried. None of it is kept across restarts.

use super::records::{AppName, RegistrationId, UnixTime};
use push_common::wire::SessionId;
use std::collections::HashMap;
use std::time::Duration;

/// Wrong guesses at a session's token that cost nothing but the guess.
const FREE_GUESSES: u32 = 3;

/// Longest wait after a wrong guess.
const LONGEST_WAIT: Duration = Duration::from_mins(5);

/// How many wrong guesses of one application may come at once, and how soon there may be another one.
const APP_GUESSES: Allowance = Allowance {
    burst: 60,
    interval: Duration::from_secs(1),
};

/// The same for the sessions of one terminal.
const TERMINAL_GUESSES: Allowance = Allowance {
    burst: 20,
    interval: Duration::from_secs(5),
};

/// So many at once, and another one in each interval.
#[derive(Clone, Copy, Debug)]
struct Allowance {
    burst: u32,
    interval: Duration,
}

/// How much of an [`Allowance`] is used up: when none of it will be, if nothing more happens (GCRA).
#[derive(Clone, Copy, Debug)]
struct Used {
    gone_at: UnixTime,
}

impl Used {
    const NOTHING: Self = Self {
        gone_at: UnixTime::from_millis(0),
    };

    /// How long it takes until there is some left; zero if there is.
    fn wait(self, now: UnixTime, allowance: Allowance) -> Duration {
        let room = allowance.interval * allowance.burst.saturating_sub(1);
        self.gone_at.saturating_since(now.saturating_add(room))
    }

    fn take(&mut self, now: UnixTime, allowance: Allowance) {
        self.gone_at = self.gone_at.max(now).saturating_add(allowance.interval);
    }
}

/// Wrong guesses at one session's token.
#[derive(Clone, Copy, Debug)]
struct Guesses {
    wrong: u32,
    /// No further one is looked at before.
    not_before: UnixTime,
}

/// Who has tried what. What is used up is forgotten when it is all there again.
#[derive(Debug, Default)]
pub(super) struct Attempts {
    validations: HashMap<AppName, Used>,
    wrong_by_app: HashMap<AppName, Used>,
    wrong_by_terminal: HashMap<RegistrationId, Used>,
    wrong_by_session: HashMap<SessionId, Guesses>,
}

impl Attempts {
    /// Counts a validation of an application that may have so many a minute; or says how long until
    /// it may have another.
    pub(super) fn validation(
        &mut self,
        now: UnixTime,
        app: &AppName,
        per_minute: u32,
    ) -> Result<(), Duration> {
        let allowance = Allowance {
            burst: per_minute,
            interval: Duration::from_mins(1) / per_minute.max(1),
        };
        let used = self.validations.entry(app.clone()).or_insert(Used::NOTHING);
        let wait = used.wait(now, allowance);
        if per_minute == 0 || !wait.is_zero() {
            return Err(wait.max(Duration::from_secs(1)));
        }
        used.take(now, allowance);
        Ok(())
    }

    /// How long until a guess at this session's token is looked at; zero if it is now.
    pub(super) fn wait(
        &self,
        now: UnixTime,
        app: &AppName,
        of: Option<(SessionId, RegistrationId)>,
    ) -> Duration {
        let by_app = self.wrong_by_app.get(app);
        let by_app = by_app.map_or(Duration::ZERO, |used| used.wait(now, APP_GUESSES));
        let Some((session, terminal)) = of else {
            return by_app;
        };
        let by_terminal = self.wrong_by_terminal.get(&terminal);
        let by_terminal =
            by_terminal.map_or(Duration::ZERO, |used| used.wait(now, TERMINAL_GUESSES));
        let by_session = self.wrong_by_session.get(&session);
        let by_session = by_session.map_or(Duration::ZERO, |guesses| {
            guesses.not_before.saturating_since(now)
        });
        by_app.max(by_terminal).max(by_session)
    }

    /// A guess was wrong. `of` is what it was a guess at, if there is such a session.
    pub(super) fn wrong(
        &mut self,
        now: UnixTime,
        app: &AppName,
        of: Option<(SessionId, RegistrationId)>,
    ) {
        let used = self.wrong_by_app.entry(app.clone());
        used.or_insert(Used::NOTHING).take(now, APP_GUESSES);
        let Some((session, terminal)) = of else {
            return;
        };
        let used = self.wrong_by_terminal.entry(terminal);
        used.or_insert(Used::NOTHING).take(now, TERMINAL_GUESSES);
        let guesses = self.wrong_by_session.entry(session).or_insert(Guesses {
            wrong: 0,
            not_before: now,
        });
        guesses.wrong = guesses.wrong.saturating_add(1);
        // Twice as long each time.
        let doublings = guesses.wrong.saturating_sub(FREE_GUESSES);
        let wait = match doublings {
            0 => Duration::ZERO,
            n => Duration::from_secs(1 << (n - 1).min(16)).min(LONGEST_WAIT),
        };
        guesses.not_before = now.saturating_add(wait);
    }

    /// A guess was right, or nobody can guess any more.
    pub(super) fn forget_session(&mut self, session: SessionId) {
        self.wrong_by_session.remove(&session);
    }

    pub(super) fn forget_app(&mut self, app: &AppName) {
        self.validations.remove(app);
        self.wrong_by_app.remove(app);
    }

    pub(super) fn forget_terminal(&mut self, terminal: RegistrationId) {
        self.wrong_by_terminal.remove(&terminal);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> UnixTime {
        UnixTime::from_millis(1_700_000_000_000 + seconds * 1000)
    }

    #[test]
    fn an_allowance_is_a_burst_and_then_one_per_interval() {
        let mut attempts = Attempts::default();
        let app = "mail".parse().unwrap();
        let mut granted = 0;
        for second in 0..120 {
            for _ in 0..10 {
                granted += u32::from(attempts.validation(at(second), &app, 30).is_ok());
            }
        }
        // The burst, and one each two seconds after the first.
        assert_eq!(granted, 30 + 59);
        let wait = attempts.validation(at(119), &app, 30).unwrap_err();
        assert!(wait <= Duration::from_secs(2), "{wait:?}");
        assert!(attempts.validation(at(119), &app, 0).is_err());
    }

    #[test]
    fn each_wrong_guess_is_waited_for_twice_as_long_up_to_a_limit() {
        let mut attempts = Attempts::default();
        let app = "mail".parse().unwrap();
        let of = Some((SessionId::new(1, 1), RegistrationId::from_u64(1)));
        let mut now = at(0);
        let mut waits = Vec::new();
        for _ in 0..16 {
            attempts.wrong(now, &app, of);
            let wait = attempts.wait(now, &app, of);
            waits.push(wait.as_secs());
            now = now.saturating_add(wait);
        }
        assert_eq!(
            waits,
            [
                0, 0, 0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300, 300
            ]
        );
        attempts.forget_session(SessionId::new(1, 1));
        assert_eq!(attempts.wait(now, &app, of), Duration::ZERO);
    }

    #[test]
    fn guesses_at_many_sessions_are_waited_for_too() {
        let mut attempts = Attempts::default();
        let app = "mail".parse().unwrap();
        for slot in 0..60 {
            let terminal = RegistrationId::from_u64(slot.into());
            assert_eq!(attempts.wait(at(0), &app, None), Duration::ZERO, "{slot}");
            attempts.wrong(at(0), &app, Some((SessionId::new(slot, 1), terminal)));
        }
        assert_eq!(attempts.wait(at(0), &app, None), Duration::from_secs(1));
        assert_eq!(attempts.wait(at(1), &app, None), Duration::ZERO);

        let mut attempts = Attempts::default();
        let terminal = RegistrationId::from_u64(1);
        for slot in 0..20 {
            attempts.wrong(at(0), &app, Some((SessionId::new(slot, 1), terminal)));
        }
        let another = Some((SessionId::new(99, 1), terminal));
        assert_eq!(attempts.wait(at(0), &app, another), Duration::from_secs(5));
        assert_eq!(attempts.wait(at(0), &app, None), Duration::ZERO);
    }
}
