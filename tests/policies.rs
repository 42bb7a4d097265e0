//! What applications may do, and what devices answer, through `BPF_PROG_TEST_RUN`: policies,
//! coalescing, acknowledgements, events.

use crate::datagram::{DEVICES, Datagram, ETHERNET, IPV4, IPV6, Session, changed};
use crate::gateway::{DEVICE_MAC, EXT, EXT_MAC, Gateway, INT, INT_MAC, SLOTS, wait_until};
use push_common::maps::{EVENTS_BYTES, Event, EventKind};
use push_common::tag::TagKey;
use push_common::verdict::Verdict;
use push_common::wire::{Flags, SessionId, TriggerHeader};
use push_ctl::dataplane::{Policy, Rate, Told};
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use zerocopy::IntoBytes;

/// A slot with this policy, and a session that it is for.
fn restricted(gateway: &mut Gateway, slot: u32, device: &str, policy: &Policy) -> Session {
    gateway.dataplane.set_policy(slot as u16, policy).unwrap();
    let mut session = Session::new(slot, device);
    session.image.policy = slot as u16;
    session.installed(gateway)
}

fn refused(gateway: &Gateway, session: &Session) -> (u64, u32) {
    let counters = gateway
        .dataplane
        .session_counters(session.image.id)
        .unwrap();
    (counters.packets, counters.refused)
}

#[test]
fn payloads_are_as_long_as_the_application_may_have_them() {
    Gateway::run(|mut gateway| {
        for (slot, (device, limit)) in (1..).zip([(DEVICES[0], 100), (DEVICES[1], 0)]) {
            let policy = Policy {
                max_payload: Some(limit),
                ..Policy::default()
            };
            let mut session = restricted(&mut gateway, slot, device, &policy);
            let frame = session.datagram(&vec![0; usize::from(limit) + 1]).frame();
            assert_eq!(gateway.send(EXT, &frame), (Verdict::PayloadRefused, frame));
            assert_eq!(refused(&gateway, &session), (0, 1));
            let frame = session.datagram(&vec![0; limit.into()]).frame();
            assert_eq!(gateway.send(EXT, &frame).0, Verdict::Redirected);
            assert_eq!(refused(&gateway, &session), (1, 1));
        }
    });
}

#[test]
fn triggers_come_from_where_the_application_may_send_them() {
    Gateway::run(|mut gateway| {
        let policy = |sources: &[&str]| Policy {
            sources: sources.iter().map(|net| net.parse().unwrap()).collect(),
            ..Policy::default()
        };
        let here = ["198.51.100.0/28", "2001:db8:51::/64"];
        let rows: [(&[&str], [bool; 2]); 8] = [
            (&here, [true, true]),
            (&here[..1], [true, false]),
            (&here[1..], [false, true]),
            (&["198.51.100.10/32", "2001:db8:51::10/128"], [true, true]),
            (&["198.51.100.11/32", "2001:db8:51::11/128"], [false, false]),
            (&["0.0.0.0/0"], [true, false]),
            (&["::/0"], [false, true]),
            (&["0.0.0.0/0", "::/0"], [true, true]),
        ];
        let mut sequence = 1000;
        // The prefixes of another application are its own business.
        gateway.dataplane.set_policy(9, &policy(&["::/0"])).unwrap();
        for (sources, expected) in rows {
            for (slot, (device, is_allowed)) in (1..).zip(DEVICES.into_iter().zip(expected)) {
                sequence += 1;
                let mut session = Session {
                    sequence,
                    ..restricted(&mut gateway, slot, device, &policy(sources))
                };
                let frame = session.datagram(b"").frame();
                let verdict = if is_allowed {
                    Verdict::Redirected
                } else {
                    Verdict::SourceRefused
                };
                assert_eq!(gateway.send(EXT, &frame).0, verdict, "{sources:?} {device}");
            }
        }
        // No restriction any more, and then no application any more.
        let mut session = restricted(&mut gateway, 1, DEVICES[0], &Policy::default());
        session.sequence = 5000;
        let frame = session.datagram(b"").frame();
        assert_eq!(gateway.send(EXT, &frame).0, Verdict::Redirected);
        gateway.dataplane.remove_policy(1);
        let frame = session.datagram(b"x").frame();
        assert_eq!(gateway.send(EXT, &frame).0, Verdict::PayloadRefused);
    });
}

#[test]
fn triggers_get_the_code_point_of_the_application_and_keep_their_congestion_bits() {
    Gateway::run(|mut gateway| {
        let policy = Policy {
            dscp: Some(46),
            ..Policy::default()
        };
        for (slot, device) in (1..).zip(DEVICES) {
            let mut session = restricted(&mut gateway, slot, device, &policy);
            let frame = session.datagram(b"x").frame();
            let (marked, expected) = if session.is_v6() {
                (changed(&frame, ETHERNET, &[0x60, 0x30]), vec![0x6B, 0xB0])
            } else {
                (
                    crate::datagram::changed_ip(&frame, ETHERNET + 1, &[0x03]),
                    vec![0x45, 0xBB],
                )
            };
            let (verdict, out) = gateway.send(EXT, &marked);
            assert_eq!(verdict, Verdict::Redirected);
            assert_eq!(out[ETHERNET..ETHERNET + 2], expected, "{device}");
        }
    });
}

#[test]
fn a_burst_is_let_through_and_then_the_rate() {
    Gateway::run(|mut gateway| {
        let rate = |interval, burst| Policy {
            rate: Some(Rate { interval, burst }),
            ..Policy::default()
        };
        let slow = rate(Duration::from_secs(3600), 3);
        let mut session = restricted(&mut gateway, 1, DEVICES[0], &slow);
        let mut offer = |session: &mut Session| gateway.send(EXT, &session.datagram(b"").frame()).0;
        let verdicts: Vec<_> = (0..5).map(|_| offer(&mut session)).collect();
        let (yes, no) = (Verdict::Redirected, Verdict::RateExceeded);
        assert_eq!(verdicts, [yes, yes, yes, no, no]);
        assert_eq!(refused(&gateway, &session), (3, 2));

        let begin = Instant::now();
        let interval = Duration::from_millis(100);
        let mut session = restricted(&mut gateway, 2, DEVICES[0], &rate(interval, 1));
        let mut delivered = 0;
        while delivered < 5 {
            match gateway.send(EXT, &session.datagram(b"").frame()).0 {
                Verdict::Redirected => delivered += 1,
                Verdict::RateExceeded => {}
                other => panic!("{other:?}"),
            }
            assert!(
                begin.elapsed() < Duration::from_secs(20),
                "{delivered} delivered"
            );
        }
        // The clock of the path is as coarse as a tick of the kernel.
        assert!(begin.elapsed() + Duration::from_millis(10) >= interval * 4);
    });
}

#[test]
fn a_sleeping_device_is_woken_once_for_each_collapse_key() {
    Gateway::run(|mut gateway| {
        let policy = Policy {
            coalescing_window: Some(Duration::from_millis(400)),
            ..Policy::default()
        };
        let mut session = restricted(&mut gateway, 1, DEVICES[0], &policy);
        let mut offer = |key: u8| {
            session.sequence += 1;
            let flags = Flags::NONE.with_collapse_key(key);
            let trigger = session.flagged_trigger_at(session.sequence, flags, b"");
            gateway
                .send(EXT, &Datagram::to_gateway(false, trigger).frame())
                .0
        };
        let (yes, no) = (Verdict::Redirected, Verdict::Coalesced);
        let begin = Instant::now();
        let verdicts = [1, 1, 2, 15, 2, 0, 0, 1].map(&mut offer);
        assert_eq!(verdicts, [yes, no, yes, yes, no, yes, yes, no]);
        // Absorbed until the window closes, and not much longer.
        while offer(1) == no {
            assert!(begin.elapsed() < Duration::from_secs(20));
        }
        assert!(begin.elapsed() >= Duration::from_millis(330));
        assert_eq!(offer(1), no, "another window");

        // Without a policy that says so, nothing is absorbed.
        let mut open = Session::new(2, DEVICES[0]).installed(&mut gateway);
        for _ in 0..3 {
            open.sequence += 1;
            let flags = Flags::NONE.with_collapse_key(1);
            let trigger = open.flagged_trigger_at(open.sequence, flags, b"");
            let frame = Datagram::to_gateway(false, trigger).frame();
            assert_eq!(gateway.send(EXT, &frame).0, yes);
        }
    });
}

/// The acknowledgement of what a device got, as a frame.
fn acknowledgement(session: &Session, trigger: &[u8]) -> Datagram {
    let (header, _) = TriggerHeader::parse(trigger).unwrap();
    Datagram {
        macs: (DEVICE_MAC, INT_MAC),
        source: session.image.device,
        destination: session.image.source,
        hop_limit: 3,
        payload: header
            .acknowledgement(*session.image.key)
            .as_bytes()
            .to_vec(),
    }
}

#[test]
fn an_acknowledgement_is_counted_once_and_goes_back_to_the_server() {
    Gateway::run(|mut gateway| {
        let mut slot = 0;
        for return_acks in [false, true] {
            for device in DEVICES {
                for from_v6 in [false, true] {
                    slot += 1;
                    let policy = Policy {
                        return_acks,
                        ..Policy::default()
                    };
                    let mut session = restricted(&mut gateway, slot, device, &policy);
                    session.sequence += 1;
                    let trigger = session.flagged_trigger_at(
                        session.sequence,
                        Flags::ACK_REQUESTED,
                        b"hello",
                    );
                    let sent = Datagram::to_gateway(from_v6, trigger.clone());
                    assert_eq!(gateway.send(EXT, &sent.frame()).0, Verdict::Redirected);

                    let ack = acknowledgement(&session, &trigger);
                    let before = gateway.round_trips();
                    let (verdict, out) = gateway.send(INT, &ack.frame());
                    if return_acks {
                        assert_eq!(verdict, Verdict::AckReturned);
                        let back = Datagram {
                            macs: (EXT_MAC, sent.macs.0),
                            source: sent.destination,
                            destination: sent.source,
                            hop_limit: 64,
                            payload: ack.payload.clone(),
                        };
                        assert_eq!(out, back.frame(), "{device}");
                        // No more goes out to the server than it has sent.
                        assert!(out.len() <= sent.frame().len());
                    } else {
                        assert_eq!((verdict, out), (Verdict::AckCounted, ack.frame()));
                    }
                    assert_eq!(gateway.round_trips(), before + 1);
                    let counters = gateway
                        .dataplane
                        .session_counters(session.image.id)
                        .unwrap();
                    assert_eq!((counters.packets, counters.acknowledged), (1, 1));
                    let round_trip = counters.round_trip.unwrap();
                    assert!(round_trip < Duration::from_secs(20), "{round_trip:?}");
                    assert_eq!(gateway.send(INT, &ack.frame()).0, Verdict::AckUnexpected);
                }
            }
        }
    });
}

#[test]
fn an_acknowledgement_goes_back_through_the_vlan_that_its_trigger_came_by() {
    Gateway::run(|mut gateway| {
        let policy = Policy {
            return_acks: true,
            ..Policy::default()
        };
        let mut session = restricted(&mut gateway, 1, DEVICES[0], &policy);
        session.sequence += 1;
        let trigger = session.flagged_trigger_at(session.sequence, Flags::ACK_REQUESTED, b"");
        let tags = [0x88, 0xA8, 0, 7, 0x81, 0, 0, 100];
        let mut frame = Datagram::to_gateway(false, trigger.clone()).frame();
        frame.splice(12..12, tags);
        assert_eq!(gateway.send(EXT, &frame).0, Verdict::Redirected);
        let ack = acknowledgement(&session, &trigger).frame();
        let (verdict, out) = gateway.send(INT, &ack);
        assert_eq!(verdict, Verdict::AckReturned);
        assert_eq!((&out[..6], &out[6..12]), (&frame[6..12], &frame[..6]));
        assert_eq!(out[12..20], tags);
    });
}

#[test]
fn what_is_no_acknowledgement_of_a_session_passes_untouched() {
    Gateway::run(|mut gateway| {
        for (slot, device) in (1..).zip(DEVICES) {
            let mut session = Session::new(slot, device).installed(&mut gateway);
            let trigger = session.trigger(b"");
            let ack = acknowledgement(&session, &trigger);
            let elsewhere = |destination: &str| Datagram {
                destination: destination.parse::<SocketAddr>().unwrap(),
                ..ack.clone()
            };
            let (other_address, other_port) = if session.is_v6() {
                ("[fd00:64::3]:5683", "[fd00:64::1]:5684")
            } else {
                ("10.64.0.3:5683", "10.64.0.1:5684")
            };
            let ip_len = if session.is_v6() { IPV6 } else { IPV4 };
            let good = ack.frame();
            let header_at = ETHERNET + ip_len + 8;
            let with = |at: usize, bytes: &[u8]| changed(&good, at, bytes);
            let mut longer = ack.clone();
            longer.payload.push(0);
            let rows = [
                ("to another address", elsewhere(other_address).frame()),
                ("to another port", elsewhere(other_port).frame()),
                ("another magic", with(header_at, &[0x40])),
                ("another version", with(header_at + 3, &[2])),
                ("a trigger", with(header_at + 4, &[0])),
                ("more flags", with(header_at + 4, &[3])),
                ("with a payload", longer.frame()),
                ("a payload it doesn't have", with(header_at + 6, &[0, 1])),
                ("of no session", with(header_at + 8, &[9])),
                ("cut", good[..good.len() - 1].to_vec()),
            ];
            for (name, frame) in rows {
                let answer = gateway.send(INT, &frame);
                assert_eq!(answer, (Verdict::NotTrigger, frame), "{device}: {name}");
            }
            let on_the_wrong_side = gateway.send(EXT, &good);
            assert_eq!(on_the_wrong_side, (Verdict::NotTrigger, good.clone()));

            let rows = [
                ("not asked for", good.clone(), Verdict::AckUnexpected),
                (
                    "forged",
                    with(header_at + 24, &[good[header_at + 24] ^ 1]),
                    Verdict::BadTag,
                ),
                (
                    "of another token",
                    with(header_at + 5, &[1]),
                    Verdict::UnknownTokenGeneration,
                ),
            ];
            for (name, frame, expected) in rows {
                let answer = gateway.send(INT, &frame);
                assert_eq!(answer, (expected, frame), "{device}: {name}");
            }
            let counters = gateway
                .dataplane
                .session_counters(session.image.id)
                .unwrap();
            assert_eq!((counters.acknowledged, counters.round_trip), (0, None));
        }
    });
}

#[test]
fn what_is_worth_telling_is_told_and_never_too_often() {
    Gateway::run(|gateway| {
        let mut gateway = gateway.restarted_with(|settings| {
            settings.idle_after = Some(Duration::from_millis(200));
        });
        let mut session = Session::new(1, DEVICES[1]).installed(&mut gateway);
        let good = session.datagram(b"x").frame();
        assert_eq!(gateway.send(EXT, &good).0, Verdict::Redirected);
        assert_eq!(gateway.dataplane.events(), [], "of a good trigger");
        assert_eq!(gateway.send(EXT, &good).0, Verdict::Replayed);
        // It takes many within 10 ms, which a busy machine may not get to the first time.
        wait_until("a storm of replays is told of", || {
            for _ in 0..200 {
                gateway.dataplane.test_run(EXT, &good).unwrap();
            }
            let told = gateway.dataplane.events();
            told.iter().any(|told| told.kind == EventKind::ReplayStorm)
        });
        let mut forger = session.clone();
        forger.image.key = TagKey::from_bytes([0xEE; 16]).into();
        let begin = Instant::now();
        let forged = 300;
        for _ in 0..forged {
            let frame = forger.datagram(b"x").frame();
            assert_eq!(gateway.send(EXT, &frame).0, Verdict::BadTag);
        }
        let took = begin.elapsed();
        let mut guesser = session.clone();
        guesser.image.id = SessionId::new(SLOTS + 5, 5);
        let frame = guesser.datagram(b"x").frame();
        assert_eq!(gateway.send(EXT, &frame).0, Verdict::UnknownSession);
        let mut unresolved = Session::new(2, "10.64.0.99:7000").installed(&mut gateway);
        let frame = unresolved.datagram(b"x").frame();
        assert_eq!(gateway.send(EXT, &frame).0, Verdict::NextHopUnresolved);

        let told = gateway.dataplane.events();
        let of = |kind| {
            told.iter()
                .filter(move |told| told.kind == kind)
                .collect::<Vec<&Told>>()
        };
        let server = SocketAddr::new(
            "2001:db8:51::10".parse().unwrap(),
            crate::datagram::SERVER_PORT,
        );
        for (kind, id) in [
            (EventKind::Forged, session.image.id),
            (EventKind::UnknownSession, guesser.image.id),
        ] {
            assert_eq!((of(kind)[0].session, of(kind)[0].source), (id, server));
        }
        assert_eq!(of(EventKind::NextHopUnresolved).len(), 1);
        let forgeries = of(EventKind::Forged);
        let told_of: u64 = forgeries.iter().map(|told| told.count).sum();
        assert!(told_of <= forged);
        // One for each stretch of 10 ms on each CPU, whatever there is to tell of.
        let most = (took.as_millis() as usize / 10 + 2) * 2;
        assert!(
            forgeries.len() <= most,
            "{} events in {took:?}",
            forgeries.len()
        );

        let begin = Instant::now();
        let first_after_idle = loop {
            let quiet_since = Instant::now();
            while quiet_since.elapsed() < Duration::from_millis(300) {
                std::hint::spin_loop();
            }
            let frame = session.datagram(b"x").frame();
            assert_eq!(gateway.send(EXT, &frame).0, Verdict::Redirected);
            let told = gateway.dataplane.events();
            if let [told] = &told[..] {
                break told.clone();
            }
            assert!(begin.elapsed() < Duration::from_secs(20), "{told:?}");
        };
        assert_eq!(first_after_idle.kind, EventKind::FirstAfterIdle);
        assert_eq!(first_after_idle.session, session.image.id);
        assert_eq!(gateway.dataplane.events_lost(), 0);
    });
}

#[test]
fn what_nobody_reads_is_counted_as_lost() {
    Gateway::run(|mut gateway| {
        let mut forger = Session::new(1, DEVICES[0]).installed(&mut gateway);
        forger.image.key = TagKey::from_bytes([0xEE; 16]).into();
        let mut guesser = forger.clone();
        guesser.image.id = SessionId::new(SLOTS + 5, 5);
        let mut unresolved = Session::new(2, "10.64.0.99:7000").installed(&mut gateway);
        let begin = Instant::now();
        while gateway.dataplane.events_lost() == 0 {
            for session in [&mut forger, &mut guesser, &mut unresolved] {
                let frame = session.datagram(b"").frame();
                gateway.dataplane.test_run(EXT, &frame).unwrap();
            }
            assert!(
                begin.elapsed() < Duration::from_secs(120),
                "the ring never fills"
            );
            std::thread::sleep(Duration::from_millis(2));
        }
        let told = gateway.dataplane.events();
        let room = EVENTS_BYTES as usize / (size_of::<Event>() + 8);
        assert!((room - 1..=room).contains(&told.len()), "{}", told.len());
        // What is told next stands for what was lost, too.
        let frame = forger.datagram(b"").frame();
        let next = loop {
            gateway.dataplane.test_run(EXT, &frame).unwrap();
            if let Some(told) = gateway.dataplane.events().pop() {
                break told;
            }
            assert!(
                begin.elapsed() < Duration::from_secs(140),
                "nothing is told any more"
            );
        };
        assert_eq!(next.kind, EventKind::Forged);
    });
}
