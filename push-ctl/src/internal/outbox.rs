//! The gateway's own requests to devices, on one socket, as a state machine: what is sent when, and
//! what was heard of it (RFC 7252, 4.2 and 4.7). It knows no socket, and the time comes in with each call.

#[cfg(test)]
mod tests;

use super::message::{Answer, Delivery};
use crate::sessions::{Notice, NoticeKind};
use lru::LruCache;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

/// Requests of one socket that wait for an answer at the same time.
const IN_FLIGHT: usize = 16_384;

/// Notices of one socket that wait for their turn.
const WAITING: usize = 131_072;

/// Notices that wait for their turn at one destination.
const WAITING_PER_DESTINATION: usize = 64;

/// Requests that were answered, which may be answered once more.
const SETTLED: NonZeroUsize = NonZeroUsize::new(4096).expect("not zero");

/// What tells the answers to different requests apart, and can't be guessed.
pub(super) type RequestToken = [u8; 8];

/// How patient the gateway is (RFC 7252, 4.8).
#[derive(Clone, Copy, Debug)]
pub(super) struct Backoff {
    /// `ACK_TIMEOUT`. The first one is up to `ACK_RANDOM_FACTOR`, 1.5, times as long, and each further
    /// one twice as long as the one before.
    pub(super) ack_timeout: Duration,
    /// `MAX_RETRANSMIT`.
    pub(super) max_retransmit: u32,
}

impl Backoff {
    /// The values of RFC 7252: five transmissions, given up 62 to 93 seconds after the first one.
    pub(super) const RFC_7252: Self = Self {
        ack_timeout: Duration::from_secs(2),
        max_retransmit: 4,
    };

    /// The first timeout: as random as the token, part of which it is made from.
    fn first_timeout(self, [high, low, ..]: RequestToken) -> Duration {
        let chance = u16::from_be_bytes([high, low]);
        let extra = self.ack_timeout / 2 * u32::from(chance) / u32::from(u16::MAX);
        self.ack_timeout + extra
    }
}

/// A request, ready to be sent.
#[derive(Clone, Debug)]
pub(super) struct Composed {
    pub(super) message_id: u16,
    pub(super) token: RequestToken,
    pub(super) datagram: Vec<u8>,
}

/// What to do next.
#[derive(Debug)]
pub(super) enum Step {
    /// Send this.
    Send {
        to: SocketAddr,
        datagram: Vec<u8>,
        /// Whether it was sent before.
        again: bool,
    },
    /// Nothing was heard: tell whom it concerns.
    GiveUp(Notice),
}

/// What has become of a notice that was put in.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Put {
    /// It will be sent.
    Queued,
    /// It will be sent in place of this many that waited, and which it makes pointless.
    Replaced(usize),
    /// There is no room for it.
    Full,
}

/// What an answer meant.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// The device has got a notice, and says that it has followed it, or nothing about that.
    Taken(Notice),
    /// It has got a notice, and doesn't understand or doesn't follow it.
    Refused(Notice),
    /// It had answered before.
    Again,
    /// No request goes with it.
    Nothing,
}

struct InFlight {
    notice: Notice,
    composed: Composed,
    timeout: Duration,
    retransmissions: u32,
    due: Instant,
}

/// What waits, and what is under way; at most one request per destination (`NSTART`).
pub(super) struct Outbox {
    backoff: Backoff,
    in_flight: HashMap<SocketAddr, InFlight>,
    due: BTreeSet<(Instant, SocketAddr)>,
    waiting: HashMap<SocketAddr, VecDeque<Notice>>,
    /// Length of all that waits.
    waiting_len: usize,
    /// Destinations where something waits and nothing is in flight.
    ready: VecDeque<SocketAddr>,
    settled: LruCache<(SocketAddr, RequestToken), ()>,
}

impl Outbox {
    pub(super) fn new(backoff: Backoff) -> Self {
        Self {
            backoff,
            in_flight: HashMap::new(),
            due: BTreeSet::new(),
            waiting: HashMap::new(),
            waiting_len: 0,
            ready: VecDeque::new(),
            settled: LruCache::new(SETTLED),
        }
    }

    /// Takes a notice in. It replaces those that wait for the same device and say what is no longer true.
    pub(super) fn put(&mut self, notice: Notice) -> Put {
        let to = notice.to;
        let queue = self.waiting.entry(to).or_default();
        let before = queue.len();
        queue.retain(|earlier| !supersedes(&notice.kind, &earlier.kind));
        let replaced = before - queue.len();
        self.waiting_len -= replaced;
        if self.waiting_len >= WAITING || queue.len() >= WAITING_PER_DESTINATION {
            if queue.is_empty() {
                self.waiting.remove(&to);
            }
            return Put::Full;
        }
        queue.push_back(notice);
        self.waiting_len += 1;
        if before == 0 && !self.in_flight.contains_key(&to) {
            self.ready.push_back(to);
        }
        match replaced {
            0 => Put::Queued,
            replaced => Put::Replaced(replaced),
        }
    }

    /// What to do now, if anything; to be called until there is nothing. `compose` makes a request, with
    /// a new message id and a new token.
    pub(super) fn step(
        &mut self,
        now: Instant,
        compose: impl FnOnce(&NoticeKind) -> Composed,
    ) -> Option<Step> {
        if let Some(&(due, to)) = self.due.first()
            && due <= now
        {
            return self.overdue(now, to);
        }
        if self.in_flight.len() >= IN_FLIGHT {
            return None;
        }
        let to = self.ready.pop_front()?;
        let queue = self.waiting.get_mut(&to)?;
        let notice = queue.pop_front()?;
        if queue.is_empty() {
            self.waiting.remove(&to);
        }
        self.waiting_len -= 1;
        let composed = compose(&notice.kind);
        let timeout = self.backoff.first_timeout(composed.token);
        let request = InFlight {
            composed,
            notice,
            timeout,
            retransmissions: 0,
            due: now + timeout,
        };
        let datagram = request.composed.datagram.clone();
        self.due.insert((request.due, to));
        self.in_flight.insert(to, request);
        Some(Step::Send {
            to,
            datagram,
            again: false,
        })
    }

    /// When [`Outbox::step`] has something to do next, if nothing happens before.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.due.first().map(|&(due, _)| due)
    }

    /// A device at `from` has answered something.
    pub(super) fn hear(&mut self, from: SocketAddr, answer: &Answer) -> Heard {
        let settled = |settled: &mut LruCache<_, ()>, token: &[u8]| {
            RequestToken::try_from(token).is_ok_and(|token| settled.get(&(from, token)).is_some())
        };
        let Some(request) = self.in_flight.get(&from) else {
            return match answer {
                Answer::Response { token, .. } if settled(&mut self.settled, token) => Heard::Again,
                Answer::Response { .. } | Answer::Acknowledgement(_) | Answer::Reset(_) => {
                    Heard::Nothing
                }
            };
        };
        let refused = match answer {
            Answer::Acknowledgement(id) if *id == request.composed.message_id => false,
            Answer::Reset(id) if *id == request.composed.message_id => true,
            Answer::Response {
                delivery,
                message_id,
                token,
                is_success,
            } => {
                let same_message = match delivery {
                    Delivery::Piggybacked => *message_id == request.composed.message_id,
                    Delivery::Confirmable | Delivery::NonConfirmable => true,
                };
                if !same_message || token[..] != request.composed.token {
                    return if settled(&mut self.settled, token) {
                        Heard::Again
                    } else {
                        Heard::Nothing
                    };
                }
                !is_success
            }
            Answer::Acknowledgement(_) | Answer::Reset(_) => return Heard::Nothing,
        };
        let Some(request) = self.take(from) else {
            return Heard::Nothing;
        };
        self.settled.put((from, request.composed.token), ());
        if refused {
            Heard::Refused(request.notice)
        } else {
            Heard::Taken(request.notice)
        }
    }

    /// The time for an answer is over.
    fn overdue(&mut self, now: Instant, to: SocketAddr) -> Option<Step> {
        let max_retransmit = self.backoff.max_retransmit;
        let request = self.in_flight.get_mut(&to)?;
        if request.retransmissions >= max_retransmit {
            return self.take(to).map(|request| Step::GiveUp(request.notice));
        }
        self.due.remove(&(request.due, to));
        request.retransmissions += 1;
        request.timeout *= 2;
        request.due = now + request.timeout;
        self.due.insert((request.due, to));
        Some(Step::Send {
            to,
            datagram: request.composed.datagram.clone(),
            again: true,
        })
    }

    /// Ends the request to this destination, which may get the next one.
    fn take(&mut self, to: SocketAddr) -> Option<InFlight> {
        let request = self.in_flight.remove(&to)?;
        self.due.remove(&(request.due, to));
        if self.waiting.contains_key(&to) {
            self.ready.push_back(to);
        }
        Some(request)
    }
}

/// Whether a device that is told `newer` needn't be told `earlier` any more.
fn supersedes(newer: &NoticeKind, earlier: &NoticeKind) -> bool {
    let same_session = earlier.session().is_some() && earlier.session() == newer.session();
    match newer {
        NoticeKind::Teardown { .. } => same_session,
        NoticeKind::Rotate { .. } => same_session && matches!(earlier, NoticeKind::Rotate { .. }),
        NoticeKind::Renew { .. } => same_session && matches!(earlier, NoticeKind::Renew { .. }),
        NoticeKind::Refresh { registration } => {
            matches!(earlier, NoticeKind::Refresh { registration: of } if of == registration)
        }
        NoticeKind::Configuration { registration, .. } => {
            matches!(earlier, NoticeKind::Configuration { registration: of, .. } if of == registration)
        }
    }
}
