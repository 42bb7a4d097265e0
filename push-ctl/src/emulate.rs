//! Devices as a developer of a push client would want them: they register, ask for sessions, check the
//! triggers they receive, acknowledge them, stay registered, and do what the gateway asks of them.
//!
//! # Layout
//!
//! | module | holds |
//! | --- | --- |
//! | [`message`] | the requests that devices make and get, in CoAP |
//! | [`device`] | one device, as a pure state machine: no socket, no clock |
//! | [`news`] | what happens to it |
//! | [`radio`] | the one socket of any number of devices, each at an address of its own |
//! | [`fleet`] | devices, a radio and a clock put together |
//! | [`tally`] | how often things happened, and how long they took |
//!
//! One socket is for everything: the first byte of a datagram tells triggers (`F5`) from CoAP.

pub mod device;
pub mod fleet;
mod message;
pub mod news;
pub mod radio;
pub mod tally;
