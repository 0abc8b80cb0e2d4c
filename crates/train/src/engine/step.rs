//! One training step: micro-batches forward and backward, then one decision and one update.

use tessera_data::MicroBatch;
use tessera_dist::DistError;
use tessera_model::{Context, LossScale};
use tessera_ops::step::{decide, decision, statistic};
use tessera_ops::{DType, OpError, View, embedding, fill, squared_norm};

use super::Engine;
use super::optimizer::Slice;
use super::pass::{Keep, Pass, Targets, rope_view};

/// What came of a step, the same on every rank.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepOutcome {
    /// Σ of the token losses.
    pub loss_sum: f64,
    /// Loss tokens whose target had the largest logit.
    pub hits: f64,
    /// The norm of the gradient before clipping.
    pub gradient_norm: f64,
    /// Steps skipped since the last update, because loss or gradient was not finite: the weights did not move.
    pub skipped_in_a_row: u64,
    /// Whether any rank was asked to stop.
    pub stop_wanted: bool,
}

impl Engine {
    /// Adds one micro-batch's losses to the step's statistics and its gradients to the units. A rank without rows passes an
    /// empty micro-batch, so that all ranks make the same collectives.
    pub fn train_micro_batch(&mut self, batch: &MicroBatch, scale: LossScale) -> Result<(), DistError> {
        let targets = Targets::of(batch);
        let rope_table = rope_view(&self.rope_table, &self.model)?;
        let context = Context { queue: &self.queue, batch: targets.views(batch), rope_table };
        let pass = Pass { model: &self.model, units: &self.units, context };
        let workspace = &mut self.workspace;
        let blocks = self.model.blocks();
        let last = pass.forward(workspace, Keep::ForBackward, |_, _| Ok(()))?;

        let x = pass.stream(&mut workspace.inputs[last])?;
        let statistics = self.statistics.view_mut(DType::F64);
        let mut dx = pass.stream(&mut workspace.gradient)?;
        let arena = workspace.scratch.arena();
        pass.with_gradients(self.model.head_unit(), Some(blocks.len()), |weights, gradients| {
            let dx = dx.reborrow();
            let head = self.model.head();
            Ok(head.train(&context, weights, x.as_view(), scale, statistics, dx, gradients, arena)?)
        })?;

        for (index, block) in blocks.iter().enumerate().rev() {
            let x = pass.stream(&mut workspace.inputs[index])?;
            let kept = &mut workspace.kept[if self.settings.recompute { 0 } else { index }];
            let scratch = workspace.scratch.arena();
            // What the last block kept is still there.
            let recompute = self.settings.recompute && index + 1 < blocks.len();
            pass.with_gradients(1 + index, Some(index), |weights, gradients| {
                if recompute {
                    block.forward(&context, weights, x.as_view(), None, kept.arena())?;
                }
                let dx = dx.reborrow();
                Ok(block.backward(&context, weights, x.as_view(), kept.arena(), dx, gradients, scratch)?)
            })?;
        }
        pass.with_gradients(0, None, |_, gradients| {
            let table = gradients[0].reborrow();
            Ok(embedding::backward(&self.queue, context.batch.tokens, dx.as_view(), table)?)
        })
    }

    /// Ends a step: sums over all ranks, one decision, and the update at `multiplier` times the peak learning rate.
    /// `stop_wanted` is told to the other ranks. `before_update` is called with each unit before it changes.
    pub fn finish_step(
        &mut self,
        multiplier: f64,
        stop_wanted: bool,
        mut before_update: impl FnMut(usize),
    ) -> Result<StepOutcome, DistError> {
        let queue = &self.queue;
        self.units.finish_reductions()?;
        for (index, unit) in self.units.iter().enumerate() {
            let gradient = unit.gradient().lock().map_err(|_| DistError::Abandoned { unit: index })?;
            let total = self.statistics.view_mut(DType::F64).range(statistic::SQUARED_NORM, 1)?;
            squared_norm::add(queue, gradient.view(DType::F32), total)?;
        }
        let mut statistics = self.statistics.view_mut(DType::F64);
        statistics.as_slice_mut::<f64>()?[statistic::STOP_WANTED] = f64::from(u8::from(stop_wanted));
        self.units.group().all_reduce(queue, statistics)?.wait()?;
        let statistics = self.statistics.view(DType::F64);
        decide(queue, statistics, self.settings.max_grad_norm, self.decision.view_mut(DType::F64))?;
        self.update(multiplier, &mut before_update)?;
        let outcome = outcome(statistics, self.decision.view(DType::F64))?;
        fill::zero(queue, self.statistics.view_mut(DType::F64))?;
        Ok(outcome)
    }

    /// Updates every unit's shard and clears its gradient.
    fn update(&self, multiplier: f64, before_update: &mut dyn FnMut(usize)) -> Result<(), DistError> {
        let group = self.units.group();
        for (index, unit) in self.units.iter().enumerate() {
            before_update(index);
            let abandoned = || DistError::Abandoned { unit: index };
            let slice = Slice { size: unit.size(), rank: group.rank(), world_size: group.world_size() };
            let mut state = unit.state().write().map_err(|_| abandoned())?;
            let mut gradient = unit.gradient().lock().map_err(|_| abandoned())?;
            let decision = self.decision.view(DType::F64);
            let optimizer = &self.settings.optimizer;
            optimizer.update(
                &self.queue,
                slice,
                &mut state,
                gradient.view(DType::F32),
                multiplier,
                decision,
            )?;
            fill::zero(&self.queue, gradient.view_mut(DType::F32))?;
        }
        self.units.weights_changed()
    }

    /// The optimizer's own counts, which belong to a checkpoint: updates done, and steps skipped.
    pub fn optimizer_counts(&self) -> Result<OptimizerCounts, DistError> {
        let view = self.decision.view(DType::F64);
        let counts = view.as_slice::<f64>()?;
        Ok(OptimizerCounts {
            updates: counts[decision::UPDATES] as u64,
            skipped_in_a_row: counts[decision::SKIPPED_IN_A_ROW] as u64,
            skipped: counts[decision::SKIPPED] as u64,
        })
    }

    /// Puts counts from a checkpoint back.
    pub fn set_optimizer_counts(&mut self, counts: OptimizerCounts) -> Result<(), DistError> {
        let mut view = self.decision.view_mut(DType::F64);
        let decision = view.as_slice_mut::<f64>()?;
        decision[decision::UPDATES] = counts.updates as f64;
        decision[decision::SKIPPED_IN_A_ROW] = counts.skipped_in_a_row as f64;
        decision[decision::SKIPPED] = counts.skipped as f64;
        Ok(())
    }
}

/// The optimizer's own counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct OptimizerCounts {
    /// Updates done.
    pub updates: u64,
    /// Steps skipped since the last update.
    pub skipped_in_a_row: u64,
    /// Steps skipped in the whole run.
    pub skipped: u64,
}

fn outcome(statistics: View<'_>, decision: View<'_>) -> Result<StepOutcome, OpError> {
    let (statistics, decision) = (statistics.as_slice::<f64>()?, decision.as_slice::<f64>()?);
    Ok(StepOutcome {
        loss_sum: statistics[statistic::LOSS_SUM],
        hits: statistics[statistic::HITS],
        gradient_norm: statistics[statistic::SQUARED_NORM].sqrt(),
        skipped_in_a_row: decision[decision::SKIPPED_IN_A_ROW] as u64,
        stop_wanted: statistics[statistic::STOP_WANTED] > 0.0,
    })
}
