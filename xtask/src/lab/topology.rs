use super::{
    APPLICATION, DEVICE, GATEWAY_CAMERAS, GATEWAY_INSIDE, GATEWAY_METERS, GATEWAY_OUTSIDE, Names,
    Options, Party,
};
use crate::child;
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

/// How long links and addresses may take until they can be used.
const LIMIT: Duration = Duration::from_secs(10);

/// A link of the lab: the two parties, the NIC of each, and its addresses there.
struct Link {
    ends: [End; 2],
}

struct End {
    party: Party,
    nic: &'static str,
    /// As `ip address add` takes them, with what belongs to them.
    addresses: Vec<String>,
}

/// The links, the one to [`Party::Meter`] last.
fn links() -> [Link; 3] {
    let end = |party, nic, [v4, v6]: [&str; 2], prefix_len| End {
        party,
        nic,
        addresses: vec![format!("{v4}/{prefix_len}"), format!("{v6}/64")],
    };
    let [device_v4, _] = DEVICE;
    [
        Link {
            ends: [
                end(Party::Application, "app0", APPLICATION, 24),
                end(Party::Gateway, "gw-app", GATEWAY_OUTSIDE, 24),
            ],
        },
        Link {
            ends: [
                end(Party::Device, "dev0", DEVICE, 16),
                end(Party::Gateway, "gw-dev", GATEWAY_INSIDE, 16),
            ],
        },
        Link {
            ends: [
                End {
                    party: Party::Meter,
                    nic: "met0",
                    addresses: vec![format!("{device_v4}/16")],
                },
                End {
                    party: Party::Gateway,
                    nic: "gw-met",
                    addresses: vec![
                        // The route to the same network behind gw-dev is the better one: this one is
                        // only for what names the NIC.
                        format!("{GATEWAY_METERS}/16 metric 1000"),
                        format!("{GATEWAY_CAMERAS}/32"),
                    ],
                },
            ],
        },
    ]
}

impl Link {
    /// Whether such a lab has it.
    fn is_in(&self, options: &Options) -> bool {
        self.ends.iter().all(|end| is_in(end.party, options))
    }
}

fn is_in(party: Party, options: &Options) -> bool {
    match party {
        Party::Application | Party::Gateway | Party::Device => true,
        Party::Meter => options.realms,
    }
}

/// Makes the namespaces, and what is in them.
pub(super) fn build(names: &Names, options: &Options) -> Result<()> {
    let parties = || {
        Party::ALL
            .into_iter()
            .filter(|&party| is_in(party, options))
    };
    for party in parties() {
        child::output(child::command("ip").args(["netns", "add", &names.namespace(party)]))?;
        ip(names, party, &["link", "set", "lo", "up"])?;
        // The addresses are known to be unique, and are to be usable at once.
        sysctl(
            names,
            party,
            &["ipv6/conf/all/accept_dad", "ipv6/conf/default/accept_dad"],
            "0",
        )?;
    }
    sysctl(
        names,
        Party::Gateway,
        &["ipv4/ip_forward", "ipv6/conf/all/forwarding"],
        "1",
    )?;
    sysctl(
        names,
        Party::Gateway,
        &["ipv4/conf/all/rp_filter", "ipv4/conf/default/rp_filter"],
        "0",
    )?;
    let links: Vec<_> = links()
        .into_iter()
        .filter(|link| link.is_in(options))
        .collect();
    for link in &links {
        plug(names, link)?;
    }
    for address in &options.device_addresses {
        ip(
            names,
            Party::Device,
            &["address", "add", address, "dev", "dev0", "nodad"],
        )?;
    }
    for party in parties() {
        route(names, party)?;
    }
    wait_until_usable(names, &links)
}

/// Makes a link, and everything that goes with it.
fn plug(names: &Names, link: &Link) -> Result<()> {
    let [outer, inner] = &link.ends;
    let (outer_namespace, inner_namespace) =
        (names.namespace(outer.party), names.namespace(inner.party));
    child::output(
        child::command("ip")
            .args(["link", "add", outer.nic, "netns", &outer_namespace])
            .args(["type", "veth", "peer", "name", inner.nic])
            .args(["netns", &inner_namespace]),
    )?;
    for end in &link.ends {
        set_up(names, end)?;
    }
    Ok(())
}

/// Removes the link with this NIC of the gateway, and makes it anew: another NIC with the same name.
pub(super) fn replug(names: &Names, nic: &str) -> Result<()> {
    let links = links();
    let link = links
        .iter()
        .find(|link| link.ends[1].nic == nic)
        .with_context(|| format!("the lab has no {nic}"))?;
    ip(names, Party::Gateway, &["link", "delete", nic])?;
    plug(names, link)?;
    route(names, link.ends[0].party)?;
    wait_until_usable(names, std::slice::from_ref(link))
}

/// The party's ways to others.
fn route(names: &Names, party: Party) -> Result<()> {
    let gateways: &[&str] = match party {
        Party::Application => &GATEWAY_OUTSIDE,
        Party::Gateway => &[],
        Party::Device => &GATEWAY_INSIDE,
        Party::Meter => &[GATEWAY_METERS],
    };
    for gateway in gateways {
        ip(names, party, &["route", "add", "default", "via", gateway])?;
    }
    Ok(())
}

fn set_up(names: &Names, end: &End) -> Result<()> {
    let &End { party, nic, .. } = end;
    // A packet sent from here would otherwise carry only part of its UDP checksum, trusting a NIC to
    // do the rest, and the program would update it as if it were the whole.
    ethtool(names, party, nic, "tx", "off")?;
    if nic == "gw-app" {
        // A trigger that the program hands to the kernel, to find the next hop, has a source address of
        // the gateway's own.
        sysctl(names, party, &["ipv4/conf/gw-app/accept_local"], "1")?;
    }
    if party != Party::Gateway {
        // An XDP program can only send into a veth whose peer polls (NAPI), and GRO makes it poll.
        ethtool(names, party, nic, "gro", "on")?;
    }
    // Without a queue in front of it, a full veth drops what is sent, and the sender doesn't notice. With
    // one, from Linux 6.16 on, it tells the queue to wait, and so the sender.
    child::output(
        child::command("tc")
            .args(["-n", &names.namespace(party)])
            .args(["qdisc", "replace", "dev", nic, "root", "pfifo"]),
    )?;
    for address in &end.addresses {
        let mut arguments = vec!["address", "add", "dev", nic, "nodad"];
        arguments.extend(address.split(' '));
        ip(names, party, &arguments)?;
    }
    ip(names, party, &["link", "set", nic, "up"])
}

/// Waits until every link has a carrier and no address is tentative.
fn wait_until_usable(names: &Names, links: &[Link]) -> Result<()> {
    let started = Instant::now();
    for link in links {
        for end in &link.ends {
            while !is_usable(names, end)? {
                if started.elapsed() > LIMIT {
                    bail!(
                        "{} of {} doesn't come up",
                        end.nic,
                        names.namespace(end.party)
                    );
                }
                thread::sleep(Duration::from_millis(5));
            }
        }
    }
    Ok(())
}

fn is_usable(names: &Names, end: &End) -> Result<bool> {
    let namespace = names.namespace(end.party);
    let text = child::output(
        child::command("ip").args(["-n", &namespace, "-j", "address", "show", "dev", end.nic]),
    )?;
    let links: Value = serde_json::from_str(&text).context("`ip -j` doesn't answer in JSON")?;
    let is_up = links[0]["operstate"] == "UP";
    let tentative = |address: &Value| address["tentative"].as_bool() == Some(true);
    Ok(is_up
        && !links[0]["addr_info"]
            .as_array()
            .is_some_and(|addresses| addresses.iter().any(tentative)))
}

/// Removes whatever is there of the namespaces and links.
pub(super) fn tear_down(names: &Names) -> Result<()> {
    for party in Party::ALL {
        if !names.handle(party).exists() {
            continue;
        }
        // A namespace lives on while anything holds a socket in it; its links needn't.
        for end in links()
            .into_iter()
            .flat_map(|link| link.ends)
            .filter(|end| end.party == party)
        {
            let _ = child::finish(child::command("ip").args([
                "-n",
                &names.namespace(party),
                "link",
                "del",
                end.nic,
            ]));
        }
        child::output(child::command("ip").args(["netns", "del", &names.namespace(party)]))?;
    }
    Ok(())
}

fn ip(names: &Names, party: Party, arguments: &[&str]) -> Result<()> {
    child::output(
        child::command("ip")
            .args(["-n", &names.namespace(party)])
            .args(arguments),
    )
    .map(drop)
}

fn ethtool(names: &Names, party: Party, nic: &str, feature: &str, state: &str) -> Result<()> {
    let handle = names.handle(party);
    let mut command = child::command("nsenter");
    command
        .arg(format!("--net={}", handle.display()))
        .args(["ethtool", "-K", nic, feature, state]);
    child::output(&mut command).map(drop)
}

fn sysctl(names: &Names, party: Party, keys: &[&str], value: &str) -> Result<()> {
    let keys: Vec<_> = keys
        .iter()
        .map(|key| format!("/proc/sys/net/{key}"))
        .collect();
    names.run_in(party, || {
        keys.iter().try_for_each(|key| {
            fs::write(key, value).with_context(|| format!("cannot write {value} to {key}"))
        })
    })?
}
