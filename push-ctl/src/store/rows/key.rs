//! The key of a token in a row: a byte string of 16 bytes if it is as it is, of 24 if it is encrypted.

use crate::store::KeyEncryptionKey;
use minicbor::decode::Error;
use minicbor::encode::Write;
use minicbor::{Decode, Decoder, Encode, Encoder};
use push_common::tag::TagKey;
use zeroize::Zeroizing;

pub(super) enum KeyRow {
    Plain(Zeroizing<[u8; 16]>),
    Wrapped([u8; 24]),
}

/// Why a key can't be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoKey {
    #[error("its key is encrypted")]
    NoKek,
    #[error("its encrypted key was changed")]
    Changed,
}

impl KeyRow {
    pub(super) fn new(key: &TagKey, kek: Option<&KeyEncryptionKey>) -> Self {
        kek.map_or_else(
            || Self::Plain(Zeroizing::new(key.to_bytes())),
            |kek| Self::Wrapped(kek.wrap(key)),
        )
    }

    pub(super) fn read(self, kek: Option<&KeyEncryptionKey>) -> Result<Zeroizing<TagKey>, NoKey> {
        match (self, kek) {
            (Self::Plain(key), _) => Ok(TagKey::from_bytes(*key).into()),
            (Self::Wrapped(key), Some(kek)) => kek.unwrap(&key).ok_or(NoKey::Changed),
            (Self::Wrapped(_), None) => Err(NoKey::NoKek),
        }
    }
}

impl<C> Encode<C> for KeyRow {
    fn encode<W: Write>(
        &self,
        encoder: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        let bytes = match self {
            Self::Plain(key) => &key[..],
            Self::Wrapped(key) => &key[..],
        };
        encoder.bytes(bytes)?.ok()
    }
}

impl<'b, C> Decode<'b, C> for KeyRow {
    fn decode(decoder: &mut Decoder<'b>, _: &mut C) -> Result<Self, Error> {
        let bytes = decoder.bytes()?;
        if let Ok(key) = <[u8; 16]>::try_from(bytes) {
            Ok(Self::Plain(Zeroizing::new(key)))
        } else if let Ok(key) = bytes.try_into() {
            Ok(Self::Wrapped(key))
        } else {
            Err(Error::message(format!(
                "a key has {} bytes, not 16 or 24",
                bytes.len()
            )))
        }
    }
}
