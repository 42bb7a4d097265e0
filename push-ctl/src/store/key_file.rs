//! What keys in the store are encrypted with, and the file that it is in.

use aes_kw::KwAes256;
use aes_kw::cipher::KeyInit;
use push_common::tag::TagKey;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use zeroize::{ZeroizeOnDrop, Zeroizing};

/// Length of the file in bytes.
const LEN: usize = 32;

/// Others than owner and group.
const OTHERS: u32 = 0o007;

/// A key that encrypts keys: AES-256 key wrap (RFC 3394), which takes no nonce, as no key is there twice, and
/// shows when what it has encrypted was changed.
pub struct KeyEncryptionKey {
    /// It wipes itself, but not what it leaves behind when it is moved.
    kek: Box<KwAes256>,
}

const _: fn() = || {
    fn wipes_itself<T: ZeroizeOnDrop>() {}
    wipes_itself::<KwAes256>();
};

/// What is wrong with a key file.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// It can't be read.
    #[error("can't read the key file {}: {cause}{}", path.display(), advice(path, cause))]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system says.
        cause: io::Error,
    },
    /// It isn't one.
    #[error("{} is no key file, as it is {} {LEN} bytes long; make one with: openssl rand -out FILE {LEN}", path.display(), if *is_longer { "more than" } else { "less than" })]
    Length {
        /// The file.
        path: PathBuf,
        /// Than a key.
        is_longer: bool,
    },
    /// Everybody can use it.
    #[error("everybody may use the key file {} (mode {mode:04o}); do: chmod o= {}", path.display(), path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Who may do what.
        mode: u32,
    },
}

fn advice(path: &Path, cause: &io::Error) -> String {
    match cause.kind() {
        io::ErrorKind::NotFound => format!(
            "; if there was none yet, make it: openssl rand -out {} {LEN}",
            path.display()
        ),
        io::ErrorKind::PermissionDenied => {
            "; it has to be the daemon's user's, with mode 0400".to_owned()
        }
        _ => String::new(),
    }
}

impl KeyEncryptionKey {
    /// From a file of 32 random bytes.
    ///
    /// # Errors
    ///
    /// [`KeyFileError`].
    pub fn read(path: &Path) -> Result<Self, KeyFileError> {
        let io = |cause| KeyFileError::Io {
            path: path.to_owned(),
            cause,
        };
        let file = File::open(path).map_err(io)?;
        let mode = file.metadata().map_err(io)?.mode() & 0o7777;
        if mode & OTHERS != 0 {
            return Err(KeyFileError::Exposed {
                path: path.to_owned(),
                mode,
            });
        }
        // With room for all that is read: growing would leave copies behind.
        let mut bytes = Zeroizing::new(Vec::with_capacity(2 * LEN));
        file.take(LEN as u64 + 1)
            .read_to_end(&mut bytes)
            .map_err(io)?;
        let key = bytes
            .as_slice()
            .try_into()
            .map_err(|_| KeyFileError::Length {
                path: path.to_owned(),
                is_longer: bytes.len() > LEN,
            })?;
        Ok(Self::new(key))
    }

    /// From its bytes.
    #[must_use]
    pub fn new(key: &[u8; LEN]) -> Self {
        Self {
            kek: Box::new(KwAes256::new(key.into())),
        }
    }

    /// The key, encrypted.
    pub(super) fn wrap(&self, key: &TagKey) -> [u8; 24] {
        let key = Zeroizing::new(key.to_bytes());
        let mut wrapped = [0; 24];
        let done = self.kek.wrap_key(&*key, &mut wrapped);
        done.expect("two blocks take three");
        wrapped
    }

    /// What was encrypted; `None` if that was changed, or encrypted with another key.
    pub(super) fn unwrap(&self, wrapped: &[u8; 24]) -> Option<Zeroizing<TagKey>> {
        let mut key = Zeroizing::new([0; 16]);
        self.kek.unwrap_key(wrapped, &mut *key).ok()?;
        Some(TagKey::from_bytes(*key).into())
    }

    /// By this one is told from another, though nothing is said about it: the beginning of what a key of zeros
    /// is encrypted to.
    pub(super) fn check(&self) -> u32 {
        let [a, b, c, d, ..] = self.wrap(&TagKey::default());
        u32::from_be_bytes([a, b, c, d])
    }
}

/// Says nothing about the key.
impl std::fmt::Debug for KeyEncryptionKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("KeyEncryptionKey(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    /// RFC 3394, 4.3: 128 bits of key data with a 256-bit KEK.
    #[test]
    fn a_key_is_wrapped_as_the_rfc_says() {
        let kek = KeyEncryptionKey::new(&std::array::from_fn(|i| i as u8));
        let bytes = hex::decode("00112233445566778899AABBCCDDEEFF").unwrap();
        let key = TagKey::from_bytes(bytes.try_into().unwrap());
        let wrapped = kek.wrap(&key);
        assert_eq!(
            hex::encode_upper(wrapped),
            "64E8C3F9CE0F5BA263E9777905818A2A93C8191E7D6E8AE7"
        );
        assert!(kek.unwrap(&wrapped) == Some(key.into()));
        for at in 0..wrapped.len() {
            let mut changed = wrapped;
            changed[at] ^= 1;
            assert!(kek.unwrap(&changed).is_none());
        }
    }

    #[test]
    fn what_is_no_key_file_is_refused_in_words() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        let refusal = || KeyEncryptionKey::read(&path).unwrap_err().to_string();
        let missing = refusal();
        assert!(missing.contains("make it: openssl rand -out"), "{missing}");
        for (len, what) in [
            (0, "less than 32"),
            (31, "less than 32"),
            (33, "more than 32"),
        ] {
            fs::write(&path, vec![7; len]).unwrap();
            fs::set_permissions(&path, Permissions::from_mode(0o400)).unwrap();
            assert!(refusal().contains(what), "{}", refusal());
            fs::remove_file(&path).unwrap();
        }
        fs::write(&path, [7; 32]).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        assert!(refusal().contains("chmod o="), "{}", refusal());
        fs::set_permissions(&path, Permissions::from_mode(0o400)).unwrap();
        KeyEncryptionKey::read(&path).unwrap();
    }
}
