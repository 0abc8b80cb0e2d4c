//! The bias of a linear layer.
//!
//! forward: y += b on each row; backward: db += Σₜ dy. y `[T, N]`, b `[N]`. Nothing is kept.

use crate::buffer::{View, ViewMut};
use crate::check::{self, for_float};
use crate::cuda::{Grid, column_grid};
use crate::dtype::DType;
use crate::error::OpError;
use crate::parallel::{Scattered, for_column_blocks, for_row_blocks_of};
use crate::queue::{Device, Queue};

/// y += b.
pub fn forward(queue: &Queue, bias: View<'_>, mut y: ViewMut<'_>) -> Result<(), OpError> {
    const OPERATOR: &str = "bias::forward";
    let (rows, width) = check::matrix(OPERATOR, "y", y.shape())?;
    check::shape(OPERATOR, "bias", bias.shape(), [width])?;
    match queue.device() {
        Device::Cpu => for_float!(OPERATOR, bias, F => {
            let bias = bias.as_slice::<F>()?;
            for_row_blocks_of(y.as_slice_mut::<F>()?, width, |_, rows| {
                for row in rows.chunks_exact_mut(width) {
                    for (y, &b) in row.iter_mut().zip(bias) {
                        *y += b;
                    }
                }
            });
            Ok(())
        }),
        Device::Cuda(stream) => {
            let dtype = y.dtype();
            let variant = stream.variant(OPERATOR, "y", dtype)?;
            stream
                .kernel(OPERATOR, "bias", &format!("bias_forward_{variant}"))
                .input("bias", bias, dtype)
                .output("y", &y, dtype)
                .u32(width)
                .launch(Grid::blocks(rows))
        }
    }
}

/// db += Σₜ dy.
pub fn backward(queue: &Queue, dy: View<'_>, mut dbias: ViewMut<'_>) -> Result<(), OpError> {
    const OPERATOR: &str = "bias::backward";
    let (rows, width) = check::matrix(OPERATOR, "dy", dy.shape())?;
    check::shape(OPERATOR, "dbias", dbias.shape(), [width])?;
    match queue.device() {
        Device::Cpu => for_float!(OPERATOR, dy, F => {
            let dy = dy.as_slice::<F>()?;
            let dbias = Scattered::new(dbias.as_slice_mut::<F>()?);
            for_column_blocks(width, |columns| {
                // SAFETY: each task has its own columns.
                #[allow(unsafe_code)]
                let sums = unsafe { dbias.piece(columns.start, columns.len()) };
                for row in dy.chunks_exact(width) {
                    for (sum, &value) in sums.iter_mut().zip(&row[columns.clone()]) {
                        *sum += value;
                    }
                }
            });
            Ok(())
        }),
        Device::Cuda(stream) => {
            let dtype = dy.dtype();
            let variant = stream.variant(OPERATOR, "dy", dtype)?;
            let address = stream.address(OPERATOR, "dy", dy)?;
            stream
                .kernel(OPERATOR, "bias", &format!("bias_backward_{variant}"))
                .input("dy", dy, dtype)
                .output("dbias", &dbias, DType::F32)
                .u32(rows)
                .u32(width)
                .launch(column_grid(width, dtype, address))
        }
    }
}
