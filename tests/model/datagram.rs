//! Frames taken apart, and put together: Ethernet, VLAN tags, IPv4, IPv6, UDP and GTP-U.

use push_common::verdict::Verdict;
use std::net::{IpAddr, SocketAddr};

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86DD;
const UDP: u8 = 17;
const GTPU_PORT: u16 = 2152;
/// Of datagrams that the gateway makes itself.
pub(crate) const OWN_HOP_LIMIT: u8 = 64;
const DONT_FRAGMENT: u16 = 0x4000;
const MOST_EXTENSIONS: usize = 4;
/// Bytes of them together that are.
const LONGEST_EXTENSIONS: usize = 256;

/// What is in front of an IP header, but for the type of what follows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LinkHeader {
    pub(crate) destination: [u8; 6],
    pub(crate) source: [u8; 6],
    /// As on the wire, the outer one first.
    pub(crate) tags: Vec<[u8; 4]>,
}

/// A frame with a UDP header in it. Its lengths needn't be right.
pub(crate) struct Datagram<'a> {
    pub(crate) link: LinkHeader,
    pub(crate) source: SocketAddr,
    pub(crate) destination: SocketAddr,
    /// DSCP and ECN.
    pub(crate) class: u8,
    pub(crate) hop_limit: u8,
    /// 0 of IPv4.
    pub(crate) flow_label: u32,
    /// What only IPv4 has.
    pub(crate) ipv4: Option<Ipv4Fields>,
    /// What IP leaves for UDP, in bytes. `None` if it doesn't even leave room for its own header.
    ip_payload_length: Option<usize>,
    /// From the UDP header to the end of the frame.
    udp: &'a [u8],
}

#[derive(Clone, Copy)]
pub(crate) struct Ipv4Fields {
    pub(crate) identification: u16,
    /// Flags and offset.
    pub(crate) fragment: u16,
    is_checksum_right: bool,
}

impl<'a> Datagram<'a> {
    /// Takes a frame apart, up to the UDP header.
    pub(crate) fn of(frame: &'a [u8]) -> Result<Self, Verdict> {
        let ethernet = frame.get(..14).ok_or(Verdict::Truncated)?;
        let mut link = LinkHeader {
            destination: ethernet[..6].try_into().unwrap(),
            source: ethernet[6..12].try_into().unwrap(),
            tags: Vec::new(),
        };
        let mut ethertype = word(&ethernet[12..]);
        let mut rest = &frame[14..];
        while is_tag(ethertype) && link.tags.len() < 2 {
            let [c0, c1, e0, e1, after @ ..] = rest else {
                return Err(Verdict::Truncated);
            };
            let [t0, t1] = ethertype.to_be_bytes();
            link.tags.push([t0, t1, *c0, *c1]);
            ethertype = u16::from_be_bytes([*e0, *e1]);
            rest = after;
        }
        match ethertype {
            ETHERTYPE_IPV4 => Self::of_ipv4(link, rest),
            ETHERTYPE_IPV6 => Self::of_ipv6(link, rest),
            _other => Err(Verdict::NotIp),
        }
    }

    /// RFC 791, 3.1.
    fn of_ipv4(link: LinkHeader, bytes: &'a [u8]) -> Result<Self, Verdict> {
        let header = bytes.get(..20).ok_or(Verdict::Truncated)?;
        if header[0] != 0x45 {
            return Err(Verdict::UnusualIpHeader);
        }
        let fragment = word(&header[6..]);
        let (more_fragments, offset) = (fragment & 0x2000 != 0, fragment & 0x1FFF);
        if more_fragments || offset != 0 {
            return Err(Verdict::Fragment);
        }
        if header[9] != UDP {
            return Err(Verdict::NotUdp);
        }
        let source: [u8; 4] = header[12..16].try_into().unwrap();
        let destination: [u8; 4] = header[16..20].try_into().unwrap();
        let udp = &bytes[20..];
        let (from, to) = ports(udp)?;
        Ok(Self {
            link,
            source: SocketAddr::new(source.into(), from),
            destination: SocketAddr::new(destination.into(), to),
            class: header[1],
            hop_limit: header[8],
            flow_label: 0,
            ipv4: Some(Ipv4Fields {
                identification: word(&header[4..]),
                fragment,
                is_checksum_right: checksum(header) == 0,
            }),
            ip_payload_length: usize::from(word(&header[2..])).checked_sub(20),
            udp,
        })
    }

    /// RFC 8200, 3 and 4.
    fn of_ipv6(link: LinkHeader, bytes: &'a [u8]) -> Result<Self, Verdict> {
        let header = bytes.get(..40).ok_or(Verdict::Truncated)?;
        if header[0] >> 4 != 6 {
            return Err(Verdict::UnusualIpHeader);
        }
        let (udp, ip_payload_length) =
            after_extensions(header[6], &bytes[40..], usize::from(word(&header[4..])))?;
        let source: [u8; 16] = header[8..24].try_into().unwrap();
        let destination: [u8; 16] = header[24..40].try_into().unwrap();
        let (from, to) = ports(udp)?;
        let first = u32::from_be_bytes(header[..4].try_into().unwrap());
        Ok(Self {
            link,
            source: SocketAddr::new(source.into(), from),
            destination: SocketAddr::new(destination.into(), to),
            class: (first >> 20) as u8,
            hop_limit: header[7],
            flow_label: first & 0xF_FFFF,
            ipv4: None,
            ip_payload_length: Some(ip_payload_length),
            udp,
        })
    }

    /// Whether the frame has all that the IP header claims.
    pub(crate) fn check_ip_length(&self) -> Result<(), Verdict> {
        if self
            .ip_payload_length
            .is_some_and(|length| length > self.udp.len())
        {
            return Err(Verdict::IpLength);
        }
        Ok(())
    }

    pub(crate) fn check_ip_checksum(&self) -> Result<(), Verdict> {
        if self.ipv4.is_some_and(|ipv4| !ipv4.is_checksum_right) {
            return Err(Verdict::IpChecksum);
        }
        Ok(())
    }

    /// Whether UDP and IP agree, about at least a header.
    pub(crate) fn check_udp_length(&self) -> Result<(), Verdict> {
        if self.udp_length() < 8 || self.ip_payload_length != Some(self.udp_length()) {
            return Err(Verdict::UdpLength);
        }
        Ok(())
    }

    pub(crate) fn check_udp_checksum_is_there(&self) -> Result<(), Verdict> {
        if self.ipv4.is_none() && self.udp_checksum() == 0 {
            return Err(Verdict::NoUdpChecksum);
        }
        Ok(())
    }

    /// Identification, and flags and offset, for it to go on with by IPv4.
    pub(crate) fn ipv4_fields(&self) -> (u16, u16) {
        match self.ipv4 {
            Some(ipv4) => (ipv4.identification, ipv4.fragment),
            None => (0, DONT_FRAGMENT),
        }
    }

    /// What the UDP header says about its length and that of what it carries.
    pub(crate) fn udp_length(&self) -> usize {
        usize::from(word(&self.udp[4..]))
    }

    fn udp_checksum(&self) -> u16 {
        word(&self.udp[6..])
    }

    /// Only when all lengths have been checked.
    pub(crate) fn udp_payload(&self) -> &'a [u8] {
        &self.udp[8..self.udp_length()]
    }

    /// What is behind the datagram. Only when all lengths have been checked.
    pub(crate) fn padding(&self) -> &'a [u8] {
        &self.udp[self.udp_length()..]
    }

    /// How far the UDP checksum is off the right one, in ones' complement.
    fn udp_checksum_error(&self) -> u32 {
        let right = udp_checksum(self.source, self.destination, self.udp_payload());
        difference(self.udp_checksum(), right)
    }
}

/// What is behind the extension headers, and how much of that is the IPv6 header's.
fn after_extensions(
    mut next_header: u8,
    mut rest: &[u8],
    mut length: usize,
) -> Result<(&[u8], usize), Verdict> {
    const HOP_BY_HOP: u8 = 0;
    const ROUTING: u8 = 43;
    const FRAGMENT: u8 = 44;
    const DESTINATION_OPTIONS: u8 = 60;
    let (mut seen, mut walked) = (0, 0);
    loop {
        match next_header {
            UDP => return Ok((rest, length)),
            FRAGMENT => return Err(Verdict::Fragment),
            HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS => {}
            _other => return Err(Verdict::NotUdp),
        }
        if seen == MOST_EXTENSIONS {
            return Err(Verdict::UnusualIpHeader);
        }
        seen += 1;
        let start = rest.get(..8).ok_or(Verdict::Truncated)?;
        let segments_left = start[3];
        if next_header == ROUTING && segments_left != 0 {
            return Err(Verdict::UnusualIpHeader); // It isn't where it is going to.
        }
        let own_length = (usize::from(start[1]) + 1) * 8;
        walked += own_length;
        length = length
            .checked_sub(own_length)
            .filter(|_| walked <= LONGEST_EXTENSIONS)
            .ok_or(Verdict::UnusualIpHeader)?;
        next_header = start[0];
        // What the frame hasn't got shows when it is read.
        rest = rest.get(own_length..).unwrap_or_default();
    }
}

/// Source and destination port of a UDP header that is there as a whole.
fn ports(udp: &[u8]) -> Result<(u16, u16), Verdict> {
    let header = udp.get(..8).ok_or(Verdict::Truncated)?;
    Ok((word(header), word(&header[2..])))
}

fn is_tag(ethertype: u16) -> bool {
    ethertype == 0x8100 || ethertype == 0x88A8
}

fn word(bytes: &[u8]) -> u16 {
    u16::from_be_bytes([bytes[0], bytes[1]])
}

/// All that is in the headers of a datagram to be made, but for what follows from its payload.
pub(crate) struct Way {
    pub(crate) source: SocketAddr,
    /// Of the same family.
    pub(crate) destination: SocketAddr,
    pub(crate) class: u8,
    pub(crate) hop_limit: u8,
    /// For IPv4 alone.
    pub(crate) identification: u16,
    /// Flags and offset, for IPv4 alone.
    pub(crate) fragment: u16,
    /// For IPv6 alone.
    pub(crate) flow_label: u32,
}

impl Way {
    /// The same UDP payload, sent this way. If its checksum was wrong, it is so by the same amount.
    pub(crate) fn rewrite(&self, old: &Datagram) -> Rewritten {
        let payload = old.udp_payload();
        let right = udp_checksum(self.source, self.destination, payload);
        let (checksum, checksum_error) = match (old.udp_checksum(), self.source.is_ipv6()) {
            (0, false) => (0, None),
            (0, true) => (right, Some(0)),
            (_there, _any) => {
                let error = old.udp_checksum_error();
                (moved(right, error), Some(error))
            }
        };
        let udp = udp_datagram(self.source, self.destination, checksum, payload);
        Rewritten {
            bytes: self.ip_datagram(&udp),
            is_v6: self.source.is_ipv6(),
            class: self.class,
            checksum_error,
        }
    }

    fn ip_datagram(&self, udp: &[u8]) -> Vec<u8> {
        match (self.source.ip(), self.destination.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let mut header = vec![0x45, self.class];
                header.extend((20 + udp.len() as u16).to_be_bytes());
                header.extend(self.identification.to_be_bytes());
                header.extend(self.fragment.to_be_bytes());
                header.extend([self.hop_limit, UDP, 0, 0]);
                header.extend(from.octets());
                header.extend(to.octets());
                let checksum = checksum(&header);
                header[10..12].copy_from_slice(&checksum.to_be_bytes());
                [&header, udp].concat()
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                let first = 6 << 28 | u32::from(self.class) << 20 | self.flow_label;
                let mut header = first.to_be_bytes().to_vec();
                header.extend((udp.len() as u16).to_be_bytes());
                header.extend([UDP, self.hop_limit]);
                header.extend(from.octets());
                header.extend(to.octets());
                [&header, udp].concat()
            }
            mixed => panic!("{mixed:?}"),
        }
    }
}

/// An IP datagram on its way.
pub(crate) struct Rewritten {
    pub(crate) bytes: Vec<u8>,
    is_v6: bool,
    class: u8,
    /// How far the UDP checksum is off the right one; `None` if there is no checksum.
    checksum_error: Option<u32>,
}

impl Rewritten {
    pub(crate) fn frame(&self, link: &LinkHeader, padding: &[u8]) -> Vec<u8> {
        let mut frame = [link.destination, link.source].concat();
        frame.extend(link.tags.iter().flatten());
        let ethertype = if self.is_v6 {
            ETHERTYPE_IPV6
        } else {
            ETHERTYPE_IPV4
        };
        frame.extend(ethertype.to_be_bytes());
        frame.extend(&self.bytes);
        frame.extend(padding);
        frame
    }

    /// TS 29.281, 5.1, without optional fields. What is wrong with the checksum inside is wrong with
    /// the one outside too, as that is derived from it; if there is none, none is outside unless
    /// IPv6 demands it.
    pub(crate) fn in_gtpu(&self, from: IpAddr, to: IpAddr, teid: [u8; 4]) -> Self {
        let mut gtpu = vec![0x30, 255];
        gtpu.extend((self.bytes.len() as u16).to_be_bytes());
        gtpu.extend(teid);
        gtpu.extend(&self.bytes);
        let way = Way {
            source: SocketAddr::new(from, GTPU_PORT),
            destination: SocketAddr::new(to, GTPU_PORT),
            class: self.class,
            hop_limit: OWN_HOP_LIMIT,
            identification: 0,
            fragment: DONT_FRAGMENT,
            flow_label: 0,
        };
        let right = udp_checksum(way.source, way.destination, &gtpu);
        let checksum = match self.checksum_error {
            Some(error) => moved(right, error),
            None if from.is_ipv6() => right,
            None => 0,
        };
        let udp = udp_datagram(way.source, way.destination, checksum, &gtpu);
        Self {
            bytes: way.ip_datagram(&udp),
            is_v6: from.is_ipv6(),
            class: self.class,
            checksum_error: self.checksum_error,
        }
    }
}

fn udp_datagram(from: SocketAddr, to: SocketAddr, checksum: u16, payload: &[u8]) -> Vec<u8> {
    let words = [from.port(), to.port(), 8 + payload.len() as u16, checksum];
    let mut udp = words.map(u16::to_be_bytes).concat();
    udp.extend(payload);
    udp
}

/// RFC 1071: the ones' complement of the ones' complement sum of all words, an odd byte being the
/// high half of the last one. Of bytes that have their right checksum in them, 0.
pub(crate) fn checksum(bytes: &[u8]) -> u16 {
    let mut sum = 0_u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
        if sum > 0xFFFF {
            sum -= 0xFFFF; // The carry comes in again at the low end.
        }
    }
    !(sum as u16)
}

/// RFC 768 and RFC 8200, 8.1: over a pseudo-header, the header without checksum, and the payload.
/// Never 0, which would be none.
pub(crate) fn udp_checksum(from: SocketAddr, to: SocketAddr, payload: &[u8]) -> u16 {
    let udp = udp_datagram(from, to, 0, payload);
    let mut covered = Vec::new();
    match (from.ip(), to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            covered.extend(from.octets());
            covered.extend(to.octets());
            covered.extend([0, UDP]);
            covered.extend((udp.len() as u16).to_be_bytes());
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            covered.extend(from.octets());
            covered.extend(to.octets());
            covered.extend((udp.len() as u32).to_be_bytes());
            covered.extend([0, 0, 0, UDP]);
        }
        mixed => panic!("{mixed:?}"),
    }
    covered.extend(udp);
    match checksum(&covered) {
        0 => 0xFFFF,
        there => there,
    }
}

/// `a - b` in ones' complement: below 65,535, as 0 and 65,535 are the same number.
pub(crate) fn difference(a: u16, b: u16) -> u32 {
    (u32::from(a) + 0xFFFF - u32::from(b)) % 0xFFFF
}

/// A UDP checksum that is off by `error` from this one; never 0.
pub(crate) fn moved(checksum: u16, error: u32) -> u16 {
    match (u32::from(checksum) + error) % 0xFFFF {
        0 => 0xFFFF,
        there => there as u16,
    }
}
