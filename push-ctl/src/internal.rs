#![doc = include_str!("cli/topics/registration.md")]

#[cfg(feature = "coaps")]
mod dtls;
mod echo;
mod exchanges;
mod message;
mod notices;
mod operation;
mod outbox;
#[cfg(test)]
pub(crate) mod tests;

#[cfg(feature = "coaps")]
pub use dtls::{Keys, KeysError};
pub use notices::{NoticeCounters, NoticeCounts, Outgoing};

use crate::controller::{Controller, Stopped};
use crate::random;
use crate::sessions::records::{Path, RealmName, RegistrationId};
use crate::sessions::{DeviceRefusal, Grant, Registration, SessionRequest};
use coap_lite::{ContentFormat, ResponseType};
#[cfg(feature = "coaps")]
use dtls::Secured;
use echo::Echo;
use exchanges::{Exchange, Exchanges, Seen};
use message::{Incoming, Reply, Request};
use minicbor::Encode;
use notices::{Desk, Outbound};
use operation::{AnswerFormat, Operation, operation, refusal_of, tells_of_registration};
use outbox::Backoff;
use push_common::token::Token;
use push_common::wire::{MAX_PAYLOAD_LEN, TRIGGER_HEADER_LEN};
use std::fmt::Write;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::net::UdpSocket;
use tokio::sync::Semaphore;
use tracing::{debug, warn};
use zeroize::Zeroizing;

/// Requests of one socket that are carried out at the same time. Others are dropped; devices send them again.
const UNDER_WAY: usize = 1024;

/// When to ask a gateway again that is stopping.
const STOPPING: Duration = Duration::from_secs(10);

/// Longest datagram that a trigger can be.
const MAX_TRIGGER_BYTES: usize = TRIGGER_HEADER_LEN + MAX_PAYLOAD_LEN;

/// A socket for devices.
#[derive(Debug)]
pub struct Listener {
    /// The realm of the devices that it hears.
    pub realm: Option<RealmName>,
    /// The socket, which doesn't block.
    pub socket: std::net::UdpSocket,
    /// Whether messages are secured by DTLS, and with which keys.
    #[cfg(feature = "coaps")]
    pub keys: Option<Keys>,
}

/// Answers devices on these sockets, and sends them what is `outgoing`, until something goes wrong with
/// one of them.
///
/// `keep_source` says whether triggers keep their source address.
///
/// # Errors
///
/// A socket can't be used.
pub async fn serve(
    listeners: Vec<Listener>,
    controller: Controller,
    keep_source: bool,
    outgoing: Outgoing,
) -> io::Result<()> {
    serve_patiently(
        listeners,
        controller,
        keep_source,
        outgoing,
        Backoff::RFC_7252,
    )
    .await
}

async fn serve_patiently(
    listeners: Vec<Listener>,
    controller: Controller,
    keep_source: bool,
    outgoing: Outgoing,
    backoff: Backoff,
) -> io::Result<()> {
    let echo = Arc::new(Echo::new(random::bytes()));
    let desk = Arc::new(Desk::new(outgoing.unanswered, outgoing.counters));
    let mut endpoints = Vec::with_capacity(listeners.len());
    for listener in listeners {
        let gateway = listener.socket.local_addr()?;
        #[cfg(feature = "coaps")]
        let secured = listener.keys.map(Secured::new).transpose();
        endpoints.push(Arc::new(Endpoint {
            realm: listener.realm,
            socket: UdpSocket::from_std(listener.socket)?,
            #[cfg(feature = "coaps")]
            secured: secured.map_err(io::Error::other)?,
            gateway,
            keep_source,
            controller: controller.clone(),
            echo: Arc::clone(&echo),
            started: Instant::now(),
            next_message_id: AtomicU16::new(u16::from_ne_bytes(random::bytes())),
            exchanges: Mutex::new(Exchanges::new()),
            free: Arc::new(Semaphore::new(UNDER_WAY)),
            outbound: Outbound::new(backoff, Arc::clone(&desk)),
        }));
    }
    let mut tasks = tokio::task::JoinSet::new();
    for endpoint in &endpoints {
        tasks.spawn(Arc::clone(endpoint).serve());
        tasks.spawn(Arc::clone(endpoint).notify());
        #[cfg(feature = "coaps")]
        tasks.spawn(Arc::clone(endpoint).look_after_handshakes());
    }
    tasks.spawn(notices::distribute(outgoing.notices, endpoints, desk));
    while let Some(ended) = tasks.join_next().await {
        ended.map_err(io::Error::other)?;
    }
    Ok(())
}

/// One socket, and what is known of those who send to it.
struct Endpoint {
    realm: Option<RealmName>,
    socket: UdpSocket,
    #[cfg(feature = "coaps")]
    secured: Option<Secured>,
    gateway: SocketAddr,
    keep_source: bool,
    controller: Controller,
    echo: Arc<Echo>,
    started: Instant,
    /// For requests of the gateway's own, and for answers that aren't piggybacked.
    next_message_id: AtomicU16,
    exchanges: Mutex<Exchanges>,
    free: Arc<Semaphore>,
    outbound: Outbound,
}

impl Endpoint {
    async fn serve(self: Arc<Self>) {
        let mut buffer = vec![0; usize::from(u16::MAX)];
        loop {
            match self.socket.recv_from(&mut buffer).await {
                Ok((len, device)) => self.take_in(&buffer[..len], device).await,
                Err(error) => {
                    warn!(gateway = %self.gateway, %error, "can't receive");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    #[cfg(not(feature = "coaps"))]
    async fn take_in(self: &Arc<Self>, datagram: &[u8], device: SocketAddr) {
        self.receive(datagram, device).await;
    }

    /// Takes a datagram out of its DTLS records, if the socket is a secured one.
    #[cfg(feature = "coaps")]
    async fn take_in(self: &Arc<Self>, datagram: &[u8], device: SocketAddr) {
        let Some(secured) = &self.secured else {
            return self.receive(datagram, device).await;
        };
        let effects = secured.receive(datagram, device, Instant::now());
        if effects.opened {
            // Answers that another connection got are nothing to this one.
            self.exchanges().forget(device);
        }
        for datagram in effects.send {
            self.send_datagram(&datagram, device).await;
        }
        for message in effects.heard {
            self.receive(&message, device).await;
        }
    }

    #[cfg(feature = "coaps")]
    async fn look_after_handshakes(self: Arc<Self>) {
        let Some(secured) = &self.secured else {
            return;
        };
        loop {
            tokio::time::sleep(dtls::TICK).await;
            for (device, datagram) in secured.tick(Instant::now()) {
                self.send_datagram(&datagram, device).await;
            }
        }
    }

    /// Whether who is heard has proved by that to receive where it sends from: a handshake takes that.
    fn proves_addresses(&self) -> bool {
        #[cfg(feature = "coaps")]
        return self.secured.is_some();
        #[cfg(not(feature = "coaps"))]
        false
    }

    /// Where to send what is for `to`, if there is a way.
    fn route(&self, to: SocketAddr) -> Option<SocketAddr> {
        #[cfg(feature = "coaps")]
        if let Some(secured) = &self.secured {
            return secured.route(to);
        }
        Some(to)
    }

    /// What costs nothing is answered right here; what changes something, by a task of its own.
    async fn receive(self: &Arc<Self>, datagram: &[u8], device: SocketAddr) {
        let request = match message::read(datagram) {
            Incoming::Ignored => return,
            Incoming::Rejected(message_id) => {
                return self.send(&message::reset(message_id), device).await;
            }
            Incoming::Answer(answer) => return self.hear(&answer, device).await,
            Incoming::Request(request) => request,
        };
        let exchange = (device, request.message_id());
        let seen = self.exchanges().seen(exchange, Instant::now());
        match seen {
            Seen::Never => {}
            Seen::UnderWay => return,
            Seen::Answered(answer) => return self.send(&answer, device).await,
        }
        let proven = self.proves_addresses()
            || request.echo().is_some_and(|tag| {
                let uptime = self.started.elapsed();
                self.echo
                    .proves(tag, self.realm.as_ref(), device.ip(), uptime)
            });
        match operation(&request) {
            // An option that isn't understood makes a Non-confirmable request be ignored (RFC 7252, 5.4.1).
            Err(_) if !request.is_confirmable() && request.unknown_critical_option().is_some() => {}
            Err(reply) => self.answer(&request, reply, proven, device).await,
            Ok((Operation::Register { .. }, _)) if !proven => {
                let challenge = self.challenge(device);
                self.answer(&request, challenge, proven, device).await;
            }
            Ok((operation, format)) => {
                let Ok(permit) = Arc::clone(&self.free).try_acquire_owned() else {
                    debug!(%device, "too many requests; one was dropped");
                    return;
                };
                self.exchanges().begin(exchange);
                let endpoint = Arc::clone(self);
                tokio::spawn(async move {
                    endpoint
                        .carry_out(&request, operation, format, proven, exchange)
                        .await;
                    drop(permit);
                });
            }
        }
    }

    async fn carry_out(
        &self,
        request: &Request,
        operation: Operation,
        format: AnswerFormat,
        proven: bool,
        exchange: Exchange,
    ) {
        let (device, _) = exchange;
        let path = Path {
            realm: self.realm.clone(),
            device: device.ip(),
            gateway: self.gateway,
        };
        let port = device.port();
        let outcome = match operation {
            Operation::Register { endpoint, lifetime } => {
                let fresh = RegistrationId::from_u64(u64::from_ne_bytes(random::bytes()));
                let registered = self
                    .controller
                    .apply(move |sessions, now| {
                        sessions.register(now, endpoint, path, port, lifetime, fresh)
                    })
                    .await;
                registered.map(|registered| {
                    registered.map(|registration| {
                        let location = ["rd".to_owned(), registration.id.to_string()];
                        self.configuration(ResponseType::Created, registration, format)
                            .at(location)
                    })
                })
            }
            Operation::Refresh { id, lifetime } => {
                let refreshed = self
                    .controller
                    .apply(move |sessions, now| {
                        sessions.refresh(now, id, path, port, proven, lifetime)
                    })
                    .await;
                refreshed.map(|refreshed| {
                    refreshed.map(|registration| {
                        self.configuration(ResponseType::Changed, registration, format)
                    })
                })
            }
            Operation::Deregister { id } => {
                let left = self
                    .controller
                    .apply(move |sessions, now| sessions.deregister(now, id, &path))
                    .await;
                left.map(|left| left.map(|()| Reply::new(ResponseType::Deleted)))
            }
            Operation::RequestSession { id, request } => {
                self.request_session(id, path, request, format).await
            }
            Operation::NewToken { id, session } => {
                let (token, text) = fresh_token();
                let granted = self
                    .controller
                    .apply(move |sessions, now| sessions.new_token(now, id, &path, session, &token))
                    .await;
                granted.map(|granted| granted.map(|grant| session_answer(id, grant, &text, format)))
            }
            Operation::Release { id, session } => {
                let released = self
                    .controller
                    .apply(move |sessions, now| sessions.release(now, id, &path, session))
                    .await;
                released.map(|released| released.map(|()| Reply::new(ResponseType::Deleted)))
            }
        };
        // Who may do that has registered from this address, which took a proof.
        let mut proven = proven || matches!(outcome, Ok(Ok(_)));
        let reply = match outcome {
            Ok(Ok(reply)) => reply,
            Ok(Err(DeviceRefusal::AddressUnproven)) => self.challenge(device),
            Ok(Err(refusal)) => {
                debug!(%device, %refusal, "a device was refused");
                proven |= tells_of_registration(refusal);
                refusal_of(refusal)
            }
            Err(Stopped) => {
                Reply::refusal(ResponseType::ServiceUnavailable, "stopping").retry_after(STOPPING)
            }
        };
        let is_refusal = reply.is_refusal();
        let bytes = self.to_bytes(reply, request, proven, device);
        let to_remember = (!is_refusal).then(|| bytes.clone());
        self.exchanges()
            .finish(exchange, to_remember, Instant::now());
        self.send(&bytes, device).await;
    }

    async fn request_session(
        &self,
        id: RegistrationId,
        path: Path,
        request: SessionRequest,
        format: AnswerFormat,
    ) -> Result<Result<Reply, DeviceRefusal>, Stopped> {
        let (token, text) = fresh_token();
        let generation = random::nonzero_u32();
        let granted = self
            .controller
            .apply(move |sessions, now| {
                sessions.request_session(now, id, &path, request, &token, generation)
            })
            .await?;
        Ok(granted.map(|grant| session_answer(id, grant, &text, format)))
    }

    fn configuration(
        &self,
        code: ResponseType,
        registration: Registration,
        format: AnswerFormat,
    ) -> Reply {
        let answer = RegistrationAnswer {
            id: registration.id.to_string(),
            lifetime_s: registration.lifetime.as_secs(),
            trigger_source: self.trigger_source(),
            max_trigger_bytes: MAX_TRIGGER_BYTES,
        };
        match format {
            AnswerFormat::Cbor => {
                Reply::new(code).with(ContentFormat::ApplicationCBOR, cbor(&answer))
            }
            AnswerFormat::Text => {
                let mut text = format!("id={}\nlifetime_s={}\n", answer.id, answer.lifetime_s);
                if let Some(source) = answer.trigger_source {
                    let _infallible = writeln!(text, "trigger_source={source}");
                }
                let _infallible = writeln!(text, "max_trigger_bytes={MAX_TRIGGER_BYTES}");
                Reply::new(code).with(ContentFormat::TextPlain, text.into_bytes())
            }
        }
    }

    /// Where triggers come from, if from one place.
    fn trigger_source(&self) -> Option<String> {
        (!self.keep_source).then(|| self.gateway.to_string())
    }

    fn challenge(&self, device: SocketAddr) -> Reply {
        Reply::challenge(self.tag(device))
    }

    fn tag(&self, device: SocketAddr) -> [u8; echo::TAG_LEN] {
        let uptime = self.started.elapsed();
        self.echo
            .challenge(self.realm.as_ref(), device.ip(), uptime)
    }

    fn exchanges(&self) -> std::sync::MutexGuard<'_, Exchanges> {
        self.exchanges
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// `proven` says whether who has asked receives at the address `device`.
    fn to_bytes(
        &self,
        mut reply: Reply,
        request: &Request,
        proven: bool,
        device: SocketAddr,
    ) -> Zeroizing<Vec<u8>> {
        if !proven {
            reply = reply.no_longer_than(request, self.tag(device));
        }
        reply.to_bytes(
            request,
            self.next_message_id.fetch_add(1, Ordering::Relaxed),
        )
    }

    async fn answer(&self, request: &Request, reply: Reply, proven: bool, device: SocketAddr) {
        let bytes = self.to_bytes(reply, request, proven, device);
        self.send(&bytes, device).await;
    }

    /// Sends a message.
    async fn send(&self, bytes: &[u8], device: SocketAddr) {
        #[cfg(feature = "coaps")]
        if let Some(secured) = &self.secured {
            for datagram in secured.seal(bytes, device) {
                self.send_datagram(&datagram, device).await;
            }
            return;
        }
        self.send_datagram(bytes, device).await;
    }

    async fn send_datagram(&self, bytes: &[u8], device: SocketAddr) {
        if let Err(error) = self.socket.send_to(bytes, device).await {
            debug!(%device, %error, "can't send");
        }
    }
}

#[derive(Encode)]
#[cbor(map)]
struct RegistrationAnswer {
    #[n(1)]
    id: String,
    #[n(2)]
    lifetime_s: u64,
    #[n(3)]
    trigger_source: Option<String>,
    #[n(4)]
    max_trigger_bytes: usize,
}

#[derive(Encode)]
#[cbor(map)]
struct SessionAnswer<'a> {
    #[n(1)]
    session_id: String,
    #[n(2)]
    token: &'a str,
    #[n(3)]
    token_generation: u8,
    #[n(4)]
    lifetime_s: u64,
}

/// A new token, and its text.
fn fresh_token() -> (Token, Zeroizing<String>) {
    let token = Token::from_bytes(random::bytes());
    let text = Zeroizing::new(token.to_text());
    let text = String::from_utf8_lossy(&*text).into_owned();
    (token, text.into())
}

fn session_answer(
    registration: RegistrationId,
    grant: Grant,
    token: &str,
    format: AnswerFormat,
) -> Reply {
    let Grant {
        id,
        token_generation,
        lifetime,
    } = grant;
    let location = [
        "rd".to_owned(),
        registration.to_string(),
        "s".to_owned(),
        id.to_string(),
    ];
    let answer = SessionAnswer {
        session_id: id.to_string(),
        token,
        token_generation,
        lifetime_s: lifetime.as_secs(),
    };
    let created = Reply::new(ResponseType::Created).at(location);
    match format {
        AnswerFormat::Cbor => created.with(ContentFormat::ApplicationCBOR, cbor(&answer)),
        AnswerFormat::Text => {
            // With room for all of it: growing would leave copies behind.
            let mut text = String::with_capacity(256);
            let _infallible = writeln!(
                text,
                "session_id={id}\ntoken={token}\ntoken_generation={token_generation}\nlifetime_s={}",
                answer.lifetime_s
            );
            created.with(ContentFormat::TextPlain, text.into_bytes())
        }
    }
}

fn cbor(answer: &impl Encode<()>) -> Vec<u8> {
    // As above.
    let mut bytes = Vec::with_capacity(256);
    minicbor::encode(answer, &mut bytes).expect("a vector takes whatever is written to it");
    bytes
}
