//! How many tokens application servers can have validated per second, over HTTPS, by curl.

use super::million::Rows;
use super::{PREFIX, lab_for};
use crate::bench::Row;
use crate::child;
use crate::clients::Clients;
use crate::lab::{GATEWAY_INSIDE, GATEWAY_OUTSIDE, Lab, Party};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::time::Instant;

/// How many requests wait for answers at the same time, each on a connection of its own that is kept.
const AT_ONCE: u32 = 32;

/// Registers devices, each with a session, and validates all of them, each once; prints and gives the figures.
pub(super) fn run(push_ctl: &Path, devices: u32) -> Result<Vec<Row>> {
    let lab = lab_for("push-bench-https", push_ctl, devices)?;
    println!("bench: control: {devices} tokens, validated over HTTPS, {AT_ONCE} at the same time");
    let header = Clients::new(&lab, &|_| ())?.add_app("mail")?;
    let tokens = tokens(&lab, push_ctl, devices)?;
    let script = lab.folder().join("validations.curl");
    fs::write(&script, requests(&lab, &header, &tokens)?)?;

    let mut command = lab.exec_in(Party::Application, "curl");
    command.args(["--parallel", "--parallel-immediate", "--no-progress-meter"]);
    command
        .args(["--parallel-max", &AT_ONCE.to_string(), "--config"])
        .arg(&script);
    let begun = Instant::now();
    let text = child::output(&mut command)?;
    let taken_s = begun.elapsed().as_secs_f64();
    let mut times_ms = Vec::new();
    for line in text.lines().filter_map(|line| line.strip_prefix("done: ")) {
        let (status, seconds) = line.split_once(' ').context("no time")?;
        ensure!(status == "200", "a token was refused: {status}");
        times_ms.push(seconds.parse::<f64>()? * 1e3);
    }
    ensure!(
        times_ms.len() == tokens.len(),
        "{} of {devices} tokens were validated",
        times_ms.len()
    );
    let authorised = &lab.push_ctl_json(&["status"])?["sessions"]["authorised"];
    ensure!(
        *authorised == devices,
        "{authorised} sessions are authorised, not {devices}"
    );
    lab.down()?;

    times_ms.sort_unstable_by(f64::total_cmp);
    let after = |part: f64| {
        times_ms
            .get((times_ms.len() as f64 * part) as usize)
            .copied()
    };
    let mut rows = Rows::default();
    rows.add(
        "validate",
        "rate",
        f64::from(devices) / taken_s,
        "1/s",
        None,
    );
    for (metric, part) in [("half took longer", 0.5), ("1 % took longer", 0.99)] {
        let time_ms = after(part).context("there was a request")?;
        rows.add("validate", metric, time_ms, "ms", None);
    }
    Ok(rows.0)
}

/// Sessions and their tokens, as devices got them.
fn tokens(lab: &Lab, push_ctl: &Path, devices: u32) -> Result<Vec<(String, String)>> {
    let [gateway, _] = GATEWAY_INSIDE;
    let file = lab.folder().join("tokens.jsonl");
    let mut command = lab.exec_in(Party::Device, push_ctl);
    command
        .args(["emulate", "device", "--summary", "--keep", "--for", "0s"])
        .args(["--gateway", &format!("{gateway}:5683"), "--from", PREFIX])
        .args(["--count", &devices.to_string(), "--lifetime", "24h"])
        .args(["--app", "mail", "--tokens"])
        .arg(&file);
    child::output(&mut command)?;
    let text = fs::read_to_string(&file)?;
    let each = text.lines().map(|line| {
        let line: Value = serde_json::from_str(line)?;
        let field = |name: &str| line[name].as_str().map(str::to_owned);
        let pair = field("session_id").zip(field("token"));
        pair.with_context(|| format!("a line of {} isn't one", file.display()))
    });
    each.collect()
}

/// What curl is to do, in its own words.
fn requests(lab: &Lab, header: &Path, tokens: &[(String, String)]) -> Result<String> {
    let [gateway, _] = GATEWAY_OUTSIDE;
    let (header, certificate) = (header.display(), lab.certificate_path());
    let certificate = certificate.display();
    let mut text = String::new();
    for (session, token) in tokens {
        if !text.is_empty() {
            text += "next\n";
        }
        writeln!(
            text,
            "url = \"https://{gateway}:8443/v1/sessions/{session}/validate\"\n\
             header = \"@{header}\"\n\
             json = \"{{\\\"token\\\":\\\"{token}\\\"}}\"\n\
             cacert = \"{certificate}\"\n\
             output = \"/dev/null\"\n\
             write-out = \"done: %{{http_code}} %{{time_total}}\\n\"",
        )?;
    }
    Ok(text)
}
