//! The store, without the daemon.

use crate::cli::{ConfigFile, Failure, Output, bad_config};
use crate::config::Config;
use crate::store::inspect::{self, Inspected};
use crate::store::{KeyEncryptionKey, RedbStore, StoreError};
use clap::Subcommand;
use serde_json::json;
use std::fmt::Write;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum Store {
    /// Check that all of the store can be read, and that it doesn't contradict itself or the configuration
    Check(ConfigFile),
    /// Print all that is in the store, an object on each line, without any secret
    Dump(ConfigFile),
    /// Have keys in the store encrypted with the configuration's `state_key_file`, or as they are if it has none
    ///
    /// For when they are encrypted with another file now; the daemon itself encrypts those that aren't. It has to
    /// be stopped. What was in the file before may stay on the disk until it is overwritten.
    Rekey {
        #[command(flatten)]
        config: ConfigFile,
        /// The key file that they are encrypted with now, if they are
        #[arg(long, value_name = "FILE")]
        from: Option<PathBuf>,
    },
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
            Self::Rekey { config, from } => {
                let config = Config::load(&config.config).map_err(|error| bad_config(&error))?;
                rekey(&config, from.as_deref())
            }
        }
    }
}

fn read(config: &Config) -> Result<Inspected, Failure> {
    let kek = config.key_encryption_key().map_err(to_failure)?;
    match inspect::inspect(&config.state_dir, kek.as_ref()) {
        Ok(Some(inspected)) => Ok(inspected),
        Ok(None) => Err(no_store(config)),
        Err(error) => Err(to_failure(error)),
    }
}

fn no_store(config: &Config) -> Failure {
    Failure::with_hint(
        format!("there is no store in {}", config.state_dir.display()),
        "the daemon makes it when it starts; name its configuration with -c",
    )
}

#[expect(clippy::needless_pass_by_value, reason = "it is what failed")]
fn to_failure(error: impl ToString) -> Failure {
    Failure::new(error.to_string())
}

fn rekey(config: &Config, from: Option<&Path>) -> Result<Output, Failure> {
    let from = from.map(KeyEncryptionKey::read).transpose();
    let from = from.map_err(to_failure)?;
    let to = config.key_encryption_key().map_err(to_failure)?;
    match RedbStore::rekey(&config.state_dir, from.as_ref(), to.as_ref()) {
        Err(StoreError::Io { cause, .. }) if cause.kind() == ErrorKind::NotFound => {
            return Err(no_store(config));
        }
        result => result.map_err(to_failure)?,
    }
    let people = match &config.state_key_file {
        Some(file) => format!(
            "Keys in the store are encrypted with {} now.\n",
            file.display()
        ),
        None => {
            "Keys in the store are not encrypted now: whoever has a copy of it can sign triggers.\n"
                .to_owned()
        }
    };
    Output::new(&json!({ "keys_encrypted": to.is_some() }), people)
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
        "keys_encrypted": inspected.is_encrypted,
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
