//! The requests that devices make and get, in CoAP; see [`crate::internal`] for what they mean.

#[cfg(test)]
pub(super) mod tests;

use crate::sessions::records::RegistrationId;
use coap_lite::option_value::OptionValueU32;
use coap_lite::{
    CoapOption, ContentFormat, MessageClass, MessageType, Packet, RequestType, ResponseType,
};
use minicbor::data::Type;
use minicbor::{Decode, Decoder, Encode};
use push_common::wire::SessionId;
use std::fmt;
use std::time::Duration;

/// Number of the Echo option (RFC 9175, 2.2.1).
const ECHO: CoapOption = CoapOption::Unknown(252);

/// What a device asks of the gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Wish<'a> {
    /// To be registered.
    Register {
        endpoint: &'a str,
        lifetime: Option<Duration>,
    },
    /// To stay registered.
    Refresh {
        id: RegistrationId,
        lifetime: Option<Duration>,
    },
    /// To be registered no more.
    Deregister { id: RegistrationId },
    /// A session.
    Session {
        id: RegistrationId,
        app: &'a str,
        instance: &'a str,
        port: u16,
    },
    /// Another token for a session.
    Token {
        id: RegistrationId,
        session: SessionId,
    },
}

#[derive(Encode)]
#[cbor(map)]
struct SessionRequestBody<'a> {
    #[n(1)]
    app: &'a str,
    #[n(2)]
    instance: &'a str,
    #[n(3)]
    port: u16,
}

impl Wish<'_> {
    /// The message, confirmable. `echo` is what the gateway wants to have back.
    pub(super) fn to_bytes(&self, message_id: u16, echo: Option<&[u8]>) -> Vec<u8> {
        let (method, path, lifetime) = match self {
            Self::Register { lifetime, .. } => {
                (RequestType::Post, vec!["rd".to_owned()], *lifetime)
            }
            Self::Refresh { id, lifetime } => (
                RequestType::Post,
                vec!["rd".to_owned(), id.to_string()],
                *lifetime,
            ),
            Self::Deregister { id } => (
                RequestType::Delete,
                vec!["rd".to_owned(), id.to_string()],
                None,
            ),
            Self::Session { id, .. } => (
                RequestType::Post,
                vec!["rd".to_owned(), id.to_string(), "s".to_owned()],
                None,
            ),
            Self::Token { id, session } => (
                RequestType::Post,
                vec![
                    "rd".to_owned(),
                    id.to_string(),
                    "s".to_owned(),
                    session.to_string(),
                ],
                None,
            ),
        };
        let mut packet = Packet::new();
        packet.header.set_version(1);
        packet.header.set_type(MessageType::Confirmable);
        packet.header.code = MessageClass::Request(method);
        packet.header.message_id = message_id;
        // The answer may come in a message of its own, and is then known by this.
        packet.set_token(message_id.to_be_bytes().to_vec());
        for segment in path {
            packet.add_option(CoapOption::UriPath, segment.into_bytes());
        }
        if let Self::Register { endpoint, .. } = self {
            packet.add_option(CoapOption::UriQuery, format!("ep={endpoint}").into_bytes());
        }
        if let Some(lifetime) = lifetime {
            let parameter = format!("lt={}", lifetime.as_secs());
            packet.add_option(CoapOption::UriQuery, parameter.into_bytes());
        }
        if let Some(echo) = echo {
            packet.add_option(ECHO, echo.to_vec());
        }
        if let &Self::Session {
            app,
            instance,
            port,
            ..
        } = self
        {
            packet.set_content_format(ContentFormat::ApplicationCBOR);
            packet.payload = cbor(&SessionRequestBody {
                app,
                instance,
                port,
            });
        }
        packet
            .to_bytes_unlimited()
            .expect("a request is short, and its token has two bytes")
    }
}

/// What came in by CoAP.
#[derive(Debug)]
pub(super) enum Incoming {
    /// The gateway has the request with this message id; its answer will come by itself.
    Received(u16),
    /// The gateway doesn't know what to do with the message with this id.
    Reset(u16),
    /// An answer.
    Answer(Answer),
    /// A request of the gateway's.
    Asked(Asked),
    /// Anything else.
    Ignored,
}

/// An answer to a request of the device's.
#[derive(Debug)]
pub(super) struct Answer {
    /// That of the request.
    pub(super) message_id: u16,
    /// What has to be sent back so that the answer isn't sent again, if anything.
    pub(super) acknowledgement: Option<[u8; 4]>,
    /// Its code.
    pub(super) code: Code,
    /// What to send back to prove the address.
    pub(super) echo: Option<Vec<u8>>,
    /// When to ask again.
    pub(super) max_age: Option<Duration>,
    payload: Vec<u8>,
}

/// A code of CoAP.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Code(u8);

impl Code {
    pub(super) const UNAUTHORIZED: Self = Self(0x81);
    pub(super) const FORBIDDEN: Self = Self(0x83);
    pub(super) const TOO_MANY_REQUESTS: Self = Self(0x9D);
    pub(super) const SERVICE_UNAVAILABLE: Self = Self(0xA3);

    /// Whether the request was carried out.
    #[must_use]
    pub const fn is_success(self) -> bool {
        self.0 >> 5 == 2
    }
}

/// `4.03`
impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:02}", self.0 >> 5, self.0 & 0x1F)
    }
}

impl fmt::Debug for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The answer to a registration or refresh.
#[derive(Debug, PartialEq, Eq, Decode)]
#[cbor(map)]
pub(super) struct Configuration {
    #[n(1)]
    pub(super) id: String,
    #[n(2)]
    pub(super) lifetime_s: u64,
}

/// The answer to a request for a session or token. Not `Debug`: the token is secret.
#[derive(Decode)]
#[cbor(map)]
pub(super) struct Granted {
    #[n(1)]
    pub(super) session_id: String,
    #[n(2)]
    pub(super) token: String,
    #[n(3)]
    pub(super) token_generation: u8,
}

impl Drop for Granted {
    fn drop(&mut self) {
        zeroize::Zeroize::zeroize(&mut self.token);
    }
}

impl Answer {
    /// The registration, if that is what was asked for.
    pub(super) fn configuration(&self) -> Option<Configuration> {
        minicbor::decode(&self.payload).ok()
    }

    /// The session with its token, if that is what was asked for.
    pub(super) fn granted(&self) -> Option<Granted> {
        minicbor::decode(&self.payload).ok()
    }

    /// What a refusal says to people.
    pub(super) fn text(&self) -> String {
        String::from_utf8_lossy(&self.payload).into_owned()
    }
}

/// A request of the gateway's.
#[derive(Debug)]
pub(super) struct Asked {
    /// Its message id.
    pub(super) message_id: u16,
    confirmable: bool,
    token: Vec<u8>,
    /// What it says.
    pub(super) order: Result<Order, ResponseType>,
}

/// What the gateway may ask of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// The session is over.
    Teardown { session: SessionId, cause: String },
    /// Fetch another token for the session.
    Rotate {
        session: SessionId,
        within: Option<Duration>,
    },
    /// Ask for the session anew: it will run out of sequence numbers.
    Renew { session: SessionId },
    /// Refresh the registration now.
    Refresh { id: RegistrationId },
    /// The registration is as this says from now on.
    Configure {
        id: RegistrationId,
        lifetime: Option<Duration>,
    },
}

impl Asked {
    /// The answer: done, or what was wrong with the request.
    pub(super) fn answer(&self, outcome: Result<ResponseType, ResponseType>) -> Vec<u8> {
        let (Ok(code) | Err(code)) = outcome;
        let mut packet = Packet::new();
        packet.header.set_version(1);
        packet.header.code = MessageClass::Response(code);
        packet.header.set_type(if self.confirmable {
            MessageType::Acknowledgement
        } else {
            MessageType::NonConfirmable
        });
        packet.header.message_id = self.message_id;
        packet.set_token(self.token.clone());
        packet
            .to_bytes_unlimited()
            .expect("an answer without options or payload is short")
    }
}

/// Takes a datagram apart.
pub(super) fn read(datagram: &[u8]) -> Incoming {
    let Ok(packet) = Packet::from_bytes(datagram) else {
        return Incoming::Ignored;
    };
    if packet.header.get_version() != 1 {
        return Incoming::Ignored;
    }
    let message_id = packet.header.message_id;
    match (packet.header.get_type(), packet.header.code) {
        (MessageType::Acknowledgement, MessageClass::Empty) => Incoming::Received(message_id),
        (MessageType::Reset, _) => Incoming::Reset(message_id),
        (_, MessageClass::Response(_) | MessageClass::Reserved(_)) => answer(packet),
        (
            kind @ (MessageType::Confirmable | MessageType::NonConfirmable),
            MessageClass::Request(method),
        ) => Incoming::Asked(Asked {
            message_id,
            confirmable: kind == MessageType::Confirmable,
            token: packet.get_token().to_vec(),
            order: order(&packet, method),
        }),
        (MessageType::Acknowledgement, MessageClass::Request(_))
        | (MessageType::Confirmable | MessageType::NonConfirmable, MessageClass::Empty) => {
            Incoming::Ignored
        }
    }
}

fn answer(packet: Packet) -> Incoming {
    let code = Code(u8::from(packet.header.code));
    let Ok(token) = <[u8; 2]>::try_from(packet.get_token()) else {
        return Incoming::Ignored;
    };
    let acknowledgement = (packet.header.get_type() == MessageType::Confirmable).then(|| {
        let [high, low] = packet.header.message_id.to_be_bytes();
        [0x60, 0, high, low]
    });
    let max_age = packet.get_first_option_as::<OptionValueU32>(CoapOption::MaxAge);
    Incoming::Answer(Answer {
        message_id: u16::from_be_bytes(token),
        acknowledgement,
        code,
        echo: packet.get_first_option(ECHO).cloned(),
        max_age: max_age
            .and_then(Result::ok)
            .map(|OptionValueU32(seconds)| Duration::from_secs(seconds.into())),
        payload: packet.payload,
    })
}

fn order(packet: &Packet, method: RequestType) -> Result<Order, ResponseType> {
    let known = [3, 7, 11, 15, 17];
    let must_be_understood = |number: u16| number % 2 == 1 && !known.contains(&number);
    if packet
        .options()
        .any(|(&number, _)| must_be_understood(number))
    {
        return Err(ResponseType::BadOption);
    }
    let segments = packet.get_option(CoapOption::UriPath).into_iter().flatten();
    let segments: Vec<&str> = segments
        .filter_map(|segment| str::from_utf8(segment).ok())
        .collect();
    let said = Said::read(&packet.payload).ok_or(ResponseType::BadRequest)?;
    match (&segments[..], method) {
        (["s", session], RequestType::Delete) => Ok(Order::Teardown {
            session: session.parse().map_err(|_| ResponseType::NotFound)?,
            cause: said.text.unwrap_or_default(),
        }),
        (["s", session], RequestType::Post) => {
            let session = session.parse().map_err(|_| ResponseType::NotFound)?;
            match said.text.as_deref() {
                Some("rotate") => Ok(Order::Rotate {
                    session,
                    within: said.seconds,
                }),
                Some("renew") => Ok(Order::Renew { session }),
                Some(_) | None => Err(ResponseType::BadRequest),
            }
        }
        (["rd", id], RequestType::Post) => {
            let id = id.parse().map_err(|_| ResponseType::NotFound)?;
            if said.text.as_deref() == Some("refresh") {
                return Ok(Order::Refresh { id });
            }
            Ok(Order::Configure {
                id,
                lifetime: said.seconds,
            })
        }
        (["s" | "rd", _], _) => Err(ResponseType::MethodNotAllowed),
        _ => Err(ResponseType::NotFound),
    }
}

/// What a payload of the gateway's says, of what a device cares about: key 1 is a text and key 2 a number of
/// seconds in all of them.
#[derive(Default)]
struct Said {
    text: Option<String>,
    seconds: Option<Duration>,
}

impl Said {
    fn read(payload: &[u8]) -> Option<Self> {
        let mut said = Self::default();
        if payload.is_empty() {
            return Some(said);
        }
        let mut decoder = Decoder::new(payload);
        let entries = decoder.map().ok()??;
        for _ in 0..entries {
            match (decoder.u64().ok()?, decoder.datatype().ok()?) {
                (1, Type::String) => said.text = Some(decoder.str().ok()?.to_owned()),
                (2, Type::U8 | Type::U16 | Type::U32 | Type::U64) => {
                    said.seconds = Some(Duration::from_secs(decoder.u64().ok()?));
                }
                _ => decoder.skip().ok()?,
            }
        }
        Some(said)
    }
}

fn cbor(body: &impl Encode<()>) -> Vec<u8> {
    minicbor::to_vec(body).expect("a vector takes whatever is written to it")
}
