//! The engine: a model, its sharded units, and every buffer that a step needs, allocated once.
//!
//! The step loop is written once against the seam of `ops`, `model` and `dist`. Weights are asked for unit by unit, the next
//! unit's while one computes; gradients leave unit by unit on the way back. How many ranks share the units, and whether
//! anything moves at all, the loop does not know.

mod evaluate;
mod generate;
mod memory;
mod optimizer;
mod pass;
mod step;
mod weights;

pub use evaluate::Evaluation;
pub use generate::{GenerationSettings, Sampler, answer_cache_bytes};
pub use memory::MemoryPlan;
pub use optimizer::Optimizer;
pub use step::{OptimizerCounts, StepOutcome};

use tessera_dist::{DistError, Group, Unit, UnitSize, Units};
use tessera_model::Model;
use tessera_ops::step::{decision, statistic};
use tessera_ops::{Buffer, DType, Queue, rope};

/// What fixes the engine's buffers and its update rule.
#[derive(Debug, Clone, PartialEq)]
pub struct EngineSettings {
    /// The largest number of tokens of one micro-batch.
    pub micro_batch_tokens: usize,
    /// Positions that a document can have.
    pub positions: usize,
    /// Whether blocks are computed again on the way back, keeping only their inputs.
    pub recompute: bool,
    /// The update rule.
    pub optimizer: Optimizer,
    /// What the global gradient norm is clipped to; infinite clips nothing.
    pub max_grad_norm: f64,
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
}

impl Engine {
    /// Allocates everything that `settings` call for. Weights are zero until they are loaded or initialised.
    ///
    /// # Errors
    /// When the machine has no memory for a buffer.
    pub fn new(model: Model, group: Box<dyn Group>, settings: EngineSettings) -> Result<Self, DistError> {
        let queue = Queue::cpu();
        let (world_size, moments) = (group.world_size(), settings.optimizer.moments().len());
        let units = model
            .units()
            .iter()
            .map(|table| {
                let size = UnitSize { elements: table.elements(), decayed: table.decayed() };
                Unit::zeroed(size, world_size, moments)
            })
            .collect::<Result<_, _>>()?;
        let units = Units::new(group, units)?;
        let plan = MemoryPlan::new(&model, world_size, &settings);
        let buffers = |count: usize, bytes: usize| {
            (0..count).map(|_| Buffer::zeroed(bytes)).collect::<Result<Vec<_>, _>>()
        };
        let workspace = Workspace {
            inputs: buffers(model.blocks().len() + 1, plan.input_bytes)?,
            kept: buffers(plan.kept_arenas, plan.kept_bytes)?,
            gradient: Buffer::zeroed(plan.input_bytes)?,
            scratch: Buffer::zeroed(plan.scratch_bytes)?,
        };
        let mut rope_table = Buffer::zeroed(plan.rope_table_bytes)?;
        let frequencies = model.config().rope.inverse_frequencies(model.config().head_dim);
        let table = rope_table.view_mut(DType::F32).reshape([settings.positions, 2 * frequencies.len()])?;
        rope::fill_table(&queue, &frequencies, table)?;
        let scalars = |count: usize| Buffer::zeroed(count * DType::F64.size());
        Ok(Self {
            model,
            units,
            queue,
            settings,
            rope_table,
            workspace,
            statistics: scalars(statistic::COUNT)?,
            decision: scalars(decision::COUNT)?,
        })
    }

    /// The model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The sharded units.
    pub fn units(&self) -> &Units {
        &self.units
    }

    /// The settings.
    pub fn settings(&self) -> &EngineSettings {
        &self.settings
    }
}
