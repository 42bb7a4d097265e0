//! What stops the daemon from starting, and what it shrugs off: each gets a clear line that says what
//! to do, and nothing is lost.

use crate::story::{PUSH_CTL, Story};
use std::fs;
use std::net::{TcpListener, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use xtask::child;
use xtask::lab::{Config, Lab, Options, Party};

/// A lab without a daemon.
fn lab(prefix: &str) -> Lab {
    Lab::up(&Options {
        daemon: false,
        ..Options::new(prefix, Path::new(PUSH_CTL))
    })
    .unwrap()
}

/// What a daemon says that doesn't start: one line, perhaps a hint, and exit code 1.
fn refusal(mut command: Command, lab: &Lab) -> String {
    command.args(["run", "-c"]).arg(lab.config_path());
    let mut limited = child::command("timeout");
    limited
        .arg("20")
        .arg(command.get_program())
        .args(command.get_args())
        .env("RUST_LOG", "off");
    let output = child::finish(&mut limited).unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.starts_with("push-ctl: "), "{said}");
    assert!(
        said.lines().count() <= 2,
        "more than a line and a hint: {said}"
    );
    said
}

fn run(lab: &Lab) -> Command {
    lab.gateway_command(PUSH_CTL)
}

/// The daemon without some of its capabilities. `CAP_SYS_ADMIN` would stand in for two of them.
fn without(lab: &Lab, capabilities: &str) -> Command {
    let mut command = lab.gateway_command("setpriv");
    let bounding = capabilities
        .split(' ')
        .chain(["sys_admin"])
        .map(|name| format!("-{name}"))
        .collect::<Vec<_>>()
        .join(",");
    command
        .arg(format!("--bounding-set={bounding}"))
        .arg(PUSH_CTL);
    command
}

#[test]
fn each_missing_capability_is_named() {
    let lab = lab("push-bad-1");
    let rows = [
        ("bpf", "CAP_BPF"),
        ("net_admin", "CAP_NET_ADMIN"),
        ("perfmon", "CAP_PERFMON"),
    ];
    for (capability, name) in rows {
        let said = refusal(without(&lab, capability), &lab);
        assert!(said.contains(&format!("{name} is missing")), "{said}");
    }
    let said = refusal(without(&lab, "perfmon"), &lab);
    assert!(
        said.contains("the program runs slower") && said.contains("require_perfmon = false"),
        "{said}"
    );
}

#[test]
fn without_root_it_says_what_is_missing() {
    let lab = lab("push-bad-2");
    // Somebody who may read and write all of the files, and run the program.
    child::output(
        Command::new("chown")
            .args(["-R", "nobody"])
            .arg(lab.folder()),
    )
    .unwrap();
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let push_ctl = folder.path().join("push-ctl");
    fs::copy(PUSH_CTL, &push_ctl).unwrap();
    let mut command = lab.gateway_command("setpriv");
    command
        .args(["--reuid=nobody", "--clear-groups"])
        .arg(push_ctl);
    let said = refusal(command, &lab);
    assert!(said.contains("is missing; run as root"), "{said}");
}

#[test]
fn a_wrong_configuration_is_refused_by_key() {
    let lab = lab("push-bad-3");
    let good = fs::read_to_string(lab.config_path()).unwrap();
    let rows = [
        ("not TOML", good.replace("[sessions]", "[sessions"), "line"),
        (
            "an unknown key",
            good.replace("[sessions]", "[sessions]\nsize = 3"),
            "size",
        ),
        ("an unknown section", format!("{good}\n[extra]\n"), "extra"),
        (
            "a wrong type",
            good.replace("port = 5050", "port = \"5050\""),
            "expected u16",
        ),
        (
            "a port that can't be",
            good.replace("port = 5050", "port = 70000"),
            "70000",
        ),
        ("no slots", regex_line(&good, "slots", "slots = 0"), "slots"),
        (
            "a listen address without address",
            good.replace("10.64.0.1:5683", "0.0.0.0:5683"),
            "0.0.0.0",
        ),
        (
            "a role that isn't one",
            good.replace("\"internal\"", "\"inside\""),
            "inside",
        ),
    ];
    for (name, text, expected) in rows {
        assert_ne!(
            text, good,
            "{name}: the configuration of the lab has changed"
        );
        fs::write(lab.config_path(), text).unwrap();
        let mut check = Command::new(PUSH_CTL);
        check.args(["config", "check", "-c"]).arg(lab.config_path());
        let output = child::finish(&mut check).unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{name}: {said}");
        assert!(said.contains(expected), "{name}: {said}");
    }
    fs::remove_file(lab.config_path()).unwrap();
    let said = refusal(run(&lab), &lab);
    assert!(said.contains("config example"), "{said}");
}

fn regex_line(text: &str, key: &str, line: &str) -> String {
    text.lines()
        .map(|old| if old.starts_with(key) { line } else { old })
        .collect::<Vec<_>>()
        .join("\n")
}

#[test]
fn a_nic_that_is_not_there_is_named() {
    let lab = lab("push-bad-4");
    let mut config = Config::default();
    config.nics[1].name = "nonesuch".into();
    lab.write_config(&config).unwrap();
    let said = refusal(run(&lab), &lab);
    assert!(
        said.contains("there is no NIC nonesuch") && said.contains("ip -br link"),
        "{said}"
    );
}

#[test]
fn an_address_in_use_is_named() {
    let lab = lab("push-bad-5");
    let taken = lab
        .run_in(Party::Gateway, || {
            UdpSocket::bind("10.64.0.1:5683").unwrap()
        })
        .unwrap();
    let said = refusal(run(&lab), &lab);
    assert!(
        said.contains("10.64.0.1:5683") && said.contains("internal.listen"),
        "{said}"
    );
    drop(taken);
    let taken = lab
        .run_in(Party::Gateway, || {
            TcpListener::bind("198.51.100.1:8443").unwrap()
        })
        .unwrap();
    let said = refusal(run(&lab), &lab);
    assert!(
        said.contains("198.51.100.1:8443") && said.contains("external.listen"),
        "{said}"
    );
    drop(taken);
    lab.start().unwrap();
    let said = refusal(run(&lab), &lab);
    assert!(
        said.contains("another") || said.contains("already"),
        "a second daemon: {said}"
    );
    assert!(
        lab.push_ctl_json(&["status"]).is_ok(),
        "the second daemon took something from the first"
    );
}

#[test]
fn a_damaged_store_is_refused_and_left_as_it_is() {
    let story = Story::begin("push-bad-6");
    let lab = &story.lab;
    let session = story.authorised(0, 7000);
    lab.stop().unwrap();
    let file = lab.folder().join("state/push.redb");
    let good = fs::read(&file).unwrap();
    let mut garbage = good.clone();
    garbage[..4096].fill(0xA5);
    let mut flipped = good.clone();
    for byte in flipped.iter_mut().skip(4096) {
        *byte ^= 0xFF;
    }
    for (name, content) in [
        ("garbage", garbage),
        ("cut", good[..good.len() / 2].to_vec()),
        ("empty", vec![]),
        ("flipped", flipped),
    ] {
        fs::write(&file, &content).unwrap();
        let said = refusal(run(lab), lab);
        assert!(said.contains("push.redb"), "{name}: {said}");
        assert_eq!(
            fs::read(&file).unwrap(),
            content,
            "{name}: the file was changed"
        );
    }
    fs::write(&file, good).unwrap();
    lab.start().unwrap();
    let shown = lab
        .push_ctl_json(&["session", "show", &session.id.to_string()])
        .unwrap();
    assert_eq!(shown["state"], "authorised");
}

#[test]
fn a_folder_that_is_no_bpffs_is_refused() {
    let lab = lab("push-bad-7");
    let text = fs::read_to_string(lab.config_path()).unwrap();
    let elsewhere = format!("pin_dir = {:?}", lab.folder().join("state/pins"));
    fs::write(lab.config_path(), regex_line(&text, "pin_dir", &elsewhere)).unwrap();
    let said = refusal(run(&lab), &lab);
    assert!(
        said.contains("not on a bpffs") && said.contains("mount -t bpf"),
        "{said}"
    );
}

#[test]
fn a_client_that_does_not_finish_its_request_is_dropped() {
    let story = Story::begin("push-bad-8");
    let connect = || std::net::TcpStream::connect("198.51.100.1:8443").unwrap();
    let idle: Vec<_> = story
        .lab
        .run_in(Party::Application, || (0..50).map(|_| connect()).collect())
        .unwrap();
    // Others are served meanwhile.
    story.authorised(0, 7000);
    for connection in &idle {
        connection
            .set_read_timeout(Some(Duration::from_secs(60)))
            .unwrap();
    }
    let mut byte = [0];
    for mut connection in idle {
        let read = std::io::Read::read(&mut connection, &mut byte);
        let is_closed = match &read {
            Ok(length) => *length == 0,
            Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
        };
        assert!(is_closed, "{read:?}");
    }
}
