//! `cargo xtask bench peers`: what others would take for the job, beside push.
//!
//! All of them get the same frames from the same generator, and are judged by the same sink, each in a namespace of its
//! own; they take turns. Each has shown before that what it delivers is, byte for byte, what it is to be.
//!
//! Relays in userspace check all that push checks: session, tag, replay window, rate. nftables checks nothing.

#[path = "../../tests/datagram.rs"]
#[expect(dead_code, reason = "tests need more of it")]
mod datagram;
#[path = "../../tests/gateway.rs"]
#[expect(dead_code, reason = "tests need more of it")]
mod gateway;
#[expect(dead_code, reason = "other benchmarks need more of it")]
mod ground;
mod shared;

use anyhow::Result;
use gateway::Gateway;
use ground::Ground;
use ground::nft::{self, Translation};
use ground::relay::{self, Calls};
use ground::rig::{Rig, Turn, with_table};
use ground::route::{Route, Shape, install};
use ground::variant::{Otherwise, Variant};
use shared::{Arguments, Measured};
use std::process::ExitCode;
use std::time::Duration;
use xtask::bench::{Figure, Round, Rounds, Row, Suite, pin};

const SESSIONS: u32 = 1024;
/// Frames by which is estimated how long one takes.
const TRIAL: u32 = 20_000;
/// How long a turn is to take.
const TURN: Duration = Duration::from_millis(100);
/// The place of what all are compared with, and of what tells how quiet it is.
const PUSH: usize = 0;
const BARE: usize = 1;
/// The place of what push is at the most, see `push-ebpf/src/bench/least.rs`.
const LEAST: usize = 2;

fn main() -> ExitCode {
    shared::main(Suite::Peers, measure)
}

fn measure(arguments: &Arguments) -> Result<Measured> {
    let rounds = if arguments.short { 9 } else { 41 };
    let cpu = pin()?;
    let through = Route::of_push(Shape::Through);
    let varied = |otherwise| {
        move |gateway| {
            let gateway = with_sessions(gateway)?;
            let mut variant = Variant::new(&gateway, otherwise, SESSIONS)?;
            variant.attach(&gateway)?;
            Rig::around(through, (variant, gateway))
        }
    };
    let nft = |how| move |gateway| nft::rig(gateway, how, SESSIONS);
    let relay = |how| move |gateway| relay::rig(gateway, how, SESSIONS);
    let grounds = [
        Ground::new("push", move |gateway| {
            Rig::around(through, with_sessions(gateway)?)
        })?,
        Ground::new("bare redirect, no checks", |gateway| {
            Rig::around_bare(Route::untouched(Shape::Through), gateway, "redirect")
        })?,
        Ground::new("the least, one kind of frame", varied(Otherwise::Least))?,
        Ground::new("push, routes asked per packet", varied(Otherwise::ByRoute))?,
        Ground::new("push, sessions in a hash map", varied(Otherwise::ByHash))?,
        Ground::new("nftables, stateful, no checks", nft(Translation::Stateful))?,
        Ground::new(
            "nftables, stateless, no checks",
            nft(Translation::Stateless),
        )?,
        Ground::new("relay, recvmmsg and sendmmsg", relay(Calls::Many))?,
        Ground::new("relay, tokio", relay(Calls::Tokio))?,
    ];
    let turns = grounds
        .iter()
        .map(|ground| {
            let trial = ground.turn(&Turn::on(cpu, TRIAL))?;
            let frames = TURN.as_nanos() as f64 / trial.ns_per_frame();
            Ok(Turn::on(cpu, (frames as u32).max(TRIAL)))
        })
        .collect::<Result<Vec<_>>>()?;
    let measured = Rounds::measure("peers", rounds, &[cpu], |takes| {
        let times = grounds
            .iter()
            .zip(&turns)
            .map(|(ground, turn)| takes.take(|| Ok(ground.turn(turn)?.ns_per_frame())))
            .collect::<Result<Vec<_>>>()?;
        Ok(Round {
            floor: times[BARE],
            competitors: times,
        })
    })?;
    let (kept, quiet) = arguments.quiet(&measured);
    let mut rows = Vec::new();
    for (index, ground) in grounds.iter().enumerate() {
        let of =
            |figure: &dyn Fn(&Round) -> f64| quiet.as_ref().map(|quiet| quiet.quartiles(figure));
        let rate = of(&|round| 1e3 / round.competitors[index]).map(Figure::Measured);
        rows.push(Row::new(
            Suite::Peers,
            ground.name(),
            "delivered",
            rate,
            "Mpps",
        ));
        for (who, name) in [(PUSH, "push"), (LEAST, "the least")] {
            if index == PUSH || index == who {
                continue;
            }
            let times = of(&|round| round.competitors[index] / round.competitors[who])
                .map(Figure::Measured);
            let row = Row::new(
                Suite::Peers,
                format!("{name}, against {}", ground.name()),
                "as many",
                times,
                "×",
            );
            rows.push(row.compared(ground.name(), times));
        }
    }
    rows.push(Row::new(
        Suite::Peers,
        "all",
        "lost",
        Some(Figure::Counted(0)),
        "frames",
    ));
    Ok(Measured {
        heading: format!(
            "peers: {}; live frames of 82 bytes, {SESSIONS} sessions in turn, all on CPU {cpu}",
            measured.tell(kept, "the bare redirect")
        ),
        rows,
        is_quiet: quiet.is_some(),
    })
}

fn with_sessions(gateway: Gateway) -> Result<Gateway> {
    let mut gateway = with_table(gateway, 2 * SESSIONS);
    install(&mut gateway, Shape::Through, SESSIONS)?;
    Ok(gateway)
}
