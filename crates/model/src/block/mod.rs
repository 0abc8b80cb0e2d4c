//! The decoder block of Llama and Mistral: attention and a gated feed-forward layer, each behind an RMSNorm and added to
//! the residual stream.
//!
//! m = x + Wo·attention(rope(Wqkv·norm₁(x)));  y = m + Wdown·swiglu(Wgate_up·norm₂(m))
//!
//! The forward leaves everything the backward needs in an arena. With recompute by block one arena serves all blocks and
//! the backward's caller runs the forward into it again; without it each block has an arena of its own. The stage does not
//! know which.

use tessera_ops::attention::{self, Heads};
use tessera_ops::{Arena, DType, OpError, Shape, View, ViewMut, bias, fill, linear, rms_norm, rope, swiglu};

use crate::config::LlamaConfig;
use crate::stage::{Context, DecodeContext};
use crate::table::{Initial, Segment, UnitTable};

/// The places of the block's segments in its unit.
#[derive(Debug, Clone, Copy)]
struct Places {
    qkv: usize,
    output: usize,
    gate_up: usize,
    down: usize,
    attention_norm: usize,
    feed_forward_norm: usize,
    qkv_bias: Option<usize>,
    output_bias: Option<usize>,
    gate_up_bias: Option<usize>,
    down_bias: Option<usize>,
}

/// One decoder block.
#[derive(Debug, Clone)]
pub struct Block {
    hidden: usize,
    intermediate: usize,
    heads: Heads,
    epsilon: f64,
    places: Places,
}

/// What the forward leaves for the backward. T tokens, hidden size H, intermediate size F.
struct Kept<'a> {
    /// Of the norm before attention `[T]`.
    attention_inverse_rms: ViewMut<'a>,
    /// `[T, H]`.
    attention_input: ViewMut<'a>,
    /// Queries, keys and values after the rotation `[T, (Hq + 2·Hkv)·D]`.
    qkv: ViewMut<'a>,
    /// `[T, Hq·D]`.
    attended: ViewMut<'a>,
    /// `[T, Hq]`.
    log_sum_exp: ViewMut<'a>,
    /// The residual stream between the halves `[T, H]`.
    middle: ViewMut<'a>,
    /// Of the norm before the feed-forward layer `[T]`.
    feed_forward_inverse_rms: ViewMut<'a>,
    /// `[T, H]`.
    feed_forward_input: ViewMut<'a>,
    /// `[T, 2F]`.
    gate_up: ViewMut<'a>,
    /// `[T, F]`.
    activation: ViewMut<'a>,
}

impl Block {
    /// The block of a config, and the table of its unit; `index` names the parameters.
    pub fn new(config: &LlamaConfig, index: usize) -> (Self, UnitTable) {
        let (hidden, intermediate) = (config.hidden_size, config.intermediate_size);
        let heads = config.heads();
        let name = |suffix: &str| format!("model.layers.{index}.{suffix}");
        let normal = Initial::Normal(config.initializer_range);
        let weight = |layer: &str, rows, columns| {
            Segment::of(name(&format!("{layer}.weight")), [rows, columns], normal)
        };
        let zeros =
            |layer: &str, rows| Segment::of(name(&format!("{layer}.bias")), [rows], Initial::Constant(0.0));
        let ones =
            |layer: &str| Segment::of(name(&format!("{layer}.weight")), [hidden], Initial::Constant(1.0));
        let (query, key_value) = (heads.query * heads.size, heads.key_value * heads.size);
        let mut segments = vec![
            Segment::joined(vec![
                weight("self_attn.q_proj", query, hidden),
                weight("self_attn.k_proj", key_value, hidden),
                weight("self_attn.v_proj", key_value, hidden),
            ]),
            weight("self_attn.o_proj", hidden, query),
            Segment::joined(vec![
                weight("mlp.gate_proj", intermediate, hidden),
                weight("mlp.up_proj", intermediate, hidden),
            ]),
            weight("mlp.down_proj", hidden, intermediate),
            ones("input_layernorm"),
            ones("post_attention_layernorm"),
        ];
        let mut optional = |present: bool, segment: Segment| {
            present.then(|| {
                segments.push(segment);
                segments.len() - 1
            })
        };
        let qkv_bias = Segment::joined(vec![
            zeros("self_attn.q_proj", query),
            zeros("self_attn.k_proj", key_value),
            zeros("self_attn.v_proj", key_value),
        ]);
        let gate_up_bias =
            Segment::joined(vec![zeros("mlp.gate_proj", intermediate), zeros("mlp.up_proj", intermediate)]);
        let places = Places {
            qkv: 0,
            output: 1,
            gate_up: 2,
            down: 3,
            attention_norm: 4,
            feed_forward_norm: 5,
            qkv_bias: optional(config.attention_bias, qkv_bias),
            output_bias: optional(config.attention_bias, zeros("self_attn.o_proj", hidden)),
            gate_up_bias: optional(config.mlp_bias, gate_up_bias),
            down_bias: optional(config.mlp_bias, zeros("mlp.down_proj", hidden)),
        };
        let block = Self { hidden, intermediate, heads, epsilon: config.rms_norm_eps, places };
        (block, UnitTable::new(segments))
    }

    /// Bytes that the forward of `tokens` tokens takes from its arena.
    pub fn kept_bytes(&self, tokens: usize) -> usize {
        self.kept_shapes(tokens).iter().map(|shape| Arena::cost(DType::F32, shape.elements())).sum()
    }

    /// Bytes that the backward of `tokens` tokens takes from its scratch arena.
    pub fn backward_bytes(&self, tokens: usize) -> usize {
        let cost = |width: usize| Arena::cost(DType::F32, tokens * width);
        let feed_forward = cost(self.intermediate);
        let attention = cost(self.heads.output_width())
            + cost(self.heads.row_width())
            + Arena::cost(DType::F32, attention::backward_scratch(self.heads, tokens));
        cost(self.hidden) + feed_forward.max(attention)
    }

    /// In the order of [`Kept`].
    fn kept_shapes(&self, tokens: usize) -> [Shape; 10] {
        let matrix = |width: usize| [tokens, width].into();
        let heads = &self.heads;
        [
            [tokens].into(),
            matrix(self.hidden),
            matrix(heads.row_width()),
            matrix(heads.output_width()),
            matrix(heads.query),
            matrix(self.hidden),
            [tokens].into(),
            matrix(self.hidden),
            matrix(2 * self.intermediate),
            matrix(self.intermediate),
        ]
    }

    fn kept<'a>(&self, tokens: usize, arena: &mut Arena<'a>) -> Result<Kept<'a>, OpError> {
        let shapes = self.kept_shapes(tokens);
        let mut take = |index: usize| arena.take(DType::F32, shapes[index]);
        Ok(Kept {
            attention_inverse_rms: take(0)?,
            attention_input: take(1)?,
            qkv: take(2)?,
            attended: take(3)?,
            log_sum_exp: take(4)?,
            middle: take(5)?,
            feed_forward_inverse_rms: take(6)?,
            feed_forward_input: take(7)?,
            gate_up: take(8)?,
            activation: take(9)?,
        })
    }

    /// Computes y `[T, H]` from x `[T, H]`, leaving in `kept` what the backward needs. Without `y` (a recompute) the last
    /// product is left out.
    pub fn forward(
        &self,
        context: &Context<'_>,
        weights: &[View<'_>],
        x: View<'_>,
        y: Option<ViewMut<'_>>,
        mut kept: Arena<'_>,
    ) -> Result<(), OpError> {
        let batch = &context.batch;
        let mut kept = self.kept(batch.tokens(), &mut kept)?;
        self.project(context.queue, weights, x, batch.positions, context.rope_table, &mut kept)?;
        attention::forward(
            context.queue,
            kept.qkv.as_view(),
            batch.cu_seqlens,
            self.heads,
            kept.attended.reborrow(),
            kept.log_sum_exp.reborrow(),
        )?;
        self.feed_forward(context.queue, weights, x, y, &mut kept)
    }

    /// Computes y `[B, H]` from x `[B, H]`, one new token of each sequence, whose keys and values join `cache`
    /// `[B, capacity, 2·Hkv·D]`. `scratch` is sized by [`Block::kept_bytes`].
    pub fn decode(
        &self,
        context: &DecodeContext<'_>,
        weights: &[View<'_>],
        x: View<'_>,
        y: ViewMut<'_>,
        cache: ViewMut<'_>,
        mut scratch: Arena<'_>,
    ) -> Result<(), OpError> {
        let sequences = context.lengths.shape().elements();
        let mut kept = self.kept(sequences, &mut scratch)?;
        self.project(context.queue, weights, x, context.lengths, context.rope_table, &mut kept)?;
        attention::decode(
            context.queue,
            kept.qkv.as_view(),
            cache,
            context.lengths,
            self.heads,
            kept.attended.reborrow(),
        )?;
        self.feed_forward(context.queue, weights, x, Some(y), &mut kept)
    }

    /// Copies the keys and values that a forward left in `kept` to the front of each sequence's `cache`
    /// `[documents, capacity, 2·Hkv·D]`.
    pub fn fill_cache(
        &self,
        context: &Context<'_>,
        mut kept: Arena<'_>,
        cache: ViewMut<'_>,
    ) -> Result<(), OpError> {
        let kept = self.kept(context.batch.tokens(), &mut kept)?;
        attention::fill_cache(context.queue, kept.qkv.as_view(), context.batch.cu_seqlens, self.heads, cache)
    }

    /// From the block's input to rotated queries and keys, and values.
    fn project(
        &self,
        queue: &tessera_ops::Queue,
        weights: &[View<'_>],
        x: View<'_>,
        positions: View<'_>,
        rope_table: View<'_>,
        kept: &mut Kept<'_>,
    ) -> Result<(), OpError> {
        let places = &self.places;
        rms_norm::forward(
            queue,
            x,
            weights[places.attention_norm],
            self.epsilon,
            kept.attention_input.reborrow(),
            kept.attention_inverse_rms.reborrow(),
        )?;
        linear::forward(queue, kept.attention_input.as_view(), weights[places.qkv], kept.qkv.reborrow())?;
        if let Some(place) = places.qkv_bias {
            bias::forward(queue, weights[place], kept.qkv.reborrow())?;
        }
        let rotated = self.heads.query + self.heads.key_value;
        rope::forward(queue, kept.qkv.reborrow(), rotated, positions, rope_table)
    }

    /// From the attended values to the block's output.
    fn feed_forward(
        &self,
        queue: &tessera_ops::Queue,
        weights: &[View<'_>],
        x: View<'_>,
        y: Option<ViewMut<'_>>,
        kept: &mut Kept<'_>,
    ) -> Result<(), OpError> {
        let places = &self.places;
        fill::copy(queue, x, kept.middle.reborrow())?;
        linear::forward_add(queue, kept.attended.as_view(), weights[places.output], kept.middle.reborrow())?;
        if let Some(place) = places.output_bias {
            bias::forward(queue, weights[place], kept.middle.reborrow())?;
        }
        rms_norm::forward(
            queue,
            kept.middle.as_view(),
            weights[places.feed_forward_norm],
            self.epsilon,
            kept.feed_forward_input.reborrow(),
            kept.feed_forward_inverse_rms.reborrow(),
        )?;
        let input = kept.feed_forward_input.as_view();
        linear::forward(queue, input, weights[places.gate_up], kept.gate_up.reborrow())?;
        if let Some(place) = places.gate_up_bias {
            bias::forward(queue, weights[place], kept.gate_up.reborrow())?;
        }
        swiglu::forward(queue, kept.gate_up.as_view(), kept.activation.reborrow())?;
        let Some(mut y) = y else { return Ok(()) };
        fill::copy(queue, kept.middle.as_view(), y.reborrow())?;
        linear::forward_add(queue, kept.activation.as_view(), weights[places.down], y.reborrow())?;
        match places.down_bias {
            Some(place) => bias::forward(queue, weights[place], y),
            None => Ok(()),
        }
    }

    /// Turns `gradient` `[T, H]` from dy into dx and adds to the parameters' `gradients`, from the input x and what the
    /// forward left in `kept`, which is used up.
    #[allow(clippy::too_many_arguments)]
    pub fn backward(
        &self,
        context: &Context<'_>,
        weights: &[View<'_>],
        x: View<'_>,
        mut kept: Arena<'_>,
        mut gradient: ViewMut<'_>,
        gradients: &mut [ViewMut<'_>],
        mut scratch: Arena<'_>,
    ) -> Result<(), OpError> {
        let mut kept = self.kept(context.batch.tokens(), &mut kept)?;
        self.feed_forward_backward(
            context,
            weights,
            &mut kept,
            gradient.reborrow(),
            gradients,
            scratch.inner(),
        )?;
        self.attention_backward(context, weights, x, &mut kept, gradient, gradients, scratch)
    }

    /// Turns `gradient` from dy into dm.
    fn feed_forward_backward(
        &self,
        context: &Context<'_>,
        weights: &[View<'_>],
        kept: &mut Kept<'_>,
        gradient: ViewMut<'_>,
        gradients: &mut [ViewMut<'_>],
        mut scratch: Arena<'_>,
    ) -> Result<(), OpError> {
        let (queue, tokens, places) = (context.queue, context.batch.tokens(), &self.places);
        let mut dinput = scratch.take(DType::F32, [tokens, self.hidden])?;
        let mut dactivation = scratch.take(DType::F32, [tokens, self.intermediate])?;
        let dy = gradient.as_view();
        linear::backward_weight(queue, dy, kept.activation.as_view(), gradients[places.down].reborrow())?;
        if let Some(place) = places.down_bias {
            bias::backward(queue, dy, gradients[place].reborrow())?;
        }
        linear::backward_input(queue, dy, weights[places.down], dactivation.reborrow())?;
        swiglu::backward(queue, dactivation.as_view(), kept.gate_up.reborrow())?;
        let dgate_up = kept.gate_up.as_view();
        let input = kept.feed_forward_input.as_view();
        linear::backward_weight(queue, dgate_up, input, gradients[places.gate_up].reborrow())?;
        if let Some(place) = places.gate_up_bias {
            bias::backward(queue, dgate_up, gradients[place].reborrow())?;
        }
        linear::backward_input(queue, dgate_up, weights[places.gate_up], dinput.reborrow())?;
        rms_norm::backward(
            queue,
            dinput.as_view(),
            kept.middle.as_view(),
            weights[places.feed_forward_norm],
            kept.feed_forward_inverse_rms.as_view(),
            gradient,
            gradients[places.feed_forward_norm].reborrow(),
        )
    }

    /// Turns `gradient` from dm into dx.
    #[allow(clippy::too_many_arguments)]
    fn attention_backward(
        &self,
        context: &Context<'_>,
        weights: &[View<'_>],
        x: View<'_>,
        kept: &mut Kept<'_>,
        gradient: ViewMut<'_>,
        gradients: &mut [ViewMut<'_>],
        mut scratch: Arena<'_>,
    ) -> Result<(), OpError> {
        let (queue, batch, places, heads) = (context.queue, &context.batch, &self.places, self.heads);
        let tokens = batch.tokens();
        let mut dinput = scratch.take(DType::F32, [tokens, self.hidden])?;
        let mut dattended = scratch.take(DType::F32, [tokens, heads.output_width()])?;
        let mut dqkv = scratch.take(DType::F32, [tokens, heads.row_width()])?;
        let per_head = scratch.take(DType::F32, [attention::backward_scratch(heads, tokens)])?;
        let dmiddle = gradient.as_view();
        linear::backward_weight(
            queue,
            dmiddle,
            kept.attended.as_view(),
            gradients[places.output].reborrow(),
        )?;
        if let Some(place) = places.output_bias {
            bias::backward(queue, dmiddle, gradients[place].reborrow())?;
        }
        linear::backward_input(queue, dmiddle, weights[places.output], dattended.reborrow())?;
        attention::backward(
            queue,
            dattended.as_view(),
            kept.qkv.as_view(),
            kept.attended.as_view(),
            kept.log_sum_exp.as_view(),
            batch.cu_seqlens,
            heads,
            dqkv.reborrow(),
            per_head,
        )?;
        let rotated = heads.query + heads.key_value;
        rope::backward(queue, dqkv.reborrow(), rotated, batch.positions, context.rope_table)?;
        let input = kept.attention_input.as_view();
        linear::backward_weight(queue, dqkv.as_view(), input, gradients[places.qkv].reborrow())?;
        if let Some(place) = places.qkv_bias {
            bias::backward(queue, dqkv.as_view(), gradients[place].reborrow())?;
        }
        linear::backward_input(queue, dqkv.as_view(), weights[places.qkv], dinput.reborrow())?;
        rms_norm::backward(
            queue,
            dinput.as_view(),
            x,
            weights[places.attention_norm],
            kept.attention_inverse_rms.as_view(),
            gradient,
            gradients[places.attention_norm].reborrow(),
        )
    }
}
