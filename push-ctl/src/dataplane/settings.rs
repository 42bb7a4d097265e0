//! What the data plane is to be like, and what it says of itself: plain data.

use ipnet::IpNet;
use push_common::maps::ROUND_TRIP_CLASSES;
use push_common::replay::WORDS;
use push_common::tag::TagKey;
use push_common::verdict::Verdict;
use push_common::wire::SessionId;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;
use zeroize::Zeroizing;

/// What the data plane is to be like.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Folder on a bpffs for pins.
    pub pin_dir: PathBuf,
    /// Slots of the session table.
    pub session_slots: u32,
    /// UDP port on which triggers are taken.
    pub trigger_port: u16,
    /// Leave source address and port of triggers as they are, where the device has an address of the same
    /// IP version.
    pub keep_source: bool,
    /// Attach in generic mode where the driver has no native one.
    pub allow_generic: bool,
    /// Refuse to go without `CAP_PERFMON`.
    pub require_perfmon: bool,
    /// NICs to attach to.
    pub nics: Vec<Nic>,
    /// Networks of devices that the main routes don't lead to.
    pub realms: Vec<Realm>,
    /// This end of GTP-U tunnels.
    pub gtpu: Gtpu,
    /// After what time without a trigger the next one to a session is worth an event; `None` if never.
    pub idle_after: Option<Duration>,
    /// What the program logs, if it is built to.
    pub log_level: tracing::Level,
}

/// A NIC to attach to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nic {
    /// Name of the interface.
    pub name: String,
    /// IPv4 address to which triggers are sent.
    pub ipv4: Option<Ipv4Addr>,
    /// IPv6 address to which triggers are sent.
    pub ipv6: Option<Ipv6Addr>,
    /// Whether devices send acknowledgements there.
    pub takes_acks: bool,
}

impl Nic {
    /// Whether triggers are taken on this NIC.
    #[must_use]
    pub const fn takes_triggers(&self) -> bool {
        self.ipv4.is_some() || self.ipv6.is_some()
    }

    /// Addresses to which triggers are sent.
    pub fn trigger_addresses(&self) -> impl Iterator<Item = IpAddr> {
        let v4 = self.ipv4.map(IpAddr::V4);
        v4.into_iter().chain(self.ipv6.map(IpAddr::V6))
    }
}

/// What of [`Settings`] can be changed while the program runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reconfiguration {
    /// NICs to attach to, or to be attached to in another way.
    pub nics: Vec<Nic>,
    /// NICs to detach from, if attached.
    pub gone: Vec<String>,
    /// [`Settings::idle_after`], if it changes.
    pub idle_after: Option<Option<Duration>>,
}

/// Why a NIC was not attached or detached.
#[derive(Debug, thiserror::Error)]
pub enum NicRefusal {
    /// There is no such NIC.
    #[error("there is no NIC {0} in this network namespace")]
    Unknown(String),
    /// It is attached.
    #[error("already attached to {0}; to attach it in another way, detach it first")]
    AlreadyAttached(String),
    /// It isn't attached.
    #[error("not attached to {0}")]
    NotAttached(String),
    /// The kernel or the driver doesn't want to, or another program is there.
    #[error("{0:#}")]
    Refused(#[from] anyhow::Error),
}

/// A network of devices of its own (an APN, a VRF): devices of two realms may have the same address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Realm {
    /// What the operator calls it.
    pub name: String,
    /// The NIC, VLAN interface or VRF device by which its devices are reached.
    pub interface: String,
    /// Routers in front of its devices, at most one for each IP version.
    pub routers: Vec<IpAddr>,
    /// The way there, if the kernel doesn't know it.
    pub link: Option<RealmLink>,
}

/// The way to all devices of a realm, as the operator says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RealmLink {
    /// MAC address of the router in front of them.
    pub router_mac: [u8; 6],
    /// VLAN identifiers, the outer one first; 0 is none.
    pub vlan: [u16; 2],
}

/// This end of GTP-U tunnels (TS 29.281).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gtpu {
    /// Address for peers that have an IPv4 address.
    pub ipv4: Option<Ipv4Addr>,
    /// Address for peers that have an IPv6 address.
    pub ipv6: Option<Ipv6Addr>,
}

/// The GTP-U tunnel that leads to a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tunnel {
    /// Address of the other end.
    pub peer: IpAddr,
    /// Tunnel endpoint identifier that the other end has given out.
    pub teid: u32,
}

/// What the path is to know of an authorised session.
#[derive(Clone, Debug)]
pub struct SessionImage {
    /// Identifier; its slot is the index into the session table.
    pub id: SessionId,
    /// Address and port on which the app instance receives triggers.
    pub device: SocketAddr,
    /// The address of the gateway that the device registered with; triggers reach it from there.
    pub source: SocketAddr,
    /// Index into [`Settings::realms`] of the realm it is in, if in one.
    pub realm: Option<usize>,
    /// The tunnel that leads to the device, if one does.
    pub tunnel: Option<Tunnel>,
    /// The slot of its application's policy; 0 for none.
    pub policy: u16,
    /// Generation of the current token.
    pub token_generation: u8,
    /// Key of the current token.
    pub key: Zeroizing<TagKey>,
    /// Key of the token before it, while that is valid too.
    pub previous_key: Option<Zeroizing<TagKey>>,
    /// The replay window that it begins with, if it isn't in the table yet.
    pub window: [u64; WORDS],
    /// From now until the session ends.
    pub expires_in: Duration,
}

/// What an application may do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// How often triggers to one session are let through.
    pub rate: Option<Rate>,
    /// Where triggers may come from; anywhere if there is none.
    pub sources: Vec<IpNet>,
    /// Longest payload in bytes; 0 if there may be none.
    pub max_payload: Option<u16>,
    /// Differentiated services code point that triggers get, below 64.
    pub dscp: Option<u8>,
    /// Of triggers with the same collapse key, how long one is enough.
    pub coalescing_window: Option<Duration>,
    /// Whether acknowledgements go on to the server.
    pub return_acks: bool,
}

/// A rate of triggers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// One is let through per interval, in the long run.
    pub interval: Duration,
    /// So many are let through at once, after a time without any; at least 1.
    pub burst: u32,
}

/// How the program is attached to a NIC, as the kernel tells.
#[derive(Clone, Debug)]
pub struct NicStatus {
    /// Name of the interface.
    pub name: String,
    /// Index of the interface.
    pub index: u32,
    /// Whether triggers are taken on it.
    pub takes_triggers: bool,
    /// Whether acknowledgements are.
    pub takes_acks: bool,
    /// Addresses to which triggers are sent.
    pub trigger_addresses: Vec<IpAddr>,
    /// `native`, `generic`, `offloaded`, or `none` if this program isn't attached any more.
    pub mode: &'static str,
    /// Identifier of the program.
    pub program_id: u32,
    /// Identifier of the link; it survives restarts of the controller.
    pub link_id: u32,
    /// The link was there already when this process started.
    pub adopted: bool,
}

/// What the path has counted for a session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SessionCounters {
    /// Triggers delivered.
    pub packets: u64,
    /// Bytes of their frames, as they came in.
    pub bytes: u64,
    /// Since the last one, if there was one; as coarse as [`push_common::maps::TICK_NS`].
    pub last_delivered_ago: Option<Duration>,
    /// Triggers that the application's policy refused.
    pub refused: u32,
    /// Triggers that the device has acknowledged.
    pub acknowledged: u32,
    /// From a trigger to its acknowledgement, smoothed; `None` if there was none.
    pub round_trip: Option<Duration>,
}

/// How a session was found in the table when it was to be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// It wasn't there.
    Nothing,
    /// As it was to be, but for what changes by itself: how long it is to last, and the next hop.
    Same,
    /// With another key, for another device, or by other rules.
    Different,
}

/// The part of [`SessionCounters`] that rates are made of and sessions are sorted by, and whose it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionTraffic {
    /// The session.
    pub id: SessionId,
    /// Triggers delivered.
    pub packets: u64,
    /// Bytes of their frames, as they came in.
    pub bytes: u64,
    /// Triggers that the application's policy refused.
    pub refused: u32,
    /// When the last one was delivered, in nanoseconds of `CLOCK_MONOTONIC`, as coarse as a tick; 0 if none was.
    pub last_delivered_ns: u64,
}

/// What a NIC has counted, summed up over CPUs.
#[derive(Clone, Debug)]
pub struct NicCounters {
    /// Name of the interface.
    pub name: String,
    /// In the order of [`Verdict::ALL`]: packets, bytes.
    pub by_verdict: Vec<(Verdict, u64, u64)>,
    /// Acknowledgements by the class of their round-trip time, see [`push_common::maps::round_trip_class`].
    pub round_trips: [u64; ROUND_TRIP_CLASSES],
}

/// What a program did with the one frame it was given.
#[derive(Clone, Debug)]
pub struct TestRun {
    /// The XDP action, as a number.
    pub action: u32,
    /// The frame as it is afterwards.
    pub frame: Vec<u8>,
    /// The time the program took, by the kernel's clock, in whole nanoseconds; reading that clock is part of it.
    pub duration: Duration,
}
