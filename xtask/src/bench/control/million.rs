//! What operators ask of a controller that has a million sessions: how long they wait, and how long the controller
//! is busy with it before it looks again who else does.

use super::{Figure, Row, Suite};
use crate::bench::Quartiles;
use crate::child;
use crate::export::Export;
use crate::lab::{Config, DEVICE, Lab, Options, Party};
use anyhow::{Context, Result, ensure};
use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

/// Terminals, each with one session.
const SESSIONS: u32 = 1_000_000;

/// One session in so many is of another application.
const OTHER_EACH: u32 = 10;

/// The prefix of their addresses.
const PREFIX: &str = "10.128.0.0/12";
const FIRST_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 128, 0, 0);

/// How long an operator waits at most.
const ANSWER_LIMIT_MS: f64 = 200.0;

/// How long the controller is busy at a time, at most.
const TURN_LIMIT_MS: f64 = 10.0;

/// Each question is asked so often, and its median counts.
const ROUNDS: usize = 5;

/// So many sessions are revoked, one after the other.
const REVOKED: u32 = 100;

/// So many times, the controller has to start with a kernel that has no session.
const RESTORES: usize = 3;

/// How long anything may take that is waited for.
const PATIENCE: Duration = Duration::from_secs(180);

const QUESTIONS: [(&str, &[&str]); 22] = [
    ("status", &["status"]),
    ("realm list", &["realm", "list"]),
    ("session list", &["session", "list"]),
    (
        "one application",
        &["session", "list", "--app", "other", "--limit", "100"],
    ),
    (
        "most of them",
        &["session", "list", "--app", "mail", "--limit", "100"],
    ),
    (
        "not validated",
        &["session", "list", "--state", "requested"],
    ),
    ("and those over", &["session", "list", "--all"]),
    (
        "in the middle",
        &["session", "list", "--offset", "500000", "--limit", "100"],
    ),
    (
        "one address",
        &["session", "list", "--address", "10.130.7.77"],
    ),
    (
        "a wide prefix",
        &["session", "list", "--address", "10.130.0.0/15"],
    ),
    (
        "one terminal",
        &["session", "list", "--terminal", "device 777777"],
    ),
    (
        "one prefix",
        &["session", "list", "--address", "10.130.7.0/24"],
    ),
    (
        "by instance",
        &["session", "list", "--sort", "app", "--limit", "100"],
    ),
    (
        "by instance, middle",
        &[
            "session", "list", "--sort", "app", "--offset", "500000", "--limit", "100",
        ],
    ),
    (
        "by expiry, last page",
        &["session", "list", "--sort", "expires", "--offset", "999900"],
    ),
    (
        "by deliveries",
        &["session", "list", "--sort", "delivered", "--limit", "20"],
    ),
    ("terminal list", &["terminal", "list", "--limit", "100"]),
    (
        "terminals, middle",
        &["terminal", "list", "--offset", "500000", "--limit", "100"],
    ),
    (
        "terminals by expiry",
        &["terminal", "list", "--sort", "expires", "--reverse"],
    ),
    (
        "terminals by place",
        &[
            "terminal", "list", "--sort", "address", "--offset", "999900",
        ],
    ),
    ("app list", &["app", "list"]),
    (
        "terminals of a name",
        &[
            "terminal",
            "list",
            "--endpoint",
            "4711",
            "--sort",
            "address",
        ],
    ),
];

/// Takes up the sessions, restores them, asks, removes an application; prints and gives the figures. `loaded_per_s`
/// is what the kernel takes in batches.
pub(super) fn run(push_ctl: &Path, loaded_per_s: f64) -> Result<Vec<Row>> {
    let lab = allow_sessions("push-bench-1m", push_ctl, SESSIONS)?;
    println!("bench: control: {SESSIONS} sessions; what takes too long is not met");
    let mut rows = Rows::default();

    let file = lab.folder().join("sessions.jsonl");
    let name = file.to_str().context("the lab's folder is text")?;
    let before = turns(&lab)?;
    let taken = taken_up(&lab, &file, SESSIONS)?;
    let rate = f64::from(SESSIONS) / taken.as_secs_f64();
    rows.add("import", "rate", rate, "1/s", None);
    rows.busy("import", &before, &turns(&lab)?);
    let per_session = memory_bytes(&lab)? / f64::from(SESSIONS);
    rows.add("memory", "per session", per_session, "bytes", None);
    restored(&lab, loaded_per_s, &mut rows)?;

    let before = turns(&lab)?;
    for (name, arguments) in QUESTIONS {
        let mut times = Vec::new();
        for _ in 0..ROUNDS {
            times.push(timed(&lab, arguments)?);
        }
        times.sort_unstable();
        let median = times.get(ROUNDS / 2).context("there was a round")?;
        let limit = Some(ANSWER_LIMIT_MS);
        rows.add(name, "answered after", milliseconds(*median), "ms", limit);
    }
    rows.busy("questions", &before, &turns(&lab)?);
    revocations(&lab, &mut rows)?;

    let before = turns(&lab)?;
    fs::remove_file(&file)?;
    let taken = timed(&lab, &["session", "export", name])?;
    let rate = f64::from(SESSIONS) / taken.as_secs_f64();
    rows.add("export", "rate", rate, "1/s", None);
    rows.busy("export", &before, &turns(&lab)?);

    let before = turns(&lab)?;
    let begun = Instant::now();
    let answered = timed(&lab, &["app", "remove", "mail"])?;
    rows.add(
        "app remove",
        "answered after",
        milliseconds(answered),
        "ms",
        Some(ANSWER_LIMIT_MS),
    );
    let left = SESSIONS / OTHER_EACH - REVOKED;
    while lab.push_ctl_json(&["status"])?["sessions"]["authorised"] != left {
        ensure!(
            begun.elapsed() < PATIENCE,
            "the sessions of an application don't end"
        );
        thread::sleep(Duration::from_millis(200));
    }
    let rate = f64::from(SESSIONS - left) / begun.elapsed().as_secs_f64();
    rows.add("app remove", "sessions ended", rate, "1/s", None);
    rows.busy("app remove", &before, &turns(&lab)?);
    lab.down()?;
    Ok(rows.0)
}

/// A lab that has room for so many sessions, of two applications.
pub(super) fn allow_sessions(prefix: &str, push_ctl: &Path, sessions: u32) -> Result<Lab> {
    let lab = Lab::up(&Options {
        config: Config {
            slots: sessions.next_power_of_two(),
            ..Config::default()
        },
        ..Options::new(prefix, push_ctl)
    })?;
    let [device, _] = DEVICE;
    let route = ["route", "add", PREFIX, "via", device];
    child::output(lab.exec_in(Party::Gateway, "ip").args(route))?;
    for app in ["mail", "other"] {
        child::output(&mut lab.push_ctl(&["app", "add", app]))?;
    }
    Ok(lab)
}

/// Has so many terminals, each with one session, taken up by way of a file. Says how long that took.
pub(super) fn taken_up(lab: &Lab, file: &Path, sessions: u32) -> Result<Duration> {
    Export {
        sessions,
        first_slot: 0,
        first_address: FIRST_ADDRESS,
        first_peer: None,
        app: &|n| {
            if n % OTHER_EACH == 0 { "other" } else { "mail" }
        },
    }
    .write(file)?;
    let name = file.to_str().context("the lab's folder is text")?;
    let taken = timed(lab, &["session", "import", name])?;
    let counts = &lab.push_ctl_json(&["status"])?["sessions"];
    ensure!(
        counts["authorised"] == sessions,
        "not all sessions are there: {counts}"
    );
    Ok(taken)
}

/// What the controller has of memory that nobody else has: not the session table, which is the kernel's.
fn memory_bytes(lab: &Lab) -> Result<f64> {
    let pid = lab.pid().context("the controller runs")?;
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = line.context("no RssAnon")?.trim().trim_end_matches(" kB");
    Ok(kib.parse::<f64>()? * 1024.0)
}

/// How fast sessions are forwarded again when the kernel has lost them all, as it has when the machine was started
/// anew: from the start of the controller until it says that it is ready. What takes how long of it is from its log.
fn restored(lab: &Lab, loaded_per_s: f64, rows: &mut Rows) -> Result<()> {
    let mut times_s = Vec::new();
    let mut parts_s = [const { Vec::new() }; PARTS.len()];
    for _ in 0..RESTORES {
        let (all_s, of_parts_s) = restore(lab)?;
        times_s.push(all_s);
        for (of_part, time_s) in parts_s.iter_mut().zip(of_parts_s) {
            of_part.push(time_s);
        }
    }
    let quartiles = |figure: &dyn Fn(f64) -> f64, times_s: &[f64]| {
        let figures: Vec<_> = times_s.iter().map(|&time_s| figure(time_s)).collect();
        Quartiles::of(&figures).map(Figure::Measured)
    };
    let per_s = |time_s| f64::from(SESSIONS) / time_s;
    // Of a part: if it were all there is to it.
    let share = |time_s| per_s(time_s) / loaded_per_s;
    let mut restored = vec![
        Row::new(
            Suite::Control,
            "from the store",
            "sessions loaded",
            quartiles(&per_s, &times_s),
            "1/s",
        )
        .compared("in batches", quartiles(&share, &times_s)),
    ];
    for ((part, _), times_s) in PARTS.into_iter().zip(&parts_s) {
        let took = quartiles(&|time_s| time_s * 1e3, times_s);
        let row = Row::new(Suite::Control, part, "took", took, "ms");
        restored.push(row.compared("in batches", quartiles(&share, times_s)));
    }
    Row::print(&restored);
    rows.0.extend(restored);
    Ok(())
}

/// What a start consists of, and what the controller says when it is done with that.
const PARTS: [(&str, &str); 3] = [
    ("reading the store", "the store is read and in order"),
    ("taking up its records", "its records are in memory"),
    ("writing the table", super::restart::IN_LINE),
];

/// Starts the controller again, of whose sessions the kernel has none: how many seconds all of it takes, and its parts.
fn restore(lab: &Lab) -> Result<(f64, [f64; PARTS.len()])> {
    lab.kill()?;
    fs::remove_dir_all(lab.folder().join("bpf/push"))?;
    let begun = Instant::now();
    lab.start()?;
    let all_s = begun.elapsed().as_secs_f64();
    let line = super::restart::last_of(lab, super::restart::IN_LINE)?;
    ensure!(line.contains("kept=0"), "the kernel has kept some: {line}");
    let mut parts_s = [0.0; PARTS.len()];
    for (time_s, (_, message)) in parts_s.iter_mut().zip(PARTS) {
        let line = super::restart::last_of(lab, message)?;
        let ms = line
            .split_once("took_ms=")
            .map(|(_, rest)| rest.split(' ').next().unwrap_or(rest))
            .with_context(|| format!("it doesn't say how long it took: {line}"))?;
        *time_s = ms.parse::<f64>()? / 1e3;
    }
    Ok((all_s, parts_s))
}

/// How long it takes from when an operator revokes a session until no trigger is delivered for it.
fn revocations(lab: &Lab, rows: &mut Rows) -> Result<()> {
    let count = REVOKED.to_string();
    let some = lab.push_ctl_json(&["session", "list", "--app", "other", "--limit", &count])?;
    let mut times_us = Vec::new();
    for session in some.as_array().into_iter().flatten() {
        let id = session["id"].as_str().context("a session has an id")?;
        let revoked = lab.push_ctl_json(&["session", "revoke", id])?;
        let after_us = revoked["effective_after_us"].as_u64();
        times_us.push(after_us.context("it says how long it took")?);
    }
    times_us.sort_unstable();
    ensure!(times_us.len() == REVOKED as usize, "not all were revoked");
    for (metric, at) in [("half took longer", REVOKED / 2), ("longest", REVOKED - 1)] {
        let time_us = times_us.get(at as usize).context("there are so many")?;
        rows.add("revoke", metric, *time_us as f64 / 1e3, "ms", None);
    }
    Ok(())
}

#[derive(Default)]
pub(super) struct Rows(pub(super) Vec<Row>);

impl Rows {
    pub(super) fn add(
        &mut self,
        name: &str,
        metric: &str,
        figure: f64,
        unit: &str,
        limit: Option<f64>,
    ) {
        let verdict = match limit {
            Some(limit) if figure <= limit => format!("(at most {limit}: met)"),
            Some(limit) => format!("(at most {limit}: NOT MET)"),
            None => String::new(),
        };
        println!("    {name:20} {metric:20} {figure:>10.1} {unit} {verdict}");
        let figure = Some(Figure::Once(figure));
        self.0
            .push(Row::new(Suite::Control, name, metric, figure, unit));
    }

    /// The longest time, as exactly as it is known, that the controller was busy between two looks.
    fn busy(&mut self, name: &str, before: &[(f64, u64)], after: &[(f64, u64)]) {
        let mut counted = 0;
        let mut longest_s = 0.0;
        let mut over = 0;
        for (&(bound_s, before), &(_, after)) in before.iter().zip(after) {
            // Each has those of all before it in it.
            let moved = after - before;
            if moved > counted {
                longest_s = bound_s;
                if bound_s * 1e3 > TURN_LIMIT_MS {
                    over += moved - counted;
                }
                counted = moved;
            }
        }
        let limit = Some(TURN_LIMIT_MS);
        self.add(name, "busy at a time below", longest_s * 1e3, "ms", limit);
        self.add(name, "times busy", counted as f64, "", None);
        self.add(name, "times too long", over as f64, "", None);
    }
}

fn timed(lab: &Lab, arguments: &[&str]) -> Result<Duration> {
    let begun = Instant::now();
    child::output(lab.push_ctl(arguments).arg("--json"))?;
    Ok(begun.elapsed())
}

pub(super) fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// How often the controller was busy for up to so many seconds.
fn turns(lab: &Lab) -> Result<Vec<(f64, u64)>> {
    let url = "http://127.0.0.1:9617/metrics";
    let text = child::output(lab.exec_in(Party::Gateway, "curl").args(["-sS", url]))?;
    let buckets = text
        .lines()
        .filter_map(|line| line.strip_prefix("push_controller_turn_seconds_bucket{le=\""))
        .map(|bucket| {
            let (bound, count) = bucket.split_once("\"} ").context("no bucket")?;
            let bound = match bound {
                "+Inf" => f64::INFINITY,
                finite => finite.parse()?,
            };
            anyhow::Ok((bound, count.trim().parse()?))
        });
    let buckets: Vec<_> = buckets.collect::<Result<_>>()?;
    ensure!(
        !buckets.is_empty(),
        "the metrics don't tell how long the controller is busy"
    );
    Ok(buckets)
}
