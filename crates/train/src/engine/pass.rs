//! One way through the model: the order in which units arrive, and the stages' calls.

use std::ops::Range;

use tessera_data::{IGNORED_LABEL, MicroBatch};
use tessera_dist::{DistError, Units};
use tessera_model::{BalanceGradient, BalanceSums, Context, Model, Visit};
use tessera_ops::{Buffer, DType, OpError, Queue, View, ViewMut, embedding};

use super::context::stage_error;

/// A stretch of a micro-batch's tokens with the places of their targets, as the stages want it.
pub(super) struct Targets {
    part: Range<usize>,
    loss_rows: Vec<u32>,
    targets: Vec<u32>,
}

impl Targets {
    /// Of all tokens.
    pub(super) fn of(batch: &MicroBatch) -> Self {
        Self::of_part(batch, 0..batch.tokens.len())
    }

    /// Of the tokens `part`, which must be there.
    pub(super) fn of_part(batch: &MicroBatch, part: Range<usize>) -> Self {
        let labels = &batch.labels[part.clone()];
        let labelled = || labels.iter().enumerate().filter(|&(_, &label)| label != IGNORED_LABEL);
        Self {
            loss_rows: labelled().map(|(row, _)| row as u32).collect(),
            targets: labelled().map(|(_, &label)| label as u32).collect(),
            part,
        }
    }

    /// Of the micro-batch that they were made of.
    pub(super) fn views<'a>(&'a self, batch: &'a MicroBatch) -> tessera_model::MicroBatch<'a> {
        tessera_model::MicroBatch {
            tokens: View::of(&batch.tokens[self.part.clone()]),
            positions: View::of(&batch.positions[self.part.clone()]),
            row_starts: View::of(&batch.row_starts),
            cu_seqlens: View::of(&batch.cu_seqlens),
            loss_rows: View::of(&self.loss_rows),
            targets: View::of(&self.targets),
        }
    }
}

/// A model's stages with its units, over one micro-batch.
pub(super) struct Pass<'a> {
    pub model: &'a Model,
    pub units: &'a Units,
    pub context: Context<'a>,
}

/// What a forward leaves behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Keep {
    /// The input of every stage, and what blocks leave for their backward where there is room for each.
    ForBackward,
    /// Nothing but the head's input: two buffers take turns.
    Nothing,
}

impl Pass<'_> {
    pub(super) fn queue(&self) -> &Queue {
        self.context.queue
    }

    /// Runs `body` with the weights of `unit`, while those of `next` are on their way.
    pub(super) fn with_weights<R>(
        &self,
        unit: usize,
        next: Option<usize>,
        body: impl FnOnce(&[View<'_>]) -> Result<R, DistError>,
    ) -> Result<R, DistError> {
        let weights = self.units.weights(self.queue(), unit)?;
        if let Some(next) = next.filter(|&next| next != unit) {
            self.units.prefetch(self.queue(), next)?;
        }
        let views = self.model.units()[unit].views(weights.view()?)?;
        body(&views)
    }

    /// Runs `body` with the places of the gradients of `unit`, which then leave; its weights are not needed.
    pub(super) fn with_gradients_alone(
        &self,
        unit: usize,
        body: impl FnOnce(&mut [ViewMut<'_>]) -> Result<(), DistError>,
    ) -> Result<(), DistError> {
        let mut gradient = self.units.gradient(self.queue(), unit)?;
        body(&mut self.model.units()[unit].views_mut(gradient.view_mut()?)?)?;
        self.units.reduce(self.queue(), unit, gradient)
    }

    /// Runs `body` with the weights of `unit` and the places of their gradients, which then leave.
    pub(super) fn with_gradients<R>(
        &self,
        unit: usize,
        next: Option<usize>,
        body: impl FnOnce(&[View<'_>], &mut [ViewMut<'_>]) -> Result<R, DistError>,
    ) -> Result<R, DistError> {
        let mut gradient = self.units.gradient(self.queue(), unit)?;
        let result = self.with_weights(unit, next, |weights| {
            let flat = gradient.view_mut()?;
            body(weights, &mut self.model.units()[unit].views_mut(flat)?)
        })?;
        self.units.reduce(self.queue(), unit, gradient)?;
        Ok(result)
    }

    /// From tokens to the head's input, which lies in the input buffer whose index is returned. `after_block` sees each
    /// block's arena before the next block uses it.
    pub(super) fn forward(
        &self,
        inputs: &mut [Buffer],
        kept: &mut [Buffer],
        keep: Keep,
        mut balance: Option<&mut BalanceSums<'_>>,
        mut after_block: impl FnMut(usize, &mut Buffer) -> Result<(), OpError>,
    ) -> Result<usize, DistError> {
        let place = |index: usize| if keep == Keep::ForBackward { index } else { index % 2 };
        let first = self.stream(&mut inputs[0])?;
        self.with_weights(0, Some(1), |weights| {
            Ok(embedding::forward(self.queue(), self.context.batch.tokens, weights[0], first)?)
        })?;
        let blocks = self.model.blocks();
        for (index, block) in blocks.iter().enumerate() {
            let (x, y) = two(inputs, place(index), place(index + 1));
            let (x, mut y) = (self.stream(x)?, self.stream(y)?);
            let arena = index % kept.len();
            let kept = &mut kept[arena];
            for stage in 0..block.stages() {
                let (unit, next) = (self.model.stage_unit(index, stage), self.model.unit_after(index, stage));
                self.with_weights(unit, Some(next), |weights| {
                    let (x, y, balance) = (x.as_view(), y.reborrow(), balance.as_deref_mut());
                    block
                        .forward(stage, &self.context, weights, x, y, kept.arena(), balance)
                        .map_err(stage_error)
                })?;
            }
            after_block(index, kept)?;
        }
        Ok(place(blocks.len()))
    }

    /// From the gradient of the head's input to that of the first block's, through the blocks' `visits`.
    pub(super) fn backward(
        &self,
        visits: &[(usize, usize, Visit)],
        inputs: &mut [Buffer],
        kept: &mut [Buffer],
        scratch: &mut Buffer,
        balance: Option<BalanceGradient<'_>>,
        dx: &mut ViewMut<'_>,
    ) -> Result<(), DistError> {
        for (place, &(unit, index, visit)) in visits.iter().enumerate() {
            let next = visits.get(place + 1).map(|&(unit, ..)| unit);
            let block = &self.model.blocks()[index];
            let x = self.stream(&mut inputs[index])?;
            let arena = index % kept.len();
            let kept = kept[arena].arena();
            if !visit.backward {
                self.with_weights(unit, next, |weights| {
                    block.recompute(&self.context, weights, x.as_view(), kept).map_err(stage_error)
                })?;
                continue;
            }
            self.with_gradients(unit, next, |weights, gradients| {
                let (context, x, dx, scratch) = (&self.context, x.as_view(), dx.reborrow(), scratch.arena());
                let done = block.backward(visit, context, weights, x, kept, dx, gradients, scratch, balance);
                done.map_err(stage_error)
            })?;
        }
        Ok(())
    }

    /// The `[T, H]` front of a buffer.
    pub(super) fn stream<'b>(&self, buffer: &'b mut Buffer) -> Result<ViewMut<'b>, OpError> {
        let (dtype, width) = (self.model.compute().dtype, self.model.config().hidden_size);
        rows(buffer, dtype, self.context.batch.tokens(), width)
    }
}

/// The stages on the way back, each with its unit and block. What the last block kept is still there.
pub(super) fn visits(model: &Model, recompute: bool) -> Vec<(usize, usize, Visit)> {
    let blocks = model.blocks();
    let visits = blocks.iter().enumerate().rev().flat_map(|(index, block)| {
        let visits = block.visits(recompute && index + 1 < blocks.len());
        visits.into_iter().map(move |visit| (model.stage_unit(index, visit.stage), index, visit))
    });
    visits.collect()
}

/// The table of the rotary embedding `[positions, head size]`.
pub(super) fn rope_view<'a>(table: &'a Buffer, model: &Model) -> Result<View<'a>, OpError> {
    let head_size = model.config().head_dim;
    let view = table.view(DType::F32);
    view.reshape([view.shape().elements() / head_size, head_size])
}

/// The front of a buffer as a matrix.
pub(super) fn rows(
    buffer: &mut Buffer,
    dtype: DType,
    rows: usize,
    width: usize,
) -> Result<ViewMut<'_>, OpError> {
    buffer.view_mut(dtype).range(0, rows * width)?.reshape([rows, width])
}

/// Two different buffers of a list.
pub(super) fn two(buffers: &mut [Buffer], first: usize, second: usize) -> (&mut Buffer, &mut Buffer) {
    if first < second {
        let (left, right) = buffers.split_at_mut(second);
        (&mut left[first], &mut right[0])
    } else {
        let (left, right) = buffers.split_at_mut(first);
        (&mut right[0], &mut left[second])
    }
}
