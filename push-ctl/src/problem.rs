//! What went wrong with a request over HTTP (RFC 9457).

use crate::controller::Stopped;
use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::JsonRejection;
use axum::extract::{FromRequestParts, Path, Request};
use axum::http::request::Parts;
use axum::http::{HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt;
use serde::{Deserialize, Serialize};
use std::time::Duration;
use utoipa::ToSchema;
use zeroize::Zeroizing;

/// More than this isn't read of any request.
const MAX_DISCARDED_BYTES: usize = 32 << 20;

/// The answer to a request that failed, as `application/problem+json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// What kind of problem it is: `urn:push:problem:` and its name.
    #[serde(rename = "type")]
    #[schema(example = "urn:push:problem:unknown-session")]
    pub kind: String,
    /// The kind in words.
    pub title: String,
    /// The status code of the answer.
    pub status: u16,
    /// What is wrong in this case.
    pub detail: String,
    /// Seconds until it makes sense to ask again, if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_s: Option<u64>,
}

const KINDS: &str = "urn:push:problem:";

/// When it may have been possible to deliver for a session that it wasn't possible for.
const NOT_IN_EFFECT_RETRY_S: u64 = 5;

impl Problem {
    /// The name of its kind, in words with hyphens between them.
    #[must_use]
    pub fn name(&self) -> &str {
        self.kind.strip_prefix(KINDS).unwrap_or(&self.kind)
    }

    /// A problem of this kind.
    #[must_use]
    pub fn new(status: StatusCode, kind: &str, title: &str, detail: impl Into<String>) -> Self {
        Self {
            kind: format!("{KINDS}{kind}"),
            title: title.to_owned(),
            status: status.as_u16(),
            detail: detail.into(),
            retry_after_s: None,
        }
    }

    /// More was asked for than is permitted in this time.
    #[must_use]
    pub fn quota_exceeded(detail: String, retry_after: Duration) -> Self {
        Self::too_many("quota-exceeded", "A quota is used up", detail, retry_after)
    }

    /// Sessions together would have more triggers per second than they may.
    #[must_use]
    pub fn trigger_rate_exceeded(detail: String, retry_after: Duration) -> Self {
        let title = "No more triggers per second can be granted";
        Self::too_many("trigger-rate-exceeded", title, detail, retry_after)
    }

    /// Too much that was presented wasn't right.
    #[must_use]
    pub fn too_many_guesses(detail: String, retry_after: Duration) -> Self {
        Self::too_many("too-many-guesses", "Too many guesses", detail, retry_after)
    }

    fn too_many(kind: &str, title: &str, detail: String, retry_after: Duration) -> Self {
        // Who comes a moment too early would be refused again.
        let seconds = retry_after.as_nanos().div_ceil(1_000_000_000).max(1);
        Self {
            retry_after_s: Some(u64::try_from(seconds).unwrap_or(u64::MAX)),
            ..Self::new(StatusCode::TOO_MANY_REQUESTS, kind, title, detail)
        }
    }

    /// The data plane has no room for what was permitted, or no way there. Why is the operator's to know.
    #[must_use]
    pub fn not_in_effect() -> Self {
        let detail = "the token is good, but the gateway can't deliver for this session at the moment; its operator can \
                      see why. It keeps trying: ask again until the answer is another one";
        Self {
            retry_after_s: Some(NOT_IN_EFFECT_RETRY_S),
            ..Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "not-in-effect",
                "The session is not in effect yet",
                detail,
            )
        }
    }

    /// The controller doesn't answer any more.
    #[must_use]
    pub fn stopped() -> Self {
        let detail = "the controller is stopping; ask again in a moment";
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "stopping",
            "The gateway is stopping",
            detail,
        )
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let retry_after_s = self.retry_after_s;
        let mut response = (status, Json(&self)).into_response();
        // For who wants to know what was answered.
        response.extensions_mut().insert(self);
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(seconds) = retry_after_s {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        response
    }
}

impl From<Stopped> for Problem {
    fn from(_: Stopped) -> Self {
        Self::stopped()
    }
}

/// A body isn't the JSON that is asked for. What was in it is not repeated: it may hold a secret.
impl From<JsonRejection> for Problem {
    fn from(rejection: JsonRejection) -> Self {
        match rejection.status() {
            StatusCode::UNSUPPORTED_MEDIA_TYPE => Self::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "not-json",
                "The body is not JSON",
                "send JSON, with `Content-Type: application/json`",
            ),
            _ => malformed("the body is not the JSON that this request takes"),
        }
    }
}

/// The segment of the path that varies.
pub(crate) struct Segment(pub(crate) String);

impl<S: Send + Sync> FromRequestParts<S> for Segment {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match Path::from_request_parts(parts, state).await {
            Ok(Path(segment)) => Ok(Self(segment)),
            // It isn't text.
            Err(_) => Err(no_such_path(parts.uri.clone()).await),
        }
    }
}

/// The two segments of the path that vary.
pub(crate) struct TwoSegments(pub(crate) String, pub(crate) String);

impl<S: Send + Sync> FromRequestParts<S> for TwoSegments {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match Path::from_request_parts(parts, state).await {
            Ok(Path((first, second))) => Ok(Self(first, second)),
            // One of them isn't text.
            Err(_) => Err(no_such_path(parts.uri.clone()).await),
        }
    }
}

/// Answers a request for a path that doesn't exist.
pub(crate) async fn no_such_path(uri: Uri) -> Problem {
    Problem::new(
        StatusCode::NOT_FOUND,
        "unknown-path",
        "There is no such path",
        format!("{} is no path here", uri.path()),
    )
}

/// Answers a request with a method that the path doesn't have.
pub(crate) async fn no_such_method(method: Method, uri: Uri) -> Problem {
    let detail = format!("{} has no {method}", uri.path());
    Problem::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "unknown-method",
        "The path has no such method",
        detail,
    )
}

/// Answers requests with a body of more than `limit_bytes`.
pub(crate) async fn in_size(limit_bytes: usize, request: Request, next: Next) -> Response {
    let (head, body) = request.into_parts();
    let announced: Option<usize> = head
        .headers
        .get(header::CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok())
        .and_then(|length| length.parse().ok());
    let waits_to_be_asked = head.headers.contains_key(header::EXPECT);
    if waits_to_be_asked && announced.is_some_and(|length| length > limit_bytes) {
        return too_large(limit_bytes);
    }
    let mut collected = Vec::new();
    let mut body = body.into_data_stream();
    let mut len_bytes = 0_usize;
    while let Some(chunk) = body.next().await {
        let Ok(chunk) = chunk else {
            return closing(malformed("the request ended before its body did"));
        };
        len_bytes = len_bytes.saturating_add(chunk.len());
        // What is too much is read and thrown away, up to a point: who is still sending when the
        // connection is closed doesn't get to see the answer.
        if len_bytes <= limit_bytes {
            collected.extend_from_slice(&chunk);
        } else if len_bytes > MAX_DISCARDED_BYTES {
            break;
        }
    }
    if len_bytes > limit_bytes {
        return too_large(limit_bytes);
    }
    // There may be a token in it.
    let collected = Bytes::from_owner(Zeroizing::new(collected));
    next.run(Request::from_parts(head, collected.into())).await
}

fn malformed(detail: &str) -> Problem {
    Problem::new(
        StatusCode::BAD_REQUEST,
        "malformed-body",
        "The body is malformed",
        detail,
    )
}

fn too_large(limit_bytes: usize) -> Response {
    let detail = format!("a body has {limit_bytes} bytes at most");
    let problem = Problem::new(
        StatusCode::PAYLOAD_TOO_LARGE,
        "body-too-large",
        "The body is too large",
        detail,
    );
    closing(problem)
}

/// An answer after which the connection is closed, as the rest of the request may still be on its way.
fn closing(problem: Problem) -> Response {
    let mut response = problem.into_response();
    response
        .headers_mut()
        .insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

/// Answers requests that take longer than `limit`, be it to arrive.
pub(crate) async fn in_time(limit: Duration, request: Request, next: Next) -> Response {
    match tokio::time::timeout(limit, next.run(request)).await {
        Ok(response) => response,
        Err(_elapsed) => {
            let detail = format!("the request was not complete after {} s", limit.as_secs());
            let problem = Problem::new(
                StatusCode::REQUEST_TIMEOUT,
                "timeout",
                "The request took too long",
                detail,
            );
            closing(problem)
        }
    }
}
