//! What is said of application servers: by what they identify themselves, what they may ask for, and how
//! they are.

use super::present;
use serde::{Deserialize, Serialize};

/// By what an application's servers identify themselves; never what is kept of its secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CredentialStatus {
    /// Names it: the 16 digits that a key begins with, or the fingerprint of a certificate does.
    pub id: String,
    /// `api_key` or `certificate`.
    pub kind: String,
    /// When it was added, RFC 3339.
    pub created_at: String,
    /// When it is good no more, RFC 3339; absent if it is until it is removed.
    pub expires_at: Option<String>,
}

/// `POST /v1/apps/{name}/credentials`: adds a new key, or a certificate.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AddCredential {
    /// A certificate as PEM; without one, a key is made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificate: Option<String>,
}

/// The answer to [`AddCredential`]; the only one that has the key. Not `Debug`, as the key is secret.
#[derive(Clone, Serialize, Deserialize)]
pub struct CredentialAdded {
    /// What was added.
    pub credential: CredentialStatus,
    /// The new key; absent if a certificate was added.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api_key: Option<String>,
}

/// `POST /v1/apps/{name}/credentials/rotate`: makes a new key, and lets those before expire.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RotateKeys {
    /// Let only this one expire.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub only: Option<String>,
    /// How long they are good beside the new one; 0 removes them at once.
    pub overlap_s: u64,
}

/// The answer to [`RotateKeys`]; the only one that has the key. Not `Debug`, as the key is secret.
#[derive(Clone, Serialize, Deserialize)]
pub struct KeysRotated {
    /// The new one.
    pub credential: CredentialStatus,
    /// Its text.
    pub api_key: String,
    /// Those that it takes the place of.
    pub replaced: Vec<String>,
    /// How long these are still good.
    pub overlap_s: u64,
}

/// The answer to `DELETE /v1/apps/{name}/credentials/{id}`
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CredentialRemoved {
    /// What it was called.
    pub id: String,
    /// Always true.
    pub removed: bool,
    /// Credentials of the application that are still good.
    pub remaining: usize,
}

/// How much an application may have and ask for; what is absent isn't limited.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuotaStatus {
    /// Sessions that aren't over.
    pub sessions: Option<u32>,
    /// Of these, on one terminal.
    pub sessions_per_terminal: Option<u32>,
    /// Validations in a minute, also those that are refused.
    pub validations_per_minute: Option<u32>,
    /// Triggers per second that its authorised sessions may be granted together.
    pub triggers_per_second: Option<u32>,
}

/// `PATCH /v1/apps/{name}/quotas`: what isn't there stays, `null` takes a quota back (RFC 7396).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct QuotaChange {
    /// See [`QuotaStatus::sessions`].
    #[serde(deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub sessions: Option<Option<u32>>,
    /// See [`QuotaStatus::sessions_per_terminal`].
    #[serde(deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub sessions_per_terminal: Option<Option<u32>>,
    /// See [`QuotaStatus::validations_per_minute`].
    #[serde(deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub validations_per_minute: Option<Option<u32>>,
    /// See [`QuotaStatus::triggers_per_second`].
    #[serde(deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub triggers_per_second: Option<Option<u32>>,
}

/// How an application's servers are looked after; `PUT /v1/apps/{name}/monitor`, which takes the place of
/// what was set before
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MonitorStatus {
    /// Where to ask how they are; absent if they aren't asked.
    #[serde(default)]
    pub url: Option<String>,
    /// How often.
    pub interval_s: u64,
    /// After how long without a good answer the application has failed.
    pub unreachable_after_s: u64,
    /// After how long without a validation or a delivered trigger its sessions end; absent if they never do.
    #[serde(default)]
    pub inactive_after_s: Option<u64>,
}

/// Whether an application's servers do their work, as far as is known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AvailabilityStatus {
    /// Whether they do.
    pub available: bool,
    /// If not, why: `unreachable`, `inactive`, or `announced` by themselves.
    pub cause: Option<String>,
    /// Since when they don't, RFC 3339.
    pub since: Option<String>,
}
