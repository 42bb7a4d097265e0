//! What is refused, and why: one row per verdict and per corner, through `BPF_PROG_TEST_RUN`.
//!
//! Each row checks verdict, frame, and all counters: one moves, no other does.

use crate::datagram::{
    DEVICES, Datagram, ETHERNET, HEADER, IPV4, IPV6, Session, UDP, changed, changed_ip,
};
use crate::gateway::{EXT, Gateway, SLOTS};
use aya::maps::{Array, Map, MapData};
use push_common::maps::{SESSIONS, SessionRecord};
use push_common::replay::SEQUENCE_BITS;
use push_common::tag::TagKey;
use push_common::verdict::Verdict;
use push_common::wire::{MAX_PAYLOAD_LEN, SessionId};
use push_ctl::dataplane::SessionImage;

/// Frames that are no triggers, and triggers that are refused: `(name, frame, verdict)`.
pub(crate) type Row = (&'static str, Vec<u8>, Verdict);

#[test]
fn each_refused_packet_gets_its_verdict_and_stays_as_it_was() {
    Gateway::run(|mut gateway| {
        for (slot, device) in (1..).zip(DEVICES) {
            let mut session = Session::new(slot, device).installed(&mut gateway);
            let mut rows = what_is_not_ours(&mut session);
            rows.extend(what_is_malformed(&mut session));
            rows.extend(what_is_not_authorised(&mut session));
            let before = record(&gateway, slot);
            for (name, frame, expected) in rows {
                let (verdict, out) = gateway.send(EXT, &frame);
                assert_eq!(verdict, expected, "{device}: {name}");
                assert_eq!(out, frame, "{device}: {name}: the frame was changed");
                // Not one that is forged, either.
                assert_eq!(
                    record(&gateway, slot),
                    before,
                    "{device}: {name}: it has written to the session"
                );
            }
            assert_eq!(
                session.packets(&gateway),
                0,
                "a refused packet was counted for the session"
            );
            assert!(
                gateway
                    .dataplane
                    .session_counters(session.image.id)
                    .unwrap()
                    .last_delivered_ago
                    .is_none()
            );
            let good = session.datagram(b"").frame();
            assert_eq!(gateway.send(EXT, &good).0, Verdict::Redirected);
            assert_ne!(record(&gateway, slot), before, "{device}: a good one does");
        }
    });
}

/// The record of a session as it lies in the table.
fn record(gateway: &Gateway, slot: u32) -> [u8; size_of::<SessionRecord>()] {
    let pin = gateway.settings.pin_dir.join(SESSIONS);
    let table = Map::Array(MapData::from_pin(pin).unwrap());
    let table: Array<_, _> = Array::try_from(table).unwrap();
    table.get(&slot, 0).unwrap()
}

pub(crate) fn what_is_not_ours(session: &mut Session) -> Vec<Row> {
    let v6 = session.is_v6();
    let ip_len = if v6 { IPV6 } else { IPV4 };
    let good = session.datagram(b"payload");
    let with = |at: usize, bytes: &[u8]| changed(&good.frame(), at, bytes);
    let to = |address: &str| {
        Datagram {
            destination: address.parse().unwrap(),
            ..good.clone()
        }
        .frame()
    };
    let mut rows = vec![
        ("ARP", with(12, &[0x08, 0x06]), Verdict::NotIp),
        ("802.1Q", with(12, &[0x81, 0x00]), Verdict::NotIp),
        (
            "ethernet header only",
            good.frame()[..ETHERNET].to_vec(),
            Verdict::Truncated,
        ),
        (
            "runt",
            good.frame()[..ETHERNET + 1].to_vec(),
            Verdict::Truncated,
        ),
        (
            "another IP version",
            with(ETHERNET, &[0x55]),
            Verdict::UnusualIpHeader,
        ),
        (
            "UDP header cut",
            good.frame()[..ETHERNET + ip_len + UDP - 1].to_vec(),
            Verdict::Truncated,
        ),
    ];
    if v6 {
        rows.extend([
            (
                "other port",
                to("[2001:db8:51::1]:5051"),
                Verdict::NotTrigger,
            ),
            (
                "other address",
                to("[2001:db8:51::2]:5050"),
                Verdict::NotTrigger,
            ),
            ("TCP", with(ETHERNET + 6, &[6]), Verdict::NotUdp),
            (
                "hop-by-hop options beyond the datagram",
                with(ETHERNET + 6, &[0]),
                Verdict::UnusualIpHeader,
            ),
            (
                "fragment header",
                with(ETHERNET + 6, &[44]),
                Verdict::Fragment,
            ),
        ]);
    } else {
        rows.extend([
            ("other port", to("198.51.100.1:5051"), Verdict::NotTrigger),
            (
                "other address",
                to("198.51.100.2:5050"),
                Verdict::NotTrigger,
            ),
            ("TCP", with(ETHERNET + 9, &[6]), Verdict::NotUdp),
            ("options", with(ETHERNET, &[0x46]), Verdict::UnusualIpHeader),
            (
                "header length below the minimum",
                with(ETHERNET, &[0x44]),
                Verdict::UnusualIpHeader,
            ),
            (
                "first fragment",
                with(ETHERNET + 6, &[0x20, 0]),
                Verdict::Fragment,
            ),
            (
                "last fragment",
                with(ETHERNET + 6, &[0, 1]),
                Verdict::Fragment,
            ),
        ]);
    }
    rows
}

pub(crate) fn what_is_malformed(session: &mut Session) -> Vec<Row> {
    let v6 = session.is_v6();
    let udp_at = ETHERNET + if v6 { IPV6 } else { IPV4 };
    let length_at = ETHERNET + if v6 { 4 } else { 2 };
    let trigger_at = udp_at + UDP;
    let good = session.datagram(b"odd payload");
    let frame = good.frame();
    let with = |at: usize, bytes: &[u8]| changed(&frame, at, bytes);
    let ip_claims = u16::from_be_bytes([frame[length_at], frame[length_at + 1]]);
    let no_payload: u16 = if v6 { 0 } else { 20 };
    let udp_claims = u16::from_be_bytes([frame[udp_at + 4], frame[udp_at + 5]]);
    let carrying = |payload: Vec<u8>| {
        Datagram {
            payload,
            ..good.clone()
        }
        .frame()
    };
    let mut rows = vec![
        (
            "cut by a byte",
            frame[..frame.len() - 1].to_vec(),
            Verdict::IpLength,
        ),
        (
            "cut after UDP",
            frame[..trigger_at].to_vec(),
            Verdict::IpLength,
        ),
        (
            "IP length too large",
            with(length_at, &(ip_claims + 1).to_be_bytes()),
            Verdict::IpLength,
        ),
        (
            "IP length huge",
            with(length_at, &[0xFF, 0xFF]),
            Verdict::IpLength,
        ),
        (
            "IP length too small",
            changed_ip(&frame, length_at, &(ip_claims - 1).to_be_bytes()),
            Verdict::UdpLength,
        ),
        (
            "IP length of no payload",
            changed_ip(&frame, length_at, &no_payload.to_be_bytes()),
            Verdict::UdpLength,
        ),
        (
            "UDP length too large",
            with(udp_at + 4, &(udp_claims + 1).to_be_bytes()),
            Verdict::UdpLength,
        ),
        (
            "UDP length too small",
            with(udp_at + 4, &(udp_claims - 1).to_be_bytes()),
            Verdict::UdpLength,
        ),
        (
            "UDP length below its header",
            with(udp_at + 4, &[0, 7]),
            Verdict::UdpLength,
        ),
        (
            "UDP length zero",
            with(udp_at + 4, &[0, 0]),
            Verdict::UdpLength,
        ),
        (
            "empty datagram",
            carrying(vec![]),
            Verdict::TriggerTruncated,
        ),
        (
            "a byte short of a header",
            carrying(good.payload[..HEADER - 1].to_vec()),
            Verdict::TriggerTruncated,
        ),
        ("bad magic", with(trigger_at, &[0xF4]), Verdict::BadMagic),
        (
            "bad magic at the end",
            with(trigger_at + 2, &[0x52]),
            Verdict::BadMagic,
        ),
        (
            "version 0",
            with(trigger_at + 3, &[0]),
            Verdict::UnknownVersion,
        ),
        (
            "version 2",
            with(trigger_at + 3, &[2]),
            Verdict::UnknownVersion,
        ),
        (
            "a flag that isn't defined",
            with(trigger_at + 4, &[0x04]),
            Verdict::UnknownFlags,
        ),
        (
            "the flag of an acknowledgement",
            with(trigger_at + 4, &[0x02]),
            Verdict::UnknownFlags,
        ),
        (
            "payload length too small",
            with(trigger_at + 6, &[0, 10]),
            Verdict::TriggerLength,
        ),
        (
            "payload length too large",
            with(trigger_at + 6, &[0, 12]),
            Verdict::TriggerLength,
        ),
        (
            "payload length huge",
            with(trigger_at + 6, &[0xFF, 0xFF]),
            Verdict::TriggerLength,
        ),
        (
            "payload cut",
            carrying(good.payload[..HEADER + 5].to_vec()),
            Verdict::TriggerLength,
        ),
    ];
    let mut long = session.trigger(&[0; MAX_PAYLOAD_LEN]);
    long.push(0);
    long[6..8].copy_from_slice(&(MAX_PAYLOAD_LEN as u16 + 1).to_be_bytes());
    rows.push((
        "payload of 1,201 bytes",
        carrying(long),
        Verdict::PayloadTooLong,
    ));
    if v6 {
        rows.push((
            "no UDP checksum",
            with(udp_at + 6, &[0, 0]),
            Verdict::NoUdpChecksum,
        ));
    } else {
        rows.push((
            "wrong checksum of the IP header",
            with(ETHERNET + 10, &[frame[ETHERNET + 10] ^ 1]),
            Verdict::IpChecksum,
        ));
    }
    rows
}

pub(crate) fn what_is_not_authorised(session: &mut Session) -> Vec<Row> {
    let id = session.image.id;
    let as_session = |id: SessionId| Session {
        image: SessionImage {
            id,
            ..session.image.clone()
        },
        ..session.clone()
    };
    let mut other_key = session.clone();
    other_key.image.key = TagKey::from_bytes([0xEE; 16]).into();
    let with_token = |token_generation| Session {
        image: SessionImage {
            token_generation,
            ..session.image.clone()
        },
        ..session.clone()
    };
    let at = |sequence| {
        Datagram::to_gateway(session.is_v6(), session.trigger_at(sequence, b"x")).frame()
    };
    let mut last_hop = session.clone().datagram(b"x");
    last_hop.hop_limit = 1;
    let mut no_hop = last_hop.clone();
    no_hop.hop_limit = 0;
    vec![
        (
            "another generation",
            as_session(SessionId::new(id.slot(), 99))
                .datagram(b"")
                .frame(),
            Verdict::UnknownSession,
        ),
        (
            "generation 0 of a free slot",
            as_session(SessionId::new(SLOTS - 1, 0))
                .datagram(b"")
                .frame(),
            Verdict::UnknownSession,
        ),
        (
            "a slot beyond the table",
            as_session(SessionId::new(SLOTS, 1)).datagram(b"").frame(),
            Verdict::UnknownSession,
        ),
        (
            "the last slot there can be",
            as_session(SessionId::new(u32::MAX, 1))
                .datagram(b"")
                .frame(),
            Verdict::UnknownSession,
        ),
        (
            "the token before",
            with_token(6).datagram(b"").frame(),
            Verdict::UnknownTokenGeneration,
        ),
        (
            "the token after",
            with_token(8).datagram(b"").frame(),
            Verdict::UnknownTokenGeneration,
        ),
        (
            "a sequence of 2^39",
            at(1 << SEQUENCE_BITS),
            Verdict::SequenceOutOfRange,
        ),
        (
            "the largest sequence",
            at(u64::MAX),
            Verdict::SequenceOutOfRange,
        ),
        (
            "another key",
            other_key.datagram(b"").frame(),
            Verdict::BadTag,
        ),
        (
            "another key, with payload",
            other_key.datagram(b"payload").frame(),
            Verdict::BadTag,
        ),
        ("hop limit 1", last_hop.frame(), Verdict::HopLimit),
        ("hop limit 0", no_hop.frame(), Verdict::HopLimit),
    ]
}

#[test]
fn a_trigger_cut_at_any_byte_goes_nowhere() {
    Gateway::run(|mut gateway| {
        for (slot, device) in (1..).zip(DEVICES) {
            let mut session = Session::new(slot, device).installed(&mut gateway);
            let frame = session.datagram(b"some payload").frame();
            let headers = ETHERNET + UDP + if session.is_v6() { IPV6 } else { IPV4 };
            for length in ETHERNET..frame.len() {
                let expected = if length < headers {
                    Verdict::Truncated
                } else {
                    Verdict::IpLength
                };
                assert_eq!(
                    gateway.send(EXT, &frame[..length]).0,
                    expected,
                    "{length} bytes to {device}"
                );
            }
        }
    });
}

#[test]
fn a_trigger_with_any_bit_flipped_goes_nowhere() {
    Gateway::run(|mut gateway| {
        for (slot, device) in (1..).zip(DEVICES) {
            let mut session = Session::new(slot, device).installed(&mut gateway);
            let frame = session.datagram(b"nine byte").frame();
            let trigger_at = ETHERNET + UDP + if session.is_v6() { IPV6 } else { IPV4 };
            for bit in trigger_at * 8..frame.len() * 8 {
                let mut forged = frame.clone();
                forged[bit / 8] ^= 1 << (bit % 8);
                let (verdict, _) = gateway.send(EXT, &forged);
                assert!(
                    !verdict.is_delivery(),
                    "bit {bit} of a trigger to {device}: {verdict:?}"
                );
            }
            assert_eq!(session.packets(&gateway), 0);
            assert_eq!(
                gateway.send(EXT, &frame).0,
                Verdict::Redirected,
                "the trigger itself"
            );
        }
    });
}
