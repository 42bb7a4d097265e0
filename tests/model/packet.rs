//! Frames described field by field, so that each field can be made wrong by itself, and the rest
//! still be right.

use super::datagram::{checksum, moved, udp_checksum};
use super::gateway::{Gateway, socket};
use push_common::maps::{SessionControl, SessionRecord};
use push_common::tag::{self, TagKey};
use push_common::wire::SessionId;
use std::net::{IpAddr, SocketAddr};

/// A UDP datagram in a frame.
#[derive(Clone, Debug)]
pub(crate) struct Packet {
    /// Index of the NIC it comes in by.
    pub(crate) nic: usize,
    /// Destination and source.
    pub(crate) macs: [[u8; 6]; 2],
    /// VLAN tags as on the wire, the outer one first.
    pub(crate) tags: Vec<[u8; 4]>,
    /// That of IP, unless another one is given.
    pub(crate) ethertype: Option<u16>,
    /// Version and header length of IPv4; of IPv6, the high half is the version.
    pub(crate) first_byte: u8,
    pub(crate) source: SocketAddr,
    /// Of the same family.
    pub(crate) destination: SocketAddr,
    pub(crate) class: u8,
    pub(crate) flow_label: u32,
    pub(crate) identification: u16,
    /// Flags and offset of IPv4.
    pub(crate) fragment: u16,
    pub(crate) hop_limit: u8,
    /// Protocol of IPv4, or of what follows the extension headers of IPv6.
    pub(crate) protocol: u8,
    pub(crate) extensions: Vec<Extension>,
    /// Total length of IPv4 or payload length of IPv6; what is right, unless given.
    pub(crate) ip_length: Option<u16>,
    pub(crate) ip_checksum: Checksum,
    pub(crate) udp_length: Option<u16>,
    pub(crate) udp_checksum: Checksum,
    pub(crate) message: Message,
    /// What is behind the datagram.
    pub(crate) padding: Vec<u8>,
    /// Bytes after which the frame ends, whatever it says.
    pub(crate) end: Option<usize>,
}

/// An extension header of IPv6.
#[derive(Clone, Debug)]
pub(crate) struct Extension {
    pub(crate) kind: u8,
    /// All but the next header and the length: 6 bytes and any number of eights.
    pub(crate) body: Vec<u8>,
    /// In eights, not counting the first; what is right, unless given.
    pub(crate) length: Option<u8>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Checksum {
    Right,
    Is(u16),
    /// Off the right one by this, which isn't a multiple of 65,535.
    Off(u16),
}

impl Checksum {
    fn of(self, right: u16) -> u16 {
        match self {
            Self::Right => right,
            Self::Is(value) => value,
            Self::Off(error) => moved(right, u32::from(error)),
        }
    }
}

/// A trigger or an acknowledgement.
#[derive(Clone, Debug)]
pub(crate) struct Message {
    pub(crate) magic: [u8; 3],
    pub(crate) version: u8,
    pub(crate) flags: u8,
    pub(crate) token_generation: u8,
    /// What is right, unless given.
    pub(crate) payload_length: Option<u16>,
    pub(crate) session: u64,
    pub(crate) sequence: u64,
    /// It is signed with.
    pub(crate) key: TagKey,
    /// Bits of the tag that are wrong.
    pub(crate) tag_error: u128,
    pub(crate) payload: Vec<u8>,
}

impl Message {
    /// A trigger without payload, as the server of this session would make it.
    pub(crate) fn trigger(session: SessionId, record: &SessionRecord, sequence: u64) -> Self {
        Self {
            magic: [0xF5, 0x50, 0x53],
            version: 1,
            flags: 0,
            token_generation: record.control.token_generation,
            payload_length: None,
            session: session.to_u64(),
            sequence,
            key: record.key,
            tag_error: 0,
            payload: Vec::new(),
        }
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let payload_length = self.payload_length.unwrap_or(self.payload.len() as u16);
        let mut signed = self.magic.to_vec();
        signed.extend([self.version, self.flags, self.token_generation]);
        signed.extend(payload_length.to_be_bytes());
        signed.extend(self.session.to_be_bytes());
        signed.extend(self.sequence.to_be_bytes());
        let signed: [u8; 24] = signed.try_into().unwrap();
        let tag = u128::from_be_bytes(tag::tag(self.key, &signed, &self.payload));
        let tag = (tag ^ self.tag_error).to_be_bytes();
        [&signed[..], &tag, &self.payload].concat()
    }
}

impl Packet {
    /// Without anything unusual.
    pub(crate) fn plain(
        nic: usize,
        source: SocketAddr,
        destination: SocketAddr,
        message: Message,
    ) -> Self {
        Self {
            nic,
            macs: [[2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 9]],
            tags: Vec::new(),
            ethertype: None,
            first_byte: if source.is_ipv6() { 0x60 } else { 0x45 },
            source,
            destination,
            class: 0,
            flow_label: 0,
            identification: 0,
            fragment: 0x4000,
            hop_limit: 64,
            protocol: 17,
            extensions: Vec::new(),
            ip_length: None,
            ip_checksum: Checksum::Right,
            udp_length: None,
            udp_checksum: Checksum::Right,
            message,
            padding: Vec::new(),
            end: None,
        }
    }

    /// A device's acknowledgement of the trigger with this sequence.
    pub(crate) fn acknowledgement(
        gateway: &Gateway,
        nic: usize,
        session: SessionId,
        sequence: u64,
    ) -> Self {
        let record = gateway.current(session.slot());
        let next_hop = gateway.next_hops[&record.control.next_hop];
        let is_v6 = record.control.has(SessionControl::IPV6);
        let device = socket(&record.device_address, record.control.device_port, is_v6);
        let registered_with = socket(&next_hop.source, next_hop.source_port, is_v6);
        let message = Message {
            flags: 2,
            ..Message::trigger(session, &record, sequence)
        };
        Self::plain(nic, device, registered_with, message)
    }

    pub(crate) fn is_v6(&self) -> bool {
        self.source.is_ipv6()
    }

    /// What the length of IP is if none is given.
    pub(crate) fn right_ip_length(&self) -> usize {
        let extensions: usize = self
            .extensions
            .iter()
            .map(|extension| 2 + extension.body.len())
            .sum();
        let header = if self.is_v6() { extensions } else { 20 };
        header + self.right_udp_length()
    }

    /// What the length of UDP is if none is given.
    pub(crate) fn right_udp_length(&self) -> usize {
        8 + 40 + self.message.payload.len()
    }

    pub(crate) fn frame(&self) -> Vec<u8> {
        let mut frame = self.macs.concat();
        frame.extend(self.tags.iter().flatten());
        let ethertype = if self.is_v6() { 0x86DD } else { 0x0800 };
        frame.extend(self.ethertype.unwrap_or(ethertype).to_be_bytes());
        frame.extend(self.ip_header());
        frame.extend(self.udp());
        frame.extend(&self.padding);
        frame.truncate(self.end.unwrap_or(usize::MAX));
        frame
    }

    fn ip_header(&self) -> Vec<u8> {
        let length = self.ip_length.unwrap_or(self.right_ip_length() as u16);
        match (self.source.ip(), self.destination.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let mut header = vec![self.first_byte, self.class];
                header.extend(length.to_be_bytes());
                header.extend(self.identification.to_be_bytes());
                header.extend(self.fragment.to_be_bytes());
                header.extend([self.hop_limit, self.protocol, 0, 0]);
                header.extend(from.octets());
                header.extend(to.octets());
                let checksum = self.ip_checksum.of(checksum(&header));
                header[10..12].copy_from_slice(&checksum.to_be_bytes());
                header
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                let first = u32::from(self.first_byte >> 4) << 28
                    | u32::from(self.class) << 20
                    | self.flow_label & 0xF_FFFF;
                let kinds = self.extensions.iter().map(|extension| extension.kind);
                let mut kinds = kinds.chain([self.protocol]);
                let mut header = first.to_be_bytes().to_vec();
                header.extend(length.to_be_bytes());
                header.extend(kinds.next());
                header.push(self.hop_limit);
                header.extend(from.octets());
                header.extend(to.octets());
                for (extension, next_header) in self.extensions.iter().zip(kinds) {
                    let right = (extension.body.len() - 6) / 8;
                    header.push(next_header);
                    header.push(extension.length.unwrap_or(right as u8));
                    header.extend(&extension.body);
                }
                header
            }
            mixed => panic!("{mixed:?}"),
        }
    }

    fn udp(&self) -> Vec<u8> {
        let payload = self.message.bytes();
        let right = udp_checksum(self.source, self.destination, &payload);
        let length = self.udp_length.unwrap_or(self.right_udp_length() as u16);
        let words = [
            self.source.port(),
            self.destination.port(),
            length,
            self.udp_checksum.of(right),
        ];
        let mut udp = words.map(u16::to_be_bytes).concat();
        udp.extend(payload);
        udp
    }
}
