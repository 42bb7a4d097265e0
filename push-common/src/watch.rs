//! Watching a session: the path hands out copies of the packets that name it, for an operator to look at.
//!
//! At its exit the path looks whether a session is watched at all: one word. Only what names that one is copied,
//! and no more than [`CAPTURES_PER_INTERVAL`].

use crate::maps::{EVENT_KIND_SLOTS, EventKind};
use bytemuck::{Pod, Zeroable};

/// Name of the map of [`Watch`]: one entry.
pub const WATCH: &str = "push_watch";
/// Name of the ring buffer of [`Capture`]s.
pub const CAPTURES: &str = "push_captures";

/// Bytes of the ring buffer: room for about 1,700 packets.
pub const CAPTURES_BYTES: u32 = 1 << 19;
/// Bytes of a frame that are copied at most.
pub const SNAP_BYTES: usize = 256;
/// Packets that each CPU copies at most within [`crate::maps::EVENT_INTERVAL_NS`].
pub const CAPTURES_PER_INTERVAL: u64 = 64;
/// Where in [`crate::maps::EventLimits`] this is counted: behind all kinds of events.
pub const CAPTURE_SLOT: usize = EVENT_KIND_SLOTS - 1;

/// Which session is watched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Watch {
    /// Value of its identifier; 0 if none is watched.
    pub session: u64,
    /// Until this time in nanoseconds of `CLOCK_MONOTONIC`, so that it ends even if nobody ends it.
    pub until_ns: u64,
    /// Packets that named it and were not copied: they were too many.
    pub missed: u64,
}

/// A packet that named the watched session, as it stands in the ring buffer. One that is sent on, or passed
/// to the kernel, is as it leaves the program; one that is dropped is as it was then, which is as it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Capture {
    /// Time in nanoseconds of `CLOCK_MONOTONIC`.
    pub time_ns: u64,
    /// Value of the session identifier.
    pub session: u64,
    /// Length of all of the frame in bytes.
    pub length: u32,
    /// Bytes of `frame` that are there.
    pub captured: u32,
    /// [`crate::verdict::Verdict`].
    pub verdict: u32,
    /// [`crate::maps::NicConfig::index`] of the NIC that it came in by.
    pub nic: u32,
    /// The beginning of the frame.
    pub frame: [u8; SNAP_BYTES],
}

const _: () = {
    assert!(size_of::<Capture>() == 32 + SNAP_BYTES);
    // The path makes a mask of it.
    assert!(SNAP_BYTES.is_power_of_two());
    assert!(EventKind::ALL.len() <= CAPTURE_SLOT);
};
