//! The configuration in force, and how it comes to be another one while the daemon runs: all of what is
//! different in the file, or nothing.

use crate::config::{Change, Changes, Config, ConfigError};
use crate::controller::{Controller, Stopped};
use crate::events::{Bus, What};
use crate::{limits, service};
use std::sync::{Arc, PoisonError, RwLock};
use tokio::signal::unix::Signal;
use tokio::sync::Mutex;
use tracing::{error, info};

/// The configuration in force.
pub struct InForce {
    config: RwLock<Arc<Config>>,
    controller: Controller,
    events: Bus,
    /// One reload after the other.
    turn: Mutex<()>,
}

/// Why the configuration in force stays what it was.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// The file can't be used.
    #[error("nothing was changed: {0}")]
    Config(#[from] ConfigError),
    /// Something is different that can't change while the daemon runs.
    #[error(
        "nothing was changed: {} can't change while the daemon runs; restart it, which keeps delivering, and all of the file is in force",
        and(.0)
    )]
    NeedsRestart(Vec<String>),
    /// The data plane refuses.
    #[error("nothing was changed: {0:#}")]
    Refused(anyhow::Error),
    /// The daemon is ending.
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

impl InForce {
    /// This one, which the controller was started with. What changes is published on `events`.
    #[must_use]
    pub fn new(config: Config, controller: Controller, events: Bus) -> Self {
        Self {
            config: RwLock::new(Arc::new(config)),
            controller,
            events,
            turn: Mutex::new(()),
        }
    }

    /// As it is now.
    #[must_use]
    pub fn config(&self) -> Arc<Config> {
        Arc::clone(&self.config.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Reads the file anew, and has all of it in force. Returns what is different.
    ///
    /// # Errors
    ///
    /// [`ReloadError`]; nothing has changed then.
    pub async fn reload(&self) -> Result<Vec<Change>, ReloadError> {
        let _turn = self.turn.lock().await;
        service::reloading();
        let result = self.apply().await;
        service::reloaded(match &result {
            Ok(_) => "Reloaded the configuration.",
            Err(_) => "The configuration could not be reloaded; the one before stays.",
        });
        match &result {
            Ok(changes) if changes.is_empty() => info!("reloaded the configuration: no change"),
            Ok(changes) => {
                for Change {
                    key, before, after, ..
                } in changes
                {
                    info!(key, before, after, "reloaded the configuration: changed");
                }
                let changes = changes.iter().map(ToString::to_string).collect();
                self.events.publish_now(What::Reloaded { changes });
            }
            Err(error) => error!("the configuration in force stays: {error}"),
        }
        result
    }

    /// Reloads whenever the daemon gets this signal; never ends.
    pub async fn reload_at(&self, mut signal: Signal) {
        while signal.recv().await.is_some() {
            // What came of it is in the log.
            let _logged = self.reload().await;
        }
        std::future::pending::<()>().await;
    }

    async fn apply(&self) -> Result<Vec<Change>, ReloadError> {
        let before = self.config();
        let after = Config::load(&before.path)?;
        let changes = Changes::between(&before, &after);
        let fixed: Vec<_> = changes
            .that_need_a_restart()
            .map(ToOwned::to_owned)
            .collect();
        if !fixed.is_empty() {
            return Err(ReloadError::NeedsRestart(fixed));
        }
        let Changes {
            keys,
            data_plane,
            limits: limits_change,
        } = changes;
        // First what may be refused, and then takes back itself what it has done of it.
        if data_plane != Default::default() {
            let applied = self.controller.reconfigure(data_plane).await?;
            applied.map_err(ReloadError::Refused)?;
        }
        if limits_change {
            let limits = limits(&after);
            self.controller
                .apply(move |sessions, _now| sessions.set_limits(limits))
                .await?;
        }
        *self.config.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(after);
        Ok(keys)
    }
}

/// `a`, `a and b`, `a, b and c`
fn and(keys: &[String]) -> String {
    match keys {
        [] => String::new(),
        [only] => only.clone(),
        [first @ .., last] => format!("{} and {last}", first.join(", ")),
    }
}
