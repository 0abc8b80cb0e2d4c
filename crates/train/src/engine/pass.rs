//! One way through the model: the order in which units arrive, and the stages' calls.

use tessera_data::{IGNORED_LABEL, MicroBatch};
use tessera_dist::{DistError, Units};
use tessera_model::{Context, Model};
use tessera_ops::{Buffer, DType, OpError, Queue, View, ViewMut, embedding};

use super::Workspace;

/// A micro-batch with the places of its targets, as the stages want it.
pub(super) struct Targets {
    loss_rows: Vec<u32>,
    targets: Vec<u32>,
}

impl Targets {
    pub(super) fn of(batch: &MicroBatch) -> Self {
        let labelled = || batch.labels.iter().enumerate().filter(|&(_, &label)| label != IGNORED_LABEL);
        Self {
            loss_rows: labelled().map(|(row, _)| row as u32).collect(),
            targets: labelled().map(|(_, &label)| label as u32).collect(),
        }
    }

    pub(super) fn views<'a>(&'a self, batch: &'a MicroBatch) -> tessera_model::MicroBatch<'a> {
        tessera_model::MicroBatch {
            tokens: View::of(&batch.tokens),
            positions: View::of(&batch.positions),
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
        workspace: &mut Workspace,
        keep: Keep,
        mut after_block: impl FnMut(usize, &mut Buffer) -> Result<(), OpError>,
    ) -> Result<usize, DistError> {
        let place = |index: usize| if keep == Keep::ForBackward { index } else { index % 2 };
        let blocks = self.model.blocks();
        let first = self.stream(&mut workspace.inputs[0])?;
        self.with_weights(0, Some(1), |weights| {
            Ok(embedding::forward(self.queue(), self.context.batch.tokens, weights[0], first)?)
        })?;
        for (index, block) in blocks.iter().enumerate() {
            let (x, y) = two(&mut workspace.inputs, place(index), place(index + 1));
            let (x, y) = (self.stream(x)?, self.stream(y)?);
            let arena = index % workspace.kept.len();
            let kept = &mut workspace.kept[arena];
            let next = if index + 1 < blocks.len() { index + 2 } else { self.model.head_unit() };
            self.with_weights(1 + index, Some(next), |weights| {
                block.forward(&self.context, weights, x.as_view(), Some(y), kept.arena())?;
                Ok(after_block(index, kept)?)
            })?;
        }
        Ok(place(blocks.len()))
    }

    /// The `[T, H]` front of a buffer.
    pub(super) fn stream<'b>(&self, buffer: &'b mut Buffer) -> Result<ViewMut<'b>, OpError> {
        rows(buffer, self.context.batch.tokens(), self.model.config().hidden_size)
    }
}

/// The table of the rotary embedding `[positions, head size]`.
pub(super) fn rope_view<'a>(table: &'a Buffer, model: &Model) -> Result<View<'a>, OpError> {
    let head_size = model.config().head_dim;
    let view = table.view(DType::F32);
    view.reshape([view.shape().elements() / head_size, head_size])
}

/// The front of a buffer as a matrix.
pub(super) fn rows(buffer: &mut Buffer, rows: usize, width: usize) -> Result<ViewMut<'_>, OpError> {
    buffer.view_mut(DType::F32).range(0, rows * width)?.reshape([rows, width])
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
