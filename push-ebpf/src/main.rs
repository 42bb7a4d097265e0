//! The fast path: an XDP program that checks a push trigger and sends it on to the device.
//!
//! [`path`] is all of it, top to bottom. [`packet`] holds the bounds checks, [`shared`] the access
//! to memory that is shared with other CPUs, `push_common` all formats and the arithmetic.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![cfg_attr(target_arch = "bpf", feature(core_intrinsics))]
#![cfg_attr(
    target_arch = "bpf",
    expect(
        internal_features,
        reason = "the only way to compare-and-swap on this target"
    )
)]
#![cfg_attr(
    not(target_arch = "bpf"),
    expect(dead_code, reason = "only the kernel calls the program")
)]
#![expect(unsafe_code, reason = "helpers, maps and frames are raw memory")]
#![warn(clippy::arithmetic_side_effects)]

mod packet;
mod shared;

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{
    self, BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_FWD_DISABLED, BPF_FIB_LKUP_RET_NO_NEIGH,
    BPF_FIB_LKUP_RET_SUCCESS, xdp_action,
};
use aya_ebpf::btf_maps::{Array, PerCpuArray};
use aya_ebpf::helpers::{bpf_fib_lookup, bpf_ktime_get_coarse_ns, bpf_redirect};
use aya_ebpf::macros::{btf_map, xdp};
use aya_ebpf::programs::XdpContext;
use packet::Frame;
use push_common::checksum::Delta;
use push_common::maps::{
    Counters, DEFAULT_SESSION_SLOTS, MAX_NICS, MAX_SOURCES, Meta, NicConfig, SessionControl,
    SessionRecord, SourceRecord, tick_of,
};
use push_common::replay::{self, Offer};
use push_common::tag::{self, Mac};
use push_common::verdict::{Action, Verdict};
use push_common::wire::{
    ETHERTYPE_IPV4, ETHERTYPE_IPV6, EthernetHeader, Ipv4Header, Ipv6Header, MAGIC, MAX_PAYLOAD_LEN,
    PROTOCOL_UDP, SIGNED_LEN, SessionId, TRIGGER_HEADER_LEN, TriggerHeader, UdpHeader, VERSION,
};
use shared::Session;

/// The session table: the slot of a session identifier is the index. Userspace maps it into its memory.
#[btf_map(name = "push_sessions")]
static SESSIONS: Array<SessionRecord, { DEFAULT_SESSION_SLOTS as usize }, BPF_F_MMAPABLE> =
    Array::new();

/// Addresses of the gateway that triggers come from, as far as a device can see.
#[btf_map(name = "push_sources")]
static SOURCES: Array<SourceRecord, { MAX_SOURCES as usize }> = Array::new();

/// Packets and bytes by verdict, for each NIC.
#[btf_map(name = "push_counters")]
static COUNTERS: PerCpuArray<Counters, { MAX_NICS as usize }> = PerCpuArray::new();

/// Not read here: tells the next controller what it would adopt.
#[btf_map(name = "push_meta")]
static META: Array<Meta, 1> = Array::new();

/// What doesn't change while the program is attached to its NIC. The loader sets it, and the
/// verifier, to whom it is a constant, takes out the code that it makes unreachable.
#[unsafe(no_mangle)]
static NIC_CONFIG: NicConfig = NicConfig {
    index: 0,
    trigger_port: [0; 2],
    families: 0,
    reserved: 0,
    ipv4: [0; 4],
    reserved_too: [0; 4],
    ipv6: [0; 16],
};

const BPF_F_MMAPABLE: usize = bindings::BPF_F_MMAPABLE as usize;

/// Attempts at a replay window that other CPUs change at the same time. One fails only if another
/// CPU has just had success with the same word.
const REPLAY_ATTEMPTS: u32 = 8;

/// A TTL or hop limit of 1 ends at this gateway.
const LAST_HOP: u8 = 1;

const IP_AT: usize = size_of::<EthernetHeader>();
const IPV4_LEN: usize = size_of::<Ipv4Header>();
const IPV6_LEN: usize = size_of::<Ipv6Header>();
const UDP_LEN: usize = size_of::<UdpHeader>();

/// Version 4, five words of header.
const IPV4_WITHOUT_OPTIONS: u8 = 0x45;
/// The flag "more fragments" and the offset.
const IPV4_MORE_OR_OFFSET: u16 = 0x3FFF;
const PROTOCOL_IPV6_FRAGMENT: u8 = 44;
const NO_CHECKSUM: [u8; 2] = [0, 0];
/// Of a source that isn't there.
const NO_PORT: [u8; 2] = [0, 0];

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// Entry and only exit: each packet gets one verdict, which is counted.
#[xdp]
#[expect(
    clippy::needless_pass_by_value,
    reason = "aya's entry point passes it so"
)]
fn push(context: XdpContext) -> u32 {
    let frame = Frame::new(&context);
    let (Ok(verdict) | Err(verdict)) = path(&context, frame);
    count(verdict, frame.len());
    #[cfg(feature = "log")]
    if let Action::Drop = verdict.action() {
        aya_log_ebpf::info!(&context, "dropped: verdict {}", verdict as u32);
    }
    match verdict.action() {
        Action::Pass => xdp_action::XDP_PASS,
        Action::Transmit => xdp_action::XDP_TX,
        Action::Redirect => xdp_action::XDP_REDIRECT,
        Action::Drop => xdp_action::XDP_DROP,
    }
}

/// The way of a packet: parse, ours?, trigger, session, tag, replay, rewrite, send.
///
/// Until it's sure that a packet is meant as a trigger, every doubt means that the kernel gets it,
/// untouched. From then on, every doubt means that it's dropped.
#[inline(always)]
fn path(context: &XdpContext, frame: Frame<'_>) -> Result<Verdict, Verdict> {
    // Parse: Ethernet, IP without options or extension headers, UDP.
    let ethernet = frame.get::<EthernetHeader>(0).ok_or(Verdict::Truncated)?;
    let ip = match ethernet.ethertype.get() {
        ETHERTYPE_IPV4 => Ip::parse_v4(frame)?,
        ETHERTYPE_IPV6 => Ip::parse_v6(frame)?,
        _ => return Err(Verdict::NotIp),
    };
    let udp = frame
        .get::<UdpHeader>(ip.udp_at)
        .ok_or(Verdict::Truncated)?;

    // Ours? What isn't leaves here, and nothing of it was changed.
    let trigger_port = nic_config().trigger_port;
    if !ip.to_gateway || udp.destination.to_bytes() != trigger_port {
        return Err(Verdict::NotTrigger);
    }

    // Trigger: every length has to agree with every other one.
    if ip.payload_len > frame.len().wrapping_sub(ip.udp_at) {
        return Err(Verdict::IpLength);
    }
    let udp_len = usize::from(udp.length.get());
    if udp_len < UDP_LEN || udp_len != ip.payload_len {
        return Err(Verdict::UdpLength);
    }
    if ip.is_v6 && udp.checksum == NO_CHECKSUM {
        return Err(Verdict::NoUdpChecksum);
    }
    let trigger_len = udp_len.wrapping_sub(UDP_LEN);
    if trigger_len < TRIGGER_HEADER_LEN {
        return Err(Verdict::TriggerTruncated);
    }
    let trigger_at = ip.udp_at.wrapping_add(UDP_LEN);
    let trigger = frame
        .get::<TriggerHeader>(trigger_at)
        .ok_or(Verdict::IpLength)?;
    let payload_len = usize::from(trigger.payload_length.get());
    if trigger.magic != MAGIC {
        return Err(Verdict::BadMagic);
    }
    if trigger.version != VERSION {
        return Err(Verdict::UnknownVersion);
    }
    if trigger.flags != 0 {
        return Err(Verdict::UnknownFlags);
    }
    if payload_len != trigger_len.wrapping_sub(TRIGGER_HEADER_LEN) {
        return Err(Verdict::TriggerLength);
    }
    if payload_len > MAX_PAYLOAD_LEN {
        return Err(Verdict::PayloadTooLong);
    }

    // Session: what is read between the two looks at the control word belongs together.
    let id = SessionId::from_u64(trigger.session_id.get());
    let record = SESSIONS
        .get_ptr_mut(id.slot())
        .ok_or(Verdict::UnknownSession)?;
    // SAFETY: the map has just given it out.
    let session = unsafe { Session::new(record) };
    if id.generation() == 0 || session.generation() != id.generation() {
        return Err(Verdict::UnknownSession);
    }
    let control = session.control();
    if control.has(SessionControl::CHANGING) {
        return Err(Verdict::SessionChanging);
    }
    let expires_tick = session.expires_tick();
    let key = session.key(trigger.token_generation);
    let device = session.device_address();
    if session.control() != control {
        return Err(Verdict::SessionChanging);
    }
    // SAFETY: has no requirements.
    let now_ns = unsafe { bpf_ktime_get_coarse_ns() };
    if tick_of(now_ns) >= expires_tick {
        return Err(Verdict::Expired);
    }
    if !control.takes_token(trigger.token_generation) {
        return Err(Verdict::UnknownTokenGeneration);
    }
    if ip.is_v6 != control.has(SessionControl::IPV6) {
        return Err(Verdict::FamilyMismatch);
    }
    let sequence = trigger.sequence.get();
    if !replay::in_range(sequence) {
        return Err(Verdict::SequenceOutOfRange);
    }

    // Tag: nothing of the session is written, and nothing sent, without a valid one.
    let signed = frame
        .get::<[[u8; 8]; SIGNED_LEN / 8]>(trigger_at)
        .ok_or(Verdict::IpLength)?;
    let mut mac = Mac::new(key);
    for word in signed {
        mac.absorb_word(u64::from_le_bytes(*word));
    }
    if payload_len > 0 {
        mac = packet::absorb_payload(
            frame,
            mac,
            trigger_at.wrapping_add(TRIGGER_HEADER_LEN),
            payload_len,
        );
    }
    if !tag::equal(mac.finish(), tag::words(trigger.tag)) {
        return Err(Verdict::BadTag);
    }
    if ip.hop_limit <= LAST_HOP {
        return Err(Verdict::HopLimit);
    }
    let from = SOURCES
        .get(u32::from(control.source))
        .ok_or(Verdict::MissingConfiguration)?;
    if from.port == NO_PORT {
        return Err(Verdict::MissingConfiguration);
    }

    // Replay: the one who swaps the word is the one who lets the trigger through.
    accept_once(session, sequence)?;

    // Send: the kernel knows the way.
    let keep_source = control.has(SessionControl::KEEP_SOURCE);
    let source = if keep_source {
        ip.source
    } else {
        bytemuck::cast(from.address)
    };
    let route = route(context, &ip, source, device)?;

    // Rewrite.
    // SAFETY: none of the references above is used from here on.
    unsafe {
        let udp = frame
            .get_mut::<UdpHeader>(ip.udp_at)
            .ok_or(Verdict::Truncated)?;
        let hops = u8::from(route.is_some());
        let mut delta = ip.rewrite(frame, source, device, hops)?;
        if !keep_source {
            delta = delta.replace_u16(word(udp.source.to_bytes()), word(from.port));
            udp.source = from.port.into();
        }
        delta = delta.replace_u16(word(trigger_port), word(control.device_port));
        udp.destination = control.device_port.into();
        if udp.checksum != NO_CHECKSUM {
            udp.checksum = delta.apply_udp(word(udp.checksum)).to_ne_bytes();
        }
    }
    session.delivered(frame.len() as u64, now_ns);

    let Some(next_hop) = route else {
        return Ok(Verdict::NextHopUnresolved);
    };
    // SAFETY: as above.
    let ethernet = unsafe { frame.get_mut::<EthernetHeader>(0) }.ok_or(Verdict::Truncated)?;
    ethernet.destination = next_hop.destination_mac;
    ethernet.source = next_hop.source_mac;
    if next_hop.interface as usize == context.ingress_ifindex() {
        Ok(Verdict::SentBack)
    } else {
        // SAFETY: has no requirements.
        unsafe { bpf_redirect(next_hop.interface, 0) };
        Ok(Verdict::Redirected)
    }
}

/// An IP address in memory as on the wire; one of IPv4 is in the first 4 bytes.
type Address = [u64; 2];

/// What the path needs to know of an IP header.
struct Ip {
    is_v6: bool,
    /// The destination is an address on which this NIC takes triggers.
    to_gateway: bool,
    /// Offset into the frame of what follows.
    udp_at: usize,
    /// Bytes of what follows, as the header claims.
    payload_len: usize,
    hop_limit: u8,
    source: Address,
}

impl Ip {
    #[inline(always)]
    fn parse_v4(frame: Frame<'_>) -> Result<Self, Verdict> {
        let ip = frame.get::<Ipv4Header>(IP_AT).ok_or(Verdict::Truncated)?;
        if ip.version_ihl != IPV4_WITHOUT_OPTIONS {
            return Err(Verdict::UnusualIpHeader);
        }
        if ip.fragment.get() & IPV4_MORE_OR_OFFSET != 0 {
            return Err(Verdict::Fragment);
        }
        if ip.protocol != PROTOCOL_UDP {
            return Err(Verdict::NotUdp);
        }
        let config = nic_config();
        Ok(Self {
            is_v6: false,
            to_gateway: config.families & NicConfig::IPV4 != 0 && ip.destination == config.ipv4,
            udp_at: IP_AT + IPV4_LEN,
            payload_len: usize::from(ip.total_length.get()).saturating_sub(IPV4_LEN),
            hop_limit: ip.ttl,
            source: widen(ip.source),
        })
    }

    #[inline(always)]
    fn parse_v6(frame: Frame<'_>) -> Result<Self, Verdict> {
        let ip = frame.get::<Ipv6Header>(IP_AT).ok_or(Verdict::Truncated)?;
        if ip.version_class_flow[0] >> 4 != 6 {
            return Err(Verdict::UnusualIpHeader);
        }
        match ip.next_header {
            PROTOCOL_UDP => {}
            PROTOCOL_IPV6_FRAGMENT => return Err(Verdict::Fragment),
            _ => return Err(Verdict::NotUdp),
        }
        let config = nic_config();
        Ok(Self {
            is_v6: true,
            to_gateway: config.families & NicConfig::IPV6 != 0 && ip.destination == config.ipv6,
            udp_at: IP_AT + IPV6_LEN,
            payload_len: usize::from(ip.payload_length.get()),
            hop_limit: ip.hop_limit,
            source: bytemuck::cast(ip.source),
        })
    }

    /// Sets source, destination, and takes `hops` off the hop limit. Returns what the new addresses
    /// mean for the checksum of UDP, whose pseudo-header has them.
    ///
    /// # Safety
    ///
    /// No reference to the IP header may be used any more.
    #[inline(always)]
    unsafe fn rewrite(
        &self,
        frame: Frame<'_>,
        source: Address,
        destination: Address,
        hops: u8,
    ) -> Result<Delta, Verdict> {
        let hop_limit = self.hop_limit.wrapping_sub(hops);
        let old = self.source;
        if self.is_v6 {
            // SAFETY: the caller's promise.
            let ip = unsafe { frame.get_mut::<Ipv6Header>(IP_AT) }.ok_or(Verdict::Truncated)?;
            let gateway: Address = bytemuck::cast(ip.destination);
            ip.source = bytemuck::cast(source);
            ip.destination = bytemuck::cast(destination);
            ip.hop_limit = hop_limit;
            Ok(Delta::default()
                .replace_u64(old[0], source[0])
                .replace_u64(old[1], source[1])
                .replace_u64(gateway[0], destination[0])
                .replace_u64(gateway[1], destination[1]))
        } else {
            // SAFETY: the caller's promise.
            let ip = unsafe { frame.get_mut::<Ipv4Header>(IP_AT) }.ok_or(Verdict::Truncated)?;
            let (source, destination) = (narrow(source), narrow(destination));
            let delta = Delta::default()
                .replace_u32(narrow(old), source)
                .replace_u32(u32::from_ne_bytes(ip.destination), destination);
            let checksum = delta
                .replace_u16(word([ip.ttl, ip.protocol]), word([hop_limit, ip.protocol]))
                .apply(word(ip.checksum));
            ip.source = source.to_ne_bytes();
            ip.destination = destination.to_ne_bytes();
            ip.ttl = hop_limit;
            ip.checksum = checksum.to_ne_bytes();
            Ok(delta)
        }
    }
}

/// Accepts `sequence` if no CPU has accepted it before.
#[inline(always)]
fn accept_once(session: Session, sequence: u64) -> Result<(), Verdict> {
    let index = replay::word_index(sequence);
    for _ in 0..REPLAY_ATTEMPTS {
        let word = session.replay_word(index);
        match replay::offer(word, sequence) {
            Offer::Accept(new) => {
                if session.swap_replay_word(index, word, new) {
                    return Ok(());
                }
            }
            Offer::Replayed => return Err(Verdict::Replayed),
            Offer::TooOld => return Err(Verdict::SequenceTooOld),
        }
    }
    Err(Verdict::ReplayContended)
}

/// Where a datagram goes next.
struct NextHop {
    interface: u32,
    source_mac: [u8; 6],
    destination_mac: [u8; 6],
}

/// The next hop to `device` by the kernel's routes, or `None` if its MAC address isn't known yet.
#[inline(always)]
fn route(
    context: &XdpContext,
    ip: &Ip,
    source: Address,
    device: Address,
) -> Result<Option<NextHop>, Verdict> {
    let family = if ip.is_v6 { AF_INET6 } else { AF_INET };
    let total_len = ip.udp_at.wrapping_add(ip.payload_len).wrapping_sub(IP_AT);
    let [len_0, len_1] = (total_len as u16).to_ne_bytes();
    let mut query = Query {
        family_protocol_ports_len: u64::from_ne_bytes([
            family,
            PROTOCOL_UDP,
            0,
            0,
            0,
            0,
            len_0,
            len_1,
        ]),
        interface: context.ingress_ifindex() as u32,
        flow: 0,
        source,
        destination: device,
        vlan_and_macs: [0; 2],
    };
    let size = size_of::<Query>() as i32;
    // SAFETY: the kernel reads and writes as much as it is told.
    let answer = unsafe { bpf_fib_lookup(context.as_ptr(), (&raw mut query).cast(), size, 0) };
    match answer as u32 {
        BPF_FIB_LKUP_RET_SUCCESS => {
            let macs: [[u8; 2]; 8] = bytemuck::must_cast(query.vlan_and_macs);
            let [_, _, s0, s1, s2, d0, d1, d2] = macs;
            Ok(Some(NextHop {
                interface: query.interface,
                source_mac: bytemuck::must_cast([s0, s1, s2]),
                destination_mac: bytemuck::must_cast([d0, d1, d2]),
            }))
        }
        BPF_FIB_LKUP_RET_NO_NEIGH => Ok(None),
        BPF_FIB_LKUP_RET_FWD_DISABLED => Err(Verdict::ForwardingDisabled),
        BPF_FIB_LKUP_RET_FRAG_NEEDED => Err(Verdict::TooBig),
        _ => Err(Verdict::NoRoute),
    }
}

/// Question and answer of the kernel's route look-up: its `struct bpf_fib_lookup`, but made of words
/// that start at multiples of their size. Frames may be accessed at any address; for the stack, the
/// verifier insists on alignment.
#[repr(C)]
struct Query {
    family_protocol_ports_len: u64,
    interface: u32,
    flow: u32,
    source: Address,
    destination: Address,
    vlan_and_macs: [u64; 2],
}

const _: () = {
    use core::mem::offset_of;
    assert!(size_of::<Query>() == size_of::<bindings::bpf_fib_lookup>());
    assert!(offset_of!(Query, interface) == offset_of!(bindings::bpf_fib_lookup, ifindex));
    assert!(
        offset_of!(Query, vlan_and_macs) == offset_of!(bindings::bpf_fib_lookup, __bindgen_anon_5)
    );
};

/// Counts a packet of `length` bytes.
#[inline(always)]
fn count(verdict: Verdict, length: usize) {
    // SAFETY: a static is valid and aligned.
    let nic = unsafe { shared::load(&raw const NIC_CONFIG.index) };
    if let Some(counters) = COUNTERS.get_ptr_mut(nic) {
        // SAFETY: the entry is this CPU's alone, and nothing interrupts the program to run it anew.
        let count = unsafe { &mut (*counters).by_verdict[verdict as usize] };
        count.packets = count.packets.wrapping_add(1);
        count.bytes = count.bytes.wrapping_add(length as u64);
    }
}

#[inline(always)]
fn nic_config() -> NicConfig {
    const WORDS: usize = size_of::<NicConfig>() / 8;
    // SAFETY: a static is valid, and aligned to words. It's read as volatile, as it will have another
    // value than it has here.
    let words: [u64; WORDS] = unsafe { shared::load((&raw const NIC_CONFIG).cast()) };
    bytemuck::must_cast(words)
}

/// Two bytes as checksums sum them up.
#[inline(always)]
const fn word(bytes: [u8; 2]) -> u16 {
    u16::from_ne_bytes(bytes)
}

#[inline(always)]
fn widen(ipv4: [u8; 4]) -> Address {
    bytemuck::must_cast([u32::from_ne_bytes(ipv4), 0, 0, 0])
}

#[inline(always)]
fn narrow(address: Address) -> u32 {
    let [ipv4, _, _, _]: [u32; 4] = bytemuck::must_cast(address);
    ipv4
}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // Code that could panic would not link: the verifier refuses an endless loop.
    loop {}
}

/// Helpers that the kernel offers to GPL-compatible programs only are not out of reach.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(not(target_arch = "bpf"))]
fn main() {}
