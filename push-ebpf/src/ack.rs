//! Acknowledgements: waited for since their trigger was sent on, settled once, and turned around to the
//! server that sent it.

use crate::datagram::Datagram;
use crate::maps::counters;
use crate::outbound::{OWN_HOP_LIMIT, Outbound};
use crate::shared::{Session, load};
use aya_ebpf::btf_maps::LruHashMap;
use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::macros::btf_map;
use aya_ebpf::programs::XdpContext;
use push_common::maps::{
    AckKey, MAX_PENDING_ACKS, PendingAck, ROUND_TRIP_CLASSES, round_trip_class,
};
use push_common::verdict::Verdict;

/// A [`PendingAck`] in whole words, which can be copied on the stack.
pub(crate) type PendingWords = [u64; size_of::<PendingAck>() / 8];

/// Triggers whose acknowledgement is waited for.
#[btf_map(name = "push_pending")]
static PENDING_ACKS: LruHashMap<AckKey, PendingAck, { MAX_PENDING_ACKS as usize }> =
    LruHashMap::new();

/// Notes the way back to the server of a trigger, for its acknowledgement.
#[inline(always)]
pub(crate) fn expect(
    key: &AckKey,
    context: &XdpContext,
    datagram: &Datagram,
    pending: &mut PendingWords,
) {
    let [m0, m1, m2] = datagram.link.reversed_macs().map(u64::from);
    let [t0, t1] = datagram.link.tags.map(u64::from);
    let [s0, s1] = datagram.source_port.map(u64::from);
    let [d0, d1] = datagram.destination_port.map(u64::from);
    *pending = [
        // SAFETY: has no requirements.
        unsafe { bpf_ktime_get_ns() },
        datagram.source[0],
        datagram.source[1],
        datagram.destination[0],
        datagram.destination[1],
        t0 | t1 << 32,
        context.ingress_ifindex() as u64
            | s0 << 32
            | s1 << 40
            | (datagram.link.tag_count as u64) << 48
            | u64::from(datagram.is_v6) << 56,
        m0 | m1 << 32,
        m2 | d0 << 32 | d1 << 40,
    ];
    // If there is no room, there will be no acknowledgement; the trigger goes on all the same.
    let _ = PENDING_ACKS.insert(key, bytemuck::must_cast_ref::<_, PendingAck>(&*pending), 0);
}

/// Counts an acknowledgement that is waited for, and stops waiting; what was noted with it is `pending`
/// then.
#[inline(always)]
pub(crate) fn settle(
    key: &AckKey,
    session: Session,
    pending: &mut PendingWords,
) -> Result<(), Verdict> {
    let noted = PENDING_ACKS.get_ptr(key).ok_or(Verdict::AckUnexpected)?;
    // SAFETY: an entry stays in memory while the program runs. If it has been used for another trigger
    // meanwhile, removing it will fail.
    *pending = unsafe { load(noted.cast()) };
    // Of two CPUs, one succeeds.
    PENDING_ACKS
        .remove(key)
        .map_err(|_| Verdict::AckUnexpected)?;
    // SAFETY: has no requirements.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    let round_trip_us = (now_ns.wrapping_sub(pending[0]) / 1000).min(u64::from(u32::MAX)) as u32;
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

/// Makes `outbound` the datagram to the server that waits for an acknowledgement, the way its trigger
/// came. Returns the index of the NIC.
#[inline(always)]
pub(crate) fn turn_around(
    pending: &PendingWords,
    outbound: &mut Outbound,
    traffic_class: u8,
) -> u32 {
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
    outbound.link.macs = [macs as u32, (macs >> 32) as u32, more as u32];
    outbound.link.tags = [tags as u32, (tags >> 32) as u32];
    outbound.link.tag_count = (nic >> 48 & 3) as usize;
    outbound.has_tunnel = false;
    outbound.is_v6 = nic >> 56 != 0;
    outbound.source = [gateway_0, gateway_1];
    outbound.destination = [server_0, server_1];
    outbound.source_port = [(more >> 32) as u8, (more >> 40) as u8];
    outbound.destination_port = [(nic >> 32) as u8, (nic >> 40) as u8];
    outbound.hop_limit = OWN_HOP_LIMIT;
    outbound.traffic_class = traffic_class;
    nic as u32
}
