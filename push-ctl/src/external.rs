//! The external interface, for application servers: HTTPS and JSON. `GET /openapi.json` describes it.

mod availability;
mod client_certificates;
mod identity;
mod sessions;
pub mod tls;

#[cfg(test)]
pub(crate) mod tests;

use crate::admission::{Admission, Admitting, Limits};
use crate::controller::Controller;
use crate::credentials::Verifier;
use crate::monitoring::Hints;
use crate::problem::{in_size, in_time, no_such_method, no_such_path};
use axum::http::header;
use axum::routing::get;
use axum::{Router, middleware};
use axum_server::Handle;
use axum_server::tls_rustls::{RustlsAcceptor, RustlsConfig};
use client_certificates::Acceptor;
use hyper_util::rt::TokioTimer;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::{Modify, OpenApi};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

const MAX_BODY_BYTES: usize = 16 << 10;
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// For the head of a request, and how long a connection may be idle.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// For requests that are being answered when the daemon ends.
const GRACE: Duration = Duration::from_secs(2);

/// An idle one costs a few KiB before its handshake, and about 50 after it.
const CONNECTIONS: Limits = Limits {
    whose: "an application server",
    of_source: 256,
    of_all: 16_384,
};

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
    hints: Hints,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    let app = router(controller, trigger_port, hints);
    let handle = Handle::new();
    let admission = Admission::new(CONNECTIONS);
    let mut servers = tokio::task::JoinSet::new();
    for listener in listeners {
        let acceptor = RustlsAcceptor::new(RustlsConfig::from_config(Arc::clone(&tls)))
            .handshake_timeout(HANDSHAKE_TIMEOUT);
        let mut server = axum_server::from_tcp(listener)?
            .acceptor(Admitting {
                admission: admission.clone(),
                inner: Acceptor(acceptor),
            })
            .handle(handle.clone());
        server
            .http_builder()
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT);
        let app = app
            .clone()
            .into_make_service_with_connect_info::<SocketAddr>();
        servers.spawn(server.serve(app));
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
    verifier: Verifier,
    hints: Hints,
}

#[derive(OpenApi)]
#[openapi(
    info(title = "push, external interface", description = "For application servers: proves that a token is known, after which triggers for its session are delivered."),
    modifiers(&Credentials),
)]
struct Document;

/// By what a server identifies itself.
struct Credentials;

impl Modify for Credentials {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let key = HttpBuilder::new()
            .scheme(HttpAuthScheme::Bearer)
            .description(Some(
                "The key of the application, `pak_` and 64 hexadecimal digits.",
            ))
            .build();
        let certificate = SecurityScheme::MutualTls {
            description: Some(
                "A client certificate, self-signed or not, whose fingerprint is the application's."
                    .to_owned(),
            ),
            deprecated: None,
            extensions: None,
        };
        let components = document
            .components
            .get_or_insert_with(utoipa::openapi::Components::new);
        components.add_security_scheme("app_key", SecurityScheme::Http(key));
        components.add_security_scheme("certificate", certificate);
    }
}

fn router(controller: Controller, trigger_port: u16, hints: Hints) -> Router {
    let gateway = Gateway {
        controller,
        trigger_port,
        verifier: Verifier::default(),
        hints,
    };
    let (router, document) = OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(sessions::validate))
        .routes(routes!(sessions::end))
        .routes(routes!(availability::set))
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
