//! What the devices of a run can do at best, for MFU and for estimates.

use std::sync::OnceLock;

use tessera_ops::{DType, cuda, peak};

use crate::plan::Settings;
use crate::plan::cluster::{Gpu, known_gpu};

/// The share of the peak that a training step reaches on a CPU, for estimates: what steps of several models were seen to.
const STEP_EFFICIENCY: f64 = 0.75;

/// Floating-point operations that this machine's processors can do in a second. Measured once for a process.
fn processor_peak() -> f64 {
    static MEASURED: OnceLock<f64> = OnceLock::new();
    *MEASURED.get_or_init(peak::flops_per_second)
}

/// The GPU that this process drives, where its peak is known: all are taken to be of one kind. The figures are those of bf16.
fn gpu(settings: &Settings) -> Option<&'static Gpu> {
    let first = settings.gpus.first().filter(|_| settings.compute().dtype == DType::BF16)?;
    known_gpu(&cuda::name(*first).ok()?)
}

/// Floating-point operations that one rank can do in a second: the peak that its MFU is told against. `None`: unknown.
pub fn rank_peak_flops_per_second(settings: &Settings) -> Option<f64> {
    match settings.on_gpus() {
        true => gpu(settings).map(|gpu| gpu.peak_flops_per_second),
        // The ranks of a process share its processors.
        false => Some(processor_peak() / settings.local_ranks().get() as f64),
    }
}

/// Floating-point operations that this process may be expected to do in a second. `None`: nothing is known of its GPU.
pub fn expected_flops_per_second(settings: &Settings) -> Option<f64> {
    match settings.on_gpus() {
        true => {
            gpu(settings).map(|gpu| gpu.achieved * gpu.peak_flops_per_second * settings.gpus.len() as f64)
        }
        false => Some(STEP_EFFICIENCY * processor_peak()),
    }
}
