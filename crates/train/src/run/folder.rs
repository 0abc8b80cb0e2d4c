//! The run's folder: its paths, its lock, its resolved run file.

use std::path::{Path, PathBuf};

use tessera_files::{FolderLock, write_atomic};
use tessera_track::{names, read_metrics};

use crate::error::TrainError;
use crate::observe::EvaluationReport;
use crate::plan::Pins;
use crate::plan::Settings;
use crate::plan::file_error;
use crate::run::Finished;
use crate::state::checkpoints_in;

/// The folder of what ranks did last, in a run's folder.
pub const FLIGHT: &str = "flight";

/// A run's folder, held by this process alone.
pub struct RunFolder {
    paths: RunPaths,
    _lock: FolderLock,
}

impl std::ops::Deref for RunFolder {
    type Target = RunPaths;

    fn deref(&self) -> &RunPaths {
        &self.paths
    }
}

/// Where things lie in a run's folder.
pub struct RunPaths {
    path: PathBuf,
}

impl RunFolder {
    /// Creates the folder if it is not there, and takes it for this process.
    ///
    /// # Errors
    /// When it cannot be written, or another process has it.
    pub fn open(path: PathBuf) -> Result<Self, TrainError> {
        std::fs::create_dir_all(&path).map_err(|source| file_error("create", &path, source))?;
        match FolderLock::try_take(&path)? {
            Some(lock) => Ok(Self { paths: RunPaths::new(path), _lock: lock }),
            None => Err(TrainError::Busy { folder: path }),
        }
    }

    /// Its paths.
    pub fn paths(&self) -> &RunPaths {
        &self.paths
    }
}

impl RunPaths {
    /// Those of the folder at `path`.
    pub fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// What ranks did last, where they waited for one another in vain.
    pub fn flight(&self) -> PathBuf {
        self.path.join(FLIGHT)
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The resolved run file.
    pub fn settings(&self) -> PathBuf {
        self.path.join("run.yaml")
    }

    /// What was read of each source.
    pub fn data(&self) -> PathBuf {
        self.path.join(Pins::FILE)
    }

    /// Where the model was registered.
    pub fn registered(&self) -> PathBuf {
        self.path.join("registered.json")
    }

    /// Where checkpoints are.
    pub fn checkpoints(&self) -> PathBuf {
        checkpoints_in(&self.path)
    }

    /// Where models in Hugging Face layout are.
    pub fn exports(&self) -> PathBuf {
        self.path.join("huggingface")
    }

    /// Where the model is after `batch` batches, in Hugging Face layout.
    pub fn export(&self, batch: u64) -> PathBuf {
        self.exports().join(format!("ba{batch}"))
    }

    /// Moves the models of an earlier run, which this one's would be taken for, and where they were registered, to names that are
    /// free. Gives the one of the models.
    pub fn set_exports_aside(&self) -> Result<Option<PathBuf>, TrainError> {
        let named = |number: u32| {
            let beside = |name: String| self.path.join(name);
            (
                beside(format!("huggingface.earlier-{number}")),
                beside(format!("registered.earlier-{number}.json")),
            )
        };
        let is_free = |(exports, registered): &(PathBuf, PathBuf)| !exports.exists() && !registered.exists();
        let (exports, registered) = (1..).map(named).find(is_free).unwrap_or_else(|| named(0));
        move_if_there(&self.registered(), &registered)?;
        Ok(move_if_there(&self.exports(), &exports)?.then_some(exports))
    }

    /// Writes `run.yaml`.
    pub fn write_settings(&self, settings: &Settings) -> Result<(), TrainError> {
        let yaml = serde_saphyr::to_string(settings)?;
        Ok(write_atomic(&self.settings(), yaml.as_bytes())?)
    }

    /// What a finished run has to show.
    pub fn finished(&self, batch: u64, checkpoint: PathBuf) -> Result<Finished, TrainError> {
        let (mut first_evaluation, mut last_evaluation) = (None, None);
        for line in read_metrics(&self.path)? {
            let line = line?;
            let numbers = (line.number(names::EVAL_CROSS_ENTROPY), line.number(names::EVAL_ACCURACY));
            if let ((Some(cross_entropy), Some(accuracy)), Some(batch)) = (numbers, line.batch()) {
                let evaluation = EvaluationReport { batch, cross_entropy, accuracy };
                first_evaluation.get_or_insert(evaluation);
                last_evaluation = Some(evaluation);
            }
        }
        Ok(Finished {
            folder: self.path.clone(),
            batch,
            checkpoint,
            export: self.export(batch),
            registered: None,
            first_evaluation,
            last_evaluation,
        })
    }
}

fn move_if_there(from: &Path, to: &Path) -> Result<bool, TrainError> {
    if !from.exists() {
        return Ok(false);
    }
    std::fs::rename(from, to).map_err(|source| file_error("move", from, source))?;
    Ok(true)
}
