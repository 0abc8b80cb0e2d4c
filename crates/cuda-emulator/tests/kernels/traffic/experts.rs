//! Experts: the router, the order of slots, rows, activations, the balance loss, products.

use half::bf16;

use super::{Bound, Case, ROWS, SIZE, WIDTH, floats, named, values, width};
use crate::device::{Launch, double, float, input, output, unsigned};
use crate::support::{Variant, unwritten};

/// 32 tokens with two choices each, all in one group of one expert.
fn moved<V: Variant>() {
    let (tokens, slots) = (ROWS / 2, (0..ROWS as u32).collect::<Vec<_>>());
    let (offsets, x, mut y, mut sums) =
        ([0, ROWS as u32], values::<V>(tokens * WIDTH), values::<V>(SIZE), values::<V>(tokens * WIDTH));
    let (first, end, each) = (|| unsigned(0), || unsigned(1), size_of::<V>());
    // Each token is read for both of its slots.
    Case::new("experts_rows", named::<V>("experts_gather"), each * 2 * SIZE + 4 * ROWS, 0).run(vec![
        input(&x),
        input(&slots),
        input(&offsets),
        first(),
        end(),
        output(&mut y),
        unsigned(2),
        width(),
    ]);
    Case::new("experts_rows", named::<V>("experts_combine"), each * 2 * SIZE + 4 * ROWS, SIZE)
        .launch(Launch::blocks(tokens).shared(2 * size_of::<u32>()))
        .run(vec![
            input(&y),
            input(&slots),
            input(&offsets),
            first(),
            end(),
            output(&mut sums),
            unsigned(2),
            width(),
        ]);
    let (mut gate_up, weights, mut dweights) = (values::<V>(2 * SIZE), floats(ROWS), floats(ROWS));
    // As swiglu, and times the weight.
    let file = "experts_activation";
    let bytes = each * 3 * SIZE + 8 * ROWS;
    Case::new(file, named::<V>("experts_activation_forward"), bytes, 7 * SIZE).run(vec![
        input(&gate_up),
        input(&weights),
        input(&slots),
        input(&offsets),
        first(),
        end(),
        output(&mut y),
        width(),
    ]);
    // As swiglu, times the weight, and Σ da·a for the weight's own gradient.
    let bytes = each * 5 * SIZE + 12 * ROWS;
    Case::new(file, named::<V>("experts_activation_backward"), bytes, 15 * SIZE).run(vec![
        input(&y),
        input(&weights),
        input(&slots),
        input(&offsets),
        first(),
        end(),
        output(&mut gate_up),
        output(&mut dweights),
        width(),
    ]);
}

#[test]
fn experts_rows_move_once() {
    moved::<bf16>();
    moved::<f32>();
}

/// Tokens, experts, choices of a token.
const ROUTED: [usize; 3] = [1024, 8, 2];

#[test]
fn routing_reads_its_scores_from_the_caches() {
    let [tokens, experts, choices] = ROUTED;
    let (scores, slots) = (tokens * experts, tokens * choices);
    let (mut p, mut chosen, mut weights) = (floats(scores), vec![0_u32; slots], floats(slots));
    let extents = || ROUTED.map(unsigned);
    let case = |file, kernel: &str, bytes: usize, flops: usize| {
        Case::new(file, kernel, bytes, flops)
            .of(format!("{tokens} tokens, {experts} experts, {choices} chosen"), tokens)
            .bound(Bound::Neither)
    };
    // Softmax, then the division by Σ w.
    let mut arguments = vec![output(&mut p), float(1.0), output(&mut chosen), output(&mut weights)];
    arguments.extend(extents());
    case("router", "router_forward", 8 * scores + 8 * slots, 4 * scores + 2 * slots)
        .launch(Launch::blocks(tokens / 8))
        .run(arguments);
    let mut dp = floats(scores);
    let mut arguments = vec![input(&weights), input(&p), input(&chosen), float(1.0), output(&mut dp)];
    arguments.extend(extents());
    case("router", "router_backward", 12 * scores + 8 * slots, 4 * scores + 6 * slots)
        .launch(Launch::blocks(tokens / 8))
        .run(arguments);
    let (mut sorted, mut places, mut offsets) =
        (vec![0_u32; slots], vec![0_u32; slots], vec![0_u32; experts + 1]);
    case("experts_sort", "experts_sort", 12 * slots + 4 * (experts + 1), 0)
        .launch(Launch::blocks(experts).threads(1024))
        .run(vec![
            input(&chosen),
            output(&mut sorted),
            output(&mut places),
            output(&mut offsets),
            unsigned(slots),
        ]);
    let (row_starts, mut counts, mut sums) = ([0, tokens as u32], vec![0.0; experts], vec![0.0; experts]);
    case("load_balance", "load_balance_add", 4 * scores + 4 * slots + 32 * experts, scores + slots)
        .launch(Launch::blocks(1))
        .run(vec![
            input(&p),
            input(&chosen),
            input(&row_starts),
            unsigned(0),
            unsigned(tokens),
            output(&mut counts),
            output(&mut sums),
            unsigned(experts),
            unsigned(choices),
        ]);
    let mut total = [0.0];
    case("load_balance", "load_balance_loss", 16 * experts + 16, 2 * experts)
        .launch(Launch::blocks(1).threads(1))
        .run(vec![
            input(&counts),
            input(&sums),
            input(&row_starts),
            unsigned(1),
            double(0.1),
            output(&mut total),
            unsigned(1),
            unsigned(experts),
        ]);
    case("load_balance", "load_balance_backward", 4 * scores + 8 * experts, scores)
        .launch(Launch::blocks(tokens).threads(32))
        .run(vec![
            input(&counts),
            input(&row_starts),
            unsigned(0),
            unsigned(1),
            double(0.1),
            output(&mut dp),
            unsigned(1),
            unsigned(experts),
        ]);
}

/// A product of `rows` rows for two experts, one of which has few.
struct Products {
    rows: usize,
    inputs: usize,
    outputs: usize,
}

impl Products {
    fn offsets(&self) -> [u32; 3] {
        [0, 100, self.rows as u32]
    }

    fn extents(&self) -> [usize; 2] {
        [self.inputs, self.outputs]
    }

    /// A case whose weights have `weight_bytes` a piece.
    fn case(&self, file: &'static str, kernel: String, each: usize, weight_bytes: usize) -> Case {
        let Self { rows, inputs, outputs } = *self;
        let bytes = each * rows * (inputs + outputs) + weight_bytes * 2 * inputs * outputs;
        let products = rows * inputs * outputs;
        Case::new(file, kernel, bytes, 2 * products)
            .of(format!("{rows} × {inputs} → {outputs}, 2 experts"), products)
    }
}

#[test]
fn products_of_experts_feed_the_tensor_cores() {
    let shape = Products { rows: 1024, inputs: 256, outputs: 256 };
    let (rows, offsets, extents) = (shape.rows, shape.offsets(), || shape.extents().map(unsigned));
    let (x, weight) = (values::<bf16>(rows * 256), values::<bf16>(2 * 256 * 256));
    let (mut y, mut dweight) = (values::<bf16>(rows * 256), floats(2 * 256 * 256));
    let case = |kernel: &str, weight_bytes| {
        shape.case("experts_linear", kernel.into(), 2, weight_bytes).bound(Bound::TensorCores)
    };
    for kernel in ["experts_linear_rows_transposed", "experts_linear_rows_straight"] {
        let mut arguments = vec![input(&x), input(&weight), input(&offsets), unsigned(2), output(&mut y)];
        arguments.extend(extents());
        // Tiles of 128 × 128; each expert may have one that is not full.
        let launch = Launch::grid([2, rows / 128 + 2, 1]).shared(1 << 16);
        case(kernel, 2).launch(launch).run(arguments);
    }
    let mut arguments = vec![input(&x), input(&y), input(&offsets), output(&mut dweight)];
    arguments.extend(extents());
    // The gradient is read and written.
    case("experts_linear_weight", 8).launch(Launch::grid([2, 2, 2]).shared(1 << 16)).run(arguments);
}

fn plain_products<V: Variant>() {
    let shape = Products { rows: 256, inputs: 100, outputs: 100 };
    let (rows, offsets, extents) = (shape.rows, shape.offsets(), || shape.extents().map(unsigned));
    let (x, weight) = (values::<V>(rows * 100), values::<V>(2 * 100 * 100));
    let (mut y, mut dweight) = (unwritten::<V>(rows * 100), floats(2 * 100 * 100));
    let case = |kernel: &str, weight_bytes| {
        let kernel = named::<V>(kernel);
        shape.case("experts_linear_plain", kernel, size_of::<V>(), weight_bytes).bound(Bound::Neither)
    };
    let mut arguments = vec![input(&x), input(&weight), input(&offsets), unsigned(2), output(&mut y)];
    arguments.extend(extents());
    arguments.push(unsigned(1));
    let launch = Launch::grid([2, rows / 64 + 2, 1]);
    case("experts_linear_plain_rows", size_of::<V>()).launch(launch).run(arguments);
    let mut arguments = vec![input(&x), input(&y), input(&offsets), output(&mut dweight)];
    arguments.extend(extents());
    case("experts_linear_plain_weight", 8).launch(Launch::grid([2, 2, 2])).run(arguments);
}

#[test]
fn products_without_tensor_cores_are_counted() {
    plain_products::<bf16>();
    plain_products::<f32>();
}
