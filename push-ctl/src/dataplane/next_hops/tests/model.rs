//! Next hops against a model that finds each way anew, by looking at every route there is.

use super::*;
use proptest::prelude::*;
use std::cmp::Reverse;
use std::collections::BTreeMap;

/// All there is to know, in plain lists.
#[derive(Default)]
struct Model {
    links: BTreeMap<u32, Link>,
    routes: Vec<(u32, Prefix, Route)>,
    neighbours: HashMap<Neighbour, Known>,
}

/// What is expected to stand in the tables.
#[derive(Debug, PartialEq, Eq)]
enum Expected {
    NoRoute,
    /// MAC address of neighbour and gateway, NIC, tags; MTU.
    Way(Option<[u8; 6]>, [u8; 6], u32, Vec<u16>, u16),
}

impl Model {
    fn change(&mut self, change: &Change) {
        match change.clone() {
            Change::Link(index, link) => {
                self.links.insert(index, link);
            }
            Change::LinkGone(index) => {
                self.links.remove(&index);
                self.neighbours
                    .retain(|neighbour, _| neighbour.link != index);
            }
            Change::Route {
                table,
                destination,
                route,
                place,
            } => self.put(table, destination, &route, place),
            Change::RouteGone {
                table,
                destination,
                route,
            } => {
                let gone = (table, destination, route);
                let at = self.routes.iter().position(|there| *there == gone);
                self.routes.remove(at.unwrap());
            }
            Change::Neighbour(neighbour, known) => {
                self.neighbours.insert(neighbour, known);
            }
            Change::NeighbourGone(neighbour) => {
                self.neighbours.remove(&neighbour);
            }
        }
        if matches!(change, Change::Link(..) | Change::LinkGone(_)) {
            self.drop_dead();
        }
    }

    fn drop_dead(&mut self) {
        let routes = std::mem::take(&mut self.routes);
        let alive =
            |(_, destination, route): &(u32, Prefix, Route)| self.may_have(*destination, route);
        self.routes = routes.into_iter().filter(alive).collect();
    }

    /// Of IPv4, the kernel has no routes through links that are down.
    fn may_have(&self, destination: Prefix, route: &Route) -> bool {
        let is_up = |path: &Path| self.links.get(&path.link).is_some_and(|link| link.is_up);
        destination.is_v6() || route.paths.iter().any(is_up)
    }

    fn put(&mut self, table: u32, destination: Prefix, route: &Route, place: Place) {
        let is_alike = |there: &(u32, Prefix, Route)| {
            (there.0, there.1, there.2.priority) == (table, destination, route.priority)
        };
        let new = (table, destination, route.clone());
        if destination.is_v6() {
            if place == Place::Instead {
                self.routes.retain(|there| !is_alike(there));
            }
            for there in self.routes.iter_mut().filter(|there| is_alike(there)) {
                there.2.paths.retain(|path| !route.paths.contains(path));
            }
            self.routes
                .retain(|there| !is_alike(there) || !there.2.paths.is_empty());
            self.routes.push(new);
            return;
        }
        match (place, self.routes.iter().position(is_alike)) {
            (Place::Last, _) => self.routes.push(new),
            (Place::Instead, Some(at)) => self.routes[at] = new,
            (Place::Instead, None) | (Place::First, _) => self.routes.insert(0, new),
        }
    }

    fn is_usable(&self, index: u32) -> bool {
        self.links.get(&index).is_some_and(|link| {
            let below = match link.kind {
                LinkKind::Vlan { parent, .. } => self.is_usable(parent),
                LinkKind::Nic | LinkKind::Vrf { .. } | LinkKind::Opaque => true,
            };
            link.is_up && link.is_running && below
        })
    }

    /// The routes to an address in one of these tables, as they are tried.
    fn candidates(&self, tables: &[u32], address: IpAddr) -> Vec<(u32, u8, &Route)> {
        let covering = self.routes.iter().filter(|(table, destination, _)| {
            let is_inside = destination.first() <= address
                && address <= destination.last()
                && destination.is_v6() == address.is_ipv6();
            tables.contains(table) && is_inside
        });
        let mut candidates: Vec<_> = covering
            .map(|(table, destination, route)| (*table, destination.length(), route))
            .collect();
        candidates
            .sort_by_key(|&(_, length, route)| (Reverse(length), route.priority, route.preference));
        candidates
    }

    fn expected(&self, realm: Option<&Realm>, address: IpAddr) -> Expected {
        let Some(realm) = realm else {
            return self.in_tables(&[TABLE_LOCAL, TABLE_MAIN, TABLE_DEFAULT], address);
        };
        let found = self
            .links
            .iter()
            .find(|(_, link)| link.name == realm.interface);
        let Some((&index, link)) = found else {
            return Expected::NoRoute;
        };
        if let LinkKind::Vrf { table } = link.kind {
            return self.in_tables(&[table], address);
        }
        let on_link = unicast(None, index);
        let tables: Vec<u32> = self.routes.iter().map(|&(table, ..)| table).collect();
        let candidates = self.candidates(&tables, address);
        let through = |route: &&Route| {
            matches!(route.kind, RouteKind::Unicast | RouteKind::Host)
                && route.paths.iter().any(|path| path.link == index)
        };
        let has_router = realm.routers.contains(&address);
        let best = candidates
            .iter()
            .map(|&(table, length, route)| (Reverse(length), route.priority, table, route))
            .filter(|(.., route)| !has_router && through(route))
            .min_by_key(|&(length, priority, table, _)| (length, priority, table))
            .map_or(&on_link, |(.., route)| route);
        if best.kind == RouteKind::Host || !self.is_usable(index) {
            return Expected::NoRoute;
        }
        let path = best.paths.iter().find(|path| path.link == index).unwrap();
        self.by(path, best.mtu, address)
    }

    fn in_tables(&self, tables: &[u32], address: IpAddr) -> Expected {
        for &table in tables {
            for (_, _, route) in self.candidates(&[table], address) {
                match route.kind {
                    RouteKind::Unicast => {
                        if let Some(path) =
                            route.paths.iter().find(|path| self.is_usable(path.link))
                        {
                            return self.by(path, route.mtu, address);
                        }
                    }
                    RouteKind::Host | RouteKind::Refused => return Expected::NoRoute,
                    RouteKind::Throw => break,
                }
            }
        }
        Expected::NoRoute
    }

    fn by(&self, path: &Path, mtu: Option<u32>, address: IpAddr) -> Expected {
        let link = &self.links[&path.link];
        let mut tags = Vec::new();
        let mut nic = path.link;
        while let LinkKind::Vlan { id, parent, .. } = self.links[&nic].kind {
            tags.insert(0, id);
            nic = parent;
        }
        let neighbour = Neighbour {
            address: path.gateway.unwrap_or(address),
            link: path.link,
        };
        let known = self.neighbours.get(&neighbour).map(|known| known.mac);
        let mtu = mtu.map_or(link.mtu, |mtu| mtu.min(link.mtu));
        Expected::Way(known, link.mac.unwrap(), nic, tags, mtu as u16)
    }
}

/// What stands in the tables at an index.
fn standing(next_hops: &NextHops, index: u16) -> Expected {
    let record = next_hops.table.record(index);
    let known = match record.hop.state {
        Hop::RESOLVED => Some(record.hop.mac),
        Hop::UNRESOLVED => None,
        Hop::NO_ROUTE => return Expected::NoRoute,
        state => panic!("state {state}"),
    };
    let egress = next_hops.table.egress(record.hop.egress);
    let tags = egress.tags[..egress.tag_count as usize].iter();
    Expected::Way(
        known,
        egress.mac[..6].try_into().unwrap(),
        egress.interface,
        tags.map(|tag| u16::from_be_bytes([tag[2], tag[3]]))
            .collect(),
        record.mtu,
    )
}

#[derive(Clone, Debug)]
enum Step {
    Tell(Change),
    /// Of the routes there are.
    RemoveRoute(prop::sample::Index),
    /// All there is, as after a loss.
    List,
    Acquire(u32, Option<usize>, IpAddr, u16),
    Release(u32),
}

const ADDRESSES: [&str; 12] = [
    "10.0.0.1",
    "10.0.0.2",
    "10.0.1.1",
    "10.1.0.1",
    "10.1.0.2",
    "172.16.0.1",
    "10.0.0.9",
    "fd00::1",
    "fd00::2",
    "fd00:0:1::1",
    "2001:db8::1",
    "fd00::9",
];

fn any_address() -> impl Strategy<Value = IpAddr> {
    prop::sample::select(&ADDRESSES[..]).prop_map(|address| address.parse().unwrap())
}

fn any_link() -> impl Strategy<Value = Change> {
    let index = prop::sample::select(vec![NIC, OTHER_NIC, VLAN, INNER_VLAN, VRF]);
    let state = prop::sample::select(vec![
        (true, true),
        (true, true),
        (true, false),
        (false, false),
    ]);
    (index, state, 0..2_u8, 1400..1402_u32, 0..8).prop_map(
        |(index, (is_up, is_running), last, mtu, is_gone)| {
            let vlan = |id, parent| LinkKind::Vlan {
                id,
                ethertype: 0x8100,
                parent,
            };
            let (name, kind) = match index {
                NIC => ("int", LinkKind::Nic),
                OTHER_NIC => ("ext", LinkKind::Nic),
                VLAN => ("int.5", vlan(5, NIC)),
                INNER_VLAN => ("int.5.6", vlan(6, VLAN)),
                _ => ("red", LinkKind::Vrf { table: RED }),
            };
            if is_gone == 0 {
                return Change::LinkGone(index);
            }
            let link = Link {
                mac: Some(mac(0xF0 + last)),
                mtu,
                is_up,
                is_running,
                ..link(name, kind)
            };
            Change::Link(index, link)
        },
    )
}

fn any_neighbour() -> impl Strategy<Value = Change> {
    (
        any_address(),
        prop::sample::select(vec![NIC, OTHER_NIC, VLAN]),
        0..4_u8,
    )
        .prop_map(|(address, link, last)| {
            let neighbour = Neighbour { address, link };
            if last == 0 {
                return Change::NeighbourGone(neighbour);
            }
            let known = Known {
                mac: mac(last),
                is_stale: last == 1,
            };
            Change::Neighbour(neighbour, known)
        })
}

fn any_route() -> impl Strategy<Value = Change> {
    let path = (
        prop::sample::select(vec![NIC, OTHER_NIC, VLAN, INNER_VLAN]),
        prop::option::of(0..ADDRESSES.len()),
    );
    let kind = prop::sample::select(vec![
        RouteKind::Unicast,
        RouteKind::Unicast,
        RouteKind::Unicast,
        RouteKind::Unicast,
        RouteKind::Host,
        RouteKind::Refused,
        RouteKind::Throw,
    ]);
    let table = prop::sample::select(vec![
        TABLE_MAIN,
        TABLE_MAIN,
        TABLE_LOCAL,
        TABLE_DEFAULT,
        RED,
        20,
    ]);
    // Few, so that there are several routes to the same.
    let destination = prop::sample::select(vec![
        "0.0.0.0/0",
        "10.0.0.0/8",
        "10.0.0.0/16",
        "10.0.0.0/24",
        "10.0.0.1/32",
        "::/0",
        "fd00::/16",
        "fd00::/64",
        "fd00::1/128",
    ]);
    let place = prop::sample::select(vec![Place::First, Place::Last, Place::Instead]);
    (
        (table, destination.prop_map(prefix), place),
        (kind, 0..2_u32, 0..3_u8, prop::option::of(1300..1302_u32)),
        prop::collection::vec(path, 1..3),
    )
        .prop_map(
            |((table, destination, place), (kind, priority, preference, mtu), paths)| {
                let mut paths: Vec<_> = paths
                    .into_iter()
                    .map(|(link, gateway)| Path {
                        link,
                        gateway: gateway
                            .map(|at| ADDRESSES[at].parse::<IpAddr>().unwrap())
                            .filter(|gateway| gateway.is_ipv6() == destination.is_v6()),
                        is_encapsulated: false,
                    })
                    .collect();
                paths.dedup();
                Change::Route {
                    table,
                    destination,
                    route: Route {
                        priority,
                        preference: if destination.is_v6() { preference } else { 1 },
                        kind,
                        mtu,
                        paths,
                    },
                    place,
                }
            },
        )
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => any_link().prop_map(Step::Tell),
        3 => any_neighbour().prop_map(Step::Tell),
        6 => any_route().prop_map(Step::Tell),
        3 => any::<prop::sample::Index>().prop_map(Step::RemoveRoute),
        1 => Just(Step::List),
        5 => (0..24_u32, prop::option::of(0..4_usize), any_address(), 1..3_u16)
            .prop_map(|(number, realm, address, port)| Step::Acquire(number, realm, address, port)),
        2 => (0..24_u32).prop_map(Step::Release),
    ]
}

fn listing(model: &Model) -> News {
    let links = model
        .links
        .iter()
        .map(|(&index, link)| Change::Link(index, link.clone()));
    let routes = model
        .routes
        .iter()
        .map(|(table, destination, route)| Change::Route {
            table: *table,
            destination: *destination,
            route: route.clone(),
            place: Place::Last,
        });
    let neighbours = model.neighbours.iter();
    let neighbours = neighbours.map(|(&neighbour, &known)| Change::Neighbour(neighbour, known));
    News {
        changes: links.chain(routes).chain(neighbours).collect(),
        is_everything: true,
    }
}

fn run(steps: &[Vec<Step>]) -> Result<(), TestCaseError> {
    let realms = [
        realm("red", &[]),
        realm("int.5", &[]),
        realm("ext", &["10.0.0.9", "fd00::9"]),
        realm("red", &["10.0.0.9"]),
    ];
    let mut bench = Bench::new(&realms);
    let mut model = Model::default();
    // What stands in the sessions' records, and where they are.
    let mut records: BTreeMap<SessionId, (u16, Option<usize>, IpAddr)> = BTreeMap::new();
    for batch in steps {
        bench.now += REST;
        let mut news = News::default();
        for step in batch {
            match step {
                Step::Tell(Change::Route {
                    destination, route, ..
                }) if !model.may_have(*destination, route) => {}
                Step::Tell(change) => {
                    model.change(change);
                    news.changes.push(change.clone());
                }
                Step::RemoveRoute(index) => {
                    if !model.routes.is_empty() {
                        let (table, destination, route) = index.get(&model.routes).clone();
                        let change = Change::RouteGone {
                            table,
                            destination,
                            route,
                        };
                        model.change(&change);
                        news.changes.push(change);
                    }
                }
                Step::List => {
                    model.drop_dead();
                    news = listing(&model);
                }
                &Step::Acquire(number, realm, device, port) => {
                    let source = if device.is_ipv4() {
                        "10.64.0.1"
                    } else {
                        "fd00:64::1"
                    };
                    let target = Target {
                        realm,
                        device,
                        source: (source.parse::<IpAddr>().unwrap(), port).into(),
                        tunnel: None,
                    };
                    let index = bench.acquire(number, &target);
                    let address = target.address(&realms).unwrap();
                    records.insert(session(number), (index, realm, address));
                }
                Step::Release(number) => {
                    bench.next_hops.release(session(*number));
                    records.remove(&session(*number));
                }
            }
        }
        for (session, index) in bench.next_hops.apply_at(news, bench.now) {
            records.get_mut(&session).unwrap().0 = index;
        }
        for (session, &(index, realm, address)) in &records {
            let expected = model.expected(realm.map(|realm| &realms[realm]), address);
            let standing = standing(&bench.next_hops, index);
            prop_assert_eq!(
                standing,
                expected,
                "{} to {} in {:?}",
                session,
                address,
                realm
            );
        }
    }
    for session in records.into_keys() {
        bench.next_hops.release(session);
    }
    let next_hops = &bench.next_hops;
    prop_assert!(next_hops.entries.iter().all(Option::is_none));
    prop_assert!(next_hops.by_class.is_empty() && next_hops.by_place.is_empty());
    prop_assert!(next_hops.by_neighbour.is_empty() && next_hops.seats.is_empty());
    prop_assert_eq!(next_hops.due(), None);
    Ok(())
}

proptest! {
    #[test]
    fn what_is_kept_is_what_would_be_found_anew(
        steps in prop::collection::vec(prop::collection::vec(any_step(), 1..4), 1..60),
    ) {
        run(&steps)?;
    }
}
