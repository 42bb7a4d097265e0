use super::*;
use crate::sessions::records::{AppFailure, EndCause, Left};
use serde_json::{Value, json};
use tokio::sync::broadcast::error::TryRecvError;

fn shown(what: What) -> Value {
    let at = UnixTime::from_millis(1_700_000_000_123);
    serde_json::from_str(&EventLine::from(&Event { at, what }).to_json()).unwrap()
}

#[test]
fn the_form_of_an_event_is_stable() {
    let at = "2023-11-14T22:13:20.123Z";
    let id: SessionId = "deadbeef00000001".parse().unwrap();
    let app: AppName = "mail".parse().unwrap();
    let terminal = RegistrationId::from_u64(0xab);
    let source = "198.51.100.7:40000".parse().unwrap();
    let cases = [
        (
            What::Lifecycle(News::SessionEnded {
                id,
                app: app.clone(),
                terminal,
                cause: EndCause::Revoked,
            }),
            json!({ "at": at, "kind": "session_ended", "session": "deadbeef00000001", "app": "mail", "terminal": "00000000000000ab", "cause": "revoked", "by": "operator", "outcome": "done" }),
        ),
        (
            What::Lifecycle(News::AppFailed {
                app: app.clone(),
                cause: AppFailure::Unreachable,
            }),
            json!({ "at": at, "kind": "app_failed", "app": "mail", "cause": "unreachable", "by": "gateway", "outcome": "done" }),
        ),
        (
            What::Lifecycle(News::TerminalLeft {
                id: terminal,
                endpoint: "phone".parse().unwrap(),
                cause: Left::Expired,
            }),
            json!({ "at": at, "kind": "terminal_left", "terminal": "00000000000000ab", "endpoint": "phone", "cause": "expired", "by": "gateway", "outcome": "done" }),
        ),
        (
            What::Lifecycle(News::TokenRotated {
                id,
                app,
                token_generation: 1,
            }),
            json!({ "at": at, "kind": "token_rotated", "session": "deadbeef00000001", "app": "mail", "token_generation": 1, "by": "app", "outcome": "done" }),
        ),
        (
            What::DataPlane(Told {
                kind: EventKind::Forged,
                nic: Some("eth1".to_owned()),
                count: 3,
                session: id,
                source,
            }),
            json!({ "at": at, "kind": "forged", "nic": "eth1", "count": 3, "session": "deadbeef00000001", "source": "198.51.100.7:40000" }),
        ),
        (
            What::OperatorAction(Box::new(OperatorAction {
                action: "app add".to_owned(),
                object: "pak_00112233 as a name".to_owned(),
                change: Some(json!({ "dscp": 8 })),
                refusal: Some(Refusal {
                    cause: "bad_name".to_owned(),
                    detail: "not ptk_44556677".to_owned(),
                }),
                uid: Some(0),
                pid: None,
            })),
            json!({ "at": at, "kind": "operator_action", "action": "app add", "object": "pak_… as a name", "change": { "dscp": 8 }, "outcome": "refused", "cause": "bad_name", "detail": "not ptk_…", "by": "operator", "uid": 0 }),
        ),
        (
            What::NoticeUnanswered {
                to: source,
                notice: "teardown",
                session: Some(id),
                terminal: None,
            },
            json!({ "at": at, "kind": "notice_unanswered", "to": "198.51.100.7:40000", "notice": "teardown", "session": "deadbeef00000001" }),
        ),
    ];
    for (what, expected) in cases {
        assert_eq!(shown(what), expected);
    }
}

#[test]
fn who_listens_too_slowly_is_told_how_many_events_it_lost() {
    let bus = Bus::default();
    let reloaded = |n: usize| Event {
        at: UnixTime::from_millis(0),
        what: What::Reloaded {
            changes: vec![n.to_string()],
        },
    };
    bus.publish(reloaded(0));
    let mut slow = bus.subscribe();
    for n in 0..BACKLOG_LEN + 5 {
        bus.publish(reloaded(n));
    }
    let Err(TryRecvError::Lagged(lost)) = slow.try_recv() else {
        panic!("nothing was lost");
    };
    assert_eq!(lost, 5);
    let oldest = EventLine::from(&*slow.try_recv().unwrap());
    assert_eq!(oldest.changes, ["5"]);
}
