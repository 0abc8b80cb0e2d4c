//! Rounding as IEEE 754 and PTX define it: the directed modes, fused multiply-add, and narrow formats.
//!
//! Everything goes through f64 with *rounding to odd*: if a sum is not exact in f64, the last bit of what is kept is
//! set. A second rounding, to a format with at least two bits less, then gives what one exact rounding would have
//! (Boldo and Melquiond, "Emulation of FMA and correctly rounded sums", 2008). It needs no fused instruction of the
//! processor, and loops over lanes stay vectors.

use half::{bf16, f16};

/// A direction of rounding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rounding {
    NearestEven,
    /// `.rna`, of `cvt` to tf32.
    NearestAway,
    Zero,
    Down,
    Up,
}

/// a + b rounded to odd.
pub(crate) fn add_to_odd(a: f64, b: f64) -> f64 {
    let sum = a + b;
    let from_b = sum - a;
    let error = (a - (sum - from_b)) + (b - from_b);
    let bits = sum.to_bits();
    // A NaN error (the sum is infinite or NaN) changes nothing.
    let inexact = error.abs() > 0.0;
    let toward_zero = (error > 0.0) != (sum > 0.0);
    let odd = if toward_zero { bits.wrapping_sub(1) } else { bits };
    // If the error points away from zero, the bits kept are the truncation already.
    f64::from_bits(if inexact { odd | 1 } else { bits })
}

/// a·b + c rounded once to f32: the product of two f32 is exact in f64.
pub(crate) fn fma_f32(a: f32, b: f32, c: f32) -> f32 {
    add_to_odd(f64::from(a) * f64::from(b), f64::from(c)) as f32
}

/// A binary floating-point format no wider than f32.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Format {
    /// Bits of the significand, the hidden one included.
    precision: i32,
    /// The exponents of the smallest normal number and of the largest number.
    least_exponent: i32,
    largest_exponent: i32,
}

pub(crate) const F32: Format = Format { precision: 24, least_exponent: -126, largest_exponent: 127 };
pub(crate) const TF32: Format = Format { precision: 11, least_exponent: -126, largest_exponent: 127 };
pub(crate) const F16: Format = Format { precision: 11, least_exponent: -14, largest_exponent: 15 };
pub(crate) const BF16: Format = Format { precision: 8, least_exponent: -126, largest_exponent: 127 };

impl Format {
    /// The number of this format that `value` rounds to, as an f64.
    pub fn round(self, value: f64, rounding: Rounding) -> f64 {
        if !value.is_finite() || value == 0.0 {
            return value;
        }
        let exponent = exponent(value).max(self.least_exponent);
        // One unit in the last place; scaling by a power of two is exact.
        let unit = power_of_two(exponent - self.precision + 1);
        let scaled = value / unit;
        let rounded = match rounding {
            Rounding::NearestEven => scaled.round_ties_even(),
            Rounding::NearestAway => scaled.round(),
            Rounding::Zero => scaled.trunc(),
            Rounding::Down => scaled.floor(),
            Rounding::Up => scaled.ceil(),
        } * unit;
        let largest = (2.0 - power_of_two(1 - self.precision)) * power_of_two(self.largest_exponent);
        if rounded.abs() <= largest {
            return rounded;
        }
        let to_infinity = match rounding {
            Rounding::NearestEven | Rounding::NearestAway => true,
            Rounding::Zero => false,
            Rounding::Down => value < 0.0,
            Rounding::Up => value > 0.0,
        };
        (if to_infinity { f64::INFINITY } else { largest }).copysign(value)
    }
}

/// The exponent of a finite number that is not 0; a subnormal f64 counts as the smallest normal one.
fn exponent(value: f64) -> i32 {
    ((value.to_bits() >> 52 & 0x7ff) as i32).max(1) - 1023
}

fn power_of_two(exponent: i32) -> f64 {
    f64::from_bits(((exponent + 1023).clamp(1, 2046) as u64) << 52)
}

/// `value` as f32 in a direction.
pub(crate) fn to_f32(value: f64, rounding: Rounding) -> f32 {
    match rounding {
        Rounding::NearestEven => value as f32,
        _ => F32.round(value, rounding) as f32,
    }
}

/// A 16-bit format.
pub(crate) trait Half: Copy {
    /// Its description.
    const FORMAT: Format;
    fn widen(self) -> f32;
    /// Nothing is lost: the value is of the format already.
    fn exactly(value: f64) -> Self;

    fn narrow(value: f64) -> Self {
        Self::exactly(Self::FORMAT.round(value, Rounding::NearestEven))
    }
}

impl Half for f16 {
    const FORMAT: Format = F16;
    fn widen(self) -> f32 {
        self.to_f32_const()
    }
    fn exactly(value: f64) -> Self {
        if value.is_nan() { Self::from_bits(0x7fff) } else { Self::from_f64_const(value) }
    }
}

impl Half for bf16 {
    const FORMAT: Format = BF16;
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
    fn exactly(value: f64) -> Self {
        bf16_from_f32(value as f32)
    }
}

/// The hot conversion: round to nearest even, NaN to 0x7fff as the hardware does.
pub(crate) fn bf16_from_f32(value: f32) -> bf16 {
    let bits = value.to_bits();
    let rounded = (bits.wrapping_add(0x7fff + (bits >> 16 & 1))) >> 16;
    bf16::from_bits(if value.is_nan() { 0x7fff } else { rounded as u16 })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::random::Random;

    #[test]
    fn fused_multiply_add_rounds_once() {
        let mut random = Random::new(3);
        for _ in 0..200_000 {
            let mut number = || f32::from_bits(random.bits() as u32);
            let (a, b, c) = (number(), number(), number());
            let (mine, exact) = (fma_f32(a, b, c), a.mul_add(b, c));
            assert!(mine == exact || mine.is_nan() && exact.is_nan(), "{a} {b} {c}: {mine} {exact}");
        }
    }

    #[test]
    fn directed_modes_enclose_the_value_by_neighbours() {
        let mut random = Random::new(4);
        for _ in 0..50_000 {
            let value = f64::from(f32::from_bits(random.bits() as u32)) * (1.0 + 1e-10);
            if !value.is_finite() || value.abs() > f64::from(f32::MAX) {
                continue;
            }
            let [down, up, zero, near] =
                [Rounding::Down, Rounding::Up, Rounding::Zero, Rounding::NearestEven]
                    .map(|mode| to_f32(value, mode));
            assert!(f64::from(down) <= value && value <= f64::from(up));
            assert!(down == up || down.next_up() == up, "{value}");
            assert!(zero.abs() <= near.abs() && (near == down || near == up));
        }
        assert_eq!(to_f32(1e300, Rounding::Zero), f32::MAX);
        assert_eq!(to_f32(-1e300, Rounding::Up), -f32::MAX);
    }

    #[test]
    fn every_f16_and_bf16_survives_and_ties_go_to_even() {
        for bits in 0..=u16::MAX {
            let (narrow, brain) = (f16::from_bits(bits), bf16::from_bits(bits));
            if !narrow.is_nan() {
                assert_eq!(f16::narrow(f64::from(narrow.widen())).to_bits(), bits);
            }
            if !brain.is_nan() {
                assert_eq!(bf16::narrow(f64::from(brain.widen())).to_bits(), bits);
            }
        }
        assert_eq!(bf16_from_f32(1.0 + 1.0 / 256.0).to_f32(), 1.0);
        assert_eq!(bf16_from_f32(1.0 + 3.0 / 256.0).to_f32(), 1.0 + 4.0 / 256.0);
        assert_eq!(f16::narrow(65520.0), f16::INFINITY);
        assert_eq!(TF32.round(1.0 + 1.0 / 2048.0, Rounding::NearestAway), 1.0 + 1.0 / 1024.0);
    }
}
