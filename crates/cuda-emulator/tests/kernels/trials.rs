//! Launches whose results need no operator to compare with, for faults to be planted in. What the kernels should compute is
//! tested by crates/ops/tests/cuda.

use crate::device::{Kernels, Launch, float, input, output, unsigned};
use crate::support::unwritten;

/// Widths with and without accesses of 16 bytes.
const WIDTHS: [usize; 2] = [24, 37];

/// Columns of ones add up to the number of rows.
#[test]
pub fn columns_are_summed() {
    const ROWS: usize = 70;
    for width in WIDTHS {
        let (dy, mut dbias) = (vec![1.0_f32; ROWS * width], vec![0.5_f32; width]);
        Kernels::load("bias").run(
            "bias_backward_f32",
            Launch::blocks(width.div_ceil(8)),
            &mut [input(&dy), output(&mut dbias), unsigned(ROWS), unsigned(width)],
        );
        assert_eq!(dbias, vec![ROWS as f32 + 0.5; width]);
    }
}

#[test]
pub fn rows_are_picked() {
    for width in WIDTHS {
        let x: Vec<f32> = (0..3 * width).map(|value| value as f32).collect();
        let mut picked = unwritten::<f32>(2 * width);
        Kernels::load("rows").run(
            "rows_gather_f32",
            Launch::blocks(2),
            &mut [input(&x), input(&[2_u32, 0]), output(&mut picked), unsigned(width)],
        );
        assert_eq!(picked, [&x[2 * width..], &x[..width]].concat());
    }
}

/// A quarter turn makes (−b, a) of a pair (a, b).
#[test]
pub fn heads_are_turned() {
    const HEADS: usize = 3;
    for half in [8, 5] {
        let angles = [vec![0.0_f32; half], vec![1.0; half]].concat();
        let before: Vec<f32> = (0..2 * half * HEADS).map(|value| value as f32).collect();
        let mut row = before.clone();
        Kernels::load("rope").run(
            "rope_f32",
            Launch::blocks(1).shared(size_of_val(&angles[..])),
            &mut [
                output(&mut row),
                unsigned(HEADS),
                input(&[0_u32]),
                input(&angles),
                unsigned(2 * half * HEADS),
                unsigned(2 * half),
                float(1.0),
            ],
        );
        for (turned, head) in row.chunks_exact(2 * half).zip(before.chunks_exact(2 * half)) {
            let (left, right) = head.split_at(half);
            let minus_right: Vec<f32> = right.iter().map(|b| -b).collect();
            assert_eq!(turned, [&minus_right, left].concat());
        }
    }
}
