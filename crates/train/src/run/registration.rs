//! A finished run's model, registered where `register_to` says. Rank 0 does it, when nothing is left to train.
//!
//! `registered.json` in the run's folder says where the model has been registered, so that a run which is started again does not
//! register it twice. A run whose model could not be registered is not complete: its folder has everything, and the same command
//! tries again.

use std::fmt;
use std::fs;
use std::io;

use serde::{Deserialize, Serialize};
use tessera_checkpoint::huggingface::{HubOptions, HubTarget};
use tessera_data::Task;
use tessera_files::write_atomic;
use tessera_track::mlflow::{Model, Registration};

use super::followers::{self, Followers};
use super::{Contact, Finished, RunPaths};
use crate::error::TrainError;
use crate::observe::{Observer, Update};
use crate::plan::{Prepared, Settings, file_error};
use crate::spec::{RegisterTo, registered_name};

/// Where a model was registered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Registered {
    /// As a version of a registered model.
    Version(Registration),
    /// As a commit to a repository.
    Commit {
        /// The hub.
        hub: String,
        /// `org/name`.
        repository: String,
        /// The commit.
        commit: String,
    },
}

impl fmt::Display for Registered {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Version(Registration { registry, name, version }) => {
                write!(formatter, "version {version} of {name} at {registry}")
            }
            Self::Commit { hub, repository, commit } => {
                write!(formatter, "commit {commit} of {hub}/{repository}")
            }
        }
    }
}

/// Makes sure, before anything slow is done, that the model can be registered when the run is done.
///
/// # Errors
/// When the registry or hub does not answer, or refuses.
pub(super) fn check(settings: &Settings, folder: &RunPaths) -> Result<Option<Contact>, TrainError> {
    if let Some(earlier) = earlier(settings, folder)? {
        return Ok(Some(Contact::There(format!("the model is registered as {earlier}"))));
    }
    match &settings.register_to {
        None => Ok(None),
        Some(RegisterTo::Hub { repository }) => {
            let target = target(repository)?;
            target.check()?;
            Ok(Some(Contact::There(format!(
                "the hub at {} takes models into {repository}",
                target.endpoint()
            ))))
        }
        Some(RegisterTo::Registry { schema, model }) => {
            let name = registered_name(schema, model.as_deref(), &settings.run_name);
            followers::check_registration(settings, &name)
        }
    }
}

/// Where the model of this run was registered before, where that is where it is to be.
pub(super) fn earlier(settings: &Settings, folder: &RunPaths) -> Result<Option<Registered>, TrainError> {
    let path = folder.registered();
    let bytes = match fs::read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        read => read.map_err(|source| file_error("read", &path, source))?,
    };
    let all: Vec<Registered> = serde_json::from_slice(&bytes)
        .map_err(|error| file_error("read", &path, io::Error::new(io::ErrorKind::InvalidData, error)))?;
    let mut wanted = all.into_iter().filter(|registered| match (registered, &settings.register_to) {
        (Registered::Version(version), Some(RegisterTo::Registry { schema, model })) => {
            version.name == registered_name(schema, model.as_deref(), &settings.run_name)
        }
        (Registered::Commit { repository, .. }, Some(RegisterTo::Hub { repository: wanted })) => {
            repository == wanted
        }
        _ => false,
    });
    Ok(wanted.next())
}

/// Registers the model, if that is asked for and has not been done.
///
/// # Errors
/// What kept it from being registered.
pub(super) fn register(
    prepared: &Prepared,
    folder: &RunPaths,
    finished: &Finished,
    followers: &Followers,
    observer: &dyn Observer,
) -> Result<Option<Registered>, TrainError> {
    let settings = &prepared.plan.settings;
    let Some(wanted) = &settings.register_to else { return Ok(None) };
    if let Some(earlier) = earlier(settings, folder)? {
        return Ok(Some(earlier));
    }
    observer.observe(Update::Registering(&wanted.to_string()));
    let registered = match wanted {
        RegisterTo::Registry { schema, model } => {
            let model = Model {
                name: registered_name(schema, model.as_deref(), &settings.run_name),
                folder: finished.export.clone(),
                base: settings.model.clone(),
                task: match settings.task() {
                    Task::ChatCompletion => "llm/v1/chat",
                    Task::InstructionFinetune | Task::ContinuedPretrain => "llm/v1/completions",
                },
            };
            followers.register(settings, model).map(Registered::Version)
        }
        RegisterTo::Hub { repository } => upload(repository, settings, finished),
    };
    let registered = registered.map_err(|source| TrainError::NotRegistered {
        place: wanted.to_string(),
        export: finished.export.clone(),
        source: Box::new(source),
    })?;
    note(folder, &registered)?;
    observer.observe(Update::Registered(&registered.to_string()));
    Ok(Some(registered))
}

fn upload(repository: &str, settings: &Settings, finished: &Finished) -> Result<Registered, TrainError> {
    let target = target(repository)?;
    let whose = format!("Tessera run {}, batch {}", settings.run_name, finished.batch);
    let commit = target.upload(&finished.export, &whose)?;
    Ok(Registered::Commit { hub: target.endpoint().to_owned(), repository: repository.to_owned(), commit })
}

fn target(repository: &str) -> Result<HubTarget, TrainError> {
    Ok(HubTarget::new(repository, HubOptions::from_env())?)
}

/// Adds to `registered.json`.
fn note(folder: &RunPaths, registered: &Registered) -> Result<(), TrainError> {
    let path = folder.registered();
    let mut all: Vec<Registered> =
        fs::read(&path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
    all.push(registered.clone());
    Ok(write_atomic(&path, &serde_json::to_vec(&all)?)?)
}
