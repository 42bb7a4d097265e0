//! The daemon becomes the push-ctl that is installed now, while triggers go on.
//!
//! It ends as it always does, which leaves program, maps and links in the kernel, and then executes the
//! file that it was started from (`execve(2)`), with the arguments it was started with: for the service
//! manager it is the same process. What runs then does what every start does: it adopts what is pinned, and
//! puts its own program into each link in one step.

use crate::config::Config;
use std::env;
use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;
use tokio::sync::Notify;
use tokio::time::timeout;
use tracing::info;

/// How long the new push-ctl may take to say whether it would start.
const PATIENCE: Duration = Duration::from_secs(10);

/// How the daemon has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// For good.
    Stopped,
    /// To become the push-ctl that is installed now.
    ForUpgrade,
}

/// Where the daemon is asked to become another one.
#[derive(Clone, Debug)]
pub struct Upgrade {
    /// As it was when the daemon was started: what is there may be another file by now.
    executable: PathBuf,
    wanted: Arc<Notify>,
}

/// Why it stays what it is.
#[derive(Debug, Error)]
pub enum UpgradeError {
    /// The file isn't there, or doesn't run.
    #[error("{} doesn't run: {error}", executable.display())]
    DoesNotRun {
        /// The file.
        executable: PathBuf,
        /// Why.
        error: String,
    },
    /// The session table that is pinned would be in its way.
    #[error(
        "sessions.slots is {wanted} in the configuration, and the session table has {slots}: what is installed now would not start; set it to {slots}"
    )]
    OtherTable {
        /// Of the table.
        slots: u32,
        /// In the configuration.
        wanted: u32,
    },
    /// It would not start with the configuration.
    #[error("{} doesn't take the configuration: {said}", executable.display())]
    ConfigRefused {
        /// The file.
        executable: PathBuf,
        /// What it says.
        said: String,
    },
}

impl Upgrade {
    /// For a daemon that runs `executable`.
    #[must_use]
    pub fn of(executable: PathBuf) -> Self {
        Self {
            executable,
            wanted: Arc::default(),
        }
    }

    /// Whether what is installed now would start with this configuration and a session table of so many slots: gives its version. What else it has to
    /// say against the data plane shows only once it is started; the program that is attached stays, then.
    ///
    /// # Errors
    ///
    /// [`UpgradeError`].
    pub async fn look_at(&self, config: &Path, slots: u32) -> Result<String, UpgradeError> {
        let version = self.asked(vec!["--version".into()]).await?;
        if !version.status.success() {
            return Err(self.does_not_run(said(&version)));
        }
        let check: [OsString; 4] = ["config".into(), "check".into(), "-c".into(), config.into()];
        let checked = self.asked(check.to_vec()).await?;
        if !checked.status.success() {
            return Err(UpgradeError::ConfigRefused {
                executable: self.executable.clone(),
                said: said(&checked),
            });
        }
        // One that only a newer version understands has been looked at by that.
        if let Ok(new) = Config::load(config)
            && new.sessions.slots != slots
        {
            let wanted = new.sessions.slots;
            return Err(UpgradeError::OtherTable { slots, wanted });
        }
        let text = said(&version);
        Ok(text.rsplit(' ').next().unwrap_or_default().to_owned())
    }

    /// Has the daemon end, and become what is installed now.
    pub fn begin(&self) {
        self.wanted.notify_one();
    }

    /// Until that is wanted.
    pub async fn wanted(&self) {
        self.wanted.notified().await;
    }

    async fn asked(&self, arguments: Vec<OsString>) -> Result<Output, UpgradeError> {
        let mut command = tokio::process::Command::new(&self.executable);
        // What it says is for us, not for the service manager; and it doesn't outlive our patience.
        command
            .args(arguments)
            .env_remove("NOTIFY_SOCKET")
            .kill_on_drop(true);
        match timeout(PATIENCE, command.output()).await {
            Ok(Ok(output)) => Ok(output),
            Ok(Err(error)) => Err(self.does_not_run(error.to_string())),
            Err(_elapsed) => Err(self.does_not_run("it says nothing".to_owned())),
        }
    }

    fn does_not_run(&self, error: String) -> UpgradeError {
        UpgradeError::DoesNotRun {
            executable: self.executable.clone(),
            error,
        }
    }
}

/// Replaces this process by `executable`, with the arguments that this one was started with. Returns only
/// if that can't be.
pub fn execute(executable: &Path) -> io::Error {
    info!(executable = %executable.display(), "going on as what is installed now");
    let mut arguments = env::args_os();
    let name = arguments.next().unwrap_or_default();
    Command::new(executable).arg0(name).args(arguments).exec()
}

fn said(output: &Output) -> String {
    let bytes = [&*output.stdout, &*output.stderr].concat();
    let text = String::from_utf8_lossy(&bytes);
    let text = text.strip_prefix("push-ctl: ").unwrap_or(&text);
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    /// As the example has it.
    const SLOTS: u32 = 65_536;

    async fn look_at(script: &str) -> Result<String, String> {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("push.toml");
        fs::write(&config, Config::example()).unwrap();
        let executable = folder.path().join("push-ctl");
        fs::write(&executable, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&executable, fs::Permissions::from_mode(0o755)).unwrap();
        let looked = Upgrade::of(executable).look_at(&config, SLOTS).await;
        looked.map_err(|error| error.to_string())
    }

    #[tokio::test]
    async fn what_would_not_start_is_not_begun_with() {
        let both = r#"case "$1" in --version) echo push-ctl 9.8.7;; *) test "$(basename "$4")" = push.toml;; esac"#;
        assert_eq!(look_at(both).await.unwrap(), "9.8.7");
        let wary = r#"case "$1" in --version) echo push-ctl 9.8.7;; *) echo push-ctl: no such key; exit 1;; esac"#;
        let error = look_at(wary).await.unwrap_err();
        assert!(
            error.ends_with("doesn't take the configuration: no such key"),
            "{error}"
        );
        let error = look_at("echo Illegal instruction; exit 132")
            .await
            .unwrap_err();
        assert!(
            error.ends_with("doesn't run: Illegal instruction"),
            "{error}"
        );
        let gone = Upgrade::of("/nonexistent/push-ctl".into());
        let config = Path::new("x");
        let error = gone.look_at(config, SLOTS).await.unwrap_err().to_string();
        assert!(error.contains("No such file"), "{error}");
        let text = Config::example().replace("slots = 65536", "slots = 1024");
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("push.toml");
        fs::write(&config, text).unwrap();
        let runs = Upgrade::of("true".into());
        let error = runs.look_at(&config, SLOTS).await.unwrap_err().to_string();
        assert!(error.ends_with("set it to 65536"), "{error}");
    }
}
