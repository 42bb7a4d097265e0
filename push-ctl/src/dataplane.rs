//! The BPF side: loads and attaches the XDP program, owns its maps, reads its counters.
//!
//! Nothing else in this crate knows of aya. Maps and links are pinned, so that the program keeps
//! forwarding when this process is gone; the next one adopts them, puts its own program in place of
//! the old one in a single step, and finds sessions, replay windows and counters as they were.
//!
//! | pin | is |
//! | --- | --- |
//! | `push_meta`, `push_sessions`, `push_sources`, `push_counters` | the maps |
//! | `link_NIC` | the attachment to a NIC (`.` in a name becomes `%`) |

mod attach;
mod gates;
mod netlink;
mod pins;
mod table;

use anyhow::{Context, Result, anyhow, ensure};
use attach::{attach, detach_others, load, xdp};
use aya::Ebpf;
use aya::maps::{MapData, PerCpuArray};
use aya::programs::links::FdLink;
use aya::programs::{TestRun as _, TestRunOptions};
use pins::{adoptable, assign_nic_indices, pinned_map, source_record, write_meta, write_sources};
use push_common::maps::{
    COUNTERS, Counters, LAYOUT_VERSION, META, Meta, NicConfig, SESSIONS, SOURCES, SourceRecord,
};
use push_common::tag::TagKey;
use push_common::verdict::Verdict;
use push_common::wire::SessionId;
use std::fs::File;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::Duration;
use table::SessionTable;

/// The compiled XDP program.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/push"));

/// What the data plane is to be like.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Folder on a bpffs for pins.
    pub pin_dir: PathBuf,
    /// Slots of the session table.
    pub session_slots: u32,
    /// UDP port on which triggers are taken.
    pub trigger_port: u16,
    /// Addresses with which devices register, from which triggers reach them.
    pub sources: Vec<SocketAddr>,
    /// Leave source address and port of triggers as they are.
    pub keep_source: bool,
    /// Attach in generic mode where the driver has no native one.
    pub allow_generic: bool,
    /// Refuse to go without `CAP_PERFMON`.
    pub require_perfmon: bool,
    /// NICs to attach to.
    pub nics: Vec<Nic>,
}

/// A NIC to attach to.
#[derive(Clone, Debug)]
pub struct Nic {
    /// Name of the interface.
    pub name: String,
    /// IPv4 address to which triggers are sent.
    pub ipv4: Option<Ipv4Addr>,
    /// IPv6 address to which triggers are sent.
    pub ipv6: Option<Ipv6Addr>,
}

impl Nic {
    /// Whether triggers are taken on this NIC.
    #[must_use]
    pub const fn takes_triggers(&self) -> bool {
        self.ipv4.is_some() || self.ipv6.is_some()
    }
}

/// What the path is to know of an authorised session.
#[derive(Clone, Debug)]
pub struct SessionImage {
    /// Identifier; its slot is the index into the session table.
    pub id: SessionId,
    /// Address and port on which the app instance receives triggers.
    pub device: SocketAddr,
    /// The address of the gateway that the device registered with, one of [`Settings::sources`].
    pub source: SocketAddr,
    /// Generation of the current token.
    pub token_generation: u8,
    /// Key of the current token.
    pub key: TagKey,
    /// Key of the token before it, while that is valid too.
    pub previous_key: Option<TagKey>,
    /// From now until the session ends.
    pub expires_in: Duration,
}

/// How the program is attached to a NIC, as the kernel tells.
#[derive(Clone, Debug)]
pub struct NicStatus {
    /// Name of the interface.
    pub name: String,
    /// Index of the interface.
    pub index: u32,
    /// Whether triggers are taken on it.
    pub takes_triggers: bool,
    /// `native`, `generic`, `offloaded`, or `none` if this program isn't attached any more.
    pub mode: &'static str,
    /// Identifier of the program.
    pub program_id: u32,
    /// Identifier of the link; it survives restarts of the controller.
    pub link_id: u32,
    /// The link was there already when this process started.
    pub adopted: bool,
}

/// What the path has counted for a session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SessionCounters {
    /// Triggers delivered.
    pub packets: u64,
    /// Bytes of their frames.
    pub bytes: u64,
    /// Since the last one, if there was one.
    pub last_delivered_ago: Option<Duration>,
}

/// Packets and bytes of a NIC by verdict, summed up over CPUs.
#[derive(Clone, Debug)]
pub struct NicCounters {
    /// Name of the interface.
    pub name: String,
    /// In the order of [`Verdict::ALL`]: packets, bytes.
    pub by_verdict: Vec<(Verdict, u64, u64)>,
}

/// What a program did with the one frame it was given.
#[derive(Clone, Debug)]
pub struct TestRun {
    /// The XDP action, as a number.
    pub action: u32,
    /// The frame as it is afterwards.
    pub frame: Vec<u8>,
    /// The time the program took, by the kernel's clock, in whole nanoseconds; reading that clock is part of it.
    pub duration: Duration,
}

/// The attached program and its maps.
pub struct Dataplane {
    settings: Settings,
    attached: Vec<Attached>,
    sessions: SessionTable,
    sources: Vec<SourceRecord>,
    counters: PerCpuArray<MapData, CounterWords>,
    warnings: Vec<String>,
    /// Keeps a second process off the pins.
    _lock: File,
}

/// The program on one NIC.
struct Attached {
    nic: Nic,
    interface: u32,
    config: NicConfig,
    program: Ebpf,
    /// Closing it does not detach, as it is pinned.
    link: FdLink,
    adopted: bool,
}

/// Records as aya takes them: it knows only its own trait for plain data.
type MetaBytes = [u8; size_of::<Meta>()];
type SourceBytes = [u8; size_of::<SourceRecord>()];
type CounterWords = [u64; size_of::<Counters>() / 8];

impl Dataplane {
    /// Attaches to all NICs, adopting what an earlier process has left pinned.
    ///
    /// # Errors
    ///
    /// Says which gate is closed (kernel version, capability, bpffs, driver mode, another program on
    /// the NIC, pins of another layout) and what opens it. What was pinned before stays as it was.
    pub async fn open(settings: Settings) -> Result<Self> {
        let mut warnings = gates::check(settings.require_perfmon)?;
        let interfaces = settings
            .nics
            .iter()
            .map(|nic| interface_index(&nic.name))
            .collect::<Result<Vec<_>>>()?;
        gates::make_pin_dir(&settings.pin_dir)?;
        let lock = pins::lock(&settings.pin_dir)?;

        let mut meta = adoptable(&settings)?;
        let is_new = meta.layout_version == 0;
        let nic_indices = assign_nic_indices(&mut meta, &settings.nics)?;
        let mut programs = Vec::new();
        for (nic, index) in settings.nics.iter().zip(nic_indices) {
            let config = nic_config(nic, index, settings.trigger_port);
            programs.push((nic, config, load(&settings, &config)?));
        }

        meta.layout_version = LAYOUT_VERSION;
        meta.session_slots = settings.session_slots;
        let pinned = |name: &str| pinned_map(&settings.pin_dir, name);
        let sessions = SessionTable::map(pinned(SESSIONS)?.fd().as_fd(), settings.session_slots)?;
        let sources = write_sources(pinned(SOURCES)?, &settings.sources)?;
        let counters = PerCpuArray::try_from(aya::maps::Map::PerCpuArray(pinned(COUNTERS)?))?;
        write_meta(pinned(META)?, &meta)?;
        if is_new {
            tracing::info!(slots = settings.session_slots, pin_dir = %settings.pin_dir.display(), "made a new session table");
        } else {
            tracing::info!(slots = settings.session_slots, pin_dir = %settings.pin_dir.display(), "adopted the session table");
        }

        let mut attached = Vec::new();
        for ((nic, config, program), interface) in programs.into_iter().zip(interfaces) {
            attached.push(attach(&settings, nic, interface, config, program, &mut warnings).await?);
        }
        detach_others(&settings)?;
        Ok(Self {
            settings,
            attached,
            sessions,
            sources,
            counters,
            warnings,
            _lock: lock,
        })
    }

    /// Puts a session into the table, or changes its record; the replay window and counters of a
    /// session that was there stay.
    ///
    /// # Errors
    ///
    /// The slot isn't in the table, or the source isn't one of [`Settings::sources`].
    pub fn install(&mut self, image: &SessionImage) -> Result<()> {
        ensure!(
            image.id.slot() < self.settings.session_slots,
            "session {} is beyond the {} slots of the session table; raise sessions.slots",
            image.id,
            self.settings.session_slots,
        );
        let wanted = source_record(image.source);
        let source = self
            .sources
            .iter()
            .position(|source| *source == wanted)
            .ok_or_else(|| {
                anyhow!(
                    "session {} was registered at {}, which is no longer in internal.listen",
                    image.id,
                    image.source
                )
            })?;
        let source = u16::try_from(source).context("more sources than the map has")?;
        self.sessions
            .install(image, source, self.settings.keep_source, monotonic_ns());
        Ok(())
    }

    /// Takes a session out of the table, if it is there: triggers for it are refused from now on.
    pub fn remove(&mut self, id: SessionId) {
        self.sessions.remove(id);
    }

    /// The sessions in the table.
    #[must_use]
    pub fn installed(&self) -> Vec<SessionId> {
        self.sessions.installed().collect()
    }

    /// What the path has counted for a session, if it is in the table.
    #[must_use]
    pub fn session_counters(&self, id: SessionId) -> Option<SessionCounters> {
        let activity = self.sessions.activity(id)?;
        let ago = monotonic_ns().saturating_sub(activity.last_delivered_ns);
        Some(SessionCounters {
            packets: activity.packets,
            bytes: activity.bytes,
            last_delivered_ago: (activity.last_delivered_ns > 0).then(|| Duration::from_nanos(ago)),
        })
    }

    /// What became of packets, by NIC.
    ///
    /// # Errors
    ///
    /// The kernel refuses to read the map.
    pub fn verdicts(&self) -> Result<Vec<NicCounters>> {
        self.attached
            .iter()
            .map(|attached| {
                let per_cpu = self
                    .counters
                    .get(&attached.config.index, 0)
                    .context("cannot read the counters")?;
                let mut by_verdict: Vec<_> = Verdict::ALL
                    .iter()
                    .map(|&verdict| (verdict, 0, 0))
                    .collect();
                for words in per_cpu.iter() {
                    let counters: &Counters = bytemuck::must_cast_ref(words);
                    for (sum, count) in by_verdict.iter_mut().zip(counters.by_verdict) {
                        sum.1 += count.packets;
                        sum.2 += count.bytes;
                    }
                }
                Ok(NicCounters {
                    name: attached.nic.name.clone(),
                    by_verdict,
                })
            })
            .collect()
    }

    /// How the program is attached, asked of the kernel now.
    ///
    /// # Errors
    ///
    /// The kernel can't be asked.
    pub async fn nics(&self) -> Result<Vec<NicStatus>> {
        let mut all = Vec::new();
        for attached in &self.attached {
            let link = attached
                .link
                .info()
                .context("cannot ask the kernel about a link")?;
            let seen = netlink::attached_program(attached.interface).await?;
            let mode = seen
                .filter(|seen| seen.program_id == link.program_id())
                .map_or("none", |seen| seen.mode);
            all.push(NicStatus {
                name: attached.nic.name.clone(),
                index: attached.interface,
                takes_triggers: attached.nic.takes_triggers(),
                mode,
                program_id: link.program_id(),
                link_id: link.id(),
                adopted: attached.adopted,
            });
        }
        Ok(all)
    }

    /// What an operator should mend, each with how to: a missing capability, switches of the kernel
    /// without which triggers don't get through.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = self.warnings.clone();
        for nic in self.attached.iter().map(|attached| &attached.nic) {
            let mut expect = |family: &str, switch: &str, why: &str| {
                let path = format!("/proc/sys/net/{family}/conf/{}/{switch}", nic.name);
                // A family that the kernel doesn't have has no switches either.
                if std::fs::read_to_string(path).is_ok_and(|value| value.trim() == "0") {
                    let name = nic.name.replace('.', "/");
                    warnings.push(format!(
                        "{why}: sysctl -w net.{family}.conf.{name}.{switch}=1"
                    ));
                }
            };
            if nic.ipv4.is_some() {
                expect(
                    "ipv4",
                    "forwarding",
                    "IPv4 triggers are refused (forwarding_disabled)",
                );
                expect(
                    "ipv4",
                    "accept_local",
                    "IPv4 triggers to a device whose MAC address isn't known yet get lost",
                );
            }
            if nic.ipv6.is_some() {
                expect(
                    "ipv6",
                    "forwarding",
                    "IPv6 triggers are refused (forwarding_disabled)",
                );
            }
        }
        warnings
    }

    /// Runs the program of a NIC once, on `frame`, as if it had come in there (`BPF_PROG_TEST_RUN`).
    /// Counters move as with any other frame.
    ///
    /// # Errors
    ///
    /// There is no such NIC, or the kernel refuses to (a frame has to have at least 14 bytes).
    pub fn test_run(&mut self, nic: &str, frame: &[u8]) -> Result<TestRun> {
        let attached = self
            .attached
            .iter_mut()
            .find(|attached| attached.nic.name == nic)
            .with_context(|| format!("not attached to {nic}"))?;
        // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
        let context = [0, u32::try_from(frame.len())?, 0, attached.interface, 0, 0];
        let mut out = vec![0; frame.len() + 256];
        let result = xdp(&mut attached.program)?.test_run(TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut out),
            ctx_in: Some(bytemuck::bytes_of(&context)),
            ..TestRunOptions::new()
        })?;
        out.truncate(result.data_size_out as usize);
        Ok(TestRun {
            action: result.return_value,
            frame: out,
            duration: result.duration,
        })
    }

    /// Instructions that the verifier went through, and bytes of machine code, of the program of
    /// each NIC: figures that don't depend on the machine's load.
    ///
    /// # Errors
    ///
    /// The kernel can't be asked.
    pub fn program_size(&mut self) -> Result<Vec<(String, u32, u32)>> {
        self.attached
            .iter_mut()
            .map(|attached| {
                let info = xdp(&mut attached.program)?.info()?;
                let verified = info.verified_instruction_count().unwrap_or(0);
                Ok((attached.nic.name.clone(), verified, info.size_jitted()))
            })
            .collect()
    }
}

/// The compiled XDP program, an ELF object that bpftool and xdp-loader take too.
#[must_use]
pub fn object() -> &'static [u8] {
    OBJECT
}

fn nic_config(nic: &Nic, index: u32, trigger_port: u16) -> NicConfig {
    let flag = |condition, flag| if condition { flag } else { 0 };
    NicConfig {
        index,
        trigger_port: trigger_port.to_be_bytes(),
        families: flag(nic.ipv4.is_some(), NicConfig::IPV4)
            | flag(nic.ipv6.is_some(), NicConfig::IPV6),
        reserved: 0,
        reserved_too: [0; 4],
        ipv4: nic.ipv4.unwrap_or(Ipv4Addr::UNSPECIFIED).octets(),
        ipv6: nic.ipv6.unwrap_or(Ipv6Addr::UNSPECIFIED).octets(),
    }
}

fn interface_index(name: &str) -> Result<u32> {
    nix::net::if_::if_nametoindex(name).map_err(|_| {
        anyhow!("there is no NIC {name} in this network namespace; `ip -br link` lists them, and `name` in [[nic]] picks one")
    })
}

fn monotonic_ns() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)
        .expect("Linux has a monotonic clock");
    Duration::from(now).as_nanos() as u64
}
