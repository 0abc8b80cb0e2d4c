//! Bytes that memory-bound kernels move, against those that they must. Counted are the sectors of 32 bytes that warps
//! touch, so an access that is not coalesced counts for what it wastes.
//!
//! The sizes are small for the sake of time, and no ratio depends on them but for what a block reads once for many
//! rows: a real row count has more rows for each.

use half::bf16;
use tessera_cuda_emulator::{Random, Report};

use crate::device::{Argument, Kernels, Launch, double, float, input, long, output, unsigned};
use crate::support::{Values, unwritten};

/// Counted by needed, at most.
const LIMIT: f64 = 1.1;
const ROWS: usize = 64;
const WIDTH: usize = 2048;
const SIZE: usize = ROWS * WIDTH;

fn check(name: &str, needed: usize, report: &Report) {
    let counted = 32 * (report.global_read_sectors + report.global_written_sectors);
    let ratio = counted as f64 / needed as f64;
    println!(
        "{name:<36} {needed:>9} bytes needed, {counted:>9} counted, ratio {ratio:.3}, bank conflicts {}",
        report.bank_conflicts
    );
    assert!(ratio <= LIMIT, "{name}: {counted} bytes counted, {needed} needed");
}

fn values(count: usize) -> Vec<bf16> {
    Values::random(&mut Random::new(1), count).rounded
}

fn floats(count: usize) -> Vec<f32> {
    Values::random(&mut Random::new(2), count).rounded
}

fn run(file: &str, kernel: &str, launch: Launch, needed: usize, mut arguments: Vec<Argument<'_>>) {
    let report = Kernels::load(file).run(kernel, launch, &mut arguments);
    check(kernel, needed, &report);
}

#[test]
fn norms_read_and_write_their_rows_once() {
    let (x, dy, weight, mut dx) = (values(SIZE), values(SIZE), values(WIDTH), values(SIZE));
    let (mut y, mut r, mut mean) = (unwritten::<bf16>(SIZE), floats(ROWS), floats(ROWS));
    let mut partial = unwritten::<f32>(4 * WIDTH);
    let (rows, width) = (|| unsigned(ROWS), || unsigned(WIDTH));
    let (forward, backward) = (2 * 2 * SIZE + 2 * WIDTH, 4 * 2 * SIZE + (2 + 4) * WIDTH);
    let (forward_launch, backward_launch) =
        (|| Launch::blocks(4).shared(2 * 2 * WIDTH), || Launch::blocks(4).shared((3 * 2 + 4) * WIDTH));
    run(
        "rms_norm",
        "rms_norm_forward_bf16",
        forward_launch(),
        forward + 4 * ROWS,
        vec![input(&x), input(&weight), float(1e-5), output(&mut y), output(&mut r), rows(), width()],
    );
    run(
        "rms_norm",
        "rms_norm_backward_bf16",
        backward_launch(),
        backward + 4 * ROWS,
        vec![
            input(&dy),
            input(&x),
            input(&weight),
            input(&r),
            output(&mut dx),
            output(&mut partial),
            rows(),
            width(),
        ],
    );
    run(
        "layer_norm",
        "layer_norm_forward_bf16",
        forward_launch(),
        forward + 8 * ROWS,
        vec![
            input(&x),
            input(&weight),
            float(1e-5),
            output(&mut y),
            output(&mut mean),
            output(&mut r),
            rows(),
            width(),
        ],
    );
    run(
        "layer_norm",
        "layer_norm_backward_bf16",
        backward_launch(),
        backward + 8 * ROWS,
        vec![
            input(&dy),
            input(&x),
            input(&weight),
            input(&mean),
            input(&r),
            output(&mut dx),
            output(&mut partial),
            rows(),
            width(),
        ],
    );
    let mut dbias = floats(WIDTH);
    run(
        "bias",
        "bias_backward_bf16",
        Launch::blocks(WIDTH / 64),
        2 * SIZE + 8 * WIDTH,
        vec![input(&dy), output(&mut dbias), rows(), width()],
    );
    run(
        "bias",
        "bias_forward_bf16",
        Launch::blocks(ROWS),
        4 * SIZE + 2 * ROWS * WIDTH,
        vec![input(&weight), output(&mut y), width()],
    );
}

#[test]
fn elementwise_kernels_read_and_write_once() {
    let (mut gate_up, activation, mut y) = (values(2 * SIZE), values(SIZE), values(SIZE));
    let width = || unsigned(WIDTH);
    run(
        "swiglu",
        "swiglu_forward_bf16",
        Launch::blocks(ROWS),
        6 * SIZE,
        vec![input(&gate_up), output(&mut y), width()],
    );
    run(
        "swiglu",
        "swiglu_backward_bf16",
        Launch::blocks(ROWS),
        10 * SIZE,
        vec![input(&activation), output(&mut gate_up), width()],
    );
    let (positions, table) = ((0..ROWS as u32).collect::<Vec<_>>(), floats(ROWS * 128));
    let needed = 4 * SIZE + ROWS * (128 * 4 + 4);
    let launch = Launch::blocks(ROWS).shared(128 * 4);
    run(
        "rope",
        "rope_bf16",
        launch,
        needed,
        vec![
            output(&mut y),
            unsigned(16),
            input(&positions),
            input(&table),
            width(),
            unsigned(128),
            float(1.0),
        ],
    );
    let (mut inside, needed) = (vec![0_u32; SIZE / 32], 4 * SIZE + SIZE / 8);
    run(
        "clamp",
        "clamp_forward_bf16",
        Launch::blocks(ROWS),
        needed,
        vec![output(&mut y), float(0.5), output(&mut inside), width()],
    );
    run(
        "clamp",
        "clamp_backward_bf16",
        Launch::blocks(ROWS),
        needed,
        vec![output(&mut y), input(&inside), width()],
    );
    run(
        "fill",
        "fill_add_bf16",
        Launch::blocks(8),
        6 * SIZE,
        vec![input(&activation), output(&mut y), long(SIZE)],
    );
    let mut wide = floats(SIZE);
    run(
        "cast",
        "cast_bf16_f32",
        Launch::blocks(8),
        6 * SIZE,
        vec![input(&activation), output(&mut wide), long(SIZE)],
    );
    run("cast", "cast_f32_bf16", Launch::blocks(8), 6 * SIZE, vec![input(&wide), output(&mut y), long(SIZE)]);
}

#[test]
fn optimizers_read_and_write_once() {
    let (mut p, g, mut m, mut v) = (floats(SIZE), floats(SIZE), floats(SIZE), vec![0.5_f32; SIZE]);
    let (mut copy, decision) = (unwritten::<bf16>(SIZE), [1.0, 1.0, 1.0, 0.0, 0.0]);
    run(
        "adamw",
        "adamw",
        Launch::blocks(8),
        30 * SIZE,
        vec![
            output(&mut p),
            input(&g),
            output(&mut m),
            output(&mut v),
            output(&mut copy),
            input(&decision),
            double(0.1),
            double(0.9),
            double(0.95),
            double(1e-8),
            double(0.0),
            long(SIZE),
            long(SIZE),
        ],
    );
    run(
        "lion",
        "lion",
        Launch::blocks(8),
        22 * SIZE,
        vec![
            output(&mut p),
            input(&g),
            output(&mut m),
            output(&mut copy),
            input(&decision),
            double(0.1),
            double(0.9),
            double(0.95),
            double(0.0),
            long(SIZE),
            long(SIZE),
        ],
    );
    let mut partial = [f64::NAN; SIZE >> 16];
    run(
        "squared_norm",
        "squared_norm_pieces",
        Launch::blocks(SIZE >> 16),
        4 * SIZE + partial.len() * 8,
        vec![input(&g), output(&mut partial), long(SIZE)],
    );
}

#[test]
fn rows_move_once() {
    let (x, mut y, width) = (values(SIZE), values(SIZE), || unsigned(WIDTH));
    let index: Vec<u32> = (0..ROWS as u32).rev().collect();
    run(
        "rows",
        "rows_gather_bf16",
        Launch::blocks(ROWS),
        4 * SIZE + 4 * ROWS,
        vec![input(&x), input(&index), output(&mut y), width()],
    );
    run(
        "rows",
        "rows_scatter_bf16",
        Launch::blocks(ROWS),
        4 * SIZE + 4 * ROWS,
        vec![input(&x), input(&index), output(&mut y), width()],
    );
    // Every token once: a gradient row and a read and a written row of fp32 each.
    let order: Vec<u32> = index.clone();
    let mut dweight = floats(SIZE);
    run(
        "embedding",
        "embedding_backward_bf16",
        Launch::blocks(ROWS),
        (2 + 8) * SIZE + 8 * ROWS,
        vec![input(&index), input(&order), input(&x), output(&mut dweight), unsigned(ROWS), width()],
    );
}

#[test]
fn experts_rows_move_once() {
    // 32 tokens with two choices each, all in one group of one expert.
    let (tokens, slots) = (ROWS / 2, (0..ROWS as u32).collect::<Vec<_>>());
    let (offsets, x, mut y, mut tokens_sum) =
        ([0, ROWS as u32], values(tokens * WIDTH), values(SIZE), values(tokens * WIDTH));
    let (first, end, width) = (|| unsigned(0), || unsigned(1), || unsigned(WIDTH));
    // Each token is read for both of its slots.
    run(
        "experts_rows",
        "experts_gather_bf16",
        Launch::blocks(ROWS),
        4 * SIZE + 4 * ROWS,
        vec![input(&x), input(&slots), input(&offsets), first(), end(), output(&mut y), unsigned(2), width()],
    );
    run(
        "experts_rows",
        "experts_combine_bf16",
        Launch::blocks(tokens).shared(2 * size_of::<u32>()),
        2 * SIZE + 2 * SIZE + 4 * ROWS,
        vec![
            input(&y),
            input(&slots),
            input(&offsets),
            first(),
            end(),
            output(&mut tokens_sum),
            unsigned(2),
            width(),
        ],
    );
    let (mut gate_up, weights, mut dweights) = (values(2 * SIZE), floats(ROWS), floats(ROWS));
    run(
        "experts_activation",
        "experts_activation_forward_bf16",
        Launch::blocks(ROWS),
        6 * SIZE + 8 * ROWS,
        vec![
            input(&gate_up),
            input(&weights),
            input(&slots),
            input(&offsets),
            first(),
            end(),
            output(&mut y),
            width(),
        ],
    );
    run(
        "experts_activation",
        "experts_activation_backward_bf16",
        Launch::blocks(ROWS),
        10 * SIZE + 12 * ROWS,
        vec![
            input(&y),
            input(&weights),
            input(&slots),
            input(&offsets),
            first(),
            end(),
            output(&mut gate_up),
            output(&mut dweights),
            width(),
        ],
    );
}

#[test]
fn losses_and_attention_sums_read_their_rows_as_often_as_they_say() {
    let (mut logits, targets) = (floats(4 * 16384), [1_u32, 2, 3, 4]);
    let (mut losses, mut hits) = ([f64::NAN; 4], [f64::NAN; 4]);
    // Read twice, written once: a real row is larger than an SM's memory.
    run(
        "cross_entropy",
        "cross_entropy_f32",
        Launch::blocks(4).threads(512),
        3 * 4 * 4 * 16384,
        vec![
            output(&mut logits),
            input(&targets),
            float(1.0),
            unsigned(1),
            output(&mut losses),
            output(&mut hits),
            unsigned(16384),
        ],
    );
    let (dout, out, mut delta) = (values(SIZE), values(SIZE), floats(SIZE / 128));
    run(
        "attention_plain",
        "attention_delta_bf16",
        Launch::blocks(SIZE / 128 / 4).threads(128),
        4 * SIZE + 4 * SIZE / 128,
        vec![input(&dout), input(&out), output(&mut delta), long(SIZE / 128), unsigned(128)],
    );
}

/// How a kernel on tensor cores issues its instructions. The share is of PTX, which moves and computes addresses more
/// often than the machine code does.
fn check_tensor_cores(kernel: &str, report: &Report) {
    let share = report.matrix_multiplies as f64 / report.issued() as f64;
    println!(
        "{kernel:<36} {:>9} instructions, {:.1} % mma, bank conflicts {}",
        report.issued(),
        100.0 * share,
        report.bank_conflicts
    );
    assert_eq!(report.bank_conflicts, 0, "{kernel}");
}

#[test]
fn tensor_cores_are_fed_without_bank_conflicts() {
    const T: usize = 1024;
    for (size, block) in [(64, 64), (128, 32)] {
        let (qkv, dout, mut out) = (values(T * 3 * size), values(T * size), values(T * size));
        let (mut sums, delta, documents, mut dqkv) =
            (vec![5.0_f32; T], floats(T), [0, T as u32], values(T * 3 * size));
        let extents = || [T, 1, 1, 1, 0].map(unsigned);
        let mut arguments = vec![input(&qkv), input(&documents), output(&mut out), output(&mut sums)];
        arguments.extend(extents());
        let launch = Launch::blocks(T / 128).threads(128).shared((128 + 2 * block) * size * 2);
        let name = format!("attention_forward_{size}");
        check_tensor_cores(&name, &Kernels::load("attention_forward").run(&name, launch, &mut arguments));
        for side in ["keys", "queries"] {
            let mut arguments = vec![
                input(&dout),
                input(&qkv),
                input(&sums),
                input(&delta),
                input(&documents),
                output(&mut dqkv),
            ];
            arguments.extend(extents());
            let launch =
                Launch::blocks(T / 64).threads(128).shared((2 * 64 + 4 * block) * size * 2 + 16 * block);
            let name = format!("attention_backward_{side}_{size}");
            check_tensor_cores(
                &name,
                &Kernels::load("attention_backward").run(&name, launch, &mut arguments),
            );
        }
    }
    let (x, weight, offsets) = (values(T * 256), values(2 * 256 * 256), [0, 100, T as u32]);
    let (mut y, mut dweight, launch) =
        (values(T * 256), floats(2 * 256 * 256), Launch::grid([2, 4, 1]).shared(1 << 16));
    let mut kernels = Kernels::load("experts_linear");
    for name in ["experts_linear_rows_transposed", "experts_linear_rows_straight"] {
        let mut arguments = [
            input(&x),
            input(&weight),
            input(&offsets),
            unsigned(2),
            output(&mut y),
            unsigned(256),
            unsigned(256),
        ];
        check_tensor_cores(name, &kernels.run(name, launch, &mut arguments));
    }
    let mut arguments =
        [input(&x), input(&y), input(&offsets), output(&mut dweight), unsigned(256), unsigned(256)];
    let launch = Launch::grid([2, 2, 2]).shared(1 << 16);
    check_tensor_cores(
        "experts_linear_weight",
        &kernels.run("experts_linear_weight", launch, &mut arguments),
    );
}
