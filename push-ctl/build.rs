//! Builds the XDP program, which the binary embeds.

use anyhow::{Context, Result, bail};
use aya_build::{Package, Toolchain};
use std::path::PathBuf;
use std::{env, fs};

fn main() -> Result<()> {
    let manifest_dir = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    let workspace = manifest_dir
        .parent()
        .context("push-ctl is in a workspace")?;
    let tools = workspace.join("target/tools");
    let toolchain_file = tools.join("toolchain");
    for input in ["push-common", "Cargo.toml", "Cargo.lock"] {
        println!("cargo:rerun-if-changed={}", workspace.join(input).display());
    }
    println!("cargo:rerun-if-changed={}", toolchain_file.display());

    let Ok(toolchain) = fs::read_to_string(&toolchain_file) else {
        bail!("nothing is set up to build the XDP program; run: cargo xtask setup");
    };
    let path = env::join_paths(
        [tools.join("bin")]
            .into_iter()
            .chain(env::split_paths(&env::var_os("PATH").unwrap_or_default())),
    )?;
    // SAFETY: nothing else runs in a build script before the first thread is started.
    #[expect(unsafe_code, reason = "aya-build takes them from the environment")]
    unsafe {
        env::set_var("PATH", path);
        // `-Z build-std` on whatever channel the toolchain is of; the host build stays plain stable.
        env::set_var("RUSTC_BOOTSTRAP", "1");
        // The object is the same, byte for byte, wherever it is built: it names files by crate, not by folder.
        env::set_var("CARGO_UNSTABLE_TRIM_PATHS", "true");
        env::set_var("CARGO_PROFILE_RELEASE_TRIM_PATHS", "all");
        // Comparisons of all kinds, which every kernel has that the program runs on (Linux 4.14); LLVM's default does
        // without half of them. What runs while it is built is not for this processor.
        env::set_var("CARGO_UNSTABLE_PROFILE_RUSTFLAGS", "true");
        env::set_var("CARGO_PROFILE_RELEASE_RUSTFLAGS", "-Ctarget-cpu=v2");
        env::set_var("CARGO_PROFILE_RELEASE_BUILD_OVERRIDE_RUSTFLAGS", "");
        // What the nested build says comes out as warnings of this one; let it say no more than that.
        env::set_var("CARGO_TERM_QUIET", "true");
    }
    let root_dir = workspace.join("push-ebpf");
    let root_dir = root_dir
        .to_str()
        .context("the path of the workspace is not UTF-8")?;
    let build = |features: &[&str]| {
        let package = Package {
            name: "push-ebpf",
            root_dir,
            no_default_features: false,
            features,
        };
        aya_build::build_ebpf([package], Toolchain::Custom(toolchain.trim()))
    };
    if env::var_os("CARGO_FEATURE_BENCH").is_some() {
        let out_dir = PathBuf::from(env::var("OUT_DIR")?);
        for variant in ["by-hash", "by-route", "ladder"] {
            build(&[variant])?;
            fs::rename(
                out_dir.join("push"),
                out_dir.join(format!("push-{variant}")),
            )?;
        }
        build(&["bench"])?;
    }
    // The last one: what is to be shipped takes the place of what came out beside the others.
    if env::var_os("CARGO_FEATURE_LOG").is_some() {
        build(&["log"])
    } else {
        build(&[])
    }
}
