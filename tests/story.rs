//! A lab with an application in it, for tests that go from registering to receiving.

pub(crate) use crate::gateway::{LIMIT, wait_until};

use crate::gateway::TRIGGER_PORT;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::slice;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use xtask::child;
use xtask::clients::{Clients, Granted};
use xtask::lab::{APPLICATION, DEVICE, GATEWAY_INSIDE, GATEWAY_OUTSIDE, Lab, Options, Party};
use xtask::traffic::{Load, Received, Session, Sink, Turn};

/// The daemon and command line under test.
pub(crate) const PUSH_CTL: &str = env!("CARGO_BIN_EXE_push-ctl");

pub(crate) const APP: &str = "weather";

/// Where the gateway listens inside: triggers come from there.
pub(crate) const INTERNAL_PORT: u16 = 5683;
pub(crate) const DEVICE_PORT: u16 = 7000;

pub(crate) struct Story {
    pub(crate) lab: Lab,
    /// The file with the header by which the application's server authenticates.
    pub(crate) app_key: PathBuf,
}

impl Story {
    /// Each test has a lab of its own, by its name.
    pub(crate) fn begin(prefix: &str) -> Self {
        Self::with(&Options::new(prefix, Path::new(PUSH_CTL)))
    }

    pub(crate) fn with(options: &Options) -> Self {
        Self::in_lab(Lab::up(options).unwrap())
    }

    /// In a lab whose daemon was started in a way of its own.
    pub(crate) fn in_lab(lab: Lab) -> Self {
        let app_key = Clients::new(&lab, &|_| ()).unwrap().add_app(APP).unwrap();
        Self { lab, app_key }
    }

    pub(crate) fn clients(&self) -> Clients<'_> {
        Clients::new(&self.lab, &|_| ()).unwrap()
    }

    /// Registers the device, by IPv4 (0) or IPv6 (1); gives the registration.
    pub(crate) fn registered(&self, family: usize) -> String {
        self.clients()
            .register(
                Party::Device,
                DEVICE[family],
                &inside(family),
                &format!("ep=phone-{family}"),
            )
            .unwrap()
    }

    /// A session of an app on a device that has registered.
    pub(crate) fn requested(
        &self,
        family: usize,
        registration: &str,
        instance: &str,
        port: u16,
    ) -> Granted {
        let device = (DEVICE[family], &*inside(family), registration);
        self.clients()
            .request_session(Party::Device, device, (APP, instance, port))
            .unwrap()
    }

    /// A session that may be used, of the device by IPv4, as its app got it.
    pub(crate) fn granted(&self) -> Granted {
        let registration = self.registered(0);
        let granted = self.requested(0, &registration, "one", DEVICE_PORT);
        self.clients()
            .authorise(&outside(0), &self.app_key, &granted)
            .unwrap();
        granted
    }

    /// A session that may be used, of the device.
    pub(crate) fn authorised(&self, family: usize, port: u16) -> Session {
        self.authorised_at(Party::Device, DEVICE[family], family, port)
    }

    /// A session that may be used, of a device of that party, at that address.
    pub(crate) fn authorised_at(
        &self,
        party: Party,
        address: &str,
        family: usize,
        port: u16,
    ) -> Session {
        let clients = self.clients();
        let gateway = inside(family);
        let registration = clients
            .register(
                party,
                address,
                &gateway,
                &format!("ep=phone-{family}-{port}"),
            )
            .unwrap();
        let granted = clients
            .request_session(
                party,
                (address, &gateway, &registration),
                (APP, "one", port),
            )
            .unwrap();
        clients
            .authorise(&outside(family), &self.app_key, &granted)
            .unwrap();
        granted.traffic
    }

    /// Runs a line of shell in the party's namespace.
    pub(crate) fn shell(&self, party: Party, line: &str) -> String {
        child::output(self.lab.exec_in(party, "sh").args(["-ec", line])).unwrap()
    }
}

/// The gateway's address inside, as a URI has it.
pub(crate) fn inside(family: usize) -> String {
    host(GATEWAY_INSIDE[family])
}

/// The gateway's address outside, as a URI has it.
pub(crate) fn outside(family: usize) -> String {
    host(GATEWAY_OUTSIDE[family])
}

fn host(address: &str) -> String {
    if address.contains(':') {
        format!("[{address}]")
    } else {
        address.to_owned()
    }
}

pub(crate) fn socket_address(address: &str, port: u16) -> SocketAddr {
    SocketAddr::new(address.parse().unwrap(), port)
}

/// Demands that so many triggers arrive, each once and as it was sent.
pub(crate) fn demand_each_once(lab: &Lab, sink: Sink, sent: u64) {
    demand(lab, &sink, sent);
    assert_eq!(sink.finish().unwrap(), Received::just(sent));
}

/// Demands that so many triggers arrive.
pub(crate) fn demand(lab: &Lab, sink: &Sink, sent: u64) {
    assert!(
        sink.wait_for(sent, LIMIT),
        "{:?} of {sent}, and {}",
        sink.received(),
        whereabouts(lab)
    );
}

/// What became of packets that didn't arrive.
fn whereabouts(lab: &Lab) -> String {
    let mut told = String::new();
    for nic in ["gw-app", "gw-dev"] {
        let mut counts = verdicts(lab, nic);
        counts.retain(|_, count| *count > 0);
        told += &format!("{nic}: {counts:?}; ");
    }
    for (party, nic) in [
        (Party::Application, "app0"),
        (Party::Gateway, "gw-app"),
        (Party::Gateway, "gw-dev"),
        (Party::Device, "dev0"),
    ] {
        let counters = ["rx_packets", "rx_dropped", "tx_packets", "tx_dropped"].map(|counter| {
            let file = format!("/sys/class/net/{nic}/statistics/{counter}");
            let mut cat = lab.exec_in(party, "cat");
            let count = child::output(cat.arg(file));
            format!("{counter} {}", count.unwrap_or_default().trim())
        });
        told += &format!("{nic}: {counters:?}; ");
    }
    told
}

/// Does `work` while triggers of a new session flow, of which each has to be delivered once. It is given what waits
/// until more of them have been.
pub(crate) fn while_triggers_flow(story: &Story, work: impl FnOnce(&dyn Fn())) {
    while_triggers_of(story, story.authorised(0, DEVICE_PORT), work);
}

/// The same with a session that there is, at [`DEVICE_PORT`] of the device by IPv4.
pub(crate) fn while_triggers_of(story: &Story, session: Session, work: impl FnOnce(&dyn Fn())) {
    const RATE_PER_S: u32 = 10_000;
    let lab = &story.lab;
    let sink = Sink::start(device(lab, 0, DEVICE_PORT), &[session]).unwrap();
    let (server, stop) = (server(lab, 0), AtomicBool::new(false));
    let sent = thread::scope(|scope| {
        let load = Load {
            sessions: slice::from_ref(&session),
            first_sequence: 1,
            triggers: u64::MAX,
            payload_bytes: 40,
            rate_per_s: Some(RATE_PER_S),
            turns: &[Turn::Good],
        };
        let (server, stop_here, under_way) = (&server, &stop, sink.under_way());
        let send = move || load.send_in_step(server, stop_here, under_way);
        let generator = scope.spawn(move || send().unwrap());
        let stop = StopAtEnd(&stop);
        assert!(sink.wait_for(1000, LIMIT), "{:?}", sink.received());
        let flow = || {
            let delivered = sink.received().delivered;
            assert!(sink.wait_for(delivered + 1000, LIMIT), "they don't flow");
        };
        work(&flow);
        flow();
        drop(stop);
        generator.join().unwrap().triggers
    });
    demand_each_once(lab, sink, sent);
}

/// Has a generator stop even if the test fails.
pub(crate) struct StopAtEnd<'a>(pub(crate) &'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A socket of the application's server, connected to where the gateway takes triggers by IPv4 (0) or
/// IPv6 (1).
pub(crate) fn server(lab: &Lab, family: usize) -> UdpSocket {
    let address = socket_address(APPLICATION[family], 0);
    let socket = lab.udp_socket(Party::Application, address).unwrap();
    let gateway = socket_address(GATEWAY_OUTSIDE[family], TRIGGER_PORT);
    socket.connect(gateway).unwrap();
    socket.set_read_timeout(Some(LIMIT)).unwrap();
    socket
}

pub(crate) fn device(lab: &Lab, family: usize, port: u16) -> UdpSocket {
    let address = socket_address(DEVICE[family], port);
    let socket = lab.udp_socket(Party::Device, address).unwrap();
    socket.set_read_timeout(Some(LIMIT)).unwrap();
    socket
}

/// How often the device's own UDP found a wrong checksum, by IPv4 and by IPv6.
pub(crate) fn checksum_errors(lab: &Lab) -> [u64; 2] {
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

/// Packets by verdict on that NIC of the gateway.
pub(crate) fn verdicts(lab: &Lab, nic: &str) -> BTreeMap<String, u64> {
    let stats = lab.push_ctl_json(&["stats"]).unwrap();
    let nics = stats["nics"].as_array().unwrap();
    let nic = nics.iter().find(|one| one["name"] == nic).unwrap();
    let count = |row: &Value| {
        let verdict = row["verdict"].as_str().unwrap();
        (verdict.to_owned(), row["packets"].as_u64().unwrap())
    };
    let rows = nic["verdicts"].as_array().unwrap();
    let by_verdict: BTreeMap<_, _> = rows.iter().map(count).collect();
    assert_eq!(
        nic["packets"],
        by_verdict.values().sum::<u64>(),
        "what came in is the sum of the verdicts"
    );
    by_verdict
}
