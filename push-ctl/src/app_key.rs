//! The key by which an application's server identifies itself on the external interface.

use crate::sessions::records::{Credential, CredentialId, Proof, UnixTime};
use sha2::{Digest, Sha256};
use std::fmt;
use std::str::FromStr;
use zeroize::{Zeroize, ZeroizeOnDrop};

/// First characters of the text form, so that a leaked key is recognised as one.
pub(crate) const PREFIX: &str = "pak_";

/// 256 secret random bits; the text form is `pak_` and 64 lower-case hexadecimal digits.
#[derive(Zeroize, ZeroizeOnDrop)]
pub struct AppKey([u8; 32]);

/// The text is not that of an application key; it is not repeated here, as it may be nearly one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an application key: expected `pak_` followed by 64 hexadecimal digits")]
pub struct ParseAppKeyError;

impl AppKey {
    /// The key made of these random bytes.
    #[must_use]
    pub const fn from_bytes(random: [u8; 32]) -> Self {
        Self(random)
    }

    /// The text form, for the one moment in which it is handed out.
    #[must_use]
    pub fn to_text(&self) -> String {
        format!("{PREFIX}{}", hex::encode(self.0))
    }

    /// What the store knows the key by.
    #[must_use]
    pub fn credential(&self, created: UnixTime) -> Credential {
        let hash: [u8; 32] = Sha256::digest(self.0).into();
        Credential {
            id: self.id(),
            proof: Proof::ApiKeySha256(hash),
            created,
            expires: None,
        }
    }

    /// Names the credential.
    #[must_use]
    pub fn id(&self) -> CredentialId {
        let hash: [u8; 32] = Sha256::digest(self.0).into();
        let [a, b, c, d, e, f, g, h, ..] = hash;
        CredentialId::from_u64(u64::from_be_bytes([a, b, c, d, e, f, g, h]))
    }
}

impl FromStr for AppKey {
    type Err = ParseAppKeyError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = text.strip_prefix(PREFIX).ok_or(ParseAppKeyError)?;
        let mut key = Self([0; 32]);
        hex::decode_to_slice(digits, &mut key.0).map_err(|_| ParseAppKeyError)?;
        Ok(key)
    }
}

/// Says nothing about the key.
impl fmt::Debug for AppKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AppKey(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_form_reads_back() {
        let key = AppKey::from_bytes([0xA5; 32]);
        let text = key.to_text();
        assert_eq!(text.len(), 4 + 64);
        assert_eq!(text.parse::<AppKey>().unwrap().id(), key.id());
    }

    #[test]
    fn other_texts_are_refused_and_nothing_secret_is_printed() {
        let good = AppKey::from_bytes([1; 32]).to_text();
        for text in [
            "",
            "pak_",
            &good[..67],
            &format!("{good}0"),
            &good.replace("pak_", "ptk_"),
            &good.replace('1', "g"),
        ] {
            assert_eq!(
                text.parse::<AppKey>().err(),
                Some(ParseAppKeyError),
                "{text}"
            );
        }
        assert_eq!(format!("{:?}", AppKey::from_bytes([1; 32])), "AppKey(..)");
    }
}
