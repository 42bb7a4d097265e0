//! `cargo xtask fuzz`: what hostile peers send, made up.
//!
//! Packets go through the XDP program and through a model of it (`tests/model.rs`). Everything else that the
//! controller reads goes to the targets in `push-ctl/src/fuzz.rs`, by libFuzzer, which is guided by how far
//! into the program each input gets. What is found on the way is kept in the target directory.

use crate::{check, child, setup, workspace};
use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Runs of each target but the packets, unless there is a time.
const RUNS: u64 = 10_000_000;

/// For the packets, unless there is a time.
const PACKETS: Duration = Duration::from_mins(10);

/// Longest input. No message of a device may be longer than 1,152 bytes; of the rest nothing depends on the length.
const MAX_LEN_BYTES: u64 = 1536;

/// What is made up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Target {
    /// Packets that the NIC receives.
    Packets,
    /// Datagrams of devices.
    Coap,
    /// Payloads of devices' requests for a session.
    Cbor,
    /// Requests of application servers.
    Http,
    /// Requests of operators.
    Admin,
    /// The configuration.
    Toml,
    /// Records in the store.
    Store,
}

impl Target {
    fn name(self) -> String {
        let value = self.to_possible_value();
        value.map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// What is known to be worth trying.
    fn corpus(self) -> PathBuf {
        workspace::root().join("tests/fuzz").join(self.name())
    }
}

/// Makes up what is for `targets`, or for all if that is empty: each to its full count, or all of them within
/// `time`. `seed` is where packets begin; `keep` has what was found replace what is checked in.
///
/// # Errors
///
/// When not root, when something doesn't build, or when anything goes wrong that must not.
pub fn run(
    time: Option<Duration>,
    seed: Option<u64>,
    targets: &[Target],
    keep: bool,
) -> Result<()> {
    workspace::require_root("testing on the real kernel", "fuzz")?;
    setup::run()?;
    let targets = if targets.is_empty() {
        Target::value_variants()
    } else {
        targets
    };
    let each = time.map(|time| time.div_f64(targets.len() as f64));
    let mut results = Vec::new();
    let mut program = None;
    for &target in targets {
        let result = if target == Target::Packets {
            packets(each.unwrap_or(PACKETS), seed)
        } else {
            let program = match &program {
                Some(program) => program,
                None => program.insert(build()?),
            };
            make_up(program, target, each, keep)
        };
        results.push((target, result));
    }
    println!("\nfuzz:");
    let mut failed = Vec::new();
    for (target, result) in results {
        let name = target.name();
        match result {
            Ok(text) => println!("  {name:<8} {text}"),
            Err(error) => {
                println!("  {name:<8} failed: {error:#}");
                failed.push(name);
            }
        }
    }
    if !failed.is_empty() {
        bail!("something was found: {}", failed.join(", "));
    }
    Ok(())
}

/// Compares the XDP program with the reference model, from a seed that is told or new.
fn packets(time: Duration, seed: Option<u64>) -> Result<String> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let seed = seed.unwrap_or(now.context("the clock is before 1970")?.as_secs());
    let time_text = humantime::format_duration(Duration::from_secs(time.as_secs()));
    println!("fuzz: packets for {time_text} from seed {seed}");
    let arguments = [
        "-p",
        "push-ctl",
        "--test",
        "push",
        "--",
        "--ignored",
        "--exact",
        "--nocapture",
        "model::program::fuzz_for",
    ];
    let environment = [
        ("PUSH_FUZZ_SECONDS", time.as_secs().to_string()),
        ("PUSH_FUZZ_SEED", seed.to_string()),
    ];
    check::run_tests(&arguments.map(str::to_owned), &environment)?;
    Ok(format!("{time_text} from seed {seed}: no difference"))
}

/// Where it is built: with other flags, nothing can be shared with other builds.
fn target_directory() -> PathBuf {
    workspace::target().join("fuzz")
}

/// Builds push-ctl's own tests with all of its branches counted, and gives their path.
fn build() -> Result<PathBuf> {
    const HOST: &str = "x86_64-unknown-linux-gnu";
    // Stable flags all of them, for that one crate: libFuzzer looks at each counter after each run, and those of
    // all dependencies are five times as many. What is generic in them is this crate's, too.
    const FLAGS: [&str; 6] = [
        "-Cpasses=sancov-module",
        "-Cllvm-args=-sanitizer-coverage-level=4",
        "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
        "-Cllvm-args=-sanitizer-coverage-pc-table",
        "-Cllvm-args=-sanitizer-coverage-trace-compares",
        "-Ccodegen-units=1",
    ];
    let mut command = workspace::cargo();
    command
        .args(["rustc", "-p", "push-ctl", "--lib", "--features", "fuzz"])
        .args(["--profile", "test", "--target", HOST])
        .args(["--config", "profile.test.inherits=\"fuzz\""])
        .args(["--message-format", "json-render-diagnostics"])
        .arg("--target-dir")
        .arg(target_directory())
        .arg("--")
        .args(FLAGS);
    let said = child::output(&mut command)?;
    let program = said.lines().find_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        let is_test = message["profile"]["test"].as_bool()?;
        is_test.then(|| message["executable"].as_str().map(PathBuf::from))?
    });
    program.context("cargo names no program that it has built")
}

/// Has libFuzzer make up inputs for one target.
fn make_up(program: &Path, target: Target, time: Option<Duration>, keep: bool) -> Result<String> {
    let name = target.name();
    let found = target_directory().join("found").join(&name);
    fs::create_dir_all(&found)?;
    let crashes = target_directory().join(format!("crash/{name}/"));
    fs::create_dir_all(&crashes)?;
    let limit = match time {
        Some(time) => format!("-max_total_time={}", time.as_secs().max(1)),
        None => format!("-runs={RUNS}"),
    };
    let mut tally = Tally::default();
    let arguments = [
        limit,
        format!("-max_len={MAX_LEN_BYTES}"),
        format!("-artifact_prefix={}/", crashes.display()),
        "-print_final_stats=1".to_owned(),
        found.display().to_string(),
        target.corpus().display().to_string(),
    ];
    call(program, &name, &arguments, |line| tally.take(line)).with_context(|| {
        format!(
            "what did it is the newest file in {}: put it into tests/fuzz/{name} under a name that says what it is",
            crashes.display()
        )
    })?;
    if keep {
        keep_fewest(program, target, &found)?;
    }
    let Tally { runs, per_second } = tally;
    let inputs = fs::read_dir(target.corpus())?.count();
    Ok(format!(
        "{runs} runs, {per_second} a second, {inputs} inputs checked in: nothing found"
    ))
}

/// Replaces the inputs that libFuzzer has named by the fewest that get as far as all that were found do. Those
/// with a name of somebody's own stay.
fn keep_fewest(program: &Path, target: Target, found: &Path) -> Result<()> {
    let fewest = target_directory().join("fewest").join(target.name());
    if fewest.exists() {
        fs::remove_dir_all(&fewest)?;
    }
    fs::create_dir_all(&fewest)?;
    let corpus = target.corpus();
    let arguments = [
        "-merge=1".to_owned(),
        // How often something is gone through is nothing worth a file of its own.
        "-use_counters=0".to_owned(),
        format!("-max_len={MAX_LEN_BYTES}"),
        fewest.display().to_string(),
        corpus.display().to_string(),
        found.display().to_string(),
    ];
    call(program, &target.name(), &arguments, |_| ())?;
    let is_hash = |name: &str| name.len() == 40 && name.bytes().all(|b| b.is_ascii_hexdigit());
    for entry in fs::read_dir(&corpus)? {
        let entry = entry?;
        if is_hash(&entry.file_name().to_string_lossy()) {
            fs::remove_file(entry.path())?;
        }
    }
    let mut known = Vec::new();
    for entry in fs::read_dir(&corpus)? {
        known.push(fs::read(entry?.path())?);
    }
    for entry in fs::read_dir(&fewest)? {
        let entry = entry?;
        if !known.contains(&fs::read(entry.path())?) {
            fs::copy(entry.path(), corpus.join(entry.file_name()))?;
        }
    }
    Ok(())
}

fn call(
    program: &Path,
    target: &str,
    arguments: &[String],
    mut hear: impl FnMut(&str),
) -> Result<()> {
    let mut command = Command::new(program);
    command
        .args([
            "--ignored",
            "--exact",
            "--nocapture",
            "fuzz::engine::fuzz_for",
        ])
        .env("PUSH_FUZZ_TARGET", target)
        .env("PUSH_FUZZ_ARGUMENTS", arguments.join("\n"))
        .current_dir(workspace::root())
        .stderr(Stdio::piped());
    println!("fuzz: {target}: {}", arguments.join(" "));
    let mut running = command.spawn().context("cannot start what was built")?;
    let said = running.stderr.take().context("stderr was piped")?;
    for line in BufReader::new(said).lines() {
        let line = line?;
        hear(&line);
        println!("{line}");
    }
    let status = running.wait()?;
    if !status.success() {
        bail!("the program ended with {status}");
    }
    Ok(())
}

/// What libFuzzer says at the end, such as `stat::number_of_executed_units: 1000`.
#[derive(Debug, Default, PartialEq, Eq)]
struct Tally {
    runs: u64,
    per_second: u64,
}

impl Tally {
    fn take(&mut self, line: &str) {
        let Some((name, number)) = line
            .strip_prefix("stat::")
            .and_then(|line| line.split_once(':'))
        else {
            return;
        };
        let number = number.trim().parse().unwrap_or(0);
        match name {
            "number_of_executed_units" => self.runs = number,
            "average_exec_per_sec" => self.per_second = number,
            _other => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_libfuzzer_says_at_the_end_is_understood() {
        let mut tally = Tally::default();
        for line in [
            "#2\tINITED cov: 3 ft: 3 corp: 1/1b exec/s: 0 rss: 30Mb",
            "stat::number_of_executed_units: 1000",
            "stat::average_exec_per_sec:     250",
            "stat::new_units_added:          7",
        ] {
            tally.take(line);
        }
        let expected = Tally {
            runs: 1000,
            per_second: 250,
        };
        assert_eq!(tally, expected);
    }

    /// Each has something to start from, and is one that the program knows.
    #[test]
    fn each_target_is_one_of_the_program_s() {
        let text = fs::read_to_string(workspace::root().join("push-ctl/src/fuzz.rs")).unwrap();
        for &target in Target::value_variants() {
            if target != Target::Packets {
                assert!(text.contains(&format!("(\"{}\", ", target.name())));
                assert!(fs::read_dir(target.corpus()).unwrap().count() > 0);
            }
        }
    }
}
