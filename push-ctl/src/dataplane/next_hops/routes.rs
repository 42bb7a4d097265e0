//! The kernel's routing tables, as netlink tells of them.
//!
//! Routes to the same destination stand in the order in which the kernel tries them. Not kept are
//! routes that are only for some traffic (a type of service, a source prefix).

use super::prefix::{Prefix, PrefixTable};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// Table of the addresses of this host.
pub(super) const TABLE_LOCAL: u32 = 255;
/// Table of routes that weren't put into another one.
pub(super) const TABLE_MAIN: u32 = 254;
/// Table that is looked at last.
pub(super) const TABLE_DEFAULT: u32 = 253;

/// A route to some destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Route {
    /// The lowest is tried first.
    pub(super) priority: u32,
    /// Of routes with the same priority, that of the highest preference (0) is tried first.
    pub(super) preference: u8,
    pub(super) kind: RouteKind,
    /// Longest datagram in bytes, if the route says so.
    pub(super) mtu: Option<u32>,
    pub(super) paths: Vec<Path>,
}

/// What becomes of datagrams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RouteKind {
    /// They take one of the paths.
    Unicast,
    /// They are for this host, or not for a single one.
    Host,
    /// They are dropped.
    Refused,
    /// The next table is asked.
    Throw,
}

/// One next hop of a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Path {
    /// Index of the interface.
    pub(super) link: u32,
    /// Who takes the datagrams there, if it isn't their destination.
    pub(super) gateway: Option<IpAddr>,
    /// The route puts something around the datagram, or a label on it.
    pub(super) is_encapsulated: bool,
}

/// Where a new route stands among those to the same destination with the same priority.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    First,
    Last,
    /// Of the first.
    Instead,
}

/// What a change to a route comes to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Effect {
    /// There was no route to this destination before.
    pub(super) appeared: bool,
    /// The kernel's routes may be others than what is known here.
    pub(super) is_doubtful: bool,
}

/// All routing tables.
#[derive(Clone, Default)]
pub(super) struct Routes {
    tables: BTreeMap<u32, PrefixTable<Vec<Route>>>,
}

impl Routes {
    pub(super) fn table(&self, table: u32) -> Option<&PrefixTable<Vec<Route>>> {
        self.tables.get(&table)
    }

    pub(super) fn tables(&self) -> impl Iterator<Item = &PrefixTable<Vec<Route>>> {
        self.tables.values()
    }

    /// Adds a route that the kernel has told of.
    pub(super) fn put(
        &mut self,
        table: u32,
        destination: Prefix,
        route: Route,
        place: Place,
    ) -> Effect {
        let table = self.tables.entry(table).or_default();
        let Some(routes) = table.get_mut(destination) else {
            table.insert(destination, vec![route]);
            return Effect {
                appeared: true,
                is_doubtful: place == Place::Instead,
            };
        };
        let is_doubtful = if destination.is_v6() {
            put_v6(routes, route, place)
        } else {
            put_v4(routes, route, place)
        };
        Effect {
            appeared: false,
            is_doubtful,
        }
    }

    /// Takes a route out that the kernel has told to be gone.
    pub(super) fn take(&mut self, table: u32, destination: Prefix, gone: &Route) -> Effect {
        let doubtful = Effect {
            appeared: false,
            is_doubtful: true,
        };
        let Some(prefixes) = self.tables.get_mut(&table) else {
            return doubtful;
        };
        let Some(routes) = prefixes.get_mut(destination) else {
            return doubtful;
        };
        let was_there = if destination.is_v6() {
            take_v6(routes, gone)
        } else {
            take_v4(routes, gone)
        };
        if routes.is_empty() {
            prefixes.remove(destination);
        }
        Effect {
            appeared: false,
            is_doubtful: !was_there,
        }
    }

    /// Takes out what the kernel drops without a word when interfaces go down: IPv4 routes all of whose
    /// paths are dead. Returns table and destination of each.
    pub(super) fn drop_dead(&mut self, is_dead: impl Fn(u32) -> bool) -> Vec<(u32, Prefix)> {
        let has_died = |route: &Route| {
            !route.paths.is_empty() && route.paths.iter().all(|path| is_dead(path.link))
        };
        let mut dropped = Vec::new();
        for (&number, table) in &mut self.tables {
            let with_dead: Vec<_> = table
                .iter()
                .filter(|(destination, routes)| !destination.is_v6() && routes.iter().any(has_died))
                .map(|(destination, _)| destination)
                .collect();
            for destination in with_dead {
                if let Some(routes) = table.get_mut(destination) {
                    routes.retain(|route| !has_died(route));
                    if routes.is_empty() {
                        table.remove(destination);
                    }
                }
                dropped.push((number, destination));
            }
        }
        dropped
    }

    /// Table and destination of all routes that are others in `after`, and whether there are none here.
    pub(super) fn differences(&self, after: &Self) -> Vec<(u32, Prefix, bool)> {
        let none = PrefixTable::default();
        let mut differences = Vec::new();
        for (&number, table) in &self.tables {
            let after = after.tables.get(&number).unwrap_or(&none);
            for (destination, routes) in table.iter() {
                if after.get(destination) != Some(routes) {
                    differences.push((number, destination, false));
                }
            }
        }
        for (&number, table) in &after.tables {
            let before = self.tables.get(&number).unwrap_or(&none);
            for (destination, _) in table.iter() {
                if before.get(destination).is_none() {
                    differences.push((number, destination, true));
                }
            }
        }
        differences
    }
}

/// Returns whether the kernel may have done something else.
fn put_v4(routes: &mut Vec<Route>, route: Route, place: Place) -> bool {
    let first = routes.partition_point(|other| other.priority < route.priority);
    let behind = routes.partition_point(|other| other.priority <= route.priority);
    match place {
        Place::First => routes.insert(first, route),
        Place::Last => routes.insert(behind, route),
        Place::Instead if first < behind => routes[first] = route,
        Place::Instead => {
            routes.insert(first, route);
            return true;
        }
    }
    false
}

/// Each path is a route of its own to the kernel, which tells of those together that it takes in turn.
fn put_v6(routes: &mut Vec<Route>, route: Route, place: Place) -> bool {
    let with_priority = |other: &Route| other.priority == route.priority;
    let mut is_doubtful = false;
    if place == Place::Instead {
        is_doubtful = routes.iter().filter(|other| with_priority(other)).count() != 1;
        routes.retain(|other| !with_priority(other));
    }
    for other in routes.iter_mut().filter(|other| with_priority(other)) {
        other.paths.retain(|path| !route.paths.contains(path));
    }
    routes.retain(|other| !with_priority(other) || !other.paths.is_empty());
    let rank = |route: &Route| (route.priority, route.preference);
    let behind = routes.partition_point(|other| rank(other) <= rank(&route));
    routes.insert(behind, route);
    is_doubtful
}

/// Returns whether the route was there.
fn take_v4(routes: &mut Vec<Route>, gone: &Route) -> bool {
    let is_alike = |other: &Route| other.priority == gone.priority && other.kind == gone.kind;
    let exact = |other: &Route| is_alike(other) && other.paths == gone.paths;
    let at = routes.iter().position(exact).or_else(|| {
        // Flags and the like of a path may have changed since; if there is but one, it's that one.
        let mut alike = (0..routes.len()).filter(|&at| is_alike(&routes[at]));
        alike.next().filter(|_| alike.next().is_none())
    });
    if let Some(at) = at {
        routes.remove(at);
    }
    at.is_some()
}

/// Returns whether all of its paths were there.
fn take_v6(routes: &mut Vec<Route>, gone: &Route) -> bool {
    let mut found = 0;
    let mut had_none = false;
    routes.retain_mut(|other| {
        if other.priority != gone.priority || other.kind != gone.kind {
            return true;
        }
        if other.paths.is_empty() && gone.paths.is_empty() {
            had_none = true;
            return false;
        }
        let before = other.paths.len();
        other.paths.retain(|path| !gone.paths.contains(path));
        found += before - other.paths.len();
        !other.paths.is_empty()
    });
    found == gone.paths.len() && (found > 0 || had_none)
}
