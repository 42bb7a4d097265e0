//! Manual pages.

use crate::cli::{Cli, Failure, Output};
use clap::CommandFactory;
use std::fs;
use std::path::PathBuf;

/// Print the manual page of push-ctl, or write one for each command
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Man {
    /// Write them into this directory, which is made if it isn't there
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

impl Man {
    pub(in crate::cli) fn dispatch(self) -> Result<Output, Failure> {
        let mut people = String::new();
        match self.dir {
            None => {
                let mut page = Vec::new();
                let written = clap_mangen::Man::new(Cli::command()).render(&mut page);
                written.map_err(|error| Failure::new(error.to_string()))?;
                people = String::from_utf8_lossy(&page).into_owned();
            }
            Some(dir) => {
                let written = fs::create_dir_all(&dir)
                    .and_then(|()| clap_mangen::generate_to(Cli::command(), &dir));
                written.map_err(|error| {
                    Failure::new(format!("can't write to {}: {error}", dir.display()))
                })?;
            }
        }
        Ok(Output {
            json: None,
            people,
            is_good: true,
        })
    }
}
