//! What is different between two configurations, and what of it can change while the daemon runs.

use super::{
    Audit, Config, DataPlane, External, Gtpu, Internal, Metrics, Monitoring, Nic, Realm, Sessions,
    Triggers,
};
use crate::dataplane;
use std::collections::BTreeSet;
use std::fmt::{self, Debug};
use std::path::PathBuf;
use std::time::Duration;

/// A key that has another value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// As in `nic.eth1`.
    pub key: String,
    /// What it was; none if it wasn't there.
    pub before: Option<String>,
    /// What it is to be; none if it isn't there any more.
    pub after: Option<String>,
    /// Whether only a start of the daemon can change it.
    pub needs_restart: bool,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |value: &Option<String>| value.clone().unwrap_or_else(|| "nothing".to_owned());
        let (before, after) = (text(&self.before), text(&self.after));
        write!(f, "{}: {before} became {after}", self.key)
    }
}

/// All that is different.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Key by key, in the order of the file.
    pub keys: Vec<Change>,
    /// Those that the data plane applies.
    pub data_plane: dataplane::Reconfiguration,
    /// Whether one of the limits of sessions is different that can change at run time.
    pub limits: bool,
}

impl Changes {
    /// From one configuration to another one.
    #[must_use]
    pub fn between(before: &Config, after: &Config) -> Self {
        let mut changes = Self::default();
        // Whoever adds a key decides here whether it takes a restart.
        let Config {
            path: _,
            state_dir,
            state_key_file,
            pin_dir,
            admin_socket,
            sessions,
            triggers,
            data_plane,
            nic,
            internal,
            realm,
            gtpu,
            external,
            audit,
            metrics,
            monitoring,
        } = before;
        changes.restart("state_dir", state_dir, &after.state_dir, path);
        changes.restart(
            "state_key_file",
            state_key_file,
            &after.state_key_file,
            optional_path,
        );
        changes.restart("pin_dir", pin_dir, &after.pin_dir, path);
        changes.restart("admin_socket", admin_socket, &after.admin_socket, path);
        changes.sessions(sessions, &after.sessions);
        changes.triggers(triggers, &after.triggers);
        changes.data_plane(data_plane, &after.data_plane);
        changes.nics(nic, &after.nic);
        changes.internal(internal, &after.internal);
        changes.realms(realm, &after.realm);
        let Gtpu { local } = gtpu;
        changes.restart("gtpu.local", local, &after.gtpu.local, list);
        changes.external(external, &after.external);
        let Audit {
            file,
            max_bytes,
            keep,
        } = audit;
        changes.restart("audit.file", file, &after.audit.file, debug);
        changes.restart(
            "audit.max_bytes",
            max_bytes,
            &after.audit.max_bytes,
            u64::to_string,
        );
        changes.restart("audit.keep", keep, &after.audit.keep, u32::to_string);
        let Metrics { listen } = metrics;
        changes.restart("metrics.listen", listen, &after.metrics.listen, list);
        let Monitoring { ca } = monitoring;
        changes.restart("monitoring.ca", ca, &after.monitoring.ca, optional_path);
        changes
    }

    /// Keys that only a start of the daemon can change.
    pub fn that_need_a_restart(&self) -> impl Iterator<Item = &str> {
        let keys = self.keys.iter().filter(|change| change.needs_restart);
        keys.map(|change| &*change.key)
    }

    fn sessions(&mut self, before: &Sessions, after: &Sessions) {
        let Sessions {
            slots,
            default_lifetime,
            max_lifetime,
            per_terminal,
            triggers_per_second_per_terminal,
            rotation_overlap,
        } = before;
        self.restart("sessions.slots", slots, &after.slots, u32::to_string);
        let times = [
            (
                "sessions.default_lifetime",
                default_lifetime,
                &after.default_lifetime,
            ),
            ("sessions.max_lifetime", max_lifetime, &after.max_lifetime),
            (
                "sessions.rotation_overlap",
                rotation_overlap,
                &after.rotation_overlap,
            ),
        ];
        for (key, before, after) in times {
            self.limits |= self.live(key, before, after, time);
        }
        let key = "sessions.per_terminal";
        self.limits |= self.live(key, per_terminal, &after.per_terminal, u32::to_string);
        self.limits |= self.live(
            "sessions.triggers_per_second_per_terminal",
            triggers_per_second_per_terminal,
            &after.triggers_per_second_per_terminal,
            |limit| limit.map_or_else(|| "none".to_owned(), |limit| limit.to_string()),
        );
    }

    fn triggers(&mut self, before: &Triggers, after: &Triggers) {
        let Triggers { port, keep_source } = before;
        self.restart("triggers.port", port, &after.port, u16::to_string);
        let key = "triggers.keep_source";
        self.restart(key, keep_source, &after.keep_source, bool::to_string);
    }

    fn data_plane(&mut self, before: &DataPlane, after: &DataPlane) {
        let DataPlane {
            allow_generic,
            require_perfmon,
            idle_after,
            log_level,
        } = before;
        let (generic, perfmon) = ("data_plane.allow_generic", "data_plane.require_perfmon");
        self.restart(
            generic,
            allow_generic,
            &after.allow_generic,
            bool::to_string,
        );
        self.restart(
            perfmon,
            require_perfmon,
            &after.require_perfmon,
            bool::to_string,
        );
        let text = |idle_after: &Option<Duration>| time(&idle_after.unwrap_or_default());
        if self.live("data_plane.idle_after", idle_after, &after.idle_after, text) {
            self.data_plane.idle_after = Some(after.idle_after);
        }
        self.restart("data_plane.log_level", log_level, &after.log_level, debug);
    }

    fn nics(&mut self, before: &[Nic], after: &[Nic]) {
        let names: BTreeSet<_> = before.iter().chain(after).map(|nic| &nic.name).collect();
        for name in names {
            let of = |nics: &[Nic]| nics.iter().find(|nic| nic.name == *name).cloned();
            let (before, after) = (of(before), of(after));
            // The order of its addresses makes no difference.
            let like = |nic: &Option<Nic>| nic.as_ref().map(dataplane::Nic::from);
            if like(&before) == like(&after) {
                continue;
            }
            self.keys.push(Change {
                key: format!("nic.{name}"),
                before: before.as_ref().map(nic_text),
                after: after.as_ref().map(nic_text),
                needs_restart: false,
            });
            match after {
                Some(nic) => self.data_plane.nics.push((&nic).into()),
                None => self.data_plane.gone.push(name.clone()),
            }
        }
    }

    fn internal(&mut self, before: &Internal, after: &Internal) {
        let Internal {
            listen,
            coaps_listen,
            coaps_keys,
        } = before;
        self.restart("internal.listen", listen, &after.listen, list);
        let key = "internal.coaps_listen";
        self.restart(key, coaps_listen, &after.coaps_listen, list);
        let key = "internal.coaps_keys";
        self.restart(key, coaps_keys, &after.coaps_keys, debug);
    }

    fn realms(&mut self, before: &[Realm], after: &[Realm]) {
        let names: BTreeSet<_> = before
            .iter()
            .chain(after)
            .map(|realm| &realm.name)
            .collect();
        for name in names {
            let of = |realms: &[Realm]| realms.iter().find(|realm| realm.name == *name).cloned();
            let text = |realm: &Option<Realm>| realm.as_ref().map(realm_text).unwrap_or_default();
            self.restart(&format!("realm.{name}"), &of(before), &of(after), text);
        }
    }

    fn external(&mut self, before: &External, after: &External) {
        let External {
            listen,
            certificate,
            private_key,
        } = before;
        self.restart("external.listen", listen, &after.listen, list);
        self.restart(
            "external.certificate",
            certificate,
            &after.certificate,
            optional_path,
        );
        self.restart(
            "external.private_key",
            private_key,
            &after.private_key,
            optional_path,
        );
    }

    /// Notes whether a key is different that only a start of the daemon can change.
    fn restart<T: PartialEq>(
        &mut self,
        key: &str,
        before: &T,
        after: &T,
        text: impl Fn(&T) -> String,
    ) {
        self.note(key, before, after, text, true);
    }

    /// Notes whether a key is different that can change at run time, and says so.
    fn live<T: PartialEq>(
        &mut self,
        key: &str,
        before: &T,
        after: &T,
        text: impl Fn(&T) -> String,
    ) -> bool {
        self.note(key, before, after, text, false)
    }

    fn note<T: PartialEq>(
        &mut self,
        key: &str,
        before: &T,
        after: &T,
        text: impl Fn(&T) -> String,
        needs_restart: bool,
    ) -> bool {
        let is_different = before != after;
        let there = |value| Some(text(value)).filter(|text| !text.is_empty());
        if is_different {
            self.keys.push(Change {
                key: key.to_owned(),
                before: there(before),
                after: there(after),
                needs_restart,
            });
        }
        is_different
    }
}

#[expect(clippy::ref_option, reason = "it is a key's value that is shown")]
fn optional_path(file: &Option<PathBuf>) -> String {
    file.as_ref().map(path).unwrap_or_default()
}

#[expect(clippy::ptr_arg, reason = "it is a key's value that is shown")]
fn path(path: &PathBuf) -> String {
    path.display().to_string()
}

fn time(duration: &Duration) -> String {
    humantime::format_duration(*duration).to_string()
}

#[expect(clippy::ptr_arg, reason = "it is a key's value that is shown")]
fn list(all: &Vec<impl ToString>) -> String {
    let texts: Vec<_> = all.iter().map(ToString::to_string).collect();
    texts.join(" ")
}

fn debug<T: Debug>(value: &Option<T>) -> String {
    value
        .as_ref()
        .map_or_else(String::new, |value| format!("{value:?}").to_lowercase())
}

fn nic_text(nic: &Nic) -> String {
    format!("{} {}", nic.role.label(), list(&nic.trigger_addresses))
        .trim_end()
        .to_owned()
}

fn realm_text(realm: &Realm) -> String {
    let Realm {
        name: _,
        interface,
        next_hop,
        router_mac,
        vlan,
        listen,
    } = realm;
    let mut text = format!("{interface}, listens on {}", list(listen));
    for (what, list) in [("next hop", list(next_hop)), ("VLAN", list(vlan))] {
        if !list.is_empty() {
            text = format!("{text}, {what} {list}");
        }
    }
    if let Some(mac) = router_mac {
        let bytes: Vec<_> = mac.iter().map(|byte| format!("{byte:02x}")).collect();
        text = format!("{text}, router {}", bytes.join(":"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The keys that are different if `from` in the example becomes `to`, and whether each needs a restart.
    fn changed(from: &str, to: &str) -> (Changes, Vec<(String, bool)>) {
        let example = Config::example();
        assert!(example.contains(from), "{from}");
        let parse = |text: &str| -> Config {
            toml::from_str(text).unwrap_or_else(|error| panic!("{to}: {error}"))
        };
        let changes = Changes::between(&parse(example), &parse(&example.replacen(from, to, 1)));
        let keys = changes.keys.iter();
        let keys = keys.map(|change| (change.key.clone(), change.needs_restart));
        let keys = keys.collect();
        (changes, keys)
    }

    #[test]
    fn each_key_is_noticed_and_knows_whether_it_needs_a_restart() {
        let realm = "[[realm]]\nname = \"cars\"\ninterface = \"eth3\"\nlisten = [\"10.0.0.1:5683\"]\n\n[[nic]]\nname = \"eth2\"";
        let cases = [
            ("\"/var/lib/push\"", "\"/srv/push\"", "state_dir", true),
            ("# state_key_file", "state_key_file", "state_key_file", true),
            (
                "\"/sys/fs/bpf/push\"",
                "\"/sys/fs/bpf/other\"",
                "pin_dir",
                true,
            ),
            (
                "\"/run/push/admin.sock\"",
                "\"/run/other.sock\"",
                "admin_socket",
                true,
            ),
            ("slots = 65536", "slots = 131072", "sessions.slots", true),
            (
                "default_lifetime = \"1h\"",
                "default_lifetime = \"2h\"",
                "sessions.default_lifetime",
                false,
            ),
            (
                "max_lifetime = \"24h\"",
                "max_lifetime = \"48h\"",
                "sessions.max_lifetime",
                false,
            ),
            (
                "per_terminal = 64",
                "per_terminal = 8",
                "sessions.per_terminal",
                false,
            ),
            (
                "# triggers_per_second_per_terminal = 100",
                "triggers_per_second_per_terminal = 50",
                "sessions.triggers_per_second_per_terminal",
                false,
            ),
            (
                "rotation_overlap = \"5m\"",
                "rotation_overlap = \"1m\"",
                "sessions.rotation_overlap",
                false,
            ),
            ("port = 5050", "port = 5051", "triggers.port", true),
            (
                "keep_source = false",
                "keep_source = true",
                "triggers.keep_source",
                true,
            ),
            (
                "allow_generic = false",
                "allow_generic = true",
                "data_plane.allow_generic",
                true,
            ),
            (
                "require_perfmon = true",
                "require_perfmon = false",
                "data_plane.require_perfmon",
                true,
            ),
            (
                "idle_after = \"0s\"",
                "idle_after = \"5m\"",
                "data_plane.idle_after",
                false,
            ),
            (
                "# log_level = \"info\"",
                "log_level = \"debug\"",
                "data_plane.log_level",
                true,
            ),
            ("role = \"external\"", "role = \"both\"", "nic.eth1", false),
            (
                "\"198.51.100.1\", \"2001",
                "\"198.51.100.2\", \"2001",
                "nic.eth1",
                false,
            ),
            (
                "\"10.64.0.1:5683\"",
                "\"10.64.0.1:5684\"",
                "internal.listen",
                true,
            ),
            ("[[nic]]\nname = \"eth2\"", realm, "realm.cars", true),
            (
                "# [gtpu]",
                "[gtpu]\nlocal = [\"10.70.0.1\"]",
                "gtpu.local",
                true,
            ),
            (
                "\"198.51.100.1:8443\"",
                "\"198.51.100.1:443\"",
                "external.listen",
                true,
            ),
            ("# certificate", "certificate", "external.certificate", true),
            ("# private_key", "private_key", "external.private_key", true),
        ];
        for (from, to, key, needs_restart) in cases {
            let (changes, keys) = changed(from, to);
            assert_eq!(keys, [(key.to_owned(), needs_restart)], "{to}");
            let applied = changes.limits || changes.data_plane != Default::default();
            assert_eq!(applied, !needs_restart, "{to}");
        }
        let (changes, keys) = changed("slots = 65536", "");
        assert_eq!(
            (changes, keys.len()),
            (Changes::default(), 0),
            "the default, spelt out"
        );
        let (_, keys) = changed(
            "\"198.51.100.1\", \"2001:db8:51::1\"",
            "\"2001:db8:51::1\", \"198.51.100.1\"",
        );
        assert_eq!(keys, [], "in another order");
    }

    #[test]
    fn a_nic_is_attached_detached_or_changed() {
        let (changes, _) = changed("name = \"eth2\"", "name = \"eth3\"");
        assert_eq!(changes.data_plane.gone, ["eth2"]);
        assert_eq!(changes.data_plane.nics.len(), 1);
        assert_eq!(changes.data_plane.nics[0].name, "eth3");
        let texts: Vec<_> = changes
            .keys
            .iter()
            .map(|change| {
                (
                    &*change.key,
                    change.before.as_deref(),
                    change.after.as_deref(),
                )
            })
            .collect();
        let internal = Some("internal");
        assert_eq!(
            texts,
            [("nic.eth2", internal, None), ("nic.eth3", None, internal)]
        );
    }
}
