use super::*;
use crate::app_key::AppKey;
use crate::dataplane::{NicCounters, SessionCounters};
use crate::sessions::records::{Path, RegistrationId};
use crate::sessions::{Image, Limits, SessionRequest};
use push_common::token::Token;
use push_common::verdict::Verdict;
use std::collections::BTreeMap;
use std::num::{NonZeroU16, NonZeroU32};
use std::sync::{Arc, Mutex, MutexGuard};

pub(crate) const LIMITS: Limits = Limits {
    slots: 100,
    default_lifetime: Duration::from_secs(3600),
    max_lifetime: Duration::from_secs(86_400),
};

/// Memory that a test keeps when the controller is gone, as the kernel and a disk do.
#[derive(Clone, Default)]
pub(crate) struct World(Arc<Mutex<State>>);

#[derive(Default)]
pub(crate) struct State {
    pub(crate) kernel: BTreeMap<SessionId, SessionImage>,
    pub(crate) refuses: bool,
    pub(crate) image: Image,
    pub(crate) commits: usize,
    pub(crate) disk_full: bool,
}

impl World {
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    pub(crate) fn start(&self) -> (Controller, Ended) {
        let sessions = Sessions::restore(LIMITS, self.load().unwrap()).unwrap();
        start(sessions, self.clone(), self.clone()).unwrap()
    }
}

impl Store for World {
    fn load(&self) -> Result<Image, StoreError> {
        Ok(self.state().image.clone())
    }

    fn apply(&mut self, batch: &Batch<'_>) -> Result<(), StoreError> {
        let mut state = self.state();
        if state.disk_full {
            let cause = Box::new(redb::Error::Io(std::io::ErrorKind::StorageFull.into()));
            return Err(StoreError::Write {
                path: "memory".into(),
                cause,
            });
        }
        state.commits += 1;
        let image = &mut state.image;
        for &(id, terminal) in &batch.terminals {
            image.terminals.retain(|terminal| terminal.id != id);
            image.terminals.extend(terminal.cloned());
        }
        for &(slot, session) in &batch.slots {
            image.sessions.retain(|session| session.id.slot() != slot);
            image.sessions.extend(session.cloned());
        }
        for &(name, app) in &batch.apps {
            image.apps.retain(|app| app.name != *name);
            image.apps.extend(app.cloned());
        }
        Ok(())
    }
}

impl Kernel for World {
    fn install(&mut self, image: &SessionImage) -> anyhow::Result<()> {
        let mut state = self.state();
        anyhow::ensure!(!state.refuses, "told to refuse");
        state.kernel.insert(image.id, image.clone());
        Ok(())
    }

    fn remove(&mut self, id: SessionId) {
        self.state().kernel.remove(&id);
    }

    fn installed(&self) -> Vec<SessionId> {
        self.state().kernel.keys().copied().collect()
    }

    fn session_counters(&self, id: SessionId) -> Option<SessionCounters> {
        let ago = Some(Duration::from_millis(2500));
        let counters = SessionCounters {
            packets: 3,
            bytes: 300,
            last_delivered_ago: ago,
        };
        self.state().kernel.contains_key(&id).then_some(counters)
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
        }])
    }

    fn nics(&self) -> NicsFuture<'_> {
        let nic = NicStatus {
            name: "eth1".to_owned(),
            index: 2,
            takes_triggers: true,
            mode: "native",
            program_id: 12,
            link_id: 3,
            adopted: false,
        };
        Box::pin(async { Ok(vec![nic]) })
    }

    fn warnings(&self) -> Vec<String> {
        vec!["forwarding is off".to_owned()]
    }
}

const DEVICE: Path = Path {
    device: std::net::IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2)),
    gateway: std::net::SocketAddr::V4(std::net::SocketAddrV4::new(
        std::net::Ipv4Addr::new(10, 0, 0, 1),
        5683,
    )),
};

pub(crate) fn app_key() -> AppKey {
    AppKey::from_bytes([7; 32])
}

pub(crate) fn token(n: u8) -> Token {
    Token::from_bytes([n; 16])
}

/// Registers, asks for a session for `mail`, and validates it.
pub(crate) async fn authorised(controller: &Controller, n: u8) -> SessionId {
    let registration = controller.apply(move |sessions, now| {
        let _known = sessions.add_app(now, "mail".parse().unwrap(), app_key().hash());
        let endpoint = format!("device {n}").parse().unwrap();
        sessions
            .register(
                now,
                endpoint,
                DEVICE,
                None,
                RegistrationId::from_u64(n.into()),
            )
            .unwrap()
    });
    let registration = registration.await.unwrap();
    let session = controller.apply(move |sessions, now| {
        let request = SessionRequest {
            app: "mail".parse().unwrap(),
            instance: "a".parse().unwrap(),
            port: NonZeroU16::new(7000).unwrap(),
        };
        let generation = NonZeroU32::new(9).unwrap();
        sessions
            .request_session(
                now,
                registration.id,
                DEVICE.device,
                request,
                &token(n),
                generation,
            )
            .unwrap()
            .id
    });
    let session = session.await.unwrap();
    let validated = controller.apply(move |sessions, now| {
        sessions.validate(now, &app_key().hash(), session, &token(n).hash())
    });
    validated.await.unwrap().unwrap();
    session
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_acknowledged_is_durable_and_in_the_data_plane() {
    let world = World::default();
    let (controller, _ended) = world.start();
    let session = authorised(&controller, 1).await;
    {
        let state = world.state();
        let image = &state.kernel[&session];
        assert_eq!(
            (image.device.to_string(), image.source),
            ("10.0.0.2:7000".to_owned(), DEVICE.gateway)
        );
        assert!(image.expires_in > Duration::from_secs(3590));
        assert_eq!(image.key, token(1).key());
        assert_eq!(state.image.sessions.len(), 1);
    }
    controller
        .apply(move |sessions, now| sessions.revoke(now, session))
        .await
        .unwrap()
        .unwrap();
    assert!(world.state().kernel.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_brings_store_and_data_plane_in_line() {
    let world = World::default();
    let (controller, ended) = world.start();
    let kept = authorised(&controller, 1).await;
    let missing = authorised(&controller, 2).await;
    drop(controller);
    ended.await.unwrap().unwrap();
    let stale = SessionId::new(50, 50);
    {
        let mut state = world.state();
        let mut image = state.kernel.remove(&missing).unwrap();
        image.id = stale;
        state.kernel.insert(stale, image);
    }
    let (_controller, _ended) = world.start();
    assert_eq!(world.installed(), [kept, missing]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_expired_while_nobody_looked_is_ended_at_the_start() {
    let world = World::default();
    let (controller, ended) = world.start();
    authorised(&controller, 1).await;
    drop(controller);
    ended.await.unwrap().unwrap();
    for terminal in &mut world.state().image.terminals {
        terminal.state = crate::sessions::records::OperativeState::First {
            expires: UnixTime::from_millis(1),
        };
    }
    let (controller, _ended) = world.start();
    assert!(world.state().kernel.is_empty());
    assert_eq!(
        controller
            .observe(|view| view.sessions.counts().authorised)
            .await
            .unwrap(),
        0
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registration_expires_by_itself() {
    let world = World::default();
    let (controller, _ended) = world.start();
    let session = authorised(&controller, 1).await;
    let short = Some(Duration::from_millis(20));
    let terminal = RegistrationId::from_u64(1);
    controller
        .apply(move |sessions, now| sessions.refresh(now, terminal, DEVICE, false, short))
        .await
        .unwrap()
        .unwrap();
    tokio::time::timeout(Duration::from_secs(20), async {
        while world.state().kernel.contains_key(&session) {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("nobody asked, and yet it is gone");
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_wait_share_a_commit() {
    let world = World::default();
    let (controller, _ended) = world.start();
    let (entered, has_entered) = oneshot::channel();
    let (go, going) = std::sync::mpsc::channel::<()>();
    let blocked = {
        let controller = controller.clone();
        tokio::spawn(async move {
            let busy = controller.apply(move |_, _| {
                entered.send(()).unwrap();
                going.recv().unwrap();
            });
            busy.await.unwrap();
        })
    };
    has_entered.await.unwrap();
    let waiting: Vec<_> = (0..100_u64)
        .map(|n| {
            let controller = controller.clone();
            tokio::spawn(async move {
                let endpoint = format!("device {n}").parse().unwrap();
                let register = move |sessions: &mut Sessions, now| {
                    sessions
                        .register(now, endpoint, DEVICE, None, RegistrationId::from_u64(n))
                        .unwrap()
                };
                controller.apply(register).await.unwrap()
            })
        })
        .collect();
    while controller.requests.capacity() > QUEUE_LEN - 100 {
        tokio::task::yield_now().await;
    }
    go.send(()).unwrap();
    blocked.await.unwrap();
    for registered in waiting {
        registered.await.unwrap();
    }
    assert_eq!(world.state().commits, 1);
    assert_eq!(world.state().image.terminals.len(), 100);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_data_plane_refuses_is_tried_again_and_warned_of() {
    let world = World::default();
    let (controller, _ended) = world.start();
    world.state().refuses = true;
    let session = authorised(&controller, 1).await;
    let warnings = controller.observe(|view| view.warnings).await.unwrap();
    assert!(
        warnings
            .iter()
            .any(|warning| warning.starts_with("1 authorised session")),
        "{warnings:?}"
    );
    world.state().refuses = false;
    tokio::time::timeout(Duration::from_secs(20), async {
        while !world.state().kernel.contains_key(&session) {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("it is tried again");
    assert_eq!(
        controller.observe(|view| view.warnings).await.unwrap(),
        ["forwarding is off"]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_acknowledged_that_is_not_durable() {
    let world = World::default();
    let (controller, ended) = world.start();
    let session = authorised(&controller, 1).await;
    world.state().disk_full = true;
    let answer = controller
        .apply(move |sessions, now| sessions.revoke(now, session))
        .await;
    assert!(matches!(answer, Err(Stopped)));
    assert!(matches!(
        ended.await.unwrap(),
        Err(StoreError::Write { .. })
    ));
    assert!(
        world.state().kernel.contains_key(&session),
        "the data plane is left as it is"
    );
    assert!(matches!(controller.observe(|_| ()).await, Err(Stopped)));
}
