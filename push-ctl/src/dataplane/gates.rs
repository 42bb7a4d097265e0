//! What the kernel wants before it lets a program near a NIC, and what to do where it says no.

use anyhow::{Context, Result, bail};
use caps::{CapSet, Capability};
use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use std::path::Path;
use std::{fs, io};

/// Where bpffs is by convention.
const BPFFS: &str = "/sys/fs/bpf";

/// The oldest kernel that has all helpers the program calls: `bpf_xdp_get_buff_len` came with 5.18.
const MINIMUM_KERNEL: (u32, u32) = (5, 18);

/// What a program costs that the verifier guards against speculation, as it does without `CAP_PERFMON`.
pub(super) const SLOW: &str =
    "without it the verifier adds speculation barriers and the program runs slower";

/// The release of this kernel.
///
/// # Errors
///
/// It can't be asked, or it is too old for the XDP program.
pub fn kernel() -> Result<String> {
    let name = nix::sys::utsname::uname().context("cannot ask the kernel for its version")?;
    let release = name.release().to_string_lossy().into_owned();
    if kernel_version(&release).is_some_and(|version| version < MINIMUM_KERNEL) {
        let (major, minor) = MINIMUM_KERNEL;
        bail!("this kernel is Linux {release}; the XDP program needs {major}.{minor} or later");
    }
    Ok(release)
}

/// Checks kernel version and capabilities. Returns what is bad but not fatal.
pub(super) fn check(require_perfmon: bool) -> Result<Vec<String>> {
    kernel()?;
    for capability in [Capability::CAP_BPF, Capability::CAP_NET_ADMIN] {
        if !holds(None, capability) {
            bail!(
                "{capability} is missing; run as root, or grant CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON \
                 (systemd: AmbientCapabilities=)"
            );
        }
    }
    if holds(None, Capability::CAP_PERFMON) {
        Ok(Vec::new())
    } else if require_perfmon {
        bail!(
            "CAP_PERFMON is missing: {SLOW}; grant it (systemd: AmbientCapabilities=), \
             or set data_plane.require_perfmon = false"
        );
    } else {
        Ok(vec![format!(
            "CAP_PERFMON is missing: {SLOW}; grant it and start anew"
        )])
    }
}

/// Whether this directory is on a bpffs.
#[must_use]
pub fn is_on_bpffs(directory: &Path) -> bool {
    statfs(directory).is_ok_and(|fs| fs.filesystem_type() == BPF_FS_MAGIC)
}

/// Makes `directory`, which has to be on a bpffs; mounts one where it is by convention.
pub(super) fn make_pin_dir(directory: &Path) -> Result<()> {
    let existing = directory
        .ancestors()
        .find(|path| path.is_dir())
        .unwrap_or(Path::new("/"));
    if !is_on_bpffs(existing) {
        if directory.starts_with(BPFFS) && Path::new(BPFFS).is_dir() {
            mount(Some("bpf"), BPFFS, Some("bpf"), MsFlags::empty(), Some("mode=0700")).with_context(|| {
                format!("no bpffs is mounted, and this process cannot mount it; as root: mount -t bpf bpf {BPFFS}")
            })?;
            tracing::info!("mounted bpffs at {BPFFS}");
        } else {
            bail!(
                "pin_dir {} is not on a bpffs; use a folder under {BPFFS}, or mount one: mount -t bpf bpf {}",
                directory.display(),
                existing.display(),
            );
        }
    }
    fs::create_dir_all(directory).with_context(|| {
        format!(
            "cannot make pin_dir {}; is it writable for this user?",
            directory.display()
        )
    })
}

/// Why the kernel refused to load or attach, in words that say what to do.
pub(super) fn explain(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM) => {
            "not permitted: CAP_BPF, CAP_NET_ADMIN or CAP_PERFMON is missing, or the kernel is locked down"
        }
        Some(libc::EACCES) => {
            "the verifier refused the program; please report this as a bug, with the kernel's version"
        }
        Some(libc::ENOMEM) => {
            "out of memory: make sessions.slots smaller, or raise the memory limit of the cgroup"
        }
        Some(libc::E2BIG) => "too large: make sessions.slots smaller",
        Some(libc::EOPNOTSUPP) => {
            "the driver has no native XDP; set data_plane.allow_generic = true to do without, at a fraction of the speed"
        }
        Some(libc::ENODEV) => "the NIC has gone",
        Some(libc::ERANGE | libc::EINVAL) => {
            "the driver refused; native XDP may need a smaller MTU, or fewer queues, on this NIC"
        }
        _ => "the kernel refused",
    }
}

/// Whether a process, or this one, has this capability.
pub(super) fn holds(process: Option<i32>, capability: Capability) -> bool {
    // CAP_SYS_ADMIN contains the two that were split from it (Linux 5.8).
    let contained = matches!(capability, Capability::CAP_BPF | Capability::CAP_PERFMON);
    let effective =
        |capability| caps::has_cap(process, CapSet::Effective, capability).unwrap_or(false);
    effective(capability) || (contained && effective(Capability::CAP_SYS_ADMIN))
}

fn kernel_version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_versions_compare_as_numbers() {
        assert_eq!(kernel_version("6.18.44-generic"), Some((6, 18)));
        assert_eq!(kernel_version("5.4"), Some((5, 4)));
        assert!(kernel_version("5.9.1").unwrap() < MINIMUM_KERNEL);
        assert!(kernel_version("5.18.0-rc1").unwrap() >= MINIMUM_KERNEL);
        assert_eq!(kernel_version("unknown"), None);
    }

    #[test]
    fn a_folder_that_is_not_on_a_bpffs_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let error = make_pin_dir(&folder.path().join("push"))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("not on a bpffs") && error.contains("mount -t bpf"),
            "{error}"
        );
        assert!(!folder.path().join("push").exists());
    }
}
