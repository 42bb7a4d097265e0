//! `push-ctl trace`: what would become of a trigger, and what becomes of those that come.

use crate::story::{APP, Story, socket_address};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader};
use std::net::UdpSocket;
use std::process::{Child, Stdio};
use std::time::Duration;
use xtask::child;
use xtask::clients::Granted;
use xtask::lab::{APPLICATION, DEVICE, GATEWAY_OUTSIDE, Lab, Party};

const LIMIT: Duration = Duration::from_secs(20);

fn trace(lab: &Lab, id: &str) -> Value {
    lab.push_ctl_json(&["trace", "session", id]).unwrap()
}

/// The steps that are not right.
fn wrong(trace: &Value) -> Vec<&str> {
    let steps = trace["steps"].as_array().unwrap().iter();
    steps
        .filter(|step| step["ok"] == false)
        .map(|step| {
            assert!(step["fix"].is_string(), "{step}");
            step["step"].as_str().unwrap()
        })
        .collect()
}

fn what<'a>(trace: &'a Value, name: &str) -> &'a str {
    let mut steps = trace["steps"].as_array().unwrap().iter();
    let step = steps.find(|step| step["step"] == name);
    step.unwrap_or_else(|| panic!("no {name} in {trace}"))["what"]
        .as_str()
        .unwrap()
}

fn verdict(trace: &Value) -> &str {
    let verdict = trace["verdicts"][0]["verdict"].as_str();
    verdict.unwrap_or_else(|| panic!("no verdict in {trace}"))
}

fn server(lab: &Lab) -> UdpSocket {
    let socket = lab
        .udp_socket(Party::Application, socket_address(APPLICATION[0], 0))
        .unwrap();
    socket
        .connect(socket_address(GATEWAY_OUTSIDE[0], 5050))
        .unwrap();
    socket
}

fn device(lab: &Lab) -> UdpSocket {
    let socket = lab
        .udp_socket(Party::Device, socket_address(DEVICE[0], 7000))
        .unwrap();
    socket.set_read_timeout(Some(LIMIT)).unwrap();
    socket
}

/// A trigger that is delivered.
fn deliver(lab: &Lab, session: &Granted, sequence: u64) {
    let device = device(lab);
    let mut trigger = vec![0; 48];
    session.traffic.trigger(sequence, &mut trigger);
    server(lab).send(&trigger).unwrap();
    assert_eq!(device.recv(&mut [0; 2048]).unwrap(), 48);
}

#[test]
fn each_step_says_what_is_wrong_and_how_to_mend_it() {
    let story = Story::begin("push-trace");
    let lab = &story.lab;
    let registration = story.registered(0);
    let session = story.requested(0, &registration, "one", 7000);
    let id = &*session.id;

    let asked = trace(lab, id);
    assert_eq!(wrong(&asked), ["authorised", "session_table"]);
    assert_eq!(verdict(&asked), "unknown_session");
    story
        .clients()
        .authorise(&crate::story::outside(0), &story.app_key, &session)
        .unwrap();
    deliver(lab, &session, 1);

    let right = trace(lab, id);
    assert_eq!(wrong(&right), [] as [&str; 0], "{right}");
    assert_eq!(verdict(&right), "redirected");
    assert_eq!(right["verdicts"][0]["nic"], "gw-app");
    let words = [
        ("registered", "phone-0"),
        ("session_table", "for 10.64.0.2:7000"),
        ("lifetime", "it expires in "),
        ("sequence", "no sequence number above 127"),
        ("token", "token generation 0"),
        ("policy", "everything is permitted"),
        (
            "rate",
            "a trigger may come now; the last delivery was less than a second ago",
        ),
        ("next_hop", "by gw-dev from "),
        ("next_hop", "the device sees 10.64.0.1:5683"),
        ("mtu", "1500 bytes; a trigger without payload has 68"),
        (
            "nic",
            "gw-app takes triggers to 198.51.100.1 and 2001:db8:51::1, port 5050, in native mode",
        ),
    ];
    for (step, words) in words {
        assert!(what(&right, step).contains(words), "{words} not in {right}");
    }

    // What it says is what happens, and to ask has no effect on the session.
    for sequence in 2..5 {
        assert_eq!(verdict(&trace(lab, id)), "redirected");
        deliver(lab, &session, sequence);
    }
    let shown = lab.push_ctl_json(&["session", "show", id]).unwrap();
    assert_eq!(
        (&shown["packets"], &shown["refused"]),
        (&json!(4), &json!(0))
    );

    let app = |rules: &[&str]| {
        let arguments = [&["app", "set", APP], rules].concat();
        lab.push_ctl_json(&arguments).unwrap();
    };
    app(&[
        "--rate",
        "1/h",
        "--source",
        "198.51.100.0/24",
        "--max-payload",
        "100",
    ]);
    deliver(lab, &session, 5);
    let limited = trace(lab, id);
    assert_eq!(wrong(&limited), ["rate"]);
    assert_eq!(verdict(&limited), "rate_exceeded");
    let rules =
        "one trigger in 1h, 1 at once, only from 198.51.100.0/24, payloads of up to 100 bytes";
    assert!(what(&limited, "policy").contains(rules), "{limited}");
    app(&["--rate", "off"]);

    let shell = |line: &str| story.shell(Party::Gateway, line);
    let until = |expected: &str| {
        let begin = std::time::Instant::now();
        loop {
            let traced = trace(lab, id);
            if verdict(&traced) == expected {
                return traced;
            }
            assert!(begin.elapsed() < LIMIT, "never {expected}: {traced}");
        }
    };
    shell("ip route add 10.64.0.2 dev gw-dev mtu lock 60");
    let small = until("too_big");
    assert_eq!(wrong(&small), ["mtu"]);
    shell("ip route del 10.64.0.2 dev gw-dev");
    until("redirected");
    shell("ip link set gw-dev down");
    let cut = until("no_route");
    assert_eq!(wrong(&cut), ["next_hop"]);
    shell("ip link set gw-dev up");

    lab.push_ctl_json(&["nic", "detach", "gw-app"]).unwrap();
    let detached = trace(lab, id);
    assert!(wrong(&detached).contains(&"nic"), "{detached}");
    assert_eq!(detached["verdicts"], json!([]));

    lab.push_ctl_json(&["session", "revoke", id]).unwrap();
    let over = trace(lab, id);
    assert!(
        what(&over, "authorised").contains("over: revoked"),
        "{over}"
    );
    let text = child::output(&mut lab.push_ctl(&["trace", "session", id])).unwrap();
    assert!(
        text.contains("NO  authorised") && text.contains("-> the app has to ask"),
        "{text}"
    );
    let unknown =
        child::finish(&mut lab.push_ctl(&["trace", "session", "dead00000000beef"])).unwrap();
    let error = String::from_utf8(unknown.stderr).unwrap();
    assert!(error.contains("`push-ctl session list`"), "{error}");
}

/// A command that is still running, with the lines of its output.
struct Running {
    child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Running {
    fn start(lab: &Lab, arguments: &[&str]) -> Self {
        let mut command = lab.push_ctl(arguments);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    fn line(&mut self) -> String {
        self.lines.next().expect("a line").unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn packets_are_written_with_their_verdicts_and_tshark_shows_them() {
    let story = Story::begin("push-trace-2");
    let lab = &story.lab;
    let session = story.requested(0, &story.registered(0), "one", 7000);
    story
        .clients()
        .authorise(&crate::story::outside(0), &story.app_key, &session)
        .unwrap();
    let id = &*session.id;
    let file = lab.folder().join("trace.pcapng");
    let path = file.to_str().unwrap();
    let arguments = [
        "-j", "trace", "session", id, "--count", "4", "--for", "5m", "--pcap", path,
    ];
    let mut running = Running::start(lab, &arguments);
    let report: Value = serde_json::from_str(&running.line()).unwrap();
    assert_eq!(verdict(&report), "redirected");

    // One at a time.
    let second =
        child::finish(&mut lab.push_ctl(&["trace", "session", id, "--count", "1"])).unwrap();
    let error = String::from_utf8(second.stderr).unwrap();
    assert!(error.contains("another session is being traced"), "{error}");

    deliver(lab, &session, 7);
    let server = server(lab);
    let mut trigger = vec![0; 1240];
    session.traffic.trigger(7, &mut trigger);
    server.send(&trigger).unwrap();
    session.traffic.trigger(8, &mut trigger);
    trigger[100] ^= 1;
    server.send(&trigger).unwrap();
    deliver(lab, &session, 9);
    let verdicts: Vec<Value> = (0..4)
        .map(|_| serde_json::from_str::<Value>(&running.line()).unwrap()["packet"].take())
        .collect();
    let labels: Vec<_> = verdicts
        .iter()
        .map(|packet| packet["verdict"].as_str().unwrap())
        .collect();
    assert_eq!(labels, ["redirected", "replayed", "bad_tag", "redirected"]);
    assert!(verdicts.iter().all(|packet| packet["nic"] == "gw-app"));
    assert!(
        running.child.wait().unwrap().success(),
        "after four it ends"
    );

    let mut tshark = child::command("tshark");
    tshark
        .arg("-r")
        .arg(&file)
        .args(["-T", "fields", "-E", "separator=|"]);
    for field in [
        "frame.comment",
        "frame.interface_name",
        "frame.len",
        "ip.dst",
        "udp.dstport",
        "ip.ttl",
    ] {
        tshark.args(["-e", field]);
    }
    let text = child::output(&mut tshark).unwrap();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 4, "{text}");
    let expected = [
        (
            "redirected (redirect): Delivered",
            "|gw-app|90|10.64.0.2|7000|63",
        ),
        (
            "replayed (drop): This sequence number",
            "|gw-app|1282|198.51.100.1|5050|64",
        ),
        (
            "bad_tag (drop): The tag is wrong",
            "|gw-app|1282|198.51.100.1|5050|64",
        ),
        (
            "redirected (redirect): Delivered",
            "|gw-app|90|10.64.0.2|7000|63",
        ),
    ];
    for (line, (begin, end)) in lines.iter().zip(expected) {
        assert!(line.starts_with(begin) && line.ends_with(end), "{line}");
    }

    // The next one may look as soon as this one doesn't any more; nothing comes for it.
    let text = loop {
        let output =
            child::finish(&mut lab.push_ctl(&["trace", "session", id, "--for", "100ms"])).unwrap();
        if output.status.success() {
            break String::from_utf8(output.stdout).unwrap();
        }
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(error.contains("another session is being traced"), "{error}");
    };
    assert!(
        text.contains("A valid trigger to gw-app now: redirected."),
        "{text}"
    );
    assert!(text.ends_with("0 packets named the session.\n"), "{text}");
}
