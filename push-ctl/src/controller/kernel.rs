//! What the controller needs of a data plane.

use crate::dataplane::{
    Captures, Dataplane, Found, Nic, NicCounters, NicRefusal, NicStatus, Policy, Reconfiguration,
    SessionCounters, SessionImage, SessionSeen, SessionTraffic, Told,
};
use push_common::replay::WORDS;
use push_common::wire::SessionId;
use std::net::IpAddr;
use std::pin::Pin;
use std::time::Duration;

/// The kernel's answer about the NICs, to come.
pub type NicsFuture = Pin<Box<dyn Future<Output = anyhow::Result<Vec<NicStatus>>> + Send>>;

/// Whether a NIC was attached or detached, to come.
pub type NicFuture<'a> = Pin<Box<dyn Future<Output = Result<(), NicRefusal>> + 'a>>;

/// Whether the data plane was changed, to come.
pub type ReconfiguredFuture<'a> = Pin<Box<dyn Future<Output = anyhow::Result<()>> + 'a>>;

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
    /// Delivers for this session from now on, or changes how; says how it was before. The policy it refers to is there.
    ///
    /// # Errors
    ///
    /// The data plane's refusal.
    fn install(&mut self, image: &SessionImage) -> anyhow::Result<Found>;
    /// Delivers no more for this session, if it did.
    fn remove(&mut self, id: SessionId);
    /// All policies and sessions that there are have been set and installed.
    fn settled(&mut self);
    /// The sessions that it delivers for.
    fn installed(&self) -> Vec<SessionId>;
    /// What was delivered for a session; `None` if it isn't there.
    fn session_counters(&self, id: SessionId) -> Option<SessionCounters>;
    /// What was delivered for the session in this slot; `None` if there is none.
    fn traffic(&self, slot: u32) -> Option<SessionTraffic>;
    /// About the highest sequence number that was accepted for a session, at most 127 below it; `None` if
    /// the session isn't there.
    fn newest_sequence(&self, id: SessionId) -> Option<u64>;
    /// The replay window of a session; `None` if it isn't there.
    fn window(&self, id: SessionId) -> Option<[u64; WORDS]>;
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
    /// Attaches anew to NICs that are back, and with `retry` also to those that have refused.
    fn reattach(&mut self, retry: bool) -> ChangedFuture<'_>;
    /// What the path has told while news were waited for, and wasn't taken since.
    fn take_told(&mut self) -> Vec<Told>;
    /// What the kernel says about the NICs. It is asked when this is waited for, which need not be here.
    fn nics(&self) -> NicsFuture;
    /// Attaches to one more NIC.
    fn attach_nic(&mut self, nic: Nic) -> NicFuture<'_>;
    /// Detaches from a NIC.
    fn detach_nic(&mut self, name: String) -> NicFuture<'_>;
    /// Changes all of this, or nothing.
    fn reconfigure(&mut self, to: Reconfiguration) -> ReconfiguredFuture<'_>;
    /// Addresses to which triggers are sent, of all NICs.
    fn trigger_addresses(&self) -> Vec<IpAddr>;
    /// A session as the path sees it; `None` if it doesn't.
    ///
    /// # Errors
    ///
    /// The kernel's refusal.
    fn session_seen(&self, id: SessionId) -> anyhow::Result<Option<SessionSeen>>;
    /// Watches a session for this time.
    ///
    /// # Errors
    ///
    /// Another one is being watched, or the kernel refuses.
    fn capture(&self, id: SessionId, time: Duration) -> anyhow::Result<Captures>;
    /// How long its clock, by which sessions end, has stood still since the machine was booted.
    fn suspended(&self) -> Duration;
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

    fn install(&mut self, image: &SessionImage) -> anyhow::Result<Found> {
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

    fn traffic(&self, slot: u32) -> Option<SessionTraffic> {
        Self::traffic(self, slot)
    }

    fn newest_sequence(&self, id: SessionId) -> Option<u64> {
        Self::newest_sequence(self, id)
    }

    fn window(&self, id: SessionId) -> Option<[u64; WORDS]> {
        Self::window(self, id)
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

    fn reattach(&mut self, retry: bool) -> ChangedFuture<'_> {
        Box::pin(Self::reattach(self, retry))
    }

    fn take_told(&mut self) -> Vec<Told> {
        Self::take_told(self)
    }

    fn nics(&self) -> NicsFuture {
        Box::pin(Self::nics(self))
    }

    fn attach_nic(&mut self, nic: Nic) -> NicFuture<'_> {
        Box::pin(Self::attach_nic(self, nic))
    }

    fn detach_nic(&mut self, name: String) -> NicFuture<'_> {
        Box::pin(async move { Self::detach_nic(self, &name).await })
    }

    fn reconfigure(&mut self, to: Reconfiguration) -> ReconfiguredFuture<'_> {
        Box::pin(Self::reconfigure(self, to))
    }

    fn trigger_addresses(&self) -> Vec<IpAddr> {
        Self::trigger_addresses(self)
    }

    fn session_seen(&self, id: SessionId) -> anyhow::Result<Option<SessionSeen>> {
        Self::session_seen(self, id)
    }

    fn capture(&self, id: SessionId, time: Duration) -> anyhow::Result<Captures> {
        Self::capture(self, id, time)
    }

    fn suspended(&self) -> Duration {
        super::clock::suspended()
    }

    fn warnings(&self) -> Vec<String> {
        Self::warnings(self)
    }
}
