//! Each difference between the program and the model that there ever was: what was sent, and what is
//! to become of it.
//!
//! A row doesn't name a seed, as seeds come to mean something else when the generator changes. It
//! describes its frames field by field, on the gateway of [`rows::gateway`](super::rows::gateway).

use super::packet::{Checksum, Extension};
use super::rows::{Row, ack, by_v6, changed, routing, slot};
use push_common::verdict::Verdict;
use push_common::wire::SessionId;

/// All of them, the latest one last.
pub(crate) const ROWS: &[Row] = &[
    Row {
        name: "extension_headers_of_more_than_256_bytes",
        packets: |g| {
            let long = Extension {
                body: vec![0; 31 * 8 - 2],
                length: None,
                ..routing(0)
            };
            let extensions = vec![long, routing(0), routing(0)];
            vec![changed(by_v6(g, slot::V6, 9), |p| {
                p.extensions = extensions;
            })]
        },
        verdict: Verdict::UnusualIpHeader,
    },
    Row {
        name: "acknowledgement_with_a_damaged_ip_header",
        packets: |g| {
            vec![changed(ack(g, slot::V4, 9), |p| {
                p.ip_checksum = Checksum::Is(1);
            })]
        },
        verdict: Verdict::NotTrigger,
    },
    Row {
        name: "acknowledgement_of_a_session_whose_next_hop_is_beyond_the_table",
        packets: |g| {
            let beyond = SessionId::new(slot::BEYOND, g.sessions[&slot::BEYOND].generation);
            vec![changed(ack(g, slot::V4, 9), |p| {
                p.message.session = beyond.to_u64();
            })]
        },
        verdict: Verdict::NotTrigger,
    },
];
