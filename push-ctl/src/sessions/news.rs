//! What has happened, for those who watch.

use super::records::{AppFailure, AppName, EndCause, EndpointName, Left, RegistrationId};
use push_common::wire::SessionId;
use std::net::IpAddr;

/// Something that has happened to terminals, sessions or applications. Nothing in it is secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// A device has registered.
    TerminalRegistered {
        /// The registration.
        id: RegistrationId,
        /// What the device calls itself.
        endpoint: EndpointName,
    },
    /// A device has moved to another address; its sessions have followed.
    TerminalMoved {
        /// The registration.
        id: RegistrationId,
        /// What the device calls itself.
        endpoint: EndpointName,
        /// Where it is now.
        address: IpAddr,
    },
    /// A terminal has left the first operative state.
    TerminalLeft {
        /// The registration.
        id: RegistrationId,
        /// What the device calls itself.
        endpoint: EndpointName,
        /// Why.
        cause: Left,
    },
    /// The operator has suspended a terminal.
    TerminalSuspended {
        /// The registration.
        id: RegistrationId,
        /// What the device calls itself.
        endpoint: EndpointName,
    },
    /// The operator has taken that back.
    TerminalResumed {
        /// The registration.
        id: RegistrationId,
        /// What the device calls itself.
        endpoint: EndpointName,
    },
    /// The operator has removed a terminal.
    TerminalRemoved {
        /// The registration.
        id: RegistrationId,
        /// What the device calls itself.
        endpoint: EndpointName,
    },
    /// A device has asked for a session, and got it.
    SessionRequested {
        /// The session.
        id: SessionId,
        /// Its application.
        app: AppName,
        /// Its terminal.
        terminal: RegistrationId,
    },
    /// An application's server has proved to have the token.
    SessionAuthorised {
        /// The session.
        id: SessionId,
        /// Its application.
        app: AppName,
    },
    /// The operator wants the token of a session to be rotated.
    RotationAsked {
        /// The session.
        id: SessionId,
        /// Its application.
        app: AppName,
    },
    /// A device has got another token for a session.
    TokenIssued {
        /// The session.
        id: SessionId,
        /// Its application.
        app: AppName,
        /// Which token it is.
        token_generation: u8,
    },
    /// An application's server has proved to have it.
    TokenRotated {
        /// The session.
        id: SessionId,
        /// Its application.
        app: AppName,
        /// Which token it is.
        token_generation: u8,
    },
    /// The sequence numbers of a session are nearly used up; its app was told to ask for another one.
    RenewalAsked {
        /// The session.
        id: SessionId,
        /// Its application.
        app: AppName,
    },
    /// A session is over.
    SessionEnded {
        /// The session.
        id: SessionId,
        /// Its application.
        app: AppName,
        /// Its terminal.
        terminal: RegistrationId,
        /// Why.
        cause: EndCause,
    },
    /// An application's server has asked in vain.
    ValidationRefused {
        /// The session that it named.
        id: SessionId,
        /// The application.
        app: AppName,
        /// Why, in `snake_case`.
        why: &'static str,
    },
    /// An application's server is out of service; its sessions have ended.
    AppFailed {
        /// The application.
        app: AppName,
        /// Why it is thought so.
        cause: AppFailure,
    },
    /// An application's server is back.
    AppRecovered {
        /// The application.
        app: AppName,
    },
    /// Something was refused, as there is too much of it already.
    QuotaExceeded {
        /// The application.
        app: AppName,
        /// Of what there is too much, in `snake_case`.
        what: &'static str,
    },
}
