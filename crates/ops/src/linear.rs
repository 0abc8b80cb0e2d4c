//! The linear layer, whose weight is stored as `[outputs, inputs]`.
//!
//! forward:  y = x·Wᵀ, or y += x·Wᵀ (a residual stream)
//! backward: dx = dy·W, or dx += dy·W;  dW += dyᵀ·x
//! x `[T, K]`, W `[N, K]`, y `[T, N]`. Kept for the backward: x. Biases are [`crate::bias`].
//! The two factors of a product have one dtype; what it writes may be wider: logits of bf16, and dW always, are fp32.

use crate::buffer::{View, ViewMut};
use crate::check::{self, for_float};
use crate::cuda::{Operand, Product};
use crate::error::OpError;
use crate::gemm::{Matrix, MatrixMut, Output, Threads, product};
use crate::queue::{Device, Queue};

/// y = x·Wᵀ.
pub fn forward(queue: &Queue, x: View<'_>, weight: View<'_>, y: ViewMut<'_>) -> Result<(), OpError> {
    times_transposed(queue, x, weight, y, Output::Replace)
}

/// y += x·Wᵀ.
pub fn forward_add(queue: &Queue, x: View<'_>, weight: View<'_>, y: ViewMut<'_>) -> Result<(), OpError> {
    times_transposed(queue, x, weight, y, Output::Add)
}

fn times_transposed(
    queue: &Queue,
    x: View<'_>,
    weight: View<'_>,
    mut y: ViewMut<'_>,
    output: Output,
) -> Result<(), OpError> {
    const OPERATOR: &str = "linear::forward";
    let (rows, inputs) = check::matrix(OPERATOR, "x", x.shape())?;
    let (outputs, _) = check::matrix(OPERATOR, "weight", weight.shape())?;
    check::shape(OPERATOR, "weight", weight.shape(), [outputs, inputs])?;
    check::shape(OPERATOR, "y", y.shape(), [rows, outputs])?;
    match queue.device() {
        Device::Cpu => for_float!(OPERATOR, x, F => {
            product(
                MatrixMut::new(y.as_slice_mut::<F>()?, rows, outputs),
                Matrix::new(x.as_slice::<F>()?, rows, inputs),
                Matrix::new(weight.as_slice::<F>()?, outputs, inputs).transposed(),
                1.0,
                output,
                Threads::Pool,
                queue.factors(),
            );
            Ok(())
        }),
        Device::Cuda(stream) => {
            let product = Product {
                operator: OPERATOR,
                rows,
                columns: outputs,
                inner: inputs,
                a: Operand { view: x, transposed: false },
                b: Operand { view: weight, transposed: true },
                adds: output == Output::Add,
            };
            stream.product(product, &mut y)
        }
    }
}

/// dx = dy·W.
pub fn backward_input(queue: &Queue, dy: View<'_>, weight: View<'_>, dx: ViewMut<'_>) -> Result<(), OpError> {
    times(queue, dy, weight, dx, Output::Replace)
}

/// dx += dy·W, where x is used for more than one thing.
pub fn backward_input_add(
    queue: &Queue,
    dy: View<'_>,
    weight: View<'_>,
    dx: ViewMut<'_>,
) -> Result<(), OpError> {
    times(queue, dy, weight, dx, Output::Add)
}

fn times(
    queue: &Queue,
    dy: View<'_>,
    weight: View<'_>,
    mut dx: ViewMut<'_>,
    output: Output,
) -> Result<(), OpError> {
    const OPERATOR: &str = "linear::backward_input";
    let (rows, outputs) = check::matrix(OPERATOR, "dy", dy.shape())?;
    let (_, inputs) = check::matrix(OPERATOR, "weight", weight.shape())?;
    check::shape(OPERATOR, "weight", weight.shape(), [outputs, inputs])?;
    check::shape(OPERATOR, "dx", dx.shape(), [rows, inputs])?;
    match queue.device() {
        Device::Cpu => for_float!(OPERATOR, dy, F => {
            product(
                MatrixMut::new(dx.as_slice_mut::<F>()?, rows, inputs),
                Matrix::new(dy.as_slice::<F>()?, rows, outputs),
                Matrix::new(weight.as_slice::<F>()?, outputs, inputs),
                1.0,
                output,
                Threads::Pool,
                queue.factors(),
            );
            Ok(())
        }),
        Device::Cuda(stream) => {
            let product = Product {
                operator: OPERATOR,
                rows,
                columns: inputs,
                inner: outputs,
                a: Operand { view: dy, transposed: false },
                b: Operand { view: weight, transposed: false },
                adds: output == Output::Add,
            };
            stream.product(product, &mut dx)
        }
    }
}

/// dW += dyᵀ·x.
pub fn backward_weight(
    queue: &Queue,
    dy: View<'_>,
    x: View<'_>,
    mut dweight: ViewMut<'_>,
) -> Result<(), OpError> {
    const OPERATOR: &str = "linear::backward_weight";
    let (rows, outputs) = check::matrix(OPERATOR, "dy", dy.shape())?;
    let (_, inputs) = check::matrix(OPERATOR, "x", x.shape())?;
    check::shape(OPERATOR, "x", x.shape(), [rows, inputs])?;
    check::shape(OPERATOR, "dweight", dweight.shape(), [outputs, inputs])?;
    match queue.device() {
        Device::Cpu => for_float!(OPERATOR, dy, F => {
            product(
                MatrixMut::new(dweight.as_slice_mut::<F>()?, outputs, inputs),
                Matrix::new(dy.as_slice::<F>()?, rows, outputs).transposed(),
                Matrix::new(x.as_slice::<F>()?, rows, inputs),
                1.0,
                Output::Add,
                Threads::Pool,
                queue.factors(),
            );
            Ok(())
        }),
        Device::Cuda(stream) => {
            let product = Product {
                operator: OPERATOR,
                rows: outputs,
                columns: inputs,
                inner: rows,
                a: Operand { view: dy, transposed: true },
                b: Operand { view: x, transposed: false },
                adds: true,
            };
            stream.product(product, &mut dweight)
        }
    }
}
