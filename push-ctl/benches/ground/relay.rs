//! Relays in userspace that do what push does: look up the session, verify the tag, let each sequence number through
//! once, and keep to a rate.

use super::rig::{Rig, monotonic_ns};
use super::route::{Route, Shape, session};
use crate::gateway::{Gateway, sh};
use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::sys::socket::{
    MsgFlags, MultiHeaders, SockaddrIn, recvmmsg, sendmmsg, setsockopt, sockopt,
};
use push_common::rate;
use push_common::replay::{self, Offer};
use push_common::tag::TagKey;
use push_common::wire::{MAX_PAYLOAD_LEN, SessionId, TRIGGER_HEADER_LEN, TriggerHeader};
use std::io::{IoSlice, IoSliceMut};
use std::net::{SocketAddr, SocketAddrV4, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::mpsc;
use std::thread;

/// Where triggers are taken, and where devices see them come from.
const TRIGGERS: &str = "198.51.100.1:5050";
const INSIDE: &str = "10.64.0.1:5683";

const RECEIVE_BUFFER_BYTES: usize = 16 << 20;
const MAX_TRIGGER_LEN: usize = TRIGGER_HEADER_LEN + MAX_PAYLOAD_LEN;

/// Triggers in one system call.
const BATCH: usize = 64;

/// How a relay gets at datagrams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Calls {
    /// As async Rust is written: one after the other, by tokio on one thread.
    Tokio,
    /// Many in one system call: `recvmmsg` and `sendmmsg`.
    Many,
}

/// A relay for the first `count` sessions, on the CPU that generators are on.
///
/// It has priority over them, so that it takes what is there before more is sent: nothing is lost, and no time is spent
/// on waiting.
pub(crate) fn rig(gateway: Gateway, calls: Calls, count: u32) -> Result<Rig> {
    let route = Route {
        // Its datagrams are new ones.
        hop_limit: 64,
        ..Route::of_push(Shape::Through)
    };
    Rig::around_kernel(route, gateway, || {
        let outside = UdpSocket::bind(TRIGGERS)?;
        setsockopt(&outside, sockopt::RcvBufForce, &RECEIVE_BUFFER_BYTES)?;
        let inside = UdpSocket::bind(INSIDE)?;
        let table = Table::new(count);
        let (sender, ready) = mpsc::channel();
        thread::spawn(move || {
            sh(&format!("chrt --fifo -p 1 {}", nix::unistd::gettid()));
            let _ = sender.send(());
            let ended = match calls {
                Calls::Tokio => by_tokio(outside, inside, table),
                Calls::Many => by_many(&outside, &inside, table),
            };
            eprintln!("a relay has ended: {ended:?}");
        });
        ready.recv().context("the relay has no priority")
    })
}

/// Sessions by slot: what push has in its maps.
struct Table(Vec<Record>);

struct Record {
    id: SessionId,
    token_generation: u8,
    key: TagKey,
    device: SocketAddrV4,
    expires_ns: u64,
    replay: [u64; replay::WORDS],
    full_at_ns: u64,
    interval_ns: u64,
    tolerance_ns: u64,
    packets: u64,
    bytes: u64,
}

impl Table {
    fn new(count: u32) -> Self {
        let now_ns = monotonic_ns();
        let records = (0..=count).map(|slot| {
            let image = session(Shape::Through, slot).image;
            let SocketAddr::V4(device) = image.device else {
                unreachable!("devices have IPv4 addresses");
            };
            Record {
                id: image.id,
                token_generation: image.token_generation,
                key: *image.key,
                device,
                expires_ns: now_ns + image.expires_in.as_nanos() as u64,
                replay: [0; replay::WORDS],
                full_at_ns: 0,
                interval_ns: 1,
                tolerance_ns: rate::tolerance_ns(1, u32::MAX),
                packets: 0,
                bytes: 0,
            }
        });
        Self(records.collect())
    }

    /// The device that a datagram is for, if it is a trigger that may be delivered at this time.
    fn device(&mut self, datagram: &[u8], now_ns: u64) -> Option<SocketAddrV4> {
        let (trigger, payload) = TriggerHeader::parse(datagram).ok()?;
        let id = SessionId::from_u64(trigger.session_id.get());
        let record = self.0.get_mut(id.slot() as usize)?;
        let is_live = record.id == id
            && now_ns < record.expires_ns
            && trigger.token_generation == record.token_generation;
        let sequence = trigger.sequence.get();
        if !is_live || !replay::in_range(sequence) {
            return None;
        }
        trigger.verify(record.key, payload).ok()?;
        let word = &mut record.replay[replay::word_index(sequence)];
        let Offer::Accept(after) = replay::offer(*word, sequence) else {
            return None;
        };
        *word = after;
        record.full_at_ns = rate::offer(
            record.full_at_ns,
            now_ns,
            record.interval_ns,
            record.tolerance_ns,
        )?;
        record.packets += 1;
        record.bytes += datagram.len() as u64;
        Some(record.device)
    }
}

fn by_tokio(outside: UdpSocket, inside: UdpSocket, mut table: Table) -> Result<()> {
    outside.set_nonblocking(true)?;
    inside.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()?;
    runtime.block_on(async {
        let outside = tokio::net::UdpSocket::from_std(outside)?;
        let inside = tokio::net::UdpSocket::from_std(inside)?;
        let mut buffer = [0; MAX_TRIGGER_LEN];
        loop {
            let (length, _) = outside.recv_from(&mut buffer).await?;
            let datagram = &buffer[..length];
            if let Some(device) = table.device(datagram, monotonic_ns()) {
                inside.send_to(datagram, device).await?;
            }
        }
    })
}

fn by_many(outside: &UdpSocket, inside: &UdpSocket, mut table: Table) -> Result<()> {
    let mut buffer = vec![0; MAX_TRIGGER_LEN * BATCH];
    let mut taken = MultiHeaders::<SockaddrIn>::preallocate(BATCH, None);
    let mut given = MultiHeaders::<SockaddrIn>::preallocate(BATCH, None);
    let mut lengths = Vec::with_capacity(BATCH);
    loop {
        let mut slices: Vec<_> = buffer
            .chunks_exact_mut(MAX_TRIGGER_LEN)
            .map(|slot| [IoSliceMut::new(slot)])
            .collect();
        lengths.clear();
        let received = recvmmsg(
            outside.as_raw_fd(),
            &mut taken,
            &mut slices,
            MsgFlags::MSG_WAITFORONE,
            None,
        );
        match received {
            Ok(results) => lengths.extend(results.map(|message| message.bytes)),
            Err(Errno::EINTR) => continue,
            Err(error) => return Err(error.into()),
        }
        let now_ns = monotonic_ns();
        let datagrams = buffer.chunks_exact(MAX_TRIGGER_LEN).zip(&lengths);
        let (slices, devices): (Vec<_>, Vec<_>) = datagrams
            .filter_map(|(slot, &length)| {
                let datagram = &slot[..length];
                let device = table.device(datagram, now_ns)?;
                Some(([IoSlice::new(datagram)], Some(SockaddrIn::from(device))))
            })
            .unzip();
        let sent = sendmmsg(
            inside.as_raw_fd(),
            &mut given,
            &slices,
            &devices,
            [],
            MsgFlags::empty(),
        )?;
        let sent = sent.count();
        ensure!(
            sent == slices.len(),
            "{sent} of {} were taken",
            slices.len()
        );
    }
}
