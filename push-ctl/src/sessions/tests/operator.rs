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

#[test]
fn a_device_that_is_not_known_is_refused_from_when_it_was_suspended_until_it_is_resumed() {
    let mut sessions = empty();
    let stolen: EndpointName = "stolen".parse().unwrap();
    assert_eq!(sessions.terminal_called("stolen"), None);
    let barred = sessions
        .suspend_unknown(at(0), stolen.clone(), id(9))
        .unwrap();
    let changes = sessions.take_changes();
    assert_eq!(changes.terminals, BTreeSet::from([barred]));
    let said = News::TerminalSuspended {
        id: barred,
        endpoint: stolen.clone(),
    };
    assert_eq!((changes.news, changes.notices), (vec![said], Vec::new()));
    assert_eq!(
        sessions.suspend_unknown(at(0), stolen.clone(), id(8)),
        Err(OperatorRefusal::EndpointKnown)
    );

    // For as long as it takes, and over a restart.
    sessions = Sessions::restore(LIMITS, image(&sessions)).unwrap();
    sessions.expire(at(1_000_000), usize::MAX);
    for name in ["stolen".to_owned(), barred.to_string()] {
        assert_eq!(sessions.terminal_called(&name), Some(barred));
    }
    assert!(!sessions.terminal(barred).unwrap().path.is_known());
    let now = at(1_000_000);
    let comes = |sessions: &mut Sessions, host| {
        let path = from_realm("cars", host);
        sessions
            .register(now, stolen.clone(), path, PORT, None, id(7))
            .map(|registered| registered.id)
    };
    assert_eq!(comes(&mut sessions, 5), Err(DeviceRefusal::Suspended));
    // The operator sees where it is; nobody else is kept from there.
    assert_eq!(sessions.take_changes().terminals, BTreeSet::from([barred]));
    let seen = sessions.terminal(barred).unwrap();
    assert!(seen.path.is_from_same_address(&from_realm("cars", 5)));
    let other = "other".parse().unwrap();
    sessions
        .register(now, other, from_realm("cars", 5), PORT, None, id(6))
        .unwrap();

    assert_eq!(sessions.resume(now, barred), Ok(false));
    let refresh = NoticeKind::Refresh {
        registration: barred,
    };
    let told: Vec<_> = sessions.take_changes().notices;
    assert_eq!((told.len(), told[0].kind), (1, refresh));
    assert_eq!(told[0].to, "10.0.0.5:5683".parse().unwrap());
    assert_eq!(comes(&mut sessions, 4), Ok(id(7)));
}

#[test]
fn one_that_has_not_come_is_told_nothing_and_one_that_has_left_can_be_suspended() {
    let mut sessions = one_terminal();
    let barred = sessions
        .suspend_unknown(at(0), "stolen".parse().unwrap(), id(9))
        .unwrap();
    assert_eq!(sessions.resume(at(1), barred), Ok(false));
    assert_eq!(sessions.take_changes().notices, []);
    assert_eq!(sessions.terminal_called("stolen"), None);

    sessions.expire(at(100), usize::MAX);
    assert_eq!(sessions.suspend(at(101), id(1)), Ok(0));
    assert_eq!(
        sessions.suspend(at(101), id(1)),
        Err(OperatorRefusal::NotProvisioned("suspended"))
    );
    let again = sessions.register(
        at(102),
        "phone".parse().unwrap(),
        from(2),
        PORT,
        None,
        id(2),
    );
    assert_eq!(again, Err(DeviceRefusal::Suspended));

    // There is no room for whoever comes to mind.
    for n in 1..LIMITS.slots {
        let endpoint = format!("d{n}").parse().unwrap();
        sessions.suspend_unknown(at(102), endpoint, id(9)).unwrap();
    }
    let one_more = sessions.suspend_unknown(at(102), "x".parse().unwrap(), id(9));
    assert_eq!(one_more, Err(OperatorRefusal::TerminalsFull));
}
