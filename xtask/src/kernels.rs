//! `cargo xtask kernels`: the tests of the path on other kernels than the one that runs, and on another driver.
//!
//! Debian's kernel packages are fetched and checked by an apt with a state of its own, and unpacked, not installed,
//! into `target/kernels`. Each kernel boots in an emulated machine, whose only disk is one in memory with the test
//! program, what that calls, and the modules it needs. The machine has four virtio NICs, two and two of them wired
//! together: the tests run once on veths, and once on these. What it says is in `target/kernels/VERSION.log`.

mod archive;

use crate::check::Tally;
use crate::{child, setup, workspace};
use anyhow::{Context, Result, bail, ensure};
use archive::Archive;
use clap::ValueEnum;
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

/// A kernel of Debian's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kernel {
    /// Linux 6.1, of Debian 12.
    #[value(name = "6.1")]
    Linux6_1,
    /// Linux 6.12, of Debian 13.
    #[value(name = "6.12")]
    Linux6_12,
}

impl Kernel {
    /// The release of Debian that has it.
    const fn suite(self) -> &'static str {
        match self {
            Self::Linux6_1 => "bookworm",
            Self::Linux6_12 => "trixie",
        }
    }
}

/// What is tested: each way through the program, one verdict after the other, and how it is attached.
const TESTS: &str = "verdicts:: refusals:: attachment::the_program_is_attached_in_native_mode";

/// Drivers that the tests run on, each with the environment that has them do so.
const DRIVERS: [(&str, &str); 2] = [
    ("veth", ""),
    ("virtio_net", "PUSH_TEST_NICS=eth0,eth1,eth2,eth3"),
];

/// Modules of them; those that are built into a kernel are not among its modules.
const MODULES: [&str; 3] = ["virtio_pci", "virtio_net", "veth"];

/// Programs that the tests call, or that set the machine up.
const PROGRAMS: [&str; 5] = ["sh", "ip", "sysctl", "nsenter", "bpftool"];

/// What of busybox sets the machine up.
const APPLETS: &str = "mount insmod uname poweroff";

/// An emulated machine takes a quarter of an hour, and longer if others want the CPUs, too.
const LIMIT: Duration = Duration::from_mins(45);
const FETCH_LIMIT: Duration = Duration::from_secs(10 * 60);

/// What the machine says of itself, in front of the rest of a line.
const SAYS: &str = "kernels: ";

/// Runs the tests on `kernels`, or on all of them if that is empty.
///
/// # Errors
///
/// When a kernel can't be had, doesn't boot, or a test fails on it.
pub fn run(kernels: &[Kernel], quick: bool) -> Result<()> {
    setup::for_kernels()?;
    let kernels = if kernels.is_empty() {
        Kernel::value_variants()
    } else {
        kernels
    };
    let tests = build_tests(quick)?;
    let apt = Apt::new()?;
    let mut outcomes = Vec::new();
    for &kernel in kernels {
        let version = apt.fetch(kernel)?;
        let image = image(&version, &tests)?;
        println!("kernels: booting Linux {version}");
        outcomes.push(boot(&version, &image)?);
    }
    let mut failed = 0;
    for outcome in outcomes {
        println!("kernels: {}", outcome.sentence());
        failed += usize::from(!outcome.is_good());
    }
    ensure!(failed == 0, "{failed} kernels failed; see above");
    Ok(())
}

/// Where all of it is.
fn folder() -> PathBuf {
    workspace::target().join("kernels")
}

/// Builds the test program; gives its path, without what only a debugger reads.
fn build_tests(quick: bool) -> Result<PathBuf> {
    let mut cargo = workspace::cargo();
    cargo.args([
        "test",
        "--package",
        "push-ctl",
        "--test",
        "push",
        "--no-run",
    ]);
    cargo.args(["--message-format", "json-render-diagnostics"]);
    if !quick {
        cargo.arg("--release");
    }
    let output = cargo.stderr(Stdio::inherit()).output()?;
    ensure!(output.status.success(), "the tests don't build; see above");
    let messages = String::from_utf8_lossy(&output.stdout);
    let built = messages.lines().find_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        let is_ours = message["target"]["name"] == "push" && message["target"]["kind"][0] == "test";
        is_ours.then(|| message["executable"].as_str().map(PathBuf::from))?
    });
    let built = built.context("cargo doesn't say where the tests are")?;
    let stripped = folder().join("tests");
    fs::create_dir_all(folder())?;
    let mut strip = child::command("strip");
    child::output(
        strip
            .args(["--strip-debug", "-o"])
            .arg(&stripped)
            .arg(built),
    )?;
    Ok(stripped)
}

/// An apt that knows the releases with the kernels, and nothing of what is installed here.
struct Apt {
    folder: PathBuf,
}

impl Apt {
    fn new() -> Result<Self> {
        let apt = Self {
            folder: folder().join("apt"),
        };
        for folder in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(apt.folder.join(folder))?;
        }
        fs::write(apt.folder.join("status"), "")?;
        let mirror = mirror()?;
        let sources = Kernel::value_variants().iter().map(|kernel| {
            let keys = "/usr/share/keyrings/debian-archive-keyring.gpg";
            format!(
                "deb [arch=amd64 signed-by={keys}] {mirror} {} main\n",
                kernel.suite()
            )
        });
        fs::write(apt.folder.join("sources.list"), sources.collect::<String>())?;
        println!("kernels: asking {mirror} for kernels");
        child::watch(apt.command("apt-get").arg("update"), FETCH_LIMIT)?;
        Ok(apt)
    }

    /// `program` of apt's, on this state.
    fn command(&self, program: &str) -> std::process::Command {
        let mut command = child::command(program);
        command.env("LC_ALL", "C").current_dir(folder());
        let folder = self.folder.display();
        for option in [
            format!("Dir::Etc::SourceList={folder}/sources.list"),
            "Dir::Etc::SourceParts=/dev/null".to_owned(),
            format!("Dir::State::Lists={folder}/lists"),
            format!("Dir::State::status={folder}/status"),
            format!("Dir::Cache={folder}/cache"),
            "APT::Architecture=amd64".to_owned(),
            "APT::Sandbox::User=root".to_owned(),
            "Acquire::Languages=none".to_owned(),
        ] {
            command.args(["-o", &option]);
        }
        command
    }

    /// Has the newest package of this kernel unpacked; gives the kernel's version, which is the folder's name.
    fn fetch(&self, kernel: Kernel) -> Result<String> {
        let package = format!("linux-image-amd64/{}", kernel.suite());
        let depends = child::output(self.command("apt-cache").args(["depends", &package]))?;
        let package = depends
            .lines()
            .find_map(|line| line.trim().strip_prefix("Depends: "));
        let package = package.with_context(|| format!("{} has no kernel", kernel.suite()))?;
        let version = package.trim_start_matches("linux-image-").to_owned();
        let unpacked = folder().join(&version);
        if unpacked.exists() {
            return Ok(version);
        }
        println!("kernels: fetching {package}");
        child::watch(
            self.command("apt-get").args(["download", package]),
            FETCH_LIMIT,
        )?;
        let deb = fs::read_dir(folder())?.flatten().map(|entry| entry.path());
        let deb = deb.into_iter().find(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with(&format!("{package}_"))
        });
        let deb = deb.with_context(|| format!("apt-get left no {package} here"))?;
        // Under its name only when it is whole.
        let half = folder().join("half");
        let _ = fs::remove_dir_all(&half);
        child::output(child::command("dpkg-deb").arg("-x").arg(&deb).arg(&half))?;
        fs::rename(&half, &unpacked)?;
        fs::remove_file(deb)?;
        Ok(version)
    }
}

/// The mirror of Debian that this machine uses.
fn mirror() -> Result<String> {
    let format = "$(ORIGIN)|$(LABEL)|$(REPO_URI)";
    let targets = child::output(child::command("apt-get").args([
        "indextargets",
        "--format",
        format,
        "Created-By: Packages",
    ]))?;
    let mut uris = targets
        .lines()
        .filter_map(|line| line.strip_prefix("Debian|Debian|"));
    Ok(uris
        .next()
        .unwrap_or("http://deb.debian.org/debian/")
        .to_owned())
}

/// The disk in memory: the tests, what they call, modules, and what is run first.
fn image(version: &str, tests: &Path) -> Result<PathBuf> {
    let mut archive = Archive::default();
    for folder in ["dev", "proc", "sys", "tmp"] {
        archive.folder(folder);
    }
    archive.program(tests, "tests")?;
    for name in PROGRAMS {
        archive.program(
            &child::installed(name).with_context(|| format!("no {name}"))?,
            &format!("bin/{name}"),
        )?;
    }
    let busybox = child::installed("busybox").context("no busybox")?;
    archive.program(&busybox, "busybox")?;
    let modules = Modules::of(&folder().join(version))?;
    let mut order = Vec::new();
    for name in MODULES {
        modules.add(name, &mut archive, &mut order)?;
    }
    archive.file("init", 0o755, init(&order).as_bytes());
    let path = folder().join(format!("{version}.cpio"));
    fs::write(&path, archive.finish())?;
    Ok(path)
}

/// What the machine runs, and ends with.
fn init(modules: &[String]) -> String {
    let mut script = format!(
        "#!/bin/sh\nexport PATH=/bin\nfor applet in {APPLETS}; do /busybox ln -s /busybox /bin/$applet; done\n\
         mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev; mount -t tmpfs tmp /tmp\n\
         ip link set lo up\n"
    );
    for module in modules {
        script.push_str(&format!("insmod /modules/{module}.ko\n"));
    }
    for (driver, environment) in DRIVERS {
        script.push_str(&format!(
            "echo '{SAYS}{driver}'\n{environment} /tests --test-threads=1 --show-output {TESTS}\n"
        ));
    }
    script.push_str(&format!("echo '{SAYS}end'\npoweroff -f\n"));
    script
}

/// The modules of a kernel, by name.
struct Modules(BTreeMap<String, PathBuf>);

impl Modules {
    fn of(folder: &Path) -> Result<Self> {
        let list = child::output(child::command("find").arg(folder).args(["-name", "*.ko*"]))?;
        let named = list.lines().filter_map(|path| {
            let path = PathBuf::from(path);
            let name = path
                .file_name()?
                .to_str()?
                .split(".ko")
                .next()?
                .replace('-', "_");
            Some((name, path))
        });
        Ok(Self(named.collect()))
    }

    /// Adds a module after those it depends on; nothing if it isn't one, but a part of the kernel.
    fn add(&self, name: &str, archive: &mut Archive, order: &mut Vec<String>) -> Result<()> {
        let Some(path) = self.0.get(name) else {
            return Ok(());
        };
        if order.iter().any(|added| added == name) {
            return Ok(());
        }
        let module = if path.extension().is_some_and(|extension| extension == "xz") {
            let output = child::finish(child::command("xz").arg("-dc").arg(path))?;
            ensure!(output.status.success(), "cannot unpack {}", path.display());
            output.stdout
        } else {
            fs::read(path)?
        };
        for dependency in dependencies(&module) {
            self.add(&dependency, archive, order)?;
        }
        archive.file(&format!("modules/{name}.ko"), 0o644, &module);
        order.push(name.to_owned());
        Ok(())
    }
}

/// What a module says it depends on, among what it says of itself, which is text between zero bytes.
fn dependencies(module: &[u8]) -> Vec<String> {
    let said = module
        .split(|&byte| byte == 0)
        .find_map(|text| text.strip_prefix(b"depends="));
    let said = String::from_utf8_lossy(said.unwrap_or_default());
    let names = said.split(',').filter(|name| !name.is_empty());
    names.map(|name| name.replace('-', "_")).collect()
}

/// What came of one kernel.
struct Outcome {
    version: String,
    by_driver: Vec<(String, Tally)>,
    has_ended: bool,
    time: Duration,
}

impl Outcome {
    fn is_good(&self) -> bool {
        let passed = |(_, tally): &(String, Tally)| tally.passed > 0 && tally.failed == 0;
        self.has_ended && self.by_driver.len() == DRIVERS.len() && self.by_driver.iter().all(passed)
    }

    fn sentence(&self) -> String {
        let each = self.by_driver.iter().map(|(driver, tally)| {
            format!("{driver}: {} passed, {} failed", tally.passed, tally.failed)
        });
        let each: Vec<_> = each.collect();
        let end = if self.has_ended {
            ""
        } else {
            ", and it didn't come to the end"
        };
        format!(
            "Linux {}: {}{end} ({} s)",
            self.version,
            each.join("; "),
            self.time.as_secs()
        )
    }
}

/// Boots a kernel and takes down what the tests say.
fn boot(version: &str, image: &Path) -> Result<Outcome> {
    let started = Instant::now();
    let mut machine = child::command("timeout");
    machine
        .arg(LIMIT.as_secs().to_string())
        .arg("qemu-system-x86_64");
    // KVM isn't to be had everywhere, and where it is nested, it may hang.
    machine.args(["-accel", "tcg", "-cpu", "max", "-smp", "2", "-m", "1536"]);
    machine.args([
        "-nodefaults",
        "-no-reboot",
        "-display",
        "none",
        "-serial",
        "stdio",
    ]);
    machine.args(["-append", "console=ttyS0 quiet panic=-1"]);
    machine.arg("-kernel").arg(
        folder()
            .join(version)
            .join(format!("boot/vmlinuz-{version}")),
    );
    machine.arg("-initrd").arg(image);
    for nic in 0..4 {
        machine
            .arg("-netdev")
            .arg(format!("hubport,id=nic{nic},hubid={}", nic / 2));
        // No ROM: nothing boots from them.
        machine
            .arg("-device")
            .arg(format!("virtio-net-pci,netdev=nic{nic},romfile="));
    }
    let mut machine = machine
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .context("cannot run qemu-system-x86_64")?;
    let said = BufReader::new(machine.stdout.take().context("stdout was piped")?);
    let mut log = fs::File::create(folder().join(format!("{version}.log")))?;
    let mut by_driver: Vec<(String, Tally)> = Vec::new();
    let mut has_ended = false;
    for line in said.split(b'\n') {
        let line = line?;
        let line = String::from_utf8_lossy(&line).trim_end().to_owned();
        writeln!(log, "{line}")?;
        if let Some(what) = line.strip_prefix(SAYS) {
            has_ended = what == "end";
            if !has_ended {
                by_driver.push((what.to_owned(), Tally::default()));
            }
        }
        if let Some((driver, tally)) = by_driver.last_mut() {
            tally.take(&line);
            let is_told = ["test ", "thread "]
                .iter()
                .any(|start| line.starts_with(start));
            if is_told || line.contains("panicked") || line.contains("instructions verified") {
                println!("{version}, {driver}: {line}");
            }
        }
    }
    let status = machine.wait()?;
    if by_driver.is_empty() {
        bail!(
            "Linux {version} didn't get to the tests ({status}); see {}",
            folder().join(format!("{version}.log")).display()
        );
    }
    Ok(Outcome {
        version: version.to_owned(),
        by_driver,
        has_ended,
        time: started.elapsed(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_says_what_it_depends_on() {
        let module = b"\x7fELF\0license=GPL\0depends=failover,net-failover\0name=virtio_net\0";
        assert_eq!(dependencies(module), ["failover", "net_failover"]);
        assert!(dependencies(b"license=GPL\0depends=\0").is_empty());
    }

    #[test]
    fn a_kernel_is_good_only_if_all_tests_passed_on_all_drivers_to_the_end() {
        let outcome = |passed, failed, drivers, has_ended| Outcome {
            version: String::new(),
            by_driver: vec![
                (
                    String::new(),
                    Tally {
                        passed,
                        failed,
                        ignored: 0
                    }
                );
                drivers
            ],
            has_ended,
            time: Duration::ZERO,
        };
        assert!(outcome(3, 0, 2, true).is_good());
        for bad in [
            outcome(3, 0, 2, false),
            outcome(3, 0, 1, true),
            outcome(3, 1, 2, true),
            outcome(0, 0, 2, true),
        ] {
            assert!(!bad.is_good(), "{}", bad.sentence());
        }
    }
}
