//! Slows down those who present keys that are not right.

use crate::sessions::records::CredentialId;
use ipnet::IpNet;
use lru::LruCache;
use push_common::rate;
use std::hash::Hash;
use std::net::IpAddr;
use std::num::NonZeroUsize;
use std::time::Duration;

/// Wrong keys with the name of one that exists: ten at once, then one in 5 s.
const BY_CREDENTIAL: Allowance = Allowance::new(Duration::from_secs(5), 10);

/// Wrong keys from one place: thirty at once, then one in a second.
const BY_PLACE: Allowance = Allowance::new(Duration::from_secs(1), 30);

/// How many names, and places, are remembered: those that tried last. What is forgotten had long ago
/// waited enough, unless as many at once try.
const REMEMBERED: NonZeroUsize = NonZeroUsize::new(1 << 16).unwrap();

/// Too many keys that were not right have come with this name, or from this place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many wrong keys were presented; the next is looked at in {} s", .retry_after.as_secs_f64().ceil())]
pub struct TooManyGuesses {
    /// When the next one is looked at.
    pub retry_after: Duration,
}

/// So many at once, and then one in each interval.
struct Allowance {
    interval_ns: u64,
    tolerance_ns: u64,
}

impl Allowance {
    const fn new(interval: Duration, burst: u32) -> Self {
        let interval_ns = interval.as_nanos() as u64;
        Self {
            interval_ns,
            tolerance_ns: rate::tolerance_ns(interval_ns, burst),
        }
    }
}

/// What was guessed of late. Whatever is right costs nothing, so that many servers behind one address
/// don't get into each other's way.
pub(super) struct Guesses {
    by_credential: Buckets<CredentialId>,
    by_place: Buckets<IpNet>,
}

impl Guesses {
    pub(super) fn none() -> Self {
        Self {
            by_credential: Buckets::new(BY_CREDENTIAL),
            by_place: Buckets::new(BY_PLACE),
        }
    }

    /// Whether a key with this name, from there, is looked at now.
    pub(super) fn may_try(
        &self,
        now: Duration,
        id: CredentialId,
        from: IpAddr,
    ) -> Result<(), TooManyGuesses> {
        self.by_place.may_try(now, &place(from))?;
        self.by_credential.may_try(now, &id)
    }

    /// A key from there was wrong. Says whether that was one more than goes unnoticed.
    ///
    /// `id` is its name if a key of that name exists: others would only push out what is remembered of these.
    pub(super) fn was_wrong(
        &mut self,
        now: Duration,
        id: Option<CredentialId>,
        from: IpAddr,
    ) -> bool {
        let by_place = self.by_place.charge(now, place(from));
        id.is_some_and(|id| self.by_credential.charge(now, id)) || by_place
    }
}

/// What one party has at its disposal: an IPv4 address, or the smallest prefix of IPv6 that is given to a site.
fn place(address: IpAddr) -> IpNet {
    let address = address.to_canonical();
    let len = match address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 56,
    };
    IpNet::new_assert(address, len).trunc()
}

/// For each of many parties, when its allowance will be whole again.
struct Buckets<K> {
    allowance: Allowance,
    full_at_ns: LruCache<K, u64>,
}

impl<K: Hash + Eq> Buckets<K> {
    fn new(allowance: Allowance) -> Self {
        // Not made for that many at once: mostly there are none.
        let mut full_at_ns = LruCache::unbounded();
        full_at_ns.resize(REMEMBERED);
        Self {
            allowance,
            full_at_ns,
        }
    }

    fn may_try(&self, now: Duration, party: &K) -> Result<(), TooManyGuesses> {
        let Allowance {
            interval_ns,
            tolerance_ns,
        } = self.allowance;
        let full_at_ns = self.full_at_ns.peek(party).copied().unwrap_or(0);
        let now_ns = nanos(now);
        match rate::offer(full_at_ns, now_ns, interval_ns, tolerance_ns) {
            Some(_) => Ok(()),
            None => Err(TooManyGuesses {
                retry_after: Duration::from_nanos(full_at_ns - tolerance_ns - now_ns),
            }),
        }
    }

    /// Says whether the party has nothing left.
    fn charge(&mut self, now: Duration, party: K) -> bool {
        let Allowance {
            interval_ns,
            tolerance_ns,
        } = self.allowance;
        let now_ns = nanos(now);
        let full_at_ns = self.full_at_ns.get_or_insert_mut(party, || 0);
        if let Some(later) = rate::offer(*full_at_ns, now_ns, interval_ns, tolerance_ns) {
            *full_at_ns = later;
        }
        *full_at_ns > now_ns.saturating_add(tolerance_ns)
    }
}

fn nanos(since_start: Duration) -> u64 {
    u64::try_from(since_start.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: CredentialId = CredentialId::from_u64(1);

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(100 + seconds)
    }

    fn v4(last: u8) -> IpAddr {
        [192, 0, 2, last].into()
    }

    #[test]
    fn ten_wrong_keys_of_one_name_are_looked_at_then_one_in_five_seconds() {
        let mut guesses = Guesses::none();
        for n in 0..10 {
            assert_eq!(guesses.may_try(at(0), ID, v4(n)), Ok(()));
            assert_eq!(guesses.was_wrong(at(0), Some(ID), v4(n)), n == 9);
        }
        let refused = |seconds| TooManyGuesses {
            retry_after: Duration::from_secs(seconds),
        };
        assert_eq!(guesses.may_try(at(0), ID, v4(99)), Err(refused(5)));
        assert_eq!(guesses.may_try(at(3), ID, v4(99)), Err(refused(2)));
        assert_eq!(
            refused(2).to_string(),
            "too many wrong keys were presented; the next is looked at in 2 s"
        );
        let other = CredentialId::from_u64(2);
        assert_eq!(guesses.may_try(at(0), other, v4(99)), Ok(()));
        assert_eq!(guesses.may_try(at(5), ID, v4(99)), Ok(()));
        guesses.was_wrong(at(5), Some(ID), v4(99));
        assert_eq!(guesses.may_try(at(5), ID, v4(99)), Err(refused(5)));
    }

    #[test]
    fn who_guesses_from_one_place_is_slowed_whatever_the_names() {
        let mut guesses = Guesses::none();
        let site = |n: u16| IpAddr::from([0x2001, 0xdb8, 0, n, 0, 0, 0, n]);
        for n in 0..30 {
            let id = CredentialId::from_u64(n);
            assert_eq!(guesses.may_try(at(0), id, site(n as u16)), Ok(()));
            guesses.was_wrong(at(0), (n % 2 == 0).then_some(id), site(n as u16));
        }
        assert!(guesses.may_try(at(0), ID, site(0xff)).is_err());
        assert_eq!(guesses.may_try(at(0), ID, site(0x100)), Ok(()), "next door");
        assert_eq!(guesses.may_try(at(1), ID, site(0xff)), Ok(()));
        for mapped in ["::ffff:192.0.2.1", "192.0.2.1"] {
            assert_eq!(place(mapped.parse().unwrap()).to_string(), "192.0.2.1/32");
        }
    }

    #[test]
    fn only_so_many_are_remembered() {
        let mut buckets = Buckets::new(BY_CREDENTIAL);
        for n in 0..REMEMBERED.get() + 10 {
            buckets.charge(at(0), n);
        }
        assert_eq!(buckets.full_at_ns.len(), REMEMBERED.get());
        assert!(buckets.full_at_ns.peek(&9).is_none() && buckets.full_at_ns.peek(&10).is_some());
    }
}
