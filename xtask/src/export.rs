//! A file of the kind that `push-ctl session export` writes, of as many sessions as it takes: the quickest way to have
//! them.

use crate::lab::GATEWAY_INSIDE;
use anyhow::{Context, Result};
use serde_json::json;
use std::fs::OpenOptions;
use std::io::{BufWriter, Write};
use std::net::Ipv4Addr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// What is in the file: terminals that have registered by IPv4, each with an authorised session.
pub struct Export<'a> {
    /// How many.
    pub sessions: u32,
    /// Slot of the first one; the others follow.
    pub first_slot: u32,
    /// Address of the first device; the others follow.
    pub first_address: Ipv4Addr,
    /// The peer of the tunnel to the first device, if they are reached by tunnels; the others follow.
    pub first_peer: Option<Ipv4Addr>,
    /// The application of a session, by its number in the file.
    pub app: &'a dyn Fn(u32) -> &'a str,
}

impl Export<'_> {
    /// Writes a new file.
    ///
    /// # Errors
    ///
    /// There is one, or it can't be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .with_context(|| format!("cannot write {}", path.display()))?;
        let mut file = BufWriter::new(file);
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis();
        let [gateway, _] = GATEWAY_INSIDE;
        let nth = |first: Ipv4Addr, n| Ipv4Addr::from(u32::from(first) + n);
        let header =
            json!({ "header": { "format": 1, "exported_unix_ms": now, "push_ctl": "xtask" } });
        writeln!(file, "{header}")?;
        for n in 0..self.sessions {
            // Names of registrations are random, and so are keys.
            let spread = u64::from(n).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            let terminal = json!({ "terminal": {
                "id": format!("{spread:016x}"),
                "endpoint": format!("device {n}"),
                "realm": null,
                "address": nth(self.first_address, n),
                "gateway": format!("{gateway}:5683"),
                "port": 5683,
                "lifetime_ms": 86_400_000,
                "expires_unix_ms": now + 86_400_000 + u128::from(n),
                "suspended_unix_ms": null,
            }});
            let token = json!({
                "generation": 0,
                "key": format!("{spread:032x}"),
                "sha256": format!("{spread:064x}"),
            });
            let session = json!({ "session": {
                "id": format!("{:08x}{:08x}", n | 1, self.first_slot + n),
                "app": (self.app)(n),
                "instance": "one",
                "port": 7000,
                "tunnel": self.first_peer.map(|first| (nth(first, n), 1)),
                "window": [n, 0, 0, 0],
                "state": { "authorised": {
                    "current": token, "previous": null, "next": null, "rotate_by_unix_ms": null,
                }},
            }});
            writeln!(file, "{terminal}\n{session}")?;
        }
        let (terminals, sessions) = (self.sessions, self.sessions);
        let end = json!({ "end": { "terminals": terminals, "sessions": sessions } });
        writeln!(file, "{end}")?;
        file.flush()?;
        Ok(())
    }
}
