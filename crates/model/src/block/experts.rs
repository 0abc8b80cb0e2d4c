//! The second half of a block with experts: a router sends each token to k of E gated feed-forward layers, whose outputs
//! are added to the residual stream, weighted.
//!
//! h = norm(m);  w = router(Wr·h);  y = m + Σⱼ wⱼ·Wdownⱼ·swiglu(Wgate_upⱼ·h)
//!
//! Norm and router belong to the unit of the block's attention. Experts are dealt out to groups, each a unit of its own, so
//! that a rank never holds all experts of a block at once. Within a chunk of tokens the (token, choice) pairs are sorted
//! by expert; each expert then multiplies the rows between two offsets. No weight is copied, no token dropped, and a
//! token's experts are added in rising order whatever the groups are.

use std::ops::Range;

use tessera_ops::experts::linear::WeightLayout;
use tessera_ops::experts::{self, ExpertRows};
use tessera_ops::{Arena, DType, Factors, OpError, Queue, Shape, View, ViewMut, fill, linear, router};

use crate::balance::{BalanceGradient, BalanceSums};
use crate::config::{ExpertsConfig, ModelConfig};
use crate::factor::{as_factor, factor_bytes};
use crate::names::{BlockNames, ExpertSizes, ExpertTensor};
use crate::norm::Norm;
use crate::stage::Context;
use crate::table::{Initial, Segment, Segments, UnitTable};

/// The segments of a group's unit.
const GATE_UP: usize = 0;
const DOWN: usize = 1;

/// A router and its experts.
#[derive(Debug, Clone)]
pub(super) struct Experts {
    hidden: usize,
    compute: DType,
    intermediate: usize,
    config: ExpertsConfig,
    norm: Norm,
    /// The number of the norm's segment in the unit of the attention.
    norm_place: usize,
    /// The number of the router's.
    router_place: usize,
    /// How the matrices of the experts' outputs are stored.
    down_layout: WeightLayout,
    /// The experts of each group.
    groups: Vec<Range<usize>>,
}

/// What the router leaves for all stages of the block. T tokens, hidden size H, E experts, k of them active.
pub(super) struct Routing<'a> {
    /// Of the norm.
    statistics: ViewMut<'a>,
    /// h `[T, H]`.
    normed: ViewMut<'a>,
    /// `[T, E]`.
    probabilities: ViewMut<'a>,
    /// The experts of each token `[T, k]`.
    chosen: ViewMut<'a>,
    /// Their weights `[T, k]`.
    weights: ViewMut<'a>,
    /// Chunk by chunk, the (token, choice) pairs sorted by expert `[T, k]`.
    slots: ViewMut<'a>,
    /// Where each pair lies among them `[T, k]`.
    places: ViewMut<'a>,
    /// Where each expert's rows begin `[chunks, E + 1]`.
    offsets: ViewMut<'a>,
}

/// Rows of a chunk of C tokens, sorted by expert; intermediate size F.
struct Rows<'a> {
    /// `[C·k, H]`.
    input: ViewMut<'a>,
    /// `[C·k, 2F]`.
    gate_up: ViewMut<'a>,
    /// `[C·k, F]`.
    activation: ViewMut<'a>,
    /// `[C·k, H]`.
    output: ViewMut<'a>,
}

/// Gradients that the stages of a block's backward hand on.
struct Flow<'a> {
    /// Of h `[T, H]`.
    dnormed: ViewMut<'a>,
    /// Of the weights `[T, k]`.
    dweights: ViewMut<'a>,
}

/// One chunk as the operators on experts want it.
struct Chunk<'a> {
    tokens: Range<usize>,
    normed: View<'a>,
    weights: View<'a>,
    slots: View<'a>,
    places: View<'a>,
    rows: ExpertRows<'a>,
}

impl Experts {
    /// Adds norm and router to the segments of the attention's unit, and makes the units of the groups.
    pub(super) fn new(
        config: &ModelConfig,
        experts: ExpertsConfig,
        names: &BlockNames,
        compute: DType,
        segments: &mut Segments,
    ) -> (Self, Vec<UnitTable>) {
        let hidden = config.hidden_size;
        let normal = Initial::Normal(config.initializer_range);
        let mut add = |segment| segments.add(segment);
        let groups = groups(config, experts);
        let this = Self {
            hidden,
            compute,
            intermediate: config.intermediate_size,
            config: experts,
            norm: Norm::of(config),
            router_place: add(Segment::of(names.router(), [experts.count, hidden], normal)),
            norm_place: add(Segment::of(names.feed_forward_norm(), [hidden], Initial::Constant(1.0))),
            down_layout: names.expert_down_layout(),
            groups,
        };
        let units = this.groups.iter().map(|group| unit(config, experts, names, group.clone())).collect();
        (this, units)
    }

    /// The number of groups.
    pub(super) fn groups(&self) -> usize {
        self.groups.len()
    }

    /// In the order of [`Routing`].
    fn routing_layout(&self, tokens: usize, chunks: usize) -> [(DType, Shape); 8] {
        let ExpertsConfig { count, active, .. } = self.config;
        [
            (DType::F32, [self.norm.statistics(tokens)].into()),
            (self.compute, [tokens, self.hidden].into()),
            (DType::F32, [tokens, count].into()),
            (DType::U32, [tokens, active].into()),
            (DType::F32, [tokens, active].into()),
            (DType::U32, [tokens, active].into()),
            (DType::U32, [tokens, active].into()),
            (DType::U32, [chunks, count + 1].into()),
        ]
    }

    /// In the order of [`Rows`].
    fn rows_layout(&self, chunk: usize) -> [(DType, Shape); 4] {
        let rows = chunk * self.config.active;
        [
            (self.compute, [rows, self.hidden].into()),
            (self.compute, [rows, 2 * self.intermediate].into()),
            (self.compute, [rows, self.intermediate].into()),
            (self.compute, [rows, self.hidden].into()),
        ]
    }

    /// Bytes of what the forward leaves.
    pub(super) fn kept_bytes(&self, tokens: usize, chunk: usize) -> usize {
        let chunks = tokens.div_ceil(chunk.max(1));
        super::bytes(&self.routing_layout(tokens, chunks)) + super::bytes(&self.rows_layout(chunk))
    }

    /// Takes the routing from the front of an arena.
    pub(super) fn routing<'a>(
        &self,
        tokens: usize,
        chunks: usize,
        arena: &mut Arena<'a>,
    ) -> Result<Routing<'a>, OpError> {
        let [statistics, normed, probabilities, chosen, weights, slots, places, offsets] =
            super::take(arena, self.routing_layout(tokens, chunks));
        Ok(Routing {
            statistics: statistics?,
            normed: normed?,
            probabilities: probabilities?,
            chosen: chosen?,
            weights: weights?,
            slots: slots?,
            places: places?,
            offsets: offsets?,
        })
    }

    fn rows<'a>(&self, chunk: usize, arena: &mut Arena<'a>) -> Result<Rows<'a>, OpError> {
        let [input, gate_up, activation, output] = super::take(arena, self.rows_layout(chunk));
        Ok(Rows { input: input?, gate_up: gate_up?, activation: activation?, output: output? })
    }

    /// Bytes of scratch that the gradients between the stages take.
    fn flow_bytes(&self, tokens: usize) -> usize {
        Arena::cost(self.compute, tokens * self.hidden) + Arena::cost(DType::F32, tokens * self.config.active)
    }

    /// Bytes of scratch that the backward takes, where that of the attention takes `attention`.
    pub(super) fn backward_bytes(&self, tokens: usize, chunk: usize, attention: usize) -> usize {
        let experts = Arena::cost(self.compute, chunk * self.config.active * self.intermediate);
        let scores = tokens * self.config.count;
        let router = Arena::cost(DType::F32, scores) + factor_bytes(self.compute, scores);
        self.flow_bytes(tokens) + experts.max(router).max(attention)
    }

    /// Takes the gradients between the stages from the front of the scratch: always from the same place.
    fn flow<'a>(&self, tokens: usize, scratch: &mut Arena<'a>) -> Result<Flow<'a>, OpError> {
        Ok(Flow {
            dnormed: scratch.take(self.compute, [tokens, self.hidden])?,
            dweights: scratch.take(DType::F32, [tokens, self.config.active])?,
        })
    }

    /// One chunk of the routing, seen by a group.
    fn chunk<'a>(
        &self,
        group: usize,
        (index, tokens): (usize, Range<usize>),
        routing: &'a Routing<'_>,
    ) -> Result<Chunk<'a>, OpError> {
        let active = self.config.active;
        let pairs = tokens.len() * active;
        let offsets = self.config.count + 1;
        let slots_of = |view: &'a ViewMut<'_>| view.as_view().range(tokens.start * active, pairs);
        Ok(Chunk {
            normed: routing.normed.as_view().rows(tokens.clone())?,
            weights: routing.weights.as_view().rows(tokens.clone())?,
            slots: slots_of(&routing.slots)?,
            places: slots_of(&routing.places)?,
            rows: ExpertRows {
                offsets: routing.offsets.as_view().range(index * offsets, offsets)?,
                experts: self.groups[group].clone(),
            },
            tokens,
        })
    }

    /// From m `[T, H]` to the experts of each token. The load-balancing loss's share of the layer is added to `balance`.
    pub(super) fn route(
        &self,
        queue: &Queue,
        chunks: impl Iterator<Item = Range<usize>>,
        weights: &[View<'_>],
        middle: View<'_>,
        routing: &mut Routing<'_>,
        balance: Option<(&mut BalanceSums<'_>, &Context<'_>)>,
    ) -> Result<(), OpError> {
        let active = self.config.active;
        let (normed, statistics) = (routing.normed.reborrow(), routing.statistics.reborrow());
        self.norm.forward(queue, middle, weights[self.norm_place], normed, statistics)?;
        let router = weights[self.router_place];
        // A rounded score could change the choice of experts, and the product is a small one.
        let exact = queue.with_factors(Factors::Exact);
        linear::forward(&exact, routing.normed.as_view(), router, routing.probabilities.reborrow())?;
        router::forward(
            queue,
            routing.probabilities.reborrow(),
            self.config.weight_norm,
            routing.chosen.reborrow(),
            routing.weights.reborrow(),
        )?;
        for (index, tokens) in chunks.enumerate() {
            let offsets = self.config.count + 1;
            let (first, pairs) = (tokens.start * active, tokens.len() * active);
            experts::sort(
                queue,
                routing.chosen.as_view().rows(tokens)?,
                routing.slots.reborrow().range(first, pairs)?,
                routing.places.reborrow().range(first, pairs)?,
                routing.offsets.reborrow().range(index * offsets, offsets)?,
            )?;
        }
        match balance {
            Some((sums, context)) => {
                let (probabilities, chosen) = (routing.probabilities.as_view(), routing.chosen.as_view());
                sums.add(queue, probabilities, chosen, context.batch.row_starts, context.part())
            }
            None => Ok(()),
        }
    }

    /// Adds what a group's experts say to y `[T, H]`.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn forward(
        &self,
        group: usize,
        queue: &Queue,
        chunks: impl Iterator<Item = Range<usize>>,
        weights: &[View<'_>],
        routing: &Routing<'_>,
        mut y: ViewMut<'_>,
        mut arena: Arena<'_>,
    ) -> Result<(), OpError> {
        for chunk in chunks.enumerate() {
            let chunk = self.chunk(group, chunk, routing)?;
            let mut rows = self.rows(chunk.tokens.len(), &mut arena.inner())?;
            self.activate(queue, &chunk, weights, &mut rows)?;
            let (activation, output) = (rows.activation.as_view(), rows.output.reborrow());
            experts::linear::forward(
                queue,
                activation,
                weights[DOWN],
                self.down_layout,
                &chunk.rows,
                output,
            )?;
            self.combine(queue, &chunk, rows.output.as_view(), y.reborrow())?;
        }
        Ok(())
    }

    /// From a chunk of h to the activations of a group, each weighted with its router's weight.
    fn activate(
        &self,
        queue: &Queue,
        chunk: &Chunk<'_>,
        weights: &[View<'_>],
        rows: &mut Rows<'_>,
    ) -> Result<(), OpError> {
        let active = self.config.active;
        experts::gather(queue, chunk.normed, chunk.slots, active, &chunk.rows, rows.input.reborrow())?;
        experts::linear::forward(
            queue,
            rows.input.as_view(),
            weights[GATE_UP],
            WeightLayout::OutputsInputs,
            &chunk.rows,
            rows.gate_up.reborrow(),
        )?;
        let activation = rows.activation.reborrow();
        let gate_up = rows.gate_up.as_view();
        experts::activation::forward(queue, gate_up, chunk.weights, chunk.slots, &chunk.rows, activation)
    }

    /// Adds the group's rows of x to the tokens of `to` `[T, H]` that they belong to.
    fn combine(&self, queue: &Queue, chunk: &Chunk<'_>, x: View<'_>, to: ViewMut<'_>) -> Result<(), OpError> {
        let to = to.rows(chunk.tokens.clone())?;
        experts::combine(queue, x, chunk.slots, chunk.places, self.config.active, &chunk.rows, to)
    }

    /// Adds to the gradients of a group's parameters, and leaves those of h and of the routing weights in `scratch` for
    /// [`Experts::route_backward`]. The last group must come first. `recompute`: the forward's rows are not in `arena` any more.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn backward(
        &self,
        group: usize,
        context: &Context<'_>,
        weights: &[View<'_>],
        routing: &Routing<'_>,
        mut arena: Arena<'_>,
        recompute: bool,
        dy: View<'_>,
        gradients: &mut [ViewMut<'_>],
        mut scratch: Arena<'_>,
    ) -> Result<(), OpError> {
        let queue = context.queue;
        let mut flow = self.flow(context.batch.tokens(), &mut scratch)?;
        if group + 1 == self.groups.len() {
            fill::zero(queue, flow.dnormed.reborrow())?;
        }
        for chunk in context.chunks().enumerate() {
            let chunk = self.chunk(group, chunk, routing)?;
            let mut rows = self.rows(chunk.tokens.len(), &mut arena.inner())?;
            if recompute || !context.one_chunk() {
                self.activate(queue, &chunk, weights, &mut rows)?;
            }
            self.chunk_backward(queue, &chunk, weights, rows, dy, &mut flow, gradients, scratch.inner())?;
        }
        Ok(())
    }

    #[allow(clippy::too_many_arguments)]
    fn chunk_backward(
        &self,
        queue: &Queue,
        chunk: &Chunk<'_>,
        weights: &[View<'_>],
        mut rows: Rows<'_>,
        dy: View<'_>,
        flow: &mut Flow<'_>,
        gradients: &mut [ViewMut<'_>],
        mut scratch: Arena<'_>,
    ) -> Result<(), OpError> {
        let ExpertsConfig { active, .. } = self.config;
        let Chunk { rows: group, slots, .. } = chunk;
        let mut dactivation = scratch.take(self.compute, [chunk.tokens.len() * active, self.intermediate])?;
        let dy = dy.rows(chunk.tokens.clone())?;
        experts::gather(queue, dy, *slots, active, group, rows.output.reborrow())?;
        let (dy, layout) = (rows.output.as_view(), self.down_layout);
        let activation = rows.activation.as_view();
        experts::linear::backward_weight(queue, dy, activation, layout, group, gradients[DOWN].reborrow())?;
        experts::linear::backward_input(queue, dy, weights[DOWN], layout, group, dactivation.reborrow())?;
        experts::activation::backward(
            queue,
            dactivation.as_view(),
            chunk.weights,
            *slots,
            group,
            rows.gate_up.reborrow(),
            flow.dweights.reborrow().rows(chunk.tokens.clone())?,
        )?;
        let (dgate_up, layout) = (rows.gate_up.as_view(), WeightLayout::OutputsInputs);
        let dweight = gradients[GATE_UP].reborrow();
        experts::linear::backward_weight(queue, dgate_up, rows.input.as_view(), layout, group, dweight)?;
        let dinput = rows.input.reborrow();
        experts::linear::backward_input(queue, dgate_up, weights[GATE_UP], layout, group, dinput)?;
        self.combine(queue, chunk, rows.input.as_view(), flow.dnormed.reborrow())
    }

    /// Turns `gradient` `[T, H]` from dy into dm once all groups' backwards are done, and returns the scratch that is left.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn route_backward(
        &self,
        context: &Context<'_>,
        weights: &[View<'_>],
        middle: View<'_>,
        routing: &Routing<'_>,
        gradient: ViewMut<'_>,
        gradients: &mut [ViewMut<'_>],
        mut scratch: Arena<'_>,
        balance: Option<BalanceGradient<'_>>,
    ) -> Result<(), OpError> {
        let (queue, tokens) = (context.queue, context.batch.tokens());
        let Flow { mut dnormed, dweights } = self.flow(tokens, &mut scratch)?;
        let mut dlogits = scratch.take(DType::F32, [tokens, self.config.count])?;
        match balance {
            Some(balance) => {
                balance.replace(queue, context.batch.row_starts, context.part(), dlogits.reborrow())?;
            }
            None => fill::zero(queue, dlogits.reborrow())?,
        }
        router::backward(
            queue,
            dweights.as_view(),
            routing.probabilities.as_view(),
            routing.chosen.as_view(),
            self.config.weight_norm,
            dlogits.reborrow(),
        )?;
        let dlogits = as_factor(queue, self.compute, dlogits.into_view(), &mut scratch)?;
        let normed = routing.normed.as_view();
        let exact = queue.with_factors(Factors::Exact);
        linear::backward_weight(&exact, dlogits, normed, gradients[self.router_place].reborrow())?;
        linear::backward_input_add(&exact, dlogits, weights[self.router_place], dnormed.reborrow())?;
        self.norm.backward(
            queue,
            dnormed.as_view(),
            middle,
            weights[self.norm_place],
            routing.statistics.as_view(),
            gradient,
            gradients[self.norm_place].reborrow(),
        )
    }
}

/// Deals the experts out: as many to a group as lie in a unit no larger than the embedding's, which needs its place in the
/// gather buffers anyway, or one where that is larger. It depends on the config alone.
fn groups(config: &ModelConfig, experts: ExpertsConfig) -> Vec<Range<usize>> {
    let expert = 3 * config.hidden_size * config.intermediate_size;
    let fitting = (config.vocab_size * config.hidden_size / expert).clamp(1, experts.count);
    let groups = experts.count.div_ceil(fitting);
    (0..groups).map(|group| group * experts.count / groups..(group + 1) * experts.count / groups).collect()
}

/// The unit of a group: gate and up of each expert behind one another, then the matrices of the outputs.
fn unit(config: &ModelConfig, experts: ExpertsConfig, names: &BlockNames, group: Range<usize>) -> UnitTable {
    let normal = Initial::Normal(config.initializer_range);
    let segment =
        |tensor: ExpertTensor| Segment::rows(tensor.name, tensor.shape, tensor.rows, tensor.columns, normal);
    let sizes = ExpertSizes {
        count: experts.count,
        hidden: config.hidden_size,
        intermediate: config.intermediate_size,
    };
    let gate_up = group.clone().flat_map(|expert| names.expert_gate_up(sizes, expert)).map(segment);
    let down = group.map(|expert| segment(names.expert_down(sizes, expert)));
    UnitTable::new(vec![Segment::joined(gate_up.collect()), Segment::joined(down.collect())])
}
