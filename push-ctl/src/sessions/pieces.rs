//! Lists that grow without moving what is in them, and the terminals, which are kept in one.

use super::TerminalEntry;
use super::records::{AppName, InstanceName, RegistrationId};
use push_common::wire::SessionId;
use std::collections::BTreeMap;
use std::ops::Bound;

/// How long a piece is.
const PIECE: usize = 4096;

/// A list in pieces that stay where they are: one more record never costs more than a new piece, however many
/// there are, where a vector would copy them all.
pub(super) struct Pieces<T> {
    pieces: Vec<Vec<T>>,
    len: usize,
}

impl<T> Pieces<T> {
    pub(super) const fn new() -> Self {
        Self {
            pieces: Vec::new(),
            len: 0,
        }
    }

    pub(super) const fn len(&self) -> usize {
        self.len
    }

    pub(super) fn push(&mut self, record: T) {
        if self.len.is_multiple_of(PIECE) {
            self.pieces.push(Vec::with_capacity(PIECE));
        }
        if let Some(last) = self.pieces.last_mut() {
            last.push(record);
            self.len += 1;
        }
    }

    pub(super) fn get(&self, index: usize) -> Option<&T> {
        self.pieces.get(index / PIECE)?.get(index % PIECE)
    }

    pub(super) fn get_mut(&mut self, index: usize) -> Option<&mut T> {
        self.pieces.get_mut(index / PIECE)?.get_mut(index % PIECE)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.pieces.iter().flatten()
    }
}

/// All terminals, each at a place of its own for as long as it is known. Who knows the place has the terminal at
/// once; by its id it takes a tree, as a table that has to grow does so at once.
pub(super) struct Terminals {
    entries: Pieces<Option<TerminalEntry>>,
    free: Vec<u32>,
    places: BTreeMap<RegistrationId, u32>,
}

impl Terminals {
    pub(super) const fn new() -> Self {
        Self {
            entries: Pieces::new(),
            free: Vec::new(),
            places: BTreeMap::new(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.places.len()
    }

    /// Places that were ever used: those below this one.
    pub(super) fn places_used(&self) -> u32 {
        u32::try_from(self.entries.len()).unwrap_or(u32::MAX)
    }

    pub(super) fn place(&self, id: RegistrationId) -> Option<u32> {
        self.places.get(&id).copied()
    }

    /// The terminal at this place, if there is one.
    pub(super) fn at(&self, place: u32) -> Option<&TerminalEntry> {
        self.entries.get(place as usize)?.as_ref()
    }

    pub(super) fn at_mut(&mut self, place: u32) -> Option<&mut TerminalEntry> {
        self.entries.get_mut(place as usize)?.as_mut()
    }

    pub(super) fn contains_key(&self, id: &RegistrationId) -> bool {
        self.places.contains_key(id)
    }

    pub(super) fn get(&self, id: &RegistrationId) -> Option<&TerminalEntry> {
        self.at(self.place(*id)?)
    }

    pub(super) fn get_mut(&mut self, id: &RegistrationId) -> Option<&mut TerminalEntry> {
        let place = self.place(*id)?;
        self.at_mut(place)
    }

    /// Has a terminal that wasn't known before.
    pub(super) fn insert(&mut self, id: RegistrationId, entry: TerminalEntry) {
        let place = self.free.pop().unwrap_or_else(|| {
            self.entries.push(None);
            self.places_used() - 1
        });
        if let Some(before) = self.entries.get_mut(place as usize) {
            *before = Some(entry);
            self.places.insert(id, place);
        }
    }

    pub(super) fn remove(&mut self, id: &RegistrationId) -> Option<TerminalEntry> {
        let place = self.places.remove(id)?;
        self.free.push(place);
        self.entries.get_mut(place as usize)?.take()
    }

    /// All of them, in order of their ids.
    pub(super) fn values(&self) -> impl ExactSizeIterator<Item = &TerminalEntry> {
        // Each place in the tree has its terminal.
        self.places.values().map(|&place| {
            let entry = self.at(place);
            entry.expect("a terminal is where its id says")
        })
    }

    /// Those after one, in order of their ids.
    pub(super) fn after(
        &self,
        after: Option<RegistrationId>,
    ) -> impl Iterator<Item = &TerminalEntry> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let places = self.places.range((from, Bound::Unbounded));
        places.filter_map(|(_, &place)| self.at(place))
    }
}

/// What of an application a session is for.
pub(super) type Purpose = (AppName, InstanceName);

/// The sessions of a terminal that aren't over, in order: few, so that a tree would take more memory, and not less
/// time.
#[derive(Default)]
pub(super) struct LiveSessions(Vec<(Purpose, SessionId)>);

impl LiveSessions {
    pub(super) const fn len(&self) -> usize {
        self.0.len()
    }

    fn find(&self, purpose: &Purpose) -> Result<usize, usize> {
        self.0.binary_search_by(|(other, _)| other.cmp(purpose))
    }

    pub(super) fn get(&self, purpose: &Purpose) -> Option<SessionId> {
        let at = self.find(purpose).ok()?;
        self.0.get(at).map(|&(_, id)| id)
    }

    pub(super) fn insert(&mut self, purpose: Purpose, id: SessionId) {
        match self.find(&purpose) {
            Ok(at) => self.0[at].1 = id,
            Err(at) => {
                if self.0.is_empty() {
                    // Most have no other one.
                    self.0.reserve_exact(1);
                }
                self.0.insert(at, (purpose, id));
            }
        }
    }

    pub(super) fn remove(&mut self, purpose: &Purpose) {
        if let Ok(at) = self.find(purpose) {
            self.0.remove(at);
        }
    }

    pub(super) fn purposes(&self) -> impl Iterator<Item = &Purpose> {
        self.0.iter().map(|(purpose, _)| purpose)
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = SessionId> {
        self.0.iter().map(|&(_, id)| id)
    }
}
