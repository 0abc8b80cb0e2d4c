//! What stages are told about the tokens they work on.

use std::ops::Range;

use tessera_ops::{Queue, View};

use crate::sequence::SequenceSplit;

/// The tokens of a micro-batch on the device. Rows are concatenated without padding: T is the number of tokens that are
/// there, and an empty micro-batch has T = 0. Where the sequence lies on several ranks, tokens, positions and targets are
/// those of this rank's part, rows and documents those of the whole.
#[derive(Clone, Copy)]
pub struct MicroBatch<'a> {
    /// Token ids `[T]` u32.
    pub tokens: View<'a>,
    /// The position of each token in its document `[T]` u32.
    pub positions: View<'a>,
    /// Where packed rows begin `[R + 1]` u32, from 0 to T. A row may be empty.
    pub row_starts: View<'a>,
    /// Where documents begin `[documents + 1]` u32, from 0 to T.
    pub cu_seqlens: View<'a>,
    /// The tokens that have a target `[C]` u32, rising.
    pub loss_rows: View<'a>,
    /// Their targets `[C]` u32.
    pub targets: View<'a>,
}

impl MicroBatch<'_> {
    /// The number of tokens: T, or those of this rank's part.
    pub fn tokens(&self) -> usize {
        self.tokens.shape().elements()
    }
}

/// What every stage of a forward and a backward sees.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// Where the work is issued.
    pub queue: &'a Queue,
    /// The tokens.
    pub batch: MicroBatch<'a>,
    /// Cosines and sines of the rotary embedding `[positions, head size]`.
    pub rope_table: View<'a>,
    /// Tokens on which feed-forward layers work at a time, at least 1.
    pub chunk_tokens: usize,
    /// The rest of the sequence, where this rank has only a part of it.
    pub split: Option<SequenceSplit<'a>>,
}

impl Context<'_> {
    /// The tokens in chunks.
    pub(crate) fn chunks(&self) -> impl ExactSizeIterator<Item = Range<usize>> {
        chunks(self.batch.tokens(), self.chunk_tokens)
    }

    /// This rank's tokens, of those that rows and documents are made of.
    pub(crate) fn part(&self) -> Range<usize> {
        let first = self.split.map_or(0, |split| split.first);
        first..first + self.batch.tokens()
    }

    /// Whether what a chunk leaves for the backward is still there after the forward.
    pub(crate) fn one_chunk(&self) -> bool {
        self.batch.tokens() <= self.chunk_tokens
    }
}

/// `tokens` tokens, at most `chunk` at a time.
pub(crate) fn chunks(tokens: usize, chunk: usize) -> impl ExactSizeIterator<Item = Range<usize>> {
    let chunk = chunk.max(1);
    (0..tokens).step_by(chunk).map(move |start| start..tokens.min(start + chunk))
}

/// What every stage sees when one new token follows each of B sequences.
#[derive(Clone, Copy)]
pub struct DecodeContext<'a> {
    /// Where the work is issued.
    pub queue: &'a Queue,
    /// How many tokens of each sequence are in the cache `[B]` u32; also the new token's position.
    pub lengths: View<'a>,
    /// Cosines and sines of the rotary embedding `[positions, head size]`.
    pub rope_table: View<'a>,
}
