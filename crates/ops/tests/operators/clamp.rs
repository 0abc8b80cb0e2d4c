//! Keeping values within bounds.

use tessera_ops::{Float, Queue, clamp};

use crate::support::{Seeded, assert_gradient, bits, inner_product, scaled, view, view_mut};

/// The clamped values and the words of what was inside.
fn forward<T: Float>(rows: usize, x: &[T], bound: f64) -> (Vec<T>, Vec<u32>) {
    let width = x.len() / rows;
    let words = clamp::words(width);
    let (mut x, mut inside) = (x.to_vec(), vec![u32::MAX; rows * words]);
    let x_view = view_mut(&mut x, [rows, width]);
    clamp::forward(&Queue::cpu(), x_view, bound, view_mut(&mut inside, [rows, words])).unwrap();
    (x, inside)
}

fn backward<T: Float>(rows: usize, dy: &[T], inside: &[u32]) -> Vec<T> {
    let width = dy.len() / rows;
    let mut dx = dy.to_vec();
    let inside = view(inside, [rows, clamp::words(width)]);
    clamp::backward(&Queue::cpu(), view_mut(&mut dx, [rows, width]), inside).unwrap();
    dx
}

#[test]
fn backward_is_the_derivative() {
    let mut seeded = Seeded::new(1);
    for _ in 0..30 {
        let (rows, width) = (seeded.extent(35), seeded.extent(140));
        // Nothing as near to a bound as the differences reach.
        let x: Vec<f64> = scaled(&seeded.values::<f64>(rows * width), 2.0)
            .into_iter()
            .map(|x| if (x.abs() - 1.0).abs() < 0.01 { 0.5 } else { x })
            .collect();
        let dy = seeded.values(rows * width);
        let dx = backward(rows, &dy, &forward(rows, &x, 1.0).1);
        assert_gradient("dx", &x, &dx, |x| inner_product(&forward(rows, x, 1.0).0, &dy));
    }
}

fn agrees_with_the_library<T: Float>(clamped: impl Fn(T) -> T) {
    let mut seeded = Seeded::new(2);
    for _ in 0..60 {
        let (rows, width) = (seeded.extent(40), seeded.extent(100));
        let mut x = scaled(&seeded.values::<T>(rows * width), 12.0);
        for special in [8.0, -8.0, f64::INFINITY, f64::NEG_INFINITY, -0.0] {
            let element = seeded.below(x.len());
            x[element] = T::from_f64(special);
        }
        let dy = seeded.values::<T>(x.len());
        let (y, inside) = forward(rows, &x, 8.0);
        assert_eq!(bits(&y), bits(&x.iter().map(|&x| clamped(x)).collect::<Vec<_>>()));
        let expected: Vec<T> =
            x.iter().zip(&dy).map(|(x, &dy)| if x.to_f64().abs() <= 8.0 { dy } else { T::ZERO }).collect();
        assert_eq!(bits(&backward(rows, &dy, &inside)), bits(&expected));
    }
}

#[test]
fn agrees_with_the_library_in_fp32() {
    agrees_with_the_library(|x: f32| x.clamp(-8.0, 8.0));
}

#[test]
fn agrees_with_the_library_in_fp64() {
    agrees_with_the_library(|x: f64| x.clamp(-8.0, 8.0));
}

#[test]
fn bits_stand_for_columns() {
    let mut x = [0.0_f32; 70];
    (x[0], x[31], x[32], x[69]) = (2.0, -2.0, 2.0, -2.0);
    let (_, inside) = forward(2, &[x, [0.0; 70]].concat(), 1.0);
    assert_eq!(inside, [!(1 | 1 << 31), !1, 0b01_1111, u32::MAX, u32::MAX, 0b11_1111]);
}

#[test]
fn nan_stays_and_has_no_gradient() {
    let (y, inside) = forward(1, &[f32::NAN, 1.0], 8.0);
    assert!(y[0].is_nan());
    assert_eq!(backward(1, &[3.0_f32, 4.0], &inside), [0.0, 4.0]);
}
