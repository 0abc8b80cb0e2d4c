//! NaN and infinity reach the loss and the norm of the gradient, from where the step is skipped: nothing hides them.

use tessera_ops::{
    Queue, View, ViewMut, cross_entropy, layer_norm, linear, rms_norm, router, squared_norm, step, swiglu,
};

use crate::attention::{Layer, heads};
use crate::support::{Seeded, unwritten, view, view_mut};

const WIDTH: usize = 20;

/// The loss of a small block: norm, attention, norm, feed-forward, head.
fn loss(x: &[f32]) -> f64 {
    let queue = Queue::cpu();
    let rows = x.len() / WIDTH;
    let mut seeded = Seeded::new(1);
    let mut normed = |x: &[f32]| {
        let (mut y, mut inverse_rms) = (unwritten::<f32>(x.len()), unwritten::<f32>(rows));
        let weight = seeded.values::<f32>(WIDTH);
        let y_view = view_mut(&mut y, [rows, WIDTH]);
        let inverse_rms = view_mut(&mut inverse_rms, [rows]);
        rms_norm::forward(&queue, view(x, [rows, WIDTH]), view(&weight, [WIDTH]), 1e-5, y_view, inverse_rms)
            .unwrap();
        y
    };
    let mut weights = Seeded::new(2);
    let mut product = |x: &[f32], outputs: usize| {
        let inputs = x.len() / rows;
        let weight = weights.values::<f32>(outputs * inputs);
        let mut y = unwritten::<f32>(rows * outputs);
        let weight = view(&weight, [outputs, inputs]);
        linear::forward(&queue, view(x, [rows, inputs]), weight, view_mut(&mut y, [rows, outputs])).unwrap();
        y
    };
    let layer = Layer { heads: heads(2, 1, 10, None), documents: vec![rows] };
    let qkv = product(&normed(x), layer.heads.row_width());
    let gate_up = product(&normed(&layer.forward(&qkv).output), 2 * WIDTH);
    let mut activation = unwritten::<f32>(rows * WIDTH);
    swiglu::forward(&queue, view(&gate_up, [rows, 2 * WIDTH]), view_mut(&mut activation, [rows, WIDTH]))
        .unwrap();
    let mut logits = product(&activation, 50);
    let mut statistics = [0.0, 0.0];
    let statistics_view = view_mut(&mut statistics, [2]);
    let targets = vec![3_u32; rows];
    cross_entropy::forward(
        &queue,
        view_mut(&mut logits, [rows, 50]),
        view(&targets, [rows]),
        statistics_view,
    )
    .unwrap();
    statistics[0]
}

#[test]
fn a_bad_input_reaches_the_loss() {
    let rows = 150;
    let x = Seeded::new(3).values::<f32>(rows * WIDTH);
    assert!(loss(&x).is_finite());
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for element in [0, 7, 100 * WIDTH + 3, rows * WIDTH - 1] {
            let mut x = x.clone();
            x[element] = bad;
            assert!(!loss(&x).is_finite(), "{bad} in element {element} is lost");
        }
    }
}

#[test]
fn attention_passes_on_what_a_query_sees() {
    for window in [None, Some(9)] {
        let layer = Layer { heads: heads(2, 1, 8, window), documents: vec![140, 20] };
        let (width, output_width) = (layer.heads.row_width(), layer.heads.output_width());
        let good = Seeded::new(4).values::<f32>(layer.rows() * width);
        let doutput = Seeded::new(5).values::<f32>(layer.rows() * output_width);
        // Of the queries, the keys and the values. An infinite key may rightly weigh nothing: its score may be −∞.
        for (bad, row, column) in [
            (f32::NAN, 3, 1),
            (f32::NAN, 3, 16),
            (f32::NAN, 139, 17),
            (f32::NAN, 3, 24),
            (f32::INFINITY, 3, 1),
            (f32::INFINITY, 139, 25),
        ] {
            let mut qkv = good.clone();
            qkv[row * width + column] = bad;
            let kept = layer.forward(&qkv);
            let output = &kept.output[row * output_width..][..output_width];
            assert!(output.iter().any(|value| !value.is_finite()), "{bad} in column {column}");
            let gradient = layer.backward(&qkv, &kept, &doutput);
            assert!(gradient.iter().any(|value| !value.is_finite()));
        }
    }
}

/// Each kernel of the product that a shape can choose: vectors, thin and full matrices.
#[test]
fn products_pass_on_nan_and_overwrite_it() {
    let queue = Queue::cpu();
    for (rows, inputs, outputs) in
        [(1, 1, 1), (1, 40, 30), (30, 40, 1), (5, 2, 5), (9, 100, 9), (70, 600, 90), (200, 520, 130)]
    {
        let mut seeded = Seeded::new(6);
        let mut x = seeded.values::<f32>(rows * inputs);
        let weight = seeded.values::<f32>(outputs * inputs);
        let mut y = unwritten::<f32>(rows * outputs);
        let mut forward = |x: &[f32]| {
            let (x, weight) = (view(x, [rows, inputs]), view(&weight, [outputs, inputs]));
            linear::forward(&queue, x, weight, view_mut(&mut y, [rows, outputs])).unwrap();
            y.clone()
        };
        assert!(forward(&x).iter().all(|value| value.is_finite()), "{rows} {inputs} {outputs}");
        x[(rows - 1) * inputs] = f32::NAN;
        let y = forward(&x);
        let (clean, bad) = y.split_at((rows - 1) * outputs);
        assert!(clean.iter().all(|value| value.is_finite()), "{rows} {inputs} {outputs}");
        assert!(bad.iter().all(|value| value.is_nan()), "{rows} {inputs} {outputs}");
    }
}

#[test]
fn cross_entropy_hides_nothing() {
    let loss_and_gradient = |logits: &[f32]| -> (f64, Vec<f32>) {
        let mut logits = logits.to_vec();
        let mut statistics = [0.0, 0.0];
        let logits_view = view_mut(&mut logits, [1, 4]);
        let statistics_view = view_mut(&mut statistics, [2]);
        cross_entropy::forward_backward(
            &Queue::cpu(),
            logits_view,
            view(&[1_u32], [1]),
            1.0,
            statistics_view,
        )
        .unwrap();
        (statistics[0], logits)
    };
    for bad in 0..4 {
        for value in [f32::NAN, f32::INFINITY] {
            let mut logits = [0.0, 1.0, 2.0, 3.0];
            logits[bad] = value;
            let (loss, gradient) = loss_and_gradient(&logits);
            assert!(!loss.is_finite() && gradient.iter().any(|value| !value.is_finite()), "{logits:?}");
        }
    }
    assert_eq!(loss_and_gradient(&[0.0, f32::NEG_INFINITY, 2.0, 3.0]).0, f64::INFINITY);
    // A logit of −∞ that is not the target is a masked one.
    let (loss, gradient) = loss_and_gradient(&[f32::NEG_INFINITY, 0.0, 0.0, f32::NEG_INFINITY]);
    assert!((loss - std::f64::consts::LN_2).abs() < 1e-6 && gradient[0].abs() < 1e-30, "{loss} {gradient:?}");
}

#[test]
fn the_norm_and_the_decision_see_it() {
    for bad in [f32::NAN, f32::INFINITY] {
        let mut gradient = vec![0.5_f32; 100_000];
        gradient[70_001] = bad;
        let mut statistics = [0.0; step::statistic::COUNT];
        let total = ViewMut::of(&mut statistics).range(step::statistic::SQUARED_NORM, 1).unwrap();
        squared_norm::add(&Queue::cpu(), view(&gradient, [gradient.len()]), total).unwrap();
        let mut decision = [0.0; step::decision::COUNT];
        step::decide(&Queue::cpu(), View::of(&statistics), 1.0, ViewMut::of(&mut decision)).unwrap();
        assert_eq!(decision[step::decision::APPLY], 0.0);
    }
}

#[test]
fn a_router_hides_nothing_and_still_chooses() {
    for bad in [f32::NAN, f32::INFINITY] {
        let mut logits = [0.5, bad, 1.0, -1.0];
        let (mut chosen, mut weights) = ([u32::MAX; 2], [0.0_f32; 2]);
        let (chosen_view, weights_view) = (view_mut(&mut chosen, [1, 2]), view_mut(&mut weights, [1, 2]));
        let logits = view_mut(&mut logits, [1, 4]);
        router::forward(&Queue::cpu(), logits, Some(1.0), chosen_view, weights_view).unwrap();
        assert!(weights.iter().all(|weight| weight.is_nan()), "{weights:?}");
        assert!(chosen[0] != chosen[1] && chosen.iter().all(|&expert| expert < 4), "{chosen:?}");
    }
}

#[test]
fn a_layer_norm_passes_it_on() {
    for bad in [f32::NAN, f32::INFINITY] {
        let mut x = Seeded::new(7).values::<f32>(3 * WIDTH);
        x[WIDTH + 3] = bad;
        let (mut y, mut mean, mut deviation) = (unwritten::<f32>(3 * WIDTH), [0.0_f32; 3], [0.0_f32; 3]);
        let (mean, deviation) = (view_mut(&mut mean, [3]), view_mut(&mut deviation, [3]));
        let (x, y_view) = (view(&x, [3, WIDTH]), view_mut(&mut y, [3, WIDTH]));
        layer_norm::forward(
            &Queue::cpu(),
            x,
            view(&[1.0_f32; WIDTH], [WIDTH]),
            1e-5,
            y_view,
            mean,
            deviation,
        )
        .unwrap();
        let finite = |row: usize| y[row * WIDTH..][..WIDTH].iter().filter(|y| y.is_finite()).count();
        assert_eq!([finite(0), finite(1), finite(2)], [WIDTH, 0, WIDTH]);
    }
}
