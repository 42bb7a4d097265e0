//! `cargo xtask demo`: the whole story on this machine's kernel, told and checked.

mod ledger;
mod outage;
mod refusals;
mod stage;
mod volley;

use crate::clients::{Clients, Granted};
use crate::lab::{
    APPLICATION, DEVICE, GATEWAY_INSIDE, GATEWAY_OUTSIDE, Lab, Options, Party, by_hand::PREFIX,
};
use crate::traffic::{Received, Sink};
use crate::{child, setup, workspace};
use anyhow::{Context, Result};
use push_common::wire::TriggerHeader;
use serde_json::Value;
use stage::{Stage, grouped};
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

/// How long a single datagram may take.
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
        ..Options::new(PREFIX, &push_ctl)
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
    let mut stage = Stage::new(push_ctl.to_owned());
    let stage = &mut stage;
    let show = stage.narrator();
    let clients = Clients::new(lab, &show)?;
    the_gateway_is_up(lab, stage)?;

    stage.step("The operator adds an application; its server gets a key");
    let app_key = clients.add_app(APP)?;

    stage.step("Two devices register over CoAP, one by IPv4, one by IPv6; libcoap's client proves its address");
    let names = ["phone-4", "phone-6"];
    let mut registrations = Vec::new();
    for ((name, source), gateway) in names.into_iter().zip(DEVICE).zip(GATEWAY_INSIDE.map(host)) {
        let query = format!("ep={name}&lt=3600");
        let registration = clients.register(Party::Device, source, &gateway, &query)?;
        stage.say(format!(
            "registration {registration}: the device is in the first operative state"
        ));
        registrations.push(registration);
    }

    stage.step("Their apps ask for sessions");
    let request = |stage: &Stage, family: usize, instance: &str, port| {
        let device = (
            DEVICE[family],
            &*host(GATEWAY_INSIDE[family]),
            &*registrations[family],
        );
        let session = clients.request_session(Party::Device, device, (APP, instance, port))?;
        stage.say(format!(
            "session {}, and its token, handed out this once",
            session.id
        ));
        Ok::<_, anyhow::Error>(session)
    };
    let look = request(stage, 0, "look", LOOK_PORT)?;
    let mut many = [Vec::new(), Vec::new()];
    for (family, instance) in [(0, "home"), (0, "work"), (1, "home"), (1, "work")] {
        many[family].push(request(stage, family, instance, MANY_PORT)?);
    }

    stage.step("The application server, outside, proves that it holds the tokens");
    for (family, session) in [(0, &look)].into_iter().chain(with_family(&many)) {
        clients.authorise(&host(GATEWAY_OUTSIDE[family]), &app_key, session)?;
        stage.say(format!(
            "session {} is authorised, and only now known to the data plane",
            session.id
        ));
    }

    one_trigger(&clients, stage, push_ctl, &look)?;

    let lanes = [lane(lab, 0, &many[0])?, lane(lab, 1, &many[1])?];
    let mut volleys = Volleys::new(lab);
    stage.step("Many triggers, as fast as the generator makes them");
    for (lane, (name, triggers)) in lanes
        .iter()
        .zip([("IPv4, 2 sessions", 300_000), ("IPv6, 2 sessions", 100_000)])
    {
        volleys.delivered(stage, name, lane, triggers, None)?;
    }

    stage.step("At the door: who is refused, and why");
    refusals::at_the_door(&clients, stage, &app_key, &many[0][0], &registrations[0])?;
    stage.step("On the path: what is dropped in the driver");
    let extra = |stage: &Stage, instance: &str| request(stage, 0, instance, LOOK_PORT);
    refusals::on_the_path(&clients, stage, &mut volleys, &lanes[0], &app_key, extra)?;

    stage.step("kill -9 of the controller while triggers keep coming, and a new start");
    outage::tell(&clients, stage, &mut volleys, &lanes[0], &app_key)?;

    stage.step("What went in and what came out");
    ledger::print(&volleys.rows);
    let sent_on: u64 = volleys.rows.iter().map(|row| row.due).sum();
    let mut received = Received::default();
    for lane in lanes {
        let Received {
            delivered,
            duplicates,
            corrupt,
            foreign,
        } = lane.sink.finish()?;
        received.delivered += delivered;
        received.duplicates += duplicates;
        received.corrupt += corrupt;
        received.foreign += foreign;
    }
    let Received {
        delivered,
        duplicates,
        corrupt,
        foreign,
    } = received;
    stage.check(
        received.delivered + outage::VISITOR_TRIGGERS == sent_on && duplicates + corrupt + foreign == 0,
        format!(
            "the devices' sinks: {} byte for byte as sent, {duplicates} twice, {corrupt} corrupt, {foreign} foreign",
            grouped(delivered)
        ),
    );
    ledger::judge(&volleys.rows, stage.failures())
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

/// One trigger that the audience can follow.
fn one_trigger(
    clients: &Clients,
    stage: &mut Stage,
    push_ctl: &Path,
    session: &Granted,
) -> Result<()> {
    stage.step("One push trigger, from the application server to the device's private address");
    let device = clients
        .lab
        .udp_socket(Party::Device, socket_address(DEVICE[0], LOOK_PORT))?;
    device.set_read_timeout(Some(LIMIT))?;
    let payload = "storm warning";
    let gateway = socket_address(GATEWAY_OUTSIDE[0], TRIGGER_PORT).to_string();
    let mut send = clients.send_trigger(push_ctl, &gateway, session, payload);
    stage.command(&send);
    child::output(&mut send)?;
    let mut datagram = [0; 2048];
    let (length, source) = device
        .recv_from(&mut datagram)
        .context("the trigger did not arrive")?;
    let (header, arrived) =
        TriggerHeader::parse(&datagram[..length]).context("what arrived is no trigger")?;
    stage.say(format!(
        "{length} bytes at {} from {source}",
        device.local_addr()?
    ));
    stage.check(
        arrived == payload.as_bytes() && header.verify(session.traffic.key, arrived).is_ok(),
        format!(
            "the device reads {:?}, and the tag is the server's",
            String::from_utf8_lossy(arrived)
        ),
    );
    Ok(())
}

/// The way of many triggers of one family: from the application server's socket to the device's sink.
fn lane(lab: &Lab, family: usize, sessions: &[Granted]) -> Result<Lane> {
    let sessions: Vec<_> = sessions.iter().map(|session| session.traffic).collect();
    let device = lab.udp_socket(Party::Device, socket_address(DEVICE[family], MANY_PORT))?;
    let sink = Sink::start(device, &sessions).context("cannot start the sink")?;
    Ok(Lane {
        socket: server_socket(lab, family)?,
        sink,
        sessions,
    })
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
