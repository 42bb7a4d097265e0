//! The lab: a gateway, devices and an application server, each in a network namespace of its own,
//! linked by veth pairs that run XDP programs natively.
//!
//! ```text
//!  <prefix>-app                      <prefix>-gw                       <prefix>-dev
//!  app0 198.51.100.10 ────── gw-app 198.51.100.1
//!       2001:db8:51::10             2001:db8:51::1
//!                                   gw-dev 10.64.0.1 ────────── dev0 10.64.0.2
//!                                          fd00:64::1                fd00:64::2
//!                                                              <prefix>-met
//!                                   gw-met 10.64.255.1 ──────── met0 10.64.0.2
//!                                          10.64.255.2
//! ```
//!
//! The second device is there if [`Options::realms`] is set. It has the address of the first one: what is
//! behind `gw-met` are networks of their own, the realms "meters" and "cameras". Triggers for the latter go
//! out in a VLAN, which nothing in the lab terminates, as that takes a kernel with VLAN interfaces: they
//! are looked at as they arrive at `met0`, and cameras register without a tag.
//!
//! What belongs to a lab is found by its prefix alone, so that a lab can be taken down that somebody
//! else has put up, or that lost its owner: the namespaces `<prefix>-*`, and `/run/<prefix>` with the
//! controller's configuration, state, log and its own bpffs. Labs of different prefixes coexist.

pub mod by_hand;
mod config;
mod daemon;
mod topology;

pub use config::{Config, Nic, Realm, Role};

use crate::child;
use anyhow::{Context, Result, bail};
use daemon::Daemon;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns};
use serde_json::Value;
use std::fs::{self, File};
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// The application server's addresses.
pub const APPLICATION: [&str; 2] = ["198.51.100.10", "2001:db8:51::10"];
/// The gateway's addresses outside: triggers and the external interface.
pub const GATEWAY_OUTSIDE: [&str; 2] = ["198.51.100.1", "2001:db8:51::1"];
/// The gateway's addresses inside: the internal interface.
pub const GATEWAY_INSIDE: [&str; 2] = ["10.64.0.1", "fd00:64::1"];
/// The device's private addresses.
pub const DEVICE: [&str; 2] = ["10.64.0.2", "fd00:64::2"];

/// Where devices of the realm "meters" register: the gateway's address on a NIC of its own.
pub const GATEWAY_METERS: &str = "10.64.255.1";
/// Where devices of the realm "cameras" register, on the same NIC.
pub const GATEWAY_CAMERAS: &str = "10.64.255.2";
/// The VLAN in which the realm "cameras" is reached.
pub const CAMERAS_VLAN: u16 = 100;
/// MAC address of the router in that VLAN.
pub const CAMERAS_ROUTER: &str = "02:00:5e:00:53:01";

/// One of the parties.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Party {
    /// The application server, outside.
    Application,
    /// The gateway, in between.
    Gateway,
    /// The device, in the operator's network.
    Device,
    /// Another device, which has the address of the first one, in networks of its own.
    Meter,
}

impl Party {
    const ALL: [Self; 4] = [Self::Application, Self::Gateway, Self::Device, Self::Meter];

    fn suffix(self) -> &'static str {
        match self {
            Self::Application => "app",
            Self::Gateway => "gw",
            Self::Device => "dev",
            Self::Meter => "met",
        }
    }
}

/// What a lab is made of.
#[derive(Clone, Debug)]
pub struct Options {
    /// Begins the name of everything; at most 100 letters, digits and hyphens.
    pub prefix: String,
    /// The controller's program.
    pub push_ctl: PathBuf,
    /// Whether to start the controller.
    pub daemon: bool,
    /// What the controller is told.
    pub config: Config,
    /// Further addresses of the device, such as `10.64.0.3/16`.
    pub device_addresses: Vec<String>,
    /// Whether [`Party::Meter`] is there.
    pub realms: bool,
}

impl Options {
    /// The usual lab, with the controller running.
    #[must_use]
    pub fn new(prefix: &str, push_ctl: &Path) -> Self {
        Self {
            prefix: prefix.to_owned(),
            push_ctl: push_ctl.to_owned(),
            daemon: true,
            config: Config::default(),
            device_addresses: Vec::new(),
            realms: false,
        }
    }

    /// The same, with two realms.
    #[must_use]
    pub fn with_realms(prefix: &str, push_ctl: &Path) -> Self {
        Self {
            realms: true,
            config: Config::with_realms(),
            ..Self::new(prefix, push_ctl)
        }
    }
}

/// A lab that is up. It is taken down when dropped, unless it is told to [`stay`](Lab::stay).
#[derive(Debug)]
pub struct Lab {
    names: Names,
    push_ctl: PathBuf,
    daemon: Mutex<Option<Daemon>>,
    stays: bool,
}

impl Lab {
    /// Puts a lab up, in place of one of the same prefix that may be there.
    ///
    /// # Errors
    ///
    /// When not root, when the kernel or a program refuses, or when the controller isn't ready in time; then the
    /// error has the end of its log, and nothing of the lab is left.
    pub fn up(options: &Options) -> Result<Self> {
        down(&options.prefix)?;
        let names = Names::new(&options.prefix)?;
        let lab = Self {
            names,
            push_ctl: options.push_ctl.clone(),
            daemon: Mutex::new(None),
            stays: false,
        };
        // From here on, an error drops the lab, and with it whatever is there of it.
        topology::build(&lab.names, options)?;
        fs::create_dir_all(lab.names.bpffs())
            .with_context(|| format!("cannot make {}", lab.names.bpffs().display()))?;
        mount(
            Some("bpf"),
            &lab.names.bpffs(),
            Some("bpf"),
            MsFlags::empty(),
            Some("mode=0700"),
        )
        .with_context(|| format!("cannot mount a bpffs at {}", lab.names.bpffs().display()))?;
        lab.write_config(&options.config)?;
        if options.daemon {
            lab.start()?;
        }
        Ok(lab)
    }

    /// Removes the link with this NIC of the gateway, and makes it anew, as if its driver had been loaded again.
    ///
    /// # Errors
    ///
    /// When there is no such NIC, or the kernel refuses.
    pub fn replug(&self, nic: &str) -> Result<()> {
        topology::replug(&self.names, nic)
    }

    /// Takes it down.
    ///
    /// # Errors
    ///
    /// When something is left.
    pub fn down(mut self) -> Result<()> {
        self.stays = true; // Nothing left for `drop`.
        self.stop()?;
        down(&self.names.prefix)
    }

    /// Leaves it up, controller included, when this program ends.
    pub fn stay(mut self) {
        self.stays = true;
    }

    /// Replaces the controller's configuration; it is read at the next start.
    ///
    /// # Errors
    ///
    /// When the file can't be written.
    pub fn write_config(&self, config: &Config) -> Result<()> {
        fs::write(self.config_path(), config.to_toml(&self.names.folder()))
            .with_context(|| format!("cannot write {}", self.config_path().display()))
    }

    /// Starts the controller, and waits until it is ready.
    ///
    /// # Errors
    ///
    /// When it ends, or isn't ready in time; the error has the end of its log.
    pub fn start(&self) -> Result<()> {
        self.start_by(&[])
    }

    /// The same, with `wrapper` in front of the command line, such as `["setpriv", "--reuid=65534"]`.
    ///
    /// # Errors
    ///
    /// As [`Lab::start`].
    pub fn start_by(&self, wrapper: &[&str]) -> Result<()> {
        let daemon = Daemon::start(&mut self.daemon_command(wrapper), &self.names)?;
        *self.daemon() = Some(daemon);
        Ok(())
    }

    /// Starts the controller, and kills it (`kill -9`) after this time, ready or not.
    ///
    /// # Errors
    ///
    /// When it can't be run.
    pub fn kill_while_starting(&self, after: Duration) -> Result<()> {
        let mut daemon = Daemon::spawn(&mut self.daemon_command(&[]), &self.names)?;
        daemon.run_for(after);
        daemon.kill()
    }

    fn daemon_command(&self, wrapper: &[&str]) -> Command {
        let mut command = match wrapper {
            [] => self.gateway_command(&self.push_ctl),
            [program, arguments @ ..] => {
                let mut command = self.gateway_command(program);
                command.args(arguments).arg(&self.push_ctl);
                command
            }
        };
        command.arg("run").arg("--config").arg(self.config_path());
        command
    }

    /// Asks the controller to end, and waits until it has.
    ///
    /// # Errors
    ///
    /// When it had to be killed.
    pub fn stop(&self) -> Result<()> {
        self.daemon().take().map_or(Ok(()), Daemon::stop)
    }

    /// Kills the controller (`kill -9`), and waits until it is gone.
    ///
    /// # Errors
    ///
    /// When it isn't running.
    pub fn kill(&self) -> Result<()> {
        self.daemon()
            .take()
            .context("the controller isn't running")?
            .kill()
    }

    /// Process id of the controller, if this lab has started it.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.daemon().as_ref().map(Daemon::pid)
    }

    fn daemon(&self) -> MutexGuard<'_, Option<Daemon>> {
        self.daemon.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the controller has logged.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read(self.names.log())
            .map(|log| String::from_utf8_lossy(&log).into_owned())
            .unwrap_or_default()
    }

    /// The controller's configuration file.
    #[must_use]
    pub fn config_path(&self) -> PathBuf {
        self.names.config()
    }

    /// Folder of everything the controller reads and writes.
    #[must_use]
    pub fn folder(&self) -> PathBuf {
        self.names.folder()
    }

    /// The controller's admin socket.
    #[must_use]
    pub fn socket_path(&self) -> PathBuf {
        self.names.socket()
    }

    /// The certificate by which an application server knows the gateway.
    #[must_use]
    pub fn certificate_path(&self) -> PathBuf {
        self.names.state().join("external.crt")
    }

    /// Name of the party's namespace.
    #[must_use]
    pub fn namespace(&self, party: Party) -> String {
        self.names.namespace(party)
    }

    /// `program`, in the party's namespace.
    #[must_use]
    pub fn exec_in(&self, party: Party, program: impl AsRef<Path>) -> Command {
        let mut command = child::command("ip");
        command
            .args(["netns", "exec", &self.namespace(party)])
            .arg(program.as_ref());
        command
    }

    /// `program`, in the gateway's network namespace but with this machine's file systems:
    /// `ip netns exec` mounts another `/sys`, which hides bpffs.
    #[must_use]
    pub fn gateway_command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = child::command("nsenter");
        command
            .arg(format!(
                "--net={}",
                self.names.handle(Party::Gateway).display()
            ))
            .arg(program.as_ref());
        command
    }

    /// The operator's command line, connected to this lab's controller.
    #[must_use]
    pub fn push_ctl(&self, arguments: &[&str]) -> Command {
        let mut command = child::command(&self.push_ctl);
        command
            .arg("--socket")
            .arg(self.socket_path())
            .args(arguments);
        command
    }

    /// What `push-ctl -j` answers to `arguments`.
    ///
    /// # Errors
    ///
    /// When it fails, or doesn't answer in JSON.
    pub fn push_ctl_json(&self, arguments: &[&str]) -> Result<Value> {
        let mut command = self.push_ctl(arguments);
        let text = child::output(command.arg("--json"))?;
        serde_json::from_str(&text)
            .with_context(|| format!("`{}` answered {text:?}", child::display(&command)))
    }

    /// Runs `work` on a thread in the party's namespace: sockets made there stay there.
    ///
    /// # Errors
    ///
    /// When the namespace can't be entered.
    ///
    /// # Panics
    ///
    /// If `work` does.
    pub fn run_in<T: Send>(&self, party: Party, work: impl FnOnce() -> T + Send) -> Result<T> {
        self.names.run_in(party, work)
    }

    /// A UDP socket of the party, bound to `address`.
    ///
    /// # Errors
    ///
    /// When the address isn't the party's, or taken.
    pub fn udp_socket(&self, party: Party, address: SocketAddr) -> Result<UdpSocket> {
        self.run_in(party, || UdpSocket::bind(address))?
            .with_context(|| format!("cannot bind to {address}"))
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if self.stays {
            return;
        }
        if let Some(daemon) = self.daemon().take() {
            let _ = daemon.kill();
        }
        if let Err(error) = down(&self.names.prefix) {
            eprintln!(
                "the lab {} is not wholly down: {error:#}",
                self.names.prefix
            );
        }
    }
}

/// Takes down whatever is there of the lab with this `prefix`, whoever has put it up.
///
/// # Errors
///
/// When something is left.
pub fn down(prefix: &str) -> Result<()> {
    let names = Names::new(prefix)?;
    daemon::end_all(&names)?;
    topology::tear_down(&names)?;
    // As often as something has been mounted there; tests give the state a disk of its own.
    for mounted in [names.bpffs(), names.state()] {
        while mounted.exists() && umount2(&mounted, MntFlags::MNT_DETACH).is_ok() {}
    }
    match fs::remove_dir_all(names.folder()) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", names.folder().display()))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// What things are called.
#[derive(Clone, Debug)]
struct Names {
    prefix: String,
}

impl Names {
    fn new(prefix: &str) -> Result<Self> {
        // It becomes part of paths that are removed.
        let letters = prefix
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        if !letters || !(1..=100).contains(&prefix.len()) {
            bail!(
                "{prefix:?} can't be a lab's prefix: expected up to 100 letters, digits and hyphens"
            );
        }
        Ok(Self {
            prefix: prefix.to_owned(),
        })
    }

    fn namespace(&self, party: Party) -> String {
        format!("{}-{}", self.prefix, party.suffix())
    }

    fn handle(&self, party: Party) -> PathBuf {
        Path::new("/run/netns").join(self.namespace(party))
    }

    fn folder(&self) -> PathBuf {
        Path::new("/run").join(&self.prefix)
    }

    fn config(&self) -> PathBuf {
        self.folder().join("push.toml")
    }

    fn state(&self) -> PathBuf {
        self.folder().join("state")
    }

    fn socket(&self) -> PathBuf {
        self.folder().join("admin.sock")
    }

    fn log(&self) -> PathBuf {
        self.folder().join("push.log")
    }

    fn pid(&self) -> PathBuf {
        self.folder().join("pid")
    }

    fn bpffs(&self) -> PathBuf {
        self.folder().join("bpf")
    }

    fn run_in<T: Send>(&self, party: Party, work: impl FnOnce() -> T + Send) -> Result<T> {
        let handle = self.handle(party);
        let namespace =
            File::open(&handle).with_context(|| format!("cannot open {}", handle.display()))?;
        thread::scope(|scope| {
            let visitor = scope.spawn(|| {
                setns(namespace, CloneFlags::CLONE_NEWNET)?;
                Ok::<T, nix::Error>(work())
            });
            visitor.join().expect("work in a namespace doesn't panic")
        })
        .with_context(|| format!("cannot enter {}", handle.display()))
    }
}

#[cfg(test)]
mod tests;
