//! Values, comparisons, and the two variants that most kernels have.

use half::bf16;
use tessera_cuda_emulator::Random;
use tessera_ops::{Element, Shape, View, ViewMut};

/// The element type of a kernel's variant.
pub trait Variant: bytemuck::Pod + PartialEq + std::fmt::Debug + 'static {
    /// How the kernel's name ends.
    const SUFFIX: &'static str;
    /// The largest ‖a − b‖/‖b‖ against fp64.
    const TOLERANCE: f64;
    /// Rounds to the nearest.
    fn round(value: f64) -> Self;
    fn widen(self) -> f64;
}

impl Variant for f32 {
    const SUFFIX: &'static str = "f32";
    const TOLERANCE: f64 = 1e-5;

    fn round(value: f64) -> Self {
        value as f32
    }

    fn widen(self) -> f64 {
        f64::from(self)
    }
}

impl Variant for bf16 {
    const SUFFIX: &'static str = "bf16";
    const TOLERANCE: f64 = 2e-2;

    fn round(value: f64) -> Self {
        bf16::from_f64(value)
    }

    fn widen(self) -> f64 {
        f64::from(self)
    }
}

/// Values of a variant, and the same ones in fp64 for the operator on the CPU.
pub struct Values<V> {
    pub rounded: Vec<V>,
    pub exact: Vec<f64>,
}

impl<V: Variant> Values<V> {
    pub fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let rounded: Vec<V> = values.into_iter().map(V::round).collect();
        let exact = widened(&rounded);
        Self { rounded, exact }
    }

    /// `count` values between −1 and 1.
    pub fn random(random: &mut Random, count: usize) -> Self {
        Self::of((0..count).map(|_| 2.0 * random.uniform() - 1.0).collect::<Vec<_>>())
    }
}

pub fn widened<V: Variant>(values: &[V]) -> Vec<f64> {
    values.iter().map(|&value| value.widen()).collect()
}

/// What a kernel must overwrite: a single value left shows in every comparison.
pub fn unwritten<V: Variant>(count: usize) -> Vec<V> {
    vec![V::round(f64::NAN); count]
}

pub fn below(random: &mut Random, bound: usize) -> usize {
    random.below(bound as u64) as usize
}

pub fn indices(random: &mut Random, count: usize, bound: usize) -> Vec<u32> {
    (0..count).map(|_| below(random, bound) as u32).collect()
}

/// `values` under a shape.
pub fn view<T: Element>(values: &[T], shape: impl Into<Shape>) -> View<'_> {
    View::of(values).reshape(shape).unwrap()
}

/// `values` under a shape, mutable.
pub fn view_mut<T: Element>(values: &mut [T], shape: impl Into<Shape>) -> ViewMut<'_> {
    ViewMut::of(values).reshape(shape).unwrap()
}

/// ‖found − expected‖ / ‖expected‖; of values that are zero, ‖found‖.
pub fn distance<V: Variant>(found: &[V], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let squares =
        |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>().sqrt();
    let difference =
        squares(&mut found.iter().zip(expected).map(|(found, expected)| found.widen() - expected));
    let size = squares(&mut expected.iter().copied());
    if size > 0.0 { difference / size } else { difference }
}

/// Asserts that a result is as close as its variant allows, as a whole and at each element: one that is wrong by its own
/// size would not show among thousands. Values that should be zero may be off by a thousandth of that.
pub fn assert_close<V: Variant>(what: &str, found: &[V], expected: &[f64]) {
    let distance = distance(found, expected);
    assert!(distance <= V::TOLERANCE, "{what}, {}: off by {distance:e}", V::SUFFIX);
    let mean_square = expected.iter().map(|value| value * value).sum::<f64>() / expected.len() as f64;
    for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
        let difference = (found.widen() - expected).abs();
        let allowed = 4.0 * V::TOLERANCE * (mean_square.sqrt() + expected.abs() + 1e-3);
        assert!(
            difference <= allowed,
            "{what}, {}, element {index}: {found:?}, expected {expected}",
            V::SUFFIX
        );
    }
}
