//! Rows that are picked, put back, added up by token, dealt out to ranks.

use half::bf16;

use super::{Bound, Case, ROWS, SIZE, WIDTH, floats, named, rows, values, width};
use crate::device::{Launch, input, output, unsigned};
use crate::support::Variant;

fn moved<V: Variant>() {
    let (x, mut y, each) = (values::<V>(SIZE), values::<V>(SIZE), size_of::<V>());
    let index: Vec<u32> = (0..ROWS as u32).rev().collect();
    let bytes = each * 2 * SIZE + 4 * ROWS;
    for kernel in ["rows_gather", "rows_scatter"] {
        Case::new("rows", named::<V>(kernel), bytes, 0).run(vec![
            input(&x),
            input(&index),
            output(&mut y),
            width(),
        ]);
    }
    // Every token once: a gradient row and a read and a written row of fp32 each.
    let mut dweight = floats(SIZE);
    let bytes = (each + 8) * SIZE + 8 * ROWS;
    Case::new("embedding", named::<V>("embedding_backward"), bytes, SIZE)
        .launch(Launch::grid([ROWS, WIDTH.div_ceil(1024), 1]))
        .run(vec![input(&index), input(&index), input(&x), output(&mut dweight), rows(), width()]);
}

#[test]
fn rows_move_once() {
    moved::<bf16>();
    moved::<f32>();
}

#[test]
fn sorting_tokens_reads_them_for_every_block() {
    let tokens: Vec<u32> = (0..1024).map(|token| token % 7).collect();
    let (count, mut order) = (tokens.len(), vec![0_u32; tokens.len()]);
    Case::new("embedding", "embedding_sort", 8 * count, 0)
        .of(format!("{count} tokens"), count)
        .bound(Bound::Neither)
        .launch(Launch::blocks(count.div_ceil(64)))
        .run(vec![input(&tokens), output(&mut order), unsigned(count)]);
}

/// Two ranks, and heads of 128: queries, keys and values of a row that are `WIDTH` wide.
fn dealt_out<V: Variant>() {
    let columns = || [8, 4, 4, 128, 2].map(unsigned);
    let (x, mut blocks, mut y) = (values::<V>(SIZE), values::<V>(SIZE), values::<V>(SIZE));
    let bytes = size_of::<V>() * 2 * SIZE;
    let mut arguments = vec![input(&x), output(&mut blocks), rows()];
    arguments.extend(columns());
    Case::new("attention_split", named::<V>("attention_split_pack"), bytes, 0)
        .launch(Launch::grid([ROWS, 2, 1]))
        .run(arguments);
    let mut arguments = vec![input(&blocks), output(&mut y), rows()];
    arguments.extend(columns());
    Case::new("attention_split", named::<V>("attention_split_unpack"), bytes, 0).run(arguments);
}

#[test]
fn heads_are_dealt_out_once() {
    dealt_out::<bf16>();
    dealt_out::<f32>();
}
