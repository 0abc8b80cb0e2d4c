//! The end of a model: final norm, output projection, loss.
//!
//! Logits exist for one chunk of tokens at a time, and only for tokens that have a target: in a conversation most have
//! none. Since the loss is the last thing, its gradient is computed in the same pass, chunk by chunk.

use tessera_ops::step::statistic;
use tessera_ops::{Arena, DType, Home, OpError, Queue, View, ViewMut, cross_entropy, fill, linear, rows};

use crate::config::ModelConfig;
use crate::factor::{as_factor, factor_bytes};
use crate::model::Compute;
use crate::norm::Norm;
use crate::stage::Context;

/// Logits of one chunk may take this many bytes: large enough for the matrix product to run at its best rate, small
/// against everything else. On a GPU, which does a product of few rows no faster than it reads the matrix, that is more.
fn chunk_bytes(home: Home) -> usize {
    match home {
        Home::Host => 128 << 20,
        Home::Gpu => 512 << 20,
    }
}

/// Where the segments lie in the head's unit: the output matrix first, then the final norm.
const MATRIX: usize = 0;
const NORM: usize = 1;

/// What losses count in the gradient of a step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LossScale {
    /// Each token's: 1 / (loss tokens of the whole step).
    pub token: f64,
    /// Each packed row's load-balancing loss: its coefficient / (rows of the whole step that are not empty).
    pub balance: f64,
}

/// The final norm and the output projection.
#[derive(Debug, Clone)]
pub struct Head {
    hidden: usize,
    /// Whose dtype is that of the rows; logits and what becomes of them are fp32.
    compute: Compute,
    vocabulary: usize,
    norm: Norm,
}

/// Scratch for one chunk of C tokens; hidden size H, vocabulary V.
struct Chunk<'a> {
    /// The rows of the residual stream that have a target `[C, H]`.
    input: ViewMut<'a>,
    /// Of the norm.
    statistics: ViewMut<'a>,
    /// The normalised rows, later their gradient `[C, H]`.
    normed: ViewMut<'a>,
    /// The gradient of the input `[C, H]`.
    dinput: ViewMut<'a>,
    /// `[C, V]`.
    logits: ViewMut<'a>,
}

impl Head {
    pub(crate) fn new(config: &ModelConfig, compute: Compute) -> Self {
        let norm = Norm::of(config);
        Self { hidden: config.hidden_size, compute, vocabulary: config.vocab_size, norm }
    }

    /// The number of tokens whose logits exist at a time, where `tokens` are there in all.
    pub fn chunk_tokens(&self, tokens: usize) -> usize {
        let fitting = (chunk_bytes(self.compute.home) / (self.vocabulary * DType::F32.size())).max(64);
        (1 << fitting.ilog2()).min(tokens.max(1))
    }

    /// Bytes of scratch for `tokens` tokens.
    pub fn scratch_bytes(&self, tokens: usize) -> usize {
        let chunk = self.chunk_tokens(tokens);
        let matrix = |dtype, width: usize| Arena::cost(dtype, chunk * width);
        Arena::cost(DType::F32, self.norm.statistics(chunk))
            + 3 * matrix(self.compute.dtype, self.hidden)
            + matrix(DType::F32, self.vocabulary)
            + factor_bytes(self.compute.dtype, chunk * self.vocabulary)
    }

    fn chunk<'a>(&self, tokens: usize, arena: &mut Arena<'a>) -> Result<Chunk<'a>, OpError> {
        Ok(Chunk {
            input: arena.take(self.compute.dtype, [tokens, self.hidden])?,
            statistics: arena.take(DType::F32, [self.norm.statistics(tokens)])?,
            normed: arena.take(self.compute.dtype, [tokens, self.hidden])?,
            dinput: arena.take(self.compute.dtype, [tokens, self.hidden])?,
            logits: arena.take(DType::F32, [tokens, self.vocabulary])?,
        })
    }

    /// Adds the losses and hits of the micro-batch to `statistics`.
    pub fn evaluate(
        &self,
        context: &Context<'_>,
        weights: &[View<'_>],
        x: View<'_>,
        mut statistics: ViewMut<'_>,
        mut arena: Arena<'_>,
    ) -> Result<(), OpError> {
        for (loss_rows, targets) in self.chunks(context)? {
            let mut inner = arena.inner();
            let mut chunk = self.chunk(loss_rows.shape().elements(), &mut inner)?;
            self.chunk_logits(context.queue, weights, x, loss_rows, &mut chunk)?;
            let sums = statistics.reborrow().range(statistic::LOSS_SUM, 2)?;
            cross_entropy::forward(context.queue, chunk.logits, targets, sums)?;
        }
        Ok(())
    }

    /// Adds the losses and hits to `statistics`, adds to the parameters' `gradients`, and writes the gradient of x in
    /// `dx` `[T, H]`.
    #[allow(clippy::too_many_arguments)]
    pub fn train(
        &self,
        context: &Context<'_>,
        weights: &[View<'_>],
        x: View<'_>,
        scale: LossScale,
        mut statistics: ViewMut<'_>,
        mut dx: ViewMut<'_>,
        gradients: &mut [ViewMut<'_>],
        mut arena: Arena<'_>,
    ) -> Result<(), OpError> {
        let queue = context.queue;
        // Rows without a target have no gradient; the others are written chunk by chunk.
        fill::zero(queue, dx.reborrow())?;
        for (loss_rows, targets) in self.chunks(context)? {
            let mut inner = arena.inner();
            let mut chunk = self.chunk(loss_rows.shape().elements(), &mut inner)?;
            self.chunk_logits(queue, weights, x, loss_rows, &mut chunk)?;
            let sums = statistics.reborrow().range(statistic::LOSS_SUM, 2)?;
            cross_entropy::forward_backward(queue, chunk.logits.reborrow(), targets, scale.token, sums)?;
            self.chunk_backward(queue, weights, &mut chunk, gradients, inner)?;
            rows::scatter(queue, chunk.dinput.as_view(), loss_rows, dx.reborrow())?;
        }
        Ok(())
    }

    /// Writes the logits of the rows of x that `picked` `[C]` names in `logits` `[C, V]`.
    pub fn logits(
        &self,
        queue: &Queue,
        weights: &[View<'_>],
        x: View<'_>,
        picked: View<'_>,
        logits: ViewMut<'_>,
        mut arena: Arena<'_>,
    ) -> Result<(), OpError> {
        let mut chunk = self.chunk(picked.shape().elements(), &mut arena)?;
        self.chunk_logits(queue, weights, x, picked, &mut chunk)?;
        fill::copy(queue, chunk.logits.as_view(), logits)
    }

    /// The rows with a target and their targets, chunk by chunk.
    fn chunks<'a>(&self, context: &Context<'a>) -> Result<Vec<(View<'a>, View<'a>)>, OpError> {
        let batch = &context.batch;
        let count = batch.loss_rows.shape().elements();
        let chunk = self.chunk_tokens(batch.tokens());
        (0..count)
            .step_by(chunk)
            .map(|start| {
                let length = chunk.min(count - start);
                Ok((batch.loss_rows.range(start, length)?, batch.targets.range(start, length)?))
            })
            .collect()
    }

    fn chunk_logits(
        &self,
        queue: &Queue,
        weights: &[View<'_>],
        x: View<'_>,
        loss_rows: View<'_>,
        chunk: &mut Chunk<'_>,
    ) -> Result<(), OpError> {
        rows::gather(queue, x, loss_rows, chunk.input.reborrow())?;
        let (normed, statistics) = (chunk.normed.reborrow(), chunk.statistics.reborrow());
        self.norm.forward(queue, chunk.input.as_view(), weights[NORM], normed, statistics)?;
        linear::forward(queue, chunk.normed.as_view(), weights[MATRIX], chunk.logits.reborrow())
    }

    /// From the gradient of the logits to that of the chunk's input and of the parameters.
    fn chunk_backward(
        &self,
        queue: &Queue,
        weights: &[View<'_>],
        chunk: &mut Chunk<'_>,
        gradients: &mut [ViewMut<'_>],
        mut scratch: Arena<'_>,
    ) -> Result<(), OpError> {
        let dlogits = as_factor(queue, self.compute.dtype, chunk.logits.as_view(), &mut scratch)?;
        linear::backward_weight(queue, dlogits, chunk.normed.as_view(), gradients[MATRIX].reborrow())?;
        linear::backward_input(queue, dlogits, weights[MATRIX], chunk.normed.reborrow())?;
        fill::zero(queue, chunk.dinput.reborrow())?;
        self.norm.backward(
            queue,
            chunk.normed.as_view(),
            chunk.input.as_view(),
            weights[NORM],
            chunk.statistics.as_view(),
            chunk.dinput.reborrow(),
            gradients[NORM].reborrow(),
        )
    }
}
