//! The commands that ask the daemon: where, and how people are told the answer.

use super::client::Question;
use super::people::{Table, ago, amount, lifetime, plural};
use crate::admin::api::{
    AppAdded, AppRemoved, AppStatus, NicStats, SessionRevoked, SessionStatus, Stats, Status,
    TerminalStatus,
};
use crate::sessions::records::RegistrationId;
use push_common::wire::SessionId;
use reqwest::Method;
use serde_json::json;
use std::fmt::Write;
use std::net::SocketAddr;

pub(super) fn status() -> Question<Status> {
    Question::get("/v1/status", |status: &Status| {
        let addresses = |all: &[SocketAddr]| {
            all.iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join(" ")
        };
        let Status {
            sessions, store, ..
        } = status;
        let mut facts = Table::facts();
        facts.fact(
            "daemon",
            format!(
                "push-ctl {}, pid {}, up {}",
                status.version,
                status.pid,
                lifetime(status.uptime_s)
            ),
        );
        facts.fact("configuration", status.config.display());
        facts.fact(
            "store",
            format!(
                "{}: {}, {}, {}",
                store.path.display(),
                plural(store.terminals, "terminal"),
                plural(store.sessions, "session"),
                plural(store.apps, "application"),
            ),
        );
        facts.fact(
            "sessions",
            format!(
                "{} authorised, {} requested, {} slots",
                sessions.authorised, sessions.requested, sessions.slots
            ),
        );
        facts.fact("devices", addresses(&status.internal));
        facts.fact("applications", addresses(&status.external));
        let mut nics = Table::new(&["NIC", "INDEX", "ROLE", "MODE", "PROGRAM", "LINK", "SINCE"]);
        for nic in &status.nics {
            let role = nic.role.map_or("-", |role| match role {
                crate::config::Role::External => "external",
                crate::config::Role::Internal => "internal",
                crate::config::Role::Both => "both",
            });
            nics.row([
                nic.name.clone(),
                nic.index.to_string(),
                role.to_owned(),
                nic.mode.clone(),
                nic.program_id.to_string(),
                nic.link_id.to_string(),
                if nic.adopted {
                    "before the daemon"
                } else {
                    "the daemon's start"
                }
                .to_owned(),
            ]);
        }
        let mut text = format!("{facts}\n{nics}");
        for warning in &status.warnings {
            let _infallible = writeln!(text, "\nwarning: {warning}");
        }
        text
    })
}

pub(super) fn app_add(name: &str) -> Question<AppAdded> {
    Question::act(
        Method::POST,
        "/v1/apps",
        Some(json!({ "name": name })),
        |added: &AppAdded| {
            format!(
                "Application {} is added. Its key, which is shown this once only:\n{}\n",
                added.name, added.api_key
            )
        },
    )
}

pub(super) fn app_list() -> Question<Vec<AppStatus>> {
    Question::get("/v1/apps", |apps: &Vec<AppStatus>| {
        let mut table = Table::new(&["APPLICATION", "ADDED", "SESSIONS"]);
        for app in apps {
            table.row([
                app.name.clone(),
                app.created_at.clone(),
                app.sessions.to_string(),
            ]);
        }
        table.or_say("No applications; `push-ctl app add NAME` adds one.")
    })
}

pub(super) fn app_remove(name: &str) -> Question<AppRemoved> {
    Question::act(
        Method::DELETE,
        format!("/v1/apps/{}", segment(name)),
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

pub(super) fn terminal_list() -> Question<Vec<TerminalStatus>> {
    Question::get("/v1/terminals", |terminals: &Vec<TerminalStatus>| {
        let mut table = Table::new(&[
            "TERMINAL", "ENDPOINT", "ADDRESS", "STATE", "EXPIRES", "SESSIONS",
        ]);
        for terminal in terminals {
            table.row([
                terminal.id.clone(),
                terminal.endpoint.clone(),
                terminal.address.to_string(),
                state(&terminal.state, terminal.cause.as_ref()),
                terminal.expires_in_s.map_or_else(none, lifetime),
                terminal.sessions.to_string(),
            ]);
        }
        table.or_say("No terminals.")
    })
}

pub(super) fn terminal_show(id: RegistrationId) -> Question<TerminalStatus> {
    Question::get(
        format!("/v1/terminals/{id}"),
        |terminal: &TerminalStatus| {
            let mut facts = Table::facts();
            facts.fact("terminal", &terminal.id);
            facts.fact("endpoint", &terminal.endpoint);
            facts.fact("address", terminal.address);
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

pub(super) fn session_list(all: bool) -> Question<Vec<SessionStatus>> {
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
            "STATE",
            "EXPIRES",
            "DELIVERED",
            "LAST",
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
                state(&session.state, session.cause.as_ref()),
                session.expires_in_s.map_or_else(none, lifetime),
                amount(session.packets),
                session.last_delivered_ago_s.map_or_else(none, ago),
            ]);
        }
        table.or_say("No sessions.")
    })
}

pub(super) fn session_show(id: SessionId) -> Question<SessionStatus> {
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
        facts.to_string()
    })
}

pub(super) fn session_revoke(id: SessionId) -> Question<SessionRevoked> {
    Question::act(
        Method::POST,
        format!("/v1/sessions/{id}/revoke"),
        None,
        |revoked: &SessionRevoked| format!("Session {} is revoked.\n", revoked.id),
    )
}

pub(super) fn stats(all: bool) -> Question<Stats> {
    Question::get("/v1/stats", move |stats: &Stats| {
        let nic = |nic: &NicStats| {
            let mut table = Table::new(&["VERDICT", "ACTION", "PACKETS", "BYTES", "MEANING"]);
            for verdict in nic
                .verdicts
                .iter()
                .filter(|verdict| all || verdict.packets > 0)
            {
                table.row([
                    verdict.verdict.clone(),
                    verdict.action.clone(),
                    amount(verdict.packets),
                    amount(verdict.bytes),
                    verdict.meaning.clone(),
                ]);
            }
            let sum = format!(
                "{}: {}, {}",
                nic.name,
                plural(nic.packets, "packet"),
                plural(nic.bytes, "byte")
            );
            format!("{sum}\n{}", table.or_say("No packets."))
        };
        stats.nics.iter().map(nic).collect::<Vec<_>>().join("\n")
    })
}

fn state(state: &str, cause: Option<&String>) -> String {
    let state = state.replace('_', " ");
    cause.map_or_else(
        || state.clone(),
        |cause| format!("{state} ({})", cause.replace('_', " ")),
    )
}

fn none() -> String {
    "-".to_owned()
}

/// A name as a segment of a path. One with other characters than a name can have is of no application.
fn segment(name: &str) -> String {
    name.bytes().fold(String::new(), |mut path, byte| {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_') {
            path.push(char::from(byte));
        } else {
            let _infallible = write!(path, "%{byte:02X}");
        }
        path
    })
}
