//! What the two halves of push agree on, byte for byte.
//!
//! No I/O, no allocation, no clock: this crate compiles for the BPF target as it does for the host.
//!
//! | module | holds |
//! | --- | --- |
//! | [`wire`] | headers as they are on the wire, the push trigger and its session identifier |
//! | [`tag`] | the MAC over a trigger |
//! | [`token`] | the secret an application holds, and the key derived from it (feature `token`) |
//! | [`replay`] | the window that lets each sequence number through once |
//! | [`rate`] | the limit on how often triggers are let through |
//! | [`activity`] | when a session was last paged, and whether another page would be one too many |
//! | [`checksum`] | incremental Internet checksums |
//! | [`verdict`] | what can become of a packet |
//! | [`maps`] | names, sizes and records of the BPF maps |
//! | [`watch`] | those by which an operator watches a session |

#![no_std]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]
#![cfg_attr(not(target_arch = "bpf"), forbid(unsafe_code))]

pub mod activity;
pub mod checksum;
pub mod maps;
pub mod rate;
pub mod replay;
pub mod tag;
#[cfg(feature = "token")]
pub mod token;
pub mod verdict;
pub mod watch;
pub mod wire;
