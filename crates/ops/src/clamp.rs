//! Keeping values between −bound and bound, as DBRX does with its queries, keys and values.
//!
//! forward:  x ← min(max(x, −bound), bound); NaN stays NaN
//! backward: dx ← dx where −bound ≤ x ≤ bound before clamping, else 0 (the convention of `torch.clamp`)
//! x `[T, W]`. Kept for the backward: `inside` `[T, ⌈W/32⌉]` u32, whose bit b of word w stands for column 32·w + b.
//! One bit an element: x itself is overwritten, and clamped values no longer tell a bound from what lay beyond it.

use crate::buffer::{View, ViewMut};
use crate::check::{self, for_float};
use crate::cuda::Grid;
use crate::dtype::{DType, Float};
use crate::error::OpError;
use crate::parallel::{for_row_blocks, for_row_blocks_of};
use crate::queue::{Device, Queue};
use crate::simd::vectorised;

/// The words of `inside` for one row of `width` columns.
pub fn words(width: usize) -> usize {
    width.div_ceil(WORD)
}

/// Columns that one word stands for.
const WORD: usize = u32::BITS as usize;

/// Clamps `x` in place and notes in `inside` which elements were within the bounds.
pub fn forward(
    queue: &Queue,
    mut x: ViewMut<'_>,
    bound: f64,
    mut inside: ViewMut<'_>,
) -> Result<(), OpError> {
    const OPERATOR: &str = "clamp::forward";
    let (rows, width) = check::matrix(OPERATOR, "x", x.shape())?;
    let words = words(width);
    check::shape(OPERATOR, "inside", inside.shape(), [rows, words])?;
    match queue.device() {
        Device::Cpu => for_float!(OPERATOR, x, F => {
            let bound = F::from_f64(bound);
            let x = (x.as_slice_mut::<F>()?, width);
            for_row_blocks(x, (inside.as_slice_mut::<u32>()?, words), |_, x, inside| {
                vectorised(#[inline(always)] || {
                    for (x, inside) in x.chunks_exact_mut(width).zip(inside.chunks_exact_mut(words)) {
                        clamp_row(x, bound, inside);
                    }
                });
            });
            Ok(())
        }),
        Device::Cuda(stream) => {
            let dtype = x.dtype();
            let variant = stream.variant(OPERATOR, "x", dtype)?;
            stream
                .kernel(OPERATOR, "clamp", &format!("clamp_forward_{variant}"))
                .output("x", &x, dtype)
                .f32(bound)
                .output("inside", &inside, DType::U32)
                .u32(width)
                .launch(Grid::blocks(rows))
        }
    }
}

#[inline(always)]
fn clamp_row<T: Float>(x: &mut [T], bound: T, inside: &mut [u32]) {
    let (whole, rest) = x.as_chunks_mut::<WORD>();
    let (whole_words, rest_word) = inside.split_at_mut(whole.len());
    for (x, word) in whole.iter_mut().zip(whole_words) {
        *word = clamp_word(x, bound);
    }
    if let [word] = rest_word {
        *word = clamp_word(rest, bound);
    }
}

/// Clamps the columns of one word, and the word. Comparisons, not `min`/`max`: those would turn a NaN into a number.
#[inline(always)]
fn clamp_word<T: Float>(x: &mut [T], bound: T) -> u32 {
    let mut word = 0;
    for (bit, x) in x.iter_mut().enumerate() {
        word |= u32::from(-bound <= *x && *x <= bound) << bit;
        let above = if *x < -bound { -bound } else { *x };
        *x = if above > bound { bound } else { above };
    }
    word
}

/// Zeroes `dx` where the forward clamped.
pub fn backward(queue: &Queue, mut dx: ViewMut<'_>, inside: View<'_>) -> Result<(), OpError> {
    const OPERATOR: &str = "clamp::backward";
    let (rows, width) = check::matrix(OPERATOR, "dx", dx.shape())?;
    let words = words(width);
    check::shape(OPERATOR, "inside", inside.shape(), [rows, words])?;
    match queue.device() {
        Device::Cpu => for_float!(OPERATOR, dx, F => {
            let inside = inside.as_slice::<u32>()?;
            for_row_blocks_of(dx.as_slice_mut::<F>()?, width, |first, dx| vectorised(#[inline(always)] || {
                let inside = inside[first * words..].chunks_exact(words);
                for (dx, inside) in dx.chunks_exact_mut(width).zip(inside) {
                    for (dx, &word) in dx.chunks_mut(WORD).zip(inside) {
                        for (bit, dx) in dx.iter_mut().enumerate() {
                            *dx = if word >> bit & 1 == 1 { *dx } else { F::ZERO };
                        }
                    }
                }
            }));
            Ok(())
        }),
        Device::Cuda(stream) => {
            let dtype = dx.dtype();
            let variant = stream.variant(OPERATOR, "dx", dtype)?;
            stream
                .kernel(OPERATOR, "clamp", &format!("clamp_backward_{variant}"))
                .output("dx", &dx, dtype)
                .input("inside", inside, DType::U32)
                .u32(width)
                .launch(Grid::blocks(rows))
        }
    }
}
