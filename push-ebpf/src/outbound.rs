//! UDP datagrams on their way out: put into any framing.

use crate::datagram::{
    Address, Datagram, IPV4_LEN, IPV4_WITHOUT_OPTIONS, IPV6_LEN, Link, NO_CHECKSUM, TAGS_AT,
    UDP_LEN, narrow, word,
};
use crate::global::{result_of, word_of};
use crate::maps::{Notes, notes};
use crate::packet::{self, Frame};
use aya_ebpf::bindings::xdp_md;
use push_common::checksum::Delta;
use push_common::maps::NextHopRecord;
use push_common::verdict::Verdict;
use push_common::wire::{
    ETHERTYPE_IPV4, ETHERTYPE_IPV6, GTPU_PORT, GtpuHeader, Ipv4Header, Ipv6Header, PROTOCOL_UDP,
    UdpHeader,
};
use zerocopy::byteorder::network_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

const GTPU_LEN: usize = size_of::<GtpuHeader>();
const IPV4_DONT_FRAGMENT: u16 = 0x4000;
const IPV6_VERSION: u32 = 6 << 28;
const IPV6_TRAFFIC_CLASS: u32 = 0xFF << 20;

/// Of datagrams that begin here: tunnels, and acknowledgements on their way to a server.
pub(crate) const OWN_HOP_LIMIT: u8 = 64;

/// Version 1, protocol type GTP, none of the optional fields.
const GTPU_FLAGS: u8 = 0x30;
/// A user's packet.
const GTPU_G_PDU: u8 = 255;

/// A datagram as it goes out, around the payload of one that came in. No byte of it is left undefined, so that
/// it is copied in whole words.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Outbound {
    pub(crate) source: Address,
    pub(crate) destination: Address,
    pub(crate) link: Link,
    pub(crate) source_port: [u8; 2],
    pub(crate) destination_port: [u8; 2],
    pub(crate) hop_limit: u8,
    pub(crate) traffic_class: u8,
    /// 1 if so.
    pub(crate) is_v6: u8,
    /// Whether it goes through the [`Tunnel`] in the notes.
    pub(crate) has_tunnel: bool,
}

/// UDP, and what it is over.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Over<I: Unaligned> {
    ip: I,
    udp: UdpHeader,
}

/// The MAC addresses of a frame, in the fewest words.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Macs {
    first: [u8; 4],
    rest: [u8; 8],
}

/// The outside of a GTP-U tunnel.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Tunnel {
    source: Address,
    destination: Address,
    teid: u32,
    /// 1 if so.
    is_v6: u32,
}

const _: () = {
    assert!(size_of::<Outbound>() == 72);
    assert!(size_of::<Tunnel>() == 40);
};

impl Outbound {
    /// Makes it of the frame that `from` was found in.
    ///
    /// # Safety
    ///
    /// No reference to the frame may be used any more.
    #[inline(always)]
    pub(crate) unsafe fn write(self, frame: Frame<'_>, from: Datagram) -> Result<(), Verdict> {
        let has_same_framing =
            !self.has_tunnel && from.has_framing(self.link.tag_count, self.is_v6.into());
        // SAFETY: the caller's promise.
        unsafe {
            if has_same_framing {
                self.write_over(frame, from)
            } else {
                self.write_anew(frame, from)
            }
        }
    }

    /// The common case: every header stays where it is, and only what is different is changed.
    ///
    /// # Safety
    ///
    /// As of [`Outbound::write`].
    #[inline(always)]
    unsafe fn write_over(&self, frame: Frame<'_>, from: Datagram) -> Result<(), Verdict> {
        // SAFETY: the caller's promise; all of them are next to each other.
        unsafe {
            let udp_at = from.udp_at();
            // Looked for first, so that what the frame's ends are is asked once.
            let macs = frame.get_mut(0).ok_or(Verdict::Truncated)?;
            if self.is_v6 != 0 {
                let over = frame.get_mut::<Over<Ipv6Header>>(udp_at.wrapping_sub(IPV6_LEN));
                let Over { ip, udp } = over.ok_or(Verdict::Truncated)?;
                self.write_over_udp(udp, self.write_over_v6(ip));
            } else {
                let over = frame.get_mut::<Over<Ipv4Header>>(udp_at.wrapping_sub(IPV4_LEN));
                let Over { ip, udp } = over.ok_or(Verdict::Truncated)?;
                self.write_over_udp(udp, self.write_over_v4(ip));
            }
            self.write_macs(macs);
            self.write_tags(frame)
        }
    }

    /// Returns what that does to the checksum of UDP, as the other two do.
    #[inline(always)]
    fn write_over_v4(&self, ip: &mut Ipv4Header) -> Delta {
        // Nothing else is in the first word of an IPv4 address.
        let (source, destination) = (self.source[0], self.destination[0]);
        let addresses = Delta::ZERO
            .replace(u32::from_ne_bytes(ip.source).into(), source)
            .replace(u32::from_ne_bytes(ip.destination).into(), destination);
        let delta = addresses
            .replace_u16(word([0, ip.tos]), word([0, self.traffic_class]))
            .replace_u16(word([ip.ttl, 0]), word([self.hop_limit, 0]));
        ip.checksum = delta.apply(word(ip.checksum)).to_ne_bytes();
        ip.tos = self.traffic_class;
        ip.ttl = self.hop_limit;
        ip.source = narrow(self.source).to_ne_bytes();
        ip.destination = narrow(self.destination).to_ne_bytes();
        addresses
    }

    #[inline(always)]
    fn write_over_v6(&self, ip: &mut Ipv6Header) -> Delta {
        let (source, destination): (Address, Address) =
            (bytemuck::cast(ip.source), bytemuck::cast(ip.destination));
        let first = u32::from_be_bytes(ip.version_class_flow) & !IPV6_TRAFFIC_CLASS;
        let first = first | u32::from(self.traffic_class) << 20;
        ip.version_class_flow = first.to_be_bytes();
        ip.hop_limit = self.hop_limit;
        ip.source = bytemuck::cast(self.source);
        ip.destination = bytemuck::cast(self.destination);
        Delta::ZERO
            .replace_u64(source[0], self.source[0])
            .replace_u64(source[1], self.source[1])
            .replace_u64(destination[0], self.destination[0])
            .replace_u64(destination[1], self.destination[1])
    }

    /// Sets ports and checksum, given what new addresses do to it; one that isn't there stays away.
    #[inline(always)]
    fn write_over_udp(&self, udp: &mut UdpHeader, addresses: Delta) {
        let delta = addresses
            .replace_u16(word(udp.source.to_bytes()), word(self.source_port))
            .replace_u16(
                word(udp.destination.to_bytes()),
                word(self.destination_port),
            );
        udp.source = self.source_port.into();
        udp.destination = self.destination_port.into();
        if udp.checksum != NO_CHECKSUM {
            udp.checksum = delta.apply_udp(word(udp.checksum)).to_ne_bytes();
        }
    }

    #[inline(always)]
    fn write_macs(&self, macs: &mut Macs) {
        let Link { to, from, .. } = self.link;
        macs.first = (to as u32).to_ne_bytes();
        macs.rest = (to >> 32 & 0xFFFF | from << 16).to_ne_bytes();
    }

    /// # Safety
    ///
    /// As of [`Outbound::write`].
    #[inline(always)]
    unsafe fn write_tags(&self, frame: Frame<'_>) -> Result<(), Verdict> {
        // SAFETY: the caller's promise.
        unsafe {
            if self.link.tag_count > 0 {
                let tag = frame.get_mut(TAGS_AT[0]).ok_or(Verdict::Truncated)?;
                *tag = (self.link.tags as u32).to_ne_bytes();
            }
            if self.link.tag_count > 1 {
                let tag = frame.get_mut(TAGS_AT[1]).ok_or(Verdict::Truncated)?;
                *tag = ((self.link.tags >> 32) as u32).to_ne_bytes();
            }
        }
        Ok(())
    }

    /// Any framing from any other: writes the UDP header, moves the beginning of the frame so that the new
    /// headers end where the UDP header begins, and writes them.
    ///
    /// # Safety
    ///
    /// As of [`Outbound::write`].
    #[inline(always)]
    unsafe fn write_anew(self, frame: Frame<'_>, from: Datagram) -> Result<(), Verdict> {
        // SAFETY: the notes are this CPU's alone.
        unsafe {
            let notes = notes()?;
            (*notes).outbound = self;
            write_noted(notes, frame, from)
        }
    }
}

/// Makes the outbound datagram in the notes of the frame that `from` was found in.
///
/// # Safety
///
/// As of [`Outbound::write`]; `notes` must come from [`notes()`].
#[inline(always)]
pub(crate) unsafe fn write_noted(
    notes: *mut Notes,
    frame: Frame<'_>,
    from: Datagram,
) -> Result<(), Verdict> {
    let (context, from) = (frame.context(), from.to_word());
    let unsummed = result_of(push_write_udp(context, notes, from))?;
    result_of(push_write_rest(context, notes, from, unsummed)).map(|_| ())
}

// The notes are handed on, as that is less work than to ask for them.
global! {
    /// Writes all headers but that of UDP.
    fn push_write_rest(context: *mut xdp_md, notes: *mut Notes, from: u64, unsummed: u64) -> u64 {
        // SAFETY: the context is the kernel's own, and the notes are this CPU's alone; no reference to the frame
        // is used by who calls this.
        unsafe {
            let (frame, from) = (Frame::new(context), Datagram::from_word(from));
            word_of(here(notes).and_then(|notes| write_rest(notes, frame, from, unsummed)).map(|()| 0))
        }
    }

    /// Rewrites the UDP header; returns the sum of all from there on if that is needed, [`NO_SUM`] or
    /// [`HAS_CHECKSUM`]; and, from bit 32 on, how long all headers in front of it are to be.
    fn push_write_udp(context: *mut xdp_md, notes: *mut Notes, from: u64) -> u64 {
        // SAFETY: as above.
        unsafe {
            let (frame, from) = (Frame::new(context), Datagram::from_word(from));
            word_of(here(notes).and_then(|notes| {
                let (outbound, tunnel) = (&(*notes).outbound, Notes::tunnel(notes));
                let sum = outbound.write_udp(tunnel, frame, from)?;
                Ok(sum | outbound.headers_len(tunnel) << 32)
            }))
        }
    }

    /// [`packet::sum`].
    fn push_sum(context: *mut xdp_md, at: u64, len: u64) -> u64 {
        // SAFETY: as above.
        let frame = unsafe { Frame::new(context) };
        packet::sum(frame, at as usize, len as usize).folded().into()
    }

    /// Writes the IP header in the notes so that it ends at `end`; returns the sum of its words, and where it
    /// begins.
    fn push_write_ip(context: *mut xdp_md, notes: *mut Notes, end: u64) -> u64 {
        // SAFETY: as above.
        unsafe {
            let frame = Frame::new(context);
            word_of(here(notes).and_then(|notes| (*notes).ip.write(frame, end as usize)))
        }
    }

    /// [`Tunnel::write`] in front of an IP datagram that begins at `at`.
    fn push_write_tunnel(context: *mut xdp_md, notes: *mut Notes, at: u64, inner_len: u64, sum: u64) -> u64 {
        // SAFETY: as above.
        unsafe {
            let frame = Frame::new(context);
            let sum = (sum & NO_SUM == 0).then(|| Delta::ZERO.add_u16(sum as u16));
            word_of(here(notes).and_then(|notes| {
                let tunnel = &(*notes).tunnel;
                let traffic_class = (*notes).outbound.traffic_class;
                let (outer, end) = tunnel.write(frame, at as usize, inner_len as usize, sum, traffic_class)?;
                (*notes).ip = outer;
                Ok(end)
            }))
        }
    }
}

/// Notes that were handed on, of which the verifier thinks that they could be null.
#[inline(always)]
fn here(notes: *mut Notes) -> Result<*mut Notes, Verdict> {
    if notes.is_null() {
        return Err(Verdict::MissingConfiguration);
    }
    Ok(notes)
}

/// In place of a sum: there is none.
const NO_SUM: u64 = 1 << 16;
/// In place of a sum: there is a checksum.
const HAS_CHECKSUM: u64 = 1 << 17;

/// # Safety
///
/// As of [`write_noted`].
#[inline(always)]
unsafe fn write_rest(
    notes: *mut Notes,
    frame: Frame<'_>,
    from: Datagram,
    unsummed: u64,
) -> Result<(), Verdict> {
    // SAFETY: the caller's promise; nobody changes these two.
    let (outbound, tunnel) = unsafe { (&(*notes).outbound, Notes::tunnel(notes)) };
    let label = if from.is_of_version(outbound.is_v6.into()) {
        from.label(frame)?
    } else {
        new_label(outbound.is_v6 != 0)
    };
    let context = frame.context();
    let (unsummed, udp_at) = (unsummed & 0xFFFF_FFFF, unsummed >> 32);
    let growth = (udp_at as i32).wrapping_sub(from.udp_at() as i32);
    if growth != 0 {
        // SAFETY: the caller's promise; each reference below ends before the next one begins.
        unsafe { frame.grow(growth) }.ok_or(Verdict::NoHeadroom)?;
    }
    let inner = Ip {
        source: outbound.source,
        destination: outbound.destination,
        payload_len: from.udp_len() as u64,
        label,
        is_v6: outbound.is_v6,
        traffic_class: outbound.traffic_class,
        hop_limit: outbound.hop_limit,
        reserved: 0,
    };
    let pseudo_header = inner.pseudo_header();
    // SAFETY: the caller's promise.
    unsafe { (*notes).ip = inner };
    let written = result_of(push_write_ip(context, notes, udp_at))?;
    let (at, sum) = (written >> 16, Delta::ZERO.add_u16(written as u16));
    if tunnel.is_some() {
        // The checksum of the datagram inside makes it and its pseudo-header come to nothing.
        let sum = match unsummed {
            HAS_CHECKSUM => sum.subtract(pseudo_header).folded().into(),
            NO_SUM => NO_SUM,
            unsummed => sum.add_u16(unsummed as u16).folded().into(),
        };
        let inner_len = udp_at.wrapping_sub(at).wrapping_add(from.udp_len() as u64);
        let at = result_of(push_write_tunnel(context, notes, at, inner_len, sum))?;
        result_of(push_write_ip(context, notes, at))?;
    }
    let is_v6 = tunnel.map_or(outbound.is_v6 != 0, Tunnel::is_v6);
    let ethertype = if is_v6 {
        ETHERTYPE_IPV6
    } else {
        ETHERTYPE_IPV4
    };
    // SAFETY: as above.
    unsafe {
        outbound.write_macs(frame.get_mut(0).ok_or(Verdict::Truncated)?);
        outbound.write_tags(frame)?;
        let ethertype_at = outbound.link.len().wrapping_sub(2);
        *frame.get_mut(ethertype_at).ok_or(Verdict::Truncated)? = U16::new(ethertype);
    }
    Ok(())
}

impl Outbound {
    /// Bytes of all headers in front of UDP.
    #[inline(always)]
    fn headers_len(&self, tunnel: Option<&Tunnel>) -> u64 {
        let tunnel_len = tunnel.map_or(0, |tunnel| tunnel_len(tunnel.is_v6()));
        let len = self.link.len().wrapping_add(tunnel_len);
        len.wrapping_add(ip_header_len(self.is_v6.into())) as u64
    }

    /// # Safety
    ///
    /// As of [`Outbound::write`].
    #[inline(always)]
    unsafe fn write_udp(
        &self,
        tunnel: Option<&Tunnel>,
        frame: Frame<'_>,
        from: Datagram,
    ) -> Result<u64, Verdict> {
        let [source, destination] = from.addresses(frame)?;
        let addresses = Delta::ZERO
            .replace_u64(source[0], self.source[0])
            .replace_u64(source[1], self.source[1])
            .replace_u64(destination[0], self.destination[0])
            .replace_u64(destination[1], self.destination[1]);
        let (udp_at, udp_len) = (from.udp_at(), from.udp_len());
        // SAFETY: the caller's promise.
        let udp = unsafe { frame.get_mut::<UdpHeader>(udp_at) }.ok_or(Verdict::Truncated)?;
        self.write_over_udp(udp, addresses);
        if udp.checksum != NO_CHECKSUM {
            return Ok(HAS_CHECKSUM);
        }
        // IPv6 demands one (RFC 8200, 8.1).
        if self.is_v6 == 0 && !tunnel.is_some_and(Tunnel::is_v6) {
            return Ok(NO_SUM);
        }
        let sum = push_sum(frame.context(), udp_at as u64, udp_len as u64);
        let sum = Delta::ZERO.add_u16(sum as u16);
        if self.is_v6 == 0 {
            return Ok(sum.folded().into());
        }
        let sum = sum.combine(pseudo_header(self.source, self.destination, udp_len));
        // SAFETY: as above.
        let udp = unsafe { frame.get_mut::<UdpHeader>(udp_at) }.ok_or(Verdict::Truncated)?;
        udp.checksum = sum.finish_udp().to_ne_bytes();
        Ok(HAS_CHECKSUM)
    }
}

impl Tunnel {
    /// Notes that it leads to a device, whose end of it has this identifier.
    #[inline(always)]
    pub(crate) fn note(next_hop: &NextHopRecord, teid: u32) -> Result<(), Verdict> {
        // SAFETY: the notes are this CPU's alone.
        let tunnel = unsafe { &mut (*notes()?).tunnel };
        tunnel.source = bytemuck::cast(next_hop.outer_source);
        tunnel.destination = bytemuck::cast(next_hop.outer_destination);
        tunnel.teid = teid;
        tunnel.is_v6 = u32::from(next_hop.has(NextHopRecord::OUTER_IPV6));
        Ok(())
    }

    #[inline(always)]
    const fn is_v6(&self) -> bool {
        self.is_v6 != 0
    }

    /// Writes what is behind the outer IP header; returns that one, and where it ends.
    ///
    /// # Safety
    ///
    /// As of [`Outbound::write`].
    #[inline(always)]
    unsafe fn write(
        &self,
        frame: Frame<'_>,
        inner_at: usize,
        inner_len: usize,
        sum: Option<Delta>,
        traffic_class: u8,
    ) -> Result<(Ip, u64), Verdict> {
        let gtpu_at = inner_at.wrapping_sub(GTPU_LEN);
        let udp_at = gtpu_at.wrapping_sub(UDP_LEN);
        let udp_len = inner_len.wrapping_add(UDP_LEN + GTPU_LEN);
        let outer = Ip {
            source: self.source,
            destination: self.destination,
            payload_len: udp_len as u64,
            label: new_label(self.is_v6()),
            is_v6: u8::from(self.is_v6()),
            traffic_class,
            hop_limit: OWN_HOP_LIMIT,
            reserved: 0,
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
                    .add_u32(self.teid)
                    .finish_udp()
                    .to_ne_bytes()
            }
        };
        // SAFETY: the caller's promise.
        unsafe {
            *frame.get_mut(udp_at).ok_or(Verdict::Truncated)? = UdpHeader {
                source: port,
                destination: port,
                length,
                checksum,
            };
            *frame.get_mut(gtpu_at).ok_or(Verdict::Truncated)? = GtpuHeader {
                flags: GTPU_FLAGS,
                message_type: GTPU_G_PDU,
                length: gtpu_length,
                teid: self.teid.to_ne_bytes(),
            };
        }
        Ok((outer, udp_at as u64))
    }
}

/// An IP header without options or extension headers, in front of UDP.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Ip {
    source: Address,
    destination: Address,
    payload_len: u64,
    /// As [`Datagram::label`].
    label: u32,
    is_v6: u8,
    traffic_class: u8,
    hop_limit: u8,
    reserved: u8,
}

impl Ip {
    /// Writes the header so that it ends at `end`; returns the sum of its words, and, from bit 16 on, where it
    /// begins.
    ///
    /// # Safety
    ///
    /// No reference to these bytes may be used any more.
    #[inline(always)]
    unsafe fn write(&self, frame: Frame<'_>, end: usize) -> Result<u64, Verdict> {
        if self.is_v6 != 0 {
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
            let at = end.wrapping_sub(IPV6_LEN);
            // SAFETY: the caller's promise.
            *unsafe { frame.get_mut(at) }.ok_or(Verdict::Truncated)? = header;
            return Ok(u64::from(sum.folded()) | (at as u64) << 16);
        }
        let [id_0, id_1, fragment_0, fragment_1] = self.label.to_ne_bytes();
        let mut header = Ipv4Header {
            version_ihl: IPV4_WITHOUT_OPTIONS,
            tos: self.traffic_class,
            total_length: U16::new((self.payload_len as u16).wrapping_add(IPV4_LEN as u16)),
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
        let at = end.wrapping_sub(IPV4_LEN);
        // SAFETY: the caller's promise.
        *unsafe { frame.get_mut(at) }.ok_or(Verdict::Truncated)? = header;
        // The checksum makes them come to nothing.
        Ok((at as u64) << 16)
    }

    /// The sum of the pseudo-header of UDP.
    #[inline(always)]
    fn pseudo_header(&self) -> Delta {
        pseudo_header(self.source, self.destination, self.payload_len as usize)
    }
}

/// Length of the IP datagram that is to be sent, all headers but the link's included.
#[inline(always)]
pub(crate) const fn ip_len(is_v6: u64, next_hop: &NextHopRecord, udp_len: usize) -> usize {
    let tunnel_len = if next_hop.has(NextHopRecord::GTPU) {
        tunnel_len(next_hop.has(NextHopRecord::OUTER_IPV6))
    } else {
        0
    };
    tunnel_len
        .wrapping_add(ip_header_len(is_v6))
        .wrapping_add(udp_len)
}

#[inline(always)]
const fn tunnel_len(is_v6: bool) -> usize {
    ip_header_len(is_v6 as u64).wrapping_add(UDP_LEN + GTPU_LEN)
}

#[inline(always)]
const fn ip_header_len(is_v6: u64) -> usize {
    // Without a branch, after which the verifier would go on twice.
    (is_v6 as usize)
        .wrapping_mul(IPV6_LEN - IPV4_LEN)
        .wrapping_add(IPV4_LEN)
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
