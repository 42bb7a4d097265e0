//! What has to be right before a trigger reaches a device, in words, and what to do if it isn't.

use super::trigger_bytes;
use crate::admin::api::{NicStatus, TraceStep};
use crate::controller::View;
use crate::dataplane::{Policy, SessionSeen, WaySeen, WayState};
use crate::durations;
use crate::sessions::records::{
    App, Availability, Left, OperativeState, Session, SessionState, Terminal,
};
use humantime::format_duration;
use push_common::replay;
use std::time::Duration;

pub(super) fn steps(
    view: &View<'_>,
    session: &Session,
    seen: Option<&SessionSeen>,
    newest: u64,
    nics: &[NicStatus],
    trigger_port: u16,
) -> Vec<TraceStep> {
    let terminal = view.sessions.terminal(session.terminal);
    let app = view.sessions.app(&session.app);
    let mut steps = vec![
        registered(terminal),
        authorised(session, app),
        available(app),
        in_kernel(view, session, seen),
    ];
    if let Some(seen) = seen {
        steps.push(lifetime(seen));
        steps.push(token(session, seen));
        steps.push(sequence(newest));
        steps.push(policy(app, seen));
        steps.push(rate(session, seen));
        steps.push(next_hop(seen));
        steps.push(mtu(seen));
    }
    steps.extend(takers(nics, trigger_port));
    steps
}

fn step(step: &str, what: String, fix: Option<String>) -> TraceStep {
    TraceStep {
        step: step.to_owned(),
        ok: fix.is_none(),
        what,
        fix,
    }
}

fn registered(terminal: Option<&Terminal>) -> TraceStep {
    let Some(terminal) = terminal else {
        let what = "the terminal is not known any more".to_owned();
        let fix = "the device has to register, and its app to ask for a session";
        return step("registered", what, Some(fix.to_owned()));
    };
    let Terminal {
        id, endpoint, path, ..
    } = terminal;
    let who = format!("terminal {id} ({endpoint}) at {}", path.device);
    let (state, fix) = match terminal.state {
        OperativeState::First { .. } => ("is registered", None),
        OperativeState::Suspended { .. } => (
            "is suspended",
            Some(format!("push-ctl terminal resume {id}")),
        ),
        OperativeState::Second { cause, .. } => {
            let again = Some("the device has to register again".to_owned());
            match cause {
                Left::Deregistered => ("has deregistered", again),
                Left::Expired => ("has not refreshed its registration in time", again),
                Left::AddressTaken => ("lost its address to another terminal", again),
            }
        }
    };
    step("registered", format!("{who} {state}"), fix)
}

fn authorised(session: &Session, app: Option<&App>) -> TraceStep {
    let app = app.map_or_else(|| session.app.to_string(), |app| app.name.to_string());
    let (what, fix) = match &session.state {
        SessionState::Requested(_) => (
            format!("the session of {app} was requested, but not authorised"),
            Some(format!("a server of {app} has to validate the token")),
        ),
        SessionState::Authorised(_) => (format!("a server of {app} has validated the token"), None),
        SessionState::Ended { cause, .. } => (
            format!("the session is over: {}", cause.label()),
            Some("the app has to ask for another one".to_owned()),
        ),
    };
    step("authorised", what, fix)
}

fn available(app: Option<&App>) -> TraceStep {
    let (what, fix) = match app.map(|app| &app.availability) {
        Some(Availability::Available) => ("the application is available", None),
        Some(Availability::Failed { .. }) => (
            "the application's server has failed",
            Some("it has to be in service again".to_owned()),
        ),
        None => (
            "the application is not known any more",
            Some("push-ctl app add".to_owned()),
        ),
    };
    step("application", what.to_owned(), fix)
}

fn in_kernel(view: &View<'_>, session: &Session, seen: Option<&SessionSeen>) -> TraceStep {
    let is_to_be = view.sessions.authorised(session.id).is_some();
    let slot = session.id.slot();
    let (what, fix) = match (seen, is_to_be) {
        (Some(seen), true) if view.sessions.device_of(session) == Some(seen.device) => (
            format!(
                "slot {slot} of the session table has it, for {}",
                seen.device
            ),
            None,
        ),
        (Some(seen), true) => (
            format!(
                "slot {slot} of the session table still has it for {}",
                seen.device
            ),
            Some("it is tried again; `push-ctl status` says what is in the way".to_owned()),
        ),
        (Some(_), false) => (
            format!("slot {slot} of the session table has it, and shouldn't"),
            Some("please report this as a bug".to_owned()),
        ),
        (None, true) => (
            "it is not in the session table".to_owned(),
            Some(
                "it is tried again; `push-ctl status` and the log say what is in the way"
                    .to_owned(),
            ),
        ),
        (None, false) => (
            "it is not in the session table, as it isn't authorised".to_owned(),
            Some("see above".to_owned()),
        ),
    };
    step("session_table", what, fix)
}

fn lifetime(seen: &SessionSeen) -> TraceStep {
    if seen.expires_in.is_zero() {
        let fix = "the device has to refresh its registration".to_owned();
        return step("lifetime", "it has expired".to_owned(), Some(fix));
    }
    let left = in_seconds(seen.expires_in);
    step(
        "lifetime",
        format!("it expires in {left} unless it is refreshed"),
        None,
    )
}

fn token(session: &Session, seen: &SessionSeen) -> TraceStep {
    let now = seen.token_generation;
    let mut what = format!("triggers have to have token generation {now}");
    if seen.has_previous_token {
        what = format!("{what}, or {} for a while", now.wrapping_sub(1));
    }
    let expected = match &session.state {
        SessionState::Authorised(tokens) => Some(tokens.current.generation),
        SessionState::Requested(_) | SessionState::Ended { .. } => None,
    };
    let fix = expected
        .filter(|&expected| expected != now)
        .map(|expected| format!("it should be {expected}; please report this as a bug"));
    step("token", what, fix)
}

fn sequence(newest: u64) -> TraceStep {
    let what = match newest {
        0 => "no sequence number above 127 has come yet".to_owned(),
        newest => format!("the highest sequence number so far is about {newest}"),
    };
    let fix = (!replay::in_range(newest + 1))
        .then(|| "the app has to ask for another session: there is no higher one".to_owned());
    step("sequence", what, fix)
}

fn policy(app: Option<&App>, seen: &SessionSeen) -> TraceStep {
    let slot = seen.policy;
    let Some(app) = app else {
        return step("policy", format!("slot {slot}, of no application"), None);
    };
    let Policy {
        rate,
        sources,
        max_payload,
        dscp,
        coalescing_window,
        return_acks,
    } = &app.policy;
    let list = |sources: &[ipnet::IpNet]| {
        let texts: Vec<_> = sources.iter().map(ToString::to_string).collect();
        texts.join(" ")
    };
    let rules = [
        rate.as_ref().map(|rate| {
            let interval = format_duration(rate.interval);
            format!("one trigger in {interval}, {} at once", rate.burst)
        }),
        (!sources.is_empty()).then(|| format!("only from {}", list(sources))),
        max_payload.map(|bytes| format!("payloads of up to {bytes} bytes")),
        dscp.map(|dscp| format!("DSCP {dscp}")),
        coalescing_window
            .map(|window| format!("one per collapse key in {}", format_duration(window))),
        return_acks.then(|| "acknowledgements go on to the server".to_owned()),
    ];
    let rules: Vec<_> = rules.into_iter().flatten().collect();
    let rules = if rules.is_empty() {
        "everything is permitted".to_owned()
    } else {
        rules.join(", ")
    };
    let is_same = slot == app.policy_slot.get()
        && seen.has_sources != sources.is_empty()
        && seen.max_payload_bytes == max_payload.unwrap_or(u16::MAX);
    let fix = (!is_same).then(|| {
        "the data plane has another one; `push-ctl status` says what is in the way".to_owned()
    });
    step("policy", format!("that of {}: {rules}", app.name), fix)
}

fn rate(session: &Session, seen: &SessionSeen) -> TraceStep {
    let last = match seen.last_delivered_ago {
        Some(ago) => format!("the last delivery was {} ago", in_seconds(ago)),
        None => "there was no delivery yet".to_owned(),
    };
    if seen.rate_wait.is_zero() {
        return step("rate", format!("a trigger may come now; {last}"), None);
    }
    let wait = format_duration(Duration::from_millis(seen.rate_wait.as_millis() as u64 + 1));
    let fix = format!(
        "wait, or permit more: push-ctl app set {} --rate",
        session.app
    );
    step(
        "rate",
        format!("too many have come; the next one may in {wait}"),
        Some(fix),
    )
}

fn next_hop(seen: &SessionSeen) -> TraceStep {
    let way = &seen.way;
    let device = seen.device.ip();
    let (what, fix) = match way.state {
        WayState::Resolved => (format!("to {} by {}", mac(way.mac), egress(way)), None),
        WayState::Unresolved if way.is_exclusive => (
            format!("by {}, but its MAC address isn't known", egress(way)),
            Some(format!(
                "`ip neigh` on the gateway: does the router, or the device {device}, answer?"
            )),
        ),
        WayState::Unresolved => (
            "its MAC address isn't known yet; until then the kernel delivers".to_owned(),
            None,
        ),
        WayState::NoRoute => (
            format!("no route leads to {device}"),
            Some(format!(
                "`ip route get {device}` on the gateway: is there one, and is its link up?"
            )),
        ),
        WayState::Unused => (
            "the session refers to a next hop that isn't there".to_owned(),
            Some("please report this as a bug".to_owned()),
        ),
    };
    step("next_hop", what, fix)
}

fn egress(way: &WaySeen) -> String {
    let nic = way
        .nic
        .clone()
        .unwrap_or_else(|| format!("the NIC with index {}", way.interface));
    let mut text = format!("{nic} from {}", mac(way.source_mac));
    if !way.vlan.is_empty() {
        let ids: Vec<_> = way.vlan.iter().map(u16::to_string).collect();
        text = format!("{text}, VLAN {}", ids.join(" and "));
    }
    if let Some((local, peer, teid)) = way.tunnel {
        text = format!("{text}, in a GTP-U tunnel {local} to {peer}, TEID {teid}");
    }
    format!("{text}; the device sees {}", way.source)
}

fn mtu(seen: &SessionSeen) -> TraceStep {
    let mtu = seen.way.mtu;
    let empty = trigger_bytes(seen);
    let what = format!("{mtu} bytes; a trigger without payload has {empty}");
    let fix = (empty > usize::from(mtu) && matches!(seen.way.state, WayState::Resolved))
        .then(|| "raise the MTU of the NIC or the route on the way to the device".to_owned());
    step("mtu", what, fix)
}

fn takers(nics: &[NicStatus], port: u16) -> Vec<TraceStep> {
    let takers: Vec<_> = nics
        .iter()
        .filter(|nic| !nic.trigger_addresses.is_empty())
        .map(|nic| {
            let name = &nic.name;
            let addresses: Vec<_> = nic
                .trigger_addresses
                .iter()
                .map(ToString::to_string)
                .collect();
            let what = format!(
                "{name} takes triggers to {}, port {port}, in {} mode",
                addresses.join(" and "),
                nic.mode
            );
            let fix = (nic.mode == "none").then(|| {
                format!(
                    "the program isn't on {name} any more: push-ctl nic detach {name}, then attach"
                )
            });
            step("nic", what, fix)
        })
        .collect();
    if takers.is_empty() {
        let fix = "push-ctl nic attach NAME --role external --trigger-address ADDR";
        return vec![step(
            "nic",
            "no NIC takes triggers".to_owned(),
            Some(fix.to_owned()),
        )];
    }
    takers
}

fn mac(mac: [u8; 6]) -> String {
    let bytes: Vec<_> = mac.iter().map(|byte| format!("{byte:02x}")).collect();
    bytes.join(":")
}

/// To the second, or that it's less.
fn in_seconds(time: Duration) -> String {
    match time.as_secs() {
        0 => "less than a second".to_owned(),
        _ => durations::short(time),
    }
}
