//! The BPF maps: names, sizes, records. What one half writes here, the other one reads.
//!
//! The controller changes records while packets read them. What has to be seen as a whole is one
//! word, or is announced by one ([`SessionControl::STAGED`]); everything else may change at any time.

use crate::replay;
use crate::tag::TagKey;
use crate::verdict::Verdict;
use crate::wire::VlanTag;
use bytemuck::{Pod, Zeroable};

/// Version of everything in this module. Pinned maps of another version are not adopted.
pub const LAYOUT_VERSION: u32 = 2;

/// Name of the XDP program.
pub const PROGRAM: &str = "push";
/// Name of the map of [`Meta`]: one entry.
pub const META: &str = "push_meta";
/// Name of the map of [`SessionRecord`]s, an array by slot that userspace maps into its memory.
pub const SESSIONS: &str = "push_sessions";
/// Name of the map of the one [`SessionRecord`] that is being changed, see [`SessionControl::STAGED`].
pub const STAGED: &str = "push_staged";
/// Name of the map of [`PreviousKey`]s, a hash map by slot.
pub const PREVIOUS_KEYS: &str = "push_prev_keys";
/// Name of the map of [`NextHopRecord`]s, an array by [`SessionControl::next_hop`].
pub const NEXT_HOPS: &str = "push_next_hops";
/// Name of the map of [`EgressRecord`]s, an array by [`Hop::egress`].
pub const EGRESSES: &str = "push_egresses";
/// Name of the map of [`PolicyRecord`]s, an array by [`SessionControl::policy`].
pub const POLICIES: &str = "push_policies";
/// Name of the trie of [`SourcePrefix`]es from which triggers are taken.
pub const ALLOWED_SOURCES: &str = "push_allowed";
/// Name of the map of [`PendingAck`]s, a hash map by [`AckKey`] that forgets what is oldest.
pub const PENDING_ACKS: &str = "push_pending";
/// Name of the map of [`Counters`], per CPU, an array by [`NicConfig::index`].
pub const COUNTERS: &str = "push_counters";
/// Name of the ring buffer of [`Event`]s.
pub const EVENTS: &str = "push_events";
/// Name of the map of [`EventLimits`], per CPU: one entry.
pub const EVENT_LIMITS: &str = "push_limits";
/// Name of the load-time constant of type [`NicConfig`].
pub const NIC_CONFIG: &str = "NIC_CONFIG";

/// Slots of the session table unless the loader asks for another number.
pub const DEFAULT_SESSION_SLOTS: u32 = 65_536;
/// Entries of the map of next hops.
pub const MAX_NEXT_HOPS: u32 = 16_384;
/// Entries of the map of egresses.
pub const MAX_EGRESSES: u32 = 256;
/// Entries of the map of policies.
pub const MAX_POLICIES: u32 = 4096;
/// Entries of the trie of source prefixes.
pub const MAX_SOURCE_PREFIXES: u32 = 65_536;
/// Acknowledgements that are waited for at the same time.
pub const MAX_PENDING_ACKS: u32 = 65_536;
/// Bytes of the ring buffer of events.
pub const EVENTS_BYTES: u32 = 1 << 18;
/// NICs that the program can be attached to at the same time.
pub const MAX_NICS: u32 = 32;
/// Longest name of a NIC, and a zero (`IFNAMSIZ`).
pub const NIC_NAME_LEN: usize = 16;
/// Room for verdicts in [`Counters`].
pub const VERDICT_SLOTS: usize = 64;
/// Classes of round-trip times in [`Counters`]: class `n` is from `2^n` to below `2^(n+1)` microseconds.
pub const ROUND_TRIP_CLASSES: usize = 32;

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

/// One session: a cache line that the path reads, and one that it writes with each delivery.
///
/// A record is live while its generation is not 0. What belongs together in the first line (control,
/// key, device address, TEID) is never seen half changed, see [`SessionControl::STAGED`]. The second
/// line is the path's alone while the record is live.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C, align(64))]
pub struct SessionRecord {
    /// High half of the session identifier; 0 if the slot is free.
    pub generation: u32,
    /// End of the session, in ticks of [`TICK_NS`] of `CLOCK_MONOTONIC`.
    pub expires_tick: u32,
    /// Everything that fits in one word, so that it can be read and written at once.
    pub control: SessionControl,
    /// Key of the current token generation.
    pub key: TagKey,
    /// Address of the device as on the wire; an IPv4 address is in the first 4 bytes.
    pub device_address: [u8; 16],
    /// Tunnel endpoint identifier at the peer, as on the wire, if the next hop is one of GTP-U.
    pub teid: [u8; 4],
    /// Triggers that a policy refused.
    pub refused: u32,
    /// Triggers that the device has acknowledged.
    pub acknowledged: u32,
    /// Round-trip time from trigger to acknowledgement in microseconds, smoothed (RFC 6298, 2.3); 0 if
    /// there was none yet.
    pub round_trip_us: u32,

    /// Replay window, see [`replay`].
    pub replay: [u64; replay::WORDS],
    /// When the rate limit's bucket will be full again, see [`crate::rate`].
    pub full_at_ns: u64,
    /// Last delivery and coalescing window, see [`crate::activity`].
    pub activity: u64,
    /// Triggers delivered.
    pub packets: u64,
    /// Bytes of their frames, as they came in.
    pub bytes: u64,
}

/// The part of a [`SessionRecord`] that is read and written at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C, align(8))]
pub struct SessionControl {
    /// UDP port of the device, as on the wire.
    pub device_port: [u8; 2],
    /// Index of the [`NextHopRecord`].
    pub next_hop: u16,
    /// Index of the [`PolicyRecord`]; 0 is the one that permits everything.
    pub policy: u16,
    /// The generation of the current token.
    pub token_generation: u8,
    /// Flags in the low half, version in the high half.
    pub flags: u8,
}

/// Of all that is in it, the key is to be overwritten by zeros where that is asked for.
#[cfg(feature = "token")]
impl zeroize::Zeroize for SessionRecord {
    fn zeroize(&mut self) {
        self.key.zeroize();
    }
}

impl SessionControl {
    /// The device has an IPv6 address.
    pub const IPV6: u8 = 1;
    /// The token generation before the current one is valid too; its key is a [`PreviousKey`].
    pub const PREVIOUS_TOKEN: u8 = 2;
    /// The first line is being changed. Until it isn't, all of it is to be read in the map [`STAGED`],
    /// where it stands whole. Who reads looks at the control word before and after, and starts anew if
    /// it isn't the same; its version sees to that.
    pub const STAGED: u8 = 4;
    /// Leave the source address and port of a trigger as they are.
    pub const KEEP_SOURCE: u8 = 8;

    /// Whether all of `flags` are set.
    #[inline(always)]
    #[must_use]
    pub const fn has(self, flags: u8) -> bool {
        self.flags & flags == flags
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

/// The key of the token generation before the current one, while both are valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct PreviousKey {
    /// High half of the session identifier.
    pub generation: u32,
    /// Token generation of the key.
    pub token_generation: u32,
    /// The key.
    pub key: TagKey,
}

/// The way to the device: what is in front of it, and what it sees as the sender.
///
/// All but [`NextHopRecord::hop`] and [`NextHopRecord::mtu`] stays as it is while a session refers to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C, align(8))]
pub struct NextHopRecord {
    /// What routes, neighbours and links come to: one word, so that a change is one write.
    pub hop: Hop,
    /// Address of the gateway that the device registered with, from which it expects triggers; as on the
    /// wire, an IPv4 address in the first 4 bytes.
    pub source: [u8; 16],
    /// Outer source address of the tunnel.
    pub outer_source: [u8; 16],
    /// Outer destination address of the tunnel: the peer.
    pub outer_destination: [u8; 16],
    /// UDP port of the gateway that goes with `source`, as on the wire.
    pub source_port: [u8; 2],
    /// Longest IP datagram in bytes; of a tunnel, with its headers. `u16::MAX` if no way is known.
    pub mtu: u16,
    /// [`NextHopRecord::REALM`], [`NextHopRecord::GTPU`], [`NextHopRecord::OUTER_IPV6`].
    pub flags: u8,
    /// Not used; 0.
    pub reserved: [u8; 3],
}

impl NextHopRecord {
    /// Of a realm: the kernel's main routes lead elsewhere, so it can't help out.
    pub const REALM: u8 = 1;
    /// Datagrams go through a GTP-U tunnel.
    pub const GTPU: u8 = 2;
    /// The tunnel's addresses are of IPv6.
    pub const OUTER_IPV6: u8 = 4;

    /// Whether the kernel would find the way by itself: it finds its own, which is not that of a realm or into a
    /// tunnel.
    #[inline(always)]
    #[must_use]
    pub const fn is_by_main_routes(&self) -> bool {
        self.flags & (Self::REALM | Self::GTPU) == 0
    }

    /// Whether all of `flags` are set.
    #[inline(always)]
    #[must_use]
    pub const fn has(&self, flags: u8) -> bool {
        self.flags & flags == flags
    }
}

/// The part of a [`NextHopRecord`] that is read and written at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C, align(8))]
pub struct Hop {
    /// MAC address of the next hop.
    pub mac: [u8; 6],
    /// Index of the [`EgressRecord`].
    pub egress: u8,
    /// [`Hop::UNUSED`], [`Hop::RESOLVED`], [`Hop::UNRESOLVED`] or [`Hop::NO_ROUTE`].
    pub state: u8,
}

impl Hop {
    /// There is no such next hop.
    pub const UNUSED: u8 = 0;
    /// Everything is known.
    pub const RESOLVED: u8 = 1;
    /// The MAC address isn't known yet.
    pub const UNRESOLVED: u8 = 2;
    /// No route leads to the device, or none whose link is up, as far as the controller knows: the kernel is
    /// asked before a trigger is dropped for it, as it knows sooner of a link that is up again.
    pub const NO_ROUTE: u8 = 3;

    /// 1 if the kernel makes the hop, as it is not known here; else 0. (Calculated, as the verifier would go on once for
    /// each branch.)
    #[inline(always)]
    #[must_use]
    pub const fn is_left_to_kernel(self) -> u8 {
        const _: () = assert!(Hop::RESOLVED == 1 && Hop::UNRESOLVED == 2 && Hop::NO_ROUTE == 3);
        self.state >> 1
    }
}

/// A way out of the gateway: a NIC, and the VLAN on it. Doesn't change while a next hop refers to it,
/// but for the MAC address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C, align(8))]
pub struct EgressRecord {
    /// MAC address of the gateway there, and two zeros: one word.
    pub mac: [u8; 8],
    /// Index of the NIC that frames leave by.
    pub interface: u32,
    /// Number of `tags`.
    pub tag_count: u32,
    /// VLAN tags as on the wire, the outer one first.
    pub tags: [[u8; size_of::<VlanTag>()]; 2],
}

/// What an application may do. The fields may be changed one by one at any time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct PolicyRecord {
    /// Time that a trigger of one session costs, see [`crate::rate::offer`]; 0 if the rate isn't limited.
    pub interval_ns: u64,
    /// What may be owed, see [`crate::rate::offer`].
    pub tolerance_ns: u64,
    /// Length of the coalescing window in ticks, see [`crate::activity::offer`]; 0 if there is none.
    pub window_ticks: u32,
    /// Longest payload in bytes.
    pub max_payload: u16,
    /// Differentiated services code point that triggers get (6 bits), or [`PolicyRecord::KEEP_DSCP`].
    pub dscp: u8,
    /// [`PolicyRecord::SOURCES`], [`PolicyRecord::RETURN_ACKS`].
    pub flags: u8,
}

impl PolicyRecord {
    /// Triggers are taken only from prefixes in [`ALLOWED_SOURCES`].
    pub const SOURCES: u8 = 1;
    /// Acknowledgements go on to the server that sent the trigger.
    pub const RETURN_ACKS: u8 = 2;
    /// Value of [`PolicyRecord::dscp`] that leaves it as it is.
    pub const KEEP_DSCP: u8 = 0xFF;

    /// Permits everything.
    pub const OPEN: Self = Self {
        interval_ns: 0,
        tolerance_ns: 0,
        window_ticks: 0,
        max_payload: u16::MAX,
        dscp: Self::KEEP_DSCP,
        flags: 0,
    };

    /// Whether all of `flags` are set.
    #[inline(always)]
    #[must_use]
    pub const fn has(&self, flags: u8) -> bool {
        self.flags & flags == flags
    }
}

/// Key data of the trie [`ALLOWED_SOURCES`], behind the prefix length in bits (`u32`, native).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct SourcePrefix {
    /// Index of the policy, big-endian, so that it is the prefix of all that is its own.
    pub policy: [u8; 2],
    /// IP version, 4 or 6, and a zero.
    pub version: [u8; 2],
    /// Address as on the wire; an IPv4 address is in the first 4 bytes.
    pub address: [u8; 16],
}

impl SourcePrefix {
    /// Bits in front of the prefix of an address.
    pub const BITS_BEFORE: u32 = 32;
    /// Bits of a whole key.
    pub const BITS: u32 = Self::BITS_BEFORE + 128;

    /// What is in front of addresses of this policy and IP version.
    #[inline(always)]
    #[must_use]
    pub const fn of(policy: u16, is_v6: bool, address: [u8; 16]) -> Self {
        Self {
            policy: policy.to_be_bytes(),
            version: [if is_v6 { 6 } else { 4 }, 0],
            address,
        }
    }
}

/// Names a trigger whose acknowledgement is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Pod, Zeroable)]
#[repr(C)]
pub struct AckKey {
    /// Value of the session identifier.
    pub session: u64,
    /// Sequence number.
    pub sequence: u64,
}

/// When a trigger that asks for an acknowledgement was delivered, and the way back to its server: the
/// way it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct PendingAck {
    /// Time of delivery in nanoseconds of `CLOCK_MONOTONIC`.
    pub sent_ns: u64,
    /// Address of the server as on the wire; an IPv4 address is in the first 4 bytes.
    pub server: [u64; 2],
    /// Address of the gateway that the trigger was sent to.
    pub gateway: [u64; 2],
    /// VLAN tags the trigger came with, as on the wire, the outer one first.
    pub tags: [[u8; size_of::<VlanTag>()]; 2],
    /// Index of the NIC it came in by.
    pub interface: u32,
    /// UDP port of the server, as on the wire.
    pub server_port: [u8; 2],
    /// Number of `tags`.
    pub tag_count: u8,
    /// 1 if the trigger came by IPv6.
    pub is_v6: u8,
    /// MAC address it came from.
    pub server_mac: [u8; 6],
    /// MAC address it came to.
    pub gateway_mac: [u8; 6],
    /// UDP port it was sent to, as on the wire.
    pub gateway_port: [u8; 2],
    /// Not used; 0.
    pub reserved: u16,
}

/// What doesn't change while the program is attached to a NIC: a constant of the program, set at load time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C, align(8))]
pub struct NicConfig {
    /// Which entry of the map of [`Counters`] is this NIC's.
    pub index: u32,
    /// UDP port on which triggers are taken, as on the wire.
    pub trigger_port: [u8; 2],
    /// What is taken: [`NicConfig::IPV4`], [`NicConfig::IPV6`], [`NicConfig::ACKS`].
    pub takes: u8,
    /// Not used; 0.
    pub reserved: u8,
    /// IPv4 address to which triggers are sent.
    pub ipv4: [u8; 4],
    /// A session that had no delivery for this number of ticks is idle: the next one makes an
    /// [`EventKind::FirstAfterIdle`]. 0 if none ever does.
    pub idle_ticks: u32,
    /// IPv6 address to which triggers are sent.
    pub ipv6: [u8; 16],
}

impl NicConfig {
    /// Triggers to [`NicConfig::ipv4`].
    pub const IPV4: u8 = 1;
    /// Triggers to [`NicConfig::ipv6`].
    pub const IPV6: u8 = 2;
    /// Triggers to any of them.
    pub const TRIGGERS: u8 = Self::IPV4 | Self::IPV6;
    /// Acknowledgements.
    pub const ACKS: u8 = 4;
}

/// What a NIC has counted on one CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Counters {
    /// Packets and bytes by [`Verdict`]. What came in is their sum.
    pub by_verdict: [Count; VERDICT_SLOTS],
    /// Acknowledgements by the class of their round-trip time.
    pub round_trips: [u64; ROUND_TRIP_CLASSES],
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

/// The class of a round-trip time in [`Counters::round_trips`].
#[inline(always)]
#[must_use]
pub const fn round_trip_class(microseconds: u32) -> usize {
    (31 - (microseconds | 1).leading_zeros()) as usize
}

macro_rules! event_kinds {
    ($( $name:ident $label:literal $threshold:literal $meaning:literal )*) => {
        /// What is worth telling. An event stands for all of its kind since the one before it on the same CPU.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u32)]
        pub enum EventKind {
            $( #[doc = $meaning] $name, )*
        }

        impl EventKind {
            /// All kinds; each stands at its index.
            pub const ALL: &[Self] = &[ $( Self::$name, )* ];

            /// How many it takes, within [`EVENT_INTERVAL_NS`] of each other, to be worth an event.
            #[inline(always)]
            #[must_use]
            pub const fn threshold(self) -> u64 {
                match self { $( Self::$name => $threshold, )* }
            }

            /// Stable name, in `snake_case`.
            #[must_use]
            pub const fn label(self) -> &'static str {
                match self { $( Self::$name => $label, )* }
            }

            /// One sentence on what it means.
            #[must_use]
            pub const fn meaning(self) -> &'static str {
                match self { $( Self::$name => $meaning, )* }
            }
        }
    };
}

event_kinds! {
    UnknownSession "unknown_session" 1 "Triggers for sessions that aren't authorised."
    Forged "forged" 1 "Triggers or acknowledgements with a wrong tag."
    ReplayStorm "replay_storm" 64 "Many triggers that had been let through before."
    NextHopUnresolved "next_hop_unresolved" 1 "Triggers to a device whose next hop isn't known yet."
    FirstAfterIdle "first_after_idle" 1 "The first trigger delivered to a session after a long time."
}

/// Events of one kind are at least this far apart on each CPU: 10 ms.
pub const EVENT_INTERVAL_NS: u64 = 10_000_000;

/// Room for kinds in [`EventLimits`].
pub const EVENT_KIND_SLOTS: usize = 8;

/// Something worth telling, as it stands in the ring buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Event {
    /// [`EventKind`].
    pub kind: u32,
    /// [`NicConfig::index`] of the NIC.
    pub nic: u32,
    /// Time in nanoseconds of `CLOCK_MONOTONIC`.
    pub time_ns: u64,
    /// How many like this there were, this one and all since the last event of its kind on this CPU.
    pub count: u64,
    /// Value of the session identifier.
    pub session: u64,
    /// Source address of the datagram as on the wire; an IPv4 address is in the first 4 bytes.
    pub source: [u64; 2],
    /// Source port, as on the wire.
    pub source_port: [u8; 2],
    /// 1 if the datagram came by IPv6.
    pub is_v6: u8,
    /// Not used; 0.
    pub reserved: [u8; 5],
}

/// How often a CPU tells of what it sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct EventLimits {
    /// By kind: not before this time.
    pub next_ns: [u64; EVENT_KIND_SLOTS],
    /// By kind: how many there were since the last event.
    pub count: [u64; EVENT_KIND_SLOTS],
    /// Events that the ring buffer had no room for.
    pub lost: u64,
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
    use core::mem::offset_of;
    assert!(size_of::<SessionRecord>() == 128);
    assert!(offset_of!(SessionRecord, replay) == 64);
    assert!(offset_of!(SessionRecord, control) == 8);
    assert!(offset_of!(SessionRecord, device_address) == 32);
    assert!(size_of::<SessionControl>() == 8);
    assert!(size_of::<NextHopRecord>() == 64);
    assert!(size_of::<Hop>() == 8);
    assert!(size_of::<EgressRecord>() == 24);
    assert!(size_of::<PendingAck>() == 72);
    assert!(size_of::<Event>() == 56);
    assert!(Verdict::ALL.len() <= VERDICT_SLOTS);
    assert!(EventKind::ALL.len() <= EVENT_KIND_SLOTS);
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
            flags: SessionControl::IPV6 | SessionControl::STAGED,
            ..SessionControl::default()
        };
        let next = control.with_version(0x1F);
        assert_eq!(next.version(), 15);
        assert!(
            next.has(SessionControl::IPV6 | SessionControl::STAGED)
                && !next.has(SessionControl::KEEP_SOURCE)
        );
    }

    #[test]
    fn a_round_trip_is_in_the_class_of_its_logarithm() {
        for (microseconds, class) in [
            (0, 0),
            (1, 0),
            (2, 1),
            (1023, 9),
            (1024, 10),
            (u32::MAX, 31),
        ] {
            assert_eq!(round_trip_class(microseconds), class);
        }
    }

    #[test]
    fn each_kind_of_event_stands_at_its_index() {
        for (index, &kind) in EventKind::ALL.iter().enumerate() {
            assert_eq!(kind as usize, index);
        }
    }
}
