//! Global functions: the verifier goes through each once, by itself, and knows nothing of what it returns
//! but its type. So what is rare, or has many ways through, costs it nothing where it is called.
//!
//! They take the context, plain words, and pointers to memory of a known size, which the verifier thinks may be
//! null; they return a word.

use push_common::verdict::Verdict;

/// Defines functions as global ones.
macro_rules! global {
    ($( $(#[doc = $meaning:literal])* fn $name:ident($($argument:ident: $type:ty),* $(,)?) -> $returned:ty $body:block )*) => {
        $(
            $(#[doc = $meaning])*
            #[inline(never)]
            #[cfg_attr(target_arch = "bpf", unsafe(no_mangle))]
            extern "C" fn $name($($argument: $type),*) -> $returned $body
        )*
    };
}

const REFUSED: u64 = 1 << 63;

/// What a global function returns: a number below 2^63, or a verdict.
#[inline(always)]
pub(crate) fn word_of(result: Result<u64, Verdict>) -> u64 {
    match result {
        Ok(word) => word,
        Err(verdict) => REFUSED | verdict as u64,
    }
}

/// What a global function has returned by [`word_of`].
#[inline(always)]
pub(crate) fn result_of(word: u64) -> Result<u64, Verdict> {
    if word & REFUSED == 0 {
        return Ok(word);
    }
    // SAFETY: a global function has made it of one.
    Err(unsafe { verdict_of(word) })
}

/// The verdict whose number is in the low half of `word`.
///
/// # Safety
///
/// There has to be one.
#[inline(always)]
pub(crate) unsafe fn verdict_of(word: u64) -> Verdict {
    // SAFETY: the caller's promise.
    unsafe { core::mem::transmute::<u32, Verdict>(word as u32) }
}
