//! Triggers from socket to socket while the gateway goes through what gateways go through: it is upgraded, and its
//! links go away and come back.

use super::delivery::load;
use super::{Course, LIMIT};
use crate::story::{
    DEVICE_PORT, StopAtEnd, Story, demand_each_once, device, server, verdicts, wait_until,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::{Duration, Instant};
use xtask::child;
use xtask::lab::{Lab, Party};
use xtask::traffic::{Load, Received, Sink};

pub(super) static NEVER: AtomicBool = AtomicBool::new(false);

#[test]
fn no_trigger_is_lost_while_the_daemon_is_upgraded() {
    upgrades("push-upgrade", Course::short(3), 5_000);
}

#[test]
fn the_first_trigger_after_a_link_is_up_is_forwarded() {
    links("push-link", Course::short(5));
}

/// However long the daemon takes to know.
#[test]
fn a_link_is_used_as_soon_as_the_kernel_has_it_up() {
    let story = Story::begin("push-link-up");
    let lab = &story.lab;
    let session = story.authorised(0, DEVICE_PORT);
    let id = session.id.to_string();
    let sink = Sink::start(device(lab, 0, DEVICE_PORT), &[session]).unwrap();
    let server = server(lab, 0);
    let send = |sequence| load(&session, sequence, 1).send(&server, &NEVER).unwrap();
    let knows = |state: &str| {
        wait_until("the daemon knows", || {
            let shown = lab.push_ctl_json(&["session", "show", &id]).unwrap();
            shown["next_hop"] == state
        });
    };

    story.shell(Party::Gateway, "ip link set gw-dev down");
    knows("no_route");
    send(1);
    wait_until("the kernel has no route either", || {
        verdicts(lab, "gw-app")["no_route"] == 1
    });

    let daemon = Pid::from_raw(lab.pid().unwrap().try_into().unwrap());
    kill(daemon, Signal::SIGSTOP).unwrap();
    let up = format!("ip link set gw-dev up; {}", is_up("gw-dev"));
    story.shell(Party::Gateway, &up);
    // It isn't a replay: what isn't let through uses no sequence number up.
    send(1);
    assert!(sink.wait_for(1, LIMIT), "the daemon was waited for");
    kill(daemon, Signal::SIGCONT).unwrap();

    knows("resolved");
    send(2);
    assert!(sink.wait_for(2, LIMIT));
    assert_eq!(sink.finish().unwrap(), Received::just(2));
    let outside = verdicts(lab, "gw-app");
    let counts = ["no_route", "next_hop_unresolved", "redirected"].map(|verdict| outside[verdict]);
    assert_eq!(counts, [1, 1, 1]);
}

/// Of several times, as others need the CPUs, too.
#[test]
fn a_device_with_another_mac_address_gets_triggers_within_200_ms() {
    const PROMISE: Duration = Duration::from_millis(200);
    let story = Story::begin("push-mac");
    let lab = &story.lab;
    let session = story.authorised(0, DEVICE_PORT);
    let sink = Sink::start(device(lab, 0, DEVICE_PORT), &[session]).unwrap();
    let server = server(lab, 0);
    let mut sequence = 0;
    let mut until_one_arrives = || {
        let (begin, before) = (Instant::now(), sink.received().delivered);
        while sink.received().delivered == before {
            assert!(begin.elapsed() < LIMIT, "none arrives");
            sequence += 1;
            load(&session, sequence, 1).send(&server, &NEVER).unwrap();
            thread::sleep(Duration::from_millis(1));
        }
        begin.elapsed()
    };
    until_one_arrives();
    // It says so when its address changes, as devices do.
    story.shell(Party::Device, "sysctl -qw net.ipv4.conf.dev0.arp_notify=1");
    let mut took: Vec<_> = (0..5)
        .map(|round| {
            let change = format!("ip link set dev0 address 02:00:00:00:05:{round:02x}");
            story.shell(Party::Device, &change);
            until_one_arrives()
        })
        .collect();
    took.sort_unstable();
    assert!(took[took.len() / 2] <= PROMISE, "{took:?}");
    let received = sink.finish().unwrap();
    assert_eq!(received, Received::just(received.delivered));
}

#[test]
fn a_nic_that_comes_back_has_the_program_again() {
    replugs("push-replug", Course::short(2));
}

pub(super) fn nics(lab: &Lab) -> Vec<Value> {
    let mut status = lab.push_ctl_json(&["status"]).unwrap();
    let Value::Array(nics) = status["nics"].take() else {
        panic!("no NICs");
    };
    nics
}

/// A course of so many upgrades, and at least `each` triggers meanwhile.
pub(super) fn upgrades(prefix: &str, mut course: Course, each: u64) {
    let story = Story::begin(prefix);
    let lab = &story.lab;
    let session = story.authorised(0, DEVICE_PORT);
    let sink = Sink::start(device(lab, 0, DEVICE_PORT), &[session]).unwrap();
    let (server, stop) = (server(lab, 0), AtomicBool::new(false));
    let pid = lab.pid();
    let sent = thread::scope(|scope| {
        let load = Load {
            rate_per_s: Some(60_000),
            ..load(&session, 1, u64::MAX)
        };
        let (server, stop_here, under_way) = (&server, &stop, sink.under_way());
        let send = move || load.send_in_step(server, stop_here, under_way);
        let generator = scope.spawn(move || send().unwrap());
        let stop = StopAtEnd(&stop);
        let mut before = nics(lab);
        while let Some(count) = course.next(1) {
            for _ in 0..count {
                let delivered = sink.received().delivered;
                let mut upgraded = lab.push_ctl_json(&["upgrade"]).unwrap();
                let Value::Array(after) = upgraded["nics"].take() else {
                    panic!("{upgraded}");
                };
                for (before, after) in before.iter().zip(&after) {
                    assert_eq!(after["link_id"], before["link_id"], "another link");
                    assert_ne!(after["program_id"], before["program_id"], "not replaced");
                    assert_eq!(
                        (&after["mode"], &after["adopted"]),
                        (&"native".into(), &true.into())
                    );
                }
                before = after;
                assert!(
                    sink.wait_for(delivered + each, LIMIT),
                    "{:?}",
                    sink.received()
                );
            }
        }
        drop(stop);
        generator.join().unwrap().triggers
    });
    assert_eq!(lab.pid(), pid, "another process");
    demand_each_once(lab, sink, sent);
    course.finish(&format!(
        "{sent} triggers, each delivered once: lost = 0, twice = 0, misrouted = 0; links kept"
    ));
}

/// Whether each NIC of the gateway that has to have a program has one, says `ip`.
pub(super) fn nics_by_ip(lab: &Lab) -> [bool; 2] {
    ["gw-app", "gw-dev"].map(|nic| {
        let namespace = lab.namespace(Party::Gateway);
        let mut ip = child::command("ip");
        ip.args(["-n", &namespace, "-j", "-d", "link", "show", "dev", nic]);
        let links: Value = serde_json::from_str(&child::output(&mut ip).unwrap()).unwrap();
        links[0]["xdp"]["prog"].is_object()
    })
}

/// A course of so many times that a link of the gateway goes down and up. From the moment that the kernel says
/// it is up, a trigger has to arrive, whatever the daemon knows by then.
pub(super) fn links(prefix: &str, mut course: Course) {
    let story = Story::begin(prefix);
    let lab = &story.lab;
    let session = story.authorised(0, DEVICE_PORT);
    let sink = Sink::start(device(lab, 0, DEVICE_PORT), &[session]).unwrap();
    let server = server(lab, 0);
    let mut sent = 0;
    while let Some(count) = course.next(1) {
        for _ in 0..count {
            let nic = ["gw-app", "gw-dev"][sent as usize % 2];
            let up_again = format!(
                "ip link set {nic} down; ip link set {nic} up; {}",
                is_up(nic)
            );
            story.shell(Party::Gateway, &up_again);
            load(&session, 1 + sent, 1).send(&server, &NEVER).unwrap();
            sent += 1;
            assert!(
                sink.wait_for(sent, LIMIT),
                "the first trigger after {nic} is up again: {:?}",
                verdicts(lab, "gw-app")
            );
        }
    }
    assert_eq!(sink.finish().unwrap(), Received::just(sent));
    let outside = verdicts(lab, "gw-app");
    let let_through = outside["redirected"] + outside["next_hop_unresolved"];
    assert_eq!((let_through, outside["no_route"]), (sent, 0));
    course.finish(&format!(
        "the first trigger each time was forwarded, {} of them by the kernel: lost = 0",
        outside["next_hop_unresolved"]
    ));
}

/// Waits, in a shell, until the kernel says that a NIC is up.
fn is_up(nic: &str) -> String {
    format!("while [ \"$(cat /sys/class/net/{nic}/operstate)\" != up ]; do :; done")
}

/// A course of so many times that a NIC is removed, and another one gets its name.
pub(super) fn replugs(prefix: &str, mut course: Course) {
    let story = Story::begin(prefix);
    let lab = &story.lab;
    let session = story.authorised(0, DEVICE_PORT);
    let (mut sent, mut longest) = (0, Duration::ZERO);
    while let Some(count) = course.next(1) {
        for _ in 0..count {
            let nic = ["gw-app", "gw-dev"][sent as usize % 2];
            lab.replug(nic).unwrap();
            let back = Instant::now();
            wait_until("the program is back", || nics_by_ip(lab) == [true; 2]);
            longest = longest.max(back.elapsed());
            wait_until("the daemon says so", || {
                nics(lab).iter().all(|nic| nic["mode"] == "native")
            });
            let sink = Sink::start(device(lab, 0, DEVICE_PORT), &[session]).unwrap();
            let server = server(lab, 0);
            sent += 1;
            load(&session, sent, 1).send(&server, &NEVER).unwrap();
            assert!(sink.wait_for(1, LIMIT), "{nic}");
            assert_eq!(sink.finish().unwrap(), Received::just(1));
        }
    }
    course.finish(&format!(
        "attached again each time, at most {} ms after the link could be used",
        longest.as_millis()
    ));
}
