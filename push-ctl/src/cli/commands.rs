//! The commands that ask the daemon: where, and how people are told the answer.

pub(super) mod apps;
pub(super) mod devices;
pub(super) mod doctor;
pub(super) mod emulate;
pub(super) mod gateway;
pub(super) mod guide;
pub(super) mod health;
pub(super) mod man;
pub(super) mod monitor;
pub(super) mod nics;
pub(super) mod reload;
pub(super) mod servers;
pub(super) mod stats;
pub(super) mod store;
pub(super) mod sysdump;
pub(super) mod top;
pub(super) mod trace;
pub(super) mod transfer;
pub(super) mod upgrade;

use std::fmt::Write;

fn none() -> String {
    "-".to_owned()
}

/// A name as a segment of a path. One with other characters than a name can have is of no application.
fn segment(name: &str) -> String {
    name.bytes().fold(String::new(), |mut path, byte| {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_') {
            path.push(char::from(byte));
        } else {
            let _infallible = write!(path, "%{byte:02X}");
        }
        path
    })
}
