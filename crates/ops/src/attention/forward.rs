//! The forward of attention: one task for each block of queries of each head.

use rayon::prelude::*;

use super::kernels::{Kernels, Pass};
use super::{BLOCK, Document, Heads, document_count, documents};
use crate::buffer::{View, ViewMut};
use crate::check::{self, for_float};
use crate::dtype::{DType, Float};
use crate::error::OpError;
use crate::gemm::{Factors, Matrix, MatrixMut, Output, Threads, product};
use crate::parallel::Scattered;
use crate::queue::{Device, Queue};
use crate::simd::{maximum, sum, vectorised};

/// Writes `output` `[T, Hq·D]` and `log_sum_exp` `[T, Hq]`.
pub fn forward(
    queue: &Queue,
    qkv: View<'_>,
    cu_seqlens: View<'_>,
    heads: Heads,
    mut output: ViewMut<'_>,
    mut log_sum_exp: ViewMut<'_>,
) -> Result<(), OpError> {
    const OPERATOR: &str = "attention::forward";
    heads.check(OPERATOR)?;
    let (rows, width) = check::matrix(OPERATOR, "qkv", qkv.shape())?;
    check::shape(OPERATOR, "qkv", qkv.shape(), [rows, heads.row_width()])?;
    check::shape(OPERATOR, "output", output.shape(), [rows, heads.output_width()])?;
    check::shape(OPERATOR, "log_sum_exp", log_sum_exp.shape(), [rows, heads.query])?;
    let count = document_count(OPERATOR, cu_seqlens, rows)?;
    match queue.device() {
        Device::Cpu => for_float!(OPERATOR, qkv, F => {
            let documents = documents(OPERATOR, cu_seqlens, rows)?;
            let layer = Layer {
                qkv: qkv.as_slice::<F>()?,
                width,
                heads,
                factors: queue.factors(),
                output: Scattered::new(output.as_slice_mut::<F>()?),
                log_sum_exp: Scattered::new(log_sum_exp.as_slice_mut::<F>()?),
            };
            let blocks: Vec<(Document, usize, usize)> = documents
                .flat_map(|document| {
                    let starts = (0..document.length).step_by(BLOCK);
                    starts.flat_map(move |start| (0..heads.query).map(move |head| (document, start, head)))
                })
                .collect();
            blocks.into_par_iter().for_each_init(
                || Tile::new(heads.size),
                |tile, (document, start, head)| layer.block(tile, document, start, head),
            );
            Ok(())
        }),
        Device::Cuda(stream) => {
            let (dtype, matrices) = (qkv.dtype(), [qkv, output.as_view()]);
            let kernels = Kernels::new(OPERATOR, stream, heads, (rows, count), dtype, &matrices);
            kernels.launch(Pass::Output, |kernel| {
                kernel
                    .input("qkv", qkv, dtype)
                    .input("cu_seqlens", cu_seqlens, DType::U32)
                    .output("output", &output, dtype)
                    .output("log_sum_exp", &log_sum_exp, DType::F32)
            })
        }
    }
}

/// The operands of one call.
struct Layer<'a, T> {
    qkv: &'a [T],
    width: usize,
    heads: Heads,
    factors: Factors,
    output: Scattered<'a, T>,
    log_sum_exp: Scattered<'a, T>,
}

/// Scratch of one thread.
struct Tile<T> {
    scores: Vec<T>,
    sums: Vec<T>,
    largest: [T; BLOCK],
    totals: [T; BLOCK],
}

impl<T: Float> Tile<T> {
    fn new(head_size: usize) -> Self {
        Self {
            scores: vec![T::ZERO; BLOCK * BLOCK],
            sums: vec![T::ZERO; BLOCK * head_size],
            largest: [T::ZERO; BLOCK],
            totals: [T::ZERO; BLOCK],
        }
    }
}

impl<T: Float> Layer<'_, T> {
    /// The queries `start..start + BLOCK` of one head of one document.
    fn block(&self, tile: &mut Tile<T>, document: Document, start: usize, head: usize) {
        let heads = &self.heads;
        let scale = T::from_f64(heads.scale());
        let queries = BLOCK.min(document.length - start);
        let end = start + queries;
        let at = |row: usize, column: usize| &self.qkv[(document.start + row) * self.width + column..];
        let q = Matrix::block(at(start, heads.query_start(head)), queries, heads.size, self.width);
        tile.sums.fill(T::ZERO);
        tile.largest.fill(T::NEGATIVE_INFINITY);
        tile.totals.fill(T::ZERO);
        for first_key in (heads.first_key(start)..end).step_by(BLOCK) {
            let keys = BLOCK.min(end - first_key);
            let k = Matrix::block(at(first_key, heads.key_start(head)), keys, heads.size, self.width);
            let v = Matrix::block(at(first_key, heads.value_start(head)), keys, heads.size, self.width);
            let scores = MatrixMut::new(&mut tile.scores, queries, keys);
            product(scores, q, k.transposed(), scale, Output::Replace, Threads::Current, self.factors);
            self.soften(tile, start, queries, first_key, keys);
            let p = Matrix::new(&tile.scores, queries, keys);
            let sums = MatrixMut::new(&mut tile.sums, queries, heads.size);
            product(sums, p, v, T::ONE, Output::Add, Threads::Current, self.factors);
        }
        self.store(tile, document.start + start, queries, head);
    }

    /// Turns a block of scores into exp(score − running maximum), zero where a query must not see a key, and corrects
    /// the sums so far for a maximum that has risen.
    fn soften(&self, tile: &mut Tile<T>, start: usize, queries: usize, first_key: usize, keys: usize) {
        let head_size = self.heads.size;
        vectorised(
            #[inline(always)]
            || {
                for query in 0..queries {
                    let position = start + query;
                    let row = &mut tile.scores[query * keys..][..keys];
                    let seen_to = (position + 1).saturating_sub(first_key).min(keys);
                    let seen_from = self.heads.first_key(position).saturating_sub(first_key).min(seen_to);
                    row[..seen_from].fill(T::ZERO);
                    row[seen_to..].fill(T::ZERO);
                    let row = &mut row[seen_from..seen_to];
                    if row.is_empty() {
                        continue;
                    }
                    let before = tile.largest[query];
                    let largest = maximum(row);
                    let largest = if largest > before { largest } else { before };
                    for score in row.iter_mut() {
                        *score = (*score - largest).exp();
                    }
                    let correction = (before - largest).exp();
                    tile.totals[query] = tile.totals[query] * correction + sum(row);
                    tile.largest[query] = largest;
                    if before < largest {
                        for value in &mut tile.sums[query * head_size..][..head_size] {
                            *value *= correction;
                        }
                    }
                }
            },
        );
    }

    /// Divides by the softmax's denominators and writes the block's output.
    fn store(&self, tile: &Tile<T>, first_row: usize, queries: usize, head: usize) {
        let Heads { query: query_heads, size, .. } = self.heads;
        for query in 0..queries {
            let row = first_row + query;
            // SAFETY: each (row, head) belongs to one task.
            #[allow(unsafe_code)]
            let (output, log_sum_exp) = unsafe {
                (
                    self.output.piece((row * query_heads + head) * size, size),
                    self.log_sum_exp.piece(row * query_heads + head, 1),
                )
            };
            let factor = T::ONE / tile.totals[query];
            for (output, &value) in output.iter_mut().zip(&tile.sums[query * size..]) {
                *output = value * factor;
            }
            log_sum_exp[0] = tile.largest[query] + tile.totals[query].ln();
        }
    }
}
