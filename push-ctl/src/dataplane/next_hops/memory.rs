//! The maps of next hops and egresses, mapped into this process: changes are plain stores, and no packet
//! sees half of one.

#![expect(
    unsafe_code,
    reason = "the tables are memory shared with the kernel, and with packets on other CPUs"
)]

use anyhow::{Context, Result};
use memmap2::{MmapOptions, MmapRaw};
use push_common::maps::{EgressRecord, Hop, MAX_EGRESSES, MAX_NEXT_HOPS, NextHopRecord};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering, fence};

/// The memory of the maps [`push_common::maps::NEXT_HOPS`] and [`push_common::maps::EGRESSES`].
pub(in super::super) struct NextHopTable {
    next_hops: MmapRaw,
    egresses: MmapRaw,
}

impl NextHopTable {
    /// Maps the maps behind `next_hops` and `egresses`.
    pub(in super::super) fn map(
        next_hops: BorrowedFd<'_>,
        egresses: BorrowedFd<'_>,
    ) -> Result<Self> {
        let map = |fd: BorrowedFd<'_>, length, what| {
            let mapped = MmapOptions::new().len(length).map_raw(fd.as_raw_fd());
            mapped.with_context(|| format!("cannot map the table of {what} into memory"))
        };
        Ok(Self {
            next_hops: map(next_hops, NEXT_HOPS_BYTES, "next hops")?,
            egresses: map(egresses, EGRESSES_BYTES, "egresses")?,
        })
    }

    /// Memory that is in no map.
    #[cfg(test)]
    pub(super) fn anonymous() -> Self {
        let map = |length| MmapOptions::new().len(length).map_anon().unwrap().into();
        Self {
            next_hops: map(NEXT_HOPS_BYTES),
            egresses: map(EGRESSES_BYTES),
        }
    }

    /// What stands at `index`.
    pub(super) fn record(&self, index: u16) -> NextHopRecord {
        // SAFETY: the pointer is into the map; this process is its only writer.
        unsafe { self.at(index).read() }
    }

    /// Makes what stands at `index`, which nobody refers to, be like `record`.
    pub(super) fn place(&self, index: u16, record: &NextHopRecord) {
        self.retire(index);
        fence(Ordering::SeqCst);
        let at = self.at(index);
        // SAFETY: the pointer is into the map; this process is its only writer, and nobody relies on
        // what is there before the word is stored below.
        unsafe {
            (&raw mut (*at).source).write_volatile(record.source);
            (&raw mut (*at).outer_source).write_volatile(record.outer_source);
            (&raw mut (*at).outer_destination).write_volatile(record.outer_destination);
            (&raw mut (*at).source_port).write_volatile(record.source_port);
            (&raw mut (*at).flags).write_volatile(record.flags);
            (&raw mut (*at).reserved).write_volatile(record.reserved);
        }
        self.set_mtu(index, record.mtu);
        self.set_hop(index, record.hop);
    }

    /// Makes `index` a next hop that there isn't.
    pub(super) fn retire(&self, index: u16) {
        self.set_hop(index, Hop::default());
    }

    pub(super) fn set_hop(&self, index: u16, hop: Hop) {
        self.word(index)
            .store(bytemuck::must_cast(hop), Ordering::Release);
    }

    pub(super) fn set_mtu(&self, index: u16, mtu: u16) {
        // SAFETY: the field is in the map, and aligned.
        let field = unsafe { AtomicU16::from_ptr(&raw mut (*self.at(index)).mtu) };
        field.store(mtu, Ordering::Relaxed);
    }

    /// What stands at `index` of the egresses.
    pub(super) fn egress(&self, index: u8) -> EgressRecord {
        // SAFETY: as in `record`.
        unsafe { self.egress_at(index).read() }
    }

    /// Makes the egress at `index`, which no next hop refers to, be like `record`.
    pub(super) fn place_egress(&self, index: u8, record: &EgressRecord) {
        let at = self.egress_at(index);
        // SAFETY: as in `place`.
        unsafe {
            (&raw mut (*at).interface).write_volatile(record.interface);
            (&raw mut (*at).tag_count).write_volatile(record.tag_count);
            (&raw mut (*at).tags).write_volatile(record.tags);
        }
        self.set_egress_mac(index, record.mac);
        fence(Ordering::SeqCst);
    }

    pub(super) fn set_egress_mac(&self, index: u8, mac: [u8; 8]) {
        // SAFETY: the field is in the map, and the record begins with it.
        let word = unsafe { AtomicU64::from_ptr((&raw mut (*self.egress_at(index)).mac).cast()) };
        word.store(u64::from_ne_bytes(mac), Ordering::Release);
    }

    fn word(&self, index: u16) -> &AtomicU64 {
        // SAFETY: the field is in the map, and the record begins with it.
        unsafe { AtomicU64::from_ptr((&raw mut (*self.at(index)).hop).cast()) }
    }

    fn at(&self, index: u16) -> *mut NextHopRecord {
        assert!(u32::from(index) < MAX_NEXT_HOPS, "no next hop {index}");
        // SAFETY: the mapping is that long, and page-aligned.
        unsafe {
            self.next_hops
                .as_mut_ptr()
                .cast::<NextHopRecord>()
                .add(usize::from(index))
        }
    }

    fn egress_at(&self, index: u8) -> *mut EgressRecord {
        // SAFETY: there is an egress for each value of the index, see below.
        unsafe {
            self.egresses
                .as_mut_ptr()
                .cast::<EgressRecord>()
                .add(usize::from(index))
        }
    }
}

const NEXT_HOPS_BYTES: usize = MAX_NEXT_HOPS as usize * size_of::<NextHopRecord>();
const EGRESSES_BYTES: usize = MAX_EGRESSES as usize * size_of::<EgressRecord>();

const _: () = {
    use std::mem::offset_of;
    assert!(offset_of!(NextHopRecord, hop) == 0);
    assert!(offset_of!(NextHopRecord, mtu).is_multiple_of(2));
    assert!(offset_of!(EgressRecord, mac) == 0);
    // Entries of an array map are at multiples of 8.
    assert!(size_of::<NextHopRecord>().is_multiple_of(8));
    assert!(size_of::<EgressRecord>().is_multiple_of(8));
    assert!(MAX_EGRESSES > u8::MAX as u32);
};
