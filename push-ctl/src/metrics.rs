//! Metrics and health, for machines that watch: HTTP on a TCP port of its own, off unless configured.
//!
//! | path | answers |
//! | --- | --- |
//! | `/metrics` | all figures as `OpenMetrics`, read from controller and kernel when asked for |
//! | `/healthz` | 200 if the controller answers |
//! | `/readyz` | 200 if, besides, all NICs have the program and the store can be written to |

mod snapshot;
#[cfg(test)]
mod tests;

use crate::admin::Daemon;
use crate::admission::{Admission, Admitting, Limits};
use crate::controller::Controller;
use crate::internal::NoticeCounters;
use crate::problem::{Problem, in_time, no_such_method, no_such_path};
use crate::sessions::Notice;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Router, middleware};
use axum_server::Handle;
use axum_server::accept::DefaultAcceptor;
use hyper_util::rt::TokioTimer;
use nix::sys::statvfs::{FsFlags, statvfs};
use nix::unistd::{AccessFlags, access};
use snapshot::Snapshot;
use std::io;
use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc::WeakSender;
use tokio::time::timeout;

/// A request that takes longer gets a refusal.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// A controller that takes longer to answer is not healthy.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// How long requests that are being answered may take when the daemon ends.
const GRACE: Duration = Duration::from_secs(1);

/// Few ask, and each question is one that costs something.
const CONNECTIONS: Limits = Limits {
    whose: "a machine that watches",
    of_source: 16,
    of_all: 64,
};

/// What is looked at.
#[derive(Clone)]
pub struct Sources {
    /// Sessions and data plane.
    pub controller: Controller,
    /// What doesn't change.
    pub daemon: Daemon,
    /// Where messages to devices wait to be sent; weak, so that who sends them can end.
    pub notices: WeakSender<Notice>,
    /// What becomes of them.
    pub notice_counters: NoticeCounters,
}

/// Answers on these sockets until `shutdown` is through; until then, too, if there are none.
///
/// # Errors
///
/// A socket can't be used.
pub async fn serve(
    listeners: Vec<TcpListener>,
    sources: Sources,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    let app = router(sources);
    let handle = Handle::new();
    let admission = Admission::new(CONNECTIONS);
    let mut servers = tokio::task::JoinSet::new();
    for listener in listeners {
        let mut server = axum_server::from_tcp(listener)?
            .acceptor(Admitting {
                admission: admission.clone(),
                inner: DefaultAcceptor,
            })
            .handle(handle.clone());
        server
            .http_builder()
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(REQUEST_TIMEOUT);
        servers.spawn(server.serve(app.clone().into_make_service()));
    }
    shutdown.await;
    handle.graceful_shutdown(Some(GRACE));
    while let Some(ended) = servers.join_next().await {
        ended.map_err(io::Error::other)??;
    }
    Ok(())
}

fn router(sources: Sources) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
        .layer(middleware::from_fn(|request, next| {
            in_time(REQUEST_TIMEOUT, request, next)
        }))
        .with_state(Arc::new(sources))
}

async fn metrics(State(sources): State<Arc<Sources>>) -> Result<Response, Problem> {
    let snapshot = Snapshot::take(&sources).await.map_err(|error| {
        let detail = format!("{error:#}");
        not_well("no-metrics", "There are no figures to be had", detail)
    })?;
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([(header::CONTENT_TYPE, kind)], snapshot.into_text()).into_response())
}

async fn healthz(State(sources): State<Arc<Sources>>) -> Result<&'static str, Problem> {
    answers(&sources).await.map(|()| "the controller answers\n")
}

async fn readyz(State(sources): State<Arc<Sources>>) -> Result<&'static str, Problem> {
    answers(&sources).await?;
    let not_ready = |detail: String| not_well("not-ready", "The gateway is not ready", detail);
    let nics = sources.controller.nics().await;
    let nics = nics.map_err(|error| not_ready(format!("{error:#}")))?;
    let lacking: Vec<_> = nics
        .iter()
        .filter(|nic| nic.mode == "none")
        .map(|nic| nic.name.as_str())
        .collect();
    if !lacking.is_empty() {
        let lacking = lacking.join(", ");
        return Err(not_ready(format!("the program is not on {lacking}")));
    }
    writable(&sources.daemon.store)
        .map_err(|why| not_ready(format!("the store can't be written to: {why}")))?;
    Ok("the controller answers, the program is on all NICs, the store can be written to\n")
}

async fn answers(sources: &Sources) -> Result<(), Problem> {
    let title = "The controller doesn't answer";
    // All the way, as devices have it.
    match timeout(ANSWER_TIMEOUT, sources.controller.apply(|_, _| ())).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(stopped)) => Err(not_well("unhealthy", title, stopped.to_string())),
        Err(_elapsed) => {
            let detail = format!("not within {} s", ANSWER_TIMEOUT.as_secs());
            Err(not_well("unhealthy", title, detail))
        }
    }
}

fn not_well(kind: &str, title: &str, detail: String) -> Problem {
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, kind, title, detail)
}

/// Whether there is permission and room to write to this file.
fn writable(file: &Path) -> Result<(), String> {
    access(file, AccessFlags::W_OK).map_err(|errno| errno.desc().to_owned())?;
    let system = statvfs(file).map_err(|errno| errno.desc().to_owned())?;
    if system.flags().contains(FsFlags::ST_RDONLY) {
        return Err("the file system is mounted read-only".to_owned());
    }
    if system.blocks_available() == 0 {
        return Err("the file system is full".to_owned());
    }
    Ok(())
}
