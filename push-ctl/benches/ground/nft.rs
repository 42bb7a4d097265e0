//! What an operator would have nftables do: DNAT by a map from UDP ports to devices. It has no notion of sessions,
//! tags or replays; whoever may send to a port reaches the device.

use super::rig::Rig;
use super::route::{FIRST_PORT, Route, Shape, device};
use crate::gateway::{Gateway, sh};
use anyhow::{Context, Result, ensure};
use std::fmt::Write as _;
use std::io::Write as _;
use std::process::{Command, Stdio};

/// How addresses are translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Translation {
    /// By connection tracking: the map is asked for the first packet of each flow.
    Stateful,
    /// Of each packet by itself, without connection tracking.
    Stateless,
}

/// Devices of the first `count` sessions, each with a port of its own.
pub(crate) fn rig(gateway: Gateway, translation: Translation, count: u32) -> Result<Rig> {
    let mut devices = String::new();
    for slot in 1..=count {
        let port = u32::from(FIRST_PORT) + slot;
        writeln!(devices, "{port} : {},", device(Shape::Through, slot))?;
    }
    let chain = match translation {
        Translation::Stateful => {
            "type nat hook prerouting priority dstnat; ip daddr 198.51.100.1 dnat to udp dport map @terminals : 7000"
        }
        Translation::Stateless => {
            "type filter hook prerouting priority raw; ip daddr 198.51.100.1 udp dport @taken notrack ip daddr set udp dport map @terminals udp dport set 7000"
        }
    };
    let ports = format!("{}-{}", FIRST_PORT + 1, u32::from(FIRST_PORT) + count);
    let rules = format!(
        "table ip push {{\n map terminals {{ type inet_service : ipv4_addr; elements = {{ {devices} }} }}\n set taken {{ type inet_service; flags interval; elements = {{ {ports} }} }}\n chain translation {{ {chain}; }}\n}}\n"
    );
    let route = Route {
        port_by_slot: true,
        keeps_source: true,
        ..Route::of_push(Shape::Through)
    };
    Rig::around_kernel(route, gateway, || {
        // Frames come in as their headers were written: nothing is to be put together, or offered to anybody else.
        sh("sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.ext.rp_filter=0");
        load(&rules)
    })
}

fn load(rules: &str) -> Result<()> {
    let mut nft = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .context("cannot run nft")?;
    let mut input = nft.stdin.take().context("stdin was piped")?;
    input.write_all(rules.as_bytes())?;
    drop(input);
    ensure!(nft.wait()?.success(), "nft refuses the rules");
    Ok(())
}
