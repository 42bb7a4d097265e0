//! The program, loaded and attached by the data plane, with maps whose records are written past it:
//! so that they can hold what no route or registration would lead to.

use super::datagram::LinkHeader;
use super::found;
use super::fuzz::{self, Limit, NicCounters, Subject};
use super::gateway::{Gateway, Pending, address, socket};
use super::random::Random;
use super::rows;
use super::world::{self, SLOTS};
use crate::gateway::{Gateway as Namespace, sh};
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, Map, MapData, PerCpuArray};
use bytemuck::{Pod, Zeroable, bytes_of, pod_read_unaligned};
use nix::net::if_::if_nametoindex;
use nix::time::{ClockId, clock_gettime};
use push_common::maps::{
    ALLOWED_SOURCES, AckKey, COUNTERS, Count, Counters, EGRESSES, EgressRecord, META, Meta,
    NEXT_HOPS, NextHopRecord, PENDING_ACKS, POLICIES, PREVIOUS_KEYS, PendingAck, PolicyRecord,
    PreviousKey, ROUND_TRIP_CLASSES, SESSIONS, STAGED, SessionRecord, SourcePrefix, VERDICT_SLOTS,
};
use push_common::verdict::Action;
use push_ctl::dataplane::Nic;
use std::collections::BTreeMap;
use std::env;
use std::time::Duration;

/// Frames that each test run goes through.
const FIXED_FRAMES: u64 = 100_000;
const FIXED_SEED: u64 = 3;

#[test]
fn the_program_is_what_the_model_is() {
    Program::run(|program| {
        fuzz::run(program, FIXED_SEED, Limit::Frames(FIXED_FRAMES)).demand_agreement();
    });
}

#[test]
fn known_rows_and_all_differences_there_were_get_their_verdicts() {
    Program::run(|program| {
        for row in rows::KNOWN.iter().chain(found::ROWS) {
            rows::demand_agreement(program, row);
        }
    });
}

/// Or else nothing else here would mean anything.
#[test]
fn the_maps_hold_what_was_written() {
    Program::run(|program| {
        for round in 0..2 {
            let mut random = Random::new(FIXED_SEED, round);
            let gateway = world::gateway(&mut random, program.interfaces, program.now_ns());
            program.become_like(&gateway);
            let bytes = |sessions: BTreeMap<u32, SessionRecord>| {
                let each = sessions.into_iter();
                each.map(|(slot, record)| (slot, bytes_of(&record).to_vec()))
                    .collect::<Vec<_>>()
            };
            assert_eq!(bytes(program.sessions()), bytes(gateway.sessions));
            assert_eq!(program.pending(), gateway.pending);
            assert_eq!(program.allowed.keys().count(), gateway.allowed.len());
            let keys = program.previous_keys.keys().count();
            assert_eq!(keys, gateway.previous_keys.len());
            assert_eq!(program.counters().len(), gateway.nics.len());
        }
    });
}

/// For `cargo xtask fuzz`, which says in the environment for how many seconds, and from which seed.
#[test]
#[ignore = "as long as it is told to: cargo xtask fuzz --for DURATION"]
fn fuzz_for() {
    let number = |name| env::var(name).ok().map(|text| text.parse().unwrap());
    let seconds = number("PUSH_FUZZ_SECONDS").expect("cargo xtask fuzz sets PUSH_FUZZ_SECONDS");
    let seed = number("PUSH_FUZZ_SEED").expect("cargo xtask fuzz sets PUSH_FUZZ_SEED");
    let limit = Limit::Time(Duration::from_secs(seconds));
    Program::run(move |program| fuzz::run(program, seed, limit).demand_agreement());
}

type Bytes<T, const N: usize> = (std::marker::PhantomData<T>, Array<MapData, [u8; N]>);

struct Program {
    namespace: Namespace,
    names: [&'static str; 3],
    interfaces: [u32; 3],
    /// By NIC: its index among the counters.
    counter_indices: [u32; 3],
    sessions: Bytes<SessionRecord, { size_of::<SessionRecord>() }>,
    staged: Bytes<SessionRecord, { size_of::<SessionRecord>() }>,
    next_hops: Bytes<NextHopRecord, { size_of::<NextHopRecord>() }>,
    egresses: Bytes<EgressRecord, { size_of::<EgressRecord>() }>,
    policies: Bytes<PolicyRecord, { size_of::<PolicyRecord>() }>,
    previous_keys: HashMap<MapData, u32, [u8; size_of::<PreviousKey>()]>,
    allowed: LpmTrie<MapData, [u8; size_of::<SourcePrefix>()], [u8; ALLOWED_VALUE_LEN]>,
    pending: HashMap<MapData, [u8; size_of::<AckKey>()], [u8; size_of::<PendingAck>()]>,
    counters: PerCpuArray<MapData, [u8; size_of::<Counters>()]>,
}

/// Bytes of a value in the trie of prefixes, of which nothing but that it is there counts.
const ALLOWED_VALUE_LEN: usize = 1;

impl Program {
    /// Runs `test` on the program, attached to NICs in a namespace of its own.
    fn run(test: impl FnOnce(&mut Self) + Send + 'static) {
        Namespace::run(|namespace| test(&mut Self::new(namespace)));
    }

    fn new(namespace: Namespace) -> Self {
        sh("ip link add both type veth peer name both-peer; ip link set both up");
        sh("sysctl -qw net.ipv6.conf.both-peer.disable_ipv6=1; ip link set both-peer arp off up");
        sh("ip addr add 203.0.113.1/24 dev both");
        let interfaces = world::nics([0; 3]).map(|nic| if_nametoindex(nic.name).unwrap());
        let namespace = namespace.restarted_with(|settings| {
            assert_eq!(settings.session_slots, SLOTS);
            assert_eq!(settings.trigger_port, world::TRIGGER_PORT);
            let nics = world::nics(interfaces).map(|nic| Nic {
                name: nic.name.into(),
                ipv4: nic.ipv4,
                ipv6: nic.ipv6,
                takes_acks: nic.takes_acks,
            });
            settings.nics = nics.into();
        });
        let pinned = |name: &str| MapData::from_pin(namespace.settings.pin_dir.join(name)).unwrap();
        let meta: Array<_, [u8; size_of::<Meta>()]> = Map::Array(pinned(META)).try_into().unwrap();
        let meta: Meta = pod_read_unaligned(&meta.get(&0, 0).unwrap());
        let counter_indices = world::nics(interfaces).map(|nic| {
            let is_it = |name: &[u8; 16]| name.starts_with(format!("{}\0", nic.name).as_bytes());
            meta.nics.iter().position(is_it).unwrap() as u32
        });
        Self {
            names: world::nics(interfaces).map(|nic| nic.name),
            interfaces,
            counter_indices,
            sessions: array(pinned(SESSIONS)),
            staged: array(pinned(STAGED)),
            next_hops: array(pinned(NEXT_HOPS)),
            egresses: array(pinned(EGRESSES)),
            policies: array(pinned(POLICIES)),
            previous_keys: Map::HashMap(pinned(PREVIOUS_KEYS)).try_into().unwrap(),
            allowed: Map::LpmTrie(pinned(ALLOWED_SOURCES)).try_into().unwrap(),
            pending: Map::LruHashMap(pinned(PENDING_ACKS)).try_into().unwrap(),
            counters: Map::PerCpuArray(pinned(COUNTERS)).try_into().unwrap(),
            namespace,
        }
    }
}

impl Subject for Program {
    fn interfaces(&mut self) -> [u32; 3] {
        self.interfaces
    }

    fn now_ns(&mut self) -> u64 {
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC).unwrap();
        now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64
    }

    fn become_like(&mut self, gateway: &Gateway) {
        for (&index, record) in &gateway.next_hops {
            set(&mut self.next_hops, u32::from(index), record);
        }
        for (&index, record) in &gateway.egresses {
            set(&mut self.egresses, u32::from(index), record);
        }
        for (&index, record) in &gateway.policies {
            set(&mut self.policies, u32::from(index), record);
        }
        let nobody = SessionRecord::zeroed();
        set(
            &mut self.staged,
            0,
            gateway.staged.as_ref().unwrap_or(&nobody),
        );
        for slot in 0..SLOTS {
            let record = gateway.sessions.get(&slot).unwrap_or(&nobody);
            set(&mut self.sessions, slot, record);
        }
        let old: Vec<u32> = self.previous_keys.keys().map(Result::unwrap).collect();
        for slot in old {
            self.previous_keys.remove(&slot).unwrap();
        }
        for (&slot, record) in &gateway.previous_keys {
            let record: [u8; size_of::<PreviousKey>()] = bytes_of(record).try_into().unwrap();
            self.previous_keys.insert(slot, record, 0).unwrap();
        }
        let old: Vec<_> = self.allowed.keys().map(Result::unwrap).collect();
        for prefix in old {
            self.allowed.remove(&prefix).unwrap();
        }
        for (bits, prefix) in &gateway.allowed {
            let prefix = Key::new(*bits, bytes_of(prefix).try_into().unwrap());
            self.allowed
                .insert(&prefix, [1; ALLOWED_VALUE_LEN], 0)
                .unwrap();
        }
        let old: Vec<_> = self.pending.keys().map(Result::unwrap).collect();
        for key in old {
            self.pending.remove(&key).unwrap();
        }
    }

    fn send(&mut self, nic: usize, frame: &[u8]) -> (Action, Vec<u8>) {
        let test_run = self.namespace.dataplane.test_run(self.names[nic], frame);
        let run = test_run.unwrap();
        let action = match run.action {
            1 => Action::Drop,
            2 => Action::Pass,
            3 => Action::Transmit,
            4 => Action::Redirect,
            other => panic!("XDP action {other}"),
        };
        (action, run.frame)
    }

    fn counters(&mut self) -> Vec<NicCounters> {
        let each = self.counter_indices.map(|index| {
            let mut sum = NicCounters {
                by_verdict: [Count::default(); VERDICT_SLOTS],
                round_trips: [0; ROUND_TRIP_CLASSES],
            };
            for cpu in self.counters.get(&index, 0).unwrap().iter() {
                let cpu: Counters = pod_read_unaligned(cpu);
                for (sum, count) in sum.by_verdict.iter_mut().zip(cpu.by_verdict) {
                    sum.packets += count.packets;
                    sum.bytes += count.bytes;
                }
                for (sum, count) in sum.round_trips.iter_mut().zip(cpu.round_trips) {
                    *sum += count;
                }
            }
            sum
        });
        each.into()
    }

    fn sessions(&mut self) -> BTreeMap<u32, SessionRecord> {
        let each = (0..SLOTS).map(|slot| {
            let record: SessionRecord = pod_read_unaligned(&self.sessions.1.get(&slot, 0).unwrap());
            (slot, record)
        });
        each.filter(|(_, record)| record.generation != 0).collect()
    }

    fn pending(&mut self) -> BTreeMap<(u64, u64), Pending> {
        let each = self.pending.iter().map(|entry| {
            let (key, record) = entry.unwrap();
            let (key, record): (AckKey, PendingAck) =
                (pod_read_unaligned(&key), pod_read_unaligned(&record));
            let is_v6 = record.is_v6 == 1;
            let server: [u8; 16] = bytes_of(&record.server).try_into().unwrap();
            let gateway: [u8; 16] = bytes_of(&record.gateway).try_into().unwrap();
            let pending = Pending {
                sent_ns: record.sent_ns,
                server: socket(&server, record.server_port, is_v6),
                gateway: address(&gateway, is_v6),
                link: LinkHeader {
                    destination: record.gateway_mac,
                    source: record.server_mac,
                    tags: record.tags[..usize::from(record.tag_count)].to_vec(),
                },
                interface: record.interface,
            };
            ((key.session, key.sequence), pending)
        });
        each.collect()
    }
}

fn array<T, const N: usize>(data: MapData) -> Bytes<T, N> {
    (
        std::marker::PhantomData,
        Map::Array(data).try_into().unwrap(),
    )
}

fn set<T: Pod, const N: usize>(map: &mut Bytes<T, N>, index: u32, record: &T) {
    let bytes: [u8; N] = bytes_of(record).try_into().unwrap();
    map.1.set(index, bytes, 0).unwrap();
}
