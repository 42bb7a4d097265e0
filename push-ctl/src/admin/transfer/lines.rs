//! The file that sessions are moved in: a JSON object on each line.
//!
//! ```text
//! {"header":{"format":1,"exported_unix_ms":1700000000000,"push_ctl":"0.1.0"}}
//! {"terminal":{"id":"…","endpoint":"phone","address":"10.64.0.2",…}}
//! {"session":{"id":"…","app":"mail",…}}               of the terminal before it
//! {"end":{"terminals":1,"sessions":1}}
//! ```
//!
//! It has keys in it, with which triggers can be signed, and the windows that keep old ones from being accepted
//! again. Nothing that is wrong with a line is told by what is on it.

use crate::dataplane::Tunnel;
use crate::sessions::Moved;
use crate::sessions::records::{
    EndpointName, IssuedToken, OperativeState, Path, Previous, RealmName, RegistrationId, Session,
    SessionState, Terminal, Tokens, UnixTime,
};
use axum::body::Bytes;
use push_common::replay::WORDS;
use push_common::tag::TagKey;
use push_common::token::TokenHash;
use push_common::wire::SessionId;
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::time::Duration;
use zeroize::Zeroizing;

/// What is in [`Line::Header`].
const FORMAT: u32 = 1;

/// Longer than any line that is written.
const MAX_LINE_BYTES: usize = 4096;

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    Header(Header),
    Terminal(TerminalLine),
    Session(Box<SessionLine>),
    End(End),
}

#[derive(Serialize, Deserialize)]
struct Header {
    format: u32,
    exported_unix_ms: u64,
    push_ctl: String,
}

/// What a whole file has in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct End {
    pub(super) terminals: usize,
    pub(super) sessions: usize,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct TerminalLine {
    id: String,
    endpoint: String,
    realm: Option<String>,
    address: IpAddr,
    gateway: SocketAddr,
    port: u16,
    lifetime_ms: u64,
    expires_unix_ms: u64,
    /// Only if it is suspended.
    suspended_unix_ms: Option<u64>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SessionLine {
    id: String,
    app: String,
    instance: String,
    port: NonZeroU16,
    tunnel: Option<(IpAddr, u32)>,
    window: Option<[u64; WORDS]>,
    state: StateLine,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum StateLine {
    Requested(TokenLine),
    Authorised {
        current: TokenLine,
        /// With when it stops being valid.
        previous: Option<(TokenLine, u64)>,
        next: Option<TokenLine>,
        rotate_by_unix_ms: Option<u64>,
    },
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct TokenLine {
    generation: u8,
    #[serde(with = "secret")]
    key: Zeroizing<[u8; 16]>,
    #[serde(with = "hex::serde")]
    sha256: [u8; 32],
}

/// A key in hexadecimal digits, of which nothing is left where they were made.
mod secret {
    use serde::de::{Error, Visitor};
    use serde::{Deserializer, Serializer};
    use std::fmt;
    use zeroize::Zeroizing;

    pub(super) fn serialize<S: Serializer>(
        key: &Zeroizing<[u8; 16]>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let mut digits = Zeroizing::new([0; 32]);
        let written = hex::encode_to_slice(key.as_slice(), &mut *digits);
        written.expect("two digits for each byte");
        let digits = str::from_utf8(&*digits).expect("digits are text");
        serializer.serialize_str(digits)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Zeroizing<[u8; 16]>, D::Error> {
        deserializer.deserialize_str(Digits)
    }

    struct Digits;

    impl Visitor<'_> for Digits {
        type Value = Zeroizing<[u8; 16]>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("32 hexadecimal digits")
        }

        fn visit_str<E: Error>(self, digits: &str) -> Result<Self::Value, E> {
            let mut key = Zeroizing::new([0; 16]);
            let read = hex::decode_to_slice(digits, &mut *key);
            // Without the digits, whichever they are.
            read.map_err(|_| E::custom("not 32 hexadecimal digits"))?;
            Ok(key)
        }
    }
}

/// What a file begins with.
pub(super) fn header(now: UnixTime) -> Lines {
    line(&Line::Header(Header {
        format: FORMAT,
        exported_unix_ms: now.as_millis(),
        push_ctl: env!("CARGO_PKG_VERSION").to_owned(),
    }))
}

/// A terminal with its sessions; nothing if it isn't one to move.
pub(super) fn moved(moved: &Moved) -> Lines {
    let Moved { terminal, sessions } = moved;
    let (expires, suspended) = match terminal.state {
        OperativeState::First { expires } => (expires, None),
        OperativeState::Suspended { since, expires } => (expires, Some(since)),
        OperativeState::Second { .. } => return Lines::default(),
    };
    let mut lines = line(&Line::Terminal(TerminalLine {
        id: terminal.id.to_string(),
        endpoint: terminal.endpoint.to_string(),
        realm: terminal.path.realm.as_ref().map(RealmName::to_string),
        address: terminal.path.device,
        gateway: terminal.path.gateway,
        port: terminal.port,
        lifetime_ms: u64::try_from(terminal.lifetime.as_millis()).unwrap_or(u64::MAX),
        expires_unix_ms: expires.as_millis(),
        suspended_unix_ms: suspended.map(UnixTime::as_millis),
    }));
    for session in sessions {
        let state = match &session.state {
            SessionState::Requested(issued) => StateLine::Requested(token(issued)),
            SessionState::Authorised(tokens) => StateLine::Authorised {
                current: token(&tokens.current),
                previous: tokens
                    .previous
                    .as_ref()
                    .map(|previous| (token(&previous.token), previous.until.as_millis())),
                next: tokens.next.as_ref().map(token),
                rotate_by_unix_ms: tokens.rotate_by.map(UnixTime::as_millis),
            },
            SessionState::Ended { .. } => continue,
        };
        lines.append(line(&Line::Session(Box::new(SessionLine {
            id: session.id.to_string(),
            app: session.app.to_string(),
            instance: session.instance.to_string(),
            port: session.port,
            tunnel: session.tunnel.map(|Tunnel { peer, teid }| (peer, teid)),
            window: session.window.as_deref().copied(),
            state,
        }))));
    }
    lines
}

/// What a file ends with.
pub(super) fn end(end: End) -> Lines {
    line(&Line::End(end))
}

fn line(line: &Line) -> Lines {
    const IS_JSON: &str = "a line has nothing in it that JSON has not";
    let mut length = Length(0);
    serde_json::to_writer(&mut length, line).expect(IS_JSON);
    // With room for all of it: growing would leave copies behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(length.0 + 1));
    serde_json::to_writer(&mut *bytes, line).expect(IS_JSON);
    bytes.push(b'\n');
    Lines(vec![bytes])
}

/// How much was written, which is all that is kept of it.
struct Length(usize);

impl io::Write for Length {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Lines of a file, one by one, as they have keys in them: what grew would be copied, and leave copies behind.
#[derive(Default)]
pub(super) struct Lines(Vec<Zeroizing<Vec<u8>>>);

impl Lines {
    /// Puts others behind them.
    pub(super) fn append(&mut self, others: Self) {
        self.0.extend(others.0);
    }

    /// All of them in one piece, which is wiped when it has been sent.
    pub(super) fn into_piece(self) -> Bytes {
        let len = self.0.iter().map(|line| line.len()).sum();
        let mut piece = Zeroizing::new(Vec::with_capacity(len));
        for line in &self.0 {
            piece.extend_from_slice(line);
        }
        Bytes::from_owner(piece)
    }
}

fn token(issued: &IssuedToken) -> TokenLine {
    TokenLine {
        generation: issued.generation,
        key: issued.key.to_bytes().into(),
        sha256: issued.hash.0,
    }
}

/// What is wrong with a file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum BadFile {
    #[error("it doesn't begin like a file that `push-ctl session export` has written")]
    NoHeader,
    #[error(
        "it has format {0}, this push-ctl reads format {FORMAT}: use the push-ctl that wrote it"
    )]
    OtherFormat(u32),
    #[error(
        "line {0} isn't one that `push-ctl session export` writes: the file is damaged, export anew"
    )]
    BadLine(u64),
    #[error(
        "on line {0} there is something that was on a line before: the file is damaged, export anew"
    )]
    Twice(u64),
    #[error("it ends too early, after line {0}: export anew, or copy it anew")]
    Truncated(u64),
    #[error("it has {} terminals and {} sessions, and should have {} and {}: the file is damaged, export anew", has.terminals, has.sessions, says.terminals, says.sessions)]
    OtherCount {
        /// What was counted.
        has: End,
        /// What the last line says.
        says: End,
    },
}

/// Reads a file, piece by piece.
#[derive(Default)]
pub(super) struct Reader {
    /// A line that hasn't come to its end.
    partial: Zeroizing<Vec<u8>>,
    lines: u64,
    has: End,
    says: Option<End>,
    moved: Vec<Moved>,
    ids: HashSet<RegistrationId>,
    endpoints: HashSet<EndpointName>,
    addresses: HashSet<(Option<RealmName>, IpAddr)>,
    slots: HashSet<u32>,
}

impl Reader {
    /// Takes the next piece.
    pub(super) fn take(&mut self, piece: &[u8]) -> Result<(), BadFile> {
        let mut rest = piece;
        while let Some(end) = rest.iter().position(|&byte| byte == b'\n') {
            let (head, tail) = rest.split_at(end);
            rest = tail.get(1..).unwrap_or_default();
            if self.partial.is_empty() {
                self.line(head)?;
            } else {
                let mut line = std::mem::take(&mut self.partial);
                if line.len() + head.len() > MAX_LINE_BYTES {
                    return Err(self.bad_next_line());
                }
                line.extend_from_slice(head);
                self.line(&line)?;
            }
        }
        if self.partial.len() + rest.len() > MAX_LINE_BYTES {
            return Err(self.bad_next_line());
        }
        if !rest.is_empty() {
            // All the room that it can take, as above.
            let missing = MAX_LINE_BYTES - self.partial.len();
            self.partial.reserve_exact(missing);
            self.partial.extend_from_slice(rest);
        }
        Ok(())
    }

    /// What was in the file, all of it.
    pub(super) fn finish(self) -> Result<Vec<Moved>, BadFile> {
        let Some(says) = self.says.filter(|_| self.partial.is_empty()) else {
            return Err(if self.lines == 0 {
                BadFile::NoHeader
            } else {
                BadFile::Truncated(self.lines)
            });
        };
        if says != self.has {
            let has = self.has;
            return Err(BadFile::OtherCount { has, says });
        }
        Ok(self.moved)
    }

    fn bad_next_line(&self) -> BadFile {
        match self.lines {
            0 => BadFile::NoHeader,
            lines => BadFile::BadLine(lines + 1),
        }
    }

    fn line(&mut self, line: &[u8]) -> Result<(), BadFile> {
        let bad = self.bad_next_line();
        let line: Line = serde_json::from_slice(line).map_err(|_| bad.clone())?;
        let is_first = self.lines == 0;
        self.lines += 1;
        match line {
            Line::Header(Header { format, .. }) if is_first => match format {
                FORMAT => Ok(()),
                other => Err(BadFile::OtherFormat(other)),
            },
            _ if is_first || self.says.is_some() => Err(bad),
            Line::Terminal(line) => {
                let terminal = line.read().ok_or(bad)?;
                self.terminal(terminal)
            }
            Line::Session(line) => {
                let moved = self.moved.last_mut().ok_or_else(|| bad.clone())?;
                let session = line.read(moved.terminal.id).ok_or_else(|| bad.clone())?;
                if let OperativeState::Suspended { .. } = moved.terminal.state {
                    return Err(bad);
                }
                let is_instance_again = moved.sessions.iter().any(|other| {
                    (&other.app, &other.instance) == (&session.app, &session.instance)
                });
                if is_instance_again || !self.slots.insert(session.id.slot()) {
                    return Err(BadFile::Twice(self.lines));
                }
                moved.sessions.push(session);
                self.has.sessions += 1;
                Ok(())
            }
            Line::End(end) => {
                self.says = Some(end);
                Ok(())
            }
            Line::Header(_) => Err(bad),
        }
    }

    fn terminal(&mut self, terminal: Terminal) -> Result<(), BadFile> {
        let place = (terminal.path.realm.clone(), terminal.path.device);
        let is_new_address = match terminal.state {
            OperativeState::First { .. } => self.addresses.insert(place),
            OperativeState::Second { .. } | OperativeState::Suspended { .. } => true,
        };
        let is_new =
            self.ids.insert(terminal.id) & self.endpoints.insert(terminal.endpoint.clone());
        if !is_new_address || !is_new {
            return Err(BadFile::Twice(self.lines));
        }
        self.moved.push(Moved {
            terminal,
            sessions: Vec::new(),
        });
        self.has.terminals += 1;
        Ok(())
    }
}

impl TerminalLine {
    fn read(self) -> Option<Terminal> {
        let expires = UnixTime::from_millis(self.expires_unix_ms);
        let state = match self.suspended_unix_ms.map(UnixTime::from_millis) {
            None => OperativeState::First { expires },
            Some(since) => OperativeState::Suspended { since, expires },
        };
        Some(Terminal {
            id: self.id.parse().ok()?,
            endpoint: self.endpoint.parse().ok()?,
            path: Path {
                realm: self.realm.map(|realm| realm.parse()).transpose().ok()?,
                device: self.address,
                gateway: self.gateway,
            },
            port: self.port,
            lifetime: Duration::from_millis(self.lifetime_ms),
            state,
        })
    }
}

impl SessionLine {
    fn read(self, terminal: RegistrationId) -> Option<Session> {
        let id: SessionId = self.id.parse().ok()?;
        Some(Session {
            id,
            terminal,
            app: self.app.parse().ok()?,
            instance: self.instance.parse().ok()?,
            port: self.port,
            tunnel: self.tunnel.map(|(peer, teid)| Tunnel { peer, teid }),
            window: self.window.map(Box::new),
            state: match self.state {
                StateLine::Requested(token) => SessionState::Requested(token.read()),
                StateLine::Authorised {
                    current,
                    previous,
                    next,
                    rotate_by_unix_ms,
                } => SessionState::Authorised(Tokens {
                    current: current.read(),
                    previous: previous.map(|(token, until_unix_ms)| Previous {
                        token: token.read(),
                        until: UnixTime::from_millis(until_unix_ms),
                    }),
                    next: next.map(TokenLine::read),
                    rotate_by: rotate_by_unix_ms.map(UnixTime::from_millis),
                }),
            },
        })
        // A generation of 0 is a free slot.
        .filter(|_| id.generation() != 0)
    }
}

impl TokenLine {
    fn read(self) -> IssuedToken {
        IssuedToken {
            generation: self.generation,
            key: Box::new(TagKey::from_bytes(*self.key).into()),
            hash: TokenHash(self.sha256),
        }
    }
}
