//! Many triggers at once, and the account of what became of them.

use super::ledger::{self, Counts, FORWARDED, Row};
use super::stage::{Stage, grouped};
use crate::clients::Granted;
use crate::lab::Lab;
use crate::traffic::{Load, Received, Sent, Session, Sink, Turn};
use anyhow::{Context, Result};
use std::net::UdpSocket;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

/// Length of the generator's payloads.
const PAYLOAD_BYTES: usize = 48;

/// How long what was sent may take to arrive.
const LIMIT: Duration = Duration::from_secs(10);

/// The way of many triggers: from the application server's socket to the device's sink.
pub(super) struct Lane {
    pub(super) socket: UdpSocket,
    pub(super) sink: Sink,
    pub(super) sessions: Vec<Session>,
}

impl Lane {
    pub(super) fn new(socket: UdpSocket, device: UdpSocket, sessions: &[Granted]) -> Result<Self> {
        let sessions: Vec<_> = sessions.iter().map(|session| session.traffic).collect();
        Ok(Self {
            socket,
            sink: Sink::start(device, &sessions).context("cannot start the sink")?,
            sessions,
        })
    }
}

/// All that was sent, and what became of it.
pub(super) struct Volleys<'a> {
    lab: &'a Lab,
    rows: Vec<Row>,
    /// What was sent one by one.
    pub(super) single: Row,
    retired: Vec<Lane>,
    /// Sequence number that no session has used yet.
    pub(super) next_sequence: u64,
}

impl<'a> Volleys<'a> {
    pub(super) fn new(lab: &'a Lab) -> Self {
        Self {
            lab,
            rows: Vec::new(),
            single: Row {
                what: "one by one, by push-ctl".to_owned(),
                ..Row::default()
            },
            retired: Vec::new(),
            next_sequence: 1,
        }
    }

    /// What `lane` would send next.
    pub(super) fn load<'l>(&self, lane: &'l Lane, triggers: u64) -> Load<'l> {
        Load {
            sessions: &lane.sessions,
            first_sequence: self.next_sequence,
            triggers,
            payload_bytes: PAYLOAD_BYTES,
            rate_per_s: None,
            turns: &[Turn::Good],
        }
    }

    /// Nothing more is sent by `lane`, but what still arrives will be found at the end.
    pub(super) fn retire(&mut self, lane: Lane) {
        self.retired.push(lane);
    }

    /// Everything, to be judged.
    pub(super) fn into_rows(self) -> Vec<Row> {
        let mut rows = self.rows;
        rows.push(self.single);
        rows
    }

    /// Judges all that has arrived at the sinks of lanes that are retired.
    pub(super) fn judge_sinks(&mut self, stage: &mut Stage) -> Result<()> {
        let mut all = Received::default();
        for lane in self.retired.drain(..) {
            let Received {
                delivered,
                duplicates,
                corrupt,
                foreign,
            } = lane.sink.finish()?;
            all.delivered += delivered;
            all.duplicates += duplicates;
            all.corrupt += corrupt;
            all.foreign += foreign;
        }
        let due = self.rows.iter().map(|row| row.due).sum();
        let expected = Received::just(due);
        stage.check(
            all == expected,
            format!(
                "the devices' sinks: {} byte for byte as sent, {} twice, {} corrupt, {} foreign",
                grouped(all.delivered),
                all.duplicates,
                all.corrupt,
                all.foreign
            ),
        );
        Ok(())
    }

    /// Sends triggers that all have to be delivered.
    pub(super) fn delivered(
        &mut self,
        stage: &Stage,
        what: &str,
        lane: &Lane,
        triggers: u64,
        rate_per_s: Option<u32>,
    ) -> Result<()> {
        let load = Load {
            rate_per_s,
            ..self.load(lane, triggers)
        };
        let before = ledger::counts(self.lab)?;
        let arrived_before = lane.sink.received().delivered;
        let sent = load
            .send_in_step(&lane.socket, &AtomicBool::new(false), lane.sink.under_way())
            .context("the generator cannot send")?;
        self.next_sequence += triggers;
        self.enter(
            stage,
            what,
            lane,
            (&before, arrived_before),
            (sent, sent.triggers),
            FORWARDED,
        )
    }

    /// Sends triggers of which `due` have to be delivered, and all others dropped for the reason `verdict`.
    pub(super) fn rationed(
        &mut self,
        stage: &Stage,
        what: &str,
        lane: &Lane,
        (triggers, due): (u64, u64),
        verdict: &str,
    ) -> Result<()> {
        let before = ledger::counts(self.lab)?;
        let arrived_before = lane.sink.received().delivered;
        let sent = send(&self.load(lane, triggers), &lane.socket)?;
        self.next_sequence += triggers;
        self.enter(
            stage,
            what,
            lane,
            (&before, arrived_before),
            (sent, due),
            &[FORWARDED, &[verdict]].concat(),
        )
    }

    /// Sends triggers none of which may be delivered, all for the reason `verdict`.
    pub(super) fn dropped(
        &mut self,
        stage: &Stage,
        what: &str,
        lane: &Lane,
        load: &Load,
        verdict: &str,
    ) -> Result<()> {
        let before = ledger::counts(self.lab)?;
        let arrived_before = arrived(lane);
        let sent = send(load, &lane.socket)?;
        self.enter_dropped(stage, what, lane, (&before, arrived_before), sent, verdict)
    }

    /// Enters what was sent, none of which may arrive, all for the reason `verdict`.
    pub(super) fn enter_dropped(
        &mut self,
        stage: &Stage,
        what: &str,
        lane: &Lane,
        (before, arrived_before): (&Counts, u64),
        sent: Sent,
        verdict: &str,
    ) -> Result<()> {
        // Each has been dropped by then, so that nothing is on its way any more.
        let verdicts = ledger::settle(self.lab, before, &[verdict], sent.triggers)?;
        let delivered = arrived(lane) - arrived_before;
        let row = Row {
            what: what.to_owned(),
            sent: sent.triggers,
            delivered,
            due: 0,
            verdicts,
        };
        self.close(stage, row, sent);
        Ok(())
    }

    /// Enters what was sent, of which `due` has to arrive, and all to have one of these verdicts.
    pub(super) fn enter(
        &mut self,
        stage: &Stage,
        what: &str,
        lane: &Lane,
        (before, arrived_before): (&Counts, u64),
        (sent, due): (Sent, u64),
        verdicts: &[&str],
    ) -> Result<()> {
        // A failure shows in the row.
        let _ = lane.sink.wait_for(arrived_before + due, LIMIT);
        let verdicts = ledger::settle(self.lab, before, verdicts, sent.triggers)?;
        let delivered = lane.sink.received().delivered - arrived_before;
        let row = Row {
            what: what.to_owned(),
            sent: sent.triggers,
            delivered,
            due,
            verdicts,
        };
        self.close(stage, row, sent);
        Ok(())
    }

    /// Enters one trigger, which had to be delivered if it `is_due`, and to have one of these
    /// verdicts; gives the one it has. Whether it was delivered is for the device to say.
    pub(super) fn enter_single(
        &mut self,
        before: &Counts,
        is_due: bool,
        verdicts: &[&str],
    ) -> Result<Option<String>> {
        let since = ledger::settle(self.lab, before, verdicts, 1)?;
        self.single.sent += 1;
        self.single.due += u64::from(is_due);
        let mut verdict = None;
        for (name, count) in since {
            *self.single.verdicts.entry(name.clone()).or_default() += count;
            verdict = Some(name);
        }
        Ok(verdict)
    }

    fn close(&mut self, stage: &Stage, row: Row, sent: Sent) {
        let mark = if row.is_as_told() {
            "✓"
        } else {
            "✗ NOT AS TOLD:"
        };
        stage.say(format!(
            "{mark} {}: {} sent in {:.1} s, {} delivered; {}",
            row.what,
            grouped(row.sent),
            sent.elapsed.as_secs_f64(),
            grouped(row.delivered),
            row.verdicts()
        ));
        self.rows.push(row);
    }
}

/// Everything that has come to the lane's sink, good or not.
fn arrived(lane: &Lane) -> u64 {
    let received = lane.sink.received();
    received.delivered + received.duplicates + received.corrupt + received.foreign
}

/// Sends what has to be refused.
fn send(load: &Load, socket: &UdpSocket) -> Result<Sent> {
    load.send(socket, &AtomicBool::new(false))
        .context("the generator cannot send")
}
