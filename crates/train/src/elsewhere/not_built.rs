//! What takes the place of stores in a build without them: it names the feature.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tessera_checkpoint::huggingface::ModelLocation;
use tessera_data::{Fetched, Task};
use tessera_workspace::Access;

use super::is_url;
use crate::error::TrainError;
use crate::observe::Observer;
use crate::plan::Settings;

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

pub(crate) fn model(url: &str, _: &Path, _: Option<&Arc<dyn Observer>>) -> Result<ModelLocation, TrainError> {
    refused("model", url)
}

pub(crate) fn weights(url: &str, _: &Path, _: &Arc<dyn Observer>) -> Result<PathBuf, TrainError> {
    refused("custom_weights_path", url)
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
