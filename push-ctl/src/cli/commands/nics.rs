//! NICs.

use super::none;
use crate::admin::api::{AttachNic, NicAttached, NicDetached, NicListed, NicStatus};
use crate::cli::client::{self, Question};
use crate::cli::people::{Table, amount};
use crate::cli::{Failure, Output};
use crate::config::Role;
use clap::Subcommand;
use reqwest::Method;
use serde_json::json;
use std::fmt::Write;
use std::net::IpAddr;
use std::path::Path;

/// NICs that the program is attached to
#[derive(Debug, Subcommand)]
pub(in crate::cli) enum Nic {
    /// List the NICs that the program is attached to, with what came in by them
    List,
    /// Attach the program to one more NIC, until the daemon starts anew
    Attach {
        /// Its name
        name: String,
        /// What is behind it: application servers, devices, or both
        #[arg(long, value_enum)]
        role: Role,
        /// To which of its addresses triggers are sent: one per IP version, not for role internal
        #[arg(long, value_name = "ADDR", num_args = 1..=2)]
        trigger_address: Vec<IpAddr>,
    },
    /// Detach the program from a NIC; other NICs and all sessions stay as they are
    Detach {
        /// Its name
        name: String,
    },
}

impl Nic {
    pub(in crate::cli) fn dispatch(self, socket: &Path) -> Result<Output, Failure> {
        match self {
            Self::List => client::ask(socket, list()),
            Self::Attach {
                name,
                role,
                trigger_address,
            } => {
                let body = AttachNic {
                    name,
                    role,
                    trigger_addresses: trigger_address,
                };
                client::ask(socket, attach(&body))
            }
            Self::Detach { name } => client::ask(socket, detach(&name)),
        }
    }
}

fn list() -> Question<Vec<NicListed>> {
    Question::get("/v1/nics", |nics: &Vec<NicListed>| {
        let mut table = Table::new(&[
            "NIC",
            "ROLE",
            "TRIGGERS TO",
            "MODE",
            "PROGRAM",
            "CONFIGURED",
            "PACKETS",
            "SENT",
            "PASSED",
            "DROPPED",
        ]);
        for nic in nics {
            let status = &nic.status;
            table.row([
                status.name.clone(),
                role(status).to_owned(),
                addresses(status),
                status.mode.clone(),
                status.program_id.to_string(),
                yes_or_no(status.configured).to_owned(),
                amount(nic.packets),
                amount(nic.sent),
                amount(nic.passed),
                amount(nic.dropped),
            ]);
        }
        table.or_say("Attached to no NIC; `push-ctl nic attach` does so.")
    })
}

fn attach(body: &AttachNic) -> Question<NicAttached> {
    let body = Some(json!(body));
    Question::act(Method::POST, "/v1/nics", body, |answer: &NicAttached| {
        let nic = &answer.nic;
        let text = format!(
            "Attached to {} as {} in {} mode: program {}, link {}.\n",
            nic.name,
            role(nic),
            nic.mode,
            nic.program_id,
            nic.link_id
        );
        with_warnings(text, &answer.warnings)
    })
}

fn detach(name: &str) -> Question<NicDetached> {
    let path = format!("/v1/nics/{}", super::segment(name));
    Question::act(Method::DELETE, path, None, |answer: &NicDetached| {
        with_warnings(
            format!("Detached from {}.\n", answer.name),
            &answer.warnings,
        )
    })
}

/// What a NIC is for.
pub(super) fn role(nic: &NicStatus) -> &'static str {
    nic.role.map_or("-", Role::label)
}

/// Addresses to which triggers are sent.
fn addresses(nic: &NicStatus) -> String {
    if nic.trigger_addresses.is_empty() {
        return none();
    }
    let texts: Vec<_> = nic
        .trigger_addresses
        .iter()
        .map(ToString::to_string)
        .collect();
    texts.join(" ")
}

pub(super) fn yes_or_no(is_so: bool) -> &'static str {
    if is_so { "yes" } else { "no" }
}

fn with_warnings(mut text: String, warnings: &[String]) -> String {
    for warning in warnings {
        let _infallible = writeln!(text, "warning: {warning}");
    }
    text
}
