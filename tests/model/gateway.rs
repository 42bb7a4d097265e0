//! What the maps hold, in collections.

use super::datagram::LinkHeader;
use push_common::maps::{
    Count, EgressRecord, NextHopRecord, PolicyRecord, PreviousKey, ROUND_TRIP_CLASSES,
    SessionRecord, SourcePrefix, VERDICT_SLOTS,
};
use push_common::wire::SessionId;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// All that the path reads, and all that it writes.
#[derive(Clone, Debug)]
pub(crate) struct Gateway {
    pub(crate) nics: [Nic; 3],
    pub(crate) trigger_port: u16,
    /// By slot. Slots that are free are missing.
    pub(crate) sessions: BTreeMap<u32, SessionRecord>,
    pub(crate) staged: Option<SessionRecord>,
    /// By slot.
    pub(crate) previous_keys: BTreeMap<u32, PreviousKey>,
    pub(crate) next_hops: BTreeMap<u16, NextHopRecord>,
    pub(crate) egresses: BTreeMap<u8, EgressRecord>,
    pub(crate) policies: BTreeMap<u16, PolicyRecord>,
    /// Prefixes and their lengths in bits, those of the policy included.
    pub(crate) allowed: Vec<(u32, SourcePrefix)>,
    /// By session identifier and sequence.
    pub(crate) pending: BTreeMap<(u64, u64), Pending>,
}

/// What a NIC takes, and what it has counted.
#[derive(Clone, Debug)]
pub(crate) struct Nic {
    pub(crate) name: &'static str,
    pub(crate) mac: [u8; 6],
    /// Index of the interface.
    pub(crate) interface: u32,
    /// Where triggers are sent to.
    pub(crate) ipv4: Option<Ipv4Addr>,
    /// Where triggers are sent to.
    pub(crate) ipv6: Option<Ipv6Addr>,
    pub(crate) takes_acks: bool,
    pub(crate) by_verdict: [Count; VERDICT_SLOTS],
    pub(crate) round_trips: [u64; ROUND_TRIP_CLASSES],
}

impl Nic {
    pub(crate) fn takes_triggers_at(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(v4) => self.ipv4 == Some(v4),
            IpAddr::V6(v6) => self.ipv6 == Some(v6),
        }
    }
}

/// A trigger whose acknowledgement is waited for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pending {
    pub(crate) sent_ns: u64,
    pub(crate) server: SocketAddr,
    /// Address of the gateway that the trigger was sent to.
    pub(crate) gateway: IpAddr,
    /// As the trigger came.
    pub(crate) link: LinkHeader,
    /// By which the trigger came.
    pub(crate) interface: u32,
}

/// An address as records have it.
pub(crate) fn address(bytes: &[u8; 16], is_v6: bool) -> IpAddr {
    if is_v6 {
        IpAddr::from(*bytes)
    } else {
        let v4: [u8; 4] = bytes[..4].try_into().unwrap();
        IpAddr::from(v4)
    }
}

/// An address and a port as records have them.
pub(crate) fn socket(bytes: &[u8; 16], port: [u8; 2], is_v6: bool) -> SocketAddr {
    SocketAddr::new(address(bytes, is_v6), u16::from_be_bytes(port))
}

/// An address as records are to have it.
pub(crate) fn address_bytes(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => {
            let mut bytes = [0; 16];
            bytes[..4].copy_from_slice(&v4.octets());
            bytes
        }
        IpAddr::V6(v6) => v6.octets(),
    }
}

impl Gateway {
    /// The record in this slot as packets have to see it.
    pub(crate) fn current(&self, slot: u32) -> SessionRecord {
        let record = self.sessions[&slot];
        self.live_session(SessionId::new(slot, record.generation))
            .expect("it is live")
    }
}
