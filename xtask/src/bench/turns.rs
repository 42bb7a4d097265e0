//! What benchmarks have in common whose competitors take turns.

use anyhow::{Context, Result};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use std::io::{IsTerminal, stderr};

/// Keeps this thread on one CPU, and says which: the last one, as the first often has more interrupts to serve.
///
/// # Errors
///
/// When the kernel doesn't let it.
pub fn pin() -> Result<usize> {
    let this_thread = Pid::from_raw(0);
    let allowed = sched_getaffinity(this_thread)?;
    let cpu = (0..CpuSet::count())
        .rev()
        .find(|&cpu| allowed.is_set(cpu) == Ok(true))
        .context("this thread may run on no CPU")?;
    let mut only = CpuSet::new();
    only.set(cpu)?;
    sched_setaffinity(this_thread, &only)?;
    Ok(cpu)
}

/// Shows on stderr how far a benchmark has got.
#[derive(Debug)]
pub struct Progress {
    name: &'static str,
    rounds: usize,
}

impl Progress {
    /// Of a benchmark of so many rounds.
    #[must_use]
    pub const fn new(name: &'static str, rounds: usize) -> Self {
        Self { name, rounds }
    }

    /// A round begins. The last one makes the line disappear from a terminal; where there is none, some of them
    /// get a line each.
    pub fn at(&self, round: usize) {
        let Self { name, rounds } = self;
        if stderr().is_terminal() {
            let end = if round == *rounds { "\r\x1b[2K" } else { "" };
            eprint!("\r\x1b[2K{name}: round {round} of {rounds}{end}");
        } else if round.is_multiple_of((rounds / 4).max(1)) {
            eprintln!("{name}: round {round} of {rounds}");
        }
    }
}
