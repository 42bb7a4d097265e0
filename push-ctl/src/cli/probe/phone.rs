//! The device of a probe: a thread that plays it.

use crate::emulate::device::{Device, Outcome, Wishes};
use crate::emulate::news::News;
use crate::emulate::radio;
use crate::random;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How often the thread looks whether it is to end.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Longer than any trigger or message.
const MAX_DATAGRAM_BYTES: usize = 2048;

/// The device.
pub(super) struct Phone {
    news: Receiver<(Instant, News)>,
    leaving: Arc<AtomicBool>,
    thread: JoinHandle<io::Result<()>>,
}

/// Why something didn't happen.
pub(super) enum Missing {
    /// The gateway has refused it; code and text.
    Refused(String),
    /// It just didn't, up to now; what happened instead, if anything.
    InTime(Option<String>),
    /// The device can't send or receive.
    Broken(io::Error),
}

impl Phone {
    /// Begins to register at `gateway`.
    pub(super) fn begin(
        socket: UdpSocket,
        gateway: SocketAddr,
        endpoint: String,
        wishes: Wishes,
    ) -> Self {
        let (sender, news) = mpsc::channel();
        let leaving = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&leaving);
        let device = Device::new(endpoint, Arc::new(wishes), random::bytes());
        let thread = thread::spawn(move || live(&socket, gateway, device, &told, &sender));
        Self {
            news,
            leaving,
            thread,
        }
    }

    /// Waits for something to happen that `pick` picks; gives when it did.
    pub(super) fn wait_for<T>(
        &self,
        limit: Duration,
        mut pick: impl FnMut(&News) -> Option<T>,
    ) -> Result<(Instant, T), Missing> {
        let until = Instant::now() + limit;
        let mut instead = None;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let (at, news) = match self.news.recv_timeout(left) {
                Ok(told) => told,
                Err(RecvTimeoutError::Timeout) => return Err(Missing::InTime(instead)),
                Err(RecvTimeoutError::Disconnected) => {
                    let error = io::Error::other("its socket can't be used any more");
                    return Err(Missing::Broken(error));
                }
            };
            if let Some(picked) = pick(&news) {
                return Ok((at, picked));
            }
            if let News::Refused { code, text, .. } = &news {
                return Err(Missing::Refused(format!("{code} {text}")));
            } else if let News::TornDown { cause, .. } = &news {
                instead = Some(format!("the gateway has ended the session: {cause}"));
            } else if let News::BadTrigger(fault) = &news {
                instead = Some(format!("something else was received: {fault}"));
            }
        }
    }

    /// Deregisters; whether that was confirmed, and how long it took.
    pub(super) fn leave(self, limit: Duration) -> Result<Duration, Missing> {
        let began = Instant::now();
        self.leaving.store(true, Ordering::Relaxed);
        let left = self.wait_for(limit, |news| {
            matches!(news, News::Deregistered).then_some(())
        });
        drop(self.news);
        match self.thread.join() {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(Missing::Broken(error)),
            Err(_) => return Err(Missing::Broken(io::Error::other("it has failed"))),
        }
        left.map(|(at, ())| at.saturating_duration_since(began))
    }
}

/// The life of the device: until it has left, or nobody listens any more.
fn live(
    socket: &UdpSocket,
    gateway: SocketAddr,
    mut device: Device,
    leaving: &AtomicBool,
    news: &Sender<(Instant, News)>,
) -> io::Result<()> {
    let mut outcome = Outcome::default();
    let mut datagram = [0; MAX_DATAGRAM_BYTES];
    let mut left = false;
    device.start(Instant::now(), &mut outcome);
    loop {
        for datagram in outcome.datagrams.drain(..) {
            socket.send_to(&datagram, gateway)?;
        }
        let now = Instant::now();
        for news_item in outcome.news.drain(..) {
            if news.send((now, news_item)).is_err() {
                return Ok(());
            }
        }
        if left && device.is_settled() {
            return Ok(());
        }
        if !left && leaving.load(Ordering::Relaxed) {
            left = true;
            device.leave(now, &mut outcome);
            continue;
        }
        let wait = device.deadline().map_or(LOOK_EVERY, |at| {
            at.saturating_duration_since(now)
                .clamp(Duration::from_millis(1), LOOK_EVERY)
        });
        socket.set_read_timeout(Some(wait))?;
        match socket.recv_from(&mut datagram) {
            Ok((length, from)) => {
                let from_gateway = radio::is_same(from, gateway);
                let datagram = &datagram[..length];
                device.receive(Instant::now(), datagram, from_gateway, &mut outcome);
            }
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock
                        | io::ErrorKind::TimedOut
                        | io::ErrorKind::Interrupted
                ) =>
            {
                device.tick(Instant::now(), &mut outcome);
            }
            Err(error) => return Err(error),
        }
    }
}
