//! Links, routes and neighbours as the kernel has them, and the way to an address through them.
//!
//! The rules are the kernel's, with these limits:
//!
//! - Of policy routing (`ip rule`), there is what the kernel starts with: the tables local, main and
//!   default, in this order, and a VRF's table for what is in the VRF. Other rules are not seen.
//! - A path whose link is up but without carrier is not taken, as if `ignore_routes_with_linkdown` were
//!   set: it is known to lead nowhere. Triggers of sessions in no realm and no tunnel are the kernel's then, which
//!   knows first when it leads somewhere again, and drops them until then; with that setting, the path does.
//! - Of several paths of a route, all takes the first whose link is up.
//! - A next hop object is what the kernel says with each route that uses it, as it does unless
//!   `nexthop_compat_mode` is off.

use super::news::{Change, News};
use super::prefix::Prefix;
use super::routes::{Path, Route, RouteKind, Routes, TABLE_DEFAULT, TABLE_LOCAL, TABLE_MAIN};
use crate::dataplane::{Realm, RealmLink};
use push_common::wire::{ETHERTYPE_PROVIDER_VLAN, ETHERTYPE_VLAN};
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) name: String,
    /// If it is one of Ethernet.
    pub(super) mac: Option<[u8; 6]>,
    pub(super) mtu: u32,
    pub(super) is_up: bool,
    /// Up, and with carrier.
    pub(super) is_running: bool,
    pub(super) kind: LinkKind,
    /// The bridge, bond or VRF that it is part of.
    pub(super) master: Option<u32>,
}

/// What frames go through on their way out of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LinkKind {
    /// Nothing more.
    Nic,
    /// They get a tag, and leave through the parent.
    Vlan {
        id: u16,
        ethertype: u16,
        parent: u32,
    },
    /// No frames leave there: it stands for a routing table.
    Vrf { table: u32 },
    /// Something that only the kernel can do.
    Opaque,
}

/// Who may be asked for a MAC address: an address on a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(in super::super) struct Neighbour {
    pub(super) address: IpAddr,
    pub(super) link: u32,
}

/// What is known of a neighbour that can be sent to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Known {
    pub(super) mac: [u8; 6],
    /// It hasn't been heard of for some time.
    pub(super) is_stale: bool,
}

/// The part of all this that a realm's devices are behind, or those of none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum View {
    /// The tables that the kernel itself asks.
    Main,
    /// One table, of a VRF.
    Table(u32),
    /// Routes of any table through this link; what has none is right there.
    Link(u32),
    /// All is right on this link: it is a router that is sent to.
    Direct(u32),
    /// All is behind a router on this link that the kernel needn't know.
    Given(u32, RealmLink),
    /// There is no such interface.
    Nowhere,
}

/// What becomes of datagrams to an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Resolution {
    NoRoute,
    Way(Way),
}

/// The way to an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Way {
    /// The address is the neighbour's own.
    pub(super) is_on_link: bool,
    pub(super) neighbour: Neighbour,
    /// None if only the kernel can go there.
    pub(super) egress: Option<Egress>,
    pub(super) known: Option<Known>,
    /// Longest datagram in bytes.
    pub(super) mtu: u16,
}

/// How frames leave for a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Egress {
    /// Index of the link.
    pub(super) link: u32,
    /// Index of the NIC that they leave by.
    pub(super) nic: u32,
    /// Address of the gateway on the link.
    pub(super) mac: [u8; 6],
    /// Ethertype and control of each VLAN tag, the outer one first.
    pub(super) tags: [(u16, u16); 2],
    pub(super) tag_count: u8,
}

impl Egress {
    /// The same with more tags behind those there are; none if these are too many. All but the last
    /// one are a provider's.
    fn with_tags(mut self, ids: impl Iterator<Item = u16>) -> Option<Self> {
        for id in ids {
            let count = usize::from(self.tag_count);
            for tag in &mut self.tags[..count] {
                tag.0 = ETHERTYPE_PROVIDER_VLAN;
            }
            *self.tags.get_mut(count)? = (ETHERTYPE_VLAN, id);
            self.tag_count += 1;
        }
        Some(self)
    }
}

/// What a batch of news was about.
#[derive(Debug, Default)]
pub(super) struct Touched {
    /// Some link.
    pub(super) links: bool,
    /// Tables and destinations of routes, and whether there were none to it before.
    pub(super) routes: Vec<(u32, Prefix, bool)>,
    pub(super) neighbours: Vec<Neighbour>,
    /// The kernel may have changed more than it told.
    pub(super) is_doubtful: bool,
}

/// Links, routes and neighbours.
#[derive(Clone, Default)]
pub(super) struct Mirror {
    /// Names of the NICs that frames may be sent by; none means any.
    nics: Vec<String>,
    links: HashMap<u32, Link>,
    routes: Routes,
    neighbours: HashMap<Neighbour, Known>,
}

impl Mirror {
    /// Empty. Frames may be sent by these NICs, or by any if there are none.
    pub(super) fn new(nics: Vec<String>) -> Self {
        Self {
            nics,
            ..Self::default()
        }
    }

    /// Frames may be sent by these NICs from now on, or by any if there are none.
    pub(super) fn set_nics(&mut self, nics: Vec<String>) {
        self.nics = nics;
    }

    pub(super) fn apply(&mut self, news: News) -> Touched {
        let mut touched = Touched::default();
        if !news.is_everything {
            for change in news.changes {
                self.change(change, &mut touched);
            }
            return touched;
        }
        let mut after = Self::new(self.nics.clone());
        for change in news.changes {
            after.change(change, &mut touched);
        }
        // The listing may have been made while a link went down.
        after.drop_dead_routes(&mut touched);
        let neighbours = self.neighbours.keys().chain(after.neighbours.keys());
        let touched = Touched {
            links: self.links != after.links,
            routes: self.routes.differences(&after.routes),
            neighbours: neighbours
                .filter(|neighbour| {
                    self.neighbours.get(neighbour) != after.neighbours.get(neighbour)
                })
                .copied()
                .collect(),
            is_doubtful: false,
        };
        *self = after;
        touched
    }

    /// Index of the link with this name.
    pub(super) fn link_named(&self, name: &str) -> Option<u32> {
        let mut links = self.links.iter();
        links
            .find(|(_, link)| link.name == name)
            .map(|(&index, _)| index)
    }

    /// What the devices of a realm see; with `has_router`, those that are behind a router there.
    pub(super) fn view(&self, realm: &Realm, has_router: bool) -> View {
        let found = self
            .links
            .iter()
            .find(|(_, link)| link.name == realm.interface);
        match found.map(|(&index, link)| (index, link.kind)) {
            Some((index, _)) if let Some(given) = realm.link => View::Given(index, given),
            Some((_, LinkKind::Vrf { table })) => View::Table(table),
            Some((index, LinkKind::Nic | LinkKind::Vlan { .. } | LinkKind::Opaque)) => {
                if has_router {
                    View::Direct(index)
                } else {
                    View::Link(index)
                }
            }
            None => View::Nowhere,
        }
    }

    /// The longest prefix of `address` to which there is a route in this view, usable or not. All
    /// addresses in it that aren't in a longer one go the same way.
    pub(super) fn matching(&self, view: View, address: IpAddr) -> Prefix {
        let host = Prefix::host(address);
        let longest = |table| {
            let table = self.routes.table(table)?;
            table.covering(host).next().map(|(length, _)| length)
        };
        let length = match view {
            View::Main => [TABLE_LOCAL, TABLE_MAIN, TABLE_DEFAULT]
                .into_iter()
                .filter_map(longest)
                .max(),
            View::Table(table) => longest(table),
            View::Link(link) => {
                let through_link = self.routes.tables().filter_map(|table| {
                    let mut covering = table.covering(host);
                    covering
                        .find_map(|(length, routes)| leads_through(routes, link).then_some(length))
                });
                through_link.max()
            }
            View::Direct(_) | View::Given(..) | View::Nowhere => None,
        };
        Prefix::new(address, length.unwrap_or(0))
    }

    /// Whether there is a route to exactly this prefix in a table that is part of this view, given one
    /// of the tables in which there may be.
    pub(super) fn has_route(&self, view: View, table: u32, destination: Prefix) -> bool {
        let routes = || self.routes.table(table)?.get(destination);
        match view {
            View::Main => {
                [TABLE_LOCAL, TABLE_MAIN, TABLE_DEFAULT].contains(&table) && routes().is_some()
            }
            View::Table(number) => number == table && routes().is_some(),
            View::Link(link) => routes().is_some_and(|routes| leads_through(routes, link)),
            View::Direct(_) | View::Given(..) | View::Nowhere => false,
        }
    }

    /// The way to all addresses in `to` that aren't in a longer prefix with a route.
    pub(super) fn resolve(&self, view: View, to: Prefix) -> Resolution {
        match view {
            View::Main => [TABLE_LOCAL, TABLE_MAIN, TABLE_DEFAULT]
                .into_iter()
                .find_map(|table| self.look_up(table, to))
                .unwrap_or(Resolution::NoRoute),
            View::Table(table) => self.look_up(table, to).unwrap_or(Resolution::NoRoute),
            View::Link(link) => self.look_through(link, to),
            View::Direct(link) => self.on_link(link, to),
            View::Given(link, given) => self.given(link, given),
            View::Nowhere => Resolution::NoRoute,
        }
    }

    /// None if the next table is to be asked.
    fn look_up(&self, table: u32, to: Prefix) -> Option<Resolution> {
        let routes = self
            .routes
            .table(table)?
            .covering(to)
            .flat_map(|(_, routes)| routes);
        for route in routes {
            match route.kind {
                RouteKind::Unicast => {
                    if let Some(path) = route.paths.iter().find(|path| self.is_usable(path.link)) {
                        return Some(Resolution::Way(self.way(path, route.mtu, to)));
                    }
                }
                RouteKind::Host | RouteKind::Refused => return Some(Resolution::NoRoute),
                RouteKind::Throw => return None,
            }
        }
        None
    }

    fn look_through(&self, link: u32, to: Prefix) -> Resolution {
        let mut best: Option<(u8, &Route, &Path)> = None;
        for table in self.routes.tables() {
            let through_link = table.covering(to).find_map(|(length, routes)| {
                routes.iter().find_map(|route| {
                    let path = route.paths.iter().find(|path| path.link == link)?;
                    matches!(route.kind, RouteKind::Unicast | RouteKind::Host)
                        .then_some((length, route, path))
                })
            });
            let Some((length, route, path)) = through_link else {
                continue;
            };
            if best.is_none_or(|(longest, before, _)| {
                length > longest || length == longest && route.priority < before.priority
            }) {
                best = Some((length, route, path));
            }
        }
        match best {
            Some((_, route, _)) if route.kind == RouteKind::Host => Resolution::NoRoute,
            Some(_) if !self.is_usable(link) => Resolution::NoRoute,
            Some((_, route, path)) => Resolution::Way(self.way(path, route.mtu, to)),
            None => self.on_link(link, to),
        }
    }

    fn on_link(&self, link: u32, to: Prefix) -> Resolution {
        let path = Path {
            link,
            gateway: None,
            is_encapsulated: false,
        };
        if self.is_usable(link) {
            Resolution::Way(self.way(&path, None, to))
        } else {
            Resolution::NoRoute
        }
    }

    /// Behind a router whose MAC address the operator has told, and who alone knows the VLAN.
    fn given(&self, link: u32, given: RealmLink) -> Resolution {
        let path = Path {
            link,
            gateway: Some(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
            is_encapsulated: false,
        };
        if !self.is_usable(link) {
            return Resolution::NoRoute;
        }
        let way = self.way(&path, None, Prefix::host(IpAddr::V4(Ipv4Addr::UNSPECIFIED)));
        let tags = given.vlan.into_iter().filter(|&id| id != 0);
        let egress = way.egress.and_then(|egress| egress.with_tags(tags));
        let known = Known {
            mac: given.router_mac,
            is_stale: false,
        };
        Resolution::Way(Way {
            egress,
            known: Some(known),
            ..way
        })
    }

    fn way(&self, path: &Path, route_mtu: Option<u32>, to: Prefix) -> Way {
        let neighbour = Neighbour {
            address: path.gateway.unwrap_or_else(|| to.first()),
            link: path.link,
        };
        let link_mtu = self.links.get(&path.link).map(|link| link.mtu);
        // A route's MTU of 0 stands for the link's.
        let mtu = [link_mtu, route_mtu.filter(|&mtu| mtu > 0)]
            .into_iter()
            .flatten()
            .min();
        let egress = if path.is_encapsulated {
            None
        } else {
            self.egress(path.link)
        };
        Way {
            is_on_link: path.gateway.is_none(),
            neighbour,
            egress,
            known: self.neighbours.get(&neighbour).copied(),
            mtu: u16::try_from(mtu.unwrap_or(0)).unwrap_or(u16::MAX),
        }
    }

    fn egress(&self, index: u32) -> Option<Egress> {
        let mac = self.links.get(&index)?.mac?;
        let mut egress = Egress {
            link: index,
            nic: index,
            mac,
            tags: [(0, 0); 2],
            tag_count: 0,
        };
        loop {
            let link = self.links.get(&egress.nic)?;
            match link.kind {
                LinkKind::Vlan {
                    id,
                    ethertype,
                    parent,
                } => {
                    if egress.tag_count == 2 {
                        return None;
                    }
                    // The last tag that is put on is the outer one.
                    egress.tags = [(ethertype, id), egress.tags[0]];
                    egress.tag_count += 1;
                    egress.nic = parent;
                }
                LinkKind::Nic => {
                    let may_send = self.nics.is_empty() || self.nics.contains(&link.name);
                    return may_send.then_some(egress);
                }
                LinkKind::Vrf { .. } | LinkKind::Opaque => return None,
            }
        }
    }

    /// Whether frames can leave through a link, and all that it is on.
    fn is_usable(&self, index: u32) -> bool {
        let mut index = index;
        // Far more than tags fit into a frame; news may have been lost, so don't count on an end.
        for _ in 0..8 {
            let Some(link) = self
                .links
                .get(&index)
                .filter(|link| link.is_up && link.is_running)
            else {
                return false;
            };
            match link.kind {
                LinkKind::Vlan { parent, .. } => index = parent,
                LinkKind::Nic | LinkKind::Vrf { .. } | LinkKind::Opaque => return true,
            }
        }
        false
    }

    fn change(&mut self, change: Change, touched: &mut Touched) {
        match change {
            Change::Link(index, link) => {
                let before = self.links.get(&index);
                if before == Some(&link) {
                    return;
                }
                let state = |link: &Link| (link.is_up, link.is_running, link.kind, link.master);
                touched.links = true;
                touched.is_doubtful |= before.map(state) != Some(state(&link));
                let went_down = before.is_some_and(|link| link.is_up) && !link.is_up;
                self.links.insert(index, link);
                if went_down {
                    self.drop_dead_routes(touched);
                }
            }
            Change::LinkGone(index) => {
                self.links.remove(&index);
                self.neighbours
                    .retain(|neighbour, _| neighbour.link != index);
                self.drop_dead_routes(touched);
                touched.links = true;
                touched.is_doubtful = true;
            }
            Change::Route {
                table,
                destination,
                route,
                place,
            } => {
                let effect = self.routes.put(table, destination, route, place);
                touched.routes.push((table, destination, effect.appeared));
                touched.is_doubtful |= effect.is_doubtful;
            }
            Change::RouteGone {
                table,
                destination,
                route,
            } => {
                let effect = self.routes.take(table, destination, &route);
                touched.routes.push((table, destination, false));
                touched.is_doubtful |= effect.is_doubtful;
            }
            Change::Neighbour(neighbour, known) => {
                if self.neighbours.insert(neighbour, known) != Some(known) {
                    touched.neighbours.push(neighbour);
                }
            }
            Change::NeighbourGone(neighbour) => {
                if self.neighbours.remove(&neighbour).is_some() {
                    touched.neighbours.push(neighbour);
                }
            }
        }
    }

    fn drop_dead_routes(&mut self, touched: &mut Touched) {
        let links = &self.links;
        let dropped = self
            .routes
            .drop_dead(|index| links.get(&index).is_none_or(|link| !link.is_up));
        touched.routes.extend(
            dropped
                .into_iter()
                .map(|(table, destination)| (table, destination, false)),
        );
    }
}

fn leads_through(routes: &[Route], link: u32) -> bool {
    routes
        .iter()
        .any(|route| route.paths.iter().any(|path| path.link == link))
}
