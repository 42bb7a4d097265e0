//! What happens to a session on two CPUs at the same time, and while it is changed: nothing is let
//! through twice, nothing is lost, nothing is half old and half new.
//!
//! Each race is there twice: short, with all tests, and as long as one likes, in `soak`, which is what
//! `cargo xtask soak` runs. Both go through the same function, which demands exact counts.
//!
//! | module | races |
//! | --- | --- |
//! | [`replay`] | two CPUs for each sequence number |
//! | [`restart`] | the same, while the program is replaced and its controller restarted |
//! | [`slots`] | triggers of a session against the next one in its slot |
//! | [`rate`] | two CPUs for what a rate, or a coalescing window, lets through |
//! | [`updates`] | triggers against changes to their session |
//! | [`delivery`] | the same from socket to socket, and against the daemon's end |
//! | [`flood`] | good triggers against nine times as many bad ones |
//! | [`outages`] | triggers against upgrades, and links that go away |
//! | [`crashes`] | triggers, and all that was acknowledged, against `kill -9` at any moment |

mod crashes;
mod delivery;
mod flood;
mod outages;
mod rate;
mod replay;
mod restart;
mod slots;
mod soak;
mod updates;

use crate::datagram::{Datagram, ETHERNET, IPV4, Session, UDP, changed};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use push_common::verdict::Verdict;
use push_common::wire::Flags;
use push_ctl::dataplane::{Dataplane, Prober};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// After this time, whoever is waited for doesn't come any more.
const LIMIT: Duration = Duration::from_secs(60);
const REPORT_EVERY: Duration = Duration::from_secs(5);

/// What `XDP_REDIRECT` is as a number.
const REDIRECT: u32 = 4;

/// How long a race goes on, and what is told of it meanwhile.
struct Course {
    name: &'static str,
    /// What is counted.
    unit: &'static str,
    end: End,
    done: u64,
    begin: Instant,
    /// When something was told the last time; `None` if nothing ever is.
    told: Option<Instant>,
}

#[derive(Clone, Copy)]
enum End {
    Count(u64),
    Time(Duration),
}

impl Course {
    /// So many of what is counted, without a word.
    fn short(count: u64) -> Self {
        Self {
            name: "",
            unit: "",
            end: End::Count(count),
            done: 0,
            begin: Instant::now(),
            told: None,
        }
    }

    /// As long as told, with a line about it now and then.
    fn long(name: &'static str, unit: &'static str, end: End) -> Self {
        let begin = Instant::now();
        // What the test harness has begun is not on this line any more.
        println!();
        Self {
            name,
            unit,
            end,
            done: 0,
            begin,
            told: Some(begin),
        }
    }

    /// How many are done next, of `most`; `None` at the end.
    fn next(&mut self, most: u64) -> Option<u64> {
        if self.told.is_some_and(|told| told.elapsed() > REPORT_EVERY) {
            self.told = Some(Instant::now());
            let end = match self.end {
                End::Count(count) => count.to_string(),
                End::Time(time) => humantime::format_duration(time).to_string(),
            };
            println!("{}: {}", self.name, self.so_far(&format!(" of {end}")));
        }
        let count = match self.end {
            End::Count(count) => most.min(count - self.done.min(count)),
            End::Time(time) if self.begin.elapsed() < time => most,
            End::Time(_) => 0,
        };
        self.done += count;
        (count > 0).then_some(count)
    }

    /// Tells what came of it.
    fn finish(&self, outcome: &str) {
        if self.told.is_some() {
            println!("result: {}: {}: {outcome}", self.name, self.so_far(""));
        }
    }

    fn so_far(&self, of: &str) -> String {
        let seconds = self.begin.elapsed().as_secs_f64();
        format!("{} {}{of}, {seconds:.0} s", self.done, self.unit)
    }
}

/// Runs both at the same time, on a CPU each.
fn race<A: Send, B: Send>(
    one: impl FnOnce() -> A + Send,
    other: impl FnOnce() -> B + Send,
) -> (A, B) {
    let allowed = sched_getaffinity(Pid::from_raw(0)).unwrap();
    let mut cpus = (0..CpuSet::count()).filter(|&cpu| allowed.is_set(cpu) == Ok(true));
    let (Some(first), Some(second)) = (cpus.next(), cpus.next()) else {
        panic!("a race needs two CPUs");
    };
    thread::scope(|scope| {
        let one = scope.spawn(move || {
            pin(first);
            one()
        });
        let other = scope.spawn(move || {
            pin(second);
            other()
        });
        let (one, other) = (one.join(), other.join());
        match (one, other) {
            (Ok(one), Ok(other)) => (one, other),
            (Err(panic), _) | (_, Err(panic)) => std::panic::resume_unwind(panic),
        }
    })
}

fn pin(cpu: usize) {
    let mut only = CpuSet::new();
    only.set(cpu).unwrap();
    sched_setaffinity(Pid::from_raw(0), &only).unwrap();
}

/// A number that one CPU writes and another one reads, in a cache line of its own.
#[derive(Default)]
#[repr(align(64))]
struct Shared(AtomicU64);

impl Shared {
    fn get(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }

    fn set(&self, value: u64) {
        self.0.store(value, Ordering::Release);
    }

    /// One more than it was, for whoever asks first.
    fn next(&self) -> u64 {
        self.0.fetch_add(1, Ordering::AcqRel) + 1
    }

    /// Waits until it is `value` or more.
    fn wait_for(&self, value: u64) {
        let mut begin = None;
        for turn in 1_u64.. {
            if self.get() >= value {
                return;
            }
            if turn % 512 == 0 {
                // The other one may need this CPU, as may the rest of the machine.
                thread::yield_now();
                let begin = begin.get_or_insert_with(Instant::now);
                assert!(begin.elapsed() < LIMIT, "the other thread doesn't come");
            }
            std::hint::spin_loop();
        }
    }
}

/// Tells the other thread that there is nothing more to wait for, also if this one panics.
struct AtEnd<'a>(&'a Shared);

impl Drop for AtEnd<'_> {
    fn drop(&mut self) {
        self.0.set(u64::MAX);
    }
}

/// Where each of two threads is on the way that both of them go.
#[derive(Default)]
struct Pace([Shared; 2]);

impl Pace {
    /// Goes on to `step`, together with the other thread.
    fn meet(&self, me: usize, step: u64) {
        self.0[me].set(step);
        self.0[1 - me].wait_for(step);
    }
}

/// Makes frames with triggers that have no payload: IPv4 without UDP checksum, so that nothing but the
/// trigger changes from one to the next.
#[derive(Clone)]
struct Template(Vec<u8>);

const TRIGGER_AT: usize = ETHERNET + IPV4 + UDP;

impl Template {
    fn new(session: &Session) -> Self {
        let datagram = Datagram::to_gateway(false, session.trigger_at(0, b""));
        Self(changed(&datagram.frame(), ETHERNET + IPV4 + 6, &[0, 0]))
    }

    fn len(&self) -> usize {
        self.0.len()
    }

    /// The frame of this trigger.
    fn of(&mut self, session: &Session, sequence: u64, flags: Flags) -> &[u8] {
        let trigger = session.flagged_trigger_at(sequence, flags, b"");
        self.0[TRIGGER_AT..].copy_from_slice(&trigger);
        &self.0
    }
}

/// Whether the program lets a trigger through.
fn is_let_through(prober: &Prober, frame: &[u8], out: &mut Vec<u8>) -> bool {
    prober.run(frame, out).unwrap().0 == REDIRECT
}

/// What all NICs together had counted at some time.
struct Ledger(Vec<(u64, u64)>);

impl Ledger {
    fn of(dataplane: &Dataplane) -> Self {
        let mut sums = vec![(0, 0); Verdict::ALL.len()];
        for nic in dataplane.verdicts().unwrap() {
            for (verdict, packets, bytes) in nic.by_verdict {
                sums[verdict as usize].0 += packets;
                sums[verdict as usize].1 += bytes;
            }
        }
        Self(sums)
    }

    /// Packets that have had this verdict since then.
    fn since(&self, dataplane: &Dataplane, verdict: Verdict) -> u64 {
        Self::of(dataplane).0[verdict as usize].0 - self.0[verdict as usize].0
    }

    /// Demands that there were these verdicts since then, on frames of this length, and no other ones.
    fn demand(&self, dataplane: &Dataplane, frame_len: usize, expected: &[(Verdict, u64)]) {
        let now = Self::of(dataplane);
        let moved = |index: usize| {
            let (now, before) = (now.0[index], self.0[index]);
            (now.0 - before.0, now.1 - before.1)
        };
        let of = |verdict: Verdict| {
            let row = expected.iter().find(|&&(expected, _)| expected == verdict);
            row.map_or(0, |&(_, count)| count)
        };
        let verdicts = Verdict::ALL.iter().enumerate();
        let (found, wanted): (Vec<_>, Vec<_>) = verdicts
            .map(|(index, &verdict)| {
                let wanted = (of(verdict), of(verdict) * frame_len as u64);
                ((verdict.label(), moved(index)), (verdict.label(), wanted))
            })
            .filter(|((_, found), (_, wanted))| found != wanted)
            .unzip();
        assert_eq!(
            found, wanted,
            "packets and bytes by verdict, where they differ"
        );
    }
}
