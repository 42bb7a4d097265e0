//! Triggers that flow, one each millisecond, while the network changes: how soon they go the other way.
//!
//! Each trigger's time is known on both sides, so the *outage* is what a sender sees of it: the time from
//! the change to the last trigger that was sent and didn't arrive. The machine may be busy with
//! something else; so the best of some rounds counts.

use crate::story::{DEVICE_PORT, PUSH_CTL, Story, server, socket_address, wait_until};
use push_common::wire::TriggerHeader;
use std::net::UdpSocket;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use xtask::lab::{Config, DEVICE, Lab, Nic, Options, Party, Role};
use xtask::traffic::Session;

/// A change is to be followed within this time.
const PROMISED: Duration = Duration::from_millis(200);
const ROUNDS: usize = 3;
/// How long triggers flow after a change, at least.
const AFTERMATH: Duration = Duration::from_millis(300);
const PACE: Duration = Duration::from_millis(1);

/// Triggers to one device.
struct Stream {
    session: Session,
    server: UdpSocket,
    device: UdpSocket,
    /// When each was sent, and how often it arrived; the first has sequence number 0.
    triggers: Mutex<Vec<(Instant, u32)>>,
}

impl Stream {
    /// To a device at `address`, by its IP version.
    fn to(story: &Story, family: usize, address: &str) -> Self {
        let device = socket_address(address, DEVICE_PORT);
        let device = story.lab.udp_socket(Party::Device, device).unwrap();
        device.set_nonblocking(true).unwrap();
        Self {
            session: story.authorised_at(Party::Device, address, family, DEVICE_PORT),
            server: server(&story.lab, family),
            device,
            triggers: Mutex::default(),
        }
    }

    /// Lets triggers flow until told to `stop`, and the last one has arrived.
    fn flow(&self, stop: &AtomicBool) {
        while !stop.load(Ordering::Relaxed) {
            self.send();
            self.receive();
            thread::sleep(PACE);
        }
        wait_until("the last trigger arrives", || {
            self.receive();
            self.triggers.lock().unwrap().last().unwrap().1 > 0
        });
    }

    fn send(&self) {
        let sequence = {
            let mut triggers = self.triggers.lock().unwrap();
            triggers.push((Instant::now(), 0));
            triggers.len() as u64 - 1
        };
        let mut trigger = [0; 40 + 8];
        self.session.trigger(sequence, &mut trigger);
        self.server.send(&trigger).unwrap();
    }

    /// All that is there.
    fn receive(&self) {
        let mut buffer = [0; 2048];
        while let Ok(length) = self.device.recv(&mut buffer) {
            let (header, payload) = TriggerHeader::parse(&buffer[..length]).unwrap();
            header.verify(self.session.key, payload).unwrap();
            self.triggers.lock().unwrap()[header.sequence.get() as usize].1 += 1;
        }
    }

    /// How many have arrived that were sent later than `since`.
    fn arrived(&self, since: Instant) -> usize {
        let triggers = self.triggers.lock().unwrap();
        let arrived = |&&(sent, count): &&(Instant, u32)| sent > since && count > 0;
        triggers.iter().filter(arrived).count()
    }

    /// From the change to the last trigger that was lost since `begin`. None came twice, and none was
    /// lost before.
    fn outage(&self, begin: Instant, change: Instant) -> Duration {
        let triggers = self.triggers.lock().unwrap();
        let twice = triggers.iter().filter(|(_, count)| *count > 1);
        assert_eq!(twice.count(), 0, "triggers that came more than once");
        let lost = triggers.iter().filter(|(_, count)| *count == 0);
        let lost: Vec<_> = lost
            .map(|(sent, _)| *sent)
            .filter(|sent| *sent > begin)
            .collect();
        // What is on its way at the change may be lost with it.
        let early = lost.iter().filter(|&&sent| sent + 20 * PACE < change);
        assert_eq!(
            early.count(),
            0,
            "triggers that were lost before the change"
        );
        lost.last().map_or(Duration::ZERO, |sent| {
            sent.saturating_duration_since(change)
        })
    }
}

/// The outage of each of `streams` when `change` happens, which does when all is `ready`.
fn outages(
    streams: &[Stream; 2],
    ready: impl FnMut() -> bool,
    change: impl FnOnce(),
) -> [Duration; 2] {
    let stop = AtomicBool::new(false);
    let (begin, changed) = thread::scope(|scope| {
        let stops = SetOnDrop(&stop); // However this ends.
        for stream in streams {
            scope.spawn(|| stream.flow(&stop));
        }
        let flow = |since| streams.iter().all(|stream| stream.arrived(since) >= 50);
        wait_until("what is to change is as it was", ready);
        let begin = Instant::now();
        wait_until("triggers flow", || flow(begin));
        let changed = Instant::now();
        change();
        wait_until("triggers flow again", || flow(changed + AFTERMATH));
        drop(stops);
        (begin, changed)
    });
    streams
        .each_ref()
        .map(|stream| stream.outage(begin, changed))
}

struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// In the best round, everything is as promised.
fn judge(what: &str, rounds: &[[Duration; 2]]) {
    println!("{what}: outages {rounds:?}");
    for family in [0, 1] {
        let best = rounds.iter().map(|outages| outages[family]).min().unwrap();
        assert!(best < PROMISED, "{what}: {rounds:?}");
    }
}

#[test]
fn a_device_with_another_mac_address_gets_its_triggers_again() {
    let story = Story::begin("push-mac");
    // The device announces it, or nobody could know; and the kernel of the gateway believes it, even
    // if it has heard of another one a moment ago.
    story.shell(
        Party::Device,
        "sysctl -qw net.ipv4.conf.dev0.arp_notify=1 net.ipv6.conf.dev0.ndisc_notify=1",
    );
    story.shell(
        Party::Gateway,
        "sysctl -qw net.ipv4.neigh.gw-dev.locktime=0",
    );
    let streams = [0, 1].map(|family| Stream::to(&story, family, DEVICE[family]));
    let rounds = [1, 2, 3].map(|round| {
        outages(
            &streams,
            || true,
            || {
                let command = format!("ip link set dev0 address 02:00:00:00:64:0{round}");
                story.shell(Party::Device, &command);
            },
        )
    });
    judge("another MAC address", &rounds);
}

/// Addresses of a device that are on none of its links, so that routes lead to them.
const BEHIND: [&str; 2] = ["10.99.0.2", "fd00:99::2"];

/// A lab with two links between gateway and device.
fn two_links(prefix: &str) -> Story {
    let config = Config::default();
    let mut nics = config.nics.clone();
    nics.push(Nic {
        name: "gw-dev2".to_owned(),
        role: Role::Internal,
        trigger_addresses: Vec::new(),
    });
    let options = Options {
        daemon: false,
        config: Config { nics, ..config },
        ..Options::new(prefix, Path::new(PUSH_CTL))
    };
    let lab = Lab::up(&options).unwrap();
    let shell = |party, line: &str| {
        xtask::child::output(lab.exec_in(party, "sh").args(["-ec", line])).unwrap();
    };
    let peer = lab.namespace(Party::Device);
    shell(
        Party::Gateway,
        &format!("ip link add gw-dev2 type veth peer name dev1 netns {peer}"),
    );
    // The device's end first: only a veth whose peer polls is told that it may be redirected to, when it comes up.
    shell(
        Party::Device,
        "ethtool -K dev1 tx off gro on
         sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.dev0.rp_filter=0 net.ipv4.conf.dev1.rp_filter=0
         ip address add 10.69.0.2/24 dev dev1
         ip address add fd00:69::2/64 dev dev1 nodad
         ip address add 10.99.0.2/32 dev lo
         ip address add fd00:99::2/128 dev lo nodad
         ip link set dev1 up",
    );
    shell(
        Party::Gateway,
        "ethtool -K gw-dev2 tx off
         ip address add 10.69.0.1/24 dev gw-dev2
         ip address add fd00:69::1/64 dev gw-dev2 nodad
         ip link set gw-dev2 up
         sysctl -qw net.ipv6.conf.gw-dev.keep_addr_on_down=1",
    );
    shell(Party::Gateway, &routes(0, 100));
    lab.start().unwrap();
    Story::in_lab(lab)
}

/// Commands that make routes to the device by one of the links.
fn routes(link: usize, metric: u32) -> String {
    let [v4, v6] = [["10.64.0.2", "fd00:64::2"], ["10.69.0.2", "fd00:69::2"]][link];
    format!(
        "ip route replace {} via {v4} metric {metric}; ip -6 route replace {} via {v6} metric {metric}",
        BEHIND[0], BEHIND[1]
    )
}

/// Frames that the device has got by each of its links.
fn frames_by_link(story: &Story) -> [u64; 2] {
    ["dev0", "dev1"].map(|nic| {
        let count = format!("cat /sys/class/net/{nic}/statistics/rx_packets");
        story.shell(Party::Device, &count).trim().parse().unwrap()
    })
}

#[test]
fn a_device_behind_another_router_gets_its_triggers_there() {
    let story = two_links("push-route");
    let streams = [0, 1].map(|family| Stream::to(&story, family, BEHIND[family]));
    let mut by_link = [0; 2];
    // The router of the first change has never been heard of.
    let rounds: [_; ROUNDS] = std::array::from_fn(|round| {
        let link = (round + 1) % 2;
        let change = || {
            story.shell(Party::Gateway, &routes(link, 100));
        };
        let outages = outages(&streams, || true, change);
        let before = by_link[link];
        by_link = frames_by_link(&story);
        assert!(by_link[link] > before + 100, "{by_link:?} by link {link}");
        outages
    });
    judge("another route", &rounds);
}

#[test]
fn a_device_whose_link_fails_gets_its_triggers_by_the_other_one() {
    let story = two_links("push-link");
    story.shell(Party::Gateway, &routes(1, 200));
    let streams = [0, 1].map(|family| Stream::to(&story, family, BEHIND[family]));
    let outages_when = |change: &dyn Fn()| {
        let back = format!("ip link set gw-dev up; {}", routes(0, 100));
        story.shell(Party::Gateway, &back);
        let [before, _] = frames_by_link(&story);
        let ready = || frames_by_link(&story)[0] > before + 50;
        outages(&streams, ready, change)
    };
    let fail = || {
        story.shell(Party::Gateway, "ip link set gw-dev down");
    };
    let rounds: [_; ROUNDS] = std::array::from_fn(|_| outages_when(&fail));
    judge("a failed link", &rounds);
}
