//! A slot of the session table has one owner after the other.

use super::{AtEnd, Course, Ledger, REDIRECT, Shared, Template, is_let_through, race};
use crate::datagram::{Datagram, ETHERNET, IPV4, Session};
use crate::gateway::{DEVICE_MAC, EXT, Gateway, INT_MAC};
use push_common::tag::TagKey;
use push_common::verdict::Verdict;
use push_common::wire::{Flags, SessionId};
use push_ctl::dataplane::Prober;

const SLOT: u32 = 7;
/// Owners between one look at everything and the next.
const ROUND: u64 = 50_000;
/// How many owners ago the triggers that are replayed were good.
const AGES: [u32; 2] = [1, 17];

#[test]
fn triggers_for_earlier_owners_of_a_slot_never_reach_the_next_one() {
    run(Course::short(100_000));
}

/// The `number`th session in the slot, and what its owner's server sends: nothing of it is another one's.
fn owner(number: u32) -> Session {
    let mut session = Session::new(
        SLOT,
        ["10.64.0.2:7000", "10.64.0.3:7000"][number as usize % 2],
    );
    session.image.id = SessionId::new(SLOT, number);
    session.image.device.set_port(port(number));
    session.image.token_generation = 0;
    let mut key = [0x3C; 16];
    key[..4].copy_from_slice(&number.to_le_bytes());
    session.image.key = TagKey::from_bytes(key).into();
    session
}

/// The port of an owner's app.
const fn port(number: u32) -> u16 {
    10_000 + (number % 50_000) as u16
}

/// A course of so many owners.
pub(super) fn run(mut course: Course) {
    Gateway::run(move |gateway| {
        crate::gateway::sh("ip neigh add 10.64.0.3 lladdr 02:00:00:00:02:02 dev int");
        let mut gateway = gateway.restarted_with(|_| {});
        // Next hops that stay in use need not rest each time that an owner goes.
        for (slot, device) in [(1, "10.64.0.2:1"), (2, "10.64.0.3:1")] {
            Session::new(slot, device).installed(&mut gateway);
        }
        let frame_len = Template::new(&owner(1)).len();
        let mut next = 1;
        let (mut replays, mut races) = (0, Raced::default());
        while let Some(count) = course.next(ROUND) {
            let before = Ledger::of(&gateway.dataplane);
            let numbers = next..next + count as u32;
            next = numbers.end;
            let prober = gateway.dataplane.prober(EXT).unwrap();
            let other_prober = prober.clone();
            let [current, gone, offers] = Default::default();
            let dataplane = &mut gateway.dataplane;
            let ((), raced) = race(
                || {
                    let _end = AtEnd(&current);
                    let mut out = Vec::new();
                    let mut template = Template::new(&owner(1));
                    for number in numbers.clone() {
                        let owner = owner(number);
                        dataplane.install(&owner.image).unwrap();
                        let frame = template.of(&owner, 1000, Flags::NONE);
                        let (action, _) = prober.run(frame, &mut out).unwrap();
                        assert_eq!(action, REDIRECT, "the owner's own trigger, {number}");
                        let sent = Datagram::to_gateway(false, frame[super::TRIGGER_AT..].to_vec());
                        let mut expected = owner.delivered(&sent, (INT_MAC, DEVICE_MAC)).frame();
                        expected[ETHERNET + IPV4 + 6..ETHERNET + IPV4 + 8].fill(0);
                        assert_eq!(out, expected);
                        current.set(number.into());
                        // Sequences that were used, and such that weren't.
                        for (age, sequence) in AGES.into_iter().zip([1000, 1001]) {
                            let former = self::owner(number.saturating_sub(age).max(1));
                            if former.image.id == owner.image.id {
                                continue;
                            }
                            let frame = template.of(&former, sequence, Flags::NONE);
                            let is_new = is_let_through(&prober, frame, &mut out);
                            assert!(!is_new, "{} reached {number}", former.image.id.generation());
                        }
                        dataplane.remove(owner.image.id);
                        gone.set(number.into());
                        // Whoever is underway now has time to get there: no other session can be
                        // authorised within less.
                        let underway = offers.get() + 1;
                        offers.wait_for(underway);
                    }
                },
                || offer_current(&other_prober, &current, &gone, &offers),
            );
            assert_eq!(
                (raced.late, raced.elsewhere),
                (0, 0),
                "late, to another owner"
            );
            let since = |verdict| before.since(&gateway.dataplane, verdict);
            let refused = AGES.iter().map(|&age| {
                let former = numbers
                    .clone()
                    .filter(|number| number.saturating_sub(age).max(1) != *number);
                former.count() as u64
            });
            let replayed: u64 = refused.sum();
            // A trigger that is underway when its session ends finds it gone, or another key.
            let (changing, bad_tag) = (since(Verdict::SessionChanging), since(Verdict::BadTag));
            let missed = raced.offers - raced.let_through - changing - bad_tag;
            before.demand(
                &gateway.dataplane,
                frame_len,
                &[
                    (Verdict::Redirected, count + raced.let_through),
                    (Verdict::UnknownSession, replayed + missed),
                    (Verdict::SessionChanging, changing),
                    (Verdict::BadTag, bad_tag),
                ],
            );
            replays += replayed;
            races.offers += raced.offers;
            races.let_through += raced.let_through;
            gateway.dataplane.events();
        }
        course.finish(&format!(
            "{replays} replays of earlier owners' triggers and {} triggers during the changes, {} of them for the \
             owner of the moment: to another owner = 0",
            races.offers, races.let_through,
        ));
    });
}

#[derive(Default)]
struct Raced {
    offers: u64,
    /// Whole, to their own session's device.
    let_through: u64,
    /// After their session was removed.
    late: u64,
    /// To where another session's device is.
    elsewhere: u64,
}

/// Offers triggers for the owner of the moment, who may just be going, until there is none any more.
fn offer_current(prober: &Prober, current: &Shared, gone: &Shared, offers: &Shared) -> Raced {
    let _end = AtEnd(offers);
    let mut raced = Raced::default();
    let mut template = Template::new(&owner(1));
    let mut out = Vec::new();
    current.wait_for(1);
    let (mut last, mut sequence) = (0, 0);
    while let Ok(number) = u32::try_from(current.get()) {
        let owner = owner(number);
        sequence = if number == last { sequence + 1 } else { 1010 };
        last = number;
        let frame = template.of(&owner, sequence, Flags::NONE);
        let was_gone = gone.get() >= u64::from(number);
        raced.offers += 1;
        if is_let_through(prober, frame, &mut out) {
            raced.let_through += 1;
            raced.late += u64::from(was_gone);
            let port_at = ETHERNET + IPV4 + 2;
            let is_own = out[port_at..port_at + 2] == port(number).to_be_bytes()
                && out[ETHERNET + 19] == 2 + (number % 2) as u8;
            raced.elsewhere += u64::from(!is_own);
        }
        offers.next();
    }
    raced
}
