//! What an application's server does with a session: proves to hold its token, and says that it is done.

use super::Gateway;
use super::identity::{Identified, unidentified};
use crate::problem::{Problem, Segment};
use crate::sessions::ValidationRefusal;
use axum::Json;
use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use axum::http::StatusCode;
use push_common::token::Token;
use push_common::wire::SessionId;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;
use tracing::debug;
use utoipa::ToSchema;
use zeroize::Zeroizing;

/// What an application's server proves to have.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ValidateRequest {
    /// The token that the device was given for the session.
    #[schema(value_type = String, example = "ptk_00112233445566778899aabbccddeeff")]
    token: Zeroizing<String>,
}

/// The session is authorised.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub(super) struct Validated {
    /// The session.
    #[schema(example = "deadbeef00000001")]
    pub(super) session_id: String,
    /// Always true.
    pub(super) authorised: bool,
    /// What to write into triggers as the token generation.
    pub(super) token_generation: u8,
    /// Where to send triggers; first the addresses of the IP version by which the device is reached.
    #[schema(value_type = Vec<String>, example = json!(["198.51.100.1"]))]
    pub(super) trigger_addresses: Vec<IpAddr>,
    /// UDP port to send them to.
    pub(super) trigger_port: u16,
    /// Seconds until the session expires, unless the device refreshes its registration.
    pub(super) expires_in_s: u64,
}

/// Prove to hold the token of a session
///
/// From then on, until the session ends, triggers that are signed with the token are delivered. To do it
/// again is harmless.
#[utoipa::path(
    post,
    path = "/v1/sessions/{session_id}/validate",
    params(("session_id" = String, Path, description = "16 hexadecimal digits", example = "deadbeef00000001")),
    request_body = ValidateRequest,
    security(("app_key" = []), ("certificate" = [])),
    responses(
        (status = 200, description = "The session is authorised", body = Validated),
        (status = 400, description = "malformed-body", body = Problem, content_type = "application/problem+json"),
        (status = 401, description = "invalid-app-key", body = Problem, content_type = "application/problem+json"),
        (status = 403, description = "token-mismatch", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "unknown-session", body = Problem, content_type = "application/problem+json"),
        (status = 408, description = "timeout", body = Problem, content_type = "application/problem+json"),
        (status = 410, description = "session-ended", body = Problem, content_type = "application/problem+json"),
        (status = 413, description = "body-too-large", body = Problem, content_type = "application/problem+json"),
        (status = 415, description = "not-json", body = Problem, content_type = "application/problem+json"),
        (status = 429, description = "quota-exceeded, trigger-rate-exceeded, too-many-guesses", body = Problem, content_type = "application/problem+json",
            headers(("retry-after" = u64, description = "Seconds until it makes sense to ask again"))),
        (status = 503, description = "stopping, not-in-effect", body = Problem, content_type = "application/problem+json",
            headers(("retry-after" = u64, description = "Seconds until it makes sense to ask again"))),
    ),
)]
pub(super) async fn validate(
    State(gateway): State<Gateway>,
    Segment(session_id): Segment,
    Identified(credential): Identified,
    body: Result<Json<ValidateRequest>, JsonRejection>,
) -> Result<Json<Validated>, Problem> {
    let Json(request) = body?;
    let id: SessionId = session_id
        .parse()
        .map_err(|_| problem(ValidationRefusal::UnknownSession))?;
    // A text that is no token is not this session's.
    let token: Token = request
        .token
        .parse()
        .map_err(|_| problem(ValidationRefusal::TokenMismatch))?;
    let hash = token.hash();
    let answer = gateway.controller.apply(move |sessions, now| {
        let answer = sessions.validate(now, credential, id, &hash)?;
        let app = sessions.credential(now, credential);
        Ok((answer, app.map(|(app, _)| app.name.clone())))
    });
    let (authorisation, app) = answer.await?.map_err(|refusal| {
        debug!(session = %id, %refusal, "a validation was refused");
        problem(refusal)
    })?;
    if let Some(app) = app {
        gateway.hints.validated(app);
    }
    let why = gateway
        .controller
        .observe(move |view| view.not_in_kernel(id).map(str::to_owned));
    if let Some(why) = why.await? {
        debug!(session = %id, why, "a session was validated that can't be delivered for");
        return Err(Problem::not_in_effect());
    }
    let mut trigger_addresses = gateway.controller.trigger_addresses();
    trigger_addresses.sort_by_key(|address| address.is_ipv4() != authorisation.device.is_ipv4());
    Ok(Json(Validated {
        session_id: id.to_string(),
        authorised: true,
        token_generation: authorisation.token_generation,
        trigger_addresses,
        trigger_port: gateway.trigger_port,
        expires_in_s: authorisation.expires_in.as_secs(),
    }))
}

/// Be done with a session
///
/// It ends: its triggers are refused, and the app on the device is told.
#[utoipa::path(
    delete,
    path = "/v1/sessions/{session_id}",
    params(("session_id" = String, Path, description = "16 hexadecimal digits", example = "deadbeef00000001")),
    security(("app_key" = []), ("certificate" = [])),
    responses(
        (status = 204, description = "The session has ended"),
        (status = 400, description = "malformed-body", body = Problem, content_type = "application/problem+json"),
        (status = 401, description = "invalid-app-key", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "unknown-session", body = Problem, content_type = "application/problem+json"),
        (status = 408, description = "timeout", body = Problem, content_type = "application/problem+json"),
        (status = 410, description = "session-ended", body = Problem, content_type = "application/problem+json"),
        (status = 413, description = "body-too-large", body = Problem, content_type = "application/problem+json"),
        (status = 429, description = "too-many-guesses", body = Problem, content_type = "application/problem+json",
            headers(("retry-after" = u64, description = "Seconds until it makes sense to ask again"))),
        (status = 503, description = "stopping", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn end(
    State(gateway): State<Gateway>,
    Segment(session_id): Segment,
    Identified(credential): Identified,
) -> Result<StatusCode, Problem> {
    let id: SessionId = session_id
        .parse()
        .map_err(|_| problem(ValidationRefusal::UnknownSession))?;
    let ended = gateway
        .controller
        .apply(move |sessions, now| sessions.end_by_app(now, credential, id));
    ended.await?.map_err(problem)?;
    Ok(StatusCode::NO_CONTENT)
}

fn problem(refusal: ValidationRefusal) -> Problem {
    let (status, kind, title) = match refusal {
        ValidationRefusal::InvalidCredential => return unidentified(&refusal),
        ValidationRefusal::UnknownSession => {
            (StatusCode::NOT_FOUND, "unknown-session", "No such session")
        }
        ValidationRefusal::TokenMismatch => (
            StatusCode::FORBIDDEN,
            "token-mismatch",
            "Not the session's token",
        ),
        ValidationRefusal::SessionEnded(_) => {
            (StatusCode::GONE, "session-ended", "The session is over")
        }
        ValidationRefusal::QuotaExceeded { retry_after } => {
            return Problem::quota_exceeded(refusal.to_string(), retry_after);
        }
        ValidationRefusal::RateExceeded { retry_after, .. }
        | ValidationRefusal::RateNotLimited { retry_after, .. } => {
            return Problem::trigger_rate_exceeded(refusal.to_string(), retry_after);
        }
        ValidationRefusal::TooManyGuesses { retry_after } => {
            return Problem::too_many_guesses(refusal.to_string(), retry_after);
        }
    };
    Problem::new(status, kind, title, refusal.to_string())
}
