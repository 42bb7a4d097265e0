//! What can become of a packet.
//!
//! The one error type of the packet path, the index of its counters, the label in the command line
//! and in metrics, and what tests expect.

/// What is done with a packet that gets a verdict: the XDP action.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Left to the kernel (`XDP_PASS`).
    Pass,
    /// Sent out of the NIC it came in by (`XDP_TX`).
    Transmit,
    /// Sent out of another NIC (`XDP_REDIRECT`).
    Redirect,
    /// Dropped (`XDP_DROP`).
    Drop,
}

impl Action {
    /// Stable name.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Transmit => "transmit",
            Self::Redirect => "redirect",
            Self::Drop => "drop",
        }
    }
}

macro_rules! verdicts {
    ($( $action:ident { $( $name:ident $label:literal $meaning:literal )* } )*) => {
        /// What became of a packet. Each packet gets exactly one.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u32)]
        pub enum Verdict {
            $($( #[doc = $meaning] $name, )*)*
        }

        impl Verdict {
            /// Whether the trigger went on its way to the device.
            #[inline(always)]
            #[must_use]
            pub const fn is_delivery(self) -> bool {
                matches!(self, Self::SentBack | Self::Redirected | Self::NextHopUnresolved)
            }

            /// All verdicts; each stands at the index of its counter.
            pub const ALL: &[Self] = &[ $($( Self::$name, )*)* ];

            /// What is done with such a packet.
            #[inline(always)]
            #[must_use]
            pub const fn action(self) -> Action {
                match self { $( $( Self::$name )|* => Action::$action, )* }
            }

            /// Stable name, in `snake_case`.
            #[must_use]
            pub const fn label(self) -> &'static str {
                match self { $($( Self::$name => $label, )*)* }
            }

            /// One sentence on what it means, and what to look at.
            #[must_use]
            pub const fn meaning(self) -> &'static str {
                match self { $($( Self::$name => $meaning, )*)* }
            }
        }
    };
}

verdicts! {
    Pass {
        NotIp "not_ip" "Neither IPv4 nor IPv6 follows the Ethernet header and up to two VLAN tags (ARP, …)."
        Truncated "truncated" "The frame ends before its headers do; the kernel discards and counts it."
        UnusualIpHeader "unusual_ip_header" "IPv4 with options, more extension headers of IPv6 than are followed, or an IP version or header length that can't be."
        Fragment "fragment" "A fragment; triggers are never fragmented."
        NotUdp "not_udp" "Another protocol than UDP follows the IP header."
        NotTrigger "not_trigger" "UDP, but not to an address and port on which this NIC takes triggers, and no acknowledgement."
        NextHopUnresolved "next_hop_unresolved" "Delivered by the kernel: rewritten, but the next hop isn't known yet, or the kernel has just got a route there. It finds the next hop out if `accept_local` is on."
    }
    Transmit {
        SentBack "sent_back" "Delivered: rewritten and sent out of the NIC it came in by."
    }
    Redirect {
        Redirected "redirected" "Delivered: rewritten and sent out of another NIC."
        AckReturned "ack_returned" "An acknowledgement, counted for its session and sent on to the server of its trigger."
    }
    Drop {
        IpLength "ip_length" "The IP header claims more bytes than the frame has."
        IpChecksum "ip_checksum" "The checksum of the IPv4 header is wrong."
        UdpLength "udp_length" "The UDP length is not what the IP header leaves for it."
        NoUdpChecksum "no_udp_checksum" "No UDP checksum, which IPv6 doesn't permit (RFC 8200, 8.1)."
        TriggerTruncated "trigger_truncated" "Shorter than a trigger header; something else talks to the trigger port."
        BadMagic "bad_magic" "Doesn't begin with the magic of a trigger; something else talks to the trigger port."
        UnknownVersion "unknown_version" "A version of the trigger format that this gateway doesn't speak."
        UnknownFlags "unknown_flags" "A trigger with flags that this gateway doesn't know, or with those of an acknowledgement."
        PayloadTooLong "payload_too_long" "The payload is longer than 1,200 bytes."
        TriggerLength "trigger_length" "The payload length in the trigger is not that of the datagram."
        UnknownSession "unknown_session" "No authorised session has this identifier: never authorised, ended, or guessed."
        SessionChanging "session_changing" "The controller kept changing the session's record; the next trigger will see it whole."
        Expired "expired" "The session's lifetime is over; the device has to refresh its registration."
        UnknownTokenGeneration "unknown_token_generation" "Signed with a token that has been rotated out, or not yet been given out."
        SequenceOutOfRange "sequence_out_of_range" "The sequence number is 2^39 or more."
        BadTag "bad_tag" "The tag is wrong: forged, damaged, or signed with another session's token."
        HopLimit "hop_limit" "The TTL or hop limit is used up."
        PayloadRefused "payload_refused" "Longer than the policy of its application permits payloads to be."
        SourceRefused "source_refused" "From an address that the policy of its application doesn't permit."
        NoRoute "no_route" "No route leads to the device, or the link on the way to it is down; the kernel was asked, unless it is a realm or a tunnel."
        NextHopMissing "next_hop_missing" "The next hop of the device's realm isn't known yet, and the kernel's own routes don't lead there."
        TooBig "too_big" "Longer than the MTU on the way to the device."
        Replayed "replayed" "This sequence number was let through before."
        SequenceTooOld "sequence_too_old" "The sequence number is more than the permitted lag behind the newest one."
        RateExceeded "rate_exceeded" "More triggers for the session than the policy of its application permits."
        Coalesced "coalesced" "Absorbed: the device has just got a trigger with the same collapse key."
        Contended "contended" "Other CPUs kept changing the session's state; does one session get triggers at a huge rate?"
        NotLinear "not_linear" "The driver has spread the trigger over several buffers, and the path reads only the first one; switch header splitting off."
        NoHeadroom "no_headroom" "The driver leaves no room in front of the frame for the headers to be added."
        AckCounted "ack_counted" "An acknowledgement, counted for its session."
        AckUnexpected "ack_unexpected" "An acknowledgement that isn't waited for: counted before, too late, or of a trigger that didn't ask for one."
        MissingConfiguration "missing_configuration" "The record refers to a next hop or policy that isn't there, or a map is missing: report this as a bug."
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;
    use crate::maps::VERDICT_SLOTS;
    use std::collections::HashSet;

    #[test]
    fn each_stands_at_its_index_and_has_a_label_of_its_own() {
        let mut labels = HashSet::new();
        for (index, &verdict) in Verdict::ALL.iter().enumerate() {
            assert_eq!(verdict as usize, index);
            assert!(labels.insert(verdict.label()));
            assert!(
                verdict
                    .label()
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
            );
            assert!(
                verdict.meaning().ends_with('.') || verdict.meaning().ends_with(['?', 'k', 'g'])
            );
        }
        assert!(Verdict::ALL.len() <= VERDICT_SLOTS);
    }
}
