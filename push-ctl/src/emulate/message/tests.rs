use super::*;

/// A request of the gateway's.
pub(in crate::emulate) fn request(
    method: RequestType,
    message_id: u16,
    path: &[&str],
    payload: &[u8],
) -> Vec<u8> {
    let mut packet = Packet::new();
    packet.header.set_version(1);
    packet.header.set_type(MessageType::Confirmable);
    packet.header.code = MessageClass::Request(method);
    packet.header.message_id = message_id;
    packet.set_token(vec![9]);
    for segment in path {
        packet.add_option(CoapOption::UriPath, segment.as_bytes().to_vec());
    }
    packet.payload = payload.to_vec();
    packet.to_bytes_unlimited().unwrap()
}

fn ordered(datagram: &[u8]) -> Result<Order, ResponseType> {
    match read(datagram) {
        Incoming::Asked(asked) => asked.order,
        other => panic!("{other:?}"),
    }
}

const SESSION: &str = "deadbeef00000001";
const REGISTRATION: &str = "00000000000000ab";

#[test]
fn what_the_gateway_asks_is_understood() {
    let (post, delete) = (RequestType::Post, RequestType::Delete);
    let session: SessionId = SESSION.parse().unwrap();
    let id: RegistrationId = REGISTRATION.parse().unwrap();
    let cases: [(RequestType, [&str; 2], &[u8], Order); 7] = [
        (
            delete,
            ["s", SESSION],
            b"\xA1\x01\x67revoked",
            Order::Teardown {
                session,
                cause: "revoked".to_owned(),
            },
        ),
        (
            post,
            ["s", SESSION],
            b"\xA2\x01\x66rotate\x02\x18\x3C",
            Order::Rotate {
                session,
                within: Some(Duration::from_mins(1)),
            },
        ),
        (
            post,
            ["s", SESSION],
            b"\xA1\x01\x66rotate",
            Order::Rotate {
                session,
                within: None,
            },
        ),
        (
            post,
            ["s", SESSION],
            b"\xA1\x01\x65renew",
            Order::Renew { session },
        ),
        (
            post,
            ["rd", REGISTRATION],
            b"\xA1\x01\x67refresh",
            Order::Refresh { id },
        ),
        (
            post,
            ["rd", REGISTRATION],
            b"\xA3\x02\x18\x3C\x03\x61x\x04\x01",
            Order::Configure {
                id,
                lifetime: Some(Duration::from_mins(1)),
            },
        ),
        // As the answer to a registration has it, and with a key of the future.
        (
            post,
            ["rd", REGISTRATION],
            b"\xA3\x01\x70\x30\x30\x30\x30\x30\x30\x30\x30\x30\x30\x30\x30\x30\x30ab\x02\x01\x18\x63\xF6",
            Order::Configure {
                id,
                lifetime: Some(Duration::from_secs(1)),
            },
        ),
    ];
    for (method, path, payload, expected) in cases {
        assert_eq!(ordered(&request(method, 1, &path, payload)), Ok(expected));
    }
}

#[test]
fn what_is_no_order_has_its_code() {
    let (post, get) = (RequestType::Post, RequestType::Get);
    let cases: [(RequestType, &[&str], &[u8], ResponseType); 6] = [
        (post, &["elsewhere"], b"", ResponseType::NotFound),
        (post, &["s", "xyz"], b"", ResponseType::NotFound),
        (get, &["s", SESSION], b"", ResponseType::MethodNotAllowed),
        (post, &["s", SESSION], b"", ResponseType::BadRequest),
        (post, &["s", SESSION], b"\xA1\x01", ResponseType::BadRequest),
        (
            post,
            &["s", SESSION],
            b"\xA1\x01\x63bah",
            ResponseType::BadRequest,
        ),
    ];
    for (method, path, payload, code) in cases {
        let datagram = request(method, 1, path, payload);
        assert_eq!(ordered(&datagram), Err(code), "{path:?} {payload:?}");
    }
}

/// A message of the guide's worked example.
fn example(name: &str) -> Vec<u8> {
    let guide = include_str!("../../cli/topics/registration.md");
    let (_, example) = guide.split_once("## Worked example").unwrap();
    let mut lines = example.lines();
    let message = lines.find_map(|line| line.strip_prefix(&format!("{name} ")));
    hex::decode(message.unwrap().trim()).unwrap()
}

fn example_answer(name: &str) -> Answer {
    match read(&example(name)) {
        Incoming::Answer(answer) => answer,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_worked_example_of_the_guide_is_right() {
    let id: RegistrationId = REGISTRATION.parse().unwrap();
    let register = Wish::Register {
        endpoint: "phone",
        lifetime: Some(Duration::from_hours(1)),
    };
    assert_eq!(register.to_bytes(1, None), example("register"));
    let challenge = example_answer("challenge");
    assert_eq!(
        (challenge.message_id, challenge.code),
        (1, Code::UNAUTHORIZED)
    );
    let echo = challenge.echo.unwrap();
    assert_eq!(register.to_bytes(2, Some(&echo)), example("proof"));
    let registered = example_answer("registered");
    let expected = Configuration {
        id: REGISTRATION.to_owned(),
        lifetime_s: 3600,
    };
    assert!(registered.code.is_success());
    assert_eq!(registered.configuration(), Some(expected));
    let session = Wish::Session {
        id,
        app: "mail",
        instance: "1",
        port: 6000,
    };
    assert_eq!(session.to_bytes(3, None), example("session"));
    let granted = example_answer("granted").granted().unwrap();
    assert_eq!(granted.session_id, SESSION);
    assert!(granted.token.parse::<push_common::token::Token>().is_ok());
    let Incoming::Asked(teardown) = read(&example("teardown")) else {
        panic!("a request of the gateway's");
    };
    let cause = "revoked".to_owned();
    let session = SESSION.parse().unwrap();
    assert_eq!(teardown.order, Ok(Order::Teardown { session, cause }));
    let answer = teardown.answer(Ok(ResponseType::Deleted));
    assert_eq!(answer, example("done"));
}

#[test]
fn a_code_reads_as_in_the_standards() {
    assert_eq!(Code::FORBIDDEN.to_string(), "4.03");
    assert_eq!(Code::TOO_MANY_REQUESTS.to_string(), "4.29");
    assert!(Code(0x41).is_success() && !Code::UNAUTHORIZED.is_success());
}

proptest::proptest! {
    #[test]
    fn no_datagram_makes_it_panic(datagram in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..80)) {
        let _ = read(&datagram);
    }
}
