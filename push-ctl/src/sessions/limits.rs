//! Limits that change while the state machine runs.

use super::{Limits, Sessions};

impl Sessions {
    /// From now on, these limits hold, but for the number of slots, which stays. Registrations keep the lifetime
    /// that they have until they are refreshed, and terminals the sessions.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = Limits {
            slots: self.limits.slots,
            ..limits
        };
    }
}
