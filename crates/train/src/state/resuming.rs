//! Going on from a checkpoint of the same run.
//!
//! The newest whole checkpoint is taken; if it turns out to be damaged the next older one is, and the user is told. A
//! checkpoint of other settings or other data is not a damaged one: the run stops and says what differs.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tessera_checkpoint::dcp::pickle::Value;
use tessera_checkpoint::dcp::{
    CheckpointName, DcpReader, StatePath, list_checkpoints, point_latest, set_aside,
};
use tessera_dist::DistError;
use tessera_model::config::ModelConfig;
use tessera_model::{Names, Naming};
use tessera_ops::{DType, transfer};

use crate::engine::{Engine, OptimizerCounts};
use crate::error::TrainError;
use crate::observe::{Observer, Update};
use crate::plan::{RunPlan, Settings};
use crate::state::shards::{exchange, same_state};
use crate::state::{ANSWERS_OWED, EVALUATION_OWED, EXPORT_OWED, Owed, Position, RANKS, object, own};

/// A checkpoint's description of its run.
pub struct Resumable {
    /// Its folder.
    pub folder: PathBuf,
    /// How far the run had come.
    pub position: Position,
    /// `None`: the optimizer's state was left out.
    counts: Option<OptimizerCounts>,
    /// The settings it was trained with.
    pub settings: serde_json::Value,
    data_identity: String,
    owed: Owed,
    /// The number of ranks that wrote it, where it says so.
    ranks: Option<u64>,
    reader: DcpReader,
}

impl Resumable {
    /// Reads what a checkpoint says about its run; weights and moments are read later.
    fn open(folder: &Path) -> Result<Self, TrainError> {
        let reader = DcpReader::open(folder)?;
        let timestamp = StatePath::keys(&["state", "timestamp", "Timestamp"]);
        let not_resumable = |missing: &StatePath| TrainError::NotResumable {
            checkpoint: folder.to_owned(),
            missing: missing.to_string(),
        };
        let required = |path: StatePath| -> Result<(StatePath, Value), TrainError> {
            let value = object(&reader, &path)?.ok_or_else(|| not_resumable(&path))?;
            Ok((path, value))
        };
        let text = |path: StatePath| -> Result<String, TrainError> {
            let (path, value) = required(path)?;
            value.as_str().map(str::to_owned).ok_or_else(|| not_resumable(&path))
        };
        let count = |path: StatePath| -> Result<u64, TrainError> {
            let (path, value) = required(path)?;
            value.as_int().and_then(|value| u64::try_from(value).ok()).ok_or_else(|| not_resumable(&path))
        };
        let owed = |key: &str| -> Result<bool, TrainError> {
            Ok(object(&reader, &own(key))? == Some(Value::Bool(true)))
        };
        let position = Position::from_timestamp(|name| object(&reader, &timestamp.clone().key(name)))?;
        let updates = object(&reader, &own("updates"))?.and_then(|value| value.as_usize());
        Ok(Self {
            position: position.ok_or_else(|| not_resumable(&timestamp))?,
            counts: match updates {
                Some(updates) => Some(OptimizerCounts {
                    updates: updates as u64,
                    skipped: count(own("skipped"))?,
                    skipped_in_a_row: count(own("skipped_in_a_row"))?,
                }),
                None => None,
            },
            settings: serde_json::from_str(&text(own("settings"))?)
                .map_err(|_| not_resumable(&own("settings")))?,
            data_identity: text(own("data"))?,
            owed: Owed {
                evaluation: owed(EVALUATION_OWED)?,
                answers: owed(ANSWERS_OWED)?,
                export: owed(EXPORT_OWED)?,
            },
            ranks: count(own(RANKS)).ok(),
            folder: folder.to_owned(),
            reader,
        })
    }

    /// What it calls its tensors.
    pub fn names(&self, config: &ModelConfig) -> Names {
        let names = self.reader.tensors().keys().map(String::as_str);
        Names::new(config.family, Naming::of(config.family, names))
    }

    /// Fails if training on with `settings` and this data would not be the same run.
    pub fn check(&self, settings: &Settings, data_identity: &str) -> Result<(), TrainError> {
        if let Some(difference) = settings.difference(&self.settings)? {
            return Err(TrainError::Changed { checkpoint: self.folder.clone(), difference });
        }
        if self.data_identity != data_identity {
            let path = settings.train_data_path.to_string();
            return Err(TrainError::OtherData { checkpoint: self.folder.clone(), path });
        }
        Ok(())
    }

    /// Puts weights, moments and counts into the engine. A run that is `done` needs its weights only.
    fn restore(&self, engine: &mut Engine, done: bool) -> Result<(), TrainError> {
        let counts = match self.counts {
            Some(counts) => counts,
            None if done => OptimizerCounts::default(),
            None => {
                return Err(TrainError::NotResumable {
                    checkpoint: self.folder.clone(),
                    missing: "the optimizer's state (save_weights_only left it out)".into(),
                });
            }
        };
        let optimizer = engine.settings().optimizer;
        let moments = if self.counts.is_some() { optimizer.moments() } else { &[] };
        engine.units().forget_weights()?;
        for (index, unit) in engine.units().iter().enumerate() {
            let mut state = unit.state().write().map_err(|_| DistError::Abandoned { unit: index })?;
            for piece in engine.model().units()[index].pieces(engine.slice(index)) {
                let name = &piece.parameter.name;
                let moments = moments
                    .iter()
                    .map(|moment| StatePath::optimizer_state(optimizer.class_name(), name, moment));
                let paths = std::iter::once(StatePath::weight(name)).chain(moments);
                let state = &mut *state;
                let buffers = std::iter::once(&mut state.master).chain(&mut state.moments);
                for (path, buffer) in paths.zip(buffers) {
                    let room = buffer.view_mut(DType::F32).range(piece.place.start, piece.place.len())?;
                    transfer::on_host::<f32, _>(engine.queue(), room, |out| {
                        self.reader.read_elements(&path.to_string(), piece.first, out)
                    })??;
                }
            }
        }
        Ok(engine.set_optimizer_counts(counts)?)
    }
}

/// The newest checkpoint in `checkpoints` whose description can be read.
///
/// # Errors
/// When the folder cannot be read. Damaged checkpoints are no errors here.
pub fn newest(checkpoints: &Path) -> Result<Option<Resumable>, TrainError> {
    for name in list_checkpoints(checkpoints)? {
        match Resumable::open(&checkpoints.join(name.to_string())) {
            Ok(found) => return Ok(Some(found)),
            Err(error) if passes_over(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

/// Where training goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resumed {
    /// How far the run had come.
    pub position: Position,
    /// What it still owes.
    pub owed: Owed,
}

/// Restores the newest checkpoint that is whole, and points the latest at it. Damaged ones are then moved aside and the user is
/// told; if none is whole they stay where they are. All ranks call it, and restore the same one: a checkpoint serves if
/// every rank can read its slices. `None`: there is none.
///
/// # Errors
/// When a checkpoint is of other settings or data, or none of those that are there can be used.
pub fn resume(
    checkpoints: &Path,
    engine: &mut Engine,
    plan: &RunPlan,
    data_identity: &str,
    observer: &dyn Observer,
) -> Result<Option<Resumed>, TrainError> {
    let leads = engine.units().mesh().world().rank() == 0;
    let (mut newest_failure, mut damaged) = (None, Vec::new());
    for name in listed_by_rank_0(checkpoints, engine)? {
        let folder = checkpoints.join(name.to_string());
        let attempt = Resumable::open(&folder).and_then(|found| {
            found.check(&plan.settings, data_identity)?;
            found.restore(engine, found.position.batch >= plan.length.total_batches)?;
            let here = engine.units().mesh().world().world_size() as u64;
            if let Some(ranks) = found.ranks.filter(|&ranks| ranks != here) {
                observer.observe(Update::Warning(&format!(
                    "{name} was written by a run of {ranks} ranks, this one has {here}: sums are taken in another order, so the \
                     last bits of the numbers may differ from those of an undisturbed run"
                )));
            }
            Ok(Resumed { position: found.position, owed: found.owed })
        });
        match together(engine, attempt)? {
            Ok(resumed) => {
                same_state(engine, &resumed.position, "after reading a checkpoint", true)?;
                if leads {
                    damaged.into_iter().try_for_each(|name| set_aside(checkpoints, name).map(drop))?;
                    point_latest(checkpoints, name)?;
                }
                observer.observe(Update::Resumed { checkpoint: &folder, batch: resumed.position.batch });
                return Ok(Some(resumed));
            }
            Err(error) if passes_over(&error) => {
                observer.observe(Update::Warning(&format!("checkpoint {name} is passed over: {error}")));
                if is_damage(&error) {
                    damaged.push(name);
                }
                newest_failure.get_or_insert(error);
            }
            Err(error) => return Err(error),
        }
    }
    match newest_failure {
        None => Ok(None),
        Some(newest) => {
            Err(TrainError::NoReadableCheckpoint { folder: checkpoints.to_owned(), newest: Box::new(newest) })
        }
    }
}

/// The checkpoints as rank 0 sees them, which may change while others look.
fn listed_by_rank_0(checkpoints: &Path, engine: &Engine) -> Result<Vec<CheckpointName>, TrainError> {
    let world = engine.units().mesh().world();
    let listed = if world.rank() == 0 { list_checkpoints(checkpoints)? } else { Vec::new() };
    let names: Vec<String> = listed.iter().map(ToString::to_string).collect();
    let names = world.broadcast("names of checkpoints", 0, serde_json::to_vec(&names)?)?.wait()?;
    let names: Vec<String> = serde_json::from_slice(&names)?;
    Ok(names.iter().filter_map(|name| name.parse().ok()).collect())
}

/// How an attempt went on a rank, the worst last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Attempt {
    /// The rank has its slices.
    Restored,
    /// Something is missing that an older checkpoint may have.
    PassedOver,
    /// The checkpoint is damaged; an older one may serve.
    Damaged,
    /// No checkpoint can serve.
    Failed,
}

impl Attempt {
    fn of(result: &Result<Resumed, TrainError>) -> Self {
        match result {
            Ok(_) => Self::Restored,
            Err(error) if is_damage(error) => Self::Damaged,
            Err(error) if passes_over(error) => Self::PassedOver,
            Err(_) => Self::Failed,
        }
    }
}

/// What an attempt came to on all ranks: the worst that came to any of them, so that all go on alike.
fn together(
    engine: &Engine,
    attempt: Result<Resumed, TrainError>,
) -> Result<Result<Resumed, TrainError>, TrainError> {
    let own = Attempt::of(&attempt);
    let message = attempt.as_ref().err().map(ToString::to_string).unwrap_or_default();
    let attempts = exchange(engine.units().mesh().world(), "a checkpoint's reading", &(own, message))?;
    let worst = attempts.iter().map(|(attempt, _)| *attempt).max().unwrap_or(own);
    if own == worst {
        return Ok(attempt);
    }
    let elsewhere = attempts.into_iter().enumerate().find(|(_, (attempt, _))| *attempt == worst);
    let (rank, (attempt, message)) = elsewhere.unwrap_or((0, (own, String::new())));
    Ok(Err(TrainError::Elsewhere { rank, message, attempt }))
}

/// Whether a checkpoint itself is at fault.
fn is_damage(error: &TrainError) -> bool {
    match error {
        TrainError::Checkpoint(error) => error.is_damage(),
        TrainError::Elsewhere { attempt, .. } => *attempt == Attempt::Damaged,
        _ => false,
    }
}

/// Whether an older checkpoint may serve instead.
fn passes_over(error: &TrainError) -> bool {
    match error {
        TrainError::NotResumable { .. } => true,
        TrainError::Elsewhere { attempt, .. } => *attempt < Attempt::Failed,
        error => is_damage(error),
    }
}
