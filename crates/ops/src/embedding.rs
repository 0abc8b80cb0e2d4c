//! Token embedding: a row of the table for each token.
//!
//! forward: x\[t\] = W\[token(t)\]; backward: dW\[token(t)\] += dx\[t\].
//! tokens `[T]` u32, W `[V, H]`, x `[T, H]`. Nothing is kept. A token may occur often: its rows are added in the order
//! of the tokens, each block of columns by one task, so that the sum has one order.
//! On a GPU dW is fp32, and tokens are checked by whoever uploads them, not here.

use crate::buffer::{View, ViewMut};
use crate::check::{self, for_float};
use crate::cuda::Grid;
use crate::dtype::{DType, Float};
use crate::error::OpError;
use crate::parallel::{Scattered, for_column_blocks, for_row_blocks_of};
use crate::queue::{Device, Queue};
use crate::rows;

/// Positions whose ranks a block of `embedding_sort` counts.
const SORTED_BY_BLOCK: usize = 64;

/// Columns of a token's row that a block of `embedding_backward` adds up.
const COLUMNS_OF_BLOCK: usize = 1024;

/// Looks up `tokens` `[T]` in `weight` `[V, H]` and writes `x` `[T, H]`.
pub fn forward(queue: &Queue, tokens: View<'_>, weight: View<'_>, mut x: ViewMut<'_>) -> Result<(), OpError> {
    const OPERATOR: &str = "embedding::forward";
    let (vocabulary, width) = check::matrix(OPERATOR, "weight", weight.shape())?;
    let count = check::vector(OPERATOR, "tokens", tokens.shape())?;
    check::shape(OPERATOR, "x", x.shape(), [count, width])?;
    match queue.device() {
        Device::Cpu => for_float!(OPERATOR, weight, F => {
            let tokens = tokens.as_slice::<u32>()?;
            check::indices(OPERATOR, tokens, vocabulary)?;
            let weight = weight.as_slice::<F>()?;
            for_row_blocks_of(x.as_slice_mut::<F>()?, width, |first, rows| {
                for (row, &token) in rows.chunks_exact_mut(width).zip(&tokens[first..]) {
                    row.copy_from_slice(&weight[token as usize * width..][..width]);
                }
            });
            Ok(())
        }),
        Device::Cuda(stream) => rows::pick(stream, OPERATOR, weight, tokens, &x),
    }
}

/// Adds the rows of `dx` `[T, H]` to the rows of `dweight` `[V, H]` that `tokens` `[T]` name.
pub fn backward(
    queue: &Queue,
    tokens: View<'_>,
    dx: View<'_>,
    mut dweight: ViewMut<'_>,
) -> Result<(), OpError> {
    const OPERATOR: &str = "embedding::backward";
    let (vocabulary, width) = check::matrix(OPERATOR, "dweight", dweight.shape())?;
    let count = check::vector(OPERATOR, "tokens", tokens.shape())?;
    check::shape(OPERATOR, "dx", dx.shape(), [count, width])?;
    match queue.device() {
        Device::Cpu => for_float!(OPERATOR, dx, F => {
            let tokens = tokens.as_slice::<u32>()?;
            check::indices(OPERATOR, tokens, vocabulary)?;
            scatter_add(tokens, dx.as_slice::<F>()?, dweight.as_slice_mut::<F>()?, width);
            Ok(())
        }),
        Device::Cuda(stream) => {
            let dtype = dx.dtype();
            let variant = stream.variant(OPERATOR, "dx", dtype)?;
            let order = stream.scratch(OPERATOR, count * DType::U32.size())?;
            stream
                .kernel(OPERATOR, "embedding", "embedding_sort")
                .input("tokens", tokens, DType::U32)
                .scratch(order, 0)
                .u32(count)
                .launch(Grid::blocks(count.div_ceil(SORTED_BY_BLOCK)))?;
            stream
                .kernel(OPERATOR, "embedding", &format!("embedding_backward_{variant}"))
                .input("tokens", tokens, DType::U32)
                .scratch(order, 0)
                .input("dx", dx, dtype)
                .output("dweight", &dweight, DType::F32)
                .u32(count)
                .u32(width)
                .launch(Grid::of([count, width.div_ceil(COLUMNS_OF_BLOCK), 1]))
        }
    }
}

fn scatter_add<T: Float>(tokens: &[u32], dx: &[T], dweight: &mut [T], width: usize) {
    let dweight = Scattered::new(dweight);
    for_column_blocks(width, |columns| {
        for (token, dx) in tokens.iter().zip(dx.chunks_exact(width)) {
            // SAFETY: each task has its own columns of every row.
            #[allow(unsafe_code)]
            let row = unsafe { dweight.piece(*token as usize * width + columns.start, columns.len()) };
            for (sum, &value) in row.iter_mut().zip(&dx[columns.clone()]) {
                *sum += value;
            }
        }
    });
}
