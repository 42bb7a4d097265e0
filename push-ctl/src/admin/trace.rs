//! What would become of a trigger for a session, step by step, and what becomes of those that come.

use super::api::{CapturedPacket, NicStatus, PacketLine, Trace, TraceVerdict};
use super::{Answer, Operator, Peer, nics};
use crate::controller::View;
use crate::dataplane::{Captured, Captures, SessionSeen, WayState};
use crate::problem::{Problem, Segment};
use crate::sessions::OperatorRefusal;
use crate::sessions::records::Session;
use axum::Json;
use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{ConnectInfo, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use push_common::replay;
use push_common::verdict::Verdict;
use push_common::wire::{SessionId, TRIGGER_HEADER_LEN};
use serde::Deserialize;
use std::convert::Infallible;
use std::time::Duration;
use steps::steps;
use tokio::time::{Instant, timeout_at};

mod steps;

/// How long packets can be watched at most.
const MAX_TIME: Duration = Duration::from_hours(1);

pub(super) async fn trace(State(operator): State<Operator>, Segment(id): Segment) -> Answer<Trace> {
    let unknown = || Problem::from(OperatorRefusal::UnknownSession);
    let id: SessionId = id.parse().map_err(|_| unknown())?;
    let nics = nics::statuses(&operator).await?;
    let trigger_port = operator.daemon.config.triggers.port;
    let traced = operator.controller.observe(move |view| {
        let session = view.sessions.session(id)?;
        Some(trace_of(&view, session, &nics, trigger_port))
    });
    let traced = traced.await?.ok_or_else(unknown)?;
    traced
        .map(Json)
        .map_err(|error| super::gateway::kernel_problem(&error))
}

fn trace_of(
    view: &View<'_>,
    session: &Session,
    nics: &[NicStatus],
    trigger_port: u16,
) -> anyhow::Result<Trace> {
    let seen = view.kernel.session_seen(session.id)?;
    let newest = view.kernel.newest_sequence(session.id).unwrap_or(0);
    let takers = nics.iter().filter(|nic| !nic.trigger_addresses.is_empty());
    let verdicts = takers
        .filter(|nic| nic.mode != "none")
        .map(|nic| {
            let verdict = verdict(seen.as_ref(), newest, nic.index);
            TraceVerdict {
                nic: nic.name.clone(),
                verdict: verdict.label().to_owned(),
                delivered: verdict.is_delivery(),
                meaning: verdict.meaning().to_owned(),
            }
        })
        .collect();
    Ok(Trace {
        session: session.id.to_string(),
        steps: steps(view, session, seen.as_ref(), newest, nics, trigger_port),
        verdicts,
    })
}

/// What the path would say, in its order.
fn verdict(seen: Option<&SessionSeen>, newest: u64, interface: u32) -> Verdict {
    let Some(seen) = seen else {
        return Verdict::UnknownSession;
    };
    let way = &seen.way;
    if seen.expires_in.is_zero() {
        return Verdict::Expired;
    }
    if !replay::in_range(newest + 1) {
        return Verdict::SequenceOutOfRange;
    }
    match way.state {
        WayState::NoRoute => return Verdict::NoRoute,
        WayState::Unused => return Verdict::MissingConfiguration,
        WayState::Unresolved if way.is_exclusive => return Verdict::NextHopMissing,
        WayState::Unresolved | WayState::Resolved => {}
    }
    if trigger_bytes(seen) > usize::from(way.mtu) {
        Verdict::TooBig
    } else if !seen.rate_wait.is_zero() {
        Verdict::RateExceeded
    } else if way.state == WayState::Unresolved {
        Verdict::NextHopUnresolved
    } else if way.interface == interface {
        Verdict::SentBack
    } else {
        Verdict::Redirected
    }
}

/// Length of the IP datagram by which a trigger without payload reaches the device.
fn trigger_bytes(seen: &SessionSeen) -> usize {
    usize::from(seen.way.header_bytes(seen.device.ip())) + TRIGGER_HEADER_LEN
}

/// What is asked for.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct For {
    for_ms: u64,
}

pub(super) async fn packets(
    State(operator): State<Operator>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Segment(id): Segment,
    time: Result<Query<For>, QueryRejection>,
) -> Result<Response, Problem> {
    let begun = begin(&operator, &id, time).await;
    peer.audit("trace session", &id, &begun);
    let (captures, time) = begun?;
    let end = Instant::now() + time;
    let stopping = operator.stopping;
    let lines = stream::unfold(Some((captures, stopping)), move |watching| async move {
        let (mut captures, mut stopping) = watching?;
        let packets = tokio::select! {
            packets = timeout_at(end, captures.next()) => packets,
            _ = stopping.wait_for(|&stopping| stopping) => return None,
        };
        let Ok(Ok(packets)) = packets else {
            let missed = captures.missed();
            return Some((Ok(text([PacketLine::End { missed }])), None));
        };
        let packets = packets.into_iter().map(packet).map(PacketLine::Packet);
        let lines = Ok::<_, Infallible>(text(packets));
        Some((lines, Some((captures, stopping))))
    });
    let kind = [(header::CONTENT_TYPE, "application/x-ndjson")];
    Ok((kind, Body::from_stream(lines)).into_response())
}

async fn begin(
    operator: &Operator,
    id: &str,
    time: Result<Query<For>, QueryRejection>,
) -> Result<(Captures, Duration), Problem> {
    let bad = |detail| Problem::new(StatusCode::BAD_REQUEST, "bad-time", "No such time", detail);
    let Query(For { for_ms }) = time.map_err(|rejection| bad(rejection.body_text()))?;
    let time = Duration::from_millis(for_ms);
    if time > MAX_TIME {
        return Err(bad("for_ms: an hour is the most".to_owned()));
    }
    let unknown = || Problem::from(OperatorRefusal::UnknownSession);
    let id: SessionId = id.parse().map_err(|_| unknown())?;
    let captures = operator.controller.observe(move |view| {
        view.sessions.session(id)?;
        Some(view.kernel.capture(id, time))
    });
    let captures = captures.await?.ok_or_else(unknown)?.map_err(|error| {
        let title = "The session can't be watched";
        Problem::new(
            StatusCode::CONFLICT,
            "trace-refused",
            title,
            format!("{error:#}"),
        )
    })?;
    Ok((captures, time))
}

fn packet(captured: Captured) -> CapturedPacket {
    let Captured {
        at,
        nic,
        verdict,
        length,
        frame,
    } = captured;
    CapturedPacket {
        at: jiff::Timestamp::try_from(at)
            .map_or_else(|_| "beyond all time".to_owned(), |at| format!("{at:.9}")),
        nic: nic.unwrap_or_else(|| "a new NIC".to_owned()),
        verdict: verdict.label().to_owned(),
        action: verdict.action().label().to_owned(),
        meaning: verdict.meaning().to_owned(),
        length_bytes: length,
        frame: hex::encode(frame),
    }
}

/// A line each.
fn text(lines: impl IntoIterator<Item = PacketLine>) -> String {
    let lines = lines.into_iter().map(|line| serde_json::to_string(&line));
    lines.flatten().map(|line| line + "\n").collect()
}
