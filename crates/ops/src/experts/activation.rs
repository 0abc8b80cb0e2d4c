//! The gated activation of experts, with the slot's routing weight folded in.
//!
//! forward:  a\[i\] = w·g·σ(g)·u for the group's sorted rows i, with w = weights\[slots\[i\]\]
//! backward: du = w·da·g·σ(g),  dg = w·da·u·σ(g)·(1 + g·(1 − σ(g))),  dw\[slots\[i\]\] = Σ da·g·σ(g)·u
//! gate_up `[T·k, 2F]` holds g then u in each row, a `[T·k, F]`, weights `[T, k]`. Kept: gate_up, which the backward
//! overwrites with its own gradient. Weighting here instead of behind the down projection is the same by linearity; the
//! weight's gradient then needs no output of the experts, which would have to be kept or computed again.

use rayon::prelude::*;

use crate::buffer::{View, ViewMut};
use crate::check::{self, for_float};
use crate::cuda::Grid;
use crate::dtype::{DType, Float};
use crate::error::OpError;
use crate::parallel::for_row_blocks_of;
use crate::queue::{Device, Queue};
use crate::simd::{LANES, sum, vectorised};
use crate::swiglu::sigmoid;

use super::{ExpertRows, Group};

/// The kernels of a GPU.
const FILE: &str = "experts_activation";

/// a = w·silu(g)·u.
pub fn forward(
    queue: &Queue,
    gate_up: View<'_>,
    weights: View<'_>,
    slots: View<'_>,
    rows: &ExpertRows<'_>,
    mut activation: ViewMut<'_>,
) -> Result<(), OpError> {
    const OPERATOR: &str = "experts::activation::forward";
    let (count, width) = check::matrix(OPERATOR, "activation", activation.shape())?;
    check::shape(OPERATOR, "gate_up", gate_up.shape(), [count, 2 * width])?;
    check_weights(OPERATOR, "weights", weights, count)?;
    check::shape(OPERATOR, "slots", slots.shape(), [count])?;
    rows.len(OPERATOR)?;
    match queue.device() {
        Device::Cpu => for_float!(OPERATOR, gate_up, F => {
            let (group, slots) = group_slots(OPERATOR, rows, slots, count)?;
            let gate_up = &gate_up.as_slice::<F>()?[group.elements(2 * width)];
            let weights = weights.as_slice::<F>()?;
            let activation = &mut activation.as_slice_mut::<F>()?[group.elements(width)];
            for_row_blocks_of(activation, width, |first, block| vectorised(#[inline(always)] || {
                let inputs = gate_up[first * 2 * width..].chunks_exact(2 * width).zip(&slots[first..]);
                for (activation, (input, &slot)) in block.chunks_exact_mut(width).zip(inputs) {
                    let (gate, up) = input.split_at(width);
                    let weight = weights[slot as usize];
                    for ((a, &g), &u) in activation.iter_mut().zip(gate).zip(up) {
                        *a = weight * (g * sigmoid(g) * u);
                    }
                }
            }));
            Ok(())
        }),
        Device::Cuda(stream) => {
            let dtype = gate_up.dtype();
            let variant = stream.variant(OPERATOR, "gate_up", dtype)?;
            let kernel = stream
                .kernel(OPERATOR, FILE, &format!("experts_activation_forward_{variant}"))
                .input("gate_up", gate_up, dtype)
                .input("weights", weights, DType::F32)
                .input("slots", slots, DType::U32);
            let kernel = rows.describe(kernel).output("activation", &activation, dtype).u32(width);
            kernel.launch(Grid::blocks(count))
        }
    }
}

/// Overwrites the group's rows of `gate_up` with their gradient, and writes the group's slots of `dweights`.
pub fn backward(
    queue: &Queue,
    dactivation: View<'_>,
    weights: View<'_>,
    slots: View<'_>,
    rows: &ExpertRows<'_>,
    mut gate_up: ViewMut<'_>,
    mut dweights: ViewMut<'_>,
) -> Result<(), OpError> {
    const OPERATOR: &str = "experts::activation::backward";
    let (count, width) = check::matrix(OPERATOR, "dactivation", dactivation.shape())?;
    check::shape(OPERATOR, "gate_up", gate_up.shape(), [count, 2 * width])?;
    check_weights(OPERATOR, "weights", weights, count)?;
    check::shape(OPERATOR, "dweights", dweights.shape(), weights.shape())?;
    check::shape(OPERATOR, "slots", slots.shape(), [count])?;
    rows.len(OPERATOR)?;
    match queue.device() {
        Device::Cpu => for_float!(OPERATOR, dactivation, F => {
            let (group, slots) = group_slots(OPERATOR, rows, slots, count)?;
            let dactivation = &dactivation.as_slice::<F>()?[group.elements(width)];
            let gate_up = &mut gate_up.as_slice_mut::<F>()?[group.elements(2 * width)];
            let (weights, dweights) = (weights.as_slice::<F>()?, dweights.as_slice_mut::<F>()?);
            let gradients: Vec<F> = gate_up
                .par_chunks_exact_mut(2 * width)
                .zip_eq(dactivation.par_chunks_exact(width))
                .zip_eq(slots)
                .map(|((row, dactivation), &slot)| vectorised(#[inline(always)] || {
                    row_gradient(row, dactivation, weights[slot as usize])
                }))
                .collect();
            for (&slot, gradient) in slots.iter().zip(gradients) {
                dweights[slot as usize] = gradient;
            }
            Ok(())
        }),
        Device::Cuda(stream) => {
            let dtype = dactivation.dtype();
            let variant = stream.variant(OPERATOR, "dactivation", dtype)?;
            let kernel = stream
                .kernel(OPERATOR, FILE, &format!("experts_activation_backward_{variant}"))
                .input("dactivation", dactivation, dtype)
                .input("weights", weights, DType::F32)
                .input("slots", slots, DType::U32);
            let kernel = rows.describe(kernel).output("gate_up", &gate_up, dtype);
            kernel.output("dweights", &dweights, DType::F32).u32(width).launch(Grid::blocks(count))
        }
    }
}

/// Fails unless `weights` is a matrix of `count` elements.
fn check_weights(
    operator: &'static str,
    argument: &'static str,
    weights: View<'_>,
    count: usize,
) -> Result<(), OpError> {
    let (tokens, choices) = check::matrix(operator, argument, weights.shape())?;
    if tokens * choices == count {
        return Ok(());
    }
    Err(OpError::Shape {
        operator,
        argument,
        found: weights.shape().extents().to_vec(),
        expected: format!("a matrix of {count} elements"),
    })
}

/// The group, and the slots of its rows, which must be below `count`; both on the host.
fn group_slots<'a>(
    operator: &'static str,
    rows: &ExpertRows<'a>,
    slots: View<'a>,
    count: usize,
) -> Result<(Group<'a>, &'a [u32]), OpError> {
    let group = rows.resolve(operator, count)?;
    let slots = &slots.as_slice::<u32>()?[group.rows()];
    check::indices(operator, slots, count)?;
    Ok((group, slots))
}

/// Overwrites g and u of one row with their gradients; the gradient of its weight.
#[inline(always)]
fn row_gradient<T: Float>(row: &mut [T], dactivation: &[T], weight: T) -> T {
    let (gate, up) = row.split_at_mut(dactivation.len());
    let mut lanes = [T::ZERO; LANES];
    let chunks = gate.chunks_mut(LANES).zip(up.chunks_mut(LANES)).zip(dactivation.chunks(LANES));
    for ((gate, up), dactivation) in chunks {
        for (((lane, gate), up), &da) in lanes.iter_mut().zip(gate).zip(up).zip(dactivation) {
            let (g, u) = (*gate, *up);
            let s = sigmoid(g);
            *gate = weight * da * u * s * (T::ONE + g * (T::ONE - s));
            *up = weight * da * g * s;
            *lane = (g * s * u).mul_add(da, *lane);
        }
    }
    sum(&lanes)
}
