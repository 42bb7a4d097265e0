//! What benchmarks have in common whose competitors take turns.

use super::others::Spent;
use super::statistics::NOISY_FLOOR;
use super::{Others, Quiet, Round};
use anyhow::{Context, Result, anyhow};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use push_common::tag::{Mac, TagKey};
use std::array;
use std::fmt;
use std::hint::black_box;
use std::io::{IsTerminal, stderr};
use std::mem;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

/// Keeps this thread on one CPU, and says which: the last one, as the first often has more interrupts to serve.
///
/// # Errors
///
/// When the kernel doesn't let it.
pub fn pin() -> Result<usize> {
    let allowed = allowed_cpus()?;
    let &cpu = allowed.last().context("this thread may run on no CPU")?;
    pin_to(cpu)?;
    Ok(cpu)
}

/// Those that this thread may run on, in order.
///
/// # Errors
///
/// When the kernel doesn't tell.
pub fn allowed_cpus() -> Result<Vec<usize>> {
    let allowed = sched_getaffinity(THIS_THREAD)?;
    let cpus = (0..CpuSet::count()).filter(|&cpu| allowed.is_set(cpu) == Ok(true));
    Ok(cpus.collect())
}

const THIS_THREAD: Pid = Pid::from_raw(0);

fn pin_to(cpu: usize) -> Result<()> {
    let mut only = CpuSet::new();
    only.set(cpu)?;
    Ok(sched_setaffinity(THIS_THREAD, &only)?)
}

/// Tags that words go into at the same time: as many as keep a core busy, and as fit into its registers.
const TAGS: usize = 2;

/// How long it takes until so many words are in tags, on each of these CPUs at the same time. Nothing of it is in
/// memory, so nothing but the CPUs' own arithmetic is shared, of which one tag alone, where each step waits for the one
/// before, leaves some to another thread of the same core.
///
/// # Errors
///
/// When this process may not run on one of them.
pub fn arithmetic(cpus: &[usize], words: u64) -> Result<Duration> {
    let begin = Barrier::new(cpus.len());
    let absorb = |cpu: usize| {
        let pinned = pin_to(cpu);
        begin.wait();
        pinned?;
        let begun = Instant::now();
        let mut tags: [Mac; TAGS] =
            array::from_fn(|tag| Mac::new(TagKey::from_bytes([tag as u8; 16])));
        for word in 0..words / TAGS as u64 {
            for tag in &mut tags {
                tag.absorb_word(word);
            }
        }
        black_box(tags.map(|tag| tag.finish(0, 0)));
        Ok(begun.elapsed())
    };
    let absorb = &absorb;
    let took = thread::scope(|scope| {
        let running = cpus.iter().map(|&cpu| scope.spawn(move || absorb(cpu)));
        let running: Vec<_> = running.collect();
        let ended = running
            .into_iter()
            .map(|thread| thread.join().map_err(|_| anyhow!("a thread panicked"))?);
        ended.collect::<Result<Vec<Duration>>>()
    })?;
    took.into_iter().max().context("there are no CPUs")
}

/// Words between two turns: about half a millisecond.
const WORDS_BETWEEN: u64 = 200_000;

/// Lets competitors have their turns while the CPUs do arithmetic about as fast as they ever did. Virtual CPUs may have
/// to share a core with those of other machines: for a second or a minute, all of it takes twice as long then.
pub struct Turns<'a> {
    arithmetic: Box<dyn FnMut() -> Result<Duration> + 'a>,
    /// What the arithmetic took at best.
    best: Duration,
    /// After the last turn.
    last: Duration,
    /// At worst around the turns of this round that have been accepted.
    worst: Duration,
    taken: usize,
    most: usize,
}

impl fmt::Debug for Turns<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { taken, most, .. } = self;
        write!(f, "Turns({taken} of {most})")
    }
}

impl<'a> Turns<'a> {
    /// On these CPUs, so many at most.
    ///
    /// # Errors
    ///
    /// When this process may not run on one of them.
    pub fn on(cpus: &'a [usize], most: usize) -> Result<Self> {
        let turns = Self::new(|| arithmetic(cpus, WORDS_BETWEEN))?;
        Ok(Self { most, ..turns })
    }

    fn new(mut arithmetic: impl FnMut() -> Result<Duration> + 'a) -> Result<Self> {
        let now = arithmetic()?;
        Ok(Self {
            arithmetic: Box::new(arithmetic),
            best: now,
            last: now,
            worst: Duration::ZERO,
            taken: 0,
            most: 0,
        })
    }

    /// Has one competitor measured, and again if the CPUs were slow before or after it.
    ///
    /// # Errors
    ///
    /// As `measure` has them.
    pub fn take<T>(&mut self, mut measure: impl FnMut() -> Result<T>) -> Result<T> {
        loop {
            let measured = measure()?;
            self.taken += 1;
            let before = mem::replace(&mut self.last, (self.arithmetic)()?);
            self.best = self.best.min(self.last);
            let worse = self.last.max(before);
            if worse <= self.limit() || self.taken >= self.most {
                self.worst = self.worst.max(worse);
                return Ok(measured);
            }
        }
    }

    fn limit(&self) -> Duration {
        self.best.mul_f64(NOISY_FLOOR)
    }
}

/// How many times the turns that are wanted are taken at most.
const MOST_TIMES: usize = 10;

/// What a benchmark has measured, round by round.
#[derive(Clone, Debug)]
pub struct Rounds {
    /// Those in which the CPUs were fast, and others took no more of them than they may.
    pub undisturbed: Vec<Round>,
    /// How many there were.
    pub all: usize,
    /// How many turns were taken, and how many such rounds have.
    pub turns: (usize, usize),
    /// How many were to count.
    pub wanted: usize,
    /// Whether others took too much of the undisturbed ones together.
    pub are_disturbed: bool,
}

impl Rounds {
    /// How many rounds count, of which `floor` was the floor: `kept`.
    #[must_use]
    pub fn tell(&self, kept: usize, floor: &str) -> String {
        let (all, (taken, needed)) = (self.all, self.turns);
        format!(
            "{kept} of {all} rounds count, in which {floor} took no more than {NOISY_FLOOR} times its best; for them, \
             {taken} turns were taken instead of {needed}, until the CPUs were as fast before and after each"
        )
    }

    /// Measures, with turns on `cpus`, until as many rounds as are `wanted` count, as [`Turns`], [`Quiet`] and
    /// [`Others`] have it, or ten times as many turns were taken as these have. The first round only warms up.
    ///
    /// # Errors
    ///
    /// As `measure` has them.
    pub fn measure(
        name: &'static str,
        wanted: usize,
        cpus: &[usize],
        mut measure: impl FnMut(&mut Turns<'_>) -> Result<Round>,
    ) -> Result<Self> {
        // How many it may be, is known when there was one round.
        let turns = Turns::on(cpus, 0)?;
        Self::until(name, wanted, turns, |turns| {
            let others = Others::watch()?;
            let round = measure(turns)?;
            Ok((round, others.spent()?))
        })
    }

    /// The same, of rounds that come with what others took meanwhile.
    fn until(
        name: &'static str,
        wanted: usize,
        mut turns: Turns<'_>,
        mut measure: impl FnMut(&mut Turns<'_>) -> Result<(Round, Spent)>,
    ) -> Result<Self> {
        let progress = Progress::new(name, wanted);
        progress.at(0);
        measure(&mut turns)?;
        let each = mem::take(&mut turns.taken);
        turns.most = MOST_TIMES * wanted * each;
        let mut undisturbed: Vec<(Duration, Spent, Round)> = Vec::new();
        let (mut all, mut counted) = (0, 0);
        while counted < wanted && turns.taken < turns.most {
            turns.worst = Duration::ZERO;
            let (round, spent) = measure(&mut turns)?;
            all += 1;
            if !spent.is_disturbed()? {
                undisturbed.push((turns.worst, spent, round));
            }
            // What was the best until now, may not be any more.
            let limit = turns.limit();
            undisturbed.retain(|&(worst, ..)| worst <= limit);
            let (now, _) = Quiet::of(undisturbed.iter().map(|(.., round)| round), wanted);
            if now > counted {
                progress.at(now);
            }
            counted = now;
        }
        let together = undisturbed.iter().map(|&(_, spent, _)| spent);
        let are_disturbed = together.fold(Spent::default(), Spent::and).is_too_much();
        Ok(Self {
            undisturbed: undisturbed.into_iter().map(|(.., round)| round).collect(),
            all,
            turns: (turns.taken, all * each),
            wanted,
            are_disturbed,
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
    use std::iter;

    const TURNS: usize = 4;

    /// How long the arithmetic takes, again and again.
    fn turns_at<'a>(mut milliseconds: impl Iterator<Item = u64> + 'a) -> Turns<'a> {
        Turns::new(move || {
            let next = milliseconds.next().context("it goes on")?;
            Ok(Duration::from_millis(next))
        })
        .unwrap()
    }

    /// Rounds of a second, of which `floor` and what others took of it are these.
    fn rounds(
        wanted: usize,
        milliseconds: impl Iterator<Item = u64>,
        of: impl Fn(usize) -> (f64, f64),
    ) -> Rounds {
        let mut round = 0;
        Rounds::until("test", wanted, turns_at(milliseconds), |turns| {
            round += 1;
            let (floor, here_s) = of(round);
            for _ in 0..TURNS {
                turns.take(|| Ok(()))?;
            }
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
        let rounds = rounds(wanted, iter::repeat(100), |round| {
            let floor = floor(round);
            (floor, if floor == 0.0 { 10.0 } else { 0.0 })
        });
        let (kept, quiet) = Quiet::of(&rounds.undisturbed, rounds.wanted);
        (rounds.all, kept, quiet.is_some())
    }

    #[test]
    fn a_turn_is_taken_again_until_the_cpus_were_fast_before_and_after_it() {
        let mut turns = turns_at([100, 115, 116, 90, 103, 104, 103, 200].into_iter());
        turns.most = 100;
        let mut count = 0;
        let mut take = |turns: &mut Turns<'_>| {
            turns.take(|| {
                count += 1;
                Ok(count)
            })
        };
        // 115 is not too much.
        assert_eq!(take(&mut turns).unwrap(), 1);
        // 116 is, before the next one too; and 104 is, now that the best is 90.
        assert_eq!(take(&mut turns).unwrap(), 4);
        assert_eq!(turns.worst, Duration::from_millis(115));
        assert_eq!((turns.taken, turns.best), (4, Duration::from_millis(90)));
        let error = take(&mut turns).unwrap_err();
        assert_eq!(error.to_string(), "it goes on");
    }

    #[test]
    fn how_slow_it_was_before_the_first_turn_does_not_matter() {
        let mut turns = turns_at([200, 100, 101].into_iter());
        turns.most = 100;
        assert!(turns.take(|| Ok(())).is_ok());
        assert_eq!(turns.taken, 2);
        assert_eq!(turns.worst, Duration::from_millis(101));
    }

    #[test]
    fn no_more_turns_are_taken_than_ten_times_as_many_as_are_needed() {
        let slow_after = |count: usize| iter::repeat_n(100, count).chain(iter::repeat(200));
        // The first one warms up; then one round in which the CPUs were fast.
        let few = rounds(10, slow_after(1 + 2 * TURNS), |_| (1.0, 0.0));
        // The round in which it is enough is gone through with.
        assert_eq!(few.turns, (10 * 10 * TURNS + TURNS - 1, 2 * TURNS));
        assert_eq!(few.undisturbed.len(), 1);
        // What was fast until then, no longer is.
        let faster = iter::repeat_n(200, 5 * TURNS).chain(iter::repeat(100));
        let later = rounds(10, faster, |_| (1.0, 0.0));
        assert_eq!((later.all, later.undisturbed.len()), (14, 10));
    }

    #[test]
    fn what_others_take_in_each_round_adds_up() {
        let rounds = |of: &dyn Fn(usize) -> (f64, f64)| rounds(10, iter::repeat(100), of);
        // Each has a tick more than it may, of 100 a second.
        let slightly = rounds(&|_| (1.0, 0.06));
        assert_eq!((slightly.all, slightly.undisturbed.len()), (10, 10));
        assert!(slightly.are_disturbed);
        assert!(!rounds(&|_| (1.0, 0.05)).are_disturbed);
        // What comes out below zero evens out what came out too high.
        let ticks = |round: usize| (1.0, if round.is_multiple_of(2) { 0.06 } else { -0.01 });
        assert!(!rounds(&ticks).are_disturbed);
    }

    #[test]
    fn it_goes_on_until_enough_rounds_count_or_too_many_did_not() {
        assert_eq!(measured(10, |_| 1.0), (10, 10, true));
        // The first one warms up; of the others, each third one is quiet.
        let third = |round: usize| if round.is_multiple_of(3) { 1.0 } else { 2.0 };
        assert_eq!(measured(10, third), (29, 10, true));
        // Those of the first and of each 20th round tell that the others aren't.
        let rare = |round: usize| {
            if round == 2 || round.is_multiple_of(20) {
                1.0
            } else {
                2.0
            }
        };
        assert_eq!(measured(10, rare), (100, 6, false));
        // Those that were disturbed don't count, how low their floor ever was.
        let half = |round: usize| if round.is_multiple_of(2) { 0.0 } else { 1.0 };
        assert_eq!(measured(10, half), (20, 10, true));
        let no = |_: &mut Turns<'_>| anyhow::bail!("no");
        assert!(Rounds::measure("test", 1, &[0], no).is_err());
    }

    #[test]
    fn arithmetic_is_done_on_a_cpu_that_is_there() {
        let took = arithmetic(&[pin().unwrap()], 1000).unwrap();
        assert!(took > Duration::ZERO);
        assert!(arithmetic(&[CpuSet::count() - 1], 1000).is_err());
        assert!(arithmetic(&[], 1000).is_err());
    }
}
