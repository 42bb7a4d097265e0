//! Sessions that were elsewhere before, and many that end at once.

use super::*;
use crate::sessions::records::AppFailure;

/// All that there is to move.
fn all(sessions: &Sessions) -> Vec<Moved> {
    let moved = |terminal: &Terminal| Moved {
        terminal: terminal.clone(),
        sessions: sessions
            .sessions_on_terminal(terminal.id)
            .cloned()
            .collect(),
    };
    sessions.terminals_after(None).map(moved).collect()
}

/// Where there is nothing but the application.
fn elsewhere() -> Sessions {
    let mut sessions = empty();
    let mail = "mail".parse().unwrap();
    sessions
        .add_app(at(0), mail, vec![credential(1)], Policy::default())
        .unwrap();
    sessions.take_changes();
    sessions
}

#[test]
fn sessions_go_on_elsewhere_as_they_were() {
    let (mut here, session) = one_authorised();
    here.new_token(at(1), id(1), &from(2), session, &token(2))
        .unwrap();
    here.rotate(at(1), session, Some(Duration::from_secs(50)))
        .unwrap();
    let moved = all(&here).remove(0);
    let mut there = elsewhere();
    let fit = Fit {
        terminals: 1,
        sessions: 1,
        ..Fit::default()
    };
    assert_eq!(there.fit(at(2), &moved), Ok(fit));
    assert!(there.make_room(session));
    assert_eq!(there.take_up(at(2), moved.clone()), Ok(fit));

    let changes = there.take_changes();
    assert_eq!(
        (changes.terminals, changes.slots, changes.kernel),
        ([id(1)].into(), [session.slot()].into(), [session].into())
    );
    assert_eq!(image(&there), image(&here));
    assert_eq!(there.next_deadline(), here.next_deadline());
    assert_eq!(there.counts(), here.counts());

    let known = Fit {
        terminals_known: 1,
        sessions_known: 1,
        ..Fit::default()
    };
    assert_eq!(there.take_up(at(3), moved), Ok(known));
    assert!(there.take_changes().leave_store_alone());
    // The token that was given out elsewhere is good here.
    let validated = there.validate(at(4), credential_id(1), session, &token(2).hash());
    assert_eq!(validated.unwrap().token_generation, 1);
}

#[test]
fn what_has_expired_meanwhile_is_left_out() {
    let (here, session) = one_authorised();
    let moved = all(&here).remove(0);
    let mut there = elsewhere();
    assert!(there.make_room(session));
    let expired = Fit {
        sessions_expired: 1,
        ..Fit::default()
    };
    assert_eq!(there.take_up(at(100), moved), Ok(expired));
    assert!(there.take_changes().leave_store_alone());
}

#[test]
fn what_is_in_the_way_is_named_and_nothing_is_changed() {
    let (here, session) = one_authorised();
    let moved = all(&here).remove(0);
    let registered = |endpoint: &str, host: u8, value: u64| {
        let mut there = elsewhere();
        let path = from(host);
        there
            .register(
                at(0),
                endpoint.parse().unwrap(),
                path,
                PORT,
                None,
                id(value),
            )
            .unwrap();
        there
    };
    let with_session = |instance: &str| {
        let mut there = registered("phone", 2, 1);
        let request = request("mail", instance);
        let granted =
            there.request_session(at(0), id(1), &from(2), request, &token(9), generation(9));
        (there, granted.unwrap().id)
    };
    let (other_in_slot, by) = with_session("b");
    let mut failed = elsewhere();
    failed
        .app_failed(at(0), &"mail".parse().unwrap(), AppFailure::Announced)
        .unwrap();
    let mut changed = elsewhere();
    assert!(changed.make_room(session));
    changed.take_up(at(0), moved.clone()).unwrap();
    changed
        .set_tunnel(
            session,
            Some(crate::dataplane::Tunnel {
                peer: from(9).device,
                teid: 1,
            }),
        )
        .unwrap();
    let mut suspended = registered("phone", 2, 1);
    suspended.suspend(at(0), id(1)).unwrap();
    let slots = session.slot();
    let small = Sessions::restore(Limits { slots, ..LIMITS }, image(&elsewhere())).unwrap();
    let cases = [
        (empty(), Misfit::UnknownApp("mail".parse().unwrap())),
        (failed, Misfit::AppFails("mail".parse().unwrap())),
        (
            registered("tablet", 2, 5),
            Misfit::AddressTaken {
                address: from(2).device,
                by: id(5),
            },
        ),
        (
            registered("phone", 3, 5),
            Misfit::EndpointTaken {
                endpoint: "phone".parse().unwrap(),
                by: id(5),
            },
        ),
        (registered("tablet", 3, 1), Misfit::OtherEndpoint(id(1))),
        (other_in_slot, Misfit::SlotTaken { id: session, by }),
        (changed, Misfit::SessionChanged(session)),
        (suspended, Misfit::Suspended(id(1))),
        (small, Misfit::BeyondTable { id: session, slots }),
    ];
    for (mut there, misfit) in cases {
        let before = image(&there);
        there.take_changes();
        let misfits = there.take_up(at(1), moved.clone()).unwrap_err();
        assert!(misfits.contains(&misfit), "{misfit:?}: {misfits:?}");
        assert_eq!(there.fit(at(1), &moved), Err(misfits));
        assert_eq!(image(&there), before, "{misfit:?}");
        assert!(there.take_changes().leave_store_alone(), "{misfit:?}");
    }
}

#[test]
fn a_slot_that_was_taken_up_is_given_to_no_other_session() {
    let (here, session) = one_authorised();
    let mut moved = all(&here).remove(0);
    let taken = SessionId::new(5, session.generation());
    moved.sessions[0].id = taken;
    let mut there = elsewhere();
    assert!(there.make_room(taken));
    there.take_up(at(0), moved).unwrap();
    let mut slots = Vec::new();
    for n in 0..LIMITS.slots {
        let request = request("mail", &format!("further {n}"));
        let granted =
            there.request_session(at(1), id(1), &from(2), request, &token(3), generation(3));
        slots.extend(granted.ok().map(|grant| grant.id.slot()));
    }
    slots.sort_unstable();
    assert_eq!(slots, [0, 1, 2, 3, 4, 6, 7]);
    assert!(there.authorised(taken).is_some());
    // And once it is over, to one.
    there.revoke(at(2), taken).unwrap();
    let request = request("mail", "last");
    let granted = there.request_session(at(3), id(1), &from(2), request, &token(3), generation(3));
    assert_eq!(granted.unwrap().id.slot(), 5);
}

/// More sessions of one application than end at once.
fn many() -> (Sessions, Limits, usize) {
    const MANY: u32 = 2000;
    let limits = Limits {
        slots: MANY,
        sessions_per_terminal: MANY,
        ..LIMITS
    };
    let mut sessions = Sessions::restore(limits, image(&one_terminal())).unwrap();
    for n in 0..MANY {
        let request = request("mail", &n.to_string());
        sessions
            .request_session(at(0), id(1), &from(2), request, &token(1), generation(7))
            .unwrap();
    }
    sessions.take_changes();
    (sessions, limits, MANY as usize)
}

#[test]
fn an_application_with_many_sessions_ends_some_at_a_time() {
    let mail: AppName = "mail".parse().unwrap();
    let ask = |sessions: &mut Sessions| {
        let request = request("mail", "another");
        sessions.request_session(at(2), id(1), &from(2), request, &token(1), generation(8))
    };
    for removed in [true, false] {
        let (mut sessions, limits, many) = many();
        let ended = if removed {
            sessions.remove_app(at(1), &mail)
        } else {
            sessions.app_failed(at(1), &mail, AppFailure::Inactive)
        };
        assert_eq!(ended, Ok(many));
        let mut changes = sessions.take_changes();
        let mut over = changes.slots.len();
        assert!(over > 0 && over < many, "{over} at once");
        assert!(
            sessions.next_deadline() < Some(at(0)),
            "there is more to do"
        );
        // Nobody can use it any more, but the store and the data plane need to know it.
        let refusal = if removed {
            assert_eq!(
                sessions.remove_app(at(1), &mail),
                Err(OperatorRefusal::UnknownApp)
            );
            let added = sessions.add_app(at(1), mail.clone(), Vec::new(), Policy::default());
            assert_eq!(added, Err(OperatorRefusal::AppEnding));
            assert!(changes.policies.is_empty() && sessions.app(&mail).is_some());
            DeviceRefusal::UnknownApp
        } else {
            DeviceRefusal::AppUnavailable
        };
        assert_eq!(ask(&mut sessions), Err(refusal));
        if removed {
            // It goes on after a restart.
            let mut kept = image(&sessions);
            kept.apps.extend(sessions.app(&mail).cloned());
            sessions = Sessions::restore(limits, kept).unwrap();
        }
        while sessions.counts().requested > 0 {
            sessions.expire(at(2), 100);
            changes = sessions.take_changes();
            assert!(
                (1..=100).contains(&changes.slots.len()),
                "{:?}",
                changes.slots.len()
            );
            over += changes.slots.len();
        }
        sessions.expire(at(2), 100);
        let last = sessions.take_changes();
        assert_eq!(over, many);
        assert!(sessions.next_deadline() > Some(at(2)));
        if removed {
            let policies = changes.policies.len() + last.policies.len();
            assert_eq!((sessions.app(&mail), policies), (None, 1));
        } else {
            ask(&mut sessions).unwrap();
        }
    }
}

#[test]
fn who_is_suspended_stays_so_elsewhere_registered_or_not() {
    let mut here = one_terminal();
    here.suspend(at(0), id(1)).unwrap();
    here.suspend_unknown(at(0), "stolen".parse().unwrap(), id(9))
        .unwrap();
    let mut there = empty();
    let now = at(1_000_000);
    for terminal in here.terminals() {
        let moved = Moved {
            terminal: terminal.clone(),
            sessions: Vec::new(),
        };
        there.take_up(now, moved).unwrap();
    }
    for (name, host) in [("phone", 2), ("stolen", 3)] {
        let comes = there.register(now, name.parse().unwrap(), from(host), PORT, None, id(7));
        assert_eq!(comes, Err(DeviceRefusal::Suspended), "{name}");
    }
}
