//! Application servers: by what they identify themselves, what they may ask for, and how they are looked after.

use super::apps::facts;
use super::segment;
use crate::admin::api::{
    AddCredential, AppStatus, AvailabilityStatus, CredentialAdded, CredentialRemoved,
    CredentialStatus, KeysRotated, MonitorStatus, QuotaChange, QuotaStatus, RotateKeys,
};
use crate::cli::client::{Question, ask};
use crate::cli::people::{Table, ago, lifetime, plural};
use crate::cli::policy::Setting;
use crate::cli::{Failure, Output};
use crate::sessions::records::CredentialId;
use clap::{ArgGroup, Subcommand};
use jiff::Timestamp;
use reqwest::Method;
use serde_json::json;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

/// How long a key is good beside the one that takes its place, unless the operator says so.
const DEFAULT_OVERLAP: &str = "24h";

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum Key {
    /// List the keys and certificates of an application
    List {
        /// Name of the application
        name: String,
    },
    /// Add a key and print it, which can't be shown again; or add a certificate
    Add {
        /// Name of the application
        name: String,
        /// PEM file with the certificate by which its servers identify themselves in TLS, instead of a key
        #[arg(long, value_name = "FILE")]
        certificate: Option<PathBuf>,
    },
    /// Add a key and print it; those before it expire
    Rotate {
        /// Name of the application
        name: String,
        /// Let only this one expire, 16 hexadecimal digits
        id: Option<CredentialId>,
        /// How long those before it stay good; 0 is not at all
        #[arg(long, value_name = "DURATION", default_value = DEFAULT_OVERLAP)]
        overlap: humantime::Duration,
    },
    /// Remove a key or certificate: servers that use it are refused from now on
    Remove {
        /// Name of the application
        name: String,
        /// The credential, 16 hexadecimal digits
        id: CredentialId,
    },
}

/// Look after the servers of an application, in place of how it was done before: when they fail, its sessions end
#[derive(Debug, clap::Args)]
#[command(group(ArgGroup::new("what").args(["off", "url", "inactive_after"]).required(true).multiple(true)))]
pub(in crate::cli) struct Monitor {
    /// Name of the application
    name: String,
    /// No longer look after them
    #[arg(value_enum, conflicts_with_all = ["url", "interval", "unreachable_after", "inactive_after"])]
    off: Option<Off>,
    /// Where to ask how they are: any 2xx is good; 503, or a JSON body with "available": false, is not
    #[arg(long)]
    url: Option<String>,
    /// How often to ask
    #[arg(long, value_name = "DURATION", default_value = "30s", requires = "url")]
    interval: humantime::Duration,
    /// How long there may be no good answer before the application has failed
    #[arg(long, value_name = "DURATION", default_value = "2m", requires = "url")]
    unreachable_after: humantime::Duration,
    /// How long there may be neither a validation nor a delivered trigger before its sessions end
    #[arg(long, value_name = "DURATION")]
    inactive_after: Option<humantime::Duration>,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Off {
    Off,
}

/// Limit how much an application may have and ask for; `off` takes a limit back
#[derive(Debug, clap::Args)]
#[command(group(ArgGroup::new("quotas").args(["sessions", "sessions_per_terminal", "validations", "triggers"]).required(true).multiple(true)))]
pub(in crate::cli) struct Quota {
    /// Name of the application
    name: String,
    /// How many sessions it may have
    #[arg(long, value_name = "N|off")]
    sessions: Option<Setting<Number>>,
    /// How many of them on one terminal
    #[arg(long, value_name = "N|off")]
    sessions_per_terminal: Option<Setting<Number>>,
    /// How many validations its servers may ask for: 600/min
    #[arg(long, value_name = "N/min|off")]
    validations: Option<Setting<PerMinute>>,
    /// How many triggers its authorised sessions may be granted together, each the rate of `app set --rate`: 1000/s
    #[arg(long, value_name = "N/s|off")]
    triggers: Option<Setting<PerSecond>>,
}

/// `100`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Number(u32);

impl FromStr for Number {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        text.parse()
            .map(Self)
            .map_err(|_| "write for example 100 or off")
    }
}

/// `600/min`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct PerMinute(u32);

/// A text that is no number in a minute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("write for example 600/min or off")]
struct BadPerMinute;

impl FromStr for PerMinute {
    type Err = BadPerMinute;

    fn from_str(text: &str) -> Result<Self, BadPerMinute> {
        let number = text.strip_suffix("/min").ok_or(BadPerMinute)?;
        number.parse().map(Self).map_err(|_| BadPerMinute)
    }
}

/// `1000/s`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct PerSecond(u32);

impl FromStr for PerSecond {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        let number = text.strip_suffix("/s").and_then(|text| text.parse().ok());
        number.map(Self).ok_or("write for example 1000/s or off")
    }
}

impl Key {
    pub(in crate::cli) fn dispatch(self, socket: &Path) -> Result<Output, Failure> {
        match self {
            Self::List { name } => ask(socket, list(&name)),
            Self::Add {
                name,
                certificate: None,
            } => ask(socket, add(name, &AddCredential::default())),
            Self::Add {
                name,
                certificate: Some(file),
            } => {
                let certificate = Some(read_certificate(&file)?);
                ask(socket, add(name, &AddCredential { certificate }))
            }
            Self::Rotate { name, id, overlap } => ask(socket, rotate(name, id, *overlap)?),
            Self::Remove { name, id } => ask(socket, remove(name, id)),
        }
    }
}

impl Monitor {
    pub(in crate::cli) fn dispatch(self, socket: &Path) -> Result<Output, Failure> {
        let path = format!("/v1/apps/{}/monitor", segment(&self.name));
        if let Some(Off::Off) = self.off {
            return ask(socket, Question::act(Method::DELETE, path, None, facts));
        }
        let monitor = MonitorStatus {
            url: self.url,
            interval_s: seconds("--interval", *self.interval)?,
            unreachable_after_s: seconds("--unreachable-after", *self.unreachable_after)?,
            inactive_after_s: self
                .inactive_after
                .map(|limit| seconds("--inactive-after", *limit))
                .transpose()?,
        };
        let body = Some(json!(monitor));
        ask(socket, Question::act(Method::PUT, path, body, facts))
    }
}

impl Quota {
    pub(in crate::cli) fn dispatch(&self, socket: &Path) -> Result<Output, Failure> {
        let number = |setting: &Setting<Number>| setting.value().map(|&Number(number)| number);
        let change = QuotaChange {
            sessions: self.sessions.as_ref().map(number),
            sessions_per_terminal: self.sessions_per_terminal.as_ref().map(number),
            validations_per_minute: self
                .validations
                .as_ref()
                .map(|setting| setting.value().map(|&PerMinute(number)| number)),
            triggers_per_second: self
                .triggers
                .as_ref()
                .map(|setting| setting.value().map(|&PerSecond(number)| number)),
        };
        let path = format!("/v1/apps/{}/quotas", segment(&self.name));
        let question: Question<AppStatus> =
            Question::act(Method::PATCH, path, Some(json!(change)), facts);
        ask(socket, question)
    }
}

fn credentials(name: &str) -> String {
    format!("/v1/apps/{}/credentials", segment(name))
}

fn list(name: &str) -> Question<Vec<CredentialStatus>> {
    Question::get(credentials(name), |listed: &Vec<CredentialStatus>| {
        let mut table = Table::new(&["CREDENTIAL", "KIND", "ADDED", "EXPIRES"]);
        let now = Timestamp::now();
        for credential in listed {
            table.row([
                credential.id.clone(),
                kind(credential).to_owned(),
                since(&credential.created_at, now),
                expiry(credential, now).text(),
            ]);
        }
        table.or_say("None: no server of the application can identify itself; `push-ctl app key add` adds a key.")
    })
}

fn add(name: String, credential: &AddCredential) -> Question<CredentialAdded> {
    let body = json!(credential);
    Question::act(
        Method::POST,
        credentials(&name),
        Some(body),
        move |added: &CredentialAdded| match &added.api_key {
            Some(key) => format!(
                "Application {name} has one more key, which is shown this once only:\n{key}\n"
            ),
            None => {
                let limit = expiry(&added.credential, Timestamp::now()).sentence();
                format!(
                    "Servers of application {name} can identify themselves with the certificate {}; it {limit}.\n",
                    added.credential.id,
                )
            }
        },
    )
}

fn rotate(
    name: String,
    id: Option<CredentialId>,
    overlap: Duration,
) -> Result<Question<KeysRotated>, Failure> {
    let body = RotateKeys {
        only: id.map(|id| id.to_string()),
        overlap_s: seconds("--overlap", overlap)?,
    };
    let path = format!("{}/rotate", credentials(&name));
    Ok(Question::act(
        Method::POST,
        path,
        Some(json!(body)),
        move |rotated: &KeysRotated| {
            let before = rotated.replaced.join(", ");
            let fate = match (rotated.replaced.is_empty(), rotated.overlap_s) {
                (true, _) => "There was none before.".to_owned(),
                (false, 0) => format!("Good no more: {before}."),
                (false, overlap) => {
                    format!("Good for {} more at most: {before}.", lifetime(overlap))
                }
            };
            format!(
                "Application {name} has a new key, which is shown this once only:\n{}\n{fate}\n",
                rotated.api_key
            )
        },
    ))
}

fn remove(name: String, id: CredentialId) -> Question<CredentialRemoved> {
    let path = format!("{}/{id}", credentials(&name));
    Question::act(
        Method::DELETE,
        path,
        None,
        move |removed: &CredentialRemoved| {
            let left = match removed.remaining {
                0 => format!(
                    "It was the last: no server of {name} can identify itself until `push-ctl app key add {name}`."
                ),
                left => format!("{} left.", plural(left, "credential")),
            };
            format!(
                "Credential {} of application {name} is removed. {left}\n",
                removed.id
            )
        },
    )
}

/// The first certificate in a file, and nothing else of it: a private key in there stays there.
fn read_certificate(path: &Path) -> Result<String, Failure> {
    const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
    const END: &str = "-----END CERTIFICATE-----";
    let text = fs::read_to_string(path)
        .map_err(|error| Failure::new(format!("can't read {}: {error}", path.display())))?;
    let certificate = text.find(BEGIN).and_then(|begin| {
        let len = text[begin..].find(END)?;
        Some(text[begin..begin + len + END.len()].to_owned())
    });
    certificate.ok_or_else(|| {
        Failure::with_hint(
            format!("there is no certificate in {}", path.display()),
            format!("a PEM file with one has a line {BEGIN}"),
        )
    })
}

/// Whole seconds, which is what the daemon counts in.
fn seconds(option: &str, duration: Duration) -> Result<u64, Failure> {
    if duration.subsec_nanos() > 0 {
        return Err(Failure::usage(format!("{option}: whole seconds, please")));
    }
    Ok(duration.as_secs())
}

/// Adds what there is to say of an application's servers.
pub(super) fn tell(facts: &mut Table, app: &AppStatus) {
    let now = Timestamp::now();
    facts.fact("availability", available(&app.availability, now));
    let mut first = "credentials";
    for credential in &app.credentials {
        let (kind, added) = (kind(credential), since(&credential.created_at, now));
        let expiry = expiry(credential, now).sentence();
        let text = format!("{} ({kind}), added {added}, {expiry}", credential.id);
        facts.fact(std::mem::take(&mut first), text);
    }
    if app.credentials.is_empty() {
        facts.fact(first, super::none());
    }
    facts.fact("quotas", quotas(&app.quotas));
    let monitor = app.monitor.as_ref().map(monitored);
    facts.fact("monitor", monitor.unwrap_or_else(super::none));
}

fn quotas(quotas: &QuotaStatus) -> String {
    let QuotaStatus {
        sessions,
        sessions_per_terminal,
        validations_per_minute,
        triggers_per_second,
    } = *quotas;
    let texts = [
        sessions.map(|number| plural(number, "session")),
        sessions_per_terminal.map(|number| format!("{} per terminal", plural(number, "session"))),
        validations_per_minute.map(|number| format!("{}/min", plural(number, "validation"))),
        triggers_per_second.map(|number| format!("{}/s", plural(number, "trigger"))),
    ];
    let texts: Vec<_> = texts.into_iter().flatten().collect();
    if texts.is_empty() {
        return super::none();
    }
    texts.join(", ")
}

fn monitored(monitor: &MonitorStatus) -> String {
    let asked = monitor.url.as_ref().map(|url| {
        let (interval, limit) = (
            lifetime(monitor.interval_s),
            lifetime(monitor.unreachable_after_s),
        );
        format!("{url} every {interval}, unreachable after {limit}")
    });
    let used = monitor
        .inactive_after_s
        .map(|limit| format!("inactive after {}", lifetime(limit)));
    let texts: Vec<_> = asked.into_iter().chain(used).collect();
    texts.join(", ")
}

/// In one word.
pub(super) fn state(availability: &AvailabilityStatus) -> String {
    if availability.available {
        return "available".to_owned();
    }
    availability
        .cause
        .clone()
        .unwrap_or_else(|| "failed".to_owned())
}

fn available(availability: &AvailabilityStatus, now: Timestamp) -> String {
    match &availability.since {
        Some(time) => format!("{}, {}", state(availability), since(time, now)),
        None => state(availability),
    }
}

fn kind(credential: &CredentialStatus) -> &str {
    match &*credential.kind {
        "api_key" => "key",
        other => other,
    }
}

fn since(time: &str, now: Timestamp) -> String {
    let then: Option<Timestamp> = time.parse().ok();
    then.map_or_else(super::none, |then| {
        ago(u64::try_from(now.duration_since(then).as_secs()).unwrap_or(0))
    })
}

/// How long a credential is good yet.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Expiry {
    Never,
    In(String),
    Over,
}

impl Expiry {
    fn text(&self) -> String {
        match self {
            Self::Never => "never".to_owned(),
            Self::In(time) => format!("in {time}"),
            Self::Over => "expired".to_owned(),
        }
    }

    fn sentence(&self) -> String {
        match self {
            Self::Never => "never expires".to_owned(),
            Self::In(time) => format!("expires in {time}"),
            Self::Over => "has expired".to_owned(),
        }
    }
}

fn expiry(credential: &CredentialStatus, now: Timestamp) -> Expiry {
    let Some(expires) = &credential.expires_at else {
        return Expiry::Never;
    };
    let expires: Option<Timestamp> = expires.parse().ok();
    let left = expires.map_or(0, |expires| expires.duration_since(now).as_secs());
    match u64::try_from(left) {
        // As exact as is of interest.
        Ok(seconds @ 86_400..) => Expiry::In(lifetime(seconds - seconds % 3600)),
        Ok(seconds @ 3600..) => Expiry::In(lifetime(seconds - seconds % 60)),
        Ok(seconds @ 1..) => Expiry::In(lifetime(seconds)),
        Ok(0) | Err(_) => Expiry::Over,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, clap::Parser)]
    enum App {
        #[command(subcommand)]
        Key(Key),
        Monitor(Monitor),
        Quota(Quota),
    }

    fn parse(line: &str) -> Result<App, String> {
        App::try_parse_from(["app"].into_iter().chain(line.split(' ')))
            .map_err(|error| error.to_string())
    }

    #[test]
    fn commands_are_understood_or_refused_with_what_is_missing() {
        for line in [
            "key list mail",
            "key add mail",
            "key add mail --certificate server.pem",
            "key rotate mail",
            "key rotate mail 0123456789abcdef --overlap 0",
            "key remove mail 0123456789abcdef",
            "monitor mail off",
            "monitor mail --url https://app.example.com/ --interval 10s --unreachable-after 1m",
            "monitor mail --inactive-after 1h",
            "quota mail --sessions 10 --sessions-per-terminal off --validations 600/min",
            "quota mail --triggers 1000/s",
        ] {
            parse(line).unwrap_or_else(|error| panic!("{line}: {error}"));
        }
        for (line, why) in [
            ("key remove mail", "<ID>"),
            ("key remove mail 12", "16 hexadecimal digits"),
            ("monitor mail", "--url <URL>"),
            ("monitor mail --interval 10s", "--url <URL>"),
            ("monitor mail off --url https://a/", "cannot be used with"),
            ("quota mail", "--sessions <N|off>"),
            ("quota mail --validations 600", "600/min or off"),
            ("quota mail --triggers 600/min", "1000/s or off"),
        ] {
            let error = parse(line).unwrap_err();
            assert!(error.contains(why), "{line}: {error}");
        }
        assert!(seconds("--overlap", Duration::from_millis(1500)).is_err());
    }

    #[test]
    fn a_private_key_in_the_file_stays_there() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let certificate = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----";
        let text = format!("-----BEGIN PRIVATE KEY-----\nsecret\n{certificate}\n{certificate}\n");
        fs::write(file.path(), text).unwrap();
        assert_eq!(read_certificate(file.path()).unwrap(), certificate);
        fs::write(file.path(), "-----END CERTIFICATE-----").unwrap();
        let failure = read_certificate(file.path()).unwrap_err();
        assert!(failure.error.contains("there is no certificate in"));
    }

    #[test]
    fn it_is_told_how_servers_are_in_a_few_words() {
        let now: Timestamp = "2026-01-02T00:00:00Z".parse().unwrap();
        let credential = |expires_at: Option<&str>| CredentialStatus {
            id: "0123456789abcdef".to_owned(),
            kind: "api_key".to_owned(),
            created_at: "2026-01-01T23:00:00Z".to_owned(),
            expires_at: expires_at.map(str::to_owned),
        };
        for (expires, text) in [
            (None, "never expires"),
            (Some("2026-02-01T01:30:59Z"), "expires in 30d 1h"),
            (Some("2026-01-02T01:30:59Z"), "expires in 1h 30m"),
            (Some("2026-01-02T00:01:01Z"), "expires in 1m 1s"),
            (Some("2026-01-02T00:00:00Z"), "has expired"),
            (Some("2025-01-02T00:00:00Z"), "has expired"),
        ] {
            assert_eq!(expiry(&credential(expires), now).sentence(), text);
        }
        assert_eq!(since(&credential(None).created_at, now), "1h ago");
        let failed = AvailabilityStatus {
            available: false,
            cause: Some("unreachable".to_owned()),
            since: Some("2026-01-01T23:55:00Z".to_owned()),
        };
        assert_eq!(available(&failed, now), "unreachable, 5m ago");
        let monitor = MonitorStatus {
            url: Some("https://app.example.com/".to_owned()),
            interval_s: 30,
            unreachable_after_s: 120,
            inactive_after_s: Some(3600),
        };
        assert_eq!(
            monitored(&monitor),
            "https://app.example.com/ every 30s, unreachable after 2m, inactive after 1h"
        );
        let some = QuotaStatus {
            sessions: Some(100),
            sessions_per_terminal: Some(1),
            validations_per_minute: Some(600),
            triggers_per_second: Some(1000),
        };
        assert_eq!(
            quotas(&some),
            "100 sessions, 1 session per terminal, 600 validations/min, 1,000 triggers/s"
        );
        assert_eq!(quotas(&QuotaStatus::default()), "-");
    }
}
