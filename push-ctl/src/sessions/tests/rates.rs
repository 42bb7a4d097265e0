//! Triggers per second that sessions may be granted together.

use super::lifecycle::{ask, mail, validate};
use super::*;
use crate::dataplane::Rate;
use crate::sessions::records::Quotas;

/// A policy that lets each session have so many triggers per second.
fn rated(per_second: u32) -> Policy {
    let rate = Rate {
        interval: Duration::from_secs(1) / per_second,
        burst: 1,
    };
    Policy {
        rate: Some(rate),
        ..Policy::default()
    }
}

fn authorise(
    sessions: &mut Sessions,
    instance: &str,
) -> (SessionId, Result<u8, ValidationRefusal>) {
    let id = ask(sessions, at(1), instance).unwrap();
    (id, validate(sessions, at(1), id, 1))
}

fn no_room(of: RateShare) -> Result<u8, ValidationRefusal> {
    let retry_after = Duration::from_secs(60);
    Err(ValidationRefusal::RateExceeded { of, retry_after })
}

#[test]
fn sessions_together_are_granted_no_more_triggers_than_their_application_may_have() {
    let mut sessions = one_terminal();
    let quotas = Quotas {
        triggers_per_second: Some(20),
        ..Quotas::default()
    };
    sessions.set_quotas(&mail(), quotas).unwrap();
    // One that is only requested has been granted nothing.
    let (a, refused) = authorise(&mut sessions, "a");
    let retry_after = Duration::from_secs(60);
    let of = RateShare::App;
    assert_eq!(
        refused,
        Err(ValidationRefusal::RateNotLimited { of, retry_after })
    );
    sessions.set_policy(&mail(), rated(10)).unwrap();
    assert_eq!(
        validate(&mut sessions, at(1), a, 9),
        Err(ValidationRefusal::TokenMismatch)
    );
    assert_eq!(validate(&mut sessions, at(1), a, 1), Ok(0));
    let (b, granted) = authorise(&mut sessions, "b");
    assert_eq!(granted, Ok(0));
    let (c, refused) = authorise(&mut sessions, "c");
    assert_eq!(refused, no_room(of));
    let news = sessions.take_changes().news;
    let said = |why| {
        news.iter()
            .any(|news| matches!(news, News::ValidationRefused { why: found, .. } if *found == why))
    };
    assert!(
        said("triggers_per_second_of_app") && said("rate_not_limited"),
        "{news:?}"
    );
    assert_eq!(
        sessions.granted_rate(&mail()),
        Some(TriggerRate::per_second(20))
    );

    // Again, and by another token, is no further session.
    assert_eq!(validate(&mut sessions, at(1), a, 1), Ok(0));
    let grant = sessions
        .new_token(at(1), id(1), &from(2), a, &token(2))
        .unwrap();
    assert_eq!(
        validate(&mut sessions, at(1), a, 2),
        Ok(grant.token_generation)
    );

    // What was granted stays, also over a restart, and counts.
    sessions = Sessions::restore(LIMITS, image(&sessions)).unwrap();
    let quotas = Quotas {
        triggers_per_second: Some(10),
        ..quotas
    };
    sessions.set_quotas(&mail(), quotas).unwrap();
    assert!(sessions.authorised(a).is_some() && sessions.authorised(b).is_some());
    sessions.revoke(at(1), a).unwrap();
    assert_eq!(validate(&mut sessions, at(1), c, 1), no_room(of));
    sessions.revoke(at(1), b).unwrap();
    assert_eq!(validate(&mut sessions, at(1), c, 1), Ok(0));

    // So it is with a policy: the session has its new rate at once, and there is no other until that fits.
    sessions.set_policy(&mail(), rated(11)).unwrap();
    assert!(sessions.authorised(c).is_some());
    assert_eq!(
        sessions.granted_rate(&mail()),
        Some(TriggerRate::per_second(11))
    );
    let (d, refused) = authorise(&mut sessions, "d");
    assert_eq!(refused, no_room(of));
    sessions.set_policy(&mail(), rated(5)).unwrap();
    assert_eq!(validate(&mut sessions, at(1), d, 1), Ok(0));
    sessions.set_policy(&mail(), Policy::default()).unwrap();
    assert_eq!(sessions.granted_rate(&mail()), None);
}

#[test]
fn sessions_together_are_granted_no_more_triggers_than_a_terminal_may_have() {
    let limits = Limits {
        triggers_per_second_per_terminal: Some(15),
        ..LIMITS
    };
    let mut sessions = Sessions::restore(limits, image(&one_terminal())).unwrap();
    let (of, retry_after) = (RateShare::Terminal, Duration::from_secs(60));
    let (a, refused) = authorise(&mut sessions, "a");
    assert_eq!(
        refused,
        Err(ValidationRefusal::RateNotLimited { of, retry_after })
    );
    sessions.set_policy(&mail(), rated(10)).unwrap();
    assert_eq!(validate(&mut sessions, at(1), a, 1), Ok(0));
    let (_, refused) = authorise(&mut sessions, "b");
    assert_eq!(refused, no_room(of));

    // Sessions of other applications count, those on other terminals don't.
    let chat: AppName = "chat".parse().unwrap();
    let credentials = vec![credential(2)];
    sessions
        .add_app(at(1), chat.clone(), credentials, rated(5))
        .unwrap();
    let ask_for_chat = |sessions: &mut Sessions, terminal, host, instance| {
        let request = request("chat", instance);
        let generation = NonZeroU32::MIN;
        sessions
            .request_session(at(1), terminal, &from(host), request, &token(1), generation)
            .unwrap()
            .id
    };
    let of_chat = |sessions: &mut Sessions, session| {
        let answer = sessions.validate(at(1), credential_id(2), session, &token(1).hash());
        answer.map(|granted| granted.token_generation)
    };
    let c = ask_for_chat(&mut sessions, id(1), 2, "c");
    assert_eq!(of_chat(&mut sessions, c), Ok(0));
    let d = ask_for_chat(&mut sessions, id(1), 2, "d");
    assert_eq!(of_chat(&mut sessions, d), no_room(of));
    let other = id(3);
    sessions
        .register(at(1), "other".parse().unwrap(), from(3), PORT, None, other)
        .unwrap();
    let e = ask_for_chat(&mut sessions, other, 3, "e");
    assert_eq!(of_chat(&mut sessions, e), Ok(0));
    // From now on, as after the configuration was read anew.
    sessions.set_limits(Limits {
        triggers_per_second_per_terminal: Some(20),
        ..limits
    });
    assert_eq!(of_chat(&mut sessions, d), Ok(0));
}
