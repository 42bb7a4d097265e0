//! Devices, a radio and a clock put together: brings devices up, keeps them up for a while, and takes
//! them down.

use super::device::{Device, Outcome, Wishes};
use super::news::News;
use super::radio::Radio;
use super::tally::{Summary, Tally};
use crate::random;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio::time::sleep_until;

/// Longer than any trigger or message.
const MAX_DATAGRAM_BYTES: usize = 2048;
/// Datagrams that are read before devices are looked at again.
const BATCH: usize = 256;
/// How often it is told how far things are.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// What devices there are to be, and what they do.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What they call themselves, and where they are.
    pub devices: Vec<(String, IpAddr)>,
    /// What each is like.
    pub wishes: Arc<Wishes>,
    /// How many begin with something per second, at most.
    pub rate_per_s: Option<f64>,
    /// How many are busy at the same time, at most.
    pub at_once: usize,
    /// How often each refreshes its registration as soon as all are ready.
    pub refreshes: u32,
    /// How long they then stay; until they are told to leave if none.
    pub stay: Option<Duration>,
    /// Whether they leave without a word, and so stay registered.
    pub keep: bool,
}

/// Who is told what happens.
pub trait Listener {
    /// This has happened to a device.
    fn news(&mut self, device: &Device, address: IpAddr, news: &News);
    /// How far things are, about once a second, and when a step is done.
    fn progress(&mut self, progress: &Progress);
}

/// How far things are.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// What is being done.
    pub step: Step,
    /// How many devices have begun with it.
    pub begun: usize,
    /// How many of them are busy.
    pub busy: usize,
    /// How many there are.
    pub devices: usize,
    /// Requests answered, of all kinds, and since the beginning.
    pub answered: u64,
}

/// What is being done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Devices register and ask for their sessions.
    Starting,
    /// They refresh, for the how manieth time.
    Refreshing(u32),
    /// They wait for triggers, until then.
    Staying(Option<Instant>),
    /// They deregister.
    Leaving,
}

/// Lets devices live as planned. What comes by `leave` has them leave early, the second time at once.
///
/// # Errors
///
/// The socket can't be used.
pub async fn run(
    plan: &Plan,
    radio: &Radio,
    leave: &mut mpsc::Receiver<()>,
    listener: &mut impl Listener,
) -> io::Result<Summary> {
    let mut fleet = Fleet::new(plan, radio, listener);
    let mut patient = true;
    loop {
        let now = Instant::now();
        fleet.tick(now);
        if fleet.is_over(now) {
            let step = fleet.step;
            fleet.progress(now);
            match fleet.after(step, now) {
                Some(next) => fleet.begin(next, now),
                None => break,
            }
            continue;
        }
        fleet.flush()?;
        let wake = fleet.next_wake(now);
        tokio::select! {
            ready = radio.ready(!fleet.outgoing.is_empty()) => {
                ready?;
                fleet.receive()?;
            }
            () = sleep_until(wake.into()) => {}
            Some(()) = leave.recv() => {
                if !patient || plan.keep {
                    break;
                }
                patient = false;
                fleet.begin(Step::Leaving, now);
            }
        }
    }
    Ok(fleet.summary())
}

struct Fleet<'a, L> {
    plan: &'a Plan,
    radio: &'a Radio,
    listener: &'a mut L,
    members: Vec<Member>,
    by_address: HashMap<IpAddr, usize>,
    /// When to look at which device; it may be too early, never too late.
    deadlines: BinaryHeap<Reverse<(Instant, usize)>>,
    outgoing: VecDeque<(usize, Vec<u8>)>,
    tally: Tally,
    step: Step,
    step_began: Instant,
    /// Devices that have begun with the step, and of these the busy ones.
    begun: usize,
    busy: usize,
    ready: usize,
    /// That as it was when they began to leave.
    ready_before_leaving: Option<usize>,
    told: Instant,
    outcome: Outcome,
}

struct Member {
    device: Device,
    address: IpAddr,
    /// The earliest entry among the deadlines.
    looked_at: Option<Instant>,
    is_busy: bool,
    is_ready: bool,
}

impl<'a, L: Listener> Fleet<'a, L> {
    fn new(plan: &'a Plan, radio: &'a Radio, listener: &'a mut L) -> Self {
        let now = Instant::now();
        let members: Vec<_> = plan
            .devices
            .iter()
            .map(|(endpoint, address)| Member {
                device: Device::new(endpoint.clone(), Arc::clone(&plan.wishes), random::bytes()),
                address: *address,
                looked_at: None,
                is_busy: false,
                is_ready: false,
            })
            .collect();
        let by_address = members.iter().enumerate();
        Self {
            by_address: by_address.map(|(n, member)| (member.address, n)).collect(),
            plan,
            radio,
            listener,
            members,
            deadlines: BinaryHeap::new(),
            outgoing: VecDeque::new(),
            tally: Tally::new(now),
            step: Step::Starting,
            step_began: now,
            begun: 0,
            busy: 0,
            ready: 0,
            ready_before_leaving: None,
            told: now,
            outcome: Outcome::default(),
        }
    }

    fn begin(&mut self, step: Step, now: Instant) {
        if step == Step::Leaving {
            self.ready_before_leaving = Some(self.ready);
        }
        self.step = step;
        self.step_began = now;
        self.begun = match step {
            Step::Starting | Step::Refreshing(_) | Step::Leaving => 0,
            Step::Staying(_) => self.members.len(),
        };
    }

    /// What follows on `step`.
    fn after(&self, step: Step, now: Instant) -> Option<Step> {
        let staying = Step::Staying(self.plan.stay.map(|stay| now + stay));
        match step {
            Step::Starting if self.plan.refreshes > 0 => Some(Step::Refreshing(1)),
            Step::Refreshing(n) if n < self.plan.refreshes => Some(Step::Refreshing(n + 1)),
            Step::Starting | Step::Refreshing(_) => Some(staying),
            Step::Staying(_) if self.plan.keep => None,
            Step::Staying(_) => Some(Step::Leaving),
            Step::Leaving => None,
        }
    }

    fn is_over(&self, now: Instant) -> bool {
        match self.step {
            Step::Starting | Step::Refreshing(_) | Step::Leaving => {
                self.begun == self.members.len() && self.busy == 0 && self.outgoing.is_empty()
            }
            Step::Staying(until) => until.is_some_and(|until| until <= now),
        }
    }

    /// Does all there is to do at this moment.
    fn tick(&mut self, now: Instant) {
        while let Some(&Reverse((at, member))) = self.deadlines.peek()
            && at <= now
        {
            self.deadlines.pop();
            self.members[member].looked_at = None;
            self.with(member, now, Device::tick);
        }
        while self.begun < self.members.len() && self.may_begin(now) {
            let member = self.begun;
            self.begun += 1;
            match self.step {
                Step::Starting => self.with(member, now, Device::start),
                Step::Refreshing(_) => self.with(member, now, Device::refresh),
                Step::Leaving => self.with(member, now, Device::leave),
                Step::Staying(_) => {}
            }
        }
        if now.saturating_duration_since(self.told) >= TELL_EVERY {
            self.progress(now);
        }
    }

    fn may_begin(&self, now: Instant) -> bool {
        let in_time = self.plan.rate_per_s.is_none_or(|rate| {
            let elapsed = now.saturating_duration_since(self.step_began);
            (self.begun as f64) < elapsed.as_secs_f64() * rate + 1.0
        });
        in_time && self.busy < self.plan.at_once
    }

    fn next_wake(&self, now: Instant) -> Instant {
        let mut wake = now + TELL_EVERY;
        if let Some(&Reverse((at, _))) = self.deadlines.peek() {
            wake = wake.min(at);
        }
        if let Step::Staying(Some(until)) = self.step {
            wake = wake.min(until);
        }
        if self.begun < self.members.len()
            && self.busy < self.plan.at_once
            && let Some(rate) = self.plan.rate_per_s
        {
            let due = self.step_began + Duration::from_secs_f64(self.begun as f64 / rate);
            wake = wake.min(due.max(now + Duration::from_millis(1)));
        }
        wake
    }

    fn receive(&mut self) -> io::Result<()> {
        let mut datagram = [0; MAX_DATAGRAM_BYTES];
        for _ in 0..BATCH {
            let arrival = match self.radio.receive(&mut datagram) {
                Ok(arrival) => arrival,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            };
            let now = Instant::now();
            if let Some(&member) = self.by_address.get(&arrival.device) {
                let datagram = &datagram[..arrival.length];
                self.with(member, now, |device, now, outcome| {
                    device.receive(now, datagram, arrival.from_gateway, outcome);
                });
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        while let Some((member, datagram)) = self.outgoing.front() {
            match self.radio.send(self.members[*member].address, datagram) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                // Full queues on the way lose datagrams without a word, too.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {}
                // A link may be down for a while; not from the beginning.
                Err(error) if self.tally.answered() == 0 => return Err(error),
                Ok(()) | Err(_) => {}
            }
            self.outgoing.pop_front();
        }
        Ok(())
    }

    /// Has a device do something, and sees to what comes of it.
    fn with(
        &mut self,
        index: usize,
        now: Instant,
        act: impl FnOnce(&mut Device, Instant, &mut Outcome),
    ) {
        let member = &mut self.members[index];
        act(&mut member.device, now, &mut self.outcome);
        for news in self.outcome.news.drain(..) {
            self.tally.count(now, &news);
            self.listener.news(&member.device, member.address, &news);
        }
        let datagrams = self.outcome.datagrams.drain(..);
        self.outgoing
            .extend(datagrams.map(|datagram| (index, datagram)));
        let (is_busy, is_ready) = (!member.device.is_settled(), member.device.is_ready());
        self.busy = self.busy + usize::from(is_busy) - usize::from(member.is_busy);
        self.ready = self.ready + usize::from(is_ready) - usize::from(member.is_ready);
        (member.is_busy, member.is_ready) = (is_busy, is_ready);
        if let Some(at) = member.device.deadline()
            && member.looked_at.is_none_or(|looked_at| at < looked_at)
        {
            member.looked_at = Some(at);
            self.deadlines.push(Reverse((at, index)));
        }
    }

    fn progress(&mut self, now: Instant) {
        self.told = now;
        self.listener.progress(&Progress {
            step: self.step,
            begun: self.begun,
            busy: self.busy,
            devices: self.members.len(),
            answered: self.tally.answered(),
        });
    }

    fn summary(&self) -> Summary {
        let ready = self.ready_before_leaving.unwrap_or(self.ready);
        self.tally
            .summary(Instant::now(), self.members.len(), ready)
    }
}
