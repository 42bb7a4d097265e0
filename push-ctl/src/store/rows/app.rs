//! Applications.

use super::{Unreadable, decode, encode};
use crate::dataplane::{Policy, Rate};
use crate::sessions::records::{
    App, AppFailure, Availability, Credential, CredentialId, Monitor, Proof, Quotas, UnixTime,
};
use ipnet::IpNet;
use minicbor::bytes::ByteArray;
use minicbor::{Decode, Encode};
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::time::Duration;

#[derive(Encode, Decode)]
struct AppRow {
    /// Not since version 3 of the store.
    #[n(0)]
    key_sha256: Option<ByteArray<32>>,
    #[n(1)]
    created_unix_ms: u64,
    /// Not in version 1 of the store.
    #[n(2)]
    policy_slot: Option<NonZeroU16>,
    #[n(3)]
    policy: Option<PolicyRow>,
    /// Neither this nor what follows before version 3 of the store.
    #[n(4)]
    credentials: Option<Vec<CredentialRow>>,
    #[n(5)]
    quotas: Option<QuotasRow>,
    #[n(6)]
    monitor: Option<MonitorRow>,
    #[n(7)]
    failed: Option<FailedRow>,
    #[n(8)]
    removed: Option<bool>,
}

#[derive(Encode, Decode)]
struct CredentialRow {
    #[n(0)]
    id: u64,
    #[n(1)]
    proof: ProofRow,
    #[n(2)]
    created_unix_ms: u64,
    #[n(3)]
    expires_unix_ms: Option<u64>,
}

#[derive(Encode, Decode)]
enum ProofRow {
    #[n(0)]
    ApiKey(#[n(0)] String),
    #[n(1)]
    ApiKeySha256(#[n(0)] ByteArray<32>),
    #[n(2)]
    Certificate(#[n(0)] ByteArray<32>),
}

#[derive(Encode, Decode)]
struct QuotasRow {
    #[n(0)]
    sessions: Option<u32>,
    #[n(1)]
    sessions_per_terminal: Option<u32>,
    #[n(2)]
    validations_per_minute: Option<u32>,
    #[n(3)]
    triggers_per_second: Option<u32>,
}

#[derive(Encode, Decode)]
struct MonitorRow {
    #[n(0)]
    url: Option<String>,
    #[n(1)]
    interval_ms: u64,
    #[n(2)]
    unreachable_after_ms: u64,
    #[n(3)]
    inactive_after_ms: Option<u64>,
}

#[derive(Encode, Decode)]
struct FailedRow {
    #[n(0)]
    since_unix_ms: u64,
    #[n(1)]
    cause: AppFailureRow,
}

#[derive(Encode, Decode)]
#[cbor(index_only)]
enum AppFailureRow {
    #[n(0)]
    Unreachable,
    #[n(1)]
    Inactive,
    #[n(2)]
    Announced,
}

#[derive(Encode, Decode)]
struct PolicyRow {
    #[n(0)]
    rate: Option<RateRow>,
    #[n(1)]
    sources: Vec<PrefixRow>,
    #[n(2)]
    max_payload_bytes: Option<u16>,
    #[n(3)]
    dscp: Option<u8>,
    #[n(4)]
    coalescing_window_ns: Option<u64>,
    #[n(5)]
    return_acks: bool,
}

#[derive(Encode, Decode)]
struct RateRow {
    #[n(0)]
    interval_ns: u64,
    #[n(1)]
    burst: u32,
}

#[derive(Encode, Decode)]
struct PrefixRow {
    #[n(0)]
    address: IpAddr,
    #[n(1)]
    length_bits: u8,
}

pub(in crate::store) fn app(app: &App) -> Vec<u8> {
    let App {
        name: _,
        created,
        policy_slot,
        policy,
        credentials,
        quotas,
        monitor,
        availability,
        removed,
    } = app;
    encode(AppRow {
        key_sha256: None,
        created_unix_ms: created.as_millis(),
        policy_slot: Some(*policy_slot),
        policy: Some(policy_row(policy)),
        credentials: Some(credentials.iter().map(credential_row).collect()),
        quotas: Some(QuotasRow {
            sessions: quotas.sessions,
            sessions_per_terminal: quotas.sessions_per_terminal,
            validations_per_minute: quotas.validations_per_minute,
            triggers_per_second: quotas.triggers_per_second,
        }),
        monitor: monitor.as_ref().map(|monitor| MonitorRow {
            url: monitor.url.clone(),
            interval_ms: milliseconds(monitor.interval),
            unreachable_after_ms: milliseconds(monitor.unreachable_after),
            inactive_after_ms: monitor.inactive_after.map(milliseconds),
        }),
        failed: match *availability {
            Availability::Available => None,
            Availability::Failed { since, cause } => Some(FailedRow {
                since_unix_ms: since.as_millis(),
                cause: match cause {
                    AppFailure::Unreachable => AppFailureRow::Unreachable,
                    AppFailure::Inactive => AppFailureRow::Inactive,
                    AppFailure::Announced => AppFailureRow::Announced,
                },
            }),
        },
        removed: removed.then_some(true),
    })
}

/// `or_slot` is the policy slot of an application of version 1 of the store, which has none of its own.
pub(in crate::store) fn read_app(
    name: &str,
    value: &[u8],
    or_slot: Option<NonZeroU16>,
) -> Result<App, Unreadable> {
    let unreadable = |why: String| Unreadable {
        what: "application",
        key: name.to_owned(),
        why,
    };
    let row: AppRow = decode(value).map_err(unreadable)?;
    let created = UnixTime::from_millis(row.created_unix_ms);
    let before_version_3 = row.key_sha256.map(|hash| old_key(*hash, created));
    let credentials = row.credentials.unwrap_or_default();
    let quotas = row.quotas.map_or_else(Quotas::default, |row| Quotas {
        sessions: row.sessions,
        sessions_per_terminal: row.sessions_per_terminal,
        validations_per_minute: row.validations_per_minute,
        triggers_per_second: row.triggers_per_second,
    });
    Ok(App {
        name: name.parse().map_err(|e| unreadable(format!("{e}")))?,
        created,
        policy_slot: row
            .policy_slot
            .or(or_slot)
            .ok_or_else(|| unreadable("no policy slot".to_owned()))?,
        policy: row
            .policy
            .map_or_else(|| Ok(Policy::default()), policy)
            .map_err(unreadable)?,
        credentials: before_version_3
            .into_iter()
            .chain(credentials.into_iter().map(credential))
            .collect(),
        quotas,
        monitor: row.monitor.map(|row| Monitor {
            url: row.url,
            interval: Duration::from_millis(row.interval_ms),
            unreachable_after: Duration::from_millis(row.unreachable_after_ms),
            inactive_after: row.inactive_after_ms.map(Duration::from_millis),
        }),
        availability: match row.failed {
            None => Availability::Available,
            Some(row) => Availability::Failed {
                since: UnixTime::from_millis(row.since_unix_ms),
                cause: match row.cause {
                    AppFailureRow::Unreachable => AppFailure::Unreachable,
                    AppFailureRow::Inactive => AppFailure::Inactive,
                    AppFailureRow::Announced => AppFailure::Announced,
                },
            },
        },
        removed: row.removed.unwrap_or(false),
    })
}

/// The key of an application of versions 1 and 2 of the store. It is named after its hash.
fn old_key(sha256: [u8; 32], created: UnixTime) -> Credential {
    let [a, b, c, d, e, f, g, h, ..] = sha256;
    Credential {
        id: CredentialId::from_u64(u64::from_be_bytes([a, b, c, d, e, f, g, h])),
        proof: Proof::ApiKeySha256(sha256),
        created,
        expires: None,
    }
}

fn credential_row(credential: &Credential) -> CredentialRow {
    CredentialRow {
        id: credential.id.to_u64(),
        proof: match &credential.proof {
            Proof::ApiKey(hash) => ProofRow::ApiKey(hash.clone()),
            Proof::ApiKeySha256(hash) => ProofRow::ApiKeySha256(ByteArray::from(*hash)),
            Proof::Certificate(hash) => ProofRow::Certificate(ByteArray::from(*hash)),
        },
        created_unix_ms: credential.created.as_millis(),
        expires_unix_ms: credential.expires.map(UnixTime::as_millis),
    }
}

fn credential(row: CredentialRow) -> Credential {
    Credential {
        id: CredentialId::from_u64(row.id),
        proof: match row.proof {
            ProofRow::ApiKey(hash) => Proof::ApiKey(hash),
            ProofRow::ApiKeySha256(hash) => Proof::ApiKeySha256(*hash),
            ProofRow::Certificate(hash) => Proof::Certificate(*hash),
        },
        created: UnixTime::from_millis(row.created_unix_ms),
        expires: row.expires_unix_ms.map(UnixTime::from_millis),
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn policy_row(policy: &Policy) -> PolicyRow {
    let Policy {
        rate,
        sources,
        max_payload,
        dscp,
        coalescing_window,
        return_acks,
    } = policy;
    let nanoseconds = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    let prefix = |prefix: &IpNet| PrefixRow {
        address: prefix.addr(),
        length_bits: prefix.prefix_len(),
    };
    PolicyRow {
        rate: rate.as_ref().map(|rate| RateRow {
            interval_ns: nanoseconds(rate.interval),
            burst: rate.burst,
        }),
        sources: sources.iter().map(prefix).collect(),
        max_payload_bytes: *max_payload,
        dscp: *dscp,
        coalescing_window_ns: coalescing_window.map(nanoseconds),
        return_acks: *return_acks,
    }
}

fn policy(row: PolicyRow) -> Result<Policy, String> {
    let prefix = |row: PrefixRow| {
        IpNet::new(row.address, row.length_bits)
            .map_err(|error| format!("{}/{}: {error}", row.address, row.length_bits))
    };
    Ok(Policy {
        rate: row.rate.map(|rate| Rate {
            interval: Duration::from_nanos(rate.interval_ns),
            burst: rate.burst,
        }),
        sources: row
            .sources
            .into_iter()
            .map(prefix)
            .collect::<Result<_, _>>()?,
        max_payload: row.max_payload_bytes,
        dscp: row.dscp,
        coalescing_window: row.coalescing_window_ns.map(Duration::from_nanos),
        return_acks: row.return_acks,
    })
}
