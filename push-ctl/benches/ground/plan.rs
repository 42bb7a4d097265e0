//! What generator and sink are told, in the form that they read.

#[path = "../../../push-ebpf/src/bench/plan.rs"]
#[expect(dead_code, reason = "the programs need more of it")]
mod records;

pub(crate) use records::{
    CLASSES, FRAME_LEN, HEADERS_LEN, KEPT_FRAMES, Kept, Lane, Least, STAMPED_LEN, Sink, class,
};

/// Names of maps, and of the constant of `redirect`.
pub(crate) const LANES: &str = "bench_lanes";
pub(crate) const SINKS: &str = "bench_sinks";
pub(crate) const LATENCIES: &str = "bench_latencies";
pub(crate) const KEPT: &str = "bench_kept";
pub(crate) const SHARED: &str = "bench_shared";
pub(crate) const PROGRAMS: &str = "bench_programs";
pub(crate) const LEAST: &str = "BENCH_LEAST";
pub(crate) const INTERFACE: &str = "BENCH_INTERFACE";

/// As aya takes records: it knows only its own trait for plain data.
pub(crate) type LaneBytes = [u8; size_of::<Lane>()];
pub(crate) type SinkBytes = [u8; size_of::<Sink>()];

/// The lowest latency of a class in nanoseconds.
pub(crate) fn floor_of(wanted: u32) -> u64 {
    let (mut low, mut high) = (0_u64, 1 << 40);
    while low < high {
        let middle = low.midpoint(high);
        if class(middle) < wanted {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    low
}
