//! Events, as they happen.

use super::Operator;
use crate::events::{Event, EventLine, kinds};
use crate::problem::Problem;
use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde::Deserialize;
use std::convert::Infallible;
use std::sync::Arc;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::sync::{broadcast, watch};

/// Bytes that are collected before they are sent, if there is that much at once.
const CHUNK_BYTES: usize = 32 << 10;

/// Which events; all that are left out are not looked at.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Filter {
    app: Option<String>,
    session: Option<String>,
    /// Kinds, with commas between them.
    kind: Option<String>,
}

impl Filter {
    fn admits(&self, line: &EventLine) -> bool {
        let is =
            |wanted: &Option<String>, there: &Option<String>| wanted.is_none() || wanted == there;
        let kind = self.kind.as_ref();
        is(&self.app, &line.app)
            && is(&self.session, &line.session)
            && kind.is_none_or(|wanted| wanted.split(',').any(|kind| kind == line.kind))
    }

    fn check(&self) -> Result<(), Problem> {
        let asked = self.kind.iter().flat_map(|asked| asked.split(','));
        for kind in asked {
            if !kinds().any(|known| known == kind) {
                let all: Vec<_> = kinds().collect();
                let detail = format!("there is no event of kind `{kind}`, but {}", all.join(", "));
                return Err(bad_filter(detail));
            }
        }
        Ok(())
    }
}

fn bad_filter(detail: String) -> Problem {
    let title = "No such filter";
    Problem::new(StatusCode::BAD_REQUEST, "bad-filter", title, detail)
}

/// Events from now on, an [`EventLine`] each, until who asks goes away or the daemon ends.
pub(super) async fn stream(
    State(operator): State<Operator>,
    filter: Result<Query<Filter>, QueryRejection>,
) -> Result<Response, Problem> {
    let Query(filter) = filter.map_err(|rejection| bad_filter(rejection.body_text()))?;
    filter.check()?;
    let listener = Listener {
        events: operator.daemon.events.subscribe(),
        stopping: operator.stopping,
        filter,
    };
    let chunks = stream::unfold(listener, |mut listener| async {
        let chunk = listener.next().await?;
        Some((Ok::<_, Infallible>(chunk), listener))
    });
    let kind = [(header::CONTENT_TYPE, "application/x-ndjson")];
    Ok((kind, Body::from_stream(chunks)).into_response())
}

struct Listener {
    events: broadcast::Receiver<Arc<Event>>,
    stopping: watch::Receiver<bool>,
    filter: Filter,
}

impl Listener {
    /// The lines of all events that there are, once there is one; `None` if there will be none any more.
    async fn next(&mut self) -> Option<String> {
        let mut lines = String::new();
        while lines.is_empty() {
            let received = tokio::select! {
                received = self.events.recv() => received,
                _ = self.stopping.wait_for(|&stopping| stopping) => return None,
            };
            match received {
                Ok(event) => self.add(&mut lines, &event),
                Err(RecvError::Lagged(count)) => add(&mut lines, &EventLine::lost(count)),
                Err(RecvError::Closed) => return None,
            }
            while lines.len() < CHUNK_BYTES {
                match self.events.try_recv() {
                    Ok(event) => self.add(&mut lines, &event),
                    Err(TryRecvError::Lagged(count)) => add(&mut lines, &EventLine::lost(count)),
                    Err(TryRecvError::Empty | TryRecvError::Closed) => break,
                }
            }
        }
        Some(lines)
    }

    fn add(&self, lines: &mut String, event: &Event) {
        let line = EventLine::from(event);
        if self.filter.admits(&line) {
            add(lines, &line);
        }
    }
}

fn add(lines: &mut String, line: &EventLine) {
    lines.push_str(&line.to_json());
    lines.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_admits_what_it_names() {
        let line = EventLine {
            kind: "session_ended".to_owned(),
            app: Some("mail".to_owned()),
            session: Some("deadbeef00000001".to_owned()),
            ..EventLine::default()
        };
        let named = |app: &str, session: &str, kind: &str| {
            let named = |text: &str| (!text.is_empty()).then(|| text.to_owned());
            let filter = Filter {
                app: named(app),
                session: named(session),
                kind: named(kind),
            };
            (filter.check().is_ok(), filter.admits(&line))
        };
        let cases = [
            (named("", "", ""), (true, true)),
            (named("mail", "deadbeef00000001", ""), (true, true)),
            (named("chat", "", ""), (true, false)),
            (named("", "deadbeef00000002", ""), (true, false)),
            (named("", "", "app_failed,session_ended"), (true, true)),
            (named("mail", "", "app_failed"), (true, false)),
            (named("", "", "nonesuch"), (false, false)),
        ];
        for (n, (found, expected)) in cases.into_iter().enumerate() {
            assert_eq!(found, expected, "case {n}");
        }
    }
}
