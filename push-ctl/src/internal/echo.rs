//! Whether a device receives at the address that it sends from (RFC 9175, 2.3).
//!
//! The tag is a MAC over the address and the minute, so that nothing has to be remembered of who
//! was challenged. It stands for the address alone, not for the port, as some clients use another
//! port for each request. The same address in another realm is another one.

use crate::sessions::records::RealmName;
use siphasher::sip::SipHasher24;
use std::hash::Hasher;
use std::net::IpAddr;
use std::time::Duration;
use subtle::ConstantTimeEq;

/// Length of a tag; the option has room for 1 to 40 bytes.
pub(super) const TAG_LEN: usize = 8;

/// A tag is accepted in the epoch it was made in, and in the next one.
const EPOCH: Duration = Duration::from_mins(1);

/// Makes and recognises tags.
pub(super) struct Echo {
    key: [u8; 16],
}

impl Echo {
    /// With a random key, which nobody else may know.
    pub(super) const fn new(key: [u8; 16]) -> Self {
        Self { key }
    }

    /// What a device at this address of this realm has to send back. `uptime` is the time since some
    /// fixed moment.
    pub(super) fn challenge(
        &self,
        realm: Option<&RealmName>,
        device: IpAddr,
        uptime: Duration,
    ) -> [u8; TAG_LEN] {
        self.tag(realm, device, epoch(uptime))
    }

    /// Whether `tag` shows that its sender receives at this address of this realm.
    pub(super) fn proves(
        &self,
        tag: &[u8],
        realm: Option<&RealmName>,
        device: IpAddr,
        uptime: Duration,
    ) -> bool {
        let epoch = epoch(uptime);
        [Some(epoch), epoch.checked_sub(1)]
            .into_iter()
            .flatten()
            .any(|epoch| self.tag(realm, device, epoch).ct_eq(tag).into())
    }

    fn tag(&self, realm: Option<&RealmName>, device: IpAddr, epoch: u64) -> [u8; TAG_LEN] {
        let mut mac = SipHasher24::new_with_key(&self.key);
        // No name is empty, and none has the byte that ends it.
        mac.write(realm.map_or("", RealmName::as_str).as_bytes());
        mac.write(&[0]);
        match device {
            IpAddr::V4(v4) => mac.write(&v4.octets()),
            IpAddr::V6(v6) => mac.write(&v6.octets()),
        }
        mac.write(&epoch.to_le_bytes());
        mac.finish().to_le_bytes()
    }
}

fn epoch(uptime: Duration) -> u64 {
    uptime.as_secs() / EPOCH.as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_proves_one_address_for_one_to_two_minutes() {
        let echo = Echo::new([1; 16]);
        let (here, there): (IpAddr, IpAddr) =
            ("10.0.0.2".parse().unwrap(), "10.0.0.3".parse().unwrap());
        let at = Duration::from_secs;
        let tag = echo.challenge(None, here, at(90));
        assert!(echo.proves(&tag, None, here, at(90)));
        assert!(echo.proves(&tag, None, here, at(179)));
        assert!(!echo.proves(&tag, None, here, at(180)));
        assert!(!echo.proves(&tag, None, here, at(59)));
        assert!(!echo.proves(&tag, None, there, at(90)));
        assert!(!echo.proves(&tag[..7], None, here, at(90)));
        assert!(!echo.proves(&[], None, here, at(0)));
        assert!(!Echo::new([2; 16]).proves(&tag, None, here, at(90)));
    }

    #[test]
    fn a_tag_proves_an_address_of_one_realm() {
        let echo = Echo::new([1; 16]);
        let device: IpAddr = "10.0.0.2".parse().unwrap();
        let realms = [None, Some("meters"), Some("meter"), Some("cars")]
            .map(|name| name.map(|name| name.parse::<RealmName>().unwrap()));
        for here in &realms {
            let tag = echo.challenge(here.as_ref(), device, Duration::ZERO);
            for there in &realms {
                let proves = echo.proves(&tag, there.as_ref(), device, Duration::ZERO);
                assert_eq!(proves, here == there, "{here:?} {there:?}");
            }
        }
    }
}
