//! NICs, addresses, neighbours, and the kernel's switches for them.

use super::Finding;
use crate::admin::api::Status;
use crate::config::{Config, Nic, Realm};
use crate::dataplane::survey::{self, NeighbourSurvey, NicSurvey};
use std::collections::HashMap;
use std::fs;
use std::net::IpAddr;

/// IPv6 doesn't work with less.
const LEAST_MTU_BYTES: u32 = 1280;

pub(super) async fn look(config: &Config, daemon: Option<&Status>) -> Vec<Finding> {
    let mut findings = Vec::new();
    let addresses = survey::addresses().await.unwrap_or_default();
    let neighbours = survey::neighbours().await.unwrap_or_default();
    let mut mtus = Vec::new();
    for nic in &config.nic {
        let check = format!("nic:{}", nic.name);
        match survey::nic(&nic.name).await {
            Ok(Some(seen)) => {
                mtus.push((nic, seen.mtu_bytes));
                findings.push(attachment(&check, nic, &seen, config, daemon));
                findings.extend(link(&check, &seen));
                findings.extend(addresses_of(nic, &seen, &addresses));
                findings.extend(switches(nic));
            }
            Ok(None) => findings.push(Finding::fail(
                check,
                "there is no such NIC in this network namespace",
                "`ip -br link` lists them; name one in [[nic]], or look in the namespace that the daemon is to run in",
            )),
            Err(error) => findings.push(Finding::fail(
                check,
                format!("{error:#}"),
                "the kernel has to be asked by netlink; is this a sandbox?",
            )),
        }
    }
    findings.extend(mtu(&mtus));
    for realm in &config.realm {
        findings.push(routers(realm, &neighbours));
    }
    findings.extend(neighbour_tables(config, &neighbours));
    findings
}

/// If the daemon's NICs aren't there to be looked at from here.
pub(super) fn elsewhere(daemon: i32) -> Option<Finding> {
    let namespace = |process: &str| fs::read_link(format!("/proc/{process}/ns/net")).ok();
    let (theirs, ours) = (namespace(&daemon.to_string())?, namespace("self")?);
    (theirs != ours).then(|| {
        Finding::fail(
            "namespace",
            "the daemon is in another network namespace: NICs, addresses and neighbours can't be looked at from here",
            format!("nsenter --net=/proc/{daemon}/ns/net push-ctl doctor"),
        )
    })
}

/// Whether push is on the NIC, or could be.
fn attachment(
    check: &str,
    nic: &Nic,
    seen: &NicSurvey,
    config: &Config,
    daemon: Option<&Status>,
) -> Finding {
    let driver = seen.driver.as_deref().unwrap_or("unknown");
    let ours = daemon.and_then(|status| status.nics.iter().find(|own| own.name == nic.name));
    if let Some(ours) = ours {
        return match ours.mode.as_str() {
            "none" => Finding::fail(
                check,
                "the daemon's program has been detached",
                "restart the daemon: it attaches anew",
            ),
            "generic" => Finding::warn(
                check,
                format!("attached in generic mode, which is slow; driver {driver}"),
                "use a NIC whose driver has native XDP",
            ),
            mode => Finding::ok(check, format!("attached in {mode} mode; driver {driver}")),
        };
    }
    if let Some((id, mode)) = seen.program {
        let is_ours = config
            .pin_dir
            .join(format!("link_{}", nic.name.replace('.', "%")))
            .exists();
        return if is_ours {
            Finding::ok(
                check,
                format!(
                    "the program of an earlier run is attached in {mode} mode and goes on delivering; driver {driver}"
                ),
            )
        } else {
            Finding::fail(
                check,
                format!("another XDP program, id {id}, is attached to it"),
                format!(
                    "ip link set dev {} xdp off  # or remove the pin of its link",
                    nic.name
                ),
            )
        };
    }
    match seen.xdp {
        Some(features) if features.is_native() => Finding::ok(
            check,
            format!("native XDP by driver {driver}; not attached"),
        ),
        Some(_) if config.data_plane.allow_generic => Finding::warn(
            check,
            format!("driver {driver} has no native XDP; generic mode, which is slow, is allowed"),
            "use a NIC whose driver has native XDP",
        ),
        Some(_) => Finding::fail(
            check,
            format!("driver {driver} has no native XDP"),
            "use another NIC, or set data_plane.allow_generic = true to do without, at a fraction of the speed",
        ),
        None => Finding::ok(
            check,
            format!(
                "not attached; driver {driver}; this kernel doesn't tell whether it has native XDP"
            ),
        ),
    }
}

fn link(check: &str, seen: &NicSurvey) -> Vec<Finding> {
    let mut findings = Vec::new();
    let name = check.trim_start_matches("nic:");
    if !seen.is_up {
        findings.push(Finding::fail(
            format!("link:{name}"),
            "down, or without a carrier",
            format!("ip link set dev {name} up  # and look at the cable"),
        ));
    }
    if seen.merges {
        findings.push(Finding::warn(
            format!("lro:{name}"),
            "packets are merged as they come in (LRO), which XDP doesn't go with",
            format!("ethtool -K {name} lro off"),
        ));
    }
    if seen.mtu_bytes < LEAST_MTU_BYTES {
        findings.push(Finding::warn(
            format!("mtu:{name}"),
            format!("{} bytes are too few for IPv6", seen.mtu_bytes),
            format!("ip link set dev {name} mtu 1500"),
        ));
    }
    if let Some(features) = seen.xdp.filter(|features| features.is_native())
        && !features.redirects()
    {
        findings.push(Finding::warn(
            format!("redirect:{name}"),
            "its driver can't redirect: devices behind other NICs aren't reached from here",
            "give the NIC role \"both\" and devices behind it, or use another NIC",
        ));
    }
    findings
}

/// Trigger addresses have to be addresses of the NIC, or else nobody answers when they are asked for.
fn addresses_of(
    nic: &Nic,
    seen: &NicSurvey,
    addresses: &HashMap<u32, Vec<IpAddr>>,
) -> Option<Finding> {
    let own = addresses.get(&seen.index).map_or(&[][..], Vec::as_slice);
    let missing = nic
        .trigger_addresses
        .iter()
        .find(|address| !own.contains(address))?;
    Some(Finding::warn(
        format!("address:{}", nic.name),
        format!(
            "trigger address {missing} is not an address of {}",
            nic.name
        ),
        format!(
            "ip address add {missing} dev {}  # unless it is routed here",
            nic.name
        ),
    ))
}

fn switches(nic: &Nic) -> Vec<Finding> {
    let mut findings: Vec<_> = survey::switches(&nic.into())
        .into_iter()
        .map(|switch| Finding::warn(format!("sysctl:{}", nic.name), switch.why, switch.fix))
        .collect();
    if nic.ipv4().is_some() && reverse_path_filter(&nic.name) == Some(1) {
        findings.push(Finding::warn(
            format!("sysctl:{}", nic.name),
            "strict reverse path filtering drops IPv4 triggers to a device whose next hop isn't known yet",
            format!("sysctl -w net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.{}.rp_filter=2", nic.name.replace('.', "/")),
        ));
    }
    if findings.is_empty() && !nic.trigger_addresses.is_empty() {
        findings.push(Finding::ok(
            format!("sysctl:{}", nic.name),
            "forwards what the kernel is handed",
        ));
    }
    findings
}

/// As the kernel takes it: the larger one of two.
fn reverse_path_filter(nic: &str) -> Option<u8> {
    let read = |name: &str| -> Option<u8> {
        let path = format!("/proc/sys/net/ipv4/conf/{name}/rp_filter");
        fs::read_to_string(path).ok()?.trim().parse().ok()
    };
    Some(read("all")?.max(read(nic)?))
}

/// A trigger has to fit through the NIC that it leaves by.
fn mtu(nics: &[(&Nic, u32)]) -> Option<Finding> {
    let into = nics.iter().filter(|(nic, _)| nic.role.takes_triggers());
    let largest = into.map(|(_, mtu_bytes)| *mtu_bytes).max()?;
    let (nic, smallest) = nics
        .iter()
        .filter(|(nic, _)| nic.role.takes_acks())
        .min_by_key(|(_, mtu_bytes)| *mtu_bytes)?;
    Some(if *smallest < largest {
        Finding::warn(
            "mtu",
            format!(
                "triggers of up to {largest} bytes come in, and {} takes {smallest}: longer ones are dropped",
                nic.name
            ),
            format!(
                "ip link set dev {} mtu {largest}  # or limit payloads: push-ctl app set NAME --max-payload BYTES",
                nic.name
            ),
        )
    } else {
        Finding::ok(
            "mtu",
            format!("what comes in, up to {largest} bytes, fits out"),
        )
    })
}

fn routers(realm: &Realm, neighbours: &[NeighbourSurvey]) -> Finding {
    let check = format!("realm:{}", realm.name);
    let Ok(index) = nix::net::if_::if_nametoindex(realm.interface.as_str()) else {
        return Finding::fail(
            check,
            format!("its interface {} isn't there", realm.interface),
            "`ip -br link` lists them; set interface in [[realm]]",
        );
    };
    let silent = realm.next_hop.iter().find(|router| {
        neighbours
            .iter()
            .any(|seen| seen.address == **router && seen.nic == index && seen.is_silent)
    });
    match silent {
        Some(router) => Finding::warn(
            check,
            format!("router {router} doesn't answer on {}", realm.interface),
            "see to the router, or set next_hop in [[realm]]",
        ),
        None => Finding::ok(check, format!("reached by {}", realm.interface)),
    }
}

/// Where the kernel tells how large they may get: not in network namespaces.
fn neighbour_tables(config: &Config, neighbours: &[NeighbourSurvey]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (family, is_v6) in [("ipv4", false), ("ipv6", true)] {
        let path = format!("/proc/sys/net/{family}/neigh/default/gc_thresh3");
        let limit = fs::read_to_string(path).ok();
        let Some(limit) = limit.and_then(|text| text.trim().parse::<usize>().ok()) else {
            continue;
        };
        let count = neighbours
            .iter()
            .filter(|neighbour| neighbour.address.is_ipv6() == is_v6)
            .count();
        let slots = usize::try_from(config.sessions.slots).unwrap_or(usize::MAX);
        let check = format!("neighbours:{family}");
        let fix = |limit: usize| {
            format!(
                "sysctl -w net.{family}.neigh.default.gc_thresh3={limit} net.{family}.neigh.default.gc_thresh2={}",
                limit / 2
            )
        };
        findings.push(if count.saturating_mul(10) > limit.saturating_mul(9) {
            Finding::fail(
                check,
                format!("{count} neighbours of {limit} that there is room for: some devices aren't reached"),
                fix(slots.max(count * 2)),
            )
        } else if slots > limit {
            Finding::warn(
                check,
                format!("{count} neighbours, room for {limit}, and sessions.slots is {slots}: too few, unless most devices are behind routers"),
                fix(slots),
            )
        } else {
            Finding::ok(check, format!("{count} neighbours, room for {limit}"))
        });
    }
    findings
}
