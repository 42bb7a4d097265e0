//! What happens, as it happens: for the operator's `push-ctl monitor`, and whoever else listens.
//!
//! Who publishes never waits for who listens: a listener that is too slow loses the oldest events, and
//! is told how many. An event has no secret in it: no token, no key, nothing of a payload.

#[cfg(test)]
mod tests;

use crate::audit;
use crate::dataplane::Told;
use crate::sessions::News;
use crate::sessions::records::{
    AppFailure, AppName, EndCause, EndpointName, Left, RegistrationId, UnixTime,
};
use push_common::maps::EventKind;
use push_common::wire::SessionId;
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::SystemTime;
use tokio::sync::broadcast;

/// What the text forms of tokens and of applications' keys begin with.
const SECRET_PREFIXES: [&str; 2] = [push_common::token::PREFIX, crate::credentials::PREFIX];

/// Events that a listener can be behind before it loses some.
const BACKLOG_LEN: usize = 8192;

/// Where events are published, and listened to.
#[derive(Clone, Debug)]
pub struct Bus {
    listeners: broadcast::Sender<Arc<Event>>,
    audit: Option<audit::Log>,
}

impl Default for Bus {
    fn default() -> Self {
        Self {
            listeners: broadcast::Sender::new(BACKLOG_LEN),
            audit: None,
        }
    }
}

impl Bus {
    /// Of which this log keeps what [`Event::is_audited`].
    #[must_use]
    pub fn audited(log: audit::Log) -> Self {
        Self {
            audit: Some(log),
            ..Self::default()
        }
    }

    /// Hands an event to all who listen. Doesn't wait.
    pub fn publish(&self, event: Event) {
        let event = Arc::new(event);
        if let Some(log) = &self.audit
            && event.is_audited()
        {
            log.record(Arc::clone(&event));
        }
        // Without a listener there is nobody to tell.
        let _unheard = self.listeners.send(event);
    }

    /// Hands something that has just happened to all who listen. Doesn't wait.
    pub fn publish_now(&self, what: What) {
        self.publish(Event::now(what));
    }

    /// All events from now on.
    #[must_use]
    pub fn subscribe(&self) -> broadcast::Receiver<Arc<Event>> {
        self.listeners.subscribe()
    }

    /// The log that keeps them, if there is one.
    #[must_use]
    pub const fn audit(&self) -> Option<&audit::Log> {
        self.audit.as_ref()
    }
}

/// Something that has happened.
#[derive(Clone, Debug)]
pub struct Event {
    /// When.
    pub at: UnixTime,
    /// What.
    pub what: What,
}

impl Event {
    /// Whether who did what has to be known for good.
    #[must_use]
    pub const fn is_audited(&self) -> bool {
        match &self.what {
            What::Lifecycle(_) | What::OperatorAction(_) | What::Reloaded { .. } => true,
            What::DataPlane(_) | What::NoticeUnanswered { .. } => false,
        }
    }

    /// Something that has happened just now.
    #[must_use]
    pub fn now(what: What) -> Self {
        Self { at: now(), what }
    }
}

/// What has happened.
#[derive(Clone, Debug)]
pub enum What {
    /// To a terminal, a session or an application.
    Lifecycle(News),
    /// To triggers, as the path tells.
    DataPlane(Told),
    /// An operator did something, or tried to.
    OperatorAction(Box<OperatorAction>),
    /// The configuration was read again.
    Reloaded {
        /// What is different now, a sentence each.
        changes: Vec<String>,
    },
    /// A device has not answered a request of the gateway, however often it was sent.
    NoticeUnanswered {
        /// Where it was sent.
        to: SocketAddr,
        /// What it was, in `snake_case`.
        notice: &'static str,
        /// The session that it was about.
        session: Option<SessionId>,
        /// The terminal that it was about.
        terminal: Option<RegistrationId>,
    },
}

/// What an operator did, or tried to.
#[derive(Clone, Debug)]
pub struct OperatorAction {
    /// What, as in `session revoke`.
    pub action: String,
    /// To what.
    pub object: String,
    /// What it was changed to.
    pub change: Option<serde_json::Value>,
    /// Why it was not done, if it wasn't.
    pub refusal: Option<Refusal>,
    /// The operator's user, if the kernel says who it was.
    pub uid: Option<u32>,
    /// The operator's process.
    pub pid: Option<i32>,
}

/// Why something was not done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// In `snake_case`.
    pub cause: String,
    /// In words.
    pub detail: String,
}

/// An event as programs get to see it: one line of `GET /v1/events`. The names are stable; what says
/// nothing about an event of this kind isn't there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct EventLine {
    /// When, RFC 3339 with milliseconds.
    pub at: String,
    /// What, in `snake_case`.
    pub kind: String,
    /// The session that it is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
    /// The terminal that it is about: its registration id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub terminal: Option<String>,
    /// What the device calls itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// The application that it is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub app: Option<String>,
    /// Why, in `snake_case`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    /// The address that the device has now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// Which token of the session.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_generation: Option<u8>,
    /// The NIC that it was seen at.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nic: Option<String>,
    /// How often it happened; session and source are those of the last time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
    /// Where the trigger came from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<SocketAddr>,
    /// Where the request was sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<SocketAddr>,
    /// Which request it was, in `snake_case`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub notice: Option<String>,
    /// What the operator did, or tried to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub action: Option<String>,
    /// To what.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub object: Option<String>,
    /// What it was changed to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub change: Option<serde_json::Value>,
    /// `done`, or `refused`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outcome: Option<String>,
    /// The cause in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// Who did it, or tried to: `operator`, `app`, `device`, or `gateway` for what comes to pass by itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// The operator's user.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// The operator's process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<i32>,
    /// What is different in the configuration.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub changes: Vec<String>,
}

/// The kind of the line that says how many events a listener has lost, as [`EventLine::count`].
pub const EVENTS_LOST: &str = "events_lost";

/// All kinds of lines, those of the data plane last.
pub fn kinds() -> impl Iterator<Item = &'static str> {
    let others = [
        "terminal_registered",
        "terminal_moved",
        "terminal_left",
        "terminal_suspended",
        "terminal_resumed",
        "terminal_removed",
        "session_requested",
        "session_authorised",
        "session_ended",
        "rotation_asked",
        "renewal_asked",
        "token_issued",
        "token_rotated",
        "validation_refused",
        "quota_exceeded",
        "app_failed",
        "app_recovered",
        "notice_unanswered",
        "operator_action",
        "reloaded",
        EVENTS_LOST,
    ];
    let told = EventKind::ALL.iter().map(|kind| kind.label());
    others.into_iter().chain(told)
}

impl EventLine {
    /// As JSON, on one line. What looks like a secret, because somebody has taken one for a name, is left
    /// out.
    #[must_use]
    pub fn to_json(&self) -> String {
        let json = serde_json::to_string(self).expect("texts and numbers can be written as JSON");
        without_secrets(json)
    }

    /// That a listener has lost this many events.
    #[must_use]
    pub fn lost(count: u64) -> Self {
        Self {
            count: Some(count),
            ..Self::new(now(), EVENTS_LOST)
        }
    }

    fn new(at: UnixTime, kind: &str) -> Self {
        debug_assert!(kinds().any(|known| known == kind), "{kind} is not listed");
        Self {
            at: rfc3339(at),
            kind: kind.to_owned(),
            ..Self::default()
        }
    }
}

impl From<&Event> for EventLine {
    fn from(event: &Event) -> Self {
        let line = |kind| Self::new(event.at, kind);
        match &event.what {
            What::Lifecycle(news) => of_lifecycle(event.at, news),
            What::DataPlane(told) => Self {
                nic: told.nic.clone(),
                count: Some(told.count),
                session: Some(told.session.to_string()),
                source: Some(told.source),
                ..line(told.kind.label())
            },
            What::OperatorAction(done) => {
                let OperatorAction {
                    action,
                    object,
                    change,
                    refusal,
                    uid,
                    pid,
                } = &**done;
                let outcome = refusal.as_ref().map_or("done", |_| "refused");
                Self {
                    action: Some(action.clone()),
                    object: Some(object.clone()),
                    change: change.clone(),
                    outcome: Some(outcome.to_owned()),
                    cause: refusal.as_ref().map(|refusal| refusal.cause.clone()),
                    detail: refusal.as_ref().map(|refusal| refusal.detail.clone()),
                    by: Some("operator".to_owned()),
                    uid: *uid,
                    pid: *pid,
                    ..line("operator_action")
                }
            }
            What::Reloaded { changes } => Self {
                changes: changes.clone(),
                ..line("reloaded")
            },
            What::NoticeUnanswered {
                to,
                notice,
                session,
                terminal,
            } => Self {
                to: Some(*to),
                notice: Some((*notice).to_owned()),
                session: session.map(|id| id.to_string()),
                terminal: terminal.map(|id| id.to_string()),
                ..line("notice_unanswered")
            },
        }
    }
}

fn of_lifecycle(at: UnixTime, news: &News) -> EventLine {
    let (by, outcome) = actor(news);
    let new = |kind| EventLine {
        by: Some(by.to_owned()),
        outcome: Some(outcome.to_owned()),
        ..EventLine::new(at, kind)
    };
    let of_terminal = |kind, id: &RegistrationId, endpoint: &EndpointName| EventLine {
        terminal: Some(id.to_string()),
        endpoint: Some(endpoint.to_string()),
        ..new(kind)
    };
    let of_app = |kind, app: &AppName| EventLine {
        app: Some(app.to_string()),
        ..new(kind)
    };
    let of_session = |kind, id: &SessionId, app: &AppName| EventLine {
        session: Some(id.to_string()),
        ..of_app(kind, app)
    };
    let because = |cause: &str| Some(cause.to_owned());
    match news {
        News::TerminalRegistered { id, endpoint } => {
            of_terminal("terminal_registered", id, endpoint)
        }
        News::TerminalMoved {
            id,
            endpoint,
            address,
        } => EventLine {
            address: Some(*address),
            ..of_terminal("terminal_moved", id, endpoint)
        },
        News::TerminalLeft {
            id,
            endpoint,
            cause,
        } => EventLine {
            cause: because(cause.label()),
            ..of_terminal("terminal_left", id, endpoint)
        },
        News::TerminalSuspended { id, endpoint } => of_terminal("terminal_suspended", id, endpoint),
        News::TerminalResumed { id, endpoint } => of_terminal("terminal_resumed", id, endpoint),
        News::TerminalRemoved { id, endpoint } => of_terminal("terminal_removed", id, endpoint),
        News::SessionRequested { id, app, terminal } => EventLine {
            terminal: Some(terminal.to_string()),
            ..of_session("session_requested", id, app)
        },
        News::SessionAuthorised { id, app } => of_session("session_authorised", id, app),
        News::RotationAsked { id, app } => of_session("rotation_asked", id, app),
        News::TokenIssued {
            id,
            app,
            token_generation,
        } => EventLine {
            token_generation: Some(*token_generation),
            ..of_session("token_issued", id, app)
        },
        News::TokenRotated {
            id,
            app,
            token_generation,
        } => EventLine {
            token_generation: Some(*token_generation),
            ..of_session("token_rotated", id, app)
        },
        News::RenewalAsked { id, app } => of_session("renewal_asked", id, app),
        News::SessionEnded {
            id,
            app,
            terminal,
            cause,
        } => EventLine {
            terminal: Some(terminal.to_string()),
            cause: because(cause.label()),
            ..of_session("session_ended", id, app)
        },
        News::ValidationRefused { id, app, why } => EventLine {
            cause: because(why),
            ..of_session("validation_refused", id, app)
        },
        News::AppFailed { app, cause } => EventLine {
            cause: because(cause.label()),
            ..of_app("app_failed", app)
        },
        News::AppRecovered { app } => of_app("app_recovered", app),
        News::QuotaExceeded { app, what } => EventLine {
            cause: because(what),
            ..of_app("quota_exceeded", app)
        },
    }
}

/// Who has brought it about, and with what success.
const fn actor(news: &News) -> (&'static str, &'static str) {
    match news {
        News::TerminalRegistered { .. }
        | News::TerminalMoved { .. }
        | News::SessionRequested { .. }
        | News::TokenIssued { .. } => ("device", "done"),
        News::QuotaExceeded { .. } => ("device", "refused"),
        News::SessionAuthorised { .. } | News::TokenRotated { .. } => ("app", "done"),
        News::ValidationRefused { .. } => ("app", "refused"),
        News::TerminalSuspended { .. }
        | News::TerminalResumed { .. }
        | News::TerminalRemoved { .. }
        | News::RotationAsked { .. } => ("operator", "done"),
        News::TerminalLeft { cause, .. } => match cause {
            // Another one has, where it was.
            Left::Deregistered | Left::AddressTaken => ("device", "done"),
            Left::Expired => ("gateway", "done"),
        },
        News::SessionEnded { cause, .. } => match cause {
            EndCause::Released
            | EndCause::Replaced
            | EndCause::Deregistered
            | EndCause::AddressTaken => ("device", "done"),
            EndCause::Revoked
            | EndCause::AppRemoved
            | EndCause::TerminalSuspended
            | EndCause::TerminalRemoved => ("operator", "done"),
            EndCause::AppEnded => ("app", "done"),
            EndCause::Expired | EndCause::AppServerFailed | EndCause::NotRotated => {
                ("gateway", "done")
            }
        },
        News::AppFailed { cause, .. } => match cause {
            AppFailure::Announced => ("app", "done"),
            AppFailure::Unreachable | AppFailure::Inactive => ("gateway", "done"),
        },
        News::RenewalAsked { .. } | News::AppRecovered { .. } => ("gateway", "done"),
    }
}

/// Instead of the digits of each token and key in a text, three dots.
fn without_secrets(text: String) -> String {
    let Some(at) = SECRET_PREFIXES
        .iter()
        .filter_map(|prefix| Some(text.find(prefix)? + prefix.len()))
        .min()
    else {
        return text;
    };
    let (before, rest) = text.split_at(at);
    let rest = rest.trim_start_matches(|c: char| c.is_ascii_alphanumeric());
    format!("{before}…{}", without_secrets(rest.to_owned()))
}

fn now() -> UnixTime {
    let since_epoch = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    UnixTime::from_millis(0).saturating_add(since_epoch)
}

/// RFC 3339 with milliseconds, UTC.
pub(crate) fn rfc3339(at: UnixTime) -> String {
    let timestamp = i64::try_from(at.as_millis())
        .ok()
        .and_then(|millis| jiff::Timestamp::from_millisecond(millis).ok());
    timestamp.map_or_else(
        || "beyond all time".to_owned(),
        |timestamp| format!("{timestamp:.3}"),
    )
}
