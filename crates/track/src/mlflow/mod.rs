//! A run in an MLflow tracking server, over its REST interface.
//!
//! The run folder stays the record: what is delivered is read from `metrics.jsonl`, at the pace of the server, by a thread of
//! its own. So a step never waits for a server, a server that is away costs no memory and no second buffer, and what could not
//! be delivered is delivered when the run is taken up again. How far the delivery has come is kept in `mlflow.json` beside it:
//! each batch of metrics is written there before it is sent, and is sent again with the same times if its arrival is unknown.
//! A server takes the same point twice for one, so nothing is lost and nothing is there twice.

mod address;
mod client;
mod courier;
mod delivery;
mod ledger;
mod machine;
mod packaged;
mod registering;
mod registry;
mod storage;
mod tail;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use tessera_files::FileError;

pub use address::Server;
pub use courier::{Courier, Notice};
pub use delivery::is_delivered;
pub use packaged::Model;
pub use registering::{Registration, check_registration};

/// How a server is asked before a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asking {
    /// Nothing there is changed.
    Looking,
    /// What the run needs and is not there is made.
    Making,
}

/// How something that a run needs stands with a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It is there.
    There,
    /// It is not, and the run will make it.
    ToBeMade,
}

/// Makes sure that a server is there, lets this user in, and has the experiment.
///
/// # Errors
/// When it does not answer, or refuses.
pub fn check(server: Server, experiment: &str, asking: Asking) -> Result<Standing, MlflowError> {
    let client = client::MlflowClient::new(server)?;
    if asking == Asking::Looking && client.find_experiment(experiment)?.is_none() {
        return Ok(Standing::ToBeMade);
    }
    client.experiment(experiment).map(|_| Standing::There)
}

/// What a run tells a tracking server.
#[derive(Debug, Clone)]
pub struct Job {
    /// Where the server is.
    pub server: Server,
    /// The experiment's name, with `/` between its parts.
    pub experiment: String,
    /// The run's name.
    pub run_name: String,
    /// The resolved run file, and what follows from it.
    pub parameters: Vec<(String, String)>,
    /// What else is known when the run begins.
    pub tags: Vec<(String, String)>,
    /// What the run reads.
    pub datasets: Vec<DatasetEntry>,
    /// Whether checkpoints and models are copied to the server.
    pub uploads: bool,
    /// Whether the machine's load is told.
    pub system_metrics: bool,
    /// Whether the run goes on from a checkpoint.
    pub resumes: bool,
}

impl Job {
    /// The place of a checkpoint or model among the artifacts.
    fn place(&self, kind: &str, name: &str) -> String {
        format!("{}/{kind}/{name}", self.run_name)
    }
}

/// A data set as an experiment shows it.
#[derive(Debug, Clone, Serialize)]
pub struct DatasetEntry {
    /// What it is read for: `train` or `eval`.
    pub context: &'static str,
    /// Its name.
    pub name: String,
    /// What its content is known by.
    pub digest: String,
    /// The kind of place it comes from, in MLflow's words.
    pub source_type: &'static str,
    /// The place.
    pub uri: String,
    /// Its size, by name.
    pub profile: serde_json::Value,
}

/// How a run ended, in MLflow's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Ending {
    /// All batches are done.
    Finished,
    /// By an error.
    Failed,
    /// By a signal or its user.
    Killed,
}

/// A tracking server could not be told of a run.
#[derive(Debug, thiserror::Error)]
pub enum MlflowError {
    /// The run file names an experiment, and nothing says on which server.
    #[error(
        "experiment_path asks for an MLflow tracking server, but none is named; set MLFLOW_TRACKING_URI, or \
         mlflow.tracking_uri in the run file"
    )]
    NoServer,
    /// The address is none.
    #[error("{origin} is {found}, expected {expected}")]
    Address {
        /// The key or variable.
        origin: &'static str,
        /// Its value, without credentials.
        found: String,
        /// What may be there.
        expected: &'static str,
    },
    /// A password in a file that is copied into the run folder.
    #[error(
        "{key} holds a user name or password, which run.yaml would keep; give them in MLFLOW_TRACKING_USERNAME \
         and MLFLOW_TRACKING_PASSWORD"
    )]
    CredentialsInFile {
        /// The key.
        key: &'static str,
    },
    /// A variable that the address needs is not set.
    #[error("the MLflow server as it is named needs {variable} too, which is not set")]
    NoCredentials {
        /// The variable.
        variable: &'static str,
    },
    /// Nobody answers, or the server has a fault of its own.
    #[error("the MLflow server at {place} cannot be reached: {reason}")]
    Unreachable {
        /// The server.
        place: String,
        /// What happened.
        reason: String,
    },
    /// The server does not let this user in.
    #[error("the MLflow server at {place} refuses access ({status}{}): {credentials}", after(", ", said))]
    Refused {
        /// The server.
        place: String,
        /// HTTP's number.
        status: u16,
        /// The server's words; empty where it has none.
        said: String,
        /// What credentials were sent, by the variables' names.
        credentials: String,
    },
    /// The server understands and says no.
    #[error("the MLflow server at {place} refuses {call} ({status}): {message}")]
    Rejected {
        /// The server.
        place: String,
        /// What was asked.
        call: String,
        /// HTTP's number.
        status: u16,
        /// MLflow's word for the error.
        code: String,
        /// The server's words.
        message: String,
    },
    /// Artifacts are kept where only other programs can write.
    #[error(
        "the MLflow server keeps artifacts at {uri}, which it does not take itself (mlflow server --serve-artifacts); they are \
         named in the run's tags only"
    )]
    NoArtifacts {
        /// The place.
        uri: String,
    },
    /// A version is made of artifacts, and there are none.
    #[error(
        "register_to makes a version of a run's artifacts, but the MLflow server keeps those at {uri}, which it does not take \
         itself; start it with --serve-artifacts (and --artifacts-destination {uri})"
    )]
    NoArtifactsToRegister {
        /// The place.
        uri: String,
    },
    /// A workspace had another registry before it had a catalog.
    #[error(
        "{origin} names the registry that workspaces had before Unity Catalog, which has no catalogs and schemas; write \
         databricks-uc"
    )]
    OldRegistry {
        /// The key or variable.
        origin: &'static str,
    },
    /// Credentials in a file of other programs.
    #[error(
        "{origin} names the profile {profile} of a Databricks configuration file, which is not read; leave `://{profile}` out, and \
         set DATABRICKS_HOST and DATABRICKS_TOKEN"
    )]
    Profile {
        /// The key or variable.
        origin: &'static str,
        /// The profile.
        profile: String,
    },
    /// The files of a catalog's models lie in object stores.
    #[error(
        "models of Unity Catalog are put into object stores, which this build does not speak with; build it with --features \
         stores, or register elsewhere"
    )]
    CatalogNotBuilt,
    /// The catalog keeps files in a way that is not spoken.
    #[error(
        "Unity Catalog wants the model's files at {location} in {kind}; nothing can be put there, register elsewhere"
    )]
    CatalogStorage {
        /// The folder.
        location: String,
        /// What is not spoken.
        kind: &'static str,
    },
    /// A file cannot be put where a catalog wants it.
    #[error("the catalog's store: {reason}")]
    Storage {
        /// What happened, without credentials.
        reason: String,
        /// Whether it may pass.
        passes: bool,
    },
    /// The registry has the version, and it cannot be used.
    #[error(
        "version {version} of {name} is {status} in the registry{}; {}",
        after(": ", message),
        if status == registry::PENDING {
            "the same command waits for it again"
        } else {
            "the same command makes a new version"
        }
    )]
    NotReady {
        /// The registered model.
        name: String,
        /// The version.
        version: String,
        /// Its state, in MLflow's words.
        status: String,
        /// The registry's words.
        message: String,
    },
    /// A file of the run folder.
    #[error(transparent)]
    File(#[from] FileError),
    /// A line of `metrics.jsonl`, or `mlflow.json`, is not what was written there.
    #[error("{path}: {reason}; restore it, or remove it to begin another MLflow run", path = path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What the parser found.
        reason: String,
    },
    /// The thread or its runtime.
    #[error("cannot start the delivery to MLflow: {0}")]
    Start(std::io::Error),
}

/// A server's words behind a sign that belongs to them; nothing where it has none.
fn after(sign: &str, said: &str) -> String {
    if said.is_empty() { String::new() } else { format!("{sign}{said}") }
}

impl MlflowError {
    /// Whether the same may succeed later without anybody's doing.
    pub fn passes(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Storage { passes: true, .. })
    }

    /// MLflow's word for the error, where a server said one.
    pub(crate) fn code(&self) -> Option<&str> {
        match self {
            Self::Rejected { code, .. } => Some(code),
            _ => None,
        }
    }
}
