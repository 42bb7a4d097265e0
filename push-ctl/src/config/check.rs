//! Whether the values of a configuration make sense.

use super::{Audit, Config, External, Nic, Realm, Role};
use push_common::maps::MAX_NICS;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::Path;
use std::time::Duration;

/// Slots that a table can have: 8 GiB of records.
const MAX_SLOTS: u32 = 1 << 26;

/// Longest lifetime: well below what the data plane can count.
const MAX_LIFETIME: Duration = Duration::from_hours(24 * 365);

/// Realms that there can be.
const MAX_REALMS: usize = 255;

/// How long a session can be without a delivery before it counts as idle.
const IDLE_AFTER: RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_hours(24 * 365);

/// Least length of a file of the audit log, so that it isn't for ever begun anew.
const MIN_AUDIT_BYTES: u64 = 65_536;

/// How many files of the audit log can be kept.
const AUDIT_KEEP: RangeInclusive<u32> = 1..=1000;

/// Longest path of a unix socket (`sun_path` without the NUL).
const MAX_SOCKET_PATH_BYTES: usize = 107;

/// Longest name of a NIC (`IFNAMSIZ` without the NUL).
const MAX_NIC_NAME_BYTES: usize = 15;

/// Something in a configuration makes no sense.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where, as in `nic.eth1.role`.
    pub key: String,
    /// What is wrong with it, and what to write instead.
    pub what: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, self.what)
    }
}

/// All that makes no sense in a configuration; at least one problem.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct CheckError(pub Vec<Problem>);

impl fmt::Display for CheckError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, problem) in self.0.iter().enumerate() {
            write!(f, "{}{problem}", if n == 0 { "" } else { "; " })?;
        }
        Ok(())
    }
}

#[derive(Default)]
struct Problems(Vec<Problem>);

impl Problems {
    fn add(&mut self, key: impl Into<String>, what: impl Into<String>) {
        self.0.push(Problem {
            key: key.into(),
            what: what.into(),
        });
    }
}

impl Config {
    /// Whether the values make sense. What only the kernel knows, as which NICs there are, is not looked at.
    ///
    /// # Errors
    ///
    /// Everything that makes no sense.
    pub fn check(&self) -> Result<(), CheckError> {
        let mut problems = Problems::default();
        self.check_paths(&mut problems);
        self.check_sessions(&mut problems);
        if self.triggers.port == 0 {
            problems.add(
                "triggers.port",
                "0 is no port; write one between 1 and 65535",
            );
        }
        self.check_nics(&mut problems);
        self.check_data_plane(&mut problems);
        check_listen("internal.listen", &self.internal.listen, &mut problems);
        self.check_coaps(&mut problems);
        self.check_realms(&mut problems);
        let ours = "of this machine";
        check_one_per_version("gtpu.local", &self.gtpu.local, ours, &mut problems);
        check_listen("external.listen", &self.external.listen, &mut problems);
        check_certificate(&self.external, &mut problems);
        if let Some(ca) = &self.monitoring.ca {
            check_absolute("monitoring.ca", ca, &mut problems);
        }
        self.check_audit(&mut problems);
        if !self.metrics.listen.is_empty() {
            check_listen("metrics.listen", &self.metrics.listen, &mut problems);
        }
        if problems.0.is_empty() {
            Ok(())
        } else {
            Err(CheckError(problems.0))
        }
    }

    fn check_paths(&self, problems: &mut Problems) {
        let paths = [
            ("state_dir", &self.state_dir),
            ("pin_dir", &self.pin_dir),
            ("admin_socket", &self.admin_socket),
            ("audit.file", &self.audit_file()),
        ];
        for (key, path) in paths {
            check_absolute(key, path, problems);
        }
        if let Some(path) = &self.state_key_file {
            check_absolute("state_key_file", path, problems);
        }
        let socket_bytes = self.admin_socket.as_os_str().len();
        if socket_bytes > MAX_SOCKET_PATH_BYTES {
            let what = format!(
                "is {socket_bytes} bytes long; a socket's path has {MAX_SOCKET_PATH_BYTES} at most"
            );
            problems.add("admin_socket", what);
        }
    }

    fn check_audit(&self, problems: &mut Problems) {
        let Audit {
            max_bytes, keep, ..
        } = self.audit;
        if max_bytes < MIN_AUDIT_BYTES {
            let what = format!("{max_bytes} is too little; write at least {MIN_AUDIT_BYTES}");
            problems.add("audit.max_bytes", what);
        }
        if !AUDIT_KEEP.contains(&keep) {
            let (least, most) = (AUDIT_KEEP.start(), AUDIT_KEEP.end());
            problems.add(
                "audit.keep",
                format!("{keep} is not between {least} and {most}"),
            );
        }
    }

    fn check_sessions(&self, problems: &mut Problems) {
        let sessions = &self.sessions;
        if !(1..=MAX_SLOTS).contains(&sessions.slots) {
            problems.add(
                "sessions.slots",
                format!("{} is not between 1 and {MAX_SLOTS}", sessions.slots),
            );
        }
        let lifetimes = [
            ("sessions.default_lifetime", sessions.default_lifetime),
            ("sessions.max_lifetime", sessions.max_lifetime),
        ];
        for (key, lifetime) in lifetimes {
            if lifetime.subsec_nanos() != 0 || lifetime.is_zero() || lifetime > MAX_LIFETIME {
                let text = humantime::format_duration(lifetime);
                problems.add(
                    key,
                    format!("`{text}` is not a number of whole seconds from 1s to 365d"),
                );
            }
        }
        if sessions.per_terminal == 0 {
            problems.add(
                "sessions.per_terminal",
                "0 lets no device have a session; write 1 or more",
            );
        }
        if sessions.default_lifetime > sessions.max_lifetime {
            let max = humantime::format_duration(sessions.max_lifetime);
            let what = format!("is longer than sessions.max_lifetime; write `{max}` or less");
            problems.add("sessions.default_lifetime", what);
        }
    }

    fn check_data_plane(&self, problems: &mut Problems) {
        let idle_after = self.data_plane.idle_after;
        if let Some(time) = idle_after.filter(|time| !IDLE_AFTER.contains(time)) {
            let text = humantime::format_duration(time);
            let what = format!("`{text}` is neither from 1s to 365d nor `0s` for never");
            problems.add("data_plane.idle_after", what);
        }
        if self.data_plane.log_level.is_some() && !cfg!(feature = "log") {
            problems.add(
                "data_plane.log_level",
                "this push-ctl was built without the feature `log`; leave it out",
            );
        }
    }

    fn check_coaps(&self, problems: &mut Problems) {
        let internal = &self.internal;
        let key = "internal.coaps_listen";
        if internal.coaps_listen.is_empty() {
            if internal.coaps_keys.is_some() {
                let what = "is of no use without internal.coaps_listen; leave it out";
                problems.add("internal.coaps_keys", what);
            }
            return;
        }
        if !cfg!(feature = "coaps") {
            let what = "this push-ctl was built without the feature `coaps`; leave it out";
            problems.add(key, what);
        }
        check_listen(key, &internal.coaps_listen, problems);
        for address in &internal.coaps_listen {
            if internal.listen.contains(address) {
                let what = format!("{address} is in internal.listen, too; give it another port");
                problems.add(key, what);
            }
        }
        match &internal.coaps_keys {
            Some(path) if path.is_absolute() => {}
            Some(path) => {
                let path = path.display();
                let what = format!("`{path}` is not an absolute path; begin it with /");
                problems.add("internal.coaps_keys", what);
            }
            None => problems.add(
                "internal.coaps_keys",
                "is missing; internal.coaps_listen needs a file with the keys of devices",
            ),
        }
    }

    fn check_realms(&self, problems: &mut Problems) {
        let mut names = HashSet::new();
        let mut taken = HashMap::new();
        for realm in &self.realm {
            let name = &realm.name;
            check_realm(realm, problems);
            if !names.insert(name) {
                let what = "is there twice; give each realm a name of its own";
                problems.add(format!("realm.{name}"), what);
                continue;
            }
            let key = format!("realm.{name}.listen");
            for address in &realm.listen {
                if self.internal.listen.contains(address) {
                    let what = format!(
                        "{address} is in internal.listen, too; give one of them another address or port"
                    );
                    problems.add(&key, what);
                }
                let interface = realm.interface.as_str();
                if let Some(other) = taken.insert((interface, *address), name)
                    && other != name
                {
                    let what = format!(
                        "realm {other} listens on {address} of {interface}, too; give one of them another interface, address or port"
                    );
                    problems.add(&key, what);
                }
            }
        }
        if self.realm.len() > MAX_REALMS {
            problems.add(
                "realm",
                format!(
                    "there are {} sections; {MAX_REALMS} is the most",
                    self.realm.len()
                ),
            );
        }
    }

    /// Where devices register, with the key that says so.
    fn listens(&self) -> impl Iterator<Item = (String, &[SocketAddr])> {
        let realms = self
            .realm
            .iter()
            .map(|realm| (format!("realm.{}.listen", realm.name), &*realm.listen));
        let internal = &self.internal;
        [
            ("internal.listen".to_owned(), &*internal.listen),
            ("internal.coaps_listen".to_owned(), &*internal.coaps_listen),
        ]
        .into_iter()
        .chain(realms)
    }

    fn check_nics(&self, problems: &mut Problems) {
        let mut names = HashSet::new();
        for nic in &self.nic {
            check_nic(nic, problems);
            if !names.insert(&nic.name) {
                problems.add(
                    format!("nic.{}", nic.name),
                    "is there twice; give one NIC one section, with role \"both\" if need be",
                );
            }
            for address in &nic.trigger_addresses {
                let trigger_address = SocketAddr::new(*address, self.triggers.port);
                for (key, _) in self
                    .listens()
                    .filter(|(_, listen)| listen.contains(&trigger_address))
                {
                    let what = format!(
                        "{address} with triggers.port is in {key}, too; give one of them another port"
                    );
                    problems.add(format!("nic.{}.trigger_addresses", nic.name), what);
                }
            }
        }
        if self.nic.len() > MAX_NICS as usize {
            problems.add(
                "nic",
                format!(
                    "there are {} sections; {MAX_NICS} is the most",
                    self.nic.len()
                ),
            );
        }
        if !self.nic.iter().any(|nic| nic.role.takes_triggers()) {
            problems.add(
                "nic",
                "no NIC takes triggers; add a [[nic]] with role \"external\" or \"both\"",
            );
        }
    }
}

fn check_nic(nic: &Nic, problems: &mut Problems) {
    let name = &nic.name;
    check_interface("nic.name", name, problems);
    let key = format!("nic.{name}.trigger_addresses");
    match nic.role {
        Role::External | Role::Both if nic.trigger_addresses.is_empty() => {
            problems.add(&key, "is missing; write to which addresses of this NIC triggers are sent, or give it role \"internal\"");
        }
        Role::Internal if !nic.trigger_addresses.is_empty() => {
            problems.add(&key, "role \"internal\" takes no triggers; remove the addresses, or give it role \"both\"");
        }
        Role::External | Role::Both | Role::Internal => {}
    }
    let ours = "of this machine";
    check_one_per_version(&key, &nic.trigger_addresses, ours, problems);
}

fn check_realm(realm: &Realm, problems: &mut Problems) {
    let name = &realm.name;
    let key = |key: &str| format!("realm.{name}.{key}");
    check_interface(&key("interface"), &realm.interface, problems);
    check_one_per_version(&key("next_hop"), &realm.next_hop, "of a router", problems);
    if realm.router_mac.is_none() && !realm.vlan.is_empty() {
        problems.add(
            key("vlan"),
            "needs router_mac, as the kernel can't ask for addresses in a VLAN that it doesn't know; or make a VLAN interface, and write that as interface",
        );
    }
    if realm.vlan.len() > 2 {
        problems.add(key("vlan"), "has more than 2 identifiers; write fewer");
    }
    for id in &realm.vlan {
        if !(1..=4094).contains(id) {
            problems.add(
                key("vlan"),
                format!("{id} is no VLAN; write a number from 1 to 4094"),
            );
        }
    }
    check_listen(&key("listen"), &realm.listen, problems);
}

fn check_interface(key: &str, name: &str, problems: &mut Problems) {
    if name.is_empty()
        || name.len() > MAX_NIC_NAME_BYTES
        || name.contains(|c: char| c == '/' || c.is_whitespace())
    {
        problems.add(
            key,
            format!("`{name}` can't be the name of a NIC; `ip link` shows which there are"),
        );
    }
}

/// Single addresses, one per IP version at most.
fn check_one_per_version(key: &str, addresses: &[IpAddr], whose: &str, problems: &mut Problems) {
    for address in addresses {
        if let Err(why) = single_address(*address, whose) {
            problems.add(key, why);
        }
    }
    let v4 = addresses.iter().filter(|address| address.is_ipv4()).count();
    let v6 = addresses.len() - v4;
    for (version, count) in [("IPv4", v4), ("IPv6", v6)] {
        if count > 1 {
            let what = format!("has {count} {version} addresses; there can be one per IP version");
            problems.add(key, what);
        }
    }
}

fn check_listen(key: &str, listen: &[SocketAddr], problems: &mut Problems) {
    if listen.is_empty() {
        problems.add(key, "is empty; write at least one address and port");
    }
    let mut seen = HashSet::new();
    for address in listen {
        if let Err(why) = single_address(address.ip(), "of this machine") {
            problems.add(key, why);
        }
        if address.port() == 0 {
            problems.add(
                key,
                format!("{address} has port 0; write one that others can know"),
            );
        }
        if !seen.insert(address) {
            problems.add(key, format!("{address} is there twice; write it once"));
        }
    }
}

/// `whose` says what it is an address of.
fn single_address(address: IpAddr, whose: &str) -> Result<(), String> {
    if address.is_unspecified() {
        return Err(format!(
            "{address} stands for any address; write a single one {whose}"
        ));
    }
    if address.is_multicast() || address == IpAddr::from([255; 4]) {
        return Err(format!(
            "{address} stands for many machines; write a single address {whose}"
        ));
    }
    match address {
        IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
            Some(v4) => Err(format!("{v6} is an IPv4 address in disguise; write {v4}")),
            None => Ok(()),
        },
        IpAddr::V4(_) => Ok(()),
    }
}

fn check_absolute(key: &str, path: &Path, problems: &mut Problems) {
    if !path.is_absolute() {
        let what = format!(
            "`{}` is not an absolute path; begin it with /",
            path.display()
        );
        problems.add(key, what);
    }
}

fn check_certificate(external: &External, problems: &mut Problems) {
    let both_or_none = "come together; write both, or neither for a self-signed pair";
    match (&external.certificate, &external.private_key) {
        (Some(certificate), Some(key)) => {
            for (name, path) in [
                ("external.certificate", certificate),
                ("external.private_key", key),
            ] {
                check_absolute(name, path, problems);
            }
        }
        (None, None) => {}
        (Some(_), None) => problems.add(
            "external.private_key",
            format!("is missing: it and external.certificate {both_or_none}"),
        ),
        (None, Some(_)) => problems.add(
            "external.certificate",
            format!("is missing: it and external.private_key {both_or_none}"),
        ),
    }
}
