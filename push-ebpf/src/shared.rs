//! Memory that other CPUs and the controller change at the same time.
//!
//! Rust has no compare-and-swap and no atomic load for the BPF target: loads here are volatile, the
//! rest are intrinsics, which become the BPF instructions of the same names. Those that return a
//! value are fully ordered on every architecture.

#[cfg(target_arch = "bpf")]
use core::intrinsics::{AtomicOrdering, atomic_cxchg, atomic_xadd};
#[cfg(not(target_arch = "bpf"))]
use core::sync::atomic::{AtomicU64, Ordering};
use push_common::maps::{SessionControl, SessionRecord};
use push_common::tag::TagKey;

/// A record of the session table.
#[derive(Clone, Copy)]
pub(crate) struct Session(*mut SessionRecord);

impl Session {
    /// # Safety
    ///
    /// `record` must point to an element of the session table.
    #[inline(always)]
    pub(crate) const unsafe fn new(record: *mut SessionRecord) -> Self {
        Self(record)
    }

    #[inline(always)]
    pub(crate) fn generation(self) -> u32 {
        // SAFETY: an element of an array map is valid, and aligned, for as long as the program runs.
        unsafe { load(&raw const (*self.0).generation) }
    }

    #[inline(always)]
    pub(crate) fn control(self) -> SessionControl {
        // SAFETY: as above.
        unsafe { load(&raw const (*self.0).control) }
    }

    #[inline(always)]
    pub(crate) fn expires_tick(self) -> u32 {
        // SAFETY: as above.
        unsafe { load(&raw const (*self.0).expires_tick) }
    }

    /// Key of a token generation; meaningful while [`Session::control`] stays the same.
    #[inline(always)]
    pub(crate) fn key(self, token_generation: u8) -> TagKey {
        // SAFETY: as above, and the index is 0 or 1.
        unsafe {
            load(
                (&raw const (*self.0).keys)
                    .cast::<TagKey>()
                    .add(usize::from(token_generation & 1)),
            )
        }
    }

    /// Address of the device; meaningful while [`Session::control`] stays the same.
    #[inline(always)]
    pub(crate) fn device_address(self) -> [u64; 2] {
        // SAFETY: as above; the field starts at a multiple of 8.
        unsafe { load((&raw const (*self.0).device_address).cast()) }
    }

    /// Word `index` (below 4) of the replay window.
    #[inline(always)]
    pub(crate) fn replay_word(self, index: usize) -> u64 {
        // SAFETY: as above.
        unsafe { load(self.replay(index)) }
    }

    /// Replaces word `index` (below 4) of the replay window if it still is `old`; says whether it was.
    #[inline(always)]
    pub(crate) fn swap_replay_word(self, index: usize, old: u64, new: u64) -> bool {
        // SAFETY: as above.
        unsafe { swap_if(self.replay(index), old, new) }
    }

    /// Counts a delivery.
    #[inline(always)]
    pub(crate) fn delivered(self, frame_length: u64, now_ns: u64) {
        // SAFETY: as above.
        unsafe {
            add(&raw mut (*self.0).packets, 1);
            add(&raw mut (*self.0).bytes, frame_length);
            (&raw mut (*self.0).last_delivered_ns).write_volatile(now_ns);
        }
    }

    #[inline(always)]
    fn replay(self, index: usize) -> *mut u64 {
        // SAFETY: as above, and the mask keeps the index in the array.
        unsafe { (&raw mut (*self.0).replay).cast::<u64>().add(index & 3) }
    }
}

/// Reads `*word` once. Up to 8 aligned bytes come from one moment.
///
/// # Safety
///
/// `word` must be valid for reads, and aligned.
#[inline(always)]
pub(crate) unsafe fn load<T: Copy>(word: *const T) -> T {
    // SAFETY: the caller's promise.
    unsafe { word.read_volatile() }
}

/// Stores `new` if `*word` is still `old`; says whether it was.
///
/// # Safety
///
/// `word` must be valid for reads and writes, and aligned.
#[inline(always)]
unsafe fn swap_if(word: *mut u64, old: u64, new: u64) -> bool {
    // SAFETY: the caller's promise.
    #[cfg(target_arch = "bpf")]
    unsafe {
        const RELAXED: AtomicOrdering = AtomicOrdering::Relaxed;
        atomic_cxchg::<u64, RELAXED, RELAXED>(word, old, new).1
    }
    // SAFETY: the caller's promise.
    #[cfg(not(target_arch = "bpf"))]
    unsafe {
        let word = AtomicU64::from_ptr(word);
        word.compare_exchange(old, new, Ordering::Relaxed, Ordering::Relaxed)
            .is_ok()
    }
}

/// Adds `n` to `*word`.
///
/// # Safety
///
/// `word` must be valid for reads and writes, and aligned.
#[inline(always)]
unsafe fn add(word: *mut u64, n: u64) {
    // SAFETY: the caller's promise.
    #[cfg(target_arch = "bpf")]
    unsafe {
        atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(word, n);
    }
    // SAFETY: the caller's promise.
    #[cfg(not(target_arch = "bpf"))]
    unsafe {
        AtomicU64::from_ptr(word).fetch_add(n, Ordering::Relaxed);
    }
}
