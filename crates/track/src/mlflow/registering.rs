//! A finished run's model becomes a version of a registered model. For an MLflow server's registry its files are copied to the run's
//! artifacts, unless they are there already, and the registry is told of them. A workspace's catalog is told first, says where
//! it wants the files, and makes the version ready once it is told that all are there: until then nobody can load it.
//!
//! Nothing is done twice: the ledger knows the files, and the registry itself is asked for the version before one is made.

use serde::{Deserialize, Serialize};

use super::client::{MlflowClient, RunHandle};
use super::delivery::{Delivery, MODELS, Progress};
use super::packaged::Model;
use super::registry::{Origin, READY, Version};
use super::storage::Storage;
use super::{Asking, Job, MlflowError, Server, Standing};

/// What a model was registered as.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registration {
    /// The registry, without credentials.
    pub registry: String,
    /// The registered model.
    pub name: String,
    /// Its version.
    pub version: String,
}

/// How far a model has come, so that a call whose answer was lost is the only one that is made again.
#[derive(Debug, Default)]
pub(super) struct Registering {
    has_model: bool,
    version: Option<Version>,
    /// Where a catalog wants the files.
    storage: Option<Storage>,
    /// Files that were remembered as put there were not.
    was_lacking: bool,
    /// The catalog's folder has all files.
    is_filled: bool,
    is_ready: bool,
}

/// Makes sure, before a run, that its model can be registered under this name after it. A registered model that is not there is made,
/// unless this is only a look.
///
/// # Errors
/// When the registry does not answer, or refuses; when the tracking server takes no artifacts of which a version can be made.
pub fn check_registration(
    tracking: Server,
    experiment: &str,
    registry: Server,
    name: &str,
    asking: Asking,
) -> Result<Standing, MlflowError> {
    if !registry.is_workspace() {
        let tracking = MlflowClient::new(tracking)?;
        let id = match asking {
            Asking::Looking => tracking.find_experiment(experiment)?,
            Asking::Making => Some(tracking.experiment(experiment)?),
        };
        // Where there is no experiment yet nothing is known of its artifacts.
        if let Some(id) = id {
            let location = tracking.artifact_location(&id)?;
            tracking.artifact_url(&location, "MLmodel").map_err(to_register)?;
        }
    }
    MlflowClient::new(registry)?.check_registered_model(name, asking)
}

/// What the lack of artifacts means here.
fn to_register(error: MlflowError) -> MlflowError {
    match error {
        MlflowError::NoArtifacts { uri } => MlflowError::NoArtifactsToRegister { uri },
        error => error,
    }
}

impl Delivery {
    /// The next call, once all of the run that there is has arrived; what the model is registered as, once it is.
    pub(super) fn register(
        &mut self,
        model: &Model,
        registry: &MlflowClient,
        progress: &mut Registering,
    ) -> Result<Option<Registration>, MlflowError> {
        if self.advance(None)? == Progress::Some {
            return Ok(None);
        }
        let run = self.run_exists()?;
        let name = model.folder.file_name().unwrap_or_default().to_string_lossy();
        let place = self.job().place(MODELS, &name);
        let is_catalog = registry.server.is_workspace();
        if !is_catalog {
            for (name, content) in model.artifacts(&run.run_id)? {
                if self.copy(&run, &format!("{place}/{name}"), &content).map_err(to_register)? {
                    return Ok(None);
                }
            }
        }
        let Some(version) = progress.version.clone() else {
            if !progress.has_model {
                registry.registered_model(&model.name)?;
                progress.has_model = true;
                return Ok(None);
            }
            progress.version = Some(self.version_exists(model, registry, &run, &place)?);
            return Ok(None);
        };
        if !progress.is_ready {
            if is_catalog && version.status != READY {
                if !progress.is_filled {
                    progress.is_filled = self.fill(model, registry, &run, progress)? == Progress::All;
                    return Ok(None);
                }
                registry.finalize(&model.name, &version.version)?;
            }
            registry.wait_until_ready(&model.name, &version.version)?;
            progress.is_ready = true;
            return Ok(None);
        }
        let version = version.version;
        self.tag(&run, "tessera.registered_model", format!("{}/{version}", model.name))?;
        Ok(Some(Registration { registry: registry.server.place(), name: model.name.clone(), version }))
    }

    /// The version of the model at this place among the run's artifacts.
    fn version_exists(
        &self,
        model: &Model,
        registry: &MlflowClient,
        run: &RunHandle,
        place: &str,
    ) -> Result<Version, MlflowError> {
        let Job { run_name, tags, .. } = self.job();
        let workspace = match registry.server.is_workspace() {
            true => self.client().workspace_of_run(&run.run_id)?,
            false => None,
        };
        let origin = Origin {
            source: &format!("{}/{place}", run.artifact_uri.trim_end_matches('/')),
            run_id: &run.run_id,
            workspace: workspace.as_deref(),
            tags,
            description: &format!("{} trained by run {run_name}", model.base),
        };
        registry.model_version(&model.name, &origin)
    }

    /// Puts the next file of a version where the catalog wants it. Only one that has come there is progress: a store that does not
    /// take it, however often credentials for it are handed out, is given up in the end. Once all are remembered to be there the folder
    /// is asked for them, since a version that is told to be whole cannot be filled any more.
    fn fill(
        &mut self,
        model: &Model,
        registry: &MlflowClient,
        run: &RunHandle,
        progress: &mut Registering,
    ) -> Result<Progress, MlflowError> {
        let Some(version) = progress.version.clone() else { return Ok(Progress::Some) };
        // A version that was removed is followed by one of the same number, in another folder.
        let above = format!("{} at {}", registry.server.place(), version.storage_location);
        let artifacts = model.artifacts(&run.run_id)?;
        for (name, content) in &artifacts {
            let name_here = format!("{above}/{name}");
            if self.has_copied(&name_here) {
                continue;
            }
            let storage = progress.open_storage(model, registry, &version)?;
            storage.put(name, content)?;
            progress.storage = Some(storage);
            self.note_copy(name_here)?;
            return Ok(Progress::Some);
        }
        let storage = progress.open_storage(model, registry, &version)?;
        let there = storage.list()?;
        progress.storage = Some(storage);
        let mut missing = Vec::new();
        for (name, content) in &artifacts {
            if there.get(name) != Some(&content.length()?) {
                missing.push(format!("{above}/{name}"));
            }
        }
        let Some(first) = missing.first() else { return Ok(Progress::All) };
        if std::mem::replace(&mut progress.was_lacking, true) {
            let reason = format!("{first}: it was put there, and is not listed as it is here");
            return Err(MlflowError::Storage { reason, passes: true });
        }
        self.forget_copies(&missing)?;
        Ok(Progress::Some)
    }
}

impl Registering {
    /// Takes the folder of a version, with credentials that are good for a while, or else with fresh ones, however long those are good:
    /// the clock here may be wrong. Whoever fails there does not give it back: the credentials may be what it was.
    fn open_storage(
        &mut self,
        model: &Model,
        registry: &MlflowClient,
        version: &Version,
    ) -> Result<Storage, MlflowError> {
        match self.storage.take().filter(Storage::is_open) {
            Some(storage) => Ok(storage),
            None => Storage::open(&version.storage_location, registry.grant(&model.name, &version.version)?),
        }
    }
}
