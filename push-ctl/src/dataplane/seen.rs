//! A session as the path sees it: what is in the maps, in words. Its keys are not among it.

use super::{Dataplane, monotonic_ns};
use crate::dataplane::next_hops::tags_of;
use anyhow::Result;
use push_common::activity;
use push_common::maps::{Hop, NextHopRecord, PolicyRecord, SessionControl, TICK_NS};
use push_common::rate;
use push_common::wire::SessionId;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

/// A session as the path sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionSeen {
    /// Where triggers are delivered to.
    pub device: SocketAddr,
    /// Until it expires; zero if it has.
    pub expires_in: Duration,
    /// The generation of its token.
    pub token_generation: u8,
    /// Whether the generation before that is valid too.
    pub has_previous_token: bool,
    /// Slot of the policy that it refers to.
    pub policy: u16,
    /// Longest payload that the policy permits.
    pub max_payload_bytes: u16,
    /// Whether the policy restricts where triggers come from.
    pub has_sources: bool,
    /// How long the next trigger has to wait because of the rate; zero if it needn't.
    pub rate_wait: Duration,
    /// How long ago the last delivery was, as coarse as a tick; none if there was none.
    pub last_delivered_ago: Option<Duration>,
    /// The way to the device.
    pub way: WaySeen,
}

/// The way to a device as the path sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WaySeen {
    /// Whether it is known.
    pub state: WayState,
    /// MAC address that frames go to.
    pub mac: [u8; 6],
    /// What the device sees as the sender.
    pub source: SocketAddr,
    /// Longest IP datagram in bytes; in a tunnel, with its headers.
    pub mtu: u16,
    /// Whether only the path can go there: the kernel's own routes lead elsewhere.
    pub is_exclusive: bool,
    /// The two ends and the identifier of the tunnel, if it is one.
    pub tunnel: Option<(IpAddr, IpAddr, u32)>,
    /// Index of the NIC that frames leave by.
    pub interface: u32,
    /// Its name, if there still is one.
    pub nic: Option<String>,
    /// MAC address that frames come from.
    pub source_mac: [u8; 6],
    /// VLAN identifiers, the outer one first.
    pub vlan: Vec<u16>,
}

/// Whether a way is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WayState {
    /// All of it.
    Resolved,
    /// All but the MAC address.
    Unresolved,
    /// There is none.
    NoRoute,
    /// The record refers to nothing.
    Unused,
}

impl WaySeen {
    /// Bytes of headers in front of a trigger on this way to a device with such an address.
    #[must_use]
    pub fn header_bytes(&self, device: IpAddr) -> u16 {
        const UDP_AND_GTPU: u16 = 8 + 8;
        let ip = |address: IpAddr| if address.is_ipv6() { 40 } else { 20 };
        let tunnel = self
            .tunnel
            .map_or(0, |(_, peer, _)| ip(peer) + UDP_AND_GTPU);
        tunnel + ip(device) + 8
    }
}

impl Dataplane {
    /// A session as the path sees it; `None` if it doesn't.
    ///
    /// # Errors
    ///
    /// The kernel refuses to read a map.
    pub fn session_seen(&self, id: SessionId) -> Result<Option<SessionSeen>> {
        let Some(record) = self.sessions.first_line(id) else {
            return Ok(None);
        };
        let now_ns = monotonic_ns();
        let control = record.control;
        let policy = self.policies.seen(control.policy)?;
        let device = address(&record.device_address, control.has(SessionControl::IPV6));
        let device_port = u16::from_be_bytes(control.device_port);
        let last_ns = u64::from(activity::last_tick(record.activity)) * TICK_NS;
        let until = |ns: u64| Duration::from_nanos(ns.saturating_sub(now_ns));
        Ok(Some(SessionSeen {
            device: SocketAddr::new(device, device_port),
            expires_in: until(u64::from(record.expires_tick) * TICK_NS),
            token_generation: control.token_generation,
            has_previous_token: control.has(SessionControl::PREVIOUS_TOKEN),
            policy: control.policy,
            max_payload_bytes: policy.max_payload,
            has_sources: policy.has(PolicyRecord::SOURCES),
            rate_wait: rate_wait(record.full_at_ns, now_ns, &policy),
            last_delivered_ago: (last_ns > 0)
                .then(|| Duration::from_nanos(now_ns.saturating_sub(last_ns))),
            way: self.way_seen(control.next_hop, device.is_ipv6(), record.teid),
        }))
    }

    fn way_seen(&self, index: u16, is_v6: bool, teid: [u8; 4]) -> WaySeen {
        let (next_hop, egress) = self.next_hops.seen(index);
        let is_outer_v6 = next_hop.has(NextHopRecord::OUTER_IPV6);
        let [a, b, c, d, e, f, ..] = egress.mac;
        WaySeen {
            state: match next_hop.hop.state {
                Hop::RESOLVED => WayState::Resolved,
                Hop::UNRESOLVED => WayState::Unresolved,
                Hop::NO_ROUTE => WayState::NoRoute,
                _ => WayState::Unused,
            },
            mac: next_hop.hop.mac,
            source: SocketAddr::new(
                address(&next_hop.source, is_v6),
                u16::from_be_bytes(next_hop.source_port),
            ),
            mtu: next_hop.mtu,
            is_exclusive: next_hop.has(NextHopRecord::REALM) || next_hop.has(NextHopRecord::GTPU),
            tunnel: next_hop.has(NextHopRecord::GTPU).then(|| {
                (
                    address(&next_hop.outer_source, is_outer_v6),
                    address(&next_hop.outer_destination, is_outer_v6),
                    u32::from_be_bytes(teid),
                )
            }),
            interface: egress.interface,
            nic: nix::net::if_::if_indextoname(egress.interface)
                .ok()
                .map(|name| name.to_string_lossy().into_owned()),
            source_mac: [a, b, c, d, e, f],
            vlan: tags_of(&egress),
        }
    }
}

fn rate_wait(full_at_ns: u64, now_ns: u64, policy: &PolicyRecord) -> Duration {
    let &PolicyRecord {
        interval_ns,
        tolerance_ns,
        ..
    } = policy;
    if interval_ns == 0 || rate::offer(full_at_ns, now_ns, interval_ns, tolerance_ns).is_some() {
        return Duration::ZERO;
    }
    Duration::from_nanos(
        full_at_ns
            .saturating_sub(tolerance_ns)
            .saturating_sub(now_ns),
    )
}

fn address(bytes: &[u8; 16], is_v6: bool) -> IpAddr {
    let &[a, b, c, d, ..] = bytes;
    if is_v6 {
        Ipv6Addr::from(*bytes).into()
    } else {
        Ipv4Addr::new(a, b, c, d).into()
    }
}
