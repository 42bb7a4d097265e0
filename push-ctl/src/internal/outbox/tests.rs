use super::*;
use crate::sessions::records::{EndCause, Path, RegistrationId};
use push_common::wire::SessionId;

const MAX: Duration = Duration::from_secs(93);

fn device(host: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, host], 7000))
}

fn notice(to: SocketAddr, kind: NoticeKind) -> Notice {
    let path = Path {
        realm: None,
        device: to.ip(),
        gateway: "10.0.0.1:5683".parse().unwrap(),
    };
    Notice { to, path, kind }
}

fn refresh(to: SocketAddr, registration: u64) -> Notice {
    let registration = RegistrationId::from_u64(registration);
    notice(to, NoticeKind::Refresh { registration })
}

fn session(digits: &str) -> SessionId {
    digits.parse().unwrap()
}

/// An outbox, and what it has sent so far.
struct Bench {
    outbox: Outbox,
    start: Instant,
    composed: Vec<Composed>,
}

impl Bench {
    fn new() -> Self {
        Self {
            outbox: Outbox::new(Backoff::RFC_7252),
            start: Instant::now(),
            composed: Vec::new(),
        }
    }

    fn step(&mut self, now: Instant) -> Option<Step> {
        let composed = &mut self.composed;
        self.outbox.step(now, |_| {
            let message_id = u16::try_from(composed.len()).unwrap();
            let request = Composed {
                message_id,
                token: [message_id.to_be_bytes()[1]; 8],
                datagram: vec![0xD0, message_id.to_be_bytes()[1]],
            };
            composed.push(request.clone());
            request
        })
    }

    /// Sends at once all that can be, and gives the destinations.
    fn sent(&mut self) -> Vec<SocketAddr> {
        std::iter::from_fn(|| self.step(self.start))
            .map(|step| match step {
                Step::Send {
                    to, again: false, ..
                } => to,
                other @ (Step::Send { .. } | Step::GiveUp(_)) => panic!("{other:?}"),
            })
            .collect()
    }

    fn response(&self, n: usize, delivery: Delivery, is_success: bool) -> Answer {
        Answer::Response {
            delivery,
            message_id: self.composed[n].message_id,
            token: self.composed[n].token.to_vec(),
            is_success,
        }
    }
}

#[test]
fn what_is_not_answered_is_sent_five_times_at_doubling_distances_and_given_up_in_93_seconds() {
    for jitter in [[0; 8], [0x80; 8], [0xFF; 8]] {
        let mut outbox = Outbox::new(Backoff::RFC_7252);
        outbox.put(refresh(device(2), 1));
        let start = Instant::now();
        let (mut now, mut at) = (start, Vec::new());
        loop {
            let compose = |_: &NoticeKind| Composed {
                message_id: 7,
                token: jitter,
                datagram: vec![7],
            };
            match outbox.step(now, compose) {
                Some(Step::Send {
                    to,
                    datagram,
                    again,
                }) => {
                    assert_eq!((to, datagram), (device(2), vec![7]));
                    assert_eq!(again, !at.is_empty());
                    at.push(now - start);
                }
                Some(Step::GiveUp(given_up)) => {
                    assert_eq!(given_up, refresh(device(2), 1));
                    break;
                }
                None => now = outbox.next_due().unwrap(),
            }
        }
        assert_eq!(at.len(), 5);
        let first = at[1];
        assert!(
            (Duration::from_secs(2)..=Duration::from_secs(3)).contains(&first),
            "{first:?}"
        );
        for (n, pair) in at.windows(2).enumerate() {
            assert_eq!(pair[1] - pair[0], first * (1 << n));
        }
        assert_eq!(now - start, first * 31);
        assert!(now - start <= MAX);
        assert!(outbox.next_due().is_none() && outbox.in_flight.is_empty());
    }
}

#[test]
fn an_answer_ends_it_and_only_the_device_s_own() {
    let each = |bench: &Bench| {
        let message_id = bench.composed[0].message_id;
        let mut answers = vec![
            (Answer::Acknowledgement(message_id), true),
            (Answer::Reset(message_id), false),
        ];
        for delivery in [
            Delivery::Piggybacked,
            Delivery::Confirmable,
            Delivery::NonConfirmable,
        ] {
            for is_success in [true, false] {
                answers.push((bench.response(0, delivery, is_success), is_success));
            }
        }
        answers
    };
    for n in 0..8 {
        let mut bench = Bench::new();
        bench.outbox.put(refresh(device(2), 1));
        assert_eq!(bench.sent(), [device(2)]);
        let (answer, taken) = each(&bench).remove(n);
        let other_port = SocketAddr::new(device(2).ip(), 7001);
        for elsewhere in [device(3), other_port] {
            assert_eq!(bench.outbox.hear(elsewhere, &answer), Heard::Nothing);
        }
        for other in [
            Answer::Acknowledgement(99),
            Answer::Reset(99),
            Answer::Response {
                delivery: Delivery::Confirmable,
                message_id: 0,
                token: vec![9; 8],
                is_success: true,
            },
            Answer::Response {
                delivery: Delivery::Piggybacked,
                message_id: 99,
                token: bench.composed[0].token.to_vec(),
                is_success: true,
            },
        ] {
            assert_eq!(
                bench.outbox.hear(device(2), &other),
                Heard::Nothing,
                "{other:?}"
            );
        }
        let notice = refresh(device(2), 1);
        let expected = if taken {
            Heard::Taken(notice)
        } else {
            Heard::Refused(notice)
        };
        assert_eq!(
            bench.outbox.hear(device(2), &answer),
            expected,
            "{answer:?}"
        );
        assert!(bench.outbox.next_due().is_none());
        assert!(bench.step(bench.start + MAX).is_none());
        // The response that comes after the acknowledgement, or once more, is known.
        let again = bench.response(0, Delivery::Confirmable, true);
        assert_eq!(bench.outbox.hear(device(2), &again), Heard::Again);
    }
}

#[test]
fn a_destination_gets_one_request_at_a_time_and_others_do_not_wait_for_it() {
    let mut bench = Bench::new();
    for registration in [1, 2] {
        bench.outbox.put(refresh(device(2), registration));
        bench.outbox.put(refresh(device(3), registration));
    }
    assert_eq!(bench.sent(), [device(2), device(3)]);
    let answer = Answer::Acknowledgement(0);
    assert_eq!(
        bench.outbox.hear(device(2), &answer),
        Heard::Taken(refresh(device(2), 1))
    );
    assert_eq!(bench.sent(), [device(2)]);
    let ids = bench.composed.iter().map(|request| request.message_id);
    assert_eq!(ids.collect::<Vec<_>>(), [0, 1, 2]);
    // The first one of device 3 is given up; then the next one has its turn.
    let mut now = bench.start;
    let mut sent_to_3 = Vec::new();
    while sent_to_3.len() < 6 {
        match bench.step(now) {
            Some(Step::Send { to, datagram, .. }) if to == device(3) => sent_to_3.push(datagram[1]),
            Some(Step::Send { .. } | Step::GiveUp(_)) => {}
            None => now = bench.outbox.next_due().unwrap(),
        }
    }
    assert_eq!(sent_to_3, [1, 1, 1, 1, 3, 3], "{sent_to_3:?}");
}

#[test]
fn what_waits_is_replaced_by_what_makes_it_pointless() {
    let (one, two) = (session("0000000100000001"), session("0000000100000002"));
    let rotate = |session, within_s: Option<u64>| NoticeKind::Rotate {
        session,
        within: within_s.map(Duration::from_secs),
    };
    let teardown = |session, cause| NoticeKind::Teardown { session, cause };
    let configuration = |registration, lifetime_s| NoticeKind::Configuration {
        registration: RegistrationId::from_u64(registration),
        lifetime: Duration::from_secs(lifetime_s),
    };
    let renew = |session| NoticeKind::Renew { session };
    let revoked = teardown(one, EndCause::Revoked);
    let cases: [(&[NoticeKind], NoticeKind, Put); 6] = [
        (&[rotate(one, None)], rotate(one, Some(9)), Put::Replaced(1)),
        (&[rotate(one, None)], rotate(two, None), Put::Queued),
        (&[rotate(one, None)], renew(one), Put::Queued),
        (
            &[rotate(one, None), renew(one), renew(two)],
            revoked,
            Put::Replaced(2),
        ),
        (
            &[configuration(1, 60), configuration(2, 60)],
            configuration(1, 90),
            Put::Replaced(1),
        ),
        (&[revoked], rotate(one, None), Put::Queued),
    ];
    for (before, newer, expected) in cases {
        let mut outbox = Outbox::new(Backoff::RFC_7252);
        for kind in before {
            assert_eq!(outbox.put(notice(device(2), *kind)), Put::Queued);
        }
        assert_eq!(outbox.put(notice(device(2), newer)), expected, "{newer:?}");
        let waits = &outbox.waiting[&device(2)];
        assert_eq!(outbox.waiting_len, waits.len());
        assert_eq!(waits.back().unwrap().kind, newer);
        assert_eq!(outbox.ready, [device(2)]);
    }
}

#[test]
fn there_is_an_end_to_what_is_remembered() {
    let mut outbox = Outbox::new(Backoff::RFC_7252);
    let to = |n: usize| SocketAddr::from(([10, 0, 0, 2], u16::try_from(n + 1).unwrap()));
    let per_destination = u64::try_from(WAITING_PER_DESTINATION).unwrap();
    for registration in 0..per_destination {
        assert_eq!(outbox.put(refresh(to(0), registration)), Put::Queued);
    }
    assert_eq!(outbox.put(refresh(to(0), per_destination)), Put::Full);
    for n in 1..WAITING / WAITING_PER_DESTINATION {
        for registration in 0..per_destination {
            assert_eq!(outbox.put(refresh(to(n), registration)), Put::Queued);
        }
    }
    assert_eq!(outbox.put(refresh(to(60_000), 1)), Put::Full);
    assert!(!outbox.waiting.contains_key(&to(60_000)));
    // What replaces another takes no more room.
    assert_eq!(outbox.put(refresh(to(1), 0)), Put::Replaced(1));
    assert_eq!(outbox.waiting_len, WAITING);
}

#[test]
fn only_so_many_requests_are_under_way() {
    let mut outbox = Outbox::new(Backoff::RFC_7252);
    let start = Instant::now();
    for port in 1..=u16::try_from(IN_FLIGHT + 1).unwrap() {
        outbox.put(refresh(SocketAddr::from(([10, 0, 0, 2], port)), 1));
    }
    let compose = |_: &NoticeKind| Composed {
        message_id: 7,
        token: [7; 8],
        datagram: vec![7],
    };
    let sent = std::iter::from_fn(|| outbox.step(start, compose)).count();
    assert_eq!(sent, IN_FLIGHT);
    assert_eq!(outbox.waiting_len, 1);
    let first = SocketAddr::from(([10, 0, 0, 2], 1));
    assert!(matches!(
        outbox.hear(first, &Answer::Reset(7)),
        Heard::Refused(_)
    ));
    assert!(outbox.step(start, compose).is_some());
}
