//! What all benchmarks have in common: what they are asked, and how they answer.

use crate::gateway::Gateway;
use anyhow::{Context, Result, bail};
use clap::Parser;
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use xtask::bench::{Others, Quiet, Rounds, Row, Suite};

#[derive(Parser)]
pub(crate) struct Arguments {
    /// Write all figures to this file, too.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Fewer rounds.
    #[arg(long)]
    pub(crate) short: bool,
    /// Show figures of a run that was too noisy, too: for work on a benchmark.
    #[arg(long, conflicts_with = "json")]
    pub(crate) noisy: bool,
    /// Cargo passes it to each benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

impl Arguments {
    /// The rounds that count, and how many they are.
    pub(crate) fn quiet(&self, rounds: &Rounds) -> (usize, Option<Quiet>) {
        let undisturbed = &rounds.undisturbed;
        if self.noisy && !undisturbed.is_empty() {
            return (undisturbed.len(), Some(Quiet::all(undisturbed)));
        }
        let (kept, quiet) = Quiet::of(undisturbed, rounds.wanted);
        (kept, quiet.filter(|_| !rounds.are_disturbed))
    }
}

/// A gateway with a table of this many slots.
pub(crate) fn resized(gateway: Gateway, slots: u32) -> Gateway {
    gateway.restarted_with(|settings| {
        // A table keeps its size: this is another one.
        let other = settings.pin_dir.with_file_name("other");
        fs::remove_dir_all(std::mem::replace(&mut settings.pin_dir, other))
            .expect("the pins of a gateway can be removed");
        settings.session_slots = slots;
    })
}

/// What a benchmark has come to.
pub(crate) struct Measured {
    /// What was measured, how often, and on what, for people to read.
    pub(crate) heading: String,
    pub(crate) rows: Vec<Row>,
    /// Whether enough rounds were quiet; else the rows have no figures.
    pub(crate) is_quiet: bool,
}

/// Runs a benchmark: prints its rows, and writes them where they are asked for.
pub(crate) fn main(suite: Suite, measure: impl FnOnce(&Arguments) -> Result<Measured>) -> ExitCode {
    match run(suite, measure) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(suite: Suite, measure: impl FnOnce(&Arguments) -> Result<Measured>) -> Result<()> {
    let arguments = Arguments::parse();
    let others = Others::watch()?;
    let Measured {
        heading,
        mut rows,
        is_quiet,
    } = measure(&arguments)?;
    let others = others.took()?;
    println!("\n{heading}; over all of it, with what does not count, {others}\n");
    Row::print(&rows);
    rows.push(others.to_row(suite));
    if let Some(path) = &arguments.json {
        let text = serde_json::to_string(&rows)?;
        fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    if !is_quiet {
        bail!(
            "the machine was too noisy for a figure ({others}); try again when less is running on it"
        );
    }
    Ok(())
}
