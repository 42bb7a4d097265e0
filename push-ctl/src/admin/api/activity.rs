//! What is going on at the moment.

use super::{NicStatus, SessionCounts, Stats};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;

/// `GET /v1/activity`
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Activity {
    /// Version of the daemon.
    pub version: String,
    /// Since it is ready.
    pub uptime_s: u64,
    /// Sessions that aren't over.
    pub sessions: SessionCounts,
    /// Terminals that are known.
    pub terminals: usize,
    /// The NICs it is attached to, as the kernel has them.
    pub nics: Vec<NicStatus>,
    /// What became of packets up to now.
    pub stats: Stats,
    /// The time that rates of sessions and applications are of.
    pub interval_ms: u64,
    /// The sessions with the most triggers, the busiest first.
    pub busiest_sessions: Vec<BusySession>,
    /// The applications with the most triggers, the busiest first.
    pub busiest_apps: Vec<BusyApp>,
    /// What the operator should mend.
    pub warnings: Vec<String>,
}

/// A session that got triggers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BusySession {
    /// The session.
    pub id: String,
    /// Its application.
    pub app: String,
    /// Where its triggers are delivered to.
    pub device: Option<SocketAddr>,
    /// Triggers delivered.
    pub packets_per_s: f64,
    /// Bytes of their frames.
    pub bytes_per_s: f64,
    /// Triggers that the policy of the application refused.
    pub refused_per_s: f64,
    /// Triggers delivered, all of them.
    pub packets: u64,
}

/// An application whose sessions got triggers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BusyApp {
    /// The application.
    pub app: String,
    /// Its sessions that got any.
    pub busy_sessions: usize,
    /// Triggers delivered.
    pub packets_per_s: f64,
    /// Bytes of their frames.
    pub bytes_per_s: f64,
    /// Triggers that its policy refused.
    pub refused_per_s: f64,
}
