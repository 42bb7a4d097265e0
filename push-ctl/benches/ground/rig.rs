//! A competitor between generator and sink.

use super::plan::{
    CLASSES, FRAME_LEN, INTERFACE, KEPT, KEPT_FRAMES, Kept, LANES, LATENCIES, Lane, LaneBytes,
    SHARED, SINKS, STAMPED_LEN, Sink, SinkBytes,
};
use super::proof::check_frames;
use super::route::{Route, lay_routes};
use crate::gateway::{EXT, Gateway, INT, sh, wait_until};
use crate::shared::resized;
use anyhow::{Context, Result, ensure};
use aya::maps::{Array, PerCpuArray, PerCpuValues};
use aya::programs::{TestRun as _, TestRunAttrs, TestRunOptions, Xdp, XdpMode};
use aya::{Ebpf, EbpfLoader};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;
use push_common::wire::TRIGGER_HEADER_LEN;
use std::any::Any;
use std::thread;
use std::time::{Duration, Instant};
use xtask::bench::pin;

pub(super) static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/bench"));

/// The other ends of the gateway's NICs.
const EXT_PEER: &str = "ext-peer";
const INT_PEER: &str = "int-peer";

/// How long it takes at most from asking for live frames to the first one, several times over: generators on several
/// CPUs begin at the same time.
const START_AFTER: Duration = Duration::from_millis(10);

/// How long what is under way when the last frame was sent may take.
const LIMIT: Duration = Duration::from_secs(5);

/// When nothing has arrived for so long, nothing more will.
const SETTLED: Duration = Duration::from_millis(100);

/// Sequence numbers of a rig begin here.
pub(super) const FIRST_SEQUENCE: u64 = 1 << 20;

/// What a generator is to do.
#[derive(Clone, Debug)]
pub(crate) struct Turn {
    /// On these CPUs at the same time.
    pub(crate) cpus: Vec<usize>,
    /// So many on each.
    pub(crate) frames: u32,
    /// So many before the kernel hands them on.
    pub(crate) batch: u32,
    /// Number of sessions of each CPU, a power of two.
    pub(crate) sessions: u32,
    pub(crate) at_random: bool,
    /// All CPUs have the same sessions, and draw from the same sequence numbers.
    pub(crate) shared: bool,
    /// Between two frames; 0 for as fast as possible.
    pub(crate) interval_ns: u64,
    /// Whether latencies are wanted.
    pub(crate) stamped: bool,
    /// Whether frames may be lost: those that the replay window refuses, where CPUs share a session.
    pub(crate) may_lose: bool,
}

impl Turn {
    /// As fast as possible, on one CPU.
    pub(crate) fn on(cpu: usize, frames: u32) -> Self {
        Self {
            cpus: vec![cpu],
            frames,
            batch: 64,
            sessions: 1024,
            at_random: false,
            shared: false,
            interval_ns: 0,
            stamped: false,
            may_lose: false,
        }
    }
}

/// What came of a turn.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) sent: u64,
    /// Frames that arrived as they are to be.
    pub(crate) arrived: u64,
    /// From the first frame until the last one was judged, over all CPUs.
    pub(crate) elapsed: Duration,
    /// Frames by class of latency.
    pub(crate) latencies: Vec<u64>,
}

impl Outcome {
    /// Of a frame that arrived, in nanoseconds.
    pub(crate) fn ns_per_frame(&self) -> f64 {
        self.elapsed.as_nanos() as f64 / self.arrived as f64
    }
}

/// Generator, sink, and what is between them, in the namespace of this thread.
pub(crate) struct Rig {
    route: Route,
    around: Ebpf,
    /// Where what is between them is, too.
    cpu: usize,
    sequence: u64,
    /// The competitor.
    _between: Box<dyn Any>,
}

impl Rig {
    /// Puts generator and sink around what is there.
    pub(crate) fn around(route: Route, between: impl Any) -> Result<Self> {
        let mut around = EbpfLoader::new()
            .load(OBJECT)
            .context("cannot load the generator")?;
        loaded(xdp(&mut around, "generate")?)?;
        let sink = xdp(&mut around, "sink")?;
        sink.load()?;
        for nic in [EXT_PEER, INT_PEER] {
            sink.attach(nic, XdpMode::Driver)?;
        }
        Ok(Self {
            route,
            around,
            cpu: pin()?,
            sequence: FIRST_SEQUENCE,
            _between: Box::new(between),
        })
    }

    /// Puts generator and sink around a program of theirs that does next to nothing.
    pub(crate) fn around_bare(route: Route, gateway: Gateway, program: &str) -> Result<Self> {
        let namespace = without_push(gateway);
        let bare = bare(program)?;
        Self::around(route, (bare, namespace))
    }

    /// Puts generator and sink around the kernel's own stack, which `prepare` makes into what it is to be.
    ///
    /// A veth takes live frames only where a program waits for them. One that lets all pass costs the least: the
    /// kernel makes socket buffers of many frames at a time then.
    pub(crate) fn around_kernel(
        route: Route,
        gateway: Gateway,
        prepare: impl FnOnce() -> Result<()>,
    ) -> Result<Self> {
        // Threads that `prepare` starts are on the generator's CPU, too.
        pin()?;
        let namespace = without_push(gateway);
        let bare = bare("pass")?;
        prepare()?;
        Self::around(route, (bare, namespace))
    }

    /// Shows that frames arrive, byte for byte as they are to be.
    pub(crate) fn prove(&mut self) -> Result<Outcome> {
        let turn = Turn::on(self.cpu, KEPT_FRAMES);
        // Once without looking: neighbours, flows and sockets are made.
        self.turn(&turn)?;
        let first = self.sequence;
        let outcome = self.run(&turn, KEPT_FRAMES)?;
        let map = self.around.map_mut(KEPT).context("no map of frames")?;
        let kept: Array<_, Kept> = Array::try_from(map)?;
        let frames: Vec<Kept> = (0..KEPT_FRAMES)
            .map(|index| kept.get(&index, 0))
            .collect::<Result<_, _>>()?;
        check_frames(self.route, first, &frames)?;
        Ok(outcome)
    }

    pub(crate) fn turn(&mut self, turn: &Turn) -> Result<Outcome> {
        self.run(turn, 0)
    }

    fn run(&mut self, turn: &Turn, keep: u32) -> Result<Outcome> {
        let payload_len = TRIGGER_HEADER_LEN + if turn.stamped { 8 } else { 0 };
        let sequences = u64::from(turn.frames) * turn.cpus.len() as u64;
        let entrance = nix::net::if_::if_nametoindex(EXT_PEER)?;
        let start_ns = monotonic_ns() + START_AFTER.as_nanos() as u64;
        let cpus = aya::util::nr_cpus().map_err(|(_, error)| error)?;
        let mut lanes = vec![[0; size_of::<Lane>()]; cpus];
        let mut sinks = vec![[0; size_of::<Sink>()]; cpus];
        for (index, &cpu) in (0_u32..).zip(&turn.cpus) {
            let own = if turn.shared { 0 } else { index };
            lanes[cpu] = bytemuck::must_cast(Lane {
                goes_to: entrance,
                first_slot: 1 + own * turn.sessions,
                slot_mask: turn.sessions - 1,
                at_random: turn.at_random.into(),
                stamped: turn.stamped.into(),
                shared: turn.shared.into(),
                frames: turn.frames.into(),
                start_ns,
                interval_ns: turn.interval_ns,
                sequence: self.sequence,
                random: self.sequence ^ u64::from(index) << 32,
                ..self.route.lane(payload_len)
            });
            sinks[cpu] = bytemuck::must_cast(Sink {
                stamped: turn.stamped.into(),
                keep,
                target: u64::from(turn.frames),
                ..self.route.sink(payload_len)
            });
        }
        self.set(LANES, lanes)?;
        self.set(SINKS, sinks)?;
        if turn.stamped {
            let map = self.around.map_mut(LATENCIES).context("no latencies")?;
            let mut map: PerCpuArray<_, u64> = PerCpuArray::try_from(map)?;
            for class in 0..CLASSES {
                map.set(class, PerCpuValues::try_from(vec![0; cpus])?, 0)?;
            }
        }
        let map = self.around.map_mut(SHARED).context("no shared number")?;
        Array::<_, u64>::try_from(map)?.set(0, self.sequence, 0)?;
        self.sequence += sequences;

        let generator: &Xdp = self
            .around
            .program("generate")
            .context("no generator")?
            .try_into()?;
        thread::scope(|scope| {
            let running: Vec<_> = turn
                .cpus
                .iter()
                .map(|&cpu| scope.spawn(move || generate(generator, cpu, turn)))
                .collect();
            running.into_iter().try_for_each(|thread| {
                thread
                    .join()
                    .map_err(|_| anyhow::anyhow!("a generator panicked"))?
            })
        })?;
        self.outcome(turn)
    }

    fn set<const N: usize>(&mut self, name: &str, values: Vec<[u8; N]>) -> Result<()>
    where
        [u8; N]: aya::Pod,
    {
        let map = self.around.map_mut(name).context("no such map")?;
        let mut map: PerCpuArray<_, [u8; N]> = PerCpuArray::try_from(map)?;
        map.set(0, PerCpuValues::try_from(values)?, 0)?;
        Ok(())
    }

    /// Waits until all that was sent has arrived, or nothing more does.
    fn outcome(&self, turn: &Turn) -> Result<Outcome> {
        let lanes = self.lanes()?;
        let sent: u64 = lanes.iter().map(|lane| lane.sent).sum();
        let arrived = |sinks: &[Sink]| {
            sinks
                .iter()
                .map(|sink| sink.right + sink.wrong)
                .sum::<u64>()
        };
        let mut sinks = self.sinks()?;
        let mut last = Instant::now();
        let limit = if turn.may_lose { SETTLED } else { LIMIT };
        while arrived(&sinks) < sent && last.elapsed() < limit {
            thread::sleep(Duration::from_millis(1));
            let now = self.sinks()?;
            if arrived(&now) != arrived(&sinks) {
                last = Instant::now();
            }
            sinks = now;
        }
        let sum = |of: &dyn Fn(&Sink) -> u64| sinks.iter().map(of).fold(0, u64::wrapping_add);
        let (right, wrong) = (sum(&|sink| sink.right), sum(&|sink| sink.wrong));
        let asked = u64::from(turn.frames) * turn.cpus.len() as u64;
        ensure!(sent == asked, "{sent} frames were sent, not {asked}");
        ensure!(
            wrong == 0,
            "{wrong} of {sent} frames arrived otherwise than they are to; right and wrong, by CPU: {:?}",
            sinks
                .iter()
                .map(|sink| (sink.right, sink.wrong))
                .collect::<Vec<_>>()
        );
        let begun_ns = lanes
            .iter()
            .filter(|lane| lane.sent > 0)
            .map(|lane| lane.begun_ns)
            .min();
        let ended = sinks.iter().map(|sink| sink.ended_ns);
        let last = lanes.iter().map(|lane| lane.ended_ns);
        let ended_ns = ended.chain(last).max();
        if !turn.may_lose {
            ensure!(right == sent, "{} of {sent} frames were lost", sent - right);
            let sequences = lanes
                .iter()
                .map(|lane| lane.sequences)
                .fold(0, u64::wrapping_add);
            let tags = lanes
                .iter()
                .map(|lane| lane.tags)
                .fold(0, u64::wrapping_add);
            ensure!(
                sequences == sum(&|sink| sink.sequences) && tags == sum(&|sink| sink.tags),
                "as many frames arrived as were sent, but not the same ones"
            );
        }
        let elapsed = ended_ns.context("nothing arrived")? - begun_ns.context("no generator")?;
        Ok(Outcome {
            sent,
            arrived: right,
            elapsed: Duration::from_nanos(elapsed),
            latencies: if turn.stamped {
                self.latencies()?
            } else {
                Vec::new()
            },
        })
    }

    fn lanes(&self) -> Result<Vec<Lane>> {
        let map = self.around.map(LANES).context("no lanes")?;
        let map: PerCpuArray<_, LaneBytes> = PerCpuArray::try_from(map)?;
        Ok(map
            .get(&0, 0)?
            .iter()
            .map(|&bytes| bytemuck::must_cast(bytes))
            .collect())
    }

    fn sinks(&self) -> Result<Vec<Sink>> {
        let map = self.around.map(SINKS).context("no sinks")?;
        let map: PerCpuArray<_, SinkBytes> = PerCpuArray::try_from(map)?;
        Ok(map
            .get(&0, 0)?
            .iter()
            .map(|&bytes| bytemuck::must_cast(bytes))
            .collect())
    }

    fn latencies(&self) -> Result<Vec<u64>> {
        let map = self.around.map(LATENCIES).context("no latencies")?;
        let map: PerCpuArray<_, u64> = PerCpuArray::try_from(map)?;
        (0..CLASSES)
            .map(|class| Ok(map.get(&class, 0)?.iter().sum()))
            .collect()
    }
}

/// Has the kernel run the generator, frame by frame, on a CPU.
fn generate(generator: &Xdp, cpu: usize, turn: &Turn) -> Result<()> {
    let mut only = CpuSet::new();
    only.set(cpu)?;
    sched_setaffinity(Pid::from_raw(0), &only)?;
    let length = if turn.stamped { STAMPED_LEN } else { FRAME_LEN };
    generator.test_run(TestRunOptions {
        data_in: Some(&vec![0; length]),
        repeat: turn.frames,
        attrs: TestRunAttrs::new().xdp_live_frames(turn.batch),
        ..TestRunOptions::new()
    })?;
    Ok(())
}

/// One of the programs that do next to nothing, where triggers come in.
fn bare(program: &str) -> Result<Ebpf> {
    let out = nix::net::if_::if_nametoindex(INT)?;
    let mut bare = EbpfLoader::new()
        .override_global(INTERFACE, &out, true)
        .load(OBJECT)?;
    let xdp = xdp(&mut bare, program)?;
    xdp.load()?;
    xdp.attach(EXT, XdpMode::Driver)?;
    Ok(bare)
}

/// A gateway with a table of this many slots, that knows the ways to all devices.
pub(crate) fn with_table(gateway: Gateway, slots: u32) -> Gateway {
    lay_routes();
    resized(gateway, slots)
}

/// A gateway's namespace without push in it: as it was before push was attached.
pub(crate) fn without_push(gateway: Gateway) -> Box<dyn Any> {
    let Gateway {
        dataplane,
        settings,
        _state,
    } = gateway;
    drop(dataplane);
    std::fs::remove_dir_all(&settings.pin_dir).expect("the pins of a gateway can be removed");
    wait_until("push is off its NICs", || {
        !sh("ip link show").contains("prog/xdp")
    });
    lay_routes();
    Box::new(_state)
}

/// Loads a program that is to be run many times at a go, and attaches it where nothing comes in. Else the kernel would
/// patch a direct call of it into itself for each such run, and take it out afterwards (`bpf_dispatcher_change_prog`):
/// both wait for all CPUs, some 10 ms each.
pub(super) fn loaded(program: &mut Xdp) -> Result<()> {
    program.load()?;
    program.attach("lo", XdpMode::Skb)?;
    Ok(())
}

pub(crate) fn xdp<'a>(object: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp> {
    let program = object.program_mut(name);
    Ok(program
        .with_context(|| format!("no program {name}"))?
        .try_into()?)
}

pub(crate) fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("Linux has a monotonic clock");
    Duration::from(now).as_nanos() as u64
}
