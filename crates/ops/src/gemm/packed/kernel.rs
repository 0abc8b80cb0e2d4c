//! The micro-kernels, and the choice among them by what the processor has.

use super::pack::{LINES, Packing, Tile};
use super::portable;
#[cfg(target_arch = "x86_64")]
use super::{amx, avx2, avx512};
use crate::gemm::Factors;

/// A block of the output and the strips that it is the product of.
pub(super) struct Block<'a> {
    /// The first tile of the first strip of rows, and of columns. In each strip `tiles` follow.
    pub left: &'a [Tile],
    pub right: &'a [Tile],
    /// Tiles from the beginning of a strip to that of the next, of either side.
    pub strip: usize,
    /// Tiles along the inner dimension, at least one.
    pub tiles: usize,
    /// The block's first element; its rows are `stride` elements apart.
    pub c: *mut f32,
    pub stride: usize,
    pub rows: usize,
    pub columns: usize,
    /// c = scale·product, or c += scale·product.
    pub scale: f32,
    pub adds: bool,
}

impl Block<'_> {
    /// Writes `sums`, rows of `width`, to the output.
    ///
    /// # Safety
    /// `c` has `rows` rows of `columns` elements that nobody else uses.
    #[allow(unsafe_code)]
    #[inline(always)]
    pub(super) unsafe fn store(&self, sums: &[f32], width: usize) {
        for (row, sums) in sums.chunks_exact(width).take(self.rows).enumerate() {
            // SAFETY: by the caller's promise.
            let c = unsafe { std::slice::from_raw_parts_mut(self.c.add(row * self.stride), self.columns) };
            for (c, sum) in c.iter_mut().zip(sums) {
                let product = self.scale * sum;
                *c = if self.adds { *c + product } else { product };
            }
        }
    }
}

/// Whether the processor has `vdpbf16ps` and what packing needs.
#[cfg(target_arch = "x86_64")]
pub(super) fn has_avx512() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512bf16")
}

/// Whether the processor has AVX2 and multiplies and adds in one instruction.
#[cfg(target_arch = "x86_64")]
fn has_avx2() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")
}

/// A micro-kernel.
#[derive(Debug, Clone, Copy)]
pub(in crate::gemm) enum Kernel {
    #[cfg(target_arch = "x86_64")]
    Amx,
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// In fp32, of factors that are rounded to bf16 or not.
    #[cfg(target_arch = "x86_64")]
    Avx2 {
        rounded: bool,
    },
    Portable,
}

impl Kernel {
    /// All that run on this processor, of those for equal factors the fastest first.
    pub(super) fn available() -> impl Iterator<Item = Self> {
        #[cfg(target_arch = "x86_64")]
        let special = [
            amx::is_available().then_some(Self::Amx),
            has_avx512().then_some(Self::Avx512),
            has_avx2().then_some(Self::Avx2 { rounded: true }),
            has_avx2().then_some(Self::Avx2 { rounded: false }),
        ];
        #[cfg(not(target_arch = "x86_64"))]
        let special: [Option<Self>; 0] = [];
        special.into_iter().flatten().chain([Self::Portable])
    }

    /// The fastest for such factors, unless the library is faster.
    pub(in crate::gemm) fn best(factors: Factors) -> Option<Self> {
        #[cfg(target_arch = "x86_64")]
        if factors == Factors::Exact && is_x86_feature_detected!("avx512f") {
            return None;
        }
        Self::available().find(|kernel| kernel.factors() == factors)
    }

    /// How it takes its factors.
    pub(super) fn factors(self) -> Factors {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 { rounded: false } => Factors::Exact,
            _ => Factors::Bf16,
        }
    }

    /// How its factors are packed.
    pub(super) fn packing(self) -> Packing {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Amx | Self::Avx512 => Packing::PairsByAvx512,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 { rounded } => Packing::Singles { rounded },
            Self::Portable => Packing::Pairs,
        }
    }

    /// Strips of rows and of columns of one call.
    pub(super) fn strips(self) -> (usize, usize) {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Amx => (2, 2),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 | Self::Avx2 { .. } => (1, 3),
            Self::Portable => (1, 1),
        }
    }

    /// Tiles along the inner dimension of one call: as many as the caches hold of its strips, L1 for
    /// AVX-512 and L2 for AMX, which reads that fast enough.
    pub(super) fn tiles(self) -> usize {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Amx => 16,
            _ => 8,
        }
    }

    /// Runs `body` on a thread made ready for [`Kernel::multiply`].
    pub(super) fn prepared(self, body: impl FnOnce()) {
        match self {
            // SAFETY: the kernel is only made where it is available, and `body` is a loop over blocks.
            #[cfg(target_arch = "x86_64")]
            #[allow(unsafe_code)]
            Self::Amx => unsafe { amx::with_tiles(body) },
            _ => body(),
        }
    }

    /// Computes one block, of at most [`Kernel::strips`].
    ///
    /// # Safety
    /// Inside [`Kernel::prepared`]. The strips have their tiles, those of missing lines too, and `c` its rows, which nobody
    /// else uses.
    #[allow(unsafe_code)]
    #[inline]
    pub(super) unsafe fn multiply(self, block: &Block<'_>) {
        debug_assert!(block.rows <= self.strips().0 * LINES && block.columns <= self.strips().1 * LINES);
        match self {
            // SAFETY: the kernel is only made where it is available; the rest is the caller's promise.
            #[cfg(target_arch = "x86_64")]
            Self::Amx => unsafe { amx::multiply(block) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => unsafe { avx512::multiply(block) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 { .. } => unsafe { avx2::multiply(block) },
            #[cfg(target_arch = "x86_64")]
            Self::Portable => pulp::Simd::vectorize(pulp::Scalar128b, portable::Multiply(block)),
            #[cfg(not(target_arch = "x86_64"))]
            Self::Portable => pulp::Arch::new().dispatch(portable::Multiply(block)),
        }
    }
}
