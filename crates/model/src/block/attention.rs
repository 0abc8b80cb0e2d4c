//! The first half of a block: attention behind a norm, added to the residual stream.
//!
//! m = x + Wo·attention(rope(clamp(Wqkv·norm(x))))
//!
//! Where a rank has a part of the sequence only, attention itself works on all tokens of the rank's share of the heads.

use tessera_ops::attention::split::{Columns, share};
use tessera_ops::attention::{self, Heads};
use tessera_ops::{Arena, DType, OpError, Queue, Shape, View, ViewMut, bias, clamp, fill, linear, rope};

use crate::config::ModelConfig;
use crate::model::Compute;
use crate::names::{BlockNames, QueryKeyValue};
use crate::norm::Norm;
use crate::sequence::SequenceSplit;
use crate::stage::{Context, DecodeContext};
use crate::table::{Initial, Segment, Segments};

/// The numbers of the segments in the unit.
#[derive(Debug, Clone, Copy)]
struct Places {
    norm: usize,
    qkv: usize,
    output: usize,
    qkv_bias: Option<usize>,
    output_bias: Option<usize>,
}

/// Attention with its projections.
#[derive(Debug, Clone)]
pub(super) struct Attention {
    hidden: usize,
    compute: Compute,
    heads: Heads,
    norm: Norm,
    /// What queries, keys and values are clamped to.
    clip: Option<f64>,
    places: Places,
}

/// What the forward leaves for the backward. T tokens, hidden size H.
pub(super) struct Kept<'a> {
    /// Of the norm.
    statistics: ViewMut<'a>,
    /// `[T, H]`.
    input: ViewMut<'a>,
    /// Queries, keys and values after the rotation `[T, (Hq + 2·Hkv)·D]`.
    qkv: ViewMut<'a>,
    /// Which elements of qkv were not clamped, a bit each; no columns where nothing is.
    inside: ViewMut<'a>,
    /// `[T, Hq·D]`.
    attended: ViewMut<'a>,
    /// Of the queries that attention itself worked on, one for each token and head.
    log_sum_exp: ViewMut<'a>,
    /// Queries, keys and values of the rank's share of the heads, of all tokens; no rows where nothing is split.
    shared_qkv: ViewMut<'a>,
    /// The same of the attended values.
    shared_attended: ViewMut<'a>,
}

/// What attention itself works on: so many tokens, and these heads.
#[derive(Clone, Copy)]
struct Core {
    tokens: usize,
    heads: Heads,
    /// Whether they are not this rank's tokens of all heads.
    split: bool,
}

impl Attention {
    /// Adds its segments to those of a unit.
    pub(super) fn new(
        config: &ModelConfig,
        names: &BlockNames,
        compute: Compute,
        segments: &mut Segments,
    ) -> Self {
        let heads = config.heads();
        let (hidden, query) = (config.hidden_size, heads.output_width());
        let key_value = heads.key_value * heads.size;
        let normal = Initial::Normal(config.initializer_range);
        let zeros = |name: String, rows| Segment::of(name, [rows], Initial::Constant(0.0));
        let mut add = |segment| segments.add(segment);
        let places = Places {
            qkv: add(qkv(names, [query, key_value, key_value], hidden, normal)),
            output: add(Segment::of(names.output(), [hidden, query], normal)),
            norm: add(Segment::of(names.attention_norm(), [hidden], Initial::Constant(1.0))),
            qkv_bias: config.attention_bias.then(|| {
                let [q, k, v] = names.query_key_value_biases();
                add(Segment::joined(vec![zeros(q, query), zeros(k, key_value), zeros(v, key_value)]))
            }),
            output_bias: config.attention_bias.then(|| add(zeros(names.output_bias(), hidden))),
        };
        Self { hidden, compute, heads, norm: Norm::of(config), clip: config.clip_qkv, places }
    }

    /// What attention itself works on where this rank has `tokens` tokens.
    fn core(&self, tokens: usize, split: Option<SequenceSplit<'_>>) -> Result<Core, OpError> {
        Ok(match split {
            None => Core { tokens, heads: self.heads, split: false },
            Some(split) => {
                let heads = share(self.heads, split.exchange.ranks())?;
                Core { tokens: split.whole, heads, split: true }
            }
        })
    }

    /// In the order of [`Kept`].
    fn kept_layout(&self, tokens: usize, core: Core) -> [(DType, Shape); 8] {
        let words = if self.clip.is_some() { clamp::words(self.heads.row_width()) } else { 0 };
        let shared = if core.split { core.tokens } else { 0 };
        [
            (DType::F32, [self.norm.statistics(tokens)].into()),
            (self.compute.dtype, [tokens, self.hidden].into()),
            (self.compute.dtype, [tokens, self.heads.row_width()].into()),
            (DType::U32, [tokens, words].into()),
            (self.compute.dtype, [tokens, self.heads.output_width()].into()),
            (DType::F32, [core.tokens, core.heads.query].into()),
            (self.compute.dtype, [shared, core.heads.row_width()].into()),
            (self.compute.dtype, [shared, core.heads.output_width()].into()),
        ]
    }

    /// Bytes of [`Kept`] where nothing is split.
    pub(super) fn kept_bytes(&self, tokens: usize) -> usize {
        super::bytes(&self.kept_layout(tokens, Core { tokens, heads: self.heads, split: false }))
    }

    /// Bytes that [`Kept`], and the backward's scratch, take more where `tokens` tokens are this rank's part of a sequence on
    /// `ranks` ranks. Heads and tokens change places, so the rest takes what it took.
    pub(super) fn context_bytes(&self, tokens: usize, ranks: usize) -> Result<usize, OpError> {
        if ranks == 1 {
            return Ok(0);
        }
        let [qkv, attended] = self.exchange_bytes(tokens, ranks)?;
        let cost = |bytes: usize| Arena::cost(self.compute.dtype, bytes / self.compute.dtype.size());
        Ok(cost(qkv) + cost(attended))
    }

    /// Bytes of the queries, keys and values of all tokens that are one rank's share, and of the attended values.
    pub(super) fn exchange_bytes(&self, tokens: usize, ranks: usize) -> Result<[usize; 2], OpError> {
        let heads = share(self.heads, ranks)?;
        let bytes = |width: usize| tokens * ranks * width * self.compute.dtype.size();
        Ok([bytes(heads.row_width()), bytes(heads.output_width())])
    }

    /// Takes what is kept from the front of an arena.
    pub(super) fn kept<'a>(
        &self,
        tokens: usize,
        split: Option<SequenceSplit<'_>>,
        arena: &mut Arena<'a>,
    ) -> Result<Kept<'a>, OpError> {
        let [statistics, input, qkv, inside, attended, log_sum_exp, shared_qkv, shared_attended] =
            super::take(arena, self.kept_layout(tokens, self.core(tokens, split)?));
        Ok(Kept {
            statistics: statistics?,
            input: input?,
            qkv: qkv?,
            inside: inside?,
            attended: attended?,
            log_sum_exp: log_sum_exp?,
            shared_qkv: shared_qkv?,
            shared_attended: shared_attended?,
        })
    }

    /// Bytes of scratch that the backward takes where nothing is split.
    pub(super) fn backward_bytes(&self, tokens: usize) -> usize {
        let cost = |width: usize| Arena::cost(self.compute.dtype, tokens * width);
        cost(self.hidden)
            + cost(self.heads.output_width())
            + cost(self.heads.row_width())
            + Arena::cost(DType::F32, attention::backward_scratch(self.compute.home, self.heads, tokens))
    }

    /// Computes m `[T, H]` from x `[T, H]`.
    pub(super) fn forward(
        &self,
        context: &Context<'_>,
        weights: &[View<'_>],
        x: View<'_>,
        middle: ViewMut<'_>,
        kept: &mut Kept<'_>,
    ) -> Result<(), OpError> {
        let (queue, batch) = (context.queue, &context.batch);
        self.project(queue, weights, x, batch.positions, context.rope_table, kept)?;
        self.attend(context, kept)?;
        self.output(queue, weights, x, middle, kept)
    }

    /// From queries, keys and values to the attended values.
    fn attend(&self, context: &Context<'_>, kept: &mut Kept<'_>) -> Result<(), OpError> {
        let (queue, documents) = (context.queue, context.batch.cu_seqlens);
        let log_sum_exp = kept.log_sum_exp.reborrow();
        let Some(split) = context.split else {
            let (qkv, attended) = (kept.qkv.as_view(), kept.attended.reborrow());
            return attention::forward(queue, qkv, documents, self.heads, attended, log_sum_exp);
        };
        let ranks = split.exchange.ranks();
        let heads = share(self.heads, ranks)?;
        let (qkv, output) = (Columns::of_qkv(self.heads, ranks)?, Columns::of_output(self.heads, ranks)?);
        split.scatter(queue, "qkv", qkv, kept.qkv.as_view(), kept.shared_qkv.reborrow())?;
        let attended = kept.shared_attended.reborrow();
        attention::forward(queue, kept.shared_qkv.as_view(), documents, heads, attended, log_sum_exp)?;
        split.gather(queue, "attended", output, kept.shared_attended.as_view(), kept.attended.reborrow())
    }

    /// Computes m `[B, H]` from x `[B, H]`, one new token of each sequence, whose keys and values join `cache`.
    pub(super) fn decode(
        &self,
        context: &DecodeContext<'_>,
        weights: &[View<'_>],
        x: View<'_>,
        middle: ViewMut<'_>,
        cache: ViewMut<'_>,
        kept: &mut Kept<'_>,
    ) -> Result<(), OpError> {
        let queue = context.queue;
        self.project(queue, weights, x, context.lengths, context.rope_table, kept)?;
        let attended = kept.attended.reborrow();
        attention::decode(queue, kept.qkv.as_view(), cache, context.lengths, self.heads, attended)?;
        self.output(queue, weights, x, middle, kept)
    }

    /// Copies the keys and values of a forward to the front of each sequence's `cache`.
    pub(super) fn fill_cache(
        &self,
        context: &Context<'_>,
        kept: &Kept<'_>,
        cache: ViewMut<'_>,
    ) -> Result<(), OpError> {
        attention::fill_cache(context.queue, kept.qkv.as_view(), context.batch.cu_seqlens, self.heads, cache)
    }

    /// From the block's input to rotated queries and keys, and values.
    fn project(
        &self,
        queue: &Queue,
        weights: &[View<'_>],
        x: View<'_>,
        positions: View<'_>,
        rope_table: View<'_>,
        kept: &mut Kept<'_>,
    ) -> Result<(), OpError> {
        let places = &self.places;
        let (input, statistics) = (kept.input.reborrow(), kept.statistics.reborrow());
        self.norm.forward(queue, x, weights[places.norm], input, statistics)?;
        linear::forward(queue, kept.input.as_view(), weights[places.qkv], kept.qkv.reborrow())?;
        if let Some(place) = places.qkv_bias {
            bias::forward(queue, weights[place], kept.qkv.reborrow())?;
        }
        if let Some(bound) = self.clip {
            clamp::forward(queue, kept.qkv.reborrow(), bound, kept.inside.reborrow())?;
        }
        rope::forward(queue, kept.qkv.reborrow(), self.rotated(), positions, rope_table)
    }

    /// From the attended values to m.
    fn output(
        &self,
        queue: &Queue,
        weights: &[View<'_>],
        x: View<'_>,
        mut middle: ViewMut<'_>,
        kept: &Kept<'_>,
    ) -> Result<(), OpError> {
        fill::copy(queue, x, middle.reborrow())?;
        linear::forward_add(queue, kept.attended.as_view(), weights[self.places.output], middle.reborrow())?;
        match self.places.output_bias {
            Some(place) => bias::forward(queue, weights[place], middle),
            None => Ok(()),
        }
    }

    /// The heads that are rotated: queries and keys.
    fn rotated(&self) -> usize {
        self.heads.query + self.heads.key_value
    }

    /// Turns `gradient` `[T, H]` from dm into dx and adds to the parameters' gradients.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn backward(
        &self,
        context: &Context<'_>,
        weights: &[View<'_>],
        x: View<'_>,
        kept: &Kept<'_>,
        gradient: ViewMut<'_>,
        gradients: &mut [ViewMut<'_>],
        mut scratch: Arena<'_>,
    ) -> Result<(), OpError> {
        let (queue, tokens, places) = (context.queue, context.batch.tokens(), &self.places);
        let mut dinput = scratch.take(self.compute.dtype, [tokens, self.hidden])?;
        let mut dqkv = scratch.take(self.compute.dtype, [tokens, self.heads.row_width()])?;
        self.core_backward(context, weights, kept, gradient.as_view(), gradients, &mut dqkv, scratch)?;
        let input = kept.input.as_view();
        linear::backward_weight(queue, dqkv.as_view(), input, gradients[places.qkv].reborrow())?;
        if let Some(place) = places.qkv_bias {
            bias::backward(queue, dqkv.as_view(), gradients[place].reborrow())?;
        }
        linear::backward_input(queue, dqkv.as_view(), weights[places.qkv], dinput.reborrow())?;
        self.norm.backward(
            queue,
            dinput.as_view(),
            x,
            weights[places.norm],
            kept.statistics.as_view(),
            gradient,
            gradients[places.norm].reborrow(),
        )
    }

    /// From dm to the gradient of the product Wqkv·norm(x).
    #[allow(clippy::too_many_arguments)]
    fn core_backward(
        &self,
        context: &Context<'_>,
        weights: &[View<'_>],
        kept: &Kept<'_>,
        dmiddle: View<'_>,
        gradients: &mut [ViewMut<'_>],
        dqkv: &mut ViewMut<'_>,
        mut scratch: Arena<'_>,
    ) -> Result<(), OpError> {
        let (queue, batch, places) = (context.queue, &context.batch, &self.places);
        let mut dattended = scratch.take(self.compute.dtype, [batch.tokens(), self.heads.output_width()])?;
        let doutput = gradients[places.output].reborrow();
        linear::backward_weight(queue, dmiddle, kept.attended.as_view(), doutput)?;
        if let Some(place) = places.output_bias {
            bias::backward(queue, dmiddle, gradients[place].reborrow())?;
        }
        linear::backward_input(queue, dmiddle, weights[places.output], dattended.reborrow())?;
        self.attend_backward(context, kept, dattended.as_view(), dqkv.reborrow(), scratch)?;
        rope::backward(queue, dqkv.reborrow(), self.rotated(), batch.positions, context.rope_table)?;
        match self.clip {
            Some(_) => clamp::backward(queue, dqkv.reborrow(), kept.inside.as_view()),
            None => Ok(()),
        }
    }

    /// From the gradient of the attended values to that of queries, keys and values.
    fn attend_backward(
        &self,
        context: &Context<'_>,
        kept: &Kept<'_>,
        dattended: View<'_>,
        dqkv: ViewMut<'_>,
        mut scratch: Arena<'_>,
    ) -> Result<(), OpError> {
        let queue = context.queue;
        let Core { tokens, heads, .. } = self.core(context.batch.tokens(), context.split)?;
        let (documents, log_sum_exp) = (context.batch.cu_seqlens, kept.log_sum_exp.as_view());
        let per_head =
            scratch.take(DType::F32, [attention::backward_scratch(self.compute.home, heads, tokens)])?;
        let Some(split) = context.split else {
            let (qkv, attended) = (kept.qkv.as_view(), kept.attended.as_view());
            return attention::backward(
                queue,
                dattended,
                qkv,
                attended,
                log_sum_exp,
                documents,
                heads,
                dqkv,
                per_head,
            );
        };
        let ranks = split.exchange.ranks();
        let (columns, output) = (Columns::of_qkv(self.heads, ranks)?, Columns::of_output(self.heads, ranks)?);
        let mut shared_dattended = scratch.take(self.compute.dtype, [tokens, heads.output_width()])?;
        let mut shared_dqkv = scratch.take(self.compute.dtype, [tokens, heads.row_width()])?;
        split.scatter(queue, "gradient of attended", output, dattended, shared_dattended.reborrow())?;
        attention::backward(
            queue,
            shared_dattended.as_view(),
            kept.shared_qkv.as_view(),
            kept.shared_attended.as_view(),
            log_sum_exp,
            documents,
            heads,
            shared_dqkv.reborrow(),
            per_head,
        )?;
        split.gather(queue, "gradient of qkv", columns, shared_dqkv.as_view(), dqkv)
    }
}

/// The segment of queries, keys and values, of `rows` rows each, whether the folder keeps them as three tensors or as one.
fn qkv(names: &BlockNames, rows: [usize; 3], hidden: usize, initial: Initial) -> Segment {
    match names.query_key_value() {
        QueryKeyValue::Separate(names) => {
            let parts = names.into_iter().zip(rows);
            Segment::joined(parts.map(|(name, rows)| Segment::of(name, [rows, hidden], initial)).collect())
        }
        QueryKeyValue::Fused(name) => Segment::of(name, [rows.iter().sum(), hidden], initial),
    }
}
