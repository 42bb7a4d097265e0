//! What time it is, from one look at the wall clock.

use crate::sessions::records::UnixTime;
use std::time::{Duration, SystemTime};
use tokio::time::Instant;

/// The wall clock as it was at the start, carried on by the monotonic clock: setting the wall clock
/// ends no session.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    started: Instant,
    started_at: UnixTime,
}

impl Clock {
    pub(super) fn start() -> Self {
        let since_epoch = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        Self {
            started: Instant::now(),
            started_at: UnixTime::from_millis(0).saturating_add(since_epoch),
        }
    }

    pub(super) fn now(&self) -> UnixTime {
        self.started_at.saturating_add(self.started.elapsed())
    }

    /// When it will be, or has been, `time`; the start for all before that.
    pub(super) fn instant(&self, time: UnixTime) -> Instant {
        // So that the moment, cut to milliseconds, has come when a timer says so.
        let later = time
            .saturating_since(self.started_at)
            .saturating_add(Duration::from_millis(1));
        self.started
            .checked_add(later)
            .unwrap_or_else(|| self.started + Duration::from_hours(24))
    }
}
