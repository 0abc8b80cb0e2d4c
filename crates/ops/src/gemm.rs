//! The matrix product, hidden behind one function over strided matrices: the `gemm` crate with its AVX-512 kernels.
//!
//! The crate deals tiles of the output out to threads and never splits the inner dimension between them. How it blocks
//! that dimension follows from the shape and the processor's caches alone, so every element is one sum in one order.

use rayon::prelude::*;

use crate::dtype::Float;

/// A read-only matrix inside a slice; `row_stride` and `column_stride` are in elements.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a, T> {
    pub data: &'a [T],
    pub rows: usize,
    pub columns: usize,
    pub row_stride: usize,
    pub column_stride: usize,
}

impl<'a, T> Matrix<'a, T> {
    /// A contiguous matrix of full rows.
    pub(crate) fn new(data: &'a [T], rows: usize, columns: usize) -> Self {
        Self { data, rows, columns, row_stride: columns, column_stride: 1 }
    }

    /// A block of a wider matrix: `columns` elements of each row, rows `row_stride` apart.
    pub(crate) fn block(data: &'a [T], rows: usize, columns: usize, row_stride: usize) -> Self {
        Self { data, rows, columns, row_stride, column_stride: 1 }
    }

    /// The transpose, without moving anything.
    pub(crate) fn transposed(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }
}

/// A mutable matrix of contiguous rows inside a slice.
pub(crate) struct MatrixMut<'a, T> {
    pub data: &'a mut [T],
    pub rows: usize,
    pub columns: usize,
    pub row_stride: usize,
}

impl<'a, T> MatrixMut<'a, T> {
    /// A contiguous matrix of full rows.
    pub(crate) fn new(data: &'a mut [T], rows: usize, columns: usize) -> Self {
        Self { data, rows, columns, row_stride: columns }
    }
}

/// Whether a product replaces what the output holds, or adds to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Output {
    Replace,
    Add,
}

/// Whether a product may use the rayon pool, or runs inside a task of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Threads {
    Pool,
    Current,
}

/// Columns of a single output row that one task computes.
const ROW_PIECE: usize = 512;

/// The product of one row and a matrix. It is bound by reading the matrix, and the crate would read it with one thread.
fn row_product<T: Float>(c: MatrixMut<'_, T>, a: Matrix<'_, T>, b: Matrix<'_, T>, scale: T, output: Output) {
    c.data[..c.columns].par_chunks_mut(ROW_PIECE).enumerate().for_each(|(piece, c)| {
        let first = piece * ROW_PIECE * b.column_stride;
        let b = Matrix { data: &b.data[first.min(b.data.len())..], columns: c.len(), ..b };
        let columns = c.len();
        product(MatrixMut::new(c, 1, columns), a, b, scale, output, Threads::Current);
    });
}

/// c = scale·a·b, or c += scale·a·b.
pub(crate) fn product<T: Float>(
    c: MatrixMut<'_, T>,
    a: Matrix<'_, T>,
    b: Matrix<'_, T>,
    scale: T,
    output: Output,
    threads: Threads,
) {
    assert!(a.rows == c.rows && b.columns == c.columns && a.columns == b.rows, "matrix shapes do not match");
    if c.rows == 0 || c.columns == 0 {
        return;
    }
    assert!(span(c.rows, c.columns, c.row_stride, 1) <= c.data.len(), "output lies outside its slice");
    assert!(
        span(a.rows, a.columns, a.row_stride, a.column_stride) <= a.data.len(),
        "a lies outside its slice"
    );
    assert!(
        span(b.rows, b.columns, b.row_stride, b.column_stride) <= b.data.len(),
        "b lies outside its slice"
    );
    if c.rows == 1 && threads == Threads::Pool {
        return row_product(c, a, b, scale, output);
    }
    let parallelism = match threads {
        Threads::Pool => gemm::Parallelism::Rayon(0),
        Threads::Current => gemm::Parallelism::None,
    };
    // SAFETY: each matrix lies inside its slice by the assertions above, `c` is exclusively borrowed, and `T` is f32
    // or f64, for which the crate has kernels.
    #[allow(unsafe_code)]
    unsafe {
        gemm::gemm(
            c.rows,
            c.columns,
            a.columns,
            c.data.as_mut_ptr(),
            1,
            c.row_stride as isize,
            output == Output::Add,
            a.data.as_ptr(),
            a.column_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.column_stride as isize,
            b.row_stride as isize,
            T::ONE,
            scale,
            false,
            false,
            false,
            parallelism,
        );
    }
}

/// The number of elements from the first to the last of a matrix.
fn span(rows: usize, columns: usize, row_stride: usize, column_stride: usize) -> usize {
    if rows == 0 || columns == 0 { 0 } else { (rows - 1) * row_stride + (columns - 1) * column_stride + 1 }
}
