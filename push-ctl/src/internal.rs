//! The internal interface, for devices: CoAP over UDP (RFC 7252), in the shape of a resource
//! directory (RFC 9176).
//!
//! This page is what the developer of a push client needs to know. All requests go to one of the
//! addresses of `internal.listen`, or of the `listen` of the device's realm; triggers will come from the same address and port (unless the
//! gateway is told to keep their source), so that a firewall on the way lets them through.
//!
//! # Requests
//!
//! | request | answer | |
//! | --- | --- | --- |
//! | `GET /.well-known/core` | 2.05 | which resources there are (RFC 6690) |
//! | `POST /rd?ep=NAME&lt=SECONDS` | 2.01, `Location-Path: rd/ID` | registers; the device may ask for sessions now |
//! | `POST /rd/ID?lt=SECONDS` | 2.04 | refreshes; from another address, moves registration and sessions there |
//! | `DELETE /rd/ID` | 2.02 | deregisters; all sessions end |
//! | `POST /rd/ID/s` | 2.01, `Location-Path: rd/ID/s/SESSION` | asks for a session, and gets its token, which is shown once |
//! | `DELETE /rd/ID/s/SESSION` | 2.02 | ends a session |
//!
//! `ID` and `SESSION` are 16 hexadecimal digits. `ep` is up to 63 bytes. `lt` may be left out: then a new
//! registration gets the configured lifetime, and a refresh the one before; a longer one than is
//! configured is cut down, so look at what the answer says. To register the same `ep` again from the same
//! address is a refresh. All other parameters are ignored; the address of the device is where the request
//! comes from, whatever `base` says.
//!
//! The payload of `POST /rd/ID/s` is CBOR (Content-Format 60): `{1: app, 2: instance, 3: port}`, two texts
//! of up to 64 bytes and the UDP port on which this instance of the application receives triggers. Without a
//! payload, the same comes as `?app=…&inst=…&port=…`. The same application and instance again ends the
//! session before and makes a new one.
//!
//! # Answers
//!
//! CBOR maps, or, with `Accept: 0`, lines of `key=value`:
//!
//! | `POST` to | key | text key | |
//! | --- | --- | --- | --- |
//! | `/rd`, `/rd/ID` | 1 | `id` | the registration, text |
//! | | 2 | `lifetime_s` | until it expires, unsigned |
//! | | 3 | `trigger_source` | where triggers come from, text `address:port`; absent if from anywhere |
//! | | 4 | `max_trigger_bytes` | longest datagram that a trigger can be, unsigned |
//! | `/rd/ID/s` | 1 | `session_id` | text |
//! | | 2 | `token` | text, `ptk_…` |
//! | | 3 | `token_generation` | which token of the session it is, unsigned |
//! | | 4 | `lifetime_s` | until it expires, unless the registration is refreshed, unsigned |
//!
//! Maps may get more keys; ignore those you don't know.
//!
//! # Proof of address
//!
//! To register, and to move, a device has to show that it receives at its address (RFC 9175): the first
//! request is answered 4.01 with an Echo option; send it again with that option, and another message id,
//! within a minute. Nothing is remembered of a device that doesn't. All other requests have to come from the
//! address of the registration; the port doesn't matter. The same address in another realm (APN, VRF) is
//! another address.
//!
//! # Acknowledgements
//!
//! A trigger that asks for one ([`push_common::wire::Flags`]) is acknowledged by a datagram of its own: the
//! header of the trigger, without payload, flagged as an acknowledgement and signed anew with the same
//! key. It goes to the address and port that the device registered at, in whatever realm; the port it comes
//! from doesn't matter. Acknowledge each trigger at most once, after its tag was found right.
//!
//! # Refusals
//!
//! | code | means |
//! | --- | --- |
//! | 4.00 | a parameter or the payload is wrong; the text says which |
//! | 4.01 | prove your address, see above |
//! | 4.02 | an option that must be understood isn't; block-wise transfer is one |
//! | 4.03 | not registered, or no more: register again. Or: the request, or the `ep`, is from another address than the registration |
//! | 4.04 | no such resource, application, or session |
//! | 4.05, 4.06, 4.13, 4.15, 5.05 | as RFC 7252 has them; a message has 1,152 bytes at most |
//! | 5.03 | full, or stopping; ask again after Max-Age |
//!
//! The text of a refusal is for people. What isn't CoAP version 1 is ignored, a Confirmable message that
//! can't be read is answered by a Reset, and so is an Empty one ("ping").
//!
//! A retransmission, that is the same message id from the same address and port within 247 seconds, is
//! answered as before and not carried out again.

mod echo;
mod exchanges;
mod message;
mod operation;
#[cfg(test)]
mod tests;

use crate::controller::{Controller, Stopped};
use crate::random;
use crate::sessions::records::{Path, RealmName, RegistrationId};
use crate::sessions::{DeviceRefusal, Grant, Registration, SessionRequest};
use coap_lite::{ContentFormat, ResponseType};
use echo::Echo;
use exchanges::{Exchange, Exchanges, Seen};
use message::{Incoming, Reply, Request};
use minicbor::Encode;
use operation::{AnswerFormat, Operation, operation, refusal_of};
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

/// Requests of one socket that are carried out at the same time. Others are dropped; devices send them again.
const UNDER_WAY: usize = 1024;

/// Longest datagram that a trigger can be.
const MAX_TRIGGER_BYTES: usize = TRIGGER_HEADER_LEN + MAX_PAYLOAD_LEN;

/// A socket for devices.
#[derive(Debug)]
pub struct Listener {
    /// The realm of the devices that it hears.
    pub realm: Option<RealmName>,
    /// The socket, which doesn't block.
    pub socket: std::net::UdpSocket,
}

/// Answers devices on these sockets until something goes wrong with one of them.
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
) -> io::Result<()> {
    let echo = Arc::new(Echo::new(random::bytes()));
    let mut tasks = tokio::task::JoinSet::new();
    for Listener { realm, socket } in listeners {
        let gateway = socket.local_addr()?;
        let endpoint = Endpoint {
            realm,
            socket: UdpSocket::from_std(socket)?,
            gateway,
            keep_source,
            controller: controller.clone(),
            echo: Arc::clone(&echo),
            started: Instant::now(),
            next_message_id: AtomicU16::new(u16::from_ne_bytes(random::bytes())),
            exchanges: Mutex::new(Exchanges::new()),
            free: Arc::new(Semaphore::new(UNDER_WAY)),
        };
        tasks.spawn(Arc::new(endpoint).serve());
    }
    while let Some(ended) = tasks.join_next().await {
        ended.map_err(io::Error::other)?;
    }
    Ok(())
}

/// One socket, and what is known of those who send to it.
struct Endpoint {
    realm: Option<RealmName>,
    socket: UdpSocket,
    gateway: SocketAddr,
    keep_source: bool,
    controller: Controller,
    echo: Arc<Echo>,
    started: Instant,
    /// For answers that aren't piggybacked.
    next_message_id: AtomicU16,
    exchanges: Mutex<Exchanges>,
    free: Arc<Semaphore>,
}

impl Endpoint {
    async fn serve(self: Arc<Self>) {
        let mut buffer = vec![0; usize::from(u16::MAX)];
        loop {
            match self.socket.recv_from(&mut buffer).await {
                Ok((len, device)) => self.receive(&buffer[..len], device).await,
                Err(error) => {
                    warn!(gateway = %self.gateway, %error, "can't receive");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    /// What costs nothing is answered right here; what changes something, by a task of its own.
    async fn receive(self: &Arc<Self>, datagram: &[u8], device: SocketAddr) {
        let request = match message::read(datagram) {
            Incoming::Ignored => return,
            Incoming::Rejected(message_id) => {
                return self.send(&message::reset(message_id), device).await;
            }
            Incoming::Request(request) => request,
        };
        let exchange = (device, request.message_id());
        let seen = self.exchanges().seen(exchange, Instant::now());
        match seen {
            Seen::Never => {}
            Seen::UnderWay => return,
            Seen::Answered(answer) => return self.send(&answer, device).await,
        }
        let proven = request.echo().is_some_and(|tag| {
            let uptime = self.started.elapsed();
            self.echo
                .proves(tag, self.realm.as_ref(), device.ip(), uptime)
        });
        match operation(&request) {
            // An option that isn't understood makes a Non-confirmable request be ignored (RFC 7252, 5.4.1).
            Err(_) if !request.is_confirmable() && request.unknown_critical_option().is_some() => {}
            Err(reply) => self.answer(&request, &reply, device).await,
            Ok((Operation::Register { .. }, _)) if !proven => {
                self.answer(&request, &self.challenge(device), device).await;
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
            Operation::Release { id, session } => {
                let released = self
                    .controller
                    .apply(move |sessions, now| sessions.release(now, id, &path, session))
                    .await;
                released.map(|released| released.map(|()| Reply::new(ResponseType::Deleted)))
            }
        };
        let reply = match outcome {
            Ok(Ok(reply)) => reply,
            Ok(Err(DeviceRefusal::AddressUnproven)) => self.challenge(device),
            Ok(Err(refusal)) => {
                debug!(%device, %refusal, "a device was refused");
                refusal_of(refusal)
            }
            Err(Stopped) => {
                Reply::refusal(ResponseType::ServiceUnavailable, "stopping").retry_after_s(10)
            }
        };
        let bytes = self.to_bytes(&reply, request);
        let to_remember = (!reply.is_refusal()).then(|| bytes.clone());
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
        let token = Token::from_bytes(random::bytes());
        let text = String::from_utf8_lossy(&token.to_text()).into_owned();
        let generation = random::nonzero_u32();
        let granted = self
            .controller
            .apply(move |sessions, now| {
                sessions.request_session(now, id, &path, request, &token, generation)
            })
            .await?;
        Ok(granted.map(|grant| {
            let location = [
                "rd".to_owned(),
                id.to_string(),
                "s".to_owned(),
                grant.id.to_string(),
            ];
            session_answer(grant, &text, format).at(location)
        }))
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
            trigger_source: (!self.keep_source).then(|| self.gateway.to_string()),
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

    fn challenge(&self, device: SocketAddr) -> Reply {
        let uptime = self.started.elapsed();
        Reply::challenge(
            self.echo
                .challenge(self.realm.as_ref(), device.ip(), uptime),
        )
    }

    fn exchanges(&self) -> std::sync::MutexGuard<'_, Exchanges> {
        self.exchanges
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn to_bytes(&self, reply: &Reply, request: &Request) -> Vec<u8> {
        reply.to_bytes(
            request,
            self.next_message_id.fetch_add(1, Ordering::Relaxed),
        )
    }

    async fn answer(&self, request: &Request, reply: &Reply, device: SocketAddr) {
        self.send(&self.to_bytes(reply, request), device).await;
    }

    async fn send(&self, bytes: &[u8], device: SocketAddr) {
        if let Err(error) = self.socket.send_to(bytes, device).await {
            debug!(%device, %error, "can't answer");
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

fn session_answer(grant: Grant, token: &str, format: AnswerFormat) -> Reply {
    let Grant {
        id,
        token_generation,
        lifetime,
    } = grant;
    let answer = SessionAnswer {
        session_id: id.to_string(),
        token,
        token_generation,
        lifetime_s: lifetime.as_secs(),
    };
    let created = Reply::new(ResponseType::Created);
    match format {
        AnswerFormat::Cbor => created.with(ContentFormat::ApplicationCBOR, cbor(&answer)),
        AnswerFormat::Text => {
            let text = format!(
                "session_id={id}\ntoken={token}\ntoken_generation={token_generation}\nlifetime_s={}\n",
                answer.lifetime_s
            );
            created.with(ContentFormat::TextPlain, text.into_bytes())
        }
    }
}

fn cbor(answer: &impl Encode<()>) -> Vec<u8> {
    minicbor::to_vec(answer).expect("a vector takes whatever is written to it")
}
