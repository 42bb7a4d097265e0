//! Devices that are played: what they are to be like, and what is told of them.

use crate::cli::people::{amount, lifetime, milliseconds, plural};
use crate::cli::{Failure, Output};
use crate::emulate::device::{AppInstance, Device, Wishes};
use crate::emulate::fleet::{self, Listener, Plan, Progress, Step};
use crate::emulate::news::News;
use crate::emulate::radio::{self, Radio};
use crate::emulate::tally::Summary;
use crate::sessions::records::{AppName, EndpointName, InstanceName};
use clap::Subcommand;
use ipnet::IpNet;
use push_common::wire::{SessionId, TRIGGER_HEADER_LEN};
use serde_json::{Value, json};
use std::fs::File;
use std::io::{self, BufWriter, IsTerminal, StdoutLock, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum Emulate {
    /// Devices: they register, ask for a session, check and acknowledge triggers, and stay registered
    ///
    /// Until Ctrl-C, or as long as --for says; then they deregister. Fails if a request went unanswered, or a device
    /// didn't get what it wants.
    #[command(after_help = FOR_MANY)]
    Device(Box<DeviceOptions>),
}

const FOR_MANY: &str = "\
Many devices (--count) have an address each, of the prefix that --from gives. On the machine, or in the network \
namespace, where they are played, make them all local:

  ip route add local 10.128.0.0/15 dev lo

and on the gateway, route them there:

  ip route add 10.128.0.0/15 via ADDRESS";

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct DeviceOptions {
    /// Where devices register: an address of the gateway's `internal.listen`, or of a realm's
    #[arg(long, value_name = "ADDR:PORT")]
    gateway: SocketAddr,
    /// What the device calls itself; with --count, each gets a number behind it
    #[arg(long, value_name = "NAME", default_value = "emulated")]
    endpoint: EndpointName,
    /// Application to ask for a session for; none without it
    #[arg(long, value_name = "NAME")]
    app: Option<AppName>,
    /// Which instance of the application
    #[arg(long, value_name = "NAME", default_value = "1", requires = "app")]
    instance: InstanceName,
    /// UDP port of the device, for CoAP and triggers; any free one unless given
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    port: u16,
    /// Lifetime to ask for; refreshed after half to three quarters of what is granted
    #[arg(long, value_name = "DURATION")]
    lifetime: Option<humantime::Duration>,
    /// How many devices
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    count: u32,
    /// Address of the device, or prefix of the addresses of many; this machine's unless given
    #[arg(long, value_name = "PREFIX", value_parser = prefix)]
    from: Option<IpNet>,
    /// How many devices begin to register per second, at most
    #[arg(long, value_name = "N", value_parser = rate)]
    rate: Option<f64>,
    /// How many devices may be waiting for answers at the same time
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..))]
    at_once: u32,
    /// Refresh each registration this many times as soon as all devices are ready, to measure it
    #[arg(long, value_name = "N", default_value_t = 0)]
    refreshes: u32,
    /// How long to stay, once all that is done; until Ctrl-C unless given
    #[arg(long = "for", value_name = "DURATION")]
    time: Option<humantime::Duration>,
    /// End without deregistering
    #[arg(long)]
    keep: bool,
    /// Write sessions and their tokens to this file, one line of JSON each; it can be read by its owner alone
    #[arg(long, value_name = "FILE", requires = "app")]
    tokens: Option<PathBuf>,
    /// Print only the totals, at the end
    #[arg(long)]
    summary: bool,
}

/// A prefix, or a single address.
fn prefix(text: &str) -> Result<IpNet, String> {
    text.parse::<IpNet>()
        .or_else(|_| text.parse::<IpAddr>().map(IpNet::from))
        .map_err(|_| "write for example 10.128.0.0/15, or an address".to_owned())
}

fn rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if rate > 0.0 && rate.is_finite() => Ok(rate),
        Ok(_) | Err(_) => Err("has to be a number above 0".to_owned()),
    }
}

pub(in crate::cli) fn dispatch(command: &Emulate, as_json: bool) -> Result<Output, Failure> {
    match command {
        Emulate::Device(options) => devices(options, as_json),
    }
}

fn devices(options: &DeviceOptions, as_json: bool) -> Result<Output, Failure> {
    let failed = |error: io::Error| Failure::new(error.to_string());
    let tokens = options.tokens.as_deref().map(token_file).transpose()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(failed)?;
    let summary = runtime.block_on(async {
        let (gateway, port) = (options.gateway, options.port);
        let radio = Radio::tuned_to(gateway, port).map_err(|error| {
            let text = format!("can't receive on UDP port {port}: {error}");
            Failure::with_hint(text, "choose another --port, or leave it out")
        })?;
        let plan = plan(options, radio.port().map_err(failed)?)?;
        let mut stop = stop_signals().map_err(failed)?;
        let mut teller = Teller {
            as_json,
            each: !options.summary && (as_json || plan.devices.len() == 1),
            progress: !as_json && plan.devices.len() > 1 && io::stderr().is_terminal(),
            stdout: BufWriter::new(io::stdout().lock()),
            tokens,
        };
        let summary = fleet::run(&plan, &radio, &mut stop, &mut teller).await;
        let summary = summary.map_err(|error| {
            let text = format!("can't reach the gateway at {gateway}: {error}");
            Failure::with_hint(text, "is there a route to it? `ip route get` tells")
        })?;
        teller.sum_up(&summary);
        Ok(summary)
    })?;
    let Summary {
        devices,
        ready,
        lost,
        ..
    } = summary;
    if ready < devices || lost > 0 {
        let text = format!(
            "not ready: {} of {}; unanswered: {}",
            amount(devices.saturating_sub(ready) as u64),
            plural(devices as u64, "device"),
            plural(lost, "request")
        );
        let hint = "a refusal says why; if nothing answers, is the daemon up (`push-ctl status`), and is there a way back to the devices' addresses?";
        return Err(Failure::with_hint(text, hint));
    }
    Ok(Output {
        json: None,
        people: String::new(),
        is_good: true,
    })
}

fn plan(options: &DeviceOptions, port: u16) -> Result<Plan, Failure> {
    let count = options.count as usize;
    let name = &options.endpoint;
    let devices: Vec<(String, IpAddr)> = match options.from {
        None if count == 1 => {
            let address = radio::usual_address(options.gateway).map_err(|error| {
                let text = format!("no way to the gateway at {}: {error}", options.gateway);
                Failure::with_hint(text, "`ip route get` tells what the kernel knows")
            })?;
            vec![(name.to_string(), address)]
        }
        None => {
            return Err(Failure::with_hint(
                "each device needs an address of its own",
                "give a prefix with --from; `push-ctl emulate device --help` tells how",
            ));
        }
        Some(prefix) => {
            if prefix.addr().is_ipv4() != options.gateway.is_ipv4() {
                let text = format!("{prefix} and {} are of two IP versions", options.gateway);
                return Err(Failure::new(text));
            }
            let addresses = prefix.hosts().take(count).enumerate();
            let name_of = |n: usize| match count {
                1 => name.to_string(),
                _ => format!("{name}-{}", n + 1),
            };
            let devices: Vec<_> = addresses.map(|(n, ip)| (name_of(n), ip)).collect();
            check_addresses(&devices, prefix, count)?;
            devices
        }
    };
    Ok(Plan {
        devices,
        wishes: Arc::new(Wishes {
            lifetime: options.lifetime.map(Duration::from),
            app: options.app.as_ref().map(|app| AppInstance {
                app: app.to_string(),
                instance: options.instance.to_string(),
            }),
            port,
        }),
        rate_per_s: options.rate,
        at_once: options.at_once as usize,
        refreshes: options.refreshes,
        stay: options.time.map(Duration::from),
        keep: options.keep,
    })
}

/// Whether there are enough, and they are this machine's: the first and the last stand for all.
fn check_addresses(
    devices: &[(String, IpAddr)],
    prefix: IpNet,
    count: usize,
) -> Result<(), Failure> {
    if devices.len() < count {
        let text = format!("{prefix} has {}", plural(devices.len() as u64, "address"));
        return Err(Failure::with_hint(
            text,
            "give a shorter prefix with --from",
        ));
    }
    for (_, address) in devices.first().into_iter().chain(devices.last()) {
        radio::is_ours(*address).map_err(|error| {
            Failure::with_hint(
                format!("can't be at {address}: {error}"),
                format!(
                    "`ip route add local {} dev lo` makes the addresses local here; the gateway needs a route to them, too",
                    prefix.trunc()
                ),
            )
        })?;
    }
    Ok(())
}

/// Ctrl-C, and the polite request to end.
fn stop_signals() -> io::Result<mpsc::Receiver<()>> {
    let (sender, receiver) = mpsc::channel(2);
    for kind in [SignalKind::interrupt(), SignalKind::terminate()] {
        let (mut signals, sender) = (signal(kind)?, sender.clone());
        tokio::spawn(async move {
            while signals.recv().await.is_some() && sender.send(()).await.is_ok() {}
        });
    }
    Ok(receiver)
}

fn token_file(path: &Path) -> Result<File, Failure> {
    let made = (|| {
        let file = File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(path)?;
        // It may have been there before.
        file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
        Ok(file)
    })();
    made.map_err(|error: io::Error| {
        Failure::new(format!("can't write {}: {error}", path.display()))
    })
}

/// Tells what happens as it happens.
struct Teller {
    as_json: bool,
    /// Whether each piece of news is told.
    each: bool,
    progress: bool,
    stdout: BufWriter<StdoutLock<'static>>,
    tokens: Option<File>,
}

impl Teller {
    fn say(&mut self, line: &str) {
        // Who doesn't read any more has read enough; the devices go on.
        let _unread = writeln!(self.stdout, "{line}").and_then(|()| self.stdout.flush());
    }

    fn sum_up(&mut self, summary: &Summary) {
        if self.as_json {
            let mut line = json!(summary);
            line["event"] = json!("summary");
            self.say(&line.to_string());
            return;
        }
        self.say(sum_for_people(summary).trim_end());
    }

    fn keep_token(&mut self, device: &Device, news: &News) {
        if let (
            Some(file),
            News::Granted {
                session,
                token,
                token_generation,
                ..
            },
        ) = (&mut self.tokens, news)
        {
            let line = json!({
                "endpoint": device.endpoint(),
                "session_id": session.to_string(),
                "token": String::from_utf8_lossy(&token.to_text()),
                "token_generation": token_generation,
            });
            if let Err(error) = writeln!(file, "{line}") {
                let _unread = writeln!(io::stderr(), "push-ctl: can't write tokens: {error}");
            }
        }
    }
}

impl Listener for Teller {
    fn news(&mut self, device: &Device, address: IpAddr, news: &News) {
        self.keep_token(device, news);
        if !self.each {
            return;
        }
        if self.as_json {
            if let Some(mut line) = for_programs(news) {
                line["endpoint"] = json!(device.endpoint());
                line["address"] = json!(address);
                self.say(&line.to_string());
            }
        } else if let Some(sentence) = for_people(news) {
            self.say(&format!("{} ({address}): {sentence}", device.endpoint()));
        }
    }

    fn progress(&mut self, progress: &Progress) {
        if !self.progress {
            return;
        }
        let what = match progress.step {
            Step::Starting => "registering".to_owned(),
            Step::Refreshing(n) => format!("refreshing, round {n}"),
            Step::Staying(_) => "staying; Ctrl-C deregisters".to_owned(),
            Step::Leaving => "deregistering".to_owned(),
        };
        let (done, of) = (progress.begun - progress.busy, progress.devices);
        let (done, of) = (amount(done as u64), amount(of as u64));
        let answered = plural(progress.answered, "request");
        let _unread = write!(
            io::stderr(),
            "\r\x1b[2K{what}: {done} of {of}; {answered} answered "
        );
    }
}

fn for_people(news: &News) -> Option<String> {
    Some(match news {
        News::Registered {
            id,
            lifetime: time,
            again,
        } => {
            let done = if *again { "refreshed" } else { "registered" };
            format!("{done} as {id} for {}", lifetime(time.as_secs()))
        }
        News::Granted {
            session,
            token_generation,
            new_session,
            ..
        } => {
            if *new_session {
                format!("has session {session}")
            } else {
                format!("has token generation {token_generation} of session {session}")
            }
        }
        News::Deregistered => "deregistered".to_owned(),
        News::Retransmitted(request) => format!("had to repeat the request {request}"),
        News::Unanswered(request) => format!("no answer to the request {request}"),
        News::Refused {
            request,
            code,
            text,
        } => format!("the request {request} was refused: {code} {text}")
            .trim_end()
            .to_owned(),
        News::Trigger {
            header,
            payload,
            acknowledged,
        } => format!(
            "trigger {} of session {}, {}: {:?}{}",
            header.sequence,
            SessionId::from_u64(header.session_id.get()),
            plural((TRIGGER_HEADER_LEN + payload.len()) as u64, "byte"),
            String::from_utf8_lossy(payload),
            if *acknowledged { ", acknowledged" } else { "" }
        ),
        News::BadTrigger(fault) => format!("no trigger of ours: {fault}"),
        News::TornDown { session, cause } => {
            format!("the gateway has ended session {session}: {cause}")
        }
        News::RotationAsked { session, within } => match within {
            Some(within) => format!(
                "asked to fetch another token for session {session} within {}",
                lifetime(within.as_secs())
            ),
            None => format!("asked to fetch another token for session {session}"),
        },
        News::RenewalAsked { session } => format!("asked to ask for session {session} anew"),
        News::RefreshAsked => "asked to refresh its registration".to_owned(),
        News::Configured { lifetime: time } => match time {
            Some(time) => format!("told that its lifetime is {}", lifetime(time.as_secs())),
            None => "told its configuration".to_owned(),
        },
        News::Answered(..) => return None,
    })
}

fn for_programs(news: &News) -> Option<Value> {
    Some(match news {
        News::Registered {
            id,
            lifetime,
            again,
        } => json!({
            "event": if *again { "refreshed" } else { "registered" },
            "registration": id.to_string(),
            "lifetime_s": lifetime.as_secs(),
        }),
        News::Granted {
            session,
            token_generation,
            new_session,
            ..
        } => json!({
            "event": if *new_session { "session" } else { "token" },
            "session_id": session.to_string(),
            "token_generation": token_generation,
        }),
        News::Deregistered => json!({ "event": "deregistered" }),
        News::Retransmitted(request) => json!({ "event": "retransmitted", "request": request }),
        News::Unanswered(request) => json!({ "event": "unanswered", "request": request }),
        News::Refused {
            request,
            code,
            text,
        } => json!({
            "event": "refused", "request": request, "code": code.to_string(), "text": text,
        }),
        News::Trigger {
            header,
            payload,
            acknowledged,
        } => json!({
            "event": "trigger",
            "session_id": SessionId::from_u64(header.session_id.get()).to_string(),
            "sequence": header.sequence.get(),
            "token_generation": header.token_generation,
            "payload_hex": hex::encode(payload),
            "acknowledged": acknowledged,
        }),
        News::BadTrigger(fault) => json!({ "event": "bad_trigger", "fault": fault.to_string() }),
        News::TornDown { session, cause } => json!({
            "event": "torn_down", "session_id": session.to_string(), "cause": cause,
        }),
        News::RotationAsked { session, within } => json!({
            "event": "rotation_asked",
            "session_id": session.to_string(),
            "within_s": within.map(|within| within.as_secs()),
        }),
        News::RenewalAsked { session } => {
            json!({ "event": "renewal_asked", "session_id": session.to_string() })
        }
        News::RefreshAsked => json!({ "event": "refresh_asked" }),
        News::Configured { lifetime } => json!({
            "event": "configured", "lifetime_s": lifetime.map(|time| time.as_secs()),
        }),
        News::Answered(..) => return None,
    })
}

fn sum_for_people(summary: &Summary) -> String {
    use crate::cli::people::Table;
    let mut text = format!(
        "{} of {} ready after {:.1} s; {} lost, {} refused.\n",
        amount(summary.ready as u64),
        plural(summary.devices as u64, "device"),
        summary.duration_s,
        plural(summary.lost, "request"),
        amount(summary.refused),
    );
    if !summary.requests.is_empty() {
        let mut table = Table::new(&[
            "REQUEST",
            "ANSWERED",
            "LOST",
            "REPEATED",
            "PER SECOND",
            "P50",
            "P99",
            "P99.9",
            "MAX",
        ]);
        for of in &summary.requests {
            let name = json!(of.request);
            let took = |time_ms: f64| match of.answered {
                0 => "-".to_owned(),
                _ => milliseconds(time_ms),
            };
            table.row([
                name.as_str().unwrap_or_default().to_owned(),
                amount(of.answered),
                amount(of.lost),
                amount(of.retransmissions),
                amount(of.per_second.round() as u64),
                took(of.p50_ms),
                took(of.p99_ms),
                took(of.p99_9_ms),
                took(of.max_ms),
            ]);
        }
        text += &table.to_string();
    }
    let of = &summary.triggers;
    if of.received > 0 {
        text += &format!(
            "{} received: {} verified, {} acknowledged, {} again, {} not ours.\n",
            plural(of.received, "trigger"),
            amount(of.verified),
            amount(of.acknowledged),
            amount(of.replayed),
            amount(of.bad),
        );
    }
    text
}
