//! The batches of a run, one after the other.

use std::time::{Duration, Instant};

use tessera_data::{MicroBatch, Order, split};
use tessera_dist::Deadline;
use tessera_model::LossScale;
use tessera_track::{EventType, Record, ResumePoint, SpeedMonitor, StepWork, names};

use super::between::Between;
use super::logs::{Logs, ResumePoints, Told};
use super::{Outcome, RunPaths, SIGTERM, StopSignal};
use crate::engine::{Engine, OwnNews, StepOutcome};
use crate::error::TrainError;
use crate::observe::{Observer, StepReport, Update};
use crate::plan::{Prepared, work_of};
use crate::speed::rank_peak_flops_per_second;
use crate::state::Position;
use crate::state::Resumed;

/// Steps without a finite gradient in a row after which a run gives up.
const MOST_SKIPPED_STEPS: u64 = 5;

/// What a run is made of, besides the engine.
pub(super) struct Parts<'a> {
    pub prepared: &'a Prepared,
    pub folder: &'a RunPaths,
    /// Rank 0's.
    pub told: Option<Told<'a>>,
    pub observer: &'a dyn Observer,
    pub stop: &'a StopSignal,
    /// How long ranks wait for one another; a start takes longer than a step.
    pub deadline: &'a Deadline,
}

/// Trains from `resumed` (or the beginning) to the end, or until a signal comes.
pub(super) fn run(parts: Parts<'_>, engine: Engine, resumed: Option<Resumed>) -> Result<Outcome, TrainError> {
    let Parts { prepared, folder, told, observer, stop, deadline } = parts;
    // What is still owed will be written again.
    let points = resumed.map(|Resumed { position, owed }| {
        let point = |owed: bool| ResumePoint { batch: position.batch, keep_moment: !owed };
        ResumePoints { metrics: point(owed.evaluation), generations: point(owed.answers) }
    });
    let mut logs = Logs::open(told, folder.path(), points)?;
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
    let fields = [("batch", position.batch.into()), ("batches", total.into())];
    logs.event(EventType::TrainStarted, format!("batch {} of {total}", position.batch), &fields)?;
    stop.listen();
    observer.observe(Update::TrainingStarts { batch: position.batch, total });
    while position.batch < total {
        let before = position;
        let step = training.step(&mut position, &between, stop)?;
        deadline.set(prepared.plan.settings.timeout());
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
        if step.outcome.stop_wanted && position.batch < total {
            // Another rank may have been asked, not this one.
            let signal = stop.requested().unwrap_or(SIGTERM);
            let checkpoint = between.save_to_stop(&training.engine, positions, &mut logs)?;
            let canceled = stop.is_canceled();
            let (kind, by) = match canceled {
                true => (EventType::Canceled, "canceled by its user".to_owned()),
                false => (EventType::Stopped, format!("stopped by signal {signal}")),
            };
            let message = format!("{by} after batch {}", position.batch);
            between.note(kind, message, &[("batch", position.batch.into())], &mut logs);
            return Ok(Outcome::Stopped { signal, canceled, batch: position.batch, checkpoint });
        }
        between.after_batch(&mut training.engine, positions, skipped == 0, &mut logs)?;
    }
    let fields = [("batch", total.into())];
    between.note(EventType::TrainFinished, "all batches are done".into(), &fields, &mut logs);
    // The others wait while rank 0 writes the last of it.
    deadline.set(prepared.plan.settings.startup_timeout());
    let checkpoint = between.finish(&training.engine, &position, &mut logs)?;
    logs.sync()?;
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
    /// How long the last update took, which the next step's time is told with.
    updating: Duration,
}

/// What a step came to.
struct Step {
    outcome: StepOutcome,
    report: StepReport,
    speed: tessera_track::Speed,
    /// Nats for each loss token, without the load-balancing loss.
    cross_entropy: f64,
    loss_tokens: u64,
}

impl<'a> Training<'a> {
    fn new(prepared: &'a Prepared, engine: Engine) -> Self {
        let ranks = engine.units().mesh().world().world_size();
        let peak = rank_peak_flops_per_second(&prepared.plan.settings);
        Self {
            prepared,
            engine,
            order: prepared.order(),
            batch: MicroBatch::default(),
            updating: Duration::ZERO,
            speed: SpeedMonitor::new(ranks, peak),
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
        let multiplier = plan.schedule.multiplier(position.batch);
        let computed = started.elapsed();
        let own = OwnNews { stop_wanted: stop.requested().is_some(), elapsed: self.updating + computed };
        let outcome = self.engine.finish_step(multiplier, own, |unit| between.wait_until_copied(unit))?;
        let elapsed = started.elapsed();
        self.updating = elapsed - computed;
        let batch = position.batch;
        let epoch_length = plan.length.epoch.batches();
        position.advance(samples, work.tokens, outcome.elapsed, epoch_length);
        let flops = self.prepared.config.training_flops(work);
        let speed = self.speed.observe(StepWork { elapsed, tokens: work.tokens, samples, flops });
        let total_batches = plan.length.total_batches;
        let cross_entropy = outcome.loss_sum * scale.token;
        let report = StepReport {
            batch,
            total_batches,
            loss: cross_entropy + outcome.balance_loss,
            learning_rate: plan.settings.learning_rate * multiplier,
            gradient_norm: outcome.gradient_norm,
            tokens_per_second: speed.tokens,
            mfu: speed.mfu,
            remaining: speed.remaining(total_batches - position.batch),
        };
        Ok(Step { outcome, report, speed, cross_entropy, loss_tokens: work.loss_tokens })
    }

    /// The batch's line of `metrics.jsonl`. Counts are those before the batch, as Composer logs them, but for the tokens, so
    /// that the last line tells how many the run was trained on.
    fn record(&self, step: &Step, before: &Position, after: &Position) -> Record {
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
