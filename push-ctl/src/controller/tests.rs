mod turns;
mod world;

pub(crate) use world::{LIMITS, State, World};

use super::rounds::RENEW_AT;
use super::*;
use crate::credentials::ApiKey;
use crate::dataplane::{
    Captures, Found, NicCounters, Policy, Rate, SessionCounters, SessionImage, SessionSeen,
    SessionTraffic, Told, Tunnel,
};
use crate::sessions::records::{
    App, AppName, Availability, Path, Quotas, RealmName, RegistrationId,
};
use crate::sessions::{Image, Limits, SessionRequest};
use push_common::replay::WORDS;
use push_common::token::Token;
use push_common::verdict::Verdict;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::num::{NonZeroU16, NonZeroU32};
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::sync::Notify;

const DEVICE: Path = Path {
    realm: None,
    device: IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2)),
    gateway: std::net::SocketAddr::V4(std::net::SocketAddrV4::new(
        std::net::Ipv4Addr::new(10, 0, 0, 1),
        5683,
    )),
};

fn realm(name: &str) -> RealmName {
    name.parse().unwrap()
}

pub(crate) fn app_key() -> ApiKey {
    ApiKey::from_bytes([7; 32])
}

/// An application without rules or credentials.
pub(crate) fn app(name: &str, policy_slot: u16) -> App {
    App {
        name: name.parse().unwrap(),
        created: UnixTime::from_millis(0),
        policy_slot: NonZeroU16::new(policy_slot).unwrap(),
        policy: Policy::default(),
        credentials: Vec::new(),
        quotas: Quotas::default(),
        monitor: None,
        availability: Availability::Available,
        removed: false,
    }
}

pub(crate) fn token(n: u8) -> Token {
    Token::from_bytes([n; 16])
}

/// Registers, asks for a session for `mail`, and validates it.
pub(crate) async fn authorised(controller: &Controller, n: u8) -> SessionId {
    let device = IpAddr::from([10, 0, 0, n + 1]);
    authorised_at(controller, n, Path { device, ..DEVICE }).await
}

async fn authorised_at(controller: &Controller, n: u8, path: Path) -> SessionId {
    let from = path.clone();
    let registration = controller.apply(move |sessions, now| {
        let name = "mail".parse().unwrap();
        let _known = sessions.add_app(
            now,
            name,
            vec![app_key().credential(now)],
            Policy::default(),
        );
        let endpoint = format!("device {n}").parse().unwrap();
        sessions
            .register(
                now,
                endpoint,
                path,
                5683,
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
            .request_session(now, registration.id, &from, request, &token(n), generation)
            .unwrap()
            .id
    });
    let session = session.await.unwrap();
    let validated = controller.apply(move |sessions, now| {
        sessions.validate(now, app_key().id(), session, &token(n).hash())
    });
    validated.await.unwrap().unwrap();
    session
}

/// Waits for what happens without anybody asking.
pub(crate) async fn until(condition: impl Fn() -> bool) {
    let came = async {
        while !condition() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), came)
        .await
        .expect("it comes true");
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
        assert_eq!(*image.key, token(1).key());
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
async fn an_app_is_told_in_time_that_sequence_numbers_run_out() {
    let world = World::default();
    let (controller, _ended) = world.start();
    let session = authorised(&controller, 1).await;
    let mut notices = world.state().notices.take().unwrap();
    world.state().newest_sequence = RENEW_AT - 1;
    // Rounds are made meanwhile, at least one of them whole.
    let too_early = tokio::time::timeout(ROUND * 5 / 2, notices.recv()).await;
    assert!(too_early.is_err(), "{too_early:?}");
    world.state().newest_sequence = RENEW_AT;
    let notice = tokio::time::timeout(Duration::from_secs(20), notices.recv()).await;
    let notice = notice.unwrap().unwrap();
    assert_eq!(notice.kind, crate::sessions::NoticeKind::Renew { session });
    assert_eq!(notice.to, "10.0.0.2:7000".parse().unwrap());
    // Once is enough.
    let again = tokio::time::timeout(ROUND * 5 / 2, notices.recv()).await;
    assert!(again.is_err(), "{again:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_ends_when_it_would_have_if_the_machine_was_suspended_meanwhile() {
    let world = World::default();
    let (controller, _ended) = world.start();
    let session = authorised(&controller, 1).await;
    let expires_in = || {
        world
            .state()
            .kernel
            .get(&session)
            .map(|image| image.expires_in)
    };
    let before = expires_in().unwrap();
    let minutes = Duration::from_mins(40);
    world.state().suspended += minutes;
    until(|| expires_in().is_some_and(|left| left <= before - minutes)).await;
    assert!(expires_in().unwrap() > before - minutes - Duration::from_mins(1));
    world.state().suspended += minutes;
    until(|| expires_in().is_none()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_store_learns_replay_windows_while_it_runs_and_all_of_them_at_its_end() {
    const EARLIER: [u64; WORDS] = [1, 2, 3, 4];
    const LATER: [u64; WORDS] = [5, 6, 7, 8];
    let world = World::default();
    let (controller, ended) = world.start();
    let sessions = [
        authorised(&controller, 1).await,
        authorised(&controller, 2).await,
    ];
    let let_through = |id, window| {
        let mut state = world.state();
        state.kernel.get_mut(&id).unwrap().window = window;
    };
    let stored = || {
        let state = world.state();
        let windows = sessions.map(|id| {
            let session = state.image.sessions.iter().find(|session| session.id == id);
            session.unwrap().window.as_deref().copied()
        });
        (windows, state.commits)
    };
    let (_, before) = stored();
    let_through(sessions[0], EARLIER);
    until(|| stored().0 == [Some(EARLIER), None]).await;
    assert_eq!(
        stored().1,
        before + 1,
        "one commit for all that has changed"
    );
    // Another change to the record doesn't take it back.
    let terminal = RegistrationId::from_u64(1);
    controller
        .apply(move |sessions, now| sessions.refresh(now, terminal, DEVICE, 5683, false, None))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(stored().0, [Some(EARLIER), None]);

    let_through(sessions[0], LATER);
    let_through(sessions[1], LATER);
    drop(controller);
    ended.await.unwrap().unwrap();
    assert_eq!(stored().0, [Some(LATER), Some(LATER)]);

    // The kernel has forgotten everything, as it does when the machine starts.
    world.state().kernel.clear();
    world.state().policies.clear();
    let (controller, ended) = world.start();
    for id in sessions {
        assert_eq!(world.state().kernel[&id].window, LATER);
    }

    // Who takes over at once finds them there.
    let (_, before) = stored();
    let_through(sessions[0], EARLIER);
    let_through(sessions[1], EARLIER);
    controller.expect_successor();
    drop(controller);
    ended.await.unwrap().unwrap();
    assert_eq!(stored(), ([Some(LATER), Some(LATER)], before));
    let (controller, ended) = world.start();
    drop(controller);
    ended.await.unwrap().unwrap();
    assert_eq!(stored().0, [Some(EARLIER), Some(EARLIER)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registration_expires_by_itself() {
    let world = World::default();
    let (controller, _ended) = world.start();
    let session = authorised(&controller, 1).await;
    let short = Some(Duration::from_millis(20));
    let terminal = RegistrationId::from_u64(1);
    controller
        .apply(move |sessions, now| sessions.refresh(now, terminal, DEVICE, 5683, false, short))
        .await
        .unwrap()
        .unwrap();
    until(|| !world.state().kernel.contains_key(&session)).await;
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
                        .register(
                            now,
                            endpoint,
                            DEVICE,
                            5683,
                            None,
                            RegistrationId::from_u64(n),
                        )
                        .unwrap()
                };
                controller.apply(register).await.unwrap()
            })
        })
        .collect();
    while controller.operations.capacity() > QUEUE_LEN - 100 {
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
    let warnings = controller.observe(|view| view.warnings()).await.unwrap();
    assert!(
        warnings.iter().any(|warning| warning.starts_with(&format!(
            "1 authorised session is not in the data plane; of {session}: told to refuse."
        ))),
        "{warnings:?}"
    );
    world.state().refuses = false;
    until(|| world.state().kernel.contains_key(&session)).await;
    assert_eq!(
        controller.observe(|view| view.warnings()).await.unwrap(),
        ["forwarding is off"]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_acknowledged_that_is_not_durable() {
    let world = World::default();
    let (controller, ended) = world.start();
    let session = authorised(&controller, 1).await;
    // So that it is the next change that the disk doesn't take, even if this one was acknowledged too early.
    until(|| world.state().commits == 3).await;
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

#[tokio::test(flavor = "multi_thread")]
async fn news_of_the_kernel_are_taken_up_while_nobody_asks() {
    let world = World::default();
    let (_controller, _ended) = world.start();
    for n in 1..=3 {
        world.news.notify_one();
        until(|| world.state().changes == n).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_is_there_before_its_sessions_and_gone_after_them() {
    let world = World::default();
    let (controller, ended) = world.start();
    let session = authorised(&controller, 1).await;
    let mail: AppName = "mail".parse().unwrap();
    let limited = Policy {
        rate: Some(Rate {
            interval: Duration::from_millis(100),
            burst: 3,
        }),
        ..Policy::default()
    };
    assert_eq!(world.state().policies[&1], Policy::default());
    let (name, policy) = (mail.clone(), limited.clone());
    controller
        .apply(move |sessions, _| sessions.set_policy(&name, policy))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(world.state().policies[&1], limited);

    // A data plane that lost its maps gets everything again.
    drop(controller);
    ended.await.unwrap().unwrap();
    world.state().kernel.clear();
    world.state().policies.clear();
    let (controller, _ended) = world.start();
    assert_eq!(world.state().policies[&1], limited);
    assert_eq!(world.state().kernel[&session].policy, 1);

    // In one step one application goes, and another one gets its slot.
    controller
        .apply(move |sessions, now| {
            sessions.remove_app(now, &mail).unwrap();
            let name = "chat".parse().unwrap();
            sessions.add_app(
                now,
                name,
                vec![app_key().credential(now)],
                Policy::default(),
            )
        })
        .await
        .unwrap()
        .unwrap();
    let state = world.state();
    assert_eq!(state.policies, BTreeMap::from([(1, Policy::default())]));
    assert!(state.kernel.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn no_session_goes_by_a_policy_that_the_data_plane_refused() {
    let world = World::default();
    let (controller, _ended) = world.start();
    world.state().refuses_policies = true;
    let session = authorised(&controller, 1).await;
    assert!(world.state().kernel.is_empty());
    let warnings = controller.observe(|view| view.warnings()).await.unwrap();
    let why = "the policy of application mail is not in the data plane: told to refuse policies";
    assert_eq!(
        warnings[1..],
        [
            format!("{why}. It is tried again."),
            format!(
                "1 authorised session is not in the data plane; of {session}: {why}. The log has them all."
            ),
        ]
    );
    world.state().refuses_policies = false;
    until(|| world.state().kernel.contains_key(&session)).await;
    let warnings = controller.observe(|view| view.warnings()).await.unwrap();
    assert_eq!(warnings, ["forwarding is off"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn realms_and_tunnels_are_told_to_the_data_plane() {
    let world = World::default();
    let (controller, _ended) = world.start();
    let outside = authorised(&controller, 1).await;
    let inside = Path {
        realm: Some(realm("meters")),
        ..DEVICE
    };
    let inside = authorised_at(&controller, 2, inside).await;
    let tunnel = Tunnel {
        peer: "10.70.0.2".parse().unwrap(),
        teid: 4711,
    };
    controller
        .apply(move |sessions, _| sessions.set_tunnel(inside, Some(tunnel)))
        .await
        .unwrap()
        .unwrap();
    let state = world.state();
    let [outside, inside] = [outside, inside].map(|id| &state.kernel[&id]);
    assert_eq!((outside.realm, outside.tunnel), (None, None));
    assert_eq!((inside.realm, inside.tunnel), (Some(1), Some(tunnel)));
    assert_eq!(outside.device, inside.device);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_configuration_no_longer_has_is_not_delivered_for() {
    let world = World::default();
    let (controller, ended) = world.start();
    let outside = authorised(&controller, 1).await;
    let meters = Path {
        realm: Some(realm("meters")),
        ..DEVICE
    };
    let inside = authorised_at(&controller, 2, meters).await;
    drop(controller);
    ended.await.unwrap().unwrap();
    let elsewhere = "10.0.0.9:5683".parse().unwrap();
    let cases = [
        (
            Places::new(&[DEVICE.gateway]),
            vec![outside],
            "registered in the realm meters, which is no longer in the configuration",
        ),
        (
            Places::new(&[DEVICE.gateway]).and_realm(&realm("meters"), &[elsewhere]),
            vec![outside],
            "registered at 10.0.0.1:5683, which is no longer in realm.meters.listen",
        ),
        (
            Places::new(&[elsewhere]).and_realm(&realm("meters"), &[DEVICE.gateway]),
            vec![inside],
            "registered at 10.0.0.1:5683, which is no longer in internal.listen",
        ),
    ];
    for (places, delivered, why) in cases {
        // Before, all were; a restart takes those away that have lost their place.
        let (controller, ended) = world.start();
        assert_eq!(world.installed(), [outside, inside]);
        drop(controller);
        ended.await.unwrap().unwrap();
        let (controller, ended) = world.start_with(places);
        assert_eq!(world.installed(), delivered);
        let warnings = controller.observe(|view| view.warnings()).await.unwrap();
        assert!(warnings[1].contains(why), "{warnings:?}");
        drop(controller);
        ended.await.unwrap().unwrap();
    }
}
