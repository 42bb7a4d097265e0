//! `cargo xtask reproduce`: whether the XDP program is the same, byte for byte, when it is built in another folder.

use crate::{child, setup, workspace};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Stdio;

/// What of the workspace it takes to build the program.
const SOURCES: [&str; 8] = [
    "Cargo.toml",
    "Cargo.lock",
    ".cargo",
    "push-common",
    "push-ctl",
    "push-ebpf",
    "tests",
    "xtask",
];

/// Builds it twice, and compares.
///
/// # Errors
///
/// When it doesn't build, or when there is a difference.
pub fn run() -> Result<()> {
    setup::run()?;
    let twin = workspace::target().join("twin");
    let source = twin.join("source");
    let _ = fs::remove_dir_all(&twin);
    fs::create_dir_all(source.join("target"))
        .with_context(|| format!("cannot make {}", source.display()))?;
    for name in SOURCES {
        let from = workspace::root().join(name);
        child::output(child::command("cp").arg("-r").arg(from).arg(&source))?;
    }
    symlink(workspace::tools(), source.join("target/tools"))?;

    let here = object(workspace::root(), &workspace::target())?;
    // In a target folder of its own, in which nothing is taken for built already.
    let there = object(&source, &twin.join("target"))?;
    ensure!(here != there, "{} was built once only", here.display());
    let digests = child::output(child::command("sha256sum").args([&here, &there]))?;
    println!("{}", digests.trim_end());
    ensure!(
        fs::read(&here)? == fs::read(&there)?,
        "the XDP program depends on the folder that it is built in"
    );
    println!(
        "reproduce: the same bytes from {} and {}",
        workspace::root().display(),
        source.display()
    );
    Ok(())
}

/// Has the program built in the workspace at `source`; gives its path.
fn object(source: &Path, target: &Path) -> Result<PathBuf> {
    let mut cargo = workspace::cargo();
    // A check of push-ctl runs its build script, and that makes the program.
    cargo
        .args(["check", "--package", "push-ctl", "--lib"])
        .args(["--message-format", "json-render-diagnostics"])
        .env("CARGO_TARGET_DIR", target)
        .current_dir(source)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit());
    println!(
        "reproduce: {} in {}",
        child::display(&cargo),
        source.display()
    );
    let output = cargo.output().context("cannot run cargo")?;
    ensure!(
        output.status.success(),
        "push-ctl doesn't build in {}",
        source.display()
    );
    let said = String::from_utf8_lossy(&output.stdout);
    let folder = said.lines().find_map(|line| {
        let message: Value = serde_json::from_str(line).ok()?;
        let is_script = message["reason"] == "build-script-executed"
            && message["package_id"].as_str()?.contains("push-ctl");
        is_script.then(|| message["out_dir"].as_str().map(PathBuf::from))?
    });
    Ok(folder
        .context("cargo doesn't say where the program is")?
        .join("push"))
}
