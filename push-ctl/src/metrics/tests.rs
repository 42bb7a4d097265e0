//! Over TCP, and read by parsers that others have written.

use super::*;
use crate::admin::{self, Daemon};
use crate::controller::tests::{World, authorised};
use serde_json::Value;
use std::collections::BTreeSet;
use std::io::Write;
use std::process::{Command, Stdio};
use tokio::io::AsyncReadExt;
use tokio::sync::mpsc;

/// Prints each sample as a JSON array of name, labels and value; fails if it isn't `OpenMetrics`.
const PARSER: &str = r#"
import json, sys
from prometheus_client.openmetrics.parser import text_string_to_metric_families
for family in text_string_to_metric_families(sys.stdin.read()):
    for sample in family.samples:
        print(json.dumps([sample.name, sample.labels, sample.value]))
"#;

/// Prints the rules as JSON; fails if it isn't YAML.
const YAML: &str = "import json, sys, yaml; print(json.dumps(yaml.safe_load(sys.stdin.read())))";

const ALERTS: &str = include_str!("../../dist/alerts.yml");
const DASHBOARD: &str = include_str!("../../dist/grafana-dashboard.json");

struct Endpoint {
    base: String,
    _directory: tempfile::TempDir,
    _notices: mpsc::Sender<Notice>,
}

async fn endpoint(world: &World) -> Endpoint {
    let (controller, _ended) = world.start();
    authorised(&controller, 1).await;
    let directory = tempfile::tempdir().unwrap();
    let store = directory.path().join("push.redb");
    std::fs::write(&store, b"12345").unwrap();
    let daemon = Daemon {
        store,
        ..admin::tests::daemon(&controller)
    };
    let (sender, _receiver) = mpsc::channel(10);
    let sources = Sources {
        controller,
        daemon,
        notices: sender.downgrade(),
        notice_counters: NoticeCounters::default(),
    };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(serve(vec![listener], sources, std::future::pending()));
    Endpoint {
        base,
        _directory: directory,
        _notices: sender,
    }
}

impl Endpoint {
    async fn get(&self, path: &str) -> (u16, String) {
        let response = reqwest::get(format!("{}{path}", self.base)).await.unwrap();
        (response.status().as_u16(), response.text().await.unwrap())
    }

    async fn samples(&self) -> Vec<(String, Value, f64)> {
        let (status, text) = self.get("/metrics").await;
        assert_eq!(status, 200, "{text}");
        let parsed = by_python(PARSER, &text);
        let samples = parsed
            .lines()
            .map(|line| serde_json::from_str(line).unwrap());
        samples.collect()
    }
}

/// Debian's Python, for which `cargo xtask setup` has installed what the scripts import.
fn by_python(script: &str, input: &str) -> String {
    let mut python = Command::new("/usr/bin/python3")
        .args(["-c", script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = python.stdin.take().unwrap();
    stdin.write_all(input.as_bytes()).unwrap();
    drop(stdin);
    let output = python.wait_with_output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}\n{input}");
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn others_read_the_metrics_and_find_what_there_is() {
    let endpoint = endpoint(&World::default()).await;
    let samples = endpoint.samples().await;
    let value = |name: &str, labels: Value| {
        let mut found = samples
            .iter()
            .filter(|sample| sample.0 == name && sample.1 == labels);
        let sample = found.next().unwrap_or_else(|| panic!("{name} {labels}"));
        assert!(found.next().is_none(), "{name} {labels} twice");
        sample.2
    };
    let labels = |text: &str| serde_json::from_str::<Value>(text).unwrap();
    let none = labels("{}");
    let cases = [
        (
            "push_packets_total",
            r#"{"nic": "eth1", "verdict": "bad_tag", "action": "drop"}"#,
            2.0,
        ),
        (
            "push_packet_bytes_total",
            r#"{"nic": "eth1", "verdict": "redirected", "action": "redirect"}"#,
            300.0,
        ),
        ("push_sessions", r#"{"state": "authorised"}"#, 1.0),
        ("push_sessions", r#"{"state": "requested"}"#, 0.0),
        (
            "push_nic_attached",
            r#"{"nic": "eth1", "mode": "native"}"#,
            1.0,
        ),
        ("push_round_trip_seconds_count", r#"{"nic": "eth1"}"#, 2.0),
        (
            "push_round_trip_seconds_bucket",
            r#"{"nic": "eth1", "le": "0.001024"}"#,
            0.0,
        ),
        (
            "push_round_trip_seconds_bucket",
            r#"{"nic": "eth1", "le": "0.002048"}"#,
            2.0,
        ),
        (
            "push_round_trip_seconds_bucket",
            r#"{"nic": "eth1", "le": "+Inf"}"#,
            2.0,
        ),
    ];
    for (name, with, expected) in cases {
        assert_eq!(value(name, labels(with)), expected, "{name} {with}");
    }
    for (name, expected) in [
        ("push_events_lost_total", 7.0),
        ("push_terminals", 1.0),
        ("push_session_slots", 100.0),
        ("push_store_bytes", 5.0),
        ("push_store_writable", 1.0),
        ("push_notices_waiting", 0.0),
        ("push_notices_outstanding", 0.0),
        ("push_requests_waiting", 0.0),
        ("push_warnings", 1.0),
        ("push_audit_writable", 1.0),
    ] {
        assert_eq!(value(name, none.clone()), expected, "{name}");
    }
    // Nothing grows with the number of sessions or terminals.
    for (name, labels, _) in &samples {
        for label in labels.as_object().unwrap().keys() {
            assert!(label != "session" && label != "terminal", "{name} {labels}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn health_is_the_controllers_answer_and_readiness_a_store_with_room() {
    let world = World::default();
    let endpoint = endpoint(&world).await;
    assert_eq!(endpoint.get("/healthz").await.0, 200);
    assert_eq!(endpoint.get("/readyz").await.0, 200);
    std::fs::remove_file(endpoint._directory.path().join("push.redb")).unwrap();
    let (status, text) = endpoint.get("/readyz").await;
    assert_eq!(status, 503);
    assert!(text.contains("No such file or directory"), "{text}");
    assert_eq!(endpoint.get("/healthz").await.0, 200);
    assert_eq!(endpoint.get("/nonesuch").await.0, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn all_that_alerts_and_dashboard_name_is_exported() {
    let endpoint = endpoint(&World::default()).await;
    let samples = endpoint.samples().await;
    let exported: BTreeSet<&str> = samples.iter().map(|sample| sample.0.as_str()).collect();
    for (file, text) in [
        ("alerts.yml", ALERTS),
        ("grafana-dashboard.json", DASHBOARD),
    ] {
        let named = names(text);
        assert!(named.len() > 10, "{file}: {named:?}");
        let missing: Vec<_> = named.difference(&exported).collect();
        assert!(missing.is_empty(), "{file} names {missing:?}");
        let verdicts: BTreeSet<&str> = push_common::verdict::Verdict::ALL
            .iter()
            .map(|verdict| verdict.label())
            .collect();
        let matched = matched_verdicts(text);
        assert!(matched.len() > 3, "{file}: {matched:?}");
        for matched in matched {
            assert!(verdicts.contains(matched), "{file} names {matched}");
        }
    }
    let rules: Value = serde_json::from_str(&by_python(YAML, ALERTS)).unwrap();
    for rule in rules["groups"][0]["rules"].as_array().unwrap() {
        assert!(rule["expr"].is_string() && rule["labels"]["severity"].is_string());
        assert!(rule["annotations"]["summary"].is_string(), "{rule}");
    }
    let dashboard: Value = serde_json::from_str(DASHBOARD).unwrap();
    assert!(dashboard["panels"].as_array().unwrap().len() > 10);
}

/// All words that begin like our metrics.
fn names(text: &str) -> BTreeSet<&str> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .filter(|word| word.starts_with("push_"))
        .collect()
}

/// All verdicts in `verdict="…"`, `verdict=~"…"` and `verdict!~"…"`, with the quotes of JSON or without.
fn matched_verdicts(text: &str) -> Vec<&str> {
    let mut matched = Vec::new();
    for rest in text.split("verdict").skip(1) {
        let quoted = ["=\"", "=~\"", "!~\"", "=\\\"", "=~\\\"", "!~\\\""];
        if let Some(verdicts) = quoted.iter().find_map(|begin| rest.strip_prefix(begin)) {
            let verdicts = verdicts.split(['\\', '"']).next().unwrap_or_default();
            matched.extend(verdicts.split('|'));
        }
    }
    matched
}

/// Who opens connections and says nothing keeps nobody else out, and gets no more than some.
#[tokio::test]
async fn a_source_gets_no_more_connections_than_some() {
    let endpoint = endpoint(&World::default()).await;
    let address = endpoint.base.strip_prefix("http://").unwrap();
    let mut held = Vec::new();
    for _ in 0..CONNECTIONS.of_source {
        held.push(tokio::net::TcpStream::connect(address).await.unwrap());
    }
    let mut one_more = tokio::net::TcpStream::connect(address).await.unwrap();
    let ended = one_more.read(&mut [0]).await;
    assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
    held.pop();
    // Whether that was noticed yet can't be seen from here.
    let answered = async {
        while reqwest::get(format!("{}/healthz", endpoint.base))
            .await
            .is_err()
        {
            tokio::task::yield_now().await;
        }
    };
    timeout(Duration::from_secs(10), answered).await.unwrap();
}
