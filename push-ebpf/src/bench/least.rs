//! The least that delivers a trigger to the right device and lets no other through: one kind of frame, known
//! beforehand, and nothing of what operators need.
//!
//! No counters, no events, no policies, no next hops that change, one framing, no payload, no IPv6, no rotation of
//! tokens, no record that is being changed. What push takes more than this is what it has more; what even this
//! doesn't reach isn't to be had by making push leaner.

use super::plan::{FRAME_LEN, HEADERS_LEN, Least};
use super::{BENCH_INTERFACE, bytes, read, swap_if, write};
use aya_ebpf::bindings::xdp_action;
use aya_ebpf::btf_maps::{Array, HashMap};
use aya_ebpf::helpers::{bpf_ktime_get_coarse_ns, bpf_redirect};
use aya_ebpf::macros::{btf_map, xdp};
use aya_ebpf::programs::XdpContext;
use push_common::checksum::Delta;
use push_common::maps::{SessionControl, SessionRecord, tick_of};
use push_common::replay::{self, Offer};
use push_common::tag::{self, Mac};
use push_common::{rate, wire};

/// That of push takes its place.
#[btf_map(name = "push_sessions")]
static SESSIONS: Array<SessionRecord, 1, { aya_ebpf::bindings::BPF_F_MMAPABLE as usize }> =
    Array::new();

/// What is in a hash map is aligned to words.
type Words = [u64; size_of::<SessionRecord>() / 8];

/// The same sessions, by slot. (The loader sets how many.)
#[btf_map(name = "push_by_hash")]
static BY_HASH: HashMap<u32, Words, 1> = HashMap::new();

#[unsafe(no_mangle)]
static BENCH_LEAST: Least = Least {
    macs: [0; 3],
    source: [0; 4],
    source_port: [0; 2],
    trigger_port: [0; 2],
    skips_tag: 0,
    reserved: 0,
};

/// What the first word of a trigger without flags and payload is, but for the generation of its token.
const FIRST_WORD: u64 = {
    let [a, b, c] = wire::MAGIC;
    u64::from_le_bytes([a, b, c, wire::VERSION, 0, 0, 0, 0])
};
const TOKEN_GENERATION: u32 = 40;

#[xdp(frags)]
#[expect(
    clippy::needless_pass_by_value,
    reason = "aya's entry point passes it so"
)]
fn least(context: XdpContext) -> u32 {
    deliver(&context, |slot| SESSIONS.get_ptr_mut(slot)).unwrap_or(xdp_action::XDP_DROP)
}

/// The same, with sessions in a hash map.
#[xdp(frags)]
#[expect(
    clippy::needless_pass_by_value,
    reason = "aya's entry point passes it so"
)]
fn least_by_hash(context: XdpContext) -> u32 {
    let by_hash = |slot| BY_HASH.get_ptr_mut(slot).map(<*mut Words>::cast);
    deliver(&context, by_hash).unwrap_or(xdp_action::XDP_DROP)
}

#[inline(always)]
fn deliver(
    context: &XdpContext,
    session: impl Fn(u32) -> Option<*mut SessionRecord>,
) -> Option<u32> {
    // SAFETY: a static is valid and aligned. It is read as volatile, as the loader sets it.
    let least = unsafe { (&raw const BENCH_LEAST).read_volatile() };
    // Parse.
    let frame = bytes::<FRAME_LEN>(context)?;
    let ip: [u32; 5] = read(frame, 14);
    let is_ours = read::<u16>(frame, 12) == wire::ETHERTYPE_IPV4.to_be()
        && ip[0] as u8 == 0x45
        && ip[1] >> 16 & 0xFF3F == 0
        && ip[2] >> 8 & 0xFF == u32::from(wire::PROTOCOL_UDP)
        && read::<[u8; 2]>(frame, 36) == least.trigger_port;
    if !is_ours {
        return Some(xdp_action::XDP_PASS);
    }
    let header = ip.into_iter().fold(Delta::ZERO, Delta::add_u32);
    if header.finish() != 0 {
        return None;
    }

    // Session.
    let [first, id, sequence, low, high]: [u64; 5] = read(frame, HEADERS_LEN);
    let named = u64::from_be(id);
    let record = session(named as u32)?;
    // SAFETY: an element of a map is valid, and aligned, for as long as the program runs.
    let (generation, expires_tick, control, key, device) = unsafe {
        (
            (&raw const (*record).generation).read_volatile(),
            (&raw const (*record).expires_tick).read_volatile(),
            (&raw const (*record).control).cast::<u64>().read_volatile(),
            (&raw const (*record).key).read_volatile(),
            (&raw const (*record).device_address)
                .cast::<u32>()
                .read_volatile(),
        )
    };
    let control: SessionControl = bytemuck::must_cast(control);
    let expected = FIRST_WORD | u64::from(control.token_generation) << TOKEN_GENERATION;
    // SAFETY: has no requirements.
    let now_ns = unsafe { bpf_ktime_get_coarse_ns() };
    let is_live = u64::from(generation) == named >> 32 && tick_of(now_ns) < expires_tick;
    if first != expected || !is_live {
        return None;
    }

    // Tag.
    if least.skips_tag == 0 {
        let mut mac = Mac::new(key);
        for word in [first, id, sequence] {
            mac.absorb_word(word);
        }
        if !tag::equal(mac.finish(0, 24), [low, high]) {
            return None;
        }
    }

    // Replay and rate.
    let sequence = u64::from_be(sequence);
    if !replay::in_range(sequence) {
        return None;
    }
    // SAFETY: as above, and the index is below 4.
    let (window, full_at_ns) = unsafe {
        let window = (&raw mut (*record).replay).cast::<u64>();
        (
            window.add(replay::word_index(sequence) & 3),
            &raw mut (*record).full_at_ns,
        )
    };
    // SAFETY: as above.
    let (seen, full_ns) = unsafe { (window.read_volatile(), full_at_ns.read_volatile()) };
    let Offer::Accept(after) = replay::offer(seen, sequence) else {
        return None;
    };
    if !swap_if(window, seen, after) {
        return None;
    }
    let after_ns = rate::offer(full_ns, now_ns, 1, 1 << 31)?;
    if !swap_if(full_at_ns, full_ns, after_ns) {
        return None;
    }

    // Rewrite.
    let source = u32::from_ne_bytes(least.source);
    let addresses = Delta::ZERO
        .replace_u32(ip[3], source)
        .replace_u32(ip[4], device);
    let ttl = ip[2] & 0xFF;
    let header = addresses.replace_u16(ttl as u16, ttl.wrapping_sub(1) as u16);
    write(frame, 24, header.apply((ip[2] >> 16) as u16));
    write(frame, 22, ttl.wrapping_sub(1) as u8);
    write(frame, 26, [source, device]);
    let [from, to, _, sum]: [u16; 4] = read(frame, 34);
    let (source_port, device_port) = (
        u16::from_ne_bytes(least.source_port),
        u16::from_ne_bytes(control.device_port),
    );
    let ports = addresses
        .replace_u16(from, source_port)
        .replace_u16(to, device_port);
    write(frame, 34, [source_port, device_port]);
    write(frame, 40, ports.apply_udp(sum));
    write(frame, 0, least.macs);

    // Send.
    // SAFETY: a static is valid and aligned; to redirect has no requirements.
    unsafe {
        let interface = (&raw const BENCH_INTERFACE).read_volatile();
        Some(bpf_redirect(interface, 0) as u32)
    }
}
