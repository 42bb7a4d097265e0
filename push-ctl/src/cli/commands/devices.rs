//! Terminals and sessions.

use super::transfer::{Export, Import};
use super::{none, segment};
use crate::admin::api::{
    Listing, RotateSession, SessionRevoked, SessionRotating, SessionStatus, SetTunnel,
    SuspendTerminal, TerminalChanged, TerminalStatus, TunnelSet, TunnelStatus,
};
use crate::admin::listing::{
    SessionOrder, SessionQuery, SessionStateFilter, TerminalOrder, TerminalQuery,
    TerminalStateFilter,
};
use crate::cli::client::{Question, ask, ask_for_list};
use crate::cli::people::{Table, ago, amount, lifetime, milliseconds, plural};
use crate::cli::{Failure, Output};
use clap::{Args, Subcommand};
use push_common::wire::SessionId;
use reqwest::Method;
use serde_json::json;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

/// What can be done about devices.
#[derive(Debug, Subcommand)]
pub(in crate::cli) enum Terminal {
    /// List terminals
    List(TerminalList),
    /// Show one terminal
    Show(Which),
    /// Bar a terminal: its sessions end, and it gets no others until it is resumed
    Suspend {
        #[command(flatten)]
        which: Which,
        /// Also if no terminal is registered like that: a device of this endpoint name, at whatever address and in
        /// whatever realm, is refused when it comes
        #[arg(long)]
        unregistered: bool,
    },
    /// Take a suspension back; the device is told, if it is known where it is
    Resume(Which),
    /// Forget a terminal: its sessions end; it may register again
    Remove(Which),
    /// Ask a device to refresh its registration
    Refresh(Which),
}

/// Which terminal is meant.
#[derive(Args, Debug)]
pub(in crate::cli) struct Which {
    /// Registration id of the terminal, 16 hexadecimal digits, or its endpoint name, which no two have
    #[arg(value_name = "ID|ENDPOINT")]
    terminal: String,
}

impl Which {
    /// What the daemon has of it.
    fn path(&self) -> String {
        format!("/v1/terminals/{}", segment(&self.terminal))
    }
}

/// Which terminals are listed.
#[derive(Args, Debug)]
pub(in crate::cli) struct TerminalList {
    /// Only those whose endpoint name contains this
    #[arg(long, value_name = "TEXT")]
    endpoint: Option<String>,
    /// Only those of this realm
    #[arg(long, value_name = "NAME")]
    realm: Option<String>,
    /// Only those with this address, or with one of this prefix
    #[arg(long, value_name = "ADDR[/LEN]")]
    address: Option<String>,
    /// Only those in this state
    #[arg(long)]
    state: Option<TerminalStateFilter>,
    /// What to sort them by [default: endpoint]
    #[arg(long)]
    sort: Option<TerminalOrder>,
    #[command(flatten)]
    page: Page,
}

/// Which part of a list is shown.
#[derive(Args, Debug)]
struct Page {
    /// Sort the other way round
    #[arg(long)]
    reverse: bool,
    /// Leave out this many at the beginning
    #[arg(long, value_name = "N")]
    offset: Option<usize>,
    /// Show at most this many [default: 1000]
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
}

/// What can be done about sessions.
#[derive(Debug, Subcommand)]
pub(in crate::cli) enum Session {
    /// List sessions
    List(SessionList),
    /// Show one session
    Show {
        /// Identifier of the session, 16 hexadecimal digits
        id: SessionId,
    },
    /// End a session: its triggers are refused from now on
    Revoke {
        /// Identifier of the session, 16 hexadecimal digits
        id: SessionId,
    },
    /// Have the app of a session fetch another token; the one before stays valid for `sessions.rotation_overlap`
    Rotate {
        /// Identifier of the session, 16 hexadecimal digits
        id: SessionId,
        /// End the session if that isn't done within this time, such as 10m
        #[arg(long, value_name = "DURATION", value_parser = within)]
        within: Option<Duration>,
    },
    /// The tunnel by which the device of a session is reached
    #[command(subcommand)]
    Tunnel(Tunnel),
    Export(Export),
    Import(Import),
}

/// Which sessions are listed.
#[derive(Args, Debug)]
pub(in crate::cli) struct SessionList {
    /// Also sessions that are over, as far as they are remembered
    #[arg(long)]
    all: bool,
    /// Only those of this application
    #[arg(long, value_name = "NAME")]
    app: Option<String>,
    /// Only those of this terminal: its registration id, or its endpoint name
    #[arg(long, value_name = "ID|ENDPOINT")]
    terminal: Option<String>,
    /// Only those on devices of this realm
    #[arg(long, value_name = "NAME")]
    realm: Option<String>,
    /// Only those on devices with this address, or with one of this prefix
    #[arg(long, value_name = "ADDR[/LEN]")]
    address: Option<String>,
    /// Only those in this state
    #[arg(long)]
    state: Option<SessionStateFilter>,
    /// What to sort them by [default: slot]
    #[arg(long)]
    sort: Option<SessionOrder>,
    #[command(flatten)]
    page: Page,
}

/// What can be done about the tunnel of a session.
#[derive(Debug, Subcommand)]
pub(in crate::cli) enum Tunnel {
    /// Reach the device of a session by GTP-U, wherever it moves
    Set {
        /// Identifier of the session, 16 hexadecimal digits
        id: SessionId,
        /// The other end; `gtpu.local` in the configuration needs an address of the same IP version
        #[arg(long, value_name = "ADDR")]
        peer: IpAddr,
        /// Tunnel endpoint identifier at the other end, as 4711 or 0x1267
        #[arg(long, value_name = "N", value_parser = teid)]
        teid: u32,
    },
    /// Reach the device of a session by no tunnel
    Clear {
        /// Identifier of the session, 16 hexadecimal digits
        id: SessionId,
    },
}

impl Terminal {
    pub(in crate::cli) fn dispatch(self, socket: &Path) -> Result<Output, Failure> {
        let post = Method::POST;
        match self {
            Self::List(list) => terminal_list(socket, list),
            Self::Show(which) => ask(socket, terminal_show(&which)),
            Self::Suspend {
                which,
                unregistered,
            } => ask(socket, terminal_suspend(&which, unregistered)),
            Self::Resume(which) => ask(
                socket,
                terminal_change(post, &which, "/resume", |changed| {
                    let now = match changed.state.as_str() {
                        "first_operative" => "may ask for sessions again",
                        _ => "has to register anew",
                    };
                    format!("Terminal {} {now}.\n", changed.id)
                }),
            ),
            Self::Remove(which) => ask(
                socket,
                terminal_change(Method::DELETE, &which, "", |changed| {
                    let ended = plural(changed.sessions_ended, "session");
                    format!("Terminal {} is removed; {ended} ended.\n", changed.id)
                }),
            ),
            Self::Refresh(which) => ask(
                socket,
                terminal_change(post, &which, "/refresh", |changed| {
                    format!(
                        "Terminal {} is asked to refresh its registration.\n",
                        changed.id
                    )
                }),
            ),
        }
    }
}

impl Session {
    pub(in crate::cli) fn dispatch(self, socket: &Path) -> Result<Output, Failure> {
        match self {
            Self::List(list) => session_list(socket, list),
            Self::Show { id } => ask(socket, session_show(id)),
            Self::Revoke { id } => ask(socket, session_revoke(id)),
            Self::Rotate { id, within } => ask(socket, session_rotate(id, within)),
            Self::Tunnel(Tunnel::Set { id, peer, teid }) => {
                ask(socket, tunnel_set(id, SetTunnel { peer, teid }))
            }
            Self::Tunnel(Tunnel::Clear { id }) => ask(socket, tunnel_clear(id)),
            Self::Export(export) => export.dispatch(socket),
            Self::Import(import) => import.dispatch(socket),
        }
    }
}

/// Less than a second would end the session before its device could do anything about it.
fn within(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(time) if time.as_secs() > 0 => Ok(time),
        Ok(_) => {
            Err("1s is the shortest; `push-ctl session revoke` ends a session at once".to_owned())
        }
        Err(_) => Err("write for example 90s or 10m".to_owned()),
    }
}

/// A number, or its hexadecimal digits after `0x`.
fn teid(text: &str) -> Result<u32, String> {
    let number = match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16),
        None => text.parse(),
    };
    match number {
        Ok(0) => Err("0 is no tunnel's".to_owned()),
        Ok(number) => Ok(number),
        Err(_) => Err("write for example 4711 or 0x1267".to_owned()),
    }
}

fn terminal_list(socket: &Path, list: TerminalList) -> Result<Output, Failure> {
    let is_filtered = list.endpoint.is_some()
        || list.realm.is_some()
        || list.address.is_some()
        || list.state.is_some();
    let query = TerminalQuery {
        endpoint: list.endpoint,
        realm: list.realm,
        address: list.address,
        state: list.state,
        sort: list.sort,
        reverse: list.page.reverse,
        offset: list.page.offset,
        limit: list.page.limit,
    };
    ask_for_list(
        socket,
        "/v1/terminals",
        &query,
        move |listing: &Listing<TerminalStatus>| {
            let mut table = Table::new(&[
                "TERMINAL", "ENDPOINT", "ADDRESS", "REALM", "STATE", "EXPIRES", "SESSIONS",
            ]);
            for terminal in &listing.items {
                table.row([
                    terminal.id.clone(),
                    terminal.endpoint.clone(),
                    terminal
                        .address
                        .map_or_else(none, |address| address.to_string()),
                    terminal.realm.clone().unwrap_or_else(none),
                    state(&terminal.state, terminal.cause.as_ref()),
                    terminal.expires_in_s.map_or_else(none, lifetime),
                    terminal.sessions.to_string(),
                ]);
            }
            table.or_say(if is_filtered {
                "No such terminals."
            } else {
                "No terminals."
            })
        },
    )
}

fn session_list(socket: &Path, list: SessionList) -> Result<Output, Failure> {
    let is_filtered = list.app.is_some()
        || list.terminal.is_some()
        || list.realm.is_some()
        || list.address.is_some()
        || list.state.is_some();
    let none_text = match (is_filtered, list.all || list.state.is_some()) {
        (false, _) => "No sessions.",
        (true, true) => "No such sessions.",
        (true, false) => "No such sessions; --all looks at those that are over, too.",
    };
    let query = SessionQuery {
        app: list.app,
        terminal: list.terminal,
        realm: list.realm,
        address: list.address,
        state: list.state,
        ended: list.all,
        sort: list.sort,
        reverse: list.page.reverse,
        offset: list.page.offset,
        limit: list.page.limit,
    };
    ask_for_list(
        socket,
        "/v1/sessions",
        &query,
        |listing: &Listing<SessionStatus>| {
            let head = [
                "SESSION",
                "APPLICATION",
                "INSTANCE",
                "DEVICE",
                "REALM",
                "STATE",
                "EXPIRES",
                "DELIVERED",
                "REFUSED",
                "ACKED",
                "LAST",
                "NEXT HOP",
            ];
            let mut table = Table::new(&head);
            for session in &listing.items {
                table.row([
                    session.id.clone(),
                    session.app.clone(),
                    session.instance.clone(),
                    session
                        .device
                        .map_or_else(none, |device| device.to_string()),
                    session.realm.clone().unwrap_or_else(none),
                    state(&session.state, session.cause.as_ref()),
                    session.expires_in_s.map_or_else(none, lifetime),
                    amount(session.packets),
                    amount(session.refused.into()),
                    amount(session.acknowledged.into()),
                    session.last_delivered_ago_s.map_or_else(none, ago),
                    next_hop(session.next_hop.as_deref()),
                ]);
            }
            table.or_say(none_text)
        },
    )
}

fn terminal_show(which: &Which) -> Question<TerminalStatus> {
    Question::get(which.path(), |terminal: &TerminalStatus| {
        let mut facts = Table::facts();
        facts.fact("terminal", &terminal.id);
        facts.fact("endpoint", &terminal.endpoint);
        facts.fact(
            "address",
            terminal
                .address
                .map_or_else(none, |address| address.to_string()),
        );
        facts.fact("realm", terminal.realm.clone().unwrap_or_else(none));
        facts.fact(
            "registered at",
            terminal
                .gateway
                .map_or_else(none, |gateway| gateway.to_string()),
        );
        facts.fact("state", state(&terminal.state, terminal.cause.as_ref()));
        facts.fact(
            "expires in",
            terminal.expires_in_s.map_or_else(none, lifetime),
        );
        facts.fact("sessions", terminal.sessions);
        facts.to_string()
    })
}

fn session_show(id: SessionId) -> Question<SessionStatus> {
    Question::get(format!("/v1/sessions/{id}"), |session: &SessionStatus| {
        let mut facts = Table::facts();
        facts.fact("session", &session.id);
        facts.fact("application", &session.app);
        facts.fact("instance", &session.instance);
        facts.fact("terminal", &session.terminal);
        facts.fact(
            "device",
            session
                .device
                .map_or_else(none, |device| device.to_string()),
        );
        facts.fact("realm", session.realm.clone().unwrap_or_else(none));
        facts.fact("tunnel", session.tunnel.map_or_else(none, tunnel));
        facts.fact("next hop", next_hop(session.next_hop.as_deref()));
        facts.fact("state", state(&session.state, session.cause.as_ref()));
        facts.fact(
            "token generation",
            session
                .token_generation
                .map_or_else(none, |generation| generation.to_string()),
        );
        facts.fact(
            "expires in",
            session.expires_in_s.map_or_else(none, lifetime),
        );
        facts.fact(
            "delivered",
            format!(
                "{} ({} bytes)",
                amount(session.packets),
                amount(session.bytes)
            ),
        );
        facts.fact(
            "last delivered",
            session.last_delivered_ago_s.map_or_else(none, ago),
        );
        facts.fact("refused", amount(session.refused.into()));
        facts.fact("acknowledged", amount(session.acknowledged.into()));
        facts.fact(
            "round trip",
            session.round_trip_ms.map_or_else(none, milliseconds),
        );
        facts.to_string()
    })
}

fn session_revoke(id: SessionId) -> Question<SessionRevoked> {
    Question::act(
        Method::POST,
        format!("/v1/sessions/{id}/revoke"),
        None,
        |revoked: &SessionRevoked| {
            format!(
                "Session {} is revoked; its triggers were refused after {}.\n",
                revoked.id,
                milliseconds(revoked.effective_after_us as f64 / 1e3)
            )
        },
    )
}

fn session_rotate(id: SessionId, within: Option<Duration>) -> Question<SessionRotating> {
    let asked = RotateSession {
        within_s: within.map(|within| within.as_secs()),
    };
    Question::act(
        Method::POST,
        format!("/v1/sessions/{id}/rotate"),
        Some(json!(asked)),
        |rotating: &SessionRotating| {
            let consequence = rotating.within_s.map_or_else(String::new, |within_s| {
                format!(
                    " If its server hasn't validated that one in {}, the session ends.",
                    lifetime(within_s)
                )
            });
            format!(
                "The app of session {} is asked to fetch another token.{consequence}\n",
                rotating.id
            )
        },
    )
}

fn terminal_change(
    method: Method,
    which: &Which,
    what: &str,
    people: fn(&TerminalChanged) -> String,
) -> Question<TerminalChanged> {
    Question::act(method, format!("{}{what}", which.path()), None, people)
}

fn terminal_suspend(which: &Which, unregistered: bool) -> Question<TerminalChanged> {
    let path = format!("{}/suspend", which.path());
    let body = json!(SuspendTerminal { unregistered });
    let name = which.terminal.clone();
    Question::act(
        Method::POST,
        path,
        Some(body),
        move |changed: &TerminalChanged| {
            if changed.registered {
                let ended = plural(changed.sessions_ended, "session");
                format!("Terminal {} is suspended; {ended} ended.\n", changed.id)
            } else {
                format!(
                    "No terminal {name} is registered; one that comes is refused. Terminal {} stands for it until then.\n",
                    changed.id
                )
            }
        },
    )
}

fn tunnel_set(id: SessionId, tunnel: SetTunnel) -> Question<TunnelSet> {
    Question::act(
        Method::PUT,
        format!("/v1/sessions/{id}/tunnel"),
        Some(json!(tunnel)),
        tell_tunnel,
    )
}

fn tunnel_clear(id: SessionId) -> Question<TunnelSet> {
    Question::act(
        Method::DELETE,
        format!("/v1/sessions/{id}/tunnel"),
        None,
        tell_tunnel,
    )
}

fn tell_tunnel(set: &TunnelSet) -> String {
    match set.tunnel {
        Some(by) => format!(
            "The device of session {} is reached by {}.\n",
            set.id,
            tunnel(by)
        ),
        None => format!(
            "The device of session {} is reached by no tunnel.\n",
            set.id
        ),
    }
}

fn tunnel(tunnel: TunnelStatus) -> String {
    format!("GTP-U to {}, TEID {:#010x}", tunnel.peer, tunnel.teid)
}

fn next_hop(state: Option<&str>) -> String {
    state.map_or_else(none, |state| state.replace('_', " "))
}

fn state(state: &str, cause: Option<&String>) -> String {
    let state = state.replace('_', " ");
    cause.map_or_else(
        || state.clone(),
        |cause| format!("{state} ({})", cause.replace('_', " ")),
    )
}
