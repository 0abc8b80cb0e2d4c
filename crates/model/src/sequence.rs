//! A sequence that lies on several ranks: each computes with its stretch of the tokens, but attention needs all of them.
//!
//! So around attention tokens are exchanged for heads (DeepSpeed-Ulysses; Jacobs et al. 2023, arXiv:2309.14509): a rank
//! gives its tokens of the heads that others attend with and gets theirs of its own heads; then the results go back. Nothing
//! else of a model looks beyond a token. How blocks reach the other ranks is for whoever drives the stages.

use std::ops::Range;

use tessera_ops::attention::split::{self, Columns};
use tessera_ops::{DType, OpError, Queue, View, ViewMut, fill};

/// Ranks that share a sequence and can exchange blocks.
pub trait SequenceExchange {
    /// The number of ranks C.
    fn ranks(&self) -> usize;

    /// Every rank's i-th block goes to rank i. `give` writes what this rank gives, `elements` of `dtype` in C equal blocks;
    /// `take` sees what it gets: the blocks of all ranks in their order. All ranks call this together; `label` names the
    /// exchange in messages.
    ///
    /// # Errors
    /// [`OpError::Exchange`] if the blocks did not arrive.
    fn exchange(
        &self,
        queue: &Queue,
        label: &'static str,
        dtype: DType,
        elements: usize,
        give: &mut dyn FnMut(ViewMut<'_>) -> Result<(), OpError>,
        take: &mut dyn FnMut(View<'_>) -> Result<(), OpError>,
    ) -> Result<(), OpError>;
}

/// A micro-batch of which this rank has a part.
#[derive(Clone, Copy)]
pub struct SequenceSplit<'a> {
    /// The way to the ranks with the other parts.
    pub exchange: &'a dyn SequenceExchange,
    /// T, the tokens of all of them.
    pub whole: usize,
    /// Which of them is this rank's first.
    pub first: usize,
}

impl SequenceSplit<'_> {
    /// The tokens of rank `rank` of `ranks`, of `whole` tokens: an equal share each, but for the last ones, which may have
    /// fewer.
    pub fn part(whole: usize, rank: usize, ranks: usize) -> Range<usize> {
        let share = whole.div_ceil(ranks.max(1));
        (rank * share).min(whole)..((rank + 1) * share).min(whole)
    }

    /// From this rank's tokens of all heads, x `[t, columns.width()]`, to all tokens of its heads, y
    /// `[T, columns.share_width()]`.
    pub(crate) fn scatter(
        &self,
        queue: &Queue,
        label: &'static str,
        columns: Columns,
        x: View<'_>,
        mut y: ViewMut<'_>,
    ) -> Result<(), OpError> {
        let (blocks, elements) = self.blocks(columns);
        let mut give = |given: ViewMut<'_>| split::pack(queue, columns, x, given.reshape(blocks)?);
        // Block after block, the ranks' tokens are the sequence; only the last blocks end in filler.
        let mut take = |got: View<'_>| {
            fill::copy(queue, got.range(0, y.shape().elements())?.reshape(y.shape())?, y.reborrow())
        };
        self.exchange.exchange(queue, label, x.dtype(), elements, &mut give, &mut take)
    }

    /// The way back: from all tokens of this rank's heads, x `[T, columns.share_width()]`, to its tokens of all heads, y
    /// `[t, columns.width()]`; what several ranks have of a head is added.
    pub(crate) fn gather(
        &self,
        queue: &Queue,
        label: &'static str,
        columns: Columns,
        x: View<'_>,
        mut y: ViewMut<'_>,
    ) -> Result<(), OpError> {
        let (blocks, elements) = self.blocks(columns);
        let mut give = |given: ViewMut<'_>| {
            fill::copy(queue, x, given.range(0, x.shape().elements())?.reshape(x.shape())?)
        };
        let mut take = |got: View<'_>| split::unpack(queue, columns, got.reshape(blocks)?, y.reborrow());
        self.exchange.exchange(queue, label, x.dtype(), elements, &mut give, &mut take)
    }

    /// The shape of the blocks that go around, `[C, S, w]`, and their elements.
    fn blocks(&self, columns: Columns) -> ([usize; 3], usize) {
        let rows = Self::part(self.whole, 0, columns.ranks()).len();
        let shape = [columns.ranks(), rows, columns.share_width()];
        (shape, shape.iter().product())
    }
}
