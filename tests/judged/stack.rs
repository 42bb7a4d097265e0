//! From socket to socket, with two kernels as judges: that of the device, and that of the server. Both
//! check every checksum, and deliver only what is from where it should be. tshark looks on.

use super::capture::{Checksum, Witness};
use crate::datagram::ETHERNET;
use crate::gateway::TRIGGER_PORT;
use crate::story::{APP, DEVICE_PORT, INTERNAL_PORT, LIMIT, Story};
use crate::story::{checksum_errors, device, server, socket_address, verdicts, wait_until};
use push_common::wire::{Flags, TriggerHeader};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::atomic::AtomicBool;
use xtask::lab::{GATEWAY_INSIDE, Party};
use xtask::traffic::{Load, Session, Sink, Turn};
use zerocopy::IntoBytes;

/// Has a socket send UDP by IPv4 without checksums.
#[expect(unsafe_code, reason = "neither std nor nix knows this option")]
fn leave_checksums_out(socket: &UdpSocket) {
    let on: libc::c_int = 1;
    // SAFETY: `on` outlives the call, and the length is its own.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NO_CHECK,
            (&raw const on).cast(),
            size_of_val(&on) as libc::socklen_t,
        )
    };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

fn receive(socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let mut buffer = [0; 2048];
    let (length, source) = socket.recv_from(&mut buffer).unwrap();
    (buffer[..length].to_vec(), source)
}

/// Any server, any device: all four ways, and by IPv4 without checksum, too.
#[test]
fn devices_of_either_ip_version_get_triggers_from_servers_of_either() {
    let story = Story::begin("push-stack");
    let lab = &story.lab;
    let unsummed = server(lab, 0);
    leave_checksums_out(&unsummed);
    let servers = [
        ("IPv4", server(lab, 0)),
        ("IPv4 without checksum", unsummed),
        ("IPv6", server(lab, 1)),
    ];
    let lengths = [0, 1, 7, 8, 9, 1199, 1200];
    let witness = Witness::start(
        lab,
        Party::Application,
        "app0",
        &["udp", "dst", "port", &TRIGGER_PORT.to_string()],
    );
    for family in [0, 1] {
        let session = story.authorised(family, DEVICE_PORT);
        let device = device(lab, family, DEVICE_PORT);
        let mut sequence = 0;
        for (from, server) in &servers {
            for payload_bytes in lengths {
                sequence += 1;
                let mut sent = vec![0; 40 + payload_bytes];
                session.trigger(sequence, &mut sent);
                server.send(&sent).unwrap();
                let (received, source) = receive(&device);
                assert_eq!(received, sent, "{payload_bytes} bytes by {from}");
                let registered_with = socket_address(GATEWAY_INSIDE[family], INTERNAL_PORT);
                assert_eq!(source, registered_with, "by {from}");
            }
        }
    }
    assert_eq!(checksum_errors(lab), [0, 0]);
    // They did come without one.
    let count = 2 * servers.len() * lengths.len();
    let seen = witness.finish(count);
    assert_eq!(seen.len(), count);
    let absent = |sums: &[Checksum]| sums == [Checksum::Absent];
    let without = seen.iter().filter(|(_, seen)| absent(&seen.udp_checksums));
    assert_eq!(without.count(), 2 * lengths.len());
}

#[test]
fn tshark_finds_nothing_wrong_with_what_the_gateway_sends() {
    const TRIGGERS: u64 = 200;
    let story = Story::begin("push-shark");
    let lab = &story.lab;
    let witness = Witness::start(
        lab,
        Party::Device,
        "dev0",
        &["udp", "port", &DEVICE_PORT.to_string()],
    );
    for family in [0, 1] {
        let session = story.authorised(family, DEVICE_PORT);
        let sink = Sink::start(device(lab, family, DEVICE_PORT), &[session]).unwrap();
        let load = Load {
            sessions: &[session],
            first_sequence: 1,
            triggers: TRIGGERS,
            payload_bytes: 100,
            rate_per_s: None,
            turns: &[Turn::Good],
        };
        let never = AtomicBool::new(false);
        load.send_in_step(&server(lab, family), &never, sink.under_way())
            .unwrap();
        assert!(sink.wait_for(TRIGGERS, LIMIT));
    }
    let frames = witness.finish(2 * TRIGGERS as usize);
    assert_eq!(frames.len(), 2 * TRIGGERS as usize);
    for (number, (frame, seen)) in (0..).zip(&frames) {
        let v6 = number >= TRIGGERS;
        assert_eq!(seen.complaints, [""; 0], "{seen:?}");
        let ip_checksums = if v6 { &[][..] } else { &[Checksum::Good] };
        assert_eq!(seen.ip_checksums, ip_checksums);
        assert_eq!(seen.udp_checksums, [Checksum::Good]);
        let hop_limit = frame[ETHERNET + if v6 { 7 } else { 8 }];
        assert_eq!(hop_limit, 63, "one hop");
    }
}

/// A trigger that asks for an acknowledgement.
fn asking(session: &Session, sequence: u64, payload: &[u8]) -> Vec<u8> {
    let header = TriggerHeader::sign(
        session.key,
        Flags::ACK_REQUESTED,
        session.token_generation,
        session.id,
        sequence,
        payload,
    );
    [header.unwrap().as_bytes(), payload].concat()
}

#[test]
fn an_acknowledged_trigger_comes_back_to_its_server_and_brings_no_more_than_it_took() {
    let story = Story::begin("push-ack");
    let lab = &story.lab;
    lab.push_ctl_json(&["app", "set", APP, "--return-acks"])
        .unwrap();
    let witness = Witness::start(
        lab,
        Party::Application,
        "app0",
        &["udp", "port", &TRIGGER_PORT.to_string()],
    );
    let servers = [server(lab, 0), server(lab, 1)];
    let mut count = 0;
    for family in [0, 1] {
        let session = story.authorised(family, DEVICE_PORT);
        let device = device(lab, family, DEVICE_PORT);
        let mut sequence = 0;
        for server in &servers {
            for payload in [&b""[..], b"x", &[7; 1200]] {
                sequence += 1;
                count += 1;
                let trigger = asking(&session, sequence, payload);
                server.send(&trigger).unwrap();
                let (received, source) = receive(&device);
                assert_eq!(received, trigger);
                let (header, _) = TriggerHeader::parse(&received).unwrap();
                let ack = header.acknowledgement(session.key);
                // Once more, and the gateway keeps it.
                for _ in 0..2 {
                    device.send_to(ack.as_bytes(), source).unwrap();
                }
                // The socket is connected: it gets nothing but what is from the trigger address.
                assert_eq!(receive(server).0, ack.as_bytes());
            }
        }
        let id = session.id.to_string();
        let shown = lab.push_ctl_json(&["session", "show", &id]).unwrap();
        assert_eq!(
            (&shown["packets"], &shown["acknowledged"]),
            (&6.into(), &6.into())
        );
        let round_trip = shown["round_trip_ms"].as_f64().unwrap();
        assert!(round_trip > 0.0 && round_trip < 20_000.0, "{shown}");
    }
    wait_until("all acknowledgements are counted", || {
        verdicts(lab, "gw-dev")["ack_unexpected"] == count
    });
    assert_eq!(verdicts(lab, "gw-dev")["ack_returned"], count);

    let frames = witness.finish(2 * count as usize);
    assert_eq!(frames.len(), 2 * count as usize);
    for pair in frames.chunks(2) {
        let [(trigger, asked), (ack, answered)] = pair else {
            panic!("an odd frame");
        };
        assert_eq!((asked.payload[4], answered.payload[4]), (1, 2), "flags");
        assert!(ack.len() <= trigger.len());
        assert_eq!(ack[..6], trigger[6..12], "to who has asked");
        for seen in [asked, answered] {
            assert_eq!(seen.complaints, [""; 0], "{seen:?}");
            assert_eq!(seen.udp_checksums, [Checksum::Good]);
        }
    }
}
