//! A linear layer for each expert of a group, on the expert's own sorted rows.
//!
//! forward:  y = x·M;  backward: dx = dy·Mᵀ,  dM += xᵀ·dy
//! x `[T·k, K]`, y `[T·k, N]`; only the group's rows are read or written. M is `[K, N]`, stored as [`WeightLayout`] says,
//! expert after expert of the group. Kept for the backward: x. An expert without rows leaves its dM as it is.

use rayon::prelude::*;

use crate::buffer::{Shape, View, ViewMut};
use crate::check::{self, for_float};
use crate::cuda::{Grid, Kernel, Stream, is_aligned};
use crate::dtype::{DType, Float};
use crate::error::OpError;
use crate::gemm::{Factors, Matrix, MatrixMut, Output, Threads, product};
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
    let experts = rows.len(OPERATOR)?;
    check::shape(OPERATOR, "weight", weight.shape(), layout.shape(experts, inputs, outputs))?;
    match queue.device() {
        Device::Cpu => for_float!(OPERATOR, x, F => {
            let group = rows.resolve(OPERATOR, count)?;
            let weight = weight.as_slice::<F>()?;
            let (x, y) = ((x.as_slice::<F>()?, inputs), (y.as_slice_mut::<F>()?, outputs));
            multiply_rows(queue.factors(), group, x, y, |expert| layout.matrix(weight, expert, inputs, outputs));
            Ok(())
        }),
        Device::Cuda(stream) => {
            let kernels = Kernels::new(OPERATOR, stream, rows, [x, y.as_view()], weight)?;
            kernels.multiply_rows(x, weight, layout == WeightLayout::OutputsInputs, &y)
        }
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
    let experts = rows.len(OPERATOR)?;
    check::shape(OPERATOR, "weight", weight.shape(), layout.shape(experts, inputs, outputs))?;
    match queue.device() {
        Device::Cpu => for_float!(OPERATOR, dy, F => {
            let group = rows.resolve(OPERATOR, count)?;
            let weight = weight.as_slice::<F>()?;
            let (dy, dx) = ((dy.as_slice::<F>()?, outputs), (dx.as_slice_mut::<F>()?, inputs));
            multiply_rows(queue.factors(), group, dy, dx, |expert| {
                layout.matrix(weight, expert, inputs, outputs).transposed()
            });
            Ok(())
        }),
        Device::Cuda(stream) => {
            let kernels = Kernels::new(OPERATOR, stream, rows, [dy, dx.as_view()], weight)?;
            kernels.multiply_rows(dy, weight, layout == WeightLayout::InputsOutputs, &dx)
        }
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
    let experts = rows.len(OPERATOR)?;
    check::shape(OPERATOR, "dweight", dweight.shape(), layout.shape(experts, inputs, outputs))?;
    match queue.device() {
        Device::Cpu => for_float!(OPERATOR, dy, F => {
            let group = rows.resolve(OPERATOR, count)?;
            let (dy, x) = ((dy.as_slice::<F>()?, outputs), (x.as_slice::<F>()?, inputs));
            let dweight = dweight.as_slice_mut::<F>()?;
            match layout {
                WeightLayout::OutputsInputs => add_products(queue.factors(), group, dy, x, dweight),
                WeightLayout::InputsOutputs => add_products(queue.factors(), group, x, dy, dweight),
            }
            Ok(())
        }),
        Device::Cuda(stream) => {
            let kernels = Kernels::new(OPERATOR, stream, rows, [dy, x], dweight.as_view())?;
            match layout {
                WeightLayout::OutputsInputs => kernels.add_products(dy, x, &dweight),
                WeightLayout::InputsOutputs => kernels.add_products(x, dy, &dweight),
            }
        }
    }
}

/// y = x·matrix(expert) on each expert's rows; x and y with the widths of their rows.
fn multiply_rows<'a, T: Float>(
    factors: Factors,
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
    run(products, Output::Replace, factors);
}

/// dm += aᵀ·b for each expert, a and b being its rows, with the widths of the rows.
fn add_products<T: Float>(
    factors: Factors,
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
    run(products, Output::Add, factors);
}

/// Multiply-adds from which a product keeps the whole pool busy by itself.
const LARGE: usize = 1 << 27;

/// Computes all of `products`, (c, a, b) each. Large ones run one after the other, each on the whole pool: side by side
/// their packed operands would drive each other out of the caches. Small ones run side by side, for they are too short
/// to be shared out. Either way each is the same call, so the choice does not show in its bits.
fn run<T: Float>(
    products: Vec<(MatrixMut<'_, T>, Matrix<'_, T>, Matrix<'_, T>)>,
    output: Output,
    factors: Factors,
) {
    let work: usize = products.iter().map(|(c, a, _)| c.rows * c.columns * a.columns).sum();
    let large = work >= LARGE * products.len();
    let run = |(c, a, b)| product(c, a, b, T::ONE, output, Threads::Pool, factors);
    if large {
        products.into_iter().for_each(run);
    } else {
        products.into_par_iter().with_max_len(1).for_each(run);
    }
}

/// Elements of bf16 in 16 bytes.
const WIDE: usize = 8;

/// The kernels of a GPU: on tensor cores for bf16 whose rows all begin at 16 bytes, plain ones for all else.
struct Kernels<'a> {
    stream: &'a Stream,
    operator: &'static str,
    dtype: DType,
    /// The group's own, which only the kernels read.
    offsets: View<'a>,
    experts: usize,
    /// Sorted rows of all groups: as many as this one can have.
    rows: usize,
    on_tensor_cores: bool,
}

impl<'a> Kernels<'a> {
    /// For a group's rows of two matrices, and its weight or the gradient of that.
    fn new(
        operator: &'static str,
        stream: &'a Stream,
        group: &ExpertRows<'a>,
        [left, right]: [View<'_>; 2],
        weight: View<'_>,
    ) -> Result<Self, OpError> {
        let dtype = left.dtype();
        let (rows, left_width) = check::matrix(operator, "rows", left.shape())?;
        let (_, right_width) = check::matrix(operator, "rows", right.shape())?;
        let is_wide = left_width.is_multiple_of(WIDE) && right_width.is_multiple_of(WIDE);
        let on_tensor_cores = dtype == DType::BF16 && is_wide && is_aligned(&[left, right, weight]);
        let (offsets, experts) = (group.own_offsets(operator)?, group.len(operator)?);
        Ok(Self { stream, operator, dtype, offsets, experts, rows, on_tensor_cores })
    }

    /// Rows and columns of a block's tile of the result.
    fn side(&self) -> usize {
        if self.on_tensor_cores { 128 } else { 64 }
    }

    /// A grid of blocks that have each a tile; those on tensor cores have two stages of two tiles 128×64 of operands.
    fn grid(&self, columns: usize, rows_of_tiles: usize, experts: usize) -> Grid {
        let shared = if self.on_tensor_cores { 2 * 2 * 128 * 64 * DType::BF16.size() } else { 0 };
        Grid::of([columns.div_ceil(self.side()), rows_of_tiles, experts]).shared(shared)
    }

    /// y = x·M for each expert, where M lies as `[outputs, inputs]` if `transposed`.
    fn multiply_rows(
        &self,
        x: View<'_>,
        weight: View<'_>,
        transposed: bool,
        y: &ViewMut<'_>,
    ) -> Result<(), OpError> {
        let (_, inputs) = check::matrix(self.operator, "x", x.shape())?;
        let (_, outputs) = check::matrix(self.operator, "y", y.shape())?;
        let kernel = match (self.on_tensor_cores, transposed) {
            (true, true) => self.kernel("experts_linear", "experts_linear_rows_transposed"),
            (true, false) => self.kernel("experts_linear", "experts_linear_rows_straight"),
            (false, _) => self.plain_kernel("experts_linear_plain_rows")?,
        };
        let kernel = kernel
            .input("x", x, self.dtype)
            .input("weight", weight, self.dtype)
            .input("offsets", self.offsets, DType::U32)
            .u32(self.experts)
            .output("y", y, self.dtype)
            .u32(inputs)
            .u32(outputs);
        // There are no more tiles than that, since each expert has at most one that is not full.
        let grid = self.grid(outputs, self.rows.div_ceil(self.side()) + self.experts, 1);
        match self.on_tensor_cores {
            true => kernel.launch(grid),
            false => kernel.u32(usize::from(transposed)).launch(grid),
        }
    }

    /// dm += aᵀ·b for each expert.
    fn add_products(&self, a: View<'_>, b: View<'_>, dm: &ViewMut<'_>) -> Result<(), OpError> {
        let (_, a_width) = check::matrix(self.operator, "a", a.shape())?;
        let (_, b_width) = check::matrix(self.operator, "b", b.shape())?;
        let kernel = match self.on_tensor_cores {
            true => self.kernel("experts_linear", "experts_linear_weight"),
            false => self.plain_kernel("experts_linear_plain_weight")?,
        };
        kernel
            .input("a", a, self.dtype)
            .input("b", b, self.dtype)
            .input("offsets", self.offsets, DType::U32)
            .output("dweight", dm, DType::F32)
            .u32(a_width)
            .u32(b_width)
            .launch(self.grid(b_width, a_width.div_ceil(self.side()), self.experts))
    }

    fn kernel(&self, file: &'static str, name: &str) -> Kernel<'a> {
        self.stream.kernel(self.operator, file, name)
    }

    fn plain_kernel(&self, name: &str) -> Result<Kernel<'a>, OpError> {
        let variant = self.stream.variant(self.operator, "x", self.dtype)?;
        Ok(self.kernel("experts_linear_plain", &format!("{name}_{variant}")))
    }
}
