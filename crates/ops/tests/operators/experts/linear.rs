//! The experts' linear layers, each against a dense one, bit for bit.

use std::ops::Range;

use tessera_ops::experts::linear::{self as expert_linear, WeightLayout};
use tessera_ops::{Queue, linear};

use super::{LAYOUTS, Routing};
use crate::support::{Seeded, bits, unwritten, view, view_mut};

/// The three products of one layer over groups of experts: y, dx, dW.
fn layer_products(
    routing: &Routing,
    groups: &[Range<usize>],
    layout: WeightLayout,
    [x, dy, weight]: [&[f32]; 3],
) -> [Vec<f32>; 3] {
    let queue = Queue::cpu();
    let (inputs, outputs) = (x.len() / routing.count(), dy.len() / routing.count());
    let (mut y, mut dx) = (unwritten(dy.len()), unwritten(x.len()));
    let mut dweight = weight.to_vec();
    let (x, dy) = (view(x, [routing.count(), inputs]), view(dy, [routing.count(), outputs]));
    for experts in groups {
        let (start, count) = (experts.start * inputs * outputs, experts.len() * inputs * outputs);
        let shape = match layout {
            WeightLayout::OutputsInputs => [experts.len() * outputs, inputs],
            WeightLayout::InputsOutputs => [experts.len() * inputs, outputs],
        };
        let (weight, dweight) =
            (view(&weight[start..][..count], shape), view_mut(&mut dweight[start..][..count], shape));
        let group = routing.group(experts.clone());
        let y = view_mut(&mut y, [routing.count(), outputs]);
        expert_linear::forward(&queue, x, weight, layout, &group, y).unwrap();
        let dx = view_mut(&mut dx, [routing.count(), inputs]);
        expert_linear::backward_input(&queue, dy, weight, layout, &group, dx).unwrap();
        expert_linear::backward_weight(&queue, dy, x, layout, &group, dweight).unwrap();
    }
    [y, dx, dweight]
}

/// The same with a dense layer for each expert: a weight stored `[K, N]` is that of the reverse layer.
fn dense_products(routing: &Routing, layout: WeightLayout, [x, dy, weight]: [&[f32]; 3]) -> [Vec<f32>; 3] {
    let queue = Queue::cpu();
    let (inputs, outputs) = (x.len() / routing.count(), dy.len() / routing.count());
    let (mut y, mut dx) = (unwritten(dy.len()), unwritten(x.len()));
    let mut dweight = weight.to_vec();
    for expert in 0..routing.experts() {
        let rows = routing.rows(&(expert..expert + 1));
        let (start, count) = (expert * inputs * outputs, inputs * outputs);
        let (x_rows, y_rows) =
            (rows.start * inputs..rows.end * inputs, rows.start * outputs..rows.end * outputs);
        let (x, dx) =
            (view(&x[x_rows.clone()], [rows.len(), inputs]), view_mut(&mut dx[x_rows], [rows.len(), inputs]));
        let (dy, y) = (
            view(&dy[y_rows.clone()], [rows.len(), outputs]),
            view_mut(&mut y[y_rows], [rows.len(), outputs]),
        );
        let (weight, dweight) = (&weight[start..][..count], &mut dweight[start..][..count]);
        match layout {
            WeightLayout::OutputsInputs => {
                let weight = view(weight, [outputs, inputs]);
                linear::forward(&queue, x, weight, y).unwrap();
                linear::backward_input(&queue, dy, weight, dx).unwrap();
                linear::backward_weight(&queue, dy, x, view_mut(dweight, [outputs, inputs])).unwrap();
            }
            WeightLayout::InputsOutputs => {
                let weight = view(weight, [inputs, outputs]);
                linear::backward_input(&queue, x, weight, y).unwrap();
                linear::forward(&queue, dy, weight, dx).unwrap();
                linear::backward_weight(&queue, x, dy, view_mut(dweight, [inputs, outputs])).unwrap();
            }
        }
    }
    [y, dx, dweight]
}

#[test]
fn each_expert_is_a_linear_layer() {
    let mut seeded = Seeded::new(3);
    let mut cases: Vec<(Routing, usize, usize)> =
        (0..40).map(|_| (Routing::random(&mut seeded), seeded.extent(60), seeded.extent(60))).collect();
    // Large enough that each product has the whole pool.
    let chosen = seeded.ids(600, 2);
    cases.push((Routing::new(600, 3, 1, chosen), 520, 1010));
    for (routing, inputs, outputs) in cases {
        for layout in LAYOUTS {
            let x = seeded.values::<f32>(routing.count() * inputs);
            let dy = seeded.values::<f32>(routing.count() * outputs);
            let weight = seeded.values::<f32>(routing.experts() * inputs * outputs);
            let groups = routing.groups(&mut seeded);
            let found = layer_products(&routing, &groups, layout, [&x, &dy, &weight]);
            let expected = dense_products(&routing, layout, [&x, &dy, &weight]);
            for ((what, found), expected) in ["y", "dx", "dW"].iter().zip(&found).zip(&expected) {
                assert_eq!(bits(found), bits(expected), "{what}, {layout:?}");
            }
        }
    }
}

#[test]
fn a_group_touches_only_its_own() {
    let routing = Routing::new(4, 4, 1, vec![0, 2, 3, 3]);
    let values = Seeded::new(4).values::<f32>(4 * 5 * 6);
    // Expert 1, the first of the group, has no rows.
    let [y, dx, _] = layer_products(
        &routing,
        std::slice::from_ref(&(1..3)),
        WeightLayout::OutputsInputs,
        [&values[..4 * 5], &values[..4 * 6], &values],
    );
    for row in 0..4 {
        assert_eq!(y[row * 6..][..6].iter().all(|y| y.is_nan()), row != 1);
        assert_eq!(dx[row * 5..][..5].iter().all(|dx| dx.is_nan()), row != 1);
    }
    let (mut dweight, not_a_number) = (unwritten::<f32>(2 * 30), unwritten::<f32>(30));
    expert_linear::backward_weight(
        &Queue::cpu(),
        view(&values[..4 * 6], [4, 6]),
        view(&values[..4 * 5], [4, 5]),
        WeightLayout::OutputsInputs,
        &routing.group(0..2),
        view_mut(&mut dweight, [12, 5]),
    )
    .unwrap();
    assert_eq!(bits(&dweight[30..]), bits(&not_a_number));
}
