//! A realm that is reached in a VLAN: what leaves the gateway, as two programs not ours read it.

use super::ledger::FORWARDED;
use super::scene::{App, Device, Scene, Single, wait_until};
use super::{DEVICE, LOOK_PORT};
use crate::child;
use crate::clients::Granted;
use crate::lab::{CAMERAS_ROUTER, CAMERAS_VLAN, GATEWAY_CAMERAS, Lab, Party};
use crate::push_client::PushClient;
use anyhow::{Context, Result};
use push_common::wire::TriggerHeader;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

/// Where devices see the sender.
const COAP_PORT: u16 = 5683;

/// A file of captured frames begins with so many bytes, which are there when the capture has begun.
const FILE_HEADER_BYTES: u64 = 24;

/// A camera comes, with the same address once more; `meter` is who mustn't get its triggers.
pub(super) fn tell(scene: &mut Scene, app: &App, meter: &PushClient) -> Result<()> {
    let lab = scene.clients.lab;
    scene.stage.step(&format!(
        "And once more: a camera, in a realm that is reached in VLAN {CAMERAS_VLAN}"
    ));
    // A camera would be in that VLAN, too. But the gateway's kernel can't receive CoAP from a VLAN without
    // an interface for it, and kernels can be built without such interfaces. So it registers untagged.
    let device = (DEVICE[0], GATEWAY_CAMERAS);
    let camera = Device::register(scene, Party::Meter, "camera", device)?;
    let session = camera.ready_session(scene, app, "look", LOOK_PORT)?;

    let filter = format!("vlan {CAMERAS_VLAN}");
    let capture = Capture::begin(lab, Party::Meter, "met0", &filter)?;
    let payload = "for the camera";
    let single = Single {
        family: 0,
        session: &session,
        payload,
        options: &[],
    };
    scene.send(&single, true, FORWARDED)?;
    let file = capture.end()?;
    let mut tcpdump = child::command("tcpdump");
    tcpdump.arg("-r").arg(&file).args(["-ent"]);
    tcpdump.stderr(Stdio::null());
    scene.stage.run(&mut tcpdump)?;

    let frame = dissect(scene, &file)?;
    let expected = expected(lab)?;
    scene.stage.check(
        frame.fields == expected,
        format!("tshark finds {} (good)", expected.join(", ")),
    );
    let is_whole = is_trigger(&frame.datagram, &session, payload);
    scene.stage.check(
        is_whole,
        format!("in it is {payload:?}, and the tag is the server's"),
    );
    scene.volleys.single.delivered += u64::from(is_whole);
    scene.stage.check(
        !meter.has_more()?,
        "the meter, behind the same NIC and with the same address, got none of it",
    );
    Ok(())
}

/// A frame, as tshark reads it.
struct Frame {
    fields: Vec<String>,
    datagram: Vec<u8>,
}

fn dissect(scene: &Scene, file: &Path) -> Result<Frame> {
    let mut tshark = child::command("tshark");
    tshark.arg("-r").arg(file);
    for checked in ["udp.check_checksum:TRUE", "ip.check_checksum:TRUE"] {
        tshark.args(["-o", checked]);
    }
    // Triggers share a port with CoAP.
    tshark.args(["-d", &format!("udp.port=={COAP_PORT},data"), "-T", "fields"]);
    for field in FIELDS.iter().chain(&["udp.payload"]) {
        tshark.args(["-e", field]);
    }
    scene.stage.command(&tshark);
    let text = child::output(&mut tshark)?;
    let mut values: Vec<_> = text.trim_end().split('\t').collect();
    let datagram = values.pop().context("tshark found nothing")?;
    let digits = |at| datagram.get(at..at + 2);
    let datagram = (0..datagram.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(digits(at)?, 16).ok())
        .collect::<Option<_>>()
        .with_context(|| format!("no payload: {text:?}"))?;
    let fields = FIELDS
        .iter()
        .zip(values)
        .map(|(name, value)| format!("{name} {value}"))
        .collect();
    Ok(Frame { fields, datagram })
}

/// What is looked at in the frame.
const FIELDS: [&str; 9] = [
    "vlan.id",
    "eth.src",
    "eth.dst",
    "ip.src",
    "udp.srcport",
    "ip.dst",
    "udp.dstport",
    "ip.checksum.status",
    "udp.checksum.status",
];

/// How tshark calls a checksum that is right.
const GOOD: &str = "1";

fn expected(lab: &Lab) -> Result<Vec<String>> {
    let mut ip = child::command("ip");
    let gateway = lab.namespace(Party::Gateway);
    ip.args(["-n", &gateway, "-j", "link", "show", "dev", "gw-met"]);
    let links: Value = serde_json::from_str(&child::output(&mut ip)?)?;
    let own = links[0]["address"]
        .as_str()
        .context("gw-met has no MAC address")?;
    let values = [
        &CAMERAS_VLAN.to_string(),
        own,
        CAMERAS_ROUTER,
        GATEWAY_CAMERAS,
        &COAP_PORT.to_string(),
        DEVICE[0],
        &LOOK_PORT.to_string(),
        GOOD,
        GOOD,
    ];
    let pairs = FIELDS.iter().zip(values);
    Ok(pairs
        .map(|(name, value)| format!("{name} {value}"))
        .collect())
}

fn is_trigger(datagram: &[u8], session: &Granted, payload: &str) -> bool {
    TriggerHeader::parse(datagram).is_ok_and(|(header, arrived)| {
        arrived == payload.as_bytes() && header.verify(session.traffic.key, arrived).is_ok()
    })
}

/// A tcpdump that waits for one frame.
struct Capture {
    tcpdump: Child,
    file: PathBuf,
}

impl Capture {
    fn begin(lab: &Lab, party: Party, nic: &str, filter: &str) -> Result<Self> {
        let file = lab.folder().join(format!("{nic}.pcap"));
        let mut command = lab.exec_in(party, "tcpdump");
        command
            .args(["--immediate-mode", "-U", "-n", "-c", "1", "-i", nic, "-w"])
            .arg(&file)
            .arg(filter)
            .stdin(Stdio::null())
            .stderr(Stdio::null());
        let tcpdump = command.spawn().context("cannot run tcpdump")?;
        let capture = Self { tcpdump, file };
        let has_begun =
            || capture.file.metadata().map_or(0, |file| file.len()) >= FILE_HEADER_BYTES;
        wait_until("tcpdump doesn't begin", || Ok(has_begun()))?;
        Ok(capture)
    }

    /// Waits for the frame, and gives the file that it is in.
    fn end(mut self) -> Result<PathBuf> {
        wait_until("no frame of the VLAN arrived", || {
            Ok(self.tcpdump.try_wait()?.is_some())
        })?;
        Ok(self.file.clone())
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        let _ended_already = self.tcpdump.kill();
        let _reaped = self.tcpdump.wait();
    }
}
