//! Next hops without a kernel, then with one; what they are made of has tests of its own.

mod kernel;
mod messages;
mod model;
mod namespace;

use super::mirror::{Known, Link, LinkKind, Resolution};
use super::news::{Change, News};
use super::prefix::Prefix;
use super::routes::{Path, Place, Route, RouteKind};
use super::slots::REST;
use super::*;
use push_common::maps::EgressRecord;
use std::sync::{Arc, Mutex};

const NIC: u32 = 2;
const OTHER_NIC: u32 = 3;
const VLAN: u32 = 4;
const INNER_VLAN: u32 = 5;
const VRF: u32 = 6;
const RED: u32 = 10;

/// Next hops that nobody but the test tells anything, and whom they asked for.
struct Bench {
    next_hops: NextHops,
    asked: Arc<Mutex<Vec<Neighbour>>>,
    now: Instant,
}

impl Bench {
    fn new(realms: &[Realm]) -> Self {
        Self::on(NextHopTable::anonymous(), realms)
    }

    fn on(table: NextHopTable, realms: &[Realm]) -> Self {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let log = asked.clone();
        let ask = move |neighbour| log.lock().unwrap().push(neighbour);
        let next_hops = NextHops::new(table, realms.to_vec(), Vec::new(), ask);
        Self {
            next_hops,
            asked,
            now: Instant::now(),
        }
    }

    fn tell(&mut self, changes: Vec<Change>) -> Vec<(SessionId, u16)> {
        let news = News {
            changes,
            is_everything: false,
        };
        self.next_hops.apply_at(news, self.now)
    }

    fn acquire(&mut self, number: u32, target: &Target) -> u16 {
        self.next_hops
            .acquire_at(session(number), target, self.now)
            .unwrap()
    }

    fn asked(&self) -> Vec<Neighbour> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }

    /// State, MAC address and egress of a next hop.
    fn at(&self, index: u16) -> (u8, [u8; 6], EgressRecord) {
        let hop = self.next_hops.table.record(index).hop;
        (hop.state, hop.mac, self.next_hops.table.egress(hop.egress))
    }
}

fn session(number: u32) -> SessionId {
    SessionId::new(number, 1)
}

fn target(device: &str) -> Target {
    let device: IpAddr = device.parse().unwrap();
    let source = if device.is_ipv4() {
        "10.64.0.1:5683"
    } else {
        "[fd00:64::1]:5683"
    };
    Target {
        realm: None,
        device,
        source: source.parse().unwrap(),
        tunnel: None,
    }
}

fn realm(interface: &str, routers: &[&str]) -> Realm {
    Realm {
        name: interface.into(),
        interface: interface.into(),
        routers: routers
            .iter()
            .map(|router| router.parse().unwrap())
            .collect(),
        link: None,
    }
}

const fn mac(last: u8) -> [u8; 6] {
    [2, 0, 0, 0, 0, last]
}

fn link(name: &str, kind: LinkKind) -> Link {
    Link {
        name: name.into(),
        mac: Some(mac(0xFF)),
        mtu: 1500,
        is_up: true,
        is_running: true,
        kind,
        master: None,
    }
}

fn nic(index: u32, name: &str) -> Change {
    Change::Link(index, link(name, LinkKind::Nic))
}

fn neighbour(address: &str, link: u32, last: u8) -> Change {
    let known = Known {
        mac: mac(last),
        is_stale: false,
    };
    Change::Neighbour(at(address, link), known)
}

fn at(address: &str, link: u32) -> Neighbour {
    Neighbour {
        address: address.parse().unwrap(),
        link,
    }
}

fn prefix(text: &str) -> Prefix {
    let (address, length) = text.split_once('/').unwrap();
    Prefix::new(address.parse().unwrap(), length.parse().unwrap())
}

/// A route to `destination` in a table, through `gateway` or right on the link.
fn route(table: u32, destination: &str, gateway: Option<&str>, link: u32) -> Change {
    Change::Route {
        table,
        destination: prefix(destination),
        route: unicast(gateway, link),
        place: Place::First,
    }
}

fn unicast(gateway: Option<&str>, link: u32) -> Route {
    Route {
        priority: 0,
        preference: 1,
        kind: RouteKind::Unicast,
        mtu: None,
        paths: vec![Path {
            link,
            gateway: gateway.map(|gateway| gateway.parse().unwrap()),
            is_encapsulated: false,
        }],
    }
}

fn gone(change: Change) -> Change {
    match change {
        Change::Route {
            table,
            destination,
            route,
            ..
        } => Change::RouteGone {
            table,
            destination,
            route,
        },
        Change::Neighbour(neighbour, _) => Change::NeighbourGone(neighbour),
        Change::Link(index, _) => Change::LinkGone(index),
        other @ (Change::LinkGone(_) | Change::RouteGone { .. } | Change::NeighbourGone(_)) => {
            other
        }
    }
}

#[test]
fn sessions_behind_a_router_share_a_next_hop_and_those_on_a_link_do_not() {
    let mut bench = Bench::new(&[]);
    bench.tell(vec![
        nic(NIC, "int"),
        route(TABLE_MAIN, "10.64.0.0/16", None, NIC),
        route(TABLE_MAIN, "10.65.0.0/16", Some("10.64.0.9"), NIC),
        neighbour("10.64.0.9", NIC, 9),
        neighbour("10.64.0.2", NIC, 2),
    ]);
    let behind = [
        bench.acquire(1, &target("10.65.0.1")),
        bench.acquire(2, &target("10.65.0.2")),
    ];
    assert_eq!(behind[0], behind[1]);
    let other_source = Target {
        source: "10.64.0.1:9999".parse().unwrap(),
        ..target("10.65.0.1")
    };
    assert_ne!(bench.acquire(3, &other_source), behind[0]);
    let on_link = [
        bench.acquire(4, &target("10.64.0.2")),
        bench.acquire(5, &target("10.64.0.3")),
    ];
    assert_ne!(on_link[0], on_link[1]);
    assert_eq!(bench.acquire(6, &target("10.64.0.2")), on_link[0]);

    assert_eq!(bench.at(behind[0]).1, mac(9));
    assert_eq!(bench.at(on_link[0]).1, mac(2));
    assert_eq!(bench.next_hops.state(session(4)), Some("resolved"));
    assert_eq!(bench.next_hops.state(session(5)), Some("unresolved"));
    assert_eq!(bench.next_hops.state(session(7)), None);
    assert_eq!(bench.asked(), [at("10.64.0.3", NIC)]);

    // One write changes it for all.
    assert_eq!(bench.tell(vec![neighbour("10.64.0.9", NIC, 8)]), []);
    assert_eq!(bench.at(behind[0]).1, mac(8));
    assert_eq!(bench.tell(vec![neighbour("10.64.0.3", NIC, 3)]), []);
    assert_eq!(
        (bench.at(on_link[1]).0, bench.at(on_link[1]).1),
        (Hop::RESOLVED, mac(3))
    );
}

#[test]
fn a_more_specific_route_takes_its_devices_along_and_going_it_takes_none() {
    let mut bench = Bench::new(&[]);
    let specific = route(TABLE_MAIN, "10.65.3.0/24", Some("10.64.0.8"), NIC);
    bench.tell(vec![
        nic(NIC, "int"),
        route(TABLE_MAIN, "10.64.0.0/16", None, NIC),
        route(TABLE_MAIN, "10.65.0.0/16", Some("10.64.0.9"), NIC),
        neighbour("10.64.0.9", NIC, 9),
        neighbour("10.64.0.8", NIC, 8),
    ]);
    let wide = bench.acquire(1, &target("10.65.1.1"));
    assert_eq!(bench.acquire(2, &target("10.65.3.1")), wide);
    let moved = bench.tell(vec![specific.clone()]);
    let &[(who, narrow)] = &moved[..] else {
        panic!("{moved:?}");
    };
    assert_eq!(who, session(2));
    assert_eq!((bench.at(wide).1, bench.at(narrow).1), (mac(9), mac(8)));
    assert_eq!(bench.tell(vec![gone(specific.clone())]), []);
    assert_eq!(bench.at(narrow).1, mac(9));
    assert_eq!(bench.tell(vec![specific]), []);
    assert_eq!(bench.at(narrow).1, mac(8));
}

#[test]
fn devices_that_are_no_longer_behind_a_router_get_next_hops_of_their_own() {
    let mut bench = Bench::new(&[]);
    let through = route(TABLE_MAIN, "10.65.0.0/16", Some("10.64.0.9"), NIC);
    let direct = route(TABLE_MAIN, "10.65.0.0/16", None, NIC);
    bench.tell(vec![
        nic(NIC, "int"),
        through.clone(),
        neighbour("10.64.0.9", NIC, 9),
        neighbour("10.65.0.1", NIC, 1),
        neighbour("10.65.0.2", NIC, 2),
    ]);
    let shared = bench.acquire(1, &target("10.65.0.1"));
    assert_eq!(bench.acquire(2, &target("10.65.0.2")), shared);
    let moved = bench.tell(vec![gone(through), direct]);
    assert_eq!(moved.len(), 2);
    for (session, index) in moved {
        assert_eq!(bench.at(index).1, mac(session.slot() as u8));
    }
}

#[test]
fn a_link_that_goes_down_is_no_way_and_back_up_it_is() {
    let mut bench = Bench::new(&[]);
    bench.tell(vec![
        nic(NIC, "int"),
        nic(OTHER_NIC, "ext"),
        route(TABLE_MAIN, "fd00:65::/64", Some("fd00:64::9"), NIC),
        neighbour("fd00:64::9", NIC, 9),
        neighbour("fd00:51::9", OTHER_NIC, 5),
    ]);
    let index = bench.acquire(1, &target("fd00:65::1"));
    let without_carrier = Link {
        is_running: false,
        ..link("int", LinkKind::Nic)
    };
    assert_eq!(bench.at(index).0, Hop::RESOLVED);
    assert_eq!(bench.tell(vec![Change::Link(NIC, without_carrier)]), []);
    assert_eq!(bench.at(index).0, Hop::NO_ROUTE);
    assert_eq!(bench.next_hops.state(session(1)), Some("no_route"));
    // Through another one there is a way.
    let default = route(TABLE_MAIN, "::/0", Some("fd00:51::9"), OTHER_NIC);
    assert_eq!(bench.tell(vec![default]), []);
    assert_eq!(
        (bench.at(index).0, bench.at(index).1),
        (Hop::RESOLVED, mac(5))
    );
    assert_eq!(bench.tell(vec![nic(NIC, "int")]), []);
    assert_eq!(bench.at(index).1, mac(9));
}

#[test]
fn tags_come_from_the_links_on_the_way_down_to_the_nic() {
    let mut bench = Bench::new(&[]);
    let vlan = |id, ethertype, parent| LinkKind::Vlan {
        id,
        ethertype,
        parent,
    };
    let inner = Link {
        mac: Some(mac(0xEE)),
        mtu: 1492,
        ..link("int.7.5", vlan(5, 0x8100, VLAN))
    };
    bench.tell(vec![
        nic(NIC, "int"),
        Change::Link(VLAN, link("int.7", vlan(7, 0x88A8, NIC))),
        Change::Link(INNER_VLAN, inner),
        route(TABLE_MAIN, "10.1.0.0/16", None, VLAN),
        route(TABLE_MAIN, "10.2.0.0/16", None, INNER_VLAN),
        neighbour("10.1.0.1", VLAN, 1),
        neighbour("10.2.0.1", INNER_VLAN, 1),
    ]);
    let single = bench.acquire(1, &target("10.1.0.1"));
    let (state, _, egress) = bench.at(single);
    assert_eq!(
        (state, egress.interface, egress.tag_count),
        (Hop::RESOLVED, NIC, 1)
    );
    assert_eq!(egress.tags, [[0x88, 0xA8, 0, 7], [0; 4]]);
    let double = bench.acquire(2, &target("10.2.0.1"));
    let (_, _, egress) = bench.at(double);
    assert_eq!((egress.interface, egress.tag_count), (NIC, 2));
    assert_eq!(egress.tags, [[0x88, 0xA8, 0, 7], [0x81, 0, 0, 5]]);
    assert_eq!(egress.mac[..6], mac(0xEE));
    assert_eq!(bench.next_hops.table.record(double).mtu, 1492);
    // The NIC's state is that of all VLANs on it; a new MAC address of the gateway is one write.
    let down = Link {
        is_running: false,
        ..link("int", LinkKind::Nic)
    };
    bench.tell(vec![Change::Link(NIC, down)]);
    assert_eq!(
        (bench.at(single).0, bench.at(double).0),
        (Hop::NO_ROUTE, Hop::NO_ROUTE)
    );
    let renamed = Link {
        mac: Some(mac(0xDD)),
        ..link("int.7", vlan(7, 0x88A8, NIC))
    };
    bench.tell(vec![nic(NIC, "int"), Change::Link(VLAN, renamed)]);
    let (state, _, egress) = bench.at(single);
    assert_eq!((state, &egress.mac[..6]), (Hop::RESOLVED, &mac(0xDD)[..]));
}

#[test]
fn realms_may_have_the_same_addresses() {
    let realms = [
        realm("red", &[]),
        realm("int", &[]),
        realm("ext", &["10.9.0.1"]),
    ];
    let mut bench = Bench::new(&realms);
    bench.tell(vec![
        nic(NIC, "int"),
        nic(OTHER_NIC, "ext"),
        Change::Link(VRF, link("red", LinkKind::Vrf { table: RED })),
        route(RED, "10.0.0.0/8", Some("10.255.0.1"), OTHER_NIC),
        route(20, "10.0.0.0/8", Some("10.255.0.1"), NIC),
        neighbour("10.255.0.1", OTHER_NIC, 1),
        neighbour("10.255.0.1", NIC, 2),
        neighbour("10.9.0.1", OTHER_NIC, 3),
    ]);
    let macs = [None, Some(0), Some(1), Some(2)].map(|realm| {
        let target = Target {
            realm,
            ..target("10.0.0.1")
        };
        let index = bench.acquire(realm.map_or(9, |realm| realm as u32), &target);
        let is_realm = bench
            .next_hops
            .table
            .record(index)
            .has(NextHopRecord::REALM);
        assert_eq!(is_realm, realm.is_some());
        (bench.at(index).0, bench.at(index).1)
    });
    let expected = [
        (Hop::NO_ROUTE, [0; 6]),
        (Hop::RESOLVED, mac(1)),
        (Hop::RESOLVED, mac(2)),
        (Hop::RESOLVED, mac(3)),
    ];
    assert_eq!(macs, expected);
}

#[test]
fn the_way_of_a_tunnel_is_the_way_to_its_other_end() {
    let mut bench = Bench::new(&[]);
    bench.tell(vec![
        nic(NIC, "int"),
        route(TABLE_MAIN, "fd00:64::/64", None, NIC),
        neighbour("fd00:64::7", NIC, 7),
    ]);
    let through = |device| Target {
        tunnel: Some(TunnelEnds {
            local: "fd00:64::1".parse().unwrap(),
            peer: "fd00:64::7".parse().unwrap(),
        }),
        ..target(device)
    };
    let index = bench.acquire(1, &through("10.0.0.1"));
    assert_eq!(bench.acquire(2, &through("10.0.0.2")), index);
    assert_eq!(bench.at(index).1, mac(7));
    let record = bench.next_hops.table.record(index);
    assert!(record.has(NextHopRecord::GTPU | NextHopRecord::OUTER_IPV6));
    assert_eq!(record.outer_destination[..2], [0xFD, 0]);
    assert_eq!(
        (record.outer_source[15], record.outer_destination[15]),
        (1, 7)
    );
    assert_eq!(
        (&record.source[..4], record.source_port),
        (&[10, 64, 0, 1][..], 5683_u16.to_be_bytes())
    );
}

#[test]
fn an_index_is_used_again_only_when_packets_in_flight_are_gone() {
    let mut bench = Bench::new(&[]);
    let first = bench.acquire(1, &target("10.0.0.1"));
    bench.next_hops.release(session(1));
    bench.now = Instant::now();
    assert_ne!(bench.acquire(2, &target("10.0.0.1")), first);
    bench.now += REST;
    let other = Target {
        source: "10.64.0.2:1".parse().unwrap(),
        ..target("10.0.0.1")
    };
    assert_eq!(bench.acquire(3, &other), first);
}

#[test]
fn a_full_table_says_what_to_do() {
    let mut bench = Bench::new(&[realm("int", &[])]);
    bench.tell(vec![nic(NIC, "int")]);
    let on_link = |number: u32| Target {
        realm: Some(0),
        ..target(&IpAddr::from((0x0A00_0000 + number).to_be_bytes()).to_string())
    };
    for number in 1..=MAX_NEXT_HOPS {
        bench.acquire(number, &on_link(number));
    }
    let one_more = on_link(MAX_NEXT_HOPS + 1);
    let error = bench
        .next_hops
        .acquire_at(session(0), &one_more, bench.now)
        .unwrap_err();
    assert!(
        error
            .to_string()
            .contains("put a router in front of devices"),
        "{error}"
    );
    assert_eq!(bench.next_hops.state(session(0)), None);
    bench.next_hops.release(session(5));
    bench.now = Instant::now() + REST;
    bench.acquire(0, &one_more);
}

#[test]
fn after_a_restart_next_hops_stay_where_they_are() {
    let news = || {
        vec![
            nic(NIC, "int"),
            route(TABLE_MAIN, "10.64.0.0/16", None, NIC),
            neighbour("10.64.0.2", NIC, 2),
            neighbour("10.64.0.3", NIC, 3),
        ]
    };
    let mut before = Bench::new(&[]);
    before.tell(news());
    let old = [2, 3, 4].map(|last| before.acquire(last, &target(&format!("10.64.0.{last}"))));

    let mut bench = Bench::on(before.next_hops.table, &[]);
    bench.next_hops.occupied(old.into_iter());
    bench.tell(news());
    // In another order, with one that is new, and without one.
    let known = bench.acquire(3, &target("10.64.0.3"));
    assert_eq!(known, old[1]);
    let fresh = bench.acquire(7, &target("10.64.0.7"));
    assert!(!old.contains(&fresh), "{fresh} is in use");
    assert_eq!(
        bench.at(known).2,
        bench.at(old[0]).2,
        "they share the egress"
    );
    assert_eq!(
        (bench.at(old[0]).0, bench.at(old[0]).1),
        (Hop::RESOLVED, mac(2))
    );
    bench.next_hops.adopted();
    bench.now = Instant::now() + REST;
    let reused = bench.acquire(8, &target("10.64.0.8"));
    assert!(
        [old[0], old[2]].contains(&reused),
        "{reused} was free before"
    );
}

#[test]
fn a_stale_neighbour_is_sent_to_and_asked_for() {
    let mut bench = Bench::new(&[]);
    let stale = Known {
        mac: mac(2),
        is_stale: true,
    };
    bench.tell(vec![
        nic(NIC, "int"),
        route(TABLE_MAIN, "10.64.0.0/16", None, NIC),
        Change::Neighbour(at("10.64.0.2", NIC), stale),
    ]);
    let index = bench.acquire(1, &target("10.64.0.2"));
    assert_eq!(
        (bench.at(index).0, bench.at(index).1),
        (Hop::RESOLVED, mac(2))
    );
    assert_eq!(bench.asked(), [at("10.64.0.2", NIC)]);
    bench.tell(vec![neighbour("10.64.0.2", NIC, 3)]);
    assert_eq!(bench.at(index).1, mac(3));
    assert_eq!(bench.next_hops.due(), None);
}

#[test]
fn what_only_the_kernel_can_do_is_left_to_it() {
    let nics = vec!["int".to_owned()];
    let table = NextHopTable::anonymous();
    let mut next_hops = NextHops::new(table, Vec::new(), nics, |neighbour| {
        panic!("asked for {neighbour:?}")
    });
    let mut labelled = unicast(Some("10.64.0.9"), NIC);
    labelled.paths[0].is_encapsulated = true;
    let changes = vec![
        nic(NIC, "int"),
        nic(OTHER_NIC, "not ours"),
        Change::Route {
            table: TABLE_MAIN,
            destination: prefix("10.1.0.0/16"),
            route: labelled,
            place: Place::First,
        },
        route(TABLE_MAIN, "10.2.0.0/16", None, OTHER_NIC),
    ];
    let news = News {
        changes,
        is_everything: true,
    };
    next_hops.apply(news);
    for (number, device) in [(1, "10.1.0.1"), (2, "10.2.0.1")] {
        next_hops.acquire(session(number), &target(device)).unwrap();
        assert_eq!(next_hops.state(session(number)), Some("unresolved"));
    }
}
