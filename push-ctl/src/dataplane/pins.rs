//! What is pinned: maps to adopt, and what the maps say about themselves.

use super::{MetaBytes, Nic, Settings};
use anyhow::{Context, Result, anyhow, bail, ensure};
use aya::maps::{Array, MapData};
use push_common::maps::{
    ALLOWED_SOURCES, COUNTERS, EGRESSES, EVENT_LIMITS, EVENTS, LAYOUT_VERSION, MAX_NICS, META,
    Meta, NEXT_HOPS, NIC_NAME_LEN, PENDING_ACKS, POLICIES, PREVIOUS_KEYS, SESSIONS, STAGED,
};
use push_common::watch::{CAPTURES, WATCH};
use std::fs::File;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

/// Keeps other processes from adopting what is pinned while this one uses it. One that is just
/// ending is waited for.
pub(super) fn lock(pin_dir: &Path) -> Result<File> {
    let lock = File::open(pin_dir)
        .with_context(|| format!("cannot open pin_dir {}", pin_dir.display()))?;
    let asked = Instant::now();
    while lock.try_lock().is_err() {
        if asked.elapsed() > LOCK_LIMIT {
            bail!(
                "another push-ctl uses pin_dir {}; stop it, or give this one a pin_dir of its own",
                pin_dir.display()
            );
        }
        thread::sleep(Duration::from_millis(10));
    }
    Ok(lock)
}

/// All maps that outlive the process.
pub(super) const MAPS: [&str; 14] = [
    META,
    SESSIONS,
    STAGED,
    PREVIOUS_KEYS,
    NEXT_HOPS,
    EGRESSES,
    POLICIES,
    ALLOWED_SOURCES,
    PENDING_ACKS,
    COUNTERS,
    EVENTS,
    EVENT_LIMITS,
    WATCH,
    CAPTURES,
];

/// How long a process that is ending may take.
const LOCK_LIMIT: Duration = Duration::from_secs(1);

/// What is pinned, if it can be adopted; with layout version 0 if there is nothing.
pub(super) fn adoptable(settings: &Settings) -> Result<Meta> {
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
pub(super) fn assign_nic_indices(meta: &mut Meta, nics: &[Nic]) -> Result<Vec<u32>> {
    for entry in &mut meta.nics {
        if !nics.iter().any(|nic| padded(&nic.name) == *entry) {
            *entry = [0; NIC_NAME_LEN];
        }
    }
    nics.iter()
        .map(|nic| assign_nic_index(meta, &nic.name))
        .collect()
}

/// An index for one more NIC: the one it has, or a free one.
pub(super) fn assign_nic_index(meta: &mut Meta, nic: &str) -> Result<u32> {
    let name = padded(nic);
    let at = |wanted| meta.nics.iter().position(|entry| *entry == wanted);
    let index = at(name).or_else(|| at([0; NIC_NAME_LEN]));
    let index = index.with_context(|| {
        format!("more than {MAX_NICS} NICs; `push-ctl nic detach` one that isn't needed")
    })?;
    meta.nics[index] = name;
    Ok(u32::try_from(index)?)
}

/// The index of a NIC may be given to another one.
pub(super) fn free_nic_index(meta: &mut Meta, nic: &str) {
    for entry in &mut meta.nics {
        if *entry == padded(nic) {
            *entry = [0; NIC_NAME_LEN];
        }
    }
}

pub(super) fn write_meta(map: MapData, meta: &Meta) -> Result<()> {
    let mut map = Array::<_, MetaBytes>::try_from(aya::maps::Map::Array(map))?;
    map.set(0, bytemuck::must_cast::<_, MetaBytes>(*meta), 0)
        .context("cannot write the map of meta data")
}

pub(super) fn pinned_map(pin_dir: &Path, name: &str) -> Result<MapData> {
    let pin = pin_dir.join(name);
    MapData::from_pin(&pin).with_context(|| format!("cannot open the pinned map {}", pin.display()))
}

fn unpin_maps(pin_dir: &Path) -> Result<()> {
    for map in MAPS {
        let pin = pin_dir.join(map);
        if pin.exists() {
            std::fs::remove_file(&pin)
                .with_context(|| format!("cannot remove the unfinished {}", pin.display()))?;
        }
    }
    Ok(())
}

pub(super) const LINK_PREFIX: &str = "link_";

/// bpffs doesn't take dots in names, and the names of NICs don't have percent signs.
pub(super) fn link_pin(nic: &str) -> String {
    format!("{LINK_PREFIX}{}", nic.replace('.', "%"))
}

pub(super) fn pins(pin_dir: &Path) -> Result<Vec<String>> {
    std::fs::read_dir(pin_dir)
        .and_then(|entries| {
            entries
                .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
                .collect()
        })
        .with_context(|| format!("cannot read pin_dir {}", pin_dir.display()))
}

fn padded(name: &str) -> [u8; NIC_NAME_LEN] {
    let mut padded = [0; NIC_NAME_LEN];
    let length = name.len().min(NIC_NAME_LEN - 1);
    padded[..length].copy_from_slice(&name.as_bytes()[..length]);
    padded
}
