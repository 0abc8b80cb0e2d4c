//! Spreading loops over threads. The pieces are fixed by the shapes, never by the number of threads, and each
//! element is written by one piece: that is what makes results independent of the threads.

use std::marker::PhantomData;

use rayon::prelude::*;

/// Rows (tokens) handed to a thread at once. Small enough to balance, large enough to forget the cost of a task.
const ROWS: usize = 16;

/// Calls `body(first_row, rows_of_a, rows_of_b)` for blocks of rows of two matrices of equally many rows.
pub(crate) fn for_row_blocks<A: Send, B: Send>(
    (a, a_width): (&mut [A], usize),
    (b, b_width): (&mut [B], usize),
    body: impl Fn(usize, &mut [A], &mut [B]) + Sync,
) {
    a.par_chunks_mut(ROWS * a_width)
        .zip_eq(b.par_chunks_mut(ROWS * b_width))
        .enumerate()
        .for_each(|(block, (a, b))| body(block * ROWS, a, b));
}

/// Calls `body(first_row, rows)` for blocks of rows of one matrix.
pub(crate) fn for_row_blocks_of<A: Send>(a: &mut [A], width: usize, body: impl Fn(usize, &mut [A]) + Sync) {
    a.par_chunks_mut(ROWS * width).enumerate().for_each(|(block, a)| body(block * ROWS, a));
}

/// Columns handed to a thread at once where a sum runs down the rows: one cache line of fp32 or more.
const COLUMNS: usize = 64;

/// Calls `body(columns)` for blocks of the columns `0..width`.
pub(crate) fn for_column_blocks(width: usize, body: impl Fn(std::ops::Range<usize>) + Sync) {
    (0..width.div_ceil(COLUMNS))
        .into_par_iter()
        .for_each(|block| body(block * COLUMNS..width.min((block + 1) * COLUMNS)));
}

/// A mutable slice that several tasks write to at places which never overlap: columns of a matrix, heads of a row.
/// The borrow checker cannot see that such places are disjoint; whoever takes a piece promises it.
pub(crate) struct Scattered<'a, T> {
    start: *mut T,
    length: usize,
    _borrow: PhantomData<&'a mut [T]>,
}

// SAFETY: pieces are handed out as `&mut [T]` under the promise of `piece`, so sharing the handle is sharing disjoint
// mutable slices, which is sound for `T: Send`.
#[allow(unsafe_code)]
unsafe impl<T: Send> Send for Scattered<'_, T> {}
// SAFETY: as above.
#[allow(unsafe_code)]
unsafe impl<T: Send> Sync for Scattered<'_, T> {}

impl<'a, T> Scattered<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), length: slice.len(), _borrow: PhantomData }
    }

    /// The elements `start..start + length`.
    ///
    /// # Safety
    /// No other piece that is alive at the same time may overlap this one.
    #[allow(unsafe_code, clippy::mut_from_ref)]
    #[inline(always)]
    pub(crate) unsafe fn piece(&self, start: usize, length: usize) -> &mut [T] {
        assert!(start <= self.length && length <= self.length - start, "a piece lies outside its slice");
        // SAFETY: inside the borrowed slice by the assertion; not aliased by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(start), length) }
    }
}
