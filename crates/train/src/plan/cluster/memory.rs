//! A GPU's memory by kind, in bf16 mixed precision: the engine's own plan for a model that computes in bf16.

use serde::Serialize;
use tessera_dist::Degrees;
use tessera_ops::OpError;

use super::{Layout, Workload};
use crate::engine::MemoryPlan;

/// Bytes that one GPU needs, and those that it keeps in the memory of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct DeviceMemory {
    /// Master weights, fp32.
    pub master_bytes: u64,
    /// The optimizer's moments, fp32, where the GPU has them.
    pub moment_bytes: u64,
    /// The optimizer's moments, fp32, where they lie in the memory of the host.
    pub host_moment_bytes: u64,
    /// What passes through the host's memory on its way into a checkpoint that training waits for.
    #[serde(skip)]
    pub(super) passage_bytes: u64,
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
    /// Rotary table, sums, statistics, the micro-batch, and the workspace of the stream.
    pub other_bytes: u64,
}

impl DeviceMemory {
    /// The memory for micro-batches of `rows` rows.
    ///
    /// # Errors
    /// When the heads cannot be split over the ranks that share a sequence.
    pub fn new(workload: &Workload, parallel: Layout, rows: usize) -> Result<Self, OpError> {
        let settings = workload.engine_settings(rows, parallel.context);
        let plan = MemoryPlan::new(workload.model(), Degrees::from(parallel).into(), &settings)?;
        let bytes = |bytes: usize| bytes as u64;
        Ok(Self {
            master_bytes: bytes(plan.master_bytes),
            moment_bytes: bytes(plan.moment_bytes),
            host_moment_bytes: bytes(plan.host_moment_bytes),
            passage_bytes: bytes(plan.passage_bytes(workload.saves_weights_only())),
            gradient_bytes: bytes(plan.gradient_bytes),
            weight_slot_bytes: bytes(plan.weight_slot_bytes),
            gradient_slot_bytes: bytes(plan.gradient_slot_bytes),
            input_bytes: bytes(plan.inputs * plan.input_bytes),
            kept_bytes: bytes(plan.kept_arenas * plan.kept_bytes),
            scratch_bytes: bytes(plan.scratch_bytes()),
            exchange_bytes: bytes(plan.exchange_bytes()),
            other_bytes: bytes(
                plan.rope_table_bytes
                    + plan.balance_bytes
                    + plan.scalar_bytes
                    + plan.batch_bytes
                    + plan.stream_bytes,
            ),
        })
    }

    /// Everything that the GPU itself has.
    pub fn total_bytes(&self) -> u64 {
        self.parts().iter().map(|(_, bytes)| bytes).sum()
    }

    /// What the GPU's memory is for.
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
            ("tables, sums and workspace", self.other_bytes),
        ]
    }
}
