//! The ways out of the gateway that next hops refer to.

use super::memory::NextHopTable;
use super::mirror::Egress;
use super::slots::Slots;
use push_common::maps::{EgressRecord, MAX_EGRESSES};
use std::collections::HashMap;
use std::time::Instant;

/// Which egress stands where, and how many next hops refer to it.
pub(super) struct Egresses {
    slots: Slots,
    used: HashMap<Key, Used>,
    keys: HashMap<u8, Key>,
    /// In use before this process started.
    adopted: Vec<u8>,
}

/// All of an egress but the MAC address of the gateway there, which may change.
type Key = (u32, u32, [(u16, u16); 2]);

struct Used {
    index: u8,
    mac: [u8; 6],
    users: usize,
}

impl Egresses {
    pub(super) fn new() -> Self {
        Self {
            slots: Slots::new(MAX_EGRESSES as u16),
            used: HashMap::new(),
            keys: HashMap::new(),
            adopted: Vec::new(),
        }
    }

    /// The index of an egress, which has one user more from now on; none if there is no room for it.
    pub(super) fn enter(
        &mut self,
        table: &NextHopTable,
        egress: &Egress,
        now: Instant,
    ) -> Option<u8> {
        let record = record(egress);
        let key = (egress.link, egress.nic, egress.tags);
        if let Some(used) = self.used.get_mut(&key) {
            if used.mac != egress.mac {
                table.set_egress_mac(used.index, record.mac);
                used.mac = egress.mac;
            }
            used.users += 1;
            return Some(used.index);
        }
        let adopted = self
            .adopted
            .iter()
            .position(|&index| table.egress(index) == record);
        let index = if let Some(at) = adopted {
            let index = self.adopted.swap_remove(at);
            self.slots.claim(u16::from(index));
            index
        } else {
            let index = u8::try_from(self.slots.take(now)?).ok()?;
            table.place_egress(index, &record);
            index
        };
        let used = Used {
            index,
            mac: egress.mac,
            users: 1,
        };
        self.used.insert(key, used);
        self.keys.insert(index, key);
        Some(index)
    }

    /// The egress at `index` has one user less.
    pub(super) fn leave(&mut self, index: u8, now: Instant) {
        let Some(&key) = self.keys.get(&index) else {
            return;
        };
        if let Some(used) = self.used.get_mut(&key) {
            used.users -= 1;
            if used.users > 0 {
                return;
            }
        }
        self.used.remove(&key);
        self.keys.remove(&index);
        self.slots.give_back(u16::from(index), now);
    }

    /// Some next hop of a process before this one refers to the egress at `index`.
    pub(super) fn hold(&mut self, index: u8) {
        if !self.adopted.contains(&index) {
            self.slots.hold(u16::from(index));
            self.adopted.push(index);
        }
    }

    /// None does any more.
    pub(super) fn release_held(&mut self, now: Instant) {
        self.slots.release_held(now);
        self.adopted.clear();
    }
}

fn record(egress: &Egress) -> EgressRecord {
    let mut mac = [0; 8];
    mac[..6].copy_from_slice(&egress.mac);
    EgressRecord {
        mac,
        interface: egress.nic,
        tag_count: u32::from(egress.tag_count),
        tags: egress.tags.map(|(ethertype, control)| {
            let [a, b] = ethertype.to_be_bytes();
            let [c, d] = control.to_be_bytes();
            [a, b, c, d]
        }),
    }
}

/// VLAN identifiers of the tags of an egress, the outer one first.
pub(in super::super) fn tags_of(egress: &EgressRecord) -> Vec<u16> {
    let count = egress.tag_count as usize;
    let tags = egress.tags.iter().take(count);
    tags.map(|&[_, _, high, low]| u16::from_be_bytes([high, low]) & 0xFFF)
        .collect()
}
