//! What the program logs, and that the configured level decides on it. Only a push-ctl with the feature
//! `log` has a program that logs.

use crate::datagram::{DEVICES, Datagram, Session};
use crate::gateway::{EXT, Gateway, nics};
use crate::story::{PUSH_CTL, server, verdicts, wait_until};
use aya_log::EbpfLogger;
use log::{Log, Metadata, Record};
use push_common::tag::TagKey;
use push_common::verdict::Verdict;
use std::path::Path;
use std::sync::Mutex;
use tracing::Level;
use xtask::lab::{Config, Lab, Options};

/// Keeps what is logged: levels and messages.
#[derive(Default)]
struct Kept(Mutex<Vec<(log::Level, String)>>);

impl Log for &Kept {
    fn enabled(&self, _metadata: &Metadata) -> bool {
        true
    }

    fn log(&self, record: &Record) {
        let message = (record.level(), record.args().to_string());
        self.0.lock().unwrap().push(message);
    }

    fn flush(&self) {}
}

fn dropped(verdict: Verdict) -> String {
    format!("dropped: verdict {}", verdict as u32)
}

#[test]
fn a_dropped_trigger_is_logged_from_level_info_on_and_nothing_else_ever_is() {
    const LOGGED: [Verdict; 3] = [
        Verdict::BadTag,
        Verdict::UnknownSession,
        Verdict::TriggerTruncated,
    ];
    Gateway::run(|mut gateway| {
        let mut session = Session::new(1, DEVICES[0]).installed(&mut gateway);
        let mut forger = session.clone();
        forger.image.key = TagKey::from_bytes([0xEE; 16]).into();
        let mut guesser = Session::new(2, DEVICES[0]);
        for (level, is_logged) in [
            (Level::ERROR, false),
            (Level::WARN, false),
            (Level::INFO, true),
            (Level::DEBUG, true),
            (Level::TRACE, true),
        ] {
            gateway = gateway.restarted_with(|settings| settings.log_level = level);
            let kept = Kept::default();
            let program_id = nics(&gateway.dataplane)[0].program_id;
            let mut log = EbpfLogger::init_from_id_with_logger(program_id, &kept).unwrap();
            for (frame, verdict) in [
                (session.datagram(b"good").frame(), Verdict::Redirected),
                (forger.datagram(b"forged").frame(), Verdict::BadTag),
                (guesser.datagram(b"guess").frame(), Verdict::UnknownSession),
                (
                    Datagram::to_gateway(false, b"short".to_vec()).frame(),
                    Verdict::TriggerTruncated,
                ),
                (vec![0; 60], Verdict::NotIp),
            ] {
                assert_eq!(gateway.send(EXT, &frame).0, verdict);
            }
            // The program has run, so what it logs is all there.
            log.flush();
            let all = LOGGED.map(|verdict| (log::Level::Info, dropped(verdict)));
            let expected = if is_logged { &all[..] } else { &[] };
            assert_eq!(*kept.0.lock().unwrap(), expected, "at level {level}");
        }
    });
}

#[test]
fn the_controller_prints_what_the_level_in_its_configuration_lets_through() {
    let config = |level: &str| Config {
        log_level: Some(level.to_owned()),
        ..Config::default()
    };
    let lab = Lab::up(&Options {
        config: config("error"),
        ..Options::new("push-log", Path::new(PUSH_CTL))
    })
    .unwrap();
    let server = server(&lab, 0);
    let mut guesser = Session::new(1, DEVICES[0]);
    let mut drop_one = |due: u64| {
        server.send(&guesser.trigger(b"guess")).unwrap();
        wait_until("the trigger is dropped", || {
            verdicts(&lab, "gw-app")["unknown_session"] == due
        });
    };
    let message = dropped(Verdict::UnknownSession);
    let printed = || lab.log().matches(&message).count();
    drop_one(1);
    lab.stop().unwrap();
    lab.write_config(&config("debug")).unwrap();
    lab.start().unwrap();
    drop_one(2);
    wait_until("the second one is printed", || printed() > 0);
    assert_eq!(printed(), 1, "{}", lab.log());
}
