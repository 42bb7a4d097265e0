//! CoAP messages: what came in, and what goes out. The codec is coap-lite's; it is more lenient than
//! RFC 7252 in places, which are made up for here.

use super::echo;
use coap_lite::option_value::OptionValueU32;
use coap_lite::{
    CoapOption, ContentFormat, MessageClass, MessageType, Packet, RequestType, ResponseType,
};
use std::time::Duration;
use zeroize::{Zeroize, Zeroizing};

/// Longest message that is looked at (RFC 7252, 4.6).
pub(super) const MAX_MESSAGE_BYTES: usize = 1152;

/// Length of an Empty message.
const EMPTY_BYTES: usize = 4;

/// Number of the Echo option (RFC 9175, 2.2.1).
const ECHO: CoapOption = CoapOption::Unknown(252);

/// What came in.
#[derive(Debug)]
pub(super) enum Incoming {
    /// Nothing that asks for an answer.
    Ignored,
    /// Something that has to be rejected with a Reset message with this id.
    Rejected(u16),
    /// A request.
    Request(Request),
    /// An answer to a request of the gateway's own, or so it says.
    Answer(Answer),
}

/// What answers a request, if there was one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// The request with this message id has arrived; a response may come later.
    Acknowledgement(u16),
    /// The request with this message id makes no sense to the device.
    Reset(u16),
    /// A response.
    Response {
        delivery: Delivery,
        /// That of the request if it is piggybacked, else its own.
        message_id: u16,
        /// That of the request.
        token: Vec<u8>,
        /// Whether its code is of class 2.
        is_success: bool,
    },
}

/// How a response comes (RFC 7252, 5.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Delivery {
    /// On the acknowledgement of the request.
    Piggybacked,
    /// By a message that has to be acknowledged.
    Confirmable,
    /// By a message that hasn't.
    NonConfirmable,
}

/// A well-formed request.
#[derive(Debug)]
pub(super) struct Request {
    packet: Packet,
    len_bytes: usize,
}

/// Takes a datagram apart.
pub(super) fn read(datagram: &[u8]) -> Incoming {
    let [first, code, id_high, id_low, ..] = *datagram else {
        return Incoming::Ignored;
    };
    if first >> 6 != 1 {
        return Incoming::Ignored;
    }
    let message_id = u16::from_be_bytes([id_high, id_low]);
    let kind = match (first >> 4) & 3 {
        0 => MessageType::Confirmable,
        1 => MessageType::NonConfirmable,
        2 => MessageType::Acknowledgement,
        _ => MessageType::Reset,
    };
    if code == 0 && datagram.len() == EMPTY_BYTES && first & 0xF == 0 {
        return match kind {
            // A "ping".
            MessageType::Confirmable => Incoming::Rejected(message_id),
            MessageType::NonConfirmable => Incoming::Ignored,
            MessageType::Acknowledgement => Incoming::Answer(Answer::Acknowledgement(message_id)),
            MessageType::Reset => Incoming::Answer(Answer::Reset(message_id)),
        };
    }
    let packet = Packet::from_bytes(datagram)
        .ok()
        .filter(|packet| is_whole(packet, datagram));
    match (kind, code >> 5, packet) {
        (MessageType::Confirmable | MessageType::NonConfirmable, 0, Some(packet)) if code != 0 => {
            Incoming::Request(Request {
                packet,
                len_bytes: datagram.len(),
            })
        }
        (MessageType::Confirmable, 2 | 4 | 5, Some(packet)) => {
            response(Delivery::Confirmable, &packet)
        }
        (MessageType::NonConfirmable, 2 | 4 | 5, Some(packet)) => {
            response(Delivery::NonConfirmable, &packet)
        }
        (MessageType::Acknowledgement, 2 | 4 | 5, Some(packet)) => {
            response(Delivery::Piggybacked, &packet)
        }
        (MessageType::Confirmable, ..) => Incoming::Rejected(message_id),
        // What makes no sense and isn't Confirmable is silently ignored.
        (MessageType::NonConfirmable | MessageType::Acknowledgement | MessageType::Reset, ..) => {
            Incoming::Ignored
        }
    }
}

fn response(delivery: Delivery, packet: &Packet) -> Incoming {
    Incoming::Answer(Answer::Response {
        delivery,
        message_id: packet.header.message_id,
        token: packet.get_token().to_vec(),
        is_success: u8::from(packet.header.code) >> 5 == 2,
    })
}

/// Whether nothing of the datagram was overlooked, as a payload marker without a payload is.
fn is_whole(packet: &Packet, datagram: &[u8]) -> bool {
    packet
        .to_bytes_unlimited()
        .is_ok_and(|bytes| bytes == datagram)
}

/// A Reset message.
pub(super) fn reset(message_id: u16) -> [u8; EMPTY_BYTES] {
    let [high, low] = message_id.to_be_bytes();
    [0x70, 0, high, low]
}

/// An Acknowledgement without a response.
pub(super) fn acknowledgement(message_id: u16) -> [u8; EMPTY_BYTES] {
    let [high, low] = message_id.to_be_bytes();
    [0x60, 0, high, low]
}

/// A Confirmable request of the gateway's own, with a CBOR payload.
pub(super) fn request(
    method: RequestType,
    message_id: u16,
    token: &[u8],
    path: &[&str],
    payload: Vec<u8>,
) -> Vec<u8> {
    let mut packet = Packet::new();
    packet.header.set_type(MessageType::Confirmable);
    packet.header.code = MessageClass::Request(method);
    packet.header.message_id = message_id;
    packet.set_token(token.to_vec());
    for segment in path {
        packet.add_option(CoapOption::UriPath, segment.as_bytes().to_vec());
    }
    packet.set_content_format(ContentFormat::ApplicationCBOR);
    packet.payload = payload;
    packet
        .to_bytes()
        .expect("a request is shorter than a message may be")
}

impl Request {
    pub(super) fn message_id(&self) -> u16 {
        self.packet.header.message_id
    }

    pub(super) fn is_confirmable(&self) -> bool {
        self.packet.header.get_type() == MessageType::Confirmable
    }

    /// Longer than [`MAX_MESSAGE_BYTES`].
    pub(super) fn is_too_long(&self) -> bool {
        self.len_bytes > MAX_MESSAGE_BYTES
    }

    /// The method; `None` if it isn't one that RFC 7252 or RFC 8132 know.
    pub(super) fn method(&self) -> Option<RequestType> {
        match self.packet.header.code {
            MessageClass::Request(method) => Some(method),
            MessageClass::Empty | MessageClass::Response(_) | MessageClass::Reserved(_) => None,
        }
    }

    /// The segments of the path; `None` if they aren't text.
    pub(super) fn path(&self) -> Option<Vec<&str>> {
        self.texts(CoapOption::UriPath).collect()
    }

    /// The value of the first query parameter of this name.
    pub(super) fn query(&self, name: &str) -> Option<&str> {
        let parameters = self.texts(CoapOption::UriQuery).flatten();
        parameters
            .filter_map(|parameter| parameter.split_once('='))
            .find(|(key, _)| *key == name)
            .map(|(_, value)| value)
    }

    pub(super) fn payload(&self) -> &[u8] {
        &self.packet.payload
    }

    /// The number of the payload's format.
    pub(super) fn content_format(&self) -> Option<u32> {
        self.number(CoapOption::ContentFormat)
    }

    /// The number of the format that the answer should have.
    pub(super) fn accept(&self) -> Option<u32> {
        self.number(CoapOption::Accept)
    }

    pub(super) fn echo(&self) -> Option<&[u8]> {
        self.packet.get_first_option(ECHO).map(Vec::as_slice)
    }

    /// Whether the request is for a proxy to pass on.
    pub(super) fn is_for_proxy(&self) -> bool {
        [CoapOption::ProxyUri, CoapOption::ProxyScheme]
            .into_iter()
            .any(|option| self.packet.get_option(option).is_some())
    }

    /// An option that has to be understood (its number is odd), and isn't.
    pub(super) fn unknown_critical_option(&self) -> Option<u16> {
        self.packet
            .options()
            .map(|(&number, _)| number)
            .find(|&number| {
                let known = match CoapOption::from(number) {
                    CoapOption::UriHost
                    | CoapOption::UriPort
                    | CoapOption::UriPath
                    | CoapOption::UriQuery
                    | CoapOption::Accept => true,
                    CoapOption::IfMatch
                    | CoapOption::ETag
                    | CoapOption::IfNoneMatch
                    | CoapOption::Observe
                    | CoapOption::LocationPath
                    | CoapOption::Oscore
                    | CoapOption::ContentFormat
                    | CoapOption::MaxAge
                    | CoapOption::LocationQuery
                    | CoapOption::Block2
                    | CoapOption::Block1
                    | CoapOption::ProxyUri
                    | CoapOption::ProxyScheme
                    | CoapOption::Size1
                    | CoapOption::Size2
                    | CoapOption::NoResponse
                    | CoapOption::Unknown(_) => false,
                };
                number % 2 == 1 && !known
            })
    }

    fn texts(&self, option: CoapOption) -> impl Iterator<Item = Option<&str>> {
        let values = self.packet.get_option(option).into_iter().flatten();
        values.map(|value| str::from_utf8(value).ok())
    }

    fn number(&self, option: CoapOption) -> Option<u32> {
        self.packet
            .get_first_option_as::<OptionValueU32>(option)?
            .ok()
            .map(|value| value.0)
    }
}

/// An answer.
#[derive(Debug)]
pub(super) struct Reply {
    code: ResponseType,
    location: Vec<String>,
    echo: Option<[u8; echo::TAG_LEN]>,
    max_age_s: Option<u32>,
    /// It may have a token in it.
    content: Option<(ContentFormat, Zeroizing<Vec<u8>>)>,
}

impl Reply {
    pub(super) fn new(code: ResponseType) -> Self {
        Self {
            code,
            location: Vec::new(),
            echo: None,
            max_age_s: None,
            content: None,
        }
    }

    /// An answer that says in words what is wrong (RFC 7252, 5.5.2).
    pub(super) fn refusal(code: ResponseType, diagnostic: impl Into<String>) -> Self {
        // A diagnostic payload has no Content-Format.
        Self {
            content: Some((
                ContentFormat::TextPlain,
                diagnostic.into().into_bytes().into(),
            )),
            ..Self::new(code)
        }
    }

    /// Asks to prove the address. Small, as it may go to somebody who didn't ask.
    pub(super) fn challenge(tag: [u8; echo::TAG_LEN]) -> Self {
        Self {
            echo: Some(tag),
            ..Self::new(ResponseType::Unauthorized)
        }
    }

    pub(super) fn at(self, location: impl IntoIterator<Item = String>) -> Self {
        Self {
            location: location.into_iter().collect(),
            ..self
        }
    }

    pub(super) fn with(self, format: ContentFormat, payload: Vec<u8>) -> Self {
        Self {
            content: Some((format, payload.into())),
            ..self
        }
    }

    /// How long to wait before asking again (RFC 8516 of 4.29, RFC 7252 of 5.03).
    pub(super) fn retry_after(self, after: Duration) -> Self {
        // Whole seconds; none that are too early.
        let seconds = u32::try_from(after.as_millis().div_ceil(1000)).unwrap_or(u32::MAX);
        Self {
            max_age_s: Some(seconds),
            ..self
        }
    }

    /// What of it may go to somebody who may have put another's address on the request: nothing longer than
    /// that, or the gateway could be made to flood the other. Words are cut off; instead of what was asked
    /// for, there is the challenge to prove the address.
    pub(super) fn no_longer_than(mut self, request: &Request, tag: [u8; echo::TAG_LEN]) -> Self {
        let excess = |reply: &Self| {
            let len_bytes = reply.to_bytes(request, 0).len();
            len_bytes.saturating_sub(request.len_bytes)
        };
        let excess_bytes = excess(&self);
        if excess_bytes == 0 {
            return self;
        }
        if !self.is_refusal() {
            return Self::challenge(tag).no_longer_than(request, tag);
        }
        if let Some((_, words)) = &mut self.content {
            let len = words.len().saturating_sub(excess_bytes);
            words.truncate(len);
        }
        if self
            .content
            .as_ref()
            .is_some_and(|(_, words)| words.is_empty())
        {
            self.content = None;
        }
        if excess(&self) == 0 {
            return self;
        }
        // As long as the shortest request with that token. Who isn't even told how to prove an address has
        // to ask otherwise.
        Self::new(match self.code {
            ResponseType::Unauthorized => ResponseType::BadRequest,
            code => code,
        })
    }

    pub(super) fn is_refusal(&self) -> bool {
        self.code.is_error()
    }

    #[cfg(test)]
    pub(super) fn code(&self) -> ResponseType {
        self.code
    }

    /// The message that answers `request`. `message_id` is for answers that aren't piggybacked.
    pub(super) fn to_bytes(&self, request: &Request, message_id: u16) -> Zeroizing<Vec<u8>> {
        let mut packet = Packet::new();
        packet.header.code = MessageClass::Response(self.code);
        if request.is_confirmable() {
            packet.header.set_type(MessageType::Acknowledgement);
            packet.header.message_id = request.message_id();
        } else {
            packet.header.set_type(MessageType::NonConfirmable);
            packet.header.message_id = message_id;
        }
        packet.set_token(request.packet.get_token().to_vec());
        for segment in &self.location {
            packet.add_option(CoapOption::LocationPath, segment.clone().into_bytes());
        }
        if let Some(tag) = self.echo {
            packet.add_option(ECHO, tag.to_vec());
        }
        if let Some(seconds) = self.max_age_s {
            packet.add_option_as(CoapOption::MaxAge, OptionValueU32(seconds));
        }
        if let Some((format, payload)) = &self.content {
            if !self.code.is_error() {
                packet.set_content_format(*format);
            }
            packet.payload.clone_from(payload);
        }
        let bytes = packet.to_bytes();
        packet.payload.zeroize();
        bytes
            .expect("an answer is shorter than a message may be")
            .into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// POST /rd, confirmable, message id 0x1234, token 0xAA.
    const POST_RD: [u8; 8] = [0x41, 0x02, 0x12, 0x34, 0xAA, 0xB2, b'r', b'd'];

    fn request(datagram: &[u8]) -> Request {
        match read(datagram) {
            Incoming::Request(request) => request,
            other @ (Incoming::Ignored | Incoming::Rejected(_) | Incoming::Answer(_)) => {
                panic!("{other:?}")
            }
        }
    }

    #[test]
    fn a_request_is_taken_apart() {
        let request = request(&POST_RD);
        assert_eq!(request.path().unwrap(), ["rd"]);
        assert_eq!(request.method(), Some(RequestType::Post));
        assert!(request.is_confirmable() && request.message_id() == 0x1234);
    }

    #[test]
    fn what_is_no_request_is_rejected_or_ignored() {
        let cases: &[(&str, &[u8], Option<u16>)] = &[
            ("runt", &[0x40, 0x01, 0x12], None),
            ("version 0", &[0x00, 0x02, 0x12, 0x34], None),
            ("version 2", &[0x80, 0x02, 0x12, 0x34], None),
            ("ping", &[0x40, 0x00, 0x12, 0x34], Some(0x1234)),
            (
                "empty with a payload",
                &[0x40, 0x00, 0x12, 0x34, 0xFF, 1],
                Some(0x1234),
            ),
            ("empty non-confirmable", &[0x50, 0x00, 0x12, 0x34], None),
            (
                "acknowledgement with a payload",
                &[0x60, 0x00, 0x12, 0x34, 0xFF, 1],
                None,
            ),
            ("reset with a token", &[0x71, 0x00, 0x12, 0x34, 1], None),
            (
                "request in an acknowledgement",
                &[0x60, 0x01, 0x12, 0x34],
                None,
            ),
            (
                "response of class 3",
                &[0x40, 0x61, 0x12, 0x34],
                Some(0x1234),
            ),
            (
                "response cut off",
                &[0x42, 0x45, 0x12, 0x34, 1],
                Some(0x1234),
            ),
            ("response in a reset", &[0x70, 0x45, 0x12, 0x34], None),
            ("reserved class", &[0x40, 0x21, 0x12, 0x34], Some(0x1234)),
            (
                "token length 9",
                &[0x49, 0x02, 0x12, 0x34, 1, 2, 3, 4, 5, 6, 7, 8, 9],
                Some(0x1234),
            ),
            ("token cut off", &[0x42, 0x02, 0x12, 0x34, 1], Some(0x1234)),
            (
                "option cut off",
                &[0x40, 0x02, 0x12, 0x34, 0xB2, b'r'],
                Some(0x1234),
            ),
            (
                "option delta 15",
                &[0x40, 0x02, 0x12, 0x34, 0xF0],
                Some(0x1234),
            ),
            (
                "payload marker alone",
                &[0x40, 0x02, 0x12, 0x34, 0xFF],
                Some(0x1234),
            ),
            (
                "the same, non-confirmable",
                &[0x50, 0x02, 0x12, 0x34, 0xFF],
                None,
            ),
        ];
        for (name, datagram, expected) in cases {
            match (read(datagram), expected) {
                (Incoming::Rejected(id), Some(expected)) => assert_eq!(id, *expected, "{name}"),
                (Incoming::Ignored, None) => {}
                (other, _) => panic!("{name}: {other:?}"),
            }
        }
        assert_eq!(reset(0x1234), [0x70, 0, 0x12, 0x34]);
        assert_eq!(acknowledgement(0x1234), [0x60, 0, 0x12, 0x34]);
    }

    #[test]
    fn answers_are_told_apart() {
        let response = |delivery, is_success| Answer::Response {
            delivery,
            message_id: 0x1234,
            token: vec![0xAA],
            is_success,
        };
        let cases: [(&[u8], Answer); 6] = [
            (&[0x60, 0x00, 0x12, 0x34], Answer::Acknowledgement(0x1234)),
            (&[0x70, 0x00, 0x12, 0x34], Answer::Reset(0x1234)),
            (
                &[0x61, 0x44, 0x12, 0x34, 0xAA],
                response(Delivery::Piggybacked, true),
            ),
            (
                &[0x41, 0x44, 0x12, 0x34, 0xAA, 0xFF, b'x'],
                response(Delivery::Confirmable, true),
            ),
            (
                &[0x51, 0x84, 0x12, 0x34, 0xAA],
                response(Delivery::NonConfirmable, false),
            ),
            (
                // 5.31, which nobody has defined.
                &[0x61, 0xBF, 0x12, 0x34, 0xAA],
                response(Delivery::Piggybacked, false),
            ),
        ];
        for (datagram, expected) in cases {
            match read(datagram) {
                Incoming::Answer(answer) => assert_eq!(answer, expected),
                other @ (Incoming::Ignored | Incoming::Rejected(_) | Incoming::Request(_)) => {
                    panic!("{other:?}")
                }
            }
        }
    }

    #[test]
    fn a_request_of_the_gateway_s_own_is_what_it_reads_itself() {
        let bytes = super::request(RequestType::Delete, 7, &[1, 2], &["s", "ab"], vec![0xA0]);
        let expected = [
            0x42, 4, 0, 7, 1, 2, 0xB1, b's', 0x02, b'a', b'b', 0x11, 60, 0xFF, 0xA0,
        ];
        assert_eq!(bytes, expected);
        assert_eq!(request(&bytes).path().unwrap(), ["s", "ab"]);
    }

    #[test]
    fn an_unknown_critical_option_is_found_and_an_elective_one_is_not() {
        assert_eq!(
            request(&[0x40, 0x02, 0, 1, 0x10]).unknown_critical_option(),
            Some(1)
        );
        assert_eq!(
            request(&[0x40, 0x02, 0, 1, 0x40]).unknown_critical_option(),
            None
        );
        assert_eq!(request(&POST_RD).unknown_critical_option(), None);
    }

    #[test]
    fn an_answer_is_piggybacked_on_the_acknowledgement() {
        let bytes = Reply::challenge([7; 8]).to_bytes(&request(&POST_RD), 9);
        assert_eq!(
            *bytes,
            [&[0x61, 0x81, 0x12, 0x34, 0xAA, 0xD8, 0xEF][..], &[7; 8]].concat()
        );
        let mut non_confirmable = POST_RD;
        non_confirmable[0] = 0x51;
        let bytes = Reply::new(ResponseType::Deleted).to_bytes(&request(&non_confirmable), 9);
        assert_eq!(*bytes, [0x51, 0x42, 0, 9, 0xAA]);
    }

    proptest! {
        #[test]
        fn no_datagram_makes_it_panic(datagram in proptest::collection::vec(any::<u8>(), 0..80), head in any::<bool>()) {
            let datagram = if head { [&POST_RD[..], &datagram].concat() } else { datagram };
            if let Incoming::Request(request) = read(&datagram) {
                let _ = (request.path(), request.query("ep"), request.accept(), request.unknown_critical_option());
                let _ = Reply::new(ResponseType::Content).to_bytes(&request, 1);
            }
        }
    }
}
