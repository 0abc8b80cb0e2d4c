//! What happens between batches: evaluation, answers, checkpoints, exports.

use std::path::PathBuf;

use tessera_checkpoint::dcp::list_checkpoints;
use tessera_data::{Dataset, MicroBatch};
use tessera_track::{EventLog, EventType, Generation, GenerationsLog, MetricsLog, Record, names};

use super::RunFolder;
use crate::engine::Engine;
use crate::error::TrainError;
use crate::generate::answer_texts;
use crate::observe::{Answer, EvaluationReport, Observer, Update};
use crate::plan::Prepared;
use crate::spec::CheckpointsToKeep;
use crate::state::Owed;
use crate::state::Position;
use crate::state::export;
use crate::state::{Moment, Saver, SaverSettings};
use crate::time::Interval;

/// Everything that a run does besides its batches.
pub(super) struct Between<'a> {
    prepared: &'a Prepared,
    folder: &'a RunFolder,
    observer: &'a dyn Observer,
    generations: GenerationsLog,
    saver: Saver,
    weights_only: bool,
    /// A checkpoint was due while gradients were not finite.
    save_is_due: bool,
    /// Why the last checkpoint could not be saved.
    last_failure: Option<TrainError>,
}

/// What is due after a batch.
struct Due {
    owed: Owed,
    export: bool,
}

impl<'a> Between<'a> {
    pub(super) fn new(
        prepared: &'a Prepared,
        folder: &'a RunFolder,
        observer: &'a dyn Observer,
        generations: GenerationsLog,
    ) -> Self {
        let settings = &prepared.plan.settings;
        let saver = Saver::new(SaverSettings {
            folder: folder.checkpoints(),
            keep: match settings.save_num_checkpoints_to_keep {
                CheckpointsToKeep::All => None,
                CheckpointsToKeep::Newest(count) => Some(count.get()),
            },
            beside: settings.save_async,
        });
        Self {
            prepared,
            folder,
            observer,
            generations,
            saver,
            weights_only: settings.save_weights_only,
            save_is_due: false,
            last_failure: None,
        }
    }

    /// The evaluation and the answers that later ones are compared with.
    pub(super) fn before_the_first_batch(
        &mut self,
        engine: &mut Engine,
        metrics: &mut MetricsLog,
    ) -> Result<(), TrainError> {
        self.evaluate(engine, 0, metrics)?;
        self.answer(engine, 0)
    }

    /// What a stopped run owed when it was saved.
    pub(super) fn make_up_for(
        &mut self,
        owed: Owed,
        engine: &mut Engine,
        batch: u64,
        metrics: &mut MetricsLog,
    ) -> Result<(), TrainError> {
        if owed.evaluation {
            self.evaluate(engine, batch, metrics)?;
        }
        if owed.answers {
            self.answer(engine, batch)?;
        }
        Ok(())
    }

    /// Whatever is due now that a batch is done. Metrics and exports are on disk before the checkpoint that they led to: a run
    /// killed between them makes them again. While gradients are not finite nothing is saved.
    pub(super) fn after_batch(
        &mut self,
        engine: &mut Engine,
        positions: (&Position, &Position),
        healthy: bool,
        metrics: &mut MetricsLog,
        events: &mut EventLog,
    ) -> Result<(), TrainError> {
        let due = self.due(positions);
        let position = positions.1;
        if due.export && position.batch < self.prepared.plan.length.total_batches {
            self.export_if_there_is_room(engine, position.batch)?;
        }
        if due.owed.evaluation {
            self.evaluate(engine, position.batch, metrics)?;
        }
        if due.owed.answers {
            self.answer(engine, position.batch)?;
        }
        self.save_is_due |= due.owed.answers;
        if self.save_is_due && healthy {
            metrics.sync()?;
            self.start_saving(engine, position, Owed::default(), events)?;
        } else if self.saver.has_news() {
            self.settle(events)?;
        }
        Ok(())
    }

    fn due(&self, (before, position): (&Position, &Position)) -> Due {
        let settings = &self.prepared.plan.settings;
        let total = self.prepared.plan.length.total_batches;
        let fires = |interval: Interval| interval.fires(&before.progress(), &position.progress(), total);
        Due {
            owed: Owed { evaluation: fires(settings.eval_interval), answers: fires(settings.save_interval) },
            export: fires(settings.hf_save_interval),
        }
    }

    pub(super) fn wait_until_copied(&self, unit: usize) {
        self.saver.wait_until_copied(unit);
    }

    /// Appends a line to the metrics. If the disk is full, perhaps with a checkpoint that will fail for it, waits for that and
    /// tries once more.
    pub(super) fn append(
        &mut self,
        metrics: &mut MetricsLog,
        record: &Record,
        events: &mut EventLog,
    ) -> Result<(), TrainError> {
        match metrics.append(record) {
            Err(error) if error.is_storage_full() => {
                self.settle(events)?;
                Ok(metrics.append(record)?)
            }
            appended => Ok(appended?),
        }
    }

    /// Saves at once, with the optimizer's state in any case, and leaves what else is due for later: whoever asked to stop
    /// may not wait for long.
    pub(super) fn save_to_stop(
        &mut self,
        engine: &Engine,
        positions: (&Position, &Position),
        metrics: &MetricsLog,
        events: &mut EventLog,
    ) -> Result<PathBuf, TrainError> {
        let owed = self.due(positions).owed;
        metrics.sync()?;
        self.weights_only = false;
        self.start_saving(engine, positions.1, owed, events)?;
        self.last_is(positions.1, events)
    }

    /// Waits for the last checkpoint, and exports the model.
    pub(super) fn finish(
        &mut self,
        engine: &Engine,
        position: &Position,
        events: &mut EventLog,
    ) -> Result<PathBuf, TrainError> {
        let checkpoint = self.last_is(position, events)?;
        self.export(engine, position.batch)?;
        Ok(checkpoint)
    }

    /// The error of a run whose gradients are no numbers.
    pub(super) fn give_up(&mut self, count: u64, batch: u64, events: &mut EventLog) -> TrainError {
        if let Err(error) = self.settle(events) {
            return error;
        }
        let newest =
            list_checkpoints(&self.folder.checkpoints()).ok().and_then(|names| names.first().copied());
        let checkpoint = newest.map_or("none was saved yet".into(), |name| name.to_string());
        TrainError::NotFinite { count, batch, checkpoint }
    }

    fn start_saving(
        &mut self,
        engine: &Engine,
        position: &Position,
        owed: Owed,
        events: &mut EventLog,
    ) -> Result<(), TrainError> {
        self.settle(events)?;
        let moment = Moment {
            plan: &self.prepared.plan,
            position,
            data_identity: self.prepared.train.identity(),
            owed,
            weights_only: self.weights_only,
        };
        self.save_is_due = false;
        self.last_failure = None;
        let outcome = self.saver.start(engine, &moment);
        self.report(outcome, events)
    }

    /// Waits for the checkpoint that is being saved, if any.
    fn settle(&mut self, events: &mut EventLog) -> Result<(), TrainError> {
        let outcome = self.saver.finish();
        self.report(outcome, events)
    }

    /// Tells of a checkpoint that is whole. A full disk does not end a run: training goes on, and the older checkpoints
    /// stay as they are.
    fn report(
        &mut self,
        outcome: Result<Option<PathBuf>, TrainError>,
        events: &mut EventLog,
    ) -> Result<(), TrainError> {
        match outcome {
            Ok(None) => Ok(()),
            Ok(Some(path)) => {
                let text = path.display().to_string();
                let message = format!("checkpoint {text}");
                events.record(EventType::CheckpointSaved, message, &[("path", text.into())])?;
                self.observer.observe(Update::CheckpointSaved(&path));
                Ok(())
            }
            Err(error) if error.is_storage_full() => {
                let warning = format!("a checkpoint could not be saved, training goes on: {error}");
                self.observer.observe(Update::Warning(&warning));
                self.last_failure = Some(error);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// The checkpoint of `position`, which must be the last that was saved.
    fn last_is(&mut self, position: &Position, events: &mut EventLog) -> Result<PathBuf, TrainError> {
        self.settle(events)?;
        if let Some(source) = self.last_failure.take() {
            return Err(TrainError::FinalSave { source: Box::new(source) });
        }
        Ok(self.folder.checkpoints().join(position.checkpoint_name().to_string()))
    }

    /// An export between batches; a full disk is told and passed over.
    fn export_if_there_is_room(&self, engine: &Engine, batch: u64) -> Result<(), TrainError> {
        match self.export(engine, batch) {
            Err(error) if error.is_storage_full() => {
                let warning = format!("the model could not be exported, training goes on: {error}");
                self.observer.observe(Update::Warning(&warning));
                Ok(())
            }
            exported => exported,
        }
    }

    fn export(&self, engine: &Engine, batch: u64) -> Result<(), TrainError> {
        let folder = self.folder.export(batch);
        self.observer.observe(Update::Exporting(&folder));
        export(engine, &self.prepared.source, self.prepared.plan.settings.hf_save_precision, &folder)?;
        self.observer.observe(Update::Exported(&folder));
        Ok(())
    }

    fn evaluate(
        &mut self,
        engine: &mut Engine,
        batch: u64,
        metrics: &mut MetricsLog,
    ) -> Result<(), TrainError> {
        let Some((data, _)) = &self.prepared.eval else { return Ok(()) };
        let report =
            evaluate(engine, data, self.prepared.plan.settings.microbatch_rows(), batch, self.observer)?;
        let record = Record::at(batch)
            .with(names::EVAL_CROSS_ENTROPY, report.cross_entropy)
            .with(names::EVAL_PERPLEXITY, report.perplexity())
            .with(names::EVAL_ACCURACY, report.accuracy);
        metrics.append(&record)?;
        self.observer.observe(Update::Evaluated(&report));
        Ok(())
    }

    fn answer(&mut self, engine: &mut Engine, batch: u64) -> Result<(), TrainError> {
        let settings = &self.prepared.plan.settings;
        if settings.eval_prompts.is_empty() {
            return Ok(());
        }
        self.observer.observe(Update::Answering { prompts: settings.eval_prompts.len() });
        let seed = settings.seed.wrapping_add(batch);
        let answers = answers(engine, self.prepared, &settings.eval_prompts, seed)?;
        let lines: Vec<_> = answers
            .iter()
            .map(|Answer { prompt, text }| Generation { batch, prompt: prompt.clone(), answer: text.clone() })
            .collect();
        self.generations.append(&lines)?;
        self.observer.observe(Update::Answered(&answers));
        Ok(())
    }
}

/// The mean loss and accuracy over a data set.
fn evaluate(
    engine: &mut Engine,
    data: &Dataset,
    microbatch_rows: usize,
    batch: u64,
    observer: &dyn Observer,
) -> Result<EvaluationReport, TrainError> {
    let rows: Vec<_> = (0..data.rows()).map(Some).collect();
    let group = engine.units().group();
    let own = tessera_data::split(&rows, group.rank(), group.world_size());
    let mut micro_batch = MicroBatch::default();
    let mut done = 0;
    for part in own.chunks(microbatch_rows) {
        data.micro_batch_into(part, &mut micro_batch);
        engine.evaluate_micro_batch(&micro_batch)?;
        done += part.len();
        observer.observe(Update::Evaluating { done, total: own.len() });
    }
    let sums = engine.finish_evaluation()?;
    let tokens = (0..data.rows()).map(|row| data.loss_tokens(row)).sum::<usize>().max(1) as f64;
    Ok(EvaluationReport { batch, cross_entropy: sums.loss_sum / tokens, accuracy: sums.hits / tokens })
}

/// Answers to prompts in the form of the run's task.
fn answers(
    engine: &mut Engine,
    prepared: &Prepared,
    prompts: &[String],
    seed: u64,
) -> Result<Vec<Answer>, TrainError> {
    let task = prepared.plan.settings.task();
    let tokens = prompts
        .iter()
        .enumerate()
        .map(|(index, prompt)| match prepared.tokenizer.encode_prompt(prompt, task)? {
            tokens if tokens.is_empty() => Err(TrainError::EmptyPrompt { number: index + 1 }),
            tokens => Ok(tokens),
        })
        .collect::<Result<Vec<_>, _>>()?;
    let spec = &prepared.plan.settings.eval_generation;
    let texts = answer_texts(engine, &prepared.tokenizer, &tokens, spec, seed)?;
    let answer = |(prompt, text): (&String, String)| Answer { prompt: prompt.clone(), text };
    Ok(prompts.iter().zip(texts).map(answer).collect())
}
