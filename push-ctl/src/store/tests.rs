mod encrypted;
pub(crate) mod hostile;
mod torn;

use super::*;
use crate::credentials::ApiKey;
use crate::dataplane::{Policy, Rate, Tunnel};
use crate::sessions::records::{
    AppFailure, Availability, Credential, CredentialId, EndCause, IssuedToken, Left, Monitor,
    OperativeState, Path as DevicePath, Previous, Proof, Quotas, SessionState, Tokens, UnixTime,
};
use push_common::token::Token;
use push_common::wire::SessionId;
use std::num::NonZeroU16;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

fn token() -> IssuedToken {
    IssuedToken::new(&Token::from_bytes(*b"a secret of 16 b"), 0)
}

fn everything() -> Image {
    let terminal = |id: u64, state| Terminal {
        id: RegistrationId::from_u64(id),
        endpoint: format!("device {id}").parse().unwrap(),
        path: DevicePath {
            realm: (id == 2).then(|| "meters".parse().unwrap()),
            device: "fd00:64::2".parse().unwrap(),
            gateway: "[fd00:64::1]:5683".parse().unwrap(),
        },
        port: 40_000,
        lifetime: Duration::from_secs(3600),
        state,
    };
    let session = |slot: u32, state| Session {
        id: SessionId::new(slot, 0xDEAD_BEEF),
        terminal: RegistrationId::from_u64(1),
        app: "mail".parse().unwrap(),
        instance: format!("instance {slot}").parse().unwrap(),
        port: NonZeroU16::new(7000).unwrap(),
        tunnel: (slot == 1).then(|| Tunnel {
            peer: "10.70.0.2".parse().unwrap(),
            teid: u32::MAX,
        }),
        window: (slot == 2).then(|| Box::new([u64::MAX, 1, 2, 3])),
        state,
    };
    let at = UnixTime::from_millis(1_700_000_000_123);
    let causes = [
        EndCause::Released,
        EndCause::Replaced,
        EndCause::Deregistered,
        EndCause::Expired,
        EndCause::Revoked,
        EndCause::AppRemoved,
        EndCause::AppServerFailed,
        EndCause::AppEnded,
        EndCause::TerminalSuspended,
        EndCause::TerminalRemoved,
        EndCause::AddressTaken,
        EndCause::NotRotated,
    ];
    let mut sessions = vec![
        session(0, SessionState::Requested(token())),
        session(
            1,
            SessionState::Authorised(Tokens {
                current: token(),
                previous: Some(Previous {
                    token: token(),
                    until: at,
                }),
                next: Some(token()),
                rotate_by: Some(at),
            }),
        ),
    ];
    sessions.extend(
        (2..)
            .zip(causes)
            .map(|(slot, cause)| session(slot, SessionState::Ended { at, cause })),
    );
    Image {
        terminals: vec![
            terminal(1, OperativeState::First { expires: at }),
            terminal(
                2,
                OperativeState::Second {
                    since: at,
                    cause: Left::Deregistered,
                },
            ),
            terminal(
                3,
                OperativeState::Second {
                    since: at,
                    cause: Left::AddressTaken,
                },
            ),
            terminal(
                4,
                OperativeState::Suspended {
                    since: at,
                    expires: UnixTime::from_millis(u64::MAX),
                },
            ),
            terminal(
                u64::MAX,
                OperativeState::Second {
                    since: at,
                    cause: Left::Expired,
                },
            ),
        ],
        sessions,
        apps: vec![
            App {
                name: "chat".parse().unwrap(),
                created: at,
                policy_slot: NonZeroU16::new(4095).unwrap(),
                policy: Policy {
                    rate: Some(Rate {
                        interval: Duration::from_nanos(142_857_143),
                        burst: 7,
                    }),
                    sources: vec![
                        "192.0.2.0/24".parse().unwrap(),
                        "2001:db8::7/128".parse().unwrap(),
                    ],
                    max_payload: Some(0),
                    dscp: Some(46),
                    coalescing_window: Some(Duration::from_secs(5)),
                    return_acks: true,
                },
                credentials: vec![
                    Credential {
                        id: CredentialId::from_u64(1),
                        proof: Proof::ApiKey("$argon2id$".to_owned()),
                        created: at,
                        expires: None,
                    },
                    Credential {
                        id: CredentialId::from_u64(u64::MAX),
                        proof: Proof::Certificate([4; 32]),
                        created: at,
                        expires: Some(at),
                    },
                ],
                quotas: Quotas {
                    sessions: Some(1),
                    sessions_per_terminal: Some(u32::MAX),
                    validations_per_minute: Some(0),
                    triggers_per_second: Some(7),
                },
                monitor: Some(Monitor {
                    url: Some("https://chat.example/status".to_owned()),
                    interval: Duration::from_secs(30),
                    unreachable_after: Duration::from_millis(1),
                    inactive_after: Some(Duration::from_hours(1)),
                }),
                availability: Availability::Failed {
                    since: at,
                    cause: AppFailure::Announced,
                },
                removed: true,
            },
            App {
                name: "mail".parse().unwrap(),
                created: at,
                policy_slot: NonZeroU16::new(1).unwrap(),
                policy: Policy::default(),
                credentials: vec![Credential {
                    id: app_key().old_id(),
                    ..app_key().credential(at)
                }],
                quotas: Quotas::default(),
                monitor: None,
                availability: Availability::Available,
                removed: false,
            },
        ],
    }
}

/// The same as far as version 1 had room for it.
fn everything_of_version_1() -> Image {
    let mut image = everything();
    image
        .terminals
        .retain(|terminal| ![3, 4].contains(&terminal.id.to_u64()));
    for terminal in &mut image.terminals {
        terminal.path.realm = None;
        terminal.port = 5683;
    }
    image.sessions.retain(|session| session.id.slot() < 8);
    for session in &mut image.sessions {
        session.tunnel = None;
        session.window = None;
        if let SessionState::Authorised(tokens) = &mut session.state {
            *tokens = Tokens::only(tokens.current.clone());
        }
    }
    image.apps.remove(0);
    image
}

/// What version 1 wrote for that: key and value, in hexadecimal digits.
const TERMINALS_OF_VERSION_1: [(u64, &str); 3] = [
    (
        1,
        "0185686465766963652031820150fd00006400000000000000000000000282018250fd0000640000000000000000000000011916331a0036ee808200811b0000018bcfe5687b",
    ),
    (
        2,
        "0185686465766963652032820150fd00006400000000000000000000000282018250fd0000640000000000000000000000011916331a0036ee808201821b0000018bcfe5687b00",
    ),
    (
        u64::MAX,
        "0185781b646576696365203138343436373434303733373039353531363135820150fd00006400000000000000000000000282018250fd0000640000000000000000000000011916331a0036ee808201821b0000018bcfe5687b01",
    ),
];
const SESSIONS_OF_VERSION_1: [&str; 8] = [
    "01861adeadbeef01646d61696c6a696e7374616e63652030191b588200818300503139c6d5a18a7b07f476b7b6cc8cbdbf58200fea42669b0de1e77d3776162d6a6078a870032677332dc0bdf30defc50495e9",
    "01861adeadbeef01646d61696c6a696e7374616e63652031191b588201818300503139c6d5a18a7b07f476b7b6cc8cbdbf58200fea42669b0de1e77d3776162d6a6078a870032677332dc0bdf30defc50495e9",
    "01861adeadbeef01646d61696c6a696e7374616e63652032191b588202821b0000018bcfe5687b00",
    "01861adeadbeef01646d61696c6a696e7374616e63652033191b588202821b0000018bcfe5687b01",
    "01861adeadbeef01646d61696c6a696e7374616e63652034191b588202821b0000018bcfe5687b02",
    "01861adeadbeef01646d61696c6a696e7374616e63652035191b588202821b0000018bcfe5687b03",
    "01861adeadbeef01646d61696c6a696e7374616e63652036191b588202821b0000018bcfe5687b04",
    "01861adeadbeef01646d61696c6a696e7374616e63652037191b588202821b0000018bcfe5687b05",
];
const APP_OF_VERSION_1: (&str, &str) = (
    "mail",
    "01825820d244519ba6bbdf27de7d9767132832c1c777d4a022b6822dec89cc7518c4eb721b0000018bcfe5687b",
);

/// A directory with a store of version 1.
fn version_1() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    drop(RedbStore::open(directory.path(), None).unwrap());
    let database = Database::open(directory.path().join(FILE_NAME)).unwrap();
    let bytes = |digits: &str| hex::decode(digits).unwrap();
    let transaction = database.begin_write().unwrap();
    {
        let mut meta = transaction.open_table(META).unwrap();
        meta.insert("version", 1).unwrap();
        let mut terminals = transaction.open_table(TERMINALS).unwrap();
        for (id, row) in TERMINALS_OF_VERSION_1 {
            terminals.insert(id, &*bytes(row)).unwrap();
        }
        let mut sessions = transaction.open_table(SESSIONS).unwrap();
        for (slot, row) in (0..).zip(SESSIONS_OF_VERSION_1) {
            sessions.insert(slot, &*bytes(row)).unwrap();
        }
        let (name, row) = APP_OF_VERSION_1;
        let mut apps = transaction.open_table(APPS).unwrap();
        apps.insert(name, &*bytes(row)).unwrap();
    }
    transaction.commit().unwrap();
    directory
}

fn app_key() -> ApiKey {
    ApiKey::from_bytes(*b"a secret of an application: 32 b")
}

fn batch(image: &Image) -> Batch {
    Batch {
        terminals: image
            .terminals
            .iter()
            .map(|terminal| (terminal.id, Some(terminal.clone())))
            .collect(),
        slots: image
            .sessions
            .iter()
            .map(|session| (session.id.slot(), Some(session.clone())))
            .collect(),
        apps: image
            .apps
            .iter()
            .map(|app| (app.name.clone(), Some(app.clone())))
            .collect(),
    }
}

/// A directory with a store that has everything in it, closed.
fn full() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let image = everything();
    RedbStore::open(directory.path(), None)
        .unwrap()
        .apply(&batch(&image))
        .unwrap();
    directory
}

#[test]
fn everything_comes_back() {
    let directory = full();
    assert_eq!(
        RedbStore::open(directory.path(), None)
            .unwrap()
            .load()
            .unwrap(),
        everything()
    );
}

#[test]
fn what_is_deleted_does_not_come_back() {
    let directory = full();
    let image = everything();
    let mut store = RedbStore::open(directory.path(), None).unwrap();
    let batch = Batch {
        terminals: vec![(image.terminals[0].id, None)],
        slots: vec![(0, None)],
        apps: vec![(image.apps[0].name.clone(), None)],
    };
    store.apply(&batch).unwrap();
    drop(store);
    let image = RedbStore::open(directory.path(), None)
        .unwrap()
        .load()
        .unwrap();
    assert_eq!(
        (
            image.terminals.len(),
            image.sessions.len(),
            image.apps.len()
        ),
        (4, 13, 1)
    );
}

#[test]
fn no_secret_that_was_given_out_is_in_the_file_and_others_can_not_read_it() {
    let directory = full();
    let path = directory.path().join(FILE_NAME);
    assert_eq!(
        fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o600
    );
    let content = fs::read(&path).unwrap();
    let app_key = app_key().to_text();
    let digits = app_key.strip_prefix("pak_").unwrap();
    for secret in [&b"a secret of"[..], b"ptk_", b"pak_", digits.as_bytes()] {
        assert!(!content.windows(secret.len()).any(|window| window == secret));
    }
    assert!(content.windows(4).any(|window| window == b"mail"));
}

#[test]
fn a_second_process_is_kept_out() {
    let directory = tempfile::tempdir().unwrap();
    let first = RedbStore::open(directory.path(), None).unwrap();
    let second = RedbStore::open(directory.path(), None).unwrap_err();
    assert!(matches!(second, StoreError::InUse(_)), "{second}");
    drop(first);
    RedbStore::open(directory.path(), None).unwrap();
}

/// Opens a store whose file is `content`; it must be refused, in one line, and left as it is.
fn refusal(content: &[u8]) -> StoreError {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(FILE_NAME);
    fs::write(&path, content).unwrap();
    let error = RedbStore::open(directory.path(), None).unwrap_err();
    assert!(!error.to_string().contains('\n'), "{error}");
    assert!(error.to_string().contains("push.redb"), "{error}");
    assert!(
        fs::read(&path).unwrap() == content,
        "the file was changed: {error}"
    );
    error
}

#[test]
fn a_damaged_file_is_refused_and_left_as_it_is() {
    let directory = full();
    let good = fs::read(directory.path().join(FILE_NAME)).unwrap();
    for (what, content) in [
        ("empty", &[][..]),
        ("text", b"this is not a database at all\n"),
        ("its first byte", &good[..1]),
        ("its first page", &good[..4096]),
        ("half of it", &good[..good.len() / 2]),
        ("all but a byte", &good[..good.len() - 1]),
        ("zeros", &vec![0; good.len()]),
    ] {
        let error = refusal(content);
        assert!(
            matches!(error, StoreError::Damaged { .. }),
            "{what}: {error}"
        );
    }
}

/// Damage that the storage engine overlooks has to be in what nothing refers to.
#[test]
fn a_changed_byte_is_refused_or_changes_nothing() {
    let directory = full();
    let good = fs::read(directory.path().join(FILE_NAME)).unwrap();
    let (headers, pages) = ((0..512).step_by(5), (512..good.len()).step_by(20_011));
    let mut refused = 0;
    for at in headers.chain(pages) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(FILE_NAME);
        let mut bad = good.clone();
        bad[at] ^= 0x55;
        fs::write(&path, &bad).unwrap();
        match RedbStore::open(directory.path(), None).and_then(|store| store.load()) {
            Ok(image) => assert_eq!(image, everything(), "byte {at}"),
            Err(error) => {
                refused += 1;
                assert!(fs::read(&path).unwrap() == bad, "byte {at}: {error}");
            }
        }
    }
    assert!(refused > 20, "{refused}");
}

#[test]
fn a_value_that_is_no_record_is_refused() {
    let directory = full();
    let database = Database::open(directory.path().join(FILE_NAME)).unwrap();
    let transaction = database.begin_write().unwrap();
    transaction
        .open_table(SESSIONS)
        .unwrap()
        .insert(3, &[9_u8, 9][..])
        .unwrap();
    transaction.commit().unwrap();
    drop(database);
    let error = refusal(&fs::read(directory.path().join(FILE_NAME)).unwrap());
    assert!(
        error
            .to_string()
            .contains("session in slot 3: format 9 instead of 1"),
        "{error}"
    );
}

#[test]
fn another_version_is_refused_and_left_as_it_is() {
    let directory = full();
    let database = Database::open(directory.path().join(FILE_NAME)).unwrap();
    let transaction = database.begin_write().unwrap();
    transaction
        .open_table(META)
        .unwrap()
        .insert("version", VERSION + 1)
        .unwrap();
    transaction.commit().unwrap();
    drop(database);
    let error = refusal(&fs::read(directory.path().join(FILE_NAME)).unwrap());
    let expected = format!(
        "has version {}, this push-ctl reads versions 1 to {VERSION}",
        VERSION + 1
    );
    assert!(error.to_string().contains(&expected), "{error}");
}

#[test]
fn a_store_of_version_1_becomes_one_of_the_current_version() {
    let directory = version_1();
    for _ in 0..2 {
        let store = RedbStore::open(directory.path(), None).unwrap();
        let found = read(&store.database, store.path(), None).unwrap();
        assert_eq!(found.version, VERSION);
        assert_eq!(found.image, everything_of_version_1());
    }
}

#[test]
fn a_store_of_version_1_that_can_not_be_read_is_left_as_it_is() {
    let directory = version_1();
    let database = Database::open(directory.path().join(FILE_NAME)).unwrap();
    let transaction = database.begin_write().unwrap();
    transaction
        .open_table(APPS)
        .unwrap()
        .insert("mail", &[1_u8][..])
        .unwrap();
    transaction.commit().unwrap();
    drop(database);
    let error = refusal(&fs::read(directory.path().join(FILE_NAME)).unwrap());
    assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
}

#[test]
fn an_application_without_a_policy_slot_is_none_of_the_current_version() {
    let directory = full();
    let database = Database::open(directory.path().join(FILE_NAME)).unwrap();
    let transaction = database.begin_write().unwrap();
    let (name, row) = APP_OF_VERSION_1;
    transaction
        .open_table(APPS)
        .unwrap()
        .insert(name, &*hex::decode(row).unwrap())
        .unwrap();
    transaction.commit().unwrap();
    drop(database);
    let error = refusal(&fs::read(directory.path().join(FILE_NAME)).unwrap());
    assert!(
        error
            .to_string()
            .contains("application mail: no policy slot"),
        "{error}"
    );
}

#[test]
fn a_killed_daemon_leaves_a_file_that_can_be_used() {
    let directory = full();
    let store = RedbStore::open(directory.path(), None).unwrap();
    let as_if_killed = tempfile::tempdir().unwrap();
    fs::copy(store.path(), as_if_killed.path().join(FILE_NAME)).unwrap();
    assert_eq!(
        RedbStore::open(as_if_killed.path(), None)
            .unwrap()
            .load()
            .unwrap(),
        everything()
    );
}

#[test]
fn a_directory_that_can_not_be_made_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    fs::write(&file, "").unwrap();
    let error = RedbStore::open(&file.join("state"), None)
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with("can't create ") && error.contains("file/state"),
        "{error}"
    );
}
