//! cargo-deny: looks through other people's code that push is built of.

use super::step;
use crate::{child, workspace};
use anyhow::{Context, Result};
use std::path::PathBuf;
use std::time::Duration;

/// The versions that read `.cargo/deny.toml`.
const VERSION: &str = "0.20";

/// Two cores need five to ten minutes, once.
const LIMIT: Duration = Duration::from_secs(40 * 60);

/// Where it is.
#[must_use]
pub fn program() -> PathBuf {
    workspace::tools().join("bin/cargo-deny")
}

pub(super) fn ensure() -> Result<()> {
    let said = child::output(child::command(program()).arg("--version"));
    if said.is_ok_and(|said| said.contains(&format!(" {VERSION}."))) {
        return Ok(());
    }
    step(
        "building cargo-deny (several minutes, once)",
        "it looks at licences, sources and known vulnerabilities of dependencies; it goes to target/tools",
    );
    let mut install = workspace::cargo();
    install
        .env_remove("CARGO_TARGET_DIR")
        .args(["install", "cargo-deny", "--locked", "--force"])
        .args(["--version", &format!("^{VERSION}"), "--root"])
        .arg(workspace::tools());
    let by_hand = child::display(&install);
    child::watch(&mut install, LIMIT)
        .with_context(|| format!("cannot build cargo-deny; by hand: `{by_hand}`"))
}
