//! The decoder block: attention, then a feed-forward layer or experts, each behind a norm and added to the residual stream.
//!
//! A block is one stage or, with experts, several: attention and router first, then each group of experts. A stage has one
//! unit of parameters, so that its weights arrive, and its gradients leave, by themselves. What the stages of a block tell
//! one another lies in the block's arena.
//!
//! The forward leaves everything the backward needs in that arena. With recompute by block one arena serves all blocks and
//! the backward's caller asks for the forward to be done again; without it each block has an arena of its own.

mod attention;
mod dense;
mod experts;

use tessera_ops::{Arena, DType, OpError, Shape, View, ViewMut, fill};

use crate::balance::{BalanceGradient, BalanceSums};
use crate::config::ModelConfig;
use crate::model::Compute;
use crate::names::BlockNames;
use crate::sequence::SequenceSplit;
use crate::stage::{Context, DecodeContext, chunks};
use crate::table::{Segments, UnitTable};
use attention::Attention;
use dense::Dense;
use experts::Experts;

/// One decoder block.
#[derive(Debug, Clone)]
pub struct Block {
    hidden: usize,
    /// The dtype of the residual stream.
    compute: DType,
    attention: Attention,
    feed_forward: FeedForward,
}

/// The second half of a block.
#[derive(Debug, Clone)]
enum FeedForward {
    Dense(Dense),
    Experts(Experts),
}

/// One call on the way back through a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Visit {
    /// Whose weights it needs.
    pub stage: usize,
    /// Whether what the forward left is computed again.
    pub recompute: bool,
    /// Whether gradients are computed, or it is all about the recompute.
    pub backward: bool,
}

impl Block {
    /// The block of a config, computing as `compute` says, and the tables of its stages' units.
    pub fn new(config: &ModelConfig, names: &BlockNames, compute: Compute) -> (Self, Vec<UnitTable>) {
        let mut segments = Segments::default();
        let attention = Attention::new(config, names, compute, &mut segments);
        let (feed_forward, groups) = match config.experts {
            None => (FeedForward::Dense(Dense::new(config, names, compute.dtype, &mut segments)), Vec::new()),
            Some(experts) => {
                let (experts, groups) = Experts::new(config, experts, names, compute.dtype, &mut segments);
                (FeedForward::Experts(experts), groups)
            }
        };
        let units = std::iter::once(UnitTable::new(segments.into())).chain(groups).collect();
        (Self { hidden: config.hidden_size, compute: compute.dtype, attention, feed_forward }, units)
    }

    /// The number of stages, each with a unit.
    pub fn stages(&self) -> usize {
        match &self.feed_forward {
            FeedForward::Dense(_) => 1,
            FeedForward::Experts(experts) => 1 + experts.groups(),
        }
    }

    /// The calls on the way back: [`Block::recompute`] where a visit has no backward, else [`Block::backward`].
    pub fn visits(&self, recompute: bool) -> Vec<Visit> {
        match &self.feed_forward {
            FeedForward::Dense(_) => vec![Visit { stage: 0, recompute, backward: true }],
            FeedForward::Experts(experts) => {
                let again = recompute.then_some(Visit { stage: 0, recompute, backward: false });
                let groups = (1..=experts.groups()).rev();
                again
                    .into_iter()
                    .chain(groups.map(|stage| Visit { stage, recompute, backward: true }))
                    .chain([Visit { stage: 0, recompute: false, backward: true }])
                    .collect()
            }
        }
    }

    /// Bytes that the forward of `tokens` tokens takes from its arena, where it works on `chunk` of them at a time.
    pub fn kept_bytes(&self, tokens: usize, chunk: usize) -> usize {
        let feed_forward = match &self.feed_forward {
            FeedForward::Dense(dense) => dense.kept_bytes(chunk),
            FeedForward::Experts(experts) => experts.kept_bytes(tokens, chunk),
        };
        Arena::cost(self.compute, tokens * self.hidden) + self.attention.kept_bytes(tokens) + feed_forward
    }

    /// Bytes that the backward of `tokens` tokens takes from its scratch arena.
    pub fn backward_bytes(&self, tokens: usize, chunk: usize) -> usize {
        let attention = self.attention.backward_bytes(tokens);
        match &self.feed_forward {
            FeedForward::Dense(dense) => dense.backward_bytes(chunk).max(attention),
            FeedForward::Experts(experts) => experts.backward_bytes(tokens, chunk, attention),
        }
    }

    /// Bytes that both the arena of the forward and the scratch of the backward take more where this rank has at most `tokens`
    /// tokens of a sequence that lies on `ranks` ranks.
    ///
    /// # Errors
    /// When the heads cannot be split over so many ranks.
    pub fn context_bytes(&self, tokens: usize, ranks: usize) -> Result<usize, OpError> {
        self.attention.context_bytes(tokens, ranks)
    }

    /// Bytes that one rank lays out for the others, and of what it gets, on the way into attention and on the way out
    /// of it; the backward's ways are as large.
    ///
    /// # Errors
    /// As [`Block::context_bytes`].
    pub fn exchange_bytes(&self, tokens: usize, ranks: usize) -> Result<[usize; 2], OpError> {
        self.attention.exchange_bytes(tokens, ranks)
    }

    /// The residual stream between the halves `[T, H]`, and what the attention keeps.
    fn kept<'a>(
        &self,
        tokens: usize,
        split: Option<SequenceSplit<'_>>,
        arena: &mut Arena<'a>,
    ) -> Result<(ViewMut<'a>, attention::Kept<'a>), OpError> {
        Ok((arena.take(self.compute, [tokens, self.hidden])?, self.attention.kept(tokens, split, arena)?))
    }

    /// The forward of one stage. The first computes from x `[T, H]`; all write to, or add to, y `[T, H]`. What the backward
    /// needs is left in `kept`. The load-balancing loss's share goes to `balance`, where one is asked for.
    #[allow(clippy::too_many_arguments)]
    pub fn forward(
        &self,
        stage: usize,
        context: &Context<'_>,
        weights: &[View<'_>],
        x: View<'_>,
        y: ViewMut<'_>,
        mut kept: Arena<'_>,
        balance: Option<&mut BalanceSums<'_>>,
    ) -> Result<(), OpError> {
        let (queue, batch) = (context.queue, &context.batch);
        let (mut middle, mut attention) = self.kept(batch.tokens(), context.split, &mut kept)?;
        if stage == 0 {
            self.attention.forward(context, weights, x, middle.reborrow(), &mut attention)?;
        }
        let middle = middle.as_view();
        match &self.feed_forward {
            FeedForward::Dense(dense) => dense.forward(queue, context.chunks(), weights, middle, y, kept),
            FeedForward::Experts(experts) => {
                let mut routing = experts.routing(batch.tokens(), context.chunks().len(), &mut kept)?;
                if stage > 0 {
                    return experts.forward(stage - 1, queue, context.chunks(), weights, &routing, y, kept);
                }
                fill::copy(queue, middle, y)?;
                let balance = balance.map(|sums| (sums, context));
                experts.route(queue, context.chunks(), weights, middle, &mut routing, balance)
            }
        }
    }

    /// Computes again what the first stage of a block with experts left for the others.
    pub fn recompute(
        &self,
        context: &Context<'_>,
        weights: &[View<'_>],
        x: View<'_>,
        mut kept: Arena<'_>,
    ) -> Result<(), OpError> {
        let tokens = context.batch.tokens();
        let (mut middle, mut attention) = self.kept(tokens, context.split, &mut kept)?;
        self.attention.forward(context, weights, x, middle.reborrow(), &mut attention)?;
        let FeedForward::Experts(experts) = &self.feed_forward else { return Ok(()) };
        let mut routing = experts.routing(tokens, context.chunks().len(), &mut kept)?;
        experts.route(context.queue, context.chunks(), weights, middle.as_view(), &mut routing, None)
    }

    /// One visit on the way back. The first stage's, which is the last, turns `gradient` `[T, H]` from dy into dx; all add to
    /// their parameters' `gradients`. What the forward left in `kept` is used up; `scratch` must be the same for all visits
    /// of a block.
    #[allow(clippy::too_many_arguments)]
    pub fn backward(
        &self,
        visit: Visit,
        context: &Context<'_>,
        weights: &[View<'_>],
        x: View<'_>,
        mut kept: Arena<'_>,
        mut gradient: ViewMut<'_>,
        gradients: &mut [ViewMut<'_>],
        mut scratch: Arena<'_>,
        balance: Option<BalanceGradient<'_>>,
    ) -> Result<(), OpError> {
        let tokens = context.batch.tokens();
        let (mut middle, mut attention) = self.kept(tokens, context.split, &mut kept)?;
        match &self.feed_forward {
            FeedForward::Dense(dense) => {
                if visit.recompute {
                    self.attention.forward(context, weights, x, middle.reborrow(), &mut attention)?;
                }
                let (middle, gradient, scratch) = (middle.as_view(), gradient.reborrow(), scratch.inner());
                let again = visit.recompute;
                dense.backward(context, weights, middle, kept, again, gradient, gradients, scratch)?;
            }
            FeedForward::Experts(experts) => {
                let routing = experts.routing(tokens, context.chunks().len(), &mut kept)?;
                if let Some(group) = visit.stage.checked_sub(1) {
                    let (again, dy) = (visit.recompute, gradient.as_view());
                    return experts
                        .backward(group, context, weights, &routing, kept, again, dy, gradients, scratch);
                }
                let (middle, gradient) = (middle.as_view(), gradient.reborrow());
                let scratch = scratch.inner();
                experts.route_backward(
                    context, weights, middle, &routing, gradient, gradients, scratch, balance,
                )?;
            }
        }
        self.attention.backward(context, weights, x, &attention, gradient, gradients, scratch)
    }

    /// The forward of one stage for x `[B, H]`, one new token of each sequence, whose keys and values join `cache`
    /// `[B, capacity, 2·Hkv·D]` in the first. `scratch` is sized by [`Block::kept_bytes`] and must be the same for all
    /// stages of a block.
    #[allow(clippy::too_many_arguments)]
    pub fn decode(
        &self,
        stage: usize,
        context: &DecodeContext<'_>,
        weights: &[View<'_>],
        x: View<'_>,
        y: ViewMut<'_>,
        cache: ViewMut<'_>,
        mut scratch: Arena<'_>,
    ) -> Result<(), OpError> {
        let (queue, sequences) = (context.queue, context.lengths.shape().elements());
        let one_chunk = || chunks(sequences, sequences);
        let (mut middle, mut attention) = self.kept(sequences, None, &mut scratch)?;
        if stage == 0 {
            self.attention.decode(context, weights, x, middle.reborrow(), cache, &mut attention)?;
        }
        let middle = middle.as_view();
        match &self.feed_forward {
            FeedForward::Dense(dense) => dense.forward(queue, one_chunk(), weights, middle, y, scratch),
            FeedForward::Experts(experts) => {
                let mut routing = experts.routing(sequences, one_chunk().len(), &mut scratch)?;
                if stage > 0 {
                    return experts.forward(stage - 1, queue, one_chunk(), weights, &routing, y, scratch);
                }
                fill::copy(queue, middle, y)?;
                experts.route(queue, one_chunk(), weights, middle, &mut routing, None)
            }
        }
    }

    /// Copies the keys and values that a forward left in `kept` to the front of each sequence's `cache`
    /// `[documents, capacity, 2·Hkv·D]`.
    pub fn fill_cache(
        &self,
        context: &Context<'_>,
        mut kept: Arena<'_>,
        cache: ViewMut<'_>,
    ) -> Result<(), OpError> {
        let (_, attention) = self.kept(context.batch.tokens(), context.split, &mut kept)?;
        self.attention.fill_cache(context, &attention, cache)
    }
}

/// The views of a layout, taken one after the other.
fn take<'a, const COUNT: usize>(
    arena: &mut Arena<'a>,
    layout: [(DType, Shape); COUNT],
) -> [Result<ViewMut<'a>, OpError>; COUNT] {
    layout.map(|(dtype, shape)| arena.take(dtype, shape))
}

/// Bytes of views taken from an arena.
fn bytes(layout: &[(DType, Shape)]) -> usize {
    layout.iter().map(|&(dtype, shape)| Arena::cost(dtype, shape.elements())).sum()
}
