//! Bytes of a frame, checked: the only pointer arithmetic of the program.

use aya_ebpf::bindings::xdp_md;
use aya_ebpf::helpers::{bpf_loop, bpf_xdp_adjust_head, bpf_xdp_get_buff_len};
use core::ffi::c_void;
use core::hint::assert_unchecked;
use core::marker::PhantomData;
use push_common::checksum::Delta;
use push_common::tag::Mac;
use zerocopy::{FromBytes, IntoBytes, Unaligned};

/// A frame in the driver's receive buffer. What is beyond the first buffer of several is not seen.
#[derive(Clone, Copy)]
pub(crate) struct Frame<'a> {
    context: *mut xdp_md,
    bytes: PhantomData<&'a [u8]>,
}

/// No offset into a frame that the path computes reaches this; the verifier wants to see a bound.
const OFFSET_MASK: usize = 0x7FF;

impl<'a> Frame<'a> {
    /// # Safety
    ///
    /// `context` must be what the kernel has called the program with, and the program must run for 'a.
    #[inline(always)]
    pub(crate) const unsafe fn new(context: *mut xdp_md) -> Self {
        Self {
            context,
            bytes: PhantomData,
        }
    }

    /// As the kernel and global functions take it.
    #[inline(always)]
    pub(crate) const fn context(self) -> *mut xdp_md {
        self.context
    }

    /// Length of the frame in bytes, over all of its buffers.
    #[inline(always)]
    pub(crate) fn len(self) -> usize {
        // SAFETY: the context is the kernel's own.
        unsafe { bpf_xdp_get_buff_len(self.context) as usize }
    }

    /// Index of the NIC that it came in by.
    #[inline(always)]
    pub(crate) fn interface(self) -> u32 {
        // SAFETY: as above.
        unsafe { (*self.context).ingress_ifindex }
    }

    /// What lies at `offset`, if all of it is inside of the first buffer.
    #[inline(always)]
    pub(crate) fn get<T: FromBytes + Unaligned>(self, offset: usize) -> Option<&'a T> {
        // SAFETY: all of the T is inside of the frame, which outlives 'a; any bytes make a T, at any
        // address; no exclusive reference from `get_mut` is alive, see there.
        self.pointer(offset).map(|pointer| unsafe { &*pointer })
    }

    /// What lies at `offset`, to be changed, if all of it is inside of the first buffer.
    ///
    /// # Safety
    ///
    /// No other reference to these bytes may be used while this one is.
    #[inline(always)]
    pub(crate) unsafe fn get_mut<T: FromBytes + IntoBytes + Unaligned>(
        self,
        offset: usize,
    ) -> Option<&'a mut T> {
        // SAFETY: as in `get`; that there is no other reference is the caller's promise.
        self.pointer(offset).map(|pointer| unsafe { &mut *pointer })
    }

    /// The eight bytes before `end`, as one word.
    #[inline(always)]
    pub(crate) fn word_before(self, end: usize) -> Option<u64> {
        self.get::<[u8; 8]>(end.wrapping_sub(8))
            .map(|word| u64::from_le_bytes(*word))
    }

    /// Puts `growth` bytes in front of the frame, or takes them away if that is negative. Offsets count
    /// from the new beginning. `None` if the driver hasn't left that much room.
    ///
    /// # Safety
    ///
    /// No reference to the frame may be used any more.
    #[inline(always)]
    pub(crate) unsafe fn grow(self, growth: i32) -> Option<()> {
        // SAFETY: the context is the kernel's own; the rest is the caller's promise.
        let result = unsafe { bpf_xdp_adjust_head(self.context, growth.wrapping_neg()) };
        (result == 0).then_some(())
    }

    /// All bounds checks of the program. The comparison has to be one of 64-bit registers that hold
    /// packet pointers: only that tells the verifier how many bytes are there.
    #[inline(always)]
    fn pointer<T>(self, offset: usize) -> Option<*mut T> {
        // SAFETY: the context is the kernel's own.
        let (data, data_end) = unsafe { ((*self.context).data, (*self.context).data_end) };
        let start = (data as usize).wrapping_add(offset & OFFSET_MASK);
        if start.wrapping_add(size_of::<T>()) > data_end as usize {
            return None;
        }
        // SAFETY: no frame starts at address 0.
        unsafe { assert_unchecked(start != 0) };
        Some(start as *mut T)
    }
}

/// Words that are absorbed in one round, as each round costs a call.
const WORDS_AT_ONCE: usize = 4;

/// Absorbs the whole words of `length` bytes of a payload that starts at `offset` into `mac`.
///
/// The loop is the kernel's (`bpf_loop`, Linux 5.17), which verifies its body once instead of once
/// for each of the 150 words that a payload can have. It ends early if the frame does; the tag
/// doesn't match then.
#[inline(always)]
pub(crate) fn absorb_payload(frame: Frame<'_>, mac: Mac, offset: usize, length: usize) -> Mac {
    if length < 8 {
        return mac;
    }
    let mut rest = Words {
        frame,
        offset,
        into: mac,
    };
    let rounds = length / 8 / WORDS_AT_ONCE;
    rest.each(absorb_words, rounds);
    rest.offset = offset.wrapping_add(rounds.wrapping_mul(8 * WORDS_AT_ONCE));
    rest.each(absorb_word, length / 8 % WORDS_AT_ONCE);
    rest.into
}

/// The sum, for a checksum, of `length` bytes that start at `offset`, which is at least 8.
#[inline(always)]
pub(crate) fn sum(frame: Frame<'_>, offset: usize, length: usize) -> Delta {
    let mut rest = Words {
        frame,
        offset,
        into: Delta::ZERO,
    };
    rest.each(add_word, length / 8);
    match length % 8 {
        0 => rest.into,
        odd => rest.into.add_u64(
            frame.word_before(offset.wrapping_add(length)).unwrap_or(0)
                >> 64_usize.wrapping_sub(odd.wrapping_mul(8)),
        ),
    }
}

/// Bytes of a frame, word by word, and what they go into.
struct Words<'a, I> {
    frame: Frame<'a>,
    offset: usize,
    into: I,
}

impl<I> Words<'_, I> {
    /// Calls `body` so often.
    #[inline(always)]
    fn each(&mut self, body: extern "C" fn(u32, &mut Words<'_, I>) -> i64, rounds: usize) {
        // SAFETY: the kernel calls `body` with the number of a round, and `self`, on this stack.
        unsafe {
            bpf_loop(
                rounds as u32,
                body as *mut c_void,
                (&raw mut *self).cast(),
                0,
            );
        }
    }

    /// The words of this round. (What changed with each round, the verifier would go through for each.)
    #[inline(always)]
    fn of_round<const N: usize>(&self, round: u32) -> Option<[u64; N]> {
        let offset = (round as usize).wrapping_mul(N.wrapping_mul(8));
        let words = self
            .frame
            .get::<[[u8; 8]; N]>(self.offset.wrapping_add(offset))?;
        Some(words.map(u64::from_le_bytes))
    }
}

/// Absorbs the words of a round; 1 ends the loop.
extern "C" fn absorb_words(round: u32, rest: &mut Words<'_, Mac>) -> i64 {
    let Some(words) = rest.of_round::<WORDS_AT_ONCE>(round) else {
        return 1;
    };
    for word in words {
        rest.into.absorb_word(word);
    }
    0
}

/// Absorbs the word of a round; 1 ends the loop.
extern "C" fn absorb_word(round: u32, rest: &mut Words<'_, Mac>) -> i64 {
    let Some([word]) = rest.of_round(round) else {
        return 1;
    };
    rest.into.absorb_word(word);
    0
}

/// Adds the word of a round; 1 ends the loop.
extern "C" fn add_word(round: u32, rest: &mut Words<'_, Delta>) -> i64 {
    let Some([word]) = rest.of_round(round) else {
        return 1;
    };
    rest.into = rest.into.add_u64(word);
    0
}
