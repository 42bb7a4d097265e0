//! `cargo xtask bench path`: what each way through the XDP program costs.
//!
//! A run is one `BPF_PROG_TEST_RUN` of one fresh frame: the program rewrites what it delivers, and
//! lets a sequence number through once, so that a second run on the same frame would take another
//! way. The kernel tells how long it took. All rows take turns, the floor now and then, round after round,
//! on one CPU. The counters have to say that each run of a row got the verdict that the row is about.
//!
//! The floor is the program if it ends where it begins: it has in it what running any costs, the kernel's clock
//! included. The ladder are programs of which each goes one step further, up to the last one, which is all of it. A
//! step costs what its program takes more than the one before, in the same round.

#[path = "../../tests/datagram.rs"]
#[expect(dead_code, reason = "tests need more of it")]
mod datagram;
#[path = "../../tests/framing.rs"]
#[expect(dead_code, unused_imports, reason = "tests need more of it")]
mod framing;
#[path = "../../tests/gateway.rs"]
#[expect(dead_code, reason = "tests need more of it")]
mod gateway;
#[expect(dead_code, reason = "other benchmarks need more of it")]
mod ground;
#[path = "../../tests/instructions/interpreter.rs"]
#[expect(dead_code, reason = "tests need more of it")]
mod interpreter;
#[path = "../../tests/refusals.rs"]
#[expect(dead_code, unused_imports, reason = "tests need more of it")]
mod refusals;
mod shared;

use anyhow::{Context, Result, ensure};
use datagram::{DEVICES, Datagram, ONE_ARMED, Session};
use framing::{VLAN, tagged};
use gateway::{EXT, Gateway, sh};
use ground::ladder::Ladder;
use ground::route::{Shape, install};
use ground::variant::{Otherwise, Variant, nic_config};
use interpreter::Interpreter;
use push_common::verdict::Verdict;
use push_common::wire::{Flags, MAX_PAYLOAD_LEN};
use push_ctl::dataplane::{NicStatus, Policy, Prober, ProgramSize, Rate, Tunnel};
use refusals::{what_is_malformed, what_is_not_authorised, what_is_not_ours};
use shared::{Arguments, resized};
use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::mpsc;
use std::time::Duration;
use xtask::bench::{Figure, Quartiles, Quiet, Round, Rounds, Row, Suite, pin};

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

/// Rows after which the floor is measured again: a turn may come out too low, a round's median doesn't.
const PER_FLOOR: usize = 12;

/// Actions of XDP.
const DROP: u32 = 1;
const REDIRECT: u32 = 4;

/// The row that all others are compared with.
const BASELINE: &str = "delivered, IPv4";

const HOUR: Duration = Duration::from_secs(3600);
/// Those below are of the sessions on the ladder.
const FIRST_POLICY: u16 = 2;

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
        let gateway = gateway.restarted_with(|settings| {
            settings.gtpu.ipv4 = Some([10, 64, 0, 1].into());
        });
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
    /// The next trigger for a session.
    Next(Box<dyn FnMut() -> Vec<u8>>),
}

impl Frames {
    fn take(&mut self, count: usize) -> Vec<Vec<u8>> {
        match self {
            Self::Same(frame) => vec![frame.clone(); count],
            Self::Next(next) => std::iter::repeat_with(next).take(count).collect(),
        }
    }
}

/// The floor, and all rows.
fn competitors(gateway: &mut Gateway) -> Result<(Competitor, Vec<Competitor>)> {
    let mut slots = LADDER_SESSIONS..;
    let mut session = |device| Session::new(slots.next().unwrap_or_default(), device);
    let mut refused = session(DEVICES[0]).installed(gateway);
    let all = [
        what_is_not_ours(&mut refused),
        what_is_malformed(&mut refused),
        what_is_not_authorised(&mut refused),
    ]
    .concat();
    let mut rows: Vec<Competitor> = Vec::new();
    for (_, frame, verdict) in all {
        // One for each verdict.
        if rows.iter().all(|row| row.expected != Some(verdict)) {
            rows.push(Competitor {
                name: format!("refused, {}", verdict.label()),
                program: None,
                expected: Some(verdict),
                frames: Frames::Same(frame),
            });
        }
    }
    let not_ip = rows.iter().find_map(|row| match &row.frames {
        Frames::Same(frame) if row.expected == Some(Verdict::NotIp) => Some(frame.clone()),
        _ => None,
    });

    let mut row = |name: &str, expected, frames| {
        rows.push(Competitor {
            name: name.to_owned(),
            program: None,
            expected: Some(expected),
            frames,
        });
    };
    let replayed = session(DEVICES[0]).installed(gateway).datagram(b"").frame();
    // The first one is let through, all others are replays of it.
    let first = gateway.send(EXT, &replayed).0;
    ensure!(first == Verdict::Redirected, "{first:?}");
    row(
        "refused, replayed",
        Verdict::Replayed,
        Frames::Same(replayed),
    );
    let policies = [
        // One an hour.
        (
            "refused, rate_exceeded",
            Verdict::RateExceeded,
            Policy {
                rate: Some(Rate {
                    interval: HOUR,
                    burst: 1,
                }),
                ..Policy::default()
            },
        ),
        (
            "refused, coalesced",
            Verdict::Coalesced,
            Policy {
                coalescing_window: Some(HOUR),
                ..Policy::default()
            },
        ),
        (
            "delivered, every policy",
            Verdict::Redirected,
            Policy {
                rate: Some(Rate {
                    interval: Duration::from_nanos(1),
                    burst: u32::MAX,
                }),
                sources: vec!["198.51.100.0/24".parse()?],
                coalescing_window: Some(HOUR),
                max_payload: Some(100),
                dscp: Some(10),
                ..Policy::default()
            },
        ),
    ];
    for (policy, (name, verdict, rules)) in (FIRST_POLICY..).zip(policies) {
        gateway.dataplane.set_policy(policy, &rules)?;
        let mut session = session(DEVICES[0]);
        session.image.policy = policy;
        let mut session = session.installed(gateway);
        let key = if verdict == Verdict::Coalesced { 1 } else { 0 };
        let flags = Flags::NONE.with_collapse_key(key);
        let mut next = move || {
            session.sequence += 1;
            let trigger = session.flagged_trigger_at(session.sequence, flags, b"");
            Datagram::to_gateway(false, trigger).frame()
        };
        let first = gateway.send(EXT, &next()).0;
        ensure!(first == Verdict::Redirected, "{name}: {first:?}");
        row(name, verdict, Frames::Next(Box::new(next)));
    }

    let v4 = DEVICES[0];
    let payload = |length| format!("delivered, IPv4, {length} bytes");
    let plain = |device, from_v6, length| (device, from_v6, &[][..], None, length);
    let tunnel = Tunnel {
        peer: "10.64.0.2".parse()?,
        teid: 1,
    };
    let deliveries = [
        (BASELINE.to_owned(), plain(v4, false, 0)),
        (payload(8), plain(v4, false, 8)),
        (payload(64), plain(v4, false, 64)),
        (payload(256), plain(v4, false, 256)),
        (payload(MAX_PAYLOAD_LEN), plain(v4, false, MAX_PAYLOAD_LEN)),
        ("delivered, IPv6".to_owned(), plain(DEVICES[1], true, 0)),
        ("delivered, IPv6 to IPv4".to_owned(), plain(v4, true, 0)),
        (
            "delivered, IPv4 to IPv6".to_owned(),
            plain(DEVICES[1], false, 0),
        ),
        (
            "delivered, out of a VLAN".to_owned(),
            (v4, false, &[(VLAN, 100)][..], None, 0),
        ),
        (
            "delivered, into GTP-U".to_owned(),
            ("192.168.77.7:7000", false, &[][..], Some(tunnel), 0),
        ),
        ("sent back, IPv4".to_owned(), plain(ONE_ARMED[0], false, 0)),
    ];
    for (name, (device, from_v6, tags, tunnel, length)) in deliveries {
        let mut session = session(device);
        session.image.tunnel = tunnel;
        let mut session = session.installed(gateway);
        let payload = vec![0x5A; length];
        let next = move || {
            let datagram = Datagram::to_gateway(from_v6, session.trigger(&payload));
            tagged(&datagram.frame(), tags)
        };
        let verdict = if device == ONE_ARMED[0] {
            Verdict::SentBack
        } else {
            Verdict::Redirected
        };
        row(&name, verdict, Frames::Next(Box::new(next)));
    }
    let floor = Competitor {
        name: "floor".to_owned(),
        program: Some(Variant::new(gateway, Otherwise::EndsBefore(0), 0)?),
        expected: None,
        frames: Frames::Same(not_ip.context("something isn't IP")?),
    };
    Ok((floor, rows))
}

/// What has been measured, and on what.
struct Measured {
    cpu: usize,
    sessions: usize,
    nics: Vec<(NicStatus, ProgramSize)>,
    /// Instructions that the verifier went through, of each program on the ladder.
    verified: Vec<u32>,
    /// The competitors by name, and the instructions that each executes.
    competitors: Vec<(String, u32)>,
    rounds: Rounds,
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

fn measure(gateway: &mut Gateway, count: usize) -> Result<Measured> {
    let cpu = pin()?;
    let nics = nics(gateway)?;
    let (mut floor, mut competitors) = competitors(gateway)?;
    let mut ladder = ladder(gateway, cpu)?;
    let attached = gateway.dataplane.prober(EXT)?;
    // Each of them proves that every row is what it says.
    let rounds = Rounds::measure("path", count, &[cpu], |turns| {
        let mut medians = Vec::new();
        for step in 0..LADDER {
            medians.push(turns.take(|| step_ns(gateway, &mut ladder, step))?);
        }
        let mut floors = Vec::new();
        for (index, competitor) in competitors.iter_mut().enumerate() {
            if index.is_multiple_of(PER_FLOOR) {
                floors.push(turns.take(|| floor.median_ns(gateway, &attached))?);
            }
            medians.push(turns.take(|| competitor.median_ns(gateway, &attached))?);
        }
        Ok(Round {
            floor: Quartiles::of(&floors).context("no floor")?.median,
            competitors: medians,
        })
    })?;
    let mut interpreter = Interpreter::new(&nic_config(gateway)?, &gateway.settings.pin_dir);
    let interface = nix::net::if_::if_nametoindex(EXT)?;
    let competitors = competitors.into_iter().map(|mut competitor| {
        let frame = competitor.frames.take(1).remove(0);
        let executed = interpreter.run(&frame, interface).instructions;
        (competitor.name, executed)
    });
    Ok(Measured {
        cpu,
        sessions: gateway.dataplane.installed().len(),
        nics,
        verified: ladder.verified()?,
        competitors: competitors.collect(),
        rounds,
    })
}

/// What a trigger takes up to this step of the ladder.
fn step_ns(gateway: &Gateway, ladder: &mut Ladder, step: usize) -> Result<f64> {
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
    Ok(ns)
}

fn nics(gateway: &mut Gateway) -> Result<Vec<(NicStatus, ProgramSize)>> {
    let sizes = gateway.dataplane.program_sizes()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let statuses = runtime.block_on(gateway.dataplane.nics())?;
    Ok(statuses.into_iter().zip(sizes).collect())
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
            "path: {}: {RUNS} runs a row, each of a fresh frame (BPF_PROG_TEST_RUN), on CPU {}\n\
             floor: the program if it ends where it begins, reading the clock included\n\
             sessions: {} in a table of {SLOTS} slots, so few that all are in the CPU's cache",
            self.rounds.tell(kept, "the floor"),
            self.cpu,
            self.sessions
        );
        for (nic, _) in &self.nics {
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
        let mut names = self.competitors.iter().map(|(name, _)| name);
        let baseline = names.position(|name| name == BASELINE)?;
        quiet.ratio(competitor, LADDER + baseline)
    }

    /// The same for programs.
    fn rows(&self, quiet: Option<&Quiet>) -> Vec<Row> {
        let row =
            |name: &str, metric, figure, unit| Row::new(Suite::Path, name, metric, figure, unit);
        let counted = |count: u32| Some(Figure::Counted(count.into()));
        let mut rows = Vec::new();
        for (nic, size) in &self.nics {
            let instructions = [
                ("verified", size.verified_instructions),
                ("translated", size.translated_bytes / 8),
            ];
            for (metric, count) in instructions {
                rows.push(row(&nic.name, metric, counted(count), "instructions"));
            }
            let machine_code = counted(size.machine_code_bytes);
            rows.push(row(&nic.name, "machine code", machine_code, "bytes"));
        }
        for (step, name) in STEPS.into_iter().enumerate() {
            let verified = counted(self.verified[step + 1].saturating_sub(self.verified[step]));
            rows.push(row(name, "verified in the step", verified, "instructions"));
        }
        let least = self.verified.last().copied().and_then(counted);
        rows.push(row("the least", "verified", least, "instructions"));
        for (name, executed) in &self.competitors {
            rows.push(row(name, "executed", counted(*executed), "instructions"));
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
            // Differences of differences: within a round, one program that was disturbed moves all of it.
            let in_tags = quiet.map(|quiet| {
                let of = |quartile: fn(Quartiles) -> f64| {
                    let at = |program: usize| {
                        quartile(quiet.quartiles(|round| round.competitors[program]))
                    };
                    let tag = at(with) - at(without);
                    (at(last) - at(0) - tag) / tag
                };
                let median = of(|times| times.median);
                let others = [of(|times| times.lower), of(|times| times.upper)];
                Quartiles {
                    lower: others.into_iter().fold(median, f64::min),
                    median,
                    upper: others.into_iter().fold(median, f64::max),
                }
            });
            let figure = in_tags.map(Figure::Measured);
            let row = row(name, "in tags", figure, "×");
            rows.push(row.compared("its tag", figure));
        }
        for (index, (name, _)) in (LADDER..).zip(&self.competitors) {
            let over_floor = quiet.map(|quiet| Figure::Measured(quiet.over_floor(index)));
            let ratio = quiet.and_then(|quiet| self.ratio(quiet, index).map(Figure::Measured));
            let row = row(name, "time over the floor", over_floor, "ns");
            rows.push(row.compared(BASELINE, ratio));
        }
        rows
    }
}
