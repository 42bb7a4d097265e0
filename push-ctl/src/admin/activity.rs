//! What is going on at the moment: what `push-ctl top` shows, without a look at all that there is.
//!
//! Which sessions are the busiest is told by their counters now and a moment ago. There may be a million of
//! them, so the controller is asked for some at a time, and goes about its work in between.

use super::api::{Activity, BusyApp, BusySession, SessionCounts};
use super::gateway::{kernel_problem, stats};
use super::{Answer, Operator, nics};
use crate::controller::{Controller, Stopped, View};
use crate::dataplane::SessionTraffic;
use crate::problem::Problem;
use crate::sessions::records::AppName;
use axum::Json;
use axum::extract::State;
use push_common::wire::SessionId;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::ops::AddAssign;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Mutex;

/// Slots that the controller looks at before it does something else.
const CHUNK_SLOTS: u32 = 8192;

/// Sessions, and applications, that are told of.
const TOP: usize = 100;

/// Counters are compared with those of at least this long ago.
const MIN_INTERVAL: Duration = Duration::from_millis(400);

/// Counters older than this say nothing about the moment, and are forgotten.
const MAX_AGE: Duration = Duration::from_secs(15);

/// The counters that were looked at last, kept for whoever asks next.
pub(super) type Sampler = Arc<Mutex<Option<Kept>>>;

pub(super) struct Kept {
    sample: Sample,
    /// What has come of it; none if there was nothing to compare it with.
    busiest: Option<Busiest>,
}

struct Sample {
    at: Instant,
    /// By slot; what isn't in the data plane has no traffic.
    by_slot: Vec<Option<SessionTraffic>>,
}

/// Since another sample.
#[derive(Clone)]
struct Busiest {
    interval: Duration,
    sessions: Vec<BusySession>,
    apps: Vec<BusyApp>,
}

/// How far counters have moved.
#[derive(Clone, Copy, Default)]
struct Moved {
    packets: u64,
    bytes: u64,
    refused: u64,
}

impl AddAssign for Moved {
    fn add_assign(&mut self, other: Self) {
        self.packets += other.packets;
        self.bytes += other.bytes;
        self.refused += other.refused;
    }
}

pub(super) async fn show(State(operator): State<Operator>) -> Answer<Activity> {
    let busiest = busiest(&operator.controller, &operator.sampler).await?;
    let nics = nics::statuses(&operator).await?;
    let daemon = Arc::clone(&operator.daemon);
    let activity = operator.controller.observe(move |view| {
        let counts = view.sessions.counts();
        Ok(Activity {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_s: daemon.started.elapsed().as_secs(),
            sessions: SessionCounts {
                requested: counts.requested,
                authorised: counts.authorised,
                slots: view.sessions.slots(),
            },
            terminals: view.sessions.terminals().len(),
            nics,
            stats: stats(&view).map_err(|error| kernel_problem(&error))?,
            interval_ms: u64::try_from(busiest.interval.as_millis()).unwrap_or(u64::MAX),
            busiest_sessions: busiest.sessions,
            busiest_apps: busiest.apps,
            warnings: [view.warnings(), daemon.warnings()].concat(),
        })
    });
    activity.await?.map(Json)
}

async fn busiest(controller: &Controller, sampler: &Sampler) -> Result<Busiest, Problem> {
    let mut kept = sampler.lock().await;
    if let Some(kept) = &*kept
        && let Some(busiest) = &kept.busiest
        && kept.sample.at.elapsed() < MIN_INTERVAL
    {
        return Ok(busiest.clone());
    }
    let before = kept.take().map(|kept| kept.sample);
    let before = match before.filter(|sample| sample.at.elapsed() < MAX_AGE) {
        Some(before) => before,
        None => sample(controller, None).await?.0,
    };
    tokio::time::sleep(MIN_INTERVAL.saturating_sub(before.at.elapsed())).await;
    let (sample, busiest) = sample(controller, Some(before)).await?;
    *kept = Some(Kept {
        sample,
        busiest: Some(busiest.clone()),
    });
    drop(kept);
    tokio::spawn(forget(Arc::clone(sampler)));
    Ok(busiest)
}

/// Forgets counters that nobody has asked for since.
async fn forget(sampler: Sampler) {
    tokio::time::sleep(MAX_AGE).await;
    let mut kept = sampler.lock().await;
    kept.take_if(|kept| kept.sample.at.elapsed() >= MAX_AGE);
}

/// All counters, and how far they have moved since `before`.
async fn sample(
    controller: &Controller,
    before: Option<Sample>,
) -> Result<(Sample, Busiest), Stopped> {
    let at = Instant::now();
    let interval = before
        .as_ref()
        .map_or(Duration::ZERO, |before| at - before.at);
    let slots = controller
        .observe(|view| view.sessions.slots_used())
        .await?;
    let mut before = before.map(|before| before.by_slot.into_iter());
    let mut by_slot = Vec::with_capacity(slots as usize);
    let mut sessions = Vec::new();
    let mut apps: HashMap<AppName, (Moved, usize)> = HashMap::new();
    for from in (0..slots).step_by(CHUNK_SLOTS as usize) {
        let end = from.saturating_add(CHUNK_SLOTS).min(slots);
        let chunk_before: Option<Vec<_>> = before
            .as_mut()
            .map(|before| before.take((end - from) as usize).collect());
        let chunk = controller.observe(move |view| look(&view, from, end, chunk_before));
        let chunk = chunk.await?;
        by_slot.extend(chunk.by_slot);
        sessions.extend(chunk.busiest);
        keep_busiest(&mut sessions);
        for (app, moved, count) in chunk.apps {
            let sum = apps.entry(app).or_default();
            sum.0 += moved;
            sum.1 += count;
        }
    }
    let seconds = interval.as_secs_f64().max(1e-3);
    let busiest = Busiest {
        interval,
        sessions: sessions
            .into_iter()
            .map(|session| session.rated(seconds))
            .collect(),
        apps: busiest_apps(apps, seconds),
    };
    Ok((Sample { at, by_slot }, busiest))
}

struct Chunk {
    by_slot: Vec<Option<SessionTraffic>>,
    busiest: Vec<Busy>,
    apps: Vec<(AppName, Moved, usize)>,
}

/// A session whose counters have moved.
struct Busy {
    id: SessionId,
    app: AppName,
    device: Option<SocketAddr>,
    moved: Moved,
    packets: u64,
}

impl Busy {
    fn rated(self, seconds: f64) -> BusySession {
        BusySession {
            id: self.id.to_string(),
            app: self.app.to_string(),
            device: self.device,
            packets_per_s: self.moved.packets as f64 / seconds,
            bytes_per_s: self.moved.bytes as f64 / seconds,
            refused_per_s: self.moved.refused as f64 / seconds,
            packets: self.packets,
        }
    }
}

/// A look at some slots. Without a sample from before nothing has moved.
fn look(
    view: &View<'_>,
    from: u32,
    end: u32,
    before: Option<Vec<Option<SessionTraffic>>>,
) -> Chunk {
    let by_slot: Vec<_> = (from..end).map(|slot| view.kernel.traffic(slot)).collect();
    let mut busiest = Vec::new();
    let mut apps: HashMap<AppName, (Moved, usize)> = HashMap::new();
    let mut before = before.map(Vec::into_iter);
    for now in &by_slot {
        let Some(before) = before.as_mut().map(|before| before.next().flatten()) else {
            break;
        };
        let Some(now) = now else { continue };
        let moved = moved(before, now);
        if moved.packets == 0 && moved.refused == 0 {
            continue;
        }
        let Some(session) = view.sessions.session(now.id) else {
            continue;
        };
        let sum = apps.entry(session.app.clone()).or_default();
        sum.0 += moved;
        sum.1 += 1;
        busiest.push(Busy {
            id: now.id,
            app: session.app.clone(),
            device: view.sessions.device_of(session),
            moved,
            packets: now.packets,
        });
    }
    keep_busiest(&mut busiest);
    let apps = apps.into_iter();
    Chunk {
        by_slot,
        busiest,
        apps: apps
            .map(|(app, (moved, count))| (app, moved, count))
            .collect(),
    }
}

/// Of the session that is in the slot now; one that wasn't before has begun at 0.
fn moved(before: Option<SessionTraffic>, now: &SessionTraffic) -> Moved {
    let before = before.filter(|before| before.id == now.id);
    let before = before.unwrap_or(SessionTraffic {
        id: now.id,
        packets: 0,
        bytes: 0,
        refused: 0,
        last_delivered_ns: 0,
    });
    Moved {
        packets: now.packets.saturating_sub(before.packets),
        bytes: now.bytes.saturating_sub(before.bytes),
        refused: u64::from(now.refused.wrapping_sub(before.refused)),
    }
}

/// The busiest first: those with the most packets, delivered or refused.
fn keep_busiest(sessions: &mut Vec<Busy>) {
    sessions.sort_by_key(|session| {
        let Moved {
            packets, refused, ..
        } = session.moved;
        (std::cmp::Reverse(packets + refused), session.id)
    });
    sessions.truncate(TOP);
}

fn busiest_apps(apps: HashMap<AppName, (Moved, usize)>, seconds: f64) -> Vec<BusyApp> {
    let mut apps: Vec<_> = apps.into_iter().collect();
    apps.sort_by(|(a, (one, _)), (b, (other, _))| {
        let by_packets = (other.packets + other.refused).cmp(&(one.packets + one.refused));
        by_packets.then_with(|| a.cmp(b))
    });
    apps.truncate(TOP);
    let rated = |(app, (moved, sessions)): (AppName, (Moved, usize))| BusyApp {
        app: app.to_string(),
        busy_sessions: sessions,
        packets_per_s: moved.packets as f64 / seconds,
        bytes_per_s: moved.bytes as f64 / seconds,
        refused_per_s: moved.refused as f64 / seconds,
    };
    apps.into_iter().map(rated).collect()
}
