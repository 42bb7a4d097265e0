//! What becomes of packets: up to now, or per second.

use super::gateway;
use crate::admin::api::Stats as Counted;
use crate::cli::client;
use crate::cli::people::{Table, amount, plural, rate};
use crate::cli::rates::{NicRates, Rates};
use crate::cli::{Failure, Output, live};
use std::io::{self, IsTerminal};
use std::path::Path;
use std::time::{Duration, Instant};

/// Below this, what the asking takes would be part of the rates.
const SHORTEST: Duration = Duration::from_millis(100);

/// Clears the screen, and begins at its top.
const CLEAR: &str = "\x1b[H\x1b[2J";

/// Which verdicts, and how often.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Stats {
    /// Also verdicts that no packet got
    #[arg(long)]
    all: bool,
    /// Show what happens per second, this often (1s unless given), until interrupted
    #[arg(long, value_name = "INTERVAL", num_args = 0..=1, default_missing_value = "1s", value_parser = interval)]
    watch: Option<Duration>,
}

impl Stats {
    pub(in crate::cli) fn dispatch(&self, socket: &Path, as_json: bool) -> Result<Output, Failure> {
        match self.watch {
            None => client::ask(socket, gateway::stats(self.all)),
            Some(interval) => self.watch(socket, interval, as_json),
        }
    }

    fn watch(&self, socket: &Path, interval: Duration, as_json: bool) -> Result<Output, Failure> {
        let look = || {
            client::get(socket, "/v1/stats", client::TIMEOUT)
                .map(|stats: Counted| (Instant::now(), stats))
        };
        let redraws = !as_json && io::stdout().is_terminal();
        let mut before = look()?;
        let mut next = before.0;
        loop {
            next += interval;
            if !wait_until(next) {
                return Ok(Output::nothing());
            }
            let now = look()?;
            let rates = Rates::between(&before.1, &now.1, now.0 - before.0);
            let text = if as_json {
                let json = serde_json::to_string(&rates);
                json.map_err(|error| Failure::new(error.to_string()))? + "\n"
            } else {
                let clear = if redraws { CLEAR } else { "" };
                format!("{clear}{}", people(&rates, self.all))
            };
            if !live::print(&text)? {
                return Ok(Output::nothing());
            }
            before = now;
        }
    }
}

/// False if nobody reads any more meanwhile.
fn wait_until(time: Instant) -> bool {
    loop {
        let left = time.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return live::is_read();
        }
        std::thread::sleep(left.min(live::LOOK_EVERY));
        if !live::is_read() {
            return false;
        }
    }
}

/// At least [`SHORTEST`].
pub(in crate::cli) fn interval(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(interval) if interval >= SHORTEST => Ok(interval),
        Ok(_) => Err(format!("{}ms is the shortest", SHORTEST.as_millis())),
        Err(_) => Err("write for example 2s or 500ms".to_owned()),
    }
}

fn people(rates: &Rates, all: bool) -> String {
    let nics = rates.nics.iter().map(|nic| of_nic(nic, all));
    let nics: Vec<_> = nics.collect();
    let mut text = format!("{}\n{}", rates.at, nics.join(""));
    if rates.events_lost_per_s > 0.0 {
        text.push_str(&format!(
            "{} events/s lost.\n",
            rate(rates.events_lost_per_s)
        ));
    }
    text + "\n"
}

fn of_nic(nic: &NicRates, all: bool) -> String {
    let mut table = Table::new(&["VERDICT", "ACTION", "PACKETS/S", "BYTES/S", "PACKETS"]);
    for verdict in &nic.verdicts {
        if all || verdict.packets_per_s > 0.0 {
            table.row([
                verdict.verdict.clone(),
                verdict.action.clone(),
                rate(verdict.packets_per_s),
                rate(verdict.bytes_per_s),
                amount(verdict.packets),
            ]);
        }
    }
    let total: u64 = nic.verdicts.iter().map(|verdict| verdict.packets).sum();
    let sum = format!(
        "{}: {} packets/s, {} bytes/s; {} so far",
        nic.name,
        rate(nic.packets_per_s),
        rate(nic.bytes_per_s),
        plural(total, "packet")
    );
    format!("{sum}\n{}", table.or_say("No packets."))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::rates::VerdictRates;

    #[test]
    fn what_does_not_happen_is_not_shown_unless_asked_for() {
        let verdict = |name: &str, packets_per_s: f64| VerdictRates {
            verdict: name.to_owned(),
            action: "drop".to_owned(),
            packets_per_s,
            bytes_per_s: packets_per_s * 100.0,
            packets: 5000,
            meaning: String::new(),
        };
        let rates = Rates {
            at: "2026-11-22T03:00:00.000Z".to_owned(),
            interval_ms: 1000,
            nics: vec![NicRates {
                name: "eth1".to_owned(),
                packets_per_s: 1234.0,
                bytes_per_s: 123_400.0,
                verdicts: vec![verdict("bad_tag", 1234.0), verdict("expired", 0.0)],
            }],
            events_lost_per_s: 0.0,
        };
        let text = people(&rates, false);
        assert_eq!(
            text,
            "2026-11-22T03:00:00.000Z\n\
             eth1: 1,234 packets/s, 123,400 bytes/s; 10,000 packets so far\n\
             VERDICT  ACTION  PACKETS/S  BYTES/S  PACKETS\n\
             bad_tag  drop        1,234  123,400    5,000\n\n"
        );
        assert!(people(&rates, true).contains("expired"));
    }

    #[test]
    fn an_interval_is_long_enough_to_mean_something() {
        assert_eq!(interval("2s"), Ok(Duration::from_secs(2)));
        assert!(interval("10ms").is_err_and(|why| why.contains("100ms")));
        assert!(interval("often").is_err());
    }
}
