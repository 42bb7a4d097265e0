//! The one owner of sessions, store and data plane.
//!
//! A thread of its own takes requests from a queue, and applies them. What has changed then goes to the store in one
//! commit, then to the data plane, and only then is there an answer. So what has been acknowledged is durable and
//! in effect, and a commit is shared by all who wait for it. Another thread writes to the store; this one applies
//! meanwhile what is to be in the next commit, and has looks taken, which wait for no commit. Whatever it does, it
//! does for a few milliseconds, and then sees who else waits.
//!
//! If the store can't be written to, the thread ends without answering, and the daemon with it. What
//! the data plane has goes on being delivered.

mod clock;
mod effect;
mod image;
mod kernel;
mod nics;
mod rounds;
#[cfg(test)]
pub(crate) mod tests;
mod turns;
mod writer;

pub use clock::Clock;
pub(crate) use image::Displaced;
pub use image::Places;
pub use kernel::{ChangedFuture, Kernel, NicFuture, NicsFuture, ReconfiguredFuture};
pub use turns::Turns;

use crate::dataplane::{Nic, NicRefusal, NicStatus, Reconfiguration};
use crate::events::{Bus, What};
use crate::sessions::records::UnixTime;
use crate::sessions::{Changes, Notice, Sessions};
use crate::store::{Batch, Store, StoreError};
use effect::Outcome;
use nics::NicRequest;
use push_common::wire::SessionId;
use rounds::ROUND;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until};
use tracing::{info, warn};
use writer::Writer;

/// Requests that wait before those who ask have to.
const QUEUE_LEN: usize = 4096;

/// Requests that are taken from the queue at once.
const BATCH_LEN: usize = 1024;

/// Changes that share a commit, about: when there are so many, others have to wait for the next one.
const CHANGES_LEN: usize = 1024;

/// Expiries after which it is looked how late it is.
const EXPIRIES_AT_ONCE: usize = 16;

/// How long changes are made before it is the turn of those who want to have a look, and how long it is theirs.
/// What is longer than a few milliseconds at a time, such as to look at a million sessions, is asked for in parts.
const SHARE: Duration = Duration::from_millis(2);

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

/// What changes no session, and waits for no commit.
enum Request {
    Observe(Look),
    Nics(NicRequest),
}

/// What there is to see.
pub struct View<'a> {
    /// All terminals, sessions and applications.
    pub sessions: &'a Sessions,
    /// The data plane.
    pub kernel: &'a dyn Kernel,
    /// The time.
    pub now: UnixTime,
    /// How long it was busy at a time.
    pub turns: Turns,
    owner: &'a dyn Seen,
}

impl View<'_> {
    /// What the operator should know, one sentence each. It takes a look at the machine.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        self.owner.warnings()
    }

    /// Why the data plane doesn't have an authorised session as it is to be, if that is so.
    #[must_use]
    pub fn not_in_kernel(&self, id: SessionId) -> Option<&str> {
        self.owner.not_in_kernel(id)
    }
}

/// What of the owner is to be seen.
trait Seen {
    fn warnings(&self) -> Vec<String>;
    fn not_in_kernel(&self, id: SessionId) -> Option<&str>;
}

/// Asks the controller.
#[derive(Clone)]
pub struct Controller {
    operations: mpsc::Sender<Operation>,
    requests: mpsc::Sender<Request>,
    trigger_addresses: watch::Receiver<Vec<IpAddr>>,
    has_successor: Arc<AtomicBool>,
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
        let (sender, answer) = oneshot::channel();
        let operation: Operation = Box::new(move |sessions, now| {
            let answer = operation(sessions, now);
            answer_with(sender, answer)
        });
        self.operations.send(operation).await.map_err(|_| Stopped)?;
        answer.await.map_err(|_| Stopped)
    }

    /// Has a look. What there is to see may not be durable yet.
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
        // Everybody else would wait for the kernel, too, were it asked there.
        self.observe(|view| view.kernel.nics()).await?.await
    }

    /// Attaches to one more NIC.
    ///
    /// # Errors
    ///
    /// [`Stopped`], or why it isn't attached.
    pub async fn attach_nic(&self, nic: Nic) -> Result<Result<(), NicRefusal>, Stopped> {
        self.ask(|sender| Request::Nics(NicRequest::Attach(nic, sender)))
            .await
    }

    /// Detaches from a NIC.
    ///
    /// # Errors
    ///
    /// [`Stopped`], or why it isn't detached.
    pub async fn detach_nic(&self, name: String) -> Result<Result<(), NicRefusal>, Stopped> {
        self.ask(|sender| Request::Nics(NicRequest::Detach(name, sender)))
            .await
    }

    /// Changes all of this in the data plane, or nothing.
    ///
    /// # Errors
    ///
    /// [`Stopped`], or what was refused.
    pub async fn reconfigure(&self, to: Reconfiguration) -> Result<anyhow::Result<()>, Stopped> {
        self.ask(|sender| Request::Nics(NicRequest::Reconfigure(to, sender)))
            .await
    }

    /// Addresses to which triggers are sent, of all NICs, as it is now.
    #[must_use]
    pub fn trigger_addresses(&self) -> Vec<IpAddr> {
        self.trigger_addresses.borrow().clone()
    }

    /// Another one takes over as soon as this one has ended, and finds replay windows in the data plane: they need not
    /// be written to the store at the end.
    pub fn expect_successor(&self) {
        self.has_successor.store(true, Ordering::Relaxed);
    }

    /// Requests that wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        let waiting = |capacity| QUEUE_LEN.saturating_sub(capacity);
        waiting(self.operations.capacity()) + waiting(self.requests.capacity())
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

/// Where the controller puts what concerns others.
#[derive(Clone, Debug)]
pub struct Outlets {
    /// What devices are to be told. What there is no room for is not told.
    pub notices: mpsc::Sender<Notice>,
    /// What has happened, and what the path tells of.
    pub events: Bus,
}

/// What ends when the thread of the controller ends: with an error, or because nobody can ask any more.
pub type Ended = oneshot::Receiver<Result<(), StoreError>>;

/// Brings store and data plane in line, and starts the thread. `places` is where devices can register;
/// for those that have registered elsewhere nothing is delivered.
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
    mut store: impl Store,
    kernel: impl Kernel,
    places: Places,
    outlets: Outlets,
    clock: Clock,
) -> Result<(Controller, Ended), StoreError> {
    let (tell_addresses, trigger_addresses) = watch::channel(kernel.trigger_addresses());
    let has_successor = Arc::default();
    let mut owner = Owner {
        has_successor: Arc::clone(&has_successor),
        trigger_addresses: tell_addresses,
        clock,
        sessions,
        kernel,
        places,
        outlets,
        policies_not_in_kernel: BTreeMap::new(),
        not_in_kernel: BTreeMap::new(),
        retry_at: None,
        retried: None,
        timed_anew: None,
        round_at: Instant::now() + ROUND,
        next_slot: 0,
        renewals_asked: BTreeSet::new(),
        notices_lost: 0,
        turns: Turns::default(),
        answers: Vec::new(),
        in_writing: None,
    };
    owner.reconcile(&mut store)?;
    let writer = Writer::start(store);
    let (operations, operations_queue) = mpsc::channel(QUEUE_LEN);
    let (requests, requests_queue) = mpsc::channel(QUEUE_LEN);
    let queues = Queues {
        operations: operations_queue,
        requests: requests_queue,
    };
    let (ended, has_ended) = oneshot::channel();
    let runtime = tokio::runtime::Handle::current();
    std::thread::Builder::new()
        .name("controller".to_owned())
        .spawn(move || {
            let result = runtime.block_on(owner.serve(queues, writer));
            drop(ended.send(result));
        })
        .expect("a thread can be started");
    let controller = Controller {
        operations,
        requests,
        trigger_addresses,
        has_successor,
    };
    Ok((controller, has_ended))
}

/// Where requests come from.
struct Queues {
    operations: mpsc::Receiver<Operation>,
    requests: mpsc::Receiver<Request>,
}

/// Requests that it will soon be the turn of.
#[derive(Default)]
struct Next {
    operations: VecDeque<Operation>,
    requests: VecDeque<Request>,
}

struct Owner<K> {
    /// Whether another controller takes over at the end.
    has_successor: Arc<AtomicBool>,
    clock: Clock,
    sessions: Sessions,
    kernel: K,
    places: Places,
    outlets: Outlets,
    /// What application servers are told.
    trigger_addresses: watch::Sender<Vec<IpAddr>>,
    /// Policies that the data plane refused, and why.
    policies_not_in_kernel: BTreeMap<NonZeroU16, String>,
    /// Authorised sessions that the data plane refused, or can't have, and why.
    not_in_kernel: BTreeMap<SessionId, String>,
    /// When they are tried again, and after which session it goes on.
    retry_at: Option<Instant>,
    retried: Option<SessionId>,
    /// From which slot on the data plane is to be told anew when sessions end.
    timed_anew: Option<u32>,
    /// When the next round is, and where it begins.
    round_at: Instant,
    next_slot: u32,
    /// Sessions that were to be renewed already.
    renewals_asked: BTreeSet<SessionId>,
    /// Notices that there was no room for.
    notices_lost: u64,
    turns: Turns,
    /// Of what is to be in the next commit.
    answers: Vec<Answer>,
    /// What is to be done once the commit that is being written is durable.
    in_writing: Option<Outcome>,
}

impl<K: Kernel> Owner<K> {
    /// After a start: what has expired is ended, what the data plane shouldn't have is removed, and
    /// each policy and each authorised session is written, as its lifetime is measured anew.
    fn reconcile(&mut self, store: &mut impl Store) -> Result<(), StoreError> {
        let begun = Instant::now();
        let now = self.now();
        self.sessions.expire(now, usize::MAX);
        let mut changes = self.sessions.take_changes();
        if !changes.leave_store_alone() {
            store.apply(&self.batch(&changes))?;
        }
        let mut authorised: BTreeSet<_> = self.authorised().collect();
        let mut installed: BTreeSet<_> = self.kernel.installed().into_iter().collect();
        let kept = authorised.intersection(&installed).count();
        let (added, removed) = (authorised.len() - kept, installed.len() - kept);
        changes.kernel.append(&mut authorised);
        changes.kernel.append(&mut installed);
        let policies = self.sessions.apps().map(|(app, _)| app.policy_slot);
        changes.policies.extend(policies);
        let outcome = self.outcome(changes);
        let mended = self.bring_about(outcome);
        self.kernel.settled();
        let (terminals, apps) = (
            self.sessions.terminals().len(),
            self.sessions.apps().count(),
        );
        info!(
            terminals,
            apps,
            kept = kept.saturating_sub(mended),
            mended,
            added,
            removed,
            took_ms = begun.elapsed().as_millis(),
            "sessions in the data plane are those of the store"
        );
        if mended > 0 {
            warn!(
                sessions = mended,
                "sessions in the data plane had another key or device, or other rules, than store and configuration have"
            );
        }
        Ok(())
    }

    async fn serve(mut self, mut queues: Queues, mut writer: Writer) -> Result<(), StoreError> {
        let mut next = Next::default();
        let (mut operations, mut requests) = (Vec::new(), Vec::new());
        let (mut are_operations_open, mut are_requests_open) = (true, true);
        loop {
            let has_more = !next.requests.is_empty()
                || !next.operations.is_empty() && !self.has_enough_changes()
                || self.in_writing.is_none() && self.timed_anew.is_some()
                || self.in_writing.is_none()
                    && !(self.answers.is_empty() && self.sessions.changes_waiting() == 0);
            let is_settled = self.in_writing.is_none() && self.answers.is_empty();
            // Nobody is left who could ask, or waits for an answer.
            if !(are_operations_open || are_requests_open || has_more) && is_settled {
                if self.has_successor.load(Ordering::Relaxed) {
                    return Ok(());
                }
                return self.write_windows(&mut writer).await;
            }
            let wake_up = self.wake_up();
            tokio::select! {
                received = queues.operations.recv_many(&mut operations, BATCH_LEN),
                    if are_operations_open && next.operations.is_empty() =>
                {
                    are_operations_open = received > 0;
                    next.operations.extend(operations.drain(..));
                }
                received = queues.requests.recv_many(&mut requests, BATCH_LEN),
                    if are_requests_open && next.requests.is_empty() =>
                {
                    are_requests_open = received > 0;
                    next.requests.extend(requests.drain(..));
                }
                written = writer.written(), if self.in_writing.is_some() => {
                    written?;
                    let begun = Instant::now();
                    if let Some(outcome) = self.in_writing.take() {
                        // What is different is what has changed.
                        let _mended = self.bring_about(outcome);
                    }
                    self.turns.add(begun.elapsed());
                    continue;
                }
                () = self.kernel.changed() => {
                    self.kernel.reattach(false).await;
                    for told in self.kernel.take_told() {
                        self.publish(What::DataPlane(told));
                    }
                    continue;
                }
                () = sleep_until(wake_up), if !has_more => {}
                () = std::future::ready(()), if has_more => {}
            }
            let begun = Instant::now();
            self.turn(&mut next, &writer).await;
            self.turns.add(begun.elapsed());
        }
    }

    fn now(&self) -> UnixTime {
        self.clock.now(self.kernel.suspended())
    }

    fn authorised(&self) -> impl Iterator<Item = SessionId> {
        let sessions = self.sessions.sessions().map(|session| session.id);
        sessions.filter(|&id| self.sessions.is_authorised(id))
    }

    /// Whether the next commit is to have no more in it.
    fn has_enough_changes(&self) -> bool {
        self.sessions.changes_waiting() >= CHANGES_LEN
    }

    /// When there is something to do that nobody asks for.
    fn wake_up(&self) -> Instant {
        let is_writing = self.in_writing.is_some();
        let expiry = self
            .sessions
            .next_deadline()
            .filter(|_| !(is_writing && self.has_enough_changes()))
            .map(|deadline| self.clock.instant(deadline, self.kernel.suspended()));
        let retry = self.retry_at.filter(|_| !is_writing);
        [expiry, retry]
            .into_iter()
            .flatten()
            .fold(self.round_at, Instant::min)
    }

    async fn turn(&mut self, next: &mut Next, writer: &Writer) {
        let now = self.now();
        let begun = Instant::now();
        let is_due = |sessions: &Sessions| {
            sessions
                .next_deadline()
                .is_some_and(|deadline| deadline <= now)
        };
        while is_due(&self.sessions) && !self.has_enough_changes() && begun.elapsed() < SHARE / 2 {
            self.sessions.expire(now, EXPIRIES_AT_ONCE);
        }
        while !self.has_enough_changes()
            && begun.elapsed() < SHARE
            && let Some(operation) = next.operations.pop_front()
        {
            self.answers.push(operation(&mut self.sessions, now));
        }
        if self.in_writing.is_none() && (next.operations.is_empty() || self.has_enough_changes()) {
            self.hand_over(writer);
        }
        let begun = Instant::now();
        while begun.elapsed() < SHARE
            && let Some(request) = next.requests.pop_front()
        {
            match request {
                Request::Observe(look) => look(self.view(now))(),
                Request::Nics(request) => self.ask_kernel(request).await,
            }
        }
        if self.round_at <= Instant::now() {
            self.round_at = Instant::now() + ROUND;
            self.look_round();
            self.kernel.reattach(true).await;
        }
    }

    /// Has what has changed written, if anything has; then it comes about.
    fn hand_over(&mut self, writer: &Writer) {
        let mut changes = self.sessions.take_changes();
        self.retry_some(&mut changes);
        self.time_some_anew(&mut changes);
        let batch = (!changes.leave_store_alone()).then(|| self.batch(&changes));
        let outcome = self.outcome(changes);
        match batch {
            Some(batch) => {
                writer.write(batch);
                self.in_writing = Some(outcome);
            }
            None => {
                let _mended = self.bring_about(outcome);
            }
        }
    }

    fn view(&self, now: UnixTime) -> View<'_> {
        View {
            sessions: &self.sessions,
            kernel: &self.kernel,
            now,
            turns: self.turns,
            owner: self,
        }
    }

    /// What the store is to learn.
    fn batch(&self, changes: &Changes) -> Batch {
        let sessions = &self.sessions;
        Batch {
            terminals: changes
                .terminals
                .iter()
                .map(|&id| (id, sessions.terminal(id).cloned()))
                .collect(),
            slots: changes
                .slots
                .iter()
                .map(|&slot| (slot, sessions.session_in_slot(slot).cloned()))
                .collect(),
            apps: changes
                .apps
                .iter()
                .map(|name| (name.clone(), sessions.app(name).cloned()))
                .collect(),
        }
    }
}

impl<K: Kernel> Seen for Owner<K> {
    fn not_in_kernel(&self, id: SessionId) -> Option<&str> {
        self.not_in_kernel.get(&id).map(String::as_str)
    }

    fn warnings(&self) -> Vec<String> {
        let mut warnings = self.kernel.warnings();
        if self.notices_lost > 0 {
            warnings.push(format!(
                "{} messages to devices were not sent, as too many were waiting.",
                self.notices_lost
            ));
        }
        let policies = self.policies_not_in_kernel.values();
        warnings.extend(policies.map(|why| format!("{why}. It is tried again.")));
        if let Some((id, why)) = self.not_in_kernel.first_key_value() {
            let count = match self.not_in_kernel.len() {
                1 => "1 authorised session is".to_owned(),
                many => format!("{many} authorised sessions are"),
            };
            warnings.push(format!(
                "{count} not in the data plane; of {id}: {why}. The log has them all."
            ));
        }
        warnings
    }
}
