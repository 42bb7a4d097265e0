//! What the operator says of application servers.

use super::*;

async fn with_chat() -> (Admin, String) {
    let admin = admin().await;
    let body = json!({ "name": "chat" });
    let (_, added) = admin.ask(Method::POST, "/v1/apps", Some(body)).await;
    let id = added["credential"]["id"].as_str().unwrap().to_owned();
    (admin, id)
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_added_rotated_and_removed() {
    let (admin, first) = with_chat().await;
    let path = "/v1/apps/chat/credentials";
    let ids = async || -> Vec<String> {
        let listed = admin.get(path).await;
        assert_eq!(listed, admin.get("/v1/apps/chat").await["credentials"]);
        assert!(!listed.to_string().contains("argon2"), "{listed}");
        let ids = listed.as_array().unwrap().iter();
        ids.map(|listed| listed["id"].as_str().unwrap().to_owned())
            .collect()
    };
    let (_, added) = admin.ask(Method::POST, path, Some(json!({}))).await;
    let key: ApiKey = added["api_key"].as_str().unwrap().parse().unwrap();
    let second = key.id().to_string();
    assert_eq!(added["credential"]["id"], second);
    assert_eq!(ids().await, [&*first, &second]);

    let rotate = |body| admin.ask(Method::POST, "/v1/apps/chat/credentials/rotate", Some(body));
    let (_, rotated) = rotate(json!({ "overlap_s": 60, "only": first })).await;
    assert_eq!(rotated["replaced"], json!([first]));
    let third = rotated["credential"]["id"].as_str().unwrap().to_owned();
    let listed = admin.get(path).await;
    let expires = |n: usize| listed[n]["expires_at"].is_string();
    assert_eq!([0, 1, 2].map(expires), [true, false, false]);
    let (_, rotated) = rotate(json!({ "overlap_s": 0 })).await;
    assert_eq!(rotated["replaced"], json!([first, second, third]));
    let last = rotated["credential"]["id"].as_str().unwrap().to_owned();
    assert_eq!(ids().await, [&*last]);

    for (body, status) in [
        (json!({ "overlap_s": 0, "only": first }), 404),
        (json!({ "overlap_s": 0, "only": "nonsense" }), 404),
        (json!({ "overlap_s": 1_u64 << 40 }), 400),
        (json!({}), 400),
    ] {
        assert_eq!(rotate(body.clone()).await.0, status, "{body}");
    }
    let remove = format!("{path}/{last}");
    let (_, removed) = admin.ask(Method::DELETE, &remove, None).await;
    let expected = json!({ "id": last, "removed": true, "remaining": 0 });
    assert_eq!(removed, expected);
    let (status, problem) = admin.ask(Method::DELETE, &remove, None).await;
    assert_eq!(
        (status, &problem["type"]),
        (404, &json!("urn:push:problem:unknown-credential"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_one_applications_and_has_to_be_good() {
    let (admin, _) = with_chat().await;
    let body = json!({ "name": "mail" });
    admin.ask(Method::POST, "/v1/apps", Some(body)).await;
    let pem = |year| {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(["server.test".to_owned()]).unwrap();
        params.not_after = rcgen::date_time_ymd(year, 1, 2);
        params.self_signed(&key).unwrap().pem()
    };
    let good = json!({ "certificate": pem(2999) });
    let add = |app: &str, body: &Value| {
        let path = format!("/v1/apps/{app}/credentials");
        let body = body.clone();
        let admin = &admin;
        async move { admin.ask(Method::POST, &path, Some(body)).await }
    };
    let (status, added) = add("chat", &good).await;
    assert_eq!((status, added.get("api_key")), (200, None), "{added}");
    let credential = &added["credential"];
    assert_eq!(credential["kind"], "certificate");
    assert_eq!(credential["expires_at"], "2999-01-02T00:00:00Z");
    let rotate = "/v1/apps/chat/credentials/rotate";
    let body = json!({ "overlap_s": 0, "only": credential["id"] });
    let (status, problem) = admin.ask(Method::POST, rotate, Some(body)).await;
    assert_eq!(status, 409);
    assert_eq!(problem["type"], "urn:push:problem:not-a-key");
    for (app, body, status, why) in [
        ("mail", good, 409, "an application's already"),
        ("nonesuch", json!({}), 404, "no application"),
        (
            "chat",
            json!({ "certificate": pem(2001) }),
            400,
            "has expired",
        ),
        (
            "chat",
            json!({ "certificate": "none" }),
            400,
            "no certificate in it",
        ),
    ] {
        let (got, problem) = add(app, &body).await;
        let detail = problem["detail"].as_str().unwrap();
        assert!(got == status && detail.contains(why), "{got}: {detail}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn quotas_change_one_by_one() {
    let (admin, _) = with_chat().await;
    let path = "/v1/apps/chat/quotas";
    let set = |change| admin.ask(Method::PATCH, path, Some(change));
    let (_, app) = set(json!({ "sessions": 10, "validations_per_minute": 60 })).await;
    let expected = json!({
        "sessions": 10,
        "sessions_per_terminal": null,
        "validations_per_minute": 60,
        "triggers_per_second": null,
    });
    assert_eq!(app["quotas"], expected);
    let (_, app) =
        set(json!({ "sessions": null, "sessions_per_terminal": 0, "triggers_per_second": 9 }))
            .await;
    let expected = json!({
        "sessions": null,
        "sessions_per_terminal": 0,
        "validations_per_minute": 60,
        "triggers_per_second": 9,
    });
    assert_eq!(app["quotas"], expected);
    assert_eq!(admin.get("/v1/apps/chat").await, app);
    for wrong in [
        json!({ "validations_per_minute": 0 }),
        json!({ "triggers_per_second": 0 }),
        json!({ "sessions": -1 }),
        json!({ "colour": 1 }),
    ] {
        assert_eq!(set(wrong.clone()).await.0, 400, "{wrong}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_monitor_is_set_as_a_whole_or_refused_with_what_is_wrong() {
    let (admin, _) = with_chat().await;
    let path = "/v1/apps/chat/monitor";
    let good = json!({
        "url": "https://app.example.com/status", "interval_s": 30, "unreachable_after_s": 120,
        "inactive_after_s": 3600,
    });
    let (status, app) = admin.ask(Method::PUT, path, Some(good.clone())).await;
    assert_eq!((status, &app["monitor"]), (200, &good));
    let available = json!({ "available": true, "cause": null, "since": null });
    assert_eq!(app["availability"], available);
    for (key, value, why) in [
        (
            "url",
            json!("http://app.example.com/"),
            "url: only an address of this machine",
        ),
        (
            "url",
            json!("https://me:secret@app.example.com/"),
            "leave them out",
        ),
        (
            "interval_s",
            json!(0),
            "interval_s: 0s is not between 1s and 1d",
        ),
        (
            "unreachable_after_s",
            json!(1_u64 << 40),
            "is not between 0s and 30d",
        ),
        (
            "inactive_after_s",
            json!(0),
            "inactive_after_s: 0s is not between 1s",
        ),
    ] {
        let mut wrong = good.clone();
        wrong[key] = value;
        let (status, problem) = admin.ask(Method::PUT, path, Some(wrong)).await;
        let detail = problem["detail"].as_str().unwrap();
        assert!(status == 400 && detail.contains(why), "{detail}");
        assert!(!detail.contains("secret"));
    }
    let nothing = json!({ "interval_s": 30, "unreachable_after_s": 120 });
    let (status, problem) = admin.ask(Method::PUT, path, Some(nothing)).await;
    let detail = problem["detail"].as_str().unwrap();
    assert!(
        status == 400 && detail.contains("nothing to look after"),
        "{detail}"
    );
    let (_, app) = admin.ask(Method::DELETE, path, None).await;
    assert_eq!(app["monitor"], Value::Null);
}
