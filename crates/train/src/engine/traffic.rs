//! What a step moves between ranks: how often the loop gathers and reduces each unit, and the bytes that this sends.
//!
//! The loop asks for one unit after another, and the next one's weights are on their way while one computes. Two slots
//! serve the whole model, so a unit is gathered when it is asked for unless it is the one just used or the one before that.
//! Gradients leave after each backward call of a unit.

use std::iter::once;

use tessera_dist::{Degrees, Residency};
use tessera_model::Model;
use tessera_ops::DType;
use tessera_ops::step::statistic;

use super::memory::unit_sizes;
use super::pass::visits;

/// How often a step moves each unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moves {
    /// Gathers of each unit's weights.
    pub gathers: Vec<usize>,
    /// Reductions of each unit's gradient.
    pub reductions: Vec<usize>,
}

/// A unit that the loop asks for.
#[derive(Debug, Clone, Copy)]
struct Demand {
    unit: usize,
    /// Whether its weights are needed.
    weights: bool,
    /// Whether a gradient leaves afterwards.
    gradient: bool,
}

/// The units of one micro-batch, forward and backward, in the order of the loop.
fn demands(model: &Model, recompute: bool) -> impl Iterator<Item = Demand> + Clone {
    let weights = |unit| Demand { unit, weights: true, gradient: false };
    let both = |unit| Demand { unit, weights: true, gradient: true };
    let gradient = |unit| Demand { unit, weights: false, gradient: true };
    let stages =
        model.blocks().iter().enumerate().flat_map(move |(index, block)| {
            (0..block.stages()).map(move |stage| model.stage_unit(index, stage))
        });
    let back = visits(model, recompute);
    let back =
        back.into_iter().map(|(unit, _, visit)| Demand { unit, weights: true, gradient: visit.backward });
    once(weights(0))
        .chain(stages.map(weights))
        .chain(once(both(model.head_unit())))
        .chain(back)
        .chain(once(gradient(0)))
}

impl Moves {
    /// Those of a step of `micro_batches` micro-batches that follows an update.
    pub fn of_step(model: &Model, recompute: bool, residency: Residency, micro_batches: usize) -> Self {
        let units = model.units().len();
        let mut moves = Self { gathers: vec![0; units], reductions: vec![0; units] };
        // The unit used last, and the one before.
        let mut slots = [None; 2];
        for demand in (0..micro_batches).flat_map(|_| demands(model, recompute)) {
            let Demand { unit, weights, gradient } = demand;
            moves.reductions[unit] += usize::from(gradient);
            if weights && slots[0] != Some(unit) {
                moves.gathers[unit] += usize::from(slots[1] != Some(unit));
                slots = [Some(unit), slots[0]];
            }
        }
        if residency == Residency::WholeStep {
            moves.gathers = vec![1; units];
        }
        moves
    }
}

/// Bytes of one element on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ElementBytes {
    /// Of gathered weights: the dtype of the compute.
    pub gathered: usize,
    /// Of reduced gradients.
    pub reduced: usize,
}

impl ElementBytes {
    /// Everything in fp32.
    pub const FP32: Self = Self { gathered: 4, reduced: 4 };
}

/// Bytes that the first rank sends to others in one step; none sends more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Traffic {
    /// Weights, to the ranks that share the model.
    pub gathered: u64,
    /// Gradients, to the same.
    pub reduced: u64,
    /// Reduced gradients, to the other replicas.
    pub replicated: u64,
    /// The step's statistics, to all ranks.
    pub statistics: u64,
}

impl Traffic {
    /// Σ over units of (gathers · gathered bytes + reductions · reduced bytes) · (N − 1)/N, where N ranks share the model;
    /// once a step, each replica's share of the reduced slices goes to the R − 1 others twice, as an unsummed part and as a
    /// sum.
    pub fn of_step(model: &Model, moves: &Moves, degrees: Degrees, bytes: ElementBytes) -> Self {
        let ranks = degrees.shard * degrees.context;
        let (peers, replicas) = (ranks - 1, degrees.replicate - 1);
        let mut traffic = Self::default();
        for (unit, size) in unit_sizes(model).iter().enumerate() {
            let shard = size.shard(ranks);
            traffic.gathered += (moves.gathers[unit] * shard * peers * bytes.gathered) as u64;
            traffic.reduced += (moves.reductions[unit] * shard * peers * bytes.reduced) as u64;
            let piece = shard.div_ceil(degrees.replicate);
            traffic.replicated += (2 * piece * replicas * bytes.reduced) as u64;
        }
        let world = ranks * degrees.replicate;
        traffic.statistics = ((world - 1) * statistic::COUNT * DType::F64.size()) as u64;
        traffic
    }
}
