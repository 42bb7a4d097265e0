//! Bytes of a frame, checked: the only pointer arithmetic of the program.

use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::{bpf_loop, bpf_xdp_adjust_head, bpf_xdp_get_buff_len};
use aya_ebpf::programs::XdpContext;
use core::ffi::c_void;
use push_common::checksum::Delta;
use push_common::tag::Mac;
use zerocopy::{FromBytes, IntoBytes, Unaligned};

/// A frame in the driver's receive buffer. What is beyond the first buffer of several is not seen.
#[derive(Clone, Copy)]
pub(crate) struct Frame<'a> {
    context: &'a XdpContext,
}

/// No offset into a frame that the path computes reaches this; the verifier wants to see a bound.
const OFFSET_MASK: usize = 0x7FF;

impl<'a> Frame<'a> {
    #[inline(always)]
    pub(crate) const fn new(context: &'a XdpContext) -> Self {
        Self { context }
    }

    /// Length of the frame in bytes, over all of its buffers.
    #[inline(always)]
    pub(crate) fn len(self) -> usize {
        // SAFETY: the context is the kernel's own.
        unsafe { bpf_xdp_get_buff_len(self.context.as_ptr().cast()) as usize }
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

    /// Puts `growth` bytes in front of the frame, or takes them away if that is negative. Offsets count
    /// from the new beginning. `None` if the driver hasn't left that much room.
    ///
    /// # Safety
    ///
    /// No reference to the frame may be used any more.
    #[inline(always)]
    pub(crate) unsafe fn grow(self, growth: i32) -> Option<()> {
        // SAFETY: the context is the kernel's own; the rest is the caller's promise.
        let result =
            unsafe { bpf_xdp_adjust_head(self.context.as_ptr().cast(), growth.wrapping_neg()) };
        (result == 0).then_some(())
    }

    /// All bounds checks of the program. The comparison has to be one of 64-bit registers that hold
    /// packet pointers: only that tells the verifier how many bytes are there.
    #[inline(always)]
    fn pointer<T>(self, offset: usize) -> Option<*mut T> {
        let start = self.context.data().wrapping_add(offset & OFFSET_MASK);
        if start.wrapping_add(size_of::<T>()) > self.context.data_end() {
            return None;
        }
        Some(start as *mut T)
    }
}

/// Absorbs the whole words of the `length` bytes of a payload that starts at `offset`, which is at least 8, into `mac`;
/// returns it with the word that ends with the payload's last byte.
///
/// The loop is the kernel's (`bpf_loop`, Linux 5.17), which verifies its body once instead of once
/// for each of the 150 words that a payload can have. It ends early if the frame does; the tag
/// doesn't match then.
#[inline(always)]
pub(crate) fn absorb_payload(
    frame: Frame<'_>,
    mac: Mac,
    offset: usize,
    length: usize,
) -> (Mac, u64) {
    let mut rest = Words {
        frame,
        offset,
        into: mac,
    };
    rest.each::<4>(absorb_words::<4>, length / 8);
    rest.each::<1>(absorb_words::<1>, length / 8 % 4);
    (rest.into, rest.last(length % 8))
}

/// The sum, for a checksum, of `length` bytes that start at `offset`, which is at least 8.
#[inline(always)]
pub(crate) fn sum(frame: Frame<'_>, offset: usize, length: usize) -> Delta {
    let mut rest = Words {
        frame,
        offset,
        into: Delta::ZERO,
    };
    rest.each::<1>(add_word, length / 8);
    match length % 8 {
        0 => rest.into,
        odd => rest
            .into
            .add_u64(rest.last(odd) >> 64_usize.wrapping_sub(odd.wrapping_mul(8))),
    }
}

/// Bytes of a frame, word by word, and what they go into.
struct Words<'a, I> {
    frame: Frame<'a>,
    /// Of the next one.
    offset: usize,
    into: I,
}

impl<I> Words<'_, I> {
    /// Calls `body` for each `N` of `words`, as long as there are so many.
    #[inline(always)]
    fn each<const N: usize>(
        &mut self,
        body: extern "C" fn(u32, &mut Words<'_, I>) -> i64,
        words: usize,
    ) {
        let rounds = words / N;
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

    /// The next `N` words.
    #[inline(always)]
    fn next<const N: usize>(&mut self) -> Option<[u64; N]> {
        let words = self.frame.get::<[[u8; 8]; N]>(self.offset)?;
        self.offset = self.offset.wrapping_add(8_usize.wrapping_mul(N));
        Some(words.map(u64::from_le_bytes))
    }

    /// The word that ends with the last of the `odd` bytes that are left; it begins before them.
    #[inline(always)]
    fn last(&self, odd: usize) -> u64 {
        let at = self.offset.wrapping_add(odd).wrapping_sub(8);
        self.frame
            .get::<[u8; 8]>(at)
            .map_or(0, |word| u64::from_le_bytes(*word))
    }
}

/// Absorbs the next `N` words; 1 ends the loop.
extern "C" fn absorb_words<const N: usize>(_round: u32, rest: &mut Words<'_, Mac>) -> i64 {
    let Some(words) = rest.next::<N>() else {
        return 1;
    };
    for word in words {
        rest.into.absorb_word(word);
    }
    0
}

/// Adds the next word; 1 ends the loop.
extern "C" fn add_word(_round: u32, rest: &mut Words<'_, Delta>) -> i64 {
    let Some([word]) = rest.next() else {
        return 1;
    };
    rest.into = rest.into.add_u64(word);
    0
}
