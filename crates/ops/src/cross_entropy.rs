//! Cross-entropy of one chunk of logits, its gradient in place of the logits.
//!
//! forward:  ℓ\[c\] = log Σᵥ exp(z\[c,v\]) − z\[c, target(c)\]
//! backward: z\[c,v\] ← scale·(softmax(z\[c\])\[v\] − \[v = target(c)\])
//! z `[C, V]`, targets `[C]` u32. Added to `statistics` `[2]` (f64): Σ ℓ and the number of rows whose largest logit is
//! the target. With scale = 1 / (loss tokens of the step) gradients need no division later.

use rayon::prelude::*;

use crate::buffer::{View, ViewMut};
use crate::check::{self, for_float};
use crate::dtype::Float;
use crate::error::OpError;
use crate::queue::{Device, Queue};
use crate::simd::{maximum, sum, vectorised};
use crate::step::statistic::{HITS, LOSS_SUM};

/// Adds the chunk's loss and hits to `statistics`, and leaves the gradient, times `scale`, in `logits`.
pub fn forward_backward(
    queue: &Queue,
    logits: ViewMut<'_>,
    targets: View<'_>,
    scale: f64,
    statistics: ViewMut<'_>,
) -> Result<(), OpError> {
    run(queue, logits, targets, Some(scale), statistics)
}

/// Adds the chunk's loss and hits to `statistics`; what is in `logits` afterwards is of no use.
pub fn forward(
    queue: &Queue,
    logits: ViewMut<'_>,
    targets: View<'_>,
    statistics: ViewMut<'_>,
) -> Result<(), OpError> {
    run(queue, logits, targets, None, statistics)
}

fn run(
    queue: &Queue,
    mut logits: ViewMut<'_>,
    targets: View<'_>,
    scale: Option<f64>,
    mut statistics: ViewMut<'_>,
) -> Result<(), OpError> {
    const OPERATOR: &str = "cross_entropy";
    let (rows, vocabulary) = check::matrix(OPERATOR, "logits", logits.shape())?;
    check::shape(OPERATOR, "targets", targets.shape(), [rows])?;
    check::shape(OPERATOR, "statistics", statistics.shape(), [2])?;
    let targets = targets.as_slice::<u32>()?;
    check::indices(OPERATOR, targets, vocabulary)?;
    match queue.device() {
        Device::Cpu => for_float!(OPERATOR, logits, F => {
            let statistics = statistics.as_slice_mut::<f64>()?;
            let rows: Vec<(f64, bool)> = logits
                .as_slice_mut::<F>()?
                .par_chunks_mut(vocabulary)
                .zip(targets)
                .map(|(row, &target)| vectorised(#[inline(always)] || {
                    row_loss(row, target as usize, scale.map(F::from_f64))
                }))
                .collect();
            for (loss, hit) in rows {
                statistics[LOSS_SUM] += loss;
                statistics[HITS] += f64::from(u8::from(hit));
            }
            Ok(())
        }),
        Device::Cuda(_) => Err(crate::cuda::lacking()),
    }
}

/// The loss of one row and whether the target has the largest logit (the first of equals counts).
#[inline(always)]
fn row_loss<T: Float>(row: &mut [T], target: usize, scale: Option<T>) -> (f64, bool) {
    let largest = maximum(row);
    let target_logit = row[target];
    let hit = target_logit == largest && !row[..target].contains(&largest);
    for z in row.iter_mut() {
        *z = (*z - largest).exp();
    }
    let total = sum(row);
    if let Some(scale) = scale {
        let factor = scale / total;
        for z in row.iter_mut() {
            *z *= factor;
        }
        row[target] -= scale;
    }
    (total.to_f64().ln() + largest.to_f64() - target_logit.to_f64(), hit)
}
