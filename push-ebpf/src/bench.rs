//! What the benchmarks put around the program: a generator, a sink, and programs that do next to nothing.
//!
//! The generator is run with live frames (`BPF_PROG_TEST_RUN`). The kernel gives it pages that other programs
//! have written to before, so it writes each frame from the first byte to the last. All that it and the sink
//! do is paid for by every competitor alike.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![cfg_attr(target_arch = "bpf", feature(core_intrinsics))]
#![cfg_attr(
    target_arch = "bpf",
    expect(
        internal_features,
        reason = "the only way to compare-and-swap on this target"
    )
)]
#![cfg_attr(
    not(target_arch = "bpf"),
    expect(dead_code, reason = "only the kernel calls the programs")
)]
#![expect(unsafe_code, reason = "helpers, maps and frames are raw memory")]
#![warn(clippy::arithmetic_side_effects)]

#[path = "bench/least.rs"]
mod least;
#[path = "bench/plan.rs"]
mod plan;

use aya_ebpf::bindings::xdp_action;
use aya_ebpf::btf_maps::{Array, PerCpuArray, ProgramArray};
use aya_ebpf::helpers::{bpf_ktime_get_ns, bpf_loop, bpf_redirect};
use aya_ebpf::macros::{btf_map, xdp};
use aya_ebpf::programs::XdpContext;
use core::ffi::c_void;
use plan::{
    CLASSES, FRAME_LEN, GENERATION, HEADERS_LEN, KEPT_FRAMES, Kept, Lane, STAMPED_LEN, Sink, class,
};
use push_common::checksum::Delta;
use push_common::tag::{Mac, TagKey};

#[btf_map(name = "bench_lanes")]
static LANES: PerCpuArray<Lane, 1> = PerCpuArray::new();

#[btf_map(name = "bench_sinks")]
static SINKS: PerCpuArray<Sink, 1> = PerCpuArray::new();

#[btf_map(name = "bench_latencies")]
static LATENCIES: PerCpuArray<u64, { CLASSES as usize }> = PerCpuArray::new();

#[btf_map(name = "bench_kept")]
static KEPT: Array<Kept, { KEPT_FRAMES as usize }> = Array::new();

#[btf_map(name = "bench_shared")]
static SHARED: Array<u64, 1> = Array::new();

/// What `drive` calls.
#[btf_map(name = "bench_programs")]
static PROGRAMS: ProgramArray<16> = ProgramArray::new();

#[unsafe(no_mangle)]
static BENCH_INTERFACE: u32 = 0;

/// Rounds of waiting for a frame's time: what the kernel permits.
const MOST_ROUNDS: u32 = 1 << 23;
/// Offset of the UDP destination port.
const PORT_AT: usize = 36;
/// Offset of the UDP checksum.
const CHECKSUM_AT: usize = 40;
/// Offset of the IPv4 destination address.
const DESTINATION_AT: usize = 30;

/// Writes the next trigger, and sends it to a NIC.
#[xdp]
#[expect(
    clippy::needless_pass_by_value,
    reason = "aya's entry point passes it so"
)]
fn generate(context: XdpContext) -> u32 {
    match write_next(&context) {
        // SAFETY: has no requirements.
        Some(interface) => unsafe { bpf_redirect(interface, 0) as u32 },
        None => xdp_action::XDP_ABORTED,
    }
}

/// Writes the next trigger, and hands it to a program as if it had come in.
#[xdp(frags)]
#[expect(
    clippy::needless_pass_by_value,
    reason = "aya's entry point passes it so"
)]
fn drive(context: XdpContext) -> u32 {
    if let Some(program) = write_next(&context) {
        // SAFETY: nothing here is to be dropped.
        unsafe { PROGRAMS.tail_call(&context, program) };
    }
    xdp_action::XDP_ABORTED
}

/// Writes the next trigger over the frame; returns where it is to go.
#[inline(always)]
fn write_next(context: &XdpContext) -> Option<u32> {
    let lane = LANES.get_ptr_mut(0)?;
    // SAFETY: the entry is this CPU's alone, and nothing interrupts the program to run it anew.
    let lane = unsafe { &mut *lane };
    let due_ns = lane
        .start_ns
        .wrapping_add(lane.interval_ns.wrapping_mul(lane.sent));
    if lane.interval_ns != 0 || lane.sent == 0 {
        wait_until(due_ns);
        if lane.sent == 0 {
            // SAFETY: has no requirements.
            lane.begun_ns = unsafe { bpf_ktime_get_ns() };
        }
    }
    let stamped = lane.stamped != 0;
    let number = if lane.at_random != 0 {
        // An affine generator (Knuth's MMIX), whose high bits are good.
        lane.random = lane
            .random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (lane.random >> 32) as u32
    } else {
        lane.sent as u32
    };
    let slot = lane.first_slot.wrapping_add(number & lane.slot_mask);
    let sequence = if lane.shared != 0 {
        SHARED.get_ptr_mut(0).map_or(0, next)
    } else {
        lane.sequence.wrapping_add(lane.sent)
    };
    let generation = GENERATION.wrapping_add(slot);
    let session = (u64::from(generation) << 32 | u64::from(slot)).to_be();
    let key = u64::from(slot as u8).wrapping_mul(0x0101_0101_0101_0101);
    let mut mac = Mac::new(bytemuck::must_cast::<[u64; 2], TagKey>([key; 2]));
    for word in [lane.trigger, session, sequence.to_be()] {
        mac.absorb_word(word);
    }
    let stamp = due_ns.to_be();
    if stamped {
        mac.absorb_word(stamp);
    }
    let length = if stamped { 32 } else { 24 };
    let [low, high] = mac.finish(0, length);

    let mut sum = Delta::ZERO
        .add_u64(lane.udp_sum)
        .add_u64(session)
        .add_u64(sequence.to_be())
        .add_u64(low)
        .add_u64(high);
    if stamped {
        sum = sum.add_u64(stamp);
    }
    if lane.port_by_slot != 0 {
        sum = sum.add_u16((slot as u16).to_be());
    }
    if stamped {
        let frame = bytes::<STAMPED_LEN>(context)?;
        write(frame, FRAME_LEN, stamp);
    }
    let frame = bytes::<FRAME_LEN>(context)?;
    for (index, word) in lane.headers.iter().enumerate() {
        write(frame, index.wrapping_mul(8), *word);
    }
    if lane.port_by_slot != 0 {
        let base = read::<u16>(frame, PORT_AT);
        let port = u16::from_be(base).wrapping_add(slot as u16);
        write(frame, PORT_AT, port.to_be());
    }
    write(frame, CHECKSUM_AT, sum.finish_udp());
    let trigger = [lane.trigger, session, sequence.to_be(), low, high];
    for (index, word) in trigger.iter().enumerate() {
        write(
            frame,
            HEADERS_LEN.wrapping_add(index.wrapping_mul(8)),
            *word,
        );
    }
    lane.sent = lane.sent.wrapping_add(1);
    if lane.sent == lane.frames {
        // SAFETY: has no requirements.
        lane.ended_ns = unsafe { bpf_ktime_get_ns() };
    }
    lane.sequences = lane.sequences.wrapping_add(sequence);
    lane.tags = lane.tags.wrapping_add(low).wrapping_add(high);
    Some(lane.goes_to)
}

/// Counts frames that are as they are to be; lets none through.
#[xdp]
#[expect(
    clippy::needless_pass_by_value,
    reason = "aya's entry point passes it so"
)]
fn sink(context: XdpContext) -> u32 {
    let Some(sink) = SINKS.get_ptr_mut(0) else {
        return xdp_action::XDP_ABORTED;
    };
    // SAFETY: as in `generate`.
    let sink = unsafe { &mut *sink };
    let Some(frame) = bytes::<FRAME_LEN>(&context) else {
        return xdp_action::XDP_DROP;
    };
    let mut difference = 0;
    for (index, (expected, mask)) in sink.headers.iter().zip(&sink.masks).enumerate() {
        let word = read::<u64>(frame, index.wrapping_mul(8));
        difference |= (word ^ expected) & mask;
    }
    let session = u64::from_be(read(frame, HEADERS_LEN.wrapping_add(8)));
    let device = sink.device.wrapping_add(session as u32 & sink.device_mask);
    let destination = u32::from_be(read(frame, DESTINATION_AT));
    let length = context.data_end().wrapping_sub(context.data()) as u64;
    if difference != 0 || destination != device || length != sink.length {
        // What isn't a trigger at all is no competitor's.
        if read::<u16>(frame, HEADERS_LEN) == u16::from_ne_bytes([0xF5, 0x50]) {
            sink.wrong = sink.wrong.wrapping_add(1);
            keep(sink, frame);
        }
        return xdp_action::XDP_DROP;
    }
    let sequence = u64::from_be(read(frame, HEADERS_LEN.wrapping_add(16)));
    let low = read::<u64>(frame, HEADERS_LEN.wrapping_add(24));
    let high = read::<u64>(frame, HEADERS_LEN.wrapping_add(32));
    sink.sequences = sink.sequences.wrapping_add(sequence);
    sink.tags = sink.tags.wrapping_add(low).wrapping_add(high);
    keep(sink, frame);
    sink.right = sink.right.wrapping_add(1);
    if sink.right == sink.target {
        // SAFETY: has no requirements.
        sink.ended_ns = unsafe { bpf_ktime_get_ns() };
    }
    if sink.stamped != 0
        && let Some(frame) = bytes::<STAMPED_LEN>(&context)
    {
        let due_ns = u64::from_be(read(frame, FRAME_LEN));
        // SAFETY: has no requirements.
        let latency_ns = unsafe { bpf_ktime_get_ns() }.wrapping_sub(due_ns);
        if let Some(count) = LATENCIES.get_ptr_mut(class(latency_ns)) {
            // SAFETY: as in `generate`.
            unsafe { *count = (*count).wrapping_add(1) };
        }
    }
    xdp_action::XDP_DROP
}

/// Sends everything to one NIC, as it is.
#[xdp]
fn redirect(_: XdpContext) -> u32 {
    // SAFETY: a static is valid and aligned. It is read as volatile, as the loader sets it.
    let interface = unsafe { (&raw const BENCH_INTERFACE).read_volatile() };
    // SAFETY: has no requirements.
    unsafe { bpf_redirect(interface, 0) as u32 }
}

/// Sends everything back, as it is.
#[xdp]
fn transmit(_: XdpContext) -> u32 {
    xdp_action::XDP_TX
}

/// Leaves everything to the kernel. A veth takes live frames only if it has a program.
#[xdp]
fn pass(_: XdpContext) -> u32 {
    xdp_action::XDP_PASS
}

/// Waits in the generator, where nothing else is to be done on this CPU.
#[inline(always)]
fn wait_until(time_ns: u64) {
    let mut time_ns = time_ns;
    let body: extern "C" fn(u32, &mut u64) -> i64 = is_due;
    // SAFETY: the kernel calls `is_due` with the number of a round, and `time_ns`, on this stack.
    unsafe {
        bpf_loop(
            MOST_ROUNDS,
            body as *mut c_void,
            (&raw mut time_ns).cast(),
            0,
        );
    }
}

/// 1 ends the loop. (The kernel wants its arguments named.)
extern "C" fn is_due(_round: u32, time_ns: &mut u64) -> i64 {
    // SAFETY: has no requirements.
    i64::from(unsafe { bpf_ktime_get_ns() } >= *time_ns)
}

#[inline(always)]
fn keep(sink: &Sink, frame: *mut u8) {
    let index = sink.right.wrapping_add(sink.wrong);
    if index < u64::from(sink.keep)
        && let Some(kept) = KEPT.get_ptr_mut(index as u32)
    {
        for word in 0..FRAME_LEN / 8 {
            let at = word.wrapping_mul(8);
            write(kept.cast(), at, read::<u64>(frame, at));
        }
        let last = FRAME_LEN.wrapping_sub(8);
        write(kept.cast(), last, read::<u64>(frame, last));
    }
}

/// The frame, if it has `LEN` bytes.
#[inline(always)]
fn bytes<const LEN: usize>(context: &XdpContext) -> Option<*mut u8> {
    let start = context.data();
    (start.wrapping_add(LEN) <= context.data_end()).then_some(start as *mut u8)
}

/// What lies at `offset`, at any address.
#[inline(always)]
fn read<T: Copy>(frame: *mut u8, offset: usize) -> T {
    // SAFETY: those who call it have seen that the frame is that long.
    unsafe { frame.add(offset).cast::<T>().read_unaligned() }
}

/// The other way round.
#[inline(always)]
fn write<T: Copy>(frame: *mut u8, offset: usize, value: T) {
    // SAFETY: as above.
    unsafe { frame.add(offset).cast::<T>().write_unaligned(value) }
}

/// The next number of those that CPUs share; 0 if others have drawn each that was tried for.
#[inline(always)]
fn next(shared: *mut u64) -> u64 {
    const ATTEMPTS: u32 = 16;
    for _ in 0..ATTEMPTS {
        // SAFETY: an element of an array map is valid, and aligned, for as long as the program runs.
        let before = unsafe { shared.read_volatile() };
        if swap_if(shared, before, before.wrapping_add(1)) {
            return before;
        }
    }
    0
}

/// Stores `new` if `*word` is still `old`; says whether it was.
#[inline(always)]
fn swap_if(word: *mut u64, old: u64, new: u64) -> bool {
    // SAFETY: as above.
    #[cfg(target_arch = "bpf")]
    unsafe {
        use core::intrinsics::{AtomicOrdering, atomic_cxchg};
        const RELAXED: AtomicOrdering = AtomicOrdering::Relaxed;
        atomic_cxchg::<u64, RELAXED, RELAXED>(word, old, new).1
    }
    // SAFETY: as above.
    #[cfg(not(target_arch = "bpf"))]
    unsafe {
        use core::sync::atomic::{AtomicU64, Ordering};
        AtomicU64::from_ptr(word)
            .compare_exchange(old, new, Ordering::Relaxed, Ordering::Relaxed)
            .is_ok()
    }
}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // Code that could panic would not link: the verifier refuses an endless loop.
    loop {}
}

/// Helpers that the kernel offers to GPL-compatible programs only are not out of reach.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(not(target_arch = "bpf"))]
fn main() {}
