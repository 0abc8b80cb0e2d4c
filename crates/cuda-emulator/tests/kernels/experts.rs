//! The router, and the experts' rows: their order, their movement and their activation.

use std::ops::Range;

use half::bf16;
use tessera_cuda_emulator::Random;
use tessera_ops::experts::{self, ExpertRows, activation};
use tessera_ops::{Queue, View, router};

use crate::device::{Argument, Kernels, Launch, float, input, output, unsigned};
use crate::support::{Values, Variant, assert_close, extent, indices, unwritten, view, view_mut, widened};

#[test]
fn routers_follow_the_cpu() {
    let (mut kernels, mut random) = (Kernels::load("router"), Random::new(1));
    for (experts, choices) in [(1, 1), (8, 2), (16, 4), (33, 5), (70, 70)] {
        for norm in [None, Some(1.0), Some(2.0), Some(3.5)] {
            let tokens = extent(&mut random, 11);
            let logits =
                Values::<f32>::of((0..tokens * experts).map(|_| 6.0 * random.uniform()).collect::<Vec<_>>());
            let power = norm.unwrap_or(0.0);
            let sizes = || [unsigned(tokens), unsigned(experts), unsigned(choices)];
            let mut probabilities = logits.rounded.clone();
            let (mut chosen, mut weights) =
                (vec![u32::MAX; tokens * choices], unwritten::<f32>(tokens * choices));
            let [t, e, k] = sizes();
            kernels.run(
                "router_forward",
                Launch::blocks(tokens.div_ceil(8)),
                &mut [
                    output(&mut probabilities),
                    float(power),
                    output(&mut chosen),
                    output(&mut weights),
                    t,
                    e,
                    k,
                ],
            );
            let dweights = Values::<f32>::random(&mut random, tokens * choices);
            let dprobabilities = Values::<f32>::random(&mut random, tokens * experts);
            let mut gradient = dprobabilities.rounded.clone();
            let [t, e, k] = sizes();
            kernels.run(
                "router_backward",
                Launch::blocks(tokens.div_ceil(8)),
                &mut [
                    input(&dweights.rounded),
                    input(&probabilities),
                    input(&chosen),
                    float(power),
                    output(&mut gradient),
                    t,
                    e,
                    k,
                ],
            );

            let queue = Queue::cpu();
            let mut expected = logits.exact.clone();
            let (mut expected_chosen, mut expected_weights) = (chosen.clone(), vec![0.0; tokens * choices]);
            let chosen_view = view_mut(&mut expected_chosen, [tokens, choices]);
            let weights_view = view_mut(&mut expected_weights, [tokens, choices]);
            router::forward(
                &queue,
                view_mut(&mut expected, [tokens, experts]),
                norm,
                chosen_view,
                weights_view,
            )
            .unwrap();
            assert_eq!(chosen, expected_chosen);
            assert_close("probabilities", &probabilities, &expected);
            assert_close("weights", &weights, &expected_weights);
            let mut expected_gradient = dprobabilities.exact.clone();
            router::backward(
                &queue,
                view(&dweights.exact, [tokens, choices]),
                view(&expected, [tokens, experts]),
                view(&chosen, [tokens, choices]),
                norm,
                view_mut(&mut expected_gradient, [tokens, experts]),
            )
            .unwrap();
            assert_close("dlogits", &gradient, &expected_gradient);
        }
    }
}

/// Equal probabilities, and those of a token whose logits are NaN: the choices are the lowest experts.
#[test]
fn ties_and_nans_choose_different_experts() {
    let mut logits = vec![1.0_f32; 40];
    logits.extend([f32::NAN; 40]);
    let (mut chosen, mut weights) = (vec![u32::MAX; 6], unwritten::<f32>(6));
    Kernels::load("router").run(
        "router_forward",
        Launch::blocks(1),
        &mut [
            output(&mut logits),
            float(1.0),
            output(&mut chosen),
            output(&mut weights),
            unsigned(2),
            unsigned(40),
            unsigned(3),
        ],
    );
    assert_eq!(chosen, [0, 1, 2, 0, 1, 2]);
    assert!(weights[..3].iter().all(|weight| (weight - 1.0 / 3.0).abs() < 1e-6));
    assert!(weights[3..].iter().all(|weight| weight.is_nan()));
}

/// Slots in the order of their experts, some of which have none.
pub struct Routing {
    tokens: usize,
    choices: usize,
    slots: Vec<u32>,
    places: Vec<u32>,
    pub offsets: Vec<u32>,
}

impl Routing {
    /// Chooses at random, but never the expert number 1.
    pub fn random(random: &mut Random, tokens: usize, choices: usize, experts: usize) -> Self {
        let mut chosen = indices(random, tokens * choices, experts);
        for expert in chosen.iter_mut().filter(|expert| **expert == 1) {
            *expert = 0;
        }
        let count = chosen.len();
        let (mut slots, mut places, mut offsets) =
            (vec![u32::MAX; count], vec![u32::MAX; count], vec![u32::MAX; experts + 1]);
        Kernels::load("experts_sort").run(
            "experts_sort",
            Launch::blocks(experts).threads(1024),
            &mut [
                input(&chosen),
                output(&mut slots),
                output(&mut places),
                output(&mut offsets),
                unsigned(count),
            ],
        );
        let routing = Self { tokens, choices, slots, places, offsets };
        routing.check_order(&chosen);
        routing
    }

    fn check_order(&self, chosen: &[u32]) {
        let (mut slots, mut places) = (self.slots.clone(), self.places.clone());
        let mut offsets = self.offsets.clone();
        experts::sort(
            &Queue::cpu(),
            view(chosen, [self.tokens, self.choices]),
            view_mut(&mut slots, [self.count()]),
            view_mut(&mut places, [self.count()]),
            view_mut(&mut offsets, [self.offsets.len()]),
        )
        .unwrap();
        assert_eq!((&self.slots, &self.places, &self.offsets), (&slots, &places, &offsets));
    }

    pub fn count(&self) -> usize {
        self.tokens * self.choices
    }

    /// The groups that a layer may be cut into: all experts, and two parts.
    pub fn groups(&self) -> Vec<Range<usize>> {
        let experts = self.offsets.len() - 1;
        vec![0..experts, 0..experts.div_ceil(2), experts.div_ceil(2)..experts]
    }

    pub fn group(&self, experts: &Range<usize>) -> ExpertRows<'_> {
        ExpertRows { offsets: View::of(&self.offsets), experts: experts.clone() }
    }

    fn group_arguments(&self, experts: &Range<usize>) -> [Argument<'_>; 3] {
        [input(&self.offsets), unsigned(experts.start), unsigned(experts.end)]
    }
}

#[test]
pub fn sorting_is_the_cpus() {
    let mut random = Random::new(2);
    for (tokens, choices, experts) in [(1, 1, 2), (40, 2, 8), (700, 2, 3), (1100, 3, 5)] {
        Routing::random(&mut random, tokens, choices, experts);
    }
}

fn rows_follow<V: Variant>(random: &mut Random) {
    let mut kernels = Kernels::load("experts_rows");
    for _ in 0..4 {
        let routing = {
            let tokens = extent(random, 20);
            Routing::random(random, tokens, 3, 6)
        };
        let (tokens, width) = (routing.tokens, extent(random, 200));
        let shape = [routing.count(), width];
        for experts in routing.groups() {
            let x = Values::<V>::random(random, tokens * width);
            let sorted = Values::<V>::random(random, routing.count() * width);
            let mut gathered = sorted.rounded.clone();
            let [offsets, first, end] = routing.group_arguments(&experts);
            kernels.run(
                &format!("experts_gather_{}", V::SUFFIX),
                Launch::blocks(routing.count()),
                &mut [
                    input(&x.rounded),
                    input(&routing.slots),
                    offsets,
                    first,
                    end,
                    output(&mut gathered),
                    unsigned(3),
                    unsigned(width),
                ],
            );
            let mut expected = sorted.exact.clone();
            let (queue, slots, group) = (Queue::cpu(), View::of(&routing.slots), routing.group(&experts));
            experts::gather(
                &queue,
                view(&x.exact, [tokens, width]),
                slots,
                3,
                &group,
                view_mut(&mut expected, shape),
            )
            .unwrap();
            assert_eq!(widened(&gathered), expected);

            let mut combined = x.rounded.clone();
            let [offsets, first, end] = routing.group_arguments(&experts);
            kernels.run(
                &format!("experts_combine_{}", V::SUFFIX),
                Launch::blocks(tokens).shared(3 * size_of::<u32>()),
                &mut [
                    input(&sorted.rounded),
                    input(&routing.places),
                    offsets,
                    first,
                    end,
                    output(&mut combined),
                    unsigned(3),
                    unsigned(width),
                ],
            );
            let mut expected = x.exact.clone();
            let (places, y) = (View::of(&routing.places), view_mut(&mut expected, [tokens, width]));
            experts::combine(&queue, view(&sorted.exact, shape), slots, places, 3, &group, y).unwrap();
            assert_close("combined", &combined, &expected);
        }
    }
}

#[test]
fn rows_of_experts_follow_the_cpu() {
    rows_follow::<f32>(&mut Random::new(3));
    rows_follow::<bf16>(&mut Random::new(4));
}

fn activations_follow<V: Variant>(random: &mut Random) {
    let mut kernels = Kernels::load("experts_activation");
    for _ in 0..4 {
        let routing = Routing::random(random, 9, 2, 4);
        let (count, width) = (routing.count(), extent(random, 300));
        let gate_up = Values::<V>::random(random, count * 2 * width);
        let (da, a) =
            (Values::<V>::random(random, count * width), Values::<V>::random(random, count * width));
        let (weights, dweights) =
            (Values::<f32>::random(random, count), Values::<f32>::random(random, count));
        for experts in routing.groups() {
            let mut found_a = a.rounded.clone();
            let [offsets, first, end] = routing.group_arguments(&experts);
            kernels.run(
                &format!("experts_activation_forward_{}", V::SUFFIX),
                Launch::blocks(count),
                &mut [
                    input(&gate_up.rounded),
                    input(&weights.rounded),
                    input(&routing.slots),
                    offsets,
                    first,
                    end,
                    output(&mut found_a),
                    unsigned(width),
                ],
            );
            let (mut found, mut found_dweights) = (gate_up.rounded.clone(), dweights.rounded.clone());
            let [offsets, first, end] = routing.group_arguments(&experts);
            kernels.run(
                &format!("experts_activation_backward_{}", V::SUFFIX),
                Launch::blocks(count),
                &mut [
                    input(&da.rounded),
                    input(&weights.rounded),
                    input(&routing.slots),
                    offsets,
                    first,
                    end,
                    output(&mut found),
                    output(&mut found_dweights),
                    unsigned(width),
                ],
            );

            let (queue, slots, group) = (Queue::cpu(), View::of(&routing.slots), routing.group(&experts));
            let (mut expected_a, mut expected) = (a.exact.clone(), gate_up.exact.clone());
            let mut expected_dweights = dweights.exact.clone();
            let weights = view(&weights.exact, [9, 2]);
            let a_view = view_mut(&mut expected_a, [count, width]);
            activation::forward(
                &queue,
                view(&gate_up.exact, [count, 2 * width]),
                weights,
                slots,
                &group,
                a_view,
            )
            .unwrap();
            let (gate_view, dweights_view) =
                (view_mut(&mut expected, [count, 2 * width]), view_mut(&mut expected_dweights, [9, 2]));
            activation::backward(
                &queue,
                view(&da.exact, [count, width]),
                weights,
                slots,
                &group,
                gate_view,
                dweights_view,
            )
            .unwrap();
            assert_close("a", &found_a, &expected_a);
            assert_close("gradient", &found, &expected);
            assert_close("dweights", &found_dweights, &expected_dweights);
        }
    }
}

#[test]
fn activations_of_experts_follow_the_cpu() {
    activations_follow::<f32>(&mut Random::new(5));
    activations_follow::<bf16>(&mut Random::new(6));
}
