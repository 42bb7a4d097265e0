//! Two CPUs offer the same sequence numbers while the program under them is replaced.

use super::replay::{Order, Relay, Tally, offer};
use super::{Course, Ledger, Template};
use crate::datagram::{DEVICES, Session};
use crate::gateway::{EXT, Gateway, nics, open};
use push_common::replay::PERMITTED_LAG;
use push_common::verdict::Verdict;
use push_ctl::dataplane::Dataplane;
use std::thread;

/// Sequence numbers of which each is signed once.
const ROUND: u64 = 97 * 64;

#[test]
fn replay_windows_survive_the_program_and_its_controller() {
    run(Course::short(4));
}

/// A course of so many restarts.
pub(super) fn run(mut course: Course) {
    Gateway::run(move |gateway| {
        let Gateway {
            mut dataplane,
            settings,
            _state,
        } = gateway;
        let session = Session::new(1, DEVICES[0]);
        dataplane.install(&session.image).unwrap();
        let before = Ledger::of(&dataplane);
        let relay = Relay::new(dataplane.prober(EXT).unwrap());
        let mut program = program_id(&dataplane);

        let mut sequences = 1 << 20..(1 << 20) + ROUND;
        let mut tally = Tally::default();
        let mut restarts = 0;
        while let Some(count) = course.next(1) {
            dataplane = thread::scope(|scope| {
                // What a controller does that comes after another one.
                let restarter = scope.spawn(|| {
                    drop(dataplane);
                    let mut dataplane = open(&settings).unwrap();
                    relay.replace(dataplane.prober(EXT).unwrap());
                    dataplane.install(&session.image).unwrap();
                    dataplane.settled();
                    dataplane
                });
                // One round is still underway when the new program comes, and one comes after it.
                for order in [Order::InStep, Order::Shuffled].into_iter().cycle() {
                    let is_last = restarter.is_finished();
                    tally.add(&offer(&relay, &session, sequences.clone(), order));
                    sequences = sequences.end..sequences.end + ROUND;
                    if is_last {
                        break;
                    }
                }
                restarter.join().unwrap()
            });
            let next = program_id(&dataplane);
            assert_ne!(std::mem::replace(&mut program, next), next, "not replaced");
            restarts += count;
        }
        // What the last program has let through is known to the next one.
        drop(dataplane);
        let dataplane = open(&settings).unwrap();
        relay.replace(dataplane.prober(EXT).unwrap());
        let newest = sequences.start - 1;
        let again = offer(
            &relay,
            &session,
            newest - PERMITTED_LAG..newest + 1,
            Order::InStep,
        );
        assert_eq!((again.once, again.twice), (0, 0), "let through anew");

        let replayed = (Verdict::Replayed, tally.offers - tally.once + again.offers);
        let expected = [(Verdict::Redirected, tally.once), replayed];
        before.demand(&dataplane, Template::new(&session).len(), &expected);
        let gateway = Gateway {
            dataplane,
            settings,
            _state,
        };
        tally.demand_all(&session, &gateway);
        course.finish(&format!(
            "{tally}, and {restarts} programs replaced under them"
        ));
    });
}

/// The program that is attached to the NIC where triggers come in.
fn program_id(dataplane: &Dataplane) -> u32 {
    let nics = nics(dataplane);
    let nic = nics.iter().find(|nic| nic.name == EXT).unwrap();
    assert_eq!(nic.mode, "native");
    nic.program_id
}
