//! The memory plan: the size of every buffer as a function of the model, the ranks, the micro-batch and the settings. The
//! engine allocates from it, so what it says before a run is what the run uses.

use std::collections::BTreeSet;

use tessera_dist::{Degrees, Mesh, SlotPlan, UnitSize};
use tessera_model::{Block, Compute, Head, Model, UnitTable};
use tessera_ops::cuda::{SCRATCH_BYTES, WORKSPACE_BYTES};
use tessera_ops::step::{decision, statistic};
use tessera_ops::{Arena, DType, Home, OpError};

use super::EngineSettings;
use super::context::ContextBytes;
use super::upload::BatchRoom;

/// How many ranks share one copy of the model, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sharing {
    /// Ranks of which each owns an equal slice of every unit.
    pub ranks: usize,
    /// Those of them that share a sequence.
    pub context: usize,
    /// Whether what a rank owns is used where it lies: see [`tessera_dist::Group::lends`].
    pub lends: bool,
}

impl Sharing {
    /// That of a run's groups.
    pub fn of(mesh: &Mesh) -> Self {
        let shard = mesh.shard();
        Self { ranks: shard.world_size(), context: mesh.context().world_size(), lends: shard.lends() }
    }
}

/// That of the groups which these degrees make; one rank alone lends.
impl From<Degrees> for Sharing {
    fn from(Degrees { shard, context, .. }: Degrees) -> Self {
        let ranks = shard * context;
        Self { ranks, context, lends: ranks == 1 }
    }
}

/// Bytes that one rank needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryPlan {
    /// Master weights.
    pub master_bytes: usize,
    /// The optimizer's moments, where they lie beside the weights.
    pub moment_bytes: usize,
    /// The optimizer's moments, where they lie in the memory of the host.
    pub host_moment_bytes: usize,
    /// One buffer of each size that a rank's slices have.
    pub sizes_bytes: usize,
    /// Reduced gradients.
    pub gradient_bytes: usize,
    /// Gathered weights.
    pub weight_slot_bytes: usize,
    /// Gradients on their way to the ranks that own them.
    pub gradient_slot_bytes: usize,
    /// The residual stream at one place of the model `[T, H]`.
    pub input_bytes: usize,
    /// How many of these there are, the gradient that flows back included.
    pub inputs: usize,
    /// What one block leaves for its backward, where ranks share sequences what that takes more included.
    pub kept_bytes: usize,
    /// How many of these there are.
    pub kept_arenas: usize,
    /// Scratch of the head: one chunk of logits.
    pub head_scratch_bytes: usize,
    /// Scratch of a block's backward. It takes turns with the head's in one buffer.
    pub block_scratch_bytes: usize,
    /// What sequences that are shared take.
    pub context: ContextBytes,
    /// Cosines and sines of the rotary embedding.
    pub rope_table_bytes: usize,
    /// Sums of the load-balancing loss.
    pub balance_bytes: usize,
    /// A step's statistics and decision.
    pub scalar_bytes: usize,
    /// The micro-batch itself, on a GPU.
    pub batch_bytes: usize,
    /// What kernels leave partial sums in, and cuBLAS's workspace, on a GPU.
    pub stream_bytes: usize,
}

impl MemoryPlan {
    /// The plan of one rank.
    ///
    /// # Errors
    /// When the model's heads cannot be split over the ranks that share a sequence.
    pub fn new(model: &Model, sharing: Sharing, settings: &EngineSettings) -> Result<Self, OpError> {
        let sizes = unit_sizes(model);
        let shard: usize = sizes.iter().map(|size| size.shard(sharing.ranks) * DType::F32.size()).sum();
        let shards: BTreeSet<usize> = sizes.iter().map(|size| size.shard(sharing.ranks)).collect();
        let Compute { dtype: compute, home } = model.compute();
        let moments = shard * settings.optimizer.moments().len();
        let (moment_bytes, host_moment_bytes) =
            if settings.offloads_moments(home) { (0, moments) } else { (moments, 0) };
        let slots = SlotPlan::new(&sizes, sharing.ranks, sharing.lends, compute, settings.residency);
        let tokens = settings.micro_batch_tokens;
        let blocks = model.blocks();
        let context = ContextBytes::new(model, sharing.context, tokens)?;
        let chunk = settings.chunk_tokens();
        let largest = |bytes: fn(&Block, usize, usize) -> usize| {
            blocks.iter().map(|block| bytes(block, tokens, chunk)).max().unwrap_or(0)
        };
        Ok(Self {
            master_bytes: shard,
            moment_bytes,
            host_moment_bytes,
            sizes_bytes: shards.into_iter().sum::<usize>() * DType::F32.size(),
            gradient_bytes: shard,
            weight_slot_bytes: slots.weights.iter().sum(),
            gradient_slot_bytes: slots.gradients.iter().sum(),
            input_bytes: Arena::cost(compute, tokens * model.config().hidden_size),
            inputs: blocks.len() + 2,
            kept_bytes: largest(Block::kept_bytes) + context.arena,
            kept_arenas: if settings.recompute { 1 } else { blocks.len() },
            head_scratch_bytes: Head::scratch_bytes(model.head(), tokens),
            block_scratch_bytes: largest(Block::backward_bytes) + context.arena,
            context,
            rope_table_bytes: settings.positions * model.config().head_dim * DType::F32.size(),
            balance_bytes: model.balance().map_or(0, |balance| balance.bytes(settings.micro_batch_rows)),
            scalar_bytes: (statistic::COUNT + decision::COUNT) * DType::F64.size(),
            batch_bytes: BatchRoom::bytes(settings, home),
            stream_bytes: if home == Home::Gpu { SCRATCH_BYTES + WORKSPACE_BYTES } else { 0 },
        })
    }

    /// Bytes of a rank's own slices where it computes: weights, gradients, optimizer.
    pub fn state_bytes(&self) -> usize {
        self.master_bytes + self.moment_bytes + self.gradient_bytes
    }

    /// Bytes that units pass through.
    pub fn slot_bytes(&self) -> usize {
        self.weight_slot_bytes + self.gradient_slot_bytes
    }

    /// Bytes of the copy that a checkpoint written beside the training takes of weights and moments.
    pub fn snapshot_bytes(&self, weights_only: bool) -> usize {
        self.master_bytes + if weights_only { 0 } else { self.moment_bytes + self.host_moment_bytes }
    }

    /// Bytes of the host through which a GPU's weights and moments pass on their way into a checkpoint that training waits for.
    pub fn passage_bytes(&self, weights_only: bool) -> usize {
        let moments = if weights_only { 0 } else { self.moment_bytes / self.master_bytes.max(1) };
        self.sizes_bytes * (1 + moments)
    }

    /// Scratch of the head and of a block's backward.
    pub fn scratch_bytes(&self) -> usize {
        self.head_scratch_bytes.max(self.block_scratch_bytes)
    }

    /// What goes to the ranks that share a sequence, and what comes from them.
    pub fn exchange_bytes(&self) -> usize {
        2 * self.context.exchange
    }

    /// Bytes that micro-batches work in.
    pub fn workspace_bytes(&self) -> usize {
        self.input_bytes * self.inputs
            + self.kept_bytes * self.kept_arenas
            + self.scratch_bytes()
            + self.exchange_bytes()
            + self.rope_table_bytes
            + self.balance_bytes
            + self.scalar_bytes
            + self.batch_bytes
            + self.stream_bytes
    }

    /// Everything that the engine allocates where it computes.
    pub fn engine_bytes(&self) -> usize {
        self.state_bytes() + self.slot_bytes() + self.workspace_bytes()
    }
}

/// The extents of a model's units.
pub fn unit_sizes(model: &Model) -> Vec<UnitSize> {
    let size = |table: &UnitTable| UnitSize { elements: table.elements(), decayed: table.decayed() };
    model.units().iter().map(size).collect()
}
