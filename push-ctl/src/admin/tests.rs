//! Over a unix socket.

use super::*;
use crate::controller::tests::{World, authorised};
use reqwest::{Client, Method};
use serde_json::{Value, json};
use tempfile::TempDir;

struct Admin {
    client: Client,
    controller: Controller,
    _directory: TempDir,
}

async fn admin() -> Admin {
    let (controller, _ended) = World::default().start();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("admin.sock");
    let mut config: Config = toml::from_str(Config::example()).unwrap();
    config.path = "/etc/push/push.toml".into();
    let daemon = Daemon {
        config,
        store: "/var/lib/push/push.redb".into(),
        started: Instant::now(),
    };
    let socket = Socket::bind(&path).unwrap();
    let serving = controller.clone();
    tokio::spawn(async move { serve(&socket, serving, daemon, std::future::pending()).await });
    let client = Client::builder().unix_socket(path).build().unwrap();
    Admin {
        client,
        controller,
        _directory: directory,
    }
}

impl Admin {
    async fn ask(&self, method: Method, path: &str, body: Option<Value>) -> (u16, Value) {
        let mut request = self.client.request(method, format!("http://push{path}"));
        if let Some(body) = body {
            request = request.json(&body);
        }
        let response = request.send().await.unwrap();
        (response.status().as_u16(), response.json().await.unwrap())
    }

    async fn get(&self, path: &str) -> Value {
        let (status, answer) = self.ask(Method::GET, path, None).await;
        assert_eq!(status, 200, "{answer}");
        answer
    }
}

fn keys(value: &Value) -> Vec<&str> {
    value
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_status_has_everything() {
    let admin = admin().await;
    authorised(&admin.controller, 1).await;
    let status = admin.get("/v1/status").await;
    assert_eq!(
        status["sessions"],
        json!({ "requested": 0, "authorised": 1, "slots": 100 })
    );
    assert_eq!(
        status["store"],
        json!({ "path": "/var/lib/push/push.redb", "terminals": 1, "sessions": 1, "apps": 1 })
    );
    let nic = json!({ "name": "eth1", "index": 2, "role": "external", "mode": "native", "program_id": 12, "link_id": 3, "adopted": false });
    assert_eq!(status["nics"], json!([nic]));
    assert_eq!(status["warnings"], json!(["forwarding is off"]));
    assert_eq!(status["internal"][0], "10.64.0.1:5683");
    assert_eq!(status["pid"], std::process::id());
}

#[tokio::test(flavor = "multi_thread")]
async fn applications_come_and_go() {
    let admin = admin().await;
    let add =
        |name: &'static str| admin.ask(Method::POST, "/v1/apps", Some(json!({ "name": name })));
    let (status, added) = add("chat").await;
    assert_eq!((status, added["name"].as_str()), (200, Some("chat")));
    assert!(added["api_key"].as_str().unwrap().parse::<AppKey>().is_ok());
    assert_eq!(add("chat").await.0, 409);
    let (status, problem) = add("no spaces").await;
    assert_eq!(status, 400);
    assert_eq!(
        problem["detail"],
        "application name must be 1 to 64 of the characters A-Z a-z 0-9 . _ -"
    );

    let apps = admin.get("/v1/apps").await;
    assert_eq!(keys(&apps[0]), ["created_at", "name", "sessions"]);
    assert!(
        apps[0]["created_at"]
            .as_str()
            .unwrap()
            .parse::<jiff::Timestamp>()
            .is_ok()
    );
    assert!(!apps.to_string().contains("pak_"));

    let (status, removed) = admin.ask(Method::DELETE, "/v1/apps/chat", None).await;
    assert_eq!(
        (status, removed),
        (
            200,
            json!({ "name": "chat", "removed": true, "sessions_ended": 0 })
        )
    );
    assert_eq!(
        admin.ask(Method::DELETE, "/v1/apps/chat", None).await.0,
        404
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_seen_and_revoked() {
    let admin = admin().await;
    let session = authorised(&admin.controller, 1).await.to_string();
    let listed = admin.get("/v1/sessions").await;
    assert_eq!(
        listed[0],
        admin.get(&format!("/v1/sessions/{session}")).await
    );
    let shown = &listed[0];
    assert_eq!(
        (shown["state"].as_str(), shown["device"].as_str()),
        (Some("authorised"), Some("10.0.0.2:7000"))
    );
    assert_eq!(
        (
            &shown["packets"],
            &shown["bytes"],
            &shown["last_delivered_ago_s"]
        ),
        (&json!(3), &json!(300), &json!(2))
    );
    let terminal = admin
        .get(&format!(
            "/v1/terminals/{}",
            shown["terminal"].as_str().unwrap()
        ))
        .await;
    assert_eq!(
        (terminal["state"].as_str(), &terminal["sessions"]),
        (Some("first_operative"), &json!(1))
    );
    assert_eq!(admin.get("/v1/terminals").await[0]["id"], terminal["id"]);

    let revoke = format!("/v1/sessions/{session}/revoke");
    let (status, revoked) = admin.ask(Method::POST, &revoke, None).await;
    assert_eq!(
        (status, revoked),
        (200, json!({ "id": session, "revoked": true }))
    );
    let (status, problem) = admin.ask(Method::POST, &revoke, None).await;
    assert_eq!(
        (status, problem["detail"].as_str()),
        (410, Some("the session has ended already (revoked)"))
    );
    assert_eq!(admin.get("/v1/sessions").await, json!([]));
    assert_eq!(admin.get("/v1/sessions?ended").await[0]["cause"], "revoked");
}

#[tokio::test(flavor = "multi_thread")]
async fn all_verdicts_are_counted() {
    let stats = admin().await.get("/v1/stats").await;
    let nic = &stats["nics"][0];
    assert_eq!(
        (nic["packets"].as_u64(), nic["bytes"].as_u64()),
        (Some(5), Some(400))
    );
    let verdicts = nic["verdicts"].as_array().unwrap();
    assert_eq!(verdicts.len(), push_common::verdict::Verdict::ALL.len());
    let forged = verdicts
        .iter()
        .find(|verdict| verdict["verdict"] == "bad_tag")
        .unwrap();
    assert_eq!(
        keys(forged),
        ["action", "bytes", "meaning", "packets", "verdict"]
    );
    assert_eq!(forged["action"], "drop");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_exist_is_a_problem() {
    let admin = admin().await;
    for (method, path, status) in [
        (Method::GET, "/v1/nothing", 404),
        (Method::PUT, "/v1/apps", 405),
        (Method::GET, "/v1/sessions/0000000100000000", 404),
        (Method::GET, "/v1/sessions/nonsense", 404),
        (Method::GET, "/v1/terminals/nonsense", 404),
        (Method::POST, "/v1/sessions/0000000100000000/revoke", 404),
    ] {
        let (got, problem) = admin.ask(method, path, None).await;
        assert_eq!(
            (got, problem["status"].as_u64()),
            (status, Some(status.into())),
            "{path}"
        );
    }
}
