//! y = x·Wᵀ and its two gradients.

use candle_core::WithDType;
use tessera_ops::{Float, Queue, linear};

use crate::oracle;
use crate::support::{Seeded, assert_close, assert_gradient, inner_product, unwritten, view, view_mut};

/// Rows, inputs, outputs.
type Sizes = (usize, usize, usize);

fn forward<T: Float>((rows, inputs, outputs): Sizes, x: &[T], weight: &[T]) -> Vec<T> {
    let mut y = unwritten(rows * outputs);
    let (x, weight) = (view(x, [rows, inputs]), view(weight, [outputs, inputs]));
    linear::forward(&Queue::cpu(), x, weight, view_mut(&mut y, [rows, outputs])).unwrap();
    y
}

fn backward<T: Float>((rows, inputs, outputs): Sizes, x: &[T], weight: &[T], dy: &[T]) -> (Vec<T>, Vec<T>) {
    let queue = Queue::cpu();
    let (mut dx, mut dweight) = (unwritten(rows * inputs), vec![T::ZERO; outputs * inputs]);
    let (x, weight) = (view(x, [rows, inputs]), view(weight, [outputs, inputs]));
    let dy = view(dy, [rows, outputs]);
    linear::backward_input(&queue, dy, weight, view_mut(&mut dx, [rows, inputs])).unwrap();
    linear::backward_weight(&queue, dy, x, view_mut(&mut dweight, [outputs, inputs])).unwrap();
    (dx, dweight)
}

/// Random sizes, and one row or one output beside many: products of a vector go another way.
fn many_sizes(seeded: &mut Seeded) -> Vec<Sizes> {
    let vectors = [(1, 40, 1500), (1, 1500, 40), (50, 1500, 1), (1, 700, 513), (1, 1, 1025)];
    let random = (0..30).map(|_| (seeded.extent(70), seeded.extent(130), seeded.extent(90)));
    vectors.into_iter().chain(random).collect()
}

#[test]
fn backward_is_the_derivative() {
    let mut seeded = Seeded::new(1);
    for sizes in many_sizes(&mut seeded) {
        let (rows, inputs, outputs) = sizes;
        let (x, weight) = (seeded.values(rows * inputs), seeded.values(outputs * inputs));
        let dy = seeded.values(rows * outputs);
        let (dx, dweight) = backward(sizes, &x, &weight, &dy);
        assert_gradient("dx", &x, &dx, |x| inner_product(&forward(sizes, x, &weight), &dy));
        assert_gradient("dW", &weight, &dweight, |weight| inner_product(&forward(sizes, &x, weight), &dy));
    }
}

fn agrees_with_candle<T: Float + WithDType>(tolerance: f64) {
    let mut seeded = Seeded::new(2);
    for sizes in many_sizes(&mut seeded) {
        let (rows, inputs, outputs) = sizes;
        let (x, weight) = (seeded.values::<T>(rows * inputs), seeded.values::<T>(outputs * inputs));
        let dy = seeded.values::<T>(rows * outputs);
        let x_variable = oracle::variable(&x, (rows, inputs));
        let weight_variable = oracle::variable(&weight, (outputs, inputs));
        let y = x_variable.matmul(&weight_variable.t().unwrap()).unwrap();
        let expected = oracle::gradients(&y, &dy, &[&x_variable, &weight_variable]);
        let (dx, dweight) = backward(sizes, &x, &weight, &dy);
        assert_close("y", &forward(sizes, &x, &weight), &oracle::elements(&y), tolerance);
        assert_close("dx", &dx, &expected[0], tolerance);
        assert_close("dW", &dweight, &expected[1], tolerance);
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
fn what_adds_adds() {
    let mut seeded = Seeded::new(3);
    let queue = Queue::cpu();
    for sizes in many_sizes(&mut seeded) {
        let (rows, inputs, outputs) = sizes;
        let (x, weight) = (seeded.values::<f64>(rows * inputs), seeded.values(outputs * inputs));
        let (dy, before) = (seeded.values(rows * outputs), seeded.values::<f64>(rows * outputs));
        let mut y = before.clone();
        linear::forward_add(
            &queue,
            view(&x, [rows, inputs]),
            view(&weight, [outputs, inputs]),
            view_mut(&mut y, [rows, outputs]),
        )
        .unwrap();
        let expected: Vec<f64> =
            forward(sizes, &x, &weight).iter().zip(&before).map(|(y, before)| y + before).collect();
        assert_close("y", &y, &expected, 1e-14);

        let once = backward(sizes, &x, &weight, &dy).1;
        let mut twice = once.clone();
        linear::backward_weight(
            &queue,
            view(&dy, [rows, outputs]),
            view(&x, [rows, inputs]),
            view_mut(&mut twice, [outputs, inputs]),
        )
        .unwrap();
        assert_close("dW", &twice, &once.iter().map(|once| 2.0 * once).collect::<Vec<_>>(), 1e-14);
    }
}
