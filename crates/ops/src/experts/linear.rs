//! A linear layer for each expert of a group, on the expert's own sorted rows.
//!
//! forward:  y = x·M;  backward: dx = dy·Mᵀ,  dM += xᵀ·dy
//! x `[T·k, K]`, y `[T·k, N]`; only the group's rows are read or written. M is `[K, N]`, stored as [`WeightLayout`] says,
//! expert after expert of the group. Kept for the backward: x. An expert without rows leaves its dM as it is.

use rayon::prelude::*;

use crate::buffer::{Shape, View, ViewMut};
use crate::check::{self, for_float};
use crate::dtype::Float;
use crate::error::OpError;
use crate::gemm::{Matrix, MatrixMut, Output, Threads, product};
use crate::queue::{Device, Queue};

use super::{ExpertRows, Group};

/// How an expert's weight is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WeightLayout {
    /// `[N, K]`, as everywhere: y = x·Wᵀ. A group's weight is `[n·N, K]`.
    OutputsInputs,
    /// `[K, N]`, as DBRX stores its down projection: y = x·W. A group's weight is `[n·K, N]`.
    InputsOutputs,
}

impl WeightLayout {
    /// The shape of the weight of `experts` experts.
    fn shape(self, experts: usize, inputs: usize, outputs: usize) -> Shape {
        match self {
            WeightLayout::OutputsInputs => [experts.saturating_mul(outputs), inputs].into(),
            WeightLayout::InputsOutputs => [experts.saturating_mul(inputs), outputs].into(),
        }
    }

    /// M, `[inputs, outputs]`, of one expert of the group whose weight this is.
    fn matrix<T>(self, weight: &[T], expert: usize, inputs: usize, outputs: usize) -> Matrix<'_, T> {
        let weight = &weight[expert * inputs * outputs..][..inputs * outputs];
        match self {
            WeightLayout::OutputsInputs => Matrix::new(weight, outputs, inputs).transposed(),
            WeightLayout::InputsOutputs => Matrix::new(weight, inputs, outputs),
        }
    }
}

/// y = x·M.
pub fn forward(
    queue: &Queue,
    x: View<'_>,
    weight: View<'_>,
    layout: WeightLayout,
    rows: &ExpertRows<'_>,
    mut y: ViewMut<'_>,
) -> Result<(), OpError> {
    const OPERATOR: &str = "experts::linear::forward";
    let (count, inputs) = check::matrix(OPERATOR, "x", x.shape())?;
    let (_, outputs) = check::matrix(OPERATOR, "y", y.shape())?;
    check::shape(OPERATOR, "y", y.shape(), [count, outputs])?;
    let group = rows.resolve(OPERATOR, count)?;
    check::shape(OPERATOR, "weight", weight.shape(), layout.shape(group.len(), inputs, outputs))?;
    match queue.device() {
        Device::Cpu => for_float!(OPERATOR, x, F => {
            let weight = weight.as_slice::<F>()?;
            multiply_rows(group, (x.as_slice::<F>()?, inputs), (y.as_slice_mut::<F>()?, outputs), |expert| {
                layout.matrix(weight, expert, inputs, outputs)
            });
            Ok(())
        }),
        Device::Cuda(_) => Err(crate::cuda::lacking()),
    }
}

/// dx = dy·Mᵀ.
pub fn backward_input(
    queue: &Queue,
    dy: View<'_>,
    weight: View<'_>,
    layout: WeightLayout,
    rows: &ExpertRows<'_>,
    mut dx: ViewMut<'_>,
) -> Result<(), OpError> {
    const OPERATOR: &str = "experts::linear::backward_input";
    let (count, outputs) = check::matrix(OPERATOR, "dy", dy.shape())?;
    let (_, inputs) = check::matrix(OPERATOR, "dx", dx.shape())?;
    check::shape(OPERATOR, "dx", dx.shape(), [count, inputs])?;
    let group = rows.resolve(OPERATOR, count)?;
    check::shape(OPERATOR, "weight", weight.shape(), layout.shape(group.len(), inputs, outputs))?;
    match queue.device() {
        Device::Cpu => for_float!(OPERATOR, dy, F => {
            let weight = weight.as_slice::<F>()?;
            multiply_rows(group, (dy.as_slice::<F>()?, outputs), (dx.as_slice_mut::<F>()?, inputs), |expert| {
                layout.matrix(weight, expert, inputs, outputs).transposed()
            });
            Ok(())
        }),
        Device::Cuda(_) => Err(crate::cuda::lacking()),
    }
}

/// dM += xᵀ·dy.
pub fn backward_weight(
    queue: &Queue,
    dy: View<'_>,
    x: View<'_>,
    layout: WeightLayout,
    rows: &ExpertRows<'_>,
    mut dweight: ViewMut<'_>,
) -> Result<(), OpError> {
    const OPERATOR: &str = "experts::linear::backward_weight";
    let (count, outputs) = check::matrix(OPERATOR, "dy", dy.shape())?;
    let (_, inputs) = check::matrix(OPERATOR, "x", x.shape())?;
    check::shape(OPERATOR, "x", x.shape(), [count, inputs])?;
    let group = rows.resolve(OPERATOR, count)?;
    check::shape(OPERATOR, "dweight", dweight.shape(), layout.shape(group.len(), inputs, outputs))?;
    match queue.device() {
        Device::Cpu => for_float!(OPERATOR, dy, F => {
            let (dy, x) = ((dy.as_slice::<F>()?, outputs), (x.as_slice::<F>()?, inputs));
            let dweight = dweight.as_slice_mut::<F>()?;
            match layout {
                WeightLayout::OutputsInputs => add_products(group, dy, x, dweight),
                WeightLayout::InputsOutputs => add_products(group, x, dy, dweight),
            }
            Ok(())
        }),
        Device::Cuda(_) => Err(crate::cuda::lacking()),
    }
}

/// y = x·matrix(expert) on each expert's rows; x and y with the widths of their rows.
fn multiply_rows<'a, T: Float>(
    group: Group<'_>,
    (x, x_width): (&[T], usize),
    (y, y_width): (&mut [T], usize),
    matrix: impl Fn(usize) -> Matrix<'a, T>,
) {
    let mut rest = &mut y[group.elements(y_width)];
    let mut products = Vec::new();
    for (expert, rows) in group.experts().enumerate().filter(|(_, rows)| !rows.is_empty()) {
        let (y, others) = rest.split_at_mut(rows.len() * y_width);
        rest = others;
        let x = Matrix::new(&x[rows.start * x_width..], rows.len(), x_width);
        products.push((MatrixMut::new(y, rows.len(), y_width), x, matrix(expert)));
    }
    run(products, Output::Replace);
}

/// dm += aᵀ·b for each expert, a and b being its rows, with the widths of the rows.
fn add_products<T: Float>(
    group: Group<'_>,
    (a, a_width): (&[T], usize),
    (b, b_width): (&[T], usize),
    dm: &mut [T],
) {
    let experts = group.experts().zip(dm.chunks_exact_mut(a_width * b_width));
    let products = experts
        .filter(|(rows, _)| !rows.is_empty())
        .map(|(rows, dm)| {
            let a = Matrix::new(&a[rows.start * a_width..], rows.len(), a_width).transposed();
            let b = Matrix::new(&b[rows.start * b_width..], rows.len(), b_width);
            (MatrixMut::new(dm, a_width, b_width), a, b)
        })
        .collect();
    run(products, Output::Add);
}

/// Multiply-adds from which a product keeps the whole pool busy by itself.
const LARGE: usize = 1 << 27;

/// Computes all of `products`, (c, a, b) each. Large ones run one after the other, each on the whole pool: side by side
/// their packed operands would drive each other out of the caches. Small ones run side by side, for they are too short
/// to be shared out. Either way each is the same call, so the choice does not show in its bits.
fn run<T: Float>(products: Vec<(MatrixMut<'_, T>, Matrix<'_, T>, Matrix<'_, T>)>, output: Output) {
    let work: usize = products.iter().map(|(c, a, _)| c.rows * c.columns * a.columns).sum();
    let large = work >= LARGE * products.len();
    let run = |(c, a, b)| product(c, a, b, T::ONE, output, Threads::Pool);
    if large {
        products.into_iter().for_each(run);
    } else {
        products.into_par_iter().with_max_len(1).for_each(run);
    }
}
