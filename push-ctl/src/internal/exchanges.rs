//! Which requests have been seen before (RFC 7252, 4.5).
//!
//! Only requests that were carried out are remembered with their answers. One that was refused, or
//! challenged, has changed nothing and may be looked at again, so that who sends from forged addresses
//! can't push the others out.

use lru::LruCache;
use std::collections::HashSet;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::time::{Duration, Instant};
use zeroize::Zeroizing;

/// How long a message id may come back (`EXCHANGE_LIFETIME`, RFC 7252, 4.8.2).
const EXCHANGE_LIFETIME: Duration = Duration::from_secs(247);

/// Answers that are remembered.
const ANSWERS: NonZeroUsize = NonZeroUsize::new(16_384).expect("not zero");

/// Who sent a request, and the message id they gave it.
pub(super) type Exchange = (SocketAddr, u16);

/// What is known of a request that has just come in.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// It is new.
    Never,
    /// It is being carried out; the answer will come.
    UnderWay,
    /// It was carried out, and this was the answer.
    Answered(Zeroizing<Vec<u8>>),
}

/// What is known of the requests on one socket, and so of one realm.
pub(super) struct Exchanges {
    under_way: HashSet<Exchange>,
    answered: LruCache<Exchange, (Instant, Zeroizing<Vec<u8>>)>,
}

impl Exchanges {
    pub(super) fn new() -> Self {
        Self {
            under_way: HashSet::new(),
            answered: LruCache::new(ANSWERS),
        }
    }

    /// Whether this request was seen before.
    pub(super) fn seen(&mut self, exchange: Exchange, now: Instant) -> Seen {
        if self.under_way.contains(&exchange) {
            return Seen::UnderWay;
        }
        match self.answered.peek(&exchange) {
            Some((at, answer)) if now.saturating_duration_since(*at) < EXCHANGE_LIFETIME => {
                Seen::Answered(answer.clone())
            }
            Some(_) | None => Seen::Never,
        }
    }

    /// The request is being carried out.
    pub(super) fn begin(&mut self, exchange: Exchange) {
        self.under_way.insert(exchange);
    }

    /// Forgets, some at a time, answers that nobody can ask for any more: there may be tokens in them.
    fn forget_old(&mut self, now: Instant) {
        const SOME: usize = 4;
        for _ in 0..SOME {
            match self.answered.peek_lru() {
                Some((_, (at, _))) if now.saturating_duration_since(*at) >= EXCHANGE_LIFETIME => {
                    self.answered.pop_lru();
                }
                Some(_) | None => return,
            }
        }
    }

    /// Forgets all answers to this device.
    #[cfg(feature = "coaps")]
    pub(super) fn forget(&mut self, device: SocketAddr) {
        let of_device: Vec<_> = self
            .answered
            .iter()
            .map(|(&exchange, _)| exchange)
            .filter(|(from, _)| *from == device)
            .collect();
        for exchange in of_device {
            self.answered.pop(&exchange);
        }
    }

    /// It has been carried out, with this answer, or refused.
    pub(super) fn finish(
        &mut self,
        exchange: Exchange,
        answer: Option<Zeroizing<Vec<u8>>>,
        now: Instant,
    ) {
        self.under_way.remove(&exchange);
        self.forget_old(now);
        if let Some(answer) = answer {
            self.answered.put(exchange, (now, answer));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_remembered_for_the_lifetime_of_the_exchange() {
        let mut exchanges = Exchanges::new();
        let exchange = ("10.0.0.2:5683".parse().unwrap(), 7);
        let other_port = ("10.0.0.2:5684".parse().unwrap(), 7);
        let start = Instant::now();
        assert_eq!(exchanges.seen(exchange, start), Seen::Never);
        exchanges.begin(exchange);
        assert_eq!(exchanges.seen(exchange, start), Seen::UnderWay);
        exchanges.finish(exchange, Some(vec![1].into()), start);
        assert_eq!(
            exchanges.seen(exchange, start + Duration::from_secs(246)),
            Seen::Answered(vec![1].into())
        );
        assert_eq!(
            exchanges.seen(exchange, start + Duration::from_secs(247)),
            Seen::Never
        );
        assert_eq!(exchanges.seen(other_port, start), Seen::Never);
    }

    #[test]
    fn an_answer_that_nobody_can_ask_for_is_forgotten() {
        let mut exchanges = Exchanges::new();
        let exchange = |id| ("10.0.0.2:5683".parse().unwrap(), id);
        let start = Instant::now();
        for id in 0..3 {
            exchanges.finish(exchange(id), Some(vec![1].into()), start);
        }
        // To be asked for it once more makes it no younger.
        assert_ne!(exchanges.seen(exchange(0), start), Seen::Never);
        let later = start + EXCHANGE_LIFETIME;
        exchanges.finish(exchange(3), Some(vec![1].into()), later);
        let left: Vec<_> = exchanges.answered.iter().map(|(it, _)| it.1).collect();
        assert_eq!(left, [3]);
    }

    #[test]
    fn a_refusal_is_not_remembered() {
        let mut exchanges = Exchanges::new();
        let exchange = ("10.0.0.2:5683".parse().unwrap(), 7);
        exchanges.begin(exchange);
        exchanges.finish(exchange, None, Instant::now());
        assert_eq!(exchanges.seen(exchange, Instant::now()), Seen::Never);
    }
}
