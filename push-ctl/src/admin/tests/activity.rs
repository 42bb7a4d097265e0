//! What `push-ctl top` shows.

use super::*;
use crate::controller::tests::State;
use push_common::wire::SessionId;
use std::sync::MutexGuard;
use tokio::time::timeout;

/// Longer than anything here takes.
const LIMIT: Duration = Duration::from_secs(60);

fn count(mut state: MutexGuard<'_, State>, session: SessionId, packets: u64, refused: u32) {
    let counted = state.traffic.entry(session.slot()).or_default();
    counted.0 += packets;
    counted.1 += refused;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_busiest_are_those_whose_counters_move() {
    let world = World::default();
    let admin = admin_of(&world).await;
    let mut sessions = Vec::new();
    for n in 1..=3 {
        sessions.push(authorised(&admin.controller, n).await);
    }
    let [idle, busy, refused] = sessions[..] else {
        panic!("three sessions");
    };
    // What was before the first look is no news.
    count(world.state(), idle, 1_000_000, 0);
    let first = admin.get("/v1/activity").await;
    assert_eq!(
        keys(&first),
        [
            "busiest_apps",
            "busiest_sessions",
            "interval_ms",
            "nics",
            "sessions",
            "stats",
            "terminals",
            "uptime_s",
            "version",
            "warnings"
        ]
    );
    assert_eq!(first["busiest_sessions"], json!([]));
    assert_eq!(first["terminals"], 3);
    assert_eq!(first["nics"][0]["name"], "eth1");
    assert!(first["interval_ms"].as_u64().unwrap() > 0);

    // As often as it takes, as the moment of the second look is the daemon's.
    let seen = async {
        loop {
            count(world.state(), busy, 1000, 0);
            count(world.state(), refused, 5, 10);
            let activity = admin.get("/v1/activity").await;
            if activity["busiest_sessions"].as_array().unwrap().len() == 2 {
                return activity;
            }
        }
    };
    let activity = timeout(LIMIT, seen).await.unwrap();
    let [first, second] = &activity["busiest_sessions"].as_array().unwrap()[..] else {
        panic!("{activity}");
    };
    assert_eq!(first["id"], busy.to_string());
    assert_eq!(first["app"], "mail");
    assert_eq!(first["device"], "10.0.0.3:7000");
    let rate = |session: &Value, of: &str| session[of].as_f64().unwrap();
    assert!(rate(first, "packets_per_s") > 0.0);
    assert!(rate(first, "refused_per_s") < f64::EPSILON);
    assert!((rate(first, "bytes_per_s") / rate(first, "packets_per_s") - 100.0).abs() < 1.0);
    assert_eq!(second["id"], refused.to_string());
    assert!(rate(second, "refused_per_s") > 0.0);
    let [app] = &activity["busiest_apps"].as_array().unwrap()[..] else {
        panic!("{activity}");
    };
    assert_eq!(
        (&app["app"], &app["busy_sessions"]),
        (&json!("mail"), &json!(2))
    );
}
