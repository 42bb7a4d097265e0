//! `cargo xtask soak`: what goes wrong once in a million times, looked for at length.

use crate::{check, setup, workspace};
use anyhow::{Context, Result};
use clap::ValueEnum;
use std::collections::BTreeMap;
use std::time::Duration;

/// What is run; each is a test of that name in `tests/races/soak.rs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Race {
    /// Two CPUs offer each sequence number at the same moment.
    Replay,
    /// Two CPUs offer them in different orders, as far apart as the permitted lag allows.
    Reordered,
    /// The same while programs are replaced.
    Restart,
    /// Two servers send the same triggers while the daemon is killed.
    Daemon,
    /// A slot of the session table gets one owner after the other.
    Slots,
    /// Two CPUs empty buckets of a rate.
    Bursts,
    /// Two CPUs take all that a rate permits, second by second.
    Rate,
    /// Two CPUs offer collapse keys.
    Keys,
    /// Two CPUs offer collapse keys, window after window.
    Windows,
    /// A device moves between two places.
    Moves,
    /// Tokens rotate.
    Rotations,
    /// Routes change.
    Routes,
    /// A device moves while triggers go from socket to socket.
    Delivery,
    /// Nine of ten triggers are bad, as fast as can be.
    Flood,
    /// The daemon is upgraded while triggers keep coming.
    Upgrades,
    /// The daemon is killed while devices register and triggers keep coming.
    Crashes,
    /// Links go down and up.
    Links,
    /// NICs are removed and come back.
    Replugs,
}

impl Race {
    fn name(self) -> String {
        let value = self.to_possible_value();
        value.map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

/// Runs `races`, or all of them if that is empty: each to its full count, or all of them within `time`.
///
/// # Errors
///
/// When not root, when something doesn't build, or when anything is lost, let through twice, or mixed up.
pub fn run(time: Option<Duration>, races: &[Race]) -> Result<()> {
    workspace::require_root("testing on the real kernel", "soak")?;
    setup::run()?;
    let races = if races.is_empty() {
        Race::value_variants()
    } else {
        races
    };
    let mut arguments = [
        "-p",
        "push-ctl",
        "--test",
        "push",
        "--",
        "--ignored",
        "--exact",
        "--nocapture",
        // They need both CPUs.
        "--test-threads=1",
    ]
    .map(str::to_owned)
    .to_vec();
    arguments.extend(
        races
            .iter()
            .map(|race| format!("races::soak::{}", race.name())),
    );
    let each = time.map(|time| time.as_secs_f64() / races.len() as f64);
    let environment: Vec<_> = each
        .map(|seconds| ("PUSH_SOAK_SECONDS", seconds.to_string()))
        .into_iter()
        .collect();

    let mut results: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let outcome = check::run_tests_heard(&arguments, &environment, |line| {
        let result = line.strip_prefix("result: ");
        if let Some((race, text)) = result.and_then(|result| result.split_once(": ")) {
            results
                .entry(race.to_owned())
                .or_default()
                .push(text.to_owned());
        }
    });
    println!("\nsoak:");
    for race in races.iter().map(|race| race.name()) {
        let none = [format!(
            "failed; `cargo xtask soak --only {race}` runs it alone"
        )];
        for text in results.get(&race).map_or(&none[..], |texts| &texts[..]) {
            println!("  {race:<10} {text}");
        }
    }
    outcome.context("not all races came to their end")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A test that isn't there would be left out without a word.
    #[test]
    fn each_race_is_a_test() {
        let path = workspace::root().join("tests/races/soak.rs");
        let text = std::fs::read_to_string(path).unwrap();
        let tests = text.matches("#[ignore").count();
        assert_eq!(tests, Race::value_variants().len());
        for race in Race::value_variants() {
            assert!(
                text.contains(&format!("\nfn {}() {{\n", race.name())),
                "{race:?}"
            );
        }
    }
}
