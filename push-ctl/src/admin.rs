//! The admin interface, for the operator's command line: JSON over HTTP on a unix socket.
//!
//! Whoever may open the socket may do everything. Each request that changes something, or tries to, is an
//! event and leaves a line in the audit log, with the user and process that it came from. By hand:
//! `curl --unix-socket /run/push/admin.sock http://push/v1/status`.

mod activity;
pub mod api;
mod apps;
mod devices;
mod events;
mod gateway;
pub mod listing;
mod nics;
mod policy;
mod reload;
mod servers;
mod socket;
#[cfg(test)]
pub(crate) mod tests;
mod trace;
mod transfer;
mod upgrade;

pub use socket::{Socket, SocketError};

use crate::audit::Log;
use crate::config::Config;
use crate::controller::Controller;
use crate::events::{Bus, OperatorAction, Refusal, What};
use crate::monitoring::Hints;
use crate::problem::{Problem, in_size, in_time, no_such_method, no_such_path};
use crate::reload::InForce;
use crate::sessions::OperatorRefusal;
use crate::upgrade::Upgrade;
use activity::Sampler;
use axum::extract::connect_info::Connected;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post, put};
use axum::serve::IncomingStream;
use axum::{Json, Router, middleware};
use serde::Serialize;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::net::UnixListener;
use tokio::sync::watch;
use tracing::error;

const MAX_BODY_BYTES: usize = 16 << 10;
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// What doesn't change while the daemon runs.
#[derive(Clone)]
pub struct Daemon {
    /// The configuration at the start, for all in it that doesn't change.
    pub config: Config,
    /// The configuration as it is now.
    pub in_force: Arc<InForce>,
    /// File of the store.
    pub store: PathBuf,
    /// What looks after application servers.
    pub monitoring: Hints,
    /// When it became ready.
    pub started: Instant,
    /// The same, by the wall clock.
    pub started_at: jiff::Timestamp,
    /// How it becomes another one.
    pub upgrade: Upgrade,
    /// Where it publishes what happens.
    pub events: Bus,
}

impl Daemon {
    /// What the operator should mend, one sentence each, besides what the controller knows of.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        self.events.audit().map(Log::warnings).unwrap_or_default()
    }
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
    // Who listens to events would otherwise keep its connection open, and the server from ending.
    let (stop, stopping) = watch::channel(false);
    let shutdown = async move {
        shutdown.await;
        stop.send_replace(true);
    };
    let app =
        router(controller, daemon, stopping).into_make_service_with_connect_info::<Credentials>();
    axum::serve(socket.listener()?, app)
        .with_graceful_shutdown(shutdown)
        .await
}

/// Who is at the other end of the socket, as the kernel says.
#[derive(Clone, Copy, Debug)]
struct Credentials {
    uid: Option<u32>,
    pid: Option<i32>,
}

impl Connected<IncomingStream<'_, UnixListener>> for Credentials {
    fn connect_info(stream: IncomingStream<'_, UnixListener>) -> Self {
        let credentials = stream.io().peer_cred().ok();
        Self {
            uid: credentials.as_ref().map(tokio::net::unix::UCred::uid),
            pid: credentials.and_then(|credentials| credentials.pid()),
        }
    }
}

/// Who asks, and where it is noted what became of that.
#[derive(Clone, Debug)]
struct Peer {
    credentials: Credentials,
    events: Bus,
    /// Whether it has been noted.
    noted: Arc<AtomicBool>,
}

impl Peer {
    /// Notes what was done, or tried.
    fn audit<T>(&self, action: &str, object: &str, outcome: &Result<T, Problem>) {
        self.note(action, object, None, outcome.as_ref().err());
    }

    /// Notes what was changed to what, or tried to.
    fn audit_change<T>(
        &self,
        action: &str,
        object: &str,
        change: &impl Serialize,
        outcome: &Result<T, Problem>,
    ) {
        let change = serde_json::to_value(change).ok();
        self.note(action, object, change, outcome.as_ref().err());
    }

    fn note(
        &self,
        action: &str,
        object: &str,
        change: Option<serde_json::Value>,
        problem: Option<&Problem>,
    ) {
        let Credentials { uid, pid } = self.credentials;
        let action = OperatorAction {
            action: action.to_owned(),
            object: object.to_owned(),
            change,
            refusal: problem.map(|problem| Refusal {
                cause: problem.name().replace('-', "_"),
                detail: problem.detail.clone(),
            }),
            uid,
            pid,
        };
        self.events
            .publish_now(What::OperatorAction(Box::new(action)));
        self.noted.store(true, Ordering::Relaxed);
    }
}

/// Sees to it that no request that may change something goes unnoted, nor is left half done because who
/// has asked goes away.
async fn audited(
    ConnectInfo(credentials): ConnectInfo<Credentials>,
    State(operator): State<Operator>,
    mut request: Request,
    next: Next,
) -> Response {
    let peer = Peer {
        credentials,
        events: operator.daemon.events.clone(),
        noted: Arc::default(),
    };
    request.extensions_mut().insert(ConnectInfo(peer.clone()));
    if request.method().is_safe() {
        return next.run(request).await;
    }
    let action = request.method().as_str().to_lowercase();
    let object = request.uri().path().to_owned();
    let answered = tokio::spawn(async move {
        let response = next.run(request).await;
        if !peer.noted.load(Ordering::Relaxed) {
            peer.note(&action, &object, None, response.extensions().get());
        }
        response
    });
    answered.await.unwrap_or_else(|error| {
        error!(%error, "a request could not be answered");
        StatusCode::INTERNAL_SERVER_ERROR.into_response()
    })
}

#[derive(Clone)]
struct Operator {
    controller: Controller,
    daemon: Arc<Daemon>,
    sampler: Sampler,
    /// True once the daemon is ending.
    stopping: watch::Receiver<bool>,
}

type Answer<T> = Result<Json<T>, Problem>;

fn router(controller: Controller, daemon: Daemon, stopping: watch::Receiver<bool>) -> Router {
    let operator = Operator {
        controller,
        daemon: Arc::new(daemon),
        sampler: Sampler::default(),
        stopping,
    };
    let audited = middleware::from_fn_with_state(operator.clone(), audited);
    Router::new()
        .route("/v1/status", get(gateway::status))
        .route("/v1/realms", get(gateway::realms))
        .route("/v1/nics", get(nics::list).post(nics::attach))
        .route("/v1/nics/{name}", delete(nics::detach))
        .route("/v1/apps", get(apps::list).post(apps::add))
        .route(
            "/v1/apps/{name}",
            get(apps::show).patch(apps::set_policy).delete(apps::remove),
        )
        .merge(servers::router())
        .route("/v1/terminals", get(listing::terminals))
        .route(
            "/v1/terminals/{id}",
            get(devices::show_terminal).delete(devices::remove_terminal),
        )
        .route("/v1/terminals/{id}/suspend", post(devices::suspend))
        .route("/v1/terminals/{id}/resume", post(devices::resume))
        .route("/v1/terminals/{id}/refresh", post(devices::ask_for_refresh))
        .route("/v1/sessions", get(listing::sessions))
        .route("/v1/sessions/{id}/rotate", post(devices::rotate))
        .route("/v1/sessions/{id}", get(devices::show_session))
        .route("/v1/sessions/{id}/trace", get(trace::trace))
        .route("/v1/sessions/{id}/packets", get(trace::packets))
        .route("/v1/sessions/{id}/revoke", post(devices::revoke))
        .route(
            "/v1/sessions/{id}/tunnel",
            put(devices::set_tunnel).delete(devices::clear_tunnel),
        )
        .route("/v1/config/reload", post(reload::reload))
        .route("/v1/upgrade", post(upgrade::upgrade))
        .route("/v1/stats", get(gateway::show_stats))
        .route("/v1/events", get(events::stream))
        .route("/v1/activity", get(activity::show))
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
        .layer(middleware::from_fn(|request, next| {
            in_size(MAX_BODY_BYTES, request, next)
        }))
        .layer(middleware::from_fn(|request, next| {
            in_time(REQUEST_TIMEOUT, request, next)
        }))
        // As much, and for as long, as there are sessions.
        .route("/v1/sessions/export", get(transfer::export))
        .route("/v1/sessions/import", post(transfer::import))
        .layer(audited)
        .with_state(operator)
}

impl From<OperatorRefusal> for Problem {
    fn from(refusal: OperatorRefusal) -> Self {
        let (status, kind, title) = match refusal {
            OperatorRefusal::AppExists => (StatusCode::CONFLICT, "app-exists", "The name is taken"),
            OperatorRefusal::AppEnding => (
                StatusCode::CONFLICT,
                "app-ending",
                "The name is not free yet",
            ),
            OperatorRefusal::UnknownApp => {
                (StatusCode::NOT_FOUND, "unknown-app", "No such application")
            }
            OperatorRefusal::AppsFull => {
                (StatusCode::CONFLICT, "apps-full", "Too many applications")
            }
            OperatorRefusal::PrefixesFull => (
                StatusCode::CONFLICT,
                "prefixes-full",
                "Too many source prefixes",
            ),
            OperatorRefusal::CredentialExists => (
                StatusCode::CONFLICT,
                "credential-exists",
                "The credential is taken",
            ),
            OperatorRefusal::UnknownCredential => (
                StatusCode::NOT_FOUND,
                "unknown-credential",
                "No such credential",
            ),
            OperatorRefusal::UnknownTerminal => (
                StatusCode::NOT_FOUND,
                "unknown-terminal",
                "No such terminal",
            ),
            OperatorRefusal::EndpointKnown => (
                StatusCode::CONFLICT,
                "endpoint-known",
                "A terminal has this endpoint name",
            ),
            OperatorRefusal::TerminalsFull => (
                StatusCode::CONFLICT,
                "terminals-full",
                "There is no room for more terminals",
            ),
            OperatorRefusal::NotProvisioned(_) => (
                StatusCode::CONFLICT,
                "not-provisioned",
                "The terminal is not in the first operative state",
            ),
            OperatorRefusal::NotSuspended => (
                StatusCode::CONFLICT,
                "not-suspended",
                "The terminal is not suspended",
            ),
            OperatorRefusal::NotAuthorised => (
                StatusCode::CONFLICT,
                "not-authorised",
                "The session is not authorised",
            ),
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
