//! Programs from `PyPI`, each with what it needs in a virtual environment of its own below the tools.

use super::apt::Apt;
use super::step;
use crate::{child, workspace};
use anyhow::Result;
use std::path::PathBuf;
use std::time::Duration;

/// Debian's: others may lack what its virtual environments are made of.
const SYSTEM_PYTHON: &str = "/usr/bin/python3";

const LIMIT: Duration = Duration::from_secs(10 * 60);

/// Packages that belong together.
pub(super) struct Environment {
    /// Its folder below the tools.
    pub(super) name: &'static str,
    /// As `pip` is told of them.
    pub(super) packages: &'static [&'static str],
    /// What they are for.
    pub(super) why: &'static str,
}

const SCHEMATHESIS: Environment = Environment {
    name: "schemathesis",
    packages: &["schemathesis==4.32.5"],
    why: "requests to the external interface that nobody has thought of",
};

/// The program that tests an interface by its own description.
#[must_use]
pub fn schemathesis() -> PathBuf {
    SCHEMATHESIS.program("schemathesis")
}

pub(super) fn ensure(apt: &mut Apt) -> Result<()> {
    SCHEMATHESIS.ensure(apt)
}

impl Environment {
    fn folder(&self) -> PathBuf {
        workspace::tools().join(self.name)
    }

    /// A program of it.
    pub(super) fn program(&self, name: &str) -> PathBuf {
        self.folder().join("bin").join(name)
    }

    /// Makes it, if it isn't there.
    pub(super) fn ensure(&self, apt: &mut Apt) -> Result<()> {
        let all_there = self.packages.iter().map(|package| {
            let (name, version) = package.split_once("==").unwrap_or((package, ""));
            format!("version('{name}') == '{version}'")
        });
        let check = format!(
            "from importlib.metadata import version; assert {}",
            all_there.collect::<Vec<_>>().join(" and ")
        );
        if succeeds(self.program("python"), &check) {
            return Ok(());
        }
        if !succeeds(SYSTEM_PYTHON.into(), "import ensurepip, venv") {
            let why = "to have programs from PyPI apart from the system's Python";
            apt.install(&["python3-venv"], why)?;
        }
        let packages = self.packages.join(" and ");
        step(&format!("installing {packages} from PyPI"), self.why);
        child::watch(
            child::command(SYSTEM_PYTHON)
                .args(["-m", "venv", "--clear"])
                .arg(self.folder()),
            LIMIT,
        )?;
        child::watch(
            child::command(self.program("python"))
                .args(["-m", "pip", "install", "--disable-pip-version-check"])
                .args(self.packages),
            LIMIT,
        )
    }
}

fn succeeds(python: PathBuf, script: &str) -> bool {
    child::finish(child::command(python).args(["-c", script]))
        .is_ok_and(|output| output.status.success())
}
