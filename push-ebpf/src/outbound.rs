//! UDP datagrams on their way out: put into any framing.

use crate::datagram::{
    Address, Datagram, IPV4_LEN, IPV4_WITHOUT_OPTIONS, IPV6_LEN, Link, MAX_TAGS, NO_CHECKSUM,
    TAG_LEN, TAGS_AT, UDP_LEN, narrow, word,
};
use crate::packet::{self, Frame};
use push_common::checksum::Delta;
use push_common::verdict::Verdict;
use push_common::wire::{
    ETHERTYPE_IPV4, ETHERTYPE_IPV6, GTPU_PORT, GtpuHeader, Ipv4Header, Ipv6Header, PROTOCOL_UDP,
    UdpHeader,
};
use zerocopy::byteorder::network_endian::U16;

const GTPU_LEN: usize = size_of::<GtpuHeader>();
const IPV4_DONT_FRAGMENT: u16 = 0x4000;
const IPV6_VERSION: u32 = 6 << 28;

/// Of datagrams that begin here: tunnels, and acknowledgements on their way to a server.
pub(crate) const OWN_HOP_LIMIT: u8 = 64;

/// Version 1, protocol type GTP, none of the optional fields.
const GTPU_FLAGS: u8 = 0x30;
/// A user's packet.
const GTPU_G_PDU: u8 = 255;

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
