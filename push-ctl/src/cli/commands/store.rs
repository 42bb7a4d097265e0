//! The store, without the daemon.

use crate::cli::{ConfigFile, Failure, Output, bad_config};
use crate::config::Config;
use crate::store::inspect::{self, Inspected};
use clap::Subcommand;
use serde_json::json;
use std::fmt::Write;

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum Store {
    /// Check that all of the store can be read, and that it doesn't contradict itself or the configuration
    Check(ConfigFile),
    /// Print all that is in the store, an object on each line, without any secret
    Dump(ConfigFile),
}

impl Store {
    pub(in crate::cli) fn dispatch(self) -> Result<Output, Failure> {
        match self {
            Self::Check(ConfigFile { config }) => {
                let config = Config::load(&config).map_err(|error| bad_config(&error))?;
                check(&config, &read(&config)?)
            }
            Self::Dump(ConfigFile { config }) => {
                let config = Config::load(&config).map_err(|error| bad_config(&error))?;
                let mut lines = String::new();
                for row in read(&config)?.rows() {
                    let _infallible = writeln!(lines, "{row}");
                }
                // The same for people and programs.
                Ok(Output {
                    json: None,
                    people: lines,
                    is_good: true,
                })
            }
        }
    }
}

fn read(config: &Config) -> Result<Inspected, Failure> {
    let state_dir = config.state_dir.display();
    match inspect::inspect(&config.state_dir) {
        Ok(Some(inspected)) => Ok(inspected),
        Ok(None) => Err(Failure::with_hint(
            format!("there is no store in {state_dir}"),
            "the daemon makes it when it starts; name its configuration with -c",
        )),
        Err(error) => Err(Failure::new(error.to_string())),
    }
}

fn check(config: &Config, inspected: &Inspected) -> Result<Output, Failure> {
    let contradiction = inspected.contradiction(config);
    let unknown_realms = inspected.unknown_realms(config);
    let mut people = format!("{}.\n", inspected.summary());
    if inspected.is_in_use {
        people += "A daemon has it open: this is a copy, as it was a moment ago.\n";
    }
    for realm in &unknown_realms {
        let _infallible = writeln!(
            people,
            "warning: there are terminals of realm {realm}, which is not in the configuration"
        );
    }
    match &contradiction {
        Some(what) => {
            let _infallible = writeln!(people, "NOT RIGHT: {what}");
        }
        None => people += "All of it can be read, and nothing contradicts.\n",
    }
    let json = json!({
        "path": inspected.path,
        "version": inspected.version,
        "len_bytes": inspected.len_bytes,
        "in_use": inspected.is_in_use,
        "terminals": inspected.image.terminals.len(),
        "sessions": inspected.image.sessions.len(),
        "apps": inspected.image.apps.len(),
        "unknown_realms": unknown_realms,
        "valid": contradiction.is_none(),
        "contradiction": contradiction,
    });
    Ok(Output {
        is_good: contradiction.is_none(),
        ..Output::new(&json, people)?
    })
}
