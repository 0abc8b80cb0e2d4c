//! Vector code without intrinsics: loops are compiled once for each instruction set (SSE2, AVX2, AVX-512) and the
//! best one that the processor has is chosen at run time.
//!
//! A reduction keeps [`LANES`] partial sums in fixed lanes, so that the compiler may vectorise it and the result is
//! the same for each instruction set with fused multiply-add.

use crate::dtype::Float;

/// Partial sums of a reduction.
pub(crate) const LANES: usize = 16;

/// Runs `body`, compiled for the best instruction set that this processor has. `body` and what it calls must be
/// `#[inline(always)]` (or a closure) to be compiled along.
#[inline(always)]
pub(crate) fn vectorised<R>(body: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(body)
}

/// Σ aᵢ·bᵢ.
#[inline(always)]
pub(crate) fn dot<T: Float>(a: &[T], b: &[T]) -> T {
    let mut lanes = [T::ZERO; LANES];
    let (a_chunks, a_rest) = a.as_chunks::<LANES>();
    let (b_chunks, b_rest) = b.as_chunks::<LANES>();
    for (a, b) in a_chunks.iter().zip(b_chunks) {
        for lane in 0..LANES {
            lanes[lane] = a[lane].mul_add(b[lane], lanes[lane]);
        }
    }
    for (lane, (&a, &b)) in lanes.iter_mut().zip(a_rest.iter().zip(b_rest)) {
        *lane = a.mul_add(b, *lane);
    }
    fold(lanes)
}

/// Σ aᵢ.
#[inline(always)]
pub(crate) fn sum<T: Float>(a: &[T]) -> T {
    let mut lanes = [T::ZERO; LANES];
    let (chunks, rest) = a.as_chunks::<LANES>();
    for chunk in chunks {
        for lane in 0..LANES {
            lanes[lane] += chunk[lane];
        }
    }
    for (lane, &a) in lanes.iter_mut().zip(rest) {
        *lane += a;
    }
    fold(lanes)
}

/// The largest aᵢ; NaN elements are passed over.
#[inline(always)]
pub(crate) fn maximum<T: Float>(a: &[T]) -> T {
    let mut lanes = [T::NEGATIVE_INFINITY; LANES];
    let (chunks, rest) = a.as_chunks::<LANES>();
    for chunk in chunks {
        for lane in 0..LANES {
            lanes[lane] = if chunk[lane] > lanes[lane] { chunk[lane] } else { lanes[lane] };
        }
    }
    for (lane, &a) in lanes.iter_mut().zip(rest) {
        *lane = if a > *lane { a } else { *lane };
    }
    lanes.into_iter().fold(T::NEGATIVE_INFINITY, |best, lane| if lane > best { lane } else { best })
}

/// Adds the lanes in halves.
#[inline(always)]
fn fold<T: Float>(mut lanes: [T; LANES]) -> T {
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] += lanes[lane + width];
        }
        width /= 2;
    }
    lanes[0]
}
