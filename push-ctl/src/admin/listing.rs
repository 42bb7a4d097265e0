//! Lists of terminals and sessions: filtered, sorted, and a page at a time.
//!
//! There may be millions. The controller is asked for some at a time, so that others get their turn in
//! between, and only what is on the page is looked at closely. Where an index has what is asked for, and that
//! is little, nothing else is looked at.

mod page;
#[cfg(test)]
mod tests;

use super::api::{Listing, SessionStatus, TerminalStatus};
use super::devices::{session_status, terminal_status};
use super::{Answer, Operator};
use crate::controller::{Controller, Stopped, View};
use crate::problem::Problem;
use crate::sessions::Sessions;
use crate::sessions::records::{
    EndpointName, OperativeState, RealmName, RegistrationId, Session, SessionState, Terminal,
    UnixTime,
};
use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use ipnet::IpNet;
use page::{Key, Page, look_for_a_while};
use push_common::wire::SessionId;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;
use std::sync::Arc;

/// So many are taken from an index at most; where there are more, all are looked at one after the other.
const FEW: usize = 4096;

/// Rows of a page, unless told otherwise.
pub const DEFAULT_LIMIT: usize = 1000;

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
    let controller = &operator.controller;
    let search = SessionSearch::new(controller, query).await?;
    let found = page::find(controller, search, page).await?;
    let items = rows(controller, found.ids, |view, id| {
        let session = view.sessions.session(id)?;
        Some(session_status(view, session))
    });
    Ok(Json(Listing {
        total: found.total,
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
    let controller = &operator.controller;
    let search = TerminalSearch::new(controller, query).await?;
    let found = page::find(controller, search, page).await?;
    let items = rows(controller, found.ids, |view, id| {
        let terminal = view.sessions.terminal(id)?;
        Some(terminal_status(view, terminal))
    });
    Ok(Json(Listing {
        total: found.total,
        items: items.await?,
    }))
}

/// Looks closely at what is on a page. What has gone meanwhile is left out.
async fn rows<I: Copy + Send + Sync + 'static, T: Send + 'static>(
    controller: &Controller,
    ids: Vec<I>,
    row: fn(&View<'_>, I) -> Option<T>,
) -> Result<Vec<T>, Stopped> {
    let ids: Arc<[I]> = ids.into();
    let mut rows = Vec::with_capacity(ids.len());
    let mut next = 0;
    while next < ids.len() {
        let ids = Arc::clone(&ids);
        let some = controller.observe(move |view| {
            let mut some = Vec::new();
            let end = look_for_a_while(next, ids.len(), |n| {
                some.extend(ids.get(n).and_then(|&id| row(&view, id)));
            });
            (end, some)
        });
        let (end, some) = some.await?;
        rows.extend(some);
        next = end;
    }
    Ok(rows)
}

/// Where what is asked for may be.
enum Places<I> {
    /// In all there are, so many.
    All(u32),
    /// Nowhere else than in these.
    These(Vec<I>),
}

impl<I> Places<I> {
    fn count(&self) -> usize {
        match self {
            Self::All(count) => *count as usize,
            Self::These(ids) => ids.len(),
        }
    }
}

/// What an index has, if it isn't too much.
fn few<I>(found: impl Iterator<Item = I>) -> Option<Vec<I>> {
    let found: Vec<_> = found.take(FEW + 1).collect();
    (found.len() <= FEW).then_some(found)
}

/// A realm, and addresses; all of them where there are none.
#[derive(Clone)]
struct Whereabouts {
    realm: Option<RealmName>,
    prefix: Option<IpNet>,
}

impl Whereabouts {
    /// None if nothing can be there.
    fn new(realm: Option<&str>, address: Option<&str>) -> Result<Option<Self>, Problem> {
        let prefix = address.map(prefix).transpose()?;
        let Ok(realm) = realm.map(str::parse).transpose() else {
            return Ok(None);
        };
        Ok(Some(Self { realm, prefix }))
    }

    const fn are_given(&self) -> bool {
        self.realm.is_some() || self.prefix.is_some()
    }

    fn have(&self, terminal: &Terminal) -> bool {
        let path = &terminal.path;
        (self.realm.is_none() || self.realm == path.realm)
            && self
                .prefix
                .is_none_or(|prefix| path.is_known() && prefix.contains(&path.device))
    }

    /// Those in the first operative state that are there.
    fn terminals<'a>(
        &'a self,
        sessions: &'a Sessions,
    ) -> impl Iterator<Item = RegistrationId> + 'a {
        let all = IpAddr::from([0; 4])..=IpAddr::from([0xFF; 16]);
        let addresses = self
            .prefix
            .map_or(all, |prefix| prefix.network()..=prefix.broadcast());
        sessions.terminals_at(self.realm.as_ref(), addresses)
    }
}

struct SessionSearch {
    query: SessionQuery,
    /// None if nothing can be there.
    whereabouts: Option<Whereabouts>,
    /// Only on these.
    terminals: Option<Vec<RegistrationId>>,
    places: Places<SessionId>,
}

impl SessionSearch {
    async fn new(controller: &Controller, query: SessionQuery) -> Result<Self, Problem> {
        let whereabouts = Whereabouts::new(query.realm.as_deref(), query.address.as_deref())?;
        let mut search = Self {
            whereabouts,
            query,
            terminals: None,
            places: Places::All(0),
        };
        let search = controller.observe(move |view| {
            let sessions = view.sessions;
            search.terminals = search.query.terminal.as_deref().map(|name| {
                let by_name = name.parse().ok();
                let by_name = by_name.and_then(|name| sessions.terminal_of_endpoint(&name));
                by_name.into_iter().chain(name.parse().ok()).collect()
            });
            search.places = search.places_in(sessions);
            search
        });
        Ok(search.await?)
    }

    /// Indices have sessions that aren't over.
    fn places_in(&self, sessions: &Sessions) -> Places<SessionId> {
        let Some(whereabouts) = &self.whereabouts else {
            return Places::These(Vec::new());
        };
        let all = Places::All(sessions.slots_used());
        let may_be_over = match self.query.state {
            None => self.query.ended,
            Some(SessionStateFilter::Ended) => true,
            Some(
                SessionStateFilter::Requested
                | SessionStateFilter::Authorised
                | SessionStateFilter::Rotating,
            ) => false,
        };
        if may_be_over {
            return all;
        }
        let on = |terminal| {
            let sessions = sessions.sessions_on_terminal(terminal);
            sessions.map(|session| session.id)
        };
        let of_terminals = self.terminals.as_deref();
        let of_terminals = of_terminals.and_then(|ids| few(ids.iter().copied().flat_map(on)));
        let of_app = self.query.app.as_deref().and_then(|app| {
            let Ok(app) = app.parse() else {
                return Some(Vec::new());
            };
            few(sessions.sessions_of_app(&app))
        });
        let there = whereabouts.are_given().then(|| {
            // Also of terminals only a few: they may have no sessions.
            let terminals = few(whereabouts.terminals(sessions))?;
            few(terminals.into_iter().flat_map(on))
        });
        let few = [of_terminals, of_app, there.flatten()];
        let fewest = few.into_iter().flatten().min_by_key(Vec::len);
        fewest.map_or(all, Places::These)
    }

    fn takes(&self, sessions: &Sessions, session: &Session) -> bool {
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
        let of_terminal = |ids: &Vec<_>| ids.contains(&session.terminal);
        in_state
            && query
                .app
                .as_deref()
                .is_none_or(|app| session.app.as_str() == app)
            && self.terminals.as_ref().is_none_or(of_terminal)
            && self.whereabouts.as_ref().is_some_and(|whereabouts| {
                !whereabouts.are_given()
                    || sessions
                        .terminal_of(session)
                        .is_some_and(|terminal| whereabouts.have(terminal))
            })
    }
}

impl page::Query for SessionSearch {
    type Id = SessionId;

    fn places(&self) -> usize {
        self.places.count()
    }

    fn look<'a>(&self, view: &View<'a>, place: usize) -> Option<(Key<'a>, SessionId)> {
        let sessions = view.sessions;
        let session = match &self.places {
            Places::All(_) => sessions.session_in_slot(u32::try_from(place).ok()?),
            Places::These(ids) => sessions.session(*ids.get(place)?),
        };
        let session = session.filter(|session| self.takes(sessions, session))?;
        // Moments, not how long it is until then or since: it isn't the same time for all that are looked at.
        let traffic = || view.kernel.traffic(session.id.slot());
        let traffic = || traffic().filter(|traffic| traffic.id == session.id);
        let most_first = |count: Option<u64>| Key::Number(u64::MAX - count.unwrap_or(0));
        let key = match self.query.sort.unwrap_or_default() {
            SessionOrder::Slot => Key::Number(session.id.slot().into()),
            SessionOrder::App => Key::Instance(&session.app, &session.instance),
            SessionOrder::Expires => {
                let expires = sessions.expires(session);
                Key::Number(expires.map_or(0, UnixTime::as_millis))
            }
            SessionOrder::Delivered => most_first(traffic().map(|traffic| traffic.packets)),
            SessionOrder::Refused => most_first(traffic().map(|traffic| traffic.refused.into())),
            SessionOrder::Last => most_first(traffic().map(|traffic| traffic.last_delivered_ns)),
        };
        Some((key, session.id))
    }
}

struct TerminalSearch {
    query: TerminalQuery,
    /// None if nothing can be there.
    whereabouts: Option<Whereabouts>,
    places: Places<RegistrationId>,
}

impl TerminalSearch {
    async fn new(controller: &Controller, query: TerminalQuery) -> Result<Self, Problem> {
        let whereabouts = Whereabouts::new(query.realm.as_deref(), query.address.as_deref())?;
        let mut search = Self {
            whereabouts,
            query,
            places: Places::All(0),
        };
        let search = controller.observe(move |view| {
            search.places = search.places_in(view.sessions);
            search
        });
        Ok(search.await?)
    }

    /// The index of addresses has terminals in the first operative state.
    fn places_in(&self, sessions: &Sessions) -> Places<RegistrationId> {
        let Some(whereabouts) = &self.whereabouts else {
            return Places::These(Vec::new());
        };
        let there = match self.query.state {
            Some(TerminalStateFilter::First) if whereabouts.are_given() => {
                few(whereabouts.terminals(sessions))
            }
            Some(
                TerminalStateFilter::First
                | TerminalStateFilter::Second
                | TerminalStateFilter::Suspended,
            )
            | None => None,
        };
        there.map_or_else(
            || Places::All(sessions.terminal_places_used()),
            Places::These,
        )
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
                .is_none_or(|part| has(&terminal.endpoint, part))
            && self
                .whereabouts
                .as_ref()
                .is_some_and(|whereabouts| whereabouts.have(terminal))
    }
}

impl page::Query for TerminalSearch {
    type Id = RegistrationId;

    fn places(&self) -> usize {
        self.places.count()
    }

    fn look<'a>(&self, view: &View<'a>, place: usize) -> Option<(Key<'a>, RegistrationId)> {
        let (terminal, sessions) = match &self.places {
            Places::All(_) => view.sessions.terminal_at(u32::try_from(place).ok()?)?,
            Places::These(ids) => {
                let id = *ids.get(place)?;
                let sessions = view.sessions.sessions_of_terminal(id);
                (view.sessions.terminal(id)?, sessions)
            }
        };
        if !self.takes(terminal) {
            return None;
        }
        let key = match self.query.sort.unwrap_or_default() {
            TerminalOrder::Endpoint => Key::Endpoint(&terminal.endpoint),
            TerminalOrder::Address => {
                Key::Place(terminal.path.realm.as_ref(), terminal.path.device)
            }
            TerminalOrder::Expires => Key::Number(match terminal.state {
                OperativeState::First { expires } => expires.as_millis(),
                OperativeState::Second { .. } | OperativeState::Suspended { .. } => 0,
            }),
            TerminalOrder::Sessions => Key::Number(u64::MAX - sessions as u64),
        };
        Some((key, terminal.id))
    }
}

/// Whether a name has this in it. For names as short as these it takes less to look than to prepare a search.
fn has(name: &EndpointName, part: &str) -> bool {
    let (name, part) = (name.as_str().as_bytes(), part.as_bytes());
    let Some((first, rest)) = part.split_first() else {
        return true;
    };
    let mut from_each = name.iter().zip(1..);
    from_each.any(|(byte, next)| byte == first && name[next..].starts_with(rest))
}

/// An address, or a prefix.
fn prefix(text: &str) -> Result<IpNet, Problem> {
    let address = text.parse::<IpAddr>().map(IpNet::from);
    address.or_else(|_| text.parse()).map_err(|_| {
        bad_query(&format!(
            "address: `{text}` is neither an address nor a prefix; write for example 10.64.0.2 or 10.64.0.0/16"
        ))
    })
}

fn bad_query(what: &str) -> Problem {
    Problem::new(
        StatusCode::BAD_REQUEST,
        "bad-query",
        "There is no such list",
        what,
    )
}
