//! The packet path once more, as a plain function over bytes and a table of sessions: written from
//! the documents (RFCs 768, 791, 1071, 1624, 8200, IEEE 802.1Q and 802.1ad, TS 29.281, and those of
//! push-common), not from the program, and with no thought of speed. What it and the program
//! disagree about is a bug of one of them.
//!
//! | module | holds |
//! | --- | --- |
//! | [`datagram`] | frames taken apart, and put together |
//! | [`gateway`] | what the maps hold, in collections |
//! | [`random`] | numbers made up from a seed |
//! | [`world`] | gateways made up from them |
//! | [`packet`] | frames described field by field, so that each can be made wrong |
//! | [`mutation`] | what is made wrong |
//! | [`traffic`] | frames made up for a gateway |
//! | [`fuzz`] | the program and the model side by side |
//! | [`program`] | the program, as that sees it |
//! | [`found`] | each difference there ever was |
//! | [`rows`] | frames by name that anybody would agree about |
//! | [`judges`] | the model against etherparse, and the comparison against models that are wrong |

pub(crate) mod datagram;
mod found;
mod fuzz;
pub(crate) mod gateway;
mod judges;
mod mutation;
pub(crate) mod packet;
mod program;
mod random;
mod rows;
mod traffic;
mod world;

use datagram::{Datagram, LinkHeader, OWN_HOP_LIMIT, Rewritten, Way};
use gateway::{Gateway, Pending, address, socket};
use push_common::maps::{
    AckKey, EgressRecord, Hop, NextHopRecord, PolicyRecord, PreviousKey, SessionControl,
    SessionRecord, round_trip_class, tick_of,
};
use push_common::tag::{self, TagKey};
use push_common::verdict::{Action, Verdict};
use push_common::wire::SessionId;
use push_common::{activity, rate, replay};
use std::net::{IpAddr, SocketAddr};

const HEADER_LEN: usize = 40;
const LONGEST_PAYLOAD: usize = 1200;
const ACKNOWLEDGEMENT: u8 = 2;
/// Header and payload of UDP of an acknowledgement.
const ACK_UDP_LEN: usize = 48;

/// What became of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) verdict: Verdict,
    pub(crate) action: Action,
    /// The frame afterwards; as it came unless it goes on its way.
    pub(crate) frame: Vec<u8>,
    /// Index of the interface it leaves by, if it isn't left to the kernel.
    pub(crate) interface: Option<u32>,
}

/// A frame on its way.
struct Sent {
    verdict: Verdict,
    frame: Vec<u8>,
    interface: Option<u32>,
}

/// What a UDP datagram carries, if it has a whole header.
struct Message<'a> {
    magic: &'a [u8],
    version: u8,
    flags: u8,
    token_generation: u8,
    payload_length: usize,
    id: SessionId,
    sequence: u64,
    signed: &'a [u8; 24],
    tag: &'a [u8],
    payload: &'a [u8],
}

impl<'a> Message<'a> {
    fn of(bytes: &'a [u8]) -> Option<Self> {
        let payload = bytes.get(HEADER_LEN..)?;
        Some(Self {
            magic: &bytes[..3],
            version: bytes[3],
            flags: bytes[4],
            token_generation: bytes[5],
            payload_length: usize::from(u16::from_be_bytes([bytes[6], bytes[7]])),
            id: SessionId::from_u64(u64::from_be_bytes(bytes[8..16].try_into().unwrap())),
            sequence: u64::from_be_bytes(bytes[16..24].try_into().unwrap()),
            signed: bytes[..24].try_into().unwrap(),
            tag: &bytes[24..40],
            payload,
        })
    }

    fn has_magic(&self) -> bool {
        self.magic == [0xF5, 0x50, 0x53]
    }
}

impl Gateway {
    /// What becomes of `frame`, which comes in by the NIC with this index at `now_ns`.
    pub(crate) fn receive(&mut self, nic: usize, now_ns: u64, frame: &[u8]) -> Outcome {
        let (verdict, out, interface) = match self.path(nic, now_ns, frame) {
            Ok(sent) => (sent.verdict, sent.frame, sent.interface),
            Err(verdict) => (verdict, frame.to_vec(), None),
        };
        let count = &mut self.nics[nic].by_verdict[verdict as usize];
        count.packets += 1;
        count.bytes += frame.len() as u64;
        Outcome {
            verdict,
            action: verdict.action(),
            frame: out,
            interface,
        }
    }

    fn path(&mut self, nic: usize, now_ns: u64, frame: &[u8]) -> Result<Sent, Verdict> {
        let datagram = Datagram::of(frame)?;
        let here = &self.nics[nic];
        if here.takes_triggers_at(datagram.destination.ip())
            && datagram.destination.port() == self.trigger_port
        {
            self.trigger(nic, now_ns, frame, &datagram)
        } else if here.takes_acks {
            self.acknowledgement(nic, now_ns, &datagram)
        } else {
            Err(Verdict::NotTrigger)
        }
    }

    fn trigger(
        &mut self,
        nic: usize,
        now_ns: u64,
        frame: &[u8],
        datagram: &Datagram,
    ) -> Result<Sent, Verdict> {
        datagram.check_ip_length()?;
        datagram.check_ip_checksum()?;
        datagram.check_udp_length()?;
        datagram.check_udp_checksum_is_there()?;

        let message = Message::of(datagram.udp_payload()).ok_or(Verdict::TriggerTruncated)?;
        if !message.has_magic() {
            return Err(Verdict::BadMagic);
        }
        if message.version != 1 {
            return Err(Verdict::UnknownVersion);
        }
        if message.flags & 0x0E != 0 {
            return Err(Verdict::UnknownFlags);
        }
        if message.payload_length != message.payload.len() {
            return Err(Verdict::TriggerLength);
        }
        if message.payload.len() > LONGEST_PAYLOAD {
            return Err(Verdict::PayloadTooLong);
        }

        let session = self
            .live_session(message.id)
            .ok_or(Verdict::UnknownSession)?;
        let next_hop = self.next_hop(session.control.next_hop)?;
        self.check_authentic(&session, &message, now_ns)?;
        let policy = self.policy(session.control.policy)?;

        if datagram.hop_limit <= 1 {
            return Err(Verdict::HopLimit);
        }
        let slot = message.id.slot();
        if message.payload.len() > usize::from(policy.max_payload) {
            self.count_refused(slot);
            return Err(Verdict::PayloadRefused);
        }
        if policy.has(PolicyRecord::SOURCES)
            && !self.is_allowed(session.control.policy, datagram.source.ip())
        {
            self.count_refused(slot);
            return Err(Verdict::SourceRefused);
        }

        let is_tunnel = next_hop.has(NextHopRecord::GTPU);
        let device = address(
            &session.device_address,
            session.control.has(SessionControl::IPV6),
        );
        let is_ours_alone = next_hop.has(NextHopRecord::REALM) || is_tunnel;
        let resolved = match next_hop.hop.state {
            Hop::RESOLVED => true,
            Hop::UNRESOLVED if is_ours_alone => return Err(Verdict::NextHopMissing),
            Hop::NO_ROUTE if is_ours_alone || !world::kernel_forwards_to(device) => {
                return Err(Verdict::NoRoute);
            }
            Hop::UNRESOLVED | Hop::NO_ROUTE => false,
            _unused => return Err(Verdict::MissingConfiguration),
        };

        let inner = device_datagram(datagram, &session, &next_hop, &policy, resolved);
        let rewritten = if is_tunnel {
            through_tunnel(&inner, &session, &next_hop)
        } else {
            inner
        };
        if rewritten.bytes.len() > usize::from(next_hop.mtu) {
            return Err(Verdict::TooBig);
        }

        self.check_new(slot, message.sequence)?;
        self.check_rate(slot, &policy, now_ns)?;
        self.check_not_absorbed(slot, &policy, message.flags, now_ns)?;

        let record = self.record(slot);
        record.packets = record.packets.wrapping_add(1);
        record.bytes = record.bytes.wrapping_add(frame.len() as u64);
        let asks_for_acknowledgement = message.flags & 1 != 0;
        if asks_for_acknowledgement {
            let key = AckKey {
                session: message.id.to_u64(),
                sequence: message.sequence,
            };
            let pending = Pending {
                sent_ns: now_ns,
                server: datagram.source,
                gateway: datagram.destination.ip(),
                link: datagram.link.clone(),
                interface: self.nics[nic].interface,
            };
            self.pending.insert((key.session, key.sequence), pending);
        }

        if !resolved {
            return Ok(Sent {
                verdict: Verdict::NextHopUnresolved,
                frame: rewritten.frame(&datagram.link, datagram.padding()),
                interface: None,
            });
        }
        let egress = self.egress(next_hop.hop.egress);
        let link = LinkHeader {
            destination: next_hop.hop.mac,
            source: egress.mac[..6].try_into().unwrap(),
            tags: egress.tags[..egress.tag_count as usize].to_vec(),
        };
        Ok(Sent {
            verdict: if egress.interface == self.nics[nic].interface {
                Verdict::SentBack
            } else {
                Verdict::Redirected
            },
            frame: rewritten.frame(&link, datagram.padding()),
            interface: Some(egress.interface),
        })
    }

    fn acknowledgement(
        &mut self,
        nic: usize,
        now_ns: u64,
        datagram: &Datagram,
    ) -> Result<Sent, Verdict> {
        let (message, session) = self
            .acknowledged_session(datagram)
            .ok_or(Verdict::NotTrigger)?;
        self.check_authentic(&session, &message, now_ns)?;
        let policy = self.policy(session.control.policy)?;

        let pending = self
            .pending
            .remove(&(message.id.to_u64(), message.sequence))
            .ok_or(Verdict::AckUnexpected)?;
        let round_trip_us =
            u32::try_from(now_ns.saturating_sub(pending.sent_ns) / 1000).unwrap_or(u32::MAX);
        let record = self.record(message.id.slot());
        record.acknowledged = record.acknowledged.wrapping_add(1);
        record.round_trip_us = if record.round_trip_us == 0 {
            round_trip_us
        } else {
            // RFC 6298, 2.3, with alpha = 1/8.
            ((u64::from(record.round_trip_us) * 7 + u64::from(round_trip_us)) / 8) as u32
        };
        self.nics[nic].round_trips[round_trip_class(round_trip_us)] += 1;

        if !policy.has(PolicyRecord::RETURN_ACKS) {
            return Err(Verdict::AckCounted);
        }
        let (identification, fragment) = datagram.ipv4_fields();
        let way = Way {
            source: SocketAddr::new(pending.gateway, self.trigger_port),
            destination: pending.server,
            class: datagram.class,
            hop_limit: OWN_HOP_LIMIT,
            identification,
            fragment,
            flow_label: datagram.flow_label,
        };
        let link = LinkHeader {
            destination: pending.link.source,
            source: pending.link.destination,
            tags: pending.link.tags,
        };
        Ok(Sent {
            verdict: Verdict::AckReturned,
            frame: way.rewrite(datagram).frame(&link, datagram.padding()),
            interface: Some(pending.interface),
        })
    }

    /// What is in a datagram that is an acknowledgement, and the session it is of. Whatever falls
    /// short of one is somebody else's.
    fn acknowledged_session<'a>(
        &self,
        datagram: &'a Datagram,
    ) -> Option<(Message<'a>, SessionRecord)> {
        datagram.check_ip_length().ok()?;
        datagram.check_ip_checksum().ok()?;
        datagram.check_udp_length().ok()?;
        datagram.check_udp_checksum_is_there().ok()?;
        if datagram.udp_length() != ACK_UDP_LEN {
            return None;
        }
        let message = Message::of(datagram.udp_payload())?;
        if !message.has_magic()
            || message.version != 1
            || message.flags != ACKNOWLEDGEMENT
            || message.payload_length != 0
        {
            return None;
        }
        let session = self.live_session(message.id)?;
        let is_v6 = session.control.has(SessionControl::IPV6);
        let next_hop = self.next_hops.get(&session.control.next_hop)?;
        let registered_with = socket(&next_hop.source, next_hop.source_port, is_v6);
        (datagram.destination == registered_with).then_some((message, session))
    }

    /// The record as packets have to see it: while it is being changed, its first line is in another
    /// place.
    fn live_session(&self, id: SessionId) -> Option<SessionRecord> {
        let record = self.sessions.get(&id.slot())?;
        if record.generation == 0 || record.generation != id.generation() {
            return None;
        }
        if !record.control.has(SessionControl::STAGED) {
            return Some(*record);
        }
        let staged = self.staged.as_ref().expect("it is, if a record says so");
        Some(SessionRecord {
            control: staged.control,
            key: staged.key,
            device_address: staged.device_address,
            teid: staged.teid,
            expires_tick: staged.expires_tick,
            ..*record
        })
    }

    fn check_authentic(
        &self,
        session: &SessionRecord,
        message: &Message,
        now_ns: u64,
    ) -> Result<(), Verdict> {
        if tick_of(now_ns) >= session.expires_tick {
            return Err(Verdict::Expired);
        }
        let key = self
            .key(session, message)
            .ok_or(Verdict::UnknownTokenGeneration)?;
        if message.sequence >= 1 << 39 {
            return Err(Verdict::SequenceOutOfRange);
        }
        if message.tag != tag::tag(key, message.signed, message.payload) {
            return Err(Verdict::BadTag);
        }
        Ok(())
    }

    fn key(&self, session: &SessionRecord, message: &Message) -> Option<TagKey> {
        let current = session.control.token_generation;
        if message.token_generation == current {
            return Some(session.key);
        }
        if !session.control.has(SessionControl::PREVIOUS_TOKEN)
            || message.token_generation != current.wrapping_sub(1)
        {
            return None;
        }
        let &PreviousKey {
            generation,
            token_generation,
            key,
        } = self.previous_keys.get(&message.id.slot())?;
        (generation == session.generation
            && token_generation == u32::from(message.token_generation))
        .then_some(key)
    }

    fn policy(&self, index: u16) -> Result<PolicyRecord, Verdict> {
        self.policies
            .get(&index)
            .copied()
            .ok_or(Verdict::MissingConfiguration)
    }

    fn next_hop(&self, index: u16) -> Result<NextHopRecord, Verdict> {
        self.next_hops
            .get(&index)
            .copied()
            .ok_or(Verdict::MissingConfiguration)
    }

    fn egress(&self, index: u8) -> EgressRecord {
        self.egresses[&index]
    }

    /// Whether a prefix of this policy has this address in it.
    fn is_allowed(&self, policy: u16, source: IpAddr) -> bool {
        let version = if source.is_ipv6() { 6 } else { 4 };
        let source = u128::from_be_bytes(gateway::address_bytes(source));
        self.allowed.iter().any(|(bits, prefix)| {
            let address_bits = bits - 32;
            let differing = u128::from_be_bytes(prefix.address) ^ source;
            let mask = if address_bits == 0 {
                0
            } else {
                u128::MAX << (128 - address_bits)
            };
            let is_its_own = prefix.policy == policy.to_be_bytes() && prefix.version[0] == version;
            is_its_own && differing & mask == 0
        })
    }

    fn record(&mut self, slot: u32) -> &mut SessionRecord {
        self.sessions.get_mut(&slot).expect("it was found before")
    }

    fn count_refused(&mut self, slot: u32) {
        let record = self.record(slot);
        record.refused = record.refused.wrapping_add(1);
    }

    fn check_new(&mut self, slot: u32, sequence: u64) -> Result<(), Verdict> {
        let word = &mut self.record(slot).replay[replay::word_index(sequence)];
        match replay::offer(*word, sequence) {
            replay::Offer::Accept(new) => {
                *word = new;
                Ok(())
            }
            replay::Offer::Replayed => Err(Verdict::Replayed),
            replay::Offer::TooOld => Err(Verdict::SequenceTooOld),
        }
    }

    fn check_rate(&mut self, slot: u32, policy: &PolicyRecord, now_ns: u64) -> Result<(), Verdict> {
        if policy.interval_ns == 0 {
            return Ok(());
        }
        let record = self.record(slot);
        match rate::offer(
            record.full_at_ns,
            now_ns,
            policy.interval_ns,
            policy.tolerance_ns,
        ) {
            Some(full_at_ns) => {
                record.full_at_ns = full_at_ns;
                Ok(())
            }
            None => {
                self.count_refused(slot);
                Err(Verdict::RateExceeded)
            }
        }
    }

    fn check_not_absorbed(
        &mut self,
        slot: u32,
        policy: &PolicyRecord,
        flags: u8,
        now_ns: u64,
    ) -> Result<(), Verdict> {
        let word = &mut self.record(slot).activity;
        match activity::offer(*word, tick_of(now_ns), policy.window_ticks, flags >> 4) {
            activity::Offer::Deliver(new) => {
                *word = new;
                Ok(())
            }
            activity::Offer::Absorb => Err(Verdict::Coalesced),
        }
    }
}

/// The datagram that the device gets, not yet in a tunnel.
fn device_datagram(
    datagram: &Datagram,
    session: &SessionRecord,
    next_hop: &NextHopRecord,
    policy: &PolicyRecord,
    resolved: bool,
) -> Rewritten {
    let is_v6 = session.control.has(SessionControl::IPV6);
    let destination = socket(&session.device_address, session.control.device_port, is_v6);
    let stays_in_family = datagram.destination.is_ipv6() == is_v6;
    let source = if session.control.has(SessionControl::KEEP_SOURCE) && stays_in_family {
        datagram.source
    } else {
        socket(&next_hop.source, next_hop.source_port, is_v6)
    };
    let class = if policy.dscp == PolicyRecord::KEEP_DSCP {
        datagram.class
    } else {
        policy.dscp << 2 | datagram.class & 3
    };
    let (identification, fragment) = datagram.ipv4_fields();
    let way = Way {
        source,
        destination,
        class,
        // The kernel takes off the hop if it is the one to forward.
        hop_limit: datagram.hop_limit - u8::from(resolved),
        identification,
        fragment,
        flow_label: datagram.flow_label,
    };
    way.rewrite(datagram)
}

fn through_tunnel(
    inner: &Rewritten,
    session: &SessionRecord,
    next_hop: &NextHopRecord,
) -> Rewritten {
    let is_v6 = next_hop.has(NextHopRecord::OUTER_IPV6);
    inner.in_gtpu(
        address(&next_hop.outer_source, is_v6),
        address(&next_hop.outer_destination, is_v6),
        session.teid,
    )
}
