//! Memory that other CPUs and the controller change at the same time.
//!
//! Rust has no compare-and-swap and no atomic load for the BPF target: loads here are volatile, the
//! rest are intrinsics, which become the BPF instructions of the same names. Those that return a
//! value are fully ordered on every architecture.

use crate::datagram::Address;
use crate::global::{result_of, word_of};
use crate::maps::{SESSIONS, STAGED, notes};
#[cfg(target_arch = "bpf")]
use core::intrinsics::{AtomicOrdering, atomic_cxchg, atomic_xadd};
#[cfg(not(target_arch = "bpf"))]
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use push_common::maps::{SessionControl, SessionRecord};
use push_common::tag::TagKey;
use push_common::verdict::Verdict;
use push_common::wire::SessionId;

/// A record of the session table.
#[derive(Clone, Copy)]
pub(crate) struct Session(*mut SessionRecord);

/// What belongs together of a record, as it was at one moment.
#[derive(Clone, Copy)]
pub(crate) struct Image {
    control: u64,
    /// Of the current token generation.
    pub(crate) key: TagKey,
    pub(crate) device: Address,
    pub(crate) teid: u32,
}

impl Image {
    /// Taken apart where something of it is needed: one word is less to keep than all that is in it.
    #[inline(always)]
    pub(crate) fn control(&self) -> SessionControl {
        bytemuck::must_cast(self.control)
    }

    /// 1 if the device has an IPv6 address: a number to compare and calculate with, without a branch, after which the
    /// verifier would go on twice.
    #[inline(always)]
    pub(crate) const fn is_v6(&self) -> u64 {
        const _: () = assert!(SessionControl::IPV6 == 1);
        self.control >> 56 & 1
    }
}

/// Attempts at reading a record that the controller changes at the same time. One fails only if the
/// controller has just got to the next step of a change.
const IMAGE_ATTEMPTS: u32 = 4;

impl Session {
    /// # Safety
    ///
    /// `record` must point to an element of the session table, or of the map of the staged record.
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
    pub(crate) fn expires_tick(self) -> u32 {
        // SAFETY: as above.
        unsafe { load(&raw const (*self.0).expires_tick) }
    }

    /// The session with this identifier, and what its record says at one moment.
    #[inline(always)]
    pub(crate) fn live(id: SessionId) -> Result<(Self, Image), Verdict> {
        let record = SESSIONS.get_ptr_mut(id.slot());
        // SAFETY: the map has just given it out.
        let session = unsafe { Self::new(record.ok_or(Verdict::UnknownSession)?) };
        if id.generation() == 0 || session.generation() != id.generation() {
            return Err(Verdict::UnknownSession);
        }
        let image = session.image(id.slot())?;
        // Its owner may have gone meanwhile: then this is half his, or of another one.
        if session.generation() != id.generation() {
            return Err(Verdict::UnknownSession);
        }
        Ok((session, image))
    }

    #[inline(always)]
    fn image(self, slot: u32) -> Result<Image, Verdict> {
        let control = self.control_word();
        let image = self.read(control);
        if !image.control().has(SessionControl::STAGED) && self.control_word() == control {
            return Ok(image);
        }
        result_of(push_image(slot))?;
        // SAFETY: the notes are this CPU's alone.
        Ok(unsafe { (*notes()?).image })
    }

    #[inline(always)]
    fn read(self, control: u64) -> Image {
        // SAFETY: as above; the address starts at a multiple of 8.
        unsafe {
            Image {
                control,
                key: load(&raw const (*self.0).key),
                device: load((&raw const (*self.0).device_address).cast()),
                teid: load((&raw const (*self.0).teid).cast()),
            }
        }
    }

    /// [`SessionControl`] as the word that it is: a struct would be read field by field.
    #[inline(always)]
    fn control_word(self) -> u64 {
        // SAFETY: as above, and the controls are aligned to words.
        unsafe { load((&raw const (*self.0).control).cast()) }
    }

    /// Word `index` (below 4) of the replay window.
    #[inline(always)]
    pub(crate) fn replay(self, index: usize) -> Word {
        // SAFETY: as above, and the mask keeps the index in the array.
        Word(unsafe { (&raw mut (*self.0).replay).cast::<u64>().add(index & 3) })
    }

    /// When the rate limit's bucket is full.
    #[inline(always)]
    pub(crate) fn full_at_ns(self) -> Word {
        // SAFETY: as above.
        Word(unsafe { &raw mut (*self.0).full_at_ns })
    }

    #[inline(always)]
    pub(crate) fn activity(self) -> Word {
        // SAFETY: as above.
        Word(unsafe { &raw mut (*self.0).activity })
    }

    /// Counts a delivery.
    #[inline(always)]
    pub(crate) fn delivered(self, frame_length: u64) {
        // SAFETY: as above.
        unsafe {
            add(&raw mut (*self.0).packets, 1);
            add(&raw mut (*self.0).bytes, frame_length);
        }
    }

    /// Counts a trigger that a policy refused.
    #[inline(always)]
    pub(crate) fn refused(self) {
        // SAFETY: as above.
        unsafe { add_u32(&raw mut (*self.0).refused, 1) }
    }

    /// Counts an acknowledgement, and takes its round-trip time into account (RFC 6298, 2.3).
    #[inline(always)]
    pub(crate) fn acknowledged(self, round_trip_us: u32) {
        // SAFETY: as above. Of two acknowledgements at the same time, one may not be taken into account.
        unsafe {
            add_u32(&raw mut (*self.0).acknowledged, 1);
            let smoothed = &raw mut (*self.0).round_trip_us;
            let before = load(smoothed.cast_const());
            let after = if before == 0 {
                round_trip_us
            } else {
                before
                    .wrapping_sub(before / 8)
                    .saturating_add(round_trip_us / 8)
            };
            smoothed.write_volatile(if after == 0 { 1 } else { after });
        }
    }
}

global! {
    /// What a record that is being changed, or the staged one in its place, says at one moment.
    /// Notes it.
    fn push_image(slot: u32) -> u64 {
        let (Some(record), Some(staged), Ok(notes)) =
            (SESSIONS.get_ptr_mut(slot), STAGED.get_ptr_mut(0), notes())
        else {
            return word_of(Err(Verdict::MissingConfiguration));
        };
        // SAFETY: the maps have just given them out.
        let (session, staged) = unsafe { (Session::new(record), Session::new(staged)) };
        for _ in 0..IMAGE_ATTEMPTS {
            let control = session.control_word();
            let is_staged =
                bytemuck::must_cast::<_, SessionControl>(control).has(SessionControl::STAGED);
            let image = if is_staged {
                staged.read(staged.control_word())
            } else {
                session.read(control)
            };
            if session.control_word() == control {
                // SAFETY: the notes are this CPU's alone.
                unsafe { (*notes).image = image };
                return word_of(Ok(0));
            }
        }
        word_of(Err(Verdict::SessionChanging))
    }
}

/// A word that several CPUs change.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct Word(*mut u64);

impl Word {
    /// As global functions take it.
    #[inline(always)]
    pub(crate) const fn as_ptr(self) -> *mut u64 {
        self.0
    }

    /// # Safety
    ///
    /// As from [`Word::as_ptr`].
    #[inline(always)]
    pub(crate) const unsafe fn from_ptr(word: *mut u64) -> Self {
        Self(word)
    }

    #[inline(always)]
    pub(crate) fn load(self) -> u64 {
        // SAFETY: it is one of a live record, and aligned.
        unsafe { load(self.0) }
    }

    /// Stores `new` if the word is still `old`; says whether it was.
    #[inline(always)]
    pub(crate) fn swap_if(self, old: u64, new: u64) -> bool {
        // SAFETY: as above.
        unsafe { swap_if(self.0, old, new) }
    }
}

/// What is different between two words, of which the compiler knows nothing but that. (From
/// [`core::hint::black_box`] it would come back by way of memory.)
#[inline(always)]
pub(crate) fn difference(one: u64, other: u64) -> u64 {
    #[cfg(target_arch = "bpf")]
    {
        let mut both = one;
        // SAFETY: it changes that register alone.
        unsafe {
            core::arch::asm!("{0} ^= {1}", inout(reg) both, in(reg) other, options(nomem, nostack));
        }
        both
    }
    #[cfg(not(target_arch = "bpf"))]
    {
        one ^ other
    }
}

/// Reads `*word` once. Up to 8 aligned bytes come from one moment if they are an integer: a struct is
/// read field by field.
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
        // What it also returns, whether it was, would be kept as a value and looked at again.
        difference(atomic_cxchg::<u64, RELAXED, RELAXED>(word, old, new).0, old) == 0
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
pub(crate) unsafe fn add(word: *mut u64, n: u64) {
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

/// Adds `n` to `*word`.
///
/// # Safety
///
/// `word` must be valid for reads and writes, and aligned.
#[inline(always)]
unsafe fn add_u32(word: *mut u32, n: u32) {
    // SAFETY: the caller's promise.
    #[cfg(target_arch = "bpf")]
    unsafe {
        atomic_xadd::<u32, u32, { AtomicOrdering::Relaxed }>(word, n);
    }
    // SAFETY: the caller's promise.
    #[cfg(not(target_arch = "bpf"))]
    unsafe {
        AtomicU32::from_ptr(word).fetch_add(n, Ordering::Relaxed);
    }
}
