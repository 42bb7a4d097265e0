//! All figures at one moment, and their form.
//!
//! Nothing has a label by session or terminal: there may be millions.

use super::{Sources, writable};
use crate::controller::Turns;
use crate::dataplane::{NicCounters, NicStatus};
use crate::internal::NoticeCounts;
use crate::sessions::Counts;
use crate::sessions::records::Availability;
use anyhow::Result;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeGaugeValue, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};
use push_common::maps::LAYOUT_VERSION;
use std::fmt;
use std::fs;
use std::time::{Duration, Instant};

/// What all names begin with.
const PREFIX: &str = "push";

/// All figures at one moment.
#[derive(Debug)]
pub(super) struct Snapshot {
    uptime: Duration,
    /// How long the controller took to answer.
    answer_time: Duration,
    /// Requests that wait for the controller.
    requests_waiting: usize,
    turns: Turns,
    counts: Counts,
    slots: u32,
    terminals: usize,
    apps: Vec<App>,
    counters: Vec<NicCounters>,
    nics: Vec<NicStatus>,
    events_lost: u64,
    notices_waiting: usize,
    notices: NoticeCounts,
    warnings: usize,
    store_bytes: u64,
    store_is_writable: bool,
    audit_is_written: bool,
    audit_lost: u64,
}

#[derive(Debug)]
struct App {
    name: String,
    sessions: usize,
    is_available: bool,
}

impl Snapshot {
    /// Has a look.
    ///
    /// # Errors
    ///
    /// The controller has stopped, or the kernel refuses.
    pub(super) async fn take(sources: &Sources) -> Result<Self> {
        let Sources {
            controller,
            daemon,
            notices,
            notice_counters,
        } = sources;
        let requests_waiting = controller.waiting();
        let nics = controller.nics().await?;
        let asked = Instant::now();
        let mut snapshot = controller
            .observe(move |view| {
                let app = |(app, sessions): (&crate::sessions::records::App, usize)| App {
                    name: app.name.to_string(),
                    sessions,
                    is_available: match app.availability {
                        Availability::Available => true,
                        Availability::Failed { .. } => false,
                    },
                };
                anyhow::Ok(Self {
                    uptime: Duration::ZERO,
                    answer_time: Duration::ZERO,
                    requests_waiting,
                    turns: view.turns,
                    counts: view.sessions.counts(),
                    slots: view.sessions.slots(),
                    terminals: view.sessions.terminals().len(),
                    apps: view.sessions.apps().map(app).collect(),
                    counters: view.kernel.verdicts()?,
                    nics,
                    events_lost: view.kernel.events_lost(),
                    notices_waiting: 0,
                    notices: NoticeCounts::default(),
                    warnings: view.warnings().len(),
                    store_bytes: 0,
                    store_is_writable: false,
                    audit_is_written: true,
                    audit_lost: 0,
                })
            })
            .await??;
        snapshot.answer_time = asked.elapsed();
        snapshot.uptime = daemon.started.elapsed();
        snapshot.warnings += daemon.warnings().len();
        snapshot.notices_waiting = notices.upgrade().map_or(0, |notices| {
            notices.max_capacity().saturating_sub(notices.capacity())
        });
        snapshot.notices = notice_counters.read();
        snapshot.store_bytes = fs::metadata(&daemon.store).map_or(0, |file| file.len());
        snapshot.store_is_writable = writable(&daemon.store).is_ok();
        if let Some(audit) = daemon.events.audit() {
            snapshot.audit_is_written = audit.is_written();
            snapshot.audit_lost = audit.lost();
        }
        Ok(snapshot)
    }

    /// As `OpenMetrics`.
    pub(super) fn into_text(self) -> String {
        let mut registry = Registry::with_prefix(PREFIX);
        registry.register_collector(Box::new(self));
        let mut text = String::new();
        encode(&mut text, &registry).expect("there is no end to what a text takes");
        text
    }

    fn encode_packets(&self, form: &mut Form<'_>) -> fmt::Result {
        let of_all = || {
            self.counters.iter().flat_map(|nic| {
                let of_nic = nic.by_verdict.iter();
                of_nic.map(|&(verdict, packets, bytes)| {
                    let labels = [
                        ("nic", nic.name.as_str()),
                        ("verdict", verdict.label()),
                        ("action", verdict.action().label()),
                    ];
                    (labels, packets, bytes)
                })
            })
        };
        let packets = of_all().map(|(labels, packets, _)| (labels, packets));
        form.counters("packets", "Frames by what became of them", None, packets)?;
        let bytes = of_all().map(|(labels, _, bytes)| (labels, bytes));
        let help = "Bytes of frames, without FCS, by what became of them";
        form.counters("packet", help, Some(&Unit::Bytes), bytes)
    }

    fn encode_round_trips(&self, form: &mut Form<'_>) -> fmt::Result {
        let help = "From the delivery of a trigger to its acknowledgement; the sum is an estimate from the buckets";
        let kind = MetricType::Histogram;
        let encoder = &mut form.0;
        let mut all = encoder.encode_descriptor("round_trip", help, Some(&Unit::Seconds), kind)?;
        for nic in &self.counters {
            let (mut sum_s, mut count) = (0.0, 0);
            let mut buckets = Vec::new();
            // Class n is from 2^n to below 2^(n+1) microseconds.
            let mut below_s = 2e-6;
            for acknowledgements in nic.round_trips {
                buckets.push((below_s, acknowledgements));
                sum_s += 0.75 * below_s * acknowledgements as f64;
                count += acknowledgements;
                below_s *= 2.0;
            }
            // No time is longer than the last class.
            buckets.push((f64::INFINITY, 0));
            all.encode_family(&[("nic", nic.name.as_str())])?
                .encode_histogram::<NoLabelSet>(sum_s, count, &buckets, None)?;
        }
        Ok(())
    }

    fn encode_notices(&self, form: &mut Form<'_>) -> fmt::Result {
        let NoticeCounts {
            sent,
            retransmitted,
            taken,
            refused,
            superseded,
            unanswered,
            dropped,
        } = self.notices;
        let by_outcome = [
            ([("outcome", "taken")], taken),
            ([("outcome", "refused")], refused),
            ([("outcome", "superseded")], superseded),
            ([("outcome", "unanswered")], unanswered),
            ([("outcome", "dropped")], dropped),
        ];
        let help = "Messages to devices by what has become of them";
        form.counters("notices", help, None, by_outcome.into_iter())?;
        let help = "Messages to devices that were sent, and are neither answered nor given up";
        let outstanding = sent.saturating_sub(taken + refused + unanswered);
        form.gauge("notices_outstanding", help, None, outstanding)?;
        let help = "Messages to devices that were sent once more";
        form.counter("notices_retransmitted", help, retransmitted)
    }

    fn encode_sessions(&self, form: &mut Form<'_>) -> fmt::Result {
        let Counts {
            requested,
            authorised,
        } = self.counts;
        let by_state = [
            ([("state", "requested")], requested),
            ([("state", "authorised")], authorised),
        ];
        form.gauges("sessions", "Sessions that aren't over", None, by_state)?;
        form.gauge(
            "session_slots",
            "Sessions that there can be",
            None,
            self.slots,
        )?;
        form.gauge(
            "terminals",
            "Terminals that are known",
            None,
            self.terminals,
        )?;
        let apps = self.apps.iter();
        let sessions = apps
            .clone()
            .map(|app| ([("app", app.name.as_str())], app.sessions));
        let help = "Sessions of an application that aren't over";
        form.gauges("app_sessions", help, None, sessions)?;
        let available = apps.map(|app| ([("app", app.name.as_str())], flag(app.is_available)));
        let help = "1 if the server of an application is in service, as far as is known";
        form.gauges("app_available", help, None, available)
    }
}

impl Collector for Snapshot {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut form = Form(encoder);
        let form = &mut form;
        let version = LAYOUT_VERSION.to_string();
        let build = [
            ("version", env!("CARGO_PKG_VERSION")),
            ("layout_version", &version),
        ];
        form.0
            .encode_descriptor("build", "Which daemon this is", None, MetricType::Info)?
            .encode_info(&build)?;
        let seconds = Some(&Unit::Seconds);
        let uptime_s = self.uptime.as_secs_f64();
        form.gauge("uptime", "Since the daemon is ready", seconds, uptime_s)?;
        self.encode_packets(form)?;
        self.encode_round_trips(form)?;
        let help = "Events of the data plane that were never told of, as there were too many";
        form.counter("events_lost", help, self.events_lost)?;
        let attached = self.nics.iter().map(|nic| {
            let labels = [("nic", nic.name.as_str()), ("mode", nic.mode)];
            (labels, flag(nic.mode != "none"))
        });
        let help = "1 if the program is on the NIC, and how";
        form.gauges("nic_attached", help, None, attached)?;
        self.encode_sessions(form)?;
        let help = "Size of the store's file";
        form.gauge("store", help, Some(&Unit::Bytes), self.store_bytes)?;
        let help = "1 if the store can be written to";
        form.gauge("store_writable", help, None, flag(self.store_is_writable))?;
        let help = "Messages to devices that wait to be sent";
        form.gauge("notices_waiting", help, None, self.notices_waiting)?;
        self.encode_notices(form)?;
        let help = "Requests that wait for the controller";
        form.gauge("requests_waiting", help, None, self.requests_waiting)?;
        let help = "How long the controller took to answer this request for figures";
        let answer_s = self.answer_time.as_secs_f64();
        form.gauge("controller_answer", help, seconds, answer_s)?;
        let help = "How long the controller was busy before it looked again who waits";
        let kind = MetricType::Histogram;
        form.0
            .encode_descriptor("controller_turn", help, seconds, kind)?
            .encode_histogram::<NoLabelSet>(
                self.turns.sum().as_secs_f64(),
                self.turns.classes().iter().map(|&(_, count)| count).sum(),
                &self.turns.classes(),
                None,
            )?;
        let help = "What push-ctl status warns of";
        form.gauge("warnings", help, None, self.warnings)?;
        let help = "1 if the audit log can be written to";
        form.gauge("audit_writable", help, None, flag(self.audit_is_written))?;
        let help = "Entries of the audit log that were lost";
        form.counter("audit_entries_lost", help, self.audit_lost)
    }
}

const fn flag(condition: bool) -> u32 {
    if condition { 1 } else { 0 }
}

/// Writes down whole families.
struct Form<'a>(DescriptorEncoder<'a>);

impl Form<'_> {
    fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        self.0
            .encode_descriptor(name, help, None, MetricType::Counter)?
            .encode_counter::<NoLabelSet, _, f64>(&value, None)
    }

    fn counters<'l, const LABELS: usize>(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        values: impl Iterator<Item = ([(&'l str, &'l str); LABELS], u64)>,
    ) -> fmt::Result {
        let kind = MetricType::Counter;
        let mut family = self.0.encode_descriptor(name, help, unit, kind)?;
        for (labels, value) in values {
            family
                .encode_family(&labels)?
                .encode_counter::<NoLabelSet, _, f64>(&value, None)?;
        }
        Ok(())
    }

    fn gauge(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        value: impl EncodeGaugeValue + Copy,
    ) -> fmt::Result {
        self.0
            .encode_descriptor(name, help, unit, MetricType::Gauge)?
            .encode_gauge(&value)
    }

    fn gauges<'l, const LABELS: usize>(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        values: impl IntoIterator<Item = ([(&'l str, &'l str); LABELS], impl EncodeGaugeValue)>,
    ) -> fmt::Result {
        let kind = MetricType::Gauge;
        let mut family = self.0.encode_descriptor(name, help, unit, kind)?;
        for (labels, value) in values {
            family.encode_family(&labels)?.encode_gauge(&value)?;
        }
        Ok(())
    }
}
