//! What netlink messages say that is of any use here.

use super::mirror::{Known, Link, LinkKind, Neighbour};
use super::prefix::Prefix;
use super::routes::{Path, Place, Route, RouteKind};
use rtnetlink::packet_core::{NLM_F_APPEND, NLM_F_REPLACE};
use rtnetlink::packet_route::link::{
    InfoData, InfoKind, InfoVlan, InfoVrf, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType,
    LinkMessage,
};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteLwEnCapType, RouteMessage, RouteMetric,
    RoutePreference, RouteType, RouteVia,
};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A batch of changes, in their order.
#[derive(Debug, Default)]
pub(in super::super) struct News {
    pub(super) changes: Vec<Change>,
    /// Whatever isn't in `changes` is gone.
    pub(super) is_everything: bool,
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Change {
    Link(u32, Link),
    LinkGone(u32),
    Route {
        table: u32,
        destination: Prefix,
        route: Route,
        place: Place,
    },
    RouteGone {
        table: u32,
        destination: Prefix,
        route: Route,
    },
    Neighbour(Neighbour, Known),
    NeighbourGone(Neighbour),
}

impl Change {
    /// What a message with these flags in its header says. Of a dump (`is_listing`), messages come in
    /// the order of what they tell of.
    pub(super) fn of(message: &RouteNetlinkMessage, flags: u16, is_listing: bool) -> Option<Self> {
        match message {
            RouteNetlinkMessage::NewLink(message) => {
                link(message).map(|(index, link)| Self::Link(index, link))
            }
            RouteNetlinkMessage::DelLink(message) => {
                link(message).map(|(index, _)| Self::LinkGone(index))
            }
            RouteNetlinkMessage::NewRoute(message) => {
                let (table, destination, route) = route(message)?;
                let place = if is_listing || flags & NLM_F_APPEND != 0 {
                    Place::Last
                } else if flags & NLM_F_REPLACE != 0 {
                    Place::Instead
                } else {
                    Place::First
                };
                Some(Self::Route {
                    table,
                    destination,
                    route,
                    place,
                })
            }
            RouteNetlinkMessage::DelRoute(message) => {
                let (table, destination, route) = route(message)?;
                Some(Self::RouteGone {
                    table,
                    destination,
                    route,
                })
            }
            RouteNetlinkMessage::NewNeighbour(message) => {
                let (neighbour, known) = neighbour(message)?;
                Some(known.map_or(Self::NeighbourGone(neighbour), |known| {
                    Self::Neighbour(neighbour, known)
                }))
            }
            RouteNetlinkMessage::DelNeighbour(message) => {
                neighbour(message).map(|(neighbour, _)| Self::NeighbourGone(neighbour))
            }
            _ => None,
        }
    }
}

fn link(message: &LinkMessage) -> Option<(u32, Link)> {
    // Others are about what a bridge or a protocol has to say of it.
    if message.header.interface_family != AddressFamily::Unspec {
        return None;
    }
    let flags = message.header.flags;
    let mut link = Link {
        name: String::new(),
        mac: None,
        mtu: 0,
        is_up: flags.contains(LinkFlags::Up),
        is_running: flags.contains(LinkFlags::Running),
        kind: LinkKind::Nic,
        master: None,
    };
    let is_ethernet = message.header.link_layer_type == LinkLayerType::Ether;
    let mut parent = None;
    let mut parent_is_elsewhere = false;
    let mut details: &[LinkInfo] = &[];
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Address(address) if is_ethernet => {
                link.mac = address.as_slice().try_into().ok();
            }
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Link(index) => parent = Some(*index),
            LinkAttribute::LinkNetNsId(_) => parent_is_elsewhere = true,
            LinkAttribute::Controller(index) => link.master = Some(*index),
            LinkAttribute::LinkInfo(information) => details = information,
            _ => {}
        }
    }
    for detail in details {
        match detail {
            LinkInfo::Kind(InfoKind::Vlan) if parent_is_elsewhere => link.kind = LinkKind::Opaque,
            LinkInfo::Data(InfoData::Vlan(attributes)) if !parent_is_elsewhere => {
                link.kind = vlan(attributes, parent);
            }
            LinkInfo::Data(InfoData::Vrf(attributes)) => {
                let table = attributes.iter().find_map(|attribute| match attribute {
                    InfoVrf::TableId(table) => Some(*table),
                    _ => None,
                });
                link.kind = table.map_or(LinkKind::Opaque, |table| LinkKind::Vrf { table });
            }
            _ => {}
        }
    }
    Some((message.header.index, link))
}

fn vlan(attributes: &[InfoVlan], parent: Option<u32>) -> LinkKind {
    let mut tag = None;
    // The kernel's default.
    let mut ethertype = push_common::wire::ETHERTYPE_VLAN;
    for attribute in attributes {
        match attribute {
            InfoVlan::Id(id) => tag = Some(*id),
            InfoVlan::Protocol(protocol) => ethertype = u16::from(*protocol),
            _ => {}
        }
    }
    match (tag, parent) {
        (Some(id), Some(parent)) => LinkKind::Vlan {
            id,
            ethertype,
            parent,
        },
        _ => LinkKind::Opaque,
    }
}

fn route(message: &RouteMessage) -> Option<(u32, Prefix, Route)> {
    let header = &message.header;
    let unspecified: IpAddr = match header.address_family {
        AddressFamily::Inet => Ipv4Addr::UNSPECIFIED.into(),
        AddressFamily::Inet6 => Ipv6Addr::UNSPECIFIED.into(),
        _ => return None,
    };
    let is_for_some = header.tos != 0 || header.source_prefix_length != 0;
    // A copy that the kernel made for one destination, say of a path MTU.
    let is_derived = header.flags.contains(RouteFlags::Cloned);
    if is_for_some || is_derived {
        return None;
    }
    let kind = match header.kind {
        RouteType::Unicast => RouteKind::Unicast,
        RouteType::Local | RouteType::Broadcast | RouteType::Anycast | RouteType::Multicast => {
            RouteKind::Host
        }
        RouteType::BlackHole | RouteType::Unreachable | RouteType::Prohibit => RouteKind::Refused,
        RouteType::Throw => RouteKind::Throw,
        _ => return None,
    };
    let mut table = u32::from(header.table);
    let mut destination = unspecified;
    let mut route = Route {
        priority: 0,
        preference: preference(RoutePreference::Medium),
        kind,
        mtu: None,
        paths: Vec::new(),
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Table(number) => table = *number,
            RouteAttribute::Destination(address) => destination = route_address(address)?,
            RouteAttribute::Priority(priority) => route.priority = *priority,
            RouteAttribute::Preference(value) => route.preference = preference(*value),
            RouteAttribute::Metrics(metrics) => {
                route.mtu = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(mtu) => Some(*mtu),
                    _ => None,
                });
            }
            RouteAttribute::MultiPath(hops) => {
                route.paths = hops
                    .iter()
                    .map(|hop| path(hop.interface_index, &hop.attributes))
                    .collect();
            }
            _ => {}
        }
    }
    let interface = message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Oif(index) => Some(*index),
            _ => None,
        });
    if let Some(interface) = interface
        && route.paths.is_empty()
    {
        route.paths.push(path(interface, &message.attributes));
    }
    let destination = Prefix::new(destination, header.destination_prefix_length);
    Some((table, destination, route))
}

fn path(link: u32, attributes: &[RouteAttribute]) -> Path {
    let mut path = Path {
        link,
        gateway: None,
        is_encapsulated: false,
    };
    for attribute in attributes {
        match attribute {
            RouteAttribute::Gateway(address) => path.gateway = route_address(address),
            RouteAttribute::Via(RouteVia::Inet(address)) => path.gateway = Some((*address).into()),
            RouteAttribute::Via(RouteVia::Inet6(address)) => path.gateway = Some((*address).into()),
            RouteAttribute::EncapType(kind) => {
                path.is_encapsulated = *kind != RouteLwEnCapType::None;
            }
            _ => {}
        }
    }
    path
}

const fn preference(preference: RoutePreference) -> u8 {
    match preference {
        RoutePreference::High => 0,
        RoutePreference::Low => 2,
        _ => 1,
    }
}

fn route_address(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}

/// The neighbour, and what is known of it, if that is enough to send to it.
fn neighbour(message: &NeighbourMessage) -> Option<(Neighbour, Option<Known>)> {
    if message.header.flags.contains(NeighbourFlags::Proxy) {
        return None;
    }
    let mut address = None;
    let mut mac = None;
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(destination)) => {
                address = Some((*destination).into());
            }
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(destination)) => {
                address = Some((*destination).into());
            }
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes.as_slice().try_into().ok(),
            _ => {}
        }
    }
    let neighbour = Neighbour {
        address: address?,
        link: message.header.ifindex,
    };
    let known = match message.header.state {
        NeighbourState::Stale => mac.map(|mac| Known {
            mac,
            is_stale: true,
        }),
        NeighbourState::Reachable
        | NeighbourState::Delay
        | NeighbourState::Probe
        | NeighbourState::Permanent
        | NeighbourState::Noarp => mac.map(|mac| Known {
            mac,
            is_stale: false,
        }),
        _ => None,
    };
    Some((neighbour, known))
}
