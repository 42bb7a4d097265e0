//! Has the daemon become the push-ctl that is installed now.

use super::api::Upgrading;
use super::{Answer, Operator, Peer};
use crate::problem::Problem;
use crate::upgrade::UpgradeError;
use axum::Json;
use axum::extract::{ConnectInfo, State};
use axum::http::StatusCode;

pub(super) async fn upgrade(
    State(operator): State<Operator>,
    ConnectInfo(peer): ConnectInfo<Peer>,
) -> Answer<Upgrading> {
    let config = operator.daemon.in_force.config().path.clone();
    let upgrade = &operator.daemon.upgrade;
    let slots = operator.daemon.config.sessions.slots;
    let looked_at = upgrade.look_at(&config, slots).await.map_err(Problem::from);
    peer.audit("upgrade", "daemon", &looked_at);
    let to = looked_at?;
    upgrade.begin();
    Ok(Json(Upgrading {
        from: env!("CARGO_PKG_VERSION").to_owned(),
        to,
    }))
}

impl From<UpgradeError> for Problem {
    fn from(error: UpgradeError) -> Self {
        let title = "What is installed now can't take over";
        Self::new(
            StatusCode::CONFLICT,
            "upgrade-refused",
            title,
            error.to_string(),
        )
    }
}
