//! What survives a restart: terminals, sessions, applications.
//!
//! [`RedbStore`] keeps them in one file, `push.redb` in the `state_dir`. A token is never in it, only
//! the keys derived from it and its hash; so is an application's key only as a hash. The file can be
//! read by root and the daemon alone (mode 0600), as a derived key is enough to sign triggers. The keys are not
//! encrypted in it: the daemon starts without anybody's help, so what they were encrypted with would have to be
//! in another file of the same user. A copy, such as a backup, has to be kept as secret as the file.
//!
//! | table | key | value |
//! | --- | --- | --- |
//! | `meta` | `version` | [`VERSION`] |
//! | `terminals` | registration id | one byte of format, then CBOR |
//! | `sessions` | slot, dense and therefore quick | the same |
//! | `apps` | name | the same |
//!
//! A file that can't be used is never changed: it is opened for good only once everything in it
//! has been read in a rehearsal, in which nothing is written to it. One of an older version is then
//! brought to the current one in a single step, after which older programs refuse it.
//!
//! | version | since then |
//! | --- | --- |
//! | 1 | |
//! | 2 | realms of terminals, policies of applications, tunnels of sessions |
//! | 3 | ports and suspension of terminals, rotation of tokens and replay windows of imported sessions, credentials, quotas and monitors of applications, and that one is removed |

pub mod inspect;
mod rehearsal;
mod rows;
#[cfg(test)]
pub(crate) mod tests;

use crate::sessions::Image;
use crate::sessions::records::{App, AppName, RegistrationId, Session, Terminal};
use redb::backends::FileBackend;
use redb::{
    Database, DatabaseError, ReadableDatabase, ReadableTable, StorageError, TableDefinition,
    TableError, WriteTransaction,
};
use rehearsal::Rehearsal;
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::num::NonZeroU16;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use tracing::info;

/// Version of the store as a whole.
pub const VERSION: u32 = 3;

/// The oldest version that can be brought to the current one.
const OLDEST_VERSION: u32 = 1;

const FILE_NAME: &str = "push.redb";
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
    fn apply(&mut self, batch: &Batch<'_>) -> Result<(), StoreError>;
}

/// Records to be put into the store, or, where there is none, to be deleted from it.
#[derive(Debug, Default)]
pub struct Batch<'a> {
    /// Terminals by registration id.
    pub terminals: Vec<(RegistrationId, Option<&'a Terminal>)>,
    /// Sessions by slot.
    pub slots: Vec<(u32, Option<&'a Session>)>,
    /// Applications by name.
    pub apps: Vec<(&'a AppName, Option<&'a App>)>,
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

/// The store in a file.
#[derive(Debug)]
pub struct RedbStore {
    database: Database,
    path: PathBuf,
    /// Holds the lock that keeps a second daemon out of the directory.
    _lock: File,
}

impl RedbStore {
    /// Opens the store in this directory, and makes both if they aren't there.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub fn open(state_dir: &Path) -> Result<Self, StoreError> {
        let io = |doing, path: &Path| {
            let path = path.to_owned();
            move |cause| StoreError::Io { doing, path, cause }
        };
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(state_dir)
            .map_err(io("create", state_dir))?;
        let path = state_dir.join(FILE_NAME);
        let lock = File::open(state_dir).map_err(io("open", state_dir))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(StoreError::InUse(path)),
            Err(TryLockError::Error(cause)) => return Err(io("lock", state_dir)(cause)),
        }
        let older = match OpenOptions::new().read(true).write(true).open(&path) {
            Ok(file) => {
                let (version, image) = rehearse(file, &path)?;
                (version < VERSION).then_some((version, image))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                create(state_dir, &path)?;
                None
            }
            Err(error) => return Err(io("open", &path)(error)),
        };
        let database = Database::builder()
            .set_cache_size(CACHE_BYTES)
            .open(&path)
            .map_err(|e| opening(e, &path))?;
        if let Some((version, image)) = older {
            upgrade(&database, &image).map_err(|cause| StoreError::Write {
                path: path.clone(),
                cause: Box::new(cause),
            })?;
            info!(
                from = version,
                to = VERSION,
                "the store is of the current version now"
            );
        }
        Ok(Self {
            database,
            path,
            _lock: lock,
        })
    }

    /// Where the file is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Store for RedbStore {
    fn load(&self) -> Result<Image, StoreError> {
        read(&self.database, &self.path).map(|(_, image)| image)
    }

    fn apply(&mut self, batch: &Batch<'_>) -> Result<(), StoreError> {
        write(&self.database, batch).map_err(|cause| StoreError::Write {
            path: self.path.clone(),
            cause: Box::new(cause),
        })
    }
}

fn write(database: &Database, batch: &Batch<'_>) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    put(&transaction, batch)?;
    transaction.commit()?;
    Ok(())
}

/// Brings a store of an older version, of which `image` was read, to the current one.
fn upgrade(database: &Database, image: &Image) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    // Other records are the same in all versions, or lack only what may be left out.
    let apps = image.apps.iter().map(|app| (&app.name, Some(app)));
    put(
        &transaction,
        &Batch {
            apps: apps.collect(),
            ..Batch::default()
        },
    )?;
    transaction.open_table(META)?.insert("version", VERSION)?;
    transaction.commit()?;
    Ok(())
}

fn put(transaction: &WriteTransaction, batch: &Batch<'_>) -> Result<(), redb::Error> {
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
                sessions.insert(slot, rows::session(session).as_slice())?;
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

/// Makes an empty store. It gets its name only when it is complete, so that an empty or short file
/// of that name is always damage.
fn create(state_dir: &Path, path: &Path) -> Result<(), StoreError> {
    let unfinished = state_dir.join("push.redb.new");
    let io = |cause| StoreError::Io {
        doing: "create",
        path: unfinished.clone(),
        cause,
    };
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&unfinished);
    let file = file.map_err(io)?;
    let made = || -> Result<(), redb::Error> {
        let database = Database::builder().create_with_backend(FileBackend::new(file)?)?;
        let transaction = database.begin_write()?;
        transaction.open_table(META)?.insert("version", VERSION)?;
        transaction.open_table(TERMINALS)?;
        transaction.open_table(SESSIONS)?;
        transaction.open_table(APPS)?;
        transaction.commit()?;
        Ok(())
    };
    made().map_err(|cause| StoreError::Write {
        path: unfinished.clone(),
        cause: Box::new(cause),
    })?;
    fs::rename(&unfinished, path).map_err(io)?;
    File::open(state_dir)
        .and_then(|directory| directory.sync_all())
        .map_err(io)
}

/// Reads and checks everything in the file without writing to it. Returns its version, too.
fn rehearse(file: File, path: &Path) -> Result<(u32, Image), StoreError> {
    let backend = Rehearsal::of(file).map_err(|cause| StoreError::Io {
        doing: "read",
        path: path.to_owned(),
        cause,
    })?;
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
    read(&database, path)
}

/// The version, and everything.
fn read(database: &Database, path: &Path) -> Result<(u32, Image), StoreError> {
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
    let found = match transaction.open_table(META) {
        Ok(meta) => meta
            .get("version")
            .map_err(|e| engine(e.into()))?
            .map(|version| version.value()),
        Err(TableError::TableDoesNotExist(_)) => None,
        Err(error) => return Err(engine(error.into())),
    };
    let version = match found {
        Some(version @ OLDEST_VERSION..=VERSION) => version,
        Some(version) => return Err(other_version(version.to_string())),
        None => return Err(damaged("it was not made by push-ctl".to_owned())),
    };
    let mut image = Image::default();
    let mut read = || -> Result<(), redb::Error> {
        for row in transaction.open_table(TERMINALS)?.iter()? {
            let (id, value) = row?;
            image.terminals.push(
                rows::read_terminal(id.value(), value.value()).map_err(|row| unreadable(&row))?,
            );
        }
        for row in transaction.open_table(SESSIONS)?.iter()? {
            let (slot, value) = row?;
            image.sessions.push(
                rows::read_session(slot.value(), value.value()).map_err(|row| unreadable(&row))?,
            );
        }
        for row in transaction.open_table(APPS)?.iter()? {
            let (name, value) = row?;
            // In order, as none has one.
            let first_free = u16::try_from(image.apps.len() + 1).ok();
            let slot = first_free
                .filter(|_| version == 1)
                .and_then(NonZeroU16::new);
            let app = rows::read_app(name.value(), value.value(), slot);
            image.apps.push(app.map_err(|row| unreadable(&row))?);
        }
        Ok(())
    };
    read().map_err(engine)?;
    Ok((version, image))
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
