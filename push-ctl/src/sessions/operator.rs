//! What the operator does to terminals and sessions.

use super::records::{
    EndCause, EndpointName, Left, OperativeState, Path, RegistrationId, SessionState, Terminal,
    UnixTime,
};
use super::{Due, News, NoticeKind, OperatorRefusal, Sessions, TerminalEntry, remaining};
use crate::dataplane::Tunnel;
use push_common::wire::SessionId;
use std::time::Duration;

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

    /// The operator bars a terminal, which may have left: its sessions end, and it may not have others.
    ///
    /// # Errors
    ///
    /// [`OperatorRefusal::UnknownTerminal`], [`OperatorRefusal::NotProvisioned`] if it is suspended.
    pub fn suspend(&mut self, now: UnixTime, id: RegistrationId) -> Result<usize, OperatorRefusal> {
        let entry = self
            .terminals
            .get(&id)
            .ok_or(OperatorRefusal::UnknownTerminal)?;
        if let OperativeState::Suspended { .. } = entry.record.state {
            return Err(OperatorRefusal::NotProvisioned("suspended"));
        }
        let expires = now.saturating_add(remaining(&entry.record, now));
        let sessions = entry.sessions.len();
        let state = OperativeState::Suspended {
            since: now,
            expires,
        };
        if let Some(endpoint) = self.stop(now, id, state, EndCause::TerminalSuspended) {
            let news = News::TerminalSuspended { id, endpoint };
            self.changes.news.push(news);
        }
        Ok(sessions)
    }

    /// The operator bars a device that isn't known, and may be off: it may not register. `fresh` is random, and names
    /// the registration that it doesn't have.
    ///
    /// # Errors
    ///
    /// [`OperatorRefusal::EndpointKnown`], [`OperatorRefusal::TerminalsFull`].
    pub fn suspend_unknown(
        &mut self,
        now: UnixTime,
        endpoint: EndpointName,
        fresh: RegistrationId,
    ) -> Result<RegistrationId, OperatorRefusal> {
        if self.endpoints.contains_key(&endpoint) {
            return Err(OperatorRefusal::EndpointKnown);
        }
        if self.terminals.len() >= self.limits.slots as usize {
            return Err(OperatorRefusal::TerminalsFull);
        }
        let id = self.unused(fresh);
        self.enter_terminal(Terminal {
            id,
            endpoint: endpoint.clone(),
            path: Path::unknown(),
            port: 0,
            lifetime: self.limits.default_lifetime,
            state: OperativeState::Suspended {
                since: now,
                expires: now,
            },
        });
        self.changes.terminals.insert(id);
        let news = News::TerminalSuspended { id, endpoint };
        self.changes.news.push(news);
        Ok(id)
    }

    /// The operator takes a suspension back. The terminal is in the first operative state again, and is told so,
    /// unless its registration would have expired meanwhile or its address is another's now: then it has to register anew.
    /// Returns whether it is in the first operative state.
    ///
    /// # Errors
    ///
    /// [`OperatorRefusal::UnknownTerminal`], [`OperatorRefusal::NotSuspended`].
    pub fn resume(&mut self, now: UnixTime, id: RegistrationId) -> Result<bool, OperatorRefusal> {
        let entry = self
            .terminals
            .get_mut(&id)
            .ok_or(OperatorRefusal::UnknownTerminal)?;
        let OperativeState::Suspended { expires, .. } = entry.record.state else {
            return Err(OperatorRefusal::NotSuspended);
        };
        let place = (entry.record.path.realm.clone(), entry.record.path.device);
        let is_first = expires > now && !self.addresses.contains_key(&place);
        if is_first {
            entry.record.state = OperativeState::First { expires };
        }
        let record = entry.record.clone();
        self.changes.news.push(News::TerminalResumed {
            id,
            endpoint: record.endpoint.clone(),
        });
        if is_first {
            self.addresses.insert(place, id);
            self.set_deadline(Due::Terminal(id), None, Some(expires));
            self.changes.terminals.insert(id);
            let lifetime = expires.saturating_since(now);
            self.notify_terminal(
                &record,
                NoticeKind::Configuration {
                    registration: id,
                    lifetime,
                },
            );
        } else {
            self.forget(now, id);
            if record.path.is_known() {
                self.notify_terminal(&record, NoticeKind::Refresh { registration: id });
            }
        }
        Ok(is_first)
    }

    /// The operator has a terminal forgotten: its sessions end. It may register again. Returns how many
    /// sessions that were.
    ///
    /// # Errors
    ///
    /// [`OperatorRefusal::UnknownTerminal`].
    pub fn remove_terminal(
        &mut self,
        now: UnixTime,
        id: RegistrationId,
    ) -> Result<usize, OperatorRefusal> {
        let entry = self
            .terminals
            .get(&id)
            .ok_or(OperatorRefusal::UnknownTerminal)?;
        let sessions = entry.sessions.len();
        let state = OperativeState::Second {
            since: now,
            cause: Left::Deregistered,
        };
        if let Some(endpoint) = self.stop(now, id, state, EndCause::TerminalRemoved) {
            let news = News::TerminalRemoved { id, endpoint };
            self.changes.news.push(news);
        }
        self.forget(now, id);
        Ok(sessions)
    }

    /// The operator has a device asked to refresh its registration.
    ///
    /// # Errors
    ///
    /// [`OperatorRefusal::UnknownTerminal`], [`OperatorRefusal::NotProvisioned`].
    pub fn ask_for_refresh(
        &mut self,
        now: UnixTime,
        id: RegistrationId,
    ) -> Result<(), OperatorRefusal> {
        let entry = self.first_operative(now, id)?;
        let record = entry.record.clone();
        self.notify_terminal(&record, NoticeKind::Refresh { registration: id });
        Ok(())
    }

    /// The operator wants the token of a session rotated: its app is asked to fetch another one. With
    /// `within`, the session ends unless a server has validated that one by then.
    ///
    /// # Errors
    ///
    /// [`OperatorRefusal::UnknownSession`], [`OperatorRefusal::SessionEnded`], [`OperatorRefusal::NotAuthorised`].
    pub fn rotate(
        &mut self,
        now: UnixTime,
        id: SessionId,
        within: Option<Duration>,
    ) -> Result<(), OperatorRefusal> {
        let session = self
            .slots
            .get_mut(id)
            .ok_or(OperatorRefusal::UnknownSession)?;
        let tokens = match &mut session.state {
            SessionState::Authorised(tokens) => tokens,
            SessionState::Requested(_) => return Err(OperatorRefusal::NotAuthorised),
            SessionState::Ended { cause, .. } => return Err(OperatorRefusal::SessionEnded(*cause)),
        };
        let before = tokens.deadline();
        if let Some(within) = within {
            tokens.rotate_by = Some(now.saturating_add(within));
        }
        let after = tokens.deadline();
        let session = session.clone();
        self.set_deadline(Due::Session(id), before, after);
        self.changes.slots.insert(id.slot());
        let app = session.app.clone();
        self.changes.news.push(News::RotationAsked { id, app });
        self.notify_app(
            &session,
            NoticeKind::Rotate {
                session: id,
                within,
            },
        );
        Ok(())
    }

    /// The sequence numbers of a session are nearly used up: its app is asked to request it anew.
    pub fn ask_for_renewal(&mut self, id: SessionId) {
        if let Some(session) = self.slots.get(id).cloned() {
            let app = session.app.clone();
            self.changes.news.push(News::RenewalAsked { id, app });
            self.notify_app(&session, NoticeKind::Renew { session: id });
        }
    }

    fn first_operative(
        &self,
        now: UnixTime,
        id: RegistrationId,
    ) -> Result<&TerminalEntry, OperatorRefusal> {
        let entry = self
            .terminals
            .get(&id)
            .ok_or(OperatorRefusal::UnknownTerminal)?;
        match entry.record.state {
            OperativeState::First { expires } if expires > now => Ok(entry),
            OperativeState::First { .. } => {
                Err(OperatorRefusal::NotProvisioned(Left::Expired.label()))
            }
            OperativeState::Second { cause, .. } => {
                Err(OperatorRefusal::NotProvisioned(cause.label()))
            }
            OperativeState::Suspended { .. } => Err(OperatorRefusal::NotProvisioned("suspended")),
        }
    }
}
