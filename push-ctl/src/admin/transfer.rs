//! Moving sessions from one gateway to another, or into a copy that can be put back.
//!
//! There may be a million. The controller is asked for some at a time, and given some at a time, as a device's
//! requests are: what it has taken up is durable, then in the data plane.

mod lines;

use super::api::{ExportQuery, ImportQuery, SessionsImported};
use super::{Answer, Operator, Peer, REQUEST_TIMEOUT};
use crate::controller::{Controller, Displaced, Stopped};
use crate::problem::Problem;
use crate::sessions::records::{AppName, OperativeState, RealmName, RegistrationId};
use crate::sessions::{Fit, Misfit, Moved, OperatorRefusal};
use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::rejection::QueryRejection;
use axum::extract::{ConnectInfo, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::{StreamExt, stream};
use lines::{BadFile, End, Lines, Reader};
use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

/// Terminals that are looked at while others wait, and sessions that are taken along, about.
const LOOKED_AT_ONCE: usize = 512;

/// Terminals, and sessions, that are taken up while others wait, about.
const TAKEN_AT_ONCE: usize = 64;

/// How many times so many wait to be taken up, so that they share commits: a fraction of what devices may wait for.
const WAITING: usize = 16;

/// How many things that are in the way are told of.
const TOLD: usize = 10;

/// Which terminals and sessions are exported.
#[derive(Clone)]
struct Filter {
    app: Option<AppName>,
    realm: Option<RealmName>,
}

/// `GET /v1/sessions/export?…`: the file, see [`lines`].
pub(super) async fn export(
    State(operator): State<Operator>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    query: Result<Query<ExportQuery>, QueryRejection>,
) -> Result<Response, Problem> {
    let Query(query) = query.map_err(|rejection| bad_query(rejection.body_text()))?;
    // Before the first key leaves.
    let filter = filter(&operator, &query).await;
    peer.audit_change("session export", "sessions", &query, &filter);
    let export = Export {
        controller: operator.controller,
        filter: filter?,
        next: Next::Header,
        has: End::default(),
    };
    let pieces = stream::try_unfold(export, |mut export| async {
        let piece = export.piece().await?;
        Ok::<_, Stopped>(piece.map(|piece| (piece, export)))
    });
    let kind = [(header::CONTENT_TYPE, "application/x-ndjson")];
    Ok((kind, Body::from_stream(pieces)).into_response())
}

async fn filter(operator: &Operator, query: &ExportQuery) -> Result<Filter, Problem> {
    let app: Option<AppName> = match &query.app {
        None => None,
        Some(name) => {
            let app: AppName = name.parse().map_err(|_| OperatorRefusal::UnknownApp)?;
            let known = app.clone();
            let known = operator
                .controller
                .observe(move |view| view.sessions.app(&known).is_some());
            let is_known = known.await?;
            Some(app)
                .filter(|_| is_known)
                .ok_or(OperatorRefusal::UnknownApp)
                .map(Some)?
        }
    };
    let unknown_realm = |name: &str| {
        let detail = format!("no realm is called {name}");
        Problem::new(
            StatusCode::NOT_FOUND,
            "unknown-realm",
            "No such realm",
            detail,
        )
    };
    let realm: Option<RealmName> = match &query.realm {
        None => None,
        Some(name) => {
            let realm: RealmName = name.parse().map_err(|_| unknown_realm(name))?;
            let mut configured = operator.daemon.config.realm.iter();
            let is_configured = configured.any(|configured| configured.name == realm);
            let known = realm.clone();
            let is_known = operator
                .controller
                .observe(move |view| view.sessions.realms().any(|(realm, _)| *realm == known));
            if !is_configured && !is_known.await? {
                return Err(unknown_realm(name));
            }
            Some(realm)
        }
    };
    Ok(Filter { app, realm })
}

enum Next {
    Header,
    After(Option<RegistrationId>),
    End,
    Nothing,
}

struct Export {
    controller: Controller,
    filter: Filter,
    next: Next,
    has: End,
}

impl Export {
    /// The next piece of the file.
    async fn piece(&mut self) -> Result<Option<Bytes>, Stopped> {
        let (piece, next) = match self.next {
            Next::Header => {
                let now = self.controller.observe(|view| view.now).await?;
                (lines::header(now), Next::After(None))
            }
            Next::After(after) => {
                let (some, last) = some_terminals(&self.controller, &self.filter, after).await?;
                let mut piece = Lines::default();
                for moved in some {
                    self.has.terminals += 1;
                    self.has.sessions += moved.sessions.len();
                    piece.append(lines::moved(&moved));
                }
                let next = last.map_or(Next::End, |last| Next::After(Some(last)));
                (piece, next)
            }
            Next::End => (lines::end(self.has), Next::Nothing),
            Next::Nothing => return Ok(None),
        };
        self.next = next;
        Ok(Some(piece.into_piece()))
    }
}

/// Some terminals after one, with their sessions, as they are at one moment, and the last that was looked at.
async fn some_terminals(
    controller: &Controller,
    filter: &Filter,
    after: Option<RegistrationId>,
) -> Result<(Vec<Moved>, Option<RegistrationId>), Stopped> {
    let filter = filter.clone();
    let some = controller.observe(move |view| {
        let (mut some, mut last, mut taken) = (Vec::new(), None, 0);
        for terminal in view.sessions.terminals_after(after).take(LOOKED_AT_ONCE) {
            last = Some(terminal.id);
            let is_there = match terminal.state {
                OperativeState::First { expires } => expires > view.now,
                OperativeState::Suspended { .. } => true,
                OperativeState::Second { .. } => false,
            };
            let realm = &filter.realm;
            if !is_there || realm.is_some() && terminal.path.realm != *realm {
                continue;
            }
            let sessions: Vec<_> = view
                .sessions
                .sessions_on_terminal(terminal.id)
                .filter(|session| filter.app.as_ref().is_none_or(|app| session.app == *app))
                .map(|session| {
                    let mut session = session.clone();
                    if let Some(window) = view.kernel.window(session.id) {
                        session.window = Some(Box::new(window));
                    }
                    session
                })
                .collect();
            if filter.app.is_some() && sessions.is_empty() {
                continue;
            }
            taken += sessions.len();
            some.push(Moved {
                terminal: terminal.clone(),
                sessions,
            });
            if taken >= LOOKED_AT_ONCE {
                break;
            }
        }
        (some, last)
    });
    some.await
}

/// `POST /v1/sessions/import?…` with the file: all of it is looked at before any of it is taken up.
pub(super) async fn import(
    State(operator): State<Operator>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    query: Result<Query<ImportQuery>, QueryRejection>,
    body: Body,
) -> Answer<SessionsImported> {
    let Query(query) = query.map_err(|rejection| bad_query(rejection.body_text()))?;
    let imported = async {
        let moved = read(body).await?;
        let fit = look_at(&operator, &moved).await?;
        if query.dry_run {
            return Ok(Json(answer(fit, true, &[])));
        }
        let (fit, overtaken) = take_up(&operator.controller, moved).await?;
        Ok(Json(answer(fit, false, &overtaken)))
    };
    let imported = imported.await;
    match &imported {
        Ok(Json(answer)) => peer.audit_change("session import", "sessions", answer, &imported),
        Err(_) => peer.audit_change("session import", "sessions", &query, &imported),
    }
    imported
}

fn answer(fit: Fit, dry_run: bool, overtaken: &[String]) -> SessionsImported {
    SessionsImported {
        dry_run,
        terminals: fit.terminals,
        sessions: fit.sessions,
        terminals_known: fit.terminals_known,
        sessions_known: fit.sessions_known,
        sessions_expired: fit.sessions_expired,
        left_out: overtaken.to_vec(),
    }
}

/// Reads the file to its end, also if something is wrong with it: who is still sending when the connection is
/// closed doesn't get to see the answer.
async fn read(body: Body) -> Result<Vec<Moved>, Problem> {
    let mut reader = Ok(Reader::default());
    let mut pieces = body.into_data_stream();
    loop {
        let piece = tokio::time::timeout(REQUEST_TIMEOUT, pieces.next()).await;
        let lost = "the request ended before the file did";
        let piece = piece.map_err(|_elapsed| bad_file(lost))?;
        let Some(piece) = piece else {
            break;
        };
        let piece = piece.map_err(|_| bad_file(lost))?;
        reader = reader.and_then(|mut reader| reader.take(&piece).map(|()| reader));
    }
    let moved = reader.and_then(Reader::finish);
    moved.map_err(|error: BadFile| bad_file(&error.to_string()))
}

/// What would become of all this; a refusal if anything of it is in the way.
async fn look_at(operator: &Operator, moved: &[Moved]) -> Result<Fit, Problem> {
    let mut in_the_way: BTreeSet<String> = displaced(operator, moved);
    let mut more = 0;
    let mut all = Fit::default();
    for range in ranges(moved, LOOKED_AT_ONCE) {
        let some: Arc<[Moved]> = moved.get(range).unwrap_or_default().into();
        let looked = operator.controller.observe(move |view| {
            let fits = some.iter().map(|moved| view.sessions.fit(view.now, moved));
            fits.collect::<Vec<_>>()
        });
        for fit in looked.await? {
            match fit {
                Ok(fit) => all += fit,
                Err(misfits) => {
                    for misfit in misfits {
                        let told = misfit.to_string();
                        if in_the_way.len() < TOLD {
                            in_the_way.insert(told);
                        } else if !in_the_way.contains(&told) {
                            more += 1;
                        }
                    }
                }
            }
        }
    }
    let room = operator
        .controller
        .observe(|view| (view.sessions.terminals().len(), view.sessions.slots()));
    let (terminals, slots) = room.await?;
    if terminals + all.terminals > slots as usize {
        in_the_way.insert(Misfit::TerminalsFull { slots }.to_string());
    }
    if in_the_way.is_empty() {
        return Ok(all);
    }
    let mut detail: Vec<_> = in_the_way.into_iter().collect();
    if more > 0 {
        detail.push(format!("and {more} more"));
    }
    Err(Problem::new(
        StatusCode::CONFLICT,
        "in-the-way",
        "Something is in the way of the sessions",
        format!("nothing is imported: {}", detail.join("; ")),
    ))
}

/// Which places the devices have registered at that this gateway doesn't have.
fn displaced(operator: &Operator, moved: &[Moved]) -> BTreeSet<String> {
    let places = crate::places(&operator.daemon.config);
    let displaced = moved
        .iter()
        .filter(|moved| moved.terminal.path.is_known())
        .filter_map(|moved| places.realm(&moved.terminal.path).err())
        .map(|displaced| match displaced {
            Displaced::Realm(name) => format!(
                "there is no realm {name}: add it to the configuration and start anew, or export without it"
            ),
            Displaced::Listen { address, key } => format!(
                "devices have registered at {address}, which is not in {key}: add it to the configuration and start anew"
            ),
        });
    displaced.collect()
}

/// Takes up all this, some at a time. Gives what has become of it, and what something has got in the way of
/// since it was looked at.
async fn take_up(
    controller: &Controller,
    mut moved: Vec<Moved>,
) -> Result<(Fit, Vec<String>), Problem> {
    // Those with the lowest slots first, so that slots come into use in order.
    moved.sort_by_key(|moved| moved.sessions.iter().map(|session| session.id.slot()).min());
    let ranges: Vec<_> = ranges(&moved, TAKEN_AT_ONCE).collect();
    let mut moved = moved.into_iter();
    let parts = ranges.into_iter().map(|range| {
        let some = moved.by_ref().take(range.len()).collect();
        take_up_some(controller, some)
    });
    let mut all = Fit::default();
    let mut left_out = Vec::new();
    let mut taken = stream::iter(parts).buffered(WAITING);
    while let Some(taken) = taken.next().await {
        for taken in taken? {
            match taken {
                Ok(fit) => all += fit,
                Err(misfits) => left_out.extend(misfits.iter().map(Misfit::to_string)),
            }
        }
    }
    Ok((all, left_out))
}

/// Takes up some, as soon as there is room for them.
async fn take_up_some(
    controller: &Controller,
    mut some: Vec<Moved>,
) -> Result<Vec<Result<Fit, Vec<Misfit>>>, Stopped> {
    loop {
        let taken = controller.apply(move |sessions, now| {
            let ids = some.iter().flat_map(|moved| &moved.sessions);
            let highest = ids.map(|session| session.id).max_by_key(|id| id.slot());
            if highest.is_some_and(|highest| !sessions.make_room(highest)) {
                return Err(some);
            }
            let taken = some.into_iter();
            Ok(taken.map(|moved| sessions.take_up(now, moved)).collect())
        });
        match taken.await? {
            Ok(taken) => return Ok(taken),
            Err(not_yet) => some = not_yet,
        }
    }
}

/// Terminals that belong together so that there are about `at_once` of them, or of their sessions.
fn ranges(moved: &[Moved], at_once: usize) -> impl Iterator<Item = Range<usize>> {
    let mut start = 0;
    std::iter::from_fn(move || {
        let mut sessions = 0;
        let more = moved.get(start..).unwrap_or_default();
        let len = more
            .iter()
            .take(at_once)
            .take_while(|moved| {
                let is_room = sessions < at_once;
                sessions += moved.sessions.len();
                is_room
            })
            .count();
        let range = start..start + len;
        start = range.end;
        (len > 0).then_some(range)
    })
}

fn bad_file(what: &str) -> Problem {
    Problem::new(
        StatusCode::BAD_REQUEST,
        "bad-export",
        "The file can't be imported",
        format!("nothing is imported: {what}"),
    )
}

fn bad_query(what: String) -> Problem {
    let title = "There is no such part of the sessions";
    Problem::new(StatusCode::BAD_REQUEST, "bad-query", title, what)
}
