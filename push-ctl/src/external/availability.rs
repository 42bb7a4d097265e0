//! What an application's server says of itself.

use super::Gateway;
use super::identity::{Identified, unidentified};
use crate::credentials::KeyRefusal;
use crate::problem::Problem;
use crate::sessions::records::AppFailure;
use axum::Json;
use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Whether the servers of the application do their work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Available {
    /// If not, the application's sessions end, and its apps get no new ones.
    available: bool,
}

/// Say whether the application is available
///
/// When it isn't, all of its sessions end: their tokens are no longer valid, and the apps on the devices
/// are told. Devices get sessions for it again once it is.
#[utoipa::path(
    put,
    path = "/v1/availability",
    request_body = Available,
    security(("app_key" = []), ("certificate" = [])),
    responses(
        (status = 200, description = "As was said", body = Available),
        (status = 400, description = "malformed-body", body = Problem, content_type = "application/problem+json"),
        (status = 401, description = "invalid-app-key", body = Problem, content_type = "application/problem+json"),
        (status = 408, description = "timeout", body = Problem, content_type = "application/problem+json"),
        (status = 413, description = "body-too-large", body = Problem, content_type = "application/problem+json"),
        (status = 415, description = "not-json", body = Problem, content_type = "application/problem+json"),
        (status = 429, description = "too-many-guesses", body = Problem, content_type = "application/problem+json",
            headers(("retry-after" = u64, description = "Seconds until it makes sense to ask again"))),
        (status = 503, description = "stopping", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn set(
    State(gateway): State<Gateway>,
    Identified(credential): Identified,
    body: Result<Json<Available>, JsonRejection>,
) -> Result<Json<Available>, Problem> {
    let Json(Available { available }) = body?;
    let known = gateway.controller.apply(move |sessions, now| {
        let (app, _) = sessions.credential(now, credential)?;
        let app = app.name.clone();
        if available {
            sessions.app_recovered(&app).ok()
        } else {
            let ended = sessions.app_failed(now, &app, AppFailure::Announced);
            ended.ok().map(drop)
        }
    });
    let unknown = || unidentified(&KeyRefusal::Wrong);
    known.await?.ok_or_else(unknown)?;
    Ok(Json(Available { available }))
}
