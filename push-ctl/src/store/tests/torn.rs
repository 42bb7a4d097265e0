//! Commits that the machine's end has torn: of what was being written, some sectors are on the disk, and others aren't.

use super::*;
use std::ops::Range;

/// What a disk writes in one piece.
const SECTOR: usize = 512;

/// Where two files differ, in sectors.
fn changed_sectors(before: &[u8], after: &[u8]) -> Vec<Range<usize>> {
    (0..after.len())
        .step_by(SECTOR)
        .map(|at| at..(at + SECTOR).min(after.len()))
        .filter(|sector| before.get(sector.clone()) != after.get(sector.clone()))
        .collect()
}

/// The same whenever it is asked for, and different each time that it is.
fn coin(state: &mut u64) -> bool {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state >> 60 < 8
}

#[test]
fn a_commit_that_was_torn_is_there_or_is_not_and_what_was_acknowledged_before_it_is() {
    let directory = full();
    let path = directory.path().join(FILE_NAME);
    let (before, one_more) = (everything(), {
        let mut image = everything();
        for n in 0..20 {
            let mut terminal = image.terminals[0].clone();
            terminal.id = RegistrationId::from_u64(1000 + n);
            terminal.endpoint = format!("torn-{n}").parse().unwrap();
            image.terminals.push(terminal);
        }
        image
    });
    // As it is while the daemon runs: it isn't closed, as it wasn't when the machine ended.
    let mut store = RedbStore::open(directory.path(), None).unwrap();
    let at_first = fs::read(&path).unwrap();
    store.apply(&batch(&one_more)).unwrap();
    let at_last = fs::read(&path).unwrap();
    drop(store);
    let changed = changed_sectors(&at_first, &at_last);
    assert!(changed.len() > 8, "{} sectors", changed.len());

    let sorted = |mut image: Image| {
        image.terminals.sort_by_key(|terminal| terminal.id);
        image
    };
    let (before, one_more) = (sorted(before), sorted(one_more));
    let (mut old, mut new, mut state) = (0, 0, 0x9E37_79B9_7F4A_7C15);
    for round in 0..60 {
        let mut torn = at_first.clone();
        torn.resize(at_last.len(), 0);
        for (n, sector) in changed.iter().enumerate() {
            // In order, in the opposite one, or any.
            let is_written = match round {
                0..20 => n * 20 < changed.len() * round,
                20..40 => (changed.len() - n) * 20 < changed.len() * (round - 20),
                _ => coin(&mut state),
            };
            if is_written {
                torn[sector.clone()].copy_from_slice(&at_last[sector.clone()]);
            }
        }
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join(FILE_NAME), &torn).unwrap();
        let found = RedbStore::open(directory.path(), None).and_then(|store| store.load());
        let found = sorted(found.unwrap_or_else(|error| panic!("round {round}: {error}")));
        if found == before {
            old += 1;
        } else {
            assert!(found == one_more, "round {round}: half of a commit");
            new += 1;
        }
    }
    assert!(old > 0, "of {old} and {new}");
}
