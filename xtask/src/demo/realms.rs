//! Devices with the same private address, in networks of their own.

use super::scene::{App, Device, Scene};
use super::volley::Lane;
use super::{DEVICE, LOOK_PORT, MANY_PORT, server_socket, socket_address};
use crate::clients::Granted;
use crate::lab::{GATEWAY_METERS, Party};
use crate::push_client::PushClient;
use anyhow::{Context, Result};
use std::slice;

/// How many triggers the meter gets at once.
const TRIGGERS: u64 = 50_000;

/// The other device, from now on.
pub(super) struct Meter {
    pub(super) looking: PushClient,
    pub(super) lane: Lane,
}

/// A meter comes, with the address that the phone has.
pub(super) fn tell(
    scene: &mut Scene,
    app: &App,
    (phone, on_phone): (&Granted, &PushClient),
) -> Result<Meter> {
    let lab = scene.clients.lab;
    scene
        .stage
        .step("The same private address again: a meter, in a realm of its own");
    scene.stage.run(&mut lab.push_ctl(&["realm", "list"]))?;
    let address = DEVICE[0];
    let meter = Device::register(scene, Party::Meter, "meter", (address, GATEWAY_METERS))?;
    scene.stage.run(&mut lab.push_ctl(&["terminal", "list"]))?;
    let terminals = lab.push_ctl_json(&["terminal", "list"])?;
    let terminals = terminals.as_array().context("the terminals are no list")?;
    let mut realms: Vec<_> = terminals
        .iter()
        .filter(|terminal| terminal["address"] == address)
        .map(|terminal| terminal["realm"].as_str())
        .collect();
    realms.sort_unstable();
    scene.stage.check(
        realms == [None, Some("meters")],
        format!("{address} is there twice, once in the realm \"meters\""),
    );

    let session = meter.ready_session(scene, app, "look", LOOK_PORT)?;
    let on_meter = meter.push_client(lab, LOOK_PORT, &session)?;
    scene.follow(0, phone, "for the phone", on_phone)?;
    scene.follow(0, &session, "for the meter", &on_meter)?;
    scene.stage.check(
        !on_phone.has_more()? && !on_meter.has_more()?,
        "both listen on the same address and port, and neither got what was the other's",
    );

    let many = meter.ready_session(scene, app, "many", MANY_PORT)?;
    let device = lab.udp_socket(Party::Meter, socket_address(address, MANY_PORT))?;
    let lane = Lane::new(server_socket(lab, 0)?, device, slice::from_ref(&many))?;
    scene
        .volleys
        .delivered(&scene.stage, "to the meter", &lane, TRIGGERS, None)?;
    Ok(Meter {
        looking: on_meter,
        lane,
    })
}
