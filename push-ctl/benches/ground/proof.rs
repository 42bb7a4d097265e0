//! Whether frames came out of a competitor as they are to, looked at by others than those that made them.

use super::plan::{FRAME_LEN, Kept};
use super::route::{Route, session};
use anyhow::{Context, Result, ensure};
use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use push_common::wire::{SessionId, TriggerHeader};
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

/// Frames of the sequence numbers from `first` on: each of them once, intact, signed, and at its device.
///
/// The UDP checksum may be what the kernel leaves to the NIC: the sum of the pseudo-header.
pub(crate) fn check_frames(route: Route, first: u64, frames: &[Kept]) -> Result<()> {
    let mut sequences = BTreeSet::new();
    for frame in frames {
        let frame = &frame[..FRAME_LEN];
        let sliced = SlicedPacket::from_ethernet(frame)?;
        let Some(NetSlice::Ipv4(ip)) = &sliced.net else {
            anyhow::bail!("not IPv4: {frame:02x?}");
        };
        let header = ip.header().to_header();
        ensure!(
            header.header_checksum == header.calc_header_checksum(),
            "the IP checksum is wrong: {frame:02x?}"
        );
        let Some(TransportSlice::Udp(udp)) = &sliced.transport else {
            anyhow::bail!("not UDP: {frame:02x?}");
        };
        let of_udp = udp.to_header();
        let is_left_to_nic = of_udp.checksum == pseudo_header_sum(frame);
        ensure!(
            of_udp.calc_checksum_ipv4(&header, udp.payload())? == of_udp.checksum || is_left_to_nic,
            "the UDP checksum is wrong: {frame:02x?}"
        );
        let (trigger, payload) = TriggerHeader::parse(udp.payload())?;
        let id = SessionId::from_u64(trigger.session_id.get());
        let session = session(route.shape, id.slot());
        trigger
            .verify(*session.image.key, payload)
            .with_context(|| format!("{frame:02x?}"))?;
        let to = SocketAddr::new(IpAddr::from(header.destination), of_udp.destination_port);
        let is_to_device = route.untouched || to == session.image.device;
        ensure!(
            id == session.image.id && is_to_device,
            "{id} arrived at {to}"
        );
        sequences.insert(trigger.sequence.get());
    }
    let all: BTreeSet<_> = (first..).take(frames.len()).collect();
    ensure!(sequences == all, "not each of the triggers arrived once");
    Ok(())
}

/// The sum of addresses, protocol and length, folded.
fn pseudo_header_sum(frame: &[u8]) -> u16 {
    let summed = [&frame[26..34], &[0, 17], &frame[38..40]].concat();
    let words = summed.as_chunks::<2>().0.iter();
    let mut sum: u32 = words.map(|&word| u32::from(u16::from_be_bytes(word))).sum();
    while sum > 0xFFFF {
        sum = (sum & 0xFFFF) + (sum >> 16);
    }
    sum as u16
}
