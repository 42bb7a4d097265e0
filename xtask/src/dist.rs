//! `cargo xtask dist`: push-ctl as a Debian package.
//!
//! The package is put together by `dpkg-deb` from a folder, `target/dist/push`, which is made anew each
//! time. What isn't made by push-ctl itself is in `push-ctl/dist`.

mod package;
mod trial;

use crate::{child, setup, workspace};
use anyhow::{Context, Result, bail};
use std::path::PathBuf;

/// Makes the package; with `check`, tries it in a root of its own, too.
///
/// # Errors
///
/// When something doesn't build, or when the package doesn't install, start or go as it should.
pub fn run(check: bool, quick: bool) -> Result<()> {
    setup::run()?;
    let push_ctl = if quick {
        build_quickly()?
    } else {
        workspace::build_push_ctl()?
    };
    let package = package::build(&push_ctl)?;
    println!("dist: {}", package.display());
    if check {
        workspace::require_root("trying the package", "dist --check")?;
        trial::run(&package)?;
    }
    Ok(())
}

/// Without optimisation; the package is for tries only.
fn build_quickly() -> Result<PathBuf> {
    let mut command = workspace::cargo();
    command.args(["build", "--workspace"]);
    let line = child::display(&command);
    let status = command
        .status()
        .with_context(|| format!("cannot run `{line}`"))?;
    if !status.success() {
        bail!("`{line}` failed");
    }
    Ok(workspace::target().join("debug/push-ctl"))
}
