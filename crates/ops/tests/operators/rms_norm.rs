//! Root-mean-square normalisation.

use candle_core::WithDType;
use tessera_ops::{Float, Queue, rms_norm};

use crate::oracle;
use crate::support::{Seeded, assert_close, assert_gradient, inner_product, unwritten, view, view_mut};

/// Far larger than in training: it bounds the curvature at small inputs, so that differences are exact.
const EPSILON: f32 = 0.1;

/// y and 1/rms.
fn forward<T: Float>(rows: usize, width: usize, x: &[T], weight: &[T]) -> (Vec<T>, Vec<T>) {
    let (mut y, mut inverse_rms) = (unwritten(rows * width), unwritten(rows));
    let (y_view, inverse_rms_view) = (view_mut(&mut y, [rows, width]), view_mut(&mut inverse_rms, [rows]));
    let (x, weight) = (view(x, [rows, width]), view(weight, [width]));
    rms_norm::forward(&Queue::cpu(), x, weight, f64::from(EPSILON), y_view, inverse_rms_view).unwrap();
    (y, inverse_rms)
}

/// The gradients added to `dx` and `dweight`.
fn backward<T: Float>(rows: usize, x: &[T], weight: &[T], dy: &[T], dx: &mut [T], dweight: &mut [T]) {
    let width = weight.len();
    let (_, inverse_rms) = forward(rows, width, x, weight);
    rms_norm::backward(
        &Queue::cpu(),
        view(dy, [rows, width]),
        view(x, [rows, width]),
        view(weight, [width]),
        view(&inverse_rms, [rows]),
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
        assert_gradient("dx", &x, &dx, |x| inner_product(&forward(rows, width, x, &weight).0, &dy));
        assert_gradient("dw", &weight, &dweight, |w| inner_product(&forward(rows, width, &x, w).0, &dy));
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
        let y = candle_nn::ops::rms_norm_slow(&x_variable, &weight_variable, EPSILON).unwrap();
        let expected = oracle::gradients(&y, &dy, &[&x_variable, &weight_variable]);
        assert_close("y", &forward(rows, width, &x, &weight).0, &oracle::elements(&y), tolerance);

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
