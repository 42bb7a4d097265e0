//! Random numbers that nobody can guess.

use std::num::NonZeroU32;

/// Random bytes.
///
/// # Panics
///
/// If the operating system has none, which on Linux can't be once it is up.
#[must_use]
pub fn bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the operating system has random numbers");
    bytes
}

/// A random number that is not 0.
#[must_use]
pub fn nonzero_u32() -> NonZeroU32 {
    loop {
        if let Some(number) = NonZeroU32::new(u32::from_ne_bytes(bytes())) {
            return number;
        }
    }
}
