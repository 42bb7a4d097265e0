//! The configuration, read anew while the daemon runs: all of it, or nothing.

use crate::story::{DEVICE_PORT, PUSH_CTL, Story, device, server, wait_until, while_triggers_flow};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::path::Path;
use xtask::lab::{Config, GATEWAY_INSIDE, GATEWAY_METERS, Lab, Nic, Options, Party, Role};

/// A lab with a NIC, `gw-met`, that the configuration doesn't know.
fn story(prefix: &str) -> Story {
    let options = Options::with_realms(prefix, Path::new(PUSH_CTL));
    Story::with(&Options {
        config: Config::default(),
        ..options
    })
}

fn third() -> Nic {
    Nic {
        name: "gw-met".to_owned(),
        role: Role::External,
        trigger_addresses: vec![GATEWAY_METERS.to_owned()],
    }
}

fn reload(lab: &Lab) -> Value {
    lab.push_ctl_json(&["config", "reload"]).unwrap()
}

/// What stderr has if it is refused.
fn refused(lab: &Lab) -> String {
    let output = xtask::child::finish(&mut lab.push_ctl(&["config", "reload"])).unwrap();
    assert!(!output.status.success(), "it was not refused");
    String::from_utf8(output.stderr).unwrap()
}

/// Name, role, addresses, link and program of each NIC.
fn nics(lab: &Lab) -> Value {
    let mut nics = lab.push_ctl_json(&["status"]).unwrap()["nics"].take();
    for nic in nics.as_array_mut().unwrap() {
        nic.as_object_mut().unwrap().remove("index");
    }
    nics
}

fn without_programs(mut nics: Value) -> Value {
    for nic in nics.as_array_mut().unwrap() {
        nic.as_object_mut().unwrap().remove("program_id");
    }
    nics
}

fn wait_for_log(lab: &Lab, words: &str) {
    wait_until(words, || lab.log().contains(words));
}

fn hang_up(lab: &Lab) {
    let pid = Pid::from_raw(lab.pid().unwrap().try_into().unwrap());
    kill(pid, Signal::SIGHUP).unwrap();
}

#[test]
fn what_can_change_does_while_triggers_flow_and_is_told() {
    let story = story("push-reload");
    while_triggers_flow(&story, |_| changes(&story));
}

fn changes(story: &Story) {
    let lab = &story.lab;
    let before = nics(lab);
    let path = lab.config_path();
    assert_eq!(reload(lab), json!({ "config": path, "changes": [] }));
    assert_eq!(nics(lab), before);

    let mut config = Config {
        default_lifetime: "2h".to_owned(),
        idle_after: "5m".to_owned(),
        ..Config::default()
    };
    config.nics.push(third());
    lab.write_config(&config).unwrap();
    let change =
        |key, before: Value, after: &str| json!({ "key": key, "before": before, "after": after });
    let expected = [
        change("sessions.default_lifetime", json!("1h"), "2h"),
        change("data_plane.idle_after", json!("0s"), "5m"),
        change("nic.gw-met", Value::Null, "external 10.64.255.1"),
    ];
    assert_eq!(reload(lab)["changes"], json!(expected));
    for (key, after) in [
        ("data_plane.idle_after", "5m"),
        ("nic.gw-met", "external 10.64.255.1"),
    ] {
        let log = lab.log();
        let mut lines = log.lines();
        let told = lines.any(|line| line.contains(key) && line.contains(after));
        assert!(told, "{key} in {log}");
    }
    let after = nics(lab);
    assert_eq!(after[2]["name"], "gw-met");
    assert_eq!(
        (&after[2]["configured"], &after[2]["mode"]),
        (&json!(true), &json!("native"))
    );
    for at in [0, 1] {
        assert_eq!(after[at]["link_id"], before[at]["link_id"]);
        assert_ne!(
            after[at]["program_id"], before[at]["program_id"],
            "a constant of it changed"
        );
    }
    let registration = story.registered(1);
    let terminal = lab
        .push_ctl_json(&["terminal", "show", &registration])
        .unwrap();
    assert!(
        terminal["expires_in_s"].as_u64().unwrap() > 3600,
        "{terminal}"
    );

    // Another role for one that was attached by hand, and it is the configuration's from then on.
    lab.push_ctl_json(&["nic", "detach", "gw-met"]).unwrap();
    lab.push_ctl_json(&["nic", "attach", "gw-met", "--role", "internal"])
        .unwrap();
    config.nics[2].role = Role::Both;
    lab.write_config(&config).unwrap();
    let changed = &reload(lab)["changes"];
    assert_eq!(
        changed,
        &json!([change(
            "nic.gw-met",
            json!("external 10.64.255.1"),
            "both 10.64.255.1"
        )])
    );
    let now = nics(lab);
    assert_eq!(
        (&now[2]["configured"], &now[2]["role"]),
        (&json!(true), &json!("both"))
    );

    config.nics.pop();
    lab.write_config(&config).unwrap();
    let changed = &reload(lab)["changes"][0];
    assert_eq!(
        changed,
        &json!({ "key": "nic.gw-met", "before": "both 10.64.255.1", "after": null })
    );
    assert_eq!(nics(lab).as_array().unwrap().len(), 2);
    let link = story.shell(Party::Gateway, "ip -j -d link show gw-met");
    assert!(!link.contains("\"xdp\""), "{link}");
}

#[test]
fn a_file_that_cannot_be_used_changes_nothing() {
    let story = story("push-reload-2");
    let lab = &story.lab;
    let before = nics(lab);
    let right = std::fs::read_to_string(lab.config_path()).unwrap();
    let cases = [
        ("slots = [", "push.toml: line "),
        ("colour = \"red\"", "unknown field `colour`"),
        (
            "[data_plane]\nidle_after = \"400d\"",
            "data_plane.idle_after: `1year",
        ),
    ];
    for (text, words) in cases {
        let wrong = if text.starts_with('[') {
            right.replace("idle_after = \"0s\"", "idle_after = \"400d\"")
        } else {
            format!("{text}\n{right}")
        };
        std::fs::write(lab.config_path(), wrong).unwrap();
        let error = refused(lab);
        assert!(
            error.contains("nothing was changed") && error.contains(words),
            "{error}"
        );
        assert!(error.contains("`push-ctl config check`"), "{error}");
        let log = lab.log();
        let mut lines = log.lines();
        let told = lines.any(|line| line.contains("ERROR") && line.contains(words));
        assert!(told, "{words} in {log}");
        assert_eq!(nics(lab), before);
    }
    std::fs::remove_file(lab.config_path()).unwrap();
    let error = refused(lab);
    assert!(error.contains("can't read the configuration"), "{error}");
    lab.write_config(&Config::default()).unwrap();
    assert_eq!(reload(lab)["changes"], json!([]));
}

#[test]
fn a_change_that_needs_a_restart_keeps_all_others_out_too() {
    let story = story("push-reload-3");
    let lab = &story.lab;
    let before = nics(lab);
    let mut config = Config {
        slots: 8192,
        trigger_port: 5051,
        default_lifetime: "2h".to_owned(),
        internal: vec![format!("{}:5684", GATEWAY_INSIDE[0])],
        ..Config::default()
    };
    config.nics.push(third());
    lab.write_config(&config).unwrap();
    let error = refused(lab);
    let keys =
        "sessions.slots, triggers.port and internal.listen can't change while the daemon runs";
    assert!(error.contains(keys), "{error}");
    assert!(
        error.contains("restart it, which keeps delivering"),
        "{error}"
    );
    assert_eq!(nics(lab), before);
    let registration = story.registered(0);
    let terminal = lab
        .push_ctl_json(&["terminal", "show", &registration])
        .unwrap();
    assert!(
        terminal["expires_in_s"].as_u64().unwrap() <= 3600,
        "{terminal}"
    );
}

#[test]
fn what_fails_half_way_is_taken_back() {
    let story = story("push-reload-4");
    let lab = &story.lab;
    let before = nics(lab);
    let mut config = Config {
        idle_after: "5m".to_owned(),
        ..Config::default()
    };
    config.nics[0].role = Role::Both;
    config.nics.push(third());
    config.nics.push(Nic {
        name: "nonesuch".to_owned(),
        role: Role::Internal,
        trigger_addresses: Vec::new(),
    });
    lab.write_config(&config).unwrap();
    let error = refused(lab);
    assert!(
        error.contains("nothing was changed: there is no NIC nonesuch"),
        "{error}"
    );
    assert_eq!(without_programs(nics(lab)), without_programs(before));
    let link = story.shell(Party::Gateway, "ip -j -d link show gw-met");
    assert!(!link.contains("\"xdp\""), "{link}");
    // And what it was works.
    let session = story.authorised(0, DEVICE_PORT);
    let device = device(lab, 0, DEVICE_PORT);
    let mut trigger = vec![0; 48];
    session.trigger(1, &mut trigger);
    server(lab, 0).send(&trigger).unwrap();
    assert_eq!(device.recv(&mut [0; 2048]).unwrap(), 48);
}

#[test]
fn a_hangup_reloads_too() {
    let story = story("push-reload-5");
    let lab = &story.lab;
    hang_up(lab);
    wait_for_log(lab, "reloaded the configuration: no change");
    let config = Config {
        max_lifetime: "48h".to_owned(),
        ..Config::default()
    };
    lab.write_config(&config).unwrap();
    hang_up(lab);
    wait_for_log(lab, "sessions.max_lifetime");
    lab.write_config(&Config {
        slots: 8192,
        ..config
    })
    .unwrap();
    hang_up(lab);
    wait_for_log(
        lab,
        "the configuration in force stays: nothing was changed: sessions.slots can't change",
    );
    assert_eq!(
        lab.push_ctl_json(&["status"]).unwrap()["sessions"]["slots"],
        4096
    );
}
