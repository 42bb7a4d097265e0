//! Sessions that move, or come back from the store: another daemon delivers for them, and accepts no trigger
//! again.

use crate::story::{APP, DEVICE_PORT, Story, device, server, verdicts, wait_until};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Output;
use xtask::child;
use xtask::lab::Lab;

const TRIGGER_BYTES: usize = 100;

/// Ends the daemon, and has the next one begin without a session table; without a store too, unless it is kept.
fn begin_anew(lab: &Lab, keep_store: bool) {
    lab.stop().unwrap();
    fs::remove_dir_all(lab.folder().join("bpf/push")).unwrap();
    if !keep_store {
        fs::remove_file(lab.folder().join("state/push.redb")).unwrap();
    }
    lab.start().unwrap();
}

/// About the newest sequence number that the store knows of the only session in it.
fn newest_in_store(lab: &Lab) -> Option<u64> {
    let mut dump = lab.push_ctl(&["store", "dump", "-c"]);
    let dump = child::output(dump.arg(lab.config_path())).unwrap();
    let mut rows = dump.lines().map(|row| serde_json::from_str(row).unwrap());
    let session = rows.find(|row: &Value| row["record"] == "session").unwrap();
    session["newest_sequence"].as_u64()
}

fn refused(output: &Output, what: &str) {
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains(what), "{what}: {told}");
}

/// What sends the trigger with a sequence number of a session, and what waits for one to arrive and gives its length.
fn way(story: &Story) -> (impl Fn(u64), impl Fn() -> usize) {
    let session = story.authorised(0, DEVICE_PORT);
    let (server, device) = (server(&story.lab, 0), device(&story.lab, 0, DEVICE_PORT));
    let send = move |sequence| {
        let mut trigger = [0; TRIGGER_BYTES];
        session.trigger(sequence, &mut trigger);
        server.send(&trigger).unwrap();
    };
    let arrives = move || device.recv(&mut [0; 2048]).unwrap();
    (send, arrives)
}

#[test]
fn sessions_go_on_at_another_daemon_and_no_trigger_is_accepted_again() {
    let story = Story::begin("push-move");
    let lab = &story.lab;
    let (send, arrives) = way(&story);
    for sequence in 1000..1010 {
        send(sequence);
        arrives();
    }

    let file = lab.folder().join("sessions.jsonl");
    let path = file.to_str().unwrap();
    let run = |arguments: &[&str]| child::finish(&mut lab.push_ctl(arguments)).unwrap();
    let exported = lab.push_ctl_json(&["session", "export", path]).unwrap();
    assert_eq!(
        (&exported["terminals"], &exported["sessions"]),
        (&json!(1), &json!(1))
    );
    assert_eq!(
        fs::metadata(&file).unwrap().permissions().mode() & 0o777,
        0o600
    );
    refused(&run(&["session", "export", path]), "is there already");
    refused(&run(&["session", "export", "-"]), "to a file");
    refused(
        &run(&[
            "session",
            "export",
            &format!("{path}.2"),
            "--app",
            "nonesuch",
        ]),
        "no application",
    );
    assert!(
        !fs::exists(format!("{path}.2")).unwrap(),
        "what is of no use stays"
    );

    begin_anew(lab, false);
    assert_eq!(lab.push_ctl_json(&["terminal", "list"]).unwrap(), json!([]));
    refused(
        &run(&["session", "import", path]),
        &format!("there is no application {APP}"),
    );
    story.clients().add_app(APP).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
    refused(&run(&["session", "import", path]), "chmod 600");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    let whole = fs::read(&file).unwrap();
    fs::write(&file, &whole[..whole.len() - 1]).unwrap();
    refused(&run(&["session", "import", path]), "ends too early");
    fs::write(&file, &whole).unwrap();
    let dry = lab
        .push_ctl_json(&["session", "import", path, "--dry-run"])
        .unwrap();
    assert_eq!(
        (&dry["sessions"], &dry["dry_run"]),
        (&json!(1), &json!(true))
    );
    send(1010);
    wait_until("the session isn't here yet", || {
        verdicts(lab, "gw-app")["unknown_session"] == 1
    });
    let imported = lab.push_ctl_json(&["session", "import", path]).unwrap();
    assert_eq!(
        (&imported["terminals"], &imported["sessions"]),
        (&json!(1), &json!(1))
    );

    // Again after a reboot, of which only the store is left.
    for (round, fresh) in [(0, 1011), (1, 1012)] {
        if round == 1 {
            begin_anew(lab, true);
        }
        let before = verdicts(lab, "gw-app");
        for old in [1000, 1009] {
            send(old);
        }
        wait_until("old triggers are refused", || {
            verdicts(lab, "gw-app")["replayed"] == before["replayed"] + 2
        });
        send(fresh);
        let length = arrives();
        assert_eq!(length, TRIGGER_BYTES);
        let after = verdicts(lab, "gw-app");
        assert_eq!(after["replayed"], before["replayed"] + 2, "round {round}");
    }
    let again = lab.push_ctl_json(&["session", "import", path]).unwrap();
    assert_eq!(
        (&again["sessions"], &again["sessions_known"]),
        (&json!(0), &json!(1))
    );
    let audit = fs::read_to_string(lab.folder().join("state/audit.log")).unwrap();
    assert!(audit.contains("session export") && audit.contains("session import"));
}

/// The kernel forgets all windows then. What is let through after the store was written to last isn't known
/// afterwards if nobody could write it any more.
#[test]
fn no_trigger_is_accepted_again_after_the_machine_was_restarted() {
    let story = Story::begin("push-reboot");
    let lab = &story.lab;
    let (send, arrives) = way(&story);
    let count = |verdict: &str| verdicts(lab, "gw-app")[verdict];

    for is_orderly in [true, false] {
        let newest = if is_orderly { 1000 } else { 2000 };
        send(newest);
        arrives();
        if is_orderly {
            lab.stop().unwrap();
        } else {
            let block = newest / 128 * 128;
            wait_until("the store knows", || newest_in_store(lab) == Some(block));
            lab.kill().unwrap();
        }
        fs::remove_dir_all(lab.folder().join("bpf/push")).unwrap();
        lab.start().unwrap();

        send(newest);
        wait_until("a trigger from before is refused", || {
            count("replayed") == 1
        });
        // Neither the next one is, nor one that it has overtaken.
        for fresh in [newest + 1, newest - 1] {
            send(fresh);
            arrives();
        }
        assert_eq!(count("replayed"), 1, "orderly: {is_orderly}");
    }
}

/// The store isn't told then, and need not be: who comes next finds the windows in the kernel, however it comes.
#[test]
fn no_trigger_is_accepted_again_after_an_upgrade_nor_after_who_came_of_it_was_killed() {
    let story = Story::begin("push-upgraded");
    let lab = &story.lab;
    let (send, arrives) = way(&story);
    send(1000);
    arrives();
    lab.push_ctl_json(&["upgrade"]).unwrap();
    let refused = |times| {
        send(1000);
        wait_until("a trigger from before is refused", || {
            verdicts(lab, "gw-app")["replayed"] == times
        });
    };
    refused(1);
    lab.kill().unwrap();
    lab.start().unwrap();
    refused(2);
    send(1001);
    arrives();
}
