//! Tasks of the workspace, and what its tests share with them.
//!
//! | module | holds |
//! | --- | --- |
//! | [`setup`] | everything that building, running and testing needs |
//! | [`lab`] | a gateway, devices and application servers in network namespaces |
//! | [`traffic`] | a generator of triggers, and a sink that judges what arrives |
//! | [`push_client`] | how the demo sees what arrives at a device |
//! | [`clients`] | libcoap's client, curl and the operator, who play the parties |
//! | [`emulated`] | devices that `push-ctl emulate device` plays |
//! | [`export`] | any number of sessions, to be imported |
//! | [`demo`] | the whole story in a minute, told and checked |
//! | [`check`] | the tests, and what CI runs |
//! | [`fuzz`] | what hostile peers send, made up |
//! | [`dist`] | push-ctl as a Debian package |
//! | [`kernels`] | the tests of the path on other kernels, and on another driver |
//! | [`reproduce`] | the XDP program, built twice and compared |
//! | [`soak`] | what goes wrong seldom, looked for at length |
//! | [`bench`] | the benchmarks, and the statistics they share |
//!
//! This crate builds with rustup's stable toolchain and nothing else: it is what fetches the rest.

#![forbid(unsafe_code)]

pub mod bench;
pub mod check;
pub mod child;
pub mod clients;
pub mod demo;
pub mod dist;
pub mod emulated;
pub mod export;
pub mod fuzz;
pub mod kernels;
pub mod lab;
pub mod push_client;
pub mod reproduce;
pub mod setup;
pub mod soak;
pub mod traffic;
pub mod workspace;
