//! Brings notices to devices: each to the socket that it goes out from, in CBOR, and what becomes of it
//! to those who want to know.

use super::message;
use super::outbox::{Backoff, Composed, Heard, Outbox, Put, Step};
use super::{Endpoint, MAX_TRIGGER_BYTES, cbor};
use crate::random;
use crate::sessions::{Notice, NoticeKind};
use coap_lite::RequestType;
use minicbor::Encode;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, mpsc};
use tracing::{debug, warn};

/// How often notices that were not taken in are logged of.
const LOG_EVERY: Duration = Duration::from_mins(1);

/// What the gateway has to say, and who hears of what wasn't heard.
pub struct Outgoing {
    /// Notices to be sent.
    pub notices: mpsc::Receiver<Notice>,
    /// Called for each notice that no device has answered. It must not block.
    pub unanswered: Box<dyn Fn(Notice) + Send + Sync>,
    /// Counts them.
    pub counters: NoticeCounters,
}

/// Counts what becomes of notices. All clones count together.
#[derive(Clone, Debug, Default)]
pub struct NoticeCounters(Arc<Cells>);

#[derive(Debug, Default)]
struct Cells {
    sent: AtomicU64,
    retransmitted: AtomicU64,
    taken: AtomicU64,
    refused: AtomicU64,
    superseded: AtomicU64,
    unanswered: AtomicU64,
    dropped: AtomicU64,
}

/// How many notices there were since the start, by what has become of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NoticeCounts {
    /// Sent, retransmissions not counted.
    pub sent: u64,
    /// Retransmissions.
    pub retransmitted: u64,
    /// Acknowledged, or answered with success.
    pub taken: u64,
    /// Answered by an error or a Reset.
    pub refused: u64,
    /// Not sent, as a later one made them pointless.
    pub superseded: u64,
    /// Given up, as no answer came.
    pub unanswered: u64,
    /// Not sent, as too many waited, or as there is no socket any more where the device registered, or no
    /// connection to it.
    pub dropped: u64,
}

impl NoticeCounters {
    /// The counts at this moment.
    #[must_use]
    pub fn read(&self) -> NoticeCounts {
        let read = |cell: &AtomicU64| cell.load(Ordering::Relaxed);
        let cells = &*self.0;
        NoticeCounts {
            sent: read(&cells.sent),
            retransmitted: read(&cells.retransmitted),
            taken: read(&cells.taken),
            refused: read(&cells.refused),
            superseded: read(&cells.superseded),
            unanswered: read(&cells.unanswered),
            dropped: read(&cells.dropped),
        }
    }
}

fn count(cell: &AtomicU64) {
    cell.fetch_add(1, Ordering::Relaxed);
}

/// What the sockets have in common.
pub(super) struct Desk {
    unanswered: Box<dyn Fn(Notice) + Send + Sync>,
    counters: NoticeCounters,
}

impl Desk {
    pub(super) fn new(
        unanswered: Box<dyn Fn(Notice) + Send + Sync>,
        counters: NoticeCounters,
    ) -> Self {
        Self {
            unanswered,
            counters,
        }
    }

    fn cells(&self) -> &Cells {
        &self.counters.0
    }
}

/// The notices of one socket.
pub(super) struct Outbound {
    outbox: Mutex<Outbox>,
    /// There may be something to send.
    stirred: Notify,
    desk: Arc<Desk>,
}

impl Outbound {
    pub(super) fn new(backoff: Backoff, desk: Arc<Desk>) -> Self {
        Self {
            outbox: Mutex::new(Outbox::new(backoff)),
            stirred: Notify::new(),
            desk,
        }
    }

    fn outbox(&self) -> MutexGuard<'_, Outbox> {
        self.outbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, notice: Notice) -> Put {
        let put = self.outbox().put(notice);
        self.stirred.notify_one();
        put
    }
}

/// Hands each notice to the socket where its device registered, until there are no more to come.
pub(super) async fn distribute(
    mut notices: mpsc::Receiver<Notice>,
    endpoints: Vec<Arc<Endpoint>>,
    desk: Arc<Desk>,
) {
    let mut dropped_since_log = 0_u64;
    let mut logged_at = None::<Instant>;
    while let Some(mut notice) = notices.recv().await {
        let path = &notice.path;
        let endpoint = endpoints
            .iter()
            .find(|endpoint| endpoint.realm == path.realm && endpoint.gateway == path.gateway);
        let put = endpoint.and_then(|endpoint| {
            notice.to = endpoint.route(notice.to)?;
            Some(endpoint.outbound.put(notice))
        });
        match put {
            Some(Put::Queued) => {}
            Some(Put::Replaced(notices)) => {
                let notices = u64::try_from(notices).unwrap_or(u64::MAX);
                desk.cells()
                    .superseded
                    .fetch_add(notices, Ordering::Relaxed);
            }
            Some(Put::Full) | None => {
                count(&desk.cells().dropped);
                dropped_since_log += 1;
                if logged_at.is_none_or(|at| at.elapsed() >= LOG_EVERY) {
                    warn!(
                        notices = dropped_since_log,
                        "messages to devices were not sent: too many wait for an answer, or there is no way to the device, as where it registered is no longer in the configuration or its connection is gone"
                    );
                    dropped_since_log = 0;
                    logged_at = Some(Instant::now());
                }
            }
        }
    }
}

impl Endpoint {
    /// Sends what is to be sent, when it is to be sent, for ever.
    pub(super) async fn notify(self: Arc<Self>) {
        let outbound = &self.outbound;
        loop {
            // Taken before looking: what stirs from here on isn't slept through.
            let stirred = outbound.stirred.notified();
            loop {
                let step = outbound
                    .outbox()
                    .step(Instant::now(), |kind| self.compose(kind));
                match step {
                    Some(Step::Send {
                        to,
                        datagram,
                        again,
                    }) => {
                        let cells = outbound.desk.cells();
                        count(if again {
                            &cells.retransmitted
                        } else {
                            &cells.sent
                        });
                        self.send(&datagram, to).await;
                    }
                    Some(Step::GiveUp(notice)) => {
                        count(&outbound.desk.cells().unanswered);
                        debug!(device = %notice.to, kind = ?notice.kind, "a device doesn't answer");
                        (outbound.desk.unanswered)(notice);
                    }
                    None => break,
                }
            }
            let due = outbound.outbox().next_due();
            match due {
                Some(due) => {
                    tokio::select! {
                        () = tokio::time::sleep_until(due.into()) => {}
                        () = stirred => {}
                    }
                }
                None => stirred.await,
            }
        }
    }

    /// Takes what `device` says for the answer to a notice, if it is; a Confirmable one is
    /// acknowledged, or else reset.
    pub(super) async fn hear(&self, answer: &message::Answer, device: SocketAddr) {
        let heard = self.outbound.outbox().hear(device, answer);
        let cells = self.outbound.desk.cells();
        let is_known = match heard {
            Heard::Taken(_) => {
                count(&cells.taken);
                self.outbound.stirred.notify_one();
                true
            }
            Heard::Refused(notice) => {
                count(&cells.refused);
                debug!(%device, kind = ?notice.kind, "a device doesn't follow a message");
                self.outbound.stirred.notify_one();
                true
            }
            Heard::Again => true,
            Heard::Nothing => false,
        };
        match answer {
            message::Answer::Response {
                delivery: message::Delivery::Confirmable,
                message_id,
                ..
            } => {
                let reply = if is_known {
                    message::acknowledgement(*message_id)
                } else {
                    message::reset(*message_id)
                };
                self.send(&reply, device).await;
            }
            message::Answer::Response {
                delivery: message::Delivery::Piggybacked | message::Delivery::NonConfirmable,
                ..
            }
            | message::Answer::Acknowledgement(_)
            | message::Answer::Reset(_) => {}
        }
    }

    fn compose(&self, kind: &NoticeKind) -> Composed {
        let (method, resource, id, payload) = match kind {
            NoticeKind::Teardown { session, cause } => {
                let body = cbor(&Teardown {
                    cause: cause.label(),
                });
                (RequestType::Delete, "s", session.to_string(), body)
            }
            NoticeKind::Rotate { session, within } => {
                let body = cbor(&Wish {
                    wish: "rotate",
                    within_s: within.map(|within| within.as_secs()),
                });
                (RequestType::Post, "s", session.to_string(), body)
            }
            NoticeKind::Renew { session } => {
                (RequestType::Post, "s", session.to_string(), wish("renew"))
            }
            NoticeKind::Refresh { registration } => (
                RequestType::Post,
                "rd",
                registration.to_string(),
                wish("refresh"),
            ),
            NoticeKind::Configuration {
                registration,
                lifetime,
            } => {
                let body = cbor(&Configuration {
                    lifetime_s: lifetime.as_secs(),
                    trigger_source: self.trigger_source(),
                    max_trigger_bytes: MAX_TRIGGER_BYTES,
                });
                (RequestType::Post, "rd", registration.to_string(), body)
            }
        };
        let message_id = self.next_message_id.fetch_add(1, Ordering::Relaxed);
        let token = random::bytes();
        Composed {
            message_id,
            token,
            datagram: message::request(method, message_id, &token, &[resource, &id], payload),
        }
    }
}

fn wish(wish: &'static str) -> Vec<u8> {
    cbor(&Wish {
        wish,
        within_s: None,
    })
}

#[derive(Encode)]
#[cbor(map)]
struct Teardown {
    #[n(1)]
    cause: &'static str,
}

#[derive(Encode)]
#[cbor(map)]
struct Wish {
    #[n(1)]
    wish: &'static str,
    #[n(2)]
    within_s: Option<u64>,
}

#[derive(Encode)]
#[cbor(map)]
struct Configuration {
    #[n(2)]
    lifetime_s: u64,
    #[n(3)]
    trigger_source: Option<String>,
    #[n(4)]
    max_trigger_bytes: usize,
}
