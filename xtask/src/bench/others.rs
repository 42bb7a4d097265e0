//! How much of the machine others took while something was measured on it.

use super::machine::Ticks;
use super::{Figure, Row, Suite};
use anyhow::{Context, Result};
use nix::sys::resource::{Usage, UsageWho, getrusage};
use nix::sys::time::TimeValLike as _;
use nix::unistd::{SysconfVar, sysconf};
use std::fmt;
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

/// What others may take of one CPU, in percent.
const TOO_MUCH: f64 = 5.0;

/// Watches who is busy, from its beginning on.
#[derive(Debug)]
pub struct Others {
    begun: Instant,
    before: Taken,
}

/// CPU time, since the machine was started.
#[derive(Clone, Copy, Debug)]
struct Taken {
    by_all: Duration,
    by_hypervisor: Duration,
    /// This process, those that it has started and that have ended, and the kernel's threads that do what interrupts
    /// leave undone.
    by_us: Duration,
}

/// What others took, in percent of one CPU.
#[derive(Clone, Copy, Debug)]
pub struct Took {
    here: f64,
    /// The hypervisor gave it to other machines.
    elsewhere: f64,
}

impl Others {
    /// From now on.
    ///
    /// # Errors
    ///
    /// When the kernel doesn't tell.
    pub fn watch() -> Result<Self> {
        Ok(Self {
            begun: Instant::now(),
            before: Taken::now()?,
        })
    }

    /// Up to now.
    ///
    /// # Errors
    ///
    /// When the kernel doesn't tell.
    pub fn took(&self) -> Result<Took> {
        Ok(self.spent()?.took())
    }

    /// Whether nothing that was measured up to now should be believed.
    ///
    /// # Errors
    ///
    /// When the kernel doesn't tell.
    pub fn took_too_much(&self) -> Result<bool> {
        Ok(self.took()?.is_too_much(0.0))
    }

    pub(super) fn spent(&self) -> Result<Spent> {
        let now = Taken::now()?;
        let seconds = |now: Duration, before: Duration| now.as_secs_f64() - before.as_secs_f64();
        let before = self.before;
        Ok(Spent {
            elapsed_s: self.begun.elapsed().as_secs_f64(),
            here_s: seconds(now.by_all, before.by_all) - seconds(now.by_us, before.by_us),
            elsewhere_s: seconds(now.by_hypervisor, before.by_hypervisor),
        })
    }
}

/// What others took in some time. The kernel tells of it in ticks, so that over a short time it can come out too
/// high, or below zero; over many of those, that evens out.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Spent {
    pub(super) elapsed_s: f64,
    pub(super) here_s: f64,
    pub(super) elsewhere_s: f64,
}

impl Spent {
    /// Both, one after the other.
    pub(super) fn and(self, other: Self) -> Self {
        Self {
            elapsed_s: self.elapsed_s + other.elapsed_s,
            here_s: self.here_s + other.here_s,
            elsewhere_s: self.elsewhere_s + other.elsewhere_s,
        }
    }

    /// Whether a round of that should not count, where one tick of each CPU may be nobody's.
    pub(super) fn is_disturbed(self) -> Result<bool> {
        let per_second = sysconf(SysconfVar::CLK_TCK)?.context("the clock ticks")?;
        let cpus = thread::available_parallelism()?.get();
        let ticks_s = cpus as f64 / per_second as f64;
        Ok(self.took().is_too_much(ticks_s * 100.0 / self.elapsed_s))
    }

    /// Whether others took too much of all of it.
    pub(super) fn is_too_much(self) -> bool {
        self.elapsed_s > 0.0 && self.took().is_too_much(0.0)
    }

    fn took(self) -> Took {
        let percent = |time_s: f64| time_s.max(0.0) * 100.0 / self.elapsed_s;
        Took {
            here: percent(self.here_s),
            elsewhere: percent(self.elsewhere_s),
        }
    }
}

impl Taken {
    fn now() -> Result<Self> {
        let per_second = sysconf(SysconfVar::CLK_TCK)?.context("the clock ticks")?;
        let ticks = |count: u64| Duration::from_secs_f64(count as f64 / per_second as f64);
        let all = Ticks::parse(&fs::read_to_string("/proc/stat")?)?;
        let of = |usage: Usage| usage.user_time() + usage.system_time();
        let ours = [UsageWho::RUSAGE_SELF, UsageWho::RUSAGE_CHILDREN];
        let mut by_us = Duration::ZERO;
        for who in ours {
            let time = of(getrusage(who)?);
            by_us += Duration::from_micros(u64::try_from(time.num_microseconds())?);
        }
        Ok(Self {
            by_all: ticks(all.busy),
            by_hypervisor: ticks(all.stolen),
            by_us: by_us + ticks(of_soft_interrupts()?),
        })
    }
}

/// Ticks of the threads that handle interrupts where they were too many at a time: with frames from one CPU to
/// itself, these are those of whoever sends them.
fn of_soft_interrupts() -> Result<u64> {
    let mut sum = 0;
    for entry in fs::read_dir("/proc")? {
        let path = entry?.path();
        let Ok(stat) = fs::read_to_string(path.join("stat")) else {
            continue; // Not a process, or it has ended.
        };
        sum += ticks_of_soft_interrupts(&stat).unwrap_or(0);
    }
    Ok(sum)
}

/// User and system time of a line of `/proc/PID/stat`, if it is of such a thread.
fn ticks_of_soft_interrupts(stat: &str) -> Option<u64> {
    let (head, rest) = stat.rsplit_once(") ")?;
    let (_, name) = head.split_once('(')?;
    if !name.starts_with("ksoftirqd/") {
        return None;
    }
    // Fields 14 and 15, the third one being the first of the rest (proc_pid_stat(5)).
    let mut fields = rest.split(' ').skip(11);
    let mut next = || fields.next()?.parse::<u64>().ok();
    Some(next()? + next()?)
}

impl Took {
    /// Whether what was measured meanwhile should not count, where so much may be nobody's.
    fn is_too_much(self, nobodys: f64) -> bool {
        self.here + self.elsewhere - nobodys > TOO_MUCH
    }

    /// The same for programs.
    #[must_use]
    pub fn to_row(&self, suite: Suite) -> Row {
        let taken = Some(Figure::Once(self.here + self.elsewhere));
        Row::new(
            suite,
            "noise",
            "others took meanwhile, of one CPU",
            taken,
            "%",
        )
    }
}

impl fmt::Display for Took {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { here, elsewhere } = self;
        write!(
            f,
            "others took {here:.1} % of a CPU, and the hypervisor {elsewhere:.1} %"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_of_soft_interrupts_is_told_from_that_of_others() {
        let stat =
            |name| format!("15 ({name}) S 2 0 0 0 -1 69238848 0 0 0 0 3 40 0 0 20 0 1 0 1\n");
        assert_eq!(ticks_of_soft_interrupts(&stat("ksoftirqd/0")), Some(43));
        assert_eq!(ticks_of_soft_interrupts(&stat("a) b (c")), None);
        assert_eq!(ticks_of_soft_interrupts("nothing"), None);
    }

    #[test]
    fn more_than_one_in_twenty_is_too_much() {
        let took = |here, elsewhere| Took { here, elsewhere };
        assert!(!took(3.0, 2.0).is_too_much(0.0));
        assert!(took(3.0, 2.1).is_too_much(0.0));
        assert!(!took(3.0, 12.0).is_too_much(10.0));
    }
}
