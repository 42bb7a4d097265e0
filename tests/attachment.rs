//! How the program gets onto NICs, what survives the process that put it there, and when it refuses.

use crate::gateway::{EXT, Gateway, INT, SLOTS, nics, open, sh, sources};
use crate::story::wait_until;
use push_common::maps::{DEFAULT_SESSION_SLOTS, LAYOUT_VERSION};
use push_common::tag::TagKey;
use push_common::wire::SessionId;
use push_ctl::dataplane::{Nic, SessionImage, object};
use std::path::Path;
use std::time::Duration;

fn session(slot: u32) -> SessionImage {
    SessionImage {
        id: SessionId::new(slot, 0xABCD_0000 + slot),
        device: "10.64.0.2:7000".parse().unwrap(),
        source: sources()[0],
        realm: None,
        tunnel: None,
        policy: 0,
        token_generation: 0,
        key: TagKey::from_bytes([slot as u8; 16]).into(),
        previous_key: None,
        window: [0; 4],
        expires_in: Duration::from_secs(3600),
    }
}

/// The identifier of the XDP program on a NIC, and its mode, as `ip` tells.
fn seen_by_ip(nic: &str) -> Option<(u32, u64)> {
    let json: serde_json::Value =
        serde_json::from_str(&sh(&format!("ip -j -d link show {nic}"))).unwrap();
    let xdp = json[0].get("xdp")?;
    Some((xdp["prog"]["id"].as_u64()? as u32, xdp["mode"].as_u64()?))
}

#[test]
fn the_program_is_attached_in_native_mode_by_a_link_and_every_tool_sees_it() {
    const NATIVE: u64 = 1;
    Gateway::run(|gateway| {
        let pin_dir = gateway.settings.pin_dir.display();
        for nic in nics(&gateway.dataplane) {
            assert_eq!(
                (nic.mode, nic.adopted, nic.takes_triggers),
                ("native", false, nic.name == EXT)
            );
            assert_eq!(seen_by_ip(&nic.name), Some((nic.program_id, NATIVE)));
            let link: serde_json::Value = serde_json::from_str(&sh(&format!(
                "bpftool -j link show pinned {pin_dir}/link_{}",
                nic.name
            )))
            .unwrap();
            assert_eq!(link["id"], nic.link_id);
            assert_eq!(link["prog_id"], nic.program_id);
            assert!(sh(&format!("bpftool prog show id {}", nic.program_id)).contains("name push "));
        }
    });
}

#[test]
fn the_next_process_adopts_links_sessions_and_counters() {
    Gateway::run(|gateway| {
        let Gateway {
            mut dataplane,
            settings,
            _state,
        } = gateway;
        for slot in [0, SLOTS - 1] {
            dataplane.install(&session(slot)).unwrap();
        }
        dataplane.test_run(EXT, &[0; 60]).unwrap();
        let before = nics(&dataplane);
        drop(dataplane);
        assert_eq!(
            seen_by_ip(EXT).unwrap().0,
            before[0].program_id,
            "detached with its process"
        );

        let dataplane = open(&settings).unwrap();
        let after = nics(&dataplane);
        for (before, after) in before.iter().zip(&after) {
            assert!(after.adopted);
            assert_eq!(after.link_id, before.link_id);
            assert_ne!(
                after.program_id, before.program_id,
                "the program was not replaced"
            );
            assert_eq!(after.mode, "native");
        }
        assert_eq!(
            dataplane.installed(),
            [session(0).id, session(SLOTS - 1).id]
        );
        let packets: u64 = dataplane.verdicts().unwrap()[0]
            .by_verdict
            .iter()
            .map(|count| count.1)
            .sum();
        assert_eq!(packets, 1);
    });
}

#[test]
fn a_nic_that_came_back_under_its_name_is_attached_anew() {
    Gateway::run(|gateway| {
        let Gateway {
            mut dataplane,
            settings,
            _state,
        } = gateway;
        dataplane.install(&session(3)).unwrap();
        drop(dataplane);
        sh(
            "ip link del int; ip link add int type veth peer name int-peer; ip link set int up; ip link set int-peer up",
        );
        assert_eq!(seen_by_ip(INT), None);
        let dataplane = open(&settings).unwrap();
        let nics = nics(&dataplane);
        assert_eq!(
            nics.iter()
                .map(|nic| (nic.mode, nic.adopted))
                .collect::<Vec<_>>(),
            [("native", true), ("native", false)]
        );
        assert_eq!(seen_by_ip(INT).unwrap().0, nics[1].program_id);
        assert_eq!(dataplane.installed(), [session(3).id]);
    });
}

#[test]
fn a_nic_that_left_the_configuration_is_detached_and_the_others_keep_their_counters() {
    Gateway::run(|gateway| {
        let Gateway {
            mut dataplane,
            mut settings,
            _state,
        } = gateway;
        dataplane.test_run(INT, &[0; 60]).unwrap();
        drop(dataplane);
        settings.nics.remove(0);
        let dataplane = open(&settings).unwrap();
        // The kernel lets go of a link some time after its last reference has gone.
        wait_until("it is detached", || seen_by_ip(EXT).is_none());
        let counters = &dataplane.verdicts().unwrap()[0];
        assert_eq!(counters.name, INT);
        assert_eq!(
            counters.by_verdict.iter().map(|count| count.1).sum::<u64>(),
            1
        );
    });
}

/// Frames that take more than a page: a driver takes a program for them only if it can do with buffers in parts.
#[test]
fn a_nic_of_jumbo_frames_takes_the_program_in_native_mode() {
    Gateway::run(|gateway| {
        let Gateway {
            dataplane,
            settings,
            _state,
        } = gateway;
        drop(dataplane);
        let pin_dir = settings.pin_dir.display();
        sh(&format!("rm {pin_dir}/link_*"));
        wait_until("both are detached", || {
            seen_by_ip(EXT).is_none() && seen_by_ip(INT).is_none()
        });
        sh(
            "for nic in ext int; do ip link set $nic-peer mtu 9000; ip link set $nic mtu 9000; done",
        );
        let dataplane = open(&settings).unwrap();
        assert!(
            nics(&dataplane)
                .iter()
                .all(|nic| nic.mode == "native" && !nic.adopted)
        );
    });
}

#[test]
fn another_program_on_the_nic_is_left_alone_and_named() {
    Gateway::run(|gateway| {
        let mut settings = gateway.settings.clone();
        settings.pin_dir.set_file_name("other");
        let before = seen_by_ip(EXT);
        let error = open(&settings).err().unwrap().to_string();
        let (id, _) = before.unwrap();
        let named =
            format!("another XDP program (push, id {id}) is attached to ext; it is left alone");
        assert!(error.contains(&named), "{error}");
        assert!(error.contains("ip link set dev ext xdp off"), "{error}");
        assert_eq!(seen_by_ip(EXT), before);
    });
}

#[test]
fn generic_mode_is_taken_only_if_allowed_and_never_in_silence() {
    Gateway::run(|gateway| {
        let Gateway {
            dataplane,
            mut settings,
            _state,
        } = gateway;
        drop(dataplane);
        // The loopback driver has no native XDP.
        let slow = Nic {
            name: "lo".into(),
            ipv4: Some("192.0.2.1".parse().unwrap()),
            ipv6: None,
            takes_acks: false,
        };
        settings.nics.push(slow);
        let error = open(&settings).err().unwrap();
        assert!(
            format!("{error:#}").contains("cannot attach to lo in native mode"),
            "{error:#}"
        );
        assert!(
            format!("{error:#}").contains("data_plane.allow_generic = true"),
            "{error:#}"
        );
        assert_eq!(seen_by_ip("lo"), None);

        settings.allow_generic = true;
        let dataplane = open(&settings).unwrap();
        assert_eq!(nics(&dataplane)[2].mode, "generic");
        let warnings = dataplane.warnings();
        assert!(
            warnings
                .iter()
                .any(|warning| warning.contains("lo is in generic mode")),
            "{warnings:?}"
        );
    });
}

#[test]
fn a_nic_that_is_not_there_is_named() {
    Gateway::run(|mut gateway| {
        gateway.settings.nics[1].name = "nonesuch".into();
        let error = open(&gateway.settings).err().unwrap().to_string();
        assert!(error.contains("there is no NIC nonesuch"), "{error}");
        assert!(
            seen_by_ip(EXT).is_some() && seen_by_ip(INT).is_some(),
            "what was attached has been detached"
        );
    });
}

#[test]
fn a_second_process_is_kept_off_the_pins() {
    Gateway::run(|gateway| {
        let before = nics(&gateway.dataplane);
        let error = open(&gateway.settings).err().unwrap().to_string();
        assert!(error.contains("another push-ctl uses pin_dir"), "{error}");
        let after = nics(&gateway.dataplane);
        assert_eq!(after[0].program_id, before[0].program_id);
    });
}

/// The bytes of the pinned record with the layout of the maps, as bpftool writes them.
fn read_meta(pin_dir: &Path) -> Vec<String> {
    let dump = sh(&format!(
        "bpftool -j map dump pinned {}/push_meta",
        pin_dir.display()
    ));
    let record: serde_json::Value = serde_json::from_str(&dump).unwrap();
    let bytes = record[0]["value"].as_array().unwrap();
    bytes
        .iter()
        .map(|byte| byte.as_str().unwrap().to_owned())
        .collect()
}

fn write_meta(pin_dir: &Path, bytes: &[String]) {
    sh(&format!(
        "bpftool map update pinned {}/push_meta key 0 0 0 0 value {}",
        pin_dir.display(),
        bytes.join(" ")
    ));
}

#[test]
fn pinned_maps_that_do_not_fit_are_refused_and_stay() {
    Gateway::run(|gateway| {
        let Gateway {
            mut dataplane,
            settings,
            _state,
        } = gateway;
        dataplane.install(&session(1)).unwrap();
        drop(dataplane);
        let program = seen_by_ip(EXT);

        let mut larger = settings.clone();
        larger.session_slots *= 2;
        let error = open(&larger).err().unwrap().to_string();
        assert!(
            error.contains("has 64 slots, sessions.slots is 128; set it to 64"),
            "{error}"
        );

        let meta = read_meta(&settings.pin_dir);
        let mut unknown = meta.clone();
        unknown[0] = "99".to_owned();
        write_meta(&settings.pin_dir, &unknown);
        let error = open(&settings).err().unwrap().to_string();
        assert!(
            error.contains(&format!(
                "have layout 99, this program needs layout {LAYOUT_VERSION}"
            )),
            "{error}"
        );
        assert_eq!(seen_by_ip(EXT), program);

        write_meta(&settings.pin_dir, &meta);
        assert_eq!(open(&settings).unwrap().installed(), [session(1).id]);
    });
}

#[test]
fn maps_that_were_never_finished_are_made_anew() {
    Gateway::run(|gateway| {
        let Gateway {
            dataplane,
            settings,
            _state,
        } = gateway;
        drop(dataplane);
        let pin_dir = settings.pin_dir.display();
        // As after a crash between making the maps and attaching: no link, and a layout of 0.
        sh(&format!("rm {pin_dir}/link_*"));
        let zeros = vec!["0".to_owned(); read_meta(&settings.pin_dir).len()];
        write_meta(&settings.pin_dir, &zeros);
        let dataplane = open(&settings).unwrap();
        assert!(
            nics(&dataplane)
                .iter()
                .all(|nic| nic.mode == "native" && !nic.adopted)
        );
    });
}

#[test]
fn a_slot_beyond_the_table_is_refused() {
    Gateway::run(|mut gateway| {
        let error = gateway
            .dataplane
            .install(&session(SLOTS))
            .unwrap_err()
            .to_string();
        assert!(error.contains("raise sessions.slots"), "{error}");
        gateway.dataplane.remove(session(SLOTS).id);
        assert_eq!(gateway.dataplane.session_counters(session(SLOTS).id), None);
    });
}

#[test]
fn a_table_may_be_larger_than_the_object_says_and_its_last_slot_is_used() {
    Gateway::run(|gateway| {
        let Gateway {
            dataplane,
            settings,
            _state,
        } = gateway;
        // The maps there are would be refused.
        drop(dataplane);
        sh(&format!("rm -r {}", settings.pin_dir.display()));
        let mut larger = settings;
        larger.session_slots = 4 * DEFAULT_SESSION_SLOTS;
        let last = session(larger.session_slots - 1);
        let mut dataplane = open(&larger).unwrap();
        dataplane.install(&last).unwrap();
        let pinned = larger.pin_dir.join("push_sessions");
        let map = sh(&format!("bpftool -j map show pinned {}", pinned.display()));
        let map: serde_json::Value = serde_json::from_str(&map).unwrap();
        assert_eq!(map["max_entries"], larger.session_slots);
        drop(dataplane);
        assert_eq!(open(&larger).unwrap().installed(), [last.id]);
    });
}

#[test]
fn tools_that_are_not_ours_load_the_same_object() {
    Gateway::run(|gateway| {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("push.o");
        std::fs::write(&file, object()).unwrap();
        let pins = gateway.settings.pin_dir.display();
        sh(&format!(
            "bpftool prog load {} {pins}/loaded_by_bpftool",
            file.display()
        ));
        assert!(
            sh(&format!(
                "bpftool prog show pinned {pins}/loaded_by_bpftool"
            ))
            .contains("name push ")
        );
        sh(&format!(
            "ip link add third type veth peer name third-peer; xdp-loader load -m native third {}",
            file.display()
        ));
        assert!(seen_by_ip("third").is_some());
    });
}
