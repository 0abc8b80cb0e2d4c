//! The micro-kernel of AVX-512 with BF16: 8×48 elements in 24 registers, from half a strip on the left and up to three on the
//! right. `vdpbf16ps` adds both products of a pair to a sum; a pair of the left is broadcast as the instruction reads it.

use std::arch::x86_64::{
    __m512, __m512bh, __m512i, _mm512_dpbf16_ps, _mm512_fmadd_ps, _mm512_load_si512, _mm512_mask_storeu_ps,
    _mm512_maskz_loadu_ps, _mm512_mul_ps, _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps,
};
use std::mem::transmute;

use super::kernel::Block;
use super::pack::LINES;

/// Rows of one pass.
const ROWS: usize = LINES / 2;
/// Pairs of a tile.
const PAIRS: usize = 16;

/// Computes a block of up to one strip by three.
///
/// # Safety
/// The processor has AVX-512 F and BF16, and what [`Block`] asks for.
#[allow(unsafe_code)]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(super) unsafe fn multiply(block: &Block<'_>) {
    for first in (0..block.rows).step_by(ROWS) {
        // SAFETY: by the caller's promise.
        unsafe {
            match block.columns.div_ceil(LINES) {
                1 => rows::<1>(block, first),
                2 => rows::<2>(block, first),
                _ => rows::<3>(block, first),
            }
        }
    }
}

/// The rows `first..first + 8` of a block of `STRIPS` strips on the right.
#[allow(unsafe_code)]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
#[inline]
unsafe fn rows<const STRIPS: usize>(block: &Block<'_>, first: usize) {
    let mut sums = [[_mm512_setzero_ps(); STRIPS]; ROWS];
    let left = block.left.as_ptr().cast::<i32>();
    let right = block.right.as_ptr().cast::<i32>();
    for tile in 0..block.tiles {
        for pair in 0..PAIRS {
            let mut columns = [_mm512_setzero_ps(); STRIPS];
            for (strip, columns) in columns.iter_mut().enumerate() {
                let place = (strip * block.strip + tile) * LINES * PAIRS + pair * LINES;
                // SAFETY: a pair of a tile that the caller says is there.
                *columns =
                    unsafe { transmute::<__m512i, __m512>(_mm512_load_si512(right.add(place).cast())) };
            }
            for (row, sums) in sums.iter_mut().enumerate() {
                let place = tile * LINES * PAIRS + (first + row) * PAIRS + pair;
                // SAFETY: as above.
                let pair = unsafe { _mm512_set1_epi32(*left.add(place)) };
                for (sum, &columns) in sums.iter_mut().zip(&columns) {
                    // SAFETY: vectors of pairs are as good as vectors of bf16.
                    let (pair, columns) = unsafe {
                        (transmute::<__m512i, __m512bh>(pair), transmute::<__m512, __m512bh>(columns))
                    };
                    *sum = _mm512_dpbf16_ps(*sum, pair, columns);
                }
            }
        }
    }
    let scale = _mm512_set1_ps(block.scale);
    for (row, sums) in (first..block.rows).zip(&sums) {
        for (strip, &sum) in sums.iter().enumerate() {
            let width = (block.columns - strip * LINES).min(LINES);
            let mask = ((1_u32 << width) - 1) as u16;
            // SAFETY: the elements of the mask lie in the block's row.
            unsafe {
                let c = block.c.add(row * block.stride + strip * LINES);
                let sum = match block.adds {
                    true => _mm512_fmadd_ps(sum, scale, _mm512_maskz_loadu_ps(mask, c)),
                    false => _mm512_mul_ps(sum, scale),
                };
                _mm512_mask_storeu_ps(c, mask, sum);
            }
        }
    }
}
