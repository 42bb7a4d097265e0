//! What can be known of this machine without attaching anything to it.

use super::generic_netlink::{ask, attribute, attributes};
use super::netlink::{self, AttachedProgram};
use super::{Nic, gates};
use anyhow::{Context, Result};
use caps::Capability;
use futures_util::TryStreamExt;
use rtnetlink::packet_core::NLA_F_NESTED;
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use rtnetlink::packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourState};
use std::collections::HashMap;
use std::net::IpAddr;
use std::path::Path;

pub use gates::{is_on_bpffs, kernel};

/// What the kernel says of a NIC.
#[derive(Clone, Debug)]
pub struct NicSurvey {
    /// Its index.
    pub index: u32,
    /// Whether it is up and has a carrier.
    pub is_up: bool,
    /// Longest packet, without the Ethernet header.
    pub mtu_bytes: u32,
    /// The driver, or the kind of a NIC that is made of software.
    pub driver: Option<String>,
    /// The XDP program that is attached to it, and its mode.
    pub program: Option<(u32, &'static str)>,
    /// What its driver can do by XDP; `None` where the kernel doesn't tell (before 6.3).
    pub xdp: Option<XdpFeatures>,
    /// Whether it merges packets that come in (LRO), with which most drivers refuse XDP.
    pub merges: bool,
}

/// What a driver can do by XDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XdpFeatures(u64);

impl XdpFeatures {
    /// Runs programs natively, and sends back out what they say (`NETDEV_XDP_ACT_BASIC`).
    #[must_use]
    pub const fn is_native(self) -> bool {
        self.0 & 1 != 0
    }

    /// Redirects to other NICs (`NETDEV_XDP_ACT_REDIRECT`).
    #[must_use]
    pub const fn redirects(self) -> bool {
        self.0 & 2 != 0
    }

    /// Sends what other NICs redirect to it, as it is set up now (`NETDEV_XDP_ACT_NDO_XMIT`).
    #[must_use]
    pub const fn takes_redirected(self) -> bool {
        self.0 & 4 != 0
    }
}

/// A switch of the kernel that should be set otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Switch {
    /// What comes of it as it is.
    pub why: String,
    /// The command that sets it.
    pub fix: String,
}

/// A capability that the data plane needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Needed {
    /// Its name.
    pub capability: Capability,
    /// What comes of it if it is missing; without this one nothing works if there is nothing here.
    pub without: Option<&'static str>,
}

/// All that the data plane needs.
pub const CAPABILITIES: [Needed; 3] = [
    Needed {
        capability: Capability::CAP_BPF,
        without: None,
    },
    Needed {
        capability: Capability::CAP_NET_ADMIN,
        without: None,
    },
    Needed {
        capability: Capability::CAP_PERFMON,
        without: Some(gates::SLOW),
    },
];

/// What of [`CAPABILITIES`] a process doesn't have, or this one.
#[must_use]
pub fn missing_capabilities(process: Option<i32>) -> Vec<Needed> {
    let is_missing = |needed: &Needed| !gates::holds(process, needed.capability);
    CAPABILITIES.into_iter().filter(is_missing).collect()
}

/// Whether the NIC of this name is up and has a carrier, as far as the kernel tells.
pub async fn is_up(name: &str) -> Option<bool> {
    let index = nix::net::if_::if_nametoindex(name).ok()?;
    netlink::link(index).await.ok()?.as_ref().map(carries)
}

fn carries(link: &LinkMessage) -> bool {
    let flags = link.header.flags;
    flags.contains(LinkFlags::Up | LinkFlags::LowerUp)
}

/// What the kernel says of the NIC of this name; `None` if there is none.
///
/// # Errors
///
/// The kernel can't be asked.
pub async fn nic(name: &str) -> Result<Option<NicSurvey>> {
    let Ok(index) = nix::net::if_::if_nametoindex(name) else {
        return Ok(None);
    };
    let link = netlink::link(index).await?;
    let link = link.with_context(|| format!("there is no NIC with index {index}"))?;
    let mtu_bytes = link
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            LinkAttribute::Mtu(mtu) => Some(*mtu),
            _ => None,
        });
    let kind = link
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            LinkAttribute::LinkInfo(about) => about.iter().find_map(|about| match about {
                LinkInfo::Kind(kind) => Some(kind.to_string()),
                _ => None,
            }),
            _ => None,
        });
    let driver = || {
        let driver = format!("/sys/class/net/{name}/device/driver");
        let driver = std::fs::read_link(driver).ok()?;
        Some(driver.file_name()?.to_string_lossy().into_owned())
    };
    let program =
        netlink::program_on(&link).map(|AttachedProgram { program_id, mode }| (program_id, mode));
    Ok(Some(NicSurvey {
        index,
        is_up: carries(&link),
        mtu_bytes: mtu_bytes.unwrap_or(0),
        driver: kind.or_else(driver),
        program,
        xdp: xdp_features(index),
        merges: merges(index).unwrap_or(false),
    }))
}

/// All NICs, as the kernel tells of them.
///
/// # Errors
///
/// The kernel can't be asked.
pub async fn links() -> Result<Vec<String>> {
    let (connection, handle, _) =
        rtnetlink::new_connection().context("cannot open a netlink socket")?;
    let connection = tokio::spawn(connection);
    let all: Vec<_> = handle.link().get().execute().try_collect().await?;
    connection.abort();
    Ok(all.iter().map(|link| format!("{link:?}")).collect())
}

/// See `Documentation/netlink/specs/netdev.yaml` in the kernel's source.
fn xdp_features(index: u32) -> Option<XdpFeatures> {
    const DEV_GET: u8 = 1;
    const IFINDEX: u16 = 1;
    const XDP_FEATURES: u16 = 3;
    let answer = ask("netdev", DEV_GET, attribute(IFINDEX, &index.to_ne_bytes())).ok()?;
    let features = answer.get(XDP_FEATURES)?.try_into().ok()?;
    Some(XdpFeatures(u64::from_ne_bytes(features)))
}

/// See `Documentation/networking/ethtool-netlink.rst` in the kernel's source.
fn merges(index: u32) -> Option<bool> {
    const FEATURES_GET: u8 = 11;
    const HEADER: u16 = 1;
    const HEADER_INDEX: u16 = 1;
    const ACTIVE: u16 = 4;
    const BITS: u16 = 3;
    const BIT: u16 = 1;
    const BIT_NAME: u16 = 2;
    let header = attribute(HEADER_INDEX, &index.to_ne_bytes());
    let answer = ask(
        "ethtool",
        FEATURES_GET,
        attribute(HEADER | NLA_F_NESTED, &header),
    )
    .ok()?;
    let (_, bits) = attributes(answer.get(ACTIVE)?).find(|(kind, _)| *kind == BITS)?;
    let lro = attributes(bits)
        .filter(|(kind, _)| *kind == BIT)
        .filter_map(|(_, bit)| attributes(bit).find(|(kind, _)| *kind == BIT_NAME))
        .any(|(_, name)| name.strip_suffix(b"\0").unwrap_or(name) == b"rx-lro");
    Some(lro)
}

/// The addresses of this machine, by index of the NIC.
///
/// # Errors
///
/// The kernel can't be asked.
pub async fn addresses() -> Result<HashMap<u32, Vec<IpAddr>>> {
    let (connection, handle, _) =
        rtnetlink::new_connection().context("cannot open a netlink socket")?;
    let connection = tokio::spawn(connection);
    let all: Vec<_> = handle.address().get().execute().try_collect().await?;
    connection.abort();
    let mut addresses: HashMap<u32, Vec<IpAddr>> = HashMap::new();
    for message in all {
        // Of a link from point to point, `Address` is the other end.
        let local = message
            .attributes
            .iter()
            .find_map(|attribute| match attribute {
                AddressAttribute::Local(address) => Some(*address),
                _ => None,
            });
        let address = message
            .attributes
            .iter()
            .find_map(|attribute| match attribute {
                AddressAttribute::Address(address) => Some(*address),
                _ => None,
            });
        addresses
            .entry(message.header.index)
            .or_default()
            .extend(local.or(address));
    }
    Ok(addresses)
}

/// A neighbour as the kernel has it.
#[derive(Clone, Debug)]
pub struct NeighbourSurvey {
    /// Index of the NIC.
    pub nic: u32,
    /// Its address.
    pub address: IpAddr,
    /// Whether it has been asked for its MAC address in vain.
    pub is_silent: bool,
}

/// The neighbours that the kernel knows, or has asked for.
///
/// # Errors
///
/// The kernel can't be asked.
pub async fn neighbours() -> Result<Vec<NeighbourSurvey>> {
    let (connection, handle, _) =
        rtnetlink::new_connection().context("cannot open a netlink socket")?;
    let connection = tokio::spawn(connection);
    let all: Vec<_> = handle.neighbours().get().execute().try_collect().await?;
    connection.abort();
    Ok(all
        .into_iter()
        .filter_map(|message| {
            let address = message
                .attributes
                .iter()
                .find_map(|attribute| match attribute {
                    NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => {
                        Some(IpAddr::V4(*v4))
                    }
                    NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => {
                        Some(IpAddr::V6(*v6))
                    }
                    _ => None,
                })?;
            Some(NeighbourSurvey {
                nic: message.header.ifindex,
                address,
                is_silent: matches!(
                    message.header.state,
                    NeighbourState::Failed | NeighbourState::Incomplete
                ),
            })
        })
        .collect())
}

/// Switches of the kernel without which triggers don't get through, or not all.
#[must_use]
pub fn switches(nic: &Nic) -> Vec<Switch> {
    let mut switches = Vec::new();
    let mut expect = |family: &str, switch: &str, why: &str| {
        let path = format!("/proc/sys/net/{family}/conf/{}/{switch}", nic.name);
        // A family that the kernel doesn't have has no switches either.
        if std::fs::read_to_string(path).is_ok_and(|value| value.trim() == "0") {
            let name = nic.name.replace('.', "/");
            switches.push(Switch {
                why: why.to_owned(),
                fix: format!("sysctl -w net.{family}.conf.{name}.{switch}=1"),
            });
        }
    };
    if nic.ipv4.is_some() {
        for switch in ["forwarding", "accept_local"] {
            let why = "IPv4 triggers to a device whose next hop isn't known yet get lost";
            expect("ipv4", switch, why);
        }
    }
    if nic.ipv6.is_some() {
        expect(
            "ipv6",
            "forwarding",
            "IPv6 triggers to a device whose next hop isn't known yet get lost",
        );
    }
    switches
}

/// The pinned maps and links, by name; empty if there is no such directory.
#[must_use]
pub fn pinned(directory: &Path) -> Vec<String> {
    let mut pins = super::pins::pins(directory).unwrap_or_default();
    pins.sort();
    pins
}
