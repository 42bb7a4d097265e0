//! What an application's server does: signs triggers, sends them, and waits for acknowledgements.

use super::people::{milliseconds, plural};
use super::{Failure, Output};
use crate::admin::api::TriggerSent;
use push_common::tag::TagKey;
use push_common::token::Token;
use push_common::wire::{Flags, SessionId, TRIGGER_HEADER_LEN, TriggerHeader};
use std::fs::File;
use std::io::{self, Read};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};
use zerocopy::IntoBytes;

/// A sequence number counts these since 1970, unless it is given.
const SEQUENCE_STEP: Duration = Duration::from_millis(10);

/// More than this is no secret.
const MAX_SECRET_FILE_BYTES: u64 = 1024;

/// Sign a trigger and send it
#[derive(Debug, clap::Args)]
pub(super) struct Send {
    /// Trigger address and port of the gateway
    #[arg(long, value_name = "ADDR:PORT")]
    to: SocketAddr,
    /// The session, 16 hexadecimal digits
    #[arg(long, value_name = "ID")]
    session: SessionId,
    /// File with the token; `-` is stdin
    #[arg(long, value_name = "FILE")]
    token_file: PathBuf,
    /// Generation of the token
    #[arg(long, value_name = "N", default_value_t = 0)]
    generation: u8,
    /// Text to deliver
    #[arg(
        long,
        value_name = "TEXT",
        conflicts_with = "payload_file",
        default_value = "",
        hide_default_value = true
    )]
    payload: String,
    /// File with bytes to deliver
    #[arg(long, value_name = "FILE")]
    payload_file: Option<PathBuf>,
    /// Sequence number, higher than all before; the time in steps of 10 ms unless given
    #[arg(long, value_name = "N")]
    sequence: Option<u64>,
    /// Address and port to send from
    #[arg(long, value_name = "ADDR:PORT")]
    source: Option<SocketAddr>,
    /// Ask the device to acknowledge the trigger
    #[arg(long)]
    ack: bool,
    /// Ask for it, and fail if no acknowledgement comes within this time; the application needs --return-acks
    #[arg(long, value_name = "DURATION")]
    wait_ack: Option<humantime::Duration>,
    /// Within the application's coalescing window, one trigger of each key is enough
    #[arg(long, value_name = "1..15", value_parser = clap::value_parser!(u8).range(1..=i64::from(Flags::MAX_COLLAPSE_KEY)))]
    collapse_key: Option<u8>,
}

pub(super) fn send(send: &Send) -> Result<Output, Failure> {
    let token = read_token(&send.token_file)?;
    let payload = match &send.payload_file {
        Some(path) => std::fs::read(path).map_err(|error| cannot_read(path, &error))?,
        None => send.payload.clone().into_bytes(),
    };
    let sequence = send.sequence.unwrap_or_else(next_sequence);
    let header = TriggerHeader::sign(
        token.key(),
        send.flags(),
        send.generation,
        send.session,
        sequence,
        &payload,
    )
    .map_err(|error| Failure::new(error.to_string()))?;
    let datagram = [header.as_bytes(), &payload].concat();
    let began = Instant::now();
    let socket = transmit(&datagram, send.to, send.source)?;
    let mut sent = TriggerSent {
        session_id: send.session,
        sequence,
        bytes: datagram.len(),
        to: send.to,
        round_trip_ms: None,
    };
    let mut people = format!(
        "Sent {} to {} with sequence number {sequence}.\n",
        plural(datagram.len(), "byte"),
        send.to
    );
    if let Some(limit) = send.wait_ack {
        let came = await_ack(&socket, &header, token.key(), began, *limit)?;
        let round_trip_ms = came.as_secs_f64() * 1e3;
        sent.round_trip_ms = Some(round_trip_ms);
        people += &format!("Acknowledged after {}.\n", milliseconds(round_trip_ms));
    }
    Output::new(&sent, people)
}

impl Send {
    fn flags(&self) -> Flags {
        let flags = if self.ack || self.wait_ack.is_some() {
            Flags::ACK_REQUESTED
        } else {
            Flags::NONE
        };
        flags.with_collapse_key(self.collapse_key.unwrap_or(0))
    }
}

fn read_token(path: &Path) -> Result<Token, Failure> {
    read_secret(path, |text| {
        text.parse::<Token>().map_err(|error| error.to_string())
    })
}

/// A secret from a file, or from stdin if that is `-`; it is left nowhere else.
pub(super) fn read_secret<T>(
    path: &Path,
    parse: impl FnOnce(&str) -> Result<T, String>,
) -> Result<T, Failure> {
    let mut text = String::new();
    let read = if path == Path::new("-") {
        io::stdin()
            .take(MAX_SECRET_FILE_BYTES)
            .read_to_string(&mut text)
    } else {
        File::open(path).and_then(|file| file.take(MAX_SECRET_FILE_BYTES).read_to_string(&mut text))
    };
    read.map_err(|error| cannot_read(path, &error))?;
    let secret =
        parse(text.trim()).map_err(|error| Failure::new(format!("{}: {error}", named(path))));
    zeroize::Zeroize::zeroize(&mut text);
    secret
}

fn cannot_read(path: &Path, error: &io::Error) -> Failure {
    Failure::new(format!("can't read {}: {error}", named(path)))
}

fn named(path: &Path) -> String {
    if path == Path::new("-") {
        "stdin".to_owned()
    } else {
        path.display().to_string()
    }
}

/// The time as a sequence number. Waits for it to begin, so that whoever sends two triggers one after the
/// other sends the second one with another number.
fn next_sequence() -> u64 {
    let next = sequence_now() + 1;
    while sequence_now() < next {
        std::thread::sleep(Duration::from_millis(1));
    }
    next
}

fn sequence_now() -> u64 {
    let since_epoch = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since_epoch.as_millis() / SEQUENCE_STEP.as_millis()).unwrap_or(u64::MAX)
}

/// Returns the socket, to which an acknowledgement will come.
fn transmit(
    datagram: &[u8],
    to: SocketAddr,
    source: Option<SocketAddr>,
) -> Result<UdpSocket, Failure> {
    let any = match to {
        SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
    };
    let source = source.unwrap_or(any);
    let socket = UdpSocket::bind(source).map_err(|error| {
        Failure::with_hint(
            format!("can't send from {source}: {error}"),
            "choose another --source",
        )
    })?;
    socket
        .send_to(datagram, to)
        .map_err(|error| Failure::new(format!("can't send to {to}: {error}")))?;
    Ok(socket)
}

/// How long after `began` the acknowledgement of `trigger` came, signed with `key`. All else that
/// comes is ignored.
fn await_ack(
    socket: &UdpSocket,
    trigger: &TriggerHeader,
    key: TagKey,
    began: Instant,
    limit: Duration,
) -> Result<Duration, Failure> {
    let expected = trigger.acknowledgement(key);
    let failed =
        |error: io::Error| Failure::new(format!("can't wait for an acknowledgement: {error}"));
    // One byte more than it has, so that a longer datagram isn't taken for it.
    let mut datagram = [0; TRIGGER_HEADER_LEN + 1];
    loop {
        let left = limit.saturating_sub(began.elapsed());
        if left.is_zero() {
            let limit = humantime::format_duration(limit);
            return Err(Failure::with_hint(
                format!("no acknowledgement came within {limit}"),
                "its application needs `push-ctl app set NAME --return-acks`, and a push client on the device that acknowledges; `push-ctl stats` shows what became of the trigger",
            ));
        }
        socket.set_read_timeout(Some(left)).map_err(failed)?;
        match socket.recv(&mut datagram) {
            Ok(length) if datagram[..length] == *expected.as_bytes() => {
                return Ok(began.elapsed());
            }
            Ok(_) => {}
            Err(error) if is_no_news(error.kind()) => {}
            Err(error) => return Err(failed(error)),
        }
    }
}

fn is_no_news(error: io::ErrorKind) -> bool {
    matches!(
        error,
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use std::io::Write;
    use std::thread;

    const TOKEN: &str = "ptk_00112233445566778899aabbccddeeff";

    #[derive(Debug, clap::Parser)]
    struct Command {
        #[command(flatten)]
        send: Send,
    }

    fn parse(arguments: &[&str]) -> Result<Send, clap::Error> {
        let needed = [
            "send",
            "--to",
            "127.0.0.1:9",
            "--session",
            "deadbeef00000001",
            "--token-file",
            "-",
        ];
        Command::try_parse_from(needed.iter().chain(arguments)).map(|command| command.send)
    }

    #[test]
    fn options_are_flags_of_the_trigger() {
        let cases: [(&[&str], u8); 5] = [
            (&[], 0),
            (&["--ack"], 0x01),
            (&["--wait-ack", "2s"], 0x01),
            (&["--collapse-key", "15"], 0xF0),
            (&["--ack", "--collapse-key", "1"], 0x11),
        ];
        for (arguments, bits) in cases {
            assert_eq!(
                parse(arguments).unwrap().flags().bits(),
                bits,
                "{arguments:?}"
            );
        }
        for key in ["0", "16"] {
            let error = parse(&["--collapse-key", key]).unwrap_err().to_string();
            assert!(error.contains("is not in 1..=15"), "{error}");
        }
    }

    /// A gateway answers with these; what comes of it.
    fn sent_with_answers(
        answers: impl FnOnce(&TriggerHeader, TagKey) -> Vec<Vec<u8>> + std::marker::Send + 'static,
        limit: &str,
    ) -> Result<Output, Failure> {
        let gateway = UdpSocket::bind("127.0.0.1:0").unwrap();
        let to = gateway.local_addr().unwrap();
        let answering = thread::spawn(move || {
            let mut datagram = [0; 100];
            let (length, server) = gateway.recv_from(&mut datagram).unwrap();
            let (trigger, _) = TriggerHeader::parse(&datagram[..length]).unwrap();
            assert!(trigger.flags.asks_for_acknowledgement());
            for answer in answers(trigger, TOKEN.parse::<Token>().unwrap().key()) {
                gateway.send_to(&answer, server).unwrap();
            }
        });
        let mut token_file = tempfile::NamedTempFile::new().unwrap();
        token_file.write_all(TOKEN.as_bytes()).unwrap();
        let mut asked = parse(&["--wait-ack", limit]).unwrap();
        asked.to = to;
        asked.token_file = token_file.path().to_owned();
        let outcome = send(&asked);
        answering.join().unwrap();
        outcome
    }

    #[test]
    fn an_acknowledgement_is_taken_for_one_only_if_it_is_signed() {
        let forged = |trigger: &TriggerHeader, _| {
            let forged = trigger.acknowledgement(TagKey::from_bytes([9; 16]));
            vec![
                forged.as_bytes().to_vec(),
                trigger.as_bytes().to_vec(),
                Vec::new(),
                vec![0; 100],
            ]
        };
        let failure = sent_with_answers(forged, "50ms")
            .err()
            .expect("no acknowledgement");
        assert_eq!(failure.error, "no acknowledgement came within 50ms");
        assert!(
            failure
                .hint
                .is_some_and(|hint| hint.contains("--return-acks"))
        );

        let right = move |trigger: &TriggerHeader, key| {
            let mut all = forged(trigger, key);
            all.push(trigger.acknowledgement(key).as_bytes().to_vec());
            all
        };
        let output =
            sent_with_answers(right, "20s").unwrap_or_else(|failure| panic!("{}", failure.error));
        assert!(
            output.people.contains("Acknowledged after"),
            "{}",
            output.people
        );
        assert!(
            output
                .json
                .is_some_and(|json| json.contains("round_trip_ms"))
        );
    }
}
