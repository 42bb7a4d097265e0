//! What those who integrate are given: emulated devices, by one and by the thousand.

use crate::story::{APP, PUSH_CTL, Story, socket_address};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use xtask::bench::control;
use xtask::clients::Granted;
use xtask::emulated::Emulated;
use xtask::lab::{DEVICE, GATEWAY_INSIDE, GATEWAY_OUTSIDE, Party};
use xtask::{child, workspace};

/// Devices of the story's, by IPv4 (0) or IPv6 (1).
fn emulated(story: &Story, family: usize, options: &[&str]) -> Emulated {
    let gateway = socket_address(GATEWAY_INSIDE[family], 5683);
    let push_ctl = Path::new(PUSH_CTL);
    Emulated::begin(&story.lab, push_ctl, (gateway, APP), options, &|_| {}).unwrap()
}

/// The session of a device; its token is in a file that only its owner can read.
fn session(device: &mut Emulated, story: &Story) -> Granted {
    let session = device.session(&story.clients()).unwrap();
    let mode = fs::metadata(device.tokens()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    session
}

/// Ctrl-C; what it says then, and whether it went well.
fn interrupt(mut device: Emulated) -> (Value, bool) {
    let (summary, succeeded) = device.interrupt().unwrap();
    let secrets = fs::read_to_string(device.tokens()).unwrap();
    assert!(!device.said().contains("ptk_") && secrets.contains("ptk_"));
    (summary, succeeded)
}

fn run(command: &mut Command) -> (Value, bool) {
    let output = child::finish(command).unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let last = text.lines().last().unwrap_or_default();
    let said = serde_json::from_str(last).unwrap_or_else(|_| panic!("{}", child::said(&output)));
    (said, output.status.success())
}

#[test]
fn an_emulated_device_does_all_that_a_push_client_has_to() {
    let story = Story::begin("push-emul");
    let lab = &story.lab;
    child::output(&mut lab.push_ctl(&["app", "set", APP, "--return-acks"])).unwrap();
    for family in [0, 1] {
        let mut device = emulated(&story, family, &["--lifetime", "4s"]);
        let registered = device.wait_for("registered").unwrap();
        assert_eq!(registered["address"], DEVICE[family]);
        assert_eq!(registered["lifetime_s"], 4);
        let session = session(&mut device, &story);
        let clients = story.clients();
        clients
            .authorise(&crate::story::outside(family), &story.app_key, &session)
            .unwrap();
        let to = socket_address(GATEWAY_OUTSIDE[family], 5050).to_string();
        let mut send = clients.send_trigger(Path::new(PUSH_CTL), &to, &session, "wake up");
        child::output(send.args(["--wait-ack", "10s"])).unwrap();
        let trigger = device.wait_for("trigger").unwrap();
        assert_eq!(trigger["payload_hex"], hex::encode("wake up"));
        assert_eq!(trigger["acknowledged"], true);
        // Its registration would be over without.
        for _ in 0..2 {
            device.wait_for("refreshed").unwrap();
        }
        child::output(&mut lab.push_ctl(&["session", "revoke", &session.id])).unwrap();
        assert_eq!(device.wait_for("torn_down").unwrap()["cause"], "revoked");
        let id = registered["registration"].as_str().unwrap();
        let shown = lab.push_ctl_json(&["terminal", "show", id]).unwrap();
        assert_eq!(shown["state"], "first_operative");

        let (summary, succeeded) = interrupt(device);
        assert!(succeeded, "{summary}");
        let triggers = json!({
            "received": 1, "verified": 1, "acknowledged": 1, "replayed": 0, "bad": 0,
        });
        assert_eq!(
            (&summary["triggers"], &summary["lost"]),
            (&triggers, &json!(0))
        );
        let shown = lab.push_ctl_json(&["terminal", "show", id]).unwrap();
        assert_eq!(
            (&shown["state"], &shown["cause"]),
            (&json!("second_operative"), &json!("deregistered"))
        );
    }
}

#[test]
fn what_an_emulated_device_cannot_have_is_said() {
    let story = Story::begin("push-emul-2");
    let gateway = socket_address(GATEWAY_INSIDE[0], 5683).to_string();
    let device = |options: &[&str]| {
        let mut command = story.lab.exec_in(Party::Device, PUSH_CTL);
        command.args([
            "-j",
            "emulate",
            "device",
            "--gateway",
            &gateway,
            "--for",
            "0s",
        ]);
        run(command.args(options))
    };
    let cases: [(&[&str], &str, &str); 4] = [
        (
            &["--from", "10.128.0.0/15"],
            "can't be at 10.128.0.1",
            "ip route add local 10.128.0.0/15 dev lo",
        ),
        (&["--count", "2"], "address of its own", "--from"),
        (
            &["--count", "3", "--from", "10.64.0.2/32"],
            "10.64.0.2/32 has 1 address",
            "shorter prefix",
        ),
        (
            &["--app", "nobody"],
            "not ready: 1 of 1 device; unanswered: 0 requests",
            "a refusal says why",
        ),
    ];
    for (options, error, hint) in cases {
        let (said, succeeded) = device(options);
        let holds = |key: &str, part| said[key].as_str().is_some_and(|text| text.contains(part));
        assert!(
            !succeeded && holds("error", error) && holds("hint", hint),
            "{options:?}: {said}"
        );
    }
}

/// Each of these says "ok" if the Python sender agrees with the vectors for senders.
const AGAINST_THE_VECTORS: &str = "
import json, sender, sys
for vector in json.load(open(sys.argv[1]))['valid']:
    key = sender.tag_key(vector['token'])
    rest = [vector[name] for name in ('flags', 'token_generation', 'session_id', 'sequence')]
    made = sender.signed(key, *rest, bytes.fromhex(vector['payload'])).hex()
    print('ok' if made == vector['datagram'] else vector['name'])
";

#[test]
fn the_sender_in_python_of_the_guide_delivers() {
    let story = Story::begin("push-python");
    let lab = &story.lab;
    let guide = lab.push_ctl(&["guide", "sender"]);
    let sender = lab.folder().join("sender.py");
    fs::write(&sender, child::output(&mut { guide }).unwrap()).unwrap();
    let mut check = child::command("python3");
    check.args(["-B", "-c", AGAINST_THE_VECTORS]);
    check.arg(workspace::root().join("push-common/trigger-vectors.json"));
    let agreed = child::output(check.current_dir(lab.folder())).unwrap();
    assert!(
        agreed.lines().count() > 5 && agreed.lines().all(|line| line == "ok"),
        "{agreed}"
    );

    child::output(&mut lab.push_ctl(&["app", "set", APP, "--return-acks"])).unwrap();
    let mut device = emulated(&story, 0, &[]);
    let session = session(&mut device, &story);
    let key = fs::read_to_string(&story.app_key).unwrap();
    let key = key.strip_prefix("Authorization: Bearer ").unwrap();
    let mut command = lab.exec_in(Party::Application, "python3");
    command
        .arg(&sender)
        .arg(format!("https://{}:8443", GATEWAY_OUTSIDE[0]))
        .args([&*session.id, "storm \u{2602}"])
        .arg(lab.certificate_path())
        .env("APP_KEY", key.trim())
        .env("TOKEN", fs::read_to_string(&session.token_file).unwrap());
    assert_eq!(child::output(&mut command).unwrap(), "delivered\n");
    let trigger = device.wait_for("trigger").unwrap();
    assert_eq!(trigger["payload_hex"], hex::encode("storm \u{2602}"));
    assert_eq!(trigger["acknowledged"], true);
    let (summary, succeeded) = interrupt(device);
    assert!(succeeded, "{summary}");
}

#[test]
fn two_thousand_devices_register_and_refresh_and_none_is_lost() {
    const DEVICES: u32 = 2_000;
    let lab = control::lab_for("push-many", Path::new(PUSH_CTL), DEVICES).unwrap();
    let summary = control::measure(&lab, Path::new(PUSH_CTL), DEVICES).unwrap();
    println!("{summary}");
    let terminals = lab
        .push_ctl_json(&["terminal", "list", "--limit", "5000"])
        .unwrap();
    let first = terminals.as_array().unwrap().iter();
    let first = first.filter(|terminal| terminal["state"] == "first_operative");
    assert_eq!(first.count(), 2_000);
}

/// `push-ctl probe` in the lab, with the story's application; what it says of each step, and how it ends.
fn probed(story: &Story, options: &[&str]) -> (Vec<(String, String)>, Value, bool) {
    let lab = &story.lab;
    let key = fs::read_to_string(&story.app_key).unwrap();
    let key = key.strip_prefix("Authorization: Bearer ").unwrap();
    let key_file = story.clients().secret_file("probe.key", key).unwrap();
    let mut command = lab.push_ctl(&["-j", "probe", "--count", "5"]);
    command
        .args(["--internal", &format!("{}:5683", GATEWAY_INSIDE[0])])
        .args([
            "--external",
            &format!("https://{}:8443", GATEWAY_OUTSIDE[0]),
        ])
        .args(["--device-netns", &lab.namespace(Party::Device)])
        .args(["--app-netns", &lab.namespace(Party::Application)])
        .args(["--timeout", "2s", "--ca"])
        .arg(lab.certificate_path());
    if !options.contains(&"--key-file") {
        command.arg("--key-file").arg(key_file);
    }
    if !options.contains(&"--app") {
        command.args(["--app", APP]);
    }
    let output = child::finish(command.args(options)).unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(!text.contains("ptk_") && !text.contains("pak_"), "{text}");
    let mut lines: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let end = lines
        .pop()
        .unwrap_or_else(|| panic!("{}", child::said(&output)));
    let word = |line: &Value, key: &str| line[key].as_str().unwrap_or_default().to_owned();
    let steps = lines
        .iter()
        .map(|line| (word(line, "step"), word(line, "outcome")));
    println!("{text}");
    (steps.collect(), end, output.status.success())
}

fn steps(said: &[(&str, &str)]) -> Vec<(String, String)> {
    let owned = |&(step, outcome): &(&str, &str)| (step.to_owned(), outcome.to_owned());
    said.iter().map(owned).collect()
}

const ADMITTED: [(&str, &str); 3] = [("registered", "ok"), ("session", "ok"), ("validated", "ok")];

#[test]
fn a_probe_goes_all_the_way_and_leaves_nothing_behind() {
    let story = Story::begin("push-probe");
    let lab = &story.lab;
    let whole_way = [
        &ADMITTED[..],
        &[
            ("sent", "ok"),
            ("gateway", "ok"),
            ("received", "ok"),
            ("acknowledged", "ok"),
            ("deregistered", "ok"),
        ],
    ]
    .concat();
    // Acknowledgements are counted, and then come back, too.
    for returned in [false, true] {
        if returned {
            child::output(&mut lab.push_ctl(&["app", "set", APP, "--return-acks"])).unwrap();
        }
        let (said, end, succeeded) = probed(&story, &[]);
        assert_eq!((said, succeeded), (steps(&whole_way), true), "{end}");
        assert_eq!(end["triggers"], 5);
        let there = end["to_device_ms"].as_array().unwrap();
        assert_eq!(
            (there.len(), end["round_trip_ms"].is_array()),
            (3, returned)
        );
    }
    for list in ["session", "terminal"] {
        let listed = lab.push_ctl_json(&[list, "list"]).unwrap();
        assert_eq!(listed, json!([]), "{list}");
    }
}

#[test]
fn a_probe_that_fails_says_at_which_step_and_what_to_look_at() {
    let story = Story::begin("push-probe-2");
    let lab = &story.lab;
    let left = ("deregistered", "ok");
    let check = |options: &[&str], then: &[(&str, &str)], error: &str, hint: &str| {
        let (said, end, succeeded) = probed(&story, options);
        let holds = |key: &str, part| end[key].as_str().is_some_and(|text| text.contains(part));
        assert!(
            !succeeded && holds("error", error) && holds("hint", hint),
            "{end}"
        );
        assert_eq!(said, steps(then), "{end}");
    };

    let wrong = format!("pak_{}", "0".repeat(64));
    let wrong = story.clients().secret_file("wrong.key", &wrong).unwrap();
    let refused = [ADMITTED[0], ADMITTED[1], ("validated", "failed"), left];
    let wrong_key = ["--key-file", wrong.to_str().unwrap()];
    check(
        &wrong_key,
        &refused,
        "at \"validated\": 401",
        "push-ctl app list",
    );

    let elsewhere = ["--app", "nobody"];
    let no_session = [ADMITTED[0], ("session", "failed"), left];
    check(
        &elsewhere,
        &no_session,
        "at \"session\": refused: 4.04",
        "push-ctl app list",
    );

    child::output(&mut lab.push_ctl(&["app", "set", APP, "--source", "192.0.2.0/24"])).unwrap();
    let dropped = [
        &ADMITTED[..],
        &[("sent", "ok"), ("gateway", "failed"), left],
    ]
    .concat();
    check(&[], &dropped, "source_refused", "policy of its application");
    child::output(&mut lab.push_ctl(&["app", "set", APP, "--source", "off"])).unwrap();

    // What the gateway itself sends finds its way by a rule of its own; what it forwards goes by the main routes.
    story.shell(
        Party::Gateway,
        "ip rule add iif lo lookup 100; ip route add 10.64.0.0/16 dev gw-dev table 100; \
         ip route add unreachable 10.64.0.2/32",
    );
    check(&[], &dropped, "no_route", "No route leads to the device");
    story.shell(Party::Gateway, "ip route del unreachable 10.64.0.2/32");
}
