//! Frames by name, on a gateway that is always the same.

use super::fuzz::{self, Subject};
use super::gateway::{Gateway, address_bytes};
use super::packet::{Checksum, Extension, Message, Packet};
use super::world::{BOTH, EXT, INT, TRIGGER_PORT, nics};
use push_common::activity::MAX_WINDOW_TICKS;
use push_common::maps::{
    EgressRecord, Hop, NextHopRecord, PolicyRecord, PreviousKey, SessionControl, SessionRecord,
    SourcePrefix,
};
use push_common::tag::TagKey;
use push_common::verdict::Verdict;
use push_common::wire::SessionId;
use std::collections::BTreeMap;
use std::net::SocketAddr;

/// What is sent, and what is to become of it.
pub(crate) struct Row {
    pub(crate) name: &'static str,
    /// In order.
    pub(crate) packets: fn(&Gateway) -> Vec<Packet>,
    /// Of the last one.
    pub(crate) verdict: Verdict,
}

/// Fails unless the program and the model agree on all frames of a row, and the last one gets its
/// verdict.
pub(crate) fn demand_agreement(subject: &mut impl Subject, row: &Row) {
    let model = gateway(subject.interfaces(), subject.now_ns());
    let packets = (row.packets)(&model);
    let frames: Vec<_> = packets
        .iter()
        .map(|packet| (packet.nic, packet.frame()))
        .collect();
    match fuzz::compare(subject, &model, &frames) {
        Ok(verdict) => assert_eq!(verdict, Some(row.verdict), "{}", row.name),
        Err(difference) => panic!("{}: {difference}", row.name),
    }
}

/// Slots of the sessions of [`gateway`], by what is special about each.
pub(crate) mod slot {
    pub(crate) const V4: u32 = 0;
    pub(crate) const V6: u32 = 1;
    /// Reached by the NIC that triggers come in by.
    pub(crate) const ONE_ARMED: u32 = 2;
    pub(crate) const V4_IN_GTPU_V4: u32 = 3;
    pub(crate) const V6_IN_GTPU_V6: u32 = 4;
    pub(crate) const V4_IN_GTPU_V6: u32 = 5;
    pub(crate) const V6_IN_GTPU_V4: u32 = 6;
    pub(crate) const UNRESOLVED_V4: u32 = 7;
    pub(crate) const UNRESOLVED_V6: u32 = 8;
    /// Behind two VLAN tags.
    pub(crate) const TAGGED: u32 = 9;
    pub(crate) const NO_ROUTE: u32 = 10;
    pub(crate) const UNUSED: u32 = 11;
    pub(crate) const UNRESOLVED_REALM: u32 = 12;
    /// An MTU of 100 bytes.
    pub(crate) const NARROW: u32 = 13;
    /// One trigger an hour, at most 100 bytes, from 198.51.100.0/24, DSCP 46.
    pub(crate) const STRICT: u32 = 14;
    /// Coalesces, and has its acknowledgements returned.
    pub(crate) const RETURNED_V4: u32 = 15;
    /// Coalesces, and has its acknowledgements returned.
    pub(crate) const RETURNED_V6: u32 = 16;
    pub(crate) const KEEPS_SOURCE: u32 = 17;
    pub(crate) const EXPIRED: u32 = 18;
    /// Its token has been rotated.
    pub(crate) const ROTATED: u32 = 19;
    /// Unresolved, and in a tunnel.
    pub(crate) const UNRESOLVED_TUNNEL: u32 = 20;
    /// No route, says the next hop, but the kernel has one.
    pub(crate) const ROUTE_IS_NEW_V4: u32 = 21;
    /// No route, says the next hop, but the kernel has one.
    pub(crate) const ROUTE_IS_NEW_V6: u32 = 22;
    /// No route, says the next hop, and the kernel's is not that of the realm.
    pub(crate) const NO_ROUTE_OF_REALM: u32 = 23;
    /// No route, says the next hop, and the kernel's does not lead into the tunnel.
    pub(crate) const NO_ROUTE_OF_TUNNEL: u32 = 24;
    /// Refers to a next hop beyond the table.
    pub(crate) const BEYOND: u32 = 25;
}

const STRICT_POLICY: u16 = 1;
const RETURNING_POLICY: u16 = 2;

/// A gateway with a session for each way there is. Session and next hop have the same index.
pub(crate) fn gateway(interfaces: [u32; 3], now_ns: u64) -> Gateway {
    let egress = |interface, tag_count| EgressRecord {
        mac: [2, 0, 0, 0, 7, 1, 0, 0],
        interface,
        tag_count,
        tags: [[0x88, 0xA8, 0x20, 5], [0x81, 0, 0, 6]],
    };
    let mut gateway = Gateway {
        nics: nics(interfaces),
        trigger_port: TRIGGER_PORT,
        sessions: BTreeMap::new(),
        staged: None,
        previous_keys: BTreeMap::new(),
        next_hops: BTreeMap::new(),
        egresses: BTreeMap::from([
            (0, egress(interfaces[INT], 0)),
            (1, egress(interfaces[EXT], 0)),
            (2, egress(interfaces[INT], 2)),
        ]),
        policies: policies(),
        allowed: vec![(
            SourcePrefix::BITS_BEFORE + 24,
            SourcePrefix {
                policy: STRICT_POLICY.to_be_bytes(),
                version: [4, 0],
                address: address_bytes("198.51.100.0".parse().unwrap()),
            },
        )],
        pending: BTreeMap::new(),
    };
    for slot in slot::V4..=slot::BEYOND {
        gateway.sessions.insert(slot, session(slot));
        if slot != slot::BEYOND {
            gateway.next_hops.insert(slot as u16, next_hop(slot));
        }
    }
    let expired = gateway.sessions.get_mut(&slot::EXPIRED).unwrap();
    expired.expires_tick = push_common::maps::tick_of(now_ns).saturating_sub(1);
    let rotated = &gateway.sessions[&slot::ROTATED];
    let previous = PreviousKey {
        generation: rotated.generation,
        token_generation: u32::from(rotated.control.token_generation) - 1,
        key: TagKey::from_bytes([0xEE; 16]),
    };
    gateway.previous_keys.insert(slot::ROTATED, previous);
    gateway
}

fn policies() -> BTreeMap<u16, PolicyRecord> {
    let strict = PolicyRecord {
        interval_ns: 3_600_000_000_000,
        tolerance_ns: 0,
        max_payload: 100,
        dscp: 46,
        flags: PolicyRecord::SOURCES,
        ..PolicyRecord::OPEN
    };
    let returning = PolicyRecord {
        window_ticks: MAX_WINDOW_TICKS,
        flags: PolicyRecord::RETURN_ACKS,
        ..PolicyRecord::OPEN
    };
    BTreeMap::from([
        (0, PolicyRecord::OPEN),
        (STRICT_POLICY, strict),
        (RETURNING_POLICY, returning),
    ])
}

fn is_v6(slot: u32) -> bool {
    [
        slot::V6,
        slot::V6_IN_GTPU_V4,
        slot::V6_IN_GTPU_V6,
        slot::UNRESOLVED_V6,
        slot::ROUTE_IS_NEW_V6,
        slot::RETURNED_V6,
    ]
    .contains(&slot)
}

fn next_hop(slot: u32) -> NextHopRecord {
    let is_outer_v6 = [slot::V6_IN_GTPU_V6, slot::V4_IN_GTPU_V6].contains(&slot);
    let is_tunnel = is_outer_v6
        || [
            slot::V4_IN_GTPU_V4,
            slot::V6_IN_GTPU_V4,
            slot::UNRESOLVED_TUNNEL,
            slot::NO_ROUTE_OF_TUNNEL,
        ]
        .contains(&slot);
    let mut flags = 0;
    if is_tunnel {
        flags |= NextHopRecord::GTPU;
    }
    if is_outer_v6 {
        flags |= NextHopRecord::OUTER_IPV6;
    }
    if [slot::UNRESOLVED_REALM, slot::NO_ROUTE_OF_REALM].contains(&slot) {
        flags |= NextHopRecord::REALM;
    }
    let state = match slot {
        slot::UNRESOLVED_V4
        | slot::UNRESOLVED_V6
        | slot::UNRESOLVED_REALM
        | slot::UNRESOLVED_TUNNEL => Hop::UNRESOLVED,
        slot::NO_ROUTE
        | slot::ROUTE_IS_NEW_V4
        | slot::ROUTE_IS_NEW_V6
        | slot::NO_ROUTE_OF_REALM
        | slot::NO_ROUTE_OF_TUNNEL => Hop::NO_ROUTE,
        slot::UNUSED => Hop::UNUSED,
        _any => Hop::RESOLVED,
    };
    let bytes =
        |v4: &str, v6: &str, is_v6| address_bytes((if is_v6 { v6 } else { v4 }).parse().unwrap());
    NextHopRecord {
        hop: Hop {
            mac: [2, 0, 0, 0, 9, slot as u8],
            egress: match slot {
                slot::ONE_ARMED => 1,
                slot::TAGGED => 2,
                _any => 0,
            },
            state,
        },
        source: bytes("10.64.0.1", "fd00:64::1", is_v6(slot)),
        outer_source: bytes("172.16.0.1", "fd00:6::1", is_outer_v6),
        outer_destination: bytes("172.16.9.9", "fd00:6::9", is_outer_v6),
        source_port: 5683_u16.to_be_bytes(),
        mtu: if slot == slot::NARROW { 100 } else { 1500 },
        flags,
        reserved: [0; 3],
    }
}

fn session(slot: u32) -> SessionRecord {
    let mut flags = 0;
    if is_v6(slot) {
        flags |= SessionControl::IPV6;
    }
    if slot == slot::KEEPS_SOURCE {
        flags |= SessionControl::KEEP_SOURCE;
    }
    if slot == slot::ROTATED {
        flags |= SessionControl::PREVIOUS_TOKEN;
    }
    let device = if is_v6(slot) {
        "fd00:64::2"
    } else if slot == slot::NO_ROUTE {
        "10.66.0.2"
    } else {
        "10.64.0.2"
    };
    SessionRecord {
        generation: 0x1000_0000 + slot,
        expires_tick: u32::MAX,
        control: SessionControl {
            device_port: 7000_u16.to_be_bytes(),
            next_hop: match slot {
                slot::BEYOND => u16::MAX,
                _any => slot as u16,
            },
            policy: match slot {
                slot::STRICT => STRICT_POLICY,
                slot::RETURNED_V4 | slot::RETURNED_V6 => RETURNING_POLICY,
                _any => 0,
            },
            token_generation: 7,
            flags,
        },
        key: TagKey::from_bytes([slot as u8; 16]),
        device_address: address_bytes(device.parse().unwrap()),
        teid: [0, 0, 1, slot as u8],
        refused: 0,
        acknowledged: 0,
        round_trip_us: 0,
        replay: [0; 4],
        full_at_ns: 0,
        activity: 0,
        packets: 0,
        bytes: 0,
    }
}

/// A trigger for the session in `slot`, by IPv4.
pub(crate) fn by_v4(gateway: &Gateway, slot: u32, sequence: u64) -> Packet {
    packet(
        gateway,
        slot,
        sequence,
        "198.51.100.10:40000",
        "198.51.100.1:5050",
    )
}

/// A trigger for the session in `slot`, by IPv6.
pub(crate) fn by_v6(gateway: &Gateway, slot: u32, sequence: u64) -> Packet {
    let (server, trigger_address) = ("[2001:db8:51::10]:40000", "[2001:db8:51::1]:5050");
    packet(gateway, slot, sequence, server, trigger_address)
}

fn packet(gateway: &Gateway, slot: u32, sequence: u64, from: &str, to: &str) -> Packet {
    let record = gateway.current(slot);
    let id = SessionId::new(slot, record.generation);
    let mut message = Message::trigger(id, &record, sequence);
    message.payload = b"wake up".to_vec();
    let [from, to]: [SocketAddr; 2] = [from, to].map(|socket| socket.parse().unwrap());
    Packet::plain(EXT, from, to, message)
}

/// The acknowledgement of the trigger with this sequence.
pub(crate) fn ack(gateway: &Gateway, slot: u32, sequence: u64) -> Packet {
    let id = SessionId::new(slot, gateway.sessions[&slot].generation);
    Packet::acknowledgement(gateway, INT, id, sequence)
}

pub(crate) fn changed(mut packet: Packet, change: impl FnOnce(&mut Packet)) -> Packet {
    change(&mut packet);
    packet
}

fn asking(packet: Packet) -> Packet {
    changed(packet, |packet| packet.message.flags = 1)
}

pub(crate) fn routing(segments_left: u8) -> Extension {
    Extension {
        kind: 43,
        body: vec![0, segments_left, 0, 0, 0, 0],
        length: None,
    }
}

macro_rules! rows {
    ($( $verdict:ident { $( $name:literal |$gateway:ident| $packets:expr )* } )*) => {
        /// What anybody would agree to, a row or more for each verdict that one CPU alone can get.
        pub(crate) const KNOWN: &[Row] = &[ $($(
            Row { name: $name, packets: |$gateway| $packets, verdict: Verdict::$verdict },
        )*)* ];
    };
}

rows! {
    NotIp {
        "arp" |g| vec![changed(by_v4(g, 0, 9), |p| p.ethertype = Some(0x0806))]
        "three_vlan_tags" |g| vec![changed(by_v4(g, 0, 9), |p| p.tags = vec![[0x81, 0, 0, 1]; 3])]
    }
    Truncated {
        "in_a_vlan_tag" |g| vec![changed(by_v4(g, 0, 9), |p| (p.tags, p.end) = (vec![[0x81, 0, 0, 1]], Some(17)))]
        "in_ipv4" |g| vec![changed(by_v4(g, 0, 9), |p| p.end = Some(33))]
        "in_ipv6" |g| vec![changed(by_v6(g, 1, 9), |p| p.end = Some(53))]
        "in_an_extension_header" |g| vec![changed(by_v6(g, 1, 9), |p| {
            (p.extensions, p.end) = (vec![routing(0)], Some(61));
        })]
        "in_udp" |g| vec![changed(by_v4(g, 0, 9), |p| p.end = Some(41))]
    }
    UnusualIpHeader {
        "ipv4_with_options" |g| vec![changed(by_v4(g, 0, 9), |p| p.first_byte = 0x46)]
        "five_extension_headers" |g| vec![changed(by_v6(g, 1, 9), |p| p.extensions = vec![routing(0); 5])]
        "routing_header_under_way" |g| vec![changed(by_v6(g, 1, 9), |p| p.extensions = vec![routing(1)])]
        "extension_header_beyond_the_payload" |g| vec![changed(by_v6(g, 1, 9), |p| {
            p.extensions = vec![Extension { length: Some(200), ..routing(0) }];
        })]
    }
    Fragment {
        "first_fragment" |g| vec![changed(by_v4(g, 0, 9), |p| p.fragment = 0x2000)]
        "last_fragment" |g| vec![changed(by_v4(g, 0, 9), |p| p.fragment = 1)]
        "fragment_header" |g| vec![changed(by_v6(g, 1, 9), |p| {
            p.extensions = vec![Extension { kind: 44, ..routing(0) }];
        })]
    }
    NotUdp {
        "tcp" |g| vec![changed(by_v4(g, 0, 9), |p| p.protocol = 6)]
        "authentication_header" |g| vec![changed(by_v6(g, 1, 9), |p| p.protocol = 51)]
    }
    NotTrigger {
        "another_port" |g| vec![changed(by_v4(g, 0, 9), |p| p.destination.set_port(53))]
        "an_internal_nic" |g| vec![changed(by_v4(g, 0, 9), |p| p.nic = INT)]
        "an_acknowledgement_on_a_nic_that_takes_none" |g| vec![changed(ack(g, 0, 9), |p| p.nic = EXT)]
        "an_acknowledgement_to_another_port" |g| vec![changed(ack(g, 0, 9), |p| p.destination.set_port(5684))]
        "an_acknowledgement_with_payload" |g| vec![changed(ack(g, 0, 9), |p| p.message.payload = vec![0])]
        "an_acknowledgement_of_no_session" |g| vec![changed(ack(g, 0, 9), |p| p.message.session ^= 1 << 32)]
    }
    NextHopUnresolved {
        "unresolved_v4" |g| vec![by_v4(g, slot::UNRESOLVED_V4, 9)]
        "route_is_new_v4" |g| vec![by_v4(g, slot::ROUTE_IS_NEW_V4, 9)]
        "route_is_new_v6" |g| vec![by_v6(g, slot::ROUTE_IS_NEW_V6, 9)]
        "unresolved_with_tags" |g| vec![changed(by_v6(g, slot::UNRESOLVED_V4, 9), |p| p.tags = vec![[0x81, 0, 0, 1]])]
        "unresolved_v6" |g| vec![by_v4(g, slot::UNRESOLVED_V6, 9)]
    }
    SentBack {
        "one_armed" |g| vec![by_v4(g, slot::ONE_ARMED, 9)]
    }
    Redirected {
        "v4_to_v4" |g| vec![by_v4(g, slot::V4, 9)]
        "v6_to_v6_with_extension_headers" |g| vec![changed(by_v6(g, slot::V6, 9), |p| {
            (p.class, p.flow_label) = (0xB8, 0x12345);
            p.extensions = vec![routing(0); 4];
        })]
        "v4_to_v6_without_checksum" |g| vec![changed(by_v4(g, slot::V6, 9), |p| p.udp_checksum = Checksum::Is(0))]
        "v4_to_v4_without_checksum" |g| vec![changed(by_v4(g, slot::V4, 9), |p| p.udp_checksum = Checksum::Is(0))]
        "v6_to_v4" |g| vec![by_v6(g, slot::V4, 9)]
        "damaged_checksum" |g| vec![changed(by_v6(g, slot::V4, 9), |p| p.udp_checksum = Checksum::Off(1))]
        "v4_in_gtpu_over_v4" |g| vec![by_v4(g, slot::V4_IN_GTPU_V4, 9)]
        "v6_in_gtpu_over_v6" |g| vec![by_v6(g, slot::V6_IN_GTPU_V6, 9)]
        "v4_in_gtpu_over_v6_without_checksum" |g| vec![changed(by_v4(g, slot::V4_IN_GTPU_V6, 9), |p| {
            p.udp_checksum = Checksum::Is(0);
        })]
        "v4_in_gtpu_over_v4_without_checksum" |g| vec![changed(by_v4(g, slot::V4_IN_GTPU_V4, 9), |p| {
            p.udp_checksum = Checksum::Is(0);
        })]
        "v6_in_gtpu_over_v4_damaged" |g| vec![changed(by_v6(g, slot::V6_IN_GTPU_V4, 9), |p| {
            p.udp_checksum = Checksum::Off(0x0100);
        })]
        "tags_replaced" |g| vec![changed(by_v4(g, slot::TAGGED, 9), |p| p.tags = vec![[0x81, 0, 0, 1]])]
        "padding_stays" |g| vec![changed(by_v4(g, slot::V6, 9), |p| p.padding = vec![1, 2, 3])]
        "source_kept" |g| vec![by_v4(g, slot::KEEPS_SOURCE, 9)]
        "source_of_the_other_family" |g| vec![by_v6(g, slot::KEEPS_SOURCE, 9)]
        "previous_token" |g| vec![changed(by_v4(g, slot::ROTATED, 9), |p| {
            p.message.token_generation = 6;
            p.message.key = TagKey::from_bytes([0xEE; 16]);
        })]
        "dscp" |g| vec![changed(by_v4(g, slot::STRICT, 9), |p| p.class = 3)]
        "longest_payload" |g| vec![changed(by_v4(g, slot::V4, 9), |p| p.message.payload = vec![5; 1200])]
        "other_collapse_key" |g| vec![
            changed(by_v4(g, slot::RETURNED_V4, 9), |p| p.message.flags = 0x10),
            changed(by_v4(g, slot::RETURNED_V4, 10), |p| p.message.flags = 0x20),
        ]
        "reordered" |g| vec![by_v4(g, 0, 1000), by_v4(g, 0, 1000 - 96)]
    }
    AckReturned {
        "acknowledged_v4" |g| vec![asking(by_v4(g, slot::RETURNED_V4, 9)), ack(g, slot::RETURNED_V4, 9)]
        "acknowledged_v4_by_v6" |g| vec![asking(by_v4(g, slot::RETURNED_V6, 9)), ack(g, slot::RETURNED_V6, 9)]
        "acknowledged_v6_with_tags" |g| vec![
            changed(asking(by_v6(g, slot::RETURNED_V4, 9)), |p| p.tags = vec![[0x88, 0xA8, 0, 1], [0x81, 0, 0, 2]]),
            changed(ack(g, slot::RETURNED_V4, 9), |p| (p.nic, p.udp_checksum) = (BOTH, Checksum::Is(0))),
        ]
    }
    IpLength {
        "total_length_too_long" |g| vec![changed(by_v4(g, 0, 9), |p| p.ip_length = Some(0xFFFF))]
    }
    IpChecksum {
        "header_checksum" |g| vec![changed(by_v4(g, 0, 9), |p| p.ip_checksum = Checksum::Off(1))]
    }
    UdpLength {
        "udp_shorter_than_ip" |g| vec![changed(by_v4(g, 0, 9), |p| p.udp_length = Some(54))]
        "udp_shorter_than_its_header" |g| vec![changed(by_v6(g, 1, 9), |p| (p.udp_length, p.ip_length) = (Some(7), Some(7)))]
        "total_length_shorter_than_the_header" |g| vec![changed(by_v4(g, 0, 9), |p| p.ip_length = Some(19))]
    }
    NoUdpChecksum {
        "v6_without_checksum" |g| vec![changed(by_v6(g, 1, 9), |p| p.udp_checksum = Checksum::Is(0))]
    }
    TriggerTruncated {
        "39_bytes" |g| vec![changed(by_v4(g, 0, 9), |p| (p.udp_length, p.ip_length) = (Some(47), Some(67)))]
    }
    BadMagic {
        "magic" |g| vec![changed(by_v4(g, 0, 9), |p| p.message.magic[2] = 0)]
    }
    UnknownVersion {
        "version_2" |g| vec![changed(by_v4(g, 0, 9), |p| p.message.version = 2)]
    }
    UnknownFlags {
        "an_acknowledgement_where_triggers_go" |g| vec![changed(by_v4(g, 0, 9), |p| p.message.flags = 2)]
    }
    TriggerLength {
        "payload_length" |g| vec![changed(by_v4(g, 0, 9), |p| p.message.payload_length = Some(6))]
    }
    PayloadTooLong {
        "1201_bytes" |g| vec![changed(by_v4(g, 0, 9), |p| p.message.payload = vec![0; 1201])]
    }
    UnknownSession {
        "old_generation" |g| vec![changed(by_v4(g, 0, 9), |p| p.message.session ^= 1 << 32)]
        "beyond_the_table" |g| vec![changed(by_v4(g, 0, 9), |p| p.message.session |= 1 << 30)]
        "generation_0" |g| vec![changed(by_v4(g, 0, 9), |p| p.message.session = 63)]
    }
    Expired {
        "expired" |g| vec![by_v4(g, slot::EXPIRED, 9)]
    }
    UnknownTokenGeneration {
        "next_token" |g| vec![changed(by_v4(g, 0, 9), |p| p.message.token_generation = 8)]
        "previous_token_of_one_without" |g| vec![changed(by_v4(g, 0, 9), |p| p.message.token_generation = 6)]
    }
    SequenceOutOfRange {
        "sequence_2_to_the_39" |g| vec![by_v4(g, 0, 1 << 39)]
    }
    BadTag {
        "one_bit_of_the_tag" |g| vec![changed(by_v4(g, 0, 9), |p| p.message.tag_error = 1)]
        "forged_acknowledgement" |g| vec![asking(by_v4(g, 0, 9)), changed(ack(g, 0, 9), |p| p.message.tag_error = 1)]
    }
    HopLimit {
        "last_hop" |g| vec![changed(by_v4(g, 0, 9), |p| p.hop_limit = 1)]
    }
    PayloadRefused {
        "101_bytes_where_100_are_permitted" |g| vec![changed(by_v4(g, slot::STRICT, 9), |p| p.message.payload = vec![0; 101])]
    }
    SourceRefused {
        "from_elsewhere" |g| vec![changed(by_v4(g, slot::STRICT, 9), |p| p.source = "198.51.101.10:1".parse().unwrap())]
    }
    NoRoute {
        "no_route" |g| vec![by_v4(g, slot::NO_ROUTE, 9)]
        "no_route_of_a_realm" |g| vec![by_v4(g, slot::NO_ROUTE_OF_REALM, 9)]
        "no_route_of_a_tunnel" |g| vec![by_v4(g, slot::NO_ROUTE_OF_TUNNEL, 9)]
    }
    NextHopMissing {
        "unresolved_in_a_realm" |g| vec![by_v4(g, slot::UNRESOLVED_REALM, 9)]
        "unresolved_tunnel" |g| vec![by_v4(g, slot::UNRESOLVED_TUNNEL, 9)]
    }
    TooBig {
        "101_bytes_on_a_way_for_100" |g| vec![changed(by_v4(g, slot::NARROW, 9), |p| p.message.payload = vec![0; 33])]
    }
    Replayed {
        "twice" |g| vec![by_v4(g, 0, 9), by_v4(g, 0, 9)]
    }
    SequenceTooOld {
        "four_blocks_behind" |g| vec![by_v4(g, 0, 1280), by_v4(g, 0, 1152)]
    }
    RateExceeded {
        "two_in_an_hour" |g| vec![by_v4(g, slot::STRICT, 9), by_v4(g, slot::STRICT, 10)]
    }
    Coalesced {
        "same_collapse_key" |g| vec![
            changed(by_v4(g, slot::RETURNED_V4, 9), |p| p.message.flags = 0x10),
            changed(by_v4(g, slot::RETURNED_V4, 10), |p| p.message.flags = 0x10),
        ]
    }
    AckCounted {
        "acknowledged" |g| vec![asking(by_v4(g, 0, 9)), ack(g, 0, 9)]
    }
    AckUnexpected {
        "acknowledged_twice" |g| vec![asking(by_v4(g, 0, 9)), ack(g, 0, 9), ack(g, 0, 9)]
        "not_asked_for" |g| vec![by_v4(g, 0, 9), ack(g, 0, 9)]
    }
    MissingConfiguration {
        "unused_next_hop" |g| vec![by_v4(g, slot::UNUSED, 9)]
    }
}
