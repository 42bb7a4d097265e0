//! How long registrations last.

use super::Sessions;
use std::time::Duration;

impl Sessions {
    /// From now on, registrations that don't ask for a lifetime get `default`, and none gets more than `max`.
    /// Those that there are keep what they have until they are refreshed.
    pub fn set_lifetimes(&mut self, default: Duration, max: Duration) {
        self.limits.default_lifetime = default;
        self.limits.max_lifetime = max;
    }
}
