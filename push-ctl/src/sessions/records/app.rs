//! Applications, what they may do, and how their servers are known and watched.

use super::{AppName, UnixTime, ids};
use crate::dataplane::Policy;
use std::num::NonZeroU16;
use std::time::Duration;

/// An application whose servers may validate tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct App {
    /// What the operator calls it.
    pub name: AppName,
    /// When it was added.
    pub created: UnixTime,
    /// Where the data plane has its policy: below [`push_common::maps::MAX_POLICIES`], and its own while it exists.
    pub policy_slot: NonZeroU16,
    /// What its sessions may do.
    pub policy: Policy,
    /// With what its servers identify themselves, in the order in which they were added.
    pub credentials: Vec<Credential>,
    /// How much of the gateway it may take up.
    pub quotas: Quotas,
    /// How its server is watched, if it is.
    pub monitor: Option<Monitor>,
    /// Whether its server is in service, as far as is known.
    pub availability: Availability,
    /// Whether the operator has removed it: it is kept until its last session has ended.
    pub removed: bool,
}

ids! {
    /// Names a credential of an application. It isn't secret.
    CredentialId, ParseCredentialIdError: "credential";
}

/// With what an application's server identifies itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credential {
    /// Names it.
    pub id: CredentialId,
    /// How it is recognised.
    pub proof: Proof,
    /// When it was made.
    pub created: UnixTime,
    /// When it is no longer accepted, if that has been said.
    pub expires: Option<UnixTime>,
}

impl Credential {
    /// Whether it is accepted at this moment.
    #[must_use]
    pub fn is_valid(&self, now: UnixTime) -> bool {
        self.expires.is_none_or(|expires| expires > now)
    }
}

/// How a credential is recognised. What it is made from isn't kept.
#[derive(Clone, PartialEq, Eq)]
pub enum Proof {
    /// An API key, as its Argon2id hash in PHC string format.
    ApiKey(String),
    /// SHA-256 of an API key of 256 random bits, as versions 1 and 2 of the store have it.
    ApiKeySha256([u8; 32]),
    /// SHA-256 of the DER form of a TLS client certificate.
    Certificate([u8; 32]),
}

/// Says nothing of the hash.
impl std::fmt::Debug for Proof {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::ApiKey(_) | Self::ApiKeySha256(_) => "ApiKey(..)",
            Self::Certificate(_) => "Certificate(..)",
        })
    }
}

/// How much of the gateway an application may take up; what isn't set isn't limited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quotas {
    /// Its sessions that aren't over.
    pub sessions: Option<u32>,
    /// Those of them that are on the same terminal.
    pub sessions_per_terminal: Option<u32>,
    /// Validations that its servers ask for, whether or not they succeed.
    pub validations_per_minute: Option<u32>,
    /// What its authorised sessions may have together.
    pub triggers_per_second: Option<u32>,
}

/// How an application's server is watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Monitor {
    /// Where its status is enquired, by HTTPS; nowhere if it isn't.
    pub url: Option<String>,
    /// From one enquiry to the next.
    pub interval: Duration,
    /// How long enquiries may fail.
    pub unreachable_after: Duration,
    /// How long it may neither validate nor trigger anything; for ever if it isn't set.
    pub inactive_after: Option<Duration>,
}

/// Whether an application's server is in service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Availability {
    /// Nothing else is known.
    Available,
    /// It isn't; no session can be requested.
    Failed {
        /// Since when.
        since: UnixTime,
        /// Why it is thought so.
        cause: AppFailure,
    },
}

/// Why an application's server is thought not to be in service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AppFailure {
    /// Its status could not be enquired for too long.
    Unreachable,
    /// It has neither validated nor triggered anything for too long.
    Inactive,
    /// It has said so itself.
    Announced,
}

impl AppFailure {
    /// Stable name, in `snake_case`.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::Inactive => "inactive",
            Self::Announced => "announced",
        }
    }
}
