//! How the program gets into the kernel, and onto a NIC.

use super::pins::{LINK_PREFIX, MAPS, link_pin, pins};
use super::{Attached, Nic, OBJECT, Settings, gates, netlink};
use anyhow::{Context, Result, anyhow, bail};
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::xdp::XdpLink;
use aya::programs::{ProgramError, Xdp, XdpMode};
use aya::{Ebpf, EbpfError, EbpfLoader};
use push_common::maps::{NIC_CONFIG, NicConfig, PREVIOUS_KEYS, PROGRAM, SESSIONS};
use std::io;
use std::path::Path;

/// Loads the program for one NIC, with the maps that are pinned; pins those that aren't.
pub(super) fn load(settings: &Settings, config: &NicConfig) -> Result<Ebpf> {
    let config: [u8; size_of::<NicConfig>()] = bytemuck::must_cast(*config);
    let mut loader = EbpfLoader::new();
    for map in MAPS {
        loader.map_pin_path(map, settings.pin_dir.join(map));
    }
    #[cfg(feature = "log")]
    let level = log_level(settings.log_level);
    #[cfg(feature = "log")]
    loader.override_global(aya_log::LEVEL, &level, true);
    let mut program = loader
        .map_max_entries(SESSIONS, settings.session_slots)
        .map_max_entries(PREVIOUS_KEYS, previous_keys(settings.session_slots))
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

/// Rotated tokens that can be valid at the same time. Their map takes 16 bytes for each, used or not.
const fn previous_keys(session_slots: u32) -> u32 {
    const FEW: u32 = 1024;
    let part = session_slots / 16;
    if part > FEW { part } else { FEW }
}

/// As the program counts levels: from 1 for errors to 5 for everything.
#[cfg(feature = "log")]
fn log_level(level: tracing::Level) -> u8 {
    match level {
        tracing::Level::ERROR => 1,
        tracing::Level::WARN => 2,
        tracing::Level::INFO => 3,
        tracing::Level::DEBUG => 4,
        tracing::Level::TRACE => 5,
    }
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
pub(super) async fn attach(
    settings: &Settings,
    nic: &Nic,
    interface: u32,
    config: NicConfig,
    mut program: Ebpf,
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
                    warning: None,
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

    let mut warning = None;
    let native = attach_anew(&mut program, interface, XdpMode::Driver);
    let link = match native {
        Ok(link) => link,
        Err(error) if settings.allow_generic && !is_busy(&error) => {
            warning = Some(format!(
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
        warning,
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
pub(super) fn detach_others(settings: &Settings) -> Result<()> {
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

pub(super) fn xdp(program: &mut Ebpf) -> Result<&mut Xdp> {
    let program = program
        .program_mut(PROGRAM)
        .context("the BPF object has no program `push`")?;
    Ok(program.try_into()?)
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
