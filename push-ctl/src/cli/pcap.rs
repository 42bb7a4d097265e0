//! Packets with their verdicts, as a file of pcapng: `tshark` and Wireshark show the verdict as the comment.

use pcap_file::pcapng::PcapNgWriter;
use pcap_file::pcapng::blocks::enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption};
use pcap_file::pcapng::blocks::interface_description::{
    InterfaceDescriptionBlock, InterfaceDescriptionOption,
};
use pcap_file::{DataLink, PcapResult};
use push_common::watch::SNAP_BYTES;
use std::borrow::Cow;
use std::fs::File;
use std::time::Duration;

/// Times are in nanoseconds: 10 to the power of minus this.
const NANOSECONDS: u8 = 9;

/// A file that is being written. It is complete after each packet.
pub(super) struct Pcap {
    writer: PcapNgWriter<File>,
    nics: Vec<String>,
}

/// A packet.
pub(super) struct Packet<'a> {
    /// Since the epoch.
    pub(super) at: Duration,
    /// The NIC that it came in by.
    pub(super) nic: &'a str,
    /// Length of its frame in bytes.
    pub(super) length: u32,
    /// The beginning of its frame.
    pub(super) frame: &'a [u8],
    /// What there is to say of it.
    pub(super) comment: &'a str,
}

impl Pcap {
    pub(super) fn create(file: File) -> PcapResult<Self> {
        Ok(Self {
            writer: PcapNgWriter::new(file)?,
            nics: Vec::new(),
        })
    }

    pub(super) fn add(&mut self, packet: &Packet<'_>) -> PcapResult<()> {
        let interface = match self.nics.iter().position(|nic| nic == packet.nic) {
            Some(interface) => interface,
            None => self.add_interface(packet.nic)?,
        };
        self.writer.write_pcapng_block(EnhancedPacketBlock {
            interface_id: u32::try_from(interface).unwrap_or(u32::MAX),
            timestamp: packet.at,
            original_len: packet.length,
            data: Cow::Borrowed(packet.frame),
            options: vec![EnhancedPacketOption::Comment(Cow::Borrowed(packet.comment))],
        })?;
        Ok(())
    }

    fn add_interface(&mut self, nic: &str) -> PcapResult<usize> {
        self.writer.write_pcapng_block(InterfaceDescriptionBlock {
            linktype: DataLink::ETHERNET,
            snaplen: SNAP_BYTES as u32,
            options: vec![
                InterfaceDescriptionOption::IfName(Cow::Borrowed(nic)),
                InterfaceDescriptionOption::IfTsResol(NANOSECONDS),
            ],
        })?;
        self.nics.push(nic.to_owned());
        Ok(self.nics.len() - 1)
    }
}
