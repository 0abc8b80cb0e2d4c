//! Element by element.

use half::bf16;

use super::{Case, ROWS, SIZE, WIDTH, floats, named, values, width};
use crate::device::{Launch, float, input, long, output, unsigned};
use crate::support::Variant;

/// Blocks of a kernel that takes a flat vector.
const FLAT: usize = 8;
const HEAD_SIZE: usize = 128;

fn elementwise<V: Variant>() {
    let (mut gate_up, activation, mut y) = (values::<V>(2 * SIZE), values::<V>(SIZE), values::<V>(SIZE));
    let each = size_of::<V>();
    // σ is −g, exp, 1 + and 1/; then two products.
    Case::new("swiglu", named::<V>("swiglu_forward"), each * 3 * SIZE, 6 * SIZE).run(vec![
        input(&gate_up),
        output(&mut y),
        width(),
    ]);
    // σ, g·σ, du = da·g·σ, dg = da·u·(σ + g·σ·(1 − σ)).
    Case::new("swiglu", named::<V>("swiglu_backward"), each * 5 * SIZE, 11 * SIZE).run(vec![
        input(&activation),
        output(&mut gate_up),
        width(),
    ]);
    let (positions, table) = ((0..ROWS as u32).collect::<Vec<_>>(), floats(ROWS * HEAD_SIZE));
    // a·cos − b·sin and a·sin + b·cos for a pair.
    let bytes = each * 2 * SIZE + ROWS * (4 * HEAD_SIZE + 4);
    Case::new("rope", named::<V>("rope"), bytes, 3 * SIZE)
        .launch(Launch::blocks(ROWS).shared(4 * HEAD_SIZE))
        .run(vec![
            output(&mut y),
            unsigned(WIDTH / HEAD_SIZE),
            input(&positions),
            input(&table),
            width(),
            unsigned(HEAD_SIZE),
            float(1.0),
        ]);
    let (mut inside, bytes) = (vec![0_u32; SIZE / 32], each * 2 * SIZE + SIZE / 8);
    Case::new("clamp", named::<V>("clamp_forward"), bytes, 0).run(vec![
        output(&mut y),
        float(0.5),
        output(&mut inside),
        width(),
    ]);
    Case::new("clamp", named::<V>("clamp_backward"), bytes, 0).run(vec![
        output(&mut y),
        input(&inside),
        width(),
    ]);
    Case::new("fill", named::<V>("fill_add"), each * 3 * SIZE, SIZE).launch(Launch::blocks(FLAT)).run(vec![
        input(&activation),
        output(&mut y),
        long(SIZE),
    ]);
}

#[test]
fn elementwise_kernels_read_and_write_once() {
    elementwise::<bf16>();
    elementwise::<f32>();
}

#[test]
fn casts_read_and_write_once() {
    let (mut narrow, mut wide) = (values::<bf16>(SIZE), floats(SIZE));
    let cast = |kernel: &str| Case::new("cast", kernel, 6 * SIZE, 0).launch(Launch::blocks(FLAT));
    cast("cast_bf16_f32").run(vec![input(&narrow), output(&mut wide), long(SIZE)]);
    cast("cast_f32_bf16").run(vec![input(&wide), output(&mut narrow), long(SIZE)]);
    // Read in bf16, added to fp32.
    Case::new("fill", "fill_add_bf16_f32", 10 * SIZE, SIZE).launch(Launch::blocks(FLAT)).run(vec![
        input(&narrow),
        output(&mut wide),
        long(SIZE),
    ]);
}
