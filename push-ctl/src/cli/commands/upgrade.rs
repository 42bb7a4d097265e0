//! The daemon becomes the push-ctl that is installed now.

use crate::admin::api::{NicStatus, Status, Upgrading};
use crate::cli::people::Table;
use crate::cli::{Failure, Output, client};
use reqwest::Method;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

/// How often it is looked whether the daemon is back.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// How soon a service manager starts a daemon again that has ended.
const RESTART: Duration = Duration::from_secs(5);

const DOWN: &str = "triggers of the sessions that there are go on being delivered until registrations expire, but nobody can register or \
    validate: `journalctl -u push`, or the log of `push-ctl run`, says why it doesn't start; mend that, or install the push-ctl from before again, \
    and start it: `systemctl start push`";

/// Have the daemon become the push-ctl that is installed now, while triggers go on
///
/// The daemon looks first whether the file that it was started from runs, and takes the configuration. Then it ends and
/// executes it, as the same process; that one puts its program into the place of the one before, on each NIC in one step,
/// and keeps all sessions. If the file doesn't run or doesn't take the configuration, nothing changes.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Upgrade {
    /// How long the daemon may take to come back
    #[arg(long, value_name = "DURATION", default_value = "1m")]
    wait: humantime::Duration,
}

impl Upgrade {
    pub(in crate::cli) fn dispatch(&self, socket: &Path) -> Result<Output, Failure> {
        let before: Status = client::get(socket, "/v1/status", client::TIMEOUT)?;
        let begin = Instant::now();
        let Upgrading { from, to } = client::act(socket, Method::POST, "/v1/upgrade")?;
        let after = self.await_the_next(socket, &before, begin)?;
        let took = begin.elapsed();
        let mut table = Table::new(&["NIC", "PROGRAM", "NOW", "LINK"]);
        for nic in &after.nics {
            let mut nics_before = before.nics.iter();
            let program_before = nics_before
                .find(|before| before.name == nic.name)
                .map_or_else(|| "-".to_owned(), |before| before.program_id.to_string());
            table.row([
                nic.name.clone(),
                program_before,
                nic.program_id.to_string(),
                link(nic, &before),
            ]);
        }
        let people = format!(
            "push-ctl {from} went on as push-ctl {to}, as process {}, ready after {:.1} s.\n{table}",
            after.pid,
            took.as_secs_f64()
        );
        let json = json!({
            "from": from,
            "to": to,
            "pid": after.pid,
            "ready_after_ms": took.as_millis(),
            "nics": after.nics,
        });
        Output::new(&json, people)
    }

    /// The daemon that comes after the one that has said `before`.
    fn await_the_next(
        &self,
        socket: &Path,
        before: &Status,
        begin: Instant,
    ) -> Result<Status, Failure> {
        let process = PathBuf::from(format!("/proc/{}", before.pid));
        // Not so if this runs in a container of its own.
        let is_seen = process.exists();
        let mut gone_since: Option<Instant> = None;
        loop {
            // While it is away, nobody listens.
            if let Ok(status) = client::get::<Status>(socket, "/v1/status", client::TIMEOUT)
                && status.started_at != before.started_at
            {
                return Ok(status);
            }
            if is_seen && !process.exists() {
                let since = *gone_since.get_or_insert_with(Instant::now);
                if since.elapsed() > RESTART {
                    let error = format!(
                        "the daemon, process {}, has ended, and nobody has started it again",
                        before.pid
                    );
                    return Err(Failure::with_hint(error, DOWN));
                }
            }
            if begin.elapsed() > *self.wait {
                let error = format!("the daemon did not come back within {}", self.wait);
                return Err(Failure::with_hint(error, DOWN));
            }
            thread::sleep(LOOK_EVERY);
        }
    }
}

fn link(nic: &NicStatus, before: &Status) -> String {
    let is_kept = before
        .nics
        .iter()
        .any(|before| (&before.name, before.link_id) == (&nic.name, nic.link_id));
    let word = if is_kept { "kept" } else { "new" };
    format!("{} ({word})", nic.link_id)
}
