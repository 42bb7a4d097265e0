//! `cargo xtask`: see `cargo xtask --help`.

use anyhow::Result;
use clap::{Parser, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use xtask::bench::{Outputs, Suite};
use xtask::fuzz::Target;
use xtask::kernels::Kernel;
use xtask::soak::Race;
use xtask::{bench, check, demo, dist, fuzz, kernels, lab, reproduce, setup, soak};

/// Tasks of the workspace. Each of them first sets up what it needs.
#[derive(Parser)]
#[command(bin_name = "cargo xtask", disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Fetch and build everything that building, running and testing push needs.
    Setup,
    /// A gateway, devices and an application server in network namespaces, to play with by hand.
    Lab {
        #[command(subcommand)]
        task: LabTask,
    },
    /// The whole story on this machine's kernel, told and checked, in a minute.
    Demo {
        /// Leave the lab up at the end, to look around in it.
        #[arg(long)]
        keep: bool,
    },
    /// All tests.
    Test {
        /// Arguments for `cargo test`, such as the name of a test.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// The benchmarks: ratios within one run, and what doesn't depend on the machine's load.
    Bench {
        /// What to measure, at length; everything in short, if none is named.
        #[arg(value_enum, value_name = "SUITE")]
        suites: Vec<Suite>,
        /// Write all figures to this file, too: a list of rows.
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
        /// Write a page with plots into this folder: report.html.
        #[arg(long, value_name = "DIR")]
        report: Option<PathBuf>,
        /// Put the targets of the suites that are run into the README's table; not if any of their figures is missing.
        #[arg(long)]
        readme: bool,
    },
    /// What hostile peers send, made up: packets through the program and through the reference model, side by
    /// side; and, guided by how far it gets, whatever else the controller reads.
    Fuzz {
        /// How long all of it takes, such as 90s or 10m, instead of ten million runs of each target; of packets,
        /// instead of ten minutes.
        #[arg(long = "for", value_name = "DURATION", value_parser = humantime::parse_duration)]
        time: Option<Duration>,
        /// Where to begin; two runs of the packets with the same seed go through the same ones.
        #[arg(long)]
        seed: Option<u64>,
        /// What to make up; all of it, if none is named.
        #[arg(long, value_enum, value_name = "NAME")]
        only: Vec<Target>,
        /// Replace what is in tests/fuzz by the fewest inputs, of all that were ever found, that get as far.
        #[arg(long)]
        keep: bool,
    },
    /// Races of two CPUs for one session, and of triggers against changes to it: each tens of thousands of times
    /// to a hundred million times, or for as long as one likes.
    Soak {
        /// How long all of it takes, such as 10m, instead of the full count.
        #[arg(long = "for", value_name = "DURATION", value_parser = humantime::parse_duration)]
        time: Option<Duration>,
        /// Which races to run; all of them, if none is named.
        #[arg(long, value_enum, value_name = "NAME")]
        only: Vec<Race>,
    },
    /// The tests of the path on Debian's kernels in an emulated machine, on veth and on virtio-net.
    Kernels {
        /// Which kernels; all of them, if none is named.
        #[arg(long, value_enum, value_name = "VERSION")]
        only: Vec<Kernel>,
        /// Build without optimisation: sooner built, but several times slower to run.
        #[arg(long)]
        quick: bool,
    },
    /// Build the XDP program in another folder, too, and compare the two byte for byte.
    Reproduce,
    /// push-ctl as a Debian package, in target/dist.
    Dist {
        /// Install it in a bare Debian, start it there, and remove it: nothing may be left.
        #[arg(long)]
        check: bool,
        /// Build without optimisation: sooner, and for tries only.
        #[arg(long)]
        quick: bool,
    },
    /// What CI runs: format, dependencies, lints, build, tests, demo.
    Ci,
}

#[derive(Subcommand)]
enum LabTask {
    /// Build the lab, start the controller in it, and print what to type next.
    Up,
    /// Take everything down that `up` made, also after a crash.
    Down,
    /// What of the lab is there.
    Status,
}

fn main() -> ExitCode {
    match run(Arguments::parse().task) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<()> {
    match task {
        Task::Setup => setup::run(),
        Task::Lab { task: LabTask::Up } => lab::by_hand::up(),
        Task::Lab {
            task: LabTask::Down,
        } => lab::by_hand::down(),
        Task::Lab {
            task: LabTask::Status,
        } => lab::by_hand::status(),
        Task::Demo { keep } => demo::run(keep),
        Task::Test { arguments } => check::test(&arguments),
        Task::Bench {
            suites,
            json,
            report,
            readme,
        } => {
            let outputs = Outputs {
                json: json.as_deref(),
                report: report.as_deref(),
                readme,
            };
            bench::run(&suites, outputs)
        }
        Task::Fuzz {
            time,
            seed,
            only,
            keep,
        } => fuzz::run(time, seed, &only, keep),
        Task::Soak { time, only } => soak::run(time, &only),
        Task::Kernels { only, quick } => kernels::run(&only, quick),
        Task::Reproduce => reproduce::run(),
        Task::Dist { check, quick } => dist::run(check, quick),
        Task::Ci => check::ci(),
    }
}
