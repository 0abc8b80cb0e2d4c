//! What stages are told about the tokens they work on.

use tessera_ops::{Queue, View};

/// The tokens of a micro-batch on the device. Rows are concatenated without padding: T is the number of tokens that are
/// there, and an empty micro-batch has T = 0.
#[derive(Clone, Copy)]
pub struct MicroBatch<'a> {
    /// Token ids `[T]` u32.
    pub tokens: View<'a>,
    /// The position of each token in its document `[T]` u32.
    pub positions: View<'a>,
    /// Where documents begin `[documents + 1]` u32, from 0 to T.
    pub cu_seqlens: View<'a>,
    /// The tokens that have a target `[C]` u32, rising.
    pub loss_rows: View<'a>,
    /// Their targets `[C]` u32.
    pub targets: View<'a>,
}

impl MicroBatch<'_> {
    /// T, the number of tokens.
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
