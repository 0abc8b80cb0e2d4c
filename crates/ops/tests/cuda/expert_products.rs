//! The experts' products: on tensor cores and without.

use half::bf16;
use tessera_ops::experts::ExpertRows;
use tessera_ops::experts::linear::{self, WeightLayout};
use tessera_ops::{Buffer, Queue};

use crate::experts::Routing;
use crate::support::{Random, Values, Variant, assert_on_gpu, on, on_mut, upload, view, view_mut};

/// A layer of a group of experts, with what its results held before.
struct Layer<V> {
    inputs: usize,
    outputs: usize,
    layout: WeightLayout,
    rows: usize,
    weight_shape: [usize; 2],
    x: Values<V>,
    dy: Values<V>,
    weight: Values<V>,
    y: Values<V>,
    dx: Values<V>,
    dweight: Values<f32>,
}

impl<V: Variant> Layer<V> {
    fn random(
        random: &mut Random,
        rows: usize,
        experts: usize,
        [inputs, outputs]: [usize; 2],
        layout: WeightLayout,
    ) -> Self {
        let weight_shape = match layout {
            WeightLayout::OutputsInputs => [experts * outputs, inputs],
            WeightLayout::InputsOutputs => [experts * inputs, outputs],
        };
        let count = experts * inputs * outputs;
        let [x, dx] = [(); 2].map(|()| Values::random(random, rows * inputs));
        let [y, dy] = [(); 2].map(|()| Values::random(random, rows * outputs));
        let (weight, dweight) = (Values::random(random, count), Values::random(random, count));
        Self { inputs, outputs, layout, rows, weight_shape, x, dy, weight, y, dx, dweight }
    }

    /// The input's and the output's shape.
    fn shapes(&self) -> [[usize; 2]; 2] {
        [[self.rows, self.inputs], [self.rows, self.outputs]]
    }

    /// y, dx and dM on the GPU.
    fn on_gpu(&self, queue: &Queue, group: &ExpertRows<'_>) -> [Buffer; 3] {
        let ([x_shape, y_shape], w_shape, layout) = (self.shapes(), self.weight_shape, self.layout);
        let [x, dy, weight, mut y, mut dx] =
            [&self.x, &self.dy, &self.weight, &self.y, &self.dx].map(|values| upload(queue, &values.rounded));
        let mut dweight = upload(queue, &self.dweight.rounded);
        let (x, dy, weight) = (on::<V>(&x, x_shape), on::<V>(&dy, y_shape), on::<V>(&weight, w_shape));
        linear::forward(queue, x, weight, layout, group, on_mut::<V>(&mut y, y_shape)).unwrap();
        linear::backward_input(queue, dy, weight, layout, group, on_mut::<V>(&mut dx, x_shape)).unwrap();
        linear::backward_weight(queue, dy, x, layout, group, on_mut::<f32>(&mut dweight, w_shape)).unwrap();
        [y, dx, dweight]
    }

    fn on_cpu(&self, group: &ExpertRows<'_>) -> [Vec<f64>; 3] {
        let (queue, [x_shape, y_shape], w_shape) = (Queue::cpu(), self.shapes(), self.weight_shape);
        let layout = self.layout;
        let [mut y, mut dx, mut dweight] =
            [&self.y.exact, &self.dx.exact, &self.dweight.exact].map(Vec::clone);
        let (x, dy) = (view(&self.x.exact, x_shape), view(&self.dy.exact, y_shape));
        let weight = view(&self.weight.exact, w_shape);
        linear::forward(&queue, x, weight, layout, group, view_mut(&mut y, y_shape)).unwrap();
        linear::backward_input(&queue, dy, weight, layout, group, view_mut(&mut dx, x_shape)).unwrap();
        linear::backward_weight(&queue, dy, x, layout, group, view_mut(&mut dweight, w_shape)).unwrap();
        [y, dx, dweight]
    }
}

/// The three products of each group's layer against the CPU's.
fn products_follow<V: Variant>(random: &mut Random, routing: &Routing, sizes: [usize; 2]) {
    let queue = &routing.queue;
    for layout in [WeightLayout::OutputsInputs, WeightLayout::InputsOutputs] {
        for experts in routing.groups() {
            let [group, host_group] = routing.group(&experts);
            let layer = Layer::<V>::random(random, routing.count(), experts.len(), sizes, layout);
            let [y, dx, dweight] = layer.on_gpu(queue, &group);
            let [expected_y, expected_dx, expected_dweight] = layer.on_cpu(&host_group);
            assert_on_gpu::<V>(queue, "y", &y, &expected_y);
            assert_on_gpu::<V>(queue, "dx", &dx, &expected_dx);
            assert_on_gpu::<f32>(queue, "dweight", &dweight, &expected_dweight);
        }
    }
}

/// Widths below, at and above a tile, and inner dimensions that end inside of a stage.
#[test]
fn products_on_tensor_cores_follow_the_cpu() {
    let mut random = Random::new(7);
    let routing = Routing::random(&mut random, 150, 2, 3);
    for sizes in [[72, 136], [8, 40], [128, 64]] {
        products_follow::<bf16>(&mut random, &routing, sizes);
    }
}

/// More tiles than a dense matrix of as many rows has: each expert's last one is not full.
#[test]
fn every_expert_may_have_a_tile_of_its_own() {
    let mut random = Random::new(11);
    let chosen = (0..8).chain([3; 121]).collect();
    let routing = Routing::new(129, 1, 9, chosen);
    products_follow::<bf16>(&mut random, &routing, [16, 24]);
    products_follow::<f32>(&mut random, &routing, [7, 5]);
}

#[test]
fn plain_products_follow_the_cpu() {
    let mut random = Random::new(8);
    let routing = Routing::random(&mut random, 40, 2, 4);
    for _ in 0..2 {
        let sizes = [1 + random.below(70), 1 + random.below(70)];
        products_follow::<f32>(&mut random, &routing, sizes);
        products_follow::<bf16>(&mut random, &routing, sizes);
    }
}
