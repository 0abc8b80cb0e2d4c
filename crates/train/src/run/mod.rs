//! A run from its folder to its last checkpoint: starting or going on, the batches, what happens between them, the end.

mod batches;
mod between;
mod folder;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

use tessera_checkpoint::dcp::ComposerWeights;
use tessera_dist::Single;
use tessera_model::Model;
use tessera_track::{EventLog, EventType, write_report};

use crate::engine::Engine;
use crate::error::TrainError;
use crate::first_weights;
use crate::observe::{EvaluationReport, Observer};
use crate::plan::{Prepared, prepare};
use crate::position::Position;
use crate::resuming;
use crate::saving::remove_leftovers;
use crate::spec::{MicrobatchSize, RunSpec};

pub use folder::RunFolder;

/// Set from a signal handler: which signal asked the run to stop, 0 while none has.
#[derive(Debug, Clone, Default)]
pub struct StopSignal(Arc<AtomicI32>);

impl StopSignal {
    /// Asks the run to stop after the batch under way.
    pub fn request(&self, signal: i32) {
        self.0.store(signal, Ordering::Relaxed);
    }

    /// The signal that asked, if one did.
    pub fn requested(&self) -> Option<i32> {
        match self.0.load(Ordering::Relaxed) {
            0 => None,
            signal => Some(signal),
        }
    }
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// All batches are done.
    Completed(Finished),
    /// All batches had been done before.
    AlreadyCompleted(Finished),
    /// A signal stopped it; the same command goes on from the checkpoint.
    Stopped {
        /// The signal.
        signal: i32,
        /// Batches done.
        batch: u64,
        /// Where they are saved.
        checkpoint: PathBuf,
    },
}

/// Where everything is.
#[derive(Debug, Clone, PartialEq)]
pub struct Finished {
    /// The run's folder.
    pub folder: PathBuf,
    /// Batches done.
    pub batch: u64,
    /// The last checkpoint.
    pub checkpoint: PathBuf,
    /// The model in Hugging Face layout.
    pub export: PathBuf,
    /// The first evaluation of this run's beginning, if it was evaluated then.
    pub first_evaluation: Option<EvaluationReport>,
    /// The last evaluation.
    pub last_evaluation: Option<EvaluationReport>,
}

/// Runs what `spec` describes, or goes on with it where its folder holds a checkpoint.
///
/// # Errors
/// For everything that can be wrong with the run file, the model, the data or the machine.
pub fn train(spec: RunSpec, observer: &Arc<dyn Observer>, stop: &StopSignal) -> Result<Outcome, TrainError> {
    let mut prepared = prepare(spec, observer)?;
    let folder = RunFolder::open(prepared.plan.settings.run_folder())?;
    let mut events = EventLog::open(folder.path())?;
    let result = train_in(&mut prepared, &folder, &mut events, observer, stop);
    // What went wrong must not be hidden by a disk that is too full to note it. A report of a failed run shows how far it
    // came.
    let noted = match &result {
        Ok(_) => Ok(()),
        Err(error) => events.record(EventType::FailedException, error.to_string(), &[]).map(drop),
    };
    let reported = write_report(folder.path());
    let outcome = result?;
    noted?;
    reported?;
    Ok(outcome)
}

fn train_in(
    prepared: &mut Prepared,
    folder: &RunFolder,
    events: &mut EventLog,
    observer: &Arc<dyn Observer>,
    stop: &StopSignal,
) -> Result<Outcome, TrainError> {
    remove_leftovers(&folder.checkpoints())?;
    let saved = resuming::newest(&folder.checkpoints())?;
    let settings = &mut prepared.plan.settings;
    if let Some(saved) = &saved {
        if !settings.autoresume {
            return Err(TrainError::AlreadyStarted { folder: folder.checkpoints() });
        }
        keep_saved_microbatch(settings, &saved.settings);
        saved.check(settings, prepared.train.identity())?;
    }
    let total = prepared.plan.length.total_batches;
    let done = saved.as_ref().is_some_and(|saved| saved.position.batch >= total);
    if done && folder.export(total).is_dir() {
        let checkpoint = saved.map(|saved| saved.folder).unwrap_or_default();
        return Ok(Outcome::AlreadyCompleted(folder.finished(total, checkpoint)?));
    }
    begin(events, folder, prepared, saved.is_some())?;
    let mut engine =
        Engine::new(Model::new(prepared.config.clone()), Box::new(Single), prepared.plan.engine_settings())?;
    let resumed = match saved {
        // A finished run needs its weights for the export, whatever else its checkpoint lacks.
        Some(saved) if done => {
            engine.load_weights(&ComposerWeights::open(&saved.folder)?, |_| {})?;
            Some(saved.position)
        }
        _ => resume_or_load(prepared, folder, &mut engine, observer)?,
    };
    events.record(
        EventType::ModelInitialized,
        format!("{} parameters are in memory", prepared.plan.parameters),
        &[],
    )?;
    batches::run(
        batches::Parts { prepared, folder, events, observer: observer.as_ref(), stop },
        engine,
        resumed,
    )
}

/// A resumed run repeats what `auto` was resolved to, even on a machine of another size.
fn keep_saved_microbatch(settings: &mut crate::settings::Settings, saved: &serde_json::Value) {
    let rows = saved.get("device_train_microbatch_size").and_then(serde_json::Value::as_u64);
    let rows = rows.and_then(|rows| std::num::NonZeroUsize::new(rows as usize));
    if let Some(rows) = rows {
        settings.device_train_microbatch_size = MicrobatchSize::Rows(rows);
    }
}

/// Writes `run.yaml` and the events up to the validated data.
fn begin(
    events: &mut EventLog,
    folder: &RunFolder,
    prepared: &Prepared,
    again: bool,
) -> Result<(), TrainError> {
    folder.write_settings(&prepared.plan.settings)?;
    if again {
        events.record(EventType::Requeued, "taken up again from its checkpoints", &[])?;
    } else {
        events.record(EventType::Created, format!("run {}", prepared.plan.settings.run_name), &[])?;
        events.record(EventType::CheckPassed, "run file, model and data fit together", &[])?;
    }
    events.record(EventType::Started, format!("version {}", env!("CARGO_PKG_VERSION")), &[])?;
    let summary = &prepared.train_summary;
    let message = format!("{} examples in {} rows", summary.examples - summary.dropped(), summary.rows);
    let fields = [
        ("examples", summary.examples.into()),
        ("dropped", summary.dropped().into()),
        ("tokens", summary.tokens.into()),
        ("loss_tokens", summary.loss_tokens.into()),
        ("rows", summary.rows.into()),
    ];
    events.record(EventType::DataValidated, message, &fields)?;
    Ok(())
}

/// Fills the engine from the newest checkpoint, or else from where the run starts.
fn resume_or_load(
    prepared: &Prepared,
    folder: &RunFolder,
    engine: &mut Engine,
    observer: &Arc<dyn Observer>,
) -> Result<Option<Position>, TrainError> {
    let settings = &prepared.plan.settings;
    let identity = prepared.train.identity();
    let resumed = resuming::resume(&folder.checkpoints(), engine, settings, identity, observer.as_ref())?;
    if resumed.is_none() {
        first_weights::load(&prepared.plan.settings, &prepared.source, engine, observer.as_ref())?;
    }
    Ok(resumed)
}
