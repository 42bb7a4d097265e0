//! What benchmarks have in common whose competitors take turns.

use super::others::Spent;
use super::statistics::NOISY_FLOOR;
use super::{Others, Quiet, Round};
use anyhow::{Context, Result};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use std::io::{IsTerminal, stderr};

/// Keeps this thread on one CPU, and says which: the last one, as the first often has more interrupts to serve.
///
/// # Errors
///
/// When the kernel doesn't let it.
pub fn pin() -> Result<usize> {
    let this_thread = Pid::from_raw(0);
    let allowed = sched_getaffinity(this_thread)?;
    let cpu = (0..CpuSet::count())
        .rev()
        .find(|&cpu| allowed.is_set(cpu) == Ok(true))
        .context("this thread may run on no CPU")?;
    let mut only = CpuSet::new();
    only.set(cpu)?;
    sched_setaffinity(this_thread, &only)?;
    Ok(cpu)
}

/// How many times the rounds that are wanted are measured at most.
const MOST_TIMES: usize = 10;

/// What a benchmark has measured, round by round.
#[derive(Clone, Debug)]
pub struct Rounds {
    /// Those in which others took no more of the CPUs than they may.
    pub undisturbed: Vec<Round>,
    /// How many there were.
    pub all: usize,
    /// How many were to count.
    pub wanted: usize,
    /// Whether others took too much of the undisturbed ones together.
    pub are_disturbed: bool,
}

impl Rounds {
    /// How many rounds count, of which `floor` was the floor: `kept`.
    #[must_use]
    pub fn tell(&self, kept: usize, floor: &str) -> String {
        let all = self.all;
        format!(
            "{kept} of {all} rounds count, in which {floor} took no more than {NOISY_FLOOR} times its best"
        )
    }

    /// Measures until as many rounds as are `wanted` count, as [`Quiet`] and [`Others`] have it, or ten times as
    /// many were measured. The first one only warms up.
    ///
    /// # Errors
    ///
    /// As `measure` has them.
    pub fn measure(
        name: &'static str,
        wanted: usize,
        mut measure: impl FnMut() -> Result<Round>,
    ) -> Result<Self> {
        Self::until(name, wanted, || {
            let others = Others::watch()?;
            let round = measure()?;
            Ok((round, others.spent()?))
        })
    }

    /// The same, of rounds that come with what others took meanwhile.
    fn until(
        name: &'static str,
        wanted: usize,
        mut measure: impl FnMut() -> Result<(Round, Spent)>,
    ) -> Result<Self> {
        let progress = Progress::new(name, wanted);
        progress.at(0);
        measure()?;
        let mut undisturbed = Vec::new();
        let mut together = Spent::default();
        let (mut all, mut counted) = (0, 0);
        while counted < wanted && all < wanted * MOST_TIMES {
            let (round, spent) = measure()?;
            all += 1;
            if spent.is_disturbed()? {
                continue;
            }
            together = together.and(spent);
            undisturbed.push(round);
            let (now, _) = Quiet::of(&undisturbed, wanted);
            if now > counted {
                progress.at(now);
            }
            counted = now;
        }
        Ok(Self {
            undisturbed,
            all,
            wanted,
            are_disturbed: together.is_too_much(),
        })
    }
}

/// Shows on stderr how far a benchmark has got.
#[derive(Debug)]
pub struct Progress {
    name: &'static str,
    rounds: usize,
}

impl Progress {
    /// Of a benchmark of so many rounds.
    #[must_use]
    pub const fn new(name: &'static str, rounds: usize) -> Self {
        Self { name, rounds }
    }

    /// A round begins. The last one makes the line disappear from a terminal; where there is none, some of them
    /// get a line each.
    pub fn at(&self, round: usize) {
        let Self { name, rounds } = self;
        if stderr().is_terminal() {
            let end = if round == *rounds { "\r\x1b[2K" } else { "" };
            eprint!("\r\x1b[2K{name}: round {round} of {rounds}{end}");
        } else if round.is_multiple_of((rounds / 4).max(1)) {
            eprintln!("{name}: round {round} of {rounds}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rounds of a second, of which `floor` and what others took of it are these.
    fn rounds(wanted: usize, of: impl Fn(usize) -> (f64, f64)) -> Rounds {
        let mut round = 0;
        Rounds::until("test", wanted, || {
            round += 1;
            let (floor, here_s) = of(round);
            let measured = Round {
                floor,
                competitors: Vec::new(),
            };
            let spent = Spent {
                elapsed_s: 1.0,
                here_s,
                elsewhere_s: 0.0,
            };
            Ok((measured, spent))
        })
        .unwrap()
    }

    /// How many rounds it takes for so many to count, if `floor` is that of each, 0 of those that were disturbed; and
    /// whether that was enough.
    fn measured(wanted: usize, floor: impl Fn(usize) -> f64) -> (usize, usize, bool) {
        let rounds = rounds(wanted, |round| {
            let floor = floor(round);
            (floor, if floor == 0.0 { 10.0 } else { 0.0 })
        });
        let (kept, quiet) = Quiet::of(&rounds.undisturbed, rounds.wanted);
        (rounds.all, kept, quiet.is_some())
    }

    #[test]
    fn what_others_take_in_each_round_adds_up() {
        // Each has a tick more than it may, of 100 a second.
        let slightly = rounds(10, |_| (1.0, 0.06));
        assert_eq!((slightly.all, slightly.undisturbed.len()), (10, 10));
        assert!(slightly.are_disturbed);
        assert!(!rounds(10, |_| (1.0, 0.05)).are_disturbed);
        // What comes out below zero evens out what came out too high.
        let ticks = |round: usize| (1.0, if round.is_multiple_of(2) { 0.06 } else { -0.01 });
        assert!(!rounds(10, ticks).are_disturbed);
    }

    #[test]
    fn it_goes_on_until_enough_rounds_count_or_too_many_did_not() {
        assert_eq!(measured(10, |_| 1.0), (10, 10, true));
        // The first one warms up; of the others, each third one is quiet.
        let third = |round: usize| if round.is_multiple_of(3) { 1.0 } else { 2.0 };
        assert_eq!(measured(10, third), (29, 10, true));
        // The first of them tells that the others aren't.
        let rare = |round: usize| {
            if round == 2 || round.is_multiple_of(40) {
                1.0
            } else {
                2.0
            }
        };
        assert_eq!(measured(10, rare), (100, 3, false));
        // Those that were disturbed don't count, how low their floor ever was.
        let half = |round: usize| if round.is_multiple_of(2) { 0.0 } else { 1.0 };
        assert_eq!(measured(10, half), (20, 10, true));
        assert!(Rounds::measure("test", 1, || anyhow::bail!("no")).is_err());
    }
}
