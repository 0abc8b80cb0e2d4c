//! Root-mean-square normalisation (Zhang and Sennrich 2019, arXiv:1910.07467), as Llama uses it.
//!
//! forward:  r = 1/√(mean(x²) + ε),  y = x·r·w
//! backward: g = dy·w,  dx += r·g − x·r³·mean(g·x),  dw += Σₜ dy·x·r
//! x, y `[T, H]`, w `[H]`, r `[T]`. Kept for the backward: x and r. The input's gradient is added, since a block's
//! input also flows past the norm.

use crate::buffer::{View, ViewMut};
use crate::check::{self, for_float};
use crate::cuda::{Grid, RowBlocks};
use crate::dtype::{DType, Float};
use crate::error::OpError;
use crate::parallel::{Scattered, for_column_blocks, for_row_blocks, for_row_blocks_of};
use crate::queue::{Device, Queue};
use crate::simd::{LANES, dot, sum, vectorised};

/// y = x·r·w, keeping `inverse_rms` r.
pub fn forward(
    queue: &Queue,
    x: View<'_>,
    weight: View<'_>,
    epsilon: f64,
    mut y: ViewMut<'_>,
    mut inverse_rms: ViewMut<'_>,
) -> Result<(), OpError> {
    const OPERATOR: &str = "rms_norm::forward";
    let (rows, width) = check::matrix(OPERATOR, "x", x.shape())?;
    check::shape(OPERATOR, "weight", weight.shape(), [width])?;
    check::shape(OPERATOR, "y", y.shape(), [rows, width])?;
    check::shape(OPERATOR, "inverse_rms", inverse_rms.shape(), [rows])?;
    match queue.device() {
        Device::Cpu => for_float!(OPERATOR, x, F => {
            let (x, weight) = (x.as_slice::<F>()?, weight.as_slice::<F>()?);
            let epsilon = F::from_f64(epsilon);
            for_row_blocks(
                (y.as_slice_mut::<F>()?, width),
                (inverse_rms.as_slice_mut::<F>()?, 1),
                |first, y, inverse_rms| vectorised(#[inline(always)] || {
                    let x = x[first * width..].chunks_exact(width);
                    for ((x, y), r) in x.zip(y.chunks_exact_mut(width)).zip(inverse_rms) {
                        *r = normalise(x, weight, epsilon, y);
                    }
                }),
            );
            Ok(())
        }),
        Device::Cuda(stream) => {
            let dtype = x.dtype();
            let variant = stream.variant(OPERATOR, "x", dtype)?;
            let blocks = RowBlocks::new(stream, rows, width, dtype);
            stream
                .kernel(OPERATOR, "rms_norm", &format!("rms_norm_forward_{variant}"))
                .input("x", x, dtype)
                .input("weight", weight, dtype)
                .f32(epsilon)
                .output("y", &y, dtype)
                .output("inverse_rms", &inverse_rms, DType::F32)
                .u32(rows)
                .u32(width)
                .launch(Grid::blocks(blocks.count).shared(2 * blocks.row_bytes))
        }
    }
}

#[inline(always)]
fn normalise<T: Float>(x: &[T], weight: &[T], epsilon: T, y: &mut [T]) -> T {
    let mean_square = dot(x, x) / T::from_f64(x.len() as f64);
    let r = T::ONE / (mean_square + epsilon).sqrt();
    for ((y, &x), &w) in y.iter_mut().zip(x).zip(weight) {
        *y = x * r * w;
    }
    r
}

/// Adds the gradients of x and of the weight.
pub fn backward(
    queue: &Queue,
    dy: View<'_>,
    x: View<'_>,
    weight: View<'_>,
    inverse_rms: View<'_>,
    mut dx: ViewMut<'_>,
    mut dweight: ViewMut<'_>,
) -> Result<(), OpError> {
    const OPERATOR: &str = "rms_norm::backward";
    let (rows, width) = check::matrix(OPERATOR, "x", x.shape())?;
    check::shape(OPERATOR, "dy", dy.shape(), [rows, width])?;
    check::shape(OPERATOR, "weight", weight.shape(), [width])?;
    check::shape(OPERATOR, "inverse_rms", inverse_rms.shape(), [rows])?;
    check::shape(OPERATOR, "dx", dx.shape(), [rows, width])?;
    check::shape(OPERATOR, "dweight", dweight.shape(), [width])?;
    match queue.device() {
        Device::Cpu => for_float!(OPERATOR, x, F => {
            let (x, dy, r) = (x.as_slice::<F>()?, dy.as_slice::<F>()?, inverse_rms.as_slice::<F>()?);
            let (weight, dweight) = (weight.as_slice::<F>()?, dweight.as_slice_mut::<F>()?);
            input_gradient(dy, x, weight, r, dx.as_slice_mut::<F>()?);
            weight_gradient(dy, x, r, dweight);
            Ok(())
        }),
        Device::Cuda(stream) => {
            let dtype = x.dtype();
            let variant = stream.variant(OPERATOR, "x", dtype)?;
            let blocks = RowBlocks::new(stream, rows, width, dtype);
            let partial = stream.scratch(OPERATOR, blocks.partial_bytes())?;
            stream
                .kernel(OPERATOR, "rms_norm", &format!("rms_norm_backward_{variant}"))
                .input("dy", dy, dtype)
                .input("x", x, dtype)
                .input("weight", weight, dtype)
                .input("inverse_rms", inverse_rms, DType::F32)
                .output("dx", &dx, dtype)
                .scratch(partial, 0)
                .u32(rows)
                .u32(width)
                .launch(Grid::blocks(blocks.count).shared(3 * blocks.row_bytes + blocks.sum_bytes))?;
            blocks.add_partial(stream, OPERATOR, partial, &dweight)
        }
    }
}

fn input_gradient<T: Float>(dy: &[T], x: &[T], weight: &[T], inverse_rms: &[T], dx: &mut [T]) {
    let width = weight.len();
    for_row_blocks_of(dx, width, |first, dx| {
        vectorised(
            #[inline(always)]
            || {
                for (row, dx) in dx.chunks_exact_mut(width).enumerate() {
                    let row = first + row;
                    let (x, dy) = (&x[row * width..][..width], &dy[row * width..][..width]);
                    input_gradient_row(dy, x, weight, inverse_rms[row], dx);
                }
            },
        );
    });
}

#[inline(always)]
fn input_gradient_row<T: Float>(dy: &[T], x: &[T], weight: &[T], r: T, dx: &mut [T]) {
    let mut lanes = [T::ZERO; LANES];
    for ((dy, x), w) in dy.chunks(lanes.len()).zip(x.chunks(lanes.len())).zip(weight.chunks(lanes.len())) {
        for (((lane, &dy), &x), &w) in lanes.iter_mut().zip(dy).zip(x).zip(w) {
            *lane = (dy * w).mul_add(x, *lane);
        }
    }
    let mean = sum(&lanes) / T::from_f64(x.len() as f64);
    let pull = r * r * r * mean;
    for (((dx, &dy), &x), &w) in dx.iter_mut().zip(dy).zip(x).zip(weight) {
        *dx += (dy * w).mul_add(r, -(x * pull));
    }
}

fn weight_gradient<T: Float>(dy: &[T], x: &[T], inverse_rms: &[T], dweight: &mut [T]) {
    let width = dweight.len();
    let dweight = Scattered::new(dweight);
    for_column_blocks(width, |columns| {
        // SAFETY: each task has its own columns.
        #[allow(unsafe_code)]
        let sums = unsafe { dweight.piece(columns.start, columns.len()) };
        vectorised(
            #[inline(always)]
            || {
                for ((dy, x), &r) in dy.chunks_exact(width).zip(x.chunks_exact(width)).zip(inverse_rms) {
                    for ((sum, &dy), &x) in sums.iter_mut().zip(&dy[columns.clone()]).zip(&x[columns.clone()])
                    {
                        *sum = (dy * r).mul_add(x, *sum);
                    }
                }
            },
        );
    });
}
