//! A whole mixture of experts against candle's autograd.

use std::ops::Range;

use candle_core::{Tensor, Var, WithDType};
use tessera_ops::experts::linear::{self as expert_linear, WeightLayout};
use tessera_ops::{Float, Queue};

use super::{LAYOUTS, Routing, activation};
use crate::oracle;
use crate::support::{Seeded, assert_close, unwritten, view, view_mut};

/// A whole mixture: its inputs, or their gradients.
pub struct Mixture<T> {
    pub x: Vec<T>,
    pub weights: Vec<T>,
    pub gate_up: Vec<T>,
    pub down: Vec<T>,
}

impl<T: Float> Mixture<T> {
    /// Hidden size `width`, `size` features of an expert.
    pub fn random(seeded: &mut Seeded, routing: &Routing, width: usize, size: usize) -> Self {
        Self {
            x: seeded.values(routing.tokens * width),
            weights: seeded.values(routing.count()),
            gate_up: seeded.values(routing.experts() * 2 * size * width),
            down: seeded.values(routing.experts() * size * width),
        }
    }
}

/// The output and the gradients of a mixture, group by group.
pub fn run<T: Float>(
    routing: &Routing,
    groups: &[Range<usize>],
    (width, size, layout): (usize, usize, WeightLayout),
    inputs: &Mixture<T>,
    dy: &[T],
) -> (Vec<T>, Mixture<T>) {
    let (queue, count) = (Queue::cpu(), routing.count());
    let mut y = vec![T::ZERO; dy.len()];
    let mut gradients = Mixture {
        x: vec![T::ZERO; inputs.x.len()],
        weights: unwritten(count),
        gate_up: vec![T::ZERO; inputs.gate_up.len()],
        down: vec![T::ZERO; inputs.down.len()],
    };
    let (mut rows, mut hidden) = (unwritten(count * width), unwritten(count * 2 * size));
    let (mut features, mut dfeatures) = (unwritten(count * size), unwritten(count * size));
    let (wide, narrow, features_shape) = ([count, width], [count, 2 * size], [count, size]);
    let first_layout = WeightLayout::OutputsInputs;
    for experts in groups {
        let group = routing.group(experts.clone());
        let part = |elements: usize| experts.start * elements..experts.end * elements;
        let (gate_up_part, down_part) = (part(2 * size * width), part(size * width));
        let gate_up_shape = [experts.len() * 2 * size, width];
        let down_shape = match layout {
            WeightLayout::OutputsInputs => [experts.len() * width, size],
            WeightLayout::InputsOutputs => [experts.len() * size, width],
        };
        let gate_up = view(&inputs.gate_up[gate_up_part.clone()], gate_up_shape);
        let down = view(&inputs.down[down_part.clone()], down_shape);
        routing.gather(&inputs.x, &group, &mut rows);
        let hidden_view = view_mut(&mut hidden, narrow);
        expert_linear::forward(&queue, view(&rows, wide), gate_up, first_layout, &group, hidden_view)
            .unwrap();
        activation::forward(routing, &hidden, &inputs.weights, &group, &mut features);
        let mut outputs = unwritten(count * width);
        let outputs_view = view_mut(&mut outputs, wide);
        let features_view = view(&features, features_shape);
        expert_linear::forward(&queue, features_view, down, layout, &group, outputs_view).unwrap();
        routing.combine(&outputs, &group, &mut y);

        let mut doutputs = unwritten(count * width);
        routing.gather(dy, &group, &mut doutputs);
        let doutputs = view(&doutputs, wide);
        let dfeatures_view = view_mut(&mut dfeatures, features_shape);
        expert_linear::backward_input(&queue, doutputs, down, layout, &group, dfeatures_view).unwrap();
        let ddown = view_mut(&mut gradients.down[down_part], down_shape);
        expert_linear::backward_weight(&queue, doutputs, features_view, layout, &group, ddown).unwrap();
        let weights = &inputs.weights;
        activation::backward(routing, &dfeatures, weights, &group, &mut hidden, &mut gradients.weights);
        let dhidden = view(&hidden, narrow);
        let dgate_up = view_mut(&mut gradients.gate_up[gate_up_part], gate_up_shape);
        expert_linear::backward_weight(&queue, dhidden, view(&rows, wide), first_layout, &group, dgate_up)
            .unwrap();
        let rows_view = view_mut(&mut rows, wide);
        expert_linear::backward_input(&queue, dhidden, gate_up, first_layout, &group, rows_view).unwrap();
        routing.combine(&rows, &group, &mut gradients.x);
    }
    (y, gradients)
}

/// The mixture as a sum over all experts of all tokens, an expert that was not chosen counting nothing.
fn candle_mixture(
    routing: &Routing,
    (width, size, layout): (usize, usize, WeightLayout),
    [x, weights, gate_up, down]: [&Var; 4],
) -> Tensor {
    let mut y = x.zeros_like().unwrap();
    for expert in 0..routing.experts() {
        let counts: Vec<u32> =
            routing.chosen.iter().map(|&chosen| u32::from(chosen as usize == expert)).collect();
        let counts = oracle::constant(&counts, (routing.tokens, routing.choices));
        let weight = (weights.as_tensor() * counts.to_dtype(x.dtype()).unwrap()).unwrap();
        let weight = weight.sum_keepdim(1).unwrap();
        let part = |weight: &Var, rows: usize| weight.narrow(0, expert * rows, rows).unwrap();
        let hidden = x.matmul(&part(gate_up, 2 * size).t().unwrap()).unwrap().chunk(2, 1).unwrap();
        let features = (hidden[0].silu().unwrap() * &hidden[1]).unwrap();
        let down = match layout {
            WeightLayout::OutputsInputs => part(down, width).t().unwrap(),
            WeightLayout::InputsOutputs => part(down, size),
        };
        let output = features.matmul(&down).unwrap().broadcast_mul(&weight).unwrap();
        y = (y + output).unwrap();
    }
    y
}

fn agrees_with_candle<T: Float + WithDType>(tolerance: f64) {
    let mut seeded = Seeded::new(6);
    for round in 0..40 {
        let routing = Routing::random(&mut seeded);
        let (experts, width, size) = (routing.experts(), seeded.extent(20), 1 + seeded.extent(20));
        let kind = (width, size, LAYOUTS[round % 2]);
        let inputs = Mixture::<T>::random(&mut seeded, &routing, width, size);
        let dy = seeded.values::<T>(inputs.x.len());
        let groups = routing.groups(&mut seeded);
        let (y, gradients) = run(&routing, &groups, kind, &inputs, &dy);

        let down_shape = match kind.2 {
            WeightLayout::OutputsInputs => (experts * width, size),
            WeightLayout::InputsOutputs => (experts * size, width),
        };
        let variables = [
            &oracle::variable(&inputs.x, (routing.tokens, width)),
            &oracle::variable(&inputs.weights, (routing.tokens, routing.choices)),
            &oracle::variable(&inputs.gate_up, (experts * 2 * size, width)),
            &oracle::variable(&inputs.down, down_shape),
        ];
        let expected = candle_mixture(&routing, kind, variables);
        assert_close("y", &y, &oracle::elements(&expected), tolerance);
        let expected = oracle::gradients(&expected, &dy, &variables);
        assert_close("dx", &gradients.x, &expected[0], tolerance);
        assert_close("dweights", &gradients.weights, &expected[1], tolerance);
        assert_close("dgate_up", &gradients.gate_up, &expected[2], tolerance);
        assert_close("ddown", &gradients.down, &expected[3], tolerance);
    }
}

#[test]
fn a_mixture_agrees_with_candle_in_fp32() {
    agrees_with_candle::<f32>(3e-6);
}

#[test]
fn a_mixture_agrees_with_candle_in_fp64() {
    agrees_with_candle::<f64>(1e-13);
}
