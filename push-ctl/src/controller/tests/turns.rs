//! That nobody waits for what others have asked.

use super::*;
use crate::sessions::records::{
    EndpointName, IssuedToken, OperativeState, Session, SessionState, Terminal, Tokens,
};

/// Terminals with a session each, until a moment.
fn image(terminals: u32, expires: UnixTime) -> Image {
    let name: AppName = "mail".parse().unwrap();
    let terminal = |n: u32| Terminal {
        id: RegistrationId::from_u64(n.into()),
        endpoint: format!("device {n}").parse::<EndpointName>().unwrap(),
        path: Path {
            device: std::net::Ipv4Addr::from(0x0A00_0000 + n).into(),
            gateway: "10.255.0.1:5683".parse().unwrap(),
            realm: None,
        },
        port: 5683,
        lifetime: Duration::from_secs(3600),
        state: OperativeState::First { expires },
    };
    let session = |n: u32| Session {
        id: SessionId::new(n, 1),
        terminal: RegistrationId::from_u64(n.into()),
        app: name.clone(),
        instance: "a".parse().unwrap(),
        port: NonZeroU16::new(7000).unwrap(),
        tunnel: None,
        window: None,
        state: SessionState::Authorised(Tokens::only(IssuedToken::new(&token(1), 0))),
    };
    Image {
        terminals: (0..terminals).map(terminal).collect(),
        sessions: (0..terminals).map(session).collect(),
        apps: vec![app("mail", 1)],
    }
}

fn start(world: &World, terminals: u32, expires_in: Duration) -> Controller {
    let limits = Limits {
        slots: terminals,
        ..LIMITS
    };
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let expires = UnixTime::from_millis(0).saturating_add(now.unwrap() + expires_in);
    world.start_of(Sessions::restore(limits, image(terminals, expires)).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_disk_is_slow_looks_are_answered_and_changes_are_not() {
    let world = World::default();
    let (controller, _ended) = world.start();
    let session = authorised(&controller, 1).await;
    // So that it is the next change that the disk doesn't take, even if this one was acknowledged too early.
    until(|| world.state().commits == 3).await;
    world.state().disk_hangs = true;
    let asked = controller.clone();
    let revoking = tokio::spawn(async move {
        let revoked = asked.apply(move |sessions, now| sessions.revoke(now, session));
        revoked.await.unwrap().unwrap();
    });
    until(|| world.state().is_writing).await;
    let count = controller.observe(|view| view.sessions.counts().authorised);
    assert_eq!(count.await.unwrap(), 0);
    // Not even one that changes nothing: what it has seen may be lost.
    let asked = controller.clone();
    let nothing = tokio::spawn(async move { asked.apply(|_, _| ()).await.unwrap() });
    until(|| controller.waiting() == 0).await;
    controller.observe(|_| ()).await.unwrap();
    assert!(!revoking.is_finished() && !nothing.is_finished());
    assert!(
        world.state().kernel.contains_key(&session),
        "in effect before it is durable"
    );
    world.state().disk_hangs = false;
    revoking.await.unwrap();
    nothing.await.unwrap();
    assert!(world.state().kernel.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_ends_at_once_is_written_some_at_a_time() {
    let world = World::default();
    let controller = start(&world, 3000, Duration::from_secs(3600));
    assert_eq!(world.state().kernel.len(), 3000);
    // When the machine wakes up, it is later than that.
    world.state().suspended = Duration::from_secs(7200);
    until(|| world.state().kernel.is_empty()).await;
    let counts = controller.observe(|view| view.sessions.counts().authorised);
    assert_eq!(counts.await.unwrap(), 0);
    let largest = world.state().largest_commit;
    // A terminal and its session are two records.
    assert!(largest <= CHANGES_LEN + 2 * EXPIRIES_AT_ONCE, "{largest}");
}

#[tokio::test(flavor = "multi_thread")]
async fn all_that_the_data_plane_has_refused_is_tried_again_some_at_a_time() {
    let world = World::default();
    world.state().refuses = true;
    let _controller = start(&world, 1000, Duration::from_secs(3600));
    assert!(world.state().kernel.is_empty());
    world.state().refuses = false;
    until(|| world.state().kernel.len() == 1000).await;
}
