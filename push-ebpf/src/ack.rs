//! Acknowledgements: waited for since their trigger was sent on, settled once, and turned around to the
//! server that sent it.

use crate::datagram::{Datagram, Link};
use crate::global::{result_of, word_of};
use crate::maps::{Notes, SESSIONS, counters, notes};
use crate::outbound::{OWN_HOP_LIMIT, Outbound};
use crate::packet::Frame;
use crate::shared::{Session, load};
use aya_ebpf::bindings::xdp_md;
use aya_ebpf::btf_maps::LruHashMap;
use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::macros::btf_map;
use push_common::maps::{
    AckKey, MAX_PENDING_ACKS, PendingAck, ROUND_TRIP_CLASSES, round_trip_class,
};
use push_common::verdict::Verdict;
use push_common::wire::{SessionId, UdpHeader};

/// Of a word that begins with a MAC address.
const MAC_MASK: u64 = (1 << 48) - 1;

/// A [`PendingAck`] in whole words, which can be copied on the stack.
pub(crate) type PendingWords = [u64; size_of::<PendingAck>() / 8];

/// Triggers whose acknowledgement is waited for.
#[btf_map(name = "push_pending")]
static PENDING_ACKS: LruHashMap<AckKey, PendingAck, { MAX_PENDING_ACKS as usize }> =
    LruHashMap::new();

/// Notes the way back to the server of a trigger, for its acknowledgement.
#[inline(always)]
pub(crate) fn expect(key: AckKey, frame: Frame<'_>, datagram: Datagram) {
    // If there is no room, there will be no acknowledgement; the trigger goes on all the same.
    push_expect(
        frame.context(),
        key.session,
        key.sequence,
        datagram.to_word(),
    );
}

/// Counts an acknowledgement that is waited for, and stops waiting; what was noted with it is in the notes
/// then.
#[inline(always)]
pub(crate) fn settle(key: AckKey) -> Result<(), Verdict> {
    result_of(push_settle(key.session, key.sequence)).map(|_| ())
}

/// Notes as outbound the datagram to the server that waits for the acknowledgement that was settled last, the
/// way its trigger came. Returns the index of the NIC.
#[inline(always)]
pub(crate) fn turn_around(datagram: Datagram) -> Result<u32, Verdict> {
    result_of(push_turn_around(datagram.traffic_class().into())).map(|nic| nic as u32)
}

global! {
    /// [`expect`].
    fn push_expect(context: *mut xdp_md, session: u64, sequence: u64, datagram: u64) -> u64 {
        // SAFETY: the context is the kernel's own.
        let frame = unsafe { Frame::new(context) };
        let datagram = Datagram::from_word(datagram);
        word_of(pending(frame, datagram).map(|pending| {
            let key = AckKey { session, sequence };
            u64::from(PENDING_ACKS.insert(key, pending, 0).is_ok())
        }))
    }

    /// [`settle`].
    fn push_settle(session: u64, sequence: u64) -> u64 {
        word_of(stop_waiting(&AckKey { session, sequence }).map(|()| 0))
    }

    /// [`turn_around`].
    fn push_turn_around(traffic_class: u32) -> u64 {
        let turned = notes().map(|notes| {
            // SAFETY: the notes are this CPU's alone.
            let Notes { outbound, pending, .. } = unsafe { &mut *notes };
            reverse(pending, outbound, traffic_class as u8)
        });
        word_of(turned.map(u64::from))
    }
}

/// Noted, as the stack has no room for it.
#[inline(always)]
fn pending(frame: Frame<'_>, datagram: Datagram) -> Result<&'static PendingAck, Verdict> {
    let link = datagram.link(frame)?;
    let udp = frame
        .get::<UdpHeader>(datagram.udp_at())
        .ok_or(Verdict::Truncated)?;
    let [source, destination] = datagram.addresses(frame)?;
    let [s0, s1] = udp.source.to_bytes().map(u64::from);
    let [d0, d1] = udp.destination.to_bytes().map(u64::from);
    // SAFETY: the notes are this CPU's alone.
    let pending = unsafe { &mut (*notes()?).pending };
    *pending = [
        // SAFETY: has no requirements.
        unsafe { bpf_ktime_get_ns() },
        source[0],
        source[1],
        destination[0],
        destination[1],
        link.tags,
        u64::from(frame.interface())
            | s0 << 32
            | s1 << 40
            | link.tag_count << 48
            | u64::from(datagram.is_v6()) << 56,
        link.from & MAC_MASK | link.to << 48,
        (link.to & MAC_MASK) >> 16 | d0 << 32 | d1 << 40,
    ];
    Ok(bytemuck::must_cast_ref(pending))
}

#[inline(always)]
fn stop_waiting(key: &AckKey) -> Result<(), Verdict> {
    let id = SessionId::from_u64(key.session);
    let record = SESSIONS.get_ptr_mut(id.slot());
    // SAFETY: the map has just given it out.
    let session = unsafe { Session::new(record.ok_or(Verdict::UnknownSession)?) };
    let noted = PENDING_ACKS.get_ptr(key).ok_or(Verdict::AckUnexpected)?;
    // SAFETY: an entry stays in memory while the program runs. If it has been used for another trigger
    // meanwhile, removing it will fail. The notes are this CPU's alone.
    let sent_ns = unsafe {
        let pending = &mut (*notes()?).pending;
        *pending = load(noted.cast());
        pending[0]
    };
    // Of two CPUs, one succeeds.
    PENDING_ACKS
        .remove(key)
        .map_err(|_| Verdict::AckUnexpected)?;
    // SAFETY: has no requirements.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    let round_trip_us = (now_ns.wrapping_sub(sent_ns) / 1000).min(u64::from(u32::MAX)) as u32;
    session.acknowledged(round_trip_us);
    if let Some(counters) = counters() {
        let class = round_trip_class(round_trip_us);
        // The compiler knows the bound, the verifier doesn't: it has to see a mask.
        // SAFETY: a local is valid and aligned.
        let class = unsafe { load(&raw const class) } & (ROUND_TRIP_CLASSES - 1);
        // SAFETY: the entry is this CPU's alone, and nothing interrupts the program to run it anew.
        unsafe {
            let count = &mut (*counters).round_trips[class];
            *count = count.wrapping_add(1);
        }
    }
    Ok(())
}

/// Returns the index of the NIC.
#[inline(always)]
fn reverse(pending: &PendingWords, outbound: &mut Outbound, traffic_class: u8) -> u32 {
    let [
        _,
        server_0,
        server_1,
        gateway_0,
        gateway_1,
        tags,
        nic,
        macs,
        more,
    ] = *pending;
    *outbound = Outbound {
        source: [gateway_0, gateway_1],
        destination: [server_0, server_1],
        link: Link {
            to: macs,
            from: macs >> 48 | more << 16,
            tags,
            tag_count: nic >> 48 & 3,
        },
        source_port: [(more >> 32) as u8, (more >> 40) as u8],
        destination_port: [(nic >> 32) as u8, (nic >> 40) as u8],
        hop_limit: OWN_HOP_LIMIT,
        traffic_class,
        is_v6: (nic >> 56) as u8,
        has_tunnel: false,
    };
    nic as u32
}
