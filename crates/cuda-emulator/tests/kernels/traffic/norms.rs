//! Norms and biases.

use half::bf16;

use super::{Case, ROWS, SIZE, WIDTH, floats, named, rows, values, width};
use crate::device::{Launch, float, input, output};
use crate::support::{Variant, unwritten};

/// Blocks of a norm, each with so many rows.
const BLOCKS: usize = 4;

fn norms<V: Variant>() {
    let (x, dy, weight, mut dx) =
        (values::<V>(SIZE), values::<V>(SIZE), values::<V>(WIDTH), values::<V>(SIZE));
    let (mut y, mut r, mut mean) = (unwritten::<V>(SIZE), floats(ROWS), floats(ROWS));
    let mut partial = unwritten::<f32>(BLOCKS * WIDTH);
    let each = size_of::<V>();
    let (forward, backward) = (each * (2 * SIZE + WIDTH), each * (4 * SIZE + WIDTH) + 4 * WIDTH);
    let launch = |row_bytes: usize| Launch::blocks(BLOCKS).shared(row_bytes * WIDTH);
    // Σ x² and x·r·w.
    Case::new("rms_norm", named::<V>("rms_norm_forward"), forward + 4 * ROWS, 4 * SIZE)
        .launch(launch(2 * each))
        .run(vec![input(&x), input(&weight), float(1e-5), output(&mut y), output(&mut r), rows(), width()]);
    // g = dy·w, Σ g·x, dx += r·(g − x·c), dW += dy·x·r.
    Case::new("rms_norm", named::<V>("rms_norm_backward"), backward + 4 * ROWS, 10 * SIZE)
        .launch(launch(3 * each + 4))
        .run(vec![
            input(&dy),
            input(&x),
            input(&weight),
            input(&r),
            output(&mut dx),
            output(&mut partial),
            rows(),
            width(),
        ]);
    // Σ x, Σ (x − μ)², (x − μ)·r·w.
    Case::new("layer_norm", named::<V>("layer_norm_forward"), forward + 8 * ROWS, 7 * SIZE)
        .launch(launch(2 * each))
        .run(vec![
            input(&x),
            input(&weight),
            float(1e-5),
            output(&mut y),
            output(&mut mean),
            output(&mut r),
            rows(),
            width(),
        ]);
    // x̂ = (x − μ)·r, g = dy·w, Σ g, Σ g·x̂, dx += r·(g − a − x̂·b), dW += dy·x̂.
    Case::new("layer_norm", named::<V>("layer_norm_backward"), backward + 8 * ROWS, 13 * SIZE)
        .launch(launch(3 * each + 4))
        .run(vec![
            input(&dy),
            input(&x),
            input(&weight),
            input(&mean),
            input(&r),
            output(&mut dx),
            output(&mut partial),
            rows(),
            width(),
        ]);
}

fn biases<V: Variant>() {
    let (dy, bias, mut y) = (values::<V>(SIZE), values::<V>(WIDTH), values::<V>(SIZE));
    let mut dbias = floats(WIDTH);
    let each = size_of::<V>();
    // A block adds up 8 packs of 16 bytes of all rows.
    Case::new("bias", named::<V>("bias_backward"), each * SIZE + 8 * WIDTH, SIZE)
        .launch(Launch::blocks(WIDTH * each / 128))
        .run(vec![input(&dy), output(&mut dbias), rows(), width()]);
    // The bias is read for each row, by a block of its own; the caches have it by then.
    Case::new("bias", named::<V>("bias_forward"), each * 3 * SIZE, SIZE).run(vec![
        input(&bias),
        output(&mut y),
        width(),
    ]);
}

#[test]
fn norms_read_and_write_their_rows_once() {
    norms::<bf16>();
    norms::<f32>();
}

#[test]
fn biases_read_and_write_their_rows_once() {
    biases::<bf16>();
    biases::<f32>();
}
