//! A device and an application's server of its own, driven through the gateway's real interfaces: how far a trigger
//! gets, and how long that takes.

mod namespace;
mod phone;
mod server;
mod steps;

use super::people::{amount, lifetime, milliseconds, plural};
use super::{Failure, Output, client};
use crate::admin::api::{AppStatus, SessionStatus, Stats, TerminalChanged};
use crate::emulate::device::{AppInstance, Wishes};
use crate::emulate::news::News;
use crate::emulate::radio;
use crate::random;
use crate::sessions::records::AppName;
use namespace::within;
use phone::{Missing, Phone};
use push_common::token::Token;
use push_common::wire::{Flags, SessionId, TRIGGER_HEADER_LEN, TriggerHeader};
use reqwest::Method;
use serde_json::json;
use server::{NotValidated, Trust, Validated};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};
use steps::{Broken, Mark, Steps};
use zerocopy::IntoBytes;
use zeroize::Zeroizing;

const PAYLOAD: &[u8] = b"push-ctl probe";
/// How long the last words of the device may take.
const FAREWELL: Duration = Duration::from_secs(3);

/// How long the daemon may take to say what it knows.
const ADMIN_LIMIT: Duration = Duration::from_secs(10);

/// What to look at between the gateway and the device.
const ON_THE_WAY: &str = "the gateway has sent it on, or can't be asked: look for it on the way, with `tcpdump -ni any udp` on the gateway and \
    on the device. Is there a firewall, a driver that drops redirected frames (`ip -s link`), or, where the sender is virtual, a \
    checksum that was left to its NIC (`ethtool -K NIC tx off`)?";

/// Find out how far a trigger gets, with a device and an application's server of this command's own
///
/// Goes through the gateway's real interfaces and NICs, so run it on a machine with a leg on either side, or name a network
/// namespace for each. Everything is deregistered at the end.
#[derive(Debug, clap::Args)]
pub(super) struct Probe {
    /// Where devices register: an address of the gateway's `internal.listen`, or of a realm's
    #[arg(long, value_name = "ADDR:PORT")]
    internal: SocketAddr,
    /// Where application servers validate tokens: `https://` and an address of `external.listen`
    #[arg(long, value_name = "URL", value_parser = external)]
    external: String,
    /// PEM file with the certificates of those who may have signed the gateway's; for a self-signed one, with itself
    #[arg(
        long,
        value_name = "FILE",
        default_value = "/etc/ssl/certs/ca-certificates.crt"
    )]
    ca: PathBuf,
    /// The application whose server is played
    #[arg(long, value_name = "NAME")]
    app: AppName,
    /// File with the application's key, `pak_…`; `-` is stdin
    #[arg(long, value_name = "FILE")]
    key_file: PathBuf,
    /// Address of the device; this machine's unless given
    #[arg(long, value_name = "ADDR")]
    device_address: Option<IpAddr>,
    /// Network namespace in which the device is
    #[arg(long, value_name = "NAME")]
    device_netns: Option<String>,
    /// Network namespace in which the application's server is
    #[arg(long, value_name = "NAME")]
    app_netns: Option<String>,
    /// How many triggers to send, one after the other
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    count: u32,
    /// How long each step may take
    #[arg(long, value_name = "DURATION", default_value = "5s")]
    timeout: humantime::Duration,
}

fn external(url: &str) -> Result<String, String> {
    match server::host_and_port(url) {
        Some(_) => Ok(url.to_owned()),
        None => Err("write for example https://198.51.100.1:8443".to_owned()),
    }
}

/// What became of the triggers.
#[derive(Default)]
struct Journey {
    sent: u32,
    /// From the server to the device.
    there: Vec<Duration>,
    /// From the server to the device and back.
    there_and_back: Vec<Duration>,
    /// What happened instead of the arrival of the last one.
    missing: Option<Missing>,
}

pub(super) fn probe(options: &Probe, socket: &Path, as_json: bool) -> Result<Output, Failure> {
    let key = super::trigger::read_secret(&options.key_file, |text| {
        if text.starts_with("pak_") {
            Ok(Zeroizing::new(text.to_owned()))
        } else {
            Err("not an application's key: expected `pak_` and what follows".to_owned())
        }
    })?;
    let trust = server::trusting(&options.ca).map_err(|error| {
        let hint = "--ca has to be a PEM file with the certificates of those who sign the gateway's; for a self-signed one, with itself";
        Failure::with_hint(error.to_string(), hint)
    })?;
    let steps = Steps { as_json };
    let (phone, address, endpoint) = switch_on(options)?;
    let outcome = walk(options, socket, (&key, trust), &phone, address, &steps);
    if let Err(broken) = &outcome {
        steps.tell(broken.step, Mark::Failed, None, &broken.error);
    }
    match phone.leave(FAREWELL) {
        Ok(took) => steps.ok("deregistered", took, ""),
        Err(_) => steps.tell("deregistered", Mark::Unknown, None, "no answer"),
    }
    // It would be in the list of terminals for a while. Without a daemon to ask, that is where it stays.
    let path = format!("/v1/terminals/{endpoint}");
    let _stays = client::act::<TerminalChanged>(socket, Method::DELETE, &path);
    match outcome {
        Ok(journey) => {
            let there = spread(journey.there);
            let back = spread(journey.there_and_back);
            let sentence = |name: &str, spread: Option<[f64; 3]>| {
                spread.map_or_else(String::new, |[min, median, max]| {
                    format!(
                        "{name}: {} / {} / {} (min / median / max).\n",
                        milliseconds(min),
                        milliseconds(median),
                        milliseconds(max)
                    )
                })
            };
            let people = sentence("To the device", there) + &sentence("Round trips", back);
            let data = json!({
                "step": "result", "triggers": journey.sent,
                "to_device_ms": there, "round_trip_ms": back,
            });
            Output::new(&data, people)
        }
        Err(Broken { step, error, hint }) => Err(Failure::with_hint(
            format!("it ends at \"{step}\": {error}"),
            hint,
        )),
    }
}

/// Least, middle and greatest, in milliseconds.
fn spread(mut times: Vec<Duration>) -> Option<[f64; 3]> {
    times.sort();
    let (first, last) = (times.first()?, times.last()?);
    let middle = times.get(times.len() / 2)?;
    Some([first, middle, last].map(|&time| in_milliseconds(time)))
}

/// To the microsecond: what is below that is noise.
fn in_milliseconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

/// The device, which begins to register, where it is, and what it calls itself.
fn switch_on(options: &Probe) -> Result<(Phone, SocketAddr, String), Failure> {
    let netns = options.device_netns.as_deref();
    let socket = within(netns, || {
        let address = match options.device_address {
            Some(address) => address,
            None => radio::usual_address(options.internal)?,
        };
        UdpSocket::bind((address, 0))
    });
    let begun = socket.and_then(|socket| socket.local_addr().map(|address| (socket, address)));
    let (socket, address) = begun.map_err(|error| {
        let place = options.device_address.map_or_else(
            || format!("on the way to {}", options.internal),
            |address| format!("at {address}"),
        );
        Failure::with_hint(
            format!("no device can be {place}: {error}"),
            "--device-address has to be an address of this machine, or of the namespace that --device-netns names",
        )
    })?;
    let suffix: [u8; 4] = random::bytes();
    let wishes = Wishes {
        lifetime: None,
        app: Some(AppInstance {
            app: options.app.to_string(),
            instance: "probe".to_owned(),
        }),
        port: address.port(),
    };
    let endpoint = format!("probe-{}", hex::encode(suffix));
    let phone = Phone::begin(socket, options.internal, endpoint.clone(), wishes);
    Ok((phone, address, endpoint))
}

fn walk(
    options: &Probe,
    socket: &Path,
    (key, trust): (&str, Trust),
    phone: &Phone,
    address: SocketAddr,
    steps: &Steps,
) -> Result<Journey, Broken> {
    let (id, token) = be_admitted(options, phone, address, steps)?;
    let validated = prove(options, key, trust, id, &token, steps)?;
    let before = counters(socket);
    let journey = travel(options, phone, &validated, id, &token)?;
    let sent = format!("{} to {}", plural(journey.sent, "trigger"), validated.to);
    steps.tell("sent", Mark::Ok, None, &sent);
    ask_the_gateway(socket, id, journey.sent, before.as_ref(), steps)?;
    let arrived = journey.there.len();
    if let Some(missing) = &journey.missing {
        let (why, _) = why(missing);
        return Err(Broken {
            step: "received",
            error: format!("{arrived} of {}: {why}", plural(journey.sent, "trigger")),
            hint: ON_THE_WAY.to_owned(),
        });
    }
    let median = spread(journey.there.clone()).map(|[_, median, _]| median / 1e3);
    let text = format!("{}, the tags are right", plural(arrived as u64, "trigger"));
    steps.tell(
        "received",
        Mark::Ok,
        median.map(Duration::from_secs_f64),
        &text,
    );
    look_for_acknowledgements(options, socket, id, &journey, steps)?;
    Ok(journey)
}

/// Has the device register, and get a session.
fn be_admitted(
    options: &Probe,
    phone: &Phone,
    address: SocketAddr,
    steps: &Steps,
) -> Result<(SessionId, Token), Broken> {
    let limit = *options.timeout;
    let began = Instant::now();
    let registered = phone.wait_for(limit, |news| match news {
        News::Registered { id, lifetime, .. } => Some((*id, *lifetime)),
        _ => None,
    });
    let (at, (registration, time)) = registered.map_err(|missing| {
        let (error, refused) = why(&missing);
        Broken {
            step: "registered",
            error,
            hint: if refused {
                "the device's address, or its realm, may be another one than the gateway sees"
            } else {
                "is this an address of `internal.listen` (`push-ctl status`), and is there a route back from the gateway to the device? `tcpdump -ni any udp port 5683` on the gateway shows"
            }
            .to_owned(),
        }
    })?;
    let text = format!(
        "as {registration} at {}, for {}",
        address.ip(),
        lifetime(time.as_secs())
    );
    steps.ok("registered", at.saturating_duration_since(began), &text);

    let granted = phone.wait_for(limit, |news| match news {
        News::Granted { session, token, .. } => Some((*session, token.clone())),
        _ => None,
    });
    let (granted_at, (id, token)) = granted.map_err(|missing| Broken {
        step: "session",
        error: why(&missing).0,
        hint: "`push-ctl app list` shows which applications there are, `push-ctl status` how many sessions".to_owned(),
    })?;
    let took = granted_at.saturating_duration_since(at);
    steps.ok("session", took, &id.to_string());
    Ok((id, token))
}

/// Validates the token.
fn prove(
    options: &Probe,
    key: &str,
    trust: Trust,
    id: SessionId,
    token: &Token,
    steps: &Steps,
) -> Result<Validated, Broken> {
    let began = Instant::now();
    let text = token.to_text();
    let outcome = within(options.app_netns.as_deref(), || {
        let place = server::host_and_port(&options.external);
        let place = place.ok_or_else(|| std::io::Error::other("no such place"))?;
        let token = String::from_utf8_lossy(&text);
        let limit = *options.timeout;
        Ok(server::validate(
            place,
            trust,
            &id.to_string(),
            &token,
            key,
            limit,
        ))
    });
    let broken = |error: String, hint: &str| Broken {
        step: "validated",
        error,
        hint: hint.to_owned(),
    };
    match outcome {
        Ok(Ok(validated)) => {
            let text = format!("triggers are to go to {}", validated.to);
            steps.ok("validated", began.elapsed(), &text);
            Ok(validated)
        }
        Ok(Err(NotValidated::Refused(status, detail))) => Err(broken(
            format!("{status} {detail}"),
            if status == 401 {
                "the key isn't this gateway's: `push-ctl app list` shows the applications; each gets its key once"
            } else if status == 404 {
                "is the key that of another application than --app names?"
            } else {
                "`push-ctl guide trigger` says what the status means"
            },
        )),
        Ok(Err(NotValidated::Unreachable(error))) => Err(broken(
            format!("{} can't be asked: {error}", options.external),
            "is it in `external.listen` (`push-ctl status`), and is --ca right? `curl --cacert FILE URL/openapi.json` tells more",
        )),
        Err(error) => Err(broken(
            error.to_string(),
            "--app-netns has to be one that `ip netns` lists",
        )),
    }
}

/// Sends the triggers, each after the one before was received, and sees where they get.
fn travel(
    options: &Probe,
    phone: &Phone,
    validated: &Validated,
    id: SessionId,
    token: &Token,
) -> Result<Journey, Broken> {
    let broken = |error: std::io::Error| Broken {
        step: "sent",
        error: format!("no trigger can be sent to {}: {error}", validated.to),
        hint: "is there a route from the application's side to the trigger address?".to_owned(),
    };
    let any: IpAddr = match validated.to {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = within(options.app_netns.as_deref(), || {
        let socket = UdpSocket::bind((any, 0))?;
        socket.connect(validated.to)?;
        Ok(socket)
    });
    let socket = socket.map_err(broken)?;
    let mut journey = Journey::default();
    // How long an acknowledgement may take; not all applications get them back.
    let mut patience = Duration::from_secs(1).min(*options.timeout);
    let first = sequence_now();
    for sequence in (first..).take(options.count as usize) {
        let (flags, generation) = (Flags::ACK_REQUESTED, validated.token_generation);
        let header = TriggerHeader::sign(token.key(), flags, generation, id, sequence, PAYLOAD)
            .expect("this payload is short");
        let began = Instant::now();
        socket
            .send(&[header.as_bytes(), PAYLOAD].concat())
            .map_err(broken)?;
        journey.sent += 1;
        let arrived = phone.wait_for(*options.timeout, |news| match news {
            News::Trigger { header, .. } => (header.sequence.get() == sequence).then_some(()),
            _ => None,
        });
        match arrived {
            Ok((at, ())) => journey.there.push(at.saturating_duration_since(began)),
            Err(missing) => {
                journey.missing = Some(missing);
                break;
            }
        }
        let expected = header.acknowledgement(token.key());
        match acknowledged(&socket, expected.as_bytes(), began, patience) {
            Some(took) => journey.there_and_back.push(took),
            None if journey.there_and_back.is_empty() => patience = Duration::from_millis(1),
            None => {}
        }
    }
    Ok(journey)
}

/// How long after `began` this acknowledgement came, if it did.
fn acknowledged(
    socket: &UdpSocket,
    expected: &[u8],
    began: Instant,
    patience: Duration,
) -> Option<Duration> {
    let mut datagram = [0; TRIGGER_HEADER_LEN + 1];
    loop {
        let left = patience.saturating_sub(began.elapsed());
        socket
            .set_read_timeout(Some(left.max(Duration::from_millis(1))))
            .ok()?;
        let length = socket.recv(&mut datagram).ok()?;
        if datagram[..length] == *expected {
            return Some(began.elapsed());
        }
    }
}

fn sequence_now() -> u64 {
    let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    u64::try_from(since_epoch.unwrap_or_default().as_millis() / 10).unwrap_or_default()
}

/// Packets by verdict, of all NICs; what they mean, and whether they were dropped.
type Counters = BTreeMap<String, (u64, String, bool)>;

fn counters(socket: &Path) -> Result<Counters, Failure> {
    let stats: Stats = client::get(socket, "/v1/stats", ADMIN_LIMIT)?;
    let mut counters = Counters::new();
    for verdict in stats.nics.into_iter().flat_map(|nic| nic.verdicts) {
        let dropped = verdict.action == "drop";
        let entry = counters.entry(verdict.verdict);
        let (packets, ..) = entry.or_insert((0, verdict.meaning, dropped));
        *packets += verdict.packets;
    }
    Ok(counters)
}

/// Tells what the gateway says became of the triggers; fails if it didn't deliver them all.
fn ask_the_gateway(
    socket: &Path,
    id: SessionId,
    sent: u32,
    before: Result<&Counters, &Failure>,
    steps: &Steps,
) -> Result<(), Broken> {
    let told = before
        .map_err(|failure| failure.error.clone())
        .and_then(|before| became_of(socket, id, before).map_err(|failure| failure.error));
    let (session, dropped) = match told {
        Ok(told) => told,
        Err(error) => {
            let text = format!("not asked: {error}");
            steps.tell("gateway", Mark::Unknown, None, &text);
            return Ok(());
        }
    };
    let of = amount(sent.into());
    let mut text = format!("delivered {} of {of}", amount(session.packets));
    for Dropped { packets, label, .. } in &dropped {
        text += &format!(", {} dropped as {label}", amount(*packets));
    }
    if let Some(next_hop) = &session.next_hop {
        text += &format!("; next hop {next_hop}");
    }
    if session.packets >= u64::from(sent) {
        steps.tell("gateway", Mark::Ok, None, &text);
        return Ok(());
    }
    let most = dropped.into_iter().max_by_key(|dropped| dropped.packets);
    let meaning = most
        .map(|dropped| dropped.meaning + " ")
        .unwrap_or_default();
    Err(Broken {
        step: "gateway",
        error: text,
        hint: format!("{meaning}`push-ctl session show {id}` and `push-ctl stats` tell more"),
    })
}

/// Packets that were dropped for one reason.
struct Dropped {
    packets: u64,
    label: String,
    meaning: String,
}

/// The session as it is now, and what was dropped since `before`, of all sessions.
fn became_of(
    socket: &Path,
    id: SessionId,
    before: &Counters,
) -> Result<(SessionStatus, Vec<Dropped>), Failure> {
    let session = client::get(socket, &format!("/v1/sessions/{id}"), ADMIN_LIMIT)?;
    let mut dropped = Vec::new();
    for (label, (now, meaning, is_drop)) in counters(socket)? {
        let packets = now.saturating_sub(before.get(&label).map_or(0, |before| before.0));
        // Acknowledgements end here when all is well.
        if is_drop && packets > 0 && !label.starts_with("ack_") {
            dropped.push(Dropped {
                packets,
                label,
                meaning,
            });
        }
    }
    Ok((session, dropped))
}

fn look_for_acknowledgements(
    options: &Probe,
    socket: &Path,
    id: SessionId,
    journey: &Journey,
    steps: &Steps,
) -> Result<(), Broken> {
    let came = journey.there_and_back.len();
    if came > 0 {
        let median = spread(journey.there_and_back.clone()).map(|[_, median, _]| median / 1e3);
        let text = format!(
            "{} of {} came back",
            amount(came as u64),
            amount(journey.sent.into())
        );
        let mark = if came == journey.there.len() {
            Mark::Ok
        } else {
            Mark::Unknown
        };
        steps.tell(
            "acknowledged",
            mark,
            median.map(Duration::from_secs_f64),
            &text,
        );
        return Ok(());
    }
    let session = client::get::<SessionStatus>(socket, &format!("/v1/sessions/{id}"), ADMIN_LIMIT);
    let app = client::get::<AppStatus>(socket, &format!("/v1/apps/{}", options.app), ADMIN_LIMIT);
    let (Ok(session), Ok(app)) = (session, app) else {
        let text = "none came back; without --return-acks of the application, none can";
        steps.tell("acknowledged", Mark::Unknown, None, text);
        return Ok(());
    };
    let counted = session.acknowledged;
    if app.policy.return_acks || counted == 0 {
        return Err(Broken {
            step: "acknowledged",
            error: format!("the gateway has counted {counted}, and none came back"),
            hint: "acknowledgements go to the address and port of the internal interface, by a NIC whose role is internal or both; `push-ctl stats` shows what became of them".to_owned(),
        });
    }
    let text =
        format!("{counted} counted; without --return-acks of the application none comes back");
    steps.tell("acknowledged", Mark::Ok, None, &text);
    Ok(())
}

/// In words; and whether it was refused.
fn why(missing: &Missing) -> (String, bool) {
    match missing {
        Missing::Refused(text) => (format!("refused: {text}"), true),
        Missing::InTime(None) => ("nothing came in time".to_owned(), false),
        Missing::InTime(Some(instead)) => (instead.clone(), false),
        Missing::Broken(error) => (format!("the device has failed: {error}"), false),
    }
}
