//! The decision that ends a step: how far gradients are clipped, and whether the weights move at all.
//!
//! It is taken on the device from sums that all ranks share, so that every rank takes the same one and the host need not
//! look. clip: factor = min(1, c/(‖g‖ + 1e-6)), torch's `clip_grad_norm_`. A loss or norm that is not finite skips the
//! update: weights, moments and the optimizer's own count of steps stay as they are.

use crate::buffer::{View, ViewMut};
use crate::check;
use crate::cuda::Grid;
use crate::dtype::DType;
use crate::error::OpError;
use crate::queue::{Device, Queue};

/// Fields of the statistics vector (f64): sums over the micro-batches of a step, then over ranks.
pub mod statistic {
    /// Σ of token losses.
    pub const LOSS_SUM: usize = 0;
    /// Number of loss tokens whose target had the largest logit.
    pub const HITS: usize = 1;
    /// Squared norm of the gradient.
    pub const SQUARED_NORM: usize = 2;
    /// The load-balancing loss, weighted.
    pub const BALANCE_LOSS: usize = 3;
    /// Number of ranks that were asked to stop. It and what follows are told by the host.
    pub const STOP_WANTED: usize = 4;
    /// Seconds that the step took, as rank 0 measured them.
    pub const ELAPSED: usize = 5;
    /// The length of the vector.
    pub const COUNT: usize = 6;
}

/// Fields of the decision vector (f64), which outlives the step: it is part of the optimizer's state.
pub mod decision {
    /// What gradients are multiplied with.
    pub const CLIP_FACTOR: usize = 0;
    /// 1 if the weights move in this step, 0 if it is skipped.
    pub const APPLY: usize = 1;
    /// Updates done, this one included: the t of Adam's bias correction.
    pub const UPDATES: usize = 2;
    /// Steps skipped since the last update.
    pub const SKIPPED_IN_A_ROW: usize = 3;
    /// Steps skipped in the whole run.
    pub const SKIPPED: usize = 4;
    /// The length of the vector.
    pub const COUNT: usize = 5;
}

/// Takes the decision for this step. `max_norm` ≤ 0 or infinite clips nothing.
pub fn decide(
    queue: &Queue,
    statistics: View<'_>,
    max_norm: f64,
    mut decision: ViewMut<'_>,
) -> Result<(), OpError> {
    const OPERATOR: &str = "step::decide";
    check::shape(OPERATOR, "statistics", statistics.shape(), [statistic::COUNT])?;
    check::shape(OPERATOR, "decision", decision.shape(), [decision::COUNT])?;
    match queue.device() {
        Device::Cpu => {
            let statistics = statistics.as_slice::<f64>()?;
            let decision = decision.as_slice_mut::<f64>()?;
            let norm = statistics[statistic::SQUARED_NORM].sqrt();
            let loss = statistics[statistic::LOSS_SUM] + statistics[statistic::BALANCE_LOSS];
            let finite = norm.is_finite() && loss.is_finite();
            let clips = max_norm > 0.0 && max_norm.is_finite();
            decision[decision::CLIP_FACTOR] = if clips { (max_norm / (norm + 1e-6)).min(1.0) } else { 1.0 };
            decision[decision::APPLY] = f64::from(u8::from(finite));
            if finite {
                decision[decision::UPDATES] += 1.0;
                decision[decision::SKIPPED_IN_A_ROW] = 0.0;
            } else {
                decision[decision::SKIPPED_IN_A_ROW] += 1.0;
                decision[decision::SKIPPED] += 1.0;
            }
            Ok(())
        }
        Device::Cuda(stream) => stream
            .kernel(OPERATOR, "step", "step_decide")
            .input("statistics", statistics, DType::F64)
            .f64(max_norm)
            .output("decision", &decision, DType::F64)
            .launch(Grid::blocks(1).threads(1)),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn decide_on(statistics: [f64; statistic::COUNT], max_norm: f64, decision: &mut [f64; 5]) {
        decide(&Queue::cpu(), View::of(&statistics), max_norm, ViewMut::of(decision)).unwrap();
    }

    #[test]
    fn clips_skips_and_counts() {
        let mut decision = [0.0; 5];
        decide_on([2.0, 0.0, 16.0, 0.0, 0.0, 0.0], 1.0, &mut decision);
        assert!((decision[decision::CLIP_FACTOR] - 0.25).abs() < 1e-6);
        assert_eq!(decision[1..], [1.0, 1.0, 0.0, 0.0]);
        decide_on([2.0, 0.0, f64::NAN, 0.0, 0.0, 0.0], 1.0, &mut decision);
        decide_on([f64::INFINITY, 0.0, 1.0, 0.0, 0.0, 0.0], 1.0, &mut decision);
        decide_on([2.0, 0.0, 1.0, f64::INFINITY, 0.0, 0.0], 1.0, &mut decision);
        assert_eq!(decision[1..], [0.0, 1.0, 3.0, 3.0]);
        decide_on([2.0, 0.0, 0.25, 0.0, 0.0, 0.0], 0.0, &mut decision);
        assert_eq!(decision, [1.0, 1.0, 2.0, 0.0, 3.0]);
    }
}
