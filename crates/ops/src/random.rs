//! Random initial weights, keyed on (seed, element): each rank fills its own part of a tensor and all parts together
//! are the tensor that one rank would have made. They are made on the host, whatever device trains.

use rayon::prelude::*;

use crate::buffer::ViewMut;
use crate::check::for_float;
use crate::error::OpError;

/// Elements filled by one task.
const PIECE: usize = 1 << 14;

/// Fills `x` with samples of the normal distribution of mean 0 and deviation `deviation`; its element i is element
/// `first + i` of the stream that `seed` names.
pub fn normal(seed: u64, first: u64, deviation: f64, mut x: ViewMut<'_>) -> Result<(), OpError> {
    for_float!("random::normal", x, F => {
        x.as_slice_mut::<F>()?.par_chunks_mut(PIECE).enumerate().for_each(|(piece, x)| {
            for (index, x) in x.iter_mut().enumerate() {
                let index = first.wrapping_add((piece * PIECE + index) as u64);
                *x = (sample(seed, index) * deviation) as F;
            }
        });
        Ok(())
    })
}

/// One standard normal sample by the Box–Muller transform of two uniforms.
fn sample(seed: u64, index: u64) -> f64 {
    let uniform = |salt: u64| (mix(mix(seed ^ salt).wrapping_add(index)) >> 11) as f64 / (1_u64 << 53) as f64;
    // 1 − u lies in (0, 1], where the logarithm is finite.
    let radius = (-2.0 * (1.0 - uniform(0x5851_f42d_4c95_7f2d)).ln()).sqrt();
    radius * (std::f64::consts::TAU * uniform(0x1405_7b7e_f767_814f)).cos()
}

/// The finaliser of SplitMix64 (Steele, Lea and Flood 2014): every input bit reaches every output bit.
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn parts_make_the_whole_and_moments_are_right() {
        let mut whole = vec![0.0_f32; 100_000];
        normal(17, 0, 0.02, ViewMut::of(&mut whole)).unwrap();
        let mut part = vec![0.0_f32; 1000];
        normal(17, 54_321, 0.02, ViewMut::of(&mut part)).unwrap();
        assert_eq!(whole[54_321..55_321], part);
        let mean = whole.iter().map(|&x| f64::from(x)).sum::<f64>() / 1e5;
        let deviation = (whole.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / 1e5).sqrt();
        assert!(mean.abs() < 2e-4 && (deviation - 0.02).abs() < 2e-4, "{mean} {deviation}");
    }
}
