//! How gradients travel between ranks.

use half::bf16;
use tessera_ops::DType;

/// The type in which a rank's contribution to a sum leaves it. Sums are taken in fp32, in the order of the ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Wire {
    /// As it is.
    #[default]
    Fp32,
    /// Rounded to the nearest, ties to even: half of the bytes. Every contribution is, also that of the rank which takes the
    /// sum, so that it counts like the others.
    Bf16,
}

impl Wire {
    /// Bytes of an element.
    pub fn size(self) -> usize {
        match self {
            Self::Fp32 => DType::F32.size(),
            Self::Bf16 => size_of::<bf16>(),
        }
    }

    /// What arrives of a value.
    pub fn round(self, value: f32) -> f32 {
        match self {
            Self::Fp32 => value,
            Self::Bf16 => bf16::from_f32(value).to_f32(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_rounded_to_even() {
        // bf16 has eight bits of a fraction's 24.
        let step = 2_f32.powi(-7);
        let pairs = [(1.0 + step / 2.0, 1.0), (1.0 + 1.5 * step, 1.0 + 2.0 * step), (-0.0, -0.0)];
        for (value, expected) in pairs {
            assert_eq!(Wire::Bf16.round(value).to_bits(), f32::to_bits(expected), "{value}");
            assert_eq!(Wire::Fp32.round(value).to_bits(), value.to_bits());
        }
        assert!(Wire::Bf16.round(f32::NAN).is_nan() && Wire::Bf16.round(f32::MAX).is_infinite());
    }
}
