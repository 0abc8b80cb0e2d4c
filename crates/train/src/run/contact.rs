//! The services that a run needs, asked before it begins.

use tessera_track::mlflow::Asking;

use super::{RunPaths, followers, registration};
use crate::error::TrainError;
use crate::plan::Settings;

/// What a service said that a run will need.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Contact {
    /// It is there, and takes what it will be told.
    There(String),
    /// It does not answer, and the run file says that this may be.
    Away(String),
}

/// Asks every service that a run of these settings needs whether it is there and takes what it will be told: the tracking server,
/// and where the model is to be registered. Nothing there is changed.
///
/// # Errors
/// For a service that refuses, or does not answer where it must.
pub fn look(settings: &Settings) -> Result<Vec<Contact>, TrainError> {
    ask(settings, Asking::Looking)
}

/// The same before a run: an experiment, a registered model or a repository that is not there is made.
///
/// # Errors
/// As [`look`].
pub(super) fn contact(settings: &Settings) -> Result<Vec<Contact>, TrainError> {
    ask(settings, Asking::Making)
}

fn ask(settings: &Settings, asking: Asking) -> Result<Vec<Contact>, TrainError> {
    let tracking = followers::check(settings, asking)?;
    let registration = registration::check(settings, &RunPaths::new(settings.run_folder()), asking)?;
    Ok(tracking.into_iter().chain(registration).collect())
}
