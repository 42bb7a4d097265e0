//! What a rate and a coalescing window let through, of what two CPUs offer at the same time.

use super::{Course, Ledger, Pace, Shared, Template, is_let_through, race};
use crate::datagram::{DEVICES, Session};
use crate::gateway::{EXT, Gateway};
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_getres};
use push_common::maps::{TICK_NS, tick_of};
use push_common::verdict::Verdict;
use push_common::wire::{Flags, SessionId};
use push_ctl::dataplane::{Policy, Prober, Rate};
use std::time::{Duration, Instant};

const POLICY: u16 = 3;
/// Sessions that are there at the same time.
const AT_ONCE: u64 = 60;

#[test]
fn of_a_burst_from_two_cpus_not_one_more_is_let_through() {
    bursts(Course::short(20_000));
}

#[test]
fn in_any_time_two_cpus_get_what_one_would_get_to_the_last_trigger() {
    over_time(Course::short(1));
}

#[test]
fn each_collapse_key_wakes_a_device_once_from_two_cpus() {
    windows(Course::short(3_000));
}

#[test]
fn each_collapse_key_wakes_a_device_once_a_window_from_two_cpus() {
    windows_over_time(Course::short(1));
}

/// Sessions that nothing has been sent to; `number` makes them differ from all others in their slots.
fn fresh(gateway: &mut Gateway, number: u64) -> Vec<Session> {
    let install = |slot| {
        let mut session = Session::new(slot, DEVICES[0]);
        session.image.id = SessionId::new(slot, number as u32 + 1);
        session.image.policy = POLICY;
        session.installed(gateway)
    };
    (1..=AT_ONCE as u32).map(install).collect()
}

/// A course of so many sessions, each with a bucket that is not filled again, that both CPUs empty.
pub(super) fn bursts(mut course: Course) {
    const BURST: u32 = 5;
    const OFFERS: u64 = 8;
    let policy = Policy {
        rate: Some(Rate {
            interval: Duration::from_secs(3600),
            burst: BURST,
        }),
        ..Policy::default()
    };
    let round = |gateway: &Gateway, sessions: &[Session]| {
        let let_through = in_step(gateway, sessions, OFFERS, |_| Flags::NONE).len();
        let refused = 2 * OFFERS - u64::from(BURST);
        for session in sessions {
            let counters = gateway
                .dataplane
                .session_counters(session.image.id)
                .unwrap();
            let (packets, times_refused) = (counters.packets, counters.refused.into());
            assert_eq!(
                (packets, times_refused),
                (BURST.into(), refused),
                "let through, refused"
            );
        }
        let count = sessions.len() as u64;
        let expected = [
            (Verdict::Redirected, count * u64::from(BURST)),
            (Verdict::RateExceeded, count * refused),
        ];
        (let_through, expected)
    };
    Gateway::run(move |mut gateway| {
        let let_through = rounds(&mut gateway, &mut course, &policy, round);
        course.finish(&format!(
            "{let_through} triggers let through, {BURST} of each: one more = 0"
        ));
    });
}

/// A course of so many sessions, in rounds of fresh ones. Each round tells how many triggers it got
/// through, and how often each verdict is due; returns how many got through in all.
fn rounds(
    gateway: &mut Gateway,
    course: &mut Course,
    policy: &Policy,
    round: impl Fn(&Gateway, &[Session]) -> (usize, [(Verdict, u64); 2]),
) -> usize {
    gateway.dataplane.set_policy(POLICY, policy).unwrap();
    let mut let_through = 0;
    for number in 0.. {
        let Some(count) = course.next(AT_ONCE) else {
            break;
        };
        let sessions = fresh(gateway, number);
        let sessions = &sessions[..count as usize];
        let before = Ledger::of(&gateway.dataplane);
        let (more, expected) = round(gateway, sessions);
        let length = Template::new(&sessions[0]).len();
        before.demand(&gateway.dataplane, length, &expected);
        let_through += more;
    }
    let_through
}

/// Makes offers to each session on both CPUs, both at the same moment; returns sessions and flags of those
/// that were let through.
fn in_step(
    gateway: &Gateway,
    sessions: &[Session],
    offers: u64,
    flags: impl Fn(u64) -> Flags + Sync,
) -> Vec<(u32, Flags)> {
    let prober = gateway.dataplane.prober(EXT).unwrap();
    let pace = Pace::default();
    let offer = |me: usize| {
        let mut out = Vec::new();
        let mut let_through = Vec::new();
        for (number, session) in (0..).zip(sessions) {
            let mut template = Template::new(session);
            for step in 0..offers {
                let frame = template.of(session, 1000 + 2 * step + me as u64, flags(step));
                pace.meet(me, number * offers + step + 1);
                if is_let_through(&prober, frame, &mut out) {
                    let_through.push((session.image.id.slot(), flags(step)));
                }
            }
        }
        let_through
    };
    let (mut one, other) = race(|| offer(0), || offer(1));
    one.extend(other);
    one
}

/// The clock that the path goes by, which stands still between the kernel's ticks.
/// The coarse clock, as the kernel itself reads it, and so the program: at a tick, the copy of it that is
/// mapped into processes, from which `clock_gettime` reads, is a moment ahead.
#[expect(unsafe_code, reason = "neither std nor nix has the system call alone")]
fn coarse_ns() -> u64 {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the pointer is to a timespec that lives as long as the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_clock_gettime,
            libc::CLOCK_MONOTONIC_COARSE,
            &raw mut now,
        )
    };
    assert_eq!(result, 0);
    Duration::from(TimeSpec::from(now)).as_nanos() as u64
}

/// A course of so many seconds, in each of which both CPUs offer as much as they can.
pub(super) fn over_time(mut course: Course) {
    // A burst that both CPUs take at once, and that would take so long to be there again that neither
    // of them ever sleeps for so long.
    const INTERVAL_NS: u64 = 100_000;
    const BURST: u64 = 100_000;
    // 20 ms' worth.
    const FIRST: u64 = 200;
    let policy = Policy {
        rate: Some(Rate {
            interval: Duration::from_nanos(INTERVAL_NS),
            burst: BURST as u32,
        }),
        ..Policy::default()
    };
    Gateway::run(move |mut gateway| {
        gateway.dataplane.set_policy(POLICY, &policy).unwrap();
        let (mut total, mut number) = (0, 0);
        while course.next(1).is_some() {
            let begin = Instant::now();
            // The first trigger starts the clock of the bucket, and it has to be known at what time. Some more at
            // the same time keep it from being full again before both CPUs have begun.
            let (bucket, first_ns) = loop {
                let session = fresh(&mut gateway, number).swap_remove(0);
                number += 1;
                let bucket = Bucket::new(&gateway, session);
                let before_ns = coarse_ns();
                let all_let_through = bucket.offers().take(FIRST as usize).all(|offer| offer);
                assert!(all_let_through);
                if coarse_ns() == before_ns {
                    break (bucket, before_ns);
                }
            };
            let before = Ledger::of(&gateway.dataplane);
            let until = Instant::now() + Duration::from_secs(1);
            let offer = || {
                let (mut offers, mut let_through) = (bucket.offers(), 0);
                while Instant::now() < until {
                    let_through += u64::from(offers.next().unwrap());
                }
                let_through
            };
            let (one, other) = race(offer, offer);
            // At a time that is known, the bucket is as empty as can be.
            let (mut rest, mut before_ns) = (0, coarse_ns());
            for is_let_through in bucket.offers() {
                rest += u64::from(is_let_through);
                let after_ns = coarse_ns();
                if !is_let_through && after_ns == before_ns {
                    break;
                }
                before_ns = after_ns;
            }
            let (let_through, elapsed_ns) = (one + other + rest, before_ns - first_ns);
            let permitted = BURST + elapsed_ns / INTERVAL_NS;
            assert_eq!(FIRST + let_through, permitted, "let through, permitted");
            // By a clock that doesn't stand still between ticks, it is no more either.
            let tick = Duration::from(clock_getres(ClockId::CLOCK_MONOTONIC_COARSE).unwrap());
            let longest_ns = (begin.elapsed() + tick).as_nanos() as u64;
            assert!(permitted <= BURST + longest_ns / INTERVAL_NS);

            // Who sleeps between taking a sequence number and offering it comes too late.
            let too_old = before.since(&gateway.dataplane, Verdict::SequenceTooOld);
            let offers = bucket.last.get() - FIRST;
            let expected = [
                (Verdict::Redirected, let_through),
                (Verdict::RateExceeded, offers - let_through - too_old),
                (Verdict::SequenceTooOld, too_old),
            ];
            before.demand(
                &gateway.dataplane,
                Template::new(&bucket.session).len(),
                &expected,
            );
            total += permitted;
        }
        course.finish(&format!(
            "{total} triggers let through, as many as burst and rate permit: one more = 0, lost = 0"
        ));
    });
}

/// A session that is offered one trigger after the other.
struct Bucket {
    session: Session,
    prober: Prober,
    /// Taken in turns by all that offer, so that they are never far apart.
    last: Shared,
}

impl Bucket {
    fn new(gateway: &Gateway, session: Session) -> Self {
        Self {
            session,
            prober: gateway.dataplane.prober(EXT).unwrap(),
            last: Shared::default(),
        }
    }

    /// Offers one trigger after the other; whether it was let through.
    fn offers(&self) -> impl Iterator<Item = bool> {
        self.flagged_offers(|_| Flags::NONE)
            .map(|(_, is_let_through)| is_let_through)
    }

    /// The same with flags by sequence number.
    fn flagged_offers(&self, flags: impl Fn(u64) -> Flags) -> impl Iterator<Item = (Flags, bool)> {
        let mut template = Template::new(&self.session);
        let mut out = Vec::new();
        std::iter::repeat_with(move || {
            let sequence = self.last.next();
            let frame = template.of(&self.session, 1000 + sequence, flags(sequence));
            (
                flags(sequence),
                is_let_through(&self.prober, frame, &mut out),
            )
        })
    }
}

/// A course of so many sessions, with a window that doesn't end, in which both CPUs offer each key.
pub(super) fn windows(mut course: Course) {
    const KEYS: u64 = Flags::MAX_COLLAPSE_KEY as u64;
    let policy = Policy {
        coalescing_window: Some(Duration::from_secs(1800)),
        ..Policy::default()
    };
    let round = |gateway: &Gateway, sessions: &[Session]| {
        let count = sessions.len() as u64;
        let key = |step| Flags::NONE.with_collapse_key(step as u8 + 1);
        let woken = in_step(gateway, sessions, KEYS, key);
        let mut woken: Vec<_> = woken
            .iter()
            .map(|(slot, flags)| (*slot, flags.collapse_key()))
            .collect();
        let times = woken.len();
        woken.sort_unstable();
        woken.dedup();
        let all = (KEYS * count) as usize;
        assert_eq!((times, woken.len()), (all, all), "times, keys of a session");
        let expected = [
            (Verdict::Redirected, KEYS * count),
            (Verdict::Coalesced, KEYS * count),
        ];
        (woken.len(), expected)
    };
    Gateway::run(move |mut gateway| {
        let let_through = rounds(&mut gateway, &mut course, &policy, round);
        course.finish(&format!(
            "{let_through} keys, each let through once: twice = 0, lost = 0"
        ));
    });
}

/// A course of so many seconds, in each of which both CPUs offer all keys as often as they can.
pub(super) fn windows_over_time(mut course: Course) {
    const WINDOW_TICKS: u32 = 2;
    let policy = Policy {
        coalescing_window: Some(Duration::from_nanos(TICK_NS) * WINDOW_TICKS),
        ..Policy::default()
    };
    Gateway::run(move |mut gateway| {
        gateway.dataplane.set_policy(POLICY, &policy).unwrap();
        let (mut total, mut number) = (0, 0);
        while course.next(1).is_some() {
            let session = fresh(&mut gateway, number).swap_remove(0);
            number += 1;
            let bucket = Bucket::new(&gateway, session);
            let first_tick = tick_of(coarse_ns());
            let until = Instant::now() + Duration::from_secs(1);
            // Two in a row have the same key.
            let key = |sequence: u64| Flags::NONE.with_collapse_key((sequence / 2 % 15) as u8 + 1);
            let offer = || {
                let (mut offers, mut by_key) = (bucket.flagged_offers(key), [0_u64; 16]);
                while Instant::now() < until {
                    let (flags, is_let_through) = offers.next().unwrap();
                    by_key[usize::from(flags.collapse_key())] += u64::from(is_let_through);
                }
                by_key
            };
            let (one, other) = race(offer, offer);
            let windows = u64::from((tick_of(coarse_ns()) - first_tick) / WINDOW_TICKS + 1);
            for (key, (one, other)) in one.iter().zip(other).enumerate().skip(1) {
                let times = one + other;
                assert!(
                    times <= windows,
                    "key {key}: {times} times in {windows} windows"
                );
                assert!(
                    times > windows / 4,
                    "key {key}: {times} times in {windows} windows"
                );
                total += times;
            }
        }
        course.finish(&format!(
            "{total} triggers let through, each key at most once a window: once more = 0"
        ));
    });
}
