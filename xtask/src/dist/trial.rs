//! The package, tried in the smallest Debian there is: it installs, starts, and leaves nothing behind.
//!
//! A systemd of its own runs in there, as process 1 of namespaces of its own, in the gateway of a lab: so the
//! unit is obeyed to the letter, with the kernel and the NICs of the lab. What isn't shown is a whole machine
//! that boots.

mod debian;

use crate::lab::{Lab, Options};
use anyhow::{Result, ensure};
use debian::Debian;
use std::fs;
use std::path::Path;

const PREFIX: &str = "push-dist";

/// Where the daemon's configuration is in there.
const CONFIG: &str = "etc/push/push.toml";

/// Installs, starts, restarts, removes and purges the package.
pub(super) fn run(package: &Path) -> Result<()> {
    let mut options = Options::new(PREFIX, Path::new("/usr/bin/push-ctl"));
    options.daemon = false;
    let lab = Lab::up(&options)?;
    let debian = Debian::boot(&lab)?;
    let before = debian.files()?;
    fs::copy(package, debian.path("push.deb"))?;
    debian.run(&["dpkg", "--install", "/push.deb"])?;
    fs::remove_file(debian.path("push.deb"))?;
    println!("dist: installed");
    is_installed(&debian)?;

    configure(&debian, &options)?;
    starts(&debian)?;
    println!("dist: starts as its unit says, reloads, and restarts without detaching");

    debian.run(&["dpkg", "--remove", "push"])?;
    ensure!(!debian.has("/usr/bin/push-ctl"), "push-ctl is still there");
    ensure!(!debian.has("/sys/fs/bpf/push"), "the pins are still there");
    ensure!(
        debian.has("/var/lib/push/push.redb") && debian.has("/etc/push/push.toml"),
        "what is the operator's has gone with the package"
    );
    debian.run(&["dpkg", "--purge", "push"])?;
    ensure!(
        debian.run(&["getent", "passwd", "push"]).is_err(),
        "the user is still there"
    );
    let after = debian.files()?;
    let left: Vec<_> = after.difference(&before).collect();
    ensure!(left.is_empty(), "left behind: {left:?}");
    let gone: Vec<_> = before.difference(&after).collect();
    ensure!(gone.is_empty(), "taken along: {gone:?}");
    println!("dist: removed and purged; nothing is left");
    debian.halt()?;
    lab.down()
}

/// What dpkg should have done.
fn is_installed(debian: &Debian) -> Result<()> {
    let version = debian.run(&["push-ctl", "--version"])?;
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
        ensure!(is_left_out || debian.path(file).exists(), "no {file}");
    }
    let enabled = debian.path("etc/systemd/system/multi-user.target.wants/push.service");
    ensure!(enabled.is_symlink(), "the unit isn't enabled");
    let user = debian.run(&["getent", "passwd", "push"])?;
    ensure!(user.contains("/usr/sbin/nologin"), "the user is {user:?}");
    Ok(())
}

/// The lab's configuration, with its files where the unit wants them.
fn configure(debian: &Debian, options: &Options) -> Result<()> {
    let config = options.config.to_toml(Path::new("/@"));
    let config = config
        .replace("/@/state", "/var/lib/push")
        .replace("/@/bpf/push", "/sys/fs/bpf/push")
        .replace("/@/admin.sock", "/run/push/admin.sock");
    fs::write(debian.path(CONFIG), config)?;
    debian.run(&["chown", "root:push", "/etc/push/push.toml"])?;
    debian.run(&["chmod", "0640", "/etc/push/push.toml"])?;
    Ok(())
}

fn starts(debian: &Debian) -> Result<()> {
    // Comes back when the daemon has said that it is ready.
    debian.run(&["systemctl", "start", "push"])?;
    let brief = debian.run(&["push-ctl", "status", "--brief"])?;
    println!("dist: {}", brief.trim());
    let show = [
        "systemctl",
        "show",
        "push",
        "--property=User,StatusText,WatchdogUSec,NRestarts",
    ];
    let shown = debian.run(&show)?;
    for line in [
        "User=push",
        "StatusText=0 authorised",
        "WatchdogUSec=30s",
        "NRestarts=0",
    ] {
        ensure!(shown.contains(line), "no {line} in {shown}");
    }
    let log = debian.run(&["journalctl", "--unit=push", "--output=json"])?;
    ensure!(
        log.contains("\"PUSH_NIC\":\"gw-app\""),
        "the journal has no fields of the log: {log}"
    );
    let links = || -> Result<Vec<String>> {
        let status = debian.run(&["push-ctl", "--json", "status"])?;
        let status: serde_json::Value = serde_json::from_str(&status)?;
        let nics = status["nics"].as_array().into_iter().flatten();
        Ok(nics.map(|nic| nic["link_id"].to_string()).collect())
    };
    let before = links()?;
    debian.run(&["systemctl", "restart", "push"])?;
    ensure!(
        links()? == before && before.len() == 2,
        "it has attached anew"
    );
    reloads(debian)?;
    // Fails, and says why, if anything isn't right.
    debian.run(&["push-ctl", "doctor"])?;
    Ok(())
}

/// A configuration that can be had without a restart, and one that can't.
fn reloads(debian: &Debian) -> Result<()> {
    let path = debian.path(CONFIG);
    let config = fs::read_to_string(&path)?;
    fs::write(
        &path,
        config.replace("max_lifetime = \"24h\"", "max_lifetime = \"12h\""),
    )?;
    debian.run(&["systemctl", "reload", "push"])?;
    fs::write(&path, config.replace("slots = 4096", "slots = 2048"))?;
    ensure!(
        debian.run(&["systemctl", "reload", "push"]).is_err(),
        "systemctl reload says nothing of a refusal"
    );
    fs::write(&path, config)?;
    debian.run(&["systemctl", "reload", "push"])?;
    let shown = debian.run(&[
        "systemctl",
        "show",
        "push",
        "--property=NRestarts,ActiveState",
    ])?;
    ensure!(
        shown.contains("NRestarts=0") && shown.contains("ActiveState=active"),
        "reloading has restarted it: {shown}"
    );
    Ok(())
}
