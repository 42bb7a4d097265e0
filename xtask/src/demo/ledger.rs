//! What went in, what came out, and what the gateway says about the difference.

use super::stage::{Stage, grouped};
use crate::child;
use crate::lab::{Lab, Party};
use anyhow::{Context, Result, bail, ensure};
use push_common::verdict::{Action, Verdict};
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
    counts_at(lab, NIC)
}

/// What the gateway has counted at a NIC.
pub(super) fn counts_at(lab: &Lab, nic: &str) -> Result<Counts> {
    verdicts(&at(&lab.push_ctl_json(&["stats"])?, nic)?["verdicts"])
}

/// The part of `stats` that is about a NIC.
pub(super) fn at<'s>(stats: &'s Value, nic: &str) -> Result<&'s Value> {
    let nics = stats["nics"].as_array().context("stats have no nics")?;
    nics.iter()
        .find(|entry| entry["name"] == nic)
        .with_context(|| format!("stats have no {nic}"))
}

fn verdicts(verdicts: &Value) -> Result<Counts> {
    let count = |verdict: &Value| {
        Some((
            verdict["verdict"].as_str()?.to_owned(),
            verdict["packets"].as_u64()?,
        ))
    };
    verdicts
        .as_array()
        .context("the NIC has no verdicts")?
        .iter()
        .map(|verdict| count(verdict).context("not a verdict with its packets"))
        .collect()
}

/// Packets that came in by a NIC.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct CameIn {
    nic: String,
    /// As the kernel counts them.
    received: u64,
    /// With a verdict.
    verdicts: u64,
}

/// What has come in by each NIC of the gateway, at one moment.
pub(super) fn came_in(lab: &Lab) -> Result<Vec<CameIn>> {
    let started = Instant::now();
    loop {
        let received_before = received(lab)?;
        let stats = lab.push_ctl_json(&["stats"])?;
        // Nothing came in between, so that both tell of the same moment.
        if received(lab)? == received_before {
            return received_before
                .into_iter()
                .map(|(nic, received)| {
                    let counts = verdicts(&at(&stats, &nic)?["verdicts"])?;
                    Ok(CameIn {
                        nic,
                        received,
                        verdicts: counts.values().sum(),
                    })
                })
                .collect();
        }
        ensure!(started.elapsed() < LIMIT, "packets keep coming");
    }
}

/// Packets that the kernel has received by each NIC on which the program is.
fn received(lab: &Lab) -> Result<Vec<(String, u64)>> {
    let namespace = lab.namespace(Party::Gateway);
    let text = child::output(child::command("ip").args(["-n", &namespace, "-j", "-s", "link"]))?;
    let links: Value = serde_json::from_str(&text).context("`ip -j` doesn't answer in JSON")?;
    let links = links.as_array().context("`ip -j link` gives no list")?;
    links
        .iter()
        .filter(|link| link["xdp"]["prog"].is_object())
        .map(|link| {
            let name = link["ifname"].as_str().context("a link has no name")?;
            let packets = &link["stats64"]["rx"]["packets"];
            let packets = packets.as_u64().context("a link has no counters")?;
            Ok((name.to_owned(), packets))
        })
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
    settle_at(lab, NIC, before, verdicts, triggers)
}

/// The same at another NIC.
pub(super) fn settle_at(
    lab: &Lab,
    nic: &str,
    before: &Counts,
    verdicts: &[&str],
    packets: u64,
) -> Result<Counts> {
    let started = Instant::now();
    loop {
        let mut since = counts_at(lab, nic)?;
        for (verdict, count) in &mut since {
            *count -= before.get(verdict).copied().unwrap_or(0);
        }
        since.retain(|verdict, count| *count > 0 && verdicts.contains(&verdict.as_str()));
        if since.values().sum::<u64>() >= packets || started.elapsed() > LIMIT {
            return Ok(since);
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// One kind of trigger.
#[derive(Default)]
pub(super) struct Row {
    pub(super) what: String,
    pub(super) sent: u64,
    pub(super) delivered: u64,
    /// How many of those sent were to be delivered.
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

/// Whether the gateway counts what the kernel and the table do: no packet since `before` without a
/// verdict, no trigger that isn't in the table.
pub(super) fn judge_gateway(
    lab: &Lab,
    stage: &mut Stage,
    rows: &[Row],
    before: &[CameIn],
) -> Result<()> {
    let now = came_in(lab)?;
    ensure!(now.len() == before.len(), "not the same NICs as before");
    for (now, before) in now.iter().zip(before) {
        let received = now.received - before.received;
        let verdicts = now.verdicts - before.verdicts;
        stage.check(
            received == verdicts,
            format!(
                "{}: {} packets came in, says the kernel; {} have a verdict",
                now.nic,
                grouped(received),
                grouped(verdicts)
            ),
        );
    }
    let mut in_table = Counts::new();
    for (verdict, count) in rows.iter().flat_map(|row| &row.verdicts) {
        *in_table.entry(verdict.clone()).or_default() += count;
    }
    let mut counted = counts(lab)?;
    // Those by which the kernel gets what is not, or not surely, a trigger.
    let is_passed = |verdict: &str| {
        Verdict::ALL.iter().any(|known| {
            known.label() == verdict
                && matches!(known.action(), Action::Pass)
                && !known.is_delivery()
        })
    };
    counted.retain(|verdict, count| *count > 0 && !is_passed(verdict));
    stage.check(
        counted == in_table,
        format!("{NIC}: what it has sent on and dropped, by verdict, is what the table has"),
    );
    Ok(())
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
