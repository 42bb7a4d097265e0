//! How many connections there may be, so that who opens many and does nothing with them keeps nobody else out.

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tracing::warn;

/// Of one source: an IPv4 address, or the network of an IPv6 one.
const MAX_OF_SOURCE: usize = 256;

/// Of all. An idle one costs a few KiB before its handshake, and about 50 after it.
const MAX_OF_ALL: usize = 16_384;

/// Between two lines in the log on what was refused.
const QUIET: Duration = Duration::from_secs(10);

/// Admits connections. To clone it is cheap; all clones are one.
#[derive(Clone, Debug)]
pub(super) struct Admission(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    max_of_all: usize,
    counts: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    all: usize,
    of_source: HashMap<IpAddr, usize>,
    /// Since the last line in the log.
    refused: u64,
    said_at: Option<Instant>,
}

/// A connection that is counted for as long as this is there.
#[derive(Debug)]
pub(super) struct Admitted {
    admission: Admission,
    source: IpAddr,
}

impl Admission {
    /// As many connections as there may be files, with some of these left for the rest of the daemon.
    pub(super) fn new() -> Self {
        Self::of(MAX_OF_ALL.min(files() / 4 * 3))
    }

    fn of(max_of_all: usize) -> Self {
        Self(Arc::new(Inner {
            max_of_all,
            counts: Mutex::default(),
        }))
    }

    /// Counts a connection from there, unless there are too many.
    pub(super) fn admit(&self, from: IpAddr) -> Option<Admitted> {
        let source = source(from);
        let max_of_all = self.0.max_of_all;
        let mut counts = self.counts();
        let held = counts.of_source.get(&source).copied().unwrap_or(0);
        if held >= MAX_OF_SOURCE || counts.all >= max_of_all {
            counts.refused += 1;
            if counts.said_at.is_none_or(|at| at.elapsed() >= QUIET) {
                let (open, refused) = (counts.all, counts.refused);
                warn!(
                    %from, open, refused,
                    "a connection of an application server was refused: there may be {MAX_OF_SOURCE} from one source, and {max_of_all} in all"
                );
                counts.refused = 0;
                counts.said_at = Some(Instant::now());
            }
            return None;
        }
        counts.all += 1;
        counts.of_source.insert(source, held + 1);
        Some(Admitted {
            admission: self.clone(),
            source,
        })
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        let counts = self.0.counts.lock();
        counts.unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let mut counts = self.admission.counts();
        counts.all -= 1;
        if let Some(held) = counts.of_source.get_mut(&self.source) {
            *held -= 1;
            if *held == 0 {
                counts.of_source.remove(&self.source);
            }
        }
    }
}

/// Who is one: a network of IPv6 has as many addresses as one likes.
fn source(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64).into(),
        v4 @ IpAddr::V4(_) => v4,
    }
}

/// How many files the process may have open, after asking for as many as it may ask for.
fn files() -> usize {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((1024, 1024));
    let raised = setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok();
    let limit = if raised { hard } else { soft };
    usize::try_from(limit).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_has_so_many_and_all_have_so_many() {
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        let admission = Admission::of(MAX_OF_SOURCE + 2);
        let one = address("2001:db8::1");
        let mut held: Vec<_> = (0..MAX_OF_SOURCE)
            .map(|_| admission.admit(one).unwrap())
            .collect();
        assert!(admission.admit(one).is_none());
        assert!(
            admission.admit(address("2001:db8::ffff:1")).is_none(),
            "of the same network"
        );
        let other = admission.admit(address("2001:db8:0:1::1")).unwrap();
        let v4 = admission.admit(address("192.0.2.1")).unwrap();
        assert!(admission.admit(address("192.0.2.2")).is_none(), "all");
        drop((other, v4));
        held.pop();
        assert!(admission.admit(one).is_some());
        drop(held);
        let counts = admission.counts();
        assert!(counts.all == 0 && counts.of_source.is_empty(), "{counts:?}");
    }
}
