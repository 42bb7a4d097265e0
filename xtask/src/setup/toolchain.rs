//! The Rust toolchain that builds the eBPF object.
//!
//! The BPF target has no ready-made `core`, so cargo builds it (`-Z build-std`), which needs the
//! compiler's own library source, and `RUSTC_BOOTSTRAP=1` on a stable compiler. The linker works on
//! LLVM's bitcode, so it needs an LLVM of the compiler's major version.

use super::{apt::Apt, recorded, step};
use crate::child;
use anyhow::{Context, Result, anyhow, bail};
use std::env;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// What a download of rustup's may take. Where rustup's server can't be reached, there is another way.
const RUSTUP_LIMIT: Duration = Duration::from_secs(90);

/// Name under which rustup knows the compiler that Debian builds for its browsers.
const DEBIAN: &str = "push-bpf";

/// The packages of that compiler.
const DEBIAN_PACKAGES: [&str; 3] = ["rustc-web", "cargo-web", "rust-web-src"];

/// A toolchain that can build the eBPF object.
pub(super) struct Toolchain {
    /// As rustup calls it.
    pub(super) name: String,
    /// Version of the compiler.
    pub(super) release: String,
    /// Major version of the LLVM in the compiler.
    pub(super) llvm_major: u32,
}

/// A way to get a toolchain.
type Route<'a> = &'a dyn Fn(&mut Apt) -> Result<Toolchain>;

/// The toolchain chosen before, if it still does; else the first that can be had.
pub(super) fn choose(apt: &mut Apt) -> Result<Toolchain> {
    if let Some(toolchain) = recorded()
        .and_then(|name| usable(&name).ok())
        .filter(|it| has_llvm(it.llvm_major))
    {
        return Ok(toolchain);
    }
    let active = active()?;
    let routes: [(&str, Route); 4] = [
        ("a toolchain that is already there", &|apt| {
            present(apt, &active)
        }),
        ("the source of the active toolchain's library", &|apt| {
            with_source(apt, &active)
        }),
        ("rustup's nightly", &nightly),
        ("Debian's rustc-web", &debian),
    ];
    let mut failures = String::new();
    for (route, take) in routes {
        match take(apt) {
            Ok(toolchain) => return Ok(toolchain),
            Err(error) => {
                eprintln!("setup: not with {route}: {error:#}");
                failures.push_str(&format!("\n  {route}: {error:#}"));
            }
        }
    }
    bail!(
        "no Rust toolchain can be had that builds the eBPF object:{failures}\n\
         `rustup component add rust-src`, or else `apt-get install --no-install-recommends {}`, would get one",
        DEBIAN_PACKAGES.join(" ")
    )
}

/// What is already installed, the active toolchain first.
fn present(apt: &mut Apt, active: &str) -> Result<Toolchain> {
    let list = child::output(rustup().args(["toolchain", "list"]))?;
    let installed = list
        .lines()
        .filter_map(|line| line.split_whitespace().next());
    let others = installed
        .filter(|name| *name != active && (name.starts_with("nightly") || *name == DEBIAN));
    for name in [active].into_iter().chain(others) {
        if let Ok(toolchain) = usable(name)
            && get_llvm(apt, &toolchain).is_ok()
        {
            return Ok(toolchain);
        }
    }
    Err(anyhow!("none has rust-src and an LLVM to go with it"))
}

/// rust-src for the active toolchain: then one compiler builds both halves.
fn with_source(apt: &mut Apt, active: &str) -> Result<Toolchain> {
    let compiler = compiler(active)?;
    // Asked first: without it, the source would be fetched for nothing.
    if !has_llvm(compiler.llvm_major) && !apt.has(&llvm_package(compiler.llvm_major))? {
        bail!("Debian has no {}", llvm_package(compiler.llvm_major));
    }
    step(
        &format!("adding rust-src to {active}"),
        "core for the BPF target is built from source; this is the compiler that builds the rest, too",
    );
    child::watch(
        rustup().args(["component", "add", "rust-src", "--toolchain", active]),
        RUSTUP_LIMIT,
    )?;
    let toolchain = usable(active)?;
    get_llvm(apt, &toolchain)?;
    Ok(toolchain)
}

fn nightly(apt: &mut Apt) -> Result<Toolchain> {
    step(
        "installing rustup's nightly with rust-src",
        "core for the BPF target is built from source",
    );
    child::watch(
        rustup().args([
            "toolchain",
            "install",
            "nightly",
            "--profile",
            "minimal",
            "--component",
            "rust-src",
        ]),
        RUSTUP_LIMIT,
    )?;
    let toolchain = usable("nightly")?;
    get_llvm(apt, &toolchain)?;
    Ok(toolchain)
}

fn debian(apt: &mut Apt) -> Result<Toolchain> {
    apt.install(
        &DEBIAN_PACKAGES,
        "a compiler with the source of core; rustup's own stays first on PATH and builds everything else",
    )?;
    step(
        &format!("naming it {DEBIAN} for rustup"),
        "so that the build script can ask for it",
    );
    child::output(rustup().args(["toolchain", "link", DEBIAN, "/usr"]))?;
    let toolchain = usable(DEBIAN)?;
    get_llvm(apt, &toolchain)?;
    Ok(toolchain)
}

fn get_llvm(apt: &mut Apt, toolchain: &Toolchain) -> Result<()> {
    if has_llvm(toolchain.llvm_major) {
        return Ok(());
    }
    let why = format!(
        "bpf-linker has to be built with the LLVM of rustc {}",
        toolchain.release
    );
    apt.install(&[&llvm_package(toolchain.llvm_major)], &why)
}

fn llvm_package(major: u32) -> String {
    format!("llvm-{major}-dev")
}

/// Whether bpf-linker could be built with this LLVM: its headers come in the same package.
fn has_llvm(major: u32) -> bool {
    let folder = Path::new("/usr/lib").join(format!("llvm-{major}"));
    folder.join("bin/llvm-config").exists() && folder.join("include/llvm-c/Core.h").exists()
}

/// The toolchain `name`, if it has the source of its library.
fn usable(name: &str) -> Result<Toolchain> {
    let toolchain = compiler(name)?;
    let sysroot = child::output(run_in(name, "rustc").args(["--print", "sysroot"]))?;
    let core = Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core/src/lib.rs");
    if !core.exists() {
        bail!("{name} has no rust-src");
    }
    Ok(toolchain)
}

/// What the compiler of toolchain `name` says of itself.
fn compiler(name: &str) -> Result<Toolchain> {
    let about = child::output(run_in(name, "rustc").arg("-vV"))?;
    let field = |key: &str| {
        about
            .lines()
            .find_map(|line| line.strip_prefix(key))
            .map(str::trim)
            .with_context(|| format!("`rustc -vV` of {name} has no line `{key}`"))
    };
    let release = field("release:")?.to_owned();
    let wanted = env!("CARGO_PKG_RUST_VERSION");
    if minor_version(&release) < minor_version(wanted) {
        bail!("{name} is rustc {release}, and push needs {wanted}");
    }
    let llvm = field("LLVM version:")?;
    let llvm_major = llvm
        .split('.')
        .next()
        .unwrap_or(llvm)
        .parse()
        .with_context(|| format!("LLVM version {llvm}"))?;
    Ok(Toolchain {
        name: name.to_owned(),
        release,
        llvm_major,
    })
}

/// The second number of a version of Rust; the first is always 1.
fn minor_version(release: &str) -> Option<u32> {
    release.split('.').nth(1)?.parse().ok()
}

/// The toolchain that builds this very program.
fn active() -> Result<String> {
    if let Ok(name) = env::var("RUSTUP_TOOLCHAIN") {
        return Ok(name);
    }
    let shown = child::output(rustup().args(["show", "active-toolchain"]))?;
    shown
        .split_whitespace()
        .next()
        .map(str::to_owned)
        .context("rustup names no active toolchain")
}

fn run_in(toolchain: &str, program: &str) -> Command {
    let mut command = rustup();
    command.args(["run", toolchain, program]);
    command
}

fn rustup() -> Command {
    let mut command = child::command("rustup");
    // A name that isn't installed is an answer, not something to download meanwhile.
    command
        .env("RUSTUP_AUTO_INSTALL", "0")
        .env("RUSTUP_MAX_RETRIES", "1")
        .env_remove("LD_LIBRARY_PATH");
    command
}
