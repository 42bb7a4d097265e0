//! Triggers as frames, and what is to become of them, built by etherparse.

use crate::gateway::{EXT_MAC, Gateway, TRIGGER_PORT, sources};
use etherparse::PacketBuilder;
use push_common::tag::TagKey;
use push_common::wire::{Flags, SessionId, TriggerHeader};
use push_ctl::dataplane::SessionImage;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use zerocopy::IntoBytes;

/// Devices that are reached by the other NIC.
pub(crate) const DEVICES: [&str; 2] = ["10.64.0.2:7000", "[fd00:64::2]:7000"];
/// Devices that are reached by the NIC that triggers come in by.
pub(crate) const ONE_ARMED: [&str; 2] = ["198.51.100.7:7000", "[2001:db8:51::7]:7000"];

pub(crate) const ETHERNET: usize = 14;
pub(crate) const IPV4: usize = 20;
pub(crate) const IPV6: usize = 40;
pub(crate) const UDP: usize = 8;
pub(crate) const HEADER: usize = 40;
pub(crate) const SERVER_MAC: [u8; 6] = [2, 0, 0, 0, 1, 9];
pub(crate) const SERVER_PORT: u16 = 40_000;

/// A datagram, from which etherparse makes a frame with the right lengths and checksums.
#[derive(Clone)]
pub(crate) struct Datagram {
    pub(crate) macs: ([u8; 6], [u8; 6]),
    pub(crate) source: SocketAddr,
    pub(crate) destination: SocketAddr,
    pub(crate) hop_limit: u8,
    pub(crate) payload: Vec<u8>,
}

impl Datagram {
    /// From an application server to the gateway.
    pub(crate) fn to_gateway(v6: bool, payload: Vec<u8>) -> Self {
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

    pub(crate) fn frame(&self) -> Vec<u8> {
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
pub(crate) struct Session {
    pub(crate) image: SessionImage,
    pub(crate) sequence: u64,
}

impl Session {
    pub(crate) fn new(slot: u32, device: &str) -> Self {
        let device: SocketAddr = device.parse().unwrap();
        let image = SessionImage {
            id: SessionId::new(slot, 0x1000_0000 + slot),
            device,
            source: sources()[usize::from(device.is_ipv6())],
            realm: None,
            tunnel: None,
            policy: 0,
            token_generation: 7,
            key: TagKey::from_bytes([slot as u8; 16]).into(),
            previous_key: None,
            window: [0; 4],
            expires_in: Duration::from_secs(3600),
        };
        Self {
            image,
            sequence: 1000,
        }
    }

    pub(crate) fn installed(self, gateway: &mut Gateway) -> Self {
        gateway.dataplane.install(&self.image).unwrap();
        self
    }

    pub(crate) fn is_v6(&self) -> bool {
        self.image.device.is_ipv6()
    }

    /// The next trigger for it.
    pub(crate) fn trigger(&mut self, payload: &[u8]) -> Vec<u8> {
        self.sequence += 1;
        self.trigger_at(self.sequence, payload)
    }

    pub(crate) fn trigger_at(&self, sequence: u64, payload: &[u8]) -> Vec<u8> {
        self.flagged_trigger_at(sequence, Flags::NONE, payload)
    }

    pub(crate) fn flagged_trigger_at(
        &self,
        sequence: u64,
        flags: Flags,
        payload: &[u8],
    ) -> Vec<u8> {
        let image = &self.image;
        let header = TriggerHeader::sign(
            *image.key,
            flags,
            image.token_generation,
            image.id,
            sequence,
            payload,
        )
        .unwrap();
        [header.as_bytes(), payload].concat()
    }

    /// A datagram with the next trigger.
    pub(crate) fn datagram(&mut self, payload: &[u8]) -> Datagram {
        Datagram::to_gateway(self.is_v6(), self.trigger(payload))
    }

    /// What the device is to get of `sent`.
    pub(crate) fn delivered(&self, sent: &Datagram, macs: ([u8; 6], [u8; 6])) -> Datagram {
        Datagram {
            macs,
            source: self.image.source,
            destination: self.image.device,
            hop_limit: sent.hop_limit - 1,
            payload: sent.payload.clone(),
        }
    }

    pub(crate) fn packets(&self, gateway: &Gateway) -> u64 {
        gateway
            .dataplane
            .session_counters(self.image.id)
            .map_or(0, |counters| counters.packets)
    }
}

pub(crate) fn changed(frame: &[u8], at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    frame[at..at + bytes.len()].copy_from_slice(bytes);
    frame
}

/// The same as [`changed`], with the checksum of an IPv4 header without VLAN tags as it has to be then.
pub(crate) fn changed_ip(frame: &[u8], at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut frame = changed(frame, at, bytes);
    if frame[12..14] == [0x08, 0x00] {
        let (header, _) = etherparse::Ipv4Header::from_slice(&frame[ETHERNET..]).unwrap();
        frame[ETHERNET + 10..ETHERNET + 12]
            .copy_from_slice(&header.calc_header_checksum().to_be_bytes());
    }
    frame
}
