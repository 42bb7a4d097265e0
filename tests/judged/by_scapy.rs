//! Triggers that a script makes from the documents alone, and scapy puts into frames: the device gets
//! each, byte for byte, and the script understands what comes back.

use crate::datagram::SERVER_PORT;
use crate::gateway::TRIGGER_PORT;
use crate::story::{APP, DEVICE_PORT, INTERNAL_PORT, LIMIT, Story};
use crate::story::{checksum_errors, device, outside, socket_address, verdicts, wait_until};
use push_common::wire::TriggerHeader;
use serde_json::{Value, json};
use std::fs;
use std::net::{SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use xtask::child;
use xtask::clients::Granted;
use xtask::lab::{APPLICATION, GATEWAY_INSIDE, GATEWAY_OUTSIDE, Party};
use zerocopy::IntoBytes;

/// Debian's: no other has Debian's scapy.
const PYTHON: &str = "/usr/bin/python3";
const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/judged/sender.py");
/// Framings that the script knows.
const FRAMINGS: usize = 9;

#[test]
fn our_test_vectors_are_those_of_the_documents() {
    let vectors = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../push-common/trigger-vectors.json"
    );
    let json: Value = serde_json::from_slice(&fs::read(vectors).unwrap()).unwrap();
    let valid = json["valid"].as_array().unwrap().len();
    let mut script = child::command(PYTHON);
    let agreed = child::output(script.args([SCRIPT, "vectors", vectors])).unwrap();
    assert_eq!(agreed.trim(), valid.to_string());
}

/// A session on the device, by each IP version.
fn sessions(story: &Story) -> [Granted; 2] {
    [0, 1].map(|family| {
        let registration = story.registered(family);
        let granted = story.requested(family, &registration, "one", DEVICE_PORT);
        let clients = story.clients();
        clients
            .authorise(&outside(family), &story.app_key, &granted)
            .unwrap();
        granted
    })
}

/// What the script has to know; in a file, as it is no secret.
fn order(story: &Story, sessions: &[Granted; 2], payload_bytes: &[usize]) -> PathBuf {
    let mac = |party, nic| {
        let mac = story.shell(party, &format!("cat /sys/class/net/{nic}/address"));
        mac.trim().to_owned()
    };
    let sessions = sessions.each_ref().map(|granted| {
        json!({
            "id": granted.id,
            "token_file": granted.token_file,
            "token_generation": granted.traffic.token_generation,
        })
    });
    let order = json!({
        "nic": "app0",
        "mac": mac(Party::Application, "app0"),
        "gateway_mac": mac(Party::Gateway, "gw-app"),
        "addresses": APPLICATION,
        "gateway_addresses": GATEWAY_OUTSIDE,
        "port": SERVER_PORT,
        "gateway_port": TRIGGER_PORT,
        "sessions": sessions,
        "payload_bytes": payload_bytes,
    });
    let path = story.lab.folder().join("order.json");
    fs::write(&path, order.to_string()).unwrap();
    path
}

/// What the script says of each trigger.
fn run(story: &Story, task: &str, order: &PathBuf) -> Vec<Value> {
    let mut script = story.lab.exec_in(Party::Application, PYTHON);
    let said = child::output(script.args([SCRIPT, task]).arg(order)).unwrap();
    said.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn datagram(line: &Value) -> Vec<u8> {
    hex::decode(line["datagram"].as_str().unwrap()).unwrap()
}

/// The next datagram, and where it came from.
fn next(socket: &UdpSocket) -> Option<(Vec<u8>, SocketAddr)> {
    let mut buffer = [0; 2048];
    let (length, source) = socket.recv_from(&mut buffer).ok()?;
    Some((buffer[..length].to_vec(), source))
}

#[test]
fn triggers_made_by_scapy_arrive_byte_for_byte() {
    let story = Story::begin("push-scapy");
    let lab = &story.lab;
    let devices = [0, 1].map(|family| device(lab, family, DEVICE_PORT));
    let sessions = sessions(&story);
    let lengths = [0, 1, 7, 8, 9, 1199, 1200];
    let said = run(&story, "send", &order(&story, &sessions, &lengths));
    let (spoilt, good): (Vec<_>, Vec<_>) = said
        .iter()
        .partition(|line| line["what"] == "damaged" || line["what"] == "forged");
    assert_eq!(good.len(), FRAMINGS * 2 * lengths.len());
    assert_eq!(spoilt.len(), 4);
    for line in good {
        let family = line["session"].as_u64().unwrap() as usize;
        let (received, source) = next(&devices[family]).unwrap();
        assert_eq!(received, datagram(line), "{}", line["what"]);
        let registered_with = socket_address(GATEWAY_INSIDE[family], INTERNAL_PORT);
        assert_eq!(source, registered_with, "{}", line["what"]);
    }
    // The device's kernel finds the damage, which is as large as before; the forgery goes nowhere.
    wait_until("the damaged triggers are found", || {
        checksum_errors(lab) == [1, 1]
    });
    wait_until("the forged triggers are counted", || {
        verdicts(lab, "gw-app")["bad_tag"] == 2
    });
    for socket in devices {
        socket.set_nonblocking(true).unwrap();
        assert_eq!(next(&socket), None);
    }
    let delivered = (FRAMINGS * 2 * lengths.len() + 2) as u64;
    assert_eq!(verdicts(lab, "gw-app")["redirected"], delivered);
}

#[test]
fn scapy_gets_back_the_acknowledgements_that_it_asked_for() {
    let story = Story::begin("push-scapack");
    story
        .lab
        .push_ctl_json(&["app", "set", APP, "--return-acks"])
        .unwrap();
    let devices = [0, 1].map(|family| device(&story.lab, family, DEVICE_PORT));
    let sessions = sessions(&story);
    let order = order(&story, &sessions, &[]);
    let ended = AtomicBool::new(false);
    let said = std::thread::scope(|scope| {
        for (socket, granted) in devices.iter().zip(&sessions) {
            socket
                .set_read_timeout(Some(Duration::from_millis(50)))
                .unwrap();
            scope.spawn(|| {
                let begin = Instant::now();
                while !ended.load(Ordering::Relaxed) && begin.elapsed() < LIMIT {
                    let Some((trigger, source)) = next(socket) else {
                        continue;
                    };
                    let (header, _) = TriggerHeader::parse(&trigger).unwrap();
                    let ack = header.acknowledgement(granted.traffic.key);
                    socket.send_to(ack.as_bytes(), source).unwrap();
                }
            });
        }
        let said = run(&story, "ask", &order);
        ended.store(true, Ordering::Relaxed);
        said
    });
    assert_eq!(said.len(), FRAMINGS * 2);
    assert_eq!(
        verdicts(&story.lab, "gw-dev")["ack_returned"],
        FRAMINGS as u64 * 2
    );
}
