//! Triggers that the device acknowledges, and the server waits for that.

use super::APP;
use super::ledger::{self, FORWARDED};
use super::scene::{Scene, Single};
use crate::clients::Granted;
use crate::push_client::{PushClient, Trigger};
use anyhow::{Context, Result};
use serde_json::Value;
use std::thread;

/// The NIC by which acknowledgements enter.
const NIC: &str = "gw-dev";

/// How long the server waits.
const WAIT: [&str; 2] = ["--wait-ack", "5s"];

/// By IPv4, a server triggers a device that has IPv4, and one that has IPv6.
pub(super) fn tell(scene: &mut Scene, devices: [(&Granted, &PushClient); 2]) -> Result<()> {
    let lab = scene.clients.lab;
    scene
        .stage
        .step("Triggers that the device acknowledges; the application's server waits for that");
    let mut set = lab.push_ctl(&["app", "set", APP, "--return-acks"]);
    scene.stage.run(&mut set)?;
    let before = ledger::counts_at(lab, NIC)?;
    let sessions = devices.len() as u64;
    for (session, device) in devices {
        let payload = "are you there?";
        let single = Single {
            family: 0,
            session,
            payload,
            options: &WAIT,
        };
        let (trigger, printed) = thread::scope(|scope| {
            let answering = scope.spawn(|| answer(device));
            let sent = scene.send(&single, true, FORWARDED);
            let trigger = answering.join().expect("the push client doesn't panic")?;
            let (_verdict, printed) = sent?;
            Ok::<_, anyhow::Error>((trigger, printed))
        })?;
        scene.arrived(device, &trigger, payload)?;
        scene.stage.check(
            printed.contains("Acknowledged after "),
            "the server has its acknowledgement: signed by the device, turned around by the gateway",
        );
        // Which doesn't count, and goes nowhere.
        device.acknowledge(&trigger)?;
        let shown = scene.show_session(session)?;
        scene.stage.check(
            shown["acknowledged"] == 1 && shown["round_trip_ms"].is_f64(),
            format!(
                "the session has {} acknowledged trigger, and a round trip of {} ms",
                shown["acknowledged"], shown["round_trip_ms"]
            ),
        );
    }

    scene.stage.command(&lab.push_ctl(&["stats"]));
    let verdicts = ["ack_returned", "ack_unexpected"];
    let since = ledger::settle_at(lab, NIC, &before, &verdicts, 2 * sessions)?;
    let [returned, unexpected] = verdicts.map(|verdict| since.get(verdict).copied().unwrap_or(0));
    scene.stage.check(
        returned == sessions && unexpected == sessions,
        format!("{NIC}: ack_returned {returned}; each sent once more: ack_unexpected {unexpected}"),
    );
    let stats = lab.push_ctl_json(&["stats"])?;
    let classes = ledger::at(&stats, NIC)?["round_trips"]
        .as_array()
        .context("stats have no round trips")?;
    let counted: u64 = classes
        .iter()
        .filter_map(|class| class["acknowledgements"].as_u64())
        .sum();
    scene.stage.check(
        counted == sessions,
        format!("{NIC}: {}", round_trips(classes)),
    );
    Ok(())
}

/// The push client acknowledges what comes.
fn answer(device: &PushClient) -> Result<Trigger> {
    let trigger = device.receive()?;
    if trigger.header.flags.asks_for_acknowledgement() {
        device.acknowledge(&trigger)?;
    }
    Ok(trigger)
}

/// Only the classes that have some.
fn round_trips(classes: &[Value]) -> String {
    let some: Vec<_> = classes
        .iter()
        .filter(|class| class["acknowledgements"] != 0)
        .map(|class| {
            format!(
                "{} to {} µs: {}",
                class["from_us"], class["below_us"], class["acknowledgements"]
            )
        })
        .collect();
    format!("acknowledgements by round trip: {}", some.join("; "))
}
