//! The backward of attention: on the CPU one task for each head of each document.
//!
//! Query heads that share keys would add into the same gradient. Each writes its own dK and dV into scratch instead, and
//! these are summed afterwards in the order of the heads: no sum depends on which task came first. A GPU's blocks walk over
//! all query heads that share their keys, and have rowsum(dO∘O) in the front of the scratch.

use rayon::prelude::*;

use super::kernels::{Kernels, Pass};
use super::{BLOCK, Document, Heads, document_count, documents};
use crate::buffer::{View, ViewMut};
use crate::check::{self, for_float};
use crate::dtype::{DType, Float};
use crate::error::OpError;
use crate::gemm::{Factors, Matrix, MatrixMut, Output, Threads, product};
use crate::parallel::{Scattered, for_row_blocks_of};
use crate::queue::{Device, Home, Queue};
use crate::simd::{dot, vectorised};

/// The number of elements of scratch that [`backward`] needs for `rows` rows: on the host dK and dV of each query head, on a
/// GPU one number for each row and head.
pub fn backward_scratch(home: Home, heads: Heads, rows: usize) -> usize {
    match home {
        Home::Host => 2 * rows * heads.output_width(),
        Home::Gpu => rows * heads.query,
    }
}

/// Writes `dqkv` `[T, (Hq + 2·Hkv)·D]` from `doutput` `[T, Hq·D]` and what the forward kept.
#[allow(clippy::too_many_arguments)]
pub fn backward(
    queue: &Queue,
    doutput: View<'_>,
    qkv: View<'_>,
    output: View<'_>,
    log_sum_exp: View<'_>,
    cu_seqlens: View<'_>,
    heads: Heads,
    mut dqkv: ViewMut<'_>,
    mut scratch: ViewMut<'_>,
) -> Result<(), OpError> {
    const OPERATOR: &str = "attention::backward";
    heads.check(OPERATOR)?;
    let (rows, width) = check::matrix(OPERATOR, "qkv", qkv.shape())?;
    check::shape(OPERATOR, "qkv", qkv.shape(), [rows, heads.row_width()])?;
    check::shape(OPERATOR, "dqkv", dqkv.shape(), qkv.shape())?;
    check::shape(OPERATOR, "output", output.shape(), [rows, heads.output_width()])?;
    check::shape(OPERATOR, "doutput", doutput.shape(), output.shape())?;
    check::shape(OPERATOR, "log_sum_exp", log_sum_exp.shape(), [rows, heads.query])?;
    check::shape(OPERATOR, "scratch", scratch.shape(), [backward_scratch(queue.home(), heads, rows)])?;
    let count = document_count(OPERATOR, cu_seqlens, rows)?;
    match queue.device() {
        Device::Cpu => for_float!(OPERATOR, qkv, F => {
            let documents = documents(OPERATOR, cu_seqlens, rows)?;
            let (dk, dv) = scratch.as_slice_mut::<F>()?.split_at_mut(rows * heads.output_width());
            let dqkv = dqkv.as_slice_mut::<F>()?;
            let layer = Layer {
                qkv: qkv.as_slice::<F>()?,
                output: output.as_slice::<F>()?,
                doutput: doutput.as_slice::<F>()?,
                log_sum_exp: log_sum_exp.as_slice::<F>()?,
                rows,
                width,
                heads,
                factors: queue.factors(),
                dqkv: Scattered::new(dqkv),
                dk: Scattered::new(dk),
                dv: Scattered::new(dv),
            };
            let tasks: Vec<(Document, usize)> = documents
                .flat_map(|document| (0..heads.query).map(move |head| (document, head)))
                .collect();
            tasks.into_par_iter().for_each_init(
                || Tile::new(heads.size),
                |tile, (document, head)| layer.head(tile, document, head),
            );
            sum_groups(heads, rows, dk, dv, dqkv);
            Ok(())
        }),
        Device::Cuda(stream) => {
            let (dtype, matrices) = (qkv.dtype(), [doutput, qkv, output, dqkv.as_view()]);
            let kernels = Kernels::new(OPERATOR, stream, heads, (rows, count), dtype, &matrices);
            kernels.fill_delta(doutput, output, &scratch)?;
            [Pass::KeyGradients, Pass::QueryGradients].into_iter().try_for_each(|pass| {
                kernels.launch(pass, |kernel| {
                    kernel
                        .input("doutput", doutput, dtype)
                        .input("qkv", qkv, dtype)
                        .input("log_sum_exp", log_sum_exp, DType::F32)
                        .input("scratch", scratch.as_view(), DType::F32)
                        .input("cu_seqlens", cu_seqlens, DType::U32)
                        .output("dqkv", &dqkv, dtype)
                })
            })
        }
    }
}

/// The operands of one call.
struct Layer<'a, T> {
    qkv: &'a [T],
    output: &'a [T],
    doutput: &'a [T],
    log_sum_exp: &'a [T],
    rows: usize,
    width: usize,
    heads: Heads,
    factors: Factors,
    dqkv: Scattered<'a, T>,
    dk: Scattered<'a, T>,
    dv: Scattered<'a, T>,
}

/// Scratch of one thread.
struct Tile<T> {
    p: Vec<T>,
    ds: Vec<T>,
    dq: Vec<T>,
    /// rowsum(dO∘O) of the block of queries.
    delta: [T; BLOCK],
}

impl<T: Float> Tile<T> {
    fn new(head_size: usize) -> Self {
        Self {
            p: vec![T::ZERO; BLOCK * BLOCK],
            ds: vec![T::ZERO; BLOCK * BLOCK],
            dq: vec![T::ZERO; BLOCK * head_size],
            delta: [T::ZERO; BLOCK],
        }
    }
}

impl<T: Float> Layer<'_, T> {
    /// All blocks of one head of one document.
    fn head(&self, tile: &mut Tile<T>, document: Document, head: usize) {
        let size = self.heads.size;
        let first = (head * self.rows + document.start) * size;
        // SAFETY: each (head, document) belongs to one task, and scratch is laid out head by head.
        #[allow(unsafe_code)]
        let (dk, dv) = unsafe {
            (self.dk.piece(first, document.length * size), self.dv.piece(first, document.length * size))
        };
        dk.fill(T::ZERO);
        dv.fill(T::ZERO);
        for start in (0..document.length).step_by(BLOCK) {
            let queries = BLOCK.min(document.length - start);
            self.query_block(tile, document, head, start, queries, dk, dv);
            for query in 0..queries {
                let row = document.start + start + query;
                // SAFETY: the query columns of each (row, head) belong to one task.
                #[allow(unsafe_code)]
                let dq = unsafe { self.dqkv.piece(row * self.width + self.heads.query_start(head), size) };
                dq.copy_from_slice(&tile.dq[query * size..][..size]);
            }
        }
    }

    /// Leaves the block's dQ in the tile, and adds to dK and dV of the keys that it sees.
    #[allow(clippy::too_many_arguments)]
    fn query_block(
        &self,
        tile: &mut Tile<T>,
        document: Document,
        head: usize,
        start: usize,
        queries: usize,
        dk: &mut [T],
        dv: &mut [T],
    ) {
        let heads = &self.heads;
        let (size, output_width) = (heads.size, heads.output_width());
        let scale = T::from_f64(heads.scale());
        let end = start + queries;
        let at = |row: usize, column: usize| &self.qkv[(document.start + row) * self.width + column..];
        let q = Matrix::block(at(start, heads.query_start(head)), queries, size, self.width);
        let first_output = (document.start + start) * output_width + head * size;
        let doutput = Matrix::block(&self.doutput[first_output..], queries, size, output_width);
        self.row_sums(tile, first_output, queries);
        tile.dq.fill(T::ZERO);
        for first_key in (heads.first_key(start)..end).step_by(BLOCK) {
            let keys = BLOCK.min(end - first_key);
            let k = Matrix::block(at(first_key, heads.key_start(head)), keys, size, self.width);
            let v = Matrix::block(at(first_key, heads.value_start(head)), keys, size, self.width);
            let (own, factors) = (Threads::Current, self.factors);
            let p = MatrixMut::new(&mut tile.p, queries, keys);
            product(p, q, k.transposed(), scale, Output::Replace, own, factors);
            let dp = MatrixMut::new(&mut tile.ds, queries, keys);
            product(dp, doutput, v.transposed(), T::ONE, Output::Replace, own, factors);
            self.score_gradient(tile, document.start, head, start, queries, first_key, keys);
            let (p, ds) = (Matrix::new(&tile.p, queries, keys), Matrix::new(&tile.ds, queries, keys));
            let block = first_key * size..(first_key + keys) * size;
            let dv = MatrixMut::new(&mut dv[block.clone()], keys, size);
            product(dv, p.transposed(), doutput, T::ONE, Output::Add, own, factors);
            let dk = MatrixMut::new(&mut dk[block], keys, size);
            product(dk, ds.transposed(), q, scale, Output::Add, own, factors);
            let dq = MatrixMut::new(&mut tile.dq, queries, size);
            product(dq, ds, k, scale, Output::Add, own, factors);
        }
    }

    fn row_sums(&self, tile: &mut Tile<T>, first_output: usize, queries: usize) {
        let (size, output_width) = (self.heads.size, self.heads.output_width());
        vectorised(
            #[inline(always)]
            || {
                for query in 0..queries {
                    let columns =
                        first_output + query * output_width..first_output + query * output_width + size;
                    tile.delta[query] = dot(&self.doutput[columns.clone()], &self.output[columns]);
                }
            },
        );
    }

    /// Turns scores into P and dP into dS, zero where a query must not see a key.
    #[allow(clippy::too_many_arguments)]
    fn score_gradient(
        &self,
        tile: &mut Tile<T>,
        document_start: usize,
        head: usize,
        start: usize,
        queries: usize,
        first_key: usize,
        keys: usize,
    ) {
        vectorised(
            #[inline(always)]
            || {
                for query in 0..queries {
                    let position = start + query;
                    let log_sum_exp = self.log_sum_exp[(document_start + position) * self.heads.query + head];
                    let delta = tile.delta[query];
                    let p = &mut tile.p[query * keys..][..keys];
                    let ds = &mut tile.ds[query * keys..][..keys];
                    let seen_to = (position + 1).saturating_sub(first_key).min(keys);
                    let seen_from = self.heads.first_key(position).saturating_sub(first_key).min(seen_to);
                    for row in [&mut *p, &mut *ds] {
                        row[..seen_from].fill(T::ZERO);
                        row[seen_to..].fill(T::ZERO);
                    }
                    for (p, ds) in p[seen_from..seen_to].iter_mut().zip(&mut ds[seen_from..seen_to]) {
                        *p = (*p - log_sum_exp).exp();
                        *ds = *p * (*ds - delta);
                    }
                }
            },
        );
    }
}

/// Adds the key and value gradients of the query heads of each group into the rows of `dqkv`.
fn sum_groups<T: Float>(heads: Heads, rows: usize, dk: &[T], dv: &[T], dqkv: &mut [T]) {
    let Heads { query, key_value, size, .. } = heads;
    let group = query / key_value;
    let width = heads.row_width();
    for_row_blocks_of(dqkv, width, |first, block| {
        for (row, out) in block.chunks_exact_mut(width).enumerate() {
            let (keys, values) = out[query * size..].split_at_mut(key_value * size);
            for (source, out) in [(dk, keys), (dv, values)] {
                for (head, out) in out.chunks_exact_mut(size).enumerate() {
                    out.fill(T::ZERO);
                    for member in head * group..(head + 1) * group {
                        let part = &source[(member * rows + first + row) * size..][..size];
                        for (out, &part) in out.iter_mut().zip(part) {
                            *out += part;
                        }
                    }
                }
            }
        }
    });
}
