//! Records as the store has them: a byte that says how, then CBOR with numbered fields.

mod app;
mod key;

pub(super) use app::{app, read_app};

use super::KeyEncryptionKey;
use crate::dataplane::Tunnel;
use crate::sessions::records::{
    EndCause, IssuedToken, Left, OperativeState, Path, Previous, RealmName, RegistrationId,
    Session, SessionState, Terminal, Tokens, UnixTime,
};
use key::KeyRow;
use minicbor::bytes::ByteArray;
use minicbor::{Decode, Encode};
use push_common::replay::WORDS;
use push_common::token::TokenHash;
use push_common::wire::SessionId;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::time::Duration;
use zeroize::Zeroizing;

/// First byte of each value.
const FORMAT: u8 = 1;

/// Where push clients of terminals without a port are asked (RFC 7252, 12.6).
const COAP_PORT: u16 = 5683;

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
    /// Not before version 3 of the store.
    #[n(6)]
    port: Option<u16>,
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
    #[n(2)]
    Suspended {
        #[n(0)]
        since_unix_ms: u64,
        #[n(1)]
        expires_unix_ms: u64,
    },
}

#[derive(Encode, Decode)]
#[cbor(index_only)]
enum LeftRow {
    #[n(0)]
    Deregistered,
    #[n(1)]
    Expired,
    #[n(2)]
    AddressTaken,
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
    /// Not before version 3 of the store.
    #[n(7)]
    window: Option<[u64; WORDS]>,
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
    Authorised(
        #[n(0)] TokenRow,
        /// Neither this nor what follows before version 3 of the store.
        #[n(1)]
        Option<PreviousRow>,
        #[n(2)] Option<TokenRow>,
        /// In milliseconds since the epoch.
        #[n(3)]
        Option<u64>,
    ),
    #[n(2)]
    Ended {
        #[n(0)]
        at_unix_ms: u64,
        #[n(1)]
        cause: EndCauseRow,
    },
}

#[derive(Encode, Decode)]
struct PreviousRow {
    #[n(0)]
    token: TokenRow,
    #[n(1)]
    until_unix_ms: u64,
}

#[derive(Encode, Decode)]
struct TokenRow {
    #[n(0)]
    generation: u8,
    #[n(1)]
    key: KeyRow,
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
    #[n(6)]
    AppServerFailed,
    #[n(7)]
    AppEnded,
    #[n(8)]
    TerminalSuspended,
    #[n(9)]
    TerminalRemoved,
    #[n(10)]
    AddressTaken,
    #[n(11)]
    NotRotated,
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
                    Left::AddressTaken => LeftRow::AddressTaken,
                },
            },
            OperativeState::Suspended { since, expires } => TerminalStateRow::Suspended {
                since_unix_ms: since.as_millis(),
                expires_unix_ms: expires.as_millis(),
            },
        },
        port: Some(terminal.port),
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
        port: row.port.unwrap_or(COAP_PORT),
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
                    LeftRow::AddressTaken => Left::AddressTaken,
                },
            },
            TerminalStateRow::Suspended {
                since_unix_ms,
                expires_unix_ms,
            } => OperativeState::Suspended {
                since: UnixTime::from_millis(since_unix_ms),
                expires: UnixTime::from_millis(expires_unix_ms),
            },
        },
    })
}

/// Keys are in it, encrypted if there is a `kek`.
pub(super) fn session(session: &Session, kek: Option<&KeyEncryptionKey>) -> Zeroizing<Vec<u8>> {
    let token_row = |token: &IssuedToken| TokenRow {
        generation: token.generation,
        key: KeyRow::new(&token.key, kek),
        sha256: ByteArray::from(token.hash.0),
    };
    Zeroizing::new(encode(SessionRow {
        generation: session.id.generation(),
        terminal: session.terminal.to_u64(),
        app: session.app.as_str(),
        instance: session.instance.as_str(),
        port: session.port,
        state: match &session.state {
            SessionState::Requested(token) => SessionStateRow::Requested(token_row(token)),
            SessionState::Authorised(tokens) => SessionStateRow::Authorised(
                token_row(&tokens.current),
                tokens.previous.as_ref().map(|previous| PreviousRow {
                    token: token_row(&previous.token),
                    until_unix_ms: previous.until.as_millis(),
                }),
                tokens.next.as_ref().map(token_row),
                tokens.rotate_by.map(UnixTime::as_millis),
            ),
            SessionState::Ended { at, cause } => SessionStateRow::Ended {
                at_unix_ms: at.as_millis(),
                cause: match cause {
                    EndCause::Released => EndCauseRow::Released,
                    EndCause::Replaced => EndCauseRow::Replaced,
                    EndCause::Deregistered => EndCauseRow::Deregistered,
                    EndCause::Expired => EndCauseRow::Expired,
                    EndCause::Revoked => EndCauseRow::Revoked,
                    EndCause::AppRemoved => EndCauseRow::AppRemoved,
                    EndCause::AppServerFailed => EndCauseRow::AppServerFailed,
                    EndCause::AppEnded => EndCauseRow::AppEnded,
                    EndCause::TerminalSuspended => EndCauseRow::TerminalSuspended,
                    EndCause::TerminalRemoved => EndCauseRow::TerminalRemoved,
                    EndCause::AddressTaken => EndCauseRow::AddressTaken,
                    EndCause::NotRotated => EndCauseRow::NotRotated,
                },
            },
        },
        tunnel: session
            .tunnel
            .map(|Tunnel { peer, teid }| TunnelRow { peer, teid }),
        window: session.window.as_deref().copied(),
    }))
}

pub(super) fn read_session(
    slot: u32,
    value: &[u8],
    kek: Option<&KeyEncryptionKey>,
) -> Result<Session, Unreadable> {
    let unreadable = |why: String| Unreadable {
        what: "session in slot",
        key: slot.to_string(),
        why,
    };
    let row: SessionRow<'_> = decode(value).map_err(unreadable)?;
    let issued_token = |row: TokenRow| {
        Ok(IssuedToken {
            generation: row.generation,
            key: row
                .key
                .read(kek)
                .map(Box::new)
                .map_err(|error| unreadable(error.to_string()))?,
            hash: TokenHash(*row.sha256),
        })
    };
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
        window: row.window.map(Box::new),
        state: match row.state {
            SessionStateRow::Requested(token) => SessionState::Requested(issued_token(token)?),
            SessionStateRow::Authorised(current, previous, next, rotate_by) => {
                SessionState::Authorised(Tokens {
                    current: issued_token(current)?,
                    previous: previous
                        .map(|previous| {
                            Ok(Previous {
                                token: issued_token(previous.token)?,
                                until: UnixTime::from_millis(previous.until_unix_ms),
                            })
                        })
                        .transpose()?,
                    next: next.map(issued_token).transpose()?,
                    rotate_by: rotate_by.map(UnixTime::from_millis),
                })
            }
            SessionStateRow::Ended { at_unix_ms, cause } => SessionState::Ended {
                at: UnixTime::from_millis(at_unix_ms),
                cause: match cause {
                    EndCauseRow::Released => EndCause::Released,
                    EndCauseRow::Replaced => EndCause::Replaced,
                    EndCauseRow::Deregistered => EndCause::Deregistered,
                    EndCauseRow::Expired => EndCause::Expired,
                    EndCauseRow::Revoked => EndCause::Revoked,
                    EndCauseRow::AppRemoved => EndCause::AppRemoved,
                    EndCauseRow::AppServerFailed => EndCause::AppServerFailed,
                    EndCauseRow::AppEnded => EndCause::AppEnded,
                    EndCauseRow::TerminalSuspended => EndCause::TerminalSuspended,
                    EndCauseRow::TerminalRemoved => EndCause::TerminalRemoved,
                    EndCauseRow::AddressTaken => EndCause::AddressTaken,
                    EndCauseRow::NotRotated => EndCause::NotRotated,
                },
            },
        },
    })
}

fn encode(row: impl Encode<()>) -> Vec<u8> {
    // With room for all of it: growing would leave copies behind.
    let mut value = Vec::with_capacity(1024);
    value.push(FORMAT);
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
