//! Any framing in, any framing out, through `BPF_PROG_TEST_RUN`: VLAN tags, IPv6 extension headers, the
//! other IP version, realms, tunnels, jumbo frames.
//!
//! etherparse builds what comes in and what is to come out.

use crate::datagram::{DEVICES, Datagram, ETHERNET, IPV4, IPV6, ONE_ARMED, Session, changed};
use crate::gateway::{DEVICE_MAC, EXT, EXT_MAC, Gateway, INT_MAC, sh};
use etherparse::{LaxPacketHeaders, NetHeaders, TransportHeader, UdpHeader};
use push_common::verdict::Verdict;
use push_common::wire::MAX_PAYLOAD_LEN;
use push_ctl::dataplane::{Gtpu, Realm, RealmLink, Tunnel};
use std::net::IpAddr;

/// `frame` with `tags` (EtherType and control) behind its MAC addresses.
pub(crate) fn tagged(frame: &[u8], tags: &[(u16, u16)]) -> Vec<u8> {
    let mut out = frame[..12].to_vec();
    for (ethertype, control) in tags {
        out.extend(ethertype.to_be_bytes());
        out.extend(control.to_be_bytes());
    }
    out.extend(&frame[12..]);
    out
}

pub(crate) const VLAN: u16 = 0x8100;
const PROVIDER: u16 = 0x88A8;

#[test]
fn triggers_come_out_of_vlans() {
    Gateway::run(|mut gateway| {
        let stacks: [&[(u16, u16)]; 4] = [
            &[(VLAN, 100)],
            &[(VLAN, 0xE064)],
            &[(PROVIDER, 7), (VLAN, 100)],
            &[(VLAN, 7), (VLAN, 100)],
        ];
        for (slot, device) in (1..).zip(DEVICES) {
            let mut session = Session::new(slot, device).installed(&mut gateway);
            for tags in stacks {
                let sent = session.datagram(b"from a VLAN");
                let (verdict, out) = gateway.send(EXT, &tagged(&sent.frame(), tags));
                assert_eq!(verdict, Verdict::Redirected, "{tags:x?}");
                let expected = session.delivered(&sent, (INT_MAC, DEVICE_MAC)).frame();
                assert_eq!(out, expected, "{tags:x?}");
            }
            let frame = session.datagram(b"x").frame();
            let three = tagged(&frame, &[(PROVIDER, 1), (VLAN, 2), (VLAN, 3)]);
            assert_eq!(gateway.send(EXT, &three), (Verdict::NotIp, three));
            for length in ETHERNET..ETHERNET + 8 {
                let cut = &tagged(&frame, &[(PROVIDER, 1), (VLAN, 2)])[..length];
                assert_eq!(gateway.send(EXT, cut), (Verdict::Truncated, cut.to_vec()));
            }
        }
    });
}

#[test]
fn triggers_go_into_vlans_as_the_kernels_interfaces_say() {
    Gateway::run(|gateway| {
        let vlan =
            "ip link add link int name probe type vlan id 9 2>/dev/null && ip link del probe";
        if sh(&format!("{vlan} && echo there || true")).is_empty() {
            println!("skipped: this kernel has no VLAN interfaces (CONFIG_VLAN_8021Q)");
            return;
        }
        sh(
            "ip link add link int name int.5 type vlan id 5; ip link add link int name outer type vlan proto 802.1ad id 300; ip link add link outer name inner type vlan id 9",
        );
        sh(
            "for nic in int.5 outer inner; do sysctl -qw net.ipv6.conf.$nic.disable_ipv6=0; ip link set $nic up; done",
        );
        sh(
            "ip addr add 10.70.0.1/24 dev int.5; ip addr add fd00:70::1/64 dev int.5 nodad; ip addr add 10.71.0.1/24 dev inner",
        );
        sh(
            "for device in 10.70.0.2 fd00:70::2; do ip neigh add $device lladdr 02:00:00:00:02:02 dev int.5; done; ip neigh add 10.71.0.2 lladdr 02:00:00:00:02:02 dev inner",
        );
        let mut gateway = gateway.restarted_with(|_| {});
        let ways: [(&str, &[(u16, u16)]); 3] = [
            ("10.70.0.2:7000", &[(VLAN, 5)]),
            ("[fd00:70::2]:7000", &[(VLAN, 5)]),
            ("10.71.0.2:7000", &[(PROVIDER, 300), (VLAN, 9)]),
        ];
        for (slot, (device, tags)) in (1..).zip(ways) {
            let mut session = Session::new(slot, device).installed(&mut gateway);
            for into in [&[][..], &[(VLAN, 77)], &[(PROVIDER, 1), (VLAN, 2)]] {
                let sent = session.datagram(b"into a VLAN");
                let (verdict, out) = gateway.send(EXT, &tagged(&sent.frame(), into));
                assert_eq!(verdict, Verdict::Redirected, "{device}");
                let expected = session.delivered(&sent, (INT_MAC, DEVICE_MAC)).frame();
                assert_eq!(out, tagged(&expected, tags), "{device} {into:x?}");
            }
        }
    });
}

/// `frame` with IPv6 extension headers: what they are, and their length in units of 8 bytes.
fn with_extensions(frame: &[u8], headers: &[(u8, u8)]) -> Vec<u8> {
    let mut out = frame.to_vec();
    let mut at = ETHERNET + IPV6;
    let mut next_header_at = ETHERNET + 6;
    for &(header, units) in headers {
        let next = std::mem::replace(&mut out[next_header_at], header);
        let mut bytes = vec![0; usize::from(units) * 8];
        (bytes[0], bytes[1]) = (next, units - 1);
        out.splice(at..at, bytes);
        next_header_at = at;
        at += usize::from(units) * 8;
    }
    let payload = (out.len() - ETHERNET - IPV6) as u16;
    changed(&out, ETHERNET + 4, &payload.to_be_bytes())
}

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const OPTIONS: u8 = 60;

#[test]
fn extension_headers_end_at_the_gateway() {
    Gateway::run(|mut gateway| {
        let mut session = Session::new(1, DEVICES[1]).installed(&mut gateway);
        let chains: [&[(u8, u8)]; 5] = [
            &[(HOP_BY_HOP, 1)],
            &[(OPTIONS, 4)],
            &[(HOP_BY_HOP, 1), (OPTIONS, 2), (ROUTING, 1), (OPTIONS, 1)],
            &[(OPTIONS, 32)],
            &[(OPTIONS, 16), (OPTIONS, 16)],
        ];
        for chain in chains {
            let sent = session.datagram(b"behind options");
            let frame = with_extensions(&sent.frame(), chain);
            let (verdict, out) = gateway.send(EXT, &frame);
            assert_eq!(verdict, Verdict::Redirected, "{chain:?}");
            let expected = session.delivered(&sent, (INT_MAC, DEVICE_MAC)).frame();
            assert_eq!(out, expected, "{chain:?}");
        }
        let frame = session.datagram(b"x").frame();
        let mut segments_left = with_extensions(&frame, &[(ROUTING, 1)]);
        segments_left[ETHERNET + IPV6 + 3] = 1;
        let refused = [
            (
                with_extensions(&frame, &[(OPTIONS, 1); 5]),
                Verdict::UnusualIpHeader,
            ),
            (
                with_extensions(&frame, &[(OPTIONS, 33)]),
                Verdict::UnusualIpHeader,
            ),
            (segments_left, Verdict::UnusualIpHeader),
            (
                with_extensions(&frame, &[(OPTIONS, 1), (44, 1)]),
                Verdict::Fragment,
            ),
            (
                with_extensions(&frame, &[(OPTIONS, 1), (51, 1)]),
                Verdict::NotUdp,
            ),
        ];
        for (frame, expected) in refused {
            assert_eq!(gateway.send(EXT, &frame), (expected, frame));
        }
    });
}

#[test]
fn a_trigger_crosses_to_the_other_ip_version() {
    Gateway::run(|mut gateway| {
        let mut slot = 0;
        for (v6, devices) in [
            (false, [DEVICES[1], ONE_ARMED[1]]),
            (true, [DEVICES[0], ONE_ARMED[0]]),
        ] {
            for device in devices {
                slot += 1;
                let mut session = Session::new(slot, device).installed(&mut gateway);
                let (verdict, macs) = if ONE_ARMED.contains(&device) {
                    (Verdict::SentBack, (EXT_MAC, crate::gateway::ONE_ARMED_MAC))
                } else {
                    (Verdict::Redirected, (INT_MAC, DEVICE_MAC))
                };
                for length in [0, 1, 7, 8, 9, 255, 1199, MAX_PAYLOAD_LEN] {
                    let sent = Datagram::to_gateway(v6, session.trigger(&vec![7; length]));
                    assert_eq!(
                        gateway.send(EXT, &sent.frame()),
                        (verdict, session.delivered(&sent, macs).frame()),
                        "{length} bytes to {device}"
                    );
                }
                // From nothing, the checksum that IPv6 demands is made.
                if !v6 {
                    for length in [0, 1, 8, 13, MAX_PAYLOAD_LEN] {
                        let sent = Datagram::to_gateway(v6, session.trigger(&vec![7; length]));
                        let unsummed = changed(&sent.frame(), ETHERNET + IPV4 + 6, &[0, 0]);
                        assert_eq!(
                            gateway.send(EXT, &unsummed).1,
                            session.delivered(&sent, macs).frame(),
                            "{length} bytes without checksum to {device}"
                        );
                    }
                }
            }
        }
    });
}

/// Three realms with the same device address: on a NIC of their own, behind a router there, and in a VLAN of the
/// NIC that leads to devices of none.
#[test]
fn realms_may_have_the_same_device_address() {
    Gateway::run(|gateway| {
        sh(
            "ip link add int2 address 02:00:00:00:03:01 type veth peer name int2-peer; ip link set int2-peer arp off up; ip link set int2 up; ip addr add 10.80.0.1/24 dev int2",
        );
        sh(
            "for last in 2 9; do ip neigh add 10.80.0.$last lladdr 02:00:00:00:03:0$last dev int2; done",
        );
        let realm = |interface: &str, routers: &[&str], link| Realm {
            name: "any".to_owned(),
            interface: interface.to_owned(),
            routers: routers
                .iter()
                .map(|router| router.parse().unwrap())
                .collect(),
            link,
        };
        let given = |vlan| {
            Some(RealmLink {
                router_mac: DEVICE_MAC,
                vlan,
            })
        };
        let mut gateway = gateway.restarted_with(|settings| {
            let mut int2 = settings.nics[1].clone();
            int2.name = "int2".to_owned();
            settings.nics.push(int2);
            settings.realms = vec![
                realm("int2", &[], None),
                realm("int2", &["10.80.0.9"], None),
                realm("int", &[], given([7, 0])),
                realm("int", &[], given([300, 8])),
                realm("int", &[], given([0, 0])),
            ];
        });
        let int2_mac = [2, 0, 0, 0, 3, 1];
        let ways: [(_, _, &[(u16, u16)]); 5] = [
            (int2_mac, [2, 0, 0, 0, 3, 2], &[]),
            (int2_mac, [2, 0, 0, 0, 3, 9], &[]),
            (INT_MAC, DEVICE_MAC, &[(VLAN, 7)]),
            (INT_MAC, DEVICE_MAC, &[(PROVIDER, 300), (VLAN, 8)]),
            (INT_MAC, DEVICE_MAC, &[]),
        ];
        for (realm, (from, to, tags)) in ways.into_iter().enumerate() {
            let mut session = Session::new(realm as u32 + 1, "10.80.0.2:7000");
            session.image.realm = Some(realm);
            let mut session = session.installed(&mut gateway);
            for into in [&[][..], &[(VLAN, 77)], &[(PROVIDER, 1), (VLAN, 2)]] {
                let sent = session.datagram(b"to its own realm");
                let (verdict, out) = gateway.send(EXT, &tagged(&sent.frame(), into));
                assert_eq!(verdict, Verdict::Redirected, "realm {realm}");
                let expected = session.delivered(&sent, (from, to)).frame();
                assert_eq!(out, tagged(&expected, tags), "realm {realm}, {into:x?}");
            }
        }
        // A neighbour that isn't known in a realm isn't the kernel's business: it would look for it elsewhere.
        let mut unknown = Session::new(9, "10.80.0.77:7000");
        unknown.image.realm = Some(0);
        let mut unknown = unknown.installed(&mut gateway);
        let frame = unknown.datagram(b"").frame();
        assert_eq!(gateway.send(EXT, &frame), (Verdict::NextHopMissing, frame));
    });
}

/// What is inside of a frame from one tunnel end to the other, checked from the outside in.
fn inside_tunnel(frame: &[u8], teid: u32, ends: [&str; 2], has_checksum: bool) -> Vec<u8> {
    let outer = LaxPacketHeaders::from_ethernet(frame).unwrap();
    assert!(outer.stop_err.is_none(), "{:?}", outer.stop_err);
    let Some(TransportHeader::Udp(udp)) = &outer.transport else {
        panic!("no UDP in {outer:?}");
    };
    assert_eq!((udp.source_port, udp.destination_port), (2152, 2152));
    let gtpu = outer.payload.slice();
    let (source, destination, sum) = match &outer.net {
        Some(NetHeaders::Ipv4(ip, _)) => {
            assert_eq!(ip.header_checksum, ip.calc_header_checksum());
            let sum = UdpHeader::calc_checksum_ipv4_raw(udp, ip.source, ip.destination, gtpu);
            (IpAddr::from(ip.source), IpAddr::from(ip.destination), sum)
        }
        Some(NetHeaders::Ipv6(ip, _)) => {
            let sum = UdpHeader::calc_checksum_ipv6_raw(udp, ip.source, ip.destination, gtpu);
            (IpAddr::from(ip.source), IpAddr::from(ip.destination), sum)
        }
        other => panic!("{other:?}"),
    };
    let ends: [IpAddr; 2] = ends.map(|end| end.parse().unwrap());
    assert_eq!([source, destination], ends);
    let expected = if has_checksum { sum.unwrap() } else { 0 };
    assert_eq!(udp.checksum, expected, "checksum of the tunnel");
    let (header, inner) = gtpu.split_at(8);
    assert_eq!(header[..2], [0x30, 255]);
    assert_eq!(header[2..4], (inner.len() as u16).to_be_bytes());
    assert_eq!(header[4..], teid.to_be_bytes());
    inner.to_vec()
}

#[test]
fn tunnels_lead_to_devices_behind_a_gtp_peer() {
    Gateway::run(|gateway| {
        let mut gateway = gateway.restarted_with(|settings| {
            settings.gtpu = Gtpu {
                ipv4: Some("10.64.0.1".parse().unwrap()),
                ipv6: Some("fd00:64::1".parse().unwrap()),
            };
        });
        let peers = [("10.64.0.1", "10.64.0.2"), ("fd00:64::1", "fd00:64::2")];
        // Nothing but the tunnel leads to these.
        let devices = ["192.168.77.7:7000", "[fd77::7]:7000"];
        let mut slot = 0;
        for (local, peer) in peers {
            for device in devices {
                for from_v6 in [false, true] {
                    slot += 1;
                    let mut session = Session::new(slot, device);
                    let teid = 0x0102_0300 + slot;
                    session.image.tunnel = Some(Tunnel {
                        peer: peer.parse().unwrap(),
                        teid,
                    });
                    let mut session = session.installed(&mut gateway);
                    for length in [0, 1, 8, 500, 1199] {
                        let sent = Datagram::to_gateway(from_v6, session.trigger(&vec![3; length]));
                        let (verdict, out) = gateway.send(EXT, &sent.frame());
                        assert_eq!(verdict, Verdict::Redirected, "{device} behind {peer}");
                        assert_eq!((&out[..6], &out[6..12]), (&DEVICE_MAC[..], &INT_MAC[..]));
                        let expected = session.delivered(&sent, (INT_MAC, DEVICE_MAC));
                        let expected = expected.frame();
                        let inside = inside_tunnel(&out, teid, [local, peer], true);
                        assert_eq!(inside, expected[ETHERNET..], "{device} behind {peer}");
                    }
                    if from_v6 || session.is_v6() {
                        continue;
                    }
                    // Without a checksum inside, there is one outside only where IPv6 demands it.
                    for length in [0, 5, 1000] {
                        let sent = session.datagram(&vec![3; length]);
                        let unsummed = changed(&sent.frame(), ETHERNET + IPV4 + 6, &[0, 0]);
                        let (_, out) = gateway.send(EXT, &unsummed);
                        inside_tunnel(&out, teid, [local, peer], peer.contains(':'));
                    }
                }
            }
        }
        // One that doesn't fit, and one whose peer isn't known yet.
        let mut long = Session::new(60, devices[0]);
        long.image.tunnel = Some(Tunnel {
            peer: "10.65.0.9".parse().unwrap(),
            teid: 1,
        });
        let mut long = long.installed(&mut gateway);
        let fits = 600 - (IPV4 + 8 + 8 + IPV4 + 8 + 40);
        let frame = long.datagram(&vec![0; fits]).frame();
        assert_eq!(gateway.send(EXT, &frame).0, Verdict::Redirected);
        let frame = long.datagram(&vec![0; fits + 1]).frame();
        assert_eq!(gateway.send(EXT, &frame), (Verdict::TooBig, frame));
        let mut unknown = Session::new(61, devices[0]);
        unknown.image.tunnel = Some(Tunnel {
            peer: "10.64.0.99".parse().unwrap(),
            teid: 1,
        });
        let mut unknown = unknown.installed(&mut gateway);
        let frame = unknown.datagram(b"").frame();
        assert_eq!(gateway.send(EXT, &frame), (Verdict::NextHopMissing, frame));
    });
}

#[test]
fn jumbo_frames_are_taken_and_do_no_harm() {
    Gateway::run(|mut gateway| {
        let mut session = Session::new(1, DEVICES[0]).installed(&mut gateway);
        let long = vec![0; 8000];
        let other_port = Datagram {
            destination: "198.51.100.1:5051".parse().unwrap(),
            ..Datagram::to_gateway(false, long.clone())
        };
        let frame = other_port.frame();
        assert_eq!(gateway.send(EXT, &frame), (Verdict::NotTrigger, frame));
        let mut trigger = session.trigger(&long[..MAX_PAYLOAD_LEN]);
        trigger.extend(&long);
        trigger[6..8].copy_from_slice(&((MAX_PAYLOAD_LEN + 8000) as u16).to_be_bytes());
        let frame = Datagram::to_gateway(false, trigger).frame();
        assert_eq!(gateway.send(EXT, &frame), (Verdict::PayloadTooLong, frame));
        // Padding that reaches into a second buffer stays behind the datagram.
        let sent = session.datagram(b"short");
        let padded = [sent.frame(), long].concat();
        let (verdict, out) = gateway.send(EXT, &padded);
        assert_eq!(verdict, Verdict::Redirected);
        let expected = session.delivered(&sent, (INT_MAC, DEVICE_MAC)).frame();
        assert_eq!(out[..expected.len()], expected);
        assert_eq!(out.len(), padded.len());
    });
}
