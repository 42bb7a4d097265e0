use super::page::{Found, PROBES, Query as _, probed};
use super::*;
use crate::controller::tests::{LIMITS, World, app, token};
use crate::sessions::records::{EndCause, IssuedToken, Left, Path, Tokens};
use crate::sessions::{Image, Limits};
use std::net::Ipv4Addr;
use std::num::NonZeroU16;
use std::time::Duration;

const TERMINALS: u32 = 18_000;
/// So many that a few of them tell where a page is.
const SESSIONS: u32 = 20_000;
const NOW: u64 = 4_000_000_000_000;

fn name<T: std::str::FromStr>(text: &str) -> T
where
    T::Err: std::fmt::Debug,
{
    text.parse().unwrap()
}

/// In no order that records are kept in.
fn terminal(n: u32) -> Terminal {
    let n64 = u64::from(n);
    let realm = ["", "cars", "meters"][n as usize % 3];
    let expires = UnixTime::from_millis(NOW + n64 * 7919 % 1009 * 1000);
    let since = UnixTime::from_millis(NOW);
    Terminal {
        id: RegistrationId::from_u64(n64.wrapping_mul(0x9E37_79B9_7F4A_7C15)),
        endpoint: name(&format!("device {}", n64 * 31_337 % u64::from(TERMINALS))),
        path: Path {
            realm: (!realm.is_empty()).then(|| name(realm)),
            device: Ipv4Addr::from(0x0A00_0000 + n / 3).into(),
            gateway: "10.255.0.1:5683".parse().unwrap(),
        },
        port: 5683,
        lifetime: Duration::from_secs(100),
        state: match n % 100 {
            98 => OperativeState::Second {
                since,
                cause: Left::Deregistered,
            },
            99 => OperativeState::Suspended { since, expires },
            _ => OperativeState::First { expires },
        },
    }
}

fn session(slot: u32, instance: &str) -> Session {
    let n = slot % TERMINALS;
    let issued = IssuedToken::new(&token(1), 0);
    let app = match slot % 1000 {
        7 => "rare",
        odd if odd % 2 == 1 => "chat",
        _ => "mail",
    };
    Session {
        id: SessionId::new(slot, slot.wrapping_mul(0x9E37_79B9) | 1),
        terminal: terminal(n).id,
        app: name(app),
        instance: name(instance),
        port: NonZeroU16::new(7000).unwrap(),
        tunnel: None,
        window: None,
        state: match (n % 100, slot % 500) {
            (98 | 99, _) | (_, 11) => SessionState::Ended {
                at: UnixTime::from_millis(NOW),
                cause: EndCause::Released,
            },
            (_, 12) => SessionState::Authorised(Tokens::only(issued)),
            (_, 13) => SessionState::Authorised(Tokens {
                next: Some(IssuedToken::new(&token(2), 1)),
                ..Tokens::only(issued)
            }),
            _ => SessionState::Requested(issued),
        },
    }
}

/// A controller that has all these.
fn controller(instance: impl Fn(u32) -> String) -> (World, Controller) {
    let image = Image {
        terminals: (0..TERMINALS).map(terminal).collect(),
        sessions: (0..SESSIONS).map(|n| session(n, &instance(n))).collect(),
        apps: ["mail", "chat", "rare"]
            .into_iter()
            .zip(1..)
            .map(|(name, slot)| app(name, slot))
            .collect(),
    };
    let limits = Limits {
        slots: SESSIONS,
        ..LIMITS
    };
    let world = World::default();
    world.state().traffic = (0..SESSIONS)
        .map(|slot| (slot, (u64::from(slot * 7 % 23), slot * 5 % 19)))
        .collect();
    let controller = world.start_of(Sessions::restore(limits, image).unwrap());
    (world, controller)
}

fn shuffled(slot: u32) -> String {
    format!("instance {}", u64::from(slot) * 7919 % 4001)
}

async fn find_sessions(
    controller: &Controller,
    query: SessionQuery,
    page: Page,
) -> Found<SessionId> {
    let search = SessionSearch::new(controller, query).await.unwrap();
    page::find(controller, search, page).await.unwrap()
}

async fn find_terminals(
    controller: &Controller,
    query: TerminalQuery,
    page: Page,
) -> Found<RegistrationId> {
    let search = TerminalSearch::new(controller, query).await.unwrap();
    page::find(controller, search, page).await.unwrap()
}

/// Pages at the beginning, in the middle, at the end, and beyond it.
fn pages(total: usize) -> impl Iterator<Item = Page> {
    let places = [
        (0, 1),
        (0, usize::MAX),
        (total / 3, 100),
        (total.saturating_sub(7), 100),
        (total, 1),
        (total + 5, usize::MAX),
    ];
    places.into_iter().flat_map(|(offset, limit)| {
        [false, true].map(|reverse| Page {
            offset,
            limit,
            reverse,
        })
    })
}

/// The page of the sorted whole.
fn cut<K: Ord, I: Ord + Copy>(whole: &[(K, I)], page: Page) -> Vec<I> {
    let ids = whole.iter().map(|&(_, id)| id);
    if page.reverse {
        ids.rev().skip(page.offset).take(page.limit).collect()
    } else {
        ids.skip(page.offset).take(page.limit).collect()
    }
}

fn is_over(session: &Session) -> bool {
    matches!(session.state, SessionState::Ended { .. })
}

/// Realm and address.
fn at(sessions: &Sessions, session: &Session) -> (Option<String>, String) {
    let terminal = sessions.terminal(session.terminal).unwrap();
    let realm = terminal.path.realm.as_ref().map(ToString::to_string);
    (realm, terminal.path.device.to_string())
}

type Takes<R> = fn(&Sessions, &R) -> bool;

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_sessions_are_those_of_the_sorted_whole() {
    let (world, controller) = controller(shuffled);
    let query = SessionQuery::default;
    let filters: [(SessionQuery, Takes<Session>); 9] = [
        (query(), |_, session| !is_over(session)),
        (
            SessionQuery {
                ended: true,
                ..query()
            },
            |_, _| true,
        ),
        (
            SessionQuery {
                state: Some(SessionStateFilter::Ended),
                realm: Some("cars".into()),
                ..query()
            },
            |sessions, session| {
                is_over(session) && at(sessions, session).0.as_deref() == Some("cars")
            },
        ),
        (
            SessionQuery {
                state: Some(SessionStateFilter::Rotating),
                ..query()
            },
            |_, session| matches!(&session.state, SessionState::Authorised(tokens) if tokens.next.is_some()),
        ),
        (
            SessionQuery {
                app: Some("rare".into()),
                ..query()
            },
            |_, session| session.app.as_str() == "rare" && !is_over(session),
        ),
        (
            SessionQuery {
                app: Some("chat".into()),
                ..query()
            },
            |_, session| session.app.as_str() == "chat" && !is_over(session),
        ),
        (
            SessionQuery {
                terminal: Some("device 31337".into()),
                app: Some("no app".into()),
                ..query()
            },
            |_, _| false,
        ),
        (
            SessionQuery {
                address: Some("10.0.1.7".into()),
                ..query()
            },
            |sessions, session| at(sessions, session).1 == "10.0.1.7" && !is_over(session),
        ),
        (
            SessionQuery {
                address: Some("10.0.16.0/20".into()),
                realm: Some("meters".into()),
                ..query()
            },
            |sessions, session| {
                let (realm, device) = at(sessions, session);
                let device: Ipv4Addr = device.parse().unwrap();
                realm.as_deref() == Some("meters")
                    && device.octets()[2] & 0xF0 == 16
                    && !is_over(session)
            },
        ),
    ];
    let orders = [
        SessionOrder::Slot,
        SessionOrder::App,
        SessionOrder::Expires,
        SessionOrder::Delivered,
        SessionOrder::Refused,
        SessionOrder::Last,
    ];
    for (n, (query, takes)) in filters.into_iter().enumerate() {
        // All orders of what is most; of the rest, those by a text and by what the terminal has.
        let orders = if n < 2 { &orders[..] } else { &orders[1..3] };
        for &order in orders {
            let query = SessionQuery {
                sort: Some(order),
                ..query.clone()
            };
            let traffic = world.state().traffic.clone();
            let whole = controller.observe(move |view| {
                let delivered_for = |session: &Session| match session.state {
                    SessionState::Authorised(_) => traffic[&session.id.slot()],
                    SessionState::Requested(_) | SessionState::Ended { .. } => (0, 0),
                };
                let key = |session: &Session| match order {
                    SessionOrder::Slot => (i64::from(session.id.slot()), String::new()),
                    SessionOrder::App => (0, format!("{} {}", session.app, session.instance)),
                    SessionOrder::Expires => {
                        match view.sessions.terminal(session.terminal).unwrap().state {
                            OperativeState::First { expires } if !is_over(session) => {
                                (i64::try_from(expires.as_millis()).unwrap(), String::new())
                            }
                            _ => (0, String::new()),
                        }
                    }
                    SessionOrder::Delivered | SessionOrder::Last => (
                        -i64::try_from(delivered_for(session).0).unwrap(),
                        String::new(),
                    ),
                    SessionOrder::Refused => (-i64::from(delivered_for(session).1), String::new()),
                };
                let taken = view
                    .sessions
                    .sessions()
                    .filter(|session| takes(view.sessions, session));
                let mut whole: Vec<_> = taken.map(|session| (key(session), session.id)).collect();
                whole.sort();
                whole
            });
            let whole = whole.await.unwrap();
            for page in pages(whole.len()) {
                let found = find_sessions(&controller, query.clone(), page).await;
                assert_eq!(found.total, whole.len(), "{query:?}");
                assert_eq!(found.ids, cut(&whole, page), "{query:?} {page:?}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_terminals_are_those_of_the_sorted_whole() {
    let (_world, controller) = controller(shuffled);
    let query = TerminalQuery::default;
    let filters: [(TerminalQuery, Takes<Terminal>); 5] = [
        (query(), |_, _| true),
        (
            TerminalQuery {
                endpoint: Some("17".into()),
                ..query()
            },
            |_, terminal| terminal.endpoint.as_str().contains("17"),
        ),
        (
            TerminalQuery {
                state: Some(TerminalStateFilter::First),
                realm: Some("cars".into()),
                ..query()
            },
            |_, terminal| {
                let is_first = matches!(terminal.state, OperativeState::First { .. });
                is_first
                    && terminal
                        .path
                        .realm
                        .as_ref()
                        .is_some_and(|realm| realm.as_str() == "cars")
            },
        ),
        (
            TerminalQuery {
                state: Some(TerminalStateFilter::Suspended),
                ..query()
            },
            |_, terminal| matches!(terminal.state, OperativeState::Suspended { .. }),
        ),
        (
            TerminalQuery {
                realm: Some("nowhere".into()),
                ..query()
            },
            |_, _| false,
        ),
    ];
    let orders = [
        TerminalOrder::Endpoint,
        TerminalOrder::Address,
        TerminalOrder::Expires,
        TerminalOrder::Sessions,
    ];
    for (query, takes) in filters {
        for order in orders {
            let query = TerminalQuery {
                sort: Some(order),
                ..query.clone()
            };
            let whole = controller.observe(move |view| {
                let key = |terminal: &Terminal| match order {
                    TerminalOrder::Endpoint => (0, terminal.endpoint.to_string(), None),
                    TerminalOrder::Address => {
                        let realm = terminal.path.realm.as_ref().map(ToString::to_string);
                        (0, realm.unwrap_or_default(), Some(terminal.path.device))
                    }
                    TerminalOrder::Expires => match terminal.state {
                        OperativeState::First { expires } => {
                            (expires.as_millis(), String::new(), None)
                        }
                        OperativeState::Second { .. } | OperativeState::Suspended { .. } => {
                            (0, String::new(), None)
                        }
                    },
                    TerminalOrder::Sessions => {
                        let sessions = view.sessions.sessions_on_terminal(terminal.id).count();
                        (100 - sessions as u64, String::new(), None)
                    }
                };
                let taken = view
                    .sessions
                    .terminals()
                    .filter(|terminal| takes(view.sessions, terminal));
                let mut whole: Vec<_> =
                    taken.map(|terminal| (key(terminal), terminal.id)).collect();
                whole.sort();
                whole
            });
            let whole = whole.await.unwrap();
            for page in pages(whole.len()) {
                let found = find_terminals(&controller, query.clone(), page).await;
                assert_eq!(found.total, whole.len(), "{query:?}");
                assert_eq!(found.ids, cut(&whole, page), "{query:?} {page:?}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_question_looks_at_no_more_than_it_has_to() {
    let (_world, controller) = controller(shuffled);
    let all = PROBES + SESSIONS as usize;
    let of = |terminal: &str| SessionQuery {
        terminal: Some(terminal.into()),
        ..SessionQuery::default()
    };
    let at = |address: &str| SessionQuery {
        address: Some(address.into()),
        ..SessionQuery::default()
    };
    let by = |sort| SessionQuery {
        sort: Some(sort),
        ..SessionQuery::default()
    };
    let cases = [
        (SessionQuery::default(), 0, all),
        (by(SessionOrder::App), 0, all),
        (by(SessionOrder::App), 9_000, all),
        (by(SessionOrder::Expires), 19_000, all),
        (of("device 0"), 0, 2),
        (of(&terminal(1).id.to_string()), 0, 2),
        (of("nobody"), 0, 0),
        (at("10.0.0.1"), 0, 6),
        (at("10.0.0.0/28"), 0, 96),
        (
            SessionQuery {
                app: Some("rare".into()),
                ..at("10.0.0.0/8")
            },
            0,
            20,
        ),
        (
            SessionQuery {
                realm: Some("nowhere".into()),
                ..SessionQuery::default()
            },
            0,
            0,
        ),
    ];
    for (query, offset, most) in cases {
        let page = Page {
            offset,
            limit: 100,
            reverse: false,
        };
        let found = find_sessions(&controller, query.clone(), page).await;
        assert!(
            found.looked_at <= most,
            "{query:?}: {} of {most}",
            found.looked_at
        );
    }
    let all = PROBES + TERMINALS as usize;
    let first = |address: Option<&str>| TerminalQuery {
        state: Some(TerminalStateFilter::First),
        address: address.map(Into::into),
        ..TerminalQuery::default()
    };
    let cases = [
        (TerminalQuery::default(), 0, all),
        (TerminalQuery::default(), 9_000, all),
        (first(None), 17_000, all),
        (first(Some("10.0.0.9")), 0, 3),
    ];
    for (query, offset, most) in cases {
        let page = Page {
            offset,
            limit: 100,
            reverse: false,
        };
        let found = find_terminals(&controller, query.clone(), page).await;
        assert!(
            found.looked_at <= most,
            "{query:?}: {} of {most}",
            found.looked_at
        );
    }
}

/// Wherever a look is taken first, something else is than everywhere else.
#[tokio::test(flavor = "multi_thread")]
async fn a_page_is_the_right_one_also_where_the_first_look_misleads() {
    let probes: std::collections::BTreeSet<_> =
        (0..PROBES).map(|n| probed(n, SESSIONS as usize)).collect();
    let instance = |slot: u32| {
        let is_probed = probes.contains(&(slot as usize));
        format!("{} {slot}", if is_probed { "a" } else { "z" })
    };
    let (_world, controller) = controller(instance);
    let query = SessionQuery {
        sort: Some(SessionOrder::App),
        app: Some("mail".into()),
        ..SessionQuery::default()
    };
    let search = SessionSearch::new(&controller, query.clone())
        .await
        .unwrap();
    let places = search.places();
    let all = Page {
        offset: 0,
        limit: usize::MAX,
        reverse: false,
    };
    let whole = find_sessions(&controller, query.clone(), all).await;
    let page = Page {
        offset: 5_000,
        limit: 10,
        ..all
    };
    let found = find_sessions(&controller, query, page).await;
    assert_eq!(found.ids, whole.ids[5_000..5_010]);
    assert!(found.looked_at > PROBES + places, "nothing was misleading");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_name_can_be_finds_nothing() {
    let (_world, controller) = controller(shuffled);
    let page = Page {
        offset: 0,
        limit: 10,
        reverse: false,
    };
    let query = SessionQuery {
        realm: Some("no realm".into()),
        ..SessionQuery::default()
    };
    assert_eq!(find_sessions(&controller, query, page).await.total, 0);
    let query = SessionQuery {
        app: Some(String::new()),
        ..SessionQuery::default()
    };
    assert_eq!(find_sessions(&controller, query, page).await.total, 0);
}
