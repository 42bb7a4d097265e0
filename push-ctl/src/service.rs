//! What the daemon tells the service manager that started it (`sd_notify(3)`): nothing, unless it
//! asked for it by `NOTIFY_SOCKET`.

use crate::controller::{Controller, Stopped, View};
use sd_notify::NotifyState;
use std::convert::Infallible;
use std::env;
use std::time::Duration;
use tokio::time::{MissedTickBehavior, interval};
use tracing::warn;

/// How often the status is brought up to date where no watchdog sets the pace.
const STATUS_EVERY: Duration = Duration::from_secs(10);

/// Everything listens and is attached.
pub fn ready() {
    tell(&[NotifyState::Ready]);
}

/// The configuration is being read anew, until [`reloaded`].
pub fn reloading() {
    // Newer service managers want to know when; where there is no telling, they go without.
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(_no_clock) => tell(&[NotifyState::Reloading]),
    }
}

/// The daemon goes on, by the new configuration or by the old one; `outcome` says which, in a few words.
pub fn reloaded(outcome: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(outcome)]);
}

/// The daemon is ending; the data plane isn't.
pub fn stopping() {
    let status = "Stopping; the data plane goes on delivering.";
    tell(&[NotifyState::Stopping, NotifyState::Status(status)]);
}

/// Answers for the controller: as long as its thread answers, the watchdog of the service manager is
/// content, and is told how things are. Never ends.
pub async fn answer_for(controller: &Controller) -> Infallible {
    if env::var_os("NOTIFY_SOCKET").is_none() {
        return std::future::pending().await;
    }
    // Two of them may get lost.
    let period = sd_notify::watchdog_enabled().map_or(STATUS_EVERY, |limit| limit / 3);
    let Stopped = beats(controller, period, |status| {
        tell(&[NotifyState::Watchdog, NotifyState::Status(status)]);
    })
    .await;
    // Why is for others to say.
    std::future::pending().await
}

/// Calls `beat` with how things are, each time that the thread of the controller has said so.
async fn beats(controller: &Controller, period: Duration, mut beat: impl FnMut(&str)) -> Stopped {
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let answer = async {
            // Also by way of the store.
            controller.apply(|_, _| ()).await?;
            controller.observe(|view| status(&view)).await
        };
        match answer.await {
            Ok(status) => beat(&status),
            Err(stopped) => return stopped,
        }
    }
}

fn status(view: &View<'_>) -> String {
    let counts = view.sessions.counts();
    let sessions = format!(
        "{} authorised and {} requested sessions",
        counts.authorised, counts.requested
    );
    match view.warnings().len() {
        0 => sessions,
        1 => format!("{sessions}; 1 warning, see push-ctl status"),
        many => format!("{sessions}; {many} warnings, see push-ctl status"),
    }
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        warn!(%error, "the service manager can't be told how the daemon is doing");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controller::tests::World;
    use std::sync::mpsc;
    use tokio::time::timeout;

    #[tokio::test(flavor = "multi_thread")]
    async fn nobody_answers_for_a_controller_that_does_not() {
        let period = Duration::from_millis(5);
        let (controller, _ended) = World::default().start();
        let (beat, mut beats_seen) = tokio::sync::mpsc::unbounded_channel();
        let asked = controller.clone();
        let answering = tokio::spawn(async move {
            beats(&asked, period, |status| drop(beat.send(status.to_owned()))).await
        });
        for _ in 0..3 {
            assert_eq!(
                beats_seen.recv().await.unwrap(),
                "0 authorised and 0 requested sessions; 1 warning, see push-ctl status"
            );
        }

        let (go_on, held) = mpsc::channel::<()>();
        let (is_held, hold) = tokio::sync::oneshot::channel();
        let stuck = controller.clone();
        let holding = tokio::spawn(async move {
            stuck
                .observe(move |_| {
                    let _nobody_waits = is_held.send(());
                    let _gone = held.recv();
                })
                .await
        });
        hold.await.unwrap();
        while beats_seen.try_recv().is_ok() {}
        let beat = timeout(20 * period, beats_seen.recv()).await;
        assert!(beat.is_err(), "a beat of a stuck controller: {beat:?}");

        drop(go_on);
        holding.await.unwrap().unwrap();
        beats_seen.recv().await.unwrap();
        answering.abort();
    }
}
