//! Has the daemon read its configuration anew.

use super::api::{ConfigChange, Reloaded};
use super::{Answer, Operator, Peer};
use crate::config::Change;
use crate::problem::Problem;
use crate::reload::ReloadError;
use axum::Json;
use axum::extract::{ConnectInfo, State};
use axum::http::StatusCode;

pub(super) async fn reload(
    State(operator): State<Operator>,
    ConnectInfo(peer): ConnectInfo<Peer>,
) -> Answer<Reloaded> {
    let in_force = &operator.daemon.in_force;
    let config = in_force.config().path.clone();
    let reloaded = in_force.reload().await;
    let reloaded = reloaded.map_err(Problem::from).map(|changes| {
        Json(Reloaded {
            config: config.clone(),
            changes: changes.into_iter().map(change).collect(),
        })
    });
    peer.audit("config reload", &config.display().to_string(), &reloaded);
    reloaded
}

fn change(change: Change) -> ConfigChange {
    let Change {
        key,
        before,
        after,
        needs_restart: _,
    } = change;
    ConfigChange { key, before, after }
}

impl From<ReloadError> for Problem {
    fn from(error: ReloadError) -> Self {
        let (status, kind, title) = match &error {
            ReloadError::Config(_) => (
                StatusCode::UNPROCESSABLE_ENTITY,
                "bad-config",
                "The configuration can't be used",
            ),
            ReloadError::NeedsRestart(_) => (
                StatusCode::CONFLICT,
                "needs-restart",
                "The configuration needs a restart",
            ),
            ReloadError::Refused(_) => (
                StatusCode::CONFLICT,
                "config-refused",
                "The data plane refuses the configuration",
            ),
            ReloadError::Stopped(_) => return Self::stopped(),
        };
        Self::new(status, kind, title, error.to_string())
    }
}
