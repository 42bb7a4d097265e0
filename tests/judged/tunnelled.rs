//! A GTP-U peer: a socket of the device's kernel, which checks what is around the tunnel, and
//! etherparse, which looks inside.

use crate::story::{DEVICE_PORT, INTERNAL_PORT, LIMIT, PUSH_CTL, Story};
use crate::story::{checksum_errors, device, server, socket_address, verdicts, wait_until};
use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use push_common::wire::GTPU_PORT;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;
use xtask::lab::{Config, DEVICE, GATEWAY_INSIDE, Options};

/// Source, destination and payload of the datagram in an IP packet, all of whose checksums are right.
fn inside(packet: &[u8]) -> (SocketAddr, SocketAddr, Vec<u8>) {
    let sliced = SlicedPacket::from_ip(packet).unwrap();
    let Some(TransportSlice::Udp(udp)) = &sliced.transport else {
        panic!("no UDP in {sliced:?}");
    };
    let header = udp.to_header();
    let (from, to, checksum): (IpAddr, IpAddr, _) = match &sliced.net {
        Some(NetSlice::Ipv4(ip)) => {
            let ip = ip.header().to_header();
            assert_eq!(ip.header_checksum, ip.calc_header_checksum());
            assert_eq!(usize::from(ip.total_len), packet.len());
            let checksum = header.calc_checksum_ipv4(&ip, udp.payload());
            (ip.source.into(), ip.destination.into(), checksum.unwrap())
        }
        Some(NetSlice::Ipv6(ip)) => {
            let ip = ip.header().to_header();
            assert_eq!(usize::from(ip.payload_length) + 40, packet.len());
            let checksum = header.calc_checksum_ipv6(&ip, udp.payload());
            (ip.source.into(), ip.destination.into(), checksum.unwrap())
        }
        other => panic!("no IP but {other:?}"),
    };
    assert_eq!(header.checksum, checksum);
    assert_eq!(usize::from(header.length), 8 + udp.payload().len());
    (
        SocketAddr::new(from, header.source_port),
        SocketAddr::new(to, header.destination_port),
        udp.payload().to_vec(),
    )
}

#[test]
fn a_gtp_peer_gets_triggers_for_devices_behind_it() {
    let options = Options::new("push-gtpu", Path::new(PUSH_CTL));
    let story = Story::with(&Options {
        config: Config {
            gtpu_local: GATEWAY_INSIDE.map(str::to_owned).to_vec(),
            ..Config::default()
        },
        ..options
    });
    let lab = &story.lab;
    let peers = [0, 1].map(|family| device(lab, family, GTPU_PORT));
    let servers = [server(lab, 0), server(lab, 1)];
    let mut too_early = 0;
    for family in [0, 1] {
        let session = story.authorised(family, DEVICE_PORT);
        let id = session.id.to_string();
        let mut sequence = 0;
        let mut next = |payload_bytes: usize| {
            sequence += 1;
            let mut trigger = vec![0; 40 + payload_bytes];
            session.trigger(sequence, &mut trigger);
            trigger
        };
        let registered_with = socket_address(GATEWAY_INSIDE[family], INTERNAL_PORT);
        for (outer, peer) in peers.iter().enumerate() {
            let teid: u32 = 0xABCD_0000 + outer as u32;
            lab.push_ctl_json(&[
                "session",
                "tunnel",
                "set",
                &id,
                "--peer",
                DEVICE[outer],
                "--teid",
                &teid.to_string(),
            ])
            .unwrap();
            // Until the peer's MAC address is known, there is nothing that the kernel could be given instead.
            peer.set_read_timeout(Some(Duration::from_millis(20)))
                .unwrap();
            wait_until("the peer is reached", || {
                servers[0].send(&next(0)).unwrap();
                let mut arrived = false;
                wait_until(
                    "the trigger arrives, or is counted as one that can't",
                    || {
                        arrived = peer.recv(&mut [0; 2048]).is_ok();
                        arrived || verdicts(lab, "gw-app")["next_hop_missing"] > too_early
                    },
                );
                too_early += u64::from(!arrived);
                arrived
            });
            peer.set_read_timeout(Some(LIMIT)).unwrap();
            for server in &servers {
                for payload_bytes in [0, 1, 7, 8, 9, 1199, 1200] {
                    let sent = next(payload_bytes);
                    server.send(&sent).unwrap();
                    let mut buffer = [0; 2048];
                    let (length, from) = peer.recv_from(&mut buffer).unwrap();
                    assert_eq!(from, socket_address(GATEWAY_INSIDE[outer], GTPU_PORT));
                    let (header, packet) = buffer[..length].split_at(8);
                    // TS 29.281, 5.1: version 1, GTP, nothing optional; a G-PDU.
                    assert_eq!(header[..2], [0b0011_0000, 255]);
                    assert_eq!(header[2..4], (packet.len() as u16).to_be_bytes());
                    assert_eq!(header[4..], teid.to_be_bytes());
                    let device = socket_address(DEVICE[family], DEVICE_PORT);
                    assert_eq!(inside(packet), (registered_with, device, sent));
                }
            }
        }
        lab.push_ctl_json(&["session", "tunnel", "clear", &id])
            .unwrap();
        let device = device(lab, family, DEVICE_PORT);
        let sent = next(5);
        servers[family].send(&sent).unwrap();
        let mut buffer = [0; 2048];
        let (length, from) = device.recv_from(&mut buffer).unwrap();
        assert_eq!((&buffer[..length], from), (&sent[..], registered_with));
    }
    assert_eq!(checksum_errors(lab), [0, 0]);
    assert_eq!(verdicts(lab, "gw-app")["next_hop_missing"], too_early);
    println!("{too_early} triggers came before the peer's MAC address was known");
}
