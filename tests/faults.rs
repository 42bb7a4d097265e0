//! What the machine does to the daemon: disks that are full, broken or read-only, limits that are reached, memory that
//! isn't there, clocks that jump. Triggers flow meanwhile, and none is lost.

use crate::story::{
    APP, PUSH_CTL, Story, demand_each_once, device, server, wait_until, while_triggers_flow,
};
use nix::mount::{MsFlags, mount};
use push_ctl::store::VERSION;
use redb::{Database, TableDefinition};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use xtask::lab::{Config, GATEWAY_INSIDE, Lab, Options, Party};
use xtask::traffic::Sink;

const META: TableDefinition<'_, &str, u32> = TableDefinition::new("meta");
const TERMINALS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("terminals");

/// Where a file of redb has the version of its format.
const REDB_VERSIONS_AT: [usize; 2] = [64, 192];

/// A lab whose daemon keeps what it has on a disk of this size, in bytes.
fn with_disk(prefix: &str, size: u64) -> Story {
    let lab = Lab::up(&Options {
        daemon: false,
        config: Config {
            slots: 65_536,
            ..Config::default()
        },
        ..Options::new(prefix, Path::new(PUSH_CTL))
    });
    let lab = lab.unwrap();
    let state = lab.folder().join("state");
    fs::create_dir(&state).unwrap();
    mount_tmpfs(&state, MsFlags::empty(), &format!("mode=0700,size={size}"));
    lab.start().unwrap();
    Story::in_lab(lab)
}

fn mount_tmpfs(at: &Path, flags: MsFlags, options: &str) {
    mount(Some("tmpfs"), at, Some("tmpfs"), flags, Some(options)).unwrap();
}

/// The daemon is asked to start, and doesn't: what it says.
fn refuses_to_start(lab: &Lab) -> String {
    match lab.start() {
        Ok(()) => panic!("it has started"),
        Err(error) => format!("{error:#}"),
    }
}

fn store(lab: &Lab) -> PathBuf {
    lab.folder().join("state/push.redb")
}

fn terminals(lab: &Lab) -> BTreeSet<String> {
    let listed = lab.push_ctl_json(&["terminal", "list", "--limit", "100000"]);
    let Value::Array(rows) = listed.unwrap() else {
        panic!("no list");
    };
    rows.iter()
        .map(|row| row["id"].as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn a_disk_that_is_full_loses_nothing_that_was_acknowledged() {
    const DEVICES: u32 = 6000;
    let story = with_disk("push-fault-1", 8 << 20);
    let lab = &story.lab;
    story.shell(Party::Device, "ip route add local 10.128.0.0/16 dev lo");
    story.shell(Party::Gateway, "ip route add 10.128.0.0/16 via 10.64.0.2");
    let devices = |name: &str, count: u32, from: &str| {
        let mut devices = lab.exec_in(Party::Device, PUSH_CTL);
        devices
            .args(["-j", "emulate", "device", "--keep", "--for", "0s"])
            .args(["--gateway", &format!("{}:5683", GATEWAY_INSIDE[0])])
            .args(["--app", APP, "--endpoint", name, "--at-once", "32"])
            .args(["--count", &count.to_string(), "--from", from])
            .stdout(Stdio::piped());
        devices.spawn().unwrap()
    };
    // Those that were acknowledged, and how many were refused.
    let told = |devices: Child| {
        let told = String::from_utf8(devices.wait_with_output().unwrap().stdout).unwrap();
        let (mut acknowledged, mut answered) = (BTreeSet::new(), BTreeSet::new());
        for line in told.lines() {
            let line: Value = serde_json::from_str(line).unwrap();
            match line["event"].as_str() {
                Some("registered") => {
                    acknowledged.insert(line["registration"].as_str().unwrap().to_owned());
                    answered.insert(line["endpoint"].as_str().unwrap().to_owned());
                }
                Some("refused") => {
                    assert_eq!(
                        (&line["code"], &line["text"]),
                        (&json!("5.03"), &json!("stopping"))
                    );
                    answered.insert(line["endpoint"].as_str().unwrap().to_owned());
                }
                _other => {}
            }
        }
        (acknowledged, answered)
    };
    while_triggers_flow(&story, |_| {
        let (mut acknowledged, _) = told(devices("before", 500, "10.128.128.0/17"));
        assert_eq!(acknowledged.len(), 500);
        // All but a little of what is left.
        let ballast = lab.folder().join("state/ballast");
        let mut file = File::create(&ballast).unwrap();
        while file.write_all(&[0; 4096]).is_ok() {}
        drop(file);
        let devices = devices("full", DEVICES, "10.128.0.0/17");
        wait_until("the daemon has ended, as it can't write", || {
            lab.push_ctl_json(&["status"]).is_err()
        });
        assert!(lab.log().contains("is the disk full?"), "{}", lab.log());
        // It can't take anybody up either as long as that is so, and says why.
        if let Err(error) = lab.start() {
            let error = format!("{error:#}");
            assert!(
                error.contains("No space left") || error.contains("is the disk full?"),
                "{error}"
            );
        }
        fs::remove_file(&ballast).unwrap();
        let _ended = lab.kill();
        lab.start().unwrap();
        let (after, answered) = told(devices);
        assert_eq!(
            answered.len(),
            DEVICES as usize,
            "answered, one way or the other"
        );
        acknowledged.extend(after);
        let there = terminals(lab);
        let lost: Vec<_> = acknowledged.difference(&there).collect();
        assert!(lost.is_empty(), "lost: {lost:?}");
    });
}

#[test]
fn a_disk_that_is_read_only_is_named_and_what_is_on_it_comes_back() {
    let story = with_disk("push-fault-2", 16 << 20);
    let lab = &story.lab;
    story.registered(1);
    while_triggers_flow(&story, |_| {
        let before = terminals(lab);
        lab.kill().unwrap();
        let state = lab.folder().join("state");
        mount_tmpfs(&state, MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY, "");
        let error = refuses_to_start(lab);
        assert!(error.contains("Read-only file system"), "{error}");
        assert!(error.contains("push.redb"), "{error}");
        mount_tmpfs(&state, MsFlags::MS_REMOUNT, "");
        lab.start().unwrap();
        assert_eq!(terminals(lab), before);
    });
}

#[test]
fn a_store_that_is_damaged_is_refused_and_left_alone() {
    let story = Story::begin("push-fault-3");
    let lab = &story.lab;
    story.registered(1);
    while_triggers_flow(&story, |_| {
        let before = terminals(lab);
        lab.kill().unwrap();
        let good = fs::read(store(lab)).unwrap();
        let with = |at: usize, bytes: &[u8]| {
            let mut bad = good.clone();
            bad[at..at + bytes.len()].copy_from_slice(bytes);
            bad
        };
        let cases = [
            (
                "half of it is gone",
                good[..good.len() / 2].to_vec(),
                "is damaged",
            ),
            (
                "its end is gone",
                good[..good.len() - 1].to_vec(),
                "is damaged",
            ),
            ("nothing is left", Vec::new(), "is damaged"),
            ("its first sector is gone", with(0, &[0; 512]), "is damaged"),
        ];
        for (what, bad, words) in cases {
            fs::write(store(lab), &bad).unwrap();
            let error = refuses_to_start(lab);
            assert!(error.contains(words), "{what}: {error}");
            assert!(
                error.contains("put a backup in its place"),
                "{what}: {error}"
            );
            assert!(
                fs::read(store(lab)).unwrap() == bad,
                "{what}: it was changed"
            );
        }
        fs::write(store(lab), &good).unwrap();
        lab.start().unwrap();
        assert_eq!(terminals(lab), before);
    });
}

/// Somebody has gone back to an older push-ctl, or put the file of another gateway in place.
#[test]
fn a_store_of_another_version_is_refused_and_left_alone_and_all_goes_on_with_the_right_one() {
    let story = Story::begin("push-fault-7");
    let lab = &story.lab;
    let registration = story.registered(1);
    while_triggers_flow(&story, |flow| {
        let before = terminals(lab);
        lab.kill().unwrap();
        let good = fs::read(store(lab)).unwrap();
        // By what it would be if a newer push-ctl had written it; what else is in it then is anybody's guess.
        let newer = |has_other_rows: bool| {
            let database = Database::open(store(lab)).unwrap();
            let transaction = database.begin_write().unwrap();
            {
                let mut meta = transaction.open_table(META).unwrap();
                meta.insert("version", VERSION + 1).unwrap();
                if has_other_rows {
                    let mut terminals = transaction.open_table(TERMINALS).unwrap();
                    terminals.retain(|_, _| false).unwrap();
                    terminals.insert(1, &[0xFF; 9][..]).unwrap();
                    meta.insert("key_check", 7).unwrap();
                }
            }
            transaction.commit().unwrap();
            drop(database);
            let bad = fs::read(store(lab)).unwrap();
            fs::write(store(lab), &good).unwrap();
            bad
        };
        // Where redb has the version of its own format, in both of its headers.
        let mut of_another_format = good.clone();
        for at in REDB_VERSIONS_AT {
            assert_eq!(of_another_format[at], 3, "the place has changed");
            of_another_format[at] = 9;
        }
        let another = format!(
            "has version {}, this push-ctl reads versions 1 to {VERSION}: use the push-ctl that made it, or move it \
             away to start empty",
            VERSION + 1
        );
        let cases = [
            ("newer", newer(false), &*another),
            ("newer, and unreadable", newer(true), &another),
            (
                "of another format",
                of_another_format,
                "has version 9 of the file format, this push-ctl reads",
            ),
            (
                "something else",
                b"SQLite format 3\0".repeat(512),
                "put a backup in its place, or move it away",
            ),
        ];
        for (what, bad, words) in cases {
            fs::write(store(lab), &bad).unwrap();
            let files = files_in_state(lab);
            let error = refuses_to_start(lab);
            assert!(error.contains("ended (exit status: 1)"), "{what}: {error}");
            assert!(error.contains(words), "{what}: {error}");
            assert!(error.contains("push.redb"), "{what}: {error}");
            assert!(
                fs::read(store(lab)).unwrap() == bad,
                "{what}: it was changed"
            );
            assert_eq!(files_in_state(lab), files, "{what}");
            flow();
        }
        fs::write(store(lab), &good).unwrap();
        lab.start().unwrap();
        assert_eq!(terminals(lab), before);
        story.requested(1, &registration, "afterwards", 7001);
    });
    // Somebody who comes afterwards is delivered to, too.
    let session = story.authorised(1, 7002);
    let sink = Sink::start(device(lab, 1, 7002), &[session]).unwrap();
    let mut trigger = [0; 100];
    session.trigger(1, &mut trigger);
    server(lab, 1).send(&trigger).unwrap();
    demand_each_once(lab, sink, 1);
}

fn files_in_state(lab: &Lab) -> BTreeSet<OsString> {
    let entries = fs::read_dir(lab.folder().join("state")).unwrap();
    entries.map(|entry| entry.unwrap().file_name()).collect()
}

#[test]
fn a_table_of_another_size_is_refused_and_the_one_there_is_goes_on() {
    let story = Story::begin("push-fault-4");
    let lab = &story.lab;
    while_triggers_flow(&story, |_| {
        let before = terminals(lab);
        lab.stop().unwrap();
        for slots in [1024, 8192] {
            let config = Config {
                slots,
                ..Config::default()
            };
            lab.write_config(&config).unwrap();
            let error = refuses_to_start(lab);
            let words = format!("has 4096 slots, sessions.slots is {slots}; set it to 4096");
            assert!(error.contains(&words), "{error}");
        }
        lab.write_config(&Config::default()).unwrap();
        lab.start().unwrap();
        assert_eq!(terminals(lab), before);
    });
}

/// A control group whose processes get no more memory than that, whichever version of them the machine has.
struct MemoryLimit(PathBuf);

impl MemoryLimit {
    fn of(name: &str, bytes: u64) -> Self {
        let root = Path::new("/sys/fs/cgroup");
        let (root, limit) = if root.join("cgroup.controllers").exists() {
            // May be so already.
            let _refused = fs::write(root.join("cgroup.subtree_control"), "+memory");
            (root.to_owned(), "memory.max")
        } else {
            (root.join("memory"), "memory.limit_in_bytes")
        };
        let group = Self(root.join(name));
        fs::create_dir_all(&group.0).unwrap();
        fs::write(group.0.join(limit), bytes.to_string()).unwrap();
        group
    }
}

impl Drop for MemoryLimit {
    fn drop(&mut self) {
        let _left = fs::remove_dir(&self.0);
    }
}

#[test]
fn memory_that_is_not_there_is_missed_in_words() {
    let limit = MemoryLimit::of("push-fault-6", 128 << 20);
    let lab = Lab::up(&Options {
        daemon: false,
        config: Config {
            // 512 MiB.
            slots: 1 << 22,
            ..Config::default()
        },
        ..Options::new("push-fault-6", Path::new(PUSH_CTL))
    });
    let lab = lab.unwrap();
    let enter = format!("echo $$ > {}/cgroup.procs; exec \"$@\"", limit.0.display());
    let error = lab.start_by(&["sh", "-c", &enter, "sh"]).unwrap_err();
    let error = format!("{error:#}");
    assert!(
        error.contains("out of memory: make sessions.slots smaller"),
        "{error}"
    );
    lab.write_config(&Config::default()).unwrap();
    lab.start_by(&["sh", "-c", &enter, "sh"]).unwrap();
}

fn expires_in(lab: &Lab) -> u64 {
    let shown = lab.push_ctl_json(&["terminal", "show", "phone-1"]).unwrap();
    shown["expires_in_s"].as_u64().unwrap_or_default()
}

#[test]
fn a_wall_clock_that_is_set_ends_no_registration_and_lets_none_live_longer() {
    let story = Story::begin("push-clock-1");
    let lab = &story.lab;
    story.registered(1);
    while_triggers_flow(&story, |_| {
        let before = expires_in(lab);
        for by in ["+1h", "-1h"] {
            lab.kill().unwrap();
            let set = format!("FAKETIME={by}");
            let wrapper = [
                "env",
                "LD_PRELOAD=/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1",
                "FAKETIME_DONT_FAKE_MONOTONIC=1",
                "DONT_FAKE_MONOTONIC=1",
                &set,
            ];
            lab.start_by(&wrapper).unwrap();
            assert!(
                lab.log().contains("the wall clock was set"),
                "{}",
                lab.log()
            );
            let after = expires_in(lab);
            assert!(before.abs_diff(after) < 120, "{by}: {before} s, {after} s");
        }
    });
}

#[test]
fn a_machine_that_was_suspended_has_grown_older_by_that() {
    let story = Story::begin("push-clock-2");
    let lab = &story.lab;
    story.registered(1);
    let before = expires_in(lab);
    lab.kill().unwrap();
    let asleep = |seconds: &str| {
        let fork = ["unshare", "--time", "--fork", "--kill-child", "--boottime"];
        lab.start_by(&[&fork[..], &[seconds]].concat()).unwrap();
    };
    asleep("1800");
    let slept = before - expires_in(lab);
    assert!((1800..1920).contains(&slept), "{slept} s");
    lab.kill().unwrap();
    asleep("3600");
    let shown = lab.push_ctl_json(&["terminal", "show", "phone-1"]).unwrap();
    assert_eq!(shown["cause"], "expired");
}
