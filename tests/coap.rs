//! The internal interface in detail, by a push client that speaks CoAP by hand.

use crate::provisioning::session_ids;
use crate::story::{APP, PUSH_CTL, Story, outside, socket_address};
use coap_lite::{
    CoapOption, ContentFormat, MessageClass, MessageType, Packet, RequestType, ResponseType,
};
use serde_json::json;
use std::net::UdpSocket;
use std::path::Path;
use std::time::{Duration, Instant};
use xtask::lab::{DEVICE, GATEWAY_INSIDE, Lab, Options, Party};

const LIMIT: Duration = Duration::from_secs(20);

/// A push client that speaks CoAP by hand, to do what libcoap's client doesn't.
pub(crate) struct RawDevice<'a> {
    socket: UdpSocket,
    lab: &'a Lab,
}

impl<'a> RawDevice<'a> {
    pub(crate) fn new(lab: &'a Lab, address: &str) -> Self {
        let socket = lab
            .udp_socket(Party::Device, socket_address(address, 0))
            .unwrap();
        socket
            .connect(socket_address(GATEWAY_INSIDE[0], 5683))
            .unwrap();
        socket.set_read_timeout(Some(LIMIT)).unwrap();
        Self { socket, lab }
    }

    pub(crate) fn post(
        message_id: u16,
        path: &[&str],
        query: &[&str],
        echo: Option<&[u8]>,
    ) -> Packet {
        let mut packet = Packet::new();
        packet.header.set_version(1);
        packet.header.set_type(MessageType::Confirmable);
        packet.header.code = MessageClass::Request(RequestType::Post);
        packet.header.message_id = message_id;
        packet.set_token(vec![7]);
        for segment in path {
            packet.add_option(CoapOption::UriPath, segment.as_bytes().to_vec());
        }
        for parameter in query {
            packet.add_option(CoapOption::UriQuery, parameter.as_bytes().to_vec());
        }
        if let Some(echo) = echo {
            packet.add_option(CoapOption::Unknown(252), echo.to_vec());
        }
        packet
    }

    /// Sends, and gives the bytes of the answer.
    pub(crate) fn exchange(&self, datagram: &[u8]) -> Vec<u8> {
        self.socket.send(datagram).unwrap();
        let mut answer = vec![0; 2048];
        let length = self
            .socket
            .recv(&mut answer)
            .unwrap_or_else(|error| panic!("{error}; {}", self.lab.log()));
        answer.truncate(length);
        answer
    }

    pub(crate) fn ask(&self, packet: &Packet) -> Packet {
        Packet::from_bytes(&self.exchange(&packet.to_bytes().unwrap())).unwrap()
    }
}

pub(crate) fn echo_of(answer: &Packet) -> Vec<u8> {
    assert_eq!(
        answer.header.code,
        MessageClass::Response(ResponseType::Unauthorized)
    );
    answer
        .get_option(CoapOption::Unknown(252))
        .unwrap()
        .front()
        .unwrap()
        .clone()
}

pub(crate) fn location(answer: &Packet) -> Vec<String> {
    assert_eq!(
        answer.header.code,
        MessageClass::Response(ResponseType::Created)
    );
    let segments = answer.get_option(CoapOption::LocationPath).unwrap();
    segments
        .iter()
        .map(|segment| String::from_utf8(segment.clone()).unwrap())
        .collect()
}

#[test]
fn a_retransmitted_request_is_answered_again_but_not_carried_out_twice() {
    let story = Story::begin("push-prov-7");
    let device = RawDevice::new(&story.lab, DEVICE[0]);
    let challenge = device.ask(&RawDevice::post(1, &["rd"], &["ep=raw"], None));
    let echo = echo_of(&challenge);
    let registered = device.ask(&RawDevice::post(2, &["rd"], &["ep=raw"], Some(&echo)));
    let [_, registration] = &location(&registered)[..] else {
        panic!()
    };
    assert_eq!(
        registered.get_content_format(),
        Some(ContentFormat::ApplicationCBOR)
    );

    let app = format!("app={APP}");
    let query = [&*app, "inst=one", "port=7000"];
    let request = RawDevice::post(3, &["rd", registration, "s"], &query, None)
        .to_bytes()
        .unwrap();
    let first = device.exchange(&request);
    assert_eq!(
        device.exchange(&request),
        first,
        "the retransmission has the same session and token"
    );
    assert_eq!(session_ids(&story.lab, "requested").len(), 1);
    let anew = RawDevice::post(4, &["rd", registration, "s"], &query, None)
        .to_bytes()
        .unwrap();
    assert_ne!(
        device.exchange(&anew),
        first,
        "another message id is another request"
    );
}

#[test]
fn an_address_has_to_be_proved_and_sessions_follow_a_device_that_moves() {
    let story = Story::with(&Options {
        device_addresses: vec!["10.64.0.3/16".into()],
        ..Options::new("push-prov-8", Path::new(PUSH_CTL))
    });
    let lab = &story.lab;
    let (here, there) = (
        RawDevice::new(lab, DEVICE[0]),
        RawDevice::new(lab, "10.64.0.3"),
    );
    let request = RawDevice::post(1, &["rd"], &["ep=mover"], None);
    let sent = request.to_bytes().unwrap();
    let challenge = here.exchange(&sent);
    assert!(
        challenge.len() <= sent.len(),
        "{} bytes for {}",
        challenge.len(),
        sent.len()
    );
    let echo = echo_of(&Packet::from_bytes(&challenge).unwrap());
    assert_eq!(
        lab.push_ctl_json(&["terminal", "list"]).unwrap(),
        json!([]),
        "something was remembered"
    );
    let elsewhere = there.ask(&RawDevice::post(1, &["rd"], &["ep=mover"], Some(&echo)));
    let moved_echo = echo_of(&elsewhere); // the proof of one address is none of another

    let registered = here.ask(&RawDevice::post(2, &["rd"], &["ep=mover"], Some(&echo)));
    let registration = location(&registered)[1].clone();
    let session = story.requested(0, &registration, "one", 7000);
    story
        .clients()
        .authorise(&outside(0), &story.app_key, &session)
        .unwrap();

    let unproven = there.ask(&RawDevice::post(2, &["rd", &registration], &[], None));
    assert_eq!(
        unproven.header.code,
        MessageClass::Response(ResponseType::Unauthorized)
    );
    let shown = || {
        lab.push_ctl_json(&["session", "show", &session.id])
            .unwrap()["device"]
            .clone()
    };
    assert_eq!(shown(), "10.64.0.2:7000");
    let moved = there.ask(&RawDevice::post(
        3,
        &["rd", &registration],
        &[],
        Some(&moved_echo),
    ));
    assert_eq!(
        moved.header.code,
        MessageClass::Response(ResponseType::Changed)
    );
    assert_eq!(shown(), "10.64.0.3:7000");

    let device = lab
        .udp_socket(Party::Device, socket_address("10.64.0.3", 7000))
        .unwrap();
    device.set_read_timeout(Some(LIMIT)).unwrap();
    let gateway = format!("{}:5050", outside(0));
    let mut send = story
        .clients()
        .send_trigger(Path::new(PUSH_CTL), &gateway, &session, "moved");
    xtask::child::output(&mut send).unwrap();
    let mut datagram = [0; 2048];
    let length = device.recv(&mut datagram).unwrap();
    assert!(datagram[..length].ends_with(b"moved"));
}

#[test]
fn what_is_not_coap_is_survived() {
    let story = Story::begin("push-prov-9");
    let device = RawDevice::new(&story.lab, DEVICE[0]);
    let ping = [0x40, 0, 0x12, 0x34];
    assert_eq!(
        device.exchange(&ping),
        [0x70, 0, 0x12, 0x34],
        "a ping is answered by a Reset"
    );
    let broken = [0x40, 2, 0x12, 0x35, 0xFF];
    assert_eq!(
        device.exchange(&broken),
        [0x70, 0, 0x12, 0x35],
        "a payload marker without payload"
    );
    let good = RawDevice::post(9, &["rd"], &["ep=x"], None)
        .to_bytes()
        .unwrap();
    let mut noise: u32 = 1;
    for round in 0..20_000_usize {
        noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let mut datagram = good.clone();
        let at = round % datagram.len();
        datagram[at] ^= (noise >> 24) as u8;
        datagram.truncate(1 + (noise as usize >> 8) % datagram.len());
        device.socket.send(&datagram).unwrap();
    }
    // Some of this, and a ping too, may find the socket full. What was answered meanwhile has other
    // message ids.
    let short = Duration::from_millis(200);
    device.socket.set_read_timeout(Some(short)).unwrap();
    let (begin, mut asked) = (Instant::now(), None::<Instant>);
    let mut answer = [0; 2048];
    loop {
        if asked.is_none_or(|at| at.elapsed() > short) {
            device.socket.send(&[0x40, 0, 0xAB, 0xCD]).unwrap();
            asked = Some(Instant::now());
        }
        let length = device.socket.recv(&mut answer).unwrap_or(0);
        if answer[..length] == [0x70, 0, 0xAB, 0xCD] {
            break;
        }
        assert!(begin.elapsed() < LIMIT, "no answer to a ping any more");
    }
    assert!(story.lab.push_ctl_json(&["status"]).is_ok());
}
