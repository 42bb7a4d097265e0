//! Frames made up for a gateway: most of them nearly right, so that they get far.

use super::gateway::Gateway;
use super::mutation;
use super::packet::{Checksum, Message, Packet};
use super::random::Random;
use super::world::{BOTH, EXT, INT, SERVERS, SLOTS};
use push_common::maps::SessionRecord;
use push_common::replay;
use push_common::wire::SessionId;
use std::net::{IpAddr, SocketAddr};

/// Frames that may come again.
const REMEMBERED: usize = 64;
/// `BPF_PROG_TEST_RUN` takes no shorter ones.
pub(crate) const SHORTEST_FRAME: usize = 14;
/// Longer ones don't fit in the page that `BPF_PROG_TEST_RUN` lays out, headroom and all.
const LONGEST_FRAME: usize = 3400;
const HIGHEST_SEQUENCE: u64 = (1 << replay::SEQUENCE_BITS) - 1;

/// A source of frames. What comes next follows from the seed and from what the model has made of
/// what came before.
pub(crate) struct Traffic {
    random: Random,
    seen: Vec<(usize, Vec<u8>)>,
}

impl Traffic {
    pub(crate) fn new(random: Random) -> Self {
        Self {
            random,
            seen: Vec::new(),
        }
    }

    /// The next frame, and the index of the NIC it comes in by.
    pub(crate) fn next(&mut self, gateway: &Gateway) -> (usize, Vec<u8>) {
        let random = &mut self.random;
        let (nic, mut frame) = match random.weighted(&[66, 14, 4, 4, 6, 6]) {
            0 => packet_of(random, gateway, trigger),
            1 => packet_of(random, gateway, acknowledgement),
            2 => packet_of(random, gateway, unexpected_acknowledgement),
            3 => packet_of(random, gateway, stranger),
            4 if !self.seen.is_empty() => again(random, &self.seen),
            _other => something_else(random, gateway),
        };
        if random.percent(8) {
            mutation::damage(random, &mut frame);
        }
        frame.truncate(LONGEST_FRAME);
        if frame.len() < SHORTEST_FRAME {
            frame.resize(SHORTEST_FRAME, 0);
        }
        if self.seen.len() < REMEMBERED {
            self.seen.push((nic, frame.clone()));
        } else {
            let place = random.below(REMEMBERED);
            self.seen[place] = (nic, frame.clone());
        }
        (nic, frame)
    }
}

fn packet_of(
    random: &mut Random,
    gateway: &Gateway,
    make: fn(&mut Random, &Gateway) -> Packet,
) -> (usize, Vec<u8>) {
    let mut packet = make(random, gateway);
    vary(random, &mut packet);
    for _ in 0..random.weighted(&[60, 25, 10, 5]) {
        mutation::change(random, gateway, &mut packet);
    }
    (packet.nic, packet.frame())
}

/// A trigger that would be delivered, if the gateway were in the mood.
fn trigger(random: &mut Random, gateway: &Gateway) -> Packet {
    let (slot, record) = a_session(random, gateway);
    let id = SessionId::new(slot, record.generation);
    let sequence = a_sequence(random, &record);
    let mut message = Message::trigger(id, &record, sequence);
    if random.percent(10) {
        message.token_generation = message.token_generation.wrapping_sub(1);
        if let Some(previous) = gateway.previous_keys.get(&slot) {
            message.key = previous.key;
        }
    }
    if random.percent(45) {
        message.flags |= 1;
    }
    if random.percent(30) {
        message.flags |= *random.pick(&[0x10, 0x10, 0x20, 0xF0]);
    }
    let length = payload_length(random);
    message.payload = random.vec(length);
    to_gateway(random, gateway, message)
}

fn to_gateway(random: &mut Random, gateway: &Gateway, message: Message) -> Packet {
    let nic = *random.pick(&[EXT, EXT, BOTH]);
    let server: IpAddr = random.pick(&SERVERS).parse().unwrap();
    let here = &gateway.nics[nic];
    // A server whose family this NIC doesn't take triggers of is lost; there are few.
    let to = match (server, here.ipv6) {
        (IpAddr::V4(_), _any) => IpAddr::from(here.ipv4.unwrap()),
        (IpAddr::V6(_), Some(v6)) => IpAddr::from(v6),
        (IpAddr::V6(_), None) if random.percent(20) => "2001:db8:51::1".parse().unwrap(),
        (IpAddr::V6(_), None) => {
            let mut packet = to_gateway(random, gateway, message);
            packet.macs[0] = gateway.nics[packet.nic].mac;
            return packet;
        }
    };
    let port = *random.pick(&[40_000, 1, 65_535, 5050]);
    let mut packet = Packet::plain(
        nic,
        SocketAddr::new(server, port),
        SocketAddr::new(to, gateway.trigger_port),
        message,
    );
    packet.macs = [here.mac, [2, 0, 0, 8, random.byte(), random.byte()]];
    packet
}

/// The acknowledgement of a trigger that has been delivered and asked for it.
fn acknowledgement(random: &mut Random, gateway: &Gateway) -> Packet {
    if gateway.pending.is_empty() {
        return trigger(random, gateway);
    }
    let waited_for = gateway.pending.keys();
    let &(session, sequence) = waited_for
        .clone()
        .nth(random.below(waited_for.len()))
        .unwrap();
    acknowledgement_of(random, gateway, SessionId::from_u64(session), sequence)
}

/// One of a trigger that hasn't been delivered, or not long ago.
fn unexpected_acknowledgement(random: &mut Random, gateway: &Gateway) -> Packet {
    let (slot, record) = a_session(random, gateway);
    if !gateway.next_hops.contains_key(&record.control.next_hop) {
        return trigger(random, gateway);
    }
    let sequence = a_sequence(random, &record);
    let id = SessionId::new(slot, record.generation);
    acknowledgement_of(random, gateway, id, sequence)
}

fn acknowledgement_of(
    random: &mut Random,
    gateway: &Gateway,
    session: SessionId,
    sequence: u64,
) -> Packet {
    let nic = *random.pick(&[INT, INT, BOTH]);
    let mut packet = Packet::acknowledgement(gateway, nic, session, sequence);
    packet.macs = [
        gateway.nics[nic].mac,
        [2, 0, 0, 9, random.byte(), random.byte()],
    ];
    if random.percent(10)
        && let Some(previous) = gateway.previous_keys.get(&session.slot())
    {
        packet.message.token_generation = packet.message.token_generation.wrapping_sub(1);
        packet.message.key = previous.key;
    }
    packet
}

/// A trigger for a session that isn't there.
fn stranger(random: &mut Random, gateway: &Gateway) -> Packet {
    let mut packet = trigger(random, gateway);
    let id = SessionId::from_u64(packet.message.session);
    let (slot, generation) = (id.slot(), id.generation());
    let other = [
        SessionId::new(slot, generation ^ 1),
        SessionId::new(slot, 0),
        SessionId::new(SLOTS, generation),
        SessionId::new(u32::MAX, generation),
        SessionId::new(slot | 0x100_0000, generation),
        SessionId::new(random.next() as u32 % SLOTS, generation),
        SessionId::new(random.next() as u32 % SLOTS, 0),
    ];
    packet.message.session = random.pick(&other).to_u64();
    packet
}

/// A frame that came before, perhaps by another NIC.
fn again(random: &mut Random, seen: &[(usize, Vec<u8>)]) -> (usize, Vec<u8>) {
    let (nic, frame) = random.pick(seen).clone();
    let nic = if random.percent(90) {
        nic
    } else {
        *random.pick(&[EXT, INT, BOTH])
    };
    (nic, frame)
}

/// What else comes by.
fn something_else(random: &mut Random, gateway: &Gateway) -> (usize, Vec<u8>) {
    let mut packet = trigger(random, gateway);
    match random.below(7) {
        0 => packet.ethertype = Some(*random.pick(&[0x0806, 0x8847, 0x9100, 0x88CC, 0, 0xFFFF])),
        1 => packet.protocol = *random.pick(&[6, 1, 58, 50, 51, 132, 136, 59]),
        2 => packet.destination.set_port(53),
        3 => packet.nic = INT,
        4 => {
            let length = SHORTEST_FRAME + random.below(200);
            return (packet.nic, random.vec(length));
        }
        5 => {
            // Random bytes behind headers that are in order so far.
            let mut frame = packet.frame();
            let at = *random.pick(&[14, 18, 34, 42, 54, 62]);
            let length = random.below(100);
            frame.truncate(at);
            frame.extend(random.vec(length));
            return (packet.nic, frame);
        }
        _first => {
            packet.fragment = *random.pick(&[0x2000, 0x2001, 1, 0x1FFF, 0x6000]);
            if packet.is_v6() {
                packet.extensions.push(mutation::extension(random, 44));
            }
        }
    }
    vary(random, &mut packet);
    (packet.nic, packet.frame())
}

/// What may be one way or another without anything being wrong.
fn vary(random: &mut Random, packet: &mut Packet) {
    if random.percent(30) {
        for _ in 0..=random.below(2) {
            packet.tags.push(tag(random));
        }
    }
    if random.percent(50) {
        packet.class = random.byte();
        packet.flow_label = random.next() as u32 & 0xF_FFFF;
        packet.identification = random.next() as u16;
        packet.fragment = *random.pick(&[0, 0x4000, 0x8000, 0xC000]);
        packet.hop_limit = *random.pick(&[2, 3, 63, 255]);
    }
    if packet.is_v6() && random.percent(25) {
        for _ in 0..=random.below(4) {
            let kind = *random.pick(&[0, 43, 60]);
            packet.extensions.push(mutation::extension(random, kind));
        }
    }
    if !packet.is_v6() && random.percent(15) {
        packet.udp_checksum = Checksum::Is(0);
    }
    if random.percent(25) {
        let length = random.below(60);
        packet.padding = random.vec(length);
    }
}

pub(crate) fn tag(random: &mut Random) -> [u8; 4] {
    let [high, low] = *random.pick(&[[0x81, 0x00], [0x81, 0x00], [0x88, 0xA8]]);
    [high, low, random.byte(), random.byte()]
}

/// Any that is live, with its record as packets see it.
fn a_session(random: &mut Random, gateway: &Gateway) -> (u32, SessionRecord) {
    let live: Vec<u32> = gateway.sessions.keys().copied().collect();
    let slot = *random.pick(&live);
    (slot, gateway.current(slot))
}

/// A sequence: mostly the next one, at times one at an edge of the window or of the space.
fn a_sequence(random: &mut Random, record: &SessionRecord) -> u64 {
    let newest = newest(record);
    let sequence = match random.weighted(&[800, 60, 60, 60, 4]) {
        0 => newest + 1 + random.next() % 3,
        1 => newest.saturating_sub(random.next() % 140),
        2 => {
            let lags = [0, 1, 31, 32, 33, 63, 64, 95, 96, 97, 127, 128, 129, 1000];
            newest.saturating_sub(*random.pick(&lags))
        }
        3 => newest + random.pick(&[31, 32, 33, 95, 96, 127, 128, 129, 10_000]),
        _far => *random.pick(&[0, HIGHEST_SEQUENCE, HIGHEST_SEQUENCE - 40]),
    };
    // Beyond the space is a mutation.
    sequence.min(HIGHEST_SEQUENCE)
}

/// The newest sequence that a session's window has seen; 0 if none.
fn newest(record: &SessionRecord) -> u64 {
    let seen = (0_u64..).zip(record.replay).filter_map(|(index, word)| {
        let offset = (word as u32).checked_ilog2()?;
        Some((word >> 32) << 7 | index << 5 | u64::from(offset))
    });
    seen.max().unwrap_or(0)
}

fn payload_length(random: &mut Random) -> usize {
    match random.weighted(&[30, 40, 18, 6, 6]) {
        0 => 0,
        1 => random.below(64),
        2 => random.below(1201),
        3 => *random.pick(&[7, 8, 9, 15, 16, 17, 1151, 1152, 1199, 1200]),
        _long => *random.pick(&[511, 512, 513, 1024, 1100]),
    }
}
