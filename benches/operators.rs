//! Each operator, forward and backward, at the shapes of a Llama of 56 million parameters: 2048 tokens in four
//! documents, hidden size 512, 8 query and 4 key-value heads of 64, feed-forward size 1376, 32000 tokens in the
//! vocabulary, the head in chunks of 1024 tokens. Mixtures of experts stand beside a dense feed-forward layer of the
//! same active size.
//!
//! Products and attention report floating-point operations as their elements (1 Gelem/s is 1 GFLOP/s), everything else the bytes
//! that it must read and write. At the end a table holds each against what the processor can do at most, measured in the same run.

#![allow(missing_docs, clippy::unwrap_used)]

use criterion::measurement::WallTime;
use criterion::{BatchSize, BenchmarkGroup, Criterion, Throughput, criterion_group};
use tessera_benches::rooflines::Rooflines;
use tessera_ops::attention::{self, Heads};
use tessera_ops::experts::linear::WeightLayout;
use tessera_ops::experts::{self, ExpertRows, activation, linear as expert_linear};
use tessera_ops::{
    Element, Factors, Queue, Shape, View, ViewMut, adamw, bias, clamp, cross_entropy, embedding, layer_norm,
    linear, lion, load_balance, random, rms_norm, rope, router, rows, squared_norm, swiglu,
};

const TOKENS: usize = 2048;
const DOCUMENT: usize = 512;
const HIDDEN: usize = 512;
const FEED_FORWARD: usize = 1376;
const VOCABULARY: usize = 32_000;
const CHUNK: usize = 1024;
const HEADS: Heads = Heads { query: 8, key_value: 4, size: 64, window: None };
/// Parameters of one block and its norms, about.
const FLAT: usize = 3 << 20;

fn values(count: usize) -> Vec<f32> {
    let mut values = vec![0.0; count];
    random::normal(count as u64, 0, 1.0, ViewMut::of(&mut values)).unwrap();
    values
}

fn view<T: Element>(values: &[T], shape: impl Into<Shape>) -> View<'_> {
    View::of(values).reshape(shape).unwrap()
}

fn view_mut<T: Element>(values: &mut [T], shape: impl Into<Shape>) -> ViewMut<'_> {
    ViewMut::of(values).reshape(shape).unwrap()
}

fn ids(count: usize, bound: usize) -> Vec<u32> {
    (0..count).map(|index| (index * 7919 % bound) as u32).collect()
}

/// Floating-point operations.
fn operations(count: usize) -> Throughput {
    Throughput::Elements(count as u64)
}

/// So many fp32 numbers, read or written.
fn floats(count: usize) -> Throughput {
    Throughput::Bytes(4 * count as u64)
}

/// Measures `run`, which must do so much work.
fn measure(group: &mut BenchmarkGroup<'_, WallTime>, name: &str, work: Throughput, run: impl FnMut(&Queue)) {
    measure_on(&Queue::cpu(), group, name, work, run);
}

fn measure_on(
    queue: &Queue,
    group: &mut BenchmarkGroup<'_, WallTime>,
    name: &str,
    work: Throughput,
    mut run: impl FnMut(&Queue),
) {
    group.throughput(work);
    group.bench_function(name, |bencher| bencher.iter(|| run(queue)));
}

/// How products take their factors, and what their groups' names add to say so.
const FACTORS: [(Factors, &str); 2] = [(Factors::Exact, ""), (Factors::Bf16, ", factors rounded to bf16")];

fn products(criterion: &mut Criterion) {
    for (factors, suffix) in FACTORS {
        products_of(&Queue::cpu().with_factors(factors), criterion, suffix);
    }
}

fn products_of(queue: &Queue, criterion: &mut Criterion, suffix: &str) {
    let mut group = criterion.benchmark_group(format!("linear{suffix}"));
    group.sample_size(10);
    for (name, tokens, inputs, outputs) in [
        ("queries, keys and values", TOKENS, HIDDEN, HEADS.row_width()),
        ("attention output", TOKENS, HEADS.output_width(), HIDDEN),
        ("gate and up", TOKENS, HIDDEN, 2 * FEED_FORWARD),
        ("down", TOKENS, FEED_FORWARD, HIDDEN),
        ("head, a chunk", CHUNK, HIDDEN, VOCABULARY),
    ] {
        let (x, weight) = (values(tokens * inputs), values(outputs * inputs));
        let dy = values(tokens * outputs);
        let (mut y, mut dx) = (vec![0.0_f32; tokens * outputs], vec![0.0_f32; tokens * inputs]);
        let mut dweight = vec![0.0_f32; outputs * inputs];
        let (x, weight) = (view(&x, [tokens, inputs]), view(&weight, [outputs, inputs]));
        let dy = view(&dy, [tokens, outputs]);
        let work = operations(2 * tokens * inputs * outputs);
        measure_on(queue, &mut group, &format!("{name}/y"), work.clone(), |queue| {
            linear::forward(queue, x, weight, view_mut(&mut y, [tokens, outputs])).unwrap();
        });
        measure_on(queue, &mut group, &format!("{name}/dx"), work.clone(), |queue| {
            linear::backward_input(queue, dy, weight, view_mut(&mut dx, [tokens, inputs])).unwrap();
        });
        measure_on(queue, &mut group, &format!("{name}/dW"), work, |queue| {
            linear::backward_weight(queue, dy, x, view_mut(&mut dweight, [outputs, inputs])).unwrap();
        });
    }
    let (x, weight) = (values(HIDDEN), values(VOCABULARY * HIDDEN));
    let mut y = vec![0.0_f32; VOCABULARY];
    measure_on(queue, &mut group, "head, one token/y", floats(HIDDEN * VOCABULARY), |queue| {
        let weight = view(&weight, [VOCABULARY, HIDDEN]);
        linear::forward(queue, view(&x, [1, HIDDEN]), weight, view_mut(&mut y, [1, VOCABULARY])).unwrap();
    });
}

fn attention(criterion: &mut Criterion) {
    for (factors, suffix) in FACTORS {
        attention_of(&Queue::cpu().with_factors(factors), criterion, suffix);
    }
}

fn attention_of(queue: &Queue, criterion: &mut Criterion, suffix: &str) {
    let mut group = criterion.benchmark_group(format!("attention{suffix}"));
    group.sample_size(10);
    let (width, output_width) = (HEADS.row_width(), HEADS.output_width());
    let (qkv, doutput) = (values(TOKENS * width), values(TOKENS * output_width));
    let cu_seqlens: Vec<u32> = (0..=TOKENS as u32).step_by(DOCUMENT).collect();
    let (mut output, mut log_sum_exp) =
        (vec![0.0_f32; TOKENS * output_width], vec![0.0_f32; TOKENS * HEADS.query]);
    let (mut dqkv, mut scratch) = (
        vec![0.0_f32; TOKENS * width],
        vec![0.0_f32; attention::backward_scratch(tessera_ops::Home::Host, HEADS, TOKENS)],
    );
    let (qkv, cu_seqlens) = (view(&qkv, [TOKENS, width]), View::of(&cu_seqlens));
    // Half of a document's score matrix is worked on: two products forward, five backward.
    let product = TOKENS * DOCUMENT * output_width;
    measure_on(queue, &mut group, "forward", operations(2 * product), |queue| {
        let output = view_mut(&mut output, [TOKENS, output_width]);
        let log_sum_exp = view_mut(&mut log_sum_exp, [TOKENS, HEADS.query]);
        attention::forward(queue, qkv, cu_seqlens, HEADS, output, log_sum_exp).unwrap();
    });
    measure_on(queue, &mut group, "backward", operations(5 * product), |queue| {
        let output = view(&output, [TOKENS, output_width]);
        let log_sum_exp = view(&log_sum_exp, [TOKENS, HEADS.query]);
        let (dqkv, scratch) = (view_mut(&mut dqkv, [TOKENS, width]), ViewMut::of(&mut scratch));
        let doutput = view(&doutput, [TOKENS, output_width]);
        attention::backward(queue, doutput, qkv, output, log_sum_exp, cu_seqlens, HEADS, dqkv, scratch)
            .unwrap();
    });
    let cached_width = width - output_width;
    let mut cache = values(DOCUMENT * cached_width);
    let mut decoded = vec![0.0_f32; output_width];
    let row = qkv.range(0, width).unwrap().reshape([1, width]).unwrap();
    measure_on(queue, &mut group, "decode", floats(DOCUMENT * cached_width), |queue| {
        let cache = view_mut(&mut cache, [1, DOCUMENT, cached_width]);
        let lengths = [DOCUMENT as u32 - 1];
        let output = view_mut(&mut decoded, [1, output_width]);
        attention::decode(queue, row, cache, View::of(&lengths), HEADS, output).unwrap();
    });
}

fn row_wise(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("row-wise");
    group.sample_size(20);
    let shape = [TOKENS, HIDDEN];
    let (x, dy, weight) = (values(TOKENS * HIDDEN), values(TOKENS * HIDDEN), values(HIDDEN));
    let (mut y, mut inverse_rms) = (vec![0.0_f32; TOKENS * HIDDEN], vec![0.0_f32; TOKENS]);
    let (mut dx, mut dweight) = (vec![0.0_f32; TOKENS * HIDDEN], vec![0.0_f32; HIDDEN]);
    let (x, dy, weight) = (view(&x, shape), view(&dy, shape), View::of(&weight));
    measure(&mut group, "rms_norm/forward", floats(2 * TOKENS * HIDDEN), |queue| {
        let inverse_rms = ViewMut::of(&mut inverse_rms);
        rms_norm::forward(queue, x, weight, 1e-5, view_mut(&mut y, shape), inverse_rms).unwrap();
    });
    measure(&mut group, "rms_norm/backward", floats(4 * TOKENS * HIDDEN), |queue| {
        let (dx, dweight) = (view_mut(&mut dx, shape), ViewMut::of(&mut dweight));
        rms_norm::backward(queue, dy, x, weight, View::of(&inverse_rms), dx, dweight).unwrap();
    });
    measure(&mut group, "bias/forward and backward", floats(3 * TOKENS * HIDDEN), |queue| {
        bias::forward(queue, weight, view_mut(&mut y, shape)).unwrap();
        bias::backward(queue, dy, ViewMut::of(&mut dweight)).unwrap();
    });
    let every_second: Vec<u32> = (0..TOKENS as u32).step_by(2).collect();
    let (index, mut picked) = (View::of(&every_second), vec![0.0_f32; CHUNK * HIDDEN]);
    measure(&mut group, "rows/gather and scatter", floats(4 * CHUNK * HIDDEN), |queue| {
        rows::gather(queue, x, index, view_mut(&mut picked, [CHUNK, HIDDEN])).unwrap();
        rows::scatter(queue, view(&picked, [CHUNK, HIDDEN]), index, view_mut(&mut dx, shape)).unwrap();
    });
    feed_forward(&mut group);
    rotation(&mut group);
    centred(&mut group);
}

fn feed_forward(group: &mut BenchmarkGroup<'_, WallTime>) {
    let (wide, narrow) = ([TOKENS, 2 * FEED_FORWARD], [TOKENS, FEED_FORWARD]);
    let (gate_up, gradient) = (values(TOKENS * 2 * FEED_FORWARD), values(TOKENS * FEED_FORWARD));
    let mut activation = vec![0.0_f32; TOKENS * FEED_FORWARD];
    measure(group, "swiglu/forward", floats(3 * TOKENS * FEED_FORWARD), |queue| {
        swiglu::forward(queue, view(&gate_up, wide), view_mut(&mut activation, narrow)).unwrap();
    });
    // The backward overwrites its input, so each run gets a fresh one.
    group.throughput(floats(5 * TOKENS * FEED_FORWARD));
    group.bench_function("swiglu/backward", |bencher| {
        bencher.iter_batched_ref(
            || gate_up.clone(),
            |gate_up| {
                swiglu::backward(&Queue::cpu(), view(&gradient, narrow), view_mut(gate_up, wide)).unwrap();
            },
            BatchSize::PerIteration,
        );
    });
}

fn rotation(group: &mut BenchmarkGroup<'_, WallTime>) {
    let shape = [TOKENS, HEADS.row_width()];
    let mut qkv = values(TOKENS * HEADS.row_width());
    let frequencies: Vec<f64> =
        (0..HEADS.size / 2).map(|index| 1e4_f64.powf(-2.0 * index as f64 / HEADS.size as f64)).collect();
    let mut table = vec![0.0_f32; DOCUMENT * HEADS.size];
    rope::fill_table(&frequencies, view_mut(&mut table, [DOCUMENT, HEADS.size])).unwrap();
    let (table, positions) = (view(&table, [DOCUMENT, HEADS.size]), ids(TOKENS, DOCUMENT));
    let (turned, positions) = (HEADS.query + HEADS.key_value, View::of(&positions));
    measure(group, "rope/forward and backward", floats(4 * TOKENS * turned * HEADS.size), |queue| {
        rope::forward(queue, view_mut(&mut qkv, shape), turned, positions, table).unwrap();
        rope::backward(queue, view_mut(&mut qkv, shape), turned, positions, table).unwrap();
    });
}

/// DBRX's norm, and the clamp of its queries, keys and values.
fn centred(group: &mut BenchmarkGroup<'_, WallTime>) {
    let shape = [TOKENS, HIDDEN];
    let (x, dy, weight) = (values(TOKENS * HIDDEN), values(TOKENS * HIDDEN), values(HIDDEN));
    let (mut y, mut mean, mut deviation) =
        (vec![0.0_f32; TOKENS * HIDDEN], vec![0.0_f32; TOKENS], vec![0.0_f32; TOKENS]);
    let (mut dx, mut dweight) = (vec![0.0_f32; TOKENS * HIDDEN], vec![0.0_f32; HIDDEN]);
    let (x, dy, weight) = (view(&x, shape), view(&dy, shape), View::of(&weight));
    measure(group, "layer_norm/forward", floats(2 * TOKENS * HIDDEN), |queue| {
        let (mean, deviation) = (ViewMut::of(&mut mean), ViewMut::of(&mut deviation));
        layer_norm::forward(queue, x, weight, 1e-5, view_mut(&mut y, shape), mean, deviation).unwrap();
    });
    measure(group, "layer_norm/backward", floats(4 * TOKENS * HIDDEN), |queue| {
        let (mean, deviation) = (View::of(&mean), View::of(&deviation));
        let (dx, dweight) = (view_mut(&mut dx, shape), ViewMut::of(&mut dweight));
        layer_norm::backward(queue, dy, x, weight, mean, deviation, dx, dweight).unwrap();
    });
    let words = [TOKENS, clamp::words(HIDDEN)];
    let mut inside = vec![0_u32; words[0] * words[1]];
    measure(group, "clamp/forward and backward", floats(4 * TOKENS * HIDDEN), |queue| {
        clamp::forward(queue, view_mut(&mut y, shape), 0.5, view_mut(&mut inside, words)).unwrap();
        clamp::backward(queue, view_mut(&mut dx, shape), view(&inside, words)).unwrap();
    });
}

/// Tokens that a router sends to `choices` of `experts` experts, each with a feed-forward layer of `size`.
struct Mixture {
    experts: usize,
    choices: usize,
    size: usize,
}

const MIXTURES: [Mixture; 2] = [
    Mixture { experts: 8, choices: 2, size: FEED_FORWARD },
    Mixture { experts: 16, choices: 4, size: FEED_FORWARD / 2 },
];

impl Mixture {
    fn name(&self) -> String {
        format!("{} of {} experts", self.choices, self.experts)
    }

    /// Floating-point operations of the products, forward and backward.
    fn operations(&self) -> usize {
        3 * 2 * TOKENS * 3 * HIDDEN * self.choices * self.size
    }
}

fn mixtures(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("mixture");
    group.sample_size(10);
    for mixture in MIXTURES {
        dense_of_the_same_size(&mut group, &mixture);
        routed(&mut group, &mixture);
    }
}

fn dense_of_the_same_size(group: &mut BenchmarkGroup<'_, WallTime>, mixture: &Mixture) {
    let size = mixture.choices * mixture.size;
    let (outer, wide, narrow) = ([TOKENS, HIDDEN], [TOKENS, 2 * size], [TOKENS, size]);
    let (gate_up_shape, down_shape) = ([2 * size, HIDDEN], [HIDDEN, size]);
    let (x, dy) = (values(TOKENS * HIDDEN), values(TOKENS * HIDDEN));
    let (gate_up, down) = (values(2 * size * HIDDEN), values(size * HIDDEN));
    let (mut dgate_up, mut ddown) = (gate_up.clone(), down.clone());
    let (mut hidden, mut features) = (values(TOKENS * 2 * size), values(TOKENS * size));
    let (mut dfeatures, mut y) = (values(TOKENS * size), values(TOKENS * HIDDEN));
    let (x, dy) = (view(&x, outer), view(&dy, outer));
    let (gate_up, down) = (view(&gate_up, gate_up_shape), view(&down, down_shape));
    let name = format!("{}/dense of the same size", mixture.name());
    measure(group, &name, operations(mixture.operations()), |queue| {
        linear::forward(queue, x, gate_up, view_mut(&mut hidden, wide)).unwrap();
        swiglu::forward(queue, view(&hidden, wide), view_mut(&mut features, narrow)).unwrap();
        linear::forward(queue, view(&features, narrow), down, view_mut(&mut y, outer)).unwrap();

        let ddown = view_mut(&mut ddown, down_shape);
        linear::backward_weight(queue, dy, view(&features, narrow), ddown).unwrap();
        linear::backward_input(queue, dy, down, view_mut(&mut dfeatures, narrow)).unwrap();
        swiglu::backward(queue, view(&dfeatures, narrow), view_mut(&mut hidden, wide)).unwrap();
        let dhidden = view(&hidden, wide);
        linear::backward_weight(queue, dhidden, x, view_mut(&mut dgate_up, gate_up_shape)).unwrap();
        linear::backward_input(queue, dhidden, gate_up, view_mut(&mut y, outer)).unwrap();
    });
}

fn routed(group: &mut BenchmarkGroup<'_, WallTime>, mixture: &Mixture) {
    let &Mixture { experts: count, choices, size } = mixture;
    let slots_count = TOKENS * choices;
    let (tokens, outer) = ([TOKENS, HIDDEN], [slots_count, HIDDEN]);
    let (wide, narrow, chosen_shape) = ([slots_count, 2 * size], [slots_count, size], [TOKENS, choices]);
    let (gate_up_shape, down_shape) = ([count * 2 * size, HIDDEN], [count * HIDDEN, size]);
    let (x, dy, logits) = (values(TOKENS * HIDDEN), values(TOKENS * HIDDEN), values(TOKENS * count));
    let (gate_up, down) = (values(count * 2 * size * HIDDEN), values(count * size * HIDDEN));
    let (mut dgate_up, mut ddown) = (gate_up.clone(), down.clone());
    let (mut hidden, mut features) = (values(slots_count * 2 * size), values(slots_count * size));
    let (mut dfeatures, mut outputs) = (values(slots_count * size), values(slots_count * HIDDEN));
    let (mut rows, mut y) = (values(slots_count * HIDDEN), values(TOKENS * HIDDEN));
    let (mut weights, mut dweights) = (values(slots_count), values(slots_count));
    let mut probabilities = logits.clone();
    let (mut chosen, mut slots, mut places) =
        (vec![0_u32; slots_count], vec![0_u32; slots_count], vec![0_u32; slots_count]);
    let mut offsets = vec![0_u32; count + 1];
    let (x, dy) = (view(&x, tokens), view(&dy, tokens));
    let (gate_up, down) = (view(&gate_up, gate_up_shape), view(&down, down_shape));
    let layout = WeightLayout::OutputsInputs;
    measure(group, &format!("{}/routed", mixture.name()), operations(mixture.operations()), |queue| {
        probabilities.copy_from_slice(&logits);
        let logits = view_mut(&mut probabilities, [TOKENS, count]);
        let (chosen_out, weights_out) =
            (view_mut(&mut chosen, chosen_shape), view_mut(&mut weights, chosen_shape));
        router::forward(queue, logits, Some(1.0), chosen_out, weights_out).unwrap();
        let (slots_out, places_out) = (ViewMut::of(&mut slots), ViewMut::of(&mut places));
        let chosen = view(&chosen, chosen_shape);
        experts::sort(queue, chosen, slots_out, places_out, ViewMut::of(&mut offsets)).unwrap();
        let (slots, places, weights) = (View::of(&slots), View::of(&places), view(&weights, chosen_shape));
        let group = &ExpertRows { offsets: View::of(&offsets), experts: 0..count };

        experts::gather(queue, x, slots, choices, group, view_mut(&mut rows, outer)).unwrap();
        let hidden_out = view_mut(&mut hidden, wide);
        expert_linear::forward(queue, view(&rows, outer), gate_up, layout, group, hidden_out).unwrap();
        let features_out = view_mut(&mut features, narrow);
        activation::forward(queue, view(&hidden, wide), weights, slots, group, features_out).unwrap();
        let (features, outputs_out) = (view(&features, narrow), view_mut(&mut outputs, outer));
        expert_linear::forward(queue, features, down, layout, group, outputs_out).unwrap();
        let y_out = view_mut(&mut y, tokens);
        experts::combine(queue, view(&outputs, outer), slots, places, choices, group, y_out).unwrap();

        experts::gather(queue, dy, slots, choices, group, view_mut(&mut outputs, outer)).unwrap();
        let doutputs = view(&outputs, outer);
        let ddown = view_mut(&mut ddown, down_shape);
        expert_linear::backward_weight(queue, doutputs, features, layout, group, ddown).unwrap();
        let dfeatures_out = view_mut(&mut dfeatures, narrow);
        expert_linear::backward_input(queue, doutputs, down, layout, group, dfeatures_out).unwrap();
        let (dfeatures, dweights_out) = (view(&dfeatures, narrow), view_mut(&mut dweights, chosen_shape));
        let hidden_out = view_mut(&mut hidden, wide);
        activation::backward(queue, dfeatures, weights, slots, group, hidden_out, dweights_out).unwrap();
        let (dhidden, dgate_up) = (view(&hidden, wide), view_mut(&mut dgate_up, gate_up_shape));
        expert_linear::backward_weight(queue, dhidden, view(&rows, outer), layout, group, dgate_up).unwrap();
        let rows_out = view_mut(&mut rows, outer);
        expert_linear::backward_input(queue, dhidden, gate_up, layout, group, rows_out).unwrap();
        let y_out = view_mut(&mut y, tokens);
        experts::combine(queue, view(&rows, outer), slots, places, choices, group, y_out).unwrap();
    });
}

/// The router's own part, with the load-balancing loss of two rows.
fn routing(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("routing");
    for &Mixture { experts: count, choices, .. } in &MIXTURES {
        let (wide, narrow, pooled) = ([TOKENS, count], [TOKENS, choices], [2, count]);
        let (logits, dweights) = (values(TOKENS * count), values(TOKENS * choices));
        let (mut probabilities, mut gradient) = (logits.clone(), logits.clone());
        let (mut chosen, mut weights) = (vec![0_u32; TOKENS * choices], values(TOKENS * choices));
        let row_starts = [0_u32, CHUNK as u32, TOKENS as u32];
        let (mut counts, mut sums) = (vec![0.0_f64; 2 * count], vec![0.0_f64; 2 * count]);
        measure(&mut group, &format!("{choices} of {count}"), floats(10 * TOKENS * count), |queue| {
            probabilities.copy_from_slice(&logits);
            let (chosen_out, weights_out) = (view_mut(&mut chosen, narrow), view_mut(&mut weights, narrow));
            router::forward(queue, view_mut(&mut probabilities, wide), Some(1.0), chosen_out, weights_out)
                .unwrap();
            let (probabilities, chosen) = (view(&probabilities, wide), view(&chosen, narrow));
            let (row_starts, all) = (View::of(&row_starts), 0..TOKENS);
            let (counts_out, sums_out) = (view_mut(&mut counts, pooled), view_mut(&mut sums, pooled));
            load_balance::add(queue, probabilities, chosen, row_starts, all.clone(), counts_out, sums_out)
                .unwrap();
            let (counts, gradient_out) = (view(&counts, pooled), view_mut(&mut gradient, wide));
            load_balance::backward(queue, counts, row_starts, all, 1, 0.01, gradient_out).unwrap();
            let (dweights, gradient_out) = (view(&dweights, narrow), view_mut(&mut gradient, wide));
            router::backward(queue, dweights, probabilities, chosen, Some(1.0), gradient_out).unwrap();
        });
    }
}

fn vocabulary(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("vocabulary");
    group.sample_size(10);
    let (tokens, dx) = (ids(TOKENS, VOCABULARY), values(TOKENS * HIDDEN));
    let (tokens, mut x) = (View::of(&tokens), vec![0.0_f32; TOKENS * HIDDEN]);
    let mut weight = values(VOCABULARY * HIDDEN);
    let (table, shape) = ([VOCABULARY, HIDDEN], [TOKENS, HIDDEN]);
    measure(&mut group, "embedding/forward and backward", floats(5 * TOKENS * HIDDEN), |queue| {
        embedding::forward(queue, tokens, view(&weight, table), view_mut(&mut x, shape)).unwrap();
        embedding::backward(queue, tokens, view(&dx, shape), view_mut(&mut weight, table)).unwrap();
    });
    let (mut logits, targets) = (values(CHUNK * VOCABULARY), ids(CHUNK, VOCABULARY));
    let mut statistics = [0.0_f64; 2];
    // The gradient that is left serves as the logits of the next run: finite, and as costly.
    measure(&mut group, "cross_entropy/forward and backward", floats(2 * CHUNK * VOCABULARY), |queue| {
        let logits = view_mut(&mut logits, [CHUNK, VOCABULARY]);
        let statistics = ViewMut::of(&mut statistics);
        cross_entropy::forward_backward(queue, logits, View::of(&targets), 1.0, statistics).unwrap();
    });
}

fn flat(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("flat");
    group.sample_size(20);
    let (mut p, gradient) = (values(FLAT), values(FLAT));
    let (mut m, mut v) = (vec![0.0_f32; FLAT], vec![0.0_f32; FLAT]);
    let gradient = View::of(&gradient);
    let decision = [1.0, 1.0, 1.0, 0.0, 0.0];
    let adamw =
        adamw::Hyperparameters { learning_rate: 1e-4, betas: (0.9, 0.95), epsilon: 1e-8, decay: 1e-5 };
    measure(&mut group, "adamw", floats(7 * FLAT), |queue| {
        let state = adamw::State {
            parameters: ViewMut::of(&mut p),
            first_moment: ViewMut::of(&mut m),
            second_moment: ViewMut::of(&mut v),
            rounded: None,
        };
        adamw::update(queue, state, gradient, FLAT / 2, adamw, View::of(&decision)).unwrap();
    });
    let lion = lion::Hyperparameters { learning_rate: 1e-4, betas: (0.9, 0.99), decay: 1e-5 };
    measure(&mut group, "lion", floats(5 * FLAT), |queue| {
        let (p, m) = (ViewMut::of(&mut p), ViewMut::of(&mut m));
        lion::update(queue, p, gradient, m, FLAT / 2, lion, View::of(&decision)).unwrap();
    });
    let mut total = [0.0_f64];
    measure(&mut group, "squared_norm", floats(FLAT), |queue| {
        squared_norm::add(queue, gradient, ViewMut::of(&mut total)).unwrap();
    });
    measure(&mut group, "random::normal", floats(FLAT), |_| {
        random::normal(17, 0, 0.02, ViewMut::of(&mut p)).unwrap();
    });
}

criterion_group!(operators, products, attention, row_wise, mixtures, routing, vocabulary, flat);

fn main() {
    let rooflines = Rooflines::measure();
    operators();
    Criterion::default().configure_from_args().final_summary();
    rooflines.print();
}
