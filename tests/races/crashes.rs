//! The daemon is killed in the middle of whatever it does: what was acknowledged is there afterwards, and no trigger
//! is lost.

use super::delivery::load;
use super::outages::{NEVER, nics, nics_by_ip};
use super::{Course, LIMIT};
use crate::story::{
    APP, DEVICE_PORT, PUSH_CTL, StopAtEnd, Story, demand_each_once, device, inside, outside,
    server, wait_until,
};
use serde_json::Value;
use std::collections::BTreeSet;
use std::net::UdpSocket;
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};
use xtask::child;
use xtask::clients::{Answer, Granted};
use xtask::lab::{DEVICE, GATEWAY_INSIDE, Lab, Options, Party};
use xtask::traffic::{Load, Session, Sink};

/// Devices that register each time.
const DEVICES: u32 = 100;
/// Where they are.
const PREFIX: &str = "10.128.0.0/9";
/// Where the session receives whose token rotates.
const ROTATING_PORT: u16 = DEVICE_PORT + 1;

#[test]
fn what_was_acknowledged_is_there_after_any_crash() {
    run("push-crash", Course::short(6));
}

/// When the daemon is killed. Devices register, get sessions and are refreshed, and a token rotates, at all of these
/// times; how long after the moment differs each time.
#[derive(Clone, Copy)]
enum Moment {
    /// While it is being upgraded: it ends, is executed anew, and replaces the programs.
    Upgrading,
    /// While an application's server brings the next token of a session.
    Rotating,
    /// Whatever it does, and once more while the one after it starts.
    Starting,
    /// Whatever it does.
    Any,
}

impl Moment {
    const IN_TURN: [Self; 4] = [Self::Upgrading, Self::Rotating, Self::Starting, Self::Any];
}

/// A course of so many ends by `kill -9`.
pub(super) fn run(prefix: &str, mut course: Course) {
    // All of them stay.
    let mut options = Options::new(prefix, Path::new(PUSH_CTL));
    options.config.slots = 1 << 18;
    let story = Story::with(&options);
    let lab = &story.lab;
    story.shell(
        Party::Device,
        &format!("ip route add local {PREFIX} dev lo"),
    );
    story.shell(
        Party::Gateway,
        &format!("ip route add {PREFIX} via 10.64.0.2"),
    );
    let registration = story.registered(0);
    let authorised = |instance, port| {
        let granted = story.requested(0, &registration, instance, port);
        story
            .clients()
            .authorise(&outside(0), &story.app_key, &granted)
            .unwrap();
        granted.traffic
    };
    let session = authorised("one", DEVICE_PORT);
    let rotating = Rotating::begin(&story, &registration, authorised("two", ROTATING_PORT));
    let sink = Sink::start(device(lab, 0, DEVICE_PORT), &[session]).unwrap();
    let (server, stop) = (server(lab, 0), AtomicBool::new(false));
    let mut acknowledged = Acknowledged::default();
    let links = link_ids(lab);
    let mut round = 0_u64;
    let sent = thread::scope(|scope| {
        let load = Load {
            rate_per_s: Some(20_000),
            ..load(&session, 1, u64::MAX)
        };
        let (server, stop_here, under_way) = (&server, &stop, sink.under_way());
        let send = move || load.send_in_step(server, stop_here, under_way);
        let generator = scope.spawn(move || send().unwrap());
        let (rotating, stop_here) = (&rotating, &stop);
        scope.spawn(move || rotating.send_until(stop_here));
        scope.spawn(move || rotating.rotate_until(stop_here));
        let stop = StopAtEnd(&stop);
        while let Some(count) = course.next(1) {
            for _ in 0..count {
                let moment = Moment::IN_TURN[round as usize % Moment::IN_TURN.len()];
                round += 1;
                let devices = devices(lab, round);
                kill(lab, rotating, moment, round);
                let mut check = lab.push_ctl(&["store", "check", "-c"]);
                let check = child::finish(check.arg(lab.config_path())).unwrap();
                assert!(check.status.success(), "{}", child::said(&check));
                assert!(nics_by_ip(lab).iter().all(|attached| *attached), "detached");
                lab.start().unwrap();
                assert_eq!(link_ids(lab), links, "other links");
                acknowledged.add(devices);
            }
            acknowledged.demand(lab);
        }
        drop(stop);
        generator.join().unwrap().triggers
    });
    demand_each_once(lab, sink, sent);
    let (rotations, in_doubt, sent_rotating) = rotating.finish();
    // Store and kernel agree: who starts now has nothing to add, to remove or to mend.
    lab.kill().unwrap();
    lab.start().unwrap();
    let log = lab.log();
    let mut in_line = log
        .lines()
        .rev()
        .filter(|line| line.contains("are those of the store"));
    let in_line = in_line.next().unwrap();
    assert!(
        in_line.contains("kept=2 mended=0 added=0 removed=0"),
        "{in_line}"
    );
    course.finish(&format!(
        "{} triggers, each delivered once; {rotations} rotations of a token, {in_doubt} of them across a crash: both \
         tokens good each time; {} registrations and {} sessions that were acknowledged: lost = 0; the same links",
        sent + sent_rotating,
        acknowledged.terminals.len(),
        acknowledged.sessions.len()
    ));
}

/// Has many devices register, ask for a session and refresh.
fn devices(lab: &Lab, round: u64) -> Child {
    let from = format!("10.{}.{}.0/24", 128 + round / 256, round % 256);
    let mut devices = lab.exec_in(Party::Device, PUSH_CTL);
    devices
        .args(["-j", "emulate", "device", "--keep", "--for", "0s"])
        .args(["--gateway", &format!("{}:5683", GATEWAY_INSIDE[0])])
        .args(["--app", APP, "--endpoint", &format!("round-{round}")])
        .args(["--count", &DEVICES.to_string(), "--from", &from])
        .args(["--refreshes", "2", "--at-once", "32"])
        .stdout(Stdio::piped());
    devices.spawn().unwrap()
}

/// Kills it, elsewhere in what it does each time.
fn kill(lab: &Lab, rotating: &Rotating<'_>, moment: Moment, round: u64) {
    match moment {
        Moment::Any | Moment::Starting => {
            thread::sleep(Duration::from_micros(round * 7_919 % 300_000));
        }
        Moment::Rotating => {
            let before = rotating.validations.load(Ordering::Relaxed);
            wait_until("a token is validated", || {
                rotating.validations.load(Ordering::Relaxed) > before
            });
            thread::sleep(Duration::from_micros(round * 7_919 % 50_000));
        }
        Moment::Upgrading => {
            let ends = || lab.log().matches("goes on delivering").count();
            let before = ends();
            let mut upgrade = lab.push_ctl(&["upgrade"]);
            // Whether it is told that it has come about depends on when the daemon is killed.
            let mut upgrade = upgrade
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            wait_until("it is on its way", || ends() > before);
            thread::sleep(Duration::from_micros(round * 7_919 % 500_000));
            lab.kill().unwrap();
            upgrade.kill().unwrap();
            upgrade.wait().unwrap();
            return;
        }
    }
    lab.kill().unwrap();
    if let Moment::Starting = moment {
        let after = Duration::from_micros(round * 104_729 % 400_000);
        lab.kill_while_starting(after).unwrap();
    }
}

fn link_ids(lab: &Lab) -> Vec<Value> {
    let nics = nics(lab).into_iter();
    nics.map(|nic| {
        assert_eq!(nic["mode"], "native");
        nic["link_id"].clone()
    })
    .collect()
}

/// What devices were told that they have.
#[derive(Default)]
struct Acknowledged {
    terminals: BTreeSet<String>,
    sessions: BTreeSet<String>,
}

impl Acknowledged {
    /// Once they are through.
    fn add(&mut self, devices: Child) {
        let told = String::from_utf8(devices.wait_with_output().unwrap().stdout).unwrap();
        let mut registered = 0;
        for line in told.lines() {
            let line: Value = serde_json::from_str(line).unwrap();
            let text = |key: &str| line[key].as_str().map(str::to_owned);
            if line["event"] == "registered" {
                self.terminals.extend(text("registration"));
                registered += 1;
            }
            if line["event"] == "session" {
                self.sessions.extend(text("session_id"));
            }
        }
        assert_eq!(registered, DEVICES, "{told}");
    }

    /// Demands that they have it.
    fn demand(&self, lab: &Lab) {
        for (noun, acknowledged) in [("terminal", &self.terminals), ("session", &self.sessions)] {
            let all = lab.push_ctl_json(&[noun, "list", "--limit", "100000"]);
            let all = all.unwrap();
            let rows = all.as_array().unwrap().iter();
            let there: BTreeSet<_> = rows
                .map(|row| row["id"].as_str().unwrap().to_owned())
                .collect();
            let lost: Vec<_> = acknowledged.difference(&there).collect();
            assert!(lost.is_empty(), "{noun}s lost: {lost:?}");
        }
    }
}

/// A session whose token rotates again and again, whatever becomes of the daemon, and its server, which
/// signs triggers by each token that has to be good: the one that was acknowledged last and the one before, but not
/// that one any more when it brings another.
struct Rotating<'a> {
    story: &'a Story,
    registration: &'a str,
    server: UdpSocket,
    sink: Sink,
    signing: Mutex<Signing>,
    /// Requests that were begun, rotations that came of them, and those whose first request wasn't answered.
    validations: AtomicU64,
    rotations: AtomicU64,
    in_doubt: AtomicU64,
}

struct Signing {
    /// The session by each token that is good, the newest one first.
    by: Vec<Session>,
    sent: u64,
}

impl<'a> Rotating<'a> {
    fn begin(story: &'a Story, registration: &'a str, session: Session) -> Self {
        let lab = &story.lab;
        let by = vec![session];
        Self {
            registration,
            server: server(lab, 0),
            sink: Sink::start(device(lab, 0, ROTATING_PORT), &by).unwrap(),
            signing: Mutex::new(Signing { by, sent: 0 }),
            story,
            validations: AtomicU64::new(0),
            rotations: AtomicU64::new(0),
            in_doubt: AtomicU64::new(0),
        }
    }

    fn signing(&self) -> MutexGuard<'_, Signing> {
        self.signing.lock().unwrap()
    }

    /// Sends some triggers by each token that is good.
    fn send(&self, signing: &mut Signing) {
        const SOME: u64 = 8;
        for session in &signing.by {
            let before = signing.sent;
            let some = load(session, 1 + before, SOME);
            let under_way = |sent| before + sent - self.sink.received().delivered;
            let sent = some.send_in_step(&self.server, &NEVER, under_way);
            signing.sent += sent.unwrap().triggers;
        }
    }

    fn send_until(&self, stop: &AtomicBool) {
        while !stop.load(Ordering::Relaxed) {
            self.send(&mut self.signing());
            thread::sleep(Duration::from_millis(2));
        }
    }

    fn rotate_until(&self, stop: &AtomicBool) {
        while !stop.load(Ordering::Relaxed) {
            let next = self.fetched();
            {
                // Not good any more as soon as there is another one.
                let mut signing = self.signing();
                signing.by.truncate(1);
                // What is on its way by it may be refused then.
                let sent = signing.sent;
                assert!(
                    self.sink.wait_for(sent, LIMIT),
                    "{sent} were sent: {:?}",
                    self.sink.received()
                );
            }
            self.sink.expect(next.traffic);
            self.validate(&next);
            self.rotations.fetch_add(1, Ordering::Relaxed);
            let mut signing = self.signing();
            signing.by.insert(0, next.traffic);
            self.send(&mut signing);
        }
    }

    /// The next token, as the app gets it, asked for until somebody is there who grants it.
    fn fetched(&self) -> Granted {
        let clients = self.story.clients();
        let session = self.signing().by[0].id;
        let uri = format!("coap://{}/rd/{}/s/{session}", inside(0), self.registration);
        let begin = Instant::now();
        loop {
            match clients.coap(Party::Device, "post", DEVICE[0], &uri) {
                Ok(Answer::Success(told)) => {
                    let generation = told["token_generation"].parse().unwrap();
                    return clients
                        .granted(&told["session_id"], &told["token"], generation)
                        .unwrap();
                }
                Ok(Answer::Refused(why)) => {
                    assert!(why.contains("stopping"), "no token: {why}");
                }
                Err(_nobody_there) => {}
            }
            assert!(begin.elapsed() < LIMIT, "no token");
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Has the server bring that token, until somebody is there who acknowledges it. An app that has it was told
    /// that it is good.
    fn validate(&self, next: &Granted) {
        let clients = self.story.clients();
        let proof = (Some(&*self.story.app_key), &*next.request_file);
        let begin = Instant::now();
        let mut is_in_doubt = false;
        loop {
            self.validations.fetch_add(1, Ordering::Relaxed);
            match clients.validate(&outside(0), &next.id, proof) {
                Ok((200, _)) => break,
                // It is stopping.
                Ok((503, _)) | Err(_) => is_in_doubt = true,
                Ok((status, body)) => {
                    panic!("the token that was granted is refused: {status} {body}")
                }
            }
            assert!(begin.elapsed() < LIMIT, "not validated");
            thread::sleep(Duration::from_millis(5));
        }
        self.in_doubt
            .fetch_add(u64::from(is_in_doubt), Ordering::Relaxed);
    }

    /// Demands that each of the triggers has arrived once. Gives how often the token has rotated, how often its
    /// server had to ask again, and how many triggers it has sent.
    fn finish(self) -> (u64, u64, u64) {
        let (rotations, in_doubt) = (self.rotations.into_inner(), self.in_doubt.into_inner());
        assert!(
            rotations > 1 && in_doubt > 0,
            "{rotations} rotations, {in_doubt} across a crash"
        );
        let sent = self.signing.into_inner().unwrap().sent;
        demand_each_once(&self.story.lab, self.sink, sent);
        (rotations, in_doubt, sent)
    }
}
