//! The gateway as a whole.

use super::{nics, none};
use crate::admin::api::{NicStats, RealmStatus, RoundTripClass, Stats, Status};
use crate::cli::client::Question;
use crate::cli::people::{Table, amount, lifetime, microseconds, plural};
use std::fmt::{Display, Write};

pub(super) fn status_for_people(status: &Status) -> String {
    let Status {
        sessions, store, ..
    } = status;
    let mut facts = Table::facts();
    facts.fact(
        "daemon",
        format!(
            "push-ctl {}, pid {}, up {}",
            status.version,
            status.pid,
            lifetime(status.uptime_s)
        ),
    );
    facts.fact("XDP program", format!("SHA-256 {}", status.object_sha256));
    facts.fact("configuration", status.config.display());
    facts.fact(
        "store",
        format!(
            "{}: {}, {}, {}",
            store.path.display(),
            plural(store.terminals, "terminal"),
            plural(store.sessions, "session"),
            plural(store.apps, "application"),
        ),
    );
    facts.fact(
        "sessions",
        format!(
            "{} authorised, {} requested, {} slots",
            sessions.authorised, sessions.requested, sessions.slots
        ),
    );
    facts.fact("devices", list(&status.internal));
    for realm in &status.realms {
        let name = format!("devices of {}", realm.name);
        facts.fact(&name, realm_place(realm));
    }
    facts.fact("applications", list(&status.external));
    let mut table = Table::new(&[
        "NIC",
        "INDEX",
        "ROLE",
        "MODE",
        "PROGRAM",
        "LINK",
        "CONFIGURED",
        "SINCE",
    ]);
    for nic in &status.nics {
        table.row([
            nic.name.clone(),
            nic.index.to_string(),
            nics::role(nic).to_owned(),
            nic.mode.clone(),
            nic.program_id.to_string(),
            nic.link_id.to_string(),
            nics::yes_or_no(nic.configured).to_owned(),
            if nic.adopted {
                "before the daemon"
            } else {
                "the daemon attached it"
            }
            .to_owned(),
        ]);
    }
    let mut text = format!("{facts}\n{table}");
    for warning in &status.warnings {
        let _infallible = writeln!(text, "\nwarning: {warning}");
    }
    text
}

pub(in crate::cli) fn realm_list() -> Question<Vec<RealmStatus>> {
    Question::get("/v1/realms", |realms: &Vec<RealmStatus>| {
        let mut table = Table::new(&[
            "REALM",
            "INTERFACE",
            "ROUTERS",
            "LISTENS",
            "TERMINALS",
            "SESSIONS",
        ]);
        for realm in realms {
            table.row([
                realm.name.clone(),
                realm
                    .interface
                    .clone()
                    .unwrap_or_else(|| "not configured".to_owned()),
                list(&realm.next_hop),
                list(&realm.listen),
                realm.terminals.to_string(),
                realm.sessions.to_string(),
            ]);
        }
        table.or_say("No realms; the configuration has them as [[realm]].")
    })
}

pub(in crate::cli) fn stats(all: bool) -> Question<Stats> {
    Question::get("/v1/stats", move |stats: &Stats| {
        let nic = |nic: &NicStats| {
            let mut table = Table::new(&["VERDICT", "ACTION", "PACKETS", "BYTES", "MEANING"]);
            for verdict in nic
                .verdicts
                .iter()
                .filter(|verdict| all || verdict.packets > 0)
            {
                table.row([
                    verdict.verdict.clone(),
                    verdict.action.clone(),
                    amount(verdict.packets),
                    amount(verdict.bytes),
                    verdict.meaning.clone(),
                ]);
            }
            let sum = format!(
                "{}: {}, {}",
                nic.name,
                plural(nic.packets, "packet"),
                plural(nic.bytes, "byte")
            );
            let times = round_trips(&nic.round_trips);
            format!("{sum}\n{}{times}", table.or_say("No packets."))
        };
        let mut text = stats.nics.iter().map(nic).collect::<Vec<_>>().join("\n");
        if all || stats.events_lost > 0 {
            let lost = plural(stats.events_lost, "event");
            let _infallible = writeln!(text, "\n{lost} lost: too many to be told of.");
        }
        text
    })
}

/// Where the devices of a realm register.
fn realm_place(realm: &RealmStatus) -> String {
    match &realm.interface {
        Some(interface) => format!("{} by {interface}", list(&realm.listen)),
        None => "the realm is no longer in the configuration".to_owned(),
    }
}

/// How long most acknowledgements took, or nothing if there are none.
fn round_trips(classes: &[RoundTripClass]) -> String {
    let count = classes.iter().map(|class| class.acknowledgements).sum();
    let Some((median, slow)) = percentile(classes, 50).zip(percentile(classes, 99)) else {
        return String::new();
    };
    let class = |class: &RoundTripClass| {
        let (from, below) = (microseconds(class.from_us), microseconds(class.below_us));
        format!("{from} to {below}")
    };
    format!(
        "Round trips of {}: p50 {}, p99 {}.\n",
        plural::<u64>(count, "acknowledgement"),
        class(median),
        class(slow)
    )
}

/// The class that the acknowledgement is in which is slower than `percent` of all; `None` if there are none.
fn percentile(classes: &[RoundTripClass], percent: u64) -> Option<&RoundTripClass> {
    let count: u64 = classes.iter().map(|class| class.acknowledgements).sum();
    let rank = u128::from(count) * u128::from(percent);
    let mut below = 0_u128;
    classes.iter().find(|class| {
        below += u128::from(class.acknowledgements) * 100;
        class.acknowledgements > 0 && below >= rank
    })
}

fn list(all: &[impl Display]) -> String {
    if all.is_empty() {
        return none();
    }
    let texts: Vec<_> = all.iter().map(ToString::to_string).collect();
    texts.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn classes(counts: [u64; 4]) -> Vec<RoundTripClass> {
        let class = |(n, acknowledgements): (u32, u64)| RoundTripClass {
            from_us: 1 << n,
            below_us: 1 << (n + 1),
            acknowledgements,
        };
        (10..).zip(counts).map(class).collect()
    }

    #[test]
    fn percentiles_are_the_classes_that_the_slower_ones_begin_with() {
        let cases = [
            ([0, 0, 0, 0], None, None),
            ([0, 1, 0, 0], Some(11), Some(11)),
            ([99, 0, 0, 1], Some(10), Some(10)),
            ([98, 0, 0, 2], Some(10), Some(13)),
            ([50, 50, 0, 0], Some(10), Some(11)),
            ([49, 51, 0, 0], Some(11), Some(11)),
        ];
        for (counts, median, slow) in cases {
            let classes = classes(counts);
            let of =
                |percent| percentile(&classes, percent).map(|class| class.from_us.trailing_zeros());
            assert_eq!((of(50), of(99)), (median, slow), "{counts:?}");
        }
    }

    #[test]
    fn round_trips_are_told_of_if_there_are_any() {
        assert_eq!(round_trips(&classes([0; 4])), "");
        assert_eq!(
            round_trips(&classes([9, 0, 0, 1])),
            "Round trips of 10 acknowledgements: p50 1.0 ms to 2.0 ms, p99 8.2 ms to 16.4 ms.\n"
        );
    }
}
