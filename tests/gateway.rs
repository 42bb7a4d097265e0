//! A network namespace with two NICs, and the data plane attached to them: for tests that hand
//! frames to the program one by one.
//!
//! | NIC | addresses | behind it |
//! | --- | --- | --- |
//! | `ext` | 198.51.100.1, `2001:db8:51::1` | triggers come from here; `ONE_ARMED` devices too |
//! | `int` | 10.64.0.1, `fd00:64::1` | devices |
//!
//! They are veths, unless the environment lends others ([`LENT_NICS`]).

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use push_common::verdict::Verdict;
use push_ctl::dataplane::{Dataplane, Gtpu, Nic, NicStatus, Settings};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;

/// How long anything may take that is waited for.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);
pub(crate) const EXT: &str = "ext";
pub(crate) const INT: &str = "int";
pub(crate) const SLOTS: u32 = 64;
pub(crate) const TRIGGER_PORT: u16 = 5050;
/// The gateway's MAC addresses; each device's is that of its NIC with another last byte.
pub(crate) const EXT_MAC: [u8; 6] = [2, 0, 0, 0, 1, 1];
pub(crate) const INT_MAC: [u8; 6] = [2, 0, 0, 0, 2, 1];
pub(crate) const DEVICE_MAC: [u8; 6] = [2, 0, 0, 0, 2, 2];
pub(crate) const ONE_ARMED_MAC: [u8; 6] = [2, 0, 0, 0, 1, 7];

/// Names of NICs of the namespace of process 1, by commas, which are used instead of veths: `ext`, what is behind
/// it, `int`, what is behind that. One test at a time can have them.
const LENT_NICS: &str = "PUSH_TEST_NICS";

pub(crate) struct Gateway {
    pub(crate) dataplane: Dataplane,
    pub(crate) settings: Settings,
    pub(crate) _state: BpfFolder,
}

/// NICs to give back, by the name they have here and the one they had.
struct LentNics(Vec<(&'static str, String)>);

impl LentNics {
    const HERE: [&str; 4] = [EXT, "ext-peer", INT, "int-peer"];

    /// Takes them over into the namespace of this thread.
    fn take() -> Self {
        let names = std::env::var(LENT_NICS).unwrap_or_default();
        let names = names.split(',').filter(|name| !name.is_empty());
        let lent: Vec<_> = Self::HERE
            .into_iter()
            .zip(names.map(str::to_owned))
            .collect();
        let here = nix::unistd::gettid();
        for (name, before) in &lent {
            sh(&format!(
                "nsenter --net=/proc/1/ns/net ip link set {before} netns {here} name {name}"
            ));
        }
        Self(lent)
    }
}

impl Drop for LentNics {
    /// The kernel takes a program off a while after the last one who knew of its link has gone.
    fn drop(&mut self) {
        for (name, before) in &self.0 {
            wait_until("the program is off the NIC", || {
                !sh(&format!("ip link show {name}")).contains("prog/xdp")
            });
            sh(&format!(
                "ip link set {name} down; ip addr flush dev {name}; ip link set {name} netns 1 name {before}"
            ));
        }
    }
}

/// A folder with a bpffs in it, which is unmounted with it; and NICs, which are given back after that.
pub(crate) struct BpfFolder(
    tempfile::TempDir,
    #[expect(dead_code, reason = "is there to be dropped")] LentNics,
);

impl Drop for BpfFolder {
    fn drop(&mut self) {
        // A link outlives a lazy unmount for as long as anything has the folder open.
        let _ = std::fs::remove_dir_all(self.0.path().join("push"));
        let _ = umount2(self.0.path(), MntFlags::MNT_DETACH);
    }
}

impl Gateway {
    /// Runs `test` in a namespace of its own, on a thread of its own, as namespaces belong to threads.
    pub(crate) fn run(test: impl FnOnce(Self) + Send + 'static) {
        let outcome = std::thread::spawn(|| test(Self::new())).join();
        if let Err(panic) = outcome {
            std::panic::resume_unwind(panic);
        }
    }

    fn new() -> Self {
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).expect("these tests need root");
        let none: Option<&str> = None;
        mount(none, "/", none, MsFlags::MS_PRIVATE | MsFlags::MS_REC, none).unwrap();
        let state = tempfile::tempdir().unwrap();
        mount(
            Some("bpf"),
            state.path(),
            Some("bpf"),
            MsFlags::empty(),
            none,
        )
        .unwrap();

        sh("ip link set lo up");
        let lent = LentNics::take();
        for (nic, mac) in [(EXT, "02:00:00:00:01:01"), (INT, "02:00:00:00:02:01")] {
            if lent.0.is_empty() {
                sh(&format!("ip link add {nic} type veth peer name {nic}-peer"));
            }
            sh(&format!("ip link set {nic} address {mac}"));
            // Whoever is behind it keeps quiet, so that only what a test sends is counted.
            sh(&format!(
                "sysctl -qw net.ipv6.conf.{nic}-peer.disable_ipv6=1; ip link set {nic}-peer arp off up"
            ));
            sh(&format!("ip link set {nic} up"));
        }
        sh(
            "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv4.conf.ext.accept_local=1",
        );
        sh("ip addr add 198.51.100.1/24 dev ext; ip addr add 10.64.0.1/16 dev int");
        sh("ip addr add 2001:db8:51::1/64 dev ext nodad; ip addr add fd00:64::1/64 dev int nodad");
        sh(
            "for device in 10.64.0.2 fd00:64::2; do ip neigh add $device lladdr 02:00:00:00:02:02 dev int; done",
        );
        sh(
            "for device in 198.51.100.7 2001:db8:51::7; do ip neigh add $device lladdr 02:00:00:00:01:07 dev ext; done",
        );
        sh(
            "ip route add 10.65.0.0/16 via 10.64.0.2 mtu lock 600; ip -6 route add fd00:65::/64 via fd00:64::2 mtu lock 1280",
        );
        sh("ip route add blackhole 10.66.0.0/16; ip -6 route add prohibit fd00:66::/64");

        let settings = settings(state.path().join("push"));
        let dataplane = open(&settings).unwrap();
        Self {
            dataplane,
            settings,
            _state: BpfFolder(state, lent),
        }
    }

    /// The same with other settings, as after a restart.
    pub(crate) fn restarted_with(self, change: impl FnOnce(&mut Settings)) -> Self {
        let Self {
            dataplane,
            mut settings,
            _state,
        } = self;
        drop(dataplane);
        change(&mut settings);
        let dataplane = open(&settings).unwrap();
        Self {
            dataplane,
            settings,
            _state,
        }
    }

    /// Gives `frame` to the program on `nic`; returns the verdict and the frame afterwards. Exactly
    /// one counter has to move, by one packet of this length.
    pub(crate) fn send(&mut self, nic: &str, frame: &[u8]) -> (Verdict, Vec<u8>) {
        let before = self.counters();
        let run = self.dataplane.test_run(nic, frame).unwrap();
        let after = self.counters();
        let mut moved = Vec::new();
        for (key, &(packets, bytes)) in &after {
            let (old_packets, old_bytes) = before[key];
            if (packets, bytes) != (old_packets, old_bytes) {
                moved.push((*key, packets - old_packets, bytes - old_bytes));
            }
        }
        let &[((at, index), 1, bytes)] = &moved[..] else {
            panic!("counters that moved: {moved:?}");
        };
        assert_eq!(bytes, frame.len() as u64, "bytes counted");
        assert_eq!(self.settings.nics[at].name, nic, "NIC counted for");
        let verdict = Verdict::ALL[index];
        // XDP_ABORTED, DROP, PASS, TX, REDIRECT.
        let label = ["aborted", "drop", "pass", "transmit", "redirect"][run.action as usize];
        assert_eq!(label, verdict.action().label(), "action of {verdict:?}");
        (verdict, run.frame)
    }

    /// Packets of all NICs and verdicts.
    pub(crate) fn received(&self) -> u64 {
        self.counters().values().map(|(packets, _)| packets).sum()
    }

    /// Acknowledgements that all NICs have timed.
    pub(crate) fn round_trips(&self) -> u64 {
        let nics = self.dataplane.verdicts().unwrap();
        nics.iter().flat_map(|nic| nic.round_trips).sum()
    }

    /// By index of NIC and verdict.
    fn counters(&self) -> BTreeMap<(usize, usize), (u64, u64)> {
        let nics = self.dataplane.verdicts().unwrap();
        let each = nics.iter().enumerate().flat_map(|(nic, counters)| {
            counters
                .by_verdict
                .iter()
                .map(move |&(verdict, packets, bytes)| ((nic, verdict as usize), (packets, bytes)))
        });
        each.collect()
    }
}

pub(crate) fn settings(pin_dir: PathBuf) -> Settings {
    Settings {
        pin_dir,
        session_slots: SLOTS,
        trigger_port: TRIGGER_PORT,
        keep_source: false,
        allow_generic: false,
        require_perfmon: true,
        nics: vec![
            Nic {
                name: EXT.into(),
                ipv4: Some("198.51.100.1".parse().unwrap()),
                ipv6: Some("2001:db8:51::1".parse().unwrap()),
                takes_acks: false,
            },
            Nic {
                name: INT.into(),
                ipv4: None,
                ipv6: None,
                takes_acks: true,
            },
        ],
        realms: Vec::new(),
        gtpu: Gtpu::default(),
        idle_after: None,
        log_level: tracing::Level::INFO,
    }
}

/// What devices of each family register with.
pub(crate) fn sources() -> [SocketAddr; 2] {
    [
        "10.64.0.1:5683".parse().unwrap(),
        "[fd00:64::1]:5683".parse().unwrap(),
    ]
}

pub(crate) fn open(settings: &Settings) -> anyhow::Result<Dataplane> {
    runtime().block_on(Dataplane::open(settings.clone()))
}

pub(crate) fn nics(dataplane: &Dataplane) -> Vec<NicStatus> {
    runtime().block_on(dataplane.nics()).unwrap()
}

/// Of one thread: others are not in the namespace.
pub(crate) fn runtime() -> Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().build().unwrap()
}

/// Runs a line of shell in the namespace of this thread.
pub(crate) fn sh(line: &str) -> String {
    let output = Command::new("sh").args(["-ec", line]).output().unwrap();
    assert!(
        output.status.success(),
        "{line}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// Waits until it is so; fails after [`LIMIT`].
pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !condition() {
        assert!(begin.elapsed() < LIMIT, "{what}: not within {LIMIT:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
