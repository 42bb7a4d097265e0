//! The tag of a trigger: SipHash-2-4 with 128 bits of output, a PRF, over the first 24 bytes of the
//! trigger header and the payload.

use bytemuck::{Pod, Zeroable};
use core::hash::Hasher;
use siphasher::sip128::{Hasher128, SipHasher24};

/// Length of a tag in bytes.
pub const TAG_LEN: usize = 16;

/// The key of a token generation: the 16 bytes of a SipHash key as two little-endian words.
#[derive(Clone, Copy, PartialEq, Eq, Default, Pod, Zeroable)]
#[repr(C)]
pub struct TagKey([u64; 2]);

/// Overwritten by zeros where that is asked for.
#[cfg(feature = "token")]
impl zeroize::DefaultIsZeroes for TagKey {}

impl TagKey {
    /// The key with these bytes, in the order of the SipHash paper.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        let both = u128::from_le_bytes(bytes);
        Self([both as u64, (both >> 64) as u64])
    }

    /// The bytes of the key, as given to [`TagKey::from_bytes`].
    #[must_use]
    pub const fn to_bytes(self) -> [u8; 16] {
        (self.0[0] as u128 | (self.0[1] as u128) << 64).to_le_bytes()
    }
}

/// Says nothing about the key.
impl core::fmt::Debug for TagKey {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("TagKey(..)")
    }
}

/// A tag under construction, for messages that come in whole words: the state of SipHash (Aumasson and Bernstein,
/// "SipHash: a fast short-input PRF", and the reference implementation for its 128 bits of output).
///
/// [`tag`] is siphasher's. That takes bytes, too, so that it asks before each word whether there are some left from
/// before; where a payload is absorbed in the kernel's loop, all of this took twice the instructions.
#[derive(Clone, Copy)]
pub struct Mac([u64; 4]);

impl Mac {
    /// An empty message under `key`.
    #[inline(always)]
    #[must_use]
    pub const fn new(key: TagKey) -> Self {
        let TagKey([k0, k1]) = key;
        Self([
            k0 ^ 0x736f_6d65_7073_6575,
            k1 ^ 0x646f_7261_6e64_6f6d ^ 0xee,
            k0 ^ 0x6c79_6765_6e65_7261,
            k1 ^ 0x7465_6462_7974_6573,
        ])
    }

    /// Appends eight bytes, the first in memory as the least significant.
    #[inline(always)]
    pub fn absorb_word(&mut self, word: u64) {
        self.0[3] ^= word;
        self.round();
        self.round();
        self.0[0] ^= word;
    }

    /// The tag as two words that, little-endian and one after the other, are its bytes. The message is `length` bytes
    /// long in all; those behind its last whole word are the last in memory of `end`.
    #[inline(always)]
    #[must_use]
    pub fn finish(mut self, end: u64, length: usize) -> [u64; 2] {
        // Two shifts, as one by all 64 bits isn't one.
        let odd = (end >> 8) >> (56 - 8 * (length as u64 % 8));
        self.absorb_word(odd | (length as u64) << 56);
        self.0[2] ^= 0xee;
        let low = self.four_rounds();
        self.0[1] ^= 0xdd;
        [low, self.four_rounds()]
    }

    #[inline(always)]
    fn four_rounds(&mut self) -> u64 {
        self.round();
        self.round();
        self.round();
        self.round();
        let [v0, v1, v2, v3] = self.0;
        v0 ^ v1 ^ v2 ^ v3
    }

    #[inline(always)]
    fn round(&mut self) {
        let [v0, v1, v2, v3] = &mut self.0;
        mix::<13>(v0, v1);
        mix::<16>(v2, v3);
        *v0 = v0.rotate_left(32);
        mix::<21>(v0, v3);
        mix::<17>(v2, v1);
        *v2 = v2.rotate_left(32);
    }
}

/// A quarter of a round: adds `b` to `a`, and what comes out to `b` rotated by `N` bits, without carries.
#[inline(always)]
fn mix<const N: u32>(a: &mut u64, b: &mut u64) {
    #[cfg(not(target_arch = "bpf"))]
    {
        *a = a.wrapping_add(*b);
        *b = b.rotate_left(N) ^ *a;
    }
    // From the lines above, the compiler makes a third more of it, most of that moves from register to register.
    #[cfg(target_arch = "bpf")]
    #[expect(unsafe_code, reason = "what it takes in assembler")]
    // SAFETY: it changes these registers alone.
    unsafe {
        core::arch::asm!(
            "{a} += {b}",
            "{high} = {b}",
            "{high} >>= 64 - {n}",
            "{b} <<= {n}",
            "{b} |= {high}",
            "{b} ^= {a}",
            a = inout(reg) *a,
            b = inout(reg) *b,
            high = out(reg) _,
            n = const N,
            options(pure, nomem, nostack),
        );
    }
}

/// The tag over `signed` (the first 24 bytes of a trigger header) and `payload` under `key`.
#[must_use]
pub fn tag(key: TagKey, signed: &[u8; 24], payload: &[u8]) -> [u8; TAG_LEN] {
    let mut hasher = SipHasher24::new_with_keys(key.0[0], key.0[1]);
    hasher.write(signed);
    hasher.write(payload);
    let hash = hasher.finish128();
    (u128::from(hash.h1) | u128::from(hash.h2) << 64).to_le_bytes()
}

/// A tag as the two words that [`Mac::finish`] gives.
#[inline(always)]
#[must_use]
pub const fn words(tag: [u8; TAG_LEN]) -> [u64; 2] {
    let both = u128::from_le_bytes(tag);
    [both as u64, (both >> 64) as u64]
}

/// Whether two tags are the same, in a time that doesn't depend on where they differ.
#[inline(always)]
#[must_use]
pub const fn equal(a: [u64; 2], b: [u64; 2]) -> bool {
    // Else the compiler sees two comparisons in it, with a branch for each.
    core::hint::black_box((a[0] ^ b[0]) | (a[1] ^ b[1])) == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn first_vectors_of_the_siphash_reference() {
        // vectors_sip128 of the reference implementation: key 00..0f, messages of 0 and 1 byte.
        let key = TagKey::from_bytes(core::array::from_fn(|i| i as u8));
        let mac = Mac::new(key);
        let of_none = [0xe6a8_25ba_047f_81a3, 0x9302_55c7_1472_f66d];
        let of_one = [0x44af_996b_d8c1_87da, 0x45fc_229b_1159_7634];
        assert_eq!(mac.finish(u64::MAX, 0), of_none);
        assert_eq!(mac.finish(0x00FF_FFFF_FFFF_FFFF, 1), of_one);
    }

    proptest! {
        /// The XDP program absorbs whole words, then the odd bytes from the word that ends with them.
        #[test]
        fn words_and_odd_bytes_make_the_same_tag(
            key in any::<[u8; 16]>(), signed in any::<[u8; 24]>(),
            payload in proptest::collection::vec(any::<u8>(), 8..64),
        ) {
            let mut mac = Mac::new(TagKey::from_bytes(key));
            let (words, odd) = payload.as_chunks::<8>();
            for word in signed.as_chunks::<8>().0.iter().chain(words) {
                mac.absorb_word(u64::from_le_bytes(*word));
            }
            let end = u64::from_le_bytes(*payload.last_chunk::<8>().unwrap());
            prop_assert_eq!(odd.len(), payload.len() % 8);
            let [low, high] = mac.finish(end, 24 + payload.len());
            let bytes = (u128::from(low) | u128::from(high) << 64).to_le_bytes();
            prop_assert_eq!(bytes, tag(TagKey::from_bytes(key), &signed, &payload));
        }
    }
}
