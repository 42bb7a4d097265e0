//! The package, tried in the smallest Debian there is: it installs, starts, and leaves nothing behind.
//!
//! No systemd runs in there. So the daemon is started by hand as the unit says, by the user and with the
//! capabilities that it names; what systemd makes of the rest of the unit isn't shown.

use crate::lab::{Lab, Options};
use crate::{child, workspace};
use anyhow::{Context, Result, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Debian's oldest release that has a kernel for push in its backports.
const RELEASE: &str = "bookworm";

/// A slow mirror is waited for.
const LIMIT: Duration = Duration::from_secs(20 * 60);

const PREFIX: &str = "push-dist";

/// Where dpkg and debconf note what they did: these change with every package.
const NOTES: [&str; 4] = ["var/lib/dpkg", "var/log", "var/cache", "etc/ld.so.cache"];

/// Files that useradd and userdel write, and their backups.
const USERS: [&str; 10] = [
    "etc/passwd",
    "etc/passwd-",
    "etc/group",
    "etc/group-",
    "etc/shadow",
    "etc/shadow-",
    "etc/gshadow",
    "etc/gshadow-",
    "etc/subuid-",
    "etc/subgid-",
];

/// The capabilities that the unit names, as setpriv takes them.
const CAPABILITIES: &str = "-all,+bpf,+net_admin,+perfmon";

pub(super) fn run(package: &Path) -> Result<()> {
    // What is mounted from here on is seen by this process and its children, and goes with them.
    unshare(CloneFlags::CLONE_NEWNS).context("cannot make a mount namespace")?;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>)
        .context("cannot keep mounts to this process")?;
    let root = Root::make()?;
    let before = root.files()?;
    fs::copy(package, root.path("tmp/push.deb"))?;
    root.run(&["dpkg", "--install", "/tmp/push.deb"])?;
    fs::remove_file(root.path("tmp/push.deb"))?;
    println!("dist: installed");
    is_installed(&root)?;
    starts(&root)?;
    println!("dist: starts as user push, is ready, and stops");

    root.run(&["dpkg", "--remove", "push"])?;
    ensure!(
        !root.path("usr/bin/push-ctl").exists(),
        "push-ctl is still there"
    );
    ensure!(
        !root.path("sys/fs/bpf/push").exists(),
        "the pins are still there"
    );
    ensure!(
        root.path("var/lib/push/push.redb").exists(),
        "the store has gone with the package"
    );
    ensure!(
        root.path("etc/push/push.toml").exists(),
        "the configuration has gone with the package"
    );
    root.run(&["dpkg", "--purge", "push"])?;
    ensure!(
        root.run(&["getent", "passwd", "push"]).is_err(),
        "the user is still there"
    );
    let after = root.files()?;
    let left: Vec<_> = after.difference(&before).collect();
    ensure!(left.is_empty(), "left behind: {left:?}");
    let gone: Vec<_> = before.difference(&after).collect();
    ensure!(gone.is_empty(), "taken along: {gone:?}");
    println!("dist: removed and purged; nothing is left");
    Ok(())
}

/// What dpkg should have done.
fn is_installed(root: &Root) -> Result<()> {
    let version = root.run(&["push-ctl", "--version"])?;
    ensure!(
        version.trim() == format!("push-ctl {}", env!("CARGO_PKG_VERSION")),
        "it says {version:?}"
    );
    for file in [
        "usr/lib/systemd/system/push.service",
        "usr/share/man/man1/push-ctl.1.gz",
        "usr/share/man/man1/push-ctl-session-revoke.1.gz",
        "usr/share/bash-completion/completions/push-ctl",
        "usr/share/doc/push/examples/push.toml",
    ] {
        // A bare root may be set up to leave documentation out.
        let is_left_out = file.starts_with("usr/share/doc") || file.starts_with("usr/share/man");
        ensure!(is_left_out || root.path(file).exists(), "no {file}");
    }
    let enabled = root.path("etc/systemd/system/multi-user.target.wants/push.service");
    ensure!(enabled.is_symlink(), "the unit isn't enabled");
    let user = root.run(&["getent", "passwd", "push"])?;
    ensure!(user.contains("/usr/sbin/nologin"), "the user is {user:?}");
    Ok(())
}

/// Starts the daemon of the root in a lab's gateway, and ends it.
fn starts(root: &Root) -> Result<()> {
    let mut options = Options::new(PREFIX, &root.path("usr/bin/push-ctl"));
    options.daemon = false;
    let lab = Lab::up(&options)?;
    let config = options.config.to_toml(Path::new("/@"));
    let config = config
        .replace("/@/state", "/var/lib/push")
        .replace("/@/bpf/push", "/sys/fs/bpf/push")
        .replace("/@/admin.sock", "/run/push/admin.sock");
    fs::write(root.path("etc/push/push.toml"), config)?;
    root.run(&["chown", "root:push", "/etc/push/push.toml"])?;
    // What systemd would have made: RuntimeDirectory, StateDirectory, and the pin directory.
    for (folder, mode) in [
        ("/run/push", "0750"),
        ("/var/lib/push", "0700"),
        ("/sys/fs/bpf/push", "0700"),
    ] {
        root.run(&[
            "install", "-d", "-o", "push", "-g", "push", "-m", mode, folder,
        ])?;
    }
    let (inheritable, ambient) = (
        format!("--inh-caps={CAPABILITIES}"),
        format!("--ambient-caps={CAPABILITIES}"),
    );
    let bounding = format!("--bounding-set={CAPABILITIES}");
    let mut command = lab.gateway_command("chroot");
    command.arg(&root.folder).args([
        "setpriv",
        "--reuid=push",
        "--regid=push",
        "--init-groups",
        "--no-new-privs",
        &inheritable,
        &ambient,
        &bounding,
        "push-ctl",
        "run",
    ]);
    let daemon = Daemon(
        command
            .stdin(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot run `{}`", child::display(&command)))?,
    );
    let status = root.run(&["push-ctl", "status", "--wait", "30s", "--brief"])?;
    println!("dist: {}", status.trim());
    daemon.stop()?;
    lab.down()
}

/// Is killed if it isn't stopped.
struct Daemon(Child);

impl Daemon {
    fn stop(mut self) -> Result<()> {
        let pid = i32::try_from(self.0.id())?;
        nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(pid),
            nix::sys::signal::Signal::SIGTERM,
        )?;
        let status = self.0.wait()?;
        ensure!(status.success(), "the daemon ended with {status}");
        Ok(())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ended = self.0.kill();
        let _reaped = self.0.wait();
    }
}

/// The smallest Debian there is, in a folder.
struct Root {
    folder: PathBuf,
}

impl Root {
    /// A copy of one that is fetched once.
    fn make() -> Result<Self> {
        let dist = workspace::target().join("dist");
        let (pristine, folder) = (dist.join(format!("{RELEASE}.tar")), dist.join("root"));
        remove(&folder)?;
        fs::create_dir_all(&folder)?;
        if pristine.exists() {
            child::output(
                child::command("tar")
                    .arg("-xf")
                    .arg(&pristine)
                    .arg("-C")
                    .arg(&folder),
            )?;
        } else {
            println!("dist: fetching Debian {RELEASE}, the smallest there is; once");
            child::watch(
                child::command("debootstrap")
                    .args(["--variant=minbase", RELEASE])
                    .arg(&folder),
                LIMIT,
            )?;
            child::output(
                child::command("tar")
                    .arg("-cf")
                    .arg(&pristine)
                    .arg("-C")
                    .arg(&folder)
                    .arg("."),
            )?;
        }
        let root = Self { folder };
        let mounts = [("proc", "proc", ""), ("bpf", "sys/fs/bpf", "mode=0755")];
        for (kind, place, data) in mounts {
            let place = root.path(place);
            fs::create_dir_all(&place)?;
            mount(Some(kind), &place, Some(kind), MsFlags::empty(), Some(data))
                .with_context(|| format!("cannot mount {}", place.display()))?;
        }
        Ok(root)
    }

    fn path(&self, path: &str) -> PathBuf {
        self.folder.join(path)
    }

    /// What a command says that runs in it.
    fn run(&self, line: &[&str]) -> Result<String> {
        let mut command = Command::new("chroot");
        command
            .arg(&self.folder)
            .args(line)
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("DEBIAN_FRONTEND", "noninteractive");
        child::output(&mut command)
    }

    /// The names of all files that aren't notes of dpkg.
    fn files(&self) -> Result<BTreeSet<String>> {
        let mut find = child::command("find");
        find.arg(&self.folder).args(["-xdev", "-printf", "%P\\n"]);
        let all = child::output(&mut find)?;
        let is_noted =
            |file: &&str| !NOTES.iter().any(|note| file.starts_with(note)) && !USERS.contains(file);
        Ok(all.lines().filter(is_noted).map(str::to_owned).collect())
    }
}

fn remove(folder: &Path) -> Result<()> {
    for place in ["sys/fs/bpf", "proc"] {
        let place = folder.join(place);
        while place.exists() && umount2(&place, MntFlags::MNT_DETACH).is_ok() {}
    }
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", folder.display()))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}
