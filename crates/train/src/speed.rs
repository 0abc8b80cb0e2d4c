//! What this machine can do at best, for MFU and for estimates.

use std::sync::OnceLock;

use tessera_ops::peak;

/// The share of the peak that a training step reaches on a CPU, for estimates: what steps of several models were seen to.
const STEP_EFFICIENCY: f64 = 0.75;

/// Floating-point operations that this machine can do in a second: the peak that MFU is told against. Measured once for a
/// process.
pub fn peak_flops_per_second() -> f64 {
    static MEASURED: OnceLock<f64> = OnceLock::new();
    *MEASURED.get_or_init(peak::flops_per_second)
}

/// Floating-point operations that a run may be expected to do in a second.
pub fn expected_flops_per_second() -> f64 {
    STEP_EFFICIENCY * peak_flops_per_second()
}
