//! What is asked for, and the answers: what was granted, and why not.

use super::RateShare;
use super::records::{AppName, EndCause, InstanceName, Left, RegistrationId};
use push_common::maps::{MAX_POLICIES, MAX_SOURCE_PREFIXES};
use push_common::wire::SessionId;
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::time::Duration;

/// Why a device doesn't get what it asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceRefusal {
    /// No registration has this id, or it has been forgotten.
    #[error("no such registration; register again")]
    UnknownRegistration,
    /// The terminal is in the second operative state.
    #[error("{}; register again: not in the first operative state", .0.label().replace('_', " "))]
    SecondState(Left),
    /// The operator has suspended the terminal.
    #[error("suspended by the operator; wait until you are told otherwise")]
    Suspended,
    /// The request came from another address than the registration.
    #[error("registered from another address; refresh first")]
    OtherAddress,
    /// The device wants to move to an address that it hasn't proved to receive at.
    #[error("address not proved")]
    AddressUnproven,
    /// The endpoint name is registered from another address.
    #[error("endpoint is registered from another address")]
    EndpointTaken,
    /// As many terminals are known as there may be.
    #[error("too many terminals")]
    TerminalsFull,
    /// No application has this name.
    #[error("no such application")]
    UnknownApp,
    /// The registration has no such session.
    #[error("no such session of this registration")]
    UnknownSession,
    /// There is no free slot.
    #[error("too many sessions")]
    SlotsFull,
    /// The application's server is out of service.
    #[error("the application's server is out of service")]
    AppUnavailable,
    /// The terminal, or the application, has as many sessions as it may have.
    #[error("no more sessions permitted ({})", what.replace('_', " "))]
    QuotaExceeded {
        /// Of what there are too many, in `snake_case`.
        what: &'static str,
        /// When to ask again.
        retry_after: Duration,
    },
}

/// Why a token isn't validated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ValidationRefusal {
    /// No application has this credential, or it has expired.
    #[error("no application has this key or certificate")]
    InvalidCredential,
    /// No session of the application has this identifier.
    #[error("this application has no session with this identifier")]
    UnknownSession,
    /// The token isn't that of the session.
    #[error("the token is not the one given out for this session")]
    TokenMismatch,
    /// The session is over.
    #[error("the session has ended ({})", .0.label())]
    SessionEnded(EndCause),
    /// The application has asked for as many validations as it may.
    #[error("this application may not ask for more validations at the moment")]
    QuotaExceeded {
        /// When to ask again.
        retry_after: Duration,
    },
    /// With the rate of this session, the sessions that are authorised would have more triggers per second than
    /// they may have together.
    #[error("{} may not be granted more triggers per second ({})", of.whose(), of.label().replace('_', " "))]
    RateExceeded {
        /// Whose sessions.
        of: RateShare,
        /// When to ask again.
        retry_after: Duration,
    },
    /// There is a limit of what sessions may have together, but none of what this one may.
    #[error("{} may be granted only so many triggers per second ({}), and the rate of a session of this application isn't limited: the operator of the gateway has to set one", of.whose(), of.label().replace('_', " "))]
    RateNotLimited {
        /// Whose sessions.
        of: RateShare,
        /// When to ask again.
        retry_after: Duration,
    },
    /// Too many wrong tokens, or identifiers of no session, were tried.
    #[error("too many wrong tokens or sessions were tried")]
    TooManyGuesses {
        /// When to ask again.
        retry_after: Duration,
    },
}

impl ValidationRefusal {
    /// Stable name, in `snake_case`.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::InvalidCredential => "invalid_credential",
            Self::UnknownSession => "unknown_session",
            Self::TokenMismatch => "token_mismatch",
            Self::SessionEnded(_) => "session_ended",
            Self::QuotaExceeded { .. } => "quota_exceeded",
            Self::RateExceeded { of, .. } => of.label(),
            Self::RateNotLimited { .. } => "rate_not_limited",
            Self::TooManyGuesses { .. } => "too_many_guesses",
        }
    }
}

/// Why the operator doesn't get what they ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OperatorRefusal {
    /// There is an application of this name.
    #[error("there is an application of this name already")]
    AppExists,
    /// An application of this name was removed, and has sessions yet.
    #[error("the last sessions of an application of this name are ending; try again in a moment")]
    AppEnding,
    /// No application has this name.
    #[error("no application has this name")]
    UnknownApp,
    /// As many applications are known as the data plane has policies for.
    #[error("there are {} applications, the most there can be; remove one first", MAX_POLICIES - 1)]
    AppsFull,
    /// As many prefixes are permitted, over all applications, as the data plane has room for.
    #[error(
        "all applications together may have {MAX_SOURCE_PREFIXES} source prefixes; permit fewer"
    )]
    PrefixesFull,
    /// Some application has a credential of this name.
    #[error("this key or certificate is an application's already")]
    CredentialExists,
    /// The application has no such credential.
    #[error("this application has no such key or certificate")]
    UnknownCredential,
    /// No terminal has this registration id.
    #[error("no terminal has this registration id or endpoint name")]
    UnknownTerminal,
    /// A terminal has this endpoint name.
    #[error("a terminal has this endpoint name")]
    EndpointKnown,
    /// As many terminals are known as there may be.
    #[error("as many terminals are known as sessions.slots in the configuration permits")]
    TerminalsFull,
    /// The terminal isn't in the first operative state.
    #[error("the terminal is in the second operative state ({})", .0.replace('_', " "))]
    NotProvisioned(&'static str),
    /// The terminal isn't suspended.
    #[error("the terminal is not suspended")]
    NotSuspended,
    /// The session was never authorised.
    #[error("the session is not authorised yet")]
    NotAuthorised,
    /// No session has this identifier.
    #[error("no session has this identifier")]
    UnknownSession,
    /// The session is over.
    #[error("the session has ended already ({})", .0.label().replace('_', " "))]
    SessionEnded(EndCause),
}

/// A registration as the device is told of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registration {
    /// Names it.
    pub id: RegistrationId,
    /// From now until it expires, unless refreshed.
    pub lifetime: Duration,
}

/// A session as the device is told of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Names it.
    pub id: SessionId,
    /// Which token of the session it got.
    pub token_generation: u8,
    /// From now until it expires, unless the registration is refreshed.
    pub lifetime: Duration,
}

/// A validated session as the application's server is told of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Authorisation {
    /// Names it.
    pub id: SessionId,
    /// Which of its tokens was validated.
    pub token_generation: u8,
    /// Address of the device.
    pub device: IpAddr,
    /// From now until it expires, unless the registration is refreshed.
    pub expires_in: Duration,
}

/// What a device asks to have a session for.
#[derive(Clone, Debug)]
pub struct SessionRequest {
    /// The application.
    pub app: AppName,
    /// Which instance of it.
    pub instance: InstanceName,
    /// UDP port on which it receives triggers.
    pub port: NonZeroU16,
}

/// Sessions that aren't over, by state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Requested, not authorised.
    pub requested: u32,
    /// Authorised.
    pub authorised: u32,
}

/// Who is in a realm.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Population {
    /// Terminals that are known.
    pub terminals: usize,
    /// Their sessions that aren't over.
    pub sessions: usize,
}
