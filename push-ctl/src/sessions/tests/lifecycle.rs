//! Suspension, addresses, rotation, failure of applications, quotas.

use super::*;
use crate::sessions::records::{AppFailure, Availability, Monitor, Quotas};

pub(super) fn mail() -> AppName {
    "mail".parse().unwrap()
}

pub(super) fn ask(
    sessions: &mut Sessions,
    now: UnixTime,
    instance: &str,
) -> Result<SessionId, DeviceRefusal> {
    let wanted = request("mail", instance);
    sessions
        .request_session(now, id(1), &from(2), wanted, &token(1), generation(7))
        .map(|grant| grant.id)
}

pub(super) fn validate(
    sessions: &mut Sessions,
    now: UnixTime,
    session: SessionId,
    n: u8,
) -> Result<u8, ValidationRefusal> {
    sessions
        .validate(now, credential_id(1), session, &token(n).hash())
        .map(|authorisation| authorisation.token_generation)
}

fn kinds(changes: &Changes) -> Vec<NoticeKind> {
    changes.notices.iter().map(|notice| notice.kind).collect()
}

/// The generations of the tokens that the data plane is to take: the current one, and one before.
fn valid(sessions: &Sessions, session: SessionId) -> (u8, Option<u8>) {
    let tokens = sessions.authorised(session).unwrap().tokens;
    let previous = tokens.previous.as_ref();
    (
        tokens.current.generation,
        previous.map(|previous| previous.token.generation),
    )
}

#[test]
fn a_suspended_terminal_has_no_session_until_it_is_resumed() {
    let (mut sessions, session) = one_authorised();
    sessions.take_changes();
    assert_eq!(sessions.suspend(at(10), id(1)), Ok(1));
    assert_eq!(
        end_cause(&sessions, session),
        Some(EndCause::TerminalSuspended)
    );
    let changes = sessions.take_changes();
    assert_eq!(changes.kernel, BTreeSet::from([session]));
    let teardown = NoticeKind::Teardown {
        session,
        cause: EndCause::TerminalSuspended,
    };
    assert_eq!(kinds(&changes), [teardown]);
    assert_eq!(changes.notices[0].to, "10.0.0.2:7000".parse().unwrap());
    assert!(matches!(
        changes.news[..],
        [News::SessionEnded { .. }, News::TerminalSuspended { .. }]
    ));

    // Whatever the device does.
    assert_eq!(
        ask(&mut sessions, at(11), "a"),
        Err(DeviceRefusal::Suspended)
    );
    let again = sessions.register(at(11), "phone".parse().unwrap(), from(2), PORT, None, id(2));
    assert_eq!(again, Err(DeviceRefusal::Suspended));
    let refreshed = sessions.refresh(at(11), id(1), from(2), PORT, true, None);
    assert_eq!(refreshed, Err(DeviceRefusal::Suspended));
    assert_eq!(
        sessions.deregister(at(11), id(1), &from(2)),
        Err(DeviceRefusal::Suspended)
    );
    assert_eq!(
        sessions.suspend(at(11), id(1)),
        Err(OperatorRefusal::NotProvisioned("suspended"))
    );

    // A suspension isn't forgotten, nor lost by a restart.
    let mut sessions = Sessions::restore(LIMITS, image(&sessions)).unwrap();
    assert_eq!(sessions.resume(at(50), id(1)), Ok(true));
    let changes = sessions.take_changes();
    let configured = NoticeKind::Configuration {
        registration: id(1),
        lifetime: Duration::from_secs(50),
    };
    assert_eq!(kinds(&changes), [configured]);
    assert_eq!(changes.notices[0].to.port(), PORT);
    ask(&mut sessions, at(51), "a").unwrap();
    assert_eq!(
        sessions.resume(at(52), id(1)),
        Err(OperatorRefusal::NotSuspended)
    );
}

#[test]
fn a_suspension_outlives_the_registration() {
    let mut sessions = one_terminal();
    sessions.suspend(at(10), id(1)).unwrap();
    sessions.expire(at(1_000_000), usize::MAX);
    assert_eq!(
        ask(&mut sessions, at(1_000_000), "a"),
        Err(DeviceRefusal::Suspended)
    );
    sessions.take_changes();
    assert_eq!(sessions.resume(at(1_000_000), id(1)), Ok(false));
    let refresh = NoticeKind::Refresh {
        registration: id(1),
    };
    assert_eq!(kinds(&sessions.take_changes()), [refresh]);
    assert!(sessions.terminal(id(1)).is_none());
    sessions
        .register(
            at(1_000_001),
            "phone".parse().unwrap(),
            from(2),
            PORT,
            None,
            id(3),
        )
        .unwrap();
}

#[test]
fn a_removed_terminal_may_register_anew() {
    let (mut sessions, session) = one_authorised();
    assert_eq!(sessions.remove_terminal(at(2), id(1)), Ok(1));
    assert_eq!(
        end_cause(&sessions, session),
        Some(EndCause::TerminalRemoved)
    );
    assert_eq!(
        sessions.remove_terminal(at(2), id(1)),
        Err(OperatorRefusal::UnknownTerminal)
    );
    sessions
        .register(at(3), "phone".parse().unwrap(), from(2), PORT, None, id(4))
        .unwrap();
}

#[test]
fn an_address_is_that_of_the_terminal_that_claimed_it_last() {
    let (mut sessions, session) = one_authorised();
    // The same address elsewhere is another one.
    let elsewhere = from_realm("meters", 2);
    sessions
        .register(
            at(2),
            "meter".parse().unwrap(),
            elsewhere,
            PORT,
            None,
            id(2),
        )
        .unwrap();
    assert_eq!(end_cause(&sessions, session), None);
    sessions
        .register(at(2), "tablet".parse().unwrap(), from(3), PORT, None, id(3))
        .unwrap();
    sessions.take_changes();

    // By moving there.
    sessions
        .refresh(at(3), id(3), from(2), PORT, true, None)
        .unwrap();
    assert_eq!(end_cause(&sessions, session), Some(EndCause::AddressTaken));
    let changes = sessions.take_changes();
    assert_eq!(kinds(&changes), []);
    assert_eq!(changes.kernel, BTreeSet::from([session]));
    assert_eq!(
        ask(&mut sessions, at(3), "a"),
        Err(DeviceRefusal::SecondState(Left::AddressTaken))
    );
    // By registering there, which the one who was there may do as well.
    sessions
        .register(at(4), "phone".parse().unwrap(), from(2), PORT, None, id(4))
        .unwrap();
    assert!(matches!(
        sessions.terminal(id(3)).unwrap().state,
        OperativeState::Second {
            cause: Left::AddressTaken,
            ..
        }
    ));
    // Who has left claims nothing.
    sessions
        .register(at(5), "watch".parse().unwrap(), from(3), PORT, None, id(5))
        .unwrap();
    assert!(matches!(
        sessions.terminal(id(4)).unwrap().state,
        OperativeState::First { .. }
    ));
}

#[test]
fn a_token_rotates_with_an_overlap() {
    let (mut sessions, session) = one_authorised();
    sessions.take_changes();
    let grant = sessions.new_token(at(10), id(1), &from(2), session, &token(2));
    assert_eq!(grant.unwrap().token_generation, 1);
    // Nothing is different for the data plane until a server has it.
    assert!(sessions.take_changes().kernel.is_empty());
    assert_eq!(valid(&sessions, session), (0, None));
    assert_eq!(validate(&mut sessions, at(11), session, 1), Ok(0));

    assert_eq!(validate(&mut sessions, at(12), session, 2), Ok(1));
    assert_eq!(sessions.take_changes().kernel, BTreeSet::from([session]));
    assert_eq!(valid(&sessions, session), (1, Some(0)));
    assert_eq!(validate(&mut sessions, at(13), session, 1), Ok(0));
    // A restart in between makes no difference.
    let mut sessions = Sessions::restore(LIMITS, image(&sessions)).unwrap();
    sessions.expire(at(41), usize::MAX);
    assert_eq!(valid(&sessions, session), (1, Some(0)));
    sessions.expire(at(42), usize::MAX);
    assert_eq!(valid(&sessions, session), (1, None));
    assert_eq!(sessions.take_changes().kernel, BTreeSet::from([session]));
    assert_eq!(
        validate(&mut sessions, at(42), session, 1),
        Err(ValidationRefusal::TokenMismatch)
    );
}

#[test]
fn a_rotation_that_the_operator_forces_is_done_in_time_or_ends_the_session() {
    let (mut sessions, session) = one_authorised();
    sessions.take_changes();
    let within = Some(Duration::from_secs(20));
    sessions.rotate(at(10), session, within).unwrap();
    assert_eq!(
        kinds(&sessions.take_changes()),
        [NoticeKind::Rotate { session, within }]
    );
    sessions
        .new_token(at(15), id(1), &from(2), session, &token(2))
        .unwrap();
    validate(&mut sessions, at(29), session, 2).unwrap();
    sessions.expire(at(30), usize::MAX);
    assert_eq!(end_cause(&sessions, session), None);

    // A token that is only fetched is not enough.
    sessions.rotate(at(40), session, within).unwrap();
    sessions
        .new_token(at(45), id(1), &from(2), session, &token(3))
        .unwrap();
    sessions.expire(at(60), usize::MAX);
    assert_eq!(end_cause(&sessions, session), Some(EndCause::NotRotated));
    assert_eq!(
        sessions.rotate(at(61), session, None),
        Err(OperatorRefusal::SessionEnded(EndCause::NotRotated))
    );
}

#[test]
fn a_token_that_got_lost_before_it_was_validated_is_replaced() {
    let (mut sessions, session) = one_session();
    assert_eq!(
        sessions.rotate(at(1), session, None),
        Err(OperatorRefusal::NotAuthorised)
    );
    let grant = sessions.new_token(at(1), id(1), &from(2), session, &token(2));
    assert_eq!(grant.unwrap().token_generation, 1);
    assert_eq!(
        validate(&mut sessions, at(2), session, 1),
        Err(ValidationRefusal::TokenMismatch)
    );
    assert_eq!(validate(&mut sessions, at(2), session, 2), Ok(1));
    let other = sessions.new_token(at(3), id(1), &from(3), session, &token(3));
    assert_eq!(other, Err(DeviceRefusal::OtherAddress));
}

#[test]
fn an_application_whose_server_fails_loses_its_sessions_and_gets_none() {
    let (mut sessions, session) = one_authorised();
    sessions.take_changes();
    for cause in [AppFailure::Unreachable, AppFailure::Announced] {
        let live = sessions.app_with_sessions(&mail()).unwrap().1;
        assert_eq!(sessions.app_failed(at(10), &mail(), cause), Ok(live));
    }
    assert_eq!(
        end_cause(&sessions, session),
        Some(EndCause::AppServerFailed)
    );
    let changes = sessions.take_changes();
    let teardown = NoticeKind::Teardown {
        session,
        cause: EndCause::AppServerFailed,
    };
    assert_eq!(kinds(&changes), [teardown]);
    // It failed once, and for the reason that was found first.
    let failures = changes
        .news
        .iter()
        .filter(|news| matches!(news, News::AppFailed { .. }));
    assert_eq!(failures.count(), 1);
    assert!(matches!(
        sessions.app(&mail()).unwrap().availability,
        Availability::Failed {
            cause: AppFailure::Unreachable,
            ..
        }
    ));
    assert_eq!(
        validate(&mut sessions, at(11), session, 1),
        Err(ValidationRefusal::SessionEnded(EndCause::AppServerFailed))
    );
    assert_eq!(
        ask(&mut sessions, at(11), "a"),
        Err(DeviceRefusal::AppUnavailable)
    );
    sessions.app_recovered(&mail()).unwrap();
    ask(&mut sessions, at(12), "a").unwrap();
    // Who was only inactive may go on at once.
    assert_eq!(
        sessions.app_failed(at(13), &mail(), AppFailure::Inactive),
        Ok(1)
    );
    ask(&mut sessions, at(13), "a").unwrap();
}

#[test]
fn what_a_monitor_found_is_forgotten_with_it() {
    let mut sessions = one_terminal();
    let monitor = Monitor {
        url: Some("https://mail.example/status".to_owned()),
        interval: Duration::from_secs(30),
        unreachable_after: Duration::from_secs(90),
        inactive_after: None,
    };
    sessions.set_monitor(&mail(), Some(monitor)).unwrap();
    sessions
        .app_failed(at(1), &mail(), AppFailure::Unreachable)
        .unwrap();
    sessions.set_monitor(&mail(), None).unwrap();
    ask(&mut sessions, at(2), "a").unwrap();
    sessions
        .app_failed(at(3), &mail(), AppFailure::Announced)
        .unwrap();
    sessions.set_monitor(&mail(), None).unwrap();
    assert_eq!(
        ask(&mut sessions, at(4), "a"),
        Err(DeviceRefusal::AppUnavailable)
    );
}

#[test]
fn a_server_ends_a_session_of_its_own_application_only() {
    let (mut sessions, session) = one_authorised();
    sessions
        .add_app(
            at(0),
            "chat".parse().unwrap(),
            vec![credential(2)],
            Policy::default(),
        )
        .unwrap();
    assert_eq!(
        sessions.end_by_app(at(1), credential_id(2), session),
        Err(ValidationRefusal::UnknownSession)
    );
    assert_eq!(
        sessions.end_by_app(at(1), credential_id(3), session),
        Err(ValidationRefusal::InvalidCredential)
    );
    assert_eq!(
        sessions.end_by_app(at(1), credential_id(1), session),
        Ok(())
    );
    assert_eq!(end_cause(&sessions, session), Some(EndCause::AppEnded));
}

#[test]
fn credentials_are_valid_side_by_side_until_they_expire() {
    let (mut sessions, session) = one_session();
    sessions
        .add_credential(at(0), &mail(), credential(2))
        .unwrap();
    assert_eq!(
        sessions.add_credential(at(0), &mail(), credential(2)),
        Err(OperatorRefusal::CredentialExists)
    );
    sessions
        .expire_credential(&mail(), credential_id(1), at(100))
        .unwrap();
    // It isn't prolonged by that.
    sessions
        .expire_credential(&mail(), credential_id(1), at(200))
        .unwrap();
    validate(&mut sessions, at(50), session, 1).unwrap();
    let late = sessions.validate(at(100), credential_id(1), session, &token(1).hash());
    assert_eq!(late, Err(ValidationRefusal::InvalidCredential));
    assert!(sessions.credential(at(100), credential_id(2)).is_some());
    sessions
        .add_credential(at(100), &mail(), credential(3))
        .unwrap();
    let left = sessions.app(&mail()).unwrap().credentials.iter();
    let left: Vec<_> = left.map(|credential| credential.id).collect();
    assert_eq!(left, [credential_id(2), credential_id(3)]);
    sessions
        .remove_credential(&mail(), credential_id(2))
        .unwrap();
    assert!(sessions.credential(at(100), credential_id(2)).is_none());
    assert_eq!(
        sessions.remove_credential(&mail(), credential_id(2)),
        Err(OperatorRefusal::UnknownCredential)
    );
}

#[test]
fn nobody_has_more_than_their_quota() {
    let limits = Limits {
        sessions_per_terminal: 3,
        ..LIMITS
    };
    let mut sessions = Sessions::restore(limits, image(&one_terminal())).unwrap();
    let full = |what| {
        Err(DeviceRefusal::QuotaExceeded {
            what,
            retry_after: Duration::from_secs(60),
        })
    };
    for instance in ["a", "b", "c"] {
        ask(&mut sessions, at(1), instance).unwrap();
    }
    assert_eq!(ask(&mut sessions, at(1), "d"), full("sessions_of_terminal"));
    // One in the place of another isn't one more.
    ask(&mut sessions, at(1), "a").unwrap();
    let quotas = Quotas {
        sessions_per_terminal: Some(2),
        ..Quotas::default()
    };
    sessions.set_quotas(&mail(), quotas).unwrap();
    let last = sessions.session_in_slot(0).map(|session| session.id);
    let live = sessions
        .sessions_of_app(&mail())
        .find(|&id| Some(id) != last)
        .unwrap();
    sessions.revoke(at(1), live).unwrap();
    assert_eq!(
        ask(&mut sessions, at(1), "e"),
        full("sessions_of_app_on_terminal")
    );
    let quotas = Quotas {
        sessions: Some(2),
        ..Quotas::default()
    };
    sessions.set_quotas(&mail(), quotas).unwrap();
    assert_eq!(ask(&mut sessions, at(1), "e"), full("sessions_of_app"));
    assert!(
        sessions
            .take_changes()
            .news
            .iter()
            .any(|news| matches!(news, News::QuotaExceeded { .. }))
    );
}

#[test]
fn validations_are_limited_and_guesses_slowed() {
    let (mut sessions, session) = one_session();
    for _ in 0..3 {
        assert_eq!(
            validate(&mut sessions, at(1), session, 9),
            Err(ValidationRefusal::TokenMismatch)
        );
    }
    assert_eq!(
        validate(&mut sessions, at(1), session, 9),
        Err(ValidationRefusal::TokenMismatch)
    );
    let retry_after = Duration::from_secs(1);
    // Not even the right one is looked at, so that waiting can't be told from being wrong.
    assert_eq!(
        validate(&mut sessions, at(1), session, 1),
        Err(ValidationRefusal::TooManyGuesses { retry_after })
    );
    assert_eq!(validate(&mut sessions, at(2), session, 1), Ok(0));

    let quotas = Quotas {
        validations_per_minute: Some(2),
        ..Quotas::default()
    };
    sessions.set_quotas(&mail(), quotas).unwrap();
    for _ in 0..2 {
        validate(&mut sessions, at(3), session, 1).unwrap();
    }
    let retry_after = Duration::from_secs(30);
    assert_eq!(
        validate(&mut sessions, at(3), session, 1),
        Err(ValidationRefusal::QuotaExceeded { retry_after })
    );
    validate(&mut sessions, at(33), session, 1).unwrap();
}

#[test]
fn a_million_registrations_expire_a_few_at_a_time() {
    const TERMINALS: u32 = 1_000_000;
    const AT_ONCE: usize = 1024;
    let limits = Limits {
        slots: TERMINALS,
        ..LIMITS
    };
    let mut sessions = Sessions::restore(limits, Image::default()).unwrap();
    for n in 0..TERMINALS {
        let path = Path {
            realm: None,
            device: Ipv4Addr::from(0x0A00_0000 + n).into(),
            gateway: "10.255.0.1:5683".parse().unwrap(),
        };
        let endpoint = format!("d{n}").parse().unwrap();
        sessions
            .register(at(0), endpoint, path, PORT, None, id(n.into()))
            .unwrap();
    }
    sessions.take_changes();
    let mut turns = 0;
    while sessions
        .next_deadline()
        .is_some_and(|deadline| deadline <= at(100))
    {
        sessions.expire(at(100), AT_ONCE);
        // What one turn does doesn't depend on how many there are.
        assert!(sessions.take_changes().terminals.len() <= AT_ONCE);
        turns += 1;
    }
    assert_eq!(turns, (TERMINALS as usize).div_ceil(AT_ONCE));
}
