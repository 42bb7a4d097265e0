//! Steps of the path that take more than a line.

use crate::datagram::{Datagram, Link};
use crate::maps::{ALLOWED_SOURCES, PREVIOUS_KEYS};
use crate::packet::{self, Frame};
use crate::shared::{Session, load};
use crate::tell::tell;
use aya_ebpf::btf_maps::lpm_trie::Key;
use push_common::maps::{EgressRecord, EventKind, Hop, PolicyRecord, SessionControl, SourcePrefix};
use push_common::replay::{self, Offer};
use push_common::tag::{self, Mac, TagKey};
use push_common::verdict::Verdict;
use push_common::wire::{SIGNED_LEN, SessionId, TRIGGER_HEADER_LEN, TriggerHeader};
use push_common::{activity, rate};

/// Attempts at a word of a session that other CPUs change at the same time. One fails only if another
/// CPU has just had success with the same word.
const ATTEMPTS: u32 = 8;

/// The key of the token generation before the current one, if that is asked for and still valid.
#[inline(always)]
pub(crate) fn previous_key(
    id: SessionId,
    control: SessionControl,
    token_generation: u8,
) -> Option<TagKey> {
    if !control.has(SessionControl::PREVIOUS_TOKEN)
        || token_generation != control.token_generation.wrapping_sub(1)
    {
        return None;
    }
    // SAFETY: the controller never changes an entry, it puts a new one in its place.
    let previous = unsafe { PREVIOUS_KEYS.get(id.slot()) }?;
    let is_it = previous.generation == id.generation()
        && previous.token_generation == u32::from(token_generation);
    is_it.then_some(previous.key)
}

/// Whether the holder of `key` has signed what is at `trigger_at`. (A function of its own for its stack.)
#[inline(never)]
pub(crate) fn has_valid_tag(
    frame: Frame<'_>,
    trigger_at: usize,
    payload_len: usize,
    key: &TagKey,
) -> bool {
    let Some(trigger) = frame.get::<TriggerHeader>(trigger_at) else {
        return false;
    };
    let Some(signed) = frame.get::<[[u8; 8]; SIGNED_LEN / 8]>(trigger_at) else {
        return false;
    };
    let mut mac = Mac::new(*key);
    for word in signed {
        mac.absorb_word(u64::from_le_bytes(*word));
    }
    let mut end = 0;
    if payload_len > 0 {
        let payload_at = trigger_at.wrapping_add(TRIGGER_HEADER_LEN);
        (mac, end) = packet::absorb_payload(frame, mac, payload_at, payload_len);
    }
    let expected = mac.finish(end, SIGNED_LEN.wrapping_add(payload_len));
    tag::equal(expected, tag::words(trigger.tag))
}

/// Whether an application's triggers may come from where this one does.
#[inline(always)]
pub(crate) fn is_allowed(policy: u16, datagram: &Datagram) -> bool {
    let prefix = SourcePrefix::of(policy, datagram.is_v6, bytemuck::cast(datagram.source));
    ALLOWED_SOURCES
        .get(&Key::new(SourcePrefix::BITS, prefix))
        .is_some()
}

/// Destination, source and tags of a frame to the next hop.
#[inline(always)]
pub(crate) fn link_to(hop: Hop, egress: &EgressRecord) -> Link {
    let to: [u32; 2] = bytemuck::must_cast(hop);
    // SAFETY: the field is aligned, and valid as long as the program runs.
    let from: [u32; 2] =
        bytemuck::must_cast(unsafe { load((&raw const egress.mac).cast::<u64>()) });
    let [outer, inner] = egress.tags;
    Link {
        macs: [
            to[0],
            to[1] & 0xFFFF | from[0] << 16,
            from[0] >> 16 | from[1] << 16,
        ],
        tags: [u32::from_ne_bytes(outer), u32::from_ne_bytes(inner)],
        tag_count: (egress.tag_count & 3) as usize,
    }
}

/// Accepts `sequence` if no CPU has accepted it before.
#[inline(always)]
pub(crate) fn accept_once(
    session: Session,
    sequence: u64,
    id: SessionId,
    datagram: &Datagram,
) -> Result<(), Verdict> {
    let word = session.replay(replay::word_index(sequence));
    for _ in 0..ATTEMPTS {
        let before = word.load();
        match replay::offer(before, sequence) {
            Offer::Accept(after) => {
                if word.swap_if(before, after) {
                    return Ok(());
                }
            }
            Offer::Replayed => {
                tell(EventKind::ReplayStorm, id, datagram);
                return Err(Verdict::Replayed);
            }
            Offer::TooOld => return Err(Verdict::SequenceTooOld),
        }
    }
    Err(Verdict::Contended)
}

/// Takes a trigger out of the session's bucket, if one is in it.
#[inline(always)]
pub(crate) fn stay_within_rate(
    session: Session,
    policy: &PolicyRecord,
    now_ns: u64,
) -> Result<(), Verdict> {
    let word = session.full_at_ns();
    for _ in 0..ATTEMPTS {
        let before = word.load();
        let Some(after) = rate::offer(before, now_ns, policy.interval_ns, policy.tolerance_ns)
        else {
            session.refused();
            return Err(Verdict::RateExceeded);
        };
        if word.swap_if(before, after) {
            return Ok(());
        }
    }
    Err(Verdict::Contended)
}

/// Notes the delivery, unless a trigger with the same collapse key has just woken the device. Returns the
/// tick of the delivery before.
#[inline(always)]
pub(crate) fn wake_once(
    session: Session,
    window_ticks: u32,
    now_tick: u32,
    collapse_key: u8,
) -> Result<u32, Verdict> {
    let word = session.activity();
    for _ in 0..ATTEMPTS {
        let before = word.load();
        match activity::offer(before, now_tick, window_ticks, collapse_key) {
            activity::Offer::Absorb => return Err(Verdict::Coalesced),
            activity::Offer::Deliver(after) => {
                // Most of the time nothing changes from one trigger to the next.
                if after == before || word.swap_if(before, after) {
                    return Ok(activity::last_tick(before));
                }
            }
        }
    }
    Err(Verdict::Contended)
}
