//! Steps of the path that take more than a line.

use crate::datagram::{Address, Datagram, Link};
use crate::global::{result_of, word_of};
use crate::maps::{ALLOWED_SOURCES, PREVIOUS_KEYS};
use crate::packet::{self, Frame};
use crate::shared::{Session, Word, difference, load};
use aya_ebpf::bindings::xdp_md;
use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::helpers::bpf_loop;
use core::ffi::c_void;
use push_common::maps::{
    EgressRecord, Hop, NextHopRecord, PolicyRecord, SessionControl, SourcePrefix,
};
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
    let mut key = [0; 2];
    (push_previous_key(id.to_u64(), token_generation.into(), &raw mut key) != 0)
        .then(|| bytemuck::must_cast(key))
}

/// Whether the holder of `key` has signed what is at `trigger_at`.
#[inline(always)]
pub(crate) fn has_valid_tag(
    frame: Frame<'_>,
    trigger_at: usize,
    payload_len: usize,
    key: TagKey,
) -> bool {
    let [k0, k1]: [u64; 2] = bytemuck::must_cast(key);
    let (at, len) = (trigger_at as u64, payload_len as u64);
    push_has_valid_tag(frame.context(), at, len, k0, k1) != 0
}

/// Whether an application's triggers may come from where this one does.
#[inline(always)]
pub(crate) fn is_allowed(policy: u16, frame: Frame<'_>, datagram: Datagram) -> bool {
    push_is_allowed(frame.context(), policy.into(), datagram.to_word()) != 0
}

global! {
    /// [`previous_key`], into `key`; 1 if there is one.
    fn push_previous_key(id: u64, token_generation: u32, key: *mut [u64; 2]) -> u64 {
        let id = SessionId::from_u64(id);
        // SAFETY: the controller never changes an entry, it puts a new one in its place.
        let Some(previous) = (unsafe { PREVIOUS_KEYS.get(id.slot()) }) else {
            return 0;
        };
        let is_it = previous.generation == id.generation()
            && previous.token_generation == token_generation;
        if !is_it || key.is_null() {
            return 0;
        }
        // SAFETY: the caller has given room for it.
        unsafe { *key = bytemuck::must_cast(previous.key) };
        1
    }

    /// [`has_valid_tag`].
    fn push_has_valid_tag(context: *mut xdp_md, trigger_at: u64, payload_len: u64, k0: u64, k1: u64) -> u64 {
        // SAFETY: the context is the kernel's own.
        let frame = unsafe { Frame::new(context) };
        let (trigger_at, payload_len) = (trigger_at as usize, payload_len as usize);
        let Some(signed) = frame.get::<[[u8; 8]; SIGNED_LEN / 8]>(trigger_at) else {
            return 0;
        };
        let mut mac = Mac::new(bytemuck::must_cast([k0, k1]));
        for word in signed {
            mac.absorb_word(u64::from_le_bytes(*word));
        }
        let payload_at = trigger_at.wrapping_add(TRIGGER_HEADER_LEN);
        mac = packet::absorb_payload(frame, mac, payload_at, payload_len);
        let end = match payload_len % 8 {
            0 => Some(0),
            _ => frame.word_before(payload_at.wrapping_add(payload_len)),
        };
        let Some(end) = end else {
            return 0;
        };
        let expected = mac.finish(end, SIGNED_LEN.wrapping_add(payload_len));
        // Last, so that only one branch comes after it: that on whether it is the right one.
        let Some(trigger) = frame.get::<TriggerHeader>(trigger_at) else {
            return 0;
        };
        let [low, high] = tag::words(trigger.tag);
        // Without a look at one half by itself: the time it takes says nothing about where they differ.
        u64::from(difference(expected[0], low) | difference(expected[1], high) == 0)
    }

    /// [`is_allowed`].
    fn push_is_allowed(context: *mut xdp_md, policy: u32, datagram: u64) -> u64 {
        // SAFETY: as above.
        let frame = unsafe { Frame::new(context) };
        let datagram = Datagram::from_word(datagram);
        let Ok([source, _]) = datagram.addresses(frame) else {
            return 0;
        };
        let prefix = SourcePrefix::of(policy as u16, datagram.is_v6(), bytemuck::cast(source));
        let key = Key::new(SourcePrefix::BITS, prefix);
        u64::from(ALLOWED_SOURCES.get(&key).is_some())
    }
}

/// Address and port of the gateway, as the device knows it. (Read as volatile, so that the compiler doesn't read them
/// together with what else could be the source, by a pointer to either.)
#[inline(always)]
pub(crate) fn gateway(next_hop: &NextHopRecord) -> (Address, [u8; 2]) {
    // SAFETY: the fields are aligned, and valid as long as the program runs.
    let (source, port): (Address, u16) = unsafe {
        (
            load((&raw const next_hop.source).cast()),
            load((&raw const next_hop.source_port).cast()),
        )
    };
    (source, port.to_ne_bytes())
}

/// Destination, source and tags of a frame to the next hop.
#[inline(always)]
pub(crate) fn link_to(hop: Hop, egress: &EgressRecord) -> Link {
    Link {
        to: bytemuck::must_cast(hop),
        // SAFETY: the fields are aligned, and valid as long as the program runs.
        from: unsafe { load((&raw const egress.mac).cast()) },
        // SAFETY: as above.
        tags: unsafe { load((&raw const egress.tags).cast()) },
        tag_count: (egress.tag_count & 3).into(),
    }
}

/// Accepts `sequence` if no CPU has accepted it before.
#[inline(always)]
pub(crate) fn accept_once(session: Session, sequence: u64) -> Result<(), Verdict> {
    let word = session.replay(replay::word_index(sequence));
    match accept(word, sequence) {
        Some(outcome) => outcome,
        None => result_of(push_accept(word.as_ptr(), sequence)),
    }
    .map(|_| ())
}

/// Takes a trigger out of the session's bucket, if one is in it.
#[inline(always)]
pub(crate) fn stay_within_rate(
    session: Session,
    policy: &PolicyRecord,
    now_ns: u64,
) -> Result<(), Verdict> {
    let word = session.full_at_ns();
    let (interval_ns, tolerance_ns) = (policy.interval_ns, policy.tolerance_ns);
    match take(word, now_ns, interval_ns, tolerance_ns) {
        Some(outcome) => outcome,
        None => result_of(push_take(word.as_ptr(), now_ns, interval_ns, tolerance_ns)),
    }
    .map(|_| ())
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
    match wake(word, window_ticks, now_tick, collapse_key) {
        Some(outcome) => outcome,
        None => {
            let collapse_key = collapse_key.into();
            result_of(push_wake(
                word.as_ptr(),
                window_ticks,
                now_tick,
                collapse_key,
            ))
        }
    }
    .map(|tick| tick as u32)
}

/// One attempt; `None` if another CPU has changed the word meanwhile.
#[inline(always)]
fn accept(word: Word, sequence: u64) -> Option<Result<u64, Verdict>> {
    let before = word.load();
    match replay::offer(before, sequence) {
        Offer::Accept(after) => word.swap_if(before, after).then_some(Ok(0)),
        Offer::Replayed => Some(Err(Verdict::Replayed)),
        Offer::TooOld => Some(Err(Verdict::SequenceTooOld)),
    }
}

/// As [`accept`].
#[inline(always)]
fn take(
    word: Word,
    now_ns: u64,
    interval_ns: u64,
    tolerance_ns: u64,
) -> Option<Result<u64, Verdict>> {
    let before = word.load();
    match rate::offer(before, now_ns, interval_ns, tolerance_ns) {
        Some(after) => word.swap_if(before, after).then_some(Ok(0)),
        None => Some(Err(Verdict::RateExceeded)),
    }
}

/// As [`accept`].
#[inline(always)]
fn wake(
    word: Word,
    window_ticks: u32,
    now_tick: u32,
    collapse_key: u8,
) -> Option<Result<u64, Verdict>> {
    let before = word.load();
    match activity::offer(before, now_tick, window_ticks, collapse_key) {
        activity::Offer::Absorb => Some(Err(Verdict::Coalesced)),
        // Most of the time nothing changes from one trigger to the next.
        activity::Offer::Deliver(after) => (after == before || word.swap_if(before, after))
            .then_some(Ok(activity::last_tick(before).into())),
    }
}

/// Attempts after the first one.
struct Again<A> {
    word: Word,
    attempt: A,
    outcome: u64,
}

impl<A: Fn(Word) -> Option<Result<u64, Verdict>>> Again<A> {
    /// Goes on until one comes to something. (The loop is the kernel's, which verifies an attempt once.)
    #[inline(always)]
    fn run(word: *mut u64, attempt: A) -> u64 {
        let mut again = Self {
            // SAFETY: the caller has it from `Word::as_ptr`.
            word: unsafe { Word::from_ptr(word) },
            attempt,
            outcome: word_of(Err(Verdict::Contended)),
        };
        if !word.is_null() {
            // SAFETY: the kernel calls `once` with the number of a round, and `again`, on this stack.
            unsafe {
                let body: extern "C" fn(u32, &mut Self) -> i64 = Self::once;
                let rounds = ATTEMPTS.wrapping_sub(1);
                bpf_loop(rounds, body as *mut c_void, (&raw mut again).cast(), 0);
            }
        }
        again.outcome
    }

    /// One attempt; 1 ends the loop.
    extern "C" fn once(_round: u32, again: &mut Self) -> i64 {
        match (again.attempt)(again.word) {
            Some(outcome) => {
                again.outcome = word_of(outcome);
                1
            }
            None => 0,
        }
    }
}

global! {
    /// [`accept`], again.
    fn push_accept(word: *mut u64, sequence: u64) -> u64 {
        Again::run(word, move |word| accept(word, sequence))
    }

    /// [`take`], again.
    fn push_take(word: *mut u64, now_ns: u64, interval_ns: u64, tolerance_ns: u64) -> u64 {
        Again::run(word, move |word| take(word, now_ns, interval_ns, tolerance_ns))
    }

    /// [`wake`], again.
    fn push_wake(word: *mut u64, window_ticks: u32, now_tick: u32, collapse_key: u32) -> u64 {
        Again::run(word, move |word| wake(word, window_ticks, now_tick, collapse_key as u8))
    }
}
