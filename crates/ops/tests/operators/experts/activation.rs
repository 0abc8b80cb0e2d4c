//! The experts' weighted activation.

use tessera_ops::experts::{ExpertRows, activation};
use tessera_ops::{Float, Queue, View};

use super::Routing;
use crate::support::{Seeded, assert_gradient, inner_product, scaled, unwritten, view, view_mut};

/// a of the group's rows.
pub fn forward<T: Float>(
    routing: &Routing,
    gate_up: &[T],
    weights: &[T],
    group: &ExpertRows<'_>,
    a: &mut [T],
) {
    let width = a.len() / routing.count();
    activation::forward(
        &Queue::cpu(),
        view(gate_up, [routing.count(), 2 * width]),
        view(weights, [routing.tokens, routing.choices]),
        View::of(&routing.slots),
        group,
        view_mut(a, [routing.count(), width]),
    )
    .unwrap();
}

/// Turns `gate_up` into its gradient and writes that of the weights.
pub fn backward<T: Float>(
    routing: &Routing,
    dactivation: &[T],
    weights: &[T],
    group: &ExpertRows<'_>,
    gate_up: &mut [T],
    dweights: &mut [T],
) {
    let width = dactivation.len() / routing.count();
    activation::backward(
        &Queue::cpu(),
        view(dactivation, [routing.count(), width]),
        view(weights, [routing.tokens, routing.choices]),
        View::of(&routing.slots),
        group,
        view_mut(gate_up, [routing.count(), 2 * width]),
        view_mut(dweights, [routing.tokens, routing.choices]),
    )
    .unwrap();
}

#[test]
fn backward_is_the_derivative() {
    let mut seeded = Seeded::new(5);
    for _ in 0..30 {
        let routing = Routing::random(&mut seeded);
        let width = seeded.extent(40);
        let gate_up = scaled(&seeded.values::<f64>(routing.count() * 2 * width), 6.0);
        let weights = seeded.values::<f64>(routing.count());
        let cotangent = seeded.values::<f64>(routing.count() * width);
        let all = routing.group(0..routing.experts());
        let loss = |gate_up: &[f64], weights: &[f64]| {
            let mut a = unwritten(cotangent.len());
            forward(&routing, gate_up, weights, &all, &mut a);
            inner_product(&a, &cotangent)
        };
        let (mut gradient, mut dweights) = (gate_up.clone(), unwritten(weights.len()));
        for experts in routing.groups(&mut seeded) {
            let group = routing.group(experts);
            backward(&routing, &cotangent, &weights, &group, &mut gradient, &mut dweights);
        }
        assert_gradient("gate_up", &gate_up, &gradient, |gate_up| loss(gate_up, &weights));
        assert_gradient("weights", &weights, &dweights, |weights| loss(&gate_up, weights));
    }
}
