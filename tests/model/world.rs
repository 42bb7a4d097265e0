//! Gateways made up from a seed: sessions, next hops, egresses and policies of all kinds.
//!
//! What becomes of a frame doesn't depend on when exactly it comes: sessions end an hour from now or
//! have ended, and rates and windows are longer than any run. So the model, whose clock is not quite
//! the program's, can be right.

use super::gateway::{Gateway, Nic, address_bytes};
use super::random::Random;
use push_common::activity::MAX_WINDOW_TICKS;
use push_common::maps::{
    Count, EgressRecord, Hop, MAX_NEXT_HOPS, MAX_POLICIES, NextHopRecord, PolicyRecord,
    PreviousKey, ROUND_TRIP_CLASSES, SessionControl, SessionRecord, SourcePrefix, VERDICT_SLOTS,
    tick_of,
};
use push_common::rate::tolerance_ns;
use push_common::replay;
use push_common::tag::TagKey;
use std::collections::BTreeMap;
use std::net::IpAddr;

/// Slots of the session table.
pub(crate) const SLOTS: u32 = 64;
pub(crate) const TRIGGER_PORT: u16 = 5050;

/// Indices of NICs: towards servers, towards devices, and both at once.
pub(crate) const EXT: usize = 0;
pub(crate) const INT: usize = 1;
pub(crate) const BOTH: usize = 2;

/// Addresses of application servers.
pub(crate) const SERVERS: [&str; 6] = [
    "198.51.100.10",
    "192.0.2.7",
    "10.1.2.3",
    "2001:db8:51::10",
    "2001:db8:7::1",
    "fd00::9",
];

const DEVICES: [&str; 8] = [
    "10.64.0.2",
    "10.64.0.3",
    "10.255.255.254",
    "192.168.1.1",
    "fd00:64::2",
    "fd00:64::3",
    "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff",
    "fe80::1",
];

/// Whether the kernel has a route to a device, in the namespace that the program is in.
pub(crate) fn kernel_forwards_to(device: IpAddr) -> bool {
    match device {
        IpAddr::V4(v4) => v4.octets()[..2] == [10, 64],
        IpAddr::V6(v6) => v6.segments()[..4] == [0xFD00, 0x64, 0, 0],
    }
}

/// What devices register with. The last of IPv4 is where triggers are sent to, too.
const REGISTERED_WITH: [(&str, u16); 7] = [
    ("10.64.0.1", 5683),
    ("10.64.0.1", 5684),
    ("203.0.113.1", 5683),
    ("203.0.113.1", TRIGGER_PORT),
    ("fd00:64::1", 5683),
    ("fd00:64::1", 61_616),
    ("2001:db8:51::1", 5683),
];

const TUNNEL_ENDS: [&str; 4] = ["172.16.0.1", "172.16.9.9", "fd00:6::1", "fd00:6::9"];

/// Index and length of prefixes from which policies permit triggers.
const PREFIXES: [(&str, u32); 9] = [
    ("0.0.0.0", 0),
    ("198.51.100.0", 24),
    ("198.51.100.10", 32),
    ("192.0.0.0", 7),
    ("192.0.2.6", 32),
    ("::", 0),
    ("2001:db8::", 32),
    ("2001:db8:51::10", 128),
    ("2001:db8:51::11", 128),
];

const NEXT_HOPS: usize = 48;
const HOUR_NS: u64 = 3_600_000_000_000;

/// The NICs, of which only the indices of their interfaces depend on where they are.
pub(crate) fn nics(interfaces: [u32; 3]) -> [Nic; 3] {
    let nic = |index: usize, name, ipv4: Option<&str>, ipv6: Option<&str>, takes_acks| Nic {
        name,
        mac: [2, 0, 0, 0, index as u8 + 1, 1],
        interface: interfaces[index],
        ipv4: ipv4.map(|address| address.parse().unwrap()),
        ipv6: ipv6.map(|address| address.parse().unwrap()),
        takes_acks,
        by_verdict: [Count::default(); VERDICT_SLOTS],
        round_trips: [0; ROUND_TRIP_CLASSES],
    };
    [
        nic(
            EXT,
            "ext",
            Some("198.51.100.1"),
            Some("2001:db8:51::1"),
            false,
        ),
        nic(INT, "int", None, None, true),
        nic(BOTH, "both", Some("203.0.113.1"), None, true),
    ]
}

/// Makes up all that a gateway knows, but for what it has counted on its NICs, which is nothing.
pub(crate) fn gateway(random: &mut Random, interfaces: [u32; 3], now_ns: u64) -> Gateway {
    let next_hops = next_hops(random);
    let (policies, allowed) = policies(random);
    let mut gateway = Gateway {
        nics: nics(interfaces),
        trigger_port: TRIGGER_PORT,
        sessions: BTreeMap::new(),
        staged: None,
        previous_keys: BTreeMap::new(),
        egresses: egresses(interfaces),
        next_hops,
        policies,
        allowed,
        pending: BTreeMap::new(),
    };
    for slot in 0..SLOTS {
        if random.percent(85) {
            let record = session(random, &gateway, now_ns);
            if random.percent(40) {
                let previous = previous_key(random, &record);
                gateway.previous_keys.insert(slot, previous);
            }
            gateway.sessions.insert(slot, record);
        }
    }
    if random.percent(50) {
        stage(random, &mut gateway);
    }
    gateway
}

/// Every interface, without and with tags.
fn egresses(interfaces: [u32; 3]) -> BTreeMap<u8, EgressRecord> {
    let customer = [0x81, 0x00, 0x00, 0x64];
    let provider = [0x88, 0xA8, 0xE0, 0xC8];
    let zero = [0; 4];
    let tags = [
        (0, [zero, zero]),
        (1, [customer, zero]),
        (2, [provider, customer]),
    ];
    let all = interfaces.iter().flat_map(|&interface| {
        tags.iter().map(move |&(tag_count, tags)| EgressRecord {
            mac: [2, 0, 0, 0, interface as u8, 1, 0, 0],
            interface,
            tag_count,
            tags,
        })
    });
    // The first and the last index there is are used, too.
    [0, 1, 2, 3, 4, 5, 6, 7, 255].into_iter().zip(all).collect()
}

/// Those with an even index are for devices with IPv4 addresses.
fn next_hops(random: &mut Random) -> BTreeMap<u16, NextHopRecord> {
    let mut next_hops = BTreeMap::new();
    let last = [MAX_NEXT_HOPS as u16 - 2, MAX_NEXT_HOPS as u16 - 1];
    for index in (0..NEXT_HOPS as u16).chain(last) {
        let registered_with = if index % 2 == 0 {
            random.pick(&REGISTERED_WITH[..4])
        } else {
            random.pick(&REGISTERED_WITH[4..])
        };
        let is_outer_v6 = random.percent(50);
        let ends = &TUNNEL_ENDS[usize::from(is_outer_v6) * 2..][..2];
        let mut flags = 0;
        if random.percent(25) {
            flags |= NextHopRecord::REALM;
        }
        if random.percent(30) {
            flags |= NextHopRecord::GTPU;
        }
        if is_outer_v6 {
            flags |= NextHopRecord::OUTER_IPV6;
        }
        let states = [Hop::RESOLVED, Hop::UNRESOLVED, Hop::NO_ROUTE, Hop::UNUSED];
        let mtus = [1500, 9000, 1280, 600, 100];
        let record = NextHopRecord {
            hop: Hop {
                mac: [2, 0, 0, 9, random.byte(), random.byte()],
                egress: *random.pick(&[0, 1, 2, 3, 4, 5, 6, 7, 255]),
                state: states[random.weighted(&[80, 12, 4, 4])],
            },
            source: parsed(registered_with.0),
            outer_source: parsed(ends[0]),
            outer_destination: parsed(ends[1]),
            source_port: registered_with.1.to_be_bytes(),
            mtu: mtus[random.weighted(&[60, 20, 10, 7, 3])],
            flags,
            reserved: [0; 3],
        };
        next_hops.insert(index, record);
    }
    next_hops
}

fn policies(random: &mut Random) -> (BTreeMap<u16, PolicyRecord>, Vec<(u32, SourcePrefix)>) {
    let mut policies = BTreeMap::from([(0, PolicyRecord::OPEN)]);
    let mut allowed = Vec::new();
    for index in (1..12).chain([MAX_POLICIES as u16 - 1]) {
        let (interval_ns, burst) = match random.weighted(&[70, 10, 20]) {
            0 => (0, 0),
            1 => (HOUR_NS, 1),
            _often => (100 * HOUR_NS, 20),
        };
        let mut flags = 0;
        if random.percent(30) {
            flags |= PolicyRecord::SOURCES;
            let mut prefixes = PREFIXES.to_vec();
            for _ in 0..random.below(4) {
                let (prefix, length) = prefixes.remove(random.below(prefixes.len()));
                allowed.push(source_prefix(index, prefix, length));
            }
        }
        if random.percent(60) {
            flags |= PolicyRecord::RETURN_ACKS;
        }
        let record = PolicyRecord {
            interval_ns,
            tolerance_ns: tolerance_ns(interval_ns, burst),
            window_ticks: *random.pick(&[0, 0, MAX_WINDOW_TICKS, 20_000]),
            max_payload: [u16::MAX, 1200, 1199, 100, 1, 0][random.weighted(&[60, 8, 8, 8, 8, 8])],
            dscp: *random.pick(&[PolicyRecord::KEEP_DSCP, PolicyRecord::KEEP_DSCP, 0, 46, 63]),
            flags,
        };
        policies.insert(index, record);
    }
    (policies, allowed)
}

fn source_prefix(policy: u16, prefix: &str, length: u32) -> (u32, SourcePrefix) {
    let address: IpAddr = prefix.parse().unwrap();
    let prefix = SourcePrefix {
        policy: policy.to_be_bytes(),
        version: [if address.is_ipv6() { 6 } else { 4 }, 0],
        address: address_bytes(address),
    };
    (SourcePrefix::BITS_BEFORE + length, prefix)
}

fn session(random: &mut Random, gateway: &Gateway, now_ns: u64) -> SessionRecord {
    let next_hop = if random.percent(98) {
        let known: Vec<u16> = gateway.next_hops.keys().copied().collect();
        *random.pick(&known)
    } else {
        *random.pick(&[MAX_NEXT_HOPS as u16, u16::MAX])
    };
    let policy = match random.weighted(&[40, 58, 2]) {
        0 => 0,
        1 => {
            let known: Vec<u16> = gateway.policies.keys().copied().collect();
            *random.pick(&known)
        }
        _missing => *random.pick(&[MAX_POLICIES as u16, u16::MAX]),
    };
    let is_v6 = next_hop % 2 == 1;
    let devices = &DEVICES[usize::from(is_v6) * 4..][..4];
    let mut flags = 0;
    if is_v6 {
        flags |= SessionControl::IPV6;
    }
    if random.percent(40) {
        flags |= SessionControl::PREVIOUS_TOKEN;
    }
    if random.percent(25) {
        flags |= SessionControl::KEEP_SOURCE;
    }
    let tick = tick_of(now_ns);
    let hour = tick_of(HOUR_NS);
    SessionRecord {
        generation: random.next() as u32 | 1,
        // A clock that is read rarely may be a tick behind.
        expires_tick: [tick + hour, u32::MAX, tick.saturating_sub(1), 0]
            [random.weighted(&[80, 15, 3, 2])],
        control: SessionControl {
            device_port: random.pick(&[7000_u16, 1, 65_535, 5683]).to_be_bytes(),
            next_hop,
            policy,
            token_generation: *random.pick(&[0, 1, 7, 255]),
            flags,
        }
        .with_version(random.byte()),
        key: TagKey::from_bytes(random.bytes()),
        device_address: parsed(devices[random.below(4)]),
        teid: random.bytes(),
        refused: *random.pick(&[0, 0, 5, u32::MAX]),
        acknowledged: *random.pick(&[0, 0, 5, u32::MAX]),
        round_trip_us: 0,
        replay: window(random),
        full_at_ns: [0, now_ns / 2, now_ns + HOUR_NS / 2][random.weighted(&[80, 15, 5])],
        activity: [0, u64::from(tick.saturating_sub(9)) << 32][random.below(2)],
        packets: *random.pick(&[0, 0, 5, u64::MAX]),
        bytes: *random.pick(&[0, 0, 500, u64::MAX]),
    }
}

/// A replay window that has seen something, or nothing.
fn window(random: &mut Random) -> [u64; replay::WORDS] {
    let newest = match random.weighted(&[30, 50, 10, 10]) {
        0 => return [0; replay::WORDS],
        1 => 179_000_000_000 + random.next() % 1_000_000,
        2 => random.next() % 200,
        _end => (1 << replay::SEQUENCE_BITS) - 1 - random.next() % 200,
    };
    let mut words = [0; replay::WORDS];
    for back in 0..random.next() % 120 {
        let sequence = newest - back.min(newest);
        let word = &mut words[replay::word_index(sequence)];
        if random.percent(60)
            && let replay::Offer::Accept(new) = replay::offer(*word, sequence)
        {
            *word = new;
        }
    }
    words
}

/// The key of the previous token; at times one that has been left over.
fn previous_key(random: &mut Random, record: &SessionRecord) -> PreviousKey {
    let previous = record.control.token_generation.wrapping_sub(1);
    PreviousKey {
        generation: if random.percent(90) {
            record.generation
        } else {
            record.generation ^ 2
        },
        token_generation: u32::from(if random.percent(90) {
            previous
        } else {
            previous.wrapping_sub(1)
        }),
        key: TagKey::from_bytes(random.bytes()),
    }
}

/// A record in the middle of a change: what it is to be is in one place, and what it was, half
/// changed, in the other.
fn stage(random: &mut Random, gateway: &mut Gateway) {
    let slots: Vec<u32> = gateway.sessions.keys().copied().collect();
    let record = gateway.sessions.get_mut(random.pick(&slots)).unwrap();
    gateway.staged = Some(*record);
    record.control.flags |= SessionControl::STAGED;
    record.control.flags ^= SessionControl::KEEP_SOURCE;
    record.control.device_port = [0, 9];
    record.control.policy ^= 1;
    record.key = TagKey::from_bytes(random.bytes());
    record.device_address[3] ^= 0xFF;
    record.teid = random.bytes();
}

fn parsed(address: &str) -> [u8; 16] {
    address_bytes(address.parse().unwrap())
}
