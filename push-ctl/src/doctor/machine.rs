//! The kernel, and what this or another process may do.

use super::Finding;
use crate::dataplane::survey;
use std::fs;
use std::path::Path;

/// Looks at the machine; `process` is the daemon's, if it runs.
pub(super) fn look(process: Option<i32>) -> Vec<Finding> {
    let mut findings = vec![kernel(), capabilities(process)];
    findings.extend(jit());
    findings.push(clock());
    findings
}

fn kernel() -> Finding {
    match survey::kernel() {
        Ok(release) => Finding::ok(
            "kernel",
            format!(
                "Linux {release}; the XDP program needs 5.18, from where on memlock doesn't matter"
            ),
        ),
        Err(error) => Finding::fail(
            "kernel",
            format!("{error:#}"),
            "boot a newer kernel; Debian has them in bookworm-backports",
        ),
    }
}

fn capabilities(process: Option<i32>) -> Finding {
    let whose = process.map_or_else(
        || "this process".to_owned(),
        |process| format!("the daemon, pid {process},"),
    );
    let missing = survey::missing_capabilities(process);
    let fix = "run as root, or grant CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON; the packaged push.service does";
    let names: Vec<_> = missing
        .iter()
        .map(|needed| needed.capability.to_string())
        .collect();
    let names = names.join(", ");
    let fatal = missing.iter().any(|needed| needed.without.is_none());
    let without = missing.iter().find_map(|needed| needed.without);
    match (fatal, without) {
        (false, None) => Finding::ok(
            "capabilities",
            format!("{whose} has CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON"),
        ),
        (false, Some(without)) => Finding::warn(
            "capabilities",
            format!("{whose} has no {names}: {without}"),
            fix,
        ),
        // Without a daemon, this is an operator who may not be the one to run it.
        (true, _) if process.is_none() => {
            Finding::warn("capabilities", format!("{whose} has no {names}"), fix)
        }
        (true, _) => Finding::fail("capabilities", format!("{whose} has no {names}"), fix),
    }
}

/// Nothing where the kernel doesn't tell, as in network namespaces.
fn jit() -> Option<Finding> {
    let value = fs::read_to_string("/proc/sys/net/core/bpf_jit_enable").ok()?;
    Some(match value.trim() {
        "0" => Finding::fail(
            "jit",
            "BPF programs are interpreted, which is several times slower",
            "sysctl -w net.core.bpf_jit_enable=1",
        ),
        _ => Finding::ok("jit", "BPF programs are compiled"),
    })
}

fn clock() -> Finding {
    if is_clock_synchronised() {
        Finding::ok("clock", "synchronised")
    } else {
        Finding::warn(
            "clock",
            "not synchronised: lifetimes, sequence numbers made of the time, and certificates depend on it",
            "timedatectl set-ntp true  # or run chrony, or systemd-timesyncd",
        )
    }
}

#[expect(unsafe_code, reason = "no crate in use has adjtimex")]
fn is_clock_synchronised() -> bool {
    // SAFETY: all-zero is a valid `timex`; with no modes set, the kernel only fills it in.
    let (state, clock) = unsafe {
        let mut clock: libc::timex = std::mem::zeroed();
        (libc::adjtimex(&raw mut clock), clock)
    };
    state >= 0 && clock.status & libc::STA_UNSYNC == 0
}

/// Where the pins are, or would be.
pub(super) fn pin_dir(directory: &Path) -> Finding {
    if directory.try_exists().is_err() {
        return Finding::unseen("pin_dir", directory);
    }
    let shown = directory.display();
    let mut existing = directory.ancestors().filter(|path| path.is_dir());
    let existing = existing.next().unwrap_or(Path::new("/"));
    if !survey::is_on_bpffs(existing) {
        if existing == Path::new("/sys/fs/bpf") {
            return Finding::warn(
                "pin_dir",
                format!("no bpffs is mounted at {}", existing.display()),
                "mount -t bpf bpf /sys/fs/bpf  # run as root, the daemon does so itself",
            );
        }
        return Finding::fail(
            "pin_dir",
            format!("{shown} is not on a bpffs, or not for this user to see"),
            "look as root; if it is so, set pin_dir to a folder under /sys/fs/bpf",
        );
    }
    if existing != directory {
        return Finding::ok(
            "pin_dir",
            format!("{shown} isn't there yet; it will be made"),
        );
    }
    let pins = survey::pinned(directory).len();
    Finding::ok(
        "pin_dir",
        format!("{shown} is on a bpffs and has {pins} pins"),
    )
}
