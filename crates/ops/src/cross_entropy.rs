//! Cross-entropy of one chunk of logits, its gradient in place of the logits.
//!
//! forward:  ℓ\[c\] = log Σᵥ exp(z\[c,v\]) − z\[c, target(c)\]
//! backward: z\[c,v\] ← scale·(softmax(z\[c\])\[v\] − \[v = target(c)\])
//! z `[C, V]`, targets `[C]` u32. Added to `statistics` `[2]` (f64): Σ ℓ and the number of rows whose largest logit is
//! the target. With scale = 1 / (loss tokens of the step) gradients need no division later. On a GPU targets are
//! checked by whoever uploads them, not here.

use rayon::prelude::*;

use crate::buffer::{View, ViewMut};
use crate::check::{self, for_float};
use crate::cuda::Grid;
use crate::dtype::{DType, Float};
use crate::error::OpError;
use crate::queue::{Device, Queue};
use crate::simd::{maximum, sum, vectorised};
use crate::step::statistic::{HITS, LOSS_SUM};

/// Threads of the block that has a row of logits on a GPU.
const THREADS: usize = 512;

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
    match queue.device() {
        Device::Cpu => for_float!(OPERATOR, logits, F => {
            let targets = targets.as_slice::<u32>()?;
            check::indices(OPERATOR, targets, vocabulary)?;
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
        Device::Cuda(stream) => {
            let dtype = logits.dtype();
            let variant = stream.variant(OPERATOR, "logits", dtype)?;
            let of_rows = rows * DType::F64.size();
            let (losses, hits) = (0, of_rows);
            let scratch = stream.scratch(OPERATOR, 2 * of_rows)?;
            stream
                .kernel(OPERATOR, "cross_entropy", &format!("cross_entropy_{variant}"))
                .output("logits", &logits, dtype)
                .input("targets", targets, DType::U32)
                .f32(scale.unwrap_or(0.0))
                .u32(usize::from(scale.is_some()))
                .scratch(scratch, losses)
                .scratch(scratch, hits)
                .u32(vocabulary)
                .launch(Grid::blocks(rows).threads(THREADS))?;
            stream
                .kernel(OPERATOR, "cross_entropy", "cross_entropy_total")
                .scratch(scratch, losses)
                .scratch(scratch, hits)
                .output("statistics", &statistics, DType::F64)
                .u32(rows)
                .launch(Grid::blocks(1))
        }
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
