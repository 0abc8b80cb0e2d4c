//! The matrix product, hidden behind one function over strided matrices. Kernels of our own multiply fp32 on processors with AVX2,
//! where they outdo the `gemm` crate, and factors rounded to bf16 everywhere; the crate does the rest: fp64, and fp32 with AVX-512.

mod library;
mod packed;

use crate::dtype::{DType, Float};

/// How products on the CPU take their factors. What they write, and all else in memory, keeps its dtype.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Factors {
    /// As they are.
    #[default]
    Exact,
    /// fp32 rounded to bf16, which processors multiply faster; sums are fp32. fp64 is taken as it is.
    Bf16,
}

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

impl<'a, T: Float> Matrix<'a, T> {
    /// The same in `f32`, which `T` is.
    fn cast(self) -> Matrix<'a, f32> {
        let Self { data, rows, columns, row_stride, column_stride } = self;
        Matrix { data: bytemuck::cast_slice(data), rows, columns, row_stride, column_stride }
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

/// c = scale·a·b, or c += scale·a·b.
pub(crate) fn product<T: Float>(
    c: MatrixMut<'_, T>,
    a: Matrix<'_, T>,
    b: Matrix<'_, T>,
    scale: T,
    output: Output,
    threads: Threads,
    factors: Factors,
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
    // One row is bound by reading the matrix, which packing would double.
    let own = packed::Kernel::best(factors)
        .filter(|_| T::DTYPE == DType::F32 && (c.rows > 1 || factors == Factors::Bf16));
    match own {
        Some(kernel) => {
            let MatrixMut { data, rows, columns, row_stride } = c;
            let c = MatrixMut { data: bytemuck::cast_slice_mut(data), rows, columns, row_stride };
            packed::product(kernel, c, a.cast(), b.cast(), scale.to_f64() as f32, output, threads);
        }
        None => library::product(c, a, b, scale, output, threads),
    }
}

/// The number of elements from the first to the last of a matrix.
fn span(rows: usize, columns: usize, row_stride: usize, column_stride: usize) -> usize {
    if rows == 0 || columns == 0 { 0 } else { (rows - 1) * row_stride + (columns - 1) * column_stride + 1 }
}
