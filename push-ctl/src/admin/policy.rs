//! What an application may do, as it goes to and from the operator.

use super::api::{PolicyChange, PolicyStatus, RateChange, RateStatus};
use crate::dataplane::{Policy, Rate};
use ipnet::IpNet;
use push_common::activity::MAX_WINDOW_TICKS;
use push_common::maps::TICK_NS;
use push_common::wire::MAX_PAYLOAD_LEN;
use std::net::IpAddr;
use std::time::Duration;

/// Longest time that a trigger can cost.
const MAX_INTERVAL: Duration = Duration::from_hours(24);

/// Most triggers that can come at once.
const MAX_BURST: u32 = 1_000_000;

/// Prefixes that one application can have.
const MAX_SOURCES: usize = 256;

/// Greatest code point: 6 bits (RFC 2474).
const MAX_DSCP: u8 = 63;

/// Shortest and longest coalescing window: what the data plane can tell apart.
const MIN_WINDOW: Duration = Duration::from_millis(100);
const MAX_WINDOW: Duration = Duration::from_nanos(TICK_NS * MAX_WINDOW_TICKS as u64);

/// `policy` with this change made to it, or what makes no sense in the change.
pub(super) fn changed(policy: &Policy, change: &PolicyChange) -> Result<Policy, String> {
    let PolicyChange {
        rate,
        sources,
        max_payload_bytes,
        dscp,
        coalescing_window_ms,
        return_acks,
    } = change;
    let mut policy = policy.clone();
    if let Some(asked) = rate {
        policy.rate = match asked {
            None => None,
            Some(asked) => Some(changed_rate(policy.rate.as_ref(), asked)?),
        };
    }
    if let Some(asked) = sources {
        policy.sources = prefixes(asked)?;
    }
    if let Some(asked) = *max_payload_bytes {
        if asked.is_some_and(|bytes| usize::from(bytes) > MAX_PAYLOAD_LEN) {
            return Err(format!(
                "max_payload_bytes: a trigger never has more than {MAX_PAYLOAD_LEN}"
            ));
        }
        policy.max_payload = asked;
    }
    if let Some(asked) = *dscp {
        if let Some(dscp) = asked.filter(|&dscp| dscp > MAX_DSCP) {
            return Err(format!("dscp: {dscp} is not between 0 and {MAX_DSCP}"));
        }
        policy.dscp = asked;
    }
    if let Some(asked) = *coalescing_window_ms {
        let window = asked.map(Duration::from_millis);
        if let Some(window) = window.filter(|window| !(MIN_WINDOW..=MAX_WINDOW).contains(window)) {
            return Err(format!(
                "coalescing_window_ms: {} is not between {} and {}",
                window.as_millis(),
                MIN_WINDOW.as_millis(),
                MAX_WINDOW.as_millis()
            ));
        }
        policy.coalescing_window = window;
    }
    if let Some(asked) = *return_acks {
        policy.return_acks = asked;
    }
    Ok(policy)
}

pub(super) fn policy_status(policy: &Policy) -> PolicyStatus {
    let Policy {
        rate,
        sources,
        max_payload,
        dscp,
        coalescing_window,
        return_acks,
    } = policy;
    let whole = |number: u128| u64::try_from(number).unwrap_or(u64::MAX);
    PolicyStatus {
        rate: rate.as_ref().map(|rate| RateStatus {
            interval_ns: whole(rate.interval.as_nanos()),
            burst: rate.burst,
        }),
        sources: sources.iter().map(ToString::to_string).collect(),
        max_payload_bytes: *max_payload,
        dscp: *dscp,
        coalescing_window_ms: coalescing_window.map(|window| whole(window.as_millis())),
        return_acks: *return_acks,
    }
}

fn changed_rate(rate: Option<&Rate>, asked: &RateChange) -> Result<Rate, String> {
    let interval = asked
        .interval_ns
        .map(Duration::from_nanos)
        .or_else(|| rate.map(|rate| rate.interval))
        .ok_or("rate: a burst belongs to one, and there is none: give both")?;
    if interval.is_zero() || interval > MAX_INTERVAL {
        return Err(format!(
            "rate: one trigger in {} is not between one in 1ns and one in 24h",
            humantime::format_duration(interval)
        ));
    }
    let burst = asked.burst.or_else(|| rate.map(|rate| rate.burst));
    let burst = burst.unwrap_or(1);
    if !(1..=MAX_BURST).contains(&burst) {
        return Err(format!(
            "rate: a burst of {burst} is not between 1 and {MAX_BURST}"
        ));
    }
    Ok(Rate { interval, burst })
}

/// In order, and none that is part of another.
fn prefixes(texts: &[String]) -> Result<Vec<IpNet>, String> {
    let prefixes = texts
        .iter()
        .map(|text| prefix(text))
        .collect::<Result<Vec<_>, _>>()?;
    let mut prefixes = IpNet::aggregate(&prefixes);
    prefixes.sort_unstable();
    if prefixes.len() > MAX_SOURCES {
        return Err(format!(
            "sources: an application can have {MAX_SOURCES}, these are {}",
            prefixes.len()
        ));
    }
    Ok(prefixes)
}

fn prefix(text: &str) -> Result<IpNet, String> {
    let whole_address = || text.parse::<IpAddr>().map(IpNet::from);
    let prefix: IpNet = text
        .parse()
        .or_else(|_| whole_address())
        .map_err(|_| format!("sources: `{text}` is no prefix; write for example 192.0.2.0/24"))?;
    if prefix.addr() != prefix.network() {
        return Err(format!(
            "sources: {text} has bits beyond its length; write {}",
            prefix.trunc()
        ));
    }
    match prefix {
        IpNet::V6(v6) if v6.addr().to_ipv4_mapped().is_some() => Err(format!(
            "sources: {text} is of IPv4 in disguise; write it as such"
        )),
        IpNet::V4(_) | IpNet::V6(_) => Ok(prefix),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(json: &str) -> PolicyChange {
        serde_json::from_str(json).unwrap_or_else(|error| panic!("{json}: {error}"))
    }

    #[test]
    fn what_is_not_named_stays_and_null_takes_back() {
        let all = change(
            r#"{"rate": {"interval_ns": 100000000, "burst": 3}, "sources": ["192.0.2.0/24", "2001:db8::1"],
                "max_payload_bytes": 0, "dscp": 46, "coalescing_window_ms": 5000, "return_acks": true}"#,
        );
        let policy = changed(&Policy::default(), &all).unwrap();
        let status = policy_status(&policy);
        assert_eq!(
            serde_json::to_value(&status).unwrap(),
            serde_json::json!({
                "rate": { "interval_ns": 100_000_000, "burst": 3 },
                "sources": ["192.0.2.0/24", "2001:db8::1/128"],
                "max_payload_bytes": 0, "dscp": 46, "coalescing_window_ms": 5000, "return_acks": true,
            })
        );
        assert_eq!(changed(&policy, &PolicyChange::default()).unwrap(), policy);
        let burst = changed(&policy, &change(r#"{"rate": {"burst": 9}}"#)).unwrap();
        let rate = burst.rate.as_ref().unwrap();
        assert_eq!((rate.interval, rate.burst), (Duration::from_millis(100), 9));
        assert_eq!(
            Policy {
                rate: policy.rate,
                ..burst
            },
            policy
        );
        let none = change(
            r#"{"rate": null, "sources": [], "max_payload_bytes": null, "dscp": null,
                "coalescing_window_ms": null, "return_acks": false}"#,
        );
        assert_eq!(changed(&policy, &none).unwrap(), Policy::default());
    }

    #[test]
    fn prefixes_are_in_order_and_none_is_part_of_another() {
        let sources = change(
            r#"{"sources": ["2001:db8::/32", "192.0.2.7", "192.0.2.0/25", "192.0.2.128/25", "10.0.0.0/8"]}"#,
        );
        let policy = changed(&Policy::default(), &sources).unwrap();
        assert_eq!(
            policy_status(&policy).sources,
            ["10.0.0.0/8", "192.0.2.0/24", "2001:db8::/32"]
        );
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        let cases = [
            (r#"{"rate": {"burst": 3}}"#, "rate: a burst belongs to one"),
            (r#"{"rate": {"interval_ns": 0}}"#, "rate: one trigger in 0s"),
            (
                r#"{"rate": {"interval_ns": 86400000000001}}"#,
                "is not between one in 1ns and one in 24h",
            ),
            (
                r#"{"rate": {"interval_ns": 1, "burst": 0}}"#,
                "rate: a burst of 0 is not between 1 and 1000000",
            ),
            (
                r#"{"sources": ["example.org"]}"#,
                "sources: `example.org` is no prefix",
            ),
            (
                r#"{"sources": ["192.0.2.7/24"]}"#,
                "has bits beyond its length; write 192.0.2.0/24",
            ),
            (
                r#"{"sources": ["::ffff:192.0.2.0/120"]}"#,
                "is of IPv4 in disguise",
            ),
            (
                r#"{"max_payload_bytes": 1201}"#,
                "max_payload_bytes: a trigger never has more than 1200",
            ),
            (r#"{"dscp": 64}"#, "dscp: 64 is not between 0 and 63"),
            (
                r#"{"coalescing_window_ms": 99}"#,
                "coalescing_window_ms: 99 is not between 100 and 2199023",
            ),
            (
                r#"{"coalescing_window_ms": 2199024}"#,
                "2199024 is not between",
            ),
        ];
        for (json, expected) in cases {
            let refused = changed(&Policy::default(), &change(json)).unwrap_err();
            assert!(
                refused.contains(expected),
                "{refused}\n  should say: {expected}"
            );
        }
        let many: Vec<_> = (0..257)
            .map(|n| format!("10.{}.{}.1", n / 256, n % 256))
            .collect();
        let many = PolicyChange {
            sources: Some(many),
            ..PolicyChange::default()
        };
        let refused = changed(&Policy::default(), &many).unwrap_err();
        assert_eq!(
            refused,
            "sources: an application can have 256, these are 257"
        );
    }
}
