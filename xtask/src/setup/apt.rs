//! Debian packages.

use super::step;
use crate::child;
use anyhow::{Context, Result, bail};
use std::process::Command;
use std::time::Duration;

/// Programs that lab, demo and tests call, the package of each, and what it is for.
const PROGRAMS: &[(&str, &str, &str)] = &[
    ("ip", "iproute2", "the lab's namespaces and links"),
    ("ethtool", "ethtool", "offloads of the lab's links"),
    ("nsenter", "util-linux", "the controller in its namespace"),
    (
        "setpriv",
        "util-linux",
        "the controller as another user, with the capabilities of its unit",
    ),
    (
        "systemd-analyze",
        "systemd",
        "what systemd says of the unit",
    ),
    ("dpkg-deb", "dpkg", "the package"),
    (
        "debootstrap",
        "debootstrap",
        "a bare Debian to try the package in",
    ),
    ("coap-client-notls", "libcoap3-bin", "the device"),
    ("node", "nodejs", "another device"),
    ("npm", "npm", "to get the other device's CoAP client"),
    ("nft", "nftables", "a device that is deaf for a while"),
    (
        "c++",
        "g++",
        "the engine that makes up what hostile peers send",
    ),
    ("faketime", "faketime", "a wall clock that somebody has set"),
    ("curl", "curl", "the application server"),
    (
        "openssl",
        "openssl",
        "its certificates, and the server of its status",
    ),
    ("tcpdump", "tcpdump", "to see triggers arrive"),
    ("tshark", "tshark", "what a dissector thinks of them"),
    // Where Debian's package puts it: one of another Python wouldn't be found by Debian's.
    (
        "/usr/bin/scapy",
        "python3-scapy",
        "triggers made by somebody else",
    ),
    // Not programs, but what Debian's Python imports.
    (
        "/usr/lib/python3/dist-packages/prometheus_client/openmetrics/parser.py",
        "python3-prometheus-client",
        "whether metrics are what they should be",
    ),
    (
        "/usr/lib/python3/dist-packages/yaml/__init__.py",
        "python3-yaml",
        "whether alert rules are what they should be",
    ),
    ("script", "bsdutils", "a terminal for what is drawn"),
    ("sysctl", "procps", "the kernel's switches"),
    (
        "bpftool",
        "bpftool",
        "what the kernel has loaded, from another mouth",
    ),
    (
        "xdp-loader",
        "xdp-tools",
        "the same object in the hands of another loader",
    ),
];

/// The same of `cargo xtask kernels` alone.
const EMULATION: &[(&str, &str, &str)] = &[
    (
        "qemu-system-x86_64",
        "qemu-system-x86",
        "a machine for another kernel",
    ),
    ("busybox", "busybox-static", "what that machine boots with"),
    ("xz", "xz-utils", "to unpack the modules of kernels"),
];

/// A slow mirror is waited for, a dead one isn't waited for all day.
const LIMIT: Duration = Duration::from_secs(20 * 60);

/// The package manager. Its lists are fetched at most once, and only if something is missing.
#[derive(Default)]
pub(super) struct Apt {
    lists_are_fresh: bool,
}

/// Installs the programs that are missing.
pub(super) fn programs(apt: &mut Apt) -> Result<()> {
    missing_of(PROGRAMS, apt)
}

/// Installs what emulating a machine needs.
pub(super) fn emulation(apt: &mut Apt) -> Result<()> {
    missing_of(EMULATION, apt)
}

fn missing_of(programs: &[(&str, &str, &str)], apt: &mut Apt) -> Result<()> {
    let missing: Vec<_> = programs
        .iter()
        .filter(|(program, ..)| !child::is_installed(program))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let packages: Vec<_> = missing.iter().map(|(_, package, _)| *package).collect();
    let reasons: Vec<_> = missing
        .iter()
        .map(|(program, _, what_for)| format!("{program}: {what_for}"))
        .collect();
    apt.install(&packages, &reasons.join("; "))
}

impl Apt {
    /// Installs `packages`, saying why.
    pub(super) fn install(&mut self, packages: &[&str], why: &str) -> Result<()> {
        self.refresh()?;
        let names = packages.join(" ");
        step(&format!("installing Debian's {names}"), why);
        let by_hand = format!("apt-get install --no-install-recommends {names}");
        child::watch(
            apt_get()
                .args(["install", "--yes", "--no-install-recommends"])
                .args(packages),
            LIMIT,
        )
        .with_context(|| format!("cannot install {names}; by hand: `{by_hand}`"))
    }

    /// Whether `package` can be installed, or is.
    pub(super) fn has(&mut self, package: &str) -> Result<bool> {
        self.refresh()?;
        let policy = child::output(
            child::command("apt-cache")
                .args(["policy", package])
                .env("LC_ALL", "C"),
        )?;
        Ok(policy.lines().any(|line| {
            line.trim()
                .strip_prefix("Candidate: ")
                .is_some_and(|candidate| candidate != "(none)")
        }))
    }

    fn refresh(&mut self) -> Result<()> {
        if self.lists_are_fresh {
            return Ok(());
        }
        if !child::is_installed("apt-get") {
            bail!(
                "something is missing, and this is not Debian: there is no apt-get to install it with"
            );
        }
        if !nix::unistd::geteuid().is_root() {
            bail!(
                "Debian packages are missing, and installing them needs root: \
                 run `sudo -E env PATH=\"$PATH\" cargo xtask setup` once"
            );
        }
        step("fetching Debian's package lists", "a package is missing");
        if let Err(error) = child::watch(apt_get().arg("update"), LIMIT) {
            // One broken third-party source is no reason to give up: the old lists may do.
            eprintln!("       {error:#}\n       going on with the lists that are there");
        }
        self.lists_are_fresh = true;
        Ok(())
    }
}

fn apt_get() -> Command {
    let mut command = child::command("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive").args([
        "-o",
        "DPkg::Lock::Timeout=300",
        "-o",
        "Acquire::Retries=3",
    ]);
    command
}
