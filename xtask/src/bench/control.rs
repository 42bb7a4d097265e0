//! How the control plane keeps up with many devices: all of them register by CoAP, one after the other and some
//! hundred at the same time, and then refresh, against a controller that writes everything to disk. Then how soon it is
//! there again when it was killed, and what operators ask of one that has a million sessions.

mod million;
mod restart;
mod validations;

use super::{Figure, Row, Suite};
use crate::lab::{Config, DEVICE, GATEWAY_INSIDE, Lab, Options, Party};
use crate::{child, workspace};
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::path::Path;

/// Devices that the benchmark has.
const DEVICES: u32 = 100_000;
/// The prefix of their addresses, all of which are local at the device's end of the lab.
const PREFIX: &str = "10.128.0.0/15";

/// Registers and refreshes devices, prints and gives the figures.
///
/// # Errors
///
/// When something doesn't build, or a device was lost.
pub(super) fn run(in_short: bool) -> Result<Vec<Row>> {
    let push_ctl = workspace::build_push_ctl()?;
    let devices = if in_short { DEVICES / 10 } else { DEVICES };
    let lab = lab_for("push-bench", &push_ctl, devices)?;
    println!("bench: control: {devices} devices, 256 waiting for answers at the same time");
    let summary = measure(&lab, &push_ctl, devices)?;
    lab.down()?;
    let mut rows = Vec::new();
    for request in summary["requests"].as_array().into_iter().flatten() {
        let name = request["request"].as_str().unwrap_or_default();
        for (metric, key, unit) in [
            ("rate", "per_second", "1/s"),
            ("half took longer", "p50_ms", "ms"),
            ("1 % took longer", "p99_ms", "ms"),
            ("0.1 % took longer", "p99_9_ms", "ms"),
            ("lost", "lost", "requests"),
            ("messages sent again", "retransmissions", "messages"),
        ] {
            let figure = request[key].as_f64().with_context(|| format!("no {key}"))?;
            println!("    {name:9} {metric:20} {figure:>10.1} {unit}");
            let figure = Some(Figure::Once(figure));
            rows.push(Row::new(Suite::Control, name, metric, figure, unit));
        }
    }
    rows.extend(validations::run(&push_ctl, devices / 10)?);
    rows.extend(restart::run(&push_ctl)?);
    let (loaded, _) = super::run_suite("load", in_short)?;
    let batches = loaded.iter().find(|row| row.name == "in batches");
    let loaded_per_s = batches.and_then(|row| row.value);
    rows.extend(loaded);
    if !in_short {
        let loaded_per_s = loaded_per_s.context("batches have not been measured")?;
        rows.extend(million::run(&push_ctl, loaded_per_s)?);
    }
    Ok(rows)
}

/// A lab in which there can be this many devices.
///
/// # Errors
///
/// As [`Lab::up`] has them.
pub fn lab_for(prefix: &str, push_ctl: &Path, devices: u32) -> Result<Lab> {
    let lab = Lab::up(&Options {
        config: Config {
            slots: devices.next_power_of_two(),
            ..Config::default()
        },
        ..Options::new(prefix, push_ctl)
    })?;
    let [device, _] = DEVICE;
    let local = ["route", "add", "local", PREFIX, "dev", "lo"];
    child::output(lab.exec_in(Party::Device, "ip").args(local))?;
    let route = ["route", "add", PREFIX, "via", device];
    child::output(lab.exec_in(Party::Gateway, "ip").args(route))?;
    Ok(lab)
}

/// Registers and refreshes devices; gives what `push-ctl emulate device` has to say of it.
///
/// # Errors
///
/// When a request wasn't answered, or the controller doesn't have all of the devices.
pub fn measure(lab: &Lab, push_ctl: &Path, devices: u32) -> Result<Value> {
    let [gateway, _] = GATEWAY_INSIDE;
    let mut command = lab.exec_in(Party::Device, push_ctl);
    command
        .args(["emulate", "device", "--json", "--summary", "--keep"])
        .args(["--gateway", &format!("{gateway}:5683"), "--from", PREFIX])
        .args(["--count", &devices.to_string(), "--lifetime", "24h"])
        .args(["--refreshes", "1", "--for", "0s"]);
    let text = child::output(&mut command)?;
    let line = text.lines().last().context("it said nothing")?;
    let summary: Value = serde_json::from_str(line)?;
    let all = Value::from(devices);
    let (register, refresh) = (&summary["requests"][0], &summary["requests"][1]);
    if register["answered"] != all || refresh["answered"] != all || summary["lost"] != 0 {
        bail!("not all of {devices} devices registered and refreshed: {summary}");
    }
    let status = lab.push_ctl_json(&["status"])?;
    if status["store"]["terminals"] != all {
        bail!(
            "the controller has {} terminals, not {devices}",
            status["store"]["terminals"]
        );
    }
    Ok(summary)
}
