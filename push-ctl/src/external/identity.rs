//! Which credential a request comes with.

use super::Gateway;
use super::client_certificates::ClientCertificate;
use crate::credentials::{ApiKey, Fingerprint, KeyRefusal, Recalled};
use crate::problem::Problem;
use crate::sessions::records::{Credential, CredentialId, Proof};
use axum::extract::{ConnectInfo, FromRequestParts};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// The credential by which a request has identified itself. That it is what it says it is has been proved;
/// whether it is still good, and of which application, is asked together with what the request is about.
pub(super) struct Identified(pub(super) CredentialId);

impl FromRequestParts<Gateway> for Identified {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, gateway: &Gateway) -> Result<Self, Problem> {
        // A key counts before a certificate, as it was put into this very request.
        if parts.headers.contains_key(header::AUTHORIZATION) {
            let key = bearer(&parts.headers).ok_or_else(|| unidentified(&KeyRefusal::Wrong))?;
            return by_key(gateway, key, source(parts)).await.map(Self);
        }
        match parts.extensions.get() {
            Some(&ClientCertificate(Some(fingerprint))) => {
                by_certificate(gateway, fingerprint).await.map(Self)
            }
            Some(ClientCertificate(None)) | None => Err(unidentified(
                &"identify with the key of the application, `Authorization: Bearer pak_…`, or with its certificate",
            )),
        }
    }
}

/// The key in `Authorization: Bearer …` (RFC 6750).
fn bearer(headers: &HeaderMap) -> Option<ApiKey> {
    let (scheme, key) = headers
        .get(header::AUTHORIZATION)?
        .to_str()
        .ok()?
        .split_once(' ')?;
    scheme
        .eq_ignore_ascii_case("bearer")
        .then(|| key.trim().parse().ok())?
}

async fn by_key(gateway: &Gateway, key: ApiKey, from: IpAddr) -> Result<CredentialId, Problem> {
    let too_many = |refusal| key_problem(KeyRefusal::TooManyGuesses(refusal));
    match gateway.verifier.recall(&key, from).map_err(too_many)? {
        Recalled::Right(id) => Ok(id),
        Recalled::Unknown(id) => {
            let named = credential(gateway, id).await?;
            let found = match named {
                Some(_) => named,
                None => credential(gateway, key.old_id()).await?,
            };
            let verified = gateway.verifier.verify(key, found, from).await;
            verified.map_err(key_problem)
        }
    }
}

async fn by_certificate(gateway: &Gateway, shown: Fingerprint) -> Result<CredentialId, Problem> {
    match credential(gateway, shown.id()).await? {
        Some(Credential {
            proof: Proof::Certificate(digest),
            id,
            ..
        }) if Fingerprint(digest) == shown => Ok(id),
        Some(_) | None => Err(unidentified(
            &"no application has the certificate that the client has shown",
        )),
    }
}

/// The credential of this name, if it is accepted.
async fn credential(gateway: &Gateway, id: CredentialId) -> Result<Option<Credential>, Problem> {
    let found = gateway.controller.observe(move |view| {
        let (_, credential) = view.sessions.credential(view.now, id)?;
        Some(credential.clone())
    });
    Ok(found.await?)
}

/// Where the request comes from: who guesses is told apart by it.
fn source(parts: &Parts) -> IpAddr {
    let peer = parts.extensions.get::<ConnectInfo<SocketAddr>>();
    peer.map_or(Ipv4Addr::UNSPECIFIED.into(), |peer| peer.ip())
}

fn key_problem(refusal: KeyRefusal) -> Problem {
    match refusal {
        KeyRefusal::Wrong => unidentified(&refusal),
        KeyRefusal::TooManyGuesses(guesses) => {
            Problem::too_many_guesses(guesses.to_string(), guesses.retry_after)
        }
    }
}

/// Nobody that is known.
pub(super) fn unidentified(why: &dyn std::fmt::Display) -> Problem {
    Problem::new(
        StatusCode::UNAUTHORIZED,
        "invalid-app-key",
        "Not an application's key or certificate",
        why.to_string(),
    )
}
