//! The internal interface over DTLS with pre-shared keys, to libcoap's client with OpenSSL; tshark sees
//! the handshake.

use crate::judged::capture::Witness;
use crate::provisioning::session_ids;
use crate::story::{APP, PUSH_CTL, Story, outside};
use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::Path;
use std::process::Command;
use xtask::child;
use xtask::lab::{Config, DEVICE, GATEWAY_INSIDE, Lab, Options, Party};

const IDENTITY: &str = "phone-7";
/// What the client is told, and the gateway in hexadecimal digits.
const KEY: &str = "sixteen bytes at least";
const PORT: u16 = 5684;

fn story(prefix: &str) -> (Story, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let keys = folder.path().join("coaps.keys");
    fs::write(&keys, format!("{IDENTITY} {}\n", hex::encode(KEY))).unwrap();
    let options = Options {
        config: Config {
            coaps: Some((vec![format!("{}:{PORT}", GATEWAY_INSIDE[0])], keys)),
            ..Config::default()
        },
        ..Options::new(prefix, Path::new(PUSH_CTL))
    };
    (Story::with(&options), folder)
}

fn client(lab: &Lab, identity: &str, key: &str, method: &str, path: &str) -> Command {
    let mut command = lab.exec_in(Party::Device, "coap-client-openssl");
    let uri = format!("coaps://{}/{path}", GATEWAY_INSIDE[0]);
    command.args(["-a", DEVICE[0], "-u", identity, "-k", key]);
    command.args(["-B", "5", "-m", method, "-A", "0", &uri]);
    command
}

/// What a request is answered: its pairs of `key=value`.
fn ask(lab: &Lab, method: &str, path: &str) -> HashMap<String, String> {
    let output = child::finish(&mut client(lab, IDENTITY, KEY, method, path)).unwrap();
    let (text, complaint) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(
        output.status.success() && complaint.trim().is_empty(),
        "{path}: {complaint}"
    );
    text.lines()
        .filter_map(|line| line.split_once('='))
        .map(|(key, value)| (key.to_owned(), value.trim().to_owned()))
        .collect()
}

#[test]
fn a_device_with_a_key_lives_its_life_over_dtls() {
    let (story, _keys) = story("push-coaps");
    let lab = &story.lab;
    assert!(lab.log().contains("experimental"), "{}", lab.log());
    let filter = ["udp", "port", &PORT.to_string()];
    let witness = Witness::start(lab, Party::Gateway, "gw-dev", &filter);
    let registered = ask(lab, "post", "rd?ep=secret");
    let gateway = format!("{}:{PORT}", GATEWAY_INSIDE[0]);
    assert_eq!(registered["trigger_source"], gateway);
    let registration = &registered["id"];

    let path = format!("rd/{registration}/s?app={APP}&inst=one&port=7000");
    let session = ask(lab, "post", &path);
    let clients = story.clients();
    let granted = clients
        .granted(&session["session_id"], &session["token"], 0)
        .unwrap();
    clients
        .authorise(&outside(0), &story.app_key, &granted)
        .unwrap();
    assert_eq!(session_ids(lab, "authorised"), [&*granted.id]);
    ask(lab, "post", &format!("rd/{registration}"));
    ask(
        lab,
        "delete",
        &format!("rd/{registration}/s/{}", granted.id),
    );
    ask(lab, "delete", &format!("rd/{registration}"));

    let capture = witness.keep(10);
    let mut tshark = child::command("tshark");
    tshark.arg("-r").arg(&capture).args(["-T", "fields"]);
    for field in [
        "dtls.handshake.type",
        "dtls.handshake.ciphersuite",
        "_ws.malformed",
    ] {
        tshark.args(["-e", field]);
    }
    let seen = child::output(&mut tshark).unwrap();
    let mut types = BTreeSet::new();
    for line in seen.lines() {
        let columns: Vec<_> = line.split('\t').collect();
        types.extend(
            columns[0]
                .split(',')
                .filter_map(|kind| kind.parse::<u8>().ok()),
        );
        assert_eq!(columns[2], "", "malformed: {seen}");
    }
    // ClientHello, ServerHello, HelloVerifyRequest, ServerHelloDone, ClientKeyExchange.
    assert!(types.is_superset(&[1, 2, 3, 14, 16].into()), "{seen}");
    assert!(seen.contains("0xc0a8"), "{seen}");
    let messages = fs::read(&capture).unwrap();
    let token = session["token"].as_bytes();
    let is_there = |what: &[u8]| messages.windows(what.len()).any(|window| window == what);
    assert!(
        !is_there(token) && !is_there(b"secret"),
        "readable by everybody"
    );
}

#[test]
fn who_has_another_key_gets_nothing() {
    let (story, _keys) = story("push-coaps-2");
    let lab = &story.lab;
    for (identity, key) in [(IDENTITY, "sixteen bytes, but others"), ("nobody", KEY)] {
        let mut command = client(lab, identity, key, "post", "rd?ep=secret");
        let output = child::finish(&mut command).unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(!text.contains("id="), "{identity}: {text}");
    }
    let terminals = lab.push_ctl_json(&["terminal", "list"]).unwrap();
    assert!(!terminals.to_string().contains("secret"), "{terminals}");
    // And who has the right one still does.
    ask(lab, "post", "rd?ep=secret");
}
