//! What becomes of a packet: one row per verdict and per corner, through `BPF_PROG_TEST_RUN`.
//!
//! Each row checks verdict, frame, and all counters: one moves, no other does.

use crate::gateway::{
    DEVICE_MAC, EXT, EXT_MAC, Gateway, INT, INT_MAC, ONE_ARMED_MAC, SLOTS, TRIGGER_PORT, sh,
    sources,
};
use etherparse::{PacketBuilder, SlicedPacket};
use push_common::replay::{PERMITTED_LAG, SEQUENCE_BITS};
use push_common::tag::TagKey;
use push_common::verdict::Verdict;
use push_common::wire::{MAX_PAYLOAD_LEN, SessionId, TriggerHeader};
use push_ctl::dataplane::SessionImage;
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};
use zerocopy::IntoBytes;

const ETHERNET: usize = 14;
const IPV4: usize = 20;
const IPV6: usize = 40;
const UDP: usize = 8;
const HEADER: usize = 40;
const SERVER_MAC: [u8; 6] = [2, 0, 0, 0, 1, 9];
const SERVER_PORT: u16 = 40_000;

/// A datagram, from which etherparse makes a frame with the right lengths and checksums.
#[derive(Clone)]
struct Datagram {
    macs: ([u8; 6], [u8; 6]),
    source: SocketAddr,
    destination: SocketAddr,
    hop_limit: u8,
    payload: Vec<u8>,
}

impl Datagram {
    /// From an application server to the gateway.
    fn to_gateway(v6: bool, payload: Vec<u8>) -> Self {
        let (server, gateway) = if v6 {
            ("2001:db8:51::10", "2001:db8:51::1")
        } else {
            ("198.51.100.10", "198.51.100.1")
        };
        Self {
            macs: (SERVER_MAC, EXT_MAC),
            source: SocketAddr::new(server.parse().unwrap(), SERVER_PORT),
            destination: SocketAddr::new(gateway.parse().unwrap(), TRIGGER_PORT),
            hop_limit: 64,
            payload,
        }
    }

    fn frame(&self) -> Vec<u8> {
        let builder = PacketBuilder::ethernet2(self.macs.0, self.macs.1);
        let builder = match (self.source.ip(), self.destination.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                builder.ipv4(from.octets(), to.octets(), self.hop_limit)
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                builder.ipv6(from.octets(), to.octets(), self.hop_limit)
            }
            mixed => panic!("{mixed:?}"),
        };
        let builder = builder.udp(self.source.port(), self.destination.port());
        let mut frame = Vec::new();
        builder.write(&mut frame, &self.payload).unwrap();
        frame
    }
}

/// A session as the test knows it.
#[derive(Clone)]
struct Session {
    image: SessionImage,
    sequence: u64,
}

impl Session {
    fn new(slot: u32, device: &str) -> Self {
        let device: SocketAddr = device.parse().unwrap();
        let image = SessionImage {
            id: SessionId::new(slot, 0x1000_0000 + slot),
            device,
            source: sources()[usize::from(device.is_ipv6())],
            token_generation: 7,
            key: TagKey::from_bytes([slot as u8; 16]),
            previous_key: None,
            expires_in: Duration::from_secs(3600),
        };
        Self {
            image,
            sequence: 1000,
        }
    }

    fn installed(self, gateway: &mut Gateway) -> Self {
        gateway.dataplane.install(&self.image).unwrap();
        self
    }

    fn is_v6(&self) -> bool {
        self.image.device.is_ipv6()
    }

    /// The next trigger for it.
    fn trigger(&mut self, payload: &[u8]) -> Vec<u8> {
        self.sequence += 1;
        self.trigger_at(self.sequence, payload)
    }

    fn trigger_at(&self, sequence: u64, payload: &[u8]) -> Vec<u8> {
        let image = &self.image;
        let header = TriggerHeader::sign(
            image.key,
            image.token_generation,
            image.id,
            sequence,
            payload,
        )
        .unwrap();
        [header.as_bytes(), payload].concat()
    }

    /// A datagram with the next trigger.
    fn datagram(&mut self, payload: &[u8]) -> Datagram {
        Datagram::to_gateway(self.is_v6(), self.trigger(payload))
    }

    /// What the device is to get of `sent`.
    fn delivered(&self, sent: &Datagram, macs: ([u8; 6], [u8; 6])) -> Datagram {
        Datagram {
            macs,
            source: self.image.source,
            destination: self.image.device,
            hop_limit: sent.hop_limit - 1,
            payload: sent.payload.clone(),
        }
    }

    fn packets(&self, gateway: &Gateway) -> u64 {
        gateway
            .dataplane
            .session_counters(self.image.id)
            .map_or(0, |counters| counters.packets)
    }
}

/// Frames that are no triggers, and triggers that are refused: `(name, frame, verdict)`.
type Row = (&'static str, Vec<u8>, Verdict);

const DEVICES: [&str; 2] = ["10.64.0.2:7000", "[fd00:64::2]:7000"];
const ONE_ARMED: [&str; 2] = ["198.51.100.7:7000", "[2001:db8:51::7]:7000"];

#[test]
fn each_refused_packet_gets_its_verdict_and_stays_as_it_was() {
    Gateway::run(|mut gateway| {
        for (slot, device) in (1..).zip(DEVICES) {
            let mut session = Session::new(slot, device).installed(&mut gateway);
            let mut rows = what_is_not_ours(&mut session);
            rows.extend(what_is_malformed(&mut session));
            rows.extend(what_is_not_authorised(&mut session));
            for (name, frame, expected) in rows {
                let (verdict, out) = gateway.send(EXT, &frame);
                assert_eq!(verdict, expected, "{device}: {name}");
                assert_eq!(out, frame, "{device}: {name}: the frame was changed");
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
        }
    });
}

fn what_is_not_ours(session: &mut Session) -> Vec<Row> {
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
                "hop-by-hop options",
                with(ETHERNET + 6, &[0]),
                Verdict::NotUdp,
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

fn what_is_malformed(session: &mut Session) -> Vec<Row> {
    let v6 = session.is_v6();
    let udp_at = ETHERNET + if v6 { IPV6 } else { IPV4 };
    let length_at = ETHERNET + if v6 { 4 } else { 2 };
    let trigger_at = udp_at + UDP;
    let good = session.datagram(b"odd payload");
    let frame = good.frame();
    let with = |at: usize, bytes: &[u8]| changed(&frame, at, bytes);
    let ip_claims = u16::from_be_bytes([frame[length_at], frame[length_at + 1]]);
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
            with(length_at, &(ip_claims - 1).to_be_bytes()),
            Verdict::UdpLength,
        ),
        (
            "IP length zero",
            with(length_at, &[0, 0]),
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
            "a flag",
            with(trigger_at + 4, &[0x80]),
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
    }
    rows
}

fn what_is_not_authorised(session: &mut Session) -> Vec<Row> {
    let id = session.image.id;
    let as_session = |id: SessionId| Session {
        image: SessionImage {
            id,
            ..session.image.clone()
        },
        ..session.clone()
    };
    let mut other_family = Session {
        image: SessionImage {
            device: DEVICES[0].parse().unwrap(),
            ..session.image.clone()
        },
        ..session.clone()
    };
    if !session.is_v6() {
        other_family.image.device = DEVICES[1].parse().unwrap();
    }
    let mut other_key = session.clone();
    other_key.image.key = TagKey::from_bytes([0xEE; 16]);
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
            "the other family",
            other_family.datagram(b"").frame(),
            Verdict::FamilyMismatch,
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

#[test]
fn a_trigger_of_any_length_arrives_as_etherparse_would_have_built_it() {
    Gateway::run(|mut gateway| {
        let ways = [
            (DEVICES, Verdict::Redirected, (INT_MAC, DEVICE_MAC)),
            (ONE_ARMED, Verdict::SentBack, (EXT_MAC, ONE_ARMED_MAC)),
        ];
        let mut slot = 0;
        for (devices, expected, macs) in ways {
            for device in devices {
                slot += 1;
                let mut session = Session::new(slot, device).installed(&mut gateway);
                let lengths: Vec<usize> = (0..=40).chain([255, 256, 257, 1199, 1200]).collect();
                let mut bytes = 0;
                for &length in &lengths {
                    let payload: Vec<u8> = (0..length).map(|i| (i * 7 + length) as u8).collect();
                    let sent = session.datagram(&payload);
                    let (verdict, out) = gateway.send(EXT, &sent.frame());
                    assert_eq!(verdict, expected, "{length} bytes to {device}");
                    assert_eq!(
                        out,
                        session.delivered(&sent, macs).frame(),
                        "{length} bytes to {device}"
                    );
                    SlicedPacket::from_ethernet(&out).unwrap();
                    bytes += out.len() as u64;
                }
                let counters = gateway
                    .dataplane
                    .session_counters(session.image.id)
                    .unwrap();
                assert_eq!(
                    (counters.packets, counters.bytes),
                    (lengths.len() as u64, bytes)
                );
                assert!(counters.last_delivered_ago.unwrap() < Duration::from_secs(10));
            }
        }
    });
}

#[test]
fn a_datagram_without_checksum_stays_one() {
    Gateway::run(|mut gateway| {
        let mut session = Session::new(1, DEVICES[0]).installed(&mut gateway);
        let sent = session.datagram(b"x");
        let checksum_at = ETHERNET + IPV4 + 6;
        let (verdict, out) = gateway.send(EXT, &changed(&sent.frame(), checksum_at, &[0, 0]));
        assert_eq!(verdict, Verdict::Redirected);
        let expected = session.delivered(&sent, (INT_MAC, DEVICE_MAC)).frame();
        assert_eq!(out, changed(&expected, checksum_at, &[0, 0]));
    });
}

#[test]
fn a_damaged_datagram_still_looks_damaged_afterwards() {
    Gateway::run(|mut gateway| {
        let mut session = Session::new(1, DEVICES[0]).installed(&mut gateway);
        let sent = session.datagram(b"x");
        for checksum_at in [ETHERNET + 10, ETHERNET + IPV4 + 6] {
            let sent = Datagram {
                payload: session.trigger(b"x"),
                ..sent.clone()
            };
            let frame = sent.frame();
            let damaged = changed(&frame, checksum_at, &[frame[checksum_at] ^ 0x10]);
            let (verdict, out) = gateway.send(EXT, &damaged);
            assert_eq!(verdict, Verdict::Redirected);
            let right = session.delivered(&sent, (INT_MAC, DEVICE_MAC)).frame();
            assert_ne!(
                out[checksum_at..checksum_at + 2],
                right[checksum_at..checksum_at + 2]
            );
            assert_eq!(
                changed(&out, checksum_at, &right[checksum_at..checksum_at + 2]),
                right
            );
        }
    });
}

#[test]
fn bytes_after_the_datagram_are_not_looked_at() {
    Gateway::run(|mut gateway| {
        let mut session = Session::new(1, DEVICES[0]).installed(&mut gateway);
        let sent = session.datagram(b"");
        let padded = [sent.frame(), vec![0; 6]].concat();
        let (verdict, out) = gateway.send(EXT, &padded);
        assert_eq!(verdict, Verdict::Redirected);
        assert_eq!(
            out,
            [
                session.delivered(&sent, (INT_MAC, DEVICE_MAC)).frame(),
                vec![0; 6]
            ]
            .concat()
        );
    });
}

#[test]
fn each_sequence_is_let_through_once_and_old_ones_never() {
    Gateway::run(|mut gateway| {
        let session = Session::new(1, DEVICES[0]).installed(&mut gateway);
        let mut offer = |sequence| {
            gateway
                .send(
                    EXT,
                    &Datagram::to_gateway(false, session.trigger_at(sequence, b"")).frame(),
                )
                .0
        };
        let newest = (1 << SEQUENCE_BITS) - 1;
        assert_eq!(offer(0), Verdict::Redirected);
        assert_eq!(offer(0), Verdict::Replayed);
        assert_eq!(offer(newest), Verdict::Redirected);
        assert_eq!(offer(newest), Verdict::Replayed);
        assert_eq!(offer(newest - PERMITTED_LAG), Verdict::Redirected);
        assert_eq!(offer(newest - PERMITTED_LAG), Verdict::Replayed);
        assert_eq!(offer(newest - 128), Verdict::SequenceTooOld);
        assert_eq!(offer(0), Verdict::SequenceTooOld);
    });
}

#[test]
fn a_forged_trigger_does_not_use_up_its_sequence() {
    Gateway::run(|mut gateway| {
        let mut session = Session::new(1, DEVICES[0]).installed(&mut gateway);
        let good = session.datagram(b"x").frame();
        let forged = changed(&good, good.len() - 1, b"y");
        assert_eq!(gateway.send(EXT, &forged).0, Verdict::BadTag);
        assert_eq!(gateway.send(EXT, &good).0, Verdict::Redirected);
    });
}

#[test]
fn two_token_generations_are_valid_while_they_overlap() {
    Gateway::run(|mut gateway| {
        let mut old = Session::new(1, DEVICES[0]).installed(&mut gateway);
        for generation in [8, 9] {
            let mut new = old.clone();
            new.image.token_generation = generation;
            new.image.key = TagKey::from_bytes([generation; 16]);
            new.image.previous_key = Some(old.image.key);
            let mut new = new.installed(&mut gateway);
            new.sequence += 10;
            assert_eq!(
                gateway.send(EXT, &old.datagram(b"").frame()).0,
                Verdict::Redirected
            );
            assert_eq!(
                gateway.send(EXT, &new.datagram(b"").frame()).0,
                Verdict::Redirected
            );
            new.image.previous_key = None;
            new = new.installed(&mut gateway);
            assert_eq!(
                gateway.send(EXT, &old.datagram(b"").frame()).0,
                Verdict::UnknownTokenGeneration
            );
            assert_eq!(
                gateway.send(EXT, &new.datagram(b"").frame()).0,
                Verdict::Redirected
            );
            old = new;
        }
    });
}

#[test]
fn a_session_ends_on_time_without_the_controller() {
    Gateway::run(|mut gateway| {
        let lifetime = Duration::from_millis(300);
        let mut session = Session::new(1, DEVICES[0]);
        session.image.expires_in = lifetime;
        let begin = Instant::now();
        let mut session = session.installed(&mut gateway);
        loop {
            let sent_at = begin.elapsed();
            match gateway.send(EXT, &session.datagram(b"").frame()).0 {
                Verdict::Redirected => assert!(
                    sent_at < lifetime + Duration::from_millis(500),
                    "still alive after {sent_at:?}"
                ),
                Verdict::Expired => {
                    assert!(
                        begin.elapsed() >= lifetime,
                        "ended after {:?}",
                        begin.elapsed()
                    );
                    break;
                }
                other => panic!("{other:?}"),
            }
        }
        session.image.expires_in = Duration::from_secs(60);
        let mut refreshed = session.installed(&mut gateway);
        assert_eq!(
            gateway.send(EXT, &refreshed.datagram(b"").frame()).0,
            Verdict::Redirected
        );
    });
}

#[test]
fn an_address_change_keeps_window_and_counters_and_removal_forgets_them() {
    Gateway::run(|mut gateway| {
        let mut session = Session::new(1, DEVICES[0]).installed(&mut gateway);
        let first = session.datagram(b"").frame();
        assert_eq!(gateway.send(EXT, &first).0, Verdict::Redirected);
        session.image.device = ONE_ARMED[0].parse().unwrap();
        let mut session = session.installed(&mut gateway);
        assert_eq!(gateway.send(EXT, &first).0, Verdict::Replayed);
        assert_eq!(
            gateway.send(EXT, &session.datagram(b"").frame()).0,
            Verdict::SentBack
        );
        assert_eq!(session.packets(&gateway), 2);

        gateway.dataplane.remove(session.image.id);
        assert_eq!(gateway.dataplane.installed(), []);
        assert_eq!(
            gateway.send(EXT, &session.datagram(b"").frame()).0,
            Verdict::UnknownSession
        );
        let mut next = session.clone();
        next.image.id = SessionId::new(1, 0x2000_0000);
        let next = next.installed(&mut gateway);
        assert_eq!(gateway.dataplane.installed(), [next.image.id]);
        assert_eq!(next.packets(&gateway), 0);
        gateway.dataplane.remove(session.image.id);
        assert_eq!(
            gateway.dataplane.installed(),
            [next.image.id],
            "an old identifier removed a new session"
        );
    });
}

#[test]
fn the_source_is_kept_if_configured() {
    Gateway::run(|mut gateway| {
        gateway.settings.keep_source = true;
        gateway.dataplane = crate::gateway::open(&gateway.settings).unwrap();
        for (slot, device) in (1..).zip(DEVICES) {
            let mut session = Session::new(slot, device).installed(&mut gateway);
            let sent = session.datagram(b"x");
            let (verdict, out) = gateway.send(EXT, &sent.frame());
            assert_eq!(verdict, Verdict::Redirected);
            let expected = Datagram {
                source: sent.source,
                ..session.delivered(&sent, (INT_MAC, DEVICE_MAC))
            };
            assert_eq!(out, expected.frame());
        }
    });
}

#[test]
fn triggers_are_taken_on_external_nics_only() {
    Gateway::run(|mut gateway| {
        for (slot, device) in (1..).zip(DEVICES) {
            let mut session = Session::new(slot, device).installed(&mut gateway);
            let frame = session.datagram(b"x").frame();
            assert_eq!(gateway.send(INT, &frame), (Verdict::NotTrigger, frame));
        }
    });
}

#[test]
fn the_kernels_routes_decide_where_a_trigger_goes() {
    Gateway::run(|mut gateway| {
        let long = [0; MAX_PAYLOAD_LEN];
        let rows: [(&str, &[u8], Verdict); 8] = [
            ("203.0.113.9:7000", b"", Verdict::NoRoute),
            ("[2001:db8:dead::9]:7000", b"", Verdict::NoRoute),
            ("10.66.0.9:7000", b"", Verdict::NoRoute),
            ("[fd00:66::9]:7000", b"", Verdict::NoRoute),
            ("10.65.0.9:7000", b"", Verdict::Redirected),
            ("[fd00:65::9]:7000", b"", Verdict::Redirected),
            ("10.65.0.9:7000", &long, Verdict::TooBig),
            ("[fd00:65::9]:7000", &long, Verdict::TooBig),
        ];
        for (slot, (device, payload, expected)) in (1..).zip(rows) {
            let mut session = Session::new(slot, device).installed(&mut gateway);
            let frame = session.datagram(payload).frame();
            let (verdict, out) = gateway.send(EXT, &frame);
            assert_eq!(verdict, expected, "{device}");
            if !verdict.is_delivery() {
                assert_eq!(out, frame, "{device}");
                assert_eq!(session.packets(&gateway), 0, "{device}");
            }
        }
    });
}

#[test]
fn without_forwarding_nothing_is_forwarded_and_a_warning_says_so() {
    Gateway::run(|mut gateway| {
        assert_eq!(gateway.dataplane.warnings(), [] as [&str; 0]);
        sh(
            "sysctl -qw net.ipv4.conf.ext.forwarding=0 net.ipv6.conf.ext.forwarding=0 net.ipv4.conf.ext.accept_local=0",
        );
        for (slot, device) in (1..).zip(DEVICES) {
            let mut session = Session::new(slot, device).installed(&mut gateway);
            let frame = session.datagram(b"").frame();
            assert_eq!(
                gateway.send(EXT, &frame),
                (Verdict::ForwardingDisabled, frame)
            );
        }
        let warnings = gateway.dataplane.warnings();
        assert_eq!(warnings.len(), 3, "{warnings:?}");
        assert!(
            warnings[0].ends_with("sysctl -w net.ipv4.conf.ext.forwarding=1"),
            "{warnings:?}"
        );
    });
}

#[test]
fn the_kernel_gets_a_rewritten_trigger_while_the_next_hop_is_unknown() {
    Gateway::run(|mut gateway| {
        for (slot, device) in [(1, "10.64.0.99:7000"), (2, "[fd00:64::99]:7000")] {
            let mut session = Session::new(slot, device).installed(&mut gateway);
            let sent = session.datagram(b"x");
            let (verdict, out) = gateway.send(EXT, &sent.frame());
            assert_eq!(verdict, Verdict::NextHopUnresolved);
            // The kernel takes off the hop, and changes the MAC addresses.
            let expected = Datagram {
                hop_limit: sent.hop_limit,
                ..session.delivered(&sent, sent.macs)
            };
            assert_eq!(out, expected.frame());
            assert_eq!(session.packets(&gateway), 1);
        }
    });
}

#[test]
fn a_record_in_the_middle_of_a_change_is_not_used() {
    Gateway::run(|mut gateway| {
        let mut session = Session::new(1, DEVICES[0]).installed(&mut gateway);
        let flags_at = 15;
        poke_record(&gateway, 1, flags_at, 4);
        assert_eq!(
            gateway.send(EXT, &session.datagram(b"").frame()).0,
            Verdict::SessionChanging
        );
        // What a controller that died then would find, the next one mends.
        let mut session = session.installed(&mut gateway);
        assert_eq!(
            gateway.send(EXT, &session.datagram(b"").frame()).0,
            Verdict::Redirected
        );
    });
}

#[test]
fn a_source_that_is_not_there_is_a_bug_and_says_so() {
    Gateway::run(|mut gateway| {
        let mut session = Session::new(1, DEVICES[0]).installed(&mut gateway);
        let source_at = 10;
        for source in [63, 64] {
            poke_record(&gateway, 1, source_at, source);
            assert_eq!(
                gateway.send(EXT, &session.datagram(b"").frame()).0,
                Verdict::MissingConfiguration
            );
        }
    });
}

/// Every verdict has a row above, but for the one that takes a race to get: losing a replay word to
/// another CPU many times in a row.
#[test]
fn every_verdict_is_expected_by_a_row() {
    let this_file = include_str!("verdicts.rs");
    let named = |verdict: &Verdict| this_file.contains(&format!("Verdict::{verdict:?}"));
    let missing: BTreeSet<_> = Verdict::ALL
        .iter()
        .filter(|verdict| !named(verdict))
        .map(|verdict| verdict.label())
        .collect();
    assert_eq!(missing, BTreeSet::from(["replay_contended"]));
}

#[test]
fn received_is_the_sum_of_all_verdicts() {
    Gateway::run(|mut gateway| {
        let mut session = Session::new(1, DEVICES[0]).installed(&mut gateway);
        let good = session.datagram(b"x").frame();
        let mut sent = 0;
        for frame in [
            good.clone(),
            good.clone(),
            good[..50].to_vec(),
            changed(&good, 12, &[0x08, 0x06]),
        ] {
            for nic in [EXT, INT] {
                gateway.send(nic, &frame);
                sent += 1;
            }
        }
        assert_eq!(gateway.received(), sent);
    });
}

/// Changes a byte of a session's record behind the controller's back, with a tool that isn't ours.
fn poke_record(gateway: &Gateway, slot: u32, offset: usize, value: u8) {
    let map = gateway.settings.pin_dir.join("push_sessions");
    let map = map.display();
    let key = slot.to_le_bytes().map(|byte| byte.to_string()).join(" ");
    let dump = sh(&format!("bpftool -j map lookup pinned {map} key {key}"));
    let dump: serde_json::Value = serde_json::from_str(&dump).unwrap();
    let mut record: Vec<String> = dump["value"]
        .as_array()
        .unwrap()
        .iter()
        .map(|byte| byte.as_str().unwrap().to_owned())
        .collect();
    record[offset] = value.to_string();
    sh(&format!(
        "bpftool map update pinned {map} key {key} value {}",
        record.join(" ")
    ));
}

fn changed(frame: &[u8], at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    frame[at..at + bytes.len()].copy_from_slice(bytes);
    frame
}

/// The verifier's effort and the size of the program don't depend on the machine's load; a change
/// that makes them grow should be a decision.
#[test]
fn the_program_stays_small() {
    Gateway::run(|mut gateway| {
        for (nic, verified, machine_code_bytes) in gateway.dataplane.program_size().unwrap() {
            println!(
                "{nic}: {verified} instructions verified, {machine_code_bytes} bytes of machine code"
            );
            assert!(
                verified <= 11_000,
                "{nic}: {verified} instructions verified"
            );
        }
    });
}
