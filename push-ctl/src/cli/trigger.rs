//! What an application's server does: signs triggers and sends them.

use super::people::plural;
use super::{Failure, Output};
use crate::admin::api::TriggerSent;
use push_common::token::Token;
use push_common::wire::{SessionId, TriggerHeader};
use std::fs::File;
use std::io::{self, Read};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// A sequence number counts these since 1970, unless it is given.
const SEQUENCE_STEP: Duration = Duration::from_millis(10);

/// More than this is no token.
const MAX_TOKEN_FILE_BYTES: u64 = 1024;

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
}

pub(super) fn send(send: &Send) -> Result<Output, Failure> {
    let token = read_token(&send.token_file)?;
    let payload = match &send.payload_file {
        Some(path) => std::fs::read(path).map_err(|error| cannot_read(path, &error))?,
        None => send.payload.clone().into_bytes(),
    };
    let sequence = send.sequence.unwrap_or_else(sequence_now);
    let header = TriggerHeader::sign(
        token.key(),
        send.generation,
        send.session,
        sequence,
        &payload,
    )
    .map_err(|error| Failure::new(error.to_string()))?;
    let datagram = [zerocopy::IntoBytes::as_bytes(&header), &payload].concat();
    transmit(&datagram, send.to, send.source)?;
    let sent = TriggerSent {
        session_id: send.session,
        sequence,
        bytes: datagram.len(),
        to: send.to,
    };
    let people = format!(
        "Sent {} to {} with sequence number {sequence}.\n",
        plural(datagram.len(), "byte"),
        send.to
    );
    Output::new(&sent, people)
}

fn read_token(path: &Path) -> Result<Token, Failure> {
    let mut text = String::new();
    let read = if path == Path::new("-") {
        io::stdin()
            .take(MAX_TOKEN_FILE_BYTES)
            .read_to_string(&mut text)
    } else {
        File::open(path).and_then(|file| file.take(MAX_TOKEN_FILE_BYTES).read_to_string(&mut text))
    };
    read.map_err(|error| cannot_read(path, &error))?;
    let token = text
        .trim()
        .parse()
        .map_err(|error| Failure::new(format!("{}: {error}", path.display())));
    zeroize::Zeroize::zeroize(&mut text);
    token
}

fn cannot_read(path: &Path, error: &io::Error) -> Failure {
    Failure::new(format!("can't read {}: {error}", path.display()))
}

fn sequence_now() -> u64 {
    let since_epoch = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since_epoch.as_millis() / SEQUENCE_STEP.as_millis()).unwrap_or(u64::MAX)
}

fn transmit(datagram: &[u8], to: SocketAddr, source: Option<SocketAddr>) -> Result<(), Failure> {
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
    Ok(())
}
