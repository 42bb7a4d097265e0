//! Triggers from socket to socket: application server, gateway, device, each in a namespace of its own.

use crate::story::{DEVICE_PORT, INTERNAL_PORT, LIMIT, Story};
use crate::story::{
    checksum_errors, demand_each_once, device, server, socket_address, verdicts, wait_until,
};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::sync::atomic::AtomicBool;
use xtask::lab::{DEVICE, GATEWAY_INSIDE, Lab, Party};
use xtask::traffic::{Load, Session, Sink, Turn};

static NEVER: AtomicBool = AtomicBool::new(false);

fn load(session: &Session, first_sequence: u64, triggers: u64) -> Load<'_> {
    Load {
        sessions: std::slice::from_ref(session),
        first_sequence,
        triggers,
        payload_bytes: 100,
        rate_per_s: None,
        turns: &[Turn::Good],
    }
}

/// Packets by verdict on the NIC where triggers come in.
fn outside(lab: &Lab) -> BTreeMap<String, u64> {
    verdicts(lab, "gw-app")
}

#[test]
fn a_trigger_arrives_byte_for_byte_and_the_devices_stack_agrees_with_it() {
    let story = Story::begin("push-bytes");
    let lab = &story.lab;
    for family in [0, 1] {
        let session = story.authorised(family, DEVICE_PORT);
        let (server, device) = (server(lab, family), device(lab, family, DEVICE_PORT));
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
                socket_address(GATEWAY_INSIDE[family], INTERNAL_PORT),
                "where the device registered"
            );
        }
    }
    assert_eq!(checksum_errors(lab), [0, 0]);
    let outside = outside(lab);
    assert_eq!(
        (outside["redirected"], outside["next_hop_unresolved"]),
        (18, 0)
    );
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
        .send_in_step(&server(lab, 0), &NEVER, sink.under_way())
        .unwrap();
    demand_each_once(lab, sink, 1000);
    assert_eq!(outside(lab)["sent_back"], 1000);
}

#[test]
fn the_kernel_delivers_while_it_finds_out_the_mac_address() {
    let story = Story::begin("push-neigh");
    let lab = &story.lab;
    for family in [0, 1] {
        let session = story.authorised(family, DEVICE_PORT);
        let sink = Sink::start(device(lab, family, DEVICE_PORT), &[session]).unwrap();
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
        let before = outside(lab);
        load(&session, 1, 1)
            .send(&server(lab, family), &NEVER)
            .unwrap();
        wait_until("the trigger is the kernel's", || {
            outside(lab)["next_hop_unresolved"] == before["next_hop_unresolved"] + 1
        });
        story.shell(Party::Device, "ip link set dev0 arp on");
        assert!(
            sink.wait_for(1, LIMIT),
            "the trigger that met an unknown MAC address"
        );
        wait_until("the next trigger goes by the driver", || {
            load(&session, 100 + outside(lab)["redirected"], 1)
                .send(&server(lab, family), &NEVER)
                .unwrap();
            outside(lab)["redirected"] > before["redirected"]
        });
    }
}

#[test]
fn of_a_million_forged_triggers_none_is_delivered() {
    const FORGED: u64 = 1_000_000;
    let story = Story::begin("push-forged");
    let lab = &story.lab;
    let session = story.authorised(0, DEVICE_PORT);
    let sink = Sink::start(device(lab, 0, DEVICE_PORT), &[session]).unwrap();
    let before = outside(lab);
    let forged = Load {
        turns: &[Turn::Forged],
        payload_bytes: 0,
        ..load(&session, 1, FORGED)
    };
    assert_eq!(
        forged.send(&server(lab, 0), &NEVER).unwrap().triggers,
        FORGED
    );
    // The path has seen them all, and their sequences are still free.
    wait_until("all forged triggers are counted", || {
        outside(lab)["bad_tag"] - before["bad_tag"] == FORGED
    });
    load(&session, 1, 1000)
        .send_in_step(&server(lab, 0), &NEVER, sink.under_way())
        .unwrap();
    demand_each_once(lab, sink, 1000);
}

#[test]
fn killing_the_daemon_loses_no_trigger_and_the_next_one_takes_over() {
    const TRIGGERS: u64 = 150_000;
    let story = Story::begin("push-kill");
    let lab = &story.lab;
    let session = story.authorised(0, DEVICE_PORT);
    let sink = Sink::start(device(lab, 0, DEVICE_PORT), &[session]).unwrap();
    let server = server(lab, 0);
    let before = lab.push_ctl_json(&["status"]).unwrap();
    std::thread::scope(|scope| {
        let generator = scope.spawn(|| {
            let load = Load {
                rate_per_s: Some(30_000),
                ..load(&session, 1, TRIGGERS)
            };
            let sent = load.send_in_step(&server, &NEVER, sink.under_way());
            sent.unwrap()
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
    demand_each_once(lab, sink, TRIGGERS);

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
