//! The test vectors that implementers of senders get, which another implementation has made.

use push_common::tag::TagKey;
use push_common::token::Token;
use push_common::wire::{Flags, SessionId, TriggerError, TriggerHeader};
use serde::Deserialize;
use zerocopy::IntoBytes;

#[derive(Deserialize)]
struct Vectors {
    valid: Vec<Valid>,
    invalid: Vec<Invalid>,
}

#[derive(Deserialize)]
struct Valid {
    name: String,
    token: String,
    token_sha256: String,
    key: String,
    session_id: String,
    flags: u8,
    token_generation: u8,
    sequence: u64,
    payload: String,
    tag: String,
    datagram: String,
}

#[derive(Deserialize)]
struct Invalid {
    name: String,
    error: String,
    key: String,
    datagram: String,
}

fn vectors() -> Vectors {
    serde_json::from_str(include_str!("../trigger-vectors.json")).unwrap()
}

#[test]
fn a_signed_trigger_is_that_of_the_vector() {
    for vector in vectors().valid {
        let name = &vector.name;
        let token: Token = vector.token.parse().unwrap();
        assert_eq!(hex::encode(token.hash().0), vector.token_sha256, "{name}");
        assert_eq!(hex::encode(token.key().to_bytes()), vector.key, "{name}");

        let id: SessionId = vector.session_id.parse().unwrap();
        let payload = hex::decode(&vector.payload).unwrap();
        let header = TriggerHeader::sign(
            token.key(),
            Flags::from_bits(vector.flags),
            vector.token_generation,
            id,
            vector.sequence,
            &payload,
        )
        .unwrap();
        assert_eq!(hex::encode(header.tag), vector.tag, "{name}");
        let datagram = [header.as_bytes(), &payload].concat();
        assert_eq!(hex::encode(&datagram), vector.datagram, "{name}");

        let (parsed, carried) = TriggerHeader::parse(&datagram).unwrap();
        assert_eq!((parsed, carried), (&header, &payload[..]), "{name}");
        assert_eq!(parsed.verify(token.key(), carried), Ok(()), "{name}");
    }
}

#[test]
fn an_invalid_trigger_is_refused_for_the_reason_of_the_vector() {
    for vector in vectors().invalid {
        let key: [u8; 16] = hex::decode(&vector.key).unwrap().try_into().unwrap();
        let datagram = hex::decode(&vector.datagram).unwrap();
        let error = TriggerHeader::parse(&datagram)
            .and_then(|(header, payload)| header.verify(TagKey::from_bytes(key), payload))
            .unwrap_err();
        let name = match error {
            TriggerError::Truncated => "truncated",
            TriggerError::Magic => "magic",
            TriggerError::Version(_) => "version",
            TriggerError::Flags(_) => "flags",
            TriggerError::Length => "length",
            TriggerError::PayloadTooLong => "payload_too_long",
            TriggerError::Tag => "tag",
        };
        assert_eq!(name, vector.error, "{}", vector.name);
    }
}
