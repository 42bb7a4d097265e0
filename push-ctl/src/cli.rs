//! The command line.
//!
//! Data goes to stdout, everything else to stderr: a table or a few lines for people, or with `-j` one
//! line of JSON, errors too; commands that go on print one line each time. Exits with 0 if it went well, 1
//! if not or if what was looked at isn't in order, 2 if the arguments make no sense.

mod client;
mod commands;
mod live;
mod log;
mod pcap;
mod people;
mod policy;
mod probe;
mod rates;
mod trigger;

use crate::config::{self, Config};
use crate::upgrade::{self, Ended, Upgrade};
use clap::{ArgGroup, CommandFactory, Parser, Subcommand};
use commands::health::StatusOptions;
use commands::man::Man;
use commands::monitor::Monitor;
use commands::nics::Nic;
use commands::stats::Stats;
use commands::store::Store;
use commands::sysdump::Sysdump;
use commands::top::Top;
use commands::trace::Trace;
use commands::upgrade::Upgrade as UpgradeCommand;
use commands::{apps, devices, doctor, emulate, gateway, guide, health, reload, servers};
use log::LogFormat;
use policy::PolicyOptions;
use serde::Serialize;
use serde_json::json;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};

/// Over the options that all commands have, apart from a command's own.
const EVERYWHERE: &str = "Options of all commands";

/// Controller and operator's tool of the push gateway.
#[derive(Debug, Parser)]
#[command(name = "push-ctl", version, max_term_width = 110)]
pub struct Cli {
    /// Print JSON, errors too
    #[arg(short, long, global = true, alias = "json-lines", help_heading = EVERYWHERE)]
    json: bool,
    /// Socket of the daemon, the `admin_socket` of its configuration
    #[arg(long, global = true, env = "PUSH_SOCKET", value_name = "FILE", default_value = config::DEFAULT_ADMIN_SOCKET, help_heading = EVERYWHERE)]
    socket: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the controller in the foreground; `RUST_LOG` sets how much it logs
    Run {
        #[command(flatten)]
        file: ConfigFile,
        /// How to log; what fits where stderr leads to, unless given
        #[arg(long, env = "PUSH_LOG_FORMAT", value_name = "FORMAT")]
        log_format: Option<LogFormat>,
    },
    /// Show how the daemon is doing, and what should be mended
    Status(StatusOptions),
    /// Look for what is wrong with this machine, NICs, store and daemon; each finding with its fix
    Doctor(ConfigFile),
    /// Applications whose servers may validate tokens
    #[command(subcommand)]
    App(App),
    /// Devices that are registered
    #[command(subcommand)]
    Terminal(devices::Terminal),
    /// Sessions of applications on devices
    #[command(subcommand)]
    Session(devices::Session),
    /// Networks whose addresses are their own
    #[command(subcommand)]
    Realm(Realm),
    /// NICs that the program is attached to
    #[command(subcommand)]
    Nic(Nic),
    /// What becomes of triggers, and why
    #[command(subcommand)]
    Trace(Trace),
    /// Show what became of packets, with what it means
    Stats(Stats),
    /// Watch rates, and the busiest sessions and applications, on the terminal; q ends it
    Top(Top),
    /// Show events as they happen, until interrupted
    Monitor(Monitor),
    Upgrade(UpgradeCommand),
    /// The configuration of the daemon
    #[command(subcommand)]
    Config(ConfigCommand),
    /// What the daemon keeps on disk, whether or not it runs
    #[command(subcommand)]
    Store(Store),
    /// Write everything that helps to find out what is wrong into one file, without secrets or devices
    Sysdump(Sysdump),
    /// What an application's server does
    #[command(subcommand)]
    Trigger(Trigger),
    /// Play a party that push works with, to try things out or to put load on them
    #[command(subcommand)]
    Emulate(emulate::Emulate),
    Probe(Box<probe::Probe>),
    /// Print what those who integrate need to know
    Guide {
        /// What about
        topic: guide::Topic,
    },
    /// Print a script that completes commands in a shell
    Completions {
        /// For which shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page of push-ctl, or write one for each command
    Man(Man),
}

#[derive(Debug, clap::Args)]
struct ConfigFile {
    /// Configuration file
    #[arg(short, long, env = "PUSH_CONFIG", value_name = "FILE", default_value = config::DEFAULT_PATH)]
    config: PathBuf,
}

impl ConfigFile {
    fn is_default(&self) -> bool {
        self.config == Path::new(config::DEFAULT_PATH)
    }
}

#[derive(Debug, Subcommand)]
enum App {
    /// Add an application and print its key, which can't be shown again
    Add {
        /// Name of the application: 1 to 64 of the characters A-Z a-z 0-9 . _ -
        name: String,
        #[command(flatten)]
        policy: PolicyOptions,
    },
    /// List applications
    List,
    /// Show one application, and what it may do
    Show {
        /// Name of the application
        name: String,
    },
    /// Change what an application may do, from now on and for all of its sessions; `off` takes a rule back
    #[command(
        override_usage = "push-ctl app set <NAME> <RULE>...\n\nRules are the options from --rate to --return-acks.",
        group(ArgGroup::new("rules").args(policy::OPTIONS).required(true).multiple(true))
    )]
    Set {
        /// Name of the application
        name: String,
        #[command(flatten)]
        policy: PolicyOptions,
    },
    /// Keys and certificates by which the servers of an application identify themselves
    #[command(subcommand)]
    Key(servers::Key),
    Monitor(servers::Monitor),
    Quota(servers::Quota),
    /// Remove an application; its sessions end
    Remove {
        /// Name of the application
        name: String,
    },
}

#[derive(Debug, Subcommand)]
enum Realm {
    /// List realms
    List,
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Print an example with all keys explained
    Example,
    /// Check a configuration without doing anything
    Check(ConfigFile),
    /// Have the daemon read its configuration anew, all of it or nothing
    Reload,
}

#[derive(Debug, Subcommand)]
enum Trigger {
    /// Sign a trigger and send it
    Send(trigger::Send),
}

/// What a command has to say.
struct Output {
    /// If it isn't the same for programs.
    json: Option<String>,
    people: String,
    /// Whether the command exits with 0: it may find out that something is wrong elsewhere.
    is_good: bool,
}

impl Output {
    fn new(data: &impl Serialize, people: String) -> Result<Self, Failure> {
        let json = serde_json::to_string(data).map_err(|error| Failure::new(error.to_string()))?;
        Ok(Self {
            json: Some(json),
            people,
            is_good: true,
        })
    }

    /// Of a command that has printed all there was to say.
    fn nothing() -> Self {
        Self {
            json: None,
            people: String::new(),
            is_good: true,
        }
    }
}

/// Why a command failed, and what can be done about it.
#[derive(Debug)]
struct Failure {
    error: String,
    hint: Option<String>,
    /// Whether the arguments are to blame, whatever the state of things is.
    is_usage: bool,
}

impl Failure {
    fn new(error: impl Into<String>) -> Self {
        Self {
            error: error.into(),
            hint: None,
            is_usage: false,
        }
    }

    fn with_hint(error: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            hint: Some(hint.into()),
            ..Self::new(error)
        }
    }

    /// The arguments make no sense.
    fn usage(error: impl Into<String>) -> Self {
        Self {
            is_usage: true,
            ..Self::new(error)
        }
    }

    fn exit_code(&self) -> ExitCode {
        if self.is_usage {
            ExitCode::from(2)
        } else {
            ExitCode::FAILURE
        }
    }

    fn report(&self, as_json: bool) {
        let error = people::without_error_numbers(&self.error);
        if as_json {
            print(&format!(
                "{}\n",
                json!({ "error": error, "hint": self.hint })
            ));
            return;
        }
        let hint = self
            .hint
            .as_ref()
            .map(|hint| format!("hint: {hint}\n"))
            .unwrap_or_default();
        // If nobody reads it there is nobody to tell.
        let _unread = write!(io::stderr(), "push-ctl: {error}\n{hint}");
    }
}

/// The whole program.
#[must_use]
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let as_json = cli.json;
    match dispatch(cli) {
        Ok(output) => {
            let text = match output.json {
                Some(json) if as_json => format!("{json}\n"),
                Some(_) | None => output.people,
            };
            let printed = print(&text);
            if output.is_good {
                printed
            } else {
                ExitCode::FAILURE
            }
        }
        Err(failure) => {
            failure.report(as_json);
            failure.exit_code()
        }
    }
}

/// What clap has to say: help and version too.
fn usage(error: &clap::Error) -> ExitCode {
    let as_json = std::env::args_os().any(|argument| argument == "-j" || argument == "--json");
    if as_json && error.use_stderr() {
        let text = error.render().to_string();
        let (first, rest) = text.split_once('\n').unwrap_or((&text, ""));
        let hint = rest.split_whitespace().collect::<Vec<_>>().join(" ");
        Failure::with_hint(first.trim_start_matches("error: "), hint).report(true);
    } else {
        // If nobody reads it there is nobody to tell.
        let _unread = error.print();
    }
    if error.use_stderr() {
        ExitCode::from(2)
    } else {
        ExitCode::SUCCESS
    }
}

/// Prints to stdout.
fn print(text: &str) -> ExitCode {
    match live::print(text) {
        Ok(_) => ExitCode::SUCCESS,
        Err(failure) => {
            failure.report(false);
            ExitCode::FAILURE
        }
    }
}

fn dispatch(cli: Cli) -> Result<Output, Failure> {
    let quiet = |people: String| {
        Ok(Output {
            json: None,
            people,
            is_good: true,
        })
    };
    let (socket, as_json) = (&cli.socket, cli.json);
    match cli.command {
        Command::Run { file, log_format } => {
            run(&file.config, log_format).and_then(|()| quiet(String::new()))
        }
        Command::Status(options) => health::status(socket, &options),
        Command::Doctor(file) => doctor::doctor(socket, &file),
        Command::Store(command) => command.dispatch(),
        Command::Stats(stats) => stats.dispatch(socket, cli.json),
        Command::Top(top) => top.dispatch(socket, cli.json),
        Command::Monitor(monitor) => monitor.dispatch(socket, cli.json),
        Command::Realm(Realm::List) => client::ask(socket, gateway::realm_list()),
        Command::Nic(command) => command.dispatch(socket),
        Command::Trace(command) => command.dispatch(socket, as_json),
        Command::App(command) => app(socket, command),
        Command::Terminal(command) => command.dispatch(socket),
        Command::Session(command) => command.dispatch(socket),
        Command::Config(ConfigCommand::Example) => quiet(Config::example().to_owned()),
        Command::Config(ConfigCommand::Reload) => client::ask(socket, reload::reload()),
        Command::Config(ConfigCommand::Check(ConfigFile { config })) => {
            let config = Config::load(&config).map_err(|error| bad_config(&error))?;
            let people = format!("{} is right.\n", config.path.display());
            Output::new(&json!({ "config": config.path, "valid": true }), people)
        }
        Command::Upgrade(upgrade) => upgrade.dispatch(socket),
        Command::Sysdump(sysdump) => sysdump.dispatch(socket),
        Command::Man(man) => man.dispatch(),
        Command::Trigger(Trigger::Send(send)) => trigger::send(&send),
        Command::Emulate(command) => emulate::dispatch(&command, cli.json),
        Command::Probe(options) => probe::probe(&options, socket, cli.json),
        Command::Guide { topic } => guide::guide(topic),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "push-ctl", &mut script);
            let script = String::from_utf8_lossy(&script);
            // clap_complete 4.6.11 sets one name for the program in bash and looks for another, as it
            // has a hyphen (clap-rs/clap#6421): nothing but the first word would be completed.
            quiet(script.replace("push__subcmd__ctl", "push__ctl"))
        }
    }
}

fn app(socket: &Path, command: App) -> Result<Output, Failure> {
    match command {
        App::Add { name, policy } => client::ask(socket, apps::app_add(&name, &policy.change()?)),
        App::List => client::ask(socket, apps::app_list()),
        App::Show { name } => client::ask(socket, apps::app_show(&name)),
        App::Set { name, policy } => client::ask(socket, apps::app_set(&name, &policy.change()?)),
        App::Key(key) => key.dispatch(socket),
        App::Monitor(monitor) => monitor.dispatch(socket),
        App::Quota(quota) => quota.dispatch(socket),
        App::Remove { name } => client::ask(socket, apps::app_remove(&name)),
    }
}

fn bad_config(error: &config::ConfigError) -> Failure {
    let hint = match error {
        config::ConfigError::Unreadable { .. } => {
            "name the file with -c, or begin with one from `push-ctl config example`"
        }
        config::ConfigError::Invalid { .. } | config::ConfigError::Senseless { .. } => {
            "`push-ctl config example` explains every key"
        }
    };
    Failure::with_hint(error.to_string(), hint)
}

fn run(path: &Path, log_format: Option<LogFormat>) -> Result<(), Failure> {
    // What it keeps in memory is nobody else's to look at, be it when it has crashed.
    nix::sys::prctl::set_dumpable(false).map_err(|error| Failure::new(error.to_string()))?;
    let config = Config::load(path).map_err(|error| bad_config(&error))?;
    log::start(log_format)?;
    let failed = |error: &dyn std::fmt::Display| Failure::new(error.to_string());
    let executable = std::env::current_exe().map_err(|e| failed(&e))?;
    let upgrade = Upgrade::of(executable.clone());
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|e| failed(&e))?;
    let ended = runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).map_err(|e| failed(&e))?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(|e| failed(&e))?;
        let shutdown = async {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        crate::run(config, upgrade, shutdown)
            .await
            .map_err(|error| Failure::new(format!("{error:#}")))
    })?;
    match ended {
        Ended::Stopped => Ok(()),
        Ended::ForUpgrade => {
            drop(runtime);
            let error = upgrade::execute(&executable);
            let error = format!("can't go on as {}: {error}", executable.display());
            Err(Failure::with_hint(error, "start the daemon anew"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commands_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_command_is_understood_or_refused_with_what_is_missing() {
        let id = "deadbeef00000001";
        let right: [&[&str]; 7] = [
            &["app", "add", "mail", "--rate", "10/s", "--return-acks"],
            &["app", "set", "mail", "--rate", "off"],
            &["app", "set", "--return-acks", "mail"],
            &["app", "show", "mail"],
            &["realm", "list"],
            &["session", "tunnel", "clear", id],
            &[
                "session",
                "tunnel",
                "set",
                id,
                "--peer",
                "fd00::1",
                "--teid",
                "0xFFFFFFFF",
            ],
        ];
        let parse = |arguments: &[&str]| {
            let program = ["push-ctl"].iter().chain(arguments);
            Cli::try_parse_from(program).map_err(|error| error.to_string())
        };
        for arguments in right {
            parse(arguments).unwrap_or_else(|error| panic!("{arguments:?}: {error}"));
        }
        let wrong: [(&[&str], &str); 5] = [
            (&["app", "set", "mail"], "--rate <N/UNIT|off>"),
            (&["session", "tunnel", "set", id, "--teid", "1"], "--peer"),
            (
                &[
                    "session", "tunnel", "set", id, "--peer", "fd00::1", "--teid", "0",
                ],
                "0 is no tunnel's",
            ),
            (
                &[
                    "session", "tunnel", "set", id, "--peer", "fd00::1", "--teid", "x",
                ],
                "write for example 4711 or 0x1267",
            ),
            (
                &["session", "tunnel", "clear", "xyz"],
                "16 hexadecimal digits",
            ),
        ];
        for (arguments, expected) in wrong {
            let error = parse(arguments).unwrap_err();
            assert!(error.contains(expected), "{arguments:?}: {error}");
        }
    }
}
