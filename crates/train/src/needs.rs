//! The memory that a run needs, part by part: what a person is shown of the memory plan.

use crate::engine::ANSWER_CACHE_BYTES;
use crate::plan::RunPlan;

impl RunPlan {
    /// What memory is needed for, and how many bytes of it.
    pub fn memory_parts(&self) -> Vec<(&'static str, usize)> {
        let (memory, settings) = (&self.memory, &self.settings);
        let mut parts = vec![
            ("weights", memory.master_bytes),
            ("optimizer", memory.moment_bytes),
            ("gradients", memory.gradient_bytes),
        ];
        if settings.save_async {
            parts.push(("copy for a checkpoint", memory.snapshot_bytes(settings.save_weights_only)));
        }
        if !settings.eval_prompts.is_empty() {
            parts.push(("cache for answers", ANSWER_CACHE_BYTES));
        }
        parts.extend([
            ("inputs of blocks", memory.input_bytes * memory.inputs),
            ("kept for the backward", memory.kept_bytes * memory.kept_arenas),
            ("scratch", memory.scratch_bytes),
            ("rotary table", memory.rope_table_bytes),
        ]);
        parts
    }

    /// All parts together.
    pub fn memory_bytes(&self) -> usize {
        self.memory_parts().iter().map(|(_, bytes)| bytes).sum()
    }
}
