mod lifecycle;
mod operator;
mod random_steps;
mod rates;
mod transfer;

use super::*;
use crate::dataplane::Policy;
use crate::sessions::records::{Credential, CredentialId, Proof};
use push_common::token::Token;
use std::net::Ipv4Addr;
use std::num::{NonZeroU16, NonZeroU32};

const LIMITS: Limits = Limits {
    slots: 8,
    default_lifetime: Duration::from_secs(100),
    max_lifetime: Duration::from_secs(1000),
    sessions_per_terminal: 9,
    triggers_per_second_per_terminal: None,
    rotation_overlap: Duration::from_secs(30),
};

/// Of push clients.
const PORT: u16 = 5683;

fn at(seconds: u64) -> UnixTime {
    UnixTime::from_millis(1_700_000_000_000 + seconds * 1000)
}

fn from(host: u8) -> Path {
    Path {
        realm: None,
        device: Ipv4Addr::new(10, 0, 0, host).into(),
        gateway: "10.0.0.1:5683".parse().unwrap(),
    }
}

/// The same in a realm.
fn from_realm(realm: &str, host: u8) -> Path {
    Path {
        realm: Some(realm.parse().unwrap()),
        ..from(host)
    }
}

fn id(value: u64) -> RegistrationId {
    RegistrationId::from_u64(value)
}

fn token(value: u8) -> Token {
    Token::from_bytes([value; 16])
}

fn generation(value: u32) -> NonZeroU32 {
    NonZeroU32::new(value).unwrap()
}

fn credential(value: u8) -> Credential {
    Credential {
        id: credential_id(value),
        proof: Proof::Certificate([value; 32]),
        created: at(0),
        expires: None,
    }
}

fn credential_id(value: u8) -> CredentialId {
    CredentialId::from_u64(value.into())
}

fn request(app: &str, instance: &str) -> SessionRequest {
    SessionRequest {
        app: app.parse().unwrap(),
        instance: instance.parse().unwrap(),
        port: NonZeroU16::new(7000).unwrap(),
    }
}

fn empty() -> Sessions {
    Sessions::restore(LIMITS, Image::default()).unwrap()
}

/// One application `mail`, one terminal with id 1 at 10.0.0.2, no session.
fn one_terminal() -> Sessions {
    let mut sessions = empty();
    sessions
        .add_app(
            at(0),
            "mail".parse().unwrap(),
            vec![credential(1)],
            Policy::default(),
        )
        .unwrap();
    sessions
        .register(at(0), "phone".parse().unwrap(), from(2), PORT, None, id(1))
        .unwrap();
    sessions
}

fn one_session() -> (Sessions, SessionId) {
    let mut sessions = one_terminal();
    let grant = sessions.request_session(
        at(0),
        id(1),
        &from(2),
        request("mail", "a"),
        &token(1),
        generation(7),
    );
    (sessions, grant.unwrap().id)
}

fn one_authorised() -> (Sessions, SessionId) {
    let (mut sessions, session) = one_session();
    sessions
        .validate(at(1), credential_id(1), session, &token(1).hash())
        .unwrap();
    (sessions, session)
}

fn end_cause(sessions: &Sessions, session: SessionId) -> Option<EndCause> {
    match sessions.session(session)?.state {
        SessionState::Ended { cause, .. } => Some(cause),
        SessionState::Requested(_) | SessionState::Authorised(_) => None,
    }
}

#[test]
fn a_session_is_delivered_for_only_once_it_is_validated() {
    let (mut sessions, session) = one_session();
    assert!(sessions.authorised(session).is_none());
    assert!(sessions.take_changes().kernel.is_empty());
    let wrong = sessions.validate(at(1), credential_id(1), session, &token(2).hash());
    assert_eq!(wrong, Err(ValidationRefusal::TokenMismatch));
    assert!(sessions.authorised(session).is_none());
    let right = sessions
        .validate(at(10), credential_id(1), session, &token(1).hash())
        .unwrap();
    assert_eq!(right.expires_in, Duration::from_secs(90));
    assert!(sessions.authorised(session).is_some());
    assert_eq!(sessions.take_changes().kernel, BTreeSet::from([session]));
    let again = sessions
        .validate(at(20), credential_id(1), session, &token(1).hash())
        .unwrap();
    assert_eq!(again.id, session);
    assert!(sessions.take_changes().leave_store_alone());
}

#[test]
fn another_application_does_not_learn_that_a_session_exists() {
    let (mut sessions, session) = one_session();
    sessions
        .add_app(
            at(0),
            "chat".parse().unwrap(),
            vec![credential(2)],
            Policy::default(),
        )
        .unwrap();
    let answer = sessions.validate(at(1), credential_id(2), session, &token(1).hash());
    assert_eq!(answer, Err(ValidationRefusal::UnknownSession));
    let answer = sessions.validate(at(1), credential_id(3), session, &token(1).hash());
    assert_eq!(answer, Err(ValidationRefusal::InvalidCredential));
}

#[test]
fn the_second_operative_state_gets_no_session() {
    let mut sessions = one_terminal();
    sessions.deregister(at(1), id(1), &from(2)).unwrap();
    let mut ask = |terminal, now| {
        sessions
            .request_session(
                now,
                terminal,
                &from(2),
                request("mail", "a"),
                &token(1),
                generation(7),
            )
            .err()
    };
    assert_eq!(
        ask(id(1), at(2)),
        Some(DeviceRefusal::SecondState(Left::Deregistered))
    );
    assert_eq!(ask(id(9), at(2)), Some(DeviceRefusal::UnknownRegistration));
}

#[test]
fn an_expired_registration_is_refused_before_the_timer_has_noticed() {
    let (mut sessions, session) = one_session();
    let late = sessions.request_session(
        at(100),
        id(1),
        &from(2),
        request("mail", "b"),
        &token(1),
        generation(7),
    );
    assert_eq!(late.err(), Some(DeviceRefusal::SecondState(Left::Expired)));
    let late = sessions.validate(at(100), credential_id(1), session, &token(1).hash());
    assert_eq!(
        late.err(),
        Some(ValidationRefusal::SessionEnded(EndCause::Expired))
    );
    assert_eq!(sessions.next_deadline(), Some(at(100)));
    sessions.expire(at(100), 1);
    assert_eq!(end_cause(&sessions, session), Some(EndCause::Expired));
    sessions.expire(at(100).saturating_add(SECOND_STATE_KEPT), 1);
    assert_eq!(sessions.terminals().len(), 0);
    assert_eq!(sessions.next_deadline(), None);
}

#[test]
fn a_lifetime_is_what_is_asked_for_up_to_the_maximum() {
    let mut sessions = one_terminal();
    let mut refresh = |lifetime: Option<u64>| {
        let lifetime = lifetime.map(Duration::from_secs);
        sessions
            .refresh(at(0), id(1), from(2), PORT, false, lifetime)
            .unwrap()
            .lifetime
            .as_secs()
    };
    assert_eq!(refresh(None), 100);
    assert_eq!(refresh(Some(5)), 5);
    assert_eq!(refresh(None), 5);
    assert_eq!(refresh(Some(u64::MAX)), 1000);
}

#[test]
fn sessions_follow_their_terminal_to_an_address_it_has_proved() {
    let (mut sessions, session) = one_authorised();
    sessions.take_changes();
    assert_eq!(
        sessions.refresh(at(2), id(1), from(3), PORT, false, None),
        Err(DeviceRefusal::AddressUnproven)
    );
    assert!(sessions.take_changes().kernel.is_empty());
    sessions
        .refresh(at(2), id(1), from(3), PORT, true, None)
        .unwrap();
    assert_eq!(sessions.take_changes().kernel, BTreeSet::from([session]));
    let authorised = sessions.authorised(session).unwrap();
    assert_eq!(authorised.terminal.path, from(3));
    let old = sessions.release(at(3), id(1), &from(2), session);
    assert_eq!(old, Err(DeviceRefusal::OtherAddress));
}

#[test]
fn an_endpoint_name_alone_moves_nothing() {
    let mut sessions = one_terminal();
    let endpoint: EndpointName = "phone".parse().unwrap();
    let other = sessions.register(at(1), endpoint.clone(), from(3), PORT, None, id(2));
    assert_eq!(other, Err(DeviceRefusal::EndpointTaken));
    let same = sessions
        .register(at(1), endpoint.clone(), from(2), PORT, None, id(2))
        .unwrap();
    assert_eq!(same.id, id(1));
    let once_expired = sessions
        .register(at(500), endpoint, from(3), PORT, None, id(2))
        .unwrap();
    assert_eq!(once_expired.id, id(2));
    assert_eq!(sessions.terminals().len(), 1);
}

#[test]
fn the_same_address_in_another_realm_is_another_one() {
    let (mut sessions, session) = one_authorised();
    let there = from_realm("meters", 2);
    let endpoint: EndpointName = "phone".parse().unwrap();
    let other = sessions.register(at(2), endpoint, there.clone(), PORT, None, id(2));
    assert_eq!(other, Err(DeviceRefusal::EndpointTaken));
    assert_eq!(
        sessions.refresh(at(2), id(1), there.clone(), PORT, false, None),
        Err(DeviceRefusal::AddressUnproven)
    );
    let asked = request("mail", "b");
    let asked = sessions.request_session(at(2), id(1), &there, asked, &token(1), generation(7));
    assert_eq!(asked.err(), Some(DeviceRefusal::OtherAddress));
    assert_eq!(
        sessions.release(at(2), id(1), &there, session),
        Err(DeviceRefusal::OtherAddress)
    );
    assert_eq!(
        sessions.deregister(at(2), id(1), &there),
        Err(DeviceRefusal::OtherAddress)
    );

    // Another device there is another terminal, and this one can move there, too.
    let meter: EndpointName = "meter".parse().unwrap();
    sessions
        .register(at(2), meter, there.clone(), PORT, None, id(2))
        .unwrap();
    sessions.take_changes();
    sessions
        .refresh(at(2), id(1), there.clone(), PORT, true, None)
        .unwrap();
    assert_eq!(sessions.take_changes().kernel, BTreeSet::from([session]));
    let authorised = sessions.authorised(session).unwrap();
    assert_eq!(authorised.terminal.path, there);
    sessions.deregister(at(3), id(1), &there).unwrap();
}

#[test]
fn each_end_of_a_session_has_its_cause() {
    let (mut sessions, session) = one_authorised();
    sessions.take_changes();
    sessions.revoke(at(2), session).unwrap();
    assert_eq!(
        sessions.revoke(at(2), session),
        Err(OperatorRefusal::SessionEnded(EndCause::Revoked))
    );
    assert_eq!(sessions.take_changes().kernel, BTreeSet::from([session]));
    let dead = sessions.validate(at(2), credential_id(1), session, &token(1).hash());
    assert_eq!(
        dead,
        Err(ValidationRefusal::SessionEnded(EndCause::Revoked))
    );

    let (mut sessions, session) = one_authorised();
    sessions.release(at(2), id(1), &from(2), session).unwrap();
    assert_eq!(end_cause(&sessions, session), Some(EndCause::Released));

    let (mut sessions, session) = one_authorised();
    sessions.deregister(at(2), id(1), &from(2)).unwrap();
    assert_eq!(end_cause(&sessions, session), Some(EndCause::Deregistered));

    let (mut sessions, session) = one_authorised();
    assert_eq!(sessions.remove_app(at(2), &"mail".parse().unwrap()), Ok(1));
    assert_eq!(end_cause(&sessions, session), Some(EndCause::AppRemoved));

    let (mut sessions, session) = one_authorised();
    let next = sessions.request_session(
        at(2),
        id(1),
        &from(2),
        request("mail", "a"),
        &token(2),
        generation(8),
    );
    assert_eq!(end_cause(&sessions, session), Some(EndCause::Replaced));
    assert_ne!(next.unwrap().id, session);
    assert_eq!(
        sessions.counts(),
        Counts {
            requested: 1,
            authorised: 0
        }
    );
}

#[test]
fn a_slot_is_reused_as_late_as_possible_and_never_in_the_same_generation() {
    let mut sessions = one_terminal();
    let ask = |sessions: &mut Sessions, instance: &str| {
        let request = request("mail", instance);
        sessions
            .request_session(
                at(0),
                id(1),
                &from(2),
                request,
                &token(1),
                generation(u32::MAX),
            )
            .map(|g| g.id)
    };
    let first = ask(&mut sessions, "first").unwrap();
    sessions.revoke(at(0), first).unwrap();
    let others: Vec<_> = (1..LIMITS.slots)
        .map(|n| ask(&mut sessions, &n.to_string()).unwrap())
        .collect();
    assert_eq!(
        others.iter().map(|id| id.slot()).collect::<Vec<_>>(),
        [1, 2, 3, 4, 5, 6, 7]
    );
    sessions.revoke(at(1), others[4]).unwrap();
    let reused = ask(&mut sessions, "first").unwrap();
    assert_eq!((reused.slot(), reused.generation()), (0, 1));
    assert_eq!(ask(&mut sessions, "next").unwrap().slot(), 5);
    assert_eq!(
        ask(&mut sessions, "one too many").err(),
        Some(DeviceRefusal::SlotsFull)
    );
    let replacing = ask(&mut sessions, "first").unwrap();
    assert_eq!(replacing.slot(), 0);
}

#[test]
fn a_restart_does_not_forget_which_slot_has_been_free_for_longest() {
    let mut sessions = one_terminal();
    let ask = |sessions: &mut Sessions, instance: u32| {
        let request = request("mail", &instance.to_string());
        sessions
            .request_session(at(0), id(1), &from(2), request, &token(1), generation(9))
            .unwrap()
            .id
    };
    let all: Vec<_> = (0..LIMITS.slots).map(|n| ask(&mut sessions, n)).collect();
    for (seconds, slot) in [(1, 6), (2, 3), (3, 5)] {
        sessions.revoke(at(seconds), all[slot]).unwrap();
    }
    let mut sessions = Sessions::restore(LIMITS, image(&sessions)).unwrap();
    assert_eq!(
        [10, 11, 12].map(|n| ask(&mut sessions, n).slot()),
        [6, 3, 5]
    );
}

#[test]
fn there_are_no_more_terminals_than_slots() {
    let mut sessions = empty();
    for n in 0..u64::from(LIMITS.slots) {
        sessions
            .register(
                at(0),
                format!("d{n}").parse().unwrap(),
                from(u8::try_from(n).unwrap()),
                PORT,
                None,
                id(1),
            )
            .unwrap();
    }
    let more = sessions.register(at(0), "more".parse().unwrap(), from(2), PORT, None, id(1));
    assert_eq!(more, Err(DeviceRefusal::TerminalsFull));
}

#[test]
fn a_smaller_table_is_refused_while_its_sessions_live() {
    let (sessions, session) = one_authorised();
    let mut image = image(&sessions);
    image.sessions[0].id = SessionId::new(5, session.generation());
    let limits = Limits { slots: 5, ..LIMITS };
    let refused = Sessions::restore(limits, image.clone()).err();
    assert_eq!(
        refused,
        Some(RestoreError::TooFewSlots {
            needed: 6,
            slots: 5
        })
    );
    image.sessions[0].state = SessionState::Ended {
        at: at(3),
        cause: EndCause::Revoked,
    };
    let mut sessions = Sessions::restore(limits, image).unwrap();
    assert_eq!(sessions.take_changes().slots, BTreeSet::from([5]));
    assert!(sessions.session_in_slot(5).is_none());
}

#[test]
fn records_that_do_not_fit_together_are_a_contradiction() {
    let (sessions, _) = one_authorised();
    let whole = image(&sessions);
    let without_terminal = Image {
        terminals: Vec::new(),
        ..whole.clone()
    };
    let without_app = Image {
        apps: Vec::new(),
        ..whole.clone()
    };
    let mut with_a_terminal_twice = whole.clone();
    let twin = Terminal {
        endpoint: "another".parse().unwrap(),
        ..whole.terminals[0].clone()
    };
    with_a_terminal_twice.terminals.push(twin);
    let mut with_an_endpoint_twice = whole.clone();
    let twin = Terminal {
        id: RegistrationId::from_u64(whole.terminals[0].id.to_u64() + 1),
        ..whole.terminals[0].clone()
    };
    with_an_endpoint_twice.terminals.push(twin);
    let mut with_an_app_twice = whole.clone();
    let twin = App {
        policy_slot: NonZeroU16::new(77).unwrap(),
        ..whole.apps[0].clone()
    };
    with_an_app_twice.apps.push(twin);
    let mut with_two_policies_in_a_slot = whole;
    let twin = App {
        name: "chat".parse().unwrap(),
        ..with_two_policies_in_a_slot.apps[0].clone()
    };
    with_two_policies_in_a_slot.apps.push(twin);
    for (image, why) in [
        (without_terminal, "has no terminal"),
        (without_app, "has no application"),
        (with_a_terminal_twice, "two terminals are"),
        (with_an_endpoint_twice, "have the same endpoint name"),
        (with_an_app_twice, "two applications are"),
        (with_two_policies_in_a_slot, "have the same policy slot"),
    ] {
        let Err(RestoreError::Contradiction(what)) = Sessions::restore(LIMITS, image) else {
            panic!("{why}: taken up");
        };
        assert!(what.contains(why), "{what}");
    }
}

fn image(sessions: &Sessions) -> Image {
    Image {
        terminals: sessions.terminals().cloned().collect(),
        sessions: sessions.sessions().cloned().collect(),
        apps: sessions.apps().map(|(app, _)| app.clone()).collect(),
    }
}
