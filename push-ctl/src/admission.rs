//! How many connections there may be, so that who opens many and does nothing with them keeps nobody else out.

use axum::Extension;
use axum::middleware::AddExtension;
use axum_server::accept::Accept;
use futures_util::future::BoxFuture;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use tower_layer::Layer;
use tracing::warn;

/// Between two lines in the log on what was refused.
const QUIET: Duration = Duration::from_secs(10);

/// How many there may be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// For the log: of whom they are.
    pub(crate) whose: &'static str,
    /// From one source: an IPv4 address, or the network of an IPv6 one.
    pub(crate) of_source: usize,
    /// From all, if there may be as many files; some of these are left for the rest of the daemon.
    pub(crate) of_all: usize,
}

/// Admits connections. To clone it is cheap; all clones are one.
#[derive(Clone, Debug)]
pub(crate) struct Admission(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    limits: Limits,
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
pub(crate) struct Admitted {
    admission: Admission,
    source: IpAddr,
}

impl Admission {
    pub(crate) fn new(limits: Limits) -> Self {
        let of_all = limits.of_all.min(files() / 4 * 3);
        Self(Arc::new(Inner {
            limits: Limits { of_all, ..limits },
            counts: Mutex::default(),
        }))
    }

    /// Counts a connection from there, unless there are too many.
    pub(crate) fn admit(&self, from: IpAddr) -> Option<Admitted> {
        let source = source(from);
        let Limits {
            whose,
            of_source,
            of_all,
        } = self.0.limits;
        let mut counts = self.counts();
        let held = counts.of_source.get(&source).copied().unwrap_or(0);
        if held >= of_source || counts.all >= of_all {
            counts.refused += 1;
            if counts.said_at.is_none_or(|at| at.elapsed() >= QUIET) {
                let (open, refused) = (counts.all, counts.refused);
                warn!(
                    %from, open, refused,
                    "a connection of {whose} was refused: there may be {of_source} from one source, and {of_all} in all"
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

/// Accepts the connections of who is admitted, and has `inner` do the rest.
#[derive(Clone, Debug)]
pub(crate) struct Admitting<A> {
    pub(crate) admission: Admission,
    pub(crate) inner: A,
}

impl<S, A> Accept<TcpStream, S> for Admitting<A>
where
    A: Accept<TcpStream, S>,
    A::Future: Send + 'static,
{
    type Stream = A::Stream;
    /// The service of a connection goes with it.
    type Service = AddExtension<A::Service, Arc<Admitted>>;
    type Future = BoxFuture<'static, io::Result<(Self::Stream, Self::Service)>>;

    fn accept(&self, stream: TcpStream, service: S) -> Self::Future {
        let admitted = stream.peer_addr().map(|peer| {
            let admitted = self.admission.admit(peer.ip());
            admitted.map(|admitted| (admitted, self.inner.accept(stream, service)))
        });
        Box::pin(async move {
            let (admitted, accepting) = admitted?.ok_or(io::ErrorKind::QuotaExceeded)?;
            let (stream, service) = accepting.await?;
            Ok((stream, Extension(Arc::new(admitted)).layer(service)))
        })
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
        const OF_SOURCE: usize = 3;
        let admission = Admission::new(Limits {
            whose: "a test",
            of_source: OF_SOURCE,
            of_all: OF_SOURCE + 2,
        });
        let one = address("2001:db8::1");
        let mut held: Vec<_> = (0..OF_SOURCE)
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
