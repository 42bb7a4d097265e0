//! `push-ctl doctor`: looks at everything that push needs of a machine, with or without a daemon.
//!
//! Nothing is changed. Each finding that isn't good comes with what to do about it.

mod files;
mod machine;
mod network;
#[cfg(test)]
mod tests;

use crate::admin::api::Status;
use crate::config::Config;
use serde::Serialize;
use std::path::Path;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// It works, but not always, or not for long.
    Warn,
    /// It doesn't work.
    Fail,
}

/// Something that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at: a stable name, and after a colon which one of several.
    pub check: String,
    /// How bad it is.
    pub verdict: Verdict,
    /// What was found.
    pub found: String,
    /// What to do about it: a sentence, or a command, which can be pasted as it is, with what else there is to say as
    /// the shell's comment.
    pub fix: Option<String>,
}

impl Finding {
    fn ok(check: impl Into<String>, found: impl Into<String>) -> Self {
        Self {
            check: check.into(),
            verdict: Verdict::Ok,
            found: found.into(),
            fix: None,
        }
    }

    fn warn(check: impl Into<String>, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            verdict: Verdict::Warn,
            fix: Some(fix.into()),
            ..Self::ok(check, found)
        }
    }

    /// Of something that this user may not look at.
    fn unseen(check: impl Into<String>, path: &Path) -> Self {
        Self::warn(
            check,
            format!("{} is not for this user to see", path.display()),
            "run as root, or as the user of the daemon",
        )
    }

    fn fail(check: impl Into<String>, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            verdict: Verdict::Fail,
            fix: Some(fix.into()),
            ..Self::ok(check, found)
        }
    }
}

/// All that was found.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Whether nothing failed.
    pub healthy: bool,
    /// In the order of looking.
    pub findings: Vec<Finding>,
}

/// Who is asked.
pub struct Patient<'a> {
    /// The configuration, or why there is none, and what to do about it.
    pub config: Result<&'a Config, (String, String)>,
    /// What the daemon says, or why it says nothing, and what to do about it.
    pub daemon: Result<&'a Status, (String, String)>,
}

/// Looks at everything.
pub async fn examine(patient: &Patient<'_>) -> Report {
    let mut findings = vec![daemon(patient)];
    let process = patient
        .daemon
        .as_ref()
        .ok()
        .and_then(|status| i32::try_from(status.pid).ok());
    findings.extend(machine::look(process));
    match &patient.config {
        Ok(config) => {
            findings.push(Finding::ok(
                "configuration",
                format!("{} is right", config.path.display()),
            ));
            findings.push(machine::pin_dir(&config.pin_dir));
            findings.extend(match process.and_then(network::elsewhere) {
                Some(elsewhere) => vec![elsewhere],
                None => network::look(config, patient.daemon.as_ref().ok().copied()).await,
            });
            findings.extend(files::look(config));
        }
        Err((why, fix)) => findings.push(Finding::fail("configuration", why, fix)),
    }
    if let Ok(status) = patient.daemon {
        for warning in &status.warnings {
            // The fix is part of the sentence.
            if !is_known(&findings, warning) {
                findings.push(Finding::warn(
                    "daemon_warning",
                    warning,
                    "see `push-ctl status`",
                ));
            }
        }
    }
    Report {
        healthy: findings
            .iter()
            .all(|finding| finding.verdict != Verdict::Fail),
        findings,
    }
}

/// Whether a finding says the same already.
fn is_known(findings: &[Finding], warning: &str) -> bool {
    let fixes = findings.iter().filter_map(|finding| finding.fix.as_ref());
    let mut commands = fixes.map(|fix| fix.split("  # ").next().unwrap_or(fix));
    commands.any(|command| warning.contains(command))
}

fn daemon(patient: &Patient<'_>) -> Finding {
    match &patient.daemon {
        Ok(status) if status.version == env!("CARGO_PKG_VERSION") => Finding::ok(
            "daemon",
            format!("push-ctl {} runs, pid {}", status.version, status.pid),
        ),
        Ok(status) => Finding::warn(
            "daemon",
            format!(
                "the daemon is push-ctl {}, this is {}",
                status.version,
                env!("CARGO_PKG_VERSION")
            ),
            "restart the daemon, or use the push-ctl it was started with",
        ),
        Err((why, fix)) => Finding::warn(
            "daemon",
            why,
            format!("{fix}; what follows is about this machine and user"),
        ),
    }
}
