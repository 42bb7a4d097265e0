//! Events: what is worth telling the controller, but never more of it than it can take.

use crate::datagram::Datagram;
use crate::maps::nic_config;
use aya_ebpf::btf_maps::{PerCpuArray, RingBuf};
use aya_ebpf::helpers::bpf_ktime_get_coarse_ns;
use aya_ebpf::macros::btf_map;
use push_common::maps::{EVENT_INTERVAL_NS, EVENTS_BYTES, Event, EventKind, EventLimits};
use push_common::wire::SessionId;

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
#[inline(never)]
pub(crate) fn tell(kind: EventKind, id: SessionId, datagram: &Datagram) {
    let Some(limits) = limits() else {
        return;
    };
    // SAFETY: has no requirements.
    let now_ns = unsafe { bpf_ktime_get_coarse_ns() };
    let next_ns = &mut limits.next_ns[kind as usize];
    let count = &mut limits.count[kind as usize];
    if kind.threshold() > 1 && now_ns >= *next_ns {
        // A new stretch of time, in which it may get to be too many.
        *next_ns = now_ns.wrapping_add(EVENT_INTERVAL_NS);
        *count = 0;
    }
    *count = count.wrapping_add(1);
    let is_due = if kind.threshold() > 1 {
        *count == kind.threshold()
    } else {
        now_ns >= *next_ns
    };
    if !is_due {
        return;
    }
    let Some(mut entry) = EVENTS.reserve_bytes(size_of::<Event>(), 0) else {
        limits.lost = limits.lost.wrapping_add(1);
        return;
    };
    let event = Event {
        kind: kind as u32,
        nic: nic_config().index,
        time_ns: now_ns,
        count: *count,
        session: id.to_u64(),
        source: datagram.source,
        source_port: datagram.source_port,
        is_v6: u8::from(datagram.is_v6),
        reserved: [0; 5],
    };
    entry.copy_from_slice(bytemuck::bytes_of(&event));
    entry.submit(0);
    if kind.threshold() == 1 {
        *next_ns = now_ns.wrapping_add(EVENT_INTERVAL_NS);
        *count = 0;
    }
}
