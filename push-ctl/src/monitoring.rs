//! Looks after application servers: an application whose servers fail has no sessions.
//!
//! For each application that the operator wants monitored, its status is enquired at an interval, and now
//! and then it is looked whether it is in use at all. What comes out are words to the sessions: that it
//! failed, with a cause, or that it recovered. An application that fails loses its sessions: their tokens
//! are valid no more, the data plane refuses their triggers, and the apps on the devices are told.
//!
//! | cause | what it takes | until |
//! | --- | --- | --- |
//! | unreachable | no good answer to any enquiry for a time | the next good answer |
//! | announced | an answer 503, or `"available": false` in it; or its server told the external interface | a good answer after a bad one, `"available": true`, or its server tells |
//! | inactive | for a time neither a validation nor a delivered trigger | at once: it may come back whenever it likes |

mod enquiry;
#[cfg(test)]
mod tests;
mod watched;

pub use enquiry::{AuthorityError, BadUrl, Enquirer, StatusUrl};

use crate::controller::{Controller, Stopped};
use crate::random;
use crate::sessions::records::{AppFailure, AppName, Availability};
use enquiry::Answer;
use push_common::wire::SessionId;
use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tracing::{info, warn};
use watched::{Standing, Watched};

/// Sessions whose counters are looked at before others get to ask the controller something.
const SESSIONS_AT_A_TIME: usize = 4096;

/// When nothing is due, it is looked all the same.
const IDLE: Duration = Duration::from_hours(1);

/// What others tell the monitoring. To clone it is cheap; all clones are one.
#[derive(Clone, Default)]
pub struct Hints(Arc<Told>);

#[derive(Default)]
struct Told {
    monitors_changed: Notify,
    /// When each application last validated a token.
    validated: Mutex<HashMap<AppName, Instant>>,
}

impl Hints {
    /// A monitor was set or taken away, or an application removed.
    pub fn monitors_changed(&self) {
        self.0.monitors_changed.notify_one();
    }

    /// A server of this application has validated a token.
    pub fn validated(&self, app: AppName) {
        self.validations().insert(app, Instant::now());
    }

    fn validations(&self) -> MutexGuard<'_, HashMap<AppName, Instant>> {
        let validated = self.0.validated.lock();
        // Each entry is whole at any moment.
        validated.unwrap_or_else(PoisonError::into_inner)
    }
}

/// Monitors the applications that the controller knows, until it stops.
///
/// # Errors
///
/// [`Stopped`].
pub async fn run(controller: Controller, hints: Hints, enquirer: Enquirer) -> Result<(), Stopped> {
    let mut round = Round {
        controller,
        hints,
        enquirer,
        watched: BTreeMap::new(),
        enquiries: JoinSet::new(),
    };
    round.follow_changes().await?;
    loop {
        let due = round.watched.values().filter_map(Watched::due).min();
        let due = due.unwrap_or_else(|| Instant::now() + IDLE);
        tokio::select! {
            () = round.hints.0.monitors_changed.notified() => round.follow_changes().await?,
            Some(answered) = round.enquiries.join_next() => {
                // One that panicked is as good as one that wasn't answered, and can't be told whose it was.
                if let Ok((app, watch, answer)) = answered {
                    round.answered(app, watch, answer).await?;
                }
            }
            () = sleep_until(due) => round.what_is_due().await?,
        }
    }
}

struct Round {
    controller: Controller,
    hints: Hints,
    enquirer: Enquirer,
    watched: BTreeMap<AppName, Watched>,
    /// Under way: of which application, since which change of its monitor, and the answer.
    enquiries: JoinSet<(AppName, u64, Answer)>,
}

impl Round {
    /// Takes up the monitors as they are now. One that is as before goes on as before.
    async fn follow_changes(&mut self) -> Result<(), Stopped> {
        let monitors = self.controller.observe(|view| {
            let apps = view.sessions.apps();
            let monitors =
                apps.filter_map(|(app, _)| Some((app.name.clone(), app.monitor.clone()?)));
            monitors.collect::<BTreeMap<_, _>>()
        });
        let monitors = monitors.await?;
        self.watched.retain(|app, _| monitors.contains_key(app));
        let now = Instant::now();
        for (app, monitor) in monitors {
            match self.watched.get(&app) {
                Some(watched) if *watched.monitor() == monitor => {}
                Some(_) | None => {
                    let watched = Watched::new(now, monitor);
                    self.watched.insert(app, watched);
                }
            }
        }
        let watched = &self.watched;
        let mut validations = self.hints.validations();
        validations.retain(|app, _| watched.contains_key(app));
        Ok(())
    }

    async fn what_is_due(&mut self) -> Result<(), Stopped> {
        let now = Instant::now();
        let mut inactive_after = Vec::new();
        for (app, watched) in &mut self.watched {
            if let Some(url) = watched.enquire(now) {
                let (app, watch, enquirer) = (app.clone(), watched.number(), self.enquirer.clone());
                self.enquiries
                    .spawn(async move { (app, watch, enquirer.ask(&url).await) });
            }
            if let Some(limit) = watched.look(now) {
                inactive_after.push((app.clone(), limit));
            }
        }
        for (app, limit) in inactive_after {
            let quiet_for = self.quiet_for(&app, limit).await?;
            if let Some(watched) = self.watched.get_mut(&app) {
                watched.looked(Instant::now(), quiet_for);
            }
        }
        Ok(())
    }

    async fn answered(&mut self, app: AppName, watch: u64, answer: Answer) -> Result<(), Stopped> {
        // Of a monitor that was changed or taken away meanwhile: the answer is of no more use.
        let watched = self.watched.get_mut(&app);
        let Some(watched) = watched.filter(|watched| watched.number() == watch) else {
            return Ok(());
        };
        let first = watched.standing() != Standing::Failing;
        let (standing, is_news) = watched.answered(Instant::now(), &answer, random_factor());
        if let (true, Answer::None(why)) = (first, &answer) {
            warn!(%app, %why, "a status enquiry had no good answer");
        }
        let found = Found::new(standing, is_news, &answer);
        let change = self.controller.apply(move |sessions, now| {
            let change = found.change(sessions.app(&app)?.availability)?;
            match change {
                Change::Fail(cause) => sessions.app_failed(now, &app, cause).map(drop),
                Change::Recover => sessions.app_recovered(&app),
            }
            .ok()?;
            Some((app, change))
        });
        if let Some((app, change)) = change.await? {
            info!(%app, ?change, "after a status enquiry");
        }
        Ok(())
    }

    /// How long an application hasn't been in use; if that is at least `limit`, its sessions end.
    async fn quiet_for(&self, app: &AppName, limit: Duration) -> Result<Duration, Stopped> {
        let validated = self.hints.validations().get(app).map(Instant::elapsed);
        if let Some(ago) = validated.filter(|&ago| ago < limit) {
            return Ok(ago);
        }
        let mut after = None;
        loop {
            match self.look_through(app.clone(), after, limit).await? {
                ControlFlow::Break(Some(ago)) => return Ok(ago),
                ControlFlow::Break(None) => break,
                ControlFlow::Continue(last) => after = Some(last),
            }
        }
        let name = app.clone();
        let ended = self.controller.apply(move |sessions, now| {
            let (_, live) = sessions.app_with_sessions(&name)?;
            let ended = (live > 0).then(|| sessions.app_failed(now, &name, AppFailure::Inactive));
            ended?.ok()
        });
        if let Some(sessions) = ended.await? {
            let limit = humantime::format_duration(limit);
            info!(%app, sessions, %limit, "inactive; its sessions have ended");
        }
        Ok(Duration::ZERO)
    }

    /// Looks for a delivery within `limit` among some of an application's sessions, those after `after`. Gives
    /// how long ago one was, or none, or where to go on.
    async fn look_through(
        &self,
        app: AppName,
        after: Option<SessionId>,
        limit: Duration,
    ) -> Result<ControlFlow<Option<Duration>, SessionId>, Stopped> {
        let looked = self.controller.observe(move |view| {
            let mut last = None;
            let sessions = view.sessions.sessions_of_app_after(&app, after);
            for id in sessions.take(SESSIONS_AT_A_TIME) {
                let counters = view.kernel.session_counters(id);
                let ago = counters.and_then(|counters| counters.last_delivered_ago);
                if let Some(ago) = ago.filter(|&ago| ago < limit) {
                    return ControlFlow::Break(Some(ago));
                }
                last = Some(id);
            }
            match last {
                Some(last) => ControlFlow::Continue(last),
                None => ControlFlow::Break(None),
            }
        });
        looked.await
    }
}

/// What an enquiry says of an application.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    /// Its servers do their work. Whether they say so in as many words, or didn't when they were asked before.
    Good { again: bool },
    /// They say that they don't.
    Unavailable,
    /// They haven't answered for too long.
    Unreachable,
    /// Nothing yet.
    Nothing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    Fail(AppFailure),
    Recover,
}

impl Found {
    fn new(standing: Standing, is_news: bool, answer: &Answer) -> Self {
        match standing {
            Standing::Good => Self::Good {
                again: is_news || *answer == Answer::Good { said: true },
            },
            Standing::Unavailable => Self::Unavailable,
            Standing::Unreachable => Self::Unreachable,
            Standing::Failing | Standing::Unknown => Self::Nothing,
        }
    }

    /// What that changes of what was known.
    fn change(self, known: Availability) -> Option<Change> {
        let out_because = match known {
            Availability::Available => None,
            Availability::Failed { cause, .. } => Some(cause),
        };
        match (self, out_because) {
            (Self::Unreachable, None) => Some(Change::Fail(AppFailure::Unreachable)),
            (Self::Unavailable, None) => Some(Change::Fail(AppFailure::Announced)),
            // What its server told the external interface holds until it is heard otherwise: an answer that is
            // good as ever is no such word.
            (Self::Good { again: true }, Some(AppFailure::Announced))
            | (Self::Good { .. }, Some(AppFailure::Unreachable | AppFailure::Inactive)) => {
                Some(Change::Recover)
            }
            (Self::Good { again: false }, Some(AppFailure::Announced))
            | (Self::Good { .. } | Self::Nothing, None)
            | (Self::Nothing | Self::Unreachable | Self::Unavailable, Some(_)) => None,
        }
    }
}

/// Between 0.9 and 1.1, so that enquiries that began together don't stay together.
fn random_factor() -> f64 {
    0.9 + 0.2 * f64::from(u16::from_ne_bytes(random::bytes())) / f64::from(u16::MAX)
}
