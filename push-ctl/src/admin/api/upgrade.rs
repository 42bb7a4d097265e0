//! What the daemon becomes.

use serde::{Deserialize, Serialize};

/// Answer to `POST /v1/upgrade`. It is given before the daemon ends to go on as another one.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Upgrading {
    /// Version of the daemon.
    pub from: String,
    /// Version of what is installed now.
    pub to: String,
}
