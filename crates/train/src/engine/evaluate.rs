//! Evaluation: forward only, the same chunks of logits, no gradient.

use tessera_data::MicroBatch;
use tessera_dist::DistError;
use tessera_ops::step::statistic;
use tessera_ops::{DType, fill, transfer};

use super::context::ContextPlace;
use super::pass::{Keep, Pass, Targets, rope_view};
use super::{Engine, Workspace};

/// Sums over an evaluated data set.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Evaluation {
    /// Σ of the token losses.
    pub loss_sum: f64,
    /// Loss tokens whose target had the largest logit.
    pub hits: f64,
}

impl Engine {
    /// Adds the losses of one micro-batch.
    pub fn evaluate_micro_batch(&mut self, batch: &MicroBatch) -> Result<(), DistError> {
        let Workspace { inputs, kept, scratch, exchange, batch: room, .. } = &mut self.workspace;
        let place = ContextPlace::new(self.units.mesh().context(), exchange);
        let whole = batch.tokens.len();
        let targets = Targets::of_part(batch, place.part(whole));
        let rope_table = rope_view(&self.rope_table, &self.model)?;
        let batch = room.upload(targets.views(batch))?;
        let context = self.settings.context(&self.queue, batch, rope_table);
        let context = place.over(whole, context);
        let pass = Pass { model: &self.model, units: &self.units, context };
        let last = pass.forward(inputs, kept, Keep::Nothing, None, |_, _| Ok(()))?;
        let x = pass.stream(&mut inputs[last])?;
        let statistics = self.statistics.view_mut(DType::F64);
        let arena = scratch.arena();
        pass.with_weights(self.model.head_unit(), Some(0), |weights| {
            Ok(self.model.head().evaluate(&context, weights, x.as_view(), statistics, arena)?)
        })
    }

    /// Ends an evaluation: the sums over all ranks since the last step or evaluation.
    pub fn finish_evaluation(&mut self) -> Result<Evaluation, DistError> {
        self.units.mesh().world().all_reduce(&self.queue, self.statistics.view_mut(DType::F64))?.wait()?;
        let statistics = transfer::to_host::<f64>(&self.queue, self.statistics.view(DType::F64))?;
        let evaluation =
            Evaluation { loss_sum: statistics[statistic::LOSS_SUM], hits: statistics[statistic::HITS] };
        fill::zero(&self.queue, self.statistics.view_mut(DType::F64))?;
        Ok(evaluation)
    }
}
