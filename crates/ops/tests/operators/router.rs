//! The choice of experts and its gradient.

use candle_core::{D, Tensor, WithDType};
use tessera_ops::{Float, Queue, router};

use crate::oracle;
use crate::support::{
    Seeded, assert_close, assert_gradient, inner_product, scaled, unwritten, view, view_mut,
};

/// What a router makes of its logits.
struct Routed<T> {
    probabilities: Vec<T>,
    chosen: Vec<u32>,
    weights: Vec<T>,
}

/// Tokens, experts, choices.
type Sizes = (usize, usize, usize);

fn forward<T: Float>((tokens, experts, choices): Sizes, logits: &[T], weight_norm: Option<f64>) -> Routed<T> {
    let mut routed = Routed {
        probabilities: logits.to_vec(),
        chosen: vec![u32::MAX; tokens * choices],
        weights: unwritten(tokens * choices),
    };
    router::forward(
        &Queue::cpu(),
        view_mut(&mut routed.probabilities, [tokens, experts]),
        weight_norm,
        view_mut(&mut routed.chosen, [tokens, choices]),
        view_mut(&mut routed.weights, [tokens, choices]),
    )
    .unwrap();
    routed
}

/// The gradient of the logits.
fn backward<T: Float>(
    (tokens, experts, choices): Sizes,
    routed: &Routed<T>,
    weight_norm: Option<f64>,
    dweights: &[T],
    dprobabilities: &[T],
) -> Vec<T> {
    let mut gradient = dprobabilities.to_vec();
    router::backward(
        &Queue::cpu(),
        view(dweights, [tokens, choices]),
        view(&routed.probabilities, [tokens, experts]),
        view(&routed.chosen, [tokens, choices]),
        weight_norm,
        view_mut(&mut gradient, [tokens, experts]),
    )
    .unwrap();
    gradient
}

const NORMS: [Option<f64>; 4] = [None, Some(1.0), Some(2.0), Some(3.5)];

fn sizes(seeded: &mut Seeded) -> Sizes {
    let (tokens, experts) = (seeded.extent(35), seeded.extent(20));
    (tokens, experts, seeded.extent(experts))
}

/// Logits of which no two of a token are as near as the differences reach: 0, ¼, ½, … in random order.
fn apart(seeded: &mut Seeded, (tokens, experts, _): Sizes) -> Vec<f64> {
    let mut logits = Vec::new();
    for _ in 0..tokens {
        let mut steps: Vec<usize> = (0..experts).collect();
        while !steps.is_empty() {
            let step = steps.swap_remove(seeded.below(steps.len()));
            logits.push(0.25 * step as f64 + 0.1 * seeded.values::<f64>(1)[0]);
        }
    }
    logits
}

#[test]
fn backward_is_the_derivative() {
    let mut seeded = Seeded::new(1);
    for round in 0..40 {
        let (sizes, norm) = (sizes(&mut seeded), NORMS[round % NORMS.len()]);
        let logits = apart(&mut seeded, sizes);
        let routed = forward(sizes, &logits, norm);
        let dweights = seeded.values(routed.weights.len());
        // What the probabilities go into besides, as the load-balancing loss.
        let dprobabilities = seeded.values(logits.len());
        let gradient = backward(sizes, &routed, norm, &dweights, &dprobabilities);
        assert_gradient("logits", &logits, &gradient, |logits| {
            let routed = forward(sizes, logits, norm);
            inner_product(&routed.weights, &dweights) + inner_product(&routed.probabilities, &dprobabilities)
        });
    }
}

fn agrees_with_candle<T: Float + WithDType>(tolerance: f64) {
    let mut seeded = Seeded::new(2);
    for round in 0..40 {
        let (sizes, sum_to_one) = (sizes(&mut seeded), round % 2 == 0);
        let (tokens, experts, choices) = sizes;
        let logits = scaled(&seeded.values::<T>(tokens * experts), 5.0);
        let norm = sum_to_one.then_some(1.0);
        let routed = forward(sizes, &logits, norm);

        let variable = oracle::variable(&logits, (tokens, experts));
        let probabilities = candle_nn::ops::softmax(&variable, D::Minus1).unwrap();
        let chosen = oracle::constant(&routed.chosen, (tokens, choices));
        let mut weights = probabilities.gather(&chosen, 1).unwrap();
        if sum_to_one {
            weights = weights.broadcast_div(&weights.sum_keepdim(1).unwrap()).unwrap();
        }
        assert_close("p", &routed.probabilities, &oracle::elements(&probabilities), tolerance);
        assert_close("w", &routed.weights, &oracle::elements(&weights), tolerance);
        let (dweights, dprobabilities) =
            (seeded.values::<T>(tokens * choices), seeded.values::<T>(tokens * experts));
        let both =
            Tensor::cat(&[weights.flatten_all().unwrap(), probabilities.flatten_all().unwrap()], 0).unwrap();
        let expected = oracle::gradients(&both, &[&dweights[..], &dprobabilities].concat(), &[&variable]);
        let gradient = backward(sizes, &routed, norm, &dweights, &dprobabilities);
        assert_close("logits", &gradient, &expected[0], tolerance);
    }
}

#[test]
fn agrees_with_candle_in_fp32() {
    agrees_with_candle::<f32>(3e-6);
}

#[test]
fn agrees_with_candle_in_fp64() {
    agrees_with_candle::<f64>(1e-13);
}

#[test]
fn the_largest_are_chosen_in_falling_order_and_the_lower_index_of_equals() {
    let mut seeded = Seeded::new(3);
    for _ in 0..60 {
        let sizes = sizes(&mut seeded);
        let (tokens, experts, choices) = sizes;
        // Few different values: most are equal to others.
        let logits: Vec<f32> = seeded.ids(tokens * experts, 4).iter().map(|&step| step as f32).collect();
        let routed = forward(sizes, &logits, None);
        for token in 0..tokens {
            let logits = &logits[token * experts..][..experts];
            let mut expected: Vec<u32> = (0..experts as u32).collect();
            expected.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]).then(a.cmp(&b)));
            assert_eq!(routed.chosen[token * choices..][..choices], expected[..choices]);
        }
    }
}

#[test]
fn weights_have_the_norm_that_was_asked_for() {
    let logits = [2.0_f64, -1.0, 0.5, 1.0];
    for power in [1.0, 2.0, 3.5] {
        let weights = forward((1, 4, 3), &logits, Some(power)).weights;
        let norm: f64 = weights.iter().map(|weight| weight.powf(power)).sum();
        assert!((norm - 1.0).abs() < 1e-14, "{power}: {norm}");
    }
    let total: f64 = forward((1, 4, 3), &logits, None).weights.iter().sum();
    assert!(total < 0.99, "{total}");
}

#[test]
fn large_logits_do_not_overflow() {
    let routed = forward((1, 3, 2), &[3e4_f32, -3e4, 3e4], Some(1.0));
    assert_eq!((routed.chosen, routed.weights), (vec![0, 2], vec![0.5, 0.5]));
}
