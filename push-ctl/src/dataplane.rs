//! The BPF side: loads and attaches the XDP program, owns its maps, reads its counters.
//!
//! Nothing else in this crate knows of aya. Maps and links are pinned, so that the program keeps
//! forwarding when this process is gone; the next one adopts them, puts its own program in place of
//! the old one in a single step, and finds sessions, replay windows and counters as they were.
//!
//! | pin | is |
//! | --- | --- |
//! | `push_…` | the maps, see [`push_common::maps`] |
//! | `link_NIC` | the attachment to a NIC (`.` in a name becomes `%`) |

mod attach;
mod captures;
mod events;
mod gates;
mod generic_netlink;
mod link;
mod netlink;
mod next_hops;
mod nics;
mod pins;
mod policies;
mod probe;
mod seen;
mod settings;
pub mod survey;
mod table;

pub use captures::{Captured, Captures};
pub use events::Told;
pub use probe::Prober;
pub use seen::{SessionSeen, WaySeen, WayState};
pub use settings::{
    Found, Gtpu, Nic, NicCounters, NicRefusal, NicStatus, Policy, Rate, Realm, RealmLink,
    Reconfiguration, SessionCounters, SessionImage, SessionTraffic, Settings, TestRun, Tunnel,
};

use anyhow::{Context, Result, ensure};
use attach::{attach, detach_others, load};
use aya::Ebpf;
use aya::maps::{HashMap, Map, MapData, PerCpuArray};
use aya::programs::links::FdLink;
use events::Events;
use next_hops::{Asker, NextHopTable, NextHops, Target, TunnelEnds, Watch};
use nics::{interface_index, nic_config};
use pins::{adoptable, assign_nic_indices, pinned_map, write_meta};
use policies::Policies;
use push_common::maps::{
    COUNTERS, Counters, EGRESSES, LAYOUT_VERSION, META, Meta, NEXT_HOPS, NicConfig, PREVIOUS_KEYS,
    PreviousKey, ROUND_TRIP_CLASSES, SESSIONS, STAGED, SessionControl,
};
use push_common::replay::WORDS;
use push_common::verdict::Verdict;
use push_common::wire::SessionId;
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::fs::File;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;
use survey::Switch;
use table::SessionTable;
use zeroize::Zeroizing;

/// How long after a failure events are waited for again.
const EVENTS_RETRY: Duration = Duration::from_secs(10);

/// The compiled XDP program.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/push"));

/// The attached program and its maps.
pub struct Dataplane {
    settings: Settings,
    /// What is in the map of it.
    meta: Meta,
    attached: Vec<Arc<Attached>>,
    /// Whether a session is being watched.
    is_watching: Arc<AtomicBool>,
    sessions: SessionTable,
    previous_keys: HashMap<MapData, u32, PreviousKeyBytes>,
    next_hops: NextHops,
    watch: Watch,
    policies: Policies,
    counters: PerCpuArray<MapData, CounterWords>,
    events: Events,
    told: Vec<Told>,
    /// NICs that are back, and why the program isn't on them.
    not_reattached: BTreeMap<String, String>,
    warnings: Vec<String>,
    /// Keeps a second process off the pins.
    _lock: File,
}

/// The program on one NIC.
struct Attached {
    nic: Nic,
    interface: u32,
    config: NicConfig,
    program: Ebpf,
    /// Closing it does not detach, as it is pinned.
    link: FdLink,
    adopted: bool,
    /// What is bad about how it is attached.
    warning: Option<String>,
}

/// Records as aya takes them: it knows only its own trait for plain data.
type MetaBytes = [u8; size_of::<Meta>()];
type PreviousKeyBytes = [u8; size_of::<PreviousKey>()];
type CounterWords = [u64; size_of::<Counters>() / 8];

impl Dataplane {
    /// Attaches to all NICs, adopting what an earlier process has left pinned.
    ///
    /// # Errors
    ///
    /// Says which gate is closed (kernel version, capability, bpffs, driver mode, another program on
    /// the NIC, pins of another layout) and what opens it. What was pinned before stays as it was.
    pub async fn open(settings: Settings) -> Result<Self> {
        let warnings = gates::check(settings.require_perfmon)?;
        let interfaces = settings
            .nics
            .iter()
            .map(|nic| interface_index(&nic.name))
            .collect::<Result<Vec<_>>>()?;
        tracing::info!(object_sha256 = object_sha256(), "loading the XDP program");
        gates::make_pin_dir(&settings.pin_dir)?;
        let lock = pins::lock(&settings.pin_dir)?;

        let mut meta = adoptable(&settings)?;
        let is_new = meta.layout_version == 0;
        let nic_indices = assign_nic_indices(&mut meta, &settings.nics)?;
        let mut programs = Vec::new();
        for (nic, index) in settings.nics.iter().zip(nic_indices) {
            let config = nic_config(nic, index, &settings);
            programs.push((nic, config, load(&settings, &config)?));
        }

        meta.layout_version = LAYOUT_VERSION;
        meta.session_slots = settings.session_slots;
        let pinned = |name: &str| pinned_map(&settings.pin_dir, name);
        let (sessions, staged) = (pinned(SESSIONS)?, pinned(STAGED)?);
        let slots = settings.session_slots;
        let sessions = SessionTable::map(sessions.fd().as_fd(), staged.fd().as_fd(), slots)?;
        let previous_keys = HashMap::try_from(Map::HashMap(pinned(PREVIOUS_KEYS)?))?;
        let policies = Policies::open(&settings)?;
        let counters = PerCpuArray::try_from(Map::PerCpuArray(pinned(COUNTERS)?))?;
        let events = Events::open(&settings)?;

        let (next_hops, egresses) = (pinned(NEXT_HOPS)?, pinned(EGRESSES)?);
        let next_hops = NextHopTable::map(next_hops.fd().as_fd(), egresses.fd().as_fd())?;
        let names = settings.nics.iter().map(|nic| nic.name.clone()).collect();
        let asker = Asker::start()?;
        let ask = move |neighbour| asker.ask(neighbour);
        let mut next_hops = NextHops::new(next_hops, settings.realms.clone(), names, ask);
        let (watch, news) = Watch::open().await?;
        next_hops.apply(news);
        next_hops.occupied(
            sessions
                .installed()
                .filter_map(|id| sessions.control(id))
                .map(|control| control.next_hop),
        );
        write_meta(pinned(META)?, &meta)?;
        if is_new {
            tracing::info!(slots = settings.session_slots, pin_dir = %settings.pin_dir.display(), "made a new session table");
        } else {
            tracing::info!(slots = settings.session_slots, pin_dir = %settings.pin_dir.display(), "adopted the session table");
        }

        let mut attached = Vec::new();
        for ((nic, config, program), interface) in programs.into_iter().zip(interfaces) {
            let program = attach(&settings, nic, interface, config, program).await?;
            attached.push(Arc::new(program));
        }
        detach_others(&settings)?;
        Ok(Self {
            settings,
            meta,
            attached,
            is_watching: Arc::default(),
            sessions,
            previous_keys,
            next_hops,
            watch,
            policies,
            counters,
            events,
            told: Vec::new(),
            not_reattached: BTreeMap::new(),
            warnings,
            _lock: lock,
        })
    }

    /// Puts a session into the table, or changes its record; the replay window and counters of a
    /// session that was there stay. Says how it was before.
    ///
    /// # Errors
    ///
    /// The slot isn't in the table, there is no room for another next hop or a previous key, or there is no
    /// local address for its tunnel. What was in the table before stays as it was.
    pub fn install(&mut self, image: &SessionImage) -> Result<Found> {
        let id = image.id;
        ensure!(
            id.slot() < self.settings.session_slots,
            "session {id} is beyond the {} slots of the session table; raise sessions.slots",
            self.settings.session_slots,
        );
        let target = self.target(image)?;
        if let Some(key) = &image.previous_key {
            let previous = PreviousKey {
                generation: id.generation(),
                token_generation: u32::from(image.token_generation.wrapping_sub(1)),
                key: **key,
            };
            let bytes = Zeroizing::new(bytemuck::must_cast::<_, PreviousKeyBytes>(previous));
            let bytes: &PreviousKeyBytes = &bytes;
            self.previous_keys
                .insert(id.slot(), bytes, 0)
                .context("no room for another token that has been rotated but is still valid; wait until others have ended, or rotate without an overlap")?;
        }
        let next_hop = self.next_hops.acquire(id, &target)?;
        let had_previous = self.has_previous_key(id);
        let keep_source = self.settings.keep_source;
        let found = self
            .sessions
            .install(image, next_hop, keep_source, monotonic_ns());
        if had_previous && image.previous_key.is_none() {
            self.forget_previous_key(id);
        }
        Ok(found)
    }

    /// Takes a session out of the table, if it is there: triggers for it are refused from now on.
    pub fn remove(&mut self, id: SessionId) {
        let had_previous = self.has_previous_key(id);
        self.sessions.remove(id);
        self.next_hops.release(id);
        if had_previous {
            self.forget_previous_key(id);
        }
    }

    /// What the path is to enforce for sessions that refer to this slot.
    ///
    /// # Errors
    ///
    /// There is no such slot, no room for another prefix, or the kernel refuses.
    pub fn set_policy(&mut self, slot: u16, policy: &Policy) -> Result<()> {
        self.policies.set(slot, policy)
    }

    /// Permits nothing any more to sessions that still refer to this slot.
    pub fn remove_policy(&mut self, slot: u16) {
        if let Err(error) = self.policies.remove(slot) {
            tracing::warn!(slot, "a policy stays where it is: {error:#}");
        }
    }

    /// All policies and sessions that there are have been set and installed since this was opened: what
    /// is left of others may go.
    pub fn settled(&mut self) {
        self.next_hops.adopted();
        if let Err(error) = self.policies.settled() {
            tracing::warn!("policies of applications that are gone stay: {error:#}");
        }
    }

    /// Waits until the kernel's routes, neighbours or links change, and sees to it; or until the path has
    /// something to tell, see [`Dataplane::take_told`]. Nothing is lost if it is cancelled.
    pub async fn changed(&mut self) {
        tokio::select! {
            moved = self.watch.keep(&mut self.next_hops) => {
                for (id, next_hop) in moved {
                    self.sessions.set_next_hop(id, next_hop);
                }
            }
            told = self.events.next(nic_name(&self.attached)) => match told {
                Ok(told) => self.told.extend(told),
                Err(error) => {
                    tracing::warn!("{error:#}");
                    tokio::time::sleep(EVENTS_RETRY).await;
                }
            },
        }
    }

    /// What the path has told while [`Dataplane::changed`] was waited for, and wasn't taken since.
    pub fn take_told(&mut self) -> Vec<Told> {
        std::mem::take(&mut self.told)
    }

    /// What the path has told up to now.
    pub fn events(&mut self) -> Vec<Told> {
        let mut told = self.take_told();
        told.extend(self.events.drain(nic_name(&self.attached)));
        told
    }

    /// Events that the path had no room for.
    #[must_use]
    pub fn events_lost(&self) -> u64 {
        self.events.lost().unwrap_or_else(|error| {
            tracing::warn!("{error:#}");
            0
        })
    }

    /// What is known of the way to a session's device: `resolved`, `unresolved` or `no_route`; `None` if the
    /// session isn't in the table.
    #[must_use]
    pub fn next_hop_state(&self, id: SessionId) -> Option<&'static str> {
        self.next_hops.state(id)
    }

    fn target(&self, image: &SessionImage) -> Result<Target> {
        let tunnel = match image.tunnel {
            None => None,
            Some(Tunnel { peer, .. }) => {
                let Gtpu { ipv4, ipv6 } = self.settings.gtpu;
                let local = match peer {
                    IpAddr::V4(_) => ipv4.map(IpAddr::V4),
                    IpAddr::V6(_) => ipv6.map(IpAddr::V6),
                };
                let local = local.with_context(|| {
                    format!("session {} has a tunnel to {peer}, and gtpu.local has no address of that IP version", image.id)
                })?;
                Some(TunnelEnds { local, peer })
            }
        };
        Ok(Target {
            realm: image.realm,
            device: image.device.ip(),
            source: image.source,
            tunnel,
        })
    }

    fn has_previous_key(&self, id: SessionId) -> bool {
        self.sessions
            .control(id)
            .is_some_and(|control| control.has(SessionControl::PREVIOUS_TOKEN))
    }

    fn forget_previous_key(&mut self, id: SessionId) {
        if let Err(error) = self.previous_keys.remove(&id.slot()) {
            tracing::warn!(session = %id, %error, "cannot remove a key that isn't valid any more from its map");
        }
    }

    /// The sessions in the table.
    #[must_use]
    pub fn installed(&self) -> Vec<SessionId> {
        self.sessions.installed().collect()
    }

    /// What the path has counted for a session, if it is in the table.
    #[must_use]
    pub fn session_counters(&self, id: SessionId) -> Option<SessionCounters> {
        let activity = self.sessions.activity(id)?;
        let ago = monotonic_ns().saturating_sub(activity.last_delivered_ns);
        let round_trip = Duration::from_micros(u64::from(activity.round_trip_us));
        Some(SessionCounters {
            packets: activity.packets,
            bytes: activity.bytes,
            last_delivered_ago: (activity.last_delivered_ns > 0).then(|| Duration::from_nanos(ago)),
            refused: activity.refused,
            acknowledged: activity.acknowledged,
            round_trip: (!round_trip.is_zero()).then_some(round_trip),
        })
    }

    /// What the path has counted for the session in this slot; `None` if there is none.
    #[must_use]
    pub fn traffic(&self, slot: u32) -> Option<SessionTraffic> {
        self.sessions.traffic(slot)
    }

    /// The replay window of a session; `None` if it isn't there.
    #[must_use]
    pub fn window(&self, id: SessionId) -> Option<[u64; WORDS]> {
        self.sessions.window(id)
    }

    /// About the highest sequence number that was accepted for a session, at most 127 below it; `None` if
    /// the session isn't there.
    #[must_use]
    pub fn newest_sequence(&self, id: SessionId) -> Option<u64> {
        self.sessions.newest_sequence(id)
    }

    /// What became of packets, by NIC.
    ///
    /// # Errors
    ///
    /// The kernel refuses to read the map.
    pub fn verdicts(&self) -> Result<Vec<NicCounters>> {
        self.attached
            .iter()
            .map(|attached| {
                let per_cpu = self
                    .counters
                    .get(&attached.config.index, 0)
                    .context("cannot read the counters")?;
                let mut by_verdict: Vec<_> = Verdict::ALL
                    .iter()
                    .map(|&verdict| (verdict, 0, 0))
                    .collect();
                let mut round_trips = [0; ROUND_TRIP_CLASSES];
                for words in per_cpu.iter() {
                    let counters: &Counters = bytemuck::must_cast_ref(words);
                    for (sum, count) in round_trips.iter_mut().zip(counters.round_trips) {
                        *sum += count;
                    }
                    for (sum, count) in by_verdict.iter_mut().zip(counters.by_verdict) {
                        sum.1 += count.packets;
                        sum.2 += count.bytes;
                    }
                }
                Ok(NicCounters {
                    name: attached.nic.name.clone(),
                    by_verdict,
                    round_trips,
                })
            })
            .collect()
    }

    /// What an operator should mend, each with how to: a missing capability, switches of the kernel
    /// without which triggers don't get through.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = self.warnings.clone();
        warnings.extend(self.attached.iter().filter_map(|nic| nic.warning.clone()));
        warnings.extend(self.not_reattached.values().cloned());
        for nic in self.attached.iter().map(|attached| &attached.nic) {
            if self.next_hops.link_named(&nic.name).is_none() {
                warnings.push(format!(
                    "There is no NIC {} at the moment. Once it is back, the program will be, too.",
                    nic.name
                ));
                continue;
            }
            let switches = survey::switches(nic).into_iter();
            warnings.extend(switches.map(|Switch { why, fix }| format!("{why}: {fix}")));
        }
        warnings
    }

    /// Runs the program of a NIC once, on `frame`, as if it had come in there (`BPF_PROG_TEST_RUN`).
    /// Counters move as with any other frame.
    ///
    /// # Errors
    ///
    /// There is no such NIC, or the kernel refuses to (a frame has to have at least 14 bytes).
    pub fn test_run(&mut self, nic: &str, frame: &[u8]) -> Result<TestRun> {
        let mut out = Vec::new();
        let (action, duration) = self.prober(nic)?.run(frame, &mut out)?;
        Ok(TestRun {
            action,
            frame: out,
            duration,
        })
    }

    /// The program of a NIC, to run it on other threads as [`Dataplane::test_run`] does on this one.
    ///
    /// # Errors
    ///
    /// There is no such NIC.
    pub fn prober(&self, nic: &str) -> Result<Prober> {
        let mut all = self.attached.iter();
        all.find(|attached| attached.nic.name == nic)
            .map(|attached| Prober(Arc::clone(attached)))
            .with_context(|| format!("not attached to {nic}"))
    }

    /// How large the program of each NIC is.
    ///
    /// # Errors
    ///
    /// The kernel can't be asked.
    pub fn program_sizes(&mut self) -> Result<Vec<ProgramSize>> {
        self.attached
            .iter()
            .map(|attached| {
                let info = probe::program(attached)?.info()?;
                Ok(ProgramSize {
                    nic: attached.nic.name.clone(),
                    verified_instructions: info.verified_instruction_count().unwrap_or(0),
                    translated_bytes: info.size_translated().unwrap_or(0),
                    machine_code_bytes: info.size_jitted(),
                })
            })
            .collect()
    }
}

/// How large a program is for the kernel, which doesn't depend on what else the machine does.
#[derive(Clone, Debug)]
pub struct ProgramSize {
    /// Name of the NIC.
    pub nic: String,
    /// Instructions that the verifier went through.
    pub verified_instructions: u32,
    /// Instructions as the verifier left them, 8 bytes each.
    pub translated_bytes: u32,
    /// What the JIT has made of them; 0 if there is none.
    pub machine_code_bytes: u32,
}

/// The compiled XDP program, an ELF object that bpftool and xdp-loader take too.
#[must_use]
pub fn object() -> &'static [u8] {
    OBJECT
}

/// SHA-256 of [`object`], in hexadecimal. It is built the same from the same source anywhere, so this tells what runs.
#[must_use]
pub fn object_sha256() -> String {
    hex::encode(Sha256::digest(OBJECT))
}

/// The name of the NIC that has this index in the maps.
fn nic_name(attached: &[Arc<Attached>]) -> impl Fn(u32) -> Option<String> {
    move |index| {
        let nic = attached.iter().find(|nic| nic.config.index == index)?;
        Some(nic.nic.name.clone())
    }
}

fn monotonic_ns() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)
        .expect("Linux has a monotonic clock");
    Duration::from(now).as_nanos() as u64
}
