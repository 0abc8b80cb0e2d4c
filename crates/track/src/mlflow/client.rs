//! The calls of MLflow's REST interface that a run needs.

use std::error::Error;
use std::path::PathBuf;
use std::time::Duration;

use reqwest::header::HeaderMap;
use reqwest::{Client, RequestBuilder, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tessera_files::IoContext;
use tokio::runtime::{Builder, Runtime};

use super::{DatasetEntry, Ending, MlflowError, Server};

/// How long an answer is waited for. Metrics wait on disk meanwhile, so this may be short.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long a connection is.
const CONNECTING: Duration = Duration::from_secs(5);
/// How long the answer to a file is, once that has been sent, and how many bytes of it are in a second at the least.
const STORING: Duration = Duration::from_secs(60);
const SLOWEST: u64 = 1 << 20;

/// The most parameters or tags of one call, and the longest value, as MLflow's documentation has them.
pub(super) const MOST_PARAMETERS: usize = 100;
const LONGEST_PARAMETER: usize = 6000;
pub(super) const LONGEST_TAG: usize = 5000;
/// The most metrics of one call.
pub(super) const MOST_METRICS: usize = 1000;

/// What MLflow answers where a name is taken.
pub(super) const EXISTS: &str = "RESOURCE_ALREADY_EXISTS";
/// The header in which a workspace says which it is.
const WORKSPACE_ID: &str = "x-databricks-org-id";

/// A point of a metric.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Metric {
    pub key: String,
    /// A number, or `"NaN"`.
    pub value: Value,
    /// Milliseconds since 1970.
    pub timestamp: i64,
    pub step: u64,
}

/// A run on the server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct RunHandle {
    pub run_id: String,
    pub artifact_uri: String,
}

/// What an artifact is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Content {
    File(PathBuf),
    Text(String),
}

impl Content {
    /// Its bytes.
    pub fn length(&self) -> Result<u64, MlflowError> {
        Ok(match self {
            Self::Text(text) => text.len() as u64,
            Self::File(file) => file.metadata().context("read", file)?.len(),
        })
    }
}

/// A client of one server. Calls block: it belongs to a thread that has nothing else to do.
pub(super) struct MlflowClient {
    pub(super) server: Server,
    pub(super) http: Client,
    runtime: Runtime,
}

impl MlflowClient {
    pub fn new(server: Server) -> Result<Self, MlflowError> {
        let runtime = Builder::new_current_thread().enable_all().build().map_err(MlflowError::Start)?;
        // A timeout for reading would also run while a file is sent, so each request has its own.
        let http = Client::builder().connect_timeout(CONNECTING).build();
        let http = http.map_err(|error| MlflowError::Start(std::io::Error::other(error)))?;
        Ok(Self { server, http, runtime })
    }

    /// The experiment of this name, which is made if there is none.
    pub fn experiment(&self, name: &str) -> Result<String, MlflowError> {
        if let Some(id) = self.find_experiment(name)? {
            return Ok(id);
        }
        let call = experiment_call(name);
        match self.post::<Created>(&call, "experiments/create", &json!({ "name": name })) {
            Ok(created) => Ok(created.experiment_id),
            // Another run has made it meanwhile.
            Err(error) if error.code() == Some(EXISTS) => self.find_experiment(name)?.ok_or(error),
            Err(error) => Err(error),
        }
    }

    /// The experiment of this name, if there is one.
    pub fn find_experiment(&self, name: &str) -> Result<Option<String>, MlflowError> {
        #[derive(Deserialize)]
        struct Found {
            experiment: Experiment,
        }
        #[derive(Deserialize)]
        struct Experiment {
            experiment_id: String,
            #[serde(default)]
            lifecycle_stage: String,
        }
        let call = experiment_call(name);
        let url = self.server.url("api/2.0/mlflow/experiments/get-by-name");
        let found = self.answer::<Found>(&call, self.http.get(url).query(&[("experiment_name", name)]));
        let Some(found) = or_none(found)? else { return Ok(None) };
        let Experiment { experiment_id, lifecycle_stage } = found.experiment;
        if lifecycle_stage == "deleted" {
            let message = "the experiment is deleted; restore it on the server, or name another".to_owned();
            let code = "INVALID_STATE".to_owned();
            return Err(MlflowError::Rejected {
                place: self.server.place(),
                call,
                status: 200,
                code,
                message,
            });
        }
        Ok(Some(experiment_id))
    }

    /// The workspace that a run is kept in, where the server is one: it says so in the header of an answer about the run.
    pub fn workspace_of_run(&self, run: &str) -> Result<Option<String>, MlflowError> {
        if !self.server.is_workspace() {
            return Ok(None);
        }
        let url = self.server.url("api/2.0/mlflow/runs/get");
        let request = self.http.get(url).query(&[("run_id", run)]).timeout(PATIENCE);
        let (headers, _) = self.exchange("the run", request)?;
        let id = headers.get(WORKSPACE_ID).and_then(|id| id.to_str().ok());
        Ok(id.map(str::to_owned))
    }

    /// The run of this experiment with this tag, if there is one.
    pub fn run_with_tag(
        &self,
        experiment: &str,
        key: &str,
        value: &str,
    ) -> Result<Option<RunHandle>, MlflowError> {
        #[derive(Deserialize)]
        struct Found {
            #[serde(default)]
            runs: Vec<RunAnswer>,
        }
        let body = json!({
            "experiment_ids": [experiment],
            "filter": format!("tags.`{key}` = '{value}'"),
            "max_results": 1,
        });
        let found: Found = self.post("the search for the run", "runs/search", &body)?;
        Ok(found.runs.into_iter().next().map(|run| run.info))
    }

    /// A new run.
    pub fn create_run(
        &self,
        experiment: &str,
        name: &str,
        start: i64,
        tags: &[(String, String)],
    ) -> Result<RunHandle, MlflowError> {
        #[derive(Deserialize)]
        struct Answer {
            run: RunAnswer,
        }
        let body = json!({"experiment_id": experiment, "run_name": name, "start_time": start, "tags": pairs(tags, LONGEST_TAG)});
        Ok(self.post::<Answer>("a new run", "runs/create", &body)?.run.info)
    }

    /// Parameters, tags and metrics of a run, as many as one call takes.
    pub fn log(
        &self,
        run: &str,
        parameters: &[(String, String)],
        tags: &[(String, String)],
        metrics: &[Metric],
    ) -> Result<(), MlflowError> {
        let body = json!({
            "run_id": run,
            "params": pairs(parameters, LONGEST_PARAMETER),
            "tags": pairs(tags, LONGEST_TAG),
            "metrics": metrics,
        });
        self.post::<Value>("parameters, tags and metrics", "runs/log-batch", &body).map(drop)
    }

    /// What a run reads.
    pub fn log_inputs(&self, run: &str, datasets: &[DatasetEntry]) -> Result<(), MlflowError> {
        let entry = |dataset: &DatasetEntry| {
            json!({
                "tags": [{"key": "mlflow.data.context", "value": dataset.context}],
                "dataset": {
                    "name": dataset.name,
                    "digest": dataset.digest,
                    "source_type": dataset.source_type,
                    "source": json!({"uri": dataset.uri}).to_string(),
                    "profile": dataset.profile.to_string(),
                }
            })
        };
        let datasets: Vec<_> = datasets.iter().map(entry).collect();
        let body = json!({"run_id": run, "datasets": datasets});
        self.post::<Value>("the data sets", "runs/log-inputs", &body).map(drop)
    }

    /// Says that a run goes on, or how it ended.
    pub fn set_status(&self, run: &str, ending: Option<(Ending, i64)>) -> Result<(), MlflowError> {
        let body = match ending {
            None => json!({"run_id": run, "status": "RUNNING"}),
            Some((ending, time)) => json!({"run_id": run, "status": ending, "end_time": time}),
        };
        self.post::<Value>("the run's status", "runs/update", &body).map(drop)
    }

    /// Where the artifacts of an experiment's runs are kept.
    pub fn artifact_location(&self, experiment: &str) -> Result<String, MlflowError> {
        #[derive(Deserialize)]
        struct Found {
            experiment: Location,
        }
        #[derive(Deserialize)]
        struct Location {
            artifact_location: String,
        }
        let url = self.server.url("api/2.0/mlflow/experiments/get");
        let request = self.http.get(url).query(&[("experiment_id", experiment)]);
        Ok(self.answer::<Found>("the experiment", request)?.experiment.artifact_location)
    }

    /// Copies a file or a text to a run's artifacts, under a name with `/` between its parts.
    pub fn upload(&self, run: &RunHandle, name: &str, content: &Content) -> Result<(), MlflowError> {
        let url = self.artifact_url(&run.artifact_uri, name)?;
        let length = content.length()?;
        let request = self.http.put(url).timeout(sending(length));
        let request = match content {
            Content::Text(text) => request.body(text.clone()),
            Content::File(file) => {
                let open = async { tokio::fs::File::open(file).await };
                let content = self.runtime.block_on(open).context("open", file)?;
                request.header("content-length", length).body(content)
            }
        };
        self.send(&format!("the artifact {name}"), request).map(drop)
    }

    /// Where on the server an artifact of this name lies, below this root.
    pub(super) fn artifact_url(&self, root: &str, name: &str) -> Result<String, MlflowError> {
        let path: Vec<_> = name.split('/').map(encoded).collect();
        let path = path.join("/");
        if let Some(rest) = root.strip_prefix("mlflow-artifacts:") {
            // `mlflow-artifacts://host/path` names a host, which is this server's.
            let rest =
                rest.strip_prefix("//").map_or(rest, |rest| rest.find('/').map_or("", |at| &rest[at..]));
            let root = rest.trim_matches('/');
            return Ok(self.server.url(&format!("api/2.0/mlflow-artifacts/artifacts/{root}/{path}")));
        }
        // Credentials are for this server alone.
        if root.starts_with(&self.server.place()) {
            return Ok(format!("{}/{path}", root.trim_end_matches('/')));
        }
        Err(MlflowError::NoArtifacts { uri: self.server.clean(root) })
    }

    pub(super) fn post<T: for<'de> Deserialize<'de>>(
        &self,
        call: &str,
        path: &str,
        body: &Value,
    ) -> Result<T, MlflowError> {
        let url = self.server.url(&format!("api/2.0/mlflow/{path}"));
        self.answer(call, self.http.post(url).json(body))
    }

    /// A request's answer, as MLflow gives it.
    pub(super) fn answer<T: for<'de> Deserialize<'de>>(
        &self,
        call: &str,
        request: RequestBuilder,
    ) -> Result<T, MlflowError> {
        let text = self.send(call, request.timeout(PATIENCE))?;
        serde_json::from_str(&text).map_err(|error| MlflowError::Unreachable {
            place: self.server.place(),
            reason: format!("its answer is not MLflow's: {error}"),
        })
    }

    /// What a server says of why it does not let a user in; nothing where that is a page for browsers.
    fn words(&self, text: &str) -> String {
        let said = match serde_json::from_str::<Complaint>(text) {
            Ok(complaint) => complaint.message,
            Err(_) if text.trim_start().starts_with('<') => String::new(),
            Err(_) => text.to_owned(),
        };
        self.server.clean(said.trim())
    }

    fn send(&self, call: &str, request: RequestBuilder) -> Result<String, MlflowError> {
        self.exchange(call, request).map(|(_, text)| text)
    }

    fn exchange(&self, call: &str, request: RequestBuilder) -> Result<(HeaderMap, String), MlflowError> {
        let place = || self.server.place();
        let request = self.server.sign(request);
        let answer = self.runtime.block_on(async {
            let answer = request.send().await?;
            let (status, headers) = (answer.status(), answer.headers().clone());
            Ok::<_, reqwest::Error>((status, headers, answer.text().await?))
        });
        let (status, headers, text) = answer.map_err(|error| MlflowError::Unreachable {
            place: place(),
            reason: self.server.clean(&last_cause(&error)),
        })?;
        match status {
            status if status.is_success() => Ok((headers, text)),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(MlflowError::Refused {
                place: place(),
                status: status.as_u16(),
                said: self.words(&text),
                credentials: self.server.advice(),
            }),
            StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => {
                Err(MlflowError::Unreachable { place: place(), reason: format!("it answers {status}") })
            }
            status if status.is_client_error() => {
                let Complaint { error_code, message } = serde_json::from_str(&text)
                    .unwrap_or(Complaint { error_code: String::new(), message: text });
                Err(MlflowError::Rejected {
                    place: place(),
                    call: call.to_owned(),
                    status: status.as_u16(),
                    code: error_code,
                    message: self.server.clean(&message),
                })
            }
            status => {
                Err(MlflowError::Unreachable { place: place(), reason: format!("it answers {status}") })
            }
        }
    }
}

#[derive(Deserialize)]
struct Created {
    experiment_id: String,
}

#[derive(Deserialize)]
struct RunAnswer {
    info: RunHandle,
}

/// What MLflow says of a request that it refuses.
#[derive(Deserialize)]
struct Complaint {
    #[serde(default)]
    error_code: String,
    #[serde(default)]
    message: String,
}

fn experiment_call(name: &str) -> String {
    format!("experiment_path {name}")
}

/// What was asked for, or `None` where the server does not have it.
pub(super) fn or_none<T>(answer: Result<T, MlflowError>) -> Result<Option<T>, MlflowError> {
    match answer {
        Err(MlflowError::Rejected { status: 404, .. }) => Ok(None),
        answer => answer.map(Some),
    }
}

/// How long a file of so many bytes may take.
fn sending(length: u64) -> Duration {
    STORING + Duration::from_secs(length / SLOWEST)
}

/// Keys and values as MLflow wants them, values no longer than it takes.
pub(super) fn pairs(pairs: &[(String, String)], longest: usize) -> Vec<Value> {
    let cut = |value: &str| value.chars().take(longest).collect::<String>();
    pairs.iter().map(|(key, value)| json!({"key": key, "value": cut(value)})).collect()
}

/// A part of a path as an address has it.
fn encoded(part: &str) -> String {
    let byte = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => char::from(byte).to_string(),
        byte => format!("%{byte:02X}"),
    };
    part.bytes().map(byte).collect()
}

/// The cause that says what went wrong: the outer ones repeat the address.
fn last_cause(error: &dyn Error) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn artifacts_go_to_the_server_or_are_refused() {
        let server = Server::find(Some("http://a:1/p"), |_| None).unwrap();
        let client = MlflowClient::new(server).unwrap();
        let url = |root: &str| client.artifact_url(root, "m n/x.json");
        let proxied = "http://a:1/p/api/2.0/mlflow-artifacts/artifacts/1/r/artifacts/m%20n/x.json";
        for root in ["mlflow-artifacts:/1/r/artifacts", "mlflow-artifacts://a:1/1/r/artifacts"] {
            assert_eq!(url(root).unwrap(), proxied);
        }
        assert_eq!(url("http://a:1/p/x").unwrap(), "http://a:1/p/x/m%20n/x.json");
        for root in ["s3://bucket/1", "file:///tmp/x", "http://elsewhere/x"] {
            assert!(matches!(url(root), Err(MlflowError::NoArtifacts { .. })), "{root}");
        }
    }

    #[test]
    fn a_refusal_keeps_the_servers_words() {
        let client = MlflowClient::new(Server::find(Some("http://a:1"), |_| None).unwrap()).unwrap();
        let refusal = |text: &str| MlflowError::Refused {
            place: "http://a:1".into(),
            status: 403,
            said: client.words(text),
            credentials: "who are you?".into(),
        };
        let said =
            refusal(r#"{"error_code": "PERMISSION_DENIED", "message": "no CREATE MODEL"}"#).to_string();
        assert!(said.ends_with("refuses access (403, no CREATE MODEL): who are you?"), "{said}");
        let said = refusal("<html>a page</html>").to_string();
        assert!(said.ends_with("refuses access (403): who are you?"), "{said}");
    }

    #[test]
    fn a_large_file_has_time_to_be_sent_over_a_slow_line() {
        assert_eq!(sending(0), STORING);
        assert!(sending(5_000_000_000) > Duration::from_secs(4000));
    }

    #[test]
    fn values_are_cut_at_a_character() {
        let long = "ä".repeat(LONGEST_PARAMETER + 1);
        let cut = pairs(&[("k".into(), long)], LONGEST_PARAMETER);
        assert_eq!(cut[0]["value"].as_str().unwrap().chars().count(), LONGEST_PARAMETER);
    }
}
