//! What netlink messages come to once they have been bytes: those that the kernel that the tests run on may
//! have no occasion to send.

use super::*;
use rtnetlink::packet_core::{
    NLM_F_APPEND, NLM_F_CREATE, NLM_F_REPLACE, NetlinkMessage, NetlinkPayload,
};
use rtnetlink::packet_route::link::{
    InfoData, InfoKind, InfoVlan, InfoVrf, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType,
    LinkMessage, VlanProtocol,
};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteType,
};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};

fn change(message: RouteNetlinkMessage, flags: u16) -> Option<Change> {
    let mut message = NetlinkMessage::from(message);
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&bytes).unwrap();
    let NetlinkPayload::InnerMessage(inner) = message.payload else {
        panic!("{message:?}");
    };
    Change::of(&inner, flags, false)
}

fn link_message(name: &str, attributes: Vec<LinkAttribute>) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = 7;
    message.header.link_layer_type = LinkLayerType::Ether;
    message.header.flags = LinkFlags::Up | LinkFlags::Running;
    message.attributes = vec![
        LinkAttribute::IfName(name.into()),
        LinkAttribute::Address(mac(0xFF).to_vec()),
        LinkAttribute::Mtu(1500),
    ];
    message.attributes.extend(attributes);
    message
}

fn vlan(id: u16, protocol: VlanProtocol) -> LinkAttribute {
    let data = vec![InfoVlan::Protocol(protocol), InfoVlan::Id(id)];
    LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Vlan),
        LinkInfo::Data(InfoData::Vlan(data)),
    ])
}

#[test]
fn links_are_of_their_kinds() {
    let vrf = LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Vrf),
        LinkInfo::Data(InfoData::Vrf(vec![InfoVrf::TableId(RED)])),
    ]);
    let tagged = |id, ethertype| LinkKind::Vlan {
        id,
        ethertype,
        parent: NIC,
    };
    for (attributes, kind) in [
        (vec![], LinkKind::Nic),
        (
            vec![LinkAttribute::Link(NIC), vlan(5, VlanProtocol::Ieee8021Q)],
            tagged(5, 0x8100),
        ),
        (
            vec![LinkAttribute::Link(NIC), vlan(7, VlanProtocol::Ieee8021Ad)],
            tagged(7, 0x88A8),
        ),
        // Its NIC is in another network namespace.
        (
            vec![
                LinkAttribute::Link(NIC),
                LinkAttribute::LinkNetNsId(1),
                vlan(5, VlanProtocol::Ieee8021Q),
            ],
            LinkKind::Opaque,
        ),
        (vec![vrf], LinkKind::Vrf { table: RED }),
    ] {
        let message = RouteNetlinkMessage::NewLink(link_message("it", attributes));
        assert_eq!(change(message, 0), Some(Change::Link(7, link("it", kind))));
    }
}

#[test]
fn what_a_bridge_says_of_its_ports_is_no_link() {
    let mut message = link_message("port", vec![]);
    message.header.interface_family = AddressFamily::Bridge;
    assert_eq!(
        change(RouteNetlinkMessage::DelLink(message.clone()), 0),
        None
    );
    message.header.interface_family = AddressFamily::Unspec;
    let gone = change(RouteNetlinkMessage::DelLink(message), 0);
    assert_eq!(gone, Some(Change::LinkGone(7)));
}

#[test]
fn a_tunnel_has_no_mac_address() {
    let mut message = link_message("tun", vec![]);
    message.header.link_layer_type = LinkLayerType::None;
    let without = Link {
        mac: None,
        ..link("tun", LinkKind::Nic)
    };
    assert_eq!(
        change(RouteNetlinkMessage::NewLink(message), 0),
        Some(Change::Link(7, without))
    );
}

fn route_message() -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header = RouteHeader {
        address_family: AddressFamily::Inet,
        destination_prefix_length: 16,
        table: TABLE_MAIN as u8,
        kind: RouteType::Unicast,
        ..RouteHeader::default()
    };
    message.attributes = vec![
        RouteAttribute::Destination(RouteAddress::Inet([10, 65, 0, 0].into())),
        RouteAttribute::Oif(NIC),
        RouteAttribute::Gateway(RouteAddress::Inet([10, 64, 0, 9].into())),
        RouteAttribute::Priority(5),
        RouteAttribute::Metrics(vec![RouteMetric::Lock(4), RouteMetric::Mtu(600)]),
    ];
    message
}

#[test]
fn a_route_takes_the_place_that_its_flags_say() {
    for (flags, place) in [
        (NLM_F_CREATE, Place::First),
        (NLM_F_CREATE | NLM_F_APPEND, Place::Last),
        (NLM_F_REPLACE, Place::Instead),
    ] {
        let expected = Change::Route {
            table: TABLE_MAIN,
            destination: prefix("10.65.0.0/16"),
            route: Route {
                priority: 5,
                mtu: Some(600),
                ..unicast(Some("10.64.0.9"), NIC)
            },
            place,
        };
        assert_eq!(
            change(RouteNetlinkMessage::NewRoute(route_message()), flags),
            Some(expected)
        );
    }
}

#[test]
fn routes_for_some_traffic_only_are_left_out() {
    let with = |change_header: fn(&mut RouteHeader)| {
        let mut message = route_message();
        change_header(&mut message.header);
        change(RouteNetlinkMessage::NewRoute(message), 0)
    };
    assert!(with(|_| {}).is_some());
    assert_eq!(with(|header| header.tos = 4), None);
    assert_eq!(with(|header| header.source_prefix_length = 8), None);
    assert_eq!(with(|header| header.flags = RouteFlags::Cloned), None);
}
