//! Over loopback, by a client that is nothing but coap-lite.

pub(crate) mod hostile;
mod notices;

use super::*;
use crate::controller::tests::World;
use crate::sessions::records::EndCause;
use crate::sessions::{Notice, NoticeKind};
use coap_lite::{CoapOption, MessageClass, MessageType, Packet, RequestType};
use tokio::sync::mpsc;

struct Device {
    socket: UdpSocket,
    next_message_id: u16,
    echo: Option<Vec<u8>>,
}

struct Gateway {
    world: World,
    controller: Controller,
    /// Of no realm, of `meters`, and of `cars`.
    addresses: Vec<SocketAddr>,
    notices: mpsc::Sender<Notice>,
    given_up: mpsc::UnboundedReceiver<Notice>,
    counters: NoticeCounters,
}

async fn gateway() -> Gateway {
    let world = World::default();
    let (controller, _ended) = world.start();
    let realms = [None, Some("meters"), Some("cars")];
    let listeners: Vec<_> = realms
        .into_iter()
        .map(|realm| {
            let any = ["127.0.0.1:0".parse().unwrap()];
            let mut sockets = crate::listen::udp("internal.listen", &any).unwrap();
            Listener {
                realm: realm.map(|name| name.parse().unwrap()),
                socket: sockets.remove(0),
                #[cfg(feature = "coaps")]
                keys: None,
            }
        })
        .collect();
    let addresses = listeners
        .iter()
        .map(|listener| listener.socket.local_addr().unwrap())
        .collect();
    let (notices, receiver) = mpsc::channel(100);
    let (unanswered, given_up) = mpsc::unbounded_channel();
    let counters = NoticeCounters::default();
    let outgoing = Outgoing {
        notices: receiver,
        unanswered: Box::new(move |notice| drop(unanswered.send(notice))),
        counters: counters.clone(),
    };
    let backoff = Backoff {
        ack_timeout: Duration::from_millis(50),
        max_retransmit: 4,
    };
    tokio::spawn(serve_patiently(
        listeners,
        controller.clone(),
        false,
        outgoing,
        backoff,
    ));
    let app = controller.apply(|sessions, now| {
        sessions.add_app(
            now,
            "mail".parse().unwrap(),
            vec![crate::controller::tests::app_key().credential(now)],
            crate::dataplane::Policy::default(),
        )
    });
    app.await.unwrap().unwrap();
    Gateway {
        world,
        controller,
        addresses,
        notices,
        given_up,
        counters,
    }
}

impl Gateway {
    /// A device at 127.0.0.`host`.
    async fn device(&self, host: u8) -> Device {
        let socket = UdpSocket::bind(SocketAddr::from(([127, 0, 0, host], 0)))
            .await
            .unwrap();
        socket.connect(self.addresses[0]).await.unwrap();
        Device {
            socket,
            next_message_id: 1,
            echo: None,
        }
    }
}

impl Device {
    fn message(&mut self, method: RequestType, path: &str) -> Packet {
        let mut packet = Packet::new();
        packet.header.set_type(MessageType::Confirmable);
        packet.header.code = MessageClass::Request(method);
        packet.header.message_id = self.next_message_id;
        self.next_message_id += 1;
        packet.set_token(vec![0xA, 0xB]);
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        for segment in path.split('/') {
            packet.add_option(CoapOption::UriPath, segment.into());
        }
        for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
            packet.add_option(CoapOption::UriQuery, parameter.into());
        }
        packet.add_option(CoapOption::Accept, vec![]);
        if let Some(echo) = self.echo.take() {
            packet.add_option(CoapOption::Unknown(252), echo);
        }
        packet
    }

    async fn exchange(&self, packet: &Packet) -> Packet {
        self.exchange_bytes(&packet.to_bytes().unwrap()).await
    }

    async fn exchange_bytes(&self, datagram: &[u8]) -> Packet {
        self.socket.send(datagram).await.unwrap();
        let mut buffer = [0; 2000];
        let received = tokio::time::timeout(Duration::from_secs(20), self.socket.recv(&mut buffer));
        let len = received.await.expect("an answer").unwrap();
        Packet::from_bytes(&buffer[..len]).unwrap()
    }

    /// Asks, and returns the code and the text of the answer.
    async fn ask(&mut self, method: RequestType, path: &str) -> (String, String) {
        let packet = self.message(method, path);
        let answer = self.exchange(&packet).await;
        assert_eq!(answer.get_token(), [0xA, 0xB]);
        assert_eq!(answer.header.message_id, packet.header.message_id);
        assert_eq!(answer.header.get_type(), MessageType::Acknowledgement);
        self.echo = answer.get_first_option(CoapOption::Unknown(252)).cloned();
        (
            answer.header.get_code(),
            String::from_utf8(answer.payload).unwrap(),
        )
    }

    /// Asks, and once more with the Echo option if that is asked for.
    async fn prove(&mut self, method: RequestType, path: &str) -> (String, String) {
        let (code, _) = self.ask(method, path).await;
        assert_eq!(code, "4.01");
        assert!(self.echo.is_some());
        self.ask(method, path).await
    }
}

fn value(text: &str, key: &str) -> String {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(&format!("{key}=")));
    line.unwrap_or_else(|| panic!("no {key} in {text}"))
        .to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_s_whole_life() {
    let gateway = gateway().await;
    let mut device = gateway.device(2).await;
    let post = RequestType::Post;
    let delete = RequestType::Delete;

    let (code, text) = device.prove(post, "rd?ep=phone&lt=600").await;
    assert_eq!(
        (code.as_str(), value(&text, "lifetime_s").as_str()),
        ("2.01", "600")
    );
    assert_eq!(
        value(&text, "trigger_source"),
        gateway.addresses[0].to_string()
    );
    assert_eq!(value(&text, "max_trigger_bytes"), "1240");
    let id = value(&text, "id");

    let (code, text) = device
        .ask(post, &format!("rd/{id}/s?app=mail&inst=a&port=7000"))
        .await;
    assert_eq!(code, "2.01", "{text}");
    assert_eq!(value(&text, "token").len(), 36);
    assert_eq!(value(&text, "token_generation"), "0");
    let session = value(&text, "session_id");

    let (code, text) = device
        .ask(post, &format!("rd/{id}/s?app=chat&inst=a&port=7000"))
        .await;
    assert_eq!(
        (code.as_str(), text.as_str()),
        ("4.04", "no such application")
    );
    let (code, _) = device.ask(post, &format!("rd/{id}?lt=1200")).await;
    assert_eq!(code, "2.04");

    let mut elsewhere = gateway.device(3).await;
    let (code, _) = elsewhere.ask(delete, &format!("rd/{id}")).await;
    assert_eq!(code, "4.03");
    let (code, _) = elsewhere.prove(post, "rd?ep=phone").await;
    assert_eq!(code, "4.03");
    let (code, _) = elsewhere.prove(post, &format!("rd/{id}")).await;
    assert_eq!(code, "2.04");
    let (code, text) = device.ask(delete, &format!("rd/{id}/s/{session}")).await;
    // Not more of it than fits into the request: that may be anybody's.
    let words = "registered from another address; refresh first";
    assert!(code == "4.03" && words.starts_with(&text), "{code} {text}");
    let (code, _) = elsewhere.ask(delete, &format!("rd/{id}/s/{session}")).await;
    assert_eq!(code, "2.02");
    let (code, _) = elsewhere.ask(delete, &format!("rd/{id}/s/{session}")).await;
    assert_eq!(code, "4.04");

    let (code, _) = elsewhere.ask(delete, &format!("rd/{id}")).await;
    assert_eq!(code, "2.02");
    let (code, text) = elsewhere
        .ask(post, &format!("rd/{id}/s?app=mail&inst=a&port=7000"))
        .await;
    assert_eq!(code, "4.03");
    let words = "deregistered; register again: not in the first operative state";
    assert!(words.starts_with(&text) && text.len() > 30, "{text}");
    let (code, _) = elsewhere
        .ask(post, "rd/0123456789abcdef/s?app=mail&inst=a&port=7000")
        .await;
    assert_eq!(code, "4.03");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_remembered_of_who_has_not_proved_their_address() {
    let gateway = gateway().await;
    let mut device = gateway.device(2).await;
    for n in 0..10 {
        let packet = device.message(RequestType::Post, &format!("rd?ep=d{n}"));
        let answer = device.exchange(&packet).await;
        assert!(
            answer.to_bytes().unwrap().len() <= packet.to_bytes().unwrap().len() + 4,
            "no amplification"
        );
    }
    let (code, _) = device.prove(RequestType::Post, "rd?ep=phone").await;
    assert_eq!(code, "2.01");
    // Another one's proof is none.
    let packet = device.message(RequestType::Post, "rd?ep=other");
    let stolen = device
        .exchange(&packet)
        .await
        .get_first_option(CoapOption::Unknown(252))
        .cloned();
    let mut thief = gateway.device(3).await;
    thief.echo = stolen;
    assert_eq!(thief.ask(RequestType::Post, "rd?ep=other").await.0, "4.01");
    assert_eq!(
        gateway
            .controller
            .observe(|view| view.sessions.terminals().len())
            .await
            .unwrap(),
        1
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retransmission_is_answered_as_before_and_not_carried_out_again() {
    let gateway = gateway().await;
    let mut device = gateway.device(2).await;
    let (_, text) = device.prove(RequestType::Post, "rd?ep=phone").await;
    let packet = device.message(
        RequestType::Post,
        &format!("rd/{}/s?app=mail&inst=a&port=7000", value(&text, "id")),
    );
    let first = device.exchange(&packet).await;
    assert_eq!(first.header.get_code(), "2.01");
    let commits = gateway.world.state().commits;
    for _ in 0..3 {
        assert_eq!(device.exchange(&packet).await.to_bytes(), first.to_bytes());
    }
    assert_eq!(gateway.world.state().commits, commits);
    let again = device.message(
        RequestType::Post,
        &format!("rd/{}/s?app=mail&inst=a&port=7000", value(&text, "id")),
    );
    assert_ne!(device.exchange(&again).await.payload, first.payload);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_answers_are_cbor_unless_asked_otherwise() {
    let gateway = gateway().await;
    let mut device = gateway.device(2).await;
    device.ask(RequestType::Post, "rd?ep=phone").await;
    let mut packet = device.message(RequestType::Post, "rd?ep=phone");
    packet.clear_option(CoapOption::Accept);
    let answer = device.exchange(&packet).await;
    assert_eq!(
        answer.get_content_format(),
        Some(ContentFormat::ApplicationCBOR)
    );
    let mut cbor = minicbor::Decoder::new(&answer.payload);
    assert_eq!(cbor.map().unwrap(), Some(4));
    assert_eq!((cbor.u8().unwrap(), cbor.str().unwrap().len()), (1, 16));
    assert_eq!((cbor.u8().unwrap(), cbor.u64().unwrap()), (2, 3600));
    assert_eq!(
        (cbor.u8().unwrap(), cbor.str().unwrap().to_owned()),
        (3, gateway.addresses[0].to_string())
    );
    assert_eq!((cbor.u8().unwrap(), cbor.u64().unwrap()), (4, 1240));
    let location: Vec<_> = answer
        .get_option(CoapOption::LocationPath)
        .unwrap()
        .iter()
        .collect();
    assert_eq!((location.len(), location[0].as_slice()), (2, &b"rd"[..]));
}

#[tokio::test(flavor = "multi_thread")]
async fn pings_and_nonsense_are_reset_and_discovery_works() {
    let gateway = gateway().await;
    let mut device = gateway.device(2).await;
    for nonsense in [&[0x40, 0, 0x12, 0x34][..], &[0x40, 0x02, 0x12, 0x34, 0xFF]] {
        let answer = device.exchange_bytes(nonsense).await;
        assert_eq!(answer.header.get_type(), MessageType::Reset);
        assert_eq!(answer.header.message_id, 0x1234);
    }
    let mut packet = device.message(RequestType::Get, ".well-known/core");
    packet.clear_option(CoapOption::Accept);
    let challenge = device.exchange(&packet).await;
    assert_eq!(challenge.header.get_code(), "4.01");
    let echo = challenge.get_first_option(CoapOption::Unknown(252));
    packet.add_option(CoapOption::Unknown(252), echo.unwrap().clone());
    let answer = device.exchange(&packet).await;
    assert_eq!(answer.payload, b"</rd>;rt=core.rd;ct=\"60 0\"");

    packet.header.set_type(MessageType::NonConfirmable);
    let answer = device.exchange(&packet).await;
    assert_eq!(answer.header.get_type(), MessageType::NonConfirmable);
    // An unknown critical option makes a Non-confirmable request be ignored; the ping after it is not.
    packet.add_option(CoapOption::IfMatch, vec![]);
    device
        .socket
        .send(&packet.to_bytes().unwrap())
        .await
        .unwrap();
    let answer = device.exchange_bytes(&[0x40, 0, 0x56, 0x78]).await;
    assert_eq!(answer.header.message_id, 0x5678);
}

/// One address and port that is a device of each realm in turn.
#[tokio::test(flavor = "multi_thread")]
async fn the_same_address_in_two_realms_is_two_devices() {
    let gateway = gateway().await;
    let mut device = gateway.device(2).await;
    let post = RequestType::Post;
    let mut registrations = Vec::new();
    for (n, &address) in gateway.addresses.iter().enumerate() {
        device.socket.connect(address).await.unwrap();
        // The same message ids everywhere: what is remembered of one realm answers for no other.
        device.next_message_id = 1;
        let (code, text) = device.prove(post, &format!("rd?ep=phone-{n}")).await;
        assert_eq!(code, "2.01", "{text}");
        assert_eq!(value(&text, "trigger_source"), address.to_string());
        registrations.push(value(&text, "id"));
    }
    let terminals = gateway.controller.observe(|view| {
        let mut paths: Vec<_> = view
            .sessions
            .terminals()
            .map(|terminal| {
                let realm = terminal.path.realm.as_ref().map(ToString::to_string);
                (terminal.endpoint.to_string(), realm, terminal.path.device)
            })
            .collect();
        paths.sort();
        paths
    });
    let expected = [None, Some("meters"), Some("cars")];
    let expected = expected.into_iter().enumerate().map(|(n, realm)| {
        let device = [127, 0, 0, 2].into();
        (format!("phone-{n}"), realm.map(str::to_owned), device)
    });
    assert_eq!(terminals.await.unwrap(), expected.collect::<Vec<_>>());

    // Here it is in `cars`, and asks for what it has in `meters`.
    let of_meters = &registrations[1];
    let asked = format!("rd/{of_meters}/s?app=mail&inst=a&port=7000");
    let (code, text) = device.ask(post, &asked).await;
    assert_eq!(
        (code.as_str(), text.as_str()),
        ("4.03", "registered from another address; refresh first")
    );
    let (code, _) = device.prove(post, "rd?ep=phone-1").await;
    assert_eq!(code, "4.03");
    // A proof of the one address is none of the other.
    let (code, _) = device.ask(post, "rd?ep=other").await;
    assert_eq!(code, "4.01");
    device.socket.connect(gateway.addresses[1]).await.unwrap();
    let (code, _) = device.ask(post, "rd?ep=other").await;
    assert_eq!(code, "4.01");
    // But who proves to be there moves there.
    device.socket.connect(gateway.addresses[2]).await.unwrap();
    device.echo = None;
    let (code, _) = device.prove(post, &format!("rd/{of_meters}")).await;
    assert_eq!(code, "2.04");
    let (code, _) = device.ask(post, &asked).await;
    assert_eq!(code, "2.01");
}
