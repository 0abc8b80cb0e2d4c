//! Layer normalisation without a bias (Ba, Kiros and Hinton 2016, arXiv:1607.06450), as DBRX uses it.
//!
//! forward:  m = mean(x),  s = 1/√(mean((x − m)²) + ε),  y = (x − m)·s·w
//! backward: g = dy·w,  z = (x − m)·s,  dx += s·(g − mean(g) − z·mean(g·z)),  dw += Σₜ dy·z
//! x, y `[T, H]`, w `[H]`, m and s `[T]`. Kept for the backward: x, m and s. The input's gradient is added, since a
//! block's input also flows past the norm. The variance is taken of the centred values: the mean of squares less the
//! square of the mean would cancel where the mean is large.

use crate::buffer::{View, ViewMut};
use crate::check::{self, for_float};
use crate::cuda::{Grid, RowBlocks};
use crate::dtype::{DType, Float};
use crate::error::OpError;
use crate::parallel::{Scattered, for_column_blocks, for_row_blocks, for_row_blocks_of};
use crate::queue::{Device, Queue};
use crate::simd::{LANES, sum, vectorised};

/// y = (x − m)·s·w, keeping `mean` m and `inverse_deviation` s.
pub fn forward(
    queue: &Queue,
    x: View<'_>,
    weight: View<'_>,
    epsilon: f64,
    mut y: ViewMut<'_>,
    mut mean: ViewMut<'_>,
    mut inverse_deviation: ViewMut<'_>,
) -> Result<(), OpError> {
    const OPERATOR: &str = "layer_norm::forward";
    let (rows, width) = check::matrix(OPERATOR, "x", x.shape())?;
    check::shape(OPERATOR, "weight", weight.shape(), [width])?;
    check::shape(OPERATOR, "y", y.shape(), [rows, width])?;
    check::shape(OPERATOR, "mean", mean.shape(), [rows])?;
    check::shape(OPERATOR, "inverse_deviation", inverse_deviation.shape(), [rows])?;
    match queue.device() {
        Device::Cpu => for_float!(OPERATOR, x, F => {
            let (x, weight) = (x.as_slice::<F>()?, weight.as_slice::<F>()?);
            let (y, epsilon) = (y.as_slice_mut::<F>()?, F::from_f64(epsilon));
            let (mean, inverse_deviation) = (mean.as_slice_mut::<F>()?, inverse_deviation.as_slice_mut::<F>()?);
            for_row_blocks((mean, 1), (inverse_deviation, 1), |first, mean, inverse_deviation| {
                vectorised(#[inline(always)] || {
                    let x = x[first * width..].chunks_exact(width);
                    for ((x, mean), inverse_deviation) in x.zip(mean).zip(inverse_deviation) {
                        (*mean, *inverse_deviation) = statistics(x, epsilon);
                    }
                });
            });
            normalise(x, weight, mean, inverse_deviation, y);
            Ok(())
        }),
        Device::Cuda(stream) => {
            let dtype = x.dtype();
            let variant = stream.variant(OPERATOR, "x", dtype)?;
            let blocks = RowBlocks::new(stream, rows, width, dtype);
            stream
                .kernel(OPERATOR, "layer_norm", &format!("layer_norm_forward_{variant}"))
                .input("x", x, dtype)
                .input("weight", weight, dtype)
                .f32(epsilon)
                .output("y", &y, dtype)
                .output("mean", &mean, DType::F32)
                .output("inverse_deviation", &inverse_deviation, DType::F32)
                .u32(rows)
                .u32(width)
                .launch(Grid::blocks(blocks.count).shared(2 * blocks.row_bytes))
        }
    }
}

/// The mean of one row and 1/√(variance + ε).
#[inline(always)]
fn statistics<T: Float>(x: &[T], epsilon: T) -> (T, T) {
    let count = T::from_f64(x.len() as f64);
    let mean = sum(x) / count;
    let mut lanes = [T::ZERO; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for lane in 0..LANES {
            let centred = chunk[lane] - mean;
            lanes[lane] = centred.mul_add(centred, lanes[lane]);
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(rest) {
        *lane = (x - mean).mul_add(x - mean, *lane);
    }
    (mean, T::ONE / (sum(&lanes) / count + epsilon).sqrt())
}

fn normalise<T: Float>(x: &[T], weight: &[T], mean: &[T], inverse_deviation: &[T], y: &mut [T]) {
    let width = weight.len();
    for_row_blocks_of(y, width, |first, y| {
        vectorised(
            #[inline(always)]
            || {
                for (row, y) in y.chunks_exact_mut(width).enumerate() {
                    let row = first + row;
                    let (mean, s) = (mean[row], inverse_deviation[row]);
                    for ((y, &x), &w) in y.iter_mut().zip(&x[row * width..]).zip(weight) {
                        *y = (x - mean) * s * w;
                    }
                }
            },
        );
    });
}

/// Adds the gradients of x and of the weight.
#[allow(clippy::too_many_arguments)]
pub fn backward(
    queue: &Queue,
    dy: View<'_>,
    x: View<'_>,
    weight: View<'_>,
    mean: View<'_>,
    inverse_deviation: View<'_>,
    mut dx: ViewMut<'_>,
    mut dweight: ViewMut<'_>,
) -> Result<(), OpError> {
    const OPERATOR: &str = "layer_norm::backward";
    let (rows, width) = check::matrix(OPERATOR, "x", x.shape())?;
    check::shape(OPERATOR, "dy", dy.shape(), [rows, width])?;
    check::shape(OPERATOR, "weight", weight.shape(), [width])?;
    check::shape(OPERATOR, "mean", mean.shape(), [rows])?;
    check::shape(OPERATOR, "inverse_deviation", inverse_deviation.shape(), [rows])?;
    check::shape(OPERATOR, "dx", dx.shape(), [rows, width])?;
    check::shape(OPERATOR, "dweight", dweight.shape(), [width])?;
    match queue.device() {
        Device::Cpu => for_float!(OPERATOR, x, F => {
            let normed = Normed {
                x: x.as_slice::<F>()?,
                width,
                mean: mean.as_slice::<F>()?,
                inverse_deviation: inverse_deviation.as_slice::<F>()?,
            };
            let (dy, weight) = (dy.as_slice::<F>()?, weight.as_slice::<F>()?);
            let dweight = dweight.as_slice_mut::<F>()?;
            input_gradient(dy, normed, weight, dx.as_slice_mut::<F>()?);
            weight_gradient(dy, normed, dweight);
            Ok(())
        }),
        Device::Cuda(stream) => {
            let dtype = x.dtype();
            let variant = stream.variant(OPERATOR, "x", dtype)?;
            let blocks = RowBlocks::new(stream, rows, width, dtype);
            let partial = stream.scratch(OPERATOR, blocks.partial_bytes())?;
            stream
                .kernel(OPERATOR, "layer_norm", &format!("layer_norm_backward_{variant}"))
                .input("dy", dy, dtype)
                .input("x", x, dtype)
                .input("weight", weight, dtype)
                .input("mean", mean, DType::F32)
                .input("inverse_deviation", inverse_deviation, DType::F32)
                .output("dx", &dx, dtype)
                .scratch(partial, 0)
                .u32(rows)
                .u32(width)
                .launch(Grid::blocks(blocks.count).shared(3 * blocks.row_bytes + blocks.sum_bytes))?;
            blocks.add_partial(stream, OPERATOR, partial, &dweight)
        }
    }
}

/// The input and its rows' statistics, from which both gradients compute z again.
#[derive(Clone, Copy)]
struct Normed<'a, T> {
    x: &'a [T],
    width: usize,
    mean: &'a [T],
    inverse_deviation: &'a [T],
}

impl<T: Float> Normed<'_, T> {
    /// A row of x, its mean and its inverse deviation.
    #[inline(always)]
    fn row(&self, row: usize) -> (&[T], T, T) {
        (&self.x[row * self.width..][..self.width], self.mean[row], self.inverse_deviation[row])
    }
}

fn input_gradient<T: Float>(dy: &[T], normed: Normed<'_, T>, weight: &[T], dx: &mut [T]) {
    let width = weight.len();
    for_row_blocks_of(dx, width, |first, dx| {
        vectorised(
            #[inline(always)]
            || {
                for (row, dx) in dx.chunks_exact_mut(width).enumerate() {
                    let row = first + row;
                    input_gradient_row(&dy[row * width..][..width], normed.row(row), weight, dx);
                }
            },
        );
    });
}

#[inline(always)]
fn input_gradient_row<T: Float>(dy: &[T], (x, mean, s): (&[T], T, T), weight: &[T], dx: &mut [T]) {
    let mut sums = [T::ZERO; LANES];
    let mut products = [T::ZERO; LANES];
    for ((dy, x), w) in dy.chunks(LANES).zip(x.chunks(LANES)).zip(weight.chunks(LANES)) {
        for ((((sum, product), &dy), &x), &w) in sums.iter_mut().zip(&mut products).zip(dy).zip(x).zip(w) {
            *sum += dy * w;
            *product = (dy * w).mul_add((x - mean) * s, *product);
        }
    }
    let count = T::from_f64(x.len() as f64);
    let (mean_g, mean_gz) = (sum(&sums) / count, sum(&products) / count);
    for (((dx, &dy), &x), &w) in dx.iter_mut().zip(dy).zip(x).zip(weight) {
        *dx += s * (dy * w - mean_g - (x - mean) * s * mean_gz);
    }
}

fn weight_gradient<T: Float>(dy: &[T], normed: Normed<'_, T>, dweight: &mut [T]) {
    let width = dweight.len();
    let dweight = Scattered::new(dweight);
    for_column_blocks(width, |columns| {
        // SAFETY: each task has its own columns.
        #[allow(unsafe_code)]
        let sums = unsafe { dweight.piece(columns.start, columns.len()) };
        vectorised(
            #[inline(always)]
            || {
                for (row, dy) in dy.chunks_exact(width).enumerate() {
                    let (x, mean, s) = normed.row(row);
                    for ((sum, &dy), &x) in sums.iter_mut().zip(&dy[columns.clone()]).zip(&x[columns.clone()])
                    {
                        *sum = dy.mul_add((x - mean) * s, *sum);
                    }
                }
            },
        );
    });
}
