//! The fast path: an XDP program that checks a push trigger and sends it on to the device.
//!
//! [`path`] is all of it, top to bottom. [`packet`] holds the bounds checks, [`maps`] what is shared with the
//! controller, [`shared`] the access to memory that is shared with other CPUs, `push_common` all formats and
//! the arithmetic.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch, core_intrinsics))]
#![cfg_attr(
    target_arch = "bpf",
    expect(
        internal_features,
        reason = "the only way to compare-and-swap on this target"
    )
)]
#![cfg_attr(
    not(target_arch = "bpf"),
    expect(dead_code, reason = "only the kernel calls the program")
)]
#![expect(unsafe_code, reason = "helpers, maps and frames are raw memory")]
#![warn(clippy::arithmetic_side_effects)]

#[macro_use]
mod global;
#[macro_use]
mod ladder;

mod ack;
mod datagram;
mod maps;
mod nic;
mod outbound;
mod packet;
mod route;
mod shared;
mod steps;
mod tell;
mod watched;

use aya_ebpf::bindings::{xdp_action, xdp_md};
use aya_ebpf::helpers::{bpf_ktime_get_coarse_ns, bpf_redirect};
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;
use datagram::{Datagram, TriggerDatagram, UDP_LEN};
use global::verdict_of;
use maps::{EGRESSES, NEXT_HOPS, POLICIES, count, notes};
use outbound::{Outbound, Tunnel, ip_len, write_noted};
use packet::Frame;
use push_common::maps::{
    AckKey, EventKind, Hop, NextHopRecord, NicConfig, PolicyRecord, SessionControl, TICK_NS,
    tick_of,
};
use push_common::replay;
use push_common::verdict::{Action, Verdict};
use push_common::wire::{MAGIC, MAX_PAYLOAD_LEN, SessionId, TRIGGER_HEADER_LEN};
use shared::{Session, difference, load};
use steps::{
    accept_once, gateway, has_valid_tag, is_allowed, link_to, previous_key, stay_within_rate,
    wake_once,
};
use tell::tell;
use watched::{hand_out, watched};

/// A TTL or hop limit of 1 ends at this gateway.
const LAST_HOP: u8 = 1;

/// Entry and only exit: each packet gets one verdict, which is counted.
#[xdp(frags)]
#[expect(
    clippy::needless_pass_by_value,
    reason = "aya's entry point passes it so"
)]
fn push(context: XdpContext) -> u32 {
    // SAFETY: the context is the kernel's own.
    let frame = unsafe { Frame::new(context.ctx) };
    #[cfg(feature = "ladder")]
    if ladder::ends_before(0) {
        return xdp_action::XDP_DROP;
    }
    let length = frame.len();
    let mut named = 0;
    // SAFETY: that is what it returns.
    let verdict = unsafe { verdict_of(push_path(context.ctx, length as u64, &raw mut named)) };
    count(verdict, length);
    // What names none is most of what isn't ours, and has the least to do.
    if named != 0 && named == watched() {
        hand_out(frame, verdict, named);
    }
    #[cfg(feature = "log")]
    if let Action::Drop = verdict.action() {
        aya_log_ebpf::info!(&context, "dropped: verdict {}", verdict as u32);
    }
    match verdict.action() {
        Action::Pass => xdp_action::XDP_PASS,
        Action::Transmit => xdp_action::XDP_TX,
        Action::Redirect => xdp_action::XDP_REDIRECT,
        Action::Drop => xdp_action::XDP_DROP,
    }
}

global! {
    /// [`path`]; returns the verdict.
    fn push_path(context: *mut xdp_md, length: u64, named: *mut u64) -> u64 {
        if named.is_null() {
            return Verdict::MissingConfiguration as u64;
        }
        // SAFETY: the context is the kernel's own; the caller has given room for the number.
        let (frame, named) = unsafe { (Frame::new(context), &mut *named) };
        let (Ok(verdict) | Err(verdict)) = path(frame, length as usize, named);
        verdict as u64
    }
}

/// The way of a packet: parse, ours?, trigger, session, tag, policy, next hop, replay, rate, send. The value
/// of the session identifier that it names is `named`, once it gets as far.
///
/// Until it's sure that a packet is meant as a trigger, every doubt means that the kernel gets it,
/// untouched. From then on, every doubt means that it's dropped. An acknowledgement, which comes from
/// the other side, goes the same way as far as the tag.
#[inline(always)]
fn path(frame: Frame<'_>, length: usize, named: &mut u64) -> Result<Verdict, Verdict> {
    rung!(1);
    // Parse: Ethernet, VLAN tags, IP, UDP. What isn't ours leaves here, or as soon as it turns out, and nothing of
    // it was changed.
    let datagram = Datagram::find(frame, length)?;

    rung!(2);
    // Ours? What isn't for triggers could be an acknowledgement. (Of a NIC, the verifier knows what it takes.)
    let is_trigger = !nic::takes(NicConfig::ACKS)
        || nic::takes(NicConfig::TRIGGERS) && datagram.is_for_triggers();
    let or_not_ours = move |verdict| {
        if is_trigger {
            verdict
        } else {
            Verdict::NotTrigger
        }
    };

    rung!(3);
    // Trigger: every length has to agree with every other one.
    let trigger_len = datagram.udp_len().wrapping_sub(UDP_LEN);
    if trigger_len < TRIGGER_HEADER_LEN {
        return Err(or_not_ours(Verdict::TriggerTruncated));
    }
    let TriggerDatagram { udp, trigger } = frame
        .get(datagram.udp_at())
        .ok_or_else(|| or_not_ours(Verdict::NotLinear))?;
    let payload_len = usize::from(trigger.payload_length.get());
    if !trigger.is_spoken() {
        return Err(or_not_ours(if trigger.magic == MAGIC {
            Verdict::UnknownVersion
        } else {
            Verdict::BadMagic
        }));
    }
    let is_expected = if is_trigger {
        trigger.flags.is_trigger()
    } else {
        trigger.flags.is_acknowledgement() && payload_len == 0
    };
    if !is_expected {
        return Err(or_not_ours(Verdict::UnknownFlags));
    }
    if payload_len != trigger_len.wrapping_sub(TRIGGER_HEADER_LEN) {
        return Err(or_not_ours(Verdict::TriggerLength));
    }
    if payload_len > MAX_PAYLOAD_LEN {
        return Err(Verdict::PayloadTooLong);
    }

    rung!(4);
    // Session: what belongs together of it was together at one moment.
    *named = trigger.session_id.get();
    let id = SessionId::from_u64(*named);
    let (session, image) = Session::live(id)
        .inspect_err(move |verdict| {
            if is_trigger && matches!(verdict, Verdict::UnknownSession) {
                tell(EventKind::UnknownSession, id, frame, datagram);
            }
        })
        .map_err(or_not_ours)?;
    let next_hop = NEXT_HOPS
        .get(u32::from(image.control().next_hop))
        .ok_or_else(|| or_not_ours(Verdict::MissingConfiguration))?;
    if !is_trigger {
        let [_, destination] = datagram.addresses(frame)?;
        let is_answer = datagram.is_of_version(image.is_v6())
            && (destination, udp.destination.to_bytes()) == gateway(next_hop);
        if !is_answer {
            return Err(Verdict::NotTrigger);
        }
    }
    // SAFETY: has no requirements.
    let now_ns = unsafe { bpf_ktime_get_coarse_ns() };
    if now_ns >= u64::from(session.expires_tick()).wrapping_mul(TICK_NS) {
        return Err(Verdict::Expired);
    }
    let key = if trigger.token_generation == image.control().token_generation {
        image.key
    } else {
        previous_key(id, image.control(), trigger.token_generation)
            .ok_or(Verdict::UnknownTokenGeneration)?
    };
    let sequence = trigger.sequence.get();
    if !replay::in_range(sequence) {
        return Err(Verdict::SequenceOutOfRange);
    }

    rung!(5);
    // Tag: nothing of the session is written, and nothing sent, without a valid one.
    let trigger_at = datagram.udp_at().wrapping_add(UDP_LEN);
    if !has_valid_tag(frame, trigger_at, payload_len, key) {
        tell(EventKind::Forged, id, frame, datagram);
        return Err(Verdict::BadTag);
    }
    let policy = POLICIES
        .get(u32::from(image.control().policy))
        .ok_or(Verdict::MissingConfiguration)?;
    let key = AckKey {
        session: id.to_u64(),
        sequence,
    };
    let flags = trigger.flags;

    if !is_trigger {
        // Acknowledgement: counted once, and on to the server if that wants to know.
        ack::settle(key)?;
        if !policy.has(PolicyRecord::RETURN_ACKS) {
            return Ok(Verdict::AckCounted);
        }
        let interface = ack::turn_around(datagram)?;
        // SAFETY: none of the references to the frame is used from here on; to redirect has no requirements.
        unsafe {
            write_noted(notes()?, frame, datagram)?;
            bpf_redirect(interface, 0);
        }
        return Ok(Verdict::AckReturned);
    }

    rung!(6);
    // Policy: what the application may do.
    if datagram.hop_limit() <= LAST_HOP {
        return Err(Verdict::HopLimit);
    }
    if payload_len > usize::from(policy.max_payload) {
        session.refused();
        return Err(Verdict::PayloadRefused);
    }
    if policy.has(PolicyRecord::SOURCES) && !is_allowed(image.control().policy, frame, datagram) {
        session.refused();
        return Err(Verdict::SourceRefused);
    }

    rung!(7);
    // Next hop: the controller has found it out before.
    let keeps_source =
        image.control().has(SessionControl::KEEP_SOURCE) && datagram.is_of_version(image.is_v6());
    let (source, source_port) = if keeps_source {
        (datagram.addresses(frame)?[0], udp.source.to_bytes())
    } else {
        gateway(next_hop)
    };
    // SAFETY: the field is aligned to a word, and valid as long as the program runs.
    let word: u64 = unsafe { load((&raw const next_hop.hop).cast()) };
    let hop: Hop = bytemuck::must_cast(word);
    // Looked at below, where the frame is sent: whether its link is known, and how many hops it has made then. The
    // compiler and the verifier are not to know that one comes of the other, and what comes out here: the verifier
    // would go through all in between, or behind it, once for each.
    let differs = difference(hop.state.into(), Hop::RESOLVED.into());
    let hops = difference(hop.is_left_to_kernel().into(), 1);
    // Most are resolved. (The compiler would look at the other states first.)
    if difference(hop.state.into(), Hop::RESOLVED.into()) != 0 {
        match hop.state {
            Hop::UNRESOLVED => {
                tell(EventKind::NextHopUnresolved, id, frame, datagram);
                if !next_hop.is_by_main_routes() {
                    return Err(Verdict::NextHopMissing);
                }
            }
            Hop::NO_ROUTE => {
                // A link that is up again, and a route through it, are there before the controller knows.
                let addresses = (source, image.device);
                let ports = [source_port, image.control().device_port];
                if !next_hop.is_by_main_routes()
                    || !route::is_there(frame, image.is_v6() != 0, addresses, ports)?
                {
                    return Err(Verdict::NoRoute);
                }
            }
            _ => return Err(Verdict::MissingConfiguration),
        }
    }
    let egress = EGRESSES
        .get(u32::from(hop.egress))
        .ok_or(Verdict::MissingConfiguration)?;
    if ip_len(image.is_v6(), next_hop, datagram.udp_len()) > usize::from(next_hop.mtu) {
        return Err(Verdict::TooBig);
    }

    rung!(8);
    // Replay: the one who swaps the word is the one who lets the trigger through.
    accept_once(session, sequence).inspect_err(move |verdict| {
        if let Verdict::Replayed = verdict {
            tell(EventKind::ReplayStorm, id, frame, datagram);
        }
    })?;

    rung!(9);
    // Rate, and whether the device has just been woken.
    if policy.interval_ns != 0 {
        stay_within_rate(session, policy, now_ns).inspect_err(move |verdict| {
            if let Verdict::RateExceeded = verdict {
                session.refused();
            }
        })?;
    }
    let now_tick = tick_of(now_ns);
    let before_tick = wake_once(session, policy.window_ticks, now_tick, flags.collapse_key())?;
    let idle_ticks = nic::idle_ticks();
    let idle_at_tick = u64::from(before_tick).wrapping_add(idle_ticks.into());
    if idle_ticks != 0 && before_tick != 0 && u64::from(now_tick) >= idle_at_tick {
        tell(EventKind::FirstAfterIdle, id, frame, datagram);
    }
    if flags.asks_for_acknowledgement() {
        ack::expect(key, frame, datagram);
    }

    rung!(10);
    // Send: the same payload in new headers.
    let link = if differs == 0 {
        link_to(hop, egress)
    } else {
        // The kernel sees to it.
        datagram.link(frame)?
    };
    #[cfg(feature = "by-route")]
    let (link, interface) = {
        let ports = [source_port, image.control().device_port];
        let addresses = [source, image.device];
        route::find(
            frame,
            image.is_v6() != 0,
            addresses,
            ports,
            link,
            egress.interface,
        )?
    };
    let outbound = Outbound {
        link,
        is_v6: image.is_v6() as u8,
        source,
        destination: image.device,
        source_port,
        destination_port: image.control().device_port,
        hop_limit: datagram.hop_limit().wrapping_sub(hops as u8),
        traffic_class: if policy.dscp == PolicyRecord::KEEP_DSCP {
            datagram.traffic_class()
        } else {
            policy.dscp << 2 | datagram.traffic_class() & 3
        },
        has_tunnel: next_hop.has(NextHopRecord::GTPU),
    };
    if outbound.has_tunnel {
        Tunnel::note(next_hop, image.teid)?;
    }
    // SAFETY: none of the references to the frame is used from here on.
    unsafe { outbound.write(frame, datagram) }?;
    session.delivered(length as u64);
    #[cfg(not(feature = "by-route"))]
    let interface = egress.interface;
    if hops == 0 {
        Ok(Verdict::NextHopUnresolved)
    } else if interface == frame.interface() {
        Ok(Verdict::SentBack)
    } else {
        // SAFETY: has no requirements.
        unsafe { bpf_redirect(interface, 0) };
        Ok(Verdict::Redirected)
    }
}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // Code that could panic would not link: the verifier refuses an endless loop.
    loop {}
}

/// Helpers that the kernel offers to GPL-compatible programs only are not out of reach.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(not(target_arch = "bpf"))]
fn main() {}
