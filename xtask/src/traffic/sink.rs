use super::{BATCH, MAX_TRIGGER_LEN, Session};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, MultiHeaders, recvmmsg, setsockopt, sockopt};
use push_common::wire::{SessionId, TriggerHeader};
use std::collections::HashMap;
use std::io::{self, IoSliceMut};
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// What the kernel keeps for a sink that gets no CPU time for a while.
const RECEIVE_BUFFER_BYTES: usize = 512 << 20;

/// Room for one datagram; more than a trigger can have, so that a longer one is seen to be longer.
const SLOT_BYTES: usize = 2048;
const _: () = assert!(SLOT_BYTES > MAX_TRIGGER_LEN);

/// How often a sink without traffic looks whether it is still wanted.
const IDLE: Duration = Duration::from_millis(20);

/// What has arrived at a sink.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Received {
    /// Triggers that are byte for byte what the generator makes of their session and sequence
    /// number, each counted once.
    pub delivered: u64,
    /// Such triggers once more.
    pub duplicates: u64,
    /// Triggers of a known session that are not as the generator makes them.
    pub corrupt: u64,
    /// Anything else.
    pub foreign: u64,
}

impl Received {
    /// So many triggers, each delivered once, and nothing else.
    #[must_use]
    pub fn just(delivered: u64) -> Self {
        Self {
            delivered,
            ..Self::default()
        }
    }
}

/// A thread that receives triggers on a device's socket, and judges each.
#[derive(Debug)]
pub struct Sink {
    stop: Arc<AtomicBool>,
    judge: Arc<Mutex<Judge>>,
    thread: JoinHandle<io::Result<()>>,
}

impl Sink {
    /// Receives on `socket` what is for `sessions`.
    ///
    /// # Errors
    ///
    /// When the socket can't be set up: the large receive buffer needs `CAP_NET_ADMIN`.
    pub fn start(socket: UdpSocket, sessions: &[Session]) -> io::Result<Self> {
        setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER_BYTES)?;
        socket.set_read_timeout(Some(IDLE))?;
        let stop = Arc::new(AtomicBool::new(false));
        let judge = Arc::new(Mutex::new(Judge::of(sessions)));
        let thread = thread::spawn({
            let (stop, judge) = (Arc::clone(&stop), Arc::clone(&judge));
            move || receive(&socket, &judge, &stop)
        });
        Ok(Self {
            stop,
            judge,
            thread,
        })
    }

    /// From now on, takes what is for this session, too; or for one that it takes already, by another token.
    ///
    /// # Panics
    ///
    /// If the thread did.
    pub fn expect(&self, session: Session) {
        self.judge().expect(session);
    }

    /// What has arrived until now.
    ///
    /// # Panics
    ///
    /// If the thread did.
    #[must_use]
    pub fn received(&self) -> Received {
        self.judge().received
    }

    /// How many of a [`Load`](super::Load) are on their way, for [`Load::send_in_step`](super::Load::send_in_step), if
    /// it has not begun, and all triggers for this sink are its own from now on.
    ///
    /// # Panics
    ///
    /// If the thread did.
    pub fn under_way(&self) -> impl Fn(u64) -> u64 + '_ {
        let before = self.received().delivered;
        move |sent| before + sent - self.received().delivered
    }

    /// Waits until `triggers` different ones have been delivered; whether they were within `limit`.
    ///
    /// # Panics
    ///
    /// If the thread did.
    #[must_use]
    pub fn wait_for(&self, triggers: u64, limit: Duration) -> bool {
        let started = Instant::now();
        while self.received().delivered < triggers {
            if started.elapsed() > limit {
                return false;
            }
            thread::sleep(Duration::from_millis(1));
        }
        true
    }

    /// Takes what is still in the socket, and gives the count.
    ///
    /// # Errors
    ///
    /// When receiving failed.
    ///
    /// # Panics
    ///
    /// If the thread did.
    pub fn finish(self) -> io::Result<Received> {
        self.stop.store(true, Ordering::Relaxed);
        let judge = Arc::clone(&self.judge);
        self.thread.join().expect("the sink doesn't panic")?;
        Ok(locked(&judge).received)
    }

    fn judge(&self) -> MutexGuard<'_, Judge> {
        locked(&self.judge)
    }
}

fn locked(judge: &Mutex<Judge>) -> MutexGuard<'_, Judge> {
    judge.lock().expect("the sink doesn't panic")
}

fn receive(socket: &UdpSocket, judge: &Mutex<Judge>, stop: &AtomicBool) -> io::Result<()> {
    let mut buffer = vec![0; SLOT_BYTES * BATCH];
    let mut headers = MultiHeaders::<()>::preallocate(BATCH, None);
    let mut lengths = Vec::with_capacity(BATCH);
    loop {
        // Read before the socket is, so that what was sent before the stop is taken after it.
        let last_round = stop.load(Ordering::Relaxed);
        let mut slices: Vec<_> = buffer
            .chunks_exact_mut(SLOT_BYTES)
            .map(|slot| [IoSliceMut::new(slot)])
            .collect();
        lengths.clear();
        match recvmmsg(
            socket.as_raw_fd(),
            &mut headers,
            &mut slices,
            MsgFlags::MSG_WAITFORONE,
            None,
        ) {
            Ok(results) => lengths.extend(results.map(|message| message.bytes)),
            Err(Errno::EAGAIN) if last_round => return Ok(()),
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let mut judge = locked(judge);
        for (slot, &length) in buffer.chunks_exact(SLOT_BYTES).zip(&lengths) {
            judge.take(&slot[..length]);
        }
    }
}

#[derive(Debug, Default)]
struct Judge {
    sessions: HashMap<SessionId, Known>,
    received: Received,
}

/// What is known of a session.
#[derive(Debug, Default)]
struct Known {
    /// As its server knows it, by generation of its tokens.
    by_token: HashMap<u8, Session>,
    seen: Seen,
}

impl Judge {
    fn of(sessions: &[Session]) -> Self {
        let mut judge = Self::default();
        for &session in sessions {
            judge.expect(session);
        }
        judge
    }

    fn expect(&mut self, session: Session) {
        let known = self.sessions.entry(session.id).or_default();
        known.by_token.insert(session.token_generation, session);
    }

    fn take(&mut self, datagram: &[u8]) {
        let known = TriggerHeader::parse(datagram).ok().and_then(|(header, _)| {
            let known = self
                .sessions
                .get_mut(&SessionId::from_u64(header.session_id.get()))?;
            let session = known.by_token.get(&header.token_generation)?;
            Some((header.sequence.get(), session, &mut known.seen))
        });
        let Some((sequence, session, seen)) = known else {
            self.received.foreign += 1;
            return;
        };
        let mut expected = [0; MAX_TRIGGER_LEN];
        let expected = &mut expected[..datagram.len()];
        session.trigger(sequence, expected);
        if datagram != expected {
            self.received.corrupt += 1;
        } else if seen.insert(sequence) {
            self.received.delivered += 1;
        } else {
            self.received.duplicates += 1;
        }
    }
}

/// The sequence numbers that were there: ranges of 64, as bitmaps.
#[derive(Debug, Default)]
struct Seen(HashMap<u64, u64>);

impl Seen {
    /// Whether `sequence` is new.
    fn insert(&mut self, sequence: u64) -> bool {
        let word = self.0.entry(sequence / 64).or_default();
        let bit = 1 << (sequence % 64);
        let new = *word & bit == 0;
        *word |= bit;
        new
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Load, Turn};
    use super::*;
    use push_common::tag::TagKey;

    const LIMIT: Duration = Duration::from_secs(10);

    fn session(slot: u32) -> Session {
        Session {
            id: SessionId::new(slot, 7),
            key: TagKey::from_bytes([slot as u8; 16]),
            token_generation: 1,
        }
    }

    fn pair() -> (UdpSocket, UdpSocket) {
        let device = UdpSocket::bind("127.0.0.1:0").unwrap();
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        server.connect(device.local_addr().unwrap()).unwrap();
        (server, device)
    }

    fn judge(datagrams: &[&[u8]]) -> Received {
        let mut judge = Judge::of(&[session(1)]);
        datagrams.iter().for_each(|datagram| judge.take(datagram));
        judge.received
    }

    #[test]
    fn what_is_sent_is_delivered_once() {
        let (server, device) = pair();
        let sessions = [session(1), session(2), session(3)];
        let sink = Sink::start(device, &sessions).unwrap();
        let load = Load {
            sessions: &sessions,
            first_sequence: 5,
            triggers: 1000,
            payload_bytes: 13,
            rate_per_s: None,
            turns: &[Turn::Good],
        };
        let sent = load.send_in_step(&server, &AtomicBool::new(false), sink.under_way());
        assert_eq!(sent.unwrap().triggers, 1000);
        assert!(sink.wait_for(1000, LIMIT));
        assert_eq!(sink.finish().unwrap(), Received::just(1000));
    }

    #[test]
    fn forged_triggers_are_not_taken_for_good_ones() {
        let (server, device) = pair();
        let sessions = [session(1)];
        let load = Load {
            sessions: &sessions,
            first_sequence: 0,
            triggers: 100,
            payload_bytes: 0,
            rate_per_s: None,
            turns: &[Turn::Forged],
        };
        load.send(&server, &AtomicBool::new(false)).unwrap();
        let sink = Sink::start(device, &sessions).unwrap();
        assert_eq!(
            sink.finish().unwrap(),
            Received {
                corrupt: 100,
                ..Received::default()
            }
        );
    }

    #[test]
    fn what_comes_in_between_leaves_good_triggers_as_they_are() {
        let (server, device) = pair();
        let sessions = [session(1), session(2)];
        let load = Load {
            sessions: &sessions,
            first_sequence: 5,
            triggers: 1000,
            payload_bytes: 13,
            rate_per_s: None,
            turns: &[
                Turn::Good,
                Turn::Replayed,
                Turn::Replayed,
                Turn::Forged,
                Turn::Unknown,
            ],
        };
        let sink = Sink::start(device, &sessions).unwrap();
        load.send(&server, &AtomicBool::new(false)).unwrap();
        assert!(sink.wait_for(200, LIMIT));
        let expected = Received {
            delivered: 200,
            duplicates: 400,
            corrupt: 200,
            foreign: 200,
        };
        assert_eq!(sink.finish().unwrap(), expected);
    }

    #[test]
    fn each_kind_of_arrival_is_told_apart() {
        let mut good = [0; 60];
        session(1).trigger(9, &mut good);
        let mut damaged = good;
        damaged[59] ^= 1;
        let mut unknown = [0; 60];
        session(2).trigger(9, &mut unknown);
        let received = judge(&[&good, &damaged, &good, &unknown, b"hello"]);
        assert_eq!(
            received,
            Received {
                delivered: 1,
                duplicates: 1,
                corrupt: 1,
                foreign: 2
            }
        );
    }

    #[test]
    fn a_sequence_number_is_one_of_a_session_whichever_of_its_tokens_signs_it() {
        let next = Session {
            key: TagKey::from_bytes([9; 16]),
            token_generation: 2,
            ..session(1)
        };
        let [mut first, mut again, mut later] = [[0; 60]; 3];
        session(1).trigger(9, &mut first);
        next.trigger(9, &mut again);
        next.trigger(10, &mut later);
        let mut judge = Judge::of(&[session(1)]);
        judge.take(&again);
        judge.expect(next);
        for datagram in [&first, &again, &later] {
            judge.take(datagram);
        }
        let expected = Received {
            delivered: 2,
            duplicates: 1,
            corrupt: 0,
            foreign: 1,
        };
        assert_eq!(judge.received, expected);
    }

    #[test]
    fn a_rate_is_kept() {
        let (server, _device) = pair();
        let sessions = [session(1)];
        let load = Load {
            sessions: &sessions,
            first_sequence: 0,
            triggers: 640,
            payload_bytes: 0,
            rate_per_s: Some(6400),
            turns: &[Turn::Good],
        };
        let sent = load.send(&server, &AtomicBool::new(false)).unwrap();
        assert!(
            sent.elapsed >= Duration::from_millis(100),
            "{:?}",
            sent.elapsed
        );
    }
}
