//! What the controller has around it, but in memory: a store, and a data plane.

use super::*;

pub(crate) const LIMITS: Limits = Limits {
    slots: 100,
    default_lifetime: Duration::from_secs(3600),
    max_lifetime: Duration::from_secs(86_400),
    sessions_per_terminal: 16,
    triggers_per_second_per_terminal: None,
    rotation_overlap: Duration::from_secs(30),
};

/// Memory that a test keeps when the controller is gone, as the kernel and a disk do.
#[derive(Clone, Default)]
pub(crate) struct World {
    pub(super) state: Arc<Mutex<State>>,
    /// Tells of news of the kernel.
    pub(super) news: Arc<Notify>,
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) kernel: BTreeMap<SessionId, SessionImage>,
    pub(crate) policies: BTreeMap<u16, Policy>,
    pub(crate) refuses: bool,
    pub(crate) refuses_policies: bool,
    /// How many news of the kernel were taken up.
    pub(crate) changes: usize,
    pub(crate) image: Image,
    pub(crate) commits: usize,
    pub(crate) disk_full: bool,
    /// Whether what is written stays unwritten, and something is.
    pub(super) disk_hangs: bool,
    pub(super) is_writing: bool,
    /// Records in the commit that had most of them.
    pub(super) largest_commit: usize,
    /// How long the machine has been asleep.
    pub(crate) suspended: Duration,
    /// What devices are to be told.
    pub(crate) notices: Option<mpsc::Receiver<Notice>>,
    /// Of all sessions.
    pub(crate) newest_sequence: u64,
    pub(crate) reconfigured: Vec<Reconfiguration>,
    /// Packets delivered and refused, by slot.
    pub(crate) traffic: BTreeMap<u32, (u64, u32)>,
}

impl World {
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// With the realm `meters`, where devices register at the same address as elsewhere.
    pub(crate) fn start(&self) -> (Controller, Ended) {
        let places = Places::new(&[DEVICE.gateway]).and_realm(&realm("cars"), &[]);
        self.start_with(places.and_realm(&realm("meters"), &[DEVICE.gateway]))
    }

    /// Nobody is told.
    fn outlets(&self) -> Outlets {
        let (notices, told) = mpsc::channel(1000);
        self.state().notices = Some(told);
        Outlets {
            notices,
            events: Bus::default(),
        }
    }

    pub(crate) fn start_with(&self, places: Places) -> (Controller, Ended) {
        self.start_all(
            Sessions::restore(LIMITS, self.load().unwrap()).unwrap(),
            places,
        )
    }

    /// With these, which no store has.
    pub(crate) fn start_of(&self, sessions: Sessions) -> Controller {
        let gateway = ["10.255.0.1:5683".parse().unwrap()];
        let places = Places::new(&gateway).and_realm(&realm("cars"), &gateway);
        let places = places.and_realm(&realm("meters"), &gateway);
        self.start_all(sessions, places).0
    }

    fn start_all(&self, sessions: Sessions, places: Places) -> (Controller, Ended) {
        let folder = tempfile::tempdir().unwrap();
        let clock = Clock::resume(folder.path());
        start(
            sessions,
            self.clone(),
            self.clone(),
            places,
            self.outlets(),
            clock,
        )
        .unwrap()
    }
}

impl Store for World {
    fn load(&self) -> Result<Image, StoreError> {
        Ok(self.state().image.clone())
    }

    fn apply(&mut self, batch: &Batch) -> Result<(), StoreError> {
        self.state().is_writing = true;
        while self.state().disk_hangs {
            std::thread::yield_now();
        }
        let mut state = self.state();
        state.is_writing = false;
        let records = batch.terminals.len() + batch.slots.len() + batch.apps.len();
        state.largest_commit = state.largest_commit.max(records);
        if state.disk_full {
            let cause = Box::new(redb::Error::Io(std::io::ErrorKind::StorageFull.into()));
            return Err(StoreError::Write {
                path: "memory".into(),
                cause,
            });
        }
        state.commits += 1;
        let image = &mut state.image;
        for (id, terminal) in &batch.terminals {
            image.terminals.retain(|terminal| terminal.id != *id);
            image.terminals.extend(terminal.clone());
        }
        for (slot, session) in &batch.slots {
            image.sessions.retain(|session| session.id.slot() != *slot);
            image.sessions.extend(session.clone());
        }
        for (name, app) in &batch.apps {
            image.apps.retain(|app| app.name != *name);
            image.apps.extend(app.clone());
        }
        Ok(())
    }
}

impl Kernel for World {
    fn set_policy(&mut self, slot: u16, policy: &Policy) -> anyhow::Result<()> {
        let mut state = self.state();
        anyhow::ensure!(!state.refuses_policies, "told to refuse policies");
        state.policies.insert(slot, policy.clone());
        Ok(())
    }

    fn remove_policy(&mut self, slot: u16) {
        let mut state = self.state();
        let in_use = state.kernel.values().find(|image| image.policy == slot);
        assert!(in_use.is_none(), "policy {slot} is in use: {in_use:?}");
        state.policies.remove(&slot);
    }

    fn install(&mut self, image: &SessionImage) -> anyhow::Result<Found> {
        let mut state = self.state();
        anyhow::ensure!(!state.refuses, "told to refuse");
        assert!(
            state.policies.contains_key(&image.policy),
            "no policy {} for {}",
            image.policy,
            image.id
        );
        let mut image = image.clone();
        if let Some(before) = state.kernel.get(&image.id) {
            // What was let through stays known.
            image.window = before.window;
        }
        let before = state.kernel.insert(image.id, image.clone());
        Ok(match before {
            None => Found::Nothing,
            Some(before) if before.key == image.key => Found::Same,
            Some(_) => Found::Different,
        })
    }

    fn remove(&mut self, id: SessionId) {
        self.state().kernel.remove(&id);
    }

    fn settled(&mut self) {}

    fn installed(&self) -> Vec<SessionId> {
        self.state().kernel.keys().copied().collect()
    }

    fn session_counters(&self, id: SessionId) -> Option<SessionCounters> {
        let ago = Some(Duration::from_millis(2500));
        let counters = SessionCounters {
            packets: 3,
            bytes: 300,
            last_delivered_ago: ago,
            refused: 4,
            acknowledged: 2,
            round_trip: Some(Duration::from_micros(1500)),
        };
        self.state().kernel.contains_key(&id).then_some(counters)
    }

    fn traffic(&self, slot: u32) -> Option<SessionTraffic> {
        let state = self.state();
        let mut ids = state.kernel.keys();
        let id = *ids.find(|id| id.slot() == slot)?;
        let (packets, refused) = state.traffic.get(&slot).copied().unwrap_or_default();
        Some(SessionTraffic {
            id,
            packets,
            bytes: packets * 100,
            refused,
            last_delivered_ns: packets,
        })
    }

    fn newest_sequence(&self, id: SessionId) -> Option<u64> {
        let state = self.state();
        state
            .kernel
            .contains_key(&id)
            .then_some(state.newest_sequence)
    }

    fn window(&self, id: SessionId) -> Option<[u64; WORDS]> {
        let state = self.state();
        state.kernel.get(&id).map(|image| image.window)
    }

    fn next_hop_state(&self, id: SessionId) -> Option<&'static str> {
        self.state().kernel.contains_key(&id).then_some("no_route")
    }

    fn events_lost(&self) -> u64 {
        7
    }

    fn reattach(&mut self, _retry: bool) -> ChangedFuture<'_> {
        Box::pin(std::future::ready(()))
    }

    fn changed(&mut self) -> ChangedFuture<'_> {
        Box::pin(async {
            self.news.notified().await;
            self.state().changes += 1;
        })
    }

    fn take_told(&mut self) -> Vec<Told> {
        Vec::new()
    }

    fn verdicts(&self) -> anyhow::Result<Vec<NicCounters>> {
        let by_verdict = Verdict::ALL.iter().map(|&verdict| match verdict {
            Verdict::Redirected => (verdict, 3, 300),
            Verdict::BadTag => (verdict, 2, 100),
            _ => (verdict, 0, 0),
        });
        Ok(vec![NicCounters {
            name: "eth1".to_owned(),
            by_verdict: by_verdict.collect(),
            round_trips: std::array::from_fn(|class| u64::from(class == 10) * 2),
        }])
    }

    fn nics(&self) -> NicsFuture {
        let nic = NicStatus {
            name: "eth1".to_owned(),
            index: 2,
            takes_triggers: true,
            takes_acks: false,
            trigger_addresses: self.trigger_addresses(),
            mode: "native",
            program_id: 12,
            link_id: 3,
            adopted: false,
        };
        Box::pin(async { Ok(vec![nic]) })
    }

    fn attach_nic(&mut self, nic: Nic) -> NicFuture<'_> {
        Box::pin(async { Err(NicRefusal::Unknown(nic.name)) })
    }

    fn detach_nic(&mut self, name: String) -> NicFuture<'_> {
        Box::pin(async { Err(NicRefusal::NotAttached(name)) })
    }

    fn reconfigure(&mut self, to: Reconfiguration) -> ReconfiguredFuture<'_> {
        let mut state = self.state();
        let refuses = state.refuses;
        if !refuses {
            state.reconfigured.push(to);
        }
        Box::pin(async move {
            anyhow::ensure!(!refuses, "told to refuse");
            Ok(())
        })
    }

    fn session_seen(&self, _: SessionId) -> anyhow::Result<Option<SessionSeen>> {
        Ok(None)
    }

    fn capture(&self, _: SessionId, _: Duration) -> anyhow::Result<Captures> {
        anyhow::bail!("no packet comes by here")
    }

    fn trigger_addresses(&self) -> Vec<IpAddr> {
        vec![
            "198.51.100.1".parse().unwrap(),
            "2001:db8:51::1".parse().unwrap(),
        ]
    }

    fn suspended(&self) -> Duration {
        self.state().suspended
    }

    fn warnings(&self) -> Vec<String> {
        vec!["forwarding is off".to_owned()]
    }
}
