//! Good triggers among nine times as many bad ones, at whatever rate the machine can make: each good one
//! arrives once, and the daemon hardly notices.
//!
//! Only what the program has seen can be judged, so the race counts it: all that was sent has a verdict. A
//! queue in front of the sender's NIC holds it back while the gateway's is full (Linux 6.16 and later); on a
//! kernel before that the NIC drops what is too much, and the race fails for that.

use super::delivery::load;
use super::{Course, LIMIT};
use crate::story::{DEVICE_PORT, Story, device, server, verdicts, wait_until};
use push_common::maps::{EVENT_INTERVAL_NS, EventKind};
use serde_json::Value;
use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};
use xtask::lab::Lab;
use xtask::traffic::Turn::{Forged, Good, Replayed, Unknown};
use xtask::traffic::{Load, Received, Sink, Turn};

static NEVER: AtomicBool = AtomicBool::new(false);

/// Of 10 triggers, which are bad, and how.
const MIXES: [(&str, [Turn; 10]); 4] = [
    ("of unknown sessions", mix([Unknown; 9])),
    ("forged", mix([Forged; 9])),
    ("replayed", mix([Replayed; 9])),
    (
        "of all kinds",
        mix([
            Replayed, Replayed, Replayed, Forged, Unknown, Forged, Unknown, Forged, Unknown,
        ]),
    ),
];

const fn mix(bad: [Turn; 9]) -> [Turn; 10] {
    let [a, b, c, d, e, f, g, h, i] = bad;
    [Good, a, b, c, d, e, f, g, h, i]
}

/// What of its time the daemon may spend on a flood, a percentage of one CPU's.
const MOST_CPU_PERCENT: f64 = 20.0;

/// How much more memory it may have afterwards. Most of it is what the allocator and the operator's stream
/// of events take once.
const MOST_GROWTH_KIB: u64 = 8 << 10;

#[test]
fn of_nine_bad_triggers_for_each_good_one_none_takes_its_place() {
    flood("push-flood", Course::short(400_000));
}

/// A course of so many triggers.
pub(super) fn flood(prefix: &str, mut course: Course) {
    const ROUND: u64 = 100_000;
    let story = Story::begin(prefix);
    let lab = &story.lab;
    let session = story.authorised(0, DEVICE_PORT);
    let sink = Sink::start(device(lab, 0, DEVICE_PORT), &[session]).unwrap();
    let server = server(lab, 0);
    let events = Events::of(lab);

    let before = Resources::of(lab);
    let counted = verdicts(lab, "gw-app");
    let (mut sent, mut sending) = ([0; MIXES.len()], Duration::ZERO);
    let mut rounds = (0..MIXES.len()).cycle();
    while let Some(count) = course.next(ROUND) {
        let round = rounds.next().unwrap();
        let load = Load {
            rate_per_s: None,
            turns: &MIXES[round].1,
            ..load(&session, 1 + sent.iter().sum::<u64>(), count / 10 * 10)
        };
        let done = load.send(&server, &NEVER).unwrap();
        sent[round] += done.triggers;
        sending += done.elapsed;
        let good = sent.iter().sum::<u64>() / 10;
        assert!(
            sink.wait_for(good, LIMIT),
            "{:?} of {good}",
            sink.received()
        );
    }
    let all: u64 = sent.iter().sum();
    let [unknown, forged, replayed, mixed] = sent;
    let expected = [
        ("redirected", all / 10),
        ("unknown_session", unknown / 10 * 9 + mixed / 10 * 3),
        ("bad_tag", forged / 10 * 9 + mixed / 10 * 3),
        ("replayed", replayed / 10 * 9 + mixed / 10 * 3),
    ];
    let now = || {
        let now = verdicts(lab, "gw-app");
        expected.map(|(verdict, _)| (verdict, now[verdict] - counted[verdict]))
    };
    wait_until("all that was sent has its verdict", || {
        now().iter().map(|(_, count)| count).sum::<u64>() >= all
    });
    assert_eq!(now(), expected);
    assert_eq!(sink.finish().unwrap(), Received::just(all / 10));

    let (cpu_percent, grown_kib) = before.until_now(lab);
    assert!(
        cpu_percent <= MOST_CPU_PERCENT,
        "{cpu_percent:.1} % of a CPU"
    );
    assert!(grown_kib <= MOST_GROWTH_KIB, "{grown_kib} KiB more");
    let (told, most) = events.finish();
    assert!((1..=most).contains(&told), "{told} events, at most {most}");
    course.finish(&format!(
        "9 of 10 bad ({}), {:.0}/s, all seen by the program: of {} good ones each arrived once; the daemon took \
         {cpu_percent:.1} % of a CPU, {grown_kib} KiB more memory, and told {told} events",
        MIXES.map(|(name, _)| name).join(", "),
        all as f64 / sending.as_secs_f64(),
        all / 10,
    ));
}

/// What the daemon has used.
struct Resources {
    at: Instant,
    cpu_ticks: u64,
    memory_kib: u64,
}

impl Resources {
    fn of(lab: &Lab) -> Self {
        let process = format!("/proc/{}", lab.pid().unwrap());
        let stat = fs::read_to_string(format!("{process}/stat")).unwrap();
        // Behind the name, which may have blanks in it: utime and stime are fields 14 and 15 of all.
        let (_, fields) = stat.rsplit_once(") ").unwrap();
        let fields = fields.split(' ').skip(14 - 3).take(2);
        let status = fs::read_to_string(format!("{process}/status")).unwrap();
        let memory = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        Self {
            at: Instant::now(),
            cpu_ticks: fields.map(|ticks| ticks.parse::<u64>().unwrap()).sum(),
            memory_kib: memory
                .unwrap()
                .trim()
                .trim_end_matches(" kB")
                .parse()
                .unwrap(),
        }
    }

    /// The percentage of a CPU's time since then, and how many KiB of memory there are more.
    fn until_now(&self, lab: &Lab) -> (f64, u64) {
        /// `USER_HZ`, which is the same on all of Linux.
        const TICKS_PER_S: f64 = 100.0;
        let now = Self::of(lab);
        let busy_s = (now.cpu_ticks - self.cpu_ticks) as f64 / TICKS_PER_S;
        let percent = busy_s / (now.at - self.at).as_secs_f64() * 100.0;
        (percent, now.memory_kib.saturating_sub(self.memory_kib))
    }
}

/// Listens to what the daemon tells of, as an operator does.
struct Events {
    monitor: Child,
    told: Receiver<u64>,
    begin: Instant,
}

impl Events {
    fn of(lab: &Lab) -> Self {
        let mut command = lab.push_ctl(&["monitor", "-j"]);
        let mut monitor = command.stdout(Stdio::piped()).spawn().unwrap();
        let stdout = BufReader::new(monitor.stdout.take().unwrap());
        let (sender, told) = channel();
        std::thread::spawn(move || {
            let mut count = 0;
            for line in stdout.lines().map_while(Result::ok) {
                let event: Value = serde_json::from_str(&line).unwrap();
                let kinds = [
                    EventKind::UnknownSession,
                    EventKind::Forged,
                    EventKind::ReplayStorm,
                ];
                count += u64::from(kinds.iter().any(|kind| event["kind"] == kind.label()));
            }
            let _unheard = sender.send(count);
        });
        Self {
            monitor,
            told,
            begin: Instant::now(),
        }
    }

    /// How many were told, and how many could have been: each CPU tells of a kind once per interval.
    fn finish(mut self) -> (u64, u64) {
        let intervals = self.begin.elapsed().as_nanos() / u128::from(EVENT_INTERVAL_NS) + 1;
        let cpus = std::thread::available_parallelism().unwrap().get() as u64;
        self.monitor.kill().unwrap();
        self.monitor.wait().unwrap();
        let told = self.told.recv_timeout(LIMIT).unwrap();
        (told, u64::try_from(intervals).unwrap() * cpus * 3)
    }
}
