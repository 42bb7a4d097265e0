//! Detaches a link at once. To give up all references to one does so too, but some time later.

#![expect(unsafe_code, reason = "aya has no call for it")]

use anyhow::{Context, Result};
use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Numbers of `enum bpf_cmd`.
const BPF_OBJ_GET: libc::c_int = 7;
const BPF_LINK_DETACH: libc::c_int = 34;

/// The fields of `union bpf_attr` that `BPF_OBJ_GET` reads.
#[repr(C)]
struct ObjectGet {
    path: u64,
    bpf_fd: u32,
    file_flags: u32,
}

/// The one that `BPF_LINK_DETACH` reads.
#[repr(C)]
struct LinkDetach {
    link_fd: u32,
}

/// Detaches the link that is pinned there; that its NIC has gone will do, too.
pub(super) fn detach(pin: &Path) -> Result<()> {
    let path = CString::new(pin.as_os_str().as_bytes())?;
    let attributes = ObjectGet {
        path: path.as_ptr() as u64,
        bpf_fd: 0,
        file_flags: 0,
    };
    let link = bpf(BPF_OBJ_GET, &attributes)
        .with_context(|| format!("cannot open the pinned link {}", pin.display()))?;
    // SAFETY: the kernel has just made this descriptor, for us alone.
    let link = unsafe { OwnedFd::from_raw_fd(link) };
    let attributes = LinkDetach {
        link_fd: u32::try_from(link.as_raw_fd())?,
    };
    match bpf(BPF_LINK_DETACH, &attributes) {
        Ok(_) => Ok(()),
        Err(error) => Err(error).context("the kernel refuses to detach the link"),
    }
}

fn bpf<T>(command: libc::c_int, attributes: &T) -> io::Result<libc::c_int> {
    // SAFETY: the kernel reads as many bytes as it is told there are.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attributes, size_of::<T>()) };
    let result = libc::c_int::try_from(result).unwrap_or(-1);
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}
