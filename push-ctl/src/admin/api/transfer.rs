//! Sessions that move.

use serde::{Deserialize, Serialize};

/// `GET /v1/sessions/export?…`: what isn't there doesn't matter.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ExportQuery {
    /// Sessions of this application, and the terminals that have such.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub app: Option<String>,
    /// Terminals of this realm, and their sessions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub realm: Option<String>,
}

/// `POST /v1/sessions/import?…`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ImportQuery {
    /// Only look at the file.
    pub dry_run: bool,
}

/// What has become of a file, or would.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionsImported {
    /// Whether nothing was changed.
    pub dry_run: bool,
    /// Terminals that weren't known.
    pub terminals: usize,
    /// Sessions that weren't known.
    pub sessions: usize,
    /// Terminals that were known already.
    pub terminals_known: usize,
    /// Sessions that were known already.
    pub sessions_known: usize,
    /// Sessions whose time is over.
    pub sessions_expired: usize,
    /// What something got in the way of between the look at the file and its import, one sentence each.
    pub left_out: Vec<String>,
}
