//! The batches of a run, one after the other.

use tessera_dist::Deadline;
use tessera_track::{EventType, ResumePoint};

use super::between::Between;
use super::logs::{Logs, ResumePoints, Told};
use super::progress::{Updates, update};
use super::steps::Training;
use super::{Outcome, RunPaths, SIGTERM, StopSignal};
use crate::engine::Engine;
use crate::error::TrainError;
use crate::observe::{Observer, Update};
use crate::plan::Prepared;
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
    let (mut stopping, mut updates) = (false, Updates::default());
    while position.batch < total {
        let before = position;
        let step = training.next(&mut position, &between, stop, stopping)?;
        deadline.set(prepared.plan.settings.timeout());
        between.append(&training.record(&step, &before, &position), &mut logs)?;
        observer.observe(Update::Step(&step.report));
        if updates.is_due(position.batch, total) {
            let (message, fields) = update(&step.report);
            between.note(EventType::TrainUpdated, message, &fields, &mut logs);
        }
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
        stopping |= step.outcome.stop_wanted;
        if stopping && training.is_settled() && position.batch < total {
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
    Ok(Outcome::Completed(folder.finished(total, checkpoint)?))
}
