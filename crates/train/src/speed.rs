//! What this machine can do at best, for MFU and for estimates.

use std::sync::OnceLock;
use std::time::Instant;

use tessera_ops::{OpError, Queue, View, ViewMut, linear};

/// Edge of the measured product: large enough for the best rate, small enough to take milliseconds.
const EDGE: usize = 1024;
/// Enough for the processor to leave its idle clock, and for other work on the machine to leave a gap.
const REPETITIONS: usize = 20;

/// Operations of the best of a few large fp32 matrix products in a second: the peak that a CPU's MFU is told against. It is
/// what this engine's own products reach, a little below what the processor's data sheet allows.
///
/// Measured once for a process.
pub fn measured_flops_per_second() -> f64 {
    static MEASURED: OnceLock<f64> = OnceLock::new();
    *MEASURED.get_or_init(measure)
}

fn measure() -> f64 {
    let (a, b) = (vec![1.0_f32; EDGE * EDGE], vec![1.0_f32; EDGE * EDGE]);
    let mut c = vec![0.0_f32; EDGE * EDGE];
    let queue = Queue::cpu();
    let mut product = || -> Result<f64, OpError> {
        let started = Instant::now();
        let shape = [EDGE, EDGE];
        let (a, b) = (View::of(&a).reshape(shape)?, View::of(&b).reshape(shape)?);
        linear::forward(&queue, a, b, ViewMut::of(&mut c).reshape(shape)?)?;
        Ok(2.0 * (EDGE as f64).powi(3) / started.elapsed().as_secs_f64())
    };
    (0..REPETITIONS).filter_map(|_| product().ok()).fold(0.0, f64::max)
}
