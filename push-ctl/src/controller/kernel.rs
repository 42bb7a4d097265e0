//! What the controller needs of a data plane.

use crate::dataplane::{Dataplane, NicCounters, NicStatus, SessionCounters, SessionImage};
use push_common::wire::SessionId;
use std::pin::Pin;

/// The kernel's answer about the NICs, to come.
pub type NicsFuture<'a> = Pin<Box<dyn Future<Output = anyhow::Result<Vec<NicStatus>>> + 'a>>;

/// What delivers triggers: [`Dataplane`], or what stands in for it in tests.
pub trait Kernel: Send + 'static {
    /// Delivers for this session from now on, or changes how.
    ///
    /// # Errors
    ///
    /// The data plane's refusal.
    fn install(&mut self, image: &SessionImage) -> anyhow::Result<()>;
    /// Delivers no more for this session, if it did.
    fn remove(&mut self, id: SessionId);
    /// The sessions that it delivers for.
    fn installed(&self) -> Vec<SessionId>;
    /// What was delivered for a session; `None` if it isn't there.
    fn session_counters(&self, id: SessionId) -> Option<SessionCounters>;
    /// Packets and bytes by verdict, for each NIC.
    ///
    /// # Errors
    ///
    /// The kernel's refusal.
    fn verdicts(&self) -> anyhow::Result<Vec<NicCounters>>;
    /// What the kernel says about the NICs.
    fn nics(&self) -> NicsFuture<'_>;
    /// What the operator should mend, one sentence each.
    fn warnings(&self) -> Vec<String>;
}

impl Kernel for Dataplane {
    fn install(&mut self, image: &SessionImage) -> anyhow::Result<()> {
        Self::install(self, image)
    }

    fn remove(&mut self, id: SessionId) {
        Self::remove(self, id);
    }

    fn installed(&self) -> Vec<SessionId> {
        Self::installed(self)
    }

    fn session_counters(&self, id: SessionId) -> Option<SessionCounters> {
        Self::session_counters(self, id)
    }

    fn verdicts(&self) -> anyhow::Result<Vec<NicCounters>> {
        Self::verdicts(self)
    }

    fn nics(&self) -> NicsFuture<'_> {
        Box::pin(Self::nics(self))
    }

    fn warnings(&self) -> Vec<String> {
        Self::warnings(self)
    }
}
