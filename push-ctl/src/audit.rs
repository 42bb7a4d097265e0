//! The audit log: who did what, when, from where, and with what success; for good.
//!
//! A file of JSON lines, each an [`EventLine`], that is only ever appended to. A thread of its own writes
//! them: all that are waiting at once, which are then on disk. When the file would grow too long it is put
//! aside, as `FILE.1`, those before it as `FILE.2` and so on, of which the oldest goes.
//!
//! A disk that fails doesn't stop the gateway: what is to be written waits, and the operator is warned.

#[cfg(test)]
mod tests;

use crate::events::{Event, EventLine};
use anyhow::{Context, Result};
use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tracing::{error, info};

/// Only the daemon's user may read who did what.
const MODE: u32 = 0o600;

/// Entries that may wait for the disk before others are lost.
const MAX_WAITING: u64 = 1 << 19;

/// Entries that are written at once, at most.
const BATCH_LEN: usize = 4096;

/// How long after a failure the disk is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// Where the log is, and how much of it is kept.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The file.
    pub file: PathBuf,
    /// How long it gets.
    pub max_bytes: u64,
    /// How many of those before it are kept.
    pub keep: u32,
}

/// Takes entries for the log. To record one doesn't wait for the disk.
#[derive(Clone, Debug)]
pub struct Log {
    entries: Sender<Request>,
    state: Arc<State>,
}

enum Request {
    Record(Arc<Event>),
    /// To be answered when all that came before is on disk, or can't be.
    Flush(SyncSender<()>),
}

#[derive(Debug)]
struct State {
    file: PathBuf,
    waiting: AtomicU64,
    lost: AtomicU64,
    /// Why nothing can be written at the moment.
    failure: Mutex<Option<String>>,
}

impl State {
    fn failure(&self) -> Option<String> {
        let failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        failure.clone()
    }

    fn set_failure(&self, failure: Option<String>) {
        *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = failure;
    }
}

impl Log {
    /// Goes on with the file, or makes it.
    ///
    /// # Errors
    ///
    /// It can't be written to.
    ///
    /// # Panics
    ///
    /// The operating system gives no thread.
    pub fn open(settings: Settings) -> Result<Self> {
        let state = Arc::new(State {
            file: settings.file.clone(),
            waiting: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            failure: Mutex::new(None),
        });
        let mut writer = Writer {
            settings,
            file: None,
            len_bytes: 0,
            waiting: VecDeque::new(),
            state: Arc::clone(&state),
        };
        writer.open().with_context(|| {
            let file = state.file.display();
            format!("audit.file: can't append to {file}; the daemon's user has to be able to write there")
        })?;
        let (entries, requests) = channel();
        std::thread::Builder::new()
            .name("audit".to_owned())
            .spawn(move || writer.run(&requests))
            .expect("a thread can be started");
        Ok(Self { entries, state })
    }

    /// Keeps this event.
    pub fn record(&self, event: Arc<Event>) {
        if self.state.waiting.fetch_add(1, Ordering::Relaxed) >= MAX_WAITING {
            self.state.waiting.fetch_sub(1, Ordering::Relaxed);
            self.state.lost.fetch_add(1, Ordering::Relaxed);
            return;
        }
        // The thread ends only with the last who could ask it.
        let _ended = self.entries.send(Request::Record(event));
    }

    /// Waits until what was recorded is on disk, for `limit` at most. Blocks.
    pub fn flush(&self, limit: Duration) {
        let (sender, written) = sync_channel(1);
        let _ended = self.entries.send(Request::Flush(sender));
        if written.recv_timeout(limit).is_err() || self.state.failure().is_some() {
            error!(file = %self.state.file.display(), "not all of the audit log could be written");
        }
    }

    /// Whether the disk takes it.
    #[must_use]
    pub fn is_written(&self) -> bool {
        self.state.failure().is_none()
    }

    /// Entries that were lost, as there was no room for any more to wait for the disk.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.state.lost.load(Ordering::Relaxed)
    }

    /// What the operator should mend, one sentence each.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let file = self.state.file.display();
        let failure = self.state.failure().map(|why| {
            let waiting = self.state.waiting.load(Ordering::Relaxed);
            format!(
                "the audit log {file} can't be written to ({why}); {waiting} entries wait, and it is tried again"
            )
        });
        let lost = Some(self.lost()).filter(|&lost| lost > 0).map(|lost| {
            format!("{lost} entries of the audit log {file} are lost, as it couldn't be written to for too long")
        });
        failure.into_iter().chain(lost).collect()
    }
}

/// What the thread has.
struct Writer {
    settings: Settings,
    /// None if it has to be opened anew.
    file: Option<File>,
    len_bytes: u64,
    /// Lines that aren't written yet.
    waiting: VecDeque<String>,
    state: Arc<State>,
}

impl Writer {
    fn run(mut self, requests: &Receiver<Request>) {
        let mut flushes: Vec<SyncSender<()>> = Vec::new();
        loop {
            let first = if self.waiting.is_empty() {
                requests.recv().map_err(|_| RecvTimeoutError::Disconnected)
            } else {
                requests.recv_timeout(RETRY)
            };
            let is_last = matches!(first, Err(RecvTimeoutError::Disconnected));
            let more = std::iter::from_fn(|| requests.try_recv().ok());
            for request in first.into_iter().chain(more).take(BATCH_LEN) {
                match request {
                    Request::Record(event) => {
                        let line = EventLine::from(&*event).to_json();
                        self.waiting.push_back(line);
                    }
                    Request::Flush(sender) => flushes.push(sender),
                }
            }
            let result = self.write();
            self.say(&result);
            for flushed in flushes.drain(..) {
                // Who has asked may not have waited.
                let _gone = flushed.try_send(());
            }
            if is_last {
                return;
            }
        }
    }

    /// Writes all that waits, and returns when it is on disk.
    fn write(&mut self) -> io::Result<()> {
        while !self.waiting.is_empty() {
            let Some(mut file) = self.file.take() else {
                self.open()?;
                continue;
            };
            let mut text = String::new();
            let mut count = 0;
            for line in &self.waiting {
                let len_bytes = self.len_bytes + text.len() as u64 + line.len() as u64 + 1;
                if len_bytes > self.settings.max_bytes && self.len_bytes + text.len() as u64 > 0 {
                    break;
                }
                text.push_str(line);
                text.push('\n');
                count += 1;
            }
            if count == 0 {
                drop(file);
                self.rotate()?;
                continue;
            }
            if let Err(error) = file.write_all(text.as_bytes()) {
                // All of it is written once more; what of it is there already would be there twice.
                let _as_it_is = file.set_len(self.len_bytes);
                return Err(error);
            }
            file.sync_data()?;
            self.file = Some(file);
            self.len_bytes += text.len() as u64;
            self.waiting.drain(..count);
            self.state
                .waiting
                .fetch_sub(count as u64, Ordering::Relaxed);
        }
        Ok(())
    }

    fn open(&mut self) -> io::Result<()> {
        let path = &self.settings.file;
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)?;
        }
        let mut file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .mode(MODE)
            .open(path)?;
        self.len_bytes = file.metadata()?.len();
        if self.len_bytes > 0 && !ends_with_newline(&mut file)? {
            // The machine stopped while this line was written; the next one is one of its own.
            file.write_all(b"\n")?;
            self.len_bytes += 1;
        }
        self.file = Some(file);
        Ok(())
    }

    /// Puts the file aside, and all before it.
    fn rotate(&mut self) -> io::Result<()> {
        let file = &self.settings.file;
        for n in (1..self.settings.keep).rev() {
            rename_if_there(&aside(file, n), &aside(file, n + 1))?;
        }
        fs::rename(file, aside(file, 1))?;
        if let Some(directory) = file.parent() {
            File::open(directory)?.sync_all()?;
        }
        info!(file = %file.display(), "began a new audit log");
        self.open()
    }

    /// Once for each failure, and when it is over.
    fn say(&self, result: &io::Result<()>) {
        let file = self.settings.file.display();
        match (result, self.state.failure()) {
            (Ok(()), None) => {}
            (Ok(()), Some(_)) => {
                info!(%file, "the audit log is written to again");
                self.state.set_failure(None);
            }
            (Err(error), before) => {
                let why = error.to_string();
                if before.as_ref() != Some(&why) {
                    error!(%file, why, "the audit log can't be written to; it is tried again");
                    self.state.set_failure(Some(why));
                }
            }
        }
    }
}

fn ends_with_newline(file: &mut File) -> io::Result<bool> {
    let mut last = [0];
    file.seek(SeekFrom::End(-1))?;
    file.read_exact(&mut last)?;
    Ok(last == *b"\n")
}

/// `FILE.n`
fn aside(file: &Path, n: u32) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(format!(".{n}"));
    name.into()
}

fn rename_if_there(from: &Path, to: &Path) -> io::Result<()> {
    match fs::rename(from, to) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}
