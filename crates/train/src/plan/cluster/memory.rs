//! A GPU's memory by kind, in bf16 mixed precision.
//!
//! It is the engine's plan with the element sizes of `amp_bf16`: gathered weights, the residual stream, and inputs and
//! outputs of products take two bytes instead of four. Masters, moments, gradients, norm statistics, log-sum-exps, the
//! router, the logits of a chunk and the accumulators of the attention's backward stay at four.

use serde::Serialize;
use tessera_dist::{Degrees, Residency, SlotPlan};
use tessera_model::config::{ModelConfig, NormKind};
use tessera_ops::{OpError, attention};

use super::{Layout, Workload};
use crate::engine::{MemoryPlan, unit_sizes};

const FP32: usize = size_of::<f32>();

/// Bytes that one GPU needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct DeviceMemory {
    /// Master weights, fp32.
    pub master_bytes: u64,
    /// The optimizer's moments, fp32.
    pub moment_bytes: u64,
    /// Reduced gradients, fp32.
    pub gradient_bytes: u64,
    /// Gathered weights, bf16: two buffers of the largest unit, or one for each unit where weights stay for the step.
    pub weight_slot_bytes: u64,
    /// Gradients on their way, fp32: two buffers of the largest unit.
    pub gradient_slot_bytes: u64,
    /// Inputs of the blocks, bf16, the gradient that flows back included.
    pub input_bytes: u64,
    /// What blocks keep for their backward.
    pub kept_bytes: u64,
    /// A chunk of logits (fp32) with its rows, or what a block's backward works in: they take turns.
    pub scratch_bytes: u64,
    /// What sequences that are shared pass through on their way between ranks.
    pub exchange_bytes: u64,
    /// Rotary table, sums, statistics.
    pub other_bytes: u64,
}

impl DeviceMemory {
    /// The memory for micro-batches of `rows` rows.
    ///
    /// # Errors
    /// When the heads cannot be split over the ranks that share a sequence.
    pub fn new(workload: &Workload, parallel: Layout, rows: usize) -> Result<Self, OpError> {
        let settings = workload.engine_settings(rows, parallel.context);
        let (model, tokens) = (workload.model(), settings.micro_batch_tokens);
        let plan = MemoryPlan::new(model, Degrees::from(parallel).into(), &settings)?;
        let full = InFull::of(model.config(), tokens);
        let scratch =
            halved(plan.head_scratch_bytes, full.head(model.head().chunk_tokens(tokens), model.config()))
                .max(halved(plan.block_scratch_bytes, full.backward));
        let bytes = |bytes: usize| bytes as u64;
        Ok(Self {
            master_bytes: bytes(plan.master_bytes),
            moment_bytes: bytes(plan.moment_bytes),
            gradient_bytes: bytes(plan.gradient_bytes),
            weight_slot_bytes: bytes(weight_slots(workload, parallel, settings.residency)),
            gradient_slot_bytes: bytes(plan.gradient_slot_bytes),
            input_bytes: bytes(plan.inputs * plan.input_bytes / 2),
            kept_bytes: bytes(plan.kept_arenas * halved(plan.kept_bytes, full.kept)),
            scratch_bytes: bytes(scratch),
            exchange_bytes: bytes(plan.exchange_bytes() / 2),
            other_bytes: bytes(plan.rope_table_bytes + plan.balance_bytes + plan.scalar_bytes),
        })
    }

    /// Everything together.
    pub fn total_bytes(&self) -> u64 {
        self.parts().iter().map(|(_, bytes)| bytes).sum()
    }

    /// What the memory is for.
    pub fn parts(&self) -> [(&'static str, u64); 10] {
        [
            ("master weights, fp32", self.master_bytes),
            ("optimizer's moments, fp32", self.moment_bytes),
            ("reduced gradients, fp32", self.gradient_bytes),
            ("gathered weights, bf16", self.weight_slot_bytes),
            ("leaving gradients, fp32", self.gradient_slot_bytes),
            ("inputs of blocks, bf16", self.input_bytes),
            ("kept for the backward", self.kept_bytes),
            ("logits chunk or block scratch", self.scratch_bytes),
            ("exchange of sequences, bf16", self.exchange_bytes),
            ("rotary table and sums", self.other_bytes),
        ]
    }
}

/// Slots for gathered weights: also where one rank is alone, since the masters are cast into them.
fn weight_slots(workload: &Workload, parallel: Layout, residency: Residency) -> usize {
    let slots = SlotPlan::new(&unit_sizes(workload.model()), parallel.copy(), false, residency);
    slots.weights.iter().sum::<usize>() / 2
}

/// `bytes` of tensors of four bytes an element, of which all but `in_full` come down to two.
fn halved(bytes: usize, in_full: usize) -> usize {
    (bytes + in_full) / 2
}

/// Bytes that stay at four an element.
struct InFull {
    /// Of what a block keeps.
    kept: usize,
    /// Of what its backward works in.
    backward: usize,
}

impl InFull {
    /// For `tokens` tokens of a rank.
    fn of(config: &ModelConfig, tokens: usize) -> Self {
        let heads = config.heads();
        let statistics = match config.norm {
            NormKind::RmsNorm => 1,
            NormKind::LayerNorm => 2,
        };
        // One bit for each element that may be clamped.
        let clamped = config.clip_qkv.map_or(0, |_| heads.row_width().div_ceil(32));
        // Probabilities; then chosen experts, their weights, and where each pair lies before and after the sort.
        let routing = config.experts.map_or(0, |experts| experts.count + 4 * experts.active);
        let flow = config.experts.map_or(0, |experts| experts.active);
        Self {
            kept: FP32 * tokens * (2 * statistics + clamped + heads.query + routing),
            backward: FP32 * (attention::backward_scratch(heads, tokens) + tokens * flow),
        }
    }

    /// Of what a chunk of the head works in: the logits.
    fn head(&self, chunk: usize, config: &ModelConfig) -> usize {
        FP32 * chunk * config.vocab_size
    }
}
