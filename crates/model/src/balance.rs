//! The load-balancing loss of models with experts: what it is summed from over a micro-batch.
//!
//! It pools all layers and is taken for each packed row by itself, so its gradient in one layer depends on all: the forward
//! sums how often each expert was chosen and how likely it was, and the backward reads the sums.

use std::ops::Range;

use tessera_ops::{DType, OpError, Queue, View, ViewMut, load_balance};

/// The extents of the sums: layers L with experts, and E experts in each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Balance {
    /// L.
    pub layers: usize,
    /// E.
    pub experts: usize,
}

/// The sums of a micro-batch of R rows over the layers so far.
pub struct BalanceSums<'a> {
    /// How often each expert was chosen `[R, E]` f64.
    counts: ViewMut<'a>,
    /// The sum of its probabilities `[R, E]` f64.
    probabilities: ViewMut<'a>,
}

/// What the backward of a layer needs of the loss.
#[derive(Clone, Copy)]
pub struct BalanceGradient<'a> {
    counts: View<'a>,
    layers: usize,
    scale: f64,
}

impl Balance {
    /// Bytes of the sums for `rows` rows.
    pub fn bytes(self, rows: usize) -> usize {
        2 * rows * self.experts * DType::F64.size()
    }

    /// The sums of `rows` rows in the front of `buffer`.
    pub fn sums(self, buffer: ViewMut<'_>, rows: usize) -> Result<BalanceSums<'_>, OpError> {
        let (counts, rest) = buffer.split_at(rows * self.experts)?;
        let shape = [rows, self.experts];
        let probabilities = rest.range(0, rows * self.experts)?.reshape(shape)?;
        Ok(BalanceSums { counts: counts.reshape(shape)?, probabilities })
    }

    /// total += scale·Σ of the rows' losses.
    pub fn loss(
        self,
        queue: &Queue,
        sums: &BalanceSums<'_>,
        row_starts: View<'_>,
        scale: f64,
        total: ViewMut<'_>,
    ) -> Result<(), OpError> {
        let (counts, probabilities) = (sums.counts.as_view(), sums.probabilities.as_view());
        load_balance::loss(queue, counts, probabilities, row_starts, self.layers, scale, total)
    }

    /// The gradient of scale·Σ of the rows' losses.
    pub fn gradient<'a>(self, sums: &'a BalanceSums<'_>, scale: f64) -> BalanceGradient<'a> {
        BalanceGradient { counts: sums.counts.as_view(), layers: self.layers, scale }
    }
}

impl BalanceSums<'_> {
    /// Counts and probabilities, for whoever adds those of the ranks that have other parts of the rows.
    pub fn views_mut(&mut self) -> [ViewMut<'_>; 2] {
        [self.counts.reborrow(), self.probabilities.reborrow()]
    }

    /// Adds one layer's share of the tokens `part` of the rows.
    pub(crate) fn add(
        &mut self,
        queue: &Queue,
        probabilities: View<'_>,
        chosen: View<'_>,
        row_starts: View<'_>,
        part: Range<usize>,
    ) -> Result<(), OpError> {
        let (counts, sums) = (self.counts.reborrow(), self.probabilities.reborrow());
        load_balance::add(queue, probabilities, chosen, row_starts, part, counts, sums)
    }
}

impl BalanceGradient<'_> {
    /// dprobabilities `[t, E]` = the gradient for one layer's probabilities of the tokens `part` of the rows.
    pub(crate) fn replace(
        &self,
        queue: &Queue,
        row_starts: View<'_>,
        part: Range<usize>,
        dprobabilities: ViewMut<'_>,
    ) -> Result<(), OpError> {
        load_balance::backward(queue, self.counts, row_starts, part, self.layers, self.scale, dprobabilities)
    }
}
