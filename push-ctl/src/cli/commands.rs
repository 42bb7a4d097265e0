//! The commands that ask the daemon: where, and how people are told the answer.

pub(super) mod apps;
pub(super) mod devices;
pub(super) mod emulate;
pub(super) mod gateway;

fn none() -> String {
    "-".to_owned()
}
