//! One training step: micro-batches forward and backward, then one decision and one update.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tessera_data::MicroBatch;
use tessera_dist::DistError;
use tessera_model::LossScale;
use tessera_ops::step::{decide, decision, statistic};
use tessera_ops::transfer::Readback;
use tessera_ops::{DType, OpError, Queue, embedding, fill, squared_norm, transfer};

use super::context::ContextPlace;
use super::optimizer::{Change, Slice};
use super::pass::{Keep, Pass, Targets, rope_view, visits};
use super::{Engine, Workspace};

/// What came of a step, the same on every rank.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepOutcome {
    /// Σ of the token losses.
    pub loss_sum: f64,
    /// The load-balancing loss as it is added to the loss; zero without experts.
    pub balance_loss: f64,
    /// Loss tokens whose target had the largest logit.
    pub hits: f64,
    /// The norm of the gradient before clipping.
    pub gradient_norm: f64,
    /// Steps skipped since the last update, because loss or gradient was not finite: the weights did not move.
    pub skipped_in_a_row: u64,
    /// Whether any rank was asked to stop.
    pub stop_wanted: bool,
    /// How long the step took rank 0, by whose clock all go.
    pub elapsed: Duration,
}

/// What a rank adds to a step's sums besides its losses and gradients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct OwnNews {
    /// Whether it was asked to stop.
    pub stop_wanted: bool,
    /// How long the step took it.
    pub elapsed: Duration,
}

impl OwnNews {
    /// The last fields of the statistics.
    fn told(self, rank: usize) -> [f64; 2] {
        const { assert!(statistic::ELAPSED == statistic::STOP_WANTED + 1) };
        let elapsed = if rank == 0 { self.elapsed.as_secs_f64() } else { 0.0 };
        [f64::from(u8::from(self.stop_wanted)), elapsed]
    }
}

impl Engine {
    /// Adds one micro-batch's losses to the step's statistics and its gradients to the units. A rank without rows passes an
    /// empty micro-batch, so that all ranks make the same collectives.
    pub fn train_micro_batch(&mut self, batch: &MicroBatch, scale: LossScale) -> Result<(), DistError> {
        let Workspace { inputs, kept, gradient, scratch, balance, exchange, batch: room } =
            &mut self.workspace;
        let place = ContextPlace::new(self.units.mesh().context(), exchange);
        let whole = batch.tokens.len();
        let targets = Targets::of_part(batch, place.part(whole));
        let rope_table = rope_view(&self.rope_table, &self.model)?;
        let views = room.upload(targets.views(batch))?;
        let context = self.settings.context(&self.queue, views, rope_table);
        let context = place.over(whole, context);
        let pass = Pass { model: &self.model, units: &self.units, context };
        let mut balance = match self.model.balance() {
            Some(balanced) => {
                let mut buffer = balance.view_mut(DType::F64);
                fill::zero(&self.queue, buffer.reborrow())?;
                Some((balanced, balanced.sums(buffer, batch.row_starts.len() - 1)?))
            }
            None => None,
        };
        let sums = balance.as_mut().map(|(_, sums)| sums);
        let last = pass.forward(inputs, kept, Keep::ForBackward, sums, |_, _| Ok(()))?;
        if let Some((_, sums)) = &mut balance {
            place.add_up(&self.queue, sums)?;
        }
        if let Some((balance, sums)) = balance.as_ref().filter(|_| place.counts()) {
            let total = self.statistics.view_mut(DType::F64).range(statistic::BALANCE_LOSS, 1)?;
            balance.loss(&self.queue, sums, context.batch.row_starts, scale.balance, total)?;
        }

        let x = pass.stream(&mut inputs[last])?;
        let statistics = self.statistics.view_mut(DType::F64);
        let mut dx = pass.stream(gradient)?;
        let visits = visits(&self.model, self.settings.recompute);
        let next = visits.first().map(|&(unit, ..)| unit);
        pass.with_gradients(self.model.head_unit(), next, |weights, gradients| {
            let (dx, arena) = (dx.reborrow(), scratch.arena());
            let head = self.model.head();
            Ok(head.train(&context, weights, x.as_view(), scale, statistics, dx, gradients, arena)?)
        })?;
        let balance = balance.as_ref().map(|(balance, sums)| balance.gradient(sums, scale.balance));
        pass.backward(&visits, inputs, kept, scratch, balance, &mut dx)?;
        pass.with_gradients_alone(0, |gradients| {
            let table = gradients[0].reborrow();
            Ok(embedding::backward(&self.queue, context.batch.tokens, dx.as_view(), table)?)
        })
    }

    /// Ends a step and waits for what came of it: [`Engine::end_step`], then [`Engine::outcome`].
    pub fn finish_step(
        &mut self,
        multiplier: f64,
        own: OwnNews,
        before_update: impl FnMut(usize),
    ) -> Result<StepOutcome, DistError> {
        let ended = self.end_step(multiplier, own, before_update)?;
        self.outcome(ended)
    }

    /// Ends a step: sums over all ranks, one decision, and the update at `multiplier` times the peak learning rate.
    /// `own` news are told to the other ranks. `before_update` is called with each unit before it changes. On a GPU all of it is
    /// issued when this returns, and the next step can be issued behind it.
    pub fn end_step(
        &mut self,
        multiplier: f64,
        own: OwnNews,
        mut before_update: impl FnMut(usize),
    ) -> Result<Ended, DistError> {
        let queue = &self.queue;
        self.units.finish_reductions(queue)?;
        // Every copy of the model has the same gradient by now: it counts once.
        let counts = self.units.mesh().replicate().rank() == 0;
        for (index, unit) in self.units.iter().enumerate().filter(|_| counts) {
            let gradient = unit.gradient().lock().map_err(|_| DistError::Abandoned { unit: index })?;
            let total = self.statistics.view_mut(DType::F64).range(statistic::SQUARED_NORM, 1)?;
            squared_norm::add(queue, gradient.view(DType::F32), total)?;
        }
        let mut statistics = self.statistics.view_mut(DType::F64);
        let told = own.told(self.units.mesh().world().rank());
        self.workspace.batch.tell(&told, statistics.reborrow().range(statistic::STOP_WANTED, told.len())?)?;
        self.units.mesh().world().all_reduce(queue, statistics)?.wait()?;
        let statistics = self.statistics.view(DType::F64);
        decide(queue, statistics, self.settings.max_grad_norm, self.decision.view_mut(DType::F64))?;
        self.update(multiplier, &mut before_update)?;
        let mut ended = self.spare_outcomes.pop().map_or_else(|| Ended::new(queue), Ok)?;
        ended.statistics.take(queue, statistics)?;
        ended.decision.take(queue, self.decision.view(DType::F64))?;
        fill::zero(queue, self.statistics.view_mut(DType::F64))?;
        Ok(ended)
    }

    /// Waits until a step that was ended has run, and tells what came of it.
    pub fn outcome(&mut self, mut ended: Ended) -> Result<StepOutcome, DistError> {
        let outcome = ended.outcome()?;
        self.units.mesh().world().check()?;
        self.spare_outcomes.push(ended);
        Ok(outcome)
    }

    /// Updates every unit's shard and clears its gradient.
    fn update(&self, multiplier: f64, before_update: &mut dyn FnMut(usize)) -> Result<(), DistError> {
        let group = self.units.group();
        for (index, unit) in self.units.iter().enumerate() {
            before_update(index);
            let abandoned = || DistError::Abandoned { unit: index };
            let slice = Slice { size: unit.size(), rank: group.rank(), world_size: group.world_size() };
            let mut gradient = unit.gradient().lock().map_err(|_| abandoned())?;
            let decision = self.decision.view(DType::F64);
            let (optimizer, gradient_view) = (&self.settings.optimizer, gradient.view(DType::F32));
            self.units.change(index, |gathered| {
                let mut state = unit.state().write().map_err(|_| abandoned())?;
                let update = Change { slice, state: &mut state, gathered };
                optimizer.update(&self.queue, update, gradient_view, multiplier, decision)
            })?;
            fill::zero(&self.queue, gradient.view_mut(DType::F32))?;
        }
        Ok(())
    }

    /// The optimizer's own counts, which belong to a checkpoint: updates done, and steps skipped.
    pub fn optimizer_counts(&self) -> Result<OptimizerCounts, DistError> {
        let counts = transfer::to_host::<f64>(&self.queue, self.decision.view(DType::F64))?;
        Ok(OptimizerCounts {
            updates: counts[decision::UPDATES] as u64,
            skipped_in_a_row: counts[decision::SKIPPED_IN_A_ROW] as u64,
            skipped: counts[decision::SKIPPED] as u64,
        })
    }

    /// Puts counts from a checkpoint back.
    pub fn set_optimizer_counts(&mut self, counts: OptimizerCounts) -> Result<(), DistError> {
        Ok(transfer::on_host::<f64, _>(&self.queue, self.decision.view_mut(DType::F64), |decision| {
            decision[decision::UPDATES] = counts.updates as f64;
            decision[decision::SKIPPED_IN_A_ROW] = counts.skipped_in_a_row as f64;
            decision[decision::SKIPPED] = counts.skipped as f64;
        })?)
    }
}

/// The optimizer's own counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct OptimizerCounts {
    /// Updates done.
    pub updates: u64,
    /// Steps skipped since the last update.
    pub skipped_in_a_row: u64,
    /// Steps skipped in the whole run.
    pub skipped: u64,
}

/// A step that has been issued as a whole, whose outcome is on its way to the host.
pub struct Ended {
    statistics: Readback,
    decision: Readback,
}

impl Ended {
    fn new(queue: &Queue) -> Result<Self, OpError> {
        let scalars = |count: usize| Readback::new(queue, count * DType::F64.size());
        Ok(Self { statistics: scalars(statistic::COUNT)?, decision: scalars(decision::COUNT)? })
    }

    fn outcome(&mut self) -> Result<StepOutcome, OpError> {
        let statistics = self.statistics.values::<f64>()?;
        let decision = self.decision.values::<f64>()?;
        Ok(StepOutcome {
            loss_sum: statistics[statistic::LOSS_SUM],
            balance_loss: statistics[statistic::BALANCE_LOSS],
            hits: statistics[statistic::HITS],
            gradient_norm: statistics[statistic::SQUARED_NORM].sqrt(),
            skipped_in_a_row: decision[decision::SKIPPED_IN_A_ROW] as u64,
            stop_wanted: statistics[statistic::STOP_WANTED] > 0.0,
            elapsed: Duration::try_from_secs_f64(statistics[statistic::ELAPSED]).unwrap_or_default(),
        })
    }
}
