//! The product in the precision of its factors, by the `gemm` crate.
//!
//! The crate deals tiles of the output out to threads and never splits the inner dimension between them. How it blocks
//! that dimension follows from the shape and the processor's caches alone, so every element is one sum in one order.

use rayon::prelude::*;

use super::{Matrix, MatrixMut, Output, Threads};
use crate::dtype::Float;

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

/// c = scale·a·b, or c += scale·a·b, of matrices that lie in their slices.
pub(super) fn product<T: Float>(
    c: MatrixMut<'_, T>,
    a: Matrix<'_, T>,
    b: Matrix<'_, T>,
    scale: T,
    output: Output,
    threads: Threads,
) {
    if c.rows == 1 && threads == Threads::Pool {
        return row_product(c, a, b, scale, output);
    }
    let parallelism = match threads {
        Threads::Pool => ::gemm::Parallelism::Rayon(0),
        Threads::Current => ::gemm::Parallelism::None,
    };
    // SAFETY: each matrix lies inside its slice by the promise of the caller, which asserts it, `c` is exclusively borrowed, and `T` is f32
    // or f64, for which the crate has kernels.
    #[allow(unsafe_code)]
    unsafe {
        ::gemm::gemm(
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
