use super::{BATCH, MAX_TRIGGER_LEN, Session};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, MultiHeaders, sendmmsg};
use push_common::wire::{SIGNED_LEN, SessionId, TRIGGER_HEADER_LEN};
use std::io::{self, IoSlice};
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Most triggers that are on their way at a time, if the generator sends them in step: two such generators don't fill
/// the queue of a veth, which is 256 long.
const MOST_UNDER_WAY: u64 = 112;

/// How long a generator waits for triggers on their way before it takes them for lost.
const LIMIT: Duration = Duration::from_secs(20);

/// What a generator sends.
#[derive(Clone, Debug)]
pub struct Load<'a> {
    /// They take turns.
    pub sessions: &'a [Session],
    /// Sequence number of the first trigger of each session; the following ones count on from it.
    pub first_sequence: u64,
    /// How many triggers, over all sessions.
    pub triggers: u64,
    /// Length of each payload.
    pub payload_bytes: usize,
    /// How many at most; as many as possible if there is none.
    pub rate_per_s: Option<u32>,
    /// What they are, in turn; the first of them isn't [`Turn::Replayed`].
    pub turns: &'a [Turn],
}

/// What a trigger of a [`Load`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// As an application's server sends it.
    Good,
    /// With a tag that is wrong, in every bit.
    Forged,
    /// Of a session that isn't there: it has the slot of one that is.
    Unknown,
    /// The one before once more.
    Replayed,
}

/// What a generator has sent.
#[derive(Clone, Copy, Debug)]
pub struct Sent {
    /// How many triggers, over all sessions.
    pub triggers: u64,
    /// How long it took.
    pub elapsed: Duration,
}

impl Load<'_> {
    /// Sends all of it by `socket`, which is connected to the gateway's trigger address; or less, if
    /// `stop` comes true. A full queue on the way out is waited for.
    ///
    /// # Errors
    ///
    /// When the socket doesn't take a datagram.
    ///
    /// # Panics
    ///
    /// If there is no session, no turn or nothing to replay, or the payload is longer than a trigger can carry.
    pub fn send(&self, socket: &UdpSocket, stop: &AtomicBool) -> io::Result<Sent> {
        self.send_in_step(socket, stop, |_| 0)
    }

    /// Sends like [`Load::send`], but a NIC's queue isn't filled, however long nobody gets a CPU to take from it: what
    /// is lost then would be no fault of the gateway's. `under_way` says of how many it isn't known yet that they have
    /// arrived, when so many of this load have been sent.
    ///
    /// # Errors
    ///
    /// When the socket doesn't take a datagram, or when triggers are on their way for 20 s.
    ///
    /// # Panics
    ///
    /// Like [`Load::send`].
    pub fn send_in_step(
        &self,
        socket: &UdpSocket,
        stop: &AtomicBool,
        under_way: impl Fn(u64) -> u64,
    ) -> io::Result<Sent> {
        let datagram_len = TRIGGER_HEADER_LEN + self.payload_bytes;
        assert!(
            datagram_len <= MAX_TRIGGER_LEN,
            "a payload of {} bytes is too long",
            self.payload_bytes
        );
        let started = Instant::now();
        let mut datagrams = vec![0; datagram_len * BATCH];
        let mut headers = MultiHeaders::preallocate(BATCH, None);
        assert_ne!(self.turns[0], Turn::Replayed, "nothing to replay");
        let mut sent = 0;
        while sent < self.triggers && !stop.load(Ordering::Relaxed) {
            let mut filled = 0;
            for (number, datagram) in
                (sent..self.triggers).zip(datagrams.chunks_exact_mut(datagram_len))
            {
                self.trigger(number, datagram);
                filled += 1;
            }
            let slices: Vec<_> = datagrams
                .chunks_exact(datagram_len)
                .take(filled)
                .map(|it| [IoSlice::new(it)])
                .collect();
            let room = || under_way(sent) + filled as u64 <= MOST_UNDER_WAY;
            if !wait_for(room, stop)? {
                break;
            }
            send_all(socket, &mut headers, &slices)?;
            sent += filled as u64;
            self.keep_pace(sent, started);
        }
        Ok(Sent {
            triggers: sent,
            elapsed: started.elapsed(),
        })
    }

    /// Writes the trigger with this number, counted over all sessions.
    fn trigger(&self, number: u64, datagram: &mut [u8]) {
        let turn_of = |number| self.turns[(number % self.turns.len() as u64) as usize];
        let is_replayed = |&number: &u64| turn_of(number) == Turn::Replayed;
        let original = number - (0..=number).rev().take_while(is_replayed).count() as u64;
        let turn = turn_of(original);
        let count = self.sessions.len() as u64;
        let mut session = self.sessions
            [usize::try_from(original % count).expect("less than the number of sessions")];
        if turn == Turn::Unknown {
            session.id = SessionId::new(session.id.slot(), session.id.generation() ^ 1);
        }
        session.trigger(self.first_sequence + original / count, datagram);
        if turn == Turn::Forged {
            for byte in &mut datagram[SIGNED_LEN..TRIGGER_HEADER_LEN] {
                *byte = !*byte;
            }
        }
    }

    fn keep_pace(&self, sent: u64, started: Instant) {
        let Some(rate) = self.rate_per_s else {
            return;
        };
        let due = Duration::from_secs_f64(sent as f64 / f64::from(rate));
        if let Some(early) = due.checked_sub(started.elapsed()) {
            thread::sleep(early);
        }
    }
}

/// Waits until there is room for triggers; whether there is, before `stop` came true.
fn wait_for(room: impl Fn() -> bool, stop: &AtomicBool) -> io::Result<bool> {
    let started = Instant::now();
    while !room() {
        if stop.load(Ordering::Relaxed) {
            return Ok(false);
        }
        if started.elapsed() > LIMIT {
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("triggers were sent, and haven't arrived within {LIMIT:?}"),
            ));
        }
        thread::sleep(Duration::from_micros(100));
    }
    Ok(true)
}

/// Sends each of `datagrams`, in as many calls as it takes.
fn send_all(
    socket: &UdpSocket,
    headers: &mut MultiHeaders<()>,
    datagrams: &[[IoSlice<'_>; 1]],
) -> io::Result<()> {
    let mut rest = datagrams;
    while !rest.is_empty() {
        match sendmmsg(
            socket.as_raw_fd(),
            headers,
            rest,
            [None; BATCH],
            [],
            MsgFlags::empty(),
        ) {
            Ok(results) => rest = &rest[results.count()..],
            // A full queue, or an ICMP error that an earlier datagram earned.
            Err(Errno::EINTR | Errno::ENOBUFS | Errno::EAGAIN | Errno::ECONNREFUSED) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
