//! Attention: on tensor cores, without, and over a cache.

use half::bf16;

use super::{Bound, Case, SIZE, floats, named, values};
use crate::device::{Argument, Launch, input, long, output, unsigned};
use crate::support::{Variant, unwritten};

/// One head over one document, causal.
#[derive(Clone, Copy)]
struct Layer {
    tokens: usize,
    head_size: usize,
}

/// The three passes: their names, operations for each element of the heads of a pair of tokens, and how many matrices of a
/// head's columns they read or write. Σ q·k and Σ p·v, two each; backward also Σ do·v, and what a side's gradients are
/// added up from. Both sides of the backward compute scores and probabilities, so that no sum needs an atomic: 14 in all, of
/// which 10 are necessary.
const PASSES: [(&str, usize, usize); 3] =
    [("attention_forward", 4, 4), ("attention_backward_keys", 8, 6), ("attention_backward_queries", 6, 5)];

impl Layer {
    fn extents(self) -> [Argument<'static>; 5] {
        [self.tokens, 1, 1, 1, 0].map(unsigned)
    }

    /// The case of a pass over matrices of elements of `each` bytes.
    fn case(
        self,
        (pass, flops, matrices): (&str, usize, usize),
        file: &'static str,
        suffix: &str,
        each: usize,
    ) -> Case {
        let Self { tokens, head_size } = self;
        let pairs = tokens * (tokens + 1) / 2;
        // The log-sum-exp, and δ on the way back.
        let sums = if pass.ends_with("attention_forward") { 4 } else { 8 };
        let bytes = tokens * (matrices * head_size * each + sums);
        Case::new(file, format!("{pass}_{suffix}"), bytes, flops * head_size * pairs)
            .of(format!("{tokens} tokens, a head of {head_size}"), head_size * pairs)
    }

    fn forward<V: Variant>(self, case: &Case, extra: Option<usize>) {
        let (qkv, mut out) =
            (values::<V>(self.tokens * 3 * self.head_size), values::<V>(self.tokens * self.head_size));
        let (mut sums, documents) = (floats(self.tokens), [0, self.tokens as u32]);
        let mut arguments = vec![input(&qkv), input(&documents), output(&mut out), output(&mut sums)];
        arguments.extend(self.extents());
        arguments.extend(extra.map(unsigned));
        case.run(arguments);
    }

    fn backward<V: Variant>(self, case: &Case, extra: Option<usize>) {
        let (qkv, dout) =
            (values::<V>(self.tokens * 3 * self.head_size), values::<V>(self.tokens * self.head_size));
        let (sums, delta) = (vec![5.0_f32; self.tokens], floats(self.tokens));
        let (documents, mut dqkv) = ([0, self.tokens as u32], values::<V>(self.tokens * 3 * self.head_size));
        let mut arguments = vec![
            input(&dout),
            input(&qkv),
            input(&sums),
            input(&delta),
            input(&documents),
            output(&mut dqkv),
        ];
        arguments.extend(self.extents());
        arguments.extend(extra.map(unsigned));
        case.run(arguments);
    }
}

#[test]
fn attention_feeds_the_tensor_cores() {
    for (head_size, others) in [(64, 64), (128, 32)] {
        let layer = Layer { tokens: 1024, head_size };
        let rows_bytes = |rows: usize| rows * head_size * size_of::<bf16>();
        let [forward, keys, queries] = PASSES.map(|pass| {
            let file = if pass.0 == "attention_forward" { "attention_forward" } else { "attention_backward" };
            layer.case(pass, file, &head_size.to_string(), size_of::<bf16>()).bound(Bound::TensorCores)
        });
        let launch = |own: usize, shared| Launch::blocks(layer.tokens / own).threads(128).shared(shared);
        layer.forward::<bf16>(&forward.launch(launch(128, rows_bytes(128 + 2 * others))), None);
        let shared = rows_bytes(2 * 64 + 4 * others);
        layer.backward::<bf16>(&keys.launch(launch(64, shared + 4 * others * size_of::<f32>())), None);
        layer.backward::<bf16>(&queries.launch(launch(64, shared)), None);
    }
}

#[test]
fn attention_feeds_the_tensor_cores_by_warpgroups() {
    for head_size in [64, 128] {
        let layer = Layer { tokens: 1024, head_size };
        let rows_bytes = |rows: usize| rows * head_size * size_of::<bf16>();
        let [forward, keys, queries] = PASSES.map(|(pass, flops, matrices)| {
            let name = format!("hopper_{pass}");
            let file = if pass == "attention_forward" {
                "hopper_attention_forward"
            } else {
                "hopper_attention_backward"
            };
            layer
                .case((&name, flops, matrices), file, &head_size.to_string(), size_of::<bf16>())
                .bound(Bound::TensorCores)
        });
        // Four pairs of tiles of 64 rows.
        let ring = rows_bytes(4 * 2 * 64);
        let launch = |shared| Launch::grid([1, layer.tokens / 128, 1]).threads(256).shared(shared);
        layer.forward::<bf16>(&forward.launch(launch(rows_bytes(128) + ring)), None);
        let shared = rows_bytes(2 * 128) + ring;
        layer.backward::<bf16>(&keys.launch(launch(shared + 4 * 2 * 64 * size_of::<f32>())), None);
        layer.backward::<bf16>(&queries.launch(launch(shared)), None);
    }
}

fn plain<V: Variant>() {
    let layer = Layer { tokens: 128, head_size: 80 };
    // Rows in shared memory: 8 of the block's own for each matrix, and 32 of two matrices that meet them.
    let launch = |matrices: usize| {
        let shared = (8 * matrices + 2 * 32) * (layer.head_size + 1) * size_of::<f32>();
        Launch::blocks(layer.tokens / 8).threads(128).shared(shared)
    };
    let [forward, keys, queries] = PASSES
        .map(|pass| layer.case(pass, "attention_plain", V::SUFFIX, size_of::<V>()).bound(Bound::Neither));
    layer.forward::<V>(&forward.launch(launch(2)), Some(layer.head_size));
    layer.backward::<V>(&keys.launch(launch(4)), Some(layer.head_size));
    layer.backward::<V>(&queries.launch(launch(3)), Some(layer.head_size));
    let (dout, out, mut delta) = (values::<V>(SIZE), values::<V>(SIZE), floats(SIZE / 128));
    Case::new(
        "attention_plain",
        named::<V>("attention_delta"),
        2 * size_of::<V>() * SIZE + SIZE / 32,
        2 * SIZE,
    )
    .launch(Launch::blocks(SIZE / 128 / 4).threads(128))
    .run(vec![input(&dout), input(&out), output(&mut delta), long(SIZE / 128), unsigned(128)]);
}

#[test]
fn attention_without_tensor_cores_is_counted() {
    plain::<bf16>();
    plain::<f32>();
}

/// One sequence of 8 query heads, 2 heads of keys and values, and 256 cached tokens.
fn cached<V: Variant>() {
    let (tokens, query, key_value, head_size) = (256, 8, 2, 128);
    let (output_width, cache_width) = (query * head_size, 2 * key_value * head_size);
    let row_width = output_width + cache_width;
    let (qkv, mut cache) = (values::<V>(tokens * row_width), values::<V>(tokens * cache_width));
    let (documents, each) = ([0, tokens as u32], size_of::<V>());
    let widths = || [tokens, output_width, cache_width].map(unsigned);
    let case = |kernel: &str, bytes: usize, flops: usize, elements: usize| {
        Case::new("attention_decode", named::<V>(kernel), bytes, flops)
            .of(format!("{query} heads of {head_size}, {tokens} tokens"), elements)
    };
    let mut arguments = vec![input(&qkv), input(&documents), output(&mut cache), unsigned(1)];
    arguments.extend(widths());
    let elements = tokens * cache_width;
    case("attention_fill_cache", 2 * each * elements, 0, elements)
        .launch(Launch::blocks(tokens).threads(128))
        .run(arguments);
    let lengths = [tokens as u32 - 1];
    let mut arguments = vec![input(&qkv), input(&lengths), output(&mut cache)];
    arguments.extend(widths());
    case("attention_append", 2 * each * cache_width + 4, 0, cache_width)
        .launch(Launch::blocks(1).threads(128))
        .bound(Bound::Neither)
        .run(arguments);
    let mut out = unwritten::<V>(output_width);
    let mut arguments = vec![input(&qkv), input(&cache), input(&lengths), output(&mut out)];
    arguments.extend([tokens, query, key_value, 0, head_size].map(unsigned));
    // Heads that share keys and values read them from the caches.
    let elements = tokens * output_width;
    case("attention_decode", each * (tokens * cache_width + 2 * output_width), 4 * elements, elements)
        .launch(Launch::grid([query, 1, 1]).threads(128).shared(5 * head_size * size_of::<f32>()))
        .bound(Bound::Neither)
        .run(arguments);
}

#[test]
fn a_cache_is_filled_and_read() {
    cached::<bf16>();
    cached::<f32>();
}
