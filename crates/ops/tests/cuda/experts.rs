//! The experts' rows: their order, their movement and their activation.

use std::ops::Range;

use half::bf16;
use tessera_ops::experts::{self, ExpertRows, activation};
use tessera_ops::{Buffer, DType, Queue, View};

use crate::support::{
    Random, Values, Variant, assert_on_gpu, download, on, on_mut, stream, upload, view, view_mut, widened,
};

/// Slots in the order of their experts, some of which have none; as the GPU sorts them, and the same on the host.
pub struct Routing {
    pub queue: Queue,
    pub tokens: usize,
    pub choices: usize,
    chosen: Vec<u32>,
    slots: (Buffer, Vec<u32>),
    places: (Buffer, Vec<u32>),
    offsets: (Buffer, Vec<u32>),
}

impl Routing {
    /// Chooses at random, but never the expert number 1.
    pub fn random(random: &mut Random, tokens: usize, choices: usize, experts: usize) -> Self {
        let mut chosen = random.indices(tokens * choices, experts);
        for expert in chosen.iter_mut().filter(|expert| **expert == 1) {
            *expert = 0;
        }
        Self::new(tokens, choices, experts, chosen)
    }

    pub fn new(tokens: usize, choices: usize, experts: usize, chosen: Vec<u32>) -> Self {
        let (queue, count) = (stream(), tokens * choices);
        let on_gpu = upload(&queue, &chosen);
        let [mut slots, mut places, mut offsets] =
            [count, count, experts + 1].map(|length| upload(&queue, &vec![u32::MAX; length]));
        experts::sort(
            &queue,
            on::<u32>(&on_gpu, [tokens, choices]),
            slots.view_mut(DType::U32),
            places.view_mut(DType::U32),
            offsets.view_mut(DType::U32),
        )
        .unwrap();
        let [slots, places, offsets] = [slots, places, offsets].map(|on_gpu| {
            let values = download(&queue, &on_gpu);
            (on_gpu, values)
        });
        Self { queue, tokens, choices, chosen, slots, places, offsets }
    }

    pub fn count(&self) -> usize {
        self.tokens * self.choices
    }

    /// The groups that a layer may be cut into: all experts, two parts, and none.
    pub fn groups(&self) -> Vec<Range<usize>> {
        let experts = self.offsets.1.len() - 1;
        vec![0..experts, 0..experts.div_ceil(2), experts.div_ceil(2)..experts, 1..1]
    }

    /// A group's rows, for the GPU and for the CPU.
    pub fn group(&self, experts: &Range<usize>) -> [ExpertRows<'_>; 2] {
        [self.offsets.0.view(DType::U32), View::of(&self.offsets.1)]
            .map(|offsets| ExpertRows { offsets, experts: experts.clone() })
    }

    fn slots(&self) -> [View<'_>; 2] {
        [self.slots.0.view(DType::U32), View::of(&self.slots.1)]
    }

    fn places(&self) -> [View<'_>; 2] {
        [self.places.0.view(DType::U32), View::of(&self.places.1)]
    }
}

#[test]
fn sorting_is_the_cpus() {
    let mut random = Random::new(2);
    for (tokens, choices, experts) in [(1, 1, 2), (40, 2, 8), (700, 2, 3), (1100, 3, 5), (0, 2, 4)] {
        let routing = Routing::random(&mut random, tokens, choices, experts);
        let count = routing.count();
        let (mut slots, mut places) = (vec![u32::MAX; count], vec![u32::MAX; count]);
        let mut offsets = vec![u32::MAX; experts + 1];
        experts::sort(
            &Queue::cpu(),
            view(&routing.chosen, [tokens, choices]),
            view_mut(&mut slots, [count]),
            view_mut(&mut places, [count]),
            view_mut(&mut offsets, [experts + 1]),
        )
        .unwrap();
        assert_eq!((&routing.slots.1, &routing.places.1, &routing.offsets.1), (&slots, &places, &offsets));
    }
}

fn rows_follow<V: Variant>(random: &mut Random, routing: &Routing) {
    let (queue, cpu, k) = (&routing.queue, Queue::cpu(), routing.choices);
    let (tokens, width) = (routing.tokens, random.extent(200));
    let (token_shape, shape) = ([tokens, width], [routing.count(), width]);
    let ([slots, host_slots], [places, host_places]) = (routing.slots(), routing.places());
    for experts in routing.groups() {
        let x = Values::<V>::random(random, tokens * width);
        let sorted = Values::<V>::random(random, routing.count() * width);
        let [group, host_group] = routing.group(&experts);

        let [x_on, mut combined, sorted_on, mut gathered] =
            [&x, &x, &sorted, &sorted].map(|values| upload(queue, &values.rounded));
        let y = on_mut::<V>(&mut gathered, shape);
        experts::gather(queue, on::<V>(&x_on, token_shape), slots, k, &group, y).unwrap();
        let (rows, y) = (on::<V>(&sorted_on, shape), on_mut::<V>(&mut combined, token_shape));
        experts::combine(queue, rows, slots, places, k, &group, y).unwrap();

        let mut expected = sorted.exact.clone();
        let (x_view, y) = (view(&x.exact, token_shape), view_mut(&mut expected, shape));
        experts::gather(&cpu, x_view, host_slots, k, &host_group, y).unwrap();
        assert_eq!(widened(&download::<V>(queue, &gathered)), expected);
        let mut expected = x.exact.clone();
        let (rows, y) = (view(&sorted.exact, shape), view_mut(&mut expected, token_shape));
        experts::combine(&cpu, rows, host_slots, host_places, k, &host_group, y).unwrap();
        assert_on_gpu::<V>(queue, "combined", &combined, &expected);
    }
}

#[test]
fn rows_of_experts_follow_the_cpu() {
    let mut random = Random::new(3);
    for _ in 0..3 {
        let tokens = random.extent(20);
        let routing = Routing::random(&mut random, tokens, 3, 6);
        rows_follow::<f32>(&mut random, &routing);
        rows_follow::<bf16>(&mut random, &routing);
    }
}

fn activations_follow<V: Variant>(random: &mut Random, routing: &Routing) {
    let (queue, cpu, count) = (&routing.queue, Queue::cpu(), routing.count());
    let width = random.extent(300);
    let (shape, wide) = ([count, width], [count, 2 * width]);
    let weights_shape = [routing.tokens, routing.choices];
    let gate_up = Values::<V>::random(random, count * 2 * width);
    let [a, da] = [(); 2].map(|()| Values::<V>::random(random, count * width));
    let [weights, dweights] = [(); 2].map(|()| Values::<f32>::random(random, count));
    let [slots, host_slots] = routing.slots();
    for experts in routing.groups() {
        let [group, host_group] = routing.group(&experts);
        let [gate_up_on, mut gradient, mut a_on, da_on] =
            [&gate_up, &gate_up, &a, &da].map(|values| upload(queue, &values.rounded));
        let [weights_on, mut dweights_on] =
            [&weights, &dweights].map(|values| upload(queue, &values.rounded));
        let (gate, weights_view) = (on::<V>(&gate_up_on, wide), on::<f32>(&weights_on, weights_shape));
        let a_view = on_mut::<V>(&mut a_on, shape);
        activation::forward(queue, gate, weights_view, slots, &group, a_view).unwrap();
        let (da_view, gate) = (on::<V>(&da_on, shape), on_mut::<V>(&mut gradient, wide));
        let dweights_view = on_mut::<f32>(&mut dweights_on, weights_shape);
        activation::backward(queue, da_view, weights_view, slots, &group, gate, dweights_view).unwrap();

        let (mut expected_a, mut expected) = (a.exact.clone(), gate_up.exact.clone());
        let mut expected_dweights = dweights.exact.clone();
        let (gate, weights_view) = (view(&gate_up.exact, wide), view(&weights.exact, weights_shape));
        let a_view = view_mut(&mut expected_a, shape);
        activation::forward(&cpu, gate, weights_view, host_slots, &host_group, a_view).unwrap();
        let (da_view, gate) = (view(&da.exact, shape), view_mut(&mut expected, wide));
        let dweights_view = view_mut(&mut expected_dweights, weights_shape);
        activation::backward(&cpu, da_view, weights_view, host_slots, &host_group, gate, dweights_view)
            .unwrap();
        assert_on_gpu::<V>(queue, "a", &a_on, &expected_a);
        assert_on_gpu::<V>(queue, "gradient", &gradient, &expected);
        assert_on_gpu::<f32>(queue, "dweights", &dweights_on, &expected_dweights);
    }
}

#[test]
fn activations_of_experts_follow_the_cpu() {
    let mut random = Random::new(5);
    for _ in 0..3 {
        let routing = Routing::random(&mut random, 9, 2, 4);
        activations_follow::<f32>(&mut random, &routing);
        activations_follow::<bf16>(&mut random, &routing);
    }
}
