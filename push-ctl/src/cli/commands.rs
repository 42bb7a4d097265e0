//! The commands that ask the daemon: where, and how people are told the answer.

pub(super) mod apps;
pub(super) mod devices;
pub(super) mod doctor;
pub(super) mod emulate;
pub(super) mod gateway;
pub(super) mod health;
pub(super) mod man;
pub(super) mod monitor;
pub(super) mod stats;
pub(super) mod store;
pub(super) mod sysdump;
pub(super) mod top;

fn none() -> String {
    "-".to_owned()
}
