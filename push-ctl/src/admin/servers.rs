//! Application servers: by what they identify themselves, what they may ask for, and how they are looked after.

use super::api::{
    AddCredential, AppStatus, AvailabilityStatus, CredentialAdded, CredentialRemoved,
    CredentialStatus, KeysRotated, MonitorStatus, QuotaChange, QuotaStatus, RotateKeys,
};
use super::apps::{app_status, rfc3339};
use super::{Answer, Operator, Peer};
use crate::credentials::{ApiKey, Certificate};
use crate::durations;
use crate::monitoring::StatusUrl;
use crate::problem::{Problem, Segment, TwoSegments};
use crate::sessions::records::{
    AppName, Availability, Credential, CredentialId, Monitor, Proof, Quotas, UnixTime,
};
use crate::sessions::{OperatorRefusal, Sessions};
use axum::extract::rejection::JsonRejection;
use axum::extract::{ConnectInfo, State};
use axum::http::StatusCode;
use axum::routing::{get, patch, post, put};
use axum::{Json, Router};
use serde_json::json;
use std::ops::RangeInclusive;
use std::time::Duration;
use zeroize::Zeroizing;

/// How often servers can be asked how they are.
const INTERVAL: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_hours(24);

/// How long they can be without a good answer.
const UNREACHABLE_AFTER: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_hours(24 * 30);

/// How long an application can be without use.
const INACTIVE_AFTER: RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_hours(24 * 365);

/// How long keys can be good beside the one that takes their place.
const MAX_OVERLAP: Duration = Duration::from_hours(24 * 365);

pub(super) fn router() -> Router<Operator> {
    Router::new()
        .route("/v1/apps/{name}/credentials", get(list).post(add))
        .route("/v1/apps/{name}/credentials/rotate", post(rotate))
        .route(
            "/v1/apps/{name}/credentials/{id}",
            axum::routing::delete(remove),
        )
        .route("/v1/apps/{name}/quotas", patch(set_quotas))
        .route(
            "/v1/apps/{name}/monitor",
            put(set_monitor).delete(clear_monitor),
        )
}

/// A key that was just made, and what is kept of it.
pub(super) struct NewKey {
    pub(super) id: CredentialId,
    pub(super) text: Zeroizing<String>,
    pub(super) proof: Proof,
}

pub(super) async fn new_key() -> Result<NewKey, Problem> {
    let made = tokio::task::spawn_blocking(|| {
        let key = ApiKey::generate();
        NewKey {
            id: key.id(),
            text: key.to_text(),
            proof: Proof::ApiKey(key.hash()),
        }
    });
    // It fails only if the runtime is shutting down.
    made.await.map_err(|_| Problem::stopped())
}

pub(super) fn credential(
    now: UnixTime,
    id: CredentialId,
    proof: Proof,
    expires: Option<UnixTime>,
) -> Credential {
    Credential {
        id,
        proof,
        created: now,
        expires,
    }
}

async fn list(
    State(operator): State<Operator>,
    Segment(name): Segment,
) -> Answer<Vec<CredentialStatus>> {
    let name = known_name(&name)?;
    let listed = operator.controller.observe(move |view| {
        let app = view.sessions.app(&name)?;
        Some(app.credentials.iter().map(credential_status).collect())
    });
    let listed: Option<Vec<_>> = listed.await?;
    listed.map(Json).ok_or_else(unknown_app)
}

async fn add(
    State(operator): State<Operator>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Segment(name): Segment,
    body: Result<Json<AddCredential>, JsonRejection>,
) -> Answer<CredentialAdded> {
    let Json(AddCredential { certificate }) = body?;
    let added = async {
        let name = known_name(&name)?;
        let (id, proof, expires, text) = match certificate {
            Some(pem) => {
                let certificate = Certificate::from_pem(&pem)
                    .map_err(|error| bad_credential(error.to_string()))?;
                let fingerprint = certificate.fingerprint;
                let proof = Proof::Certificate(fingerprint.0);
                (fingerprint.id(), proof, Some(certificate.expires), None)
            }
            None => {
                let NewKey { id, text, proof } = new_key().await?;
                (id, proof, None, Some(text))
            }
        };
        let added = operator.controller.apply(move |sessions, now| {
            if expires.is_some_and(|expires| expires <= now) {
                return Err(bad_credential("the certificate has expired".to_owned()));
            }
            let credential = credential(now, id, proof, expires);
            let status = credential_status(&credential);
            sessions.add_credential(now, &name, credential)?;
            Ok(status)
        });
        Ok(Json(CredentialAdded {
            credential: added.await??,
            api_key: text.map(|text| text.to_string()),
        }))
    };
    let added: Answer<CredentialAdded> = added.await;
    let what = added.as_ref().ok().map(|added| &added.credential);
    peer.audit_change("app key add", &name, &what, &added);
    added
}

async fn rotate(
    State(operator): State<Operator>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Segment(name): Segment,
    body: Result<Json<RotateKeys>, JsonRejection>,
) -> Answer<KeysRotated> {
    let Json(asked) = body?;
    let overlap = Duration::from_secs(asked.overlap_s);
    let rotated = async {
        let name = known_name(&name)?;
        if overlap > MAX_OVERLAP {
            return Err(bad_credential(
                "overlap_s: that is more than a year".to_owned(),
            ));
        }
        let only = asked.only.as_deref().map(known_credential).transpose()?;
        let NewKey { id, text, proof } = new_key().await?;
        let rotated = operator.controller.apply(move |sessions, now| {
            let before = keys_before(sessions, now, &name, only)?;
            let new = credential(now, id, proof, None);
            let status = credential_status(&new);
            sessions.add_credential(now, &name, new)?;
            for &id in &before {
                if overlap.is_zero() {
                    sessions.remove_credential(&name, id)?;
                } else {
                    sessions.expire_credential(&name, id, now.saturating_add(overlap))?;
                }
            }
            let replaced = before.iter().map(ToString::to_string).collect();
            Ok::<_, Problem>((status, replaced))
        });
        let (credential, replaced) = rotated.await??;
        Ok(Json(KeysRotated {
            credential,
            api_key: text.to_string(),
            replaced,
            overlap_s: asked.overlap_s,
        }))
    };
    let rotated: Answer<KeysRotated> = rotated.await;
    let done = rotated.as_ref().ok();
    let change = json!({
        "overlap_s": asked.overlap_s,
        "only": asked.only,
        "new": done.map(|rotated| &rotated.credential.id),
        "replaced": done.map(|rotated| &rotated.replaced),
    });
    peer.audit_change("app key rotate", &name, &change, &rotated);
    rotated
}

/// The keys of an application that are good, or the one of this name. Certificates have their own end, and
/// another one is added beside them.
fn keys_before(
    sessions: &Sessions,
    now: UnixTime,
    name: &AppName,
    only: Option<CredentialId>,
) -> Result<Vec<CredentialId>, Problem> {
    let app = sessions.app(name).ok_or_else(unknown_app)?;
    let is_key = |credential: &Credential| match credential.proof {
        Proof::ApiKey(_) | Proof::ApiKeySha256(_) => true,
        Proof::Certificate(_) => false,
    };
    let mut credentials = app.credentials.iter();
    if let Some(other) =
        credentials.find(|credential| only == Some(credential.id) && !is_key(credential))
    {
        return Err(not_a_key(other.id));
    }
    let keys = app.credentials.iter().filter(|credential| {
        is_key(credential)
            && credential.is_valid(now)
            && only.is_none_or(|only| credential.id == only)
    });
    let keys: Vec<_> = keys.map(|key| key.id).collect();
    if only.is_some() && keys.is_empty() {
        return Err(OperatorRefusal::UnknownCredential.into());
    }
    Ok(keys)
}

async fn remove(
    State(operator): State<Operator>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    TwoSegments(name, id): TwoSegments,
) -> Answer<CredentialRemoved> {
    let removed = async {
        let name = known_name(&name)?;
        let credential = known_credential(&id)?;
        let remaining = operator.controller.apply(move |sessions, now| {
            sessions.remove_credential(&name, credential)?;
            let app = sessions.app(&name).ok_or_else(unknown_app)?;
            let left = app.credentials.iter().filter(|left| left.is_valid(now));
            Ok::<_, Problem>(left.count())
        });
        Ok(Json(CredentialRemoved {
            id: credential.to_string(),
            removed: true,
            remaining: remaining.await??,
        }))
    };
    let removed = removed.await;
    peer.audit("app key remove", &format!("{name} {id}"), &removed);
    removed
}

async fn set_quotas(
    State(operator): State<Operator>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Segment(name): Segment,
    body: Result<Json<QuotaChange>, JsonRejection>,
) -> Answer<AppStatus> {
    let Json(change) = body?;
    let asked = change.clone();
    let set = async {
        let name = known_name(&name)?;
        if change.validations_per_minute == Some(Some(0)) {
            let what = "validations_per_minute: 0 would keep everybody out; remove the application's credentials for that";
            return Err(bad_quota(what));
        }
        if change.triggers_per_second == Some(Some(0)) {
            let what = "triggers_per_second: 0 would have no session authorised; remove the application's credentials for that";
            return Err(bad_quota(what));
        }
        let set = operator.controller.apply(move |sessions, _now| {
            let before = &sessions.app(&name).ok_or_else(unknown_app)?.quotas;
            let quotas = Quotas {
                sessions: change.sessions.unwrap_or(before.sessions),
                sessions_per_terminal: change
                    .sessions_per_terminal
                    .unwrap_or(before.sessions_per_terminal),
                validations_per_minute: change
                    .validations_per_minute
                    .unwrap_or(before.validations_per_minute),
                triggers_per_second: change
                    .triggers_per_second
                    .unwrap_or(before.triggers_per_second),
            };
            sessions.set_quotas(&name, quotas)?;
            status_of(sessions, &name)
        });
        set.await?.map(Json)
    };
    let set = set.await;
    peer.audit_change("app quota", &name, &asked, &set);
    set
}

async fn set_monitor(
    State(operator): State<Operator>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Segment(name): Segment,
    body: Result<Json<MonitorStatus>, JsonRejection>,
) -> Answer<AppStatus> {
    let Json(asked) = body?;
    let set = match monitor(&asked) {
        Ok(monitor) => replace_monitor(&operator, &name, Some(monitor)).await,
        Err(what) => Err(bad_monitor(what)),
    };
    peer.audit_change("app monitor", &name, &asked, &set);
    set
}

async fn clear_monitor(
    State(operator): State<Operator>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Segment(name): Segment,
) -> Answer<AppStatus> {
    let cleared = replace_monitor(&operator, &name, None).await;
    peer.audit("app monitor off", &name, &cleared);
    cleared
}

async fn replace_monitor(
    operator: &Operator,
    name: &str,
    monitor: Option<Monitor>,
) -> Answer<AppStatus> {
    let name = known_name(name)?;
    let set = operator.controller.apply(move |sessions, _now| {
        sessions.set_monitor(&name, monitor)?;
        status_of(sessions, &name)
    });
    let set = set.await?.map(Json);
    operator.daemon.monitoring.monitors_changed();
    set
}

/// A monitor as it is asked for, or what is wrong with it.
fn monitor(asked: &MonitorStatus) -> Result<Monitor, String> {
    let MonitorStatus {
        url,
        interval_s,
        unreachable_after_s,
        inactive_after_s,
    } = asked;
    let within = |key: &str, seconds: u64, range: RangeInclusive<Duration>| {
        let duration = Duration::from_secs(seconds);
        if range.contains(&duration) {
            return Ok(duration);
        }
        let [from, to] = [range.start(), range.end()].map(|&end| durations::short(end));
        Err(format!(
            "{key}: {} is not between {from} and {to}",
            durations::short(duration)
        ))
    };
    let url = url.as_deref().map(str::parse::<StatusUrl>).transpose();
    let url = url.map_err(|error| format!("url: {error}"))?;
    if url.is_none() && inactive_after_s.is_none() {
        return Err(
            "there is nothing to look after: give url, inactive_after_s, or both".to_owned(),
        );
    }
    Ok(Monitor {
        url: url.map(|url| url.to_string()),
        interval: within("interval_s", *interval_s, INTERVAL)?,
        unreachable_after: within(
            "unreachable_after_s",
            *unreachable_after_s,
            UNREACHABLE_AFTER,
        )?,
        inactive_after: inactive_after_s
            .map(|seconds| within("inactive_after_s", seconds, INACTIVE_AFTER))
            .transpose()?,
    })
}

fn status_of(sessions: &Sessions, name: &AppName) -> Result<AppStatus, Problem> {
    app_status(sessions, name).ok_or_else(unknown_app)
}

pub(super) fn credential_status(credential: &Credential) -> CredentialStatus {
    let kind = match credential.proof {
        Proof::ApiKey(_) | Proof::ApiKeySha256(_) => "api_key",
        Proof::Certificate(_) => "certificate",
    };
    CredentialStatus {
        id: credential.id.to_string(),
        kind: kind.to_owned(),
        created_at: rfc3339(credential.created),
        expires_at: credential.expires.map(rfc3339),
    }
}

pub(super) fn quota_status(quotas: &Quotas) -> QuotaStatus {
    QuotaStatus {
        sessions: quotas.sessions,
        sessions_per_terminal: quotas.sessions_per_terminal,
        validations_per_minute: quotas.validations_per_minute,
        triggers_per_second: quotas.triggers_per_second,
    }
}

pub(super) fn monitor_status(monitor: &Monitor) -> MonitorStatus {
    MonitorStatus {
        url: monitor.url.clone(),
        interval_s: monitor.interval.as_secs(),
        unreachable_after_s: monitor.unreachable_after.as_secs(),
        inactive_after_s: monitor.inactive_after.map(|limit| limit.as_secs()),
    }
}

pub(super) fn availability_status(availability: &Availability) -> AvailabilityStatus {
    match availability {
        Availability::Available => AvailabilityStatus {
            available: true,
            cause: None,
            since: None,
        },
        Availability::Failed { since, cause } => AvailabilityStatus {
            available: false,
            cause: Some(cause.label().to_owned()),
            since: Some(rfc3339(*since)),
        },
    }
}

fn known_name(name: &str) -> Result<AppName, Problem> {
    name.parse().map_err(|_| unknown_app())
}

fn unknown_app() -> Problem {
    OperatorRefusal::UnknownApp.into()
}

fn known_credential(id: &str) -> Result<CredentialId, Problem> {
    id.parse()
        .map_err(|_| OperatorRefusal::UnknownCredential.into())
}

fn bad_credential(what: String) -> Problem {
    Problem::new(
        StatusCode::BAD_REQUEST,
        "bad-credential",
        "The credential can't be used",
        what,
    )
}

fn not_a_key(id: CredentialId) -> Problem {
    Problem::new(
        StatusCode::CONFLICT,
        "not-a-key",
        "Only keys are made anew",
        format!("{id} is a certificate: the gateway can't make another one of it"),
    )
}

fn bad_quota(what: &str) -> Problem {
    Problem::new(
        StatusCode::BAD_REQUEST,
        "bad-quota",
        "The quota makes no sense",
        what,
    )
}

fn bad_monitor(what: String) -> Problem {
    Problem::new(
        StatusCode::BAD_REQUEST,
        "bad-monitor",
        "Servers can't be looked after like this",
        what,
    )
}
