//! What frames look like on both sides of a competitor.

use super::plan::{HEADERS_LEN, Lane, Sink};
use crate::datagram::{Datagram, SERVER_MAC, SERVER_PORT, Session};
use crate::gateway::{
    DEVICE_MAC, EXT_MAC, Gateway, INT_MAC, ONE_ARMED_MAC, TRIGGER_PORT, sh, sources,
};
use anyhow::Result;
use push_common::wire::{MAGIC, VERSION};
use push_ctl::dataplane::{Policy, Rate};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;

/// Port of devices.
const DEVICE_PORT: u16 = 7000;
/// Of the tokens of all sessions, see [`Session::new`].
const TOKEN_GENERATION: u8 = 7;
/// The policy that sessions have: a rate that is checked, and never reached.
const POLICY: u16 = 1;
/// The first UDP port of a competitor that tells sessions apart by port.
pub(crate) const FIRST_PORT: u16 = 20_000;

/// Where devices are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// Behind the other NIC.
    Through,
    /// Behind the NIC that triggers come in by.
    Back,
}

/// From what a frame is when it comes in to what it is to be when it goes out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Route {
    pub(crate) shape: Shape,
    /// Frames are to come out as they went in.
    pub(crate) untouched: bool,
    /// Sessions are told apart by UDP port.
    pub(crate) port_by_slot: bool,
    /// Devices see the server as the sender.
    pub(crate) keeps_source: bool,
    /// The hop limit that devices see.
    pub(crate) hop_limit: u8,
}

impl Route {
    /// As push delivers.
    pub(crate) const fn of_push(shape: Shape) -> Self {
        Self {
            shape,
            untouched: false,
            port_by_slot: false,
            keeps_source: false,
            hop_limit: 63,
        }
    }

    /// Through a program that changes nothing: frames are sent as push would deliver them.
    pub(crate) const fn untouched(shape: Shape) -> Self {
        Self {
            untouched: true,
            ..Self::of_push(shape)
        }
    }

    fn delivered(self, payload_len: usize) -> Datagram {
        let (from, to) = match self.shape {
            Shape::Through => (INT_MAC, DEVICE_MAC),
            Shape::Back => (EXT_MAC, ONE_ARMED_MAC),
        };
        let source = if self.keeps_source {
            let SocketAddr::V4(server) = sent(payload_len).source else {
                unreachable!("triggers are sent by IPv4");
            };
            SocketAddr::V4(server)
        } else {
            sources()[0]
        };
        Datagram {
            macs: (from, to),
            source,
            destination: SocketAddrV4::new(device(self.shape, 0), DEVICE_PORT).into(),
            hop_limit: self.hop_limit,
            payload: vec![0; payload_len],
        }
    }

    /// What the generator begins with; of its numbers, all are still to be set.
    pub(crate) fn lane(self, payload_len: usize) -> Lane {
        let mut datagram = if self.untouched {
            self.delivered(payload_len)
        } else {
            sent(payload_len)
        };
        if self.port_by_slot {
            datagram.destination.set_port(FIRST_PORT);
        }
        let frame = datagram.frame();
        let [magic_0, magic_1, magic_2] = MAGIC;
        let trailer = u16::try_from(payload_len - 40).unwrap_or(0).to_be_bytes();
        let trigger = [
            magic_0,
            magic_1,
            magic_2,
            VERSION,
            0,
            TOKEN_GENERATION,
            trailer[0],
            trailer[1],
        ];
        // The pseudo-header: addresses, protocol, length; then ports, length, and the first word of the trigger.
        let udp_len = [frame[38], frame[39]];
        let summed = [
            &frame[26..34],
            &[0, 17],
            &udp_len,
            &frame[34..40],
            &trigger[..],
        ]
        .concat();
        let words = summed.as_chunks::<2>().0.iter();
        Lane {
            headers: words_of(&frame),
            trigger: u64::from_ne_bytes(trigger),
            udp_sum: words.map(|&word| u64::from(u16::from_ne_bytes(word))).sum(),
            port_by_slot: self.port_by_slot.into(),
            ..Lane::default()
        }
    }

    /// What the sink is to see; of its numbers, all are still to be set.
    pub(crate) fn sink(self, payload_len: usize) -> Sink {
        let frame = self.delivered(payload_len).frame();
        // All but identification, fragment and checksum of the IPv4 header, and the device's address.
        let mut mask = [0xFF; HEADERS_LEN];
        for at in [18, 19, 20, 21, 24, 25, 30, 31, 32, 33] {
            mask[at] = 0;
        }
        Sink {
            headers: words_of(&frame),
            masks: words_of(&mask),
            device: device(self.shape, 0).into(),
            device_mask: if self.untouched { 0 } else { u32::MAX },
            length: frame.len() as u64,
            ..Sink::default()
        }
    }
}

/// A trigger as servers send it.
fn sent(payload_len: usize) -> Datagram {
    let datagram = Datagram::to_gateway(false, vec![0; payload_len]);
    assert_eq!(datagram.macs, (SERVER_MAC, EXT_MAC));
    assert_eq!(datagram.source.port(), SERVER_PORT);
    assert_eq!(datagram.destination.port(), TRIGGER_PORT);
    datagram
}

/// What is in front of the UDP checksum.
fn words_of(frame: &[u8]) -> [u64; 5] {
    let mut words = frame.as_chunks::<8>().0.iter();
    std::array::from_fn(|_| words.next().map_or(0, |&word| u64::from_ne_bytes(word)))
}

/// The address of the device of a session.
pub(crate) fn device(shape: Shape, slot: u32) -> Ipv4Addr {
    let first: u32 = match shape {
        Shape::Through => Ipv4Addr::new(10, 128, 0, 0).into(),
        Shape::Back => Ipv4Addr::new(10, 96, 0, 0).into(),
    };
    (first + slot).into()
}

/// The session in a slot, as generator and devices know it.
pub(crate) fn session(shape: Shape, slot: u32) -> Session {
    let device = SocketAddrV4::new(device(shape, slot), DEVICE_PORT);
    let mut session = Session::new(slot, &device.to_string());
    session.image.policy = POLICY;
    session
}

/// Routes to all devices; the kernel knows the routers' MAC addresses.
///
/// IPv6 is off: the kernel would send a word on its own now and then, from any CPU, which would take frames that are
/// on their way with it there.
pub(crate) fn lay_routes() {
    sh("sysctl -qw net.ipv6.conf.all.disable_ipv6=1");
    sh("ip route add 10.128.0.0/9 via 10.64.0.2; ip route add 10.96.0.0/11 via 198.51.100.7");
}

/// Puts sessions into the gateway's table.
pub(crate) fn install(gateway: &mut Gateway, shape: Shape, count: u32) -> Result<()> {
    let rate = Rate {
        interval: Duration::from_nanos(1),
        burst: u32::MAX,
    };
    let policy = Policy {
        rate: Some(rate),
        ..Policy::default()
    };
    gateway.dataplane.set_policy(POLICY, &policy)?;
    for slot in 1..=count {
        gateway.dataplane.install(&session(shape, slot).image)?;
    }
    Ok(())
}
