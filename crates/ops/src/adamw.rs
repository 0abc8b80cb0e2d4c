//! AdamW over a flat shard (Loshchilov and Hutter 2019, arXiv:1711.05101), in torch's formula and in Composer's.
//!
//! g ← factor·g;  m ← β₁m + (1−β₁)g;  v ← β₂v + (1−β₂)g²
//! p ← p·(1 − decay) on the first `decayed` elements;  p ← p − lr/(1−β₁ᵗ) · m / (√v/√(1−β₂ᵗ) + ε)
//! torch's `AdamW` has decay = lr·wd, Composer's `DecoupledAdamW` decay = (lr/peak lr)·wd. p, g, m, v `[N]`; factor, t
//! and whether the step is skipped come from the `decision` vector ([`crate::step`]). Where weights are computed with in bf16 and
//! kept until they change, the new p are also written so: a pass over p less than a cast.

use rayon::prelude::*;

use crate::buffer::{View, ViewMut};
use crate::cast;
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
    /// ε.
    pub epsilon: f64,
    /// The part of a weight that this step takes away.
    pub decay: f64,
}

/// What an update changes, all of one shape.
pub struct State<'a> {
    /// p.
    pub parameters: ViewMut<'a>,
    /// m.
    pub first_moment: ViewMut<'a>,
    /// v.
    pub second_moment: ViewMut<'a>,
    /// p in bf16, where it is wanted. A step that is skipped leaves it as it is.
    pub rounded: Option<ViewMut<'a>>,
}

/// Elements updated by one task.
pub(crate) const PIECE: usize = 1 << 14;

/// Updates the state. Weight decay applies to the first `decayed` elements.
///
/// # Errors
/// When shapes or dtypes do not fit, or CUDA fails.
pub fn update(
    queue: &Queue,
    state: State<'_>,
    gradient: View<'_>,
    decayed: usize,
    hyperparameters: Hyperparameters,
    decision: View<'_>,
) -> Result<(), OpError> {
    const OPERATOR: &str = "adamw";
    let State { mut parameters, mut first_moment, mut second_moment, rounded } = state;
    let shape = parameters.shape();
    check::shape(OPERATOR, "gradient", gradient.shape(), shape)?;
    check::shape(OPERATOR, "first_moment", first_moment.shape(), shape)?;
    check::shape(OPERATOR, "second_moment", second_moment.shape(), shape)?;
    if let Some(rounded) = &rounded {
        check::shape(OPERATOR, "rounded", rounded.shape(), shape)?;
        check::dtype(OPERATOR, "rounded", rounded.dtype(), DType::BF16)?;
    }
    check::shape(OPERATOR, "decision", decision.shape(), [decision::COUNT])?;
    match queue.device() {
        Device::Cpu => for_float!(OPERATOR, gradient, F => {
            let decision = decision.as_slice::<f64>()?;
            let (p, g) = (parameters.as_slice_mut::<F>()?, gradient.as_slice::<F>()?);
            let (m, v) = (first_moment.as_slice_mut::<F>()?, second_moment.as_slice_mut::<F>()?);
            if decision[decision::APPLY] == 0.0 {
                return Ok(());
            }
            let rule = Rule::<F>::new(hyperparameters, decision);
            p.par_chunks_mut(PIECE)
                .zip(g.par_chunks(PIECE))
                .zip(m.par_chunks_mut(PIECE))
                .zip(v.par_chunks_mut(PIECE))
                .enumerate()
                .for_each(|(piece, (((p, g), m), v))| {
                    let decayed = decayed.saturating_sub(piece * PIECE).min(p.len());
                    let (p_decayed, p) = p.split_at_mut(decayed);
                    let (m_decayed, m) = m.split_at_mut(decayed);
                    let (v_decayed, v) = v.split_at_mut(decayed);
                    vectorised(#[inline(always)] || {
                        rule.apply(p_decayed, &g[..decayed], m_decayed, v_decayed, rule.keep);
                        rule.apply(p, &g[decayed..], m, v, F::ONE);
                    });
                });
            rounded.map_or(Ok(()), |rounded| cast::forward(queue, parameters.as_view(), rounded))
        }),
        Device::Cuda(stream) => {
            let (elements, (beta1, beta2)) = (shape.elements(), hyperparameters.betas);
            let launch = stream
                .kernel(OPERATOR, "adamw", "adamw")
                .output("parameters", &parameters, DType::F32)
                .input("gradient", gradient, DType::F32)
                .output("first_moment", &first_moment, DType::F32)
                .output("second_moment", &second_moment, DType::F32);
            let launch = match &rounded {
                Some(rounded) => launch.output("rounded", rounded, DType::BF16),
                None => launch.null(),
            };
            launch
                .input("decision", decision, DType::F64)
                .f64(hyperparameters.learning_rate)
                .f64(beta1)
                .f64(beta2)
                .f64(hyperparameters.epsilon)
                .f64(hyperparameters.decay)
                .u64(decayed)
                .u64(elements)
                .launch(Grid::flat(stream, DType::F32, elements))
        }
    }
}

/// The factors of one step, rounded once to the element type.
struct Rule<T> {
    clip: T,
    betas: (T, T),
    /// 1 − β₁ and 1 − β₂, rounded once: in fp32, 1 − 0.999 is off by 5e-5.
    complements: (T, T),
    step_size: T,
    root_correction: T,
    epsilon: T,
    keep: T,
}

impl<T: Float> Rule<T> {
    fn new(hyperparameters: Hyperparameters, decision: &[f64]) -> Self {
        let updates = decision[decision::UPDATES];
        let (beta1, beta2) = hyperparameters.betas;
        Self {
            clip: T::from_f64(decision[decision::CLIP_FACTOR]),
            betas: (T::from_f64(beta1), T::from_f64(beta2)),
            complements: (T::from_f64(1.0 - beta1), T::from_f64(1.0 - beta2)),
            step_size: T::from_f64(hyperparameters.learning_rate / (1.0 - beta1.powf(updates))),
            root_correction: T::from_f64((1.0 - beta2.powf(updates)).sqrt()),
            epsilon: T::from_f64(hyperparameters.epsilon),
            keep: T::from_f64(1.0 - hyperparameters.decay),
        }
    }

    #[inline(always)]
    fn apply(&self, p: &mut [T], g: &[T], m: &mut [T], v: &mut [T], keep: T) {
        let ((beta1, beta2), (new1, new2)) = (self.betas, self.complements);
        for (((p, &g), m), v) in p.iter_mut().zip(g).zip(m).zip(v) {
            let g = g * self.clip;
            *m = beta1 * *m + new1 * g;
            *v = beta2 * *v + new2 * g * g;
            let denominator = v.sqrt() / self.root_correction + self.epsilon;
            *p = *p * keep - self.step_size * (*m / denominator);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use half::bf16;

    use super::*;
    use crate::dtype::Element;

    fn state<'a, T: Element>(p: &'a mut [T], m: &'a mut [T], v: &'a mut [T]) -> State<'a> {
        State {
            parameters: ViewMut::of(p),
            first_moment: ViewMut::of(m),
            second_moment: ViewMut::of(v),
            rounded: None,
        }
    }

    /// Three steps of Composer's `DecoupledAdamW` in fp64: lr 0.01, then 0.005; wd 1e-4; values printed by Composer.
    #[test]
    fn follows_composer() {
        let queue = Queue::cpu();
        let (mut p, mut m, mut v) = ([1.0_f64, -2.0, 0.5], [0.0_f64; 3], [0.0_f64; 3]);
        let gradients = [[0.1, -0.2, 0.3], [0.4, 0.1, -0.5], [-0.3, 0.2, 0.1]];
        let expected = [
            [0.989_900_001_000, -1.989_800_000_500, 0.489_950_000_333],
            [0.981_053_692_927, -1.986_917_326_190, 0.492_819_408_366],
            [0.980_127_691_620, -1.988_181_265_154, 0.493_376_309_198],
        ];
        for (step, gradient) in gradients.iter().enumerate() {
            let learning_rate = if step == 2 { 0.005 } else { 0.01 };
            let hyperparameters = Hyperparameters {
                learning_rate,
                betas: (0.9, 0.95),
                epsilon: 1e-8,
                decay: learning_rate / 0.01 * 1e-4,
            };
            let decision = [1.0, 1.0, step as f64 + 1.0, 0.0, 0.0];
            let state = state(&mut p, &mut m, &mut v);
            update(&queue, state, View::of(gradient), 3, hyperparameters, View::of(&decision)).unwrap();
            for (p, expected) in p.iter().zip(expected[step]) {
                assert!((p - expected).abs() < 1e-11, "step {step}: {p} {expected}");
            }
        }
    }

    #[test]
    fn decay_stops_at_the_boundary_and_a_skipped_step_moves_nothing() {
        let queue = Queue::cpu();
        let length = 2 * PIECE + 5;
        let mut p = vec![1.0_f32; length];
        let (mut m, mut v, g) = (vec![0.0_f32; length], vec![0.0_f32; length], vec![0.0_f32; length]);
        let mut rounded = vec![bf16::ONE; length];
        let hyperparameters =
            Hyperparameters { learning_rate: 0.1, betas: (0.9, 0.95), epsilon: 1e-8, decay: 0.5 };
        for (decision, expected) in [([1.0, 0.0, 1.0, 0.0, 0.0], 1.0), ([1.0, 1.0, 1.0, 0.0, 0.0], 0.5)] {
            let state = State { rounded: Some(ViewMut::of(&mut rounded)), ..state(&mut p, &mut m, &mut v) };
            update(&queue, state, View::of(&g), PIECE + 3, hyperparameters, View::of(&decision)).unwrap();
            assert!(p[..PIECE + 3].iter().all(|&p| p == expected));
            assert!(p[PIECE + 3..].iter().all(|&p| p == 1.0));
            assert!(p.iter().zip(&rounded).all(|(&p, &rounded)| p == rounded.to_f32()));
        }
    }
}
