//! The gateway as a whole.

use super::api::{
    NicStats, RealmStatus, RoundTripClass, SessionCounts, Stats, Status, StoreStatus, VerdictStats,
};
use super::{Answer, Operator, nics};
use crate::config;
use crate::controller::View;
use crate::dataplane::{NicCounters, object_sha256};
use crate::problem::Problem;
use crate::sessions::Population;
use crate::sessions::records::RealmName;
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use push_common::maps::LAYOUT_VERSION;
use std::collections::BTreeMap;
use std::sync::Arc;
use tracing::error;

pub(super) async fn status(State(operator): State<Operator>) -> Answer<Status> {
    let nics = nics::statuses(&operator).await?;
    let silent = nics::silent(&nics).await;
    let seen = Arc::clone(&operator.daemon);
    let status = operator.controller.observe(move |view| {
        let counts = view.sessions.counts();
        let mut warnings = view.warnings();
        warnings.extend(seen.warnings());
        warnings.extend(nics::warnings(&seen, &nics));
        warnings.extend(silent);
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            layout_version: LAYOUT_VERSION,
            object_sha256: object_sha256(),
            pid: std::process::id(),
            started_at: seen.started_at.to_string(),
            uptime_s: seen.started.elapsed().as_secs(),
            config: seen.config.path.clone(),
            store: StoreStatus {
                path: seen.store.clone(),
                terminals: view.sessions.terminals().len(),
                sessions: view.sessions.session_count(),
                apps: view.sessions.apps().count(),
            },
            sessions: SessionCounts {
                requested: counts.requested,
                authorised: counts.authorised,
                slots: view.sessions.slots(),
            },
            nics,
            internal: seen.config.internal.listen.clone(),
            realms: realm_statuses(&view, &seen.config.realm),
            external: seen.config.external.listen.clone(),
            warnings,
        }
    });
    Ok(Json(status.await?))
}

pub(super) async fn realms(State(operator): State<Operator>) -> Answer<Vec<RealmStatus>> {
    let Operator {
        controller, daemon, ..
    } = operator;
    let realms = controller.observe(move |view| realm_statuses(&view, &daemon.config.realm));
    Ok(Json(realms.await?))
}

pub(super) async fn show_stats(State(operator): State<Operator>) -> Answer<Stats> {
    let stats = operator.controller.observe(|view| stats(&view)).await?;
    stats.map(Json).map_err(|error| kernel_problem(&error))
}

/// What became of packets up to now.
pub(super) fn stats(view: &View<'_>) -> anyhow::Result<Stats> {
    let nics = view.kernel.verdicts()?;
    Ok(Stats {
        nics: nics.into_iter().map(nic_stats).collect(),
        events_lost: view.kernel.events_lost(),
    })
}

/// Those of the configuration in its order, then those that only terminals know.
fn realm_statuses(view: &View<'_>, configured: &[config::Realm]) -> Vec<RealmStatus> {
    let mut populations: BTreeMap<&RealmName, Population> = view.sessions.realms().collect();
    let mut realms = Vec::new();
    for realm in configured {
        let Population {
            terminals,
            sessions,
        } = populations.remove(&realm.name).unwrap_or_default();
        realms.push(RealmStatus {
            name: realm.name.to_string(),
            interface: Some(realm.interface.clone()),
            next_hop: realm.next_hop.clone(),
            listen: realm.listen.clone(),
            terminals,
            sessions,
        });
    }
    let gone = populations.into_iter();
    realms.extend(gone.map(|(name, population)| RealmStatus {
        name: name.to_string(),
        interface: None,
        next_hop: Vec::new(),
        listen: Vec::new(),
        terminals: population.terminals,
        sessions: population.sessions,
    }));
    realms
}

fn nic_stats(nic: NicCounters) -> NicStats {
    let verdicts: Vec<_> = nic
        .by_verdict
        .into_iter()
        .map(|(verdict, packets, bytes)| VerdictStats {
            verdict: verdict.label().to_owned(),
            action: verdict.action().label().to_owned(),
            packets,
            bytes,
            meaning: verdict.meaning().to_owned(),
        })
        .collect();
    NicStats {
        name: nic.name,
        packets: verdicts.iter().map(|verdict| verdict.packets).sum(),
        bytes: verdicts.iter().map(|verdict| verdict.bytes).sum(),
        verdicts,
        round_trips: (0_u32..)
            .zip(nic.round_trips)
            .map(|(class, acknowledgements)| RoundTripClass {
                from_us: if class == 0 { 0 } else { 1 << class },
                below_us: 1 << (class + 1),
                acknowledgements,
            })
            .collect(),
    }
}

pub(super) fn kernel_problem(error: &anyhow::Error) -> Problem {
    error!(error = format!("{error:#}"), "the kernel can't be asked");
    Problem::new(
        StatusCode::INTERNAL_SERVER_ERROR,
        "kernel",
        "The kernel can't be asked",
        format!("{error:#}"),
    )
}
