//! Events: what is worth telling the controller, but never more of it than it can take.

use crate::datagram::Datagram;
use crate::nic;
use crate::packet::Frame;
use aya_ebpf::bindings::xdp_md;
use aya_ebpf::btf_maps::{PerCpuArray, RingBuf};
use aya_ebpf::helpers::bpf_ktime_get_coarse_ns;
use aya_ebpf::macros::btf_map;
use push_common::maps::{
    EVENT_INTERVAL_NS, EVENT_KIND_SLOTS, EVENTS_BYTES, Event, EventKind, EventLimits,
};
use push_common::wire::{SessionId, UdpHeader};

/// On their way to the controller.
#[btf_map(name = "push_events")]
static EVENTS: RingBuf<(), { EVENTS_BYTES as usize }> = RingBuf::new();

/// What this CPU has told, and when.
#[btf_map(name = "push_limits")]
static LIMITS: PerCpuArray<EventLimits, 1> = PerCpuArray::new();

/// What this CPU has told, and when.
#[inline(always)]
pub(crate) fn limits() -> Option<&'static mut EventLimits> {
    // SAFETY: the entry is this CPU's alone, and nothing interrupts the program to run it anew.
    LIMITS.get_ptr_mut(0).map(|limits| unsafe { &mut *limits })
}

/// Tells of a datagram, unless its kind was told of just before; then it is counted, and told of with the
/// next one.
#[inline(always)]
pub(crate) fn tell(kind: EventKind, id: SessionId, frame: Frame<'_>, datagram: Datagram) {
    push_tell(
        frame.context(),
        kind as u32,
        kind.threshold(),
        id.to_u64(),
        datagram.to_word(),
    );
}

global! {
    /// [`tell`]; returns 0.
    fn push_tell(context: *mut xdp_md, kind: u32, threshold: u64, id: u64, datagram: u64) -> u64 {
        // SAFETY: the context is the kernel's own.
        let frame = unsafe { Frame::new(context) };
        tell_of(kind, threshold, id, frame, Datagram::from_word(datagram));
        0
    }
}

#[inline(always)]
fn tell_of(kind: u32, threshold: u64, id: u64, frame: Frame<'_>, datagram: Datagram) {
    let Some(limits) = limits() else {
        return;
    };
    // SAFETY: has no requirements.
    let now_ns = unsafe { bpf_ktime_get_coarse_ns() };
    let slot = kind as usize & (EVENT_KIND_SLOTS - 1);
    let next_ns = &mut limits.next_ns[slot];
    let count = &mut limits.count[slot];
    if threshold > 1 && now_ns >= *next_ns {
        // A new stretch of time, in which it may get to be too many.
        *next_ns = now_ns.wrapping_add(EVENT_INTERVAL_NS);
        *count = 0;
    }
    *count = count.wrapping_add(1);
    let is_due = if threshold > 1 {
        *count == threshold
    } else {
        now_ns >= *next_ns
    };
    if !is_due {
        return;
    }
    let (Ok([source, _]), Some(udp)) = (
        datagram.addresses(frame),
        frame.get::<UdpHeader>(datagram.udp_at()),
    ) else {
        return;
    };
    let Some(mut entry) = EVENTS.reserve_bytes(size_of::<Event>(), 0) else {
        limits.lost = limits.lost.wrapping_add(1);
        return;
    };
    let event = Event {
        kind,
        nic: nic::index(),
        time_ns: now_ns,
        count: *count,
        session: id,
        source,
        source_port: udp.source.to_bytes(),
        is_v6: u8::from(datagram.is_v6()),
        reserved: [0; 5],
    };
    entry.copy_from_slice(bytemuck::bytes_of(&event));
    entry.submit(0);
    if threshold == 1 {
        *next_ns = now_ns.wrapping_add(EVENT_INTERVAL_NS);
        *count = 0;
    }
}
