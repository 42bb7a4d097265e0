//! Export and import.

use super::*;
use crate::sessions::records::SessionState;

impl Admin {
    async fn export(&self, query: &str) -> String {
        let path = format!("http://push/v1/sessions/export{query}");
        let response = self.client.get(path).send().await.unwrap();
        let status = response.status();
        let text = response.text().await.unwrap();
        assert_eq!(status, 200, "{text}");
        text
    }

    async fn import(&self, query: &str, file: String) -> (u16, Value) {
        let path = format!("http://push/v1/sessions/import{query}");
        let response = self.client.post(path).body(file).send().await.unwrap();
        (response.status().as_u16(), response.json().await.unwrap())
    }

    async fn with_mail(self) -> Self {
        let added = json!({ "name": "mail" });
        self.ask(Method::POST, "/v1/apps", Some(added)).await;
        self
    }
}

fn counts(terminals: u32, sessions: u32, known: u32) -> Value {
    json!({
        "dry_run": false, "terminals": terminals, "sessions": sessions, "terminals_known": known,
        "sessions_known": known, "sessions_expired": 0, "left_out": [],
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_move_by_a_file() {
    let here_world = World::default();
    let here = admin_of(&here_world).await;
    let window = [7_u64, 0, u64::MAX, 3];
    for n in 1..=3 {
        let id = authorised(&here.controller, n).await;
        here_world.state().kernel.get_mut(&id).unwrap().window = window;
    }
    let file = here.export("").await;
    assert_eq!(file.lines().count(), 8, "{file}");
    assert!(!file.contains("ptk_") && !file.contains("pak_"));

    let there_world = World::default();
    let there = admin_of(&there_world).await.with_mail().await;
    let mut would = counts(3, 3, 0);
    would["dry_run"] = json!(true);
    assert_eq!(
        there.import("?dry_run=true", file.clone()).await,
        (200, would)
    );
    assert!(there_world.state().kernel.is_empty());
    assert_eq!(there.import("", file.clone()).await, (200, counts(3, 3, 0)));
    assert_eq!(there.import("", file.clone()).await, (200, counts(0, 0, 3)));

    let (here_state, there_state) = (here_world.state(), there_world.state());
    let (before, after) = (&here_state.image, &there_state.image);
    assert_eq!(before.terminals, after.terminals);
    assert_eq!(after.sessions.len(), 3);
    for (id, image) in &here_state.kernel {
        let moved = &there_state.kernel[id];
        assert_eq!(moved.window, window, "no trigger is accepted again");
        assert_eq!(
            (moved.device, &moved.key, moved.token_generation),
            (image.device, &image.key, image.token_generation)
        );
    }
    let is_durable = |state: &SessionState| matches!(state, SessionState::Authorised(_));
    assert!(
        after
            .sessions
            .iter()
            .all(|session| is_durable(&session.state))
    );
    assert!(
        after
            .sessions
            .iter()
            .all(|session| session.window.as_deref() == Some(&window))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_is_whole_or_refused() {
    let here = admin().await;
    for n in 1..=3 {
        authorised(&here.controller, n).await;
    }
    let file = here.export("").await;
    let lines: Vec<_> = file.lines().collect();
    let of = |lines: &[&str]| format!("{}\n", lines.join("\n"));
    let without = |at: usize| {
        let mut lines = lines.clone();
        lines.remove(at);
        of(&lines)
    };
    let key = &file[file.find("\"key\":\"").unwrap() + 7..][..32];
    let cases = [
        (String::new(), "doesn't begin"),
        ("nonsense".to_owned(), "doesn't begin"),
        (without(0), "doesn't begin"),
        (file.replace("\"format\":1", "\"format\":2"), "format 2"),
        (without(7), "ends too early"),
        (file[..file.len() - 1].to_owned(), "ends too early"),
        (file[..file.len() / 2].to_owned(), "ends too early"),
        (without(2), "3 terminals and 2 sessions"),
        (of(&[&lines[..3], &lines[1..]].concat()), "line 4"),
        (
            of(&[&lines[..2], &lines[3..]].concat()).replacen("\"terminals\"", "\"x\"", 1),
            "line 7",
        ),
        (file.replacen(key, &format!("x{}", &key[1..]), 1), "line 3"),
        (format!("{file}more"), "ends too early"),
        (format!("{file}{{}}\n"), "line 9"),
        (format!("{file}{}", "x".repeat(100_000)), "line 9"),
    ];
    let world = World::default();
    let there = admin_of(&world).await.with_mail().await;
    for (damaged, expected) in cases {
        let (status, problem) = there.import("", damaged).await;
        let detail = problem["detail"].as_str().unwrap();
        assert_eq!(status, 400, "{problem}");
        assert!(detail.contains(expected), "{expected}: {detail}");
        assert!(!detail.contains(&key[1..]), "a key is told");
        assert_eq!(world.state().image.terminals.len(), 0);
    }
    assert_eq!(there.import("", file).await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn all_that_is_in_the_way_is_told_at_once() {
    let here = admin().await;
    authorised(&here.controller, 1).await;
    let file = here.export("").await;
    let world = World::default();
    let there = admin_of(&world).await;
    let file = file.replace("\"realm\":null", "\"realm\":\"trains\"");
    let (status, problem) = there.import("", file).await;
    let detail = problem["detail"].as_str().unwrap();
    assert_eq!(
        (status, problem["type"].as_str()),
        (409, Some("urn:push:problem:in-the-way"))
    );
    for told in [
        "no application mail",
        "push-ctl app add mail",
        "no realm trains",
    ] {
        assert!(detail.contains(told), "{told}: {detail}");
    }
    assert_eq!(world.state().image.terminals.len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_part_is_exported_and_who_has_done_it_is_noted() {
    let here = admin().await;
    let mut events = here.events.subscribe();
    authorised(&here.controller, 1).await;
    assert_eq!(here.export("?app=mail").await.lines().count(), 4);
    assert_eq!(here.export("?realm=meters").await.lines().count(), 2);
    for (query, status) in [
        ("?app=nonesuch", 404),
        ("?realm=nonesuch", 404),
        ("?x=y", 400),
    ] {
        let path = format!("/v1/sessions/export{query}");
        assert_eq!(
            here.ask(Method::GET, &path, None).await.0,
            status,
            "{query}"
        );
    }
    let mut noted = Vec::new();
    while let Ok(event) = events.try_recv() {
        if let What::OperatorAction(action) = &event.what {
            noted.push((action.action.clone(), action.refusal.is_some()));
        }
    }
    let export = "session export".to_owned();
    assert_eq!(
        noted,
        [
            (export.clone(), false),
            (export.clone(), false),
            (export.clone(), true),
            (export, true)
        ]
    );
}
