//! Devices and application servers, played by libcoap's client and curl: who gets what, and who is
//! refused, with which cause.

use crate::story::{APP, PUSH_CTL, Story, inside, outside, server, verdicts, wait_until};
use push_common::maps::SessionRecord;
use push_common::wire::SessionId;
use serde_json::{Value, json};
use std::fs;
use std::mem::offset_of;
use std::path::Path;
use std::time::{Duration, Instant};
use xtask::child;
use xtask::clients::Answer;
use xtask::lab::{Config, DEVICE, Lab, Options, Party};

const LIMIT: Duration = Duration::from_secs(20);

/// The code and text of a refusal, such as `4.03 not registered`.
fn refused(answer: Answer) -> String {
    match answer {
        Answer::Refused(why) => why,
        Answer::Success(pairs) => panic!("not refused: {:?}", pairs.keys()),
    }
}

pub(crate) fn session_ids(lab: &Lab, state: &str) -> Vec<String> {
    let sessions = lab.push_ctl_json(&["session", "list"]).unwrap();
    let of_state = sessions
        .as_array()
        .unwrap()
        .iter()
        .filter(|session| session["state"] == state);
    of_state
        .map(|session| session["id"].as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn only_a_validated_session_is_in_the_data_plane() {
    let story = Story::begin("push-prov-1");
    let lab = &story.lab;
    for family in [0, 1] {
        let registration = story.registered(family);
        let session = story.requested(family, &registration, "one", 7000);
        assert_eq!(session_ids(lab, "requested"), [&*session.id]);
        assert!(
            !kernel_has(lab, &session.id),
            "in the kernel before it was validated"
        );

        for _twice in 0..2 {
            let clients = story.clients();
            let (status, answer) = clients
                .validate(
                    &outside(family),
                    &session.id,
                    (Some(&story.app_key), &session.request_file),
                )
                .unwrap();
            assert_eq!((status, &answer["authorised"]), (200, &Value::from(true)));
            assert_eq!(answer["trigger_port"], 5050);
            let trigger_addresses = answer["trigger_addresses"].as_array().unwrap();
            assert!(
                trigger_addresses.contains(&json!(xtask::lab::GATEWAY_OUTSIDE[family])),
                "{answer}"
            );
        }
        assert!(kernel_has(lab, &session.id));

        let uri = format!(
            "coap://{}/rd/{registration}/s/{}",
            inside(family),
            session.id
        );
        story
            .clients()
            .coap(Party::Device, "delete", DEVICE[family], &uri)
            .unwrap();
        assert!(
            !kernel_has(lab, &session.id),
            "in the kernel after the device ended it"
        );
    }
}

/// The record of a session, as bpftool sees it.
fn in_kernel(lab: &Lab, session: SessionId) -> Vec<u8> {
    let mut bpftool = child::command("bpftool");
    bpftool.args(["-j", "map", "lookup", "pinned"]);
    bpftool.args(of_session(lab, session));
    let record: Value = serde_json::from_str(&child::output(&mut bpftool).unwrap()).unwrap();
    let bytes = record["value"].as_array().unwrap().iter();
    let bytes = bytes.map(|byte| byte.as_str().unwrap().trim_start_matches("0x"));
    bytes
        .map(|byte| u8::from_str_radix(byte, 16).unwrap())
        .collect()
}

/// Where a session is, as bpftool is told.
fn of_session(lab: &Lab, session: SessionId) -> Vec<String> {
    let map = lab.folder().join("bpf/push/push_sessions");
    let mut arguments = vec![map.to_str().unwrap().to_owned(), "key".to_owned()];
    arguments.extend(session.slot().to_le_bytes().map(|byte| byte.to_string()));
    arguments
}

/// Whether a slot of the session table has this session's generation.
fn kernel_has(lab: &Lab, session: &str) -> bool {
    let id: SessionId = session.parse().unwrap();
    in_kernel(lab, id).starts_with(&id.generation().to_le_bytes())
}

#[test]
fn a_terminal_that_is_not_in_the_first_operative_state_gets_no_session() {
    let story = Story::begin("push-prov-2");
    let clients = story.clients();
    let gateway = inside(0);
    let ask = |registration: &str| {
        let uri = format!("coap://{gateway}/rd/{registration}/s?app={APP}&inst=one&port=7000");
        refused(
            clients
                .coap(Party::Device, "post", DEVICE[0], &uri)
                .unwrap(),
        )
    };
    let why = ask("0123456789abcdef");
    assert!(why.starts_with("4.03"), "never registered: {why}");

    let registration = story.registered(0);
    clients
        .coap(
            Party::Device,
            "delete",
            DEVICE[0],
            &format!("coap://{gateway}/rd/{registration}"),
        )
        .unwrap();
    let why = ask(&registration);
    assert!(
        why.starts_with("4.03") && why.contains("deregistered"),
        "deregistered: {why}"
    );

    let registration = clients
        .register(Party::Device, DEVICE[0], &gateway, "ep=short&lt=1")
        .unwrap();
    let begin = Instant::now();
    loop {
        let uri = format!("coap://{gateway}/rd/{registration}/s?app={APP}&inst=one&port=7000");
        match clients
            .coap(Party::Device, "post", DEVICE[0], &uri)
            .unwrap()
        {
            Answer::Success(_) => assert!(begin.elapsed() < LIMIT, "never expires"),
            Answer::Refused(why) => {
                assert!(
                    why.starts_with("4.03") && why.contains("expired"),
                    "expired: {why}"
                );
                break;
            }
        }
    }
    assert_eq!(
        session_ids(&story.lab, "requested"),
        [] as [&str; 0],
        "sessions outlived their registration"
    );
}

#[test]
fn devices_are_refused_with_a_code_and_a_reason() {
    let story = Story::with(&Options {
        config: Config {
            slots: 4,
            ..Config::default()
        },
        device_addresses: vec!["10.64.0.3/16".into()],
        ..Options::new("push-prov-3", Path::new(PUSH_CTL))
    });
    let clients = story.clients();
    let registration = story.registered(0);
    let gateway = inside(0);
    let post = |source: &str, path: &str| {
        refused(
            clients
                .coap(
                    Party::Device,
                    "post",
                    source,
                    &format!("coap://{gateway}/{path}"),
                )
                .unwrap(),
        )
    };
    let sessions = format!("rd/{registration}/s");
    let rows = [
        (
            DEVICE[0],
            format!("{sessions}?app=unknown&inst=a&port=1"),
            "4.04",
            "no such application",
        ),
        (
            DEVICE[0],
            format!("{sessions}?app={APP}&inst=a"),
            "4.00",
            "port is missing",
        ),
        (
            DEVICE[0],
            format!("{sessions}?app={APP}&inst=a&port=0"),
            "4.00",
            "port must be",
        ),
        (
            DEVICE[0],
            format!("{sessions}?app={APP}&inst=a&port=70000"),
            "4.00",
            "port must be",
        ),
        (DEVICE[0], "rd?lt=60".to_owned(), "4.00", "ep"),
        (
            DEVICE[0],
            "rd?ep=x&lt=soon".to_owned(),
            "4.00",
            "lt must be",
        ),
        (DEVICE[0], "elsewhere".to_owned(), "4.04", ""),
        (
            "10.64.0.3",
            format!("{sessions}?app={APP}&inst=a&port=1"),
            "4.03",
            "another address",
        ),
        (
            "10.64.0.3",
            "rd?ep=phone-0".to_owned(),
            "4.03",
            "another address",
        ),
    ];
    for (source, path, code, reason) in rows {
        let why = post(source, &path);
        assert!(
            why.starts_with(code) && why.contains(reason),
            "{path}: {why}"
        );
    }
    for instance in ["a", "b", "c", "d"] {
        story.requested(0, &registration, instance, 7000);
    }
    let why = post(DEVICE[0], &format!("{sessions}?app={APP}&inst=e&port=7000"));
    assert!(why.starts_with("5.03"), "a full table: {why}");
    story.requested(0, &registration, "a", 7001); // takes the place of the one before
    assert_eq!(session_ids(&story.lab, "requested").len(), 4);
}

#[test]
fn application_servers_are_refused_with_a_cause() {
    let story = Story::begin("push-prov-4");
    let clients = story.clients();
    let registration = story.registered(0);
    let session = story.requested(0, &registration, "one", 7000);
    let other_app = clients.add_app("other").unwrap();
    let bad_key = clients
        .secret_file(
            "bad.header",
            &format!("Authorization: Bearer pak_{}", "0".repeat(64)),
        )
        .unwrap();
    let wrong = clients
        .secret_file(
            "wrong.json",
            &json!({ "token": format!("ptk_{}", "0".repeat(32)) }).to_string(),
        )
        .unwrap();
    let no_token = clients.secret_file("none.json", "{}").unwrap();
    let no_json = clients.secret_file("no.json", "token").unwrap();
    let large = clients
        .secret_file("large.json", &"x".repeat(10 << 20))
        .unwrap();
    let (key, good) = (Some(&*story.app_key), &*session.request_file);
    let unknown = "1234567800000001";
    // Name, session, header with the key, body; status and cause.
    type Row<'a> = (&'a str, &'a str, Option<&'a Path>, &'a Path, u16, &'a str);
    let rows: [Row<'_>; 8] = [
        ("no key", &session.id, None, good, 401, "invalid-app-key"),
        (
            "a wrong key",
            &session.id,
            Some(&bad_key),
            good,
            401,
            "invalid-app-key",
        ),
        (
            "another application",
            &session.id,
            Some(&other_app),
            good,
            404,
            "unknown-session",
        ),
        (
            "an unknown session",
            unknown,
            key,
            good,
            404,
            "unknown-session",
        ),
        (
            "a wrong token",
            &session.id,
            key,
            &wrong,
            403,
            "token-mismatch",
        ),
        ("no token", &session.id, key, &no_token, 400, ""),
        ("no JSON", &session.id, key, &no_json, 400, ""),
        ("ten megabytes", &session.id, key, &large, 413, ""),
    ];
    for (name, id, header, body, expected, cause) in rows {
        let (status, problem) = clients.validate(&outside(0), id, (header, body)).unwrap();
        assert_eq!(status, expected, "{name}: {problem}");
        assert_eq!(problem["status"], expected, "{name}");
        let kind = problem["type"].as_str().unwrap();
        assert!(
            kind.starts_with("urn:push:problem:") && kind.ends_with(cause),
            "{name}: {problem}"
        );
        assert!(
            problem["title"].is_string() && problem["detail"].is_string(),
            "{name}: {problem}"
        );
    }
    assert_eq!(session_ids(&story.lab, "authorised"), [] as [&str; 0]);

    story
        .lab
        .push_ctl_json(&["session", "revoke", &session.id])
        .unwrap();
    let (status, problem) = clients
        .validate(&outside(0), &session.id, (key, good))
        .unwrap();
    assert_eq!(
        (status, &problem["type"]),
        (410, &json!("urn:push:problem:session-ended"))
    );
    assert!(
        problem["detail"].as_str().unwrap().contains("revoked"),
        "{problem}"
    );
}

#[test]
fn the_external_interface_describes_itself() {
    let story = Story::begin("push-prov-5");
    let mut curl = story.lab.exec_in(Party::Application, "curl");
    curl.args(["-sS", "--cacert"])
        .arg(story.lab.certificate_path());
    curl.arg(format!("https://{}:8443/openapi.json", outside(1)));
    let api: Value = serde_json::from_str(&child::output(&mut curl).unwrap()).unwrap();
    assert!(api["openapi"].as_str().unwrap().starts_with("3."));
    let validate = &api["paths"]["/v1/sessions/{session_id}/validate"]["post"];
    for status in ["200", "401", "403", "404", "410"] {
        assert!(
            validate["responses"][status].is_object(),
            "{status}: {validate}"
        );
    }
}

#[test]
fn a_restart_brings_everything_back() {
    let story = Story::begin("push-prov-6");
    let lab = &story.lab;
    story.authorised(0, 7000);
    story.authorised(1, 7000);
    // The terminal of the first one again: another one would take its address over.
    let registration = story
        .clients()
        .register(Party::Device, DEVICE[0], &inside(0), "ep=phone-0-7000")
        .unwrap();
    story.requested(0, &registration, "two", 7001);
    let seen = || {
        let list = |noun: &str| {
            let mut rows = lab.push_ctl_json(&[noun, "list"]).unwrap();
            for row in rows.as_array_mut().unwrap() {
                row.as_object_mut().unwrap().remove("expires_in_s");
            }
            rows
        };
        (list("app"), list("terminal"), list("session"))
    };
    let before = seen();
    assert_eq!(before.2.as_array().unwrap().len(), 3);
    for kill in [false, true] {
        if kill {
            lab.kill().unwrap();
        } else {
            lab.stop().unwrap();
        }
        lab.start().unwrap();
        assert_eq!(seen(), before);
    }
    // Keys too: the token handed out before is good, and so is the application's key.
    let session = story.requested(0, &registration, "three", 7002);
    lab.stop().unwrap();
    lab.start().unwrap();
    story
        .clients()
        .authorise(&outside(0), &story.app_key, &session)
        .unwrap();
    let store = fs::read(lab.folder().join("state/push.redb")).unwrap();
    let token = fs::read_to_string(&session.token_file).unwrap();
    let secret = hex::decode(token.trim().strip_prefix("ptk_").unwrap()).unwrap();
    assert!(
        !contains(&store, &secret) && !contains(&store, token.trim().as_bytes()),
        "a token is in the store"
    );
    assert!(!lab.log().contains(token.trim()), "a token is in the log");
}

/// What the daemon said last of how store and data plane differed when it started.
fn in_line(lab: &Lab) -> String {
    let log = lab.log();
    let lines = log.lines().rev();
    let mut lines = lines.filter(|line| line.contains("are those of the store"));
    lines.next().unwrap().to_owned()
}

/// As after an old copy of the store was put back.
#[test]
fn a_session_that_the_store_does_not_know_is_taken_out_of_the_data_plane() {
    let story = Story::begin("push-prov-orphan");
    let lab = &story.lab;
    let (store, copy) = (
        lab.folder().join("state/push.redb"),
        lab.folder().join("copy"),
    );
    lab.stop().unwrap();
    fs::copy(&store, &copy).unwrap();
    lab.start().unwrap();
    let session = story.authorised(0, 7000);
    lab.kill().unwrap();
    fs::copy(&copy, &store).unwrap();
    lab.start().unwrap();
    assert!(
        in_line(lab).contains("added=0 removed=1"),
        "{}",
        in_line(lab)
    );
    let mut trigger = [0; 48];
    session.trigger(1, &mut trigger);
    server(lab, 0).send(&trigger).unwrap();
    wait_until("the trigger is refused", || {
        verdicts(lab, "gw-app")["unknown_session"] == 1
    });
}

#[test]
fn what_somebody_has_changed_in_the_kernel_is_told_of_and_mended_at_the_next_start() {
    let story = Story::begin("push-prov-poked");
    let lab = &story.lab;
    let session = story.authorised(0, 7000);
    let id = session.id;
    let in_line = || in_line(lab);
    let told = "had another key or device";

    lab.kill().unwrap();
    lab.start().unwrap();
    assert!(in_line().contains("kept=1 mended=0"), "{}", in_line());
    assert!(!lab.log().contains(told));

    let before = in_kernel(lab, id);
    lab.kill().unwrap();
    let mut poked = before.clone();
    poked[offset_of!(SessionRecord, device_address) + 3] ^= 1;
    let mut bpftool = child::command("bpftool");
    bpftool.args(["map", "update", "pinned"]);
    bpftool.args(of_session(lab, id)).arg("value");
    bpftool.args(poked.iter().map(ToString::to_string));
    child::output(&mut bpftool).unwrap();
    assert_eq!(in_kernel(lab, id), poked);
    lab.start().unwrap();
    assert!(in_line().contains("kept=0 mended=1"), "{}", in_line());
    assert!(lab.log().contains(told));
    let device = |record: &[u8]| {
        let at = offset_of!(SessionRecord, device_address);
        record[at..at + 16].to_vec()
    };
    assert_eq!(device(&in_kernel(lab, id)), device(&before));
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack
        .windows(needle.len())
        .any(|window| window == needle)
}

#[test]
fn a_device_that_is_off_can_be_suspended_before_it_comes() {
    let story = Story::begin("push-prov-10");
    let lab = &story.lab;
    let people = |arguments: &[&str]| child::output(&mut lab.push_ctl(arguments)).unwrap();
    let unknown = child::finish(&mut lab.push_ctl(&["terminal", "suspend", "phone-0"])).unwrap();
    let said = String::from_utf8_lossy(&unknown.stderr);
    assert!(
        !unknown.status.success() && said.contains("--unregistered"),
        "{said}"
    );
    let said = people(&["terminal", "suspend", "phone-0", "--unregistered"]);
    assert!(said.contains("No terminal phone-0 is registered"), "{said}");

    let audit = || fs::read_to_string(lab.folder().join("state/audit.log")).unwrap();
    wait_until("that is in the audit log", || {
        let audit = audit();
        audit.contains("terminal suspend") && audit.contains("terminal_suspended")
    });
    lab.kill().unwrap();
    lab.start().unwrap();
    let shown = lab.push_ctl_json(&["terminal", "show", "phone-0"]).unwrap();
    assert_eq!(
        (&shown["cause"], &shown["address"]),
        (&json!("suspended"), &Value::Null)
    );
    let uri = format!("coap://{}/rd?ep=phone-0", inside(0));
    let clients = story.clients();
    let why = refused(
        clients
            .coap(Party::Device, "post", DEVICE[0], &uri)
            .unwrap(),
    );
    assert!(
        why.contains("4.03") && why.contains("suspended by the operator"),
        "{why}"
    );
    let listed = people(&["terminal", "list"]);
    assert!(
        listed.contains("phone-0") && listed.contains(DEVICE[0]),
        "{listed}"
    );

    let said = people(&["terminal", "resume", "phone-0"]);
    assert!(said.contains("has to register anew"), "{said}");
    story.registered(0);
    people(&["terminal", "show", "phone-0"]);
}
