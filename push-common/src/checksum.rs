//! Incremental update of Internet checksums (RFC 1071, RFC 1624).
//!
//! A checksum that was wrong before an update is wrong after it, by the same amount: rewriting a
//! corrupt datagram never makes it look intact.

/// What a set of replaced 16-bit words does to a checksum.
///
/// Words are taken as they lie in memory; the ones' complement sum doesn't depend on byte order
/// (RFC 1071, section 2(B)), as long as the checksum is taken from memory the same way.
///
/// It is a number above 0 and below 2^48 that counts modulo 2^16 - 1, and so does 2^16 as 1. That is enough for what
/// is in a thousand words of 32 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delta(u64);

impl Delta {
    /// Of nothing: a multiple of 2^16 - 1, of which there is enough to take from.
    pub const ZERO: Self = Self(0xFFFF << 28);

    /// Accounts for a word `old` that becomes `new`.
    #[inline(always)]
    #[must_use]
    pub const fn replace_u16(self, old: u16, new: u16) -> Self {
        self.replace_u32(old as u32, new as u32)
    }

    /// Accounts for four bytes `old`, at an even offset, that become `new`.
    #[inline(always)]
    #[must_use]
    pub const fn replace_u32(self, old: u32, new: u32) -> Self {
        self.replace(old as u64, new as u64)
    }

    /// Accounts for two or four bytes `old`, as a number, that become `new`.
    #[inline(always)]
    #[must_use]
    pub const fn replace(self, old: u64, new: u64) -> Self {
        // RFC 1624, equation 3: ~m is -m, modulo 2^16 - 1.
        Self(self.0.wrapping_add(new).wrapping_sub(old))
    }

    /// Accounts for eight bytes `old`, at an even offset, that become `new`.
    #[inline(always)]
    #[must_use]
    pub const fn replace_u64(self, old: u64, new: u64) -> Self {
        self.replace_u32(old as u32, new as u32)
            .replace_u32((old >> 32) as u32, (new >> 32) as u32)
    }

    /// Accounts for a word that was not there before.
    #[inline(always)]
    #[must_use]
    pub const fn add_u16(self, new: u16) -> Self {
        Self(self.0.wrapping_add(new as u64))
    }

    /// Accounts for four bytes, at an even offset, that were not there before.
    #[inline(always)]
    #[must_use]
    pub const fn add_u32(self, new: u32) -> Self {
        Self(self.0.wrapping_add(new as u64))
    }

    /// Accounts for eight bytes, at an even offset, that were not there before.
    #[inline(always)]
    #[must_use]
    pub const fn add_u64(self, new: u64) -> Self {
        self.add_u32(new as u32).add_u32((new >> 32) as u32)
    }

    /// Accounts for what `other` does, too.
    #[inline(always)]
    #[must_use]
    pub const fn combine(self, other: Self) -> Self {
        Self(self.0.wrapping_add(other.0).wrapping_sub(Self::ZERO.0))
    }

    /// Takes away what `other` accounts for.
    #[inline(always)]
    #[must_use]
    pub const fn subtract(self, other: Self) -> Self {
        Self(self.0.wrapping_sub(other.0).wrapping_add(Self::ZERO.0))
    }

    /// The checksum of what was added, if nothing was there before; 0 if what was added has its own
    /// checksum in it and is intact.
    #[inline(always)]
    #[must_use]
    pub const fn finish(self) -> u16 {
        !self.folded()
    }

    /// The same for UDP: 0 would mean "none", so it is sent as `0xFFFF` (RFC 768).
    #[inline(always)]
    #[must_use]
    pub const fn finish_udp(self) -> u16 {
        // What is folded is never 0: so it is the negative sum that is, instead of the sum that is inverted.
        Self::ZERO.subtract(self).folded()
    }

    /// The sum in 16 bits, as which it can be added again; it is never 0.
    #[inline(always)]
    #[must_use]
    pub const fn folded(self) -> u16 {
        let sum = (self.0 >> 16) + (self.0 & 0xFFFF); // 33 bits, and if bit 32 is set, the rest is small
        let sum = (sum >> 16) + (sum & 0xFFFF); // 17 bits, and if bit 16 is set, the rest isn't all ones
        ((sum >> 16) + sum) as u16
    }

    /// The checksum after the replacement: RFC 1624, equation 3.
    #[inline(always)]
    #[must_use]
    pub const fn apply(self, checksum: u16) -> u16 {
        Self(self.0.wrapping_sub(checksum as u64)).finish()
    }

    /// The UDP checksum after the replacement: 0 would mean "none", so it is sent as `0xFFFF`,
    /// which is the same number in ones' complement (RFC 768).
    #[inline(always)]
    #[must_use]
    pub const fn apply_udp(self, checksum: u16) -> u16 {
        Self(self.0.wrapping_sub(checksum as u64)).finish_udp()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// RFC 1071, the plain way.
    fn from_scratch(words: &[u16]) -> u16 {
        let mut sum: u32 = words.iter().map(|&word| u32::from(word)).sum();
        while sum > 0xFFFF {
            sum = (sum >> 16) + (sum & 0xFFFF);
        }
        !(sum as u16)
    }

    #[test]
    fn example_of_rfc_1624_section_4() {
        // HC = 0xDD2F, m = 0x5555, m' = 0x3285, HC' = 0x0000.
        assert_eq!(
            Delta::ZERO.replace_u16(0x5555, 0x3285).apply(0xDD2F),
            0x0000
        );
    }

    #[test]
    fn a_udp_checksum_never_becomes_none() {
        assert_eq!(
            Delta::ZERO.replace_u16(0x5555, 0x3285).apply_udp(0xDD2F),
            0xFFFF
        );
    }

    proptest! {
        #[test]
        fn an_update_equals_a_sum_from_scratch(
            mut words in proptest::array::uniform16(any::<u16>()),
            short in any::<u16>(), long in any::<u32>(), longer in any::<u64>(),
        ) {
            words[15] = words[15].max(1); // all zero has two representations
            let before = from_scratch(&words);
            let delta = Delta::ZERO
                .replace_u16(words[0], short)
                .replace_u32(u32::from(words[2]) | u32::from(words[3]) << 16, long)
                .replace_u64((4..8).map(|i| u64::from(words[i]) << (16 * (i - 4))).sum(), longer);
            words[0] = short;
            (words[2], words[3]) = (long as u16, (long >> 16) as u16);
            for (i, word) in words[4..8].iter_mut().enumerate() {
                *word = (longer >> (16 * i)) as u16;
            }
            prop_assert_eq!(delta.apply(before), from_scratch(&words));
        }

        #[test]
        fn a_sum_can_be_taken_away_again(words in proptest::array::uniform8(any::<u16>()), other in any::<u64>()) {
            let sum = words.iter().fold(Delta::ZERO, |sum, &word| sum.add_u16(word));
            let more = sum.add_u64(other);
            prop_assert_eq!(sum.finish(), from_scratch(&words));
            let back = more.subtract(Delta::ZERO.add_u64(other)).finish();
            let same = |a: u16, b: u16| a == b || (a == 0 && b == 0xFFFF) || (a == 0xFFFF && b == 0);
            prop_assert!(same(back, sum.finish()));
        }

        #[test]
        fn an_error_stays_an_error(old in any::<u16>(), new in any::<u16>(), right in any::<u16>(), flip in 1..0xFFFF_u16) {
            let wrong = right ^ flip;
            let delta = Delta::ZERO.replace_u16(old, new);
            let same = |a: u16, b: u16| a == b || (a == 0 && b == 0xFFFF) || (a == 0xFFFF && b == 0);
            prop_assert_eq!(same(delta.apply(right), delta.apply(wrong)), same(right, wrong));
        }
    }
}
