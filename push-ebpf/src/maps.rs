//! The maps, and what a CPU keeps of its own in them.

use crate::ack::PendingWords;
use crate::datagram::Address;
use crate::nic;
use crate::outbound::{Ip, Outbound, Tunnel};
use crate::shared::{Image, load};
use aya_ebpf::bindings;
use aya_ebpf::btf_maps::{Array, HashMap, LpmTrie, PerCpuArray};
use aya_ebpf::macros::btf_map;
use push_common::maps::{
    Counters, DEFAULT_SESSION_SLOTS, EgressRecord, MAX_EGRESSES, MAX_NEXT_HOPS, MAX_NICS,
    MAX_POLICIES, MAX_SOURCE_PREFIXES, Meta, NextHopRecord, PolicyRecord, PreviousKey,
    SessionRecord, SourcePrefix, VERDICT_SLOTS,
};
use push_common::verdict::Verdict;

#[cfg(feature = "by-hash")]
#[path = "bench/by_hash.rs"]
mod by_hash;
#[cfg(feature = "by-hash")]
pub(crate) use by_hash::SESSIONS;

/// The session table: the slot of a session identifier is the index. Userspace maps it into its memory.
#[cfg(not(feature = "by-hash"))]
#[btf_map(name = "push_sessions")]
pub(crate) static SESSIONS: Array<
    SessionRecord,
    { DEFAULT_SESSION_SLOTS as usize },
    BPF_F_MMAPABLE,
> = Array::new();

/// The one session that is just being changed, whole.
#[btf_map(name = "push_staged")]
pub(crate) static STAGED: Array<SessionRecord, 1, BPF_F_MMAPABLE> = Array::new();

/// Keys of tokens that have been rotated but are still valid, by slot. Empty most of the time.
#[btf_map(name = "push_prev_keys")]
pub(crate) static PREVIOUS_KEYS: HashMap<
    u32,
    PreviousKey,
    { DEFAULT_SESSION_SLOTS as usize },
    { bindings::BPF_F_NO_PREALLOC as usize },
> = HashMap::new();

/// The ways to devices.
#[btf_map(name = "push_next_hops")]
pub(crate) static NEXT_HOPS: Array<NextHopRecord, { MAX_NEXT_HOPS as usize }, BPF_F_MMAPABLE> =
    Array::new();

/// The ways out of the gateway.
#[btf_map(name = "push_egresses")]
pub(crate) static EGRESSES: Array<EgressRecord, { MAX_EGRESSES as usize }, BPF_F_MMAPABLE> =
    Array::new();

/// What applications may do.
#[btf_map(name = "push_policies")]
pub(crate) static POLICIES: Array<PolicyRecord, { MAX_POLICIES as usize }> = Array::new();

/// Where the triggers of applications may come from.
#[btf_map(name = "push_allowed")]
pub(crate) static ALLOWED_SOURCES: LpmTrie<SourcePrefix, u8, { MAX_SOURCE_PREFIXES as usize }> =
    LpmTrie::new();

/// Packets and bytes by verdict, for each NIC.
#[btf_map(name = "push_counters")]
static COUNTERS: PerCpuArray<Counters, { MAX_NICS as usize }> = PerCpuArray::new();

/// What a CPU notes about a packet that takes one of the longer ways. It is kept in a map, as the stack has
/// 512 bytes only, and as the verifier doesn't remember what is in maps.
#[repr(C)]
pub(crate) struct Notes {
    /// Of a session that was being changed.
    pub(crate) image: Image,
    pub(crate) outbound: Outbound,
    pub(crate) tunnel: Tunnel,
    /// The IP header that is to be written next.
    pub(crate) ip: Ip,
    /// Where a datagram comes from and goes to, of which the kernel is asked.
    pub(crate) addresses: [Address; 2],
    pub(crate) pending: PendingWords,
}

impl Notes {
    /// What the outbound datagram goes through.
    ///
    /// # Safety
    ///
    /// `notes` must come from [`notes()`], and nobody change either of them meanwhile.
    #[inline(always)]
    pub(crate) unsafe fn tunnel<'a>(notes: *const Self) -> Option<&'a Tunnel> {
        // SAFETY: the caller's promise.
        unsafe { (*notes).outbound.has_tunnel.then_some(&(*notes).tunnel) }
    }
}

/// One for each CPU.
#[btf_map(name = "push_notes")]
static NOTES: PerCpuArray<Notes, 1> = PerCpuArray::new();

/// Not read by the program: tells the next controller what it would adopt.
#[btf_map(name = "push_meta")]
static META: Array<Meta, 1> = Array::new();

const BPF_F_MMAPABLE: usize = bindings::BPF_F_MMAPABLE as usize;

/// Counts a packet of `length` bytes.
#[inline(always)]
pub(crate) fn count(verdict: Verdict, length: usize) {
    let index = verdict as usize;
    // The compiler knows the bound, the verifier doesn't: it has to see a mask.
    // SAFETY: a local is valid and aligned.
    let index = unsafe { load(&raw const index) } & (VERDICT_SLOTS - 1);
    if let Some(counters) = counters() {
        // SAFETY: the entry is this CPU's alone, and nothing interrupts the program to run it anew.
        let count = unsafe { &mut (*counters).by_verdict[index] };
        count.packets = count.packets.wrapping_add(1);
        count.bytes = count.bytes.wrapping_add(length as u64);
    }
}

/// What this CPU notes.
#[inline(always)]
pub(crate) fn notes() -> Result<*mut Notes, Verdict> {
    NOTES.get_ptr_mut(0).ok_or(Verdict::MissingConfiguration)
}

/// This NIC's, on this CPU.
#[inline(always)]
pub(crate) fn counters() -> Option<*mut Counters> {
    COUNTERS.get_ptr_mut(nic::index())
}
