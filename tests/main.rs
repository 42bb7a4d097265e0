//! Integration tests, against the kernel that runs. They need root; see README.md.
//!
//! | module | shows |
//! | --- | --- |
//! | [`refusals`] | which packets are refused, frame by frame |
//! | [`verdicts`] | what becomes of those that aren't |
//! | [`framing`] | any framing in, any framing out |
//! | [`policies`] | what applications may do, and what devices answer |
//! | [`instructions`] | how many instructions packets take, and that they don't get more |
//! | [`attachment`] | how the program gets onto NICs, and survives |
//! | [`nics`] | that NICs come and go while triggers flow |
//! | [`reload`] | that the configuration is read anew, all of it or nothing |
//! | [`watched`] | what is handed out of packets that name a session that is watched |
//! | [`trace`] | what is said would become of a trigger, and does |
//! | [`transfer`] | that sessions go on elsewhere, and no trigger is accepted again there |
//! | [`races`] | that two CPUs, restarts and changes at any moment make no difference |
//! | [`model`] | that the program does what a second path, written from the documents, does |
//! | [`judged`] | what tshark, scapy and the kernel's own stack say of what it sends |
//! | [`delivery`] | triggers from socket to socket, through namespaces |
//! | [`provisioning`] | devices and application servers, played by libcoap and curl |
//! | `logging` | what the program logs, with the feature `log` |
//! | [`app_servers`] | by what application servers identify themselves, and what becomes of them when they fail |
//! | [`coap`] | the internal interface in detail |
//! | `coaps` | the same over DTLS, if push-ctl is built with that feature |
//! | [`foreign_devices`] | devices whose push clients are written with aiocoap and npm's coap |
//! | [`command_line`] | the operator's command line against a running daemon |
//! | [`integrators`] | what those who integrate are given: emulated devices, a sender, a probe |
//! | [`checkup`] | what an operator looks with when something is wrong |
//! | [`service`] | the daemon as a service: its unit, its user, its watchdog, its log |
//! | [`watching`] | events, the audit log, rates and metrics of a daemon at work |
//! | [`hostile`] | that peers who mean no good come to nothing |
//! | [`faults`] | disks, limits, memory and clocks that fail: what is acknowledged stays, and triggers flow |
//! | [`limits`] | one session, application, realm or next hop too many: that is told, and triggers flow |
//! | [`secrecy`] | that only the daemon gets at what it has, and no secret gets out |
//! | [`bad_input`] | what is refused at the start and at the interfaces, and how |
//!
//! What gateways are known to get wrong, and which tests would see it here:
//!
//! | failure | test |
//! | --- | --- |
//! | no program on the NIC while the daemon starts anew | `delivery::killing_the_daemon_loses_no_trigger_and_the_next_one_takes_over` |
//! | everything is passed to the kernel, and no counter moves | `verdicts::received_is_the_sum_of_all_verdicts`, `verdicts::the_kernel_gets_a_rewritten_trigger_while_the_next_hop_is_unknown` |
//! | a rate limiter that races | `races::rate::of_a_burst_from_two_cpus_not_one_more_is_let_through` |
//! | a write to a map that is missing, and nobody notices | `provisioning::only_a_validated_session_is_in_the_data_plane`, `provisioning::what_somebody_has_changed_in_the_kernel_is_told_of_and_mended_at_the_next_start` |
//! | rules that are lost on a restart | `provisioning::a_restart_brings_everything_back` |
//! | sessions in the kernel that nobody knows of | `provisioning::a_session_that_the_store_does_not_know_is_taken_out_of_the_data_plane` |
//! | a table larger than the object says is refused (`E2BIG`) | `attachment::a_table_may_be_larger_than_the_object_says_and_its_last_slot_is_used` |

mod app_servers;
mod attachment;
mod bad_input;
mod checkup;
mod coap;
#[cfg(feature = "coaps")]
mod coaps;
mod command_line;
mod datagram;
mod delivery;
mod faults;
mod foreign_devices;
mod framing;
mod gateway;
mod hostile;
mod instructions;
mod integrators;
mod judged;
mod limits;
#[cfg(feature = "log")]
mod logging;
mod model;
mod nics;
mod policies;
mod provisioning;
mod races;
mod refusals;
mod reload;
mod secrecy;
mod service;
mod story;
mod trace;
mod transfer;
mod verdicts;
mod watched;
mod watching;
