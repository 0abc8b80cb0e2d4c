//! What takes the place of stores in a build without them: it names the feature.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tessera_checkpoint::huggingface::ModelLocation;
use tessera_data::{Fetched, Task};
use tessera_track::{RunListing, RunSummary, TrackError};
use tessera_workspace::Access;

use super::is_url;
use crate::error::TrainError;
use crate::observe::Observer;
use crate::plan::Settings;
use crate::state::checkpoints::ListedCheckpoint;

fn refused<T>(key: &'static str, url: &str) -> Result<T, TrainError> {
    Err(TrainError::NoStores { key, url: url.to_owned() })
}

pub(crate) fn data(url: &str, _: Task, _: &Path, _: &Arc<dyn Observer>) -> Result<Fetched, TrainError> {
    refused("the data", url)
}

pub(crate) fn table(
    _: &str,
    url: &str,
    _: Access,
    _: Option<u64>,
    _: &Path,
    _: &Arc<dyn Observer>,
) -> Result<Fetched, TrainError> {
    refused("the data", url)
}

pub(crate) fn is_expired(_: &TrainError) -> bool {
    false
}

pub(crate) fn model(url: &str, _: &Path, _: Option<&Arc<dyn Observer>>) -> Result<ModelLocation, TrainError> {
    refused("model", url)
}

pub(crate) fn weights(
    key: &'static str,
    url: &str,
    _: &Path,
    _: &Arc<dyn Observer>,
) -> Result<PathBuf, TrainError> {
    refused(key, url)
}

/// The run file at a url.
///
/// # Errors
/// Always: this build has no stores.
pub fn run_file(url: &str) -> Result<String, TrainError> {
    refused("the run file", url)
}

/// The runs at a url.
///
/// # Errors
/// Always: this build has no stores.
pub fn list_runs(url: &str) -> Result<RunListing, TrainError> {
    refused("the runs", url)
}

pub(crate) fn list_checkpoints(url: &str) -> Result<Vec<ListedCheckpoint>, TrainError> {
    refused("the checkpoints", url)
}

/// There is none.
pub enum StoredRun {}

#[allow(missing_docs, clippy::missing_errors_doc)]
impl StoredRun {
    pub fn open(url: &str) -> Result<Self, TrainError> {
        refused("the run", url)
    }

    pub fn url(&self) -> String {
        match *self {}
    }

    pub fn folder(&self) -> &Path {
        match *self {}
    }

    pub fn summary(&self) -> Result<RunSummary, TrainError> {
        match *self {}
    }

    pub fn bring_metrics(&self) -> Result<(), TrainError> {
        match *self {}
    }

    pub fn look_again(&self) -> Result<(), TrainError> {
        match *self {}
    }

    pub fn named(&self, _: TrackError) -> TrackError {
        match *self {}
    }

    pub fn uploaded(&self) -> Timestamp {
        match *self {}
    }

    pub fn last_sign_of_life(&self) -> Result<Option<Duration>, TrainError> {
        match *self {}
    }

    pub fn request_cancel(&self) -> Result<(), TrainError> {
        match *self {}
    }

    pub fn delete(&self) -> Result<(), TrainError> {
        match *self {}
    }
}

/// There is none.
pub(crate) enum Mirror {}

impl Mirror {
    pub(crate) fn open(settings: &Settings, _: &Arc<dyn Observer>) -> Result<Option<Self>, TrainError> {
        match is_url(&settings.save_folder) {
            true => refused("save_folder", &settings.save_folder),
            false => Ok(None),
        }
    }

    pub(crate) fn start(self, _: bool) -> Result<Mirroring, TrainError> {
        match self {}
    }
}

/// There is none.
pub(crate) enum Mirroring {}

impl Mirroring {
    pub(crate) fn finish(self) -> Result<(), TrainError> {
        match self {}
    }

    pub(crate) fn finish_soon(self) {
        match self {}
    }
}
