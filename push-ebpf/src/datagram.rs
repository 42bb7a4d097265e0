//! UDP datagrams as they come in: taken out of any framing.

use crate::packet::Frame;
use aya_ebpf::helpers::bpf_loop;
use core::ffi::c_void;
use push_common::checksum::Delta;
use push_common::maps::NicConfig;
use push_common::verdict::Verdict;
use push_common::wire::{
    ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_PROVIDER_VLAN, ETHERTYPE_VLAN, EthernetHeader,
    Ipv4Header, Ipv6Header, PROTOCOL_UDP, UdpHeader,
};
use zerocopy::byteorder::network_endian::U16;
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

/// An IP address in memory as on the wire; one of IPv4 is in the first 4 bytes, with zeros behind.
pub(crate) type Address = [u64; 2];

pub(crate) const ETHERNET_LEN: usize = size_of::<EthernetHeader>();
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

/// The link layer in front of a datagram, in whole words as in memory.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Link {
    /// Destination and source.
    pub(crate) macs: [u32; 3],
    /// VLAN tags, the outer one first.
    pub(crate) tags: [u32; MAX_TAGS],
    /// Number of tags.
    pub(crate) tag_count: usize,
}

/// A UDP datagram as it came in.
#[repr(C)]
pub(crate) struct Datagram {
    pub(crate) link: Link,
    pub(crate) is_v6: bool,
    /// Offset into the frame of the UDP header.
    pub(crate) udp_at: usize,
    /// Bytes from there on, as the IP header claims.
    pub(crate) udp_len: usize,
    /// Ports, as on the wire.
    pub(crate) source_port: [u8; 2],
    pub(crate) destination_port: [u8; 2],
    pub(crate) hop_limit: u8,
    /// DSCP and ECN.
    pub(crate) traffic_class: u8,
    /// The flow label of IPv6; of IPv4, identification and fragment field, as in memory.
    pub(crate) label: u32,
    pub(crate) source: Address,
    pub(crate) destination: Address,
    /// What an IPv4 header's words come to: 0 if its checksum is right.
    header_checksum: u16,
}

impl Datagram {
    /// Finds the UDP header of a frame behind VLAN tags, IPv4 or IPv6. Everything else is the kernel's.
    #[inline(never)]
    pub(crate) fn parse(&mut self, frame: Frame<'_>) -> Result<(), Verdict> {
        let macs = frame.get::<[[u8; 4]; 3]>(0).ok_or(Verdict::Truncated)?;
        self.link.macs = macs.map(u32::from_ne_bytes);
        self.link.tag_count = 0;
        let mut ethertype = frame
            .get::<U16>(ETHERNET_LEN - 2)
            .ok_or(Verdict::Truncated)?
            .get();
        for (index, tag_at) in TAGS_AT.into_iter().enumerate() {
            if ethertype != ETHERTYPE_VLAN && ethertype != ETHERTYPE_PROVIDER_VLAN {
                break;
            }
            let tag = frame.get::<[u8; TAG_LEN]>(tag_at);
            self.link.tags[index] = u32::from_ne_bytes(*tag.ok_or(Verdict::Truncated)?);
            self.link.tag_count = index.wrapping_add(1);
            ethertype = frame
                .get::<U16>(tag_at.wrapping_add(TAG_LEN))
                .ok_or(Verdict::Truncated)?
                .get();
        }
        let ip_at = self.link.len();
        match ethertype {
            ETHERTYPE_IPV4 => self.parse_v4(frame, ip_at),
            ETHERTYPE_IPV6 => self.parse_v6(frame, ip_at),
            _ => Err(Verdict::NotIp),
        }?;
        let udp = frame
            .get::<UdpHeader>(self.udp_at)
            .ok_or(Verdict::Truncated)?;
        self.source_port = udp.source.to_bytes();
        self.destination_port = udp.destination.to_bytes();
        Ok(())
    }

    #[inline(always)]
    fn parse_v4(&mut self, frame: Frame<'_>, ip_at: usize) -> Result<(), Verdict> {
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
        let words = frame
            .get::<[[u8; 4]; IPV4_LEN / 4]>(ip_at)
            .ok_or(Verdict::Truncated)?;
        let mut sum = Delta::ZERO;
        for word in words {
            sum = sum.add_u32(u32::from_ne_bytes(*word));
        }
        self.is_v6 = false;
        self.udp_at = ip_at.wrapping_add(IPV4_LEN);
        self.udp_len = usize::from(ip.total_length.get()).saturating_sub(IPV4_LEN);
        self.hop_limit = ip.ttl;
        self.traffic_class = ip.tos;
        self.label = u32::from_ne_bytes(words[1]);
        self.source = widen(ip.source);
        self.destination = widen(ip.destination);
        self.header_checksum = sum.finish();
        Ok(())
    }

    #[inline(always)]
    fn parse_v6(&mut self, frame: Frame<'_>, ip_at: usize) -> Result<(), Verdict> {
        let ip = frame.get::<Ipv6Header>(ip_at).ok_or(Verdict::Truncated)?;
        let first = u32::from_be_bytes(ip.version_class_flow);
        if first >> 28 != 6 {
            return Err(Verdict::UnusualIpHeader);
        }
        self.is_v6 = true;
        self.udp_at = ip_at.wrapping_add(IPV6_LEN);
        self.udp_len = usize::from(ip.payload_length.get());
        self.hop_limit = ip.hop_limit;
        self.traffic_class = (first >> 20) as u8;
        self.label = first & IPV6_FLOW_LABEL;
        self.source = bytemuck::cast(ip.source);
        self.destination = bytemuck::cast(ip.destination);
        self.header_checksum = 0;
        if ip.next_header != PROTOCOL_UDP {
            let len = extension_headers_len(frame, self.udp_at, self.udp_len, ip.next_header)?;
            self.udp_at = self.udp_at.wrapping_add(len);
            self.udp_len = self.udp_len.wrapping_sub(len);
        }
        Ok(())
    }

    /// Whether the datagram is for an address at which the NIC takes triggers.
    #[inline(always)]
    pub(crate) fn is_to_triggers_of(&self, nic: &NicConfig) -> bool {
        if self.is_v6 {
            nic.takes & NicConfig::IPV6 != 0
                && self.destination == bytemuck::cast::<_, Address>(nic.ipv6)
        } else {
            nic.takes & NicConfig::IPV4 != 0 && self.destination == widen(nic.ipv4)
        }
    }

    /// Whether the checksum of the IP header is right, if it has one.
    #[inline(always)]
    pub(crate) const fn has_intact_header(&self) -> bool {
        self.header_checksum == 0
    }
}

impl Link {
    /// Bytes up to the IP header.
    #[inline(always)]
    pub(crate) fn len(&self) -> usize {
        ETHERNET_LEN.wrapping_add(self.tag_count.wrapping_mul(TAG_LEN))
    }

    /// Destination and source exchanged.
    #[inline(always)]
    pub(crate) const fn reversed_macs(&self) -> [u32; 3] {
        let [a, b, c] = self.macs;
        [b >> 16 | c << 16, c >> 16 | a << 16, a >> 16 | b << 16]
    }
}

/// The way through IPv6 extension headers.
struct Extensions<'a> {
    frame: Frame<'a>,
    /// Offset into the frame of the first one.
    at: usize,
    /// Bytes walked.
    len: usize,
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
    at: usize,
    limit: usize,
    first: u8,
) -> Result<usize, Verdict> {
    let mut extensions = Extensions {
        frame,
        at,
        len: 0,
        limit,
        next: u32::from(first),
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
        None => Ok(extensions.len & 0x1FF),
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
            .get::<ExtensionHeader>(self.at.wrapping_add(self.len))
            .ok_or(Verdict::Truncated)?;
        let len = self
            .len
            .wrapping_add(8)
            .wrapping_add(usize::from(header.length).wrapping_mul(8));
        // Who has segments left isn't at its destination.
        let goes_on = self.next as u8 == ROUTING && header.segments_left != 0;
        if goes_on || len > self.limit || len > MAX_EXTENSION_LEN {
            return Err(Verdict::UnusualIpHeader);
        }
        self.len = len;
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
    bytemuck::must_cast([u32::from_ne_bytes(ipv4), 0, 0, 0])
}

#[inline(always)]
pub(crate) fn narrow(address: Address) -> u32 {
    let [ipv4, _, _, _]: [u32; 4] = bytemuck::must_cast(address);
    ipv4
}
