//! Values that no push-ctl has written.

use super::*;
use crate::sessions::{Limits, Sessions};

const LIMITS: Limits = Limits {
    slots: 1 << 10,
    default_lifetime: Duration::from_secs(3600),
    max_lifetime: Duration::from_secs(86_400),
    sessions_per_terminal: 16,
    triggers_per_second_per_terminal: None,
    rotation_overlap: Duration::from_secs(30),
};

/// Each record of `data` is a byte that says of which table, a key of 4 bytes, 2 with the length of the value, and the
/// value. What is read is written as it was read, and what was read together is taken up, or contradicts itself.
pub(crate) fn judge_values(data: &[u8]) {
    let mut image = Image::default();
    let mut rest = data;
    while let [kind, a, b, c, d, high, low, tail @ ..] = rest {
        let key = u32::from_be_bytes([*a, *b, *c, *d]);
        let len = usize::from(u16::from_be_bytes([*high, *low])).min(tail.len());
        let (value, after) = tail.split_at(len);
        rest = after;
        match kind % 3 {
            0 => image
                .terminals
                .extend(rows::read_terminal(key.into(), value)),
            1 => image.sessions.extend(rows::read_session(key, value, None)),
            _ => {
                let slot = NonZeroU16::new(u16::from_be_bytes([*c, *d]));
                image
                    .apps
                    .extend(rows::read_app(&format!("app{key}"), value, slot));
            }
        }
    }
    for terminal in &image.terminals {
        let again = rows::read_terminal(terminal.id.to_u64(), &rows::terminal(terminal));
        assert_eq!(&again.unwrap(), terminal);
    }
    for session in &image.sessions {
        let again = rows::read_session(session.id.slot(), &rows::session(session, None), None);
        assert_eq!(&again.unwrap(), session);
    }
    for app in &image.apps {
        let again = rows::read_app(app.name.as_str(), &rows::app(app), None);
        assert_eq!(&again.unwrap(), app);
    }
    if let Ok(mut sessions) = Sessions::restore(LIMITS, image) {
        sessions.expire(UnixTime::from_millis(u64::MAX), usize::MAX);
    }
}

/// What the target `store` of `cargo xtask fuzz` starts from.
#[test]
#[ignore = "writes into tests/fuzz/store: only after a change of the format"]
fn write_seeds() {
    let image = everything();
    let record = |kind: u8, key: u32, value: &[u8]| {
        let len = u16::try_from(value.len()).unwrap().to_be_bytes();
        [&[kind][..], &key.to_be_bytes(), &len, value].concat()
    };
    let directory = crate::fuzz::corpus("store");
    for (n, terminal) in image.terminals.iter().enumerate() {
        let value = rows::terminal(terminal);
        fs::write(
            directory.join(format!("terminal_{n}")),
            record(0, 1, &value),
        )
        .unwrap();
    }
    for session in &image.sessions {
        let slot = session.id.slot();
        fs::write(
            directory.join(format!("session_{slot}")),
            record(1, slot, &rows::session(session, None)),
        )
        .unwrap();
    }
    for (n, app) in image.apps.iter().enumerate() {
        fs::write(
            directory.join(format!("app_{n}")),
            record(2, 1, &rows::app(app)),
        )
        .unwrap();
    }
}
