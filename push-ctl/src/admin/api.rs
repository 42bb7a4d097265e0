//! What the daemon and the operator's command line say to each other. The keys are stable; a unit is
//! part of the name.

mod activity;
mod nics;
mod reload;
mod servers;
mod trace;
mod transfer;
mod upgrade;

pub use activity::{Activity, BusyApp, BusySession};
pub use nics::{AttachNic, NicAttached, NicDetached, NicListed};
pub use reload::{ConfigChange, Reloaded};
pub use servers::{
    AddCredential, AvailabilityStatus, CredentialAdded, CredentialRemoved, CredentialStatus,
    KeysRotated, MonitorStatus, QuotaChange, QuotaStatus, RotateKeys,
};
pub use trace::{CapturedPacket, PacketLine, Trace, TraceStep, TraceVerdict};
pub use transfer::{ExportQuery, ImportQuery, SessionsImported};
pub use upgrade::Upgrading;

use crate::config::Role;
use push_common::wire::SessionId;
use serde::{Deserialize, Deserializer, Serialize};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

/// `GET /v1/status`
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    /// Version of the daemon.
    pub version: String,
    /// Version of the maps it shares with the XDP program.
    pub layout_version: u32,
    /// SHA-256 of the XDP program's object, which it has loaded, in hexadecimal.
    pub object_sha256: String,
    /// Its process.
    pub pid: u32,
    /// When it became ready.
    pub started_at: String,
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
    /// Where it listens for devices that are in no realm.
    pub internal: Vec<SocketAddr>,
    /// Realms, and where it listens for their devices.
    pub realms: Vec<RealmStatus>,
    /// Where it listens for application servers.
    pub external: Vec<SocketAddr>,
    /// What the operator should mend.
    pub warnings: Vec<String>,
}

/// One of `GET /v1/realms`
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RealmStatus {
    /// What it is called.
    pub name: String,
    /// The interface by which its devices are reached; none if the realm is no longer in the configuration.
    pub interface: Option<String>,
    /// Routers on the way to its devices.
    pub next_hop: Vec<IpAddr>,
    /// Where the daemon listens for its devices.
    pub listen: Vec<SocketAddr>,
    /// Its terminals, also those in the second operative state.
    pub terminals: usize,
    /// Their sessions that aren't over.
    pub sessions: usize,
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
    /// What is behind it; none if nothing is taken there.
    pub role: Option<Role>,
    /// Whether the configuration has it like this; otherwise the next start of the daemon undoes it.
    pub configured: bool,
    /// Its addresses to which triggers are sent.
    pub trigger_addresses: Vec<IpAddr>,
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
    /// What it may do; everything that isn't named.
    #[serde(default)]
    pub policy: PolicyChange,
}

/// The answer to [`AddApp`]; the only one that has the key. Not `Debug`, as the key is secret.
#[derive(Clone, Serialize, Deserialize)]
pub struct AppAdded {
    /// What it is called.
    pub name: String,
    /// What its key is called.
    pub credential: CredentialStatus,
    /// With what its servers identify themselves.
    pub api_key: String,
}

/// `GET /v1/apps/{name}`, one of `GET /v1/apps`, and the answer to [`PolicyChange`]
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AppStatus {
    /// What it is called.
    pub name: String,
    /// When it was added, RFC 3339.
    pub created_at: String,
    /// Its sessions that aren't over.
    pub sessions: usize,
    /// What the authorised ones of them may have together by the rates they are held to; absent if these aren't limited.
    pub triggers_per_second_granted: Option<f64>,
    /// What it may do.
    pub policy: PolicyStatus,
    /// By what its servers identify themselves.
    pub credentials: Vec<CredentialStatus>,
    /// How much it may have and ask for.
    pub quotas: QuotaStatus,
    /// How its servers are looked after, if they are.
    pub monitor: Option<MonitorStatus>,
    /// How they are.
    pub availability: AvailabilityStatus,
}

/// What an application may do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyStatus {
    /// How many triggers each of its sessions may get, each for itself; none if that isn't limited.
    pub rate: Option<RateStatus>,
    /// Prefixes of addresses that triggers are taken from; empty if they are from all.
    pub sources: Vec<String>,
    /// Longest payload; 0 if there may be none, absent if that isn't limited.
    pub max_payload_bytes: Option<u16>,
    /// Differentiated services code point that triggers get; absent if they keep theirs.
    pub dscp: Option<u8>,
    /// Within this time of a delivery, triggers with the same collapse key are absorbed; absent if
    /// none ever are.
    pub coalescing_window_ms: Option<u64>,
    /// Whether acknowledgements of devices go on to the server that sent the trigger.
    pub return_acks: bool,
}

/// A token bucket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RateStatus {
    /// One trigger in this time, in the long run.
    pub interval_ns: u64,
    /// Triggers that may come at once.
    pub burst: u32,
}

/// `PATCH /v1/apps/{name}`: what isn't there stays, `null` takes a rule back (RFC 7396).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PolicyChange {
    /// See [`PolicyStatus::rate`].
    #[serde(deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub rate: Option<Option<RateChange>>,
    /// See [`PolicyStatus::sources`]; these take the place of those before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sources: Option<Vec<String>>,
    /// See [`PolicyStatus::max_payload_bytes`].
    #[serde(deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub max_payload_bytes: Option<Option<u16>>,
    /// See [`PolicyStatus::dscp`].
    #[serde(deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub dscp: Option<Option<u8>>,
    /// See [`PolicyStatus::coalescing_window_ms`].
    #[serde(deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub coalescing_window_ms: Option<Option<u64>>,
    /// See [`PolicyStatus::return_acks`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub return_acks: Option<bool>,
}

/// A change to a [`RateStatus`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RateChange {
    /// See [`RateStatus::interval_ns`]; has to be there if there was no rate before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interval_ns: Option<u64>,
    /// See [`RateStatus::burst`]; 1 if there was no rate before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub burst: Option<u32>,
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
    /// Where it is; absent if it was suspended before it has ever come.
    pub address: Option<IpAddr>,
    /// The realm that this is an address of; none if it is in no realm.
    pub realm: Option<String>,
    /// The address of the gateway that it registered with; absent if it never has.
    pub gateway: Option<SocketAddr>,
    /// `first_operative` (may ask for sessions) or `second_operative` (may not).
    pub state: String,
    /// Why it is in the second operative state: `deregistered`, `expired`, `address_taken` or `suspended`.
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
    /// The realm that this is an address of; none if it is in no realm.
    pub realm: Option<String>,
    /// The tunnel to the device.
    pub tunnel: Option<TunnelStatus>,
    /// What is known of the way to the device: `resolved`, `unresolved` or `no_route`; none if the session
    /// is not in the data plane.
    pub next_hop: Option<String>,
    /// `requested`, `authorised`, `rotating` (authorised, and another token given out or asked for) or `ended`.
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
    /// Triggers that the policy of the application refused.
    pub refused: u32,
    /// Triggers that the device has acknowledged.
    pub acknowledged: u32,
    /// From the delivery of a trigger to its acknowledgement, smoothed; none if there was none.
    pub round_trip_ms: Option<f64>,
}

/// A GTP-U tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TunnelStatus {
    /// The other end.
    pub peer: IpAddr,
    /// Its identifier there.
    pub teid: u32,
}

/// `PUT /v1/sessions/{id}/tunnel`
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetTunnel {
    /// The other end.
    pub peer: IpAddr,
    /// Its identifier there, not 0.
    pub teid: u32,
}

/// The answer to [`SetTunnel`], and to `DELETE /v1/sessions/{id}/tunnel`
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TunnelSet {
    /// The session.
    pub id: String,
    /// By which tunnel its device is reached now.
    pub tunnel: Option<TunnelStatus>,
}

/// `POST /v1/sessions/{id}/revoke`
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SessionRevoked {
    /// The session.
    pub id: String,
    /// Always true.
    pub revoked: bool,
    /// From when this was asked for until the data plane refused its triggers.
    pub effective_after_us: u64,
}

/// `POST /v1/sessions/{id}/rotate`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RotateSession {
    /// The session ends unless its token was rotated in this time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub within_s: Option<u64>,
}

/// The answer to [`RotateSession`]
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SessionRotating {
    /// The session.
    pub id: String,
    /// As asked for.
    pub within_s: Option<u64>,
}

/// `POST /v1/terminals/{id}/suspend`
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SuspendTerminal {
    /// Also if there is no terminal: one of this endpoint name is refused when it comes.
    pub unregistered: bool,
}

/// The answer to [`SuspendTerminal`], `POST /v1/terminals/{id}/resume`, `…/refresh`, and to `DELETE /v1/terminals/{id}`;
/// the id may be the endpoint name
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TerminalChanged {
    /// The registration.
    pub id: String,
    /// What it is now: `first_operative`, `suspended`, or `unknown`, which is: it has to register anew.
    pub state: String,
    /// Sessions that ended with that.
    pub sessions_ended: usize,
    /// Whether a device has ever registered like this.
    pub registered: bool,
}

/// `GET /v1/sessions` and `GET /v1/terminals`
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Listing<T> {
    /// How many there are, on this page and others.
    pub total: usize,
    /// Those on this page.
    pub items: Vec<T>,
}

/// `GET /v1/stats`
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Stats {
    /// By NIC.
    pub nics: Vec<NicStats>,
    /// Events that were never told of, as there were too many.
    pub events_lost: u64,
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
    /// Acknowledgements by their time since the delivery of the trigger: all classes there are.
    pub round_trips: Vec<RoundTripClass>,
}

/// Acknowledgements that took about the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoundTripClass {
    /// At least this long.
    pub from_us: u64,
    /// Not as long as this.
    pub below_us: u64,
    /// Acknowledgements.
    pub acknowledgements: u64,
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
    /// Until the acknowledgement came back, if that was waited for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub round_trip_ms: Option<f64>,
}

/// What is there, be it `null`.
fn present<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

fn as_text<S: serde::Serializer>(id: &SessionId, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(id)
}
