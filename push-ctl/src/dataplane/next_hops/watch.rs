//! Reads from netlink what links, routes and neighbours there are, and what becomes of them.
//!
//! One socket gets both the kernel's notifications and its listings. It is subscribed before anything is
//! listed, and what is notified during a listing counts on top of it, so nothing is missed in between.
//! A new listing is made when notifications were lost, and after changes of which the kernel doesn't tell
//! all the consequences: when a link goes down, IPv4 routes through it are gone without a word.
//!
//! The kernel itself tells of a lost carrier no more than once a second; of the first after a quiet second,
//! it does at once.

use super::NextHops;
use super::news::{Change, News};
use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::sys::socket::{setsockopt, sockopt};
use push_common::wire::SessionId;
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::{
    NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkBuffer, NetlinkMessage, NetlinkPayload,
};
use rtnetlink::packet_route::link::LinkMessage;
use rtnetlink::packet_route::neighbour::NeighbourMessage;
use rtnetlink::packet_route::route::RouteMessage;
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::sys::protocols::NETLINK_ROUTE;
use rtnetlink::sys::{AsyncSocket, SocketAddr, TokioSocket};
use std::future::{pending, poll_fn};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::task::Poll;
use std::time::{Duration, Instant};
use tracing::{debug, warn};

/// What is subscribed to.
const GROUPS: [MulticastGroup; 6] = [
    MulticastGroup::Link,
    MulticastGroup::Neigh,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
    // Addresses and next hop objects take routes with them.
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Nexthop,
];
const RTM_DELADDR: u16 = 21;
const RTM_NEWNEXTHOP: u16 = 104;
const RTM_DELNEXTHOP: u16 = 105;

/// Room for notifications that haven't been read yet.
const RECEIVE_BUFFER_BYTES: usize = 16 << 20;
/// Room for one read; the kernel puts no more than 32 KiB of messages together, but a single one may
/// be longer.
const READ_BYTES: usize = 1 << 20;
/// Reads before what they brought is passed on.
const BATCH: usize = 32;
/// From a change to the listing that it asks for: the kernel is not done with it when it tells of it.
const SETTLE: Duration = Duration::from_millis(50);
/// Between two listings; after failures, ever longer.
const PAUSE: Duration = Duration::from_millis(100);
/// A listing that changed underneath is made anew as often.
const MAX_RETRIES: u32 = 8;

/// A subscription to the kernel's links, routes and neighbours.
pub(in super::super) struct Watch {
    /// None if it couldn't be opened anew.
    socket: Option<TokioSocket>,
    port: u32,
    sequence: u32,
    buffer: Vec<u8>,
    listing: Option<Listing>,
    /// When to list again.
    list_at: Option<Instant>,
    /// When the last listing began, and how long it took.
    last_listing: Option<(Instant, Duration)>,
    /// Since the last listing.
    failures: u32,
    /// To be passed on.
    news: News,
}

/// A listing that is being made.
struct Listing {
    begun: Instant,
    /// Index of what is being listed, see [`question`].
    part: usize,
    /// What is listed so far, and how much of it is of the parts before.
    changes: Vec<Change>,
    complete: usize,
    was_interrupted: bool,
    retries: u32,
    /// Notified since it was begun.
    since: Vec<Change>,
}

impl Watch {
    /// Subscribes in the network namespace of the calling thread, and lists what there is.
    pub(in super::super) async fn open() -> Result<(Self, News)> {
        let (socket, port) =
            subscribe().context("cannot subscribe to news of routes and neighbours")?;
        let mut watch = Self {
            socket: Some(socket),
            port,
            sequence: 0,
            buffer: Vec::with_capacity(READ_BYTES),
            listing: None,
            list_at: Some(Instant::now()),
            last_listing: None,
            failures: 0,
            news: News::default(),
        };
        loop {
            let news = watch.next(None).await;
            if news.is_everything {
                return Ok((watch, news));
            }
        }
    }

    /// Waits until there is something to do for `next_hops`, and does it; returns which sessions refer to
    /// another next hop from now on, as [`NextHops::apply`] does. Nothing is lost if it is cancelled.
    pub(in super::super) async fn keep(
        &mut self,
        next_hops: &mut NextHops,
    ) -> Vec<(SessionId, u16)> {
        if next_hops.take_doubt() {
            self.list_soon();
        }
        let news = self.next(next_hops.due()).await;
        next_hops.apply(news)
    }

    /// Waits for news, but not longer than until `due`; then there is none. Nothing is lost if it is
    /// cancelled.
    pub(super) async fn next(&mut self, due: Option<Instant>) -> News {
        loop {
            if self.news.is_everything || !self.news.changes.is_empty() {
                return std::mem::take(&mut self.news);
            }
            let now = Instant::now();
            if due.is_some_and(|due| due <= now) {
                return News::default();
            }
            if self.listing.is_none() && self.list_at.is_some_and(|at| at <= now) {
                self.list_at = None;
                if let Err(error) = self.begin_listing() {
                    self.start_over(&error);
                }
                continue;
            }
            let list_at = self.list_at.filter(|_| self.listing.is_none());
            let alarm = [due, list_at].into_iter().flatten().min();
            tokio::select! {
                read = self.read() => {
                    if let Err(error) = read {
                        self.start_over(&error);
                    }
                }
                () = sleep_until(alarm) => {}
            }
        }
    }

    /// Has everything be listed anew, once what changes right now has settled.
    pub(super) fn list_soon(&mut self) {
        let soon = Instant::now() + SETTLE;
        let pause_ends = self
            .last_listing
            .map(|(begun, took)| begun + took * 4 + PAUSE);
        let at = pause_ends.map_or(soon, |ends| ends.max(soon));
        self.list_at = Some(self.list_at.map_or(at, |earlier| earlier.min(at)));
    }

    /// Forgets the socket and what is underway, and begins anew after a pause.
    fn start_over(&mut self, error: &anyhow::Error) {
        warn!("lost track of routes and neighbours, so they are listed anew: {error:#}");
        self.listing = None;
        self.socket = None;
        let opened = subscribe().context("cannot subscribe to news of routes and neighbours");
        match opened {
            Ok((socket, port)) => {
                self.socket = Some(socket);
                self.port = port;
            }
            Err(error) => warn!("{error:#}"),
        }
        let pause = PAUSE * (1 << self.failures.min(6));
        self.failures += 1;
        let now = Instant::now();
        let since = match (&self.socket, self.last_listing) {
            (Some(_), Some((begun, _))) => begun,
            (None, _) | (_, None) => now,
        };
        self.list_at = Some((since + pause).max(now));
    }

    fn begin_listing(&mut self) -> Result<()> {
        if self.socket.is_none() {
            bail!("there is no netlink socket");
        }
        self.listing = Some(Listing {
            begun: Instant::now(),
            part: 0,
            changes: Vec::new(),
            complete: 0,
            was_interrupted: false,
            retries: 0,
            since: Vec::new(),
        });
        self.last_listing = Some((Instant::now(), Duration::ZERO));
        self.ask_for_part(0)
    }

    fn ask_for_part(&mut self, part: usize) -> Result<()> {
        let Some(socket) = &self.socket else {
            return Ok(());
        };
        let body = question(part).context("there is no such part of a listing")?;
        self.sequence = self.sequence.wrapping_add(1);
        let mut message = NetlinkMessage::from(body);
        message.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
        message.header.sequence_number = self.sequence;
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        let sent = socket.socket_ref().send(&bytes, 0);
        sent.map(|_| ()).context("cannot ask for a listing")
    }

    /// Waits for something to read, and digests it.
    async fn read(&mut self) -> Result<()> {
        if self.socket.is_none() {
            return pending().await;
        }
        poll_fn(|context| {
            for read in 0..BATCH {
                let Some(socket) = &self.socket else {
                    return Poll::Ready(Err(anyhow!("there is no netlink socket")));
                };
                self.buffer.clear();
                match socket.poll_recv(context, &mut self.buffer) {
                    Poll::Ready(Ok(())) => {
                        if let Err(error) = self.digest() {
                            return Poll::Ready(Err(error));
                        }
                    }
                    Poll::Ready(Err(error)) => {
                        return Poll::Ready(
                            Err(anyhow!(error).context("cannot read from netlink")),
                        );
                    }
                    Poll::Pending if read == 0 => return Poll::Pending,
                    Poll::Pending => break,
                }
            }
            Poll::Ready(Ok(()))
        })
        .await
    }

    /// Takes the messages in the buffer apart.
    fn digest(&mut self) -> Result<()> {
        let buffer = std::mem::take(&mut self.buffer);
        let mut rest = &buffer[..];
        let mut outcome = Ok(());
        while !rest.is_empty() && outcome.is_ok() {
            let length = match NetlinkBuffer::new_checked(rest) {
                Ok(message) => message.length() as usize,
                Err(error) => {
                    outcome = Err(anyhow!("netlink sent what is no message: {error}"));
                    break;
                }
            };
            outcome = self.take_message(&rest[..length]);
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        }
        self.buffer = buffer;
        outcome
    }

    fn take_message(&mut self, bytes: &[u8]) -> Result<()> {
        let header = NetlinkBuffer::new(bytes);
        let (kind, flags) = (header.message_type(), header.flags());
        if header.port_number() == self.port {
            let is_current = header.sequence_number() == self.sequence;
            return if is_current {
                self.take_listed(bytes, flags)
            } else {
                Ok(())
            };
        }
        match kind {
            RTM_DELADDR | RTM_NEWNEXTHOP | RTM_DELNEXTHOP => self.list_soon(),
            _ => {
                if let Some(change) = parse(bytes).and_then(|message| match &message.payload {
                    NetlinkPayload::InnerMessage(inner) => Change::of(inner, flags, false),
                    _ => None,
                }) {
                    if let Some(listing) = &mut self.listing {
                        listing.since.push(change.clone());
                    }
                    self.news.changes.push(change);
                }
            }
        }
        Ok(())
    }

    fn take_listed(&mut self, bytes: &[u8], flags: u16) -> Result<()> {
        let Some(listing) = &mut self.listing else {
            return Ok(());
        };
        listing.was_interrupted |= flags & NLM_F_DUMP_INTR != 0;
        match parse(bytes).map(|message| message.payload) {
            Some(NetlinkPayload::InnerMessage(message)) => {
                listing.changes.extend(Change::of(&message, flags, true));
                Ok(())
            }
            Some(NetlinkPayload::Done(done)) => {
                ensure!(
                    done.code == 0,
                    "the kernel broke a listing off: {}",
                    std::io::Error::from_raw_os_error(-done.code)
                );
                self.end_part()
            }
            Some(NetlinkPayload::Error(error)) if error.code.is_some() => {
                Err(anyhow!(error.to_io()).context("the kernel refused a listing"))
            }
            _ => Ok(()),
        }
    }

    fn end_part(&mut self) -> Result<()> {
        let Some(mut listing) = self.listing.take() else {
            return Ok(());
        };
        if std::mem::take(&mut listing.was_interrupted) && listing.retries < MAX_RETRIES {
            listing.retries += 1;
            listing.changes.truncate(listing.complete);
        } else {
            listing.complete = listing.changes.len();
            listing.part += 1;
        }
        let part = listing.part;
        if question(part).is_some() {
            self.listing = Some(listing);
            return self.ask_for_part(part);
        }
        self.last_listing = Some((listing.begun, listing.begun.elapsed()));
        self.failures = 0;
        listing.changes.append(&mut listing.since);
        // Whatever hasn't been passed on yet is in the listing, or came on top of it.
        self.news = News {
            changes: listing.changes,
            is_everything: true,
        };
        Ok(())
    }
}

fn subscribe() -> Result<(TokioSocket, u32)> {
    let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
    let by_mask = GROUPS
        .iter()
        .filter(|group| !group.need_via_add_membership());
    let mask = by_mask.fold(0, |mask, &group| mask | 1 << (group as u32 - 1));
    let inner = socket.socket_mut();
    inner.bind(&SocketAddr::new(0, mask))?;
    for group in GROUPS
        .into_iter()
        .filter(|group| group.need_via_add_membership())
    {
        inner.add_membership(group as u32)?;
    }
    if let Err(error) = enlarge(&socket) {
        debug!(%error, "the netlink socket keeps its small buffer");
    }
    let mut address = SocketAddr::new(0, 0);
    socket.socket_ref().get_address(&mut address)?;
    Ok((socket, address.port_number()))
}

#[expect(unsafe_code, reason = "the socket only lends its number")]
fn enlarge(socket: &TokioSocket) -> nix::Result<()> {
    // SAFETY: the socket stays open for as long as it is borrowed.
    let fd = unsafe { BorrowedFd::borrow_raw(socket.as_raw_fd()) };
    setsockopt(&fd, sockopt::RcvBufForce, &RECEIVE_BUFFER_BYTES)
}

/// What asks for a part of a listing: links, IPv4 and IPv6 routes, neighbours.
fn question(part: usize) -> Option<RouteNetlinkMessage> {
    let routes = |family| {
        let mut message = RouteMessage::default();
        message.header.address_family = family;
        RouteNetlinkMessage::GetRoute(message)
    };
    match part {
        0 => Some(RouteNetlinkMessage::GetLink(LinkMessage::default())),
        1 => Some(routes(AddressFamily::Inet)),
        2 => Some(routes(AddressFamily::Inet6)),
        3 => Some(RouteNetlinkMessage::GetNeighbour(
            NeighbourMessage::default(),
        )),
        _ => None,
    }
}

fn parse(bytes: &[u8]) -> Option<NetlinkMessage<RouteNetlinkMessage>> {
    match NetlinkMessage::deserialize(bytes) {
        Ok(message) => Some(message),
        Err(error) => {
            debug!(%error, "netlink sent a message that can't be read");
            None
        }
    }
}

async fn sleep_until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time.into()).await,
        None => pending().await,
    }
}
