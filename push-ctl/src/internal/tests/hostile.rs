//! What isn't meant well.

use super::super::message::{Answer, Incoming, Reply, acknowledgement, read, reset};
use super::super::operation::{Operation, operation};
use super::*;

const TAG: [u8; echo::TAG_LEN] = [7; echo::TAG_LEN];

/// What is sent at once to who sends `data` from an address that isn't proved, is a message, and not longer than `data`.
pub(crate) fn judge_datagram(data: &[u8]) {
    let answer = match read(data) {
        Incoming::Ignored | Incoming::Answer(Answer::Acknowledgement(_) | Answer::Reset(_)) => {
            return;
        }
        Incoming::Rejected(message_id) => reset(message_id).to_vec(),
        Incoming::Answer(Answer::Response { message_id, .. }) => {
            acknowledgement(message_id).to_vec()
        }
        Incoming::Request(request) => {
            let reply = match operation(&request) {
                Err(reply) => reply,
                Ok((Operation::Register { .. }, _)) => Reply::challenge(TAG),
                Ok((
                    Operation::Refresh { .. }
                    | Operation::Deregister { .. }
                    | Operation::RequestSession { .. }
                    | Operation::NewToken { .. }
                    | Operation::Release { .. },
                    _,
                )) => refusal_of(DeviceRefusal::UnknownRegistration),
            };
            let answer = reply.no_longer_than(&request, TAG).to_bytes(&request, 9);
            let packet = Packet::from_bytes(&answer).unwrap();
            assert_eq!(packet.to_bytes().unwrap(), *answer);
            answer.to_vec()
        }
    };
    assert!(
        answer.len() <= data.len(),
        "{} bytes are answered by {}: {answer:02x?}",
        data.len(),
        answer.len()
    );
}

/// The same for `data` as the payload of a request for a session.
pub(crate) fn judge_session_request(data: &[u8]) {
    // POST /rd/00000000000000ab/s, CBOR.
    let head = b"\x40\x02\x12\x34\xB2rd\x0D\x0300000000000000ab\x01s\x11\x3C\xFF";
    judge_datagram(&[&head[..], data].concat());
}

#[test]
fn a_short_registration_gets_no_longer_answer() {
    let register = |endpoint: &[u8]| {
        let parameter = [
            &[0x43 + u8::try_from(endpoint.len()).unwrap()][..],
            b"ep=",
            endpoint,
        ]
        .concat();
        [&b"\x41\x02\x12\x34\xAA\xB2rd"[..], &parameter].concat()
    };
    for endpoint in [&b""[..], b"a", b"ab", b"abc", b"abcdef"] {
        judge_datagram(&register(endpoint));
    }
    let Incoming::Request(request) = read(&register(b"ab")) else {
        panic!("it is a request");
    };
    let answer = Reply::challenge(TAG).no_longer_than(&request, TAG);
    assert_eq!(answer.code(), ResponseType::BadRequest);
}
