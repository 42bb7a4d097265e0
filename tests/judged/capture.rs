//! Captures: written frame by frame or by tcpdump, and read by tshark.

use crate::story::wait_until;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use xtask::child;
use xtask::lab::{Lab, Party};

/// What tshark says of a frame; of layers that are there more than once, the outermost comes first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    /// The dissectors that took part in it, such as `eth:ethertype:ip:udp:data`.
    pub(super) protocols: String,
    /// Identifiers of VLANs: those of providers' tags, then those of customers'.
    pub(super) vlans: Vec<u16>,
    pub(super) teids: Vec<u32>,
    /// Of IPv4 headers.
    pub(super) ip_checksums: Vec<Checksum>,
    pub(super) udp_checksums: Vec<Checksum>,
    /// What is in the innermost datagram.
    pub(super) payload: Vec<u8>,
    /// What is wrong with it, or worth a warning.
    pub(super) complaints: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Checksum {
    Bad,
    Good,
    /// tshark couldn't tell.
    Unverified,
    /// The sender made none.
    Absent,
}

/// Fields that are asked for; each is a column of the answer.
const FIELDS: [&str; 9] = [
    "frame.protocols",
    "ieee8021ad.id",
    "vlan.id",
    "gtp.teid",
    "ip.checksum.status",
    "udp.checksum.status",
    "data.data",
    "_ws.malformed",
    "_ws.expert.severity",
];

/// What tshark calls a note; warnings and errors are more.
const NOTE: u32 = 0x0040_0000;

/// Ports of datagrams in which nothing is to be looked for: some are known for other protocols.
const OPAQUE_PORTS: [u16; 4] = [
    crate::gateway::TRIGGER_PORT,
    crate::story::INTERNAL_PORT,
    crate::story::DEVICE_PORT,
    crate::datagram::SERVER_PORT,
];

/// Has tshark dissect all frames of a capture.
pub(super) fn dissect(capture: &Path) -> Vec<Seen> {
    let mut tshark = child::command("tshark");
    tshark.arg("-r").arg(capture);
    for checked in ["ip.check_checksum:TRUE", "udp.check_checksum:TRUE"] {
        tshark.args(["-o", checked]);
    }
    for port in OPAQUE_PORTS {
        tshark.args(["-d", &format!("udp.port=={port},data")]);
    }
    tshark.args(["-T", "fields", "-E", "occurrence=a", "-E", "aggregator=,"]);
    for field in FIELDS {
        tshark.args(["-e", field]);
    }
    let answer = child::output(&mut tshark).unwrap();
    answer.lines().map(seen).collect()
}

fn seen(line: &str) -> Seen {
    let columns: Vec<_> = line.split('\t').collect();
    let columns: [&str; FIELDS.len()] = columns.try_into().unwrap();
    let [
        protocols,
        providers,
        vlans,
        teids,
        ip,
        udp,
        mut data,
        malformed,
        severities,
    ] = columns.map(|column| column.split(',').filter(|value| !value.is_empty()));
    let checksum = |status: &str| match status {
        "0" => Checksum::Bad,
        "1" => Checksum::Good,
        "2" => Checksum::Unverified,
        "3" => Checksum::Absent,
        other => panic!("tshark says {other:?} of a checksum"),
    };
    let severe = severities
        .filter(|severity| severity.parse::<u32>().unwrap() > NOTE)
        .map(|severity| format!("expert severity {severity}"));
    Seen {
        protocols: protocols.collect(),
        vlans: providers
            .chain(vlans)
            .map(|id| id.parse().unwrap())
            .collect(),
        teids: teids
            .map(|teid| u32::from_str_radix(teid.trim_start_matches("0x"), 16).unwrap())
            .collect(),
        ip_checksums: ip.map(checksum).collect(),
        udp_checksums: udp.map(checksum).collect(),
        payload: data
            .next_back()
            .map(|digits| hex::decode(digits).unwrap())
            .unwrap_or_default(),
        complaints: malformed.map(str::to_owned).chain(severe).collect(),
    }
}

/// The file's header: magic for microseconds, version 2.4, no time zone, longest frame, Ethernet.
const FILE_HEADER: [u32; 6] = [0xA1B2_C3D4, 4 << 16 | 2, 0, 0, 0x4_0000, 1];
const FRAME_HEADER_LEN: usize = 16;

/// Writes `frames` to a capture (the format of libpcap, which tcpdump writes, too).
pub(super) fn write(capture: &Path, frames: &[Vec<u8>]) {
    let mut file: Vec<u8> = FILE_HEADER
        .iter()
        .flat_map(|word| word.to_le_bytes())
        .collect();
    for frame in frames {
        let length = frame.len() as u32;
        // At no time in particular; nothing of the frame is left out.
        for word in [0, 0, length, length] {
            file.extend(word.to_le_bytes());
        }
        file.extend(frame);
    }
    fs::write(capture, file).unwrap();
}

/// The whole frames in a capture, which may still be in the making.
fn frames(capture: &Path) -> Vec<Vec<u8>> {
    let file = fs::read(capture).unwrap_or_default();
    let mut rest = file.get(FILE_HEADER.len() * 4..).unwrap_or_default();
    let mut frames = Vec::new();
    while let Some((header, after)) = rest.split_at_checked(FRAME_HEADER_LEN) {
        let length = u32::from_le_bytes(header[8..12].try_into().unwrap()) as usize;
        let Some((frame, after)) = after.split_at_checked(length) else {
            break;
        };
        frames.push(frame.to_vec());
        rest = after;
    }
    frames
}

/// tcpdump at work; it doesn't outlive its test.
pub(crate) struct Witness {
    tcpdump: Child,
    capture: PathBuf,
}

impl Witness {
    /// Has the party's tcpdump write down what passes by `nic` and `filter`.
    pub(crate) fn start(lab: &Lab, party: Party, nic: &str, filter: &[&str]) -> Self {
        let capture = lab.folder().join(format!("{nic}.pcap"));
        let mut tcpdump = lab.exec_in(party, "tcpdump");
        tcpdump
            .args([
                "--immediate-mode",
                "-B",
                "4096",
                // Longer than any frame here; each gets so much of the buffer.
                "-s",
                "2048",
                "-U",
                "-n",
                "-i",
                nic,
                "-w",
            ])
            .arg(&capture)
            .args(filter)
            .stderr(Stdio::null());
        let witness = Self {
            tcpdump: tcpdump.spawn().unwrap(),
            capture,
        };
        // The file's header is written when the capture has begun.
        let written = || witness.capture.metadata().map_or(0, |file| file.len());
        wait_until("tcpdump captures", || written() >= 24);
        witness
    }

    /// Waits until there are `count` frames.
    pub(crate) fn wait_for(&self, count: usize) {
        wait_until("tcpdump has written all frames", || {
            frames(&self.capture).len() >= count
        });
    }

    /// Ends the capture once there are `count` frames, and gives the file, which the lab keeps.
    pub(crate) fn keep(mut self, count: usize) -> PathBuf {
        self.wait_for(count);
        self.end();
        self.capture.clone()
    }

    /// Waits until there are `count` frames, and gives them all, with what tshark says of them.
    pub(super) fn finish(mut self, count: usize) -> Vec<(Vec<u8>, Seen)> {
        self.wait_for(count);
        self.end();
        let frames = frames(&self.capture);
        let seen = dissect(&self.capture);
        assert_eq!(frames.len(), seen.len(), "frames that tshark saw");
        frames.into_iter().zip(seen).collect()
    }

    fn end(&mut self) {
        let _ended_already = self.tcpdump.kill();
        let _reaped = self.tcpdump.wait();
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.end();
    }
}
