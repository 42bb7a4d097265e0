//! One too many: of sessions, applications, realms and next hops. Who comes when there is no room is told so, and
//! nobody else notices: triggers flow meanwhile, and none is lost.

use crate::story::{
    APP, DEVICE_PORT, PUSH_CTL, Story, demand_each_once, inside, outside, server, socket_address,
    wait_until, while_triggers_flow,
};
use push_common::maps::{MAX_NEXT_HOPS, MAX_POLICIES};
use push_common::wire::SessionId;
use push_ctl::sessions::records::App;
use push_ctl::store::{Batch, RedbStore, Store};
use serde_json::{Value, json};
use std::net::Ipv4Addr;
use std::num::NonZeroU16;
use std::path::Path;
use xtask::child;
use xtask::clients::{Answer, Granted};
use xtask::export::Export;
use xtask::lab::{Config, DEVICE, GATEWAY_INSIDE, GATEWAY_METERS, Lab, Options, Party, Realm};
use xtask::traffic::{Session, Sink};

/// What the operator is told who asks for what there is no room for.
fn refused(lab: &Lab, arguments: &[&str]) -> String {
    let output = child::finish(&mut lab.push_ctl(arguments)).unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {said}");
    said
}

/// Demands that a trigger of a session arrives at the device of that party, at that address.
fn receives(lab: &Lab, (party, address): (Party, &str), session: Session, family: usize) {
    let socket = lab.udp_socket(party, socket_address(address, DEVICE_PORT + 1));
    let sink = Sink::start(socket.unwrap(), &[session]).unwrap();
    let mut trigger = [0; 100];
    session.trigger(1, &mut trigger);
    server(lab, family).send(&trigger).unwrap();
    demand_each_once(lab, sink, 1);
}

#[test]
fn whoever_comes_when_the_table_is_full_is_refused_and_nobody_else_notices() {
    let config = Config {
        slots: 2,
        ..Config::default()
    };
    let story = Story::with(&Options {
        config,
        ..Options::new("push-limit-1", Path::new(PUSH_CTL))
    });
    while_triggers_flow(&story, |_| {
        let registration = story.registered(1);
        let refused = |uri: &str| {
            let source = DEVICE[1];
            let answer = story.clients().coap(Party::Device, "post", source, uri);
            match answer.unwrap() {
                Answer::Refused(why) => why,
                Answer::Success(_) => panic!("{uri} was granted"),
            }
        };
        let gateway = inside(1);
        story.requested(1, &registration, "two", 7001);
        let session =
            format!("coap://{gateway}/rd/{registration}/s?app={APP}&inst=three&port=7002");
        let why = refused(&session);
        assert!(
            why.contains("5.03") && why.contains("too many sessions"),
            "{why}"
        );
        // As many terminals as slots, too.
        let lab = &story.lab;
        let mut barred = lab.push_ctl(&["terminal", "suspend", "stolen", "--unregistered"]);
        let barred = child::finish(&mut barred).unwrap();
        let said = String::from_utf8_lossy(&barred.stderr);
        assert!(said.contains("sessions.slots"), "{said}");
    });
}

#[test]
fn one_application_too_many_is_refused_until_another_is_removed() {
    const MOST: u16 = MAX_POLICIES as u16 - 1;
    let story = Story::begin("push-limit-2");
    let lab = &story.lab;
    while_triggers_flow(&story, |flow| {
        // To add them one by one would take minutes, as a key of each is hashed slowly on purpose.
        lab.stop().unwrap();
        let mut store = RedbStore::open(&lab.folder().join("state"), None).unwrap();
        let [first] = &store.load().unwrap().apps[..] else {
            panic!("there is one application");
        };
        let others = (1..=MOST).filter_map(NonZeroU16::new);
        let others = others.filter(|&slot| slot != first.policy_slot);
        let others = others.map(|policy_slot| App {
            name: format!("app-{policy_slot}").parse().unwrap(),
            policy_slot,
            credentials: Vec::new(),
            ..first.clone()
        });
        let batch = Batch {
            apps: others.map(|app| (app.name.clone(), Some(app))).collect(),
            ..Batch::default()
        };
        store.apply(&batch).unwrap();
        drop(store);
        lab.start().unwrap();
        flow();

        let apps = || lab.push_ctl_json(&["app", "list"]).unwrap();
        let before = apps();
        assert_eq!(before.as_array().unwrap().len(), usize::from(MOST));
        let said = refused(lab, &["app", "add", "one-more"]);
        let words =
            format!("there are {MOST} applications, the most there can be; remove one first");
        assert!(said.contains(&words), "{said}");
        assert_eq!(apps(), before);
        flow();

        child::output(&mut lab.push_ctl(&["app", "remove", "app-4000"])).unwrap();
        story.clients().add_app("one-more").unwrap();
        assert_eq!(apps().as_array().unwrap().len(), usize::from(MOST));
    });
}

#[test]
fn one_realm_too_many_is_refused_and_the_most_there_can_be_work() {
    const MOST: u16 = 255;
    let with_realms = |count: u16| Config {
        realms: (1..=count)
            .map(|n| Realm {
                name: format!("realm-{n}"),
                interface: "gw-met".to_owned(),
                next_hop: Vec::new(),
                link: None,
                listen: vec![format!("{GATEWAY_METERS}:{}", 6000 + n)],
            })
            .collect(),
        ..Config::with_realms()
    };
    let story = Story::with(&Options {
        config: with_realms(MOST),
        ..Options::with_realms("push-limit-3", Path::new(PUSH_CTL))
    });
    let lab = &story.lab;
    while_triggers_flow(&story, |flow| {
        let one_more = "there are 256 sections; 255 is the most";
        let config = lab.config_path();
        let config = config.to_str().unwrap();
        let realms = || lab.push_ctl_json(&["realm", "list"]).unwrap();
        let before = realms();
        assert_eq!(before.as_array().unwrap().len(), usize::from(MOST));

        lab.write_config(&with_realms(MOST + 1)).unwrap();
        for arguments in [
            &["config", "check", "-c", config][..],
            &["config", "reload"],
        ] {
            let said = refused(lab, arguments);
            assert!(said.contains(one_more), "{arguments:?}: {said}");
        }
        assert_eq!(realms(), before);
        lab.stop().unwrap();
        let error = format!("{:#}", lab.start().unwrap_err());
        assert!(error.contains("ended (exit status: 1)"), "{error}");
        assert!(error.contains(one_more), "{error}");
        flow();

        lab.write_config(&with_realms(MOST)).unwrap();
        lab.start().unwrap();
        // The last of them is as good as any.
        let clients = story.clients();
        let gateway = format!("{GATEWAY_METERS}:{}", 6000 + MOST);
        let party = Party::Meter;
        let registration = clients.register(party, DEVICE[0], &gateway, "ep=meter");
        let registration = registration.unwrap();
        let place = (DEVICE[0], &*gateway, &*registration);
        let granted = clients
            .request_session(party, place, (APP, "one", DEVICE_PORT + 1))
            .unwrap();
        let authorised = clients.authorise(&outside(0), &story.app_key, &granted);
        authorised.unwrap();
        receives(lab, (party, DEVICE[0]), granted.traffic, 0);
    });
}

/// Each peer of tunnels takes one, so that there need not be as many neighbours: those are all of the machine's.
#[test]
fn whoever_comes_when_all_next_hops_are_in_use_is_told_so_and_gets_the_next_that_is_free() {
    const PEERS: &str = "10.192.0.0/12";
    const FIRST_SLOT: u32 = 100;
    let story = Story::with(&Options {
        config: Config {
            slots: 2 * MAX_NEXT_HOPS,
            gtpu_local: GATEWAY_INSIDE.map(str::to_owned).to_vec(),
            ..Config::default()
        },
        ..Options::new("push-limit-4", Path::new(PUSH_CTL))
    });
    let lab = &story.lab;
    let route = format!("ip route add {PEERS} via {}", DEVICE[0]);
    story.shell(Party::Gateway, &route);
    while_triggers_flow(&story, |flow| {
        let file = lab.folder().join("sessions.jsonl");
        let sessions = MAX_NEXT_HOPS - 1;
        let export = Export {
            sessions,
            first_slot: FIRST_SLOT,
            first_address: Ipv4Addr::new(10, 128, 0, 0),
            first_peer: Some(Ipv4Addr::new(10, 192, 0, 0)),
            app: &|_| APP,
        };
        export.write(&file).unwrap();
        let imported = lab.push_ctl_json(&["session", "import", file.to_str().unwrap()]);
        assert_eq!(imported.unwrap()["sessions"], sessions);
        let warnings = || lab.push_ctl_json(&["status"]).unwrap()["warnings"].take();
        assert_eq!(warnings(), json!([]));
        flow();

        let registration = story.registered(1);
        let granted = story.requested(1, &registration, "one", DEVICE_PORT + 1);
        let validate = |granted: &Granted| -> (u16, Value) {
            let proof = (Some(&*story.app_key), &*granted.request_file);
            story
                .clients()
                .validate(&outside(1), &granted.id, proof)
                .unwrap()
        };
        let (status, body) = validate(&granted);
        assert_eq!(
            (status, &body["type"]),
            (503, &json!("urn:push:problem:not-in-effect"))
        );
        assert!(body["retry_after_s"].is_u64(), "{body}");
        let told = warnings().to_string();
        let words = format!("all {MAX_NEXT_HOPS} next hops are in use");
        assert!(
            told.contains(&words) && told.contains("end sessions"),
            "{told}"
        );
        assert!(told.contains(&granted.id), "{told}");
        flow();

        let other = SessionId::new(FIRST_SLOT, 1).to_string();
        child::output(&mut lab.push_ctl(&["session", "revoke", &other])).unwrap();
        wait_until("there is room", || validate(&granted).0 == 200);
        assert_eq!(warnings(), json!([]));
        receives(lab, (Party::Device, DEVICE[1]), granted.traffic, 1);
    });
}
