//! Headers as they are on the wire, and the push trigger, version 1.
//!
//! All integers are big-endian. A trigger is the payload of one UDP datagram:
//!
//! | offset | size | field |
//! | --- | --- | --- |
//! | 0 | 3 | magic `F5 50 53` |
//! | 3 | 1 | version, 1 |
//! | 4 | 1 | flags, see [`Flags`] |
//! | 5 | 1 | token generation |
//! | 6 | 2 | payload length in bytes |
//! | 8 | 8 | session identifier: generation (4), slot (4) |
//! | 16 | 8 | sequence, strictly increasing per session |
//! | 24 | 16 | tag over bytes 0–23 and the payload, see [`crate::tag`] |
//! | 40 | ≤ 1,200 | payload, opaque |
//!
//! The device answers a trigger that asks for it with an *acknowledgement*: the same header without
//! payload, flagged as one, and signed anew. It goes to the address and port the trigger came from.

mod trigger;

pub use trigger::{
    DEFAULT_TRIGGER_PORT, Flags, MAGIC, MAX_PAYLOAD_LEN, ParseSessionIdError, SIGNED_LEN,
    SessionId, TRIGGER_HEADER_LEN, TriggerError, TriggerHeader, VERSION,
};

use zerocopy::byteorder::network_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// UDP port of GTP-U (TS 29.281, 4.4.2.3).
pub const GTPU_PORT: u16 = 2152;

/// EtherType of IPv4 (RFC 894).
pub const ETHERTYPE_IPV4: u16 = 0x0800;
/// EtherType of IPv6 (RFC 2464).
pub const ETHERTYPE_IPV6: u16 = 0x86DD;
/// EtherType of a customer's VLAN tag (IEEE 802.1Q).
pub const ETHERTYPE_VLAN: u16 = 0x8100;
/// EtherType of a provider's VLAN tag (IEEE 802.1ad).
pub const ETHERTYPE_PROVIDER_VLAN: u16 = 0x88A8;
/// Protocol number of UDP (RFC 768).
pub const PROTOCOL_UDP: u8 = 17;

/// Ethernet II.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct EthernetHeader {
    /// Destination MAC address.
    pub destination: [u8; 6],
    /// Source MAC address.
    pub source: [u8; 6],
    /// What follows.
    pub ethertype: U16,
}

/// A VLAN tag (IEEE 802.1Q): stands where the EtherType would, which follows it.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    FromBytes,
    IntoBytes,
    KnownLayout,
    Immutable,
    Unaligned,
)]
#[repr(C)]
pub struct VlanTag {
    /// [`ETHERTYPE_VLAN`] or [`ETHERTYPE_PROVIDER_VLAN`].
    pub ethertype: U16,
    /// Priority (3 bits), drop eligibility (1 bit), VLAN identifier (12 bits).
    pub control: U16,
}

/// IPv4 without options (RFC 791).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Ipv4Header {
    /// Version (high half, 4) and header length in words of 4 bytes (low half, 5 without options).
    pub version_ihl: u8,
    /// DSCP and ECN.
    pub tos: u8,
    /// Length of header and payload in bytes.
    pub total_length: U16,
    /// Identification of a datagram's fragments.
    pub identification: U16,
    /// Flags (3 bits) and fragment offset in units of 8 bytes (13 bits).
    pub fragment: U16,
    /// Hops left.
    pub ttl: u8,
    /// What follows.
    pub protocol: u8,
    /// Checksum of the header, as it lies in memory.
    pub checksum: [u8; 2],
    /// Source address.
    pub source: [u8; 4],
    /// Destination address.
    pub destination: [u8; 4],
}

/// IPv6 (RFC 8200).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Ipv6Header {
    /// Version (6), traffic class and flow label.
    pub version_class_flow: [u8; 4],
    /// Bytes that follow this header.
    pub payload_length: U16,
    /// What follows.
    pub next_header: u8,
    /// Hops left.
    pub hop_limit: u8,
    /// Source address.
    pub source: [u8; 16],
    /// Destination address.
    pub destination: [u8; 16],
}

/// UDP (RFC 768).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct UdpHeader {
    /// Source port.
    pub source: U16,
    /// Destination port.
    pub destination: U16,
    /// Length of header and payload in bytes.
    pub length: U16,
    /// Checksum as it lies in memory; 0 is "none".
    pub checksum: [u8; 2],
}

/// GTP-U without optional fields (TS 29.281, 5.1).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct GtpuHeader {
    /// Version 1, protocol type GTP, no optional fields: `0x30`.
    pub flags: u8,
    /// 255: a user's packet follows.
    pub message_type: u8,
    /// Bytes that follow this header.
    pub length: U16,
    /// Tunnel endpoint identifier, which the peer has given out.
    pub teid: [u8; 4],
}

const _: () = {
    assert!(size_of::<EthernetHeader>() == 14);
    assert!(size_of::<Ipv4Header>() == 20);
    assert!(size_of::<Ipv6Header>() == 40);
    assert!(size_of::<UdpHeader>() == 8);
    assert!(size_of::<VlanTag>() == 4);
    assert!(size_of::<GtpuHeader>() == 8);
};
