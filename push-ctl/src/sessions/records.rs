//! What is remembered of terminals, their sessions and applications: plain data, as the store keeps it.

mod app;

pub use app::{
    App, AppFailure, Availability, Credential, CredentialId, Monitor, ParseCredentialIdError,
    Proof, Quotas,
};

use crate::dataplane::Tunnel;
use compact_str::CompactString;
use push_common::replay;
use push_common::tag::TagKey;
use push_common::token::{Token, TokenHash};
use push_common::wire::SessionId;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroU16;
use std::str::FromStr;
use std::time::Duration;
use zeroize::Zeroizing;

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

macro_rules! ids {
    ($( $(#[$doc:meta])* $name:ident, $error:ident: $what:literal; )*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(u64);

        impl $name {
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
        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, "{:016x}", self.0)
            }
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                std::fmt::Display::fmt(self, f)
            }
        }

        #[doc = concat!("The text is not that of a ", $what, " id.")]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
        #[error("not a {} id: expected 16 hexadecimal digits", $what)]
        pub struct $error;

        impl std::str::FromStr for $name {
            type Err = $error;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                // The digits are those of a session identifier; what they stand for isn't looked at.
                let digits: push_common::wire::SessionId = text.parse().map_err(|_| $error)?;
                Ok(Self(digits.to_u64()))
            }
        }
    )*};
}
use ids;

ids! {
    /// Names a registration: 64 random bits, known to the device that registered.
    RegistrationId, ParseRegistrationIdError: "registration";
}

// Most names are so short that they are in the record itself, where who goes through a million of them finds them.
macro_rules! names {
    ($( $(#[$doc:meta])* $name:ident: $what:literal, $max_bytes:literal, $rule:literal, $accepts:expr; )*) => {$(
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(CompactString);

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
    /// That of a device which hasn't been heard of yet.
    #[must_use]
    pub const fn unknown() -> Self {
        Self {
            realm: None,
            device: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            gateway: SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0),
        }
    }

    /// Whether the device has been heard of.
    #[must_use]
    pub fn is_known(&self) -> bool {
        *self != Self::unknown()
    }

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
    /// How the device is reached; [`Path::unknown`] if it was suspended before it has ever registered.
    pub path: Path,
    /// UDP port of its push client, to which requests of the gateway go.
    pub port: u16,
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
    /// It may not, until the operator says otherwise: the other second operative state.
    Suspended {
        /// When it was suspended.
        since: UnixTime,
        /// When the registration would have expired.
        expires: UnixTime,
    },
}

/// Why a terminal has left the first operative state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// The device has deregistered.
    Deregistered,
    /// The registration was not refreshed in time.
    Expired,
    /// Another terminal has registered from the same address.
    AddressTaken,
}

impl Left {
    /// Stable name, in `snake_case`.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Deregistered => "deregistered",
            Self::Expired => "expired",
            Self::AddressTaken => "address_taken",
        }
    }
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
    /// The replay window that it had when it was noted last, or exported elsewhere, if anything had been let
    /// through: a data plane that doesn't have the session begins with it, so that no trigger from before that is
    /// accepted again.
    pub window: Option<Box<[u64; replay::WORDS]>>,
    /// How far it has come.
    pub state: SessionState,
}

/// How far a session has come. A token that isn't there any more can't be used any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SessionState {
    /// The device has got a token; the application's server hasn't proved to have it.
    Requested(IssuedToken),
    /// The application's server may send triggers.
    Authorised(Tokens),
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
    /// The application's server can't be reached, is inactive, or has said that it is out of service.
    AppServerFailed,
    /// The application's server has ended it.
    AppEnded,
    /// The operator has suspended the terminal.
    TerminalSuspended,
    /// The operator has removed the terminal.
    TerminalRemoved,
    /// Another terminal has registered from the address of this one.
    AddressTaken,
    /// Its token was not rotated by when the operator wanted it to be.
    NotRotated,
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
            Self::AppServerFailed => "app_server_failed",
            Self::AppEnded => "app_ended",
            Self::TerminalSuspended => "terminal_suspended",
            Self::TerminalRemoved => "terminal_removed",
            Self::AddressTaken => "address_taken",
            Self::NotRotated => "not_rotated",
        }
    }

    /// Whether the app has to be told: it neither did this itself nor is it out of reach.
    #[must_use]
    pub const fn is_news_to_app(self) -> bool {
        match self {
            Self::Revoked
            | Self::AppRemoved
            | Self::AppServerFailed
            | Self::AppEnded
            | Self::TerminalSuspended
            | Self::TerminalRemoved
            | Self::NotRotated => true,
            Self::Released
            | Self::Replaced
            | Self::Deregistered
            | Self::Expired
            | Self::AddressTaken => false,
        }
    }
}

impl From<Left> for EndCause {
    fn from(left: Left) -> Self {
        match left {
            Left::Deregistered => Self::Deregistered,
            Left::Expired => Self::Expired,
            Left::AddressTaken => Self::AddressTaken,
        }
    }
}

/// What is kept of a token that was given out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IssuedToken {
    /// Which token of the session it is, counted from 0.
    pub generation: u8,
    /// The key that signs triggers. It stays where it is until it is wiped: what is moved leaves a copy behind, and
    /// sessions are moved from vector to vector.
    pub key: Box<Zeroizing<TagKey>>,
    /// To recognise the token by.
    pub hash: TokenHash,
}

impl IssuedToken {
    /// What is kept of this token, which is of this generation.
    #[must_use]
    pub fn new(token: &Token, generation: u8) -> Self {
        Self {
            generation,
            key: Box::new(token.key().into()),
            hash: token.hash(),
        }
    }

    /// The generation of the token after this one.
    #[must_use]
    pub const fn next_generation(&self) -> u8 {
        self.generation.wrapping_add(1)
    }
}

/// The tokens of an authorised session. It is *rotating* while it has, or should have, a next one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tokens {
    /// The one that was validated last.
    pub current: IssuedToken,
    /// The one before, if it is still valid.
    pub previous: Option<Previous>,
    /// Given out, but not validated yet.
    pub next: Option<IssuedToken>,
    /// When the session ends unless another token is validated before.
    pub rotate_by: Option<UnixTime>,
}

/// A token that was rotated, and is valid for a while yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Previous {
    /// The token.
    pub token: IssuedToken,
    /// When it stops being valid.
    pub until: UnixTime,
}

impl Tokens {
    /// Those of a session that has just been authorised by this one.
    #[must_use]
    pub const fn only(current: IssuedToken) -> Self {
        Self {
            current,
            previous: None,
            next: None,
            rotate_by: None,
        }
    }

    /// Whether a next token was given out or asked for.
    #[must_use]
    pub const fn are_rotating(&self) -> bool {
        self.next.is_some() || self.rotate_by.is_some()
    }

    /// When something about them changes by itself.
    #[must_use]
    pub fn deadline(&self) -> Option<UnixTime> {
        let until = self.previous.as_ref().map(|previous| previous.until);
        [until, self.rotate_by].into_iter().flatten().min()
    }
}
