//! `cargo xtask bench path`: what each way through the XDP program costs.
//!
//! A run is one `BPF_PROG_TEST_RUN` of one fresh frame: the program rewrites what it delivers, and
//! lets a sequence number through once, so that a second run on the same frame would take another
//! way. The kernel tells how long it took. All rows take turns, the floor first, round after round,
//! on one CPU. The counters have to say that each run of a row got the verdict that the row is about.
//!
//! The floor is the program if it ends where it begins: it has in it what running any costs, the kernel's clock
//! included. The ladder are programs of which each goes one step further, up to the last one, which is all of it. A
//! step costs what its program takes more than the one before, in the same round.

#[path = "../../tests/datagram.rs"]
#[expect(dead_code, reason = "tests need more of it")]
mod datagram;
#[path = "../../tests/gateway.rs"]
#[expect(dead_code, reason = "tests need more of it")]
mod gateway;
#[expect(dead_code, reason = "other benchmarks need more of it")]
mod ground;
mod shared;

use anyhow::{Context, Result, ensure};
use datagram::{DEVICES, Datagram, ONE_ARMED, Session, changed};
use gateway::{EXT, Gateway, sh};
use ground::ladder::Ladder;
use ground::rig::resized;
use ground::route::{Shape, install};
use ground::variant::{Otherwise, Variant};
use push_common::verdict::Verdict;
use push_common::wire::MAX_PAYLOAD_LEN;
use push_ctl::dataplane::Prober;
use shared::Arguments;
use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::mpsc;
use xtask::bench::{Figure, NOISY_FLOOR, Progress, Quartiles, Quiet, Round, Row, Suite, pin};

const ROUNDS: usize = 101;
const SHORT_ROUNDS: usize = 31;
const RUNS: usize = 500;

/// The steps of the path, in its order; each but the first is what its `rung!` is before.
const STEPS: [&str; 11] = [
    "entry and count",
    "parse",
    "ours?",
    "trigger's fields",
    "session",
    "tag",
    "policy",
    "next hop",
    "replay",
    "rate and coalescing",
    "rewrite and send",
];
const TAG: usize = 5;
/// Programs on the ladder: the empty one, one for each step, and the least, first without its tag.
const LADDER: usize = STEPS.len() + 3;
const SLOTS: u32 = 2048;
const LADDER_SESSIONS: u32 = 1024;
const LADDER_TRIGGERS: u32 = 20_000;

/// Actions of XDP.
const DROP: u32 = 1;
const REDIRECT: u32 = 4;

/// The row that all others are compared with.
const BASELINE: &str = "delivered, IPv4, no payload";

fn main() -> ExitCode {
    shared::main(Suite::Path, run)
}

fn run(arguments: &Arguments) -> Result<shared::Measured> {
    let rounds = if arguments.short {
        SHORT_ROUNDS
    } else {
        ROUNDS
    };
    let (sender, receiver) = mpsc::channel();
    Gateway::run(move |gateway| {
        sh("ip route add 10.128.0.0/9 via 10.64.0.2");
        let mut gateway = resized(gateway, SLOTS);
        let _ = sender.send(measure(&mut gateway, rounds));
    });
    let measured = receiver.recv().context("nothing was measured")??;
    let (kept, quiet) = arguments.quiet(&measured.rounds);
    Ok(shared::Measured {
        heading: measured.heading(kept),
        rows: measured.rows(quiet.as_ref()),
        is_quiet: quiet.is_some(),
    })
}

/// Frames that all go the same way.
struct Competitor {
    name: String,
    /// Instead of the one that is attached.
    program: Option<Variant>,
    /// None if nothing is counted.
    expected: Option<Verdict>,
    frames: Frames,
}

enum Frames {
    /// One that changes nothing, and so is as good as new each time.
    Same(Vec<u8>),
    /// The next trigger for a session, with a payload of so many bytes.
    Next(Session, usize),
}

impl Frames {
    fn take(&mut self, count: usize) -> Vec<Vec<u8>> {
        match self {
            Self::Same(frame) => vec![frame.clone(); count],
            Self::Next(session, length) => {
                let payload = vec![0x5A; *length];
                let next = || session.datagram(&payload).frame();
                std::iter::repeat_with(next).take(count).collect()
            }
        }
    }
}

/// The floor and the ladder above it, and all rows.
fn competitors(gateway: &mut Gateway) -> Result<(Competitor, Vec<Competitor>)> {
    let mut slot = LADDER_SESSIONS;
    let mut session = |device| {
        slot += 1;
        Session::new(slot, device)
    };
    let mut stranger = session(DEVICES[0]);
    let mut session = |device| session(device).installed(gateway);

    let unknown = stranger.datagram(b"");
    let other_port = Datagram {
        destination: (unknown.destination.ip(), 5051).into(),
        ..unknown.clone()
    };
    let arp = changed(&unknown.frame(), 12, &[0x08, 0x06]);
    let mut forged = session(DEVICES[0]).datagram(b"").frame();
    *forged.last_mut().context("a trigger isn't empty")? ^= 1;
    let replayed = session(DEVICES[0]).datagram(b"").frame();

    let same = |name: &str, expected, frame: &[u8]| Competitor {
        name: name.to_owned(),
        program: None,
        expected: Some(expected),
        frames: Frames::Same(frame.to_vec()),
    };
    let mut rows = vec![
        same("not IP", Verdict::NotIp, &arp),
        same("other port", Verdict::NotTrigger, &other_port.frame()),
        same("unknown session", Verdict::UnknownSession, &unknown.frame()),
        same("bad tag", Verdict::BadTag, &forged),
        same("replayed", Verdict::Replayed, &replayed),
    ];
    let payload = |length| format!("delivered, IPv4, {length} bytes of payload");
    let deliveries = [
        (BASELINE.to_owned(), DEVICES[0], 0, Verdict::Redirected),
        (payload(64), DEVICES[0], 64, Verdict::Redirected),
        (payload(256), DEVICES[0], 256, Verdict::Redirected),
        (
            payload(MAX_PAYLOAD_LEN),
            DEVICES[0],
            MAX_PAYLOAD_LEN,
            Verdict::Redirected,
        ),
        (
            "delivered, IPv6, no payload".to_owned(),
            DEVICES[1],
            0,
            Verdict::Redirected,
        ),
        (
            "sent back, IPv4, no payload".to_owned(),
            ONE_ARMED[0],
            0,
            Verdict::SentBack,
        ),
    ];
    for (name, device, length, expected) in deliveries {
        rows.push(Competitor {
            name,
            program: None,
            expected: Some(expected),
            frames: Frames::Next(session(device), length),
        });
    }
    // The first one is let through, all others are replays of it.
    let first = gateway.send(EXT, &replayed).0;
    ensure!(first == Verdict::Redirected, "{first:?}");
    let floor = Competitor {
        name: "floor".to_owned(),
        program: Some(Variant::new(gateway, Otherwise::EndsBefore(0), 0)?),
        expected: None,
        frames: Frames::Same(arp),
    };
    Ok((floor, rows))
}

/// What has been measured, and on what.
struct Measured {
    cpu: usize,
    sessions: usize,
    nics: Vec<MeasuredNic>,
    competitors: Vec<Competitor>,
    rounds: Vec<Round>,
}

/// The programs up to each step, and all of it.
fn ladder(gateway: &mut Gateway, cpu: usize) -> Result<Ladder> {
    install(gateway, Shape::Through, LADDER_SESSIONS)?;
    let steps = (0..=STEPS.len() as u32).map(Otherwise::EndsBefore);
    let programs = steps
        .chain([Otherwise::LeastWithoutTag, Otherwise::Least])
        .map(|otherwise| Variant::new(gateway, otherwise, 0));
    Ladder::new(cpu, programs.collect::<Result<_>>()?)
}

struct MeasuredNic {
    name: String,
    mode: &'static str,
    takes_triggers: bool,
    verified_instructions: u32,
    machine_code_bytes: u32,
}

fn measure(gateway: &mut Gateway, count: usize) -> Result<Measured> {
    let cpu = pin()?;
    let nics = nics(gateway)?;
    let (mut floor, mut competitors) = competitors(gateway)?;
    let mut ladder = ladder(gateway, cpu)?;
    let attached = gateway.dataplane.prober(EXT)?;
    let mut rounds = Vec::new();
    let progress = Progress::new("path", count);
    // The first one warms up, and proves that every row is what it says.
    for round in 0..=count {
        progress.at(round);
        let mut medians = Vec::new();
        for step in 0..LADDER {
            let before = packets(gateway)?;
            let (ns, action) =
                ladder.ns_per_trigger(u32::try_from(step)?, LADDER_SESSIONS, LADDER_TRIGGERS)?;
            let verdict = match step {
                // What is the least counts nothing either.
                0 => None,
                all if all == STEPS.len() => Some(Verdict::Redirected),
                least if least > STEPS.len() => None,
                _ => Some(Verdict::MissingConfiguration),
            };
            let expected = if step < STEPS.len() { DROP } else { REDIRECT };
            ensure!(
                action == expected,
                "step {step} of the ladder ends with action {action}"
            );
            ensure_all(gateway, &before, LADDER_TRIGGERS.into(), verdict)
                .with_context(|| format!("the ladder up to step {step}"))?;
            medians.push(ns);
        }
        let floor = floor.median_ns(gateway, &attached)?;
        for competitor in &mut competitors {
            medians.push(competitor.median_ns(gateway, &attached)?);
        }
        if round > 0 {
            rounds.push(Round {
                floor,
                competitors: medians,
            });
        }
    }
    Ok(Measured {
        cpu,
        sessions: gateway.dataplane.installed().len(),
        nics,
        competitors,
        rounds,
    })
}

fn nics(gateway: &mut Gateway) -> Result<Vec<MeasuredNic>> {
    let sizes = gateway.dataplane.program_size()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let statuses = runtime.block_on(gateway.dataplane.nics())?;
    let each = statuses.into_iter().zip(sizes);
    Ok(each
        .map(|(status, (_, verified, machine_code))| MeasuredNic {
            name: status.name,
            mode: status.mode,
            takes_triggers: status.takes_triggers,
            verified_instructions: verified,
            machine_code_bytes: machine_code,
        })
        .collect())
}

impl Competitor {
    /// The median of what so many runs took, each of which got the expected verdict.
    fn median_ns(&mut self, gateway: &Gateway, attached: &Prober) -> Result<f64> {
        let mut out = Vec::new();
        let frames = self.frames.take(RUNS);
        let before = packets(gateway)?;
        let mut durations_ns = Vec::with_capacity(RUNS);
        for frame in &frames {
            let (_, duration) = match &self.program {
                Some(variant) => variant.run(frame, &mut out)?,
                None => attached.run(frame, &mut out)?,
            };
            durations_ns.push(duration.as_nanos() as f64);
        }
        ensure_all(gateway, &before, RUNS as u64, self.expected)
            .with_context(|| format!("`{}`", self.name))?;
        let quartiles = Quartiles::of(&durations_ns).context("nothing was run")?;
        Ok(quartiles.median)
    }
}

/// Sees that since `before`, this verdict and no other has been counted, so often; none counts nothing.
fn ensure_all(
    gateway: &Gateway,
    before: &Counters,
    count: u64,
    verdict: Option<Verdict>,
) -> Result<()> {
    let after = packets(gateway)?;
    let moved: Vec<_> = after
        .into_iter()
        .map(|(counter, packets)| (packets - before[&counter], counter.1))
        .filter(|&(packets, _)| packets > 0)
        .collect();
    let expected: Vec<_> = verdict
        .map(|verdict| (count, verdict.label()))
        .into_iter()
        .collect();
    ensure!(
        moved == expected,
        "not what it says: {expected:?} were to be counted, not {moved:?}"
    );
    Ok(())
}

type Counters = BTreeMap<(String, &'static str), u64>;

/// Packets by NIC and verdict.
fn packets(gateway: &Gateway) -> Result<Counters> {
    let mut packets = BTreeMap::new();
    for nic in gateway.dataplane.verdicts()? {
        for (verdict, count, _) in nic.by_verdict {
            packets.insert((nic.name.clone(), verdict.label()), count);
        }
    }
    Ok(packets)
}

/// What this step adds to those before it.
fn cost_of_step(round: &Round, step: usize) -> f64 {
    round.competitors[step + 1] - round.competitors[step]
}

impl Measured {
    /// What was measured, how often and on what.
    fn heading(&self, kept: usize) -> String {
        let mut text = format!(
            "path: {kept} of {} rounds count, whose floor was at most {NOISY_FLOOR} times the best one: {RUNS} runs a row, each of a fresh frame (BPF_PROG_TEST_RUN), on CPU {}\n\
             floor: the program if it ends where it begins, reading the clock included\n\
             sessions: {} in a table of {SLOTS} slots, so few that all are in the CPU's cache",
            self.rounds.len(),
            self.cpu,
            self.sessions
        );
        for nic in &self.nics {
            let triggers = if nic.takes_triggers {
                "triggers"
            } else {
                "no triggers"
            };
            text += &format!("\n{}: {} mode, takes {triggers}", nic.name, nic.mode);
        }
        text
    }

    fn ratio(&self, quiet: &Quiet, competitor: usize) -> Option<Quartiles> {
        let mut names = self.competitors.iter().map(|competitor| &competitor.name);
        let baseline = names.position(|name| name == BASELINE)?;
        quiet.ratio(competitor, LADDER + baseline)
    }

    /// The same for programs.
    fn rows(&self, quiet: Option<&Quiet>) -> Vec<Row> {
        let row =
            |name: &str, metric, figure, unit| Row::new(Suite::Path, name, metric, figure, unit);
        let counted = |count: u32| Some(Figure::Counted(count.into()));
        let mut rows = Vec::new();
        for nic in &self.nics {
            let verified = counted(nic.verified_instructions);
            let machine_code = counted(nic.machine_code_bytes);
            rows.extend([
                row(&nic.name, "verified instructions", verified, "instructions"),
                row(&nic.name, "machine code", machine_code, "bytes"),
            ]);
        }
        let floor = quiet.map(|quiet| Figure::Measured(quiet.floor()));
        rows.push(row("floor", "time", floor, "ns"));
        for (step, name) in STEPS.into_iter().enumerate() {
            let cost = quiet
                .map(|quiet| Figure::Measured(quiet.quartiles(|round| cost_of_step(round, step))));
            rows.push(row(name, "time of the step", cost, "ns"));
        }
        let all = STEPS.len();
        let least = LADDER - 1;
        let without_tag = [
            ("all but the tag", all, TAG + 1, TAG),
            ("all but the tag, of the least", least, least, least - 1),
        ];
        for (name, last, with, without) in without_tag {
            let in_tags = |round: &Round| {
                let at = &round.competitors;
                let tag = at[with] - at[without];
                (at[last] - at[0] - tag) / tag
            };
            let in_tags = quiet.map(|quiet| quiet.quartiles(in_tags));
            let figure = in_tags.map(Figure::Measured);
            let row = row(name, "in tags", figure, "×");
            rows.push(row.compared("its tag", in_tags.map(|it| it.median)));
        }
        for (index, competitor) in (LADDER..).zip(&self.competitors) {
            let over_floor = quiet.map(|quiet| Figure::Measured(quiet.over_floor(index)));
            let ratio = quiet.and_then(|quiet| Some(self.ratio(quiet, index)?.median));
            let row = row(&competitor.name, "time over the floor", over_floor, "ns");
            rows.push(row.compared(BASELINE, ratio));
        }
        rows
    }
}
