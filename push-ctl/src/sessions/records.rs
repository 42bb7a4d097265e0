//! What is remembered of terminals, their sessions and applications: plain data, as the store keeps it.

use crate::app_key::AppKeyHash;
use crate::dataplane::{Policy, Tunnel};
use push_common::tag::TagKey;
use push_common::token::{Token, TokenHash};
use push_common::wire::SessionId;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

/// A moment: milliseconds since 1970-01-01 00:00 UTC, leap seconds not counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnixTime(u64);

impl UnixTime {
    /// The moment that is this many milliseconds after the epoch.
    #[must_use]
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis)
    }

    /// Milliseconds since the epoch.
    #[must_use]
    pub const fn as_millis(self) -> u64 {
        self.0
    }

    /// The moment `later` after this one, or the last one there is.
    #[must_use]
    pub fn saturating_add(self, later: Duration) -> Self {
        Self(
            self.0
                .saturating_add(u64::try_from(later.as_millis()).unwrap_or(u64::MAX)),
        )
    }

    /// How long ago `earlier` was; zero if it is yet to come.
    #[must_use]
    pub const fn saturating_since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

/// Names a registration: 64 random bits, known to the device that registered.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RegistrationId(u64);

impl RegistrationId {
    /// The identifier with this value.
    #[must_use]
    pub const fn from_u64(value: u64) -> Self {
        Self(value)
    }

    /// Its value.
    #[must_use]
    pub const fn to_u64(self) -> u64 {
        self.0
    }
}

/// 16 hexadecimal digits.
impl fmt::Display for RegistrationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for RegistrationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not that of a registration id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a registration id: expected 16 hexadecimal digits")]
pub struct ParseRegistrationIdError;

impl FromStr for RegistrationId {
    type Err = ParseRegistrationIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // The digits are those of a session identifier; what they stand for isn't looked at.
        let digits: SessionId = text.parse().map_err(|_| ParseRegistrationIdError)?;
        Ok(Self(digits.to_u64()))
    }
}

macro_rules! names {
    ($( $(#[$doc:meta])* $name:ident: $what:literal, $max_bytes:literal, $rule:literal, $accepts:expr; )*) => {$(
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = BadName;

            fn from_str(text: &str) -> Result<Self, BadName> {
                let accepts: fn(char) -> bool = $accepts;
                if text.is_empty() || text.len() > $max_bytes || !text.chars().all(accepts) {
                    return Err(BadName { what: $what, rule: $rule });
                }
                Ok(Self(text.into()))
            }
        }
    )*};
}

/// A text can't be the name it was given as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} must be {rule}")]
pub struct BadName {
    what: &'static str,
    rule: &'static str,
}

names! {
    /// What a device calls itself; the `ep` of RFC 9176.
    EndpointName: "endpoint name", 63, "1 to 63 bytes without control characters", |c| !c.is_control();
    /// What the operator calls an application.
    AppName: "application name", 64, "1 to 64 of the characters A-Z a-z 0-9 . _ -", is_plain;
    /// What the operator calls a realm.
    RealmName: "realm name", 32, "1 to 32 of the characters A-Z a-z 0-9 . _ -", is_plain;
    /// Tells the instances of one application on one device apart.
    InstanceName: "instance name", 64, "1 to 64 bytes without control characters", |c| !c.is_control();
}

fn is_plain(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-')
}

/// How a device is reached: its own address, and the internal address of the gateway that it talks to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Path {
    /// The realm that both addresses are of; none if the kernel's main routes lead to the device.
    pub realm: Option<RealmName>,
    /// Address of the device.
    pub device: IpAddr,
    /// Address and port of the gateway; triggers reach the device from there.
    pub gateway: SocketAddr,
}

impl Path {
    /// Whether both are from the same device address: in different realms, equal addresses aren't the same.
    #[must_use]
    pub fn is_from_same_address(&self, other: &Self) -> bool {
        self.device == other.device && self.realm == other.realm
    }
}

/// A device that has registered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Terminal {
    /// Names the registration.
    pub id: RegistrationId,
    /// What the device calls itself.
    pub endpoint: EndpointName,
    /// How the device is reached.
    pub path: Path,
    /// How long a refresh lasts that doesn't say so.
    pub lifetime: Duration,
    /// Whether it may ask for sessions.
    pub state: OperativeState,
}

/// Whether a terminal may ask for sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OperativeState {
    /// It may, until its registration expires.
    First {
        /// When the registration expires.
        expires: UnixTime,
    },
    /// It may not. The record is kept for a while to tell the device, and the operator, why.
    Second {
        /// When it came to this.
        since: UnixTime,
        /// Why.
        cause: Left,
    },
}

/// Why a terminal has left the first operative state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// The device has deregistered.
    Deregistered,
    /// The registration was not refreshed in time.
    Expired,
}

/// An instance of an application on a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// Names the session in triggers.
    pub id: SessionId,
    /// The terminal it belongs to.
    pub terminal: RegistrationId,
    /// The application.
    pub app: AppName,
    /// Which instance of it.
    pub instance: InstanceName,
    /// UDP port on which the instance receives triggers.
    pub port: NonZeroU16,
    /// The tunnel by which the device is reached, if the operator has said so.
    pub tunnel: Option<Tunnel>,
    /// How far it has come.
    pub state: SessionState,
}

/// How far a session has come. A token that isn't there any more can't be used any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SessionState {
    /// The device has got a token; the application's server hasn't proved to have it.
    Requested(IssuedToken),
    /// The application's server may send triggers.
    Authorised(IssuedToken),
    /// Over; the record stays until its slot is used anew.
    Ended {
        /// When it ended.
        at: UnixTime,
        /// Why.
        cause: EndCause,
    },
}

/// Why a session has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndCause {
    /// The device has ended it.
    Released,
    /// The same instance of the application asked for a session again.
    Replaced,
    /// The device has deregistered.
    Deregistered,
    /// The device's registration was not refreshed in time.
    Expired,
    /// The operator has ended it.
    Revoked,
    /// The operator has removed the application.
    AppRemoved,
}

impl EndCause {
    /// Stable name, in `snake_case`.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Released => "released",
            Self::Replaced => "replaced",
            Self::Deregistered => "deregistered",
            Self::Expired => "expired",
            Self::Revoked => "revoked",
            Self::AppRemoved => "app_removed",
        }
    }
}

impl From<Left> for EndCause {
    fn from(left: Left) -> Self {
        match left {
            Left::Deregistered => Self::Deregistered,
            Left::Expired => Self::Expired,
        }
    }
}

/// What is kept of a token that was given out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IssuedToken {
    /// Which token of the session it is, counted from 0.
    pub generation: u8,
    /// The key that signs triggers.
    pub key: TagKey,
    /// To recognise the token by.
    pub hash: TokenHash,
}

impl IssuedToken {
    /// What is kept of the first token of a session.
    #[must_use]
    pub fn first(token: &Token) -> Self {
        Self {
            generation: 0,
            key: token.key(),
            hash: token.hash(),
        }
    }
}

/// An application whose servers may validate tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct App {
    /// What the operator calls it.
    pub name: AppName,
    /// To recognise its key by.
    pub key_hash: AppKeyHash,
    /// When it was added.
    pub created: UnixTime,
    /// Where the data plane has its policy: below [`push_common::maps::MAX_POLICIES`], and its own while it exists.
    pub policy_slot: NonZeroU16,
    /// What it may do.
    pub policy: Policy,
}
