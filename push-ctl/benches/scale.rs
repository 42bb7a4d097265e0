//! `cargo xtask bench scale`: what it costs to have many sessions.
//!
//! A run is one `BPF_PROG_TEST_RUN` of a fresh trigger for a session chosen at random among the first so many of
//! one table, all of which the gateway has. Numbers of sessions take turns, the floor now and then, round after round,
//! on one CPU; beside them, each time, the same program with its sessions in a hash map. Nothing but the program
//! touches a session's memory: keys are made from the slot.

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
use datagram::{DEVICES, Session, changed};
use gateway::{EXT, Gateway, INT};
use ground::variant::{Otherwise, Variant};
use push_common::maps::SESSIONS;
use shared::{Arguments, resized};
use std::fs;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::process::ExitCode;
use std::sync::mpsc;
use std::time::{Duration, Instant};
use xtask::bench::{Figure, Quartiles, Quiet, Round, Rounds, Row, Suite, pin};

/// So many sessions each: two that fit a CPU's caches, one at their edge, two that don't. Others are compared with the
/// first one.
const COUNTS: [u32; 5] = [1, 1024, 65_536, MILLION, MOST];
/// What the most are compared with, and what the least is measured with.
const MILLION: u32 = 1_000_000;
const MOST: u32 = 10_000_000;
/// What is measured of each.
const TIME: &str = "time over the floor";
const OF_HASH: &str = "time over that of a hash map";
const RUNS: usize = 400;

fn main() -> ExitCode {
    shared::main(Suite::Scale, run)
}

fn run(arguments: &Arguments) -> Result<shared::Measured> {
    let (counts, rounds) = match arguments.short {
        true => (&COUNTS[..4], 21),
        false => (&COUNTS[..], 51),
    };
    let (sender, receiver) = mpsc::channel();
    Gateway::run(move |gateway| {
        let _ = sender.send(measure(gateway, counts, rounds));
    });
    let measured = receiver.recv().context("nothing was measured")??;
    let (kept, quiet) = arguments.quiet(&measured.rounds);
    Ok(shared::Measured {
        heading: format!(
            "scale: {}; {RUNS} triggers a row and round (BPF_PROG_TEST_RUN), on CPU {}",
            measured.rounds.tell(kept, "the floor"),
            measured.cpu
        ),
        rows: measured.rows(counts, quiet.as_ref()),
        is_quiet: quiet.is_some(),
    })
}

/// What has been measured, and on what.
struct Measured {
    cpu: usize,
    table_bytes: u64,
    slots: u32,
    installed_per_s: f64,
    /// Of a table and of a larger one: bytes that the kernel accounts for a slot that only this one has.
    bytes_per_slot_more: f64,
    rounds: Rounds,
}

fn measure(gateway: Gateway, counts: &[u32], rounds: usize) -> Result<Measured> {
    let cpu = pin()?;
    let most = counts.last().copied().context("there are counts")?;
    let slots = (most + 1).next_power_of_two();
    let pin = |gateway: &Gateway| gateway.settings.pin_dir.join(SESSIONS);
    let (few_slots, few_bytes) = (
        gateway.settings.session_slots,
        kernel_memory(&pin(&gateway))?,
    );
    let mut gateway = resized(gateway, slots);
    eprintln!("scale: {most} sessions are put into a table of {slots} slots");
    let begun = Instant::now();
    for slot in 1..=most {
        gateway.dataplane.install(&session(slot).image)?;
    }
    let installed_per_s = f64::from(most) / begun.elapsed().as_secs_f64();
    let table_bytes = kernel_memory(&pin(&gateway))?;
    let bytes_per_slot_more =
        table_bytes.abs_diff(few_bytes) as f64 / f64::from(slots.abs_diff(few_slots));

    eprintln!("scale: the same sessions are put into hash maps");
    let hashes = counts
        .iter()
        .map(|&count| Variant::new(&gateway, Otherwise::ByHash, count))
        .collect::<Result<Vec<_>>>()?;
    let [least, least_by_hash] = [Otherwise::Least, Otherwise::LeastByHash]
        .map(|otherwise| Variant::new(&gateway, otherwise, MILLION));
    let (least, least_by_hash) = (least?, least_by_hash?);
    let triggers = gateway.dataplane.prober(EXT)?;
    let others = gateway.dataplane.prober(INT)?;
    let arp = changed(&session(1).datagram(b"").frame(), 12, &[0x08, 0x06]);
    let push: Program<'_> = &|frame, out| triggers.run(frame, out);
    let by_hash: Vec<_> = hashes.iter().map(program).collect();
    let mut programs = Vec::new();
    for (&count, by_hash) in counts.iter().zip(&by_hash) {
        programs.extend([(count, push), (count, by_hash)]);
    }
    let least = [&least, &least_by_hash].map(program);
    programs.extend(least.iter().map(|least| (MILLION, least as Program<'_>)));

    let mut sequence = session(1).sequence;
    let mut random = 0x9E37_79B9_7F4A_7C15_u64;
    let mut fresh = |count: u32| {
        sequence += 1;
        let slot = 1 + (next(&mut random) % u64::from(count)) as u32;
        let mut session = session(slot);
        session.sequence = sequence;
        session.datagram(b"").frame()
    };
    let measured = Rounds::measure("scale", rounds, &[cpu], |turns| {
        let frames = vec![arp.clone(); RUNS];
        let mut floors = Vec::new();
        let mut competitors = Vec::with_capacity(programs.len());
        for (index, &(count, program)) in programs.iter().enumerate() {
            if index.is_multiple_of(PER_FLOOR) {
                floors.push(
                    turns
                        .take(|| median_ns(&|frame, out| others.run(frame, out), &frames, PASS))?,
                );
            }
            competitors.push(turns.take(|| {
                let frames: Vec<_> = (0..RUNS).map(|_| fresh(count)).collect();
                median_ns(program, &frames, REDIRECT)
            })?);
        }
        let floor = Quartiles::of(&floors).context("no floor")?.median;
        Ok(Round { floor, competitors })
    })?;
    Ok(Measured {
        cpu,
        table_bytes,
        slots,
        installed_per_s,
        bytes_per_slot_more,
        rounds: measured,
    })
}

/// Rows after which the floor is measured again: a turn may come out too low, a round's median doesn't.
const PER_FLOOR: usize = 4;

const PASS: u32 = 2;
const REDIRECT: u32 = 4;

fn session(slot: u32) -> Session {
    Session::new(slot, DEVICES[0])
}

/// Runs a program once on a frame: what it does with it, and how long that takes.
type Program<'a> = &'a dyn Fn(&[u8], &mut Vec<u8>) -> Result<(u32, Duration)>;

fn program(variant: &Variant) -> impl Fn(&[u8], &mut Vec<u8>) -> Result<(u32, Duration)> {
    |frame, out| variant.run(frame, out)
}

/// The median of what one run of each frame took, all of which had this action.
fn median_ns(program: Program<'_>, frames: &[Vec<u8>], action: u32) -> Result<f64> {
    let mut durations_ns = Vec::with_capacity(frames.len());
    let mut out = Vec::new();
    for frame in frames {
        let (was, duration) = program(frame, &mut out)?;
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
        let array = |count: u32| format!("array at {count}");
        // Each array's place is twice that of its number of sessions, and its hash map follows it.
        let index = |wanted| Some(2 * counts.iter().position(|&count| count == wanted)?);
        let compared = |of: usize, with: usize| quiet?.ratio(of, with).map(Figure::Measured);
        let time = |at| quiet.map(|quiet| Figure::Measured(quiet.over_floor(at)));
        let mut rows = Vec::new();
        for (at, &count) in counts.iter().enumerate() {
            let row = Row::new(Suite::Scale, array(count), TIME, time(2 * at), "ns");
            rows.push(row.compared(&array(1), compared(2 * at, 0)));
        }
        for (at, &count) in counts.iter().enumerate() {
            let name = format!("hash map at {count}");
            rows.push(Row::new(Suite::Scale, &name, TIME, time(2 * at + 1), "ns"));
            let row = Row::new(Suite::Scale, array(count), OF_HASH, time(2 * at), "ns");
            rows.push(row.compared(&name, compared(2 * at, 2 * at + 1)));
        }
        let (least, by_hash) = (2 * counts.len(), 2 * counts.len() + 1);
        let name = format!("the least, hash map at {MILLION}");
        rows.push(Row::new(Suite::Scale, &name, TIME, time(by_hash), "ns"));
        let of_array = format!("the least, array at {MILLION}");
        let row = Row::new(Suite::Scale, of_array, OF_HASH, time(least), "ns");
        rows.push(row.compared(&name, compared(least, by_hash)));
        if let (Some(most), Some(million)) = (index(MOST), index(MILLION)) {
            let name = "time over that of 1 M";
            let row = Row::new(Suite::Scale, array(MOST), name, time(most), "ns");
            rows.push(row.compared(&array(MILLION), compared(most, million)));
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
        let more = Some(Figure::Once(self.bytes_per_slot_more));
        rows.push(Row::new(
            Suite::Scale,
            "each session more",
            "per session",
            more,
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
