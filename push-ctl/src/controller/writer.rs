//! The thread that writes to the store, which may take its time: the controller does something else meanwhile.

use crate::store::{Batch, Store, StoreError};
use std::thread::{self, JoinHandle};
use tokio::sync::mpsc;
use tracing::error;

/// One batch is written at a time.
pub(super) struct Writer {
    batches: Option<mpsc::Sender<Batch>>,
    written: mpsc::Receiver<Result<(), StoreError>>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    /// # Panics
    ///
    /// If the operating system gives no thread.
    pub(super) fn start(mut store: impl Store) -> Self {
        let (batches, mut queue) = mpsc::channel::<Batch>(1);
        let (tell, written) = mpsc::channel(1);
        let write = move || {
            while let Some(batch) = queue.blocking_recv() {
                let result = store.apply(&batch);
                let goes_on = result.is_ok();
                if tell.blocking_send(result).is_err() || !goes_on {
                    return;
                }
            }
        };
        let thread = thread::Builder::new().name("store".to_owned()).spawn(write);
        Self {
            batches: Some(batches),
            written,
            thread: Some(thread.expect("a thread can be started")),
        }
    }

    /// Has this written. Whatever was to be written before has been.
    pub(super) fn write(&self, batch: Batch) {
        if let Some(batches) = &self.batches {
            let sent = batches.try_send(batch);
            debug_assert!(sent.is_ok(), "one batch is written at a time");
        }
    }

    /// Waits until that is on disk, or can't be. To stop waiting is harmless.
    pub(super) async fn written(&mut self) -> Result<(), StoreError> {
        match self.written.recv().await {
            Some(result) => result.inspect_err(|error| {
                error!(%error, "the controller stops; what is in the data plane goes on being delivered");
            }),
            None => std::future::pending().await,
        }
    }
}

/// The file is closed when this is gone, so that another process can have it.
impl Drop for Writer {
    fn drop(&mut self) {
        self.batches = None;
        self.written.close();
        if let Some(thread) = self.thread.take() {
            // It has told of what has gone wrong, if it could.
            let _panicked = thread.join();
        }
    }
}
