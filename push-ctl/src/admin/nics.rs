//! NICs, also those that come and go by hand.

use super::api::{AttachNic, NicAttached, NicDetached, NicListed, NicStatus};
use super::gateway::kernel_problem;
use super::{Answer, Daemon, Operator, Peer};
use crate::config::{self, Role};
use crate::controller::Controller;
use crate::dataplane::{self, NicCounters, NicRefusal, survey};
use crate::problem::{Problem, Segment};
use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::extract::{ConnectInfo, State};
use axum::http::StatusCode;
use push_common::verdict::Action;

pub(super) async fn list(State(operator): State<Operator>) -> Answer<Vec<NicListed>> {
    let nics = statuses(&operator).await?;
    let counters = operator
        .controller
        .observe(|view| view.kernel.verdicts())
        .await?
        .map_err(|error| kernel_problem(&error))?;
    let nics = nics.into_iter().map(|status| {
        let counters = counters.iter().find(|nic| nic.name == status.name);
        listed(status, counters)
    });
    Ok(Json(nics.collect()))
}

pub(super) async fn attach(
    State(operator): State<Operator>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    body: Result<Json<AttachNic>, JsonRejection>,
) -> Answer<NicAttached> {
    let Json(asked) = body?;
    let attached = attach_checked(&operator, &asked).await;
    peer.audit_change("nic attach", &asked.name, &asked, &attached);
    attached
}

pub(super) async fn detach(
    State(operator): State<Operator>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Segment(name): Segment,
) -> Answer<NicDetached> {
    let detached = detach_named(&operator, &name).await;
    peer.audit("nic detach", &name, &detached);
    detached
}

async fn attach_checked(operator: &Operator, asked: &AttachNic) -> Answer<NicAttached> {
    let AttachNic {
        name,
        role,
        trigger_addresses,
    } = asked.clone();
    let nic = config::Nic {
        name,
        role,
        trigger_addresses,
    };
    let seen = survey::nic(&nic.name).await;
    if seen.map_err(|error| kernel_problem(&error))?.is_none() {
        return Err(NicRefusal::Unknown(nic.name).into());
    }
    let is = statuses(operator).await?;
    check(&operator.daemon.in_force.config(), &is, &nic)?;
    operator.controller.attach_nic((&nic).into()).await??;
    let is = statuses(operator).await?;
    let status = is.into_iter().find(|status| status.name == nic.name);
    let status = status.ok_or_else(|| Problem::from(NicRefusal::NotAttached(nic.name.clone())))?;
    let mut warnings = Vec::new();
    if !status.configured {
        let name = &nic.name;
        let config = operator.daemon.in_force.config();
        warnings.push(if config.nic.iter().any(|nic| nic.name == *name) {
            format!(
                "the configuration has another role or other trigger addresses for {name}: the next start of the daemon goes by it"
            )
        } else {
            format!(
                "{name} is not in the configuration: the next start of the daemon detaches it, unless there is a [[nic]] for it"
            )
        });
    }
    if status.mode == "generic" {
        warnings.push(format!(
            "{} is in generic mode, which is slow: its driver has no native XDP",
            nic.name
        ));
    }
    Ok(Json(NicAttached {
        nic: status,
        warnings,
    }))
}

async fn detach_named(operator: &Operator, name: &str) -> Answer<NicDetached> {
    operator.controller.detach_nic(name.to_owned()).await??;
    let mut warnings = Vec::new();
    if operator
        .daemon
        .config
        .nic
        .iter()
        .any(|nic| nic.name == name)
    {
        warnings.push(format!(
            "{name} is in the configuration: the next start of the daemon attaches to it, unless its [[nic]] is removed"
        ));
    }
    if !is_any_trigger_taken(&operator.controller) {
        warnings.push("no NIC takes triggers any more: nothing is delivered".to_owned());
    }
    Ok(Json(NicDetached {
        name: name.to_owned(),
        detached: true,
        warnings,
    }))
}

fn is_any_trigger_taken(controller: &Controller) -> bool {
    !controller.trigger_addresses().is_empty()
}

/// Whether the configuration could have this NIC next to those that there are.
fn check(config: &config::Config, is: &[NicStatus], nic: &config::Nic) -> Result<(), Problem> {
    let mut with_it = config.clone();
    with_it.nic = is
        .iter()
        .filter(|other| other.name != nic.name)
        .filter_map(|other| {
            Some(config::Nic {
                name: other.name.clone(),
                role: other.role?,
                trigger_addresses: other.trigger_addresses.clone(),
            })
        })
        .chain([nic.clone()])
        .collect();
    let Err(problems) = with_it.check() else {
        return Ok(());
    };
    let its_own = format!("nic.{}", nic.name);
    let of_it: Vec<_> = problems
        .0
        .iter()
        .filter(|problem| problem.key.starts_with(&its_own) || problem.key == "nic.name")
        .map(|problem| match problem.key.strip_prefix(&its_own) {
            Some(key) => format!("{} {}", key.trim_start_matches('.'), problem.what),
            None => problem.what.clone(),
        })
        .collect();
    if of_it.is_empty() {
        return Ok(());
    }
    Err(Problem::new(
        StatusCode::BAD_REQUEST,
        "bad-nic",
        "There can be no such NIC",
        format!("{}: {}", nic.name, of_it.join("; ")),
    ))
}

/// All NICs that the program is attached to.
pub(super) async fn statuses(operator: &Operator) -> Result<Vec<NicStatus>, Problem> {
    let nics = operator.controller.nics().await;
    let nics = nics.map_err(|error| kernel_problem(&error))?;
    let config = operator.daemon.in_force.config();
    Ok(nics.into_iter().map(|nic| status(nic, &config)).collect())
}

fn status(nic: dataplane::NicStatus, config: &config::Config) -> NicStatus {
    let role = Role::of(nic.takes_triggers, nic.takes_acks);
    let is_it = |configured: &&config::Nic| {
        let like = dataplane::Nic::from(*configured);
        configured.name == nic.name
            && Some(configured.role) == role
            && like
                .trigger_addresses()
                .eq(nic.trigger_addresses.iter().copied())
    };
    NicStatus {
        role,
        configured: config.nic.iter().any(|nic| is_it(&nic)),
        trigger_addresses: nic.trigger_addresses,
        name: nic.name,
        index: nic.index,
        mode: nic.mode.to_owned(),
        program_id: nic.program_id,
        link_id: nic.link_id,
        adopted: nic.adopted,
    }
}

/// NICs by which nothing comes or goes.
pub(super) async fn silent(nics: &[NicStatus]) -> Vec<String> {
    let mut warnings = Vec::new();
    for NicStatus { name, .. } in nics {
        if survey::is_up(name).await == Some(false) {
            warnings.push(format!(
                "{name} is down, or without a carrier: ip link set dev {name} up"
            ));
        }
    }
    warnings
}

/// What isn't as the configuration has it.
pub(super) fn warnings(daemon: &Daemon, nics: &[NicStatus]) -> Vec<String> {
    let config = daemon.in_force.config();
    let configured = config.nic.iter();
    let missing = configured.filter(|nic| !nics.iter().any(|other| other.name == nic.name));
    missing
        .map(|nic| {
            format!(
                "{name} is in the configuration but was detached: `push-ctl nic attach {name} --role {}` or the next start attaches to it",
                nic.role.label(),
                name = nic.name,
            )
        })
        .collect()
}

fn listed(status: NicStatus, counters: Option<&NicCounters>) -> NicListed {
    let by_verdict = counters.map_or(&[][..], |counters| &counters.by_verdict);
    let mut listed = NicListed {
        status,
        packets: 0,
        bytes: 0,
        sent: 0,
        passed: 0,
        dropped: 0,
    };
    for &(verdict, packets, bytes) in by_verdict {
        listed.packets += packets;
        listed.bytes += bytes;
        match verdict.action() {
            Action::Transmit | Action::Redirect => listed.sent += packets,
            Action::Pass => listed.passed += packets,
            Action::Drop => listed.dropped += packets,
        }
    }
    listed
}

impl From<NicRefusal> for Problem {
    fn from(refusal: NicRefusal) -> Self {
        let (status, kind, title) = match &refusal {
            NicRefusal::Unknown(_) => (StatusCode::NOT_FOUND, "unknown-nic", "No such NIC"),
            NicRefusal::AlreadyAttached(_) => {
                (StatusCode::CONFLICT, "nic-attached", "The NIC is attached")
            }
            NicRefusal::NotAttached(_) => (
                StatusCode::NOT_FOUND,
                "nic-not-attached",
                "The NIC isn't attached",
            ),
            NicRefusal::Refused(_) => (
                StatusCode::CONFLICT,
                "nic-refused",
                "The NIC can't be attached or detached",
            ),
        };
        Self::new(status, kind, title, refusal.to_string())
    }
}
