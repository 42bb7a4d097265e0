//! `cargo xtask demo`: the whole story on this machine's kernel, told and checked.

mod acknowledged;
mod ledger;
mod lifecycle;
mod outage;
mod realms;
mod refusals;
mod rules;
mod scene;
mod stage;
mod vlan;
mod volley;

use crate::clients::{Clients, Granted};
use crate::lab::{
    APPLICATION, DEVICE, GATEWAY_INSIDE, GATEWAY_OUTSIDE, Lab, Options, Party, by_hand::PREFIX,
};
use crate::{child, setup, workspace};
use anyhow::{Context, Result};
use scene::{App, Device, Scene};
use serde_json::Value;
use stage::Stage;
use std::mem;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::Path;
use std::time::{Duration, Instant};
use volley::{Lane, Volleys};

/// Where the gateway takes triggers.
const TRIGGER_PORT: u16 = 5050;

/// The ports of app instances: one that the audience looks at, one for many triggers.
const LOOK_PORT: u16 = 6000;
const MANY_PORT: u16 = 6001;

/// The application of the story.
const APP: &str = "weather";

/// Kernel's number for an XDP program that the driver itself runs (`XDP_ATTACHED_DRV`).
const ATTACHED_DRIVER: u64 = 1;

/// How long a single datagram may take, or a change until it holds.
const LIMIT: Duration = Duration::from_secs(10);

/// Tells the story; with `keep`, leaves the lab up.
///
/// # Errors
///
/// When anything is not as told.
pub fn run(keep: bool) -> Result<()> {
    workspace::require_root("the demo", "demo")?;
    setup::run()?;
    let push_ctl = workspace::build_push_ctl()?;
    let started = Instant::now();
    let options = Options {
        device_addresses: vec![format!("{}/16", outage::VISITOR)],
        ..Options::with_realms(PREFIX, &push_ctl)
    };
    let lab = Lab::up(&options)?;
    let told = tell(&lab, &push_ctl);
    if keep {
        println!("\nThe lab stays up; `cargo xtask lab down` takes it down.");
        lab.stay();
    } else {
        lab.down()?;
    }
    told?;
    println!(
        "\nAll as told, in {:.0} s.",
        started.elapsed().as_secs_f64()
    );
    Ok(())
}

fn tell(lab: &Lab, push_ctl: &Path) -> Result<()> {
    let stage = Stage::new(push_ctl.to_owned());
    let show = stage.narrator();
    let came_in_before = ledger::came_in(lab)?;
    let mut scene = Scene {
        clients: Clients::new(lab, &show)?,
        stage,
        volleys: Volleys::new(lab),
        push_ctl,
    };
    the_gateway_is_up(lab, &mut scene.stage)?;

    scene
        .stage
        .step("The operator adds an application; its server gets a key");
    let app = App::add(&scene, APP)?;

    scene.stage.step("Two devices register over CoAP, one by IPv4, one by IPv6; libcoap's client proves its address");
    let phone = |scene: &Scene, name, family| {
        let device = Device::register(
            scene,
            Party::Device,
            name,
            (DEVICE[family], GATEWAY_INSIDE[family]),
        )?;
        scene.stage.say(format!(
            "registration {}: the device is in the first operative state",
            device.registration
        ));
        Ok::<_, anyhow::Error>(device)
    };
    let phones = [phone(&scene, "phone-4", 0)?, phone(&scene, "phone-6", 1)?];

    scene.stage.step("Their apps ask for sessions");
    let request = |scene: &Scene, phone: &Device, instance: &str, port| {
        let session = phone.session(scene, &app, instance, port)?;
        scene.stage.say(format!(
            "session {}, and its token, handed out this once",
            session.id
        ));
        Ok::<_, anyhow::Error>(session)
    };
    let mut look = Vec::new();
    let mut many = [Vec::new(), Vec::new()];
    for (phone, many) in phones.iter().zip(&mut many) {
        look.push(request(&scene, phone, "look", LOOK_PORT)?);
        many.push(request(&scene, phone, "home", MANY_PORT)?);
        many.push(request(&scene, phone, "work", MANY_PORT)?);
    }

    scene
        .stage
        .step("The application server, outside, proves that it holds the tokens");
    for (family, session) in with_family(&many).chain(look.iter().enumerate()) {
        scene
            .clients
            .authorise(&host(GATEWAY_OUTSIDE[family]), &app.key, session)?;
        scene.stage.say(format!(
            "session {} is authorised, and only now known to the data plane",
            session.id
        ));
    }

    scene
        .stage
        .step("One push trigger, from the application server to the device's private address");
    let looking = phones[0].push_client(lab, LOOK_PORT, &look[0])?;
    scene.follow(0, &look[0], "storm warning", &looking)?;

    let mut lanes = [lane(lab, 0, &many[0])?, lane(lab, 1, &many[1])?];
    scene
        .stage
        .step("Many triggers, as fast as the generator makes them");
    for (lane, (name, triggers)) in lanes
        .iter()
        .zip([("IPv4, 2 sessions", 300_000), ("IPv6, 2 sessions", 100_000)])
    {
        scene
            .volleys
            .delivered(&scene.stage, name, lane, triggers, None)?;
    }

    scene.stage.step(
        "From one IP version to the other: the server has only the one, the device only the other",
    );
    let looking_v6 = phones[1].push_client(lab, LOOK_PORT, &look[1])?;
    scene.follow(0, &look[1], "storm warning, by IPv4", &looking_v6)?;
    scene.follow(1, &look[0], "storm warning, by IPv6", &looking)?;
    crossed(&mut scene, &mut lanes)?;

    let meter = realms::tell(&mut scene, &app, (&look[0], &looking))?;
    vlan::tell(&mut scene, &app, &meter.looking)?;
    acknowledged::tell(&mut scene, [(&look[0], &looking), (&look[1], &looking_v6)])?;
    rules::tell(&mut scene, &phones[0])?;
    lifecycle::tell(&mut scene)?;

    refusals::at_the_door(&mut scene, &app, &many[0][0], &phones[0].registration)?;
    refusals::on_the_path(&mut scene, &app, &phones[0], &lanes[0])?;
    outage::tell(&mut scene, &app, &lanes[0])?;
    scene.volleys.delivered(
        &scene.stage,
        "after that, to the meter",
        &meter.lane,
        20_000,
        None,
    )?;

    let Scene {
        mut stage,
        mut volleys,
        ..
    } = scene;
    stage.step("What went in and what came out");
    for lane in lanes.into_iter().chain([meter.lane]) {
        volleys.retire(lane);
    }
    volleys.judge_sinks(&mut stage)?;
    let rows = volleys.into_rows();
    ledger::print(&rows);
    ledger::judge_gateway(lab, &mut stage, &rows, &came_in_before)?;
    ledger::judge(&rows, stage.failures())
}

/// Each phone gets triggers from the socket that is the other one's.
fn crossed(scene: &mut Scene, lanes: &mut [Lane; 2]) -> Result<()> {
    let swap = |[v4, v6]: &mut [Lane; 2]| mem::swap(&mut v4.socket, &mut v6.socket);
    swap(lanes);
    for (lane, name) in lanes.iter().zip(["IPv6 in, IPv4 out", "IPv4 in, IPv6 out"]) {
        scene
            .volleys
            .delivered(&scene.stage, name, lane, 50_000, None)?;
    }
    swap(lanes);
    Ok(())
}

fn the_gateway_is_up(lab: &Lab, stage: &mut Stage) -> Result<()> {
    stage.step("A gateway between an application server outside and a device inside");
    stage.command(&lab.push_ctl(&["status"]));
    let status = lab.push_ctl_json(&["status"])?;
    for nic in status["nics"].as_array().context("status has no nics")? {
        let name = nic["name"].as_str().context("a NIC has no name")?;
        let namespace = lab.namespace(Party::Gateway);
        let mut ip = child::command("ip");
        ip.args(["-n", &namespace, "-j", "-d", "link", "show", "dev", name]);
        stage.command(&ip);
        let link: Value = serde_json::from_str(&child::output(&mut ip)?)?;
        let attached = &link[0]["xdp"];
        stage.check(
            nic["mode"] == "native" && attached["mode"] == ATTACHED_DRIVER,
            format!("{name}: native, says push-ctl from the kernel's answer; attached to the driver, says ip"),
        );
        stage.check(
            nic["program_id"].is_u64() && nic["program_id"] == attached["prog"]["id"],
            format!("{name}: program {} for both", nic["program_id"]),
        );
    }
    Ok(())
}

/// The way of many triggers of one family: from the application server's socket to the phone's sink.
fn lane(lab: &Lab, family: usize, sessions: &[Granted]) -> Result<Lane> {
    let device = lab.udp_socket(Party::Device, socket_address(DEVICE[family], MANY_PORT))?;
    Lane::new(server_socket(lab, family)?, device, sessions)
}

/// A socket of the application server, connected to the gateway's trigger address.
fn server_socket(lab: &Lab, family: usize) -> Result<UdpSocket> {
    let socket = lab.udp_socket(Party::Application, socket_address(APPLICATION[family], 0))?;
    let gateway = socket_address(GATEWAY_OUTSIDE[family], TRIGGER_PORT);
    socket
        .connect(gateway)
        .with_context(|| format!("cannot connect to {gateway}"))?;
    Ok(socket)
}

fn with_family(sessions: &[Vec<Granted>; 2]) -> impl Iterator<Item = (usize, &Granted)> {
    sessions
        .iter()
        .enumerate()
        .flat_map(|(family, sessions)| sessions.iter().map(move |session| (family, session)))
}

fn socket_address(address: &str, port: u16) -> SocketAddr {
    let address: IpAddr = address.parse().expect("the lab's addresses are addresses");
    SocketAddr::new(address, port)
}

/// The address as a URI has it.
fn host(address: &str) -> String {
    if address.contains(':') {
        format!("[{address}]")
    } else {
        address.to_owned()
    }
}
