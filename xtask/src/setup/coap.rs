//! CoAP clients that Debian has no package of, each in a folder of its own below the tools: aiocoap for
//! Python, and npm's coap.

use super::apt::Apt;
use super::python::Environment;
use super::step;
use crate::{child, workspace};
use anyhow::{Context, Result};
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

const AIOCOAP: Environment = Environment {
    name: "aiocoap",
    packages: &["aiocoap==0.4.17", "cbor2==6.2.1"],
    why: "a device whose push client we didn't write",
};

const NPM_PACKAGE: &str = "coap";
const NPM_VERSION: &str = "1.5.0";

const LIMIT: Duration = Duration::from_secs(10 * 60);

/// The Python that has aiocoap and cbor2.
#[must_use]
pub fn python() -> PathBuf {
    AIOCOAP.program("python")
}

/// Where node finds npm's coap, by `NODE_PATH`.
#[must_use]
pub fn node_path() -> PathBuf {
    workspace::tools().join("npm/node_modules")
}

pub(super) fn ensure(apt: &mut Apt) -> Result<()> {
    AIOCOAP.ensure(apt)?;
    ensure_npm_coap()
}

fn ensure_npm_coap() -> Result<()> {
    let manifest = node_path().join(NPM_PACKAGE).join("package.json");
    let version = fs::read(manifest)
        .ok()
        .and_then(|json| serde_json::from_slice::<serde_json::Value>(&json).ok())
        .map(|manifest| manifest["version"] == NPM_VERSION);
    if version == Some(true) {
        return Ok(());
    }
    let package = format!("{NPM_PACKAGE}@{NPM_VERSION}");
    step(
        &format!("installing {package} from npm"),
        "another device whose push client we didn't write",
    );
    let folder = workspace::tools().join("npm");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    child::watch(
        child::command("npm")
            .args(["install", "--no-audit", "--no-fund", "--ignore-scripts"])
            .arg("--prefix")
            .arg(&folder)
            .arg(package),
        LIMIT,
    )
}
