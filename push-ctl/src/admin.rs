//! The admin interface, for the operator's command line: JSON over HTTP on a unix socket.
//!
//! Whoever may open the socket may do everything. Each request that changes something leaves a line in
//! the log, target `audit`, with the user and process that it came from. By hand:
//! `curl --unix-socket /run/push/admin.sock http://push/v1/status`.

pub mod api;
mod socket;
#[cfg(test)]
mod tests;

pub use socket::{Socket, SocketError};

use crate::app_key::AppKey;
use crate::config::{Config, Role};
use crate::controller::{Controller, Stopped, View};
use crate::dataplane::NicCounters;
use crate::problem::{Problem, Segment, in_size, in_time, no_such_method, no_such_path};
use crate::random;
use crate::sessions::records::{
    AppName, Left, OperativeState, RegistrationId, Session, SessionState, Terminal,
};
use crate::sessions::{OperatorRefusal, remaining};
use api::{
    AddApp, AppAdded, AppRemoved, AppStatus, NicStats, NicStatus, SessionCounts, SessionRevoked,
    SessionStatus, Stats, Status, StoreStatus, TerminalStatus, VerdictStats,
};
use axum::extract::connect_info::Connected;
use axum::extract::rejection::JsonRejection;
use axum::extract::{ConnectInfo, RawQuery, State};
use axum::http::StatusCode;
use axum::routing::{delete, get, post};
use axum::serve::IncomingStream;
use axum::{Json, Router, middleware};
use push_common::maps::LAYOUT_VERSION;
use push_common::wire::SessionId;
use std::collections::HashMap;
use std::fmt::Display;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::UnixListener;
use tracing::{error, info};

const MAX_BODY_BYTES: usize = 16 << 10;
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// What doesn't change while the daemon runs.
#[derive(Clone, Debug)]
pub struct Daemon {
    /// The configuration.
    pub config: Config,
    /// File of the store.
    pub store: PathBuf,
    /// When it became ready.
    pub started: Instant,
}

/// Answers operators on this socket until `shutdown` is through.
///
/// # Errors
///
/// The socket can't be used.
pub async fn serve(
    socket: &Socket,
    controller: Controller,
    daemon: Daemon,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let app = router(controller, daemon).into_make_service_with_connect_info::<Peer>();
    axum::serve(socket.listener()?, app)
        .with_graceful_shutdown(shutdown)
        .await
}

/// Who is at the other end of the socket, as the kernel says.
#[derive(Clone, Copy, Debug)]
struct Peer {
    uid: Option<u32>,
    pid: Option<i32>,
}

impl Connected<IncomingStream<'_, UnixListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, UnixListener>) -> Self {
        let credentials = stream.io().peer_cred().ok();
        Self {
            uid: credentials.as_ref().map(tokio::net::unix::UCred::uid),
            pid: credentials.and_then(|credentials| credentials.pid()),
        }
    }
}

impl Peer {
    /// Notes what was done, or tried.
    fn audit<T>(self, action: &str, object: &str, outcome: &Result<T, Problem>) {
        let Self { uid, pid } = self;
        let outcome = outcome
            .as_ref()
            .map_or_else(|problem| problem.detail.as_str(), |_| "done");
        info!(target: "audit", action, object, outcome, uid, pid);
    }
}

#[derive(Clone)]
struct Operator {
    controller: Controller,
    daemon: Arc<Daemon>,
}

type Answer<T> = Result<Json<T>, Problem>;

fn router(controller: Controller, daemon: Daemon) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/apps", get(list_apps).post(add_app))
        .route("/v1/apps/{name}", delete(remove_app))
        .route("/v1/terminals", get(list_terminals))
        .route("/v1/terminals/{id}", get(show_terminal))
        .route("/v1/sessions", get(list_sessions))
        .route("/v1/sessions/{id}", get(show_session))
        .route("/v1/sessions/{id}/revoke", post(revoke_session))
        .route("/v1/stats", get(stats))
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
        .layer(middleware::from_fn(|request, next| {
            in_size(MAX_BODY_BYTES, request, next)
        }))
        .layer(middleware::from_fn(|request, next| {
            in_time(REQUEST_TIMEOUT, request, next)
        }))
        .with_state(Operator {
            controller,
            daemon: Arc::new(daemon),
        })
}

async fn status(State(operator): State<Operator>) -> Answer<Status> {
    let Operator { controller, daemon } = operator;
    let nics = controller
        .nics()
        .await
        .map_err(|error| kernel_problem(&error))?;
    let roles: HashMap<&str, Role> = daemon
        .config
        .nic
        .iter()
        .map(|nic| (nic.name.as_str(), nic.role))
        .collect();
    let nics = nics.into_iter().map(|nic| NicStatus {
        role: roles.get(nic.name.as_str()).copied(),
        name: nic.name,
        index: nic.index,
        mode: nic.mode.to_owned(),
        program_id: nic.program_id,
        link_id: nic.link_id,
        adopted: nic.adopted,
    });
    let seen = Arc::clone(&daemon);
    let nics = nics.collect();
    let status = controller.observe(move |view| {
        let counts = view.sessions.counts();
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            layout_version: LAYOUT_VERSION,
            pid: std::process::id(),
            uptime_s: seen.started.elapsed().as_secs(),
            config: seen.config.path.clone(),
            store: StoreStatus {
                path: seen.store.clone(),
                terminals: view.sessions.terminals().len(),
                sessions: view.sessions.sessions().count(),
                apps: view.sessions.apps().len(),
            },
            sessions: SessionCounts {
                requested: counts.requested,
                authorised: counts.authorised,
                slots: view.sessions.slots(),
            },
            nics,
            internal: seen.config.internal.listen.clone(),
            external: seen.config.external.listen.clone(),
            warnings: view.warnings,
        }
    });
    Ok(Json(status.await?))
}

async fn list_apps(State(operator): State<Operator>) -> Answer<Vec<AppStatus>> {
    let apps = operator.controller.observe(|view| {
        let status = |(app, sessions): (&crate::sessions::records::App, usize)| AppStatus {
            name: app.name.to_string(),
            created_at: rfc3339(app.created.as_millis()),
            sessions,
        };
        view.sessions.apps().map(status).collect()
    });
    Ok(Json(apps.await?))
}

async fn add_app(
    State(operator): State<Operator>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    body: Result<Json<AddApp>, JsonRejection>,
) -> Answer<AppAdded> {
    let Json(AddApp { name }) = body?;
    let added = async {
        let name: AppName = name.parse().map_err(|error| bad_name(&error))?;
        let key = AppKey::from_bytes(random::bytes());
        let hash = key.hash();
        let added = AppAdded {
            name: name.to_string(),
            api_key: key.to_text(),
        };
        operator
            .controller
            .apply(move |sessions, now| sessions.add_app(now, name, hash))
            .await??;
        Ok(Json(added))
    };
    let added = added.await;
    peer.audit("app add", &name, &added);
    added
}

async fn remove_app(
    State(operator): State<Operator>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Segment(name): Segment,
) -> Answer<AppRemoved> {
    let removed = async {
        let parsed: AppName = name
            .parse()
            .map_err(|_| Problem::from(OperatorRefusal::UnknownApp))?;
        let sessions_ended = operator
            .controller
            .apply(move |sessions, now| sessions.remove_app(now, &parsed))
            .await??;
        Ok(Json(AppRemoved {
            name: name.clone(),
            removed: true,
            sessions_ended,
        }))
    };
    let removed = removed.await;
    peer.audit("app remove", &name, &removed);
    removed
}

async fn list_terminals(State(operator): State<Operator>) -> Answer<Vec<TerminalStatus>> {
    let terminals = operator.controller.observe(|view| {
        let mut all: Vec<_> = view
            .sessions
            .terminals()
            .map(|terminal| terminal_status(&view, terminal))
            .collect();
        all.sort_by(|a, b| a.endpoint.cmp(&b.endpoint));
        all
    });
    Ok(Json(terminals.await?))
}

async fn show_terminal(
    State(operator): State<Operator>,
    Segment(id): Segment,
) -> Answer<TerminalStatus> {
    let unknown = || {
        let detail = "no terminal has this registration id";
        Problem::new(
            StatusCode::NOT_FOUND,
            "unknown-terminal",
            "No such terminal",
            detail,
        )
    };
    let id: RegistrationId = id.parse().map_err(|_| unknown())?;
    let terminal = operator
        .controller
        .observe(move |view| {
            view.sessions
                .terminal(id)
                .map(|terminal| terminal_status(&view, terminal))
        })
        .await?;
    terminal.map(Json).ok_or_else(unknown)
}

/// All that aren't over; with `?ended` also those that are.
async fn list_sessions(
    State(operator): State<Operator>,
    RawQuery(query): RawQuery,
) -> Answer<Vec<SessionStatus>> {
    let also_ended = query.as_deref() == Some("ended");
    let sessions = operator.controller.observe(move |view| {
        let listed = view
            .sessions
            .sessions()
            .filter(|session| match session.state {
                SessionState::Requested(_) | SessionState::Authorised(_) => true,
                SessionState::Ended { .. } => also_ended,
            });
        listed
            .map(|session| session_status(&view, session))
            .collect()
    });
    Ok(Json(sessions.await?))
}

async fn show_session(
    State(operator): State<Operator>,
    Segment(id): Segment,
) -> Answer<SessionStatus> {
    let unknown = || Problem::from(OperatorRefusal::UnknownSession);
    let id: SessionId = id.parse().map_err(|_| unknown())?;
    let session = operator
        .controller
        .observe(move |view| {
            view.sessions
                .session(id)
                .map(|session| session_status(&view, session))
        })
        .await?;
    session.map(Json).ok_or_else(unknown)
}

async fn revoke_session(
    State(operator): State<Operator>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Segment(id): Segment,
) -> Answer<SessionRevoked> {
    let revoked = async {
        let parsed: SessionId = id
            .parse()
            .map_err(|_| Problem::from(OperatorRefusal::UnknownSession))?;
        operator
            .controller
            .apply(move |sessions, now| sessions.revoke(now, parsed))
            .await??;
        Ok(Json(SessionRevoked {
            id: parsed.to_string(),
            revoked: true,
        }))
    };
    let revoked = revoked.await;
    peer.audit("session revoke", &id, &revoked);
    revoked
}

async fn stats(State(operator): State<Operator>) -> Answer<Stats> {
    let nics = operator
        .controller
        .observe(|view| view.kernel.verdicts())
        .await?;
    let nics = nics.map_err(|error| kernel_problem(&error))?;
    Ok(Json(Stats {
        nics: nics.into_iter().map(nic_stats).collect(),
    }))
}

fn terminal_status(view: &View<'_>, terminal: &Terminal) -> TerminalStatus {
    let (state, cause) = match terminal.state {
        OperativeState::First { .. } => ("first_operative", None),
        OperativeState::Second { cause, .. } => ("second_operative", Some(cause)),
    };
    TerminalStatus {
        id: terminal.id.to_string(),
        endpoint: terminal.endpoint.to_string(),
        address: terminal.path.device,
        gateway: terminal.path.gateway,
        state: state.to_owned(),
        cause: cause.map(|cause| match cause {
            Left::Deregistered => "deregistered".to_owned(),
            Left::Expired => "expired".to_owned(),
        }),
        expires_in_s: cause
            .is_none()
            .then(|| remaining(terminal, view.now).as_secs()),
        sessions: view.sessions.sessions_of_terminal(terminal.id),
    }
}

fn session_status(view: &View<'_>, session: &Session) -> SessionStatus {
    let (state, cause, token) = match &session.state {
        SessionState::Requested(token) => ("requested", None, Some(token)),
        SessionState::Authorised(token) => ("authorised", None, Some(token)),
        SessionState::Ended { cause, .. } => ("ended", Some(cause.label().to_owned()), None),
    };
    let counters = view.kernel.session_counters(session.id).unwrap_or_default();
    SessionStatus {
        id: session.id.to_string(),
        terminal: session.terminal.to_string(),
        app: session.app.to_string(),
        instance: session.instance.to_string(),
        device: view.sessions.device_of(session),
        state: state.to_owned(),
        cause,
        token_generation: token.map(|token| token.generation),
        expires_in_s: token.map(|_| view.sessions.expires_in(session, view.now).as_secs()),
        packets: counters.packets,
        bytes: counters.bytes,
        last_delivered_ago_s: counters.last_delivered_ago.map(|ago| ago.as_secs()),
    }
}

fn nic_stats(nic: NicCounters) -> NicStats {
    let verdicts: Vec<_> = nic
        .by_verdict
        .into_iter()
        .map(|(verdict, packets, bytes)| VerdictStats {
            verdict: verdict.label().to_owned(),
            action: verdict.action().label().to_owned(),
            packets,
            bytes,
            meaning: verdict.meaning().to_owned(),
        })
        .collect();
    NicStats {
        name: nic.name,
        packets: verdicts.iter().map(|verdict| verdict.packets).sum(),
        bytes: verdicts.iter().map(|verdict| verdict.bytes).sum(),
        verdicts,
    }
}

impl From<OperatorRefusal> for Problem {
    fn from(refusal: OperatorRefusal) -> Self {
        let (status, kind, title) = match refusal {
            OperatorRefusal::AppExists => (StatusCode::CONFLICT, "app-exists", "The name is taken"),
            OperatorRefusal::UnknownApp => {
                (StatusCode::NOT_FOUND, "unknown-app", "No such application")
            }
            OperatorRefusal::UnknownSession => {
                (StatusCode::NOT_FOUND, "unknown-session", "No such session")
            }
            OperatorRefusal::SessionEnded(_) => {
                (StatusCode::GONE, "session-ended", "The session is over")
            }
        };
        Self::new(status, kind, title, refusal.to_string())
    }
}

impl From<Stopped> for Problem {
    fn from(_: Stopped) -> Self {
        Self::stopped()
    }
}

fn bad_name(error: &impl Display) -> Problem {
    Problem::new(
        StatusCode::BAD_REQUEST,
        "bad-name",
        "The name can't be used",
        error.to_string(),
    )
}

fn kernel_problem(error: &anyhow::Error) -> Problem {
    error!(error = format!("{error:#}"), "the kernel can't be asked");
    Problem::new(
        StatusCode::INTERNAL_SERVER_ERROR,
        "kernel",
        "The kernel can't be asked",
        format!("{error:#}"),
    )
}

fn rfc3339(unix_millis: u64) -> String {
    let timestamp = i64::try_from(unix_millis)
        .ok()
        .and_then(|millis| jiff::Timestamp::from_millisecond(millis).ok());
    timestamp.map_or_else(
        || "beyond all time".to_owned(),
        |timestamp| format!("{timestamp:.0}"),
    )
}
