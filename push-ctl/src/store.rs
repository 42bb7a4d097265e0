//! What survives a restart: terminals, sessions, applications.
//!
//! [`RedbStore`] keeps them in one file, `push.redb` in the `state_dir`. A token is never in it, only
//! the keys derived from it and its hash; so is an application's key only as a hash. The file can be
//! read by root and the daemon alone (mode 0600), as a derived key is enough to sign triggers.
//!
//! With a `state_key_file` these keys are encrypted by what is in that ([`KeyEncryptionKey`]), so that a copy of
//! the store, such as a backup, is worth nothing to who doesn't have the key file as well. Without one they are
//! as they are: then a copy has to be kept as secret as the file. There is none by default, as one that the daemon
//! made would lie beside the store, and be in the same backup.
//!
//! | table | key | value |
//! | --- | --- | --- |
//! | `meta` | `version` | [`VERSION`] |
//! | `meta` | `key_check` | if keys are encrypted: which key file it takes |
//! | `terminals` | registration id | one byte of format, then CBOR |
//! | `sessions` | slot, dense and therefore quick | the same |
//! | `apps` | name | the same |
//!
//! A file that can't be used is never changed: it is opened for good only once everything in it
//! has been read in a rehearsal, in which nothing is written to it. One of an older version, or whose keys aren't
//! encrypted though they should be, is then written anew under another name, and replaced in a single step. After
//! that older programs refuse it.
//!
//! | version | since then |
//! | --- | --- |
//! | 1 | |
//! | 2 | realms of terminals, policies of applications, tunnels of sessions |
//! | 3 | ports and suspension of terminals, rotation of tokens and replay windows of imported sessions, credentials, quotas and monitors of applications, and that one is removed |
//! | 4 | encrypted keys; quotas of what triggers sessions may be granted together |

pub mod inspect;
mod key_file;
mod rehearsal;
mod rows;
#[cfg(test)]
pub(crate) mod tests;

pub use key_file::{KeyEncryptionKey, KeyFileError};

use crate::sessions::Image;
use crate::sessions::records::{App, AppName, RegistrationId, Session, Terminal};
use redb::backends::FileBackend;
use redb::{
    AccessGuard, Database, DatabaseError, ReadableDatabase, ReadableTable, StorageError,
    TableDefinition, TableError, WriteTransaction,
};
use rehearsal::Rehearsal;
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::num::NonZeroU16;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::thread;
use tracing::info;

/// Version of the store as a whole.
pub const VERSION: u32 = 4;

/// The oldest version that can be brought to the current one.
const OLDEST_VERSION: u32 = 1;

const FILE_NAME: &str = "push.redb";
const UNFINISHED_NAME: &str = "push.redb.new";
const META: TableDefinition<'_, &str, u32> = TableDefinition::new("meta");
const TERMINALS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("terminals");
const SESSIONS: TableDefinition<'_, u32, &[u8]> = TableDefinition::new("sessions");
const APPS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("apps");

/// Memory for pages of the file. Everything is read once and then only written.
const CACHE_BYTES: usize = 64 << 20;

/// Keeps what it is told across restarts.
pub trait Store: Send + 'static {
    /// Everything that is kept.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    fn load(&self) -> Result<Image, StoreError>;

    /// Takes over all of these changes, or none. They are durable when this returns.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; nothing more should be asked of the store then.
    fn apply(&mut self, batch: &Batch) -> Result<(), StoreError>;
}

/// Records to be put into the store, or, where there is none, to be deleted from it.
#[derive(Debug, Default)]
pub struct Batch {
    /// Terminals by registration id.
    pub terminals: Vec<(RegistrationId, Option<Terminal>)>,
    /// Sessions by slot.
    pub slots: Vec<(u32, Option<Session>)>,
    /// Applications by name.
    pub apps: Vec<(AppName, Option<App>)>,
}

impl Batch {
    /// All that an image has.
    fn of(image: &Image) -> Self {
        let terminals = image.terminals.iter().cloned();
        let sessions = image.sessions.iter().cloned();
        let apps = image.apps.iter().cloned();
        Self {
            terminals: terminals
                .map(|terminal| (terminal.id, Some(terminal)))
                .collect(),
            slots: sessions
                .map(|session| (session.id.slot(), Some(session)))
                .collect(),
            apps: apps.map(|app| (app.name.clone(), Some(app))).collect(),
        }
    }
}

/// What is wrong with a store. The file is as it was before.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process has it.
    #[error("{} is in use by another process: stop that one, or set another state_dir", .0.display())]
    InUse(PathBuf),
    /// Its content makes no sense.
    #[error("{} is damaged ({what}) and was left as it is: put a backup in its place, or move it away to start empty", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What makes no sense.
        what: String,
    },
    /// It was made by another version of this program.
    #[error("{} has version {found}, this push-ctl reads versions {OLDEST_VERSION} to {VERSION}: use the push-ctl that made it, or move it away to start empty", path.display())]
    OtherVersion {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: String,
    },
    /// Its keys can't be read with what was given for that.
    #[error("{}: {refusal}", path.display())]
    Locked {
        /// The file.
        path: PathBuf,
        /// Why.
        refusal: Refusal,
    },
    /// The operating system refuses.
    #[error("can't {doing} {}: {cause}; the daemon's user has to be able to write there", path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// With what.
        path: PathBuf,
        /// What the operating system says.
        cause: io::Error,
    },
    /// A change could not be made durable.
    #[error("can't write to {}: {cause}; is the disk full?", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the storage engine says.
        cause: Box<redb::Error>,
    },
}

/// Why the keys in a store can't be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// They are encrypted, and there is no key file.
    #[error(
        "its keys are encrypted: set state_key_file in the configuration to the key file that they were encrypted with (`push-ctl store rekey --from FILE` has them no longer encrypted)"
    )]
    NoKeyFile,
    /// They are encrypted with another one.
    #[error(
        "its keys are encrypted with another key file than state_key_file: set it to that one, or change to the new one: `push-ctl store rekey --from OLD_FILE`"
    )]
    OtherKeyFile,
}

/// The store in a file.
#[derive(Debug)]
pub struct RedbStore {
    database: Database,
    path: PathBuf,
    kek: Option<KeyEncryptionKey>,
    /// What was read in the rehearsal, until somebody takes it: to read a million records takes seconds.
    rehearsed: Mutex<Option<Image>>,
    /// Holds the lock that keeps a second daemon out of the directory.
    _lock: File,
}

impl RedbStore {
    /// Opens the store in this directory, and makes both if they aren't there. With a `kek`, keys in it are
    /// encrypted from now on, if they weren't before.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub fn open(state_dir: &Path, kek: Option<KeyEncryptionKey>) -> Result<Self, StoreError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(state_dir)
            .map_err(io("create", state_dir))?;
        let path = state_dir.join(FILE_NAME);
        let lock = lock(state_dir)?;
        let image = match OpenOptions::new().read(true).write(true).open(&path) {
            Ok(file) => {
                let found = rehearse(file, &path, kek.as_ref())?;
                if found.version < VERSION || found.is_encrypted != kek.is_some() {
                    write_anew(state_dir, &found.image, kek.as_ref())?;
                    info!(
                        from_version = found.version,
                        version = VERSION,
                        keys_encrypted = kek.is_some(),
                        "the store was written anew"
                    );
                }
                found.image
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                write_anew(state_dir, &Image::default(), kek.as_ref())?;
                Image::default()
            }
            Err(error) => return Err(io("open", &path)(error)),
        };
        let database = Database::builder()
            .set_cache_size(CACHE_BYTES)
            .open(&path)
            .map_err(|e| opening(e, &path))?;
        Ok(Self {
            database,
            path,
            kek,
            rehearsed: Mutex::new(Some(image)),
            _lock: lock,
        })
    }

    /// Has the keys of a store that no daemon has open encrypted with another key file, or with none.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub fn rekey(
        state_dir: &Path,
        from: Option<&KeyEncryptionKey>,
        to: Option<&KeyEncryptionKey>,
    ) -> Result<(), StoreError> {
        let path = state_dir.join(FILE_NAME);
        let _lock = lock(state_dir)?;
        let file = File::open(&path).map_err(io("open", &path))?;
        let found = rehearse(file, &path, from)?;
        write_anew(state_dir, &found.image, to)
    }

    /// Where the file is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Store for RedbStore {
    fn load(&self) -> Result<Image, StoreError> {
        let rehearsed = self.rehearsed.lock();
        match rehearsed.unwrap_or_else(PoisonError::into_inner).take() {
            Some(image) => Ok(image),
            None => read(&self.database, &self.path, self.kek.as_ref()).map(|found| found.image),
        }
    }

    fn apply(&mut self, batch: &Batch) -> Result<(), StoreError> {
        // It is no longer what there is.
        *self
            .rehearsed
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner) = None;
        write(&self.database, batch, self.kek.as_ref()).map_err(|cause| StoreError::Write {
            path: self.path.clone(),
            cause: Box::new(cause),
        })
    }
}

/// What a file has in it.
#[derive(Debug)]
struct Found {
    version: u32,
    is_encrypted: bool,
    image: Image,
}

fn io(doing: &'static str, path: &Path) -> impl Fn(io::Error) -> StoreError {
    let path = path.to_owned();
    move |cause| StoreError::Io {
        doing,
        path: path.clone(),
        cause,
    }
}

/// Keeps others out until the file is closed.
fn lock(state_dir: &Path) -> Result<File, StoreError> {
    let lock = File::open(state_dir).map_err(io("open", state_dir))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(StoreError::InUse(state_dir.join(FILE_NAME))),
        Err(TryLockError::Error(cause)) => Err(io("lock", state_dir)(cause)),
    }
}

fn write(
    database: &Database,
    batch: &Batch,
    kek: Option<&KeyEncryptionKey>,
) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    put(&transaction, batch, kek)?;
    transaction.commit()?;
    Ok(())
}

fn put(
    transaction: &WriteTransaction,
    batch: &Batch,
    kek: Option<&KeyEncryptionKey>,
) -> Result<(), redb::Error> {
    {
        let mut terminals = transaction.open_table(TERMINALS)?;
        for (id, terminal) in &batch.terminals {
            if let Some(terminal) = terminal {
                terminals.insert(id.to_u64(), rows::terminal(terminal).as_slice())?;
            } else {
                terminals.remove(id.to_u64())?;
            }
        }
        let mut sessions = transaction.open_table(SESSIONS)?;
        for (slot, session) in &batch.slots {
            if let Some(session) = session {
                sessions.insert(slot, rows::session(session, kek).as_slice())?;
            } else {
                sessions.remove(slot)?;
            }
        }
        let mut apps = transaction.open_table(APPS)?;
        for (name, app) in &batch.apps {
            if let Some(app) = app {
                apps.insert(name.as_str(), rows::app(app).as_slice())?;
            } else {
                apps.remove(name.as_str())?;
            }
        }
    }
    Ok(())
}

/// Makes a store with these records. It gets its name only when it is complete, so that an empty or short file
/// of that name is always damage, and one that was there before stays until then.
fn write_anew(
    state_dir: &Path,
    image: &Image,
    kek: Option<&KeyEncryptionKey>,
) -> Result<(), StoreError> {
    let unfinished = state_dir.join(UNFINISHED_NAME);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&unfinished);
    let file = file.map_err(io("create", &unfinished))?;
    let batch = Batch::of(image);
    let made = || -> Result<(), redb::Error> {
        let database = Database::builder().create_with_backend(FileBackend::new(file)?)?;
        let transaction = database.begin_write()?;
        {
            let mut meta = transaction.open_table(META)?;
            meta.insert("version", VERSION)?;
            if let Some(kek) = kek {
                meta.insert("key_check", kek.check())?;
            }
        }
        put(&transaction, &batch, kek)?;
        transaction.commit()?;
        Ok(())
    };
    let done = made().map_err(|cause| StoreError::Write {
        path: unfinished.clone(),
        cause: Box::new(cause),
    });
    let done = done.and_then(|()| {
        fs::rename(&unfinished, state_dir.join(FILE_NAME))
            .and_then(|()| File::open(state_dir)?.sync_all())
            .map_err(io("create", &unfinished))
    });
    if done.is_err() {
        // Whoever made room would find it taken by this. The error is what matters.
        let _unless_renamed = fs::remove_file(&unfinished);
    }
    done
}

/// Reads and checks everything in the file without writing to it.
fn rehearse(file: File, path: &Path, kek: Option<&KeyEncryptionKey>) -> Result<Found, StoreError> {
    let backend = Rehearsal::of(file).map_err(io("read", path))?;
    if backend.is_empty() {
        return Err(StoreError::Damaged {
            path: path.to_owned(),
            what: "it is empty".to_owned(),
        });
    }
    let database = Database::builder()
        .set_cache_size(CACHE_BYTES)
        .set_check_integrity_on_open(true)
        .create_with_backend(backend)
        .map_err(|error| opening(error, path))?;
    read(&database, path, kek)
}

fn read(
    database: &Database,
    path: &Path,
    kek: Option<&KeyEncryptionKey>,
) -> Result<Found, StoreError> {
    let damaged = |what: String| StoreError::Damaged {
        path: path.to_owned(),
        what,
    };
    let other_version = |found: String| StoreError::OtherVersion {
        path: path.to_owned(),
        found,
    };
    let engine = |error: redb::Error| damaged(error.to_string());
    let transaction = database.begin_read().map_err(|e| engine(e.into()))?;
    let (version, key_check) = match transaction.open_table(META) {
        Ok(meta) => {
            let number = |key| {
                let number = meta.get(key).map_err(|e| engine(e.into()))?;
                Ok(number.map(|number| number.value()))
            };
            (number("version")?, number("key_check")?)
        }
        Err(TableError::TableDoesNotExist(_)) => (None, None),
        Err(error) => return Err(engine(error.into())),
    };
    let version = match version {
        Some(version @ OLDEST_VERSION..=VERSION) => version,
        Some(version) => return Err(other_version(version.to_string())),
        None => return Err(damaged("it was not made by push-ctl".to_owned())),
    };
    let refusal = match (key_check, kek) {
        (None, _) => None,
        (Some(_), None) => Some(Refusal::NoKeyFile),
        (Some(check), Some(kek)) => (check != kek.check()).then_some(Refusal::OtherKeyFile),
    };
    if let Some(refusal) = refusal {
        return Err(StoreError::Locked {
            path: path.to_owned(),
            refusal,
        });
    }
    let terminals = || -> Result<Vec<_>, redb::Error> {
        let table = transaction.open_table(TERMINALS)?;
        let read = |row: Result<(AccessGuard<'_, u64>, AccessGuard<'_, &[u8]>), StorageError>| {
            let (id, value) = row?;
            rows::read_terminal(id.value(), value.value()).map_err(|row| unreadable(&row))
        };
        table.iter()?.map(read).collect()
    };
    let sessions = || -> Result<Vec<_>, redb::Error> {
        let table = transaction.open_table(SESSIONS)?;
        let read = |row: Result<(AccessGuard<'_, u32>, AccessGuard<'_, &[u8]>), StorageError>| {
            let (slot, value) = row?;
            rows::read_session(slot.value(), value.value(), kek).map_err(|row| unreadable(&row))
        };
        table.iter()?.map(read).collect()
    };
    let apps = || -> Result<Vec<_>, redb::Error> {
        let mut apps = Vec::new();
        for row in transaction.open_table(APPS)?.iter()? {
            let (name, value) = row?;
            // In order, as none has one.
            let first_free = u16::try_from(apps.len() + 1).ok();
            let slot = first_free
                .filter(|_| version == 1)
                .and_then(NonZeroU16::new);
            let app = rows::read_app(name.value(), value.value(), slot);
            apps.push(app.map_err(|row| unreadable(&row))?);
        }
        Ok(apps)
    };
    // Who waits for it waits for half as long where there are two CPUs.
    let (terminals, sessions) = thread::scope(|scope| {
        let terminals = scope.spawn(terminals);
        let sessions = sessions();
        let terminals = terminals.join();
        (
            terminals.unwrap_or_else(|panic| resume_unwind(panic)),
            sessions,
        )
    });
    let image = Image {
        terminals: terminals.map_err(engine)?,
        sessions: sessions.map_err(engine)?,
        apps: apps().map_err(engine)?,
    };
    Ok(Found {
        version,
        is_encrypted: key_check.is_some(),
        image,
    })
}

fn unreadable(row: &rows::Unreadable) -> redb::Error {
    redb::Error::Corrupted(row.to_string())
}

fn opening(error: DatabaseError, path: &Path) -> StoreError {
    let path = path.to_owned();
    match error {
        DatabaseError::DatabaseAlreadyOpen | DatabaseError::LockProtocolMismatch => {
            StoreError::InUse(path)
        }
        DatabaseError::UpgradeRequired(version) => StoreError::OtherVersion {
            path,
            found: format!("{version} of the file format"),
        },
        // redb tells it from damage only in words.
        DatabaseError::Storage(StorageError::Corrupted(what))
            if what.starts_with("Expected file format version") =>
        {
            let version = what.rsplit(' ').next().unwrap_or_default();
            StoreError::OtherVersion {
                path,
                found: format!("{version} of the file format"),
            }
        }
        DatabaseError::Storage(StorageError::Io(cause))
            if !matches!(
                cause.kind(),
                io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof
            ) =>
        {
            StoreError::Io {
                doing: "open",
                path,
                cause,
            }
        }
        other => StoreError::Damaged {
            path,
            what: other.to_string(),
        },
    }
}
