//! Rates: how far the counters have moved in a time.

use crate::admin::api::{NicStats, Stats, VerdictStats};
use serde::Serialize;
use std::time::Duration;

/// What happens per second.
#[derive(Debug, PartialEq, Serialize)]
pub(super) struct Rates {
    /// The end of the time, RFC 3339.
    pub(super) at: String,
    /// How long it was.
    pub(super) interval_ms: u64,
    /// By NIC.
    pub(super) nics: Vec<NicRates>,
    /// Events that weren't told of.
    pub(super) events_lost_per_s: f64,
}

/// What comes in by a NIC.
#[derive(Debug, PartialEq, Serialize)]
pub(super) struct NicRates {
    pub(super) name: String,
    pub(super) packets_per_s: f64,
    pub(super) bytes_per_s: f64,
    pub(super) verdicts: Vec<VerdictRates>,
}

/// Packets that get a verdict.
#[derive(Debug, PartialEq, Serialize)]
pub(super) struct VerdictRates {
    pub(super) verdict: String,
    pub(super) action: String,
    pub(super) packets_per_s: f64,
    pub(super) bytes_per_s: f64,
    /// Not per second: all there ever were.
    pub(super) packets: u64,
    #[serde(skip)]
    pub(super) meaning: String,
}

impl Rates {
    /// From what was counted `interval` ago to what is counted now.
    pub(super) fn between(before: &Stats, now: &Stats, interval: Duration) -> Self {
        let seconds = interval.as_secs_f64().max(1e-3);
        let nics = now.nics.iter().map(|nic| {
            let before = before.nics.iter().find(|before| before.name == nic.name);
            nic_rates(before, nic, seconds)
        });
        Self {
            at: format!("{:.3}", jiff::Timestamp::now()),
            interval_ms: u64::try_from(interval.as_millis()).unwrap_or(u64::MAX),
            nics: nics.collect(),
            events_lost_per_s: per_second(before.events_lost, now.events_lost, seconds),
        }
    }
}

fn nic_rates(before: Option<&NicStats>, now: &NicStats, seconds: f64) -> NicRates {
    // A NIC that is new begins with what it has.
    let before = before.unwrap_or(now);
    let verdict = |now: &VerdictStats| {
        let mut all = before.verdicts.iter();
        let before = all
            .find(|before| before.verdict == now.verdict)
            .unwrap_or(now);
        VerdictRates {
            verdict: now.verdict.clone(),
            action: now.action.clone(),
            packets_per_s: per_second(before.packets, now.packets, seconds),
            bytes_per_s: per_second(before.bytes, now.bytes, seconds),
            packets: now.packets,
            meaning: now.meaning.clone(),
        }
    };
    NicRates {
        name: now.name.clone(),
        packets_per_s: per_second(before.packets, now.packets, seconds),
        bytes_per_s: per_second(before.bytes, now.bytes, seconds),
        verdicts: now.verdicts.iter().map(verdict).collect(),
    }
}

/// To three digits. Counters only ever go up, but for those of maps that were made anew.
fn per_second(before: u64, now: u64, seconds: f64) -> f64 {
    (now.saturating_sub(before) as f64 * 1e3 / seconds).round() / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stats(packets: u64, bytes: u64) -> Stats {
        let verdict = VerdictStats {
            verdict: "redirected".to_owned(),
            action: "redirect".to_owned(),
            packets,
            bytes,
            meaning: String::new(),
        };
        let nic = NicStats {
            name: "eth1".to_owned(),
            packets,
            bytes,
            verdicts: vec![verdict],
            round_trips: Vec::new(),
        };
        Stats {
            nics: vec![nic],
            events_lost: packets,
        }
    }

    #[test]
    fn a_rate_is_what_was_added_by_the_time_it_took() {
        let rates = |before, now| Rates::between(&before, &now, Duration::from_millis(500));
        let found = rates(stats(10, 1000), stats(20, 3000));
        assert_eq!(found.interval_ms, 500);
        assert_eq!(
            (found.nics[0].packets_per_s, found.nics[0].bytes_per_s),
            (20.0, 4000.0)
        );
        let verdict = &found.nics[0].verdicts[0];
        assert_eq!((verdict.packets_per_s, verdict.packets), (20.0, 20));
        assert_eq!(found.events_lost_per_s, 20.0);
        // Maps that were made anew, and a NIC that is.
        assert_eq!(rates(stats(10, 0), stats(0, 0)).nics[0].packets_per_s, 0.0);
        let none = Stats {
            nics: Vec::new(),
            events_lost: 0,
        };
        assert_eq!(rates(none, stats(7, 0)).nics[0].packets_per_s, 0.0);
    }
}
