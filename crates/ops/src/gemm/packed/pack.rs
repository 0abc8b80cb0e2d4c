//! Packing: the factors of a product laid out as the micro-kernels read them, rounded to bf16 where that is asked for.
//!
//! The lines of a factor are what its output elements run along: the rows of the left one, the columns of the right one. Sixteen
//! lines make a strip, and a strip is cut along the inner dimension into tiles of sixteen words: 1 KiB, what an AMX tile
//! register holds. A word is 32 bits: an fp32, or a pair of bf16, the earlier element in its lower half, as `vdpbf16ps` and
//! `tdpbf16ps` read it. A left tile holds line after line, a right one the first words of its sixteen lines, then the second ones,
//! so one layout serves all kernels. What lies beyond the matrix is zero.

use std::ops::Range;

use crate::gemm::Matrix;
use crate::simd::vectorised;

/// Lines of a strip.
pub(super) const LINES: usize = 16;
/// Words of a line in a tile.
pub(super) const WORDS: usize = 16;
/// Elements of the inner dimension in a tile of pairs.
pub(super) const PAIRED: usize = 2 * WORDS;

/// Sixteen lines of sixteen words.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Tile([u32; LINES * WORDS]);

impl Tile {
    pub(super) const ZERO: Self = Self([0; LINES * WORDS]);

    /// The words of one line of a left tile, or those of all lines at one place in a right one.
    #[inline(always)]
    pub(super) fn words(&self, index: usize) -> &[u32; 16] {
        &self.0.as_chunks().0[index]
    }
}

/// Which factor of a product a strip belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Left,
    Right,
}

/// What words are, and how they are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Packing {
    /// Pairs, by loops that the compiler vectorises.
    Pairs,
    /// Pairs, by AVX-512 with its conversion to bf16, and transposition in registers.
    #[cfg(target_arch = "x86_64")]
    PairsByAvx512,
    /// Elements in fp32, as they are or rounded to bf16, by AVX2 with transposition in registers.
    #[cfg(target_arch = "x86_64")]
    Singles { rounded: bool },
}

impl Packing {
    /// Elements of the inner dimension in a tile.
    pub(super) fn depth(self) -> usize {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Singles { .. } => WORDS,
            _ => PAIRED,
        }
    }
}

/// A factor seen along its lines.
#[derive(Clone, Copy)]
pub(super) struct Lines<'a> {
    data: &'a [f32],
    count: usize,
    depth: usize,
    line_stride: usize,
    depth_stride: usize,
}

impl<'a> Lines<'a> {
    /// The lines of a left factor.
    pub(super) fn rows(matrix: Matrix<'a, f32>) -> Self {
        let Matrix { data, rows, columns, row_stride, column_stride } = matrix;
        Self { data, count: rows, depth: columns, line_stride: row_stride, depth_stride: column_stride }
    }

    /// The lines of a right factor.
    pub(super) fn columns(matrix: Matrix<'a, f32>) -> Self {
        Self::rows(matrix.transposed())
    }

    /// How many there are.
    pub(super) fn count(self) -> usize {
        self.count
    }

    /// The length of each.
    pub(super) fn depth(self) -> usize {
        self.depth
    }

    /// Packs the elements `depth` of as many strips as `tiles` are for, from line `first` on.
    pub(super) fn pack(
        self,
        packing: Packing,
        side: Side,
        first: usize,
        depth: Range<usize>,
        tiles: &mut [Tile],
    ) {
        let per_strip = depth.len().div_ceil(packing.depth());
        let strips = tiles.len() / per_strip;
        let mut pack = |strip: usize, tile: usize| {
            let start = depth.start + tile * packing.depth();
            let end = depth.end.min(start + packing.depth());
            let piece = Piece { lines: self, first: first + strip * LINES, start, end };
            piece.pack(packing, side, &mut tiles[strip * per_strip + tile]);
        };
        if self.line_stride == 1 {
            // Lines lie side by side: what a row of the matrix has of all strips is read together.
            (0..per_strip).for_each(|tile| (0..strips).for_each(|strip| pack(strip, tile)));
        } else {
            (0..strips).for_each(|strip| (0..per_strip).for_each(|tile| pack(strip, tile)));
        }
    }
}

/// What one tile is made of.
struct Piece<'a> {
    lines: Lines<'a>,
    first: usize,
    start: usize,
    end: usize,
}

impl Piece<'_> {
    fn pack(&self, packing: Packing, side: Side, tile: &mut Tile) {
        let Lines { data, line_stride, depth_stride, .. } = self.lines;
        let lines = self.lines.count.saturating_sub(self.first).min(LINES);
        let is_full = lines == LINES && self.end - self.start == packing.depth();
        if is_full && (line_stride == 1 || depth_stride == 1) {
            let data = &data[self.first * line_stride + self.start * depth_stride..];
            return pack_full(packing, side, data, line_stride, depth_stride, tile);
        }
        let mut copy = [0.0; LINES * PAIRED];
        for line in 0..lines {
            for (depth, copy) in (self.start..self.end).zip(&mut copy[line * PAIRED..]) {
                *copy = data[(self.first + line) * line_stride + depth * depth_stride];
            }
        }
        pack_full(packing, side, &copy, PAIRED, 1, tile);
    }
}

/// Packs sixteen lines of as many elements as a tile has, of which lines or elements lie side by side.
fn pack_full(
    packing: Packing,
    side: Side,
    data: &[f32],
    line_stride: usize,
    depth_stride: usize,
    tile: &mut Tile,
) {
    let furthest = (LINES - 1) * line_stride + (packing.depth() - 1) * depth_stride;
    assert!(furthest < data.len(), "a tile lies outside its matrix");
    match packing {
        Packing::Pairs => vectorised(
            #[inline(always)]
            || pack_pairs(side, data, line_stride, depth_stride, tile),
        ),
        // SAFETY: whoever asks for this packing has found the instructions; all elements lie in `data` by the assertion.
        #[cfg(target_arch = "x86_64")]
        #[allow(unsafe_code)]
        Packing::PairsByAvx512 => unsafe { avx512::pack(side, data, line_stride, depth_stride, tile) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        #[allow(unsafe_code)]
        Packing::Singles { rounded: false } => unsafe {
            avx2::pack::<false>(side, data, line_stride, depth_stride, tile);
        },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        #[allow(unsafe_code)]
        Packing::Singles { rounded: true } => unsafe {
            avx2::pack::<true>(side, data, line_stride, depth_stride, tile);
        },
    }
}

#[inline(always)]
fn pack_pairs(side: Side, data: &[f32], line_stride: usize, depth_stride: usize, tile: &mut Tile) {
    for line in 0..LINES {
        for pair in 0..WORDS {
            let at = line * line_stride + 2 * pair * depth_stride;
            let word = upper_half(data[at]) >> 16 | upper_half(data[at + depth_stride]);
            let place = match side {
                Side::Left => line * WORDS + pair,
                Side::Right => pair * LINES + line,
            };
            tile.0[place] = word;
        }
    }
}

/// The bits of the nearest bf16, of two equally near ones the even one, as the upper half of an fp32; NaN stays NaN.
#[inline(always)]
fn upper_half(value: f32) -> u32 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1));
    let quiet = bits | 0x0040_0000;
    (if value.is_nan() { quiet } else { rounded }) & 0xffff_0000
}

/// Pairs in vectors of sixteen words.
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
mod avx512 {
    use std::arch::x86_64::{
        __m512bh, __m512i, _mm512_cvtne2ps_pbh, _mm512_loadu_ps, _mm512_loadu_si512,
        _mm512_permutexvar_epi16, _mm512_setzero_si512, _mm512_shuffle_i32x4, _mm512_store_si512,
        _mm512_unpackhi_epi32, _mm512_unpackhi_epi64, _mm512_unpacklo_epi32, _mm512_unpacklo_epi64,
    };
    use std::mem::transmute;

    use super::{LINES, Side, Tile, WORDS};

    type Words = [__m512i; 16];

    /// Packs a full tile of a factor one of whose strides is 1.
    ///
    /// # Safety
    /// The processor has AVX-512 F, BW and BF16, and all elements lie in `data`.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    pub(super) unsafe fn pack(
        side: Side,
        data: &[f32],
        line_stride: usize,
        depth_stride: usize,
        tile: &mut Tile,
    ) {
        // SAFETY: by the caller's promise.
        let words = unsafe {
            match (depth_stride, side) {
                (1, Side::Left) => words_of_lines(data, line_stride),
                (1, Side::Right) => transposed(words_of_lines(data, line_stride)),
                (_, Side::Left) => transposed(words_of_pairs(data, depth_stride)),
                (_, Side::Right) => words_of_pairs(data, depth_stride),
            }
        };
        // SAFETY: as above.
        unsafe { store(words, tile) };
    }

    /// Sixteen vectors, each the pairs of a line whose elements lie side by side.
    ///
    /// # Safety
    /// The processor has AVX-512 F, BW and BF16; sixteen lines of 32 elements, `stride` apart, lie in `data`.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    #[inline]
    unsafe fn words_of_lines(data: &[f32], stride: usize) -> Words {
        let mut words = [_mm512_setzero_si512(); 16];
        for (line, words) in words.iter_mut().enumerate() {
            // SAFETY: the elements lie in `data` by the caller's promise, and a vector of bf16 is as good as one of words.
            *words = unsafe {
                let start = data.as_ptr().add(line * stride);
                let (early, late) = (_mm512_loadu_ps(start), _mm512_loadu_ps(start.add(WORDS)));
                transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(late, early))
            };
        }
        words
    }

    /// Takes the words of the first half of a vector and those of the second in turn.
    const INTERLEAVED: [u16; 32] = {
        let mut order = [0; 32];
        let mut place = 0;
        while place < 32 {
            order[place] = (place / 2 + place % 2 * 16) as u16;
            place += 1;
        }
        order
    };

    /// Sixteen vectors, each a pair of sixteen lines that lie side by side.
    ///
    /// # Safety
    /// As [`words_of_lines`], with 32 rows of sixteen lines `stride` apart.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    #[inline]
    unsafe fn words_of_pairs(data: &[f32], stride: usize) -> Words {
        let mut words = [_mm512_setzero_si512(); 16];
        // SAFETY: 64 bytes of a constant.
        let order = unsafe { _mm512_loadu_si512(INTERLEAVED.as_ptr().cast()) };
        for (pair, words) in words.iter_mut().enumerate() {
            // SAFETY: as in `words_of_lines`.
            *words = unsafe {
                let start = data.as_ptr().add(2 * pair * stride);
                let (even, odd) = (_mm512_loadu_ps(start), _mm512_loadu_ps(start.add(stride)));
                let halves = transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(odd, even));
                _mm512_permutexvar_epi16(order, halves)
            };
        }
        words
    }

    /// Word i of vector j becomes word j of vector i.
    ///
    /// # Safety
    /// The processor has AVX-512 F.
    #[target_feature(enable = "avx512f")]
    #[inline]
    unsafe fn transposed(v: Words) -> Words {
        // In blocks of 4×4 words first: fours[4·g + c] has column 4·b + c of rows 4·g to 4·g + 3 in its block b.
        let mut fours = v;
        for g in (0..16).step_by(4) {
            let (low, high) = (_mm512_unpacklo_epi32(v[g], v[g + 1]), _mm512_unpackhi_epi32(v[g], v[g + 1]));
            let (low_2, high_2) =
                (_mm512_unpacklo_epi32(v[g + 2], v[g + 3]), _mm512_unpackhi_epi32(v[g + 2], v[g + 3]));
            fours[g] = _mm512_unpacklo_epi64(low, low_2);
            fours[g + 1] = _mm512_unpackhi_epi64(low, low_2);
            fours[g + 2] = _mm512_unpacklo_epi64(high, high_2);
            fours[g + 3] = _mm512_unpackhi_epi64(high, high_2);
        }
        // Then the blocks: those of even and of odd number, and of these the lower and the upper.
        let mut out = v;
        for c in 0..4 {
            let [a, b, d, e] = [fours[c], fours[4 + c], fours[8 + c], fours[12 + c]];
            let (even, even_2) = (_mm512_shuffle_i32x4::<0x88>(a, b), _mm512_shuffle_i32x4::<0x88>(d, e));
            let (odd, odd_2) = (_mm512_shuffle_i32x4::<0xdd>(a, b), _mm512_shuffle_i32x4::<0xdd>(d, e));
            out[c] = _mm512_shuffle_i32x4::<0x88>(even, even_2);
            out[4 + c] = _mm512_shuffle_i32x4::<0x88>(odd, odd_2);
            out[8 + c] = _mm512_shuffle_i32x4::<0xdd>(even, even_2);
            out[12 + c] = _mm512_shuffle_i32x4::<0xdd>(odd, odd_2);
        }
        out
    }

    /// Writes a tile.
    ///
    /// # Safety
    /// The processor has AVX-512 F.
    #[target_feature(enable = "avx512f")]
    #[inline]
    unsafe fn store(words: Words, tile: &mut Tile) {
        for (place, words) in tile.0.as_chunks_mut::<LINES>().0.iter_mut().zip(words) {
            // SAFETY: each place has 64 bytes, and tiles are aligned to that.
            unsafe { _mm512_store_si512(place.as_mut_ptr().cast(), words) };
        }
    }
}

/// Elements in vectors of eight words.
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
mod avx2 {
    use std::arch::x86_64::{
        __m256, _CMP_UNORD_Q, _mm256_add_epi32, _mm256_and_si256, _mm256_blendv_ps, _mm256_castps_si256,
        _mm256_castsi256_ps, _mm256_cmp_ps, _mm256_loadu_ps, _mm256_or_si256, _mm256_permute2f128_ps,
        _mm256_set1_epi32, _mm256_setzero_ps, _mm256_shuffle_ps, _mm256_srli_epi32, _mm256_store_ps,
        _mm256_unpackhi_ps, _mm256_unpacklo_ps,
    };

    use super::{LINES, Side, Tile, WORDS};

    type Words = [__m256; 8];

    /// Packs a full tile of a factor one of whose strides is 1, 8×8 elements at a time.
    ///
    /// # Safety
    /// The processor has AVX2, and all elements lie in `data`.
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn pack<const ROUNDED: bool>(
        side: Side,
        data: &[f32],
        line_stride: usize,
        depth_stride: usize,
        tile: &mut Tile,
    ) {
        let (stride, turns) = match (depth_stride, side) {
            (1, side) => (line_stride, side == Side::Right),
            (_, side) => (depth_stride, side == Side::Left),
        };
        let out = tile.0.as_mut_ptr().cast::<f32>();
        for row in (0..LINES).step_by(8) {
            for column in (0..WORDS).step_by(8) {
                let mut words = [_mm256_setzero_ps(); 8];
                for (place, words) in words.iter_mut().enumerate() {
                    // SAFETY: by the caller's promise.
                    *words = unsafe { _mm256_loadu_ps(data.as_ptr().add((row + place) * stride + column)) };
                    if ROUNDED {
                        *words = rounded(*words);
                    }
                }
                let (words, start) = match turns {
                    true => (transposed(words), column * WORDS + row),
                    false => (words, row * WORDS + column),
                };
                for (place, words) in words.into_iter().enumerate() {
                    // SAFETY: eight words of the tile, which is aligned to 64 bytes.
                    unsafe { _mm256_store_ps(out.add(start + place * WORDS), words) };
                }
            }
        }
    }

    /// As [`super::upper_half`].
    #[target_feature(enable = "avx2")]
    #[inline]
    fn rounded(value: __m256) -> __m256 {
        let bits = _mm256_castps_si256(value);
        let even = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
        let nearest = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), even);
        let quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x0040_0000));
        let is_nan = _mm256_cmp_ps::<_CMP_UNORD_Q>(value, value);
        let chosen = _mm256_blendv_ps(_mm256_castsi256_ps(nearest), _mm256_castsi256_ps(quiet), is_nan);
        let upper_half = _mm256_set1_epi32(0xffff_0000_u32 as i32);
        _mm256_castsi256_ps(_mm256_and_si256(_mm256_castps_si256(chosen), upper_half))
    }

    /// Word i of vector j becomes word j of vector i.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn transposed(v: Words) -> Words {
        // In blocks of 4×4 words first, of the upper four vectors and of the lower ones.
        let mut fours = v;
        for g in [0, 4] {
            let (low, high) = (_mm256_unpacklo_ps(v[g], v[g + 1]), _mm256_unpackhi_ps(v[g], v[g + 1]));
            let (low_2, high_2) =
                (_mm256_unpacklo_ps(v[g + 2], v[g + 3]), _mm256_unpackhi_ps(v[g + 2], v[g + 3]));
            fours[g] = _mm256_shuffle_ps::<0x44>(low, low_2);
            fours[g + 1] = _mm256_shuffle_ps::<0xee>(low, low_2);
            fours[g + 2] = _mm256_shuffle_ps::<0x44>(high, high_2);
            fours[g + 3] = _mm256_shuffle_ps::<0xee>(high, high_2);
        }
        // Then the blocks.
        let mut out = v;
        for c in 0..4 {
            out[c] = _mm256_permute2f128_ps::<0x20>(fours[c], fours[4 + c]);
            out[4 + c] = _mm256_permute2f128_ps::<0x31>(fours[c], fours[4 + c]);
        }
        out
    }
}
