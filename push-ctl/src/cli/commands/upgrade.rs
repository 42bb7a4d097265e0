//! The daemon becomes the push-ctl that is installed now.

use crate::admin::api::{NicStatus, Status, Upgrading};
use crate::cli::people::Table;
use crate::cli::{Failure, Output, client};
use reqwest::Method;
use serde_json::json;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

/// How often it is looked whether the daemon is back.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Have the daemon become the push-ctl that is installed now, while triggers go on
///
/// The daemon looks first whether the file that it was started from runs, and takes the configuration. Then it ends and
/// executes it, as the same process; that one puts its program into the place of the one before, on each NIC in one step,
/// and keeps all sessions.
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
        loop {
            // While it is away, nobody listens.
            if let Ok(status) = client::get::<Status>(socket, "/v1/status", client::TIMEOUT)
                && status.started_at != before.started_at
            {
                return Ok(status);
            }
            if begin.elapsed() > *self.wait {
                return Err(Failure::with_hint(
                    format!("the daemon did not come back within {}", self.wait),
                    "the program and its sessions are still there and deliver; the daemon's log says why it does not start",
                ));
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
