//! Labs without a controller.

use super::*;
use crate::traffic::{Load, Received, Session, Sink, Turn};
use nix::sys::socket::{setsockopt, sockopt};
use push_common::tag::TagKey;
use push_common::wire::SessionId;
use std::ffi::OsString;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

fn without_controller(prefix: &str) -> Lab {
    up_without_controller(Options::new(prefix, Path::new("/nonexistent")))
}

fn up_without_controller(options: Options) -> Lab {
    Lab::up(&Options {
        daemon: false,
        ..options
    })
    .unwrap()
}

fn exists(prefix: &str) -> bool {
    let names = Names::new(prefix).unwrap();
    names.folder().exists()
        || Party::ALL
            .into_iter()
            .any(|party| names.handle(party).exists())
        || fs::read_to_string("/proc/mounts")
            .unwrap()
            .contains(&format!("/run/{prefix}/"))
}

/// The kernel's own forwarding is enough to see that the parties reach each other.
#[test]
fn datagrams_pass_from_the_application_to_the_device() {
    let lab = without_controller("xtask-route");
    for (from, to) in APPLICATION.iter().zip(DEVICE) {
        let session = Session {
            id: SessionId::new(1, 1),
            key: TagKey::from_bytes([1; 16]),
            token_generation: 0,
        };
        let device = SocketAddr::new(to.parse().unwrap(), 6000);
        let sink = Sink::start(lab.udp_socket(Party::Device, device).unwrap(), &[session]).unwrap();
        let server = lab
            .udp_socket(
                Party::Application,
                SocketAddr::new(from.parse().unwrap(), 0),
            )
            .unwrap();
        server.connect(device).unwrap();
        let load = Load {
            sessions: &[session],
            first_sequence: 0,
            triggers: 2000,
            payload_bytes: 100,
            rate_per_s: Some(20_000),
            turns: &[Turn::Good],
        };
        load.send_in_step(&server, &AtomicBool::new(false), sink.under_way())
            .unwrap();
        assert!(sink.wait_for(2000, Duration::from_secs(10)));
        assert_eq!(sink.finish().unwrap(), Received::just(2000));
    }
}

#[test]
fn two_devices_with_one_address_are_told_apart_by_their_nics() {
    let prefix = "xtask-realms";
    let lab = up_without_controller(Options::with_realms(prefix, Path::new("/nonexistent")));
    let at = |address: &str, port| SocketAddr::new(address.parse().unwrap(), port);
    let device = at(DEVICE[0], 6000);
    let parties = [
        (Party::Device, "gw-dev", GATEWAY_INSIDE[0]),
        (Party::Meter, "gw-met", GATEWAY_METERS),
        (Party::Meter, "gw-met", GATEWAY_CAMERAS),
    ];
    for (party, nic, address) in parties {
        let socket = lab.udp_socket(party, device).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        let gateway = lab.udp_socket(Party::Gateway, at(address, 0)).unwrap();
        setsockopt(&gateway, sockopt::BindToDevice, &OsString::from(nic)).unwrap();
        gateway.send_to(address.as_bytes(), device).unwrap();
        let mut datagram = [0; 100];
        let (length, source) = socket.recv_from(&mut datagram).unwrap();
        assert_eq!(
            (&datagram[..length], source),
            (address.as_bytes(), gateway.local_addr().unwrap())
        );
    }
    lab.down().unwrap();
    assert!(!exists(prefix));
}

#[test]
fn two_labs_coexist_and_each_leaves_nothing() {
    let one = without_controller("xtask-one");
    let other = without_controller("xtask-other");
    assert!(exists("xtask-one") && exists("xtask-other"));
    one.down().unwrap();
    assert!(!exists("xtask-one") && exists("xtask-other"));
    drop(other);
    assert!(!exists("xtask-other"));
}

#[test]
fn a_lab_that_lost_its_owner_is_taken_down_by_its_name() {
    let lab = without_controller("xtask-lost");
    let mut left_behind = lab
        .exec_in(Party::Device, "sleep")
        .arg("1000")
        .spawn()
        .unwrap();
    lab.stay();
    down("xtask-lost").unwrap();
    assert!(!exists("xtask-lost"));
    left_behind.wait().unwrap();
    down("xtask-lost").unwrap();
}

#[test]
fn a_controller_that_does_not_start_is_reported_and_nothing_is_left() {
    let error = Lab::up(&Options::new("xtask-fail", Path::new("/bin/false"))).unwrap_err();
    assert!(
        error.to_string().contains("the controller ended"),
        "{error:#}"
    );
    assert!(!exists("xtask-fail"));
}

#[test]
fn a_prefix_that_is_a_path_is_refused() {
    for prefix in ["", "..", "a/b", "../etc"] {
        assert!(down(prefix).is_err());
    }
}
