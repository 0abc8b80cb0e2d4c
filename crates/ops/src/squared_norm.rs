//! The squared Euclidean norm of a flat gradient, added to a statistic of the step.
//!
//! n += Σ xᵢ². x `[N]`, n `[1]` f64. Sums run in fp64 over pieces of fixed size, then over the pieces in order.

use rayon::prelude::*;

use crate::buffer::{View, ViewMut};
use crate::check::{self, for_float};
use crate::cuda::Grid;
use crate::dtype::{DType, Float};
use crate::error::OpError;
use crate::queue::{Device, Queue};
use crate::simd::{LANES, sum, vectorised};

/// Elements summed by one task, or one block of a GPU.
const PIECE: usize = 1 << 16;

/// n += Σ xᵢ².
pub fn add(queue: &Queue, x: View<'_>, mut total: ViewMut<'_>) -> Result<(), OpError> {
    const OPERATOR: &str = "squared_norm";
    check::shape(OPERATOR, "total", total.shape(), [1])?;
    match queue.device() {
        Device::Cpu => for_float!(OPERATOR, x, F => {
            let total = total.as_slice_mut::<f64>()?;
            let pieces: Vec<f64> = x
                .as_slice::<F>()?
                .par_chunks(PIECE)
                .map(|piece| vectorised(#[inline(always)] || {
                    let mut lanes = [0.0_f64; LANES];
                    for chunk in piece.chunks(LANES) {
                        for (lane, &value) in lanes.iter_mut().zip(chunk) {
                            let value = value.to_f64();
                            *lane = value.mul_add(value, *lane);
                        }
                    }
                    sum(&lanes)
                }))
                .collect();
            total[0] += pieces.iter().sum::<f64>();
            Ok(())
        }),
        Device::Cuda(stream) => {
            let elements = x.shape().elements();
            let pieces = elements.div_ceil(PIECE);
            let partial = stream.scratch(OPERATOR, pieces * DType::F64.size())?;
            stream
                .kernel(OPERATOR, "squared_norm", "squared_norm_pieces")
                .input("x", x, DType::F32)
                .scratch(partial, 0)
                .u64(elements)
                .launch(Grid::blocks(pieces))?;
            stream
                .kernel(OPERATOR, "squared_norm", "squared_norm_total")
                .scratch(partial, 0)
                .output("total", &total, DType::F64)
                .u32(pieces)
                .launch(Grid::blocks(1))
        }
    }
}
