//! `cargo xtask setup`: everything that building, running and testing push needs.
//!
//! There is no stamp that says "done": each run looks for the things themselves, which takes a
//! fraction of a second, and makes what is missing.

mod apt;
pub mod coap;
pub mod deny;
mod linker;
pub mod python;
mod toolchain;

use crate::workspace;
use anyhow::{Context, Result};
use apt::Apt;
use std::fs;
use std::path::PathBuf;
use std::time::Instant;

/// Looks for everything, and gets what is missing.
///
/// # Errors
///
/// When a piece can't be had; the error names it and the command that would get it.
pub fn run() -> Result<()> {
    let started = Instant::now();
    let mut apt = Apt::default();
    apt::programs(&mut apt)?;
    let chosen = toolchain::choose(&mut apt)?;
    linker::ensure(&chosen)?;
    coap::ensure(&mut apt)?;
    python::ensure(&mut apt)?;
    record(&chosen.name)?;
    println!(
        "setup: all there: eBPF toolchain {} (rustc {}, LLVM {}), bpf-linker, programs for lab and tests ({:.1} s)",
        chosen.name,
        chosen.release,
        chosen.llvm_major,
        started.elapsed().as_secs_f64()
    );
    Ok(())
}

/// Gets what only CI needs, besides all of [`run`].
///
/// # Errors
///
/// When a piece can't be had.
pub fn for_ci() -> Result<()> {
    run()?;
    deny::ensure()
}

/// Gets what emulating a machine needs, besides all of [`run`].
///
/// # Errors
///
/// When a piece can't be had.
pub fn for_kernels() -> Result<()> {
    run()?;
    apt::emulation(&mut Apt::default())
}

/// Says what is being done, and why.
fn step(what: &str, why: &str) {
    eprintln!("setup: {what}\n       {why}");
}

/// The file in which push-ctl's build script finds the name of the toolchain for the eBPF object.
fn record_path() -> PathBuf {
    workspace::tools().join("toolchain")
}

/// The toolchain that an earlier run chose.
fn recorded() -> Option<String> {
    let name = fs::read_to_string(record_path()).ok()?;
    Some(name.trim().to_owned()).filter(|name| !name.is_empty())
}

fn record(toolchain: &str) -> Result<()> {
    if recorded().as_deref() == Some(toolchain) {
        return Ok(()); // Untouched, so that nothing is built anew for it.
    }
    let path = record_path();
    fs::create_dir_all(workspace::tools())
        .and_then(|()| fs::write(&path, format!("{toolchain}\n")))
        .with_context(|| format!("cannot write {}", path.display()))
}
