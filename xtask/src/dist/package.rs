//! What is in the package, and where.

use crate::{child, workspace};
use anyhow::{Context, Result, bail};
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Scripts of the package: what to do before and after its files come and go.
const SCRIPTS: [&str; 3] = ["postinst", "prerm", "postrm"];

/// Shells, and where each looks for completions.
const COMPLETIONS: [(&str, &str); 3] = [
    ("bash", "usr/share/bash-completion/completions/push-ctl"),
    ("zsh", "usr/share/zsh/vendor-completions/_push-ctl"),
    ("fish", "usr/share/fish/vendor_completions.d/push-ctl.fish"),
];

/// Puts the package together; gives its path.
pub(super) fn build(push_ctl: &Path) -> Result<PathBuf> {
    let dist = workspace::target().join("dist");
    let root = dist.join("push");
    match fs::remove_dir_all(&root) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot remove {}", root.display()));
        }
        Ok(()) | Err(_) => {}
    }
    fill(&root, push_ctl)?;
    let architecture = child::output(child::command("dpkg").arg("--print-architecture"))?;
    let architecture = architecture.trim();
    control(&root, architecture)?;
    let package = dist.join(format!(
        "push_{}_{architecture}.deb",
        env!("CARGO_PKG_VERSION")
    ));
    child::output(
        child::command("dpkg-deb")
            .args(["--root-owner-group", "--build"])
            .args([&root, &package]),
    )?;
    Ok(package)
}

/// The files that get installed.
fn fill(root: &Path, push_ctl: &Path) -> Result<()> {
    let sources = workspace::root().join("push-ctl/dist");
    let binary = root.join("usr/bin/push-ctl");
    put(&binary, &fs::read(push_ctl)?)?;
    fs::set_permissions(&binary, Permissions::from_mode(0o755))?;
    child::output(child::command("strip").arg(&binary))?;

    for (shell, path) in COMPLETIONS {
        let script = child::output(child::command(push_ctl).args(["completions", shell]))?;
        put(&root.join(path), script.as_bytes())?;
    }
    let pages = root.join("usr/share/man/man1");
    child::output(child::command(push_ctl).args(["man", "--dir"]).arg(&pages))?;
    let mut compress = child::command("gzip");
    compress.args(["-9", "--no-name"]);
    for page in fs::read_dir(&pages)? {
        let page = page?.path();
        fs::set_permissions(&page, Permissions::from_mode(0o644))?;
        compress.arg(page);
    }
    child::output(&mut compress)?;

    let documents = root.join("usr/share/doc/push");
    let example = child::output(child::command(push_ctl).args(["config", "example"]))?;
    put(&documents.join("examples/push.toml"), example.as_bytes())?;
    let from_root = |name: &str| fs::read(workspace::root().join(name));
    put(&documents.join("README.md"), &from_root("README.md")?)?;
    let licences = [from_root("LICENSE-MIT")?, from_root("LICENSE-APACHE")?];
    put(&documents.join("copyright"), &licences.join(&b"\n"[..]))?;

    for source in fs::read_dir(&sources)? {
        let source = source?;
        let name = source.file_name().to_string_lossy().into_owned();
        let place = if source.file_type()?.is_dir() {
            continue; // Those of the package itself.
        } else if Path::new(&name)
            .extension()
            .is_some_and(|kind| kind == "service")
        {
            "usr/lib/systemd/system"
        } else {
            // Alert rules, dashboards.
            "usr/share/push"
        };
        put(&root.join(place).join(&name), &fs::read(source.path())?)?;
    }
    fs::create_dir_all(root.join("etc/push"))?;
    Ok(())
}

/// What dpkg has to know.
fn control(root: &Path, architecture: &str) -> Result<()> {
    let folder = root.join("DEBIAN");
    let libc = libc_version(&fs::read(root.join("usr/bin/push-ctl"))?)
        .context("push-ctl doesn't say which glibc it needs")?;
    let text = format!(
        "Package: push\n\
         Version: {}\n\
         Architecture: {architecture}\n\
         Maintainer: push <push@localhost>\n\
         Section: net\n\
         Priority: optional\n\
         Depends: libc6 (>= {libc}), libgcc-s1, passwd\n\
         Recommends: systemd\n\
         Suggests: bpftool, iproute2\n\
         Description: push gateway for devices at private addresses\n \
         Delivers small signed triggers from application servers to devices behind a\n \
         firewall, by an XDP program in the driver of the NIC, and without any TCP\n \
         connection to a device. Needs Linux 5.18 or later.\n",
        env!("CARGO_PKG_VERSION")
    );
    put(&folder.join("control"), text.as_bytes())?;
    let sources = workspace::root().join("push-ctl/dist/debian");
    for script in SCRIPTS {
        let path = folder.join(script);
        put(&path, &fs::read(sources.join(script))?)?;
        fs::set_permissions(&path, Permissions::from_mode(0o755))?;
    }
    Ok(())
}

/// The newest version of glibc that this program takes something from, such as `2.34`.
fn libc_version(program: &[u8]) -> Option<String> {
    const START: &[u8] = b"GLIBC_2.";
    let minor = program
        .windows(START.len())
        .enumerate()
        .filter(|(_, bytes)| *bytes == START)
        .filter_map(|(at, _)| {
            let digits: String = program[at + START.len()..]
                .iter()
                .take_while(|byte| byte.is_ascii_digit())
                .map(|&byte| char::from(byte))
                .collect();
            digits.parse::<u32>().ok()
        })
        .max()?;
    Some(format!("2.{minor}"))
}

fn put(path: &Path, content: &[u8]) -> Result<()> {
    let Some(folder) = path.parent() else {
        bail!("{} is no file", path.display());
    };
    fs::create_dir_all(folder)
        .and_then(|()| fs::write(path, content))
        .and_then(|()| fs::set_permissions(path, Permissions::from_mode(0o644)))
        .with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_glibc_counts() {
        let program = b"\0GLIBC_2.4\0GLIBC_2.34\0GLIBC_2.9\0GLIBC_PRIVATE\0GLIBC_2.";
        assert_eq!(libc_version(program), Some("2.34".to_owned()));
        assert_eq!(libc_version(b"static"), None);
    }
}
