//! Copies of packets that name one session, as the path hands them out while somebody looks.

use super::pins::pinned_map;
use super::{Dataplane, monotonic_ns};
use anyhow::{Context, Result, bail, ensure};
use aya::maps::{Array, Map, MapData, RingBuf};
use bytemuck::Zeroable;
use push_common::verdict::Verdict;
use push_common::watch::{CAPTURES, Capture, WATCH, Watch};
use push_common::wire::SessionId;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};
use tokio::io::unix::AsyncFd;

/// A packet that named the session, with what became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Captured {
    /// When.
    pub at: SystemTime,
    /// Name of the NIC that it came in by; none if that was attached later than the capture began.
    pub nic: Option<String>,
    /// What became of it.
    pub verdict: Verdict,
    /// Length of its frame in bytes, as it was when it left the program.
    pub length: u32,
    /// The beginning of that frame.
    pub frame: Vec<u8>,
}

type WatchBytes = [u8; size_of::<Watch>()];

/// A session that is watched until this is dropped. There is one at a time.
pub struct Captures {
    session: SessionId,
    ring: AsyncFd<RingBuf<MapData>>,
    watch: Array<MapData, WatchBytes>,
    nics: HashMap<u32, String>,
    is_taken: Arc<AtomicBool>,
}

impl Dataplane {
    /// Watches a session for this time, or until what is returned is dropped. To be called where a runtime is.
    ///
    /// # Errors
    ///
    /// Another session is being watched, or the kernel refuses.
    pub fn capture(&self, session: SessionId, time: Duration) -> Result<Captures> {
        let is_taken = Arc::clone(&self.is_watching);
        if is_taken.swap(true, Ordering::AcqRel) {
            bail!("another session is being traced; one can be at a time");
        }
        let captures = self.start_capture(session, time, &is_taken);
        if captures.is_err() {
            is_taken.store(false, Ordering::Release);
        }
        captures
    }

    fn start_capture(
        &self,
        session: SessionId,
        time: Duration,
        is_taken: &Arc<AtomicBool>,
    ) -> Result<Captures> {
        ensure!(
            session.to_u64() != 0,
            "there is no session with the identifier 0"
        );
        let pinned = |name: &str| pinned_map(&self.settings.pin_dir, name);
        let mut ring = RingBuf::try_from(Map::RingBuf(pinned(CAPTURES)?))?;
        // What nobody took the last time.
        while ring.next().is_some() {}
        #[expect(
            deprecated,
            reason = "its successor is unsafe; the ring owns its descriptor and keeps it"
        )]
        let ring = AsyncFd::new(ring).context("cannot wait for packets")?;
        let mut watch = Array::try_from(Map::Array(pinned(WATCH)?))?;
        let time_ns = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let record = Watch {
            session: session.to_u64(),
            until_ns: monotonic_ns().saturating_add(time_ns),
            missed: 0,
        };
        set(&mut watch, record)?;
        let nics = self.attached.iter();
        let nics = nics.map(|attached| (attached.config.index, attached.nic.name.clone()));
        Ok(Captures {
            session,
            ring,
            watch,
            nics: nics.collect(),
            is_taken: Arc::clone(is_taken),
        })
    }
}

impl Captures {
    /// Packets that have come, or will: at least one. Cancel-safe: what isn't returned is still there.
    ///
    /// # Errors
    ///
    /// The kernel can't be asked.
    pub async fn next(&mut self) -> Result<Vec<Captured>> {
        loop {
            let ready = self.ring.readable_mut().await;
            let mut ready = ready.context("cannot wait for packets")?;
            let mut captured = Vec::new();
            let (now, now_ns) = (SystemTime::now(), monotonic_ns());
            while let Some(item) = ready.get_inner_mut().next() {
                let Ok(capture) = bytemuck::try_pod_read_unaligned::<Capture>(&item) else {
                    continue;
                };
                if capture.session == self.session.to_u64() {
                    let ago = Duration::from_nanos(now_ns.saturating_sub(capture.time_ns));
                    captured.extend(read(&capture, now - ago, &self.nics));
                }
            }
            ready.clear_ready();
            if !captured.is_empty() {
                return Ok(captured);
            }
        }
    }

    /// Packets that named the session and were not copied, as there were too many.
    #[must_use]
    pub fn missed(&self) -> u64 {
        let watch = self.watch.get(&0, 0);
        watch.map_or(0, |bytes| {
            bytemuck::pod_read_unaligned::<Watch>(&bytes).missed
        })
    }
}

impl Drop for Captures {
    fn drop(&mut self) {
        if let Err(error) = set(&mut self.watch, Watch::zeroed()) {
            // It ends at its time.
            tracing::warn!(session = %self.session, "{error:#}");
        }
        self.is_taken.store(false, Ordering::Release);
    }
}

fn set(watch: &mut Array<MapData, WatchBytes>, record: Watch) -> Result<()> {
    watch
        .set(0, bytemuck::must_cast::<_, WatchBytes>(record), 0)
        .context("cannot write which session is watched")
}

/// None of a verdict that this program doesn't know.
fn read(capture: &Capture, at: SystemTime, nics: &HashMap<u32, String>) -> Option<Captured> {
    let captured = usize::try_from(capture.captured).ok()?;
    Some(Captured {
        at,
        nic: nics.get(&capture.nic).cloned(),
        verdict: *Verdict::ALL.get(usize::try_from(capture.verdict).ok()?)?,
        length: capture.length,
        frame: capture.frame.get(..captured)?.to_vec(),
    })
}
