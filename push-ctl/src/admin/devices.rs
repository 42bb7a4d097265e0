//! Terminals and sessions.

use super::api::{
    SessionRevoked, SessionStatus, SetTunnel, TerminalStatus, TunnelSet, TunnelStatus,
};
use super::{Answer, Operator, Peer};
use crate::config::Gtpu;
use crate::controller::View;
use crate::dataplane::Tunnel;
use crate::problem::{Problem, Segment};
use crate::sessions::records::{OperativeState, RegistrationId, Session, SessionState, Terminal};
use crate::sessions::{OperatorRefusal, remaining};
use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::extract::{ConnectInfo, RawQuery, State};
use axum::http::StatusCode;
use push_common::wire::SessionId;
use std::net::IpAddr;

pub(super) async fn list_terminals(
    State(operator): State<Operator>,
) -> Answer<Vec<TerminalStatus>> {
    let terminals = operator.controller.observe(|view| {
        let mut all: Vec<_> = view
            .sessions
            .terminals()
            .map(|terminal| terminal_status(&view, terminal))
            .collect();
        all.sort_by(|a, b| a.endpoint.cmp(&b.endpoint));
        all
    });
    Ok(Json(terminals.await?))
}

pub(super) async fn show_terminal(
    State(operator): State<Operator>,
    Segment(id): Segment,
) -> Answer<TerminalStatus> {
    let unknown = || {
        let detail = "no terminal has this registration id";
        Problem::new(
            StatusCode::NOT_FOUND,
            "unknown-terminal",
            "No such terminal",
            detail,
        )
    };
    let id: RegistrationId = id.parse().map_err(|_| unknown())?;
    let terminal = operator
        .controller
        .observe(move |view| {
            view.sessions
                .terminal(id)
                .map(|terminal| terminal_status(&view, terminal))
        })
        .await?;
    terminal.map(Json).ok_or_else(unknown)
}

/// All that aren't over; with `?ended` also those that are.
pub(super) async fn list_sessions(
    State(operator): State<Operator>,
    RawQuery(query): RawQuery,
) -> Answer<Vec<SessionStatus>> {
    let also_ended = query.as_deref() == Some("ended");
    let sessions = operator.controller.observe(move |view| {
        let listed = view
            .sessions
            .sessions()
            .filter(|session| match session.state {
                SessionState::Requested(_) | SessionState::Authorised(_) => true,
                SessionState::Ended { .. } => also_ended,
            });
        listed
            .map(|session| session_status(&view, session))
            .collect()
    });
    Ok(Json(sessions.await?))
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

pub(super) async fn revoke(
    State(operator): State<Operator>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Segment(id): Segment,
) -> Answer<SessionRevoked> {
    let revoked = async {
        let parsed: SessionId = id
            .parse()
            .map_err(|_| Problem::from(OperatorRefusal::UnknownSession))?;
        operator
            .controller
            .apply(move |sessions, now| sessions.revoke(now, parsed))
            .await??;
        Ok(Json(SessionRevoked {
            id: parsed.to_string(),
            revoked: true,
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

fn terminal_status(view: &View<'_>, terminal: &Terminal) -> TerminalStatus {
    let (state, cause) = match terminal.state {
        OperativeState::First { .. } => ("first_operative", None),
        OperativeState::Second { cause, .. } => ("second_operative", Some(cause.label())),
        OperativeState::Suspended { .. } => ("second_operative", Some("suspended")),
    };
    TerminalStatus {
        id: terminal.id.to_string(),
        endpoint: terminal.endpoint.to_string(),
        address: terminal.path.device,
        realm: terminal.path.realm.as_ref().map(ToString::to_string),
        gateway: terminal.path.gateway,
        state: state.to_owned(),
        cause: cause.map(str::to_owned),
        expires_in_s: cause
            .is_none()
            .then(|| remaining(terminal, view.now).as_secs()),
        sessions: view.sessions.sessions_of_terminal(terminal.id),
    }
}

fn session_status(view: &View<'_>, session: &Session) -> SessionStatus {
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
