//! Going on from a checkpoint of the same run.
//!
//! The newest whole checkpoint is taken; if it turns out to be damaged the next older one is, and the user is told. A
//! checkpoint of other settings or other data is not a damaged one: the run stops and says what differs.

use std::path::{Path, PathBuf};

use tessera_checkpoint::dcp::{DcpError, DcpReader, StatePath, list_checkpoints};
use tessera_dist::DistError;
use tessera_ops::DType;

use crate::engine::{Engine, OptimizerCounts};
use crate::error::TrainError;
use crate::observe::{Observer, Silent, Update};
use crate::position::Position;
use crate::saving::own;
use crate::settings::Settings;

/// A checkpoint that can be gone on from.
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
        let text = |path: StatePath| -> Result<String, TrainError> {
            let value = object(&reader, &path)?.ok_or_else(|| not_resumable(&path))?;
            value.as_str().map(str::to_owned).ok_or_else(|| not_resumable(&path))
        };
        let count = |path: StatePath| -> Result<u64, TrainError> {
            let value = object(&reader, &path)?.ok_or_else(|| not_resumable(&path))?;
            value.as_int().and_then(|value| u64::try_from(value).ok()).ok_or_else(|| not_resumable(&path))
        };
        let field = |name: &str| object(&reader, &timestamp.clone().key(name)).ok().flatten();
        Ok(Self {
            position: Position::from_timestamp(field).ok_or_else(|| not_resumable(&timestamp))?,
            counts: match count(own("updates")) {
                Ok(updates) => Some(OptimizerCounts {
                    updates,
                    skipped: count(own("skipped"))?,
                    skipped_in_a_row: count(own("skipped_in_a_row"))?,
                }),
                Err(TrainError::NotResumable { .. }) => None,
                Err(error) => return Err(error),
            },
            settings: serde_json::from_str(&text(own("settings"))?)?,
            data_identity: text(own("data"))?,
            folder: folder.to_owned(),
            reader,
        })
    }

    /// Fails if training on with `settings` and this data would not be the same run.
    pub fn check(&self, settings: &Settings, data_identity: &str) -> Result<(), TrainError> {
        if let Some(difference) = settings.difference(&self.settings)? {
            return Err(TrainError::Changed { checkpoint: self.folder.clone(), difference });
        }
        if self.data_identity != data_identity {
            let path = settings.train_data_path.clone();
            return Err(TrainError::OtherData { checkpoint: self.folder.clone(), path });
        }
        Ok(())
    }

    /// Puts weights, moments and counts into the engine.
    fn restore(&self, engine: &mut Engine) -> Result<(), TrainError> {
        let optimizer = engine.settings().optimizer;
        let counts = self.counts.ok_or_else(|| TrainError::NotResumable {
            checkpoint: self.folder.clone(),
            missing: "the optimizer's state (save_weights_only left it out)".into(),
        })?;
        for (index, unit) in engine.units().iter().enumerate() {
            let mut state = unit.state().write().map_err(|_| DistError::Abandoned { unit: index })?;
            for piece in engine.model().units()[index].pieces(engine.slice(index)) {
                let name = &piece.parameter.name;
                let paths = std::iter::once(StatePath::weight(name)).chain(
                    optimizer
                        .moments()
                        .iter()
                        .map(|moment| StatePath::optimizer_state(optimizer.class_name(), name, moment)),
                );
                let state = &mut *state;
                let buffers = std::iter::once(&mut state.master).chain(&mut state.moments);
                for (path, buffer) in paths.zip(buffers) {
                    let mut view = buffer.view_mut(DType::F32);
                    let out = &mut view.as_slice_mut::<f32>()?[piece.place.clone()];
                    self.reader.read_elements(&path.to_string(), piece.first, out)?;
                }
            }
        }
        engine.units().weights_changed()?;
        Ok(engine.set_optimizer_counts(counts)?)
    }
}

fn object(
    reader: &DcpReader,
    path: &StatePath,
) -> Result<Option<tessera_checkpoint::dcp::pickle::Value>, DcpError> {
    let name = path.to_string();
    if reader.objects().any(|known| known == name) { reader.object(&name).map(Some) } else { Ok(None) }
}

/// The newest checkpoint in `checkpoints` whose description can be read.
pub fn newest(checkpoints: &Path) -> Result<Option<Resumable>, TrainError> {
    first_whole(checkpoints, &Silent, Resumable::open)
}

/// Restores the newest checkpoint that is whole, and says where training goes on. `None`: there is none.
pub fn resume(
    checkpoints: &Path,
    engine: &mut Engine,
    settings: &Settings,
    data_identity: &str,
    observer: &dyn Observer,
) -> Result<Option<Position>, TrainError> {
    let found = first_whole(checkpoints, observer, |folder| {
        let found = Resumable::open(folder)?;
        found.check(settings, data_identity)?;
        found.restore(engine)?;
        Ok(found)
    })?;
    let Some(Resumable { folder, position, .. }) = found else { return Ok(None) };
    observer.observe(Update::Resumed { checkpoint: &folder, batch: position.batch });
    Ok(Some(position))
}

/// What `attempt` makes of the newest checkpoint that it does not find damaged.
fn first_whole<T>(
    checkpoints: &Path,
    observer: &dyn Observer,
    mut attempt: impl FnMut(&Path) -> Result<T, TrainError>,
) -> Result<Option<T>, TrainError> {
    let mut newest_failure = None;
    for name in list_checkpoints(checkpoints)? {
        match attempt(&checkpoints.join(name.to_string())) {
            Ok(made) => return Ok(Some(made)),
            Err(TrainError::Checkpoint(error)) => {
                let warning = format!("checkpoint {name} is damaged and is passed over: {error}");
                observer.observe(Update::Warning(&warning));
                newest_failure.get_or_insert(error);
            }
            Err(error) => return Err(error),
        }
    }
    match newest_failure {
        None => Ok(None),
        Some(newest) => Err(TrainError::NoReadableCheckpoint {
            folder: checkpoints.to_owned(),
            newest: Box::new(newest.into()),
        }),
    }
}
