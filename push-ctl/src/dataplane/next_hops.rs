//! Next hops: how frames get to devices, kept as the kernel's routes, neighbours and links are.
//!
//! The path looks nothing up, unless it would have to drop a trigger for want of a route. For each session, a next hop is chosen here once, and what netlink tells
//! later is written where it stands: mostly one word, whatever the number of sessions that refer to it.
//!
//! - [`watch`] reads netlink and makes [`News`] of it; [`asking`] has the kernel ask neighbours.
//! - [`mirror`] knows links, routes and neighbours, and finds the way to an address.
//! - [`NextHops`] knows which session refers to which next hop, and writes them to [`memory`].
//!
//! Sessions share a next hop if devices see the same sender, and if the longest prefix with a route to
//! them is the same; but devices that are right on a link have one each, as each has its own MAC address.
//! The *class* of a next hop is this prefix, or the one address. All addresses in it that aren't in a
//! longer prefix with a route go the same way, whatever happens to shorter ones. So a session has to
//! refer to another next hop only if a more specific route appears, or if what was behind a router is now
//! right on a link; if routes go, change or fail, its next hop leads another way.

mod asking;
mod egresses;
mod entries;
mod memory;
mod mirror;
mod news;
mod prefix;
mod routes;
mod slots;
mod target;
#[cfg(test)]
mod tests;
mod watch;

pub(super) use asking::Asker;
pub(super) use egresses::tags_of;
pub(super) use memory::NextHopTable;
pub(super) use mirror::Neighbour;
pub(super) use news::News;
pub(super) use target::{Target, TunnelEnds};
pub(super) use watch::Watch;

use super::Realm;
use anyhow::{Context, Result};
use asking::Asking;
use egresses::Egresses;
use entries::identity;
use mirror::{Mirror, View};
use prefix::Prefix;
use push_common::maps::{EgressRecord, Hop, MAX_NEXT_HOPS, NextHopRecord};
use push_common::wire::SessionId;
use routes::{TABLE_DEFAULT, TABLE_LOCAL, TABLE_MAIN};
use slots::Slots;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::time::Instant;
use target::{Sender, Senders, router};

/// All next hops, and who refers to them.
pub(super) struct NextHops {
    table: NextHopTable,
    mirror: Mirror,
    realms: Vec<Realm>,
    /// Of those in no realm, then by realm; each by family.
    views: Vec<[View; 2]>,
    senders: Senders,
    egresses: Egresses,
    slots: Slots,
    entries: Vec<Option<Entry>>,
    by_class: HashMap<(u32, Prefix), u16>,
    /// By realm (see [`place_of`]) and class.
    by_place: BTreeSet<(u32, Prefix, u16)>,
    by_neighbour: HashMap<Neighbour, BTreeSet<u16>>,
    /// By realm and address that the way is to.
    sessions: BTreeMap<SessionId, (u32, IpAddr)>,
    seats: BTreeMap<(u32, IpAddr, SessionId), u16>,
    /// Next hops that sessions of a process before this one refer to, by what stands there.
    adopted: HashMap<[u8; size_of::<NextHopRecord>()], Vec<u16>>,
    asking: Asking,
    ask: Box<dyn FnMut(Neighbour) + Send>,
    is_doubtful: bool,
    links_changed: bool,
}

/// A next hop in use.
struct Entry {
    /// Number of its sender.
    sender: u32,
    place: u32,
    class: Prefix,
    sessions: usize,
    neighbour: Option<Neighbour>,
    egress: Option<u8>,
    hop: Hop,
    mtu: u16,
}

impl NextHops {
    /// No next hops as yet, to be written to `table`. Frames may be sent by the NICs with the names
    /// `nics`; if there are none, by any. `ask` is called with each neighbour whose MAC address is
    /// needed, over and over until there is news of it.
    pub(super) fn new(
        table: NextHopTable,
        realms: Vec<Realm>,
        nics: Vec<String>,
        ask: impl FnMut(Neighbour) + Send + 'static,
    ) -> Self {
        let mut next_hops = Self {
            table,
            mirror: Mirror::new(nics),
            realms,
            views: Vec::new(),
            senders: Senders::default(),
            egresses: Egresses::new(),
            slots: Slots::new(MAX_NEXT_HOPS as u16),
            entries: (0..MAX_NEXT_HOPS).map(|_| None).collect(),
            by_class: HashMap::new(),
            by_place: BTreeSet::new(),
            by_neighbour: HashMap::new(),
            sessions: BTreeMap::new(),
            seats: BTreeMap::new(),
            adopted: HashMap::new(),
            asking: Asking::new(),
            ask: Box::new(ask),
            is_doubtful: false,
            links_changed: true,
        };
        next_hops.views = next_hops.look();
        next_hops
    }

    /// The index of the next hop for `target`, to which `session` refers from now on.
    ///
    /// # Errors
    ///
    /// If no datagram can be sent there, or all next hops are in use. The session then refers to what
    /// it did before.
    pub(super) fn acquire(&mut self, session: SessionId, target: &Target) -> Result<u16> {
        self.acquire_at(session, target, Instant::now())
    }

    fn acquire_at(&mut self, session: SessionId, target: &Target, now: Instant) -> Result<u16> {
        let address = target.address(&self.realms)?;
        let place = place_of(target.realm);
        let sender = self.senders.enter(Sender {
            realm: target.realm,
            source: target.source,
            tunnel: target.tunnel,
        });
        let index = self.find_or_make(sender, place, address, now);
        self.senders.leave(sender);
        let index = index.with_context(|| {
            format!(
                "all {MAX_NEXT_HOPS} next hops are in use: each device that is right on a link of the \
                 gateway takes one, and so does each peer of tunnels; put a router in front of devices, or end sessions"
            )
        })?;
        self.refer(index, 1);
        let before = self.sessions.insert(session, (place, address));
        let before =
            before.and_then(|(place, address)| self.seats.remove(&(place, address, session)));
        self.seats.insert((place, address, session), index);
        if let Some(before) = before {
            self.leave(before, now);
        }
        self.ask_due(now);
        Ok(index)
    }

    /// `session` doesn't refer to a next hop any more.
    pub(super) fn release(&mut self, session: SessionId) {
        if let Some((place, address)) = self.sessions.remove(&session)
            && let Some(index) = self.seats.remove(&(place, address, session))
        {
            self.leave(index, Instant::now());
        }
    }

    /// Sessions of a process before this one refer to the next hops at `indices`: they stay as they are
    /// until [`NextHops::adopted`]. To be called before any next hop is acquired. One that is acquired
    /// in the meantime gets the index of one that is the same.
    pub(super) fn occupied(&mut self, indices: impl Iterator<Item = u16>) {
        let indices: BTreeSet<_> = indices
            .filter(|&index| u32::from(index) < MAX_NEXT_HOPS)
            .collect();
        for index in indices {
            self.slots.hold(index);
            let record = self.table.record(index);
            match record.hop.state {
                Hop::RESOLVED => {
                    self.egresses.hold(record.hop.egress);
                    self.adopted
                        .entry(identity(&record))
                        .or_default()
                        .push(index);
                }
                Hop::UNRESOLVED => self.egresses.hold(record.hop.egress),
                _ => {}
            }
        }
    }

    /// All sessions there are have acquired their next hops.
    pub(super) fn adopted(&mut self) {
        let now = Instant::now();
        self.adopted = HashMap::new();
        self.slots.release_held(now);
        self.egresses.release_held(now);
    }

    /// Applies what is new, and returns which sessions refer to another next hop from now on: its index
    /// has to go to their records within [`slots::REST`].
    pub(super) fn apply(&mut self, news: News) -> Vec<(SessionId, u16)> {
        self.apply_at(news, Instant::now())
    }

    fn apply_at(&mut self, news: News, now: Instant) -> Vec<(SessionId, u16)> {
        let touched = self.mirror.apply(news);
        self.is_doubtful |= touched.is_doubtful;
        self.links_changed |= touched.links;
        let mut moved = BTreeMap::new();
        let mut refresh = BTreeSet::new();
        if touched.links {
            let views = self.look();
            let before = std::mem::replace(&mut self.views, views);
            for (place, (before, after)) in before.iter().zip(self.views.clone()).enumerate() {
                if *before != after {
                    self.regroup(place as u32, None, now, &mut moved);
                }
            }
            refresh.extend(self.by_class.values());
        }
        for (table, destination, appeared) in touched.routes {
            for place in 0..self.views.len() as u32 {
                let view = self.view(place, destination.is_v6());
                let (concerns, may_appear) = match view {
                    View::Main => (
                        [TABLE_LOCAL, TABLE_MAIN, TABLE_DEFAULT].contains(&table),
                        appeared,
                    ),
                    View::Table(number) => (number == table, appeared),
                    // A route to there may have led through other links until now.
                    View::Link(_) => (true, true),
                    View::Direct(_) | View::Given(..) | View::Nowhere => (false, false),
                };
                if !concerns {
                    continue;
                }
                if may_appear && self.mirror.has_route(view, table, destination) {
                    self.regroup(place, Some(destination), now, &mut moved);
                }
                let within = (place, destination, 0)..=(place, destination.last_within(), u16::MAX);
                refresh.extend(self.by_place.range(within).map(|&(_, _, index)| index));
            }
        }
        for neighbour in touched.neighbours {
            refresh.extend(self.by_neighbour.get(&neighbour).into_iter().flatten());
        }
        for index in refresh {
            self.refresh(index, now, &mut moved);
        }
        self.ask_due(now);
        moved.into_iter().collect()
    }

    /// From now on, frames may be sent by the NICs with these names. Returns what [`NextHops::apply`] does.
    pub(super) fn set_nics(&mut self, nics: Vec<String>) -> Vec<(SessionId, u16)> {
        let now = Instant::now();
        self.mirror.set_nics(nics);
        let mut moved = BTreeMap::new();
        let all: Vec<_> = self.by_class.values().copied().collect();
        for index in all {
            self.refresh(index, now, &mut moved);
        }
        self.ask_due(now);
        moved.into_iter().collect()
    }

    /// Whether the way to a session's device is `resolved`, `unresolved`, or there is `no_route`.
    pub(super) fn state(&self, session: SessionId) -> Option<&'static str> {
        let &(place, address) = self.sessions.get(&session)?;
        let &index = self.seats.get(&(place, address, session))?;
        match self.entry(index)?.hop.state {
            Hop::RESOLVED => Some("resolved"),
            Hop::UNRESOLVED => Some("unresolved"),
            Hop::NO_ROUTE => Some("no_route"),
            _ => None,
        }
    }

    /// What stands at this index, and the egress that it refers to.
    pub(super) fn seen(&self, index: u16) -> (NextHopRecord, EgressRecord) {
        if u32::from(index) >= MAX_NEXT_HOPS {
            return Default::default();
        }
        let record = self.table.record(index);
        (record, self.table.egress(record.hop.egress))
    }

    /// When [`NextHops::apply`] has something to do even if there is no news.
    pub(super) fn due(&self) -> Option<Instant> {
        self.asking.due()
    }

    /// Whether the kernel may have changed more than it told since this was called the last time.
    pub(super) fn take_doubt(&mut self) -> bool {
        std::mem::take(&mut self.is_doubtful)
    }

    /// Whether links have changed since this was called the last time.
    pub(super) fn take_links_changed(&mut self) -> bool {
        std::mem::take(&mut self.links_changed)
    }

    /// Index of the link with this name, if there is one.
    pub(super) fn link_named(&self, name: &str) -> Option<u32> {
        self.mirror.link_named(name)
    }

    fn look(&self) -> Vec<[View; 2]> {
        let of_realm = |realm: &Realm| {
            [false, true].map(|is_v6| self.mirror.view(realm, router(realm, is_v6).is_some()))
        };
        std::iter::once([View::Main; 2])
            .chain(self.realms.iter().map(of_realm))
            .collect()
    }

    fn view(&self, place: u32, is_v6: bool) -> View {
        self.views[place as usize][usize::from(is_v6)]
    }

    fn entry(&self, index: u16) -> Option<&Entry> {
        self.entries[usize::from(index)].as_ref()
    }
}

/// Number of a realm, with 0 for none.
fn place_of(realm: Option<usize>) -> u32 {
    realm.map_or(0, |index| index as u32 + 1)
}
