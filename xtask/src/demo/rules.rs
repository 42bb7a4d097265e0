//! What an application may do, and what becomes of the rest.

use super::ledger::FORWARDED;
use super::scene::{App, Device, Scene, Single};
use super::volley::Lane;
use super::{DEVICE, MANY_PORT, server_socket, socket_address};
use crate::lab::Party;
use anyhow::Result;
use std::slice;

/// The application that has rules.
const APP: &str = "adverts";

/// Ports of its instances on the phone.
const RATIONED_PORT: u16 = MANY_PORT + 1;
const ELSEWHERE_PORT: u16 = MANY_PORT + 2;
const SLEEPING_PORT: u16 = MANY_PORT + 3;

/// What may come at once, and how much of the next refusal is seen.
const BURST: u64 = 5;
const OFFERED: u64 = 1000;

/// The operator gives an application rules; `phone` has it, too.
pub(super) fn tell(scene: &mut Scene, phone: &Device) -> Result<()> {
    let lab = scene.clients.lab;
    scene
        .stage
        .step("What an application may do: the operator says so, the driver enforces it");
    let app = App::add(scene, APP)?;
    let burst = BURST.to_string();
    let rules = [
        "--rate",
        "60/h",
        "--burst",
        &burst,
        "--source",
        "198.51.100.0/24",
        "--coalesce",
        "1m",
    ];
    let set = [&["app", "set", APP], &rules[..]].concat();
    scene.stage.run(&mut lab.push_ctl(&set))?;

    let session = phone.ready_session(scene, &app, "rationed", RATIONED_PORT)?;
    let sink = |port| lab.udp_socket(Party::Device, socket_address(DEVICE[0], port));
    let lane = Lane::new(
        server_socket(lab, 0)?,
        sink(RATIONED_PORT)?,
        slice::from_ref(&session),
    )?;
    let elsewhere = Lane::new(
        server_socket(lab, 1)?,
        sink(ELSEWHERE_PORT)?,
        slice::from_ref(&session),
    )?;
    let load = scene.volleys.load(&elsewhere, OFFERED);
    scene.volleys.dropped(
        &scene.stage,
        "from an address it may not send from",
        &elsewhere,
        &load,
        "source_refused",
    )?;
    scene.volleys.rationed(
        &scene.stage,
        "more often than it may",
        &lane,
        (OFFERED, BURST),
        "rate_exceeded",
    )?;
    let shown = scene.show_session(&session)?;
    let refused = 2 * OFFERED - BURST;
    scene.stage.check(
        shown["packets"] == BURST && shown["refused"] == refused,
        format!("the session has {BURST} delivered and {refused} refused"),
    );
    scene.volleys.retire(lane);
    scene.volleys.retire(elsewhere);

    sleeping(scene, phone, &app)
}

/// A device that sleeps is woken once for what can wait until it is awake.
fn sleeping(scene: &mut Scene, phone: &Device, app: &App) -> Result<()> {
    scene.stage.say(
        "A sleeping device is woken once: within the minute, a second trigger with its key is absorbed",
    );
    let session = phone.ready_session(scene, app, "sleeping", SLEEPING_PORT)?;
    let device = phone.push_client(scene.clients.lab, SLEEPING_PORT, &session)?;
    for (sequence, key, payload, is_due) in [
        ("1", "7", "one new advert", true),
        ("2", "7", "two new adverts", false),
        ("3", "8", "and something else", true),
    ] {
        let single = Single {
            family: 0,
            session: &session,
            payload,
            options: &["--sequence", sequence, "--collapse-key", key],
        };
        let verdicts = [FORWARDED, &["coalesced"]].concat();
        let (verdict, _printed) = scene.send(&single, is_due, &verdicts)?;
        if is_due {
            let trigger = device.receive()?;
            scene.arrived(&device, &trigger, payload)?;
        } else {
            scene.stage.check(
                verdict == "coalesced" && !device.has_more()?,
                format!("{payload:?}: {verdict}"),
            );
        }
    }
    Ok(())
}
