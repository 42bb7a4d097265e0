//! `push-ctl emulate device`, as it runs.

use crate::clients::{Clients, Granted};
use crate::lab::{Lab, Party};
use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

/// How long it may take to tell of something.
const LIMIT: Duration = Duration::from_secs(60);

/// Emulated devices; they don't outlive this.
pub struct Emulated {
    child: Child,
    lines: Receiver<String>,
    said: String,
    tokens: PathBuf,
}

impl Emulated {
    /// Starts devices in the device's namespace, which register at `gateway` and want sessions of `app`. `show`
    /// is given the command before it is run.
    ///
    /// # Errors
    ///
    /// When it can't be run.
    pub fn begin(
        lab: &Lab,
        push_ctl: &Path,
        (gateway, app): (SocketAddr, &str),
        options: &[&str],
        show: &dyn Fn(&Command),
    ) -> Result<Self> {
        let tokens = lab.folder().join("tokens");
        let mut command = lab.exec_in(Party::Device, push_ctl);
        command
            .args(["--json", "emulate", "device", "--gateway"])
            .args([&gateway.to_string(), "--app", app, "--tokens"])
            .arg(&tokens)
            .args(options)
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        show(&command);
        let mut child = command.spawn().context("cannot run push-ctl")?;
        let stdout = child.stdout.take().context("it has no stdout")?;
        let stdout = BufReader::new(stdout);
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Ok(Self {
            child,
            lines,
            said: String::new(),
            tokens,
        })
    }

    /// Waits for it to tell of this.
    ///
    /// # Errors
    ///
    /// When it doesn't.
    pub fn wait_for(&mut self, event: &str) -> Result<Value> {
        let begin = Instant::now();
        loop {
            let left = LIMIT.saturating_sub(begin.elapsed());
            let Ok(line) = self.lines.recv_timeout(left) else {
                bail!("no {event}: {}", self.said);
            };
            self.said += &format!("{line}\n");
            let told: Value = serde_json::from_str(&line)?;
            if told["event"] == event {
                return Ok(told);
            }
        }
    }

    /// The session it has, once it is told of.
    ///
    /// # Errors
    ///
    /// When it isn't.
    pub fn session(&mut self, clients: &Clients) -> Result<Granted> {
        self.wait_for("session")?;
        self.newest_token(clients)
    }

    /// The token that it has got last.
    ///
    /// # Errors
    ///
    /// When it has none.
    pub fn newest_token(&self, clients: &Clients) -> Result<Granted> {
        let lines = fs::read_to_string(&self.tokens)?;
        let kept: Value = serde_json::from_str(lines.lines().last().context("no token")?)?;
        let text = |key: &str| kept[key].as_str().with_context(|| format!("no {key}"));
        let generation = kept["token_generation"].as_u64().unwrap_or_default();
        clients.granted(
            text("session_id")?,
            text("token")?,
            u8::try_from(generation)?,
        )
    }

    /// The file to which it writes tokens.
    #[must_use]
    pub fn tokens(&self) -> &Path {
        &self.tokens
    }

    /// All that it has said so far.
    #[must_use]
    pub fn said(&self) -> &str {
        &self.said
    }

    /// Ctrl-C; what it sums up then, and whether it went well.
    ///
    /// # Errors
    ///
    /// When it doesn't end.
    pub fn interrupt(&mut self) -> Result<(Value, bool)> {
        let pid = i32::try_from(self.child.id())?;
        kill(Pid::from_raw(pid), Signal::SIGINT)?;
        let summary = self.wait_for("summary")?;
        let succeeded = self.child.wait()?.success();
        Ok((summary, succeeded))
    }
}

impl Drop for Emulated {
    fn drop(&mut self) {
        let _ended_already = self.child.kill();
        let _reaped = self.child.wait();
    }
}
