//! Everything that helps to find out what is wrong, in one file to hand on. It has neither secrets nor the
//! names and addresses of devices in it.

use super::doctor;
use crate::cli::{ConfigFile, Failure, Output, client};
use crate::config::Config;
use crate::dataplane::survey;
use crate::store::inspect::without_credentials;
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A daemon that takes longer is no help.
const LIMIT: Duration = Duration::from_secs(10);

/// What the daemon is asked for, and the file that the answer becomes.
const ANSWERS: [(&str, &str); 4] = [
    ("daemon/status.json", "/v1/status"),
    ("daemon/stats.json", "/v1/stats"),
    ("daemon/apps.json", "/v1/apps"),
    ("daemon/realms.json", "/v1/realms"),
];

/// Files of the kernel that tell something and name no device.
const KERNEL: [&str; 9] = [
    "/proc/version",
    "/proc/loadavg",
    "/proc/meminfo",
    "/proc/net/dev",
    "/proc/net/softnet_stat",
    "/proc/net/snmp",
    "/proc/net/snmp6",
    "/proc/net/netstat",
    "/proc/net/dev_snmp6/all",
];

/// Switches of the kernel, below `/proc/sys`.
const SWITCHES: [&str; 6] = [
    "net/core/bpf_jit_enable",
    "net/core/bpf_jit_harden",
    "net/core/netdev_budget",
    "net/ipv4/neigh/default/gc_thresh3",
    "net/ipv6/neigh/default/gc_thresh3",
    "kernel/unprivileged_bpf_disabled",
];

/// The same of each NIC.
const SWITCHES_OF_NIC: [&str; 4] = [
    "net/ipv4/conf/{}/forwarding",
    "net/ipv4/conf/{}/accept_local",
    "net/ipv4/conf/{}/rp_filter",
    "net/ipv6/conf/{}/forwarding",
];

/// How tokens and keys of applications begin.
const SECRETS: [&str; 2] = ["ptk_", "pak_"];

/// Write everything that helps to find out what is wrong into one file, without secrets or devices
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Sysdump {
    /// Where to; `push-sysdump-TIME.tar.gz` unless given
    file: Option<PathBuf>,
    #[command(flatten)]
    config: ConfigFile,
}

impl Sysdump {
    pub(in crate::cli) fn dispatch(self, socket: &Path) -> Result<Output, Failure> {
        let files = collect(socket, &self.config)?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.unwrap_or_default().as_secs();
        let name = format!("push-sysdump-{now}");
        let path = self
            .file
            .unwrap_or_else(|| PathBuf::from(format!("{name}.tar.gz")));
        let bytes = pack(&name, now, &files)
            .and_then(|packed| {
                let mut file = OpenOptions::new()
                    .write(true)
                    .create(true)
                    .truncate(true)
                    .mode(0o600)
                    .open(&path)?;
                file.write_all(&packed)?;
                Ok(packed.len())
            })
            .map_err(|error| Failure::new(format!("can't write {}: {error}", path.display())))?;
        let mut people = format!("Wrote {} ({bytes} bytes):\n", path.display());
        for name in files.keys() {
            let _infallible = writeln!(people, "  {name}");
        }
        if let Err(failure) = client::get::<Value>(socket, "/v1/status", LIMIT) {
            let _infallible = writeln!(
                people,
                "warning: nothing from the daemon is in it: {}",
                failure.error
            );
        }
        let names: Vec<_> = files.keys().collect();
        Output::new(
            &json!({ "file": path, "bytes": bytes, "contains": names }),
            people,
        )
    }
}

/// Names and contents. What can't be had says why instead.
fn collect(socket: &Path, file: &ConfigFile) -> Result<BTreeMap<String, String>, Failure> {
    let mut files = BTreeMap::new();
    let mut daemon = Value::Null;
    for (name, path) in ANSWERS {
        let text = match client::get::<Value>(socket, path, LIMIT) {
            Ok(mut answer) => {
                if path == "/v1/status" {
                    daemon.clone_from(&answer);
                }
                hide_urls(&mut answer);
                pretty(&answer)
            }
            Err(failure) => pretty(&json!({ "error": failure.error })),
        };
        files.insert(name.to_owned(), text);
    }
    let report = doctor::examine(socket, file)?;
    files.insert(
        "doctor.json".to_owned(),
        pretty(&serde_json::to_value(&report).unwrap_or_default()),
    );
    let config = daemon["config"]
        .as_str()
        .filter(|_| file.is_default())
        .map_or_else(|| file.config.clone(), PathBuf::from);
    files.insert("push.toml".to_owned(), config_text(&config));
    for path in KERNEL {
        files.insert(format!("kernel{path}"), read(path));
    }
    let loaded = Config::load(&config).ok();
    files.insert("kernel/switches".to_owned(), switches(loaded.as_ref()));
    files.insert("kernel/links".to_owned(), links());
    if let Some(config) = &loaded {
        files.insert(
            "bpf/pins".to_owned(),
            survey::pinned(&config.pin_dir).join("\n") + "\n",
        );
    }
    if let Some(pid) = daemon["pid"].as_u64() {
        files.insert("bpf/descriptors".to_owned(), descriptors(pid));
        for name in ["status", "limits", "cgroup"] {
            let path = format!("/proc/{pid}/{name}");
            files.insert(format!("daemon/{name}"), read(&path));
        }
    }
    for text in files.values_mut() {
        *text = without_secrets(text);
    }
    Ok(files)
}

/// Those of application servers may have something in them that lets in whoever has it.
fn hide_urls(value: &mut Value) {
    match value {
        Value::Object(object) => {
            for (key, value) in object {
                match value {
                    Value::String(url) if key == "url" => *url = without_credentials(url),
                    other => hide_urls(other),
                }
            }
        }
        Value::Array(values) => values.iter_mut().for_each(hide_urls),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| format!("can't be read: {error}\n"))
}

/// The configuration as it is understood: comments, which may have anything in them, are left out.
fn config_text(path: &Path) -> String {
    let table = fs::read_to_string(path)
        .map_err(|error| error.to_string())
        .and_then(|text| {
            text.parse::<toml::Table>()
                .map_err(|error| error.message().to_owned())
        });
    match table {
        Ok(mut table) => {
            hide(&mut table);
            format!("# {}\n{table}", path.display())
        }
        Err(why) => format!("# {} can't be read: {why}\n", path.display()),
    }
}

/// Hides values of keys that sound like secrets. There are none today; paths of files with secrets stay.
fn hide(table: &mut toml::Table) {
    for (key, value) in table.iter_mut() {
        let is_path = value.as_str().is_some_and(|text| text.starts_with('/'));
        let sounds = ["secret", "psk", "password", "token", "key"]
            .iter()
            .any(|end| key.ends_with(end));
        match value {
            toml::Value::Table(table) => hide(table),
            toml::Value::Array(values) => values
                .iter_mut()
                .filter_map(toml::Value::as_table_mut)
                .for_each(hide),
            other if sounds && !is_path => *other = "hidden".into(),
            toml::Value::String(_)
            | toml::Value::Integer(_)
            | toml::Value::Float(_)
            | toml::Value::Boolean(_)
            | toml::Value::Datetime(_) => {}
        }
    }
}

fn switches(config: Option<&Config>) -> String {
    let mut paths: Vec<String> = SWITCHES.map(str::to_owned).to_vec();
    let nics = config.map_or(&[][..], |config| &config.nic);
    for name in ["all", "default"]
        .into_iter()
        .chain(nics.iter().map(|nic| nic.name.as_str()))
    {
        paths.extend(SWITCHES_OF_NIC.map(|path| path.replace("{}", name)));
    }
    let mut text = String::new();
    for path in paths {
        let value = read(&format!("/proc/sys/{path}"));
        let _infallible = writeln!(text, "{path} = {}", value.trim());
    }
    text
}

fn links() -> String {
    let links = client::wait_for(async {
        let links = survey::links().await;
        links.map_err(|error| Failure::new(format!("{error:#}")))
    });
    match links {
        Ok(links) => links.join("\n") + "\n",
        Err(failure) => failure.error + "\n",
    }
}

/// What the kernel says of the programs, maps and links that the daemon has open.
fn descriptors(pid: u64) -> String {
    let folder = format!("/proc/{pid}/fdinfo");
    let mut text = String::new();
    let entries = match fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) => return format!("{folder} can't be read: {error}\n"),
    };
    for entry in entries.filter_map(Result::ok) {
        let about = fs::read_to_string(entry.path()).unwrap_or_default();
        let is_bpf = |line: &str| {
            ["map_type", "prog_type", "link_type"]
                .iter()
                .any(|key| line.starts_with(key))
        };
        if about.lines().any(is_bpf) {
            let number = entry.file_name();
            let _infallible = writeln!(text, "descriptor {}\n{about}", number.to_string_lossy());
        }
    }
    text
}

/// Nothing should be there to be hidden; if it is, it isn't handed on.
fn without_secrets(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = SECRETS.iter().filter_map(|start| rest.find(start)).min() {
        let (before, secret) = rest.split_at(at);
        clean += before;
        clean += "hidden";
        rest = secret.trim_start_matches(|c: char| c.is_ascii_alphanumeric() || c == '_');
    }
    clean + rest
}

fn pack(folder: &str, now: u64, files: &BTreeMap<String, String>) -> io::Result<Vec<u8>> {
    let mut archive = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::default()));
    for (name, text) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(now);
        archive.append_data(&mut header, format!("{folder}/{name}"), text.as_bytes())?;
    }
    archive.into_inner()?.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_looks_like_a_secret_is_hidden() {
        let cases = [
            ("nothing", "nothing"),
            ("a ptk_0123abc, b", "a hidden, b"),
            ("pak_ab_c\"ptk_", "hidden\"hidden"),
        ];
        for (text, clean) in cases {
            assert_eq!(without_secrets(text), clean);
        }
        let mut table: toml::Table =
            "private_key = \"/etc/key\"\n[[dtls]]\npsk = \"abc\"\nport = 1"
                .parse()
                .unwrap();
        hide(&mut table);
        assert_eq!(table["private_key"].as_str(), Some("/etc/key"));
        assert_eq!(table["dtls"][0]["psk"].as_str(), Some("hidden"));
        assert_eq!(table["dtls"][0]["port"].as_integer(), Some(1));
    }
}
