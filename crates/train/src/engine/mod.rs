//! The engine: a model, its sharded units, and every buffer that a step needs, allocated once.
//!
//! The step loop is written once against the seam of `ops`, `model` and `dist`. Weights are asked for unit by unit, the next
//! unit's while one computes; gradients leave unit by unit on the way back. How many ranks share the units, and whether
//! anything moves at all, the loop does not know.

mod context;
mod evaluate;
mod generate;
mod memory;
mod optimizer;
mod pass;
mod step;
#[cfg(test)]
mod tests;
mod traffic;
mod upload;
mod weights;

pub use context::{ContextBytes, balance_traffic_bytes, check_context, context_traffic_bytes};
pub use evaluate::Evaluation;
pub use generate::{GenerationSettings, Sampler, answer_cache_bytes};
pub use memory::{MemoryPlan, Sharing, unit_sizes};
pub use optimizer::Optimizer;
pub use step::{Ended, OptimizerCounts, OwnNews, StepOutcome};
pub use traffic::{ElementBytes, Moves, Traffic};
pub(crate) use weights::{bit_sum, read_finite};

use tessera_dist::{DistError, Exchange, Mesh, Moments, Residency, Unit, Units, Wire};
use tessera_model::{Context, MicroBatch, Model};
use tessera_ops::step::{decision, statistic};
use tessera_ops::{Buffer, DType, Home, Queue, View, ViewMut, rope, transfer};

use upload::BatchRoom;

use crate::spec::Offload;

/// What fixes the engine's buffers and its update rule.
#[derive(Debug, Clone, PartialEq)]
pub struct EngineSettings {
    /// The largest number of tokens of one micro-batch; of this rank's part, where ranks share a sequence.
    pub micro_batch_tokens: usize,
    /// The largest number of rows of one micro-batch.
    pub micro_batch_rows: usize,
    /// Positions that a document can have.
    pub positions: usize,
    /// Tokens on which feed-forward layers work at a time, where blocks are computed again on the way back.
    pub chunk_tokens: usize,
    /// Whether blocks are computed again on the way back, keeping only their inputs.
    pub recompute: bool,
    /// What a GPU keeps in the memory of the host.
    pub offload: Offload,
    /// How long gathered weights stay.
    pub residency: Residency,
    /// How gradients travel to the ranks that sum them.
    pub wire: Wire,
    /// The update rule.
    pub optimizer: Optimizer,
    /// What the global gradient norm is clipped to; infinite clips nothing.
    pub max_grad_norm: f64,
}

/// Tokens of a chunk from which on feed-forward layers run at their best rate; more only cost memory.
pub const CHUNK_TOKENS: usize = 4096;

impl EngineSettings {
    /// What the stages of a pass see.
    fn context<'a>(&self, queue: &'a Queue, batch: MicroBatch<'a>, rope_table: View<'a>) -> Context<'a> {
        Context { queue, batch, rope_table, chunk_tokens: self.chunk_tokens(), split: None }
    }

    /// Whether the optimizer's moments lie in the memory of the host although the engine works elsewhere.
    fn offloads_moments(&self, home: Home) -> bool {
        self.offload == Offload::Optimizer && home == Home::Gpu
    }

    /// Tokens on which feed-forward layers work at a time. Where nothing is computed again, all of it must be kept.
    fn chunk_tokens(&self) -> usize {
        if self.recompute { self.micro_batch_tokens.min(self.chunk_tokens) } else { self.micro_batch_tokens }
    }
}

/// Memory that micro-batches work in.
struct Workspace {
    /// The input of each block, then of the head; `[T, H]` each.
    inputs: Vec<Buffer>,
    /// What blocks leave for their backward: one arena for all with recompute, else one each.
    kept: Vec<Buffer>,
    /// The gradient that flows back `[T, H]`.
    gradient: Buffer,
    /// Scratch of the head and of a block's backward.
    scratch: Buffer,
    /// What the load-balancing loss is summed from; empty where there is none.
    balance: Buffer,
    /// What goes to the ranks that share a sequence and comes from them; empty where there are none.
    exchange: Exchange,
    /// The micro-batch that is worked on.
    batch: BatchRoom,
}

/// A model that can be trained, evaluated and asked.
pub struct Engine {
    model: Model,
    units: Units,
    queue: Queue,
    settings: EngineSettings,
    rope_table: Buffer,
    workspace: Workspace,
    /// See [`statistic`].
    statistics: Buffer,
    /// See [`decision`].
    decision: Buffer,
    /// What steps bring their outcome to the host with, while none does.
    spare_outcomes: Vec<Ended>,
}

impl Engine {
    /// Allocates, where `queue` works and from now on `model` too, everything that `settings` call for. Weights are zero until they are loaded or
    /// initialised.
    ///
    /// # Errors
    /// When the machine or the GPU has no memory for a buffer.
    pub fn new(
        queue: Queue,
        model: Model,
        mesh: impl Into<Mesh>,
        settings: EngineSettings,
    ) -> Result<Self, DistError> {
        let model = model.computing_at(queue.home());
        let mesh = mesh.into();
        let world_size = mesh.shard().world_size();
        let moments = Moments {
            count: settings.optimizer.moments().len(),
            on_host: settings.offloads_moments(queue.home()),
        };
        let sizes = unit_sizes(&model).into_iter();
        let units = sizes.map(|size| Unit::zeroed(&queue, size, world_size, moments));
        let units = units.collect::<Result<_, _>>()?;
        let compute = model.compute().dtype;
        let units = Units::new(&queue, mesh, units, compute, settings.residency, settings.wire)?;
        let plan = MemoryPlan::new(&model, Sharing::of(units.mesh()), &settings)?;
        let buffer = |bytes: usize| Buffer::on(&queue, bytes);
        let buffers =
            |count: usize, bytes: usize| (0..count).map(|_| buffer(bytes)).collect::<Result<Vec<_>, _>>();
        let workspace = Workspace {
            inputs: buffers(model.blocks().len() + 1, plan.input_bytes)?,
            kept: buffers(plan.kept_arenas, plan.kept_bytes)?,
            gradient: buffer(plan.input_bytes)?,
            scratch: buffer(plan.scratch_bytes())?,
            balance: buffer(plan.balance_bytes)?,
            exchange: plan.context.buffers(&queue)?,
            batch: BatchRoom::new(&queue, &settings, &model)?,
        };
        let mut rope_table = buffer(plan.rope_table_bytes)?;
        let frequencies = model.config().rope.inverse_frequencies(model.config().head_dim);
        let shape = [settings.positions, 2 * frequencies.len()];
        transfer::on_host::<f32, _>(&queue, rope_table.view_mut(DType::F32), |table| {
            rope::fill_table(&frequencies, ViewMut::of(table).reshape(shape)?)
        })??;
        let scalars = |count: usize| buffer(count * DType::F64.size());
        Ok(Self {
            statistics: scalars(statistic::COUNT)?,
            decision: scalars(decision::COUNT)?,
            spare_outcomes: Vec::new(),
            model,
            units,
            queue,
            settings,
            rope_table,
            workspace,
        })
    }

    /// The model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Where its work is issued.
    pub fn queue(&self) -> &Queue {
        &self.queue
    }

    /// The sharded units.
    pub fn units(&self) -> &Units {
        &self.units
    }

    /// Which part of a batch this rank takes: its number among those that take one, and how many these are. Ranks that share
    /// a sequence take the same.
    pub fn data_place(&self) -> (usize, usize) {
        let (world, context) = (self.units.mesh().world(), self.units.mesh().context().world_size());
        (world.rank() / context, world.world_size() / context)
    }

    /// The settings.
    pub fn settings(&self) -> &EngineSettings {
        &self.settings
    }
}
