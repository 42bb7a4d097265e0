use super::*;
use crate::events::{Bus, OperatorAction, Refusal, What};
use crate::sessions::News;
use crate::sessions::records::{EndCause, RegistrationId};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::time::Instant;

/// Longer than anything here takes.
const LIMIT: Duration = Duration::from_secs(60);

fn action(object: &str, refusal: Option<&str>) -> Event {
    Event::now(What::OperatorAction(Box::new(OperatorAction {
        action: "session revoke".to_owned(),
        object: object.to_owned(),
        change: None,
        refusal: refusal.map(|cause| Refusal {
            cause: cause.to_owned(),
            detail: "no session has this identifier".to_owned(),
        }),
        uid: Some(0),
        pid: Some(7),
    })))
}

fn open(file: &Path, max_bytes: u64, keep: u32) -> Log {
    let file = file.to_owned();
    Log::open(Settings {
        file,
        max_bytes,
        keep,
    })
    .unwrap()
}

fn lines(file: &Path) -> Vec<EventLine> {
    let text = fs::read_to_string(file).unwrap();
    assert!(text.is_empty() || text.ends_with('\n'), "{text}");
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect()
}

#[test]
fn what_was_done_refused_or_came_to_pass_is_on_disk_without_secrets_also_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("made/audit.log");
    let bus = Bus::audited(open(&file, 1 << 20, 3));
    bus.publish(action("deadbeef00000001", None));
    bus.publish(action(
        "ptk_00112233445566778899aabbccddeeff",
        Some("unknown_session"),
    ));
    bus.publish(Event::now(What::NoticeUnanswered {
        to: "10.0.0.1:7000".parse().unwrap(),
        notice: "teardown",
        session: None,
        terminal: None,
    }));
    bus.audit().unwrap().flush(LIMIT);
    drop(bus);
    // The machine stopped in the middle of a line.
    let mut torn = OpenOptions::new().append(true).open(&file).unwrap();
    torn.write_all(b"{\"at\":\"20").unwrap();
    let before = fs::read_to_string(&file).unwrap();

    let bus = Bus::audited(open(&file, 1 << 20, 3));
    bus.publish(Event::now(What::Lifecycle(News::SessionEnded {
        id: "deadbeef00000001".parse().unwrap(),
        app: "mail".parse().unwrap(),
        terminal: RegistrationId::from_u64(1),
        cause: EndCause::Revoked,
    })));
    bus.audit().unwrap().flush(LIMIT);
    let text = fs::read_to_string(&file).unwrap();
    let added = text.strip_prefix(&before).expect("only appended to");
    assert_eq!(text.lines().count(), 4, "{text}");
    assert!(!text.contains("ptk_0"), "{text}");
    let ended: EventLine = serde_json::from_str(added.trim()).unwrap();
    assert_eq!(
        (ended.kind.as_str(), ended.cause.as_deref()),
        ("session_ended", Some("revoked"))
    );
    let done: Vec<EventLine> = before
        .lines()
        .take(2)
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(done[0].outcome.as_deref(), Some("done"));
    assert_eq!(
        (done[1].outcome.as_deref(), done[1].cause.as_deref()),
        (Some("refused"), Some("unknown_session"))
    );
    assert_eq!((done[1].uid, done[1].pid), (Some(0), Some(7)));
    let mode = fs::metadata(&file).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, MODE);
}

#[test]
fn a_file_that_is_long_enough_is_put_aside_and_the_oldest_goes() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("audit.log");
    let one_line = EventLine::from(&action("0000", None)).to_json().len() as u64 + 1;
    let log = open(&file, 3 * one_line, 2);
    for n in 0..10 {
        log.record(Arc::new(action(&format!("{n:04}"), None)));
    }
    log.flush(LIMIT);
    let objects = |file: &Path| {
        let objects = lines(file).into_iter().map(|line| line.object.unwrap());
        objects.collect::<Vec<_>>()
    };
    assert_eq!(objects(&file), ["0009"]);
    assert_eq!(objects(&aside(&file, 1)), ["0006", "0007", "0008"]);
    assert_eq!(objects(&aside(&file, 2)), ["0003", "0004", "0005"]);
    assert!(!aside(&file, 3).exists());
}

#[test]
fn a_disk_that_fails_is_a_warning_and_what_was_recorded_is_written_once_it_works() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("audit.log");
    let log = open(&file, 1 << 20, 2);
    assert!(log.warnings().is_empty());
    log.record(Arc::new(action("0000", None)));
    log.flush(LIMIT);
    // From now on, the disk is full: it is looked at again only after a failure, so one is made.
    let log = {
        drop(log);
        fs::remove_file(&file).unwrap();
        symlink("/dev/full", &file).unwrap();
        open(&file, 1 << 20, 2)
    };
    log.record(Arc::new(action("0001", None)));
    log.flush(LIMIT);
    assert!(!log.is_written());
    let [warning] = &log.warnings()[..] else {
        panic!("{:?}", log.warnings());
    };
    assert!(
        warning.contains("No space left") && warning.contains("1 entries wait"),
        "{warning}"
    );

    fs::remove_file(&file).unwrap();
    let begun = Instant::now();
    while !log.is_written() {
        assert!(begun.elapsed() < LIMIT, "{:?}", log.warnings());
        std::thread::yield_now();
    }
    assert_eq!(lines(&file)[0].object.as_deref(), Some("0001"));
    assert!(log.warnings().is_empty());
}
