//! What others say, who know nothing of this program: tshark's dissectors, scapy, the kernel's own
//! stack, etherparse.
//!
//! | module | shows |
//! | --- | --- |
//! | [`dissected`] | what tshark finds in each framing that the program makes |
//! | [`by_scapy`] | that triggers made by a script, from the documents alone, are triggers |
//! | [`stack`] | what the device's and the server's kernels make of what they get |
//! | [`tunnelled`] | what a GTP-U peer gets |
//! | [`changes`] | how soon triggers go another way when the network changes |
//!
//! They are shown what is wrong, too, and have to say so.

mod by_scapy;
pub(crate) mod capture;
mod changes;
mod dissected;
mod stack;
mod tunnelled;
