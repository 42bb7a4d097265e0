//! What a session needs a next hop for, and what of it stands in the record.

use super::super::Realm;
use anyhow::{Context, Result, ensure};
use push_common::maps::NextHopRecord;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

/// Where the triggers of a session are to go, and what the device is to see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) struct Target {
    /// Index of the realm that the device is in.
    pub(in super::super) realm: Option<usize>,
    /// Address of the device.
    pub(in super::super) device: IpAddr,
    /// Address and port of the gateway from which the device expects triggers.
    pub(in super::super) source: SocketAddr,
    /// The tunnel that leads to the device.
    pub(in super::super) tunnel: Option<TunnelEnds>,
}

/// The outer addresses of a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in super::super) struct TunnelEnds {
    /// Of the gateway.
    pub(in super::super) local: IpAddr,
    /// Of the other end.
    pub(in super::super) peer: IpAddr,
}

impl Target {
    /// The address to which frames have to find their way, given the realms there are.
    pub(super) fn address(&self, realms: &[Realm]) -> Result<IpAddr> {
        let realm = self.realm.map(|index| {
            realms
                .get(index)
                .with_context(|| format!("there is no realm with index {index}"))
        });
        let realm = realm.transpose()?;
        let address = self.tunnel.map_or(self.device, |tunnel| tunnel.peer);
        ensure!(
            self.device.is_ipv4() == self.source.is_ipv4(),
            "a device with the address {} doesn't expect triggers from {}",
            self.device,
            self.source.ip()
        );
        if let Some(tunnel) = self.tunnel {
            ensure!(
                tunnel.local.is_ipv4() == tunnel.peer.is_ipv4(),
                "no tunnel leads from {} to {}",
                tunnel.local,
                tunnel.peer
            );
        }
        for address in [self.device, address] {
            let is_limited_broadcast =
                matches!(address, IpAddr::V4(address) if address.is_broadcast());
            ensure!(
                !address.is_unspecified()
                    && !address.is_loopback()
                    && !address.is_multicast()
                    && !is_limited_broadcast,
                "{address} is not the address of a single host elsewhere"
            );
        }
        let is_link_local =
            matches!(address, IpAddr::V6(address) if address.is_unicast_link_local());
        ensure!(
            !is_link_local || realm.is_some(),
            "{address} is an address on some link; only a realm says on which"
        );
        Ok(realm
            .and_then(|realm| router(realm, address.is_ipv6()))
            .unwrap_or(address))
    }
}

/// The router of a realm for a family.
pub(super) fn router(realm: &Realm, is_v6: bool) -> Option<IpAddr> {
    realm
        .routers
        .iter()
        .copied()
        .find(|router| router.is_ipv6() == is_v6)
}

/// The part of a target that devices see, and their realm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Sender {
    pub(super) realm: Option<usize>,
    pub(super) source: SocketAddr,
    pub(super) tunnel: Option<TunnelEnds>,
}

impl Sender {
    /// The record of a next hop without the way to it.
    pub(super) fn record(&self) -> NextHopRecord {
        let flag = |condition, flag| if condition { flag } else { 0 };
        let mut record = NextHopRecord {
            source: octets(self.source.ip()),
            source_port: self.source.port().to_be_bytes(),
            flags: flag(self.realm.is_some(), NextHopRecord::REALM),
            ..NextHopRecord::default()
        };
        if let Some(tunnel) = self.tunnel {
            record.outer_source = octets(tunnel.local);
            record.outer_destination = octets(tunnel.peer);
            record.flags |=
                NextHopRecord::GTPU | flag(tunnel.peer.is_ipv6(), NextHopRecord::OUTER_IPV6);
        }
        record
    }
}

/// As on the wire; an IPv4 address is in the first 4 bytes.
fn octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => {
            let mut bytes = [0; 16];
            bytes[..4].copy_from_slice(&address.octets());
            bytes
        }
        IpAddr::V6(address) => address.octets(),
    }
}

/// Gives each sender a number for as long as someone uses it.
#[derive(Default)]
pub(super) struct Senders {
    numbers: HashMap<Sender, u32>,
    /// By number: the sender, and how many use it.
    senders: Vec<Option<(Sender, usize)>>,
    free: Vec<u32>,
}

impl Senders {
    /// The number of `sender`, which has one user more from now on.
    pub(super) fn enter(&mut self, sender: Sender) -> u32 {
        let number = *self.numbers.entry(sender).or_insert_with(|| {
            self.free.pop().unwrap_or_else(|| {
                self.senders.push(None);
                self.senders.len() as u32 - 1
            })
        });
        let (_, users) = self.senders[number as usize].get_or_insert((sender, 0));
        *users += 1;
        number
    }

    /// The sender with this number has one user less.
    pub(super) fn leave(&mut self, number: u32) {
        let Some((sender, users)) = &mut self.senders[number as usize] else {
            return;
        };
        *users -= 1;
        if *users == 0 {
            self.numbers.remove(sender);
            self.senders[number as usize] = None;
            self.free.push(number);
        }
    }

    pub(super) fn get(&self, number: u32) -> Option<Sender> {
        self.senders.get(number as usize)?.map(|(sender, _)| sender)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(device: &str, source: &str) -> Target {
        Target {
            realm: None,
            device: device.parse().unwrap(),
            source: source.parse().unwrap(),
            tunnel: None,
        }
    }

    fn realm(routers: &[&str]) -> Realm {
        Realm {
            name: "internet".into(),
            interface: "apn".into(),
            routers: routers
                .iter()
                .map(|router| router.parse().unwrap())
                .collect(),
            link: None,
        }
    }

    #[test]
    fn frames_find_their_way_to_the_device_or_to_what_is_in_front_of_it() {
        let plain = target("10.0.0.2", "10.0.0.1:5683");
        let tunnel = TunnelEnds {
            local: "2001:db8::1".parse().unwrap(),
            peer: "2001:db8::2".parse().unwrap(),
        };
        let tunnelled = Target {
            tunnel: Some(tunnel),
            ..plain
        };
        let in_realm = |target: Target| Target {
            realm: Some(0),
            ..target
        };
        for (target, routers, address) in [
            (plain, &[][..], "10.0.0.2"),
            (tunnelled, &[], "2001:db8::2"),
            (in_realm(plain), &["10.9.0.1", "fd00::1"], "10.9.0.1"),
            (in_realm(tunnelled), &["10.9.0.1", "fd00::1"], "fd00::1"),
            (in_realm(plain), &["fd00::1"], "10.0.0.2"),
            (in_realm(target("fe80::2", "[fe80::1]:1")), &[], "fe80::2"),
        ] {
            let found = target.address(&[realm(routers)]).unwrap();
            assert_eq!(found.to_string(), address);
        }
    }

    #[test]
    fn what_leads_nowhere_is_refused() {
        let tunnel = |local: &str, peer: &str| Target {
            tunnel: Some(TunnelEnds {
                local: local.parse().unwrap(),
                peer: peer.parse().unwrap(),
            }),
            ..target("10.0.0.2", "10.0.0.1:1")
        };
        for (target, reason) in [
            (target("10.0.0.2", "[fd00::1]:1"), "expect triggers"),
            (target("0.0.0.0", "10.0.0.1:1"), "0.0.0.0 is not"),
            (target("127.0.0.1", "10.0.0.1:1"), "127.0.0.1 is not"),
            (target("255.255.255.255", "10.0.0.1:1"), "is not"),
            (target("ff02::1", "[fd00::1]:1"), "is not"),
            (target("fe80::2", "[fe80::1]:1"), "only a realm"),
            (tunnel("10.0.0.1", "fd00::1"), "no tunnel"),
            (tunnel("10.0.0.1", "224.0.0.1"), "224.0.0.1 is not"),
            (
                Target {
                    realm: Some(1),
                    ..target("10.0.0.2", "10.0.0.1:1")
                },
                "no realm",
            ),
        ] {
            let error = target.address(&[realm(&[])]).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
    }

    #[test]
    fn a_sender_keeps_its_number_while_it_is_used() {
        let sender = |port| Sender {
            realm: None,
            source: SocketAddr::new(IpAddr::from([10, 0, 0, 1]), port),
            tunnel: None,
        };
        let mut senders = Senders::default();
        assert_eq!(
            (
                senders.enter(sender(1)),
                senders.enter(sender(2)),
                senders.enter(sender(1))
            ),
            (0, 1, 0)
        );
        senders.leave(0);
        assert_eq!(senders.get(0), Some(sender(1)));
        senders.leave(0);
        assert_eq!(senders.get(0), None);
        assert_eq!(senders.enter(sender(3)), 0);
    }
}
