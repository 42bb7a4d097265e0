//! Programs of which each goes a step further than the one before, driven as fast as they go.

use super::plan::{FRAME_LEN, LANES, Lane, PROGRAMS};
use super::rig::{FIRST_SEQUENCE, OBJECT, loaded, xdp};
use super::route::{Route, Shape};
use super::variant::Variant;
use crate::gateway::EXT;
use anyhow::{Context, Result};
use aya::maps::{PerCpuArray, PerCpuValues, ProgramArray};
use aya::programs::{TestRun as _, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader};
use push_common::wire::TRIGGER_HEADER_LEN;

/// The programs, and what drives them: it writes a trigger over the frame, and hands it to one of them
/// (`bpf_tail_call`).
pub(crate) struct Ladder {
    driver: Ebpf,
    /// The driver hands on what the programs are to get.
    cpu: usize,
    interface: u32,
    sequence: u64,
    /// The kernel takes a program out of the driver's map when nobody else has it.
    programs: Vec<Variant>,
}

impl Ladder {
    /// On this CPU, on which the calling thread has to stay.
    pub(crate) fn new(cpu: usize, programs: Vec<Variant>) -> Result<Self> {
        let mut driver = EbpfLoader::new().load(OBJECT)?;
        loaded(xdp(&mut driver, "drive")?)?;
        let map = driver.map_mut(PROGRAMS).context("no map of programs")?;
        let mut map: ProgramArray<_> = ProgramArray::try_from(map)?;
        for (index, program) in (0..).zip(&programs) {
            map.set(index, program.program()?.fd()?, 0)?;
        }
        Ok(Self {
            driver,
            cpu,
            interface: nix::net::if_::if_nametoindex(EXT)?,
            sequence: FIRST_SEQUENCE,
            programs,
        })
    }

    /// Instructions that the verifier went through, of each program.
    pub(crate) fn verified(&self) -> Result<Vec<u32>> {
        let infos = self.programs.iter().map(|program| {
            let info = program.program()?.info()?;
            Ok(info.verified_instruction_count().unwrap_or(0))
        });
        infos.collect()
    }

    /// What one trigger takes in nanoseconds, of so many one after the other for this many sessions in turn (a
    /// power of two), the driver included; and the action that the last one ended with.
    pub(crate) fn ns_per_trigger(
        &mut self,
        program: u32,
        sessions: u32,
        triggers: u32,
    ) -> Result<(f64, u32)> {
        let cpus = aya::util::nr_cpus().map_err(|(_, error)| error)?;
        let mut lanes = vec![[0; size_of::<Lane>()]; cpus];
        lanes[self.cpu] = bytemuck::must_cast(Lane {
            goes_to: program,
            first_slot: 1,
            slot_mask: sessions - 1,
            sequence: self.sequence,
            ..Route::of_push(Shape::Through).lane(TRIGGER_HEADER_LEN)
        });
        self.sequence += u64::from(triggers);
        let map = self.driver.map_mut(LANES).context("no lanes")?;
        let mut map: PerCpuArray<_, [u8; size_of::<Lane>()]> = PerCpuArray::try_from(map)?;
        map.set(0, PerCpuValues::try_from(lanes)?, 0)?;
        let driver: &Xdp = self
            .driver
            .program("drive")
            .context("no driver")?
            .try_into()?;
        let context = [0, u32::try_from(FRAME_LEN)?, 0, self.interface, 0, 0];
        let result = driver.test_run(TestRunOptions {
            data_in: Some(&[0; FRAME_LEN]),
            ctx_in: Some(bytemuck::bytes_of(&context)),
            repeat: triggers,
            ..TestRunOptions::new()
        })?;
        Ok((result.duration.as_nanos() as f64, result.return_value))
    }
}
