//! Seeded values, comparisons and finite differences.

use tessera_ops::{Element, Float, Shape, View, ViewMut};

/// SplitMix64: the same values in every run.
pub struct Seeded(u64);

impl Seeded {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let value = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        value ^ (value >> 31)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    /// An extent of 1 to `largest`; 1 and `largest` themselves come often.
    pub fn extent(&mut self, largest: usize) -> usize {
        match self.below(6) {
            0 => 1,
            1 => largest,
            _ => 1 + self.below(largest),
        }
    }

    /// `count` token ids below `bound`.
    pub fn ids(&mut self, count: usize, bound: usize) -> Vec<u32> {
        (0..count).map(|_| self.below(bound) as u32).collect()
    }

    /// `count` values between −1 and 1.
    pub fn values<T: Float>(&mut self, count: usize) -> Vec<T> {
        (0..count).map(|_| T::from_f64((self.next() >> 11) as f64 / (1_u64 << 52) as f64 - 1.0)).collect()
    }
}

/// `values` times `factor`.
pub fn scaled<T: Float>(values: &[T], factor: f64) -> Vec<T> {
    values.iter().map(|&value| value * T::from_f64(factor)).collect()
}

/// Σ aᵢ in fp64.
pub fn sum<T: Float>(values: &[T]) -> f64 {
    values.iter().map(|value| value.to_f64()).sum()
}

/// `values` under a shape.
pub fn view<T: Element>(values: &[T], shape: impl Into<Shape>) -> View<'_> {
    View::of(values).reshape(shape).unwrap()
}

/// `values` under a shape, mutable.
pub fn view_mut<T: Element>(values: &mut [T], shape: impl Into<Shape>) -> ViewMut<'_> {
    ViewMut::of(values).reshape(shape).unwrap()
}

/// Values that an operator must overwrite: a single one left shows in every comparison.
pub fn unwritten<T: Float>(count: usize) -> Vec<T> {
    vec![T::from_f64(f64::NAN); count]
}

/// Σ aᵢ·bᵢ in fp64.
pub fn inner_product(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// The bits, which tell −0 from 0 and NaN from NaN.
pub fn bits<T: Float>(values: &[T]) -> Vec<u64> {
    values.iter().map(|value| value.to_f64().to_bits()).collect()
}

/// Asserts ‖found − expected‖ ≤ tolerance·‖expected‖; a tensor that is zero may be off by 1e-3 of the tolerance.
pub fn assert_close<T: Float>(what: &str, found: &[T], expected: &[T], tolerance: f64) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let (mut difference, mut size) = (0.0, 0.0);
    for (found, expected) in found.iter().zip(expected) {
        difference += (found.to_f64() - expected.to_f64()).powi(2);
        size += expected.to_f64().powi(2);
    }
    let (difference, size) = (f64::sqrt(difference), f64::sqrt(size));
    let within = difference <= tolerance * (size + 1e-3);
    assert!(within, "{what}: off by {difference:e} of {size:e}");
}

/// Asserts that `gradient` is the derivative of `loss` at `x`: central differences of fourth order at up to 40
/// elements.
pub fn assert_gradient(what: &str, x: &[f64], gradient: &[f64], loss: impl Fn(&[f64]) -> f64) {
    const STEP: f64 = 1e-3;
    assert_eq!(gradient.len(), x.len(), "{what}");
    let mut seeded = Seeded::new(x.len() as u64);
    let elements: Vec<usize> =
        if x.len() <= 40 { (0..x.len()).collect() } else { (0..40).map(|_| seeded.below(x.len())).collect() };
    let mut moved = x.to_vec();
    let mut loss_at = |element: usize, steps: f64| {
        moved[element] = x[element] + steps * STEP;
        let loss = loss(&moved);
        moved[element] = x[element];
        loss
    };
    let slopes: Vec<f64> = elements
        .iter()
        .map(|&element| {
            let near = loss_at(element, 1.0) - loss_at(element, -1.0);
            let far = loss_at(element, 2.0) - loss_at(element, -2.0);
            (8.0 * near - far) / (12.0 * STEP)
        })
        .collect();
    let gradient: Vec<f64> = elements.iter().map(|&element| gradient[element]).collect();
    assert_close(what, &gradient, &slopes, 1e-8);
}
