//! Lists of terminals and sessions: filtered, sorted, and a page at a time.
//!
//! There may be millions. The controller is asked for some at a time, so that others get their turn in
//! between, and only what is on the page is looked at closely.

use super::api::{Listing, SessionStatus, TerminalStatus};
use super::devices::{session_status, terminal_status};
use super::{Answer, Operator};
use crate::controller::{Controller, Stopped, View};
use crate::problem::Problem;
use crate::sessions::records::{OperativeState, RegistrationId, Session, SessionState, Terminal};
use crate::sessions::remaining;
use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use ipnet::IpNet;
use push_common::wire::SessionId;
use serde::{Deserialize, Serialize};

/// How many records are looked at while others wait.
const AT_ONCE: usize = 8192;

/// The same of those on the page.
const ROWS_AT_ONCE: usize = 1024;

/// Rows of a page, unless told otherwise.
pub const DEFAULT_LIMIT: usize = 1000;

/// Which page is asked for.
#[derive(Clone, Copy, Debug)]
struct Page {
    offset: usize,
    limit: usize,
    reverse: bool,
}

/// `GET /v1/sessions?…`: what isn't there doesn't matter.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SessionQuery {
    /// Of this application.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub app: Option<String>,
    /// Of this terminal: its registration id, or what the device calls itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub terminal: Option<String>,
    /// On devices of this realm.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub realm: Option<String>,
    /// On devices with this address, or with one of this prefix.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// In this state; without it, in all but `ended`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<SessionStateFilter>,
    /// Also those that are over, if no state is asked for.
    #[serde(skip_serializing_if = "is_false")]
    pub ended: bool,
    /// By what they are sorted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sort: Option<SessionOrder>,
    /// The other way round.
    #[serde(skip_serializing_if = "is_false")]
    pub reverse: bool,
    /// How many are left out at the beginning.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offset: Option<usize>,
    /// How many there are at most; [`DEFAULT_LIMIT`] without it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
}

/// A state of sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum SessionStateFilter {
    /// Not validated yet.
    Requested,
    /// Delivered for, rotating or not.
    Authorised,
    /// Delivered for, with another token given out or asked for.
    Rotating,
    /// Over.
    Ended,
}

/// By what sessions are sorted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum SessionOrder {
    /// By slot.
    #[default]
    Slot,
    /// By application and instance.
    App,
    /// The one that expires first comes first.
    Expires,
    /// The one with most triggers delivered comes first.
    Delivered,
    /// The one with most triggers refused by policy comes first.
    Refused,
    /// The one that was delivered to last comes first.
    Last,
}

/// `GET /v1/terminals?…`: what isn't there doesn't matter.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TerminalQuery {
    /// What the device calls itself has this in it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// In this realm.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub realm: Option<String>,
    /// With this address, or one of this prefix.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// In this state.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<TerminalStateFilter>,
    /// By what they are sorted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sort: Option<TerminalOrder>,
    /// The other way round.
    #[serde(skip_serializing_if = "is_false")]
    pub reverse: bool,
    /// How many are left out at the beginning.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offset: Option<usize>,
    /// How many there are at most; [`DEFAULT_LIMIT`] without it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
}

/// A state of terminals.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum TerminalStateFilter {
    /// May ask for sessions.
    First,
    /// May not: has left, has expired, or is suspended.
    Second,
    /// May not, as the operator says so.
    Suspended,
}

/// By what terminals are sorted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum TerminalOrder {
    /// By what devices call themselves.
    #[default]
    Endpoint,
    /// By realm and address.
    Address,
    /// The one that expires first comes first.
    Expires,
    /// The one with most sessions comes first.
    Sessions,
}

fn is_false(value: &bool) -> bool {
    !value
}

/// Whatever records are sorted by.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Number(u64),
    Text(std::sync::Arc<str>),
    Place(Option<std::sync::Arc<str>>, std::net::IpAddr),
}

pub(super) async fn sessions(
    State(operator): State<Operator>,
    query: Result<Query<SessionQuery>, QueryRejection>,
) -> Answer<Listing<SessionStatus>> {
    let Query(query) = query.map_err(|rejection| bad_query(&rejection.body_text()))?;
    let page = Page {
        offset: query.offset.unwrap_or(0),
        limit: query.limit.unwrap_or(DEFAULT_LIMIT),
        reverse: query.reverse,
    };
    let filter = SessionFilter::new(&query)?;
    let slots = operator
        .controller
        .observe(|view| view.sessions.slots_used())
        .await?;
    let mut found: Vec<(Key, SessionId)> = Vec::new();
    for start in (0..slots).step_by(AT_ONCE) {
        let filter = filter.clone();
        let end = slots.min(start + u32::try_from(AT_ONCE).unwrap_or(u32::MAX));
        let some = operator.controller.observe(move |view| {
            (start..end)
                .filter_map(|slot| view.sessions.session_in_slot(slot))
                .filter(|session| filter.takes(&view, session))
                .map(|session| (filter.key(&view, session), session.id))
                .collect::<Vec<_>>()
        });
        found.extend(some.await?);
    }
    let total = found.len();
    let ids = page.of(found);
    let items = rows(&operator.controller, ids, |view, id| {
        let session = view.sessions.session(id)?;
        Some(session_status(view, session))
    });
    Ok(Json(Listing {
        total,
        items: items.await?,
    }))
}

pub(super) async fn terminals(
    State(operator): State<Operator>,
    query: Result<Query<TerminalQuery>, QueryRejection>,
) -> Answer<Listing<TerminalStatus>> {
    let Query(query) = query.map_err(|rejection| bad_query(&rejection.body_text()))?;
    let page = Page {
        offset: query.offset.unwrap_or(0),
        limit: query.limit.unwrap_or(DEFAULT_LIMIT),
        reverse: query.reverse,
    };
    let filter = TerminalFilter::new(&query)?;
    let mut found: Vec<(Key, RegistrationId)> = Vec::new();
    let mut after = None;
    loop {
        let filter = filter.clone();
        let some = operator.controller.observe(move |view| {
            let mut last = None;
            let some = view.sessions.terminals_after(after).take(AT_ONCE);
            let some = some
                .inspect(|terminal| last = Some(terminal.id))
                .filter(|terminal| filter.takes(terminal))
                .map(|terminal| (filter.key(&view, terminal), terminal.id))
                .collect::<Vec<_>>();
            (some, last)
        });
        let (some, last) = some.await?;
        found.extend(some);
        if last.is_none() {
            break;
        }
        after = last;
    }
    let total = found.len();
    let ids = page.of(found);
    let items = rows(&operator.controller, ids, |view, id| {
        let terminal = view.sessions.terminal(id)?;
        Some(terminal_status(view, terminal))
    });
    Ok(Json(Listing {
        total,
        items: items.await?,
    }))
}

impl Page {
    /// What is on it, in order.
    fn of<I: Ord + Copy>(self, mut found: Vec<(Key, I)>) -> Vec<I> {
        let end = self.offset.saturating_add(self.limit).min(found.len());
        let start = self.offset.min(end);
        let order = |a: &(Key, I), b: &(Key, I)| {
            let order = a.cmp(b);
            if self.reverse { order.reverse() } else { order }
        };
        // Not everything has to be in order for that.
        if end < found.len() {
            found.select_nth_unstable_by(end, order);
            found.truncate(end);
        }
        if start > 0 && start < found.len() {
            found.select_nth_unstable_by(start, order);
        }
        let mut found = found.split_off(start);
        found.sort_unstable_by(order);
        found.into_iter().map(|(_, id)| id).collect()
    }
}

/// Looks closely at what is on a page. What has gone meanwhile is left out.
async fn rows<I: Copy + Send + 'static, T: Send + 'static>(
    controller: &Controller,
    ids: Vec<I>,
    row: fn(&View<'_>, I) -> Option<T>,
) -> Result<Vec<T>, Stopped> {
    let mut rows = Vec::with_capacity(ids.len());
    for some in ids.chunks(ROWS_AT_ONCE) {
        let some = some.to_vec();
        let some = controller.observe(move |view| {
            some.into_iter()
                .filter_map(|id| row(&view, id))
                .collect::<Vec<_>>()
        });
        rows.extend(some.await?);
    }
    Ok(rows)
}

#[derive(Clone)]
struct SessionFilter {
    query: SessionQuery,
    prefix: Option<IpNet>,
    terminal: Option<RegistrationId>,
}

impl SessionFilter {
    fn new(query: &SessionQuery) -> Result<Self, Problem> {
        Ok(Self {
            query: query.clone(),
            prefix: query.address.as_deref().map(prefix).transpose()?,
            terminal: query.terminal.as_deref().and_then(|id| id.parse().ok()),
        })
    }

    fn takes(&self, view: &View<'_>, session: &Session) -> bool {
        let query = &self.query;
        let in_state = match (&session.state, query.state) {
            (SessionState::Ended { .. }, None) => query.ended,
            (SessionState::Requested(_) | SessionState::Authorised(_), None)
            | (SessionState::Requested(_), Some(SessionStateFilter::Requested))
            | (SessionState::Authorised(_), Some(SessionStateFilter::Authorised))
            | (SessionState::Ended { .. }, Some(SessionStateFilter::Ended)) => true,
            (SessionState::Authorised(tokens), Some(SessionStateFilter::Rotating)) => {
                tokens.are_rotating()
            }
            (
                SessionState::Requested(_)
                | SessionState::Authorised(_)
                | SessionState::Ended { .. },
                Some(_),
            ) => false,
        };
        if !in_state
            || query
                .app
                .as_deref()
                .is_some_and(|app| session.app.as_str() != app)
        {
            return false;
        }
        if self.prefix.is_none() && query.realm.is_none() && query.terminal.is_none() {
            return true;
        }
        let terminal = view.sessions.terminal(session.terminal);
        let of_terminal = query.terminal.as_deref().is_none_or(|name| {
            self.terminal == Some(session.terminal)
                || terminal.is_some_and(|terminal| terminal.endpoint.as_str() == name)
        });
        of_terminal
            && terminal.map_or(query.realm.is_none() && self.prefix.is_none(), |terminal| {
                is_at(terminal, query.realm.as_deref(), self.prefix)
            })
    }

    fn key(&self, view: &View<'_>, session: &Session) -> Key {
        let counters = || view.kernel.session_counters(session.id).unwrap_or_default();
        match self.query.sort.unwrap_or_default() {
            SessionOrder::Slot => Key::Number(session.id.slot().into()),
            SessionOrder::App => Key::Text(format!("{} {}", session.app, session.instance).into()),
            SessionOrder::Expires => {
                Key::Number(milliseconds(view.sessions.expires_in(session, view.now)))
            }
            SessionOrder::Delivered => Key::Number(u64::MAX - counters().packets),
            SessionOrder::Refused => Key::Number(u64::MAX - u64::from(counters().refused)),
            SessionOrder::Last => {
                let ago = counters().last_delivered_ago;
                Key::Number(ago.map_or(u64::MAX, milliseconds))
            }
        }
    }
}

#[derive(Clone)]
struct TerminalFilter {
    query: TerminalQuery,
    prefix: Option<IpNet>,
}

impl TerminalFilter {
    fn new(query: &TerminalQuery) -> Result<Self, Problem> {
        Ok(Self {
            query: query.clone(),
            prefix: query.address.as_deref().map(prefix).transpose()?,
        })
    }

    fn takes(&self, terminal: &Terminal) -> bool {
        let query = &self.query;
        let in_state = match (terminal.state, query.state) {
            (_, None)
            | (OperativeState::First { .. }, Some(TerminalStateFilter::First))
            | (
                OperativeState::Second { .. } | OperativeState::Suspended { .. },
                Some(TerminalStateFilter::Second),
            )
            | (OperativeState::Suspended { .. }, Some(TerminalStateFilter::Suspended)) => true,
            (
                OperativeState::First { .. }
                | OperativeState::Second { .. }
                | OperativeState::Suspended { .. },
                Some(_),
            ) => false,
        };
        in_state
            && query
                .endpoint
                .as_deref()
                .is_none_or(|part| terminal.endpoint.as_str().contains(part))
            && is_at(terminal, query.realm.as_deref(), self.prefix)
    }

    fn key(&self, view: &View<'_>, terminal: &Terminal) -> Key {
        match self.query.sort.unwrap_or_default() {
            TerminalOrder::Endpoint => Key::Text(terminal.endpoint.as_str().into()),
            TerminalOrder::Address => {
                let realm = terminal.path.realm.as_ref();
                Key::Place(
                    realm.map(|realm| realm.as_str().into()),
                    terminal.path.device,
                )
            }
            TerminalOrder::Expires => Key::Number(milliseconds(remaining(terminal, view.now))),
            TerminalOrder::Sessions => {
                let sessions = view.sessions.sessions_of_terminal(terminal.id);
                Key::Number(u64::MAX - sessions as u64)
            }
        }
    }
}

fn is_at(terminal: &Terminal, realm: Option<&str>, prefix: Option<IpNet>) -> bool {
    let path = &terminal.path;
    realm.is_none_or(|name| {
        path.realm
            .as_ref()
            .is_some_and(|realm| realm.as_str() == name)
    }) && prefix.is_none_or(|prefix| path.is_known() && prefix.contains(&path.device))
}

/// An address, or a prefix.
fn prefix(text: &str) -> Result<IpNet, Problem> {
    let address = text.parse::<std::net::IpAddr>().map(IpNet::from);
    address.or_else(|_| text.parse()).map_err(|_| {
        bad_query(&format!(
            "address: `{text}` is neither an address nor a prefix; write for example 10.64.0.2 or 10.64.0.0/16"
        ))
    })
}

fn milliseconds(time: std::time::Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn bad_query(what: &str) -> Problem {
    Problem::new(
        StatusCode::BAD_REQUEST,
        "bad-query",
        "There is no such list",
        what,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_those_of_the_sorted_whole() {
        let keys = [5_u64, 3, 9, 1, 7, 3, 8, 0, 2, 6];
        let found = || {
            let numbered = keys.iter().zip(0_u32..);
            numbered
                .map(|(&key, id)| (Key::Number(key), id))
                .collect::<Vec<_>>()
        };
        for reverse in [false, true] {
            let mut whole = found();
            whole.sort();
            if reverse {
                whole.reverse();
            }
            let whole: Vec<_> = whole.into_iter().map(|(_, id)| id).collect();
            for offset in 0..12 {
                for limit in 0..12 {
                    let page = Page {
                        offset,
                        limit,
                        reverse,
                    };
                    let expected: Vec<_> = whole.iter().copied().skip(offset).take(limit).collect();
                    assert_eq!(page.of(found()), expected, "{page:?}");
                }
            }
        }
    }
}
