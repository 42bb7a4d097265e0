//! How the demo sees what arrives at a device whose session was asked for by libcoap's client: it takes the triggers
//! of one session, checks that they are its server's, and acknowledges them when told to. A whole push client is
//! `push-ctl emulate device`.

use anyhow::{Context, Result};
use push_common::tag::TagKey;
use push_common::wire::{TRIGGER_HEADER_LEN, TriggerHeader};
use std::io;
use std::net::{SocketAddr, UdpSocket};
use zerocopy::IntoBytes;

/// More than a trigger can have.
const MAX_DATAGRAM_BYTES: usize = 2048;

/// The push client of one session.
pub struct PushClient {
    socket: UdpSocket,
    key: TagKey,
}

/// A trigger that has arrived, and whose tag is right.
pub struct Trigger {
    /// What precedes the payload.
    pub header: TriggerHeader,
    /// For the app.
    pub payload: Vec<u8>,
    /// Where it came from, as the device sees it: the gateway.
    pub source: SocketAddr,
}

impl PushClient {
    /// Receives on `socket` what was signed with `key`.
    #[must_use]
    pub fn new(socket: UdpSocket, key: TagKey) -> Self {
        Self { socket, key }
    }

    /// Where it receives.
    ///
    /// # Errors
    ///
    /// When the kernel doesn't tell.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Waits for a trigger, as long as the socket's time limit is.
    ///
    /// # Errors
    ///
    /// When none comes, or something else does.
    pub fn receive(&self) -> Result<Trigger> {
        let mut datagram = [0; MAX_DATAGRAM_BYTES];
        let (length, source) = self
            .socket
            .recv_from(&mut datagram)
            .context("no trigger arrived")?;
        let (header, payload) =
            TriggerHeader::parse(&datagram[..length]).context("what arrived is no trigger")?;
        header
            .verify(self.key, payload)
            .context("what arrived is not the server's")?;
        Ok(Trigger {
            header: *header,
            payload: payload.to_vec(),
            source,
        })
    }

    /// Sends the acknowledgement of `trigger` to where it came from.
    ///
    /// # Errors
    ///
    /// When the kernel doesn't take it.
    pub fn acknowledge(&self, trigger: &Trigger) -> io::Result<()> {
        let acknowledgement = trigger.header.acknowledgement(self.key);
        self.socket
            .send_to(acknowledgement.as_bytes(), trigger.source)
            .map(drop)
    }

    /// Whether something more has arrived by now.
    ///
    /// # Errors
    ///
    /// When the kernel doesn't tell.
    pub fn has_more(&self) -> io::Result<bool> {
        self.socket.set_nonblocking(true)?;
        let peeked = self.socket.peek(&mut [0]);
        self.socket.set_nonblocking(false)?;
        match peeked {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error),
        }
    }
}

impl Trigger {
    /// Length of the datagram.
    #[must_use]
    pub fn bytes(&self) -> usize {
        TRIGGER_HEADER_LEN + self.payload.len()
    }
}
