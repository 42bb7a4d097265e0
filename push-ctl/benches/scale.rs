//! `cargo xtask bench scale`: what it costs to have many sessions.
//!
//! A run is one `BPF_PROG_TEST_RUN` of a fresh trigger for a session chosen at random among the first so many of
//! one table, all of which the gateway has. Numbers of sessions take turns, the floor first, round after round,
//! on one CPU. Nothing but the program touches a session's memory: keys are made from the slot.

#[path = "../../tests/datagram.rs"]
#[expect(dead_code, reason = "tests need more of it")]
mod datagram;
#[path = "../../tests/gateway.rs"]
#[expect(dead_code, reason = "tests need more of it")]
mod gateway;

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use datagram::{DEVICES, Session, changed};
use gateway::{EXT, Gateway, INT};
use push_common::maps::SESSIONS;
use push_ctl::dataplane::Prober;
use std::fs;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::mpsc;
use std::time::Instant;
use xtask::bench::{Figure, Progress, Quartiles, Quiet, Round, Row, Suite, pin};

/// So many sessions each: two that fit a CPU's caches, one at their edge, two that don't.
const COUNTS: [u32; 5] = [1, 1024, 65_536, 1_000_000, 10_000_000];
/// The name of what others are compared with.
const ONE: &str = "array at 1";
/// The name of the most.
const MOST: &str = "array at 10000000";
/// The name of what the most are compared with.
const MILLION: &str = "array at 1000000";
const RUNS: usize = 400;

#[derive(Parser)]
struct Arguments {
    /// Write all figures to this file, too.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Fewer rounds, and a million sessions at most.
    #[arg(long)]
    short: bool,
    /// Cargo passes it to each benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    let (counts, rounds) = match arguments.short {
        true => (&COUNTS[..4], 21),
        false => (&COUNTS[..], 51),
    };
    let (sender, receiver) = mpsc::channel();
    Gateway::run(move |gateway| {
        let _ = sender.send(measure(gateway, counts, rounds));
    });
    let measured = receiver.recv().context("nothing was measured")??;
    let (kept, quiet) = Quiet::of(&measured.rounds);
    println!(
        "\nscale: {kept} of {rounds} rounds of {RUNS} triggers each (BPF_PROG_TEST_RUN), on CPU {}",
        measured.cpu
    );
    let rows = measured.rows(counts, quiet.as_ref());
    Row::print(&rows);
    if let Some(path) = &arguments.json {
        let text = serde_json::to_string(&rows)?;
        fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    if quiet.is_none() {
        bail!("the machine was too noisy for a figure; try again when less is running on it");
    }
    Ok(())
}

/// What has been measured, and on what.
struct Measured {
    cpu: usize,
    table_bytes: u64,
    slots: u32,
    installed_per_s: f64,
    rounds: Vec<Round>,
}

fn measure(gateway: Gateway, counts: &[u32], rounds: usize) -> Result<Measured> {
    let cpu = pin()?;
    let most = counts.last().copied().context("there are counts")?;
    let slots = (most + 1).next_power_of_two();
    let mut gateway = gateway.restarted_with(|settings| {
        // A table keeps its size: this is another one.
        let before = settings.pin_dir.with_file_name("one");
        fs::remove_dir_all(std::mem::replace(&mut settings.pin_dir, before))
            .expect("the pins of a gateway can be removed");
        settings.session_slots = slots;
    });
    eprintln!("scale: {most} sessions are put into a table of {slots} slots");
    let begun = Instant::now();
    for slot in 1..=most {
        gateway.dataplane.install(&session(slot).image)?;
    }
    let installed_per_s = f64::from(most) / begun.elapsed().as_secs_f64();
    let table_bytes = kernel_memory(&gateway.settings.pin_dir.join(SESSIONS))?;

    let triggers = gateway.dataplane.prober(EXT)?;
    let others = gateway.dataplane.prober(INT)?;
    let arp = changed(&session(1).datagram(b"").frame(), 12, &[0x08, 0x06]);
    let mut sequence = session(1).sequence;
    let mut random = 0x9E37_79B9_7F4A_7C15_u64;
    let mut measured = Vec::new();
    let progress = Progress::new("scale", rounds);
    // The first one warms up.
    for round in 0..=rounds {
        progress.at(round);
        let mut frames = vec![arp.clone(); RUNS];
        let floor = median_ns(&others, &frames, PASS)?;
        let mut competitors = Vec::new();
        for &count in counts {
            frames.clear();
            for _ in 0..RUNS {
                sequence += 1;
                let slot = 1 + (next(&mut random) % u64::from(count)) as u32;
                let mut session = session(slot);
                session.sequence = sequence;
                frames.push(session.datagram(b"").frame());
            }
            competitors.push(median_ns(&triggers, &frames, REDIRECT)?);
        }
        if round > 0 {
            measured.push(Round { floor, competitors });
        }
    }
    Ok(Measured {
        cpu,
        table_bytes,
        slots,
        installed_per_s,
        rounds: measured,
    })
}

const PASS: u32 = 2;
const REDIRECT: u32 = 4;

fn session(slot: u32) -> Session {
    Session::new(slot, DEVICES[0])
}

/// The median of what one run of each frame took, all of which had this action.
fn median_ns(prober: &Prober, frames: &[Vec<u8>], action: u32) -> Result<f64> {
    let mut out = Vec::new();
    let mut durations_ns = Vec::with_capacity(frames.len());
    for frame in frames {
        let (was, duration) = prober.run(frame, &mut out)?;
        ensure!(
            was == action,
            "a trigger got XDP action {was}, not {action}"
        );
        durations_ns.push(duration.as_nanos() as f64);
    }
    let quartiles = Quartiles::of(&durations_ns).context("nothing was run")?;
    Ok(quartiles.median)
}

/// Pseudorandom (xorshift64*, Vigna 2016).
fn next(state: &mut u64) -> u64 {
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    state.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 16
}

/// What the kernel accounts for a pinned map.
fn kernel_memory(pin: &Path) -> Result<u64> {
    let map = aya::maps::MapData::from_pin(pin)?;
    let path = format!("/proc/self/fdinfo/{}", map.fd().as_fd().as_raw_fd());
    let text = fs::read_to_string(path)?;
    let line = text.lines().find_map(|line| line.strip_prefix("memlock:"));
    Ok(line
        .context("the kernel doesn't tell what a map takes")?
        .trim()
        .parse()?)
}

impl Measured {
    fn rows(&self, counts: &[u32], quiet: Option<&Quiet>) -> Vec<Row> {
        let name = |count: u32| format!("array at {count}");
        let index = |wanted: &str| counts.iter().position(|&count| name(count) == wanted);
        let compared = |of: usize, with: &str| {
            let ratio = quiet?.ratio(of, index(with)?)?;
            Some(ratio.median)
        };
        let mut rows = Vec::new();
        for (at, &count) in counts.iter().enumerate() {
            let time = quiet.map(|quiet| Figure::Measured(quiet.over_floor(at)));
            let row = Row::new(Suite::Scale, name(count), "time over the floor", time, "ns");
            rows.push(row.compared(ONE, compared(at, ONE)));
        }
        if let Some(most) = index(MOST) {
            let time = quiet.map(|quiet| Figure::Measured(quiet.over_floor(most)));
            let row = Row::new(Suite::Scale, MOST, "time over that of 1 M", time, "ns");
            rows.push(row.compared(MILLION, compared(most, MILLION)));
        }
        let per_slot = self.table_bytes as f64 / f64::from(self.slots);
        let memory = Some(Figure::Once(per_slot));
        rows.push(Row::new(
            Suite::Scale,
            "kernel memory",
            "per session",
            memory,
            "bytes",
        ));
        let set = Some(Figure::Counted(self.table_bytes));
        rows.push(Row::new(
            Suite::Scale,
            "session table",
            "working set",
            set,
            "bytes",
        ));
        let rate = Some(Figure::Once(self.installed_per_s));
        rows.push(Row::new(
            Suite::Scale,
            "installed",
            "one by one, in mapped memory",
            rate,
            "1/s",
        ));
        rows
    }
}
