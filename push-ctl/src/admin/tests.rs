//! Over a unix socket.

mod activity;
mod events;
pub(crate) mod hostile;
mod servers;
mod transfer;

use super::*;
use crate::controller::tests::{World, authorised};
use crate::credentials::ApiKey;
use crate::events::Bus;
use crate::upgrade::Upgrade;
use reqwest::{Client, Method};
use serde_json::{Value, json};
use tempfile::TempDir;

struct Admin {
    client: Client,
    controller: Controller,
    events: Bus,
    /// Ends the daemon.
    stop: watch::Sender<bool>,
    _directory: TempDir,
}

async fn admin() -> Admin {
    admin_of(&World::default()).await
}

async fn admin_of(world: &World) -> Admin {
    let (controller, _ended) = world.start();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("admin.sock");
    let daemon = daemon(&controller);
    let events = daemon.events.clone();
    let socket = Socket::bind(&path).unwrap();
    let serving = controller.clone();
    let (stop, mut stopping) = watch::channel(false);
    tokio::spawn(async move {
        let shutdown = async move {
            // The sender is dropped with the test at the latest.
            let _dropped = stopping.wait_for(|&stop| stop).await;
        };
        serve(&socket, serving, daemon, shutdown).await
    });
    let client = Client::builder().unix_socket(path).build().unwrap();
    Admin {
        client,
        controller,
        events,
        stop,
        _directory: directory,
    }
}

/// A daemon of that controller, with the example configuration and a realm.
pub(crate) fn daemon(controller: &Controller) -> Daemon {
    let realm = r#"
        [[realm]]
        name = "meters"
        interface = "eth2.100"
        next_hop = ["10.0.0.254"]
        listen = ["10.0.0.1:5683"]
        [gtpu]
        local = ["10.70.0.1"]
    "#;
    let mut config: Config = toml::from_str(&format!("{}{realm}", Config::example())).unwrap();
    config.path = "/etc/push/push.toml".into();
    // Where the controller's devices register.
    config
        .internal
        .listen
        .push("10.0.0.1:5683".parse().unwrap());
    Daemon {
        in_force: Arc::new(InForce::new(
            config.clone(),
            controller.clone(),
            Bus::default(),
        )),
        config,
        store: "/var/lib/push/push.redb".into(),
        monitoring: Hints::default(),
        started: Instant::now(),
        started_at: jiff::Timestamp::now(),
        upgrade: Upgrade::of("push-ctl".into()),
        events: Bus::default(),
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
    let nic = json!({ "name": "eth1", "index": 2, "role": "external", "configured": true, "trigger_addresses": ["198.51.100.1", "2001:db8:51::1"], "mode": "native", "program_id": 12, "link_id": 3, "adopted": false });
    assert_eq!(status["nics"], json!([nic]));
    let warnings = [
        "forwarding is off",
        "eth2 is in the configuration but was detached: `push-ctl nic attach eth2 --role internal` or the next start attaches to it",
    ];
    assert_eq!(status["warnings"], json!(warnings));
    assert_eq!(status["internal"][0], "10.64.0.1:5683");
    assert_eq!(status["realms"], admin.get("/v1/realms").await);
    assert_eq!(status["pid"], std::process::id());
}

#[tokio::test(flavor = "multi_thread")]
async fn applications_come_and_go() {
    let admin = admin().await;
    let add =
        |name: &'static str| admin.ask(Method::POST, "/v1/apps", Some(json!({ "name": name })));
    let (status, added) = add("chat").await;
    assert_eq!((status, added["name"].as_str()), (200, Some("chat")));
    assert!(added["api_key"].as_str().unwrap().parse::<ApiKey>().is_ok());
    assert_eq!(add("chat").await.0, 409);
    let (status, problem) = add("no spaces").await;
    assert_eq!(status, 400);
    assert_eq!(
        problem["detail"],
        "application name must be 1 to 64 of the characters A-Z a-z 0-9 . _ -"
    );

    let apps = admin.get("/v1/apps").await;
    assert_eq!(
        keys(&apps[0]),
        [
            "availability",
            "created_at",
            "credentials",
            "monitor",
            "name",
            "policy",
            "quotas",
            "sessions",
            "triggers_per_second_granted"
        ]
    );
    assert_eq!(apps[0], admin.get("/v1/apps/chat").await);
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
    let mut listed = admin.get("/v1/sessions").await["items"].take();
    let mut shown = admin.get(&format!("/v1/sessions/{session}")).await;
    for answer in [&mut listed[0], &mut shown] {
        // The clock may have passed a second between the two.
        let left = answer.as_object_mut().unwrap().remove("expires_in_s");
        assert!(matches!(left.unwrap().as_u64(), Some(3590..=3600)));
    }
    assert_eq!(listed[0], shown);
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
    assert_eq!(
        (
            &shown["refused"],
            &shown["acknowledged"],
            &shown["round_trip_ms"],
            &shown["next_hop"]
        ),
        (&json!(4), &json!(2), &json!(1.5), &json!("no_route"))
    );
    assert_eq!(
        (&shown["realm"], &shown["tunnel"]),
        (&Value::Null, &Value::Null)
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
    assert_eq!(
        admin.get("/v1/terminals").await["items"][0]["id"],
        terminal["id"]
    );

    let revoke = format!("/v1/sessions/{session}/revoke");
    let (status, mut revoked) = admin.ask(Method::POST, &revoke, None).await;
    assert!(revoked["effective_after_us"].take().is_u64());
    assert_eq!(
        (status, revoked),
        (
            200,
            json!({ "id": session, "revoked": true, "effective_after_us": null })
        )
    );
    let (status, problem) = admin.ask(Method::POST, &revoke, None).await;
    assert_eq!(
        (status, problem["detail"].as_str()),
        (410, Some("the session has ended already (revoked)"))
    );
    assert_eq!(admin.get("/v1/sessions").await["items"], json!([]));
    assert_eq!(
        admin.get("/v1/sessions?ended=true").await["items"][0]["cause"],
        "revoked"
    );
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
    assert_eq!(stats["events_lost"], 7);
    let classes = nic["round_trips"].as_array().unwrap();
    assert_eq!(classes.len(), 32);
    for (class, expected) in [
        (
            0,
            json!({ "from_us": 0, "below_us": 2, "acknowledgements": 0 }),
        ),
        (
            10,
            json!({ "from_us": 1024, "below_us": 2048, "acknowledgements": 2 }),
        ),
        (
            31,
            json!({ "from_us": 1_u64 << 31, "below_us": 1_u64 << 32, "acknowledgements": 0 }),
        ),
    ] {
        assert_eq!(classes[class], expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_exist_is_a_problem() {
    let admin = admin().await;
    for (method, path, status) in [
        (Method::GET, "/v1/nothing", 404),
        (Method::PUT, "/v1/apps", 405),
        (Method::GET, "/v1/apps/nonesuch", 404),
        (Method::GET, "/v1/apps/no%20name", 404),
        (Method::DELETE, "/v1/sessions/nonsense/tunnel", 404),
        (Method::DELETE, "/v1/sessions/0000000100000000/tunnel", 404),
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

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_is_changed_rule_by_rule() {
    let admin = admin().await;
    let open = json!({
        "rate": null, "sources": [], "max_payload_bytes": null, "dscp": null,
        "coalescing_window_ms": null, "return_acks": false,
    });
    let body = json!({ "name": "chat", "policy": { "dscp": 46, "sources": ["192.0.2.0/24"] } });
    assert_eq!(admin.ask(Method::POST, "/v1/apps", Some(body)).await.0, 200);
    let set = |change: Value| admin.ask(Method::PATCH, "/v1/apps/chat", Some(change));
    let (status, app) =
        set(json!({ "rate": { "interval_ns": 1_000_000, "burst": 3 }, "dscp": null })).await;
    assert_eq!(status, 200, "{app}");
    let mut expected = open.clone();
    expected["sources"] = json!(["192.0.2.0/24"]);
    expected["rate"] = json!({ "interval_ns": 1_000_000, "burst": 3 });
    assert_eq!(app["policy"], expected);
    assert_eq!(admin.get("/v1/apps/chat").await, app);

    let (status, problem) = set(json!({ "dscp": 64 })).await;
    assert_eq!(
        (status, problem["detail"].as_str()),
        (400, Some("dscp: 64 is not between 0 and 63"))
    );
    assert_eq!(set(json!({ "colour": 1 })).await.0, 400);
    assert_eq!(admin.get("/v1/apps/chat").await, app);
    let (_, app) = set(json!({ "rate": null, "sources": [] })).await;
    assert_eq!(app["policy"], open);

    let nobody = admin.ask(Method::PATCH, "/v1/apps/nonesuch", Some(json!({})));
    assert_eq!(nobody.await.0, 404);
    let bad = json!({ "name": "bad", "policy": { "max_payload_bytes": 1201 } });
    assert_eq!(admin.ask(Method::POST, "/v1/apps", Some(bad)).await.0, 400);
    assert_eq!(admin.ask(Method::GET, "/v1/apps/bad", None).await.0, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_put_into_a_tunnel_and_taken_out() {
    let admin = admin().await;
    let session = authorised(&admin.controller, 1).await.to_string();
    let path = format!("/v1/sessions/{session}/tunnel");
    let set = |peer: &str, teid: u32| {
        let body = json!({ "peer": peer, "teid": teid });
        admin.ask(Method::PUT, &path, Some(body))
    };
    let tunnel = json!({ "peer": "10.70.0.2", "teid": 4711 });
    let answer = json!({ "id": session, "tunnel": tunnel });
    assert_eq!(set("10.70.0.2", 4711).await, (200, answer));
    let shown = admin.get(&format!("/v1/sessions/{session}")).await;
    assert_eq!(shown["tunnel"], tunnel);
    for (peer, teid, why) in [
        ("10.70.0.2", 0, "teid: 0 is no tunnel's"),
        (
            "224.0.0.1",
            1,
            "peer: 224.0.0.1 is not a machine's own address",
        ),
        ("0.0.0.0", 1, "peer: 0.0.0.0 is not"),
        ("::ffff:10.70.0.2", 1, "peer: ::ffff:10.70.0.2 is not"),
        (
            "fd00:70::2",
            1,
            "gtpu.local in the configuration has no IPv6 address",
        ),
    ] {
        let (status, problem) = set(peer, teid).await;
        let detail = problem["detail"].as_str().unwrap();
        assert!(status == 400 && detail.contains(why), "{peer}: {detail}");
    }
    let (status, cleared) = admin.ask(Method::DELETE, &path, None).await;
    assert_eq!((status, &cleared["tunnel"]), (200, &Value::Null));
}

#[tokio::test(flavor = "multi_thread")]
async fn realms_are_counted_also_those_that_are_gone() {
    let admin = admin().await;
    let registered = admin.controller.apply(|sessions, now| {
        for (n, realm) in [(1_u8, "meters"), (2, "meters"), (3, "gone")] {
            let path = crate::sessions::records::Path {
                realm: Some(realm.parse().unwrap()),
                device: [10, 0, 0, 2].into(),
                gateway: "10.0.0.1:5683".parse().unwrap(),
            };
            let id = crate::sessions::records::RegistrationId::from_u64(n.into());
            let endpoint = format!("device-{n}").parse().unwrap();
            sessions
                .register(now, endpoint, path, 5683, None, id)
                .unwrap();
        }
    });
    registered.await.unwrap();
    let realms = admin.get("/v1/realms").await;
    let meters = json!({
        "name": "meters", "interface": "eth2.100", "next_hop": ["10.0.0.254"], "listen": ["10.0.0.1:5683"],
        "terminals": 2, "sessions": 0,
    });
    let gone = json!({
        "name": "gone", "interface": null, "next_hop": [], "listen": [], "terminals": 1, "sessions": 0,
    });
    assert_eq!(realms, json!([meters, gone]));
    let terminals = admin.get("/v1/terminals").await["items"].take();
    assert_eq!(terminals[0]["realm"], "meters");
}
