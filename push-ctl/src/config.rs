//! The configuration: one TOML file. `push-ctl config example` prints one with all keys explained.

mod check;
mod reload;
#[cfg(test)]
pub(crate) mod tests;

pub use check::{CheckError, Problem};
pub use reload::{Change, Changes};

use crate::dataplane;
use crate::sessions::records::RealmName;
use crate::store::{KeyEncryptionKey, KeyFileError};
use push_common::maps::DEFAULT_SESSION_SLOTS;
use push_common::wire::DEFAULT_TRIGGER_PORT;
use serde::{Deserialize, Deserializer, Serialize};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, io};

/// Where the configuration is unless told otherwise.
pub const DEFAULT_PATH: &str = "/etc/push/push.toml";

/// Where the controller listens for `push-ctl` unless told otherwise.
pub const DEFAULT_ADMIN_SOCKET: &str = "/run/push/admin.sock";

/// The whole configuration.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The file that it was read from.
    #[serde(skip)]
    pub path: PathBuf,
    /// Directory of the store, and of the self-signed certificate.
    #[serde(default = "default_state_dir")]
    pub state_dir: PathBuf,
    /// What keys in the store are encrypted with; they aren't if there is none.
    #[serde(default)]
    pub state_key_file: Option<PathBuf>,
    /// Directory on a bpffs where maps and links are pinned.
    #[serde(default = "default_pin_dir")]
    pub pin_dir: PathBuf,
    /// Unix socket on which the controller listens for `push-ctl`.
    #[serde(default = "default_admin_socket")]
    pub admin_socket: PathBuf,
    /// How many sessions there can be, and for how long.
    #[serde(default)]
    pub sessions: Sessions,
    /// How triggers are taken and passed on.
    #[serde(default)]
    pub triggers: Triggers,
    /// How the program is attached.
    #[serde(default)]
    pub data_plane: DataPlane,
    /// The NICs that it is attached to.
    #[serde(default)]
    pub nic: Vec<Nic>,
    /// Where devices register.
    pub internal: Internal,
    /// Where devices register whose addresses are their realm's own.
    #[serde(default)]
    pub realm: Vec<Realm>,
    /// Tunnels to devices.
    #[serde(default)]
    pub gtpu: Gtpu,
    /// Where application servers validate tokens.
    pub external: External,
    /// How application servers are looked after.
    #[serde(default)]
    pub monitoring: Monitoring,
    /// Who did what, for good.
    #[serde(default)]
    pub audit: Audit,
    /// Where metrics can be had.
    #[serde(default)]
    pub metrics: Metrics,
}

impl Config {
    /// The file of the audit log.
    #[must_use]
    pub fn audit_file(&self) -> PathBuf {
        let file = self.audit.file.clone();
        file.unwrap_or_else(|| self.state_dir.join("audit.log"))
    }

    /// What keys in the store are encrypted with, read from `state_key_file`.
    ///
    /// # Errors
    ///
    /// [`KeyFileError`].
    pub fn key_encryption_key(&self) -> Result<Option<KeyEncryptionKey>, KeyFileError> {
        let file = self.state_key_file.as_deref();
        file.map(KeyEncryptionKey::read).transpose()
    }
}

/// Who did what, for good.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Audit {
    /// The file; `audit.log` in the directory of the store if there is none.
    pub file: Option<PathBuf>,
    /// How long it gets before a new one is begun.
    pub max_bytes: u64,
    /// How many of those before it are kept.
    pub keep: u32,
}

impl Default for Audit {
    fn default() -> Self {
        Self {
            file: None,
            max_bytes: 16 << 20,
            keep: 9,
        }
    }
}

/// Where metrics can be had.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Metrics {
    /// Addresses and TCP ports; nowhere if there are none.
    pub listen: Vec<SocketAddr>,
}

/// How many sessions there can be, and for how long.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Sessions {
    /// Slots of the session table; there can be as many sessions, and as many terminals.
    pub slots: u32,
    /// Lifetime of a registration that doesn't ask for one.
    #[serde(deserialize_with = "duration")]
    pub default_lifetime: Duration,
    /// Longest lifetime that a registration gets.
    #[serde(deserialize_with = "duration")]
    pub max_lifetime: Duration,
    /// Sessions that one device may have.
    pub per_terminal: u32,
    /// Triggers that the authorised sessions of one device may have together, if that is limited.
    pub triggers_per_second_per_terminal: Option<NonZeroU32>,
    /// How long a token is valid after the next one was validated.
    #[serde(deserialize_with = "duration")]
    pub rotation_overlap: Duration,
}

impl Default for Sessions {
    fn default() -> Self {
        Self {
            slots: DEFAULT_SESSION_SLOTS,
            default_lifetime: Duration::from_hours(1),
            max_lifetime: Duration::from_hours(24),
            per_terminal: 64,
            triggers_per_second_per_terminal: None,
            rotation_overlap: Duration::from_mins(5),
        }
    }
}

/// How triggers are taken and passed on.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Triggers {
    /// UDP port on which they are taken.
    pub port: u16,
    /// Whether they keep the source address and port they came with.
    pub keep_source: bool,
}

impl Default for Triggers {
    fn default() -> Self {
        Self {
            port: DEFAULT_TRIGGER_PORT,
            keep_source: false,
        }
    }
}

/// How the program is attached.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DataPlane {
    /// Whether generic XDP will do where the driver has no native XDP.
    pub allow_generic: bool,
    /// Whether to refuse to start without `CAP_PERFMON`.
    pub require_perfmon: bool,
    /// How long after a delivery the next one to the same session is told of; `None` if it never is.
    #[serde(deserialize_with = "duration_or_never")]
    pub idle_after: Option<Duration>,
    /// What the program logs. Only where push-ctl was built with the feature `log`.
    #[serde(deserialize_with = "level")]
    pub log_level: Option<tracing::Level>,
}

impl Default for DataPlane {
    fn default() -> Self {
        Self {
            allow_generic: false,
            require_perfmon: true,
            idle_after: None,
            log_level: None,
        }
    }
}

/// A NIC that the program is attached to.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nic {
    /// Its name.
    pub name: String,
    /// What is behind it.
    pub role: Role,
    /// Its addresses to which triggers are sent, one per IP version at most.
    #[serde(default)]
    pub trigger_addresses: Vec<IpAddr>,
}

impl Nic {
    /// The IPv4 address to which triggers are sent.
    #[must_use]
    pub fn ipv4(&self) -> Option<Ipv4Addr> {
        first_ipv4(&self.trigger_addresses)
    }

    /// The IPv6 address to which triggers are sent.
    #[must_use]
    pub fn ipv6(&self) -> Option<Ipv6Addr> {
        first_ipv6(&self.trigger_addresses)
    }
}

impl From<&Nic> for dataplane::Nic {
    fn from(nic: &Nic) -> Self {
        Self {
            name: nic.name.clone(),
            ipv4: nic.ipv4(),
            ipv6: nic.ipv6(),
            takes_acks: nic.role.takes_acks(),
        }
    }
}

/// What is behind a NIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Application servers: triggers are taken.
    External,
    /// Devices.
    Internal,
    /// Both.
    Both,
}

impl Role {
    /// The role of a NIC that takes this; none if it takes nothing.
    #[must_use]
    pub const fn of(takes_triggers: bool, takes_acks: bool) -> Option<Self> {
        match (takes_triggers, takes_acks) {
            (true, true) => Some(Self::Both),
            (true, false) => Some(Self::External),
            (false, true) => Some(Self::Internal),
            (false, false) => None,
        }
    }

    /// As the configuration has it.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::External => "external",
            Self::Internal => "internal",
            Self::Both => "both",
        }
    }

    /// Whether triggers are taken.
    #[must_use]
    pub const fn takes_triggers(self) -> bool {
        match self {
            Self::External | Self::Both => true,
            Self::Internal => false,
        }
    }

    /// Whether acknowledgements of devices are taken.
    #[must_use]
    pub const fn takes_acks(self) -> bool {
        match self {
            Self::Internal | Self::Both => true,
            Self::External => false,
        }
    }
}

/// Where devices register.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Internal {
    /// Addresses and UDP ports; devices receive triggers from these.
    pub listen: Vec<SocketAddr>,
    /// The same, for CoAP over DTLS.
    #[serde(default)]
    pub coaps_listen: Vec<SocketAddr>,
    /// The file with the keys of devices that speak CoAP over DTLS.
    #[serde(default)]
    pub coaps_keys: Option<PathBuf>,
}

/// A network whose addresses are its own (an APN, a VRF): its devices may have the same addresses as
/// those of other realms.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Realm {
    /// What to call it.
    #[serde(deserialize_with = "realm_name")]
    pub name: RealmName,
    /// The NIC, VLAN interface or VRF by which its devices are reached.
    pub interface: String,
    /// Routers on the way to its devices, one per IP version at most.
    #[serde(default)]
    pub next_hop: Vec<IpAddr>,
    /// MAC address of the router in front of all its devices, if the kernel isn't to find it out.
    #[serde(default, deserialize_with = "mac_address")]
    pub router_mac: Option<[u8; 6]>,
    /// VLANs on `interface` that the kernel doesn't know, the outer one first.
    #[serde(default)]
    pub vlan: Vec<u16>,
    /// Addresses and UDP ports on `interface` where its devices register.
    pub listen: Vec<SocketAddr>,
}

/// Tunnels to devices, by GTP-U.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Gtpu {
    /// Addresses of this machine from which tunnels go out, one per IP version at most.
    pub local: Vec<IpAddr>,
}

impl Gtpu {
    /// The IPv4 address from which tunnels go out.
    #[must_use]
    pub fn ipv4(&self) -> Option<Ipv4Addr> {
        first_ipv4(&self.local)
    }

    /// The IPv6 address from which tunnels go out.
    #[must_use]
    pub fn ipv6(&self) -> Option<Ipv6Addr> {
        first_ipv6(&self.local)
    }
}

/// Where application servers validate tokens.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct External {
    /// Addresses and TCP ports.
    pub listen: Vec<SocketAddr>,
    /// PEM file of the certificate chain.
    pub certificate: Option<PathBuf>,
    /// PEM file of its private key.
    pub private_key: Option<PathBuf>,
}

/// How application servers are looked after.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Monitoring {
    /// PEM file with the authorities that their certificates have to come from; those of the operating
    /// system if there is none.
    pub ca: Option<PathBuf>,
}

/// A configuration can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("can't read the configuration {}: {cause}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// It isn't TOML, or has keys or values that don't exist.
    #[error("{}: {what}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// Where, and what is wrong.
        what: String,
    },
    /// Its values make no sense.
    #[error("{}: {cause}", path.display())]
    Senseless {
        /// The file.
        path: PathBuf,
        /// What makes no sense.
        cause: CheckError,
    },
}

impl Config {
    /// A configuration with every key explained.
    #[must_use]
    pub const fn example() -> &'static str {
        include_str!("config/example.toml")
    }

    /// Reads and checks the configuration in this file.
    ///
    /// # Errors
    ///
    /// [`ConfigError`].
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = fs::read_to_string(path).map_err(|cause| ConfigError::Unreadable {
            path: path.to_owned(),
            cause,
        })?;
        let mut config = Self::parse(&text).map_err(|what| ConfigError::Invalid {
            path: path.to_owned(),
            what,
        })?;
        config.path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        config.check().map_err(|cause| ConfigError::Senseless {
            path: path.to_owned(),
            cause,
        })?;
        Ok(config)
    }

    /// The configuration in this text, unchecked, or what is wrong with the text.
    fn parse(text: &str) -> Result<Self, String> {
        toml::from_str(text).map_err(|error| one_line(&error, text))
    }
}

/// The error with the line it is in, on one line.
fn one_line(error: &toml::de::Error, text: &str) -> String {
    let message = error.message().trim_end().replace('\n', ", ");
    match error.span().and_then(|span| text.get(..span.start)) {
        Some(before) => format!("line {}: {message}", before.matches('\n').count() + 1),
        None => message,
    }
}

fn default_state_dir() -> PathBuf {
    "/var/lib/push".into()
}

fn default_pin_dir() -> PathBuf {
    "/sys/fs/bpf/push".into()
}

fn default_admin_socket() -> PathBuf {
    DEFAULT_ADMIN_SOCKET.into()
}

fn first_ipv4(addresses: &[IpAddr]) -> Option<Ipv4Addr> {
    addresses.iter().find_map(|address| match address {
        IpAddr::V4(v4) => Some(*v4),
        IpAddr::V6(_) => None,
    })
}

fn first_ipv6(addresses: &[IpAddr]) -> Option<Ipv6Addr> {
    addresses.iter().find_map(|address| match address {
        IpAddr::V4(_) => None,
        IpAddr::V6(v6) => Some(*v6),
    })
}

fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    humantime::parse_duration(&text).map_err(|error| {
        serde::de::Error::custom(format!(
            "`{text}` is not a duration ({error}); write for example `90s`, `15m` or `1h 30m`"
        ))
    })
}

/// `0s` is never.
fn duration_or_never<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Duration>, D::Error> {
    duration(deserializer).map(|duration| (!duration.is_zero()).then_some(duration))
}

fn level<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<tracing::Level>, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse().map(Some).map_err(|_| {
        serde::de::Error::custom(format!(
            "`{text}` is not a level; write `error`, `warn`, `info`, `debug` or `trace`"
        ))
    })
}

fn mac_address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<[u8; 6]>, D::Error> {
    let text = String::deserialize(deserializer)?;
    let bytes: Option<Vec<u8>> = text
        .split(':')
        .map(|byte| {
            (byte.len() == 2)
                .then(|| u8::from_str_radix(byte, 16).ok())
                .flatten()
        })
        .collect();
    let mac = bytes.and_then(|bytes| bytes.try_into().ok());
    mac.map(Some).ok_or_else(|| {
        serde::de::Error::custom(format!(
            "`{text}` is not a MAC address; write it like 02:00:5e:00:53:01"
        ))
    })
}

fn realm_name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<RealmName, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse().map_err(serde::de::Error::custom)
}
