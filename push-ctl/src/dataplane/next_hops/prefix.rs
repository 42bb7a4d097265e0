//! Prefixes of both families, and a table that finds the ones that cover an address.

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An IP prefix; the bits behind it are 0.
///
/// In their order, everything within a prefix comes right after it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Prefix {
    is_v6: bool,
    /// An IPv4 address is in the first 32 bits.
    bits: u128,
    length: u8,
}

impl Prefix {
    /// The prefix of `address` that is `length` bits long, or as long as the address if that is less.
    pub(super) fn new(address: IpAddr, length: u8) -> Self {
        let whole = Self::host(address);
        let length = length.min(whole.length);
        Self {
            bits: whole.bits & mask(length),
            length,
            ..whole
        }
    }

    /// The prefix that is all of `address`.
    pub(super) fn host(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => Self {
                is_v6: false,
                bits: u128::from(address.to_bits()) << 96,
                length: 32,
            },
            IpAddr::V6(address) => Self {
                is_v6: true,
                bits: address.to_bits(),
                length: 128,
            },
        }
    }

    pub(super) const fn is_v6(self) -> bool {
        self.is_v6
    }

    pub(super) const fn length(self) -> u8 {
        self.length
    }

    /// Whether there is but one address in it.
    pub(super) const fn is_host(self) -> bool {
        self.length == if self.is_v6 { 128 } else { 32 }
    }

    /// Its first address.
    pub(super) fn first(self) -> IpAddr {
        self.address(self.bits)
    }

    /// Its last address.
    pub(super) fn last(self) -> IpAddr {
        self.address(self.last_bits())
    }

    /// The last of all prefixes within it, itself included.
    pub(super) fn last_within(self) -> Self {
        Self::host(self.last())
    }

    fn last_bits(self) -> u128 {
        let family = if self.is_v6 { u128::MAX } else { mask(32) };
        self.bits | (family & !mask(self.length))
    }

    fn address(self, bits: u128) -> IpAddr {
        if self.is_v6 {
            Ipv6Addr::from_bits(bits).into()
        } else {
            Ipv4Addr::from_bits((bits >> 96) as u32).into()
        }
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.first(), self.length)
    }
}

impl fmt::Debug for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What is known of the prefixes of both families.
///
/// A hash table for each length that occurs, of which real routing tables have few.
#[derive(Clone)]
pub(super) struct PrefixTable<V> {
    /// By family; the longest prefixes first.
    families: [Vec<(u8, HashMap<u128, V>)>; 2],
}

impl<V> Default for PrefixTable<V> {
    fn default() -> Self {
        Self {
            families: [Vec::new(), Vec::new()],
        }
    }
}

impl<V> PrefixTable<V> {
    /// What is known of the prefixes that `within` is in and that are at most as long; the longest first.
    pub(super) fn covering(&self, within: Prefix) -> impl Iterator<Item = (u8, &V)> {
        self.families[usize::from(within.is_v6)]
            .iter()
            .filter(move |(length, _)| *length <= within.length)
            .filter_map(move |(length, prefixes)| {
                Some((*length, prefixes.get(&(within.bits & mask(*length)))?))
            })
    }

    pub(super) fn get(&self, prefix: Prefix) -> Option<&V> {
        let (_, prefixes) = self.families[usize::from(prefix.is_v6)]
            .iter()
            .find(|(length, _)| *length == prefix.length)?;
        prefixes.get(&prefix.bits)
    }

    pub(super) fn get_mut(&mut self, prefix: Prefix) -> Option<&mut V> {
        let (_, prefixes) = self.families[usize::from(prefix.is_v6)]
            .iter_mut()
            .find(|(length, _)| *length == prefix.length)?;
        prefixes.get_mut(&prefix.bits)
    }

    pub(super) fn insert(&mut self, prefix: Prefix, value: V) {
        let family = &mut self.families[usize::from(prefix.is_v6)];
        let at = family.partition_point(|(length, _)| *length > prefix.length);
        if family
            .get(at)
            .is_none_or(|(length, _)| *length != prefix.length)
        {
            family.insert(at, (prefix.length, HashMap::new()));
        }
        family[at].1.insert(prefix.bits, value);
    }

    pub(super) fn remove(&mut self, prefix: Prefix) {
        let family = &mut self.families[usize::from(prefix.is_v6)];
        if let Some(at) = family
            .iter()
            .position(|(length, _)| *length == prefix.length)
        {
            family[at].1.remove(&prefix.bits);
            if family[at].1.is_empty() {
                family.remove(at);
            }
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Prefix, &V)> {
        [false, true].into_iter().flat_map(move |is_v6| {
            self.families[usize::from(is_v6)]
                .iter()
                .flat_map(move |&(length, ref prefixes)| {
                    prefixes.iter().map(move |(&bits, value)| {
                        let prefix = Prefix {
                            is_v6,
                            bits,
                            length,
                        };
                        (prefix, value)
                    })
                })
        })
    }
}

/// `length` ones, from the top.
const fn mask(length: u8) -> u128 {
    match u128::MAX.checked_shr(length as u32) {
        Some(rest) => !rest,
        None => u128::MAX,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(text: &str) -> Prefix {
        let (address, length) = text.split_once('/').unwrap();
        Prefix::new(address.parse().unwrap(), length.parse().unwrap())
    }

    #[test]
    fn a_prefix_has_a_first_and_a_last_address() {
        for (text, shown, first, last) in [
            ("10.1.2.3/8", "10.0.0.0/8", "10.0.0.0", "10.255.255.255"),
            ("10.1.2.3/32", "10.1.2.3/32", "10.1.2.3", "10.1.2.3"),
            ("10.1.2.3/0", "0.0.0.0/0", "0.0.0.0", "255.255.255.255"),
            (
                "fd00::1/64",
                "fd00::/64",
                "fd00::",
                "fd00::ffff:ffff:ffff:ffff",
            ),
            ("fd00::1/128", "fd00::1/128", "fd00::1", "fd00::1"),
        ] {
            let prefix = prefix(text);
            assert_eq!(prefix.to_string(), shown);
            assert_eq!(prefix.first().to_string(), first);
            assert_eq!(prefix.last().to_string(), last);
        }
        assert_eq!(prefix("::/0").last_bits(), u128::MAX);
    }

    #[test]
    fn what_is_within_a_prefix_comes_right_after_it() {
        let mut sorted = [
            "10.0.0.0/8",
            "10.0.0.0/7",
            "11.0.0.0/8",
            "10.255.255.255/32",
            "::/0",
            "0.0.0.0/0",
            "10.0.0.0/32",
        ]
        .map(prefix);
        sorted.sort();
        let expected = [
            "0.0.0.0/0",
            "10.0.0.0/7",
            "10.0.0.0/8",
            "10.0.0.0/32",
            "10.255.255.255/32",
            "11.0.0.0/8",
            "::/0",
        ];
        assert_eq!(sorted, expected.map(prefix));
        let inside = prefix("10.0.0.0/8")..=prefix("10.0.0.0/8").last_within();
        assert_eq!(
            sorted
                .iter()
                .filter(|prefix| inside.contains(prefix))
                .count(),
            3
        );
    }

    #[test]
    fn covering_prefixes_come_longest_first() {
        let mut table = PrefixTable::default();
        for text in [
            "10.0.0.0/8",
            "10.1.0.0/16",
            "0.0.0.0/0",
            "10.2.0.0/16",
            "::/0",
        ] {
            table.insert(prefix(text), text);
        }
        let covering = |text| -> Vec<&str> {
            table
                .covering(prefix(text))
                .map(|(_, &text)| text)
                .collect()
        };
        assert_eq!(
            covering("10.1.2.3/32"),
            ["10.1.0.0/16", "10.0.0.0/8", "0.0.0.0/0"]
        );
        assert_eq!(covering("10.1.0.0/9"), ["10.0.0.0/8", "0.0.0.0/0"]);
        assert_eq!(covering("11.0.0.0/32"), ["0.0.0.0/0"]);
        assert_eq!(covering("a00::/128"), ["::/0"]);
        table.remove(prefix("10.0.0.0/8"));
        assert_eq!(table.get(prefix("10.0.0.0/8")), None);
        assert_eq!(table.iter().count(), 4);
    }
}
