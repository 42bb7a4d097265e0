//! Whether the model is worth comparing with: its frames against etherparse, its verdicts against
//! named rows, and the comparison against models that are wrong in one point each.

use super::Outcome;
use super::fuzz::{self, Difference, Limit, NicCounters, Subject};
use super::gateway::{Gateway, Pending};
use super::packet::Packet;
use super::random::Random;
use super::traffic::Traffic;
use super::{found, rows, world};
use etherparse::checksum::Sum16BitWords;
use etherparse::{LaxNetSlice, LaxSlicedPacket, NetSlice, SlicedPacket, TransportSlice, UdpSlice};
use push_common::maps::{SessionRecord, TICK_NS};
use push_common::verdict::{Action, Verdict};
use std::collections::{BTreeMap, BTreeSet};

const INTERFACES: [u32; 3] = [3, 5, 7];
const NOW_NS: u64 = 5_000_000_000_000;

#[test]
fn each_known_row_gets_its_verdict() {
    let mut names = BTreeSet::new();
    for row in rows::KNOWN.iter().chain(found::ROWS) {
        let mut model = rows::gateway(INTERFACES, NOW_NS);
        let packets = (row.packets)(&model);
        let outcomes = send_all(&mut model, &packets);
        let last = outcomes.last().expect("a row has packets");
        assert_eq!(last.verdict, row.verdict, "{}", row.name);
        assert!(names.insert(row.name), "two rows are called {}", row.name);
    }
}

#[test]
fn every_verdict_that_one_cpu_can_get_has_a_known_row() {
    let known: BTreeSet<_> = rows::KNOWN.iter().map(|row| row.verdict.label()).collect();
    let all = Verdict::ALL.iter().map(|verdict| verdict.label());
    let missing: Vec<_> = all.filter(|label| !known.contains(label)).collect();
    assert_eq!(
        missing,
        ["session_changing", "contended", "not_linear", "no_headroom"]
    );
}

#[test]
fn unchanged_packets_are_what_etherparse_would_take() {
    let gateway = rows::gateway(INTERFACES, NOW_NS);
    for packet in [
        rows::by_v4(&gateway, 0, 1),
        rows::by_v6(&gateway, 1, 1),
        rows::ack(&gateway, 0, 1),
        rows::ack(&gateway, 1, 1),
    ] {
        assert_eq!(
            Checked::of(&packet.frame()).udp_checksum,
            UdpChecksum::Right
        );
    }
}

/// Lengths, checksums and the order of headers; what the fields are is for the rows below to say.
#[test]
fn whatever_goes_out_is_what_etherparse_would_take() {
    let mut delivered = 0_u32;
    for round in 0..20 {
        let mut random = Random::new(11, round);
        let mut model = world::gateway(&mut random, INTERFACES, NOW_NS);
        let mut traffic = Traffic::new(random);
        for number in 0..2000 {
            let (nic, frame) = traffic.next(&model);
            let outcome = model.receive(nic, NOW_NS + number, &frame);
            if !outcome.verdict.is_delivery() && outcome.verdict != Verdict::AckReturned {
                assert_eq!(outcome.frame, frame, "{}", outcome.verdict.label());
                continue;
            }
            delivered += 1;
            let (before, after) = (incoming_checksum(&frame), Checked::of(&outcome.frame));
            let name = outcome.verdict.label();
            match (before, after.is_v6) {
                (Some(UdpChecksum::Absent), true) => {
                    assert_eq!(after.udp_checksum, UdpChecksum::Right, "{name}");
                }
                (Some(before), _any) => assert_eq!(after.udp_checksum, before, "{name}"),
                (None, _any) => {}
            }
            if let Some(outer) = after.outer_udp_checksum {
                match (after.udp_checksum, after.is_outer_v6) {
                    (UdpChecksum::Absent, true) => assert_eq!(outer, UdpChecksum::Right),
                    (inner, _any) => assert_eq!(outer, inner, "{name}"),
                }
            }
        }
    }
    assert!(delivered > 5000, "{delivered}");
}

#[test]
fn a_datagram_through_a_tunnel_is_what_the_documents_say() {
    let mut model = rows::gateway(INTERFACES, NOW_NS);
    let mut packet = rows::by_v6(&model, rows::slot::V6_IN_GTPU_V4, 1);
    (packet.class, packet.flow_label, packet.hop_limit) = (0xB9, 0xABCDE, 17);
    let out = send_all(&mut model, &[packet]).pop().unwrap().frame;
    let sliced = SlicedPacket::from_ethernet(&out).unwrap();
    let Some(NetSlice::Ipv4(outer)) = sliced.net else {
        panic!("{sliced:?}");
    };
    let outer = outer.header();
    assert_eq!(outer.source(), [172, 16, 0, 1]);
    assert_eq!(outer.destination(), [172, 16, 9, 9]);
    assert_eq!((outer.ttl(), outer.identification()), (64, 0));
    assert!(outer.dont_fragment());
    assert_eq!((outer.dcp().value(), outer.ecn().value()), (0xB9 >> 2, 1));
    let Some(TransportSlice::Udp(udp)) = sliced.transport else {
        panic!("no UDP");
    };
    assert_eq!((udp.source_port(), udp.destination_port()), (2152, 2152));
    let (gtpu, inner) = udp.payload().split_at(8);
    assert_eq!(gtpu[..2], [0x30, 0xFF]);
    assert_eq!(
        usize::from(u16::from_be_bytes([gtpu[2], gtpu[3]])),
        inner.len()
    );
    assert_eq!(gtpu[4..], [0, 0, 1, rows::slot::V6_IN_GTPU_V4 as u8]);
    let inner = SlicedPacket::from_ip(inner).unwrap();
    let Some(NetSlice::Ipv6(inner)) = inner.net else {
        panic!("{inner:?}");
    };
    let inner = inner.header();
    assert_eq!((inner.hop_limit(), inner.traffic_class()), (16, 0xB9));
    assert_eq!(inner.flow_label().value(), 0xABCDE);
}

#[test]
fn the_link_header_is_that_of_the_egress_or_the_one_it_came_with() {
    let mut model = rows::gateway(INTERFACES, NOW_NS);
    let tag = [0x81, 0x00, 0x00, 0x07];
    let with_tag = |mut packet: Packet| {
        packet.tags = vec![tag];
        packet
    };
    let packets = [
        with_tag(rows::by_v4(&model, rows::slot::TAGGED, 1)),
        with_tag(rows::by_v4(&model, rows::slot::UNRESOLVED_V6, 1)),
        with_tag(rows::by_v4(&model, rows::slot::V6, 1)),
    ];
    let outcomes = send_all(&mut model, &packets);
    let egress_tags = [0x88, 0xA8, 0x20, 5, 0x81, 0, 0, 6];
    assert_eq!(
        outcomes[0].frame[..6],
        [2, 0, 0, 0, 9, rows::slot::TAGGED as u8]
    );
    assert_eq!(outcomes[0].frame[6..12], [2, 0, 0, 0, 7, 1]);
    assert_eq!(outcomes[0].frame[12..20], egress_tags);
    assert_eq!(outcomes[0].frame[20..22], [0x08, 0x00]);
    assert_eq!(outcomes[0].interface, Some(INTERFACES[world::INT]));

    assert_eq!(outcomes[1].frame[..12], packets[1].macs.concat());
    assert_eq!(outcomes[1].frame[12..16], tag);
    assert_eq!(outcomes[1].frame[16..18], [0x86, 0xDD]);
    assert_eq!(
        (outcomes[1].action, outcomes[1].interface),
        (Action::Pass, None)
    );
    let hop_limit_at = 18 + 7;
    assert_eq!(
        outcomes[1].frame[hop_limit_at], 64,
        "the kernel takes off the hop"
    );

    assert_eq!(outcomes[2].frame[12..14], [0x86, 0xDD]);
    assert_eq!(outcomes[2].frame[14 + 7], 63);
}

#[test]
fn an_acknowledgement_goes_back_the_way_its_trigger_came() {
    let mut model = rows::gateway(INTERFACES, NOW_NS);
    let mut trigger = rows::by_v6(&model, rows::slot::RETURNED_V4, 5);
    trigger.message.flags = 1;
    trigger.tags = vec![[0x81, 0x00, 0x00, 0x07]];
    let mut ack = rows::ack(&model, rows::slot::RETURNED_V4, 5);
    (ack.class, ack.hop_limit) = (0x2E, 1);
    send_all(&mut model, &[trigger.clone()]);
    let later_ns = NOW_NS + 3_000_000;
    let outcome = model.receive(world::INT, later_ns, &ack.frame());
    assert_eq!(outcome.verdict, Verdict::AckReturned);
    assert_eq!(outcome.interface, Some(INTERFACES[world::EXT]));
    let expected = Packet {
        macs: [trigger.macs[1], trigger.macs[0]],
        tags: trigger.tags,
        source: trigger.destination,
        destination: trigger.source,
        first_byte: 0x60,
        hop_limit: 64,
        ..ack
    };
    assert_eq!(outcome.frame, expected.frame());
    let record = &model.sessions[&rows::slot::RETURNED_V4];
    assert_eq!((record.acknowledged, record.round_trip_us), (1, 3000));
    let class = 11; // From 2,048 microseconds on.
    assert_eq!(model.nics[world::INT].round_trips[class], 1);
    assert!(model.pending.is_empty());
}

#[test]
fn a_trigger_moves_the_counters_of_its_session_and_no_other() {
    let mut model = rows::gateway(INTERFACES, NOW_NS);
    let packet = rows::by_v4(&model, 0, 5);
    let length = packet.frame().len() as u64;
    let before = model.sessions.clone();
    send_all(&mut model, &[packet]);
    for (slot, record) in &model.sessions {
        let old = &before[slot];
        let moved = [record.packets - old.packets, record.bytes - old.bytes];
        assert_eq!(moved, if *slot == 0 { [1, length] } else { [0, 0] });
    }
    let activity = model.sessions[&0].activity;
    assert_eq!(activity >> 32, NOW_NS / TICK_NS);
}

#[test]
fn a_rate_lets_one_through_an_hour_later() {
    let mut model = rows::gateway(INTERFACES, NOW_NS);
    let hour_ns = 3_600_000_000_000;
    let strict = rows::slot::STRICT;
    let frames = [1, 2, 3].map(|sequence| rows::by_v4(&model, strict, sequence).frame());
    let times = [NOW_NS, NOW_NS + hour_ns - 1, NOW_NS + hour_ns];
    let verdicts = frames
        .iter()
        .zip(times)
        .map(|(frame, now_ns)| model.receive(world::EXT, now_ns, frame).verdict);
    let expected = [
        Verdict::Redirected,
        Verdict::RateExceeded,
        Verdict::Redirected,
    ];
    assert_eq!(verdicts.collect::<Vec<_>>(), expected);
    assert_eq!(model.sessions[&strict].refused, 1);
}

#[test]
fn made_up_frames_get_far_and_get_every_verdict() {
    let report = fuzz::run(&mut Mirror::default(), 3, Limit::Frames(100_000));
    report.demand_agreement();
    assert!(report.reached_the_tag() * 10 >= report.frames * 4);
}

#[test]
fn rows_agree_with_a_model_that_is_right() {
    for row in rows::KNOWN.iter().chain(found::ROWS) {
        rows::demand_agreement(&mut Mirror::default(), row);
    }
}

#[test]
fn whatever_is_wrong_is_found_at_its_frame() {
    let faults: [(&str, Fault); 9] = [
        ("a bit of the last byte", |_, outcome, frame| {
            if outcome.verdict == Verdict::Redirected && frame.len() > 1200 {
                *outcome.frame.last_mut().unwrap() ^= 1;
            }
        }),
        ("a hop too few", |_, outcome, _| {
            if outcome.verdict == Verdict::SentBack && outcome.frame[12..14] == [0x86, 0xDD] {
                outcome.frame[14 + 7] -= 1;
            }
        }),
        ("dropped instead of passed", |_, outcome, _| {
            if outcome.verdict == Verdict::Fragment {
                outcome.action = Action::Drop;
            }
        }),
        (
            "another verdict with the same action",
            |model, outcome, frame| {
                if outcome.verdict == Verdict::BadMagic {
                    let length = frame.len() as u64;
                    let counts = &mut model.nics[world::EXT].by_verdict;
                    // The frame may have come in by another NIC, so there may be nothing to take away.
                    let count = &mut counts[Verdict::BadMagic as usize];
                    count.packets = count.packets.saturating_sub(1);
                    count.bytes = count.bytes.saturating_sub(length);
                    let count = &mut counts[Verdict::UnknownFlags as usize];
                    count.packets += 1;
                    count.bytes += length;
                }
            },
        ),
        ("a byte too many", |model, outcome, _| {
            if outcome.verdict == Verdict::NextHopUnresolved {
                let record = model.sessions.values_mut().next().unwrap();
                record.bytes = record.bytes.wrapping_add(1);
            }
        }),
        ("a sequence not noted down", |model, outcome, _| {
            if outcome.verdict == Verdict::Coalesced {
                for record in model.sessions.values_mut() {
                    record.replay = [0; 4];
                }
            }
        }),
        ("a refusal not counted", |model, outcome, _| {
            if outcome.verdict == Verdict::SourceRefused {
                for record in model.sessions.values_mut() {
                    record.refused = record.refused.wrapping_sub(1);
                }
            }
        }),
        ("a round trip not counted", |model, outcome, _| {
            if outcome.verdict == Verdict::AckCounted {
                model.nics[world::INT].round_trips = [0; 32];
                model.nics[world::BOTH].round_trips = [0; 32];
            }
        }),
        ("another way back", |model, outcome, _| {
            if outcome.verdict.is_delivery() {
                for pending in model.pending.values_mut() {
                    pending.interface = 0;
                }
            }
        }),
    ];
    for (name, fault) in faults {
        let wrong = || Mirror {
            fault: Some(fault),
            ..Mirror::default()
        };
        let report = fuzz::run(&mut wrong(), 3, Limit::Frames(20_000));
        let difference = report.differences.first();
        let difference = difference.unwrap_or_else(|| panic!("not found: {name}"));
        // The same again, from the seed and the number alone.
        let again = fuzz::run(
            &mut wrong(),
            difference.seed,
            Limit::Frames(difference.number + 1),
        );
        let what = |difference: &Difference| (difference.number, difference.frame.clone());
        assert_eq!(
            again.differences.first().map(what),
            Some(what(difference)),
            "{name}"
        );
    }
}

fn send_all(model: &mut Gateway, packets: &[Packet]) -> Vec<Outcome> {
    let each = packets
        .iter()
        .map(|packet| model.receive(packet.nic, NOW_NS, &packet.frame()));
    each.collect()
}

type Fault = fn(&mut Gateway, &mut Outcome, &[u8]);

/// The model in the place of the program.
#[derive(Default)]
struct Mirror {
    gateway: Option<Gateway>,
    fault: Option<Fault>,
    clock_ns: u64,
}

impl Mirror {
    fn gateway(&mut self) -> &mut Gateway {
        self.gateway.as_mut().expect("it has become like one")
    }
}

impl Subject for Mirror {
    fn interfaces(&mut self) -> [u32; 3] {
        INTERFACES
    }

    fn now_ns(&mut self) -> u64 {
        self.clock_ns += 50_000;
        NOW_NS + self.clock_ns
    }

    fn become_like(&mut self, gateway: &Gateway) {
        self.gateway = Some(gateway.clone());
    }

    fn send(&mut self, nic: usize, frame: &[u8]) -> (Action, Vec<u8>) {
        // A clock that stands still for 10 ms at a time.
        let now_ns = self.now_ns() / 10_000_000 * 10_000_000;
        let mut outcome = self.gateway().receive(nic, now_ns, frame);
        if let Some(fault) = self.fault {
            fault(self.gateway(), &mut outcome, frame);
        }
        (outcome.action, outcome.frame)
    }

    fn counters(&mut self) -> Vec<NicCounters> {
        let each = self.gateway().nics.iter().map(|nic| NicCounters {
            by_verdict: nic.by_verdict,
            round_trips: nic.round_trips,
        });
        each.collect()
    }

    fn sessions(&mut self) -> BTreeMap<u32, SessionRecord> {
        self.gateway().sessions.clone()
    }

    fn pending(&mut self) -> BTreeMap<(u64, u64), Pending> {
        self.gateway().pending.clone()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum UdpChecksum {
    Right,
    /// Off the right one by this, in ones' complement.
    Wrong(u32),
    Absent,
}

/// A frame that etherparse has found no fault with.
struct Checked {
    is_v6: bool,
    udp_checksum: UdpChecksum,
    is_outer_v6: bool,
    outer_udp_checksum: Option<UdpChecksum>,
}

impl Checked {
    fn of(frame: &[u8]) -> Self {
        let sliced = SlicedPacket::from_ethernet(frame).unwrap();
        let (is_v6, udp_checksum, udp) = Self::ip(&sliced);
        if (udp.source_port(), udp.destination_port()) != (2152, 2152) {
            return Self {
                is_v6,
                udp_checksum,
                is_outer_v6: is_v6,
                outer_udp_checksum: None,
            };
        }
        let (gtpu, inner) = udp.payload().split_at(8);
        assert_eq!(
            usize::from(u16::from_be_bytes([gtpu[2], gtpu[3]])),
            inner.len()
        );
        let inner = SlicedPacket::from_ip(inner).unwrap();
        let (is_inner_v6, inner_udp_checksum, _) = Self::ip(&inner);
        Self {
            is_v6: is_inner_v6,
            udp_checksum: inner_udp_checksum,
            is_outer_v6: is_v6,
            outer_udp_checksum: Some(udp_checksum),
        }
    }

    fn ip<'a>(sliced: &SlicedPacket<'a>) -> (bool, UdpChecksum, UdpSlice<'a>) {
        let Some(TransportSlice::Udp(udp)) = &sliced.transport else {
            panic!("{sliced:?}");
        };
        let header = udp.to_header();
        let right = match &sliced.net {
            Some(NetSlice::Ipv4(ipv4)) => {
                let ip = ipv4.header();
                let sum = Sum16BitWords::new().add_slice(ip.slice());
                assert_eq!(sum.ones_complement(), 0, "checksum of the IPv4 header");
                assert_eq!(udp.slice().len(), ipv4.payload().payload.len());
                header
                    .calc_checksum_ipv4(&ip.to_header(), udp.payload())
                    .unwrap()
            }
            Some(NetSlice::Ipv6(ipv6)) => {
                assert_eq!(udp.slice().len(), ipv6.payload().payload.len());
                let ip = ipv6.header().to_header();
                header.calc_checksum_ipv6(&ip, udp.payload()).unwrap()
            }
            other => panic!("{other:?}"),
        };
        assert_eq!(usize::from(header.length), udp.slice().len());
        let is_v6 = matches!(sliced.net, Some(NetSlice::Ipv6(_)));
        (is_v6, compared(header.checksum, right), udp.clone())
    }
}

/// The checksum of a frame that needn't be in order, but for what the program demands. `None` if
/// etherparse doesn't follow its extension headers, which it wants in the recommended order.
fn incoming_checksum(frame: &[u8]) -> Option<UdpChecksum> {
    let sliced = LaxSlicedPacket::from_ethernet(frame).unwrap();
    let Some(TransportSlice::Udp(udp)) = &sliced.transport else {
        assert!(
            matches!(sliced.net, Some(LaxNetSlice::Ipv6(_))),
            "{sliced:?}"
        );
        return None;
    };
    let header = udp.to_header();
    let right = match &sliced.net {
        Some(LaxNetSlice::Ipv4(ipv4)) => {
            let ip = ipv4.header().to_header();
            header.calc_checksum_ipv4(&ip, udp.payload()).unwrap()
        }
        Some(LaxNetSlice::Ipv6(ipv6)) => {
            let ip = ipv6.header().to_header();
            header.calc_checksum_ipv6(&ip, udp.payload()).unwrap()
        }
        other => panic!("{other:?}"),
    };
    Some(compared(header.checksum, right))
}

fn compared(checksum: u16, right: u16) -> UdpChecksum {
    match super::datagram::difference(checksum, right) {
        _none if checksum == 0 => UdpChecksum::Absent,
        0 => UdpChecksum::Right,
        error => UdpChecksum::Wrong(error),
    }
}
