//! `data.json` in the run's folder: what was read of each source. A run that goes on reads the same, or says which
//! source has changed.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tessera_data::Pin;
use tessera_files::write_atomic;

use super::Prepared;
use crate::error::TrainError;

/// The sources of a run as they were read.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pins {
    train: Vec<Pin>,
    eval: Vec<Pin>,
}

impl Pins {
    /// The file's name.
    pub const FILE: &'static str = "data.json";

    /// What the file at `path` says, if it is there.
    pub fn read(path: &Path) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(path).ok()?).ok()
    }

    /// The version of a source that is not on this machine, by the name that the run file gives it.
    pub fn version(&self, source: &str) -> Option<&str> {
        let mut pins = self.train.iter().chain(&self.eval);
        pins.find(|pin| pin.path == source).and_then(|pin| pin.version.as_deref())
    }

    /// What has been read for a run.
    pub fn of(prepared: &Prepared) -> Self {
        let eval = prepared.eval.as_ref().map(|(dataset, _)| dataset.pins().to_vec());
        Self { train: prepared.train.pins().to_vec(), eval: eval.unwrap_or_default() }
    }

    /// Writes them to the file at `path`.
    pub fn write(&self, path: &Path) -> Result<(), TrainError> {
        let mut text = serde_json::to_vec_pretty(self)?;
        text.push(b'\n');
        Ok(write_atomic(path, &text)?)
    }

    /// Names the training source that is no longer what the file at `path` says it was when `checkpoint` was written.
    /// `None`: the sources are the same, or the file does not say.
    pub fn change(&self, path: &Path, checkpoint: PathBuf) -> Option<TrainError> {
        let before = Self::read(path)?;
        let mut sources = before.train.iter().zip(&self.train);
        let (before, now) = sources.find(|(before, now)| !before.is_same(now))?;
        Some(TrainError::SourceChanged { checkpoint, before: before.to_string(), now: now.to_string() })
    }
}
