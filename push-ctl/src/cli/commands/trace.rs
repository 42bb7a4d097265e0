//! What becomes of triggers.

use crate::admin::api::{CapturedPacket, PacketLine, Trace as Report};
use crate::cli::client::{self, Question};
use crate::cli::pcap::{Packet, Pcap};
use crate::cli::people::{Table, plural};
use crate::cli::{Failure, Output, print};
use clap::{Args, Subcommand};
use push_common::wire::SessionId;
use std::fmt::{Display, Write};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// How long packets are waited for unless told otherwise.
const DEFAULT_TIME: Duration = Duration::from_secs(60);

/// What becomes of triggers, and why
#[derive(Debug, Subcommand)]
pub(in crate::cli) enum Trace {
    /// Say what would become of a trigger for a session, step by step; with an option, also show what becomes of
    /// those that come
    Session(Session),
}

#[derive(Debug, Args)]
pub(in crate::cli) struct Session {
    /// Its identifier, 16 hexadecimal digits
    id: SessionId,
    /// Show packets that name the session, at most this many
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Show packets that name the session for this time, such as 30s or 5m (1m, if there is another option)
    #[arg(long = "for", value_name = "DURATION", value_parser = humantime::parse_duration)]
    time: Option<Duration>,
    /// Write them to this file, too: pcapng, with verdicts as comments, for tshark and Wireshark. A packet is
    /// shown as it leaves the gateway's program: rewritten if it was delivered, else as it came
    #[arg(long, value_name = "FILE")]
    pcap: Option<PathBuf>,
}

impl Trace {
    pub(in crate::cli) fn dispatch(self, socket: &Path, as_json: bool) -> Result<Output, Failure> {
        let Self::Session(session) = self;
        let id = session.id;
        let report = client::ask(socket, report(id))?;
        let Session {
            id,
            count,
            time,
            pcap,
        } = session;
        if count.is_none() && time.is_none() && pcap.is_none() {
            return Ok(report);
        }
        let watching = Watching {
            as_json,
            pcap: pcap.map(Destination::create).transpose()?,
            left: count.unwrap_or(u64::MAX),
            seen: 0,
        };
        let first = match report.json {
            Some(json) if as_json => format!("{json}\n"),
            Some(_) | None => report.people + "\n",
        };
        watching.run(socket, id, time.unwrap_or(DEFAULT_TIME), &first)
    }
}

fn report(id: SessionId) -> Question<Report> {
    Question::get(format!("/v1/sessions/{id}/trace"), |report: &Report| {
        let mut table = Table::facts();
        for step in &report.steps {
            let mark = if step.ok { "ok" } else { "NO" };
            table.row([
                mark.to_owned(),
                step.step.replace('_', " "),
                step.what.clone(),
            ]);
            if let Some(fix) = &step.fix {
                table.row([String::new(), String::new(), format!("-> {fix}")]);
            }
        }
        let mut text = table.to_string();
        for verdict in &report.verdicts {
            let _infallible = writeln!(
                text,
                "\nA valid trigger to {} now: {}. {}",
                verdict.nic, verdict.verdict, verdict.meaning
            );
        }
        if report.verdicts.is_empty() {
            text.push_str("\nA trigger would not reach the program.\n");
        }
        text
    })
}

/// Packets that are being shown.
struct Watching {
    as_json: bool,
    pcap: Option<Destination>,
    left: u64,
    seen: u64,
}

struct Destination {
    path: PathBuf,
    pcap: Pcap,
}

impl Watching {
    fn run(
        mut self,
        socket: &Path,
        id: SessionId,
        time: Duration,
        first: &str,
    ) -> Result<Output, Failure> {
        let mut missed = 0;
        let path = format!("/v1/sessions/{id}/packets");
        let query = [("for_ms", time.as_millis().to_string())];
        client::listen(
            socket,
            &path,
            &query,
            || Ok(print(first) == ExitCode::SUCCESS),
            |line| match serde_json::from_str(line) {
                Ok(PacketLine::Packet(packet)) => self.show(line, &packet),
                Ok(PacketLine::End { missed: count }) => {
                    missed = count;
                    Ok(false)
                }
                Err(error) => Err(Failure::new(format!("the daemon's answer: {error}"))),
            },
        )?;
        let mut people = String::new();
        if !self.as_json {
            people = format!("{} named the session", plural(self.seen, "packet"));
            if let Some(Destination { path, .. }) = &self.pcap {
                let _infallible = write!(people, ", written to {}", path.display());
            }
            people.push_str(".\n");
            if missed > 0 {
                let _infallible = writeln!(people, "{missed} more were too many to be shown.");
            }
        }
        Ok(Output {
            json: None,
            people,
            is_good: true,
        })
    }

    /// Whether to go on.
    fn show(&mut self, line: &str, packet: &CapturedPacket) -> Result<bool, Failure> {
        if let Some(destination) = &mut self.pcap {
            destination.add(packet)?;
        }
        let text = if self.as_json {
            format!("{line}\n")
        } else {
            for_people(packet)
        };
        self.seen += 1;
        self.left = self.left.saturating_sub(1);
        Ok(print(&text) == ExitCode::SUCCESS && self.left > 0)
    }
}

impl Destination {
    fn create(path: PathBuf) -> Result<Self, Failure> {
        let file = File::create(&path).map_err(|error| unwritable(&path, &error))?;
        match Pcap::create(file) {
            Ok(pcap) => Ok(Self { path, pcap }),
            Err(error) => Err(unwritable(&path, &error)),
        }
    }

    fn add(&mut self, packet: &CapturedPacket) -> Result<(), Failure> {
        let nonsense = |what: &str| Failure::new(format!("the daemon's answer: {what}"));
        let at: jiff::Timestamp = packet.at.parse().map_err(|_| nonsense(&packet.at))?;
        let frame = hex::decode(&packet.frame).map_err(|_| nonsense(&packet.frame))?;
        let added = self.pcap.add(&Packet {
            at: Duration::try_from(at.as_duration()).unwrap_or_default(),
            nic: &packet.nic,
            length: packet.length_bytes,
            frame: &frame,
            comment: &format!("{} ({}): {}", packet.verdict, packet.action, packet.meaning),
        });
        added.map_err(|error| unwritable(&self.path, &error))
    }
}

fn unwritable(path: &Path, error: &dyn Display) -> Failure {
    let error = format!("can't write {}: {error}", path.display());
    Failure::with_hint(error, "name another file with --pcap")
}

fn for_people(packet: &CapturedPacket) -> String {
    let CapturedPacket {
        at,
        nic,
        verdict,
        action,
        meaning,
        length_bytes,
        frame: _,
    } = packet;
    format!("{at}  {nic}  {length_bytes} bytes  {action}  {verdict}: {meaning}\n")
}
