//! Next hops as the kernel changes its mind, each change made by `ip` and timed.

use super::namespace::{EXT_PEER_MAC, Gateway, PEER_MAC, State, can_make};
use super::*;
use std::time::Duration;

const UNRESOLVED: State = (Hop::UNRESOLVED, [0; 6]);
const NO_ROUTE: State = (Hop::NO_ROUTE, [0; 6]);
const PEER: State = (Hop::RESOLVED, PEER_MAC);
const EXT_PEER: State = (Hop::RESOLVED, EXT_PEER_MAC);
const A: State = (Hop::RESOLVED, mac(0xA));
const B: State = (Hop::RESOLVED, mac(0xB));
/// Neighbours that nobody has to be asked for.
const AB: &str = "
for address in 10.64.0.10 fd00:64::a; do ip neigh replace $address lladdr 02:00:00:00:00:0a dev int; done
for address in 10.64.0.11 fd00:64::b; do ip neigh replace $address lladdr 02:00:00:00:00:0b dev int; done
";

#[test]
fn a_neighbour_that_moves_is_followed() {
    Gateway::run(&[], AB, |gateway| {
        gateway.acquire(1, &target("10.64.0.10"));
        gateway.acquire(2, &target("fd00:64::a"));
        let (to_b, to_a) = (
            "for it in 10.64.0.10 fd00:64::a; do ip neigh replace $it lladdr 02:00:00:00:00:0b dev int; done",
            "for it in 10.64.0.10 fd00:64::a; do ip neigh replace $it lladdr 02:00:00:00:00:0a dev int; done",
        );
        gateway.follows((to_b, &[(1, B), (2, B)]), (to_a, &[(1, A), (2, A)]));
    });
}

#[test]
fn a_device_that_announces_another_address_is_followed() {
    Gateway::run(&[], "", |gateway| {
        gateway.acquire(1, &target("10.64.0.2"));
        gateway.until(1, PEER);
        let (to_b, back) = (
            "nsenter -t $DEVICES -n ip link set int-peer address 02:00:00:00:00:0b",
            "nsenter -t $DEVICES -n ip link set int-peer address 02:00:00:00:02:02",
        );
        gateway.follows((to_b, &[(1, B)]), (back, &[(1, PEER)]));
    });
}

#[test]
fn an_unknown_neighbour_is_found_by_arp_and_by_nd() {
    Gateway::run(&[], "", |gateway| {
        let devices = ["10.64.0.2", "10.64.0.3", "fd00:64::2", "fd00:64::3"];
        for (number, device) in devices.into_iter().enumerate() {
            let number = number as u32;
            gateway.acquire(number, &target(device));
            assert_eq!(gateway.of(number), UNRESOLVED);
            let took = gateway.until(number, PEER);
            println!("{:.1} ms: {device}", took.as_secs_f64() * 1e3);
            assert!(took < Duration::from_secs(1), "{device} took {took:?}");
        }
    });
}

#[test]
fn a_device_that_comes_later_is_found() {
    Gateway::run(&[], "", |gateway| {
        gateway.acquire(1, &target("10.64.0.7"));
        gateway.acquire(2, &target("fd00:64::7"));
        let asked = gateway.next_hops.due().unwrap();
        assert!(asked > Instant::now(), "the next question isn't due yet");
        gateway.sh_of_devices(
            "ip addr add 10.64.0.7/16 dev int-peer; ip addr add fd00:64::7/64 dev int-peer",
        );
        gateway.until_all(&[(1, PEER), (2, PEER)]);
    });
}

#[test]
fn a_device_that_has_moved_in_silence_is_noticed() {
    let hasty = "
        sysctl -qw net.ipv4.neigh.int.delay_first_probe_time=0 net.ipv4.neigh.int.ucast_solicit=1
        sysctl -qw net.ipv4.neigh.int.retrans_time_ms=100
        ip neigh replace 10.64.0.2 lladdr 02:00:00:00:00:0b nud stale dev int
    ";
    Gateway::run(&[], hasty, |gateway| {
        gateway.acquire(1, &target("10.64.0.2"));
        assert_eq!(gateway.of(1), B, "it isn't known to be wrong");
        gateway.until(1, PEER);
    });
}

#[test]
fn a_route_that_is_replaced_is_followed() {
    let routes =
        "ip route add 10.65.0.0/16 via 10.64.0.10; ip -6 route add fd00:65::/64 via fd00:64::a";
    Gateway::run(&[], &format!("{AB}{routes}"), |gateway| {
        gateway.acquire(1, &target("10.65.0.1"));
        gateway.acquire(2, &target("fd00:65::1"));
        assert_eq!((gateway.of(1), gateway.of(2)), (A, A));
        let (to_b, to_a) = (
            "ip route replace 10.65.0.0/16 via 10.64.0.11; ip -6 route replace fd00:65::/64 via fd00:64::b",
            "ip route replace 10.65.0.0/16 via 10.64.0.10; ip -6 route replace fd00:65::/64 via fd00:64::a",
        );
        gateway.follows((to_b, &[(1, B), (2, B)]), (to_a, &[(1, A), (2, A)]));
        let (refuse, permit) = (
            "ip route replace blackhole 10.65.0.0/16; ip -6 route replace unreachable fd00:65::/64",
            "ip route replace 10.65.0.0/16 via 10.64.0.10
             ip -6 route del fd00:65::/64; ip -6 route add fd00:65::/64 via fd00:64::a",
        );
        gateway.follows(
            (refuse, &[(1, NO_ROUTE), (2, NO_ROUTE)]),
            (permit, &[(1, A), (2, A)]),
        );
        assert_eq!(
            gateway
                .next_hops
                .table
                .record(gateway.records[&session(1)])
                .mtu,
            1500
        );
        gateway.sh("ip route replace 10.65.0.0/16 via 10.64.0.11 mtu lock 600");
        gateway.until(1, B);
        assert_eq!(
            gateway
                .next_hops
                .table
                .record(gateway.records[&session(1)])
                .mtu,
            600
        );
    });
}

#[test]
fn a_more_specific_route_is_followed() {
    let routes =
        "ip route add 10.65.0.0/16 via 10.64.0.10; ip -6 route add fd00:65::/48 via fd00:64::a";
    Gateway::run(&[], &format!("{AB}{routes}"), |gateway| {
        for (number, device) in [
            (1, "10.65.1.1"),
            (2, "fd00:65:0:1::1"),
            (3, "10.65.2.1"),
            (4, "fd00:65:0:2::1"),
        ] {
            gateway.acquire(number, &target(device));
        }
        let (add, delete) = (
            "ip route add 10.65.1.0/24 via 10.64.0.11; ip -6 route add fd00:65:0:1::/64 via fd00:64::b",
            "ip route del 10.65.1.0/24; ip -6 route del fd00:65:0:1::/64",
        );
        gateway.follows(
            (add, &[(1, B), (2, B), (3, A), (4, A)]),
            (delete, &[(1, A), (2, A), (3, A), (4, A)]),
        );
    });
}

#[test]
fn several_paths_and_next_hop_objects_are_followed() {
    let routes = "
        ip route add 10.65.0.0/16 nexthop via 10.64.0.10 nexthop via 10.51.0.2
        ip -6 route add fd00:65::/64 nexthop via fd00:64::a nexthop via fd00:51::2
        ip nexthop add id 1 via 10.64.0.10 dev int
        ip route add 10.66.0.0/16 nhid 1
        ip route add 10.67.0.0/16 via inet6 fd00:64::a dev int
    ";
    Gateway::run(&[], &format!("{AB}{routes}"), |gateway| {
        for (number, device) in [
            (1, "10.65.0.1"),
            (2, "fd00:65::1"),
            (3, "10.66.0.1"),
            (4, "10.67.0.1"),
        ] {
            gateway.acquire(number, &target(device));
            assert_eq!(gateway.of(number), A);
        }
        let (to_b, to_a) = (
            "ip nexthop replace id 1 via 10.64.0.11 dev int
             ip route replace 10.67.0.0/16 via inet6 fd00:64::b dev int",
            "ip nexthop replace id 1 via 10.64.0.10 dev int
             ip route replace 10.67.0.0/16 via inet6 fd00:64::a dev int",
        );
        gateway.follows((to_b, &[(3, B), (4, B)]), (to_a, &[(3, A), (4, A)]));
        // The kernel tells that the object is gone, but not that the route is.
        let (delete, add) = (
            "ip nexthop del id 1",
            "ip nexthop add id 1 via 10.64.0.10 dev int; ip route add 10.66.0.0/16 nhid 1",
        );
        gateway.follows((delete, &[(3, NO_ROUTE)]), (add, &[(3, A)]));
        gateway.sh("ip link set int down");
        gateway.until_all(&[(1, EXT_PEER), (2, EXT_PEER), (3, NO_ROUTE), (4, NO_ROUTE)]);
        // Of several paths, one comes back with its link, and nobody tells; the only one doesn't.
        gateway.sh(&format!("ip link set int up; {AB}"));
        gateway.until_all(&[(1, A), (2, A), (3, NO_ROUTE), (4, NO_ROUTE)]);
    });
}

#[test]
fn a_link_is_followed_down_and_up() {
    Gateway::run(&[], "ip route add 10.65.0.0/16 via 10.64.0.2", |gateway| {
        for (number, device) in [(1, "10.64.0.2"), (2, "fd00:64::2"), (3, "10.65.0.1")] {
            gateway.acquire(number, &target(device));
            gateway.until(number, PEER);
        }
        // Without carrier, addresses and routes stay; but neighbours have to be found anew.
        let (pulled, plugged) = (
            "nsenter -t $DEVICES -n ip link set int-peer down",
            "nsenter -t $DEVICES -n sh -ec 'ip link set int-peer up; ip addr add fd00:64::2/64 dev int-peer'",
        );
        gateway.follows(
            (pulled, &[(1, NO_ROUTE), (2, NO_ROUTE), (3, NO_ROUTE)]),
            (plugged, &[(1, PEER), (2, PEER), (3, PEER)]),
        );
        // Down, the kernel forgets what isn't its own.
        let (down, up) = (
            "ip link set int down",
            "ip link set int up; ip addr add fd00:64::1/64 dev int",
        );
        gateway.follows(
            (down, &[(1, NO_ROUTE), (2, NO_ROUTE), (3, NO_ROUTE)]),
            (up, &[(1, PEER), (2, PEER), (3, NO_ROUTE)]),
        );
        gateway.sh("ip route add 10.65.0.0/16 via 10.64.0.2");
        gateway.until(3, PEER);
    });
}

#[test]
fn a_nic_that_is_made_anew_is_found_again() {
    let realms = [realm("int", &[]), realm("int", &["10.64.0.2"])];
    Gateway::run(&realms, "", |gateway| {
        let in_realm = |realm, device| Target {
            realm: Some(realm),
            ..target(device)
        };
        gateway.acquire(1, &target("10.64.0.2"));
        gateway.acquire(2, &in_realm(0, "10.64.0.3"));
        gateway.acquire(3, &in_realm(1, "10.99.0.1"));
        gateway.until_all(&[(1, PEER), (2, PEER), (3, PEER)]);
        let (delete, make) = (
            "ip link del int",
            "ip link add name int type veth peer name int-peer address 02:00:00:00:02:02 netns $DEVICES
             nsenter -t $DEVICES -n sh -ec '
                ip link set int-peer up; ip addr add 10.64.0.2/16 dev int-peer; ip addr add 10.64.0.3/16 dev int-peer
             '
             ip link set int up; ip addr add 10.64.0.1/16 dev int",
        );
        gateway.follows(
            (delete, &[(1, NO_ROUTE), (2, NO_ROUTE), (3, NO_ROUTE)]),
            (make, &[(1, PEER), (2, PEER), (3, PEER)]),
        );
    });
}

#[test]
fn the_gateways_own_addresses_are_no_devices() {
    Gateway::run(&[realm("int", &[])], "", |gateway| {
        for (number, device) in [
            (1, "10.64.0.1"),
            (2, "fd00:64::1"),
            (3, "10.51.0.1"),
            (4, "10.64.255.255"),
        ] {
            gateway.acquire(number, &target(device));
            assert_eq!(gateway.of(number), NO_ROUTE, "{device}");
        }
        let in_realm = Target {
            realm: Some(0),
            ..target("10.64.0.1")
        };
        gateway.acquire(5, &in_realm);
        assert_eq!(gateway.of(5), NO_ROUTE);
    });
}

#[test]
fn the_same_address_is_another_device_in_each_realm() {
    let networks = "ip addr add 10.0.0.254/24 dev int; ip route add 10.0.0.0/24 dev ext table 20";
    told_apart(&[realm("int", &[]), realm("ext", &[])], networks);
}

#[test]
fn the_same_address_is_another_device_in_each_vrf() {
    if !can_make("name red type vrf table 10") {
        return;
    }
    let networks = "
        ip link add name red type vrf table 10; ip link set red up
        ip link add name blue type vrf table 20; ip link set blue up
        ip link set int master red; ip link set ext master blue
        ip addr add 10.0.0.254/24 dev int; ip addr add 10.0.0.254/24 dev ext
    ";
    told_apart(&[realm("red", &[]), realm("blue", &[])], networks);
}

/// There is a device with the same address behind each NIC, that is, in each realm once there are
/// `networks`; each has a next hop of its own.
fn told_apart(realms: &[Realm; 2], networks: &str) {
    let devices = "
        nsenter -t $DEVICES -n ip addr add 10.0.0.1/24 dev int-peer
        nsenter -t $DEVICES -n ip addr add 10.0.0.1/24 dev ext-peer
    ";
    Gateway::run(realms, &format!("{networks}{devices}"), |gateway| {
        for realm in [0, 1] {
            let target = Target {
                realm: Some(realm),
                ..target("10.0.0.1")
            };
            gateway.acquire(realm as u32, &target);
        }
        gateway.until_all(&[(0, PEER), (1, EXT_PEER)]);
    });
}

#[test]
fn vlans_on_vlans_are_seen_through() {
    if !can_make("link x name z type vlan protocol 802.1ad id 7") {
        return;
    }
    let stack = "
        ip link add link int name int.7 type vlan protocol 802.1ad id 7; ip link set int.7 up
        ip link add link int.7 name int.7.5 type vlan id 5; ip link set int.7.5 up
        ip addr add 10.7.0.1/24 dev int.7; ip addr add 10.75.0.1/24 dev int.7.5
        for it in '10.7.0.2 dev int.7' '10.75.0.2 dev int.7.5'; do ip neigh add $it lladdr 02:00:00:00:00:0a; done
    ";
    Gateway::run(&[], stack, |gateway| {
        gateway.acquire(1, &target("10.7.0.2"));
        gateway.acquire(2, &target("10.75.0.2"));
        for (number, tags) in [
            (1, vec![[0x88, 0xA8, 0, 7]]),
            (2, vec![[0x88, 0xA8, 0, 7], [0x81, 0, 0, 5]]),
        ] {
            assert_eq!(gateway.of(number), A);
            let table = &gateway.next_hops.table;
            let egress = table.egress(table.record(gateway.records[&session(number)]).hop.egress);
            assert_eq!(egress.tags[..egress.tag_count as usize], tags);
        }
        gateway.sh("ip link set int down");
        gateway.until_all(&[(1, NO_ROUTE), (2, NO_ROUTE)]);
    });
}

#[test]
fn after_lost_notifications_all_is_right_again() {
    let routes =
        "ip route add 10.65.0.0/16 via 10.64.0.10; ip route add 10.66.0.0/16 via 10.64.0.10";
    Gateway::run(&[], &format!("{AB}{routes}"), |gateway| {
        gateway.acquire(1, &target("10.65.0.1"));
        gateway.acquire(2, &target("10.66.0.1"));
        // More than there is room for in the socket, before anyone reads.
        gateway.sh("
            seq 1 60000 | awk '{
                printf \"route add 10.%d.%d.%d/32 via 10.64.0.11\\n\", 128 + $1 / 65536, $1 / 256 % 256, $1 % 256
            }' | ip -batch -
            ip route replace 10.65.0.0/16 via 10.64.0.11; ip route del 10.66.0.0/16
        ");
        let mut was_listed = false;
        let begun = Instant::now();
        while !was_listed {
            assert!(
                begun.elapsed() < Duration::from_secs(20),
                "nothing was listed anew"
            );
            let due = Some(Instant::now() + Duration::from_secs(1));
            let news = gateway.runtime.block_on(gateway.watch.next(due));
            was_listed = news.is_everything;
            let moved = gateway.next_hops.apply(news);
            gateway.records.extend(moved);
        }
        assert_eq!((gateway.of(1), gateway.of(2)), (B, NO_ROUTE));
    });
}
