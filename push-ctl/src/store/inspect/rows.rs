//! Records as JSON, without anything that lets its reader sign or validate.

use crate::dataplane::Policy;
use crate::sessions::records::{
    App, Availability, Credential, Monitor, OperativeState, Previous, Proof, Quotas, Session,
    SessionState, Terminal, Tokens, UnixTime,
};
use push_common::replay::newest;
use serde_json::{Value, json};
use std::time::Duration;

pub(super) fn terminal(terminal: &Terminal) -> Value {
    let Terminal {
        id,
        endpoint,
        path,
        port,
        lifetime,
        state,
    } = terminal;
    let state = match *state {
        OperativeState::First { expires } => {
            json!({ "name": "first_operative", "expires_at": time(expires) })
        }
        OperativeState::Second { since, cause } => {
            json!({ "name": "second_operative", "since": time(since), "cause": cause.label() })
        }
        OperativeState::Suspended { since, expires } => {
            json!({ "name": "suspended", "since": time(since), "expires_at": time(expires) })
        }
    };
    json!({
        "record": "terminal",
        "id": id.to_string(),
        "endpoint": endpoint.as_str(),
        "realm": path.realm.as_ref().map(ToString::to_string),
        "address": path.is_known().then_some(path.device),
        "port": port,
        "gateway": path.is_known().then_some(path.gateway),
        "lifetime_s": lifetime.as_secs(),
        "state": state,
    })
}

pub(super) fn session(session: &Session) -> Value {
    let Session {
        id,
        terminal,
        app,
        instance,
        port,
        tunnel,
        window,
        state,
    } = session;
    let state = match state {
        SessionState::Requested(token) => {
            json!({ "name": "requested", "token_generation": token.generation })
        }
        SessionState::Authorised(Tokens {
            current,
            previous,
            next,
            rotate_by,
        }) => {
            let previous = previous.as_ref().map(|Previous { token, until }| {
                json!({ "token_generation": token.generation, "valid_until": time(*until) })
            });
            json!({
                "name": "authorised",
                "token_generation": current.generation,
                "previous": previous,
                "next_token_generation": next.as_ref().map(|next| next.generation),
                "rotate_by": rotate_by.map(time),
            })
        }
        SessionState::Ended { at, cause } => {
            json!({ "name": "ended", "at": time(*at), "cause": cause.label() })
        }
    };
    json!({
        "record": "session",
        "id": id.to_string(),
        "slot": id.slot(),
        "terminal": terminal.to_string(),
        "app": app.as_str(),
        "instance": instance.as_str(),
        "port": port,
        "tunnel": tunnel.map(|tunnel| json!({ "peer": tunnel.peer, "teid": tunnel.teid })),
        "newest_sequence": window.as_deref().map(|words| words.iter().copied().map(newest).max()),
        "state": state,
    })
}

pub(super) fn app(app: &App) -> Value {
    let App {
        name,
        created,
        policy_slot,
        policy,
        credentials,
        quotas,
        monitor,
        availability,
        removed,
    } = app;
    let Quotas {
        sessions,
        sessions_per_terminal,
        validations_per_minute,
        triggers_per_second,
    } = quotas;
    let availability = match availability {
        Availability::Available => json!({ "name": "available" }),
        Availability::Failed { since, cause } => {
            json!({ "name": "failed", "since": time(*since), "cause": cause.label() })
        }
    };
    json!({
        "record": "app",
        "name": name.as_str(),
        "created_at": time(*created),
        "policy_slot": policy_slot,
        "policy": self::policy(policy),
        "credentials": credentials.iter().map(credential).collect::<Vec<_>>(),
        "quotas": {
            "sessions": sessions,
            "sessions_per_terminal": sessions_per_terminal,
            "validations_per_minute": validations_per_minute,
            "triggers_per_second": triggers_per_second,
        },
        "monitor": monitor.as_ref().map(self::monitor),
        "availability": availability,
        "removed": removed,
    })
}

/// The hash of what it is made from is left out.
fn credential(credential: &Credential) -> Value {
    let Credential {
        id,
        proof,
        created,
        expires,
    } = credential;
    let kind = match proof {
        Proof::ApiKey(_) | Proof::ApiKeySha256(_) => "api_key",
        Proof::Certificate(_) => "certificate",
    };
    json!({
        "id": id.to_string(),
        "kind": kind,
        "created_at": time(*created),
        "expires_at": expires.map(time),
    })
}

fn monitor(monitor: &Monitor) -> Value {
    let Monitor {
        url,
        interval,
        unreachable_after,
        inactive_after,
    } = monitor;
    json!({
        "url": url.as_deref().map(without_credentials),
        "interval_s": interval.as_secs(),
        "unreachable_after_s": unreachable_after.as_secs(),
        "inactive_after_s": inactive_after.as_ref().map(Duration::as_secs),
    })
}

fn policy(policy: &Policy) -> Value {
    let Policy {
        rate,
        sources,
        max_payload,
        dscp,
        coalescing_window,
        return_acks,
    } = policy;
    let rate = rate
        .as_ref()
        .map(|rate| json!({ "interval_ns": rate.interval.as_nanos() as u64, "burst": rate.burst }));
    json!({
        "rate": rate,
        "sources": sources.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "max_payload_bytes": max_payload,
        "dscp": dscp,
        "coalescing_window_ms": coalescing_window.map(|window| window.as_millis() as u64),
        "return_acks": return_acks,
    })
}

/// The address of a server without user, password and query, which may be there to let in whoever has them.
#[must_use]
pub fn without_credentials(url: &str) -> String {
    let Ok(url) = url.parse::<reqwest::Url>() else {
        return "not a URL".to_owned();
    };
    let host = url.host_str().unwrap_or_default();
    let port = url
        .port()
        .map(|port| format!(":{port}"))
        .unwrap_or_default();
    format!("{}://{host}{port}{}", url.scheme(), url.path())
}

/// RFC 3339.
fn time(time: UnixTime) -> String {
    let millis = i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
    jiff::Timestamp::from_millisecond(millis)
        .map_or_else(|_| "never".to_owned(), |time| time.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_shows_where_and_not_who() {
        assert_eq!(
            without_credentials("https://user:pass@app.example:8443/health?key=secret#x"),
            "https://app.example:8443/health"
        );
        assert_eq!(without_credentials("secret"), "not a URL");
    }
}
