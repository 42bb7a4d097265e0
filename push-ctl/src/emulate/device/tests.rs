//! A device and a gateway that answers it as the tests like.

use super::super::message::tests::request;
use super::*;
use crate::emulate::news::Fault;
use coap_lite::{
    CoapOption, MessageClass, MessageType, Packet, RequestType, option_value::OptionValueU32,
};
use push_common::wire::TriggerHeader;
use push_common::wire::{Flags, TriggerError};

const ID: &str = "00000000000000ab";
const SESSION: &str = "deadbeef00000001";
const TOKENS: [[u8; 16]; 2] = [[1; 16], [2; 16]];

struct Scene {
    device: Device,
    now: Instant,
    sent: Vec<Packet>,
    raw: Vec<Vec<u8>>,
    news: Vec<News>,
}

impl Scene {
    fn new() -> Self {
        let wishes = Wishes {
            lifetime: Some(Duration::from_secs(100)),
            app: Some(AppInstance {
                app: "mail".to_owned(),
                instance: "1".to_owned(),
            }),
            port: 7000,
        };
        let mut scene = Self {
            device: Device::new("phone".to_owned(), Arc::new(wishes), [0; 4]),
            now: Instant::now(),
            sent: Vec::new(),
            raw: Vec::new(),
            news: Vec::new(),
        };
        scene.act(Device::start);
        scene
    }

    fn act(&mut self, act: impl FnOnce(&mut Device, Instant, &mut Outcome)) {
        let mut outcome = Outcome::default();
        act(&mut self.device, self.now, &mut outcome);
        self.news.extend(outcome.news);
        for datagram in outcome.datagrams {
            if let Ok(packet) = Packet::from_bytes(&datagram) {
                self.sent.push(packet);
            }
            self.raw.push(datagram);
        }
    }

    fn receive(&mut self, datagram: &[u8]) {
        self.act(|device, now, outcome| device.receive(now, datagram, true, outcome));
    }

    fn wait(&mut self, duration: Duration) {
        self.now += duration;
        self.act(Device::tick);
    }

    /// Method and path of what the device has asked last.
    fn asked(&self) -> (RequestType, String) {
        let packet = self.sent.last().unwrap();
        let MessageClass::Request(method) = packet.header.code else {
            panic!("{packet:?}");
        };
        let path = packet.get_option(CoapOption::UriPath).unwrap();
        let segments = path
            .iter()
            .map(|it| String::from_utf8_lossy(it).into_owned());
        (method, segments.collect::<Vec<_>>().join("/"))
    }

    fn answer(&mut self, code: u8, payload: &[u8], change: impl FnOnce(&mut Packet)) {
        let asked = self.sent.last().unwrap();
        let mut packet = Packet::new();
        packet.header.set_version(1);
        packet.header.set_type(MessageType::Acknowledgement);
        packet.header.code = MessageClass::from(code);
        packet.header.message_id = asked.header.message_id;
        packet.set_token(asked.get_token().to_vec());
        packet.payload = payload.to_vec();
        change(&mut packet);
        self.receive(&packet.to_bytes().unwrap());
    }

    fn registered(mut self) -> Self {
        self.answer(0x41, &configuration(100), |_| ());
        self
    }

    fn granted(mut self) -> Self {
        self.answer(0x41, &grant(0), |_| ());
        self
    }
}

fn configuration(lifetime_s: u64) -> Vec<u8> {
    let mut encoder = minicbor::Encoder::new(Vec::new());
    encoder.map(3).unwrap();
    encoder.u8(1).unwrap().str(ID).unwrap();
    encoder.u8(2).unwrap().u64(lifetime_s).unwrap();
    encoder.u8(99).unwrap().str("of the future").unwrap();
    encoder.into_writer()
}

fn grant(generation: u8) -> Vec<u8> {
    let token = Token::from_bytes(TOKENS[usize::from(generation)]).to_text();
    let mut encoder = minicbor::Encoder::new(Vec::new());
    encoder.map(4).unwrap();
    encoder.u8(1).unwrap().str(SESSION).unwrap();
    encoder.u8(2).unwrap();
    encoder.str(str::from_utf8(&token).unwrap()).unwrap();
    encoder.u8(3).unwrap().u8(generation).unwrap();
    encoder.u8(4).unwrap().u64(100).unwrap();
    encoder.into_writer()
}

fn trigger(generation: u8, flags: Flags, sequence: u64) -> Vec<u8> {
    let key = Token::from_bytes(TOKENS[usize::from(generation)]).key();
    let id = SESSION.parse().unwrap();
    let header = TriggerHeader::sign(key, flags, generation, id, sequence, b"hello").unwrap();
    [header.as_bytes(), b"hello"].concat()
}

#[test]
fn a_device_proves_its_address_registers_and_gets_a_session() {
    let mut scene = Scene::new();
    assert_eq!(scene.asked(), (RequestType::Post, "rd".to_owned()));
    let first = scene.sent[0].header.message_id;
    scene.now += Duration::from_millis(30);
    scene.answer(0x81, b"", |packet| {
        packet.add_option(CoapOption::Unknown(252), vec![5; 8]);
    });
    let proof = scene.sent.last().unwrap();
    assert_ne!(proof.header.message_id, first);
    let echo = proof.get_first_option(CoapOption::Unknown(252));
    assert_eq!(echo, Some(&vec![5; 8]));
    scene.now += Duration::from_millis(30);
    let scene = scene.registered();
    assert_eq!(scene.asked(), (RequestType::Post, format!("rd/{ID}/s")));
    let whole = Duration::from_millis(60);
    let took =
        |news: &News| matches!(news, News::Answered(Request::Register, took) if *took == whole);
    assert!(scene.news.iter().any(took), "{:?}", scene.news);
    let scene = scene.granted();
    assert!(scene.device.is_ready() && scene.device.is_settled());
    assert!(!format!("{:?}{:?}", scene.device, scene.news).contains("0101"));
}

#[test]
fn who_never_accepts_the_proof_refuses() {
    let mut scene = Scene::new();
    for _ in 0..3 {
        scene.answer(0x81, b"", |packet| {
            packet.add_option(CoapOption::Unknown(252), vec![5; 8]);
        });
    }
    assert_eq!(scene.sent.len(), 3);
    assert!(
        scene
            .news
            .iter()
            .any(|news| matches!(news, News::Refused { .. }))
    );
    assert!(scene.device.is_settled());
}

#[test]
fn a_message_is_sent_again_ever_later_and_then_given_up() {
    let mut scene = Scene::new();
    let begin = scene.now;
    let mut waits = Vec::new();
    while scene.device.exchange.is_some() {
        let until = scene.device.deadline().unwrap();
        waits.push(until.duration_since(scene.now).as_secs());
        scene.wait(until - scene.now);
    }
    assert_eq!(waits, [2, 4, 8, 16, 32]);
    assert_eq!(scene.raw.len(), 5);
    assert!(scene.raw.iter().all(|datagram| *datagram == scene.raw[0]));
    assert!(matches!(
        scene.news.last(),
        Some(News::Unanswered(Request::Register))
    ));
    // And later it begins again.
    scene.wait(RETRY_AFTER);
    assert_eq!(
        (scene.raw.len(), scene.now - begin),
        (6, Duration::from_secs(122))
    );
}

#[test]
fn a_registration_is_refreshed_in_time() {
    let mut scene = Scene::new().registered().granted();
    let due = scene.device.deadline().unwrap() - scene.now;
    assert!((50..=75).contains(&due.as_secs()), "{due:?}");
    scene.wait(due);
    assert_eq!(scene.asked(), (RequestType::Post, format!("rd/{ID}")));
    scene.answer(0x44, &configuration(10), |_| ());
    let due = scene.device.deadline().unwrap() - scene.now;
    assert!((5..8).contains(&due.as_secs()), "{due:?}");
}

#[test]
fn a_device_that_is_not_registered_any_more_begins_anew() {
    let mut scene = Scene::new().registered().granted();
    scene.act(Device::refresh);
    scene.answer(0x83, b"not registered", |_| ());
    assert!(!scene.device.is_ready() && scene.device.is_settled());
    scene.wait(Duration::from_secs(2));
    assert_eq!(scene.asked(), (RequestType::Post, "rd".to_owned()));
}

#[test]
fn a_registration_that_was_suspended_comes_back_when_the_gateway_says_so() {
    let mut scene = Scene::new().registered().granted();
    scene.act(Device::refresh);
    scene.answer(0x83, b"suspended", |_| ());
    assert!(!scene.device.is_ready());
    let resume = request(RequestType::Post, 500, &["rd", ID], b"\xA1\x02\x18\x64");
    scene.receive(&resume);
    assert!(scene.device.registration().is_some());
    assert_eq!(scene.asked(), (RequestType::Post, format!("rd/{ID}/s")));
}

#[test]
fn it_asks_again_when_it_is_told_to() {
    let mut scene = Scene::new().registered();
    scene.answer(0x9D, b"quota", |packet| {
        packet.add_option_as(CoapOption::MaxAge, OptionValueU32(7));
    });
    let requests = scene.sent.len();
    scene.wait(Duration::from_secs(6));
    assert_eq!(scene.sent.len(), requests);
    scene.wait(Duration::from_secs(1));
    assert_eq!(scene.asked(), (RequestType::Post, format!("rd/{ID}/s")));
    let quota =
        |news: &News| matches!(news, News::Refused { code, .. } if code.to_string() == "4.29");
    assert!(scene.news.iter().any(quota));
}

#[test]
fn a_trigger_is_verified_acknowledged_and_taken_once() {
    let mut scene = Scene::new().registered().granted();
    let datagram = trigger(0, Flags::ACK_REQUESTED, 9);
    let cases: [(Vec<u8>, Option<Fault>); 6] = [
        (datagram.clone(), None),
        (datagram.clone(), Some(Fault::Replayed(9))),
        (trigger(1, Flags::NONE, 10), Some(Fault::TokenGeneration(1))),
        (
            [&datagram[..44], b"x"].concat(),
            Some(Fault::Trigger(TriggerError::Tag)),
        ),
        (
            datagram[..30].to_vec(),
            Some(Fault::Trigger(TriggerError::Truncated)),
        ),
        (trigger(0, Flags::NONE, 10), None),
    ];
    for (n, (datagram, fault)) in cases.into_iter().enumerate() {
        scene.receive(&datagram);
        match (scene.news.last().unwrap(), fault) {
            (News::BadTrigger(found), Some(expected)) => assert_eq!(*found, expected, "{n}"),
            (News::Trigger { payload, .. }, None) => assert_eq!(payload, b"hello", "{n}"),
            (news, expected) => panic!("{n}: {news:?}, not {expected:?}"),
        }
    }
    let acknowledgements = scene.raw.iter().filter(|it| it.first() == MAGIC.first());
    let [acknowledgement] = &acknowledgements.collect::<Vec<_>>()[..] else {
        panic!("one trigger asked for an acknowledgement");
    };
    let (header, _) = TriggerHeader::parse(acknowledgement).unwrap();
    let key = Token::from_bytes(TOKENS[0]).key();
    assert!(header.flags.is_acknowledgement() && header.verify(key, b"").is_ok());
}

#[test]
fn it_does_what_the_gateway_asks_and_answers_each_request_once() {
    let (post, delete) = (RequestType::Post, RequestType::Delete);
    let mut scene = Scene::new().registered().granted();
    let code = |scene: &Scene, n: usize| {
        let answer = &scene.sent[scene.sent.len() - n];
        (answer.header.message_id, u8::from(answer.header.code))
    };

    // The old token goes on to be good beside the new one.
    let rotate = request(post, 500, &["s", SESSION], b"\xA1\x01\x66rotate");
    let requests = scene.sent.len();
    scene.act(|device, now, outcome| device.receive(now, &rotate, false, outcome));
    assert_eq!(scene.sent.len(), requests, "that wasn't the gateway");
    scene.receive(&rotate);
    assert_eq!(code(&scene, 2), (500, 0x44));
    assert_eq!(scene.asked(), (post, format!("rd/{ID}/s/{SESSION}")));
    let requests = scene.sent.len();
    scene.answer(0x41, &grant(1), |_| ());
    scene.receive(&rotate);
    assert_eq!(
        scene.sent.len(),
        requests + 1,
        "the same answer, and no more"
    );
    for (n, generation) in [(1, 0), (2, 1)] {
        scene.receive(&trigger(generation, Flags::NONE, n));
        assert!(matches!(scene.news.last(), Some(News::Trigger { .. })));
    }

    let refresh = request(post, 501, &["rd", ID], b"\xA1\x01\x67refresh");
    scene.receive(&refresh);
    assert_eq!(code(&scene, 2), (501, 0x44));
    assert_eq!(scene.asked(), (post, format!("rd/{ID}")));
    scene.answer(0x44, &configuration(100), |_| ());

    scene.receive(&request(post, 502, &["rd", ID], b"\xA1\x02\x0A"));
    assert_eq!(code(&scene, 1), (502, 0x44));
    let due = scene.device.deadline().unwrap() - scene.now;
    assert!((5..8).contains(&due.as_secs()), "{due:?}");

    scene.receive(&request(post, 503, &["s", SESSION], b"\xA1\x01\x65renew"));
    assert_eq!(code(&scene, 2), (503, 0x44));
    assert_eq!(scene.asked(), (post, format!("rd/{ID}/s")));
    scene.answer(0x41, &grant(0), |_| ());

    scene.receive(&request(
        delete,
        504,
        &["s", SESSION],
        b"\xA1\x01\x67revoked",
    ));
    assert_eq!(code(&scene, 1), (504, 0x42));
    let Some(News::TornDown { cause, .. }) = scene.news.last() else {
        panic!("{:?}", scene.news.last());
    };
    assert_eq!(cause, "revoked");
    scene.receive(&request(post, 505, &["s", SESSION], b"\xA1\x01\x65renew"));
    assert_eq!(code(&scene, 1), (505, 0x84), "it has no such session");

    scene.act(Device::leave);
    assert_eq!(scene.asked(), (delete, format!("rd/{ID}")));
    scene.answer(0x42, b"", |_| ());
    assert!(scene.device.is_settled() && scene.device.registration().is_none());
}
