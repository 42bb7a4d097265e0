//! A gateway in a network namespace of its own, and devices in another one.
//!
//! | NIC | addresses | behind it |
//! | --- | --- | --- |
//! | `int` | 10.64.0.1, fd00:64::1 | `int-peer` with .2 and .3, ::2 and ::3, in the devices' namespace |
//! | `ext` | 10.51.0.1, fd00:51::1 | `ext-peer` with .2, ::2, there too |

use super::*;
use nix::sched::{CloneFlags, unshare};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio::time::timeout;

/// Far longer than anything here takes.
const LIMIT: Duration = Duration::from_secs(10);
/// From a change to what it means for packets.
const PROMISE: Duration = Duration::from_millis(200);

/// State of a next hop, and its MAC address.
pub(super) type State = (u8, [u8; 6]);

pub(super) const PEER_MAC: [u8; 6] = [2, 0, 0, 0, 2, 2];
pub(super) const EXT_PEER_MAC: [u8; 6] = [2, 0, 0, 0, 1, 2];

/// The indices are to differ from those of the other ends: if they don't, the kernel takes its time, a second,
/// to tell of a second loss of carrier.
const SETUP: &str = "
for side in '' \"nsenter -t $DEVICES -n\"; do
    $side sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0
    $side sysctl -qw net.ipv4.conf.default.arp_notify=1 net.ipv6.conf.default.ndisc_notify=1
    $side ip link set lo up
done
ip link add name int index 102 address 02:00:00:00:02:01 type veth peer name int-peer address 02:00:00:00:02:02 netns $DEVICES
ip link add name ext index 101 address 02:00:00:00:01:01 type veth peer name ext-peer address 02:00:00:00:01:02 netns $DEVICES
sysctl -qw net.ipv4.neigh.int.locktime=0 net.ipv4.neigh.ext.locktime=0
ip link set int up; ip link set ext up
ip addr add 10.64.0.1/16 dev int; ip addr add fd00:64::1/64 dev int
ip addr add 10.51.0.1/16 dev ext; ip addr add fd00:51::1/64 dev ext
nsenter -t $DEVICES -n sh -ec '
    ip link set int-peer up; ip link set ext-peer up
    for last in 2 3; do ip addr add 10.64.0.$last/16 dev int-peer; ip addr add fd00:64::$last/64 dev int-peer; done
    ip addr add 10.51.0.2/16 dev ext-peer; ip addr add fd00:51::2/64 dev ext-peer
'
";

pub(super) struct Gateway {
    pub(super) next_hops: NextHops,
    pub(super) watch: Watch,
    pub(super) runtime: Runtime,
    /// What stands in the sessions' records.
    pub(super) records: HashMap<SessionId, u16>,
    /// When the last change began.
    changed: Instant,
    devices: Devices,
}

/// A process that keeps a network namespace.
struct Devices(Child);

impl Drop for Devices {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Gateway {
    /// Runs `test` on a thread of its own, as namespaces belong to threads. Before that, it runs `lines`
    /// of shell.
    pub(super) fn run(
        realms: &[Realm],
        lines: &str,
        test: impl FnOnce(&mut Self) + Send + 'static,
    ) {
        let (realms, lines) = (realms.to_vec(), lines.to_owned());
        let outcome = std::thread::spawn(move || test(&mut Self::new(realms, &lines))).join();
        if let Err(panic) = outcome {
            std::panic::resume_unwind(panic);
        }
    }

    fn new(realms: Vec<Realm>, lines: &str) -> Self {
        unshare(CloneFlags::CLONE_NEWNET).expect("these tests need root");
        let own = std::fs::read_link("/proc/thread-self/ns/net").unwrap();
        let child = Command::new("unshare")
            .args(["-n", "sleep", "1000"])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let devices = Devices(child);
        let namespace = format!("/proc/{}/ns/net", devices.0.id());
        let begun = Instant::now();
        while std::fs::read_link(&namespace).is_ok_and(|theirs| theirs == own) {
            assert!(begun.elapsed() < LIMIT, "there is no second namespace");
            std::thread::yield_now();
        }
        sh(&devices, SETUP);
        sh(&devices, lines);

        // One thread: others are not in the namespace.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let asker = Asker::start().unwrap();
        let table = NextHopTable::anonymous();
        let mut next_hops = NextHops::new(table, realms, Vec::new(), move |neighbour| {
            asker.ask(neighbour);
        });
        let (mut watch, news) = runtime.block_on(Watch::open()).unwrap();
        assert_eq!(next_hops.apply(news), []);
        // It takes the kernel a while to see that the links have carrier.
        let begun = Instant::now();
        let is_ready = |next_hops: &NextHops| {
            [
                "10.64.0.2/32",
                "fd00:64::2/128",
                "10.51.0.2/32",
                "fd00:51::2/128",
            ]
            .into_iter()
            .all(|peer| {
                let way = next_hops.mirror.resolve(View::Main, prefix(peer));
                matches!(way, Resolution::Way(_))
            })
        };
        while !is_ready(&next_hops) {
            assert!(begun.elapsed() < LIMIT, "the links don't come up");
            let news = watch.next(Some(begun + LIMIT));
            next_hops.apply(runtime.block_on(news));
        }
        Self {
            next_hops,
            watch,
            runtime,
            records: HashMap::new(),
            changed: Instant::now(),
            devices,
        }
    }

    pub(super) fn acquire(&mut self, number: u32, target: &Target) {
        self.changed = Instant::now();
        let index = self.next_hops.acquire(session(number), target).unwrap();
        self.records.insert(session(number), index);
    }

    /// Runs lines of shell in the gateway's namespace; `$DEVICES` is a process in the other one.
    pub(super) fn sh(&mut self, lines: &str) {
        self.changed = Instant::now();
        sh(&self.devices, lines);
    }

    /// Runs lines of shell where the devices are.
    pub(super) fn sh_of_devices(&mut self, lines: &str) {
        self.sh(&format!("nsenter -t $DEVICES -n sh -ec '{lines}'"));
    }

    /// Waits until the next hop of a session is like `expected`; returns how long it took since the last
    /// change began.
    #[track_caller]
    pub(super) fn until(&mut self, number: u32, expected: State) -> Duration {
        self.until_all(&[(number, expected)])
    }

    #[track_caller]
    pub(super) fn until_all(&mut self, expected: &[(u32, State)]) -> Duration {
        loop {
            let took = self.changed.elapsed();
            let found: Vec<_> = expected
                .iter()
                .map(|&(number, _)| (number, self.of(number)))
                .collect();
            if found == expected {
                return took;
            }
            let remaining = LIMIT.saturating_sub(took);
            let (watch, next_hops) = (&mut self.watch, &mut self.next_hops);
            let moved = self
                .runtime
                .block_on(async { timeout(remaining, watch.keep(next_hops)).await });
            let Ok(moved) = moved else {
                panic!("waited for {expected:?}, but there is {found:?}");
            };
            self.records.extend(moved);
        }
    }

    /// State and MAC address of a session's next hop.
    pub(super) fn of(&self, number: u32) -> State {
        let hop = self
            .next_hops
            .table
            .record(self.records[&session(number)])
            .hop;
        (hop.state, hop.mac)
    }

    /// Does `there` and `back` in turn, several times, and wants what is in the tables to follow in time
    /// each time; but as the machine may have other things to do, the faster half counts.
    #[track_caller]
    pub(super) fn follows(
        &mut self,
        there: (&str, &[(u32, State)]),
        back: (&str, &[(u32, State)]),
    ) {
        let mut times = [Vec::new(), Vec::new()];
        for _ in 0..5 {
            for (way, (lines, expected)) in [there, back].into_iter().enumerate() {
                self.sh(lines);
                times[way].push(self.until_all(expected));
            }
        }
        for (mut times, (lines, _)) in times.into_iter().zip([there, back]) {
            times.sort();
            println!(
                "{:>6.1} ms (median; {times:.1?}): {}",
                times[2].as_secs_f64() * 1e3,
                lines.trim()
            );
            assert!(times[2] < PROMISE, "{lines}: {times:?}");
        }
    }
}

/// Whether the kernel can make interfaces like this one.
pub(super) fn can_make(kind: &str) -> bool {
    let line = format!("ip link add name x type veth peer name y && ip link add {kind}");
    let made = Command::new("unshare")
        .args(["-n", "sh", "-c", &line])
        .stderr(Stdio::null())
        .status();
    let can = made.unwrap().success();
    if !can {
        println!("skipped: this kernel can't make {kind}");
    }
    can
}

fn sh(devices: &Devices, lines: &str) {
    let output = Command::new("sh")
        .args(["-ec", lines])
        .env("DEVICES", devices.0.id().to_string())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{lines}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}
