//! What the benchmarks' generator and sink are told, and what they tell: plain data, of this CPU alone.

use bytemuck::{Pod, Zeroable};

/// Bytes of the headers in front of a trigger: Ethernet, IPv4, UDP.
pub(crate) const HEADERS_LEN: usize = 42;
/// Bytes of a frame without payload.
pub(crate) const FRAME_LEN: usize = HEADERS_LEN + 40;
/// Bytes of a frame whose payload is a timestamp.
pub(crate) const STAMPED_LEN: usize = FRAME_LEN + 8;
/// Frames that a sink keeps, if it is told to.
pub(crate) const KEPT_FRAMES: u32 = 256;
/// Classes of latencies, see [`class`].
pub(crate) const CLASSES: u32 = 1024;
/// Slots of sessions have this generation added to make the high half of their identifier.
pub(crate) const GENERATION: u32 = 0x1000_0000;

/// What a generator is to send, and how far it has got.
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Lane {
    /// The headers of every frame as they lie in memory, up to the UDP checksum.
    pub(crate) headers: [u64; 5],
    /// The first word of every trigger as it lies in memory.
    pub(crate) trigger: u64,
    /// Sum, for the UDP checksum, of all that is the same in every frame.
    pub(crate) udp_sum: u64,
    /// Index of the NIC to whose other end frames go, or of the program that they are handed to.
    pub(crate) goes_to: u32,
    /// Slot of the first session.
    pub(crate) first_slot: u32,
    /// Number of sessions less 1, all bits of it set.
    pub(crate) slot_mask: u32,
    /// 1 if sessions come at random, 0 if in turn.
    pub(crate) at_random: u32,
    /// 1 if a session's slot is added to the UDP port.
    pub(crate) port_by_slot: u32,
    /// 1 if the payload is the time at which the frame was due.
    pub(crate) stamped: u32,
    /// 1 if sequence numbers are drawn from the map that CPUs share.
    pub(crate) shared: u32,
    /// Not used.
    pub(crate) reserved: u32,
    /// How many frames there are to be.
    pub(crate) frames: u64,
    /// No frame leaves before this time of `CLOCK_MONOTONIC`.
    pub(crate) start_ns: u64,
    /// Between two frames; 0 for as many as possible.
    pub(crate) interval_ns: u64,
    /// Of the next trigger.
    pub(crate) sequence: u64,
    /// Of the generator of random numbers.
    pub(crate) random: u64,

    /// Frames so far.
    pub(crate) sent: u64,
    /// When the first one was sent.
    pub(crate) begun_ns: u64,
    /// When the last one was written; 0 if it wasn't.
    pub(crate) ended_ns: u64,
    /// Sum of their sequence numbers.
    pub(crate) sequences: u64,
    /// Sum of the words of their tags.
    pub(crate) tags: u64,
}

/// What a sink is to take for right, and what it has seen.
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Sink {
    /// The headers of every frame as they are to lie in memory, up to the UDP checksum.
    pub(crate) headers: [u64; 5],
    /// Which bits of them count.
    pub(crate) masks: [u64; 5],
    /// Destination of sessions in slot 0.
    pub(crate) device: u32,
    /// Which bits of the slot are added to it.
    pub(crate) device_mask: u32,
    /// Length of a frame.
    pub(crate) length: u64,
    /// 1 if there is a timestamp in the payload.
    pub(crate) stamped: u32,
    /// How many frames are to be kept.
    pub(crate) keep: u32,
    /// With how many right frames the end is reached.
    pub(crate) target: u64,

    /// Frames that were right.
    pub(crate) right: u64,
    /// Triggers, by their UDP port, that weren't.
    pub(crate) wrong: u64,
    /// When the end was reached; 0 if it wasn't.
    pub(crate) ended_ns: u64,
    /// Sum of the sequence numbers of right frames.
    pub(crate) sequences: u64,
    /// Sum of the words of their tags.
    pub(crate) tags: u64,
}

/// What the least that does the job is told.
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Least {
    /// Destination and source of frames that it sends, as they lie in memory.
    pub(crate) macs: [u32; 3],
    /// The gateway's address, as devices see it.
    pub(crate) source: [u8; 4],
    pub(crate) source_port: [u8; 2],
    /// Where triggers come in.
    pub(crate) trigger_port: [u8; 2],
    /// 1 to take every tag for a valid one.
    pub(crate) skips_tag: u32,
    /// Not used.
    pub(crate) reserved: u32,
}

/// A frame as it came to a sink.
pub(crate) type Kept = [u8; 96];

/// The class of a latency: below 32 ns each its own, then 32 for each power of two.
#[inline(always)]
#[must_use]
pub(crate) const fn class(latency_ns: u64) -> u32 {
    let power = 63_u32.wrapping_sub((latency_ns | 1).leading_zeros());
    if power < 5 {
        return latency_ns as u32;
    }
    let shift = power.wrapping_sub(5);
    let in_power = (latency_ns >> shift) as u32 & 31;
    let class = shift
        .wrapping_add(1)
        .wrapping_mul(32)
        .wrapping_add(in_power);
    let last = CLASSES.wrapping_sub(1);
    if class < last { class } else { last }
}
