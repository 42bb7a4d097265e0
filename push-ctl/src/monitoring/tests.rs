//! Against a server that can be told how to be, over loopback.

use super::*;
use crate::controller::tests::{World, app_key, authorised, token};
use crate::sessions::records::{EndCause, Monitor, SessionState};
use crate::sessions::{OperatorRefusal, ValidationRefusal};
use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};
use tokio::net::TcpListener;

const MS: Duration = Duration::from_millis(1);

/// An application server: the status it answers with, 0 for a body that says so; and how often it was asked.
#[derive(Default)]
struct Server {
    status: AtomicU16,
    asked: AtomicUsize,
}

impl Server {
    async fn start(status: u16) -> (Arc<Self>, String) {
        let server = Arc::new(Self {
            status: status.into(),
            asked: AtomicUsize::new(0),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/status", listener.local_addr().unwrap());
        let answering = Arc::clone(&server);
        let answer = move || {
            answering.asked.fetch_add(1, Ordering::Relaxed);
            let status = answering.status.load(Ordering::Relaxed);
            async move {
                match StatusCode::from_u16(status) {
                    Ok(status) => (status, ""),
                    Err(_) => (StatusCode::OK, "{\"available\": true}"),
                }
            }
        };
        let app = Router::new().route("/status", get(answer));
        tokio::spawn(async move { axum::serve(listener, app).await });
        (server, url)
    }

    fn answers(&self, status: u16) {
        self.status.store(status, Ordering::Relaxed);
    }

    /// Waits until it was asked this often since now.
    async fn asked(&self, times: usize) {
        let begin = self.asked.load(Ordering::Relaxed);
        let asked = async {
            while self.asked.load(Ordering::Relaxed) < begin + times {
                tokio::time::sleep(MS).await;
            }
        };
        let asked = tokio::time::timeout(Duration::from_secs(20), asked);
        asked.await.expect("it is asked");
    }
}

struct Scene {
    world: World,
    controller: Controller,
    hints: Hints,
    session: SessionId,
}

fn mail() -> AppName {
    "mail".parse().unwrap()
}

impl Scene {
    /// An application with a session, monitored like this.
    async fn begin(monitor: Monitor) -> Self {
        let world = World::default();
        let (controller, _ended) = world.start();
        let hints = Hints::default();
        let enquirer = Enquirer::new(None).unwrap();
        tokio::spawn(run(controller.clone(), hints.clone(), enquirer));
        let session = authorised(&controller, 1).await;
        let scene = Self {
            world,
            controller,
            hints,
            session,
        };
        scene.set(Some(monitor)).await.unwrap();
        scene
    }

    async fn set(&self, monitor: Option<Monitor>) -> Result<(), OperatorRefusal> {
        let set = move |sessions: &mut crate::sessions::Sessions, _now| {
            sessions.set_monitor(&mail(), monitor)
        };
        let set = self.controller.apply(set).await.unwrap();
        self.hints.monitors_changed();
        set
    }

    async fn availability(&self) -> Availability {
        let look = self
            .controller
            .observe(|view| view.sessions.app(&mail()).unwrap().availability);
        look.await.unwrap()
    }

    /// Waits until the application is available, or not for this cause.
    async fn until(&self, expected: Option<AppFailure>) {
        let came = async {
            loop {
                let cause = match self.availability().await {
                    Availability::Available => None,
                    Availability::Failed { cause, .. } => Some(cause),
                };
                if cause == expected {
                    return;
                }
                tokio::time::sleep(MS).await;
            }
        };
        let came = tokio::time::timeout(Duration::from_secs(20), came);
        came.await.unwrap_or_else(|_| panic!("never {expected:?}"));
    }

    async fn ended(&self) -> Option<EndCause> {
        let id = self.session;
        let look =
            self.controller
                .observe(move |view| match view.sessions.session(id).unwrap().state {
                    SessionState::Ended { cause, .. } => Some(cause),
                    SessionState::Requested(_) | SessionState::Authorised(_) => None,
                });
        look.await.unwrap()
    }
}

fn asking(url: String) -> Monitor {
    Monitor {
        url: Some(url),
        interval: 5 * MS,
        unreachable_after: 30 * MS,
        inactive_after: None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_answer_for_too_long_has_no_sessions_until_they_do() {
    let (server, url) = Server::start(200).await;
    let scene = Scene::begin(asking(url)).await;
    server.asked(3).await;
    assert_eq!(scene.ended().await, None);
    server.answers(500);
    scene.until(Some(AppFailure::Unreachable)).await;
    assert_eq!(scene.ended().await, Some(EndCause::AppServerFailed));
    assert!(scene.world.state().kernel.is_empty());
    let id = scene.session;
    let validated = scene
        .controller
        .apply(move |sessions, now| sessions.validate(now, app_key().id(), id, &token(1).hash()));
    let over = ValidationRefusal::SessionEnded(EndCause::AppServerFailed);
    assert_eq!(validated.await.unwrap(), Err(over));
    server.answers(204);
    scene.until(None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_says_that_they_are_not_available_is_taken_at_their_word() {
    let (server, url) = Server::start(503).await;
    let patient = Monitor {
        unreachable_after: Duration::from_hours(1),
        ..asking(url)
    };
    let scene = Scene::begin(patient).await;
    scene.until(Some(AppFailure::Announced)).await;
    assert_eq!(scene.ended().await, Some(EndCause::AppServerFailed));
    server.answers(200);
    scene.until(None).await;

    // What was told to the external interface holds, until it is taken back here or there.
    let announced = scene
        .controller
        .apply(|sessions, now| sessions.app_failed(now, &mail(), AppFailure::Announced));
    announced.await.unwrap().unwrap();
    server.asked(3).await;
    assert!(matches!(
        scene.availability().await,
        Availability::Failed { .. }
    ));
    server.answers(0);
    scene.until(None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_application_that_nobody_uses_loses_its_sessions_and_may_come_back() {
    // Its last trigger was delivered 2.5 s ago.
    let unused_for = |limit| Monitor {
        url: None,
        interval: Duration::from_secs(30),
        unreachable_after: Duration::from_secs(60),
        inactive_after: Some(limit),
    };
    let scene = Scene::begin(unused_for(Duration::from_hours(1))).await;
    let quiet_for = |limit| {
        let round = Round {
            controller: scene.controller.clone(),
            hints: scene.hints.clone(),
            enquirer: Enquirer::new(None).unwrap(),
            watched: BTreeMap::new(),
            enquiries: JoinSet::new(),
        };
        async move { round.quiet_for(&mail(), limit).await.unwrap() }
    };
    let in_use = quiet_for(Duration::from_secs(3)).await;
    assert_eq!(in_use, Duration::from_millis(2500), "a delivery counts");
    scene.hints.validated(mail());
    let in_use = quiet_for(Duration::from_secs(1)).await;
    assert!(in_use < Duration::from_secs(1), "a validation counts");
    assert_eq!(scene.ended().await, None);

    scene.set(Some(unused_for(20 * MS))).await.unwrap();
    let over = async {
        while scene.ended().await.is_none() {
            tokio::time::sleep(MS).await;
        }
    };
    let over = tokio::time::timeout(Duration::from_secs(20), over);
    over.await.expect("it is noticed that nobody uses it");
    assert_eq!(scene.ended().await, Some(EndCause::AppServerFailed));
    assert_eq!(scene.availability().await, Availability::Available);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_monitor_that_is_taken_away_keeps_nobody_out() {
    let (_server, url) = Server::start(500).await;
    let scene = Scene::begin(asking(url)).await;
    scene.until(Some(AppFailure::Unreachable)).await;
    let (other, url) = Server::start(200).await;
    scene.set(Some(asking(url))).await.unwrap();
    other.asked(3).await;
    assert_eq!(scene.availability().await, Availability::Available);
    scene.set(None).await.unwrap();
}
