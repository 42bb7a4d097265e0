//! What would become of a trigger, and what becomes of those that come.

use serde::{Deserialize, Serialize};

/// `GET /v1/sessions/{id}/trace`: what would become of a trigger that was signed with the session's token, has
/// the next sequence number, no payload and no collapse key, and comes from where its application permits.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Trace {
    /// The session.
    pub session: String,
    /// What has to be right, in the order in which it is needed.
    pub steps: Vec<TraceStep>,
    /// What the trigger would get, by each NIC that takes triggers.
    pub verdicts: Vec<TraceVerdict>,
}

/// Something that has to be right.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceStep {
    /// What it is about, in `snake_case`.
    pub step: String,
    /// Whether it is right.
    pub ok: bool,
    /// How it is.
    pub what: String,
    /// What to do about it, if it isn't right.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
}

/// What a trigger would get.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceVerdict {
    /// The NIC that it comes in by.
    pub nic: String,
    /// The verdict.
    pub verdict: String,
    /// Whether the trigger would be on its way to the device.
    pub delivered: bool,
    /// What the verdict means.
    pub meaning: String,
}

/// A line of `GET /v1/sessions/{id}/packets?for_ms=N`: packets that name the session, then the end.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PacketLine {
    /// A packet.
    Packet(CapturedPacket),
    /// The time is over.
    End {
        /// Packets that named the session but were too many to be told of.
        missed: u64,
    },
}

/// A packet that named the session, and what became of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CapturedPacket {
    /// When, RFC 3339 with nanoseconds.
    pub at: String,
    /// The NIC that it came in by.
    pub nic: String,
    /// What became of it.
    pub verdict: String,
    /// `pass`, `transmit`, `redirect` or `drop`.
    pub action: String,
    /// What the verdict means.
    pub meaning: String,
    /// Length of its frame.
    pub length_bytes: u32,
    /// The beginning of its frame in hexadecimal digits, as it left the program: rewritten, if it was delivered.
    pub frame: String,
}
