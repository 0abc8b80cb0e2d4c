//! The registry of models that an MLflow server keeps: names with numbered versions, each made of a run's artifacts.

use std::thread;
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::{Value, json};

use super::MlflowError;
use super::client::{LONGEST_TAG, MlflowClient, pairs};

/// How long a version may take to become ready, as MLflow's own client has it.
const BECOMING_READY: Duration = Duration::from_secs(300);
/// The pause between two looks at one that is not.
const PAUSE: Duration = Duration::from_secs(1);
/// What MLflow answers where a name is taken.
const EXISTS: &str = "RESOURCE_ALREADY_EXISTS";

/// A version as the registry shows it.
#[derive(Debug, Deserialize)]
struct Version {
    name: String,
    version: String,
    #[serde(default)]
    source: String,
    #[serde(default)]
    status: String,
    #[serde(default)]
    status_message: String,
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
    pub tags: &'a [(String, String)],
    pub description: &'a str,
}

impl MlflowClient {
    /// Makes sure that this user may make versions of a registered model, which is made if there is none: its description is
    /// set to what it is, which a registry allows to the same people.
    pub fn check_registered_model(&self, name: &str) -> Result<(), MlflowError> {
        let description = self.registered_model(name)?;
        let url = self.server.url("api/2.0/mlflow/registered-models/update");
        let request = self.http.patch(url).json(&json!({"name": name, "description": description}));
        self.answer::<Value>(&format!("the registered model {name}"), request).map(drop)
    }

    /// Makes a registered model, if there is none; its description.
    pub fn registered_model(&self, name: &str) -> Result<String, MlflowError> {
        #[derive(Deserialize)]
        struct Found {
            registered_model: Model,
        }
        #[derive(Deserialize)]
        struct Model {
            #[serde(default)]
            description: String,
        }
        let call = format!("the registered model {name}");
        let get = || {
            let url = self.server.url("api/2.0/mlflow/registered-models/get");
            self.answer::<Found>(&call, self.http.get(url).query(&[("name", name)]))
        };
        let found = match get() {
            Err(MlflowError::Rejected { status: 404, .. }) => {
                match self.post::<Value>(&call, "registered-models/create", &json!({ "name": name })) {
                    Ok(_) => return Ok(String::new()),
                    // Another run has made it meanwhile.
                    Err(MlflowError::Rejected { code, .. }) if code == EXISTS => get()?,
                    Err(error) => return Err(error),
                }
            }
            found => found?,
        };
        Ok(found.registered_model.description)
    }

    /// The version of a model that is made of these artifacts, which is made if there is none.
    pub fn model_version(&self, name: &str, origin: &Origin<'_>) -> Result<String, MlflowError> {
        #[derive(Deserialize)]
        struct Found {
            #[serde(default)]
            model_versions: Vec<Version>,
        }
        let url = self.server.url("api/2.0/mlflow/model-versions/search");
        let filter = format!("run_id = '{}'", origin.run_id);
        let request = self.http.get(url).query(&[("filter", filter.as_str()), ("max_results", "1000")]);
        let found: Found = self.answer("the search for the model version", request)?;
        let is_it = |version: &Version| {
            version.name == name && version.source == origin.source && version.status != "FAILED_REGISTRATION"
        };
        if let Some(version) = found.model_versions.into_iter().find(is_it) {
            return Ok(version.version);
        }
        let body = json!({
            "name": name,
            "source": origin.source,
            "run_id": origin.run_id,
            "tags": pairs(origin.tags, LONGEST_TAG),
            "description": origin.description,
        });
        let call = format!("a new version of {name}");
        Ok(self.post::<VersionAnswer>(&call, "model-versions/create", &body)?.model_version.version)
    }

    /// Waits until a version can be used.
    pub fn wait_until_ready(&self, name: &str, version: &str) -> Result<(), MlflowError> {
        let began = Instant::now();
        let url = self.server.url("api/2.0/mlflow/model-versions/get");
        loop {
            let request = self.http.get(&url).query(&[("name", name), ("version", version)]);
            let found: VersionAnswer = self.answer(&format!("version {version} of {name}"), request)?;
            let Version { status, status_message, .. } = found.model_version;
            match status.as_str() {
                "READY" => return Ok(()),
                "PENDING_REGISTRATION" if began.elapsed() < BECOMING_READY => thread::sleep(PAUSE),
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
}
