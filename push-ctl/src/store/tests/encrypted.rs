//! Keys that are encrypted, and key files that are not the right ones.

use super::*;

fn kek(byte: u8) -> Option<KeyEncryptionKey> {
    Some(KeyEncryptionKey::new(&[byte; 32]))
}

/// Whether a key of [`everything`] is in the file as it is.
fn shows_keys(directory: &tempfile::TempDir) -> bool {
    let content = fs::read(directory.path().join(FILE_NAME)).unwrap();
    let key = token().key.to_bytes();
    content.windows(key.len()).any(|window| window == key)
}

#[test]
fn keys_are_encrypted_from_the_first_start_with_a_key_file() {
    let directory = full();
    assert!(shows_keys(&directory), "this test can see keys");
    for _ in 0..2 {
        let store = RedbStore::open(directory.path(), kek(1)).unwrap();
        assert_eq!(store.load().unwrap(), everything());
    }
    assert!(!shows_keys(&directory));

    // Also what comes later.
    let image = everything();
    let mut store = RedbStore::open(directory.path(), kek(1)).unwrap();
    store.apply(&batch(&image)).unwrap();
    drop(store);
    assert!(!shows_keys(&directory));
}

#[test]
fn encrypted_keys_are_of_no_use_without_their_key_file() {
    let directory = full();
    drop(RedbStore::open(directory.path(), kek(1)).unwrap());
    let content = fs::read(directory.path().join(FILE_NAME)).unwrap();
    for (kek, expected) in [(None, Refusal::NoKeyFile), (kek(2), Refusal::OtherKeyFile)] {
        let error = RedbStore::open(directory.path(), kek).unwrap_err();
        assert!(
            matches!(&error, StoreError::Locked { refusal, .. } if *refusal == expected),
            "{error}"
        );
        assert!(fs::read(directory.path().join(FILE_NAME)).unwrap() == content);
    }
}

#[test]
fn another_key_file_or_none_takes_over_and_not_while_the_store_is_open() {
    let directory = full();
    let rekey = |from: Option<KeyEncryptionKey>, to: Option<KeyEncryptionKey>| {
        RedbStore::rekey(directory.path(), from.as_ref(), to.as_ref())
    };
    rekey(None, kek(1)).unwrap();
    rekey(kek(1), kek(2)).unwrap();
    let error = rekey(kek(1), kek(3)).unwrap_err();
    assert!(matches!(error, StoreError::Locked { .. }), "{error}");
    let store = RedbStore::open(directory.path(), kek(2)).unwrap();
    assert_eq!(store.load().unwrap(), everything());
    let error = rekey(kek(2), None).unwrap_err();
    assert!(matches!(error, StoreError::InUse(_)), "{error}");
    drop(store);
    rekey(kek(2), None).unwrap();
    assert!(shows_keys(&directory));
}

#[test]
fn an_encrypted_key_that_was_changed_is_damage() {
    let directory = full();
    drop(RedbStore::open(directory.path(), kek(1)).unwrap());
    let image = everything();
    let session = &image.sessions[0];
    let mut row = rows::session(session, kek(1).as_ref()).to_vec();
    let wrapped = kek(1).unwrap().wrap(&token().key);
    let at = row.windows(24).position(|window| window == wrapped);
    row[at.unwrap()] ^= 1;
    let database = Database::open(directory.path().join(FILE_NAME)).unwrap();
    let transaction = database.begin_write().unwrap();
    transaction
        .open_table(SESSIONS)
        .unwrap()
        .insert(session.id.slot(), &row[..])
        .unwrap();
    transaction.commit().unwrap();
    drop(database);
    let error = RedbStore::open(directory.path(), kek(1)).unwrap_err();
    assert!(
        error.to_string().contains("its encrypted key was changed"),
        "{error}"
    );
}

#[test]
fn a_store_that_can_not_be_written_anew_stays_and_leaves_no_half_of_another() {
    let directory = full();
    let path = directory.path().join(FILE_NAME);
    let content = fs::read(&path).unwrap();
    // As if the disk was full: nothing can be written to this.
    std::os::unix::fs::symlink("/dev/full", directory.path().join(UNFINISHED_NAME)).unwrap();
    let error = RedbStore::open(directory.path(), kek(1)).unwrap_err();
    assert!(
        matches!(error, StoreError::Io { .. } | StoreError::Write { .. }),
        "{error}"
    );
    assert!(fs::read(&path).unwrap() == content);
    assert!(fs::symlink_metadata(directory.path().join(UNFINISHED_NAME)).is_err());
    drop(RedbStore::open(directory.path(), kek(1)).unwrap());
}
