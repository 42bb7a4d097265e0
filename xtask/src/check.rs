//! `cargo xtask test` and `cargo xtask ci`.

use crate::{child, demo, reproduce, setup, workspace};
use anyhow::{Context, Result, bail};
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// A server that can't be reached is not waited for all day.
const ADVISORIES_LIMIT: Duration = Duration::from_secs(120);

/// Runs the tests of the whole workspace, or what `arguments` make `cargo test` run.
///
/// # Errors
///
/// When not root, when something doesn't build, or when a test fails.
pub fn test(arguments: &[String]) -> Result<()> {
    workspace::require_root("testing on the real kernel", "test")?;
    setup::run()?;
    run_tests(arguments, &[])
}

/// Runs everything that has to be in order before a change goes in.
///
/// # Errors
///
/// At the first thing that isn't.
pub fn ci() -> Result<()> {
    workspace::require_root("testing on the real kernel", "ci")?;
    setup::for_ci()?;
    cargo_step("format", &["fmt", "--all", "--check"])?;
    dependencies()?;
    cargo_step(
        "lints",
        &[
            "clippy",
            "--release",
            "--workspace",
            "--all-targets",
            "--",
            "-D",
            "warnings",
        ],
    )?;
    let with_features = [
        "clippy",
        "--release",
        "-p",
        "push-ctl",
        "--features",
        "log,coaps,fuzz,bench",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ];
    cargo_step("lints, with all features", &with_features)?;
    let of_program = [
        "clippy",
        "--release",
        "-p",
        "push-ebpf",
        "--features",
        "log,bench,by-hash,by-route,ladder",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ];
    cargo_step("lints, with what benchmarks compare", &of_program)?;
    // Before the build, which leaves a push-ctl without them in its place. A dozen tests aren't worth optimising for.
    let of_features = [
        "--config",
        "profile.release.package.push-ctl.opt-level=0",
        "-p",
        "push-ctl",
        "--features",
        "log,coaps",
        "--lib",
        "--test",
        "push",
        "--",
        "logging",
        "coaps",
        "dtls",
    ];
    run_tests(&of_features.map(str::to_owned), &[])?;
    cargo_step("build", &["build", "--release", "--workspace"])?;
    run_tests(&[], &[])?;
    reproduce::run()?;
    demo::run(false)
}

/// What other people's code is used, by what licence, from where, and whether it is known to be bad.
fn dependencies() -> Result<()> {
    let deny = |arguments: &[&str]| {
        let mut command = child::command(setup::deny::program());
        command.args(arguments).current_dir(workspace::root());
        command
    };
    step(
        "licences, bans and sources",
        deny(&["check", "licenses", "bans", "sources"]),
    )?;
    // It is a repository of its own, which a machine that reaches package registries only doesn't get.
    match child::watch(&mut deny(&["fetch", "db"]), ADVISORIES_LIMIT) {
        Ok(()) => step("advisories", deny(&["check", "advisories"])),
        Err(error) => {
            println!(
                "ci: advisories: SKIPPED, as the database of advisories can't be fetched: {error:#}"
            );
            Ok(())
        }
    }
}

fn cargo_step(name: &str, arguments: &[&str]) -> Result<()> {
    let mut command = workspace::cargo();
    command.args(arguments);
    step(name, command)
}

fn step(name: &str, mut command: Command) -> Result<()> {
    let started = Instant::now();
    let line = child::display(&command);
    println!("ci: {name}: {line}");
    let status = command
        .status()
        .with_context(|| format!("cannot run `{line}`"))?;
    if !status.success() {
        bail!("`{line}` failed");
    }
    println!(
        "ci: {name}: in order ({:.0} s)",
        started.elapsed().as_secs_f64()
    );
    Ok(())
}

pub(crate) fn run_tests(arguments: &[String], environment: &[(&str, String)]) -> Result<()> {
    run_tests_heard(arguments, environment, |_| ())
}

/// The same; `hear` gets each line that the tests say, too.
pub(crate) fn run_tests_heard(
    arguments: &[String],
    environment: &[(&str, String)],
    mut hear: impl FnMut(&str),
) -> Result<()> {
    let started = Instant::now();
    let mut command = workspace::cargo();
    command
        // The profile of all other steps: nothing is built twice.
        .args(["test", "--release", "--no-fail-fast"])
        .envs(environment.iter().cloned())
        .stdout(Stdio::piped());
    if arguments.is_empty() {
        command.arg("--workspace");
    } else {
        command.args(arguments); // Which may choose a package.
    }
    let line = child::display(&command);
    println!("test: {line}");
    let mut cargo = command
        .spawn()
        .with_context(|| format!("cannot run `{line}`"))?;
    let mut tally = Tally::default();
    for said in BufReader::new(cargo.stdout.take().context("stdout was piped")?).lines() {
        let said = said.with_context(|| format!("cannot read what `{line}` says"))?;
        tally.take(&said);
        hear(&said);
        println!("{said}");
    }
    let status = cargo.wait()?;
    println!(
        "test: {} passed, {} failed, {} ignored ({:.0} s)",
        tally.passed,
        tally.failed,
        tally.ignored,
        started.elapsed().as_secs_f64()
    );
    if !status.success() {
        bail!("`{line}` failed");
    }
    if tally.passed == 0 {
        bail!("`{line}` ran no test");
    }
    Ok(())
}

/// Sum over the test programs that cargo runs one after the other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) ignored: u64,
}

impl Tally {
    /// Adds what a line such as `test result: ok. 9 passed; 0 failed; 1 ignored; …` tells.
    pub(crate) fn take(&mut self, line: &str) {
        let Some((_, counts)) = line
            .strip_prefix("test result: ")
            .and_then(|result| result.split_once(". "))
        else {
            return;
        };
        for (number, what) in counts.split("; ").filter_map(|count| count.split_once(' ')) {
            let number = number.parse().unwrap_or(0);
            match what {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                "ignored" => self.ignored += number,
                _other => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_results_of_all_test_programs_are_added_up() {
        let mut tally = Tally::default();
        for line in [
            "running 3 tests",
            "test result: ok. 9 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 1.03s",
            "test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured; 4 filtered out; finished in 0.03s",
        ] {
            tally.take(line);
        }
        assert_eq!(
            tally,
            Tally {
                passed: 11,
                failed: 1,
                ignored: 1
            }
        );
    }
}
