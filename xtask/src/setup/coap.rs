//! CoAP clients that Debian has no package of, each in a folder of its own below the tools: aiocoap for
//! Python, and npm's coap.

use super::apt::Apt;
use super::step;
use crate::{child, workspace};
use anyhow::{Context, Result};
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

/// What the virtual environment of [`python`] has, as `pip` is told of it.
const PYTHON_PACKAGES: [&str; 2] = ["aiocoap==0.4.17", "cbor2==6.2.1"];

const NPM_PACKAGE: &str = "coap";
const NPM_VERSION: &str = "1.5.0";

/// Debian's: others may lack what its virtual environments are made of.
const SYSTEM_PYTHON: &str = "/usr/bin/python3";

const LIMIT: Duration = Duration::from_secs(10 * 60);

/// The Python that has aiocoap and cbor2.
#[must_use]
pub fn python() -> PathBuf {
    workspace::tools().join("aiocoap/bin/python")
}

/// Where node finds npm's coap, by `NODE_PATH`.
#[must_use]
pub fn node_path() -> PathBuf {
    workspace::tools().join("npm/node_modules")
}

pub(super) fn ensure(apt: &mut Apt) -> Result<()> {
    ensure_aiocoap(apt)?;
    ensure_npm_coap()
}

fn ensure_aiocoap(apt: &mut Apt) -> Result<()> {
    let all_there = PYTHON_PACKAGES.map(|package| {
        let (name, version) = package.split_once("==").unwrap_or((package, ""));
        format!("version('{name}') == '{version}'")
    });
    let check = format!(
        "from importlib.metadata import version; assert {}",
        all_there.join(" and ")
    );
    let succeeds = |python: PathBuf, script: &str| {
        child::finish(child::command(python).args(["-c", script]))
            .is_ok_and(|output| output.status.success())
    };
    if succeeds(python(), &check) {
        return Ok(());
    }
    if !succeeds(SYSTEM_PYTHON.into(), "import ensurepip, venv") {
        apt.install(
            &["python3-venv"],
            "to have aiocoap apart from the system's Python",
        )?;
    }
    step(
        &format!("installing {} from PyPI", PYTHON_PACKAGES.join(" and ")),
        "a device whose push client we didn't write",
    );
    let folder = workspace::tools().join("aiocoap");
    child::watch(
        child::command(SYSTEM_PYTHON)
            .args(["-m", "venv", "--clear"])
            .arg(&folder),
        LIMIT,
    )?;
    child::watch(
        child::command(python())
            .args(["-m", "pip", "install", "--disable-pip-version-check"])
            .args(PYTHON_PACKAGES),
        LIMIT,
    )
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
