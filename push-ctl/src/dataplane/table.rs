//! The session table, mapped into this process: changes are plain stores, and no packet sees half of one.

#![expect(
    unsafe_code,
    reason = "the table is memory shared with the kernel, and with packets on other CPUs"
)]

use super::SessionImage;
use anyhow::{Context, Result};
use bytemuck::Zeroable;
use memmap2::{MmapOptions, MmapRaw};
use push_common::maps::{SessionControl, SessionRecord, tick_at_or_after};
use push_common::tag::TagKey;
use push_common::wire::SessionId;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

/// The memory of the map [`push_common::maps::SESSIONS`].
pub(super) struct SessionTable {
    memory: MmapRaw,
    slots: u32,
}

/// What the path keeps count of.
pub(super) struct Activity {
    pub(super) packets: u64,
    pub(super) bytes: u64,
    pub(super) last_delivered_ns: u64,
}

impl SessionTable {
    /// Maps the map behind `map`, which has `slots` entries.
    pub(super) fn map(map: BorrowedFd<'_>, slots: u32) -> Result<Self> {
        let length = slots as usize * size_of::<SessionRecord>();
        let memory = MmapOptions::new()
            .len(length)
            .map_raw(map.as_raw_fd())
            .context("cannot map the session table into memory")?;
        Ok(Self { memory, slots })
    }

    /// Makes the record of a session be like `image`, from which device and source have been turned
    /// into what is in the map. A live record keeps its replay window and counters.
    pub(super) fn install(
        &self,
        image: &SessionImage,
        source: u16,
        keep_source: bool,
        now_ns: u64,
    ) {
        let Some(record) = self.record(image.id.slot()) else {
            return;
        };
        let expires_ns =
            now_ns.saturating_add(u64::try_from(image.expires_in.as_nanos()).unwrap_or(u64::MAX));
        let expires_tick = tick_at_or_after(expires_ns);

        let (device_address, is_v6) = match image.device.ip() {
            IpAddr::V4(address) => {
                let mut bytes = [0; 16];
                bytes[..4].copy_from_slice(&address.octets());
                (bytes, false)
            }
            IpAddr::V6(address) => (address.octets(), true),
        };
        let mut keys = [TagKey::zeroed(); 2];
        keys[usize::from(image.token_generation & 1)] = image.key;
        if let Some(previous) = image.previous_key {
            keys[usize::from(!image.token_generation & 1)] = previous;
        }
        let flag = |condition, flag| if condition { flag } else { 0 };
        let control = SessionControl {
            device_port: image.device.port().to_be_bytes(),
            source,
            reserved: 0,
            token_generation: image.token_generation,
            flags: flag(is_v6, SessionControl::IPV6)
                | flag(image.previous_key.is_some(), SessionControl::PREVIOUS_TOKEN)
                | flag(keep_source, SessionControl::KEEP_SOURCE),
        };

        // SAFETY: `record` is in the map; this process is its only writer but for the program, which
        // writes nothing of the first line. Packets read it at the same time, which is why the words
        // that they rely on are stored at once, in this order.
        unsafe {
            let is_live = generation(record).load(Ordering::Relaxed) == image.id.generation();
            let before = (&raw const (*record).control).read();
            let after = control.with_version(before.version().wrapping_add(1));
            let stored_keys = (&raw const (*record).keys).read();
            let stored_address = (&raw const (*record).device_address).read();
            let only_expires = is_live
                && before == control.with_version(before.version())
                && stored_keys == keys
                && stored_address == device_address;
            if only_expires {
                expires(record).store(expires_tick, Ordering::Relaxed);
                return;
            }

            let mut changing = before;
            changing.flags |= SessionControl::CHANGING;
            control_word(record).store(bytemuck::must_cast(changing), Ordering::Relaxed);
            fence(Ordering::SeqCst);
            if !is_live {
                generation(record).store(0, Ordering::Relaxed);
                fence(Ordering::SeqCst);
                (&raw mut (*record).replay).write_volatile(Zeroable::zeroed());
                (&raw mut (*record).packets).write_volatile(0);
                (&raw mut (*record).bytes).write_volatile(0);
                (&raw mut (*record).last_delivered_ns).write_volatile(0);
            }
            (&raw mut (*record).keys).write_volatile(keys);
            (&raw mut (*record).device_address).write_volatile(device_address);
            expires(record).store(expires_tick, Ordering::Relaxed);
            control_word(record).store(bytemuck::must_cast(after), Ordering::Release);
            generation(record).store(image.id.generation(), Ordering::Release);
        }
    }

    /// Frees the slot of a session, if it is that session's, and forgets its keys.
    pub(super) fn remove(&self, id: SessionId) {
        let Some(record) = self.record(id.slot()) else {
            return;
        };
        // SAFETY: as in `install`.
        unsafe {
            if generation(record).load(Ordering::Relaxed) != id.generation() {
                return;
            }
            let mut changing = (&raw const (*record).control).read();
            changing.flags |= SessionControl::CHANGING;
            control_word(record).store(bytemuck::must_cast(changing), Ordering::Relaxed);
            generation(record).store(0, Ordering::Release);
            fence(Ordering::SeqCst);
            (&raw mut (*record).keys).write_volatile(Zeroable::zeroed());
        }
    }

    /// The sessions that are in the table.
    pub(super) fn installed(&self) -> impl Iterator<Item = SessionId> + '_ {
        (0..self.slots).filter_map(|slot| {
            let record = self.record(slot)?;
            // SAFETY: as in `install`.
            match unsafe { generation(record) }.load(Ordering::Relaxed) {
                0 => None,
                generation => Some(SessionId::new(slot, generation)),
            }
        })
    }

    /// What the path has counted for a session, if it is in the table.
    pub(super) fn activity(&self, id: SessionId) -> Option<Activity> {
        let record = self.record(id.slot())?;
        // SAFETY: as in `install`; each field is a word that the program writes at once.
        unsafe {
            (generation(record).load(Ordering::Relaxed) == id.generation()).then(|| Activity {
                packets: (&raw const (*record).packets).read_volatile(),
                bytes: (&raw const (*record).bytes).read_volatile(),
                last_delivered_ns: (&raw const (*record).last_delivered_ns).read_volatile(),
            })
        }
    }

    fn record(&self, slot: u32) -> Option<*mut SessionRecord> {
        // SAFETY: the mapping is `slots` records long, and page-aligned.
        (slot < self.slots).then(|| unsafe {
            self.memory
                .as_mut_ptr()
                .cast::<SessionRecord>()
                .add(slot as usize)
        })
    }
}

/// # Safety
///
/// `record` must be in the map, for as long as the reference is used; so for the next two.
unsafe fn generation<'a>(record: *mut SessionRecord) -> &'a AtomicU32 {
    // SAFETY: the caller's promise; the field is aligned.
    unsafe { AtomicU32::from_ptr(&raw mut (*record).generation) }
}

unsafe fn expires<'a>(record: *mut SessionRecord) -> &'a AtomicU32 {
    // SAFETY: as above.
    unsafe { AtomicU32::from_ptr(&raw mut (*record).expires_tick) }
}

unsafe fn control_word<'a>(record: *mut SessionRecord) -> &'a AtomicU64 {
    // SAFETY: as above; the field starts at a multiple of 8.
    unsafe { AtomicU64::from_ptr((&raw mut (*record).control).cast()) }
}
