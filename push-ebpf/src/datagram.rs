//! UDP datagrams: taken out of any framing, and put into any other.
//!
//! What is read and what is written meet in [`Datagram`] and [`Outbound`] only: there is no case for a
//! pair of framings. Both are kept in a map, as the stack has 512 bytes only. That [`Datagram::parse`] and
//! [`Outbound::write`] are functions of their own for the verifier, and that it doesn't remember what
//! is in maps, keeps it from going through the rest of the program once for each framing.

use crate::packet::{self, Frame};
use aya_ebpf::helpers::bpf_loop;
use core::ffi::c_void;
use push_common::checksum::Delta;
use push_common::maps::{NicConfig, PendingAck};
use push_common::verdict::Verdict;
use push_common::wire::{
    ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_PROVIDER_VLAN, ETHERTYPE_VLAN, EthernetHeader,
    GTPU_PORT, GtpuHeader, Ipv4Header, Ipv6Header, PROTOCOL_UDP, UdpHeader,
};
use zerocopy::byteorder::network_endian::U16;
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

/// An IP address in memory as on the wire; one of IPv4 is in the first 4 bytes, with zeros behind.
pub(crate) type Address = [u64; 2];

const ETHERNET_LEN: usize = size_of::<EthernetHeader>();
const TAG_LEN: usize = 4;
const IPV4_LEN: usize = size_of::<Ipv4Header>();
const IPV6_LEN: usize = size_of::<Ipv6Header>();
pub(crate) const UDP_LEN: usize = size_of::<UdpHeader>();
const GTPU_LEN: usize = size_of::<GtpuHeader>();

/// VLAN tags that are followed.
const MAX_TAGS: usize = 2;
/// A tag stands where the EtherType would.
const TAGS_AT: [usize; MAX_TAGS] = [ETHERNET_LEN - 2, ETHERNET_LEN - 2 + TAG_LEN];
/// IPv6 extension headers that are followed, and their bytes together.
const MAX_EXTENSION_HEADERS: u32 = 4;
const MAX_EXTENSION_LEN: usize = 256;

/// Version 4, five words of header.
const IPV4_WITHOUT_OPTIONS: u8 = 0x45;
/// The flag "more fragments" and the offset.
const IPV4_MORE_OR_OFFSET: u16 = 0x3FFF;
const IPV4_DONT_FRAGMENT: u16 = 0x4000;
const IPV6_VERSION: u32 = 6 << 28;
const IPV6_FLOW_LABEL: u32 = 0x000F_FFFF;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION_OPTIONS: u8 = 60;

/// Of datagrams that begin here: tunnels, and acknowledgements on their way to a server.
pub(crate) const OWN_HOP_LIMIT: u8 = 64;

/// Version 1, protocol type GTP, none of the optional fields.
const GTPU_FLAGS: u8 = 0x30;
/// A user's packet.
const GTPU_G_PDU: u8 = 255;

pub(crate) const NO_CHECKSUM: [u8; 2] = [0, 0];

/// What a CPU notes about the packet it is at.
#[repr(C)]
pub(crate) struct Notes {
    pub(crate) datagram: Datagram,
    pub(crate) outbound: Outbound,
    /// A [`push_common::maps::PendingAck`], in whole words.
    pub(crate) pending: PendingWords,
}

pub(crate) type PendingWords = [u64; size_of::<PendingAck>() / 8];

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
    label: u32,
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
    fn len(&self) -> usize {
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

/// A datagram as it goes out, around the payload of one that came in.
#[repr(C)]
pub(crate) struct Outbound {
    pub(crate) link: Link,
    /// Whether it goes through `tunnel`.
    pub(crate) has_tunnel: bool,
    pub(crate) tunnel: Tunnel,
    pub(crate) is_v6: bool,
    pub(crate) source: Address,
    pub(crate) destination: Address,
    pub(crate) source_port: [u8; 2],
    pub(crate) destination_port: [u8; 2],
    pub(crate) hop_limit: u8,
    pub(crate) traffic_class: u8,
}

/// The outside of a GTP-U tunnel.
#[repr(C)]
pub(crate) struct Tunnel {
    pub(crate) is_v6: bool,
    pub(crate) source: Address,
    pub(crate) destination: Address,
    pub(crate) teid: u32,
}

impl Outbound {
    /// Length of the IP datagram that is to be sent, all headers but the link's included.
    #[inline(always)]
    pub(crate) fn ip_len(&self, udp_len: usize) -> usize {
        self.tunnel_len()
            .wrapping_add(ip_header_len(self.is_v6))
            .wrapping_add(udp_len)
    }

    #[inline(always)]
    fn tunnel_len(&self) -> usize {
        if !self.has_tunnel {
            return 0;
        }
        ip_header_len(self.tunnel.is_v6).wrapping_add(UDP_LEN + GTPU_LEN)
    }

    /// Makes it of the frame that `from` was parsed from: writes the UDP header, moves the beginning of
    /// the frame so that the new headers end where the UDP header begins, and writes them.
    ///
    /// # Safety
    ///
    /// No reference to the frame may be used any more.
    #[inline(never)]
    pub(crate) unsafe fn write(&self, frame: Frame<'_>, from: &Datagram) -> Result<(), Verdict> {
        // SAFETY: the caller's promise; each reference below ends before the next one begins.
        unsafe {
            let has_checksum = self.write_udp(frame, from)?;
            let unsummed = if self.has_tunnel && self.tunnel.is_v6 && !has_checksum {
                packet::sum(frame, from.udp_at, from.udp_len)
            } else {
                Delta::ZERO
            };

            let link_len = self.link.len();
            let udp_at = link_len
                .wrapping_add(self.tunnel_len())
                .wrapping_add(ip_header_len(self.is_v6));
            let growth = (udp_at as i32).wrapping_sub(from.udp_at as i32);
            if growth != 0 {
                frame.grow(growth).ok_or(Verdict::NoHeadroom)?;
            }

            let inner = Ip {
                is_v6: self.is_v6,
                source: self.source,
                destination: self.destination,
                traffic_class: self.traffic_class,
                hop_limit: self.hop_limit,
                payload_len: from.udp_len,
                label: if self.is_v6 == from.is_v6 {
                    from.label
                } else {
                    new_label(self.is_v6)
                },
            };
            let inner_at = udp_at.wrapping_sub(ip_header_len(self.is_v6));
            let inner_sum = inner.write(frame, inner_at)?;
            if self.has_tunnel {
                // The checksum of the datagram inside makes it and its pseudo-header come to nothing.
                let sum = match (has_checksum, self.tunnel.is_v6) {
                    (true, _) => Some(inner_sum.subtract(inner.pseudo_header())),
                    (false, true) => Some(inner_sum.combine(unsummed)),
                    (false, false) => None,
                };
                self.write_tunnel(frame, inner.len(), sum)?;
            }
            self.write_link(frame, link_len)
        }
    }

    /// Sets ports and checksum of the UDP header; says whether it has a checksum then.
    ///
    /// # Safety
    ///
    /// As of [`Outbound::write`].
    #[inline(always)]
    unsafe fn write_udp(&self, frame: Frame<'_>, from: &Datagram) -> Result<bool, Verdict> {
        // SAFETY: the caller's promise.
        let udp = unsafe { frame.get_mut::<UdpHeader>(from.udp_at) }.ok_or(Verdict::Truncated)?;
        let delta = Delta::ZERO
            .replace_u64(from.source[0], self.source[0])
            .replace_u64(from.source[1], self.source[1])
            .replace_u64(from.destination[0], self.destination[0])
            .replace_u64(from.destination[1], self.destination[1])
            .replace_u16(word(udp.source.to_bytes()), word(self.source_port))
            .replace_u16(
                word(udp.destination.to_bytes()),
                word(self.destination_port),
            );
        udp.source = self.source_port.into();
        udp.destination = self.destination_port.into();
        if udp.checksum != NO_CHECKSUM {
            udp.checksum = delta.apply_udp(word(udp.checksum)).to_ne_bytes();
            return Ok(true);
        }
        if !self.is_v6 {
            return Ok(false);
        }
        // IPv6 demands one (RFC 8200, 8.1).
        let pseudo_header = pseudo_header(self.source, self.destination, from.udp_len);
        let sum = packet::sum(frame, from.udp_at, from.udp_len).combine(pseudo_header);
        // SAFETY: as above.
        let udp = unsafe { frame.get_mut::<UdpHeader>(from.udp_at) }.ok_or(Verdict::Truncated)?;
        udp.checksum = sum.finish_udp().to_ne_bytes();
        Ok(true)
    }

    /// Writes outer IP, UDP and GTP-U headers around an IP datagram of `inner_len` bytes, which come to
    /// `sum`; without checksum if there is no sum.
    ///
    /// # Safety
    ///
    /// As of [`Outbound::write`].
    #[inline(always)]
    unsafe fn write_tunnel(
        &self,
        frame: Frame<'_>,
        inner_len: usize,
        sum: Option<Delta>,
    ) -> Result<(), Verdict> {
        let tunnel = &self.tunnel;
        let ip_at = self.link.len();
        let udp_at = ip_at.wrapping_add(ip_header_len(tunnel.is_v6));
        let udp_len = inner_len.wrapping_add(UDP_LEN + GTPU_LEN);
        let outer = Ip {
            is_v6: tunnel.is_v6,
            source: tunnel.source,
            destination: tunnel.destination,
            traffic_class: self.traffic_class,
            hop_limit: OWN_HOP_LIMIT,
            payload_len: udp_len,
            label: new_label(tunnel.is_v6),
        };
        let port = U16::new(GTPU_PORT);
        let length = U16::new(udp_len as u16);
        let gtpu_length = U16::new(inner_len as u16);
        let checksum = match sum {
            None => NO_CHECKSUM,
            Some(sum) => {
                let port = word(port.to_bytes());
                sum.combine(outer.pseudo_header())
                    .add_u16(port)
                    .add_u16(port)
                    .add_u16(word(length.to_bytes()))
                    .add_u16(word([GTPU_FLAGS, GTPU_G_PDU]))
                    .add_u16(word(gtpu_length.to_bytes()))
                    .add_u32(tunnel.teid)
                    .finish_udp()
                    .to_ne_bytes()
            }
        };
        // SAFETY: the caller's promise.
        unsafe {
            outer.write(frame, ip_at)?;
            *frame.get_mut(udp_at).ok_or(Verdict::Truncated)? = UdpHeader {
                source: port,
                destination: port,
                length,
                checksum,
            };
            let gtpu_at = udp_at.wrapping_add(UDP_LEN);
            *frame.get_mut(gtpu_at).ok_or(Verdict::Truncated)? = GtpuHeader {
                flags: GTPU_FLAGS,
                message_type: GTPU_G_PDU,
                length: gtpu_length,
                teid: tunnel.teid.to_ne_bytes(),
            };
        }
        Ok(())
    }

    /// # Safety
    ///
    /// As of [`Outbound::write`].
    #[inline(always)]
    unsafe fn write_link(&self, frame: Frame<'_>, link_len: usize) -> Result<(), Verdict> {
        let is_v6 = if self.has_tunnel {
            self.tunnel.is_v6
        } else {
            self.is_v6
        };
        let ethertype = if is_v6 {
            ETHERTYPE_IPV6
        } else {
            ETHERTYPE_IPV4
        };
        // SAFETY: the caller's promise.
        unsafe {
            let macs = frame.get_mut::<[[u8; 4]; 3]>(0).ok_or(Verdict::Truncated)?;
            *macs = self.link.macs.map(u32::to_ne_bytes);
            // A tag that isn't there is written too, and then written over.
            let tags = frame
                .get_mut::<[[u8; TAG_LEN]; MAX_TAGS]>(TAGS_AT[0])
                .ok_or(Verdict::Truncated)?;
            if self.link.tag_count > 0 {
                tags[0] = self.link.tags[0].to_ne_bytes();
            }
            if self.link.tag_count > 1 {
                tags[1] = self.link.tags[1].to_ne_bytes();
            }
            let ethertype_at = link_len.wrapping_sub(2);
            *frame.get_mut(ethertype_at).ok_or(Verdict::Truncated)? = U16::new(ethertype);
        }
        Ok(())
    }
}

/// An IP header without options or extension headers, in front of UDP.
struct Ip {
    is_v6: bool,
    source: Address,
    destination: Address,
    traffic_class: u8,
    hop_limit: u8,
    payload_len: usize,
    /// As in [`Datagram`].
    label: u32,
}

impl Ip {
    /// Length of header and payload in bytes.
    #[inline(always)]
    fn len(&self) -> usize {
        ip_header_len(self.is_v6).wrapping_add(self.payload_len)
    }

    /// Writes the header, and returns the sum of its words.
    ///
    /// # Safety
    ///
    /// No reference to these bytes may be used any more.
    #[inline(always)]
    unsafe fn write(&self, frame: Frame<'_>, at: usize) -> Result<Delta, Verdict> {
        if self.is_v6 {
            let first = IPV6_VERSION | u32::from(self.traffic_class) << 20 | self.label;
            let header = Ipv6Header {
                version_class_flow: first.to_be_bytes(),
                payload_length: U16::new(self.payload_len as u16),
                next_header: PROTOCOL_UDP,
                hop_limit: self.hop_limit,
                source: bytemuck::cast(self.source),
                destination: bytemuck::cast(self.destination),
            };
            let sum = addresses(self.source, self.destination)
                .add_u32(u32::from_ne_bytes(header.version_class_flow))
                .add_u16(word(header.payload_length.to_bytes()))
                .add_u16(word([header.next_header, header.hop_limit]));
            // SAFETY: the caller's promise.
            *unsafe { frame.get_mut(at) }.ok_or(Verdict::Truncated)? = header;
            return Ok(sum);
        }
        let [id_0, id_1, fragment_0, fragment_1] = self.label.to_ne_bytes();
        let mut header = Ipv4Header {
            version_ihl: IPV4_WITHOUT_OPTIONS,
            tos: self.traffic_class,
            total_length: U16::new(self.len() as u16),
            identification: [id_0, id_1].into(),
            fragment: [fragment_0, fragment_1].into(),
            ttl: self.hop_limit,
            protocol: PROTOCOL_UDP,
            checksum: NO_CHECKSUM,
            source: narrow(self.source).to_ne_bytes(),
            destination: narrow(self.destination).to_ne_bytes(),
        };
        let sum = addresses(self.source, self.destination)
            .add_u16(word([header.version_ihl, header.tos]))
            .add_u16(word(header.total_length.to_bytes()))
            .add_u32(self.label)
            .add_u16(word([header.ttl, header.protocol]));
        header.checksum = sum.finish().to_ne_bytes();
        // SAFETY: the caller's promise.
        *unsafe { frame.get_mut(at) }.ok_or(Verdict::Truncated)? = header;
        // The checksum makes them come to nothing.
        Ok(Delta::ZERO)
    }

    /// The sum of the pseudo-header of UDP.
    #[inline(always)]
    fn pseudo_header(&self) -> Delta {
        pseudo_header(self.source, self.destination, self.payload_len)
    }
}

#[inline(always)]
const fn ip_header_len(is_v6: bool) -> usize {
    if is_v6 { IPV6_LEN } else { IPV4_LEN }
}

/// No flow label; identification 0 and no fragments (RFC 6864).
#[inline(always)]
fn new_label(is_v6: bool) -> u32 {
    if is_v6 {
        return 0;
    }
    let [high, low] = IPV4_DONT_FRAGMENT.to_be_bytes();
    u32::from_ne_bytes([0, 0, high, low])
}

/// The sum of the pseudo-header of a UDP datagram (RFC 768; RFC 8200, 8.1, which comes to the same).
#[inline(always)]
fn pseudo_header(source: Address, destination: Address, udp_len: usize) -> Delta {
    addresses(source, destination)
        .add_u16(word([0, PROTOCOL_UDP]))
        .add_u16(word((udp_len as u16).to_be_bytes()))
}

#[inline(always)]
const fn addresses(source: Address, destination: Address) -> Delta {
    Delta::ZERO
        .add_u64(source[0])
        .add_u64(source[1])
        .add_u64(destination[0])
        .add_u64(destination[1])
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
