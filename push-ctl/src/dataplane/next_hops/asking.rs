//! Makes the kernel ask neighbours for their MAC addresses, by ARP and ND.
//!
//! The kernel asks when it has something to send; but to whom the program sends, it doesn't. So it is
//! told to ask (`ip neigh … use`): at once and then ever more rarely while an address isn't known, and now
//! and then when it hasn't been confirmed for long, so that a neighbour that has moved is noticed.

use super::mirror::Neighbour;
use anyhow::{Context, Result};
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourHeader, NeighbourMessage,
};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::sys::protocols::NETLINK_ROUTE;
use rtnetlink::sys::{Socket, SocketAddr};
use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};
use tracing::debug;

/// After the first time that nobody answered; each time it takes twice as long, up to the last.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(64);
/// Until a confirmation is asked for again.
const NEXT_REFRESH: Duration = Duration::from_secs(30);
/// Questions that may wait for the kernel.
const QUEUE: usize = 4096;

/// What is needed of a neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Need {
    /// Its address.
    Address,
    /// A confirmation that its address is still the same.
    Refresh,
    Nothing,
}

/// Whom to ask, and when.
#[derive(Debug)]
pub(super) struct Asking {
    wanted: HashMap<Neighbour, Question>,
    queue: BTreeSet<(Instant, Neighbour)>,
    addresses: Pace,
    refreshes: Pace,
}

#[derive(Clone, Copy, Debug)]
struct Question {
    due: Instant,
    need: Need,
    retry: Duration,
}

/// Keeps events apart, but for a burst.
#[derive(Debug)]
struct Pace {
    spacing: Duration,
    burst: Duration,
    next: Option<Instant>,
}

impl Asking {
    pub(super) fn new() -> Self {
        let pace = |milliseconds, burst| Pace {
            spacing: Duration::from_millis(milliseconds),
            burst: Duration::from_millis(milliseconds * burst),
            next: None,
        };
        Self {
            wanted: HashMap::new(),
            queue: BTreeSet::new(),
            addresses: pace(1, 256),
            refreshes: pace(10, 10),
        }
    }

    /// From `now` on, `need` is what is needed of `neighbour`.
    pub(super) fn set(&mut self, neighbour: Neighbour, need: Need, now: Instant) {
        match self.wanted.get(&neighbour) {
            Some(question) if question.need == need => return,
            None if need == Need::Nothing => return,
            Some(question) => {
                self.queue.remove(&(question.due, neighbour));
                self.wanted.remove(&neighbour);
            }
            None => {}
        }
        let due = match need {
            Need::Address => self.addresses.next(now),
            Need::Refresh => self.refreshes.next(now),
            Need::Nothing => return,
        };
        self.queue.insert((due, neighbour));
        let question = Question {
            due,
            need,
            retry: FIRST_RETRY,
        };
        self.wanted.insert(neighbour, question);
    }

    /// When the next question is due.
    pub(super) fn due(&self) -> Option<Instant> {
        self.queue.first().map(|&(due, _)| due)
    }

    /// The next one to be asked, if that is due.
    pub(super) fn take_due(&mut self, now: Instant) -> Option<Neighbour> {
        let &(due, neighbour) = self.queue.first().filter(|&&(due, _)| due <= now)?;
        self.queue.remove(&(due, neighbour));
        let question = self.wanted.get_mut(&neighbour)?;
        let retry = match question.need {
            Need::Address => question.retry,
            Need::Refresh | Need::Nothing => NEXT_REFRESH,
        };
        question.retry = (question.retry * 2).min(LAST_RETRY);
        question.due = now + retry;
        self.queue.insert((question.due, neighbour));
        Some(neighbour)
    }
}

impl Pace {
    fn next(&mut self, now: Instant) -> Instant {
        let earliest = now.checked_sub(self.burst).unwrap_or(now);
        let slot = self.next.map_or(earliest, |next| next.max(earliest));
        self.next = Some(slot + self.spacing);
        slot.max(now)
    }
}

/// Hands questions to the kernel, on a thread of its own: the kernel may take its time, as it does while a
/// NIC is being set up.
pub(in super::super) struct Asker {
    questions: SyncSender<Neighbour>,
}

impl Asker {
    /// In the network namespace of the calling thread.
    pub(in super::super) fn start() -> Result<Self> {
        let open = || -> std::io::Result<Socket> {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            socket.set_non_blocking(true)?;
            Ok(socket)
        };
        let socket = open().context("cannot open a netlink socket")?;
        let (questions, receiver) = sync_channel(QUEUE);
        std::thread::Builder::new()
            .name("push-neighbours".into())
            .spawn(move || ask_all(&socket, &receiver))
            .context("cannot start the thread that asks for neighbours")?;
        Ok(Self { questions })
    }

    /// Has the kernel ask, unless it is busy; then the next question for the same neighbour will do.
    pub(in super::super) fn ask(&self, neighbour: Neighbour) {
        if self.questions.try_send(neighbour).is_err() {
            debug!(address = %neighbour.address, "too many neighbours to ask for");
        }
    }
}

/// Until there is no one left to send questions.
fn ask_all(socket: &Socket, questions: &Receiver<Neighbour>) {
    let mut answers = Vec::with_capacity(4096);
    while let Ok(neighbour) = questions.recv() {
        if let Err(error) = socket.send(&message(neighbour), 0) {
            debug!(address = %neighbour.address, %error, "cannot have the kernel ask for a neighbour");
            continue;
        }
        // There are answers only to what went wrong, and the kernel has given them by now.
        loop {
            answers.clear();
            if socket.recv(&mut answers, 0).is_err() {
                break;
            }
            let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&answers);
            if let Ok(NetlinkPayload::Error(error)) = answer.map(|answer| answer.payload) {
                debug!(address = %neighbour.address, %error, "the kernel doesn't ask for a neighbour");
            }
        }
    }
}

fn message(neighbour: Neighbour) -> Vec<u8> {
    let (family, address) = match neighbour.address {
        IpAddr::V4(address) => (AddressFamily::Inet, NeighbourAddress::Inet(address)),
        IpAddr::V6(address) => (AddressFamily::Inet6, NeighbourAddress::Inet6(address)),
    };
    let mut body = NeighbourMessage::default();
    body.header = NeighbourHeader {
        family,
        ifindex: neighbour.link,
        flags: NeighbourFlags::Use,
        ..NeighbourHeader::default()
    };
    body.attributes = vec![NeighbourAttribute::Destination(address)];
    let mut message = NetlinkMessage::from(RouteNetlinkMessage::NewNeighbour(body));
    message.header.flags = NLM_F_REQUEST | NLM_F_CREATE;
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn neighbour(last: u8) -> Neighbour {
        Neighbour {
            address: IpAddr::from([10, 0, 0, last]),
            link: 1,
        }
    }

    #[test]
    fn an_unknown_neighbour_is_asked_for_ever_more_rarely() {
        let mut asking = Asking::new();
        let start = Instant::now();
        asking.set(neighbour(1), Need::Address, start);
        let mut times = Vec::new();
        for second in 0..=260 {
            let now = start + SECOND * second;
            // That it's still needed is no reason to ask earlier.
            asking.set(neighbour(1), Need::Address, now);
            while let Some(asked) = asking.take_due(now) {
                assert_eq!(asked, neighbour(1));
                times.push(second);
            }
        }
        assert_eq!(times, [0, 1, 3, 7, 15, 31, 63, 127, 191, 255]);
        asking.set(neighbour(1), Need::Nothing, start + SECOND * 260);
        assert_eq!(asking.due(), None);
    }

    #[test]
    fn a_stale_neighbour_is_asked_for_now_and_then() {
        let mut asking = Asking::new();
        let start = Instant::now();
        asking.set(neighbour(1), Need::Refresh, start);
        assert_eq!(asking.take_due(start), Some(neighbour(1)));
        assert_eq!(asking.due(), Some(start + NEXT_REFRESH));
        asking.set(neighbour(1), Need::Address, start);
        assert_eq!(asking.take_due(start), Some(neighbour(1)));
        assert_eq!(asking.due(), Some(start + FIRST_RETRY));
    }

    #[test]
    fn many_questions_are_spread_out() {
        let mut asking = Asking::new();
        let start = Instant::now();
        for last in 0..=255 {
            for link in 0..10 {
                let neighbour = Neighbour {
                    link,
                    ..neighbour(last)
                };
                asking.set(neighbour, Need::Address, start);
            }
        }
        let at_once = std::iter::from_fn(|| asking.take_due(start)).count();
        assert!((256..=257).contains(&at_once), "{at_once} at once");
        let soon = std::iter::from_fn(|| asking.take_due(start + SECOND / 2)).count();
        assert!((499..=501).contains(&soon), "{soon} within half a second");
    }
}
