//! Finds, makes, refreshes and drops next hops.

use super::asking::Need;
use super::mirror::{Neighbour, Resolution};
use super::prefix::Prefix;
use super::{Entry, NextHops};
use push_common::maps::{Hop, MAX_NEXT_HOPS, NextHopRecord};
use push_common::wire::SessionId;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Instant;
use tracing::{error, warn};

/// What of an entry comes from routes, neighbours and links.
struct Way {
    neighbour: Option<(Neighbour, Need)>,
    egress: Option<u8>,
    hop: Hop,
    mtu: u16,
}

impl NextHops {
    /// Moves sessions of this place to next hops of the longest prefixes there are, if they are in
    /// `within`.
    pub(super) fn regroup(
        &mut self,
        place: u32,
        within: Option<Prefix>,
        now: Instant,
        moved: &mut BTreeMap<SessionId, u16>,
    ) {
        let lowest = (place, IpAddr::from([0; 4]), SessionId::from_u64(0));
        let highest = (
            place,
            IpAddr::from([0xFF; 16]),
            SessionId::from_u64(u64::MAX),
        );
        let range = within.map_or(lowest..=highest, |prefix| {
            (place, prefix.first(), SessionId::from_u64(0))
                ..=(place, prefix.last(), SessionId::from_u64(u64::MAX))
        });
        let class = |index| self.entry(index).map_or(0, |entry| entry.class.length());
        let in_range = self.seats.range(range);
        let candidates: Vec<_> = in_range
            .filter(|&(&(_, address, _), &index)| {
                let longest = within.unwrap_or_else(|| {
                    self.mirror
                        .matching(self.view(place, address.is_ipv6()), address)
                });
                class(index) < longest.length()
            })
            .map(|(&seat, _)| seat)
            .collect();
        self.reseat(&candidates, now, moved);
    }

    fn reseat(
        &mut self,
        seats: &[(u32, IpAddr, SessionId)],
        now: Instant,
        moved: &mut BTreeMap<SessionId, u16>,
    ) {
        let mut left_behind = 0;
        for &seat in seats {
            let (place, address, session) = seat;
            let Some((before, sender)) = self
                .seats
                .get(&seat)
                .and_then(|&index| Some((index, self.entry(index)?.sender)))
            else {
                continue;
            };
            match self.find_or_make(sender, place, address, now) {
                Some(index) if index == before => {}
                Some(index) => {
                    self.refer(index, 1);
                    self.seats.insert(seat, index);
                    self.leave(before, now);
                    moved.insert(session, index);
                }
                None => left_behind += 1,
            }
        }
        if left_behind > 0 {
            error!(
                "all {MAX_NEXT_HOPS} next hops are in use: triggers of {left_behind} sessions may go the wrong \
                 way; put a router in front of devices that are right on a link, or end sessions"
            );
        }
    }

    /// Makes a next hop be as the kernel's routes, neighbours and links are.
    pub(super) fn refresh(
        &mut self,
        index: u16,
        now: Instant,
        moved: &mut BTreeMap<SessionId, u16>,
    ) {
        let Some(entry) = self.entry(index) else {
            return;
        };
        let (place, class) = (entry.place, entry.class);
        let mut resolution = self.mirror.resolve(self.view(place, class.is_v6()), class);
        if let Resolution::Way(way) = &mut resolution
            && way.is_on_link
            && !class.is_host()
        {
            // Each device is its own neighbour now.
            let range = (place, class.first(), SessionId::from_u64(0))
                ..=(place, class.last(), SessionId::from_u64(u64::MAX));
            let seats: Vec<_> = self
                .seats
                .range(range)
                .filter(|&(_, &seat)| seat == index)
                .map(|(&seat, _)| seat)
                .collect();
            self.reseat(&seats, now, moved);
            // For those that had no room, the kernel finds out.
            way.egress = None;
        }
        let way = self.way(resolution, now);
        let Some(entry) = &mut self.entries[usize::from(index)] else {
            self.drop_way(&way, now);
            return;
        };
        if entry.mtu != way.mtu {
            self.table.set_mtu(index, way.mtu);
        }
        if entry.hop != way.hop {
            self.table.set_hop(index, way.hop);
        }
        entry.mtu = way.mtu;
        entry.hop = way.hop;
        let egress = std::mem::replace(&mut entry.egress, way.egress);
        let neighbour = std::mem::replace(&mut entry.neighbour, way.neighbour.map(|(it, _)| it));
        if let Some(egress) = egress {
            self.egresses.leave(egress, now);
        }
        if neighbour != way.neighbour.map(|(it, _)| it) {
            self.forget_neighbour(index, neighbour, now);
        }
        self.note_neighbour(index, way.neighbour, now);
    }

    /// The next hop for an address, made if there is none yet; none if there is no room for it.
    pub(super) fn find_or_make(
        &mut self,
        sender: u32,
        place: u32,
        address: IpAddr,
        now: Instant,
    ) -> Option<u16> {
        let view = self.view(place, address.is_ipv6());
        let mut class = self.mirror.matching(view, address);
        let mut resolution = self.mirror.resolve(view, class);
        if matches!(resolution, Resolution::Way(way) if way.is_on_link) {
            class = Prefix::host(address);
            resolution = self.mirror.resolve(view, class);
        }
        if let Some(&index) = self.by_class.get(&(sender, class)) {
            return Some(index);
        }
        let mut record = self.senders.get(sender)?.record();
        let way = self.way(resolution, now);
        record.hop = way.hop;
        record.mtu = way.mtu;
        let adopted = self.adopted.get_mut(&identity(&record)).and_then(Vec::pop);
        let index = if let Some(index) = adopted {
            self.slots.claim(index);
            self.table.set_mtu(index, record.mtu);
            index
        } else if let Some(index) = self.slots.take(now) {
            self.table.place(index, &record);
            index
        } else {
            self.drop_way(&way, now);
            return None;
        };
        self.senders.enter(self.senders.get(sender)?);
        self.by_class.insert((sender, class), index);
        self.by_place.insert((place, class, index));
        self.entries[usize::from(index)] = Some(Entry {
            sender,
            place,
            class,
            sessions: 0,
            neighbour: way.neighbour.map(|(neighbour, _)| neighbour),
            egress: way.egress,
            hop: way.hop,
            mtu: way.mtu,
        });
        self.note_neighbour(index, way.neighbour, now);
        Some(index)
    }

    /// What a resolution means for a next hop, which uses the egress from now on.
    fn way(&mut self, resolution: Resolution, now: Instant) -> Way {
        let hop = |state| Hop {
            state,
            ..Hop::default()
        };
        let Resolution::Way(way) = resolution else {
            return Way {
                neighbour: None,
                egress: None,
                hop: hop(Hop::NO_ROUTE),
                // If the kernel finds a way, it knows what fits.
                mtu: u16::MAX,
            };
        };
        let egress = way.egress.and_then(|egress| {
            let index = self.egresses.enter(&self.table, &egress, now);
            if index.is_none() {
                warn!(
                    interface = egress.link,
                    "there are more ways out of the gateway than can be used"
                );
            }
            index
        });
        let Some(egress) = egress else {
            return Way {
                neighbour: None,
                egress: None,
                hop: hop(Hop::UNRESOLVED),
                mtu: way.mtu,
            };
        };
        let need = match way.known {
            Some(known) if known.is_stale => Need::Refresh,
            Some(_) => Need::Nothing,
            None => Need::Address,
        };
        Way {
            neighbour: Some((way.neighbour, need)),
            egress: Some(egress),
            hop: Hop {
                mac: way.known.map_or([0; 6], |known| known.mac),
                egress,
                state: way.known.map_or(Hop::UNRESOLVED, |_| Hop::RESOLVED),
            },
            mtu: way.mtu,
        }
    }

    fn drop_way(&mut self, way: &Way, now: Instant) {
        if let Some(egress) = way.egress {
            self.egresses.leave(egress, now);
        }
    }

    pub(super) fn refer(&mut self, index: u16, sessions: usize) {
        if let Some(entry) = &mut self.entries[usize::from(index)] {
            entry.sessions += sessions;
        }
    }

    /// One session less refers to a next hop.
    pub(super) fn leave(&mut self, index: u16, now: Instant) {
        let slot = &mut self.entries[usize::from(index)];
        if let Some(entry) = slot {
            entry.sessions -= 1;
            if entry.sessions > 0 {
                return;
            }
        }
        let Some(entry) = slot.take() else {
            return;
        };
        self.by_class.remove(&(entry.sender, entry.class));
        self.by_place.remove(&(entry.place, entry.class, index));
        self.forget_neighbour(index, entry.neighbour, now);
        if let Some(egress) = entry.egress {
            self.egresses.leave(egress, now);
        }
        self.senders.leave(entry.sender);
        self.slots.give_back(index, now);
    }

    fn note_neighbour(&mut self, index: u16, neighbour: Option<(Neighbour, Need)>, now: Instant) {
        if let Some((neighbour, need)) = neighbour {
            self.by_neighbour
                .entry(neighbour)
                .or_default()
                .insert(index);
            self.asking.set(neighbour, need, now);
        }
    }

    fn forget_neighbour(&mut self, index: u16, neighbour: Option<Neighbour>, now: Instant) {
        if let Some(neighbour) = neighbour
            && let Some(users) = self.by_neighbour.get_mut(&neighbour)
        {
            users.remove(&index);
            if users.is_empty() {
                self.by_neighbour.remove(&neighbour);
                self.asking.set(neighbour, Need::Nothing, now);
            }
        }
    }

    pub(super) fn ask_due(&mut self, now: Instant) {
        while let Some(neighbour) = self.asking.take_due(now) {
            (self.ask)(neighbour);
        }
    }
}

/// All of a record but the MTU, which may change.
pub(super) fn identity(record: &NextHopRecord) -> [u8; size_of::<NextHopRecord>()] {
    bytemuck::must_cast(NextHopRecord { mtu: 0, ..*record })
}
