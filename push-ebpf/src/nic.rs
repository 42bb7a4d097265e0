//! What doesn't change while the program is attached to its NIC. Only what is asked for is read.

use crate::datagram::Address;
use crate::shared::load;
use push_common::maps::NicConfig;

/// The loader sets it, and the verifier, to whom it is a constant, takes out the code that it makes unreachable.
#[unsafe(no_mangle)]
static NIC_CONFIG: NicConfig = NicConfig {
    index: 0,
    trigger_port: [0; 2],
    takes: 0,
    reserved: 0,
    ipv4: [0; 4],
    idle_ticks: 0,
    ipv6: [0; 16],
};

/// Which entry of the map of counters is its own.
#[inline(always)]
pub(crate) fn index() -> u32 {
    read(&raw const NIC_CONFIG.index)
}

/// Whether any of these are taken, see [`NicConfig::takes`].
#[inline(always)]
pub(crate) fn takes(any: u8) -> bool {
    read(&raw const NIC_CONFIG.takes) & any != 0
}

/// UDP port on which triggers are taken, as in memory.
#[inline(always)]
pub(crate) fn trigger_port() -> u16 {
    read((&raw const NIC_CONFIG.trigger_port).cast())
}

/// IPv4 address to which triggers are sent, as in memory.
#[inline(always)]
pub(crate) fn ipv4() -> u32 {
    read((&raw const NIC_CONFIG.ipv4).cast())
}

/// IPv6 address to which triggers are sent.
#[inline(always)]
pub(crate) fn ipv6() -> Address {
    read((&raw const NIC_CONFIG.ipv6).cast())
}

/// See [`NicConfig::idle_ticks`].
#[inline(always)]
pub(crate) fn idle_ticks() -> u32 {
    read(&raw const NIC_CONFIG.idle_ticks)
}

#[inline(always)]
fn read<T: Copy>(field: *const T) -> T {
    // SAFETY: a field of a static is valid, and all that are read by whole words are aligned to them. It's read as
    // volatile, as it will have another value than it has here.
    unsafe { load(field) }
}
