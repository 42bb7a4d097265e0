//! How the daemon is doing.

use super::gateway;
use crate::admin::api::Status;
use crate::cli::client;
use crate::cli::people::{lifetime, plural};
use crate::cli::{Failure, Output};
use serde_json::json;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

/// How often a daemon that isn't ready is asked again.
const ASK_EVERY: Duration = Duration::from_millis(100);

/// How the daemon is doing, and what should be mended
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct StatusOptions {
    /// Wait until the daemon answers and is attached to all of its NICs, at most this long (1m unless given)
    #[arg(long, value_name = "DURATION", num_args = 0..=1, default_missing_value = "1m")]
    wait: Option<humantime::Duration>,
    /// Say it in one line, and exit with 1 if something should be mended
    #[arg(long)]
    brief: bool,
}

pub(in crate::cli) fn status(socket: &Path, options: &StatusOptions) -> Result<Output, Failure> {
    let status = match options.wait {
        Some(limit) => await_ready(socket, *limit)?,
        None => client::get(socket, "/v1/status", client::TIMEOUT)?,
    };
    if options.brief {
        brief(&status)
    } else {
        Output::new(&status, gateway::status_for_people(&status))
    }
}

fn await_ready(socket: &Path, limit: Duration) -> Result<Status, Failure> {
    let began = Instant::now();
    loop {
        // At least once, and long enough for an answer.
        let left = limit.saturating_sub(began.elapsed());
        let answer = client::get::<Status>(socket, "/v1/status", left.max(Duration::from_secs(1)));
        let not_yet = match answer {
            Ok(status) => match detached(&status) {
                None => return Ok(status),
                Some(nic) => Failure::with_hint(
                    format!("the daemon's program is not attached to {nic}"),
                    "something else has detached it; start the daemon anew",
                ),
            },
            Err(failure) => failure,
        };
        if began.elapsed() + ASK_EVERY > limit {
            let limit = humantime::format_duration(limit);
            return Err(Failure {
                error: format!("not ready after {limit}: {}", not_yet.error),
                ..not_yet
            });
        }
        thread::sleep(ASK_EVERY);
    }
}

/// A NIC that the program should be attached to, and isn't.
fn detached(status: &Status) -> Option<&str> {
    let mut nics = status.nics.iter();
    nics.find(|nic| nic.mode == "none")
        .map(|nic| nic.name.as_str())
}

fn brief(status: &Status) -> Result<Output, Failure> {
    let healthy = detached(status).is_none() && status.warnings.is_empty();
    let nics: Vec<_> = status
        .nics
        .iter()
        .map(|nic| format!("{} {}", nic.name, nic.mode))
        .collect();
    let mut line = format!(
        "{}: push-ctl {}, up {}; {}; {}",
        if healthy { "ok" } else { "NOT OK" },
        status.version,
        lifetime(status.uptime_s),
        nics.join(", "),
        plural(status.sessions.authorised, "authorised session"),
    );
    for warning in &status.warnings {
        line += &format!("; {warning}");
    }
    let json = json!({
        "healthy": healthy,
        "version": status.version,
        "uptime_s": status.uptime_s,
        "nics": status.nics.iter().map(|nic| json!({ "name": nic.name, "mode": nic.mode })).collect::<Vec<_>>(),
        "authorised": status.sessions.authorised,
        "warnings": status.warnings,
    });
    Ok(Output {
        is_good: healthy,
        ..Output::new(&json, line + "\n")?
    })
}
