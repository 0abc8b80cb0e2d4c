//! Values, their way to the GPU and back, comparisons, and the two variants that most operators have.

use std::sync::{Arc, OnceLock};

use half::bf16;
use tessera_ops::cuda::Gpu;
use tessera_ops::{Buffer, Element, Queue, Shape, View, ViewMut, fill};

/// The element type of an operator's variant.
pub trait Variant: Element + PartialEq + std::fmt::Debug {
    /// The largest ‖a − b‖/‖b‖ against fp64.
    const TOLERANCE: f64;
    /// Rounds to the nearest.
    fn round(value: f64) -> Self;
    fn widen(self) -> f64;
}

impl Variant for f32 {
    const TOLERANCE: f64 = 1e-5;

    fn round(value: f64) -> Self {
        value as f32
    }

    fn widen(self) -> f64 {
        f64::from(self)
    }
}

impl Variant for bf16 {
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

/// What an operator must overwrite: a single value left shows in every comparison.
pub fn unwritten<V: Variant>(count: usize) -> Vec<V> {
    vec![V::round(f64::NAN); count]
}

/// SplitMix64.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let value = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        value ^ (value >> 31)
    }

    /// From 0 to below 1.
    pub fn uniform(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    pub fn indices(&mut self, count: usize, bound: usize) -> Vec<u32> {
        (0..count).map(|_| self.below(bound) as u32).collect()
    }

    /// A number of rows: as [`Random::extent`], or none.
    pub fn rows(&mut self, largest: usize) -> usize {
        if self.below(8) == 0 { 0 } else { self.extent(largest) }
    }

    /// An extent of 1 to `largest`; 1, `largest`, and multiples of 8 (which take 16-byte accesses) come often.
    pub fn extent(&mut self, largest: usize) -> usize {
        let any = 1 + self.below(largest);
        match self.below(5) {
            0 => 1,
            1 => largest,
            2 | 3 => any.next_multiple_of(8).min(largest),
            _ => any,
        }
    }
}

/// Where stretches of these lengths begin, one behind the other, and where the last ends.
pub fn starts(lengths: &[usize]) -> Vec<u32> {
    let ends = lengths.iter().scan(0, |end, &length| {
        *end += length as u32;
        Some(*end)
    });
    std::iter::once(0).chain(ends).collect()
}

/// A stream of its own on the first GPU.
pub fn stream() -> Queue {
    static GPU: OnceLock<Arc<Gpu>> = OnceLock::new();
    Queue::cuda(GPU.get_or_init(|| Gpu::open(0).unwrap())).unwrap()
}

/// A copy of `values` on the GPU.
pub fn upload<T: Element>(queue: &Queue, values: &[T]) -> Buffer {
    let mut buffer = Buffer::on(queue, size_of_val(values)).unwrap();
    fill::copy(queue, View::of(values), buffer.view_mut(T::DTYPE)).unwrap();
    buffer
}

/// As [`upload`], but in some cases one element behind a place where wide accesses could begin.
pub fn scattered<T: Element>(queue: &Queue, random: &mut Random, values: &[T]) -> Buffer {
    let in_front = usize::from(random.below(8) == 0);
    let mut buffer = Buffer::on(queue, in_front * size_of::<T>() + size_of_val(values)).unwrap();
    fill::copy(queue, View::of(values), buffer.view_mut(T::DTYPE).range(in_front, values.len()).unwrap())
        .unwrap();
    buffer
}

/// What is in a buffer of the GPU, when all that was issued has run.
pub fn download<T: Element>(queue: &Queue, buffer: &Buffer) -> Vec<T> {
    download_last(queue, buffer, buffer.len() / size_of::<T>())
}

/// The last `count` elements of what [`download`] gives: all but what [`scattered`] left in front.
pub fn download_last<T: Element>(queue: &Queue, buffer: &Buffer, count: usize) -> Vec<T> {
    let mut values = vec![T::zeroed(); count];
    fill::copy(queue, on::<T>(buffer, [count]), ViewMut::of(&mut values)).unwrap();
    queue.synchronize().unwrap();
    values
}

/// A buffer of the GPU for `count` values, none of them written.
pub fn unwritten_on<V: Variant>(queue: &Queue, count: usize) -> Buffer {
    upload(queue, &unwritten::<V>(count))
}

/// A buffer under a shape, without what [`scattered`] left in front.
pub fn on<T: Element>(buffer: &Buffer, shape: impl Into<Shape>) -> View<'_> {
    let (shape, all) = (shape.into(), buffer.view(T::DTYPE));
    let elements = shape.elements();
    all.range(all.shape().elements() - elements, elements).unwrap().reshape(shape).unwrap()
}

/// As [`on`], mutable.
pub fn on_mut<T: Element>(buffer: &mut Buffer, shape: impl Into<Shape>) -> ViewMut<'_> {
    let (shape, all) = (shape.into(), buffer.view_mut(T::DTYPE));
    let elements = shape.elements();
    let in_front = all.shape().elements() - elements;
    all.range(in_front, elements).unwrap().reshape(shape).unwrap()
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
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>().sqrt();
    let difference = norm(&mut found.iter().zip(expected).map(|(found, expected)| found.widen() - expected));
    let size = norm(&mut expected.iter().copied());
    if size > 0.0 { difference / size } else { difference }
}

/// Asserts that a result is as close as its variant allows, as a whole and at each element: one that is wrong by its own
/// size would not show among thousands. Values that should be zero may be off by a thousandth of that.
pub fn assert_close<V: Variant>(what: &str, found: &[V], expected: &[f64]) {
    let (name, distance) = (V::DTYPE, distance(found, expected));
    assert!(distance <= V::TOLERANCE, "{what}, {name}: off by {distance:e}");
    let mean_square = expected.iter().map(|value| value * value).sum::<f64>() / expected.len() as f64;
    for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
        let difference = (found.widen() - expected).abs();
        let allowed = 4.0 * V::TOLERANCE * (mean_square.sqrt() + expected.abs() + 1e-3);
        assert!(difference <= allowed, "{what}, {name}, element {index}: {found:?}, expected {expected}");
    }
}

/// Asserts that what the GPU has in a buffer is as close as its variant allows.
pub fn assert_on_gpu<V: Variant>(queue: &Queue, what: &str, found: &Buffer, expected: &[f64]) {
    assert_close(what, &download_last::<V>(queue, found, expected.len()), expected);
}

/// Asserts that an operator refused its arguments, in these words.
pub fn refused<T>(result: Result<T, tessera_ops::OpError>, expected: &str) {
    let error = result.err().map(|error| error.to_string()).unwrap_or_default();
    assert!(error.contains(expected), "expected '{expected}' in '{error}'");
}
