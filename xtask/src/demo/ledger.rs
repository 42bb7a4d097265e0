//! What went in, what came out, and what the gateway says about the difference.

use super::stage::grouped;
use crate::lab::Lab;
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

/// The NIC by which triggers enter.
const NIC: &str = "gw-app";

/// Verdicts that mean that a trigger was sent on.
pub(super) const FORWARDED: &[&str] = &["redirected", "sent_back", "next_hop_unresolved"];

/// How long counters may take to show what was sent.
const LIMIT: Duration = Duration::from_secs(10);

/// Packets by verdict.
pub(super) type Counts = BTreeMap<String, u64>;

/// What the gateway has counted at the NIC by which triggers enter.
pub(super) fn counts(lab: &Lab) -> Result<Counts> {
    let stats = lab.push_ctl_json(&["stats"])?;
    let nics = stats["nics"].as_array().context("stats have no nics")?;
    let nic = nics
        .iter()
        .find(|nic| nic["name"] == NIC)
        .with_context(|| format!("stats have no {NIC}"))?;
    let verdicts = nic["verdicts"]
        .as_array()
        .context("the NIC has no verdicts")?;
    let count = |verdict: &Value| {
        Some((
            verdict["verdict"].as_str()?.to_owned(),
            verdict["packets"].as_u64()?,
        ))
    };
    verdicts
        .iter()
        .map(|verdict| count(verdict).context("not a verdict with its packets"))
        .collect()
}

/// Waits until these verdicts have been passed on `triggers` packets since `before`; gives what was
/// counted since, of these verdicts.
pub(super) fn settle(
    lab: &Lab,
    before: &Counts,
    verdicts: &[&str],
    triggers: u64,
) -> Result<Counts> {
    let started = Instant::now();
    loop {
        let mut since = counts(lab)?;
        for (verdict, count) in &mut since {
            *count -= before.get(verdict).copied().unwrap_or(0);
        }
        since.retain(|verdict, count| *count > 0 && verdicts.contains(&verdict.as_str()));
        if since.values().sum::<u64>() >= triggers || started.elapsed() > LIMIT {
            return Ok(since);
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// One kind of trigger.
pub(super) struct Row {
    pub(super) what: String,
    pub(super) sent: u64,
    pub(super) delivered: u64,
    /// How many of those sent were to be delivered: all, or none.
    pub(super) due: u64,
    pub(super) verdicts: Counts,
}

impl Row {
    /// Whether all is as told: each trigger has one of the verdicts, and is delivered if it should be.
    pub(super) fn is_as_told(&self) -> bool {
        self.delivered == self.due && self.verdicts.values().sum::<u64>() == self.sent
    }

    pub(super) fn verdicts(&self) -> String {
        let parts: Vec<_> = self
            .verdicts
            .iter()
            .map(|(verdict, count)| format!("{verdict} {}", grouped(*count)))
            .collect();
        parts.join(", ")
    }
}

/// Prints all rows.
pub(super) fn print(rows: &[Row]) {
    let width = rows
        .iter()
        .map(|row| row.what.chars().count())
        .max()
        .unwrap_or(0);
    println!(
        "\n    {:width$}  {:>11}  {:>11}   verdicts at {NIC}",
        "", "sent", "delivered"
    );
    for row in rows {
        let mark = if row.is_as_told() { "✓" } else { "✗" };
        println!(
            "  {mark} {:width$}  {:>11}  {:>11}   {}",
            row.what,
            grouped(row.sent),
            grouped(row.delivered),
            row.verdicts()
        );
    }
    let (sent, delivered): (Vec<_>, Vec<_>) =
        rows.iter().map(|row| (row.sent, row.delivered)).unzip();
    println!(
        "    {:width$}  {:>11}  {:>11}",
        "all",
        grouped(sent.iter().sum()),
        grouped(delivered.iter().sum())
    );
}

/// Fails if what was told doesn't hold for some row.
pub(super) fn judge(rows: &[Row], failures: u32) -> Result<()> {
    let wrong = rows.iter().filter(|row| !row.is_as_told()).count();
    if wrong > 0 || failures > 0 {
        bail!(
            "not all was as told: {wrong} rows of the table, {failures} other things; they are marked with ✗"
        );
    }
    Ok(())
}
