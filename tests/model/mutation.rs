//! What is made wrong in a frame: field by field, and byte by byte.

use super::gateway::Gateway;
use super::packet::{Checksum, Extension, Packet};
use super::random::Random;
use super::traffic::{SHORTEST_FRAME, tag};
use super::world::{BOTH, EXT, INT, SERVERS};
use push_common::replay::SEQUENCE_BITS;
use push_common::tag::TagKey;
use std::net::SocketAddr;

/// Changes one thing, and leaves the rest right: what is signed is signed as it is then.
pub(crate) fn change(random: &mut Random, gateway: &Gateway, packet: &mut Packet) {
    match random.weighted(&[20, 8, 14, 8, 8, 12, 12, 8, 5, 5]) {
        0 => length(random, packet),
        1 => link(random, packet),
        2 => ip(random, packet),
        3 if packet.is_v6() => extensions(random, packet),
        3 | 4 => checksums(random, packet),
        5 => message(random, packet),
        6 => authentication(random, packet),
        7 => payload(random, packet),
        8 => ends(random, gateway, packet),
        _behind => padding(random, packet),
    }
}

/// Changes bytes of a frame, whatever they are.
pub(crate) fn damage(random: &mut Random, frame: &mut Vec<u8>) {
    let near_the_front = frame.len().min(130);
    match random.below(7) {
        0 => frame.truncate(SHORTEST_FRAME + random.below(frame.len() + 1 - SHORTEST_FRAME)),
        1 => {
            // Where a header ends, or nearly.
            let ends = [14, 18, 22, 34, 42, 54, 62, 82, 102];
            let end = random.pick(&ends) + random.below(3) - 1;
            frame.truncate(end.max(SHORTEST_FRAME));
        }
        2 => {
            let at = random.below(near_the_front);
            frame[at] ^= 1 << random.below(8);
        }
        3 => {
            let at = random.below(near_the_front);
            frame[at] = random.byte();
        }
        4 => {
            let at = random.below(near_the_front - 1);
            let value = boundary(random, 20);
            frame[at..at + 2].copy_from_slice(&value.to_be_bytes());
        }
        5 => {
            let at = random.below(near_the_front);
            let length = 1 + random.below(8);
            frame.splice(at..at, random.vec(length));
        }
        _missing => {
            let at = random.below(near_the_front);
            let end = (at + 1 + random.below(8)).min(frame.len());
            frame.drain(at..end);
        }
    }
}

/// An extension header of this kind that is in order.
pub(crate) fn extension(random: &mut Random, kind: u8) -> Extension {
    let length = match random.weighted(&[70, 20, 8, 2]) {
        0 => 0,
        1 => 1,
        2 => 2 + random.below(6),
        _long => 40,
    };
    let mut body = random.vec(6 + 8 * length);
    let segments_left = &mut body[1];
    *segments_left = 0;
    Extension {
        kind,
        body,
        length: None,
    }
}

/// A value that lengths go wrong at.
fn boundary(random: &mut Random, right: usize) -> u16 {
    let right = right as u16;
    let values = [
        0,
        1,
        7,
        8,
        19,
        20,
        27,
        28,
        right.wrapping_sub(1),
        right.wrapping_add(1),
        right.wrapping_sub(8),
        right.wrapping_add(8),
        right.wrapping_mul(2),
        right.swap_bytes(),
        0x7FFF,
        0x8000,
        0xFFFF,
        random.next() as u16,
    ];
    *random.pick(&values)
}

fn length(random: &mut Random, packet: &mut Packet) {
    match random.below(5) {
        0 => packet.ip_length = Some(boundary(random, packet.right_ip_length())),
        1 => packet.udp_length = Some(boundary(random, packet.right_udp_length())),
        2 => {
            let right = packet.message.payload.len();
            packet.message.payload_length = Some(boundary(random, right));
        }
        3 => {
            // IP and UDP agree, but what they agree about is wrong.
            let udp = boundary(random, packet.right_udp_length());
            let in_front = packet.right_ip_length() - packet.right_udp_length();
            packet.udp_length = Some(udp);
            packet.ip_length = Some(udp.wrapping_add(in_front as u16));
        }
        _header => {
            if packet.extensions.is_empty() {
                packet.extensions.push(extension(random, 60));
            }
            let at = random.below(packet.extensions.len());
            let right = (packet.extensions[at].body.len() - 6) / 8;
            packet.extensions[at].length = Some(boundary(random, right) as u8);
        }
    }
}

fn link(random: &mut Random, packet: &mut Packet) {
    match random.below(6) {
        0 => packet.tags.clear(),
        1 | 2 => {
            let at = random.below(packet.tags.len() + 1);
            packet.tags.insert(at, tag(random));
        }
        3 => packet.tags = (0..3).map(|_| tag(random)).collect(),
        4 => {
            // The other family's EtherType among them.
            let types = [0x0800, 0x86DD, 0x8100, 0x88A8, 0x9100, 0x0806];
            packet.ethertype = Some(*random.pick(&types));
        }
        _macs => packet.macs = [random.bytes(), random.bytes()],
    }
}

fn ip(random: &mut Random, packet: &mut Packet) {
    match random.below(7) {
        0 => packet.first_byte = *random.pick(&[0x44, 0x46, 0x4F, 0x55, 0x65, 0x00, 0xFF, 0x60]),
        1 => packet.fragment = *random.pick(&[1, 0x2000, 0x1FFF, 0x2FFF, 0x8000, 0xE000]),
        2 | 3 => packet.hop_limit = *random.pick(&[0, 1, 1, 2, 255]),
        4 => packet.protocol = *random.pick(&[0, 43, 44, 60, 6, 50, 51, 59, 255]),
        5 => packet.class = random.byte(),
        _id => packet.identification = *random.pick(&[0, 1, 0xFFFF]),
    }
}

fn extensions(random: &mut Random, packet: &mut Packet) {
    match random.below(6) {
        0 => {
            let count = 3 + random.below(3);
            packet.extensions = (0..count)
                .map(|_| {
                    let kind = *random.pick(&[0, 43, 60]);
                    extension(random, kind)
                })
                .collect();
        }
        1 => {
            let mut routing = extension(random, 43);
            routing.body[1] = *random.pick(&[1, 2, 255]);
            packet.extensions.push(routing);
        }
        2 => {
            let at = random.below(packet.extensions.len() + 1);
            let fragment = extension(random, 44);
            packet.extensions.insert(at, fragment);
        }
        3 => {
            let kind = *random.pick(&[51, 135, 139, 140, 253, 17]);
            packet.extensions.push(extension(random, kind));
        }
        4 => {
            // As long as one can be, with all of it there.
            let mut long = extension(random, 60);
            long.body = random.vec(6 + 8 * 255);
            packet.extensions.push(long);
        }
        _none => packet.extensions.clear(),
    }
}

fn checksums(random: &mut Random, packet: &mut Packet) {
    let error = *random.pick(&[1, 0x100, 0x7FFF, 0xFFFE]);
    match random.below(6) {
        0 => packet.ip_checksum = Checksum::Off(error),
        1 => packet.ip_checksum = Checksum::Is(*random.pick(&[0, 0xFFFF])),
        2 => packet.udp_checksum = Checksum::Is(0),
        3 => packet.udp_checksum = Checksum::Is(*random.pick(&[1, 0xFFFE, 0xFFFF])),
        _off => packet.udp_checksum = Checksum::Off(error),
    }
}

fn message(random: &mut Random, packet: &mut Packet) {
    let message = &mut packet.message;
    match random.below(5) {
        0 => {
            let at = random.below(3);
            message.magic[at] ^= 1 << random.below(8);
        }
        1 => message.version = *random.pick(&[0, 2, 0x81, 0xFF]),
        2 => message.flags = *random.pick(&[0, 1, 2, 3, 4, 8, 0x12, 0x14, 0x10, 0xF1, 0xFF]),
        3 => message.flags ^= 1 << random.below(8),
        _other => message.flags |= *random.pick(&[0x10, 0x20]),
    }
}

fn authentication(random: &mut Random, packet: &mut Packet) {
    let beyond = 1_u64 << SEQUENCE_BITS;
    let message = &mut packet.message;
    match random.below(8) {
        0 | 1 => message.tag_error = 1 << random.below(128),
        2 => message.key = TagKey::from_bytes(random.bytes()),
        3 => {
            let step = *random.pick(&[1, 0xFF, 0xFE, 0x80]);
            message.token_generation = message.token_generation.wrapping_add(step);
        }
        4 => message.session ^= 1 << random.below(64),
        5 => message.session |= u64::from(random.next() as u32) << 32,
        6 => message.sequence ^= 1 << random.below(64),
        _beyond => {
            let sequences = [beyond, beyond + 1, beyond << 1, 1 << 63, u64::MAX];
            message.sequence = *random.pick(&sequences);
        }
    }
}

fn payload(random: &mut Random, packet: &mut Packet) {
    let lengths = [0, 1, 2, 8, 1199, 1200, 1201, 1202, 1300, random.below(1301)];
    let length = *random.pick(&lengths);
    packet.message.payload = random.vec(length);
}

fn ends(random: &mut Random, gateway: &Gateway, packet: &mut Packet) {
    match random.below(6) {
        0 => packet.nic = *random.pick(&[EXT, INT, BOTH]),
        1 => packet.destination.set_port(random.next() as u16),
        2 => {
            let port = *random.pick(&[0, 1, 5050, 5683, 0xFFFF]);
            packet.destination.set_port(port);
        }
        3 => packet.source.set_port(*random.pick(&[0, 5050, 0xFFFF])),
        4 => {
            // From a server or a gateway of the same family.
            let hosts = SERVERS.map(|server| SocketAddr::new(server.parse().unwrap(), 5050));
            let same: Vec<_> = hosts
                .into_iter()
                .filter(|host| host.is_ipv6() == packet.is_v6())
                .collect();
            packet.source = *random.pick(&same);
        }
        _flipped => {
            let destination = match packet.destination {
                SocketAddr::V4(v4) => SocketAddr::new(
                    (v4.ip().to_bits() ^ 1 << random.below(32))
                        .to_be_bytes()
                        .into(),
                    v4.port(),
                ),
                SocketAddr::V6(v6) => SocketAddr::new(
                    (v6.ip().to_bits() ^ 1 << random.below(128))
                        .to_be_bytes()
                        .into(),
                    v6.port(),
                ),
            };
            packet.destination = destination;
        }
    }
    debug_assert!(packet.nic < gateway.nics.len());
}

fn padding(random: &mut Random, packet: &mut Packet) {
    let length = match random.weighted(&[50, 40, 10]) {
        0 => 1 + random.below(4),
        1 => random.below(200),
        _long => random.below(1500),
    };
    packet.padding = random.vec(length);
}
