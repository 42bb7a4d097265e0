//! Peers that mean no good: what they do comes to nothing, for anybody else.

use crate::coap::{RawDevice, echo_of, location};
use crate::provisioning::session_ids;
use crate::story::{LIMIT, PUSH_CTL, Story, inside, outside, socket_address};
use coap_lite::{CoapOption, MessageClass, MessageType, Packet, RequestType, ResponseType};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::json;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::net::{TcpSocket, TcpStream};
use xtask::lab::{DEVICE, GATEWAY_OUTSIDE, Lab, Options, Party};

/// Where application servers are answered.
const HTTPS_PORT: u16 = 8443;

/// Connections that one source may have.
const OF_SOURCE: usize = 256;

const ANOTHER_DEVICE: &str = "10.64.0.3";

/// Of the daemon, in KiB.
fn memory_kib(lab: &Lab) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", lab.pid().unwrap())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.unwrap().trim().trim_end_matches(" kB");
    number.parse().unwrap()
}

/// Files that the daemon has open, connections among them.
fn open_files(lab: &Lab) -> usize {
    let files = fs::read_dir(format!("/proc/{}/fd", lab.pid().unwrap()));
    files.unwrap().count()
}

/// Opens connections from each of these addresses, and sends the beginning of a handshake on every other one.
async fn connections(from: &[String], of_each: usize) -> Vec<TcpStream> {
    let gateway = socket_address(GATEWAY_OUTSIDE[0], HTTPS_PORT);
    let mut open = Vec::new();
    for (number, address) in (0..of_each).flat_map(|_| from.iter().enumerate()) {
        let socket = TcpSocket::new_v4().unwrap();
        socket
            .bind(SocketAddr::new(address.parse().unwrap(), 0))
            .unwrap();
        let stream = tokio::time::timeout(LIMIT, socket.connect(gateway)).await;
        let stream = stream.expect("it listens").unwrap();
        if number % 2 == 1 {
            // May be refused already.
            let _sent = stream.try_write(&[0x16, 3, 1, 2, 0, 1]);
        }
        open.push(stream);
    }
    open
}

#[test]
fn ten_thousand_idle_connections_keep_nobody_else_out() {
    const SOURCES: usize = 40;
    let (_, files) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    assert!(
        files >= 16_000,
        "these tests open many files, and may open {files}"
    );
    setrlimit(Resource::RLIMIT_NOFILE, files, files).unwrap();
    let story = Story::begin("push-hos-1");
    let lab = &story.lab;
    story.shell(
        Party::Application,
        "dev=$(ip -o addr show to 198.51.100.10 | awk '{ print $2 }')
         for host in $(seq 100 140); do ip addr add 198.51.100.$host/24 dev $dev; done",
    );
    let runtime = || {
        // Of one thread: namespaces belong to threads.
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        runtime.enable_all().build().unwrap()
    };
    let at_first = (open_files(lab), memory_kib(lab));

    // One source has its share, whatever it tries.
    let one = ["198.51.100.140".to_owned()];
    let held = lab.run_in(Party::Application, || {
        runtime().block_on(async {
            let opened = connections(&one, 1000).await;
            let most = open_files(lab) - at_first.0;
            drop(opened);
            most
        })
    });
    let held = held.unwrap();
    // Those that were refused may not all be closed yet.
    assert!(held < 2 * OF_SOURCE, "one source holds {held} connections");
    assert!(
        lab.log().contains("there may be 256 from one source"),
        "{}",
        lab.log()
    );

    let many: Vec<String> = (0..SOURCES)
        .map(|n| format!("198.51.100.{}", 100 + n))
        .collect();
    let mut memory = Vec::new();
    for round in 0..2 {
        let begin = Instant::now();
        let opened = lab.run_in(Party::Application, || {
            let runtime = runtime();
            let opened = runtime.block_on(connections(&many, 10_000 / SOURCES));
            (runtime, opened)
        });
        let (runtime, opened) = opened.unwrap();
        let (took, held) = (begin.elapsed(), open_files(lab) - at_first.0);
        assert!(
            held > 2000,
            "round {round}: it holds {held} only, after {took:?}"
        );
        let asked = Instant::now();
        story.authorised(0, 7000 + round);
        let answered = asked.elapsed();
        memory.push(memory_kib(lab));
        println!(
            "{held} connections held after {took:?}; another server got a session in {answered:?}"
        );
        assert!(answered < Duration::from_secs(10), "{answered:?}");

        // Who doesn't come to an end with the handshake is closed by the gateway, not by us.
        let begin = Instant::now();
        while open_files(lab) > at_first.0 + 100 {
            assert!(
                begin.elapsed() < 2 * LIMIT,
                "{} are still open",
                open_files(lab)
            );
            std::thread::sleep(Duration::from_millis(50));
        }
        drop(opened);
        drop(runtime);
    }
    println!("memory: {} KiB, then {memory:?} KiB", at_first.1);
    assert!(memory[1] < memory[0] + memory[0] / 4, "{memory:?} KiB");
    assert!(
        memory[0] < at_first.1 + 400 * 1024,
        "{at_first:?}, {memory:?}"
    );
}

#[test]
fn who_sends_a_request_byte_by_byte_is_cut_off() {
    const MOST: Duration = Duration::from_secs(60);
    let story = Story::begin("push-hos-2");
    let target = format!("{}:{HTTPS_PORT}", outside(0));
    let slowly = |first: &str| {
        format!(
            "{{ printf '{first}'; while sleep 0.5; do printf a || exit 0; done; }} | openssl s_client -quiet -connect {target}"
        )
    };
    let head = slowly(r"GET /openapi.json HTTP/1.1\r\nx: ");
    let body = slowly(r"PUT /v1/availability HTTP/1.1\r\nhost: x\r\ncontent-length: 9000\r\n\r\n");
    let begin = Instant::now();
    let mut slow: Vec<_> = [&head, &head, &body, &body]
        .into_iter()
        .map(|line| {
            let mut shell = story.lab.exec_in(Party::Application, "timeout");
            shell
                .args(["90", "sh", "-c", line])
                .stdout(Stdio::null())
                .stderr(Stdio::null());
            shell.spawn().unwrap()
        })
        .collect();
    // Meanwhile others are served.
    story.authorised(0, 7000);
    for child in &mut slow {
        child.wait().unwrap();
    }
    assert!(begin.elapsed() < MOST, "{:?}", begin.elapsed());
}

/// A request in a message of this type with a token of that length.
fn message(
    (kind, token_len): (MessageType, usize),
    method: RequestType,
    path: &str,
    query: &[&str],
) -> Packet {
    let mut packet = Packet::new();
    packet.header.set_version(1);
    packet.header.set_type(kind);
    packet.header.code = MessageClass::Request(method);
    packet.set_token(vec![7; token_len]);
    for segment in path.split('/') {
        packet.add_option(CoapOption::UriPath, segment.into());
    }
    for parameter in query {
        packet.add_option(CoapOption::UriQuery, (*parameter).into());
    }
    packet
}

#[test]
fn nobody_gets_an_answer_longer_than_the_request_before_the_address_is_proved() {
    let story = Story::with(&Options {
        device_addresses: vec![format!("{ANOTHER_DEVICE}/16")],
        ..Options::new("push-hos-3", Path::new(PUSH_CTL))
    });
    let known = story.registered(0);
    let session = story.requested(0, &known, "one", 7000).id;
    let left = story
        .clients()
        .register(Party::Device, DEVICE[0], &inside(0), "ep=gone")
        .unwrap();
    let [get, post, put, delete] = [
        RequestType::Get,
        RequestType::Post,
        RequestType::Put,
        RequestType::Delete,
    ];
    // The last of an address is the one that is registered.
    let known_now = left;
    let unknown = "0123456789abcdef";
    let kinds: Vec<(RequestType, String, Vec<&str>)> = vec![
        (get, ".well-known/core".into(), vec![]),
        (get, ".well-known/core".into(), vec!["rt=core.rd*"]),
        (post, "rd".into(), vec![]),
        (post, "rd".into(), vec!["ep=a"]),
        (post, "rd".into(), vec!["ep=abc"]),
        (post, "rd".into(), vec!["ep=a", "lt=0"]),
        (post, "rd".into(), vec!["ep=a long name", "lt=3600"]),
        (put, "rd".into(), vec![]),
        (get, "elsewhere".into(), vec![]),
        (post, "rd/x".into(), vec![]),
        (post, format!("rd/{known}"), vec![]),
        (post, format!("rd/{known_now}"), vec![]),
        (post, format!("rd/{unknown}"), vec!["lt=1"]),
        (delete, format!("rd/{known_now}"), vec![]),
        (delete, format!("rd/{unknown}"), vec![]),
        (post, format!("rd/{known_now}/s"), vec![]),
        (
            post,
            format!("rd/{known_now}/s"),
            vec!["app=weather", "inst=a", "port=1"],
        ),
        (post, format!("rd/{unknown}/s/{session}"), vec![]),
        (post, format!("rd/{known_now}/s/{session}"), vec![]),
        (delete, format!("rd/{known_now}/s/{session}"), vec![]),
        (delete, format!("rd/{known_now}/s/nonsense"), vec![]),
    ];
    let attacker = RawDevice::new(&story.lab, ANOTHER_DEVICE);
    let mut id = 0;
    let mut answered = |mut packet: Packet, what: &str| {
        id += 1;
        packet.header.message_id = id;
        let request = packet.to_bytes().unwrap();
        let answer = attacker.exchange(&request);
        assert!(
            answer.len() <= request.len(),
            "{what}: {} bytes for {}",
            answer.len(),
            request.len()
        );
    };
    for form in [MessageType::Confirmable, MessageType::NonConfirmable]
        .into_iter()
        .flat_map(|kind| [0, 1, 8].map(|token_len| (kind, token_len)))
    {
        for (method, path, query) in &kinds {
            answered(
                message(form, *method, path, query),
                &format!("{form:?} {method:?} {path} {query:?}"),
            );
        }
    }
    let form = (MessageType::Confirmable, 0);
    for (number, what) in [
        (1, "critical"),
        (27, "block-wise"),
        (35, "proxy"),
        (17, "accept"),
    ] {
        let mut packet = message(form, post, "rd", &["ep=a"]);
        packet.add_option(CoapOption::from(number), vec![50]);
        answered(packet, what);
    }
    let mut nonsense = message(form, post, &format!("rd/{unknown}/s"), &[]);
    nonsense.add_option(CoapOption::ContentFormat, vec![60]);
    nonsense.payload = vec![0xA1, 1];
    answered(nonsense, "CBOR that is cut off");
}

#[test]
fn a_registration_that_is_replayed_or_made_in_another_s_name_changes_nothing() {
    let story = Story::with(&Options {
        device_addresses: vec![format!("{ANOTHER_DEVICE}/16")],
        ..Options::new("push-hos-4", Path::new(PUSH_CTL))
    });
    let lab = &story.lab;
    let (device, other) = (
        RawDevice::new(lab, DEVICE[0]),
        RawDevice::new(lab, ANOTHER_DEVICE),
    );

    // Who sends in the name of `other` gets to see none of the answers; and these are no more than was sent.
    let (mut sent, mut received) = (0, 0);
    for id in 0..500 {
        let request = RawDevice::post(id, &["rd"], &["ep=spoofed", "lt=86400"], None);
        let request = request.to_bytes().unwrap();
        sent += request.len();
        received += other.exchange(&request).len();
    }
    assert!(received <= sent, "{received} bytes for {sent}");
    assert_eq!(lab.push_ctl_json(&["terminal", "list"]).unwrap(), json!([]));

    let challenge = device.ask(&RawDevice::post(1, &["rd"], &["ep=mine"], None));
    let echo = echo_of(&challenge);
    let registration = RawDevice::post(2, &["rd"], &["ep=mine"], Some(&echo));
    let registered = device.exchange(&registration.to_bytes().unwrap());
    let id = location(&Packet::from_bytes(&registered).unwrap())[1].clone();
    story.requested(0, &id, "one", 7000);
    let sessions = session_ids(lab, "requested");
    let terminals = || {
        let list = lab.push_ctl_json(&["terminal", "list"]).unwrap();
        list.as_array().unwrap().len()
    };

    // As it was, from where it was sent: the same answer again. With another message id: what there is stays.
    assert_eq!(
        device.exchange(&registration.to_bytes().unwrap()),
        registered
    );
    let again = RawDevice::post(3, &["rd"], &["ep=mine"], Some(&echo));
    assert_eq!(location(&device.ask(&again))[1], id);
    // From elsewhere, the proof is none.
    for replayed in [&registration, &again] {
        let answer = other.ask(replayed);
        let unauthorised = MessageClass::Response(ResponseType::Unauthorized);
        assert_eq!(answer.header.code, unauthorised);
    }
    // A proof of its own address gives nobody another's name, or registration.
    let own = echo_of(&other.ask(&RawDevice::post(4, &["rd"], &["ep=mine"], None)));
    let taken = other.ask(&RawDevice::post(5, &["rd"], &["ep=mine"], Some(&own)));
    assert_eq!(
        taken.header.code,
        MessageClass::Response(ResponseType::Forbidden)
    );
    let leave = message(
        (MessageType::Confirmable, 1),
        RequestType::Delete,
        &format!("rd/{id}"),
        &[],
    );
    let refused = other.ask(&leave);
    assert_eq!(
        refused.header.code,
        MessageClass::Response(ResponseType::Forbidden)
    );
    assert_eq!(terminals(), 1);
    assert_eq!(session_ids(lab, "requested"), sessions);
}
