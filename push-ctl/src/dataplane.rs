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

#![expect(
    unsafe_code,
    reason = "the session table is memory shared with the kernel; if_nametoindex is C"
)]

mod gates;
mod netlink;
mod table;

use anyhow::{Context, Result, anyhow, bail, ensure};
use aya::maps::{Array, MapData, PerCpuArray};
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::xdp::XdpLink;
use aya::programs::{ProgramError, TestRun, TestRunOptions, Xdp, XdpMode};
use aya::{Ebpf, EbpfError, EbpfLoader};
use push_common::maps::{
    COUNTERS, Counters, LAYOUT_VERSION, MAX_NICS, MAX_SOURCES, META, Meta, NIC_CONFIG,
    NIC_NAME_LEN, NicConfig, PROGRAM, SESSIONS, SOURCES, SourceRecord,
};
use push_common::tag::TagKey;
use push_common::verdict::Verdict;
use push_common::wire::SessionId;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
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

/// The attached program and its maps.
pub struct Dataplane {
    settings: Settings,
    attached: Vec<Attached>,
    sessions: SessionTable,
    sources: Vec<SourceRecord>,
    counters: PerCpuArray<MapData, CounterWords>,
    warnings: Vec<String>,
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

    /// Runs the program of a NIC on `frame` as if it had come in there (`BPF_PROG_TEST_RUN`), and
    /// returns the XDP action and the frame as it is then. Counters move as with any other frame.
    ///
    /// # Errors
    ///
    /// There is no such NIC, or the kernel refuses to (a frame has to have at least 14 bytes).
    pub fn test_run(&mut self, nic: &str, frame: &[u8]) -> Result<(u32, Vec<u8>)> {
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
        Ok((result.return_value, out))
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

/// What is pinned, if it can be adopted; with layout version 0 if there is nothing.
fn adoptable(settings: &Settings) -> Result<Meta> {
    let pin_dir = &settings.pin_dir;
    let has_link = pins(pin_dir)?
        .iter()
        .any(|pin| pin.starts_with(LINK_PREFIX));
    let remove = format!(
        "to start from nothing, which ends all forwarding until devices and applications are back: rm -r {}",
        pin_dir.display()
    );
    let nothing = bytemuck::Zeroable::zeroed();
    if !pin_dir.join(META).exists() {
        ensure!(
            !has_link,
            "pin_dir {} has links but no maps; {remove}",
            pin_dir.display()
        );
        unpin_maps(pin_dir)?;
        return Ok(nothing);
    }
    let map = Array::<_, MetaBytes>::try_from(aya::maps::Map::Array(pinned_map(pin_dir, META)?));
    let bytes = map.and_then(|map| map.get(&0, 0)).map_err(|_| {
        anyhow!(
            "the maps in pin_dir {} are of another version of push than this one; {remove}",
            pin_dir.display()
        )
    })?;
    let meta: Meta = bytemuck::pod_read_unaligned(&bytes);
    if meta.layout_version == 0 && !has_link {
        // Its maker didn't come to the end; nothing was attached.
        unpin_maps(pin_dir)?;
        return Ok(nothing);
    }
    ensure!(
        meta.layout_version == LAYOUT_VERSION,
        "the maps in pin_dir {} have layout {}, this program needs layout {LAYOUT_VERSION}; start the version of \
         push that made them, or, {remove}",
        pin_dir.display(),
        meta.layout_version,
    );
    ensure!(
        meta.session_slots == settings.session_slots,
        "the session table in pin_dir {} has {slots} slots, sessions.slots is {}; set it to {slots}, or, {remove}",
        pin_dir.display(),
        settings.session_slots,
        slots = meta.session_slots,
    );
    Ok(meta)
}

/// An index for each NIC: the one it had, so that it keeps its counters, or a free one.
fn assign_nic_indices(meta: &mut Meta, nics: &[Nic]) -> Result<Vec<u32>> {
    for entry in &mut meta.nics {
        if !nics.iter().any(|nic| padded(&nic.name) == *entry) {
            *entry = [0; NIC_NAME_LEN];
        }
    }
    nics.iter()
        .map(|nic| {
            let name = padded(&nic.name);
            let index = meta.nics.iter().position(|entry| *entry == name);
            let index = index.or_else(|| {
                meta.nics
                    .iter()
                    .position(|entry| *entry == [0; NIC_NAME_LEN])
            });
            let index = index.with_context(|| format!("more than {MAX_NICS} NICs"))?;
            meta.nics[index] = name;
            Ok(u32::try_from(index)?)
        })
        .collect()
}

/// Loads the program for one NIC, with the maps that are pinned; pins those that aren't.
fn load(settings: &Settings, config: &NicConfig) -> Result<Ebpf> {
    let config: [u8; size_of::<NicConfig>()] = bytemuck::must_cast(*config);
    let mut loader = EbpfLoader::new();
    for map in [META, SESSIONS, SOURCES, COUNTERS] {
        loader.map_pin_path(map, settings.pin_dir.join(map));
    }
    let mut program = loader
        .map_max_entries(SESSIONS, settings.session_slots)
        .override_global(NIC_CONFIG, &config, true)
        .load(OBJECT)
        .map_err(|error| match io_error(&error) {
            Some(io) => anyhow!("cannot make the BPF maps: {}: {io}", gates::explain(io)),
            None => anyhow!(error).context("cannot load the BPF object"),
        })?;
    #[cfg(feature = "log")]
    print_log(&mut program)?;
    xdp(&mut program)?.load().map_err(|error| match error {
        ProgramError::LoadError {
            io_error,
            verifier_log,
        } => {
            let log = verifier_log.to_string();
            tracing::debug!("verifier: {log}");
            let statistics = ["verification time", "stack depth", "processed"];
            let is_statistics =
                |line: &&str| statistics.iter().any(|start| line.starts_with(start));
            let reason = log
                .lines()
                .rev()
                .find(|line| !line.is_empty() && !is_statistics(line))
                .unwrap_or("no log");
            anyhow!(
                "cannot load the XDP program: {}: {io_error}: {reason}",
                gates::explain(&io_error)
            )
        }
        other => anyhow!(other).context("cannot load the XDP program"),
    })?;
    Ok(program)
}

/// Prints what the program logs, which is only what it drops, by number of the verdict.
#[cfg(feature = "log")]
fn print_log(program: &mut Ebpf) -> Result<()> {
    use tokio::io::Interest;
    use tokio::io::unix::AsyncFd;
    let log =
        aya_log::EbpfLogger::init(program).context("cannot read the log of the XDP program")?;
    #[expect(
        deprecated,
        reason = "its successor is unsafe; the logger owns its descriptor and keeps it"
    )]
    let mut log = AsyncFd::with_interest(log, Interest::READABLE)?;
    tokio::spawn(async move {
        while let Ok(mut ready) = log.readable_mut().await {
            ready.get_inner_mut().flush();
            ready.clear_ready();
        }
    });
    Ok(())
}

/// Puts `program` in place of the one on a pinned link, or else attaches it and pins the link.
async fn attach(
    settings: &Settings,
    nic: &Nic,
    interface: u32,
    config: NicConfig,
    mut program: Ebpf,
    warnings: &mut Vec<String>,
) -> Result<Attached> {
    let pin = settings.pin_dir.join(link_pin(&nic.name));
    if pin.exists() {
        let replaced = replace_program(&mut program, &pin);
        let seen = netlink::attached_program(interface).await?;
        let program_id = xdp(&mut program)?.info()?.id();
        match replaced {
            Ok(link) if seen.is_some_and(|seen| seen.program_id == program_id) => {
                tracing::info!(
                    nic = nic.name,
                    program_id,
                    "adopted the link and replaced its program"
                );
                return Ok(Attached {
                    nic: nic.clone(),
                    interface,
                    config,
                    program,
                    link,
                    adopted: true,
                });
            }
            // The NIC that the link was for has gone; another one has its name now.
            Ok(_) | Err(_) => {
                tracing::warn!(
                    nic = nic.name,
                    "the pinned link is not attached to this NIC any more; attaching anew"
                );
                std::fs::remove_file(&pin)
                    .with_context(|| format!("cannot remove {}", pin.display()))?;
            }
        }
    }

    let native = attach_anew(&mut program, interface, XdpMode::Driver);
    let link = match native {
        Ok(link) => link,
        Err(error) if settings.allow_generic && !is_busy(&error) => {
            warnings.push(format!(
                "{} is in generic mode, which is slow: native mode failed: {error:#}",
                nic.name
            ));
            attach_anew(&mut program, interface, XdpMode::Skb)
                .with_context(|| refused(nic, "generic"))?
        }
        Err(error) if is_busy(&error) => {
            let other = netlink::attached_program(interface).await?;
            let id = other.map_or(0, |other| other.program_id);
            bail!(
                "another XDP program ({}, id {id}) is attached to {nic}; it is left alone. Detach it first: \
                 ip link set dev {nic} xdp off, or remove the pin of its link",
                program_name(id),
                nic = nic.name,
            );
        }
        Err(error) => {
            let why = error
                .downcast_ref::<io::Error>()
                .map_or("the kernel refused", gates::explain);
            return Err(error.context(format!("{}: {why}", refused(nic, "native"))));
        }
    };
    let link = link
        .pin(&pin)
        .with_context(|| format!("cannot pin the link as {}", pin.display()))?
        .into();

    let program_id = xdp(&mut program)?.info()?.id();
    let seen = netlink::attached_program(interface).await?;
    let seen = seen
        .filter(|seen| seen.program_id == program_id)
        .with_context(|| {
            format!(
                "the kernel accepted the program for {} but doesn't show it there",
                nic.name
            )
        })?;
    tracing::info!(nic = nic.name, program_id, mode = seen.mode, "attached");
    Ok(Attached {
        nic: nic.clone(),
        interface,
        config,
        program,
        link,
        adopted: false,
    })
}

/// Puts `program` in place of the one that the pinned link has, in one step.
fn replace_program(program: &mut Ebpf, pin: &Path) -> Result<FdLink> {
    let program = xdp(program)?;
    let link = XdpLink::try_from(FdLink::from(PinnedLink::from_pin(pin)?))?;
    let id = program.attach_to_link(link)?;
    Ok(program.take_link(id)?.try_into()?)
}

fn attach_anew(program: &mut Ebpf, interface: u32, mode: XdpMode) -> Result<FdLink> {
    let program = xdp(program)?;
    let id = program
        .attach_to_if_index(interface, mode)
        .map_err(|error| match error {
            ProgramError::SyscallError(error) => anyhow::Error::from(error.io_error),
            other => other.into(),
        })?;
    // aya goes by netlink where the kernel makes no link (EINVAL); it can't be pinned.
    let link = FdLink::try_from(program.take_link(id)?);
    link.context("the kernel attached the program, but not by a link; ip link set dev NIC xdp off detaches it")
}

fn refused(nic: &Nic, mode: &str) -> String {
    format!("cannot attach to {} in {mode} mode", nic.name)
}

/// Detaches from NICs that an earlier configuration had.
fn detach_others(settings: &Settings) -> Result<()> {
    for pin in pins(&settings.pin_dir)? {
        if pin.starts_with(LINK_PREFIX)
            && !settings.nics.iter().any(|nic| link_pin(&nic.name) == pin)
        {
            std::fs::remove_file(settings.pin_dir.join(&pin))
                .with_context(|| format!("cannot remove the pin {pin}"))?;
            tracing::info!(
                pin,
                "detached from a NIC that is no longer in the configuration"
            );
        }
    }
    Ok(())
}

/// Makes sure that the map has all `addresses`, and returns what is in it. What live sessions refer
/// to stays where it is.
fn write_sources(map: MapData, addresses: &[SocketAddr]) -> Result<Vec<SourceRecord>> {
    let mut map = Array::<_, SourceBytes>::try_from(aya::maps::Map::Array(map))?;
    let mut records: Vec<SourceRecord> = map
        .iter()
        .map(|bytes| bytes.map(|bytes| bytemuck::pod_read_unaligned(&bytes)))
        .collect::<Result<_, _>>()
        .context("cannot read the map of sources")?;
    for wanted in addresses.iter().copied().map(source_record) {
        if records.contains(&wanted) {
            continue;
        }
        let free = records
            .iter()
            .position(|record| record.port == [0; 2])
            .with_context(|| {
                format!(
                    "more than {MAX_SOURCES} addresses in internal.listen since the maps were made"
                )
            })?;
        records[free] = wanted;
        map.set(
            u32::try_from(free)?,
            bytemuck::must_cast::<_, SourceBytes>(wanted),
            0,
        )
        .context("cannot write the map of sources")?;
    }
    Ok(records)
}

fn write_meta(map: MapData, meta: &Meta) -> Result<()> {
    let mut map = Array::<_, MetaBytes>::try_from(aya::maps::Map::Array(map))?;
    map.set(0, bytemuck::must_cast::<_, MetaBytes>(*meta), 0)
        .context("cannot write the map of meta data")
}

fn pinned_map(pin_dir: &Path, name: &str) -> Result<MapData> {
    let pin = pin_dir.join(name);
    MapData::from_pin(&pin).with_context(|| format!("cannot open the pinned map {}", pin.display()))
}

fn unpin_maps(pin_dir: &Path) -> Result<()> {
    for map in [META, SESSIONS, SOURCES, COUNTERS] {
        let pin = pin_dir.join(map);
        if pin.exists() {
            std::fs::remove_file(&pin)
                .with_context(|| format!("cannot remove the unfinished {}", pin.display()))?;
        }
    }
    Ok(())
}

const LINK_PREFIX: &str = "link_";

/// bpffs doesn't take dots in names, and the names of NICs don't have percent signs.
fn link_pin(nic: &str) -> String {
    format!("{LINK_PREFIX}{}", nic.replace('.', "%"))
}

fn pins(pin_dir: &Path) -> Result<Vec<String>> {
    std::fs::read_dir(pin_dir)
        .and_then(|entries| {
            entries
                .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
                .collect()
        })
        .with_context(|| format!("cannot read pin_dir {}", pin_dir.display()))
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

fn source_record(address: SocketAddr) -> SourceRecord {
    let mut record = SourceRecord {
        port: address.port().to_be_bytes(),
        ..SourceRecord::default()
    };
    match address.ip() {
        IpAddr::V4(ip) => record.address[..4].copy_from_slice(&ip.octets()),
        IpAddr::V6(ip) => record.address = ip.octets(),
    }
    record
}

fn xdp(program: &mut Ebpf) -> Result<&mut Xdp> {
    let program = program
        .program_mut(PROGRAM)
        .context("the BPF object has no program `push`")?;
    Ok(program.try_into()?)
}

fn interface_index(name: &str) -> Result<u32> {
    nix::net::if_::if_nametoindex(name).map_err(|_| {
        anyhow!("there is no NIC {name} in this network namespace; `ip -br link` lists them, and `name` in [[nic]] picks one")
    })
}

fn program_name(id: u32) -> String {
    aya::programs::loaded_programs()
        .filter_map(Result::ok)
        .find(|program| program.id() == id)
        .and_then(|program| program.name_as_str().map(str::to_owned))
        .unwrap_or_else(|| "unnamed".to_owned())
}

fn is_busy(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<io::Error>()
        .is_some_and(|error| error.raw_os_error() == Some(libc::EBUSY))
}

/// The answer of the kernel that is behind an error, if one is.
fn io_error(error: &EbpfError) -> Option<&io::Error> {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = source {
        if let Some(io) = error.downcast_ref::<io::Error>() {
            return Some(io);
        }
        source = error.source();
    }
    None
}

fn padded(name: &str) -> [u8; NIC_NAME_LEN] {
    let mut padded = [0; NIC_NAME_LEN];
    let length = name.len().min(NIC_NAME_LEN - 1);
    padded[..length].copy_from_slice(&name.as_bytes()[..length]);
    padded
}

fn monotonic_ns() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)
        .expect("Linux has a monotonic clock");
    Duration::from(now).as_nanos() as u64
}
