//! `cargo xtask bench wire`: frames from NIC to NIC.
//!
//! A generator writes each frame whole, with a valid tag, and sends it to a NIC; push takes it there, and sends it out
//! by another NIC, or by the same one; a sink behind that compares it with what it is to be. Beside it, in the same
//! rounds, a program that only sends on what comes in: the ceiling; and the least that does the job for one kind of
//! frame, which is how near to the ceiling any program with these tags can come.
//!
//! Latencies are from when a frame was due, not from when it could be sent, until the sink has it, by one clock.

#[path = "../../tests/datagram.rs"]
#[expect(dead_code, reason = "tests need more of it")]
mod datagram;
#[path = "../../tests/gateway.rs"]
#[expect(dead_code, reason = "tests need more of it")]
mod gateway;
#[expect(dead_code, reason = "other benchmarks need more of it")]
mod ground;
mod shared;

use anyhow::{Context, Result};
use ground::Ground;
use ground::plan::{CLASSES, floor_of};
use ground::rig::{Outcome, Rig, Turn, with_table};
use ground::route::{Route, Shape, install};
use ground::variant::{Otherwise, Variant};
use shared::{Arguments, Measured};
use std::process::ExitCode;
use xtask::bench::{Figure, Others, Progress, Quartiles, Round, Rounds, Row, Suite, pin};

/// Few enough that all are in the CPU's cache.
const FEW: u32 = 1024;
const MANY: u32 = 1 << 20;
/// So few that a turn is over before the machine is busy with something else.
const FRAMES: u32 = 250_000;

/// Of latencies, in percent of as many frames as possible.
const LOADS: [u32; 5] = [10, 30, 50, 70, 90];
/// Frames of one load in one round.
const STAMPED_FRAMES: u32 = 100_000;

/// What takes turns, by place in a round. The first one is the ceiling of all that go through.
const CEILING: &str = "bare redirect";
const CEILING_BACK: &str = "bare transmit";

fn main() -> ExitCode {
    shared::main(Suite::Wire, measure)
}

/// What takes turns: a name, the place of its ceiling, where it is, and what it is to do.
struct Competitor {
    name: String,
    ceiling: usize,
    ground: usize,
    turn: Turn,
}

fn measure(arguments: &Arguments) -> Result<Measured> {
    let (rounds, paced_rounds) = if arguments.short { (9, 1) } else { (41, 9) };
    let cpu = pin()?;
    let grounds = [
        Ground::new(CEILING, |gateway| {
            Rig::around_bare(Route::untouched(Shape::Through), gateway, "redirect")
        })?,
        Ground::new("push", |gateway| push(gateway, Shape::Through, MANY))?,
        Ground::new(CEILING_BACK, |gateway| {
            Rig::around_bare(Route::untouched(Shape::Back), gateway, "transmit")
        })?,
        Ground::new("push", |gateway| push(gateway, Shape::Back, FEW))?,
        Ground::new("least", |gateway| {
            let mut gateway = with_table(gateway, 2 * FEW);
            install(&mut gateway, Shape::Through, FEW)?;
            let mut least = Variant::new(&gateway, Otherwise::Least, FEW)?;
            least.attach(&gateway)?;
            Rig::around(Route::of_push(Shape::Through), (least, gateway))
        })?,
    ];
    let all = Turn::on(cpu, FRAMES);
    let random = Turn {
        sessions: MANY,
        at_random: true,
        ..all.clone()
    };
    let competitor = |name: &str, ceiling, ground, turn: &Turn| Competitor {
        name: name.to_owned(),
        ceiling,
        ground,
        turn: turn.clone(),
    };
    let competitors = [
        competitor(CEILING, 0, 0, &all),
        competitor("push, redirected", 0, 1, &all),
        competitor("push, redirected, 1 M sessions at random", 0, 1, &random),
        competitor("the least, redirected", 0, 4, &all),
        competitor(CEILING_BACK, 4, 2, &all),
        competitor("push, sent back", 4, 3, &all),
    ];
    let measured = Rounds::measure("wire", rounds, &[cpu], |turns| {
        let times = competitors
            .iter()
            .map(|it| turns.take(|| Ok(grounds[it.ground].turn(&it.turn)?.ns_per_frame())))
            .collect::<Result<Vec<_>>>()?;
        Ok(Round {
            floor: times[0],
            competitors: times,
        })
    })?;
    let (kept, quiet) = arguments.quiet(&measured);
    let mut rows = Vec::new();
    for (index, competitor) in competitors.iter().enumerate() {
        let rate = |round: &Round| 1e3 / round.competitors[index];
        let figure = quiet
            .as_ref()
            .map(|quiet| Figure::Measured(quiet.quartiles(rate)));
        let row = Row::new(Suite::Wire, &competitor.name, "delivered", figure, "Mpps");
        rows.push(if index == competitor.ceiling {
            row
        } else {
            let ceiling = competitor.ceiling;
            let share = |round: &Round| round.competitors[ceiling] / round.competitors[index];
            let ratio = quiet
                .as_ref()
                .map(|quiet| Figure::Measured(quiet.quartiles(share)));
            row.compared(&competitors[ceiling].name, ratio)
        });
    }
    let lost = Some(Figure::Counted(0));
    rows.push(Row::new(Suite::Wire, "all", "lost", lost, "frames"));
    let others = Others::watch()?;
    let mut of_latencies = latencies(&grounds[..2], cpu, paced_rounds)?;
    let is_quiet = quiet.is_some() && !others.took_too_much()?;
    if !is_quiet && !arguments.noisy {
        of_latencies.iter_mut().for_each(Row::withhold);
    }
    rows.extend(of_latencies);
    Ok(Measured {
        heading: format!(
            "wire: {}; {FRAMES} live frames of 82 bytes a turn, {FEW} sessions in turn if not said otherwise, all on CPU {cpu}",
            measured.tell(kept, "the bare redirect")
        ),
        rows,
        is_quiet,
    })
}

fn push(gateway: gateway::Gateway, shape: Shape, sessions: u32) -> Result<Rig> {
    let mut gateway = with_table(gateway, (sessions + 1).next_power_of_two());
    install(&mut gateway, shape, sessions)?;
    Rig::around(Route::of_push(shape), gateway)
}

/// Frames one by one, each handed on at once, at shares of what can be sent so by push.
fn latencies(grounds: &[Ground], cpu: usize, rounds: usize) -> Result<Vec<Row>> {
    let unpaced = Turn {
        batch: 1,
        stamped: true,
        ..Turn::on(cpu, STAMPED_FRAMES)
    };
    let most = grounds.last().context("push is the last one")?;
    let times = (0..5)
        .map(|_| {
            // With an interval, so that the clock is read as often as when there is one to wait for.
            let turn = Turn {
                interval_ns: 1,
                ..unpaced.clone()
            };
            Ok(most.turn(&turn)?.ns_per_frame())
        })
        .collect::<Result<Vec<_>>>()?;
    let least_ns = Quartiles::of(&times).context("there was a turn")?.median;
    let mut rows = vec![Row::new(
        Suite::Wire,
        "push, frame by frame",
        "delivered",
        Some(Figure::Once(1e3 / least_ns)),
        "Mpps",
    )];
    let progress = Progress::new("wire, latencies", rounds);
    let mut seen = vec![vec![Vec::new(); LOADS.len()]; grounds.len()];
    for round in 0..=rounds {
        progress.at(round);
        for (of_load, load) in LOADS.iter().enumerate() {
            let turn = Turn {
                interval_ns: (least_ns * 100.0 / f64::from(*load)) as u64,
                ..unpaced.clone()
            };
            for (of_ground, ground) in grounds.iter().enumerate() {
                let outcome = ground.turn(&turn)?;
                if round > 0 {
                    seen[of_ground][of_load].push(Percentiles::of(&outcome));
                }
            }
        }
    }
    for (ground, of_ground) in grounds.iter().zip(&seen) {
        for (load, of_load) in LOADS.iter().zip(of_ground) {
            for (metric, of) in Percentiles::METRICS {
                let figures: Vec<_> = of_load.iter().map(|it| of(it) as f64 / 1e3).collect();
                let figure = Quartiles::of(&figures);
                rows.push(Row::new(
                    Suite::Wire,
                    format!("{} at {load}", ground.name()),
                    metric,
                    figure.map(Figure::Measured),
                    "µs",
                ));
            }
        }
    }
    Ok(rows)
}

/// Of one turn, in nanoseconds.
#[derive(Clone, Copy)]
struct Percentiles {
    half: u64,
    one_percent: u64,
    one_in_a_thousand: u64,
}

type Of = fn(&Percentiles) -> u64;

impl Percentiles {
    const METRICS: [(&'static str, Of); 3] = [
        ("latency, p50", |it| it.half),
        ("latency, p99", |it| it.one_percent),
        ("latency, p99.9", |it| it.one_in_a_thousand),
    ];

    fn of(outcome: &Outcome) -> Self {
        let above = |share: f64| {
            let wanted = (outcome.arrived as f64 * (1.0 - share)) as u64;
            let mut sum = 0;
            let class = (0..CLASSES).zip(&outcome.latencies).find(|(_, count)| {
                sum += **count;
                sum > wanted
            });
            // What is in a class took less than what the next one begins with.
            floor_of(class.map_or(CLASSES, |(class, _)| class + 1))
        };
        Self {
            half: above(0.5),
            one_percent: above(0.01),
            one_in_a_thousand: above(0.001),
        }
    }
}
