//! Packets that name a session that is watched: what the program hands out of them.

use crate::datagram::{DEVICES, Datagram, Session};
use crate::gateway::{EXT, Gateway, INT};
use push_common::verdict::Verdict;
use push_common::watch::{CAPTURES_PER_INTERVAL, SNAP_BYTES};
use push_ctl::dataplane::{Captured, Captures};
use std::time::{Duration, SystemTime};

/// Waits for at least one packet.
fn next(runtime: &tokio::runtime::Runtime, captures: &mut Captures) -> Vec<Captured> {
    let limit = Duration::from_secs(20);
    let next = async { tokio::time::timeout(limit, captures.next()).await };
    runtime.block_on(next).unwrap().unwrap()
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

#[test]
fn packets_that_name_the_session_are_copied_with_their_verdicts_and_no_others() {
    Gateway::run(|mut gateway| {
        let runtime = runtime();
        let mut watched = Session::new(1, DEVICES[0]).installed(&mut gateway);
        let mut other = Session::new(2, DEVICES[1]).installed(&mut gateway);
        // Before anybody looks.
        let early = watched.datagram(b"early");
        gateway.send(EXT, &early.frame());

        let id = watched.image.id;
        let hour = Duration::from_secs(3600);
        let mut captures = runtime
            .block_on(async { gateway.dataplane.capture(id, hour) })
            .unwrap();
        let second = runtime.block_on(async { gateway.dataplane.capture(id, hour) });
        let second = second.err().unwrap().to_string();
        assert!(
            second.contains("another session is being traced"),
            "{second}"
        );

        let begin = SystemTime::now();
        let mut expected = Vec::new();
        let long = watched.datagram(&[7; 1000]);
        let short = watched.datagram(b"x");
        let mut forged = watched.datagram(b"x").frame();
        *forged.last_mut().unwrap() ^= 1;
        let ours = [long.frame(), short.frame(), forged, short.frame()];
        let verdicts = [
            Verdict::Redirected,
            Verdict::Redirected,
            Verdict::BadTag,
            Verdict::Replayed,
        ];
        for (frame, verdict) in ours.iter().zip(verdicts) {
            gateway.send(EXT, &other.datagram(b"other").frame());
            let (seen, after) = gateway.send(EXT, frame);
            assert_eq!(seen, verdict);
            expected.push((verdict, after));
        }
        // A NIC that takes no triggers doesn't read what it names.
        assert_eq!(gateway.send(INT, &ours[1]).0, Verdict::NotTrigger);
        gateway.send(EXT, &[0; 60]);

        let mut seen = Vec::new();
        while seen.len() < expected.len() {
            seen.extend(next(&runtime, &mut captures));
        }
        assert_eq!(seen.len(), expected.len());
        for (captured, (verdict, after)) in seen.iter().zip(&expected) {
            assert_eq!(captured.verdict, *verdict);
            assert_eq!(captured.length as usize, after.len());
            assert_eq!(
                captured.frame,
                after[..after.len().min(SNAP_BYTES)],
                "{verdict:?}"
            );
            assert!(captured.at >= begin - Duration::from_millis(10));
            assert!(captured.at <= SystemTime::now());
        }
        assert!(
            seen.iter()
                .all(|captured| captured.nic.as_deref() == Some(EXT))
        );
        assert_eq!(captures.missed(), 0);

        // Who looks next gets nothing of what this one didn't take.
        gateway.send(EXT, &ours[1]);
        drop(captures);
        gateway.send(EXT, &ours[1]);
        let mut captures = runtime
            .block_on(async { gateway.dataplane.capture(other.image.id, hour) })
            .unwrap();
        gateway.send(EXT, &other.datagram(b"other").frame());
        let seen = next(&runtime, &mut captures);
        assert_eq!(seen.len(), 1);
        assert_eq!(seen[0].verdict, Verdict::Redirected);
    });
}

#[test]
fn there_are_never_too_many_copies_and_what_is_missing_is_counted() {
    const SENT: u64 = 20_000;
    Gateway::run(|mut gateway| {
        let runtime = runtime();
        let session = Session::new(1, DEVICES[0]).installed(&mut gateway);
        let id = session.image.id;
        let mut captures = runtime
            .block_on(async { gateway.dataplane.capture(id, Duration::from_secs(3600)) })
            .unwrap();
        let frame = Datagram::to_gateway(false, session.trigger_at(1, b"")).frame();
        let begin = std::time::Instant::now();
        let prober = gateway.dataplane.prober(EXT).unwrap();
        let mut out = Vec::new();
        for _ in 0..SENT {
            prober.run(&frame, &mut out).unwrap();
        }
        let intervals = begin.elapsed().as_millis() as u64 / 10 + 2;
        let mut seen = 0;
        while seen + captures.missed() < SENT {
            seen += next(&runtime, &mut captures).len() as u64;
        }
        assert_eq!(seen + captures.missed(), SENT);
        // On as many CPUs as the thread may have been on.
        let cpus = std::thread::available_parallelism().unwrap().get() as u64;
        assert!(
            seen <= intervals * CAPTURES_PER_INTERVAL * cpus,
            "{seen} in {intervals}"
        );
        println!("{SENT} packets, {seen} copied, {} not", captures.missed());

        // When its time is over, nothing is copied, and nothing is counted.
        drop(captures);
        let captures = runtime
            .block_on(async { gateway.dataplane.capture(id, Duration::ZERO) })
            .unwrap();
        prober.run(&frame, &mut out).unwrap();
        assert_eq!(captures.missed(), 0);
    });
}
