//! What an application may do, as options: each is a rule, and `off` takes it back.

use super::Failure;
use crate::admin::api::{PolicyChange, RateChange};
use ipnet::IpNet;
use push_common::wire::MAX_PAYLOAD_LEN;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::str::FromStr;
use std::time::Duration;

/// Units of rates, and how long they are.
const UNITS: [(&str, Duration); 3] = [
    ("s", Duration::from_secs(1)),
    ("m", Duration::from_mins(1)),
    ("h", Duration::from_hours(1)),
];

/// The rules of an application
#[derive(Debug, clap::Args)]
pub(super) struct PolicyOptions {
    /// How many triggers are let through, for each session of the application by itself: 10/s, 6/m, 100/h
    #[arg(long, value_name = "N/UNIT|off")]
    rate: Option<Setting<RateText>>,
    /// How many triggers may come at once; the N of --rate unless given
    #[arg(long, value_name = "N")]
    burst: Option<NonZeroU32>,
    /// Take triggers only from these addresses; may be repeated, and replaces what was set before
    #[arg(long, value_name = "PREFIX|off")]
    source: Vec<Setting<Prefix>>,
    /// Longest payload that is let through
    #[arg(long, value_name = "BYTES|off")]
    max_payload: Option<Setting<Bounded<{ MAX_PAYLOAD_LEN as u16 }>>>,
    /// Let no payload through; the same as --max-payload 0
    #[arg(long, conflicts_with = "max_payload")]
    no_payload: bool,
    /// Differentiated services code point that triggers get
    #[arg(long, value_name = "0..63|off")]
    dscp: Option<Setting<Bounded<63>>>,
    /// Within this time of a delivery, absorb triggers with the same collapse key
    #[arg(long, value_name = "DURATION|off")]
    coalesce: Option<Setting<humantime::Duration>>,
    /// Send acknowledgements of devices on to the server that sent the trigger
    #[arg(long, value_name = "on|off", num_args = 0..=1, require_equals = true, default_missing_value = "on")]
    return_acks: Option<Switch>,
}

/// All options of [`PolicyOptions`], one of which it takes for there to be something to change.
pub(super) const OPTIONS: [&str; 8] = [
    "rate",
    "burst",
    "source",
    "max_payload",
    "no_payload",
    "dscp",
    "coalesce",
    "return_acks",
];

impl PolicyOptions {
    /// What they ask the daemon to change.
    pub(super) fn change(&self) -> Result<PolicyChange, Failure> {
        let burst = self.burst.map(NonZeroU32::get);
        let rate = match (&self.rate, burst) {
            (None, None) => None,
            (Some(Setting::Off), None) => Some(None),
            (Some(Setting::Off), Some(_)) => {
                return Err(Failure::usage("--burst makes no sense with --rate off"));
            }
            (None, burst @ Some(_)) => Some(Some(RateChange {
                interval_ns: None,
                burst,
            })),
            (Some(Setting::To(rate)), burst) => Some(Some(RateChange {
                interval_ns: Some(rate.interval_ns),
                burst: Some(burst.unwrap_or(rate.number.get())),
            })),
        };
        let max_payload = if self.no_payload {
            Some(Some(0))
        } else {
            self.max_payload
                .as_ref()
                .map(|bytes| bytes.value().map(|&Bounded(bytes)| bytes))
        };
        let window_ms =
            |window: &humantime::Duration| u64::try_from(window.as_millis()).unwrap_or(u64::MAX);
        Ok(PolicyChange {
            rate,
            sources: self.sources()?,
            max_payload_bytes: max_payload,
            dscp: self
                .dscp
                .as_ref()
                .map(|dscp| dscp.value().map(|&Bounded(dscp)| dscp as u8)),
            coalescing_window_ms: self
                .coalesce
                .as_ref()
                .map(|window| window.value().map(window_ms)),
            return_acks: self.return_acks.map(|switch| match switch {
                Switch::On => true,
                Switch::Off => false,
            }),
        })
    }

    fn sources(&self) -> Result<Option<Vec<String>>, Failure> {
        let prefixes: Vec<_> = self.source.iter().filter_map(Setting::value).collect();
        match (&self.source[..], prefixes.len()) {
            ([], _) => Ok(None),
            ([Setting::Off], _) => Ok(Some(Vec::new())),
            (all, count) if all.len() == count => {
                let texts = prefixes
                    .into_iter()
                    .map(|Prefix(prefix)| prefix.to_string());
                Ok(Some(texts.collect()))
            }
            _ => Err(Failure::usage(
                "--source off makes no sense with another --source",
            )),
        }
    }
}

/// How often triggers come that are this far apart, as an operator would say it.
pub(super) fn rate_text(interval: Duration) -> String {
    let exact = UNITS.iter().find_map(|&(unit, length)| {
        let (length_ns, interval_ns) = (length.as_nanos(), interval.as_nanos());
        let number = (length_ns + interval_ns / 2).checked_div(interval_ns)?;
        let is_exact = number > 0 && length_ns.div_ceil(number) == interval_ns;
        is_exact.then(|| format!("{number}/{unit}"))
    });
    exact.unwrap_or_else(|| format!("one in {}", humantime::format_duration(interval)))
}

/// A rule, or that there is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Setting<T> {
    Off,
    To(T),
}

impl<T> Setting<T> {
    pub(super) const fn value(&self) -> Option<&T> {
        match self {
            Self::Off => None,
            Self::To(value) => Some(value),
        }
    }
}

impl<T: FromStr> FromStr for Setting<T> {
    type Err = T::Err;

    fn from_str(text: &str) -> Result<Self, T::Err> {
        if text == "off" {
            return Ok(Self::Off);
        }
        text.parse().map(Self::To)
    }
}

/// `on` or `off`
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Switch {
    On,
    Off,
}

/// `10/s`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct RateText {
    number: NonZeroU32,
    /// Rounded up: rather a little too few than one too many.
    interval_ns: u64,
}

/// A text that is no rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("write for example 10/s, 6/m, 100/h or off")]
struct BadRate;

impl FromStr for RateText {
    type Err = BadRate;

    fn from_str(text: &str) -> Result<Self, BadRate> {
        let (number, unit) = text.split_once('/').ok_or(BadRate)?;
        let number: NonZeroU32 = number.parse().map_err(|_| BadRate)?;
        let &(_, length) = UNITS
            .iter()
            .find(|(name, _)| *name == unit)
            .ok_or(BadRate)?;
        let interval_ns = length.as_nanos().div_ceil(number.get().into());
        Ok(Self {
            number,
            interval_ns: u64::try_from(interval_ns).map_err(|_| BadRate)?,
        })
    }
}

/// A number from 0 to `MAX`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Bounded<const MAX: u16>(u16);

impl<const MAX: u16> FromStr for Bounded<MAX> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse() {
            Ok(number) if number <= MAX => Ok(Self(number)),
            Ok(_) | Err(_) => Err(format!("write a number from 0 to {MAX}, or off")),
        }
    }
}

/// A prefix, or an address, which is one of full length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Prefix(IpNet);

/// A text that is no prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("write for example 192.0.2.0/24, 2001:db8::7 or off")]
struct BadPrefix;

impl FromStr for Prefix {
    type Err = BadPrefix;

    fn from_str(text: &str) -> Result<Self, BadPrefix> {
        text.parse::<IpNet>()
            .or_else(|_| text.parse::<IpAddr>().map(IpNet::from))
            .map(Self)
            .map_err(|_| BadPrefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use serde_json::{Value, json};

    #[derive(Debug, clap::Parser)]
    struct Command {
        #[command(flatten)]
        options: PolicyOptions,
    }

    fn change(arguments: &[&str]) -> Result<Value, String> {
        let arguments = ["app"].iter().chain(arguments);
        let command = Command::try_parse_from(arguments).map_err(|error| error.to_string())?;
        let change = command.options.change().map_err(|failure| failure.error)?;
        Ok(json!(change))
    }

    #[test]
    fn each_option_is_a_rule_and_off_takes_it_back() {
        let cases: [(&[&str], Value); 17] = [
            (&[], json!({})),
            (
                &["--rate", "10/s"],
                json!({ "rate": { "interval_ns": 100_000_000, "burst": 10 } }),
            ),
            (
                &["--rate", "6/m", "--burst", "2"],
                json!({ "rate": { "interval_ns": 10_000_000_000_u64, "burst": 2 } }),
            ),
            (
                &["--rate", "7/s"],
                json!({ "rate": { "interval_ns": 142_857_143, "burst": 7 } }),
            ),
            (&["--burst", "5"], json!({ "rate": { "burst": 5 } })),
            (&["--rate", "off"], json!({ "rate": null })),
            (
                &["--source", "192.0.2.0/24", "--source", "2001:db8::7"],
                json!({ "sources": ["192.0.2.0/24", "2001:db8::7/128"] }),
            ),
            (&["--source", "off"], json!({ "sources": [] })),
            (
                &["--max-payload", "100"],
                json!({ "max_payload_bytes": 100 }),
            ),
            (
                &["--max-payload", "off"],
                json!({ "max_payload_bytes": null }),
            ),
            (&["--no-payload"], json!({ "max_payload_bytes": 0 })),
            (&["--dscp", "46"], json!({ "dscp": 46 })),
            (&["--dscp", "off"], json!({ "dscp": null })),
            (
                &["--coalesce", "1m 30s"],
                json!({ "coalescing_window_ms": 90_000 }),
            ),
            (
                &["--coalesce", "off"],
                json!({ "coalescing_window_ms": null }),
            ),
            (&["--return-acks"], json!({ "return_acks": true })),
            (&["--return-acks=off"], json!({ "return_acks": false })),
        ];
        for (arguments, expected) in cases {
            assert_eq!(change(arguments), Ok(expected), "{arguments:?}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_an_example() {
        let cases: [(&[&str], &str); 9] = [
            (
                &["--rate", "10"],
                "write for example 10/s, 6/m, 100/h or off",
            ),
            (&["--rate", "0/s"], "write for example"),
            (&["--rate", "1/d"], "write for example"),
            (&["--burst", "0"], "invalid value '0'"),
            (&["--rate", "off", "--burst", "2"], "--burst makes no sense"),
            (
                &["--source", "everywhere"],
                "192.0.2.0/24, 2001:db8::7 or off",
            ),
            (
                &["--source", "off", "--source", "192.0.2.7"],
                "--source off makes no sense",
            ),
            (
                &["--no-payload", "--max-payload", "3"],
                "cannot be used with",
            ),
            (&["--return-acks=maybe"], "invalid value 'maybe'"),
        ];
        for (arguments, expected) in cases {
            let refused = change(arguments).unwrap_err();
            assert!(refused.contains(expected), "{arguments:?}: {refused}");
        }
    }

    #[test]
    fn a_rate_reads_back_as_it_was_written() {
        for text in [
            "1/s",
            "10/s",
            "7/s",
            "90/m",
            "6/m",
            "100/h",
            "1/h",
            "1000000/s",
        ] {
            let rate: RateText = text.parse().unwrap();
            assert_eq!(rate_text(Duration::from_nanos(rate.interval_ns)), text);
        }
        assert_eq!(rate_text(Duration::from_mins(90)), "one in 1h 30m");
        assert_eq!(rate_text(Duration::ZERO), "one in 0s");
    }
}
