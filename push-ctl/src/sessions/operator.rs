//! What the operator does: to applications, and to single sessions.

use super::records::{App, AppName, EndCause, SessionState, UnixTime};
use super::{AppEntry, OperatorRefusal, Sessions};
use crate::app_key::AppKeyHash;
use crate::dataplane::{Policy, Tunnel};
use push_common::maps::{MAX_POLICIES, MAX_SOURCE_PREFIXES};
use push_common::wire::SessionId;
use std::collections::BTreeSet;
use std::num::NonZeroU16;

impl Sessions {
    /// The operator ends a session.
    ///
    /// # Errors
    ///
    /// [`OperatorRefusal::UnknownSession`], [`OperatorRefusal::SessionEnded`].
    pub fn revoke(&mut self, now: UnixTime, id: SessionId) -> Result<(), OperatorRefusal> {
        match self.slots.get(id).map(|session| &session.state) {
            None => Err(OperatorRefusal::UnknownSession),
            Some(SessionState::Ended { cause, .. }) => Err(OperatorRefusal::SessionEnded(*cause)),
            Some(SessionState::Requested(_) | SessionState::Authorised(_)) => {
                self.end(now, id, EndCause::Revoked);
                Ok(())
            }
        }
    }

    /// The operator says by which tunnel the device of a session is reached, or that it is by none.
    /// That holds until it is said anew, wherever the device moves.
    ///
    /// # Errors
    ///
    /// [`OperatorRefusal::UnknownSession`], [`OperatorRefusal::SessionEnded`].
    pub fn set_tunnel(
        &mut self,
        id: SessionId,
        tunnel: Option<Tunnel>,
    ) -> Result<(), OperatorRefusal> {
        let session = self
            .slots
            .get_mut(id)
            .ok_or(OperatorRefusal::UnknownSession)?;
        let is_authorised = match session.state {
            SessionState::Ended { cause, .. } => return Err(OperatorRefusal::SessionEnded(cause)),
            SessionState::Requested(_) => false,
            SessionState::Authorised(_) => true,
        };
        if session.tunnel != tunnel {
            session.tunnel = tunnel;
            self.changes.slots.insert(id.slot());
            if is_authorised {
                self.changes.kernel.insert(id);
            }
        }
        Ok(())
    }

    /// The operator adds an application.
    ///
    /// # Errors
    ///
    /// [`OperatorRefusal::AppExists`], [`OperatorRefusal::AppsFull`], [`OperatorRefusal::PrefixesFull`].
    pub fn add_app(
        &mut self,
        now: UnixTime,
        name: AppName,
        key_hash: AppKeyHash,
        policy: Policy,
    ) -> Result<(), OperatorRefusal> {
        if self.apps.contains_key(&name) {
            return Err(OperatorRefusal::AppExists);
        }
        let policy_slot = self.free_policy_slot().ok_or(OperatorRefusal::AppsFull)?;
        self.has_room_for_prefixes(&name, &policy)?;
        let record = App {
            name: name.clone(),
            key_hash,
            created: now,
            policy_slot,
            policy,
        };
        self.app_keys.insert(key_hash, name.clone());
        self.policies.insert(policy_slot, name.clone());
        self.apps.insert(
            name.clone(),
            AppEntry {
                record,
                sessions: BTreeSet::new(),
            },
        );
        self.changes.apps.insert(name);
        self.changes.policies.insert(policy_slot);
        Ok(())
    }

    /// The operator says what an application may do; that holds for all of its sessions at once.
    ///
    /// # Errors
    ///
    /// [`OperatorRefusal::UnknownApp`], [`OperatorRefusal::PrefixesFull`].
    pub fn set_policy(&mut self, name: &AppName, policy: Policy) -> Result<(), OperatorRefusal> {
        self.has_room_for_prefixes(name, &policy)?;
        let entry = self.apps.get_mut(name).ok_or(OperatorRefusal::UnknownApp)?;
        if entry.record.policy != policy {
            entry.record.policy = policy;
            self.changes.apps.insert(name.clone());
            self.changes.policies.insert(entry.record.policy_slot);
        }
        Ok(())
    }

    /// The operator removes an application; its sessions end. Returns how many that were.
    ///
    /// # Errors
    ///
    /// [`OperatorRefusal::UnknownApp`].
    pub fn remove_app(&mut self, now: UnixTime, name: &AppName) -> Result<usize, OperatorRefusal> {
        let entry = self.apps.get(name).ok_or(OperatorRefusal::UnknownApp)?;
        let sessions = entry.sessions.clone();
        let policy_slot = entry.record.policy_slot;
        self.app_keys.remove(&entry.record.key_hash);
        for &id in &sessions {
            self.end(now, id, EndCause::AppRemoved);
        }
        self.apps.remove(name);
        self.policies.remove(&policy_slot);
        self.changes.apps.insert(name.clone());
        self.changes.policies.insert(policy_slot);
        Ok(sessions.len())
    }

    /// The first slot that is nobody's.
    fn free_policy_slot(&self) -> Option<NonZeroU16> {
        let taken = self.policies.keys().map(|slot| slot.get());
        // Where slots and numbers part for the first time there is a gap.
        let used = (1..).zip(taken).take_while(|(n, slot)| n == slot).count();
        let slot = u16::try_from(used + 1).ok()?;
        NonZeroU16::new(slot).filter(|_| u32::from(slot) < MAX_POLICIES)
    }

    /// Whether the data plane has room for this policy of the application `name`, besides all others.
    fn has_room_for_prefixes(
        &self,
        name: &AppName,
        policy: &Policy,
    ) -> Result<(), OperatorRefusal> {
        let others = self
            .apps
            .iter()
            .filter(|(other, _)| *other != name)
            .map(|(_, entry)| entry.record.policy.sources.len());
        if others.sum::<usize>() + policy.sources.len() > MAX_SOURCE_PREFIXES as usize {
            return Err(OperatorRefusal::PrefixesFull);
        }
        Ok(())
    }
}
