//! Triggers from socket to socket, while their session moves, and while the daemon is killed.

use super::{Course, LIMIT, Ledger};
use crate::datagram::Session;
use crate::gateway::{open, settings};
use crate::story::{
    DEVICE_PORT, PUSH_CTL, Story, demand, device, server, socket_address, verdicts,
};
use push_common::verdict::{Action, Verdict};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use xtask::child;
use xtask::lab::{DEVICE, Lab, Options, Party};
use xtask::traffic::{self, Load, Received, Sink, Turn};

static NEVER: AtomicBool = AtomicBool::new(false);

#[test]
fn each_trigger_arrives_once_while_its_device_moves() {
    moves("push-races-move", Course::short(50_000));
}

#[test]
fn of_two_senders_of_the_same_triggers_one_gets_through_whatever_the_daemon_does() {
    kills("push-races-kill", Course::short(2));
}

pub(super) fn load(session: &traffic::Session, first_sequence: u64, triggers: u64) -> Load<'_> {
    Load {
        sessions: std::slice::from_ref(session),
        first_sequence,
        triggers,
        payload_bytes: 40,
        rate_per_s: Some(25_000),
        turns: &[Turn::Good],
    }
}

/// A course of so many triggers, while the device moves between two addresses and ports, ten thousand
/// times or more.
pub(super) fn moves(prefix: &str, mut course: Course) {
    const ROUND: u64 = 50_000;
    const MOVES: u64 = 10_000;
    let places = [
        socket_address(DEVICE[0], DEVICE_PORT),
        socket_address("10.64.0.3", DEVICE_PORT + 1),
    ];
    let mut options = Options::new(prefix, Path::new(PUSH_CTL));
    options.daemon = false;
    options.device_addresses = vec![format!("{}/16", places[1].ip())];
    let lab = Lab::up(&options).unwrap();
    let mut cat = lab.exec_in(Party::Device, "cat");
    let mac = child::output(cat.arg("/sys/class/net/dev0/address")).unwrap();
    for place in places {
        let neighbour = format!(
            "neigh replace {} lladdr {} dev gw-dev",
            place.ip(),
            mac.trim()
        );
        let mut ip = lab.exec_in(Party::Gateway, "ip");
        child::output(ip.args(neighbour.split(' '))).unwrap();
    }
    let images = places.map(|place| Session::new(1, &place.to_string()).image);
    let session = traffic::Session {
        id: images[0].id,
        key: *images[0].key,
        token_generation: images[0].token_generation,
    };
    let sinks = places.map(|place| {
        let socket = lab.udp_socket(Party::Device, place).unwrap();
        Sink::start(socket, &[session]).unwrap()
    });
    let received = || sinks.each_ref().map(|sink| sink.received().delivered);
    let server = server(&lab, 0);

    let (mut sent, mut moved) = (0, 0_usize);
    let run = || {
        let mut settings = settings(lab.folder().join("bpf/push"));
        settings.nics[0].name = "gw-app".to_owned();
        settings.nics[1].name = "gw-dev".to_owned();
        let mut dataplane = open(&settings).unwrap();
        // Next hops that stay in use need not rest each time that the device moves on.
        for (slot, place) in (10..).zip(places) {
            dataplane
                .install(&Session::new(slot, &place.to_string()).image)
                .unwrap();
        }
        dataplane.install(&images[0]).unwrap();
        let before = Ledger::of(&dataplane);
        while let Some(count) = course.next(ROUND) {
            let load = load(&session, 1000 + sent, count);
            let end_of_round = moved + (MOVES * count / ROUND) as usize;
            thread::scope(|scope| {
                let (server, received, before) = (&server, &received, sent);
                let under_way = move |here| before + here - received().iter().sum::<u64>();
                let send = move || load.send_in_step(server, &NEVER, under_way);
                let generator = scope.spawn(move || send().unwrap());
                while !generator.is_finished() || moved < end_of_round {
                    moved += 1;
                    dataplane.install(&images[moved % 2]).unwrap();
                    // There are others who need this CPU, to have triggers to move among.
                    thread::sleep(Duration::from_micros(20));
                }
                sent += generator.join().unwrap().triggers;
            });
            let begin = Instant::now();
            while received().iter().sum::<u64>() < sent {
                assert!(
                    begin.elapsed() < LIMIT,
                    "{:?} of {sent} have arrived",
                    received()
                );
                thread::sleep(Duration::from_millis(1));
            }
        }
        for &verdict in Verdict::ALL {
            let count = before.since(&dataplane, verdict);
            match verdict.action() {
                Action::Pass if verdict != Verdict::NextHopUnresolved => {} // Of the rest of the stack.
                Action::Redirect if verdict == Verdict::Redirected => assert_eq!(count, sent),
                Action::Pass | Action::Transmit | Action::Redirect | Action::Drop => {
                    assert_eq!(count, 0, "{}", verdict.label());
                }
            }
        }
    };
    lab.run_in(Party::Gateway, run).unwrap();

    let whole = received();
    assert!(whole.iter().all(|&delivered| delivered > 0), "{whole:?}");
    for (sink, delivered) in sinks.into_iter().zip(whole) {
        let only_delivered = Received::just(delivered);
        assert_eq!(sink.finish().unwrap(), only_delivered);
    }
    assert_eq!(whole.iter().sum::<u64>(), sent);
    course.finish(&format!(
        "{moved} moves, {whole:?} arrived at each of the places: twice = 0, damaged = 0, lost = 0"
    ));
}

/// A course of so many ends of the daemon by `kill -9`, while two servers send the same triggers.
pub(super) fn kills(prefix: &str, mut course: Course) {
    const ROUND: u64 = 25_000;
    let story = Story::begin(prefix);
    let lab = &story.lab;
    let session = story.authorised(0, DEVICE_PORT);
    let sink = Sink::start(device(lab, 0, DEVICE_PORT), &[session]).unwrap();
    let servers = [server(lab, 0), server(lab, 0)];
    let mut sent = 0;
    while let Some(count) = course.next(1) {
        for _ in 0..count {
            let load = load(&session, 1000 + sent, ROUND);
            // What one of them has sent may have come from the other, so neither gets far ahead.
            let by_each = [const { AtomicU64::new(0) }; 2];
            let send = |this: usize| {
                let under_way = |here: u64| {
                    by_each[this].store(here, Ordering::Relaxed);
                    let arrived = sink.received().delivered - sent;
                    here.saturating_sub(arrived.min(by_each[1 - this].load(Ordering::Relaxed)))
                };
                load.send_in_step(&servers[this], &NEVER, under_way)
            };
            thread::scope(|scope| {
                for this in [0, 1] {
                    let send = &send;
                    scope.spawn(move || send(this).unwrap());
                }
                assert!(sink.wait_for(sent + 1000, LIMIT), "{:?}", sink.received());
                lab.kill().unwrap();
                assert!(
                    sink.wait_for(sent + 3000, LIMIT),
                    "nobody but the kernel is there to forward"
                );
                lab.start().unwrap();
            });
            sent += ROUND;
            demand(lab, &sink, sent);
        }
    }
    // The windows of the last daemon's program know what all programs before let through.
    let again = load(&session, 1000 + sent - 97, 97)
        .send(&servers[0], &NEVER)
        .unwrap();
    let refused = sent + again.triggers;
    let begin = Instant::now();
    let outside = || verdicts(lab, "gw-app");
    while outside()["replayed"] + outside()["sequence_too_old"] < refused {
        assert!(begin.elapsed() < LIMIT, "{refused} are to be refused");
        thread::sleep(Duration::from_millis(10));
    }
    let only_delivered = Received::just(sent);
    assert_eq!(sink.finish().unwrap(), only_delivered);
    // The kernel helps out while the next hop isn't known.
    let outside = outside();
    let let_through = outside["redirected"] + outside["next_hop_unresolved"];
    assert_eq!((let_through, outside["contended"]), (sent, 0));
    course.finish(&format!(
        "of {sent} triggers that two servers sent, each arrived once: twice = 0, lost = 0"
    ));
}
