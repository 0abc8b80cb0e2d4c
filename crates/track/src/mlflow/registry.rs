//! A registry of models: names with numbered versions.
//!
//! An MLflow server's own makes a version of a run's artifacts. Unity Catalog, the registry of a workspace, has the same calls at
//! addresses of its own, keeps the files of a version itself, and hands out credentials for the folder in which it wants them.

use std::thread;
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::{Value, json};
use tessera_workspace::Granted;

use super::client::{EXISTS, LONGEST_TAG, MlflowClient, or_none, pairs};
use super::{Asking, MlflowError, Standing};

/// How long a version may take to become ready, as MLflow's own client has it.
const BECOMING_READY: Duration = Duration::from_secs(300);
/// The pause between two looks at one that is not.
const PAUSE: Duration = Duration::from_secs(1);
/// What states are called.
pub(super) const READY: &str = "READY";
pub(super) const PENDING: &str = "PENDING_REGISTRATION";
const FAILED: &str = "FAILED_REGISTRATION";

/// A version as the registry shows it.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Version {
    #[serde(default)]
    name: String,
    pub version: String,
    #[serde(default)]
    source: String,
    #[serde(default)]
    run_id: String,
    #[serde(default)]
    pub status: String,
    #[serde(default)]
    status_message: String,
    /// Where Unity Catalog keeps its files.
    #[serde(default)]
    pub storage_location: String,
}

#[derive(Deserialize)]
struct VersionAnswer {
    model_version: Version,
}

/// What a version is made of.
pub(super) struct Origin<'a> {
    /// The run's artifacts below this address.
    pub source: &'a str,
    pub run_id: &'a str,
    /// The workspace of the run, where it is kept in one.
    pub workspace: Option<&'a str>,
    pub tags: &'a [(String, String)],
    pub description: &'a str,
}

impl MlflowClient {
    /// Makes sure that a registered model is there, as far as that can be known without making a version; one that is not is made,
    /// unless this is only a look. Its description is set to what it is, which an MLflow server allows to those who may make versions.
    /// A catalog allows it to the owner alone, so its refusal says nothing.
    pub fn check_registered_model(&self, name: &str, asking: Asking) -> Result<Standing, MlflowError> {
        if asking == Asking::Looking {
            let found = self.find_registered_model(name)?;
            return Ok(if found.is_some() { Standing::There } else { Standing::ToBeMade });
        }
        let description = self.registered_model(name)?;
        let url = self.registry_url("registered-models/update");
        let request = self.http.patch(url).json(&json!({"name": name, "description": description}));
        match self.answer::<Value>(&model_call(name), request) {
            Err(MlflowError::Refused { status: 403, .. }) if self.server.is_workspace() => {}
            answer => drop(answer?),
        }
        Ok(Standing::There)
    }

    /// Makes a registered model, if there is none; its description.
    pub fn registered_model(&self, name: &str) -> Result<String, MlflowError> {
        if let Some(description) = self.find_registered_model(name)? {
            return Ok(description);
        }
        let create = self.registry_path("registered-models/create");
        match self.post::<Value>(&model_call(name), &create, &json!({ "name": name })) {
            Ok(_) => Ok(String::new()),
            // Another run has made it meanwhile.
            Err(error) if error.code() == Some(EXISTS) => self.find_registered_model(name)?.ok_or(error),
            Err(error) => Err(error),
        }
    }

    /// The description of a registered model, if there is one.
    fn find_registered_model(&self, name: &str) -> Result<Option<String>, MlflowError> {
        #[derive(Deserialize)]
        struct Found {
            registered_model: Model,
        }
        #[derive(Deserialize)]
        struct Model {
            #[serde(default)]
            description: String,
        }
        let url = self.registry_url("registered-models/get");
        let found = self.answer::<Found>(&model_call(name), self.http.get(url).query(&[("name", name)]));
        Ok(or_none(found)?.map(|found| found.registered_model.description))
    }

    /// The version of a model that is made of these artifacts, which is made if there is none.
    pub fn model_version(&self, name: &str, origin: &Origin<'_>) -> Result<Version, MlflowError> {
        if let Some(version) = self.find_version(name, origin)? {
            return Ok(version);
        }
        let mut body = json!({
            "name": name,
            "source": origin.source,
            "run_id": origin.run_id,
            "tags": pairs(origin.tags, LONGEST_TAG),
            "description": origin.description,
        });
        if let Some(workspace) = origin.workspace {
            body["run_tracking_server_id"] = workspace.into();
        }
        let create = self.registry_path("model-versions/create");
        Ok(self.post::<VersionAnswer>(&format!("a new version of {name}"), &create, &body)?.model_version)
    }

    /// The version of a model that is made of these artifacts and has not failed, if there is one.
    fn find_version(&self, name: &str, origin: &Origin<'_>) -> Result<Option<Version>, MlflowError> {
        #[derive(Deserialize)]
        struct Page {
            #[serde(default)]
            model_versions: Vec<Version>,
            #[serde(default)]
            next_page_token: String,
        }
        // A catalog searches by the name alone.
        let filter = match self.server.is_workspace() {
            true => format!("name='{name}'"),
            false => format!("run_id = '{}'", origin.run_id),
        };
        let is_it = |version: &Version| {
            version.name == name
                && version.run_id == origin.run_id
                && version.source == origin.source
                && version.status != FAILED
        };
        let url = self.registry_url("model-versions/search");
        let mut token = String::new();
        loop {
            let mut request = self.http.get(&url).query(&[("filter", filter.as_str())]);
            if !token.is_empty() {
                request = request.query(&[("page_token", token.as_str())]);
            }
            let page: Page = self.answer("the search for the model version", request)?;
            let found = page.model_versions.into_iter().find(is_it);
            if found.is_some() || page.next_page_token.is_empty() {
                return Ok(found);
            }
            token = page.next_page_token;
        }
    }

    /// Credentials for the folder in which a catalog keeps the files of a version.
    pub fn grant(&self, name: &str, version: &str) -> Result<Granted, MlflowError> {
        #[derive(Deserialize)]
        struct Answer {
            credentials: Granted,
        }
        let path = self.registry_path("model-versions/generate-temporary-credentials");
        let body =
            json!({"name": name, "version": version, "operation": "MODEL_VERSION_OPERATION_READ_WRITE"});
        Ok(self.post::<Answer>(&format!("credentials for the files of {name}"), &path, &body)?.credentials)
    }

    /// Tells a catalog that all files of a version are there, unless it has been told.
    pub fn finalize(&self, name: &str, version: &str) -> Result<(), MlflowError> {
        // Where the answer to an earlier call was lost it is ready.
        if self.version(name, version)?.status == PENDING {
            let path = self.registry_path("model-versions/finalize");
            let body = json!({"name": name, "version": version});
            self.post::<Value>(&format!("the end of version {version} of {name}"), &path, &body)?;
        }
        Ok(())
    }

    /// Waits until a version can be used.
    pub fn wait_until_ready(&self, name: &str, version: &str) -> Result<(), MlflowError> {
        let began = Instant::now();
        loop {
            let Version { status, status_message, .. } = self.version(name, version)?;
            match status.as_str() {
                READY => return Ok(()),
                PENDING if began.elapsed() < BECOMING_READY => thread::sleep(PAUSE),
                _ => {
                    return Err(MlflowError::NotReady {
                        name: name.to_owned(),
                        version: version.to_owned(),
                        status,
                        message: self.server.clean(&status_message),
                    });
                }
            }
        }
    }

    fn version(&self, name: &str, version: &str) -> Result<Version, MlflowError> {
        let url = self.registry_url("model-versions/get");
        let request = self.http.get(url).query(&[("name", name), ("version", version)]);
        Ok(self.answer::<VersionAnswer>(&format!("version {version} of {name}"), request)?.model_version)
    }

    fn registry_url(&self, path: &str) -> String {
        self.server.url(&format!("api/2.0/mlflow/{}", self.registry_path(path)))
    }

    /// The address of a call about models, below that of all calls.
    fn registry_path(&self, path: &str) -> String {
        if self.server.is_workspace() { format!("unity-catalog/{path}") } else { path.to_owned() }
    }
}

fn model_call(name: &str) -> String {
    format!("the registered model {name}")
}
