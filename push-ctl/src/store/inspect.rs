//! A look into a store that isn't this process's own, and may be in use.

mod rows;

pub use rows::without_credentials;

use super::{FILE_NAME, Found, Image, KeyEncryptionKey, StoreError, rehearse};
use crate::config::Config;
use crate::limits;
use crate::sessions::Sessions;
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

/// How often a file that is written to meanwhile is copied again.
const ATTEMPTS: usize = 20;

/// What a store had in it when it was looked at.
#[derive(Debug)]
pub struct Inspected {
    /// The file.
    pub path: PathBuf,
    /// Its version.
    pub version: u32,
    /// How long it is.
    pub len_bytes: u64,
    /// Whether a daemon has it open: then this is how it was a moment ago.
    pub is_in_use: bool,
    /// Whether the keys in it are encrypted.
    pub is_encrypted: bool,
    /// All records.
    pub image: Image,
}

/// Reads and checks all of a copy, in memory, of the store in this directory; the store itself is left alone.
/// `None` if there is none.
///
/// # Errors
///
/// [`StoreError`]: it can't be read, or is damaged.
pub fn inspect(
    state_dir: &Path,
    kek: Option<&KeyEncryptionKey>,
) -> Result<Option<Inspected>, StoreError> {
    let path = state_dir.join(FILE_NAME);
    let io = |doing, cause| StoreError::Io {
        doing,
        path: path.clone(),
        cause,
    };
    let mut original = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io("open", error)),
    };
    let is_in_use = is_in_use(state_dir);
    let mut attempts = 0..ATTEMPTS;
    loop {
        let (copy, is_whole) = copy(&mut original).map_err(|cause| io("copy", cause))?;
        let is_last = attempts.next().is_none();
        let len_bytes = copy.metadata().map_err(|cause| io("copy", cause))?.len();
        match rehearse(copy, &path, kek) {
            // Of a file that was written to meanwhile, the copy may be of no moment at all.
            Err(_) if !is_whole && !is_last => {}
            Err(error) => return Err(error),
            Ok(Found {
                version,
                is_encrypted,
                image,
            }) => {
                return Ok(Some(Inspected {
                    path,
                    version,
                    len_bytes,
                    is_in_use,
                    is_encrypted,
                    image,
                }));
            }
        }
    }
}

/// Whether a daemon holds the lock. It isn't kept from taking it for longer than a moment.
fn is_in_use(state_dir: &Path) -> bool {
    File::open(state_dir)
        .is_ok_and(|directory| matches!(directory.try_lock_shared(), Err(TryLockError::WouldBlock)))
}

/// A copy in memory, where nobody else can read the keys in it, and whether the file stayed as it was meanwhile.
fn copy(original: &mut File) -> io::Result<(File, bool)> {
    let mut copy: File = memfd_create("push.redb", MFdFlags::MFD_CLOEXEC)?.into();
    let before = original.metadata()?;
    io::Seek::rewind(original)?;
    io::copy(original, &mut copy)?;
    let after = original.metadata()?;
    let is_whole = before.modified()? == after.modified()? && before.len() == after.len();
    Ok((copy, is_whole))
}

impl Inspected {
    /// What is wrong with what the records say of each other, or of the configuration.
    #[must_use]
    pub fn contradiction(&self, config: &Config) -> Option<String> {
        let restored = Sessions::restore(limits(config), self.image.clone());
        restored.err().map(|error| error.to_string())
    }

    /// Realms of terminals that the configuration doesn't have; nothing is delivered to their devices.
    #[must_use]
    pub fn unknown_realms(&self, config: &Config) -> Vec<String> {
        let terminals = self.image.terminals.iter();
        let mut unknown: Vec<_> = terminals
            .filter_map(|terminal| terminal.path.realm.as_ref())
            .filter(|realm| !config.realm.iter().any(|known| known.name == **realm))
            .map(ToString::to_string)
            .collect();
        unknown.sort();
        unknown.dedup();
        unknown
    }

    /// What is in it, in one line.
    #[must_use]
    pub fn summary(&self) -> String {
        let Image {
            terminals,
            sessions,
            apps,
        } = &self.image;
        let count = |number: usize, thing: &str| {
            let plural = if number == 1 { "" } else { "s" };
            format!("{number} {thing}{plural}")
        };
        format!(
            "{}, version {}, {} KiB, keys {}{}: {}, {}, {}",
            self.path.display(),
            self.version,
            self.len_bytes >> 10,
            if self.is_encrypted {
                "encrypted"
            } else {
                "not encrypted"
            },
            if self.is_in_use { ", in use" } else { "" },
            count(terminals.len(), "terminal"),
            count(sessions.len(), "session"),
            count(apps.len(), "application"),
        )
    }

    /// All records, as JSON, without anything that lets its reader sign or validate.
    pub fn rows(&self) -> impl Iterator<Item = serde_json::Value> {
        let terminals = self.image.terminals.iter().map(rows::terminal);
        let sessions = self.image.sessions.iter().map(rows::session);
        let apps = self.image.apps.iter().map(rows::app);
        apps.chain(terminals).chain(sessions)
    }
}
