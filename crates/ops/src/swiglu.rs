//! The gated activation of Llama's feed-forward layer (Shazeer 2020, arXiv:2002.05202, with SiLU).
//!
//! forward:  a = g·σ(g)·u
//! backward: du = da·g·σ(g),  dg = da·u·σ(g)·(1 + g·(1 − σ(g)))
//! gate_up `[T, 2F]` holds g then u in each row, a `[T, F]`. Kept: gate_up; the backward overwrites it with its own
//! gradient, which saves the largest buffer of a block.

use crate::buffer::{View, ViewMut};
use crate::check::{self, for_float};
use crate::cuda::Grid;
use crate::dtype::Float;
use crate::error::OpError;
use crate::parallel::for_row_blocks_of;
use crate::queue::{Device, Queue};
use crate::simd::vectorised;

/// a = silu(g)·u.
pub fn forward(queue: &Queue, gate_up: View<'_>, mut activation: ViewMut<'_>) -> Result<(), OpError> {
    const OPERATOR: &str = "swiglu::forward";
    let (rows, width) = check::matrix(OPERATOR, "activation", activation.shape())?;
    check::shape(OPERATOR, "gate_up", gate_up.shape(), [rows, 2 * width])?;
    match queue.device() {
        Device::Cpu => for_float!(OPERATOR, gate_up, F => {
            let gate_up = gate_up.as_slice::<F>()?;
            for_row_blocks_of(activation.as_slice_mut::<F>()?, width, |first, rows| vectorised(#[inline(always)] || {
                let inputs = gate_up[first * 2 * width..].chunks_exact(2 * width);
                for (activation, input) in rows.chunks_exact_mut(width).zip(inputs) {
                    let (gate, up) = input.split_at(width);
                    for ((a, &g), &u) in activation.iter_mut().zip(gate).zip(up) {
                        *a = g * sigmoid(g) * u;
                    }
                }
            }));
            Ok(())
        }),
        Device::Cuda(stream) => {
            let dtype = gate_up.dtype();
            let variant = stream.variant(OPERATOR, "gate_up", dtype)?;
            stream
                .kernel(OPERATOR, "swiglu", &format!("swiglu_forward_{variant}"))
                .input("gate_up", gate_up, dtype)
                .output("activation", &activation, dtype)
                .u32(width)
                .launch(Grid::blocks(rows))
        }
    }
}

/// Overwrites `gate_up` with its gradient, given `dactivation`.
pub fn backward(queue: &Queue, dactivation: View<'_>, mut gate_up: ViewMut<'_>) -> Result<(), OpError> {
    const OPERATOR: &str = "swiglu::backward";
    let (rows, width) = check::matrix(OPERATOR, "dactivation", dactivation.shape())?;
    check::shape(OPERATOR, "gate_up", gate_up.shape(), [rows, 2 * width])?;
    match queue.device() {
        Device::Cpu => for_float!(OPERATOR, dactivation, F => {
            let dactivation = dactivation.as_slice::<F>()?;
            for_row_blocks_of(gate_up.as_slice_mut::<F>()?, 2 * width, |first, rows| {
                let gradients = dactivation[first * width..].chunks_exact(width);
                for (row, gradient) in rows.chunks_exact_mut(2 * width).zip(gradients) {
                    // One row at a time: over several rows g and u interleave, and the compiler's check that they do
                    // not overlap would always choose the scalar loop.
                    vectorised(#[inline(always)] || row_gradient(row, gradient));
                }
            });
            Ok(())
        }),
        Device::Cuda(stream) => {
            let dtype = dactivation.dtype();
            let variant = stream.variant(OPERATOR, "dactivation", dtype)?;
            stream
                .kernel(OPERATOR, "swiglu", &format!("swiglu_backward_{variant}"))
                .input("dactivation", dactivation, dtype)
                .output("gate_up", &gate_up, dtype)
                .u32(width)
                .launch(Grid::blocks(rows))
        }
    }
}

/// Overwrites g and u of one row.
#[inline(always)]
fn row_gradient<T: Float>(row: &mut [T], dactivation: &[T]) {
    let (gate, up) = row.split_at_mut(dactivation.len());
    for ((gate, up), &da) in gate.iter_mut().zip(up).zip(dactivation) {
        let (g, u) = (*gate, *up);
        let s = sigmoid(g);
        *gate = da * u * s * (T::ONE + g * (T::ONE - s));
        *up = da * g * s;
    }
}

/// σ(x) = 1/(1 + e⁻ˣ).
#[inline(always)]
pub(crate) fn sigmoid<T: Float>(x: T) -> T {
    T::ONE / (T::ONE + (-x).exp())
}
