//! Terminals and sessions.

use super::none;
use crate::admin::api::{
    SessionRevoked, SessionStatus, SetTunnel, TerminalStatus, TunnelSet, TunnelStatus,
};
use crate::cli::client::Question;
use crate::cli::people::{Table, ago, amount, lifetime, milliseconds};
use crate::sessions::records::RegistrationId;
use push_common::wire::SessionId;
use reqwest::Method;
use serde_json::json;

pub(in crate::cli) fn terminal_list() -> Question<Vec<TerminalStatus>> {
    Question::get("/v1/terminals", |terminals: &Vec<TerminalStatus>| {
        let mut table = Table::new(&[
            "TERMINAL", "ENDPOINT", "ADDRESS", "REALM", "STATE", "EXPIRES", "SESSIONS",
        ]);
        for terminal in terminals {
            table.row([
                terminal.id.clone(),
                terminal.endpoint.clone(),
                terminal.address.to_string(),
                terminal.realm.clone().unwrap_or_else(none),
                state(&terminal.state, terminal.cause.as_ref()),
                terminal.expires_in_s.map_or_else(none, lifetime),
                terminal.sessions.to_string(),
            ]);
        }
        table.or_say("No terminals.")
    })
}

pub(in crate::cli) fn terminal_show(id: RegistrationId) -> Question<TerminalStatus> {
    Question::get(
        format!("/v1/terminals/{id}"),
        |terminal: &TerminalStatus| {
            let mut facts = Table::facts();
            facts.fact("terminal", &terminal.id);
            facts.fact("endpoint", &terminal.endpoint);
            facts.fact("address", terminal.address);
            facts.fact("realm", terminal.realm.clone().unwrap_or_else(none));
            facts.fact("registered at", terminal.gateway);
            facts.fact("state", state(&terminal.state, terminal.cause.as_ref()));
            facts.fact(
                "expires in",
                terminal.expires_in_s.map_or_else(none, lifetime),
            );
            facts.fact("sessions", terminal.sessions);
            facts.to_string()
        },
    )
}

pub(in crate::cli) fn session_list(all: bool) -> Question<Vec<SessionStatus>> {
    let path = if all {
        "/v1/sessions?ended"
    } else {
        "/v1/sessions"
    };
    Question::get(path, |sessions: &Vec<SessionStatus>| {
        let head = [
            "SESSION",
            "APPLICATION",
            "INSTANCE",
            "DEVICE",
            "REALM",
            "STATE",
            "EXPIRES",
            "DELIVERED",
            "REFUSED",
            "ACKED",
            "LAST",
            "NEXT HOP",
        ];
        let mut table = Table::new(&head);
        for session in sessions {
            table.row([
                session.id.clone(),
                session.app.clone(),
                session.instance.clone(),
                session
                    .device
                    .map_or_else(none, |device| device.to_string()),
                session.realm.clone().unwrap_or_else(none),
                state(&session.state, session.cause.as_ref()),
                session.expires_in_s.map_or_else(none, lifetime),
                amount(session.packets),
                amount(session.refused.into()),
                amount(session.acknowledged.into()),
                session.last_delivered_ago_s.map_or_else(none, ago),
                next_hop(session.next_hop.as_deref()),
            ]);
        }
        table.or_say("No sessions.")
    })
}

pub(in crate::cli) fn session_show(id: SessionId) -> Question<SessionStatus> {
    Question::get(format!("/v1/sessions/{id}"), |session: &SessionStatus| {
        let mut facts = Table::facts();
        facts.fact("session", &session.id);
        facts.fact("application", &session.app);
        facts.fact("instance", &session.instance);
        facts.fact("terminal", &session.terminal);
        facts.fact(
            "device",
            session
                .device
                .map_or_else(none, |device| device.to_string()),
        );
        facts.fact("realm", session.realm.clone().unwrap_or_else(none));
        facts.fact("tunnel", session.tunnel.map_or_else(none, tunnel));
        facts.fact("next hop", next_hop(session.next_hop.as_deref()));
        facts.fact("state", state(&session.state, session.cause.as_ref()));
        facts.fact(
            "token generation",
            session
                .token_generation
                .map_or_else(none, |generation| generation.to_string()),
        );
        facts.fact(
            "expires in",
            session.expires_in_s.map_or_else(none, lifetime),
        );
        facts.fact(
            "delivered",
            format!(
                "{} ({} bytes)",
                amount(session.packets),
                amount(session.bytes)
            ),
        );
        facts.fact(
            "last delivered",
            session.last_delivered_ago_s.map_or_else(none, ago),
        );
        facts.fact("refused", amount(session.refused.into()));
        facts.fact("acknowledged", amount(session.acknowledged.into()));
        facts.fact(
            "round trip",
            session.round_trip_ms.map_or_else(none, milliseconds),
        );
        facts.to_string()
    })
}

pub(in crate::cli) fn session_revoke(id: SessionId) -> Question<SessionRevoked> {
    Question::act(
        Method::POST,
        format!("/v1/sessions/{id}/revoke"),
        None,
        |revoked: &SessionRevoked| format!("Session {} is revoked.\n", revoked.id),
    )
}

pub(in crate::cli) fn tunnel_set(id: SessionId, tunnel: SetTunnel) -> Question<TunnelSet> {
    Question::act(
        Method::PUT,
        format!("/v1/sessions/{id}/tunnel"),
        Some(json!(tunnel)),
        tell_tunnel,
    )
}

pub(in crate::cli) fn tunnel_clear(id: SessionId) -> Question<TunnelSet> {
    Question::act(
        Method::DELETE,
        format!("/v1/sessions/{id}/tunnel"),
        None,
        tell_tunnel,
    )
}

fn tell_tunnel(set: &TunnelSet) -> String {
    match set.tunnel {
        Some(by) => format!(
            "The device of session {} is reached by {}.\n",
            set.id,
            tunnel(by)
        ),
        None => format!(
            "The device of session {} is reached by no tunnel.\n",
            set.id
        ),
    }
}

fn tunnel(tunnel: TunnelStatus) -> String {
    format!("GTP-U to {}, TEID {:#010x}", tunnel.peer, tunnel.teid)
}

fn next_hop(state: Option<&str>) -> String {
    state.map_or_else(none, |state| state.replace('_', " "))
}

fn state(state: &str, cause: Option<&String>) -> String {
    let state = state.replace('_', " ");
    cause.map_or_else(
        || state.clone(),
        |cause| format!("{state} ({})", cause.replace('_', " ")),
    )
}
