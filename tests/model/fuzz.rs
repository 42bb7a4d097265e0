//! The program and the model side by side: the same frames for both, and a look at everything that
//! either of them has changed.
//!
//! A run is cut into rounds, each with a gateway of its own, so that any difference can be found again
//! from a seed and a number, by going through no more than one round. Within one, action and frame
//! are compared with each frame, and all else now and then; if that differs, the round is gone
//! through once more with a look at everything after each frame.

use super::Outcome;
use super::gateway::{Gateway, Pending};
use super::random::Random;
use super::traffic::Traffic;
use super::world;
use push_common::maps::{Count, ROUND_TRIP_CLASSES, SessionRecord, TICK_NS, VERDICT_SLOTS};
use push_common::verdict::{Action, Verdict};
use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

/// Frames of a round.
const ROUND: u64 = 2048;
/// Frames between one look at everything and the next.
const BETWEEN_LOOKS: u64 = 256;
/// What clocks of the program and the model may be apart: the program's may stand still for some
/// milliseconds, and the model's is read before the frame is sent, on a machine that has more to do.
const SLACK_NS: u64 = 10_000_000_000;
/// Differences after which there is no point in looking for more.
const ENOUGH: usize = 8;
const REPORT_EVERY: Duration = Duration::from_secs(5);

/// What is compared with the model.
pub(crate) trait Subject {
    /// Indices of the interfaces of its NICs, as in [`world::nics`].
    fn interfaces(&mut self) -> [u32; 3];

    /// `CLOCK_MONOTONIC` in nanoseconds.
    fn now_ns(&mut self) -> u64;

    /// Becomes what `gateway` is: all of its records, and nothing else. Counters of NICs stay.
    fn become_like(&mut self, gateway: &Gateway);

    /// Takes a frame in by a NIC; gives the action and the frame afterwards.
    fn send(&mut self, nic: usize, frame: &[u8]) -> (Action, Vec<u8>);

    /// By NIC: what it has counted since it is there.
    fn counters(&mut self) -> Vec<NicCounters>;

    /// By slot; free slots may be missing.
    fn sessions(&mut self) -> BTreeMap<u32, SessionRecord>;

    /// Acknowledgements that are waited for, by session identifier and sequence.
    fn pending(&mut self) -> BTreeMap<(u64, u64), Pending>;
}

/// What a NIC has counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NicCounters {
    pub(crate) by_verdict: [Count; VERDICT_SLOTS],
    pub(crate) round_trips: [u64; ROUND_TRIP_CLASSES],
}

/// How long to go on.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Limit {
    Frames(u64),
    Time(Duration),
}

/// Something that the program and the model disagree about.
#[derive(Debug)]
pub(crate) struct Difference {
    pub(crate) seed: u64,
    pub(crate) number: u64,
    nic: &'static str,
    pub(crate) frame: Vec<u8>,
    expected: Outcome,
    what: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            seed,
            number,
            nic,
            frame,
            expected,
            what,
        } = self;
        writeln!(f, "difference at seed {seed}, number {number}:")?;
        writeln!(f, "  by {nic}, {} bytes: {}", frame.len(), hex(frame))?;
        writeln!(
            f,
            "  the model says {}: {}",
            expected.verdict.label(),
            if expected.frame == *frame {
                "as it came".to_owned()
            } else {
                hex(&expected.frame)
            }
        )?;
        write!(f, "  {what}")
    }
}

/// What a run has come to.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) frames: u64,
    by_verdict: [u64; VERDICT_SLOTS],
    pub(crate) differences: Vec<Difference>,
}

impl Report {
    /// Verdicts that no frame got, though frames can.
    pub(crate) fn missing(&self) -> Vec<&'static str> {
        let each = Verdict::ALL.iter().filter(|&&verdict| {
            self.by_verdict[verdict as usize] == 0
                // These take another CPU, or another driver.
                && !matches!(
                    verdict,
                    Verdict::SessionChanging
                        | Verdict::Contended
                        | Verdict::NotLinear
                        | Verdict::NoHeadroom
                )
        });
        each.map(|verdict| verdict.label()).collect()
    }

    /// Frames whose tag was looked at.
    pub(crate) fn reached_the_tag(&self) -> u64 {
        let each = Verdict::ALL
            .iter()
            .filter(|&&verdict| is_from_the_tag_on(verdict));
        each.map(|&verdict| self.by_verdict[verdict as usize]).sum()
    }

    /// Fails unless there is no difference, and enough was tried to say so.
    pub(crate) fn demand_agreement(&self) {
        println!("{self}");
        assert!(
            self.differences.is_empty(),
            "the program isn't what the model is"
        );
        assert_eq!(self.missing(), [""; 0], "verdicts that no frame got");
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for &verdict in Verdict::ALL {
            let count = self.by_verdict[verdict as usize];
            let percent = 100.0 * count as f64 / self.frames.max(1) as f64;
            writeln!(f, "{:>26} {count:>10} {percent:>6.2} %", verdict.label())?;
        }
        for difference in &self.differences {
            writeln!(f, "{difference}")?;
        }
        write!(
            f,
            "{} frames, {} of them as far as the tag or farther, {} differences",
            self.frames,
            self.reached_the_tag(),
            self.differences.len()
        )
    }
}

fn is_from_the_tag_on(verdict: Verdict) -> bool {
    match verdict {
        Verdict::NextHopUnresolved
        | Verdict::SentBack
        | Verdict::Redirected
        | Verdict::AckReturned
        | Verdict::BadTag
        | Verdict::HopLimit
        | Verdict::PayloadRefused
        | Verdict::SourceRefused
        | Verdict::NoRoute
        | Verdict::NextHopMissing
        | Verdict::TooBig
        | Verdict::Replayed
        | Verdict::SequenceTooOld
        | Verdict::RateExceeded
        | Verdict::Coalesced
        | Verdict::Contended
        | Verdict::NoHeadroom
        | Verdict::AckCounted
        | Verdict::AckUnexpected
        | Verdict::MissingConfiguration => true,
        Verdict::NotIp
        | Verdict::Truncated
        | Verdict::UnusualIpHeader
        | Verdict::Fragment
        | Verdict::NotUdp
        | Verdict::NotTrigger
        | Verdict::IpLength
        | Verdict::IpChecksum
        | Verdict::UdpLength
        | Verdict::NoUdpChecksum
        | Verdict::TriggerTruncated
        | Verdict::BadMagic
        | Verdict::UnknownVersion
        | Verdict::UnknownFlags
        | Verdict::NotLinear
        | Verdict::PayloadTooLong
        | Verdict::TriggerLength
        | Verdict::UnknownSession
        | Verdict::SessionChanging
        | Verdict::Expired
        | Verdict::UnknownTokenGeneration
        | Verdict::SequenceOutOfRange => false,
    }
}

/// Compares until the limit is reached, or enough is wrong.
pub(crate) fn run(subject: &mut impl Subject, seed: u64, limit: Limit) -> Report {
    let mut report = Report {
        frames: 0,
        by_verdict: [0; VERDICT_SLOTS],
        differences: Vec::new(),
    };
    let started = Instant::now();
    let mut next_report = REPORT_EVERY;
    for round in 0.. {
        let frames = match limit {
            Limit::Frames(frames) => frames.saturating_sub(report.frames).min(ROUND),
            Limit::Time(time) if started.elapsed() < time => ROUND,
            Limit::Time(_over) => 0,
        };
        if frames == 0 || report.differences.len() >= ENOUGH {
            break;
        }
        let end = round * ROUND + frames;
        let count = |verdict| {
            report.frames += 1;
            report.by_verdict[verdict as usize] += 1;
        };
        let found = made_up(subject, seed, round).run(end, BETWEEN_LOOKS, count);
        if let Some(found) = found {
            // Once more, with a look after each frame, to see which one it was.
            let closer = made_up(subject, seed, round).run(found.number + 1, 1, |_| {});
            report.differences.push(closer.unwrap_or(found));
        }
        if started.elapsed() >= next_report {
            next_report = started.elapsed() + REPORT_EVERY;
            println!(
                "fuzz: seed {seed}: {} frames in {:.0} s, {} differences",
                report.frames,
                started.elapsed().as_secs_f64(),
                report.differences.len()
            );
        }
    }
    report
}

/// Compares on frames given one by one, the first of which has number 0, with a look at everything
/// after each. Gives the verdict of the last one.
pub(crate) fn compare(
    subject: &mut impl Subject,
    model: &Gateway,
    frames: &[(usize, Vec<u8>)],
) -> Result<Option<Verdict>, Difference> {
    let mut verdict = None;
    let mut each = frames.iter();
    let next = |_: &Gateway| each.next().expect("no more is asked for").clone();
    let count = |given| verdict = Some(given);
    let difference =
        Round::new(subject, model.clone(), next, (0, 0)).run(frames.len() as u64, 1, count);
    difference.map_or(Ok(verdict), Err)
}

/// One gateway, twice, and frames for both.
struct Round<'a, S, F> {
    subject: &'a mut S,
    model: Gateway,
    next: F,
    seed: u64,
    /// Of the next frame.
    number: u64,
    /// The subject's counters at the start.
    counters: Vec<NicCounters>,
    started_ns: u64,
}

/// The round that a seed leads to.
fn made_up<S: Subject>(
    subject: &mut S,
    seed: u64,
    round: u64,
) -> Round<'_, S, impl FnMut(&Gateway) -> (usize, Vec<u8>)> {
    let mut random = Random::new(seed, round);
    let model = world::gateway(&mut random, subject.interfaces(), subject.now_ns());
    let mut traffic = Traffic::new(random);
    let next = move |gateway: &Gateway| traffic.next(gateway);
    Round::new(subject, model, next, (seed, round * ROUND))
}

impl<'a, S: Subject, F: FnMut(&Gateway) -> (usize, Vec<u8>)> Round<'a, S, F> {
    fn new(subject: &'a mut S, model: Gateway, next: F, (seed, number): (u64, u64)) -> Self {
        subject.become_like(&model);
        Self {
            counters: subject.counters(),
            started_ns: subject.now_ns(),
            subject,
            model,
            next,
            seed,
            number,
        }
    }

    /// Up to the frame with number `end`, or the first difference.
    fn run(
        mut self,
        end: u64,
        between_looks: u64,
        mut count: impl FnMut(Verdict),
    ) -> Option<Difference> {
        let mut until_look = between_looks;
        while self.number < end {
            let (nic, frame) = (self.next)(&self.model);
            let expected = self.model.receive(nic, self.subject.now_ns(), &frame);
            let (action, out) = self.subject.send(nic, &frame);
            count(expected.verdict);
            let mut what = different_frame(&expected, action, &out);
            until_look -= 1;
            if until_look == 0 || self.number + 1 == end || what.is_some() {
                until_look = between_looks;
                let state = self.different_state();
                what = match (what, state) {
                    (Some(what), Some(state)) => Some(format!("{what}\n  {state}")),
                    (what, state) => what.or(state),
                };
            }
            if let Some(what) = what {
                return Some(Difference {
                    seed: self.seed,
                    number: self.number,
                    nic: self.model.nics[nic].name,
                    frame,
                    expected,
                    what,
                });
            }
            self.number += 1;
        }
        None
    }

    /// What the subject has counted and noted down that the model has not, or not so.
    fn different_state(&mut self) -> Option<String> {
        let mut all = Vec::new();
        self.compare_counters(&mut all);
        self.compare_sessions(&mut all);
        self.compare_pending(&mut all);
        (!all.is_empty()).then(|| all.join("\n  "))
    }

    fn compare_counters(&mut self, all: &mut Vec<String>) {
        let now = self.subject.counters();
        for (index, nic) in self.model.nics.iter().enumerate() {
            let (before, after) = (&self.counters[index], &now[index]);
            for slot in 0..VERDICT_SLOTS {
                let (before, after) = (before.by_verdict[slot], after.by_verdict[slot]);
                let actual = Count {
                    packets: after.packets - before.packets,
                    bytes: after.bytes - before.bytes,
                };
                let expected = nic.by_verdict[slot];
                if actual != expected {
                    let verdict = Verdict::ALL
                        .get(slot)
                        .map_or("?", |verdict| verdict.label());
                    all.push(format!(
                        "{} has counted {verdict} {actual:?}, the model {expected:?}",
                        nic.name
                    ));
                }
            }
            // How long a round trip took is the clock's to say; that there was one isn't.
            let sum = |counters: &NicCounters| counters.round_trips.iter().sum::<u64>();
            let (actual, expected) = (
                sum(after) - sum(before),
                nic.round_trips.iter().sum::<u64>(),
            );
            if actual != expected {
                all.push(format!(
                    "{} has counted {actual} round trips, the model {expected}",
                    nic.name
                ));
            }
        }
    }

    fn compare_sessions(&mut self, all: &mut Vec<String>) {
        let actual = self.subject.sessions();
        let longest_us = (self.subject.now_ns() + SLACK_NS - self.started_ns) / 1000;
        for (slot, expected) in &mut self.model.sessions {
            let Some(actual) = actual.get(slot) else {
                all.push(format!("the session in slot {slot} is gone"));
                continue;
            };
            adopt_times(expected, actual, longest_us);
            for field in different_fields(expected, actual) {
                all.push(format!("slot {slot}: {field}"));
            }
        }
        for slot in actual.keys() {
            if !self.model.sessions.contains_key(slot) {
                all.push(format!("a session has come to be in slot {slot}"));
            }
        }
    }

    fn compare_pending(&mut self, all: &mut Vec<String>) {
        let actual = self.subject.pending();
        for (key, expected) in &mut self.model.pending {
            let Some(actual) = actual.get(key) else {
                all.push(format!("no acknowledgement of {key:x?} is waited for"));
                continue;
            };
            if actual.sent_ns.abs_diff(expected.sent_ns) <= SLACK_NS {
                expected.sent_ns = actual.sent_ns;
            }
            if actual != expected {
                all.push(format!(
                    "{key:x?} waits as {actual:?}, in the model {expected:?}"
                ));
            }
        }
        for key in actual.keys() {
            if !self.model.pending.contains_key(key) {
                all.push(format!("an acknowledgement of {key:x?} is waited for"));
            }
        }
    }
}

/// Takes over what the subject's clock has said, where it can be true.
fn adopt_times(expected: &mut SessionRecord, actual: &SessionRecord, longest_us: u64) {
    if expected.full_at_ns.abs_diff(actual.full_at_ns) <= SLACK_NS {
        expected.full_at_ns = actual.full_at_ns;
    }
    let slack_ticks = SLACK_NS / TICK_NS;
    let (last, opened, keys) = activity_parts(expected.activity);
    let (actual_last, actual_opened, actual_keys) = activity_parts(actual.activity);
    if keys == actual_keys
        && u64::from(last.abs_diff(actual_last)) <= slack_ticks
        && i64::from(actual_opened.wrapping_sub(opened) as i16).unsigned_abs() <= slack_ticks
    {
        expected.activity = actual.activity;
    }
    if expected.acknowledged == actual.acknowledged && u64::from(actual.round_trip_us) <= longest_us
    {
        expected.round_trip_us = actual.round_trip_us;
    }
}

/// What a session's record says, where the model's doesn't say the same.
fn different_fields(expected: &SessionRecord, actual: &SessionRecord) -> Vec<String> {
    let bytes = |record| bytemuck::bytes_of::<SessionRecord>(record).to_vec();
    if bytes(expected) == bytes(actual) {
        return Vec::new();
    }
    // One field a line, as the names stand nowhere else.
    let lines = |record| {
        format!("{record:#?}")
            .lines()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let pairs = lines(expected).into_iter().zip(lines(actual));
    let mut different: Vec<String> = pairs
        .filter(|(expected, actual)| expected != actual)
        .map(|(expected, actual)| format!("{}, in the model {}", actual.trim(), expected.trim()))
        .collect();
    if different.is_empty() {
        different.push("the key isn't that of the model".to_owned());
    }
    different
}

/// Tick of the last delivery, low half of the tick at which the window was opened, keys.
fn activity_parts(word: u64) -> (u32, u16, u16) {
    ((word >> 32) as u32, (word >> 16) as u16, word as u16)
}

fn different_frame(expected: &Outcome, action: Action, out: &[u8]) -> Option<String> {
    if action == expected.action && out == expected.frame {
        return None;
    }
    let first = expected
        .frame
        .iter()
        .zip(out)
        .position(|(expected, actual)| expected != actual)
        .unwrap_or(out.len().min(expected.frame.len()));
    Some(format!(
        "the program: {}, {} bytes (the model {}), differing from byte {first} on: {}",
        action.label(),
        out.len(),
        expected.frame.len(),
        hex(out)
    ))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
