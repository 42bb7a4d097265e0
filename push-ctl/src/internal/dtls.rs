//! CoAP over DTLS 1.2 with pre-shared keys (`coaps`, RFC 7252, 9.1.3.1). Experimental.
//!
//! The handshake and the records are dimpl's. Before it gets to know of a client, that one has to prove its
//! address by a cookie, of which nothing is remembered (RFC 6347, 4.2.1): dimpl's own cookies are of
//! one connection each, so that there would have to be one first. So the cookie is asked for, and
//! looked at, out here; the new connection is then shown both messages, and told which cookie to expect.

mod hello;
mod keys;
#[cfg(test)]
mod tests;

pub use keys::{Keys, KeysError};

use crate::random;
use dimpl::crypto::{HmacProvider, rust_crypto};
use dimpl::{CryptoError, Dtls, HashAlgorithm, Output};
use hello::{ClientHello, Cookie};
use lru::LruCache;
use sha2::{Digest, Sha256};
use std::cell::Cell;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use subtle::ConstantTimeEq;

/// Handshakes that go on at the same time on one socket. The oldest one gives way to a new one.
const HANDSHAKES: NonZeroUsize = NonZeroUsize::new(1024).expect("not zero");

/// Connections of one socket. The one that was used the longest time ago gives way to a new one.
const CONNECTIONS: NonZeroUsize = NonZeroUsize::new(16_384).expect("not zero");

/// A cookie is good in the epoch it was made in, and in the next one.
const EPOCH: Duration = Duration::from_mins(1);

/// How often handshakes are looked after that got no answer.
pub(super) const TICK: Duration = Duration::from_millis(250);

/// More than a record has.
const BUFFER_BYTES: usize = 2048;

thread_local! {
    /// The cookie that a connection is to expect which is shown its first messages on this thread.
    static EXPECTED: Cell<Option<Cookie>> = const { Cell::new(None) };
}

/// dimpl's HMAC, but for the one use that it has of [`HmacProvider::hmac_sha256`] in DTLS 1.2, which is
/// to make and to check cookies.
#[derive(Debug)]
struct CookieFromOutside;

impl HmacProvider for CookieFromOutside {
    fn hmac_sha256(&self, key: &[u8], data: &[u8]) -> Result<[u8; 32], CryptoError> {
        match EXPECTED.get() {
            Some(cookie) => Ok(cookie),
            None => rust_crypto::default_provider()
                .hmac_provider
                .hmac_sha256(key, data),
        }
    }

    fn hmac(
        &self,
        hash: HashAlgorithm,
        key: &[u8],
        data: &[u8],
        out: &mut [u8],
    ) -> Result<usize, CryptoError> {
        rust_crypto::default_provider()
            .hmac_provider
            .hmac(hash, key, data, out)
    }
}

struct Connection {
    dtls: Dtls,
    /// That of the client's first message.
    random: [u8; 32],
}

struct Connections {
    greeting: LruCache<SocketAddr, Connection>,
    open: LruCache<SocketAddr, Connection>,
}

/// What a datagram has led to.
#[derive(Debug, Default)]
pub(super) struct Effects {
    /// To be sent back, in this order.
    pub(super) send: Vec<Vec<u8>>,
    /// Messages that have come in.
    pub(super) heard: Vec<Vec<u8>>,
    /// There is a new connection, which has nothing to do with one before from the same address.
    pub(super) opened: bool,
    closed: bool,
}

/// The connections of one socket.
pub(super) struct Secured {
    config: Arc<dimpl::Config>,
    cookie_key: [u8; 32],
    started: Instant,
    connections: Mutex<Connections>,
}

impl Secured {
    pub(super) fn new(keys: Keys) -> Result<Self, dimpl::Error> {
        let provider = dimpl::crypto::CryptoProvider {
            hmac_provider: &CookieFromOutside,
            ..rust_crypto::default_provider()
        };
        let config = dimpl::Config::builder()
            .with_crypto_provider(provider)
            .with_psk_server(None, Arc::new(keys))
            .build()?;
        Ok(Self {
            config: Arc::new(config),
            cookie_key: random::bytes(),
            started: Instant::now(),
            connections: Mutex::new(Connections {
                greeting: LruCache::new(HANDSHAKES),
                open: LruCache::new(CONNECTIONS),
            }),
        })
    }

    /// A datagram has come in.
    pub(super) fn receive(&self, datagram: &[u8], from: SocketAddr, now: Instant) -> Effects {
        let mut effects = Effects::default();
        let mut connections = self.connections();
        if let Some(hello) = hello::client_hello(datagram) {
            let of_same = |connection: &Connection| connection.random == hello.random;
            let is_known = connections.greeting.peek(&from).is_some_and(of_same)
                || connections.open.peek(&from).is_some_and(of_same);
            if !is_known {
                self.greet(&mut connections, &hello, datagram, from, now, &mut effects);
                return effects;
            }
        }
        let greeting = connections.greeting.get_mut(&from);
        let is_greeting = greeting.is_some();
        let connection = match greeting {
            Some(connection) => connection,
            None => match connections.open.get_mut(&from) {
                Some(connection) => connection,
                None => return effects,
            },
        };
        let goes_on = connection.feed(datagram, now).is_ok();
        if goes_on {
            connection.drain(&mut effects);
        }
        if !goes_on || effects.closed {
            if is_greeting {
                connections.greeting.pop(&from);
            } else {
                connections.open.pop(&from);
            }
        } else if effects.opened
            && let Some(connection) = connections.greeting.pop(&from)
        {
            connections.open.put(from, connection);
        }
        effects
    }

    /// Asks for a cookie, or begins a handshake with who brings it.
    fn greet(
        &self,
        connections: &mut Connections,
        hello: &ClientHello<'_>,
        datagram: &[u8],
        from: SocketAddr,
        now: Instant,
        effects: &mut Effects,
    ) {
        let epoch = now.saturating_duration_since(self.started).as_secs() / EPOCH.as_secs();
        let brought = [Some(epoch), epoch.checked_sub(1)]
            .into_iter()
            .flatten()
            .map(|epoch| self.cookie(hello, from, epoch))
            .find(|cookie| bool::from(cookie[..].ct_eq(hello.cookie)));
        let Some(cookie) = brought else {
            let cookie = self.cookie(hello, from, epoch);
            effects.send.push(hello.ask_for(&cookie));
            return;
        };
        let Some(first) = hello.as_at_first() else {
            return;
        };
        let mut connection = Connection {
            dtls: Dtls::new_12_psk(Arc::clone(&self.config), now),
            random: hello.random,
        };
        EXPECTED.set(Some(cookie));
        let mut answers_to_first = Effects::default();
        let begun = connection.feed(&first, now).and_then(|()| {
            connection.drain(&mut answers_to_first);
            connection.feed(datagram, now)
        });
        EXPECTED.set(None);
        if begun.is_ok() {
            connection.drain(effects);
            connections.greeting.put(from, connection);
        }
    }

    /// Stands for this client at this address; nobody else can make it.
    fn cookie(&self, hello: &ClientHello<'_>, from: SocketAddr, epoch: u64) -> Cookie {
        let address = match from.ip() {
            IpAddr::V4(v4) => v4.to_ipv6_mapped(),
            IpAddr::V6(v6) => v6,
        };
        // All parts have fixed lengths, so that nothing can be appended.
        Sha256::new()
            .chain_update(self.cookie_key)
            .chain_update(address.octets())
            .chain_update(from.port().to_be_bytes())
            .chain_update(epoch.to_be_bytes())
            .chain_update(hello.random)
            .finalize()
            .into()
    }

    /// The datagrams that bring this message to `to`; none if there is no connection.
    pub(super) fn seal(&self, message: &[u8], to: SocketAddr) -> Vec<Vec<u8>> {
        let mut effects = Effects::default();
        let mut connections = self.connections();
        if let Some(connection) = connections.open.get_mut(&to) {
            if connection.dtls.send_application_data(message).is_ok() {
                connection.drain(&mut effects);
            } else {
                connections.open.pop(&to);
            }
        }
        effects.send
    }

    /// Where there is a connection to reach what is to reach `to`: right there, or else the one of that
    /// address that was used last.
    pub(super) fn route(&self, to: SocketAddr) -> Option<SocketAddr> {
        let connections = self.connections();
        if connections.open.contains(&to) {
            return Some(to);
        }
        let mut by_use = connections.open.iter().map(|(&peer, _)| peer);
        by_use.find(|peer| peer.ip() == to.ip())
    }

    /// Sends once more what handshakes got no answer to, and gives those up that never will.
    pub(super) fn tick(&self, now: Instant) -> Vec<(SocketAddr, Vec<u8>)> {
        let mut datagrams = Vec::new();
        let mut over = Vec::new();
        let mut connections = self.connections();
        for (&peer, connection) in &mut connections.greeting {
            let mut effects = Effects::default();
            if connection.dtls.handle_timeout(now).is_err() {
                over.push(peer);
                continue;
            }
            connection.drain(&mut effects);
            datagrams.extend(effects.send.into_iter().map(|datagram| (peer, datagram)));
        }
        for peer in over {
            connections.greeting.pop(&peer);
        }
        datagrams
    }

    fn connections(&self) -> MutexGuard<'_, Connections> {
        self.connections
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Connection {
    /// After an error it can't be used any more.
    fn feed(&mut self, datagram: &[u8], now: Instant) -> Result<(), dimpl::Error> {
        self.dtls.handle_timeout(now)?;
        self.dtls.handle_packet(datagram)
    }

    fn drain(&mut self, effects: &mut Effects) {
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            match self.dtls.poll_output(&mut buffer) {
                Output::Packet(datagram) => effects.send.push(datagram.to_vec()),
                Output::ApplicationData(message) => effects.heard.push(message.to_vec()),
                Output::Connected => effects.opened = true,
                Output::CloseNotify => effects.closed = true,
                Output::BufferTooSmall { needed } => buffer.resize(needed, 0),
                Output::Timeout(_) => return,
                // Certificates and keys for SRTP, of which there are none; dimpl may get more.
                _ => {}
            }
        }
    }
}
