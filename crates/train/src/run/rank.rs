//! What every rank of a run does, from the weights to the last checkpoint, and the threads on which it does it.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, mpsc};
use std::thread::{self, ScopedJoinHandle};
use std::time::Duration;

use serde_json::{Map, Value};
use tessera_checkpoint::huggingface::ModelSource;
use tessera_dist::{Alarm, Deadline, DistError, Group, Mesh, Watchdog};
use tessera_files::{Digest, Sha256, sha256_hex};
use tessera_model::Model;
use tessera_ops::Queue;
use tessera_track::{EventLog, EventType, read_events, write_report};

use super::batches::{self, Parts};
use super::followers::Followers;
use super::logs::Told;
use super::{Outcome, Run, RunPaths};
use crate::engine::Engine;
use crate::error::TrainError;
use crate::launch::Ranks;
use crate::observe::{Observer, Silent, Update};
use crate::plan::Prepared;
use crate::state::{self, exchange};

/// What rank 0 writes to and whom it tells.
pub(super) struct Lead<'a> {
    pub events: &'a mut EventLog,
    pub followers: &'a mut Followers,
    pub observer: &'a Arc<dyn Observer>,
}

/// Runs this process's ranks, each on a thread where there are several, and returns how the first of them ended. They are
/// still to leave the others.
pub(super) fn run(
    run: &Run<'_>,
    ranks: &mut Ranks,
    prepared: &Prepared,
    folder: &RunPaths,
    mut lead: Option<Lead<'_>>,
) -> Result<Outcome, TrainError> {
    let groups = std::mem::take(&mut ranks.groups);
    let part = |world: &dyn Group, lead, queue| (world.rank(), Part { run, prepared, folder, lead, queue });
    let mut queues = ranks.queues()?.into_iter();
    let mut queue = || queues.next().unwrap_or_default();
    let results = match <[Box<dyn Group>; 1]>::try_from(groups) {
        Ok([world]) => vec![part(world.as_ref(), lead, queue()).1.run(world)],
        Err(groups) => thread::scope(|scope| {
            let started: Vec<_> = groups
                .into_iter()
                .map(|world| {
                    let (rank, part) = part(world.as_ref(), lead.take(), queue());
                    let thread = thread::Builder::new().name(format!("rank {rank}"));
                    (rank, thread.spawn_scoped(scope, move || part.run(world)))
                })
                .collect();
            started.into_iter().map(|(rank, thread)| joined(rank, thread)).collect()
        }),
    };
    if results.iter().any(Result::is_err)
        && let Some(watchdog) = &run.watchdog
    {
        // What each rank did last explains a failure between ranks; without it there is still the failure.
        let _ = watchdog.write_rings();
    }
    first_cause(results)
}

/// How a rank's thread ended, if it started.
fn joined(
    rank: usize,
    thread: io::Result<ScopedJoinHandle<'_, Result<Outcome, TrainError>>>,
) -> Result<Outcome, TrainError> {
    let thread = thread.map_err(|source| DistError::Thread { purpose: "a rank", source })?;
    thread.join().unwrap_or(Err(TrainError::Panicked { rank }))
}

/// How rank 0, or the lowest rank here, ended; the failure that the others only follow, where there is one.
fn first_cause(results: Vec<Result<Outcome, TrainError>>) -> Result<Outcome, TrainError> {
    let follows = |error: &TrainError| match error {
        TrainError::Engine(error) => error.is_between_ranks(),
        error => matches!(error, TrainError::Elsewhere { .. }),
    };
    let (mut first, mut consequence) = (None, None);
    for result in results {
        match result {
            Ok(outcome) => {
                first.get_or_insert(outcome);
            }
            Err(error) if follows(&error) => {
                consequence.get_or_insert(error);
            }
            Err(error) => return Err(error),
        }
    }
    match (consequence, first) {
        (None, Some(outcome)) => Ok(outcome),
        (Some(error), _) => Err(error),
        (None, None) => Err(TrainError::Panicked { rank: 0 }),
    }
}

/// Has the collectives of this process's ranks watched, where there are any to watch.
pub(super) fn watch(
    ranks: &Ranks,
    deadline: &Deadline,
    observer: &Arc<dyn Observer>,
    folder: &RunPaths,
) -> Result<Option<Watchdog>, TrainError> {
    let recorders: Vec<_> = ranks.groups.iter().filter_map(|group| group.recorder().cloned()).collect();
    if recorders.is_empty() {
        return Ok(None);
    }
    let (observer, path) = (observer.clone(), folder.path().to_owned());
    let leads = ranks.groups.iter().any(|group| group.rank() == 0);
    let stalled = move |alarm: &Alarm| {
        if leads {
            note_failure(path, alarm.to_string());
        }
        observer.observe(Update::Stalled(alarm));
    };
    let watchdog = Watchdog::start(&folder.flight(), deadline, stalled)?;
    recorders.into_iter().for_each(|recorder| watchdog.watch(recorder));
    Ok(Some(watchdog))
}

/// Writes down why the run ends, for those who look at its folder later. A disk may be what it ends for, so the end does not
/// wait for long.
fn note_failure(folder: PathBuf, message: String) {
    const PATIENCE: Duration = Duration::from_secs(5);
    let (written, done) = mpsc::channel();
    thread::spawn(move || {
        // Where nothing can be written there is still what the observer is told.
        let _ = EventLog::open(&folder).and_then(|mut events| events.record(EventType::Failed, message, &[]));
        let _ = write_report(&folder);
        let _ = written.send(());
    });
    let _ = done.recv_timeout(PATIENCE);
}

/// One rank's part.
struct Part<'a> {
    run: &'a Run<'a>,
    prepared: &'a Prepared,
    folder: &'a RunPaths,
    lead: Option<Lead<'a>>,
    /// Where the rank computes.
    queue: Queue,
}

impl Part<'_> {
    fn run(self, world: Box<dyn Group>) -> Result<Outcome, TrainError> {
        let Self { run, prepared, folder, lead, queue } = self;
        let plan = &prepared.plan;
        let degrees = plan.settings.degrees(world.world_size(), &prepared.config)?;
        let mesh = Mesh::new(world, degrees)?;
        agree(mesh.world(), prepared, folder)?;
        let (mut told, observer): (_, &dyn Observer) = match lead {
            Some(Lead { events, followers, observer }) => {
                (Some(Told { events, followers }), observer.as_ref())
            }
            None => (None, &Silent),
        };
        let model = Model::with_names(prepared.config.clone(), prepared.names);
        let model = model.computing(plan.settings.compute());
        let queue = queue.with_factors(plan.settings.factors());
        let mut engine = Engine::new(queue, model, mesh, plan.engine_settings())?;
        let identity = prepared.train.identity();
        let resumed = state::resume(&folder.checkpoints(), &mut engine, plan, identity, observer)?;
        if resumed.is_none() {
            state::load(&plan.settings, &prepared.source, &engine, observer)?;
            if told.is_some()
                && let Some(aside) = folder.set_exports_aside()?
            {
                let text = format!("models that an earlier run exported were moved to {}", aside.display());
                observer.observe(Update::Warning(&text));
            }
        }
        if let Some(told) = &mut told {
            let message = format!("{} parameters are in memory", plan.parameters);
            told.events.record(EventType::ModelInitialized, message, &[])?;
        }
        let (stop, deadline) = (run.stop, &run.deadline);
        batches::run(Parts { prepared, folder, told, observer, stop, deadline }, engine, resumed)
    }
}

/// Fails unless all ranks see the same run, model and data.
fn agree(world: &dyn Group, prepared: &Prepared, folder: &RunPaths) -> Result<(), TrainError> {
    let mut own = match prepared.plan.settings.to_json()? {
        Value::Object(settings) => settings,
        _ => Map::new(),
    };
    let eval = prepared.eval.as_ref().map(|(data, _)| data.identity());
    // Rank 0 has just written it: a folder that only looks alike has another.
    let newest_event = read_events(folder.path())?.last().map(|event| event.time.to_string());
    own.extend([
        ("tessera's version".to_owned(), env!("CARGO_PKG_VERSION").into()),
        ("model's files".to_owned(), model_identity(&prepared.source).into()),
        ("first weights".to_owned(), first_weights(world, prepared)?.into()),
        ("run folder".to_owned(), newest_event.into()),
        ("training data".to_owned(), prepared.train.identity().into()),
        ("evaluation data".to_owned(), eval.into()),
    ]);
    // Rank 0 has written it, to the folder that all must see.
    let sees = folder.settings().is_file();
    let all = exchange(world, "what all ranks must agree on", &(sees, own))?;
    if let Some(rank) = all.iter().position(|(sees, _)| !sees) {
        return Err(TrainError::NotShared { folder: folder.path().to_owned(), rank });
    }
    let leading = &all[0].1;
    for (rank, (_, other)) in all.iter().enumerate() {
        let differs = |(key, value): &(&String, &Value)| other.get(*key) != Some(*value);
        if let Some((key, expected)) = leading.iter().find(differs) {
            let found = other.get(key).map_or_else(|| "none".to_owned(), Value::to_string);
            return Err(TrainError::Disagreement {
                rank,
                key: key.clone(),
                found,
                expected: expected.to_string(),
            });
        }
    }
    Ok(())
}

/// What the weights to start from look like, where there is another rank to compare with.
fn first_weights(world: &dyn Group, prepared: &Prepared) -> Result<Option<String>, TrainError> {
    if world.world_size() == 1 || prepared.resumes {
        return Ok(None);
    }
    state::weights_identity(&prepared.plan.settings, &prepared.source)
}

/// What is read of a model besides its weights.
fn model_identity(source: &ModelSource) -> String {
    let mut hash = Sha256::new();
    hash.update(source.config.to_string());
    hash.update(&source.tokenizer_json);
    sha256_hex(hash)
}
