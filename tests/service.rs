//! The daemon as systemd runs it: what its unit permits is enough, and what it says is right.

use crate::story::{PUSH_CTL, Story, socket_address, while_triggers_flow};
use push_common::wire::TRIGGER_HEADER_LEN;
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, chown};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::{Duration, Instant};
use xtask::child;
use xtask::lab::{DEVICE, GATEWAY_OUTSIDE, Lab, Options, Party};
use xtask::traffic::Session;

const UNIT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/dist/push.service");

/// Neither root nor anybody else.
const NOBODY: u32 = 65_534;

/// How exposed the unit may be, in tenths, where 100 is the most.
const EXPOSURE: &str = "--threshold=20";

const LIMIT: Duration = Duration::from_secs(20);

fn idle_lab(prefix: &str) -> Lab {
    let mut options = Options::new(prefix, Path::new(PUSH_CTL));
    options.daemon = false;
    Lab::up(&options).unwrap()
}

/// What the unit has to say under this key.
fn unit(key: &str) -> Vec<String> {
    let text = fs::read_to_string(UNIT).unwrap();
    let values = text.lines().filter_map(|line| line.split_once('='));
    values
        .filter(|(name, _)| *name == key)
        .map(|(_, value)| value.to_owned())
        .collect()
}

#[test]
fn systemd_has_nothing_to_say_against_the_unit() {
    let folder = tempfile::tempdir().unwrap();
    let installed = folder.path().join("push.service");
    let text = fs::read_to_string(UNIT).unwrap();
    // Where it is before it is installed.
    let text = text.replace("/usr/bin/push-ctl", PUSH_CTL);
    fs::write(&installed, text).unwrap();
    let analyze = |arguments: &[&str]| {
        let mut command = child::command("systemd-analyze");
        child::finish(command.args(arguments).arg(&installed)).unwrap()
    };
    let verified = analyze(&["verify", "--man=no"]);
    let said = String::from_utf8_lossy(&verified.stderr).into_owned();
    assert!(verified.status.success() && said.is_empty(), "{said}");
    let judged = analyze(&["security", "--offline=true", "--no-pager", EXPOSURE]);
    let said = String::from_utf8_lossy(&judged.stdout).into_owned();
    assert!(judged.status.success(), "{said}");
}

#[test]
fn the_capabilities_of_the_unit_are_enough_for_another_user() {
    let capabilities = unit("AmbientCapabilities");
    assert_eq!(capabilities, ["CAP_BPF CAP_NET_ADMIN CAP_PERFMON"]);
    assert_eq!(capabilities, unit("CapabilityBoundingSet"));

    let lab = idle_lab("push-svc-1");
    // What the unit's directories are, and its pin directory.
    chown(lab.folder(), Some(NOBODY), Some(NOBODY)).unwrap();
    chown(lab.folder().join("bpf"), Some(NOBODY), Some(NOBODY)).unwrap();
    let set: String = capabilities[0]
        .to_lowercase()
        .split(' ')
        .map(|capability| capability.replace("cap_", ",+"))
        .collect();
    let set = |name: &str| format!("--{name}=-all{set}");
    let (uid, gid) = (format!("--reuid={NOBODY}"), format!("--regid={NOBODY}"));
    lab.start_by(&[
        "setpriv",
        &uid,
        &gid,
        "--clear-groups",
        "--no-new-privs",
        &set("inh-caps"),
        &set("ambient-caps"),
        &set("bounding-set"),
    ])
    .unwrap();
    let about = fs::read_to_string(format!("/proc/{}/status", lab.pid().unwrap())).unwrap();
    let about = |key: &str| {
        let line = about.lines().find_map(|line| line.strip_prefix(key));
        line.unwrap().trim().to_owned()
    };
    assert_eq!(about("CapEff:"), "000000c000001000");
    assert_eq!(about("CapBnd:"), "000000c000001000");
    assert!(about("Uid:").starts_with("65534"), "{}", about("Uid:"));

    let status = lab.push_ctl_json(&["status"]).unwrap();
    assert_eq!(status["warnings"], serde_json::json!([]));
    let nics = status["nics"].as_array().unwrap();
    assert_eq!(nics.len(), 2);
    assert!(nics.iter().all(|nic| nic["mode"] == "native"), "{status}");

    let story = Story::in_lab(lab);
    let session = story.authorised(0, 7000);
    receives(&story, &session, 1);
    // Nothing of the data plane goes with the daemon.
    story.lab.stop().unwrap();
    receives(&story, &session, 2);
}

/// Sees a trigger through from the application's server to the device.
fn receives(story: &Story, session: &Session, sequence: u64) {
    let device = story
        .lab
        .udp_socket(Party::Device, socket_address(DEVICE[0], 7000))
        .unwrap();
    device.set_read_timeout(Some(LIMIT)).unwrap();
    let server = story
        .lab
        .udp_socket(Party::Application, "0.0.0.0:0".parse().unwrap())
        .unwrap();
    let mut trigger = vec![7; TRIGGER_HEADER_LEN + 5];
    session.trigger(sequence, &mut trigger);
    server
        .send_to(&trigger, socket_address(GATEWAY_OUTSIDE[0], 5050))
        .unwrap();
    let mut datagram = [0; 2048];
    let length = device.recv(&mut datagram).unwrap();
    assert_eq!(datagram[..length], trigger);
}

/// As `systemctl stop` does it: the process gets a signal, and has ended when it says so.
#[test]
fn an_orderly_stop_leaves_everything_attached_and_forwarding() {
    let story = Story::begin("push-svc-5");
    let lab = &story.lab;
    let pins = || -> BTreeSet<_> {
        let entries = fs::read_dir(lab.folder().join("bpf/push")).unwrap();
        entries.map(|entry| entry.unwrap().file_name()).collect()
    };
    // Of the kernel, as the daemon may not be there.
    let attached = || {
        ["gw-app", "gw-dev"].map(|nic| {
            let pin = lab.folder().join("bpf/push").join(format!("link_{nic}"));
            let bpftool = |object: &[&str]| -> Value {
                let mut bpftool = child::command("bpftool");
                bpftool.arg("-j").args(object);
                serde_json::from_str(&child::output(&mut bpftool).unwrap()).unwrap()
            };
            let link = bpftool(&["link", "show", "pinned", pin.to_str().unwrap()]);
            let mut ip = child::command("ip");
            let namespace = lab.namespace(Party::Gateway);
            ip.args(["-n", &namespace, "-j", "-d", "link", "show", "dev", nic]);
            let device: Value = serde_json::from_str(&child::output(&mut ip).unwrap()).unwrap();
            assert_eq!(device[0]["xdp"]["prog"]["id"], link["prog_id"], "{nic}");
            (link["id"].clone(), link["prog_id"].clone())
        })
    };
    let of_daemon = || {
        let status = lab.push_ctl_json(&["status"]).unwrap();
        let nics = status["nics"].as_array().unwrap().clone();
        <[_; 2]>::try_from(nics).unwrap()
    };
    while_triggers_flow(&story, |flow| {
        for _ in 0..2 {
            let (pins_before, attached_before) = (pins(), attached());
            let process = format!("/proc/{}", lab.pid().unwrap());
            lab.stop().unwrap();
            assert!(!Path::new(&process).exists());
            lab.push_ctl_json(&["status"]).unwrap_err();
            assert_eq!(pins(), pins_before);
            assert_eq!(attached(), attached_before);
            flow();

            lab.start().unwrap();
            let links = attached_before.map(|(link, _)| link);
            for (nic, link) in of_daemon().iter().zip(&links) {
                assert_eq!((&nic["link_id"], &nic["adopted"]), (link, &true.into()));
            }
            assert_eq!(attached().map(|(link, _)| link), links);
            assert_eq!(pins(), pins_before);
            flow();
        }
    });
}

#[test]
fn a_service_manager_is_told_and_nobody_else() {
    let lab = idle_lab("push-svc-2");
    let path = lab.folder().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(LIMIT)).unwrap();
    let told = || {
        let mut datagram = [0; 4096];
        let length = manager.recv(&mut datagram).unwrap();
        String::from_utf8(datagram[..length].to_vec()).unwrap()
    };
    let socket = format!("NOTIFY_SOCKET={}", path.display());
    lab.start_by(&["env", &socket, "WATCHDOG_USEC=300000"])
        .unwrap();
    assert_eq!(told().trim(), "READY=1");
    for _ in 0..3 {
        let beat = told();
        let expected = "WATCHDOG=1\nSTATUS=0 authorised and 0 requested sessions";
        assert_eq!(beat.trim(), expected);
    }
    lab.stop().unwrap();
    let begin = Instant::now();
    while !told().starts_with("STOPPING=1\nSTATUS=") {
        assert!(begin.elapsed() < LIMIT, "not told of the end");
    }

    lab.start().unwrap();
    lab.stop().unwrap();
    manager.set_nonblocking(true).unwrap();
    let mut datagram = [0; 4096];
    assert!(
        manager.recv(&mut datagram).is_err(),
        "told though not asked"
    );
}

#[test]
fn the_log_is_in_json_if_asked_for() {
    let lab = idle_lab("push-svc-3");
    lab.start_by(&["env", "PUSH_LOG_FORMAT=json"]).unwrap();
    lab.stop().unwrap();
    let log = lab.log();
    for line in log.lines() {
        let entry: Value = serde_json::from_str(line).unwrap();
        for key in ["timestamp", "level", "target", "message"] {
            assert!(entry[key].is_string(), "no {key} in {entry}");
        }
    }
    assert!(log.contains("push is ready"), "{log}");
}

/// Puts a folder in place of that of the journal, for one process and those it starts.
const JOURNAL_AT: &str =
    "mkdir -p /run/systemd/journal; mount --bind \"$1\" /run/systemd/journal; shift; exec \"$@\"";

#[test]
fn the_log_goes_to_the_journal_where_stderr_does() {
    let lab = idle_lab("push-svc-4");
    let folder = lab.folder().join("journal");
    fs::create_dir(&folder).unwrap();
    let journal = UnixDatagram::bind(folder.join("socket")).unwrap();
    journal.set_read_timeout(Some(LIMIT)).unwrap();
    let stderr = File::create(lab.folder().join("stderr")).unwrap();
    let about = stderr.metadata().unwrap();
    let mut command = lab.gateway_command("unshare");
    command
        .args(["--mount", "sh", "-ec", JOURNAL_AT, "sh"])
        .arg(&folder)
        .args([PUSH_CTL, "run", "-c"])
        .arg(lab.config_path())
        .env("JOURNAL_STREAM", format!("{}:{}", about.dev(), about.ino()))
        .stderr(stderr);
    let mut daemon = command.spawn().unwrap();
    let mut entry = vec![0; 1 << 16];
    let mut entries = String::new();
    while !entries.contains("push is ready") {
        let length = journal.recv(&mut entry).unwrap();
        entries += &String::from_utf8_lossy(&entry[..length]);
    }
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    for text in [
        "SYSLOG_IDENTIFIER",
        "push-ctl",
        "PRIORITY",
        "PUSH_NIC",
        "gw-app",
    ] {
        assert!(entries.contains(text), "no {text} in {entries}");
    }
    assert_eq!(fs::read_to_string(lab.folder().join("stderr")).unwrap(), "");
}
