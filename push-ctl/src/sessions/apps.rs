//! Applications: what the operator says of them, and what their servers do.

use super::records::{
    App, AppFailure, AppName, Availability, Credential, CredentialId, EndCause, Monitor, Previous,
    Quotas, SessionState, Tokens, UnixTime,
};
use super::{
    AppEntry, Authorisation, Due, News, OperatorRefusal, Sessions, ValidationRefusal, remaining,
};
use crate::dataplane::Policy;
use push_common::maps::{MAX_POLICIES, MAX_SOURCE_PREFIXES};
use push_common::token::TokenHash;
use push_common::wire::SessionId;
use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU16;

/// Sessions of an application that end before it is somebody else's turn.
const ENDED_AT_ONCE: usize = 64;

impl Sessions {
    /// An application's server, which has identified itself by `credential`, proves to hold a token of a
    /// session, which is authorised from then on. If it is the next token, the one before is valid for
    /// [`super::Limits::rotation_overlap`] more.
    ///
    /// # Errors
    ///
    /// [`ValidationRefusal`].
    pub fn validate(
        &mut self,
        now: UnixTime,
        credential: CredentialId,
        id: SessionId,
        token: &TokenHash,
    ) -> Result<Authorisation, ValidationRefusal> {
        let (app, _) = self
            .credential(now, credential)
            .ok_or(ValidationRefusal::InvalidCredential)?;
        let (app, quota) = (app.name.clone(), app.quotas.validations_per_minute);
        let answer = self.validate_for(now, &app, quota, id, token);
        if let Err(refusal) = &answer {
            self.changes.news.push(News::ValidationRefused {
                id,
                app,
                why: refusal.label(),
            });
        }
        answer
    }

    fn validate_for(
        &mut self,
        now: UnixTime,
        app: &AppName,
        quota: Option<u32>,
        id: SessionId,
        token: &TokenHash,
    ) -> Result<Authorisation, ValidationRefusal> {
        if let Some(per_minute) = quota {
            self.attempts
                .validation(now, app, per_minute)
                .map_err(|retry_after| ValidationRefusal::QuotaExceeded { retry_after })?;
        }
        let session = self.slots.get(id).filter(|session| session.app == *app);
        let of = session.map(|session| (id, session.terminal));
        let retry_after = self.attempts.wait(now, app, of);
        if !retry_after.is_zero() {
            return Err(ValidationRefusal::TooManyGuesses { retry_after });
        }
        let Some(session) = session else {
            self.attempts.wrong(now, app, None);
            return Err(ValidationRefusal::UnknownSession);
        };
        if let SessionState::Ended { cause, .. } = session.state {
            return Err(ValidationRefusal::SessionEnded(cause));
        }
        let terminal = self
            .terminals
            .get(&session.terminal)
            .map(|entry| &entry.record)
            .filter(|terminal| !remaining(terminal, now).is_zero())
            .ok_or(ValidationRefusal::SessionEnded(EndCause::Expired))?;
        let (device, expires_in) = (terminal.path.device, remaining(terminal, now));
        if let SessionState::Requested(issued) = &session.state
            && issued.hash == *token
        {
            self.has_room_for_rate(id)?;
        }
        let Some(token_generation) = self.prove(now, id, token) else {
            self.attempts.wrong(now, app, of);
            return Err(ValidationRefusal::TokenMismatch);
        };
        self.attempts.forget_session(id);
        Ok(Authorisation {
            id,
            token_generation,
            device,
            expires_in,
        })
    }

    /// Which of its tokens this is the hash of, which is valid from now on; none if it is of none.
    fn prove(&mut self, now: UnixTime, id: SessionId, token: &TokenHash) -> Option<u8> {
        let overlap = self.limits.rotation_overlap;
        let session = self.slots.get_mut(id)?;
        match &mut session.state {
            SessionState::Requested(issued) if issued.hash == *token => {
                let token_generation = issued.generation;
                session.state = SessionState::Authorised(Tokens::only(issued.clone()));
                let app = session.app.clone();
                self.counts.requested -= 1;
                self.counts.authorised += 1;
                if let Some(entry) = self.apps.get_mut(&app) {
                    entry.authorised += 1;
                }
                self.changes.slots.insert(id.slot());
                self.changes.kernel.insert(id);
                self.changes.news.push(News::SessionAuthorised { id, app });
                Some(token_generation)
            }
            SessionState::Authorised(tokens) => {
                if tokens.current.hash == *token {
                    return Some(tokens.current.generation);
                }
                let previous = tokens.previous.as_ref();
                if let Some(previous) = previous.filter(|previous| previous.until > now)
                    && previous.token.hash == *token
                {
                    return Some(previous.token.generation);
                }
                let next = tokens.next.take_if(|next| next.hash == *token)?;
                let before = tokens.deadline();
                let token_generation = next.generation;
                let rotated = std::mem::replace(&mut tokens.current, next);
                tokens.previous = (!overlap.is_zero()).then(|| Previous {
                    token: rotated,
                    until: now.saturating_add(overlap),
                });
                tokens.rotate_by = None;
                let after = tokens.deadline();
                let app = session.app.clone();
                self.set_deadline(Due::Session(id), before, after);
                self.changes.slots.insert(id.slot());
                self.changes.kernel.insert(id);
                self.changes.news.push(News::TokenRotated {
                    id,
                    app,
                    token_generation,
                });
                Some(token_generation)
            }
            SessionState::Requested(_) | SessionState::Ended { .. } => None,
        }
    }

    /// An application's server is done with a session.
    ///
    /// # Errors
    ///
    /// [`ValidationRefusal::InvalidCredential`], [`ValidationRefusal::UnknownSession`], [`ValidationRefusal::SessionEnded`].
    pub fn end_by_app(
        &mut self,
        now: UnixTime,
        credential: CredentialId,
        id: SessionId,
    ) -> Result<(), ValidationRefusal> {
        let (app, _) = self
            .credential(now, credential)
            .ok_or(ValidationRefusal::InvalidCredential)?;
        let session = self.slots.get(id).filter(|session| session.app == app.name);
        match session.map(|session| &session.state) {
            None => Err(ValidationRefusal::UnknownSession),
            Some(SessionState::Ended { cause, .. }) => Err(ValidationRefusal::SessionEnded(*cause)),
            Some(SessionState::Requested(_) | SessionState::Authorised(_)) => {
                self.end(now, id, EndCause::AppEnded);
                Ok(())
            }
        }
    }

    /// An application's server is out of service, or was inactive for too long: its sessions end, if there are
    /// many, as [`Sessions::expire`] gets to them. New ones can be requested again when it has recovered; after
    /// inactivity, when the last one has ended. Returns how many sessions that are.
    ///
    /// # Errors
    ///
    /// [`OperatorRefusal::UnknownApp`].
    pub fn app_failed(
        &mut self,
        now: UnixTime,
        name: &AppName,
        cause: AppFailure,
    ) -> Result<usize, OperatorRefusal> {
        let entry = known(&mut self.apps, name)?;
        let sessions = entry.sessions.len();
        let stays_out = match cause {
            AppFailure::Unreachable | AppFailure::Announced => true,
            AppFailure::Inactive => false,
        };
        let was_available = entry.record.availability == Availability::Available;
        if stays_out && was_available {
            entry.record.availability = Availability::Failed { since: now, cause };
            self.changes.apps.insert(name.clone());
        }
        self.endings.insert(name.clone());
        self.end_some(now, ENDED_AT_ONCE);
        if was_available {
            let app = name.clone();
            self.changes.news.push(News::AppFailed { app, cause });
        }
        Ok(sessions)
    }

    /// An application's server is in service again.
    ///
    /// # Errors
    ///
    /// [`OperatorRefusal::UnknownApp`].
    pub fn app_recovered(&mut self, name: &AppName) -> Result<(), OperatorRefusal> {
        let entry = known(&mut self.apps, name)?;
        if entry.record.availability != Availability::Available {
            entry.record.availability = Availability::Available;
            self.changes.apps.insert(name.clone());
            let app = name.clone();
            self.changes.news.push(News::AppRecovered { app });
        }
        Ok(())
    }

    /// The operator adds an application.
    ///
    /// # Errors
    ///
    /// [`OperatorRefusal::AppExists`], [`OperatorRefusal::AppEnding`], [`OperatorRefusal::AppsFull`],
    /// [`OperatorRefusal::PrefixesFull`].
    pub fn add_app(
        &mut self,
        now: UnixTime,
        name: AppName,
        credentials: Vec<Credential>,
        policy: Policy,
    ) -> Result<(), OperatorRefusal> {
        match self.apps.get(&name) {
            Some(entry) if entry.record.removed => return Err(OperatorRefusal::AppEnding),
            Some(_) => return Err(OperatorRefusal::AppExists),
            None => {}
        }
        let policy_slot = self.free_policy_slot().ok_or(OperatorRefusal::AppsFull)?;
        self.has_room_for_prefixes(&name, &policy)?;
        for credential in &credentials {
            self.credentials.insert(credential.id, name.clone());
        }
        let record = App {
            name: name.clone(),
            created: now,
            policy_slot,
            policy,
            credentials,
            quotas: Quotas::default(),
            monitor: None,
            availability: Availability::Available,
            removed: false,
        };
        self.policies.insert(policy_slot, name.clone());
        self.apps.insert(
            name.clone(),
            AppEntry {
                record,
                sessions: BTreeSet::new(),
                authorised: 0,
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
        let entry = known(&mut self.apps, name)?;
        if entry.record.policy != policy {
            entry.record.policy = policy;
            self.changes.apps.insert(name.clone());
            self.changes.policies.insert(entry.record.policy_slot);
        }
        Ok(())
    }

    /// The operator adds a credential, by which servers can identify themselves from now on. Those that
    /// have expired are forgotten.
    ///
    /// # Errors
    ///
    /// [`OperatorRefusal::UnknownApp`], [`OperatorRefusal::CredentialExists`].
    pub fn add_credential(
        &mut self,
        now: UnixTime,
        name: &AppName,
        credential: Credential,
    ) -> Result<(), OperatorRefusal> {
        if self.credentials.contains_key(&credential.id) {
            return Err(OperatorRefusal::CredentialExists);
        }
        let entry = known(&mut self.apps, name)?;
        let credentials = &mut entry.record.credentials;
        for expired in credentials.extract_if(.., |credential| !credential.is_valid(now)) {
            self.credentials.remove(&expired.id);
        }
        self.credentials.insert(credential.id, name.clone());
        credentials.push(credential);
        self.changes.apps.insert(name.clone());
        Ok(())
    }

    /// The operator removes a credential, which is not accepted from now on.
    ///
    /// # Errors
    ///
    /// [`OperatorRefusal::UnknownApp`], [`OperatorRefusal::UnknownCredential`].
    pub fn remove_credential(
        &mut self,
        name: &AppName,
        id: CredentialId,
    ) -> Result<(), OperatorRefusal> {
        let entry = known(&mut self.apps, name)?;
        let credentials = &mut entry.record.credentials;
        let index = credentials
            .iter()
            .position(|credential| credential.id == id)
            .ok_or(OperatorRefusal::UnknownCredential)?;
        credentials.remove(index);
        self.credentials.remove(&id);
        self.changes.apps.insert(name.clone());
        Ok(())
    }

    /// The operator lets a credential be accepted until `at`, or for as long as before if that is shorter.
    ///
    /// # Errors
    ///
    /// [`OperatorRefusal::UnknownApp`], [`OperatorRefusal::UnknownCredential`].
    pub fn expire_credential(
        &mut self,
        name: &AppName,
        id: CredentialId,
        at: UnixTime,
    ) -> Result<(), OperatorRefusal> {
        let entry = known(&mut self.apps, name)?;
        let credential = entry
            .record
            .credentials
            .iter_mut()
            .find(|credential| credential.id == id)
            .ok_or(OperatorRefusal::UnknownCredential)?;
        credential.expires = Some(credential.expires.map_or(at, |before| before.min(at)));
        self.changes.apps.insert(name.clone());
        Ok(())
    }

    /// The operator says how much of the gateway an application may take up. Sessions that there are stay.
    ///
    /// # Errors
    ///
    /// [`OperatorRefusal::UnknownApp`].
    pub fn set_quotas(&mut self, name: &AppName, quotas: Quotas) -> Result<(), OperatorRefusal> {
        let entry = known(&mut self.apps, name)?;
        entry.record.quotas = quotas;
        self.changes.apps.insert(name.clone());
        Ok(())
    }

    /// The operator says how the server of an application is watched. What was found out before is
    /// forgotten, unless the server has said it itself.
    ///
    /// # Errors
    ///
    /// [`OperatorRefusal::UnknownApp`].
    pub fn set_monitor(
        &mut self,
        name: &AppName,
        monitor: Option<Monitor>,
    ) -> Result<(), OperatorRefusal> {
        let entry = known(&mut self.apps, name)?;
        entry.record.monitor = monitor;
        if let Availability::Failed {
            cause: AppFailure::Unreachable | AppFailure::Inactive,
            ..
        } = entry.record.availability
        {
            entry.record.availability = Availability::Available;
        }
        self.changes.apps.insert(name.clone());
        Ok(())
    }

    /// The operator removes an application, which nobody can use from now on; its sessions end, if there are
    /// many, as [`Sessions::expire`] gets to them. Returns how many that are.
    ///
    /// # Errors
    ///
    /// [`OperatorRefusal::UnknownApp`].
    pub fn remove_app(&mut self, now: UnixTime, name: &AppName) -> Result<usize, OperatorRefusal> {
        let entry = known(&mut self.apps, name)?;
        let sessions = entry.sessions.len();
        entry.record.removed = true;
        for credential in entry.record.credentials.drain(..) {
            self.credentials.remove(&credential.id);
        }
        self.attempts.forget_app(name);
        self.changes.apps.insert(name.clone());
        self.endings.insert(name.clone());
        self.end_some(now, ENDED_AT_ONCE);
        Ok(sessions)
    }

    /// Ends sessions of applications all of whose sessions are to end, at most `limit` of them. Returns how
    /// many that were.
    pub(super) fn end_some(&mut self, now: UnixTime, limit: usize) -> usize {
        let mut ended = 0;
        while let Some(name) = self.endings.first() {
            let Some(entry) = self.apps.get(name) else {
                self.endings.pop_first();
                continue;
            };
            let removed = entry.record.removed;
            match entry.sessions.first() {
                Some(_) if ended == limit => break,
                Some(&id) if removed => self.end(now, id, EndCause::AppRemoved),
                Some(&id) => self.end(now, id, EndCause::AppServerFailed),
                None => {
                    let policy_slot = entry.record.policy_slot;
                    if let Some(name) = self.endings.pop_first()
                        && removed
                    {
                        self.apps.remove(&name);
                        self.policies.remove(&policy_slot);
                        self.changes.apps.insert(name);
                        self.changes.policies.insert(policy_slot);
                    }
                    continue;
                }
            }
            ended += 1;
        }
        ended
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

/// An application that isn't removed.
fn known<'a>(
    apps: &'a mut BTreeMap<AppName, AppEntry>,
    name: &AppName,
) -> Result<&'a mut AppEntry, OperatorRefusal> {
    apps.get_mut(name)
        .filter(|entry| !entry.record.removed)
        .ok_or(OperatorRefusal::UnknownApp)
}
