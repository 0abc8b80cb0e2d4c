//! The micro-kernel of AVX2: 6×16 elements in twelve registers, from six lines of a strip on the left and one strip on the right.
//! An element of the left is broadcast and multiplied with two vectors of the right: eight loads for twelve instructions that
//! multiply and add, of which a core begins two in a cycle. The last four lines of a strip are a pass of their own.

use std::arch::x86_64::{
    __m256, __m256i, _mm256_broadcast_ss, _mm256_cmpgt_epi32, _mm256_fmadd_ps, _mm256_load_ps,
    _mm256_loadu_ps, _mm256_maskload_ps, _mm256_maskstore_ps, _mm256_mul_ps, _mm256_set1_epi32,
    _mm256_set1_ps, _mm256_setr_epi32, _mm256_setzero_ps, _mm256_storeu_ps,
};

use super::kernel::Block;
use super::pack::{LINES, WORDS};

/// Lines of the first passes over a strip, and of the last.
const ROWS: usize = 6;
const LAST_ROWS: usize = LINES % ROWS;
/// Elements of a vector, and vectors of a strip.
const LANES: usize = 8;
const VECTORS: usize = LINES / LANES;
/// Words that are multiplied without looking for the end.
const UNROLLED: usize = 4;

/// Computes a block of up to one strip by three.
///
/// # Safety
/// The processor has AVX2 and FMA, and what [`Block`] asks for.
#[allow(unsafe_code)]
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn multiply(block: &Block<'_>) {
    for strip in 0..block.columns.div_ceil(LINES) {
        for row in (0..block.rows).step_by(ROWS) {
            // SAFETY: by the caller's promise.
            unsafe {
                match LINES - row {
                    LAST_ROWS => pass::<LAST_ROWS>(block, row, strip),
                    _ => pass::<ROWS>(block, row, strip),
                }
            }
        }
    }
}

/// So many rows from `row` on, and the columns of a strip.
#[allow(unsafe_code)]
#[target_feature(enable = "avx2,fma")]
#[inline]
unsafe fn pass<const COUNT: usize>(block: &Block<'_>, row: usize, strip: usize) {
    let mut left = block.left.as_ptr().cast::<f32>().wrapping_add(row * WORDS);
    let mut right = block.right.as_ptr().wrapping_add(strip * block.strip).cast::<f32>();
    let mut sums = [[_mm256_setzero_ps(); VECTORS]; COUNT];
    for _ in 0..block.tiles {
        for _ in 0..WORDS / UNROLLED {
            for word in 0..UNROLLED {
                // SAFETY: words of tiles that the caller says are there; those of the right are aligned as tiles are.
                unsafe {
                    let columns = [0, LANES].map(|half| _mm256_load_ps(right.add(word * LINES + half)));
                    for (line, sums) in sums.iter_mut().enumerate() {
                        let element = _mm256_broadcast_ss(&*left.add(line * WORDS + word));
                        for (sum, &columns) in sums.iter_mut().zip(&columns) {
                            *sum = _mm256_fmadd_ps(element, columns, *sum);
                        }
                    }
                }
            }
            (left, right) = (left.wrapping_add(UNROLLED), right.wrapping_add(UNROLLED * LINES));
        }
        left = left.wrapping_add((LINES - 1) * WORDS);
    }
    // SAFETY: by the caller's promise.
    unsafe {
        match block.rows - row >= COUNT && block.columns - strip * LINES >= LINES {
            true => store::<COUNT, true>(block, row, strip, &sums),
            false => store::<COUNT, false>(block, row, strip, &sums),
        }
    }
}

/// Adds sums to the output, or writes them. `FULL`: the output has all of their elements.
#[allow(unsafe_code)]
#[target_feature(enable = "avx2,fma")]
#[inline]
unsafe fn store<const COUNT: usize, const FULL: bool>(
    block: &Block<'_>,
    row: usize,
    strip: usize,
    sums: &[[__m256; VECTORS]; COUNT],
) {
    let scale = _mm256_set1_ps(block.scale);
    for (line, sums) in sums.iter().enumerate() {
        if !FULL && row + line >= block.rows {
            break;
        }
        for (half, &sum) in sums.iter().enumerate() {
            let column = strip * LINES + half * LANES;
            // SAFETY: the elements of the mask lie in the block's row.
            unsafe {
                let c = block.c.wrapping_add((row + line) * block.stride + column);
                let mask = lanes(block.columns.saturating_sub(column));
                let before = match (block.adds, FULL) {
                    (false, _) => None,
                    (true, true) => Some(_mm256_loadu_ps(c)),
                    (true, false) => Some(_mm256_maskload_ps(c, mask)),
                };
                let sum = match before {
                    Some(before) => _mm256_fmadd_ps(sum, scale, before),
                    None => _mm256_mul_ps(sum, scale),
                };
                match FULL {
                    true => _mm256_storeu_ps(c, sum),
                    false => _mm256_maskstore_ps(c, mask, sum),
                }
            }
        }
    }
}

/// A mask of the first lanes, all where there are as many.
#[target_feature(enable = "avx2")]
#[inline]
fn lanes(count: usize) -> __m256i {
    let count = _mm256_set1_epi32(count.min(LANES) as i32);
    _mm256_cmpgt_epi32(count, _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7))
}
