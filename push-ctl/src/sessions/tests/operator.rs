//! Policies and tunnels.

use super::*;
use crate::dataplane::{Policy, Rate, Tunnel};
use push_common::maps::{MAX_POLICIES, MAX_SOURCE_PREFIXES};

fn limited() -> Policy {
    Policy {
        rate: Some(Rate {
            interval: Duration::from_millis(100),
            burst: 3,
        }),
        ..Policy::default()
    }
}

fn slot_of(sessions: &Sessions, name: &str) -> u16 {
    let app = sessions.app(&name.parse().unwrap()).unwrap();
    assert_eq!(
        sessions.app_of_policy_slot(app.policy_slot).unwrap().name,
        app.name
    );
    app.policy_slot.get()
}

fn slots(changes: &Changes) -> Vec<u16> {
    changes.policies.iter().map(|slot| slot.get()).collect()
}

#[test]
fn each_application_has_a_policy_slot_of_its_own_which_is_used_anew() {
    let mut sessions = empty();
    let add = |sessions: &mut Sessions, name: &str, n| {
        sessions.add_app(
            at(0),
            name.parse().unwrap(),
            vec![credential(n)],
            Policy::default(),
        )
    };
    for (n, name) in (1..).zip(["a", "b", "c"]) {
        add(&mut sessions, name, n).unwrap();
        assert_eq!(slots(&sessions.take_changes()), [u16::from(n)]);
    }
    sessions.remove_app(at(1), &"b".parse().unwrap()).unwrap();
    let gone = sessions.take_changes();
    assert_eq!(slots(&gone), [2]);
    assert!(
        sessions
            .app_of_policy_slot(gone.policies.into_iter().next().unwrap())
            .is_none()
    );
    add(&mut sessions, "d", 4).unwrap();
    add(&mut sessions, "e", 5).unwrap();
    let all = ["a", "c", "d", "e"].map(|name| slot_of(&sessions, name));
    assert_eq!(all, [1, 3, 2, 4]);

    for n in 5..MAX_POLICIES {
        add(&mut sessions, &format!("app-{n}"), 5).unwrap();
    }
    assert_eq!(slot_of(&sessions, "app-4095"), 4095);
    let one_too_many = add(&mut sessions, "more", 5).unwrap_err();
    assert_eq!(one_too_many, OperatorRefusal::AppsFull);
    assert!(
        one_too_many
            .to_string()
            .contains("there are 4095 applications")
    );
    sessions.remove_app(at(1), &"a".parse().unwrap()).unwrap();
    add(&mut sessions, "more", 5).unwrap();
    assert_eq!(slot_of(&sessions, "more"), 1);
}

#[test]
fn a_policy_changes_without_its_sessions() {
    let (mut sessions, session) = one_authorised();
    let mail: AppName = "mail".parse().unwrap();
    sessions.take_changes();
    sessions.set_policy(&mail, limited()).unwrap();
    let changes = sessions.take_changes();
    assert_eq!(slots(&changes), [1]);
    assert_eq!(changes.apps, BTreeSet::from([mail.clone()]));
    assert!(changes.kernel.is_empty());
    assert_eq!(sessions.authorised(session).unwrap().app.policy, limited());

    sessions.set_policy(&mail, limited()).unwrap();
    assert!(sessions.take_changes().leave_store_alone());
    let unknown = sessions.set_policy(&"chat".parse().unwrap(), limited());
    assert_eq!(unknown, Err(OperatorRefusal::UnknownApp));
    let sessions = Sessions::restore(LIMITS, image(&sessions)).unwrap();
    assert_eq!(sessions.app(&mail).unwrap().policy, limited());
}

#[test]
fn prefixes_are_refused_that_the_data_plane_has_no_room_for() {
    let mut sessions = empty();
    let prefixes = |count: u32| Policy {
        sources: (0..count)
            .map(|n| IpAddr::from(n.to_be_bytes()).into())
            .collect(),
        ..Policy::default()
    };
    let (a, b): (AppName, AppName) = ("a".parse().unwrap(), "b".parse().unwrap());
    let add = |sessions: &mut Sessions, name: &AppName, policy| {
        sessions.add_app(at(0), name.clone(), vec![credential(1)], policy)
    };
    add(&mut sessions, &a, prefixes(MAX_SOURCE_PREFIXES - 1)).unwrap();
    let refused = add(&mut sessions, &b, prefixes(2));
    assert_eq!(refused, Err(OperatorRefusal::PrefixesFull));
    add(&mut sessions, &b, prefixes(1)).unwrap();
    let more = sessions.set_policy(&b, prefixes(2));
    assert_eq!(more, Err(OperatorRefusal::PrefixesFull));
    sessions
        .set_policy(&a, prefixes(MAX_SOURCE_PREFIXES - 2))
        .unwrap();
    sessions.set_policy(&b, prefixes(2)).unwrap();
}

#[test]
fn a_tunnel_is_for_a_session_that_is_not_over() {
    let tunnel = Some(Tunnel {
        peer: "10.70.0.2".parse().unwrap(),
        teid: 4711,
    });
    let (mut sessions, session) = one_session();
    sessions.take_changes();
    sessions.set_tunnel(session, tunnel).unwrap();
    let changes = sessions.take_changes();
    assert_eq!(changes.slots, BTreeSet::from([session.slot()]));
    assert!(changes.kernel.is_empty(), "it isn't authorised yet");
    sessions
        .validate(at(1), credential_id(1), session, &token(1).hash())
        .unwrap();
    assert_eq!(sessions.authorised(session).unwrap().session.tunnel, tunnel);

    sessions.take_changes();
    sessions.set_tunnel(session, tunnel).unwrap();
    assert!(sessions.take_changes().leave_store_alone());
    sessions
        .refresh(at(2), id(1), from(3), PORT, true, None)
        .unwrap();
    assert_eq!(sessions.authorised(session).unwrap().session.tunnel, tunnel);
    sessions.take_changes();
    sessions.set_tunnel(session, None).unwrap();
    assert_eq!(sessions.take_changes().kernel, BTreeSet::from([session]));

    sessions.revoke(at(3), session).unwrap();
    assert_eq!(
        sessions.set_tunnel(session, tunnel),
        Err(OperatorRefusal::SessionEnded(EndCause::Revoked))
    );
    assert_eq!(
        sessions.set_tunnel(SessionId::new(7, 7), tunnel),
        Err(OperatorRefusal::UnknownSession)
    );
}
