//! Loss, hits and the gradient in place of the logits.

use candle_core::WithDType;
use tessera_ops::{Float, Queue, cross_entropy};

use crate::oracle;
use crate::support::{Seeded, assert_close, assert_gradient, scaled, sum, view, view_mut};

/// Loss sum, hits, and what is left in place of the logits.
fn forward_backward<T: Float>(rows: usize, logits: &[T], targets: &[u32], scale: f64) -> (f64, f64, Vec<T>) {
    let mut gradient = logits.to_vec();
    let mut statistics = [0.25, 7.0];
    let logits_view = view_mut(&mut gradient, [rows, logits.len() / rows]);
    let (targets, statistics_view) = (view(targets, [rows]), view_mut(&mut statistics, [2]));
    cross_entropy::forward_backward(&Queue::cpu(), logits_view, targets, scale, statistics_view).unwrap();
    (statistics[0] - 0.25, statistics[1] - 7.0, gradient)
}

fn loss<T: Float>(rows: usize, logits: &[T], targets: &[u32]) -> f64 {
    let mut logits = logits.to_vec();
    let width = logits.len() / rows;
    let mut statistics = [0.0, 0.0];
    let (logits, statistics_view) = (view_mut(&mut logits, [rows, width]), view_mut(&mut statistics, [2]));
    cross_entropy::forward(&Queue::cpu(), logits, view(targets, [rows]), statistics_view).unwrap();
    statistics[0]
}

#[test]
fn gradient_is_the_derivative() {
    let mut seeded = Seeded::new(1);
    for _ in 0..40 {
        let (rows, vocabulary) = (seeded.extent(20), seeded.extent(100));
        let logits = seeded.values::<f64>(rows * vocabulary);
        let targets = seeded.ids(rows, vocabulary);
        let scale = 1.0 / 3.0;
        let (_, _, gradient) = forward_backward(rows, &logits, &targets, scale);
        assert_gradient("logits", &logits, &gradient, |logits| scale * loss(rows, logits, &targets));
    }
}

fn agrees_with_candle<T: Float + WithDType>(tolerance: f64) {
    let mut seeded = Seeded::new(2);
    for _ in 0..40 {
        let (rows, vocabulary) = (seeded.extent(40), seeded.extent(3000));
        let logits = scaled(&seeded.values::<T>(rows * vocabulary), 9.0);
        let variable = oracle::variable(&logits, (rows, vocabulary));
        let best = oracle::elements::<u32>(&variable.argmax(1).unwrap());
        let mut targets = seeded.ids(rows, vocabulary);
        for row in (0..rows).step_by(2) {
            targets[row] = best[row];
        }
        let probabilities = candle_nn::ops::log_softmax(&variable, 1).unwrap();
        let chosen = probabilities.gather(&oracle::constant(&targets, (rows, 1)), 1).unwrap();
        let losses = oracle::elements::<T>(&chosen);
        let minus_scale = scaled(&vec![T::ONE; rows], -0.125);
        let expected = oracle::gradients(&chosen, &minus_scale, &[&variable]);
        let (total, hits, gradient) = forward_backward(rows, &logits, &targets, 0.125);
        let expected_total = -sum(&losses);
        assert!((total - expected_total).abs() <= tolerance * expected_total, "{total} {expected_total}");
        assert!((total - loss(rows, &logits, &targets)).abs() <= 1e-12 * total.max(1.0));
        assert_close("gradient", &gradient, &expected[0], tolerance);
        let expected_hits = best.iter().zip(&targets).filter(|(best, target)| best == target).count();
        assert_eq!(hits, expected_hits as f64);
    }
}

#[test]
fn agrees_with_candle_in_fp32() {
    agrees_with_candle::<f32>(1e-6);
}

#[test]
fn agrees_with_candle_in_fp64() {
    agrees_with_candle::<f64>(1e-13);
}

#[test]
fn of_equal_logits_the_first_is_the_hit() {
    let logits = [1.0_f32, 3.0, 3.0, 3.0, 1.0, 3.0];
    for (targets, expected) in [([1, 0], 2.0), ([2, 2], 0.0), ([0, 0], 1.0)] {
        let logits = [logits[0], logits[1], logits[2], logits[3], logits[4], logits[5]];
        assert_eq!(forward_backward(2, &logits, &targets, 1.0).1, expected);
    }
}

#[test]
fn large_logits_do_not_overflow() {
    let mut logits = vec![-3e4_f32; 100];
    (logits[5], logits[70]) = (3e4, 3e4);
    let mut expected = vec![0.0; 100];
    (expected[5], expected[70]) = (-0.5, 0.5);
    let (total, hits, gradient) = forward_backward(1, &logits, &[5], 1.0);
    assert!((total - std::f64::consts::LN_2).abs() < 1e-6 && hits == 1.0, "{total} {hits}");
    assert_close("gradient", &gradient, &expected, 1e-6);
    let (total, _, _) = forward_backward(1, &[0.0_f32, 200.0], &[0], 1.0);
    assert!((total - 200.0).abs() < 1e-6, "{total}");
}
