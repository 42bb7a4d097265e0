//! The configuration, read anew.

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// `POST /v1/config/reload`
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Reloaded {
    /// The file.
    pub config: PathBuf,
    /// What is different now.
    pub changes: Vec<ConfigChange>,
}

/// A key that has another value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigChange {
    /// As in `nic.eth1`.
    pub key: String,
    /// What it was; none if it wasn't there.
    pub before: Option<String>,
    /// What it is now; none if it isn't there any more.
    pub after: Option<String>,
}
