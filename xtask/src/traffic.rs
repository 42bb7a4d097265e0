//! A generator of triggers, and a sink that judges every datagram it gets.
//!
//! Both know what each trigger has to look like: its payload is made from its sequence number, its
//! tag from the session's key. So the sink can tell a damaged trigger from a whole one, and one that
//! came twice from one that came once, without being told what was sent.

mod generator;
mod sink;

pub use generator::{Load, Sent, Turn};
pub use sink::{Received, Sink};

use push_common::tag::TagKey;
use push_common::wire::{Flags, MAX_PAYLOAD_LEN, SessionId, TRIGGER_HEADER_LEN, TriggerHeader};
use zerocopy::IntoBytes;

/// Datagrams per system call.
const BATCH: usize = 64;

/// Longest trigger in bytes.
const MAX_TRIGGER_LEN: usize = TRIGGER_HEADER_LEN + MAX_PAYLOAD_LEN;

/// A session, as an application server knows it.
#[derive(Clone, Copy, Debug)]
pub struct Session {
    /// Its identifier.
    pub id: SessionId,
    /// The key derived from its token.
    pub key: TagKey,
    /// Which of its tokens that is.
    pub token_generation: u8,
}

impl Session {
    /// Writes the trigger with this `sequence` to `datagram`, as long as that is.
    ///
    /// # Panics
    ///
    /// If `datagram` is shorter than a trigger header, or longer than the longest trigger.
    pub fn trigger(&self, sequence: u64, datagram: &mut [u8]) {
        let (header, payload) = datagram.split_at_mut(TRIGGER_HEADER_LEN);
        number(sequence, payload);
        let signed = TriggerHeader::sign(
            self.key,
            Flags::NONE,
            self.token_generation,
            self.id,
            sequence,
            payload,
        );
        header.copy_from_slice(
            signed
                .expect("no longer than the longest trigger")
                .as_bytes(),
        );
    }
}

/// Fills `payload` with words that each tell the sequence number and their own place.
fn number(sequence: u64, payload: &mut [u8]) {
    for (place, word) in (0_u64..).zip(payload.chunks_mut(8)) {
        let numbered = (sequence ^ place.rotate_right(8)).to_be_bytes();
        word.copy_from_slice(&numbered[..word.len()]);
    }
}
