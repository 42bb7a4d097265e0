//! What becomes of a trigger that isn't refused at once, through `BPF_PROG_TEST_RUN`: where it goes,
//! what it looks like then, what time, replays and changes to its session do to it.

use crate::datagram::{DEVICES, Datagram, ETHERNET, IPV4, ONE_ARMED, Session, changed};
use crate::gateway::{DEVICE_MAC, EXT, EXT_MAC, Gateway, INT, INT_MAC, ONE_ARMED_MAC, sh};
use etherparse::SlicedPacket;
use push_common::replay::{PERMITTED_LAG, SEQUENCE_BITS};
use push_common::tag::TagKey;
use push_common::verdict::Verdict;
use push_common::wire::{MAX_PAYLOAD_LEN, SessionId};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

#[test]
fn a_trigger_of_any_length_arrives_as_etherparse_would_have_built_it() {
    Gateway::run(|mut gateway| {
        let ways = [
            (DEVICES, Verdict::Redirected, (INT_MAC, DEVICE_MAC)),
            (ONE_ARMED, Verdict::SentBack, (EXT_MAC, ONE_ARMED_MAC)),
        ];
        let mut slot = 0;
        for (devices, expected, macs) in ways {
            for device in devices {
                slot += 1;
                let mut session = Session::new(slot, device).installed(&mut gateway);
                let lengths: Vec<usize> = (0..=40).chain([255, 256, 257, 1199, 1200]).collect();
                let mut bytes = 0;
                for &length in &lengths {
                    let payload: Vec<u8> = (0..length).map(|i| (i * 7 + length) as u8).collect();
                    let sent = session.datagram(&payload);
                    let (verdict, out) = gateway.send(EXT, &sent.frame());
                    assert_eq!(verdict, expected, "{length} bytes to {device}");
                    assert_eq!(
                        out,
                        session.delivered(&sent, macs).frame(),
                        "{length} bytes to {device}"
                    );
                    SlicedPacket::from_ethernet(&out).unwrap();
                    bytes += out.len() as u64;
                }
                let counters = gateway
                    .dataplane
                    .session_counters(session.image.id)
                    .unwrap();
                assert_eq!(
                    (counters.packets, counters.bytes),
                    (lengths.len() as u64, bytes)
                );
                assert!(counters.last_delivered_ago.unwrap() < Duration::from_secs(10));
            }
        }
    });
}

#[test]
fn a_datagram_without_checksum_stays_one() {
    Gateway::run(|mut gateway| {
        let mut session = Session::new(1, DEVICES[0]).installed(&mut gateway);
        let sent = session.datagram(b"x");
        let checksum_at = ETHERNET + IPV4 + 6;
        let (verdict, out) = gateway.send(EXT, &changed(&sent.frame(), checksum_at, &[0, 0]));
        assert_eq!(verdict, Verdict::Redirected);
        let expected = session.delivered(&sent, (INT_MAC, DEVICE_MAC)).frame();
        assert_eq!(out, changed(&expected, checksum_at, &[0, 0]));
    });
}

#[test]
fn a_damaged_datagram_still_looks_damaged_afterwards() {
    Gateway::run(|mut gateway| {
        let mut session = Session::new(1, DEVICES[0]).installed(&mut gateway);
        let checksum = ETHERNET + IPV4 + 6..ETHERNET + IPV4 + 8;
        for damaged_at in checksum.clone() {
            let sent = session.datagram(b"x");
            let frame = sent.frame();
            let damaged = changed(&frame, damaged_at, &[frame[damaged_at] ^ 0x10]);
            let (verdict, out) = gateway.send(EXT, &damaged);
            assert_eq!(verdict, Verdict::Redirected);
            let right = session.delivered(&sent, (INT_MAC, DEVICE_MAC)).frame();
            assert_ne!(out[checksum.clone()], right[checksum.clone()]);
            assert_eq!(
                changed(&out, checksum.start, &right[checksum.clone()]),
                right
            );
        }
    });
}

#[test]
fn bytes_after_the_datagram_are_not_looked_at() {
    Gateway::run(|mut gateway| {
        let mut session = Session::new(1, DEVICES[0]).installed(&mut gateway);
        let sent = session.datagram(b"");
        let padded = [sent.frame(), vec![0; 6]].concat();
        let (verdict, out) = gateway.send(EXT, &padded);
        assert_eq!(verdict, Verdict::Redirected);
        assert_eq!(
            out,
            [
                session.delivered(&sent, (INT_MAC, DEVICE_MAC)).frame(),
                vec![0; 6]
            ]
            .concat()
        );
    });
}

#[test]
fn each_sequence_is_let_through_once_and_old_ones_never() {
    Gateway::run(|mut gateway| {
        let session = Session::new(1, DEVICES[0]).installed(&mut gateway);
        let mut offer = |sequence| {
            gateway
                .send(
                    EXT,
                    &Datagram::to_gateway(false, session.trigger_at(sequence, b"")).frame(),
                )
                .0
        };
        let newest = (1 << SEQUENCE_BITS) - 1;
        assert_eq!(offer(0), Verdict::Redirected);
        assert_eq!(offer(0), Verdict::Replayed);
        assert_eq!(offer(newest), Verdict::Redirected);
        assert_eq!(offer(newest), Verdict::Replayed);
        assert_eq!(offer(newest - PERMITTED_LAG), Verdict::Redirected);
        assert_eq!(offer(newest - PERMITTED_LAG), Verdict::Replayed);
        assert_eq!(offer(newest - 128), Verdict::SequenceTooOld);
        assert_eq!(offer(0), Verdict::SequenceTooOld);
    });
}

#[test]
fn a_forged_trigger_does_not_use_up_its_sequence() {
    Gateway::run(|mut gateway| {
        let mut session = Session::new(1, DEVICES[0]).installed(&mut gateway);
        let good = session.datagram(b"x").frame();
        let forged = changed(&good, good.len() - 1, b"y");
        assert_eq!(gateway.send(EXT, &forged).0, Verdict::BadTag);
        assert_eq!(gateway.send(EXT, &good).0, Verdict::Redirected);
    });
}

#[test]
fn two_token_generations_are_valid_while_they_overlap() {
    Gateway::run(|mut gateway| {
        let mut old = Session::new(1, DEVICES[0]).installed(&mut gateway);
        for generation in [8, 9] {
            let mut new = old.clone();
            new.image.token_generation = generation;
            new.image.key = TagKey::from_bytes([generation; 16]).into();
            new.image.previous_key = Some(old.image.key.clone());
            let mut new = new.installed(&mut gateway);
            new.sequence += 10;
            assert_eq!(
                gateway.send(EXT, &old.datagram(b"").frame()).0,
                Verdict::Redirected
            );
            assert_eq!(
                gateway.send(EXT, &new.datagram(b"").frame()).0,
                Verdict::Redirected
            );
            new.image.previous_key = None;
            new = new.installed(&mut gateway);
            assert_eq!(
                gateway.send(EXT, &old.datagram(b"").frame()).0,
                Verdict::UnknownTokenGeneration
            );
            assert_eq!(
                gateway.send(EXT, &new.datagram(b"").frame()).0,
                Verdict::Redirected
            );
            old = new;
        }
    });
}

#[test]
fn a_session_ends_on_time_without_the_controller() {
    Gateway::run(|mut gateway| {
        let lifetime = Duration::from_millis(300);
        let mut session = Session::new(1, DEVICES[0]);
        session.image.expires_in = lifetime;
        let begin = Instant::now();
        let mut session = session.installed(&mut gateway);
        loop {
            let sent_at = begin.elapsed();
            match gateway.send(EXT, &session.datagram(b"").frame()).0 {
                Verdict::Redirected => assert!(
                    sent_at < lifetime + Duration::from_millis(500),
                    "still alive after {sent_at:?}"
                ),
                Verdict::Expired => {
                    assert!(
                        begin.elapsed() >= lifetime,
                        "ended after {:?}",
                        begin.elapsed()
                    );
                    break;
                }
                other => panic!("{other:?}"),
            }
        }
        session.image.expires_in = Duration::from_secs(60);
        let mut refreshed = session.installed(&mut gateway);
        assert_eq!(
            gateway.send(EXT, &refreshed.datagram(b"").frame()).0,
            Verdict::Redirected
        );
    });
}

#[test]
fn an_address_change_keeps_window_and_counters_and_removal_forgets_them() {
    Gateway::run(|mut gateway| {
        let mut session = Session::new(1, DEVICES[0]).installed(&mut gateway);
        let first = session.datagram(b"").frame();
        assert_eq!(gateway.send(EXT, &first).0, Verdict::Redirected);
        session.image.device = ONE_ARMED[0].parse().unwrap();
        let mut session = session.installed(&mut gateway);
        assert_eq!(gateway.send(EXT, &first).0, Verdict::Replayed);
        assert_eq!(
            gateway.send(EXT, &session.datagram(b"").frame()).0,
            Verdict::SentBack
        );
        assert_eq!(session.packets(&gateway), 2);

        gateway.dataplane.remove(session.image.id);
        assert_eq!(gateway.dataplane.installed(), []);
        assert_eq!(
            gateway.send(EXT, &session.datagram(b"").frame()).0,
            Verdict::UnknownSession
        );
        let mut next = session.clone();
        next.image.id = SessionId::new(1, 0x2000_0000);
        let next = next.installed(&mut gateway);
        assert_eq!(gateway.dataplane.installed(), [next.image.id]);
        assert_eq!(next.packets(&gateway), 0);
        gateway.dataplane.remove(session.image.id);
        assert_eq!(
            gateway.dataplane.installed(),
            [next.image.id],
            "an old identifier removed a new session"
        );
    });
}

#[test]
fn the_source_is_kept_if_configured() {
    Gateway::run(|gateway| {
        let mut gateway = gateway.restarted_with(|settings| settings.keep_source = true);
        for (slot, device) in (1..).zip(DEVICES) {
            let mut session = Session::new(slot, device).installed(&mut gateway);
            let sent = session.datagram(b"x");
            let (verdict, out) = gateway.send(EXT, &sent.frame());
            assert_eq!(verdict, Verdict::Redirected);
            let expected = Datagram {
                source: sent.source,
                ..session.delivered(&sent, (INT_MAC, DEVICE_MAC))
            };
            assert_eq!(out, expected.frame());
        }
    });
}

#[test]
fn triggers_are_taken_on_external_nics_only() {
    Gateway::run(|mut gateway| {
        for (slot, device) in (1..).zip(DEVICES) {
            let mut session = Session::new(slot, device).installed(&mut gateway);
            let frame = session.datagram(b"x").frame();
            assert_eq!(gateway.send(INT, &frame), (Verdict::NotTrigger, frame));
        }
    });
}

#[test]
fn the_kernels_routes_decide_where_a_trigger_goes() {
    Gateway::run(|mut gateway| {
        let long = [0; MAX_PAYLOAD_LEN];
        let rows: [(&str, &[u8], Verdict); 8] = [
            ("203.0.113.9:7000", b"", Verdict::NoRoute),
            ("[2001:db8:dead::9]:7000", b"", Verdict::NoRoute),
            ("10.66.0.9:7000", b"", Verdict::NoRoute),
            ("[fd00:66::9]:7000", b"", Verdict::NoRoute),
            ("10.65.0.9:7000", b"", Verdict::Redirected),
            ("[fd00:65::9]:7000", b"", Verdict::Redirected),
            ("10.65.0.9:7000", &long, Verdict::TooBig),
            ("[fd00:65::9]:7000", &long, Verdict::TooBig),
        ];
        for (slot, (device, payload, expected)) in (1..).zip(rows) {
            let mut session = Session::new(slot, device).installed(&mut gateway);
            let frame = session.datagram(payload).frame();
            let (verdict, out) = gateway.send(EXT, &frame);
            assert_eq!(verdict, expected, "{device}");
            if !verdict.is_delivery() {
                assert_eq!(out, frame, "{device}");
                assert_eq!(session.packets(&gateway), 0, "{device}");
            }
        }
    });
}

#[test]
fn what_the_kernel_needs_to_help_out_is_warned_of() {
    Gateway::run(|mut gateway| {
        assert_eq!(gateway.dataplane.warnings(), [] as [&str; 0]);
        sh(
            "sysctl -qw net.ipv4.conf.ext.forwarding=0 net.ipv6.conf.ext.forwarding=0 net.ipv4.conf.ext.accept_local=0",
        );
        for (slot, device) in (1..).zip(DEVICES) {
            let mut session = Session::new(slot, device).installed(&mut gateway);
            let frame = session.datagram(b"").frame();
            assert_eq!(gateway.send(EXT, &frame).0, Verdict::Redirected);
        }
        let warnings = gateway.dataplane.warnings();
        assert_eq!(warnings.len(), 3, "{warnings:?}");
        assert!(
            warnings[0].ends_with("sysctl -w net.ipv4.conf.ext.forwarding=1"),
            "{warnings:?}"
        );
    });
}

#[test]
fn the_kernel_gets_a_rewritten_trigger_while_the_next_hop_is_unknown() {
    Gateway::run(|mut gateway| {
        for (slot, device) in [(1, "10.64.0.99:7000"), (2, "[fd00:64::99]:7000")] {
            let mut session = Session::new(slot, device).installed(&mut gateway);
            let sent = session.datagram(b"x");
            let (verdict, out) = gateway.send(EXT, &sent.frame());
            assert_eq!(verdict, Verdict::NextHopUnresolved);
            // The kernel takes off the hop, and changes the MAC addresses.
            let expected = Datagram {
                hop_limit: sent.hop_limit,
                ..session.delivered(&sent, sent.macs)
            };
            assert_eq!(out, expected.frame());
            assert_eq!(session.packets(&gateway), 1);
        }
    });
}

#[test]
fn a_next_hop_that_is_not_there_is_a_bug_and_says_so() {
    Gateway::run(|mut gateway| {
        let mut session = Session::new(1, DEVICES[0]).installed(&mut gateway);
        let next_hop_at = 11; // The high byte.
        for next_hop in [0x3F, 0xFF] {
            poke_record(&gateway, 1, next_hop_at, next_hop);
            assert_eq!(
                gateway.send(EXT, &session.datagram(b"").frame()).0,
                Verdict::MissingConfiguration
            );
        }
    });
}

/// Every verdict has a row, but for those that take a race or a driver of another kind to get.
#[test]
fn every_verdict_is_expected_by_a_row() {
    let rows = concat!(
        include_str!("verdicts.rs"),
        include_str!("refusals.rs"),
        include_str!("framing.rs"),
        include_str!("policies.rs")
    );
    let named = |verdict: &Verdict| rows.contains(&format!("Verdict::{verdict:?}"));
    let missing: BTreeSet<_> = Verdict::ALL
        .iter()
        .filter(|verdict| !named(verdict))
        .map(|verdict| verdict.label())
        .collect();
    let races_and_drivers = ["contended", "session_changing", "not_linear", "no_headroom"];
    assert_eq!(missing, BTreeSet::from(races_and_drivers));
}

#[test]
fn received_is_the_sum_of_all_verdicts() {
    Gateway::run(|mut gateway| {
        let mut session = Session::new(1, DEVICES[0]).installed(&mut gateway);
        let good = session.datagram(b"x").frame();
        let mut sent = 0;
        for frame in [
            good.clone(),
            good.clone(),
            good[..50].to_vec(),
            changed(&good, 12, &[0x08, 0x06]),
        ] {
            for nic in [EXT, INT] {
                gateway.send(nic, &frame);
                sent += 1;
            }
        }
        assert_eq!(gateway.received(), sent);
    });
}

/// Changes a byte of a session's record behind the controller's back, with a tool that isn't ours.
fn poke_record(gateway: &Gateway, slot: u32, offset: usize, value: u8) {
    let map = gateway.settings.pin_dir.join("push_sessions");
    let map = map.display();
    let key = slot.to_le_bytes().map(|byte| byte.to_string()).join(" ");
    let dump = sh(&format!("bpftool -j map lookup pinned {map} key {key}"));
    let dump: serde_json::Value = serde_json::from_str(&dump).unwrap();
    let mut record: Vec<String> = dump["value"]
        .as_array()
        .unwrap()
        .iter()
        .map(|byte| byte.as_str().unwrap().to_owned())
        .collect();
    record[offset] = value.to_string();
    sh(&format!(
        "bpftool map update pinned {map} key {key} value {}",
        record.join(" ")
    ));
}
