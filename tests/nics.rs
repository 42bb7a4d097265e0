//! NICs that come and go while triggers flow.

use crate::gateway::{EXT, Gateway, open, sh};
use crate::story::{DEVICE_PORT, LIMIT, Story, device, outside, socket_address, while_triggers_of};
use push_ctl::dataplane::{Nic, NicRefusal, object};
use serde_json::{Value, json};
use std::io;
use std::net::UdpSocket;
use std::time::Instant;
use xtask::lab::{Config, GATEWAY_OUTSIDE, Lab, Options, Party};

/// The third NIC's address, and of who is behind it.
const THIRD: [&str; 2] = ["192.0.2.1", "192.0.2.10"];

/// A lab with a NIC that the configuration doesn't know.
fn with_third_nic(prefix: &str) -> Story {
    let options = Options::with_realms(prefix, std::path::Path::new(crate::story::PUSH_CTL));
    let story = Story::with(&Options {
        config: Config::default(),
        ..options
    });
    let [here, there] = THIRD;
    story.shell(
        Party::Gateway,
        &format!("ip address add {here}/24 dev gw-met"),
    );
    story.shell(Party::Meter, &format!("ip address add {there}/24 dev met0"));
    story
}

fn socket(lab: &Lab, party: Party, address: &str, to: &str) -> UdpSocket {
    let socket = lab.udp_socket(party, socket_address(address, 0)).unwrap();
    socket.connect(socket_address(to, 5050)).unwrap();
    socket.set_read_timeout(Some(LIMIT)).unwrap();
    socket
}

fn program_on(story: &Story, nic: &str) -> Option<u64> {
    let json = story.shell(Party::Gateway, &format!("ip -j -d link show {nic}"));
    let json: Value = serde_json::from_str(&json).unwrap();
    json[0].get("xdp")?["prog"]["id"].as_u64()
}

fn listed(lab: &Lab, name: &str) -> Option<Value> {
    let nics = lab.push_ctl_json(&["nic", "list"]).unwrap();
    let mut nics = nics.as_array().unwrap().iter();
    nics.find(|nic| nic["name"] == name).cloned()
}

/// What stderr has if it fails, with its hint.
fn failure(lab: &Lab, arguments: &[&str]) -> String {
    let output = xtask::child::finish(&mut lab.push_ctl(arguments)).unwrap();
    assert!(!output.status.success(), "{arguments:?} succeeded");
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn a_third_nic_comes_and_goes_while_triggers_flow_and_none_is_lost() {
    let story = with_third_nic("push-nics");
    let lab = &story.lab;
    let registration = story.registered(0);
    let flowing = story.requested(0, &registration, "flowing", DEVICE_PORT);
    story
        .clients()
        .authorise(&outside(0), &story.app_key, &flowing)
        .unwrap();
    let flowing = flowing.traffic;
    let granted = story.requested(0, &registration, "other", 7001);
    let told = || {
        let proof = (Some(&*story.app_key), &*granted.request_file);
        let (status, body) = story
            .clients()
            .validate(&outside(0), &granted.id, proof)
            .unwrap();
        assert_eq!(status, 200, "{body}");
        body["trigger_addresses"].clone()
    };
    assert_eq!(told(), json!(GATEWAY_OUTSIDE));

    let other = device(lab, 0, 7001);
    let links = |lab: &Lab| {
        let nic = |name| listed(lab, name).unwrap()["link_id"].clone();
        [nic("gw-app"), nic("gw-dev")]
    };
    let before = links(lab);
    while_triggers_of(&story, flowing, |flow| {
        let server = socket(lab, Party::Meter, THIRD[1], THIRD[0]);
        let mut received = [0; 2048];
        for round in 0..3 {
            let attached = lab
                .push_ctl_json(&[
                    "nic",
                    "attach",
                    "gw-met",
                    "--role",
                    "external",
                    "--trigger-address",
                    THIRD[0],
                ])
                .unwrap();
            assert_eq!(attached["nic"]["configured"], false);
            let warnings = attached["warnings"].to_string();
            assert!(warnings.contains("the next start"), "{warnings}");
            assert_eq!(
                program_on(&story, "gw-met"),
                attached["nic"]["program_id"].as_u64()
            );
            assert_eq!(
                told(),
                json!([GATEWAY_OUTSIDE[0], THIRD[0], GATEWAY_OUTSIDE[1]])
            );

            let mut trigger = vec![0; 48];
            granted.traffic.trigger(2 * round, &mut trigger);
            server.send(&trigger).unwrap();
            let length = other.recv(&mut received).unwrap();
            assert_eq!(&received[..length], trigger, "through the new NIC");
            let nic = listed(lab, "gw-met").unwrap();
            assert_eq!(nic["sent"], 1, "counted from zero: {nic}");

            let detached = lab.push_ctl_json(&["nic", "detach", "gw-met"]).unwrap();
            assert_eq!(
                detached,
                json!({ "name": "gw-met", "detached": true, "warnings": [] })
            );
            assert_eq!(program_on(&story, "gw-met"), None);
            assert!(!lab.folder().join("bpf/push/link_gw-met").exists());
            assert_eq!(listed(lab, "gw-met"), None);
            assert_eq!(told(), json!(GATEWAY_OUTSIDE));

            // The gateway's own stack has it now, which knows of no such port, and says so.
            granted.traffic.trigger(2 * round + 1, &mut trigger);
            server.send(&trigger).unwrap();
            let refused = server.recv(&mut received).unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
            flow();
        }
    });
    other.set_nonblocking(true).unwrap();
    assert_eq!(
        other.recv(&mut [0; 10]).unwrap_err().kind(),
        io::ErrorKind::WouldBlock
    );
    assert_eq!(links(lab), before, "the others' links are as they were");
}

#[test]
fn who_asks_for_what_cannot_be_is_told_what_to_do() {
    let story = with_third_nic("push-nics-2");
    let lab = &story.lab;
    let third = THIRD[0];
    let cases: [(&[&str], &[&str]); 9] = [
        (
            &["nic", "attach", "nonesuch", "--role", "internal"],
            &["there is no NIC nonesuch", "`ip -br link` lists"],
        ),
        (
            &["nic", "attach", "nonesuch", "--role", "both"],
            &["there is no NIC nonesuch"],
        ),
        (
            &["nic", "attach", "gw-dev", "--role", "internal"],
            &[
                "already attached to gw-dev",
                "detach it first",
                "`push-ctl nic list`",
            ],
        ),
        (
            &["nic", "detach", "gw-met"],
            &["not attached to gw-met", "`push-ctl nic list`"],
        ),
        (
            &["nic", "attach", "gw-met", "--role", "external"],
            &["gw-met: trigger_addresses is missing; write to which addresses"],
        ),
        (
            &[
                "nic",
                "attach",
                "gw-met",
                "--role",
                "internal",
                "--trigger-address",
                third,
            ],
            &["role \"internal\" takes no triggers"],
        ),
        (
            &[
                "nic",
                "attach",
                "gw-met",
                "--role",
                "both",
                "--trigger-address",
                third,
                "192.0.2.2",
            ],
            &["has 2 IPv4 addresses"],
        ),
        (
            &["nic", "attach", "lo", "--role", "internal"],
            &[
                "cannot attach to lo in native mode",
                "data_plane.allow_generic = true",
            ],
        ),
        (
            &["nic", "attach", "gw-met", "--role", "upstream"],
            &["external, internal, both"],
        ),
    ];
    for (arguments, expected) in cases {
        let text = failure(lab, arguments);
        for words in expected {
            assert!(text.contains(words), "{arguments:?}: {text}");
        }
    }
    assert_eq!(program_on(&story, "gw-met"), None);
    assert_eq!(program_on(&story, "lo"), None);

    // What the configuration has can be detached by hand too, and is missed then.
    let detached = lab.push_ctl_json(&["nic", "detach", "gw-app"]).unwrap();
    let warnings = detached["warnings"].to_string();
    assert!(
        warnings.contains("gw-app is in the configuration"),
        "{warnings}"
    );
    assert!(warnings.contains("nothing is delivered"), "{warnings}");
    let status = lab.push_ctl_json(&["status"]).unwrap();
    let warnings = status["warnings"].to_string();
    assert!(
        warnings.contains("gw-app is in the configuration but was detached"),
        "{warnings}"
    );
    let [v4, v6] = GATEWAY_OUTSIDE;
    let attach = [
        "nic",
        "attach",
        "gw-app",
        "--role",
        "external",
        "--trigger-address",
        v4,
        v6,
    ];
    let attached = lab.push_ctl_json(&attach).unwrap();
    assert_eq!(attached["nic"]["configured"], true);
    assert_eq!(attached["warnings"], json!([]));

    // By hand it lasts until the next start.
    lab.push_ctl_json(&["nic", "attach", "gw-met", "--role", "internal"])
        .unwrap();
    assert!(program_on(&story, "gw-met").is_some());
    lab.stop().unwrap();
    lab.start().unwrap();
    let begin = Instant::now();
    while program_on(&story, "gw-met").is_some() {
        assert!(begin.elapsed() < LIMIT, "still attached");
    }
    assert_eq!(listed(lab, "gw-met"), None);
}

#[test]
fn another_program_on_a_nic_is_left_alone_by_name_and_id() {
    Gateway::run(|mut gateway| {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("push.o");
        std::fs::write(&file, object()).unwrap();
        sh(&format!(
            "ip link add third type veth peer name third-peer; xdp-loader load -m native third {}",
            file.display()
        ));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let nic = Nic {
            name: "third".to_owned(),
            ipv4: None,
            ipv6: None,
            takes_acks: true,
        };
        let refusal = runtime
            .block_on(gateway.dataplane.attach_nic(nic.clone()))
            .unwrap_err();
        assert!(matches!(refusal, NicRefusal::Refused(_)));
        let text = refusal.to_string();
        assert!(text.contains("another XDP program ("), "{text}");
        assert!(
            text.contains("is attached to third; it is left alone"),
            "{text}"
        );
        assert_eq!(gateway.dataplane.verdicts().unwrap().len(), 2);

        // A NIC that went, and came back under its name, can be attached to at once.
        sh("ip link del third; ip link add third type veth peer name third-peer");
        for _ in 0..2 {
            runtime
                .block_on(gateway.dataplane.attach_nic(nic.clone()))
                .unwrap();
            gateway.dataplane.test_run("third", &[0; 60]).unwrap();
            sh("ip link del third; ip link add third type veth peer name third-peer");
            let nics = runtime.block_on(gateway.dataplane.nics()).unwrap();
            assert_eq!((&*nics[2].name, nics[2].mode), ("third", "none"));
        }
        runtime
            .block_on(gateway.dataplane.detach_nic("third"))
            .unwrap();
        assert_eq!(gateway.dataplane.verdicts().unwrap().len(), 2);
        gateway.dataplane.test_run(EXT, &[0; 60]).unwrap();
        let Gateway {
            dataplane,
            settings,
            _state,
        } = gateway;
        drop(dataplane);
        assert_eq!(open(&settings).unwrap().verdicts().unwrap().len(), 2);
    });
}
