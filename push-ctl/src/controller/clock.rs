//! What time it is for registrations and sessions, whatever is done to the wall clock.
//!
//! | deadline | clock |
//! | --- | --- |
//! | of registrations, sessions, tokens and credentials, in the controller and in the store | [`Clock`] |
//! | of sessions, rates and coalescing, in the path; watching; round trips | `CLOCK_MONOTONIC` |
//! | enquiries at application servers, repeated requests to devices, connections | `CLOCK_MONOTONIC` |
//! | what is told: events, the audit log | the wall clock |
//!
//! `CLOCK_MONOTONIC` stands still while the machine is suspended, in which nothing is delivered either. When it has
//! been, the controller tells the path anew when each session ends. If there is no controller, who is
//! started later does.

use crate::sessions::records::UnixTime;
use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime};
use tokio::time::Instant;
use tracing::{info, warn};

/// In the `state_dir`: which boot of the machine it was, and when that was, as the controller has it.
const FILE_NAME: &str = "clock";

/// Beyond this the wall clock was plainly wrong before: it is believed now.
const MOST_SET: Duration = Duration::from_hours(24);

/// By less than that it was not set.
const LEAST_SET: Duration = Duration::from_secs(1);

/// What the machine was suspended for if it was: two clocks can't be read at once.
const SLEPT: Duration = Duration::from_millis(100);

/// The wall clock as it was when the first controller since the machine was booted was started, carried on by the time that
/// has passed since, be it while the machine was suspended. To set the wall clock, between two starts or after them,
/// ends no session, and lets none live longer.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    started: Instant,
    started_at: UnixTime,
    /// How long the machine had been suspended then.
    suspended: Duration,
    /// The same when it was last asked whether it was suspended.
    seen: Duration,
}

impl Clock {
    /// Takes up the clock of the controller before, if that ran since the machine was booted.
    #[must_use]
    pub fn resume(state_dir: &Path) -> Self {
        let path = state_dir.join(FILE_NAME);
        let since_boot = since_boot();
        let by_wall =
            UnixTime::from_millis(0).saturating_add(since_epoch().saturating_sub(since_boot));
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let boot = Boot {
            id: boot.trim().to_owned(),
            at: by_wall,
        };
        let saved = fs::read_to_string(&path).ok();
        let saved = saved.and_then(|text| Boot::from_text(&text));
        let booted = boot.resuming(saved.as_ref());
        if saved.as_ref() != Some(&booted)
            && let Err(error) = replace(&path, &booted.to_text())
        {
            let path = path.display();
            warn!(
                %path, %error,
                "can't write: if the wall clock is set before the next start, registrations end earlier or later by that"
            );
        }
        Self {
            started: Instant::now(),
            started_at: booted.at.saturating_add(since_boot),
            suspended: suspended(),
            seen: suspended(),
        }
    }

    /// Whether the machine has been suspended since this was asked last.
    pub(super) fn has_slept(&mut self, suspended: Duration) -> bool {
        let slept = suspended.saturating_sub(self.seen);
        if slept < SLEPT {
            return false;
        }
        self.seen = suspended;
        let time = humantime::format_duration(Duration::from_secs(slept.as_secs()));
        info!(%time, "the machine was suspended; sessions end when they would have");
        true
    }

    /// Now, if the machine has been suspended for so long since it was booted.
    pub(super) fn now(&self, suspended: Duration) -> UnixTime {
        let slept = suspended.saturating_sub(self.suspended);
        self.started_at
            .saturating_add(self.started.elapsed())
            .saturating_add(slept)
    }

    /// When it will be, or has been, `time`, unless the machine is suspended; the start for all before that.
    pub(super) fn instant(&self, time: UnixTime, suspended: Duration) -> Instant {
        // So that the moment, cut to milliseconds, has come when a timer says so.
        let later = time
            .saturating_since(self.started_at)
            .saturating_add(Duration::from_millis(1))
            .saturating_sub(suspended.saturating_sub(self.suspended));
        self.started
            .checked_add(later)
            .unwrap_or_else(|| self.started + Duration::from_hours(24))
    }
}

/// How long the machine has been suspended since it was booted: as long as `CLOCK_MONOTONIC` stood still.
pub(super) fn suspended() -> Duration {
    let monotonic = read(nix::time::ClockId::CLOCK_MONOTONIC);
    since_boot().saturating_sub(monotonic)
}

fn since_boot() -> Duration {
    read(nix::time::ClockId::CLOCK_BOOTTIME)
}

fn read(clock: nix::time::ClockId) -> Duration {
    nix::time::clock_gettime(clock)
        .expect("Linux has this clock")
        .into()
}

fn since_epoch() -> Duration {
    let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since_epoch.unwrap_or_default()
}

fn replace(path: &Path, text: &str) -> io::Result<()> {
    let unfinished = path.with_extension("new");
    fs::write(&unfinished, text)?;
    fs::rename(&unfinished, path)
}

/// A boot of the machine, and when it was.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Boot {
    id: String,
    at: UnixTime,
}

impl Boot {
    fn from_text(text: &str) -> Option<Self> {
        let (id, at) = text.trim().split_once(' ')?;
        Some(Self {
            id: id.to_owned(),
            at: UnixTime::from_millis(at.parse().ok()?),
        })
    }

    fn to_text(&self) -> String {
        format!("{} {}\n", self.id, self.at.as_millis())
    }

    /// When it was as it was held before, rather than as the wall clock has it.
    fn resuming(self, saved: Option<&Self>) -> Self {
        let Some(saved) = saved.filter(|saved| saved.id == self.id && !self.id.is_empty()) else {
            return self;
        };
        let (forward, back) = (
            self.at.saturating_since(saved.at),
            saved.at.saturating_since(self.at),
        );
        let set = forward.max(back);
        let direction = if back.is_zero() { "forward" } else { "back" };
        let by = humantime::format_duration(Duration::from_secs(set.as_secs()));
        if set > MOST_SET {
            warn!(%by, direction, "the wall clock was set, by so much that registrations go by what it says now");
            return self;
        }
        if set >= LEAST_SET {
            info!(%by, direction, "the wall clock was set; registrations end when they would have");
        }
        saved.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn boot(id: &str, at_s: u64) -> Boot {
        Boot {
            id: id.to_owned(),
            at: UnixTime::from_millis(at_s * 1000),
        }
    }

    #[test]
    fn a_wall_clock_that_was_set_changes_nothing_until_the_next_boot() {
        const DAY_S: u64 = 86_400;
        let saved = boot("one", 10 * DAY_S);
        assert_eq!(Boot::from_text(&saved.to_text()), Some(saved.clone()));
        assert_eq!(Boot::from_text("one"), None);
        for set_to in [9 * DAY_S, 10 * DAY_S - 3600, 10 * DAY_S + 3600, 11 * DAY_S] {
            assert_eq!(boot("one", set_to).resuming(Some(&saved)), saved);
        }
        // Another boot, none that is known, none that has a name, and a clock that was not one.
        for (now, saved) in [
            (boot("two", 10 * DAY_S + 3600), Some(&saved)),
            (boot("one", 10 * DAY_S + 3600), None),
            (boot("", 1), Some(&boot("", 2))),
            (boot("one", 11 * DAY_S + 1), Some(&saved)),
            (boot("one", 0), Some(&saved)),
        ] {
            assert_eq!(now.clone().resuming(saved), now);
        }
    }

    #[test]
    fn the_next_controller_goes_on_by_the_clock_of_the_one_before() {
        let folder = tempfile::tempdir().unwrap();
        let first = Clock::resume(folder.path());
        let path = folder.path().join(FILE_NAME);
        let Boot { id, at } = Boot::from_text(&fs::read_to_string(&path).unwrap()).unwrap();
        let an_hour = Duration::from_hours(1);
        let set = Boot {
            id,
            at: at.saturating_add(an_hour),
        };
        fs::write(&path, set.to_text()).unwrap();
        let second = Clock::resume(folder.path());
        let ahead = second
            .now(suspended())
            .saturating_since(first.now(suspended()));
        assert!(
            ahead.abs_diff(an_hour) < Duration::from_secs(60),
            "{ahead:?}"
        );
    }

    #[test]
    fn time_passes_while_the_machine_is_suspended() {
        let clock = Clock {
            started: Instant::now(),
            started_at: UnixTime::from_millis(0),
            suspended: Duration::from_secs(5),
            seen: Duration::from_secs(5),
        };
        let end = UnixTime::from_millis(100_000);
        let awake = clock.instant(end, Duration::from_secs(5));
        assert_eq!(
            awake - clock.instant(end, Duration::from_secs(65)),
            Duration::from_secs(60)
        );
        assert_eq!(clock.instant(end, Duration::from_hours(9)), clock.started);
        assert!(clock.now(Duration::from_secs(65)) >= UnixTime::from_millis(60_000));
        assert!(clock.now(Duration::from_secs(5)) < UnixTime::from_millis(60_000));
    }
}
