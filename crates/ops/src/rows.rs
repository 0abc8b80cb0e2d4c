//! Picking rows of a matrix and putting them back: the head is computed only where there is a loss.
//!
//! gather: y\[i\] = x\[index(i)\]; scatter: x\[index(i)\] = y\[i\]. x `[T, H]`, index `[C]` u32 (each value at most
//! once for `scatter`), y `[C, H]`. On a GPU indices are checked by whoever uploads them, not here.

use crate::buffer::{View, ViewMut};
use crate::check::{self, for_float};
use crate::cuda::{Grid, Stream};
use crate::dtype::DType;
use crate::error::OpError;
use crate::parallel::for_row_blocks_of;
use crate::queue::{Device, Queue};

/// y\[i\] = x\[index(i)\].
pub fn gather(queue: &Queue, x: View<'_>, index: View<'_>, mut y: ViewMut<'_>) -> Result<(), OpError> {
    const OPERATOR: &str = "rows::gather";
    let (rows, width) = check::matrix(OPERATOR, "x", x.shape())?;
    let count = check::vector(OPERATOR, "index", index.shape())?;
    check::shape(OPERATOR, "y", y.shape(), [count, width])?;
    match queue.device() {
        Device::Cpu => for_float!(OPERATOR, x, F => {
            let index = index.as_slice::<u32>()?;
            check::indices(OPERATOR, index, rows)?;
            let x = x.as_slice::<F>()?;
            for_row_blocks_of(y.as_slice_mut::<F>()?, width, |first, block| {
                for (y, &row) in block.chunks_exact_mut(width).zip(&index[first..]) {
                    y.copy_from_slice(&x[row as usize * width..][..width]);
                }
            });
            Ok(())
        }),
        Device::Cuda(stream) => pick(stream, OPERATOR, x, index, &y),
    }
}

/// The gather on a GPU: whole rows `[C, H]` of a matrix of H columns, for `operator`.
pub(crate) fn pick(
    stream: &Stream,
    operator: &'static str,
    x: View<'_>,
    index: View<'_>,
    y: &ViewMut<'_>,
) -> Result<(), OpError> {
    let (count, width) = check::matrix(operator, "y", y.shape())?;
    let dtype = x.dtype();
    let variant = stream.variant(operator, "x", dtype)?;
    stream
        .kernel(operator, "rows", &format!("rows_gather_{variant}"))
        .input("x", x, dtype)
        .input("index", index, DType::U32)
        .output("y", y, dtype)
        .u32(width)
        .launch(Grid::blocks(count))
}

/// x\[index(i)\] = y\[i\]; other rows stay as they are.
pub fn scatter(queue: &Queue, y: View<'_>, index: View<'_>, mut x: ViewMut<'_>) -> Result<(), OpError> {
    const OPERATOR: &str = "rows::scatter";
    let (rows, width) = check::matrix(OPERATOR, "x", x.shape())?;
    let count = check::vector(OPERATOR, "index", index.shape())?;
    check::shape(OPERATOR, "y", y.shape(), [count, width])?;
    match queue.device() {
        Device::Cpu => for_float!(OPERATOR, y, F => {
            let index = index.as_slice::<u32>()?;
            check::indices(OPERATOR, index, rows)?;
            let x = x.as_slice_mut::<F>()?;
            for (y, &row) in y.as_slice::<F>()?.chunks_exact(width).zip(index) {
                x[row as usize * width..][..width].copy_from_slice(y);
            }
            Ok(())
        }),
        Device::Cuda(stream) => {
            let dtype = y.dtype();
            let variant = stream.variant(OPERATOR, "y", dtype)?;
            stream
                .kernel(OPERATOR, "rows", &format!("rows_scatter_{variant}"))
                .input("y", y, dtype)
                .input("index", index, DType::U32)
                .output("x", &x, dtype)
                .u32(width)
                .launch(Grid::blocks(count))
        }
    }
}
