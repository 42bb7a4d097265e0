//! bpf-linker: turns LLVM bitcode into an eBPF object.

use super::{step, toolchain::Toolchain};
use crate::{child, workspace};
use anyhow::{Context, Result};
use serde_json::Value;
use std::path::Path;
use std::time::Duration;
use std::{env, fs};

/// The versions that fit the compilers push is built with.
const VERSION: &str = "^0.13";

/// Two cores need about a minute, if nobody else wants them.
const LIMIT: Duration = Duration::from_secs(20 * 60);

/// Builds bpf-linker with the LLVM of `toolchain`, unless one is there that runs.
pub(super) fn ensure(toolchain: &Toolchain) -> Result<()> {
    let major = toolchain.llvm_major;
    let tools = workspace::tools();
    if works(&tools, major) {
        return Ok(());
    }
    step(
        &format!("building bpf-linker with LLVM {major} (a minute or two)"),
        "it links the eBPF object, and has to read what this compiler's LLVM writes; it goes to target/tools",
    );
    let llvm = Path::new("/usr/lib").join(format!("llvm-{major}/bin"));
    let mut path = llvm.clone().into_os_string();
    path.push(":");
    path.push(env::var_os("PATH").unwrap_or_default());
    let mut install = workspace::cargo();
    install
        .env("PATH", path)
        .env_remove("CARGO_TARGET_DIR")
        .args([
            "install",
            "bpf-linker",
            "--version",
            VERSION,
            "--locked",
            "--force",
            "--no-default-features",
        ])
        .args(["--features", &feature(major), "--root"])
        .arg(&tools);
    let by_hand = format!("PATH={}:$PATH {}", llvm.display(), child::display(&install));
    child::watch(&mut install, LIMIT)
        .with_context(|| format!("cannot build bpf-linker; by hand: `{by_hand}`"))
}

/// Whether there is a bpf-linker that runs, and was built with this LLVM.
fn works(tools: &Path, llvm_major: u32) -> bool {
    // cargo's own note of what it installed here, and how.
    let Ok(note) = fs::read(tools.join(".crates2.json")) else {
        return false;
    };
    let note: Value = serde_json::from_slice(&note).unwrap_or_default();
    let feature = Value::from(feature(llvm_major));
    let fits = note["installs"].as_object().is_some_and(|installs| {
        installs.iter().any(|(package, how)| {
            package.starts_with("bpf-linker 0.13.")
                && how["features"]
                    .as_array()
                    .is_some_and(|features| features.contains(&feature))
        })
    });
    fits && child::command(tools.join("bin/bpf-linker"))
        .env_remove("LD_LIBRARY_PATH")
        .arg("--version")
        .output()
        .is_ok_and(|output| output.status.success())
}

/// The feature of bpf-linker that asks for this LLVM.
fn feature(llvm_major: u32) -> String {
    format!("llvm-{llvm_major}")
}
