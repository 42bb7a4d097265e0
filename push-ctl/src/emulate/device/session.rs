//! The session of a device: which triggers are its own, and come for the first time.

use crate::emulate::news::Fault;
use push_common::replay::{self, Offer};
use push_common::tag::TagKey;
use push_common::wire::{SessionId, TriggerHeader};

#[derive(Debug)]
pub(super) struct Session {
    id: SessionId,
    /// The newest first.
    keys: Vec<(u8, TagKey)>,
    window: [u64; replay::WORDS],
}

impl Session {
    pub(super) fn new(id: SessionId, key: (u8, TagKey)) -> Self {
        Self {
            id,
            keys: vec![key],
            window: [0; replay::WORDS],
        }
    }

    pub(super) const fn id(&self) -> SessionId {
        self.id
    }

    /// Takes the key of another token.
    pub(super) fn rotate(&mut self, key: (u8, TagKey)) {
        // The one before is valid for a while; before that, too, if the one before never came to be.
        self.keys.retain(|(known, _)| *known != key.0);
        self.keys.truncate(2);
        self.keys.insert(0, key);
    }

    /// Takes a trigger apart that is for this session, if there is one, was made with its token, and comes for the
    /// first time.
    pub(super) fn receive<'a>(
        session: Option<&mut Self>,
        datagram: &'a [u8],
    ) -> Result<(&'a TriggerHeader, &'a [u8], TagKey), Fault> {
        let (header, payload) = TriggerHeader::parse(datagram).map_err(Fault::Trigger)?;
        if header.flags.is_acknowledgement() {
            return Err(Fault::Acknowledgement);
        }
        let id = SessionId::from_u64(header.session_id.get());
        let session = session.filter(|session| session.id == id);
        let session = session.ok_or(Fault::Session(id))?;
        let generation = header.token_generation;
        let key = session.keys.iter().find(|(known, _)| *known == generation);
        let &(_, key) = key.ok_or(Fault::TokenGeneration(generation))?;
        header.verify(key, payload).map_err(Fault::Trigger)?;
        let sequence = header.sequence.get();
        if !replay::in_range(sequence) {
            return Err(Fault::OutsideWindow(sequence));
        }
        let word = &mut session.window[replay::word_index(sequence)];
        match replay::offer(*word, sequence) {
            Offer::Accept(changed) => *word = changed,
            Offer::Replayed => return Err(Fault::Replayed(sequence)),
            Offer::TooOld => return Err(Fault::OutsideWindow(sequence)),
        }
        Ok((header, payload, key))
    }
}
