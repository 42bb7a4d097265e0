//! Terminals and sessions.

use super::api::{
    RotateSession, SessionRevoked, SessionRotating, SessionStatus, SetTunnel, SuspendTerminal,
    TerminalChanged, TerminalStatus, TunnelSet, TunnelStatus,
};
use super::{Answer, Operator, Peer};
use crate::config::Gtpu;
use crate::controller::View;
use crate::dataplane::Tunnel;
use crate::problem::{Problem, Segment};
use crate::random;
use crate::sessions::records::{
    BadName, OperativeState, RegistrationId, Session, SessionState, Terminal, UnixTime,
};
use crate::sessions::{OperatorRefusal, Sessions, remaining};
use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::extract::{ConnectInfo, State};
use axum::http::StatusCode;
use push_common::wire::SessionId;
use std::net::IpAddr;
use std::time::{Duration, Instant};

pub(super) async fn show_terminal(
    State(operator): State<Operator>,
    Segment(id): Segment,
) -> Answer<TerminalStatus> {
    let unknown = || Problem::from(OperatorRefusal::UnknownTerminal);
    let terminal = operator
        .controller
        .observe(move |view| {
            let id = view.sessions.terminal_called(&id)?;
            let terminal = view.sessions.terminal(id)?;
            Some(terminal_status(&view, terminal))
        })
        .await?;
    terminal.map(Json).ok_or_else(unknown)
}

pub(super) async fn show_session(
    State(operator): State<Operator>,
    Segment(id): Segment,
) -> Answer<SessionStatus> {
    let unknown = || Problem::from(OperatorRefusal::UnknownSession);
    let id: SessionId = id.parse().map_err(|_| unknown())?;
    let session = operator
        .controller
        .observe(move |view| {
            view.sessions
                .session(id)
                .map(|session| session_status(&view, session))
        })
        .await?;
    session.map(Json).ok_or_else(unknown)
}

/// Ends or bars a terminal, or takes that back, by `change`.
async fn change_terminal(
    operator: &Operator,
    peer: Peer,
    action: &'static str,
    id: &str,
    change: impl FnOnce(
        &mut Sessions,
        UnixTime,
        RegistrationId,
    ) -> Result<TerminalChanged, OperatorRefusal>
    + Send
    + 'static,
) -> Answer<TerminalChanged> {
    let called = id.to_owned();
    let changed = async {
        let changed = operator.controller.apply(move |sessions, now| {
            let id = sessions.terminal_called(&called);
            change(sessions, now, id.ok_or(OperatorRefusal::UnknownTerminal)?)
        });
        Ok(Json(changed.await??))
    };
    let changed = changed.await;
    peer.audit(action, id, &changed);
    changed
}

fn changed(id: RegistrationId, state: &str, sessions_ended: usize) -> TerminalChanged {
    TerminalChanged {
        id: id.to_string(),
        state: state.to_owned(),
        sessions_ended,
        registered: true,
    }
}

pub(super) async fn suspend(
    State(operator): State<Operator>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Segment(id): Segment,
    body: Result<Option<Json<SuspendTerminal>>, JsonRejection>,
) -> Answer<TerminalChanged> {
    let asked = body?.unwrap_or_default().0;
    let called = id.clone();
    let suspended = async {
        let fresh = RegistrationId::from_u64(u64::from_ne_bytes(random::bytes()));
        let suspended = operator.controller.apply(move |sessions, now| {
            match sessions.terminal_called(&called) {
                Some(id) => {
                    let ended = sessions.suspend(now, id)?;
                    let terminal = sessions.terminal(id);
                    Ok(TerminalChanged {
                        registered: terminal.is_some_and(|terminal| terminal.path.is_known()),
                        ..changed(id, "suspended", ended)
                    })
                }
                None if asked.unregistered => {
                    let endpoint = called.parse().map_err(|error| bad_endpoint(&error))?;
                    let id = sessions.suspend_unknown(now, endpoint, fresh)?;
                    Ok(TerminalChanged {
                        registered: false,
                        ..changed(id, "suspended", 0)
                    })
                }
                None => Err(Problem::from(OperatorRefusal::UnknownTerminal)),
            }
        });
        suspended.await?.map(Json)
    };
    let suspended: Answer<TerminalChanged> = suspended.await;
    peer.audit("terminal suspend", &id, &suspended);
    suspended
}

fn bad_endpoint(error: &BadName) -> Problem {
    Problem::new(
        StatusCode::BAD_REQUEST,
        "bad-endpoint",
        "No device can have this endpoint name",
        error.to_string(),
    )
}

pub(super) async fn resume(
    State(operator): State<Operator>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Segment(id): Segment,
) -> Answer<TerminalChanged> {
    change_terminal(
        &operator,
        peer,
        "terminal resume",
        &id,
        |sessions, now, id| {
            let is_first = sessions.resume(now, id)?;
            let state = if is_first {
                "first_operative"
            } else {
                "unknown"
            };
            Ok(changed(id, state, 0))
        },
    )
    .await
}

pub(super) async fn remove_terminal(
    State(operator): State<Operator>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Segment(id): Segment,
) -> Answer<TerminalChanged> {
    change_terminal(
        &operator,
        peer,
        "terminal remove",
        &id,
        |sessions, now, id| {
            let ended = sessions.remove_terminal(now, id)?;
            Ok(changed(id, "unknown", ended))
        },
    )
    .await
}

pub(super) async fn ask_for_refresh(
    State(operator): State<Operator>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Segment(id): Segment,
) -> Answer<TerminalChanged> {
    change_terminal(
        &operator,
        peer,
        "terminal refresh",
        &id,
        |sessions, now, id| {
            sessions.ask_for_refresh(now, id)?;
            Ok(changed(id, "first_operative", 0))
        },
    )
    .await
}

pub(super) async fn rotate(
    State(operator): State<Operator>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Segment(id): Segment,
    body: Result<Json<RotateSession>, JsonRejection>,
) -> Answer<SessionRotating> {
    let Json(asked) = body?;
    let RotateSession { within_s } = asked;
    let rotating = async {
        let parsed: SessionId = id
            .parse()
            .map_err(|_| Problem::from(OperatorRefusal::UnknownSession))?;
        let within = within_s.map(Duration::from_secs);
        let asked = operator
            .controller
            .apply(move |sessions, now| sessions.rotate(now, parsed, within));
        asked.await??;
        Ok(Json(SessionRotating {
            id: parsed.to_string(),
            within_s,
        }))
    };
    let rotating = rotating.await;
    peer.audit_change("session rotate", &id, &asked, &rotating);
    rotating
}

pub(super) async fn revoke(
    State(operator): State<Operator>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Segment(id): Segment,
) -> Answer<SessionRevoked> {
    let revoked = async {
        let parsed: SessionId = id
            .parse()
            .map_err(|_| Problem::from(OperatorRefusal::UnknownSession))?;
        let asked = Instant::now();
        // The answer comes once the data plane has it.
        operator
            .controller
            .apply(move |sessions, now| sessions.revoke(now, parsed))
            .await??;
        Ok(Json(SessionRevoked {
            id: parsed.to_string(),
            revoked: true,
            effective_after_us: u64::try_from(asked.elapsed().as_micros()).unwrap_or(u64::MAX),
        }))
    };
    let revoked = revoked.await;
    peer.audit("session revoke", &id, &revoked);
    revoked
}

pub(super) async fn set_tunnel(
    State(operator): State<Operator>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Segment(id): Segment,
    body: Result<Json<SetTunnel>, JsonRejection>,
) -> Answer<TunnelSet> {
    let Json(asked) = body?;
    let set = async {
        let tunnel = tunnel(&asked, &operator.daemon.config.gtpu)?;
        change_tunnel(&operator, &id, Some(tunnel)).await
    };
    let set = set.await;
    peer.audit_change("session tunnel set", &id, &asked, &set);
    set
}

pub(super) async fn clear_tunnel(
    State(operator): State<Operator>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Segment(id): Segment,
) -> Answer<TunnelSet> {
    let cleared = change_tunnel(&operator, &id, None).await;
    peer.audit("session tunnel clear", &id, &cleared);
    cleared
}

async fn change_tunnel(operator: &Operator, id: &str, tunnel: Option<Tunnel>) -> Answer<TunnelSet> {
    let id: SessionId = id
        .parse()
        .map_err(|_| Problem::from(OperatorRefusal::UnknownSession))?;
    operator
        .controller
        .apply(move |sessions, _now| sessions.set_tunnel(id, tunnel))
        .await??;
    Ok(Json(TunnelSet {
        id: id.to_string(),
        tunnel: tunnel.map(tunnel_status),
    }))
}

/// The tunnel that is asked for, if there can be one like it.
fn tunnel(asked: &SetTunnel, gtpu: &Gtpu) -> Result<Tunnel, Problem> {
    let bad = |what: String| {
        let title = "There can be no such tunnel";
        Problem::new(StatusCode::BAD_REQUEST, "bad-tunnel", title, what)
    };
    let SetTunnel { peer, teid } = *asked;
    let (version, has_source) = match peer {
        IpAddr::V4(_) => ("IPv4", gtpu.ipv4().is_some()),
        IpAddr::V6(_) => ("IPv6", gtpu.ipv6().is_some()),
    };
    if peer.is_unspecified() || peer.is_multicast() || peer.to_canonical() != peer {
        return Err(bad(format!("peer: {peer} is not a machine's own address")));
    }
    if teid == 0 {
        return Err(bad("teid: 0 is no tunnel's (TS 29.281, 5.1)".to_owned()));
    }
    if !has_source {
        return Err(bad(format!(
            "peer: {peer} can't be reached, as gtpu.local in the configuration has no {version} address"
        )));
    }
    Ok(Tunnel { peer, teid })
}

fn tunnel_status(Tunnel { peer, teid }: Tunnel) -> TunnelStatus {
    TunnelStatus { peer, teid }
}

pub(super) fn terminal_status(view: &View<'_>, terminal: &Terminal) -> TerminalStatus {
    let (state, cause) = match terminal.state {
        OperativeState::First { .. } => ("first_operative", None),
        OperativeState::Second { cause, .. } => ("second_operative", Some(cause.label())),
        OperativeState::Suspended { .. } => ("second_operative", Some("suspended")),
    };
    let is_known = terminal.path.is_known();
    TerminalStatus {
        id: terminal.id.to_string(),
        endpoint: terminal.endpoint.to_string(),
        address: is_known.then_some(terminal.path.device),
        realm: terminal.path.realm.as_ref().map(ToString::to_string),
        gateway: is_known.then_some(terminal.path.gateway),
        state: state.to_owned(),
        cause: cause.map(str::to_owned),
        expires_in_s: cause
            .is_none()
            .then(|| remaining(terminal, view.now).as_secs()),
        sessions: view.sessions.sessions_of_terminal(terminal.id),
    }
}

pub(super) fn session_status(view: &View<'_>, session: &Session) -> SessionStatus {
    let (state, cause, token) = match &session.state {
        SessionState::Requested(token) => ("requested", None, Some(token)),
        SessionState::Authorised(tokens) => {
            let state = if tokens.are_rotating() {
                "rotating"
            } else {
                "authorised"
            };
            (state, None, Some(&tokens.current))
        }
        SessionState::Ended { cause, .. } => ("ended", Some(cause.label().to_owned()), None),
    };
    let counters = view.kernel.session_counters(session.id).unwrap_or_default();
    SessionStatus {
        id: session.id.to_string(),
        terminal: session.terminal.to_string(),
        app: session.app.to_string(),
        instance: session.instance.to_string(),
        realm: view
            .sessions
            .terminal(session.terminal)
            .and_then(|terminal| terminal.path.realm.as_ref())
            .map(ToString::to_string),
        device: view.sessions.device_of(session),
        tunnel: session.tunnel.map(tunnel_status),
        next_hop: view
            .kernel
            .next_hop_state(session.id)
            .map(ToOwned::to_owned),
        state: state.to_owned(),
        cause,
        token_generation: token.map(|token| token.generation),
        expires_in_s: token.map(|_| view.sessions.expires_in(session, view.now).as_secs()),
        packets: counters.packets,
        bytes: counters.bytes,
        last_delivered_ago_s: counters.last_delivered_ago.map(|ago| ago.as_secs()),
        refused: counters.refused,
        acknowledged: counters.acknowledged,
        round_trip_ms: counters.round_trip.map(|time| time.as_secs_f64() * 1e3),
    }
}
