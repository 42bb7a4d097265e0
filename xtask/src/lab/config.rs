use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use super::{
    CAMERAS_ROUTER, CAMERAS_VLAN, GATEWAY_CAMERAS, GATEWAY_INSIDE, GATEWAY_METERS, GATEWAY_OUTSIDE,
};

/// What a NIC of the gateway takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Triggers.
    External,
    /// What devices send.
    Internal,
    /// Both.
    Both,
}

/// A NIC of the gateway.
#[derive(Clone, Debug)]
pub struct Nic {
    /// Its name.
    pub name: String,
    /// What it takes.
    pub role: Role,
    /// The addresses at which it takes triggers.
    pub trigger_addresses: Vec<String>,
}

/// A network whose addresses are its own.
#[derive(Clone, Debug)]
pub struct Realm {
    /// Its name.
    pub name: String,
    /// The interface by which its devices are reached.
    pub interface: String,
    /// Routers on the way to them, at most one per IP version.
    pub next_hop: Vec<String>,
    /// MAC address of the router that all datagrams go to, and the VLAN they go in.
    pub link: Option<(String, u16)>,
    /// Addresses and ports at which they register.
    pub listen: Vec<String>,
}

/// The controller's configuration. The default fits the lab.
#[derive(Clone, Debug)]
pub struct Config {
    /// Size of the session table.
    pub slots: u32,
    /// Lifetime of a session that asks for none, such as `1h`.
    pub default_lifetime: String,
    /// Longest lifetime that a session can ask for.
    pub max_lifetime: String,
    /// UDP port of triggers.
    pub trigger_port: u16,
    /// Whether triggers keep their source.
    pub keep_source: bool,
    /// Whether generic XDP will do.
    pub allow_generic: bool,
    /// Whether to refuse to run without `CAP_PERFMON`.
    pub require_perfmon: bool,
    /// Where the program is attached.
    pub nics: Vec<Nic>,
    /// How long a session can be without a delivery before it is idle, such as `5m`.
    pub idle_after: String,
    /// What the program logs, such as `debug`; only for a controller with the feature `log`.
    pub log_level: Option<String>,
    /// Addresses and ports of the internal interface.
    pub internal: Vec<String>,
    /// Addresses and ports of the internal interface over DTLS, and the file with its keys.
    pub coaps: Option<(Vec<String>, PathBuf)>,
    /// Realms.
    pub realms: Vec<Realm>,
    /// Addresses from which GTP-U tunnels go out.
    pub gtpu_local: Vec<String>,
    /// Addresses and ports of the external interface.
    pub external: Vec<String>,
    /// Addresses and ports of metrics, inside the gateway.
    pub metrics: Vec<String>,
    /// Certificate and private key of the external interface; self-signed if there is none.
    pub certificate: Option<(PathBuf, PathBuf)>,
    /// The authorities that certificates of application servers have to come from; the system's if there are none.
    pub monitoring_ca: Option<PathBuf>,
}

impl Default for Config {
    fn default() -> Self {
        let nic = |name: &str, role, addresses: &[&str]| Nic {
            name: name.to_owned(),
            role,
            trigger_addresses: addresses
                .iter()
                .map(|&address| address.to_owned())
                .collect(),
        };
        let [inside_v4, inside_v6] = GATEWAY_INSIDE;
        let [outside_v4, outside_v6] = GATEWAY_OUTSIDE;
        Self {
            slots: 4096,
            default_lifetime: "1h".to_owned(),
            max_lifetime: "24h".to_owned(),
            trigger_port: 5050,
            keep_source: false,
            allow_generic: false,
            require_perfmon: true,
            nics: vec![
                nic("gw-app", Role::External, &GATEWAY_OUTSIDE),
                nic("gw-dev", Role::Internal, &[]),
            ],
            idle_after: "0s".to_owned(),
            log_level: None,
            internal: vec![format!("{inside_v4}:5683"), format!("[{inside_v6}]:5683")],
            coaps: None,
            realms: Vec::new(),
            gtpu_local: Vec::new(),
            external: vec![format!("{outside_v4}:8443"), format!("[{outside_v6}]:8443")],
            metrics: vec!["127.0.0.1:9617".to_owned()],
            certificate: None,
            monitoring_ca: None,
        }
    }
}

impl Config {
    /// Fits a lab with the realms "meters" and "cameras".
    #[must_use]
    pub fn with_realms() -> Self {
        let realm = |name: &str, gateway, link| Realm {
            name: name.to_owned(),
            interface: "gw-met".to_owned(),
            next_hop: Vec::new(),
            link,
            listen: vec![format!("{gateway}:5683")],
        };
        let mut config = Self::default();
        config.nics.push(Nic {
            name: "gw-met".to_owned(),
            role: Role::Internal,
            trigger_addresses: Vec::new(),
        });
        config.realms = vec![
            realm("meters", GATEWAY_METERS, None),
            realm(
                "cameras",
                GATEWAY_CAMERAS,
                Some((CAMERAS_ROUTER.to_owned(), CAMERAS_VLAN)),
            ),
        ];
        config
    }

    /// The text of the file, for a lab whose files are in `folder`.
    #[must_use]
    pub fn to_toml(&self, folder: &Path) -> String {
        let Self {
            slots,
            trigger_port,
            keep_source,
            allow_generic,
            require_perfmon,
            ..
        } = self;
        let path = |name: &str| folder.join(name).display().to_string();
        let mut text = format!(
            "state_dir = {:?}\npin_dir = {:?}\nadmin_socket = {:?}\n\n\
             [sessions]\nslots = {slots}\ndefault_lifetime = {:?}\nmax_lifetime = {:?}\n\n\
             [triggers]\nport = {trigger_port}\nkeep_source = {keep_source}\n\n\
             [data_plane]\nallow_generic = {allow_generic}\nrequire_perfmon = {require_perfmon}\nidle_after = {:?}\n",
            path("state"),
            path("bpf/push"),
            path("admin.sock"),
            self.default_lifetime,
            self.max_lifetime,
            self.idle_after,
        );
        if let Some(level) = &self.log_level {
            let _ = writeln!(text, "log_level = {level:?}");
        }
        text.push('\n');
        for nic in &self.nics {
            let role = match nic.role {
                Role::External => "external",
                Role::Internal => "internal",
                Role::Both => "both",
            };
            let _ = writeln!(text, "[[nic]]\nname = {:?}\nrole = {role:?}", nic.name);
            if !nic.trigger_addresses.is_empty() {
                let _ = writeln!(text, "trigger_addresses = {:?}", nic.trigger_addresses);
            }
            text.push('\n');
        }
        for realm in &self.realms {
            let _ = writeln!(
                text,
                "[[realm]]\nname = {:?}\ninterface = {:?}\nnext_hop = {:?}\nlisten = {:?}",
                realm.name, realm.interface, realm.next_hop, realm.listen
            );
            if let Some((mac, vlan)) = &realm.link {
                let _ = writeln!(text, "router_mac = {mac:?}\nvlan = [{vlan}]");
            }
            text.push('\n');
        }
        if !self.gtpu_local.is_empty() {
            let _ = write!(text, "[gtpu]\nlocal = {:?}\n\n", self.gtpu_local);
        }
        let _ = writeln!(text, "[internal]\nlisten = {:?}", self.internal);
        if let Some((listen, keys)) = &self.coaps {
            let _ = writeln!(text, "coaps_listen = {listen:?}\ncoaps_keys = {keys:?}");
        }
        let _ = write!(text, "\n[external]\nlisten = {:?}\n", self.external);
        if let Some((certificate, private_key)) = &self.certificate {
            let _ = writeln!(
                text,
                "certificate = {certificate:?}\nprivate_key = {private_key:?}"
            );
        }
        if !self.metrics.is_empty() {
            let _ = writeln!(text, "\n[metrics]\nlisten = {:?}", self.metrics);
        }
        if let Some(ca) = &self.monitoring_ca {
            let _ = write!(text, "\n[monitoring]\nca = {ca:?}\n");
        }
        text
    }
}
