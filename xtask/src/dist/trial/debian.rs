//! The smallest Debian there is, with a systemd that runs.

use crate::lab::Lab;
use crate::{child, workspace};
use anyhow::{Context, Result, bail, ensure};
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{self, Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

const RELEASE: &str = "bookworm";

/// A slow mirror is waited for.
const FETCH_LIMIT: Duration = Duration::from_secs(20 * 60);

/// systemd takes a second or two.
const BOOT_LIMIT: Duration = Duration::from_secs(60);

/// Where dpkg and systemd note what they did, which changes with each package, and what useradd and userdel write.
const NOTES: [&str; 10] = [
    "var/lib/dpkg",
    "var/lib/systemd",
    "var/log",
    "var/cache",
    "var/tmp",
    "etc/passwd",
    "etc/group",
    "etc/shadow",
    "etc/gshadow",
    "etc/sub",
];

/// In a cgroup of its own, and then in namespaces of its own, of which this is process 1.
const ISOLATE: &str = r#"
echo $$ > "$1/cgroup.procs"
exec unshare --mount --pid --fork --kill-child --cgroup --uts --ipc --propagation private sh -ec "$3" sh "$2"
"#;

/// What systemd expects to be there. The devices are those that debootstrap has made.
const BOOT: &str = r#"
mount --bind "$1" "$1"
mount -t proc proc "$1/proc"
mount -t sysfs sysfs "$1/sys"
mount -t cgroup2 cgroup2 "$1/sys/fs/cgroup"
mount -t bpf bpf "$1/sys/fs/bpf" -o mode=0700
mount -t tmpfs tmpfs "$1/run" -o mode=0755
mount -t tmpfs tmpfs "$1/tmp"
exec env -i container=push PATH=/usr/sbin:/usr/bin:/sbin:/bin \
    chroot "$1" /lib/systemd/systemd --system --log-target=null --show-status=no
"#;

/// A Debian in a folder, whose systemd runs until it is halted or dropped.
pub(super) struct Debian {
    folder: PathBuf,
    cgroup: PathBuf,
    outside: Child,
    /// Its process 1.
    init: u32,
}

impl Debian {
    /// Boots a fresh copy in the gateway of `lab`. What it is copied from is fetched once.
    pub(super) fn boot(lab: &Lab) -> Result<Self> {
        let folder = unpacked()?;
        let cgroup = cgroups()?.join(format!("push-dist-{}", process::id()));
        fs::create_dir(&cgroup).with_context(|| format!("cannot make {}", cgroup.display()))?;
        let mut command = lab.gateway_command("sh");
        command
            .args(["-ec", ISOLATE, "sh"])
            .args([&cgroup, &folder])
            .arg(BOOT)
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        let outside = command
            .spawn()
            .with_context(|| format!("cannot run `{}`", child::display(&command)))?;
        let mut debian = Self {
            folder,
            cgroup,
            outside,
            init: 0,
        };
        let began = Instant::now();
        while !debian.is_up()? {
            ensure!(
                began.elapsed() < BOOT_LIMIT,
                "systemd isn't up after {} s",
                BOOT_LIMIT.as_secs()
            );
            thread::sleep(Duration::from_millis(50));
        }
        Ok(debian)
    }

    fn is_up(&mut self) -> Result<bool> {
        if let Some(status) = self.outside.try_wait()? {
            bail!("systemd has ended: {status}");
        }
        let pid = self.outside.id();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
        let Some(init) = children.split_whitespace().next() else {
            return Ok(false);
        };
        self.init = init.parse()?;
        // Before it is systemd, it is a shell that mounts.
        let name = fs::read_to_string(format!("/proc/{init}/comm")).unwrap_or_default();
        Ok(name.trim() == "systemd"
            && self
                .run(&["systemctl", "is-system-running"])
                .is_ok_and(|state| state.trim() == "running"))
    }

    /// A file of it, from outside.
    pub(super) fn path(&self, path: &str) -> PathBuf {
        self.folder.join(path)
    }

    /// Whether there is such a file, seen from inside.
    pub(super) fn has(&self, path: &str) -> bool {
        self.run(&["test", "-e", path]).is_ok()
    }

    /// What a command says that runs in it.
    pub(super) fn run(&self, line: &[&str]) -> Result<String> {
        child::output(self.command().args(line))
    }

    fn command(&self) -> Command {
        let mut command = child::command("nsenter");
        command
            .arg(format!("--target={}", self.init))
            .args([
                "--mount", "--pid", "--uts", "--ipc", "--net", "--cgroup", "--root", "--wd",
            ])
            .args(["env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"])
            .arg("DEBIAN_FRONTEND=noninteractive");
        command
    }

    /// The names of all its files but for notes.
    pub(super) fn files(&self) -> Result<BTreeSet<String>> {
        let mut find = child::command("find");
        find.arg(&self.folder).args(["-xdev", "-printf", "%P\n"]);
        let all = child::output(&mut find)?;
        let is_file = |file: &&str| !NOTES.iter().any(|note| file.starts_with(note));
        Ok(all.lines().filter(is_file).map(str::to_owned).collect())
    }

    /// Ends all that runs in it.
    pub(super) fn halt(mut self) -> Result<()> {
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        self.outside.kill().context("cannot end systemd")?;
        self.outside.wait()?;
        let began = Instant::now();
        while let Err(error) = remove_cgroup(&self.cgroup) {
            if error.kind() == io::ErrorKind::NotFound {
                break;
            }
            ensure!(
                began.elapsed() < BOOT_LIMIT,
                "{}: {error}",
                self.cgroup.display()
            );
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

impl Drop for Debian {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            eprintln!(
                "the Debian in {} isn't wholly down: {error:#}",
                self.folder.display()
            );
        }
    }
}

/// Innermost first, as a cgroup with others in it stays.
fn remove_cgroup(cgroup: &Path) -> io::Result<()> {
    for entry in fs::read_dir(cgroup)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_cgroup(&entry.path())?;
        }
    }
    fs::remove_dir(cgroup)
}

/// Where the unified hierarchy of cgroups is mounted.
fn cgroups() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let mut places = mounts.lines().filter_map(|line| {
        let mut words = line.split(' ');
        let place = words.nth(1)?;
        (words.next()? == "cgroup2").then(|| PathBuf::from(place))
    });
    places
        .next()
        .context("no cgroup2 is mounted; mount -t cgroup2 cgroup2 /sys/fs/cgroup")
}

fn unpacked() -> Result<PathBuf> {
    let dist = workspace::target().join("dist");
    let (pristine, folder) = (dist.join(format!("{RELEASE}.tar")), dist.join("root"));
    remove(&folder)?;
    fs::create_dir_all(&folder)?;
    if !pristine.exists() {
        println!("dist: fetching Debian {RELEASE}, the smallest there is; once");
        child::watch(
            child::command("debootstrap")
                .args(["--variant=minbase", "--include=systemd", RELEASE])
                .arg(&folder),
            FETCH_LIMIT,
        )?;
        let unfinished = pristine.with_extension("new");
        let mut pack = child::command("tar");
        child::output(
            pack.arg("-cf")
                .arg(&unfinished)
                .arg("-C")
                .arg(&folder)
                .arg("."),
        )?;
        fs::rename(&unfinished, &pristine)?;
        return Ok(folder);
    }
    let mut unpack = child::command("tar");
    child::output(unpack.arg("-xf").arg(&pristine).arg("-C").arg(&folder))?;
    Ok(folder)
}

fn remove(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", folder.display()))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}
