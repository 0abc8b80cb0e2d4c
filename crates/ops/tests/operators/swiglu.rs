//! The gated activation.

use candle_core::{D, WithDType};
use tessera_ops::{Float, Queue, swiglu};

use crate::oracle;
use crate::support::{
    Seeded, assert_close, assert_gradient, inner_product, scaled, unwritten, view, view_mut,
};

fn forward<T: Float>(rows: usize, width: usize, gate_up: &[T]) -> Vec<T> {
    let mut activation = unwritten(rows * width);
    let gate_up = view(gate_up, [rows, 2 * width]);
    swiglu::forward(&Queue::cpu(), gate_up, view_mut(&mut activation, [rows, width])).unwrap();
    activation
}

fn backward<T: Float>(rows: usize, width: usize, gate_up: &[T], dactivation: &[T]) -> Vec<T> {
    let mut gate_up = gate_up.to_vec();
    let dactivation = view(dactivation, [rows, width]);
    swiglu::backward(&Queue::cpu(), dactivation, view_mut(&mut gate_up, [rows, 2 * width])).unwrap();
    gate_up
}

/// Values from −6 to 6: both tails of the sigmoid.
fn wide<T: Float>(seeded: &mut Seeded, count: usize) -> Vec<T> {
    scaled(&seeded.values(count), 6.0)
}

#[test]
fn backward_is_the_derivative() {
    let mut seeded = Seeded::new(1);
    for _ in 0..30 {
        let (rows, width) = (seeded.extent(35), seeded.extent(70));
        let (gate_up, cotangent) = (wide(&mut seeded, 2 * rows * width), seeded.values(rows * width));
        let gradient = backward(rows, width, &gate_up, &cotangent);
        assert_gradient("gate_up", &gate_up, &gradient, |gate_up| {
            inner_product(&forward(rows, width, gate_up), &cotangent)
        });
    }
}

fn agrees_with_candle<T: Float + WithDType>(tolerance: f64) {
    let mut seeded = Seeded::new(2);
    for _ in 0..40 {
        let (rows, width) = (seeded.extent(40), seeded.extent(100));
        let gate_up = wide::<T>(&mut seeded, 2 * rows * width);
        let cotangent = seeded.values::<T>(rows * width);
        let variable = oracle::variable(&gate_up, (rows, 2 * width));
        let halves = variable.chunk(2, D::Minus1).unwrap();
        let activation = (halves[0].silu().unwrap() * &halves[1]).unwrap();
        assert_close(
            "activation",
            &forward(rows, width, &gate_up),
            &oracle::elements(&activation),
            tolerance,
        );
        let expected = oracle::gradients(&activation, &cotangent, &[&variable]);
        assert_close("gradient", &backward(rows, width, &gate_up, &cotangent), &expected[0], tolerance);
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
