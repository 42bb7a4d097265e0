//! The one owner of sessions, store and data plane.
//!
//! A thread of its own takes requests from a queue: it applies all that are waiting, writes what has
//! changed to the store in one commit, then to the data plane, and only then answers. So what has been
//! acknowledged is durable and in effect, and a commit is shared by all who wait for it.
//!
//! If the store can't be written to, the thread ends without answering, and the daemon with it. What
//! the data plane has goes on being delivered.

mod clock;
mod kernel;
#[cfg(test)]
pub(crate) mod tests;

pub use kernel::{Kernel, NicsFuture};

use crate::dataplane::{NicStatus, SessionImage};
use crate::sessions::records::UnixTime;
use crate::sessions::{Changes, Sessions};
use crate::store::{Batch, Store, StoreError};
use clock::Clock;
use push_common::wire::SessionId;
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout_at};
use tracing::{debug, error, info, warn};

/// Requests that wait before those who ask have to.
const QUEUE_LEN: usize = 4096;

/// Requests, and expiries, that share a commit at most.
const BATCH_LEN: usize = 1024;

/// How long after a failure the data plane is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// The controller has stopped: it couldn't write to its store, or the daemon is ending.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the controller has stopped")]
pub struct Stopped;

/// Answers who has asked.
type Answer = Box<dyn FnOnce() + Send>;
type Operation = Box<dyn FnOnce(&mut Sessions, UnixTime) -> Answer + Send>;
type Look = Box<dyn FnOnce(View<'_>) -> Answer + Send>;

enum Request {
    Apply(Operation),
    Observe(Look),
    Nics(oneshot::Sender<anyhow::Result<Vec<NicStatus>>>),
}

/// What there is to see.
pub struct View<'a> {
    /// All terminals, sessions and applications.
    pub sessions: &'a Sessions,
    /// The data plane.
    pub kernel: &'a dyn Kernel,
    /// The time.
    pub now: UnixTime,
    /// What the operator should know, one sentence each.
    pub warnings: Vec<String>,
}

/// Asks the controller.
#[derive(Clone)]
pub struct Controller {
    requests: mpsc::Sender<Request>,
}

impl Controller {
    /// Applies `operation` and returns its answer once it is durable and in effect.
    ///
    /// # Errors
    ///
    /// [`Stopped`]; whether the operation is durable is not known then.
    pub async fn apply<T: Send + 'static>(
        &self,
        operation: impl FnOnce(&mut Sessions, UnixTime) -> T + Send + 'static,
    ) -> Result<T, Stopped> {
        self.ask(|sender| {
            Request::Apply(Box::new(move |sessions, now| {
                let answer = operation(sessions, now);
                answer_with(sender, answer)
            }))
        })
        .await
    }

    /// Has a look.
    ///
    /// # Errors
    ///
    /// [`Stopped`].
    pub async fn observe<T: Send + 'static>(
        &self,
        look: impl FnOnce(View<'_>) -> T + Send + 'static,
    ) -> Result<T, Stopped> {
        self.ask(|sender| {
            Request::Observe(Box::new(move |view| {
                let answer = look(view);
                answer_with(sender, answer)
            }))
        })
        .await
    }

    /// What the kernel says about the NICs.
    ///
    /// # Errors
    ///
    /// [`Stopped`], or the kernel's refusal.
    pub async fn nics(&self) -> anyhow::Result<Vec<NicStatus>> {
        self.ask(Request::Nics).await?
    }

    async fn ask<T>(
        &self,
        request: impl FnOnce(oneshot::Sender<T>) -> Request,
    ) -> Result<T, Stopped> {
        let (sender, answer) = oneshot::channel();
        self.requests
            .send(request(sender))
            .await
            .map_err(|_| Stopped)?;
        answer.await.map_err(|_| Stopped)
    }
}

fn answer_with<T: Send + 'static>(sender: oneshot::Sender<T>, answer: T) -> Answer {
    // Who asked may have gone away meanwhile.
    Box::new(move || drop(sender.send(answer)))
}

/// What ends when the thread of the controller ends: with an error, or because nobody can ask any more.
pub type Ended = oneshot::Receiver<Result<(), StoreError>>;

/// Brings store and data plane in line, and starts the thread.
///
/// # Errors
///
/// [`StoreError`] if what has expired meanwhile can't be written.
///
/// # Panics
///
/// Outside a tokio runtime of several threads, and if the operating system gives no thread.
pub fn start(
    sessions: Sessions,
    store: impl Store,
    kernel: impl Kernel,
) -> Result<(Controller, Ended), StoreError> {
    let mut owner = Owner {
        clock: Clock::start(),
        sessions,
        store,
        kernel,
        not_in_kernel: BTreeSet::new(),
        retry_at: None,
    };
    owner.reconcile()?;
    let (requests, queue) = mpsc::channel(QUEUE_LEN);
    let (ended, has_ended) = oneshot::channel();
    let runtime = tokio::runtime::Handle::current();
    std::thread::Builder::new()
        .name("controller".to_owned())
        .spawn(move || {
            let result = runtime.block_on(owner.serve(queue));
            drop(ended.send(result));
        })
        .expect("a thread can be started");
    Ok((Controller { requests }, has_ended))
}

struct Owner<S, K> {
    clock: Clock,
    sessions: Sessions,
    store: S,
    kernel: K,
    /// Authorised sessions that the data plane refused.
    not_in_kernel: BTreeSet<SessionId>,
    /// When they are tried again.
    retry_at: Option<Instant>,
}

impl<S: Store, K: Kernel> Owner<S, K> {
    /// After a start: what has expired is ended, what the data plane shouldn't have is removed, and
    /// each authorised session is written, as its lifetime is measured anew.
    fn reconcile(&mut self) -> Result<(), StoreError> {
        let now = self.clock.now();
        self.sessions.expire(now, usize::MAX);
        let mut changes = self.sessions.take_changes();
        self.commit(&changes)?;
        let authorised: BTreeSet<_> = self
            .sessions
            .sessions()
            .map(|session| session.id)
            .filter(|&id| self.sessions.authorised(id).is_some())
            .collect();
        let installed: BTreeSet<_> = self.kernel.installed().into_iter().collect();
        let kept = authorised.intersection(&installed).count();
        let (added, removed) = (authorised.len() - kept, installed.len() - kept);
        changes.kernel.extend(authorised);
        changes.kernel.extend(installed);
        self.update_kernel(changes.kernel, now);
        let (terminals, apps) = (self.sessions.terminals().len(), self.sessions.apps().len());
        info!(
            terminals,
            apps, kept, added, removed, "sessions in the data plane are those of the store"
        );
        Ok(())
    }

    async fn serve(mut self, mut queue: mpsc::Receiver<Request>) -> Result<(), StoreError> {
        let mut requests = Vec::with_capacity(BATCH_LEN);
        loop {
            // Nothing received without a timeout: nobody is left who could ask.
            if let Ok(0) =
                timeout_at(self.wake_up(), queue.recv_many(&mut requests, BATCH_LEN)).await
            {
                return Ok(());
            }
            self.turn(&mut requests).await?;
        }
    }

    /// When there is something to do that nobody asks for.
    fn wake_up(&self) -> Instant {
        let expiry = self
            .sessions
            .next_deadline()
            .map(|deadline| self.clock.instant(deadline));
        let idle = Instant::now() + Duration::from_hours(1);
        [expiry, self.retry_at]
            .into_iter()
            .flatten()
            .min()
            .unwrap_or(idle)
    }

    async fn turn(&mut self, requests: &mut Vec<Request>) -> Result<(), StoreError> {
        let now = self.clock.now();
        self.sessions.expire(now, BATCH_LEN);
        let mut answers = Vec::with_capacity(requests.len());
        let mut nics = Vec::new();
        for request in requests.drain(..) {
            match request {
                Request::Apply(operation) => answers.push(operation(&mut self.sessions, now)),
                Request::Observe(look) => answers.push(look(self.view(now))),
                Request::Nics(sender) => nics.push(sender),
            }
        }
        let changes = self.sessions.take_changes();
        self.commit(&changes)?;
        let mut kernel = changes.kernel;
        if self.retry_at.take_if(|at| *at <= Instant::now()).is_some() {
            kernel.extend(&self.not_in_kernel);
        }
        self.update_kernel(kernel, now);
        for answer in answers {
            answer();
        }
        for sender in nics {
            drop(sender.send(self.kernel.nics().await));
        }
        Ok(())
    }

    fn view(&self, now: UnixTime) -> View<'_> {
        let mut warnings = self.kernel.warnings();
        if !self.not_in_kernel.is_empty() {
            let count = self.not_in_kernel.len();
            warnings.push(format!(
                "{count} authorised sessions are not in the data plane; the log says why."
            ));
        }
        View {
            sessions: &self.sessions,
            kernel: &self.kernel,
            now,
            warnings,
        }
    }

    fn commit(&mut self, changes: &Changes) -> Result<(), StoreError> {
        if changes.leave_store_alone() {
            return Ok(());
        }
        let sessions = &self.sessions;
        let batch = Batch {
            terminals: changes
                .terminals
                .iter()
                .map(|&id| (id, sessions.terminal(id)))
                .collect(),
            slots: changes
                .slots
                .iter()
                .map(|&slot| (slot, sessions.session_in_slot(slot)))
                .collect(),
            apps: changes
                .apps
                .iter()
                .map(|name| (name, sessions.app(name)))
                .collect(),
        };
        self.store.apply(&batch).inspect_err(|error| {
            error!(%error, "the controller stops; what is in the data plane goes on being delivered");
        })
    }

    fn update_kernel(&mut self, changed: BTreeSet<SessionId>, now: UnixTime) {
        let (install, remove): (Vec<_>, Vec<_>) = changed
            .into_iter()
            .partition(|&id| self.sessions.authorised(id).is_some());
        // First, as a slot may have passed from one session to another.
        for id in remove {
            self.kernel.remove(id);
            self.not_in_kernel.remove(&id);
            debug!(session = %id, "removed from the data plane");
        }
        for id in install {
            let Some(image) = image(&self.sessions, id, now) else {
                continue;
            };
            match self.kernel.install(&image) {
                Ok(()) => {
                    self.not_in_kernel.remove(&id);
                    debug!(session = %id, device = %image.device, "in the data plane");
                }
                Err(error) => {
                    // Once per session, not each time that it is tried again.
                    if self.not_in_kernel.insert(id) {
                        warn!(session = %id, error = format!("{error:#}"), "not in the data plane; it is tried again");
                    }
                }
            }
        }
        if self.not_in_kernel.is_empty() {
            self.retry_at = None;
        } else {
            self.retry_at.get_or_insert_with(|| Instant::now() + RETRY);
        }
    }
}

/// What the data plane is to know of a session; `None` if it isn't to know of it.
fn image(sessions: &Sessions, id: SessionId, now: UnixTime) -> Option<SessionImage> {
    let (session, token, terminal) = sessions.authorised(id)?;
    Some(SessionImage {
        id,
        device: sessions.device_of(session)?,
        source: terminal.path.gateway,
        token_generation: token.generation,
        key: token.key,
        previous_key: None,
        expires_in: sessions.expires_in(session, now),
    })
}
