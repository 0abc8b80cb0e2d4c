//! A finished run's model becomes a version of a registered model: its files are copied to the run's artifacts, unless they are
//! there already, and the registry is told of them.
//!
//! Nothing is done twice: the ledger knows the files, and the registry itself is asked for the version before one is made.

use serde::{Deserialize, Serialize};

use super::client::MlflowClient;
use super::delivery::{Delivery, MODELS, Progress};
use super::packaged::Model;
use super::registry::Origin;
use super::{Job, MlflowError, Server};

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
    version: Option<String>,
    is_ready: bool,
}

/// Makes sure, before a run, that its model can be registered under this name after it. The registered model is made if there is
/// none.
///
/// # Errors
/// When the registry does not answer, or refuses; when the tracking server takes no artifacts.
pub fn check_registration(
    tracking: Server,
    experiment: &str,
    registry: Server,
    name: &str,
) -> Result<(), MlflowError> {
    let tracking = MlflowClient::new(tracking)?;
    let location = tracking.artifact_location(&tracking.experiment(experiment)?)?;
    tracking.artifact_url(&location, "MLmodel").map_err(to_register)?;
    MlflowClient::new(registry)?.check_registered_model(name)
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
        for (name, content) in model.artifacts(&run.run_id)? {
            if self.copy(&run, &format!("{place}/{name}"), &content).map_err(to_register)? {
                return Ok(None);
            }
        }
        let Some(version) = progress.version.clone() else {
            if !progress.has_model {
                registry.registered_model(&model.name)?;
                progress.has_model = true;
                return Ok(None);
            }
            let Job { run_name, tags, .. } = self.job();
            let source = format!("{}/{place}", run.artifact_uri.trim_end_matches('/'));
            let description = format!("{} trained by run {run_name}", model.base);
            let origin = Origin { source: &source, run_id: &run.run_id, tags, description: &description };
            progress.version = Some(registry.model_version(&model.name, &origin)?);
            return Ok(None);
        };
        if !progress.is_ready {
            registry.wait_until_ready(&model.name, &version)?;
            progress.is_ready = true;
            return Ok(None);
        }
        self.tag(&run, "tessera.registered_model", format!("{}/{version}", model.name))?;
        Ok(Some(Registration { registry: registry.server.place(), name: model.name.clone(), version }))
    }
}
