//! The word that asks a run to stop: a file in its folder, which the run looks for between its batches.
//!
//! A signal reaches only a process of the same machine, and a number of a process may by then be another's. The folder is
//! what all who have to do with the run can see.

use std::fs;
use std::io;
use std::path::Path;

use tessera_files::{IoContext, write_atomic};

use crate::error::TrackError;

const FILE: &str = ".cancel";

/// Asks the run in `run_folder` to stop after the batch under way.
pub fn request_cancel(run_folder: &Path) -> Result<(), TrackError> {
    Ok(write_atomic(&run_folder.join(FILE), b"")?)
}

/// Whether the run is asked to stop.
pub fn is_cancel_requested(run_folder: &Path) -> bool {
    run_folder.join(FILE).exists()
}

/// Takes the request back, if there is one: whoever takes up the run again does not mean what was asked before.
pub fn clear_cancel(run_folder: &Path) -> Result<(), TrackError> {
    let path = run_folder.join(FILE);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Ok(Err(error).context("remove", &path)?),
        _ => Ok(()),
    }
}
