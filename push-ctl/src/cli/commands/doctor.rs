//! What is wrong with this machine.

use crate::admin::api::Status;
use crate::cli::people::{Table, plural, without_error_numbers};
use crate::cli::{ConfigFile, Failure, Output, bad_config, client};
use crate::config::Config;
use crate::doctor::{self, Patient, Report, Verdict};
use std::path::Path;
use std::time::Duration;

/// A daemon that takes longer is no help.
const LIMIT: Duration = Duration::from_secs(5);

pub(in crate::cli) fn doctor(socket: &Path, file: &ConfigFile) -> Result<Output, Failure> {
    let report = examine(socket, file)?;
    let people = people(&report);
    Ok(Output {
        is_good: report.healthy,
        ..Output::new(&report, people)?
    })
}

pub(super) fn examine(socket: &Path, file: &ConfigFile) -> Result<Report, Failure> {
    let daemon = client::get::<Status>(socket, "/v1/status", LIMIT);
    // The daemon's own, unless it is another one that is asked about.
    let path = match &daemon {
        Ok(status) if file.is_default() => &status.config,
        Ok(_) | Err(_) => &file.config,
    };
    let config = Config::load(path).map_err(|error| {
        let failure = bad_config(&error);
        (failure.error, failure.hint.unwrap_or_default())
    });
    let patient = Patient {
        config: config.as_ref().map_err(Clone::clone),
        daemon: daemon.as_ref().map_err(|failure| {
            let hint = failure.hint.clone();
            let hint = hint.unwrap_or_else(|| "its log may say why".to_owned());
            (failure.error.clone(), hint)
        }),
    };
    client::wait_for(async { Ok(doctor::examine(&patient).await) })
}

fn people(report: &Report) -> String {
    let mut table = Table::new(&["", "CHECK", "FOUND"]);
    for finding in &report.findings {
        let verdict = match finding.verdict {
            Verdict::Ok => "ok",
            Verdict::Warn => "warn",
            Verdict::Fail => "FAIL",
        };
        table.row([
            verdict.to_owned(),
            finding.check.clone(),
            without_error_numbers(&finding.found),
        ]);
        if let Some(fix) = &finding.fix {
            table.row([String::new(), String::new(), format!("-> {fix}")]);
        }
    }
    let count = |verdict| {
        let findings = report.findings.iter();
        findings.filter(|it| it.verdict == verdict).count()
    };
    let (failures, warnings) = (count(Verdict::Fail), count(Verdict::Warn));
    format!(
        "{table}\n{}, {}.\n",
        plural(failures, "failure"),
        plural(warnings, "warning")
    )
}
