//! Triggers flow on one CPU while the session they are for is changed on another one.

use super::{AtEnd, Course, Ledger, REDIRECT, Shared, TRIGGER_AT, race};
use crate::datagram::{Datagram, Session, UDP};
use crate::gateway::{DEVICE_MAC, EXT, Gateway, INT_MAC, runtime, sh};
use etherparse::{IpHeaders, IpNumber, Ipv4Header, Ipv6Header, PacketBuilder};
use push_common::tag::TagKey;
use push_common::verdict::Verdict;
use push_ctl::dataplane::{Dataplane, Gtpu, Policy, Prober, SessionImage, Tunnel};
use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::process::{Command, Stdio};
use std::time::Duration;

/// Changes between one look at everything and the next.
const ROUND: u64 = 2500;
const SLOT: u32 = 5;
const OTHER_MAC: [u8; 6] = [2, 0, 0, 0, 2, 3];
/// The policies of both places, and their code points.
const POLICIES: [(u16, u8); 2] = [(11, 10), (12, 46)];
const GTPU_PORT: u16 = 2152;

#[test]
fn a_trigger_arrives_whole_at_the_old_or_the_new_place() {
    for pair in PAIRS {
        moves(pair, Course::short(2 * ROUND));
    }
}

#[test]
fn no_trigger_is_lost_while_tokens_rotate() {
    rotations(Course::short(5000));
}

#[test]
fn a_trigger_goes_whole_the_old_or_the_new_way_when_routes_change() {
    routes(Course::short(200));
}

/// A place where the device can be: its address, the tunnel to it, the MAC address of what is in front
/// of it.
#[derive(Clone, Copy)]
pub(super) struct Place {
    device: &'static str,
    tunnel: Option<(&'static str, u32)>,
    mac: [u8; 6],
}

/// Places between which the device moves. At each, everything is different that can be.
pub(super) const PAIRS: [[Place; 2]; 4] = {
    const V4: Place = Place {
        device: "10.64.0.2:7000",
        tunnel: None,
        mac: DEVICE_MAC,
    };
    const OTHER_V4: Place = Place {
        device: "10.64.0.3:7411",
        tunnel: None,
        mac: OTHER_MAC,
    };
    const V6: Place = Place {
        device: "[fd00:64::3]:7611",
        tunnel: None,
        mac: OTHER_MAC,
    };
    const TUNNEL: Place = Place {
        device: "192.168.77.7:7000",
        tunnel: Some(("10.64.0.2", 0x0102_0304)),
        mac: DEVICE_MAC,
    };
    const OTHER_TUNNEL: Place = Place {
        device: "[fd77::7]:7611",
        tunnel: Some(("fd00:64::3", 0xA0B0_C0D0)),
        mac: OTHER_MAC,
    };
    [
        [V4, OTHER_V4],
        [V4, V6],
        [TUNNEL, OTHER_TUNNEL],
        [V6, TUNNEL],
    ]
};

impl Place {
    fn image(&self, session: &Session, policy: u16) -> SessionImage {
        let device: SocketAddr = self.device.parse().unwrap();
        SessionImage {
            device,
            source: crate::gateway::sources()[usize::from(device.is_ipv6())],
            tunnel: self.tunnel.map(|(peer, teid)| Tunnel {
                peer: peer.parse().unwrap(),
                teid,
            }),
            policy,
            ..session.image.clone()
        }
    }

    /// The frame that a trigger is to leave in, as etherparse builds it.
    fn frame(&self, trigger: &[u8], dscp: u8) -> Vec<u8> {
        let device: SocketAddr = self.device.parse().unwrap();
        let source = crate::gateway::sources()[usize::from(device.is_ipv6())];
        let inner = ip(source, device, 63, dscp, trigger);
        let datagram = match self.tunnel {
            None => inner,
            Some((peer, teid)) => {
                let peer = SocketAddr::new(peer.parse().unwrap(), GTPU_PORT);
                let local = crate::gateway::sources()[usize::from(peer.is_ipv6())].ip();
                let mut gtpu = vec![0x30, 255];
                gtpu.extend((inner.len() as u16).to_be_bytes());
                gtpu.extend(teid.to_be_bytes());
                gtpu.extend(inner);
                ip(SocketAddr::new(local, GTPU_PORT), peer, 64, dscp, &gtpu)
            }
        };
        let is_v6 = datagram[0] >> 4 == 6;
        let ethertype: [u8; 2] = if is_v6 { [0x86, 0xDD] } else { [0x08, 0x00] };
        [&self.mac[..], &INT_MAC, &ethertype, &datagram].concat()
    }
}

/// A UDP datagram in IP.
fn ip(from: SocketAddr, to: SocketAddr, hop_limit: u8, dscp: u8, payload: &[u8]) -> Vec<u8> {
    let udp_len = (UDP + payload.len()) as u16;
    let header = match (from.ip(), to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let (from, to) = (from.octets(), to.octets());
            let mut header = Ipv4Header::new(udp_len, hop_limit, IpNumber::UDP, from, to).unwrap();
            header.dscp = dscp.try_into().unwrap();
            IpHeaders::Ipv4(header, etherparse::Ipv4Extensions::default())
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let header = Ipv6Header {
                traffic_class: dscp << 2,
                payload_length: udp_len,
                next_header: IpNumber::UDP,
                hop_limit,
                source: from.octets(),
                destination: to.octets(),
                ..Ipv6Header::default()
            };
            IpHeaders::Ipv6(header, etherparse::Ipv6Extensions::default())
        }
        mixed => panic!("{mixed:?}"),
    };
    let mut datagram = Vec::new();
    PacketBuilder::ip(header)
        .udp(from.port(), to.port())
        .write(&mut datagram, payload)
        .unwrap();
    datagram
}

/// The gateway with tunnels and all neighbours, and sessions that keep next hops in use: one that is given
/// back has to rest before it is used anew, and there are so many only.
fn prepared(gateway: Gateway) -> Gateway {
    sh(
        "for device in 10.64.0.3 fd00:64::3; do ip neigh add $device lladdr 02:00:00:00:02:03 dev int; done",
    );
    let mut gateway = gateway.restarted_with(|settings| {
        settings.gtpu = Gtpu {
            ipv4: Some("10.64.0.1".parse().unwrap()),
            ipv6: Some("fd00:64::1".parse().unwrap()),
        };
    });
    for (policy, dscp) in POLICIES {
        let policy_of = Policy {
            dscp: Some(dscp),
            ..Policy::default()
        };
        gateway.dataplane.set_policy(policy, &policy_of).unwrap();
    }
    for (slot, place) in (20..).zip(PAIRS.into_iter().flatten()) {
        let image = place.image(&Session::new(slot, "10.64.0.2:1"), 0);
        gateway.dataplane.install(&image).unwrap();
    }
    gateway
}

/// What became of triggers.
#[derive(Default)]
struct Arrivals {
    /// Whole, at each of the places.
    whole: [u64; 2],
    /// Anything else.
    mixed: u64,
    /// Nowhere.
    lost: u64,
}

/// Sends triggers until `moved` is over, and looks where they arrive. `sign` makes the one with a
/// sequence number.
fn send(
    prober: &Prober,
    sent: &Shared,
    moved: &Shared,
    places: [(Place, u8); 2],
    first: u64,
    mut sign: impl FnMut(u64) -> Vec<u8>,
) -> Arrivals {
    let mut arrivals = Arrivals::default();
    let mut out = Vec::new();
    let mut sequence = first;
    while moved.get() != u64::MAX {
        let trigger = sign(sequence);
        let frame = Datagram::to_gateway(false, trigger).frame();
        let (action, _) = prober.run(&frame, &mut out).unwrap();
        let is_at = places.map(|(place, dscp)| out == place.frame(&frame[TRIGGER_AT..], dscp));
        match (action, is_at) {
            (REDIRECT, [true, false]) => arrivals.whole[0] += 1,
            (REDIRECT, [false, true]) => arrivals.whole[1] += 1,
            (REDIRECT, _) => arrivals.mixed += 1,
            _ => arrivals.lost += 1,
        }
        sequence += 1;
        sent.set(sequence - first);
    }
    arrivals
}

/// Waits for a trigger that is sent from now on.
fn see_one(sent: &Shared) {
    // The next one to be counted may be underway already.
    sent.wait_for(sent.get() + 2);
}

/// Sum of arrivals over rounds, each of which has to be whole.
#[derive(Default)]
struct Flow {
    whole: [u64; 2],
    sent: u64,
}

impl Flow {
    fn add(&mut self, before: &Ledger, dataplane: &Dataplane, sent: u64, arrivals: &Arrivals) {
        let Arrivals { whole, mixed, lost } = arrivals;
        let verdicts = Verdict::ALL.iter().filter(|verdict| !verdict.is_delivery());
        let refused: Vec<_> = verdicts
            .map(|&verdict| (verdict.label(), before.since(dataplane, verdict)))
            .filter(|&(_, count)| count > 0)
            .collect();
        assert_eq!(
            (*mixed, *lost),
            (0, 0),
            "mixtures, lost of {sent}: {refused:?}"
        );
        assert_eq!(whole[0] + whole[1], sent);
        let frame_len = TRIGGER_AT + crate::datagram::HEADER;
        before.demand(dataplane, frame_len, &[(Verdict::Redirected, sent)]);
        self.whole[0] += whole[0];
        self.whole[1] += whole[1];
        self.sent += sent;
    }

    fn finish(&self, course: &Course) {
        let Self {
            whole: [old, new],
            sent,
        } = self;
        assert!(
            *old > 0 && *new > 0,
            "{old} at one place, {new} at the other"
        );
        course.finish(&format!(
            "{sent} triggers, {old} whole at one place, {new} whole at the other: mixed = 0, lost = 0"
        ));
    }
}

/// A course of so many moves of a device between these places.
pub(super) fn moves(pair: [Place; 2], mut course: Course) {
    Gateway::run(move |gateway| {
        let mut gateway = prepared(gateway);
        let session = Session::new(SLOT, "10.64.0.2:7000");
        let images = [0, 1].map(|index| pair[index].image(&session, POLICIES[index].0));
        let places = [0, 1].map(|index| (pair[index], POLICIES[index].1));
        gateway.dataplane.install(&images[0]).unwrap();
        let mut flow = Flow::default();
        while let Some(count) = course.next(ROUND) {
            let before = Ledger::of(&gateway.dataplane);
            let prober = gateway.dataplane.prober(EXT).unwrap();
            let (sent, moved) = (Shared::default(), Shared::default());
            let dataplane = &mut gateway.dataplane;
            let first = (1 << 20) + flow.sent;
            let (arrivals, ()) = race(
                || {
                    send(&prober, &sent, &moved, places, first, |sequence| {
                        session.trigger_at(sequence, b"")
                    })
                },
                || {
                    let _end = AtEnd(&moved);
                    for number in 1..=count {
                        dataplane.install(&images[number as usize % 2]).unwrap();
                        // Whatever else this machine does, some triggers come at each of the places.
                        if number % 17 == 0 {
                            see_one(&sent);
                        }
                    }
                },
            );
            flow.add(&before, &gateway.dataplane, sent.get(), &arrivals);
        }
        flow.finish(&course);
    });
}

/// A course of so many rotations of a token. Both places are one here, with two policies, which take turns.
pub(super) fn rotations(mut course: Course) {
    let key = |generation: u64| {
        let mut key = [0x5C; 16];
        key[..8].copy_from_slice(&generation.to_le_bytes());
        TagKey::from_bytes(key)
    };
    let place = PAIRS[0][0];
    // The session with this token, and the one before it.
    let rotated = move |generation: u64| {
        let policy = POLICIES[generation as usize % 2].0;
        let mut session = Session::new(SLOT, place.device);
        session.image.token_generation = generation as u8;
        session.image.key = key(generation).into();
        session.image.previous_key = Some(key(generation - 1).into());
        session.image.policy = policy;
        session
    };
    Gateway::run(move |gateway| {
        let mut gateway = prepared(gateway);
        let mut last = 1;
        gateway.dataplane.install(&rotated(last).image).unwrap();
        let mut flow = Flow::default();
        while let Some(count) = course.next(ROUND) {
            let before = Ledger::of(&gateway.dataplane);
            let prober = gateway.dataplane.prober(EXT).unwrap();
            let (sent, known, signed) = (Shared::default(), Shared::default(), Shared::default());
            let moved = Shared::default();
            known.set(last);
            let dataplane = &mut gateway.dataplane;
            let places = [0, 1].map(|index| (place, POLICIES[index].1));
            let first = (1 << 20) + flow.sent;
            let (arrivals, ()) = race(
                || {
                    send(&prober, &sent, &moved, places, first, |sequence| {
                        // The server signs with the last token that it knows of.
                        let generation = known.get();
                        signed.set(generation);
                        rotated(generation).trigger_at(sequence, b"")
                    })
                },
                || {
                    let _end = AtEnd(&moved);
                    for _ in 0..count {
                        // No token is rotated twice before the server knows of it.
                        signed.wait_for(last);
                        dataplane.install(&rotated(last + 1).image).unwrap();
                        last += 1;
                        known.set(last);
                    }
                },
            );
            flow.add(&before, &gateway.dataplane, sent.get(), &arrivals);
        }
        flow.finish(&course);
    });
}

/// A course of so many changes to the route to a device, which move its session to another next hop.
pub(super) fn routes(mut course: Course) {
    const MORE_SPECIFIC: &str = "10.65.0.9/32 via 10.64.0.3";
    let place = |mac| Place {
        device: "10.65.0.9:7000",
        tunnel: None,
        mac,
    };
    let places = [(place(DEVICE_MAC), 0), (place(OTHER_MAC), 0)];
    Gateway::run(move |gateway| {
        let Gateway {
            dataplane,
            settings,
            _state,
        } = prepared(gateway);
        drop(dataplane);
        // News of routes comes to the runtime that it was opened in.
        let runtime = runtime();
        let mut dataplane = runtime.block_on(Dataplane::open(settings)).unwrap();
        let session = Session::new(SLOT, places[0].0.device);
        dataplane.install(&session.image).unwrap();
        let mut ip = Command::new("ip")
            .args(["-batch", "-"])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let mut commands = ip.stdin.take().unwrap();
        let mut flow = Flow::default();
        while let Some(count) = course.next(ROUND) {
            let before = Ledger::of(&dataplane);
            let prober = dataplane.prober(EXT).unwrap();
            let (sent, moved) = (Shared::default(), Shared::default());
            let first = (1 << 20) + flow.sent;
            let mut change = |dataplane: &mut Dataplane, verb: &str| {
                writeln!(commands, "route {verb} {MORE_SPECIFIC}").unwrap();
                commands.flush().unwrap();
                let limit = Duration::from_secs(20);
                let changed = async { tokio::time::timeout(limit, dataplane.changed()).await };
                runtime
                    .block_on(changed)
                    .expect("the kernel tells of a route");
            };
            let dataplane = &mut dataplane;
            let (arrivals, ()) = race(
                || {
                    send(&prober, &sent, &moved, places, first, |sequence| {
                        session.trigger_at(sequence, b"")
                    })
                },
                || {
                    let _end = AtEnd(&moved);
                    for _ in 0..count {
                        // The session is told to refer to a new next hop.
                        change(dataplane, "add");
                        see_one(&sent);
                        // What it refers to leads the old way.
                        change(dataplane, "del");
                        see_one(&sent);
                        // And it refers to the old one again.
                        dataplane.install(&session.image).unwrap();
                    }
                },
            );
            flow.add(&before, dataplane, sent.get(), &arrivals);
        }
        drop(commands);
        assert!(ip.wait().unwrap().success());
        flow.finish(&course);
    });
}
