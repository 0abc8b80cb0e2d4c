//! Moving tokens into the order of the experts, and adding experts' rows back to their tokens.
//!
//! gather:  y\[i\] = x\[slots\[i\]/k\] for the group's sorted rows i
//! combine: y\[t\] += Σ x\[i\] over the group's sorted rows i of token t, in rising i
//! Tokens are `[T, H]`, sorted rows `[T·k, H]`. Tokens are spread over threads; a token's own sum has one order.

use std::ops::Range;

use crate::buffer::{View, ViewMut};
use crate::check::{self, for_float};
use crate::cuda::Grid;
use crate::dtype::{DType, Float};
use crate::error::OpError;
use crate::parallel::for_row_blocks_of;
use crate::queue::{Device, Queue};

use super::ExpertRows;

/// The kernels of a GPU.
const FILE: &str = "experts_rows";

/// Writes the group's sorted rows of `y` `[T·k, H]` from `x` `[T, H]`; the other rows stay as they are.
pub fn gather(
    queue: &Queue,
    x: View<'_>,
    slots: View<'_>,
    k: usize,
    rows: &ExpertRows<'_>,
    mut y: ViewMut<'_>,
) -> Result<(), OpError> {
    const OPERATOR: &str = "experts::gather";
    let (tokens, width) = check::matrix(OPERATOR, "x", x.shape())?;
    let count = check::vector(OPERATOR, "slots", slots.shape())?;
    check::shape(OPERATOR, "slots", slots.shape(), [tokens.saturating_mul(k)])?;
    check::shape(OPERATOR, "y", y.shape(), [count, width])?;
    rows.len(OPERATOR)?;
    match queue.device() {
        Device::Cpu => for_float!(OPERATOR, x, F => {
            let group = rows.resolve(OPERATOR, count)?;
            let slots = &slots.as_slice::<u32>()?[group.rows()];
            check::indices(OPERATOR, slots, count)?;
            let x = x.as_slice::<F>()?;
            let y = &mut y.as_slice_mut::<F>()?[group.elements(width)];
            for_row_blocks_of(y, width, |first, block| {
                for (y, &slot) in block.chunks_exact_mut(width).zip(&slots[first..]) {
                    y.copy_from_slice(&x[slot as usize / k * width..][..width]);
                }
            });
            Ok(())
        }),
        Device::Cuda(stream) => {
            let dtype = x.dtype();
            let variant = stream.variant(OPERATOR, "x", dtype)?;
            let kernel = stream
                .kernel(OPERATOR, FILE, &format!("experts_gather_{variant}"))
                .input("x", x, dtype)
                .input("slots", slots, DType::U32);
            rows.describe(kernel).output("y", &y, dtype).u32(k).u32(width).launch(Grid::blocks(count))
        }
    }
}

/// Adds the group's sorted rows of `x` `[T·k, H]` to their tokens in `y` `[T, H]`. `places` must invert `slots` there:
/// a row that no token knew of would be lost without a trace.
pub fn combine(
    queue: &Queue,
    x: View<'_>,
    slots: View<'_>,
    places: View<'_>,
    k: usize,
    rows: &ExpertRows<'_>,
    mut y: ViewMut<'_>,
) -> Result<(), OpError> {
    const OPERATOR: &str = "experts::combine";
    let (tokens, width) = check::matrix(OPERATOR, "y", y.shape())?;
    let (count, _) = check::matrix(OPERATOR, "x", x.shape())?;
    check::shape(OPERATOR, "x", x.shape(), [tokens.saturating_mul(k), width])?;
    check::shape(OPERATOR, "slots", slots.shape(), [count])?;
    check::shape(OPERATOR, "places", places.shape(), [count])?;
    rows.len(OPERATOR)?;
    match queue.device() {
        Device::Cpu => for_float!(OPERATOR, x, F => {
            let group = rows.resolve(OPERATOR, count)?;
            let places = places.as_slice::<u32>()?;
            check_inverse(OPERATOR, slots.as_slice::<u32>()?, places, group.rows())?;
            let x = x.as_slice::<F>()?;
            for_row_blocks_of(y.as_slice_mut::<F>()?, width, |first, block| {
                for (token, y) in (first..).zip(block.chunks_exact_mut(width)) {
                    add_rows(x, &places[token * k..][..k], group.rows(), y);
                }
            });
            Ok(())
        }),
        Device::Cuda(stream) => {
            let dtype = x.dtype();
            let variant = stream.variant(OPERATOR, "x", dtype)?;
            let kernel = stream
                .kernel(OPERATOR, FILE, &format!("experts_combine_{variant}"))
                .input("x", x, dtype)
                .input("places", places, DType::U32);
            let kernel = rows.describe(kernel).output("y", &y, dtype).u32(k).u32(width);
            kernel.launch(Grid::blocks(tokens).shared(k * DType::U32.size()))
        }
    }
}

/// Fails unless `places` has each of the sorted `rows` at the slot that `slots` names.
fn check_inverse(
    operator: &'static str,
    slots: &[u32],
    places: &[u32],
    rows: Range<usize>,
) -> Result<(), OpError> {
    check::indices(operator, &slots[rows.clone()], places.len())?;
    match rows.into_iter().find(|&row| places[slots[row] as usize] as usize != row) {
        None => Ok(()),
        Some(row) => Err(OpError::Shape {
            operator,
            argument: "places",
            found: vec![places[slots[row] as usize] as usize],
            expected: format!("row {row}, which `slots` gives the slot {}", slots[row]),
        }),
    }
}

/// Adds to `y` the rows of `x` that `places` names inside `group`, in rising order.
fn add_rows<T: Float>(x: &[T], places: &[u32], group: Range<usize>, y: &mut [T]) {
    let width = y.len();
    let next = |from: usize| {
        places.iter().map(|&place| place as usize).filter(|place| (from..group.end).contains(place)).min()
    };
    let mut from = group.start;
    while let Some(row) = next(from) {
        for (y, &x) in y.iter_mut().zip(&x[row * width..]) {
            *y += x;
        }
        from = row + 1;
    }
}
