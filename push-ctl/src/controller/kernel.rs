//! What the controller needs of a data plane.

use crate::dataplane::{
    Dataplane, NicCounters, NicStatus, Policy, SessionCounters, SessionImage, SessionTraffic, Told,
};
use push_common::wire::SessionId;
use std::ops::Range;
use std::pin::Pin;

/// The kernel's answer about the NICs, to come.
pub type NicsFuture<'a> = Pin<Box<dyn Future<Output = anyhow::Result<Vec<NicStatus>>> + 'a>>;

/// News of the kernel, to come.
pub type ChangedFuture<'a> = Pin<Box<dyn Future<Output = ()> + 'a>>;

/// What delivers triggers: [`Dataplane`], or what stands in for it in tests.
pub trait Kernel: Send + 'static {
    /// Has what the sessions of an application may do in this slot from now on.
    ///
    /// # Errors
    ///
    /// The data plane's refusal.
    fn set_policy(&mut self, slot: u16, policy: &Policy) -> anyhow::Result<()>;
    /// Has nothing in this slot any more. No session refers to it.
    fn remove_policy(&mut self, slot: u16);
    /// Delivers for this session from now on, or changes how. The policy it refers to is there.
    ///
    /// # Errors
    ///
    /// The data plane's refusal.
    fn install(&mut self, image: &SessionImage) -> anyhow::Result<()>;
    /// Delivers no more for this session, if it did.
    fn remove(&mut self, id: SessionId);
    /// All policies and sessions that there are have been set and installed.
    fn settled(&mut self);
    /// The sessions that it delivers for.
    fn installed(&self) -> Vec<SessionId>;
    /// What was delivered for a session; `None` if it isn't there.
    fn session_counters(&self, id: SessionId) -> Option<SessionCounters>;
    /// What was delivered for the sessions in these slots, by slot; `None` where there is none.
    fn traffic(&self, slots: Range<u32>) -> Vec<Option<SessionTraffic>>;
    /// About the highest sequence number that was accepted for a session, at most 127 below it; `None` if
    /// the session isn't there.
    fn newest_sequence(&self, id: SessionId) -> Option<u64>;
    /// What is known of the way to a session's device: `resolved`, `unresolved` or `no_route`; `None` if
    /// the session isn't there.
    fn next_hop_state(&self, id: SessionId) -> Option<&'static str>;
    /// Packets and bytes by verdict, for each NIC.
    ///
    /// # Errors
    ///
    /// The kernel's refusal.
    fn verdicts(&self) -> anyhow::Result<Vec<NicCounters>>;
    /// Events that were never told of, as there were too many.
    fn events_lost(&self) -> u64;
    /// Waits for news of the kernel, such as of routes, and acts on them. To stop waiting is harmless.
    fn changed(&mut self) -> ChangedFuture<'_>;
    /// What the path has told while news were waited for, and wasn't taken since.
    fn take_told(&mut self) -> Vec<Told>;
    /// What the kernel says about the NICs.
    fn nics(&self) -> NicsFuture<'_>;
    /// What the operator should mend, one sentence each.
    fn warnings(&self) -> Vec<String>;
}

impl Kernel for Dataplane {
    fn set_policy(&mut self, slot: u16, policy: &Policy) -> anyhow::Result<()> {
        Self::set_policy(self, slot, policy)
    }

    fn remove_policy(&mut self, slot: u16) {
        Self::remove_policy(self, slot);
    }

    fn install(&mut self, image: &SessionImage) -> anyhow::Result<()> {
        Self::install(self, image)
    }

    fn remove(&mut self, id: SessionId) {
        Self::remove(self, id);
    }

    fn settled(&mut self) {
        Self::settled(self);
    }

    fn installed(&self) -> Vec<SessionId> {
        Self::installed(self)
    }

    fn session_counters(&self, id: SessionId) -> Option<SessionCounters> {
        Self::session_counters(self, id)
    }

    fn traffic(&self, slots: Range<u32>) -> Vec<Option<SessionTraffic>> {
        Self::traffic(self, slots)
    }

    fn newest_sequence(&self, id: SessionId) -> Option<u64> {
        Self::newest_sequence(self, id)
    }

    fn next_hop_state(&self, id: SessionId) -> Option<&'static str> {
        Self::next_hop_state(self, id)
    }

    fn verdicts(&self) -> anyhow::Result<Vec<NicCounters>> {
        Self::verdicts(self)
    }

    fn events_lost(&self) -> u64 {
        Self::events_lost(self)
    }

    fn changed(&mut self) -> ChangedFuture<'_> {
        Box::pin(Self::changed(self))
    }

    fn take_told(&mut self) -> Vec<Told> {
        Self::take_told(self)
    }

    fn nics(&self) -> NicsFuture<'_> {
        Box::pin(Self::nics(self))
    }

    fn warnings(&self) -> Vec<String> {
        Self::warnings(self)
    }
}
