//! Bytes of a frame, checked: the only pointer arithmetic of the program.

use aya_ebpf::helpers::bpf_loop;
use aya_ebpf::programs::XdpContext;
use core::ffi::c_void;
use push_common::tag::Mac;
use zerocopy::{FromBytes, IntoBytes, Unaligned};

/// A frame in the driver's receive buffer.
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

    /// Length of the frame in bytes.
    #[inline(always)]
    pub(crate) fn len(self) -> usize {
        self.context.data_end().wrapping_sub(self.context.data())
    }

    /// What lies at `offset`, if all of it is inside of the frame.
    #[inline(always)]
    pub(crate) fn get<T: FromBytes + Unaligned>(self, offset: usize) -> Option<&'a T> {
        // SAFETY: all of the T is inside of the frame, which outlives 'a; any bytes make a T, at any
        // address; no exclusive reference from `get_mut` is alive, see there.
        self.pointer(offset).map(|pointer| unsafe { &*pointer })
    }

    /// What lies at `offset`, to be changed, if all of it is inside of the frame.
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

    /// All bounds checks of the program. The comparison has to be one of 64-bit registers that hold
    /// packet pointers: only that tells the verifier how many bytes are there.
    #[inline(always)]
    fn pointer<T>(self, offset: usize) -> Option<*mut T> {
        let start = self.context.data().wrapping_add(offset);
        if start.wrapping_add(size_of::<T>()) > self.context.data_end() {
            return None;
        }
        Some(start as *mut T)
    }
}

/// Absorbs `length` bytes of a payload that starts at `offset`, which is at least 8, into `mac`.
///
/// The loop is the kernel's (`bpf_loop`, Linux 5.17), which verifies its body once instead of once
/// for each of the 150 words that a payload can have. It ends early if the frame does; the tag
/// doesn't match then.
#[inline(always)]
pub(crate) fn absorb_payload(frame: Frame<'_>, mac: Mac, offset: usize, length: usize) -> Mac {
    let mut rest = Rest { frame, mac, offset };
    // SAFETY: the kernel calls `absorb_word` with the number of a round, and `rest`, on this stack.
    unsafe {
        let body: unsafe extern "C" fn(u32, &mut Rest<'_>) -> i64 = absorb_word;
        let words = (length / 8) as u32;
        bpf_loop(words, body as *mut c_void, (&raw mut rest).cast(), 0);
    }
    // The odd bytes end the word that ends with the payload; it may begin before the payload does.
    let end = offset.wrapping_add(length).wrapping_sub(8) & OFFSET_MASK;
    let word = frame
        .get::<[u8; 8]>(end)
        .map_or(0, |word| u64::from_le_bytes(*word));
    rest.mac.absorb_end_of_word(word, length % 8);
    rest.mac
}

struct Rest<'a> {
    frame: Frame<'a>,
    mac: Mac,
    offset: usize,
}

/// Absorbs word number `round` of the payload; 1 ends the loop.
extern "C" fn absorb_word(round: u32, rest: &mut Rest<'_>) -> i64 {
    let offset = rest.offset.wrapping_add((round as usize).wrapping_mul(8)) & OFFSET_MASK;
    let Some(word) = rest.frame.get::<[u8; 8]>(offset) else {
        return 1;
    };
    rest.mac.absorb_word(u64::from_le_bytes(*word));
    0
}
