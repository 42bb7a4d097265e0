//! The operator's command line against a running daemon: for people, for programs, and when it fails.

use crate::story::{APP, PUSH_CTL, Story, outside, socket_address, wait_until};
use push_common::verdict::Verdict;
use push_common::wire::TriggerHeader;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;
use xtask::lab::{DEVICE, Lab, Party};

fn run(lab: &Lab, arguments: &[&str]) -> Output {
    xtask::child::finish(&mut lab.push_ctl(arguments)).unwrap()
}

fn people(lab: &Lab, arguments: &[&str]) -> String {
    let output = run(lab, arguments);
    assert!(
        output.status.success(),
        "{arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(
        output.stderr.is_empty(),
        "{arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// Runs without a daemon.
fn alone(arguments: &[&str]) -> Output {
    let mut command = Command::new(PUSH_CTL);
    command
        .args(arguments)
        .env_remove("PUSH_SOCKET")
        .env_remove("PUSH_CONFIG");
    xtask::child::finish(&mut command).unwrap()
}

fn keys(value: &Value) -> BTreeSet<&str> {
    value
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect()
}

fn assert_has(value: &Value, expected: &[&str]) {
    let missing: Vec<_> = expected
        .iter()
        .filter(|key| !keys(value).contains(**key))
        .collect();
    assert!(missing.is_empty(), "{missing:?} not in {value}");
}

#[test]
fn the_operators_day() {
    let story = Story::begin("push-cli-1");
    let lab = &story.lab;
    let registration = story.registered(0);
    let requested = story.requested(0, &registration, "asked", 7000);
    let session = story.requested(0, &registration, "used", 7001);
    story
        .clients()
        .authorise(&outside(0), &story.app_key, &session)
        .unwrap();

    // For programs: stable keys, units in their names.
    let status = lab.push_ctl_json(&["status"]).unwrap();
    assert_has(
        &status,
        &[
            "version",
            "layout_version",
            "pid",
            "uptime_s",
            "config",
            "store",
            "sessions",
            "nics",
            "internal",
            "realms",
            "external",
            "warnings",
        ],
    );
    assert_eq!(
        status["sessions"],
        json!({ "requested": 1, "authorised": 1, "slots": status["sessions"]["slots"] })
    );
    assert_eq!(status["warnings"], json!([]));
    assert_eq!(status["pid"], lab.pid().unwrap());
    for nic in status["nics"].as_array().unwrap() {
        assert_has(
            nic,
            &[
                "name",
                "index",
                "role",
                "mode",
                "program_id",
                "link_id",
                "adopted",
            ],
        );
    }
    let apps = lab.push_ctl_json(&["app", "list"]).unwrap();
    assert_eq!(
        (&apps[0]["name"], &apps[0]["sessions"]),
        (&json!(APP), &json!(2))
    );
    let terminals = lab.push_ctl_json(&["terminal", "list"]).unwrap();
    assert_has(
        &terminals[0],
        &[
            "id",
            "endpoint",
            "address",
            "realm",
            "state",
            "expires_in_s",
            "sessions",
        ],
    );
    assert_eq!(
        lab.push_ctl_json(&["terminal", "show", &registration])
            .unwrap()["id"],
        json!(registration)
    );
    let shown = lab
        .push_ctl_json(&["session", "show", &session.id])
        .unwrap();
    assert_has(
        &shown,
        &[
            "id",
            "terminal",
            "app",
            "instance",
            "device",
            "state",
            "token_generation",
            "expires_in_s",
            "packets",
            "bytes",
            "last_delivered_ago_s",
            "refused",
            "acknowledged",
            "round_trip_ms",
            "realm",
            "tunnel",
            "next_hop",
        ],
    );
    let stats = lab.push_ctl_json(&["stats"]).unwrap();
    assert_eq!(stats["events_lost"], 0);
    for nic in stats["nics"].as_array().unwrap() {
        let verdicts = nic["verdicts"].as_array().unwrap();
        assert_eq!(verdicts.len(), Verdict::ALL.len());
        for (verdict, shown) in Verdict::ALL.iter().zip(verdicts) {
            assert_eq!(shown["verdict"], verdict.label());
            assert_eq!(shown["action"], verdict.action().label());
            assert_eq!(shown["meaning"], verdict.meaning());
        }
        assert_has(
            &nic["round_trips"][0],
            &["from_us", "below_us", "acknowledgements"],
        );
    }

    // For people: what they look for is there.
    let rows: [(&[&str], &[&str]); 10] = [
        (
            &["status"],
            &["gw-app", "gw-dev", "native", "1 authorised, 1 requested"],
        ),
        (&["app", "list"], &[APP, "open"]),
        (&["app", "show", APP], &[APP, "not limited", "any"]),
        (&["realm", "list"], &["No realms"]),
        (
            &["terminal", "list"],
            &[&registration, "phone-0", DEVICE[0]],
        ),
        (
            &["terminal", "show", &registration],
            &["phone-0", DEVICE[0]],
        ),
        (
            &["session", "list"],
            &[
                &session.id,
                &requested.id,
                "authorised",
                "requested",
                "10.64.0.2:7001",
            ],
        ),
        (
            &["session", "show", &session.id],
            &[&registration, "used", "authorised"],
        ),
        (&["stats", "--all"], &["gw-app", "bad_tag", "forged"]),
        (&["completions", "bash"], &["complete", "push-ctl"]),
    ];
    for (arguments, expected) in rows {
        let text = people(lab, arguments);
        for word in expected {
            assert!(
                text.contains(word),
                "{arguments:?} doesn't say {word:?}:\n{text}"
            );
        }
    }

    // A trigger, by IPv4, and what becomes of it after the session is revoked.
    let device = lab
        .udp_socket(Party::Device, socket_address(DEVICE[0], 7001))
        .unwrap();
    device
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    let gateway = format!("{}:5050", outside(0));
    let mut send = story
        .clients()
        .send_trigger(Path::new(PUSH_CTL), &gateway, &session, "hello");
    let sent: Value = serde_json::from_str(&xtask::child::output(send.arg("-j")).unwrap()).unwrap();
    assert_eq!(
        keys(&sent),
        BTreeSet::from(["session_id", "sequence", "bytes", "to"])
    );
    let mut datagram = [0; 2048];
    let length = device.recv(&mut datagram).unwrap();
    let (header, payload) = TriggerHeader::parse(&datagram[..length]).unwrap();
    assert_eq!(
        (header.sequence.get(), payload),
        (sent["sequence"].as_u64().unwrap(), &b"hello"[..])
    );
    assert_eq!(
        lab.push_ctl_json(&["session", "show", &session.id])
            .unwrap()["packets"],
        1
    );

    let revoked = lab
        .push_ctl_json(&["session", "revoke", &session.id])
        .unwrap();
    assert_eq!(
        (&revoked["id"], &revoked["revoked"]),
        (&json!(session.id), &json!(true))
    );
    let unknown = |lab: &Lab| {
        let stats = lab.push_ctl_json(&["stats"]).unwrap();
        stats["nics"][0]["verdicts"][Verdict::UnknownSession as usize]["packets"]
            .as_u64()
            .unwrap()
    };
    let before = unknown(lab);
    xtask::child::output(&mut send).unwrap();
    let begin = std::time::Instant::now();
    while unknown(lab) == before {
        assert!(
            begin.elapsed() < Duration::from_secs(20),
            "the trigger for the revoked session wasn't counted"
        );
    }
    assert_eq!(
        lab.push_ctl_json(&["session", "list", "--all"])
            .unwrap()
            .as_array()
            .unwrap()
            .len(),
        2
    );

    // What the application may do is said rule by rule.
    people(lab, &["app", "set", APP, "--rate", "6/m", "--dscp", "46"]);
    let set = [
        "app",
        "set",
        APP,
        "--rate",
        "off",
        "--source",
        "192.0.2.0/24",
    ];
    let app = lab.push_ctl_json(&set).unwrap();
    assert_eq!(
        app["policy"],
        json!({
            "rate": null, "sources": ["192.0.2.0/24"], "max_payload_bytes": null, "dscp": 46,
            "coalescing_window_ms": null, "return_acks": false,
        })
    );
    assert_eq!(lab.push_ctl_json(&["app", "show", APP]).unwrap(), app);

    // A filter that lets nothing through isn't a gateway without sessions.
    assert_eq!(
        people(lab, &["session", "list", "--app", "nonesuch"]),
        "No such sessions; --all looks at those that are over, too.\n"
    );
    assert_eq!(
        people(lab, &["terminal", "list", "--endpoint", "nonesuch"]),
        "No such terminals.\n"
    );

    // Removing the application ends its sessions.
    people(lab, &["app", "remove", APP]);
    assert_eq!(lab.push_ctl_json(&["session", "list"]).unwrap(), json!([]));
    let audit = lab.folder().join("state/audit.log");
    for action in ["app add", "app set", "session revoke", "app remove"] {
        wait_until("an audit line of what was done", || {
            let log = fs::read_to_string(&audit).unwrap();
            let action = format!("\"action\":\"{action}\"");
            log.lines()
                .any(|line| line.contains(&action) && line.contains("\"uid\":0"))
        });
    }
}

#[test]
fn a_failure_says_what_to_do_and_sets_the_exit_code() {
    let story = Story::begin("push-cli-2");
    let lab = &story.lab;
    let registration = story.registered(0);
    let session = story.requested(0, &registration, "asked", 7000);
    let rows: [(&[&str], i32, &str); 23] = [
        (&["session", "show", "1234567800000001"], 1, "session list"),
        // Which one it is, for who goes through many.
        (
            &["session", "rotate", "1234567800000001"],
            1,
            "no session has this identifier: 1234567800000001",
        ),
        (
            &["terminal", "resume", "1234567800000001"],
            1,
            "no terminal has this registration id or endpoint name: 1234567800000001",
        ),
        (
            &["app", "key", "list", "nonesuch"],
            1,
            "no application has this name: nonesuch",
        ),
        (
            &["app", "key", "remove", APP, "1234567800000001"],
            1,
            "no such key or certificate: 1234567800000001",
        ),
        // It would end at once.
        (
            &["session", "rotate", &session.id, "--within", "0s"],
            2,
            "1s is the shortest",
        ),
        (
            &["app", "set", APP, "--dscp", "64"],
            2,
            "from 0 to 63, or off",
        ),
        (
            &["app", "set", APP, "--max-payload", "1201"],
            2,
            "from 0 to 1200, or off",
        ),
        (
            &["app", "quota", APP, "--sessions", "many"],
            2,
            "write for example 100 or off",
        ),
        (
            &["terminal", "list", "--address", "nonsense"],
            2,
            "neither an address nor a prefix",
        ),
        (
            &["app", "monitor", APP, "--inactive-after", "2y"],
            2,
            "is not between 1s and 1y",
        ),
        (
            &["trace", "session", &session.id, "--pcap", "/nonexistent/x"],
            1,
            "can't write /nonexistent/x: No such file or directory\n",
        ),
        (
            &["session", "revoke", "1234567800000001"],
            1,
            "session list",
        ),
        (
            &["terminal", "show", "1234567800000001"],
            1,
            "terminal list",
        ),
        (&["app", "remove", "nonesuch"], 1, "app list"),
        (&["app", "add", APP], 1, "app list"),
        (&["app", "add", "no spaces"], 2, "1 to 64"),
        (&["app", "show", "nonesuch"], 1, "app list"),
        (
            &["app", "set", APP, "--burst", "3"],
            2,
            "rate: a burst belongs to one",
        ),
        (&["app", "set", APP], 2, "--rate"),
        (
            &["session", "tunnel", "clear", "1234567800000001"],
            1,
            "session list",
        ),
        (&["session", "show", "xyz"], 2, "16 hexadecimal digits"),
        (&["frobnicate"], 2, "--help"),
    ];
    for (arguments, code, hint) in rows {
        let output = run(lab, arguments);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
        assert!(said.contains(hint), "{arguments:?}: {said}");
        assert!(output.stdout.is_empty());

        let with_json: Vec<&str> = arguments.iter().copied().chain(["-j"]).collect();
        let output = run(lab, &with_json);
        assert_eq!(output.status.code(), Some(code));
        let problem: Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|_| panic!("{arguments:?}: no JSON"));
        assert!(problem["error"].is_string(), "{problem}");
    }
}

#[test]
fn options_of_all_commands_are_apart_from_those_of_one() {
    let help = alone(&["app", "set", "--help"]).stdout;
    let help = String::from_utf8(help).unwrap();
    let (own, of_all) = help.split_once("\nOptions of all commands:\n").unwrap();
    for option in ["--rate", "--source", "--return-acks"] {
        assert!(own.contains(option) && !of_all.contains(option), "{help}");
    }
    for option in ["--json", "--socket"] {
        assert!(of_all.contains(option), "{help}");
    }
}

#[test]
fn without_a_daemon_it_says_how_to_start_one() {
    let output = alone(&["--socket", "/nonexistent/admin.sock", "status"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        said.contains("/nonexistent/admin.sock") && said.contains("push-ctl run"),
        "{said}"
    );
}

#[test]
fn the_example_configuration_is_right_and_explains_every_key() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("push.toml");
    let example = alone(&["config", "example"]).stdout;
    fs::write(&file, &example).unwrap();
    let file = file.to_str().unwrap();
    let checked = alone(&["config", "check", "-c", file]);
    assert!(
        checked.status.success(),
        "{}",
        String::from_utf8_lossy(&checked.stderr)
    );
    let example = String::from_utf8(example).unwrap();
    for key in [
        "state_dir",
        "pin_dir",
        "admin_socket",
        "slots",
        "default_lifetime",
        "max_lifetime",
        "port",
        "keep_source",
        "allow_generic",
        "require_perfmon",
        "idle_after",
        "log_level",
        "interface",
        "next_hop",
        "local",
        "name",
        "role",
        "trigger_addresses",
        "listen",
        "certificate",
        "private_key",
    ] {
        assert!(
            example.contains(&format!("{key} =")),
            "{key} is not in the example"
        );
    }
}

#[test]
fn a_token_comes_from_a_file_or_standard_input_and_never_by_argument() {
    let receiver = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    receiver
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    let to = receiver.local_addr().unwrap().to_string();
    let token = "ptk_00112233445566778899aabbccddeeff";
    let send = [
        "trigger",
        "send",
        "--to",
        &to,
        "--session",
        "deadbeef00001234",
        "--sequence",
        "5",
        "--payload",
        "x",
    ];
    let mut child = Command::new(PUSH_CTL)
        .args(send)
        .args(["--token-file", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(token.as_bytes())
        .unwrap();
    assert!(child.wait().unwrap().success());
    let mut datagram = [0; 100];
    let length = receiver.recv(&mut datagram).unwrap();
    let (header, payload) = TriggerHeader::parse(&datagram[..length]).unwrap();
    let key = token.parse::<push_common::token::Token>().unwrap().key();
    assert_eq!(
        (header.sequence.get(), header.verify(key, payload)),
        (5, Ok(()))
    );

    let by_argument: Vec<&str> = send.into_iter().chain(["--token", token]).collect();
    assert_eq!(alone(&by_argument).status.code(), Some(2));

    let folder = tempfile::tempdir().unwrap();
    let bad = folder.path().join("bad");
    fs::write(&bad, format!("{token}0")).unwrap();
    let with_bad: Vec<&str> = send
        .into_iter()
        .chain(["--token-file", bad.to_str().unwrap()])
        .collect();
    let output = alone(&with_bad);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        said.contains("ptk_") && !said.contains("00112233"),
        "{said}"
    );
}

#[test]
fn bash_completes_commands_options_and_their_values() {
    let cases = [
        ("push-ctl ses", "session"),
        ("push-ctl session ro", "rotate"),
        ("push-ctl app key rem", "remove"),
        ("push-ctl nic attach --ro", "--role"),
        ("push-ctl terminal list --state sus", "suspended"),
    ];
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("push-ctl");
    fs::write(&file, alone(&["completions", "bash"]).stdout).unwrap();
    // What readline does with the function that is registered for the program.
    let script = r#"source "$1"; shift
        registered=$(complete -p push-ctl)
        function=${registered#*-F }
        COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
        "${function%% *}" push-ctl "${@: -1}" "${@: -2:1}"
        echo "${COMPREPLY[*]}""#;
    for (line, expected) in cases {
        let mut bash = Command::new("bash");
        bash.args(["-c", script, "bash"]).arg(&file);
        bash.args(line.split(' '));
        let output = xtask::child::finish(&mut bash).unwrap();
        let words = String::from_utf8(output.stdout).unwrap();
        assert_eq!(words.trim(), expected, "{line}");
    }
}

#[test]
fn a_reader_that_goes_away_is_no_reason_to_panic() {
    let script = format!("'{PUSH_CTL}' completions bash | head -n 1; exit ${{PIPESTATUS[0]}}");
    let output = Command::new("bash").args(["-c", &script]).output().unwrap();
    assert!(
        output.stderr.is_empty(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
