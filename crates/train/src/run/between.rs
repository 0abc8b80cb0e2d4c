//! What happens between batches: evaluation, answers, checkpoints, exports.

use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use tessera_checkpoint::dcp::list_checkpoints;
use tessera_data::{Dataset, MicroBatch};
use tessera_track::{EventType, Generation, Record, names};

use super::RunPaths;
use super::logs::Logs;
use crate::engine::Engine;
use crate::error::TrainError;
use crate::generate::answer_texts;
use crate::observe::{Answer, EvaluationReport, Observer, Update};
use crate::plan::Prepared;
use crate::spec::CheckpointsToKeep;
use crate::state::Owed;
use crate::state::Position;
use crate::state::export;
use crate::state::{Moment, Patience, Saved, Saver, SaverSettings, exchange};
use crate::time::Interval;

/// Everything that a run does besides its batches.
pub(super) struct Between<'a> {
    prepared: &'a Prepared,
    folder: &'a RunPaths,
    observer: &'a dyn Observer,
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
    /// A checkpoint.
    save: bool,
}

impl<'a> Between<'a> {
    pub(super) fn new(prepared: &'a Prepared, folder: &'a RunPaths, observer: &'a dyn Observer) -> Self {
        let settings = &prepared.plan.settings;
        let saver = Saver::new(SaverSettings {
            folder: folder.checkpoints(),
            keep: match settings.save_num_checkpoints_to_keep {
                CheckpointsToKeep::All => None,
                CheckpointsToKeep::Newest(count) => Some(count.get()),
            },
            patience: Patience { patience: settings.timeout(), hurried: Arc::default() },
        });
        Self {
            prepared,
            folder,
            observer,
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
        logs: &mut Logs<'_>,
    ) -> Result<(), TrainError> {
        let owed = Owed {
            evaluation: self.prepared.eval.is_some(),
            answers: !self.prepared.prompts.is_empty(),
            export: false,
        };
        self.make_up_for(owed, engine, 0, logs)
    }

    /// What a stopped run owed when it was saved.
    pub(super) fn make_up_for(
        &mut self,
        owed: Owed,
        engine: &mut Engine,
        batch: u64,
        logs: &mut Logs<'_>,
    ) -> Result<(), TrainError> {
        if owed.export {
            self.export_if_there_is_room(engine, batch)?;
        }
        if owed.evaluation {
            self.evaluate(engine, batch, logs)?;
        }
        if owed.answers {
            self.answer(engine, batch, logs)?;
        }
        Ok(())
    }

    /// Whatever is due now that a batch is done. Metrics and exports are on disk before the checkpoint that they led to: a run
    /// killed between them makes them again. While gradients are not finite no checkpoint is saved, but for the last.
    pub(super) fn after_batch(
        &mut self,
        engine: &mut Engine,
        positions: (&Position, &Position),
        healthy: bool,
        logs: &mut Logs<'_>,
    ) -> Result<(), TrainError> {
        let Due { owed, save } = self.due(positions);
        let position = positions.1;
        let last = position.batch == self.prepared.plan.length.total_batches;
        self.make_up_for(Owed { export: owed.export && !last, ..owed }, engine, position.batch, logs)?;
        self.save_is_due |= save;
        if self.save_is_due && (healthy || last) {
            logs.sync()?;
            self.save(engine, position, Owed::default(), last, logs)?;
        } else if self.saver.has_news() {
            self.settle(logs)?;
        }
        Ok(())
    }

    fn due(&self, (before, position): (&Position, &Position)) -> Due {
        let settings = &self.prepared.plan.settings;
        let total = self.prepared.plan.length.total_batches;
        let fires = |interval: Interval| interval.fires(&before.progress(), &position.progress(), total);
        let save = fires(settings.save_interval);
        let owed = Owed {
            evaluation: fires(settings.eval_interval) && self.prepared.eval.is_some(),
            answers: save && !self.prepared.prompts.is_empty(),
            export: fires(settings.hf_save_interval),
        };
        Due { owed, save }
    }

    /// Whether nothing will be due after the batch that leads from the one position to the other, so that the next batch can be
    /// issued before this one's outcome is known. What goes by the clock may be due after any batch.
    pub(super) fn nothing_is_due(&self, positions: (&Position, &Position)) -> bool {
        let settings = &self.prepared.plan.settings;
        let intervals = [settings.save_interval, settings.eval_interval, settings.hf_save_interval];
        let Due { owed, save } = self.due(positions);
        let by_the_clock = intervals.into_iter().any(Interval::is_by_the_clock);
        !save && !self.save_is_due && owed == Owed::default() && !by_the_clock
    }

    pub(super) fn wait_until_copied(&self, unit: usize) {
        self.saver.wait_until_copied(unit);
    }

    /// Appends a line to the metrics. If the disk is full, perhaps with a checkpoint that will fail for it, waits for that and
    /// tries once more.
    pub(super) fn append(&mut self, record: &Record, logs: &mut Logs<'_>) -> Result<(), TrainError> {
        match logs.metrics(record) {
            Err(error) if error.is_storage_full() => {
                self.settle(logs)?;
                Ok(logs.metrics(record)?)
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
        logs: &mut Logs<'_>,
    ) -> Result<PathBuf, TrainError> {
        let owed = self.due(positions).owed;
        logs.sync()?;
        self.weights_only = false;
        self.save(engine, positions.1, owed, true, logs)?;
        self.last_is(positions.1)
    }

    /// Exports the model, which needs less room than a checkpoint, and makes sure of the last checkpoint.
    pub(super) fn finish(
        &mut self,
        engine: &Engine,
        position: &Position,
        logs: &mut Logs<'_>,
    ) -> Result<PathBuf, TrainError> {
        self.settle_together(engine, logs)?;
        self.export(engine, position.batch)?;
        self.last_is(position)
    }

    /// The error of a run whose gradients are no numbers.
    pub(super) fn give_up(&mut self, count: u64, batch: u64, logs: &mut Logs<'_>) -> TrainError {
        let checkpoints = self.folder.checkpoints();
        let newest = self.settle(logs).and_then(|()| Ok(list_checkpoints(&checkpoints)?));
        match newest {
            Err(error) => error,
            Ok(names) => {
                let checkpoint = names.first().map(|name| checkpoints.join(name.to_string()));
                TrainError::NotFinite { count, batch, advice: advice(checkpoint) }
            }
        }
    }

    fn save(
        &mut self,
        engine: &Engine,
        position: &Position,
        owed: Owed,
        wait: bool,
        logs: &mut Logs<'_>,
    ) -> Result<(), TrainError> {
        self.settle_together(engine, logs)?;
        let moment = Moment {
            plan: &self.prepared.plan,
            position,
            data_identity: self.prepared.train.identity(),
            owed,
            weights_only: self.weights_only,
        };
        self.save_is_due = false;
        self.last_failure = None;
        let in_place = wait || !self.prepared.plan.settings.save_async;
        let started = self.saver.start(engine, &moment, in_place);
        self.report(started.map(|()| None), logs)?;
        if in_place {
            self.settle_together(engine, logs)?;
        }
        if wait {
            self.agree_on_the_last(engine)?;
        }
        Ok(())
    }

    /// Waits until no rank is saving, and takes note of how that went. While some write, the others come to collectives, so that
    /// nobody takes a slow disk for a rank that is missing.
    fn settle_together(&mut self, engine: &Engine, logs: &mut Logs<'_>) -> Result<(), TrainError> {
        const PAUSE: Duration = Duration::from_millis(50);
        let world = engine.units().mesh().world();
        while world.world_size() > 1
            && exchange(world, "who is saving", &self.saver.is_busy())?.contains(&true)
        {
            thread::sleep(PAUSE);
        }
        self.settle(logs)
    }

    /// Makes a last checkpoint that failed anywhere a failure of all ranks: they end alike.
    fn agree_on_the_last(&mut self, engine: &Engine) -> Result<(), TrainError> {
        let failure = self.last_failure.as_ref().map(ToString::to_string);
        let failures = exchange(engine.units().mesh().world(), "the last checkpoint", &failure)?;
        let failed = failures.into_iter().enumerate().find_map(|(rank, failure)| Some((rank, failure?)));
        if let (None, Some((rank, message))) = (&self.last_failure, failed) {
            self.last_failure = Some(TrainError::ShardFailed { rank, message });
        }
        Ok(())
    }

    /// Waits for the checkpoint that is being saved, if any.
    fn settle(&mut self, logs: &mut Logs<'_>) -> Result<(), TrainError> {
        let outcome = self.saver.finish();
        self.report(outcome, logs)
    }

    /// Tells of a checkpoint that is whole. A full disk does not end a run: training goes on, and the older checkpoints
    /// stay as they are.
    fn report(
        &mut self,
        outcome: Result<Option<Saved>, TrainError>,
        logs: &mut Logs<'_>,
    ) -> Result<(), TrainError> {
        match outcome {
            Ok(None) => {}
            Ok(Some(Saved { path, trouble })) => {
                let text = path.display().to_string();
                self.observer.observe(Update::CheckpointSaved(&path));
                if let Some(trouble) = trouble {
                    self.observer.observe(Update::Warning(&format!("{text} is saved, but: {trouble}")));
                }
                self.note(
                    EventType::CheckpointSaved,
                    format!("checkpoint {text}"),
                    &[("path", text.into())],
                    logs,
                );
            }
            Err(error) if error.spares_the_run() => {
                let warning = format!("a checkpoint could not be saved: {error}");
                self.observer.observe(Update::Warning(&warning));
                self.last_failure = Some(error);
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Records an event of something that has been done and stays done, even if there is no room to tell of it.
    pub(super) fn note(
        &self,
        kind: EventType,
        message: String,
        fields: &[(&str, serde_json::Value)],
        logs: &mut Logs<'_>,
    ) {
        if let Err(error) = logs.event(kind, message, fields) {
            self.observer.observe(Update::Warning(&format!("{kind} could not be recorded: {error}")));
        }
    }

    /// The checkpoint of `position`, which must be the last that was saved.
    fn last_is(&mut self, position: &Position) -> Result<PathBuf, TrainError> {
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
        export(engine, self.prepared, &folder)?;
        self.observer.observe(Update::Exported(&folder));
        Ok(())
    }

    fn evaluate(&mut self, engine: &mut Engine, batch: u64, logs: &mut Logs<'_>) -> Result<(), TrainError> {
        let Some((data, _)) = &self.prepared.eval else { return Ok(()) };
        let report =
            evaluate(engine, data, self.prepared.plan.settings.microbatch_rows(), batch, self.observer)?;
        let record = Record::at(batch)
            .with(names::EVAL_CROSS_ENTROPY, report.cross_entropy)
            .with(names::EVAL_PERPLEXITY, report.perplexity())
            .with(names::EVAL_ACCURACY, report.accuracy);
        self.append(&record, logs)?;
        self.observer.observe(Update::Evaluated(&report));
        Ok(())
    }

    fn answer(&mut self, engine: &mut Engine, batch: u64, logs: &mut Logs<'_>) -> Result<(), TrainError> {
        let Prepared { prompts, tokenizer, plan, .. } = self.prepared;
        let settings = &plan.settings;
        self.observer.observe(Update::Answering { prompts: prompts.len() });
        let seed = settings.seed.wrapping_add(batch);
        let texts = answer_texts(engine, tokenizer, prompts, &settings.eval_generation, seed)?;
        let answer = |(prompt, text): (&String, String)| Answer { prompt: prompt.clone(), text };
        let answers: Vec<_> = settings.eval_prompts.iter().zip(texts).map(answer).collect();
        let lines: Vec<_> = answers
            .iter()
            .map(|Answer { prompt, text }| Generation { batch, prompt: prompt.clone(), answer: text.clone() })
            .collect();
        match logs.generations(&lines) {
            Err(error) if error.is_storage_full() => {
                self.settle(logs)?;
                logs.generations(&lines)?;
            }
            appended => appended?,
        }
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
    let (place, places) = engine.data_place();
    let own = tessera_data::split(&rows, place, places);
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

/// What to do after a run whose gradients were no numbers, with its newest checkpoint.
fn advice(checkpoint: Option<PathBuf>) -> String {
    match checkpoint {
        Some(path) => format!(
            "start another run (another run_name) with custom_weights_path: {} and a lower learning_rate or a longer warm-up",
            path.display()
        ),
        None => "start another run (another run_name) with a lower learning_rate or a longer warm-up".into(),
    }
}
