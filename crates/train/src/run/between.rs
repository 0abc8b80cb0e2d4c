//! What happens between batches: evaluation, answers, checkpoints, exports.

use std::path::PathBuf;

use tessera_data::{Dataset, MicroBatch};
use tessera_track::{EventLog, EventType, Generation, GenerationsLog, MetricsLog, Record, names};

use super::RunFolder;
use crate::engine::{Engine, GenerationSettings, Sampler};
use crate::error::TrainError;
use crate::exporting::export;
use crate::observe::{Answer, EvaluationReport, Observer, Update};
use crate::plan::Prepared;
use crate::position::Position;
use crate::saving::{Saver, SaverSettings};
use crate::spec::CheckpointsToKeep;

/// Everything that a run does besides its batches.
pub(super) struct Between<'a> {
    prepared: &'a Prepared,
    folder: &'a RunFolder,
    observer: &'a dyn Observer,
    generations: GenerationsLog,
    saver: Saver,
    last_checkpoint: Option<PathBuf>,
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
            weights_only: settings.save_weights_only,
            beside: settings.save_async,
        });
        Self { prepared, folder, observer, generations, saver, last_checkpoint: None }
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

    /// Whatever is due now that a batch is done. Metrics are on disk before the checkpoint that they led to.
    pub(super) fn after_batch(
        &mut self,
        engine: &mut Engine,
        before: &Position,
        position: &Position,
        metrics: &mut MetricsLog,
        events: &mut EventLog,
    ) -> Result<(), TrainError> {
        let settings = &self.prepared.plan.settings;
        let total = self.prepared.plan.length.total_batches;
        let fires =
            |interval: crate::time::Interval| interval.fires(&before.progress(), &position.progress(), total);
        if fires(settings.eval_interval) {
            self.evaluate(engine, position.batch, metrics)?;
        }
        if fires(settings.save_interval) {
            self.answer(engine, position.batch)?;
            metrics.sync()?;
            self.start_saving(engine, position, events)?;
        } else if self.saver.has_news() {
            self.settle(events)?;
        }
        if fires(settings.hf_save_interval) && position.batch < total {
            self.export(engine, position.batch)?;
        }
        Ok(())
    }

    pub(super) fn wait_until_copied(&self, unit: usize) {
        self.saver.wait_until_copied(unit);
    }

    /// Saves at once and waits for it.
    pub(super) fn save_now(
        &mut self,
        engine: &Engine,
        position: &Position,
        metrics: &MetricsLog,
        events: &mut EventLog,
    ) -> Result<PathBuf, TrainError> {
        metrics.sync()?;
        self.start_saving(engine, position, events)?;
        self.last_is(position, events)
    }

    /// Waits for the last checkpoint, and exports the model.
    pub(super) fn finish(
        &mut self,
        engine: &Engine,
        position: &Position,
        events: &mut EventLog,
    ) -> Result<PathBuf, TrainError> {
        let checkpoint = self.last_is(position, events)?;
        if !self.folder.export(position.batch).is_dir() {
            self.export(engine, position.batch)?;
        }
        Ok(checkpoint)
    }

    /// The error of a run whose gradients are no numbers.
    pub(super) fn give_up(&mut self, count: u64, batch: u64) -> TrainError {
        let checkpoint = match self.saver.finish() {
            Ok(Some(path)) => Some(path),
            _ => self.last_checkpoint.clone(),
        };
        let checkpoint = checkpoint.map_or("none was saved yet".into(), |path| path.display().to_string());
        TrainError::NotFinite { count, batch, checkpoint }
    }

    fn start_saving(
        &mut self,
        engine: &Engine,
        position: &Position,
        events: &mut EventLog,
    ) -> Result<(), TrainError> {
        let identity = self.prepared.train.identity();
        let outcome = self.saver.save(engine, &self.prepared.plan, position, identity);
        self.report(outcome, events)
    }

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
                let message = format!("checkpoint {}", path.display());
                events.record(
                    EventType::CheckpointSaved,
                    message,
                    &[("path", path.display().to_string().into())],
                )?;
                self.observer.observe(Update::CheckpointSaved(&path));
                self.last_checkpoint = Some(path);
                Ok(())
            }
            Err(error) if error.is_storage_full() => {
                let warning = format!("a checkpoint could not be saved, training goes on: {error}");
                self.observer.observe(Update::Warning(&warning));
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// The checkpoint of `position`, which must be the last that was saved.
    fn last_is(&mut self, position: &Position, events: &mut EventLog) -> Result<PathBuf, TrainError> {
        let outcome =
            self.saver.finish().map_err(|source| TrainError::FinalSave { source: Box::new(source) });
        if let Some(path) = outcome? {
            self.report(Ok(Some(path)), events)?;
        }
        let expected = self.folder.checkpoints().join(position.checkpoint_name().to_string());
        if expected.join(".metadata").is_file() {
            return Ok(expected);
        }
        let source = std::io::Error::from(std::io::ErrorKind::StorageFull);
        let source = crate::plan::file_error("save", &expected, source);
        Err(TrainError::FinalSave { source: Box::new(source) })
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
    let spec = prepared.plan.settings.eval_generation;
    let settings = GenerationSettings {
        max_new_tokens: spec.max_new_tokens,
        sampler: Sampler::of(&spec),
        seed,
        stop_tokens: stop_tokens(prepared),
    };
    let generated = engine.generate(&tokens, &settings)?;
    prompts
        .iter()
        .zip(generated)
        .map(|(prompt, tokens)| {
            let text = prepared.tokenizer.decode(&tokens, true)?;
            Ok(Answer { prompt: prompt.clone(), text })
        })
        .collect()
}

/// The tokens that end an answer: those of the model's config and of its tokenizer.
fn stop_tokens(prepared: &Prepared) -> Vec<u32> {
    let mut tokens = prepared.config.eos_token_ids.clone();
    tokens.extend(prepared.tokenizer.eos());
    tokens
}
