//! Applications, and what they may do.

use super::api::{AddApp, AppAdded, AppRemoved, AppStatus, PolicyChange};
use super::policy::{changed, policy_status};
use super::servers::{
    NewKey, availability_status, credential, credential_status, monitor_status, new_key,
    quota_status,
};
use super::{Answer, Operator, Peer};
use crate::dataplane::Policy;
use crate::problem::{Problem, Segment};
use crate::sessions::records::{AppName, UnixTime};
use crate::sessions::{OperatorRefusal, Sessions, TriggerRate};
use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::extract::{ConnectInfo, State};
use axum::http::StatusCode;
use std::fmt::Display;

pub(super) async fn list(State(operator): State<Operator>) -> Answer<Vec<AppStatus>> {
    let apps = operator.controller.observe(|view| {
        let apps = view.sessions.apps();
        apps.filter_map(|(app, _)| app_status(view.sessions, &app.name))
            .collect()
    });
    Ok(Json(apps.await?))
}

pub(super) async fn show(
    State(operator): State<Operator>,
    Segment(name): Segment,
) -> Answer<AppStatus> {
    let unknown = || Problem::from(OperatorRefusal::UnknownApp);
    let name: AppName = name.parse().map_err(|_| unknown())?;
    let app = operator
        .controller
        .observe(move |view| app_status(view.sessions, &name))
        .await?;
    app.map(Json).ok_or_else(unknown)
}

pub(super) async fn add(
    State(operator): State<Operator>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    body: Result<Json<AddApp>, JsonRejection>,
) -> Answer<AppAdded> {
    let Json(AddApp { name, policy }) = body?;
    let added = async {
        let name: AppName = name.parse().map_err(|error| bad_name(&error))?;
        let rules = changed(&Policy::default(), &policy).map_err(bad_policy)?;
        let (NewKey { id, text, proof }, called) = (new_key().await?, name.to_string());
        let applied = operator.controller.apply(move |sessions, now| {
            let key = credential(now, id, proof, None);
            let status = credential_status(&key);
            sessions.add_app(now, name, vec![key], rules)?;
            Ok::<_, OperatorRefusal>(status)
        });
        Ok(Json(AppAdded {
            name: called,
            credential: applied.await??,
            api_key: text.to_string(),
        }))
    };
    let added = added.await;
    peer.audit_change("app add", &name, &policy, &added);
    added
}

pub(super) async fn set_policy(
    State(operator): State<Operator>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Segment(name): Segment,
    body: Result<Json<PolicyChange>, JsonRejection>,
) -> Answer<AppStatus> {
    let Json(change) = body?;
    let asked = change.clone();
    let set = async {
        let unknown = || Problem::from(OperatorRefusal::UnknownApp);
        let parsed: AppName = name.parse().map_err(|_| unknown())?;
        let set = operator.controller.apply(move |sessions, _now| {
            let app = sessions.app(&parsed).ok_or_else(unknown)?;
            let policy = changed(&app.policy, &change).map_err(bad_policy)?;
            sessions.set_policy(&parsed, policy)?;
            app_status(sessions, &parsed).ok_or_else(unknown)
        });
        set.await?.map(Json)
    };
    let set = set.await;
    peer.audit_change("app set", &name, &asked, &set);
    set
}

pub(super) async fn remove(
    State(operator): State<Operator>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Segment(name): Segment,
) -> Answer<AppRemoved> {
    let removed = async {
        let parsed: AppName = name
            .parse()
            .map_err(|_| Problem::from(OperatorRefusal::UnknownApp))?;
        let sessions_ended = operator
            .controller
            .apply(move |sessions, now| sessions.remove_app(now, &parsed))
            .await??;
        operator.daemon.monitoring.monitors_changed();
        Ok(Json(AppRemoved {
            name: name.clone(),
            removed: true,
            sessions_ended,
        }))
    };
    let removed = removed.await;
    peer.audit("app remove", &name, &removed);
    removed
}

/// The application of this name; `None` if it is removed.
pub(super) fn app_status(sessions: &Sessions, name: &AppName) -> Option<AppStatus> {
    let (app, live) = sessions.app_with_sessions(name)?;
    let granted = sessions.granted_rate(name);
    Some(AppStatus {
        name: app.name.to_string(),
        created_at: rfc3339(app.created),
        sessions: live,
        triggers_per_second_granted: granted.map(TriggerRate::as_per_second),
        policy: policy_status(&app.policy),
        credentials: app.credentials.iter().map(credential_status).collect(),
        quotas: quota_status(&app.quotas),
        monitor: app.monitor.as_ref().map(monitor_status),
        availability: availability_status(&app.availability),
    })
}

fn bad_name(error: &impl Display) -> Problem {
    Problem::new(
        StatusCode::BAD_REQUEST,
        "bad-name",
        "The name can't be used",
        error.to_string(),
    )
}

fn bad_policy(what: String) -> Problem {
    Problem::new(
        StatusCode::BAD_REQUEST,
        "bad-policy",
        "The policy makes no sense",
        what,
    )
}

pub(super) fn rfc3339(time: UnixTime) -> String {
    let timestamp = i64::try_from(time.as_millis())
        .ok()
        .and_then(|millis| jiff::Timestamp::from_millisecond(millis).ok());
    timestamp.map_or_else(
        || "beyond all time".to_owned(),
        |timestamp| format!("{timestamp:.0}"),
    )
}
