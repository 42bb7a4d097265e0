//! The program up to one of its steps: a ladder of those tells what each step costs.

/// Ends the program here, if it is to be one up to this step. (What isn't built for benchmarks has no such ends.)
macro_rules! rung {
    ($step:literal) => {
        #[cfg(feature = "ladder")]
        if crate::ladder::ends_before($step) {
            return Err(Verdict::MissingConfiguration);
        }
    };
}

/// The step that it ends before. The loader sets it, and the verifier takes out whatever is behind.
#[cfg(feature = "ladder")]
#[unsafe(no_mangle)]
static LADDER_STEP: u32 = u32::MAX;

#[cfg(feature = "ladder")]
#[inline(always)]
pub(crate) fn ends_before(step: u32) -> bool {
    // SAFETY: a static is valid and aligned.
    unsafe { crate::shared::load(&raw const LADDER_STEP) == step }
}
