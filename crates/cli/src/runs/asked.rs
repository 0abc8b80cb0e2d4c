//! A run that something is asked of, by its folder or by its url.

use std::path::{Path, PathBuf};

use tessera_track::{RunSummary, TrackError, read_run};
use tessera_train::TrainError;
use tessera_train::elsewhere::{StoredRun, url_of};

use super::SAVE_FOLDER;

/// Where a run is.
pub enum Asked {
    /// In a folder.
    Here(PathBuf),
    /// At a url.
    There(Box<StoredRun>),
}

impl Asked {
    /// The run that an argument names: a url, a folder, or the name of one in `runs`.
    pub fn open(run: &Path) -> Result<Self, TrainError> {
        Ok(match url_of(run) {
            Some(url) => Self::There(Box::new(StoredRun::open(url)?)),
            None => Self::Here(folder_of(run)),
        })
    }

    /// The folder in which the files that tell of it can be read.
    pub fn folder(&self) -> &Path {
        match self {
            Self::Here(folder) => folder,
            Self::There(run) => run.folder(),
        }
    }

    /// What is known of it.
    pub fn summary(&self) -> Result<RunSummary, TrainError> {
        match self {
            Self::Here(folder) => Ok(read_run(folder)?),
            Self::There(run) => run.summary(),
        }
    }

    /// An error of a file in its folder, told of the place that was asked for.
    pub fn named(&self, error: TrackError) -> TrackError {
        match self {
            Self::Here(_) => error,
            Self::There(run) => run.named(error),
        }
    }
}

/// The folder itself where there is one, else that of the run of this name.
pub fn folder_of(run: &Path) -> PathBuf {
    let named = Path::new(SAVE_FOLDER).join(run);
    if !run.exists() && named.is_dir() { named } else { run.to_owned() }
}
