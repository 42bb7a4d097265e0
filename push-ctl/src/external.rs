//! The external interface, for application servers: HTTPS and JSON. `GET /openapi.json` describes it.

pub mod tls;

#[cfg(test)]
mod tests;

use crate::app_key::AppKey;
use crate::controller::Controller;
use crate::problem::{Problem, Segment, in_size, in_time, no_such_method, no_such_path};
use crate::sessions::ValidationRefusal;
use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use axum::http::{HeaderMap, StatusCode, header};
use axum::routing::get;
use axum::{Json, Router, middleware};
use axum_server::Handle;
use axum_server::tls_rustls::{RustlsAcceptor, RustlsConfig};
use hyper_util::rt::TokioTimer;
use push_common::token::Token;
use push_common::wire::SessionId;
use serde::{Deserialize, Serialize};
use std::io;
use std::net::{IpAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;
use tracing::debug;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::{Modify, OpenApi, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

const MAX_BODY_BYTES: usize = 16 << 10;
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// For the head of a request, and how long a connection may be idle.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// For requests that are being answered when the daemon ends.
const GRACE: Duration = Duration::from_secs(2);

/// Answers application servers on these listeners until `shutdown` is through. They are told that triggers
/// are taken on the UDP port `trigger_port` of the addresses that the controller knows at that moment.
///
/// # Errors
///
/// A listener can't be used.
pub async fn serve(
    listeners: Vec<TcpListener>,
    tls: Arc<rustls::ServerConfig>,
    controller: Controller,
    trigger_port: u16,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    let app = router(controller, trigger_port);
    let handle = Handle::new();
    let mut servers = tokio::task::JoinSet::new();
    for listener in listeners {
        let acceptor = RustlsAcceptor::new(RustlsConfig::from_config(Arc::clone(&tls)))
            .handshake_timeout(HANDSHAKE_TIMEOUT);
        let mut server = axum_server::from_tcp(listener)?
            .acceptor(acceptor)
            .handle(handle.clone());
        server
            .http_builder()
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT);
        servers.spawn(server.serve(app.clone().into_make_service()));
    }
    let stop = async {
        shutdown.await;
        handle.graceful_shutdown(Some(GRACE));
        std::future::pending().await
    };
    let all_ended = async {
        while let Some(ended) = servers.join_next().await {
            ended.map_err(io::Error::other)??;
        }
        Ok(())
    };
    tokio::select! {
        result = all_ended => result,
        never = stop => never,
    }
}

/// Who answers, and with what.
#[derive(Clone)]
struct Gateway {
    controller: Controller,
    trigger_port: u16,
}

#[derive(OpenApi)]
#[openapi(
    info(title = "push, external interface", description = "For application servers: proves that a token is known, after which triggers for its session are delivered."),
    modifiers(&BearerKey),
)]
struct Document;

struct BearerKey;

impl Modify for BearerKey {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let scheme = HttpBuilder::new()
            .scheme(HttpAuthScheme::Bearer)
            .description(Some(
                "The key of the application, `pak_` and 64 hexadecimal digits.",
            ))
            .build();
        document
            .components
            .get_or_insert_with(utoipa::openapi::Components::new)
            .add_security_scheme("app_key", SecurityScheme::Http(scheme));
    }
}

fn router(controller: Controller, trigger_port: u16) -> Router {
    let gateway = Gateway {
        controller,
        trigger_port,
    };
    let (router, document) = OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(validate))
        .split_for_parts();
    let document =
        serde_json::to_string(&document).expect("a document made of texts and numbers is JSON");
    let json = [(header::CONTENT_TYPE, "application/json")];
    router
        .route(
            "/openapi.json",
            get(move || async move { (json, document) }),
        )
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
        .layer(middleware::from_fn(|request, next| {
            in_size(MAX_BODY_BYTES, request, next)
        }))
        .layer(middleware::from_fn(|request, next| {
            in_time(REQUEST_TIMEOUT, request, next)
        }))
        .with_state(gateway)
}

/// What an application's server proves to have.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct ValidateRequest {
    /// The token that the device was given for the session.
    #[schema(example = "ptk_00112233445566778899aabbccddeeff")]
    token: String,
}

/// The session is authorised.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
struct Validated {
    /// The session.
    #[schema(example = "deadbeef00000001")]
    session_id: String,
    /// Always true.
    authorised: bool,
    /// What to write into triggers as the token generation.
    token_generation: u8,
    /// Where to send triggers; first the addresses of the IP version by which the device is reached.
    #[schema(value_type = Vec<String>, example = json!(["198.51.100.1"]))]
    trigger_addresses: Vec<IpAddr>,
    /// UDP port to send them to.
    trigger_port: u16,
    /// Seconds until the session expires, unless the device refreshes its registration.
    expires_in_s: u64,
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
    security(("app_key" = [])),
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
        (status = 503, description = "stopping", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn validate(
    State(gateway): State<Gateway>,
    Segment(session_id): Segment,
    headers: HeaderMap,
    body: Result<Json<ValidateRequest>, JsonRejection>,
) -> Result<Json<Validated>, Problem> {
    let credential = app_key(&headers)
        .ok_or_else(|| problem(ValidationRefusal::InvalidCredential))?
        .id();
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
    let answer = gateway
        .controller
        .apply(move |sessions, now| sessions.validate(now, credential, id, &hash))
        .await
        .map_err(|_stopped| Problem::stopped())?;
    let authorisation = answer.map_err(|refusal| {
        debug!(session = %id, %refusal, "a validation was refused");
        problem(refusal)
    })?;
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

/// The key in `Authorization: Bearer …` (RFC 6750).
fn app_key(headers: &HeaderMap) -> Option<AppKey> {
    let (scheme, key) = headers
        .get(header::AUTHORIZATION)?
        .to_str()
        .ok()?
        .split_once(' ')?;
    scheme
        .eq_ignore_ascii_case("bearer")
        .then(|| key.trim().parse().ok())?
}

fn problem(refusal: ValidationRefusal) -> Problem {
    let (status, kind, title) = match refusal {
        ValidationRefusal::InvalidCredential => (
            StatusCode::UNAUTHORIZED,
            "invalid-app-key",
            "Not an application's key",
        ),
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
        ValidationRefusal::QuotaExceeded { .. } => (
            StatusCode::TOO_MANY_REQUESTS,
            "quota-exceeded",
            "Too many validations",
        ),
        ValidationRefusal::TooManyGuesses { .. } => (
            StatusCode::TOO_MANY_REQUESTS,
            "too-many-guesses",
            "Too many wrong tokens",
        ),
    };
    Problem::new(status, kind, title, refusal.to_string())
}
