//! NICs.

use super::NicStatus;
use crate::config::Role;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// One of `GET /v1/nics`
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NicListed {
    /// How the program is attached to it.
    #[serde(flatten)]
    pub status: NicStatus,
    /// Packets that came in.
    pub packets: u64,
    /// Bytes of their frames.
    pub bytes: u64,
    /// Packets that were sent on, by this NIC or another one.
    pub sent: u64,
    /// Packets that the kernel got.
    pub passed: u64,
    /// Packets that were dropped.
    pub dropped: u64,
}

/// `POST /v1/nics`
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttachNic {
    /// Its name.
    pub name: String,
    /// What is behind it.
    pub role: Role,
    /// Its addresses to which triggers are sent, one per IP version at most.
    #[serde(default)]
    pub trigger_addresses: Vec<IpAddr>,
}

/// The answer to [`AttachNic`]
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NicAttached {
    /// How the program is attached to it.
    pub nic: NicStatus,
    /// What the operator should know.
    pub warnings: Vec<String>,
}

/// `DELETE /v1/nics/{name}`
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NicDetached {
    /// Its name.
    pub name: String,
    /// Always true.
    pub detached: bool,
    /// What the operator should know.
    pub warnings: Vec<String>,
}
