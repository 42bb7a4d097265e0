//! How many instructions it takes: the verifier, to see that the program is safe, and each kind of packet.
//!
//! Unlike times, these don't depend on the machine or what else it does, so they can be kept from growing.
//! `instructions.txt` has what it takes today; a change that makes it more should be a decision, and changes the file.

mod interpreter;

use crate::datagram::{DEVICES, Datagram, ONE_ARMED, Session, changed};
use crate::framing::{VLAN, tagged};
use crate::gateway::{EXT, Gateway, INT, TRIGGER_PORT};
use interpreter::{Interpreter, STEPS};
use nix::net::if_::if_nametoindex;
use push_common::maps::NicConfig;
use push_common::verdict::Verdict;
use push_common::wire::MAX_PAYLOAD_LEN;
use push_ctl::dataplane::{Policy, Rate};
use std::fmt::Write as _;
use std::time::Duration;

/// What there may be, one a line: how many, and of what; and the kernel whose verifier it was.
const MOST: &str = include_str!("instructions.txt");

/// Compares with what there may be of `unit`.
fn ratchet(unit: &str, figures: &[(String, u32)]) {
    let mut lines = String::new();
    let mut more = Vec::new();
    for (what, figure) in figures {
        let name = format!("{unit}: {what}");
        let _ = writeln!(lines, "{figure:>6} {name}");
        let known = MOST.lines().find_map(|line| {
            let (most, known) = line.trim_start().split_once(' ')?;
            (known == name).then(|| most.parse::<u32>().unwrap())
        });
        match known {
            Some(most) if *figure <= most => {}
            Some(most) => more.push(format!("{name}: {figure} instead of {most}")),
            None => more.push(format!("{name}: {figure}, not in the file")),
        }
    }
    print!("{lines}");
    assert!(
        more.is_empty(),
        "more instructions than tests/instructions.txt has: {more:#?}\nif that is how it is to be, these are its lines:\n{lines}"
    );
}

/// What it goes through differs from kernel to kernel, too.
#[test]
fn the_verifier_does_not_go_through_more_instructions() {
    let (sender, counted) = std::sync::mpsc::channel();
    Gateway::run(move |mut gateway| {
        let count = |gateway: &mut Gateway, role: &str, nic: &str| {
            for size in gateway.dataplane.program_sizes().unwrap() {
                if size.nic == nic {
                    println!("{role}: {} bytes of machine code", size.machine_code_bytes);
                    sender
                        .send((role.to_owned(), size.verified_instructions))
                        .unwrap();
                }
            }
        };
        count(&mut gateway, "takes triggers", EXT);
        count(&mut gateway, "takes acknowledgements", INT);
        let mut gateway = gateway.restarted_with(|settings| settings.nics[0].takes_acks = true);
        count(&mut gateway, "takes both", EXT);
    });
    let counted: Vec<_> = counted.iter().collect();
    assert_eq!(counted.len(), 3, "{counted:?}");
    let kernel = MOST.lines().find_map(|line| line.strip_prefix("kernel "));
    let uname = nix::sys::utsname::uname().unwrap();
    let release = uname.release().to_str().unwrap();
    if release.starts_with(&format!("{}.", kernel.unwrap())) {
        ratchet("verified", &counted);
    } else {
        println!("not compared, as this is Linux {release}: {counted:?}");
    }
}

/// The interpreter's word isn't taken for it: the kernel has to come to the same, byte for byte.
#[test]
fn no_kind_of_packet_takes_more_instructions() {
    Gateway::run(|mut gateway| {
        let mut slot = 0;
        let mut session = |gateway: &mut Gateway, device| {
            slot += 1;
            Session::new(slot, device).installed(gateway)
        };
        let mut kinds: Vec<(String, &str, Verdict, Vec<u8>)> = Vec::new();
        let mut kind = |name: &str, nic, verdict, frame: Vec<u8>| {
            kinds.push((name.to_owned(), nic, verdict, frame));
        };

        let mut plain = session(&mut gateway, DEVICES[0]);
        let trigger = plain.datagram(b"");
        let other_port = Datagram {
            destination: (trigger.destination.ip(), TRIGGER_PORT + 1).into(),
            ..trigger.clone()
        };
        let arp = changed(&trigger.frame(), 12, &[0x08, 0x06]);
        kind("not IP", EXT, Verdict::NotIp, arp);
        kind("other port", EXT, Verdict::NotTrigger, other_port.frame());
        kind(
            "from a device",
            INT,
            Verdict::NotTrigger,
            other_port.frame(),
        );
        let unknown = Session::new(60, DEVICES[0]).datagram(b"").frame();
        kind("unknown session", EXT, Verdict::UnknownSession, unknown);
        let mut forged = session(&mut gateway, DEVICES[0]).datagram(b"").frame();
        *forged.last_mut().unwrap() ^= 1;
        kind("bad tag", EXT, Verdict::BadTag, forged);
        let replayed = plain.datagram(b"").frame();
        assert_eq!(gateway.send(EXT, &replayed).0, Verdict::Redirected);
        kind("replayed", EXT, Verdict::Replayed, replayed);
        for length in [0, 64, MAX_PAYLOAD_LEN] {
            let mut session = session(&mut gateway, DEVICES[0]);
            let name = format!("delivered, IPv4, {length} bytes of payload");
            let frame = session.datagram(&vec![0x5A; length]).frame();
            kind(&name, EXT, Verdict::Redirected, frame);
        }
        let frame = session(&mut gateway, DEVICES[1]).datagram(b"").frame();
        kind("delivered, IPv6", EXT, Verdict::Redirected, frame);
        let mut other = session(&mut gateway, DEVICES[0]);
        let other = Datagram::to_gateway(true, other.trigger(b"")).frame();
        kind("delivered, IPv6 to IPv4", EXT, Verdict::Redirected, other);
        let frame = session(&mut gateway, DEVICES[0]).datagram(b"").frame();
        let frame = tagged(&frame, &[(VLAN, 100)]);
        kind("delivered, out of a VLAN", EXT, Verdict::Redirected, frame);
        let frame = session(&mut gateway, ONE_ARMED[0]).datagram(b"").frame();
        kind("sent back, IPv4", EXT, Verdict::SentBack, frame);
        let mut limited = session(&mut gateway, DEVICES[0]);
        limited.image.policy = 1;
        let policy = Policy {
            rate: Some(Rate {
                interval: Duration::from_millis(100),
                burst: 10,
            }),
            sources: vec!["198.51.100.0/24".parse().unwrap()],
            coalescing_window: Some(Duration::from_secs(5)),
            max_payload: Some(100),
            dscp: Some(10),
            ..Policy::default()
        };
        gateway.dataplane.set_policy(1, &policy).unwrap();
        let mut limited = limited.installed(&mut gateway);
        let frame = limited.datagram(b"").frame();
        kind("delivered, with a policy", EXT, Verdict::Redirected, frame);

        let [ext, int] = configurations();
        let mut figures = Vec::new();
        for (name, nic, verdict, frame) in kinds {
            let config = if nic == EXT { &ext } else { &int };
            let mut interpreter = Interpreter::new(config, &gateway.settings.pin_dir);
            let run = interpreter.run(&frame, if_nametoindex(nic).unwrap());
            let (kernels, frame) = gateway.send(nic, &frame);
            assert_eq!(kernels, verdict, "{name}");
            assert_eq!(run.frame, frame, "{name}");
            let actions = ["aborted", "drop", "pass", "transmit", "redirect"];
            assert_eq!(
                actions[run.action as usize],
                verdict.action().label(),
                "{name}"
            );
            let steps = STEPS.iter().zip(&run.by_step);
            let steps = steps.map(|(step, count)| format!("{step} {count}"));
            println!(
                "{name}: {} helpers, {} atomics; {}",
                run.helpers,
                run.atomics,
                steps.collect::<Vec<_>>().join(" ")
            );
            figures.push((name, run.instructions));
        }
        ratchet("executed", &figures);
    });
}

/// As [`gateway::settings`](crate::gateway::settings) has the NICs.
fn configurations() -> [NicConfig; 2] {
    let ext = NicConfig {
        index: 0,
        trigger_port: TRIGGER_PORT.to_be_bytes(),
        takes: NicConfig::IPV4 | NicConfig::IPV6,
        ipv4: [198, 51, 100, 1],
        ipv6: "2001:db8:51::1"
            .parse::<std::net::Ipv6Addr>()
            .unwrap()
            .octets(),
        ..NicConfig::default()
    };
    let int = NicConfig {
        index: 1,
        trigger_port: TRIGGER_PORT.to_be_bytes(),
        takes: NicConfig::ACKS,
        ..NicConfig::default()
    };
    [ext, int]
}
