//! What an operator looks with when something is wrong: status, doctor, store, sysdump, manual pages.

use crate::story::{APP, PUSH_CTL, Story, wait_until};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::process::{Command, Output, Stdio};
use xtask::child;
use xtask::lab::{DEVICE, Lab, Options, Party};

/// In the gateway, with the lab's daemon and configuration.
fn in_gateway(lab: &Lab, arguments: &[&str]) -> Command {
    let mut command = lab.gateway_command(PUSH_CTL);
    command
        .arg("--socket")
        .arg(lab.socket_path())
        .env("PUSH_CONFIG", lab.config_path())
        .args(arguments);
    command
}

fn run(lab: &Lab, arguments: &[&str]) -> Output {
    child::finish(&mut in_gateway(lab, arguments)).unwrap()
}

fn json_of(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", child::said(output)))
}

fn finding<'a>(report: &'a Value, check: &str) -> Vec<&'a Value> {
    let all = report["findings"].as_array().unwrap();
    all.iter().filter(|it| it["check"] == check).collect()
}

fn verdict<'a>(report: &'a Value, check: &str) -> &'a str {
    let found = finding(report, check);
    let [found] = &found[..] else {
        panic!("{check}: {found:?} in {report:#}");
    };
    found["verdict"].as_str().unwrap()
}

#[test]
fn the_doctor_finds_what_is_wrong_and_its_fix_mends_it() {
    let story = Story::begin("push-doc-1");
    let lab = &story.lab;
    let examine = || {
        let output = run(lab, &["-j", "doctor"]);
        (json_of(&output), output.status.code())
    };
    let (report, code) = examine();
    assert_eq!(
        (&report["healthy"], code),
        (&json!(true), Some(0)),
        "{report:#}"
    );
    for check in [
        "daemon",
        "kernel",
        "capabilities",
        "configuration",
        "pin_dir",
        "nic:gw-app",
        "nic:gw-dev",
        "sysctl:gw-app",
        "mtu",
        "store",
        "certificate",
    ] {
        assert_eq!(verdict(&report, check), "ok", "{report:#}");
    }

    story.shell(
        Party::Gateway,
        "ip link set dev gw-dev mtu 1400; sysctl -qw net.ipv4.conf.gw-app.forwarding=0",
    );
    let brief = run(lab, &["status", "--brief"]);
    let line = String::from_utf8(brief.stdout).unwrap();
    assert_eq!(brief.status.code(), Some(1));
    assert!(
        line.starts_with("NOT OK: ") && line.contains("forwarding=1"),
        "{line}"
    );
    let (report, code) = examine();
    assert_eq!(code, Some(0), "warnings alone aren't a failure");
    for check in ["mtu", "sysctl:gw-app"] {
        let found = finding(&report, check)[0];
        assert_eq!(found["verdict"], "warn", "{found}");
        let fix = found["fix"].as_str().unwrap();
        story.shell(Party::Gateway, fix);
    }
    let known_once = finding(&report, "daemon_warning");
    assert!(known_once.is_empty(), "said twice: {known_once:?}");
    let (report, _) = examine();
    assert_eq!(verdict(&report, "mtu"), "ok");
    assert_eq!(verdict(&report, "sysctl:gw-app"), "ok");
    let brief = run(lab, &["status", "--brief"]);
    assert!(brief.status.success(), "{}", child::said(&brief));

    // By whose link nothing comes or goes.
    story.shell(Party::Gateway, "ip link set dev gw-dev down");
    let brief = run(lab, &["status", "--brief"]);
    assert_eq!(brief.status.code(), Some(1));
    let line = String::from_utf8(brief.stdout).unwrap();
    assert!(line.contains("gw-dev is down"), "{line}");
    let (report, _) = examine();
    let known_once = finding(&report, "daemon_warning");
    assert!(known_once.is_empty(), "said twice: {known_once:?}");
    let fix = finding(&report, "link:gw-dev")[0]["fix"].as_str().unwrap();
    story.shell(Party::Gateway, fix);
    wait_until("a link that is up again", || {
        run(lab, &["status", "--brief"]).status.success()
    });

    lab.stop().unwrap();
    let (report, code) = examine();
    assert_eq!((verdict(&report, "daemon"), code), ("warn", Some(0)));
    let nic = finding(&report, "nic:gw-app")[0]["found"].as_str().unwrap();
    assert!(nic.contains("earlier run"), "{nic}");
    fs::remove_dir_all(lab.folder().join("bpf/push")).unwrap();
    let (report, _) = examine();
    let nic = finding(&report, "nic:gw-app")[0]["found"].as_str().unwrap();
    assert!(nic.contains("native XDP by driver veth"), "{nic}");

    story.shell(Party::Gateway, "ip link set dev gw-app down");
    let (report, code) = examine();
    assert_eq!(verdict(&report, "link:gw-app"), "fail");
    assert_eq!((&report["healthy"], code), (&json!(false), Some(1)));
    let people = run(lab, &["doctor"]);
    let people = String::from_utf8(people.stdout).unwrap();
    assert!(people.contains("FAIL  link:gw-app"), "{people}");
    assert!(people.contains("-> ip link set dev gw-app up"), "{people}");
}

#[test]
fn the_doctor_knows_what_it_can_not_see() {
    let story = Story::begin("push-doc-3");
    let lab = &story.lab;

    // From another network namespace than the daemon's, and by the fix, from the daemon's.
    let report = json_of(&child::finish(&mut lab.push_ctl(&["-j", "doctor"])).unwrap());
    assert_eq!(verdict(&report, "namespace"), "fail");
    let checks = report["findings"].as_array().unwrap().iter();
    let of_nics = checks.filter(|it| it["check"].as_str().unwrap().starts_with("nic:"));
    assert_eq!(of_nics.count(), 0, "{report:#}");
    let fix = finding(&report, "namespace")[0]["fix"].as_str().unwrap();
    let fix = fix.replace("push-ctl", &format!("'{PUSH_CTL}' -j"));
    let mut shell = Command::new("sh");
    shell
        .args(["-c", &fix])
        .env("PUSH_SOCKET", lab.socket_path());
    let report = json_of(&child::finish(&mut shell).unwrap());
    assert!(finding(&report, "namespace").is_empty(), "{report:#}");
    assert_eq!(verdict(&report, "nic:gw-app"), "ok");

    // Without the permission to look into the daemon's directories.
    let others = 65_534;
    for directory in ["state", "bpf"] {
        std::os::unix::fs::chown(lab.folder().join(directory), Some(others), None).unwrap();
    }
    let mut without = lab.gateway_command("setpriv");
    without
        .args(["--bounding-set=-dac_override,-dac_read_search", PUSH_CTL])
        .arg("--socket")
        .arg(lab.socket_path())
        .args(["-j", "doctor"]);
    let report = json_of(&child::finish(&mut without).unwrap());
    for check in ["store", "certificate", "pin_dir"] {
        let found = finding(&report, check)[0];
        assert_eq!(found["verdict"], "warn", "{found}");
        let text = found["found"].as_str().unwrap();
        assert!(text.ends_with("is not for this user to see"), "{text}");
    }
}

#[test]
fn a_daemon_is_waited_for() {
    let mut options = Options::new("push-doc-2", PUSH_CTL.as_ref());
    options.daemon = false;
    let lab = Lab::up(&options).unwrap();
    let in_vain = run(&lab, &["status", "--wait", "200ms", "--brief"]);
    assert_eq!(in_vain.status.code(), Some(1));
    let said = String::from_utf8(in_vain.stderr).unwrap();
    assert!(
        said.contains("not ready after 200ms: no daemon listens"),
        "{said}"
    );

    let mut waiting = in_gateway(&lab, &["status", "--wait", "20s", "--brief"]);
    let waiting = waiting.stdout(Stdio::piped()).spawn().unwrap();
    lab.start().unwrap();
    let ready = waiting.wait_with_output().unwrap();
    let line = String::from_utf8(ready.stdout.clone()).unwrap();
    assert!(ready.status.success(), "{line}");
    assert!(
        line.starts_with("ok: push-ctl ") && line.lines().count() == 1,
        "{line}"
    );

    let brief = json_of(&run(&lab, &["-j", "status", "--brief"]));
    assert_eq!(brief["healthy"], true, "{brief}");
}

#[test]
fn the_store_is_looked_at_without_the_daemon_and_without_secrets() {
    let story = Story::begin("push-doc-3");
    let lab = &story.lab;
    let registration = story.registered(0);
    let requested = story.requested(0, &registration, "one", 7000);
    let dump = || {
        let output = run(lab, &["store", "dump"]);
        assert!(output.status.success(), "{}", child::said(&output));
        let text = String::from_utf8(output.stdout).unwrap();
        for secret in ["ptk_", "pak_", "argon2", "sha256", "hash", "\"key\""] {
            assert!(!text.contains(secret), "{secret} in {text}");
        }
        let rows = text.lines().map(|line| serde_json::from_str(line).unwrap());
        rows.collect::<Vec<Value>>()
    };
    let rows = dump();
    let kinds: Vec<_> = rows
        .iter()
        .map(|row| row["record"].as_str().unwrap())
        .collect();
    assert_eq!(kinds, ["app", "terminal", "session"]);
    assert_eq!(rows[0]["name"], APP);
    assert_eq!(rows[1]["address"], DEVICE[0]);
    assert_eq!(
        (&rows[2]["id"], &rows[2]["state"]["name"]),
        (&json!(requested.id), &json!("requested"))
    );
    let check = || {
        let output = run(lab, &["-j", "store", "check"]);
        (json_of(&output), output.status.code())
    };
    let (while_in_use, code) = check();
    assert_eq!(code, Some(0));
    assert_eq!(
        (
            &while_in_use["in_use"],
            &while_in_use["sessions"],
            &while_in_use["valid"]
        ),
        (&json!(true), &json!(1), &json!(true))
    );

    lab.kill().unwrap();
    let store = lab.folder().join("state/push.redb");
    let bytes = fs::read(&store).unwrap();
    let (after, code) = check();
    assert_eq!((&after["in_use"], code), (&json!(false), Some(0)));
    assert_eq!(dump(), rows);
    assert_eq!(fs::read(&store).unwrap(), bytes, "looking has changed it");
    fs::write(&store, &bytes[..bytes.len() / 2]).unwrap();
    let (damaged, code) = check();
    assert!(
        damaged["error"].as_str().unwrap().contains("is damaged"),
        "{damaged}"
    );
    assert_eq!(code, Some(1));
    fs::remove_file(&store).unwrap();
    let (none, code) = check();
    assert!(
        none["error"]
            .as_str()
            .unwrap()
            .contains("there is no store"),
        "{none}"
    );
    assert_eq!(code, Some(1));
}

#[test]
fn a_sysdump_tells_everything_but_secrets_and_devices() {
    let story = Story::begin("push-doc-4");
    let lab = &story.lab;
    let registration = story.registered(0);
    let requested = story.requested(0, &registration, "one", 7000);
    // A comment may have anything in it.
    let config = fs::read_to_string(lab.config_path()).unwrap();
    fs::write(lab.config_path(), format!("# pak_0123\n{config}")).unwrap();
    let file = lab.folder().join("dump.tar.gz");
    let written = json_of(&run(lab, &["-j", "sysdump", file.to_str().unwrap()]));
    let contains: BTreeSet<_> = written["contains"]
        .as_array()
        .unwrap()
        .iter()
        .map(|name| name.as_str().unwrap())
        .collect();
    for name in [
        "daemon/status.json",
        "daemon/stats.json",
        "doctor.json",
        "push.toml",
        "kernel/proc/version",
        "kernel/switches",
        "kernel/links",
        "bpf/pins",
        "bpf/descriptors",
    ] {
        assert!(contains.contains(name), "no {name} in {contains:?}");
    }
    let folder = lab.folder().join("dump");
    fs::create_dir(&folder).unwrap();
    let mut unpack = child::command("tar");
    child::output(unpack.arg("-xzf").arg(&file).arg("-C").arg(&folder)).unwrap();
    let search = |text: &str| {
        let mut grep = child::command("grep");
        let found = child::finish(grep.args(["-rF", text]).arg(&folder)).unwrap();
        String::from_utf8(found.stdout).unwrap()
    };
    for secret in [
        "ptk_",
        "pak_",
        "phone-0",
        DEVICE[0],
        &requested.id,
        &registration,
    ] {
        assert_eq!(search(secret), "", "{secret} is in it");
    }
    for there in [
        "prog_id",
        "push_sessions",
        "\"check\": \"kernel\"",
        "gw-app/forwarding = 1",
    ] {
        assert_ne!(search(there), "", "{there} is not in it");
    }
}

#[test]
fn each_command_has_a_manual_page() {
    let folder = tempfile::tempdir().unwrap();
    let mut man = Command::new(PUSH_CTL);
    let pages = folder.path().join("man1");
    child::output(man.args(["man", "--dir"]).arg(&pages)).unwrap();
    for command in [
        "",
        "-run",
        "-status",
        "-session-tunnel-set",
        "-store-check",
        "-man",
    ] {
        let page = fs::read_to_string(pages.join(format!("push-ctl{command}.1"))).unwrap();
        assert!(
            page.contains(".SH NAME") && page.contains(".SH SYNOPSIS"),
            "{page}"
        );
    }
    let page = child::output(Command::new(PUSH_CTL).arg("man")).unwrap();
    assert!(
        page.starts_with(".ie") && page.contains("push\\-ctl"),
        "{page}"
    );
}
