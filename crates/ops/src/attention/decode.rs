//! Attention of one new token for each of several sequences, over a cache of the keys and values before it.

use rayon::prelude::*;

use super::{Heads, document_count, documents};
use crate::buffer::{View, ViewMut};
use crate::check::{self, for_float};
use crate::cuda::Grid;
use crate::dtype::{DType, Float};
use crate::error::OpError;
use crate::queue::{Device, Queue};
use crate::simd::{dot, maximum, sum, vectorised};

/// The kernels of a GPU, and the threads of their blocks.
const FILE: &str = "attention_decode";
const THREADS: usize = 128;

/// Appends the keys and values of `qkv` `[B, (Hq + 2·Hkv)·D]` to the `cache` `[B, capacity, 2·Hkv·D]` at position
/// `lengths` `[B]` u32 of each sequence, and writes the attention of the new token in `output` `[B, Hq·D]`. On a GPU nobody
/// checks that the lengths are below the capacity.
pub fn decode(
    queue: &Queue,
    qkv: View<'_>,
    mut cache: ViewMut<'_>,
    lengths: View<'_>,
    heads: Heads,
    mut output: ViewMut<'_>,
) -> Result<(), OpError> {
    const OPERATOR: &str = "attention::decode";
    heads.check(OPERATOR)?;
    let (rows, _) = check::matrix(OPERATOR, "qkv", qkv.shape())?;
    check::shape(OPERATOR, "qkv", qkv.shape(), [rows, heads.row_width()])?;
    check::shape(OPERATOR, "output", output.shape(), [rows, heads.output_width()])?;
    check::shape(OPERATOR, "lengths", lengths.shape(), [rows])?;
    let row_width = 2 * heads.key_value * heads.size;
    let capacity = cache.shape().extents().get(1).copied().unwrap_or(0);
    check::shape(OPERATOR, "cache", cache.shape(), [rows, capacity, row_width])?;
    match queue.device() {
        Device::Cpu => for_float!(OPERATOR, qkv, F => {
            let lengths = lengths.as_slice::<u32>()?;
            check::indices(OPERATOR, lengths, capacity)?;
            let qkv = qkv.as_slice::<F>()?.par_chunks(heads.row_width());
            let cache = cache.as_slice_mut::<F>()?.par_chunks_mut((capacity * row_width).max(1));
            let output = output.as_slice_mut::<F>()?.par_chunks_mut(heads.output_width());
            qkv.zip(cache).zip(output).zip(lengths).for_each(|(((row, cache), output), &length)| {
                let length = length as usize;
                cache[length * row_width..][..row_width].copy_from_slice(&row[heads.output_width()..]);
                let seen = heads.first_key(length) * row_width..(length + 1) * row_width;
                for (head, output) in output.chunks_exact_mut(heads.size).enumerate() {
                    attend(heads, head, &row[heads.query_start(head)..][..heads.size], &cache[seen.clone()], output);
                }
            });
            Ok(())
        }),
        Device::Cuda(stream) => {
            let dtype = qkv.dtype();
            let variant = stream.variant(OPERATOR, "qkv", dtype)?;
            let Heads { query, key_value, size, window } = heads;
            stream
                .kernel(OPERATOR, FILE, &format!("attention_append_{variant}"))
                .input("qkv", qkv, dtype)
                .input("lengths", lengths, DType::U32)
                .output("cache", &cache, dtype)
                .u32(capacity)
                .u32(heads.output_width())
                .u32(row_width)
                .launch(Grid::blocks(rows).threads(THREADS))?;
            stream
                .kernel(OPERATOR, FILE, &format!("attention_decode_{variant}"))
                .input("qkv", qkv, dtype)
                .input("cache", cache.as_view(), dtype)
                .input("lengths", lengths, DType::U32)
                .output("output", &output, dtype)
                .u32(capacity)
                .u32(query)
                .u32(key_value)
                .u32(window.unwrap_or(0))
                .u32(size)
                .launch(Grid::of([query, rows, 1]).threads(THREADS).shared(5 * size * DType::F32.size()))
        }
    }
}

/// Copies the keys and values of the documents that `cu_seqlens` describes in `qkv` `[T, (Hq + 2·Hkv)·D]` to the front of
/// each one's part of the `cache` `[documents, capacity, 2·Hkv·D]`. On a GPU nobody checks that they have room there.
pub fn fill_cache(
    queue: &Queue,
    qkv: View<'_>,
    cu_seqlens: View<'_>,
    heads: Heads,
    mut cache: ViewMut<'_>,
) -> Result<(), OpError> {
    const OPERATOR: &str = "attention::fill_cache";
    heads.check(OPERATOR)?;
    let (rows, width) = check::matrix(OPERATOR, "qkv", qkv.shape())?;
    check::shape(OPERATOR, "qkv", qkv.shape(), [rows, heads.row_width()])?;
    let count = document_count(OPERATOR, cu_seqlens, rows)?;
    let row_width = 2 * heads.key_value * heads.size;
    let capacity = cache.shape().extents().get(1).copied().unwrap_or(0);
    check::shape(OPERATOR, "cache", cache.shape(), [count, capacity, row_width])?;
    match queue.device() {
        Device::Cpu => for_float!(OPERATOR, qkv, F => {
            let documents = documents(OPERATOR, cu_seqlens, rows)?;
            if let Some(document) = documents.clone().find(|document| document.length > capacity) {
                return Err(OpError::Index { operator: OPERATOR, index: document.length - 1, bound: capacity });
            }
            let qkv = qkv.as_slice::<F>()?;
            let cache = cache.as_slice_mut::<F>()?.chunks_exact_mut((capacity * row_width).max(1));
            for (document, cache) in documents.zip(cache) {
                let rows = qkv[document.start * width..].chunks_exact(width).take(document.length);
                for (row, cache) in rows.zip(cache.chunks_exact_mut(row_width)) {
                    cache.copy_from_slice(&row[heads.output_width()..]);
                }
            }
            Ok(())
        }),
        Device::Cuda(stream) => {
            let dtype = qkv.dtype();
            let variant = stream.variant(OPERATOR, "qkv", dtype)?;
            stream
                .kernel(OPERATOR, FILE, &format!("attention_fill_cache_{variant}"))
                .input("qkv", qkv, dtype)
                .input("cu_seqlens", cu_seqlens, DType::U32)
                .output("cache", &cache, dtype)
                .u32(count)
                .u32(capacity)
                .u32(heads.output_width())
                .u32(row_width)
                .launch(Grid::blocks(rows).threads(THREADS))
        }
    }
}

/// One head of one new token over the rows of `cache` that it sees.
fn attend<T: Float>(heads: Heads, head: usize, query: &[T], cache: &[T], output: &mut [T]) {
    let size = heads.size;
    // A row of the cache holds what follows the queries in a row of queries, keys and values.
    let key_start = heads.key_start(head) - heads.output_width();
    let value_start = heads.value_start(head) - heads.output_width();
    let row_width = 2 * heads.key_value * size;
    let scale = T::from_f64(heads.scale());
    let mut weights = vec![T::ZERO; cache.len() / row_width];
    vectorised(
        #[inline(always)]
        || {
            for (weight, row) in weights.iter_mut().zip(cache.chunks_exact(row_width)) {
                *weight = dot(query, &row[key_start..][..size]) * scale;
            }
            let largest = maximum(&weights);
            for weight in weights.iter_mut() {
                *weight = (*weight - largest).exp();
            }
            let factor = T::ONE / sum(&weights);
            output.fill(T::ZERO);
            for (row, &weight) in cache.chunks_exact(row_width).zip(&weights) {
                for (output, &value) in output.iter_mut().zip(&row[value_start..][..size]) {
                    *output = (weight * factor).mul_add(value, *output);
                }
            }
        },
    );
}
