//! The session table, mapped into this process: changes are plain stores, and no packet sees half of one.

#![expect(
    unsafe_code,
    reason = "the table is memory shared with the kernel, and with packets on other CPUs"
)]

#[cfg(test)]
mod tests;

use super::{Found, SessionImage, SessionTraffic};
use anyhow::{Context, Result};
use bytemuck::Zeroable;
use memmap2::{MmapOptions, MmapRaw};
use push_common::activity;
use push_common::maps::{SessionControl, SessionRecord, TICK_NS, tick_at_or_after};
use push_common::replay;
use push_common::tag::TagKey;
use push_common::wire::SessionId;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
use zeroize::Zeroizing;

/// The memory of the maps [`push_common::maps::SESSIONS`] and [`push_common::maps::STAGED`].
pub(super) struct SessionTable {
    records: MmapRaw,
    staged: MmapRaw,
    slots: u32,
}

/// What the path keeps count of.
pub(super) struct Activity {
    pub(super) packets: u64,
    pub(super) bytes: u64,
    /// In nanoseconds of `CLOCK_MONOTONIC`, as coarse as a tick; 0 if there was none.
    pub(super) last_delivered_ns: u64,
    pub(super) refused: u32,
    pub(super) acknowledged: u32,
    pub(super) round_trip_us: u32,
}

impl SessionTable {
    /// Maps the maps behind the two descriptors; the first one has `slots` entries. A change that a process
    /// before this one didn't come to the end of is finished.
    pub(super) fn map(
        sessions: BorrowedFd<'_>,
        staged: BorrowedFd<'_>,
        slots: u32,
    ) -> Result<Self> {
        let map = |descriptor: BorrowedFd<'_>, records: u32| {
            MmapOptions::new()
                .len(records as usize * size_of::<SessionRecord>())
                .map_raw(descriptor.as_raw_fd())
                .context("cannot map the session table into memory")
        };
        let table = Self {
            records: map(sessions, slots)?,
            staged: map(staged, 1)?,
            slots,
        };
        table.finish_change();
        Ok(table)
    }

    /// Makes the record of a session be like `image`, whose way is `next_hop`. A live record keeps its replay
    /// window and counters.
    pub(super) fn install(
        &self,
        image: &SessionImage,
        next_hop: u16,
        keep_source: bool,
        now_ns: u64,
    ) -> Found {
        let Some(record) = self.record(image.id.slot()) else {
            return Found::Nothing;
        };
        let new = first_line(image, next_hop, keep_source, now_ns);

        // SAFETY: `record` and `staged` are in the maps; this process is the only writer of the first line but
        // for counters that it leaves alone. Packets read it at the same time, which is why the words that
        // they rely on are stored at once, in this order.
        unsafe {
            let before = (&raw const (*record).control).read();
            let final_control = new.control.with_version(before.version().wrapping_add(2));
            let is_live = generation(record).load(Ordering::Relaxed) == image.id.generation();
            if !is_live {
                generation(record).store(0, Ordering::Relaxed);
                fence(Ordering::SeqCst);
                (&raw mut (*record).refused).write_volatile(0);
                (&raw mut (*record).acknowledged).write_volatile(0);
                (&raw mut (*record).round_trip_us).write_volatile(0);
                (&raw mut (*record).replay).write_volatile(image.window);
                (&raw mut (*record).full_at_ns).write_volatile(0);
                (&raw mut (*record).activity).write_volatile(0);
                (&raw mut (*record).packets).write_volatile(0);
                (&raw mut (*record).bytes).write_volatile(0);
                write_fields(record, &new);
                control_word(record).store(bytemuck::must_cast(final_control), Ordering::Release);
                generation(record).store(image.id.generation(), Ordering::Release);
                return Found::Nothing;
            }

            expires(record).store(new.expires_tick, Ordering::Relaxed);
            let is_same_by = |next_hop| {
                let control = SessionControl {
                    next_hop,
                    ..new.control
                };
                before == control.with_version(before.version())
                    && *Zeroizing::new((&raw const (*record).key).read()) == new.key
                    && (&raw const (*record).device_address).read() == new.device_address
                    && (&raw const (*record).teid).read() == new.teid
            };
            let found = if is_same_by(before.next_hop) {
                Found::Same
            } else {
                Found::Different
            };
            if is_same_by(next_hop) {
                return found;
            }
            let staged = self.staged();
            write_fields(staged, &new);
            control_word(staged).store(bytemuck::must_cast(final_control), Ordering::Relaxed);
            let elsewhere = SessionControl {
                flags: SessionControl::STAGED,
                ..SessionControl::default()
            }
            .with_version(before.version().wrapping_add(1));
            // From here on, packets see the new session in the other map.
            control_word(record).store(bytemuck::must_cast(elsewhere), Ordering::Release);
            fence(Ordering::SeqCst);
            write_fields(record, &new);
            // From here on, they see it here. Who is still reading elsewhere sees another control word afterwards.
            control_word(record).store(bytemuck::must_cast(final_control), Ordering::Release);
            fence(Ordering::SeqCst);
            (&raw mut (*staged).key).write_volatile(TagKey::default());
            found
        }
    }

    /// Leads a session's triggers another way, if it is in the table.
    pub(super) fn set_next_hop(&self, id: SessionId, next_hop: u16) {
        let Some(record) = self.live(id) else {
            return;
        };
        // SAFETY: as in `install`; the one word that changes is stored at once.
        unsafe {
            let before = (&raw const (*record).control).read();
            let after = SessionControl { next_hop, ..before };
            let after = after.with_version(before.version().wrapping_add(1));
            control_word(record).store(bytemuck::must_cast(after), Ordering::Release);
        }
    }

    /// Frees the slot of a session, if it is that session's, and forgets its key.
    pub(super) fn remove(&self, id: SessionId) {
        let Some(record) = self.live(id) else {
            return;
        };
        // SAFETY: as in `install`. Who has seen the generation before sees another version now.
        unsafe {
            let before = (&raw const (*record).control).read();
            let after = SessionControl::default().with_version(before.version().wrapping_add(1));
            generation(record).store(0, Ordering::Release);
            control_word(record).store(bytemuck::must_cast(after), Ordering::Release);
            fence(Ordering::SeqCst);
            (&raw mut (*record).key).write_volatile(TagKey::default());
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

    /// The control word of a session, if it is in the table.
    pub(super) fn control(&self, id: SessionId) -> Option<SessionControl> {
        // SAFETY: as in `install`.
        self.live(id)
            .map(|record| unsafe { (&raw const (*record).control).read() })
    }

    /// The record of a session without its key, if it is in the table.
    pub(super) fn first_line(&self, id: SessionId) -> Option<SessionRecord> {
        let record = self.live(id)?;
        // SAFETY: as in `install`; nothing but this process, which is here, changes what belongs together.
        unsafe {
            Some(SessionRecord {
                generation: id.generation(),
                expires_tick: expires(record).load(Ordering::Relaxed),
                control: (&raw const (*record).control).read_volatile(),
                device_address: (&raw const (*record).device_address).read_volatile(),
                teid: (&raw const (*record).teid).read_volatile(),
                full_at_ns: (&raw const (*record).full_at_ns).read_volatile(),
                activity: (&raw const (*record).activity).read_volatile(),
                ..SessionRecord::zeroed()
            })
        }
    }

    /// What the path has counted for a session, if it is in the table.
    pub(super) fn activity(&self, id: SessionId) -> Option<Activity> {
        let record = self.live(id)?;
        // SAFETY: as in `install`; each field is a word that the program writes at once.
        unsafe {
            Some(Activity {
                packets: (&raw const (*record).packets).read_volatile(),
                bytes: (&raw const (*record).bytes).read_volatile(),
                last_delivered_ns: last_delivered_ns(record),
                refused: (&raw const (*record).refused).read_volatile(),
                acknowledged: (&raw const (*record).acknowledged).read_volatile(),
                round_trip_us: (&raw const (*record).round_trip_us).read_volatile(),
            })
        }
    }

    /// What the path has counted for the session in a slot, if there is one.
    pub(super) fn traffic(&self, slot: u32) -> Option<SessionTraffic> {
        let record = self.record(slot)?;
        // SAFETY: as in `activity`.
        unsafe {
            match generation(record).load(Ordering::Relaxed) {
                0 => None,
                generation => Some(SessionTraffic {
                    id: SessionId::new(slot, generation),
                    packets: (&raw const (*record).packets).read_volatile(),
                    bytes: (&raw const (*record).bytes).read_volatile(),
                    refused: (&raw const (*record).refused).read_volatile(),
                    last_delivered_ns: last_delivered_ns(record),
                }),
            }
        }
    }

    /// The replay window of a session, if it is in the table.
    pub(super) fn window(&self, id: SessionId) -> Option<[u64; replay::WORDS]> {
        let record = self.live(id)?;
        // SAFETY: as in `activity`.
        Some(unsafe { (&raw const (*record).replay).read_volatile() })
    }

    /// About the highest sequence number that was accepted for a session, at most 127 below it.
    pub(super) fn newest_sequence(&self, id: SessionId) -> Option<u64> {
        let words = self.window(id)?;
        words.iter().copied().map(replay::newest).max()
    }

    /// Finishes the change that a process before this one was at, if any.
    fn finish_change(&self) {
        for slot in 0..self.slots {
            let Some(record) = self.record(slot) else {
                return;
            };
            // SAFETY: as in `install`. The record in the other map was whole before it was referred to.
            unsafe {
                let before = (&raw const (*record).control).read();
                if before.has(SessionControl::STAGED) {
                    let whole = Zeroizing::new(self.staged().read());
                    write_fields(record, &whole);
                    let control = whole.control.with_version(before.version().wrapping_add(1));
                    control_word(record).store(bytemuck::must_cast(control), Ordering::Release);
                    fence(Ordering::SeqCst);
                    (&raw mut (*self.staged()).key).write_volatile(TagKey::default());
                }
            }
        }
    }

    fn live(&self, id: SessionId) -> Option<*mut SessionRecord> {
        let record = self.record(id.slot())?;
        // SAFETY: as in `install`.
        let is_live = unsafe { generation(record) }.load(Ordering::Relaxed) == id.generation();
        is_live.then_some(record)
    }

    fn record(&self, slot: u32) -> Option<*mut SessionRecord> {
        // SAFETY: the mapping is `slots` records long, and page-aligned.
        (slot < self.slots).then(|| unsafe {
            self.records
                .as_mut_ptr()
                .cast::<SessionRecord>()
                .add(slot as usize)
        })
    }

    fn staged(&self) -> *mut SessionRecord {
        self.staged.as_mut_ptr().cast()
    }
}

/// What the first line is to be; counters are 0.
fn first_line(
    image: &SessionImage,
    next_hop: u16,
    keep_source: bool,
    now_ns: u64,
) -> Zeroizing<SessionRecord> {
    let expires_in_ns = u64::try_from(image.expires_in.as_nanos()).unwrap_or(u64::MAX);
    let (device_address, is_v6) = on_the_wire(image.device.ip());
    let flag = |condition, flag| if condition { flag } else { 0 };
    Zeroizing::new(SessionRecord {
        generation: image.id.generation(),
        expires_tick: tick_at_or_after(now_ns.saturating_add(expires_in_ns)),
        control: SessionControl {
            device_port: image.device.port().to_be_bytes(),
            next_hop,
            policy: image.policy,
            token_generation: image.token_generation,
            flags: flag(is_v6, SessionControl::IPV6)
                | flag(image.previous_key.is_some(), SessionControl::PREVIOUS_TOKEN)
                | flag(keep_source, SessionControl::KEEP_SOURCE),
        },
        key: *image.key,
        device_address,
        teid: image.tunnel.map_or(0, |tunnel| tunnel.teid).to_be_bytes(),
        ..SessionRecord::zeroed()
    })
}

/// An address as it stands in maps, and whether it is one of IPv6.
pub(super) fn on_the_wire(address: IpAddr) -> ([u8; 16], bool) {
    match address {
        IpAddr::V4(address) => {
            let mut bytes = [0; 16];
            bytes[..4].copy_from_slice(&address.octets());
            (bytes, false)
        }
        IpAddr::V6(address) => (address.octets(), true),
    }
}

/// Writes the fields that a control word guards, and the expiry.
///
/// # Safety
///
/// `record` must be in a map, and no packet rely on these fields; as of `generation` below.
unsafe fn write_fields(record: *mut SessionRecord, new: &SessionRecord) {
    // SAFETY: the caller's promise.
    unsafe {
        expires(record).store(new.expires_tick, Ordering::Relaxed);
        (&raw mut (*record).key).write_volatile(new.key);
        (&raw mut (*record).device_address).write_volatile(new.device_address);
        (&raw mut (*record).teid).write_volatile(new.teid);
    }
}

/// # Safety
///
/// `record` must be in the map.
unsafe fn last_delivered_ns(record: *mut SessionRecord) -> u64 {
    // SAFETY: the caller's promise; the program writes the word at once.
    let activity = unsafe { (&raw const (*record).activity).read_volatile() };
    u64::from(activity::last_tick(activity)) * TICK_NS
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
