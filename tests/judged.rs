//! What others say, who know nothing of this program: tshark's dissectors, scapy, the kernel's own
//! stack, etherparse.
//!
//! | module | shows |
//! | --- | --- |
//! | [`dissected`] | what tshark finds in each framing that the program makes |
//! | [`by_scapy`] | that triggers made by a script, from the documents alone, are triggers |
//! | [`stack`] | what the device's and the server's kernels make of what they get |
//! | [`tunnelled`] | what a GTP-U peer gets |
//! | [`changes`] | how soon triggers go another way when the network changes |
//!
//! They are shown what is wrong, too, and have to say so.

mod by_scapy;
mod capture;
mod changes;
mod dissected;
mod stack;
mod tunnelled;

use crate::story::{Story, socket_address};
use std::fs;
use std::net::UdpSocket;
use std::time::{Duration, Instant};
use xtask::lab::{APPLICATION, DEVICE, GATEWAY_OUTSIDE, Lab, Party};

const TRIGGER_PORT: u16 = 5050;
/// Where the gateway listens inside: triggers come from there.
const INTERNAL_PORT: u16 = 5683;
const DEVICE_PORT: u16 = 7000;
const LIMIT: Duration = Duration::from_secs(20);

/// A socket of the application's server, connected to where the gateway takes triggers by IPv4 (0) or
/// IPv6 (1).
fn server(lab: &Lab, family: usize) -> UdpSocket {
    let socket = lab
        .udp_socket(Party::Application, socket_address(APPLICATION[family], 0))
        .unwrap();
    socket
        .connect(socket_address(GATEWAY_OUTSIDE[family], TRIGGER_PORT))
        .unwrap();
    socket.set_read_timeout(Some(LIMIT)).unwrap();
    socket
}

fn device(lab: &Lab, family: usize, port: u16) -> UdpSocket {
    let socket = lab
        .udp_socket(Party::Device, socket_address(DEVICE[family], port))
        .unwrap();
    socket.set_read_timeout(Some(LIMIT)).unwrap();
    socket
}

/// How often the device's own UDP found a wrong checksum, by IPv4 and by IPv6.
fn checksum_errors(lab: &Lab) -> [u64; 2] {
    let counters = lab.run_in(Party::Device, || {
        ["snmp", "snmp6"]
            .map(|name| fs::read_to_string(format!("/proc/thread-self/net/{name}")).unwrap())
    });
    let [v4, v6] = counters.unwrap();
    let mut udp = v4.lines().filter_map(|line| line.strip_prefix("Udp: "));
    let (names, values) = (udp.next().unwrap(), udp.next().unwrap());
    let v4 = names
        .split_whitespace()
        .zip(values.split_whitespace())
        .find_map(|(name, value)| (name == "InCsumErrors").then_some(value));
    let v6 = v6
        .lines()
        .find_map(|line| line.strip_prefix("Udp6InCsumErrors"));
    [v4, v6].map(|count| count.unwrap().trim().parse().unwrap())
}

/// Packets with this verdict on that NIC of the gateway.
fn counted(story: &Story, nic: &str, verdict: &str) -> u64 {
    let stats = story.lab.push_ctl_json(&["stats"]).unwrap();
    let named = |list: &serde_json::Value, key: &str, name: &str| {
        let list = list.as_array().unwrap();
        list.iter().find(|one| one[key] == name).unwrap().clone()
    };
    let nic = named(&stats["nics"], "name", nic);
    named(&nic["verdicts"], "verdict", verdict)["packets"]
        .as_u64()
        .unwrap()
}

fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !condition() {
        assert!(begin.elapsed() < LIMIT, "{what}: not within {LIMIT:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
