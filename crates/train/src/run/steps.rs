//! Steps as a run takes them: issued from the order of the data, settled when their outcome is known.
//!
//! On a GPU a step is issued long before it has run, and a GPU that must wait until the host has heard what came of a step, and has
//! told it to the logs, does nothing for so long. So one step more is issued before the host asks for a step's outcome. Not
//! so where something is due between the two that must see the weights as the first one left them, nor where steps are so
//! long that the wait is nothing beside them, while whoever asks the run to stop would wait for two of them more.

use std::time::{Duration, Instant};

use tessera_data::{MicroBatch, Order, split};
use tessera_model::LossScale;
use tessera_model::config::TrainingWork;
use tessera_ops::Home;
use tessera_track::{Record, Speed, SpeedMonitor, StepWork, names};

use super::StopSignal;
use super::between::Between;
use crate::engine::{Ended, Engine, OwnNews, StepOutcome};
use crate::error::TrainError;
use crate::observe::StepReport;
use crate::plan::{Prepared, work_of};
use crate::speed::rank_peak_flops_per_second;
use crate::state::Position;

/// Steps that take longer are waited for.
const LONG_STEP: Duration = Duration::from_secs(2);

/// The engine with what it is fed and measured by.
pub(super) struct Training<'a> {
    prepared: &'a Prepared,
    pub engine: Engine,
    order: Order,
    batch: MicroBatch,
    speed: SpeedMonitor,
    /// When the outcome of the last step was known.
    settled: Instant,
    /// A step that was issued before the outcome of the one before it was known.
    behind: Option<Issued>,
    /// Where the run will be when all that was issued is settled; the time of those steps is not counted.
    ahead: Position,
    /// How long the last step took rank 0, which all ranks know.
    last: Duration,
    /// Time that steps took and no step has told the other ranks of.
    untold: Duration,
    /// Time that steps took and no report has counted.
    unreported: Duration,
}

/// A step on its way.
struct Issued {
    ended: Ended,
    samples: u64,
    work: TrainingWork,
    /// A token's part in the loss.
    token_scale: f64,
    learning_rate: f64,
}

/// What a step came to.
pub(super) struct Step {
    pub outcome: StepOutcome,
    pub report: StepReport,
    speed: Speed,
    /// Nats for each loss token, without the load-balancing loss.
    cross_entropy: f64,
    loss_tokens: u64,
}

impl<'a> Training<'a> {
    pub(super) fn new(prepared: &'a Prepared, engine: Engine) -> Self {
        let ranks = engine.units().mesh().world().world_size();
        let peak = rank_peak_flops_per_second(&prepared.plan.settings);
        Self {
            prepared,
            engine,
            order: prepared.order(),
            batch: MicroBatch::default(),
            speed: SpeedMonitor::new(ranks, peak),
            settled: Instant::now(),
            behind: None,
            ahead: Position::default(),
            last: Duration::ZERO,
            untold: Duration::ZERO,
            unreported: Duration::ZERO,
        }
    }

    /// Whether every step that was issued is settled.
    pub(super) fn is_settled(&self) -> bool {
        self.behind.is_none()
    }

    /// The step after `position`, which moves behind it. While `stopping` nothing is issued that is not needed for it. All ranks
    /// issue alike, since nothing decides here that they do not share.
    pub(super) fn next(
        &mut self,
        position: &mut Position,
        between: &Between<'_>,
        stop: &StopSignal,
        stopping: bool,
    ) -> Result<Step, TrainError> {
        let next = match self.behind.take() {
            Some(issued) => {
                // It has run while the host was busy with the last one's outcome.
                let beside = self.settled.elapsed();
                self.untold += beside;
                self.unreported += beside;
                issued
            }
            None => {
                self.ahead = *position;
                self.issue(between, stop)?
            }
        };
        let is_last = self.ahead.batch == self.prepared.plan.length.total_batches;
        let pays = self.engine.queue().home() == Home::Gpu && self.last < LONG_STEP;
        if pays && !stopping && !is_last && between.nothing_is_due((position, &self.ahead)) {
            self.behind = Some(self.issue(between, stop)?);
        }
        self.settle(next, position)
    }

    /// One batch: its micro-batches, then the update, which waits for whatever a snapshot has not copied.
    fn issue(&mut self, between: &Between<'_>, stop: &StopSignal) -> Result<Issued, TrainError> {
        let started = Instant::now();
        let plan = &self.prepared.plan;
        let data = &self.prepared.train;
        let rows = self.order.rows_of(self.ahead.epoch, self.ahead.batch_in_epoch as usize);
        let samples = rows.iter().flatten().count() as u64;
        let work = work_of(data, rows.iter().copied().flatten());
        // A batch without a single target has no loss and no gradient; the weights still move by their momentum.
        let coefficient =
            self.prepared.config.experts.map_or(0.0, |experts| experts.balance_loss_coefficient);
        let scale = LossScale {
            token: 1.0 / work.loss_tokens.max(1) as f64,
            balance: coefficient / samples.max(1) as f64,
        };
        let (place, places) = self.engine.data_place();
        let own = split(&rows, place, places);
        // Empty rows come last. As many micro-batches as the fullest rank needs are run on each: none of them all empty.
        let filled = (samples as usize).div_ceil(places);
        for rows in own[..filled].chunks(plan.settings.microbatch_rows()) {
            data.micro_batch_into(rows, &mut self.batch);
            self.engine.train_micro_batch(&self.batch, scale)?;
        }
        let multiplier = plan.schedule.multiplier(self.ahead.batch);
        let computed = started.elapsed();
        let own = OwnNews { stop_wanted: stop.requested().is_some(), elapsed: self.untold + computed };
        let ended = self.engine.end_step(multiplier, own, |unit| between.wait_until_copied(unit))?;
        let elapsed = started.elapsed();
        self.untold = elapsed - computed;
        self.unreported += elapsed;
        self.ahead.advance(samples, work.tokens, Duration::ZERO, plan.length.epoch.batches());
        let learning_rate = plan.settings.learning_rate * multiplier;
        Ok(Issued { ended, samples, work, token_scale: scale.token, learning_rate })
    }

    /// Waits for what came of the step after `position`, and moves there.
    fn settle(&mut self, issued: Issued, position: &mut Position) -> Result<Step, TrainError> {
        let Issued { ended, samples, work, token_scale, learning_rate } = issued;
        let started = Instant::now();
        let outcome = self.engine.outcome(ended)?;
        let waited = started.elapsed();
        self.settled = Instant::now();
        self.last = outcome.elapsed;
        self.untold += waited;
        let elapsed = std::mem::take(&mut self.unreported) + waited;
        let plan = &self.prepared.plan;
        let (batch, total_batches) = (position.batch, plan.length.total_batches);
        position.advance(samples, work.tokens, outcome.elapsed, plan.length.epoch.batches());
        let flops = self.prepared.config.training_flops(work);
        let speed = self.speed.observe(StepWork { elapsed, tokens: work.tokens, samples, flops });
        let cross_entropy = outcome.loss_sum * token_scale;
        let report = StepReport {
            batch,
            total_batches,
            loss: cross_entropy + outcome.balance_loss,
            learning_rate,
            gradient_norm: outcome.gradient_norm,
            tokens_per_second: speed.tokens,
            mfu: speed.mfu,
            remaining: speed.remaining(total_batches - position.batch),
        };
        Ok(Step { outcome, report, speed, cross_entropy, loss_tokens: work.loss_tokens })
    }

    /// The batch's line of `metrics.jsonl`. Counts are those before the batch, as Composer logs them, but for the tokens, so
    /// that the last line tells how many the run was trained on.
    pub(super) fn record(&self, step: &Step, before: &Position, after: &Position) -> Record {
        let StepReport { loss, learning_rate, gradient_norm, .. } = step.report;
        let class = self.engine.settings().optimizer.class_name();
        let hours = |duration: Duration| duration.as_secs_f64() / 3600.0;
        let microbatch = self.prepared.plan.settings.microbatch_rows();
        let memory = &self.prepared.plan.memory;
        let allocated = memory.state_bytes() + memory.workspace_bytes();
        let cross_entropy = step.cross_entropy;
        let record = Record::training(before.batch, loss)
            .with(names::EPOCH, before.epoch)
            .with(names::SAMPLE, before.sample)
            .with(names::TOKEN, after.token)
            .with(names::BATCH_IN_EPOCH, before.batch_in_epoch)
            .with(names::SAMPLE_IN_EPOCH, before.sample_in_epoch)
            .with(names::TRAIN_CROSS_ENTROPY, cross_entropy)
            .with(names::TRAIN_PERPLEXITY, cross_entropy.exp())
            .with(names::TRAIN_ACCURACY, step.outcome.hits / step.loss_tokens.max(1) as f64)
            .with(names::learning_rate(class, 0), learning_rate)
            .with(names::GRADIENT_NORM, gradient_norm)
            .with(names::MICROBATCH_SIZE, microbatch as u64)
            .with(names::TOKEN_IN_EPOCH, before.token_in_epoch)
            .with(names::CURRENT_MEMORY, allocated as f64 / 1e9)
            .with(names::PEAK_MEMORY, self.prepared.plan.memory_bytes() as f64 / 1e9)
            .with(names::TRAIN_HOURS, hours(after.elapsed))
            .with(names::REMAINING_HOURS, hours(step.report.remaining));
        let record = match self.engine.model().balance() {
            Some(_) => record
                .with(names::CROSS_ENTROPY_LOSS, cross_entropy)
                .with(names::LOAD_BALANCING_LOSS, step.outcome.balance_loss),
            None => record,
        };
        step.speed.write_to(record)
    }
}
