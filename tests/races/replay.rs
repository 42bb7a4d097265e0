//! Two CPUs offer the same sequence numbers to one session.

use super::{Course, Ledger, Pace, Shared, Template, is_let_through, race};
use crate::datagram::{DEVICES, Session};
use crate::gateway::{EXT, Gateway};
use push_common::replay::PERMITTED_LAG;
use push_common::verdict::Verdict;
use push_common::wire::Flags;
use push_ctl::dataplane::Prober;
use std::sync::Mutex;

/// Sequence numbers between one look at everything and the next.
const ROUND: u64 = 97 * 512;
/// Together, both CPUs go from one stretch to the next. A prime number, see [`shuffled`].
const STRETCH: usize = PERMITTED_LAG as usize + 1;

/// The order in which both CPUs go through the sequence numbers.
#[derive(Clone, Copy)]
pub(super) enum Order {
    /// Both offer the same one at the same moment.
    InStep,
    /// Each has an order of its own, in which none comes later than the permitted lag allows.
    Shuffled,
}

#[test]
fn of_two_cpus_at_the_same_moment_one_lets_a_sequence_through() {
    run(Order::InStep, Course::short(1_000_000));
}

#[test]
fn two_cpus_let_each_sequence_through_once_in_any_order_within_the_lag() {
    run(Order::Shuffled, Course::short(1_000_000));
}

/// A course of so many offers.
pub(super) fn run(order: Order, mut course: Course) {
    Gateway::run(move |mut gateway| {
        let session = Session::new(1, DEVICES[0]).installed(&mut gateway);
        let relay = Relay::new(gateway.dataplane.prober(EXT).unwrap());
        let mut first = 1 << 20;
        let mut tally = Tally::default();
        while let Some(offers) = course.next(2 * ROUND) {
            let before = Ledger::of(&gateway.dataplane);
            let round = offer(&relay, &session, first..first + offers / 2, order);
            first += offers / 2;
            assert_eq!((round.twice, round.lost), (0, 0), "twice, lost");
            let replayed = (Verdict::Replayed, round.offers - round.once);
            let expected = [(Verdict::Redirected, round.once), replayed];
            before.demand(&gateway.dataplane, Template::new(&session).len(), &expected);
            tally.add(&round);
            gateway.dataplane.events();
        }
        tally.demand_all(&session, &gateway);
        course.finish(&tally.to_string());
    });
}

/// Hands the program to the threads that run it, and the next one when it is replaced.
pub(super) struct Relay {
    number: Shared,
    prober: Mutex<Prober>,
}

impl Relay {
    pub(super) fn new(prober: Prober) -> Self {
        Self {
            number: Shared::default(),
            prober: Mutex::new(prober),
        }
    }

    pub(super) fn replace(&self, prober: Prober) {
        *self.prober.lock().unwrap() = prober;
        self.number.set(self.number.get() + 1);
    }

    fn take(&self) -> (u64, Prober) {
        let number = self.number.get();
        (number, self.prober.lock().unwrap().clone())
    }
}

/// What became of the offers.
#[derive(Default)]
pub(super) struct Tally {
    pub(super) offers: u64,
    /// Sequence numbers that one offer of two was let through of.
    pub(super) once: u64,
    /// Both.
    pub(super) twice: u64,
    /// None.
    pub(super) lost: u64,
}

impl Tally {
    pub(super) fn add(&mut self, other: &Self) {
        self.offers += other.offers;
        self.once += other.once;
        self.twice += other.twice;
        self.lost += other.lost;
    }

    /// Demands that one of each two was let through, and that the session says so, too.
    pub(super) fn demand_all(&self, session: &Session, gateway: &Gateway) {
        assert_eq!(
            (self.once, self.twice, self.lost),
            (self.offers / 2, 0, 0),
            "once, twice, lost"
        );
        let counters = gateway
            .dataplane
            .session_counters(session.image.id)
            .unwrap();
        let bytes = self.once * Template::new(session).len() as u64;
        assert_eq!((counters.packets, counters.bytes), (self.once, bytes));
    }
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            once, twice, lost, ..
        } = self;
        write!(
            f,
            "{once} sequences let through once, {twice} twice, lost = {lost}"
        )
    }
}

/// Offers these sequence numbers on both CPUs. Each is signed once.
pub(super) fn offer(
    relay: &Relay,
    session: &Session,
    sequences: std::ops::Range<u64>,
    order: Order,
) -> Tally {
    let mut template = Template::new(session);
    let frame_len = template.len();
    let mut frames = Vec::new();
    for sequence in sequences.clone() {
        frames.extend(template.of(session, sequence, Flags::NONE));
    }
    let frames: Vec<_> = frames.chunks(frame_len).collect();
    let pace = Pace::default();
    let offer = |me: usize| {
        let mut let_through = vec![false; frames.len()];
        let mut out = Vec::new();
        let (mut number, mut prober) = relay.take();
        for (stretch, begin) in (0..frames.len()).step_by(STRETCH).enumerate() {
            if relay.number.get() != number {
                (number, prober) = relay.take();
            }
            if let Order::Shuffled = order {
                pace.meet(me, stretch as u64 + 1);
            }
            for step in 0..STRETCH {
                let place = match order {
                    Order::InStep => begin + step,
                    Order::Shuffled => begin + shuffled(step, stretch, me),
                };
                let Some(frame) = frames.get(place) else {
                    continue;
                };
                if let Order::InStep = order {
                    pace.meet(me, place as u64 + 1);
                }
                let_through[place] = is_let_through(&prober, frame, &mut out);
            }
        }
        let_through
    };
    let (one, other) = race(|| offer(0), || offer(1));
    let mut tally = Tally {
        offers: 2 * frames.len() as u64,
        ..Tally::default()
    };
    for both in one.iter().zip(&other) {
        match both {
            (true, true) => tally.twice += 1,
            (true, false) | (false, true) => tally.once += 1,
            (false, false) => tally.lost += 1,
        }
    }
    tally
}

/// Where in its stretch a CPU goes at this step: everywhere once, as [`STRETCH`] is prime.
const fn shuffled(step: usize, stretch: usize, me: usize) -> usize {
    let (stride, begin) = (
        1 + (stretch * 31 + me * 17) % (STRETCH - 1),
        stretch * 7 + me * 50,
    );
    (begin + step * stride) % STRETCH
}
