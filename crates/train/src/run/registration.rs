//! A finished run's model, registered where `register_to` says. Rank 0 does it, when nothing is left to train.
//!
//! `registered.json` in the run's folder says which model has been registered where, so that a run which is started again does not
//! register it twice. A run whose model could not be registered is not complete: its folder has everything, and the same command
//! tries again.

use std::fmt;
use std::fs;
use std::io;

use serde::{Deserialize, Serialize};
use tessera_checkpoint::huggingface::{HubOptions, HubTarget};
use tessera_data::Task;
use tessera_files::write_atomic;
use tessera_track::mlflow::{Asking, Model, Registration};
use tessera_track::{EventType, read_events};

use super::followers::{self, Followers};
use super::{Contact, Finished, RunPaths};
use crate::error::TrainError;
use crate::observe::{Observer, Update};
use crate::plan::{Prepared, Settings, file_error};
use crate::spec::{RegisterTo, registered_name};
use crate::state;

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

/// What `registered.json` keeps of a registration.
#[derive(Serialize, Deserialize)]
struct Entry {
    /// What the model is known by. An entry without it counts for none.
    model: Option<String>,
    #[serde(flatten)]
    registered: Registered,
}

/// Asks whether the model can be registered when the run is done.
///
/// # Errors
/// When the registry or hub does not answer, or refuses.
pub(super) fn check(
    settings: &Settings,
    folder: &RunPaths,
    asking: Asking,
) -> Result<Option<Contact>, TrainError> {
    if folder.registered().is_file()
        && let Some(saved) = state::newest(&folder.checkpoints())?
        && let Some(earlier) = earlier(settings, folder, saved.position.batch)?
    {
        return Ok(Some(Contact::There(format!("the model is registered as {earlier}"))));
    }
    match &settings.register_to {
        None => Ok(None),
        Some(RegisterTo::Hub { repository }) => {
            let target = target(repository)?;
            let hub = target.endpoint();
            let is_there = match asking {
                Asking::Looking => target.look()?,
                Asking::Making => target.check().map(|()| true)?,
            };
            Ok(Some(Contact::There(match is_there {
                true => format!("the hub at {hub} takes models into {repository}"),
                false => format!("the hub at {hub} is there; the run will make {repository} when it starts"),
            })))
        }
        Some(RegisterTo::Registry { schema, model }) => {
            let name = registered_name(schema, model.as_deref(), &settings.run_name);
            followers::check_registration(settings, &name, asking)
        }
    }
}

/// Where the model after `batch` batches of this run was registered before, where that is where it is to be.
pub(super) fn earlier(
    settings: &Settings,
    folder: &RunPaths,
    batch: u64,
) -> Result<Option<Registered>, TrainError> {
    let Some(wanted) = &settings.register_to else { return Ok(None) };
    let path = folder.registered();
    let bytes = match fs::read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        read => read.map_err(|source| file_error("read", &path, source))?,
    };
    let all: Vec<Entry> = serde_json::from_slice(&bytes)
        .map_err(|error| file_error("read", &path, io::Error::new(io::ErrorKind::InvalidData, error)))?;
    let Some(model) = identity(folder, batch)? else { return Ok(None) };
    let mut of_model = all.into_iter().filter(|entry| entry.model.as_ref() == Some(&model));
    let place = match wanted {
        RegisterTo::Hub { .. } => HubOptions::from_env().address(),
        RegisterTo::Registry { .. } => followers::registry_place(settings)?,
    };
    let found = of_model.find(|entry| match (&entry.registered, wanted) {
        (Registered::Version(version), RegisterTo::Registry { schema, model }) => {
            version.registry == place
                && version.name == registered_name(schema, model.as_deref(), &settings.run_name)
        }
        (Registered::Commit { hub, repository, .. }, RegisterTo::Hub { repository: wanted }) => {
            *hub == place && repository == wanted
        }
        _ => false,
    });
    Ok(found.map(|entry| entry.registered))
}

/// What the model after `batch` batches of the run in this folder is known by: one that is started over there is created anew.
fn identity(folder: &RunPaths, batch: u64) -> Result<Option<String>, TrainError> {
    let events = read_events(folder.path())?;
    let created = events.iter().rfind(|event| event.kind == EventType::Created);
    Ok(created.map(|event| format!("ba{batch} of the run created {}", event.time)))
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
    if let Some(earlier) = earlier(settings, folder, finished.batch)? {
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
    note(folder, Entry { model: identity(folder, finished.batch)?, registered: registered.clone() })?;
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
fn note(folder: &RunPaths, entry: Entry) -> Result<(), TrainError> {
    let path = folder.registered();
    let mut all: Vec<Entry> =
        fs::read(&path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
    all.push(entry);
    Ok(write_atomic(&path, &serde_json::to_vec(&all)?)?)
}
