//! What devices are to be told without having asked.

use super::records::{EndCause, Path, RegistrationId};
use push_common::wire::SessionId;
use std::net::SocketAddr;
use std::time::Duration;

/// A message from the gateway to a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// UDP address of the app, or of the push client.
    pub to: SocketAddr,
    /// How the device is reached; in particular, from where.
    pub path: Path,
    /// What it says.
    pub kind: NoticeKind,
}

/// What a [`Notice`] says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoticeKind {
    /// To an app: this session is over.
    Teardown {
        /// The session.
        session: SessionId,
        /// Why.
        cause: EndCause,
    },
    /// To an app: fetch another token for this session.
    Rotate {
        /// The session.
        session: SessionId,
        /// The session ends if its server hasn't validated the token by then.
        within: Option<Duration>,
    },
    /// To an app: ask for this session anew, as its sequence numbers are nearly used up.
    Renew {
        /// The session.
        session: SessionId,
    },
    /// To a push client: refresh this registration.
    Refresh {
        /// The registration.
        registration: RegistrationId,
    },
    /// To a push client: this is what holds for this registration now.
    Configuration {
        /// The registration.
        registration: RegistrationId,
        /// From now until it expires.
        lifetime: Duration,
    },
}

impl NoticeKind {
    /// Stable name, in `snake_case`.
    #[must_use]
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Teardown { .. } => "teardown",
            Self::Rotate { .. } => "rotate",
            Self::Renew { .. } => "renew",
            Self::Refresh { .. } => "refresh",
            Self::Configuration { .. } => "configuration",
        }
    }

    /// The session that it is about.
    #[must_use]
    pub const fn session(&self) -> Option<SessionId> {
        match *self {
            Self::Teardown { session, .. }
            | Self::Rotate { session, .. }
            | Self::Renew { session } => Some(session),
            Self::Refresh { .. } | Self::Configuration { .. } => None,
        }
    }

    /// The registration that it is about.
    #[must_use]
    pub const fn registration(&self) -> Option<RegistrationId> {
        match *self {
            Self::Refresh { registration } | Self::Configuration { registration, .. } => {
                Some(registration)
            }
            Self::Teardown { .. } | Self::Rotate { .. } | Self::Renew { .. } => None,
        }
    }
}
