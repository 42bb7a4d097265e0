//! Devices whose push clients speak CoAP by libraries that know nothing of push: aiocoap and npm's coap.
//! They live through everything that the internal interface has, and are told things by the gateway;
//! tshark is the judge of what it sends.

use crate::judged::capture::Witness;
use crate::provisioning::session_ids;
use crate::story::{APP, Story, inside, outside};
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;
use xtask::child;
use xtask::clients::Granted;
use xtask::lab::{DEVICE, GATEWAY_INSIDE, Lab, Party};
use xtask::setup::coap;

const LIMIT: Duration = Duration::from_secs(20);

/// One port for everything: requests, notices and triggers.
const PORT: u16 = 5683;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Library {
    Aiocoap,
    Npm,
}

impl Library {
    fn script(self, lab: &Lab) -> Command {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/foreign_devices");
        let (mut command, script) = match self {
            Self::Aiocoap => (
                lab.exec_in(Party::Device, coap::python()),
                "aiocoap_device.py",
            ),
            Self::Npm => (lab.exec_in(Party::Device, "node"), "npm_device.js"),
        };
        command
            .arg(Path::new(folder).join(script))
            .env("NODE_PATH", coap::node_path());
        command
    }
}

/// A push client at work; it doesn't outlive its test.
struct ForeignDevice {
    library: Library,
    process: Child,
    orders: ChildStdin,
    said: mpsc::Receiver<Value>,
    /// What it was asked, and nobody has looked at yet.
    asked: VecDeque<Value>,
}

impl ForeignDevice {
    fn start(lab: &Lab, library: Library) -> Self {
        let mut process = library
            .script(lab)
            .args([DEVICE[0], &PORT.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let (sender, said) = mpsc::channel();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let _nobody_listens = sender.send(serde_json::from_str(&line).unwrap());
            }
        });
        let mut device = Self {
            library,
            orders: process.stdin.take().unwrap(),
            process,
            said,
            asked: VecDeque::new(),
        };
        device.hear("ready");
        device
    }

    /// Waits until it says something of this kind.
    fn hear(&mut self, kind: &str) -> Value {
        loop {
            let mut said = self
                .said
                .recv_timeout(LIMIT)
                .unwrap_or_else(|_| panic!("{:?}: no {kind}", self.library));
            if said.get(kind).is_some() {
                return said[kind].take();
            }
            self.asked.push_back(said["asked"].take());
        }
    }

    /// Has it ask the gateway; gives the answer.
    fn ask(&mut self, method: &str, path: &str, query: &[&str], body: &Value) -> Value {
        let uri = format!("coap://{}/{path}", inside(0));
        let order = json!({ "method": method, "uri": uri, "query": query, "body": body });
        writeln!(self.orders, "{order}").unwrap();
        self.hear("answer")
    }

    /// What it is asked next.
    fn asked(&mut self) -> Value {
        match self.asked.pop_front() {
            Some(asked) => asked,
            None => self.hear("asked"),
        }
    }

    fn registered(&mut self) -> String {
        let answer = self.ask("POST", "rd", &["ep=foreign", "lt=600"], &Value::Null);
        assert_eq!(answer["code"], "2.01", "{answer}");
        assert_eq!(
            answer["challenged"], true,
            "no proof of address was asked for"
        );
        let id = self.field(&answer, 1, "id");
        assert_eq!(answer["location"], json!(["rd", id]));
        assert_eq!(self.field(&answer, 2, "lifetime_s"), "600");
        let gateway = format!("{}:5683", GATEWAY_INSIDE[0]);
        assert_eq!(self.field(&answer, 3, "trigger_source"), gateway);
        id
    }

    fn session(&mut self, story: &Story, registration: &str) -> Granted {
        let path = format!("rd/{registration}/s");
        let answer = match self.library {
            Library::Aiocoap => {
                let body = json!({ "1": APP, "2": "one", "3": PORT });
                self.ask("POST", &path, &[], &body)
            }
            Library::Npm => {
                let query = [&*format!("app={APP}"), "inst=one", &format!("port={PORT}")];
                self.ask("POST", &path, &query, &Value::Null)
            }
        };
        self.granted(story, &answer)
    }

    fn granted(&self, story: &Story, answer: &Value) -> Granted {
        assert_eq!(answer["code"], "2.01", "{}", answer["code"]);
        let [id, token, generation] = [(1, "session_id"), (2, "token"), (3, "token_generation")]
            .map(|(number, name)| self.field(answer, number, name));
        assert_eq!(answer["location"][3], *id);
        story
            .clients()
            .granted(&id, &token, generation.parse().unwrap())
            .unwrap()
    }

    fn authorised(&mut self, story: &Story, registration: &str) -> Granted {
        let session = self.session(story, registration);
        story
            .clients()
            .authorise(&outside(0), &story.app_key, &session)
            .unwrap();
        session
    }

    /// A field of an answer: CBOR has it by number, text by name.
    fn field(&self, answer: &Value, number: u8, name: &str) -> String {
        let value = match self.library {
            Library::Aiocoap => &answer["body"][number.to_string()],
            Library::Npm => &answer["body"][name],
        };
        value
            .as_str()
            .map_or_else(|| value.to_string(), str::to_owned)
    }

    fn is_told_of_the_end_of(&mut self, session: &str) {
        let asked = self.asked();
        assert_eq!(asked["method"], "DELETE", "{asked}");
        assert_eq!(asked["path"], json!(["s", session]));
        let from = asked["from"].as_str().unwrap();
        assert!(from.contains(GATEWAY_INSIDE[0]), "{asked}");
        match self.library {
            Library::Aiocoap => assert_eq!(asked["body"], json!({ "1": "revoked" })),
            // {1: "revoked"}
            Library::Npm => assert_eq!(asked["body"], "a101677265766f6b6564"),
        }
    }
}

impl Drop for ForeignDevice {
    fn drop(&mut self) {
        let _ended_already = self.process.kill();
        let _reaped = self.process.wait();
    }
}

fn lives(library: Library, prefix: &str) {
    let story = Story::begin(prefix);
    let lab = &story.lab;
    let mut device = ForeignDevice::start(lab, library);
    let registration = device.registered();
    let session = device.authorised(&story, &registration);
    assert_eq!(session_ids(lab, "authorised"), [&*session.id]);

    let of_registration = format!("rd/{registration}");
    let refreshed = device.ask("POST", &of_registration, &["lt=900"], &Value::Null);
    assert_eq!(refreshed["code"], "2.04", "{refreshed}");
    assert_eq!(refreshed["challenged"], false);
    assert_eq!(device.field(&refreshed, 2, "lifetime_s"), "900");

    let of_session = format!("rd/{registration}/s/{}", session.id);
    let answer = device.ask("POST", &of_session, &[], &Value::Null);
    let next = device.granted(&story, &answer);
    assert_eq!(next.id, session.id);
    assert_eq!(next.traffic.token_generation, 1);
    let clients = story.clients();
    clients
        .authorise(&outside(0), &story.app_key, &next)
        .unwrap();

    let released = device.ask("DELETE", &of_session, &[], &Value::Null);
    assert_eq!(released["code"], "2.02", "{released}");
    let again = device.ask("DELETE", &of_session, &[], &Value::Null);
    assert_eq!(again["code"], "4.04", "{again}");

    // What the operator ends, the gateway tells.
    let session = device.authorised(&story, &registration);
    child::output(&mut lab.push_ctl(&["session", "revoke", &session.id])).unwrap();
    device.is_told_of_the_end_of(&session.id);

    let left = device.ask("DELETE", &of_registration, &[], &Value::Null);
    assert_eq!(left["code"], "2.02", "{left}");
    let refused = device.ask("POST", &of_registration, &[], &Value::Null);
    assert_eq!(refused["code"], "4.03", "{refused}");
    assert!(
        refused["body"].as_str().unwrap().contains("deregistered"),
        "{refused}"
    );
}

#[test]
fn a_device_with_aiocoap_lives_its_whole_life() {
    lives(Library::Aiocoap, "push-aiocoap");
}

#[test]
fn a_device_with_npm_s_coap_lives_its_whole_life() {
    lives(Library::Npm, "push-npm");
}

#[test]
fn a_device_does_what_the_gateway_asks_it_to() {
    let story = Story::begin("push-asked");
    let lab = &story.lab;
    let mut device = ForeignDevice::start(lab, Library::Aiocoap);
    let registration = device.registered();
    let session = device.authorised(&story, &registration);
    let of_registration = format!("rd/{registration}");
    let of_session = format!("rd/{registration}/s/{}", session.id);
    let operator = |arguments: &[&str]| {
        child::output(&mut lab.push_ctl(arguments)).unwrap();
    };
    let asked_to = |device: &mut ForeignDevice, path: [&str; 2], body: &Value| {
        let asked = device.asked();
        assert_eq!(asked["method"], "POST", "{asked}");
        assert_eq!((&asked["path"], &asked["body"]), (&json!(path), body));
    };

    operator(&["session", "rotate", &session.id, "--within", "10m"]);
    let rotate = json!({ "1": "rotate", "2": 600 });
    asked_to(&mut device, ["s", &session.id], &rotate);
    let answer = device.ask("POST", &of_session, &[], &Value::Null);
    let next = device.granted(&story, &answer);
    assert_eq!(next.traffic.token_generation, 1);
    let clients = story.clients();
    clients
        .authorise(&outside(0), &story.app_key, &next)
        .unwrap();

    operator(&["terminal", "refresh", &registration]);
    let refresh = json!({ "1": "refresh" });
    asked_to(&mut device, ["rd", &registration], &refresh);
    let refreshed = device.ask("POST", &of_registration, &[], &Value::Null);
    assert_eq!(refreshed["code"], "2.04", "{refreshed}");

    operator(&["terminal", "suspend", &registration]);
    let asked = device.asked();
    assert_eq!(asked["method"], "DELETE", "{asked}");
    assert_eq!(asked["body"], json!({ "1": "terminal_suspended" }));
    for path in [&of_registration, &of_session] {
        let refused = device.ask("POST", path, &[], &Value::Null);
        assert_eq!(refused["code"], "4.03", "{refused}");
        let why = refused["body"].as_str().unwrap();
        assert!(why.starts_with("suspended"), "{refused}");
    }
    operator(&["terminal", "resume", &registration]);
    let asked = device.asked();
    assert_eq!(asked["path"], json!(["rd", registration]), "{asked}");
    let terms = &asked["body"];
    assert!((1..=600).contains(&terms["2"].as_u64().unwrap()), "{asked}");
    assert_eq!(terms["3"], format!("{}:5683", GATEWAY_INSIDE[0]));
    assert_eq!(terms["4"], 1240);
    device.authorised(&story, &registration);
}

/// A CoAP message as tshark sees it.
#[derive(Debug)]
struct Message {
    at_s: f64,
    kind: String,
    id: String,
    token: String,
    /// Whether the same was seen before.
    is_again: bool,
    /// What is worth a warning, or worse.
    complaints: String,
}

fn dissect(capture: &Path) -> Vec<Message> {
    let mut tshark = child::command("tshark");
    tshark.arg("-r").arg(capture).args(["-T", "fields"]);
    for field in [
        "frame.time_epoch",
        "coap.type",
        "coap.mid",
        "coap.token",
        "coap.retransmitted",
        "_ws.malformed",
        "_ws.expert.severity",
    ] {
        tshark.args(["-e", field]);
    }
    let text = child::output(&mut tshark).unwrap();
    let messages = text.lines().map(|line| {
        let mut columns = line.split('\t').map(str::to_owned);
        let mut next = || columns.next().unwrap_or_default();
        Message {
            at_s: next().parse().unwrap(),
            kind: next(),
            id: next(),
            token: next(),
            is_again: !next().is_empty(),
            complaints: next() + &severe(&next()),
        }
    });
    messages.collect()
}

/// Those of a frame's severities that are more than a note, as that of a retransmission is.
fn severe(severities: &str) -> String {
    const NOTE: u32 = 0x0040_0000;
    let severe = severities
        .split(',')
        .filter(|severity| severity.parse().is_ok_and(|severity: u32| severity > NOTE));
    severe.collect()
}

const CONFIRMABLE: &str = "0";
const ACKNOWLEDGEMENT: &str = "2";

#[test]
fn a_device_that_is_deaf_for_two_transmissions_hears_the_third() {
    let story = Story::begin("push-deaf");
    let lab = &story.lab;
    let mut device = ForeignDevice::start(lab, Library::Aiocoap);
    let registration = device.registered();
    let session = device.authorised(&story, &registration);
    story.shell(
        Party::Device,
        "nft add table inet deaf
         nft add chain inet deaf input '{ type filter hook input priority 0; }'
         nft add rule inet deaf input udp sport 5683 drop",
    );
    let witness = Witness::start(lab, Party::Gateway, "gw-dev", &["udp", "port", "5683"]);
    child::output(&mut lab.push_ctl(&["session", "revoke", &session.id])).unwrap();
    witness.wait_for(2);
    story.shell(Party::Device, "nft delete table inet deaf");
    device.is_told_of_the_end_of(&session.id);

    let messages = dissect(&witness.keep(4));
    let kinds: Vec<_> = messages.iter().map(|message| &*message.kind).collect();
    assert_eq!(
        kinds,
        [CONFIRMABLE, CONFIRMABLE, CONFIRMABLE, ACKNOWLEDGEMENT],
        "{messages:?}"
    );
    let again: Vec<_> = messages.iter().map(|message| message.is_again).collect();
    assert_eq!(again, [false, true, true, false], "{messages:?}");
    for message in &messages {
        assert_eq!(message.complaints, "", "{messages:?}");
        assert_eq!(message.id, messages[0].id, "{messages:?}");
        assert_eq!(message.token, messages[0].token, "{messages:?}");
    }
    // The second distance is twice the first, which is 2 to 3 seconds; timers are never early, and a
    // busy machine may make them late.
    let [first, second] = [0, 1].map(|n| messages[n + 1].at_s - messages[n].at_s);
    assert!((1.99..4.0).contains(&first), "{messages:?}");
    assert!((3.99..8.0).contains(&second), "{messages:?}");
    assert!(second > 1.5 * first, "{messages:?}");
}
