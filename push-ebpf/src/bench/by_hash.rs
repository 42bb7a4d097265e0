//! For comparison: sessions in a hash map, by slot.

use aya_ebpf::btf_maps::HashMap;
use aya_ebpf::macros::btf_map;
use push_common::maps::{DEFAULT_SESSION_SLOTS, SessionRecord};

/// What is in a hash map is aligned to words.
type Words = [u64; size_of::<SessionRecord>() / 8];

#[btf_map(name = "push_by_hash")]
static BY_HASH: HashMap<u32, Words, { DEFAULT_SESSION_SLOTS as usize }> = HashMap::new();

/// Stands for the array.
pub(crate) struct Sessions;

pub(crate) static SESSIONS: Sessions = Sessions;

impl Sessions {
    #[inline(always)]
    pub(crate) fn get_ptr_mut(&self, slot: u32) -> Option<*mut SessionRecord> {
        BY_HASH.get_ptr_mut(slot).map(<*mut Words>::cast)
    }
}
