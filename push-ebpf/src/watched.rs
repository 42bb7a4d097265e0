//! Copies of the packets that name the session that an operator watches.

use crate::nic;
use crate::packet::Frame;
use crate::shared::{add, load};
use crate::tell::limits;
use aya_ebpf::bindings::xdp_md;
use aya_ebpf::btf_maps::{Array, RingBuf};
use aya_ebpf::helpers::{bpf_ktime_get_ns, bpf_xdp_get_buff_len, bpf_xdp_load_bytes};
use aya_ebpf::macros::btf_map;
use push_common::maps::EVENT_INTERVAL_NS;
use push_common::verdict::Verdict;
use push_common::watch::{
    CAPTURE_SLOT, CAPTURES_BYTES, CAPTURES_PER_INTERVAL, Capture, SNAP_BYTES, Watch,
};

/// Which session that is.
#[btf_map(name = "push_watch")]
static WATCH: Array<Watch, 1> = Array::new();

/// On their way to the operator.
#[btf_map(name = "push_captures")]
static CAPTURES: RingBuf<(), { CAPTURES_BYTES as usize }> = RingBuf::new();

/// Value of the identifier of the session that is watched; 0 if none is.
#[inline(always)]
pub(crate) fn watched() -> u64 {
    // SAFETY: the map has just given it out.
    WATCH
        .get_ptr(0)
        .map_or(0, |watch| unsafe { load(&raw const (*watch).session) })
}

/// Hands out a copy of the packet, which names that session, as it is now.
#[inline(always)]
pub(crate) fn hand_out(frame: Frame<'_>, verdict: Verdict, session: u64) {
    push_hand_out(frame.context(), verdict as u32, session);
}

global! {
    /// [`hand_out`]; returns 0.
    fn push_hand_out(context: *mut xdp_md, verdict: u32, session: u64) -> u64 {
        copy_out(context, verdict, session);
        0
    }
}

#[inline(always)]
fn copy_out(xdp: *mut xdp_md, verdict: u32, session: u64) {
    let (Some(watch), Some(limits)) = (WATCH.get_ptr_mut(0), limits()) else {
        return;
    };
    // SAFETY: has no requirements.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    // SAFETY: the map has just given it out.
    if now_ns >= unsafe { load(&raw const (*watch).until_ns) } {
        return;
    }
    let next_ns = &mut limits.next_ns[CAPTURE_SLOT];
    let count = &mut limits.count[CAPTURE_SLOT];
    if now_ns >= *next_ns {
        *next_ns = now_ns.wrapping_add(EVENT_INTERVAL_NS);
        *count = 0;
    }
    *count = count.wrapping_add(1);
    let entry = if *count > CAPTURES_PER_INTERVAL {
        None
    } else {
        CAPTURES.reserve_bytes(size_of::<Capture>(), 0)
    };
    let Some(mut entry) = entry else {
        // SAFETY: the map has just given it out.
        unsafe { add(&raw mut (*watch).missed, 1) };
        return;
    };
    let capture = entry.as_mut_ptr().cast::<Capture>();
    // SAFETY: the entry is as long as a capture, its beginning aligned to 8 bytes, and all bytes make one.
    unsafe {
        let length = bpf_xdp_get_buff_len(xdp);
        let mut captured = length;
        if captured > SNAP_BYTES as u64 {
            captured = SNAP_BYTES as u64;
        }
        // From 1 on, as the helper wants it; verifiers before 6.8 learn that from arithmetic, not from a comparison
        // with 0. Of a frame without bytes too many are asked for, and none are had.
        captured = (captured.wrapping_sub(1) & (SNAP_BYTES as u64).wrapping_sub(1)).wrapping_add(1);
        (*capture).time_ns = now_ns;
        (*capture).session = session;
        (*capture).length = length as u32;
        (*capture).verdict = verdict;
        (*capture).nic = nic::index();
        let frame = (&raw mut (*capture).frame).cast();
        let failed = bpf_xdp_load_bytes(xdp, 0, frame, captured as u32) != 0;
        (*capture).captured = if failed { 0 } else { captured as u32 };
    }
    entry.submit(0);
}
