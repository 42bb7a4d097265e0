//! What happens to a device.

use super::message::Code;
use crate::sessions::records::RegistrationId;
use push_common::token::Token;
use push_common::wire::{SessionId, TriggerError, TriggerHeader};
use serde::Serialize;
use std::fmt;
use std::time::Duration;

/// What a device asks of the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// To be registered.
    Register,
    /// To stay registered.
    Refresh,
    /// A session.
    Session,
    /// Another token for it.
    Token,
    /// To be registered no more.
    Deregister,
}

impl Request {
    /// All there are.
    pub const ALL: [Self; 5] = [
        Self::Register,
        Self::Refresh,
        Self::Session,
        Self::Token,
        Self::Deregister,
    ];
}

/// As it reads after "the request".
impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Register => "to be registered",
            Self::Refresh => "to stay registered",
            Self::Session => "for a session",
            Self::Token => "for another token",
            Self::Deregister => "to be registered no more",
        })
    }
}

/// What has happened.
#[derive(Debug)]
pub enum News {
    /// The device is registered, or has refreshed that.
    Registered {
        /// Its registration.
        id: RegistrationId,
        /// How long it lasts.
        lifetime: Duration,
        /// Whether it was registered before.
        again: bool,
    },
    /// It has a session, or another token for the one it has.
    Granted {
        /// The session.
        session: SessionId,
        /// The token, which is for the application's server.
        token: Token,
        /// Which of the session's tokens it is.
        token_generation: u8,
        /// Whether the session is new.
        new_session: bool,
    },
    /// It isn't registered any more, as it wanted.
    Deregistered,
    /// A request was answered with success.
    Answered(Request, Duration),
    /// A request had to be sent again.
    Retransmitted(Request),
    /// A request wasn't answered.
    Unanswered(Request),
    /// A request was refused.
    Refused {
        /// Which.
        request: Request,
        /// How.
        code: Code,
        /// Why.
        text: String,
    },
    /// A trigger has arrived, and is its server's.
    Trigger {
        /// Its header.
        header: TriggerHeader,
        /// For the app.
        payload: Vec<u8>,
        /// Whether it was acknowledged.
        acknowledged: bool,
    },
    /// Something has arrived that looks like a trigger, and isn't one for this device.
    BadTrigger(Fault),
    /// The gateway has ended the session.
    TornDown {
        /// The session.
        session: SessionId,
        /// Why.
        cause: String,
    },
    /// The gateway wants the session to have another token.
    RotationAsked {
        /// The session.
        session: SessionId,
        /// How soon.
        within: Option<Duration>,
    },
    /// The gateway wants the session to be asked for anew.
    RenewalAsked {
        /// The session.
        session: SessionId,
    },
    /// The gateway wants the registration to be refreshed.
    RefreshAsked,
    /// The gateway has changed the lifetime of the registration.
    Configured {
        /// What it is now, if that was said.
        lifetime: Option<Duration>,
    },
}

/// What is wrong with what looks like a trigger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Its format, or its tag.
    #[error("{0}")]
    Trigger(TriggerError),
    /// It is for a session that the device doesn't have.
    #[error("for session {0}, which isn't the device's")]
    Session(SessionId),
    /// It is signed with a token that the device doesn't have.
    #[error("signed with token generation {0}, which isn't the session's")]
    TokenGeneration(u8),
    /// It is an acknowledgement.
    #[error("an acknowledgement, which is nothing for a device")]
    Acknowledgement,
    /// It was received before.
    #[error("sequence number {0} was received before")]
    Replayed(u64),
    /// It is so old that nobody knows whether it was received before, or its number can't be.
    #[error("sequence number {0} is outside of the replay window")]
    OutsideWindow(u64),
}
