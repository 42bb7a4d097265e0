//! The keys that devices share with the gateway.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::{fmt, fs, io};
use zeroize::Zeroizing;

/// Shortest key that is taken, bytes.
const MIN_KEY_BYTES: usize = 16;

/// The key of each device, by its identity. They are never shown.
#[derive(Clone)]
pub struct Keys(HashMap<Vec<u8>, Zeroizing<Vec<u8>>>);

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} keys", self.0.len())
    }
}

/// A file of keys can't be used. What is in it is not repeated, as it is secret.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// It can't be read.
    #[error("internal.coaps_keys: can't read {path}: {cause}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system says.
        cause: io::Error,
    },
    /// A line isn't what it should be.
    #[error(
        "internal.coaps_keys: line {line} of {path} is not an identity, a space, and a key of at least {MIN_KEY_BYTES} bytes in hexadecimal digits"
    )]
    Line {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
    },
    /// There is no key in it.
    #[error("internal.coaps_keys: {path} has no key; no device could register")]
    Empty {
        /// The file.
        path: PathBuf,
    },
}

impl Keys {
    /// Reads a file with a line for each device. Empty lines and those that begin with `#` are skipped.
    ///
    /// # Errors
    ///
    /// [`KeysError`].
    pub fn read(path: &Path) -> Result<Self, KeysError> {
        let text = fs::read_to_string(path).map(Zeroizing::new);
        let text = text.map_err(|cause| KeysError::Read {
            path: path.to_owned(),
            cause,
        })?;
        let mut keys = HashMap::new();
        for (n, line) in text.lines().map(str::trim).enumerate() {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (identity, key) = entry(line).ok_or_else(|| KeysError::Line {
                path: path.to_owned(),
                line: n + 1,
            })?;
            keys.insert(identity, key);
        }
        if keys.is_empty() {
            return Err(KeysError::Empty {
                path: path.to_owned(),
            });
        }
        Ok(Self(keys))
    }

    /// How many devices have one.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nobody has one; never so of what was read.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

fn entry(line: &str) -> Option<(Vec<u8>, Zeroizing<Vec<u8>>)> {
    let (identity, digits) = line.rsplit_once(' ')?;
    let key = Zeroizing::new(hex::decode(digits).ok()?);
    let identity = identity.trim_end().as_bytes().to_vec();
    (!identity.is_empty() && key.len() >= MIN_KEY_BYTES).then_some((identity, key))
}

impl dimpl::PskResolver for Keys {
    fn resolve(&self, identity: &[u8]) -> Option<Vec<u8>> {
        self.0.get(identity).map(|key| key.to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dimpl::PskResolver;

    #[test]
    fn a_key_is_found_by_its_identity_and_what_is_no_key_is_named_by_its_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys");
        let key = "00112233445566778899aabbccddeeff";
        let read = |text: &str| {
            fs::write(&path, text).unwrap();
            Keys::read(&path)
        };
        let keys = read(&format!("# devices\n\nmeter 7 {key}\nphone  {key}00\n")).unwrap();
        assert_eq!(keys.resolve(b"meter 7"), Some(hex::decode(key).unwrap()));
        assert_eq!(keys.resolve(b"phone").unwrap().len(), 17);
        assert_eq!(keys.resolve(b"meter"), None);
        assert_eq!(format!("{keys:?}"), "2 keys");
        let short = &key[2..];
        for (text, line) in [
            (format!("phone {key}\n{key}"), 2),
            (format!("phone {short}"), 1),
            (format!("phone {short}xx"), 1),
            (format!(" {key}"), 1),
        ] {
            let error = read(&text).unwrap_err().to_string();
            assert!(error.contains(&format!("line {line} of")), "{error}");
            assert!(!error.contains(short), "{error}");
        }
        assert!(matches!(read("# none\n"), Err(KeysError::Empty { .. })));
        fs::remove_file(&path).unwrap();
        assert!(matches!(Keys::read(&path), Err(KeysError::Read { .. })));
    }
}
