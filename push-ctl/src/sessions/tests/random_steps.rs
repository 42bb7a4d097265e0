//! Random steps, whoever follows the changes, and a model of what is to come of it.

mod naive;

use super::*;
use crate::dataplane::{Rate, Tunnel};
use crate::sessions::records::{AppFailure, Quotas, Tokens};
use naive::Naive;
use proptest::prelude::*;
use std::collections::HashSet;

/// What a store and a data plane know that learn of nothing but changes.
#[derive(Default)]
struct Followers {
    terminals: BTreeMap<RegistrationId, Terminal>,
    slots: BTreeMap<u32, Session>,
    apps: BTreeMap<AppName, App>,
    policies: BTreeMap<NonZeroU16, Policy>,
    kernel: BTreeMap<SessionId, (Path, NonZeroU16, Option<Tunnel>)>,
}

impl Followers {
    fn follow(&mut self, sessions: &mut Sessions) {
        let changes = sessions.take_changes();
        for id in changes.terminals {
            set(&mut self.terminals, id, sessions.terminal(id).cloned());
        }
        for slot in changes.slots {
            set(
                &mut self.slots,
                slot,
                sessions.session_in_slot(slot).cloned(),
            );
        }
        for name in changes.apps {
            set(&mut self.apps, name.clone(), sessions.app(&name).cloned());
        }
        for slot in changes.policies {
            let app = sessions.app_of_policy_slot(slot);
            set(&mut self.policies, slot, app.map(|app| app.policy.clone()));
        }
        for id in changes.kernel {
            set(&mut self.kernel, id, sessions.authorised(id).map(delivered));
        }
    }

    fn image(&self) -> Image {
        Image {
            terminals: self.terminals.values().cloned().collect(),
            sessions: self.slots.values().cloned().collect(),
            apps: self.apps.values().cloned().collect(),
        }
    }
}

fn delivered(authorised: Authorised<'_>) -> (Path, NonZeroU16, Option<Tunnel>) {
    (
        authorised.terminal.path.clone(),
        authorised.app.policy_slot,
        authorised.session.tunnel,
    )
}

/// Each of a few hosts is in one of two realms, or in none.
fn anywhere(host: u8) -> Path {
    match host % 3 {
        0 => from(host / 3),
        1 => from_realm("meters", host / 3),
        _ => from_realm("cars", host / 3),
    }
}

/// One with so many triggers per second; 0 if they aren't limited.
fn policy(per_second: u8) -> Policy {
    let second = Duration::from_secs(1);
    Policy {
        rate: second
            .checked_div(per_second.into())
            .map(|interval| Rate { interval, burst: 1 }),
        ..Policy::default()
    }
}

fn limited(per_second: u8) -> Option<u32> {
    (per_second > 0).then_some(per_second.into())
}

fn set<K: Ord, V>(map: &mut BTreeMap<K, V>, key: K, value: Option<V>) {
    match value {
        Some(value) => map.insert(key, value),
        None => map.remove(&key),
    };
}

#[derive(Clone, Debug)]
enum Step {
    Register {
        endpoint: u8,
        host: u8,
        lifetime_s: u64,
        fresh: u64,
    },
    Refresh {
        terminal: usize,
        host: u8,
        proven: bool,
    },
    Deregister {
        terminal: usize,
        host: u8,
    },
    Request {
        terminal: usize,
        host: u8,
        app: u8,
        instance: u8,
        token: u8,
        generation: NonZeroU32,
    },
    Release {
        terminal: usize,
        host: u8,
        slot: u32,
    },
    Validate {
        app: u8,
        slot: u32,
        token: u8,
    },
    Revoke {
        slot: u32,
    },
    NewToken {
        terminal: usize,
        host: u8,
        slot: u32,
        token: u8,
    },
    Rotate {
        slot: u32,
        within_s: Option<u64>,
    },
    EndByApp {
        app: u8,
        slot: u32,
    },
    Suspend {
        terminal: usize,
    },
    SuspendUnknown {
        endpoint: u8,
        fresh: u64,
    },
    Resume {
        terminal: usize,
    },
    RemoveTerminal {
        terminal: usize,
    },
    AppFailed {
        app: u8,
        cause: AppFailure,
    },
    AppRecovered {
        app: u8,
    },
    SetQuotas {
        app: u8,
        sessions: Option<u32>,
        triggers_per_second: Option<u32>,
    },
    SetTunnel {
        slot: u32,
        teid: u8,
    },
    AddApp {
        app: u8,
        policy: u8,
    },
    SetPolicy {
        app: u8,
        policy: u8,
    },
    RemoveApp {
        app: u8,
    },
    Wait {
        seconds: u64,
    },
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    let failure = prop_oneof![
        Just(AppFailure::Unreachable),
        Just(AppFailure::Inactive),
        Just(AppFailure::Announced),
    ];
    let generation = (1_u32..4).prop_map(|n| NonZeroU32::new(n).unwrap());
    prop_oneof![
        4 => (0..6_u8, 0..6_u8, 1..2000_u64, 0..4_u64)
            .prop_map(|(endpoint, host, lifetime_s, fresh)| Step::Register { endpoint, host, lifetime_s, fresh }),
        3 => (0..6_usize, 0..6_u8, any::<bool>()).prop_map(|(terminal, host, proven)| Step::Refresh { terminal, host, proven }),
        1 => (0..6_usize, 0..6_u8).prop_map(|(terminal, host)| Step::Deregister { terminal, host }),
        8 => (0..6_usize, 0..6_u8, 0..3_u8, 0..3_u8, 0..3_u8, generation).prop_map(
            |(terminal, host, app, instance, token, generation)| Step::Request { terminal, host, app, instance, token, generation }),
        2 => (0..6_usize, 0..6_u8, 0..8_u32).prop_map(|(terminal, host, slot)| Step::Release { terminal, host, slot }),
        8 => (0..3_u8, 0..8_u32, 0..3_u8).prop_map(|(app, slot, token)| Step::Validate { app, slot, token }),
        1 => (0..8_u32).prop_map(|slot| Step::Revoke { slot }),
        4 => (0..6_usize, 0..6_u8, 0..8_u32, 0..3_u8)
            .prop_map(|(terminal, host, slot, token)| Step::NewToken { terminal, host, slot, token }),
        1 => (0..8_u32, proptest::option::of(0..100_u64)).prop_map(|(slot, within_s)| Step::Rotate { slot, within_s }),
        1 => (0..3_u8, 0..8_u32).prop_map(|(app, slot)| Step::EndByApp { app, slot }),
        1 => (0..6_usize).prop_map(|terminal| Step::Suspend { terminal }),
        1 => (0..6_u8, 0..4_u64).prop_map(|(endpoint, fresh)| Step::SuspendUnknown { endpoint, fresh }),
        2 => (0..6_usize).prop_map(|terminal| Step::Resume { terminal }),
        1 => (0..6_usize).prop_map(|terminal| Step::RemoveTerminal { terminal }),
        1 => (0..3_u8, failure).prop_map(|(app, cause)| Step::AppFailed { app, cause }),
        2 => (0..3_u8).prop_map(|app| Step::AppRecovered { app }),
        1 => (0..3_u8, proptest::option::of(0..4_u32), proptest::option::of(1..7_u32))
            .prop_map(|(app, sessions, triggers_per_second)| Step::SetQuotas { app, sessions, triggers_per_second }),
        1 => (0..8_u32, 0..3_u8).prop_map(|(slot, teid)| Step::SetTunnel { slot, teid }),
        2 => (0..3_u8, 0..3_u8).prop_map(|(app, policy)| Step::AddApp { app, policy }),
        1 => (0..3_u8, 0..3_u8).prop_map(|(app, policy)| Step::SetPolicy { app, policy }),
        1 => (0..3_u8).prop_map(|app| Step::RemoveApp { app }),
        2 => (0..2000_u64).prop_map(|seconds| Step::Wait { seconds }),
        1 => Just(Step::Restart),
    ]
}

/// Takes a step, whether or not it is refused. What is granted has to be right by the naive model, which takes it
/// for a fact from then on.
fn take(
    step: &Step,
    sessions: &mut Sessions,
    naive: &mut Naive,
    now: &mut UnixTime,
    limits: Limits,
) {
    let mut known: Vec<_> = sessions.terminals().map(|terminal| terminal.id).collect();
    known.sort_unstable();
    let terminal = |index: usize| known.get(index).copied().unwrap_or(id(999));
    let in_slot = |slot: u32| {
        sessions
            .session_in_slot(slot)
            .map_or(SessionId::new(slot, 1), |session| session.id)
    };
    let app_name = |app: u8| -> AppName { format!("a{app}").parse().unwrap() };
    match *step {
        Step::Register {
            endpoint,
            host,
            lifetime_s,
            fresh,
        } => {
            let endpoint: EndpointName = format!("d{endpoint}").parse().unwrap();
            let (name, path) = (endpoint.clone(), anywhere(host));
            let lifetime = Some(Duration::from_secs(lifetime_s));
            let registered = sessions.register(*now, name, path.clone(), PORT, lifetime, id(fresh));
            if let Ok(registration) = registered {
                naive.registered(*now, &endpoint, &path, registration);
            }
        }
        Step::Refresh {
            terminal: index,
            host,
            proven,
        } => {
            let path = anywhere(host);
            let refreshed =
                sessions.refresh(*now, terminal(index), path.clone(), PORT, proven, None);
            if let Ok(registration) = refreshed {
                naive.refreshed(*now, &path, proven, registration);
            }
        }
        Step::Deregister {
            terminal: index,
            host,
        } => {
            let (terminal, path) = (terminal(index), anywhere(host));
            if sessions.deregister(*now, terminal, &path).is_ok() {
                naive.deregistered(terminal, &path);
            }
        }
        Step::Request {
            terminal: index,
            host,
            app,
            instance,
            token: value,
            generation,
        } => {
            let request = request(&format!("a{app}"), &format!("i{instance}"));
            let (terminal, path) = (terminal(index), anywhere(host));
            let (asked, token) = (request.clone(), token(value));
            let granted =
                sessions.request_session(*now, terminal, &path, asked, &token, generation);
            if let Ok(grant) = granted {
                naive.requested(terminal, &path, &request, grant);
            }
        }
        Step::NewToken {
            terminal: index,
            host,
            slot,
            token: value,
        } => {
            let (terminal, path, session) = (terminal(index), anywhere(host), in_slot(slot));
            let granted = sessions.new_token(*now, terminal, &path, session, &token(value));
            if granted.is_ok() {
                naive.has_new_token(terminal, &path, session);
            }
        }
        Step::Release {
            terminal: index,
            host,
            slot,
        } => {
            let (terminal, path, session) = (terminal(index), anywhere(host), in_slot(slot));
            if sessions.release(*now, terminal, &path, session).is_ok() {
                naive.released(terminal, &path, session);
            }
        }
        Step::Validate {
            app,
            slot,
            token: value,
        } => validate(sessions, naive, *now, app, in_slot(slot), value),
        Step::Revoke { slot } => {
            let session = in_slot(slot);
            if sessions.revoke(*now, session).is_ok() {
                naive.ended(session);
            }
        }
        Step::Rotate { slot, within_s } => {
            let session = in_slot(slot);
            let within = within_s.map(Duration::from_secs);
            if sessions.rotate(*now, session, within).is_ok() {
                naive.is_to_rotate(session, within.map(|within| now.saturating_add(within)));
            }
        }
        Step::EndByApp { app, slot } => {
            let session = in_slot(slot);
            let ended = sessions.end_by_app(*now, credential_id(app), session);
            if ended.is_ok() {
                naive.ended(session);
            }
        }
        Step::Suspend { terminal: index } => {
            let id = terminal(index);
            if sessions.suspend(*now, id).is_ok() {
                naive.suspended(*now, sessions.terminal(id).expect("it is kept"));
            }
        }
        Step::SuspendUnknown { endpoint, fresh } => {
            let endpoint = format!("d{endpoint}").parse().unwrap();
            if let Ok(id) = sessions.suspend_unknown(*now, endpoint, id(fresh)) {
                naive.suspended(*now, sessions.terminal(id).expect("it is kept"));
            }
        }
        Step::Resume { terminal: index } => {
            if let Ok(is_first) = sessions.resume(*now, terminal(index)) {
                naive.resumed(*now, terminal(index), is_first);
            }
        }
        Step::RemoveTerminal { terminal: index } => {
            if sessions.remove_terminal(*now, terminal(index)).is_ok() {
                naive.removed(terminal(index));
            }
        }
        Step::SetTunnel { slot, teid } => {
            let tunnel = (teid > 0).then(|| Tunnel {
                peer: Ipv4Addr::LOCALHOST.into(),
                teid: teid.into(),
            });
            let _ = sessions.set_tunnel(in_slot(slot), tunnel);
        }
        Step::AddApp { app, policy: n } => {
            let name = app_name(app);
            let credentials = vec![credential(app)];
            if sessions
                .add_app(*now, name.clone(), credentials, policy(n))
                .is_ok()
            {
                naive.app_added(&name, limited(n));
            }
        }
        Step::SetPolicy { app, policy: n } => {
            if sessions.set_policy(&app_name(app), policy(n)).is_ok() {
                naive.has_policy(&app_name(app), limited(n));
            }
        }
        Step::SetQuotas {
            app,
            sessions: quota,
            triggers_per_second,
        } => {
            let quotas = Quotas {
                sessions: quota,
                triggers_per_second,
                ..Quotas::default()
            };
            if sessions.set_quotas(&app_name(app), quotas).is_ok() {
                naive.has_quotas(&app_name(app), quotas);
            }
        }
        Step::AppFailed { app, cause } => {
            if sessions.app_failed(*now, &app_name(app), cause).is_ok() {
                naive.app_failed(&app_name(app), cause);
            }
        }
        Step::AppRecovered { app } => {
            if sessions.app_recovered(&app_name(app)).is_ok() {
                naive.app_recovered(&app_name(app));
            }
        }
        Step::RemoveApp { app } => {
            if sessions.remove_app(*now, &app_name(app)).is_ok() {
                naive.app_removed(&app_name(app));
            }
        }
        Step::Wait { seconds } => {
            *now = now.saturating_add(Duration::from_secs(seconds));
            sessions.expire(*now, usize::MAX);
            naive.time_has_passed(*now);
        }
        Step::Restart => *sessions = Sessions::restore(limits, image(sessions)).unwrap(),
    }
}

fn validate(
    sessions: &mut Sessions,
    naive: &mut Naive,
    now: UnixTime,
    app: u8,
    session: SessionId,
    value: u8,
) {
    let state = sessions
        .session(session)
        .map(|session| session.state.clone());
    let answer = sessions.validate(now, credential_id(app), session, &token(value).hash());
    let authorisation = match answer {
        Ok(authorisation) => authorisation,
        Err(
            ValidationRefusal::RateExceeded { of, .. }
            | ValidationRefusal::RateNotLimited { of, .. },
        ) => {
            assert_eq!(naive.rate_that_is_exceeded(session), Some(of));
            return;
        }
        Err(_) => return,
    };
    let held = match state.expect("a session that was never requested is not validated") {
        SessionState::Requested(issued) => vec![issued.hash],
        SessionState::Authorised(Tokens {
            current,
            previous,
            next,
            ..
        }) => {
            let previous = previous.filter(|previous| previous.until > now);
            let others = previous.map(|previous| previous.token).into_iter();
            let all = others.chain(next).chain([current]);
            all.map(|token| token.hash).collect()
        }
        SessionState::Ended { .. } => panic!("an ended session was validated"),
    };
    assert!(held.contains(&token(value).hash()));
    naive.validated(&format!("a{app}"), authorisation);
}

fn check_invariants(sessions: &Sessions, followers: &Followers, now: UnixTime) {
    let mut instances = HashSet::new();
    let mut counts = Counts::default();
    for session in sessions.sessions() {
        assert!(session.id.slot() < LIMITS.slots && session.id.generation() != 0);
        match session.state {
            SessionState::Ended { .. } => {
                assert!(
                    !followers.kernel.contains_key(&session.id),
                    "{} is over, but delivered for",
                    session.id
                );
                continue;
            }
            SessionState::Requested(_) => {
                counts.requested += 1;
                assert!(
                    !followers.kernel.contains_key(&session.id),
                    "{} was never validated",
                    session.id
                );
            }
            SessionState::Authorised(_) => {
                counts.authorised += 1;
                let authorised = sessions.authorised(session.id).unwrap();
                let known = followers.kernel.get(&session.id);
                assert_eq!(known, Some(&delivered(authorised)));
                assert!(followers.policies.contains_key(&authorised.app.policy_slot));
            }
        }
        let terminal = sessions.terminal(session.terminal).unwrap();
        assert!(matches!(terminal.state, OperativeState::First { expires } if expires > now));
        assert!(sessions.app(&session.app).is_some());
        assert!(instances.insert((
            session.terminal,
            session.app.clone(),
            session.instance.clone()
        )));
    }
    let policies = sessions
        .apps()
        .map(|(app, _)| (app.policy_slot, app.policy.clone()));
    assert_eq!(followers.policies, policies.collect());
    assert_eq!(followers.policies.len(), sessions.apps().count());
    assert_eq!(sessions.counts(), counts);
    assert_eq!(followers.kernel.len(), counts.authorised as usize);
    assert_eq!(
        sessions.apps().map(|(_, live)| live).sum::<usize>(),
        instances.len()
    );
    let of_terminals = sessions
        .terminals()
        .map(|terminal| sessions.sessions_of_terminal(terminal.id))
        .sum::<usize>();
    assert_eq!(of_terminals, instances.len());
    assert!(sessions.terminals().len() <= LIMITS.slots as usize);
    let mut counted: BTreeMap<_, Population> = BTreeMap::new();
    for terminal in sessions.terminals() {
        if let Some(realm) = &terminal.path.realm {
            let population = counted.entry(realm).or_default();
            population.terminals += 1;
            population.sessions += sessions.sessions_of_terminal(terminal.id);
        }
    }
    assert_eq!(sessions.realms().collect::<BTreeMap<_, _>>(), counted);
    assert_eq!(sessions.session_count(), sessions.sessions().count());
    assert!(
        sessions
            .next_deadline()
            .is_none_or(|deadline| deadline > now)
    );
}

fn sorted(mut image: Image) -> Image {
    image.terminals.sort_by_key(|terminal| terminal.id);
    image.sessions.sort_by_key(|session| session.id.slot());
    image.apps.sort_by(|a, b| a.name.cmp(&b.name));
    image
}

/// Sequences of steps, and how long each is: a million steps, but where they take a while.
const SEQUENCES: u32 = if cfg!(debug_assertions) { 100 } else { 2500 };
const STEPS: usize = 400;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(SEQUENCES))]

    /// Any steps in any order: whoever follows the changes knows all there is to know, and delivers for
    /// exactly the sessions that a naive model says: authorised, not expired, of terminals that aren't suspended.
    #[test]
    fn followers_of_the_changes_are_never_wrong(
        triggers_per_second_per_terminal in proptest::option::of(1..7_u32),
        steps in proptest::collection::vec(step(), STEPS),
    ) {
        let limits = Limits { triggers_per_second_per_terminal, ..LIMITS };
        let mut sessions = Sessions::restore(limits, image(&empty())).unwrap();
        let mut followers = Followers::default();
        let mut naive = Naive::new(&limits);
        let mut now = at(0);
        for step in steps {
            take(&step, &mut sessions, &mut naive, &mut now, limits);
            followers.follow(&mut sessions);
            check_invariants(&sessions, &followers, now);
            let delivered_for: BTreeSet<_> = followers.kernel.keys().copied().collect();
            prop_assert_eq!(delivered_for, naive.delivered_for());
        }
        prop_assert_eq!(sorted(followers.image()), sorted(image(&sessions)));
    }
}
