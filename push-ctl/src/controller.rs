//! The one owner of sessions, store and data plane.
//!
//! A thread of its own takes requests from a queue: it applies all that are waiting, writes what has
//! changed to the store in one commit, then to the data plane, and only then answers. So what has been
//! acknowledged is durable and in effect, and a commit is shared by all who wait for it.
//!
//! If the store can't be written to, the thread ends without answering, and the daemon with it. What
//! the data plane has goes on being delivered.

mod clock;
mod image;
mod kernel;
mod nics;
mod rounds;
#[cfg(test)]
pub(crate) mod tests;
mod turns;

pub use clock::Clock;
pub(crate) use image::Displaced;
pub use image::Places;
pub use kernel::{ChangedFuture, Kernel, NicFuture, NicsFuture, ReconfiguredFuture};
pub use turns::Turns;

use crate::dataplane::{Nic, NicRefusal, NicStatus, Reconfiguration};
use crate::events::{Bus, What};
use crate::sessions::records::UnixTime;
use crate::sessions::{Changes, News, Notice, Sessions};
use crate::store::{Batch, Store, StoreError};
use image::image;
use nics::NicRequest;
use push_common::wire::SessionId;
use rounds::ROUND;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
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
    owner: &'a dyn Warns,
}

impl View<'_> {
    /// What the operator should know, one sentence each. It takes a look at the machine.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        self.owner.warnings()
    }
}

trait Warns {
    fn warnings(&self) -> Vec<String>;
}

/// Asks the controller.
#[derive(Clone)]
pub struct Controller {
    requests: mpsc::Sender<Request>,
    trigger_addresses: watch::Receiver<Vec<IpAddr>>,
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
        self.ask(|sender| Request::Nics(NicRequest::List(sender)))
            .await?
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

    /// Requests that wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        QUEUE_LEN.saturating_sub(self.requests.capacity())
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
    store: impl Store,
    kernel: impl Kernel,
    places: Places,
    outlets: Outlets,
    clock: Clock,
) -> Result<(Controller, Ended), StoreError> {
    let (tell_addresses, trigger_addresses) = watch::channel(kernel.trigger_addresses());
    let mut owner = Owner {
        trigger_addresses: tell_addresses,
        clock,
        sessions,
        store,
        kernel,
        places,
        outlets,
        policies_not_in_kernel: BTreeMap::new(),
        not_in_kernel: BTreeMap::new(),
        retry_at: None,
        round_at: Instant::now() + ROUND,
        next_slot: 0,
        renewals_asked: BTreeSet::new(),
        notices_lost: 0,
        turns: Turns::default(),
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
    let controller = Controller {
        requests,
        trigger_addresses,
    };
    Ok((controller, has_ended))
}

struct Owner<S, K> {
    clock: Clock,
    sessions: Sessions,
    store: S,
    kernel: K,
    places: Places,
    outlets: Outlets,
    /// What application servers are told.
    trigger_addresses: watch::Sender<Vec<IpAddr>>,
    /// Policies that the data plane refused, and why.
    policies_not_in_kernel: BTreeMap<NonZeroU16, String>,
    /// Authorised sessions that the data plane refused, or can't have, and why.
    not_in_kernel: BTreeMap<SessionId, String>,
    /// When they are tried again.
    retry_at: Option<Instant>,
    /// When the next round is, and where it begins.
    round_at: Instant,
    next_slot: u32,
    /// Sessions that were to be renewed already.
    renewals_asked: BTreeSet<SessionId>,
    /// Notices that there was no room for.
    notices_lost: u64,
    turns: Turns,
}

impl<S: Store, K: Kernel> Owner<S, K> {
    /// After a start: what has expired is ended, what the data plane shouldn't have is removed, and
    /// each policy and each authorised session is written, as its lifetime is measured anew.
    fn reconcile(&mut self) -> Result<(), StoreError> {
        let now = self.now();
        self.sessions.expire(now, usize::MAX);
        let mut changes = self.sessions.take_changes();
        self.commit(&changes)?;
        let authorised: BTreeSet<_> = self.authorised().collect();
        let installed: BTreeSet<_> = self.kernel.installed().into_iter().collect();
        let kept = authorised.intersection(&installed).count();
        let (added, removed) = (authorised.len() - kept, installed.len() - kept);
        changes.kernel.extend(authorised);
        changes.kernel.extend(installed);
        let policies = self.sessions.apps().map(|(app, _)| app.policy_slot);
        changes.policies.extend(policies);
        self.update_kernel(changes.policies, changes.kernel, now);
        self.kernel.settled();
        self.tell(changes.notices, changes.news);
        let (terminals, apps) = (
            self.sessions.terminals().len(),
            self.sessions.apps().count(),
        );
        info!(
            terminals,
            apps, kept, added, removed, "sessions in the data plane are those of the store"
        );
        Ok(())
    }

    async fn serve(mut self, mut queue: mpsc::Receiver<Request>) -> Result<(), StoreError> {
        let mut requests = Vec::with_capacity(BATCH_LEN);
        loop {
            let wake_up = self.wake_up();
            tokio::select! {
                received = timeout_at(wake_up, queue.recv_many(&mut requests, BATCH_LEN)) => {
                    // Nothing received without a timeout: nobody is left who could ask.
                    if let Ok(0) = received {
                        return self.write_windows();
                    }
                    let begun = Instant::now();
                    self.turn(&mut requests).await?;
                    self.turns.add(begun.elapsed());
                }
                () = self.kernel.changed() => {
                    self.kernel.reattach(false).await;
                    for told in self.kernel.take_told() {
                        self.publish(What::DataPlane(told));
                    }
                }
            }
        }
    }

    /// When there is something to do that nobody asks for.
    fn wake_up(&self) -> Instant {
        let expiry = self
            .sessions
            .next_deadline()
            .map(|deadline| self.clock.instant(deadline, self.kernel.suspended()));
        [expiry, self.retry_at]
            .into_iter()
            .flatten()
            .fold(self.round_at, Instant::min)
    }

    fn now(&self) -> UnixTime {
        self.clock.now(self.kernel.suspended())
    }

    fn authorised(&self) -> impl Iterator<Item = SessionId> {
        let sessions = self.sessions.sessions().map(|session| session.id);
        sessions.filter(|&id| self.sessions.authorised(id).is_some())
    }

    async fn turn(&mut self, requests: &mut Vec<Request>) -> Result<(), StoreError> {
        let now = self.now();
        self.sessions.expire(now, BATCH_LEN);
        let mut answers = Vec::with_capacity(requests.len());
        let mut nics = Vec::new();
        for request in requests.drain(..) {
            match request {
                Request::Apply(operation) => answers.push(operation(&mut self.sessions, now)),
                Request::Observe(look) => answers.push(look(self.view(now))),
                Request::Nics(request) => nics.push(request),
            }
        }
        if self.round_at <= Instant::now() {
            self.round_at = Instant::now() + ROUND;
            self.look_round();
            self.kernel.reattach(true).await;
        }
        let changes = self.sessions.take_changes();
        self.commit(&changes)?;
        let (mut policies, mut kernel) = (changes.policies, changes.kernel);
        if self.clock.has_slept(self.kernel.suspended()) {
            // Its clock stood still: when they end is told anew.
            kernel.extend(self.authorised());
        }
        if self.retry_at.take_if(|at| *at <= Instant::now()).is_some() {
            policies.extend(self.policies_not_in_kernel.keys());
            kernel.extend(self.not_in_kernel.keys());
        }
        self.update_kernel(policies, kernel, now);
        for answer in answers {
            answer();
        }
        self.tell(changes.notices, changes.news);
        for request in nics {
            self.ask_kernel(request).await;
        }
        Ok(())
    }

    /// Passes on what has come of what is done.
    fn tell(&mut self, notices: Vec<Notice>, news: Vec<News>) {
        for notice in notices {
            if self.outlets.notices.try_send(notice).is_err() {
                self.notices_lost += 1;
            }
        }
        for news in news {
            self.publish(What::Lifecycle(news));
        }
    }

    fn publish(&self, what: What) {
        self.outlets.events.publish_now(what);
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

    /// Brings these policies and sessions to the data plane, or takes them from it.
    fn update_kernel(
        &mut self,
        policies: BTreeSet<NonZeroU16>,
        changed: BTreeSet<SessionId>,
        now: UnixTime,
    ) {
        let (install, remove): (Vec<_>, Vec<_>) = changed
            .into_iter()
            .partition(|&id| self.sessions.authorised(id).is_some());
        // First, as a slot may have passed from one session to another, and one of a policy from one
        // application to another.
        for id in remove {
            self.kernel.remove(id);
            self.not_in_kernel.remove(&id);
            debug!(session = %id, "removed from the data plane");
        }
        // Then policies, as sessions refer to them.
        for slot in policies {
            self.update_policy(slot);
        }
        for id in install {
            match self.install(id, now) {
                Ok(()) => {
                    self.not_in_kernel.remove(&id);
                }
                Err(why) => {
                    // Once for each reason, not each time that it is tried again.
                    if self.not_in_kernel.get(&id) != Some(&why) {
                        warn!(session = %id, why, "not in the data plane; it is tried again");
                        self.not_in_kernel.insert(id, why);
                    }
                }
            }
        }
        if self.not_in_kernel.is_empty() && self.policies_not_in_kernel.is_empty() {
            self.retry_at = None;
        } else {
            self.retry_at.get_or_insert_with(|| Instant::now() + RETRY);
        }
    }

    fn update_policy(&mut self, slot: NonZeroU16) {
        let Some(app) = self.sessions.app_of_policy_slot(slot) else {
            self.kernel.remove_policy(slot.get());
            self.policies_not_in_kernel.remove(&slot);
            debug!(slot, "removed a policy from the data plane");
            return;
        };
        let Err(error) = self.kernel.set_policy(slot.get(), &app.policy) else {
            self.policies_not_in_kernel.remove(&slot);
            return;
        };
        let name = &app.name;
        let why = format!("the policy of application {name} is not in the data plane: {error:#}");
        if self.policies_not_in_kernel.get(&slot) != Some(&why) {
            warn!("{why}; it is tried again");
            self.policies_not_in_kernel.insert(slot, why);
        }
    }

    /// Puts an authorised session into the data plane, or says why not.
    fn install(&mut self, id: SessionId, now: UnixTime) -> Result<(), String> {
        let Some(authorised) = self.sessions.authorised(id) else {
            return Ok(());
        };
        // Rather not delivered for at all than by other rules than the operator's.
        if let Some(why) = self.policies_not_in_kernel.get(&authorised.app.policy_slot) {
            return Err(why.clone());
        }
        match image(&authorised, &self.sessions, &self.places, now) {
            Ok(image) => {
                self.kernel
                    .install(&image)
                    .map_err(|error| format!("{error:#}"))?;
                debug!(session = %id, device = %image.device, "in the data plane");
                Ok(())
            }
            Err(displaced) => {
                // An earlier run, with another configuration, may have left it there.
                self.note_window(id);
                self.kernel.remove(id);
                Err(displaced.to_string())
            }
        }
    }
}

impl<S: Store, K: Kernel> Warns for Owner<S, K> {
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
