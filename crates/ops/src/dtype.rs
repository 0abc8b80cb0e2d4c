//! The element types that buffers hold, and the two kinds of arithmetic that the CPU operators are written for.

use std::fmt;

use bytemuck::Pod;

/// The type of a buffer's elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DType {
    /// IEEE single precision: master weights, gradients, moments, and all that is in memory on the CPU.
    F32,
    /// The upper half of a single-precision number: what mixed precision computes with. Sums of it are fp32. The CPU has it only
    /// inside of products.
    BF16,
    /// IEEE double precision: statistics of a step, and operators under finite differences.
    F64,
    /// Token ids, positions, indices.
    U32,
    /// Labels; −100 marks a position without loss.
    I32,
}

impl DType {
    /// The size of one element in bytes.
    pub fn size(self) -> usize {
        match self {
            DType::BF16 => 2,
            DType::F32 | DType::U32 | DType::I32 => 4,
            DType::F64 => 8,
        }
    }
}

impl DType {
    /// The name, as in Rust.
    pub fn name(self) -> &'static str {
        match self {
            DType::BF16 => "bf16",
            DType::F32 => "f32",
            DType::F64 => "f64",
            DType::U32 => "u32",
            DType::I32 => "i32",
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// A Rust type that a view can be read as.
pub trait Element: Pod + Send + Sync + 'static {
    /// The dtype whose elements have this type.
    const DTYPE: DType;
}

impl Element for f32 {
    const DTYPE: DType = DType::F32;
}

impl Element for half::bf16 {
    const DTYPE: DType = DType::BF16;
}

impl Element for f64 {
    const DTYPE: DType = DType::F64;
}

impl Element for u32 {
    const DTYPE: DType = DType::U32;
}

impl Element for i32 {
    const DTYPE: DType = DType::I32;
}

/// What the CPU operators need of a floating-point type. They are written once and run in fp32 for training and in
/// fp64 under finite differences, so that the code which trains is the code which was checked.
pub trait Float:
    Element
    + Default
    + PartialOrd
    + std::ops::Add<Output = Self>
    + std::ops::Sub<Output = Self>
    + std::ops::Mul<Output = Self>
    + std::ops::Div<Output = Self>
    + std::ops::Neg<Output = Self>
    + std::ops::AddAssign
    + std::ops::SubAssign
    + std::ops::MulAssign
{
    /// Zero.
    const ZERO: Self;
    /// One.
    const ONE: Self;
    /// Below every finite value.
    const NEGATIVE_INFINITY: Self;

    /// Rounds from fp64.
    fn from_f64(value: f64) -> Self;
    /// Widens to fp64.
    fn to_f64(self) -> f64;
    /// The square root.
    fn sqrt(self) -> Self;
    /// The natural logarithm.
    fn ln(self) -> Self;
    /// e to the power of `self`. Written without branches or calls for fp32, so that a loop over it vectorises; NaN
    /// stays NaN.
    fn exp(self) -> Self;
    /// `self * factor + addend`, rounded once where the processor has it.
    fn mul_add(self, factor: Self, addend: Self) -> Self;
}

impl Float for f32 {
    const ZERO: Self = 0.0;
    const ONE: Self = 1.0;
    const NEGATIVE_INFINITY: Self = f32::NEG_INFINITY;

    #[inline(always)]
    fn from_f64(value: f64) -> Self {
        value as f32
    }

    #[inline(always)]
    fn to_f64(self) -> f64 {
        f64::from(self)
    }

    #[inline(always)]
    fn sqrt(self) -> Self {
        f32::sqrt(self)
    }

    #[inline(always)]
    fn ln(self) -> Self {
        f32::ln(self)
    }

    /// exp(x) = 2ⁿ·exp(r), n = round(x/ln 2), |r| ≤ ln 2 / 2, with a polynomial of degree 6 for exp(r) (coefficients
    /// of Cephes `expf`). Relative error below 2e-7; arguments are clamped to the range of normal numbers.
    #[inline(always)]
    fn exp(self) -> Self {
        const SHIFT: f32 = 12_582_912.0; // 1.5·2²³: adding it leaves the rounded integer in the low mantissa bits
        const LN_2_HIGH: f32 = 0.693_359_4;
        const LN_2_LOW: f32 = -2.121_944_4e-4;
        // Comparisons, not `max`/`min`: those would turn a NaN into a number.
        let x = if self < -87.0 { -87.0 } else { self };
        let x = if x > 88.0 { 88.0 } else { x };
        let shifted = x * std::f32::consts::LOG2_E + SHIFT;
        let n = shifted - SHIFT;
        let r = x - n * LN_2_HIGH - n * LN_2_LOW;
        let mut p = 1.987_569_1e-4;
        for coefficient in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_6e-1, 0.5] {
            p = p * r + coefficient;
        }
        let p = p * r * r + r + 1.0;
        let scale = f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23));
        p * scale
    }

    #[inline(always)]
    fn mul_add(self, factor: Self, addend: Self) -> Self {
        f32::mul_add(self, factor, addend)
    }
}

impl Float for f64 {
    const ZERO: Self = 0.0;
    const ONE: Self = 1.0;
    const NEGATIVE_INFINITY: Self = f64::NEG_INFINITY;

    #[inline(always)]
    fn from_f64(value: f64) -> Self {
        value
    }

    #[inline(always)]
    fn to_f64(self) -> f64 {
        self
    }

    #[inline(always)]
    fn sqrt(self) -> Self {
        f64::sqrt(self)
    }

    #[inline(always)]
    fn ln(self) -> Self {
        f64::ln(self)
    }

    #[inline(always)]
    fn exp(self) -> Self {
        f64::exp(self)
    }

    #[inline(always)]
    fn mul_add(self, factor: Self, addend: Self) -> Self {
        f64::mul_add(self, factor, addend)
    }
}

#[cfg(test)]
mod tests {
    use super::Float;

    #[test]
    fn exp_is_close_to_the_library_function() {
        let mut worst = 0.0_f64;
        for index in -860_000..=880_000 {
            let x = index as f32 * 1e-4;
            let expected = f64::from(x).exp();
            worst = worst.max((f64::from(Float::exp(x)) - expected).abs() / expected);
        }
        assert!(worst < 2e-7, "{worst:e}");
        assert!(Float::exp(f32::NAN).is_nan());
        assert!(Float::exp(f32::NEG_INFINITY) < 1e-37);
    }
}
