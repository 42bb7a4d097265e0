//! The archive that a kernel takes for its first disk (`Documentation/driver-api/early-userspace/buffer-format.rst`
//! in its source).

use crate::child;
use anyhow::{Context, Result};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Files and folders, one after the other.
#[derive(Default)]
pub(super) struct Archive {
    bytes: Vec<u8>,
    names: BTreeSet<String>,
}

const FOLDER: u32 = 0o040_000;
const FILE: u32 = 0o100_000;

impl Archive {
    /// Adds a folder, and those it is in, if they aren't there.
    pub(super) fn folder(&mut self, name: &str) {
        if name.is_empty() || !self.names.insert(name.to_owned()) {
            return;
        }
        self.folder(parent(name));
        self.entry(name, FOLDER | 0o755, &[]);
    }

    /// Adds a file, if it isn't there.
    pub(super) fn file(&mut self, name: &str, mode: u32, content: &[u8]) {
        if self.names.insert(name.to_owned()) {
            self.folder(parent(name));
            self.entry(name, FILE | mode, content);
        }
    }

    /// Adds a program of this machine, and the libraries it is linked with.
    pub(super) fn program(&mut self, path: &Path, name: &str) -> Result<()> {
        self.copy(path, name)?;
        // It fails for a program that needs none.
        let linked = child::finish(child::command("ldd").arg(path))?;
        for line in String::from_utf8_lossy(&linked.stdout).lines() {
            let word = line.split_whitespace().find(|word| word.starts_with('/'));
            if let Some(library) = word {
                self.copy(Path::new(library), library.trim_start_matches('/'))?;
            }
        }
        Ok(())
    }

    /// All of it.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }

    fn copy(&mut self, path: &Path, name: &str) -> Result<()> {
        let content = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        self.file(name, 0o755, &content);
        Ok(())
    }

    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) {
        let number = self.names.len();
        let (length, name_length) = (content.len(), name.len() + 1);
        // Owner, group and devices are 0, as is the time; there is one link to each.
        let header = format!(
            "070701{number:08X}{mode:08X}{0:08X}{0:08X}{1:08X}{0:08X}{length:08X}{0:08X}{0:08X}{0:08X}{0:08X}{name_length:08X}{0:08X}",
            0, 1
        );
        self.bytes.extend_from_slice(header.as_bytes());
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

fn parent(name: &str) -> &str {
    name.rsplit_once('/').map_or("", |(parent, _)| parent)
}
