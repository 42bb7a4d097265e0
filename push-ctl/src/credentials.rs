//! By what an application's server identifies itself on the external interface: a key, of which only a
//! slow hash is kept, or a certificate, of which only a digest is.
//!
//! Both have a public name, the [`CredentialId`]: it is part of the key, and of the certificate's digest,
//! and finds what there is to compare with. What a server presents is compared here; whether a credential
//! is still good, and of which application, the sessions know.

mod certificate;
mod guesses;
mod verifier;

pub use certificate::{Certificate, CertificateError, Fingerprint};
pub use guesses::TooManyGuesses;
pub use verifier::{KeyRefusal, Recalled, Verifier};

use crate::random;
use crate::sessions::records::CredentialId;
#[cfg(test)]
use crate::sessions::records::{Credential, Proof, UnixTime};
use argon2::password_hash::phc::PasswordHash;
use argon2::{Algorithm, Argon2, Params, PasswordHasher, PasswordVerifier, Version};
use sha2::{Digest, Sha256};
use std::str::FromStr;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// First characters of the text form, so that a leaked key is recognised as one.
pub(crate) const PREFIX: &str = "pak_";

/// What a hash costs: 19 MiB, read twice, by one thread (OWASP Password Storage Cheat Sheet, Argon2id). When inputs
/// are made up by the million, as little as can be.
const PARAMS: Result<Params, argon2::Error> = if cfg!(all(test, feature = "fuzz")) {
    Params::new(Params::MIN_M_COST, Params::MIN_T_COST, 1, None)
} else {
    Params::new(19 << 10, 2, 1, None)
};

/// A key: 64 bits that name it, and 192 that are secret. The text form is `pak_` and 64 lower-case
/// hexadecimal digits, of which the first 16 are the name.
#[derive(Zeroize, ZeroizeOnDrop)]
pub struct ApiKey([u8; 32]);

/// The text is not that of a key; it is not repeated here, as it may be nearly one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an application key: expected `pak_` followed by 64 hexadecimal digits")]
pub struct ParseApiKeyError;

impl ApiKey {
    /// A new key that nobody can guess.
    #[must_use]
    pub fn generate() -> Self {
        Self(random::bytes())
    }

    /// The key made of these random bytes.
    #[must_use]
    pub const fn from_bytes(random: [u8; 32]) -> Self {
        Self(random)
    }

    /// Names the key; not a secret.
    #[must_use]
    pub fn id(&self) -> CredentialId {
        credential_id(&self.0)
    }

    /// The text form, for the one moment in which it is handed out.
    #[must_use]
    pub fn to_text(&self) -> Zeroizing<String> {
        Zeroizing::new(format!("{PREFIX}{}", hex::encode(self.0)))
    }

    /// What the store keeps of it: an Argon2id hash with a salt of its own, in the PHC string format.
    ///
    /// Takes some 20 ms and 19 MiB, so not on a thread that others wait for.
    ///
    /// # Panics
    ///
    /// If there is no memory for it.
    #[must_use]
    pub fn hash(&self) -> String {
        let salt: [u8; 16] = random::bytes();
        let hash: PasswordHash = argon2id()
            .hash_password_with_salt(&self.0, &salt)
            .expect("32 bytes, a salt of 16 and fixed parameters are taken");
        hash.to_string()
    }

    /// What a key was named by when it was kept as its SHA-256: the first digits of that.
    #[must_use]
    pub fn old_id(&self) -> CredentialId {
        credential_id(&self.sha256())
    }

    fn sha256(&self) -> [u8; 32] {
        Sha256::digest(self.0).into()
    }

    /// Whether `hash` is of this key. Takes as long as [`ApiKey::hash`], whatever the answer.
    #[must_use]
    fn has_hash(&self, hash: &str) -> bool {
        // The parameters are those in the hash: it may have been made when others were customary.
        PasswordHash::new(hash).is_ok_and(|hash| argon2id().verify_password(&self.0, &hash).is_ok())
    }
}

fn argon2id() -> Argon2<'static> {
    let params = PARAMS.expect("these parameters are in their ranges");
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
}

/// The name of a credential: the first 64 bits of what it is made of.
fn credential_id(bytes: &[u8; 32]) -> CredentialId {
    let (name, _rest) = bytes.split_first_chunk().expect("32 bytes begin with 8");
    CredentialId::from_u64(u64::from_be_bytes(*name))
}

impl FromStr for ApiKey {
    type Err = ParseApiKeyError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = text.strip_prefix(PREFIX).ok_or(ParseApiKeyError)?;
        let mut key = Self([0; 32]);
        hex::decode_to_slice(digits, &mut key.0).map_err(|_| ParseApiKeyError)?;
        Ok(key)
    }
}

/// For tests: keeping a key as its SHA-256 takes no time.
#[cfg(test)]
impl ApiKey {
    pub(crate) fn credential(&self, created: UnixTime) -> Credential {
        Credential {
            id: self.id(),
            proof: Proof::ApiKeySha256(self.sha256()),
            created,
            expires: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_form_reads_back_and_begins_with_the_name() {
        let key = ApiKey::from_bytes([0xA5; 32]);
        let text = key.to_text();
        assert_eq!(text.len(), 4 + 64);
        assert_eq!(text[4..20], key.id().to_string());
        assert_eq!(text.parse::<ApiKey>().unwrap().0, key.0);
    }

    #[test]
    fn other_texts_are_refused() {
        let good = ApiKey::from_bytes([1; 32]).to_text();
        for text in [
            "",
            "pak_",
            &good[..67],
            &format!("{}0", &*good),
            &good.replace("pak_", "ptk_"),
            &good.replace('1', "g"),
        ] {
            assert_eq!(
                text.parse::<ApiKey>().err(),
                Some(ParseApiKeyError),
                "{text}"
            );
        }
    }

    #[test]
    fn a_hash_is_of_one_key_and_tells_nothing_of_it() {
        let key = ApiKey::from_bytes([0xA5; 32]);
        let hash = key.hash();
        assert!(
            hash.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"),
            "{hash}"
        );
        assert_ne!(key.hash(), hash, "each has a salt of its own");
        assert!(key.has_hash(&hash));
        let mut other = [0xA5; 32];
        for wrong in [0, 8, 31] {
            other[wrong] ^= 1;
            assert!(!ApiKey::from_bytes(other).has_hash(&hash), "byte {wrong}");
            other[wrong] ^= 1;
        }
        assert!(!key.has_hash("no hash") && !key.has_hash(""));
    }
}
