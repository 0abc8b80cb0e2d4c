//! The most floating-point operations that the processors can do in a second: what a utilisation is told against.

use std::hint::black_box;
use std::time::Instant;

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

/// Fused multiply-adds that do not wait for one another: more than any processor's latency times its units.
const CHAINS: usize = 16;
/// Multiply-adds of each chain in one measurement: some milliseconds.
const LENGTH: usize = 1 << 20;
/// Enough for the processors to leave their idle clock, and for other work on the machine to leave a gap.
const REPETITIONS: usize = 20;

/// Operations in a second, fp32, all threads of the current pool together: the best of a few measurements. A multiply-add
/// counts as two.
pub fn flops_per_second() -> f64 {
    let threads = rayon::current_num_threads();
    let measure = |_| {
        let started = Instant::now();
        let operations: usize =
            (0..threads).into_par_iter().with_max_len(1).map(|_| pulp::Arch::new().dispatch(Chains)).sum();
        operations as f64 / started.elapsed().as_secs_f64()
    };
    (0..REPETITIONS).map(measure).fold(0.0, f64::max)
}

/// Independent chains of multiply-adds in registers; gives the number of operations.
struct Chains;

impl WithSimd for Chains {
    type Output = usize;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> usize {
        let (factor, addend) = (simd.splat_f32s(black_box(0.999)), simd.splat_f32s(black_box(0.001)));
        let mut chains = [simd.splat_f32s(1.0); CHAINS];
        for _ in 0..LENGTH {
            for chain in &mut chains {
                *chain = simd.mul_add_f32s(*chain, factor, addend);
            }
        }
        black_box(chains);
        2 * CHAINS * LENGTH * S::F32_LANES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_measured() {
        let rate = flops_per_second();
        assert!(rate.is_finite() && rate > 1e6, "{rate:e}");
    }
}
