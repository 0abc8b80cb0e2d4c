//! A chain of operators on three streams, with events where one needs what another has made: whatever the GPU does first,
//! the bits are those of one stream.

use std::process::Command;

use half::bf16;
use tessera_ops::attention::{self, Heads};
use tessera_ops::experts::linear::{self as expert_linear, WeightLayout};
use tessera_ops::experts::{self, ExpertRows, activation};
use tessera_ops::{
    Arena, Buffer, DType, Element, Queue, Shape, View, ViewMut, fill, linear, load_balance, rms_norm, router,
};

use crate::support::{Random, Values, download, starts, stream};

use DType::{BF16, F32, F64, U32};

const DOCUMENTS: [usize; 3] = [40, 0, 30];
const TOKENS: usize = 70;
const WIDTH: usize = 64;
const HEADS: Heads = Heads { query: 2, key_value: 1, size: 64, window: Some(25) };
const EXPERTS: usize = 3;
const CHOICES: usize = 2;
const SLOTS: usize = TOKENS * CHOICES;
const FEATURES: usize = 32;
const LAYOUT: WeightLayout = WeightLayout::OutputsInputs;
const EPSILON: f64 = 1e-5;

/// The streams: `compute` has the chain itself, `transfer` brings what it works on, `balance` has the balance loss and, last
/// of all, the router's gradient.
struct Streams {
    compute: Queue,
    transfer: Queue,
    balance: Queue,
}

/// What is to run on `queue` from now on needs what `needed` has been given.
fn after(needed: &Queue, queue: &Queue) {
    queue.wait(&needed.record().unwrap()).unwrap();
}

fn copied<'a, T: Element>(
    queue: &Queue,
    arena: &mut Arena<'a>,
    values: &[T],
    shape: impl Into<Shape>,
) -> ViewMut<'a> {
    let mut view = arena.take(T::DTYPE, [values.len()]).unwrap();
    fill::copy(queue, View::of(values), view.reborrow()).unwrap();
    view.reshape(shape).unwrap()
}

/// Random values between −1 and 1.
fn random<'a>(queue: &Queue, arena: &mut Arena<'a>, seed: u64, shape: [usize; 2]) -> ViewMut<'a> {
    let values = Values::<bf16>::random(&mut Random::new(seed), shape[0] * shape[1]).rounded;
    copied(queue, arena, &values, shape)
}

/// Attention behind a norm, and its backward.
struct Attention<'a> {
    x: ViewMut<'a>,
    documents: ViewMut<'a>,
    norm_weight: ViewMut<'a>,
    weight: ViewMut<'a>,
    inverse_rms: ViewMut<'a>,
    normed: ViewMut<'a>,
    qkv: ViewMut<'a>,
    attended: ViewMut<'a>,
    log_sum_exp: ViewMut<'a>,
}

impl<'a> Attention<'a> {
    fn new(transfer: &Queue, arena: &mut Arena<'a>) -> Self {
        let documents = starts(&DOCUMENTS);
        Self {
            x: random(transfer, arena, 1, [TOKENS, WIDTH]),
            documents: copied(transfer, arena, &documents, [documents.len()]),
            norm_weight: random(transfer, arena, 2, [1, WIDTH]).reshape([WIDTH]).unwrap(),
            weight: random(transfer, arena, 3, [HEADS.row_width(), WIDTH]),
            inverse_rms: arena.take(F32, [TOKENS]).unwrap(),
            normed: arena.take(BF16, [TOKENS, WIDTH]).unwrap(),
            qkv: arena.take(BF16, [TOKENS, HEADS.row_width()]).unwrap(),
            attended: arena.take(BF16, [TOKENS, HEADS.output_width()]).unwrap(),
            log_sum_exp: arena.take(F32, [TOKENS, HEADS.query]).unwrap(),
        }
    }

    fn forward(&mut self, queue: &Queue) {
        let (x, normed, rms) = (self.x.as_view(), self.normed.reborrow(), self.inverse_rms.reborrow());
        rms_norm::forward(queue, x, self.norm_weight.as_view(), EPSILON, normed, rms).unwrap();
        linear::forward(queue, self.normed.as_view(), self.weight.as_view(), self.qkv.reborrow()).unwrap();
        let (attended, sums) = (self.attended.reborrow(), self.log_sum_exp.reborrow());
        attention::forward(queue, self.qkv.as_view(), self.documents.as_view(), HEADS, attended, sums)
            .unwrap();
    }

    fn backward(&self, queue: &Queue, arena: &mut Arena<'_>, dattended: View<'_>) {
        let mut dqkv = arena.take(BF16, self.qkv.shape()).unwrap();
        let mut dnormed = arena.take(BF16, self.normed.shape()).unwrap();
        let (dx, dnorm) = (arena.take(BF16, self.x.shape()).unwrap(), arena.take(F32, [WIDTH]).unwrap());
        let dweight = arena.take(F32, self.weight.shape()).unwrap();
        let scratch =
            arena.take(F32, [attention::backward_scratch(tessera_ops::Home::Gpu, HEADS, TOKENS)]).unwrap();
        let (attended, sums) = (self.attended.as_view(), self.log_sum_exp.as_view());
        let (qkv, documents) = (self.qkv.as_view(), self.documents.as_view());
        let to = dqkv.reborrow();
        attention::backward(queue, dattended, qkv, attended, sums, documents, HEADS, to, scratch).unwrap();
        linear::backward_weight(queue, dqkv.as_view(), self.normed.as_view(), dweight).unwrap();
        linear::backward_input(queue, dqkv.as_view(), self.weight.as_view(), dnormed.reborrow()).unwrap();
        let (dnormed, norm_weight) = (dnormed.as_view(), self.norm_weight.as_view());
        let (x, rms) = (self.x.as_view(), self.inverse_rms.as_view());
        rms_norm::backward(queue, dnormed, x, norm_weight, rms, dx, dnorm).unwrap();
    }
}

/// Which experts the tokens go to, and the balance loss.
struct Routing<'a> {
    probabilities: ViewMut<'a>,
    chosen: ViewMut<'a>,
    weights: ViewMut<'a>,
    slots: ViewMut<'a>,
    places: ViewMut<'a>,
    offsets: ViewMut<'a>,
    dprobabilities: ViewMut<'a>,
}

impl<'a> Routing<'a> {
    fn new(arena: &mut Arena<'a>) -> Self {
        Self {
            probabilities: arena.take(F32, [TOKENS, EXPERTS]).unwrap(),
            chosen: arena.take(U32, [TOKENS, CHOICES]).unwrap(),
            weights: arena.take(F32, [TOKENS, CHOICES]).unwrap(),
            slots: arena.take(U32, [SLOTS]).unwrap(),
            places: arena.take(U32, [SLOTS]).unwrap(),
            offsets: arena.take(U32, [EXPERTS + 1]).unwrap(),
            dprobabilities: arena.take(F32, [TOKENS, EXPERTS]).unwrap(),
        }
    }

    fn route(&mut self, queue: &Queue, x: View<'_>, weight: View<'_>) {
        linear::forward(queue, x, weight, self.probabilities.reborrow()).unwrap();
        let (chosen, weights) = (self.chosen.reborrow(), self.weights.reborrow());
        router::forward(queue, self.probabilities.reborrow(), Some(1.0), chosen, weights).unwrap();
    }

    fn sort(&mut self, queue: &Queue) {
        let (slots, places) = (self.slots.reborrow(), self.places.reborrow());
        experts::sort(queue, self.chosen.as_view(), slots, places, self.offsets.reborrow()).unwrap();
    }

    /// The loss, each document being a packed row, and its gradient.
    fn balance(&mut self, queue: &Queue, arena: &mut Arena<'_>, row_starts: View<'_>) {
        let [mut counts, mut sums] = [(); 2].map(|()| arena.take(F64, [DOCUMENTS.len(), EXPERTS]).unwrap());
        let total = arena.take(F64, [1]).unwrap();
        let (probabilities, chosen) = (self.probabilities.as_view(), self.chosen.as_view());
        let (to_counts, to_sums) = (counts.reborrow(), sums.reborrow());
        load_balance::add(queue, probabilities, chosen, row_starts, 0..TOKENS, to_counts, to_sums).unwrap();
        load_balance::loss(queue, counts.as_view(), sums.as_view(), row_starts, 1, 0.01, total).unwrap();
        let gradient = self.dprobabilities.reborrow();
        load_balance::backward(queue, counts.as_view(), row_starts, 0..TOKENS, 1, 0.01, gradient).unwrap();
    }

    fn group(&self) -> ExpertRows<'_> {
        ExpertRows { offsets: self.offsets.as_view(), experts: 0..EXPERTS }
    }
}

/// The experts of rows of attended values.
struct Experts<'a> {
    weights: [ViewMut<'a>; 2],
    dy: ViewMut<'a>,
    input: ViewMut<'a>,
    gate_up: ViewMut<'a>,
    activation: ViewMut<'a>,
    output: ViewMut<'a>,
}

impl<'a> Experts<'a> {
    fn new(transfer: &Queue, arena: &mut Arena<'a>) -> Self {
        let width = HEADS.output_width();
        Self {
            weights: [
                random(transfer, arena, 4, [EXPERTS * 2 * FEATURES, width]),
                random(transfer, arena, 5, [EXPERTS * width, FEATURES]),
            ],
            dy: random(transfer, arena, 6, [TOKENS, width]),
            input: arena.take(BF16, [SLOTS, width]).unwrap(),
            gate_up: arena.take(BF16, [SLOTS, 2 * FEATURES]).unwrap(),
            activation: arena.take(BF16, [SLOTS, FEATURES]).unwrap(),
            output: arena.take(BF16, [SLOTS, width]).unwrap(),
        }
    }

    fn forward(&mut self, queue: &Queue, x: View<'_>, routing: &Routing<'_>, y: ViewMut<'_>) {
        let (group, slots) = (&routing.group(), routing.slots.as_view());
        let [gate_up, down] = self.weights.each_ref().map(ViewMut::as_view);
        experts::gather(queue, x, slots, CHOICES, group, self.input.reborrow()).unwrap();
        let (input, to) = (self.input.as_view(), self.gate_up.reborrow());
        expert_linear::forward(queue, input, gate_up, LAYOUT, group, to).unwrap();
        let (inner, weights, to) =
            (self.gate_up.as_view(), routing.weights.as_view(), self.activation.reborrow());
        activation::forward(queue, inner, weights, slots, group, to).unwrap();
        let (inner, to) = (self.activation.as_view(), self.output.reborrow());
        expert_linear::forward(queue, inner, down, LAYOUT, group, to).unwrap();
        let (rows, places) = (self.output.as_view(), routing.places.as_view());
        experts::combine(queue, rows, slots, places, CHOICES, group, y).unwrap();
    }

    /// Adds the gradient of x, and leaves that of the routing weights.
    fn backward(
        &mut self,
        queue: &Queue,
        arena: &mut Arena<'_>,
        routing: &Routing<'_>,
        dx: ViewMut<'_>,
        dweights: ViewMut<'_>,
    ) {
        let (group, slots) = (&routing.group(), routing.slots.as_view());
        let [gate_up, down] = self.weights.each_ref().map(ViewMut::as_view);
        let mut dactivation = arena.take(BF16, self.activation.shape()).unwrap();
        let mut dinput = arena.take(BF16, self.input.shape()).unwrap();
        let [dgate_up, ddown] = self.weights.each_ref().map(|w| arena.take(F32, w.shape()).unwrap());
        experts::gather(queue, self.dy.as_view(), slots, CHOICES, group, self.output.reborrow()).unwrap();
        let (dy, inner) = (self.output.as_view(), self.activation.as_view());
        expert_linear::backward_weight(queue, dy, inner, LAYOUT, group, ddown).unwrap();
        expert_linear::backward_input(queue, dy, down, LAYOUT, group, dactivation.reborrow()).unwrap();
        let (da, weights, to) = (dactivation.as_view(), routing.weights.as_view(), self.gate_up.reborrow());
        activation::backward(queue, da, weights, slots, group, to, dweights).unwrap();
        let (dy, input) = (self.gate_up.as_view(), self.input.as_view());
        expert_linear::backward_weight(queue, dy, input, LAYOUT, group, dgate_up).unwrap();
        expert_linear::backward_input(queue, dy, gate_up, LAYOUT, group, dinput.reborrow()).unwrap();
        let (rows, places) = (dinput.as_view(), routing.places.as_view());
        experts::combine(queue, rows, slots, places, CHOICES, group, dx).unwrap();
    }
}

/// Forward and backward of a block, every tensor of which is in `arena`.
fn run_block(streams: &Streams, arena: &mut Arena<'_>) {
    let Streams { compute, transfer, balance } = streams;
    let mut attention = Attention::new(transfer, arena);
    after(transfer, compute);
    attention.forward(compute);
    let router_weight = random(transfer, arena, 7, [EXPERTS, HEADS.output_width()]);
    let mut mixture = Experts::new(transfer, arena);
    let mut routing = Routing::new(arena);
    after(transfer, compute);
    routing.route(compute, attention.attended.as_view(), router_weight.as_view());
    after(compute, balance);
    routing.balance(balance, arena, attention.documents.as_view());
    routing.sort(compute);
    let (y, mut dx) = (
        arena.take(BF16, attention.attended.shape()).unwrap(),
        arena.take(BF16, attention.attended.shape()).unwrap(),
    );
    let mut dweights = arena.take(F32, [TOKENS, CHOICES]).unwrap();
    mixture.forward(compute, attention.attended.as_view(), &routing, y);
    mixture.backward(compute, arena, &routing, dx.reborrow(), dweights.reborrow());
    attention.backward(compute, arena, dx.as_view());
    after(compute, balance);
    let (probabilities, chosen) = (routing.probabilities.as_view(), routing.chosen.as_view());
    let dlogits = routing.dprobabilities.reborrow();
    router::backward(balance, dweights.as_view(), probabilities, chosen, Some(1.0), dlogits).unwrap();
    after(balance, transfer);
}

/// Every bit of the block's tensors, put together by FNV-1a.
fn digest(streams: &Streams) -> String {
    let mut memory = Buffer::on(&streams.compute, 1 << 20).unwrap();
    run_block(streams, &mut memory.arena());
    let bits: Vec<u32> = download(&streams.transfer, &memory);
    let digest = bits.iter().fold(0xcbf2_9ce4_8422_2325_u64, |digest, &bits| {
        (digest ^ u64::from(bits)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("{digest:016x}")
}

/// What the processes of the other test do; alone it shows that the chain runs.
#[test]
fn a_block_on_three_streams() {
    let compute = stream();
    let [transfer, balance] = [compute.beside().unwrap(), compute.beside().unwrap()];
    println!("digest {} of the block", digest(&Streams { compute, transfer, balance }));
}

/// The emulator reads its seed when it is loaded, so each run is a process of its own; a GPU has its own mind each time.
#[test]
fn twenty_orders_of_streams_give_the_bits_of_one() {
    let digest_of_process = |seed: u64| {
        let ran = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "order::a_block_on_three_streams", "--nocapture"])
            .env("TESSERA_EMULATOR_SEED", seed.to_string())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&ran.stdout).into_owned();
        assert!(ran.status.success(), "seed {seed}: {said}{}", String::from_utf8_lossy(&ran.stderr));
        let digest = said.split_once("digest ").and_then(|(_, rest)| rest.split_whitespace().next());
        digest.unwrap_or_else(|| panic!("seed {seed} gave no digest: {said}")).to_owned()
    };
    let one = stream();
    let expected = digest(&Streams { compute: one.clone(), transfer: one.clone(), balance: one });
    for seed in 0..20 {
        assert_eq!(digest_of_process(seed), expected, "seed {seed}");
    }
}
