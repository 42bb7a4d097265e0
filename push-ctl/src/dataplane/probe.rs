//! Runs a program by hand, on one frame after the other (`BPF_PROG_TEST_RUN`).

use super::Attached;
use anyhow::{Context, Result};
use aya::programs::{TestRun as _, TestRunOptions, Xdp};
use push_common::maps::PROGRAM;
use std::sync::Arc;
use std::time::Duration;

/// Bytes that a program may put in front of a frame: the headroom that drivers leave.
const HEADROOM_BYTES: usize = 256;

/// The program of a NIC, to run by hand on any thread. It stays the one that was attached when this was
/// made, on the maps that it shares with those that come after it.
#[derive(Clone)]
pub struct Prober(pub(super) Arc<Attached>);

impl Prober {
    /// Runs the program once, on the CPU that this thread is on, on `frame`, as if it had come in by its
    /// NIC. Returns the XDP action as a number, and the time the program took; the frame as it is afterwards
    /// is in `out`. The thread has to be in the network namespace of the NIC.
    ///
    /// # Errors
    ///
    /// The kernel refuses to (a frame has to have at least 14 bytes).
    pub fn run(&self, frame: &[u8], out: &mut Vec<u8>) -> Result<(u32, Duration)> {
        // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
        let context = [0, u32::try_from(frame.len())?, 0, self.0.interface, 0, 0];
        out.resize(frame.len() + HEADROOM_BYTES, 0);
        let result = program(&self.0)?.test_run(TestRunOptions {
            data_in: Some(frame),
            data_out: Some(out),
            ctx_in: Some(bytemuck::bytes_of(&context)),
            ..TestRunOptions::new()
        })?;
        out.truncate(result.data_size_out as usize);
        Ok((result.return_value, result.duration))
    }
}

pub(super) fn program(attached: &Attached) -> Result<&Xdp> {
    let program = attached.program.program(PROGRAM);
    Ok(program
        .context("the BPF object has no program `push`")?
        .try_into()?)
}
