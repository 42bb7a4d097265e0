//! Frames that the program makes by `BPF_PROG_TEST_RUN`, of each framing, dissected by tshark: every
//! layer and checksum, inside of tunnels, too. What the program is given is dissected with them.

use super::capture::{Checksum, Seen, dissect, write};
use crate::datagram::{DEVICES, Datagram, ETHERNET, IPV4, IPV6, SERVER_MAC, Session, UDP};
use crate::gateway::{DEVICE_MAC, EXT, EXT_MAC, Gateway, INT, INT_MAC};
use crate::model::packet::{self, Extension, Message, Packet};
use push_common::verdict::Verdict;
use push_common::wire::MAX_PAYLOAD_LEN;
use push_ctl::dataplane::{Gtpu, Policy, Realm, RealmLink, Tunnel};

/// What a frame is to be made of.
#[derive(Clone, Default)]
struct Shape {
    /// VLAN tags, the outer one first.
    tags: Vec<[u8; 4]>,
    /// IP version around the tunnel, its identifier, its checksum.
    tunnel: Option<(bool, u32, Checksum)>,
    v6: bool,
    /// tshark's names of IPv6 extension headers.
    extensions: Vec<&'static str>,
    has_no_checksum: bool,
    payload: Vec<u8>,
}

impl Shape {
    /// That of a frame that is sent.
    fn of(packet: &Packet) -> Self {
        let name = |extension: &Extension| match extension.kind {
            HOP_BY_HOP => "ipv6.hopopts",
            OPTIONS => "ipv6.dstopts",
            other => panic!("tshark's name of {other}?"),
        };
        Self {
            tags: packet.tags.clone(),
            tunnel: None,
            v6: packet.is_v6(),
            extensions: packet.extensions.iter().map(name).collect(),
            has_no_checksum: matches!(packet.udp_checksum, packet::Checksum::Is(0)),
            payload: packet.message.bytes(),
        }
    }

    /// What tshark says of it if nothing is wrong.
    fn seen(&self) -> Seen {
        let mut seen = Seen {
            protocols: "eth:ethertype".to_owned(),
            payload: self.payload.clone(),
            ..Seen::default()
        };
        for tag in &self.tags {
            let name = if tag[..2] == PROVIDER {
                "ieee8021ad"
            } else {
                "vlan"
            };
            seen.protocols += &format!(":{name}:ethertype");
            seen.vlans
                .push(u16::from_be_bytes([tag[2], tag[3]]) & 0xFFF);
        }
        let mut datagram = |v6: bool, extensions: &[&str], checksum| {
            seen.protocols += if v6 { ":ipv6" } else { ":ip" };
            for extension in extensions {
                seen.protocols += &format!(":{extension}");
            }
            seen.protocols += ":udp";
            if !v6 {
                seen.ip_checksums.push(Checksum::Good);
            }
            seen.udp_checksums.push(checksum);
        };
        let inner = if self.has_no_checksum {
            Checksum::Absent
        } else {
            Checksum::Good
        };
        match self.tunnel {
            None => datagram(self.v6, &self.extensions, inner),
            Some((outer_v6, teid, outer)) => {
                datagram(outer_v6, &[], outer);
                seen.teids.push(teid);
                seen.protocols += ":gtp";
                let mut inside = Self {
                    tunnel: None,
                    tags: Vec::new(),
                    ..self.clone()
                }
                .seen();
                let layers = inside.protocols.split_off("eth:ethertype".len());
                seen.ip_checksums.extend(inside.ip_checksums);
                seen.udp_checksums.extend(inside.udp_checksums);
                seen.protocols += &layers;
                return seen;
            }
        }
        seen.protocols += ":data";
        seen
    }
}

/// Frames, and what they are to be made of.
#[derive(Default)]
struct Evidence(Vec<(Vec<u8>, Shape)>);

impl Evidence {
    fn add(&mut self, frame: Vec<u8>, shape: Shape) {
        self.0.push((frame, shape));
    }

    /// Gives `packet` to the program, which is to make `shape` of it.
    fn exchange(&mut self, gateway: &mut Gateway, packet: &Packet, shape: Shape) {
        let frame = packet.frame();
        let (verdict, out) = gateway.send(EXT, &frame);
        assert_eq!(verdict, Verdict::Redirected, "{packet:?}");
        self.add(frame, Shape::of(packet));
        self.add(out, shape);
    }

    /// tshark finds just that, and nothing wrong; `count` frames.
    fn judge(self, count: usize) {
        let folder = tempfile::tempdir().unwrap();
        let capture = folder.path().join("frames.pcap");
        let (frames, shapes): (Vec<_>, Vec<_>) = self.0.into_iter().unzip();
        write(&capture, &frames);
        let seen = dissect(&capture);
        assert_eq!((seen.len(), shapes.len()), (count, count));
        for ((seen, shape), frame) in seen.iter().zip(shapes).zip(frames) {
            assert_eq!(*seen, shape.seen(), "{frame:02x?}");
        }
    }
}

/// The next trigger for `session`, as it comes to the gateway.
fn trigger(session: &mut Session, from_v6: bool, payload: &[u8]) -> Packet {
    session.sequence += 1;
    let server = Datagram::to_gateway(from_v6, Vec::new());
    let message = Message {
        magic: [0xF5, 0x50, 0x53],
        version: 1,
        flags: 0,
        token_generation: session.image.token_generation,
        payload_length: None,
        session: session.image.id.to_u64(),
        sequence: session.sequence,
        key: *session.image.key,
        tag_error: 0,
        payload: payload.to_vec(),
    };
    Packet {
        macs: [EXT_MAC, SERVER_MAC],
        ..Packet::plain(0, server.source, server.destination, message)
    }
}

/// What is to become of `packet`, without tags and tunnels.
fn delivered(packet: &Packet, session: &Session) -> Shape {
    Shape {
        v6: session.is_v6(),
        payload: packet.message.bytes(),
        // IPv6 has to have one.
        has_no_checksum: Shape::of(packet).has_no_checksum && !session.is_v6(),
        ..Shape::default()
    }
}

const PROVIDER: [u8; 2] = [0x88, 0xA8];

const fn customer(id: u8) -> [u8; 4] {
    // With a priority, which is no part of the identifier.
    [0x81, 0x00, 0x60, id]
}

const fn provider(id: u8) -> [u8; 4] {
    [PROVIDER[0], PROVIDER[1], 0, id]
}

fn tag_stacks() -> [Vec<[u8; 4]>; 4] {
    [
        vec![],
        vec![customer(100)],
        vec![provider(7), customer(100)],
        vec![customer(7), customer(100)],
    ]
}

#[test]
fn vlan_tags_are_taken_off_and_put_on() {
    Gateway::run(|gateway| {
        let vlans = [[0, 0], [7, 0], [30, 8]];
        let out: [Vec<[u8; 4]>; 3] = [
            vec![],
            vec![[0x81, 0, 0, 7]],
            vec![provider(30), [0x81, 0, 0, 8]],
        ];
        let mut gateway = gateway.restarted_with(|settings| {
            settings.realms = vlans
                .map(|vlan| Realm {
                    name: "any".to_owned(),
                    interface: INT.to_owned(),
                    routers: Vec::new(),
                    link: Some(RealmLink {
                        router_mac: DEVICE_MAC,
                        vlan,
                    }),
                })
                .to_vec();
        });
        let mut evidence = Evidence::default();
        let mut slot = 0;
        for (realm, out) in out.into_iter().enumerate() {
            for device in DEVICES {
                slot += 1;
                let mut session = Session::new(slot, device);
                session.image.realm = Some(realm);
                let mut session = session.installed(&mut gateway);
                for from_v6 in [false, true] {
                    for tags in tag_stacks() {
                        let packet = Packet {
                            tags,
                            ..trigger(&mut session, from_v6, b"by VLAN")
                        };
                        let shape = Shape {
                            tags: out.clone(),
                            ..delivered(&packet, &session)
                        };
                        evidence.exchange(&mut gateway, &packet, shape);
                    }
                }
            }
        }
        evidence.judge(3 * 2 * 2 * 4 * 2);
    });
}

const HOP_BY_HOP: u8 = 0;
const OPTIONS: u8 = 60;

/// An extension header of `8 * units` bytes, all of it padding (`PadN`, RFC 8200, 4.2).
fn padding(kind: u8, units: usize) -> Extension {
    let mut body = vec![0; units * 8 - 2];
    body[..2].copy_from_slice(&[1, units as u8 * 8 - 4]);
    Extension {
        kind,
        body,
        length: None,
    }
}

#[test]
fn extension_headers_are_gone_and_families_are_crossed() {
    Gateway::run(|mut gateway| {
        let mut evidence = Evidence::default();
        for (slot, device) in (1..).zip(DEVICES) {
            let mut session = Session::new(slot, device).installed(&mut gateway);
            for chain in [
                &[(HOP_BY_HOP, 1)][..],
                &[(OPTIONS, 1)],
                &[(HOP_BY_HOP, 1), (OPTIONS, 2)],
                &[(HOP_BY_HOP, 2), (OPTIONS, 1), (OPTIONS, 1)],
            ] {
                for tags in tag_stacks() {
                    let extensions = chain.iter().map(|&(kind, units)| padding(kind, units));
                    let packet = Packet {
                        tags,
                        extensions: extensions.collect(),
                        ..trigger(&mut session, true, b"behind options")
                    };
                    let shape = delivered(&packet, &session);
                    evidence.exchange(&mut gateway, &packet, shape);
                }
            }
            for length in [0, 1, 7, 8, 9, 1199, MAX_PAYLOAD_LEN] {
                let payload: Vec<_> = (0..length).map(|at| at as u8).collect();
                for from_v6 in [false, true] {
                    let packet = trigger(&mut session, from_v6, &payload);
                    let shape = delivered(&packet, &session);
                    evidence.exchange(&mut gateway, &packet, shape);
                }
                let packet = Packet {
                    udp_checksum: packet::Checksum::Is(0),
                    ..trigger(&mut session, false, &payload)
                };
                let shape = delivered(&packet, &session);
                evidence.exchange(&mut gateway, &packet, shape);
            }
        }
        evidence.judge(2 * (4 * 4 + 7 * 3) * 2);
    });
}

#[test]
fn what_is_in_tunnels_is_as_right_as_what_is_around_it() {
    Gateway::run(|gateway| {
        let mut gateway = gateway.restarted_with(|settings| {
            settings.gtpu = Gtpu {
                ipv4: Some("10.64.0.1".parse().unwrap()),
                ipv6: Some("fd00:64::1".parse().unwrap()),
            };
        });
        let mut evidence = Evidence::default();
        let mut slot = 0;
        for (outer_v6, peer) in [(false, "10.64.0.2"), (true, "fd00:64::2")] {
            for device in ["192.168.77.7:7000", "[fd77::7]:7000"] {
                slot += 1;
                let teid = 0xFEED_0000 + slot;
                let mut session = Session::new(slot, device);
                session.image.tunnel = Some(Tunnel {
                    peer: peer.parse().unwrap(),
                    teid,
                });
                let mut session = session.installed(&mut gateway);
                for payload in [&b""[..], b"x", &[7; 1199], &[7; 1200]] {
                    let mut packets = vec![
                        trigger(&mut session, false, payload),
                        trigger(&mut session, true, payload),
                    ];
                    packets.push(Packet {
                        udp_checksum: packet::Checksum::Is(0),
                        ..trigger(&mut session, false, payload)
                    });
                    for packet in packets {
                        let inside = delivered(&packet, &session);
                        // Around what has none, there is one only where IPv6 demands it.
                        let outer = if inside.has_no_checksum && !outer_v6 {
                            Checksum::Absent
                        } else {
                            Checksum::Good
                        };
                        let shape = Shape {
                            tunnel: Some((outer_v6, teid, outer)),
                            ..inside
                        };
                        evidence.exchange(&mut gateway, &packet, shape);
                    }
                }
            }
        }
        evidence.judge(2 * 2 * 4 * 3 * 2);
    });
}

#[test]
fn acknowledgements_go_back_the_way_the_trigger_came() {
    Gateway::run(|mut gateway| {
        let policy = Policy {
            return_acks: true,
            ..Policy::default()
        };
        gateway.dataplane.set_policy(1, &policy).unwrap();
        let mut evidence = Evidence::default();
        for (slot, device) in (1..).zip(DEVICES) {
            let mut session = Session::new(slot, device);
            session.image.policy = 1;
            let mut session = session.installed(&mut gateway);
            for from_v6 in [false, true] {
                for tags in tag_stacks() {
                    let mut packet = trigger(&mut session, from_v6, b"");
                    packet.tags = tags.clone();
                    packet.message.flags = 1;
                    let shape = delivered(&packet, &session);
                    evidence.exchange(&mut gateway, &packet, shape);

                    let mut ack = packet.message;
                    ack.flags = 2;
                    let payload = ack.bytes();
                    let ack = Packet {
                        macs: [INT_MAC, DEVICE_MAC],
                        ..Packet::plain(1, session.image.device, session.image.source, ack)
                    };
                    let (verdict, out) = gateway.send(INT, &ack.frame());
                    assert_eq!(verdict, Verdict::AckReturned);
                    evidence.add(ack.frame(), Shape::of(&ack));
                    let returned = Shape {
                        tags,
                        v6: from_v6,
                        payload,
                        ..Shape::default()
                    };
                    evidence.add(out, returned);
                }
            }
        }
        evidence.judge(2 * 2 * 4 * 4);
    });
}

/// What tshark says of a frame in which one bit was turned.
#[test]
fn tshark_would_have_told() {
    Gateway::run(|gateway| {
        let mut gateway = gateway.restarted_with(|settings| {
            settings.gtpu.ipv6 = Some("fd00:64::1".parse().unwrap());
        });
        let teid = 0x0102_0304;
        let mut session = Session::new(1, "192.168.77.7:7000");
        session.image.tunnel = Some(Tunnel {
            peer: "fd00:64::2".parse().unwrap(),
            teid,
        });
        let mut session = session.installed(&mut gateway);
        let packet = trigger(&mut session, true, b"in a tunnel");
        let (_, good) = gateway.send(EXT, &packet.frame());
        let inside = ETHERNET + IPV6 + UDP + 8;
        let plain = Packet {
            tags: vec![customer(3)],
            extensions: vec![padding(OPTIONS, 1)],
            ..trigger(&mut session, true, b"with options")
        }
        .frame();
        let turned = |frame: &[u8], at: usize, bits: u8| {
            let mut frame = frame.to_vec();
            frame[at] ^= bits;
            frame
        };
        let (sound, bad) = (Checksum::Good, Checksum::Bad);
        // Checksums of IPv4, then of UDP, outside and inside; whether there is anything else to say.
        let rows: [(&str, Vec<u8>, &[_], &[_], bool); 9] = [
            ("nothing", good.clone(), &[sound], &[sound, sound], false),
            (
                "the payload",
                turned(&good, good.len() - 1, 1),
                &[sound],
                &[bad, bad],
                true,
            ),
            (
                "the inner checksum",
                turned(&good, inside + IPV4 + 6, 1),
                &[sound],
                &[bad, bad],
                true,
            ),
            (
                "the inner TTL",
                turned(&good, inside + 8, 1),
                &[bad],
                &[bad, sound],
                true,
            ),
            (
                "the outer checksum",
                turned(&good, ETHERNET + IPV6 + 6, 1),
                &[sound],
                &[bad, sound],
                true,
            ),
            (
                "the tunnel's identifier",
                turned(&good, inside - 1, 1),
                &[sound],
                &[bad, sound],
                true,
            ),
            (
                "the inner version",
                turned(&good, inside, 0x70),
                &[],
                &[bad],
                true,
            ),
            ("nothing, with options", plain.clone(), &[], &[sound], false),
            (
                "the length of the options",
                turned(&plain, ETHERNET + 4 + IPV6 + 1, 8),
                &[],
                &[],
                true,
            ),
        ];
        let folder = tempfile::tempdir().unwrap();
        let capture = folder.path().join("frames.pcap");
        write(&capture, &rows.each_ref().map(|row| row.1.clone()));
        let seen = dissect(&capture);
        assert_eq!(seen.len(), rows.len());
        for (seen, (what, _, ip, udp, complains)) in seen.iter().zip(rows) {
            let checksums = (&seen.ip_checksums[..], &seen.udp_checksums[..]);
            assert_eq!(checksums, (ip, udp), "{what}: {seen:?}");
            assert_eq!(!seen.complaints.is_empty(), complains, "{what}: {seen:?}");
        }
        assert_eq!(seen[0].teids, [teid]);
        assert_eq!(seen[5].teids, [teid ^ 1]);
    });
}
