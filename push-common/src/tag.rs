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

/// A tag under construction.
#[derive(Clone, Copy)]
pub struct Mac(SipHasher24);

impl Mac {
    /// An empty message under `key`.
    #[inline(always)]
    #[must_use]
    pub fn new(key: TagKey) -> Self {
        Self(SipHasher24::new_with_keys(key.0[0], key.0[1]))
    }

    /// Appends eight bytes, the first in memory as the least significant.
    #[inline(always)]
    pub fn absorb_word(&mut self, word: u64) {
        self.0.write_u64(word);
    }

    /// Appends the last `count` bytes in memory of `word`; `count` is below 8.
    #[inline(always)]
    pub fn absorb_end_of_word(&mut self, word: u64, count: usize) {
        let mut rest = if count == 0 {
            0
        } else {
            word >> (64 - 8 * count)
        };
        if count & 4 != 0 {
            self.0.write_u32(rest as u32);
            rest >>= 32;
        }
        if count & 2 != 0 {
            self.0.write_u16(rest as u16);
            rest >>= 16;
        }
        if count & 1 != 0 {
            self.0.write_u8(rest as u8);
        }
    }

    /// The tag as two words that, little-endian and one after the other, are its bytes.
    #[inline(always)]
    #[must_use]
    pub fn finish(&self) -> [u64; 2] {
        let hash = self.0.finish128();
        [hash.h1, hash.h2]
    }
}

/// The tag over `signed` (the first 24 bytes of a trigger header) and `payload` under `key`.
#[must_use]
pub fn tag(key: TagKey, signed: &[u8; 24], payload: &[u8]) -> [u8; TAG_LEN] {
    let mut mac = Mac::new(key);
    mac.0.write(signed);
    mac.0.write(payload);
    let [low, high] = mac.finish();
    (u128::from(low) | u128::from(high) << 64).to_le_bytes()
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
        let mut mac = Mac::new(key);
        assert_eq!(mac.finish(), [0xe6a8_25ba_047f_81a3, 0x9302_55c7_1472_f66d]);
        mac.absorb_end_of_word(0x00FF_FFFF_FFFF_FFFF, 1);
        assert_eq!(mac.finish(), [0x44af_996b_d8c1_87da, 0x45fc_229b_1159_7634]);
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
            mac.absorb_end_of_word(end, odd.len());
            let [low, high] = mac.finish();
            let bytes = (u128::from(low) | u128::from(high) << 64).to_le_bytes();
            prop_assert_eq!(bytes, tag(TagKey::from_bytes(key), &signed, &payload));
        }
    }
}
