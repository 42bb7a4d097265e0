//! Over loopback. TLS is left out, but for one test: rustls is tested elsewhere.

use super::sessions::Validated;
pub(crate) mod hostile;

use super::*;
use crate::controller::tests::{World, app_key, authorised, token, until};
use crate::credentials::ApiKey;
use crate::problem::Problem;
use crate::sessions::records::{AppName, Credential, Proof, UnixTime};
use push_common::token::Token;
use reqwest::{Client, Response};
use serde_json::{Value, json};
use std::net::IpAddr;

async fn serve_plainly(controller: Controller) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    let app = router(controller, 5050, Hints::default());
    let app = app.into_make_service_with_connect_info::<SocketAddr>();
    tokio::spawn(async move { axum::serve(listener, app).await });
    base
}

fn text(token: &Token) -> String {
    String::from_utf8(token.to_text().to_vec()).unwrap()
}

async fn problem_of(response: Response, status: u16, kind: &str) -> Problem {
    assert_eq!(response.status(), status);
    assert_eq!(
        response.headers()["content-type"],
        "application/problem+json"
    );
    assert_eq!(
        response.headers().contains_key("www-authenticate"),
        status == 401
    );
    let problem: Problem = response.json().await.unwrap();
    assert_eq!(
        (problem.status, problem.kind.as_str()),
        (status, format!("urn:push:problem:{kind}").as_str())
    );
    problem
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_told_that_triggers_are_delivered_that_are_not() {
    let world = World::default();
    let (controller, _ended) = world.start();
    world.state().refuses = true;
    let session = authorised(&controller, 1).await;
    let base = serve_plainly(controller.clone()).await;
    let client = Client::new();
    let validate = || {
        let request = client.post(format!("{base}/v1/sessions/{session}/validate"));
        let request = request.json(&json!({ "token": text(&token(1)) }));
        request.bearer_auth(&*app_key().to_text()).send()
    };
    let answer = validate().await.unwrap();
    assert_eq!(answer.headers()["retry-after"], "5");
    let problem = problem_of(answer, 503, "not-in-effect").await;
    assert!(!problem.detail.contains("told to refuse"), "{problem:?}");
    world.state().refuses = false;
    until(|| world.state().kernel.contains_key(&session)).await;
    assert_eq!(validate().await.unwrap().status(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_validated_or_refused_with_a_cause() {
    let world = World::default();
    let (controller, _ended) = world.start();
    let session = authorised(&controller, 1).await;
    let base = serve_plainly(controller.clone()).await;
    let client = Client::new();
    let validate = |session: &str, key: Option<&str>, body: Value| {
        let request = client
            .post(format!("{base}/v1/sessions/{session}/validate"))
            .json(&body);
        let request = if let Some(key) = key {
            request.bearer_auth(key)
        } else {
            request
        };
        async { request.send().await.unwrap() }
    };
    let key = app_key().to_text();
    let right = json!({ "token": text(&token(1)) });
    let id = session.to_string();

    let answer = validate(&id, Some(&key), right.clone()).await;
    assert_eq!(answer.status(), 200);
    let answer: Validated = answer.json().await.unwrap();
    assert!(answer.authorised && answer.expires_in_s > 3590);
    assert_eq!(
        (
            answer.session_id,
            answer.token_generation,
            answer.trigger_port
        ),
        (id.clone(), 0, 5050)
    );
    assert_eq!(
        answer.trigger_addresses,
        ["198.51.100.1", "2001:db8:51::1"].map(|address| address.parse::<IpAddr>().unwrap()),
        "those of the device's IP version first"
    );

    problem_of(
        validate(&id, None, right.clone()).await,
        401,
        "invalid-app-key",
    )
    .await;
    problem_of(
        validate(&id, Some("pak_short"), right.clone()).await,
        401,
        "invalid-app-key",
    )
    .await;
    let other_key = ApiKey::from_bytes([8; 32]).to_text();
    problem_of(
        validate(&id, Some(&other_key), right.clone()).await,
        401,
        "invalid-app-key",
    )
    .await;
    problem_of(
        validate("0000000100000000", Some(&key), right.clone()).await,
        404,
        "unknown-session",
    )
    .await;
    problem_of(
        validate("nonsense", Some(&key), right.clone()).await,
        404,
        "unknown-session",
    )
    .await;
    problem_of(
        validate(&id, Some(&key), json!({ "token": text(&token(2)) })).await,
        403,
        "token-mismatch",
    )
    .await;
    let almost = json!({ "token": "ptk_secret" });
    let problem = problem_of(
        validate(&id, Some(&key), almost).await,
        403,
        "token-mismatch",
    )
    .await;
    assert!(!problem.detail.contains("secret"));
    problem_of(
        validate(&id, Some(&key), json!({ "token": 1 })).await,
        400,
        "malformed-body",
    )
    .await;
    problem_of(
        validate(&id, Some(&key), json!({})).await,
        400,
        "malformed-body",
    )
    .await;

    controller
        .apply(move |sessions, now| sessions.revoke(now, session))
        .await
        .unwrap()
        .unwrap();
    let problem = problem_of(validate(&id, Some(&key), right).await, 410, "session-ended").await;
    assert_eq!(problem.detail, "the session has ended (revoked)");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_error_is_a_problem() {
    let (controller, _ended) = World::default().start();
    authorised(&controller, 1).await;
    let base = serve_plainly(controller).await;
    let client = Client::new();
    let path = format!("{base}/v1/sessions/0000000100000000/validate");
    let post = || client.post(&path).bearer_auth(&*app_key().to_text());
    let json = "application/json";
    problem_of(
        client.get(format!("{base}/nowhere")).send().await.unwrap(),
        404,
        "unknown-path",
    )
    .await;
    problem_of(
        client
            .post(format!("{base}/v1/sessions/%FF/validate"))
            .send()
            .await
            .unwrap(),
        404,
        "unknown-path",
    )
    .await;
    problem_of(
        client.get(&path).send().await.unwrap(),
        405,
        "unknown-method",
    )
    .await;
    problem_of(post().body("{}").send().await.unwrap(), 415, "not-json").await;
    let malformed = post()
        .header("content-type", json)
        .body("{\"token\": \"ptk_sec")
        .send()
        .await
        .unwrap();
    assert!(
        !problem_of(malformed, 400, "malformed-body")
            .await
            .detail
            .contains("sec")
    );
    let large = post()
        .header("content-type", json)
        .body(vec![b' '; (16 << 10) + 1])
        .send()
        .await
        .unwrap();
    problem_of(large, 413, "body-too-large").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_interface_describes_itself() {
    let (controller, _ended) = World::default().start();
    let base = serve_plainly(controller).await;
    let document: Value = reqwest::get(format!("{base}/openapi.json"))
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    let validate = &document["paths"]["/v1/sessions/{session_id}/validate"]["post"];
    assert!(validate["responses"]["410"].is_object(), "{document}");
    assert_eq!(
        validate["security"],
        json!([{ "app_key": [] }, { "certificate": [] }])
    );
    for (path, method) in [
        ("/v1/sessions/{session_id}", "delete"),
        ("/v1/availability", "put"),
    ] {
        let operation = &document["paths"][path][method];
        assert!(
            operation["responses"]["429"].is_object(),
            "{path}: {document}"
        );
    }
    assert_eq!(
        document["components"]["securitySchemes"]["app_key"]["scheme"],
        "bearer"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_never_ends_is_answered_in_time() {
    let (controller, _ended) = World::default().start();
    let app =
        router(controller, 5050, Hints::default()).layer(middleware::from_fn(|request, next| {
            in_time(Duration::from_millis(50), request, next)
        }));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await });
    let answer = tokio::task::spawn_blocking(move || {
        use std::io::{Read, Write};
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        let head = "POST /v1/sessions/0000000100000000/validate HTTP/1.1\r\nhost: push\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n{";
        stream.write_all(head.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    });
    let answer = answer.await.unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 408 ") && answer.contains("urn:push:problem:timeout"),
        "{answer}"
    );
}

fn mail() -> AppName {
    "mail".parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_good_while_its_credential_is_and_guesses_are_slowed() {
    let (controller, _ended) = World::default().start();
    let id = authorised(&controller, 1).await.to_string();
    let base = serve_plainly(controller.clone()).await;
    let client = Client::new();
    let validate = |key: &ApiKey| {
        let request = client
            .post(format!("{base}/v1/sessions/{id}/validate"))
            .bearer_auth(&*key.to_text())
            .json(&json!({ "token": text(&token(1)) }));
        async { request.send().await.unwrap() }
    };
    let key = ApiKey::from_bytes([3; 32]);
    let (name, proof) = (key.id(), Proof::ApiKey(key.hash()));
    let added = controller.apply(move |sessions, now| {
        let credential = Credential {
            id: name,
            proof,
            created: now,
            expires: None,
        };
        sessions.add_credential(now, &mail(), credential)
    });
    added.await.unwrap().unwrap();
    for _twice in 0..2 {
        assert_eq!(validate(&key).await.status(), 200);
        assert_eq!(validate(&app_key()).await.status(), 200, "the other one");
    }

    let mut refused = 0;
    let slowed = loop {
        let mut guess = [3; 32];
        guess[31] = 100 + refused;
        let answer = validate(&ApiKey::from_bytes(guess)).await;
        if answer.status() == 429 {
            break answer;
        }
        problem_of(answer, 401, "invalid-app-key").await;
        refused += 1;
    };
    assert_eq!(refused, 10);
    let retry_after: u64 = slowed.headers()["retry-after"]
        .to_str()
        .unwrap()
        .parse()
        .unwrap();
    let problem = problem_of(slowed, 429, "too-many-guesses").await;
    assert_eq!(problem.retry_after_s, Some(retry_after));
    assert!((1..=5).contains(&retry_after), "{retry_after} s");
    assert_eq!(validate(&key).await.status(), 200, "who was right before");

    let removed = controller.apply(move |sessions, _now| sessions.remove_credential(&mail(), name));
    removed.await.unwrap().unwrap();
    problem_of(validate(&key).await, 401, "invalid-app-key").await;
    let past = UnixTime::from_millis(1);
    let expired = controller
        .apply(move |sessions, _now| sessions.expire_credential(&mail(), app_key().id(), past));
    expired.await.unwrap().unwrap();
    problem_of(validate(&app_key()).await, 401, "invalid-app-key").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_is_done_with_a_session_or_says_that_it_is_not_available() {
    let world = World::default();
    let (controller, _ended) = world.start();
    let [first, second] = [1, 2].map(|n| authorised(&controller, n));
    let (first, second) = (first.await.to_string(), second.await);
    let base = serve_plainly(controller.clone()).await;
    let client = Client::new();
    let end = |id: &str| {
        let request = client.delete(format!("{base}/v1/sessions/{id}"));
        let request = request.bearer_auth(&*app_key().to_text());
        async { request.send().await.unwrap() }
    };
    let anybody = client.delete(format!("{base}/v1/sessions/{first}"));
    problem_of(anybody.send().await.unwrap(), 401, "invalid-app-key").await;
    problem_of(end("0000000100000000").await, 404, "unknown-session").await;
    assert_eq!(end(&first).await.status(), 204);
    let problem = problem_of(end(&first).await, 410, "session-ended").await;
    assert_eq!(problem.detail, "the session has ended (app_ended)");

    let say = |body: Value| {
        let request = client.put(format!("{base}/v1/availability")).json(&body);
        let request = request.bearer_auth(&*app_key().to_text());
        async { request.send().await.unwrap() }
    };
    problem_of(say(json!({})).await, 400, "malformed-body").await;
    assert_eq!(world.state().kernel.len(), 1);
    for available in [false, true] {
        let body = json!({ "available": available });
        let answer = say(body.clone()).await;
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.json::<Value>().await.unwrap(), body);
    }
    assert!(world.state().kernel.is_empty());
    let problem = problem_of(end(&second.to_string()).await, 410, "session-ended").await;
    assert_eq!(problem.detail, "the session has ended (app_server_failed)");
}

#[tokio::test(flavor = "multi_thread")]
async fn validations_beyond_the_quota_are_refused_with_when_to_come_back() {
    let (controller, _ended) = World::default().start();
    let id = authorised(&controller, 1).await.to_string();
    let limited = controller.apply(|sessions, _now| {
        let quotas = crate::sessions::records::Quotas {
            validations_per_minute: Some(2),
            ..Default::default()
        };
        sessions.set_quotas(&mail(), quotas)
    });
    limited.await.unwrap().unwrap();
    let base = serve_plainly(controller).await;
    let client = Client::new();
    let mut statuses = Vec::new();
    let last = loop {
        let request = client
            .post(format!("{base}/v1/sessions/{id}/validate"))
            .bearer_auth(&*app_key().to_text())
            .json(&json!({ "token": text(&token(1)) }));
        let answer = request.send().await.unwrap();
        if answer.status() != 200 {
            break answer;
        }
        statuses.push(answer.status());
        assert!(statuses.len() < 10, "never refused");
    };
    assert!(last.headers().contains_key("retry-after"));
    let problem = problem_of(last, 429, "quota-exceeded").await;
    assert!(problem.retry_after_s.is_some_and(|seconds| seconds <= 60));
}
