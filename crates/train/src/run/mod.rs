//! A run from its folder to its last checkpoint: starting or going on, the batches, what happens between them, the end.
//!
//! One process leads: it has rank 0, opens the run's folder, prepares the data, and writes what there is to write. The others
//! wait for its word, then find everything prepared. From there on all ranks do the same.

mod batches;
mod between;
mod cancel;
mod completion;
mod contact;
mod folder;
mod followers;
mod logs;
mod progress;
mod rank;
mod registration;
mod steps;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::time::Instant;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tessera_checkpoint::dcp::{point_latest, remove_leftovers};
use tessera_dist::{Deadline, Watchdog};
use tessera_track::{EventLog, EventType, clear_cancel, read_events, write_report};

use crate::elsewhere::{Mirror, Mirroring};
use crate::error::{Fault, TrainError};
use crate::launch::{CheckIn, Launch, Ranks};
use crate::observe::{EvaluationReport, Observer, Silent, Update};
use crate::plan::advice::advise;
use crate::plan::{Findings, Pins, Prepared, Resolved, resolve};
use crate::spec::RunSpec;
use crate::state;

use cancel::CancelWatch;
use contact::contact;
pub use contact::{Contact, look};
pub use folder::{FLIGHT, RunFolder, RunPaths};
use followers::Followers;
pub use registration::Registered;

/// The signal that a rank is taken to have been asked to stop by, where it was not asked itself.
const SIGTERM: i32 = 15;

/// Set from a signal handler: which signal asked the run to stop.
#[derive(Debug, Clone, Default)]
pub struct StopSignal(Arc<StopState>);

#[derive(Debug, Default)]
struct StopState {
    /// 0 while none has.
    signal: AtomicI32,
    heard: AtomicBool,
    trained: AtomicBool,
    canceled: AtomicBool,
}

impl StopSignal {
    /// Asks the run to stop after the batch under way.
    pub fn request(&self, signal: i32) {
        self.0.signal.store(signal, Ordering::Relaxed);
    }

    /// Asks the same in the name of the run's user, who gave a command: such a run is canceled, not stopped.
    pub fn cancel(&self) {
        self.0.canceled.store(true, Ordering::Relaxed);
        self.request(SIGTERM);
    }

    /// Whether a command asked.
    pub fn is_canceled(&self) -> bool {
        self.0.canceled.load(Ordering::Relaxed)
    }

    /// The signal that asked, if one did.
    pub fn requested(&self) -> Option<i32> {
        match self.0.signal.load(Ordering::Relaxed) {
            0 => None,
            signal => Some(signal),
        }
    }

    /// Whether the run will do as it is asked: it is at its batches. Before, there is nothing to save, and after them all is saved.
    pub fn is_heard(&self) -> bool {
        self.0.heard.load(Ordering::Relaxed) && !self.has_trained()
    }

    /// Whether all batches are done and saved. What is left, to register a model and to upload, waits for others, and whoever asks
    /// the run to stop need not wait for that: the process may end, and the same command does the rest.
    pub fn has_trained(&self) -> bool {
        self.0.trained.load(Ordering::Relaxed)
    }

    fn listen(&self) {
        self.0.heard.store(true, Ordering::Relaxed);
    }

    fn listen_no_more(&self) {
        self.0.trained.store(true, Ordering::Relaxed);
    }
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// All batches are done.
    Completed(Finished),
    /// All batches had been done before.
    AlreadyCompleted(Finished),
    /// A signal or its user stopped it; the same command goes on from the checkpoint.
    Stopped {
        /// The signal.
        signal: i32,
        /// Whether it was its user, by a command.
        canceled: bool,
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
    /// What the model was registered as, if that was asked for.
    pub registered: Option<Registered>,
    /// The first evaluation of this run's beginning, if it was evaluated then.
    pub first_evaluation: Option<EvaluationReport>,
    /// The last evaluation.
    pub last_evaluation: Option<EvaluationReport>,
}

/// Runs what `spec` describes, or goes on with it where its folder holds a checkpoint, as the process that `launch` says.
/// An observer of a process that does not lead is told of failures only.
///
/// # Errors
/// For everything that can be wrong with the run file, the model, the data, the machine or the other ranks.
pub fn train(
    spec: RunSpec,
    launch: &Launch,
    observer: &Arc<dyn Observer>,
    stop: &StopSignal,
) -> Result<Outcome, TrainError> {
    let silent: Arc<dyn Observer> = Arc::new(Silent);
    let mut resolved =
        resolve(spec, if launch.leads() { observer } else { &silent })?.over(launch.processes)?;
    let settings = &resolved.settings;
    let deadline = Deadline::new(settings.startup_timeout());
    let folder = RunPaths::new(settings.run_folder());
    let came = Instant::now();
    let ranks = match settings.on_gpus() {
        true => launch.join_gpus(&settings.gpus, &deadline)?,
        false => launch.join(settings.local_ranks(), &deadline, folder.path())?,
    };
    // From the first wait for one another on.
    let watchdog = rank::watch(&ranks, &deadline, observer, &folder)?;
    let CheckIn { processes_here, late } = ranks.check_in(launch.processes, came)?;
    resolved.processes_here = processes_here;
    if launch.leads() {
        late.iter().for_each(|line| observer.observe(Update::Warning(line)));
    }
    let run = Run { deadline, observer, stop, watchdog };
    if launch.leads() { run.lead(resolved, ranks) } else { run.follow(resolved, ranks) }
}

/// What the leading process tells the others: how far it has come, or why it cannot go on and who can put that right.
type Word<T> = Result<T, (String, Fault)>;

/// What all are to do when the leading process has prepared the run.
#[derive(Serialize, Deserialize)]
enum Go {
    /// Train, with these settings: what was `auto`, and the day, are the same for all. What was found where others may have been found
    /// since is the same for all, too.
    Train(serde_json::Value, Findings),
    /// Nothing is left to do: batches done, and the last checkpoint.
    Finished(u64, PathBuf),
}

/// What is told when the run's folder is this attempt's, and when the run is prepared.
const FOLDER: &str = "the run's folder";
const START: &str = "start of the run";

fn tell<T: Serialize>(
    ranks: &Ranks,
    label: &'static str,
    word: Result<T, &TrainError>,
) -> Result<(), TrainError> {
    let word: Word<T> = word.map_err(|error| (error.to_string(), error.fault()));
    ranks.broadcast(label, serde_json::to_vec(&word)?).map(drop)
}

fn hear<T: DeserializeOwned>(ranks: &Ranks, label: &'static str) -> Result<T, TrainError> {
    let word: Word<T> = serde_json::from_slice(&ranks.broadcast(label, Vec::new())?)?;
    word.map_err(|(message, fault)| TrainError::NotStarted { message, fault })
}

/// What the leading process has when a run can start.
enum Start {
    Ready(Box<(Prepared, Followers)>, RunFolder, EventLog, Option<Mirroring>),
    Finished(Box<Over>, RunFolder, EventLog),
}

/// A run that an earlier process has trained.
struct Over {
    finished: Finished,
    prepared: Prepared,
    mirror: Option<Mirror>,
}

/// A process's part in a run.
struct Run<'a> {
    deadline: Deadline,
    observer: &'a Arc<dyn Observer>,
    stop: &'a StopSignal,
    /// `None`: there is one rank, which waits for nobody.
    watchdog: Option<Watchdog>,
}

impl Run<'_> {
    /// Prepares the run, tells the others, and has rank 0 among its ranks.
    fn lead(self, resolved: Resolved, mut ranks: Ranks) -> Result<Outcome, TrainError> {
        let folder = self.open(&resolved);
        let told = tell(&ranks, FOLDER, folder.as_ref().map(|_| ()));
        let folder = folder?;
        told?;
        let start = self.start(resolved, folder);
        let go = match &start {
            Ok(Start::Ready(ready, ..)) => {
                let prepared = &ready.0;
                Ok(Go::Train(prepared.plan.settings.to_json()?, prepared.findings.clone()))
            }
            Ok(Start::Finished(over, ..)) => {
                Ok(Go::Finished(over.finished.batch, over.finished.checkpoint.clone()))
            }
            Err(error) => Err(error),
        };
        let told = tell(&ranks, START, go);
        let ((prepared, mut followers), folder, mut events, mirror) = match start? {
            Start::Ready(ready, folder, events, mirror) => (*ready, folder, events, mirror),
            Start::Finished(over, folder, events) => {
                told?;
                // Before anything that may take longer than others wait.
                ranks.leave()?;
                return self.finish_again(*over, &folder, events);
            }
        };
        let mut watch = None;
        let result = told.and_then(|()| {
            watch = Some(CancelWatch::start(folder.path(), self.stop)?);
            let lead = rank::Lead { events: &mut events, followers: &mut followers, observer: self.observer };
            rank::run(&self, &mut ranks, &prepared, folder.paths(), Some(lead))
        });
        // The others have nothing more to do, and what follows may take longer than they would wait for it.
        let result = result.and_then(|outcome| {
            // A launcher may end this process as soon as the others have left.
            self.report(&folder);
            if matches!(outcome, Outcome::Completed(_)) && self.stop.requested().is_none() {
                self.stop.listen_no_more();
            }
            ranks.leave().map(|()| outcome)
        });
        let registers = prepared.plan.settings.register_to.is_some();
        let result = result.and_then(|outcome| match (outcome, self.stop.requested()) {
            (Outcome::Completed(finished), Some(signal)) if registers => {
                Ok(self.stop_unregistered(finished, signal, &mut events))
            }
            (Outcome::Completed(finished), _) => {
                self.complete(finished, &prepared, &folder, &mut events, &followers).map(Outcome::Completed)
            }
            (outcome, _) => Ok(outcome),
        });
        self.note(&mut events, &folder, result.as_ref().err());
        followers.finish(result.as_ref());
        let result = self.end_copy(mirror, result);
        drop(watch);
        result
    }

    /// The end of a run that was asked to stop while it saved the last of it: the same command registers its model.
    fn stop_unregistered(&self, finished: Finished, signal: i32, events: &mut EventLog) -> Outcome {
        let Finished { batch, checkpoint, .. } = finished;
        let canceled = self.stop.is_canceled();
        let (kind, by) = match canceled {
            true => (EventType::Canceled, "canceled by its user".to_owned()),
            false => (EventType::Stopped, format!("stopped by signal {signal}")),
        };
        let message = format!("{by} after the last batch, before the model was registered");
        // The exit code says the same, even where there is no room to tell of it.
        if let Err(error) = events.record(kind, message, &[("batch", batch.into())]) {
            self.observer.observe(Update::Warning(&format!("{kind} could not be recorded: {error}")));
        }
        Outcome::Stopped { signal, canceled, batch, checkpoint }
    }

    /// The end of a run that an earlier process has trained, which the others have left.
    fn finish_again(
        &self,
        over: Over,
        folder: &RunPaths,
        mut events: EventLog,
    ) -> Result<Outcome, TrainError> {
        let Over { finished, prepared, mirror } = over;
        self.stop.listen_no_more();
        let _watch = CancelWatch::start(folder.path(), self.stop)?;
        let finished = self.complete_again(finished, &prepared, folder, &mut events);
        let mirror = mirror.map(|mirror| mirror.start(true)).transpose();
        match finished {
            Ok(finished) => {
                mirror?.map_or(Ok(()), Mirroring::finish)?;
                Ok(Outcome::AlreadyCompleted(finished))
            }
            Err(error) => {
                // The failure is noted in the folder.
                if let Ok(Some(mirror)) = mirror {
                    mirror.finish_soon();
                }
                Err(error)
            }
        }
    }

    /// Has what is left of the run uploaded. The others have left, or wait in vain for a process that failed.
    fn end_copy(
        &self,
        mirror: Option<Mirroring>,
        result: Result<Outcome, TrainError>,
    ) -> Result<Outcome, TrainError> {
        let Some(mirror) = mirror else { return result };
        match result {
            Ok(outcome @ Outcome::Stopped { .. }) => {
                // Whoever asked the run to stop is told of that first.
                if let Err(error) = mirror.finish() {
                    self.observer.observe(Update::Warning(&error.to_string()));
                }
                Ok(outcome)
            }
            Ok(outcome) => mirror.finish().map(|()| outcome),
            Err(error) => {
                mirror.finish_soon();
                Err(error)
            }
        }
    }

    /// Notes what the run ended for, if it failed, and writes the report.
    fn note(&self, events: &mut EventLog, folder: &RunPaths, failure: Option<&TrainError>) {
        // What went wrong must not be hidden by a disk that is too full to note it.
        if let Some(error) = failure {
            let kind = match error.fault() {
                Fault::Input => EventType::FailedException,
                Fault::Machine | Fault::Network => EventType::Failed,
            };
            let _ = events.record(kind, error.to_string(), &[]);
        }
        // That of a failed run shows how far it came.
        self.report(folder);
    }

    fn report(&self, folder: &RunPaths) {
        if let Err(error) = write_report(folder.path()) {
            self.observer.observe(Update::Warning(&format!("report.html could not be written: {error}")));
        }
    }

    /// Takes the run's folder; from then on ranks can be seen there.
    fn open(&self, resolved: &Resolved) -> Result<RunFolder, TrainError> {
        let folder = RunFolder::open(resolved.settings.run_folder())?;
        clear_cancel(folder.path())?;
        if let Some(watchdog) = &self.watchdog {
            watchdog.set_aside()?;
            watchdog.begin()?;
        }
        Ok(folder)
    }

    /// Prepares the run.
    fn start(&self, resolved: Resolved, folder: RunFolder) -> Result<Start, TrainError> {
        let observer = self.observer;
        // Under the lock, and before anything is read: what a killed run left may bring a checkpoint back.
        remove_leftovers(&folder.checkpoints())?;
        remove_leftovers(&folder.exports())?;
        let mirror = Mirror::open(&resolved.settings, observer)?;
        let mut events = EventLog::open(folder.path())?;
        let checked = contact(&resolved.settings).map(|contacts| {
            for contact in contacts {
                if let Contact::Away(text) = contact {
                    observer.observe(Update::Warning(&text));
                }
            }
        });
        let prepared = match checked.and_then(|()| resolved.prepare(observer)) {
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
        if let Some(finished) = already_completed(&prepared, &folder)? {
            let over = Over { finished, prepared, mirror };
            return Ok(Start::Finished(Box::new(over), folder, events));
        }
        let followers = Followers::start(&prepared, folder.path(), observer)?;
        begin(&mut events, &folder, &prepared)?;
        // Not before: until here it may turn out that the url has another run.
        let mirror = mirror.map(|mirror| mirror.start(prepared.resumes)).transpose()?;
        Ok(Start::Ready(Box::new((prepared, followers)), folder, events, mirror))
    }

    /// Waits for the leading process's word, and does its part.
    fn follow(self, mut resolved: Resolved, mut ranks: Ranks) -> Result<Outcome, TrainError> {
        let folder = RunPaths::new(resolved.settings.run_folder());
        hear::<()>(&ranks, FOLDER)?;
        if let Some(watchdog) = &self.watchdog {
            watchdog.begin()?;
        }
        match hear(&ranks, START)? {
            Go::Finished(batch, checkpoint) => {
                ranks.leave()?;
                Ok(Outcome::AlreadyCompleted(folder.finished(batch, checkpoint)?))
            }
            Go::Train(settings, findings) => {
                resolved.settings.keep_resolved(&settings);
                let silent: Arc<dyn Observer> = Arc::new(Silent);
                let prepared = resolved.of_findings(findings)?.prepare(&silent)?;
                let outcome = rank::run(&self, &mut ranks, &prepared, &folder, None)?;
                ranks.leave()?;
                Ok(outcome)
            }
        }
    }
}

/// Fails if the folder's checkpoints are not this run's to go on from; tells if nothing is left to do.
/// Makes up for what a kill after the last rename left undone.
fn already_completed(prepared: &Prepared, folder: &RunFolder) -> Result<Option<Finished>, TrainError> {
    let settings = &prepared.plan.settings;
    let Some(saved) = state::newest(&folder.checkpoints())? else { return Ok(None) };
    if !settings.autoresume {
        return Err(TrainError::AlreadyStarted { folder: folder.checkpoints() });
    }
    saved.check(settings, prepared.train.identity()).map_err(|error| match &error {
        TrainError::OtherData { checkpoint, .. } => {
            Pins::of(prepared).change(&folder.data(), checkpoint.clone()).unwrap_or(error)
        }
        _ => error,
    })?;
    let total = prepared.plan.length.total_batches;
    if saved.position.batch < total || !folder.export(total).is_dir() {
        return Ok(None);
    }
    point_latest(&folder.checkpoints(), saved.position.checkpoint_name())?;
    folder.finished(total, saved.folder).map(Some)
}

/// Writes `run.yaml`, `data.json` and the events up to the validated data.
fn begin(events: &mut EventLog, folder: &RunFolder, prepared: &Prepared) -> Result<(), TrainError> {
    folder.write_settings(&prepared.plan.settings)?;
    Pins::of(prepared).write(&folder.data())?;
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
