//! Events, as they happen.

use crate::cli::{Failure, Output, client, live};
use crate::events::{EVENTS_LOST, EventLine, kinds};
use clap::builder::PossibleValuesParser;
use push_common::wire::SessionId;
use std::fmt::Write;
use std::path::Path;

/// Which events; all if nothing is said.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Monitor {
    /// Only those of this application
    #[arg(long, value_name = "NAME")]
    app: Option<String>,
    /// Only those of this session
    #[arg(long, value_name = "ID")]
    session: Option<SessionId>,
    /// Only those of these kinds, with commas between them
    #[arg(long, value_name = "KIND", value_delimiter = ',', value_parser = PossibleValuesParser::new(kinds()))]
    kind: Vec<String>,
}

impl Monitor {
    /// Prints events until nobody reads them any more. The daemon's end is a failure.
    pub(in crate::cli) fn dispatch(&self, socket: &Path, as_json: bool) -> Result<Output, Failure> {
        let begun = || {
            // Also says that events are listened to from now on.
            let head = format!("{:<24}  {:<20}  WHAT\n", "TIME", "EVENT");
            if as_json {
                Ok(true)
            } else {
                live::print(&head)
            }
        };
        let query = self.query();
        client::listen(socket, "/v1/events", &query, begun, |line| {
            if as_json {
                return live::print(&format!("{line}\n"));
            }
            let event = serde_json::from_str(line).map_err(|_| client::not_understood(socket))?;
            live::print(&people(&event))
        })?;
        Ok(Output::nothing())
    }

    fn query(&self) -> Vec<(&'static str, String)> {
        let mut query = Vec::new();
        query.extend(self.app.clone().map(|app| ("app", app)));
        query.extend(self.session.map(|id| ("session", id.to_string())));
        if !self.kind.is_empty() {
            query.push(("kind", self.kind.join(",")));
        }
        query
    }
}

/// One line: when, what, and whatever else there is to it.
fn people(event: &EventLine) -> String {
    let EventLine {
        at,
        kind,
        session,
        terminal,
        endpoint,
        app,
        cause,
        address,
        token_generation,
        nic,
        count,
        source,
        to,
        notice,
        action,
        object,
        change,
        outcome,
        detail,
        by: _,
        uid,
        pid,
        changes,
    } = event;
    let mut line = format!("{at}  {kind:<20} ");
    if kind == EVENTS_LOST {
        let count = count.unwrap_or_default();
        let _infallible = writeln!(line, " {count} not shown, as there were too many");
        return line;
    }
    let text = |value: &Option<String>| value.clone();
    let number = |value: Option<i128>| value.map(|value| value.to_string());
    let facts = [
        ("action", text(action).map(quoted)),
        ("object", text(object).map(quoted)),
        ("change", change.as_ref().map(ToString::to_string)),
        ("count", number(count.map(i128::from))),
        ("session", text(session)),
        ("app", text(app)),
        ("terminal", text(terminal)),
        ("endpoint", text(endpoint).map(quoted)),
        ("address", address.map(|address| address.to_string())),
        ("notice", text(notice)),
        ("to", to.map(|to| to.to_string())),
        ("token", number(token_generation.map(i128::from))),
        ("outcome", text(outcome).filter(|outcome| outcome != "done")),
        ("cause", text(cause)),
        ("detail", text(detail).map(quoted)),
        ("nic", text(nic)),
        ("source", source.map(|source| source.to_string())),
        ("uid", number(uid.map(i128::from))),
        ("pid", number(pid.map(i128::from))),
        ("changes", (!changes.is_empty()).then(|| changes.join("; "))),
    ];
    for (name, value) in facts {
        if let Some(value) = value {
            let _infallible = write!(line, " {name}={value}");
        }
    }
    line.push('\n');
    line
}

/// As it is if that is one word, else with what shows where it begins and ends. What a device calls
/// itself may have anything in it.
fn quoted(text: String) -> String {
    if text.is_empty() || text.contains(|c: char| c.is_whitespace() || c == '"' || c == '=') {
        format!("{text:?}")
    } else {
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_what_there_is_to_an_event() {
        let at = "2026-11-22T03:00:00.000Z".to_owned();
        let ended = EventLine {
            at: at.clone(),
            kind: "session_ended".to_owned(),
            session: Some("deadbeef00000001".to_owned()),
            app: Some("mail".to_owned()),
            endpoint: Some("Ann's phone".to_owned()),
            cause: Some("expired".to_owned()),
            ..EventLine::default()
        };
        assert_eq!(
            people(&ended),
            "2026-11-22T03:00:00.000Z  session_ended         session=deadbeef00000001 app=mail endpoint=\"Ann's phone\" cause=expired\n"
        );
        let lost = EventLine {
            at,
            ..EventLine::lost(7)
        };
        assert_eq!(
            people(&lost),
            "2026-11-22T03:00:00.000Z  events_lost           7 not shown, as there were too many\n"
        );
    }
}
