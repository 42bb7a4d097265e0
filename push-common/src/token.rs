//! Tokens: what an application is given for a session, once, and proves to hold from then on.
//!
//! A token is 128 random bits; its text form is `ptk_` and 32 lower-case hexadecimal digits. It
//! never travels in a trigger. The key of the tag is derived from it, and the controller keeps the
//! key and a hash, never the token.

use crate::tag::TagKey;
use core::{fmt, str};
use hkdf::Hkdf;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, ZeroizeOnDrop};

/// First characters of the text form, so that a leaked token is recognised as one.
pub const PREFIX: &str = "ptk_";

/// Length of the text form in characters.
pub const TEXT_LEN: usize = PREFIX.len() + 32;

/// 128 secret random bits.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Token([u8; 16]);

/// The text is not that of a token; it is not repeated here, as it may be nearly one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParseTokenError;

impl fmt::Display for ParseTokenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a token: expected `ptk_` followed by 32 hexadecimal digits")
    }
}

impl core::error::Error for ParseTokenError {}

impl Token {
    /// The token made of these random bytes.
    #[must_use]
    pub const fn from_bytes(random: [u8; 16]) -> Self {
        Self(random)
    }

    /// The text form, as ASCII, for the one moment in which it is handed out.
    #[must_use]
    pub fn to_text(&self) -> [u8; TEXT_LEN] {
        let mut text = [0; TEXT_LEN];
        let (prefix, digits) = text.split_at_mut(PREFIX.len());
        prefix.copy_from_slice(PREFIX.as_bytes());
        for (pair, byte) in digits.as_chunks_mut::<2>().0.iter_mut().zip(self.0) {
            *pair = [
                b"0123456789abcdef"[usize::from(byte >> 4)],
                b"0123456789abcdef"[usize::from(byte & 15)],
            ];
        }
        text
    }

    /// The key of the tag: HKDF-SHA-256 (RFC 5869) of the token's 16 bytes with no salt and the
    /// info `push trigger v1`, 16 bytes long.
    #[must_use]
    pub fn key(&self) -> TagKey {
        let mut key = [0; 16];
        Hkdf::<Sha256>::new(None, &self.0)
            .expand(b"push trigger v1", &mut key)
            .expect("16 bytes are fewer than 255 times the hash length, the limit of RFC 5869");
        let tag_key = TagKey::from_bytes(key);
        key.zeroize();
        tag_key
    }

    /// What the store knows a token by: SHA-256 of its 16 bytes.
    #[must_use]
    pub fn hash(&self) -> TokenHash {
        TokenHash(Sha256::digest(self.0).into())
    }
}

impl str::FromStr for Token {
    type Err = ParseTokenError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = text.strip_prefix(PREFIX).ok_or(ParseTokenError)?.as_bytes();
        let (pairs, []) = digits.as_chunks::<2>() else {
            return Err(ParseTokenError);
        };
        if pairs.len() != 16 {
            return Err(ParseTokenError);
        }
        let mut token = Self([0; 16]);
        for (byte, pair) in token.0.iter_mut().zip(pairs) {
            for &digit in pair {
                let value = char::from(digit).to_digit(16).ok_or(ParseTokenError)?;
                *byte = (*byte << 4) | value as u8;
            }
        }
        Ok(token)
    }
}

/// Says nothing about the token.
impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

/// SHA-256 of a token.
#[derive(Clone, Copy, Debug)]
pub struct TokenHash(pub [u8; 32]);

/// Compared in a time that doesn't depend on where two hashes differ.
impl PartialEq for TokenHash {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for TokenHash {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_form_reads_back() {
        let token = Token::from_bytes(core::array::from_fn(|i| (i * 17) as u8));
        let text = token.to_text();
        let text = str::from_utf8(&text).unwrap();
        assert_eq!(text, "ptk_00112233445566778899aabbccddeeff");
        assert_eq!(text.parse::<Token>().unwrap().0, token.0);
    }

    #[test]
    fn other_texts_are_refused() {
        for text in [
            "",
            "ptk_",
            "ptk_0011",
            "00112233445566778899aabbccddeeff",
            "ptk_00112233445566778899aabbccddeef",
            "ptk_00112233445566778899aabbccddeeff0",
            "ptk_00112233445566778899aabbccddeefg",
            "ptk_0011223344556677 8899aabbccddeef",
        ] {
            assert_eq!(text.parse::<Token>().err(), Some(ParseTokenError), "{text}");
        }
    }

    #[test]
    fn nothing_secret_is_printed() {
        extern crate std;
        let token = Token::from_bytes([7; 16]);
        assert_eq!(
            std::format!("{token:?} {:?}", token.key()),
            "Token(..) TagKey(..)"
        );
    }
}
