//! How long the controller takes, after it was killed, until store and kernel are in line again.

use super::super::Row;
use super::million::{Rows, allow_sessions, milliseconds, taken_up};
use crate::lab::Lab;
use anyhow::{Context, Result, ensure};
use std::path::Path;
use std::time::Instant;

/// Terminals, each with one session.
const SESSIONS: u32 = 100_000;

/// How long it may take.
const LIMIT_MS: f64 = 1000.0;

/// Kills it so often; the median counts.
const ROUNDS: usize = 5;

/// What it logs when store and kernel are in line.
pub(super) const IN_LINE: &str = "sessions in the data plane are those of the store";

/// Takes up the sessions, kills the controller, and starts it; prints and gives the figures.
pub(super) fn run(push_ctl: &Path) -> Result<Vec<Row>> {
    let lab = allow_sessions("push-bench-restart", push_ctl, SESSIONS)?;
    println!("bench: control: {SESSIONS} sessions, and kill -9");
    let mut rows = Rows::default();
    let file = lab.folder().join("sessions.jsonl");
    let taken = taken_up(&lab, &file, SESSIONS)?;
    let rate = f64::from(SESSIONS) / taken.as_secs_f64();
    rows.add("import", "rate", rate, "1/s", None);
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        lab.kill()?;
        let begun = Instant::now();
        lab.start()?;
        times.push(begun.elapsed());
        let line = last_of(&lab, IN_LINE)?;
        ensure!(
            line.contains(&format!("kept={SESSIONS}")) && line.contains("mended=0"),
            "the kernel has not kept them all: {line}"
        );
    }
    times.sort_unstable();
    let median = times.get(ROUNDS / 2).context("there was a round")?;
    let limit = Some(LIMIT_MS);
    rows.add(
        "kill -9, start",
        "in line after",
        milliseconds(*median),
        "ms",
        limit,
    );
    lab.down()?;
    Ok(rows.0)
}

/// The last line that the controller has logged with this `message`.
pub(super) fn last_of(lab: &Lab, message: &str) -> Result<String> {
    let log = lab.log();
    let line = log.lines().rev().find(|line| line.contains(message));
    Ok(line
        .with_context(|| format!("it has not logged `{message}`"))?
        .to_owned())
}
