//! What the gateway tells devices of its own accord.

use super::*;

impl Gateway {
    async fn tell(&self, to: SocketAddr, socket: usize, kind: NoticeKind) {
        let realm = [None, Some("meters"), Some("cars")][socket];
        let path = Path {
            realm: realm.map(|name| name.parse().unwrap()),
            device: to.ip(),
            gateway: self.addresses[socket],
        };
        self.notices.send(Notice { to, path, kind }).await.unwrap();
    }

    async fn until(&self, condition: impl Fn(NoticeCounts) -> bool) {
        let begin = Instant::now();
        while !condition(self.counters.read()) {
            let counts = self.counters.read();
            assert!(begin.elapsed() < Duration::from_secs(20), "{counts:?}");
            tokio::task::yield_now().await;
        }
    }
}

/// Receives one message, of anybody.
async fn hear(socket: &UdpSocket) -> (Packet, SocketAddr) {
    let mut buffer = [0; 2000];
    let received = tokio::time::timeout(Duration::from_secs(20), socket.recv_from(&mut buffer));
    let (len, from) = received.await.expect("a message").unwrap();
    (Packet::from_bytes(&buffer[..len]).unwrap(), from)
}

fn path_of(packet: &Packet) -> String {
    let segments = packet.get_option(CoapOption::UriPath).unwrap().iter();
    let segments: Vec<_> = segments
        .map(|segment| String::from_utf8_lossy(segment))
        .collect();
    segments.join("/")
}

fn kinds(registration: RegistrationId) -> [(NoticeKind, RequestType, String, &'static [u8]); 6] {
    let session = "00000001000000ab".parse().unwrap();
    let of_session = "s/00000001000000ab".to_owned();
    let of_registration = format!("rd/{registration}");
    let post = RequestType::Post;
    let within = Some(Duration::from_secs(60));
    let cause = EndCause::Revoked;
    [
        (
            NoticeKind::Teardown { session, cause },
            RequestType::Delete,
            of_session.clone(),
            b"\xA1\x01\x67revoked",
        ),
        (
            NoticeKind::Rotate { session, within },
            post,
            of_session.clone(),
            b"\xA2\x01\x66rotate\x02\x18\x3C",
        ),
        (
            NoticeKind::Rotate {
                session,
                within: None,
            },
            post,
            of_session.clone(),
            b"\xA1\x01\x66rotate",
        ),
        (
            NoticeKind::Renew { session },
            post,
            of_session,
            b"\xA1\x01\x65renew",
        ),
        (
            NoticeKind::Refresh { registration },
            post,
            of_registration.clone(),
            b"\xA1\x01\x67refresh",
        ),
        (
            NoticeKind::Configuration {
                registration,
                lifetime: Duration::from_secs(600),
            },
            post,
            of_registration,
            b"\xA3\x02\x19\x02\x58\x03",
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_is_told_from_where_it_registered() {
    let gateway = gateway().await;
    let registration = RegistrationId::from_u64(7);
    let mut tokens = std::collections::BTreeSet::new();
    for socket in 0..gateway.addresses.len() {
        let device = UdpSocket::bind("127.0.0.2:0").await.unwrap();
        let to = device.local_addr().unwrap();
        let mut message_ids = Vec::new();
        for (kind, method, path, payload) in kinds(registration) {
            gateway.tell(to, socket, kind).await;
            let (request, from) = hear(&device).await;
            assert_eq!(from, gateway.addresses[socket], "{kind:?}");
            assert_eq!(request.header.get_type(), MessageType::Confirmable);
            assert_eq!(request.header.code, MessageClass::Request(method));
            assert_eq!(path_of(&request), path);
            assert_eq!(
                request.get_content_format(),
                Some(ContentFormat::ApplicationCBOR)
            );
            assert!(request.payload.starts_with(payload), "{kind:?}");
            if let NoticeKind::Configuration { .. } = kind {
                let rest = &request.payload[payload.len()..];
                let source = gateway.addresses[socket].to_string();
                let mut decoder = minicbor::Decoder::new(rest);
                assert_eq!(decoder.str().unwrap(), source);
                assert_eq!((decoder.u8().unwrap(), decoder.u16().unwrap()), (4, 1240));
            } else {
                assert_eq!(request.payload, payload);
            }
            assert!(tokens.insert(request.get_token().to_vec()), "a token twice");
            message_ids.push(request.header.message_id);
            let mut answer = Packet::new();
            answer.header.set_type(MessageType::Acknowledgement);
            answer.header.code = MessageClass::Response(ResponseType::Changed);
            answer.header.message_id = request.header.message_id;
            answer.set_token(request.get_token().to_vec());
            device
                .send_to(&answer.to_bytes().unwrap(), from)
                .await
                .unwrap();
        }
        message_ids.dedup();
        assert_eq!(message_ids.len(), 6);
    }
    gateway.until(|counts| counts.taken == 18).await;
    assert_eq!(gateway.counters.read().sent, 18);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_is_deaf_at_first_hears_the_same_message_again() {
    let gateway = gateway().await;
    let device = UdpSocket::bind("127.0.0.2:0").await.unwrap();
    let to = device.local_addr().unwrap();
    let registration = RegistrationId::from_u64(7);
    gateway
        .tell(to, 0, NoticeKind::Refresh { registration })
        .await;
    let (first, from) = hear(&device).await;
    let (second, _) = hear(&device).await;
    let (third, _) = hear(&device).await;
    assert_eq!(first.to_bytes(), second.to_bytes());
    assert_eq!(first.to_bytes(), third.to_bytes());
    let [high, low] = third.header.message_id.to_be_bytes();
    let acknowledgement = [0x60, 0, high, low];
    // Somebody else's acknowledgement is none; the device's own is, and the response that follows is known.
    let other = UdpSocket::bind("127.0.0.3:0").await.unwrap();
    other.send_to(&acknowledgement, from).await.unwrap();
    let (fourth, _) = hear(&device).await;
    assert_eq!(first.to_bytes(), fourth.to_bytes());
    device.send_to(&acknowledgement, from).await.unwrap();
    gateway.until(|counts| counts.taken == 1).await;
    let counts = gateway.counters.read();
    assert!((3..=4).contains(&counts.retransmitted), "{counts:?}");
    let mut response = Packet::new();
    response.header.set_type(MessageType::Confirmable);
    response.header.code = MessageClass::Response(ResponseType::Changed);
    response.header.message_id = 0x55AA;
    response.set_token(third.get_token().to_vec());
    for (token, answer) in [
        (third.get_token().to_vec(), MessageType::Acknowledgement),
        (vec![1, 2, 3], MessageType::Reset),
    ] {
        response.set_token(token);
        device
            .send_to(&response.to_bytes().unwrap(), from)
            .await
            .unwrap();
        let (answered, _) = hear(&device).await;
        assert_eq!(answered.header.get_type(), answer);
        assert_eq!(answered.header.message_id, 0x55AA);
    }
    assert_eq!(gateway.counters.read(), counts);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_never_answered_is_told_of_and_so_is_what_has_no_way_out() {
    let mut gateway = gateway().await;
    let device = UdpSocket::bind("127.0.0.2:0").await.unwrap();
    let to = device.local_addr().unwrap();
    let registration = RegistrationId::from_u64(7);
    let kind = NoticeKind::Refresh { registration };
    gateway.tell(to, 0, kind).await;
    let given_up = tokio::time::timeout(Duration::from_secs(20), gateway.given_up.recv());
    let given_up = given_up.await.expect("it is given up").unwrap();
    assert_eq!((given_up.to, given_up.kind), (to, kind));
    for _transmission in 0..5 {
        hear(&device).await;
    }
    let unanswered = NoticeCounts {
        sent: 1,
        retransmitted: 4,
        unanswered: 1,
        ..NoticeCounts::default()
    };
    assert_eq!(gateway.counters.read(), unanswered);

    let path = Path {
        realm: None,
        device: to.ip(),
        gateway: "127.0.0.9:5683".parse().unwrap(),
    };
    gateway
        .notices
        .send(Notice { to, path, kind })
        .await
        .unwrap();
    let homeless = NoticeCounts {
        dropped: 1,
        ..unanswered
    };
    gateway.until(|counts| counts == homeless).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_asks_while_it_is_asked() {
    let gateway = gateway().await;
    let mut device = gateway.device(2).await;
    let (_, text) = device.prove(RequestType::Post, "rd?ep=phone").await;
    let registration: RegistrationId = value(&text, "id").parse().unwrap();
    let to = device.socket.local_addr().unwrap();
    gateway
        .tell(to, 0, NoticeKind::Refresh { registration })
        .await;
    let (asked, from) = hear(&device.socket).await;
    assert_eq!(path_of(&asked), format!("rd/{registration}"));
    let refresh = device.message(RequestType::Post, &format!("rd/{registration}"));
    device
        .socket
        .send(&refresh.to_bytes().unwrap())
        .await
        .unwrap();
    loop {
        // The gateway's request may come again meanwhile.
        let (message, _) = hear(&device.socket).await;
        if message.header.get_type() == MessageType::Acknowledgement {
            assert_eq!(message.header.get_code(), "2.04");
            break;
        }
    }
    let [high, low] = asked.header.message_id.to_be_bytes();
    device
        .socket
        .send_to(&[0x70, 0, high, low], from)
        .await
        .unwrap();
    gateway.until(|counts| counts.refused == 1).await;
}
