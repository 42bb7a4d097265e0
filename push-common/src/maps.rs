//! The BPF maps: names, sizes, records. What one half writes here, the other one reads.

use crate::replay;
use crate::tag::TagKey;
use crate::verdict::Verdict;
use bytemuck::{Pod, Zeroable};

/// Version of everything in this module. Pinned maps of another version are not adopted.
pub const LAYOUT_VERSION: u32 = 1;

/// Name of the XDP program.
pub const PROGRAM: &str = "push";
/// Name of the map of [`Meta`]: one entry.
pub const META: &str = "push_meta";
/// Name of the map of [`SessionRecord`]s, an array by slot that userspace maps into its memory.
pub const SESSIONS: &str = "push_sessions";
/// Name of the map of [`SourceRecord`]s, an array by [`SessionControl::source`].
pub const SOURCES: &str = "push_sources";
/// Name of the map of [`Counters`], per CPU, an array by [`NicConfig::index`].
pub const COUNTERS: &str = "push_counters";
/// Name of the load-time constant of type [`NicConfig`].
pub const NIC_CONFIG: &str = "NIC_CONFIG";

/// Slots of the session table unless the loader asks for another number.
pub const DEFAULT_SESSION_SLOTS: u32 = 65_536;
/// Entries of the map of sources.
pub const MAX_SOURCES: u32 = 64;
/// NICs that the program can be attached to at the same time.
pub const MAX_NICS: u32 = 32;
/// Longest name of a NIC, and a zero (`IFNAMSIZ`).
pub const NIC_NAME_LEN: usize = 16;
/// Room for verdicts in [`Counters`].
pub const VERDICT_SLOTS: usize = 64;

/// What pinned maps say about themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Meta {
    /// [`LAYOUT_VERSION`] of the program that made the maps; 0 while they are being made.
    pub layout_version: u32,
    /// Slots of the session table.
    pub session_slots: u32,
    /// Which NIC has which [`NicConfig::index`]: its name, padded with zeros; all zeros if none has.
    pub nics: [[u8; NIC_NAME_LEN]; MAX_NICS as usize],
}

/// One session: a cache line that the path only reads, and one that it writes.
///
/// A record is live while its generation is not 0. The controller announces each change to a live
/// record by [`SessionControl::CHANGING`] and ends it with a new [`SessionControl::version`], so that
/// the path, which looks at the control word before and after it copies the rest, never acts on half
/// of a change. The path never writes to the first line, the controller to the second one only
/// while the record isn't live.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C, align(64))]
pub struct SessionRecord {
    /// High half of the session identifier; 0 if the slot is free.
    pub generation: u32,
    /// End of the session, in ticks of [`TICK_NS`] of `CLOCK_MONOTONIC`.
    pub expires_tick: u32,
    /// Everything that fits in one word, so that it can be read and written at once.
    pub control: SessionControl,
    /// Keys of the token generations: that of generation `g` is at `g & 1`.
    pub keys: [TagKey; 2],
    /// Address of the device as on the wire; an IPv4 address is in the first 4 bytes.
    pub device_address: [u8; 16],

    /// Replay window, see [`replay`].
    pub replay: [u64; replay::WORDS],
    /// Triggers delivered.
    pub packets: u64,
    /// Bytes of their frames.
    pub bytes: u64,
    /// When the last one was delivered, in nanoseconds of `CLOCK_MONOTONIC`, as coarse as a kernel tick.
    pub last_delivered_ns: u64,
    /// Not used; 0.
    pub reserved: u64,
}

/// The part of a [`SessionRecord`] that is read and written at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C, align(8))]
pub struct SessionControl {
    /// UDP port of the device, as on the wire.
    pub device_port: [u8; 2],
    /// Index of the [`SourceRecord`] from which the device expects triggers.
    pub source: u16,
    /// Not used; 0.
    pub reserved: u16,
    /// The generation of the current token.
    pub token_generation: u8,
    /// Flags in the low half, version in the high half.
    pub flags: u8,
}

impl SessionControl {
    /// The device has an IPv6 address.
    pub const IPV6: u8 = 1;
    /// The token generation before the current one is valid too.
    pub const PREVIOUS_TOKEN: u8 = 2;
    /// The record is being written to.
    pub const CHANGING: u8 = 4;
    /// Leave the source address and port of a trigger as they are.
    pub const KEEP_SOURCE: u8 = 8;

    /// Whether all of `flags` are set.
    #[inline(always)]
    #[must_use]
    pub const fn has(self, flags: u8) -> bool {
        self.flags & flags == flags
    }

    /// Whether a trigger signed with the token of this generation is let through.
    #[inline(always)]
    #[must_use]
    pub const fn takes_token(self, generation: u8) -> bool {
        generation == self.token_generation
            || (self.has(Self::PREVIOUS_TOKEN)
                && generation == self.token_generation.wrapping_sub(1))
    }

    /// Changes with each change to the record; 4 bits.
    #[must_use]
    pub const fn version(self) -> u8 {
        self.flags >> 4
    }

    /// The same with another version, of which the low 4 bits count.
    #[must_use]
    pub const fn with_version(mut self, version: u8) -> Self {
        self.flags = (self.flags & 0x0F) | (version << 4);
        self
    }
}

/// Address and port of the gateway that a device registered with; triggers reach the device from there,
/// as a firewall on the way lets them through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct SourceRecord {
    /// Address as on the wire; an IPv4 address is in the first 4 bytes.
    pub address: [u8; 16],
    /// UDP port as on the wire; 0 if there is no such source.
    pub port: [u8; 2],
    /// Not used; 0.
    pub reserved: [u8; 6],
}

/// What doesn't change while the program is attached to a NIC: a constant of the program, set at load time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C, align(8))]
pub struct NicConfig {
    /// Which entry of the map of [`Counters`] is this NIC's.
    pub index: u32,
    /// UDP port on which triggers are taken, as on the wire.
    pub trigger_port: [u8; 2],
    /// Which of the addresses count: [`NicConfig::IPV4`], [`NicConfig::IPV6`]. Without any, no triggers
    /// are taken.
    pub families: u8,
    /// Not used; 0.
    pub reserved: u8,
    /// IPv4 address to which triggers are sent.
    pub ipv4: [u8; 4],
    /// Not used; 0.
    pub reserved_too: [u8; 4],
    /// IPv6 address to which triggers are sent.
    pub ipv6: [u8; 16],
}

impl NicConfig {
    /// [`NicConfig::ipv4`] counts.
    pub const IPV4: u8 = 1;
    /// [`NicConfig::ipv6`] counts.
    pub const IPV6: u8 = 2;
}

/// Packets and bytes of a NIC by [`Verdict`], on one CPU. What came in is their sum.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Counters {
    /// By verdict.
    pub by_verdict: [Count; VERDICT_SLOTS],
}

/// Packets, and bytes of their frames without FCS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Count {
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

/// Nanoseconds in a tick of [`SessionRecord::expires_tick`]: 67 ms, so that 32 bits last nine years of uptime.
pub const TICK_NS: u64 = 1 << 26;

/// The first tick that begins at `monotonic_ns` or later, so that nothing ends early.
#[must_use]
pub const fn tick_at_or_after(monotonic_ns: u64) -> u32 {
    let tick = monotonic_ns.div_ceil(TICK_NS);
    if tick > u32::MAX as u64 {
        u32::MAX
    } else {
        tick as u32
    }
}

/// The tick that `monotonic_ns` is in.
#[inline(always)]
#[must_use]
pub const fn tick_of(monotonic_ns: u64) -> u32 {
    (monotonic_ns / TICK_NS) as u32
}

const _: () = {
    assert!(size_of::<SessionRecord>() == 128);
    assert!(core::mem::offset_of!(SessionRecord, replay) == 64);
    assert!(core::mem::offset_of!(SessionRecord, control) == 8);
    assert!(size_of::<SessionControl>() == 8);
    assert!(Verdict::ALL.len() <= VERDICT_SLOTS);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tick_is_rounded_so_that_nothing_ends_early() {
        assert_eq!(tick_at_or_after(0), 0);
        assert_eq!(tick_at_or_after(1), 1);
        assert_eq!(tick_at_or_after(TICK_NS), 1);
        assert_eq!(tick_at_or_after(u64::MAX), u32::MAX);
        assert!(tick_of(TICK_NS - 1) < tick_at_or_after(TICK_NS - 1));
    }

    #[test]
    fn a_version_leaves_the_flags_alone() {
        let control = SessionControl {
            flags: SessionControl::IPV6 | SessionControl::CHANGING,
            ..SessionControl::default()
        };
        let next = control.with_version(0x1F);
        assert_eq!(next.version(), 15);
        assert!(
            next.has(SessionControl::IPV6 | SessionControl::CHANGING)
                && !next.has(SessionControl::KEEP_SOURCE)
        );
    }
}
