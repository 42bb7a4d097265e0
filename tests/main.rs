//! Integration tests, against the kernel that runs. They need root; see README.md.
//!
//! | module | shows |
//! | --- | --- |
//! | [`verdicts`] | what becomes of a packet, frame by frame |
//! | [`attachment`] | how the program gets onto NICs, and survives |
//! | [`delivery`] | triggers from socket to socket, through namespaces |
//! | [`provisioning`] | devices and application servers, played by libcoap and curl |
//! | [`command_line`] | the operator's command line against a running daemon |
//! | [`bad_input`] | what is refused at the start and at the interfaces, and how |

mod attachment;
mod bad_input;
mod command_line;
mod delivery;
mod gateway;
mod provisioning;
mod story;
mod verdicts;
