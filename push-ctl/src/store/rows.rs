//! Records as the store has them: a byte that says how, then CBOR with numbered fields.

use crate::app_key::AppKeyHash;
use crate::dataplane::{Policy, Rate, Tunnel};
use crate::sessions::records::{
    App, EndCause, IssuedToken, Left, OperativeState, Path, RealmName, RegistrationId, Session,
    SessionState, Terminal, UnixTime,
};
use ipnet::IpNet;
use minicbor::bytes::ByteArray;
use minicbor::{Decode, Encode};
use push_common::tag::TagKey;
use push_common::token::TokenHash;
use push_common::wire::SessionId;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::time::Duration;

/// First byte of each value.
const FORMAT: u8 = 1;

/// A value isn't a record.
#[derive(Debug, thiserror::Error)]
#[error("{what} {key}: {why}")]
pub(super) struct Unreadable {
    what: &'static str,
    key: String,
    why: String,
}

#[derive(Encode, Decode)]
struct TerminalRow<'a> {
    #[b(0)]
    endpoint: &'a str,
    #[n(1)]
    device: IpAddr,
    #[n(2)]
    gateway: SocketAddr,
    #[n(3)]
    lifetime_ms: u64,
    #[n(4)]
    state: TerminalStateRow,
    #[b(5)]
    realm: Option<&'a str>,
}

#[derive(Encode, Decode)]
enum TerminalStateRow {
    #[n(0)]
    First {
        #[n(0)]
        expires_unix_ms: u64,
    },
    #[n(1)]
    Second {
        #[n(0)]
        since_unix_ms: u64,
        #[n(1)]
        cause: LeftRow,
    },
}

#[derive(Encode, Decode)]
#[cbor(index_only)]
enum LeftRow {
    #[n(0)]
    Deregistered,
    #[n(1)]
    Expired,
}

#[derive(Encode, Decode)]
struct SessionRow<'a> {
    #[n(0)]
    generation: u32,
    #[n(1)]
    terminal: u64,
    #[b(2)]
    app: &'a str,
    #[b(3)]
    instance: &'a str,
    #[n(4)]
    port: NonZeroU16,
    #[n(5)]
    state: SessionStateRow,
    #[n(6)]
    tunnel: Option<TunnelRow>,
}

#[derive(Encode, Decode)]
struct TunnelRow {
    #[n(0)]
    peer: IpAddr,
    #[n(1)]
    teid: u32,
}

#[derive(Encode, Decode)]
enum SessionStateRow {
    #[n(0)]
    Requested(#[n(0)] TokenRow),
    #[n(1)]
    Authorised(#[n(0)] TokenRow),
    #[n(2)]
    Ended {
        #[n(0)]
        at_unix_ms: u64,
        #[n(1)]
        cause: EndCauseRow,
    },
}

#[derive(Encode, Decode)]
struct TokenRow {
    #[n(0)]
    generation: u8,
    #[n(1)]
    key: ByteArray<16>,
    #[n(2)]
    sha256: ByteArray<32>,
}

#[derive(Encode, Decode)]
#[cbor(index_only)]
enum EndCauseRow {
    #[n(0)]
    Released,
    #[n(1)]
    Replaced,
    #[n(2)]
    Deregistered,
    #[n(3)]
    Expired,
    #[n(4)]
    Revoked,
    #[n(5)]
    AppRemoved,
}

#[derive(Encode, Decode)]
struct AppRow {
    #[n(0)]
    key_sha256: ByteArray<32>,
    #[n(1)]
    created_unix_ms: u64,
    /// Not in version 1 of the store.
    #[n(2)]
    policy_slot: Option<NonZeroU16>,
    #[n(3)]
    policy: Option<PolicyRow>,
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

pub(super) fn terminal(terminal: &Terminal) -> Vec<u8> {
    encode(TerminalRow {
        endpoint: terminal.endpoint.as_str(),
        device: terminal.path.device,
        gateway: terminal.path.gateway,
        lifetime_ms: u64::try_from(terminal.lifetime.as_millis()).unwrap_or(u64::MAX),
        state: match terminal.state {
            OperativeState::First { expires } => TerminalStateRow::First {
                expires_unix_ms: expires.as_millis(),
            },
            OperativeState::Second { since, cause } => TerminalStateRow::Second {
                since_unix_ms: since.as_millis(),
                cause: match cause {
                    Left::Deregistered => LeftRow::Deregistered,
                    Left::Expired => LeftRow::Expired,
                },
            },
        },
        realm: terminal.path.realm.as_ref().map(RealmName::as_str),
    })
}

pub(super) fn read_terminal(id: u64, value: &[u8]) -> Result<Terminal, Unreadable> {
    let id = RegistrationId::from_u64(id);
    let unreadable = |why: String| Unreadable {
        what: "terminal",
        key: id.to_string(),
        why,
    };
    let row: TerminalRow<'_> = decode(value).map_err(unreadable)?;
    Ok(Terminal {
        id,
        endpoint: row
            .endpoint
            .parse()
            .map_err(|e| unreadable(format!("{e}")))?,
        path: Path {
            realm: row
                .realm
                .map(str::parse)
                .transpose()
                .map_err(|e| unreadable(format!("{e}")))?,
            device: row.device,
            gateway: row.gateway,
        },
        lifetime: Duration::from_millis(row.lifetime_ms),
        state: match row.state {
            TerminalStateRow::First { expires_unix_ms } => OperativeState::First {
                expires: UnixTime::from_millis(expires_unix_ms),
            },
            TerminalStateRow::Second {
                since_unix_ms,
                cause,
            } => OperativeState::Second {
                since: UnixTime::from_millis(since_unix_ms),
                cause: match cause {
                    LeftRow::Deregistered => Left::Deregistered,
                    LeftRow::Expired => Left::Expired,
                },
            },
        },
    })
}

pub(super) fn session(session: &Session) -> Vec<u8> {
    encode(SessionRow {
        generation: session.id.generation(),
        terminal: session.terminal.to_u64(),
        app: session.app.as_str(),
        instance: session.instance.as_str(),
        port: session.port,
        state: match &session.state {
            SessionState::Requested(token) => SessionStateRow::Requested(token_row(token)),
            SessionState::Authorised(token) => SessionStateRow::Authorised(token_row(token)),
            SessionState::Ended { at, cause } => SessionStateRow::Ended {
                at_unix_ms: at.as_millis(),
                cause: match cause {
                    EndCause::Released => EndCauseRow::Released,
                    EndCause::Replaced => EndCauseRow::Replaced,
                    EndCause::Deregistered => EndCauseRow::Deregistered,
                    EndCause::Expired => EndCauseRow::Expired,
                    EndCause::Revoked => EndCauseRow::Revoked,
                    EndCause::AppRemoved => EndCauseRow::AppRemoved,
                },
            },
        },
        tunnel: session
            .tunnel
            .map(|Tunnel { peer, teid }| TunnelRow { peer, teid }),
    })
}

pub(super) fn read_session(slot: u32, value: &[u8]) -> Result<Session, Unreadable> {
    let unreadable = |why: String| Unreadable {
        what: "session in slot",
        key: slot.to_string(),
        why,
    };
    let row: SessionRow<'_> = decode(value).map_err(unreadable)?;
    Ok(Session {
        id: SessionId::new(slot, row.generation),
        terminal: RegistrationId::from_u64(row.terminal),
        app: row.app.parse().map_err(|e| unreadable(format!("{e}")))?,
        instance: row
            .instance
            .parse()
            .map_err(|e| unreadable(format!("{e}")))?,
        port: row.port,
        tunnel: row
            .tunnel
            .map(|TunnelRow { peer, teid }| Tunnel { peer, teid }),
        state: match row.state {
            SessionStateRow::Requested(token) => SessionState::Requested(issued_token(&token)),
            SessionStateRow::Authorised(token) => SessionState::Authorised(issued_token(&token)),
            SessionStateRow::Ended { at_unix_ms, cause } => SessionState::Ended {
                at: UnixTime::from_millis(at_unix_ms),
                cause: match cause {
                    EndCauseRow::Released => EndCause::Released,
                    EndCauseRow::Replaced => EndCause::Replaced,
                    EndCauseRow::Deregistered => EndCause::Deregistered,
                    EndCauseRow::Expired => EndCause::Expired,
                    EndCauseRow::Revoked => EndCause::Revoked,
                    EndCauseRow::AppRemoved => EndCause::AppRemoved,
                },
            },
        },
    })
}

pub(super) fn app(app: &App) -> Vec<u8> {
    encode(AppRow {
        key_sha256: ByteArray::from(app.key_hash.0),
        created_unix_ms: app.created.as_millis(),
        policy_slot: Some(app.policy_slot),
        policy: Some(policy_row(&app.policy)),
    })
}

/// `or_slot` is the policy slot of an application of version 1 of the store, which has none of its own.
pub(super) fn read_app(
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
    Ok(App {
        name: name.parse().map_err(|e| unreadable(format!("{e}")))?,
        key_hash: AppKeyHash(row.key_sha256.into()),
        created: UnixTime::from_millis(row.created_unix_ms),
        policy_slot: row
            .policy_slot
            .or(or_slot)
            .ok_or_else(|| unreadable("no policy slot".to_owned()))?,
        policy: row
            .policy
            .map_or_else(|| Ok(Policy::default()), policy)
            .map_err(unreadable)?,
    })
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

fn token_row(token: &IssuedToken) -> TokenRow {
    TokenRow {
        generation: token.generation,
        key: ByteArray::from(token.key.to_bytes()),
        sha256: ByteArray::from(token.hash.0),
    }
}

fn issued_token(row: &TokenRow) -> IssuedToken {
    IssuedToken {
        generation: row.generation,
        key: TagKey::from_bytes(*row.key),
        hash: TokenHash(*row.sha256),
    }
}

fn encode(row: impl Encode<()>) -> Vec<u8> {
    let mut value = vec![FORMAT];
    minicbor::encode(row, &mut value).expect("a vector takes whatever is written to it");
    value
}

fn decode<'a, T: Decode<'a, ()>>(value: &'a [u8]) -> Result<T, String> {
    match value {
        [FORMAT, row @ ..] => minicbor::decode(row).map_err(|error| error.to_string()),
        [format, ..] => Err(format!("format {format} instead of {FORMAT}")),
        [] => Err("empty".to_owned()),
    }
}
