//! Who listens to events.

use super::*;
use crate::events::{Event, EventLine, What};
use crate::sessions::News;
use crate::sessions::records::{EndCause, RegistrationId};
use reqwest::Response;
use tokio::time::timeout;

/// Longer than anything here takes.
const LIMIT: Duration = Duration::from_secs(60);

fn ended(session: &str, app: &str) -> Event {
    Event::now(What::Lifecycle(News::SessionEnded {
        id: session.parse().unwrap(),
        app: app.parse().unwrap(),
        terminal: RegistrationId::from_u64(1),
        cause: EndCause::Expired,
    }))
}

impl Admin {
    async fn listen(&self, query: &str) -> Response {
        let request = self.client.get(format!("http://push/v1/events{query}"));
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), 200);
        response
    }
}

/// Lines up to the one of this session, or all there are if there is no such line.
async fn lines(response: &mut Response, last: &str) -> Vec<EventLine> {
    let mut text = String::new();
    let read = async {
        while let Some(chunk) = response.chunk().await.unwrap() {
            text.push_str(std::str::from_utf8(&chunk).unwrap());
            if text.lines().any(|line| line.contains(last)) {
                break;
            }
        }
    };
    timeout(LIMIT, read).await.unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn who_listens_gets_each_event_as_a_line_and_only_those_asked_for() {
    let admin = admin().await;
    let mut all = admin.listen("").await;
    let mut mail = admin
        .listen("?app=mail&kind=session_ended,app_failed")
        .await;
    let mut one = admin.listen("?session=deadbeef00000003").await;
    for (session, app) in [
        ("deadbeef00000001", "mail"),
        ("deadbeef00000002", "chat"),
        ("deadbeef00000003", "mail"),
    ] {
        admin.events.publish(ended(session, app));
    }
    let sessions = |lines: Vec<EventLine>| {
        let sessions = lines.into_iter().map(|line| line.session.unwrap());
        sessions.collect::<Vec<_>>()
    };
    let last = "deadbeef00000003";
    assert_eq!(
        sessions(lines(&mut all, last).await),
        ["deadbeef00000001", "deadbeef00000002", "deadbeef00000003"]
    );
    assert_eq!(
        sessions(lines(&mut mail, last).await),
        ["deadbeef00000001", "deadbeef00000003"]
    );
    assert_eq!(sessions(lines(&mut one, last).await), ["deadbeef00000003"]);

    let (status, problem) = admin
        .ask(Method::GET, "/v1/events?kind=nonesuch", None)
        .await;
    assert_eq!(status, 400);
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.contains("`nonesuch`") && detail.contains("session_ended"));
    let (status, _) = admin.ask(Method::GET, "/v1/events?who=me", None).await;
    assert_eq!(status, 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_reads_too_slowly_is_told_how_many_events_are_missing() {
    let admin = admin().await;
    let mut slow = admin.listen("?kind=session_ended").await;
    // More than the bus, and the buffers of the socket, have room for.
    let published = 100_000_u32;
    for n in 0..published {
        let generation = format!("{:08x}{n:08x}", 1);
        admin.events.publish(ended(&generation, "mail"));
    }
    let last = format!("{:08x}{:08x}", 1, published - 1);
    let lines = lines(&mut slow, &last).await;
    let (lost, shown): (Vec<_>, Vec<_>) = lines
        .iter()
        .partition(|line| line.kind == crate::events::EVENTS_LOST);
    let lost: u64 = lost.iter().filter_map(|line| line.count).sum();
    assert!(lost > 0);
    assert_eq!(lost + shown.len() as u64, u64::from(published));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_the_daemon_ends_the_stream() {
    let admin = admin().await;
    let mut response = admin.listen("").await;
    admin.stop.send_replace(true);
    let end = timeout(LIMIT, response.chunk()).await.unwrap().unwrap();
    assert_eq!(end, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_an_operator_tries_is_told_of_also_what_no_handler_has_seen() {
    let admin = admin().await;
    let mut actions = admin.listen("?kind=operator_action").await;
    for (method, path, body) in [
        (Method::POST, "/v1/apps", Some(json!({ "name": "chat" }))),
        (Method::POST, "/v1/apps", Some(json!({ "name": "chat" }))),
        (
            Method::POST,
            "/v1/apps",
            Some(json!({ "names": "not this way" })),
        ),
        (Method::GET, "/v1/apps", None),
        (Method::DELETE, "/v1/nonesuch", None),
    ] {
        admin.ask(method, path, body).await;
    }
    let lines = lines(&mut actions, "nonesuch").await;
    let told: Vec<_> = lines
        .iter()
        .map(|line| {
            let text = |value: &Option<String>| value.clone().unwrap_or_default();
            [text(&line.action), text(&line.object), text(&line.cause)].join("|")
        })
        .collect();
    assert_eq!(
        told,
        [
            "app add|chat|",
            "app add|chat|app_exists",
            "post|/v1/apps|malformed_body",
            "delete|/v1/nonesuch|unknown_path",
        ]
    );
    // Whoever is at the other end of the socket.
    let uid = nix::unistd::getuid().as_raw();
    assert!(
        lines
            .iter()
            .all(|line| line.uid == Some(uid) && line.pid.is_some())
    );
    let secrets = lines.iter().map(EventLine::to_json).collect::<String>();
    assert!(!secrets.contains("pak_"), "{secrets}");
}
