//! `cargo xtask bench multi`: whether two CPUs do twice as much as one.
//!
//! Each CPU has its generator, its queue of each NIC, and its sink; the gateway is the same. What they may not share is
//! all that could slow one of them down: so much as a counter in one cache line would show. One session for both is
//! the opposite: then each trigger is one compare-and-swap on the same two words.

#[path = "../../tests/datagram.rs"]
#[expect(dead_code, reason = "tests need more of it")]
mod datagram;
#[path = "../../tests/gateway.rs"]
#[expect(dead_code, reason = "tests need more of it")]
mod gateway;
#[expect(dead_code, reason = "other benchmarks need more of it")]
mod ground;
mod shared;

use anyhow::{Result, ensure};
use gateway::sh;
use ground::Ground;
use ground::rig::{Rig, Turn, with_table};
use ground::route::{Route, Shape, install};
use shared::{Arguments, Measured};
use std::process::ExitCode;
use xtask::bench::{Figure, Round, Rounds, Row, Suite, allowed_cpus, arithmetic};

/// Sessions of each CPU.
const SESSIONS: u32 = 1024;
const FRAMES: u32 = 250_000;
/// Where CPUs share a session, of each CPU: so few that the replay window, which permits 96 steps of reordering,
/// permits what one CPU has at hand while the other one is at its own.
const SHARED_BATCH: u32 = 16;

/// What takes turns, by place in a round.
const ONE: usize = 0;
const OTHER: usize = 1;
const BOTH: usize = 2;
const ONE_OF_SHARED: usize = 3;
const SHARED: usize = 4;
const BARE_ONE: usize = 5;
const BARE_OTHER: usize = 6;
const BARE_BOTH: usize = 7;
const ARITHMETIC: usize = 8;
const ARITHMETIC_ON_BOTH: usize = 9;

/// Words of arithmetic.
const WORDS: u64 = 16_000_000;

/// The name of what a row is compared with, and how many frames a round had of it.
type Baseline<'a> = (&'a str, &'a dyn Fn(&Round) -> f64);

fn main() -> ExitCode {
    shared::main(Suite::Multi, measure)
}

fn measure(arguments: &Arguments) -> Result<Measured> {
    let rounds = if arguments.short { 9 } else { 41 };
    let cpus = allowed_cpus()?;
    ensure!(cpus.len() >= 2, "this takes two CPUs, and there is one");
    let cpus = [cpus[0], cpus[1]];
    let ground = Ground::new("push", |gateway| {
        a_queue_for_each_cpu();
        let mut gateway = with_table(gateway, 4 * SESSIONS);
        install(&mut gateway, Shape::Through, 2 * SESSIONS)?;
        Rig::around(Route::of_push(Shape::Through), gateway)
    })?;
    let bare = Ground::new("bare redirect", |gateway| {
        a_queue_for_each_cpu();
        Rig::around_bare(Route::untouched(Shape::Through), gateway, "redirect")
    })?;
    let alone = |cpu| Turn {
        sessions: SESSIONS,
        ..Turn::on(cpu, FRAMES)
    };
    let one_session = |cpus: &[usize]| Turn {
        cpus: cpus.to_vec(),
        sessions: 1,
        batch: SHARED_BATCH,
        shared: true,
        may_lose: cpus.len() > 1,
        ..alone(cpus[0])
    };
    let both = Turn {
        cpus: cpus.to_vec(),
        ..alone(cpus[0])
    };
    let turns = [
        (&ground, alone(cpus[0])),
        (&ground, alone(cpus[1])),
        (&ground, both.clone()),
        (&ground, one_session(&cpus[..1])),
        (&ground, one_session(&cpus)),
        (&bare, alone(cpus[0])),
        (&bare, alone(cpus[1])),
        (&bare, both),
    ];
    let mut refused = 0.0_f64;
    let measured = Rounds::measure("multi", rounds, &cpus, |takes| {
        let mut competitors = Vec::new();
        for (index, (ground, turn)) in turns.iter().enumerate() {
            let outcome = takes.take(|| ground.turn(turn))?;
            competitors.push(outcome.ns_per_frame());
            if index == SHARED {
                let lost = outcome.sent - outcome.arrived;
                refused = refused.max(lost as f64 / outcome.sent as f64 * 100.0);
            }
        }
        competitors.push(takes.take(|| ns_per_word(&cpus[..1]))?);
        competitors.push(takes.take(|| ns_per_word(&cpus))?);
        Ok(Round {
            floor: competitors[ONE].max(competitors[OTHER]),
            competitors,
        })
    })?;
    let (kept, quiet) = arguments.quiet(&measured);
    let row = |name: &str, index: usize, baseline: Option<Baseline<'_>>| {
        let rate = |round: &Round| 1e3 / round.competitors[index];
        let figure = quiet
            .as_ref()
            .map(|quiet| Figure::Measured(quiet.quartiles(rate)));
        let (metric, unit) = if index < ARITHMETIC {
            ("delivered", "Mpps")
        } else {
            ("words absorbed", "M/s")
        };
        let row = Row::new(Suite::Multi, name, metric, figure, unit);
        match baseline {
            None => row,
            Some((baseline, of)) => {
                let ratio = quiet
                    .as_ref()
                    .map(|quiet| quiet.quartiles(|round| rate(round) / of(round)));
                row.compared(baseline, ratio.map(Figure::Measured))
            }
        }
    };
    let mean_of = |one: usize, other: usize| {
        move |round: &Round| (1e3 / round.competitors[one] + 1e3 / round.competitors[other]) / 2.0
    };
    let mean = mean_of(ONE, OTHER);
    let bare_mean = mean_of(BARE_ONE, BARE_OTHER);
    let of_shared = |round: &Round| 1e3 / round.competitors[ONE_OF_SHARED];
    let of_arithmetic = |round: &Round| 1e3 / round.competitors[ARITHMETIC];
    let too_old = quiet.as_ref().map(|_| Figure::Once(refused));
    let rows = vec![
        row("one CPU", ONE, None),
        row("the other CPU", OTHER, None),
        row(
            "two CPUs, sessions of their own",
            BOTH,
            Some(("one CPU, on average", &mean)),
        ),
        row("one CPU, one session", ONE_OF_SHARED, None),
        row(
            "two CPUs, one session",
            SHARED,
            Some(("one CPU, one session", &of_shared)),
        ),
        Row::new(
            Suite::Multi,
            "two CPUs, one session",
            "refused by the replay window, at most",
            too_old,
            "%",
        ),
        row("one CPU, bare redirect", BARE_ONE, None),
        row("the other CPU, bare redirect", BARE_OTHER, None),
        row(
            "two CPUs, bare redirect",
            BARE_BOTH,
            Some(("one CPU, bare redirect, on average", &bare_mean)),
        ),
        row("one CPU, arithmetic alone", ARITHMETIC, None),
        row(
            "two CPUs, arithmetic alone",
            ARITHMETIC_ON_BOTH,
            Some(("one CPU, arithmetic alone", &of_arithmetic)),
        ),
    ];
    Ok(Measured {
        heading: format!(
            "multi: {}; {FRAMES} live frames a CPU and turn, {SESSIONS} sessions each",
            measured.tell(kept, "a CPU alone")
        ),
        rows,
        is_quiet: quiet.is_some(),
    })
}

fn a_queue_for_each_cpu() {
    for nic in ["ext", "ext-peer", "int", "int-peer"] {
        sh(&format!("ethtool -L {nic} rx $(nproc --all)"));
    }
}

/// What a word takes that goes into a tag, on these CPUs at the same time, over all of them.
fn ns_per_word(cpus: &[usize]) -> Result<f64> {
    let took = arithmetic(cpus, WORDS)?;
    Ok(took.as_nanos() as f64 / (WORDS * cpus.len() as u64) as f64)
}
