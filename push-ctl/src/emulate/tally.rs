//! How often things happened, and how long they took.

use super::news::{Fault, News, Request};
use hdrhistogram::Histogram;
use serde::Serialize;
use std::time::{Duration, Instant};

/// Longest time that is told from longer ones.
const LONGEST: Duration = Duration::from_mins(10);

/// Counts of what happened to some devices.
#[derive(Debug)]
pub struct Tally {
    began: Instant,
    requests: Vec<OfRequest>,
    triggers: Triggers,
    asked: u64,
    torn_down: u64,
}

#[derive(Debug)]
struct OfRequest {
    latency_us: Histogram<u64>,
    refused: u64,
    unanswered: u64,
    retransmissions: u64,
    /// When the first one that was answered began, and when the last one was answered.
    span: Option<(Instant, Instant)>,
}

/// What became of triggers at the devices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Triggers {
    /// Datagrams that look like triggers.
    pub received: u64,
    /// Those of the session's server, for the first time.
    pub verified: u64,
    /// Those that asked for an acknowledgement, and got it.
    pub acknowledged: u64,
    /// Those that had been received before, or may have been.
    pub replayed: u64,
    /// All others.
    pub bad: u64,
}

/// All of it, as the command line tells it.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// How many devices there are.
    pub devices: usize,
    /// Those that were registered, and had the session they want, before they were to leave.
    pub ready: usize,
    /// Since the first one was started.
    pub duration_s: f64,
    /// Requests that never were answered.
    pub lost: u64,
    /// Requests that were refused.
    pub refused: u64,
    /// By kind, without those that were never made.
    pub requests: Vec<RequestSummary>,
    /// Triggers.
    pub triggers: Triggers,
    /// Requests of the gateway's that were followed, without those to end a session.
    pub asked: u64,
    /// Sessions that the gateway has ended.
    pub torn_down: u64,
}

/// What became of one kind of request.
#[derive(Clone, Debug, Serialize)]
pub struct RequestSummary {
    /// Which.
    pub request: Request,
    /// Answered with success.
    pub answered: u64,
    /// Refused.
    pub refused: u64,
    /// Never answered.
    pub lost: u64,
    /// Messages that were sent again.
    pub retransmissions: u64,
    /// Answers per second, from the first request to the last answer.
    pub per_second: f64,
    /// From the first message to the answer, proof of address included: half of the requests took longer.
    pub p50_ms: f64,
    /// One in a hundred took longer.
    pub p99_ms: f64,
    /// One in a thousand took longer.
    pub p99_9_ms: f64,
    /// The longest.
    pub max_ms: f64,
}

impl Tally {
    /// Nothing yet.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        let requests = Request::ALL.map(|_| OfRequest {
            // Two digits are enough to compare with, and keep it small.
            latency_us: Histogram::new_with_max(LONGEST.as_micros() as u64, 2)
                .expect("ten minutes have more than two digits"),
            refused: 0,
            unanswered: 0,
            retransmissions: 0,
            span: None,
        });
        Self {
            began: now,
            requests: requests.into(),
            triggers: Triggers::default(),
            asked: 0,
            torn_down: 0,
        }
    }

    /// Counts what has happened `now`.
    pub fn count(&mut self, now: Instant, news: &News) {
        match news {
            News::Answered(request, took) => {
                let of = self.of(*request);
                of.latency_us.saturating_record(took.as_micros() as u64);
                let began = now.checked_sub(*took).unwrap_or(now);
                let (first, _) = of.span.unwrap_or((began, now));
                of.span = Some((first.min(began), now));
            }
            News::Refused { request, .. } => self.of(*request).refused += 1,
            News::Unanswered(request) => self.of(*request).unanswered += 1,
            News::Retransmitted(request) => self.of(*request).retransmissions += 1,
            News::Trigger { acknowledged, .. } => {
                self.triggers.received += 1;
                self.triggers.verified += 1;
                self.triggers.acknowledged += u64::from(*acknowledged);
            }
            News::BadTrigger(fault) => {
                self.triggers.received += 1;
                match fault {
                    Fault::Replayed(_) | Fault::OutsideWindow(_) => self.triggers.replayed += 1,
                    Fault::Trigger(_)
                    | Fault::Session(_)
                    | Fault::TokenGeneration(_)
                    | Fault::Acknowledgement => self.triggers.bad += 1,
                }
            }
            News::TornDown { .. } => self.torn_down += 1,
            News::RotationAsked { .. }
            | News::RenewalAsked { .. }
            | News::RefreshAsked
            | News::Configured { .. } => self.asked += 1,
            News::Registered { .. } | News::Granted { .. } | News::Deregistered => {}
        }
    }

    /// Answers with success so far.
    #[must_use]
    pub fn answered(&self) -> u64 {
        self.requests.iter().map(|of| of.latency_us.len()).sum()
    }

    /// All of it.
    #[must_use]
    pub fn summary(&self, now: Instant, devices: usize, ready: usize) -> Summary {
        let requests: Vec<_> = Request::ALL
            .into_iter()
            .zip(&self.requests)
            .filter(|(_, of)| !of.latency_us.is_empty() || of.refused + of.unanswered > 0)
            .map(|(request, of)| of.summary(request))
            .collect();
        Summary {
            devices,
            ready,
            duration_s: now.saturating_duration_since(self.began).as_secs_f64(),
            lost: requests.iter().map(|request| request.lost).sum(),
            refused: requests.iter().map(|request| request.refused).sum(),
            requests,
            triggers: self.triggers,
            asked: self.asked,
            torn_down: self.torn_down,
        }
    }

    fn of(&mut self, request: Request) -> &mut OfRequest {
        let index = match request {
            Request::Register => 0,
            Request::Refresh => 1,
            Request::Session => 2,
            Request::Token => 3,
            Request::Deregister => 4,
        };
        &mut self.requests[index]
    }
}

impl OfRequest {
    fn summary(&self, request: Request) -> RequestSummary {
        let answered = self.latency_us.len();
        let seconds = self.span.map_or(0.0, |(first, last)| {
            last.saturating_duration_since(first).as_secs_f64()
        });
        let at = |quantile| self.latency_us.value_at_quantile(quantile) as f64 / 1e3;
        RequestSummary {
            request,
            answered,
            refused: self.refused,
            lost: self.unanswered,
            retransmissions: self.retransmissions,
            per_second: if seconds > 0.0 {
                answered as f64 / seconds
            } else {
                0.0
            },
            p50_ms: at(0.5),
            p99_ms: at(0.99),
            p99_9_ms: at(0.999),
            max_ms: self.latency_us.max() as f64 / 1e3,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_counted_by_kind_and_rated_over_their_time() {
        let begin = Instant::now();
        let at = |ms| begin + Duration::from_millis(ms);
        let mut tally = Tally::new(begin);
        for n in 1..=100 {
            let took = Duration::from_millis(if n == 100 { 90 } else { 10 });
            tally.count(at(10 * n), &News::Answered(Request::Register, took));
        }
        tally.count(at(1), &News::Retransmitted(Request::Refresh));
        tally.count(at(2), &News::Unanswered(Request::Refresh));
        let summary = tally.summary(at(2_000), 100, 99);
        assert_eq!(
            (summary.lost, summary.refused, tally.answered()),
            (1, 0, 100)
        );
        let [register, refresh] = &summary.requests[..] else {
            panic!("{summary:?}");
        };
        assert_eq!(
            (register.request, register.answered),
            (Request::Register, 100)
        );
        assert!((register.per_second - 100.0).abs() < 0.01, "{register:?}");
        assert!((register.p50_ms - 10.0).abs() < 0.2, "{register:?}");
        assert!((register.max_ms - 90.0).abs() < 2.0, "{register:?}");
        assert_eq!((refresh.lost, refresh.retransmissions), (1, 1));
    }
}
