//! The controller is killed while triggers keep coming: the data plane doesn't need it.

use super::ledger::{self, FORWARDED};
use super::scene::{App, Device, Scene};
use super::stage::{Stage, grouped};
use super::volley::Lane;
use super::{GATEWAY_INSIDE, GATEWAY_OUTSIDE, LOOK_PORT, server_socket, socket_address};
use crate::child;
use crate::clients::Granted;
use crate::lab::{Lab, Party};
use crate::traffic::Load;
use anyhow::{Context, Result, ensure};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use std::{slice, thread};

/// A device that stays for a few seconds only.
pub(super) const VISITOR: &str = "10.64.0.3";

/// How many triggers it gets in that time.
const VISITOR_TRIGGERS: u64 = 100;

/// For how long it registers.
const VISIT: Duration = Duration::from_secs(3);

/// How fast triggers keep coming.
const RATE_PER_S: u32 = 50_000;

/// How many have to arrive before, during and after the outage.
const WITNESSES: u64 = 20_000;

/// How long they may take.
const LIMIT: Duration = Duration::from_secs(10);

pub(super) fn tell(scene: &mut Scene, app: &App, lane: &Lane) -> Result<()> {
    scene
        .stage
        .step("kill -9 of the controller while triggers keep coming, and a new start");
    let (visitor, visit_ends) = a_visitor(scene, app)?;
    let Scene {
        clients,
        stage,
        volleys,
        ..
    } = scene;
    let lab = clients.lab;
    let visitor_socket = lab.udp_socket(Party::Device, socket_address(VISITOR, LOOK_PORT))?;
    let visitor_lane = Lane::new(
        server_socket(lab, 0)?,
        visitor_socket,
        slice::from_ref(&visitor),
    )?;
    volleys.delivered(
        stage,
        "to a device that registered for 3 s",
        &visitor_lane,
        VISITOR_TRIGGERS,
        None,
    )?;

    let before = ledger::counts(lab)?;
    let arrived_before = lane.sink.received().delivered;
    let stop = AtomicBool::new(false);
    let load = Load {
        rate_per_s: Some(RATE_PER_S),
        ..volleys.load(lane, u64::MAX)
    };
    let late = Load {
        sessions: &visitor_lane.sessions,
        ..volleys.load(&visitor_lane, VISITOR_TRIGGERS)
    };
    let sent = thread::scope(|scope| {
        let generator =
            scope.spawn(|| load.send_in_step(&lane.socket, &stop, lane.sink.under_way()));
        let outage = outage(lab, stage, lane, || {
            thread::sleep(visit_ends.saturating_duration_since(Instant::now()));
            late.send(&visitor_lane.socket, &AtomicBool::new(false))
                .context("the generator cannot send")
        });
        stop.store(true, Ordering::Relaxed);
        let sent = generator.join().expect("the generator doesn't panic");
        Ok::<_, anyhow::Error>((outage?, sent.context("the generator cannot send")?))
    });
    let (sent_late, sent) = sent?;
    volleys.next_sequence += sent.triggers;
    let since = (&before, arrived_before);
    volleys.enter(
        stage,
        "while it was killed and started",
        lane,
        since,
        (sent, sent.triggers),
        FORWARDED,
    )?;
    volleys.enter_dropped(
        stage,
        "expired, with no controller there",
        &visitor_lane,
        (&before, VISITOR_TRIGGERS),
        sent_late,
        "expired",
    )?;
    volleys.retire(visitor_lane);
    let lost = arrived_before + sent.triggers - lane.sink.received().delivered;
    stage.check(
        lost == 0,
        format!("{lost} of {} lost", grouped(sent.triggers)),
    );

    let status = lab.push_ctl_json(&["status"])?;
    let nics = status["nics"].as_array().context("status has no nics")?;
    stage.check(
        nics.iter().all(|nic| nic["adopted"] == true),
        "program, links and maps were adopted, not made anew",
    );
    let listed = lab.push_ctl_json(&["session", "list"])?;
    let listed = listed
        .as_array()
        .context("the list of sessions is no list")?;
    let is_there = |id: &str| {
        listed
            .iter()
            .any(|session| session["id"] == id && session["state"] == "authorised")
    };
    let all_there = lane
        .sessions
        .iter()
        .all(|session| is_there(&session.id.to_string()));
    stage.check(all_there, "the sessions are still there, authorised");
    Ok(())
}

/// Kills the controller, does `meanwhile`, and starts it again.
fn outage<T>(
    lab: &Lab,
    stage: &mut Stage,
    lane: &Lane,
    meanwhile: impl FnOnce() -> Result<T>,
) -> Result<T> {
    let witnesses = |when: &str| {
        let enough = lane.sink.received().delivered + WITNESSES;
        ensure!(
            lane.sink.wait_for(enough, LIMIT),
            "triggers stopped coming {when}"
        );
        Ok(())
    };
    witnesses("before anything happened")?;
    let pid = lab.pid().context("the controller isn't running")?;
    lab.kill()?;
    stage.say(format!("$ kill -9 {pid}"));
    let mut status = lab.push_ctl(&["status"]);
    stage.command(&status);
    let answer = child::finish(&mut status)?;
    stage.check(
        !answer.status.success(),
        format!(
            "nobody answers: {}",
            child::said(&answer).replace('\n', " ")
        ),
    );
    witnesses("with the controller")?;
    let done = meanwhile()?;
    witnesses("a while after the controller")?;
    let started = Instant::now();
    lab.start()?;
    stage.say(format!(
        "started again, ready after {} ms",
        started.elapsed().as_millis()
    ));
    witnesses("with the new controller")?;
    Ok(done)
}

/// Registers a device for a few seconds, with a session that is authorised; and when that is over.
fn a_visitor(scene: &Scene, app: &App) -> Result<(Granted, Instant)> {
    let gateway = (VISITOR, GATEWAY_INSIDE[0]);
    let visitor = Device::register_for(scene, Party::Device, "visitor", gateway, VISIT)?;
    // The controller's clock may count whole seconds.
    let ends = Instant::now() + VISIT + Duration::from_secs(1);
    let session = visitor.session(scene, app, "visit", LOOK_PORT)?;
    scene
        .clients
        .authorise(GATEWAY_OUTSIDE[0], &app.key, &session)?;
    Ok((session, ends))
}
