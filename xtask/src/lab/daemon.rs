use super::{Names, Party};
use crate::child;
use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::process::{self, Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// The controller logs this when everything listens and is attached.
const READY: &str = "push is ready";

/// How long a controller may take to get ready, or to end.
const LIMIT: Duration = Duration::from_secs(20);

/// How often a condition is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Lines of the log that an error repeats.
const TAIL_LINES: usize = 30;

/// A controller that runs in the gateway.
#[derive(Debug)]
pub(super) struct Daemon {
    child: Child,
}

impl Daemon {
    /// Starts a controller; it isn't ready yet.
    pub(super) fn spawn(command: &mut Command, names: &Names) -> Result<Self> {
        let log = open_log(names)?;
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // Ctrl-C in the terminal is not meant for it.
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot run `{}`", child::display(command)))?;
        // Dropped on an error below, which doesn't end it: taking down the lab does.
        fs::write(names.pid(), child.id().to_string())?;
        Ok(Self { child })
    }

    /// Starts a controller, and waits until it is ready.
    pub(super) fn start(command: &mut Command, names: &Names) -> Result<Self> {
        let log_path = names.log();
        let earlier = usize::try_from(open_log(names)?.metadata()?.len())?;
        let mut daemon = Self::spawn(command, names)?;
        let written = || {
            let log = fs::read(&log_path).unwrap_or_default();
            String::from_utf8_lossy(log.get(earlier..).unwrap_or_default()).into_owned()
        };
        let mut ended = None;
        let ready = wait_until(|| {
            ended = daemon.child.try_wait().ok().flatten();
            ended.is_some() || written().contains(READY)
        });
        if let Some(status) = ended {
            bail!(
                "the controller ended ({status}); its log:\n{}",
                tail(&written())
            );
        }
        if !ready {
            bail!(
                "the controller was not ready after {} s; its log:\n{}",
                LIMIT.as_secs(),
                tail(&written())
            );
        }
        Ok(daemon)
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(super) fn stop(mut self) -> Result<()> {
        signal(self.child.id(), Signal::SIGTERM);
        if wait_until(|| matches!(self.child.try_wait(), Ok(Some(_)))) {
            return Ok(());
        }
        self.kill()?;
        bail!(
            "the controller didn't end when asked to; it was killed after {} s",
            LIMIT.as_secs()
        );
    }

    /// Waits for this time, unless the controller ends before.
    pub(super) fn run_for(&mut self, time: Duration) {
        let begin = Instant::now();
        while begin.elapsed() < time && matches!(self.child.try_wait(), Ok(None)) {
            thread::sleep(Duration::from_micros(200));
        }
    }

    pub(super) fn kill(mut self) -> Result<()> {
        self.child.kill().context("cannot kill the controller")?;
        self.child
            .wait()
            .context("cannot wait for the controller")?;
        Ok(())
    }
}

fn open_log(names: &Names) -> Result<File> {
    let path = names.log();
    let log = File::options().create(true).append(true).open(&path);
    log.with_context(|| format!("cannot open {}", path.display()))
}

/// Ends every process of the lab: a controller that was started for it, and whatever runs in its
/// namespaces.
pub(super) fn end_all(names: &Names) -> Result<()> {
    let own = process::id();
    let left = || -> Vec<u32> {
        processes(names)
            .into_iter()
            .filter(|&pid| pid != own)
            .collect()
    };
    for force in [Signal::SIGTERM, Signal::SIGKILL] {
        for pid in left() {
            signal(pid, force);
        }
        if wait_until(|| left().is_empty()) {
            return Ok(());
        }
    }
    bail!("processes of the lab don't end: {:?}", left());
}

/// The processes of the lab.
fn processes(names: &Names) -> Vec<u32> {
    let mut pids: Vec<u32> = Party::ALL
        .into_iter()
        .flat_map(|party| inhabitants(names, party))
        .collect();
    // A namespace may have lost its name, but the controller still knows whose it is.
    let config = names.config();
    let noted: Option<u32> = fs::read_to_string(names.pid())
        .ok()
        .and_then(|pid| pid.trim().parse().ok());
    pids.extend(noted.filter(|pid| {
        let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        arguments
            .split(|&byte| byte == 0)
            .any(|argument| argument == config.as_os_str().as_encoded_bytes())
    }));
    pids.sort_unstable();
    pids.dedup();
    pids
}

fn inhabitants(names: &Names, party: Party) -> Vec<u32> {
    if !names.handle(party).exists() {
        return Vec::new();
    }
    let list = child::output(child::command("ip").args(["netns", "pids", &names.namespace(party)]));
    list.map(|list| {
        list.split_whitespace()
            .filter_map(|pid| pid.parse().ok())
            .collect()
    })
    .unwrap_or_default()
}

fn signal(pid: u32, signal: Signal) {
    let Ok(pid) = i32::try_from(pid) else {
        return;
    };
    match kill(Pid::from_raw(pid), signal) {
        Ok(()) | Err(Errno::ESRCH) => {}
        Err(error) => eprintln!("cannot send {signal} to {pid}: {error}"),
    }
}

/// Waits for `condition`; whether it came true in time.
fn wait_until(mut condition: impl FnMut() -> bool) -> bool {
    let started = Instant::now();
    while !condition() {
        if started.elapsed() > LIMIT {
            return false;
        }
        thread::sleep(LOOK_EVERY);
    }
    true
}

fn tail(log: &str) -> String {
    let lines: Vec<_> = log.lines().collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
}
