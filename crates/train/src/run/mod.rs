//! A run from its folder to its last checkpoint: starting or going on, the batches, what happens between them, the end.

mod batches;
mod between;
mod folder;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

use tessera_checkpoint::dcp::{point_latest, remove_leftovers};
use tessera_dist::Single;
use tessera_model::Model;
use tessera_track::{EventLog, EventType, read_events, write_report};

use crate::engine::Engine;
use crate::error::{Fault, TrainError};
use crate::observe::{EvaluationReport, Observer, Update};
use crate::plan::advice::advise;
use crate::plan::{Prepared, resolve};
use crate::spec::RunSpec;
use crate::state;

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
    let resolved = resolve(spec, observer)?;
    let folder = RunFolder::open(resolved.settings.run_folder())?;
    // Under the lock, and before anything is read: what a killed run left may bring a checkpoint back.
    remove_leftovers(&folder.checkpoints())?;
    remove_leftovers(&folder.exports())?;
    let mut events = EventLog::open(folder.path())?;
    let prepared = match resolved.prepare(observer) {
        Ok(prepared) => prepared,
        Err(error) => {
            if read_events(folder.path())?.is_empty() {
                events.record(EventType::CheckFailed, error.to_string(), &[])?;
            }
            return Err(error);
        }
    };
    observer.observe(Update::Planned(&prepared.plan));
    for advice in advise(&prepared).iter().filter(|advice| advice.touches_every_example()) {
        observer.observe(Update::Warning(&advice.to_string()));
    }
    if let Some(finished) = already_completed(&prepared, &folder, &mut events)? {
        return Ok(Outcome::AlreadyCompleted(finished));
    }
    begin(&mut events, &folder, &prepared)?;
    let result = train_in(&prepared, &folder, &mut events, observer, stop);
    // What went wrong must not be hidden by a disk that is too full to note it.
    if let Err(error) = &result {
        let kind = match error.fault() {
            Fault::Input => EventType::FailedException,
            Fault::Machine | Fault::Network => EventType::Failed,
        };
        let _ = events.record(kind, error.to_string(), &[]);
    }
    // A report of a failed run shows how far it came.
    if let Err(error) = write_report(folder.path()) {
        observer.observe(Update::Warning(&format!("report.html could not be written: {error}")));
    }
    result
}

/// Fails if the folder's checkpoints are not this run's to go on from; tells if nothing is left to do.
/// Makes up for what a kill after the last rename left undone.
fn already_completed(
    prepared: &Prepared,
    folder: &RunFolder,
    events: &mut EventLog,
) -> Result<Option<Finished>, TrainError> {
    let settings = &prepared.plan.settings;
    let Some(saved) = state::newest(&folder.checkpoints())? else { return Ok(None) };
    if !settings.autoresume {
        return Err(TrainError::AlreadyStarted { folder: folder.checkpoints() });
    }
    saved.check(settings, prepared.train.identity())?;
    let total = prepared.plan.length.total_batches;
    if saved.position.batch < total || !folder.export(total).is_dir() {
        return Ok(None);
    }
    point_latest(&folder.checkpoints(), saved.position.checkpoint_name())?;
    let completed =
        read_events(folder.path())?.last().is_some_and(|event| event.kind == EventType::Completed);
    if !completed {
        events.record(EventType::Completed, "everything is saved", &[("batch", total.into())])?;
        write_report(folder.path())?;
    }
    folder.finished(total, saved.folder).map(Some)
}

fn train_in(
    prepared: &Prepared,
    folder: &RunFolder,
    events: &mut EventLog,
    observer: &Arc<dyn Observer>,
    stop: &StopSignal,
) -> Result<Outcome, TrainError> {
    let plan = &prepared.plan;
    let observer = observer.as_ref();
    let model = Model::new(prepared.config.clone());
    let mut engine = Engine::new(model, Box::new(Single), plan.engine_settings())?;
    let identity = prepared.train.identity();
    let resumed = state::resume(&folder.checkpoints(), &mut engine, plan, identity, observer)?;
    if resumed.is_none() {
        state::load(&plan.settings, &prepared.source, &engine, observer)?;
        if let Some(aside) = folder.set_exports_aside()? {
            let text = format!("models that an earlier run exported were moved to {}", aside.display());
            observer.observe(Update::Warning(&text));
        }
    }
    let message = format!("{} parameters are in memory", plan.parameters);
    events.record(EventType::ModelInitialized, message, &[])?;
    batches::run(batches::Parts { prepared, folder, events, observer, stop }, engine, resumed)
}

/// Writes `run.yaml` and the events up to the validated data.
fn begin(events: &mut EventLog, folder: &RunFolder, prepared: &Prepared) -> Result<(), TrainError> {
    folder.write_settings(&prepared.plan.settings)?;
    if prepared.resumes {
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
