//! The batches of a run, one after the other.

use std::time::Instant;

use tessera_data::{MicroBatch, Order, split};
use tessera_model::LossScale;
use tessera_track::{
    EventLog, EventType, GenerationsLog, MetricsLog, Record, ResumePoint, SpeedMonitor, StepWork, names,
};

use super::between::{Between, Logs};
use super::{Outcome, RunFolder, StopSignal};
use crate::engine::{Engine, StepOutcome};
use crate::error::TrainError;
use crate::observe::{Observer, StepReport, Update};
use crate::plan::{Prepared, work_of};
use crate::speed::peak_flops_per_second;
use crate::state::Position;
use crate::state::{Owed, Resumed};

/// Steps without a finite gradient in a row after which a run gives up.
const MOST_SKIPPED_STEPS: u64 = 5;

/// What a run is made of, besides the engine.
pub(super) struct Parts<'a> {
    pub prepared: &'a Prepared,
    pub folder: &'a RunFolder,
    pub events: &'a mut EventLog,
    pub observer: &'a dyn Observer,
    pub stop: &'a StopSignal,
}

/// Trains from `resumed` (or the beginning) to the end, or until a signal comes.
pub(super) fn run(parts: Parts<'_>, engine: Engine, resumed: Option<Resumed>) -> Result<Outcome, TrainError> {
    let Parts { prepared, folder, events, observer, stop } = parts;
    // What is still owed will be written again.
    let point = |owed: fn(Owed) -> bool| {
        resumed.map(|Resumed { position, owed: left }| ResumePoint {
            batch: position.batch,
            keep_moment: !owed(left),
        })
    };
    let mut logs = Logs {
        events,
        metrics: MetricsLog::open(folder.path(), point(|owed| owed.evaluation))?,
        generations: GenerationsLog::open(folder.path(), point(|owed| owed.answers))?,
    };
    let mut between = Between::new(prepared, folder, observer);
    let mut training = Training::new(prepared, engine);
    let total = prepared.plan.length.total_batches;
    let mut position = match resumed {
        Some(Resumed { position, owed }) => {
            between.make_up_for(owed, &mut training.engine, position.batch, &mut logs)?;
            position
        }
        None => {
            between.before_the_first_batch(&mut training.engine, &mut logs)?;
            Position::default()
        }
    };
    let fields = [("batch", position.batch.into())];
    logs.events.record(EventType::TrainStarted, format!("batch {} of {total}", position.batch), &fields)?;
    observer.observe(Update::TrainingStarts { batch: position.batch, total });
    while position.batch < total {
        let before = position;
        let step = training.step(&mut position, &between, stop)?;
        between.append(&training.record(&step, &before, &position), &mut logs)?;
        observer.observe(Update::Step(&step.report));
        let skipped = step.outcome.skipped_in_a_row;
        if skipped >= MOST_SKIPPED_STEPS {
            return Err(between.give_up(skipped, before.batch, &mut logs));
        }
        if skipped > 0 {
            let batch = before.batch;
            observer.observe(Update::Warning(&format!(
                "batch {batch}: loss or gradient is not finite; the weights stay as they are"
            )));
        }
        let positions = (&before, &position);
        if let Some(signal) = stop.requested().filter(|_| step.outcome.stop_wanted && position.batch < total)
        {
            let checkpoint = between.save_to_stop(&training.engine, positions, &mut logs)?;
            let message = format!("stopped by signal {signal} after batch {}", position.batch);
            between.note(EventType::Stopped, message, &[("batch", position.batch.into())], &mut logs);
            return Ok(Outcome::Stopped { signal, batch: position.batch, checkpoint });
        }
        between.after_batch(&mut training.engine, positions, skipped == 0, &mut logs)?;
    }
    let fields = [("batch", total.into())];
    between.note(EventType::TrainFinished, "all batches are done".into(), &fields, &mut logs);
    let checkpoint = between.finish(&training.engine, &position, &mut logs)?;
    logs.metrics.sync()?;
    between.note(EventType::Completed, "everything is saved".into(), &fields, &mut logs);
    Ok(Outcome::Completed(folder.finished(total, checkpoint)?))
}

/// The engine with what it is fed and measured by.
struct Training<'a> {
    prepared: &'a Prepared,
    engine: Engine,
    order: Order,
    batch: MicroBatch,
    speed: SpeedMonitor,
}

/// What a step came to.
struct Step {
    outcome: StepOutcome,
    report: StepReport,
    speed: tessera_track::Speed,
    loss_tokens: u64,
}

impl<'a> Training<'a> {
    fn new(prepared: &'a Prepared, engine: Engine) -> Self {
        let peak = peak_flops_per_second();
        Self {
            prepared,
            engine,
            order: prepared.order(),
            batch: MicroBatch::default(),
            speed: SpeedMonitor::new(1, Some(peak)),
        }
    }

    /// One batch: its micro-batches, then the update, which waits for whatever a snapshot has not copied.
    fn step(
        &mut self,
        position: &mut Position,
        between: &Between<'_>,
        stop: &StopSignal,
    ) -> Result<Step, TrainError> {
        let started = Instant::now();
        let plan = &self.prepared.plan;
        let data = &self.prepared.train;
        let rows = self.order.rows_of(position.epoch, position.batch_in_epoch as usize);
        let samples = rows.iter().flatten().count() as u64;
        let work = work_of(data, rows.iter().copied().flatten());
        // A batch without a single target has no loss and no gradient; the weights still move by their momentum.
        let scale = 1.0 / work.loss_tokens.max(1) as f64;
        let group = self.engine.units().group();
        let own = split(&rows, group.rank(), group.world_size());
        // Empty rows come last. As many micro-batches as the fullest rank needs are run on each: none of them all empty.
        let filled = (samples as usize).div_ceil(group.world_size());
        for rows in own[..filled].chunks(plan.settings.microbatch_rows()) {
            data.micro_batch_into(rows, &mut self.batch);
            self.engine.train_micro_batch(&self.batch, LossScale(scale))?;
        }
        let multiplier = plan.schedule.multiplier(position.batch);
        let stop_wanted = stop.requested().is_some();
        let outcome =
            self.engine.finish_step(multiplier, stop_wanted, |unit| between.wait_until_copied(unit))?;
        let elapsed = started.elapsed();
        let batch = position.batch;
        let epoch_length = plan.length.epoch.batches();
        position.advance(samples, work.tokens, elapsed, epoch_length);
        let flops = self.prepared.config.training_flops(work);
        let speed = self.speed.observe(StepWork { elapsed, tokens: work.tokens, samples, flops });
        let total_batches = plan.length.total_batches;
        let report = StepReport {
            batch,
            total_batches,
            loss: outcome.loss_sum * scale,
            learning_rate: plan.settings.learning_rate * multiplier,
            gradient_norm: outcome.gradient_norm,
            tokens_per_second: speed.tokens,
            mfu: speed.mfu,
            remaining: speed.remaining(total_batches - position.batch),
        };
        Ok(Step { outcome, report, speed, loss_tokens: work.loss_tokens })
    }

    /// The batch's line of `metrics.jsonl`. Counts are those before the batch, as Composer logs them, but for the tokens, so
    /// that the last line tells how many the run was trained on.
    fn record(&self, step: &Step, before: &Position, after: &Position) -> Record {
        let StepReport { loss, learning_rate, gradient_norm, .. } = step.report;
        let class = self.engine.settings().optimizer.class_name();
        let hours = |duration: std::time::Duration| duration.as_secs_f64() / 3600.0;
        let microbatch = self.prepared.plan.settings.microbatch_rows();
        let memory = &self.prepared.plan.memory;
        let allocated = memory.state_bytes() + memory.workspace_bytes();
        let record = Record::training(before.batch, loss)
            .with(names::EPOCH, before.epoch)
            .with(names::SAMPLE, before.sample)
            .with(names::TOKEN, after.token)
            .with(names::BATCH_IN_EPOCH, before.batch_in_epoch)
            .with(names::SAMPLE_IN_EPOCH, before.sample_in_epoch)
            .with(names::TRAIN_CROSS_ENTROPY, loss)
            .with(names::TRAIN_PERPLEXITY, loss.exp())
            .with(names::TRAIN_ACCURACY, step.outcome.hits / step.loss_tokens.max(1) as f64)
            .with(names::learning_rate(class, 0), learning_rate)
            .with(names::GRADIENT_NORM, gradient_norm)
            .with(names::MICROBATCH_SIZE, microbatch as u64)
            .with(names::TOKEN_IN_EPOCH, before.token_in_epoch)
            .with(names::CURRENT_MEMORY, allocated as f64 / 1e9)
            .with(names::PEAK_MEMORY, self.prepared.plan.memory_bytes() as f64 / 1e9)
            .with(names::TRAIN_HOURS, hours(after.elapsed))
            .with(names::REMAINING_HOURS, hours(step.report.remaining));
        step.speed.write_to(record)
    }
}
