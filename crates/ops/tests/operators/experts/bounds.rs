//! Offsets, slots and places that point anywhere else are errors.

use std::ops::Range;

use tessera_ops::experts::linear::{self as expert_linear, WeightLayout};
use tessera_ops::experts::{self, ExpertRows, activation};
use tessera_ops::{OpError, Queue, View};

use super::Routing;
use crate::support::{view, view_mut};

/// What each operator of a group answers to `routing`, of which something is wrong.
fn refusals(routing: &Routing, experts: Range<usize>) -> Vec<Result<(), OpError>> {
    let (queue, count) = (Queue::cpu(), routing.count());
    let (mut wide, mut narrow) = (vec![0.0_f32; count * 8], vec![0.0_f32; count * 4]);
    let (x, weights) = (vec![0.0_f32; count * 8], vec![0.0_f32; count]);
    // As much as a group of the five offsets can need.
    let experts_at_most = experts.len().min(4);
    let weight = vec![0.0_f32; experts_at_most * 8 * 4];
    let (weight_shape, choices) = ([experts_at_most * 4, 8], routing.choices);
    let (slots, places) = (View::of(&routing.slots), View::of(&routing.places));
    let group = &ExpertRows { offsets: View::of(&routing.offsets), experts };
    let (input, weights) = (view(&x, [count, 8]), view(&weights, [routing.tokens, choices]));
    let tokens = view(&x[..routing.tokens * 4], [routing.tokens, 4]);
    let mut token_gradient = vec![0.0_f32; routing.tokens * 8];
    let token_gradient = view_mut(&mut token_gradient, [routing.tokens, 8]);
    let (mut dweights, mut dweight) = (vec![0.0_f32; count], weight.clone());
    let dweights = view_mut(&mut dweights, [routing.tokens, choices]);
    let dweight = view_mut(&mut dweight, weight_shape);
    let (weight, layout) = (view(&weight, weight_shape), WeightLayout::OutputsInputs);
    let (mut wide, mut narrow) = (view_mut(&mut wide, [count, 8]), view_mut(&mut narrow, [count, 4]));
    let gradient = view(&x[..count * 4], [count, 4]);
    vec![
        expert_linear::forward(&queue, input, weight, layout, group, narrow.reborrow()),
        expert_linear::backward_input(&queue, gradient, weight, layout, group, wide.reborrow()),
        expert_linear::backward_weight(&queue, gradient, input, layout, group, dweight),
        experts::gather(&queue, tokens, slots, choices, group, narrow.reborrow()),
        experts::combine(&queue, input, slots, places, choices, group, token_gradient),
        activation::forward(&queue, input, weights, slots, group, narrow),
        activation::backward(&queue, gradient, weights, slots, group, wide, dweights),
    ]
}

#[test]
fn bounds_are_checked() {
    let good = || Routing::new(3, 4, 2, vec![0, 1, 1, 3, 3, 0]);
    assert!(refusals(&good(), 0..4).iter().all(Result::is_ok));
    assert!(refusals(&good(), 4..4).iter().all(Result::is_ok));
    let with_offsets = |offsets: [u32; 5]| Routing { offsets: offsets.to_vec(), ..good() };
    let reversed = Range { start: 3, end: 2 };
    for (routing, experts) in [
        (good(), 0..5),
        (good(), 9..usize::MAX),
        (good(), reversed),
        (with_offsets([0, 2, 4, 4, 7]), 0..4),
        (with_offsets([0, 2, 4, 4, u32::MAX]), 3..4),
        (with_offsets([0, 4, 2, 4, 6]), 0..4),
        (with_offsets([u32::MAX; 5]), 1..1),
        (Routing { offsets: vec![], ..good() }, 0..0),
    ] {
        for result in refusals(&routing, experts.clone()) {
            let what = (&routing.offsets, &experts);
            assert!(matches!(result, Err(OpError::Index { .. })), "{what:?}: {result:?}");
        }
    }
    for bad in [6, u32::MAX] {
        let results = refusals(&Routing { slots: vec![0, 5, 1, bad, 3, 4], ..good() }, 0..4);
        for result in &results[3..] {
            assert!(matches!(result, Err(OpError::Index { bound: 6, .. })), "{result:?}");
        }
    }
}

#[test]
fn places_must_invert_slots() {
    let good = || Routing::new(3, 4, 2, vec![0, 1, 1, 3, 3, 0]);
    for places in [vec![u32::MAX; 6], vec![0, 1, 2, 3, 4, 5], vec![0; 6]] {
        let routing = Routing { places, ..good() };
        let results = refusals(&routing, 0..4);
        assert!(matches!(results[4], Err(OpError::Shape { argument: "places", .. })), "{:?}", results[4]);
    }
}

#[test]
fn chosen_experts_must_exist() {
    let (mut slots, mut places, mut offsets) = ([0_u32; 2], [0_u32; 2], [0_u32; 4]);
    for (chosen, experts) in [([0, 3], 3), ([0, u32::MAX], 3), ([0, 0], 0)] {
        let result = experts::sort(
            &Queue::cpu(),
            view(&chosen, [1, 2]),
            view_mut(&mut slots, [2]),
            view_mut(&mut places, [2]),
            view_mut(&mut offsets[..experts + 1], [experts + 1]),
        );
        assert!(matches!(result, Err(OpError::Index { .. })), "{chosen:?}: {result:?}");
    }
}
