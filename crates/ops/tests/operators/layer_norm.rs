//! Layer normalisation.

use candle_core::WithDType;
use tessera_ops::{Float, Queue, layer_norm};

use crate::oracle;
use crate::support::{Seeded, assert_close, assert_gradient, inner_product, unwritten, view, view_mut};

/// Far larger than in training: it bounds the curvature at small inputs, so that differences are exact.
const EPSILON: f32 = 0.1;

/// y, the means and the inverse deviations.
fn forward<T: Float>(rows: usize, x: &[T], weight: &[T]) -> (Vec<T>, Vec<T>, Vec<T>) {
    let width = weight.len();
    let (mut y, mut mean, mut inverse_deviation) =
        (unwritten(rows * width), unwritten(rows), unwritten(rows));
    layer_norm::forward(
        &Queue::cpu(),
        view(x, [rows, width]),
        view(weight, [width]),
        f64::from(EPSILON),
        view_mut(&mut y, [rows, width]),
        view_mut(&mut mean, [rows]),
        view_mut(&mut inverse_deviation, [rows]),
    )
    .unwrap();
    (y, mean, inverse_deviation)
}

/// The gradients added to `dx` and `dweight`.
fn backward<T: Float>(rows: usize, x: &[T], weight: &[T], dy: &[T], dx: &mut [T], dweight: &mut [T]) {
    let width = weight.len();
    let (_, mean, inverse_deviation) = forward(rows, x, weight);
    layer_norm::backward(
        &Queue::cpu(),
        view(dy, [rows, width]),
        view(x, [rows, width]),
        view(weight, [width]),
        view(&mean, [rows]),
        view(&inverse_deviation, [rows]),
        view_mut(dx, [rows, width]),
        view_mut(dweight, [width]),
    )
    .unwrap();
}

#[test]
fn backward_is_the_derivative() {
    let mut seeded = Seeded::new(1);
    for _ in 0..30 {
        let (rows, width) = (seeded.extent(35), seeded.extent(140));
        let (x, weight) = (seeded.values(rows * width), seeded.values(width));
        let dy = seeded.values(rows * width);
        let (mut dx, mut dweight) = (vec![0.0; rows * width], vec![0.0; width]);
        backward(rows, &x, &weight, &dy, &mut dx, &mut dweight);
        assert_gradient("dx", &x, &dx, |x| inner_product(&forward(rows, x, &weight).0, &dy));
        assert_gradient("dw", &weight, &dweight, |weight| inner_product(&forward(rows, &x, weight).0, &dy));
    }
}

fn agrees_with_candle<T: Float + WithDType>(tolerance: f64) {
    let mut seeded = Seeded::new(2);
    for _ in 0..40 {
        let (rows, width) = (seeded.extent(40), seeded.extent(200));
        let (x, weight) = (seeded.values::<T>(rows * width), seeded.values::<T>(width));
        let dy = seeded.values::<T>(rows * width);
        let (x_variable, weight_variable) =
            (oracle::variable(&x, (rows, width)), oracle::variable(&weight, width));
        let no_bias = oracle::constant(&vec![T::ZERO; width], width);
        let y = candle_nn::ops::layer_norm_slow(&x_variable, &weight_variable, &no_bias, EPSILON).unwrap();
        let expected = oracle::gradients(&y, &dy, &[&x_variable, &weight_variable]);
        assert_close("y", &forward(rows, &x, &weight).0, &oracle::elements(&y), tolerance);

        let (before_x, before_weight) = (seeded.values::<T>(rows * width), seeded.values::<T>(width));
        let (mut dx, mut dweight) = (before_x.clone(), before_weight.clone());
        backward(rows, &x, &weight, &dy, &mut dx, &mut dweight);
        for (what, found, before, expected) in
            [("dx", &dx, &before_x, &expected[0]), ("dw", &dweight, &before_weight, &expected[1])]
        {
            let expected: Vec<T> =
                before.iter().zip(expected).map(|(&before, &expected)| before + expected).collect();
            assert_close(what, found, &expected, tolerance);
        }
    }
}

#[test]
fn agrees_with_candle_in_fp32() {
    agrees_with_candle::<f32>(1e-6);
}

#[test]
fn agrees_with_candle_in_fp64() {
    agrees_with_candle::<f64>(1e-14);
}

#[test]
fn a_large_mean_does_not_cancel_the_variance() {
    let small = Seeded::new(3).values::<f32>(500);
    let weight = [1.0_f32; 500];
    // 256 above: what is left of the small values is exact in both.
    let moved: Vec<f32> = small.iter().map(|value| value + 256.0).collect();
    let kept: Vec<f32> = moved.iter().map(|value| value - 256.0).collect();
    assert_close("y", &forward(1, &moved, &weight).0, &forward(1, &kept, &weight).0, 1e-4);
}
