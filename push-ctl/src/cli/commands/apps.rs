//! Applications, and what they may do.

use super::servers;
use crate::admin::api::{AppAdded, AppRemoved, AppStatus, PolicyChange, PolicyStatus, RateStatus};
use crate::cli::client::Question;
use crate::cli::people::{Table, plural};
use crate::cli::policy::rate_text;
use reqwest::Method;
use serde_json::json;
use std::time::Duration;

pub(in crate::cli) fn app_add(name: &str, policy: &PolicyChange) -> Question<AppAdded> {
    Question::act(
        Method::POST,
        "/v1/apps",
        Some(json!({ "name": name, "policy": policy })),
        |added: &AppAdded| {
            format!(
                "Application {} is added. Its key, which is shown this once only:\n{}\n",
                added.name, added.api_key
            )
        },
    )
}

pub(in crate::cli) fn app_list() -> Question<Vec<AppStatus>> {
    Question::get("/v1/apps", |apps: &Vec<AppStatus>| {
        let mut table = Table::new(&["APPLICATION", "ADDED", "STATE", "SESSIONS", "POLICY"]);
        for app in apps {
            table.row([
                app.name.clone(),
                app.created_at.clone(),
                servers::state(&app.availability),
                app.sessions.to_string(),
                summary(&app.policy),
            ]);
        }
        table.or_say("No applications; `push-ctl app add NAME` adds one.")
    })
}

pub(in crate::cli) fn app_show(name: &str) -> Question<AppStatus> {
    Question::get(format!("/v1/apps/{}", super::segment(name)), facts)
}

pub(in crate::cli) fn app_set(name: &str, change: &PolicyChange) -> Question<AppStatus> {
    Question::act(
        Method::PATCH,
        format!("/v1/apps/{}", super::segment(name)),
        Some(json!(change)),
        facts,
    )
}

pub(in crate::cli) fn app_remove(name: &str) -> Question<AppRemoved> {
    Question::act(
        Method::DELETE,
        format!("/v1/apps/{}", super::segment(name)),
        None,
        |removed: &AppRemoved| {
            format!(
                "Application {} is removed; {} ended.\n",
                removed.name,
                plural(removed.sessions_ended, "session")
            )
        },
    )
}

pub(super) fn facts(app: &AppStatus) -> String {
    let PolicyStatus {
        rate,
        sources,
        max_payload_bytes,
        dscp,
        coalescing_window_ms,
        return_acks,
    } = &app.policy;
    let mut facts = Table::facts();
    facts.fact("application", &app.name);
    facts.fact("added", &app.created_at);
    facts.fact("sessions", app.sessions);
    let rate = rate.as_ref().map(|rate| {
        let burst = plural(rate.burst, "trigger");
        format!("{}, {burst} at once", rate_of(rate))
    });
    facts.fact(
        "rate per session",
        rate.unwrap_or_else(|| "not limited".to_owned()),
    );
    facts.fact(
        "granted in all",
        app.triggers_per_second_granted.map_or_else(
            || "not limited".to_owned(),
            |granted| format!("{granted} triggers/s"),
        ),
    );
    let sources = if sources.is_empty() {
        "any".to_owned()
    } else {
        sources.join(" ")
    };
    facts.fact("sources", sources);
    let payload = match max_payload_bytes {
        None => "not limited".to_owned(),
        Some(0) => "none".to_owned(),
        Some(bytes) => format!("{} at most", plural(*bytes, "byte")),
    };
    facts.fact("payload", payload);
    facts.fact(
        "DSCP",
        dscp.map_or_else(|| "kept".to_owned(), |dscp| dscp.to_string()),
    );
    facts.fact(
        "coalescing window",
        coalescing_window_ms.map_or_else(super::none, window),
    );
    facts.fact(
        "acknowledgements",
        if *return_acks {
            "counted and returned"
        } else {
            "counted"
        },
    );
    servers::tell(&mut facts, app);
    facts.to_string()
}

/// The rules there are, in a few words.
fn summary(policy: &PolicyStatus) -> String {
    let PolicyStatus {
        rate,
        sources,
        max_payload_bytes,
        dscp,
        coalescing_window_ms,
        return_acks,
    } = policy;
    let payload = |bytes| match bytes {
        0 => "no payload".to_owned(),
        bytes => format!("up to {}", plural(bytes, "byte")),
    };
    let rules = [
        rate.as_ref().map(rate_of),
        (!sources.is_empty()).then(|| plural(sources.len(), "source")),
        max_payload_bytes.map(payload),
        dscp.map(|dscp| format!("DSCP {dscp}")),
        coalescing_window_ms.map(|ms| format!("one in {}", window(ms))),
        return_acks.then(|| "acks".to_owned()),
    ];
    let rules: Vec<_> = rules.into_iter().flatten().collect();
    if rules.is_empty() {
        return "open".to_owned();
    }
    rules.join(", ")
}

fn rate_of(rate: &RateStatus) -> String {
    rate_text(Duration::from_nanos(rate.interval_ns))
}

fn window(ms: u64) -> String {
    humantime::format_duration(Duration::from_millis(ms)).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::api::{AvailabilityStatus, QuotaStatus};

    #[test]
    fn a_policy_is_told_of_in_a_few_words() {
        assert_eq!(summary(&PolicyStatus::default()), "open");
        let policy = PolicyStatus {
            rate: Some(RateStatus {
                interval_ns: 100_000_000,
                burst: 3,
            }),
            sources: vec!["192.0.2.0/24".to_owned()],
            max_payload_bytes: Some(0),
            dscp: Some(46),
            coalescing_window_ms: Some(5000),
            return_acks: true,
        };
        assert_eq!(
            summary(&policy),
            "10/s, 1 source, no payload, DSCP 46, one in 5s, acks"
        );
        let app = AppStatus {
            name: "mail".to_owned(),
            created_at: "2026-01-01T00:00:00Z".to_owned(),
            sessions: 2,
            triggers_per_second_granted: Some(20.0),
            policy,
            credentials: Vec::new(),
            quotas: QuotaStatus::default(),
            monitor: None,
            availability: AvailabilityStatus {
                available: true,
                cause: None,
                since: None,
            },
        };
        let text = facts(&app);
        for words in [
            "10/s, 3 triggers at once",
            "20 triggers/s",
            "192.0.2.0/24",
            "none",
            "46",
            "5s",
            "returned",
        ] {
            assert!(text.contains(words), "{text}");
        }
    }
}
