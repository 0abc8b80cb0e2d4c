//! The memory plan: the size of every buffer as a function of the model, the micro-batch and the settings. The engine
//! allocates from it, so what it says before a run is what the run uses.

use tessera_model::{Block, Head, Model};
use tessera_ops::{Arena, DType};

use super::EngineSettings;

/// Bytes that one rank needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryPlan {
    /// Master weights.
    pub master_bytes: usize,
    /// The optimizer's moments.
    pub moment_bytes: usize,
    /// Reduced gradients.
    pub gradient_bytes: usize,
    /// The residual stream at one place of the model `[T, H]`.
    pub input_bytes: usize,
    /// How many of these there are, the gradient that flows back included.
    pub inputs: usize,
    /// What one block leaves for its backward.
    pub kept_bytes: usize,
    /// How many of these there are.
    pub kept_arenas: usize,
    /// Scratch of the head and of a block's backward.
    pub scratch_bytes: usize,
    /// Cosines and sines of the rotary embedding.
    pub rope_table_bytes: usize,
}

impl MemoryPlan {
    /// The plan of one rank of `world_size`.
    pub fn new(model: &Model, world_size: usize, settings: &EngineSettings) -> Self {
        let shard: usize =
            model.units().iter().map(|unit| unit.elements().div_ceil(world_size) * DType::F32.size()).sum();
        let tokens = settings.micro_batch_tokens;
        let blocks = model.blocks();
        let largest = |bytes: fn(&Block, usize) -> usize| {
            blocks.iter().map(|block| bytes(block, tokens)).max().unwrap_or(0)
        };
        Self {
            master_bytes: shard,
            moment_bytes: shard * settings.optimizer.moments().len(),
            gradient_bytes: shard,
            input_bytes: Arena::cost(DType::F32, tokens * model.config().hidden_size),
            inputs: blocks.len() + 2,
            kept_bytes: largest(Block::kept_bytes),
            kept_arenas: if settings.recompute { 1 } else { blocks.len() },
            scratch_bytes: largest(Block::backward_bytes).max(Head::scratch_bytes(model.head(), tokens)),
            rope_table_bytes: settings.positions * model.config().head_dim * DType::F32.size(),
        }
    }

    /// Bytes that do not depend on the micro-batch: weights, gradients, optimizer.
    pub fn state_bytes(&self) -> usize {
        self.master_bytes + self.moment_bytes + self.gradient_bytes
    }

    /// Bytes of the copy that a checkpoint written beside the training takes of weights and moments.
    pub fn snapshot_bytes(&self, weights_only: bool) -> usize {
        self.master_bytes + if weights_only { 0 } else { self.moment_bytes }
    }

    /// Bytes that micro-batches work in.
    pub fn workspace_bytes(&self) -> usize {
        self.input_bytes * self.inputs
            + self.kept_bytes * self.kept_arenas
            + self.scratch_bytes
            + self.rope_table_bytes
    }
}
