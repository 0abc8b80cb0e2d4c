//! Loss, norm, decision and update.

use half::bf16;

use super::{Bound, Case, SIZE, floats, named, values};
use crate::device::{Argument, Launch, double, float, input, long, output, unsigned};
use crate::support::Variant;

const VOCABULARY: usize = 16384;
/// Rows of logits.
const LOSSES: usize = 4;

/// The copy in bf16, which the engine does not ask for.
fn no_copy() -> Argument<'static> {
    long(0)
}

#[test]
fn optimizers_read_and_write_once() {
    let (mut p, g, mut m, mut v) = (floats(SIZE), floats(SIZE), floats(SIZE), vec![0.5_f32; SIZE]);
    let decision = [1.0, 1.0, 1.0, 0.0, 0.0];
    let flat = |kernel: &'static str, bytes: usize, flops: usize| {
        Case::new(kernel, kernel, bytes * SIZE, flops * SIZE).launch(Launch::blocks(8))
    };
    // g·c; m: two products and a sum; v: one more; √v/b + ε and the quotient; p·k, − s·m.
    flat("adamw", 28, 16).run(vec![
        output(&mut p),
        input(&g),
        output(&mut m),
        output(&mut v),
        no_copy(),
        input(&decision),
        double(0.1),
        double(0.9),
        double(0.95),
        double(1e-8),
        double(0.0),
        long(SIZE),
        long(SIZE),
    ]);
    // g·c; the direction and m: two products and a sum each; p·k − s.
    flat("lion", 20, 9).run(vec![
        output(&mut p),
        input(&g),
        output(&mut m),
        no_copy(),
        input(&decision),
        double(0.1),
        double(0.9),
        double(0.95),
        double(0.0),
        long(SIZE),
        long(SIZE),
    ]);
}

#[test]
fn the_norm_and_the_decision_read_what_they_add_up() {
    let (g, mut partial) = (floats(SIZE), [f64::NAN; SIZE >> 16]);
    let pieces = partial.len();
    Case::new("squared_norm", "squared_norm_pieces", 4 * SIZE + 8 * pieces, 2 * SIZE)
        .launch(Launch::blocks(pieces))
        .run(vec![input(&g), output(&mut partial), long(SIZE)]);
    let (partial, mut total) = ([1.0; 1024], [0.0]);
    let pieces = partial.len();
    Case::new("squared_norm", "squared_norm_total", 8 * pieces + 16, pieces)
        .of(format!("{pieces} pieces"), pieces)
        .bound(Bound::Neither)
        .launch(Launch::blocks(1))
        .run(vec![input(&partial), output(&mut total), unsigned(pieces)]);
    let (statistics, mut decision) = ([1.0; 6], [0.0; 5]);
    Case::new("step", "step_decide", 3 * 8 + 6 * 8, 5)
        .of("one step", 1)
        .bound(Bound::Neither)
        .launch(Launch::blocks(1).threads(1))
        .run(vec![input(&statistics), double(1.0), output(&mut decision)]);
}

fn losses<V: Variant>() {
    let (mut logits, targets) = (values::<V>(LOSSES * VOCABULARY), [1_u32, 2, 3, 4]);
    let (mut losses, mut hits) = ([f64::NAN; LOSSES], [f64::NAN; LOSSES]);
    let size = LOSSES * VOCABULARY;
    // Read twice, written once: a real row is larger than an SM's memory. Σ exp(z − m), then exp(z − m)·s.
    Case::new("cross_entropy", named::<V>("cross_entropy"), 3 * size_of::<V>() * size, 6 * size)
        .of(format!("{LOSSES} × {VOCABULARY}"), size)
        .launch(Launch::blocks(LOSSES).threads(512))
        .run(vec![
            output(&mut logits),
            input(&targets),
            float(1.0),
            unsigned(1),
            output(&mut losses),
            output(&mut hits),
            unsigned(VOCABULARY),
        ]);
}

#[test]
fn losses_read_their_rows_twice() {
    losses::<bf16>();
    losses::<f32>();
    let (losses, hits, mut statistics) = ([1.0; 512], [0.0; 512], [0.0; 6]);
    let count = losses.len();
    Case::new("cross_entropy", "cross_entropy_total", 16 * count + 32, 2 * count)
        .of(format!("{count} rows"), count)
        .bound(Bound::Neither)
        .launch(Launch::blocks(1))
        .run(vec![input(&losses), input(&hits), output(&mut statistics), unsigned(count)]);
}
