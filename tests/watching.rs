//! What an operator, and machines that watch, see of a daemon at work: events, the audit log, rates,
//! the live display, metrics.

use crate::story::{APP, LIMIT, Story, outside, server, wait_until};
use push_common::wire::TRIGGER_HEADER_LEN;
use serde_json::Value;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::num::NonZero;
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{Receiver, channel};
use std::time::Instant;
use xtask::child;
use xtask::lab::Lab;
use xtask::traffic::{Load, Turn};

/// A command that goes on, and what it prints.
struct Live {
    child: Child,
    lines: Receiver<String>,
}

impl Drop for Live {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _status = self.child.wait();
    }
}

impl Live {
    fn start(lab: &Lab, arguments: &[&str]) -> Self {
        let mut command = lab.push_ctl(arguments);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self { child, lines }
    }

    /// Lines up to one that this is true of.
    fn until(&self, what: &str, is_last: impl Fn(&str) -> bool) -> Vec<String> {
        let begin = Instant::now();
        let mut seen = Vec::new();
        loop {
            let left = LIMIT.saturating_sub(begin.elapsed());
            let Ok(line) = self.lines.recv_timeout(left) else {
                panic!("{what}: not within {LIMIT:?}, but {seen:#?}");
            };
            seen.push(line);
            if seen.last().is_some_and(|line| is_last(line)) {
                return seen;
            }
        }
    }
}

fn json(line: &str) -> Value {
    serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))
}

fn has(lines: &[Value], kind: &str, key: &str, value: &str) -> bool {
    lines
        .iter()
        .any(|line| line["kind"] == kind && line[key] == value)
}

#[test]
fn events_are_seen_as_they_happen_and_who_did_what_stays_on_disk() {
    let story = Story::begin("push-watch-1");
    let lab = &story.lab;
    let for_people = Live::start(lab, &["monitor", "--kind", "session_ended"]);
    for_people.until("the head", |line| line.starts_with("TIME"));
    let live = Live::start(lab, &["monitor", "-j"]);
    // It listens once it tells of something.
    wait_until("an event", || {
        child::finish(&mut lab.push_ctl(&["app", "set", APP, "--dscp", "46"])).unwrap();
        live.lines.try_recv().is_ok()
    });

    let registration = story.registered(0);
    let session = story.requested(0, &registration, "one", 7000);
    story
        .clients()
        .authorise(&outside(0), &story.app_key, &session)
        .unwrap();
    child::output(&mut lab.push_ctl(&["session", "revoke", &session.id])).unwrap();
    let refused = child::finish(&mut lab.push_ctl(&["session", "revoke", &session.id])).unwrap();
    assert_eq!(refused.status.code(), Some(1));
    // The session is over: its triggers name none.
    let mut datagram = [0; TRIGGER_HEADER_LEN];
    session.traffic.trigger(1, &mut datagram);
    server(lab, 0).send(&datagram).unwrap();

    let lines = live.until("a trigger that is refused", |line| {
        json(line)["kind"] == "unknown_session"
    });
    assert!(!lines.concat().contains("ptk_") && !lines.concat().contains("pak_"));
    let events: Vec<Value> = lines.iter().map(|line| json(line)).collect();
    for (kind, key, value) in [
        ("terminal_registered", "terminal", registration.as_str()),
        ("session_requested", "app", APP),
        ("session_authorised", "session", &session.id),
        ("operator_action", "object", &session.id),
        ("session_ended", "cause", "revoked"),
        ("unknown_session", "nic", "gw-app"),
    ] {
        assert!(has(&events, kind, key, value), "{kind} in {events:#?}");
    }
    let ended = for_people.until("its end, for people", |line| line.contains(&session.id));
    let ended = ended.concat();
    assert!(
        ended.contains("session_ended") && ended.contains("cause=revoked"),
        "{ended}"
    );

    // On disk, for the daemon's user alone, is the same; also what was refused, and why.
    let path = lab.folder().join("state/audit.log");
    let read = || fs::read_to_string(&path).unwrap();
    wait_until("the audit log", || read().contains("\"session_ended\""));
    let text = read();
    assert!(!text.contains("ptk_") && !text.contains("pak_"), "{text}");
    let audited: Vec<Value> = text.lines().map(json).collect();
    for (kind, key, value) in [
        ("operator_action", "action", "app add"),
        ("session_authorised", "by", "app"),
        ("session_ended", "cause", "revoked"),
        ("operator_action", "cause", "session_ended"),
    ] {
        assert!(has(&audited, kind, key, value), "{kind} in {text}");
    }
    assert!(has(&audited, "session_ended", "by", "operator"), "{text}");
    let by_operator = audited
        .iter()
        .filter(|line| line["kind"] == "operator_action");
    for line in by_operator {
        assert!(line["uid"] == 0 && line["pid"].is_number(), "{line}");
    }
    let mode = fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    // Who has read enough goes, and what streams to it ends well.
    let mut piped = lab.push_ctl(&["monitor"]);
    let mut piped = piped.stdout(Stdio::piped()).spawn().unwrap();
    let mut head = [0; 4];
    piped.stdout.take().unwrap().read_exact(&mut head).unwrap();
    assert_eq!(&head, b"TIME");
    assert!(piped.wait().unwrap().success());
}

#[test]
fn rates_are_printed_drawn_and_scraped() {
    let story = Story::begin("push-watch-2");
    let lab = &story.lab;
    let session = story.authorised(0, 7000);
    let sessions = [session];
    let stop = AtomicBool::new(false);
    let load = Load {
        sessions: &sessions,
        first_sequence: 1000,
        triggers: u64::MAX,
        payload_bytes: 20,
        rate_per_s: Some(200),
        turns: &[Turn::Good],
    };
    let socket = server(lab, 0);
    std::thread::scope(|scope| {
        let sent = scope.spawn(|| load.send(&socket, &stop));
        let looked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            look_at_rates(lab);
            look_at_top(lab, &sessions[0].id.to_string());
            look_at_metrics(lab);
        }));
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        sent.join().unwrap().unwrap();
        if let Err(panic) = looked {
            std::panic::resume_unwind(panic);
        }
    });
}

fn look_at_rates(lab: &Lab) {
    let live = Live::start(lab, &["stats", "--watch=200ms", "-j"]);
    let moving = |line: &str| {
        let rates = json(line);
        let mut nics = rates["nics"].as_array().unwrap().iter();
        nics.any(|nic| nic["name"] == "gw-app" && nic["packets_per_s"].as_f64().unwrap() > 50.0)
    };
    live.until("triggers per second", moving);
    let people = Live::start(lab, &["stats", "--watch=200ms"]);
    people.until("the verdict", |line| line.starts_with("redirected"));
}

/// `top` on a terminal of its own, of 100 by 40.
struct Top {
    script: Child,
    chunks: Receiver<Vec<u8>>,
}

impl Top {
    fn start(lab: &Lab) -> Self {
        let top = lab.push_ctl(&["top", "--every", "500ms"]);
        let words: Vec<String> = std::iter::once(top.get_program())
            .chain(top.get_args())
            .map(|word| child::quote(&word.to_string_lossy()))
            .collect();
        // Without the signal that a terminal's end is, so that it has to see for itself.
        let line = format!(
            "trap '' HUP; stty cols 100 rows 40; exec {}",
            words.join(" ")
        );
        let mut script = Command::new("script")
            .args(["-qefc", &line, "/dev/null"])
            .env("TERM", "xterm-256color")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdout = script.stdout.take().unwrap();
        let (sender, chunks) = channel();
        std::thread::spawn(move || {
            let mut chunk = [0; 4096];
            while let Ok(len @ 1..) = stdout.read(&mut chunk) {
                if sender.send(chunk[..len].to_vec()).is_err() {
                    return;
                }
            }
        });
        Self { script, chunks }
    }

    /// Until all of it is on the terminal at the same time.
    fn draws(&self, wanted: &[&str]) {
        let [rows, columns] = [40, 100].map(|count| NonZero::new(count).unwrap());
        let mut terminal = vt100::Parser::new(rows, columns, 0);
        let begin = Instant::now();
        while !wanted
            .iter()
            .all(|words| terminal.screen().contents().contains(words))
        {
            let left = LIMIT.saturating_sub(begin.elapsed());
            let Ok(chunk) = self.chunks.recv_timeout(left) else {
                panic!("not drawn: {}", terminal.screen().contents());
            };
            terminal.process(&chunk);
        }
    }
}

impl Drop for Top {
    fn drop(&mut self) {
        let _ = self.script.kill();
        let _ = self.script.wait();
    }
}

fn look_at_top(lab: &Lab, session: &str) {
    let mut top = Top::start(lab);
    top.draws(&["redirected", session, APP, "sorted by packets"]);
    let mut stdin = top.script.stdin.take().unwrap();
    stdin.write_all(b"q").unwrap();
    assert!(top.script.wait().unwrap().success());

    // Whose terminal goes away goes, too.
    let top = Top::start(lab);
    top.draws(&["sorted by packets"]);
    let socket = lab.socket_path().display().to_string();
    let runs = || {
        let processes = fs::read_dir("/proc").unwrap();
        let mut lines =
            processes.filter_map(|process| fs::read(process.ok()?.path().join("cmdline")).ok());
        lines.any(|line| {
            let line = String::from_utf8_lossy(&line).into_owned();
            line.contains(&socket) && line.ends_with("top\0--every\x00500ms\0")
        })
    };
    assert!(runs());
    drop(top);
    wait_until("top has gone with its terminal", || !runs());

    let elsewhere = child::finish(&mut lab.push_ctl(&["top"])).unwrap();
    assert_eq!(elsewhere.status.code(), Some(1));
    let said = String::from_utf8_lossy(&elsewhere.stderr).into_owned();
    assert!(said.contains("stats --watch"), "{said}");
}

fn look_at_metrics(lab: &Lab) {
    let get = |path: &str| {
        let url = format!("http://127.0.0.1:9617{path}");
        child::output(lab.gateway_command("curl").args(["-sS", "--fail", &url])).unwrap()
    };
    let text = get("/metrics");
    assert!(text.ends_with("# EOF\n"), "{text}");
    let delivered = text.lines().find_map(|line| {
        let labels = r#"push_packets_total{nic="gw-app",verdict="redirected",action="redirect"} "#;
        line.strip_prefix(labels)
    });
    assert!(
        delivered.is_some_and(|count| count.parse::<u64>().unwrap() > 0),
        "{text}"
    );
    assert!(get("/healthz").contains("the controller answers"));
    assert!(get("/readyz").contains("the store can be written to"));
}
