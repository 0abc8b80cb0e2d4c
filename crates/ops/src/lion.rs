//! Lion over a flat shard (Chen et al. 2023, arXiv:2302.06675), in LLM Foundry's `DecoupledLionW` formula.
//!
//! g ← factor·g;  p ← p·(1 − decay) on the first `decayed` elements
//! p ← p − lr·sign(β₁m + (1−β₁)g);  m ← β₂m + (1−β₂)g
//! decay = (lr/peak lr)·wd. p, g, m `[N]`; factor and whether the step is skipped come from the `decision` vector
//! ([`crate::step`]).

use rayon::prelude::*;

use crate::adamw::PIECE;
use crate::buffer::{View, ViewMut};
use crate::check::{self, for_float};
use crate::cuda::Grid;
use crate::dtype::{DType, Float};
use crate::error::OpError;
use crate::queue::{Device, Queue};
use crate::simd::vectorised;
use crate::step::decision;

/// What does not depend on the gradient.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Hyperparameters {
    /// The learning rate of this step.
    pub learning_rate: f64,
    /// β₁ and β₂.
    pub betas: (f64, f64),
    /// The part of a weight that this step takes away.
    pub decay: f64,
}

/// Updates `parameters` and the moment. Weight decay applies to the first `decayed` elements.
pub fn update(
    queue: &Queue,
    mut parameters: ViewMut<'_>,
    gradient: View<'_>,
    mut moment: ViewMut<'_>,
    decayed: usize,
    hyperparameters: Hyperparameters,
    decision: View<'_>,
) -> Result<(), OpError> {
    const OPERATOR: &str = "lion";
    check::shape(OPERATOR, "gradient", gradient.shape(), parameters.shape())?;
    check::shape(OPERATOR, "moment", moment.shape(), parameters.shape())?;
    check::shape(OPERATOR, "decision", decision.shape(), [decision::COUNT])?;
    match queue.device() {
        Device::Cpu => for_float!(OPERATOR, gradient, F => {
            let decision = decision.as_slice::<f64>()?;
            let (p, g) = (parameters.as_slice_mut::<F>()?, gradient.as_slice::<F>()?);
            let m = moment.as_slice_mut::<F>()?;
            if decision[decision::APPLY] == 0.0 {
                return Ok(());
            }
            let clip = F::from_f64(decision[decision::CLIP_FACTOR]);
            p.par_chunks_mut(PIECE)
                .zip(g.par_chunks(PIECE))
                .zip(m.par_chunks_mut(PIECE))
                .enumerate()
                .for_each(|(piece, ((p, g), m))| {
                    let decayed = decayed.saturating_sub(piece * PIECE).min(p.len());
                    let (p_decayed, p) = p.split_at_mut(decayed);
                    let (m_decayed, m) = m.split_at_mut(decayed);
                    let keep = F::from_f64(1.0 - hyperparameters.decay);
                    vectorised(#[inline(always)] || {
                        apply(hyperparameters, clip, keep, p_decayed, &g[..decayed], m_decayed);
                        apply(hyperparameters, clip, F::ONE, p, &g[decayed..], m);
                    });
                });
            Ok(())
        }),
        Device::Cuda(stream) => {
            let (elements, (beta1, beta2)) = (parameters.shape().elements(), hyperparameters.betas);
            stream
                .kernel(OPERATOR, "lion", "lion")
                .output("parameters", &parameters, DType::F32)
                .input("gradient", gradient, DType::F32)
                .output("moment", &moment, DType::F32)
                .null()
                .input("decision", decision, DType::F64)
                .f64(hyperparameters.learning_rate)
                .f64(beta1)
                .f64(beta2)
                .f64(hyperparameters.decay)
                .u64(decayed)
                .u64(elements)
                .launch(Grid::flat(stream, DType::F32, elements))
        }
    }
}

#[inline(always)]
fn apply<T: Float>(hyperparameters: Hyperparameters, clip: T, keep: T, p: &mut [T], g: &[T], m: &mut [T]) {
    let learning_rate = T::from_f64(hyperparameters.learning_rate);
    let (beta1, beta2) = (T::from_f64(hyperparameters.betas.0), T::from_f64(hyperparameters.betas.1));
    let (new1, new2) =
        (T::from_f64(1.0 - hyperparameters.betas.0), T::from_f64(1.0 - hyperparameters.betas.1));
    for ((p, &g), m) in p.iter_mut().zip(g).zip(m) {
        let g = g * clip;
        let direction = beta1 * *m + new1 * g;
        // The sign of zero is zero, as torch has it.
        let step = if direction > T::ZERO {
            learning_rate
        } else if direction < T::ZERO {
            -learning_rate
        } else {
            T::ZERO
        };
        *p = *p * keep - step;
        *m = beta2 * *m + new2 * g;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Two steps worked out by hand from the formula.
    #[test]
    fn follows_the_formula() {
        let queue = Queue::cpu();
        let (mut p, mut m) = ([1.0_f64, -2.0, 0.5, 0.25], [0.0_f64; 4]);
        let hyperparameters = Hyperparameters { learning_rate: 0.1, betas: (0.9, 0.99), decay: 0.5 };
        let decision = [1.0, 1.0, 1.0, 0.0, 0.0];
        for gradient in [[0.1, -0.2, 0.0, 1.0], [-1.0, -0.2, 0.0, -0.001]] {
            let (p, m) = (ViewMut::of(&mut p), ViewMut::of(&mut m));
            update(&queue, p, View::of(&gradient), m, 2, hyperparameters, View::of(&decision)).unwrap();
        }
        let expected = [(1.0 * 0.5 - 0.1) * 0.5 + 0.1, (-2.0 * 0.5 + 0.1) * 0.5 + 0.1, 0.5, 0.25 - 0.1 - 0.1];
        for (p, expected) in p.iter().zip(expected) {
            assert!((p - expected).abs() < 1e-12, "{p} {expected}");
        }
        assert!((m[0] - (0.99 * 0.001 - 0.01)).abs() < 1e-12);
    }
}
