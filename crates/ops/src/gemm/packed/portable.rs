//! The micro-kernel of every other processor: factors widened to fp32 again, and multiplied in vectors of whatever width there is.

use pulp::{Simd, WithSimd};

use super::kernel::Block;
use super::pack::{LINES, Tile};

/// Rows and vectors of columns whose sums stay in registers.
const ROWS: usize = 4;
const VECTORS: usize = 2;

/// Computes a block of one strip by one with the vectors that it is dispatched to, of at most eight elements.
pub(super) struct Multiply<'a, 'b>(pub &'a Block<'b>);

impl WithSimd for Multiply<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self(block) = self;
        let (left, right) = (&block.left[..block.tiles], &block.right[..block.tiles]);
        let mut sums = [0.0; LINES * LINES];
        for row in (0..block.rows).step_by(ROWS) {
            for column in (0..LINES).step_by(VECTORS * S::F32_LANES) {
                multiply::<S>(simd, left, right, row, column, &mut sums);
            }
        }
        // SAFETY: the block has its rows by the promise of who made it.
        #[allow(unsafe_code)]
        unsafe {
            block.store(&sums, LINES);
        }
    }
}

/// The sums of `ROWS` rows from `row` on and `VECTORS` vectors of columns from `column` on.
#[inline(always)]
fn multiply<S: Simd>(
    simd: S,
    left: &[Tile],
    right: &[Tile],
    row: usize,
    column: usize,
    out: &mut [f32; LINES * LINES],
) {
    let (upper_half, sixteen) = (simd.splat_u32s(0xffff_0000), simd.splat_u32s(16));
    let early = |word: S::u32s| simd.transmute_f32s_u32s(simd.wrapping_dyn_shl_u32s(word, sixteen));
    let late = |word: S::u32s| simd.transmute_f32s_u32s(simd.and_u32s(word, upper_half));
    let add_product = |sum: &mut S::f32s, a: S::f32s, b: S::f32s| {
        *sum = simd.add_f32s(*sum, simd.mul_f32s(a, b));
    };
    let mut sums = [[simd.splat_f32s(0.0); VECTORS]; ROWS];
    for (left, right) in left.iter().zip(right) {
        for pair in 0..LINES {
            let words = S::as_simd_u32s(&right.words(pair)[column..]).0;
            let columns = [words[0], words[1]].map(|word| [early(word), late(word)]);
            for (line, sums) in sums.iter_mut().enumerate() {
                let word = simd.splat_u32s(left.words(row + line)[pair]);
                let row = [early(word), late(word)];
                for (sum, columns) in sums.iter_mut().zip(&columns) {
                    add_product(sum, row[0], columns[0]);
                    add_product(sum, row[1], columns[1]);
                }
            }
        }
    }
    for (line, sums) in sums.iter().enumerate() {
        let out = &mut out[(row + line) * LINES + column..][..VECTORS * S::F32_LANES];
        S::as_mut_simd_f32s(out).0.copy_from_slice(sums);
    }
}
