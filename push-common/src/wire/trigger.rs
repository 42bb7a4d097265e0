//! The push trigger: its header, the identifier of the session it is for, and what it asks for.

use crate::tag::{self, TAG_LEN, TagKey};
use core::{fmt, str};
use zerocopy::byteorder::network_endian::{U16, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// First bytes of a trigger. `F5` can't begin a message of CoAP, DTLS, STUN or RTP, so that a push
/// client can receive triggers on a socket it uses for one of those.
pub const MAGIC: [u8; 3] = [0xF5, 0x50, 0x53];

/// The version of the trigger format that this crate speaks.
pub const VERSION: u8 = 1;

/// Length of a trigger header in bytes.
pub const TRIGGER_HEADER_LEN: usize = size_of::<TriggerHeader>();

/// Bytes of the trigger header that the tag covers.
pub const SIGNED_LEN: usize = 24;

/// Longest payload of a trigger in bytes.
pub const MAX_PAYLOAD_LEN: usize = 1200;

/// UDP port on which a gateway takes triggers, unless configured otherwise. (IANA hasn't assigned it.)
pub const DEFAULT_TRIGGER_PORT: u16 = 5050;

/// What a trigger asks for, or that it is an acknowledgement.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    FromBytes,
    IntoBytes,
    KnownLayout,
    Immutable,
    Unaligned,
)]
#[repr(transparent)]
pub struct Flags(u8);

impl Flags {
    /// A trigger that asks for nothing.
    pub const NONE: Self = Self(0);
    /// The device is to acknowledge the trigger.
    pub const ACK_REQUESTED: Self = Self(1);
    /// This is no trigger but a device's acknowledgement of one.
    pub const ACKNOWLEDGEMENT: Self = Self(2);
    /// Greatest collapse key.
    pub const MAX_COLLAPSE_KEY: u8 = 15;

    /// The flags in this byte.
    #[inline(always)]
    #[must_use]
    pub const fn from_bits(bits: u8) -> Self {
        Self(bits)
    }

    /// The byte on the wire: bit 0 asks for an acknowledgement, bit 1 marks one, the high half is the
    /// collapse key; the others are 0.
    #[inline(always)]
    #[must_use]
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// The same with a collapse key, of which the low 4 bits count: of triggers with the same key,
    /// one is enough within the session's coalescing window. 0 is none.
    #[must_use]
    pub const fn with_collapse_key(self, key: u8) -> Self {
        Self(self.0 & 0x0F | key << 4)
    }

    /// Below 16; 0 is none.
    #[inline(always)]
    #[must_use]
    pub const fn collapse_key(self) -> u8 {
        self.0 >> 4
    }

    /// Whether the device is to acknowledge the trigger.
    #[inline(always)]
    #[must_use]
    pub const fn asks_for_acknowledgement(self) -> bool {
        self.0 & Self::ACK_REQUESTED.0 != 0
    }

    /// Whether this is an acknowledgement.
    #[inline(always)]
    #[must_use]
    pub const fn is_acknowledgement(self) -> bool {
        self.0 == Self::ACKNOWLEDGEMENT.0
    }

    /// Whether these are flags of a trigger, all of them defined.
    #[inline(always)]
    #[must_use]
    pub const fn is_trigger(self) -> bool {
        self.0 & 0x0E == 0
    }
}

/// Push trigger header, version 1; the format is in [`super`].
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct TriggerHeader {
    /// [`MAGIC`].
    pub magic: [u8; 3],
    /// [`VERSION`].
    pub version: u8,
    /// What the trigger asks for.
    pub flags: Flags,
    /// Which of a session's tokens signed this trigger, so that a token can be rotated with an overlap.
    pub token_generation: u8,
    /// Bytes that follow this header.
    pub payload_length: U16,
    /// The session the trigger is for.
    pub session_id: U64,
    /// Strictly increasing per session; each value is let through once.
    pub sequence: U64,
    /// See [`crate::tag`].
    pub tag: [u8; TAG_LEN],
}

impl TriggerHeader {
    /// Whether it begins with [`MAGIC`] and [`VERSION`]: one comparison of four bytes.
    #[inline(always)]
    #[must_use]
    pub fn is_spoken(&self) -> bool {
        const BEGINNING: [u8; 4] = [MAGIC[0], MAGIC[1], MAGIC[2], VERSION];
        self.as_bytes().first_chunk() == Some(&BEGINNING)
    }
}

/// Names an instance of an application on a device: a slot of the gateway's session table, and the
/// generation of what is in it, which is random, not zero, and new each time the slot is used anew.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(u64);

impl SessionId {
    /// The identifier of what is in `slot` in this `generation`.
    #[must_use]
    pub const fn new(slot: u32, generation: u32) -> Self {
        Self((generation as u64) << 32 | slot as u64)
    }

    /// The identifier with this value on the wire.
    #[inline(always)]
    #[must_use]
    pub const fn from_u64(value: u64) -> Self {
        Self(value)
    }

    /// The value on the wire.
    #[must_use]
    pub const fn to_u64(self) -> u64 {
        self.0
    }

    /// Index into the session table.
    #[inline(always)]
    #[must_use]
    pub const fn slot(self) -> u32 {
        self.0 as u32
    }

    /// Generation of the slot; 0 is never given out.
    #[inline(always)]
    #[must_use]
    pub const fn generation(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

/// 16 hexadecimal digits.
impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not that of a session identifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParseSessionIdError;

impl fmt::Display for ParseSessionIdError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a session identifier: expected 16 hexadecimal digits")
    }
}

impl core::error::Error for ParseSessionIdError {}

impl str::FromStr for SessionId {
    type Err = ParseSessionIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() != 16 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(ParseSessionIdError);
        }
        u64::from_str_radix(text, 16)
            .map(Self)
            .map_err(|_| ParseSessionIdError)
    }
}

/// What is wrong with bytes that were to be a trigger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TriggerError {
    /// Shorter than a header.
    Truncated,
    /// Doesn't begin with [`MAGIC`].
    Magic,
    /// A version other than [`VERSION`].
    Version(u8),
    /// Flags that are not defined, or don't go together.
    Flags(u8),
    /// The header's payload length is not that of the payload.
    Length,
    /// The payload is longer than [`MAX_PAYLOAD_LEN`].
    PayloadTooLong,
    /// The tag was made with another key, or for other bytes.
    Tag,
}

impl fmt::Display for TriggerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Truncated => write!(
                f,
                "shorter than a trigger header of {TRIGGER_HEADER_LEN} bytes"
            ),
            Self::Magic => f.write_str("doesn't begin with the magic of a trigger"),
            Self::Version(version) => write!(f, "version {version}, this is version {VERSION}"),
            Self::Flags(flags) => write!(
                f,
                "flags {flags:#04x} are not defined, or don't go together"
            ),
            Self::Length => f.write_str("payload length is not that of the payload"),
            Self::PayloadTooLong => write!(f, "payload longer than {MAX_PAYLOAD_LEN} bytes"),
            Self::Tag => f.write_str("the tag was made with another key, or for other bytes"),
        }
    }
}

impl core::error::Error for TriggerError {}

impl TriggerHeader {
    /// The header of a trigger for `session_id` that carries `payload`, signed with `key`.
    ///
    /// # Errors
    ///
    /// [`TriggerError::PayloadTooLong`].
    pub fn sign(
        key: TagKey,
        flags: Flags,
        token_generation: u8,
        session_id: SessionId,
        sequence: u64,
        payload: &[u8],
    ) -> Result<Self, TriggerError> {
        if payload.len() > MAX_PAYLOAD_LEN {
            return Err(TriggerError::PayloadTooLong);
        }
        let mut header = Self {
            magic: MAGIC,
            version: VERSION,
            flags,
            token_generation,
            payload_length: U16::new(payload.len() as u16),
            session_id: U64::new(session_id.to_u64()),
            sequence: U64::new(sequence),
            tag: [0; TAG_LEN],
        };
        header.tag = tag::tag(key, header.signed(), payload);
        Ok(header)
    }

    /// The acknowledgement of this trigger: a datagram of its own.
    #[must_use]
    pub fn acknowledgement(&self, key: TagKey) -> Self {
        let mut header = Self {
            flags: Flags::ACKNOWLEDGEMENT,
            payload_length: U16::ZERO,
            ..*self
        };
        header.tag = tag::tag(key, header.signed(), &[]);
        header
    }

    /// Takes a datagram, trigger or acknowledgement, apart into header and payload; the tag is not
    /// looked at.
    ///
    /// # Errors
    ///
    /// All of [`TriggerError`] but [`TriggerError::Tag`].
    pub fn parse(datagram: &[u8]) -> Result<(&Self, &[u8]), TriggerError> {
        let (header, payload) =
            Self::ref_from_prefix(datagram).map_err(|_| TriggerError::Truncated)?;
        if header.magic != MAGIC {
            Err(TriggerError::Magic)
        } else if header.version != VERSION {
            Err(TriggerError::Version(header.version))
        } else if !header.flags.is_trigger() && !header.flags.is_acknowledgement() {
            Err(TriggerError::Flags(header.flags.bits()))
        } else if usize::from(header.payload_length.get()) != payload.len() {
            Err(TriggerError::Length)
        } else if payload.len() > MAX_PAYLOAD_LEN {
            Err(TriggerError::PayloadTooLong)
        } else {
            Ok((header, payload))
        }
    }

    /// Whether the holder of `key` made this trigger, with this payload.
    ///
    /// # Errors
    ///
    /// [`TriggerError::Tag`].
    pub fn verify(&self, key: TagKey, payload: &[u8]) -> Result<(), TriggerError> {
        let expected = tag::tag(key, self.signed(), payload);
        if tag::equal(tag::words(expected), tag::words(self.tag)) {
            Ok(())
        } else {
            Err(TriggerError::Tag)
        }
    }

    fn signed(&self) -> &[u8; SIGNED_LEN] {
        let (signed, _tag) = self
            .as_bytes()
            .split_first_chunk()
            .expect("a header is longer than its signed part");
        signed
    }
}

const _: () = {
    assert!(TRIGGER_HEADER_LEN == 40);
    assert!(TRIGGER_HEADER_LEN - TAG_LEN == SIGNED_LEN);
};

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    fn signed(payload: &[u8]) -> Vec<u8> {
        let key = TagKey::from_bytes([9; 16]);
        let header = TriggerHeader::sign(
            key,
            Flags::NONE,
            3,
            SessionId::new(7, 0xABCD_EF01),
            42,
            payload,
        )
        .unwrap();
        [header.as_bytes(), payload].concat()
    }

    #[test]
    fn a_session_id_reads_back() {
        let id = SessionId::new(0x1234, 0xDEAD_BEEF);
        assert_eq!((id.slot(), id.generation()), (0x1234, 0xDEAD_BEEF));
        assert_eq!(std::format!("{id}"), "deadbeef00001234");
        assert_eq!("deadbeef00001234".parse(), Ok(id));
        for text in [
            "",
            "deadbeef0000123",
            "deadbeef000012345",
            "deadbeef0000123g",
            "+eadbeef00001234",
        ] {
            assert_eq!(
                text.parse::<SessionId>(),
                Err(ParseSessionIdError),
                "{text}"
            );
        }
    }

    #[test]
    fn each_defect_has_its_own_error() {
        let good = signed(b"hello");
        let with = |at: usize, byte: u8| {
            let mut bad = good.clone();
            bad[at] = byte;
            TriggerHeader::parse(&bad).map(|_| ()).unwrap_err()
        };
        assert_eq!(
            TriggerHeader::parse(&good[..39]),
            Err(TriggerError::Truncated)
        );
        assert_eq!(with(0, 0xF4), TriggerError::Magic);
        assert_eq!(with(3, 2), TriggerError::Version(2));
        for flags in [2 | 1, 2 | 0x10, 4, 8] {
            assert_eq!(with(4, flags), TriggerError::Flags(flags));
        }
        assert_eq!(with(7, 4), TriggerError::Length);
        assert_eq!(TriggerHeader::parse(&good[..44]), Err(TriggerError::Length));
        let key = TagKey::from_bytes([9; 16]);
        assert_eq!(
            TriggerHeader::sign(
                key,
                Flags::NONE,
                0,
                SessionId::new(0, 1),
                0,
                &[0; MAX_PAYLOAD_LEN + 1]
            ),
            Err(TriggerError::PayloadTooLong)
        );
    }

    #[test]
    fn an_acknowledgement_is_signed_for_itself() {
        let key = TagKey::from_bytes([9; 16]);
        let trigger = signed(b"hello");
        let (header, _) = TriggerHeader::parse(&trigger).unwrap();
        let ack = header.acknowledgement(key);
        let (parsed, payload) = TriggerHeader::parse(ack.as_bytes()).unwrap();
        assert!(parsed.flags.is_acknowledgement() && payload.is_empty());
        assert_eq!(parsed.verify(key, payload), Ok(()));
        assert_eq!(
            (parsed.session_id, parsed.sequence),
            (header.session_id, header.sequence)
        );
        assert_ne!(parsed.tag, header.tag);
    }

    #[test]
    fn a_collapse_key_leaves_the_other_flags_alone() {
        let flags = Flags::ACK_REQUESTED.with_collapse_key(0xFF);
        assert_eq!(flags.bits(), 0xF1);
        assert!(flags.is_trigger() && flags.asks_for_acknowledgement());
        assert_eq!(flags.collapse_key(), Flags::MAX_COLLAPSE_KEY);
    }

    proptest! {
        #[test]
        fn a_signed_trigger_verifies_and_any_changed_bit_does_not(
            payload in proptest::collection::vec(any::<u8>(), 0..100), at in any::<prop::sample::Index>(), bit in 0..8_u8,
        ) {
            let key = TagKey::from_bytes([9; 16]);
            let mut datagram = signed(&payload);
            let (header, parsed) = TriggerHeader::parse(&datagram).unwrap();
            prop_assert_eq!(header.verify(key, parsed), Ok(()));
            prop_assert_eq!(header.verify(TagKey::from_bytes([8; 16]), parsed), Err(TriggerError::Tag));
            let at = at.index(datagram.len());
            datagram[at] ^= 1_u8 << bit;
            let verdict = TriggerHeader::parse(&datagram).and_then(|(header, payload)| header.verify(key, payload));
            prop_assert!(verdict.is_err());
        }
    }
}
