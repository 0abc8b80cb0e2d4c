//! Causal grouped-query attention, bounded by documents and, where asked, by a sliding window; never an S×S matrix.
//!
//! For head h of a document: S = QKᵀ/√D over the keys j ≤ i (and i − j < window), P = softmax(S), O = PV. Query head h
//! uses key-value head h / (query heads / key-value heads).
//! The softmax runs over blocks of keys with a running maximum (Milakov and Gimelshein 2018, arXiv:1805.02867; Dao et
//! al. 2022, arXiv:2205.14135). Kept for the backward: the input, O, and the log-sum-exp L of each row of S:
//! P = exp(S − L);  dV = PᵀdO;  dS = P∘(dO·Vᵀ − rowsum(dO∘O));  dQ = dS·K/√D;  dK = dSᵀ·Q/√D.
//!
//! A row of `qkv` `[T, (Hq + 2·Hkv)·D]` holds the query heads, the key heads, the value heads, as one product with the
//! joined weight leaves them. `cu_seqlens` `[documents + 1]` u32 holds the token at which each document starts, then T: it
//! rises from 0. On a GPU nobody checks that it does, but whoever uploads it.
//! On a GPU rows are fp32 or bf16; L, and the scratch of the backward, are fp32 with either.

mod backward;
mod decode;
mod forward;
mod kernels;
pub mod split;

pub use backward::{backward, backward_scratch};
pub use decode::{decode, fill_cache};
pub use forward::forward;

use crate::buffer::View;
use crate::check;
use crate::error::OpError;

/// Rows of queries, and of keys, that are worked on at once: a block of scores stays in the second-level cache.
const BLOCK: usize = 128;

/// What an attention layer looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heads {
    /// Number of query heads Hq.
    pub query: usize,
    /// Number of key-value heads Hkv; divides `query`.
    pub key_value: usize,
    /// Elements of one head D.
    pub size: usize,
    /// A query sees this many keys, itself included; `None`: all before it.
    pub window: Option<usize>,
}

impl Heads {
    /// Fails unless a layer can look like this.
    fn check(self, operator: &'static str) -> Result<(), OpError> {
        let positive = self.query > 0 && self.key_value > 0 && self.size > 0 && self.window != Some(0);
        if positive && self.query.is_multiple_of(self.key_value) {
            return Ok(());
        }
        Err(OpError::Heads { operator, found: self })
    }

    /// Elements of one row of queries, keys and values.
    pub fn row_width(&self) -> usize {
        (self.query + 2 * self.key_value) * self.size
    }

    /// Elements of one row of the output.
    pub fn output_width(&self) -> usize {
        self.query * self.size
    }

    /// Where in a row query head `head` begins.
    fn query_start(&self, head: usize) -> usize {
        head * self.size
    }

    /// Where in a row the keys of query head `head` begin.
    fn key_start(&self, head: usize) -> usize {
        (self.query + head / (self.query / self.key_value)) * self.size
    }

    /// Where in a row the values of query head `head` begin.
    fn value_start(&self, head: usize) -> usize {
        self.key_start(head) + self.key_value * self.size
    }

    /// 1/√D.
    fn scale(&self) -> f64 {
        1.0 / (self.size as f64).sqrt()
    }

    /// The first key that the query at `position` of its document sees.
    #[inline(always)]
    fn first_key(&self, position: usize) -> usize {
        self.window.map_or(0, |window| (position + 1).saturating_sub(window))
    }
}

/// A document inside the rows of a micro-batch.
#[derive(Debug, Clone, Copy)]
struct Document {
    start: usize,
    length: usize,
}

/// The number of documents that `cu_seqlens` describes: one at least, unless there are no rows.
fn document_count(operator: &'static str, cu_seqlens: View<'_>, rows: usize) -> Result<usize, OpError> {
    match check::vector(operator, "cu_seqlens", cu_seqlens.shape())? {
        bounds if bounds > usize::from(rows > 0) => Ok(bounds - 1),
        bounds => Err(no_documents(operator, vec![bounds], rows)),
    }
}

/// The documents that `cu_seqlens` describes; they must cover the rows `0..rows` in order.
fn documents(
    operator: &'static str,
    cu_seqlens: View<'_>,
    rows: usize,
) -> Result<impl Iterator<Item = Document> + Clone, OpError> {
    let bounds = cu_seqlens.as_slice::<u32>()?;
    let covers = bounds.first() == Some(&0)
        && bounds.last().is_some_and(|&last| last as usize == rows)
        && bounds.is_sorted();
    if !covers {
        let found = vec![bounds.len(), bounds.last().map_or(0, |&last| last as usize)];
        return Err(no_documents(operator, found, rows));
    }
    Ok(bounds
        .windows(2)
        .map(|bounds| Document { start: bounds[0] as usize, length: (bounds[1] - bounds[0]) as usize }))
}

/// What is wrong with `cu_seqlens`: its length, and its end where that is known.
fn no_documents(operator: &'static str, found: Vec<usize>, rows: usize) -> OpError {
    let expected = format!("a rising list from 0 to {rows}");
    OpError::Shape { operator, argument: "cu_seqlens", found, expected }
}
