//! Integration tests, against the kernel that runs. They need root; see README.md.
//!
//! | module | shows |
//! | --- | --- |
//! | [`refusals`] | which packets are refused, frame by frame |
//! | [`verdicts`] | what becomes of those that aren't |
//! | [`attachment`] | how the program gets onto NICs, and survives |
//! | [`delivery`] | triggers from socket to socket, through namespaces |
//! | [`provisioning`] | devices and application servers, played by libcoap and curl |
//! | [`coap`] | the internal interface in detail |
//! | [`command_line`] | the operator's command line against a running daemon |
//! | [`bad_input`] | what is refused at the start and at the interfaces, and how |

mod attachment;
mod bad_input;
mod coap;
mod command_line;
mod datagram;
mod delivery;
mod gateway;
mod provisioning;
mod refusals;
mod story;
mod verdicts;
