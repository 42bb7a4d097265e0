//! What the daemon and the operator's command line say to each other. The keys are stable; a unit is
//! part of the name.

use crate::config::Role;
use push_common::wire::SessionId;
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

/// `GET /v1/status`
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    /// Version of the daemon.
    pub version: String,
    /// Version of the maps it shares with the XDP program.
    pub layout_version: u32,
    /// Its process.
    pub pid: u32,
    /// Since it is ready.
    pub uptime_s: u64,
    /// Its configuration file.
    pub config: PathBuf,
    /// What it keeps.
    pub store: StoreStatus,
    /// Sessions that aren't over.
    pub sessions: SessionCounts,
    /// The NICs it is attached to, as the kernel has them.
    pub nics: Vec<NicStatus>,
    /// Where it listens for devices.
    pub internal: Vec<SocketAddr>,
    /// Where it listens for application servers.
    pub external: Vec<SocketAddr>,
    /// What the operator should mend.
    pub warnings: Vec<String>,
}

/// What the store holds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StoreStatus {
    /// The file.
    pub path: PathBuf,
    /// Terminals, also those in the second operative state.
    pub terminals: usize,
    /// Sessions, also those that are over and whose slot wasn't used since.
    pub sessions: usize,
    /// Applications.
    pub apps: usize,
}

/// Sessions that aren't over.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SessionCounts {
    /// Requested, not authorised.
    pub requested: u32,
    /// Authorised.
    pub authorised: u32,
    /// How many there can be.
    pub slots: u32,
}

/// How the program is attached to a NIC.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NicStatus {
    /// Its name.
    pub name: String,
    /// Its index.
    pub index: u32,
    /// Its role in the configuration.
    pub role: Option<Role>,
    /// `native`, `generic`, `offloaded`, or `none`.
    pub mode: String,
    /// Identifier of the program in the kernel.
    pub program_id: u32,
    /// Identifier of the link in the kernel.
    pub link_id: u32,
    /// Whether the link was there when the daemon started.
    pub adopted: bool,
}

/// `POST /v1/apps`
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AddApp {
    /// What to call it.
    pub name: String,
}

/// The answer to [`AddApp`]; the only one that has the key. Not `Debug`, as the key is secret.
#[derive(Clone, Serialize, Deserialize)]
pub struct AppAdded {
    /// What it is called.
    pub name: String,
    /// With what its servers identify themselves.
    pub api_key: String,
}

/// One of `GET /v1/apps`
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AppStatus {
    /// What it is called.
    pub name: String,
    /// When it was added, RFC 3339.
    pub created_at: String,
    /// Its sessions that aren't over.
    pub sessions: usize,
}

/// `DELETE /v1/apps/{name}`
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AppRemoved {
    /// What it was called.
    pub name: String,
    /// Always true.
    pub removed: bool,
    /// Sessions that ended with it.
    pub sessions_ended: usize,
}

/// `GET /v1/terminals/{id}`, and one of `GET /v1/terminals`
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TerminalStatus {
    /// The registration.
    pub id: String,
    /// What the device calls itself.
    pub endpoint: String,
    /// Where it is.
    pub address: IpAddr,
    /// The address of the gateway that it registered with.
    pub gateway: SocketAddr,
    /// `first_operative` (may ask for sessions) or `second_operative` (may not).
    pub state: String,
    /// Why it is in the second operative state: `deregistered` or `expired`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    /// Until the registration expires.
    pub expires_in_s: Option<u64>,
    /// Its sessions that aren't over.
    pub sessions: usize,
}

/// `GET /v1/sessions/{id}`, and one of `GET /v1/sessions`
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SessionStatus {
    /// The session.
    pub id: String,
    /// The registration it belongs to.
    pub terminal: String,
    /// The application.
    pub app: String,
    /// Which instance of it.
    pub instance: String,
    /// Where triggers are delivered to, if the device is still known.
    pub device: Option<SocketAddr>,
    /// `requested`, `authorised` or `ended`.
    pub state: String,
    /// Why it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    /// Which token it has; none once it is over.
    pub token_generation: Option<u8>,
    /// Until it expires, unless the registration is refreshed.
    pub expires_in_s: Option<u64>,
    /// Triggers delivered.
    pub packets: u64,
    /// Bytes of their frames.
    pub bytes: u64,
    /// Since the last one.
    pub last_delivered_ago_s: Option<u64>,
}

/// `POST /v1/sessions/{id}/revoke`
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SessionRevoked {
    /// The session.
    pub id: String,
    /// Always true.
    pub revoked: bool,
}

/// `GET /v1/stats`
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Stats {
    /// By NIC.
    pub nics: Vec<NicStats>,
}

/// What has come in by a NIC.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NicStats {
    /// Its name.
    pub name: String,
    /// All packets.
    pub packets: u64,
    /// Bytes of their frames.
    pub bytes: u64,
    /// What became of them: all verdicts there are.
    pub verdicts: Vec<VerdictStats>,
}

/// Packets that got a verdict.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct VerdictStats {
    /// Its name.
    pub verdict: String,
    /// `pass`, `transmit`, `redirect` or `drop`.
    pub action: String,
    /// Packets.
    pub packets: u64,
    /// Bytes of their frames.
    pub bytes: u64,
    /// What it means.
    pub meaning: String,
}

/// What `push-ctl trigger send` has sent.
#[derive(Clone, Debug, Serialize)]
pub struct TriggerSent {
    /// The session.
    #[serde(serialize_with = "as_text")]
    pub session_id: SessionId,
    /// Its sequence number.
    pub sequence: u64,
    /// Length of the datagram.
    pub bytes: usize,
    /// Where to.
    pub to: SocketAddr,
}

fn as_text<S: serde::Serializer>(id: &SessionId, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(id)
}
