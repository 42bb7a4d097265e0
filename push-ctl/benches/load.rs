//! Part of `cargo xtask bench control`: how fast sessions get into the kernel's table.
//!
//! The same records take all ways in turn, round after round, on one CPU: one system call for each, a system call
//! for many, plain stores into the table as it's mapped into memory, and all that the data plane does for a session
//! (which writes by plain stores, and finds out the session's next hop before).

#![expect(
    unsafe_code,
    reason = "maps are memory, and batches a bare system call"
)]

#[path = "../../tests/datagram.rs"]
#[expect(dead_code, reason = "tests need more of it")]
mod datagram;
#[path = "../../tests/gateway.rs"]
#[expect(dead_code, reason = "tests need more of it")]
mod gateway;
mod shared;

use anyhow::{Context, Result, ensure};
use aya::maps::{Array, IterableMap as _, Map, MapData};
use bytemuck::Zeroable;
use datagram::{DEVICES, Session};
use gateway::Gateway;
use memmap2::{MmapOptions, MmapRaw};
use push_common::maps::{SESSIONS, SessionRecord};
use shared::{Arguments, Measured, resized};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::process::ExitCode;
use std::sync::mpsc;
use std::time::Instant;
use xtask::bench::{Figure, Round, Rounds, Row, Suite, pin};

const SLOTS: u32 = 1 << 20;
const ROUNDS: usize = 7;

/// How many records one system call takes.
const BATCH: usize = 4096;

/// Ways into the table; the first one is the one that others are compared with.
const WAYS: [&str; 4] = [
    "one by one",
    "in batches",
    "in mapped memory",
    "by the data plane",
];

/// As aya takes records: it knows only its own trait for plain data.
type RecordBytes = [u8; size_of::<SessionRecord>()];

fn main() -> ExitCode {
    shared::main(Suite::Control, run)
}

fn run(arguments: &Arguments) -> Result<Measured> {
    let (sender, receiver) = mpsc::channel();
    Gateway::run(move |gateway| {
        let _ = sender.send(measure(gateway));
    });
    let rounds = receiver.recv().context("nothing was measured")??;
    let (kept, quiet) = arguments.quiet(&rounds);
    let per_s = |round: &Round, way: usize| f64::from(SLOTS) / round.competitors[way];
    let of = |figures: &dyn Fn(&Round) -> f64| quiet.as_ref().map(|quiet| quiet.quartiles(figures));
    let rows: Vec<_> = (0..WAYS.len())
        .map(|way| {
            let rate = of(&|round| per_s(round, way)).map(Figure::Measured);
            let ratio = of(&|round| per_s(round, way) / per_s(round, 0)).map(Figure::Measured);
            Row::new(Suite::Control, WAYS[way], "sessions loaded", rate, "1/s")
                .compared(WAYS[0], ratio)
        })
        .collect();
    Ok(Measured {
        heading: format!(
            "load: {}; {SLOTS} sessions each way",
            rounds.tell(kept, "what needs nothing but memory")
        ),
        rows,
        is_quiet: quiet.is_some(),
    })
}

/// Seconds that all sessions take, by way and round.
fn measure(gateway: Gateway) -> Result<Rounds> {
    let cpu = pin()?;
    let mut gateway = resized(gateway, SLOTS);
    let mut table = Table::open(&gateway.settings.pin_dir.join(SESSIONS))?;
    let records = vec![record(); SLOTS as usize];
    // The first one warms up: the kernel makes the table's pages when they are touched first.
    Rounds::measure("load", ROUNDS, &[cpu], |turns| {
        let mut timed = |load: &mut dyn FnMut() -> Result<()>| {
            turns.take(|| {
                let begun = Instant::now();
                load()?;
                Ok(begun.elapsed().as_secs_f64())
            })
        };
        let ways = [
            timed(&mut || table.one_by_one(&records))?,
            timed(&mut || table.in_batches(&records))?,
            timed(&mut || {
                table.in_memory(&records);
                Ok(())
            })?,
            timed(&mut || {
                (1..SLOTS).try_for_each(|slot| {
                    let session = Session::new(slot, DEVICES[0]);
                    gateway.dataplane.install(&session.image).map(|_| ())
                })
            })?,
        ];
        Ok(Round {
            // What needs nothing but memory.
            floor: ways[2],
            competitors: ways.to_vec(),
        })
    })
}

/// One that no trigger is for.
fn record() -> RecordBytes {
    bytemuck::must_cast(SessionRecord {
        expires_tick: 1,
        ..SessionRecord::zeroed()
    })
}

/// The session table, by all ways into it.
struct Table {
    map: Array<MapData, RecordBytes>,
    memory: MmapRaw,
}

impl Table {
    fn open(pin: &Path) -> Result<Self> {
        let map = MapData::from_pin(pin)?;
        let memory = MmapOptions::new()
            .len(SLOTS as usize * size_of::<RecordBytes>())
            .map_raw(map.fd().as_fd().as_raw_fd())?;
        Ok(Self {
            map: Array::try_from(Map::Array(map))?,
            memory,
        })
    }

    fn one_by_one(&mut self, records: &[RecordBytes]) -> Result<()> {
        for (slot, record) in (0..).zip(records) {
            self.map.set(slot, record, 0)?;
        }
        Ok(())
    }

    fn in_batches(&self, records: &[RecordBytes]) -> Result<()> {
        const UPDATE_BATCH: libc::c_long = 26;
        let fd = self.map.map().fd().as_fd().as_raw_fd();
        let slots: Vec<u32> = (0..SLOTS).collect();
        for (slots, records) in slots.chunks(BATCH).zip(records.chunks(BATCH)) {
            let mut attributes = BatchAttributes {
                keys: slots.as_ptr() as u64,
                values: records.as_ptr() as u64,
                count: u32::try_from(slots.len())?,
                map_fd: u32::try_from(fd)?,
                ..BatchAttributes::default()
            };
            // SAFETY: keys and values are as many as it says, and live until the call returns.
            let result = unsafe {
                libc::syscall(
                    libc::SYS_bpf,
                    UPDATE_BATCH,
                    &raw mut attributes,
                    size_of::<BatchAttributes>(),
                )
            };
            ensure!(
                result == 0 && attributes.count as usize == slots.len(),
                "the kernel doesn't take a batch: {}",
                io::Error::last_os_error()
            );
        }
        Ok(())
    }

    fn in_memory(&self, records: &[RecordBytes]) {
        let first = self.memory.as_mut_ptr().cast::<RecordBytes>();
        for (slot, record) in records.iter().enumerate() {
            // SAFETY: there are as many records as slots, each of which is in the mapping.
            unsafe { first.add(slot).write_volatile(*record) };
        }
    }
}

/// What `BPF_MAP_UPDATE_BATCH` takes (`union bpf_attr` in `linux/bpf.h`, member `batch`).
#[repr(C)]
#[derive(Default)]
struct BatchAttributes {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    element_flags: u64,
    flags: u64,
}
