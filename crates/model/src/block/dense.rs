//! The second half of a dense block: a gated feed-forward layer behind a norm, added to the residual stream.
//!
//! y = m + Wdown·swiglu(Wgate_up·norm(m))
//!
//! It works on one chunk of tokens at a time. What a chunk leaves is kept for the backward where one chunk is all there is;
//! otherwise the backward computes each chunk again, so that the widest tensors of a block do not grow with the sequence.

use std::ops::Range;

use tessera_ops::{Arena, DType, OpError, Queue, Shape, View, ViewMut, bias, fill, linear, swiglu};

use crate::config::ModelConfig;
use crate::names::BlockNames;
use crate::norm::Norm;
use crate::stage::Context;
use crate::table::{Initial, Segment, Segments};

/// The numbers of the segments in the unit.
#[derive(Debug, Clone, Copy)]
struct Places {
    norm: usize,
    gate_up: usize,
    down: usize,
    gate_up_bias: Option<usize>,
    down_bias: Option<usize>,
}

/// The gated feed-forward layer.
#[derive(Debug, Clone)]
pub(super) struct Dense {
    hidden: usize,
    compute: DType,
    intermediate: usize,
    norm: Norm,
    places: Places,
}

/// What the forward of a chunk of C tokens leaves for its backward; hidden size H, intermediate size F.
struct Kept<'a> {
    /// Of the norm.
    statistics: ViewMut<'a>,
    /// `[C, H]`.
    input: ViewMut<'a>,
    /// `[C, 2F]`.
    gate_up: ViewMut<'a>,
    /// `[C, F]`.
    activation: ViewMut<'a>,
}

impl Dense {
    /// Adds its segments to those of a unit.
    pub(super) fn new(
        config: &ModelConfig,
        names: &BlockNames,
        compute: DType,
        segments: &mut Segments,
    ) -> Self {
        let (hidden, intermediate) = (config.hidden_size, config.intermediate_size);
        let normal = Initial::Normal(config.initializer_range);
        let zeros = |name: String, rows| Segment::of(name, [rows], Initial::Constant(0.0));
        let mut add = |segment| segments.add(segment);
        let places = Places {
            gate_up: add(Segment::joined(vec![
                Segment::of(names.gate(), [intermediate, hidden], normal),
                Segment::of(names.up(), [intermediate, hidden], normal),
            ])),
            down: add(Segment::of(names.down(), [hidden, intermediate], normal)),
            norm: add(Segment::of(names.feed_forward_norm(), [hidden], Initial::Constant(1.0))),
            gate_up_bias: config.mlp_bias.then(|| {
                let parts = [names.gate_bias(), names.up_bias()];
                add(Segment::joined(parts.map(|name| zeros(name, intermediate)).into()))
            }),
            down_bias: config.mlp_bias.then(|| add(zeros(names.down_bias(), hidden))),
        };
        Self { hidden, compute, intermediate, norm: Norm::of(config), places }
    }

    /// In the order of [`Kept`].
    fn kept_layout(&self, chunk: usize) -> [(DType, Shape); 4] {
        [
            (DType::F32, [self.norm.statistics(chunk)].into()),
            (self.compute, [chunk, self.hidden].into()),
            (self.compute, [chunk, 2 * self.intermediate].into()),
            (self.compute, [chunk, self.intermediate].into()),
        ]
    }

    /// Bytes of what one chunk keeps.
    pub(super) fn kept_bytes(&self, chunk: usize) -> usize {
        super::bytes(&self.kept_layout(chunk))
    }

    fn kept<'a>(&self, chunk: usize, arena: &mut Arena<'a>) -> Result<Kept<'a>, OpError> {
        let [statistics, input, gate_up, activation] = super::take(arena, self.kept_layout(chunk));
        Ok(Kept { statistics: statistics?, input: input?, gate_up: gate_up?, activation: activation? })
    }

    /// Bytes of scratch that the backward takes.
    pub(super) fn backward_bytes(&self, chunk: usize) -> usize {
        Arena::cost(self.compute, chunk * self.hidden) + Arena::cost(self.compute, chunk * self.intermediate)
    }

    /// Computes y `[T, H]` from m `[T, H]`.
    pub(super) fn forward(
        &self,
        queue: &Queue,
        chunks: impl Iterator<Item = Range<usize>>,
        weights: &[View<'_>],
        middle: View<'_>,
        mut y: ViewMut<'_>,
        mut arena: Arena<'_>,
    ) -> Result<(), OpError> {
        fill::copy(queue, middle, y.reborrow())?;
        for rows in chunks {
            let mut kept = self.kept(rows.len(), &mut arena.inner())?;
            self.activate(queue, weights, middle.rows(rows.clone())?, &mut kept)?;
            let mut y = y.reborrow().rows(rows)?;
            let activation = kept.activation.as_view();
            linear::forward_add(queue, activation, weights[self.places.down], y.reborrow())?;
            if let Some(place) = self.places.down_bias {
                bias::forward(queue, weights[place], y)?;
            }
        }
        Ok(())
    }

    /// From a chunk of m to the activation.
    fn activate(
        &self,
        queue: &Queue,
        weights: &[View<'_>],
        middle: View<'_>,
        kept: &mut Kept<'_>,
    ) -> Result<(), OpError> {
        let places = &self.places;
        let (input, statistics) = (kept.input.reborrow(), kept.statistics.reborrow());
        self.norm.forward(queue, middle, weights[places.norm], input, statistics)?;
        linear::forward(queue, kept.input.as_view(), weights[places.gate_up], kept.gate_up.reborrow())?;
        if let Some(place) = places.gate_up_bias {
            bias::forward(queue, weights[place], kept.gate_up.reborrow())?;
        }
        swiglu::forward(queue, kept.gate_up.as_view(), kept.activation.reborrow())
    }

    /// Turns `gradient` `[T, H]` from dy into dm and adds to the parameters' gradients. `recompute`: the forward's chunks are
    /// not in `arena` any more.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn backward(
        &self,
        context: &Context<'_>,
        weights: &[View<'_>],
        middle: View<'_>,
        mut arena: Arena<'_>,
        recompute: bool,
        mut gradient: ViewMut<'_>,
        gradients: &mut [ViewMut<'_>],
        mut scratch: Arena<'_>,
    ) -> Result<(), OpError> {
        let queue = context.queue;
        for rows in context.chunks() {
            let mut kept = self.kept(rows.len(), &mut arena.inner())?;
            let middle = middle.rows(rows.clone())?;
            if recompute || !context.one_chunk() {
                self.activate(queue, weights, middle, &mut kept)?;
            }
            let gradient = gradient.reborrow().rows(rows)?;
            self.chunk_backward(queue, weights, middle, kept, gradient, gradients, scratch.inner())?;
        }
        Ok(())
    }

    #[allow(clippy::too_many_arguments)]
    fn chunk_backward(
        &self,
        queue: &Queue,
        weights: &[View<'_>],
        middle: View<'_>,
        mut kept: Kept<'_>,
        gradient: ViewMut<'_>,
        gradients: &mut [ViewMut<'_>],
        mut scratch: Arena<'_>,
    ) -> Result<(), OpError> {
        let places = &self.places;
        let chunk = middle.shape().extents()[0];
        let mut dinput = scratch.take(self.compute, [chunk, self.hidden])?;
        let mut dactivation = scratch.take(self.compute, [chunk, self.intermediate])?;
        let dy = gradient.as_view();
        linear::backward_weight(queue, dy, kept.activation.as_view(), gradients[places.down].reborrow())?;
        if let Some(place) = places.down_bias {
            bias::backward(queue, dy, gradients[place].reborrow())?;
        }
        linear::backward_input(queue, dy, weights[places.down], dactivation.reborrow())?;
        swiglu::backward(queue, dactivation.as_view(), kept.gate_up.reborrow())?;
        let dgate_up = kept.gate_up.as_view();
        let dweight = gradients[places.gate_up].reborrow();
        linear::backward_weight(queue, dgate_up, kept.input.as_view(), dweight)?;
        if let Some(place) = places.gate_up_bias {
            bias::backward(queue, dgate_up, gradients[place].reborrow())?;
        }
        linear::backward_input(queue, dgate_up, weights[places.gate_up], dinput.reborrow())?;
        self.norm.backward(
            queue,
            dinput.as_view(),
            middle,
            weights[places.norm],
            kept.statistics.as_view(),
            gradient,
            gradients[places.norm].reborrow(),
        )
    }
}
