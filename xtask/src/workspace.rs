//! Where things are, and how cargo is called.

use crate::child;
use anyhow::{Context, Result, bail};
use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The root of the repository.
#[must_use]
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("this crate is a folder of the workspace")
}

/// What setup builds or notes down for builds to come. It doesn't move with `CARGO_TARGET_DIR`, so
/// that it is made once.
#[must_use]
pub fn tools() -> PathBuf {
    root().join("target/tools")
}

/// Where cargo puts what it builds.
#[must_use]
pub fn target() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| root().join("target"), |target| root().join(target))
}

/// The cargo that runs this task, in the root of the repository.
#[must_use]
pub fn cargo() -> Command {
    let mut command = child::command("cargo");
    // `cargo run` sets these for the program it starts. rustc finds its own libraries without; and build
    // scripts that look at what package they are of would run again, after a build by hand.
    command.env_remove("LD_LIBRARY_PATH").current_dir(root());
    for (name, _) in env::vars_os() {
        let of_package = ["CARGO_PKG_", "CARGO_MANIFEST_"];
        if of_package
            .iter()
            .any(|start| name.to_string_lossy().starts_with(start))
        {
            command.env_remove(name);
        }
    }
    command
}

/// Builds the controller for speed, with cargo's own progress on the terminal; gives its path.
///
/// # Errors
///
/// When it doesn't build.
pub fn build_push_ctl() -> Result<PathBuf> {
    let status = cargo()
        .args(["build", "--release", "--workspace"])
        .status()
        .context("cannot run cargo")?;
    if !status.success() {
        bail!("push-ctl doesn't build; see above");
    }
    Ok(target().join("release/push-ctl"))
}

/// Refuses to go on without root.
///
/// # Errors
///
/// When the effective user isn't root.
pub fn require_root(what: &str, command: &str) -> Result<()> {
    if nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    bail!(
        "{what} needs root (network namespaces, BPF): run `sudo -E env PATH=\"$PATH\" cargo xtask {command}`"
    )
}
