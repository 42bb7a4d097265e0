//! What a request asks for, from its method, path, query and payload alone.

use super::message::{Reply, Request};
use crate::sessions::records::{EndpointName, RegistrationId};
use crate::sessions::{DeviceRefusal, SessionRequest};
use coap_lite::{ContentFormat, RequestType, ResponseType};
use minicbor::Decode;
use push_common::wire::SessionId;
use std::fmt::Display;
use std::num::NonZeroU16;
use std::time::Duration;

/// Numbers of content formats (RFC 7252, 12.3; RFC 8949).
mod format {
    pub(super) const TEXT: u32 = 0;
    pub(super) const LINKS: u32 = 40;
    pub(super) const CBOR: u32 = 60;
}

/// What is asked for.
#[derive(Debug)]
pub(super) enum Operation {
    /// To be registered.
    Register {
        /// As what.
        endpoint: EndpointName,
        /// For how long.
        lifetime: Option<Duration>,
    },
    /// To stay registered, maybe at another address.
    Refresh {
        /// The registration.
        id: RegistrationId,
        /// For how long.
        lifetime: Option<Duration>,
    },
    /// To be registered no more.
    Deregister {
        /// The registration.
        id: RegistrationId,
    },
    /// A session.
    RequestSession {
        /// The registration.
        id: RegistrationId,
        /// For whom.
        request: SessionRequest,
    },
    /// The next token of a session.
    NewToken {
        /// The registration.
        id: RegistrationId,
        /// The session.
        session: SessionId,
    },
    /// The end of a session.
    Release {
        /// The registration.
        id: RegistrationId,
        /// The session.
        session: SessionId,
    },
}

/// The form in which the device wants its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AnswerFormat {
    /// A map with integer keys.
    Cbor,
    /// Lines of `key=value`.
    Text,
}

enum Resource<'a> {
    WellKnownCore,
    Directory,
    Registration(&'a str),
    SessionsOf(&'a str),
    SessionOf(&'a str, &'a str),
}

/// What there is, in the link format of RFC 6690.
const LINKS: &[u8] = b"</rd>;rt=core.rd;ct=\"60 0\"";

/// What `request` asks for, or the answer if that takes no more than the request itself.
pub(super) fn operation(request: &Request) -> Result<(Operation, AnswerFormat), Reply> {
    if request.is_too_long() {
        return Err(Reply::new(ResponseType::RequestEntityTooLarge));
    }
    if request.is_for_proxy() {
        return Err(Reply::new(ResponseType::ProxyingNotSupported));
    }
    if let Some(number) = request.unknown_critical_option() {
        return Err(Reply::refusal(
            ResponseType::BadOption,
            format!("option {number}"),
        ));
    }
    let path = request.path();
    let resource = match path.as_deref() {
        Some([".well-known", "core"]) => Resource::WellKnownCore,
        Some(["rd"]) => Resource::Directory,
        Some(["rd", id]) => Resource::Registration(id),
        Some(["rd", id, "s"]) => Resource::SessionsOf(id),
        Some(["rd", id, "s", session]) => Resource::SessionOf(id, session),
        Some(_) | None => return Err(Reply::new(ResponseType::NotFound)),
    };
    let method = request.method();
    match (resource, method) {
        (Resource::WellKnownCore, Some(RequestType::Get)) => match request.accept() {
            None | Some(format::LINKS) => Err(Reply::new(ResponseType::Content)
                .with(ContentFormat::ApplicationLinkFormat, LINKS.to_vec())),
            Some(_) => Err(Reply::new(ResponseType::NotAcceptable)),
        },
        (Resource::Directory, Some(RequestType::Post)) => {
            let endpoint = request.query("ep").ok_or_else(|| bad("ep is missing"))?;
            let endpoint = endpoint.parse().map_err(bad)?;
            Ok((
                Operation::Register {
                    endpoint,
                    lifetime: lifetime(request)?,
                },
                answer_format(request)?,
            ))
        }
        (Resource::Registration(id), Some(RequestType::Post)) => Ok((
            Operation::Refresh {
                id: registration(id)?,
                lifetime: lifetime(request)?,
            },
            answer_format(request)?,
        )),
        (Resource::Registration(id), Some(RequestType::Delete)) => Ok((
            Operation::Deregister {
                id: registration(id)?,
            },
            AnswerFormat::Cbor,
        )),
        (Resource::SessionsOf(id), Some(RequestType::Post)) => {
            let id = registration(id)?;
            Ok((
                Operation::RequestSession {
                    id,
                    request: session_request(request)?,
                },
                answer_format(request)?,
            ))
        }
        (Resource::SessionOf(id, of_id), Some(RequestType::Post)) => {
            let (id, session) = (registration(id)?, session(of_id)?);
            Ok((Operation::NewToken { id, session }, answer_format(request)?))
        }
        (Resource::SessionOf(id, of_id), Some(RequestType::Delete)) => {
            let (id, session) = (registration(id)?, session(of_id)?);
            Ok((Operation::Release { id, session }, AnswerFormat::Cbor))
        }
        (
            Resource::WellKnownCore
            | Resource::Directory
            | Resource::Registration(_)
            | Resource::SessionsOf(_)
            | Resource::SessionOf(..),
            _,
        ) => Err(Reply::new(ResponseType::MethodNotAllowed)),
    }
}

/// The answer that tells a device why it is refused. [`DeviceRefusal::AddressUnproven`] is not for
/// this: it takes a challenge.
pub(super) fn refusal_of(refusal: DeviceRefusal) -> Reply {
    const RETRY_AFTER: Duration = Duration::from_mins(1);
    let (code, retry_after) = match refusal {
        DeviceRefusal::UnknownRegistration
        | DeviceRefusal::SecondState(_)
        | DeviceRefusal::Suspended
        | DeviceRefusal::OtherAddress
        | DeviceRefusal::EndpointTaken => (ResponseType::Forbidden, None),
        DeviceRefusal::AddressUnproven => (ResponseType::Unauthorized, None),
        DeviceRefusal::UnknownApp | DeviceRefusal::UnknownSession => (ResponseType::NotFound, None),
        DeviceRefusal::QuotaExceeded { retry_after, .. } => {
            (ResponseType::TooManyRequests, Some(retry_after))
        }
        DeviceRefusal::AppUnavailable | DeviceRefusal::TerminalsFull | DeviceRefusal::SlotsFull => {
            (ResponseType::ServiceUnavailable, Some(RETRY_AFTER))
        }
    };
    let reply = Reply::refusal(code, refusal.to_string());
    match retry_after {
        Some(after) => reply.retry_after(after),
        None => reply,
    }
}

/// Whether only who has registered from the very address of the request is refused like that.
pub(super) fn tells_of_registration(refusal: DeviceRefusal) -> bool {
    match refusal {
        DeviceRefusal::UnknownApp
        | DeviceRefusal::UnknownSession
        | DeviceRefusal::QuotaExceeded { .. }
        | DeviceRefusal::AppUnavailable
        | DeviceRefusal::SlotsFull => true,
        DeviceRefusal::UnknownRegistration
        | DeviceRefusal::SecondState(_)
        | DeviceRefusal::Suspended
        | DeviceRefusal::OtherAddress
        | DeviceRefusal::AddressUnproven
        | DeviceRefusal::EndpointTaken
        | DeviceRefusal::TerminalsFull => false,
    }
}

fn bad(why: impl Display) -> Reply {
    Reply::refusal(ResponseType::BadRequest, why.to_string())
}

fn registration(id: &str) -> Result<RegistrationId, Reply> {
    id.parse()
        .map_err(|_| refusal_of(DeviceRefusal::UnknownRegistration))
}

fn session(id: &str) -> Result<SessionId, Reply> {
    id.parse()
        .map_err(|_| refusal_of(DeviceRefusal::UnknownSession))
}

fn answer_format(request: &Request) -> Result<AnswerFormat, Reply> {
    match request.accept() {
        None | Some(format::CBOR) => Ok(AnswerFormat::Cbor),
        Some(format::TEXT) => Ok(AnswerFormat::Text),
        Some(_) => Err(Reply::new(ResponseType::NotAcceptable)),
    }
}

/// The lifetime, in seconds (RFC 9176, 5).
fn lifetime(request: &Request) -> Result<Option<Duration>, Reply> {
    let Some(text) = request.query("lt") else {
        return Ok(None);
    };
    match text.parse::<u32>() {
        Ok(seconds @ 1..) => Ok(Some(Duration::from_secs(seconds.into()))),
        Ok(0) | Err(_) => Err(bad("lt must be 1 to 4294967295 seconds")),
    }
}

#[derive(Decode)]
#[cbor(map)]
struct SessionRequestBody<'a> {
    #[b(1)]
    app: &'a str,
    #[b(2)]
    instance: &'a str,
    #[n(3)]
    port: u16,
}

fn session_request(request: &Request) -> Result<SessionRequest, Reply> {
    let payload = request.payload();
    let body = if payload.is_empty() {
        let parameter = |name: &str| {
            request
                .query(name)
                .ok_or_else(|| bad(format!("{name} is missing")))
        };
        let port = parameter("port")?
            .parse()
            .map_err(|_| bad("port must be 1 to 65535"))?;
        SessionRequestBody {
            app: parameter("app")?,
            instance: parameter("inst")?,
            port,
        }
    } else if request.content_format() == Some(format::CBOR) {
        let mut decoder = minicbor::Decoder::new(payload);
        let body = decoder
            .decode()
            .map_err(|_| bad("not a map {1: app, 2: instance, 3: port}"))?;
        if decoder.position() != payload.len() {
            return Err(bad("something follows the CBOR map"));
        }
        body
    } else {
        return Err(Reply::new(ResponseType::UnsupportedContentFormat));
    };
    Ok(SessionRequest {
        app: body.app.parse().map_err(bad)?,
        instance: body.instance.parse().map_err(bad)?,
        port: NonZeroU16::new(body.port).ok_or_else(|| bad("port must be 1 to 65535"))?,
    })
}

#[cfg(test)]
mod tests {
    use super::super::message::{Incoming, read};
    use super::*;
    use crate::sessions::records::Left;
    use coap_lite::{CoapOption, MessageClass, Packet};

    fn message(
        code: RequestType,
        path: &str,
        query: &[&str],
        payload: &[u8],
        options: &[(u16, &[u8])],
    ) -> Request {
        let mut packet = Packet::new();
        packet.header.code = MessageClass::Request(code);
        for segment in path.split('/').filter(|segment| !segment.is_empty()) {
            packet.add_option(CoapOption::UriPath, segment.into());
        }
        for parameter in query {
            packet.add_option(CoapOption::UriQuery, (*parameter).into());
        }
        for (number, value) in options {
            packet.add_option((*number).into(), value.to_vec());
        }
        packet.payload = payload.to_vec();
        match read(&packet.to_bytes_unlimited().unwrap()) {
            Incoming::Request(request) => request,
            other @ (Incoming::Ignored | Incoming::Rejected(_) | Incoming::Answer(_)) => {
                panic!("{other:?}")
            }
        }
    }

    fn refused(request: &Request) -> ResponseType {
        operation(request)
            .map(|(operation, _)| panic!("{operation:?}"))
            .unwrap_err()
            .code()
    }

    const ID: &str = "00000000000000ab";
    const CBOR: (u16, &[u8]) = (12, &[60]);
    /// {1: "mail", 2: "a", 3: 7000}
    const BODY: &[u8] = b"\xA3\x01\x64mail\x02\x61a\x03\x19\x1B\x58";

    #[test]
    fn each_request_is_understood() {
        let post = RequestType::Post;
        let (register, format) =
            operation(&message(post, "rd", &["ep=phone", "lt=60"], b"", &[])).unwrap();
        assert_eq!(format, AnswerFormat::Cbor);
        let Operation::Register { endpoint, lifetime } = register else {
            panic!("{register:?}")
        };
        assert_eq!(
            (endpoint.as_str(), lifetime),
            ("phone", Some(Duration::from_secs(60)))
        );

        let sessions = format!("rd/{ID}/s");
        let by_cbor = message(post, &sessions, &[], BODY, &[CBOR]);
        let by_query = message(
            post,
            &sessions,
            &["app=mail", "inst=a", "port=7000"],
            b"",
            &[(17, &[])],
        );
        for (request, expected_format) in [
            (by_cbor, AnswerFormat::Cbor),
            (by_query, AnswerFormat::Text),
        ] {
            let (operation, format) = operation(&request).unwrap();
            assert_eq!(format, expected_format);
            let Operation::RequestSession { id, request } = operation else {
                panic!("{operation:?}")
            };
            assert_eq!(id.to_u64(), 0xAB);
            assert_eq!(
                (
                    request.app.as_str(),
                    request.instance.as_str(),
                    request.port.get()
                ),
                ("mail", "a", 7000)
            );
        }
        let delete = message(
            RequestType::Delete,
            &format!("rd/{ID}/s/deadbeef00000001"),
            &[],
            b"",
            &[],
        );
        assert!(
            matches!(operation(&delete).unwrap().0, Operation::Release { session, .. } if session.slot() == 1)
        );
        let path = format!("rd/{ID}/s/deadbeef00000001");
        let (new_token, format) = operation(&message(post, &path, &[], b"", &[(17, &[])])).unwrap();
        assert_eq!(format, AnswerFormat::Text);
        assert!(
            matches!(new_token, Operation::NewToken { session, .. } if session.slot() == 1),
            "{new_token:?}"
        );
    }

    #[test]
    fn who_may_ask_again_later_is_told_when() {
        let quota = DeviceRefusal::QuotaExceeded {
            what: "sessions_of_terminal",
            retry_after: Duration::from_millis(1500),
        };
        let cases = [
            (DeviceRefusal::Suspended, ResponseType::Forbidden, None),
            (
                DeviceRefusal::SecondState(Left::AddressTaken),
                ResponseType::Forbidden,
                None,
            ),
            (
                DeviceRefusal::AppUnavailable,
                ResponseType::ServiceUnavailable,
                Some(60),
            ),
            (quota, ResponseType::TooManyRequests, Some(2)),
        ];
        let request = message(RequestType::Post, "rd", &["ep=a"], b"", &[]);
        for (refusal, code, max_age_s) in cases {
            let reply = refusal_of(refusal);
            let packet = Packet::from_bytes(&reply.to_bytes(&request, 1)).unwrap();
            assert_eq!(packet.header.code, MessageClass::Response(code));
            assert_eq!(packet.payload, refusal.to_string().into_bytes());
            let max_age = packet
                .get_first_option_as::<coap_lite::option_value::OptionValueU32>(CoapOption::MaxAge)
                .map(|value| value.unwrap().0);
            assert_eq!(max_age, max_age_s, "{refusal}");
        }
    }

    #[test]
    fn each_defect_has_its_code() {
        let (get, post, put) = (RequestType::Get, RequestType::Post, RequestType::Put);
        let sessions = &format!("rd/{ID}/s");
        let with_rest = [BODY, &[0]].concat();
        let port_0 = BODY
            .strip_suffix(&[0x19, 0x1B, 0x58])
            .map(|body| [body, &[0]].concat())
            .unwrap();
        let cases: Vec<(&str, Request, ResponseType)> = vec![
            (
                "unknown path",
                message(get, "elsewhere", &[], b"", &[]),
                ResponseType::NotFound,
            ),
            (
                "path that is not text",
                message(get, "", &[], b"", &[(11, &[0xFF])]),
                ResponseType::NotFound,
            ),
            (
                "method",
                message(put, "rd", &[], b"", &[]),
                ResponseType::MethodNotAllowed,
            ),
            (
                "method on the core",
                message(post, ".well-known/core", &[], b"", &[]),
                ResponseType::MethodNotAllowed,
            ),
            (
                "session",
                message(post, &format!("{sessions}/xyz"), &[], b"", &[]),
                ResponseType::NotFound,
            ),
            (
                "critical option",
                message(post, "rd", &["ep=a"], b"", &[(1, &[])]),
                ResponseType::BadOption,
            ),
            (
                "block-wise",
                message(post, "rd", &["ep=a"], b"", &[(27, &[8])]),
                ResponseType::BadOption,
            ),
            (
                "proxy",
                message(post, "rd", &["ep=a"], b"", &[(35, b"coap://x")]),
                ResponseType::ProxyingNotSupported,
            ),
            (
                "no name",
                message(post, "rd", &["lt=60"], b"", &[]),
                ResponseType::BadRequest,
            ),
            (
                "long name",
                message(post, "rd", &[&format!("ep={}", "x".repeat(64))], b"", &[]),
                ResponseType::BadRequest,
            ),
            (
                "lifetime 0",
                message(post, "rd", &["ep=a", "lt=0"], b"", &[]),
                ResponseType::BadRequest,
            ),
            (
                "lifetime",
                message(post, "rd", &["ep=a", "lt=1h"], b"", &[]),
                ResponseType::BadRequest,
            ),
            (
                "accept",
                message(post, "rd", &["ep=a"], b"", &[(17, &[50])]),
                ResponseType::NotAcceptable,
            ),
            (
                "id",
                message(post, "rd/xyz", &[], b"", &[]),
                ResponseType::Forbidden,
            ),
            (
                "payload format",
                message(post, sessions, &[], BODY, &[]),
                ResponseType::UnsupportedContentFormat,
            ),
            (
                "payload",
                message(post, sessions, &[], b"\xA1\x01", &[CBOR]),
                ResponseType::BadRequest,
            ),
            (
                "payload and more",
                message(post, sessions, &[], &with_rest, &[CBOR]),
                ResponseType::BadRequest,
            ),
            (
                "port 0",
                message(post, sessions, &[], &port_0, &[CBOR]),
                ResponseType::BadRequest,
            ),
            (
                "no port",
                message(post, sessions, &["app=a", "inst=b"], b"", &[]),
                ResponseType::BadRequest,
            ),
            (
                "too long",
                message(post, "rd", &["ep=a"], &[0; 1152], &[]),
                ResponseType::RequestEntityTooLarge,
            ),
        ];
        for (name, request, code) in cases {
            assert_eq!(refused(&request), code, "{name}");
        }
    }
}
