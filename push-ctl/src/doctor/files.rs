//! The store, the disk it is on, and the certificate.

use super::Finding;
use crate::config::Config;
use crate::store::{KeyFileError, StoreError, inspect};
use nix::sys::statvfs::statvfs;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use x509_parser::pem::parse_x509_pem;

/// With less room than this on the disk, the store may soon be unable to grow.
const LITTLE_BYTES: u64 = 512 << 20;

/// A certificate that is valid for less than this should be renewed.
const SOON: Duration = Duration::from_hours(24 * 21);

pub(super) fn look(config: &Config) -> Vec<Finding> {
    let mut findings = vec![store(config)];
    findings.extend(disk(&config.state_dir));
    findings.push(certificate(config));
    findings
}

fn store(config: &Config) -> Finding {
    let kek = match config.key_encryption_key() {
        Ok(kek) => kek,
        Err(KeyFileError::Io { path, cause }) if cause.kind() == ErrorKind::PermissionDenied => {
            return Finding::unseen("store", &path);
        }
        Err(error) => {
            return Finding::fail(
                "store",
                error.to_string(),
                "without it the daemon doesn't start; set state_key_file to where it is".to_owned(),
            );
        }
    };
    let inspected = match inspect::inspect(&config.state_dir, kek.as_ref()) {
        Ok(Some(inspected)) => inspected,
        Ok(None) => {
            return Finding::ok(
                "store",
                format!(
                    "{} has none yet; it will be made",
                    config.state_dir.display()
                ),
            );
        }
        Err(StoreError::Io { path, cause, .. }) if cause.kind() == ErrorKind::PermissionDenied => {
            return Finding::unseen("store", &path);
        }
        Err(error) => {
            let fix = match &error {
                StoreError::Damaged { path, .. } => format!(
                    "stop the daemon, then put a backup in its place, or `mv {0} {0}.damaged` to start empty",
                    path.display()
                ),
                StoreError::OtherVersion { path, .. } => format!(
                    "use the push-ctl that made it, or `mv {0} {0}.old` to start empty",
                    path.display()
                ),
                StoreError::Locked { .. } => {
                    "the key file is not in a backup of state_dir; look for it where the configuration was kept"
                        .to_owned()
                }
                StoreError::InUse(_) | StoreError::Io { .. } | StoreError::Write { .. } => {
                    "the file, and the directory it is in, have to be the daemon's user's own"
                        .to_owned()
                }
            };
            return Finding::fail("store", error.to_string(), fix);
        }
    };
    let path = inspected.path.display().to_string();
    let mode = fs::metadata(&inspected.path).map_or(0, |about| about.permissions().mode() & 0o777);
    if mode & 0o077 != 0 {
        return Finding::fail(
            "store",
            format!("{path} has mode {mode:o}: others can read keys in it"),
            format!("chmod 600 {path}"),
        );
    }
    match inspected.contradiction(config) {
        Some(contradiction) => Finding::fail(
            "store",
            contradiction,
            "`push-ctl store dump` shows what is in it",
        ),
        None => Finding::ok("store", inspected.summary()),
    }
}

fn disk(state_dir: &Path) -> Option<Finding> {
    let mut existing = state_dir.ancestors().filter(|path| path.is_dir());
    let existing = existing.next()?;
    let disk = statvfs(existing).ok()?;
    let free_bytes = disk.blocks_available().saturating_mul(disk.fragment_size());
    let found = format!("{} MiB free at {}", free_bytes >> 20, existing.display());
    Some(if free_bytes < LITTLE_BYTES {
        Finding::warn(
            "disk",
            format!("{found}: the daemon ends when the store can't be written to"),
            "make room, or move state_dir",
        )
    } else {
        Finding::ok("disk", found)
    })
}

fn certificate(config: &Config) -> Finding {
    let own = config.state_dir.join("external.crt");
    let (path, fix) = match &config.external.certificate {
        Some(path) => (path.as_path(), "renew it, and restart the daemon"),
        None => (
            own.as_path(),
            "remove external.crt and external.key in state_dir and restart the daemon: it makes another pair",
        ),
    };
    let shown = path.display();
    if config.external.certificate.is_none() && matches!(path.try_exists(), Ok(false)) {
        return Finding::ok("certificate", "self-signed; it will be made");
    }
    let pem = match fs::read(path) {
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            return Finding::unseen("certificate", path);
        }
        pem => pem.map_err(|error| error.to_string()),
    };
    let not_after = match pem.and_then(|pem| expiry(&pem)) {
        Ok(not_after) => not_after,
        Err(why) => {
            return Finding::fail(
                "certificate",
                format!("can't read {shown}: {why}"),
                "external.certificate has to be a PEM file that the daemon's user can read",
            );
        }
    };
    let until = jiff::Timestamp::try_from(not_after).map_or_else(
        |_| "a time far away".to_owned(),
        |until| until.strftime("%Y-%m-%d").to_string(),
    );
    match not_after.duration_since(SystemTime::now()) {
        Err(_past) => Finding::fail("certificate", format!("{shown} expired on {until}"), fix),
        Ok(left) if left < SOON => {
            Finding::warn("certificate", format!("{shown} expires on {until}"), fix)
        }
        Ok(_) => Finding::ok("certificate", format!("{shown} is valid until {until}")),
    }
}

/// Until when the first certificate in this PEM file is valid.
pub(super) fn expiry(pem: &[u8]) -> Result<SystemTime, String> {
    let (_, pem) = parse_x509_pem(pem).map_err(|error| error.to_string())?;
    let certificate = pem.parse_x509().map_err(|error| error.to_string())?;
    let seconds = certificate.validity().not_after.timestamp();
    let seconds = u64::try_from(seconds).map_err(|_| "it expired before 1970".to_owned())?;
    Ok(UNIX_EPOCH + Duration::from_secs(seconds))
}
