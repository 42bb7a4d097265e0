//! What the path tells of: the ring buffer of events.

use super::Settings;
use super::pins::pinned_map;
use anyhow::{Context, Result};
use aya::maps::{Map, MapData, PerCpuArray, RingBuf};
use push_common::maps::{EVENT_LIMITS, EVENTS, Event, EventKind, EventLimits};
use push_common::wire::SessionId;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use tokio::io::unix::AsyncFd;

/// Something worth telling: it stands for all like it since the one before it on the same CPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// What happened.
    pub kind: EventKind,
    /// The NIC; `None` if the program is no longer attached to it.
    pub nic: Option<String>,
    /// How many like this there were.
    pub count: u64,
    /// The session that the last one named.
    pub session: SessionId,
    /// Where the last one came from.
    pub source: SocketAddr,
}

/// Knows NICs by their index.
pub(super) trait NicName: Fn(u32) -> Option<String> {}
impl<F: Fn(u32) -> Option<String>> NicName for F {}

type LimitWords = [u64; size_of::<EventLimits>() / 8];

/// The maps [`push_common::maps::EVENTS`] and [`push_common::maps::EVENT_LIMITS`].
pub(super) struct Events {
    ring: Ring,
    limits: PerCpuArray<MapData, LimitWords>,
}

/// A ring buffer is watched by the runtime of whoever waits for it first.
enum Ring {
    Unwatched(RingBuf<MapData>),
    Watched(AsyncFd<RingBuf<MapData>>),
    /// Only while it passes from one to the other.
    Nowhere,
}

impl Events {
    pub(super) fn open(settings: &Settings) -> Result<Self> {
        let pinned = |name: &str| pinned_map(&settings.pin_dir, name);
        Ok(Self {
            ring: Ring::Unwatched(RingBuf::try_from(Map::RingBuf(pinned(EVENTS)?))?),
            limits: PerCpuArray::try_from(Map::PerCpuArray(pinned(EVENT_LIMITS)?))?,
        })
    }

    /// What has been told, or will be. Cancel-safe: what isn't returned is still there. `name` is that of the
    /// NIC with a [`push_common::maps::NicConfig::index`].
    pub(super) async fn next(&mut self, name: impl NicName) -> Result<Vec<Told>> {
        loop {
            let watched = self.watched()?;
            let mut ready = watched
                .readable_mut()
                .await
                .context("cannot wait for events")?;
            let told = drain(ready.get_inner_mut(), &name);
            ready.clear_ready();
            if !told.is_empty() {
                return Ok(told);
            }
        }
    }

    /// What has been told up to now; `name` as of [`Events::next`].
    pub(super) fn drain(&mut self, name: impl NicName) -> Vec<Told> {
        match &mut self.ring {
            Ring::Unwatched(ring) => drain(ring, &name),
            Ring::Watched(ring) => drain(ring.get_mut(), &name),
            Ring::Nowhere => Vec::new(),
        }
    }

    fn watched(&mut self) -> Result<&mut AsyncFd<RingBuf<MapData>>> {
        if let Ring::Unwatched(_) = self.ring
            && let Ring::Unwatched(ring) = std::mem::replace(&mut self.ring, Ring::Nowhere)
        {
            #[expect(
                deprecated,
                reason = "its successor is unsafe; the ring owns its descriptor and keeps it"
            )]
            let watched = AsyncFd::new(ring).context("cannot wait for events")?;
            self.ring = Ring::Watched(watched);
        }
        match &mut self.ring {
            Ring::Watched(watched) => Ok(watched),
            Ring::Unwatched(_) | Ring::Nowhere => anyhow::bail!("events can't be waited for"),
        }
    }

    /// Events that there was no room for since the maps were made.
    pub(super) fn lost(&self) -> Result<u64> {
        let per_cpu = self
            .limits
            .get(&0, 0)
            .context("cannot read how many events were lost")?;
        Ok(per_cpu
            .iter()
            .map(|words| bytemuck::must_cast_ref::<_, EventLimits>(words).lost)
            .sum())
    }
}

fn drain(ring: &mut RingBuf<MapData>, name: &impl NicName) -> Vec<Told> {
    let mut told = Vec::new();
    while let Some(item) = ring.next() {
        // Of a kind that this program doesn't know, if a newer one told it.
        told.extend(read(&item, name));
    }
    told
}

fn read(bytes: &[u8], name: &impl NicName) -> Option<Told> {
    let event: Event = bytemuck::try_pod_read_unaligned(bytes).ok()?;
    let octets: [u8; 16] = bytemuck::must_cast(event.source);
    let address = if event.is_v6 != 0 {
        IpAddr::V6(Ipv6Addr::from(octets))
    } else {
        let [a, b, c, d, ..] = octets;
        IpAddr::V4(Ipv4Addr::new(a, b, c, d))
    };
    Some(Told {
        kind: *EventKind::ALL.get(event.kind as usize)?,
        nic: name(event.nic),
        count: event.count,
        session: SessionId::from_u64(event.session),
        source: SocketAddr::new(address, u16::from_be_bytes(event.source_port)),
    })
}
