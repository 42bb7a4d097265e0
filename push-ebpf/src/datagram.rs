//! UDP datagrams as they come in: taken out of any framing.

use crate::global::{result_of, word_of};
use crate::nic;
use crate::packet::Frame;
use crate::shared::load;
use aya_ebpf::bindings::xdp_md;
use aya_ebpf::helpers::bpf_loop;
use core::ffi::c_void;
use push_common::checksum::Delta;
use push_common::maps::NicConfig;
use push_common::verdict::Verdict;
use push_common::wire::{
    ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_PROVIDER_VLAN, ETHERTYPE_VLAN, EthernetHeader,
    Ipv4Header, Ipv6Header, PROTOCOL_UDP, TriggerHeader, UdpHeader,
};
use zerocopy::byteorder::network_endian::U16;
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

/// An IP address in memory as on the wire; one of IPv4 is in the first 4 bytes, with zeros behind.
pub(crate) type Address = [u64; 2];

pub(crate) const ETHERNET_LEN: usize = size_of::<EthernetHeader>();
pub(crate) const MAC_LEN: usize = 6;
pub(crate) const TAG_LEN: usize = 4;
pub(crate) const IPV4_LEN: usize = size_of::<Ipv4Header>();
pub(crate) const IPV6_LEN: usize = size_of::<Ipv6Header>();
pub(crate) const UDP_LEN: usize = size_of::<UdpHeader>();

/// VLAN tags that are followed.
pub(crate) const MAX_TAGS: usize = 2;
/// A tag stands where the EtherType would.
pub(crate) const TAGS_AT: [usize; MAX_TAGS] = [ETHERNET_LEN - 2, ETHERNET_LEN - 2 + TAG_LEN];
/// IPv6 extension headers that are followed, and their bytes together.
const MAX_EXTENSION_HEADERS: u32 = 4;
const MAX_EXTENSION_LEN: usize = 256;

/// Version 4, five words of header.
pub(crate) const IPV4_WITHOUT_OPTIONS: u8 = 0x45;
/// The flag "more fragments" and the offset.
const IPV4_MORE_OR_OFFSET: u16 = 0x3FFF;
const IPV6_FLOW_LABEL: u32 = 0x000F_FFFF;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION_OPTIONS: u8 = 60;

pub(crate) const NO_CHECKSUM: [u8; 2] = [0, 0];

/// The link layer in front of a datagram, in words as in memory.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Link {
    /// MAC address of the destination, and two bytes of no meaning.
    pub(crate) to: u64,
    /// That of the source, the same way.
    pub(crate) from: u64,
    /// VLAN tags, the outer one first.
    pub(crate) tags: u64,
    /// Number of tags.
    pub(crate) tag_count: u64,
}

/// A datagram of UDP, as far as a trigger's header goes.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct TriggerDatagram {
    pub(crate) udp: UdpHeader,
    pub(crate) trigger: TriggerHeader,
}

/// A UDP datagram in a frame, as it came in: where it is, and what is known of it. It is one word, as that is
/// what global functions take and return; what else there is to know stays in the frame.
#[derive(Clone, Copy)]
pub(crate) struct Datagram(u64);

impl Datagram {
    /// Bits of the word. In the lowest four is the framing: VLAN tags, IP version, extension headers.
    const IS_V6: u32 = 2;
    const HAS_EXTENSIONS: u32 = 3;
    const FRAMING: u64 = 0xF;
    const FOR_TRIGGERS: u32 = 4;
    const HOP_LIMIT: u32 = 8;
    const TRAFFIC_CLASS: u32 = 16;
    const UDP_LEN: u32 = 32;
    const UDP_AT: u32 = 48;

    /// Finds the UDP header of a frame of `length` bytes behind VLAN tags, IPv4 or IPv6. Everything else is the
    /// kernel's, and so is what can't be for this gateway, or wouldn't be but for what is wrong with its headers.
    #[inline(always)]
    pub(crate) fn find(frame: Frame<'_>, length: usize) -> Result<Self, Verdict> {
        result_of(push_find(frame.context(), length as u64)).map(Self)
    }

    #[inline(always)]
    pub(crate) const fn to_word(self) -> u64 {
        self.0
    }

    /// The one with that word.
    #[inline(always)]
    pub(crate) const fn from_word(word: u64) -> Self {
        Self(word)
    }

    #[inline(always)]
    const fn has(self, bit: u32) -> bool {
        self.0 >> bit & 1 != 0
    }

    #[inline(always)]
    pub(crate) const fn is_v6(self) -> bool {
        self.has(Self::IS_V6)
    }

    /// Whether it is of IPv6 as `is_v6` is 1.
    #[inline(always)]
    pub(crate) const fn is_of_version(self, is_v6: u64) -> bool {
        (self.0 >> Self::IS_V6 ^ is_v6) & 1 == 0
    }

    /// Number of VLAN tags.
    #[inline(always)]
    pub(crate) const fn tag_count(self) -> u64 {
        self.0 & 3
    }

    /// Whether it has so many VLAN tags, that IP version, and nothing else in front of UDP.
    #[inline(always)]
    pub(crate) const fn has_framing(self, tag_count: u64, is_v6: u64) -> bool {
        self.0 & Self::FRAMING == tag_count | is_v6 << Self::IS_V6
    }

    /// Offset into the frame of the IP header.
    #[inline(always)]
    pub(crate) const fn ip_at(self) -> usize {
        link_len(self.tag_count())
    }

    /// Offset into the frame of the UDP header.
    #[inline(always)]
    pub(crate) const fn udp_at(self) -> usize {
        (self.0 >> Self::UDP_AT & 0x7FF) as usize
    }

    /// Bytes from there on, as the IP header and that of UDP say.
    #[inline(always)]
    pub(crate) const fn udp_len(self) -> usize {
        (self.0 >> Self::UDP_LEN & 0xFFFF) as usize
    }

    /// Whether it is for an address and the port at which the NIC takes triggers.
    #[inline(always)]
    pub(crate) const fn is_for_triggers(self) -> bool {
        self.has(Self::FOR_TRIGGERS)
    }

    #[inline(always)]
    pub(crate) const fn hop_limit(self) -> u8 {
        (self.0 >> Self::HOP_LIMIT) as u8
    }

    /// DSCP and ECN.
    #[inline(always)]
    pub(crate) const fn traffic_class(self) -> u8 {
        (self.0 >> Self::TRAFFIC_CLASS) as u8
    }

    /// Source and destination.
    #[inline(always)]
    pub(crate) fn addresses(self, frame: Frame<'_>) -> Result<[Address; 2], Verdict> {
        if self.is_v6() {
            let ip = frame.get::<Ipv6Header>(self.ip_at());
            let ip = ip.ok_or(Verdict::Truncated)?;
            return Ok([bytemuck::cast(ip.source), bytemuck::cast(ip.destination)]);
        }
        let ip = frame.get::<Ipv4Header>(self.ip_at());
        let ip = ip.ok_or(Verdict::Truncated)?;
        Ok([widen(ip.source), widen(ip.destination)])
    }

    /// The flow label of IPv6; of IPv4, identification and fragment field, as in memory.
    #[inline(always)]
    pub(crate) fn label(self, frame: Frame<'_>) -> Result<u32, Verdict> {
        let words = frame.get::<[[u8; 4]; 2]>(self.ip_at());
        let [first, second] = *words.ok_or(Verdict::Truncated)?;
        Ok(if self.is_v6() {
            u32::from_be_bytes(first) & IPV6_FLOW_LABEL
        } else {
            u32::from_ne_bytes(second)
        })
    }

    #[inline(always)]
    pub(crate) fn link(self, frame: Frame<'_>) -> Result<Link, Verdict> {
        let [to, from] = [0, MAC_LEN].map(|at| frame.get::<[u8; 8]>(at));
        let tags = frame.get::<[u8; 8]>(TAGS_AT[0]);
        let (Some(to), Some(from), Some(tags)) = (to, from, tags) else {
            return Err(Verdict::Truncated);
        };
        Ok(Link {
            to: u64::from_ne_bytes(*to),
            from: u64::from_ne_bytes(*from),
            tags: u64::from_ne_bytes(*tags),
            tag_count: self.tag_count(),
        })
    }

    #[inline(always)]
    fn locate(frame: Frame<'_>, length: usize) -> Result<Self, Verdict> {
        let ethernet = frame.get::<EthernetHeader>(0).ok_or(Verdict::Truncated)?;
        let (ethertype, tag_count) = match ethernet.ethertype.get() {
            ETHERTYPE_VLAN | ETHERTYPE_PROVIDER_VLAN => {
                let behind = result_of(push_tags(frame.context()))?;
                (behind as u16, behind >> 16)
            }
            ethertype => (ethertype, 0),
        };
        let ip_at = link_len(tag_count);
        let Self(found) = match ethertype {
            ETHERTYPE_IPV4 => Self::locate_v4(frame, length, ip_at),
            ETHERTYPE_IPV6 => Self::locate_v6(frame, length, ip_at),
            _ => Err(Verdict::NotIp),
        }?;
        Ok(Self(found | tag_count))
    }

    #[inline(always)]
    fn locate_v4(frame: Frame<'_>, length: usize, ip_at: usize) -> Result<Self, Verdict> {
        let ip = frame.get::<Ipv4Header>(ip_at).ok_or(Verdict::Truncated)?;
        if ip.version_ihl != IPV4_WITHOUT_OPTIONS {
            return Err(Verdict::UnusualIpHeader);
        }
        if ip.fragment.get() & IPV4_MORE_OR_OFFSET != 0 {
            return Err(Verdict::Fragment);
        }
        if ip.protocol != PROTOCOL_UDP {
            return Err(Verdict::NotUdp);
        }
        let udp_at = ip_at.wrapping_add(IPV4_LEN);
        let udp = frame.get::<UdpHeader>(udp_at).ok_or(Verdict::Truncated)?;
        let words = frame
            .get::<[[u8; 4]; IPV4_LEN / 4]>(ip_at)
            .ok_or(Verdict::Truncated)?;
        let is_here =
            nic::takes(NicConfig::IPV4) && u32::from_ne_bytes(ip.destination) == nic::ipv4();
        let for_triggers = is_for_triggers(udp, is_here, || {
            let ip_len = usize::from(ip.total_length.get());
            if ip_len > length.wrapping_sub(ip_at) {
                return Some(Verdict::IpLength);
            }
            let mut sum = Delta::ZERO;
            for word in words {
                sum = sum.add_u32(u32::from_ne_bytes(*word));
            }
            if sum.finish() != 0 {
                return Some(Verdict::IpChecksum);
            }
            (!has_length(udp, ip_len.wrapping_sub(IPV4_LEN))).then_some(Verdict::UdpLength)
        })?;
        let times = u64::from(ip.ttl) << Self::HOP_LIMIT | u64::from(ip.tos) << Self::TRAFFIC_CLASS;
        Ok(Self::new(udp_at, udp, for_triggers, times))
    }

    #[inline(always)]
    fn locate_v6(frame: Frame<'_>, length: usize, ip_at: usize) -> Result<Self, Verdict> {
        let ip = frame.get::<Ipv6Header>(ip_at).ok_or(Verdict::Truncated)?;
        let first = u32::from_be_bytes(ip.version_class_flow);
        if first >> 28 != 6 {
            return Err(Verdict::UnusualIpHeader);
        }
        let udp_at = ip_at.wrapping_add(IPV6_LEN);
        let udp_len = ip.payload_length.get();
        let extensions_len = if ip.next_header == PROTOCOL_UDP {
            0
        } else {
            let limit = u64::from(udp_len);
            let next = u32::from(ip.next_header);
            result_of(push_extensions(frame.context(), udp_at as u64, limit, next))? as usize
        };
        let udp_at = udp_at.wrapping_add(extensions_len);
        let udp_len = usize::from(udp_len).wrapping_sub(extensions_len);
        let udp = frame.get::<UdpHeader>(udp_at).ok_or(Verdict::Truncated)?;
        let is_here = nic::takes(NicConfig::IPV6)
            && bytemuck::cast::<_, Address>(ip.destination) == nic::ipv6();
        let for_triggers = is_for_triggers(udp, is_here, || {
            if udp_len > length.wrapping_sub(udp_at) {
                Some(Verdict::IpLength)
            } else if !has_length(udp, udp_len) {
                Some(Verdict::UdpLength)
            } else {
                // IPv6 demands one (RFC 8200, 8.1).
                (udp.checksum == NO_CHECKSUM).then_some(Verdict::NoUdpChecksum)
            }
        })?;
        let framing = 1 << Self::IS_V6 | u64::from(extensions_len != 0) << Self::HAS_EXTENSIONS;
        let rest = u64::from(ip.hop_limit) << Self::HOP_LIMIT
            | u64::from((first >> 20) as u8) << Self::TRAFFIC_CLASS;
        Ok(Self::new(udp_at, udp, for_triggers, framing | rest))
    }

    #[inline(always)]
    fn new(udp_at: usize, udp: &UdpHeader, for_triggers: bool, rest: u64) -> Self {
        Self(
            (udp_at as u64) << Self::UDP_AT
                | u64::from(udp.length.get()) << Self::UDP_LEN
                | u64::from(for_triggers) << Self::FOR_TRIGGERS
                | rest,
        )
    }
}

/// Whether a datagram that `is_here`, at an address for triggers, is one, if there is no `flaw`. What isn't could be an
/// acknowledgement, if the NIC takes those.
#[inline(always)]
fn is_for_triggers(
    udp: &UdpHeader,
    is_here: bool,
    flaw: impl FnOnce() -> Option<Verdict>,
) -> Result<bool, Verdict> {
    let for_triggers = is_here && word(udp.destination.to_bytes()) == nic::trigger_port();
    if !for_triggers && !nic::takes(NicConfig::ACKS) {
        return Err(Verdict::NotTrigger);
    }
    match flaw() {
        None => Ok(for_triggers),
        Some(flaw) if for_triggers => Err(flaw),
        Some(_) => Err(Verdict::NotTrigger),
    }
}

/// Whether UDP and IP say the same, and that can be.
#[inline(always)]
fn has_length(udp: &UdpHeader, udp_len: usize) -> bool {
    udp_len >= UDP_LEN && usize::from(udp.length.get()) == udp_len
}

global! {
    /// [`Datagram::find`].
    fn push_find(context: *mut xdp_md, length: u64) -> u64 {
        // SAFETY: the context is the kernel's own.
        let frame = unsafe { Frame::new(context) };
        word_of(Datagram::locate(frame, length as usize).map(Datagram::to_word))
    }

    /// The EtherType behind VLAN tags, and, from bit 16 on, how many those are.
    fn push_tags(context: *mut xdp_md) -> u64 {
        // SAFETY: as above.
        let frame = unsafe { Frame::new(context) };
        let behind = |tag_at| {
            frame
                .get::<U16>(usize::wrapping_add(tag_at, TAG_LEN))
                .map(|ethertype| ethertype.get())
                .ok_or(Verdict::Truncated)
        };
        word_of(behind(TAGS_AT[0]).and_then(|ethertype| match ethertype {
            ETHERTYPE_VLAN | ETHERTYPE_PROVIDER_VLAN => {
                behind(TAGS_AT[1]).map(|ethertype| u64::from(ethertype) | 2 << 16)
            }
            ethertype => Ok(u64::from(ethertype) | 1 << 16),
        }))
    }

    /// [`extension_headers_len`].
    fn push_extensions(context: *mut xdp_md, at: u64, limit: u64, first: u32) -> u64 {
        // SAFETY: as above.
        let frame = unsafe { Frame::new(context) };
        let len = extension_headers_len(frame, at as usize, limit as usize, first);
        word_of(len.map(|len| len as u64))
    }
}

impl Link {
    /// Bytes up to the IP header.
    #[inline(always)]
    pub(crate) const fn len(&self) -> usize {
        link_len(self.tag_count)
    }
}

#[inline(always)]
const fn link_len(tag_count: u64) -> usize {
    ETHERNET_LEN.wrapping_add((tag_count as usize).wrapping_mul(TAG_LEN))
}

/// The way through IPv6 extension headers.
struct Extensions<'a> {
    frame: Frame<'a>,
    /// Offset into the frame of the first one.
    start: usize,
    /// Of the next one.
    at: usize,
    /// Bytes there are, as the IPv6 header claims.
    limit: usize,
    /// What comes next.
    next: u32,
    verdict: Option<Verdict>,
}

/// Bytes of the extension headers in front of UDP, if all of them end at this gateway. They are not
/// carried on. (RFC 8200, 4)
#[inline(always)]
fn extension_headers_len(
    frame: Frame<'_>,
    start: usize,
    limit: usize,
    first: u32,
) -> Result<usize, Verdict> {
    let mut extensions = Extensions {
        frame,
        start,
        at: start,
        limit,
        next: first,
        verdict: None,
    };
    // SAFETY: the kernel calls `skip_one` with the number of a round, and `extensions`, on this stack.
    unsafe {
        let body: extern "C" fn(u32, &mut Extensions<'_>) -> i64 = skip_one;
        let rounds = MAX_EXTENSION_HEADERS.wrapping_add(1);
        bpf_loop(rounds, body as *mut c_void, (&raw mut extensions).cast(), 0);
    }
    match extensions.verdict {
        Some(verdict) => Err(verdict),
        None => Ok(extensions.at.wrapping_sub(start) & 0x1FF),
    }
}

/// Goes on by one extension header; 1 ends the loop.
extern "C" fn skip_one(round: u32, way: &mut Extensions<'_>) -> i64 {
    let verdict = match way.next as u8 {
        PROTOCOL_UDP => return 1,
        HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS => way.skip(round),
        FRAGMENT => Err(Verdict::Fragment),
        _ => Err(Verdict::NotUdp),
    };
    match verdict {
        Ok(()) => 0,
        Err(verdict) => {
            way.verdict = Some(verdict);
            1
        }
    }
}

impl Extensions<'_> {
    #[inline(always)]
    fn skip(&mut self, round: u32) -> Result<(), Verdict> {
        if round >= MAX_EXTENSION_HEADERS {
            return Err(Verdict::UnusualIpHeader);
        }
        let header = self
            .frame
            .get::<ExtensionHeader>(self.at)
            .ok_or(Verdict::Truncated)?;
        let next_at = self
            .at
            .wrapping_add(8)
            .wrapping_add(usize::from(header.length).wrapping_mul(8));
        let len = next_at.wrapping_sub(self.start);
        // Who has segments left isn't at its destination. (Read anew: as it was compared with before, the verifier
        // would know which of the kinds it is, and go through all of this once for each.)
        // SAFETY: the field is one of a live struct.
        let kind = unsafe { load(&raw const self.next) } as u8;
        let goes_on = kind == ROUTING && header.segments_left != 0;
        if goes_on || len > self.limit || len > MAX_EXTENSION_LEN {
            return Err(Verdict::UnusualIpHeader);
        }
        self.at = next_at;
        self.next = u32::from(header.next_header);
        Ok(())
    }
}

/// What all extension headers begin with, and where one for routing has its segments left.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct ExtensionHeader {
    next_header: u8,
    /// In units of 8 bytes, without the first 8.
    length: u8,
    kind: u8,
    segments_left: u8,
    rest: [u8; 4],
}

/// Two bytes as checksums sum them up.
#[inline(always)]
pub(crate) const fn word(bytes: [u8; 2]) -> u16 {
    u16::from_ne_bytes(bytes)
}

#[inline(always)]
fn widen(ipv4: [u8; 4]) -> Address {
    let [a, b, c, d] = ipv4;
    [u64::from_ne_bytes([a, b, c, d, 0, 0, 0, 0]), 0]
}

#[inline(always)]
pub(crate) fn narrow(address: Address) -> u32 {
    let [ipv4, _, _, _]: [u32; 4] = bytemuck::must_cast(address);
    ipv4
}
