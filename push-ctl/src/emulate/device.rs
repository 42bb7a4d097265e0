//! One device, as a pure state machine: it is told the time and what comes in, and says what goes out, what
//! has happened, and when it wants to be asked again.

mod session;
#[cfg(test)]
mod tests;

use super::message::{self, Answer, Asked, Code, Granted, Incoming, Order, Wish};
use super::news::{News, Request};
use crate::sessions::records::RegistrationId;
use coap_lite::ResponseType;
use push_common::token::Token;
use push_common::wire::{MAGIC, SessionId};
use session::Session;
use std::sync::Arc;
use std::time::{Duration, Instant};
use zerocopy::IntoBytes;

/// Until a message is sent again (`ACK_TIMEOUT`, RFC 7252, 4.8): up to half as much more, and twice as long
/// after each time.
const ACK_TIMEOUT: Duration = Duration::from_secs(2);
/// How often it is (`MAX_RETRANSMIT`).
const MAX_RETRANSMIT: u32 = 4;
/// How long an answer may take that the gateway has said will come.
const SEPARATE_ANSWER: Duration = Duration::from_secs(60);
/// When to ask again after a refusal that doesn't say.
const RETRY_AFTER: Duration = Duration::from_secs(60);
/// Proofs of address that are tried for one request.
const MAX_PROOFS: u32 = 2;

/// What a device is to be like.
#[derive(Clone, Debug)]
pub struct Wishes {
    /// How long its registration is to last without a refresh; as the gateway likes if none.
    pub lifetime: Option<Duration>,
    /// For what it asks for a session.
    pub app: Option<AppInstance>,
    /// UDP port of everything.
    pub port: u16,
}

/// An instance of an application.
#[derive(Clone, Debug)]
pub struct AppInstance {
    /// The application.
    pub app: String,
    /// Which instance of it.
    pub instance: String,
}

/// What comes of an input.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Datagrams for the gateway.
    pub datagrams: Vec<Vec<u8>>,
    /// What has happened.
    pub news: Vec<News>,
}

/// A device.
#[derive(Debug)]
pub struct Device {
    endpoint: String,
    wishes: Arc<Wishes>,
    goal: Goal,
    registration: Option<Registered>,
    /// The registration it has, or had last: one that is suspended comes back by a request of the gateway's.
    known_as: Option<RegistrationId>,
    refresh_wanted: bool,
    session: Option<Session>,
    session_wanted: bool,
    session_refused: bool,
    token_wanted: bool,
    exchange: Option<Exchange>,
    /// Nothing is asked before.
    not_before: Option<Instant>,
    /// Refusals since the last success.
    refusals: u32,
    next_message_id: u16,
    /// The last request of the gateway's, and the answer to it.
    answered: Option<(u16, Vec<u8>)>,
    /// So that not all devices do everything at the same time; of 65,536.
    jitter: u16,
}

/// What a device is after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Goal {
    /// Nothing: it hasn't been started, or has given up.
    Nothing,
    /// To be registered and have its session.
    Ready,
    /// Not to be registered.
    Gone,
}

#[derive(Debug)]
struct Registered {
    id: RegistrationId,
    refresh_at: Instant,
}

/// A request that waits for its answer.
#[derive(Debug)]
struct Exchange {
    request: Request,
    message_id: u16,
    datagram: Vec<u8>,
    began: Instant,
    proofs: u32,
    /// How often it was sent again.
    sent_again: u32,
    timeout: Duration,
    until: Instant,
}

impl Device {
    /// A device that does nothing yet. `random` is different for each.
    #[must_use]
    pub fn new(endpoint: String, wishes: Arc<Wishes>, random: [u8; 4]) -> Self {
        let [a, b, c, d] = random;
        Self {
            endpoint,
            session_wanted: wishes.app.is_some(),
            wishes,
            goal: Goal::Nothing,
            registration: None,
            known_as: None,
            refresh_wanted: false,
            session: None,
            session_refused: false,
            token_wanted: false,
            exchange: None,
            not_before: None,
            refusals: 0,
            next_message_id: u16::from_ne_bytes([a, b]),
            answered: None,
            jitter: u16::from_ne_bytes([c, d]),
        }
    }

    /// What it calls itself.
    #[must_use]
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Its registration.
    #[must_use]
    pub fn registration(&self) -> Option<RegistrationId> {
        self.registration.as_ref().map(|registered| registered.id)
    }

    /// Whether it is registered, and has the session it wants.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.registration.is_some() && !self.session_wanted && !self.session_refused
    }

    /// Whether nothing is under way.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.exchange.is_none() && (self.next().is_none() || self.not_before.is_some())
    }

    /// Has it register, and do all the rest.
    pub fn start(&mut self, now: Instant, outcome: &mut Outcome) {
        self.goal = Goal::Ready;
        self.go_on(now, outcome);
    }

    /// Has it refresh its registration now.
    pub fn refresh(&mut self, now: Instant, outcome: &mut Outcome) {
        self.refresh_wanted = true;
        self.go_on(now, outcome);
    }

    /// Has it deregister.
    pub fn leave(&mut self, now: Instant, outcome: &mut Outcome) {
        self.goal = Goal::Gone;
        self.not_before = None;
        self.go_on(now, outcome);
    }

    /// When [`Device::tick`] has something to do.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        if let Some(exchange) = &self.exchange {
            return Some(exchange.until);
        }
        match self.goal {
            Goal::Nothing | Goal::Gone => self.not_before,
            Goal::Ready => {
                let refresh = self.registration.as_ref().map(|it| it.refresh_at);
                self.not_before.into_iter().chain(refresh).min()
            }
        }
    }

    /// It is `now`.
    pub fn tick(&mut self, now: Instant, outcome: &mut Outcome) {
        if self.exchange.as_ref().is_some_and(|it| it.until <= now) {
            self.send_again(now, outcome);
        }
        if self.not_before.is_some_and(|at| at <= now) {
            self.not_before = None;
        }
        if self
            .registration
            .as_ref()
            .is_some_and(|it| it.refresh_at <= now)
        {
            self.refresh_wanted = true;
        }
        self.go_on(now, outcome);
    }

    /// A datagram has come in. Triggers may keep their source; all else counts only if it came from the gateway.
    pub fn receive(
        &mut self,
        now: Instant,
        datagram: &[u8],
        from_gateway: bool,
        outcome: &mut Outcome,
    ) {
        if datagram.first() == MAGIC.first() {
            self.take_trigger(datagram, outcome);
            return;
        }
        if !from_gateway {
            return;
        }
        match message::read(datagram) {
            Incoming::Answer(answer) => self.take_answer(now, &answer, outcome),
            Incoming::Asked(asked) => self.obey(now, &asked, outcome),
            Incoming::Received(id) => {
                if let Some(exchange) = self.exchange.as_mut().filter(|it| it.message_id == id) {
                    exchange.sent_again = MAX_RETRANSMIT;
                    exchange.until = now + SEPARATE_ANSWER;
                }
            }
            Incoming::Reset(id) => {
                if self.exchange.as_ref().is_some_and(|it| it.message_id == id) {
                    self.give_up_exchange(now, outcome);
                }
            }
            Incoming::Ignored => {}
        }
        self.go_on(now, outcome);
    }

    fn take_trigger(&mut self, datagram: &[u8], outcome: &mut Outcome) {
        outcome
            .news
            .push(match Session::receive(self.session.as_mut(), datagram) {
                Ok((header, payload, key)) => {
                    let acknowledged = header.flags.asks_for_acknowledgement();
                    if acknowledged {
                        let acknowledgement = header.acknowledgement(key);
                        outcome.datagrams.push(acknowledgement.as_bytes().to_vec());
                    }
                    News::Trigger {
                        header: *header,
                        payload: payload.to_vec(),
                        acknowledged,
                    }
                }
                Err(fault) => News::BadTrigger(fault),
            });
    }

    fn take_answer(&mut self, now: Instant, answer: &Answer, outcome: &mut Outcome) {
        outcome
            .datagrams
            .extend(answer.acknowledgement.map(Vec::from));
        let Some(exchange) = self
            .exchange
            .take_if(|it| it.message_id == answer.message_id)
        else {
            return;
        };
        if answer.code == Code::UNAUTHORIZED
            && let Some(echo) = &answer.echo
            && exchange.proofs < MAX_PROOFS
        {
            let proofs = exchange.proofs + 1;
            self.send(now, exchange.request, Some(echo), outcome);
            if let Some(next) = &mut self.exchange {
                next.proofs = proofs;
                next.began = exchange.began;
            }
            return;
        }
        let request = exchange.request;
        if answer.code.is_success() && self.carry_out(now, request, answer, outcome) {
            self.refusals = 0;
            let took = now.saturating_duration_since(exchange.began);
            outcome.news.push(News::Answered(request, took));
        } else {
            self.take_refusal(now, request, answer, outcome);
        }
    }

    /// What follows from a success; false if the answer can't be read.
    fn carry_out(
        &mut self,
        now: Instant,
        request: Request,
        answer: &Answer,
        outcome: &mut Outcome,
    ) -> bool {
        match request {
            Request::Register | Request::Refresh => {
                let Some(configuration) = answer.configuration() else {
                    return false;
                };
                let Ok(id) = configuration.id.parse() else {
                    return false;
                };
                let lifetime = Duration::from_secs(configuration.lifetime_s);
                self.refresh_wanted = false;
                self.known_as = Some(id);
                self.registration = Some(Registered {
                    id,
                    refresh_at: self.refresh_at(now, lifetime),
                });
                outcome.news.push(News::Registered {
                    id,
                    lifetime,
                    again: request == Request::Refresh,
                });
                true
            }
            Request::Session | Request::Token => {
                let Some(granted) = answer.granted() else {
                    return false;
                };
                self.hold(&granted, request == Request::Session, outcome)
            }
            Request::Deregister => {
                self.registration = None;
                self.session = None;
                outcome.news.push(News::Deregistered);
                true
            }
        }
    }

    fn hold(&mut self, granted: &Granted, new_session: bool, outcome: &mut Outcome) -> bool {
        let (Ok(id), Ok(token)) = (
            granted.session_id.parse::<SessionId>(),
            granted.token.parse::<Token>(),
        ) else {
            return false;
        };
        let key = (granted.token_generation, token.key());
        match self.session.as_mut().filter(|session| session.id() == id) {
            Some(session) => session.rotate(key),
            None => self.session = Some(Session::new(id, key)),
        }
        self.session_wanted = false;
        self.session_refused = false;
        self.token_wanted = false;
        outcome.news.push(News::Granted {
            session: id,
            token,
            token_generation: granted.token_generation,
            new_session,
        });
        true
    }

    fn take_refusal(
        &mut self,
        now: Instant,
        request: Request,
        answer: &Answer,
        outcome: &mut Outcome,
    ) {
        let code = answer.code;
        outcome.news.push(News::Refused {
            request,
            code,
            text: answer.text(),
        });
        self.refusals += 1;
        if code == Code::TOO_MANY_REQUESTS || code == Code::SERVICE_UNAVAILABLE {
            self.not_before = Some(now + answer.max_age.unwrap_or(RETRY_AFTER));
            return;
        }
        match request {
            Request::Register | Request::Refresh | Request::Session | Request::Token
                if code == Code::FORBIDDEN =>
            {
                // Not registered, or no more: begin anew, but not too often.
                self.forget();
                let wait = Duration::from_secs(1 << self.refusals.min(6));
                self.not_before = Some(now + wait);
            }
            Request::Register | Request::Refresh => self.goal = Goal::Nothing,
            Request::Session => {
                self.session_wanted = false;
                self.session_refused = true;
            }
            Request::Token => self.token_wanted = false,
            Request::Deregister => self.forget(),
        }
    }

    /// The registration is no more, and nothing that came of it.
    fn forget(&mut self) {
        self.registration = None;
        self.session = None;
        self.session_wanted = self.wishes.app.is_some();
        self.token_wanted = false;
        self.refresh_wanted = false;
    }

    /// Does what the gateway asks, once.
    fn obey(&mut self, now: Instant, asked: &Asked, outcome: &mut Outcome) {
        if let Some((id, answer)) = &self.answered
            && *id == asked.message_id
        {
            outcome.datagrams.push(answer.clone());
            return;
        }
        let done = asked
            .order
            .clone()
            .and_then(|order| self.follow(now, order, outcome));
        let answer = asked.answer(done);
        outcome.datagrams.push(answer.clone());
        self.answered = Some((asked.message_id, answer));
    }

    fn follow(
        &mut self,
        now: Instant,
        order: Order,
        outcome: &mut Outcome,
    ) -> Result<ResponseType, ResponseType> {
        let has = |session: SessionId| self.session.as_ref().is_some_and(|it| it.id() == session);
        let is = |id: RegistrationId| self.known_as == Some(id);
        match order {
            Order::Teardown { session, cause } if has(session) => {
                self.session = None;
                self.token_wanted = false;
                outcome.news.push(News::TornDown { session, cause });
                Ok(ResponseType::Deleted)
            }
            // As it ought to be already (RFC 7252, 5.8.4).
            Order::Teardown { .. } => Ok(ResponseType::Deleted),
            Order::Rotate { session, within } if has(session) => {
                self.token_wanted = true;
                outcome.news.push(News::RotationAsked { session, within });
                Ok(ResponseType::Changed)
            }
            Order::Renew { session } if has(session) => {
                self.session_wanted = true;
                outcome.news.push(News::RenewalAsked { session });
                Ok(ResponseType::Changed)
            }
            Order::Refresh { id } if is(id) => {
                self.refresh_wanted = self.registration.is_some();
                self.not_before = None;
                outcome.news.push(News::RefreshAsked);
                Ok(ResponseType::Changed)
            }
            Order::Configure { id, lifetime } if is(id) => {
                self.not_before = None;
                if let Some(lifetime) = lifetime {
                    let refresh_at = self.refresh_at(now, lifetime);
                    self.registration = Some(Registered { id, refresh_at });
                }
                outcome.news.push(News::Configured { lifetime });
                Ok(ResponseType::Changed)
            }
            Order::Rotate { .. }
            | Order::Renew { .. }
            | Order::Refresh { .. }
            | Order::Configure { .. } => Err(ResponseType::NotFound),
        }
    }

    /// Between half and three quarters of the lifetime from now.
    fn refresh_at(&self, now: Instant, lifetime: Duration) -> Instant {
        now + lifetime / 2 + lifetime / 4 * u32::from(self.jitter) / 65_536
    }

    /// What to ask for next.
    fn next(&self) -> Option<Request> {
        match (self.goal, &self.registration) {
            (Goal::Gone, Some(_)) => Some(Request::Deregister),
            (Goal::Ready, None) => Some(Request::Register),
            (Goal::Ready, Some(_)) if self.refresh_wanted => Some(Request::Refresh),
            (Goal::Ready, Some(_)) if self.session_wanted => Some(Request::Session),
            (Goal::Ready, Some(_)) if self.token_wanted => Some(Request::Token),
            (Goal::Nothing, _) | (Goal::Gone, None) | (Goal::Ready, Some(_)) => None,
        }
    }

    fn go_on(&mut self, now: Instant, outcome: &mut Outcome) {
        if self.exchange.is_none()
            && self.not_before.is_none()
            && let Some(request) = self.next()
        {
            self.send(now, request, None, outcome);
        }
    }

    fn send(&mut self, now: Instant, request: Request, echo: Option<&[u8]>, outcome: &mut Outcome) {
        let wishes = Arc::clone(&self.wishes);
        let Some(wish) = self.wish(&wishes, request) else {
            return;
        };
        let message_id = self.next_message_id;
        let datagram = wish.to_bytes(message_id, echo);
        self.next_message_id = message_id.wrapping_add(1);
        outcome.datagrams.push(datagram.clone());
        let timeout = ACK_TIMEOUT + ACK_TIMEOUT / 2 * u32::from(self.jitter) / 65_536;
        self.exchange = Some(Exchange {
            request,
            message_id,
            datagram,
            began: now,
            proofs: 0,
            sent_again: 0,
            timeout,
            until: now + timeout,
        });
    }

    fn wish<'a>(&'a self, wishes: &'a Wishes, request: Request) -> Option<Wish<'a>> {
        let lifetime = wishes.lifetime;
        let endpoint = &self.endpoint;
        if request == Request::Register {
            return Some(Wish::Register { endpoint, lifetime });
        }
        let id = self.registration()?;
        match request {
            Request::Register => None,
            Request::Refresh => Some(Wish::Refresh { id, lifetime }),
            Request::Session => wishes.app.as_ref().map(|it| Wish::Session {
                id,
                app: &it.app,
                instance: &it.instance,
                port: wishes.port,
            }),
            Request::Token => self.session.as_ref().map(|session| Wish::Token {
                id,
                session: session.id(),
            }),
            Request::Deregister => Some(Wish::Deregister { id }),
        }
    }

    fn send_again(&mut self, now: Instant, outcome: &mut Outcome) {
        let Some(exchange) = &mut self.exchange else {
            return;
        };
        if exchange.sent_again == MAX_RETRANSMIT {
            self.give_up_exchange(now, outcome);
            return;
        }
        exchange.sent_again += 1;
        exchange.timeout *= 2;
        exchange.until = now + exchange.timeout;
        outcome.news.push(News::Retransmitted(exchange.request));
        outcome.datagrams.push(exchange.datagram.clone());
    }

    fn give_up_exchange(&mut self, now: Instant, outcome: &mut Outcome) {
        let Some(Exchange { request, .. }) = self.exchange.take() else {
            return;
        };
        outcome.news.push(News::Unanswered(request));
        match self.goal {
            Goal::Nothing | Goal::Ready => self.not_before = Some(now + RETRY_AFTER),
            Goal::Gone => self.forget(),
        }
    }
}
