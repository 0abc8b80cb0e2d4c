//! Every operator that a step of a Llama takes, on the first GPU, at the sizes of Llama-3.2-1B in bf16: 8,192 tokens in one
//! document, hidden 2,048, 32 query and 8 key-value heads of 64, feed-forward 8,192, 128,256 tokens in the vocabulary.
//!
//! `scripts/bench-gpu --kernels` runs it. Held against two ceilings of that GPU, measured first: a copy within its memory,
//! and a large product by cuBLAS. A time is that of many launches in a row, so what a launch costs the host shows only where
//! it is longer than the kernel. Bytes are those an operator must move, each input and output once; operations are those of
//! its formula. Operands are larger than the caches, or as large as the step has them.

#![allow(missing_docs, clippy::unwrap_used)]

use std::time::{Duration, Instant};

use tessera_ops::attention::{self, Heads};
use tessera_ops::cuda::Gpu;
use tessera_ops::{
    Buffer, DType, Home, Queue, Shape, View, ViewMut, adamw, cast, cross_entropy, embedding, fill, linear,
    random, rms_norm, rope, squared_norm, swiglu,
};

const TOKENS: usize = 8192;
const HIDDEN: usize = 2048;
const FEED_FORWARD: usize = 8192;
const VOCABULARY: usize = 128_256;
/// Tokens whose logits are in memory at a time, and what feed-forward layers do at a time.
const LOGIT_ROWS: usize = 1024;
const CHUNK: usize = 4096;
/// Elements of the flat buffers of an update.
const FLAT: usize = 1 << 26;
const SMALL_HEADS: Heads = Heads { query: 32, key_value: 8, size: 64, window: None };
const LARGE_HEADS: Heads = Heads { query: 32, key_value: 8, size: 128, window: None };

const F32: DType = DType::F32;
const BF16: DType = DType::BF16;

/// What an operator must do, to be held against a ceiling.
#[derive(Clone, Copy)]
enum Work {
    /// Bytes moved.
    Bytes(usize),
    /// Operations of tensor cores.
    Operations(usize),
}

struct Bench {
    queue: Queue,
    /// Bytes and operations per second.
    copy: f64,
    product: f64,
}

impl Bench {
    fn buffer(&self, dtype: DType, elements: usize) -> Buffer {
        Buffer::on(&self.queue, elements * dtype.size()).unwrap()
    }

    /// Numbers as activations have them, on the GPU.
    fn values(&self, dtype: DType, elements: usize) -> Buffer {
        let mut drawn = vec![0.0_f32; elements.min(1 << 20)];
        random::normal(17, 0, 1.0, ViewMut::of(&mut drawn)).unwrap();
        let repeated: Vec<f32> = drawn.iter().copied().cycle().take(elements).collect();
        let wide = self.upload(View::of(&repeated));
        if dtype == F32 {
            return wide;
        }
        let mut narrow = self.buffer(dtype, elements);
        cast::forward(&self.queue, wide.view(F32), narrow.view_mut(dtype)).unwrap();
        self.queue.synchronize().unwrap();
        narrow
    }

    fn upload(&self, values: View<'_>) -> Buffer {
        let mut buffer = self.buffer(values.dtype(), values.shape().elements());
        fill::copy(&self.queue, values, buffer.view_mut(values.dtype())).unwrap();
        self.queue.synchronize().unwrap();
        buffer
    }

    fn numbers(&self, count: usize, bound: usize) -> Buffer {
        let numbers: Vec<u32> = (0..count).map(|index| (index * 7919 % bound) as u32).collect();
        self.upload(View::of(&numbers))
    }

    /// Seconds of one run, the median of several rows of runs, after one row to warm up.
    fn seconds(&self, mut run: impl FnMut(&Queue)) -> f64 {
        let mut row = |runs: u32| {
            let start = Instant::now();
            (0..runs).for_each(|_| run(&self.queue));
            self.queue.synchronize().unwrap();
            start.elapsed() / runs
        };
        let once = row(2).max(Duration::from_micros(5));
        let runs = (Duration::from_millis(20).as_nanos() / once.as_nanos()).clamp(2, 2000) as u32;
        let mut times: Vec<Duration> = (0..6).map(|_| row(runs)).skip(1).collect();
        times.sort();
        times[times.len() / 2].as_secs_f64()
    }

    fn row(&self, name: &str, size: &str, work: Work, run: impl FnMut(&Queue)) {
        let seconds = self.seconds(run);
        let (rate, unit, ceiling) = match work {
            Work::Bytes(bytes) => (bytes as f64 / seconds / 1e9, "GB/s", self.copy / 1e9),
            Work::Operations(operations) => {
                (operations as f64 / seconds / 1e12, "TFLOP/s", self.product / 1e12)
            }
        };
        println!(
            "| {name} | {size} | {:.1} | {rate:.0} {unit} | {:.0} % |",
            1e6 * seconds,
            100.0 * rate / ceiling
        );
    }
}

fn at(buffer: &Buffer, dtype: DType, shape: impl Into<Shape>) -> View<'_> {
    let shape = shape.into();
    buffer.view(dtype).range(0, shape.elements()).unwrap().reshape(shape).unwrap()
}

fn at_mut(buffer: &mut Buffer, dtype: DType, shape: impl Into<Shape>) -> ViewMut<'_> {
    let shape = shape.into();
    buffer.view_mut(dtype).range(0, shape.elements()).unwrap().reshape(shape).unwrap()
}

/// Measures the ceilings and prints the head of the table.
fn bench() -> Bench {
    let queue = Queue::cuda(&Gpu::open(0).unwrap()).unwrap();
    let mut bench = Bench { queue, copy: 1.0, product: 1.0 };
    let from = bench.values(F32, 1 << 28);
    let mut to = bench.buffer(F32, 1 << 28);
    let seconds = bench.seconds(|queue| fill::copy(queue, from.view(F32), to.view_mut(F32)).unwrap());
    bench.copy = (2 * from.len()) as f64 / seconds;
    drop((from, to));
    const EXTENT: usize = 8192;
    let square = [EXTENT, EXTENT];
    let (a, b) = (bench.values(BF16, EXTENT * EXTENT), bench.values(BF16, EXTENT * EXTENT));
    let mut c = bench.buffer(BF16, EXTENT * EXTENT);
    let seconds = bench.seconds(|queue| {
        linear::forward(queue, at(&a, BF16, square), at(&b, BF16, square), at_mut(&mut c, BF16, square))
            .unwrap();
    });
    bench.product = 2.0 * (EXTENT as f64).powi(3) / seconds;
    println!(
        "Ceilings: a copy of 1 GiB moves {:.0} GB/s, read and written; a bf16 product of {EXTENT}³ does {:.0} TFLOP/s.\n",
        bench.copy / 1e9,
        bench.product / 1e12
    );
    println!("| operator | size | µs | rate | of the ceiling |\n|---|---|---:|---:|---:|");
    bench
}

/// One linear layer, its three products.
fn products(bench: &Bench, name: &str, [rows, inputs, outputs]: [usize; 3], output: DType) {
    let (x, weight) = (bench.values(BF16, rows * inputs), bench.values(BF16, outputs * inputs));
    let dy = bench.values(BF16, rows * outputs);
    let mut y = bench.buffer(output, rows * outputs);
    let mut dx = bench.buffer(BF16, rows * inputs);
    let mut dweight = bench.buffer(F32, outputs * inputs);
    let (x, dy) = (at(&x, BF16, [rows, inputs]), at(&dy, BF16, [rows, outputs]));
    let weight = at(&weight, BF16, [outputs, inputs]);
    let size = format!("{rows} × {inputs} → {outputs}");
    let work = Work::Operations(2 * rows * inputs * outputs);
    bench.row(&format!("{name}: y = x·Wᵀ"), &size, work, |queue| {
        linear::forward(queue, x, weight, at_mut(&mut y, output, [rows, outputs])).unwrap();
    });
    bench.row(&format!("{name}: dx = dy·W"), &size, work, |queue| {
        linear::backward_input(queue, dy, weight, at_mut(&mut dx, BF16, [rows, inputs])).unwrap();
    });
    bench.row(&format!("{name}: dW += dyᵀ·x"), &size, work, |queue| {
        linear::backward_weight(queue, dy, x, at_mut(&mut dweight, F32, [outputs, inputs])).unwrap();
    });
}

fn attention_of(bench: &Bench, heads: Heads, documents: usize) {
    let length = TOKENS / documents;
    let starts: Vec<u32> = (0..=documents).map(|document| (document * length) as u32).collect();
    let starts = bench.upload(View::of(&starts));
    let starts = starts.view(DType::U32);
    let (wide, narrow) = ([TOKENS, heads.row_width()], [TOKENS, heads.output_width()]);
    let (qkv, dout) = (bench.values(BF16, wide[0] * wide[1]), bench.values(BF16, narrow[0] * narrow[1]));
    let mut out = bench.buffer(BF16, narrow[0] * narrow[1]);
    let mut dqkv = bench.buffer(BF16, wide[0] * wide[1]);
    let mut sums = bench.buffer(F32, TOKENS * heads.query);
    let mut scratch = bench.buffer(F32, attention::backward_scratch(Home::Gpu, heads, TOKENS));
    // Of the lower triangle: two products forward, five backward.
    let product = documents * length * length * heads.query * heads.size;
    let size = format!("{documents} × {length} tokens, {} heads of {}", heads.query, heads.size);
    let qkv = at(&qkv, BF16, wide);
    bench.row("attention forward", &size, Work::Operations(2 * product), |queue| {
        let sums = at_mut(&mut sums, F32, [TOKENS, heads.query]);
        attention::forward(queue, qkv, starts, heads, at_mut(&mut out, BF16, narrow), sums).unwrap();
    });
    bench.row("attention backward", &size, Work::Operations(5 * product), |queue| {
        attention::backward(
            queue,
            at(&dout, BF16, narrow),
            qkv,
            at(&out, BF16, narrow),
            at(&sums, F32, [TOKENS, heads.query]),
            starts,
            heads,
            at_mut(&mut dqkv, BF16, wide),
            scratch.view_mut(F32),
        )
        .unwrap();
    });
}

fn block(bench: &Bench) {
    let (shape, elements) = ([TOKENS, HIDDEN], TOKENS * HIDDEN);
    let (x, dy) = (bench.values(BF16, elements), bench.values(BF16, elements));
    let (mut y, weight) = (bench.values(BF16, elements), bench.values(BF16, HIDDEN));
    let (mut inverse_rms, mut dweight) = (bench.buffer(F32, TOKENS), bench.buffer(F32, HIDDEN));
    let size = format!("{TOKENS} × {HIDDEN}");
    bench.row("rms_norm forward", &size, Work::Bytes(4 * elements), |queue| {
        let (y, inverse_rms) = (at_mut(&mut y, BF16, shape), inverse_rms.view_mut(F32));
        rms_norm::forward(queue, at(&x, BF16, shape), weight.view(BF16), 1e-5, y, inverse_rms).unwrap();
    });
    // dx is added to.
    bench.row("rms_norm backward", &size, Work::Bytes(8 * elements), |queue| {
        let (dx, dweight) = (at_mut(&mut y, BF16, shape), dweight.view_mut(F32));
        let (x, inverse_rms) = (at(&x, BF16, shape), inverse_rms.view(F32));
        rms_norm::backward(queue, at(&dy, BF16, shape), x, weight.view(BF16), inverse_rms, dx, dweight)
            .unwrap();
    });
    bench.row("fill::add", &size, Work::Bytes(6 * elements), |queue| {
        fill::add(queue, at(&x, BF16, shape), at_mut(&mut y, BF16, shape)).unwrap();
    });

    let (wide, turned) = (SMALL_HEADS.row_width(), SMALL_HEADS.query + SMALL_HEADS.key_value);
    let mut qkv = bench.values(BF16, TOKENS * wide);
    let positions: Vec<u32> = (0..TOKENS as u32).collect();
    let positions = bench.upload(View::of(&positions));
    let table = bench.values(F32, TOKENS * SMALL_HEADS.size);
    let size = format!("{TOKENS} × {turned} heads of {}", SMALL_HEADS.size);
    bench.row("rope", &size, Work::Bytes(4 * TOKENS * turned * SMALL_HEADS.size), |queue| {
        let (qkv, positions) = (at_mut(&mut qkv, BF16, [TOKENS, wide]), positions.view(DType::U32));
        rope::forward(queue, qkv, turned, positions, at(&table, F32, [TOKENS, SMALL_HEADS.size])).unwrap();
    });

    let (outer, inner) = ([CHUNK, 2 * FEED_FORWARD], [CHUNK, FEED_FORWARD]);
    let mut gate_up = bench.values(BF16, outer[0] * outer[1]);
    let mut activation = bench.values(BF16, inner[0] * inner[1]);
    let size = format!("{CHUNK} × {FEED_FORWARD}");
    bench.row("swiglu forward", &size, Work::Bytes(6 * CHUNK * FEED_FORWARD), |queue| {
        swiglu::forward(queue, at(&gate_up, BF16, outer), at_mut(&mut activation, BF16, inner)).unwrap();
    });
    bench.row("swiglu backward", &size, Work::Bytes(10 * CHUNK * FEED_FORWARD), |queue| {
        swiglu::backward(queue, at(&activation, BF16, inner), at_mut(&mut gate_up, BF16, outer)).unwrap();
    });
}

fn ends(bench: &Bench) {
    let (shape, table) = ([TOKENS, HIDDEN], [VOCABULARY, HIDDEN]);
    let tokens = bench.numbers(TOKENS, VOCABULARY);
    let (weight, mut x) = (bench.values(BF16, table[0] * table[1]), bench.values(BF16, shape[0] * shape[1]));
    let mut dweight = bench.buffer(F32, table[0] * table[1]);
    let size = format!("{TOKENS} of {VOCABULARY} × {HIDDEN}");
    bench.row("embedding forward", &size, Work::Bytes(4 * TOKENS * HIDDEN), |queue| {
        let (tokens, x) = (tokens.view(DType::U32), at_mut(&mut x, BF16, shape));
        embedding::forward(queue, tokens, at(&weight, BF16, table), x).unwrap();
    });
    // fp32 rows of the gradient are read and written.
    bench.row("embedding backward", &size, Work::Bytes(10 * TOKENS * HIDDEN), |queue| {
        let (tokens, dweight) = (tokens.view(DType::U32), at_mut(&mut dweight, F32, table));
        embedding::backward(queue, tokens, at(&x, BF16, shape), dweight).unwrap();
    });
    let elements = LOGIT_ROWS * VOCABULARY;
    let (mut logits, targets) = (bench.values(F32, elements), bench.numbers(LOGIT_ROWS, VOCABULARY));
    let mut statistics = bench.buffer(DType::F64, 2);
    let size = format!("{LOGIT_ROWS} × {VOCABULARY}, fp32");
    // A row is read for its sum, then for its gradient, which is written.
    bench.row("cross_entropy", &size, Work::Bytes(12 * elements), |queue| {
        let (logits, targets) =
            (at_mut(&mut logits, F32, [LOGIT_ROWS, VOCABULARY]), targets.view(DType::U32));
        cross_entropy::forward_backward(queue, logits, targets, 1e-4, statistics.view_mut(DType::F64))
            .unwrap();
    });
}

fn update(bench: &Bench) {
    let gradient = bench.values(F32, FLAT);
    let mut p = bench.values(F32, FLAT);
    let decision = bench.upload(View::of(&[1.0_f64, 1.0, 10.0, 0.0, 0.0]));
    let rates =
        adamw::Hyperparameters { learning_rate: 1e-4, betas: (0.9, 0.95), epsilon: 1e-8, decay: 1e-5 };
    let size = format!("{FLAT}");
    let mut narrow = bench.buffer(BF16, FLAT);
    let mut row = |name: &str, moments: [Buffer; 2], rounds: bool, bytes: usize| {
        let [mut m, mut v] = moments;
        bench.row(name, &size, Work::Bytes(bytes * FLAT), |queue| {
            let state = adamw::State {
                parameters: p.view_mut(F32),
                first_moment: m.view_mut(F32),
                second_moment: v.view_mut(F32),
                rounded: rounds.then(|| narrow.view_mut(BF16)),
            };
            let decision = decision.view(DType::F64);
            adamw::update(queue, state, gradient.view(F32), FLAT / 2, rates, decision).unwrap();
        });
    };
    let moments = || [(); 2].map(|()| bench.buffer(F32, FLAT));
    row("adamw", moments(), false, 28);
    row("adamw, weights also in bf16", moments(), true, 30);
    // The rate is that of the bus, both directions together.
    let mapped = [(); 2].map(|()| Buffer::mapped(&bench.queue, F32.size() * FLAT).unwrap());
    row("adamw, moments in the host's memory", mapped, false, 16);
    let mut total = bench.buffer(DType::F64, 1);
    bench.row("squared_norm", &size, Work::Bytes(4 * FLAT), |queue| {
        squared_norm::add(queue, gradient.view(F32), total.view_mut(DType::F64)).unwrap();
    });
    bench.row("cast, fp32 to bf16", &size, Work::Bytes(6 * FLAT), |queue| {
        cast::forward(queue, gradient.view(F32), narrow.view_mut(BF16)).unwrap();
    });
}

fn main() {
    let bench = bench();
    products(&bench, "queries, keys, values", [TOKENS, HIDDEN, SMALL_HEADS.row_width()], BF16);
    products(&bench, "attention's output", [TOKENS, HIDDEN, HIDDEN], BF16);
    products(&bench, "gate and up", [CHUNK, HIDDEN, 2 * FEED_FORWARD], BF16);
    products(&bench, "down", [CHUNK, FEED_FORWARD, HIDDEN], BF16);
    products(&bench, "head", [LOGIT_ROWS, HIDDEN, VOCABULARY], F32);
    for (heads, documents) in [(SMALL_HEADS, 1), (SMALL_HEADS, 8), (LARGE_HEADS, 1)] {
        attention_of(&bench, heads, documents);
    }
    block(&bench);
    ends(&bench);
    update(&bench);
}
