//! Where the log of the daemon goes, and in what form.

use super::Failure;
use std::env;
use std::io::{self, IsTerminal};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// What a line of the log is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum LogFormat {
    /// For people, on stderr
    Text,
    /// An object on each line of stderr
    Json,
    /// Entries of systemd's journal, with the fields as PUSH_…
    Journald,
}

impl LogFormat {
    /// What fits where stderr leads to.
    fn fitting() -> Self {
        let leads_to_journal = env::var("JOURNAL_STREAM")
            .is_ok_and(|stream| stderr_file().is_some_and(|file| stream == file));
        if leads_to_journal {
            Self::Journald
        } else {
            Self::Text
        }
    }
}

/// As `JOURNAL_STREAM` names files (systemd.exec(5)): device and inode.
fn stderr_file() -> Option<String> {
    let file = nix::sys::stat::fstat(io::stderr()).ok()?;
    Some(format!("{}:{}", file.st_dev, file.st_ino))
}

/// From now on, what is logged goes there: what `RUST_LOG` picks, or from `info` on.
pub(super) fn start(format: Option<LogFormat>) -> Result<(), Failure> {
    let filter = EnvFilter::builder()
        .with_default_directive(tracing::Level::INFO.into())
        .from_env();
    let filter = filter.map_err(|error| Failure::new(format!("RUST_LOG: {error}")))?;
    match format.unwrap_or_else(LogFormat::fitting) {
        LogFormat::Text => tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(io::stderr)
            .with_ansi(io::stderr().is_terminal())
            .init(),
        LogFormat::Json => tracing_subscriber::fmt()
            .json()
            .flatten_event(true)
            .with_current_span(false)
            .with_span_list(false)
            .with_env_filter(filter)
            .with_writer(io::stderr)
            .init(),
        LogFormat::Journald => {
            let journal = tracing_journald::layer().map_err(|error| {
                Failure::with_hint(
                    format!("can't log to the journal: {error}"),
                    "is systemd-journald running? --log-format text or json does without",
                )
            })?;
            let journal = journal.with_field_prefix(Some("PUSH".to_owned()));
            tracing_subscriber::registry()
                .with(filter)
                .with(journal)
                .init();
        }
    }
    Ok(())
}
