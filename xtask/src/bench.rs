//! `cargo xtask bench`: runs the benchmarks, and has the statistics that they share.
//!
//! Times on a machine that others use too aren't stable; ratios within one run are. So competitors
//! take [`Turns`] for many [`Round`]s: while the CPUs are as fast as they can be, for each of them. A round measures a
//! floor beside them, which is subtracted, and tells in which rounds something else was going on: [`Quiet`] throws those
//! out, and refuses to give any figure when too few are left. No target is held against a figure that spreads too wide
//! over the rounds that are.

pub mod control;
mod machine;
mod others;
mod plot;
mod report;
mod row;
mod statistics;
mod targets;
mod turns;

pub use others::{Others, Took};
pub use row::{Figure, Row};
pub use statistics::{Quartiles, Quiet, Round};
pub use turns::{Progress, Rounds, Turns, allowed_cpus, arithmetic, pin};

use crate::{child, setup, workspace};
use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use machine::{Machine, Noise};
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

/// Something to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Suite {
    /// What each way through the XDP program costs, one frame at a time.
    Path,
    /// What it costs to have many sessions, in time and in memory.
    Scale,
    /// Live frames through push, and through programs that only send them on: how many, how soon, none lost.
    Wire,
    /// Live frames through what others would take for the job, in the same run.
    Peers,
    /// Live frames on two CPUs, for sessions of their own and for one that they share.
    Multi,
    /// How fast 100,000 devices register and refresh, in a lab; figures of one run on this machine.
    Control,
}

impl Suite {
    const fn name(self) -> &'static str {
        match self {
            Self::Path => "path",
            Self::Scale => "scale",
            Self::Wire => "wire",
            Self::Peers => "peers",
            Self::Multi => "multi",
            Self::Control => "control",
        }
    }
}

/// What of a run is to be kept.
#[derive(Clone, Copy, Debug, Default)]
pub struct Outputs<'a> {
    /// File for the rows.
    pub json: Option<&'a Path>,
    /// Folder for the report with its plots.
    pub report: Option<&'a Path>,
    /// Whether the table in the README is to have this run's targets.
    pub readme: bool,
}

/// Runs `suites`, or all of them in short if none is named; prints how the targets fared, and writes what
/// `outputs` asks for.
///
/// # Errors
///
/// When not root, when something doesn't build, when a suite finds the gateway doing the wrong
/// thing, or when the machine is too noisy for a figure. The files then have what could be measured.
pub fn run(suites: &[Suite], outputs: Outputs<'_>) -> Result<()> {
    workspace::require_root("measuring on the real kernel", "bench")?;
    if let Some(path) = outputs.json {
        // Before the work, so that it isn't done in vain.
        File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
    }
    if let Some(folder) = outputs.report {
        fs::create_dir_all(folder)
            .with_context(|| format!("cannot make the folder {}", folder.display()))?;
    }
    setup::run()?;
    build()?;
    let machine = Machine::read()?;
    println!("{machine}");
    let in_short = suites.is_empty();
    let suites = if in_short {
        Suite::value_variants()
    } else {
        suites
    };
    let mut rows = Vec::new();
    let mut failed = Vec::new();
    for &suite in suites {
        let noise = Noise::listen()?;
        println!("\nbench: {}: before it, {noise}", suite.name());
        let (of_suite, succeeded) = match suite {
            Suite::Path | Suite::Scale | Suite::Wire | Suite::Peers | Suite::Multi => {
                run_suite(suite.name(), in_short)?
            }
            // What other suites have measured isn't lost with it.
            Suite::Control => match control::run(in_short) {
                Ok(rows) => (rows, true),
                Err(error) => {
                    eprintln!("error: {error:#}");
                    (Vec::new(), false)
                }
            },
        };
        rows.extend(of_suite);
        rows.push(noise.to_row(suite));
        if !succeeded {
            failed.push(suite.name());
        }
    }
    if let Some(path) = outputs.json {
        let text = serde_json::to_string_pretty(&rows)? + "\n";
        fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    let fared = targets::fared(&rows);
    print!("\n{}", targets::table(&fared));
    if let Some(folder) = outputs.report {
        let path = report::write(folder, &machine, &rows, &fared)?;
        println!("\nreport: {}", path.display());
    }
    if !failed.is_empty() {
        bail!("no result for {}; see above", failed.join(", "));
    }
    let too_noisy = fared.iter().filter(|one| one.is_too_noisy);
    let too_noisy: Vec<_> = too_noisy.map(|one| one.promise).collect();
    if !too_noisy.is_empty() {
        bail!(
            "too noisy to be quoted: {}; try again when less is running on the machine",
            too_noisy.join("; ")
        );
    }
    if outputs.readme {
        report::into_readme(&machine, &fared)?;
    }
    Ok(())
}

/// Everything that is to be run, so that no compiler is at work beside what is measured.
fn build() -> Result<()> {
    let mut command = benches();
    for name in ["load", "multi", "path", "peers", "scale", "wire"] {
        command.args(["--bench", name]);
    }
    command.arg("--no-run");
    let line = child::display(&command);
    println!("bench: {line}");
    let status = command
        .status()
        .with_context(|| format!("cannot run `{line}`"))?;
    ensure!(status.success(), "`{line}` failed");
    workspace::build_push_ctl()?;
    Ok(())
}

/// Cargo, with the benchmarks of push-ctl.
fn benches() -> Command {
    let mut command = workspace::cargo();
    command.args(["bench", "-p", "push-ctl", "--features", "bench"]);
    command
}

/// The rows that a benchmark of push-ctl has written, and whether it succeeded.
fn run_suite(name: &str, in_short: bool) -> Result<(Vec<Row>, bool)> {
    let written = workspace::target().join(format!("bench-{name}.json"));
    if written.exists() {
        fs::remove_file(&written)
            .with_context(|| format!("cannot remove {}", written.display()))?;
    }
    let mut command = benches();
    command
        .args(["--bench", name, "--", "--json"])
        .arg(&written);
    if in_short {
        command.arg("--short");
    }
    let line = child::display(&command);
    println!("bench: {name}: {line}");
    let status = command
        .status()
        .with_context(|| format!("cannot run `{line}`"))?;
    let rows = if written.exists() {
        let text = fs::read_to_string(&written)?;
        serde_json::from_str(&text)
            .with_context(|| format!("{} is not a list of rows", written.display()))?
    } else {
        Vec::new()
    };
    Ok((rows, status.success()))
}
