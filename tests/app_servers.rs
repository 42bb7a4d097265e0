//! Application servers as strangers play them: curl with a certificate, OpenSSL's server that is stopped and
//! started, and a program that makes up requests.

use crate::story::{APP, DEVICE_PORT, Story, device, outside, server, verdicts, wait_until};
use serde_json::{Value, json};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use xtask::child;
use xtask::clients::Granted;
use xtask::lab::{APPLICATION, Config, DEVICE, Lab, Party};
use xtask::setup::python;

/// Where the application's server answers status enquiries.
const STATUS_PORT: u16 = 9443;

/// A self-signed certificate and its key, made by OpenSSL.
fn certificate(story: &Story, name: &str) -> (PathBuf, PathBuf) {
    let path = |suffix: &str| story.lab.folder().join(format!("{name}.{suffix}"));
    let (certificate, key) = (path("crt"), path("key"));
    let mut openssl = child::command("openssl");
    openssl
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt"])
        .args(["ec_paramgen_curve:P-256", "-nodes", "-days", "30", "-subj"])
        .args([&format!("/CN={name}"), "-addext"])
        .arg(format!("subjectAltName=IP:{}", APPLICATION[0]))
        .args(["-keyout".as_ref(), key.as_path()])
        .args(["-out".as_ref(), certificate.as_path()]);
    child::output(&mut openssl).unwrap();
    (certificate, key)
}

/// A certificate that is issued by another one, and its key.
fn issued(
    story: &Story,
    name: &str,
    (issuer, issuer_key): &(PathBuf, PathBuf),
) -> (PathBuf, PathBuf) {
    let (certificate, key) = certificate(story, name);
    let mut openssl = child::command("openssl");
    openssl
        .args([
            "req",
            "-x509",
            "-days",
            "30",
            "-subj",
            &format!("/CN={name}"),
            "-addext",
        ])
        .arg(format!("subjectAltName=IP:{}", APPLICATION[0]))
        .args(["-addext", "basicConstraints=critical,CA:FALSE"])
        .args([
            "-key".as_ref(),
            key.as_path(),
            "-CA".as_ref(),
            issuer.as_path(),
        ])
        .args(["-CAkey".as_ref(), issuer_key.as_path()])
        .args(["-out".as_ref(), certificate.as_path()]);
    child::output(&mut openssl).unwrap();
    (certificate, key)
}

/// What curl says when an application's server asks, identified by these arguments: status and body.
fn curl(story: &Story, arguments: &[&str], path: &str) -> (u16, Value) {
    let mut curl = story.lab.exec_in(Party::Application, "curl");
    curl.args([
        "-sS",
        "--max-time",
        "10",
        "-w",
        "\n%{http_code}",
        "--cacert",
    ])
    .arg(story.lab.certificate_path())
    .args(arguments)
    .arg(format!("https://{}:8443{path}", outside(0)));
    let text = child::output(&mut curl).unwrap();
    let (body, status) = text.trim_end().rsplit_once('\n').unwrap_or(("", &text));
    let body = serde_json::from_str(body).unwrap_or(Value::Null);
    (status.trim().parse().unwrap(), body)
}

fn people(lab: &Lab, arguments: &[&str]) -> String {
    child::output(&mut lab.push_ctl(arguments)).unwrap()
}

/// The status of a validation by the key in this file.
fn validates(story: &Story, session: &Granted, key: &Path) -> u16 {
    let proof = (Some(key), &*session.request_file);
    let validated = story.clients().validate(&outside(0), &session.id, proof);
    validated.unwrap().0
}

#[test]
fn a_server_identifies_itself_by_its_certificate_and_any_other_is_nobody() {
    let story = Story::begin("push-serv-1");
    let lab = &story.lab;
    let registration = story.registered(0);
    let session = story.requested(0, &registration, "one", DEVICE_PORT);
    let path = |path: &Path| path.to_str().unwrap().to_owned();
    let [ours, other] = ["ours", "other"].map(|name| certificate(&story, name));
    let add = ["app", "key", "add", APP, "--certificate", &path(&ours.0)];
    let added = lab.push_ctl_json(&add).unwrap();
    assert!(added.get("api_key").is_none(), "a key was made");
    let credential = &added["credential"];
    assert_eq!(credential["kind"], "certificate");
    let mut openssl = child::command("openssl");
    openssl.args(["x509", "-noout", "-fingerprint", "-sha256", "-in"]);
    let fingerprint = child::output(openssl.arg(&ours.0)).unwrap();
    let digits = fingerprint.trim().rsplit_once('=').unwrap().1;
    let digits = digits.replace(':', "").to_lowercase();
    let id = credential["id"].as_str().unwrap();
    assert_eq!(id, &digits[..16], "it is named by its fingerprint");

    let body = format!("@{}", path(&session.request_file));
    let validate = format!("/v1/sessions/{}/validate", session.id);
    let by = |(certificate, key): &(PathBuf, PathBuf), extra: &[&str]| {
        let (certificate, key) = (path(certificate), path(key));
        let mut arguments = vec!["--cert", &certificate, "--key", &key, "--json", &body];
        arguments.extend(extra);
        curl(&story, &arguments, &validate)
    };
    for version in ["--tlsv1.3", "--tls-max=1.2"] {
        let (status, answer) = by(&ours, &version.split('=').collect::<Vec<_>>());
        assert_eq!((status, &answer["authorised"]), (200, &json!(true)));
    }
    let refused = |(status, problem): (u16, Value), why: &str| {
        assert_eq!(status, 401, "{why}: {problem}");
        assert_eq!(problem["type"], "urn:push:problem:invalid-app-key");
    };
    refused(by(&other, &[]), "another certificate");
    refused(
        curl(&story, &["--json", &body], &validate),
        "no certificate",
    );
    refused(
        by(&ours, &["-H", "Authorization: Bearer nonsense"]),
        "what is put into the request counts first",
    );
    // Who shows a certificate has to have its key.
    let stolen = (ours.0.clone(), other.1.clone());
    let mut curl_of_thief = lab.exec_in(Party::Application, "curl");
    curl_of_thief
        .args(["-sS", "--cert", &path(&stolen.0), "--key", &path(&stolen.1)])
        .args(["-k", &format!("https://{}:8443/openapi.json", outside(0))]);
    assert!(!child::finish(&mut curl_of_thief).unwrap().status.success());

    lab.push_ctl_json(&["app", "key", "remove", APP, id])
        .unwrap();
    refused(by(&ours, &[]), "removed");
}

#[test]
fn keys_are_rotated_with_an_overlap_and_never_shown_again() {
    let story = Story::begin("push-serv-2");
    let lab = &story.lab;
    let registration = story.registered(0);
    let session = story.requested(0, &registration, "one", DEVICE_PORT);
    let rotate = |overlap: &str| {
        let arguments = ["app", "key", "rotate", APP, "--overlap", overlap];
        let rotated = lab.push_ctl_json(&arguments).unwrap();
        let key = rotated["api_key"].as_str().unwrap().to_owned();
        let header = format!("Authorization: Bearer {key}");
        let file = story.clients().secret_file(&key[4..20], &header).unwrap();
        (key, file)
    };
    let first = story.app_key.clone();
    let (second_key, second) = rotate("1h");
    for key in [&first, &second] {
        assert_eq!(validates(&story, &session, key), 200);
    }
    let listed = lab.push_ctl_json(&["app", "key", "list", APP]).unwrap();
    let expiries: Vec<_> = listed
        .as_array()
        .unwrap()
        .iter()
        .map(|key| key["expires_at"].is_string())
        .collect();
    assert_eq!(expiries, [true, false], "{listed}");

    let (third_key, third) = rotate("0s");
    for (key, status) in [(&first, 401), (&second, 401), (&third, 200)] {
        assert_eq!(validates(&story, &session, key), status);
    }
    // The hash is what a restart brings back.
    lab.stop().unwrap();
    lab.start().unwrap();
    assert_eq!(validates(&story, &session, &third), 200);
    assert_eq!(validates(&story, &session, &second), 401);

    let shown = people(lab, &["app", "show", APP]);
    let id = &third_key[4..20];
    assert!(shown.contains(&format!("{id} (key), added ")), "{shown}");
    let store = fs::read(lab.folder().join("state/push.redb")).unwrap();
    let contains = |what: &str| {
        store
            .windows(what.len())
            .any(|bytes| bytes == what.as_bytes())
    };
    assert!(contains("$argon2id$v=19$m=19456,t=2,p=1$"));
    for key in [&second_key, &third_key] {
        let secret = &key[20..];
        assert!(!lab.log().contains(secret) && !shown.contains(secret));
        assert!(!contains(secret), "a key is in the store");
        let bytes = hex::decode(secret).unwrap();
        assert!(!store.windows(bytes.len()).any(|found| found == bytes));
    }
    assert!(!shown.contains("argon2") && !lab.log().contains("argon2"));

    let removed = people(lab, &["app", "key", "remove", APP, id]);
    assert!(removed.contains("It was the last"), "{removed}");
    assert_eq!(validates(&story, &session, &third), 401);
    let mut again = lab.push_ctl(&["app", "key", "remove", APP, id]);
    let again = child::finish(&mut again).unwrap();
    let said = String::from_utf8_lossy(&again.stderr);
    assert!(
        !again.status.success() && said.contains("app key list"),
        "{said}"
    );
}

#[test]
fn a_quota_that_is_used_up_is_refused_with_when_to_come_back() {
    let story = Story::begin("push-serv-3");
    let lab = &story.lab;
    let registration = story.registered(0);
    let session = story.requested(0, &registration, "one", DEVICE_PORT);
    let set = [
        "app",
        "quota",
        APP,
        "--validations",
        "2/min",
        "--sessions",
        "5",
    ];
    let shown = people(lab, &set);
    assert!(shown.contains("5 sessions, 2 validations/min"), "{shown}");
    let header = format!("@{}", story.app_key.display());
    let body = format!("@{}", session.request_file.display());
    let path = format!("/v1/sessions/{}/validate", session.id);
    let mut statuses = Vec::new();
    let refused = loop {
        let (status, problem) = curl(&story, &["-H", &header, "--json", &body], &path);
        if status != 200 {
            break (status, problem);
        }
        statuses.push(status);
        assert!(statuses.len() < 10, "never refused");
    };
    assert_eq!(refused.0, 429, "{}", refused.1);
    assert_eq!(refused.1["type"], "urn:push:problem:quota-exceeded");
    let seconds = refused.1["retry_after_s"].as_u64().unwrap();
    assert!((1..=60).contains(&seconds), "{seconds} s");
    let head = ["-H", &header, "--json", &body, "-D", "-", "-o", "/dev/null"];
    let mut curl = lab.exec_in(Party::Application, "curl");
    curl.args(["-sS", "--cacert"])
        .arg(lab.certificate_path())
        .args(head);
    let head = child::output(curl.arg(format!("https://{}:8443{path}", outside(0)))).unwrap();
    assert!(head.to_lowercase().contains("\nretry-after: "), "{head}");

    let off = [
        "app",
        "quota",
        APP,
        "--validations",
        "off",
        "--sessions",
        "off",
    ];
    lab.push_ctl_json(&off).unwrap();
    assert_eq!(validates(&story, &session, &story.app_key), 200);
}

#[test]
fn a_session_for_whose_triggers_there_is_no_room_is_refused_until_there_is() {
    let story = Story::begin("push-serv-6");
    let lab = &story.lab;
    let registration = story.registered(0);
    let [first, second] =
        ["one", "two"].map(|instance| story.requested(0, &registration, instance, DEVICE_PORT));
    let header = format!("@{}", story.app_key.display());
    let validate = |session: &Granted| {
        let body = format!("@{}", session.request_file.display());
        let path = format!("/v1/sessions/{}/validate", session.id);
        curl(&story, &["-H", &header, "--json", &body], &path)
    };
    let is_refused = |(status, problem): (u16, Value), why: &str| {
        assert_eq!(status, 429, "{problem}");
        assert_eq!(problem["type"], "urn:push:problem:trigger-rate-exceeded");
        assert_eq!(problem["retry_after_s"], 60);
        assert!(
            problem["detail"].as_str().unwrap().contains(why),
            "{problem}"
        );
    };
    people(lab, &["app", "quota", APP, "--triggers", "15/s"]);
    is_refused(validate(&first), "operator of the gateway has to set one");
    people(lab, &["app", "set", APP, "--rate", "10/s"]);
    assert_eq!(validate(&first).0, 200);
    is_refused(validate(&second), "triggers per second of app");
    let shown = people(lab, &["app", "show", APP]);
    assert!(
        shown.contains("10 triggers/s") && shown.contains("15 triggers/s"),
        "{shown}"
    );

    // Lowered, it ends nothing that there is.
    people(lab, &["app", "quota", APP, "--triggers", "5/s"]);
    let shown = lab.push_ctl_json(&["session", "show", &first.id]).unwrap();
    assert_eq!(shown["state"], "authorised");
    is_refused(validate(&second), "triggers per second of app");
    people(lab, &["app", "quota", APP, "--triggers", "20/s"]);
    assert_eq!(validate(&second).0, 200);
    let audit = || fs::read_to_string(lab.folder().join("state/audit.log")).unwrap();
    wait_until("both refusals are in the audit log", || {
        audit().matches("triggers_per_second_of_app").count() == 2
    });
}

/// OpenSSL's server in the application's namespace: it sends the file `status`, and notes that it has.
struct StatusServer {
    process: Child,
    noted: PathBuf,
}

impl StatusServer {
    fn start(story: &Story, (certificate, key): &(PathBuf, PathBuf)) -> Self {
        let folder = story.lab.folder();
        let noted = folder.join("status.log");
        fs::write(folder.join("status"), "good\n").unwrap();
        let mut openssl = story.lab.exec_in(Party::Application, "openssl");
        openssl
            .args(["s_server", "-WWW", "-accept"])
            .arg(format!("{}:{STATUS_PORT}", APPLICATION[0]))
            .args(["-cert".as_ref(), certificate.as_path()])
            .args(["-key".as_ref(), key.as_path()])
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&noted).unwrap());
        let process = openssl.spawn().unwrap();
        Self { process, noted }
    }

    fn times_asked(&self) -> usize {
        let noted = fs::read_to_string(&self.noted).unwrap();
        noted.matches("FILE:status").count()
    }
}

impl Drop for StatusServer {
    fn drop(&mut self) {
        let _gone = self.process.kill();
        let _gone = self.process.wait();
    }
}

#[test]
fn an_application_whose_server_is_stopped_has_no_sessions_until_it_is_started_again() {
    let story = Story::begin("push-serv-4");
    let lab = &story.lab;
    let authority = certificate(&story, "authority");
    let ours = issued(&story, "status", &authority);
    let trusting = Config {
        monitoring_ca: Some(authority.0.clone()),
        ..Config::default()
    };
    lab.write_config(&trusting).unwrap();
    lab.stop().unwrap();
    lab.start().unwrap();
    let status_server = StatusServer::start(&story, &ours);
    let url = format!("https://{}:{STATUS_PORT}/status", APPLICATION[0]);
    let monitor = [
        "app",
        "monitor",
        APP,
        "--url",
        &url,
        "--interval",
        "1s",
        "--unreachable-after",
        "2s",
    ];
    let shown = people(lab, &monitor);
    assert!(
        shown.contains(&format!("{url} every 1s, unreachable after 2s")),
        "{shown}"
    );

    let registration = story.registered(0);
    let session = story.requested(0, &registration, "one", DEVICE_PORT);
    assert_eq!(validates(&story, &session, &story.app_key), 200);
    let (sender, receiver) = (server(lab, 0), device(lab, 0, DEVICE_PORT));
    let send = |sequence| {
        let mut trigger = [0; 64];
        session.traffic.trigger(sequence, &mut trigger);
        sender.send(&trigger).unwrap();
    };
    send(1);
    receiver.recv(&mut [0; 2048]).unwrap();

    wait_until("it is asked for longer than it may fail", || {
        status_server.times_asked() > 4
    });
    let app = lab.push_ctl_json(&["app", "show", APP]).unwrap();
    assert_eq!(app["availability"]["available"], true, "{}", lab.log());
    drop(status_server);
    let state = |key: &str| {
        let shown = lab
            .push_ctl_json(&["session", "show", &session.id])
            .unwrap();
        shown[key].clone()
    };
    wait_until("the session ends", || state("state") == "ended");
    assert_eq!(state("cause"), "app_server_failed");
    let app = lab.push_ctl_json(&["app", "show", APP]).unwrap();
    assert_eq!(app["availability"]["available"], false);
    assert_eq!(app["availability"]["cause"], "unreachable");
    let refused_before = verdicts(lab, "gw-app")["unknown_session"];
    send(2);
    wait_until("the kernel refuses the trigger", || {
        verdicts(lab, "gw-app")["unknown_session"] == refused_before + 1
    });
    assert_eq!(validates(&story, &session, &story.app_key), 410);
    let uri = format!(
        "coap://{}/rd/{registration}/s?app={APP}&inst=one&port={DEVICE_PORT}",
        crate::story::inside(0)
    );
    let ask = || {
        let answer = story.clients().coap(Party::Device, "post", DEVICE[0], &uri);
        answer.unwrap()
    };
    let why = format!("{:?}", ask());
    assert!(why.contains("out of service"), "{why}");

    let _status_server = StatusServer::start(&story, &ours);
    wait_until("it has recovered", || {
        let app = lab.push_ctl_json(&["app", "show", APP]).unwrap();
        app["availability"]["available"] == true
    });
    let session = story.requested(0, &registration, "one", DEVICE_PORT);
    assert_eq!(validates(&story, &session, &story.app_key), 200);
    let off = people(lab, &["app", "monitor", APP, "off"]);
    assert!(off.contains("available"), "{off}");
}

#[test]
fn what_nobody_has_thought_of_is_answered_as_the_description_says() {
    let story = Story::begin("push-serv-5");
    let lab = &story.lab;
    // By a certificate: a key would be on a command line, or in a report.
    let ours = certificate(&story, "tester");
    let add = [
        "app",
        "key",
        "add",
        APP,
        "--certificate",
        ours.0.to_str().unwrap(),
    ];
    lab.push_ctl_json(&add).unwrap();
    let registration = story.registered(0);
    let session = story.requested(0, &registration, "one", DEVICE_PORT);
    let parameters = format!(
        "[parameters]\n\"path.session_id\" = [{:?}, \"0000000100000000\"]\n",
        session.id
    );
    fs::write(lab.folder().join("schemathesis.toml"), parameters).unwrap();
    let schemathesis = python::schemathesis();
    assert!(schemathesis.is_file(), "run `cargo xtask setup` first");
    let mut command = lab.exec_in(Party::Application, schemathesis);
    command
        .current_dir(lab.folder())
        .args(["run", "--no-color", "--checks"])
        .arg("not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance")
        .args(["--max-examples", "30", "--seed", "1", "--generation-database", "none"])
        .args(["--request-timeout", "10", "--continue-on-failure", "--tls-verify"])
        .arg(lab.certificate_path())
        .args(["--request-cert".as_ref(), ours.0.as_path()])
        .args(["--request-cert-key".as_ref(), ours.1.as_path()])
        .arg(format!("https://{}:8443/openapi.json", outside(0)));
    let output = child::finish(&mut command).unwrap();
    let said = child::said(&output);
    assert!(output.status.success(), "{said}");
    assert!(
        said.contains("Operations:       3 selected / 3 total"),
        "{said}"
    );
    let counts = said.lines().find_map(|line| {
        let (generated, passed) = line.trim().split_once(" generated, ")?;
        let passed = passed.split_once(" passed")?.0;
        Some([generated, passed].map(|count| count.parse::<u32>().unwrap()))
    });
    let [generated, passed] = counts.unwrap_or_else(|| panic!("{said}"));
    assert!(generated == passed && generated > 100, "{said}");
}
