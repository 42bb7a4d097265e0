//! Triggers from socket to socket: application server, gateway, device, each in a namespace of its own.

use crate::story::{Story, socket_address};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::net::UdpSocket;
use std::sync::atomic::AtomicBool;
use std::time::Duration;
use xtask::lab::{APPLICATION, DEVICE, GATEWAY_INSIDE, GATEWAY_OUTSIDE, Lab, Party};
use xtask::traffic::{Load, Received, Session, Sink};

const TRIGGER_PORT: u16 = 5050;
const DEVICE_PORT: u16 = 7000;
const LIMIT: Duration = Duration::from_secs(20);
static NEVER: AtomicBool = AtomicBool::new(false);

/// A socket of the application server, connected to where the gateway takes triggers.
fn server(lab: &Lab, family: usize) -> UdpSocket {
    let socket = lab
        .udp_socket(Party::Application, socket_address(APPLICATION[family], 0))
        .unwrap();
    socket
        .connect(socket_address(GATEWAY_OUTSIDE[family], TRIGGER_PORT))
        .unwrap();
    socket
}

fn device(lab: &Lab, family: usize) -> UdpSocket {
    let socket = lab
        .udp_socket(Party::Device, socket_address(DEVICE[family], DEVICE_PORT))
        .unwrap();
    socket.set_read_timeout(Some(LIMIT)).unwrap();
    socket
}

fn load(session: &Session, first_sequence: u64, triggers: u64) -> Load<'_> {
    Load {
        sessions: std::slice::from_ref(session),
        first_sequence,
        triggers,
        payload_bytes: 100,
        rate_per_s: None,
        forged: false,
    }
}

/// Packets by verdict on the NIC where triggers come in.
fn verdicts(lab: &Lab) -> BTreeMap<String, u64> {
    let stats = lab.push_ctl_json(&["stats"]).unwrap();
    let nic = stats["nics"]
        .as_array()
        .unwrap()
        .iter()
        .find(|nic| nic["name"] == "gw-app")
        .unwrap()
        .clone();
    let by_verdict: BTreeMap<String, u64> = nic["verdicts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|count| {
            (
                count["verdict"].as_str().unwrap().to_owned(),
                count["packets"].as_u64().unwrap(),
            )
        })
        .collect();
    assert_eq!(
        nic["packets"],
        by_verdict.values().sum::<u64>(),
        "what came in is the sum of the verdicts"
    );
    by_verdict
}

/// How often the device's own UDP found a wrong checksum.
fn checksum_errors(lab: &Lab) -> Vec<u64> {
    let counters = lab.run_in(Party::Device, || {
        fs::read_to_string("/proc/thread-self/net/snmp").unwrap()
            + &fs::read_to_string("/proc/thread-self/net/snmp6").unwrap()
    });
    let counters = counters.unwrap();
    let mut udp = counters
        .lines()
        .filter_map(|line| line.strip_prefix("Udp: "))
        .map(str::split_whitespace);
    let (names, values) = (udp.next().unwrap(), udp.next().unwrap());
    let v4 = names
        .zip(values)
        .find(|(name, _)| *name == "InCsumErrors")
        .unwrap()
        .1
        .parse()
        .unwrap();
    let v6 = counters
        .lines()
        .find_map(|line| line.strip_prefix("Udp6InCsumErrors"))
        .unwrap();
    vec![v4, v6.trim().parse().unwrap()]
}

#[test]
fn a_trigger_arrives_byte_for_byte_and_the_devices_stack_agrees_with_it() {
    let story = Story::begin("push-bytes");
    let lab = &story.lab;
    for family in [0, 1] {
        let session = story.authorised(family, DEVICE_PORT);
        let (server, device) = (server(lab, family), device(lab, family));
        for (sequence, payload_bytes) in (1..).zip([0, 1, 7, 8, 9, 63, 500, 1199, 1200]) {
            let mut sent = vec![0; 40 + payload_bytes];
            session.trigger(sequence, &mut sent);
            server.send(&sent).unwrap();
            let mut received = [0; 2048];
            let (length, source) = device.recv_from(&mut received).unwrap();
            assert_eq!(
                &received[..length],
                sent,
                "{payload_bytes} bytes by {}",
                DEVICE[family]
            );
            assert_eq!(
                source,
                socket_address(GATEWAY_INSIDE[family], 5683),
                "where the device registered"
            );
        }
    }
    assert_eq!(checksum_errors(lab), [0, 0]);
    let verdicts = verdicts(lab);
    assert_eq!(
        (verdicts["redirected"], verdicts["next_hop_unresolved"]),
        (18, 0)
    );
}

/// tcpdump and tshark look at what leaves the gateway.
#[test]
fn tshark_finds_nothing_wrong_with_what_the_gateway_sends() {
    let story = Story::begin("push-shark");
    let lab = &story.lab;
    let capture = lab.folder().join("device.pcap");
    let mut tcpdump = lab.exec_in(Party::Device, "tcpdump");
    tcpdump
        .args([
            "--immediate-mode",
            "-B",
            "16384",
            "-U",
            "-n",
            "-i",
            "dev0",
            "-w",
        ])
        .arg(&capture)
        .args(["udp", "port", &DEVICE_PORT.to_string()])
        .stderr(std::process::Stdio::null());
    let mut tcpdump = Killed(tcpdump.spawn().unwrap());
    // The file begins with a header of 24 bytes, which is written when the capture has begun.
    let captured = || capture.metadata().map_or(0, |file| file.len());
    wait_until("tcpdump captures", || captured() >= 24);
    // A header of 16 bytes, then Ethernet, IP, UDP, trigger header, payload.
    let frames = 200 * (16 + 14 + 20 + 8 + 140) + 200 * (16 + 14 + 40 + 8 + 140);
    for family in [0, 1] {
        let session = story.authorised(family, DEVICE_PORT);
        let sink = Sink::start(device(lab, family), &[session]).unwrap();
        load(&session, 1, 200)
            .send(&server(lab, family), &NEVER)
            .unwrap();
        assert!(sink.wait_for(200, LIMIT));
    }
    wait_until("tcpdump has written all of it", || {
        captured() >= 24 + frames
    });
    tcpdump.0.kill().unwrap();
    let count = |filter: &str| {
        let mut tshark = xtask::child::command("tshark");
        for checked in ["udp.check_checksum:TRUE", "ip.check_checksum:TRUE"] {
            tshark.args(["-o", checked]);
        }
        // Triggers share a port with CoAP, and the device's is known for something else.
        for port in [5683, DEVICE_PORT] {
            tshark.args(["-d", &format!("udp.port=={port},data")]);
        }
        tshark.arg("-r").arg(&capture);
        xtask::child::output(tshark.args(["-Y", filter]))
            .unwrap()
            .lines()
            .count()
    };
    assert_eq!(count("udp.checksum.status == 1"), 400, "good UDP checksums");
    assert_eq!(count("ip.checksum.status == 1"), 200, "good IPv4 checksums");
    assert_eq!(
        count("_ws.malformed || udp.checksum.status == 0 || ip.checksum.status == 0"),
        0
    );
    assert_eq!(count("ip.ttl == 63 || ipv6.hlim == 63"), 400, "one hop");
}

#[test]
fn a_device_behind_the_nic_that_the_trigger_came_in_by_gets_it_too() {
    let story = Story::begin("push-onearm");
    let lab = &story.lab;
    // A device in the outer network: it reaches the internal interface through the gateway.
    let address = "198.51.100.77";
    story.shell(
        Party::Application,
        &format!("ip addr add {address}/24 dev app0"),
    );
    // What a veth sends back (XDP_TX) arrives only where an XDP program is attached, too; ours, as it
    // is without configuration, passes everything.
    let object = lab.folder().join("push.o");
    fs::write(&object, push_ctl::dataplane::object()).unwrap();
    story.shell(
        Party::Application,
        &format!("xdp-loader load -m native app0 {}", object.display()),
    );
    let session = story.authorised_at(Party::Application, address, 0, DEVICE_PORT);
    let device = lab
        .udp_socket(Party::Application, socket_address(address, DEVICE_PORT))
        .unwrap();
    let sink = Sink::start(device, &[session]).unwrap();
    load(&session, 1, 1000)
        .send(&server(lab, 0), &NEVER)
        .unwrap();
    assert!(
        sink.wait_for(1000, LIMIT),
        "{:?}; {:?}",
        sink.received(),
        verdicts(lab)
    );
    assert_eq!(
        sink.finish().unwrap(),
        Received {
            delivered: 1000,
            ..Received::default()
        }
    );
    assert_eq!(verdicts(lab)["sent_back"], 1000);
}

#[test]
fn the_kernel_delivers_while_it_finds_out_the_mac_address() {
    let story = Story::begin("push-neigh");
    let lab = &story.lab;
    for family in [0, 1] {
        let session = story.authorised(family, DEVICE_PORT);
        let sink = Sink::start(device(lab, family), &[session]).unwrap();
        // The device doesn't say where it is, and what the gateway knew is forgotten.
        story.shell(Party::Device, "ip link set dev0 arp off");
        story.shell(
            Party::Gateway,
            "ip neigh flush dev gw-dev; ip -6 neigh flush dev gw-dev",
        );
        let id = session.id.to_string();
        wait_until("the next hop is forgotten", || {
            let shown = lab.push_ctl_json(&["session", "show", &id]).unwrap();
            shown["next_hop"] == "unresolved"
        });
        let before = verdicts(lab);
        load(&session, 1, 1)
            .send(&server(lab, family), &NEVER)
            .unwrap();
        wait_until("the trigger is the kernel's", || {
            verdicts(lab)["next_hop_unresolved"] == before["next_hop_unresolved"] + 1
        });
        story.shell(Party::Device, "ip link set dev0 arp on");
        assert!(
            sink.wait_for(1, LIMIT),
            "the trigger that met an unknown MAC address"
        );
        wait_until("the next trigger goes by the driver", || {
            load(&session, 100 + verdicts(lab)["redirected"], 1)
                .send(&server(lab, family), &NEVER)
                .unwrap();
            verdicts(lab)["redirected"] > before["redirected"]
        });
    }
}

#[test]
fn of_a_million_forged_triggers_none_is_delivered() {
    const FORGED: u64 = 1_000_000;
    let story = Story::begin("push-forged");
    let lab = &story.lab;
    let session = story.authorised(0, DEVICE_PORT);
    let sink = Sink::start(device(lab, 0), &[session]).unwrap();
    let before = verdicts(lab);
    let forged = Load {
        forged: true,
        payload_bytes: 0,
        ..load(&session, 1, FORGED)
    };
    assert_eq!(
        forged.send(&server(lab, 0), &NEVER).unwrap().triggers,
        FORGED
    );
    // The path has seen them all, and their sequences are still free.
    wait_until("all forged triggers are counted", || {
        verdicts(lab)["bad_tag"] - before["bad_tag"] == FORGED
    });
    load(&session, 1, 1000)
        .send(&server(lab, 0), &NEVER)
        .unwrap();
    assert!(sink.wait_for(1000, LIMIT));
    assert_eq!(
        sink.finish().unwrap(),
        Received {
            delivered: 1000,
            ..Received::default()
        }
    );
}

#[test]
fn killing_the_daemon_loses_no_trigger_and_the_next_one_takes_over() {
    const TRIGGERS: u64 = 150_000;
    let story = Story::begin("push-kill");
    let lab = &story.lab;
    let session = story.authorised(0, DEVICE_PORT);
    let sink = Sink::start(device(lab, 0), &[session]).unwrap();
    let server = server(lab, 0);
    let before = lab.push_ctl_json(&["status"]).unwrap();
    std::thread::scope(|scope| {
        let generator = scope.spawn(|| {
            let load = Load {
                rate_per_s: Some(30_000),
                ..load(&session, 1, TRIGGERS)
            };
            load.send(&server, &NEVER).unwrap()
        });
        for round in 0..3 {
            let delivered = sink.received().delivered;
            lab.kill().unwrap();
            assert!(
                sink.wait_for(delivered + 5_000, LIMIT),
                "round {round}: nobody but the kernel is there to forward"
            );
            lab.start().unwrap();
        }
        assert_eq!(generator.join().unwrap().triggers, TRIGGERS);
    });
    assert!(sink.wait_for(TRIGGERS, LIMIT));
    assert_eq!(
        sink.finish().unwrap(),
        Received {
            delivered: TRIGGERS,
            ..Received::default()
        }
    );

    let after = lab.push_ctl_json(&["status"]).unwrap();
    for (before, after) in nics(&before).zip(nics(&after)) {
        assert_eq!(after["link_id"], before["link_id"]);
        assert_eq!(
            (&after["mode"], &after["adopted"]),
            (&Value::from("native"), &Value::from(true))
        );
    }
    assert_eq!(after["sessions"], before["sessions"]);
    let shown = lab
        .push_ctl_json(&["session", "show", &session.id.to_string()])
        .unwrap();
    assert_eq!(
        (&shown["state"], &shown["packets"]),
        (&Value::from("authorised"), &Value::from(TRIGGERS))
    );
}

fn nics(status: &Value) -> impl Iterator<Item = &Value> {
    status["nics"].as_array().unwrap().iter()
}

fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let begin = std::time::Instant::now();
    while !condition() {
        assert!(begin.elapsed() < LIMIT, "{what}: not within {LIMIT:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A program that doesn't outlive its test.
struct Killed(std::process::Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ended_already = self.0.kill();
        let _reaped = self.0.wait();
    }
}
