//! All races, for as long as one likes: `cargo xtask soak` runs them one by one, and says in the environment
//! for how many seconds, if it isn't for the full count. `xtask/src/soak.rs` has their names.

use super::replay::Order;
use super::{
    Course, End, crashes, delivery, flood, outages, rate, replay, restart, slots, updates,
};
use std::env;
use std::time::Duration;

/// A course of as many as this, unless a time is told.
fn course(name: &'static str, unit: &'static str, count: u64) -> Course {
    Course::long(name, unit, end(count, 1))
}

/// The end of one of so many courses that a race has.
fn end(count: u64, courses: u32) -> End {
    match env::var("PUSH_SOAK_SECONDS") {
        Ok(seconds) => End::Time(Duration::from_secs_f64(seconds.parse().unwrap()) / courses),
        Err(env::VarError::NotPresent) => End::Count(count),
        Err(error) => panic!("PUSH_SOAK_SECONDS: {error}"),
    }
}

#[test]
#[ignore = "long: cargo xtask soak"]
fn replay() {
    replay::run(Order::InStep, course("replay", "offers", 100_000_000));
}

#[test]
#[ignore = "long: cargo xtask soak"]
fn reordered() {
    replay::run(Order::Shuffled, course("reordered", "offers", 100_000_000));
}

#[test]
#[ignore = "long: cargo xtask soak"]
fn restart() {
    restart::run(course("restart", "restarts", 200));
}

#[test]
#[ignore = "long: cargo xtask soak"]
fn daemon() {
    delivery::kills("push-soak-kill", course("daemon", "kills", 20));
}

#[test]
#[ignore = "long: cargo xtask soak"]
fn slots() {
    slots::run(course("slots", "owners of a slot", 1_000_000));
}

#[test]
#[ignore = "long: cargo xtask soak"]
fn bursts() {
    rate::bursts(course("bursts", "sessions", 1_000_000));
}

#[test]
#[ignore = "long: cargo xtask soak"]
fn rate() {
    rate::over_time(course("rate", "rounds", 60));
}

#[test]
#[ignore = "long: cargo xtask soak"]
fn keys() {
    rate::windows(course("keys", "sessions", 500_000));
}

#[test]
#[ignore = "long: cargo xtask soak"]
fn windows() {
    rate::windows_over_time(course("windows", "rounds", 60));
}

#[test]
#[ignore = "long: cargo xtask soak"]
fn moves() {
    let end = end(100_000, updates::PAIRS.len() as u32);
    for pair in updates::PAIRS {
        updates::moves(pair, Course::long("moves", "moves", end));
    }
}

#[test]
#[ignore = "long: cargo xtask soak"]
fn rotations() {
    updates::rotations(course("rotations", "rotations", 100_000));
}

#[test]
#[ignore = "long: cargo xtask soak"]
fn routes() {
    updates::routes(course("routes", "changes of routes", 10_000));
}

#[test]
#[ignore = "long: cargo xtask soak"]
fn delivery() {
    delivery::moves("push-soak-move", course("delivery", "triggers", 1_000_000));
}

#[test]
#[ignore = "long: cargo xtask soak"]
fn flood() {
    flood::flood("push-soak-flood", course("flood", "triggers", 100_000_000));
}

#[test]
#[ignore = "long: cargo xtask soak"]
fn upgrades() {
    outages::upgrades(
        "push-soak-upgrade",
        course("upgrades", "upgrades", 1_000),
        50_000,
    );
}

#[test]
#[ignore = "long: cargo xtask soak"]
fn crashes() {
    crashes::run("push-soak-crash", course("crashes", "crashes", 100));
}

#[test]
#[ignore = "long: cargo xtask soak"]
fn links() {
    outages::links(
        "push-soak-link",
        course("links", "times down and up", 1_000),
    );
}

#[test]
#[ignore = "long: cargo xtask soak"]
fn replugs() {
    outages::replugs("push-soak-replug", course("replugs", "NICs removed", 50));
}
